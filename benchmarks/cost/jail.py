"""What the jail of engines costs: CPU and throughput per image, and the start of an engine.

Services with the same number of workers run at once, one with the jail and two without, and are measured in
turn; who is started and who is measured first changes each time.
Two instances of the very same service differ by up to a tenth for as long as they live, so that rounds of one
pair say little, however many: each block of rounds has services of its own, each ratio is the median within a
block, and the second service without the jail shows what is left of the noise.
An engine is killed after it has flipped an image, and its successor says how long it took to start (`boot_ms`
of `engine_online`).
Run it with `python -m benchmarks.cost.jail`, on a machine that does nothing else (about 30 minutes).
"""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
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

_JAILED, _FREE, _CONTROL = "jailed", "free", "free again"
_SANDBOX = {_JAILED: "on", _FREE: "off", _CONTROL: "off"}

#: What is promised.
_MOST_RATIO, _MOST_MS = 1.01, 20


def _services(workers: int, modes: Sequence[str], stack: ExitStack) -> dict[str, LiveServer]:
    """Start a service per mode, in this order; no engine of theirs retires while it is charged."""
    return {
        mode: stack.enter_context(
            service(workers, FLIP_SANDBOX=_SANDBOX[mode], FLIP_JOBS="off", FLIP_ENGINE_MAX_TASKS="0")
        )
        for mode in modes
    }


def measure_blocks(section: Section, blocks: int, rounds: int) -> None:
    """Have services flip images in turn, and print what the jail adds."""
    cpu: dict[str, list[float]] = {_JAILED: [], _CONTROL: []}
    throughput: dict[str, list[float]] = {_JAILED: [], _CONTROL: []}
    for number in range(blocks):
        measured = _measure_block(section, rounds, _rotated(number))
        for mode in (_JAILED, _CONTROL):
            pairs = list(zip(measured[mode], measured[_FREE], strict=True))
            cpu[mode].append(median(each.cpu_ms / free.cpu_ms for each, free in pairs))
            throughput[mode].append(median(free.images_per_s / each.images_per_s for each, free in pairs))
        print(f"  block {number + 1} of {blocks}", file=sys.stderr)
    print(
        f"\n{section.title}, {blocks} blocks of {rounds} rounds of {section.images} images: "
        "median of the blocks (least to most)"
    )
    for mode, wanted in ((_JAILED, f"at most {_MOST_RATIO}"), (_CONTROL, "the same service twice")):
        print_ratio(f"CPU {mode} / free", cpu[mode], wanted)
        print_ratio(f"throughput free / {mode}", throughput[mode], wanted)


def _rotated(number: int) -> list[str]:
    """Return the modes in an order that changes with each number; over six, all orders come once."""
    modes = list(_SANDBOX)
    first = modes.pop(number % 3)
    return [first, *(modes if number // 3 % 2 == 0 else reversed(modes))]


def _measure_block(section: Section, rounds: int, modes: Sequence[str]) -> dict[str, list[Measured]]:
    """Start services, measure them in turn, and end them."""
    measured: dict[str, list[Measured]] = {mode: [] for mode in modes}
    with ExitStack() as stack:
        servers = _services(usable_cores(), modes, stack)
        for under_test in servers.values():
            put_to_work(under_test, section, section.images)
        for number in range(rounds):
            for mode in _rotated(number):
                measured[mode].append(measure_service(servers[mode], section, section.images))
    return measured


def measure_starts(starts: int, servers: Mapping[str, LiveServer]) -> None:
    """Have engines of both services start in turn, and print how long they took."""
    took_ms: dict[str, list[int]] = {mode: [] for mode in servers}
    for number in range(starts):
        for mode in sorted(servers, reverse=number % 2 == 1):
            took_ms[mode].append(_restart(servers[mode]))
    print(f"\nStart of an engine, {starts} each: median (quartiles)")
    for mode, each in took_ms.items():
        low, middle, high = quantiles(each, n=4)
        print(f"  {mode:<6} {middle:6.1f} ms  ({low:.1f} to {high:.1f})")
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
    options.add_argument("--blocks", type=int, default=36, help="services started anew")
    options.add_argument("--rounds", type=int, default=3, help="of each block")
    options.add_argument("--big", type=int, default=6, help="20-megapixel images a round")
    options.add_argument("--lossless", type=int, default=20, help="the same without loss, images a round")
    options.add_argument("--small", type=int, default=400, help="640x427 images a round")
    options.add_argument("--starts", type=int, default=40, help="of an engine")
    given = options.parse_args()
    big, small = benchmark_image(), small_image()
    for section in (
        Section("20 megapixels", "pixels", big, given.big),
        Section("20 megapixels without loss", "lossless", big, given.lossless),
        Section("640x427", "pixels", small, given.small),
    ):
        if section.images:
            measure_blocks(section, given.blocks, given.rounds)
    if given.starts:
        with ExitStack() as stack:
            measure_starts(given.starts, _services(1, (_JAILED, _FREE), stack))


if __name__ == "__main__":
    main()
