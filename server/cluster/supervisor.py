"""Supervisors: one keeps an engine alive for its worker, always or while the engine is wanted."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TypeVar

from server.cluster import sandbox
from server.cluster.backoff import Backoff
from server.cluster.child import Child
from server.cluster.denials import Denials
from server.cluster.engine import EngineConfig
from server.cluster.flight_recorder import FlightRecorder
from server.cluster.liveness import LOOK_EVERY_S, Sign, Watch, read_state
from server.cluster.memory_files import memory_file
from server.cluster.messages import Ended, Ready, decode_notice, now_us
from server.cluster.roles import BACKGROUND, INTERACTIVE
from server.cluster.scoreboard import Cell, Row
from server.cluster.watched import keep_running
from server.cluster.work_socket import WorkSocket, receive
from server.logs import get_logger

T = TypeVar("T")

log = get_logger(__name__)

#: glibc returns large blocks to the kernel on every free and fetches them again, zeroed, page by page, for
#: the next image. Keeping them saves two fifths of a 20-megapixel flip (mallopt(3); ADR 0002).
MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}

#: The directory that holds the `server` package, so that an engine finds it wherever gunicorn was started.
_IMPORT_ROOT = str(Path(__file__).parents[2])

#: By which part of its tasks an engine may retire early, so that not all retire at once.
_JITTER = 0.1

#: How long an engine may take to become ready, in seconds: less than gunicorn gives its worker (`timeout`).
BOOT_S = 20.0

#: How long an engine for background work is kept without work, in seconds.
IDLE_S = 60.0

#: How long an engine counts after its end, in seconds, because the next one is about to come: images that
#: crash engines must not take the machine out of its load balancer, nor have others shed meanwhile.
_REPLACEMENT_S = 2.0

#: How much is logged of what an engine has printed before it could not start, in bytes.
_OUTPUT_BYTES = 5000

#: Expiry of a running engine.
_FOR_EVER_US = 1 << 62


@dataclass(frozen=True, slots=True)
class EngineExit:
    """How an engine ended.

    Attributes:
        returncode: as `subprocess` reports it.
        task: the number of the task that was lost with it; 0 for none.
        done: how many tasks it had answered.
        stages: how many different stages of that task had ended.
        began_us: when it had begun that task, microseconds of the monotonic clock.
        traceback: of the bug of ours that ended it, or what it printed before it could not start; empty
            without either.
    """

    pid: int
    returncode: int
    task: int
    done: int
    stages: int
    began_us: int
    traceback: str = ""

    @property
    def is_planned(self) -> bool:
        """Whether it retired."""
        return self.returncode == 0 and self.task == 0 and self.done > 0


def describe_exit(returncode: int) -> dict[str, int | str]:
    """Describe how a process ended, from what `subprocess` calls its return code."""
    if returncode >= 0:
        return {"exit_code": returncode}
    try:
        return {"signal": signal.Signals(-returncode).name}
    except ValueError:  # a real-time signal has no name
        return {"signal": f"SIG{-returncode}"}


class Supervisor:
    """Keeps one engine running: starts it, waits for its end, and starts the next one.

    Args:
        work: the work socket whose engines' ends are passed on.
        row: the worker's row of the scoreboard.
        config: the limits of the engines, without descriptors; it says which role they have.
        environ: the environment of the engine; it may override the malloc settings.
    """

    def __init__(self, work: WorkSocket, row: Row, config: EngineConfig, environ: Mapping[str, str]) -> None:
        self._work = work
        self._row = row
        self._config = config
        self._role = BACKGROUND if config.is_background else INTERACTIVE
        self._environ = {**MALLOC_SETTINGS, **environ}
        self._first_attempt = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._process: Child | None = None

    @property
    def is_ready(self) -> bool:
        """Whether there is an engine, or was one a moment ago and the next one is about to come."""
        return now_us() < self._row[self._role.counts_until_us]

    async def start(self) -> None:
        """Start supervising; returns when the first engine is ready, or has failed to start.

        A failure is not raised: a worker without an engine still serves with the engines of others, and its
        own is tried again and again.
        """
        self.start_soon()
        await self._first_attempt.wait()

    def start_soon(self) -> None:
        """Start supervising; returns at once."""
        self._is_stopping = False
        self._task = asyncio.create_task(keep_running("supervisor", self._supervise))

    async def stop(self, *, at_once: bool = False) -> None:
        """Stop the engine after its current task, or at once: then the task's worker takes it for lost."""
        if self._task is not None:
            if not self._is_stopping:  # a second time would end its wait for the engine
                self._is_stopping = True
                self._task.cancel()
            if at_once and self._process is not None:
                self._process.kill()
            await asyncio.wait([self._task])

    async def _supervise(self) -> None:
        try:
            await self._run_engines()
        finally:
            self._first_attempt.set()  # after a bug of ours too: the worker must not wait for it

    async def _run_engines(self) -> None:
        backoff = Backoff()
        clock = asyncio.get_running_loop().time
        while True:
            started_s = clock()
            did_work = False
            facts: dict[str, int | str]
            try:
                exited = await self._run_engine()
                if exited.is_planned:
                    log.info("engine_retired", role=self._role.name, pid=exited.pid, tasks=exited.done)
                    continue
                # An engine that crashed on a task had started: that is no crash loop.
                did_work = exited.done > 0 or exited.task != 0
                event, facts = "engine_died", {"pid": exited.pid, **describe_exit(exited.returncode)}
                if exited.traceback:
                    facts["traceback"] = exited.traceback
            except OSError as error:  # no process or descriptor is available at the moment
                event, facts = "engine_spawn_failed", {"error": str(error)}
            self._row[Cell.ENGINE_DEATHS] += 1
            lived_s = clock() - started_s
            delay_s = backoff.delay_s(lived_s, did_work=did_work)
            log.error(event, role=self._role.name, **facts, lived_s=round(lived_s, 3), restart_in_s=delay_s)
            self._first_attempt.set()
            await asyncio.sleep(delay_s)

    async def _run_engine(self) -> EngineExit:
        """Run one engine to its end and report how it ended; cancelling this stops it after its task."""
        started_us = now_us()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, contextlib.ExitStack() as held:
            with theirs, FlightRecorder.create() as file:
                output = held.enter_context(memory_file("engine-output"))
                recorder = FlightRecorder(file)
                process = self._process = self._spawn(theirs.fileno(), file.fileno(), output.fileno())
            try:
                self._row[Cell.ENGINE_STARTS] += 1
                ours.setblocking(False)  # noqa: FBT003 the standard library has no other way
                notice, listeners = await self._first_notice(ours, process, recorder)
                traceback = "" if notice else _end_of_text(output)
                output.close()
                denials = None
                if listeners:
                    denials = held.enter_context(
                        Denials(listeners[0], partial(self._deny, process, recorder))
                    )
                if isinstance(notice, Ready):
                    if self._config.is_jailed:
                        sandbox.limit_descriptors(process.pid)
                    self._row[self._role.pid] = process.pid
                    self._row[self._role.counts_until_us] = _FOR_EVER_US
                    self._log_online(process, started_us, notice)
                    self._first_attempt.set()
                returncode = await self._end_of(process, recorder)
                if denials and denials.syscall:
                    returncode = -signal.SIGSYS  # it was killed for that, which is no accident
                elif returncode == -signal.SIGSYS:  # without a listener the kernel does not say for what
                    self._log_violation(process, recorder, None)
                if notice and not isinstance(notice, Ended):
                    notice, _ = _read_notice(ours)
                if isinstance(notice, Ended):
                    traceback = notice.traceback
                exited = EngineExit(
                    process.pid,
                    returncode,
                    recorder.task,
                    recorder.done,
                    recorder.stages,
                    recorder.began_us,
                    traceback,
                )
                self._publish(exited)
            finally:
                self._withdraw()
                ours.close()  # stops the engine if it is still there
                await self._end_of(process, recorder)
                self._process = None
        return exited

    async def _first_notice(
        self, control: socket.socket, process: Child, recorder: FlightRecorder
    ) -> tuple[Ready | Ended | None, list[int]]:
        """Wait for what an engine says first, and return it with the descriptors that come with it.

        It is None if the engine has died; one that takes too long, stopped or hanging, is killed.
        """
        loop, is_readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(control, is_readable.set)
        try:
            async with asyncio.timeout(BOOT_S):
                await self._while_watched(process, recorder, is_readable.wait)
        except TimeoutError:
            process.kill()
            return None, []
        finally:
            loop.remove_reader(control)
        return _read_notice(control, max_files=1)

    def _log_online(self, process: Child, started_us: int, ready: Ready) -> None:
        boot_ms = (now_us() - started_us) // 1000
        log.info("engine_online", role=self._role.name, pid=process.pid, boot_ms=boot_ms)
        if ready.missing:
            log.warning("sandbox_partial", role=self._role.name, pid=process.pid, missing=list(ready.missing))

    def _deny(self, process: Child, recorder: FlightRecorder, syscall: str) -> None:
        """End an engine that has made a system call which its filter denies."""
        process.kill()
        self._log_violation(process, recorder, syscall)

    def _log_violation(self, process: Child, recorder: FlightRecorder, syscall: str | None) -> None:
        log.error(
            "sandbox_violation", role=self._role.name, pid=process.pid, syscall=syscall, task=recorder.task
        )

    async def _end_of(self, process: Child, recorder: FlightRecorder) -> int:
        """Wait for the end of an engine and return its return code; one that hangs is killed."""
        return await self._while_watched(process, recorder, process.wait)

    async def _while_watched(
        self, process: Child, recorder: FlightRecorder, wait: Callable[[], Awaitable[T]]
    ) -> T:
        """Wait for something that its end ends too, and kill an engine that hangs meanwhile."""
        config = self._config
        if not config.hung_after_s:
            return await wait()
        watch = Watch(config.hung_after_s, config.timeout_s, is_background=config.is_background)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    return await wait()
            seen = read_state(process.pid)
            if seen and watch.is_hung(Sign(*seen, recorder.task, recorder.beats)):
                log.error(
                    "engine_hung", role=self._role.name, pid=process.pid, state=seen[0], task=recorder.task
                )
                self._withdraw()  # in the kernel it may take long to end
                process.kill()
                return await wait()

    def _withdraw(self) -> None:
        """Count the engine for no longer than the next one takes to come."""
        if self._row[self._role.pid]:
            self._row[self._role.counts_until_us] = now_us() + int(_REPLACEMENT_S * 1e6)
        self._row[self._role.pid] = 0

    def _publish(self, exited: EngineExit) -> None:
        """Report how the engine ended to the worker whose task was lost; the number is written last."""
        self._row[self._role.lost_pid] = exited.pid
        self._row[self._role.lost_status] = exited.returncode
        self._row[self._role.lost_stages] = exited.stages
        self._row[self._role.lost_began_us] = exited.began_us
        self._row[self._role.lost_task] = exited.task

    def _spawn(self, control: int, recorder: int, output: int) -> Child:
        work = [self._work.engine_ends[lane].fileno() for lane in self._role.lanes]
        tasks = self._config.max_tasks
        config = replace(
            self._config,
            max_tasks=tasks and max(1, round(tasks * (1 - _JITTER * random.random()))),  # noqa: S311 no secret
            work=work,
            control=control,
            recorder=recorder,
        )
        return Child.start(
            [sys.executable, "-m", "server.cluster.engine", config.encode()],
            cwd=_IMPORT_ROOT,
            env=self._environ,
            pass_fds=(*work, control, recorder),
            output=output,
        )


def _end_of_text(file: FileIO) -> str:
    """Read what is at the end of a file, such as the last lines of a traceback."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), _OUTPUT_BYTES, max(0, size - _OUTPUT_BYTES)).decode(errors="replace")


def _read_notice(control: socket.socket, max_files: int = 0) -> tuple[Ready | Ended | None, list[int]]:
    """Read what an engine has said, and the descriptors that came with it.

    It is None if the engine has said nothing, or nonsense: an image may have taken it over.
    """
    try:
        message, files = receive(control, max_files)
    except OSError:  # there is no message
        return None, []
    try:
        return decode_notice(message), files
    except ValueError:
        return None, files


class OnDemandEngines:
    """Engines that start when they are wanted, and stop when they have not been wanted for a while.

    Args:
        supervisors: one for each engine; not started.
        idle_s: how long the engines are kept without being wanted, in seconds.
    """

    def __init__(self, supervisors: Sequence[Supervisor], *, idle_s: float = IDLE_S) -> None:
        self._supervisors = supervisors
        self._idle_s = idle_s
        self._users = 0
        self._is_stopped = False
        self._has_changed = asyncio.Event()  # one of these two
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def wanted(self) -> Iterator[None]:
        """Have the engines run while the block runs; tasks may wait in their lane until one is ready."""
        self._count(+1)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(keep_running("engines_on_demand", self._run))
        try:
            yield
        finally:
            self._count(-1)

    async def stop(self) -> None:
        """Stop the engines at once, for good: a starved task could take for ever, and will be tried again."""
        self._is_stopped = True
        self._has_changed.set()
        await asyncio.gather(*(supervisor.stop(at_once=True) for supervisor in self._supervisors))
        if self._task is not None:
            await self._task

    def _count(self, users: int) -> None:
        self._users += users
        self._has_changed.set()

    async def _run(self) -> None:
        while self._users and not self._is_stopped:  # again, if they were wanted while they stopped
            for supervisor in self._supervisors:
                supervisor.start_soon()
            try:
                await self._idle()
            finally:
                await asyncio.gather(*(supervisor.stop() for supervisor in self._supervisors))

    async def _idle(self) -> None:
        """Wait until the engines have been idle for long enough, or must stop."""
        with contextlib.suppress(TimeoutError):
            while not self._is_stopped:
                self._has_changed.clear()
                async with asyncio.timeout(None if self._users else self._idle_s):
                    await self._has_changed.wait()
