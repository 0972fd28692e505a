"""Submissions: take work for later, and answer 202 as soon as it is safe."""

import asyncio
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from io import FileIO
from typing import TYPE_CHECKING

from falcon.asgi import Request, Response
from falcon.uri import parse_query_string

from server.admission import Admission
from server.cluster.memory_files import NO_ROOM
from server.cluster.scoreboard import Scoreboard
from server.cluster.threads import run_in_thread
from server.errors import BadParameter, KeyReused, QueueFull, ServiceUnavailable, StoreAway
from server.jobs.blobs import Blobs
from server.jobs.model import FIRST, LAST, Callback, Facts, Idempotency, JobId, NewJob, Schedule, new_id
from server.logs import get_logger
from server.operations.registry import Operation
from server.web.exchange import Exchange
from server.web.parameters import Query, whole
from server.web.uploads import Uploads

if TYPE_CHECKING:
    from server.jobs.callbacks import Callbacks
    from server.jobs.store import Store

log = get_logger(__name__)

#: When to try again after the disk was full, in seconds.
_FULL_RETRY_S = 60

#: The longest delay: a job that waits takes room in the queue, and nothing else would end that.
_LONGEST_DELAY_DAYS = 30
_LONGEST_DELAY_S = _LONGEST_DELAY_DAYS * 86400

_MOST_ATTEMPTS = 100
_LONGEST_KEY = 255

#: The parameters of a submission, besides those of its operation.
OPTIONS = ("priority", "delay", "not_before", "queue", "attempts", "callback")


@dataclass(frozen=True, slots=True)
class Options:
    """How a submission is to be carried out."""

    schedule: Schedule
    attempts: int
    callback: Callback | None = None


class OptionReader:
    """Reads the options of submissions.

    Args:
        queues: the names that there are, the default first.
        attempts: how many tries a job has if nothing else is said.
        callbacks: accepts their URLs; None when there are none.
    """

    def __init__(self, queues: Sequence[str], attempts: int, callbacks: "Callbacks | None" = None) -> None:
        self._queues = queues
        self._attempts = attempts
        self._callbacks = callbacks

    def read(self, query: str) -> tuple[Options, dict[str, str | list[str]]]:
        """Read the options of a query, and return what is left of it.

        Raises:
            BadParameter: one has a value that it cannot have.
        """
        given = parse_query_string(query, keep_blank=True, csv=False)
        options = {name: given.pop(name) for name in OPTIONS if name in given}
        for name, value in options.items():
            if isinstance(value, list):
                raise BadParameter(f"The parameter `{name}` is there more than once. Give it once.")
        return self._options(options), given  # type: ignore[arg-type]  # no lists are left

    def _options(self, given: Mapping[str, str]) -> Options:
        if "delay" in given and "not_before" in given:
            raise BadParameter("There are both `delay` and `not_before`. Give one of them.")
        queue = given.get("queue", self._queues[0])
        if queue not in self._queues:
            raise BadParameter(f"There is no queue of that name. Give one of {', '.join(self._queues)}.")
        schedule = Schedule(
            queue,
            priority=_whole("priority", given.get("priority", "5"), FIRST, LAST),
            delay_s=_whole("delay", given.get("delay", "0"), 0, _LONGEST_DELAY_S),
            not_before_s=_moment(given["not_before"]) if "not_before" in given else 0,
        )
        attempts = _whole("attempts", given.get("attempts", str(self._attempts)), 1, _MOST_ATTEMPTS)
        return Options(schedule, attempts, self._callback(given.get("callback")))

    def _callback(self, url: str | None) -> Callback | None:
        if url is None:
            return None
        if self._callbacks is None:
            raise BadParameter(
                "There are no callbacks here, as the operator allows no hosts in FLIP_CALLBACK_HOSTS. Leave "
                "`callback` out, and ask with `Prefer: wait` or follow the events."
            )
        return self._callbacks.accept(url)


class Submissions:
    """Takes work for later.

    Args:
        store: where jobs are submitted.
        blobs: where their files go.
        uploads: takes images out of requests, into files of `blobs`.
        options: reads how they are to be carried out.
    """

    def __init__(self, store: "Store", blobs: Blobs, uploads: Uploads, options: OptionReader) -> None:
        self._store = store
        self._blobs = blobs
        self._uploads = uploads
        self._options = options
        # What is received for later lies on the disk and needs no engine now: it is admitted without limits,
        # and not counted among the bytes in flight.
        scoreboard = Scoreboard(rows=1)
        self._admission = Admission(scoreboard, scoreboard.claim(), max_wait_s=1e9, max_held_bytes=1 << 62)

    async def submit(self, req: Request, resp: Response, operation: Operation, query: Query) -> None:
        """Submit one job and answer 202.

        Raises:
            ServiceError: the request is wrong, the queue is full, or the store is away.
        """
        options, rest = self._options.read(req.query_string)
        parameters = query.choose(rest)
        key = idempotency_key(req)
        self._store.raise_if_away()
        exchange = Exchange.of(req.scope)
        ticket = exchange.ticket = exchange.resources.enter_context(
            self._admission.admit(self._uploads.length_of(req))
        )
        facts = Facts(operation.name, operation.version, parameters, options.attempts, options.callback)
        id = JobId(new_id())
        idempotency = None
        with refusing_when_full():
            async with self._uploads.received(req, exchange, ticket) as upload:
                if key is not None:
                    digest = await run_in_thread(digest_of, upload)
                    idempotency = Idempotency(key, fingerprint("job", facts, options, [digest]))
                try:
                    await self._blobs.keep(upload, id.group, id.input_name)
                except asyncio.CancelledError:  # the client has left: the file may have its name, but no job
                    await asyncio.shield(self._discard(id.group))
                    raise
                size = upload.seek(0, 2)
        try:
            job = await self._store.submit(id.group, facts, NewJob(size), options.schedule, idempotency)
        except (KeyReused, QueueFull):  # after any other error the job may exist: the janitor cleans up
            await self._discard(id.group)
            raise
        if job != id.group:  # the same submission was here before
            await self._discard(id.group)
        accept(resp, f"/jobs/{job}")
        resp.media = {"id": job, "href": f"/jobs/{job}"}

    async def _discard(self, group: str) -> None:
        """Remove the files of what was not submitted."""
        with suppress(StoreAway):  # the janitor removes files that no job knows
            await self._blobs.remove_group(group)


@contextmanager
def refusing_when_full() -> Iterator[None]:
    """Refuse a submission for whose files there is no room.

    Raises:
        ServiceUnavailable: that is so.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        log.error("no_room_for_submission", error=str(error))  # noqa: TRY400 it says all
        raise ServiceUnavailable(
            "There is no room on the disk for it at the moment. Try again later.", _FULL_RETRY_S
        ) from error


def accept(resp: Response, location: str) -> None:
    """Answer 202: the work is kept, and will be done."""
    resp.status = HTTPStatus.ACCEPTED
    resp.set_header("Location", location)
    resp.set_header("Preference-Applied", "respond-async")


def idempotency_key(req: Request) -> str | None:
    """Read `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header) and return a digest of it.

    Raises:
        BadParameter: it is empty or too long.
    """
    key = req.get_header("Idempotency-Key")
    if key is None:
        return None
    if not 0 < len(key) <= _LONGEST_KEY:
        raise BadParameter(f"The Idempotency-Key is empty or longer than {_LONGEST_KEY} characters.")
    return hashlib.sha256(key.encode()).hexdigest()


def fingerprint(kind: str, facts: Facts, options: Options, inputs: Sequence[object]) -> str:
    """Return a digest of a submission, by which a repeated one is recognized.

    Args:
        kind: `job` or `batch`.
        facts: what is done to each input.
        options: how it is carried out.
        inputs: a digest of each, and whatever else was sent with it.
    """
    return hashlib.sha256(repr((kind, facts, options, inputs)).encode()).hexdigest()


def digest_of(file: FileIO) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _whole(name: str, value: str, least: int, most: int) -> int:
    number = whole(value)
    if number is None or not least <= number <= most:
        raise BadParameter(f"The parameter `{name}` is wrong. Give a whole number from {least} to {most}.")
    return number


def _moment(value: str) -> float:
    expected = "Give a time as in RFC 3339, such as 2030-01-31T12:00:00Z."
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise BadParameter(f"The parameter `not_before` is no time. {expected}") from None
    if moment.tzinfo is None:
        raise BadParameter(f"The parameter `not_before` has no offset from UTC. {expected}")
    if moment.timestamp() > time.time() + _LONGEST_DELAY_S:
        raise BadParameter(
            f"The parameter `not_before` is more than {_LONGEST_DELAY_DAYS} days ahead. Give an earlier time."
        )
    return moment.timestamp()
