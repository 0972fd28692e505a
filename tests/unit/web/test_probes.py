"""Probes: their answers are about now, so no cache may keep them."""

import falcon.asgi
import pytest
from support.asgi import Server, run, scope_of

from server.cluster.scoreboard import Cell, Row, Scoreboard, State
from server.web import probes
from server.web.envelope import Envelope
from server.web.problems import add_error_handlers


class Engine:
    """What is used of a supervisor."""

    def __init__(self, row: Row) -> None:
        self._row = row

    @property
    def is_ready(self) -> bool:
        return self._row[Cell.ENGINE_PID] != 0


class Probes:
    """The probes of a worker, alone.

    Attributes:
        row: of the worker.
        scoreboard: with this row only.
    """

    def __init__(self) -> None:
        scoreboard = Scoreboard(rows=1)
        self.row: Row = scoreboard.claim()
        self.scoreboard = scoreboard
        queues = probes.QueueReader(None, ())
        app = falcon.asgi.App()
        add_error_handlers(app)
        app.add_route("/", probes.Front())
        app.add_route("/healthz", probes.Healthz())
        app.add_route("/readyz", probes.Readyz(scoreboard, self.row, Engine(self.row)))
        app.add_route("/status", probes.Status(scoreboard, queues))
        app.add_route("/metrics", probes.Metrics(scoreboard, queues))
        self._app = Envelope(app, self.row)

    def ask(self, path: str, method: str = "GET") -> Server:
        server = Server()
        run(server.call(self._app, scope_of(path, method=method)))
        return server


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/status", "/metrics"])
def test_no_cache_may_keep_what_a_probe_says(path: str, method: str) -> None:
    its = Probes()
    its.row[Cell.ENGINE_PID] = 1
    answer = its.ask(path, method)
    assert (answer.status, answer.headers[b"cache-control"]) == (200, b"no-store")


def test_no_cache_may_keep_that_a_worker_is_not_ready() -> None:
    its = Probes()
    answers = [its.ask("/readyz")]
    its.row[Cell.ENGINE_PID], its.row[Cell.STATE] = 1, State.STOPPING
    answers.append(its.ask("/readyz"))
    assert [answer.status for answer in answers] == [503, 503]
    assert [answer.headers[b"cache-control"] for answer in answers] == [b"no-store", b"no-store"]


def test_no_worker_is_ready_while_a_stop_is_announced() -> None:
    its = Probes()
    its.row[Cell.ENGINE_PID] = 1
    its.scoreboard.announce_stop()
    assert [its.ask(path).status for path in ("/readyz", "/healthz", "/")] == [503, 200, 200]
