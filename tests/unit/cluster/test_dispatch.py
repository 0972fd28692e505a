"""A dispatcher gets one answer for each upload, whatever becomes of the engines that try it."""

import asyncio
import os
import resource
import select
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from io import FileIO
from tempfile import TemporaryFile
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.asgi import MovableClock
from support.descriptors import descriptors_on_their_way
from support.operations import OPERATIONS, SAMPLE

from server.cluster import dispatch
from server.cluster.dispatch import Dispatcher, EngineBug, TooLate
from server.cluster.ledger import Field
from server.cluster.membership import Membership
from server.cluster.memory_files import MemoryFilePool, memory_file
from server.cluster.messages import Done, Progress, Refused, Spent, Task, now_us
from server.cluster.quarantine import Quarantine, QuarantineEntry
from server.cluster.roles import BACKGROUND, INTERACTIVE, Role
from server.cluster.scoreboard import Cell
from server.cluster.supervisor import OnDemandEngines
from server.cluster.work_socket import Lane, receive, send
from server.errors import DamagedImage, PoisonImage, ServiceUnavailable, TooMuchWork
from server.operations.registry import Operation

DEADLINE_S = 60.0

COPY, FAIL = OPERATIONS["copy"], OPERATIONS["fail"]
IMAGE = b"an image"
ENGINE_PID = 70

DONE = Done({"media_type": "text/plain", "limit": 1}, Spent(1, 9, {"read": 4, "write": 5}), ENGINE_PID)


def soon_us() -> int:
    """The deadline of a task, ten seconds from now."""
    return now_us() + 10_000_000


async def until(holds: Callable[[], object]) -> None:
    """Let the event loop run until something holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110 it is in the kernel or in shared memory
            await asyncio.sleep(0)


class Delivery:
    """What an engine has taken from the work socket."""

    def __init__(self, message: bytes, files: list[int]) -> None:
        self.task = Task.decode(message)
        self.source, self.sink = FileIO(files[0]), FileIO(files[1], "r+b")
        self.reply = socket.socket(fileno=files[2])

    def answer(self, message: bytes) -> None:
        with self.source, self.sink, self.reply:
            send(self.reply, message)

    def done(self, result: bytes) -> None:
        self.sink.seek(0)
        self.sink.write(result)
        self.sink.truncate()
        self.answer(DONE.encode())

    def is_given_up(self) -> bool:
        """Tell whether the worker has let the engine know that its client has left."""
        poll = select.poll()
        poll.register(self.reply, select.POLLRDHUP)
        return bool(poll.poll(0))

    def lose(self) -> None:
        """Let the worker see the end of file that a dead engine leaves."""
        for held in (self.source, self.sink, self.reply):
            held.close()


class Cluster:
    """A dispatcher and the engines' ends of its work socket."""

    def __init__(self) -> None:
        self.membership = Membership.alone(Quarantine(60))
        self.pool = MemoryFilePool()
        # No engines are started: the tests are the engines.
        self.dispatcher = Dispatcher(
            self.membership,
            self.pool,
            sample=SAMPLE,
            background=OnDemandEngines([]),
            timeout_s=60,
        )
        self.row = self.membership.row
        self.account = self.membership.page.account("192.0.2.1")

    @property
    def pooled(self) -> list[FileIO]:
        """The files that wait in the pool to be used again."""
        return self.pool._files  # noqa: SLF001 there is no other way to see

    async def take(self, lane: Lane = Lane.INTERACTIVE) -> Delivery:
        """Take the next task of a lane, as an engine does."""
        end = self.membership.work.engine_ends[lane]
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    return Delivery(*receive(end, 3))
                except BlockingIOError:
                    await asyncio.sleep(0)

    def crash(
        self,
        delivery: Delivery,
        returncode: int,
        role: Role = INTERACTIVE,
        *,
        stages: int = 0,
        began_us: int = 0,
    ) -> None:
        """Die over a task after so many of its stages, and have it reported as a supervisor does."""
        self.row[role.lost_pid], self.row[role.lost_status] = ENGINE_PID, returncode
        self.row[role.lost_stages] = stages
        self.row[role.lost_began_us] = began_us
        self.row[role.lost_task] = delivery.task.number
        delivery.lose()

    async def take_sample(self, lane: Lane = Lane.RETRY) -> Delivery:
        """Take the task that shows whether engines crash on a sound image too."""
        delivery = await self.take(lane)
        assert os.pread(delivery.source.fileno(), 1 << 20, 0) == SAMPLE.read_bytes()
        return delivery

    async def have_blamed(self, run: "asyncio.Task[Any]", *, stages: int) -> None:
        """Crash the two engines that try an image after so many stages, and survive the sample."""
        self.crash(await self.take(), -signal.SIGSEGV, stages=stages)
        self.crash(await self.take(Lane.RETRY), -signal.SIGSEGV, stages=stages)
        (await self.take_sample()).done(b"")
        await self.fails(run, PoisonImage)

    @asynccontextmanager
    async def running(
        self, operation: Operation = COPY, *, times: int = 1, lane: Lane = Lane.INTERACTIVE
    ) -> AsyncIterator["asyncio.Task[tuple[Done, FileIO, Role]]"]:
        """Send an upload; whatever has not been awaited at the end is cancelled."""
        with memory_file("upload") as upload:
            upload.write(IMAGE)
            run = asyncio.ensure_future(
                self.dispatcher.run(
                    upload, operation, {"times": times}, soon_us(), account=self.account, lane=lane
                )
            )
            try:
                yield run
            finally:
                while not run.done():  # the first time it waits until its engine has answered
                    run.cancel()
                    await asyncio.sleep(0)
        assert self.row[Cell.IN_FLIGHT] == 0

    @asynccontextmanager
    async def running_in_background(
        self, on_progress: Callable[[float], None] | None = None
    ) -> AsyncIterator[tuple["asyncio.Task[Done]", FileIO]]:
        """Send a file from disk, with another one for the result; as `running` does."""
        with TemporaryFile(buffering=0) as upload, TemporaryFile(buffering=0) as result:
            upload.write(IMAGE)
            run = asyncio.ensure_future(
                self.dispatcher.run_in_background(upload, result, COPY, {"times": 1}, on_progress=on_progress)
            )
            try:
                yield run, result
            finally:
                run.cancel()
                await asyncio.wait([run])
        assert not self.pooled

    async def fails(self, run: "asyncio.Task[Any]", kind: type[Exception]) -> Exception:
        with pytest.raises(kind) as raised:
            async with asyncio.timeout(DEADLINE_S):
                await run
        return raised.value


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    with cluster.membership.work:
        yield cluster
    for file in cluster.pooled:
        file.close()


def until_done(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_what_an_engine_made_comes_back_and_is_counted(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running() as run:
            delivery = await cluster.take()
            assert cluster.row[Cell.IN_FLIGHT] == 1
            assert (delivery.task.operation, delivery.task.version) == ("copy", 1)
            assert delivery.task.parameters == {"times": 1}
            assert os.pread(delivery.source.fileno(), 100, 0) == IMAGE
            assert 9e6 < delivery.task.deadline_us - now_us() <= 10e6
            delivery.done(b"a result")
            done, result, _ = await run
            with result:
                assert os.pread(result.fileno(), 100, 0) == b"a result"
            assert done.engine_pid == ENGINE_PID
            assert (cluster.row[Cell.TASKS], cluster.row[Cell.TASK_US]) == (1, 9)

    until_done(test)


def test_each_task_has_a_number_of_its_own(cluster: Cluster) -> None:
    async def test() -> None:
        numbers = set()
        for _ in range(3):
            async with cluster.running():
                delivery = await cluster.take()
                numbers.add(delivery.task.number)
                delivery.lose()
        assert len(numbers) == 3

    until_done(test)


def test_a_refusal_is_raised_and_the_file_is_used_again(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running() as run:
            error = DamagedImage("Send another one.")
            (await cluster.take()).answer(Refused(ENGINE_PID, error=error).encode())
            raised = await cluster.fails(run, DamagedImage)
            assert isinstance(raised, DamagedImage)
            assert (raised.detail, raised.engine_pid) == ("Send another one.", ENGINE_PID)
        with cluster.pool.take() as again:
            assert os.fstat(again.fileno()).st_size == 0
            assert not cluster.pooled

    until_done(test)


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        (Refused(ENGINE_PID, is_late=True).encode(), TooLate, ""),
        (Refused(ENGINE_PID, is_out_of_room=True).encode(), ServiceUnavailable, "Try again later."),
        (Refused(ENGINE_PID, traceback="KeyError: 'a bug'").encode(), EngineBug, "KeyError: 'a bug'"),
        (Refused(ENGINE_PID).encode(), EngineBug, "no reason"),
        (b"garbage", EngineBug, "Expecting value"),
        (b'{"done": {"media_type": "text/html"}}', EngineBug, ""),
    ],
)
def test_an_answer_without_a_result_is_raised(
    cluster: Cluster, message: bytes, kind: type[Exception], says: str
) -> None:
    async def test() -> None:
        async with cluster.running() as run:
            (await cluster.take()).answer(message)
            assert says in str(await cluster.fails(run, kind))
        assert cluster.row[Cell.TASKS] == 0

    until_done(test)


def test_a_task_whose_engine_crashed_goes_to_another_before_all_others(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running() as run:
            cluster.crash(await cluster.take(), -signal.SIGSEGV)
            retry = await cluster.take(Lane.RETRY)
            assert retry.task.deadline_us == 0
            retry.done(b"a result")
            _, result, _ = await run
            with result:
                assert os.pread(result.fileno(), 100, 0) == b"a result"

    until_done(test)


def test_an_image_that_crashes_two_engines_is_refused_then_and_later(cluster: Cluster) -> None:
    async def test() -> None:
        with capture_logs() as events:
            async with cluster.running() as run:
                await cluster.have_blamed(run, stages=0)
            async with cluster.running() as run:
                await cluster.fails(run, PoisonImage)  # no engine is asked
        (event,) = [event for event in events if event["event"] == "poison_image_quarantined"]
        assert (event["operation"], event["version"], event["engines"]) == ("copy", 1, 2)
        assert (event["signal"], event["pid"]) == ("SIGSEGV", ENGINE_PID)
        assert [event["event"] for event in events].count("quarantined_image_refused") == 1
        # Another operation may have no trouble with it.
        async with cluster.running(FAIL) as run:
            (await cluster.take()).answer(Refused(ENGINE_PID, is_late=True).encode())
            await cluster.fails(run, TooLate)

    until_done(test)


def test_an_image_that_takes_too_long_is_not_tried_again(cluster: Cluster) -> None:
    async def test() -> None:
        for kind in (TooMuchWork, TooMuchWork, PoisonImage):
            async with cluster.running() as run:
                if kind is TooMuchWork:
                    delivery = await cluster.take()
                    cluster.row[Cell.TASKS] += 1  # another image goes well meanwhile
                    cluster.crash(delivery, -signal.SIGALRM)
                await cluster.fails(run, kind)

    until_done(test)


@pytest.mark.parametrize("stages", [0, 1])
def test_only_an_engine_that_crashes_while_it_reads_an_image_has_all_recipes_refused(
    cluster: Cluster, stages: int
) -> None:
    async def test() -> None:
        async with cluster.running() as run:
            await cluster.have_blamed(run, stages=stages)
        async with cluster.running() as run:
            await cluster.fails(run, PoisonImage)
        async with cluster.running(times=2) as run:
            if stages == 0:
                await cluster.fails(run, PoisonImage)
            else:
                (await cluster.take()).done(b"a result")
                _, result, _ = await run
                result.close()

    until_done(test)


def test_engines_that_crash_now_while_reading_and_now_later_have_one_recipe_refused(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running() as run:
            cluster.crash(await cluster.take(), -signal.SIGSEGV, stages=0)
            cluster.crash(await cluster.take(Lane.RETRY), -signal.SIGSEGV, stages=1)
            (await cluster.take_sample()).done(b"")
            await cluster.fails(run, PoisonImage)
        async with cluster.running(times=2) as run:
            (await cluster.take()).done(b"a result")
            _, result, _ = await run
            result.close()

    until_done(test)


@pytest.mark.parametrize(("returncode", "times"), [(-signal.SIGALRM, 1), (-signal.SIGKILL, 4)])
def test_a_recipe_that_takes_too_long_or_too_much_memory_refuses_no_other(
    cluster: Cluster, returncode: int, times: int
) -> None:
    async def test() -> None:
        for _ in range(2):
            async with cluster.running() as run:
                for lane in (Lane.INTERACTIVE, *[Lane.RETRY] * (times - 1)):
                    delivery = await cluster.take(lane)
                    cluster.row[Cell.TASKS] += 1
                    cluster.crash(delivery, returncode)
                if times > 1:
                    (await cluster.take_sample()).done(b"")
                    await cluster.fails(run, PoisonImage)
                    break
                await cluster.fails(run, TooMuchWork)
        async with cluster.running() as run:
            await cluster.fails(run, PoisonImage)
        async with cluster.running(times=2) as run:
            (await cluster.take()).done(b"a result")
            _, result, _ = await run
            result.close()

    until_done(test)


def test_no_image_is_to_blame_where_a_sound_one_crashes_engines_too(cluster: Cluster) -> None:
    async def test() -> None:
        with capture_logs() as events:
            async with cluster.running() as run:
                cluster.crash(await cluster.take(), -signal.SIGSEGV)
                cluster.crash(await cluster.take(Lane.RETRY), -signal.SIGSEGV)
                cluster.crash(await cluster.take_sample(), -signal.SIGSEGV)
                await cluster.fails(run, ServiceUnavailable)
        assert [event["event"] for event in events].count("engines_crash") == 1
        async with cluster.running() as run:  # it is tried again
            (await cluster.take()).done(b"a result")
            _, result, _ = await run
            result.close()

    until_done(test)


def test_no_image_is_to_blame_where_nothing_is_done_in_time(cluster: Cluster) -> None:
    async def test() -> None:
        for _ in range(3):
            async with cluster.running() as run:
                cluster.crash(await cluster.take(), -signal.SIGALRM)
                await cluster.fails(run, TooMuchWork)

    until_done(test)


def test_engines_that_were_killed_from_outside_are_not_blamed_on_the_image_at_once(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running() as run:
            cluster.crash(await cluster.take(), -signal.SIGKILL)
            for _ in range(2):
                cluster.crash(await cluster.take(Lane.RETRY), -signal.SIGKILL)
            (await cluster.take(Lane.RETRY)).done(b"a result")
            _, result, _ = await run
            result.close()
        async with cluster.running() as run:
            cluster.crash(await cluster.take(), -signal.SIGKILL)
            for _ in range(3):
                cluster.crash(await cluster.take(Lane.RETRY), -signal.SIGKILL)
            (await cluster.take_sample()).done(b"")
            await cluster.fails(run, PoisonImage)

    until_done(test)


def test_an_engine_that_died_with_its_worker_is_replaced_without_a_report(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_EXIT_REPORT_S", 0.0)

    async def test() -> None:
        async with cluster.running() as run:
            (await cluster.take()).lose()
            (await cluster.take(Lane.RETRY)).done(b"a result")
            _, result, _ = await run
            result.close()

    until_done(test)


def test_an_upload_that_cannot_be_kept_is_refused_all_the_same(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise OSError("No space left on device")

    monkeypatch.setattr(Quarantine, "keep", full)

    async def test() -> None:
        with capture_logs() as events:
            async with cluster.running() as run:
                await cluster.have_blamed(run, stages=1)
        names = [event["event"] for event in events]
        assert names[-2:] == ["quarantine_file_not_written", "poison_image_quarantined"]

    until_done(test)


def test_a_background_task_has_no_deadline_and_is_counted_apart(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running_in_background() as (run, result):
            delivery = await cluster.take(Lane.BACKGROUND)
            assert cluster.row[Cell.IN_FLIGHT] == 0
            assert (delivery.task.operation, delivery.task.deadline_us) == ("copy", 0)
            assert delivery.task.parameters == {"times": 1}
            assert os.pread(delivery.source.fileno(), 100, 0) == IMAGE
            delivery.done(b"a result")
            done = await run
            assert done.engine_pid == ENGINE_PID
            assert os.pread(result.fileno(), 100, 0) == b"a result"
        assert (cluster.row[Cell.BACKGROUND_TASKS], cluster.row[Cell.BACKGROUND_US]) == (1, 9)
        assert [cluster.row[cell] for cell in (Cell.TASKS, Cell.RECENT_US, Cell.SERVICE_US)] == [0, 0, 0]

    until_done(test)


def test_a_background_task_whose_engine_crashed_stays_in_its_lane(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running_in_background() as (run, result):
            cluster.crash(await cluster.take(Lane.BACKGROUND), -signal.SIGSEGV, BACKGROUND)
            (await cluster.take(Lane.BACKGROUND)).done(b"a result")
            await run
            assert os.pread(result.fileno(), 100, 0) == b"a result"

    until_done(test)


def test_a_poison_image_in_the_background_is_refused_in_both_roles(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running_in_background() as (run, _):
            for _ in range(2):
                cluster.crash(await cluster.take(Lane.BACKGROUND), -signal.SIGSEGV, BACKGROUND)
            (await cluster.take_sample(Lane.BACKGROUND)).done(b"")
            await cluster.fails(run, PoisonImage)
        async with cluster.running_in_background() as (run, _):
            await cluster.fails(run, PoisonImage)
        async with cluster.running() as interactive:
            await cluster.fails(interactive, PoisonImage)

    until_done(test)


def test_a_background_task_that_uses_too_much_cpu_time_is_not_tried_again(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running_in_background() as (run, _):
            cluster.crash(await cluster.take(Lane.BACKGROUND), -signal.SIGPROF, BACKGROUND)
            await cluster.fails(run, TooMuchWork)

    until_done(test)


def test_progress_is_passed_on_as_the_part_of_the_stages_that_has_ended(cluster: Cluster) -> None:
    async def test() -> None:
        parts: list[float] = []
        async with cluster.running_in_background(parts.append) as (run, _):
            delivery = await cluster.take(Lane.BACKGROUND)
            send(delivery.reply, Progress(1).encode())
            delivery.done(b"a result")
            await run
        assert parts == [0.5]

    until_done(test)


def test_progress_that_nobody_asked_for_is_ignored(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running() as run:
            delivery = await cluster.take()
            send(delivery.reply, Progress(1).encode())
            delivery.done(b"a result")
            _, result, _ = await run
            result.close()

    until_done(test)


def test_a_task_that_yields_waits_in_a_lane_of_its_own_and_no_longer_than_others(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running(lane=Lane.YIELDING) as run:
            delivery = await cluster.take(Lane.YIELDING)
            assert cluster.row[Cell.IN_FLIGHT] == 1
            sent = delivery.task
            assert 0 < sent.deadline_us - sent.sent_us <= 10e6
            delivery.done(b"a result")
            _, result, _ = await run
            with result:
                assert os.pread(result.fileno(), 100, 0) == b"a result"
        # Its time says nothing of what an engine takes that does not wait for a core.
        assert (cluster.row[Cell.BACKGROUND_TASKS], cluster.row[Cell.BACKGROUND_US]) == (1, 9)
        assert [cluster.row[cell] for cell in (Cell.TASKS, Cell.RECENT_US, Cell.SERVICE_US)] == [0, 0, 0]

    until_done(test)


def test_a_task_that_yields_and_loses_its_engine_does_not_yield_again(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running(lane=Lane.YIELDING) as run:
            cluster.crash(await cluster.take(Lane.YIELDING), -signal.SIGSEGV, BACKGROUND)
            cluster.crash(await cluster.take(Lane.RETRY), -signal.SIGSEGV, INTERACTIVE)
            (await cluster.take_sample()).done(b"")
            await cluster.fails(run, PoisonImage)
        assert cluster.row[Cell.BACKGROUND_TASKS] == 0

    until_done(test)


def test_a_task_counts_for_the_role_of_the_engine_that_did_it(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running(lane=Lane.YIELDING) as run:
            cluster.crash(await cluster.take(Lane.YIELDING), -signal.SIGSEGV, BACKGROUND)
            (await cluster.take(Lane.RETRY)).done(b"a result")
            _, result, role = await run
            result.close()
        assert role is INTERACTIVE
        assert (cluster.row[Cell.TASKS], cluster.row[Cell.TASK_US]) == (1, 9)
        assert (cluster.row[Cell.BACKGROUND_TASKS], cluster.row[Cell.BACKGROUND_US]) == (0, 0)

    until_done(test)


def test_a_task_that_finds_no_cpu_time_is_given_up_and_its_image_is_not_to_blame(cluster: Cluster) -> None:
    async def test() -> None:
        clock: Any = asyncio.get_running_loop()
        async with cluster.running(lane=Lane.YIELDING) as run:
            delivery = await cluster.take(Lane.YIELDING)
            await clock.pass_time(69)
            assert not run.done()
            await clock.pass_time(2)
            await cluster.fails(run, TooLate)
            delivery.lose()
        assert not cluster.pooled  # an engine may still be writing to the file
        async with cluster.running() as run:
            (await cluster.take()).done(b"a result")
            _, result, _ = await run
            result.close()

    with asyncio.Runner(loop_factory=MovableClock) as runner:
        runner.run(test())


def test_a_client_is_charged_with_the_engine_time_that_others_could_have_used(cluster: Cluster) -> None:
    def spent_us() -> int:
        return cluster.account.used(Field.SPENT_US)

    async def test() -> None:
        async with cluster.running() as run:
            (await cluster.take()).done(b"a result")
            _, result, _ = await run
            result.close()
        assert spent_us() == 9
        async with cluster.running() as run:
            refused = Refused(ENGINE_PID, error=DamagedImage("Send another one."), service_us=5)
            (await cluster.take()).answer(refused.encode())
            await cluster.fails(run, DamagedImage)
        assert spent_us() == 14
        async with cluster.running(lane=Lane.YIELDING) as run:
            (await cluster.take(Lane.YIELDING)).done(b"a result")
            _, result, _ = await run
            result.close()
        assert spent_us() == 14
        async with cluster.running() as run:
            delivery = await cluster.take()
            cluster.crash(delivery, -signal.SIGALRM)
            await cluster.fails(run, TooMuchWork)
        assert 14 < spent_us() <= 14 + now_us() - delivery.task.sent_us

    until_done(test)


def test_a_client_whose_engine_is_lost_is_not_charged_with_the_time_in_the_queue(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running() as run:
            delivery = await cluster.take()
            await asyncio.sleep(0.2)  # so long it was in the queue
            began_us = now_us()
            cluster.crash(delivery, -signal.SIGALRM, began_us=began_us)
            await cluster.fails(run, TooMuchWork)
        assert 0 < cluster.account.used(Field.SPENT_US) <= now_us() - began_us

    until_done(test)


def test_an_engine_that_lies_about_its_time_is_believed_no_more_than_has_passed(cluster: Cluster) -> None:
    most_us = (1 << 63) - 1
    outcome = {"media_type": "text/plain", "limit": 1}
    lie = Done(outcome, Spent(1, most_us, {"read": 4, "write": 5}), ENGINE_PID).encode()

    async def test() -> None:
        began_us = now_us()
        async with cluster.running() as run:
            refused = Refused(ENGINE_PID, error=DamagedImage("Send another one."), service_us=most_us)
            (await cluster.take()).answer(refused.encode())
            await cluster.fails(run, DamagedImage)
        for _ in range(2):
            async with cluster.running() as run:
                (await cluster.take()).answer(lie)
                done, result, _ = await run
                result.close()
                assert done.spent.service_us <= now_us() - began_us
            async with cluster.running_in_background() as (background, _):
                (await cluster.take(Lane.BACKGROUND)).answer(lie)
                await background
        async with cluster.running() as run:
            delivery = await cluster.take()
            cluster.crash(delivery, -signal.SIGALRM, began_us=-most_us)  # the flight recorder may lie too
            await cluster.fails(run, TooMuchWork)
        row = cluster.row
        counted = [row[cell] for cell in (Cell.TASK_US, Cell.BACKGROUND_US, Cell.SERVICE_US)]
        assert max(*counted, cluster.account.used(Field.SPENT_US)) <= now_us() - began_us

    until_done(test)


def test_a_cancelled_background_task_is_skipped_or_finished_for_nobody(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running_in_background() as (run, _):
            delivery = await cluster.take(Lane.BACKGROUND)
            run.cancel()
            await asyncio.wait([run])
            poll = select.poll()
            poll.register(delivery.reply, 0)
            assert poll.poll(0)[0][1] & select.POLLHUP
            delivery.lose()

    until_done(test)


def test_a_client_that_leaves_takes_its_task_with_it(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running() as run:
            delivery = await cluster.take()
            run.cancel()
            await until(delivery.is_given_up)
            delivery.answer(Refused(ENGINE_PID, is_late=True).encode())
            await asyncio.wait([run])
            assert run.cancelled()
        assert cluster.account.used(Field.SPENT_US) == 0
        assert not cluster.pooled

    until_done(test)


def test_a_client_that_leaves_while_an_engine_works_is_charged_when_it_has_ended(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running() as run:
            delivery = await cluster.take()
            run.cancel()
            await until(delivery.is_given_up)
            assert not run.done()
            assert cluster.row[Cell.IN_FLIGHT] == 1
            delivery.done(b"a result")
            await asyncio.wait([run])
            assert run.cancelled()
        assert cluster.account.used(Field.SPENT_US) == 9
        async with cluster.running() as run:
            delivery = await cluster.take()
            run.cancel()
            began_us = now_us()
            cluster.crash(delivery, -signal.SIGSEGV, began_us=began_us)
            (await cluster.take_sample()).done(b"")  # it is not tried again
            await asyncio.wait([run])
            assert run.cancelled()
        assert 9 < cluster.account.used(Field.SPENT_US) <= 9 + now_us() - began_us

    until_done(test)


@pytest.mark.parametrize("has_crashed", [False, True])
def test_a_worker_that_ends_does_not_wait_for_an_engine(cluster: Cluster, has_crashed: bool) -> None:  # noqa: FBT001
    async def test() -> None:
        async with cluster.running() as run:
            delivery = await cluster.take()
            if has_crashed:
                cluster.crash(delivery, -signal.SIGSEGV)
                delivery = await cluster.take(Lane.RETRY)
            run.cancel()
            await until(delivery.is_given_up)
            run.cancel()
            await until(run.done)
            assert run.cancelled()
            delivery.lose()
        assert not cluster.pooled  # an engine may still be writing to the file

    until_done(test)


def test_a_client_that_leaves_holds_its_upload_until_its_yielding_task_is_skipped(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running(lane=Lane.YIELDING) as run:
            delivery = await cluster.take(Lane.YIELDING)
            run.cancel()
            await until(delivery.is_given_up)
            assert not run.done()
            assert cluster.row[Cell.IN_FLIGHT] == 1
            delivery.answer(Refused(ENGINE_PID, is_late=True).encode())
            await asyncio.wait([run])
            assert run.cancelled()

    until_done(test)


def test_a_client_that_leaves_is_not_waited_for_when_its_yielding_task_finds_no_cpu_time(
    cluster: Cluster,
) -> None:
    async def test() -> None:
        clock: Any = asyncio.get_running_loop()
        async with cluster.running(lane=Lane.YIELDING) as run:
            delivery = await cluster.take(Lane.YIELDING)
            run.cancel()
            await until(delivery.is_given_up)
            await clock.pass_time(69)
            assert not run.done()
            await clock.pass_time(2)
            assert run.cancelled()
            delivery.lose()

    with asyncio.Runner(loop_factory=MovableClock) as runner:
        runner.run(test())


@pytest.mark.parametrize("lane", [Lane.INTERACTIVE, Lane.YIELDING])
def test_an_image_whose_sender_always_leaves_crashes_two_engines_and_no_more(
    cluster: Cluster, lane: Lane
) -> None:
    role = BACKGROUND if lane is Lane.YIELDING else INTERACTIVE

    async def test() -> None:
        with capture_logs() as events:
            for _ in range(2):
                async with cluster.running(lane=lane) as run:
                    delivery = await cluster.take(lane)
                    run.cancel()
                    await until(delivery.is_given_up)
                    cluster.crash(delivery, -signal.SIGSEGV, role)
                    (await cluster.take_sample()).done(b"")
                    await asyncio.wait([run])
                    assert run.cancelled()
            async with cluster.running(lane=lane, times=2) as run:  # it was reading
                await cluster.fails(run, PoisonImage)
        names = [event["event"] for event in events]
        assert (names.count("image_crashed_engine"), names.count("poison_image_quarantined")) == (1, 1)

    until_done(test)


def test_an_image_whose_sender_leaves_while_it_is_tried_again_is_to_blame_for_the_first_engine(
    cluster: Cluster,
) -> None:
    async def test() -> None:
        for _ in range(2):
            async with cluster.running() as run:
                cluster.crash(await cluster.take(), -signal.SIGSEGV)
                retry = await cluster.take(Lane.RETRY)
                run.cancel()
                await until(retry.is_given_up)
                retry.answer(Refused(ENGINE_PID, is_late=True).encode())  # it is skipped
                (await cluster.take_sample()).done(b"")
                await asyncio.wait([run])
                assert run.cancelled()
        async with cluster.running() as run:
            await cluster.fails(run, PoisonImage)

    until_done(test)


@pytest.mark.parametrize(
    "answer",
    [
        DONE,
        Refused(ENGINE_PID, error=DamagedImage("Send another one.")),
        Refused(ENGINE_PID, is_out_of_room=True),
        Refused(ENGINE_PID, traceback="KeyError: 'a bug'"),
    ],
)
def test_an_image_that_the_second_engine_survives_is_not_to_blame_when_its_sender_leaves(
    cluster: Cluster, answer: Done | Refused
) -> None:
    async def test() -> None:
        for _ in range(3):
            async with cluster.running() as run:
                cluster.crash(await cluster.take(), -signal.SIGSEGV)
                retry = await cluster.take(Lane.RETRY)
                run.cancel()
                await until(retry.is_given_up)
                retry.answer(answer.encode())
                await until(run.done)
                assert run.cancelled()

    until_done(test)


def test_an_image_whose_sender_leaves_while_the_sample_is_tried_is_to_blame(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running() as run:
            cluster.crash(await cluster.take(), -signal.SIGSEGV)
            cluster.crash(await cluster.take(Lane.RETRY), -signal.SIGSEGV)
            left = await cluster.take_sample()
            run.cancel()
            (await cluster.take_sample()).done(b"")
            left.lose()
            await asyncio.wait([run])
            assert run.cancelled()
        async with cluster.running() as run:
            await cluster.fails(run, PoisonImage)

    until_done(test)


def test_an_image_whose_sender_leaves_while_it_is_stored_is_blamed_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_storing, may_end = threading.Event(), threading.Event()

    def keep(_: Quarantine, upload: FileIO, __: QuarantineEntry) -> bool:
        is_storing.set()
        return may_end.wait(DEADLINE_S) and os.pread(upload.fileno(), 100, 0) == IMAGE

    monkeypatch.setattr(Quarantine, "keep", keep)

    async def test() -> None:
        async with cluster.running() as run:
            cluster.crash(await cluster.take(), -signal.SIGSEGV)
            cluster.crash(await cluster.take(Lane.RETRY), -signal.SIGSEGV)
            (await cluster.take_sample()).done(b"")
            await until(is_storing.is_set)
            run.cancel()
            await asyncio.sleep(0)  # the cancellation arrives
            assert not run.done()  # the upload is in use
            may_end.set()
            await until(run.done)  # no engine has to try the sample again
            assert run.cancelled()

    with capture_logs() as events:
        until_done(test)
    (event,) = [event for event in events if event["event"] == "poison_image_quarantined"]
    assert (event["engines"], event["is_kept"]) == (2, True)


def test_an_image_whose_sender_leaves_is_not_to_blame_where_a_sound_one_crashes_engines_too(
    cluster: Cluster,
) -> None:
    async def test() -> None:
        for _ in range(3):
            async with cluster.running() as run:
                delivery = await cluster.take()
                run.cancel()
                await until(delivery.is_given_up)
                cluster.crash(delivery, -signal.SIGSEGV)
                cluster.crash(await cluster.take_sample(), -signal.SIGSEGV)
                await asyncio.wait([run])
                assert run.cancelled()

    until_done(test)


def test_an_image_whose_sender_leaves_may_take_too_long_twice(cluster: Cluster) -> None:
    async def test() -> None:
        for _ in range(2):
            async with cluster.running() as run:
                delivery = await cluster.take()
                run.cancel()
                await until(delivery.is_given_up)
                cluster.row[Cell.TASKS] += 1  # another image goes well meanwhile
                cluster.crash(delivery, -signal.SIGALRM)
                await asyncio.wait([run])
                assert run.cancelled()
        async with cluster.running() as run:
            await cluster.fails(run, PoisonImage)

    until_done(test)


@pytest.mark.parametrize("answer", [b"garbage", Refused(ENGINE_PID, traceback="KeyError: ours").encode()])
def test_a_bug_that_shows_when_the_client_has_left_is_logged_and_the_request_stays_cancelled(
    cluster: Cluster, answer: bytes
) -> None:
    async def test() -> None:
        with capture_logs() as events:
            async with cluster.running() as run:
                delivery = await cluster.take()
                run.cancel()
                await until(delivery.is_given_up)
                delivery.answer(answer)
                await asyncio.wait([run])
                assert run.cancelled()
        assert [event["event"] for event in events] == ["request_failed"]

    until_done(test)


def test_a_task_waits_until_there_is_room_in_the_queue(cluster: Cluster) -> None:
    async def test() -> None:
        work, filled = cluster.membership.work, 0
        with pytest.raises(BlockingIOError):  # noqa: PT012 the kernel decides how many fit
            while True:
                send(work.worker_ends[Lane.INTERACTIVE], b"filling")
                filled += 1
        async with cluster.running() as run:
            await until(lambda: cluster.row[Cell.IN_FLIGHT])
            for _ in range(filled):
                assert receive(work.engine_ends[Lane.INTERACTIVE], 3) == (b"filling", [])
            (await cluster.take()).done(b"a result")
            _, result, _ = await run
            result.close()

    until_done(test)


def test_a_task_that_finds_no_room_in_the_queue_in_time_is_too_late(cluster: Cluster) -> None:
    async def test() -> None:
        clock: Any = asyncio.get_running_loop()
        with pytest.raises(BlockingIOError):  # noqa: PT012 the kernel decides how many fit
            while True:
                send(cluster.membership.work.worker_ends[Lane.INTERACTIVE], b"filling")
        async with cluster.running() as first, cluster.running() as second:
            await clock.pass_time(9)
            assert not first.done()
            assert not second.done()
            await clock.pass_time(2)
            await cluster.fails(first, TooLate)
            await cluster.fails(second, TooLate)  # it waited for its turn

    with asyncio.Runner(loop_factory=MovableClock) as runner:
        runner.run(test())


def test_a_task_waits_until_fewer_descriptors_are_on_their_way(cluster: Cluster) -> None:
    async def test() -> None:
        with descriptors_on_their_way(cluster.membership.work.worker_ends[Lane.INTERACTIVE]) as sent:
            async with cluster.running() as run:
                await until(lambda: cluster.row[Cell.IN_FLIGHT])  # it has been tried once
                assert not run.done()
                for _ in range(sent):
                    _, files = receive(cluster.membership.work.engine_ends[Lane.INTERACTIVE], 0)
                    assert files == []  # the kernel has closed them
                (await cluster.take()).done(b"a result")
                _, result, _ = await run
                result.close()

    until_done(test)


def test_a_task_that_cannot_be_sent_in_time_is_too_late(cluster: Cluster) -> None:
    async def test() -> None:
        end = cluster.membership.work.worker_ends[Lane.INTERACTIVE]
        with memory_file("upload") as upload, descriptors_on_their_way(end), pytest.raises(TooLate):
            async with asyncio.timeout(DEADLINE_S):
                await cluster.dispatcher.run(upload, COPY, {"times": 1}, now_us() + 100_000)

    until_done(test)


def test_tasks_that_wait_until_others_are_sent_hold_no_descriptors_for_it(cluster: Cluster) -> None:
    async def test() -> None:
        end = cluster.membership.work.worker_ends[Lane.INTERACTIVE]
        with pytest.raises(BlockingIOError):  # noqa: PT012 the kernel decides how many fit
            while True:
                send(end, b"filling")
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 names are numbers
        with memory_file("upload") as upload:
            runs = {asyncio.ensure_future(cluster.dispatcher.run(upload, COPY, {}, 0)) for _ in range(20)}
            await until(lambda: cluster.row[Cell.IN_FLIGHT] == len(runs))
            opened = len(os.listdir("/proc/self/fd")) - before  # noqa: PTH208
            for run in runs:
                run.cancel()
            await asyncio.wait(runs)
        assert opened == 1 + 20 + 4  # the upload, a result each, and what one of them sends

    until_done(test)


def test_a_process_without_descriptors_says_so_and_leaves_nothing_behind(cluster: Cluster) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def test() -> None:
        with memory_file("upload") as upload:
            upload.write(IMAGE)
            highest = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 names are numbers
            fillers = [memory_file("filler")]
            while fillers[-1].fileno() < highest:
                fillers.append(memory_file("filler"))
            top = fillers[-1].fileno()
            resource.setrlimit(resource.RLIMIT_NOFILE, (top + 3, hard))  # two are left, for the result
            try:
                with pytest.raises(OSError, match="Too many open files"):
                    await cluster.dispatcher.run(upload, COPY, {}, 0)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for filler in fillers:
                    filler.close()
        assert cluster.row[Cell.IN_FLIGHT] == 0
        assert not cluster.pooled

    until_done(test)


def test_the_digest_is_that_of_the_upload(cluster: Cluster) -> None:
    async def test() -> None:
        async with cluster.running() as run:
            delivery = await cluster.take()
            cluster.row[Cell.TASKS] += 1
            cluster.crash(delivery, -signal.SIGALRM)
            await cluster.fails(run, TooMuchWork)
        with memory_file("upload") as upload:
            upload.write(IMAGE)
            assert cluster.membership.quarantine.crashes(QuarantineEntry.of(upload, COPY, {"times": 1})) == 1

    until_done(test)
