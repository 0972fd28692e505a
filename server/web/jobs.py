"""Jobs: what has become of work that was taken for later, and its result."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from io import FileIO
from typing import Any

import falcon
from falcon.asgi import Request, Response

from server.errors import Expired, NoSuchJob, NotDone
from server.jobs.blobs import BlobGone, Blobs
from server.jobs.hub import Hub
from server.jobs.model import Failure, Job, JobId, JobState, Result
from server.jobs.store import Store
from server.web.downloads import pieces
from server.web.exchange import Exchange
from server.web.operators import Operators
from server.web.preferences import Preferences
from server.web.problems import Problem

#: One range of bytes. Python's `int` refuses more than 4,300 digits.
_RANGE = re.compile(r"bytes\s*=\s*(\d{0,4000})-(\d{0,4000})\s*", re.ASCII | re.IGNORECASE)


class JobResource:
    """`/jobs/{id}`: one job.

    Args:
        store: where it is.
        hub: tells when it has ended.
    """

    def __init__(self, store: Store, hub: Hub) -> None:
        self._store = store
        self._hub = hub

    async def on_get(self, req: Request, resp: Response, id: str) -> None:
        """Answer with its state; with `Prefer: wait=10`, once it has ended or after ten seconds."""
        job = await self._store.job(job_id(id))
        wait_s = Preferences.of(req).wait_s
        if wait_s:
            resp.set_header("Preference-Applied", f"wait={wait_s}")
            if not job.state.is_final:
                await self._hub.wait_for_end(job.id, wait_s)
                job = await self._store.job(job.id)
        resp.set_header("Cache-Control", "no-store")
        resp.media = describe(job)

    on_head = on_get

    async def on_delete(self, _req: Request, resp: Response, id: str) -> None:
        """Cancel it: at once if it waits; one that runs is asked to stop (202)."""
        parsed = job_id(id)
        await self._store.cancel_job(parsed)
        job = await self._store.job(parsed)
        resp.status = HTTPStatus.OK if job.state.is_final else HTTPStatus.ACCEPTED
        resp.media = describe(job)


class RetryResource:
    """`POST /jobs/{id}/retry`: let a failed or cancelled job run again."""

    def __init__(self, store: Store, operators: Operators) -> None:
        self._store = store
        self._operators = operators

    async def on_post(self, req: Request, resp: Response, id: str) -> None:
        """Answer with its new state."""
        self._operators.check(req)
        parsed = job_id(id)
        await self._store.retry(parsed)
        resp.media = describe(await self._store.job(parsed))


class ResultResource:
    """`GET /jobs/{id}/result`: what a completed job has made.

    Args:
        store: where the job is.
        blobs: where the file is.
    """

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs

    async def on_get(self, req: Request, resp: Response, id: str) -> None:
        """Answer with the file, or with a range of it (RFC 9110, sections 13 and 14)."""
        job = await self._store.job(job_id(id))
        if job.state is not JobState.COMPLETED or job.result is None:
            raise _not_done(job)
        tag = f'"{job.id}.{job.result.fence}"'  # a file is never changed, and each try makes one of its own
        resp.set_headers({"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"})
        if _has(req, "If-None-Match", tag):
            resp.status = HTTPStatus.NOT_MODIFIED
            return
        size = job.result.bytes
        wanted = _range(req, size, tag)
        # Files on S3 are fetched, so no more is opened than is sent.
        start, end = (0, 0) if req.method == "HEAD" else wanted or (0, size)
        file = await open_result(self._blobs, job.id, job.result, (start, end))
        Exchange.of(req.scope).resources.enter_context(file)
        resp.content_type = str(job.result.outcome["media_type"])
        resp.content_length = size
        if wanted:
            resp.status = HTTPStatus.PARTIAL_CONTENT
            resp.set_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            resp.content_length = end - start
        if req.method != "HEAD":
            resp.stream = pieces(file, start, end)

    on_head = on_get


async def open_result(blobs: Blobs, id: JobId, result: Result, part: tuple[int, int] | None = None) -> FileIO:
    """Open a result, or a part of it as for `Blobs.open`.

    Raises:
        Expired, StoreAway: as their names say.
    """
    try:
        return await blobs.open(id.group, id.result_name(result.fence), part)
    except BlobGone:
        raise Expired("The result is not kept any more. Submit the work again.") from None


def _range(req: Request, size: int, tag: str) -> tuple[int, int] | None:
    """Return the first byte that is wanted and the one after the last; None for all.

    A range that makes no sense, or is one of another result, is ignored.

    Raises:
        HTTPRangeNotSatisfiable: it is behind the end.
    """
    if req.method == "HEAD" or req.get_header("If-Range", default=tag) != tag:
        return None
    wanted = _RANGE.fullmatch(req.get_header("Range", default=""))
    first, last = wanted.groups() if wanted else ("", "")
    if first and last and int(last) < int(first):
        return None
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
    elif last:
        start, end = max(0, size - int(last)), size
    else:
        return None
    if start >= end:
        raise falcon.HTTPRangeNotSatisfiable(size)
    return start, end


def _has(req: Request, header: str, tag: str) -> bool:
    """Whether an entity tag is among those in a header."""
    value = req.get_header(header, default="")
    return value.strip() == "*" or tag in {each.strip().removeprefix("W/") for each in value.split(",")}


def _not_done(job: Job) -> NotDone:
    where = f"GET /jobs/{job.id} says more."
    if job.state.is_final:
        return NotDone(f"The state of the job is {job.state}, so it has no result. {where}")
    return NotDone(f"The state of the job is {job.state}. Ask again later; {where}")


def job_id(text: str) -> JobId:
    """Read the id of a job.

    Raises:
        NoSuchJob: it is none.
    """
    if (id := JobId.parse(text)) is None:
        raise NoSuchJob("This is not the id of a job. Use the address that the submission answered with.")
    return id


def describe(job: Job) -> dict[str, Any]:
    """Describe a job as JSON."""
    href = f"/jobs/{job.id}"
    return {
        "id": str(job.id),
        "href": href,
        "state": job.state,
        "batch": None if job.id.index is None else f"/batches/{job.id.group}",
        "name": job.name,
        "operation": job.facts.operation,
        "version": job.facts.version,
        "parameters": job.facts.parameters,
        "queue": job.queue,
        "priority": job.priority,
        "tries": job.tries,
        "attempts": job.facts.attempts,
        "progress": 100 if job.state is JobState.COMPLETED else job.progress,
        "is_cancelling": job.is_cancelling,
        "created": as_time(job.created_s),
        "started": as_time(job.started_s),
        "ended": as_time(job.ended_s),
        "bytes": job.bytes,
        "error": None if job.error is None else describe_failure(job.error),
        "result": None if job.result is None else _describe_result(href, job.result),
    }


def _describe_result(href: str, result: Result) -> Mapping[str, Any]:
    return {"href": f"{href}/result", "bytes": result.bytes, **result.outcome}


def describe_failure(failure: Failure) -> Mapping[str, Any]:
    """Describe why a try failed, as a problem (RFC 9457)."""
    return Problem.of_failure(failure.error, failure.detail).document()


def as_time(seconds: float | None) -> str | None:
    """Write a moment of Unix time as in RFC 3339, to the millisecond."""
    if seconds is None:
        return None
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
