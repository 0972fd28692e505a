"""An engine in its jail may compute and nothing else: real engines that try."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import pytest
from structlog.testing import capture_logs
from support.escapes import ESCAPES
from support.mapped import mapped
from support.specimens import encoded, natural, with_chunk

from server.cluster.dispatch import Dispatcher, EngineBug
from server.cluster.engine import EngineConfig
from server.cluster.membership import Membership
from server.cluster.memory_files import MemoryFilePool
from server.cluster.quarantine import Quarantine
from server.cluster.scoreboard import Cell
from server.cluster.supervisor import Supervisor
from server.cluster.work_socket import Lane, send
from server.engines import engine_config
from server.errors import PoisonImage
from server.imaging.codecs import CODECS, OUTPUT_FORMATS, Format
from server.imaging.geometry import Turn
from server.imaging.limits import Limits
from server.imaging.pipeline import process
from server.imaging.recipe import Recipe
from server.operations.images import OPERATIONS
from server.operations.registry import Operation, Outcome, Parameters
from server.settings import Settings

DEADLINE_S = 60.0

ENVIRON = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


class Tried(Outcome):
    """Nothing has happened."""

    media_type: Literal["text/plain"]


ATTEMPT = Operation(
    name="attempt",
    version=1,
    summary="For tests",
    description="For tests.",
    parameters=Parameters,
    outcome=Tried,
    accepts=("text/plain",),
    refusals=(),
    stages=("try",),
    run="support.escapes:attempt",
)

CONFIG = EngineConfig(
    operations={"attempt": ATTEMPT.spec}, nice=0, timeout_s=DEADLINE_S, memory_bytes=1 << 32, max_tasks=0
)

#: By which system call each attempt is noticed; C libraries and machines differ in some.
VIOLATIONS = {
    "read a file": {"openat", "open"},
    "read its own memory map": {"openat", "open"},
    "open what it may only read for writing": {"openat", "open"},
    "list the processes": {"openat", "open"},
    "look whether a file exists": {"newfstatat", "stat"},
    "remove a file": {"unlink", "unlinkat"},
    "make a memory file": {"memfd_create"},
    "open a socket": {"socket"},
    "connect a socket": {"connect"},
    "bind a socket": {"bind"},
    "shut the work socket down": {"shutdown"},
    "make the work socket block": {"fcntl"},
    "shrink the work socket": {"setsockopt"},
    "control a device": {"ioctl"},
    "fork": {"clone", "fork"},
    "start a thread": {"clone3", "clone", "rt_sigaction"},
    "run a program": {"execve"},
    "signal its worker": {"kill"},
    "signal everything": {"kill"},
    "signal by descriptor": {"pidfd_open"},
    "trace a process": {"ptrace"},
    "read the memory of its worker": {"process_vm_readv"},
    "use io_uring": {"io_uring_setup"},
    "load a program into the kernel": {"bpf"},
    "leave a namespace": {"unshare"},
    "enter a namespace": {"setns"},
    "mount": {"mount"},
    "change the root": {"chroot"},
    "change a limit": {"prlimit64", "setrlimit"},
    "change its priority": {"setpriority"},
    "choose its cores": {"sched_setaffinity"},
    "become another user": {"setuid"},
    "rename itself": {"prctl"},
    "ignore the time limit": {"rt_sigaction"},
    "map memory for code": {"mmap"},
    "make memory executable": {"mprotect"},
    "poison a page": {"madvise"},
    "take a page offline": {"madvise"},
    "merge its pages with those of others": {"madvise"},
}


class Cluster:
    """One worker's supervisor and dispatcher."""

    def __init__(self, config: EngineConfig, events: list[dict[str, Any]]) -> None:
        self.membership = Membership.alone(Quarantine(60))
        self.events = events
        self.supervisor = Supervisor(self.membership.work, self.membership.row, config, ENVIRON)
        self.pool = MemoryFilePool()
        self.dispatcher = Dispatcher(self.membership, self.pool, sample=Path(__file__))

    @property
    def engine(self) -> Path:
        """What the kernel tells of the engine."""
        return Path(f"/proc/{self.membership.row[Cell.ENGINE_PID]}")

    async def run(self, operation: Operation, source: bytes, **parameters: object) -> bytes:
        """Have the engine apply an operation, and return the result; both files are used again."""
        upload = self.pool.take()
        upload.write(source)
        upload.truncate()
        try:
            async with asyncio.timeout(DEADLINE_S):
                _, result, _ = await self.dispatcher.run(upload, operation, parameters, 0)
        finally:
            self.pool.give_back(upload)
        data = os.pread(result.fileno(), 1 << 20, 0)
        self.pool.give_back(result)
        return data

    async def attempt(self, name: str) -> bytes:
        return await self.run(ATTEMPT, name.encode())

    async def logged(self, event: str, count: int) -> list[dict[str, Any]]:
        """Wait until an event was logged as often as it should be."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found = [line for line in self.events if line["event"] == event]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.01)  # without a pause this would take the engine's CPU


@asynccontextmanager
async def jailed(config: EngineConfig = CONFIG) -> AsyncIterator[Cluster]:
    """Start the supervisor of an engine, and stop it."""
    with capture_logs() as events:
        cluster = Cluster(config, events)
        with cluster.membership.work:
            async with asyncio.timeout(DEADLINE_S):
                await cluster.supervisor.start()
            try:
                yield cluster
            finally:
                async with asyncio.timeout(DEADLINE_S):
                    await cluster.supervisor.stop()
                for file in cluster.pool._files:  # noqa: SLF001
                    file.close()


def until_done(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def prepared(function: str) -> EngineConfig:
    """Return a configuration whose engines call a function before they enter the jail."""
    spec = replace(ATTEMPT.spec, prepare=f"support.escapes:{function}")
    return replace(CONFIG, operations={"attempt": spec})


def descriptors(engine: Path) -> list[str]:
    """Return what an engine has open, standard input, output and error first; nothing while that changes."""
    try:
        links = {int(link.name): str(link.readlink()) for link in (engine / "fd").iterdir()}
        return [links.pop(number) for number in range(3)] + sorted(
            target.partition(":")[0] for target in links.values()
        )
    except (KeyError, OSError):
        return []


def test_every_attempt_is_tried_here() -> None:
    assert ESCAPES.keys() - VIOLATIONS.keys() == {"abort", "ask for a module"}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_an_engine_that_does_more_than_compute_is_ended(name: str) -> None:
    async def test() -> None:
        async with jailed() as cluster:
            with pytest.raises(PoisonImage):
                await cluster.attempt(name)
            for violation, died in zip(
                await cluster.logged("sandbox_violation", 2),
                await cluster.logged("engine_died", 2),
                strict=True,
            ):
                assert violation["syscall"] in VIOLATIONS[name]
                assert violation["role"] == "interactive"
                assert violation["task"] > 0
                assert (died["pid"], died["signal"]) == (violation["pid"], "SIGSYS")
            assert await cluster.attempt("nothing") == b"still here"

    until_done(test)


def test_with_the_sandbox_off_nothing_is_denied() -> None:
    async def test() -> None:
        async with jailed(replace(CONFIG, is_jailed=False)) as cluster:
            assert await cluster.attempt("read a file") == b"still here"

    until_done(test)


def test_an_engine_in_its_jail_may_still_crash() -> None:
    async def test() -> None:
        async with jailed() as cluster:
            with pytest.raises(PoisonImage):
                await cluster.attempt("abort")
            assert {died["signal"] for died in await cluster.logged("engine_died", 2)} == {"SIGABRT"}
            assert await cluster.logged("sandbox_violation", 0) == []

    until_done(test)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ask for a module", "ModuleNotFoundError: No module named 'wave'"),
        ("change the source", "OSError: [Errno 9]"),
    ],
)
def test_what_fails_in_python_is_a_bug_with_a_traceback_and_no_violation(name: str, says: str) -> None:
    async def test() -> None:
        async with jailed() as cluster:
            with pytest.raises(EngineBug) as raised:
                await cluster.attempt(name)
            assert says in str(raised.value)
            assert ", in attempt\n" in str(raised.value)
            assert await cluster.attempt("nothing") == b"still here"
            assert await cluster.logged("sandbox_violation", 0) == []

    until_done(test)


def test_an_engine_that_retires_violates_nothing() -> None:
    async def test() -> None:
        async with jailed(replace(CONFIG, max_tasks=1)) as cluster:
            for _ in range(2):
                await cluster.attempt("nothing")
            assert len(await cluster.logged("engine_retired", 2)) == 2
            assert await cluster.logged("sandbox_violation", 0) == []

    until_done(test)


def test_an_answer_shows_no_result_of_another_client() -> None:
    async def test() -> None:
        async with jailed() as cluster:
            assert await cluster.attempt("nothing") == b"still here"
            # The file of that result, or of its upload, is used for this one.
            assert not (await cluster.attempt("leave the sink as it is")).strip(b"\0")

    until_done(test)


def test_what_an_engine_keeps_shows_it_no_image_of_another_client() -> None:
    async def test() -> None:
        async with jailed() as cluster:
            await cluster.attempt("nothing")  # so that there are files that could be used again
            await cluster.attempt("keep the files")
            await cluster.attempt("nothing")
            await cluster.attempt("nothing")
            assert await cluster.attempt("read what was kept") == b"keep the files,still here"

    until_done(test)


def test_the_kernel_confirms_the_jail() -> None:
    async def test() -> None:
        async with jailed() as cluster:
            lines = (cluster.engine / "status").read_text().splitlines()
            status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
            limits = (cluster.engine / "limits").read_text().splitlines()
            (files,) = [line for line in limits if line.startswith("Max open files")]
            assert files.split()[3:5] == ["32", "32"]

    until_done(test)


def test_an_engine_starts_while_more_descriptors_wait_than_it_may_open() -> None:
    async def test() -> None:
        async with jailed(prepared("lose_privileges")) as cluster:
            with TemporaryFile() as file:
                for _ in range(20):  # for engines that do not run
                    send(cluster.membership.work.worker_ends[Lane.BACKGROUND], b"a task", [file.fileno()] * 3)
            os.kill(cluster.membership.row[Cell.ENGINE_PID], signal.SIGKILL)
            await cluster.logged("engine_online", 2)
            assert await cluster.attempt("nothing") == b"still here"

    until_done(test)


@pytest.mark.parametrize("is_jailed", [True, False])
def test_an_engine_has_no_descriptor_that_it_does_not_need(*, is_jailed: bool) -> None:
    async def test() -> None:
        async with jailed(replace(CONFIG, is_jailed=is_jailed)) as cluster:
            await cluster.attempt("nothing")
            # Three lanes and the control socket, what waits for them, and the flight recorder. The reply
            # socket is closed a moment after the answer.
            needed = [*["/dev/null"] * 3, *["/memfd", "anon_inode", *["socket"] * 4]]
            async with asyncio.timeout(DEADLINE_S):
                while descriptors(cluster.engine) != needed:  # noqa: ASYNC110 it is a process that changes
                    await asyncio.sleep(0.01)  # without a pause this would take the engine's CPU

    until_done(test)


@pytest.mark.parametrize(
    ("function", "missing", "syscalls"),
    [
        ("lose_landlock", ["landlock"], {"openat", "open"}),
        ("lose_listener", ["seccomp_listener"], {None}),
    ],
)
def test_what_the_kernel_lacks_is_logged_and_the_rest_stays(
    function: str, missing: list[str], syscalls: set[str | None]
) -> None:
    async def test() -> None:
        async with jailed(prepared(function)) as cluster:
            (partial,) = await cluster.logged("sandbox_partial", 1)
            assert (partial["missing"], partial["role"]) == (missing, "interactive")
            with pytest.raises(PoisonImage):
                await cluster.attempt("read a file")
            assert {line["syscall"] for line in await cluster.logged("sandbox_violation", 2)} <= syscalls

    until_done(test)


def test_a_bug_that_ends_an_engine_is_logged_by_its_worker() -> None:
    async def test() -> None:
        async with jailed() as cluster:
            send(cluster.membership.work.worker_ends[Lane.INTERACTIVE], b"a task without files")
            (died,) = await cluster.logged("engine_died", 1)
            assert died["exit_code"] == 1
            assert "ValueError: not enough values to unpack" in died["traceback"]

    until_done(test)


def test_all_formats_work_in_the_jail_as_they_do_outside() -> None:
    sources = [encoded(natural((24, 16)), CODECS[form].pillow) for form in Format]
    sources.append(with_chunk(sources[list(Format).index(Format.PNG)], b"gAMA", (10**5).to_bytes(4, "big")))
    settings = Settings()

    async def test() -> None:
        async with jailed(engine_config(settings, is_background=False)) as cluster:
            limits = Limits(settings.max_pixels, settings.max_frames, settings.max_total_pixels)
            for source in sources:
                for target in (None, *sorted(OUTPUT_FORMATS)):
                    outside = BytesIO()
                    process(mapped(source), outside, Recipe(Turn.FLIP, target), limits)
                    result = await cluster.run(
                        OPERATIONS["flip"],
                        source,
                        format=target,
                        quality=None,
                        strip=False,
                        path=None,
                        effort="normal",
                    )
                    assert result == outside.getvalue()
            assert not [line for line in cluster.events if line["event"].startswith("sandbox")]

    until_done(test)
