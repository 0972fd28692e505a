"""Scenarios of too much load: overload, health checks under load, slow clients, reloads under load.

Each scenario starts a cluster of its own and returns its findings. The defaults are the full size; tests pass
smaller values.
"""

import os
import signal
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from statistics import mean, median

from benchmarks.harness import load, processes
from benchmarks.harness.exchanges import Exchange, drive, outcome
from benchmarks.harness.findings import Finding
from benchmarks.harness.load import probed
from benchmarks.harness.messages import post
from benchmarks.harness.server import LiveServer
from benchmarks.harness.waiting import at_intervals, sampled, until
from benchmarks.survival.cluster import (
    OK,
    UNAVAILABLE,
    clients,
    cluster,
    count,
    image,
    in_flight,
    listed,
    percentile,
    right_answer,
    summary,
)
from benchmarks.survival.slow import Crowd

_IN_FLIGHT_BYTES = 1 << 30

#: What workers and engines need in addition to the images in flight, in megabytes (README.md).
_WORKER_MB, _ENGINE_MB, _ARBITER_MB = 60, 250, 40


def overload(at_once: int = 200, max_wait_s: float = 10.0, body: str = "big") -> list[Finding]:
    """Ask for more than can be done in time: excess load is shed at once, and served on a retry."""
    first: list[Exchange] = []
    retries: list[Exchange] = []

    def then(exchange: Exchange) -> Exchange | None:
        exchange.close()
        (retries if exchange.not_before_s else first).append(exchange)
        wait_s = exchange.headers.get("retry-after", "")
        if exchange.status != UNAVAILABLE or exchange.not_before_s or not wait_s.isdigit():
            return None
        return Exchange(exchange.address, exchange.request, not_before_s=exchange.ended_s + int(wait_s))

    limits = {"FLIP_MAX_WAIT_S": str(max_wait_s), "FLIP_MAX_BYTES_IN_FLIGHT": str(_IN_FLIGHT_BYTES)}
    with cluster(**limits) as server:
        right_answer(server, image(body))
        # Admission predicts from these; one at a time, so that none is shed on a slow machine.
        load.run(server.address, image(body), requests=10, at_once=1)
        request = post(image(body))
        with sampled(lambda: processes.memory_mb(list(processes.tree(server.pid)))) as memory_mb:
            drive([Exchange(server.address, request) for _ in range(at_once)], then)
        workers = len(server.workers())
    return [*_answers(first, retries), *_times(first, max_wait_s), _memory(max(memory_mb), workers)]


def _answers(first: list[Exchange], retries: list[Exchange]) -> list[Finding]:
    counts = Counter(map(outcome, first))
    refused = [exchange for exchange in first if exchange.status == UNAVAILABLE]
    unsaid = sum(not exchange.headers.get("retry-after", "").isdigit() for exchange in refused)
    served = sum(exchange.status == OK for exchange in retries)
    waits_s = [int(exchange.headers.get("retry-after", 0)) for exchange in refused]
    return [
        Finding("every answer is 200 or 503", listed(counts), counts.keys() <= {"200", "503"}),
        Finding(
            "it is too much: some requests are shed", f"{len(refused)} shed", bool(refused), is_figure=True
        ),
        Finding("every 503 has a Retry-After", f"{unsaid} without", not unsaid),
        Finding(
            "one retry after that long succeeds, for 95 %",
            f"{served} of {len(refused)}, waits of {min(waits_s, default=0)} to {max(waits_s, default=0)} s",
            served >= 0.95 * len(refused),
            is_figure=True,
        ),
    ]


def _times(first: list[Exchange], max_wait_s: float) -> list[Finding]:
    refused_s = [each.first_line_s - each.started_s for each in first if each.status == UNAVAILABLE]
    served = [each for each in first if each.status == OK]
    slowest_s = max((each.took_s for each in served), default=0.0)
    service_s = max(map(_service_s, served), default=0.0)
    p95_s = percentile(refused_s, 95)
    connecting_s = max(each.connecting_s for each in first)
    return [
        Finding(
            "no connection waits in the backlog",
            f"slowest {connecting_s:.3f} s",
            connecting_s < 0.9,  # noqa: PLR2004 the kernel sends a dropped SYN again after 1 s
            is_figure=True,
        ),
        Finding(
            "a 503 comes within 0.25 s, for 95 %",
            f"p95 {p95_s:.3f} s, maximum {max(refused_s, default=0):.3f} s",
            p95_s <= 0.25,  # noqa: PLR2004 the promise
            is_figure=True,
        ),
        Finding(
            "a 200 comes within the limit and one service time",
            f"slowest {slowest_s:.2f} s, limit {max_wait_s:g} s and {service_s:.2f} s",
            slowest_s <= max_wait_s + service_s,
            is_figure=True,
        ),
    ]


def _service_s(exchange: Exchange) -> float:
    stages = (stage.partition(";dur=") for stage in exchange.headers["server-timing"].split(", "))
    return sum(float(took_ms) for name, _, took_ms in stages if name != "queue") / 1e3


def _memory(peak_mb: float, workers: int) -> Finding:
    ceiling_mb = _IN_FLIGHT_BYTES / 1e6 + workers * (_WORKER_MB + _ENGINE_MB) + _ARBITER_MB
    return Finding(
        "memory stays below the limit on bytes in flight and the processes' own",
        f"peak {peak_mb:.0f} MB, ceiling {ceiling_mb:.0f} MB",
        peak_mb <= ceiling_mb,
        is_figure=True,
    )


def health(rounds: int = 4, requests: int = 150, at_once: int = 50, body: str = "big") -> list[Finding]:
    """Probe the service's health under load; rounds with and without probes alternate."""
    ratios, taken_ms = [], []
    with cluster(FLIP_MAX_WAIT_S="600") as server:
        where = server.address
        load.run(where, image(body), requests=10, at_once=4)
        for _ in range(rounds):
            alone = load.run(where, image(body), requests=requests, at_once=at_once)
            with probed(where) as probed_ms:
                loaded = load.run(where, image(body), requests=requests, at_once=at_once)
            ratios.append(alone.wall_s / loaded.wall_s)
            taken_ms += probed_ms
    p99 = percentile(taken_ms, 99)
    return [
        Finding("all requests and probes are answered 200", f"{len(taken_ms)} probes", bool(taken_ms)),
        Finding(f"health p99 under {at_once} requests: 25 ms", f"{p99:.1f} ms", p99 <= 25, True),  # noqa: FBT003, PLR2004
        Finding(
            f"health maximum under {at_once} requests: 100 ms",
            f"{max(taken_ms, default=0):.1f} ms",
            max(taken_ms, default=0) <= 100,  # noqa: PLR2004 the promise
            is_figure=True,
        ),
        _throughput("probe", ratios),
    ]


def _throughput(what: str, ratios: list[float]) -> Finding:
    seen = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return Finding(
        f"throughput with the {what} over that without: 0.9",
        seen,
        median(ratios) >= 0.9,  # noqa: PLR2004 the promise
        is_figure=True,
    )


#: How many slow clients of each kind.
CROWD = {"heads": 500, "uploads": 200, "downloads": 100}


def slow_clients(
    rounds: int = 5,
    requests: int = 100,
    sizes: Mapping[str, int] = CROWD,
    limit_s: float = 25.0,
    body: str = "big",
) -> list[Finding]:
    """Serve normal clients along with a crowd of slow ones, until the slow ones have been disconnected.

    Throughput is compared with that before and after the crowd, because a machine's speed drifts.
    """
    crowds, with_crowd_s = [], []
    limits = {"FLIP_HEADERS_TIMEOUT_S": str(limit_s), "FLIP_SLOW_AFTER_S": str(limit_s)}
    with cluster(**limits, FLIP_MAX_WAIT_S="600") as server:

        def wall_s() -> float:
            return load.run(server.address, image(body), requests=requests, at_once=10).wall_s

        load.run(server.address, image(body), requests=10, at_once=4)
        alone_s = [wall_s()]
        for _ in range(rounds):
            with Crowd(server.address, image("medium"), sizes) as crowd:
                crowd.wait_until_all_are_served()
                with_crowd_s.append(wall_s())
                held = crowd.held()
                crowd.wait_until_closed(2 * limit_s + 30)
                lingering = crowd.lingering()
                crowds.append(crowd)
            alone_s.append(wall_s())
    ratios = [mean(around) / with_s for around, with_s in zip(pairwise(alone_s), with_crowd_s, strict=True)]
    closed = {kind: [each for crowd in crowds for each in crowd.closed()[kind]] for kind in sizes}
    answers = sum((crowd.answers() for crowd in crowds), Counter())
    return [
        *(_closed(kind, closed[kind], rounds * number, limit_s) for kind, number in sizes.items()),
        Finding("how they were answered", listed(answers), is_kept=True),
        Finding("nothing of their answers is left in the kernel", f"{lingering} left", not lingering, True),  # noqa: FBT003
        Finding("normal requests are answered 200", f"{(2 * rounds + 1) * requests} requests", is_kept=True),
        Finding("the crowd stays connected meanwhile", f"{held} of {sum(sizes.values())}", held > 0, True),  # noqa: FBT003
        _throughput("crowd", ratios),
    ]


def _closed(kind: str, closed_s: list[float], number: int, limit_s: float) -> Finding:
    last_s = max(closed_s, default=0.0)
    seen = f"{len(closed_s)} of {number}, the last after {last_s:.1f} s, limit {limit_s:g} s"
    return Finding(f"slow {kind} are all disconnected", seen, len(closed_s) == number)


def reloads(
    times: int = 12, every_s: float = 5.0, at_once: int = 10, in_flight_at_end: int = 10, body: str = "medium"
) -> list[Finding]:
    """Reload repeatedly under load, then stop with images in flight."""
    with cluster(FLIP_MAX_WAIT_S="600") as server:
        workers = len(server.workers())
        with (
            clients(server, body, at_once=at_once) as one_shot,
            clients(server, body, at_once=2, keep_alive=True) as kept,
        ):
            for number in at_intervals(times, every_s):
                os.kill(server.pid, signal.SIGHUP)
                server.wait_for("worker_online", count=(number + 2) * workers)
            server.wait_for("worker_offline", count=times * workers)
        unclean = count(server, "worker_died")
        last = _stop_with_requests(server, post(image(body)), in_flight_at_end)
    return [
        Finding(f"no request is lost by {times} reloads", summary(one_shot), not one_shot.failed),
        Finding(
            "a keep-alive connection is announced closed before it is closed",
            summary(kept),
            not kept.failed,
        ),
        Finding("no worker has to be killed", f"{unclean} died", not unclean),
        Finding(
            f"a stop answers the {in_flight_at_end} requests in flight",
            listed(last),
            last == {"200": in_flight_at_end},
        ),
    ]


def _stop_with_requests(server: LiveServer, request: bytes, number: int) -> Counter[str]:
    exchanges = [Exchange(server.address, request) for _ in range(number)]
    with ThreadPoolExecutor(1) as thread:
        driven = thread.submit(drive, exchanges)
        until(lambda: in_flight(server) == number or driven.done())
        server.stop()
        driven.result()
    return Counter(map(outcome, exchanges))
