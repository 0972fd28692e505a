"""Compare our job queue with those that people use.

Run it with `make queues`, on a machine that does nothing else; it takes about 20 minutes. A system that is
not installed is left out, with a line that says what to install. All systems run from the beginning to the
end; while speed is measured, all others are idle, and in each round the order is another one.
"""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

from PIL import Image

from benchmarks.harness.server import ROOT
from benchmarks.harness.tables import Table
from benchmarks.peers.queues.systems import SYSTEMS, System, missing, versions
from benchmarks.queues import measures
from benchmarks.queues.contender import WORKERS, Contender, NotReady, OurService
from benchmarks.queues.measures import Figures, Unfinished
from benchmarks.queues.tables import markdown, tables
from images.render import benchmark_image

_RESULTS = ROOT / "benchmarks" / "results"
_QUALITY = 88
_SIZE = (3200, 2400)

_STARTS, _FLIPS = 7, 20
_QUICK_STARTS, _QUICK_FLIPS, _QUICK_JOBS = 2, 2, 60


class Benchmark:
    """One run.

    Args:
        rounds: how often speed and cost are measured.
        idle_s: idleness before the first job, in seconds.
        wait_s: how long after a kill what happens to jobs counts, in seconds.
        is_quick: small counts, for tests.
    """

    def __init__(self, *, rounds: int, idle_s: float, wait_s: float, is_quick: bool = False) -> None:
        self._rounds = rounds
        self._idle_s = idle_s
        self._wait_s = wait_s
        self._is_quick = is_quick
        self.results: dict[System, Figures] = {}

    def run(self, systems: Sequence[System]) -> None:
        """Measure systems; `results` has what was measured, also when this raises an error."""
        with (
            tempfile.TemporaryDirectory(prefix="q-") as data,  # the path of a socket has to be short
            tempfile.TemporaryDirectory(dir=_memory()) as witness,
            ExitStack() as stack,
        ):
            image = Path(data) / "image.jpg"
            image.write_bytes(two_megabytes())
            contenders = []
            for system in systems:
                self.results[system] = Figures()
                kind = OurService if system.is_service else Contender
                contender = kind(system, Path(data) / system.name, Path(witness))
                try:
                    stack.enter_context(contender)
                    contender.warm_up()
                except NotReady as error:
                    self._note(system, error)
                else:
                    contenders.append(contender)
            self._measure(contenders, image)

    def _measure(self, contenders: Sequence[Contender], image: Path) -> None:
        polled = [each for each in contenders if not each.system.is_only_idle]
        self._measure_speed(polled, image)
        print(f"idle for {self._idle_s:.0f} s", flush=True)
        firsts = measures.first_after_idleness(contenders, self._idle_s, self._wait_s)
        for contender, first_ms in firsts.items():
            self.results[contender.system].first_ms = first_ms
        self._measure_kills([each for each in polled if not each.system.is_queue_alone])

    def _measure_speed(self, contenders: Sequence[Contender], image: Path) -> None:
        choice = random.Random(1816)  # noqa: S311 no secret
        counts: dict[System, int] = {}
        starts, flips = (_QUICK_STARTS, _QUICK_FLIPS) if self._is_quick else (_STARTS, _FLIPS)
        for number in range(self._rounds):
            print(f"round {number + 1} of {self._rounds}", flush=True)
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                system, figures = contender.system, self.results[contender.system]
                try:
                    if system not in counts:
                        counts[system] = _QUICK_JOBS if self._is_quick else measures.count_for(contender)
                    figures.start_ms += measures.starts(contender, starts, choice)
                    figures.empty.append(measures.empty_jobs(contender, counts[system]))
                    if not system.is_queue_alone:
                        figures.flips.append(measures.flips(contender, image, _QUALITY, flips))
                except Unfinished as error:
                    self._note(system, error)

    def _measure_kills(self, contenders: Sequence[Contender]) -> None:
        print("kill -9 of a job's process", flush=True)
        for contender, killed in measures.kill_workers(contenders, self._wait_s, whole=False).items():
            self.results[contender.system].process_killed = killed
            self._note_missing(contender, killed, "no process of a job was killed")
        print("kill -9 of a worker", flush=True)
        for contender, killed in measures.kill_workers(contenders, self._wait_s, whole=True).items():
            self.results[contender.system].worker_killed = killed
            self._note_missing(contender, killed, "no worker was killed")
        print("kill -9 of the server", flush=True)
        for contender, jobs in measures.kill_servers(contenders, self._wait_s).items():
            self.results[contender.system].server_killed = jobs
            self._note_missing(contender, jobs, "its server did not answer again after it was killed")
        print("submissions without a server", flush=True)
        for contender, away in measures.submit_without_server(contenders).items():
            self.results[contender.system].away = away

    def _note_missing(self, contender: Contender, figure: object, reason: str) -> None:
        if figure is None:
            self._note(contender.system, reason)

    def _note(self, system: System, error: object) -> None:
        self.results[system].faults.append(str(error))
        print(f"{system.name}: {error}", file=sys.stderr, flush=True)


def two_megabytes() -> bytes:
    """Return a JPEG of two megabytes."""
    with Image.open(benchmark_image()) as image, BytesIO() as file:
        image.resize(_SIZE).save(file, "JPEG", quality=_QUALITY)
        return file.getvalue()


def _memory() -> str | None:
    """Return a directory in memory, so that no fsync of a system waits for what the witness wrote."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 a directory of its own is made there


def write(directory: Path, benchmark_results: Mapping[System, Figures], found: Sequence[Table]) -> None:
    """Write `queues.md` and `queues.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "queues.md").write_text(markdown(found))
    document = {
        "systems": {system.name: asdict(figures) for system, figures in benchmark_results.items()},
        "tables": [asdict(table) for table in found],
    }
    (directory / "queues.json").write_text(json.dumps(document, indent=1) + "\n")


def _about(systems: Sequence[System], rounds: int) -> dict[str, str]:
    cpu = next(
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607 whichever git is there
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit.stdout.strip() or "unknown",
        "machine": f"{os.cpu_count()} cores, {cpu}, Linux {platform.release()}",
        "workers of each system": f"{WORKERS} processes, each with one job at a time",
        "rounds": str(rounds),
        **versions(systems),
    }


def main() -> None:
    """Measure, print and write the tables, also of a run that is interrupted (Ctrl-C, SIGTERM) or fails.

    The exit code is 1 when the run failed or something went wrong with ours.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "systems", nargs="*", metavar="system", help=", ".join(each.name for each in SYSTEMS)
    )
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--idle", type=float, default=60.0, help="idleness before a first job, in seconds")
    options.add_argument(
        "--wait", type=float, default=180.0, help="how long after a kill jobs are waited for, in seconds"
    )
    options.add_argument("--quick", action="store_true", help="small counts")
    options.add_argument("--into", type=Path, help="the directory of the result")
    given = options.parse_args()
    if unknown := set(given.systems) - {each.name for each in SYSTEMS}:
        options.error(f"there is no system {', '.join(sorted(unknown))}")
    wanted = [each for each in SYSTEMS if not given.systems or each.name in given.systems]
    left_out = [reason for reason in map(missing, wanted) if reason]
    for reason in left_out:
        print(reason, file=sys.stderr)
    systems = [each for each in wanted if missing(each) is None]
    about = _about(systems, given.rounds)
    benchmark = Benchmark(rounds=given.rounds, idle_s=given.idle, wait_s=given.wait, is_quick=given.quick)
    has_failed = False
    try:
        benchmark.run(systems)
    except KeyboardInterrupt:
        left_out.append("all that had not been measured when the run was interrupted")
    except Exception as error:  # noqa: BLE001 whatever it is, what was measured before is kept
        traceback.print_exc()
        left_out.append(f"all that had not been measured when the run failed: {error!r}")
        has_failed = True
    about["left out"] = "; ".join(left_out) or "none"
    found = tables(benchmark.results, given.wait, about)
    into = given.into or _RESULTS / time.strftime("%Y%m%d-%H%M%S")
    write(into, benchmark.results, found)
    print(markdown(found))
    print(f"written to {into}")
    ours = [figures for system, figures in benchmark.results.items() if not system.is_peer]
    sys.exit(has_failed or any(figures.faults for figures in ours))


if __name__ == "__main__":
    main()
