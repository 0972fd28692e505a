"""Dispatch: send an upload to a free engine and wait for the answer."""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from io import FileIO
from itertools import count
from pathlib import Path
from typing import Any

from server.cluster.ledger import Account, Field
from server.cluster.membership import Membership
from server.cluster.memory_files import MemoryFilePool, memory_file, reopened
from server.cluster.messages import Done, Progress, Refused, Task, decode_answer, now_us
from server.cluster.quarantine import CRASH_THRESHOLD, QuarantineEntry
from server.cluster.roles import INTERACTIVE, READERS, Role
from server.cluster.scoreboard import Cell
from server.cluster.supervisor import OnDemandEngines, describe_exit
from server.cluster.threads import run_in_thread
from server.cluster.work_socket import Lane, receive, send
from server.errors import OperationRefused, PoisonImage, ServiceError, ServiceUnavailable, TooMuchWork
from server.logs import get_logger
from server.operations.registry import Operation

log = get_logger(__name__)

#: How many engines one request may lose when the image may not be to blame.
_MOST_LOSSES = 4

#: How long to wait for the report on how an engine ended, and how often to look for it, in seconds.
_EXIT_REPORT_S = 1.0
_POLL_S = 0.002


#: Where a task goes whose engine crashed. One that has yielded need not do so again.
_RETRY_LANE = {
    Lane.RETRY: Lane.RETRY,
    Lane.INTERACTIVE: Lane.RETRY,
    Lane.SURPLUS: Lane.RETRY,
    Lane.YIELDING: Lane.RETRY,
    Lane.BACKGROUND: Lane.BACKGROUND,
}


class TooLate(Exception):
    """No engine was free for the task before its deadline."""


class EngineBug(Exception):
    """An engine answered with a traceback instead of a result: our fault, not the caller's."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The loss of an engine that was working on a task.

    Attributes:
        pid: the engine's; 0 when there was no report, because its worker has died as well.
        returncode: as `subprocess` reports it.
        stages: how many different stages of the task had ended.
        service_us: how long it had worked on the task, in microseconds.
        while_others_went_well: whether the cluster has done other tasks since it was sent.
    """

    pid: int = 0
    returncode: int = 0
    stages: int = 0
    service_us: int = 0
    while_others_went_well: bool = False

    @property
    def took_too_long(self) -> bool:
        """Whether the kernel killed it for that."""
        return self.returncode in {-signal.SIGALRM, -signal.SIGPROF}

    @property
    def may_be_an_accident(self) -> bool:
        """Whether something other than the image may have ended it: an operator, an OOM kill."""
        return self.pid == 0 or self.returncode == -signal.SIGKILL

    @property
    def is_by_reading(self) -> bool:
        """Whether reading the image crashed it, which would happen whatever is to be done with the image."""
        return self.stages == 0 and not self.took_too_long and not self.may_be_an_accident


@dataclass(frozen=True, slots=True)
class _Call:
    """What one caller of the dispatcher wants to have done.

    Attributes:
        lane: where it waits first.
        deadline_us: no engine starts it after this moment of the monotonic clock; 0 for no deadline.
        account: charged with the engine time; None for no charge.
        on_progress: told which part of the stages has ended.
        outlives_cancellation: whether a cancelled call waits until no engine works on it any more; background
            work might wait for ever.
        losses: the engines that it has lost; written by the dispatcher.
    """

    upload: FileIO
    result: FileIO
    operation: Operation
    parameters: Mapping[str, Any]
    lane: Lane
    deadline_us: int = 0
    account: Account | None = None
    on_progress: Callable[[float], None] | None = None
    outlives_cancellation: bool = False
    losses: list[Lost] = field(default_factory=list)


class Dispatcher:
    """Sends tasks to the engines of the whole cluster on behalf of one worker.

    Args:
        membership: the work socket, the scoreboard and the quarantine of the cluster.
        memory_files: where the files for results are taken from; the caller gives them back.
        sample: a sound image, which shows whether it is an image or the environment that crashes engines.
        background: the worker's background engines, for tasks that yield to those of other clients.
        timeout_s: how long after its deadline a task that yields is given up, in seconds.
    """

    def __init__(
        self,
        membership: Membership,
        memory_files: MemoryFilePool,
        *,
        sample: Path,
        background: OnDemandEngines | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self._work = membership.work
        self._scoreboard = membership.scoreboard
        self._quarantine = membership.quarantine
        self._row = membership.row
        self._memory_files = memory_files
        self._sample = sample
        self._background = background
        self._timeout_us = int(timeout_s * 1e6)
        # Unlike those of any other worker, and of earlier workers in this row.
        self._numbers = count(self._row.index << 48 | (now_us() & (1 << 40) - 1) << 8 | 1)
        # An event loop can wait for a descriptor once, not once per request.
        self._queueing = {lane: asyncio.Lock() for lane in Lane}

    async def run(  # noqa: PLR0913 all that there is to say about a task
        self,
        upload: FileIO,
        operation: Operation,
        parameters: Mapping[str, Any],
        deadline_us: int,
        *,
        account: Account | None = None,
        lane: Lane = Lane.INTERACTIVE,
    ) -> tuple[Done, FileIO, Role]:
        """Have an engine apply an operation to the upload.

        Cancelling this skips the task if no engine has started it. It ends when no engine works on the task
        any more, and its image may be blamed if it has crashed one; cancelled for a second time it waits for
        no engine. What has yielded is given up if it finds no CPU time, cancelled or not.

        Args:
            upload: the source.
            operation: what to do.
            parameters: values that JSON can hold, valid for the operation.
            deadline_us: no engine starts it after this moment of the monotonic clock, in microseconds; 0 for
                no deadline.
            account: of the client, to be charged with the engine time; None for no charge.
            lane: where it waits; in `YIELDING` for a background engine, which runs in the CPU time that no
                other process wants.

        Returns:
            The answer, an open file with the result, one of the memory files, and the role of the engine that
            made it.

        Raises:
            OperationRefused: the upload was refused, crashed engines, or took too long.
            TooLate: no engine was free for it before the deadline, or it yielded for too long.
            ServiceUnavailable: the memory for the result has run out, or engines crash on a sound image too.
            EngineBug: our fault.
        """
        body_bytes = os.fstat(upload.fileno()).st_size
        await self._refuse_if_quarantined(upload, operation, parameters, body_bytes)
        result = self._memory_files.take_zeroed()
        background = self._background if lane is Lane.YIELDING else None
        call = _Call(
            upload, result, operation, parameters, lane, deadline_us, account, outlives_cancellation=True
        )
        try:
            with self._counted_in_flight(), background.wanted() if background else nullcontext():
                done, role = await self._try(call)
        except OperationRefused:  # no engine will touch the file again
            self._memory_files.give_back(result)
            raise
        except BaseException:  # an engine may still be writing if it was starved, or if this worker ends
            result.close()
            raise
        return done, result, role

    async def run_in_background(
        self,
        upload: FileIO,
        result: FileIO,
        operation: Operation,
        parameters: Mapping[str, Any],
        *,
        on_progress: Callable[[float], None] | None = None,
    ) -> Done:
        """Have a background engine apply an operation to the upload, however long it must wait for one.

        Cancelling this skips the task if no engine has started it; one that has may write to the result for a
        while, so the caller must not use that file again.

        Args:
            upload: the source.
            result: a file that is open for reading and writing.
            operation: what to do.
            parameters: values that JSON can hold, valid for the operation.
            on_progress: told which part of the stages has ended, above 0 and below 1.

        Raises:
            OperationRefused: the upload was refused, crashed engines, or took too long.
            ServiceUnavailable: there was no room for the result, or engines crash on a sound image too.
            EngineBug: our fault.
        """
        body_bytes = os.fstat(upload.fileno()).st_size
        await self._refuse_if_quarantined(upload, operation, parameters, body_bytes)
        call = _Call(upload, result, operation, parameters, Lane.BACKGROUND, on_progress=on_progress)
        done, _ = await self._try(call)
        return done

    async def _refuse_if_quarantined(
        self, upload: FileIO, operation: Operation, parameters: Mapping[str, Any], body_bytes: int
    ) -> None:
        if not self._quarantine.may_hold(body_bytes):
            return
        entry = await run_in_thread(QuarantineEntry.of, upload, operation, parameters)
        for known in (entry, entry.with_any_recipe):
            if self._quarantine.crashes(known) >= CRASH_THRESHOLD:
                log.info("quarantined_image_refused", **asdict(known))
                raise _poison_image()

    async def _try(self, call: _Call) -> tuple[Done, Role]:
        """Ask for it until its end, or until the caller is cancelled.

        Returns:
            The answer, and the role of the engine that gave it.
        """
        try:
            return await self._ask_engines(call)
        except asyncio.CancelledError:
            # Otherwise a client that always leaves in time could crash engines with one image for ever.
            if call.outlives_cancellation and call.losses:
                with _logged_only():
                    await self._blame(call)
            raise

    async def _ask_engines(self, call: _Call) -> tuple[Done, Role]:
        """Ask an engine, and another one when the first crashes: the client does not notice."""
        lane, until_us = call.lane, call.deadline_us
        while True:
            answer = await self._ask(self._task(call, until_us), call, lane)
            if not isinstance(answer, Lost):
                done, role = _done_or_raise(answer), READERS[lane]
                if role is INTERACTIVE:
                    self._row.count_task(done.spent.service_us)
                else:
                    self._row.count_background_task(done.spent.service_us)
                return done, role
            if answer.took_too_long:
                await self._blame(call)
                raise TooMuchWork(TooMuchWork.example)
            if _count_crashes(call.losses) >= CRASH_THRESHOLD:
                if await self._blame(call):
                    raise _poison_image()
                raise ServiceUnavailable("Engines crash, whatever they work on. Try again later.")
            lane, until_us = _RETRY_LANE[lane], 0  # it has waited in the queue already

    async def _blame(self, call: _Call) -> bool:
        """Blame an image for the engines that were lost, if they would have survived another one.

        Returns:
            Whether the image is to blame.
        """
        last, crashes = call.losses[-1], _count_crashes(call.losses)
        if last.took_too_long:
            # On a machine where nothing is done in time, no image is to blame.
            if last.while_others_went_well:
                await self._quarantine_image(call, last, crashes=1)
            return last.while_others_went_well
        if crashes == 0:
            return False
        if not await self._survives_sample(call):
            log.error("engines_crash", operation=call.operation.name, **describe_exit(last.returncode))
            return False
        by_reading = [lost.is_by_reading for lost in call.losses if not lost.may_be_an_accident]
        of_any_recipe = len(by_reading) == crashes and all(by_reading)
        await self._quarantine_image(call, last, crashes, of_any_recipe=of_any_recipe)
        return True

    def _task(self, call: _Call, deadline_us: int = 0) -> Task:
        operation = call.operation
        number = next(self._numbers)
        return Task(operation.name, operation.version, call.parameters, number, now_us(), deadline_us)

    def _tasks_done(self) -> int:
        """Count the tasks that went well, in the whole cluster."""
        return self._scoreboard.total(Cell.TASKS) + self._scoreboard.total(Cell.BACKGROUND_TASKS)

    async def _survives_sample(self, call: _Call) -> bool:
        """Tell whether an engine survives the same work on a sound image.

        When something other than the image ends every engine, such as a broken library, no image is to blame.
        """
        with FileIO(self._sample) as sample, memory_file("sample") as result:
            same = _Call(sample, result, call.operation, call.parameters, call.lane)
            answer = await self._ask(self._task(same), same, _RETRY_LANE[call.lane])
        return not isinstance(answer, Lost)

    async def _quarantine_image(
        self, call: _Call, lost: Lost, crashes: int, *, of_any_recipe: bool = False
    ) -> None:
        """Remember an image that crashed engines, and log all that is known of it."""
        entry = await run_in_thread(QuarantineEntry.of, call.upload, call.operation, call.parameters)
        if of_any_recipe:
            entry = entry.with_any_recipe
        total = self._quarantine.add(entry, crashes)
        call.losses.clear()  # if the client leaves from here on, they must not be counted again
        if total < CRASH_THRESHOLD:
            event = "image_timed_out" if lost.took_too_long else "image_crashed_engine"
            log.warning(event, **asdict(entry), pid=lost.pid)
            return
        await run_in_thread(self._store, call.upload, entry, lost, total)

    def _store(self, upload: FileIO, entry: QuarantineEntry, lost: Lost, engines: int) -> None:
        """Store a poison image, if it can be, and log all that is known of it."""
        is_kept = False
        try:
            is_kept = self._quarantine.keep(upload, entry)
        except OSError as error:
            log.error("quarantine_file_not_written", digest=entry.digest, error=str(error))  # noqa: TRY400 it says all
        log.error(
            "poison_image_quarantined",
            **asdict(entry),
            pid=lost.pid,
            **describe_exit(lost.returncode),
            engines=engines,
            is_kept=is_kept,
        )

    @contextmanager
    def _counted_in_flight(self) -> Iterator[None]:
        self._row[Cell.IN_FLIGHT] += 1
        try:
            yield
        finally:
            self._row[Cell.IN_FLIGHT] -= 1

    async def _ask(self, task: Task, call: _Call, lane: Lane) -> Done | Refused | Lost:
        """Send the task and wait for the answer, or for the report that its engine died."""
        done_before = self._tasks_done()
        # Shut for writing or closed early, when the client leaves, it tells the engine to skip the task.
        with await self._send(task, call, lane) as reply:
            try:
                return await self._outcome(reply, task, call, lane, done_before)
            except asyncio.CancelledError:
                # The files stay in use, and an engine that has started goes on: until it has answered, the
                # request counts for what it takes.
                if call.outlives_cancellation:
                    reply.shutdown(socket.SHUT_WR)
                    try:
                        with _logged_only():
                            answer = await self._outcome(reply, task, call, lane, done_before)
                            if not isinstance(answer, Lost):
                                _done_or_raise(answer)
                    except asyncio.CancelledError:  # the worker ends: there is no time to blame an image
                        call.losses.clear()
                        raise
                raise

    async def _outcome(
        self, reply: socket.socket, task: Task, call: _Call, lane: Lane, done_before: int
    ) -> Done | Refused | Lost:
        """Wait for the outcome of a task that was sent, and charge its client with the engine time.

        Raises:
            TooLate: it has yielded, and other work leaves it no CPU time.
            EngineBug: the answer makes no sense.
        """
        role = READERS[lane]
        is_bounded = lane is Lane.YIELDING and task.deadline_us
        async with _until(task.deadline_us + self._timeout_us if is_bounded else 0):
            answer = await self._answer(reply, call) or await self._exit_report(task, role)
        answer = _within(answer, now_us() - task.sent_us)
        if isinstance(answer, Lost):
            call.losses.append(replace(answer, while_others_went_well=self._tasks_done() > done_before))
            if not answer.took_too_long:
                log.warning("engine_lost_task", pid=answer.pid)
        elif isinstance(answer, Done) or not answer.is_late:  # this engine has survived it
            call.losses.clear()
        # What no other process wants is free.
        if call.account is not None and role is INTERACTIVE:
            call.account.add(Field.SPENT_US, _service_us(answer))
        if isinstance(answer, Done):
            started_us = task.sent_us + answer.spent.queue_us
            log.debug(
                "task_done",
                engine=answer.engine_pid,
                sent_us=task.sent_us,
                started_us=started_us,
                ended_us=started_us + answer.spent.service_us,
            )
        return answer

    @staticmethod
    async def _answer(reply: socket.socket, call: _Call) -> Done | Refused | None:
        """Wait for the answer, and pass on the progress that comes before it; None if the engine died."""
        loop = asyncio.get_running_loop()
        while True:
            await _ready(reply.fileno(), loop.add_reader, loop.remove_reader)
            try:
                message, _ = receive(reply, 0)
            except ConnectionResetError:  # it died with our task unread
                return None
            if not message:
                return None
            try:
                answer = decode_answer(message, call.operation)
            except ValueError as error:  # our own bug, or an engine that an image has taken over
                raise EngineBug(str(error)) from error
            if not isinstance(answer, Progress):
                return answer
            if call.on_progress is not None:
                call.on_progress(answer.stages / len(call.operation.stages))

    async def _exit_report(self, task: Task, role: Role) -> Lost:
        """Find out how the engine ended: its own worker reports it, once it has reaped it."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _EXIT_REPORT_S
        while loop.time() < deadline_s:
            if row := self._scoreboard.row_with(role.lost_task, task.number):
                worked_us = max(0, now_us() - row[role.lost_began_us])
                return Lost(row[role.lost_pid], row[role.lost_status], row[role.lost_stages], worked_us)
            await asyncio.sleep(_POLL_S)
        return Lost()

    async def _send(self, task: Task, call: _Call, lane: Lane) -> socket.socket:
        """Put the task into a lane, once there is room in the kernel's queue; returns where its answer comes.

        One at a time opens what it sends, so that those that wait need no descriptors for it.

        Raises:
            TooLate: there was no room before the deadline.
        """
        message = task.encode()
        end = self._work.worker_ends[lane]
        async with _until(task.deadline_us), self._queueing[lane]:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                ours.setblocking(False)  # noqa: FBT003 the standard library has no other way
                with (
                    theirs,  # once sent, only the engine holds this end
                    reopened(call.upload, os.O_RDONLY) as source,  # another engine may have to try it
                    reopened(call.result, os.O_RDWR) as sink,
                ):
                    await _put(end, message, [source.fileno(), sink.fileno(), theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        return ours


@asynccontextmanager
async def _until(deadline_us: int) -> AsyncIterator[None]:
    """Run a block until a moment of the monotonic clock, in microseconds; 0 for no limit.

    Raises:
        TooLate: it had not ended by then.
    """
    try:
        async with asyncio.timeout((deadline_us - now_us()) / 1e6 if deadline_us else None):
            yield
    except TimeoutError:
        raise TooLate from None


async def _put(end: socket.socket, message: bytes, files: Sequence[int]) -> None:
    """Put a message into a lane, as soon as there is room for it."""
    while True:
        try:
            send(end, message, files)
        except BlockingIOError:  # the queue is full
            loop = asyncio.get_running_loop()
            await _ready(end.fileno(), loop.add_writer, loop.remove_writer)
        except OSError as error:
            # So many descriptors of the user's processes may be on their way (RLIMIT_NOFILE), and the kernel
            # does not tell when there are fewer.
            if error.errno != errno.ETOOMANYREFS:
                raise
            await asyncio.sleep(_POLL_S)
        else:
            return


@contextmanager
def _logged_only() -> Iterator[None]:
    """Log errors that come after a cancellation: the caller sees only the cancellation."""
    try:
        yield
    except (ServiceError, TooLate):
        pass  # told to a client that has left
    except Exception:
        log.exception("request_failed")


def _count_crashes(losses: Sequence[Lost]) -> int:
    """Count the engines that a task has crashed; those that an accident may have ended count in the end."""
    if len(losses) == _MOST_LOSSES:
        return CRASH_THRESHOLD
    return sum(not lost.may_be_an_accident for lost in losses)


def _service_us(answer: Done | Refused | Lost) -> int:
    """Return how long an engine was busy with a task, in microseconds."""
    return answer.spent.service_us if isinstance(answer, Done) else answer.service_us


def _within(answer: Done | Refused | Lost, elapsed_us: int) -> Done | Refused | Lost:
    """Bound what an engine tells of its time, which may be anything when an image has taken it over."""
    service_us = min(_service_us(answer), elapsed_us)
    if isinstance(answer, Done):
        return replace(answer, spent=replace(answer.spent, service_us=service_us))
    return replace(answer, service_us=service_us)


def _poison_image() -> PoisonImage:
    return PoisonImage(PoisonImage.example)


def _done_or_raise(answer: Done | Refused) -> Done:
    if isinstance(answer, Done):
        return answer
    if answer.error is not None:
        answer.error.engine_pid = answer.engine_pid
        raise answer.error
    if answer.is_late:
        raise TooLate
    if answer.is_out_of_room:
        raise ServiceUnavailable("There is no room for the result. Try again later.")
    raise EngineBug(answer.traceback or "an engine refused an upload and gave no reason")


async def _ready(descriptor: int, watch: Callable[..., None], unwatch: Callable[[int], object]) -> None:
    """Wait until the event loop reports a descriptor readable or writable, as `watch` asks for."""
    ready = asyncio.get_running_loop().create_future()
    watch(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        unwatch(descriptor)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
