"""Events: server-sent events of jobs and batches, on any worker (HTML Living Standard, section 9.2)."""

from collections.abc import AsyncIterator
from http import HTTPStatus

from falcon.asgi import Request, Response, SSEvent

from server.errors import BadParameter
from server.jobs.hub import Hub
from server.jobs.model import Batch, JobId
from server.jobs.store import Store
from server.web.batches import find_batch
from server.web.exchange import Exchange
from server.web.jobs import as_time, describe, job_id
from server.web.parameters import whole

#: After how long a browser connects again, in milliseconds: at once, when its worker drains.
_RETRY_MS = 500


class JobEvents:
    """`GET /jobs/{id}/events`: each change of one job."""

    def __init__(self, store: Store, hub: Hub) -> None:
        self._store = store
        self._hub = hub

    async def on_get(self, req: Request, resp: Response, id: str) -> None:
        """Answer with one event for its state now, and one for each change until its end."""
        job = await self._store.job(job_id(id))
        if job.state.is_final and req.get_header("Last-Event-ID") == job.state:
            resp.status = HTTPStatus.NO_CONTENT  # a browser that has seen the end asks no more
            return
        _stream(req, resp, self._events(job.id))

    async def _events(self, id: JobId) -> AsyncIterator[SSEvent]:
        yield SSEvent(retry=_RETRY_MS)
        async for job in self._hub.follow_job(id):
            yield SSEvent(event=job.state, event_id=job.state, json=describe(job)) if job else SSEvent()


class BatchEvents:
    """`GET /batches/{id}/events`: one event for each job that ended, and one for the end of the batch."""

    def __init__(self, store: Store, hub: Hub) -> None:
        self._store = store
        self._hub = hub

    async def on_get(self, req: Request, resp: Response, id: str) -> None:
        """Answer with the events after `Last-Event-ID`, or with all of them."""
        seen = whole(req.get_header("Last-Event-ID", default="0"))
        if seen is None:
            raise BadParameter(
                "The header Last-Event-ID is wrong. Send the id of the last event, or leave it out."
            )
        batch = await find_batch(self._store, id)
        if batch.ended_s is not None and not await self._store.log(batch.id, seen):
            resp.status = HTTPStatus.NO_CONTENT
            return
        _stream(req, resp, self._events(batch, seen))

    async def _events(self, batch: Batch, seen: int) -> AsyncIterator[SSEvent]:
        yield SSEvent(retry=_RETRY_MS)
        async for come in self._hub.follow(batch.id, seen):
            if come is None:
                yield SSEvent()
                continue
            number, line = come
            at = as_time(line["at"] / 1e3)
            if "ended" in line:
                yield SSEvent(event="ended", event_id=str(number), json={"ended": line["ended"], "at": at})
            else:
                job = {"job": f"/jobs/{line['job']}", "state": line["state"], "at": at}
                yield SSEvent(event=job["state"], event_id=str(number), json=job)


def _stream(req: Request, resp: Response, events: AsyncIterator[SSEvent]) -> None:
    # An open connection would hold up the drain of its worker after the end of the stream.
    Exchange.of(req.scope).is_last = True
    resp.set_header("Cache-Control", "no-store")
    resp.set_header("X-Accel-Buffering", "no")  # nginx would keep events back
    resp.sse = events
