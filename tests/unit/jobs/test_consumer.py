"""A consumer runs what it claims, reports each try once, and leaves no unneeded file."""

import asyncio
import errno
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.asgi import MovableClock, run
from support.operations import OPERATIONS
from support.store import PREFIX, StoreServer, eventually, stores

from server.cluster.dispatch import EngineBug
from server.cluster.messages import Done, Spent
from server.errors import DamagedImage, ServiceUnavailable, StoreAway
from server.jobs import owners
from server.jobs.blobs import Directory
from server.jobs.consumer import Consumer
from server.jobs.hub import Hub
from server.jobs.model import Claim, Facts, Failure, JobId, JobState, NewJob, Schedule, new_id
from server.jobs.store import Store
from server.operations.registry import Operation

FACTS = Facts("copy", 1, {}, attempts=3)
KINDS = ["copy 1"]
INPUT, RESULT = b"an image", b"a result"


class Dispatcher:
    """Does each task at once, or when the test lets it.

    Attributes:
        errors: raised instead of a result, one by one.
        gate: a task ends when it is open.
        asked: the operation, parameters and upload of each task.
        running, most_running: how many tasks there are at a time.
        was_stopped: whether a task was cancelled.
    """

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[tuple[str, Mapping[str, Any], bytes]] = []
        self.running = self.most_running = 0
        self.was_stopped = False

    async def run_in_background(
        self,
        upload: FileIO,
        result: FileIO,
        operation: Operation,
        parameters: Mapping[str, Any],
        *,
        on_progress: Callable[[float], None],
    ) -> Done:
        self.asked.append((operation.name, parameters, os.pread(upload.fileno(), 100, 0)))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            on_progress(0.25)
            await self.gate.wait()
        except asyncio.CancelledError:
            self.was_stopped = True
            raise
        finally:
            self.running -= 1
        if self.errors:
            raise self.errors.pop(0)
        result.write(RESULT)
        return Done({"media_type": "text/plain"}, Spent(1, 2, {}), 7)


class Engine:
    """Counts who wants it."""

    users = uses = 0

    @contextmanager
    def wanted(self) -> Iterator[None]:
        self.users += 1
        self.uses += 1
        try:
            yield
        finally:
            self.users -= 1


class Worker:
    """A consumer with all that it needs, over a store of the test's."""

    def __init__(self, store: Store, other: Store, directory: Path, *, at_once: int = 3) -> None:
        self.store, self.other = store, other
        self.blobs = Directory(directory)
        self.blobs.prepare()
        self.directory = directory
        self.dispatcher, self.engine = Dispatcher(), Engine()
        stand_ins: Any = self.dispatcher, self.engine
        self.consumer = Consumer(store, self.blobs, *stand_ins, OPERATIONS, at_once=at_once, lease_s=3)

    async def submit(self, facts: Facts = FACTS) -> JobId:
        id = JobId(new_id())
        with self.blobs.new() as file:
            file.write(INPUT)
            await self.blobs.keep(file, id.group, id.input_name)
        await self.store.submit(id.group, facts, NewJob(len(INPUT)), Schedule("default"))
        return id

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let the consumer run until the end of the block."""
        task = asyncio.create_task(self.consumer.run())
        try:
            yield
            assert not task.done()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def until(self, id: JobId, *states: JobState) -> None:
        async def is_there() -> bool:
            return (await self.store.job(id)).state in states

        await eventually(is_there)

    def files(self, id: JobId) -> set[str]:
        return {file.name for file in (self.directory / id.group[:2] / id.group).iterdir()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@asynccontextmanager
async def worker(
    server: StoreServer, directory: Path, *, at_once: int = 3, **settings: float
) -> AsyncIterator[Worker]:
    async with stores(server, owners.own_name(), "elsewhere", **settings) as (store, other):
        yield Worker(store, other, directory, at_once=at_once)


async def claim_one(store: Store) -> Claim:
    (claim,), _ = await store.claim(new_id(), KINDS, 1)
    return claim


def test_a_job_is_completed_with_its_result(server: StoreServer, directory: Path) -> None:
    async def test() -> None:
        async with worker(server, directory) as it, it.running():
            id = await it.submit()
            await it.until(id, JobState.COMPLETED)
            job = await it.store.job(id)
            assert job.result is not None
            assert job.result.bytes == len(RESULT)
            assert job.result.outcome == {"media_type": "text/plain"}
            with await it.blobs.open(id.group, id.result_name(job.result.fence)) as file:
                assert file.read() == RESULT
            assert it.dispatcher.asked == [("copy", {"times": 1}, INPUT)]  # a default that was not submitted
            assert (it.engine.uses, it.engine.users) == (1, 0)

    run(test())


def test_an_image_that_is_refused_is_not_tried_again(server: StoreServer, directory: Path) -> None:
    async def test() -> None:
        async with worker(server, directory) as it, it.running():
            it.dispatcher.errors = [DamagedImage("It is cut off.")]
            id = await it.submit()
            await it.until(id, JobState.FAILED)
            job = await it.store.job(id)
            assert (job.tries, job.error) == (1, Failure("DamagedImage", "It is cut off."))
            assert it.files(id) == {id.input_name}

    run(test())


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (EngineBug("Traceback of ours"), Failure("TooManyAttempts")),
        (ZeroDivisionError("of ours"), Failure("TooManyAttempts")),
        (ServiceUnavailable("There is no memory."), Failure("ServiceUnavailable", "There is no memory.")),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            Failure("ServiceUnavailable", "There was no room for the result."),
        ),
    ],
)
def test_what_is_our_fault_is_logged_and_tried_again(
    server: StoreServer, directory: Path, error: Exception, failure: Failure
) -> None:
    async def test() -> None:
        async with worker(server, directory) as it, it.running():
            it.dispatcher.errors = [error]
            id = await it.submit()
            await it.until(id, JobState.DELAYED)
            assert (await it.store.job(id)).error == failure
            await it.until(id, JobState.COMPLETED)
            job = await it.store.job(id)
            assert (job.tries, job.error) == (2, None)
            assert it.files(id) == {id.input_name, id.result_name(2)}

    with capture_logs() as events:
        run(test())
    (line,) = [event for event in events if event["event"] == "job_try_failed"]
    assert (line["exc_info"], line["tries"]) == (error, 1)


def test_a_job_that_fails_with_its_last_try_is_given_up(server: StoreServer, directory: Path) -> None:
    async def test() -> None:
        async with worker(server, directory) as it, it.running():
            it.dispatcher.errors = [EngineBug("ours")]
            id = await it.submit(replace(FACTS, attempts=1))
            await it.until(id, JobState.FAILED)
            assert (await it.store.job(id)).error == Failure("TooManyAttempts")

    run(test())


def test_a_job_whose_input_is_gone_fails(server: StoreServer, directory: Path) -> None:
    async def test() -> None:
        async with worker(server, directory) as it:
            id = await it.submit(replace(FACTS, attempts=1))
            await it.blobs.remove_group(id.group)
            async with it.running():
                await it.until(id, JobState.FAILED)
            assert it.dispatcher.asked == []

    with capture_logs() as events:
        run(test())
    assert [event["log_level"] for event in events if event["event"] == "job_files_gone"] == ["info"]
    assert not any(event.get("exc_info") for event in events)


def test_no_more_jobs_are_held_than_there_is_room_for(server: StoreServer, directory: Path) -> None:
    async def test() -> None:
        async with worker(server, directory) as it, it.running():
            it.dispatcher.gate.clear()
            ids = [await it.submit() for _ in range(10)]
            await eventually(lambda: it.dispatcher.running == 3)
            assert server.client.zcard(f"{PREFIX}lease") == 3
            it.dispatcher.gate.set()
            for id in ids:
                await it.until(id, JobState.COMPLETED)
            assert it.dispatcher.most_running == 3

    run(test())


def test_a_consumer_does_not_ask_again_when_it_has_got_all_that_waits(
    server: StoreServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with worker(server, directory) as it:
            calls: list[str] = []

            def note(name: str) -> None:
                call = getattr(it.store, name)
                monkeypatch.setattr(it.store, name, lambda *args: calls.append(name) or call(*args))

            note("claim")
            note("wait_for_bell")
            first = await it.submit()
            async with it.running():
                await it.until(first, JobState.COMPLETED)
                await it.until(await it.submit(), JobState.COMPLETED)
            assert calls == ["claim", "wait_for_bell"] * (len(calls) // 2)

    run(test())


def test_a_consumer_without_room_claims_nothing_and_is_heard_of_all_the_same(
    server: StoreServer, directory: Path
) -> None:
    async def test() -> None:
        async with worker(server, directory, at_once=0) as it:
            await it.other.submit(new_id(), FACTS, NewJob(1), Schedule("default"))
            async with it.running():
                await eventually(lambda: server.client.zscore(f"{PREFIX}owners", owners.own_name()))
            assert server.client.zcard(f"{PREFIX}lease") == 0

    run(test())


def test_an_earlier_try_that_ends_after_the_next_one_is_waited_for(
    server: StoreServer, directory: Path
) -> None:
    class Slow(Dispatcher):
        """The first task takes its time when it is stopped."""

        def __init__(self) -> None:
            super().__init__()
            self.may_end = asyncio.Event()

        async def run_in_background(self, *args: Any, **more: Any) -> Done:
            is_first = not self.asked
            try:
                return await super().run_in_background(*args, **more)
            finally:
                if is_first:
                    await self.may_end.wait()

    async def test() -> None:
        async with worker(server, directory) as it:
            dispatcher = Slow()
            stand_ins: Any = dispatcher, it.engine
            it.consumer = Consumer(it.store, it.blobs, *stand_ins, OPERATIONS, at_once=3, lease_s=3)
            async with it.running():
                dispatcher.gate.clear()
                id = await it.submit()
                await eventually(lambda: dispatcher.asked)
                assert await it.other.release(owners.own_name()) == 1  # its lease has ended unnoticed
                await eventually(lambda: len(dispatcher.asked) == 2)
                dispatcher.gate.set()
                await it.until(id, JobState.COMPLETED)
                await eventually(lambda: len(it.consumer._running) == 1)
                assert [fence for _, fence in it.consumer._running] == [1]
                dispatcher.may_end.set()
                await eventually(lambda: not it.consumer._running)
            assert it.files(id) == {id.input_name, id.result_name(2)}

    run(test())


def test_a_renewal_that_the_store_did_not_hear_is_made_up_for_when_it_is_back(
    server: StoreServer, directory: Path
) -> None:
    async def test() -> None:
        clock: Any = asyncio.get_running_loop()
        async with worker(server, directory, grace_s=1, lease_s=36) as it:
            stand_ins: Any = it.dispatcher, it.engine
            it.consumer = Consumer(it.store, it.blobs, *stand_ins, OPERATIONS, at_once=1, lease_s=36)
            async with it.running():
                it.dispatcher.gate.clear()
                id = await it.submit()
                await eventually(lambda: server.client.hget(f"{PREFIX}job:{id}", "progress"))
                begun = server.client.zscore(f"{PREFIX}lease", str(id))
                server.kill()
                await clock.pass_time(13)
                await eventually(lambda: is_away(it.store))
                await clock.pass_time(2)
                await asyncio.to_thread(server.start)
                await eventually(lambda: server.client.zscore(f"{PREFIX}lease", str(id)) > begun)

    run(test(), MovableClock)


def test_the_result_of_a_try_that_was_lost_is_refused_and_removed(
    server: StoreServer, directory: Path
) -> None:
    async def test() -> None:
        async with worker(server, directory, at_once=1) as it, it.running():
            it.dispatcher.gate.clear()
            id = await it.submit()
            await eventually(lambda: it.dispatcher.running)
            assert await it.other.release(owners.own_name()) == 1  # as if this worker were dead
            again = await claim_one(it.other)
            it.dispatcher.gate.set()
            await eventually(lambda: not it.consumer._running)
            assert it.files(id) == {id.input_name}
            assert (await it.store.job(id)).state is JobState.ACTIVE
            await it.other.give_back(again)

    run(test())


def test_a_job_is_cancelled_while_it_runs(server: StoreServer, directory: Path) -> None:
    async def test() -> None:
        async with worker(server, directory) as it, it.running():
            it.dispatcher.gate.clear()
            id = await it.submit()
            await eventually(lambda: it.dispatcher.running)
            hub = asyncio.create_task(Hub(it.store, it.consumer.stop_job).run())
            await eventually(lambda: server.client.pubsub_numsub(f"{PREFIX}cancel:{it.store.owner}")[0][1])
            await it.store.cancel_job(id)
            await it.until(id, JobState.CANCELLED)
            hub.cancel()
            await asyncio.wait([hub])
            assert it.dispatcher.was_stopped
            assert it.files(id) == {id.input_name}

    run(test())


def test_a_cancellation_whose_hint_was_lost_is_learnt_with_the_next_renewal(
    server: StoreServer, directory: Path
) -> None:
    async def test() -> None:
        async with worker(server, directory) as it, it.running():
            it.dispatcher.gate.clear()
            id = await it.submit()
            await eventually(lambda: it.dispatcher.running)
            await it.store.cancel_job(id)
            await it.until(id, JobState.CANCELLED)
            assert it.dispatcher.was_stopped

    run(test())


def test_a_job_that_is_cancelled_before_its_first_step_ends(server: StoreServer, directory: Path) -> None:
    class Hasty(Store):
        """Each job is cancelled at the moment of its claim."""

        async def claim(self, *args: Any) -> Any:
            claims, idle_s = await super().claim(*args)
            for each in claims:
                await self.cancel_job(each.id)
            return claims, idle_s

    class Stopping(dict[tuple[str, int], Any]):
        """The hint about the cancellation comes when the job has just been taken."""

        def __setitem__(self, key: tuple[str, int], taken: Any) -> None:
            super().__setitem__(key, taken)
            taken.task.cancel()

    async def test() -> None:
        async with worker(server, directory, at_once=1) as it:
            it.store.__class__ = Hasty
            it.consumer._running = Stopping()
            async with it.running():
                for _ in range(3):  # each needs the one place
                    id = await it.submit()
                    await it.until(id, JobState.CANCELLED)
            assert it.dispatcher.asked == []

    run(test())


def test_the_result_of_a_job_that_is_cancelled_while_it_is_reported_is_removed(
    server: StoreServer, directory: Path
) -> None:
    class Slow(Store):
        """A job is cancelled when its result is there, and before the report."""

        async def complete(self, *_: Any) -> bool:
            it.consumer.stop_job(str(id))
            await asyncio.sleep(60)
            return True

    async def test() -> None:
        nonlocal it, id
        async with worker(server, directory) as it:
            id = await it.submit()
            it.store.__class__ = Slow
            async with it.running():
                await eventually(lambda: it.dispatcher.asked)
                await it.store.cancel_job(id)
                await it.until(id, JobState.CANCELLED)
            assert it.files(id) == {id.input_name}

    it: Worker
    id: JobId
    run(test())


def test_a_stop_gives_back_what_runs(server: StoreServer, directory: Path) -> None:
    async def test() -> None:
        async with worker(server, directory) as it:
            it.dispatcher.gate.clear()
            ids = [await it.submit() for _ in range(4)]
            async with it.running():
                await eventually(lambda: it.dispatcher.running == 3)
            jobs = [await it.store.job(id) for id in ids]
            assert {(job.state, job.tries) for job in jobs} == {(JobState.WAITING, 0)}
            assert (it.dispatcher.running, it.engine.users) == (0, 0)
            claims, _ = await it.other.claim(new_id(), KINDS, 4)
            assert [each.id for each in claims] == ids

    run(test())


def test_the_jobs_of_a_dead_process_of_this_machine_are_taken_over_at_once(
    server: StoreServer, directory: Path
) -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    machine = owners.own_name().partition(":")[0]
    dead = f"{machine}:{ended.pid}:1"

    async def test() -> None:
        async with worker(server, directory) as it, stores(server, dead) as (lost,):
            ids = [await it.submit() for _ in range(3)]
            await lost.claim("1", KINDS, 2)
            elsewhere = await claim_one(it.other)
            async with it.running():
                for id in ids[:2]:
                    await it.until(id, JobState.COMPLETED)
                    assert (await it.store.job(id)).tries == 2
                await it.until(ids[2], JobState.ACTIVE)  # its owner is on another machine
            await it.other.give_back(elsewhere)

    with capture_logs() as events:
        run(test())
    assert {"event": "jobs_released", "owner": dead, "jobs": 2, "log_level": "warning"} in events


def test_a_long_job_keeps_its_lease(server: StoreServer, directory: Path) -> None:
    async def test() -> None:
        async with worker(server, directory, lease_s=3) as it, it.running():
            it.dispatcher.gate.clear()
            id = await it.submit()
            begun = await eventually(lambda: server.client.zscore(f"{PREFIX}lease", str(id)))
            await eventually(lambda: server.client.zscore(f"{PREFIX}lease", str(id)) > begun)
            await eventually(lambda: server.client.hget(f"{PREFIX}job:{id}", "progress"))
            job = await it.store.job(id)
            assert (job.state, job.tries, job.progress) == (JobState.ACTIVE, 1, 25)

    run(test())


def is_away(store: Store) -> bool:
    """Whether it has been away for longer than the grace."""
    try:
        store.raise_if_away()
    except StoreAway:
        return True
    return False


def test_a_result_is_reported_when_the_store_is_back(server: StoreServer, directory: Path) -> None:
    async def test() -> None:
        async with worker(server, directory, grace_s=1) as it, it.running():
            it.dispatcher.gate.clear()
            id = await it.submit()
            await eventually(lambda: it.dispatcher.running)
            server.kill()
            it.dispatcher.gate.set()
            await eventually(lambda: not it.dispatcher.running)
            await eventually(lambda: len(it.files(id)) == 2)
            await eventually(lambda: is_away(it.store))
            await asyncio.to_thread(server.start)
            await it.store.wait_until_back()
            await it.until(id, JobState.COMPLETED)
            assert (await it.store.job(id)).tries == 1
            other = await it.submit()
            await it.until(other, JobState.COMPLETED)

    with capture_logs() as events:
        run(test())
    assert {"store_away", "store_back"} <= {event["event"] for event in events}


def test_dead_consumers_are_looked_for_long_before_leases_are_renewed(
    server: StoreServer, directory: Path
) -> None:
    # The process id of this test, in use by a process that was started at another time.
    dead = f"{owners.own_name().rpartition(':')[0]}:1"

    async def test() -> None:
        async with worker(server, directory) as it, stores(server, dead) as (lost,):
            stand_ins: Any = it.dispatcher, it.engine
            it.consumer = Consumer(it.store, it.blobs, *stand_ins, OPERATIONS, at_once=0, lease_s=3600)
            async with it.running():
                id = await it.submit()
                for request in ("1", "2"):  # the first may be found by the first look, the second is not
                    assert (await lost.claim(request, KINDS, 1))[0]
                    await it.until(id, JobState.WAITING)

    run(test())


def test_a_consumer_that_stops_at_any_moment_holds_no_job(server: StoreServer, directory: Path) -> None:
    async def test() -> None:
        async with worker(server, directory) as it:
            it.dispatcher.gate.clear()
            id = await it.submit()
            for steps in range(60):
                async with stores(server, f"worker {steps}") as (store,):
                    stand_ins: Any = it.dispatcher, it.engine
                    it.consumer = Consumer(store, it.blobs, *stand_ins, OPERATIONS, at_once=3, lease_s=60)
                    async with it.running():
                        for _ in range(steps):
                            await asyncio.sleep(0)
                job = await it.store.job(id)
                assert (job.state, job.tries) == (JobState.WAITING, 0), f"after {steps} steps"

    run(test())
