"""What processes cost: CPU seconds and peak memory, as the kernel counts them (proc(5))."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

#: The kernel's numbers for ESTABLISHED and CLOSE_WAIT (include/net/tcp_states.h).
NOT_CLOSED_HERE = frozenset({"01", "08"})

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


def sum_cpu_s(pids: Sequence[int]) -> float:
    """The same of several processes; those that have ended count nothing."""
    total_s = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total_s += cpu_s(pid)
    return total_s


def peak_memory_mb(pid: int) -> float:
    """The largest resident set so far (VmHWM), in megabytes of 10**6 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def command(pid: int) -> str:
    """The command line, for telling a worker from an engine."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def memory_mb(pids: Sequence[int]) -> float:
    """What processes hold in memory now, each page counted once, in megabytes of 10**6 bytes.

    That is their proportional sets, and the files in memory that they have open, mapped or not.
    """
    files = {inode: size for each in pids for inode, size in memory_files(each).items()}
    return (sum(_own_bytes(each) for each in pids) + sum(files.values())) / 1e6


def memory_files(pid: int) -> dict[int, int]:
    """The files in memory that a process has open: their inodes, and what they occupy in bytes."""
    files = {}
    for number, target in descriptors(pid).items():
        if target.startswith("/memfd:"):
            with contextlib.suppress(OSError):
                status = os.stat(f"/proc/{pid}/fd/{number}")  # noqa: PTH116 a link that leads nowhere
                files[status.st_ino] = status.st_blocks * 512
    return files


def descriptors(pid: int) -> dict[str, str]:
    """What a process has open, by number, as the kernel names it."""
    found = {}
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found[link.name] = str(link.readlink())
    return found


def shared_mappings_bytes(pid: int) -> int:
    """How much address space a process shares, writable, with others."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if " rw-s " in line]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)


def accepted_from(port: int, states: frozenset[str] = NOT_CLOSED_HERE) -> set[int]:
    """The clients' ports of all connections to a port of ours; those that we have not closed, if not told."""
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
    # Not Pss_Shmem: files in memory are counted whole, for most are not mapped.
    return 1024 * sum(int(part[1]) for part in parts if part[0] in {"Pss_Anon:", "Pss_File:"})


def of_session(leader: int) -> list[int]:
    """Every process of a session that has not ended, the oldest first."""
    found = filter(None, map(_origin, Path("/proc").glob("[0-9]*")))
    return [pid for _, pid, session in sorted(found) if session == leader]


def kill_session(leader: int) -> None:
    """Kill what is left of a session, and what its processes start meanwhile."""
    while left := of_session(leader):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _origin(entry: Path) -> tuple[int, int, int] | None:
    """When a process started (not in the order of pids: those begin anew), its pid, and its session."""
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return None
    return None if fields[0] in "ZX" else (int(fields[19]), int(entry.name), int(fields[3]))


def is_alive(pid: int) -> bool:
    """Whether a process has not ended, be it waited for or not."""
    return _origin(Path("/proc") / str(pid)) is not None
