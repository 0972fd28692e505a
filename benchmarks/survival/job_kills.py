"""Scenarios of jobs whose processes are killed, or frozen and woken, while they run.

Each scenario starts a service of its own, with a store in a directory of its own, and returns its findings.
The defaults are the full size; tests pass smaller values.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

from redis import Redis

from benchmarks.harness import processes
from benchmarks.harness.findings import Finding
from benchmarks.harness.server import STORE, WORKER, LiveServer
from benchmarks.harness.waiting import until
from benchmarks.survival.batches import (
    BATCH_S,
    Watch,
    background_engines,
    bugs,
    data_directory,
    faults_of_batch,
    fetch,
    files_of,
    flipped,
    groups_in,
    holder,
    items,
    job_cluster,
    job_in_store,
    kill,
    no_bugs,
    store,
    submit_batch,
    submit_job,
    wait_until_ended,
    wait_until_held,
)
from benchmarks.survival.cluster import image, listed

_ITEMS, _DAMAGED = 60, 3

_SECOND_TRY_S = 2.0


def kill_rounds(
    rounds: int = 20, kills: int = 3, size: tuple[int, int] = (1600, 1200), seed: int = 1816
) -> list[Finding]:
    """Kill random processes while a batch runs, again and again; each of its jobs still ends exactly once."""
    choice = random.Random(seed)  # noqa: S311 no secret
    batch = items(_ITEMS, _DAMAGED, size)
    killed: Counter[str] = Counter()
    faults, left_over, took_s = [], [], []
    superseded = 0
    with data_directory() as data:
        service = _Service(data)
        try:
            locations = []
            for _ in range(rounds):
                locations.append(submit_batch(service.server, batch))
                watch = Watch(locations[-1], _ITEMS)
                started_s = time.monotonic()
                for left in sorted(choice.sample(range(1, _ITEMS), kills), reverse=True):
                    until(lambda: watch.left(service.server) <= left, BATCH_S)  # noqa: B023 called here
                    victim = choice.choice(list(_VICTIMS))
                    killed[victim] += _VICTIMS[victim](service, choice)
                wait_until_ended(service.server, locations[-1])
                took_s.append(time.monotonic() - started_s)
                faults += faults_of_batch(service.server, locations[-1], batch)
                faults += ["its remaining rose"] * watch.has_risen
                superseded += sum(name.endswith(".out") for name in files_of(data, locations[-1]))
            superseded -= rounds * (_ITEMS - _DAMAGED)
            groups = groups_in(data)
            exit_code = service.server.stop()
            left_over = service.left_over()
        finally:
            service.close()
    return [
        Finding("seed of the kills", str(seed), is_kept=True),
        Finding(
            f"all {rounds * _ITEMS} jobs end once, with the right result, under {rounds * kills} kills",
            f"killed {listed(killed)}; faults: {'; '.join(faults[:5]) or 'none'}",
            not faults,
        ),
        Finding(
            "no file is left without a job",
            f"{len(groups)} batches have files; {superseded} results of killed tries are left with theirs",
            groups == {location.rpartition("/")[2] for location in locations},
        ),
        Finding(
            "no process is left", f"exit code {exit_code}, left: {left_over}", not left_over and not exit_code
        ),
        no_bugs(service.bugs),
        Finding(
            "seconds from the submission to the end: median and maximum",
            f"{median(took_s):.1f}, {max(took_s):.1f}",
            is_kept=True,
            is_figure=True,
        ),
    ]


class _Service:
    """A service that can be killed whole and started again on the same data."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._sessions: list[int] = []
        self.bugs: list[str] = []
        self._start()

    def _start(self) -> None:
        self.server = job_cluster(self._data).__enter__()
        self._sessions.append(self.server.pid)

    def restart(self) -> None:
        """Kill all of its processes at once, and start it again."""
        self.close()
        self._start()

    def left_over(self) -> list[int]:
        """Return the processes that have not ended, of all services that there were."""
        return [pid for session in self._sessions for pid in processes.of_session(session)]

    def close(self) -> None:
        """End it at once."""
        self.server.kill()
        self.bugs += bugs(self.server)


def frozen_worker(times: int = 5, body: str = "big") -> list[Finding]:
    """Freeze a worker until its job has run again elsewhere, and wake it: it changes nothing any more."""
    faults = []
    # With one job at a time, a worker that claims another one is done with the one before. The arbiter would
    # kill one that is frozen for long.
    limits = {
        "FLIP_LEASE_S": "3",
        "FLIP_JOBS_AT_ONCE": "1",
        "FLIP_HUNG_AFTER_S": "0",
        "GUNICORN_CMD_ARGS": "--timeout 300",
    }
    with data_directory() as data, job_cluster(data, **limits) as server, store(data) as client:
        for _ in range(times):
            location, frozen = _frozen_with_a_job(server, client, image(body))
            assert until(lambda: job_in_store(client, location)["state"] == "completed", BATCH_S)  # noqa: B023 called here
            before = job_in_store(client, location)
            os.kill(frozen, signal.SIGCONT)
            wait_until_ended(server, _job_of(server, client, frozen))
            after, files = job_in_store(client, location), files_of(data, location)
            if after != before:
                faults.append(f"{before} became {after}")
            if after["tries"] != "2" or files != {"0.in", f"0.{after['fence']}.out"}:
                faults.append(f"{after['tries']} tries, files {sorted(files)}")
            if fault := flipped(image(body)).fault_of(fetch(server, f"{location}/result")):
                faults.append(fault)
    return [
        Finding(
            "a worker that wakes up after its job has run elsewhere changes nothing",
            f"{times} times; faults: {'; '.join(faults[:5]) or 'none'}",
            not faults,
        )
    ]


def _frozen_with_a_job(server: LiveServer, client: Redis, body: bytes) -> tuple[str, int]:
    """Freeze a worker that holds a job, and return both."""
    while True:
        location = submit_job(server, body)
        worker = wait_until_held(client, location)
        os.kill(worker, signal.SIGSTOP)
        if holder(job_in_store(client, location)) == worker:
            return location, worker
        os.kill(worker, signal.SIGCONT)  # it was quicker


def _job_of(server: LiveServer, client: Redis, worker: int) -> str:
    """Submit jobs until a worker has one, and return that one."""
    deadline_s = time.monotonic() + BATCH_S
    while time.monotonic() < deadline_s:
        location = submit_job(server, image("medium"))
        if wait_until_held(client, location) == worker:
            return location
        wait_until_ended(server, location)
    raise AssertionError(f"worker {worker} claims no job any more\n{server.log}")


def second_tries(kills: int = 10, body: str = "big") -> list[Finding]:
    """Kill workers that hold a job: another one starts it again soon, on the same machine."""
    after_s = []
    ends: Counter[str] = Counter()
    with data_directory() as data, job_cluster(data) as server, store(data) as client:
        for _ in range(kills):
            location = submit_job(server, image(body))
            before = len(server.events)
            victim = wait_until_held(client, location)
            killed_s = time.time()  # the clock of the store
            kill(victim)
            assert until(lambda: job_in_store(client, location)["tries"] == "2"), server.log  # noqa: B023 called here
            after_s.append(int(job_in_store(client, location)["started"]) / 1000 - killed_s)
            wait_until_ended(server, location)
            ends[job_in_store(client, location)["state"]] += 1
            server.wait_for("worker_online", after=before)
    return [
        Finding(
            f"a killed worker's job runs again within {_SECOND_TRY_S:.0f} s",
            f"{kills} kills: median {median(after_s):.2f} s, maximum {max(after_s):.2f} s",
            max(after_s) < _SECOND_TRY_S,
            is_figure=True,
        ),
        Finding(
            "each of these jobs completes",
            f"{ends['completed']} of {kills} did",
            ends["completed"] == kills,
        ),
    ]


def _kill_background_engine(service: _Service, choice: random.Random) -> int:
    return _kill_one(until(lambda: background_engines(service.server)), choice)


def _kill_worker(service: _Service, choice: random.Random) -> int:
    return _kill_one(until(lambda: service.server.roles()[WORKER]), choice)


def _kill_store(service: _Service, choice: random.Random) -> int:
    return _kill_one(until(lambda: service.server.roles().get(STORE, [])), choice)


def _kill_all(service: _Service, _choice: random.Random) -> int:
    service.restart()
    return 1


def _kill_one(pids: list[int], choice: random.Random) -> int:
    if not pids:
        return 0
    try:
        kill(choice.choice(pids))
    except ProcessLookupError:  # it has just ended by itself
        return 0
    return 1


_VICTIMS: dict[str, Callable[[_Service, random.Random], int]] = {
    "background engine": _kill_background_engine,
    "worker": _kill_worker,
    "store": _kill_store,
    "everything": _kill_all,
}
