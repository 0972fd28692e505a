"""The store: jobs and batches in a server that speaks the Redis protocol; the only module that imports redis.

Every change is one call of one script (`store.lua`), which is atomic and may be repeated: a call whose answer
was lost is made again. Reads need no script.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, fields
from math import ceil
from pathlib import Path
from typing import Any, Self, TypeVar

import redis.asyncio as redis
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import TimeoutError as TookTooLong

from server.cluster.watched import keep_running
from server.errors import Expired, KeyReused, NoSuchJob, QueueFull, StoreAway
from server.jobs.model import (
    FIRST,
    Batch,
    Callback,
    Claim,
    Facts,
    Failure,
    Idempotency,
    Job,
    JobId,
    JobState,
    NewJob,
    Queue,
    Renewal,
    Result,
    Schedule,
)
from server.logs import get_logger

log = get_logger(__name__)

T = TypeVar("T")

_SCRIPT = (Path(__file__).parent / "store.lua").read_text()

#: Without memory left, jobs must still be able to end and to expire.
_DESPITE_OOM = "#!lua flags=allow-oom\n"

#: The hash tag keeps all keys in one slot of a cluster.
_PREFIX = "{flip}:"
_PRIORITY = 2**40  # as in the script

#: URLs of several hosts, in the form that other clients have for Sentinel: redis-py has none.
_MANY_HOSTS = re.compile(
    r"(?P<scheme>rediss?)\+(?P<topology>sentinel|cluster)://"
    r"(?P<login>[^@/]*@|)(?P<hosts>[^@/?]+)(?P<path>/[^?]*|)(?P<query>\?.*|)"
)
_OF_ONE_HOST = frozenset({"host", "port", "connection_class"})

#: How long an idle consumer blocks at most: so late is a job that is due, or whose bell was lost.
BLOCK_S = 2.0

#: How long an answer may take, and how often to look whether a store that was away is back, in seconds.
_ANSWER_S = 2.0
_LOOK_EVERY_S = 0.25

#: A timeout that fires so late, in seconds, means that this process did not run, and that the store may have
#: answered in time.
_STALL_S = 0.5

#: How often an owner is heard of, in seconds.
_BEAT_S = 5.0

#: How long an idempotency key is remembered, and that an expired job was there, in seconds.
_REMEMBER_S = 86400

#: How long the id of a dropped batch is remembered, in seconds: a submission that timed out may arrive after
#: the drop.
_LATE_S = 60

#: How many calls are made at a time: redis-py has a connection for each, which takes long to make over TLS,
#: and takes a lack of connections for a store that is away.
_CALLS_AT_ONCE = 8

#: What the store says when it is not there, while it loads its data, or while another one takes over.
_AWAY = (NotConnected, TookTooLong, ClusterError, RedisClusterException, OSError)

#: How its errors begin while it answers and refuses each change, besides that of a replica: it cannot write
#: to its disk, has too few replicas, or has become a replica while a consumer waited for a job.
_REFUSALS = ("MISCONF", "NOREPLICAS", "UNBLOCKED")


class Dropped(Exception):
    """The batch that was being submitted is being removed, or is gone."""


class Store:
    """A client of the store; all its methods raise StoreAway while the store does not answer.

    Args:
        url: as `Settings.queue_url` describes it.
        owner: name of the process that claims and submits, unique over all machines.
        grace_s: how long a call waits for a store that is away, in seconds; once it has been away for longer,
            calls fail at once.
        ttl_s: how long a group is kept after its end, in seconds.
        lease_s: how long a claim lasts unless it is renewed, in seconds.
        max_jobs, max_bytes: of all jobs that have not ended.
    """

    def __init__(  # noqa: PLR0913 one for each setting
        self,
        url: str,
        *,
        owner: str,
        grace_s: float,
        ttl_s: float,
        lease_s: float,
        max_jobs: int,
        max_bytes: int,
    ) -> None:
        self.owner = owner
        self._ttl_ms = int(ttl_s * 1000)
        self._lease_ms = int(lease_s * 1000)
        self._max_jobs = max_jobs
        self._max_bytes = max_bytes
        self._redis = _client(url)
        self._blocking = _client(url)
        self._adding = self._redis.register_script(_SCRIPT)
        self._script = self._redis.register_script(_DESPITE_OOM + _SCRIPT)
        # A script that says nothing of itself may write, so it is refused when a change would be.
        changing_nothing = self._redis.register_script(f"{_DESPITE_OOM}return 1")
        self._answers = _Breaker(
            lambda: self._redis.exists(f"{_PREFIX}totals"),  # where the keys are, in a cluster
            grace_s,
            "store_away",
            "store_back",
        )
        self._takes_changes = _Breaker(
            lambda: changing_nothing(keys=[_PREFIX]), grace_s, "store_read_only", "store_writable"
        )
        self._places = asyncio.Semaphore(_CALLS_AT_ONCE)
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait({self._beating})
        await self._answers.stop()
        await self._takes_changes.stop()
        for client in (self._redis, self._blocking):
            await _close(client)

    # --- submitting --------------------------------------------------------------------------------------

    async def submit(
        self, id: str, facts: Facts, job: NewJob, schedule: Schedule, idempotency: Idempotency | None = None
    ) -> str:
        """Submit one job.

        Returns:
            Its id, or that of an earlier submission with the same idempotency key and fingerprint.

        Raises:
            KeyReused, QueueFull, StoreAway: as their names say.
        """
        answer = await self._submit(id, facts, [job], schedule, is_batch=False, idempotency=idempotency)
        return str(answer.get("same", id))

    async def submit_items(
        self, batch: str, facts: Facts, jobs: Sequence[NewJob], schedule: Schedule
    ) -> None:
        """Submit some items of a batch; the item with the index 0 makes the batch.

        Raises:
            QueueFull, StoreAway: as their names say; the caller drops the batch.
            Dropped: that has happened.
        """
        await self._submit(batch, facts, jobs, schedule, is_batch=True, idempotency=None)

    async def _submit(  # noqa: PLR0913 once for two callers
        self,
        group: str,
        facts: Facts,
        jobs: Sequence[NewJob],
        schedule: Schedule,
        *,
        is_batch: bool,
        idempotency: Idempotency | None,
    ) -> Mapping[str, Any]:
        how = {
            "subqueue": f"{schedule.queue} {facts.kind}",
            "priority": schedule.priority,
            "delay_ms": int(schedule.delay_s * 1000),
            "not_before_ms": int(schedule.not_before_s * 1000),
        }
        answer = await self._ask(
            "submit",
            group=group,
            facts=_compact(_given(asdict(facts))),
            jobs=[_given({**how, "bytes": job.bytes, "index": job.index, "name": job.name}) for job in jobs],
            is_batch=is_batch,
            max_jobs=self._max_jobs,
            max_bytes=self._max_bytes,
            idempotency=_idempotency(idempotency),
        )
        if "full" in answer:
            raise _full(answer["gap_ms"], self._max_jobs)
        return _checked(answer)

    async def seal(self, batch: str, idempotency: Idempotency | None = None) -> str:
        """Say that all items of a batch are submitted.

        Returns:
            Its id, or that of an earlier batch with the same idempotency key and fingerprint.

        Raises:
            KeyReused, StoreAway: the caller drops the batch.
            Dropped: that has happened.
        """
        answer = _checked(await self._ask("seal", group=batch, idempotency=_idempotency(idempotency)))
        return str(answer.get("same", batch))

    async def drop(self, batch: str) -> bool:
        """Delete a batch with all its jobs, whatever their state, unless it is sealed.

        Returns:
            Whether it is gone; False: it was sealed, and stays.
        """
        return await self._ask_in_parts("drop", group=batch, remember_ms=_LATE_S * 1000)

    # --- consuming ---------------------------------------------------------------------------------------

    async def claim(
        self, request: str, kinds: Sequence[str], count: int, held: Mapping[str, int] | None = None
    ) -> tuple[Sequence[Claim], float]:
        """Claim up to `count` jobs.

        Args:
            request: unique for each claim of these kinds; one that is asked again gets the same jobs.
            kinds: the operations that the caller has, as in `Facts.kind`.
            count: how many, at most.
            held: the fences of the jobs that the caller runs, by their ids; their leases are renewed.

        Returns:
            The jobs, and after how many seconds the next delayed one is due, at most `BLOCK_S`.
        """
        answer = await self._ask(
            "claim", request=request, kinds=list(kinds), count=count, held=held, lease_ms=self._lease_ms
        )
        claims = [_claim(each) for each in answer["jobs"]]
        return claims, min(BLOCK_S, answer.get("due_ms", 1e6) / 1000)

    async def wait_for_bell(self, kinds: Sequence[str], timeout_s: float) -> None:
        """Wait until a job of one of these kinds waits, but no longer than that, and less when in doubt."""
        bells = [f"{_PREFIX}bell:{kind}" for kind in kinds]
        try:
            async with asyncio.timeout(timeout_s + _ANSWER_S):
                await self._blocking.bzpopmin(bells, timeout_s or 0.001)
        except _AWAY:
            pass
        except ResponseError as error:
            if not _is_refusal(error):
                raise
            self._takes_changes.open(error)

    async def renew(self, fences: Mapping[str, int], progress: Mapping[str, int]) -> Renewal:
        """Renew the leases of jobs.

        Args:
            fences: the fence of each job, by its id.
            progress: how far some of them are, in percent.
        """
        answer = await self._ask("renew", fences=fences, progress=progress, lease_ms=self._lease_ms)
        return Renewal(list(answer["lost"]), list(answer["cancelled"]))

    async def complete(self, claim: Claim, result: Result | None) -> bool:
        """Report success; False: it is refused, as the job was cancelled or has been claimed again."""
        more = {} if result is None else {"result": _compact(asdict(result))}
        return await self._finish(claim, "completed", **more) is JobState.COMPLETED

    async def fail(self, claim: Claim, failure: Failure, *, is_final: bool) -> None:
        """Report failure; if it is not final, the job is tried again later, as often as it may be."""
        await self._finish(claim, "failed" if is_final else "again", error=_compact(asdict(failure)))

    async def give_back(self, claim: Claim) -> bool:
        """Return a job as if it had not been claimed; True: it is completed, as its report was heard."""
        return await self._finish(claim, "released") == JobState.COMPLETED

    async def _finish(self, claim: Claim, how: str, **more: str) -> JobState | None:
        answer = await self._ask("finish", id=str(claim.id), fence=claim.fence, how=how, **more)
        return JobState(answer["state"]) if "state" in answer else None

    async def holders(self) -> Sequence[str]:
        """Name the owners that hold jobs."""
        return list((await self._ask("holders", lease_ms=self._lease_ms))["owners"])

    async def release(self, owner: str) -> int:
        """Take the jobs of a dead owner back, and return how many there were."""
        return int((await self._ask("release", owner=owner))["released"])

    # --- what people ask for -----------------------------------------------------------------------------

    async def cancel_job(self, id: JobId) -> None:
        """Cancel a job that has not ended: at once if it waits; one that runs is asked to stop."""
        await self._ask("cancel_job", id=str(id))

    async def cancel_batch(self, batch: str) -> None:
        """Cancel all jobs of a batch that have not ended."""
        await self._ask_in_parts("cancel_group", group=batch)

    async def retry(self, id: JobId) -> None:
        """Let a failed or cancelled job run again.

        Raises:
            Expired: it is not kept any more.
        """
        if "expired" in await self._ask("retry", id=str(id)):
            raise Expired("It is not kept any more. Submit the work again.")

    async def pause(self, queue: str) -> None:
        """Let no job of a queue be claimed."""
        await self._ask("pause", queue=queue)

    async def resume(self, queue: str) -> None:
        """Let jobs of a queue be claimed again."""
        await self._ask("resume", queue=queue)

    async def job(self, id: JobId) -> Job:
        """Return a job.

        Raises:
            NoSuchJob, Expired, StoreAway: as their names say.
        """
        found = await self._read_jobs([id])
        if found[0] is None:
            raise await self._missing(id.group)
        return found[0]

    async def batch(self, id: str) -> Batch:
        """Return a batch, or the group of a job that is in none.

        Raises:
            NoSuchJob, Expired, StoreAway: as their names say.
        """
        fields = await self._guarded(lambda: self._redis.hgetall(f"{_PREFIX}group:{id}"))
        if not fields:
            raise await self._missing(id)
        return _batch(id, _texts(fields))

    async def items(self, batch: str, indexes: range) -> Sequence[Job]:
        """Return the jobs of a batch with these indexes, as far as there are any."""
        return [job for job in await self._read_jobs([JobId(batch, i) for i in indexes]) if job]

    async def log(self, group: str, start: int) -> Sequence[Mapping[str, Any]]:
        """Return the lines of a group's log from a position on."""
        lines = await self._guarded(lambda: self._redis.lrange(f"{_PREFIX}log:{group}", start, -1))
        return [json.loads(line) for line in lines]

    async def queues(self, names: Sequence[str]) -> Sequence[Queue]:
        """Return the queues with these names."""

        async def read() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.smembers(f"{_PREFIX}paused")
                for name in names:
                    pipe.hgetall(f"{_PREFIX}counts:{name}")
                return await pipe.execute()

        paused, *counts = await self._guarded(read)
        return [
            Queue(
                name,
                is_paused=name in paused,
                jobs={state: int(of.get(state, 0)) for state in JobState},
                ended=int(of.get("ended", 0)),
            )
            for name, of in zip(names, counts, strict=True)
        ]

    async def failed(self, queue: str, start: int, count: int) -> Sequence[Job]:
        """Return failed jobs of a queue, the newest first."""
        key = f"{_PREFIX}failed:{queue}"
        ids = await self._guarded(lambda: self._redis.zrevrange(key, start, start + count - 1))
        return [job for job in await self._read_jobs([_job_id(str(id)) for id in ids]) if job]

    @asynccontextmanager
    async def hints(self, groups: Collection[str]) -> AsyncIterator["Hints"]:
        """Subscribe to hints about some groups, and about jobs of this owner that are to be cancelled.

        Args:
            groups: which; those that are added before the block begins are heard of too.
        """
        async with self._blocking.pubsub(ignore_subscribe_messages=True) as subscription:
            hints = Hints(subscription, self._noticing)
            with self._noticing():
                await self._blocking.initialize()  # a cluster's subscription does not ask where its slots are
                await subscription.subscribe(f"{_PREFIX}cancel:{self.owner}")
                watched: set[str] = set()
                while new := set(groups) - watched:
                    for group in new:
                        await hints.watch(group)
                    watched |= new
            yield hints

    # --- keeping house -----------------------------------------------------------------------------------

    async def sweep(self, count: int, lease_s: float, silent_s: float) -> tuple[int, Sequence[str]] | None:
        """Become the janitor, or stay it.

        Args:
            count: how many groups to name, at most.
            lease_s: for how long, in seconds.
            silent_s: after so many seconds of silence an owner is taken for dead; time without a janitor,
                because the store was away, does not count.

        Returns:
            A fence, and groups that are to be removed; None when another one is the janitor.
        """
        answer = await self._ask(
            "sweep", count=count, lease_ms=int(lease_s * 1000), silent_ms=int(silent_s * 1000)
        )
        return (answer["fence"], list(answer["groups"])) if "fence" in answer else None

    async def expire(self, group: str, fence: int) -> bool:
        """Forget a group whose files are gone; False: another one is the janitor now."""
        return await self._ask_in_parts("expire", group=group, fence=fence, remember_ms=_REMEMBER_S * 1000)

    async def has(self, group: str) -> bool:
        """Whether the store knows a group."""
        return bool(await self._guarded(lambda: self._redis.exists(f"{_PREFIX}group:{group}")))

    def raise_if_away(self) -> None:
        """Raise StoreAway if the store has been away, or has taken no changes, for longer than the grace."""
        for breaker in (self._answers, self._takes_changes):
            if breaker.left_s() <= 0:
                raise self._away()

    async def wait_until_back(self) -> None:
        """Wait until the store answers and takes changes, however long that takes."""
        await self._answers.wait()
        await self._takes_changes.wait()

    # --- asking ------------------------------------------------------------------------------------------

    async def _ask(self, verb: str, **args: object) -> dict[str, Any]:
        if self._beating is None or self._beating.done():
            self._beating = asyncio.create_task(keep_running("owner_beat", self._beat))
        text = _compact(_given({"owner": self.owner, "ttl_ms": self._ttl_ms, **args}))
        script = self._adding if verb == "submit" else self._script
        answer = await self._guarded(lambda: script(keys=[_PREFIX], args=[verb, text]), is_change=True)
        found: dict[str, Any] = json.loads(answer)
        return found

    async def _beat(self) -> None:
        """Let the owner be heard of, whatever else it does: it may receive one batch for hours."""
        while True:
            with suppress(StoreAway):
                await self._ask("beat")
            await asyncio.sleep(_BEAT_S)

    async def _ask_in_parts(self, verb: str, **args: object) -> bool:
        start: int | None = 0
        while start is not None:
            answer = await self._ask(verb, **args, **{"from": start})
            if "refused" in answer:
                return False
            start = answer.get("next")
        return True

    async def _read_jobs(self, ids: Sequence[JobId]) -> list[Job | None]:
        async def read() -> list[Any]:
            groups = {id.group for id in ids}
            async with self._redis.pipeline(transaction=False) as pipe:
                for group in groups:
                    pipe.hget(f"{_PREFIX}group:{group}", "facts")
                for id in ids:
                    pipe.hgetall(f"{_PREFIX}job:{id}")
                answers = await pipe.execute()
            facts = dict(zip(groups, answers, strict=False))
            return [
                _job(id, fields, facts[id.group]) if fields and facts[id.group] else None
                for id, fields in zip(ids, answers[len(groups) :], strict=True)
            ]

        return await self._guarded(read) if ids else []

    async def _missing(self, group: str) -> NoSuchJob | Expired:
        if await self._guarded(lambda: self._redis.exists(f"{_PREFIX}gone:{group}")):
            return Expired("It was there, and is not kept any more. Submit the work again.")
        return NoSuchJob(
            "There is no job or batch with this id. Use the address that the submission answered with."
        )

    async def _guarded(
        self, call: Callable[[], Awaitable[T]], *, is_change: bool = False, is_last: bool = False
    ) -> T:
        """Call the store, again and again while it is away, within the grace.

        Args:
            call: repeatable.
            is_change: whether it waits for a store that takes changes; all scripts do.
            is_last: whether a stall of this process is no reason to call it once more.

        Raises:
            StoreAway: the grace is over.
            QueueFull: the memory of the store is full.
        """
        breakers = (self._answers, self._takes_changes) if is_change else (self._answers,)
        is_asking = False
        limit = asyncio.timeout(max(0, min(each.left_s() for each in breakers)))
        try:
            async with limit, self._places:
                while True:
                    for breaker in breakers:
                        await breaker.wait()
                    is_asking = True
                    with self._noticing():
                        async with asyncio.timeout(_ANSWER_S):
                            return await call()
        except TimeoutError as error:
            late_s = asyncio.get_running_loop().time() - (limit.when() or 0)
            if is_asking and late_s > _STALL_S and not is_last:
                return await self._guarded(call, is_change=is_change, is_last=True)
            # To wait for other calls says nothing about the store.
            if is_asking and all(breaker.is_closed for breaker in breakers):
                self._answers.open(error)
            raise self._away() from None

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Open a breaker instead of raising that the store is away, or takes no changes.

        Raises:
            QueueFull: the memory of the store is full.
        """
        try:
            yield
        except OutOfMemoryError:
            raise QueueFull("The store of the jobs has no memory left. Try again later.", 60) from None
        except _AWAY as error:
            self._answers.open(error)
        except ResponseError as error:
            if not _is_refusal(error):
                raise
            self._takes_changes.open(error)

    def _away(self) -> StoreAway:
        if self._answers.is_closed and not self._takes_changes.is_closed:
            return StoreAway("The store of the jobs takes no changes at the moment. Try again in a second.")
        return StoreAway("The store of the jobs does not answer. Try again in a second.")


class _Breaker:
    """A circuit breaker for one thing that the store does: open from a failure until a probe succeeds.

    Args:
        probe: does that thing without consequences.
        grace_s: how long a call waits for it while the breaker is open, in seconds.
        opened, closed: the events to be logged.
    """

    def __init__(
        self, probe: Callable[[], Awaitable[object]], grace_s: float, opened: str, closed: str
    ) -> None:
        self._probe = probe
        self._grace_s = grace_s
        self._opened = opened
        self._closed = closed
        self._is_closed = asyncio.Event()
        self._is_closed.set()
        self._open_since_s = 0.0
        self._probing: asyncio.Task[None] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the store does it, as far as is known."""
        return self._is_closed.is_set()

    async def wait(self) -> None:
        """Wait until it is closed."""
        await self._is_closed.wait()

    def left_s(self) -> float:
        """Return how much of the grace is left, in seconds."""
        if self.is_closed:
            return self._grace_s
        return self._grace_s - (asyncio.get_running_loop().time() - self._open_since_s)

    def open(self, error: Exception) -> None:
        """Open it, unless it is open, and probe until it can be closed."""
        if self.is_closed:
            self._is_closed.clear()
            self._open_since_s = asyncio.get_running_loop().time()
            log.warning(self._opened, error=str(error) or repr(error))
            self._probing = asyncio.create_task(keep_running("store_probe", self._probe_until_closed))

    async def stop(self) -> None:
        """Probe no more."""
        if self._probing is not None:
            self._probing.cancel()
            with suppress(asyncio.CancelledError):
                await self._probing

    async def _probe_until_closed(self) -> None:
        while True:
            with suppress(RedisError, *_AWAY, TimeoutError):
                async with asyncio.timeout(_ANSWER_S):
                    await self._probe()
                    break
            await asyncio.sleep(_LOOK_EVERY_S)
        open_s = asyncio.get_running_loop().time() - self._open_since_s
        log.info(self._closed, away_s=round(open_s, 3))
        self._is_closed.set()


def _is_refusal(error: ResponseError) -> bool:
    """Whether the store refuses changes as such, and not this one."""
    return isinstance(error, ReadOnlyError) or str(error).startswith(_REFUSALS)


async def warn_of_losses(url: str) -> None:
    """Log what would make a store lose jobs, or that it is away: to be called at the start.

    Args:
        url: of a store that the service has not started itself.
    """
    client = _client(url)
    try:
        async with asyncio.timeout(_ANSWER_S):
            told = await client.info()
    except (RedisError, *_AWAY) as error:
        log.warning("store_away", error=str(error) or repr(error))
        return
    finally:
        await _close(client)
    reasons = []
    if told.get("maxmemory_policy") != "noeviction":
        reasons.append(
            f"it may evict jobs: set maxmemory-policy from {told.get('maxmemory_policy')} to noeviction"
        )
    if not told.get("aof_enabled"):
        reasons.append("what it acknowledges is not on its disk: set appendonly to yes")
    if reasons:
        log.warning("store_may_lose_jobs", reason="; ".join(reasons))


class Hints:
    """A subscription: pairs of `news` and a group whose log has grown, or `cancel` and the id of a job.

    Hints may be lost; the iteration ends when the store is away.
    """

    def __init__(self, subscription: PubSub, noticing: Callable[[], AbstractContextManager[None]]) -> None:
        self._subscription = subscription
        self._noticing = noticing

    async def watch(self, group: str) -> None:
        """Ask for hints about a group."""
        with self._noticing():
            await self._subscription.subscribe(f"{_PREFIX}news:{group}")

    async def unwatch(self, group: str) -> None:
        """Ask for no more of them."""
        with self._noticing():
            await self._subscription.unsubscribe(f"{_PREFIX}news:{group}")

    async def __aiter__(self) -> AsyncIterator[tuple[str, str]]:
        with self._noticing():
            while self._subscription.subscribed:  # else the store was away before it began
                if message := await self._subscription.get_message(timeout=BLOCK_S):
                    kind, _, subject = message["channel"].removeprefix(_PREFIX).partition(":")
                    yield kind, subject if kind == "news" else message["data"]


def _client(url: str) -> "redis.Redis":
    """Make a client for a URL; what redis-py takes from the query of a URL may be in all of them."""
    options: dict[str, Any] = {
        "decode_responses": True,
        # Ours are around the calls: with one of its own, redis-py sends within asyncio.wait_for, which in
        # Python 3.11 loses a cancellation that comes when all is sent, and a worker would never end.
        "socket_timeout": None,
        "socket_connect_timeout": _ANSWER_S,
        "retry": Retry(NoBackoff(), 0),  # ours knows the grace
    }
    if not (many := _MANY_HOSTS.fullmatch(url)):
        return redis.from_url(url, **options)
    service, _, database = many["path"].strip("/").partition("/")
    nodes = [
        parse_url(f"{many['scheme']}://{many['login']}{host}/{database}{many['query']}")
        for host in many["hosts"].split(",")
    ]
    tls: dict[str, Any] = {name: value for name, value in nodes[0].items() if name.startswith("ssl_")}
    if many["scheme"] == "rediss":
        tls["ssl"] = True
    shared = {name: value for name, value in nodes[0].items() if name not in _OF_ONE_HOST}
    given: dict[str, Any] = {**shared, **tls, **options}
    if many["topology"] == "cluster":
        hosts = [ClusterNode(node["host"], node.get("port", 6379)) for node in nodes]
        cluster: Any = RedisCluster(startup_nodes=hosts, **given)  # it has the same methods
        return cluster  # type: ignore[no-any-return]
    login = {
        name.removeprefix("sentinel_"): given.pop(name)
        for name in tuple(given)
        if name.startswith("sentinel_")
    }
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        [(node["host"], node.get("port", 26379)) for node in nodes],
        sentinel_kwargs={**tls, **login, **options},
        **given,
    )
    return sentinel.master_for(service)  # type: ignore[no-any-return]


async def _close(client: "redis.Redis") -> None:
    await client.aclose()
    pool = getattr(client, "connection_pool", None)  # a cluster has none
    if isinstance(pool, SentinelConnectionPool):
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is None: in the script, null would be something."""
    return {name: value for name, value in fields.items() if value is not None}


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _idempotency(given: Idempotency | None) -> dict[str, Any] | None:
    return None if given is None else {**asdict(given), "ttl_ms": _REMEMBER_S * 1000}


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "reused" in answer:
        raise KeyReused(KeyReused.example)
    if "gone" in answer:
        raise Dropped
    return answer


def _full(gap_ms: float, max_jobs: int) -> QueueFull:
    """Say when a tenth of the queue will have been worked off, as fast as jobs end now."""
    retry_after_s = min(600, max(1, ceil(gap_ms * max_jobs / 10 / 1000)))
    return QueueFull("Too many jobs wait already. Try again later.", retry_after_s)


def _job_id(text: str) -> JobId:
    if (id := JobId.parse(text)) is None:
        raise ValueError(f"the store names a job {text!r}")
    return id


def _known(kind: type[T], found: Mapping[str, Any]) -> T:
    """Make a value of the fields that this version knows: a newer one may have written more."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in found.items() if name in names})


def _facts(text: str) -> Facts:
    found = json.loads(text)
    callback = found.pop("callback", None)
    return _known(Facts, {**found, "callback": callback and _known(Callback, callback)})


def _claim(found: Mapping[str, Any]) -> Claim:
    return Claim(_job_id(found["id"]), found["fence"], found["tries"], _facts(found["facts"]))


def _job(id: JobId, found: Mapping[str, str], facts: str) -> Job:
    score = int(found["score"])
    return Job(
        id=id,
        state=JobState(found["state"]),
        queue=found["subqueue"].partition(" ")[0],
        priority=FIRST + score // _PRIORITY,
        facts=_facts(facts),
        bytes=int(found["bytes"]),
        name=found.get("name"),
        tries=int(found["tries"]),
        progress=int(found.get("progress", 0)),
        created_s=int(found["created"]) / 1000,
        started_s=_seconds(found.get("started")),
        ended_s=_seconds(found.get("ended")),
        is_cancelling="cancel" in found,
        error=_known(Failure, json.loads(found["error"])) if "error" in found else None,
        result=_known(Result, json.loads(found["result"])) if "result" in found else None,
    )


def _batch(id: str, found: Mapping[str, str]) -> Batch:
    return Batch(
        id=id,
        is_batch=found["is_batch"] == "1",
        facts=_facts(found["facts"]),
        total=int(found["total"]),
        remaining=int(found["remaining"]),
        completed=int(found["completed"]),
        failed=int(found["failed"]),
        cancelled=int(found["cancelled"]),
        is_sealed=found["sealed"] == "1",
        created_s=int(found["created"]) / 1000,
        ended_s=_seconds(found.get("ended")),
    )


def _texts(fields: Mapping[Any, Any]) -> dict[str, str]:
    """Tell the type checker what `decode_responses` has done."""
    return dict(fields)


def _seconds(ms: str | None) -> float | None:
    return None if ms is None else int(ms) / 1000
