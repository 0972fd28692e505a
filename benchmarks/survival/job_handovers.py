"""Scenarios of jobs while the service is reloaded, upgraded, or shares its data, and while its store dies.

Each scenario starts a service of its own, with a store in a directory of its own, and returns its findings.
The defaults are the full size; tests pass smaller values.
"""

import os
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import httpx

from benchmarks.harness.exchanges import Exchange, ask, outcome
from benchmarks.harness.findings import Finding
from benchmarks.harness.messages import post
from benchmarks.harness.server import STORE, LiveServer
from benchmarks.harness.waiting import DEADLINE_S, at_intervals, until
from benchmarks.survival.batches import (
    ACCEPTED,
    BATCH_S,
    PREFIX,
    bugs,
    data_directory,
    faults_of_batch,
    get,
    items,
    job_cluster,
    kill,
    no_bugs,
    store,
    submit_batch,
    wait_until_ended,
)
from benchmarks.survival.cluster import listed

_AT_ONCE = 32
_BETWEEN_KILLS_S = 2.0
_MOST_BATCHES = 5
_LATER = "Prefer: respond-async\r\n"


class Submitter:
    """A client that submits a job at fixed intervals, whether the ones before are answered or not.

    Attributes:
        done: what became of each submission; complete when the block has ended.
    """

    def __init__(self, server: LiveServer, body: bytes, every_s: float = 0.02) -> None:
        self._address = server.address
        self._request = post(body, _LATER)
        self._every_s = every_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._submit)
        self.done: list[Exchange] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _submit(self) -> None:
        sent: list[Future[Exchange]] = []
        due_s = time.monotonic()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while not self._is_over.wait(max(0.0, due_s - time.monotonic())):
                sent.append(pool.submit(ask, self._address, self._request))
                due_s += self._every_s
        self.done = [each.result() for each in sent]

    @property
    def locations(self) -> list[str]:
        """The addresses of the jobs that were accepted."""
        return [each.headers["location"] for each in self.done if each.status == ACCEPTED]

    def finding(self, during: str) -> Finding:
        """Say whether a submission was refused, and how long the slowest took."""
        slowest_s = max(each.took_s for each in self.done)
        return Finding(
            f"no submission is refused during {during}",
            f"{listed(Counter(map(outcome, self.done)))}; slowest {slowest_s:.2f} s",
            len(self.locations) == len(self.done),
        )


def submissions(
    store_kills: int = 3, size: tuple[int, int] = (320, 240), grace_s: float = 1.0
) -> list[Finding]:
    """Submit every 20 ms while the service is reloaded and upgraded and its store dies; none is refused."""
    (item,) = items(1, 0, size)
    findings, locations = [], []
    with data_directory() as data, job_cluster(data, FLIP_STORE_GRACE_S=str(grace_s)) as server:
        for during, disturb in (
            ("a reload (HUP)", _reload),
            (f"{store_kills} kills of the store", lambda server: _kill_store(server, store_kills)),
            ("an upgrade (USR2, then TERM of the old arbiter)", _upgrade),
        ):
            with Submitter(server, item.body) as client:
                disturb(server)
            findings.append(client.finding(during))
            locations += client.locations
        states = _states_at_end(data, locations)
        os.kill(server.processes()[0], signal.SIGTERM)  # the new arbiter
        left = [] if until(lambda: not server.processes()) else server.processes()
    return [
        *findings,
        Finding(
            "each job that was accepted completes",
            f"{len(locations)} jobs: {listed(states)}",
            states == {"completed": len(locations)},
        ),
        Finding("the new arbiter stops with all of its processes", f"left: {left}", not left),
        no_bugs(bugs(server)),
    ]


def _reload(server: LiveServer) -> None:
    before, workers = len(server.events), len(server.workers())
    os.kill(server.pid, signal.SIGHUP)
    server.wait_for("worker_online", after=before, count=workers)
    server.wait_for("worker_offline", after=before, count=workers)


def _kill_store(server: LiveServer, kills: int) -> None:
    for _ in at_intervals(kills, _BETWEEN_KILLS_S):
        before = len(server.events)
        kill(server.roles()[STORE][0])
        server.wait_for("store_online", after=before)
        server.wait_for("store_back", after=before)  # a worker has noticed too


def _upgrade(server: LiveServer) -> None:
    before, workers = len(server.events), len(server.workers())
    os.kill(server.pid, signal.SIGUSR2)
    server.wait_for("worker_online", after=before, count=workers)
    server.wait_for("store_online", after=before)  # that of the old arbiter
    before = len(server.events)
    os.kill(server.pid, signal.SIGTERM)
    server.wait_for("store_online", after=before)
    server.wait_until_gone(server.pid)


def _states_at_end(data: Path, locations: list[str]) -> Counter[str]:
    """Wait until jobs have ended, and count their states; what the store does not know is `lost`."""

    def look() -> Counter[str]:
        with store(data) as client:
            states = [client.hget(f"{PREFIX}job:{each.rpartition('/')[2]}", "state") for each in locations]
        return Counter(str(state or "lost") for state in states)

    until(lambda: not {"waiting", "delayed", "active"} & look().keys(), BATCH_S)
    return look()


def shared_directory(
    batch_of: int = 120, size: tuple[int, int] = (1600, 1200), grace_s: float = 1.0
) -> list[Finding]:
    """Start two services on one directory: both work, and the end of the first changes nothing."""
    batch = items(batch_of, 3, size)
    grace = {"FLIP_STORE_GRACE_S": str(grace_s)}
    faults: list[str] = []
    with data_directory() as data, job_cluster(data, **grace) as first, job_cluster(data, **grace) as second:
        shares = [0, 0]
        for _ in range(_MOST_BATCHES):  # a small one may be done before the other one has begun
            location = submit_batch(first, batch)
            wait_until_ended(second, location)
            faults += faults_of_batch(second, location, batch)
            shares = [_background_tasks(first), _background_tasks(second)]
            if min(shares):
                break
        location = submit_batch(first, batch)
        with Submitter(second, batch[0].body) as client:
            code = first.stop()
            second.wait_for("store_online", count=2)  # the first time as a guest
            until(lambda: get(second, location)["remaining"] < batch_of, BATCH_S)
        wait_until_ended(second, location)
        faults += faults_of_batch(second, location, batch)
        states = _states_at_end(data, client.locations)
    return [
        Finding("both services work on a batch", f"tasks: {shares[0]} and {shares[1]}", min(shares) > 0),
        Finding("the first one stops as it should", f"exit code {code}", code == 0),
        client.finding("the end of the first service"),
        Finding(
            "all jobs of both batches end once, with the right result",
            f"faults: {'; '.join(faults[:5]) or 'none'}; the other jobs: {listed(states)}",
            not faults and states == {"completed": len(client.locations)},
        ),
    ]


def _background_tasks(server: LiveServer) -> int:
    metrics = httpx.get(f"{server.url}/metrics", timeout=DEADLINE_S).text
    found = re.search(r"^flip_background_tasks_total (\S+)", metrics, re.MULTILINE)
    assert found, metrics
    return int(float(found[1]))
