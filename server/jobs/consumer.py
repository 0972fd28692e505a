"""The consumer: claims jobs and has the background engines run them."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from server.cluster.dispatch import Dispatcher
from server.cluster.memory_files import NO_ROOM
from server.cluster.supervisor import OnDemandEngines
from server.errors import CallbackFailed, OperationRefused, StoreAway, TemporaryFailure
from server.jobs import owners
from server.jobs.blobs import BlobGone, Blobs
from server.jobs.model import CALLBACK_KIND, Claim, Failure, Result
from server.jobs.store import Store
from server.logs import get_logger
from server.operations.registry import Operation

if TYPE_CHECKING:
    from server.jobs.callbacks import Callbacks

log = get_logger(__name__)

T = TypeVar("T")

#: How many callbacks a worker posts at a time.
_CALLBACKS_AT_ONCE = 8

#: How often the progress of running jobs is reported, and dead consumers are looked for, in seconds.
_TICK_S = 1.0

#: How long to hold a job whose files cannot be reached, in seconds.
_FILES_AWAY_S = 1.0


class _Try(NamedTuple):
    """A try that runs.

    Attributes:
        task: runs it, and is cancelled to stop it.
        end: waits for its end, whatever that is.
    """

    claim: Claim
    task: asyncio.Task[None]
    end: asyncio.Task[None]


#: A job and its fence: the end of an earlier try may come after the start of the next one.
_Key = tuple[str, int]


def _key(claim: Claim) -> _Key:
    return str(claim.id), claim.fence


class Consumer:
    """Runs jobs for one worker, several at a time: one in each of its engines, the others ready for them.

    Args:
        store: where jobs are claimed.
        blobs: where their files are.
        dispatcher: sends them to the background engines of the machine.
        engines: the worker's own, which start when they are wanted.
        operations: those that jobs may name.
        at_once: how many jobs to hold at a time; at 0 it only takes over what dead consumers held.
        lease_s: how long a claim lasts, in seconds; it is renewed three times as often.
        callbacks: posts them; None leaves them to others.
    """

    def __init__(  # noqa: PLR0913 one for each collaborator
        self,
        store: Store,
        blobs: Blobs,
        dispatcher: Dispatcher,
        engines: OnDemandEngines,
        operations: Mapping[str, Operation],
        *,
        at_once: int,
        lease_s: float,
        callbacks: "Callbacks | None" = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._dispatcher = dispatcher
        self._engines = engines
        self._operations = operations
        self._callbacks = callbacks
        self._lease_s = lease_s
        # Callbacks have places of their own: hosts that do not answer must not hold images up.
        self._places = {tuple(f"{each.name} {each.version}" for each in operations.values()): at_once}
        if callbacks and at_once:
            self._places[(CALLBACK_KIND,)] = _CALLBACKS_AT_ONCE
        self._requests = count(1)
        self._running: dict[_Key, _Try] = {}
        self._progress: dict[_Key, int] = {}
        self._has_ended = asyncio.Event()  # a job, so that there is room for another one

    async def run(self) -> None:
        """Claim jobs and run them until cancelled; then those that run are given back."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._renew())
                for kinds, at_once in self._places.items():
                    if at_once:
                        group.create_task(self._claim(kinds, at_once))
        finally:
            for each in self._running.values():
                each.task.cancel()
            await asyncio.gather(*(each.end for each in self._running.values()))

    async def _claim(self, kinds: Sequence[str], at_once: int) -> None:
        request = str(next(self._requests))
        while True:
            while (room := at_once - self._count_running(kinds)) == 0:
                self._has_ended.clear()
                await self._has_ended.wait()
            asking = asyncio.ensure_future(self._store.claim(request, kinds, room, self._fences()))
            try:
                claims, idle_s = await asyncio.shield(asking)
            except StoreAway:  # it may have been carried out: ask the same again
                await self._store.wait_until_back()
                continue
            except asyncio.CancelledError:
                with suppress(StoreAway):
                    claims, _ = await asking
                    for claim in claims:
                        await self._store.give_back(claim)
                raise
            request = str(next(self._requests))
            for claim in claims:
                self.stop_job(str(claim.id))  # an earlier try, whose lease has ended unnoticed
                task = asyncio.create_task(self._try(claim))
                end = asyncio.create_task(self._end(claim, task))
                self._running[_key(claim)] = _Try(claim, task, end)
            if len(claims) < room:  # nothing else waits
                await self._store.wait_for_bell(kinds, idle_s)

    def _fences(self) -> dict[str, int]:
        return dict(self._running.keys())  # of two tries of a job the later one counts

    def _count_running(self, kinds: Sequence[str]) -> int:
        return sum(each.claim.facts.kind in kinds for each in self._running.values())

    async def _renew(self) -> None:
        """Keep the leases, report progress, and take over what dead consumers of this machine held."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            try:
                now_s = loop.time()
                if now_s >= due_s or self._progress:
                    await self._renew_once()
                    due_s = now_s + self._lease_s / 3
                await self._release_dead()
            except StoreAway:
                await self._store.wait_until_back()
                due_s = loop.time()  # the leases may be about to end
            else:
                await asyncio.sleep(_TICK_S)

    async def _renew_once(self) -> None:
        noted, self._progress = self._progress, {}
        fences = self._fences()
        progress = {id: part for (id, fence), part in noted.items() if fences.get(id) == fence}
        renewal = await self._store.renew(fences, progress)
        for id in (*renewal.lost, *renewal.cancelled):
            self.stop_job(id)

    async def _release_dead(self) -> None:
        for owner in await self._store.holders():
            if owners.is_dead(owner):
                released = await self._store.release(owner)
                log.warning("jobs_released", owner=owner, jobs=released)

    def stop_job(self, id: str) -> None:
        """Stop a job that is to be cancelled, if it runs here."""
        for each in self._running.values():
            if str(each.claim.id) == id:
                each.task.cancel()

    async def _end(self, claim: Claim, task: asyncio.Task[None]) -> None:
        """Wait for the end of a try, which may be cancelled before it has begun."""
        try:
            await asyncio.wait([task])
            if task.cancelled():  # this worker stops, or the job was cancelled, or is another's
                await self._give_back(claim)
            elif error := task.exception():
                log.error("job_not_reported", job=str(claim.id), exc_info=error)  # its lease will end
        finally:
            del self._running[_key(claim)]
            self._progress.pop(_key(claim), None)
            self._has_ended.set()

    async def _give_back(self, claim: Claim) -> None:
        with suppress(StoreAway):  # then its lease ends, or its owner is found dead
            if not await self._store.give_back(claim):
                await self._remove_result(claim)

    async def _remove_result(self, claim: Claim) -> None:
        with suppress(StoreAway):  # then it goes with its group
            await self._blobs.remove(claim.id.group, claim.id.result_name(claim.fence))

    async def _try(self, claim: Claim) -> None:
        try:
            result = await self._work(claim)
        except OperationRefused as refusal:
            failure = Failure(type(refusal).__name__, refusal.detail)
            await self._report(lambda: self._store.fail(claim, failure, is_final=True))
            log.info("job_failed", job=str(claim.id), error=failure.error)
        except CallbackFailed as error:
            failure = Failure(type(error).__name__, error.detail)
            log.warning("callback_failed", job=str(claim.id), tries=claim.tries, error=error.detail)
            await self._report(lambda: self._store.fail(claim, failure, is_final=False))
        except BlobGone:  # its batch was dropped, as a rule: then the store knows the job no more
            log.info("job_files_gone", job=str(claim.id))
            failure = Failure("TooManyAttempts", "The files of the job are gone. Submit the work again.")
            await self._report(lambda: self._store.fail(claim, failure, is_final=True))
        except StoreAway:  # that of the files: it costs the job no try, but it must not be claimed at once
            await asyncio.sleep(_FILES_AWAY_S)
            await self._give_back(claim)
        except Exception as error:
            failure = _failure(error)
            log.warning("job_try_failed", job=str(claim.id), tries=claim.tries, exc_info=error)
            await self._report(lambda: self._store.fail(claim, failure, is_final=False))
        else:
            if not await self._report(lambda: self._store.complete(claim, result)):
                await self._remove_result(claim)

    async def _work(self, claim: Claim) -> Result | None:
        if self._callbacks and claim.facts.kind == CALLBACK_KIND:
            await self._callbacks.post(claim)
            return None
        return await self._result_of(claim)

    async def _result_of(self, claim: Claim) -> Result:
        facts = claim.facts
        operation = self._operations[facts.operation]
        # Defaults of parameters that came after the submission.
        parameters = operation.parameters.model_validate(facts.parameters).model_dump()
        with await self._blobs.open(claim.id.group, claim.id.input_name) as source, self._blobs.new() as sink:
            with self._engines.wanted():
                done = await self._dispatcher.run_in_background(
                    source,
                    sink,
                    operation,
                    parameters,
                    on_progress=lambda part: self._note(claim, part),
                )
            await self._blobs.keep(sink, claim.id.group, claim.id.result_name(claim.fence), must_exist=True)
            return Result(done.outcome, os.fstat(sink.fileno()).st_size, claim.fence)

    def _note(self, claim: Claim, part: float) -> None:
        self._progress[_key(claim)] = int(100 * part)

    async def _report(self, call: Callable[[], Awaitable[T]]) -> T:
        """Report how a try ended, however long the store is away: asking again is safe."""
        while True:
            try:
                return await call()
            except StoreAway:
                await self._store.wait_until_back()


def _failure(error: Exception) -> Failure:
    """Say what went wrong in words that may reach a client."""
    if isinstance(error, TemporaryFailure):
        return Failure("ServiceUnavailable", error.detail)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return Failure("ServiceUnavailable", "There was no room for the result.")
    return Failure("TooManyAttempts")
