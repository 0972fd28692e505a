"""Blobs keep their promises in a directory and on S3."""

import asyncio
import json
import os
import resource
import select
import socket
import socketserver
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from io import FileIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from support.asgi import run
from support.live_server import DEADLINE_S, ROOT
from support.s3 import BUCKET, URL, s3_server

from server.errors import StoreAway
from server.jobs.blobs import BlobGone, Blobs, Directory, UnsuitableBlobs
from server.jobs.model import JobId, new_id
from server.jobs.s3 import S3

#: Larger than what is put in one piece.
LARGE = os.urandom(1 << 20) * 12

WRONG_GROUPS = ["", ".", "..", "/etc", "../" + "0" * 29, "A" * 32, "0" * 31, "0" * 33, "0" * 32 + "\n"]
WRONG_NAMES = [
    *("", ".", "..", "in", ".in", "0", "0.out", "0.0.out", "01.in", "0.in\n", "0.in\0", "/0.in", "../0.in"),
    *("-1.in", "0.1.in", "0.1.out/", "a.in", "٣.in", "1" * 11 + ".in", "x" * 10_000),
]


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as server:
        for name, value in server.environ.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(params=["directory", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "directory":
        directory = Directory(tmp_path / "blobs")
        directory.prepare()
        return directory
    request.getfixturevalue("s3")
    return S3(f"{URL}/{new_id()}")


async def put(blobs: Blobs, content: bytes, group: str, name: str, *, must_exist: bool = False) -> None:
    with blobs.new() as file:
        file.write(content)
        await blobs.keep(file, group, name, must_exist=must_exist)


async def get(blobs: Blobs, group: str, name: str) -> bytes:
    with await blobs.open(group, name) as file:
        return file.read()


async def groups(blobs: Blobs) -> dict[str, float]:
    return {group: changed_s async for group, changed_s in blobs.groups()}


def test_a_kept_file_can_be_opened_as_often_as_wanted(blobs: Blobs) -> None:
    async def test() -> None:
        group, other = new_id(), new_id()
        await put(blobs, b"input", group, "0.in")
        await put(blobs, LARGE, group, "0.3.out", must_exist=True)
        await put(blobs, b"", other, "0.in")
        for _ in range(2):
            assert await get(blobs, group, "0.in") == b"input"
            assert await get(blobs, group, "0.3.out") == LARGE
            assert await get(blobs, other, "0.in") == b""

    run(test())


def test_a_part_of_a_file_can_be_opened(blobs: Blobs) -> None:
    async def test() -> None:
        group = new_id()
        await put(blobs, LARGE, group, "0.1.out")
        for start, end in ((0, 1), (5, 3 << 20), (len(LARGE) - 1, len(LARGE)), (0, 0), (7, 7)):
            with await blobs.open(group, "0.1.out", (start, end)) as file:
                assert os.pread(file.fileno(), end - start, start) == LARGE[start:end]
        for part in ((0, 0), (5, 9)):
            with pytest.raises(BlobGone):
                await blobs.open(group, "0.2.out", part)

    run(test())


def test_files_can_be_kept_together(blobs: Blobs) -> None:
    async def test() -> None:
        group = new_id()
        contents = {f"{index}.in": b"%d" % index for index in range(40)}
        with ExitStack() as stack:
            files = {name: stack.enter_context(blobs.new()) for name in contents}
            for name, file in files.items():
                file.write(contents[name])
            await blobs.keep_all(files, group)
        assert {name: await get(blobs, group, name) for name in contents} == contents

    run(test())


def test_a_file_of_one_group_can_be_given_to_another(blobs: Blobs) -> None:
    async def test() -> None:
        first, second = new_id(), new_id()
        await put(blobs, b"result", first, "0.1.out")
        with await blobs.open(first, "0.1.out") as file:
            await blobs.keep_all({"0.in": file, "1.in": file}, second)
        await blobs.remove_group(first)
        assert [await get(blobs, second, name) for name in ("0.in", "1.in")] == [b"result"] * 2

    run(test())


def test_a_new_file_is_empty_and_has_no_name(blobs: Blobs) -> None:
    with blobs.new() as file:
        assert (file.read(), os.fstat(file.fileno()).st_nlink) == (b"", 0)
        # Uploads may be large and many: memory is no place for them.
        assert "memfd" not in str(Path(f"/proc/self/fd/{file.fileno()}").readlink())


def test_the_names_of_jobs_are_accepted(blobs: Blobs) -> None:
    async def test() -> None:
        for job in (JobId(new_id()), JobId(new_id(), 4_999)):
            await put(blobs, b"input", job.group, job.input_name)
            await put(blobs, b"result", job.group, job.result_name(17), must_exist=True)

    run(test())


def test_a_file_that_has_a_name_already_is_copied(blobs: Blobs, tmp_path: Path) -> None:
    sample = tmp_path / "sample"
    sample.write_bytes(b"sample")

    async def test() -> None:
        group = new_id()
        with FileIO(sample) as file:
            await blobs.keep(file, group, "0.in")
        sample.write_bytes(b"changed")
        assert await get(blobs, group, "0.in") == b"sample"

    run(test())


def test_what_is_not_there_is_gone_and_can_be_removed_again(blobs: Blobs) -> None:
    async def test() -> None:
        group = new_id()
        for name in ("0.in", "0.1.out"):
            with pytest.raises(BlobGone):
                await blobs.open(group, name)
            await blobs.remove(group, name)
        await blobs.remove_group(group)
        await put(blobs, b"input", group, "0.in")
        await blobs.remove(group, "0.in")
        with pytest.raises(BlobGone):
            await blobs.open(group, "0.in")

    run(test())


def test_an_open_file_outlives_its_removal(blobs: Blobs) -> None:
    async def test() -> None:
        group = new_id()
        await put(blobs, b"input", group, "0.in")
        with await blobs.open(group, "0.in") as file:
            await blobs.remove_group(group)
            assert file.read() == b"input"

    run(test())


def test_a_group_is_removed_with_all_its_files_and_no_other_is(blobs: Blobs) -> None:
    async def test() -> None:
        group = new_id()
        other = group[:2] + new_id()[2:]
        for each in (group, other):
            await put(blobs, b"input", each, "0.in")
        await asyncio.gather(*(put(blobs, b"input", group, f"{index}.in") for index in range(1, 60)))
        await blobs.remove_group(group)
        assert (await groups(blobs)).keys() == {other}

    run(test())


def test_a_late_result_does_not_bring_its_group_back(blobs: Blobs) -> None:
    async def test() -> None:
        group = new_id()
        await put(blobs, b"input", group, "0.in")
        await blobs.remove_group(group)
        with pytest.raises(BlobGone):
            await put(blobs, b"result", group, "0.1.out", must_exist=True)
        assert await groups(blobs) == {}

    run(test())


def test_results_that_come_while_their_group_is_removed_leave_nothing(blobs: Blobs) -> None:
    async def result(group: str, fence: int) -> None:
        with suppress(BlobGone):
            await put(blobs, b"result", group, f"0.{fence}.out", must_exist=True)

    async def test() -> None:
        for _ in range(20):
            group = new_id()
            await put(blobs, b"input", group, "0.in")
            late = [result(group, fence) for fence in range(1, 5)]
            await asyncio.gather(*late[:2], blobs.remove_group(group), *late[2:])
            assert await groups(blobs) == {}

    run(test())


def test_groups_are_listed_with_their_last_change(blobs: Blobs) -> None:
    async def test() -> None:
        assert await groups(blobs) == {}
        names = {new_id() for _ in range(3)}
        before_s = int(time.time())
        for group in names:
            for index in range(2):
                await put(blobs, b"input", group, f"{index}.in")
        listed = await groups(blobs)
        assert listed.keys() == names
        assert all(before_s <= changed_s <= time.time() for changed_s in listed.values())

    run(test())


CALLS: list[Callable[[Blobs, FileIO, str, str], Coroutine[Any, Any, Any]]] = [
    lambda blobs, file, group, name: blobs.keep(file, group, name),
    lambda blobs, _, group, name: blobs.open(group, name),
    lambda blobs, _, group, name: blobs.remove(group, name),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("group", "name"),
    [*((group, "0.in") for group in WRONG_GROUPS), *(("0" * 32, name) for name in WRONG_NAMES)],
)
def test_what_is_no_group_and_no_name_is_refused(
    blobs: Blobs, call: Callable[[Blobs, FileIO, str, str], Coroutine[Any, Any, Any]], group: str, name: str
) -> None:
    async def test() -> None:
        with blobs.new() as file, pytest.raises(ValueError, match="not a"):
            await call(blobs, file, group, name)

    run(test())


@pytest.mark.parametrize("group", WRONG_GROUPS)
def test_what_is_no_group_is_not_removed(blobs: Blobs, group: str) -> None:
    async def test() -> None:
        with pytest.raises(ValueError, match="not a group"):
            await blobs.remove_group(group)

    run(test())


# --- S3 alone ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("s3")
def test_a_bucket_is_checked_and_left_as_it_was() -> None:
    async def test() -> None:
        blobs = S3(f"{URL}/{new_id()}")
        await blobs.check()
        assert await groups(blobs) == {}

    run(test())


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_does_not_exist_is_refused_with_what_the_server_says() -> None:
    with pytest.raises(UnsuitableBlobs) as caught:
        run(S3("s3://nowhere/jobs").check())
    assert str(caught.value) == (
        "FLIP_BLOB_URL: cannot keep the files of jobs in s3://nowhere/jobs: "
        "The specified bucket does not exist"
    )


@pytest.mark.usefixtures("s3")
def test_no_more_is_fetched_than_is_wanted() -> None:
    async def test() -> None:
        blobs, group = S3(f"{URL}/{new_id()}"), new_id()
        await put(blobs, LARGE, group, "0.1.out")
        with await blobs.open(group, "0.1.out", (5, 9)) as file:
            assert file.read() == bytes(5) + LARGE[5:9]
        with await blobs.open(group, "0.1.out", (0, 0)) as file:
            assert file.read() == b""

    run(test())


@pytest.mark.usefixtures("s3")
def test_a_file_that_does_not_fit_is_not_taken_for_a_whole_one() -> None:
    async def test() -> None:
        blobs, group = S3(f"{URL}/{new_id()}"), new_id()
        await put(blobs, LARGE, group, "0.in")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(LARGE) - 1, hard))  # the last write is short
        try:
            with pytest.raises(OSError, match="File too large"):
                await blobs.open(group, "0.in")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    run(test())


@pytest.mark.usefixtures("s3")
def test_what_others_keep_in_the_bucket_is_no_group() -> None:
    async def test() -> None:
        prefix = new_id()
        inner = S3(f"{URL}/{prefix}/logs")
        await put(inner, b"theirs", new_id(), "0.in")
        assert await groups(S3(f"{URL}/{prefix}")) == {}

    run(test())


@pytest.mark.usefixtures("s3")
def test_a_connection_that_the_server_resets_fails_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client uses a connection again; the server resets it at the same time (RFC 9112, 9.3.1)."""
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    closed = []

    class Relay(socketserver.BaseRequestHandler):
        """Relays a request and its answer, and closes the connection once there is another request."""

        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as upstream:
                is_answered = False
                while ready := select.select([self.request, upstream], [], [], DEADLINE_S)[0]:
                    is_answer = upstream in ready
                    data = (upstream if is_answer else self.request).recv(1 << 16)
                    if data and is_answered and not is_answer:
                        closed.append(data)
                        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        self.request.close()  # with a reset: the client's write or read fails
                        return
                    if not data:
                        return
                    (self.request if is_answer else upstream).sendall(data)
                    is_answered |= is_answer

    async def test() -> None:
        blobs, group = S3(f"{URL}/{new_id()}"), new_id()
        await blobs.check()
        await put(blobs, b"input", group, "0.in")
        await put(blobs, b"result", group, "0.1.out", must_exist=True)
        assert await get(blobs, group, "0.1.out") == b"result"
        await blobs.remove(group, "0.1.out")
        assert (await groups(blobs)).keys() == {group}
        await blobs.remove_group(group)
        with pytest.raises(BlobGone):
            await put(blobs, b"late", group, "0.2.out", must_exist=True)
        assert await groups(blobs) == {}

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        Thread(target=server.serve_forever).start()
        try:
            run(test())
        finally:
            server.shutdown()
    assert closed


@pytest.mark.usefixtures("s3")
def test_a_deletion_is_repeated_only_for_as_long_as_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may take all the time of a request: a caller would wait three times as long."""
    received = []

    class Silent(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(1 << 16):
                received.append(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Silent) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setattr("server.jobs.s3._REQUEST", timedelta(seconds=1))
        monkeypatch.setattr("server.jobs.s3._RETRY", timedelta(0))
        Thread(target=server.serve_forever).start()
        try:
            with pytest.raises(StoreAway):
                run(S3(URL).remove(new_id(), "0.in"))
        finally:
            server.shutdown()
    assert sum(data.startswith(b"POST") for data in received) == 1


def test_a_server_that_does_not_answer_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        blobs = S3(URL)
        group = new_id()
        run(put(blobs, b"input", group, "0.in"))

    async def test() -> None:
        calls = [
            put(blobs, b"input", group, "1.in"),
            get(blobs, group, "0.in"),
            blobs.remove(group, "0.in"),
            blobs.remove_group(group),
            groups(blobs),
        ]
        for call in calls:
            with pytest.raises(StoreAway):
                await call
        with blobs.new() as file, pytest.raises(StoreAway):
            await blobs.keep_all({"1.in": file, "2.in": file}, group)
        with pytest.raises(UnsuitableBlobs, match="Connection refused"):
            await blobs.check()

    run(test())


@pytest.mark.parametrize("command", ["server.worker", "gunicorn"])
def test_without_the_extra_the_line_says_what_to_install(tmp_path: Path, command: str) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['obstore'] = None")
    ended = subprocess.run(
        [sys.executable, "-m", command],
        cwd=ROOT,
        env={
            "PYTHONPATH": str(tmp_path),
            "PORT": "0",
            "FLIP_JOBS": "remote",
            "FLIP_QUEUE_URL": "unix:///nowhere",
            "FLIP_BLOB_URL": f"s3://{BUCKET}",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    *events, said = ended.stderr.splitlines()
    assert said == (
        "flipcluster: FLIP_BLOB_URL: s3:// needs the package obstore; docs/runbook.md says how to install it"
    )
    assert [json.loads(event)["event"] for event in events] == ["arbiter_starting"] * (command == "gunicorn")
