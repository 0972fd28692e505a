"""The benchmark: starts the single process and the cluster, drives both with locust, and leaves a report.

::

    python -m benchmarks                              quick: under 4 minutes on two cores
    python -m benchmarks --profile article --peers    20 megapixels, ours and other designs
    python -m benchmarks --profile full               over an hour

Everything runs on this machine, locust too: the servers share the cores with what measures them, and the
report says how much that took. Topologies alternate, so that a machine that gets slower does so for all.
Ctrl-C ends the run and writes a report of what was measured.
"""

import argparse
import csv
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from benchmarks.comparison import report
from benchmarks.comparison.profiles import BURST, IMAGES, PROFILES, Profile, SampleImage, Scenario
from benchmarks.comparison.recordings import AS_SHIPPED, CLUSTER, SINGLE
from benchmarks.comparison.tables import have_ours_failed
from benchmarks.comparison.topologies import Topology, TopologyServer, ours
from benchmarks.harness import load, processes
from benchmarks.harness.answers import Flipped, fidelity_db
from benchmarks.harness.server import ROOT, DidNotStart
from benchmarks.harness.waiting import until
from benchmarks.peers.catalogue import PEERS, missing
from server.cluster.cpus import usable_cores
from server.cluster.supervisor import MALLOC_SETTINGS

#: A run of locust takes this much longer than its users are at it.
_LOCUST_S = 1.3

#: However slow a machine is, locust is ready by then.
_DECODING_S = 60.0

#: A burst is over by then, or never.
_BURST_S = 300.0

#: Every image is decoded, turned and encoded.
BY_PIXELS = "path=pixels"

#: How long a server may be busy with requests whose clients have left, before it is restarted.
_SETTLE_S = 10.0
_IDLE = 0.15
_MOMENT_S = 0.1

#: Sampling takes CPU from what is measured: at this rate about a hundredth of a core. A burst is over soon.
_SAMPLE_S = 0.5
_SAMPLE_OF_BURST_S = 0.1

#: Memory takes ten times as long to read as CPU does, so only one sample in so many has it.
_MEMORY_EVERY = 4
_WARM_UP_REQUESTS = 4
_WARM_UP_S = 10.0

#: How many answers a window has room for at least, unless it is one of ours: some peers are slow.
_ANSWERS = 10

#: The part of a window that is left out at its start: users arrive, connections are made.
_RAMP = 0.1

#: The same for so many users that connecting takes long.
_MANY = 100
_RAMP_OF_MANY = 0.4

_TABLES = {
    "windows": ("began_s", "ended_s"),
    "requests": ("kind", "started_s", "response_ms", "outcome", "status", "bytes", "fault"),
    "processes": ("at_s", "cpu_s", "memory_mb"),
    "generator": ("at_s", "cpu_s"),
    "health": ("at_s", "response_ms", "status"),
}
_CELL = ("image", "topology", "scenario", "repetition")


class WrongAnswer(Exception):
    """An answer was not the flipped image."""


class LocustFailed(Exception):
    """locust failed; the text has what it printed."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of locust, of so many seconds."""

    image: SampleImage
    server: TopologyServer
    scenario: Scenario
    repetition: int
    seconds: float

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The first columns of its rows."""
        return self.image.name, self.server.topology.name, self.scenario.name, self.repetition


class Recorder:
    """The raw data, written as it comes, so that an interrupted run leaves what it had.

    Args:
        directory: of the result.
        facts: for run.json.
    """

    def __init__(self, directory: Path, facts: dict[str, Any]) -> None:
        self._raw = directory / "raw"
        self._raw.mkdir(parents=True)
        self._facts = facts
        self.began_s = time.time()
        for table, columns in _TABLES.items():
            self._append(table, [(*_CELL, *columns)])
        self._append("answers", [("image", "topology", "answer_bytes", "psnr_db")])
        self.finish(is_interrupted=True)

    def add(self, table: str, cell: Cell, rows: Sequence[Sequence[object]]) -> None:
        """Append rows of one cell."""
        self._append(table, [(*cell.key, *row) for row in rows])

    def add_answer(self, image: str, topology: str, size: int, psnr_db: float) -> None:
        """Append what is known of the answers of one topology."""
        self._append("answers", [(image, topology, size, f"{psnr_db:.2f}")])

    def at(self, moment_s: float) -> str:
        """Convert a moment of the wall clock to seconds since the run began."""
        return f"{moment_s - self.began_s:.4f}"

    def finish(self, *, is_interrupted: bool) -> None:
        """Write run.json."""
        facts = self._facts | {
            "duration_s": round(time.time() - self.began_s, 1),
            "interrupted": is_interrupted,
        }
        written = self._raw / "run.json.new"
        written.write_text(json.dumps(facts, indent=1) + "\n")
        written.replace(self._raw / "run.json")  # replaced at once, so that a killed run leaves a whole file

    def _append(self, table: str, rows: Sequence[Sequence[object]]) -> None:
        with (self._raw / f"{table}.csv").open("a", newline="") as file:
            csv.writer(file).writerows(rows)


class Sampler:
    """Samples of a server under load: memory and CPU of its processes, its health check, and the load's CPU.

    Args:
        server: that one.
        has_health: whether its health check is measured.
        is_burst: the load is over soon, so that every sample counts.
    """

    def __init__(self, server: TopologyServer, *, has_health: bool, is_burst: bool = False) -> None:
        self._server = server
        self._memory_every = 1 if is_burst else _MEMORY_EVERY
        self._pause_s = _SAMPLE_OF_BURST_S if is_burst else _SAMPLE_S
        self._has_health = has_health
        self._over = threading.Event()
        self.generator_pid: int | None = None
        self.samples: list[tuple[float, float, float]] = []
        self.generated: list[tuple[float, float]] = []
        self.probes: list[tuple[float, float, int]] = []

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample while the block runs."""
        threads = [threading.Thread(target=self._sample)]
        if self._has_health:
            threads.append(threading.Thread(target=self._probe))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _sample(self) -> None:
        for number in count():
            pids = list(processes.tree(self._server.pid))
            if number % self._memory_every == 0:
                memory_mb = processes.memory_mb(pids)
            self.samples.append((time.time(), processes.sum_cpu_s(pids), memory_mb))
            if self.generator_pid is not None:
                with suppress(OSError):  # it has ended
                    self.generated.append((time.time(), processes.cpu_s(self.generator_pid)))
            if self._over.wait(self._pause_s):
                return

    def _probe(self) -> None:
        while not self._over.wait(self._pause_s):
            asked = time.time()
            try:
                self.probes.append((asked, load.ask_health(self._server.address), 200))
            except (OSError, load.WrongAnswer):
                self.probes.append((asked, (time.time() - asked) * 1e3, 0))


class Benchmark:
    """One run.

    Args:
        profile: what is measured.
        recorder: writes the raw data.
        scratch: a directory for temporary files.
    """

    def __init__(self, profile: Profile, recorder: Recorder, scratch: Path) -> None:
        self._profile = profile
        self._recorder = recorder
        self._scratch = scratch
        self._answer_s: dict[tuple[str, str], float] = {}  # how long one took, of a server that is warm

    def run(
        self, topologies: Sequence[Topology], scaling: Sequence[Topology], progress: "Bar", *, peers: bool
    ) -> None:
        """Measure everything.

        Args:
            topologies: ours.
            scaling: ours, with fewer cores.
            progress: shows where it is.
            peers: whether other designs are measured too.

        Raises:
            WrongAnswer: of any topology.
            DidNotStart: one of them.
        """
        self._others = set(processes.tree(os.getpid()))
        for name, scenarios in self._profile.scenarios.items():
            image = IMAGES[name]
            with ExitStack() as stack:
                stack.push(self._kill_on_error)  # during a start, and again below, before servers are stopped
                chosen = (*topologies, *(peers_for(image) if peers else ()))
                servers = [stack.enter_context(TopologyServer(topology)) for topology in chosen]
                stack.push(self._kill_on_error)
                for server in servers:
                    self._warm_up(image, server)
                for scenario, repetition, server in self._cells(scenarios, servers):
                    seconds = self._window_s(image, server, scenario)
                    self._measure(Cell(image, server, scenario, repetition, seconds), progress)
        if self._profile.scaling is not None:
            image = IMAGES[next(iter(self._profile.scenarios))]
            for topology in scaling:
                with TopologyServer(topology) as server:
                    self._warm_up(image, server)
                    for repetition in range(self._profile.scaling.repetitions):
                        seconds = self._profile.scaling.seconds
                        cell = Cell(image, server, self._profile.scaling, repetition, seconds)
                        self._measure(cell, progress)

    def _kill_on_error(self, error: type[BaseException] | None, *_: object) -> None:
        """Kill all processes started here: Ctrl-C may come during a start, before a server is known."""
        if error is not None:
            for pid in set(processes.tree(os.getpid())) - self._others:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _cells(
        self, scenarios: Sequence[Scenario], servers: Sequence[TopologyServer]
    ) -> Iterator[tuple[Scenario, int, TopologyServer]]:
        """Yield what is measured with one image, in order."""
        for scenario in scenarios:
            for repetition in range(scenario.repetitions):
                # There and back again: a change of speed affects all.
                for server in servers if repetition % 2 == 0 else reversed(servers):
                    if repetition < repetitions_of(self._profile, scenario, server.topology):
                        yield scenario, repetition, server

    def _window_s(self, image: SampleImage, server: TopologyServer, scenario: Scenario) -> float:
        """Return how long a window is."""
        if not server.topology.is_peer:
            return scenario.seconds
        each_s = self._answer_s[image.name, server.topology.name] / server.topology.workers
        return max(scenario.seconds, _ANSWERS * each_s / (1 - _RAMP))

    def _warm_up(self, image: SampleImage, server: TopologyServer) -> None:
        """Send the image a few times, and check an answer."""
        sent = image.make().read_bytes()
        query = server.topology.query
        answer = b""
        warm_s = time.monotonic() + _WARM_UP_S
        for _ in range(_WARM_UP_REQUESTS):
            if (began_s := time.monotonic()) > warm_s:
                break
            request = urllib.request.Request(  # noqa: S310 our own
                f"{server.url}/flip" + (f"?{query}" if query else ""), sent, {"Content-Type": "image/jpeg"}
            )
            try:
                with urllib.request.urlopen(request, timeout=_BURST_S) as response:  # noqa: S310
                    answer = response.read()
            except (OSError, HTTPException) as error:
                name = server.topology.title
                raise DidNotStart(
                    f"{name} does not answer {image.title}: {error}; its log:\n{server.log}"
                ) from error
            self._answer_s[image.name, server.topology.name] = time.monotonic() - began_s
        flipped = Flipped(sent)
        if fault := flipped.fault_of(answer):
            raise WrongAnswer(f"{server.topology.title} answers wrongly to {image.title}: {fault}")
        known = self._known(image, server)
        if not known.exists():  # else it was restarted
            psnr_db = fidelity_db(sent, answer)
            self._recorder.add_answer(image.name, server.topology.name, len(answer), psnr_db)
        known.write_bytes(answer)

    def _known(self, image: SampleImage, server: TopologyServer) -> Path:
        return self._scratch / f"{image.name}-{server.topology.name}"

    def _measure(self, cell: Cell, progress: "Bar") -> None:
        """Run locust once, and record everything."""
        progress.begin(cell)
        record = self._scratch / "requests.csv"
        record.unlink(missing_ok=True)
        sampler = Sampler(
            cell.server, has_health=not cell.server.topology.is_peer, is_burst=cell.scenario.name == BURST
        )
        with sampler.sampling():
            said = self._locust(cell, record, sampler)
        if not record.exists():
            raise LocustFailed(f"locust ended without a record:\n{said}")
        with record.open(newline="") as file:
            requests = list(csv.DictReader(file))
        self._write(cell, requests, sampler)
        wrong = [request for request in requests if request["outcome"] == "wrong"]
        if wrong:
            raise WrongAnswer(
                f"{cell.server.topology.title} gave {len(wrong)} wrong answers to {cell.image.title}:\n{said}"
            )
        if not _settles(cell.server):
            cell.server.restart()
            self._warm_up(cell.image, cell.server)
        progress.end(cell)

    def _locust(self, cell: Cell, record: Path, sampler: Sampler) -> str:
        """Run it, and return what it printed."""
        scenario = cell.scenario
        is_burst = scenario.name == BURST
        users = str(scenario.users)
        command = [sys.executable, "-m", "locust", "-f", "benchmarks/locustfile.py", "--headless"]
        limit_s = _BURST_S if is_burst else cell.seconds + _DECODING_S  # of what answers are compared with
        command += ["-u", users, "-r", users, "-t", f"{limit_s:.0f}s"]
        command += ["--stop-timeout", "0", "--only-summary", "--exit-code-on-error", "0"]
        command += ["--host", cell.server.url, "--image", str(cell.image.make())]
        command += ["--answer", str(self._known(cell.image, cell.server)), "--record", str(record)]
        if cell.server.topology.query:
            command += ["--query", cell.server.topology.query]
        command += ["--burst"] if is_burst else ["--window", f"{cell.seconds:.2f}"]
        environ = MALLOC_SETTINGS | os.environ | {"PYTHONPATH": str(ROOT)}
        with processes.start(
            [*command, "RawUser"],
            last_signal=signal.SIGKILL,
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            sampler.generator_pid = process.pid
            try:
                said, _ = process.communicate(timeout=limit_s + _DECODING_S)
            except subprocess.TimeoutExpired:
                raise LocustFailed(f"locust did not end after {limit_s:.0f} s") from None
            finally:
                processes.kill_session(process.pid)
        if process.returncode:
            raise LocustFailed(f"locust ended with exit code {process.returncode}:\n{said}")
        return said

    def _write(self, cell: Cell, requests: Sequence[dict[str, str]], sampler: Sampler) -> None:
        at = self._recorder.at
        moments = [float(request["started_s"]) for request in requests]
        if moments:
            first = min(moments)
            if cell.scenario.name == BURST:
                ends = [
                    begun + float(request["response_ms"]) / 1e3
                    for begun, request in zip(moments, requests, strict=True)
                ]
                window = first, max(ends)
            else:
                ramp = _RAMP_OF_MANY if cell.scenario.users >= _MANY else _RAMP
                window = first + ramp * cell.seconds, first + cell.seconds
            self._recorder.add("windows", cell, [(at(window[0]), at(window[1]))])
        rows = [
            (request["kind"], at(float(request["started_s"])), *list(request.values())[2:])
            for request in requests
        ]
        self._recorder.add("requests", cell, rows)
        generated = [(at(moment), f"{cpu_s:.2f}") for moment, cpu_s in sampler.generated]
        self._recorder.add("generator", cell, generated)
        self._recorder.add(
            "processes",
            cell,
            [
                (at(moment), f"{cpu_s:.2f}", f"{memory_mb:.1f}")
                for moment, cpu_s, memory_mb in sampler.samples
            ],
        )
        self._recorder.add(
            "health",
            cell,
            [(at(moment), f"{took_ms:.3f}", status) for moment, took_ms, status in sampler.probes],
        )


def _settles(server: TopologyServer) -> bool:
    """Wait until a server has finished requests whose clients have left; return False if that takes long."""
    return until(lambda: _is_idle(server), _SETTLE_S)


def _is_idle(server: TopologyServer) -> bool:
    """Return whether it spends next to no CPU during a moment."""
    before_s = processes.sum_cpu_s(list(processes.tree(server.pid)))
    began = time.monotonic()
    time.sleep(_MOMENT_S)
    spent_s = processes.sum_cpu_s(list(processes.tree(server.pid))) - before_s
    return spent_s < _IDLE * (time.monotonic() - began)


class Bar:
    """A progress bar with the time left; nothing without a terminal."""

    def __init__(self, total_s: float) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=total_s)
        self._is_watched = sys.stderr.isatty()

    def __enter__(self) -> Self:
        if self._is_watched:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_watched:
            self._progress.stop()

    def begin(self, cell: Cell) -> None:
        """Show what is measured now."""
        users = "10 at once" if cell.scenario.name == BURST else f"{cell.scenario.name} users"
        self._progress.update(
            self._task, description=f"{cell.image.title}, {cell.server.topology.title}, {users}"
        )

    def end(self, cell: Cell) -> None:
        """Advance past it."""
        self._progress.advance(self._task, cell.scenario.seconds + _LOCUST_S)


def topologies_of(profile: Profile, cores: int) -> list[Topology]:
    """Return ours: the single process and the cluster; both decode every image, as the peers do.

    The single process has one core, as the cluster with N workers has N. Left to itself its worker would
    receive and send on a core of its own while the engine computes, which no single process can.
    """
    one = sorted(os.sched_getaffinity(0))[:1]
    found = [
        ours(SINGLE, "single process on one core", 1, query=BY_PIXELS, cores=one),
        ours(CLUSTER, f"cluster of {cores}", cores, query=BY_PIXELS),
    ]
    if profile.shows_lossless:
        found.append(ours(AS_SHIPPED, f"cluster of {cores}, as shipped", cores))
    return found


def peers_for(image: SampleImage) -> list[Topology]:
    """Return all peers that can run here, at the image's quality and at their own."""
    if why_not(image):
        return []
    cores = usable_cores()
    found = []
    for peer in PEERS:
        if missing(peer):
            continue
        for quality, value in (("matched", image.quality), ("default", None)):
            environ = peer.environ(cores=cores, quality=value, sample=image.make())
            found.append(
                Topology(
                    peer.name if quality == "matched" else f"{peer.name}-default",
                    peer.title,
                    cores if peer.is_cluster else 1,
                    peer.command(),
                    environ,
                    quality=quality,
                    is_peer=True,
                    design=peer.title.partition(",")[0],
                )
            )
    return found


def why_not(image: SampleImage) -> str | None:
    """Return why peers are not measured with an image, or None if they are."""
    if image.is_progressive:
        return f"{image.title}: peers would answer with one that is not, which is less work"
    return None


def scaling_of(profile: Profile, cores: int) -> list[Topology]:
    """Return ours with fewer workers, each on as many cores.

    The single process is the first point, and the cluster the last: they are measured in turn.
    """
    if profile.scaling is None:
        return []
    usable = sorted(os.sched_getaffinity(0))
    numbers = sorted({2, 3, 4, cores // 2, 3 * cores // 4} - {0, 1})
    return [
        ours(
            f"workers-{number}", f"{number} of {cores} cores", number, query=BY_PIXELS, cores=usable[:number]
        )
        for number in numbers
        if number < cores
    ]


def _facts(profile: Profile, topologies: Sequence[Topology], cores: int, *, peers: bool) -> dict[str, Any]:
    images = {}
    chosen = [IMAGES[name] for name in profile.scenarios]
    others = [peer for image in chosen for peer in peers_for(image)] if peers else []
    reasons = {peer.name: missing(peer) for peer in PEERS} | {image.name: why_not(image) for image in chosen}
    for name in profile.scenarios:
        image = IMAGES[name]
        path = image.make()
        with Image.open(path) as opened:
            width, height = opened.size
        images[name] = {
            "title": image.title,
            "width": width,
            "height": height,
            "bytes": path.stat().st_size,
            "quality": image.quality,
            "format": "jpeg",
        }
    return {
        "schema": 1,
        "profile": profile.name,
        "started": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "cores": cores,
        "commit": _commit(),
        "machine": {
            "cpu": _cpu(),
            "cores": cores,
            "physical_cores": min(cores, _physical_cores()),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("gunicorn", "falcon", "pillow", "locust")},
        },
        "images": images,
        "topologies": {
            topology.name: {
                "title": topology.title,
                "workers": topology.workers,
                "is_peer": topology.is_peer,
                "quality": topology.quality,
                "design": topology.design,
            }
            for topology in (*topologies, *others)
        },
        "skipped": [{"topology": name, "why": why} for name, why in reasons.items() if why and peers],
    }


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    said = [git, "describe", "--always", "--dirty"]
    found = subprocess.run(said, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _physical_cores() -> int:
    """Count the cores behind the usable ones: threads of one core (SMT) name each other as siblings."""
    usable = os.sched_getaffinity(0)
    try:
        siblings = {
            Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text()
            for number in usable
        }
    except OSError:
        return len(usable)
    return len(siblings)


def main() -> None:
    """Run a benchmark and write its report."""
    options = argparse.ArgumentParser("python -m benchmarks", description=__doc__.partition("\n")[0])
    options.add_argument("--profile", choices=PROFILES, default="quick")
    options.add_argument("--peers", action="store_true", help="measure other designs too")
    options.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="a directory")
    given = options.parse_args()
    cores = usable_cores()
    profile = PROFILES[given.profile].on(cores)
    topologies = topologies_of(profile, cores)
    scaling = scaling_of(profile, cores)
    directory = given.output / datetime.now().astimezone().strftime("%Y-%m-%dT%H%M%S")
    try:
        facts = _facts(profile, [*topologies, *scaling], cores, peers=given.peers)
        recorder = Recorder(directory, facts)
    except OSError as error:
        sys.exit(f"{error}; nothing was measured")
    failure = ""
    is_interrupted = False
    try:
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(TemporaryDirectory()))
            expected_s = _seconds(profile, topologies, len(scaling), peers=given.peers)
            bar = stack.enter_context(Bar(expected_s))
            Benchmark(profile, recorder, scratch).run(topologies, scaling, bar, peers=given.peers)
    except KeyboardInterrupt:
        is_interrupted = True
    except (WrongAnswer, DidNotStart, LocustFailed, OSError) as error:
        failure = str(error)
    for number in (signal.SIGINT, signal.SIGTERM):  # the report is there in a few seconds
        signal.signal(number, signal.SIG_IGN)
    try:
        recorder.finish(is_interrupted=is_interrupted or bool(failure))
        summary = report.write(directory)
    except OSError as error:
        sys.exit(f"{failure}\nThe report could not be written: {error}".strip())
    print(report.verdict(summary))
    print(f"The report is {directory / 'report.html'}")
    if failure:
        sys.exit(f"\n{failure}")
    if have_ours_failed(summary):
        sys.exit(1)
    if is_interrupted:
        sys.exit(128 + signal.SIGINT)  # as shells say it: this is no result


def _seconds(profile: Profile, ours: Sequence[Topology], scaling: int, *, peers: bool) -> float:
    """Estimate how long everything takes if no peer is too slow."""
    runs = [(profile.scaling, profile.scaling.repetitions * scaling)] if profile.scaling else []
    for name, scenarios in profile.scenarios.items():
        chosen = [*ours, *(peers_for(IMAGES[name]) if peers else ())]
        runs += [(each, sum(repetitions_of(profile, each, one) for one in chosen)) for each in scenarios]
    return sum((scenario.seconds + _LOCUST_S) * count for scenario, count in runs)


def repetitions_of(profile: Profile, scenario: Scenario, topology: Topology) -> int:
    """Return how often a scenario is measured; peers at their default quality once, without the burst."""
    if not topology.is_peer:
        return scenario.repetitions
    of_peers = {each.name: each.repetitions for each in profile.with_peers}
    if topology.quality == "default":
        return int(scenario.name in of_peers and scenario.name != BURST)
    return of_peers.get(scenario.name, 0)
