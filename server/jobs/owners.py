"""Owners: processes that hold jobs, named so that another process of the machine can tell which are alive."""

import os
from pathlib import Path

_PROC = Path("/proc")


def own_name() -> str:
    """Name this process: its machine, its process id, and when it was started, as the id is used again."""
    return f"{_machine()}:{os.getpid()}:{_start(os.getpid())}"


def is_dead(owner: str) -> bool:
    """Whether an owner was a process of this machine and has ended; False when that cannot be known."""
    machine, _, process = owner.partition(":")
    pid, _, start = process.partition(":")
    if machine != _machine():
        return False
    try:
        return _start(int(pid)) != start
    except OSError:  # it has ended, or is another user's and hidden (hidepid in proc(5))
        return not _exists(int(pid))


def _machine() -> str:
    """Name this boot of this machine, and the namespace that process ids are valid in."""
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{(_PROC / 'self/ns/pid').stat().st_ino}"


def _start(pid: int) -> str:
    """When a process was started, in clock ticks after the boot; empty for a zombie (proc(5)).

    Raises:
        OSError: it has ended, or is hidden.
    """
    stat = (_PROC / str(pid) / "stat").read_text()
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in {"Z", "X"} else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
