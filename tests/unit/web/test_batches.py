"""A batch is kept as a whole: an upload that fails leaves nothing in the store nor on disk."""

import asyncio
import errno
import io
import tarfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from io import FileIO
from pathlib import Path

import falcon.asgi
import httpx
import pytest
from support.asgi import Server, run, scope_of
from support.store import PREFIX, StoreServer, eventually, stores

from server.cluster.scoreboard import Scoreboard
from server.jobs.blobs import Directory
from server.jobs.intake import Limits
from server.jobs.store import Store
from server.operations.images import OPERATIONS
from server.web.batches import BatchesResource
from server.web.envelope import App, Envelope
from server.web.problems import add_error_handlers
from server.web.submissions import OptionReader

PATH = "/batches?operation=flip"
ITEM = b"an image"
LIMITS = Limits(items=50, bytes=100_000, item_bytes=1000, ratio=100)


def app_of(store: Store, blobs: Directory) -> App:
    app = falcon.asgi.App()
    add_error_handlers(app)
    options = OptionReader(["default"], 5)
    app.add_route("/batches", BatchesResource(store, blobs, options, OPERATIONS, LIMITS))
    return Envelope(app, Scoreboard(rows=1).claim())


def form(count: int, *, is_whole: bool = True) -> tuple[bytes, Mapping[str, str]]:
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n%b\r\n' % ITEM
    body = part * count + (b"--b--\r\n" if is_whole else b"--b\r\nno header\r\n")
    return body, {"Content-Type": "multipart/form-data; boundary=b"}


@asynccontextmanager
async def client(store: Store, blobs: Directory) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app_of(store, blobs))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as opened:
        yield opened


def left_over(server: StoreServer, root: Path) -> list[str]:
    """What there is of jobs in the store, and of files on disk."""
    kinds = ("job", "group", "log", "wait")
    keys = [key for kind in kinds for key in server.client.scan_iter(f"{PREFIX}{kind}:*")]
    keys += server.client.zrange(f"{PREFIX}unsealed", 0, -1)
    return [*keys, *(str(path) for path in root.rglob("*") if path.is_file())]


def slug(response: httpx.Response) -> str:
    return str(response.json()["type"]).rpartition(":")[2]


def many_members() -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for number in range(51):
                archive.addfile(tarfile.TarInfo(f"{number}.png"))
        return file.getvalue()


def member(name: str, kind: bytes) -> bytes:
    """A tar with twenty files and one thing that is none."""
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for number in range(20):
                archive.addfile(tarfile.TarInfo(f"{number}.png"))
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        return file.getvalue()


FORM = form(0)[1]
FIELD = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--b--'


@pytest.mark.parametrize(
    ("content", "headers", "expected"),
    [
        (*form(40, is_whole=False), "400 malformed-multipart"),
        (form(40)[0][:-30], FORM, "400 malformed-multipart"),
        (*form(51), "413 too-many-items"),
        (*form(0), "400 malformed-multipart"),
        (form(20)[0].replace(b"--b--", FIELD), FORM, "400 malformed-multipart"),
        (form(20)[0].replace(ITEM + b"\r\n--b--", b"x" * 1001 + b"\r\n--b--"), FORM, "413 upload-too-large"),
        (many_members(), {}, "413 too-many-items"),
        (member("link", tarfile.SYMTYPE), {}, "422 bad-archive"),
        (member("device", tarfile.BLKTYPE), {}, "422 bad-archive"),
        (member("x", tarfile.REGTYPE)[:10_000], {}, "422 bad-archive"),
    ],
)
def test_an_upload_that_is_wrong_in_the_middle_leaves_nothing(
    server: StoreServer, tmp_path: Path, content: bytes, headers: Mapping[str, str], expected: str
) -> None:
    async def test() -> None:
        blobs = Directory(tmp_path)
        async with stores(server, "me") as (store,), client(store, blobs) as http:
            response = await http.post(PATH, content=content, headers=headers)
            assert f"{response.status_code} {slug(response)}" == expected
            assert left_over(server, tmp_path) == []
            assert (await http.post(PATH, content=form(3)[0], headers=FORM)).status_code == 202
            assert left_over(server, tmp_path) != []

    run(test())


def test_a_disk_that_becomes_full_in_the_middle_leaves_nothing(server: StoreServer, tmp_path: Path) -> None:
    class Filling(Directory):
        calls = 0

        async def keep_all(self, files: Mapping[str, FileIO], group: str) -> None:
            self.calls += 1
            if self.calls == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            await super().keep_all(files, group)

    async def test() -> None:
        blobs = Filling(tmp_path)
        async with stores(server, "me") as (store,), client(store, blobs) as http:
            response = await http.post(PATH, content=form(40)[0], headers=FORM)
            assert (response.status_code, slug(response)) == (503, "service-unavailable")
            assert blobs.calls == 3
            assert left_over(server, tmp_path) == []

    run(test())


def test_a_queue_that_becomes_full_in_the_middle_leaves_nothing(server: StoreServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            stores(server, "me", max_jobs=20) as (store,),
            client(store, Directory(tmp_path)) as http,
        ):
            response = await http.post(PATH, content=form(40)[0], headers=FORM)
            assert (response.status_code, slug(response)) == (503, "queue-full")
            assert int(response.headers["Retry-After"]) >= 1
            assert left_over(server, tmp_path) == []

    run(test())


def test_a_client_that_leaves_in_the_middle_leaves_nothing(server: StoreServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,):
            to_app = Server()
            body, headers = form(40)
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            task = asyncio.create_task(
                to_app.call(app_of(store, Directory(tmp_path)), scope_of(PATH, headers=raw))
            )
            to_app.body(body[: len(body) // 2], is_all=False)
            await eventually(lambda: left_over(server, tmp_path))
            to_app.disconnect()
            await asyncio.wait([task])
            await eventually(lambda: not left_over(server, tmp_path))

    run(test())


def test_a_request_that_is_cancelled_in_the_middle_leaves_nothing(
    server: StoreServer, tmp_path: Path
) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,):
            to_app = Server()
            body, headers = form(40)
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            task = asyncio.create_task(
                to_app.call(app_of(store, Directory(tmp_path)), scope_of(PATH, headers=raw))
            )
            to_app.body(body[: len(body) // 2], is_all=False)
            await eventually(lambda: left_over(server, tmp_path))
            task.cancel()
            await asyncio.wait([task])
            await eventually(lambda: not left_over(server, tmp_path))

    run(test())


def test_a_store_that_goes_in_the_middle_keeps_nothing_when_it_is_back(
    server: StoreServer, tmp_path: Path
) -> None:
    async def test() -> None:
        blobs = Directory(tmp_path)
        async with stores(server, "me", grace_s=0.1) as (store,):
            to_app = Server()
            body, headers = form(40)
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            task = asyncio.create_task(to_app.call(app_of(store, blobs), scope_of(PATH, headers=raw)))
            to_app.body(body[: len(body) // 2], is_all=False)
            await eventually(lambda: server.client.exists(f"{PREFIX}unsealed"))
            server.kill()
            to_app.body(body[len(body) // 2 :])
            await task
            assert to_app.status == 503
            await asyncio.to_thread(server.start)
            await eventually(lambda: not left_over(server, tmp_path))

    run(test())


def test_a_batch_with_a_key_is_carried_out_once(server: StoreServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,), client(store, Directory(tmp_path)) as http:
            headers = {**FORM, "Idempotency-Key": "k1"}
            first = await http.post(PATH, content=form(20)[0], headers=headers)
            before = sorted(left_over(server, tmp_path))
            again = await http.post(PATH, content=form(20)[0], headers=headers)
            assert (again.status_code, again.json()) == (202, first.json())
            for path, content in ((PATH, form(21)[0]), (PATH + "&priority=1", form(20)[0])):
                other = await http.post(path, content=content, headers=headers)
                assert (other.status_code, slug(other)) == (422, "key-reused")
            assert sorted(left_over(server, tmp_path)) == before

    run(test())
