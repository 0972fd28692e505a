"""What processes cost: CPU seconds and peak memory, as the kernel counts them (proc(5))."""

import os
from collections.abc import Iterator
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> Iterator[int]:
    """A process and everything below it."""
    yield pid
    for thread in _children_files(pid):
        for child in thread.split():
            yield from tree(int(child))


def _children_files(pid: int) -> Iterator[str]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            yield file.read_text()
        except OSError:  # it ended while we looked
            continue


def cpu_s(pid: int) -> float:
    """User and system seconds that a process and its reaped children have spent."""
    # The second field is a name in parentheses that may hold anything, so count from behind it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    utime, stime, cutime, cstime = map(int, fields[11:15])
    return (utime + stime + cutime + cstime) / _TICKS_PER_S


def peak_memory_mb(pid: int) -> float:
    """The largest resident set so far (VmHWM), in megabytes of 10**6 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def command(pid: int) -> str:
    """The command line, for telling a worker from an engine."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
