"""The sandbox of an engine: what its process may use, and when the kernel kills it."""

import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

#: Signals that are meant for the arbiter and its workers, but reach every process when a terminal or a
#: service manager sends them to the whole group. The worker decides when its engine stops.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

#: The lowest priority of nice(2).
_NICEST = 19

#: When the machine runs out of memory, the kernel kills an engine before a worker (proc(5)).
_OOM_SCORE = 500


def enter(*, nice: int, memory_bytes: int) -> None:
    """Confine this process irrevocably.

    Args:
        nice: how far it stands behind workers, or a health check waits for an image (nice(2)).
        memory_bytes: most address space (RLIMIT_AS of setrlimit(2)).
    """
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    _silence_libraries()
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


def _limit(what: int, most: int) -> None:
    """Set a limit of setrlimit(2), unless there is a stricter one."""
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _silence_libraries() -> None:
    """Keep what C libraries print about an image out of the log, and our own tracebacks in it."""
    sys.stderr = os.fdopen(os.dup(2), "w")
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 no path of ours
        os.dup2(nowhere.fileno(), 2)
