"""Each watcher sees each line once and in order, whenever it comes and whatever is lost meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from structlog.testing import capture_logs
from support.asgi import MovableClock, run
from support.store import PREFIX, StoreServer, eventually, stores

from server.jobs.hub import Hub, Line
from server.jobs.model import Facts, JobId, JobState, NewJob, Result, Schedule, new_id
from server.jobs.store import Store

FACTS = Facts("flip", 1, {}, attempts=3)
KINDS = ["flip 1"]
RESULT = Result({}, 7, 1)


async def submit_batch(store: Store, total: int) -> str:
    batch = new_id()
    await store.submit_items(batch, FACTS, [NewJob(1, index) for index in range(total)], Schedule("default"))
    await store.seal(batch)
    return batch


async def complete(store: Store, count: int) -> None:
    claims, _ = await store.claim(new_id(), KINDS, count)
    for claim in claims:
        await store.complete(claim, RESULT)


@asynccontextmanager
async def running(hub: Hub) -> AsyncIterator[None]:
    task = asyncio.create_task(hub.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def watch(hub: Hub, group: str, start: int = 0, most: int = 1000) -> list[tuple[int, Line]]:
    """Return what a watcher sees until the end of the group, or as many lines as it wants."""
    seen: list[tuple[int, Line]] = []
    async for come in hub.follow(group, start):
        if come is not None:
            seen.append(come)
            if len(seen) == most:
                break
    return seen


def ignore(_: str) -> None:
    """Cancel nothing."""


async def is_hinted(server: StoreServer, group: str) -> None:
    await eventually(lambda: server.client.pubsub_numsub(f"{PREFIX}news:{group}")[0][1])


def test_all_watchers_see_all_lines_once_and_in_order(server: StoreServer) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,):
            hub = Hub(store, ignore)
            batch = await submit_batch(store, 30)
            async with running(hub), asyncio.TaskGroup() as group:
                early = [group.create_task(watch(hub, batch, start)) for start in (0, 0, 0, 7)]
                await is_hinted(server, batch)
                await complete(store, 10)
                leaving = [group.create_task(watch(hub, batch, most=3)) for _ in range(3)]
                await asyncio.wait(leaving)
                late = group.create_task(watch(hub, batch))
                for _ in range(4):
                    await complete(store, 5)
            lines = list(enumerate(await store.log(batch, 0), 1))
            assert len(lines) == 31
            for task in (*early[:3], late):
                assert task.result() == lines
            assert early[3].result() == lines[7:]
            assert [task.result() for task in leaving] == [lines[:3]] * 3
            assert await watch(hub, batch, 20) == lines[20:]
            assert hub._logs == {}

    run(test())


def test_lines_are_read_without_hints_too(server: StoreServer) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,):
            hub = Hub(store, ignore)  # which does not run
            batch = await submit_batch(store, 2)
            watcher = asyncio.create_task(watch(hub, batch))
            await complete(store, 1)
            await eventually(lambda: hub._logs and hub._logs[batch].lines)
            await complete(store, 1)
            assert len(await watcher) == 3

    run(test())


def test_a_watcher_that_leaves_at_any_moment_takes_nothing_from_the_next(server: StoreServer) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,):
            hub = Hub(store, ignore)
            batch = await submit_batch(store, 1)
            async with running(hub):
                await eventually(lambda: hub._hints)
                for turns in range(30):
                    leaving = asyncio.create_task(watch(hub, batch))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    leaving.cancel()
                    staying = asyncio.create_task(watch(hub, batch, most=1))
                    await asyncio.wait([leaving])
                    assert leaving.cancelled()
                    staying.cancel()
                    await asyncio.wait([staying])
                assert hub._logs == {}
                last = asyncio.create_task(watch(hub, batch))
                await complete(store, 1)
                assert len(await last) == 2

    run(test())


def test_what_happened_while_the_store_was_away_is_seen_afterwards(server: StoreServer) -> None:
    async def test() -> None:
        async with stores(server, "me", grace_s=2) as (store,), stores(server, "other") as (other,):
            hub = Hub(store, ignore)
            batch = await submit_batch(store, 2)
            async with running(hub):
                watcher = asyncio.create_task(watch(hub, batch))
                await is_hinted(server, batch)
                await complete(other, 1)
                await eventually(lambda: hub._logs[batch].lines)
                server.kill()
                await eventually(lambda: hub._hints is None)
                await asyncio.to_thread(server.start)
                await complete(other, 1)
                await is_hinted(server, batch)
                assert [number for number, _ in await watcher] == [1, 2, 3]

    run(test())


def test_a_hub_that_closes_ends_all_streams_and_waits(server: StoreServer) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,):
            hub = Hub(store, ignore)
            batch = await submit_batch(store, 2)
            async with running(hub):
                watchers = [asyncio.create_task(watch(hub, batch)) for _ in range(3)]
                waiting = asyncio.create_task(hub.wait_for_end(JobId(batch, 0), 60))
                await is_hinted(server, batch)
                hub.close()
                assert await asyncio.gather(*watchers) == [[], [], []]
                await waiting
                assert await watch(hub, batch) == []  # nor does it begin another one

    run(test())


def test_a_watcher_that_outlives_the_subscription_does_not_connect_again(server: StoreServer) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,):
            hub = Hub(store, ignore)
            batch = await submit_batch(store, 1)
            async with running(hub):
                watcher = asyncio.create_task(watch(hub, batch))
                await is_hinted(server, batch)
            hub.close()
            await watcher
            assert not store._blocking.connection_pool._in_use_connections

    run(test())


def test_a_job_is_seen_in_each_of_its_states(server: StoreServer) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,):
            hub = Hub(store, ignore)
            id = JobId(new_id())
            await store.submit(id.group, FACTS, NewJob(1), Schedule("default"))
            seen: list[tuple[JobState, int]] = []

            async def follow() -> None:
                async for job in hub.follow_job(id):
                    if job:
                        seen.append((job.state, job.progress))  # noqa: PERF401 it is looked at meanwhile

            async with running(hub):
                following = asyncio.create_task(follow())
                await eventually(lambda: (JobState.WAITING, 0) in seen)
                (claim,), _ = await store.claim(new_id(), KINDS, 1)
                await eventually(lambda: (JobState.ACTIVE, 0) in seen)
                await store.renew({str(id): claim.fence}, {str(id): 50})
                await eventually(lambda: (JobState.ACTIVE, 50) in seen)
                await store.complete(claim, RESULT)
                await following
            assert [state for state, _ in seen] == ["waiting", "active", "active", "completed"]

    run(test())


def test_a_job_is_followed_on_when_the_store_was_away(server: StoreServer) -> None:
    async def test() -> None:
        clock: Any = asyncio.get_running_loop()
        async with stores(server, "me", grace_s=1) as (store,):
            hub = Hub(store, ignore)
            id = JobId(new_id())
            await store.submit(id.group, FACTS, NewJob(1), Schedule("default"))
            seen: list[JobState] = []

            async def follow() -> None:
                async for job in hub.follow_job(id):
                    if job:
                        seen.append(job.state)  # noqa: PERF401 it is looked at meanwhile

            following = asyncio.create_task(follow())
            await eventually(lambda: seen)
            server.kill()
            await eventually(lambda: not store._answers.is_closed)
            for _ in range(5):  # each look finds that the grace is over
                await clock.pass_time(2)
            await asyncio.to_thread(server.start)
            await store.wait_until_back()
            await complete(store, 1)
            await following
            assert seen == ["waiting", "completed"]

    run(test(), MovableClock)


def test_a_wait_ends_with_the_job_or_its_time(server: StoreServer) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,):
            hub = Hub(store, ignore)
            id = JobId(new_id())
            await store.submit(id.group, FACTS, NewJob(1), Schedule("default"))
            async with running(hub):
                await hub.wait_for_end(id, 0.05)
                assert not (await store.job(id)).state.is_final
                waiting = asyncio.create_task(hub.wait_for_end(id, 60))
                await complete(store, 1)
                await waiting
            assert (await store.job(id)).state.is_final

    run(test())


def test_the_owner_of_a_job_is_told_to_cancel_it(server: StoreServer) -> None:
    async def test() -> None:
        async with stores(server, "me", "other") as (mine, other):
            told: list[str] = []
            hub = Hub(mine, told.append)
            ids = [JobId(new_id()) for _ in range(2)]
            for id, store in zip(ids, (mine, other), strict=True):
                await mine.submit(id.group, FACTS, NewJob(1), Schedule("default"))
                await store.claim(new_id(), KINDS, 1)
            async with running(hub):
                await eventually(lambda: server.client.pubsub_numsub(f"{PREFIX}cancel:me")[0][1])
                for id in reversed(ids):
                    await other.cancel_job(id)
                await eventually(lambda: told)
            assert told == [str(ids[0])]

    run(test())


def test_a_bug_while_a_log_is_read_costs_its_watchers_no_line(server: StoreServer) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,):
            hub = Hub(store, ignore)
            batch = await submit_batch(store, 1)
            await complete(store, 1)
            read, faults = store.log, [ZeroDivisionError("of ours")]

            async def fail_once(group: str, start: int) -> Any:
                if faults:
                    raise faults.pop()
                return await read(group, start)

            store.log = fail_once  # type: ignore[method-assign]
            assert await watch(hub, batch) == list(enumerate(await read(batch, 0), 1))

    with capture_logs() as events:
        run(test())
    assert [event["part"] for event in events if event["event"] == "part_failed"] == ["log_reader"]
