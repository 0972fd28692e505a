"""A child process that is started and waited for without threads.

asyncio in Python 3.11 starts a thread for each child, after the child. Where no more threads can be started
(the limit on pids of a container, RLIMIT_NPROC), the child runs then, but is lost to its parent.
"""

import asyncio
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Self

#: How often to look whether a child has ended where the kernel cannot tell, in seconds.
_LOOK_EVERY_S = 0.05


class Child:
    """A child process in a process group of its own: Ctrl-C is for its parent.

    Args:
        process: nothing else may wait for it.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def start(
        cls, command: Sequence[str], *, cwd: str, env: Mapping[str, str], pass_fds: Sequence[int], output: int
    ) -> Self:
        """Start a process whose standard input is empty.

        Args:
            command: the program and its arguments.
            cwd: its working directory.
            env: its whole environment.
            pass_fds: the descriptors that it inherits.
            output: the descriptor for its standard output and error.

        Raises:
            OSError: no process or descriptor is available, or there is no such program; nothing was started.
        """
        return cls(
            subprocess.Popen(  # noqa: S603 the caller's
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=pass_fds,
                process_group=0,
            )
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self._process.kill()

    async def wait(self) -> int:
        """Wait for its end, and return its return code as `subprocess` reports it; may be cancelled."""
        while (returncode := self._process.poll()) is None:
            await self._may_have_ended()
        return returncode

    async def _may_have_ended(self) -> None:
        """Wait for its end (pidfd_open(2)), or for a moment where that is impossible."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # no descriptor is free, or kernel or container know no such call
            await asyncio.sleep(_LOOK_EVERY_S)
            return
        loop, has_ended = asyncio.get_running_loop(), asyncio.Event()
        try:
            loop.add_reader(descriptor, has_ended.set)
            await has_ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
