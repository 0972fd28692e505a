"""The gateway: gunicorn's ASGI worker, given our app and our manners."""

import asyncio
import fcntl
import os
import signal
import socket
import struct
import sys
import termios
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from io import FileIO
from typing import Any
from urllib.parse import urlsplit

from gunicorn.asgi.parser import CallbackRequest, ParseError, PythonProtocol
from gunicorn.asgi.protocol import ASGIProtocol, BodyReceiver
from gunicorn.workers import gasgi

from server.app import create_app
from server.cluster.membership import Membership
from server.cluster.scoreboard import Cell, State
from server.errors import RequestError, ServiceUnavailable, UploadTooSlow
from server.logs import get_logger
from server.settings import Settings
from server.web.middleware import Exchange, common_headers, conclude, given_id
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
    HTTPStatus.REQUEST_TIMEOUT: "Send all headers at once.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Try again in a moment, or keep connections open and use them again.",
}

#: How often the pace of all connections is looked at, in seconds.
_SWEEP_S = 1.0

#: How much of an answer may wait in the kernel for a slow client, in bytes (TCP_NOTSENT_LOWAT of tcp(7)); by
#: itself the kernel would take several megabytes for each.
_NOT_SENT_BYTES = 1 << 19
_TCP_NOTSENT_LOWAT = 25

#: What is read from a connection lands here and is gone, one way or the other, before the next read. One for
#: all connections of a process: it stays in the processor's cache.
_ARRIVED = memoryview(bytearray(1 << 18))

#: How much of it, before the app has seen the request. When a thousand clients come at once, so much of each
#: is held before the first of them is looked at.
_UNSEEN_BYTES = 1 << 16


class _BodyReceiver(BodyReceiver):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's, with a time limit that tells a silent client from one that is gone."""

    failure: RequestError | None = None

    def fail(self, failure: RequestError) -> None:
        """Let whoever waits for the body get an error of ours instead."""
        self.failure = failure
        self._wake_waiter()

    async def receive(self) -> dict[str, Any]:
        """Return the next piece of the body (the ASGI specification's receive callable)."""
        message: dict[str, Any] = await super().receive()
        if self.failure is not None:
            raise self.failure
        return message

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
    _scope: dict[str, Any] = {}  # noqa: RUF012 never changed, only replaced
    _received_bytes = 0
    _written_bytes = 0
    # What the connection is waiting for, since when, and how many bytes it had moved then.
    _pace: tuple[str, float, int] = ("headers", 0.0, 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection on, or say at once that there are too many."""
        super().connection_made(transport)
        self._pace = ("headers", self.worker.loop.time(), 0)
        sock = self._socket = transport.get_extra_info("socket")
        self._wire = _below_tls(transport)
        self._client = transport.get_extra_info("peername")
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOT_SENT_BYTES)
        if len(self.worker.connections) < self.worker.worker_connections:
            self.worker.connections.add(self)
        else:  # it takes no place while it lingers
            self._send_error_response(
                HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", (("retry-after", "1"),)
            )
            self._linger()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.worker.connections.discard(self)
        super().connection_lost(exc)

    def check_pace(self, now_s: float) -> None:
        """End what a client has not moved on with for too long; called now and then."""
        stage, moved_bytes = self._progress()
        before, since_s, had_bytes = self._pace
        settings = self.worker.settings
        if stage != before:
            self._pace = (stage, now_s, moved_bytes)
            return
        elapsed_s = now_s - since_s
        if stage == "headers":
            if elapsed_s > settings.headers_timeout_s:
                self._end_headers()
            return
        bytes_per_s = (moved_bytes - had_bytes) / elapsed_s
        if stage == "upload" and (exchange := self._exchange) and exchange.ticket:
            exchange.ticket.expect(exchange.bytes_in, bytes_per_s)
        if stage and elapsed_s > settings.slow_after_s:
            if bytes_per_s < settings.min_bytes_per_s:
                self._end_slow(stage)
            else:
                self._pace = (stage, now_s, moved_bytes)

    def _progress(self) -> tuple[str, int]:
        """Say what the client is at, and how many bytes it has moved; nothing while it waits for us."""
        unsent_bytes = self._unsent_bytes()
        if unsent_bytes:
            return "download", self._written_bytes - unsent_bytes
        if self._closed:  # it ends by itself, over TLS when the client has agreed
            return "", 0
        if self._current_request is None:
            # Between requests gunicorn's keep-alive timer runs, over half a head too.
            return "headers" if self.req_count <= 1 else "", 0
        return ("upload", self._received_bytes) if self._is_receiving() else ("", 0)

    @property
    def _exchange(self) -> Any:  # noqa: ANN401 an Exchange
        """What the app has made of the request; None until it has seen it."""
        return self._scope.get("exchange")

    def _is_receiving(self) -> bool:
        """Whether a body is on its way."""
        return self._body_receiver is not None and not self._body_receiver._complete  # noqa: SLF001

    def _unsent_bytes(self) -> int:
        """How much of what was written the client has not taken yet, in our buffers and in the kernel's."""
        if self._socket.fileno() < 0:  # closed just now
            return 0
        outgoing = fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4))
        in_kernel: int = struct.unpack("i", outgoing)[0]
        in_buffers: int = sum(buffer.get_write_buffer_size() for buffer in {self.transport, self._wire})
        return in_buffers + in_kernel

    def _end_headers(self) -> None:
        if self._received_bytes:
            self._send_error_response(HTTPStatus.REQUEST_TIMEOUT, "the headers did not come to an end")
        self._abandon("headers")

    def _end_slow(self, stage: str) -> None:
        settings = self.worker.settings
        receiver = self._body_receiver
        if stage == "upload" and receiver.failure is None:
            receiver.fail(
                UploadTooSlow(
                    f"The body came more slowly than {settings.min_bytes_per_s} bytes per second for"
                    f" {settings.slow_after_s:g} s. Send a smaller one, or faster."
                )
            )
            self._pace = ("", 0.0, 0)
        else:
            self._abandon(stage)

    def _abandon(self, stage: str) -> None:
        """Close the connection and drop what a slow client has not read: it would wait in the kernel."""
        log.info(
            "slow_client_disconnected",
            client=self._client[0] if self._client else None,
            stage=stage,
            received=self._received_bytes,
            sent=self._written_bytes,
        )
        if stage == "download":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            super()._close_transport()

    def _send_body(self, body: bytes, *framing: Any, **more: Any) -> None:  # noqa: ANN401 gunicorn's
        self._written_bytes += len(body)
        super()._send_body(body, *framing, **more)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 asyncio's name
        """Say where the next bytes are to be put (asyncio.BufferedProtocol)."""
        is_unseen = self._current_request is None or self._exchange is None
        return _ARRIVED[:_UNSEEN_BYTES] if is_unseen else _ARRIVED

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has arrived: into the file that it was diverted to, or through the parser."""
        arrived = _ARRIVED[:nbytes]
        self._received_bytes += nbytes
        file = self._diverted_to
        # It is closed when the upload was given up and the client goes on sending.
        if file is not None and not file.closed and self._is_within_body(nbytes) and self._has_room(nbytes):
            file.write(arrived)
            self._callback_parser._body_remaining -= nbytes  # noqa: SLF001
            self._exchange.bytes_in += nbytes
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

    def _has_room(self, nbytes: int) -> bool:
        """Whether so many bytes are within what the upload counts with; else the app has to ask for more."""
        exchange: Exchange = self._exchange
        return exchange.ticket is not None and exchange.bytes_in + nbytes <= exchange.ticket.held_bytes

    def _divert(self, file: FileIO) -> None:
        """Write the body to a file as it arrives, from here to near its end; the rest comes as ever.

        gunicorn's parser copies a body three times more, and hands it on in pieces.
        """
        if not self._body_receiver.buffered:  # first what came before
            self._diverted_to = file

    def _arm_keepalive_timer(self) -> None:
        """Let an idle connection stay for a while, which begins when its client was told to come back.

        One that waits as long as it was told to would else meet a connection that is just being closed.
        """
        exchange = self._exchange
        is_awaited = exchange is not None and not self.worker.is_draining
        self._keepalive = self.cfg.keepalive + (exchange.retry_after_s if is_awaited else 0)
        super()._arm_keepalive_timer()

    def wait_no_longer(self) -> None:
        """Wait for the next request as for any other when the worker is about to end."""
        if self._keepalive_handle:
            self._arm_keepalive_timer()

    def _handle_h1c_exception(self, exc: Exception) -> bool:
        """Answer 400 to what the parser chokes on, such as a length of thousands of digits."""
        if not super()._handle_h1c_exception(exc):
            log.debug("parser_failed", error=repr(exc)[:200])
            self._send_error_response(HTTPStatus.BAD_REQUEST, "it cannot be parsed")
            self._close_transport()
        return True

    def _on_headers_complete(self) -> bool:
        """Begin a request: its head is one that HTTP allows, its body is received with our time limits."""
        # First of all: a head that is refused below is a request of its own, and not the one before it.
        self._diverted_to = None
        self._scope = {}
        is_without_body: bool = super()._on_headers_complete()
        self._check_head(self._current_request)
        self._body_receiver = _BodyReceiver(self._current_request, self)
        return is_without_body

    def _build_http_scope(self, *request: object) -> dict[str, Any]:
        """Let the app divert the body."""
        scope: dict[str, Any] = super()._build_http_scope(*request)
        self._scope = scope
        scope["divert"] = self._divert
        return scope

    @staticmethod
    def _check_head(request: CallbackRequest) -> None:
        """Understand every form of target, and want a host (RFC 9112, section 3.2).

        Raises:
            ParseError: what gunicorn answers 400.
        """
        if request.version >= (1, 1) and not any(name == b"host" for name, _ in request.headers_bytes):
            raise ParseError("there is no Host header")
        if not request.path.startswith("/"):
            try:
                request.path = urlsplit(request.path).path or "/"
            except ValueError:
                raise ParseError("the target is no URL") from None

    def eof_received(self) -> None:
        """Take a client that will send no more for one that has left, and its request with it.

        That is nearly always so. A client that only ends its side, and goes on reading, gets no answer.
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
        # What goes wrong within a body is the end of a request that the app has seen.
        scope = self._scope if self._is_receiving() else {}
        exchange: Exchange = scope.get("exchange") or Exchange()
        request = self._current_request
        if not scope and request is not None and (request_id := given_id(request.headers_bytes)):
            exchange.request_id = request_id
        exchange.status = status
        is_ours = status == HTTPStatus.INTERNAL_SERVER_ERROR
        next_step = _NEXT_STEPS.get(HTTPStatus(status), "Send a valid HTTP/1.1 request.")
        detail = OUR_FAULT if is_ours else f"The request was refused: {message}. {next_step}"
        if status == HTTPStatus.SERVICE_UNAVAILABLE:  # of the same type as the app's, so of the same title
            problem = Problem.of_error(ServiceUnavailable(detail))
        else:
            problem = Problem.of_status(HTTPStatus(status), detail)
        exchange.problem = problem.slug
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
        conclude(exchange, self.worker.membership.row, {"client": self._client, **scope})

    def _will_close(self, request: object, response_requires_close: object) -> bool:
        """Decide whether an answer is its connection's last, in time for its headers to say so.

        gunicorn decides a second time when the body is out, and would close a connection that was promised
        to stay when it is told to stop in between.
        """
        if self._decided_for is not request:
            self._decided_for = request
            self.worker.count_answer()
            self._is_last_answer = (
                self.worker.is_draining
                or self._is_receiving()  # the rest of a refused body is not waited for
                or super()._will_close(request, response_requires_close)
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
        if self._closed or not self._may_send_more():
            super()._close_transport()
        else:
            self._linger()

    def _linger(self) -> None:
        if not self.transport.can_write_eof():  # TLS
            super()._close_transport()
            return
        self._closed = self._is_lingering = True
        with suppress(OSError):  # the client has just reset the connection; we shall be told
            self.transport.write_eof()
        self._resume_reading()
        self.worker.loop.call_later(LINGER_S, self.transport.close)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client; once the answer is out they are of no use."""
        if not self._is_lingering:
            super().data_received(data)


def _below_tls(transport: Any) -> Any:  # noqa: ANN401 asyncio has no types for this
    """Return the transport that writes to the socket: TLS has one with a buffer of its own."""
    tls = getattr(transport, "_ssl_protocol", None)
    return getattr(tls, "_transport", transport)


# The worker looks the class up by this name and has no setting for it.
gasgi.ASGIProtocol = Protocol


class Worker(gasgi.ASGIWorker):  # type: ignore[misc]  # gunicorn has no types
    """A gunicorn worker that is a member of a cluster."""

    membership: Membership
    settings: Settings
    connections: set[Protocol]
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
        self.connections = set()

    def init_signals(self) -> None:
        """Take over, and let through what the arbiter has sent since the fork (gunicorn.conf.py)."""
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})

    def load_wsgi(self) -> None:
        """Build the app of this worker, instead of importing one that knows nothing of the cluster."""
        self.asgi: Any = create_app(self.settings, self.membership, os.environ)

    def _setup_event_loop(self) -> None:
        """Let as many connections wait to be accepted as `backlog` says, and TLS take no longer than headers.

        asyncio says 100, and a minute in which a connection is counted nowhere.
        """
        super()._setup_event_loop()
        create_server = self.loop.create_server

        async def with_limits(*arguments: Any, sock: socket.socket, **more: Any) -> asyncio.Server:  # noqa: ANN401
            if more.get("ssl"):
                more["ssl_handshake_timeout"] = self.settings.headers_timeout_s
            server: asyncio.Server = await create_server(*arguments, sock=sock, **more)
            sock.listen(self.cfg.backlog)
            return server

        self.loop.create_server = with_limits

    async def _serve(self) -> None:
        sweep = asyncio.create_task(self._sweep())
        try:
            await super()._serve()
        finally:
            sweep.cancel()

    async def _sweep(self) -> None:
        """Look at the pace of all connections, for as long as there are any."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = asyncio.get_running_loop().time()
            for connection in tuple(self.connections):
                try:
                    connection.check_pace(now_s)
                except Exception:
                    log.exception("sweep_failed")  # the others still have to be looked at

    def handle_exit_signal(self) -> None:
        """End after what has begun (TERM); before the first connection nothing has."""
        row = self.membership.row
        if self.servers:
            self.drain()
        elif row[Cell.STATE] == State.ONLINE:
            # The doors open in a moment, and gunicorn's start would not hear that it is cancelled.
            self.loop.call_soon(self.handle_exit_signal)
        else:
            row[Cell.STATE] = State.STOPPING
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
            for connection in self.connections:
                connection.wait_no_longer()
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
            log.warning("worker_drain_timed_out", pid=os.getpid(), connections=self.nr_conns)
            self._quick_shutdown = True
        self.alive = False

    async def _shutdown(self) -> None:
        """End; when the arbiter is gone, nobody has told us before."""
        if not self._quick_shutdown:
            self.drain()
            await self._drained
        await super()._shutdown()
