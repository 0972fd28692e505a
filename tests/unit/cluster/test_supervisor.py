"""A supervisor keeps one engine alive: real processes, and operations that end them."""

import asyncio
import errno
import gc
import os
import resource
import signal
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.operations import HANGING, OPERATIONS, SAMPLE
from support.threads import no_thread

from server.cluster import supervisor as supervisor_module
from server.cluster.child import Child
from server.cluster.dispatch import Dispatcher
from server.cluster.engine import EngineConfig
from server.cluster.membership import Membership
from server.cluster.memory_files import MemoryFilePool, memory_file
from server.cluster.messages import now_us
from server.cluster.quarantine import Quarantine
from server.cluster.scoreboard import Cell
from server.cluster.supervisor import OnDemandEngines, Supervisor
from server.cluster.work_socket import Lane
from server.errors import PoisonImage, ServiceUnavailable, TooMuchWork
from server.operations.run import RunSpec

DEADLINE_S = 60.0

ENVIRON = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

CONFIG = EngineConfig(
    operations={name: operation.spec for name, operation in OPERATIONS.items()},
    nice=0,
    timeout_s=DEADLINE_S,
    memory_bytes=1 << 32,
    max_tasks=0,
    is_jailed=False,  # some operations open files to tell the test what they do
)


class Cluster:
    """One worker's supervisor and dispatcher."""

    def __init__(self, config: EngineConfig, events: list[dict[str, Any]]) -> None:
        self.membership = Membership.alone(Quarantine(60))
        self.row = self.membership.row
        self.events = events
        self.supervisor = Supervisor(self.membership.work, self.row, config, ENVIRON)
        background = replace(config, is_background=True)
        self.background_supervisor = Supervisor(self.membership.work, self.row, background, ENVIRON)
        self.pool = MemoryFilePool()
        self.dispatcher = Dispatcher(self.membership, self.pool, sample=SAMPLE)

    @property
    def engine(self) -> int:
        return self.row[Cell.ENGINE_PID]

    @property
    def background_engine(self) -> int:
        return self.row[Cell.BACKGROUND_PID]

    async def run(self, name: str, source: bytes = b"abc") -> bytes:
        """Have the engine apply an operation, and return the result."""
        with memory_file("upload") as upload:
            upload.write(source)
            async with asyncio.timeout(DEADLINE_S):
                _, result, _ = await self.dispatcher.run(upload, OPERATIONS[name], {}, 0)
        with result:
            return os.pread(result.fileno(), 1 << 20, 0)

    async def run_in_background(self, name: str, source: bytes = b"abc") -> bytes:
        """Have a background engine apply an operation, and return the result."""
        with TemporaryFile(buffering=0) as upload, TemporaryFile(buffering=0) as result:
            upload.write(source)
            async with asyncio.timeout(DEADLINE_S):
                await self.dispatcher.run_in_background(upload, result, OPERATIONS[name], {})
            return os.pread(result.fileno(), 1 << 20, 0)

    async def background_pid(self) -> int:
        """Wait for the report that the background engine is ready: its first answer may come before."""
        await self.until(lambda: self.background_engine)
        return self.background_engine

    @asynccontextmanager
    async def on_demand(self, idle_s: float = DEADLINE_S) -> AsyncIterator[OnDemandEngines]:
        """Have an engine for background work, and stop it."""
        engine = OnDemandEngines([self.background_supervisor], idle_s=idle_s)
        try:
            yield engine
        finally:
            async with asyncio.timeout(DEADLINE_S):
                await engine.stop()
            assert self.background_engine == 0

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():  # noqa: ASYNC110 it is a process that changes
                await asyncio.sleep(0.01)  # without a pause this would take its CPU

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.events if line["event"] == event]


@asynccontextmanager
async def supervised(**changes: object) -> AsyncIterator[Cluster]:
    """Start the supervisor of an engine, and stop it."""
    with capture_logs() as events:
        cluster = Cluster(replace(CONFIG, **changes), events)  # type: ignore[arg-type]
        with cluster.membership.work:
            async with asyncio.timeout(DEADLINE_S):
                await cluster.supervisor.start()
            try:
                yield cluster
            finally:
                async with asyncio.timeout(DEADLINE_S):
                    await cluster.supervisor.stop()
                assert cluster.engine == 0
                for file in cluster.pool._files:  # noqa: SLF001
                    file.close()


def until_done(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_an_engine_is_there_after_the_start_and_gone_after_the_stop() -> None:
    async def test() -> None:
        async with supervised() as cluster:
            pid = cluster.engine
            assert exists(pid)
            assert await cluster.run("copy") == b"abc"
        assert not exists(pid)
        assert (cluster.row[Cell.ENGINE_STARTS], cluster.row[Cell.ENGINE_DEATHS]) == (1, 0)

    until_done(test)


def test_the_next_engine_comes_at_once_after_a_crash_over_a_task(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervised() as cluster:
            first = cluster.engine
            mark = bytes(tmp_path / "crashed")
            assert await cluster.run("crash_once", mark) == mark
            assert cluster.engine not in {0, first}
            (died,) = cluster.logged("engine_died")
            assert (died["pid"], died["signal"], died["restart_in_s"]) == (first, "SIGSEGV", 0.0)

    until_done(test)


def test_the_log_tells_engines_of_requests_from_those_of_jobs(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervised() as cluster, cluster.on_demand() as engine:
            await cluster.run("crash_once", bytes(tmp_path / "interactive"))
            with engine.wanted():
                await cluster.run_in_background("crash_once", bytes(tmp_path / "background"))
                await cluster.until(lambda: len(cluster.logged("engine_online")) == 4)
            online = [(event["role"], event["pid"]) for event in cluster.logged("engine_online")]
            assert [role for role, _ in online] == ["interactive"] * 2 + ["background"] * 2
            died = [(event["role"], event["pid"]) for event in cluster.logged("engine_died")]
            assert died == [online[0], online[2]]

    until_done(test)


def test_a_stream_of_distinct_poison_images_does_not_delay_the_next_engine() -> None:
    async def test() -> None:
        async with supervised() as cluster:
            for number in range(3):
                with pytest.raises(PoisonImage):
                    await cluster.run("crash", b"%d" % number)
            await cluster.until(lambda: len(cluster.logged("engine_died")) == 6)
            assert [died["restart_in_s"] for died in cluster.logged("engine_died")] == [0.0] * 6
            assert cluster.row[Cell.ENGINE_DEATHS] == 6

    until_done(test)


@pytest.mark.parametrize(("name", "stages"), [("crash", 0), ("crash_later", 1)])
def test_it_is_known_whether_an_engine_crashed_while_it_read_its_source(name: str, stages: int) -> None:
    async def test() -> None:
        async with supervised() as cluster:
            sent_us = now_us()
            with pytest.raises(PoisonImage):
                await cluster.run(name)
            assert sent_us <= cluster.row[Cell.LOST_BEGAN_US] <= now_us()
            (event,) = cluster.logged("poison_image_quarantined")
            assert event["recipe"] == ("{}" if stages else "")
            await cluster.until(lambda: len(cluster.logged("engine_died")) == 2)
            assert cluster.row[Cell.LOST_STAGES] == stages

    until_done(test)


def test_an_environment_that_crashes_every_engine_blames_no_image() -> None:
    async def test() -> None:
        async with supervised() as cluster:
            for _ in range(2):
                with pytest.raises(ServiceUnavailable):
                    await cluster.run("crash_always")
            assert [event["operation"] for event in cluster.logged("engines_crash")] == ["crash_always"] * 2

    until_done(test)


def test_an_engine_that_takes_too_long_is_killed_and_replaced() -> None:
    async def test() -> None:
        async with supervised(timeout_s=0.2) as cluster:
            with pytest.raises(TooMuchWork):
                await cluster.run("hang")
            assert await cluster.run("copy") == b"abc"
            assert cluster.logged("engine_died")[0]["signal"] == "SIGALRM"

    until_done(test)


def test_an_engine_that_retires_is_no_death() -> None:
    async def test() -> None:
        async with supervised(max_tasks=1) as cluster:
            for _ in range(3):
                assert await cluster.run("copy") == b"abc"
            await cluster.until(lambda: len(cluster.logged("engine_retired")) == 3)
            assert cluster.row[Cell.ENGINE_DEATHS] == 0

    until_done(test)


def test_an_engine_that_dies_without_work_is_started_with_a_growing_delay() -> None:
    async def test() -> None:
        async with supervised(
            operations={"copy": RunSpec(1, "support.operations:no_such_function", ())}
        ) as cluster:
            await cluster.until(lambda: len(cluster.logged("engine_died")) >= 3)
            delays_s = [died["restart_in_s"] for died in cluster.logged("engine_died")]
            assert delays_s[:3] == [0.0, 0.1, 0.2]
        # Stopped while it waited, and so it stays.

    until_done(test)


def test_why_an_engine_cannot_start_is_logged_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    async def test() -> None:
        membership = Membership.alone(Quarantine(60))
        supervisor = Supervisor(membership.work, membership.row, CONFIG, {"PYTHONHOME": "/nowhere"})
        with capture_logs() as events, membership.work:
            async with asyncio.timeout(DEADLINE_S):
                await supervisor.start()
                await supervisor.stop()
        died = next(event for event in events if event["event"] == "engine_died")
        assert died["exit_code"] == 1
        assert "Fatal Python error: init_fs_encoding" in died["traceback"]

    until_done(test)
    assert capfd.readouterr() == ("", "")


def test_an_engine_that_hangs_before_it_is_ready_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "BOOT_S", 0.2)

    async def test() -> None:
        async with supervised(operations={"copy": HANGING}) as cluster:
            assert cluster.logged("engine_died")[0]["signal"] == "SIGKILL"
            assert not cluster.logged("engine_online")

    until_done(test)


def test_a_stop_waits_for_the_task_in_hand(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    async def test() -> None:
        async with supervised() as cluster:
            pid = cluster.engine
            run = asyncio.ensure_future(cluster.run("wait", bytes(pipe)))
            writers: list[int] = []
            await cluster.until(lambda: writers or opened_for(pipe, writers))
            stop = asyncio.ensure_future(cluster.supervisor.stop())
            await cluster.until(lambda: cluster.engine == 0)
            assert exists(pid)
            os.close(writers[0])
            assert await run == bytes(pipe)
            await stop
            assert not exists(pid)

    until_done(test)


def opened_for(pipe: Path, writers: list[int]) -> bool:
    """Open a pipe for writing once a process reads from it."""
    try:
        writers.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def test_a_worker_without_descriptors_starts_its_engine_later() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def test() -> None:
        with capture_logs() as events:
            cluster = Cluster(CONFIG, events)
            with cluster.membership.work:
                highest = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 names are numbers
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
                fillers = []
                try:
                    with pytest.raises(OSError, match="Too many"):  # noqa: PT012 as many as there are
                        while True:
                            fillers.append(memory_file("filler"))
                    await cluster.supervisor.start()
                    assert "Too many" in cluster.logged("engine_spawn_failed")[0]["error"]
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                    for filler in fillers:
                        filler.close()
                await cluster.until(lambda: cluster.engine)
                await cluster.supervisor.stop()

    until_done(test)


def test_an_engine_that_cannot_be_started_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file(_name: str) -> FileIO:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(supervisor_module, "memory_file", no_file)

    async def test() -> None:
        async with supervised() as cluster:
            assert cluster.logged("engine_spawn_failed")

    gc.collect()  # what earlier tests have left is not meant
    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always")
        until_done(test)
        gc.collect()
    assert not left


def test_what_c_code_prints_before_an_engine_could_start_is_logged() -> None:
    async def test() -> None:
        operations = {"copy": replace(OPERATIONS["copy"].spec, prepare="support.operations:abort")}
        async with supervised(operations=operations) as cluster:
            died = cluster.logged("engine_died")[0]
            assert died["signal"] == "SIGABRT"
            assert died["traceback"] == "a library says why"

    until_done(test)


def test_a_worker_that_can_start_no_thread_has_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_thread)

    async def test() -> None:
        async with supervised() as cluster:
            assert await cluster.run("copy") == b"abc"
            os.kill(cluster.engine, signal.SIGKILL)
            await cluster.until(lambda: len(cluster.logged("engine_online")) == 2)
            assert await cluster.run("copy") == b"abc"

    until_done(test)


class Faulty:
    """Stands in for `Child.start`: raises so many times, then starts children and notes their pids."""

    def __init__(self, faults: int) -> None:
        self._faults = faults
        self._start = Child.start
        self.pids: list[int] = []

    def __call__(self, command: Sequence[str], **options: Any) -> Child:  # noqa: ANN401 those of Child.start
        if self._faults:
            self._faults -= 1
            raise ZeroDivisionError("a bug of ours")
        child = self._start(command, **options)
        self.pids.append(child.pid)
        return child


def test_a_bug_in_a_supervisor_costs_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Child, "start", Faulty(2))

    async def test() -> None:
        async with supervised() as cluster:
            await cluster.until(lambda: cluster.engine)
            assert await cluster.run("copy") == b"abc"
            assert [event["part"] for event in cluster.logged("part_failed")] == ["supervisor"] * 2

    until_done(test)


def test_a_bug_while_an_engine_starts_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Faulty(0)
    monkeypatch.setattr(Child, "start", started)
    first_notice = Supervisor._first_notice  # noqa: SLF001
    faults = [ZeroDivisionError("a bug of ours")]

    async def fail_once(self: Supervisor, *args: Any) -> Any:  # noqa: ANN401 those of _first_notice
        if faults:
            raise faults.pop()
        return await first_notice(self, *args)

    monkeypatch.setattr(Supervisor, "_first_notice", fail_once)

    async def test() -> None:
        async with supervised() as cluster:
            await cluster.until(lambda: cluster.engine)
            first, second = started.pids
            assert cluster.engine == second
            assert not exists(first)

    until_done(test)


def test_a_bug_costs_no_job_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [ZeroDivisionError("a bug of ours")]
    idle = OnDemandEngines._idle  # noqa: SLF001

    async def fail_once(self: OnDemandEngines) -> None:
        if faults:
            raise faults.pop()
        await idle(self)

    monkeypatch.setattr(OnDemandEngines, "_idle", fail_once)

    async def test() -> None:
        async with supervised() as cluster, cluster.on_demand() as engine:
            with engine.wanted():
                assert await cluster.run_in_background("copy") == b"abc"
            assert [event["part"] for event in cluster.logged("part_failed")] == ["engines_on_demand"]

    until_done(test)


@pytest.mark.parametrize(("replacement_s", "is_ready"), [(3600.0, True), (0.0, False)])
def test_a_worker_is_ready_while_its_engine_is_being_replaced_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, replacement_s: float, *, is_ready: bool
) -> None:
    monkeypatch.setattr(supervisor_module, "_REPLACEMENT_S", replacement_s)

    async def test() -> None:
        async with supervised() as cluster:
            assert cluster.supervisor.is_ready
            monkeypatch.setattr(Child, "start", Faulty(1 << 30))  # the next engine never comes
            os.kill(cluster.engine, signal.SIGKILL)
            await cluster.until(lambda: cluster.logged("part_failed"))
            assert cluster.supervisor.is_ready == is_ready
            # Admission counts it for as long, and nothing says that it is there.
            assert (cluster.row[Cell.ENGINE_COUNTS_UNTIL_US] > now_us()) == is_ready
            assert cluster.engine == 0

    until_done(test)


def test_a_worker_that_never_had_an_engine_is_not_ready() -> None:
    async def test() -> None:
        async with supervised(
            operations={"copy": RunSpec(1, "support.operations:no_such_function", ())}
        ) as cluster:
            assert not cluster.supervisor.is_ready

    until_done(test)


#: Looks come once a second, as do the signs of life of an idle engine.
HUNG_AFTER_S = 2.0


def test_a_stopped_engine_is_killed_and_its_task_tried_again(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    async def test() -> None:
        async with supervised(hung_after_s=HUNG_AFTER_S) as cluster:
            first = cluster.engine
            run = asyncio.ensure_future(cluster.run("wait", bytes(pipe)))
            writers: list[int] = []
            await cluster.until(lambda: writers or opened_for(pipe, writers))
            os.kill(first, signal.SIGSTOP)
            await cluster.until(lambda: len(cluster.logged("engine_online")) == 2)
            await cluster.until(lambda: len(writers) == 2 or opened_for(pipe, writers))  # by the next engine
            for writer in writers:
                os.close(writer)
            assert await run == bytes(pipe)
            (hung,) = cluster.logged("engine_hung")
            assert (hung["pid"], hung["state"], hung["task"] > 0) == (first, "T", True)
            (died,) = cluster.logged("engine_died")
            assert (died["pid"], died["signal"]) == (first, "SIGKILL")
            assert not exists(first)

    until_done(test)


def test_a_stopped_engine_without_a_task_is_replaced() -> None:
    async def test() -> None:
        async with supervised(hung_after_s=HUNG_AFTER_S) as cluster:
            first = cluster.engine
            os.kill(first, signal.SIGSTOP)
            await cluster.until(lambda: len(cluster.logged("engine_online")) == 2)
            assert not exists(first)
            assert await cluster.run("copy") == b"abc"

    until_done(test)


def test_an_engine_that_is_stopped_while_it_starts_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Faulty(0)

    def start(command: Sequence[str], **options: Any) -> Child:  # noqa: ANN401 those of Child.start
        child = started(command, **options)
        if len(started.pids) == 1:
            os.kill(child.pid, signal.SIGSTOP)
        return child

    monkeypatch.setattr(Child, "start", start)

    async def test() -> None:
        async with supervised(hung_after_s=HUNG_AFTER_S) as cluster:
            await cluster.until(lambda: cluster.engine)
            assert await cluster.run("copy") == b"abc"
            (hung,) = cluster.logged("engine_hung")
            assert [hung["pid"], cluster.engine] == started.pids

    until_done(test)


def test_a_stop_does_not_wait_for_a_stopped_engine() -> None:
    async def test() -> None:
        async with supervised(hung_after_s=HUNG_AFTER_S) as cluster:
            pid = cluster.engine
            os.kill(pid, signal.SIGSTOP)
        assert not exists(pid)

    until_done(test)


def test_an_idle_engine_is_let_live() -> None:
    async def test() -> None:
        async with supervised(hung_after_s=HUNG_AFTER_S) as cluster, cluster.on_demand() as engine:
            with engine.wanted():
                await cluster.run_in_background("copy")
                background = await cluster.background_pid()
                os.kill(background, signal.SIGSTOP)  # shows that engines have been looked at often enough
                await cluster.until(lambda: cluster.logged("engine_hung"))
            assert [event["pid"] for event in cluster.logged("engine_hung")] == [background]

    until_done(test)


@pytest.mark.parametrize("role", ["interactive", "background"])
def test_an_engine_that_disarms_its_timer_and_works_on_is_killed(role: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            supervised(hung_after_s=1.0, timeout_s=1.0) as cluster,
            cluster.on_demand() as engine,
        ):
            mark = bytes(tmp_path / "spins")
            with engine.wanted() if role == "background" else nullcontext():
                first = cluster.engine if role == "interactive" else await cluster.background_pid()
                ask = cluster.run if role == "interactive" else cluster.run_in_background
                run = asyncio.ensure_future(ask("spin_untimed_once", mark))
                try:
                    await cluster.until(lambda: cluster.logged("engine_hung"))
                finally:
                    with suppress(ProcessLookupError):
                        os.kill(first, signal.SIGKILL)  # or the run would last for ever
                    assert await run == mark
            (hung,) = cluster.logged("engine_hung")
            assert (hung["role"], hung["pid"], hung["task"] > 0) == (role, first, True)
            assert not exists(first)

    until_done(test)


# --- background work --------------------------------------------------------------------------------------


class Waiting:
    """A background task that waits until it is told to finish."""

    def __init__(self, cluster: Cluster, pipe: Path) -> None:
        os.mkfifo(pipe)
        self._cluster = cluster
        self._pipe = pipe
        self._writers: list[int] = []
        self._run = asyncio.ensure_future(cluster.run_in_background("wait", bytes(pipe)))

    async def has_started(self) -> None:
        await self._cluster.until(lambda: self._writers or opened_for(self._pipe, self._writers))

    async def finish(self) -> None:
        os.close(self._writers.pop())
        assert await self._run == bytes(self._pipe)

    async def abandon(self) -> None:
        os.close(self._writers.pop())
        self._run.cancel()
        await asyncio.wait([self._run])


def test_a_background_engine_runs_under_sched_idle_while_it_is_wanted_and_no_longer() -> None:
    async def test() -> None:
        async with supervised() as cluster, cluster.on_demand(idle_s=0) as engine:
            pids = []
            for _ in range(2):
                with engine.wanted():
                    assert await cluster.run_in_background("copy") == b"abc"
                    pids.append(await cluster.background_pid())
                    assert os.sched_getscheduler(pids[-1]) == os.SCHED_IDLE
                await cluster.until(lambda: not exists(pids[-1]))
            assert len({0, cluster.engine, *pids}) == 4
            assert os.sched_getscheduler(cluster.engine) == os.SCHED_OTHER
            assert (cluster.row[Cell.ENGINE_STARTS], cluster.row[Cell.ENGINE_DEATHS]) == (3, 0)
            assert (cluster.row[Cell.TASKS], cluster.row[Cell.BACKGROUND_TASKS]) == (0, 2)

    until_done(test)


def test_a_background_engine_stays_for_a_while_and_is_gone_after_the_stop() -> None:
    async def test() -> None:
        async with supervised() as cluster, cluster.on_demand() as engine:
            pids = set()
            for _ in range(2):
                with engine.wanted(), engine.wanted():
                    await cluster.run_in_background("copy")
                    pids.add(await cluster.background_pid())
            (pid,) = pids
            await engine.stop()
            assert not exists(pid)
            with engine.wanted():  # too late
                pass
        assert cluster.row[Cell.ENGINE_STARTS] == 2

    until_done(test)


@pytest.mark.parametrize("is_idle", [False, True])
def test_a_stop_for_good_does_not_wait_for_a_background_task(tmp_path: Path, *, is_idle: bool) -> None:
    async def test() -> None:
        async with supervised() as cluster, cluster.on_demand(idle_s=0) as engine:
            run = Waiting(cluster, tmp_path / "pipe")
            with engine.wanted():
                await run.has_started()
                pid = await cluster.background_pid()
                if not is_idle:
                    await engine.stop()
            await engine.stop()  # while it stops by itself, or once more
            assert not exists(pid)
            await run.abandon()

    until_done(test)


def test_a_stop_that_must_not_wait_leaves_no_zombie_of_one_that_waits(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervised() as cluster:
            supervisor = cluster.background_supervisor
            await supervisor.start()
            pid = cluster.background_engine
            run = Waiting(cluster, tmp_path / "pipe")
            await run.has_started()
            waits_for_task = asyncio.ensure_future(supervisor.stop())
            await cluster.until(lambda: cluster.background_engine == 0)
            await supervisor.stop(at_once=True)
            assert not exists(pid)
            await waits_for_task
            await run.abandon()

    until_done(test)


def test_a_stop_comes_through_while_the_supervisor_looks_after_its_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A look begins with a time-out, which cancels the task too, and is forgotten."""
    monkeypatch.setattr(supervisor_module, "LOOK_EVERY_S", 0.01)

    async def test() -> None:
        async with supervised(hung_after_s=60) as cluster:
            task = cluster.supervisor._task  # noqa: SLF001 nothing else tells when it looks
            assert task is not None
            async with asyncio.timeout(DEADLINE_S):
                while not task.cancelling():  # noqa: ASYNC110 it lasts for one turn of the loop
                    await asyncio.sleep(0)
                await cluster.supervisor.stop()
            assert task.done()

    until_done(test)


def test_an_engine_that_is_wanted_while_it_stops_comes_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervised() as cluster, cluster.on_demand(idle_s=0) as engine:
            run = Waiting(cluster, tmp_path / "pipe")
            with engine.wanted():
                await run.has_started()
                await cluster.background_pid()
            await cluster.until(lambda: cluster.background_engine == 0)
            with engine.wanted():
                await run.finish()
                assert await cluster.run_in_background("copy") == b"abc"
        assert cluster.row[Cell.ENGINE_STARTS] == 3

    until_done(test)


def test_an_interactive_task_does_not_wait_for_a_background_task(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervised() as cluster, cluster.on_demand() as engine:
            with engine.wanted():
                run = Waiting(cluster, tmp_path / "pipe")
                await run.has_started()
                queued = asyncio.ensure_future(cluster.run_in_background("copy"))
                for _ in range(3):
                    assert await cluster.run("copy") == b"abc"
                assert (cluster.row[Cell.TASKS], cluster.row[Cell.BACKGROUND_TASKS]) == (3, 0)
                await run.finish()
                assert await queued == b"abc"
            assert (cluster.row[Cell.TASKS], cluster.row[Cell.BACKGROUND_TASKS]) == (3, 2)

    until_done(test)


def test_a_background_task_that_uses_too_much_cpu_time_is_ended() -> None:
    async def test() -> None:
        async with supervised(timeout_s=0.05) as cluster, cluster.on_demand() as engine:
            with engine.wanted():
                with pytest.raises(TooMuchWork):
                    await cluster.run_in_background("spin")
                assert await cluster.run_in_background("copy") == b"abc"
                assert cluster.logged("engine_died")[0]["signal"] == "SIGPROF"

    until_done(test)


def test_a_task_that_yields_is_done_by_a_background_engine_that_starts_for_it() -> None:
    async def test() -> None:
        async with supervised() as cluster, cluster.on_demand(idle_s=0) as background:
            dispatcher = Dispatcher(
                cluster.membership,
                cluster.pool,
                sample=SAMPLE,
                background=background,
            )
            with memory_file("upload") as upload:
                upload.write(b"abc")
                async with asyncio.timeout(DEADLINE_S):
                    done, result, _ = await dispatcher.run(
                        upload, OPERATIONS["copy"], {}, 0, lane=Lane.YIELDING
                    )
            with result:
                assert os.pread(result.fileno(), 100, 0) == b"abc"
            (online,) = [line for line in cluster.logged("engine_online") if line["role"] == "background"]
            assert done.engine_pid == online["pid"]
            await cluster.until(lambda: not cluster.background_engine)  # it is wanted no more

    until_done(test)


def test_a_background_task_that_only_waits_is_not_ended(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervised(timeout_s=0.2) as cluster, cluster.on_demand() as engine:
            with engine.wanted():
                run = Waiting(cluster, tmp_path / "pipe")
                await run.has_started()
                with pytest.raises(TooMuchWork):  # shows that the limit has passed
                    await cluster.run("hang")
                await run.finish()
            await cluster.until(lambda: cluster.logged("engine_died"))
            assert [died["signal"] for died in cluster.logged("engine_died")] == ["SIGALRM"]

    until_done(test)


def test_a_background_task_whose_engine_crashed_goes_to_the_next_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervised() as cluster, cluster.on_demand() as engine:
            with engine.wanted():
                mark = bytes(tmp_path / "crashed")
                assert await cluster.run_in_background("crash_once", mark) == mark
                with pytest.raises(PoisonImage):
                    await cluster.run_in_background("crash")
            await cluster.until(lambda: cluster.row[Cell.ENGINE_DEATHS] == 3)

    until_done(test)
