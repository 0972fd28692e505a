"""Uploads: what arrives lands in a file, whole and within limits; the file is used again or closed."""

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from io import FileIO
from pathlib import Path

import falcon.asgi
import pytest
from structlog.testing import capture_logs
from support.asgi import MovableClock, Server, run, scope_of
from support.gateway import gateway

from server.admission import Admission, Estimate
from server.cluster.membership import Membership
from server.cluster.memory_files import MemoryFilePool
from server.cluster.quarantine import Quarantine
from server.cluster.scoreboard import Cell
from server.errors import UnsupportedImage
from server.operations.images import OPERATIONS
from server.operations.registry import Cost, Read
from server.web.envelope import Envelope
from server.web.exchange import EXTENSION, Exchange
from server.web.problems import add_error_handlers
from server.web.transforms import Transform
from server.web.uploads import Uploads

MAX_BODY_BYTES = 1000
TIMEOUT_S = 10.0
SAMPLE = b"the sample"
FORM = (b"content-type", b"multipart/form-data; boundary=cut")
FILE = b'Content-Disposition: form-data; name="image"; filename="a"'
LIMITS = {
    "max_pixels": 10**8,
    "max_lossless_pixels": 0,
    "max_frames": 1000,
    "max_total_pixels": 10**9,
    "max_result_bytes": 10**5,
}

#: The beginning of an image that says all of its cost.
HEAD = b"qoif\0\0\0\1\0\0\0\1\3\0".ljust(80, b"\0")
FIELD = b'Content-Disposition: form-data; name="angle"'


def length(body_bytes: int) -> tuple[bytes, bytes]:
    return (b"content-length", b"%d" % body_bytes)


def parts(*contents: bytes, head: bytes = FILE) -> bytes:
    return b"".join(b"--cut\r\n%s\r\n\r\n%s\r\n" % (head, content) for content in contents) + b"--cut--\r\n"


class Pool(MemoryFilePool):
    """A pool that closes its files in the end.

    Args:
        make: makes the files; as the real pool does, when left out.
    """

    def __init__(self, make: Callable[[], FileIO] | None = None) -> None:
        super().__init__()
        self._make = make or super().take
        self._taken: list[FileIO] = []

    def take(self) -> FileIO:
        self._taken.append(self._make())
        return self._taken[-1]

    def close(self) -> None:
        for file in self._taken:
            file.close()


def full_file() -> FileIO:
    return FileIO("/dev/full", "r+b")


class Route:
    """A responder that does with an upload what `Transform` does, without an engine.

    Attributes:
        upload: the file it was lent last.
        content: what the file held.
        then: what it does next, while it has the file.
        estimate: tells what an upload will cost.
        error: what ended the upload.
    """

    def __init__(self, admission: Admission, uploads: Uploads) -> None:
        self._admission = admission
        self._uploads = uploads
        self.upload: FileIO
        self.content = b""
        self.is_sink_used = False
        self.then: Callable[[], Awaitable[None]] | None = None
        self.estimate: Estimate | None = None
        self.error: BaseException | None = None

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        exchange = Exchange.of(req.scope)
        with self._admission.admit(self._uploads.length_of(req), self.estimate) as ticket:
            exchange.ticket = ticket
            try:
                async with self._uploads.received(req, exchange, ticket) as upload:
                    self.upload = upload
                    self.content = os.pread(upload.fileno(), os.fstat(upload.fileno()).st_size, 0)
                    self.held_bytes = ticket.held_bytes
                    if self.then:
                        await self.then()
            except BaseException as error:
                self.error = error
                raise
        resp.text = "received"


class Service:
    """An app with one route, under a stand-in server that has a request for it.

    Attributes:
        route: what it does with an upload.
        pool: where files for uploads come from.
        exchange: the owner of the next request, as a server of ours makes it.
        server: of the next request.
    """

    def __init__(self, pool: Pool, sample: Path, *, max_held_bytes: int) -> None:
        self.membership = Membership.alone(Quarantine(60))
        row = self.membership.row
        self.admission = Admission(
            self.membership.scoreboard, row, max_wait_s=10.0, max_held_bytes=max_held_bytes
        )
        self.uploads = Uploads(max_body_bytes=MAX_BODY_BYTES, timeout_s=TIMEOUT_S, sample=sample, files=pool)
        self.pool = pool
        self.route = Route(self.admission, self.uploads)
        no_dispatcher = object()  # what is sent to /flip does not get as far as an engine
        self.app = falcon.asgi.App()
        self.app.add_route("/", self.route)
        self.app.add_route(
            "/flip",
            Transform(OPERATIONS["flip"], self.admission, self.uploads, no_dispatcher, pool, None, LIMITS),
        )
        add_error_handlers(self.app)
        self._envelope = Envelope(self.app, row)
        self.next_request()

    def next_request(self) -> None:
        self.server = Server()
        self.exchange = Exchange()

    async def post(self, *headers: tuple[bytes, bytes], path: str = "/") -> None:
        scope = scope_of(path, headers=headers, extensions={EXTENSION: self.exchange})
        await self.server.call(self._envelope, scope)

    async def receive(self, *pieces: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
        """Let a body of known length arrive in pieces, and return what the route got."""
        self.server.body(*pieces)
        await self.post(length(sum(map(len, pieces))), *headers)
        assert self.server.answer == b"received"
        return self.route.content

    def was_refused(self, status: int, problem: str) -> bool:
        """Whether the answer is a problem, and the cluster is as it was before the request."""
        document = json.loads(self.server.answer)
        scoreboard = self.membership.scoreboard
        assert (self.server.status, document["type"]) == (status, f"urn:flipcluster:problem:{problem}")
        return [scoreboard.total(cell) for cell in (Cell.HELD_BYTES, Cell.PREDICTED_US)] == [0, 0]


@asynccontextmanager
async def service(
    tmp_path: Path, make_file: Callable[[], FileIO] | None = None, *, max_held_bytes: int = 1 << 20
) -> AsyncIterator[Service]:
    sample = tmp_path / "sample"
    sample.write_bytes(SAMPLE)
    with closing(Pool(make_file)) as pool:
        served = Service(pool, sample, max_held_bytes=max_held_bytes)
        with capture_logs(), served.membership.work:
            yield served


# --- what arrives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"image"], id="at once"),
        pytest.param([b"im", b"age"], id="in two pieces"),
        pytest.param([b"%c" % (number % 256) for number in range(MAX_BODY_BYTES)], id="byte by byte"),
        pytest.param([b"im", b"", b"age", b""], id="with empty pieces"),
        pytest.param([b"x" * MAX_BODY_BYTES], id="as large as may be"),
    ],
)
@pytest.mark.parametrize("is_length_known", [True, False], ids=["with a length", "chunked"])
def test_a_body_that_is_the_image_lands_in_the_file_in_order(
    tmp_path: Path, pieces: list[bytes], is_length_known: bool
) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            body = b"".join(pieces)
            it.server.body(*pieces)
            await it.post(*([length(len(body))] if is_length_known else []))
            assert it.server.status == 200
            assert it.route.content == body
            assert it.route.held_bytes == len(body)
            assert it.exchange.body_bytes == len(body)

    run(test())


@pytest.mark.parametrize("piece_bytes", [1, 7, 1000])
@pytest.mark.parametrize("content_type", [FORM[1], b"Multipart/Form-Data; boundary=cut"])
def test_of_a_form_the_file_lands_in_the_file(tmp_path: Path, piece_bytes: int, content_type: bytes) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            body = parts(b"image")
            pieces = [body[start : start + piece_bytes] for start in range(0, len(body), piece_bytes)]
            assert await it.receive(*pieces, headers=((b"content-type", content_type),)) == b"image"
            assert it.route.held_bytes == len(b"image")  # and nothing of what is around it

    run(test())


def test_what_an_upload_costs_is_told_from_what_has_arrived_and_not_from_the_file_s_last_use(
    tmp_path: Path,
) -> None:
    seen: list[bytes] = []

    def estimate(read: Read, _body_bytes: int) -> Cost:
        seen.append(read(0, MAX_BODY_BYTES))
        return Cost(1, 1, is_known=False)

    async def test() -> None:
        async with service(tmp_path) as it:
            await it.receive(b"the image of another client" * 20)
            it.next_request()
            it.route.estimate = estimate
            first, second, third = b"1" * 70, b"2" * 60, b"3" * 20
            await it.receive(first, second, third)
            assert seen == [first, first + second + third]

    run(test())


@pytest.mark.parametrize("headers", [[length(0)], []], ids=["a length of 0", "no length"])
def test_the_sample_stands_in_for_an_empty_body(tmp_path: Path, headers: list[tuple[bytes, bytes]]) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            it.server.body(b"")
            await it.post(*headers)
            assert it.route.content == SAMPLE
            assert it.route.upload.closed
            assert (tmp_path / "sample").read_bytes() == SAMPLE

    run(test())


# --- the sink ---------------------------------------------------------------------------------------------


def test_between_two_pieces_the_server_can_write_into_the_file_itself(tmp_path: Path) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            it.server.body(b"one ", is_all=False)
            request = asyncio.create_task(it.post(length(19)))
            sink = it.exchange.sink
            await it.server.until_app_waits()
            assert it.exchange.can_sink(4)
            sink.write(memoryview(b"two "))
            sink.write(memoryview(b"three "))
            sink.close()
            it.server.body(b"f", is_all=False)
            await it.server.until_app_waits()
            assert it.exchange.can_sink(4)  # opened again
            assert not it.exchange.can_sink(5)  # more than was admitted
            sink.write(memoryview(b"ou"))
            it.server.body(b"r!")
            await request
            assert it.route.content == b"one two three four!"
            assert (it.exchange.taken_bytes, sink.written_bytes) == (7, 12)
            assert it.route.held_bytes == 19

    run(test())


def test_the_sink_is_closed_before_the_first_piece_and_for_a_form(tmp_path: Path) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            body = parts(b"image")
            request = asyncio.create_task(it.post(length(len(body)), FORM))
            await it.server.until_app_waits()
            assert not it.exchange.sink.is_open
            it.server.body(body[:-20], is_all=False)
            await it.server.until_app_waits()
            assert not it.exchange.sink.is_open
            it.server.body(body[-20:])
            await request
            assert it.route.content == b"image"
            it.next_request()
            request = asyncio.create_task(it.post(length(2)))
            await it.server.until_app_waits()
            assert not it.exchange.sink.is_open
            it.server.body(b"ab")
            await request

    run(test())


# --- limits -----------------------------------------------------------------------------------------------


def test_a_body_whose_header_says_too_much_is_not_read(tmp_path: Path) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            await it.post(length(MAX_BODY_BYTES + 1))
            assert it.was_refused(413, "upload-too-large")
            assert it.server.asked == 0

    run(test())


@pytest.mark.parametrize("headers", [[], [FORM]], ids=["the image", "a form"])
def test_a_body_without_a_length_is_refused_when_it_has_become_too_large(
    tmp_path: Path, headers: list[tuple[bytes, bytes]]
) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            if headers:
                it.server.body(b"--cut\r\n%s\r\n\r\n" % FILE, is_all=False)
            it.server.body(*[b"x" * MAX_BODY_BYTES] * 100, is_all=False)  # more than the form's parser holds
            await it.post(*headers)  # it does not wait for the rest
            assert it.was_refused(413, "upload-too-large")

    run(test())


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(b"x" * MAX_BODY_BYTES + b"\r\n" + parts(b"image"), id="before the parts"),
        pytest.param(parts(b"image", head=FILE + b"\r\nX: " + b"y" * MAX_BODY_BYTES), id="in a part's head"),
    ],
)
def test_multipart_framing_counts_as_body(tmp_path: Path, form: bytes) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            it.server.body(form)
            await it.post(FORM)
            assert it.was_refused(413, "upload-too-large")

    run(test())


def test_a_body_that_does_not_arrive_in_time_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, MovableClock)
        async with service(tmp_path) as it:
            it.server.body(b"half", is_all=False)
            request = asyncio.create_task(it.post(length(8)))
            await it.server.until_app_waits()
            await clock.pass_time(TIMEOUT_S * 0.9)
            it.server.body(b"a", is_all=False)  # the limit is on all of it, not on a pause
            await it.server.until_app_waits()
            assert not request.done()
            await clock.pass_time(TIMEOUT_S * 0.2)
            assert request.done()
            assert it.was_refused(408, "upload-too-slow")
            assert not it.exchange.sink.is_open  # its file is closed

    run(test(), MovableClock)


def test_the_time_that_the_engine_takes_is_not_the_uploads(tmp_path: Path) -> None:
    async def test() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, MovableClock)

        async def work() -> None:
            await clock.pass_time(TIMEOUT_S * 1.5)

        async with service(tmp_path) as it:
            it.route.then = work
            assert await it.receive(b"image") == b"image"

    run(test(), MovableClock)


def test_a_body_without_a_length_that_outgrows_admission_is_shed(tmp_path: Path) -> None:
    async def test() -> None:
        async with service(tmp_path, max_held_bytes=500) as it:
            it.server.body(b"x" * 300, b"x" * 300, is_all=False)
            await it.post()
            assert it.was_refused(503, "service-unavailable")
            assert int(it.server.headers[b"retry-after"]) >= 1

    run(test())


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        pytest.param(parts(), "no part", id="none"),
        pytest.param(parts(b"a", b"b"), "more than one", id="two"),
        pytest.param(parts(b"90", head=FIELD), "no file", id="a field"),
        pytest.param(
            parts(b"a").replace(b"--cut--\r\n", parts(b"90", head=FIELD)), "no file", id="and a field"
        ),
        pytest.param(parts(b""), "empty", id="an empty one"),
        pytest.param(parts(b"a")[:-7], "form structure", id="cut off"),
        pytest.param(parts(b"a", head=b"X: y"), "no file", id="no disposition"),
        pytest.param(parts(b"a", head=FILE + b'"\xff"'), "UTF-8", id="not UTF-8"),
    ],
)
def test_a_form_without_exactly_one_file_is_refused(tmp_path: Path, form: bytes, reason: str) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            it.server.body(form)
            await it.post(length(len(form)), FORM)
            assert it.was_refused(400, "malformed-multipart")
            assert reason in json.loads(it.server.answer)["detail"]

    run(test())


@pytest.mark.parametrize("content_type", [b"multipart/form-data", b"multipart/form-data; boundary="])
def test_a_form_without_a_boundary_is_refused(tmp_path: Path, content_type: bytes) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            it.server.body(b"x")
            await it.post(length(1), (b"content-type", content_type))
            assert it.was_refused(400, "malformed-multipart")

    run(test())


# --- the file ---------------------------------------------------------------------------------------------


async def be_refused() -> None:
    raise UnsupportedImage("No image.")


def test_the_file_is_used_again_after_a_success_and_after_a_refused_image(tmp_path: Path) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            await it.receive(b"first")
            first = it.route.upload
            it.route.then = be_refused
            it.next_request()
            it.server.body(b"second")
            await it.post(length(6))
            assert it.was_refused(415, "unsupported-image")
            assert it.route.upload is first
            it.route.then = None
            it.next_request()
            assert await it.receive(b"third") == b"third"
            assert it.route.upload is first
            assert it.pool.take() is first

    run(test())


def test_nothing_is_left_of_what_the_file_held_before(tmp_path: Path) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            await it.receive(b"a long secret of another client")
            it.next_request()
            assert await it.receive(b"short") == b"short"
            it.next_request()
            assert await it.receive(*parts(b"x").partition(b"\r\n"), headers=(FORM,)) == b"x"
            it.next_request()
            assert await it.receive(b"") == SAMPLE
            it.next_request()
            assert await it.receive(b"a", b"b") == b"ab"

    run(test())


async def fail() -> None:
    raise RuntimeError("a bug")


async def wait_for_ever() -> None:
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("when", ["in its body", "while the engine works"])
def test_the_file_of_a_cancelled_request_is_closed_and_not_used_again(tmp_path: Path, when: str) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            await it.receive(b"first")
            first = it.route.upload
            it.route.then = wait_for_ever
            it.next_request()
            request = asyncio.create_task(it.post(length(8)))
            it.server.body(b"half", is_all=False)
            await it.server.until_app_waits()
            if when != "in its body":
                it.server.body(b"rest")
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert it.route.content == b"halfrest"
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            assert first.closed
            assert it.pool.take() is not first

    run(test())


def test_the_file_of_a_request_that_met_a_bug_is_closed(tmp_path: Path) -> None:
    async def test() -> None:
        async with service(tmp_path) as it:
            it.route.then = fail
            it.server.body(b"image")
            await it.post(length(5))
            assert it.was_refused(500, "internal-server-error")
            assert it.route.upload.closed

    run(test())


class CountingFile(FileIO):
    """A file in memory that counts how often it is written to."""

    def __init__(self) -> None:
        super().__init__(os.memfd_create("upload"), "r+b")
        self.writes = 0

    def write(self, data: memoryview) -> int:
        self.writes += 1
        return super().write(data)


def test_chunks_that_arrive_together_are_written_together(tmp_path: Path) -> None:
    async def test() -> None:
        file = CountingFile()
        async with service(tmp_path, lambda: file) as it, gateway(it.app) as (served, _):
            client = await served.connect()
            await client.send(
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                + b"".join(b"1\r\n%c\r\n" % (number % 256) for number in range(MAX_BODY_BYTES))
                + b"0\r\n\r\n"
            )
            assert (await client.read()).body == b"received"
            assert it.route.content == b"".join(b"%c" % (number % 256) for number in range(MAX_BODY_BYTES))
            assert file.writes <= 4

    run(test())


# --- no room ----------------------------------------------------------------------------------------------


class FileWithLittleRoom(FileIO):
    """A file in memory with room for a hundred bytes, and then none.

    Attributes:
        is_written: set with the first write.
    """

    def __init__(self) -> None:
        super().__init__(os.memfd_create("upload"), "r+b")
        self.is_written = asyncio.Event()

    def write(self, data: memoryview) -> int:
        self.is_written.set()
        if room := 100 - self.tell():
            return super().write(data[:room])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_memory_is_an_error_of_the_operating_system(tmp_path: Path) -> None:
    async def test() -> None:
        async with service(tmp_path, full_file) as it:
            it.server.body(b"image")
            await it.post(length(5))
            assert isinstance(it.route.error, OSError)
            assert it.route.error.errno == errno.ENOSPC

    run(test())


@pytest.mark.parametrize(
    "make_file", [pytest.param(full_file, id="at once"), pytest.param(FileWithLittleRoom, id="half-way")]
)
@pytest.mark.parametrize("headers", [[], [FORM]], ids=["the image", "a form"])
def test_a_full_memory_sheds_the_request(
    tmp_path: Path, make_file: Callable[[], FileIO], headers: list[tuple[bytes, bytes]]
) -> None:
    async def test() -> None:
        async with service(tmp_path, make_file) as it:
            image = b"x" * 200
            it.server.body(parts(image) if headers else image)
            await it.post(*headers, path="/flip")
            assert it.was_refused(503, "service-unavailable")
            assert it.server.headers[b"retry-after"] == b"1"

    run(test())


def test_a_memory_that_is_full_behind_the_sink_sheds_the_request_too(tmp_path: Path) -> None:
    async def test() -> None:
        file = FileWithLittleRoom()
        async with service(tmp_path, lambda: file) as it, gateway(it.app) as (served, events):
            client = await served.connect()
            await client.send(b"POST /flip HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n" + HEAD)
            await file.is_written.wait()  # by the app, which has opened the sink for the rest
            await client.send(b"y" * 200)
            answer = await client.read()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert answer.headers["connection"] == "close"
            (line,) = [event for event in events if event["event"] == "request"]
            assert (line["status"], line["bytes_in"]) == (
                503,
                len(HEAD),
            )  # nothing of the rest reached the app

    run(test())
