"""Processes: how to start and end them, and what they cost as the kernel counts it (proc(5))."""

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

#: The kernel's numbers for ESTABLISHED and CLOSE_WAIT (include/net/tcp_states.h).
NOT_CLOSED_HERE = frozenset({"01", "08"})

#: States of processes that have ended, reaped or not (proc(5)).
_ENDED = frozenset("ZX")

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

# When this process is killed, the kernel signals the child (prctl(2)). A small program sets that up, because
# nothing may run between fork and exec in a process with threads.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[3]))
if os.getppid() != int(sys.argv[1]):
    sys.exit("its parent has ended")
if sys.argv[2]:
    os.sched_setaffinity(0, map(int, sys.argv[2].split(",")))
os.execvp(sys.argv[4], sys.argv[4:])
"""


def start(
    command: Sequence[str],
    *,
    cores: Sequence[int] = (),
    last_signal: signal.Signals = signal.SIGTERM,
    **options: Any,  # noqa: ANN401 those of Popen
) -> "subprocess.Popen[str]":
    """Start a process in a session of its own that ends with this process; call it from the main thread.

    Args:
        command: what it runs.
        cores: the cores that it may use; empty for all.
        last_signal: the one it gets when this process has ended; one with children must be able to stop them.
        options: further ones of `subprocess.Popen`.
    """
    own = [str(os.getpid()), ",".join(map(str, cores)), str(last_signal.value)]
    wrapped = [sys.executable, "-ISc", _DIE_WITH_PARENT, *own, *command]
    process: subprocess.Popen[str] = subprocess.Popen(wrapped, text=True, start_new_session=True, **options)
    return process


def raise_descriptor_limit() -> None:
    """Let this process have as many connections open as it may (RLIMIT_NOFILE of setrlimit(2))."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tree(pid: int) -> Iterator[int]:
    """Yield a process and all its descendants."""
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
    """Return the user and system seconds that a process and its reaped children have spent."""
    # The second field is a name in parentheses that may hold anything, so count from behind it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    utime, stime, cutime, cstime = map(int, fields[11:15])
    return (utime + stime + cutime + cstime) / _TICKS_PER_S


def sum_cpu_s(pids: Sequence[int]) -> float:
    """Sum the same over several processes; those that have ended count nothing."""
    total_s = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total_s += cpu_s(pid)
    return total_s


def peak_memory_mb(pid: int) -> float:
    """Return the largest resident set so far (VmHWM), in megabytes of 10**6 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def command(pid: int) -> str:
    """Return the command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def memory_mb(pids: Sequence[int]) -> float:
    """Return what processes hold in memory now, each page counted once, in megabytes of 10**6 bytes.

    That is their proportional sets, and the memory files that they have open, mapped or not.
    """
    files = {inode: size for each in pids for inode, size in memory_files(each).items()}
    return (sum(_own_bytes(each) for each in pids) + sum(files.values())) / 1e6


def memory_mb_at_most(pids: Sequence[int]) -> float:
    """Return at least as much as `memory_mb`, at once: all shared memory of the machine counts as theirs.

    To look at thousands of descriptors takes tens of milliseconds, in which what is measured gets no core.
    """
    return (sum(_own_bytes(each) for each in pids) + of_machine("Shmem")) / 1e6


def of_machine(name: str) -> int:
    """Return a figure of the machine's memory (/proc/meminfo of proc(5)), in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def memory_files(pid: int) -> dict[int, int]:
    """Return the memory files that a process has open: their inodes, and what they occupy in bytes."""
    files = {}
    for number, target in descriptors(pid).items():
        if target.startswith("/memfd:"):
            with contextlib.suppress(OSError):
                status = os.stat(f"/proc/{pid}/fd/{number}")  # noqa: PTH116 a link that leads nowhere
                files[status.st_ino] = status.st_blocks * 512
    return files


def descriptors(pid: int) -> dict[str, str]:
    """Return what a process has open, by number, as the kernel names it."""
    found = {}
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found[link.name] = str(link.readlink())
    return found


def shared_mappings_bytes(pid: int) -> int:
    """Return how much address space a process shares, writable, with others."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if " rw-s " in line]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)


def accepted_from(port: int, states: frozenset[str] = NOT_CLOSED_HERE) -> set[int]:
    """Return the clients' ports of the connections to a server's port; by default those it has not closed."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        int(peer.rpartition(":")[2], 16)
        for _, own, peer, state, *_ in rows
        if int(own.rpartition(":")[2], 16) == port and state in states
    }


def _own_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    parts = [line.split() for line in lines]
    # Not Pss_Shmem: memory files are counted whole, because most are not mapped.
    return 1024 * sum(int(part[1]) for part in parts if part[0] in {"Pss_Anon:", "Pss_File:"})


def of_session(leader: int) -> list[int]:
    """Return every process of a session that has not ended, the oldest first."""
    return [pid for pid, state in states(leader) if state not in _ENDED]


def zombies_of_session(leader: int) -> list[int]:
    """Return every process of a session that has ended and has not been reaped."""
    return [pid for pid, state in states(leader) if state == "Z"]


def states(leader: int) -> Iterator[tuple[int, str]]:
    """Yield the processes of a session, reaped or not, with their states (proc(5)), the oldest first."""
    found = filter(None, map(_origin, Path("/proc").glob("[0-9]*")))
    yield from ((pid, state) for _, pid, session, state in sorted(found) if session == leader)


def kill_session(leader: int) -> None:
    """Kill all processes of a session, and those that they start meanwhile."""
    while left := of_session(leader):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _origin(entry: Path) -> tuple[int, int, int, str] | None:
    """Return when a process started (pids wrap around, so they do not tell), its pid, session and state."""
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return None
    return int(fields[19]), int(entry.name), int(fields[3]), fields[0]


def is_alive(pid: int) -> bool:
    """Return whether a process has not ended, reaped or not."""
    origin = _origin(Path("/proc") / str(pid))
    return origin is not None and origin[3] not in _ENDED


def wait_until_gone(pid: int, deadline_s: float) -> None:
    """Wait until a process has ended that need not be our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with open(descriptor, "rb") as process:  # noqa: PTH123 a descriptor has no path
        ended, _, _ = select.select([process], [], [], deadline_s)
    assert ended, f"process {pid} did not end"
