"""A child is waited for without a thread, and leaves no zombie."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from errno import ENOSYS
from pathlib import Path

import pytest
from support.asgi import run
from support.threads import no_thread

from server.cluster.child import Child

#: The child ends with the status that it reads from this descriptor.
PROGRAM = "import os, sys; sys.exit(int(os.read(int(sys.argv[1]), 9)))"


class Gate:
    """A pipe, and a child that waits for its exit status from it."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        self.child = Child.start(
            [sys.executable, "-c", PROGRAM, str(self._reading)],
            cwd="/",
            env=dict(os.environ),
            pass_fds=[self._reading],
            output=subprocess.DEVNULL,
        )

    def end(self, status: int) -> None:
        os.write(self._writing, b"%d" % status)

    def close(self) -> None:
        self.child.kill()
        os.close(self._reading)
        os.close(self._writing)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.close()
    run(reap(gate.child))


async def reap(child: Child) -> None:
    await child.wait()
    assert not Path(f"/proc/{child.pid}").exists()  # noqa: ASYNC240 the kernel answers at once


def no_pidfd(*_: object) -> int:
    raise OSError(ENOSYS, "Function not implemented")


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_the_return_code_is_told_without_a_thread(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, *, has_pidfd: bool
) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    if not has_pidfd:
        monkeypatch.setattr(os, "pidfd_open", no_pidfd)

    async def test() -> None:
        ending = asyncio.ensure_future(gate.child.wait())
        await asyncio.sleep(0)  # it waits
        gate.end(3)
        assert await ending == 3
        assert await gate.child.wait() == 3

    run(test())
    assert not Path(f"/proc/{gate.child.pid}").exists()


def test_a_signal_is_told_as_subprocess_does(gate: Gate) -> None:
    async def test() -> None:
        gate.child.kill()
        assert await gate.child.wait() == -9
        gate.child.kill()  # it has ended

    run(test())


def test_a_wait_may_be_cancelled(gate: Gate) -> None:
    async def test() -> None:
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 they are only counted
        for _ in range(3):
            waiting = asyncio.ensure_future(gate.child.wait())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
        gate.end(0)
        assert await gate.child.wait() == 0

    run(test())


def test_a_child_is_not_in_the_process_group_of_its_parent(gate: Gate) -> None:
    assert os.getpgid(gate.child.pid) == gate.child.pid


def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        Child.start(["/nowhere"], cwd="/", env={}, pass_fds=[], output=subprocess.DEVNULL)
