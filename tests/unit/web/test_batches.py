"""A batch is kept as a whole: an upload that fails leaves nothing in the store nor on disk."""

import asyncio
import errno
import io
import json
import tarfile
import zipfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import get_args

import falcon.asgi
import httpx
import pytest
from support.asgi import Server, run, scope_of
from support.store import PREFIX, StoreServer, eventually, stores

from server.cluster.scoreboard import Scoreboard
from server.errors import StoreAway
from server.jobs.blobs import BlobGone, Directory
from server.jobs.intake import Limits
from server.jobs.model import Idempotency, Result
from server.jobs.store import Store
from server.operations.images import OPERATIONS, MediaType
from server.web.batches import ArchiveResource, BatchesResource, BatchResource
from server.web.envelope import App, Envelope
from server.web.problems import add_error_handlers
from server.web.submissions import OptionReader

PATH = "/batches?operation=flip"
ITEM = b"an image"
LIMITS = Limits(items=50, bytes=100_000, item_bytes=1000, ratio=100)


def app_of(store: Store, blobs: Directory, limits: Limits = LIMITS) -> App:
    app = falcon.asgi.App()
    add_error_handlers(app)
    options = OptionReader(["default"], 5)
    app.add_route("/batches", BatchesResource(store, blobs, options, OPERATIONS, limits))
    app.add_route("/batches/{id}/items", BatchResource(store), suffix="items")
    app.add_route("/batches/{id}/archive", ArchiveResource(store, blobs, OPERATIONS))
    return Envelope(app, Scoreboard(rows=1).claim())


def form(count: int, *, is_whole: bool = True) -> tuple[bytes, Mapping[str, str]]:
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n%b\r\n' % ITEM
    body = part * count + (b"--b--\r\n" if is_whole else b"--b\r\nno header\r\n")
    return body, {"Content-Type": "multipart/form-data; boundary=b"}


@asynccontextmanager
async def client(store: Store, blobs: Directory, limits: Limits = LIMITS) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app_of(store, blobs, limits))
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
JSON = {"Content-Type": "application/json; charset=utf-8"}
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


ABSENT = f"/jobs/{'0' * 32}/result"


@pytest.mark.parametrize(
    ("content", "expected", "named"),
    [
        (b"", "400 bad-parameter", "no JSON"),
        (b"{", "400 bad-parameter", "no JSON"),
        (b"[" * 5_000, "400 bad-parameter", "no JSON"),
        (b"\xff", "400 bad-parameter", "no JSON"),
        (b"[]", "400 bad-parameter", "one member"),
        (b"{}", "400 bad-parameter", "one member"),
        (b'{"items": [], "more": 1}', "400 bad-parameter", "one member"),
        (b'{"items": []}', "400 bad-parameter", "no list"),
        (b'{"items": {"0": 1}}', "400 bad-parameter", "no list"),
        (b'{"items": [7]}', "400 bad-parameter", "Item 0 cannot be used"),
        (b'{"items": ["/jobs/../result"]}', "400 bad-parameter", "Item 0 cannot be used"),
        (f'{{"items": ["{ABSENT}"]}}'.encode(), "400 bad-parameter", "Item 0 cannot be used"),
        (f'{{"items": ["{ABSENT}", [[]]]}}'.encode(), "400 bad-parameter", "Item 1 cannot be used"),
        (b'{"items": [%b1]}' % (b"1," * 50), "413 too-many-items", "more than 50"),
        (b" " * 10_000, "413 too-many-items", "more than 50"),
    ],
)
def test_a_document_that_names_no_results_is_refused(
    server: StoreServer, tmp_path: Path, content: bytes, expected: str, named: str
) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,), client(store, Directory(tmp_path)) as http:
            response = await http.post(PATH, content=content, headers=JSON)
            assert f"{response.status_code} {slug(response)}" == expected
            assert named in response.json()["detail"]
            assert left_over(server, tmp_path) == []

    run(test())


@pytest.mark.parametrize(
    ("results", "limits", "expected"),
    [
        (1, LIMITS, "202"),
        (2, LIMITS, "400 bad-parameter"),  # the second one is not done
        (1, replace(LIMITS, item_bytes=3), "413 upload-too-large"),
        (1, replace(LIMITS, bytes=3), "413 upload-too-large"),
    ],
)
@pytest.mark.parametrize("name", [b"a.png", b""])
def test_a_document_that_names_results_makes_a_batch_or_leaves_nothing(  # noqa: PLR0913, PLR0917 parametrized
    server: StoreServer, tmp_path: Path, results: int, limits: Limits, expected: str, name: bytes
) -> None:
    async def test() -> None:
        blobs = Directory(tmp_path)
        async with (
            stores(server, "me") as (store,),
            client(store, blobs) as anyone,
            client(store, blobs, limits) as http,
        ):
            body = form(results)[0].replace(b"a.png", name)
            first = (await anyone.post(PATH, content=body, headers=FORM)).json()["id"]
            claims, _ = await store.claim("1", ["flip 1"], 1)
            with blobs.new() as file:
                file.write(b"done")
                await blobs.keep(file, first, claims[0].id.result_name(1))
            await store.complete(claims[0], Result({}, 4, 1))
            before = left_over(server, tmp_path)
            addresses = [f"/jobs/{first}-{index}/result" for index in range(results)]
            response = await http.post(PATH, content=json.dumps({"items": addresses}), headers=JSON)
            if expected == "202":
                assert response.status_code == 202
                second = (await store.items(response.json()["id"], range(2)))[0]
                assert (second.bytes, second.name) == (4, name.decode())
                await blobs.remove_group(first)  # the other one has the file as well
                with await blobs.open(second.id.group, second.id.input_name) as kept:
                    assert kept.read() == b"done"
            else:
                assert f"{response.status_code} {slug(response)}" == expected
                assert sorted(left_over(server, tmp_path)) == sorted(before)

    run(test())


def test_files_that_are_removed_meanwhile_are_told_and_leave_nothing(
    server: StoreServer, tmp_path: Path
) -> None:
    class Removed(Directory):
        async def keep_all(self, files: Mapping[str, FileIO], group: str) -> None:
            raise BlobGone(group)

    async def test() -> None:
        async with stores(server, "me") as (store,), client(store, Removed(tmp_path)) as http:
            response = await http.post(PATH, content=form(40)[0], headers=FORM)
            assert (response.status_code, slug(response)) == (503, "service-unavailable")
            assert left_over(server, tmp_path) == []

    run(test())


def test_a_batch_that_is_dropped_meanwhile_is_told(server: StoreServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,):

            class Dropping(Directory):
                calls = 0

                async def keep_all(self, files: Mapping[str, FileIO], group: str) -> None:
                    self.calls += 1
                    if self.calls == 2:  # as the janitor does with a batch whose owner it takes for dead
                        await eventually(lambda: store.has(group))
                        await store.drop(group)
                    await super().keep_all(files, group)

            async with client(store, Dropping(tmp_path)) as http:
                response = await http.post(PATH, content=form(40)[0], headers=FORM)
                assert (response.status_code, slug(response)) == (503, "service-unavailable")
                assert left_over(server, tmp_path) == []

    run(test())


def test_a_disk_that_becomes_full_in_the_middle_leaves_nothing(server: StoreServer, tmp_path: Path) -> None:
    class Filling(Directory):
        calls = 0

        async def keep_all(self, files: Mapping[str, FileIO], group: str) -> None:
            self.calls += 1
            if self.calls == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            await super().keep_all(files, group)

    async def test() -> None:
        blobs = Filling(tmp_path)
        async with stores(server, "me") as (store,), client(store, blobs) as http:
            response = await http.post(PATH, content=form(40)[0], headers=FORM)
            assert (response.status_code, slug(response)) == (503, "service-unavailable")
            assert blobs.calls == 2
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
        async with stores(server, "me", grace_s=2) as (store,):
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


class OwnStore(Store):
    """A store whose calls a test can change."""

    def __init__(self, server: StoreServer) -> None:
        super().__init__(
            server.url, owner="me", grace_s=5, ttl_s=60, lease_s=60, max_jobs=10_000, max_bytes=1 << 30
        )


class UnheardStore(OwnStore):
    """A store whose answer to the seal of a batch does not arrive."""

    async def seal(self, batch: str, idempotency: Idempotency | None = None) -> str:
        await super().seal(batch, idempotency)
        raise StoreAway("The store does not answer.")


class RemovingStore(OwnStore):
    """A store whose janitor finds a batch silent, and removes it, right before it is sealed."""

    async def seal(self, batch: str, idempotency: Idempotency | None = None) -> str:
        assert await self.drop(batch)
        return await super().seal(batch, idempotency)


class SilentStore(OwnStore):
    """A store that seals a batch and does not answer."""

    def __init__(self, server: StoreServer) -> None:
        super().__init__(server)
        self.has_sealed = asyncio.Event()

    async def seal(self, batch: str, idempotency: Idempotency | None = None) -> str:
        await super().seal(batch, idempotency)
        self.has_sealed.set()
        await asyncio.Event().wait()
        return batch


class SlowStore(OwnStore):
    """A store that takes its time to drop a batch."""

    def __init__(self, server: StoreServer) -> None:
        super().__init__(server)
        self.is_asked, self.may_go_on = asyncio.Event(), asyncio.Event()

    async def drop(self, batch: str) -> bool:
        self.is_asked.set()
        await self.may_go_on.wait()
        return await super().drop(batch)


WITH_KEY = {**FORM, "Idempotency-Key": "k1"}


def request_with_key(store: Store, blobs: Directory, body: bytes) -> asyncio.Task[None]:
    """Begin to submit a batch, for a client that may leave."""
    to_app = Server()
    to_app.body(body)
    raw = [(name.lower().encode(), value.encode()) for name, value in WITH_KEY.items()]
    return asyncio.create_task(to_app.call(app_of(store, blobs), scope_of(PATH, headers=raw)))


async def check_that_it_is_found_by_its_key(http: httpx.AsyncClient, store: Store, blobs: Directory) -> None:
    again = await http.post(PATH, content=form(20)[0], headers=WITH_KEY)
    assert again.status_code == 202
    jobs = await store.items(again.json()["id"], range(20))
    for job in jobs:
        with await blobs.open(job.id.group, job.id.input_name) as file:
            assert file.read() == ITEM
    assert len(jobs) == 20


def test_a_batch_whose_seal_was_carried_out_but_not_heard_stays(server: StoreServer, tmp_path: Path) -> None:
    async def test() -> None:
        blobs = Directory(tmp_path)
        async with (
            UnheardStore(server) as unheard,
            stores(server, "you") as (store,),
            client(unheard, blobs) as http,
            client(store, blobs) as heard,
        ):
            response = await http.post(PATH, content=form(20)[0], headers=WITH_KEY)
            assert (response.status_code, slug(response)) == (503, "store-away")
            await check_that_it_is_found_by_its_key(heard, store, blobs)

    run(test())


def test_a_batch_that_is_removed_before_it_is_sealed_is_to_be_sent_again(
    server: StoreServer, tmp_path: Path
) -> None:
    async def test() -> None:
        async with RemovingStore(server) as store, client(store, Directory(tmp_path)) as http:
            response = await http.post(PATH, content=form(20)[0], headers=FORM)
            assert (response.status_code, slug(response)) == (503, "service-unavailable")
            assert "Send it again." in response.json()["detail"]
        assert not left_over(server, tmp_path)

    run(test())


def test_a_batch_that_is_sealed_when_its_client_leaves_stays(server: StoreServer, tmp_path: Path) -> None:
    async def test() -> None:
        blobs = Directory(tmp_path)
        async with (
            SilentStore(server) as silent,
            stores(server, "you") as (store,),
            client(store, blobs) as heard,
        ):
            task = request_with_key(silent, blobs, form(20)[0])
            await silent.has_sealed.wait()
            task.cancel()
            await asyncio.wait([task])
            await check_that_it_is_found_by_its_key(heard, store, blobs)

    run(test())


def test_a_repeated_batch_leaves_nothing_when_its_client_leaves(server: StoreServer, tmp_path: Path) -> None:
    async def test() -> None:
        blobs = Directory(tmp_path)
        async with SlowStore(server) as slow, client(slow, blobs) as http:
            assert (await http.post(PATH, content=form(20)[0], headers=WITH_KEY)).status_code == 202
            before = sorted(left_over(server, tmp_path))
            task = request_with_key(slow, blobs, form(20)[0])
            await slow.is_asked.wait()
            task.cancel()
            await asyncio.wait([task])
            slow.may_go_on.set()
            await eventually(lambda: sorted(left_over(server, tmp_path)) == before)

    run(test())


class UnreachableDirectory(Directory):
    """Blobs that cannot be reached when they are to be removed."""

    async def remove_group(self, group: str) -> None:
        raise StoreAway(f"{group} cannot be reached.")


def test_a_refusal_is_told_although_the_files_cannot_be_removed(server: StoreServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,), client(store, UnreachableDirectory(tmp_path)) as http:
            response = await http.post(PATH, content=b"PK\3\4 and so on")
            assert (response.status_code, slug(response)) == (422, "bad-archive")

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


@pytest.mark.parametrize(
    ("name", "other"),
    [
        (b"a.png", b"b.png"),
        (b"a" * 300 + b"1", b"a" * 300 + b"2"),
        ("a\u200b".encode(), "a\u202e".encode()),
        (b"a\xff", b"a\xfe"),
        (b"\xff", "\ufffd".encode()),
    ],
)
def test_the_names_of_a_batch_with_a_key_are_compared_as_they_were_sent(
    server: StoreServer, tmp_path: Path, name: bytes, other: bytes
) -> None:
    def tar(name: bytes) -> bytes:
        with io.BytesIO() as file:
            text = name.decode(errors="surrogateescape")
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
                archive.addfile(tarfile.TarInfo(text))
            return file.getvalue()

    async def test() -> None:
        async with stores(server, "me") as (store,), client(store, Directory(tmp_path)) as http:
            headers = {"Idempotency-Key": "k1"}
            answers = [await http.post(PATH, content=tar(each), headers=headers) for each in (name, name)]
            assert {answer.status_code for answer in answers} == {202}
            refused = await http.post(PATH, content=tar(other), headers=headers)
            assert (refused.status_code, slug(refused)) == (422, "key-reused")

    run(test())


def test_a_form_of_a_hundred_thousand_parts_is_refused_at_the_first_that_is_too_many(
    server: StoreServer, tmp_path: Path
) -> None:
    body = form(100_000)[0]
    chunks = [body[start : start + 1000] for start in range(0, len(body), 1000)]

    async def test() -> None:
        async with stores(server, "me") as (store,):
            to_app = Server()
            to_app.body(*chunks)
            headers = [(b"content-type", FORM["Content-Type"].encode())]
            await to_app.call(app_of(store, Directory(tmp_path)), scope_of(PATH, headers=headers))
            assert to_app.status == 413
            assert to_app.asked < 100  # of as many thousand chunks
            assert left_over(server, tmp_path) == []

    run(test())


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a\r\nSet-Cookie: b", "\x1b[31m", 'a"b', "x" * 5000, "\u202e"]
)
def test_a_name_is_nothing_but_text(server: StoreServer, tmp_path: Path, name: str) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,), client(store, Directory(tmp_path)) as http:
            with io.BytesIO() as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                    archive.addfile(tarfile.TarInfo(name))
                response = await http.post(PATH, content=file.getvalue())
            assert response.status_code == 202
            (item,) = await store.items(response.json()["id"], range(1))
            assert item.name is not None
            assert item.name.isprintable()
            assert len(item.name) <= 200
            assert [Path(left).name for left in left_over(server, tmp_path) if "/" in left] == ["0.in"]

    run(test())


async def completed(
    http: httpx.AsyncClient, store: Store, blobs: Directory, media_types: Iterable[str]
) -> str:
    """Submit a batch, carry it out, and return its address."""
    outcomes = [{"media_type": each} for each in media_types]
    location = (await http.post(PATH, content=form(len(outcomes))[0], headers=FORM)).headers["location"]
    claims, _ = await store.claim("1", ["flip 1"], len(outcomes))
    for claim, outcome in zip(claims, outcomes, strict=True):
        with blobs.new() as file:
            file.write(b"done")
            await blobs.keep(file, claim.id.group, claim.id.result_name(claim.fence))
        assert await store.complete(claim, Result(outcome, 4, claim.fence))
    return str(location)


def test_files_in_an_archive_have_the_extension_of_their_format(server: StoreServer, tmp_path: Path) -> None:
    async def test() -> None:
        blobs = Directory(tmp_path)
        async with stores(server, "me") as (store,), client(store, blobs) as http:
            location = await completed(http, store, blobs, [*get_args(MediaType), "image/other"])
            response = await http.get(f"{location}/archive")
        with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
            *names, manifest = archive.namelist()
            assert manifest == "manifest.json"
            assert [name.partition(".")[2] for name in names] == [
                *("jpg", "png", "webp", "gif", "tiff", "bmp", "avif", "pnm", "qoi", "bin")
            ]

    run(test())


def test_a_batch_that_expires_while_it_is_fetched_is_not_taken_for_a_whole_one(
    server: StoreServer, tmp_path: Path
) -> None:
    async def test() -> None:
        blobs = Directory(tmp_path)
        async with stores(server, "me") as (store,), client(store, blobs) as http:
            location = await completed(http, store, blobs, ["image/png"] * 3)
            server.client.delete(f"{PREFIX}job:{location.rpartition('/')[2]}-2")  # jobs go before their batch
            items = await http.get(f"{location}/items")
            assert (items.status_code, slug(items)) == (410, "expired")
            answer = await http.get(f"{location}/archive")
            assert (answer.status_code, slug(answer)) == (410, "expired")
        server.client.flushall()  # half a batch obeys no laws

    run(test())


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_archive_that_cannot_begin_is_told(server: StoreServer, tmp_path: Path, method: str) -> None:
    async def test() -> None:
        blobs = Directory(tmp_path)
        async with stores(server, "me") as (store,), client(store, blobs) as http:
            location = await completed(http, store, blobs, ["image/png"])
            (await http.request(method, f"{location}/archive")).raise_for_status()
            await blobs.remove_group(location.rpartition("/")[2])  # files go before their batch
            answer = await http.request(method, f"{location}/archive")
            assert (answer.status_code, answer.headers["content-type"]) == (410, "application/problem+json")
            assert "content-disposition" not in answer.headers
            server.kill()
            answer = await http.request(method, f"{location}/archive")
            assert answer.status_code == 503
        await asyncio.to_thread(server.start)

    run(test())
