"""What runs next to the requests of a worker ends when it is told to, and the store only after them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from structlog.testing import capture_logs
from support.asgi import MovableClock, run
from support.store import PREFIX, StoreServer, eventually, stores

from server.jobs.model import Facts, NewJob, Schedule, new_id
from server.jobs.service import Jobs
from server.jobs.store import Store

FACTS = Facts("flip", 1, {}, attempts=3)


class Part:
    """Does what the test says."""

    def __init__(self, act: Callable[[], Awaitable[object]]) -> None:
        self.run = act


def jobs_of(store: Store, *acts: Callable[[], Awaitable[object]]) -> Jobs:
    parts: Any = [*map(Part, acts)]
    return Jobs(store, *parts)


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


def test_an_upload_that_outlives_the_jobs_has_a_store_and_an_owner_that_is_heard_of(
    server: StoreServer,
) -> None:
    async def test() -> None:
        clock: Any = asyncio.get_running_loop()
        async with stores(server, "me") as (store,):
            jobs = jobs_of(store, *3 * [wait_for_ever])
            running = asyncio.create_task(jobs.run())
            batch = new_id()
            await store.submit_items(batch, FACTS, [NewJob(1, 0)], Schedule("default"))
            await eventually(lambda: server.client.zscore(f"{PREFIX}owners", "me"))
            running.cancel()
            await asyncio.wait([running])
            server.client.zadd(f"{PREFIX}owners", {"me": 1})  # a long time passes
            await clock.pass_time(6)
            await eventually(lambda: server.client.zscore(f"{PREFIX}owners", "me") > 1)
            await store.seal(batch)
            await jobs.close()
            assert not store._redis.connection_pool._in_use_connections
            assert asyncio.all_tasks() == {asyncio.current_task()}

    run(test(), MovableClock)


def test_a_bug_in_one_part_costs_the_others_nothing_and_a_stop_is_heard_all_the_same(
    server: StoreServer,
) -> None:
    async def test() -> None:
        faults, has_restarted = [ZeroDivisionError("of ours")], asyncio.Event()
        others = 0

        async def fail_once() -> None:
            if faults:
                raise faults.pop()
            has_restarted.set()
            await wait_for_ever()

        async def fail_to_stop() -> None:
            nonlocal others
            others += 1
            try:
                await wait_for_ever()
            finally:
                raise ZeroDivisionError("of ours")

        async with stores(server, "me") as (store,):
            jobs = jobs_of(store, fail_once, fail_to_stop, wait_for_ever)
            running = asyncio.create_task(jobs.run())
            await has_restarted.wait()
            running.cancel()
            await asyncio.wait([running])
            assert running.cancelled()
            assert others == 1

    with capture_logs() as events:
        run(test())
    assert [(event["event"], event["part"]) for event in events] == [
        ("part_failed", "consumer"),
        ("part_failed", "hub"),
    ]
