"""Operations for tests: each treats its source, and its engine, as its name says."""

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from server.errors import DamagedImage, TooManyPixels
from server.operations.registry import Operation, Outcome, Parameters, by_name

#: What stands for a sound image.
SAMPLE = Path(__file__)


class Copied(Outcome):
    """What came out.

    Attributes:
        limit: of the engine, to be seen in the test.
    """

    media_type: Literal["text/plain"]
    limit: int


class Times(Parameters):
    """How often the source is written."""

    times: int = 1


def copy(
    source: FileIO,
    sink: FileIO,
    parameters: Mapping[str, Any],
    limits: Mapping[str, int],
    progress: Callable[[str], None],
) -> Mapping[str, Any]:
    progress("read")
    for _ in range(parameters.get("times", 1)):
        sink.write(os.pread(source.fileno(), 1 << 20, 0))
    sink.truncate()
    progress("write")
    return {"media_type": "text/plain", "limit": limits.get("limit", 0)}


def refuse(*_: object) -> Mapping[str, Any]:
    raise DamagedImage("Send another one.")


def exhaust(*_: object) -> Mapping[str, Any]:
    raise TooManyPixels("Send a smaller one.") from MemoryError()


def fail(*_: object) -> Mapping[str, Any]:
    raise ZeroDivisionError("a bug")


def fail_to_read(*_: object) -> Mapping[str, Any]:
    raise OSError("a bug as well")


def crash(source: FileIO, *more: Any) -> Mapping[str, Any]:  # noqa: ANN401 as copy has it
    """Crash on anything but the sample."""
    if os.pread(source.fileno(), 1 << 20, 0) == SAMPLE.read_bytes():
        return copy(source, *more)
    return crash_always()


def crash_later(source: FileIO, *more: Any) -> Mapping[str, Any]:  # noqa: ANN401 as copy has it
    """Crash on anything but the sample, after the first stage."""
    *_, progress = more
    progress("read")
    return crash(source, *more)


def crash_always(*_: object) -> Mapping[str, Any]:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def _is_first(source: FileIO) -> bool:
    """Say whether no engine came before, told by a file that the source names."""
    mark = os.pread(source.fileno(), 4096, 0).decode()
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def crash_once(source: FileIO, *more: Any) -> Mapping[str, Any]:  # noqa: ANN401 as copy has it
    """Crash the first engine that comes."""
    if not _is_first(source):
        return copy(source, *more)
    return crash_always()


def hang(*_: object) -> Mapping[str, Any]:
    signal.pause()
    raise AssertionError


def spin(*_: object) -> Mapping[str, Any]:
    while True:
        pass


def spin_untimed_once(source: FileIO, *more: Any) -> Mapping[str, Any]:  # noqa: ANN401 as copy has it
    """Disarm the timers of the first engine that comes, and spin."""
    if not _is_first(source):
        return copy(source, *more)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    return spin()


def wait(
    source: FileIO,
    sink: FileIO,
    parameters: Mapping[str, Any],
    limits: Mapping[str, int],
    progress: Callable[[str], None],
) -> Mapping[str, Any]:
    """Wait until the pipe that the source names is written to."""
    with open(os.pread(source.fileno(), 4096, 0).decode(), "rb") as pipe:  # noqa: PTH123 a name from a file
        pipe.read()
    return copy(source, sink, parameters, limits, progress)


_for_tests = partial(
    Operation,
    version=1,
    summary="For tests",
    description="For tests.",
    parameters=Times,
    outcome=Copied,
    accepts=("text/plain",),
    refusals=(DamagedImage, TooManyPixels),
    stages=("read", "write"),
)

OPERATIONS = by_name(
    *(
        _for_tests(name=function.__name__, run=f"{__name__}:{function.__name__}")
        for function in (
            copy,
            refuse,
            exhaust,
            fail,
            fail_to_read,
            crash,
            crash_later,
            crash_always,
            crash_once,
            hang,
            spin,
            spin_untimed_once,
            wait,
        )
    )
)


def abort() -> None:
    """Print and end as C code does."""
    os.write(2, b"a library says why")
    os.abort()


#: An engine with this operation never gets ready.
HANGING = replace(OPERATIONS["copy"].spec, prepare="signal:pause")
