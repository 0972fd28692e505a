"""Liveness: whether a process is stopped or stuck, judged by what can be seen of it (proc(5))."""

import os
from dataclasses import dataclass
from pathlib import Path

#: How often to look at a process, in seconds.
LOOK_EVERY_S = 1.0

#: The states of a process that a signal has stopped, that a debugger has stopped, that runs or could run, and
#: that waits for a disk or is frozen.
STOPPED, TRACED, RUNNING, UNINTERRUPTIBLE = "T", "t", "R", "D"

#: Where the user and the system time of a process are, counted from its state.
_USER, _SYSTEM = 11, 12


@dataclass(frozen=True, slots=True)
class Sign:
    """What can be seen of an engine at one moment.

    Attributes:
        state: the letter for it (proc(5)).
        cpu: the CPU time that it has used, in ticks of the kernel's clock.
        task: the number of its current task; 0 for none.
        beats: how often it has looked for a task; 0 while it boots.
    """

    state: str
    cpu: int
    task: int
    beats: int


class Watch:
    """Decides when an engine is hung: stopped, frozen, stuck, or at one task for too long.

    The last is the kernel's to end. An engine that was taken over can disarm the timer, and work on.

    It counts looks instead of reading a clock: when the worker itself was stopped or the machine suspended,
    no time has passed for the engine either. One that waits for a core, or is being debugged, is not hung.

    Args:
        hung_after_s: for how long an engine may show no sign of life while it is stopped or idle, in seconds.
        timeout_s: for how much longer while it boots, waits for a disk or has a task, in seconds: a machine
            that swaps is slow, and the kernel ends a task that takes too long.
        is_background: whether the CPU time of a task is limited, instead of its time.
    """

    def __init__(self, hung_after_s: float, timeout_s: float, *, is_background: bool = False) -> None:
        self._most = most_looks(hung_after_s)
        self._most_when_busy = most_looks(hung_after_s + timeout_s)
        self._most_cpu = (hung_after_s + timeout_s) * os.sysconf("SC_CLK_TCK")
        self._is_background = is_background
        self._silent = 0
        self._last: Sign | None = None
        self._task_looks = 0  # at the current task, after the first
        self._task_cpu = 0  # what the engine had used at the first

    def is_hung(self, sign: Sign) -> bool:
        """Take another look into account, and decide; to be called every `LOOK_EVERY_S` seconds."""
        if self._is_at_it_for_too_long(sign):
            return True
        is_alive = sign != self._last or sign.state in {RUNNING, TRACED}
        self._last = sign
        self._silent = 0 if is_alive and sign.state != STOPPED else self._silent + 1
        is_busy = sign.task != 0 or sign.beats == 0 or sign.state == UNINTERRUPTIBLE
        return self._silent >= (self._most_when_busy if is_busy and sign.state != STOPPED else self._most)

    def _is_at_it_for_too_long(self, sign: Sign) -> bool:
        if sign.task == 0 or self._last is None or sign.task != self._last.task:
            self._task_looks, self._task_cpu = 0, sign.cpu
        elif sign.state != TRACED:
            self._task_looks += 1
        if self._is_background:
            return sign.cpu - self._task_cpu > self._most_cpu
        return self._task_looks > self._most_when_busy


def most_looks(seconds: float) -> int:
    """Return after how many silent looks in a row a process counts as hung; at least two.

    One is not enough: an idle engine shows a sign as seldom as it is looked at, and a machine that goes on
    after a pause may look before its engine has woken up.
    """
    return max(2, round(seconds / LOOK_EVERY_S))


def read_state(pid: int) -> tuple[str, int] | None:
    """Read the state of a process and the CPU time that it has used, in ticks of the kernel's clock.

    Returns:
        Both; None when the process has ended.
    """
    try:
        # The name of the program, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[_USER]) + int(fields[_SYSTEM])
