"""What operators and their tools ask: alive, ready, how busy, and what is there to call."""

import os
from http import HTTPStatus
from pathlib import Path

from falcon.asgi import Request, Response

from server import metrics
from server.cluster.scoreboard import Cell, Row, Scoreboard, State
from server.errors import ServiceUnavailable

_OPENAPI = (Path(__file__).parent / "openapi.json").read_bytes()


class Front:
    """`GET /`: what the article's server said, so that a person sees which worker answered."""

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Say who listens."""
        resp.content_type = "text/plain; charset=utf-8"
        resp.text = f"PID {os.getpid()} listening\n"

    on_head = on_get


class Healthz:
    """`GET /healthz`: this worker's event loop turns. Restart it when this fails."""

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer at once."""
        resp.content_type = "text/plain; charset=utf-8"
        resp.text = "ok\n"

    on_head = on_get


class Readyz:
    """`GET /readyz`: send traffic here, or do not yet, or not any more."""

    def __init__(self, scoreboard: Scoreboard, row: Row) -> None:
        self._scoreboard = scoreboard
        self._row = row

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer 200 when there is an engine that can take work, and this worker takes more of it."""
        if self._row[Cell.STATE] == State.STOPPING:
            raise ServiceUnavailable("This worker is about to end. Ask again on a new connection.")
        if not any(row[Cell.ENGINE_PID] for row in self._scoreboard.workers()):
            raise ServiceUnavailable("No engine is running at the moment. Ask again in a second.")
        resp.content_type = "text/plain; charset=utf-8"
        resp.text = "ready\n"

    on_head = on_get


class Status:
    """`GET /status`: the scoreboard as JSON, one object per worker."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer with what every worker is doing in this moment."""
        resp.media = {
            "workers": [
                {
                    "pid": row[Cell.PID],
                    "state": State(row[Cell.STATE]).name.lower(),
                    "engine_pid": row[Cell.ENGINE_PID] or None,
                    "in_flight": row[Cell.IN_FLIGHT],
                    "service_ms": row[Cell.SERVICE_US] / 1e3,
                    "requests": row[Cell.REQUESTS],
                    "tasks": row[Cell.TASKS],
                    "engine_deaths": row[Cell.ENGINE_DEATHS],
                }
                for row in self._scoreboard.workers()
            ]
        }

    on_head = on_get


class Metrics:
    """`GET /metrics`: the scoreboard for Prometheus, the same from whichever worker answers."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer in the text format."""
        resp.content_type = metrics.MEDIA_TYPE
        resp.data = metrics.render(self._scoreboard.snapshot())

    on_head = on_get


class OpenApi:
    """`GET /openapi.json`: what there is to call (OpenAPI 3.1)."""

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer with the document that lies beside this module."""
        resp.status = HTTPStatus.OK
        resp.content_type = "application/json"
        resp.data = _OPENAPI

    on_head = on_get
