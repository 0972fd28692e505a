"""What all scenarios share: a cluster, sample images with their right answers, and looks at its state."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from benchmarks.harness.answers import fidelity_db
from benchmarks.harness.clients import Clients
from benchmarks.harness.exchanges import ask
from benchmarks.harness.messages import post
from benchmarks.harness.ranks import percentile as nearest_rank
from benchmarks.harness.server import ROOT, LiveServer
from benchmarks.harness.waiting import until
from images.render import HERE, benchmark_image, small_image
from server.cluster.cpus import usable_cores

OK, UNAVAILABLE = 200, 503

_IMAGES: dict[str, Callable[[], Path]] = {
    "big": benchmark_image,
    "medium": lambda: HERE / "landscape.jpg",
    "small": small_image,
}

_LEAST_FIDELITY_DB = 30.0


@cache
def image(name: str) -> bytes:
    """Return the bytes of a sample image: big (20 megapixels), medium (6) or small."""
    return _IMAGES[name]().read_bytes()


def cluster(root: Path = ROOT, /, **environ: str) -> LiveServer:
    """Return a service with at least two workers, so that one is left after a crash; enter it to start it."""
    environ = {"WEB_CONCURRENCY": str(worker_count()), **environ}
    return LiveServer(environ=environ, ignore={"request"}, root=root)


def worker_count() -> int:
    """Return how many workers, and engines for requests, a cluster has."""
    return max(2, usable_cores())


def right_answer(server: LiveServer, body: bytes) -> bytes:
    """Ask for a flip while the service is idle; all later answers must be the same bytes."""
    answer = ask(server.address, post(body))
    assert answer.status == OK, answer
    assert fidelity_db(body, answer.body) > _LEAST_FIDELITY_DB
    return answer.body


def clients(server: LiveServer, body: str, *, at_once: int, keep_alive: bool = False) -> Clients:
    """Return clients that send a sample image and know the right answer."""
    answer = right_answer(server, image(body))
    return Clients(server.address, post(image(body)), answer, at_once=at_once, keep_alive=keep_alive)


def count(server: LiveServer, event: str) -> int:
    """Count an event in the log."""
    return sum(each["event"] == event for each in server.events)


def in_flight(server: LiveServer) -> int:
    """Count the images that engines work on or that wait for one."""
    return sum(worker["in_flight"] for worker in server.workers())


def living_engines(server: LiveServer) -> list[int]:
    """Return the engines of all workers, once none is missing."""

    def look() -> list[int]:
        workers, alive = server.workers(), set(server.processes())
        engines = [worker["engine_pid"] for worker in workers if worker["engine_pid"] in alive]
        return engines if len(engines) == worker_count() else []

    engines = until(look)
    assert engines, f"an engine is missing:\n{server.log}"
    return engines


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest rank; 0 when there is nothing to rank."""
    return nearest_rank(values, percent) or 0.0


def summary(clients: Clients) -> str:
    """Write down how many requests there were, and their outcomes."""
    return f"{len(clients.done)} requests: {listed(clients.counts())}"


def listed(counts: Counter[str]) -> str:
    """Write counts down, the most frequent first."""
    return ", ".join(f"{number} x {name}" for name, number in counts.most_common()) or "none"
