"""Dispatch: hand a picture to whichever engine is free and wait for what comes back."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO

from server.cluster.scoreboard import Cell, Row
from server.cluster.work import (
    Done,
    Job,
    Refused,
    Spares,
    WorkSocket,
    decode_outcome,
    now_us,
    receive,
    send,
)
from server.errors import EngineKiller, ImageError
from server.imaging.pipeline import Limits, Recipe
from server.logs import get_logger

log = get_logger(__name__)

#: An engine that dies costs a request nothing: it is tried once more, on another engine.
ATTEMPTS = 2


class EngineBug(Exception):
    """An engine answered with a traceback instead of a picture: our fault, not the caller's."""


class Dispatcher:
    """Sends jobs to the engines of the whole cluster on behalf of one worker.

    Args:
        work: the cluster's work socket.
        row: the worker's row of the scoreboard.
        limits: what the engines are told to refuse.
        spares: where the files for results come from; whoever has read one gives it back.
    """

    def __init__(self, work: WorkSocket, row: Row, limits: Limits, spares: Spares) -> None:
        self._work = work
        self._row = row
        self._limits = limits
        self._spares = spares
        self._queueing = asyncio.Lock()  # an event loop waits for a descriptor once, not once per request

    async def transform(self, upload: FileIO, recipe: Recipe) -> tuple[Done, FileIO]:
        """Have the upload transformed by an engine.

        Cancelling this skips the job if no engine has started it.

        Returns:
            What was done, and an open file with the new picture, one of the spares.

        Raises:
            ImageError: the picture was refused, or ended every engine that tried it.
            EngineBug: our fault.
        """
        result = self._spares.take()
        try:
            return await self._try(upload, result, recipe), result
        except ImageError:  # an engine has said its last word about the file, or died
            self._spares.give_back(result)
            raise
        except BaseException:  # an engine may still be writing, for a client that has left
            result.close()
            raise

    async def _try(self, upload: FileIO, result: FileIO, recipe: Recipe) -> Done:
        for attempt in range(1, ATTEMPTS + 1):
            with self._counted_in_flight():
                outcome = await self._ask(upload, result, recipe)
            if outcome is not None:
                return self._judge(outcome)
            log.warning("engine_lost_job", attempt=attempt, body_bytes=os.fstat(upload.fileno()).st_size)
        raise EngineKiller(
            "The image made our decoder crash twice. Convert it to another format and send that."
        )

    @contextmanager
    def _counted_in_flight(self) -> Iterator[None]:
        self._row[Cell.IN_FLIGHT] += 1
        try:
            yield
        finally:
            self._row[Cell.IN_FLIGHT] -= 1

    async def _ask(self, upload: FileIO, result: FileIO, recipe: Recipe) -> Done | Refused | None:
        """Send the job and wait; nothing comes back from an engine that died."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:  # closed early, when the client leaves, it tells the engine to skip the job
            ours.setblocking(False)  # noqa: FBT003 the standard library has no other way
            job = Job(recipe, self._limits, now_us())
            with theirs:  # once sent, only the engine holds this end
                await self._hand_over(job, [upload.fileno(), result.fileno(), theirs.fileno()])
            loop = asyncio.get_running_loop()
            await _ready(ours, loop.add_reader, loop.remove_reader)
            try:
                message, _ = receive(ours, 0)
            except ConnectionResetError:  # it died with our job unread
                return None
        if not message:
            return None
        try:
            outcome = decode_outcome(message)
        except ValueError as error:  # our own bug, or an engine that a picture has taken over
            raise EngineBug(str(error)) from error
        if isinstance(outcome, Done):
            started_us = job.sent_us + outcome.spent.queue
            log.debug(
                "job_done",
                engine=outcome.engine_pid,
                sent_us=job.sent_us,
                started_us=started_us,
                ended_us=started_us + outcome.spent.service_us,
            )
        return outcome

    async def _hand_over(self, job: Job, files: Sequence[int]) -> None:
        message = job.encode()
        async with self._queueing:
            while True:
                try:
                    send(self._work.worker_end, message, files)
                except BlockingIOError:  # the queue in the kernel is full
                    loop = asyncio.get_running_loop()
                    await _ready(self._work.worker_end, loop.add_writer, loop.remove_writer)
                else:
                    return

    def _judge(self, outcome: Done | Refused) -> Done:
        if isinstance(outcome, Refused):
            if outcome.error is not None:
                outcome.error.engine_pid = outcome.engine_pid
                raise outcome.error
            raise EngineBug(outcome.traceback or "an engine refused a picture and gave no reason")
        self._row.count_job(outcome.spent.service_us)
        return outcome


async def _ready(
    descriptor: socket.socket, watch: Callable[..., None], unwatch: Callable[[socket.socket], object]
) -> None:
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
