"""What the service costs over the bare function, and what the cluster gains over one process.

All contenders alternate in one run, so that what else the machine does hits them alike; each ratio is
taken within a round, and the median over the rounds is the result.
Run it with `python -m benchmarks.cost.ratios`, on a machine that does nothing else.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import IO

from benchmarks.cost import bare
from benchmarks.harness import load, processes
from benchmarks.harness.findings import probed
from images.render import benchmark_image, small_image
from server.cluster.cpus import usable_cores
from server.cluster.supervisor import MALLOC_SETTINGS

_ROOT = Path(__file__).parents[2]
_AT_ONCE = 10
_DEADLINE_S = 30.0
_FEWEST_PROBES = 20


@dataclass(frozen=True, slots=True)
class Section:
    """One picture on one path.

    Attributes:
        method: the path, and what the bare function does: see `bare.METHODS`.
        pictures: how many a round.
        most_cpu: CPU of the service over that of the bare function; 0 for nothing promised.
        least_throughput: of the cluster over the bare function.
        least_gain: of the cluster over one process, for each core.
    """

    title: str
    method: str
    picture: Path
    pictures: int
    most_cpu: float = 0.0
    least_throughput: float = 0.0
    least_gain: float = 0.0


@dataclass(frozen=True, slots=True)
class Service:
    """A gunicorn under test."""

    pid: int
    address: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Measured:
    """One contender in one round.

    Attributes:
        pictures_per_s: throughput.
        cpu_ms: CPU time of all its processes per picture, in milliseconds.
        workers_ms: the part of `cpu_ms` that the arbiter and the workers spent.
    """

    pictures_per_s: float
    cpu_ms: float
    workers_ms: float = 0.0


@contextmanager
def service(workers: int, arguments: Sequence[str] = ()) -> Iterator[Service]:
    """Run the service with a number of workers on a free port of the loopback address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "-w", str(workers), *arguments],
        cwd=_ROOT,
        env=os.environ | {"FLIP_LOG_FORMAT": "json"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Service(process.pid, _address(process, workers))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_DEADLINE_S)


def _address(process: subprocess.Popen[str], workers: int) -> tuple[str, int]:
    assert process.stderr is not None
    log = process.stderr
    port = 0
    online = 0
    for line in log:
        if '"arbiter_listening"' in line:
            port = int(line.partition("http://127.0.0.1:")[2].partition('"')[0])
        online += '"worker_online"' in line
        if online == workers:
            # Somebody has to go on reading, or the service would wait for room in the pipe.
            threading.Thread(target=_discard, args=(log,), daemon=True).start()
            return "127.0.0.1", port
    sys.exit("the service did not start; run `gunicorn` to see why")


def _discard(log: IO[str]) -> None:
    with log:
        deque(log, maxlen=0)


def measure_service(under_test: Service, section: Section, requests: int) -> Measured:
    """Load the service and charge it for every process it consists of."""
    pids = list(processes.tree(under_test.pid))
    engines = {pid for pid in pids if "server.cluster.engine" in processes.command(pid)}
    before = {pid: processes.cpu_s(pid) for pid in pids}
    done = put_to_work(under_test, section, requests)
    spent = {pid: processes.cpu_s(pid) - before[pid] for pid in pids}
    return Measured(
        pictures_per_s=requests / done.wall_s,
        cpu_ms=sum(spent.values()) / requests * 1e3,
        workers_ms=sum(cpu for pid, cpu in spent.items() if pid not in engines) / requests * 1e3,
    )


def put_to_work(under_test: Service, section: Section, requests: int) -> load.Load:
    """Have so many pictures flipped."""
    picture = section.picture.read_bytes()
    target = f"/flip?path={section.method}"
    return load.run(under_test.address, picture, requests=requests, at_once=_AT_ONCE, target=target)


def measure_bare(section: Section, cores: int, pictures_each: int) -> Measured:
    """Run the bare function in as many processes as there are cores."""
    environ = MALLOC_SETTINGS | os.environ
    command = bare.command_of(section.method, section.picture, pictures_each)
    done = bare.run(command, processes=cores, environ=environ)
    pictures = cores * pictures_each
    return Measured(pictures / done.wall_s, done.cpu_s / pictures * 1e3)


@dataclass(frozen=True, slots=True)
class Round:
    """All contenders, one after the other."""

    bare: Measured
    cluster: Measured
    single: Measured


def run_rounds(section: Section, *, rounds: int, cores: int, arguments: Sequence[str]) -> list[Round]:
    """Alternate the contenders; each gets the section's pictures a round, a single process its share."""
    share = section.pictures // cores
    results = []
    health_ms: list[float] = []
    with ExitStack() as stack:
        cluster = stack.enter_context(service(cores, arguments))
        single = stack.enter_context(service(1, arguments))
        put_to_work(cluster, section, 4 * _AT_ONCE)  # warm-up
        put_to_work(single, section, 2 * _AT_ONCE)
        for number in range(rounds):
            bare_one = measure_bare(section, cores, share)
            cluster_one = measure_service(cluster, section, section.pictures)
            single_one = measure_service(single, section, share)
            # Apart: on a free core of the single process it would be free.
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
    """Print how long the health check took beside the load."""
    if len(taken_ms) < _FEWEST_PROBES:
        print("  health check beside the load: the load was too short to tell")
        return
    p50, p99 = (quantiles(taken_ms, n=100)[n - 1] for n in (50, 99))
    print(
        f"  health check beside the load: median {p50:.1f} ms, p99 {p99:.1f} ms,"
        f" maximum {max(taken_ms):.1f} ms, {len(taken_ms)} asked"
    )


def print_fidelity(under_test: Service, section: Section) -> None:
    """Print what one trip through the service did to the picture."""
    host, port = under_test.address
    picture = section.picture
    url = f"http://{host}:{port}/flip?path={section.method}"
    request = urllib.request.Request(url, picture.read_bytes(), method="POST")
    with urllib.request.urlopen(request, timeout=_DEADLINE_S) as answer:  # noqa: S310 our own
        body = answer.read()
    size = len(body) / picture.stat().st_size
    psnr_db = bare.fidelity_db(picture.read_bytes(), body)
    print(f"  the picture: {psnr_db:.2f} dB PSNR, {(size - 1) * 100:+.2f} % of its size")


def print_memory(under_test: Service) -> None:
    """Print the peak memory of the largest worker and the largest engine."""
    peaks = {"worker": 0.0, "engine": 0.0}
    for pid in processes.tree(under_test.pid):
        if pid != under_test.pid:
            kind = "engine" if "server.cluster.engine" in processes.command(pid) else "worker"
            peaks[kind] = max(peaks[kind], processes.peak_memory_mb(pid))
    print(f"  peak memory: worker {peaks['worker']:.0f} MB, engine {peaks['engine']:.0f} MB")


def print_ratio(name: str, values: Sequence[float], target: str) -> None:
    """Print the median over the rounds, the spread, and what it should be."""
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
        [r.cluster.pictures_per_s / r.bare.pictures_per_s for r in rounds],
        f"at least {section.least_throughput:.2f}" if section.least_throughput else "",
    )
    print_ratio(
        "throughput of the cluster / single process",
        [r.cluster.pictures_per_s / r.single.pictures_per_s for r in rounds],
        f"at least {section.least_gain * cores:.1f}" if section.least_gain else "",
    )
    for name in ("bare", "cluster", "single"):
        measured = [getattr(r, name) for r in rounds]
        print(
            f"  {name:<8} {median(m.pictures_per_s for m in measured):8.1f} pictures/s"
            f"  {median(m.cpu_ms for m in measured):8.2f} ms CPU per picture"
            f"  of which arbiter and workers {median(m.workers_ms for m in measured):5.2f}"
        )


def main() -> None:
    """Measure both pictures and print what came out."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--big", type=int, default=100, help="20-megapixel pictures a round")
    options.add_argument("--moved", type=int, default=200, help="the same without loss, pictures a round")
    options.add_argument("--small", type=int, default=3000, help="640x427 pictures a round")
    options.add_argument("gunicorn", nargs="*", help="arguments for gunicorn, after --")
    given = options.parse_args()
    cores = usable_cores()
    big, small = benchmark_image(), small_image()
    for section in (
        Section("20 megapixels", "pixels", big, given.big, 1.15, 0.80, 0.9),
        Section("20 megapixels without loss", "lossless", big, given.moved, most_cpu=1.40),
        Section("640x427", "pixels", small, given.small, least_throughput=0.50),
    ):
        if section.pictures:
            rounds = run_rounds(section, rounds=given.rounds, cores=cores, arguments=given.gunicorn)
            report(section, rounds, cores)


if __name__ == "__main__":
    main()
