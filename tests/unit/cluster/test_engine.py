"""An engine answers every task, whatever an operation does, and retires when it should."""

import os
import resource
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from support.descriptors import descriptors_on_their_way
from support.operations import OPERATIONS

from server.cluster.engine import Engine, EngineConfig
from server.cluster.flight_recorder import FlightRecorder
from server.cluster.memory_files import MemoryFilePool, is_open_here_only, memory_file, reopened
from server.cluster.messages import Done, Progress, Ready, Refused, Task, decode_answer, decode_notice, now_us
from server.cluster.roles import BACKGROUND
from server.cluster.work_socket import Lane, WorkSocket, receive, send
from server.errors import DamagedImage, TooManyPixels

DEADLINE_S = 60.0

CONFIG = EngineConfig(
    operations={name: operation.spec for name, operation in OPERATIONS.items()},
    nice=0,
    timeout_s=0.0,  # no timer: the engine is a thread of the test
    memory_bytes=1 << 40,
    max_tasks=0,
    limits={"limit": 77},
)


class Served:
    """An engine that is a thread of this process."""

    def __init__(self, config: EngineConfig) -> None:
        self.work = WorkSocket()
        self.control, theirs = socket.socketpair()
        with FlightRecorder.create() as file:
            self.recorder = FlightRecorder(file)
        engine = Engine(config, self.work.engine_ends, theirs, self.recorder)
        self.thread = Thread(target=engine.serve, args=(Ready(),))
        self.thread.start()
        self.control.settimeout(DEADLINE_S)
        assert self.control.recv(1)
        self._theirs = theirs

    def send(self, task: Task, source: bytes, held: bytes = b"") -> tuple[socket.socket, int]:
        """Send a task; returns the reply socket and a descriptor of the sink."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(DEADLINE_S)
        with theirs, memory_file("source") as upload, memory_file("sink") as sink:
            upload.write(source)
            sink.write(held)
            files = [upload.fileno(), sink.fileno(), theirs.fileno()]
            send(self.work.worker_ends[Lane.INTERACTIVE], task.encode(), files)
            return ours, os.dup(sink.fileno())

    def ask(
        self, name: str, source: bytes = b"abc", held: bytes = b"", **fields: object
    ) -> tuple[Done | Refused, bytes]:
        """Send a task and wait for the answer and what the sink holds then."""
        operation = OPERATIONS[name]
        task = replace(Task(name, operation.version, {}, 7, now_us()), **fields)  # type: ignore[arg-type]
        reply, sink = self.send(task, source, held)
        with reply:
            answer = decode_answer(receive(reply, 0)[0], operation)
            assert not isinstance(answer, Progress)
        try:
            return answer, os.pread(sink, 1 << 20, 0)
        finally:
            os.close(sink)

    def stop(self) -> None:
        self.control.close()
        self.join()

    def join(self) -> None:
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()

    def close(self) -> None:
        self.stop()
        self._theirs.close()
        with self.work:
            pass


@contextmanager
def serving(**changes: object) -> Iterator[Served]:
    with closing(Served(replace(CONFIG, **changes))) as served:  # type: ignore[arg-type]
        yield served


@pytest.fixture
def engine() -> Iterator[Served]:
    with serving() as served:
        yield served


def test_a_task_is_done_and_reported(engine: Served) -> None:
    sent_us = now_us()
    answer, result = engine.ask("copy", b"abc", b"what was there before", parameters={"times": 2})
    assert isinstance(answer, Done)
    assert (answer.outcome, result) == ({"media_type": "text/plain", "limit": 77}, b"abcabc")
    assert answer.engine_pid == os.getpid()
    assert sum(answer.spent.stages_us.values()) <= answer.spent.service_us <= now_us() - sent_us
    engine.stop()
    assert (engine.recorder.task, engine.recorder.done) == (0, 1)


def test_a_refusal_of_the_operation_is_answered(engine: Served) -> None:
    sent_us = now_us()
    answer, _ = engine.ask("refuse")
    assert isinstance(answer, Refused)
    assert isinstance(answer.error, DamagedImage)
    assert answer.error.detail == "Send another one."
    assert 0 < answer.service_us <= now_us() - sent_us
    assert isinstance(engine.ask("copy")[0], Done)


def test_an_engine_has_let_go_of_its_files_before_it_answers(engine: Served) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(DEADLINE_S)
    pool = MemoryFilePool()
    with ours, pool.take() as upload:
        with theirs, reopened(upload, os.O_RDONLY) as source, memory_file("sink") as sink:
            filled = fill(theirs)  # so that the answer has to wait
            task = Task("copy", OPERATIONS["copy"].version, {}, 7, now_us())
            files = [source.fileno(), sink.fileno(), theirs.fileno()]
            send(engine.work.worker_ends[Lane.INTERACTIVE], task.encode(), files)
        deadline_s = time.monotonic() + DEADLINE_S
        while not is_open_here_only(upload):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)  # without a pause this would take the engine's CPU
        assert engine.recorder.task == 7  # it cannot have answered
        assert [receive(ours, 0)[0] for _ in range(filled)] == [b"filling"] * filled
        assert isinstance(decode_answer(receive(ours, 0)[0], OPERATIONS["copy"]), Done)


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("fail", {}, "ZeroDivisionError: a bug"),
        ("fail_to_read", {}, "OSError: a bug as well"),
        ("copy", {"operation": "none"}, "KeyError: 'none'"),
        ("copy", {"version": 2}, "there is version 1 of copy, not 2"),
    ],
)
def test_a_bug_costs_one_request_and_not_the_engine(
    engine: Served, name: str, fields: dict[str, object], says: str
) -> None:
    answer, _ = engine.ask(name, **fields)
    assert isinstance(answer, Refused)
    assert answer.traceback
    assert says in answer.traceback
    assert isinstance(engine.ask("copy")[0], Done)


def test_a_task_whose_deadline_has_passed_is_not_started(engine: Served) -> None:
    answer, result = engine.ask("copy", deadline_us=now_us() - 1)
    assert isinstance(answer, Refused)
    assert (answer.is_late, result) == (True, b"")


def test_a_task_that_was_given_up_is_skipped(engine: Served, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    busy, sink = engine.send(Task("wait", 1, {}, 1, now_us()), bytes(tmp_path / "pipe"))
    given_up = [engine.send(Task("copy", 1, {}, number, now_us()), b"abc") for number in (2, 3)]
    (left, untouched), (gone, untouched_too) = given_up
    left.shutdown(socket.SHUT_WR)
    gone.close()
    (tmp_path / "pipe").write_bytes(b"go on")
    with busy, left:
        assert receive(busy, 0)[0]
        assert decode_answer(receive(left, 0)[0], OPERATIONS["copy"]) == Refused(os.getpid(), is_late=True)
    assert isinstance(engine.ask("copy")[0], Done)
    for sink_of_none in (untouched, untouched_too):
        assert os.pread(sink_of_none, 100, 0) == b""
        os.close(sink_of_none)
    os.close(sink)


def test_a_background_engine_reports_each_stage_but_the_last_before_its_answer() -> None:
    with serving(is_background=True) as engine:
        reply, sink = engine.send(Task("copy", 1, {}, 1, now_us()), b"abc")
        os.close(sink)
        with reply:
            answers = [decode_answer(receive(reply, 0)[0], OPERATIONS["copy"]) for _ in range(2)]
            assert answers[0] == Progress(1)
            assert isinstance(answers[1], Done)
            assert receive(reply, 0)[0] == b""


def test_a_task_is_finished_although_the_receiver_of_its_progress_is_gone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with serving(is_background=True) as engine:
        reply, sink = engine.send(Task("wait", 1, {}, 1, now_us()), bytes(pipe))
        with pipe.open("wb"):  # the engine has started
            reply.close()
        assert isinstance(engine.ask("refuse")[0], Refused)
        assert os.pread(sink, 4096, 0) == bytes(pipe)
        os.close(sink)


def test_progress_is_dropped_when_its_receiver_is_slow() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (
        serving(is_background=True) as engine,
        ours,
        theirs,
        memory_file("source") as source,
        memory_file("sink") as sink,
    ):
        source.write(b"abc")
        filled = fill(theirs)
        task = Task("copy", 1, {}, 1, now_us())
        files = [source.fileno(), sink.fileno(), theirs.fileno()]
        send(engine.work.worker_ends[Lane.BACKGROUND], task.encode(), files)
        deadline_s = time.monotonic() + DEADLINE_S
        while os.fstat(sink.fileno()).st_size < 3:  # written after the first stage
            assert time.monotonic() < deadline_s
        ours.settimeout(DEADLINE_S)
        assert [receive(ours, 0)[0] for _ in range(filled)] == [b"filling"] * filled
        assert isinstance(decode_answer(receive(ours, 0)[0], OPERATIONS["copy"]), Done)


def fill(end: socket.socket) -> int:
    """Send messages until no more fit, and return how many did."""
    end.setblocking(False)  # noqa: FBT003 the standard library has no other way
    filled = 0
    with suppress(BlockingIOError):
        while True:
            end.send(b"filling")
            filled += 1
    end.setblocking(True)  # noqa: FBT003
    return filled


def test_an_engine_retires_after_its_number_of_tasks() -> None:
    with serving(max_tasks=2) as engine:
        engine.ask("copy")
        engine.ask("refuse")
        engine.join()


def test_an_engine_whose_memory_ran_out_retires() -> None:
    with serving() as engine:
        answer, _ = engine.ask("exhaust")
        assert isinstance(answer, Refused)
        assert isinstance(answer.error, TooManyPixels)
        engine.join()


@pytest.mark.parametrize("times", [2, 3], ids=["short write", "failed write"])
def test_a_sink_without_room_is_no_fault_of_the_source(engine: Served, times: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        answer, _ = engine.ask("copy", bytes(100_000), parameters={"times": times})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(answer, Refused)
    assert (answer.is_out_of_room, answer.error, answer.traceback) == (True, None, None)
    assert isinstance(engine.ask("copy", bytes(100_000), parameters={"times": times})[0], Done)


def test_an_engine_stops_when_its_worker_is_gone(engine: Served) -> None:
    engine.stop()


def test_an_engine_whose_worker_is_gone_before_it_is_ready_stops_as_quietly() -> None:
    with WorkSocket() as work, FlightRecorder.create() as file:
        control, theirs = socket.socketpair()
        control.close()
        with theirs:
            Engine(CONFIG, work.engine_ends, theirs, FlightRecorder(file)).serve(Ready())


def test_an_engine_that_cannot_pass_its_listener_on_works_without() -> None:
    with WorkSocket() as work, FlightRecorder.create() as file:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with control, theirs:
            engine = Engine(CONFIG, work.engine_ends, theirs, FlightRecorder(file))
            control.shutdown(socket.SHUT_WR)  # it stops when it has reported
            listener = os.dup(0)
            with descriptors_on_their_way(work.worker_ends[Lane.BACKGROUND]):
                engine.serve(Ready(("landlock",)), listener)
            message, files = receive(control, 1)
            assert (decode_notice(message), files) == (Ready(["landlock", "seccomp_listener"]), [])
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(listener)


def test_a_background_engine_that_has_served_one_that_yields_serves_a_job_next() -> None:
    copy = OPERATIONS["copy"]
    config = replace(CONFIG, is_background=True, max_tasks=2)
    with WorkSocket() as work, FlightRecorder.create() as file, ExitStack() as stack:
        _ours, theirs = map(stack.enter_context, socket.socketpair())
        replies = []
        for lane in (Lane.YIELDING, Lane.YIELDING, Lane.BACKGROUND):
            reply, engines = map(
                stack.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            )
            source, sink = (stack.enter_context(memory_file("image")) for _ in range(2))
            task = Task("copy", copy.version, {}, 7, now_us())
            send(
                work.worker_ends[lane],
                task.encode(),
                [source.fileno(), sink.fileno(), engines.fileno()],
            )
            replies.append(reply)
        lanes = [work.engine_ends[lane] for lane in BACKGROUND.lanes]
        Engine(config, lanes, theirs, FlightRecorder(file)).serve(Ready())
        assert [bool(select.select([reply], [], [], 0)[0]) for reply in replies] == [True, False, True]


def test_a_configuration_survives_the_command_line() -> None:
    config = replace(CONFIG, work=[3, 4], control=5, recorder=6)
    assert EngineConfig.decode(config.encode()) == config
