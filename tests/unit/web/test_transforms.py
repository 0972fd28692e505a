"""The routes of the operations: what the caller gets for each way in which a run can end."""

import asyncio
import errno
import json
import os
import struct
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import falcon.asgi
import pytest
from structlog.testing import capture_logs
from support.asgi import MovableClock, Server, run, scope_of

from server.admission import Admission
from server.cluster.dispatch import EngineBug, TooLate
from server.cluster.ledger import Account, Field
from server.cluster.membership import Membership
from server.cluster.memory_files import MemoryFilePool, memory_file
from server.cluster.messages import Done, Spent, now_us
from server.cluster.quarantine import Quarantine
from server.cluster.roles import READERS, Role
from server.cluster.scoreboard import Cell
from server.cluster.work_socket import Lane
from server.errors import DamagedImage, PoisonImage, ServiceUnavailable
from server.operations.images import OPERATIONS
from server.operations.registry import Operation
from server.settings import Settings
from server.shares import Shares
from server.web.envelope import Envelope
from server.web.problems import add_error_handlers
from server.web.transforms import Transform
from server.web.uploads import Uploads

BODY = b"an image"
RESULT = bytes(range(256)) * 2000  # more than one piece
DONE = Done(
    {"media_type": "image/png", "width": 2, "height": 3, "frames": 1, "path": "pixels"},
    Spent(1500, 7000, {"decode": 1000, "transform": 2000, "encode": 4000}),
    77,
)


class Files(MemoryFilePool):
    """A pool that remembers what it got back, and closes it in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.given_back: list[FileIO] = []

    def give_back(self, file: FileIO) -> None:
        self.given_back.append(file)

    def close(self) -> None:
        for file in self.given_back:
            file.close()


@dataclass
class Dispatcher:
    """Answers every run in one way.

    Attributes:
        error: raised instead of an answer.
        asked: the operation, parameters and upload of each run.
        lane, deadline_us: where and until when the last one waited.
        result: the file of the last answer.
    """

    error: BaseException | None = None
    asked: list[tuple[str, Mapping[str, Any], bytes]] = field(default_factory=list)
    result: FileIO | None = None
    lane: Lane | None = None
    deadline_us: int = 0

    async def run(  # noqa: PLR0913 the real one's
        self,
        upload: FileIO,
        operation: Operation,
        parameters: Mapping[str, Any],
        deadline_us: int,
        *,
        account: Account | None,
        lane: Lane,
    ) -> tuple[Done, FileIO, Role]:
        self.lane, self.deadline_us = lane, deadline_us
        if account is not None:
            account.add(Field.SPENT_US, 5_000_000)
        content = os.pread(upload.fileno(), os.fstat(upload.fileno()).st_size, 0)
        self.asked.append((operation.name, parameters, content))
        if self.error:
            raise self.error
        self.result = memory_file("result")
        self.result.write(RESULT)
        return DONE, self.result, READERS[lane]


class Service:
    """The routes over a dispatcher of the test's."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.membership = Membership.alone(Quarantine(60))
        self.row = self.membership.row
        self.row[Cell.ENGINE_PID] = 1
        self.files = Files()
        self.dispatcher = Dispatcher(error)
        admission = Admission(
            self.membership.scoreboard,
            self.row,
            max_wait_s=1,
            max_held_bytes=1 << 20,
            shares=Shares.of(self.membership.page, Settings()),
        )
        uploads = Uploads(max_body_bytes=1000, timeout_s=10, sample=Path(__file__), files=self.files)
        app: Any = falcon.asgi.App()
        dispatcher: Any = self.dispatcher
        limits = {
            "max_pixels": 10**6,
            "max_lossless_pixels": 0,
            "max_frames": 10,
            "max_total_pixels": 10**6,
            "max_result_bytes": 10**6,
        }
        for name, operation in OPERATIONS.items():
            app.add_route(
                f"/{name}",
                Transform(operation, admission, uploads, dispatcher, self.files, None, limits),
            )
        add_error_handlers(app)
        self.app = Envelope(app, self.row)

    def close(self) -> None:
        self.files.close()
        with self.membership.work:
            pass

    async def post(
        self, target: str = "/flip", body: bytes = BODY, client: tuple[str, int] = ("10.0.0.1", 5000)
    ) -> Server:
        server = Server()
        server.body(body)
        headers = [(b"content-length", b"%d" % len(body))]
        await server.call(self.app, scope_of(target, headers=headers, client=client))
        return server


def answer_to(error: BaseException | None = None, target: str = "/flip") -> tuple[Server, Service, list[Any]]:
    """Ask once; returns the answer, the service as it is afterwards, and the log."""
    service = Service(error)
    answers: list[Server] = []

    async def test() -> None:
        answers.append(await service.post(target))

    with closing(service), capture_logs() as events:
        run(test())
    return answers[0], service, events


def test_the_result_is_sent_whole_with_what_is_known_of_it() -> None:
    answer, service, events = answer_to()
    assert (answer.status, answer.answer) == (200, RESULT)
    headers = answer.headers
    assert headers[b"content-type"] == b"image/png"
    assert int(headers[b"content-length"]) == len(RESULT)
    assert (headers[b"x-engine-pid"], headers[b"x-image-path"]) == (b"77", b"pixels")
    assert headers[b"server-timing"] == b"queue;dur=1.5, decode;dur=1.0, transform;dur=2.0, encode;dur=4.0"
    (line,) = [event for event in events if event["event"] == "request"]
    assert (line["engine"], line["image_path"], line["bytes_out"]) == (77, "pixels", len(RESULT))
    assert service.dispatcher.result in service.files.given_back


def test_the_tasks_of_a_client_that_uses_more_than_others_yield_and_theirs_do_not() -> None:
    async def test() -> None:
        yielded = []
        with closing(Service()) as service:
            for client in ("10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.1"):
                await service.post(client=(client, 5000))
                yielded.append(service.dispatcher.lane is Lane.YIELDING)
                if client == "10.0.0.2":  # its image was a small one
                    service.membership.page.account(client).add(Field.SPENT_US, -4_900_000)
        assert yielded == [False, False, False, True]

    run(test())


def test_what_a_client_may_not_have_is_refused_and_logged_with_the_reason() -> None:
    async def test() -> None:
        with closing(Service()) as service:
            greedy = service.membership.page.account("10.0.0.1")
            greedy.add(Field.WAITING, 192)  # of 256
            refused = await service.post()
            assert refused.status == 503
            assert json.loads(refused.answer)["type"] == "urn:flipcluster:problem:service-unavailable"
            assert (await service.post(client=("10.0.0.2", 5000))).status == 200

    with capture_logs() as events:
        run(test())
    lines = [event for event in events if event["event"] == "request"]
    assert [(line["client"], line["status"], line["share"]) for line in lines] == [
        ("10.0.0.1", 503, "queue"),
        ("10.0.0.2", 200, None),
    ]


@pytest.mark.parametrize(
    ("target", "operation", "parameters"),
    [
        ("/flop?format=png", "flop", {"format": "png"}),
        ("/rotate?angle=270&quality=7", "rotate", {"angle": 270, "quality": 7}),
        ("/orient?strip=true&effort=low", "orient", {"strip": True, "effort": "low"}),
    ],
)
def test_the_operation_gets_its_parameters_as_json_can_hold_them(
    target: str, operation: str, parameters: dict[str, object]
) -> None:
    _, service, _ = answer_to(target=target)
    ((name, given, content),) = service.dispatcher.asked
    assert (name, content) == (operation, BODY)
    assert parameters.items() <= json.loads(json.dumps(given)).items()


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (TooLate(), 503, "service-unavailable"),
        (ServiceUnavailable("full"), 503, "service-unavailable"),
        (OSError(errno.EMFILE, ""), 503, "service-unavailable"),
        (OSError(errno.ETOOMANYREFS, ""), 503, "service-unavailable"),
        (OSError(errno.ENOSPC, ""), 503, "service-unavailable"),
        (MemoryError(), 503, "service-unavailable"),
        (OSError(errno.EBADF, ""), 500, "internal-server-error"),
        (EngineBug("Traceback of ours"), 500, "internal-server-error"),
        (DamagedImage("It is cut off."), 422, "damaged-image"),
        (PoisonImage("It crashes."), 422, "poison-image"),
    ],
)
def test_each_way_to_fail_has_its_problem(error: BaseException, status: int, slug: str) -> None:
    answer, _, events = answer_to(error)
    problem = json.loads(answer.answer)
    assert (answer.status, problem["type"]) == (status, f"urn:flipcluster:problem:{slug}")
    assert "Traceback" not in problem["detail"]
    assert (b"retry-after" in answer.headers) == (status == 503)
    assert ("request_failed" in {event["event"] for event in events}) == (status == 500)


@pytest.mark.parametrize("error", [None, TooLate(), DamagedImage("no"), EngineBug("ours")])
def test_nothing_stays_counted_afterwards(error: BaseException | None) -> None:
    _, service, _ = answer_to(error)
    assert (service.row[Cell.HELD_BYTES], service.row[Cell.PREDICTED_US]) == (0, 0)


@pytest.mark.parametrize(
    "error", [TooLate(), DamagedImage("no"), PoisonImage("no"), ServiceUnavailable("full"), EngineBug("ours")]
)
def test_nothing_is_counted_for_a_refused_request_when_its_answer_begins(error: BaseException) -> None:
    service = Service(error)
    account = service.membership.page.account("10.0.0.1")
    counted: list[list[int]] = []
    envelope: Any = service.app

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def look_and_send(message: Any) -> None:
            counted.append(
                [
                    *(account.used(each) for each in Field if each is not Field.SPENT_US),
                    *(service.row[cell] for cell in (Cell.PREDICTED_US, Cell.HELD_BYTES, Cell.UPLOAD_BYTES)),
                ]
            )
            await send(message)

        await envelope(scope, receive, look_and_send)

    service.app = app  # type: ignore[assignment]
    with closing(service):
        run(service.post())
    assert counted
    assert not any(counted[0])


def test_the_result_is_booked_while_the_engine_works() -> None:
    service = Service()
    image = b"qoif" + struct.pack(">II", 300, 400) + b"\3\0" + bytes(20)
    seen: list[int] = []
    ask = service.dispatcher.run

    async def run_and_look(*arguments: Any, **more: Any) -> tuple[Done, FileIO, Role]:
        seen.append(service.row[Cell.HELD_BYTES])
        return await ask(*arguments, **more)

    service.dispatcher.run = run_and_look  # type: ignore[method-assign]
    with closing(service):
        run(service.post(body=image))
        assert seen[0] >= 300 * 400 * 4
        assert service.row[Cell.HELD_BYTES] == 0


def test_an_image_waits_for_room_and_for_an_engine_until_the_same_moment() -> None:
    service = Service()
    others_bytes = (1 << 20) - 1000
    image = b"qoif" + struct.pack(">II", 30, 40) + b"\3\0" + bytes(20)

    async def test() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, MovableClock)
        service.row[Cell.HELD_BYTES] += others_bytes
        before_us = now_us()
        post = asyncio.create_task(service.post(body=image))
        while not service.row[Cell.UPLOAD_BYTES]:  # noqa: ASYNC110 a count in shared memory
            await asyncio.sleep(0)
        await clock.pass_time(0.1)
        received_us = now_us()
        assert not post.done()
        service.row[Cell.HELD_BYTES] -= others_bytes
        await clock.pass_time(0.5)
        await post
        assert before_us + 1_000_000 <= service.dispatcher.deadline_us <= received_us + 1_000_000

    with closing(service):
        run(test(), MovableClock)


def test_a_result_for_which_a_header_that_lied_left_no_room_is_not_kept() -> None:
    service = Service()
    answers: list[Server] = []

    async def test() -> None:
        service.row[Cell.HELD_BYTES] = (1 << 20) - 1000  # of others
        answers.append(await service.post())

    with closing(service):
        run(test())
        assert answers[0].status == 503
        assert service.dispatcher.result in service.files.given_back
        assert service.row[Cell.HELD_BYTES] == (1 << 20) - 1000


def test_a_wrong_parameter_is_refused_before_admission_and_upload() -> None:
    answer, service, _ = answer_to(target="/flip?angle=90")
    assert answer.status == 400
    assert answer.asked == 0  # the server was not asked for the body
    assert service.dispatcher.asked == []


def test_a_client_that_leaves_during_the_answer_leaves_nothing_behind() -> None:
    class Gone(Server):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message["type"] == "http.response.body":
                raise asyncio.CancelledError

    service = Service()

    async def test() -> None:
        server = Gone()
        server.body(BODY)
        with pytest.raises(asyncio.CancelledError):
            await server.call(service.app, scope_of("/flip", headers=[(b"content-length", b"8")]))

    with closing(service):
        run(test())
        assert service.dispatcher.result in service.files.given_back
        assert service.row[Cell.HELD_BYTES] == 0
