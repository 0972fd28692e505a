"""A store behind Sentinel: when its master dies, a replica takes over and jobs go on."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.store import Server, binaries

from benchmarks.harness.server import free_port
from benchmarks.harness.waiting import DEADLINE_S, until
from server.jobs.model import Facts, JobId, JobState, NewJob, Schedule, new_id
from server.jobs.store import Store

FACTS = Facts("flip", 1, {}, attempts=3)
PASSWORD = "of-the-data"  # noqa: S105 not a secret


class Watched:
    """A master, its replica, and one Sentinel that watches them.

    Args:
        directory: of their data.
    """

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        binary = binaries()["redis-server"]
        ports = [free_port() for _ in range(3)]
        login = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
        self.master = Server(binary, directory / "a", "--port", str(ports[0]), *login)
        stack.callback(self.master.kill)
        follow = ("--replicaof", f"127.0.0.1 {ports[0]}", "--repl-diskless-sync-delay", "0")
        replica = Server(binary, directory / "b", "--port", str(ports[1]), *login, *follow)
        stack.callback(replica.kill)
        configuration = directory / "sentinel.conf"
        configuration.write_text(
            f"sentinel monitor images 127.0.0.1 {ports[0]} 1\n"
            f"sentinel auth-pass images {PASSWORD}\n"
            "sentinel down-after-milliseconds images 500\n"
            "sentinel failover-timeout images 3000\n"
        )
        sentinel = Server(binary, directory / "c", "--port", str(ports[2]), sentinel=configuration)
        stack.callback(sentinel.kill)
        self.url = f"redis+sentinel://:{PASSWORD}@127.0.0.1:1,127.0.0.1:{ports[2]}/images/0"
        with sentinel.client() as client:
            assert until(lambda: client.sentinel_slaves("images"))
        with replica.client(PASSWORD) as client:
            assert until(lambda: client.info("replication")["master_link_status"] == "up")

    def is_replicated(self) -> bool:
        """Whether the replica has all that the master has."""
        with self.master.client(PASSWORD) as client:
            told = client.info("replication")
        return bool(told["slave0"]["offset"] == told["master_repl_offset"])


@pytest.fixture
def watched() -> Iterator[Watched]:
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        yield Watched(Path(directory), stack)


def test_a_replica_takes_over_when_the_master_dies(watched: Watched) -> None:
    async def test() -> None:
        store = Store(
            watched.url, owner="me", grace_s=DEADLINE_S, ttl_s=60, lease_s=60, max_jobs=9, max_bytes=999
        )
        async with asyncio.timeout(2 * DEADLINE_S), store:
            before = await store.submit(new_id(), FACTS, NewJob(1), Schedule("default"))
            assert await asyncio.to_thread(
                until, watched.is_replicated
            )  # else it may be lost with the master
            async with store.hints([before]):
                watched.master.kill()
                during = await store.submit(new_id(), FACTS, NewJob(1), Schedule("default"))
            assert [(await store.job(JobId(id))).state for id in (before, during)] == [JobState.WAITING] * 2
            claims, _ = await store.claim("1", ["flip 1"], 5)
            assert {str(claim.id) for claim in claims} == {before, during}

    asyncio.run(test())
