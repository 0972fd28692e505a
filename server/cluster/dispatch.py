"""Dispatch: hand a picture to whichever engine is free and wait for what comes back."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from itertools import count

from server.cluster.membership import Membership
from server.cluster.memory_files import MemoryFilePool
from server.cluster.messages import Done, Refused, Task, decode_outcome, now_us
from server.cluster.quarantine import CRASH_THRESHOLD, QuarantineEntry
from server.cluster.scoreboard import Cell
from server.cluster.supervisor import describe_exit
from server.cluster.work_socket import Lane, receive, send
from server.errors import ImageError, PoisonImage, TooMuchWork
from server.imaging.limits import Limits
from server.imaging.recipe import Recipe
from server.logs import get_logger

log = get_logger(__name__)

#: How many engines may be lost over one request, if it is not plain that the picture did it.
_PATIENCE = 4

#: How long we wait to be told how an engine ended, and how often we look, in seconds.
_VERDICT_S = 1.0
_LOOK_EVERY_S = 0.002


class TooLate(Exception):
    """No engine came to the task within the limit."""


class EngineBug(Exception):
    """An engine answered with a traceback instead of a picture: our fault, not the caller's."""


@dataclass(frozen=True, slots=True)
class Lost:
    """An engine died over a task.

    Attributes:
        pid: the engine's; 0 when nobody told us, because its worker has died as well.
        returncode: as `subprocess` says it.
    """

    pid: int = 0
    returncode: int = 0

    @property
    def took_too_long(self) -> bool:
        """Whether the kernel ended it for that."""
        return self.returncode == -signal.SIGALRM

    @property
    def may_be_an_accident(self) -> bool:
        """Whether somebody else may have ended it: an operator, the kernel for want of memory."""
        return self.pid == 0 or self.returncode == -signal.SIGKILL


class Dispatcher:
    """Sends tasks to the engines of the whole cluster on behalf of one worker.

    Args:
        membership: the work socket, the scoreboard and the quarantine of the cluster.
        limits: what the engines are told to refuse.
        memory_files: where the files for results come from; whoever has read one gives it back.
        max_wait_s: an engine that comes to a task later than this after its admission does not start it, in
            seconds.
    """

    def __init__(
        self, membership: Membership, limits: Limits, memory_files: MemoryFilePool, *, max_wait_s: float
    ) -> None:
        self._work = membership.work
        self._scoreboard = membership.scoreboard
        self._quarantine = membership.quarantine
        self._row = membership.row
        self._limits = limits
        self._memory_files = memory_files
        self._max_wait_us = int(max_wait_s * 1e6)
        # Unlike those of any other worker, and of those that had this row before us.
        self._numbers = count(self._row.index << 48 | (now_us() & (1 << 40) - 1) << 8 | 1)
        # An event loop waits for a descriptor once, not once per request.
        self._queueing = {lane: asyncio.Lock() for lane in Lane}

    async def transform(self, upload: FileIO, recipe: Recipe, admitted_us: int) -> tuple[Done, FileIO]:
        """Have the upload transformed by an engine.

        Cancelling this skips the task if no engine has started it.

        Args:
            upload: the picture.
            recipe: what to make of it.
            admitted_us: since when its caller has been waiting, microseconds of the monotonic clock.

        Returns:
            What was done, and an open file with the new picture, one of the memory_files.

        Raises:
            ImageError: the picture was refused, ended engines, or took one too long.
            TooLate: no engine came to it within the limit.
            EngineBug: our fault.
        """
        body_bytes = os.fstat(upload.fileno()).st_size
        if self._quarantine.may_hold(body_bytes):
            await self._refuse_if_quarantined(upload)
        result = self._memory_files.take()
        try:
            done = await self._try(upload, result, recipe, self._deadline_us(admitted_us))
        except ImageError:  # an engine has said its last word about the file, or died
            self._memory_files.give_back(result)
            raise
        except BaseException:  # an engine may still be writing, for a client that has left
            result.close()
            raise
        self._row.count_task(done.spent.service_us, body_bytes)
        return done, result

    async def _refuse_if_quarantined(self, upload: FileIO) -> None:
        entry = await asyncio.to_thread(QuarantineEntry.of, upload)
        if self._quarantine.deaths(entry.digest) >= CRASH_THRESHOLD:
            log.info("quarantined_image_refused", **asdict(entry))
            raise _killer()

    def _deadline_us(self, admitted_us: int) -> int:
        """The limit counts from admission; but an upload that took most of it still gets half of it."""
        return max(admitted_us + self._max_wait_us, now_us() + self._max_wait_us // 2)

    async def _try(self, upload: FileIO, result: FileIO, recipe: Recipe, deadline_us: int) -> Done:
        """Ask an engine, and another one when the first dies: that costs the request nothing."""
        losses = blamed = 0
        while True:
            # Who has lost an engine has waited already.
            lane, until_us = (Lane.RETRY, 0) if losses else (Lane.INTERACTIVE, deadline_us)
            task = Task(recipe, self._limits, next(self._numbers), now_us(), until_us)
            outcome = await self._ask(task, lane, upload, result)
            if not isinstance(outcome, Lost):
                return _judge(outcome)
            if outcome.took_too_long:
                await self._quarantine_image(upload, outcome, deaths=1)
                raise TooMuchWork("The image takes too long to process. Send a smaller or simpler one.")
            log.warning("engine_lost_task", pid=outcome.pid)
            losses += 1
            blamed += not outcome.may_be_an_accident
            if blamed == CRASH_THRESHOLD or losses == _PATIENCE:
                await self._quarantine_image(upload, outcome, deaths=CRASH_THRESHOLD)
                raise _killer()

    async def _quarantine_image(self, upload: FileIO, lost: Lost, deaths: int) -> None:
        """Remember a picture that engines died of, with the entry in the log."""
        entry = await asyncio.to_thread(QuarantineEntry.of, upload)
        total = self._quarantine.add(entry, deaths)
        is_kept = False
        try:
            is_kept = await asyncio.to_thread(self._quarantine.keep, upload, entry)
        except OSError as error:
            log.error("quarantine_file_not_written", digest=entry.digest, error=str(error))  # noqa: TRY400 it says all
        log.error(
            "poison_image_quarantined",
            **asdict(entry),
            pid=lost.pid,
            **describe_exit(lost.returncode),
            engines=total,
            is_kept=is_kept,
        )

    @contextmanager
    def _counted_in_flight(self) -> Iterator[None]:
        self._row[Cell.IN_FLIGHT] += 1
        try:
            yield
        finally:
            self._row[Cell.IN_FLIGHT] -= 1

    async def _ask(self, task: Task, lane: Lane, upload: FileIO, result: FileIO) -> Done | Refused | Lost:
        """Send the task and wait for what comes back, be it the news that its engine died."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Closed early, when the client leaves, it tells the engine to skip the task.
        with self._counted_in_flight(), ours:
            ours.setblocking(False)  # noqa: FBT003 the standard library has no other way
            with theirs:  # once sent, only the engine holds this end
                await self._hand_over(task, lane, [upload.fileno(), result.fileno(), theirs.fileno()])
            loop = asyncio.get_running_loop()
            await _ready(ours.fileno(), loop.add_reader, loop.remove_reader)
            try:
                message, _ = receive(ours, 0)
            except ConnectionResetError:  # it died with our task unread
                message = b""
            if not message:
                return await self._verdict(task)
        try:
            outcome = decode_outcome(message)
        except ValueError as error:  # our own bug, or an engine that a picture has taken over
            raise EngineBug(str(error)) from error
        if isinstance(outcome, Done):
            started_us = task.sent_us + outcome.spent.queue
            log.debug(
                "task_done",
                engine=outcome.engine_pid,
                sent_us=task.sent_us,
                started_us=started_us,
                ended_us=started_us + outcome.spent.service_us,
            )
        return outcome

    async def _verdict(self, task: Task) -> Lost:
        """Find out how the engine ended: its own worker has reaped it, or will in a moment, and notes it."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _VERDICT_S
        while loop.time() < deadline_s:
            if row := self._scoreboard.row_with(Cell.LOST_TASK, task.number):
                return Lost(row[Cell.LOST_PID], row[Cell.LOST_STATUS])
            await asyncio.sleep(_LOOK_EVERY_S)
        return Lost()

    async def _hand_over(self, task: Task, lane: Lane, files: Sequence[int]) -> None:
        message = task.encode()
        end = self._work.worker_ends[lane]
        async with self._queueing[lane]:
            while True:
                try:
                    send(end, message, files)
                except BlockingIOError:  # the queue in the kernel is full
                    loop = asyncio.get_running_loop()
                    await _ready(end.fileno(), loop.add_writer, loop.remove_writer)
                else:
                    return


def _killer() -> PoisonImage:
    return PoisonImage("The image makes our decoder crash. Convert it to another format and send that.")


def _judge(outcome: Done | Refused) -> Done:
    if isinstance(outcome, Done):
        return outcome
    if outcome.error is not None:
        outcome.error.engine_pid = outcome.engine_pid
        raise outcome.error
    if outcome.is_late:
        raise TooLate
    raise EngineBug(outcome.traceback or "an engine refused a picture and gave no reason")


async def _ready(descriptor: int, watch: Callable[..., None], unwatch: Callable[[int], object]) -> None:
    """Wait until the event loop calls a descriptor readable or writable, whichever it is asked to watch."""
    ready = asyncio.get_running_loop().create_future()
    watch(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        unwatch(descriptor)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
