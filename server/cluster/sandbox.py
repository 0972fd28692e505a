"""The sandbox of an engine: what its process may use, and when the kernel kills it."""

import os
import resource
import signal
import struct
import sys
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, FrozenImporter
from pathlib import Path

from server.cluster import jail

#: Signals that are meant for the arbiter and its workers, but reach every process when a terminal or a
#: service manager sends them to the whole group. The worker decides when its engine stops.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

#: The lowest priority of nice(2).
_NICEST = 19

#: When the machine runs out of memory, the kernel kills an engine before a worker (proc(5)).
_OOM_SCORE = 500

#: Standard input, output and error.
_STANDARD = range(3)

#: New descriptors have numbers below this one in the jail. A dozen are in use during a task; the others are
#: all that an engine which was taken over can keep of those that come with later tasks.
_MOST_DESCRIPTORS = 32

#: Of prctl(2), seccomp(2) and landlock_create_ruleset(2).
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_LANDLOCK_CREATE_RULESET_VERSION = 1

#: Without it, kernels before 5.16 slow down a process with a filter, against attacks between processes that
#: share a core (Spectre variant 4). Later kernels do that only on request.
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1 << 2
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3

#: What importing ctypes raises where no memory may be made executable.
_NO_CTYPES = (ImportError, MemoryError)


@dataclass(frozen=True, slots=True)
class Jail:
    """What the kernel has granted.

    Attributes:
        missing: parts that it lacks: `landlock`, `seccomp`, or only `seccomp_listener`.
        listener: a descriptor that reports the system call that was denied, for the worker; None without.
    """

    missing: tuple[str, ...] = ()
    listener: int | None = None


def enter(*, nice: int, memory_bytes: int) -> None:
    """Confine this process irrevocably, and have the kernel kill it when its worker ends.

    An engine at work would not notice that before its task ends, and one that was taken over never.

    Args:
        nice: how far it stands behind workers, or a health check waits for an image (nice(2)).
        memory_bytes: most address space (RLIMIT_AS of setrlimit(2)).
    """
    with suppress(*_NO_CTYPES):
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    os.nice(nice)
    _limit(resource.RLIMIT_AS, memory_bytes)
    prefer_for_oom_kill(Path("/proc/self/oom_score_adj"))


def enter_background() -> None:
    """Give this process, irrevocably, only the CPU time that no other wants (SCHED_IDLE of sched(7))."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # musl has no such function; this is the next best
        os.setpriority(os.PRIO_PROCESS, 0, _NICEST)


def limit_files(file_bytes: int) -> None:
    """Limit, irrevocably, the size of every file that this process writes (RLIMIT_FSIZE of setrlimit(2)).

    A write beyond it is short, or fails with EFBIG: Python ignores the signal (SIGXFSZ).
    """
    _limit(resource.RLIMIT_FSIZE, file_bytes)


def limit_time(timeout_s: float) -> None:
    """Have the kernel kill this process after so many seconds, unless called again before; 0 for never.

    The default action of SIGALRM ends the process inside C code too, where a Python handler would wait for
    that code to return (setitimer(2)).
    """
    signal.setitimer(signal.ITIMER_REAL, timeout_s)


def limit_cpu_time(timeout_s: float) -> None:
    """Limit the CPU time of this process in the same way, by SIGPROF.

    A process under SCHED_IDLE may wait for a core for minutes, which is not the fault of its image.
    """
    signal.setitimer(signal.ITIMER_PROF, timeout_s)


def prefer_for_oom_kill(score: Path) -> None:
    """Ask the kernel to kill this process before a worker when memory runs out (proc(5)).

    A process that starts with a higher score, as in many containers, may not lower it and need not.
    """
    with suppress(OSError):
        if int(score.read_text()) < _OOM_SCORE:
            score.write_text(str(_OOM_SCORE))


def limit_descriptors(pid: int) -> None:
    """Limit the numbers of new descriptors of an engine in its jail (RLIMIT_NOFILE of prlimit(2)).

    Its worker does that once it has the listener. Where many tasks wait, a process with such a limit of its
    own may not send descriptors: the kernel compares it with how many all processes of a user have on their
    way (ETOOMANYREFS of unix(7)).
    """
    with suppress(ProcessLookupError):
        _limit(resource.RLIMIT_NOFILE, _MOST_DESCRIPTORS, pid)


def _limit(what: int, most: int, pid: int = 0) -> None:
    """Set a limit of this or another process, unless there is a stricter one."""
    _, hard = resource.prlimit(pid, what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.prlimit(pid, what, (most, most))


def close_output() -> None:
    """Close standard input, output and error for good: no image may write into the log.

    Their numbers stay in use, or a library that prints would print into the next upload.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in _STANDARD:
        os.dup2(nowhere, descriptor)
    if nowhere not in _STANDARD:
        os.close(nowhere)
    sys.stdout = sys.stderr = None  # with None, Python prints no warning and reads no source to print with it


def enter_jail(machine: str | None = None) -> Jail:
    """Take from this process, irrevocably, everything that computing does not need (`jail`).

    Nothing can be opened or imported any more. What the kernel lacks is left out, and reported.

    Args:
        machine: of `jail.MACHINES`; None for this one.
    """
    try:
        call = _system_call()
    except _NO_CTYPES:
        return Jail(missing=("landlock", "seccomp"))
    # A module that was not loaded in time is then an ImportError that names it, and not a violation.
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter]
    missing = () if _enter_landlock(call) else ("landlock",)
    machine = machine or (os.uname().machine if sys.maxsize > 1 << 32 else "32 bits")
    if machine not in jail.MACHINES:
        return Jail((*missing, "seccomp"))
    listener = _enter_seccomp(call, machine, jail.REPORT, _SECCOMP_FILTER_FLAG_NEW_LISTENER)
    if listener >= 0:
        return Jail(missing, listener)
    # A kernel before 5.0, or a filter around the whole service that has a listener already.
    is_entered = _enter_seccomp(call, machine, jail.KILL) >= 0
    return Jail((*missing, "seccomp_listener" if is_entered else "seccomp"))


def _prctl(option: int, argument: int) -> None:
    import ctypes  # noqa: PLC0415 as below

    ctypes.CDLL(None).prctl(option, *map(ctypes.c_long, (argument, 0, 0, 0)))


#: Calls a system call by its number.
_Call = Callable[..., int]


def _system_call() -> _Call:
    """Promise the kernel to gain no privileges, and return a function for calls that Python has none for."""
    import ctypes  # noqa: PLC0415 it takes milliseconds, and cannot be imported everywhere

    library = ctypes.CDLL(None)
    library.syscall.restype = ctypes.c_long
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)

    def call(*numbers: int) -> int:
        return int(library.syscall(*map(ctypes.c_long, numbers)))  # a plain integer would have 32 bits

    return call


def _enter_landlock(call: _Call) -> bool:
    """Give up all rights on files, TCP ports and other processes; whether the kernel can do that."""
    create, restrict = (jail.NUMBERS[f"landlock_{name}"][0] for name in ("create_ruleset", "restrict_self"))
    version = call(create, 0, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    if version < 1:
        return False
    attributes = array("B", jail.landlock_ruleset(version))
    ruleset = call(create, *attributes.buffer_info(), 0)
    if ruleset < 0:
        return False
    try:
        return call(restrict, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _enter_seccomp(call: _Call, machine: str, denial: int, flags: int = 0) -> int:
    """Have the kernel run the filter from now on; returns its listener if that was asked for, or -1."""
    program = array("Q", jail.filter_program(machine, os.getpid(), denial))
    address, instructions = program.buffer_info()
    described = array("B", struct.pack("HP", instructions, address))  # struct sock_fprog
    return call(
        jail.NUMBERS["seccomp"][jail.MACHINES[machine].column],
        _SECCOMP_SET_MODE_FILTER,
        _SECCOMP_FILTER_FLAG_SPEC_ALLOW | flags,
        described.buffer_info()[0],
    )
