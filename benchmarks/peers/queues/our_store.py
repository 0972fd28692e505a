"""Our queue alone: the client of our store, as consumers use it, without HTTP, files and engines.

Workers claim one job at a time and report it done. What takes the jobs of a dead worker back is part of the
service, so it is not measured here.
"""

import asyncio
import os
from collections.abc import Callable

from benchmarks.peers.queues import work
from server.errors import StoreAway
from server.jobs.model import Facts, NewJob, Result, Schedule, new_id
from server.jobs.store import Store

_KIND = "job 1"
_QUEUE = Schedule("default")


def _client(address: str, owner: str) -> Store:
    return Store(
        f"unix://{address}",
        owner=owner,
        grace_s=1,
        ttl_s=3600,
        lease_s=30,
        max_jobs=1_000_000,
        max_bytes=1 << 60,
    )


def _work(address: str) -> None:
    async def serve() -> None:
        async with _client(address, f"worker {os.getpid()}") as store:
            request = new_id()
            while True:
                try:
                    claims, idle_s = await store.claim(request, [_KIND], 1)
                    request = new_id()
                    for claim in claims:
                        work.run(claim.facts.parameters["job"])
                        await store.complete(claim, Result({}, 0, claim.fence))
                    if not claims:
                        await store.wait_for_bell([_KIND], idle_s)
                except StoreAway:
                    await store.wait_until_back()

    asyncio.run(serve())


def _connect(address: str) -> Callable[[str], None]:
    loop = asyncio.new_event_loop()

    async def open_store() -> Store:
        return _client(address, "submitter")

    store = loop.run_until_complete(open_store())

    def submit(job: str) -> None:
        facts = Facts("job", 1, {"job": job}, attempts=5)
        loop.run_until_complete(store.submit(new_id(), facts, NewJob(len(job)), _QUEUE))

    return submit


if __name__ == "__main__":
    work.main(_work, _connect)
