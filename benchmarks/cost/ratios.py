"""What the service costs over the bare function, and what the cluster gains over one process.

All contenders alternate in one run, so that other load on the machine affects them alike; each ratio is taken
within a round, and the median over the rounds is the result.
Run it with `make ratios`, on a machine that does nothing else.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from benchmarks.cost import bare
from benchmarks.harness import load, processes
from benchmarks.harness.answers import fidelity_db
from benchmarks.harness.exchanges import ask
from benchmarks.harness.load import probed
from benchmarks.harness.messages import post
from benchmarks.harness.server import ENGINE, WORKER, LiveServer
from benchmarks.harness.waiting import DEADLINE_S
from images.render import benchmark_image, small_image
from server.cluster.cpus import usable_cores
from server.cluster.supervisor import MALLOC_SETTINGS

_AT_ONCE = 10
_FEWEST_PROBES = 20


@dataclass(frozen=True, slots=True)
class Section:
    """One image on one path.

    Attributes:
        method: the path, and what the bare function does: see `bare.METHODS`.
        images: how many a round.
        most_cpu: CPU of the service over that of the bare function; 0 for no target, as for the others.
        least_throughput: of the cluster over the bare function.
        least_gain: of the cluster over one process, for each core.
    """

    title: str
    method: str
    image: Path
    images: int
    most_cpu: float = 0.0
    least_throughput: float = 0.0
    least_gain: float = 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One contender in one round.

    Attributes:
        images_per_s: throughput.
        cpu_ms: CPU time of all its processes per image, in milliseconds.
        workers_ms: the part of `cpu_ms` that the arbiter and the workers spent.
    """

    images_per_s: float
    cpu_ms: float
    workers_ms: float = 0.0


def service(
    workers: int, arguments: Sequence[str] = (), start_s: float = DEADLINE_S, **settings: str
) -> LiveServer:
    """Return the service with a number of workers; enter it to start it."""
    environ = {"WEB_CONCURRENCY": str(workers), **settings}
    return LiveServer(*arguments, environ=environ, ignore={"request"}, start_s=start_s)


def measure_service(under_test: LiveServer, section: Section, requests: int) -> Measured:
    """Load the service and charge it for every process it consists of."""
    roles = under_test.roles()
    engines = set(roles[ENGINE])
    before = {pid: processes.cpu_s(pid) for pids in roles.values() for pid in pids}
    done = put_to_work(under_test, section, requests)
    spent = {pid: processes.cpu_s(pid) - before_s for pid, before_s in before.items()}
    return Measured(
        images_per_s=requests / done.wall_s,
        cpu_ms=sum(spent.values()) / requests * 1e3,
        workers_ms=sum(cpu for pid, cpu in spent.items() if pid not in engines) / requests * 1e3,
    )


def put_to_work(under_test: LiveServer, section: Section, requests: int) -> load.Load:
    """Have a number of images flipped."""
    image = section.image.read_bytes()
    target = f"/flip?path={section.method}"
    return load.run(under_test.address, image, requests=requests, at_once=_AT_ONCE, target=target)


def measure_bare(section: Section, cores: int, images_each: int) -> Measured:
    """Run the bare function in as many processes as there are cores."""
    environ = MALLOC_SETTINGS | os.environ
    command = bare.command_of(section.method, section.image, images_each)
    done = bare.run(command, processes=cores, environ=environ)
    images = cores * images_each
    return Measured(images / done.wall_s, done.cpu_s / images * 1e3)


@dataclass(frozen=True, slots=True)
class Round:
    """All contenders, one after the other."""

    bare: Measured
    cluster: Measured
    single: Measured


def run_rounds(section: Section, *, rounds: int, cores: int, arguments: Sequence[str]) -> list[Round]:
    """Alternate the contenders; each gets the section's images a round, a single process its share."""
    share = section.images // cores
    results = []
    health_ms: list[float] = []
    with ExitStack() as stack:
        cluster = stack.enter_context(service(cores, arguments))
        single = stack.enter_context(service(1, arguments))
        put_to_work(cluster, section, 4 * _AT_ONCE)  # warm-up
        put_to_work(single, section, 2 * _AT_ONCE)
        for number in range(rounds):
            bare_one = measure_bare(section, cores, share)
            cluster_one = measure_service(cluster, section, section.images)
            single_one = measure_service(single, section, share)
            # In a round of its own, because the probes take time from what is measured.
            with probed(cluster.address) as taken_ms:
                put_to_work(cluster, section, share)
            health_ms += taken_ms
            results.append(Round(bare_one, cluster_one, single_one))
            print(f"  round {number + 1} of {rounds}", file=sys.stderr)
        print_health(health_ms)
        print_memory(cluster)
        print_fidelity(cluster, section)
    return results


def print_health(taken_ms: Sequence[float]) -> None:
    """Print how long the health check took under load."""
    if len(taken_ms) < _FEWEST_PROBES:
        print("  health check under load: the load was too short to tell")
        return
    p50, p99 = (quantiles(taken_ms, n=100)[n - 1] for n in (50, 99))
    print(
        f"  health check under load: median {p50:.1f} ms, p99 {p99:.1f} ms,"
        f" maximum {max(taken_ms):.1f} ms, {len(taken_ms)} asked"
    )


def print_fidelity(under_test: LiveServer, section: Section) -> None:
    """Print what one trip through the service did to the image."""
    image = section.image.read_bytes()
    answer = ask(under_test.address, post(image, target=f"/flip?path={section.method}"))
    size = len(answer.body) / len(image)
    print(
        f"  the image: {fidelity_db(image, answer.body):.2f} dB PSNR, {(size - 1) * 100:+.2f} % of its size"
    )


def print_memory(under_test: LiveServer) -> None:
    """Print the peak memory of the largest worker and the largest engine."""
    roles = under_test.roles()
    worker_mb, engine_mb = (max(map(processes.peak_memory_mb, roles[role])) for role in (WORKER, ENGINE))
    print(f"  peak memory: worker {worker_mb:.0f} MB, engine {engine_mb:.0f} MB")


def print_ratio(name: str, values: Sequence[float], target: str) -> None:
    """Print the median over the rounds, the spread, and the target."""
    print(f"  {name:<58} {median(values):6.2f}  ({min(values):.2f} to {max(values):.2f})  {target}")


def report(section: Section, rounds: Sequence[Round], cores: int) -> None:
    """Print all ratios of one section."""
    conditions = f"{_AT_ONCE} at once, {cores} cores, {len(rounds)} rounds"
    print(f"\n{section.title}, {conditions}: median (least to most)")
    print_ratio(
        "CPU of the whole service / bare function",
        [r.cluster.cpu_ms / r.bare.cpu_ms for r in rounds],
        f"at most {section.most_cpu:.2f}" if section.most_cpu else "",
    )
    print_ratio(
        "throughput of the cluster / bare function in as many processes",
        [r.cluster.images_per_s / r.bare.images_per_s for r in rounds],
        f"at least {section.least_throughput:.2f}" if section.least_throughput else "",
    )
    print_ratio(
        "throughput of the cluster / single process",
        [r.cluster.images_per_s / r.single.images_per_s for r in rounds],
        f"at least {section.least_gain * cores:.1f}" if section.least_gain else "",
    )
    for name in ("bare", "cluster", "single"):
        measured = [getattr(r, name) for r in rounds]
        print(
            f"  {name:<8} {median(m.images_per_s for m in measured):8.1f} images/s"
            f"  {median(m.cpu_ms for m in measured):8.2f} ms CPU per image"
            f"  of which arbiter and workers {median(m.workers_ms for m in measured):5.2f}"
        )


def main() -> None:
    """Measure all sections and print the results."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--big", type=int, default=100, help="20-megapixel images a round")
    options.add_argument("--lossless", type=int, default=200, help="the same without loss, images a round")
    options.add_argument("--small", type=int, default=3000, help="640x427 images a round")
    options.add_argument("gunicorn", nargs="*", help="arguments for gunicorn, after --")
    given = options.parse_args()
    cores = usable_cores()
    big, small = benchmark_image(), small_image()
    for section in (
        Section("20 megapixels", "pixels", big, given.big, 1.15, 0.80, 0.9),
        Section("20 megapixels without loss", "lossless", big, given.lossless, most_cpu=1.40),
        Section("640x427", "pixels", small, given.small, least_throughput=0.50),
    ):
        if section.images:
            rounds = run_rounds(section, rounds=given.rounds, cores=cores, arguments=given.gunicorn)
            report(section, rounds, cores)


if __name__ == "__main__":
    main()
