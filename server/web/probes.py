"""Probes: what operators and their tools ask for."""

import json
import os
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from falcon.asgi import Request, Response

from server.cluster.scoreboard import Cell, Row, Scoreboard, State
from server.cluster.supervisor import Supervisor
from server.errors import ServiceUnavailable, StoreAway
from server.jobs.model import Queue
from server.web import metrics

if TYPE_CHECKING:
    from server.jobs.store import Store


class Front:
    """`GET /`: the process id of the worker that answers, to see requests spread over workers."""

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer with the process id."""
        resp.set_header("Cache-Control", "no-store")
        resp.content_type = "text/plain; charset=utf-8"
        resp.text = f"PID {os.getpid()} listening\n"

    on_head = on_get


class Healthz:
    """`GET /healthz`: whether this worker's event loop runs. Restart the worker when this fails."""

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer at once."""
        resp.set_header("Cache-Control", "no-store")
        resp.content_type = "text/plain; charset=utf-8"
        resp.text = "ok\n"

    on_head = on_get


class Readyz:
    """`GET /readyz`: whether to send traffic to this worker.

    Args:
        scoreboard: that tells whether a stop is announced.
        row: of the worker.
        supervisor: of its engine.
    """

    def __init__(self, scoreboard: Scoreboard, row: Row, supervisor: Supervisor) -> None:
        self._scoreboard = scoreboard
        self._row = row
        self._supervisor = supervisor

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer 200 while this worker has an engine and is not draining."""
        if self._scoreboard.is_stop_announced:
            raise ServiceUnavailable("This service is about to stop. Send requests to another one.")
        if self._row[Cell.STATE] == State.STOPPING:
            raise ServiceUnavailable("This worker is about to end. Ask again on a new connection.")
        if not self._supervisor.is_ready:
            raise ServiceUnavailable("This worker has no engine at the moment. Ask again in a second.")
        resp.set_header("Cache-Control", "no-store")
        resp.content_type = "text/plain; charset=utf-8"
        resp.text = "ready\n"

    on_head = on_get


class QueueReader:
    """Reads the queues for probes, which answer while the store is away too.

    Args:
        store: where the queues are; None when there are no jobs.
        names: of the queues.
    """

    def __init__(self, store: "Store | None", names: Sequence[str]) -> None:
        self._store = store
        self._names = names

    async def read(self) -> Sequence[Queue] | None:
        """Return all queues, none while the store is away; None when there are no jobs."""
        if self._store is None:
            return None
        try:
            return await self._store.queues(self._names)
        except StoreAway:
            return ()


class Status:
    """`GET /status`: the scoreboard as JSON, one object per worker, and the queues."""

    def __init__(self, scoreboard: Scoreboard, queues: QueueReader) -> None:
        self._scoreboard = scoreboard
        self._queues = queues

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer with what every worker is doing, and with what waits."""
        resp.set_header("Cache-Control", "no-store")
        queues = await self._queues.read()
        resp.media = {
            "workers": [
                {
                    "pid": worker.pid,
                    "state": worker.state.name.lower(),
                    "engine_pid": worker.engine_pid or None,
                    "background_pid": worker.background_pid or None,
                    "in_flight": worker.in_flight,
                    "service_ms": worker.service_us / 1e3,
                    "requests": worker.requests,
                    "tasks": worker.tasks,
                    "engine_deaths": worker.engine_deaths,
                }
                for worker in self._scoreboard.snapshot().workers
            ],
            "is_store_up": None if queues is None else bool(queues),
            "queues": [describe_queue(queue) for queue in queues or ()],
        }

    on_head = on_get


def describe_queue(queue: Queue) -> dict[str, object]:
    """Describe a queue as JSON."""
    return {
        "name": queue.name,
        "is_paused": queue.is_paused,
        "jobs": {state.value: count for state, count in queue.jobs.items()},
        "ended": queue.ended,
    }


class Metrics:
    """`GET /metrics`: the scoreboard and the queues for Prometheus, the same from every worker."""

    def __init__(self, scoreboard: Scoreboard, queues: QueueReader) -> None:
        self._scoreboard = scoreboard
        self._queues = queues

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer in the text format."""
        resp.set_header("Cache-Control", "no-store")
        resp.content_type = metrics.MEDIA_TYPE
        resp.data = metrics.render(self._scoreboard.snapshot(), await self._queues.read())

    on_head = on_get


class OpenApi:
    """`GET /openapi.json`: the API of this service (OpenAPI 3.1)."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._data = json.dumps(document, indent=2, ensure_ascii=False).encode()

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer with the document."""
        resp.status = HTTPStatus.OK
        resp.content_type = "application/json"
        resp.data = self._data

    on_head = on_get
