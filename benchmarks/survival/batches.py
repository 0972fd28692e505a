"""What all scenarios of jobs share: a service with a store of its own, batches, and what became of them."""

import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from redis import Redis

from benchmarks.harness import messages, processes
from benchmarks.harness.answers import Flipped
from benchmarks.harness.exchanges import ask, outcome
from benchmarks.harness.findings import Finding
from benchmarks.harness.server import ENGINE, LiveServer
from benchmarks.harness.waiting import DEADLINE_S, until
from benchmarks.survival.cluster import OK, cluster, image, listed

ACCEPTED = 202

#: Of the keys in the store.
PREFIX = "{flip}:"

#: How long a batch may take on a busy machine: its engines get only the CPU time that nothing else wants.
BATCH_S = 90.0

_QUALITY = 90


@contextmanager
def data_directory() -> Iterator[Path]:
    """Make an empty directory for the data of a service, whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="flip-") as directory:
        yield Path(directory) / "data"


def job_cluster(data: Path, **environ: str) -> LiveServer:
    """Return a service with an embedded store in this directory; enter it to start it."""
    return cluster(FLIP_JOBS="embedded", FLIP_DATA_DIR=str(data), **environ)


@dataclass(frozen=True)
class Item:
    """One image of a batch."""

    body: bytes
    is_damaged: bool


@cache
def items(count: int, damaged: int, size: tuple[int, int]) -> tuple[Item, ...]:
    """Cut different images out of the sample; some are damaged, always the same ones."""
    choice = random.Random(1816)  # noqa: S311 no secret
    broken = set(choice.sample(range(count), damaged))
    with Image.open(BytesIO(image("medium"))) as sample:
        corners = [(choice.randrange(sample.width - size[0]), choice.randrange(sample.height - size[1]))]
        while len(corners) < count:
            corner = choice.randrange(sample.width - size[0]), choice.randrange(sample.height - size[1])
            if corner not in corners:
                corners.append(corner)
        bodies = [_encoded(sample.crop((left, top, left + size[0], top + size[1]))) for left, top in corners]
    return tuple(
        Item(body[: len(body) // 2] if index in broken else body, index in broken)
        for index, body in enumerate(bodies)
    )


def _encoded(cut: Image.Image) -> bytes:
    with BytesIO() as file:
        cut.save(file, "JPEG", quality=_QUALITY)
        return file.getvalue()


def submit_batch(server: LiveServer, batch: Sequence[Item], query: str = "path=pixels") -> str:
    """Submit images as one batch, and return its address."""
    files = [("image", (f"{index}.jpg", item.body)) for index, item in enumerate(batch)]
    answer = httpx.post(f"{server.url}/batches?operation=flip&{query}", files=files, timeout=DEADLINE_S)
    assert answer.status_code == ACCEPTED, answer.text
    return answer.headers["location"]


def submit_job(server: LiveServer, body: bytes, query: str = "path=pixels") -> str:
    """Submit one image as a job, and return its address."""
    headers = {"Prefer": "respond-async"}
    answer = httpx.post(f"{server.url}/flip?{query}", content=body, headers=headers, timeout=DEADLINE_S)
    assert answer.status_code == ACCEPTED, answer.text
    return answer.headers["location"]


def get(server: LiveServer, path: str) -> dict[str, Any]:
    """Return a document of the service."""
    document: dict[str, Any] = json.loads(fetch(server, path))
    return document


def fetch(server: LiveServer, path: str) -> bytes:
    """Return what the service has at a path."""
    answer = ask(server.address, messages.get(path))
    assert answer.status == OK, f"{path}: {outcome(answer)} {answer.body!r}"
    return answer.body


class Watch:
    """A client that asks again and again how many jobs of a batch remain, whatever happens to the service.

    Attributes:
        remaining: what it was told, each time.
    """

    def __init__(self, location: str, total: int) -> None:
        self._location = location
        self.remaining = [total]

    def left(self, server: LiveServer) -> int:
        """Return how many remain as far as is known: the service may not answer at the moment."""
        answer = ask(server.address, messages.get(self._location), deadline_s=2.0)
        if answer.status == OK:
            self.remaining.append(json.loads(answer.body)["remaining"])
        return self.remaining[-1]

    @property
    def has_risen(self) -> bool:
        """Whether fewer remained at some time than later."""
        return self.remaining != sorted(self.remaining, reverse=True)


def faults_of_batch(server: LiveServer, location: str, batch: Sequence[Item]) -> list[str]:
    """Say what is wrong with a batch that has ended: its counters, its log, its items and their results."""
    damaged = sum(item.is_damaged for item in batch)
    expected = {
        "total": len(batch),
        "completed": len(batch) - damaged,
        "failed": damaged,
        "cancelled": 0,
    }
    seen = get(server, location)
    return [
        *([] if expected.items() <= seen.items() and seen["remaining"] == 0 else [f"its counters: {seen}"]),
        *_faults_of_log(lines_of_log(server, location), expected, len(batch)),
        *(
            fault
            for item, job in zip(batch, get(server, f"{location}/items")["items"], strict=True)
            for fault in _faults_of_item(server, item, job)
        ),
    ]


def lines_of_log(server: LiveServer, location: str) -> list[dict[str, Any]]:
    """Read the events of a batch to their end."""
    text = httpx.get(f"{server.url}{location}/events", timeout=DEADLINE_S).text
    return [
        json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")
    ]


def _faults_of_log(lines: list[dict[str, Any]], expected: dict[str, int], total: int) -> Iterator[str]:
    ends = Counter(line["job"] for line in lines if "job" in line)
    if len(ends) != total or ends.total() != total:
        yield f"its log has {ends.total()} ends of {len(ends)} jobs"
    if [line["ended"] for line in lines if "ended" in line] != [expected] or "ended" not in lines[-1]:
        yield f"its log ends with {lines[-1]}"


def _faults_of_item(server: LiveServer, item: Item, job: dict[str, Any]) -> Iterator[str]:
    if job["state"] != ("failed" if item.is_damaged else "completed"):
        yield f"{job['href']} is {job['state']}: {job['error']}"
    elif not item.is_damaged and (fault := flipped(item.body).fault_of(fetch(server, job["result"]["href"]))):
        yield f"the result of {job['href']}: {fault}"


@cache
def flipped(body: bytes) -> Flipped:
    """Return the right answers to an image."""
    return Flipped(body)


def files_of(data: Path, location: str) -> set[str]:
    """Name the files of a batch or job."""
    group = location.rpartition("/")[2]
    return {file.name for file in (data / "blobs" / group[:2] / group).iterdir()}


def groups_in(data: Path) -> set[str]:
    """Name the batches and jobs that have files."""
    return {directory.name for directory in (data / "blobs").glob("*/*")}


def background_engines(server: LiveServer) -> list[int]:
    """Return the background engines that run, the oldest first; it needs no answer of the service."""
    return [pid for pid in server.roles()[ENGINE] if '"is_background":true' in _command(pid).replace(" ", "")]


def _command(pid: int) -> str:
    with suppress(OSError):  # it has ended
        return processes.command(pid)
    return ""


@contextmanager
def store(data: Path) -> Iterator[Redis]:
    """Talk to the store of a service, past the service."""
    with Redis(unix_socket_path=str(data / "store" / "valkey.sock"), decode_responses=True) as client:
        yield client


def job_in_store(client: Redis, location: str) -> dict[str, str]:
    """Return what the store has about a job."""
    fields: dict[str, str] = client.hgetall(f"{PREFIX}job:{location.rpartition('/')[2]}")  # type: ignore[assignment]
    return fields


def holder(job: dict[str, str]) -> int:
    """Return the process that holds a job; 0 for none."""
    return int(job.get("owner", "::").split(":")[1] or 0)


def wait_until_held(client: Redis, location: str) -> int:
    """Wait until a process holds a job, and return which one."""
    pid = until(lambda: holder(job_in_store(client, location)))
    assert pid, job_in_store(client, location)
    return pid


def wait_until_ended(server: LiveServer, location: str, deadline_s: float = BATCH_S) -> dict[str, Any]:
    """Wait for the end of a batch or job, and return it."""
    seen: dict[str, Any] = {}

    def look() -> bool:
        seen.update(get(server, location))
        return bool(seen["ended"])

    assert until(look, deadline_s), f"not ended: {seen}\n{server.log}"
    return seen


def bugs(server: LiveServer) -> list[str]:
    """Return the last line of each traceback that a service has logged."""
    return [event["exception"].splitlines()[-1] for event in server.events if "exception" in event]


def no_bugs(found: Sequence[str]) -> Finding:
    """Say which bugs a service has logged."""
    return Finding("no bug is logged", listed(Counter(found)), not found)


def kill(pid: int) -> float:
    """Kill a process, and return when, in seconds of the monotonic clock."""
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()
