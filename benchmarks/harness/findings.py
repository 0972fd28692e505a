"""What a scenario finds: a promise, what was seen, and whether it was kept."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from benchmarks.comparison.summary import percentile as nearest_rank
from benchmarks.cost.bare import fidelity_db
from benchmarks.harness.clients import Address, Visitors, ask, post
from benchmarks.harness.load import ask_health
from benchmarks.harness.server import DEADLINE_S, LiveServer
from images.render import HERE, benchmark_image, small_image
from server.cluster.cpus import usable_cores

T = TypeVar("T")

_PICTURES: dict[str, Callable[[], Path]] = {
    "big": benchmark_image,
    "medium": lambda: HERE / "landscape.jpg",
    "small": small_image,
}

_LEAST_FIDELITY_DB = 30.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the table.

    Attributes:
        is_figure: it depends on how fast and how busy the machine is, so tests leave it alone.
    """

    promise: str
    seen: str
    is_kept: bool
    is_figure: bool = False


@cache
def picture(name: str) -> bytes:
    """Return the bytes of a sample picture: big (20 megapixels), medium (6) or small."""
    return _PICTURES[name]().read_bytes()


def cluster(**environ: str) -> LiveServer:
    """Return a service to be started, with two workers at least: what dies must have a neighbour."""
    workers = str(max(2, usable_cores()))
    return LiveServer(environ={"WEB_CONCURRENCY": workers, **environ}, ignore={"request"})


def address(server: LiveServer) -> Address:
    """Where it listens."""
    return "127.0.0.1", server.port


def right_answer(server: LiveServer, body: bytes) -> bytes:
    """Ask for a flip on a quiet service; all later answers must be the same bytes."""
    answer = ask(address(server), post(body))
    assert answer.status == 200, answer  # noqa: PLR2004 HTTP's
    assert fidelity_db(body, answer.body) > _LEAST_FIDELITY_DB
    return answer.body


def visitors(server: LiveServer, body: str, *, at_once: int, is_loyal: bool = False) -> Visitors:
    """Clients that send a sample picture, and know the right answer."""
    answer = right_answer(server, picture(body))
    return Visitors(address(server), post(picture(body)), answer, at_once=at_once, is_loyal=is_loyal)


def paced(count: int, every_s: float) -> Iterator[int]:
    """Count up, at a steady pace; what takes longer is not made up for."""
    for number in range(count):
        started_s = time.monotonic()
        yield number
        time.sleep(max(0.0, started_s + every_s - time.monotonic()))


def until(look: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """Look again and again, until there is something to see or time is up; return what was seen last."""
    end_s = time.monotonic() + deadline_s
    while not (seen := look()) and time.monotonic() < end_s:
        time.sleep(0.02)
    return seen


def count(server: LiveServer, event: str) -> int:
    """How often an event is in the log."""
    return sum(each["event"] == event for each in server.events)


def in_flight(server: LiveServer) -> int:
    """How many pictures are with the engines or wait for one."""
    return sum(worker["in_flight"] for worker in server.workers())


def living_engines(server: LiveServer) -> list[int]:
    """The engines of all workers, once none is missing."""

    def look() -> list[int]:
        workers, alive = server.workers(), set(server.processes())
        engines = [worker["engine_pid"] for worker in workers if worker["engine_pid"] in alive]
        return engines if len(engines) == max(2, usable_cores()) else []

    engines = until(look)
    assert engines, f"an engine is missing:\n{server.log}"
    return engines


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank; 0 when there is nothing to rank."""
    return nearest_rank(values, percent) or 0.0


def summary(visitors: Visitors) -> str:
    """Say what came of all requests."""
    return f"{len(visitors.done)} requests: {listed(visitors.counts())}"


def listed(counts: Counter[str]) -> str:
    """Write counts down, the most frequent first."""
    return ", ".join(f"{number} x {name}" for name, number in counts.most_common()) or "none"


@contextmanager
def sampled(measure: Callable[[], T], every_s: float = 0.25) -> Iterator[list[T]]:
    """Measure something all the while, once at least; a measurement that fails is raised at the end."""
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


def probed(where: Address) -> AbstractContextManager[list[float]]:
    """Ask for a service's health all the while; how long each answer took, in milliseconds."""
    return sampled(lambda: ask_health(where), every_s=0.05)
