"""Waiting, with a deadline on everything: for a condition, for the next interval, and while measuring."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

#: Long enough for a loaded machine; a test that waits this long fails.
DEADLINE_S = 20.0

T = TypeVar("T")


def until(look: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """Look again and again until the result is true or the deadline has passed; return the last result."""
    end_s = time.monotonic() + deadline_s
    while not (seen := look()) and time.monotonic() < end_s:
        time.sleep(0.02)
    return seen


def at_intervals(count: int, every_s: float) -> Iterator[int]:
    """Count up at fixed intervals; a step that takes longer delays all later ones."""
    for number in range(count):
        started_s = time.monotonic()
        yield number
        time.sleep(max(0.0, started_s + every_s - time.monotonic()))


@contextmanager
def sampled(measure: Callable[[], T], every_s: float = 0.25) -> Iterator[list[T]]:
    """Measure repeatedly while the block runs, at least once; a failed measurement is raised at the end."""
    values: list[T] = []
    stop = threading.Event()

    def keep_measuring() -> None:
        values.append(measure())
        while not stop.wait(every_s):
            values.append(measure())

    with ThreadPoolExecutor(1) as thread:
        measuring = thread.submit(keep_measuring)
        try:
            yield values
        finally:
            stop.set()
        measuring.result()
