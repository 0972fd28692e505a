"""The gateway: gunicorn's ASGI worker, given our app and our manners."""

import asyncio
import os
import sys
from email.utils import formatdate
from http import HTTPStatus
from io import FileIO
from typing import Any
from urllib.parse import urlsplit

from gunicorn.asgi.parser import PythonProtocol
from gunicorn.asgi.protocol import ASGIProtocol, BodyReceiver
from gunicorn.workers import gasgi

from server.app import create_app
from server.cluster.membership import Membership
from server.cluster.scoreboard import Cell, State
from server.logs import get_logger
from server.settings import Settings
from server.web.middleware import Exchange, common_headers, log_exchange
from server.web.problems import MEDIA_TYPE, OUR_FAULT, Problem

log = get_logger(__name__)

#: How often a worker that is told to end looks whether it can, in seconds.
TICK_S = 0.1

#: How long a connection that we close is still read from, in seconds, while the client takes our answer.
LINGER_S = 2.0

#: What to do about a request that gunicorn refuses, by the status it refuses it with.
_NEXT_STEPS = {
    HTTPStatus.REQUEST_URI_TOO_LONG: "Send a shorter path and query.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "Send fewer or shorter header fields.",
    HTTPStatus.NOT_IMPLEMENTED: "Send the body as it is, with a Content-Length or chunked.",
}

#: What is read from a connection lands here and is gone, one way or the other, before the next read. One for
#: all connections of a process: it stays in the processor's cache.
_ARRIVED = memoryview(bytearray(1 << 18))


class _BodyReceiver(BodyReceiver):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's, without its time limit: it tells the app of a silent client what is true of a gone one."""

    async def _wait_for_data(self) -> None:
        if not (self._chunks or self._complete or self._disconnected):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


class Protocol(ASGIProtocol, asyncio.BufferedProtocol):  # type: ignore[misc]  # gunicorn has no types
    """One connection: problems instead of plain text, answers that arrive, uploads that are copied once."""

    _closed: bool
    _is_lingering = False
    _is_last_answer = False
    _decided_for: object = None
    _diverted_to: FileIO | None = None
    _scope: dict[str, Any]

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 asyncio's name
        """Say where the next bytes are to be put (asyncio.BufferedProtocol)."""
        return _ARRIVED

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has arrived: into the file that it was diverted to, or through the parser."""
        arrived = _ARRIVED[:nbytes]
        if self._diverted_to is not None and self._is_within_body(nbytes):
            self._diverted_to.write(arrived)
            self._callback_parser._body_remaining -= nbytes  # noqa: SLF001
            self._scope["exchange"].bytes_in += nbytes
        else:
            self._diverted_to = None
            self.data_received(bytes(arrived))

    def _is_within_body(self, nbytes: int) -> bool:
        """Whether so many bytes are all of the body, and not the last ones: the parser must see its end."""
        parser = self._callback_parser
        # gunicorn's other parser, and other framings, go the way through the app.
        return (
            isinstance(parser, PythonProtocol)
            and parser._state == "body"  # noqa: SLF001
            and nbytes < parser._body_remaining  # noqa: SLF001
        )

    def _divert(self, file: FileIO) -> None:
        """Write the body to a file as it arrives, from here to near its end; the rest comes as ever.

        gunicorn's parser copies a body three times more, and hands it on in pieces.
        """
        if not self._body_receiver.buffered:  # first what came before
            self._diverted_to = file

    def _on_headers_complete(self) -> bool:
        """Begin a request: its body is received with our time limits."""
        is_without_body: bool = super()._on_headers_complete()
        self._diverted_to = None
        self._body_receiver = _BodyReceiver(self._current_request, self)
        return is_without_body

    def _build_http_scope(self, *request: object) -> dict[str, Any]:
        """Let the app divert the body; understand every form of target."""
        scope: dict[str, Any] = super()._build_http_scope(*request)
        self._scope = scope
        scope["divert"] = self._divert
        if not scope["path"].startswith("/"):  # the absolute form of RFC 9112, section 3.2.2
            scope["path"] = urlsplit(scope["path"]).path or "/"
        return scope

    def eof_received(self) -> None:
        """Take a client that will send no more for one that has left, and its request with it.

        That is nearly always so, and asyncio closes the connection in any case: nothing sent from here on
        would arrive.
        """
        self.connection_lost(None)

    def _is_websocket_upgrade(self, _request: object) -> bool:
        """Ignore the wish to upgrade, as RFC 9110, section 7.8 allows: we speak HTTP and answer in it."""
        return False

    def _send_error_response(
        self, status: int, message: str, extra_headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Answer a request that could not even be parsed, or that the app left unanswered."""
        if self._closed:  # the client left, and the app took the hint and answered nothing
            return
        exchange = Exchange(status=status)
        is_ours = status == HTTPStatus.INTERNAL_SERVER_ERROR
        next_step = _NEXT_STEPS.get(HTTPStatus(status), "Send a valid HTTP/1.1 request.")
        detail = OUR_FAULT if is_ours else f"The request was not understood: {message}. {next_step}"
        problem = Problem.of_status(HTTPStatus(status), detail)
        body = problem.render(exchange.request_id)
        head = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"date", formatdate(usegmt=True).encode()),
            (b"connection", b"close"),
            *((name.encode(), value.encode()) for name, value in extra_headers),
            *common_headers(exchange),
        ]
        lines = [
            b"HTTP/1.1 %d %s" % (status, problem.title.encode()),
            *(b"%s: %s" % field for field in head),
        ]
        self._safe_write(b"\r\n".join([*lines, b"", b""]) + body)
        exchange.bytes_out = len(body)
        exchange.count_on(self.worker.membership.row)
        log_exchange(exchange, method="-", path="-")

    def _will_close(self, request: object, response_requires_close: object) -> bool:
        """Decide whether an answer is its connection's last, in time for its headers to say so.

        gunicorn decides a second time when the body is out, and would close a connection that was promised
        to stay when it is told to stop in between.
        """
        if self._decided_for is not request:
            self._decided_for = request
            self.worker.count_answer()
            self._is_last_answer = self.worker.is_draining or super()._will_close(
                request, response_requires_close
            )
        return self._is_last_answer

    def _may_send_more(self) -> bool:
        """Whether the client may still send: the rest of a body, or a request before it knows."""
        receiver = self._body_receiver
        return receiver is not None and not (receiver._complete and self._current_request.should_close())  # noqa: SLF001

    def _close_transport(self) -> None:
        """Close after an answer, in a way that lets the client read it.

        Closing with unread bytes of a refused upload in the buffer makes the kernel reset the connection,
        and a reset overtakes the answer. So we end our side only, and read on for a moment
        (RFC 9112, section 9.6).
        """
        if self._closed or not self._may_send_more() or not self.transport.can_write_eof():
            super()._close_transport()
            return
        self._closed = self._is_lingering = True
        self.transport.write_eof()
        self._resume_reading()
        self.worker.loop.call_later(LINGER_S, self.transport.close)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client; once the answer is out they are of no use."""
        if not self._is_lingering:
            super().data_received(data)


# The worker looks the class up by this name and has no setting for it.
gasgi.ASGIProtocol = Protocol


class Worker(gasgi.ASGIWorker):  # type: ignore[misc]  # gunicorn has no types
    """A gunicorn worker that is a member of a cluster."""

    membership: Membership
    settings: Settings
    is_draining = False
    max_requests: int
    _quick_shutdown: bool

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        # gunicorn would close connections at once, told or not, when it sees the limit reached.
        self._max_answers, self.max_requests = self.max_requests, sys.maxsize

    def enlist(self, membership: Membership, settings: Settings) -> None:
        """Give the worker what it will need; called in the arbiter before it forks."""
        self.membership = membership
        self.settings = settings

    def load_wsgi(self) -> None:
        """Build the app of this worker, instead of importing one that knows nothing of the cluster."""
        self.asgi: Any = create_app(self.settings, self.membership, os.environ)

    def handle_exit_signal(self) -> None:
        """End after what has begun (TERM); before the first connection nothing has."""
        if self.servers:
            self.drain()
        else:
            self.membership.row[Cell.STATE] = State.STOPPING
            sys.exit(0)

    def count_answer(self) -> None:
        """Retire with the answer that is about to begin when it is the last of --max-requests."""
        if self.nr + 1 >= self._max_answers:
            self.drain()

    def drain(self) -> None:
        """Let every answer from here on be the last of its connection, and end when all are closed.

        For gunicorn the worker stays alive until then: it would close connections that were not told, and
        stop giving signs of life.
        """
        if not self.is_draining:
            self.is_draining = True
            self.membership.row[Cell.STATE] = State.STOPPING
            log.info("worker_stopping", pid=os.getpid(), connections=self.nr_conns)
            self._drained = self.loop.create_task(self._finish())

    async def _finish(self) -> None:
        deadline_s = self.loop.time() + self.cfg.graceful_timeout
        await asyncio.sleep(TICK_S)  # whoever is connected already, and not accepted yet, is not refused
        for server in self.servers:
            server.close()
        await asyncio.sleep(TICK_S)  # those accepted last are not counted at once
        while self.nr_conns and self.loop.time() < deadline_s:  # noqa: ASYNC110 gunicorn counts and tells nobody
            await asyncio.sleep(TICK_S)
        if self.nr_conns:
            log.warning("worker_out_of_time", pid=os.getpid(), connections=self.nr_conns)
            self._quick_shutdown = True
        self.alive = False

    async def _shutdown(self) -> None:
        """End; when the arbiter is gone, nobody has told us before."""
        if not self._quick_shutdown:
            self.drain()
            await self._drained
        await super()._shutdown()
