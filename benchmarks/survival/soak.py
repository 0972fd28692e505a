"""Everything at once, for a long time: does memory grow, does anything fail that should not?

Run it with `make soak MINUTES=30`. The exit code is 1 when something failed that no kill explains, or when a
slow client was never disconnected. The slope of memory is for reading: it says more the longer the run was,
and it is that of the oldest processes, which are never killed.
"""

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from statistics import linear_regression, median
from threading import Event, Thread

from PIL import Image

from benchmarks.harness import processes
from benchmarks.harness.clients import PAUSE_S
from benchmarks.harness.exchanges import Exchange, drive, outcome
from benchmarks.harness.messages import post
from benchmarks.harness.server import ENGINE, WORKER, Address, LiveServer
from benchmarks.harness.waiting import sampled
from benchmarks.survival.cluster import cluster, image, listed, percentile
from benchmarks.survival.slow import Crowd

_AT_ONCE = 8
_CROWD = {"heads": 20, "uploads": 10, "downloads": 10}
_CROWD_DEADLINE_S = 50.0

#: Until caches are full, memory grows and should: this much of the time is left out.
_WARM_UP = 0.25


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request: what is sent, what must come back, how often among all."""

    request: bytes
    status: str
    weight: int


def kinds() -> dict[str, Kind]:
    """Return all kinds of requests."""
    medium, small = image("medium"), image("small")
    with Image.open(BytesIO(small)) as decoded:
        files = {name: _encoded(decoded, name) for name in ("png", "gif", "tiff", "bmp", "webp")}
    return {
        "small jpeg": Kind(post(small), "200", 40),
        "medium jpeg": Kind(post(medium, target="/flip"), "200", 10),
        "turned jpeg": Kind(post(medium, target="/rotate?angle=90"), "200", 5),
        "big jpeg": Kind(post(image("big")), "200", 2),
        "sample": Kind(post(b""), "200", 5),
        "to webp": Kind(post(small, target="/rotate?angle=90&format=webp"), "200", 5),
        **{name: Kind(post(file), "200", 5) for name, file in files.items()},
        "no image": Kind(post(b"not an image at all"), "415", 5),
        "truncated": Kind(post(small[: len(small) // 2]), "422", 5),
        "bad parameter": Kind(post(small, target="/flip?quality=101"), "400", 5),
        "not found": Kind(post(small, target="/nowhere"), "404", 2),
    }


def _encoded(image: Image.Image, name: str) -> bytes:
    with BytesIO() as file:
        image.save(file, name)
        return file.getvalue()


@dataclass(slots=True)
class Record:
    """What was asked, answered and done."""

    statuses: Counter[str] = field(default_factory=Counter)
    took_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    unexpected: Counter[str] = field(default_factory=Counter)
    disturbances: Counter[str] = field(default_factory=Counter)
    died_s: list[float] = field(default_factory=list)

    def add(self, name: str, kind: Kind, exchange: Exchange) -> None:
        """Record one request."""
        seen = outcome(exchange)
        self.statuses[seen] += 1
        self.took_s[name].append(exchange.took_s)
        if seen != kind.status and not self._is_explained(exchange):
            self.unexpected[f"{name}: {seen} instead of {kind.status}"] += 1

    def _is_explained(self, exchange: Exchange) -> bool:
        """Return whether a worker was killed while it had this request; then there is no answer at all."""
        return bool(exchange.failure) and any(
            exchange.started_s - 1 <= died_s <= exchange.ended_s + 1 for died_s in self.died_s
        )


@contextmanager
def everything(server: LiveServer, record: Record, until_s: float) -> Iterator[None]:
    """Send requests of all kinds, kill processes and bring slow clients, in threads, while the block runs."""
    stop = Event()

    def again_and_again(every_s: float, disturb: Callable[[LiveServer, Record], None]) -> None:
        while not stop.wait(every_s):
            disturb(server, record)

    threads = [
        Thread(target=_send, args=(server.address, record, until_s)),
        *(Thread(target=again_and_again, args=each) for each in _DISTURBANCES),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _send(where: Address, record: Record, until_s: float) -> None:
    choice = random.Random(1816)  # noqa: S311 no secret
    mix = kinds()
    names, weights = list(mix), [kind.weight for kind in mix.values()]
    under_way: dict[Exchange, str] = {}

    def begin() -> Exchange:
        (name,) = choice.choices(names, weights)
        exchange = Exchange(where, mix[name].request)
        under_way[exchange] = name
        return exchange

    def then(exchange: Exchange) -> Exchange | None:
        exchange.close()
        name = under_way.pop(exchange)
        record.add(name, mix[name], exchange)
        if time.monotonic() >= until_s:
            return None
        successor = begin()
        if exchange.failure:
            successor.not_before_s = time.monotonic() + PAUSE_S
        return successor

    drive([begin() for _ in range(_AT_ONCE)], then, deadline_s=until_s - time.monotonic() + 60)


def _kill_engine(server: LiveServer, record: Record) -> None:
    _kill_youngest(server, record, ENGINE)


def _kill_worker(server: LiveServer, record: Record) -> None:
    record.died_s.append(time.monotonic())
    _kill_youngest(server, record, WORKER)


def _kill_youngest(server: LiveServer, record: Record, role: str) -> None:
    # Never the oldest: it runs all the time, and so shows whether memory grows.
    if victims := server.roles()[role][1:]:
        os.kill(victims[-1], signal.SIGKILL)
        record.disturbances[f"{role} killed"] += 1


def _bring_crowd(server: LiveServer, record: Record) -> None:
    with Crowd(server.address, image("medium"), _CROWD) as crowd:
        crowd.wait_until_closed(_CROWD_DEADLINE_S)
        record.disturbances["slow client disconnected"] += sum(map(len, crowd.closed().values()))
        record.disturbances[_NEVER_CLOSED] += crowd.held()


_NEVER_CLOSED = "slow client never disconnected"

#: Intervals in seconds, and what happens at each.
_DISTURBANCES = ((7.0, _kill_engine), (47.0, _kill_worker), (61.0, _bring_crowd))


def _memory_mb(server: LiveServer) -> dict[str, float]:
    roles = server.roles()
    return {
        "at": time.monotonic(),
        **{f"oldest {role}": processes.memory_mb(pids[:1]) for role, pids in roles.items()},
        "all processes": processes.memory_mb([pid for pids in roles.values() for pid in pids]),
    }


def main() -> None:
    """Soak the service and report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=30)
    minutes = options.parse_args().minutes
    record = Record()
    with cluster() as server:
        until_s = time.monotonic() + 60 * minutes
        with sampled(lambda: _memory_mb(server), every_s=2.0) as samples, everything(server, record, until_s):
            while (left_s := until_s - time.monotonic()) > 0:
                print(f"  {left_s / 60:.0f} min left, {record.statuses.total()} requests", file=sys.stderr)
                time.sleep(min(left_s, 60.0))
    report_memory(samples[int(len(samples) * _WARM_UP) :])
    report_requests(record)
    sys.exit(bool(record.unexpected or record.disturbances[_NEVER_CLOSED]))


def report_memory(samples: Sequence[Mapping[str, float]]) -> None:
    """Print how memory went after the warm-up: a line through all samples."""
    at_h = [sample["at"] / 3600 for sample in samples]
    print(f"\nmemory over the last {60 * (at_h[-1] - at_h[0]):.0f} min    median MB  most MB  MB per hour")
    for name in [name for name in samples[0] if name != "at"]:
        values = [sample[name] for sample in samples]
        slope, _ = linear_regression(at_h, values)
        print(f"  {name:<30} {median(values):9.0f} {max(values):8.0f} {slope:+12.1f}")


def report_requests(record: Record) -> None:
    """Print what was asked and answered, and what else was done."""
    print(f"\n{record.statuses.total()} requests: {listed(record.statuses)}")
    print(f"done to the service: {listed(record.disturbances)}")
    print(f"not as expected, and no kill explains it: {listed(record.unexpected)}")
    print(f"\n  {'':<16} requests   p50 ms   p99 ms   max ms")
    for name, took_s in record.took_s.items():
        p50, p99, most = (1e3 * percentile(took_s, percent) for percent in (50, 99, 100))
        print(f"  {name:<16} {len(took_s):8d} {p50:8.0f} {p99:8.0f} {most:8.0f}")


if __name__ == "__main__":
    main()
