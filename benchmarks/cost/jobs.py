"""What a job costs: how soon it starts, how many there can be, and what they take from requests.

Everything runs on a real service with an embedded store in a directory of its own. Only the figures of the
store come from its client and an embedded server alone: an empty job is one that is claimed and reported
done. Ratios are taken within a round, and the contenders alternate.
Run it with `python -m benchmarks.cost.jobs`, on a machine that does nothing else (about 10 minutes).
"""

import argparse
import asyncio
import io
import os
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

import httpx
from PIL import Image
from redis import Redis

from benchmarks.harness import load, processes
from benchmarks.harness.findings import Finding, print_table
from benchmarks.harness.ranks import percentile
from benchmarks.harness.server import LiveServer
from benchmarks.harness.waiting import at_intervals, until
from images.render import benchmark_image, small_image
from server.jobs.embedded import EmbeddedStore
from server.jobs.model import Facts, NewJob, Result, Schedule, new_id
from server.jobs.store import Store

#: A flip of a JPEG as shipped: what a job adds would be lost in the noise of decoding and encoding it.
_TARGET = "/flip"

_ASYNC = {"Prefer": "respond-async"}
_FACTS = Facts("flip", 1, {}, attempts=5)
_DEFAULT = Schedule("default")
_RESULT = Result({"media_type": "image/png"}, 0, 1)
_CONSUMERS, _AT_ONCE = 2, 3

#: What is promised.
_START_MS, _CPU_MS = 5.0, 4.0
_EMPTY_PER_S, _ITEMS_PER_S = 1000, 3000
_GROWTH, _MEMORY_MB = 1.5, 60.0
_P95_RATIO, _BUSY_SHARE = 1.3, 0.9
_GRACE_MS, _REFUSED_MS = 1050.0, 5.0

_WAITING = (100, 1_000, 10_000, 100_000)
_DEADLINE_S = 600.0


@contextmanager
def service() -> Iterator[tuple[LiveServer, Redis]]:
    """Run a service with jobs, whose data is gone at the end, with a client of its store past the service."""
    with (
        tempfile.TemporaryDirectory() as directory,
        LiveServer(environ={"FLIP_JOBS": "embedded", "FLIP_DATA_DIR": directory}) as server,
        Redis(unix_socket_path=f"{directory}/store/valkey.sock") as store,
    ):
        yield server, store


@contextmanager
def embedded_store() -> Iterator[str]:
    """Run an embedded store alone, and return its URL."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "store" / "valkey.sock"
        store = EmbeddedStore(path, None)
        store.start()
        try:
            yield f"unix://{path}"
        finally:
            store.stop()


def client(url: str, owner: str) -> Store:
    """Return a client of an embedded store that has no limits."""
    return Store(
        url,
        owner=owner,
        grace_s=10,
        ttl_s=3600,
        lease_s=600,
        max_jobs=1_000_000,
        max_bytes=1 << 60,
    )


def starts(times: int, idle_s: float) -> list[Finding]:
    """Measure from the submission of a job to its start, one at a time."""
    with service() as (server, _):
        _start_ms(server, 5, 0)
        busy = _start_ms(server, times, 0.2)
        idle = _start_ms(server, 3, idle_s)
    return [
        Finding("enqueue to start when idle, p50: 5 ms", _milliseconds(busy), median(busy) < _START_MS),
        Finding(
            f"the first job after {idle_s:g} s of idleness: 5 ms",
            _milliseconds(idle),
            median(idle) < _START_MS,
        ),
    ]


def _start_ms(server: LiveServer, times: int, pause_s: float) -> list[float]:
    image = small_image().read_bytes()
    found = []
    for _ in range(times):
        time.sleep(pause_s)
        location = httpx.post(f"{server.url}/flip", content=image, headers=_ASYNC).headers["location"]
        job = httpx.get(server.url + location, headers={"Prefer": "wait=30"}, timeout=60).json()
        created, started = (datetime.fromisoformat(job[name]) for name in ("created", "started"))
        found.append((started - created).total_seconds() * 1e3)
    return found


def rate(jobs: int) -> list[Finding]:
    """Count the empty jobs per second of a store that writes each change to the disk."""

    async def consume(store: Store) -> int:
        done = 0
        while claims := (await store.claim(new_id(), [_FACTS.kind], _AT_ONCE))[0]:
            await asyncio.gather(*(store.complete(claim, _RESULT) for claim in claims))
            done += len(claims)
        return done

    async def measure() -> float:
        async with client(url, "submitter") as store:
            await _submit(store, jobs)
            consumers = [client(url, f"consumer {number}") for number in range(_CONSUMERS)]
            began_s = time.monotonic()
            done = await asyncio.gather(*map(consume, consumers))
            took_s = time.monotonic() - began_s
            for consumer in consumers:
                await consumer.__aexit__()
        assert sum(done) == jobs
        return jobs / took_s

    with embedded_store() as url:
        per_s = asyncio.run(measure())
    return [Finding("empty jobs per second, durable: 1,000", f"{per_s:.0f}", per_s >= _EMPTY_PER_S)]


async def _submit(store: Store, jobs: int) -> None:
    batch = new_id()
    for start in range(0, jobs, 500):
        new = [NewJob(100_000, index, f"{index}.jpg") for index in range(start, min(jobs, start + 500))]
        await store.submit_items(batch, _FACTS, new, _DEFAULT)
    await store.seal(batch)


def waiting() -> list[Finding]:
    """Measure claims, and the memory of the store, with more and more jobs waiting.

    A second store, in which few jobs wait, is asked in turn: a machine that gets slower does so for both.
    """

    async def measure() -> tuple[list[float], float]:
        ratios: list[float] = []
        there = 0
        async with client(small_url, "measure") as small, client(url, "measure") as store:
            await _submit(small, _WAITING[0])
            for jobs in _WAITING:
                await _submit(store, jobs - there)
                there = jobs
                few_ms, many_ms = [], []
                for _ in range(300):
                    few_ms.append(await _claim_ms(small))
                    many_ms.append(await _claim_ms(store))
                ratios.append(median(many_ms) / median(few_ms))
            pids = [pid for pid in processes.tree(os.getpid()) if "valkey" in processes.command(pid)]
            return ratios, max(processes.memory_mb([pid]) for pid in pids)

    with embedded_store() as small_url, embedded_store() as url:
        ratios, memory_mb = asyncio.run(measure())
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return [
        Finding(
            f"claim p50 with {_WAITING} waiting, over that with {_WAITING[0]}: 1.5",
            shown,
            max(ratios) <= _GROWTH,
        ),
        Finding(
            "memory of the store with 100,000 waiting: 60 MB", f"{memory_mb:.0f} MB", memory_mb < _MEMORY_MB
        ),
    ]


async def _claim_ms(store: Store) -> float:
    """Claim a job and give it back, and return what the claim took, in milliseconds."""
    began_s = time.perf_counter()
    (claimed,), _ = await store.claim(new_id(), [_FACTS.kind], 1)
    took_ms = (time.perf_counter() - began_s) * 1e3
    await store.give_back(claimed)
    return took_ms


def acceptance(items: int) -> list[Finding]:
    """Measure how fast many small items are accepted in one request."""
    image = small_image().read_bytes()[:20_000]  # damaged, so that no engine is busy with it
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for number in range(items):
                member = tarfile.TarInfo(f"{number}.jpg")
                member.size = len(image)
                archive.addfile(member, io.BytesIO(image))
        body = file.getvalue()
    rates = []
    with service() as (server, _):
        httpx.post(f"{server.url}/queues/default/pause")
        for _ in range(3):
            began_s = time.monotonic()
            response = httpx.post(f"{server.url}/batches?operation=flip", content=body, timeout=120)
            rates.append(items / (time.monotonic() - began_s))
            response.raise_for_status()
    seen = f"{median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"
    return [Finding(f"{items} items in one request, per second: 3,000", seen, median(rates) >= _ITEMS_PER_S)]


def cpu(rounds: int, jobs: int) -> list[Finding]:
    """Compare the CPU time of a job with that of a request, all processes together, in many short rounds."""
    image = _two_megabytes()
    requests_ms, more_ms = [], []
    with service() as (server, store):
        _run_jobs(server, store, image, 5)
        for _ in range(rounds):
            of_request = _cpu_ms(
                server,
                lambda: load.run(server.address, image, requests=jobs, at_once=2, target=_TARGET),
                jobs,
            )
            of_job = _cpu_ms(server, lambda: _run_jobs(server, store, image, jobs), jobs)
            requests_ms.append(of_request)
            more_ms.append(of_job - of_request)
    return [
        Finding("CPU time of a request with 2 MB, for comparison", _milliseconds(requests_ms), is_kept=True),
        Finding(
            "CPU time of a job over that of a request: 4 ms",
            _milliseconds(more_ms),
            median(more_ms) <= _CPU_MS,
        ),
    ]


def _cpu_ms(server: LiveServer, run: Callable[[], object], count: int) -> float:
    before_s = processes.sum_cpu_s(server.processes())
    run()
    return (processes.sum_cpu_s(server.processes()) - before_s) / count * 1e3


def _run_jobs(server: LiveServer, store: Redis, image: bytes, count: int) -> None:
    """Run jobs, and look rarely, and in the store, whether they have ended: watching costs too."""
    ended = _ended(store) + count
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for _ in range(count):
            http.post(_TARGET, content=image, headers=_ASYNC).raise_for_status()
    for _ in at_intervals(6000, 0.1):
        if _ended(store) == ended:
            return
    raise TimeoutError("the jobs have not ended")


def _ended(store: Redis) -> int:
    return int(store.hget("{flip}:counts:default", "ended") or 0)


def away(times: int) -> list[Finding]:
    """Time submissions and requests while the store is frozen, each on a connection of its own."""
    image = small_image().read_bytes()
    with (
        embedded_store() as url,
        tempfile.TemporaryDirectory() as directory,
        LiveServer(
            environ={"FLIP_JOBS": "remote", "FLIP_QUEUE_URL": url, "FLIP_DATA_DIR": directory}
        ) as server,
        Redis.from_url(url) as store,
    ):
        assert _answer_ms(server, image, _ASYNC)[0] == HTTPStatus.ACCEPTED
        pid = store.info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            first = [_answer_ms(server, image, _ASYNC) for _ in at_intervals(300, 0.01)]
            later = [_answer_ms(server, image, _ASYNC) for _ in range(times)]
            requests = [_answer_ms(server, image, {}) for _ in range(times)]
        finally:
            os.kill(pid, signal.SIGCONT)
    longest_ms, later_ms = max(ms for _, ms in first), sorted(ms for _, ms in later)
    p99_ms = percentile(later_ms, 99) or 0
    are_refused = {status for status, _ in (*first, *later)} == {HTTPStatus.SERVICE_UNAVAILABLE}
    return [
        Finding(
            "the longest submission of a frozen store: the grace, 1 s",
            f"{longest_ms:.0f} ms",
            longest_ms < _GRACE_MS,
        ),
        Finding(
            f"503 after the grace, p99 of {times}: 5 ms",
            f"{p99_ms:.2f} ms (p50 {median(later_ms):.2f}, longest {later_ms[-1]:.2f})",
            are_refused and p99_ms <= _REFUSED_MS,
        ),
        Finding(
            f"requests meanwhile that were answered with 200: {times}",
            str(sum(status == HTTPStatus.OK for status, _ in requests)),
            {status for status, _ in requests} == {HTTPStatus.OK},
        ),
    ]


def _answer_ms(server: LiveServer, image: bytes, headers: Mapping[str, str]) -> tuple[int, float]:
    """Post an image, and return the status and how long the answer took."""
    began_s = time.monotonic()
    with closing(HTTPConnection(*server.address, timeout=_DEADLINE_S)) as connection:
        connection.request("POST", _TARGET, image, dict(headers))
        response = connection.getresponse()
        response.read()
    return response.status, (time.monotonic() - began_s) * 1e3


def neighbours(rounds: int) -> list[Finding]:
    """Compare the response time of one client's requests during a batch with that without."""
    findings = []
    image = _two_megabytes()
    for name, item, items in (
        ("500 x 2 MB JPEG", image, 500),
        ("24 x 35-megapixel WebP", _photo((7000, 5000), "WEBP", quality=60, method=0), 24),
    ):
        ratios, shares = [], []
        with service() as (server, _):
            load.run(server.address, image, requests=20, at_once=1)
            for _ in range(rounds):
                alone = _p95_ms(server, image)
                location = _submit_batch(server, item, items)
                before_s, began_s = processes.sum_cpu_s(server.processes()), time.monotonic()
                loaded = _p95_ms(server, image)
                busy_s = processes.sum_cpu_s(server.processes()) - before_s
                shares.append(busy_s / (time.monotonic() - began_s) / 2)
                assert httpx.get(server.url + location).json()["remaining"] > 0
                httpx.delete(server.url + location, timeout=60)
                until(lambda: httpx.get(server.url + location).json()["remaining"] == 0, _DEADLINE_S)  # noqa: B023
                ratios.append(loaded / alone)
        findings += [
            Finding(
                f"p95 of requests during {name} over that without: 1.3",
                _spread(ratios),
                median(ratios) <= _P95_RATIO,
            ),
            Finding("cores busy meanwhile: 90 %", _spread(shares), median(shares) >= _BUSY_SHARE),
        ]
    return findings


def _p95_ms(server: LiveServer, image: bytes) -> float:
    done = load.run(server.address, image, requests=100, at_once=1)
    return (percentile(done.response_s, 95) or 0) * 1e3


def _submit_batch(server: LiveServer, item: bytes, items: int) -> str:
    files = [("image", (f"{number}.jpg", item)) for number in range(items)]
    response = httpx.post(f"{server.url}/batches?operation=flip&path=pixels", files=files, timeout=300)
    response.raise_for_status()
    return str(response.headers["location"])


def _two_megabytes() -> bytes:
    return _photo((3200, 2400), "JPEG", quality=88)


def _photo(size: tuple[int, int], form: str, **options: int) -> bytes:
    """Return the benchmark's photo in another size and format."""
    with Image.open(benchmark_image()) as image, io.BytesIO() as file:
        image.resize(size).save(file, form, **options)
        return file.getvalue()


def _milliseconds(values: Sequence[float]) -> str:
    return f"{_spread(values)} ms"


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Measure what was asked for; the exit code is 1 when a promise was not kept."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("parts", nargs="*", help="starts, rate, waiting, acceptance, cpu, away, neighbours")
    options.add_argument("--idle", type=float, default=60.0, help="idleness before a first job, in seconds")
    options.add_argument("--rounds", type=int, default=4)
    given = options.parse_args()
    parts: dict[str, Callable[[], list[Finding]]] = {
        "starts": lambda: starts(30, given.idle),
        "rate": lambda: rate(5000),
        "waiting": waiting,
        "acceptance": lambda: acceptance(1000),
        "cpu": lambda: cpu(8 * given.rounds, 12),
        "away": lambda: away(1000),
        "neighbours": lambda: neighbours(given.rounds),
    }
    if unknown := set(given.parts) - parts.keys():
        options.error(f"there is no part {', '.join(unknown)}")
    are_kept = True
    for name in given.parts or parts:
        began_s = time.monotonic()
        findings = parts[name]()
        print_table(name, findings, time.monotonic() - began_s)
        are_kept = are_kept and all(finding.is_kept for finding in findings)
    sys.exit(not are_kept)


if __name__ == "__main__":
    main()
