"""What the jail of engines costs: CPU and throughput per image, and the start of an engine.

Two services with the same number of workers run at once, one with `FLIP_SANDBOX=off`, and are measured in
turn; who is first changes with each round, and each ratio is taken within a round. An engine is killed after
it has flipped an image, and its successor says how long it took to start (`boot_ms` of `engine_online`).
Run it with `python -m benchmarks.cost.jail`, on a machine that does nothing else (about 10 minutes).
"""

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from statistics import median, quantiles

from benchmarks.cost.ratios import (
    Measured,
    Section,
    measure_service,
    print_ratio,
    put_to_work,
    service,
)
from benchmarks.harness.server import LiveServer
from images.render import benchmark_image, small_image
from server.cluster.cpus import usable_cores

_JAILED, _FREE = "on", "off"
_WARM_UP = 40

#: What is promised.
_MOST_RATIO, _MOST_MS = 1.01, 20


def _services(workers: int, stack: ExitStack) -> dict[str, LiveServer]:
    """Start a service with the jail and one without; no engine of theirs retires while it is charged."""
    return {
        mode: stack.enter_context(
            service(workers, FLIP_SANDBOX=mode, FLIP_JOBS="off", FLIP_ENGINE_MAX_TASKS="0")
        )
        for mode in (_JAILED, _FREE)
    }


def measure_rounds(section: Section, rounds: int, servers: Mapping[str, LiveServer]) -> None:
    """Have both services flip images in turn, and print what the jail adds."""
    measured: list[dict[str, Measured]] = []
    for under_test in servers.values():
        put_to_work(under_test, section, _WARM_UP)
    for number in range(rounds):
        turn = sorted(servers, reverse=number % 2 == 1)
        measured.append({mode: measure_service(servers[mode], section, section.images) for mode in turn})
        print(f"  round {number + 1} of {rounds}", file=sys.stderr)
    print(f"\n{section.title}, {rounds} rounds of {section.images} images: median (least to most)")
    print_ratio(
        "CPU with the jail / without",
        [each[_JAILED].cpu_ms / each[_FREE].cpu_ms for each in measured],
        f"at most {_MOST_RATIO}",
    )
    print_ratio(
        "throughput without the jail / with",
        [each[_FREE].images_per_s / each[_JAILED].images_per_s for each in measured],
        f"at most {_MOST_RATIO}",
    )
    for mode in (_JAILED, _FREE):
        print(f"  {mode:<4} {median(each[mode].cpu_ms for each in measured):8.3f} ms CPU per image")


def measure_starts(starts: int, servers: Mapping[str, LiveServer]) -> None:
    """Have engines of both services start in turn, and print how long they took."""
    took_ms: dict[str, list[int]] = {mode: [] for mode in servers}
    for number in range(starts):
        for mode in sorted(servers, reverse=number % 2 == 1):
            took_ms[mode].append(_restart(servers[mode]))
    print(f"\nStart of an engine, {starts} each: median (quartiles)")
    for mode, each in took_ms.items():
        low, middle, high = quantiles(each, n=4)
        print(f"  {mode:<4} {middle:6.1f} ms  ({low:.1f} to {high:.1f})")
    more_ms = [jailed - free for jailed, free in zip(took_ms[_JAILED], took_ms[_FREE], strict=True)]
    low, middle, high = quantiles(more_ms, n=4)
    print(f"  the jail adds {middle:.1f} ms  ({low:.1f} to {high:.1f})  at most {_MOST_MS}")


def _restart(server: LiveServer) -> int:
    """Kill an engine that has done something, and return how long its successor took, in milliseconds."""
    put_to_work(server, Section("", "pixels", small_image(), 0), 10)
    (worker,) = server.workers()
    before = len(server.events)
    os.kill(worker["engine_pid"], signal.SIGKILL)
    took_ms: int = server.wait_for("engine_online", after=before)["boot_ms"]
    return took_ms


def main() -> None:
    """Measure everything and print the results."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--big", type=int, default=40, help="20-megapixel images a round")
    options.add_argument("--lossless", type=int, default=80, help="the same without loss, images a round")
    options.add_argument("--small", type=int, default=1500, help="640x427 images a round")
    options.add_argument("--starts", type=int, default=40, help="of an engine")
    given = options.parse_args()
    big, small = benchmark_image(), small_image()
    with ExitStack() as stack:
        servers = _services(usable_cores(), stack)
        for section in (
            Section("20 megapixels", "pixels", big, given.big),
            Section("20 megapixels without loss", "lossless", big, given.lossless),
            Section("640x427", "pixels", small, given.small),
        ):
            if section.images:
                measure_rounds(section, given.rounds, servers)
    if given.starts:
        with ExitStack() as stack:
            measure_starts(given.starts, _services(1, stack))


if __name__ == "__main__":
    main()
