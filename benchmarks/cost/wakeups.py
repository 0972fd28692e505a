"""What idle engines cost: CPU per small image with very many engines, and with two.

An engine that wakes up for a task that another one takes costs CPU for nothing. One client sends a small
image again and again on one keep-alive connection. The two services alternate in one run, each is charged for
all its processes, and each ratio is taken within a round. What a service takes without load is measured just
before each window, and the results are given with and without it.
Run it with `python -m benchmarks.cost.wakeups`, on a machine that does nothing else (under 3 minutes).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from benchmarks.cost.ratios import print_ratio, service
from benchmarks.harness import load, processes
from benchmarks.harness.server import LiveServer
from images.render import small_image

_MANY, _FEW = 64, 2
_START_S = 120.0
_WARM_UP = 200


@dataclass(frozen=True, slots=True)
class Window:
    """One service in one round.

    Attributes:
        images: how many were flipped.
        wall_s: how long that took, in seconds.
        cpu_s: CPU time of all processes meanwhile.
        idle_share: CPU time without load, in seconds per second.
    """

    images: int
    wall_s: float
    cpu_s: float
    idle_share: float

    @property
    def cpu_ms(self) -> float:
        """CPU time per image, in milliseconds."""
        return self.cpu_s / self.images * 1e3

    @property
    def cpu_ms_without_idle(self) -> float:
        """The same, less what the idle service takes in that time."""
        return (self.cpu_s - self.idle_share * self.wall_s) / self.images * 1e3


def measure(under_test: LiveServer, image: bytes, images: int, *, idle_s: float) -> Window:
    """Leave the service idle for a while, then have a number of images flipped."""
    before_s, began_s = _cpu_s(under_test), time.monotonic()
    time.sleep(idle_s)
    idle_share = (_cpu_s(under_test) - before_s) / (time.monotonic() - began_s)
    before_s = _cpu_s(under_test)
    done = load.run(under_test.address, image, requests=images, at_once=1)
    return Window(images, done.wall_s, _cpu_s(under_test) - before_s, idle_share)


def _cpu_s(under_test: LiveServer) -> float:
    # An engine that has retired is in the sum too: its worker has inherited its time.
    return processes.sum_cpu_s(under_test.processes())


def report(many: Sequence[Window], few: Sequence[Window]) -> None:
    """Print both services and their ratio."""
    print(f"\n640x427, one user, {len(many)} rounds: median (least to most)")
    for workers, windows in ((_MANY, many), (_FEW, few)):
        print(f"  {workers} workers and engines, {median(w.images / w.wall_s for w in windows):.0f} images/s")
        print(f"    CPU per image                {_spread([w.cpu_ms for w in windows])} ms")
        print(f"    the same without idle        {_spread([w.cpu_ms_without_idle for w in windows])} ms")
        print(f"    CPU without load, per second {_spread([w.idle_share * 1e3 for w in windows])} ms")
    pairs = list(zip(many, few, strict=True))
    print_ratio(
        f"CPU per image, {_MANY} over {_FEW}", [m.cpu_ms / f.cpu_ms for m, f in pairs], "at most 1.10"
    )
    print_ratio(
        f"CPU per image without idle, {_MANY} over {_FEW}",
        [m.cpu_ms_without_idle / f.cpu_ms_without_idle for m, f in pairs],
        "",
    )


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Alternate the services and print the results."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--seconds", type=float, default=10.0, help="under load, about, in each window")
    options.add_argument("--idle", type=float, default=4.0, help="without load, before each window")
    given = options.parse_args()
    image = small_image().read_bytes()
    many: list[Window] = []
    few: list[Window] = []
    with ExitStack() as stack:
        services = {
            workers: stack.enter_context(service(workers, start_s=_START_S)) for workers in (_MANY, _FEW)
        }
        for each in services.values():
            load.run(each.address, image, requests=_WARM_UP, at_once=4)
        warm = load.run(services[_FEW].address, image, requests=_WARM_UP, at_once=1)
        images = max(1, round(given.seconds * _WARM_UP / warm.wall_s))
        for number in range(given.rounds):
            # There and back again, so that a machine that gets slower does so for both.
            for workers in services if number % 2 == 0 else reversed(services):
                window = measure(services[workers], image, images, idle_s=given.idle)
                (many if workers == _MANY else few).append(window)
            print(f"  round {number + 1} of {given.rounds}", file=sys.stderr)
    report(many, few)


if __name__ == "__main__":
    main()
