"""Jobs of all kinds for a long time, with kills: does anything grow, is anything lost?

Run it with `make soak-jobs MINUTES=20`. Results expire after a few seconds, so when nothing has been
submitted for a while, keys, files, processes and memory must be where they began. The exit code is 1 when
they are not, or when a job that was accepted did not end as it should.
"""

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import strftime
from typing import Any

import httpx

from benchmarks.harness import processes
from benchmarks.harness.server import STORE, WORKER, LiveServer
from benchmarks.harness.waiting import until
from benchmarks.survival.batches import (
    ACCEPTED,
    PREFIX,
    Item,
    background_engines,
    bugs,
    data_directory,
    flipped,
    groups_in,
    items,
    job_cluster,
    store,
    submit_batch,
    wait_until_ended,
)
from benchmarks.survival.cluster import OK, UNAVAILABLE, listed

_CLIENTS = 4

#: Results are kept this long, and are looked at before.
_TTL_S = 15.0

#: How long it takes at most until what was left by a killed worker is found and removed, in seconds.
_QUIET_S = 150.0

_ENDS_WITHIN_S = 90.0

_LATER = {"Prefer": "respond-async"}

#: These keys are kept for a day, so that a client learns that its job has expired, or was submitted before.
_KEPT_FOR_A_DAY = frozenset({"gone", "idem"})

#: Descriptors and megabytes that may come and go.
_SPARE_DESCRIPTORS, _SPARE_MB, _SPARE = 16, 60, 1.25

Sample = Mapping[str, float]


@dataclass(slots=True)
class Record:
    """What was submitted, what is wrong with it, and what was done to the service."""

    submitted: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    disturbances: Counter[str] = field(default_factory=Counter)


class Client:
    """A client that submits, changes its mind, waits and checks, again and again.

    Args:
        server: asked again when it does not answer: a worker may have been killed.
        record: where it writes what it has seen.
        choice: what it does next.
    """

    def __init__(self, server: LiveServer, record: Record, choice: random.Random) -> None:
        self._record = record
        self._choice = choice
        self._http = httpx.Client(base_url=server.url, timeout=_ENDS_WITHIN_S)
        self._images = items(40, 4, (320, 240))

    def run_until(self, end_s: float) -> None:
        """Act until a moment of the monotonic clock."""
        acts = (self._batch, self._batch, self._job, self._cancelled, self._retried)
        while time.monotonic() < end_s:
            act = self._choice.choice(acts)
            name = act.__name__.removeprefix("_")
            try:
                act(name)
            except AssertionError as error:
                self._record.wrong[f"{name}: {error}"] += 1

    def _batch(self, name: str) -> None:
        batch = self._choice.sample(self._images, self._choice.randrange(1, 20))
        location = self._submit_batch(name, batch)
        if location:
            seen = self._at_end(location)
            damaged = sum(item.is_damaged for item in batch)
            ends = [seen[state] for state in ("total", "completed", "failed", "cancelled", "remaining")]
            assert ends == [len(batch), len(batch) - damaged, damaged, 0, 0], ends
            listing = self._ask("GET", f"{location}/items").json()["items"]
            for item, job in self._choice.sample(list(zip(batch, listing, strict=True)), 1):
                self._check_result(item, job)

    def _job(self, name: str) -> None:
        item = self._choice.choice(self._images)
        delay = self._choice.choice((0, 0, 2))
        location = self._submit(
            name, lambda: self._http.post(f"/flip?delay={delay}", content=item.body, headers=_LATER)
        )
        if location:
            self._check_result(item, self._at_end(location))

    def _cancelled(self, name: str) -> None:
        batch = self._choice.sample(self._images, 20)
        location = self._submit_batch(name, batch)
        if location:
            self._ask("DELETE", location)
            seen = self._at_end(location)
            assert sum(seen[state] for state in ("completed", "failed", "cancelled")) == len(batch), seen

    def _retried(self, name: str) -> None:
        item = next(item for item in self._images if item.is_damaged)
        location = self._submit(name, lambda: self._http.post("/flip", content=item.body, headers=_LATER))
        if location:
            self._check_result(item, self._at_end(location))
            self._ask("POST", f"{location}/retry")
            self._check_result(item, self._at_end(location))

    def _submit_batch(self, name: str, batch: Sequence[Item]) -> str:
        files = [("image", (f"{index}.jpg", item.body)) for index, item in enumerate(batch)]
        return self._submit(name, lambda: self._http.post("/batches?operation=flip", files=files))

    def _submit(self, name: str, send: Callable[[], httpx.Response]) -> str:
        """Submit, and return the address; empty when a kill came in between."""
        try:
            answer = send()
        except httpx.TransportError as error:
            self._record.unanswered[type(error).__name__] += 1
            return ""
        if answer.status_code == UNAVAILABLE:
            self._record.unanswered["503"] += 1
            return ""
        assert answer.status_code == ACCEPTED, answer.text
        self._record.submitted[name] += 1
        return answer.headers["location"]

    def _at_end(self, location: str) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def look() -> bool:
            seen.update(self._ask("GET", location).json())
            return seen["ended"] is not None

        assert until(look, _ENDS_WITHIN_S), f"not ended: {seen}"
        return seen

    def _check_result(self, item: Item, job: dict[str, Any]) -> None:
        assert job["state"] == ("failed" if item.is_damaged else "completed"), job
        if not item.is_damaged:
            body = self._ask("GET", job["result"]["href"]).content
            assert not (fault := flipped(item.body).fault_of(body)), fault

    def _ask(self, method: str, path: str) -> httpx.Response:
        """Ask until there is an answer."""
        answers: list[httpx.Response] = []

        def look() -> bool:
            with suppress(httpx.TransportError):
                answers.append(self._http.request(method, path))
            return bool(answers) and answers[-1].status_code != UNAVAILABLE

        assert until(look, _ENDS_WITHIN_S), f"{method} {path} is not answered"
        assert answers[-1].status_code in {OK, ACCEPTED}, answers[-1].text
        return answers[-1]


@contextmanager
def disturbed(server: LiveServer, record: Record, choice: random.Random) -> Iterator[None]:
    """Kill processes, pause the queue and reload, in threads, while the block runs."""
    stop = threading.Event()

    def again_and_again(every_s: float, name: str, disturb: Callable[[], None]) -> None:
        while not stop.wait(every_s * choice.uniform(0.5, 1.5)):
            with suppress(ProcessLookupError, IndexError, httpx.TransportError):
                try:
                    disturb()
                    record.disturbances[name] += 1
                except AssertionError as error:  # it would end this thread alone
                    record.wrong[f"{name}: {error}"] += 1

    def kill_one(find: Callable[[], Sequence[int]]) -> Callable[[], None]:
        return lambda: os.kill(choice.choice(find()), signal.SIGKILL)

    def pause() -> None:
        httpx.post(f"{server.url}/queues/default/pause")
        stop.wait(2.0)
        assert until(lambda: _resumed(server)), "the queue stays paused"

    acts: tuple[tuple[float, str, Callable[[], None]], ...] = (
        (7.0, "background engine killed", kill_one(lambda: background_engines(server))),
        (19.0, "worker killed", kill_one(lambda: server.roles()[WORKER])),
        (13.0, "store killed", kill_one(lambda: server.roles()[STORE])),
        (29.0, "queue paused", pause),
        (61.0, "reload", lambda: server.send_signal(signal.SIGHUP)),
    )
    threads = [threading.Thread(target=again_and_again, args=act) for act in acts]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _resumed(server: LiveServer) -> bool:
    with suppress(httpx.TransportError):
        return httpx.post(f"{server.url}/queues/default/resume").status_code == OK
    return False


def sample(server: LiveServer, data: Path) -> Sample:
    """Count keys by kind, files, processes, descriptors and memory."""
    with store(data) as client:
        keys = Counter(
            f"keys: {key.removeprefix(PREFIX).partition(':')[0]}" for key in client.scan_iter(count=1000)
        )
        groups = {key.rpartition(":")[2] for key in client.scan_iter(f"{PREFIX}group:*", count=1000)}
    files = [file for file in (data / "blobs").glob("*/*/*") if file.parent.name in groups]
    roles = server.roles()
    return {
        **keys,
        "files": len(files),
        "files that no job knows": len(groups_in(data) - groups),
        "MB of the store on the disk": sum(
            file.stat().st_size for file in (data / "store").rglob("*") if file.is_file()
        )
        / 1e6,
        **{f"processes: {role}": len(pids) for role, pids in roles.items()},
        **{
            f"most descriptors: {role}": max(len(processes.descriptors(pid)) for pid in pids)
            for role, pids in roles.items()
            if pids
        },
        **{f"MB of memory: {role}": processes.memory_mb(pids) for role, pids in roles.items()},
    }


def when_quiet(server: LiveServer, data: Path) -> Sample:
    """Wait until all jobs have expired, and sample."""

    def look() -> bool:
        with store(data) as client:
            return not any(client.scan_iter(f"{PREFIX}group:*", count=1000))

    until(look, _QUIET_S)
    return sample(server, data)


def grown(begin: Sample, end: Sample, unanswered: int) -> list[str]:
    """Name what is not where it began."""
    found = []
    for name, value in end.items():
        kind, _, of = name.partition(": ")
        before = begin.get(name, 0.0)
        limit = {
            "keys": float("inf") if of in _KEPT_FOR_A_DAY else before,
            # A worker killed between the file and the job leaves a file to the janitor, for a day.
            "files that no job knows": before + unanswered,
            "MB of the store on the disk": float("inf"),  # until it is rewritten, from 64 MB on
            "most descriptors": before + _SPARE_DESCRIPTORS,
            "MB of memory": before * _SPARE + _SPARE_MB,
        }.get(kind, before)
        if value > limit:
            found.append(f"{name}: {before:.0f} -> {value:.0f}")
    return found


def main() -> None:
    """Soak the service and report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=20)
    options.add_argument("--seed", type=int, default=int(strftime("%Y%m%d")), help="the date by default")
    given = options.parse_args()
    record = Record()
    choice = random.Random(given.seed)  # noqa: S311 no secret
    with data_directory() as data, job_cluster(data, FLIP_RESULT_TTL_S=str(_TTL_S)) as server:
        batch = items(40, 4, (320, 240))
        wait_until_ended(server, submit_batch(server, batch))
        samples = [when_quiet(server, data)]
        end_s = time.monotonic() + 60 * given.minutes
        clients = [
            threading.Thread(
                target=Client(server, record, random.Random(given.seed + number)).run_until,  # noqa: S311 no secret
                args=(end_s,),
                daemon=True,
            )
            for number in range(_CLIENTS)
        ]
        with disturbed(server, record, choice):
            for client in clients:
                client.start()
            middle_s = time.monotonic() + 30 * given.minutes
            while time.monotonic() < end_s and server.processes():
                time.sleep(1.0)
                if len(samples) == 1 and time.monotonic() >= middle_s:
                    print(f"  half-way, {record.submitted.total()} accepted", file=sys.stderr)
                    samples.append(sample(server, data))
            assert server.processes(), f"the service has ended:\n{server.log[-10_000:]}"
            for client in clients:
                client.join()
        samples.append(when_quiet(server, data))
        found = bugs(server)
        code = server.stop()
    growth = grown(samples[0], samples[-1], record.unanswered.total())
    report(samples, record)
    print(f"seed {given.seed}; exit code {code}; logged bugs: {listed(Counter(found))}")
    print(f"grown: {', '.join(growth) or 'nothing'}")
    sys.exit(bool(growth or record.wrong or found or code))


def report(samples: Sequence[Sample], record: Record) -> None:
    """Print what there was at the begin, in the middle and at the end, and what was done."""
    print(f"\n  {'':<36} {'begin':>10} {'middle':>10} {'end':>10}")
    for name in sorted({name for each in samples for name in each}):
        print(f"  {name:<36} " + " ".join(f"{each.get(name, 0):10.0f}" for each in samples))
    print(f"\naccepted: {listed(record.submitted)}")
    print(f"not accepted: {listed(record.unanswered)}")
    print(f"done to the service: {listed(record.disturbances)}")
    print(f"not as expected: {listed(record.wrong)}")


if __name__ == "__main__":
    main()
