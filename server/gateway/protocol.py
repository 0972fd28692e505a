"""The protocol: one connection. Adapters between gunicorn's ASGI protocol and our policies (ADR 4)."""

import asyncio
import fcntl
import select
import socket
import struct
import termios
from collections import Counter
from contextlib import suppress
from http import HTTPStatus
from math import inf
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from gunicorn.asgi.parser import CallbackRequest, ParseError, UnsupportedTransferCoding
from gunicorn.asgi.protocol import ASGIProtocol, BodyReceiver, _check_trusted_proxy, _normalize_sockaddr

from server.cluster.ledger import Account, Field
from server.errors import UploadTooSlow
from server.gateway import eviction
from server.gateway.heads import METHODS, is_host, split_absolute
from server.gateway.linger import LINGER_S, LINGER_UNREAD_S, LingeringClose
from server.gateway.parser import Parser
from server.gateway.refusals import refusal, refuse
from server.gateway.transfer_rate import Stage, TransferRate
from server.logs import get_logger
from server.web.exchange import Exchange, Headers

if TYPE_CHECKING:
    from server.admission import Ticket
    from server.gateway.worker import Worker

log = get_logger(__name__)

#: How much of a response may wait in the kernel for a slow client, in bytes (TCP_NOTSENT_LOWAT of tcp(7));
#: without a limit the kernel would take several megabytes for each.
_NOT_SENT_BYTES = 1 << 19
_TCP_NOTSENT_LOWAT = 25

#: Bytes read from a connection land here and are consumed before the next read. One for all connections of a
#: process: it stays in the processor's cache. With a larger one, new requests wait longer behind uploads, and
#: images are not answered sooner.
_ARRIVED = memoryview(bytearray(1 << 16))

#: How much is read at once before the app has seen the request: with a thousand simultaneous clients, one
#: read of this size is buffered for each.
_UNSEEN_BYTES = 1 << 15

#: The rest of a refused body up to this size is discarded at once, a longer one later (`LINGER_UNREAD_S`).
_LONG_REST_BYTES = 1 << 20

#: How long after its keep-alive time a connection that waits for its turn is looked at again, in seconds.
_LOOK_AGAIN_S = 1.0


class _BodyReceiver(BodyReceiver):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's body receiver, for pieces of any size.

    It has no time limit: gunicorn's takes a silent client for a lost one.
    """

    failure: Exception | None = None

    def feed(self, chunk: bytes) -> None:
        """Keep a piece of the body, until `hand_on`."""
        self.expect_continue = False
        self._chunks.append(chunk)
        self._buffered += len(chunk)

    def hand_on(self) -> None:
        """Wake the app, if there is something for it."""
        if self._chunks:
            self._wake_waiter()

    def _pop_chunk(self) -> dict[str, Any]:
        """Hand on all that waits, as one piece."""
        if len(self._chunks) > 1:
            whole = b"".join(self._chunks)
            self._chunks.clear()
            self._chunks.append(whole)
        message: dict[str, Any] = super()._pop_chunk()
        return message

    def fail(self, failure: Exception) -> None:
        """Raise an error of ours where the app waits for the body."""
        self.failure = failure
        self._wake_waiter()

    async def receive(self) -> dict[str, Any]:
        """Return the next piece of the body (the ASGI specification's receive callable)."""
        message: dict[str, Any] = await super().receive()
        if self.failure is not None:
            raise self.failure
        return message

    async def _wait_for_data(self) -> None:
        if not (self._chunks or self._complete or self._disconnected or self.failure):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


class Protocol(ASGIProtocol, asyncio.BufferedProtocol):  # type: ignore[misc]  # gunicorn has no types
    """One connection of a worker."""

    worker: "Worker"
    _closed: bool
    transport: Any  # these four are None once the connection is gone
    _wire: Any  # which writes to the socket: over TLS another one
    _callback_parser: Any
    _body_receiver: Any
    _rate: TransferRate  # from connection_made on: over TLS that is after the handshake

    def __init__(self, worker: "Worker") -> None:
        super().__init__(worker)
        # Per connection.
        self._received_bytes = 0  # written by buffer_updated
        self._written_bytes = 0  # of response bodies; written by _send_body
        self._has_all = True  # whether the client was seen to have taken all that was written
        self._unread: Ticket | None = None  # of earlier requests, until their client was seen to have read it
        self._unread_end = 0  # what was written when the last of them ended
        self._linger = LingeringClose()
        self._closing_since_s: float | None = None  # when that was seen
        self._is_waiting = False  # for a turn to parse what has arrived
        self._bytes_per_s = inf  # of the transfer that is under way; until it is measured it is no slow one
        self._was_download = False  # when that was measured
        self._peer: Any = None
        self._accepting: asyncio.Task[None] | None = None  # until the connection is made
        self._calls = 0  # of the app that have not ended
        self.account: Account | None = None
        # Per request; replaced by _begin_request before the parser's own state is looked at.
        self._exchange = Exchange()
        self._is_served = False  # whether the app has been called
        self._is_last_response: bool | None = None  # of its connection; None while undecided
        self._is_refused = False  # by us, instead of the app
        self._answer_began_s: float | None = None

    def _begin_request(self) -> Exchange:
        """Give the request whose head has arrived an owner, before anything can be said about it."""
        if ticket := self._exchange.ticket:
            if self._unread:  # it counts for both
                ticket.hold_unread(0)
            self._unread, self._unread_end = self._unread or ticket, self._written_bytes
        self._exchange = Exchange()
        self._is_served = False
        self._is_last_response = None
        self._is_refused = False
        self._answer_began_s = None
        return self._exchange

    # --- the connection ----------------------------------------------------------------------------------

    def arrive(self, peer: object) -> None:
        """Take a place for a connection that was accepted: over TLS the handshake is still to come.

        Args:
            peer: the address at the other end, as the kernel says it.
        """
        worker = self.worker
        self._peer, self._accepting = peer, asyncio.current_task()
        self.account = worker.account_of(host_of(peer))
        if self._has_place():
            worker.connections[self] = None
            if self.account is not None:
                self.account.add(Field.CONNECTIONS, 1)
        else:
            worker.refuse(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve the connection, or refuse it when there is no place for it."""
        super().connection_made(transport)
        self._accepting = None
        self._rate = TransferRate(self.worker.settings, self.worker.loop.time())
        sock = self._socket = transport.get_extra_info("socket")
        self._wire = _below_tls(transport)
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOT_SENT_BYTES)
        if self in self.worker.refused:
            self._send_error_response(
                HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", (("retry-after", "1"),)
            )
            self._begin_lingering()
            # Over TLS asyncio would wait longer for the client.
            self.worker.loop.call_later(LINGER_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; its place stays taken until the app has ended as well."""
        self._hold_unread(self._written_bytes)
        super().connection_lost(exc)
        self.worker.refused.pop(self, None)
        self._task.add_done_callback(self._untangle)
        self._leave_lost_place()

    def forget_unless_made(self) -> None:
        """Forget the connection if it was lost before it was made, as in a TLS handshake."""
        if self.transport is None:
            self._accepting = None
            self.worker.refused.pop(self, None)
            self._leave_place()

    def _untangle(self, _task: object) -> None:
        """Break cycles, so that no garbage is left: to collect it stops the worker (ADR 4)."""
        if not self._finishing_calls:
            self._callback_parser = self._body_receiver = None
            # Over TLS, asyncio's protocol refers to this one.
            self.transport = self._wire = self.writer = self._flow_control = None
        self._leave_lost_place()

    def _has_place(self) -> bool:
        """Whether there is a place for the connection, evicting another client's connection if necessary."""
        worker = self.worker
        if len(worker.connections) < worker.worker_connections:
            return True
        evicted = eviction.choose(self.account, worker.connections, worker.shares, worker.worker_connections)
        if evicted:
            stages = Counter(str(connection.evict() or "idle") for connection in evicted)
            log.info("connections_evicted", client=evicted[0].client, **stages)
        return bool(evicted)

    def _leave_lost_place(self) -> None:
        """Leave the place when connection and app have ended: until then a request has its descriptors.

        That is at once if there is no request, or a client that comes as another leaves would find no place.
        """
        if self._conn_lost_handled and not self._calls and (not self._current_request or self._task.done()):
            self._leave_place()

    def _leave_place(self) -> None:
        if self in self.worker.connections:
            del self.worker.connections[self]
            if self.account is not None:
                self.account.add(Field.CONNECTIONS, -1)

    def cost_of_closing(self) -> tuple[int, float] | None:
        """Say how much the client would lose: an idle connection, half a head, a slow or a fast transfer.

        Last come connections with a request that has arrived and waits for its turn. A connection stays while
        an engine works for it, even if its client has left.
        """
        is_at_work = self._closed or (self._answer_began_s is None and not self._is_receiving())
        if self._conn_lost_handled or (self._calls and is_at_work):
            return None
        if self._is_waiting:
            return (3, 0)
        # To ask the kernel about thousands of them again takes long.
        stage = Stage.DOWNLOAD if self._was_download else self._progress()[0]
        if stage in {Stage.UPLOAD, Stage.DOWNLOAD}:
            return (2, self._bytes_per_s)
        if stage is Stage.HEADERS:
            return (1, 0)
        return (0, 0) if self._current_request is None or self._closed else None

    def evict(self) -> Stage:
        """Close the connection, because another client needs its place; returns what it waited for."""
        stage, _ = self._progress()
        self._leave_place()
        self._abort(stage)
        return stage

    def refuse_no_longer(self) -> None:
        """Close the connection, which has no place, though its client may not have read that."""
        del self.worker.refused[self]
        self._abort(Stage.NOTHING)

    def eof_received(self) -> None:
        """Take a client that ends its side of the connection for one that has left, and cancel its request.

        That is nearly always so. A client that only ends its side, and goes on reading, gets no response, but
        can still read what was written for it before: asyncio closes the connection when all of that is sent,
        and until then it counts, and has its limits, as any other.
        """
        self._closed = True
        self._task.cancel()

    @property
    def client(self) -> str | None:
        """Who is at the other end, as the log has it."""
        return self._exchange.client or self._peer_host()

    def _peer_host(self) -> str | None:
        """Return the address at the other end, or what the PROXY protocol says; None for a unix socket."""
        return host_of(self._effective_peername(self._peer))

    def check_rate(self, now_s: float) -> bool:
        """Disconnect the client if it is too slow, and say whether it was; called about once a second."""
        if self.transport is None or self._conn_lost_handled:  # a TLS handshake has a time limit of its own
            return False
        if self._has_left():
            self.eof_received()
            self.transport.close()
        if self._is_closed_only_here(now_s):
            self.transport.abort()
            return True
        stage, moved_bytes = self._progress()
        held_bytes = self._hold_unread(moved_bytes if stage is Stage.DOWNLOAD else self._written_bytes)
        reading = self._rate.read(stage, moved_bytes, now_s, held_bytes)
        self._bytes_per_s = inf if reading.bytes_per_s is None else reading.bytes_per_s
        self._was_download = stage is Stage.DOWNLOAD
        if stage is Stage.UPLOAD and reading.bytes_per_s is not None:
            self._exchange.expect(reading.bytes_per_s)
        is_overdue = self._rate.is_overdue(self._answer_began_s, now_s, held_bytes)
        is_to_end = reading.is_too_slow or (stage is Stage.DOWNLOAD and is_overdue)
        if is_to_end:
            self._end_slow(stage)
        return is_to_end

    def _has_left(self) -> bool:
        """Say whether the client has ended its side of a connection that is not read at the moment."""
        if not self._reading_paused or self.transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _is_closed_only_here(self, now_s: float) -> bool:
        """Say whether the client has taken all and does not close: over TLS asyncio waits 30 s for that."""
        if not self.transport.is_closing() or self._unsent_bytes():
            return False
        self._closing_since_s = self._closing_since_s or now_s
        return now_s >= self._closing_since_s + LINGER_S

    def _hold_unread(self, read_bytes: int) -> int:
        """Let what the client has not taken of its results count as theirs; returns how much they hold.

        Streams, archives and results of jobs hold nothing.
        """
        own, earlier = self._exchange.ticket, self._unread
        if own:
            own.hold_unread(self._written_bytes - max(read_bytes, self._unread_end))
        if earlier:
            earlier.hold_unread(max(0, self._unread_end - read_bytes))
            if read_bytes >= self._unread_end:
                self._unread = None
        return sum(ticket.held_bytes for ticket in (own, earlier) if ticket)

    def _progress(self) -> tuple[Stage, int]:
        """Say what the connection waits for its client to do, and how many bytes the client has moved."""
        unsent_bytes = self._unsent_bytes()
        if unsent_bytes:
            return Stage.DOWNLOAD, self._written_bytes - unsent_bytes
        # Over TLS it ends once the client has answered close_notify. While it waits for its turn, the client
        # is not slow.
        if self._closed or self._is_waiting:
            return Stage.NOTHING, 0
        if self._current_request is None:
            # Between requests gunicorn's keep-alive timer runs, over half a head too.
            return (Stage.HEADERS if self.req_count <= 1 else Stage.NOTHING), 0
        return (Stage.UPLOAD, self._received_bytes) if self._is_receiving() else (Stage.NOTHING, 0)

    def _unsent_bytes(self) -> int:
        """Return how much of what was written the client has not taken yet, ours and the kernel's."""
        if self._has_all or self._socket.fileno() < 0:  # closed just now
            return 0
        outgoing = fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4))
        in_kernel: int = struct.unpack("i", outgoing)[0]
        in_buffers: int = sum(buffer.get_write_buffer_size() for buffer in {self.transport, self._wire})
        self._has_all = not in_buffers and not in_kernel
        return in_buffers + in_kernel

    def _end_slow(self, stage: Stage) -> None:
        settings = self.worker.settings
        receiver = self._body_receiver
        if stage is Stage.UPLOAD and receiver.failure is None:
            receiver.fail(
                UploadTooSlow(
                    f"The body came more slowly than {settings.min_bytes_per_s} bytes per second for"
                    f" {settings.slow_after_s:g} s. Send a smaller one, or faster."
                )
            )
            return
        if stage is Stage.HEADERS and self._received_bytes:
            self._send_error_response(HTTPStatus.REQUEST_TIMEOUT, "the headers were not complete in time")
        log.info(
            "slow_client_disconnected",
            client=self.client,
            stage=stage,
            received=self._received_bytes,
            sent=self._written_bytes,
        )
        if stage is Stage.DOWNLOAD:
            self._abort(stage)
        else:
            super()._close_transport()

    def _abort(self, stage: Stage) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            return
        if stage is Stage.DOWNLOAD:  # reset it: what the client has not read would wait in the kernel
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _arm_keepalive_timer(self) -> None:
        """Keep an idle connection open for a while, counted from the `Retry-After` of its last response.

        A client that waits exactly that long would otherwise meet a connection that is just being closed.
        """
        is_awaited = not self.worker.is_draining
        self._keepalive = self.cfg.keepalive + (self._exchange.retry_after_s if is_awaited else 0)
        super()._arm_keepalive_timer()

    def _keepalive_timeout(self) -> None:
        """Close an idle connection, but not one that waits for its turn: a request may have arrived on it."""
        if self._is_waiting:
            self._keepalive_handle = self.worker.loop.call_later(_LOOK_AGAIN_S, self._keepalive_timeout)
        else:
            super()._keepalive_timeout()

    def wait_no_longer(self) -> None:
        """Drop what `Retry-After` added to the keep-alive time, because the worker drains."""
        if self._keepalive_handle:
            self._arm_keepalive_timer()

    def _close_transport(self) -> None:
        """Close after a response, in a way that lets the client read it."""
        request, receiver = self._current_request, self._body_receiver
        if not self._closed and self._linger.is_needed(
            has_head=receiver is not None,
            is_refused=self._is_refused,
            is_body_complete=receiver is not None and receiver._complete,  # noqa: SLF001
            is_last=request is not None and request.should_close(),
        ):
            self._begin_lingering()
        else:
            super()._close_transport()

    def _begin_lingering(self) -> None:
        if not self.transport.can_write_eof():  # TLS
            super()._close_transport()
            return
        self._closed = True
        with suppress(OSError):  # the client has just reset the connection, and connection_lost follows
            self.transport.write_eof()
        loop, parser = self.worker.loop, self._callback_parser
        if parser._state == "body" and parser._body_remaining > _LONG_REST_BYTES:  # noqa: SLF001
            # It is discarded later: a worker that refuses hundreds of uploads has others to answer.
            self.transport.pause_reading()
            loop.call_later(LINGER_UNREAD_S, self.transport.resume_reading)
        else:
            self._resume_reading()
        loop.call_at(self._linger.begin(loop.time()), self.transport.close)

    # --- the request -------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 asyncio's name
        """Return where the next bytes are to be put (asyncio.BufferedProtocol)."""
        is_seen = self._is_served and self._current_request is not None
        return _ARRIVED if is_seen else _ARRIVED[:_UNSEEN_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has arrived: into the upload sink, or through the parser."""
        self._received_bytes += nbytes
        arrived = _ARRIVED[:nbytes]
        exchange = self._exchange
        if exchange.sink.is_open:
            if self._is_within_body(nbytes) and exchange.can_sink(nbytes):
                try:
                    exchange.sink.write(arrived)
                except OSError as error:
                    self._body_receiver.fail(error)
                self._callback_parser._body_remaining -= nbytes  # noqa: SLF001
                return
            exchange.sink.close()
        self.data_received(arrived)

    def data_received(self, data: bytes | memoryview) -> None:
        """Parse bytes from the client; once the last response is out they are discarded."""
        if not self._linger.is_begun:
            self._callback_parser.hold(data)
            if not self._is_waiting:
                self._parse()

    def _parse(self) -> None:
        """Parse what has arrived, up to the end of a request or of the turn."""
        if not super()._feed_callback_parser(b""):
            return  # it was refused
        if self._callback_parser.is_stopped:
            self._wait_for_turn()
            self.worker.turns.go_on(self._whose_turn(), self._take_turn)
            return
        if self._body_receiver is not None:
            self._body_receiver.hand_on()
        if self._is_buffer_full():
            self._pause_reading()
        else:
            self._maybe_resume_reading()

    def _wait_for_turn(self) -> None:
        self._is_waiting = True
        self._pause_reading()

    def _whose_turn(self) -> int | None:
        """Return the place of the client in the ledger; None for one that has no address."""
        account = self.worker.shares.account(self.client)
        return account.bucket if account else None

    def _take_turn(self) -> bool:
        self._is_waiting = False
        if not self._closed:
            self._parse()
            return True
        return False

    def _feed_callback_parser(self, data: bytes) -> bool:
        """Let a pipelined request wait for its turn: gunicorn calls this with all that came behind one."""
        self._callback_parser.hold(data)
        self._wait_for_turn()
        self.worker.turns.begin_request(self._whose_turn(), self._take_turn)
        return True

    def _maybe_resume_reading(self) -> None:
        if not self._is_waiting:
            super()._maybe_resume_reading()

    def _http1_buffered(self) -> int:
        """Return how much is held for the app and for the parser, in bytes."""
        receiver = self._body_receiver
        held: int = self._callback_parser.held_bytes + (receiver.buffered if receiver else 0)
        return held

    def _setup_callback_parser(self) -> None:
        """Use our parser; the PROXY protocol is believed as by gunicorn."""
        cfg = self.cfg
        peer = _normalize_sockaddr(self.transport.get_extra_info("peername"))
        is_proxy = cfg.proxy_protocol != "off" and _check_trusted_proxy(
            peer, cfg.proxy_allow_ips, cfg.proxy_allow_networks()
        )
        self._callback_parser = Parser(
            self.worker.turns,
            on_headers_complete=self._on_headers_complete,
            on_body=self._on_body,
            on_message_complete=self._on_message_complete,
            limit_request_line=cfg.limit_request_line,
            limit_request_fields=cfg.limit_request_fields,
            limit_request_field_size=cfg.limit_request_field_size,
            permit_unconventional_http_method=cfg.permit_unconventional_http_method,
            permit_unconventional_http_version=cfg.permit_unconventional_http_version,
            proxy_protocol=cfg.proxy_protocol if is_proxy else "off",
        )

    def _is_within_body(self, nbytes: int) -> bool:
        """Whether so many bytes belong to the body, before its last ones: the parser must see its end."""
        parser = self._callback_parser
        # Other framings go the way through the app; so does what comes behind bytes that still wait for it.
        return (
            parser._state == "body"  # noqa: SLF001
            and nbytes < parser._body_remaining  # noqa: SLF001
            and not self._body_receiver.buffered
        )

    def _is_receiving(self) -> bool:
        """Whether a body is on its way."""
        return self._body_receiver is not None and not self._body_receiver._complete  # noqa: SLF001

    def _on_headers_complete(self) -> bool:
        """Begin a request: it has an owner from here on, and its head is one that HTTP allows."""
        exchange = self._begin_request()
        try:
            is_without_body: bool = super()._on_headers_complete()
            _check_head(self._current_request)
        finally:  # a refused head is logged as what it is, whether gunicorn refuses it or we do
            if request := self._current_request:
                client = self.worker.proxies.client_of(self._peer_host(), request.headers_bytes)
                exchange.identify(
                    request.method, request.path, (client,) if client else None, request.headers_bytes
                )
        self._body_receiver = _BodyReceiver(self._current_request, self)
        return is_without_body

    async def _handle_http_request(self, *request: object) -> bool:
        """Serve the request; its app may go on after the client has left."""
        self._calls += 1
        try:
            keeps_alive: bool = await super()._handle_http_request(*request)
            return keeps_alive
        finally:
            self._calls -= 1
            self._leave_lost_place()

    def _build_http_scope(self, *request: object) -> dict[str, Any]:
        """Pass the request's owner on to the app."""
        scope: dict[str, Any] = super()._build_http_scope(*request)
        self._exchange.offer(scope)
        self._is_served = True
        return scope

    def _is_websocket_upgrade(self, _request: object) -> bool:
        """Ignore requests to upgrade (RFC 9110, section 7.8): the service speaks HTTP/1.1 only."""
        return False

    # --- the response ------------------------------------------------------------------------------------

    def _send_response_start(
        self, status: int, headers: Headers, request: CallbackRequest, *, close: bool = False
    ) -> None:
        """Begin a response; in HTTP/1.0 it has to say that the connection stays (RFC 9112, section C.2.2)."""
        if request.version < (1, 1) and not close:
            headers = [*headers, (b"connection", b"keep-alive")]
        super()._send_response_start(status, headers, request, close=close)

    def _safe_write(self, data: bytes) -> None:
        self._has_all = False
        super()._safe_write(data)

    def _send_body(self, body: bytes, *framing: Any, **more: Any) -> None:  # noqa: ANN401 gunicorn's
        self._has_all = False
        self._written_bytes += len(body)
        if self._answer_began_s is None:
            self._answer_began_s = self.worker.loop.time()
        super()._send_body(body, *framing, **more)

    def _will_close(self, request: object, response_requires_close: object) -> bool:
        """Decide whether a response is its connection's last, once, in time for its headers to say so.

        gunicorn decides a second time when the body is out, and would close a connection that was promised
        to stay open if a stop comes in between.
        """
        if self._is_last_response is None and request is self._current_request:
            self.worker.count_response()
            self._is_last_response = (
                self.worker.is_draining
                or self._is_refused
                or self._exchange.is_last
                or self._is_receiving()  # the rest of a refused body is not waited for
                or super()._will_close(request, response_requires_close)
            )
        return self._is_last_response is not False

    def _handle_h1c_exception(self, exc: Exception) -> bool:
        """Answer 400 to values that the parser cannot read, such as a length of thousands of digits."""
        if not super()._handle_h1c_exception(exc):
            if isinstance(exc, ValueError):
                log.debug("parser_failed", error=repr(exc)[:200])
                self._send_error_response(HTTPStatus.BAD_REQUEST, "it cannot be parsed")
            else:  # a bug, which parsing has only called
                log.error("request_failed", exc_info=exc, request_id=self._exchange.request_id)
                self._send_error_response(HTTPStatus.INTERNAL_SERVER_ERROR, "")
            self._close_transport()
        return True

    def _send_error_response(
        self, status: int, message: str, extra_headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Refuse a request that could not be parsed, or that the app left unanswered."""
        if self._closed:  # the client left, and the app answered nothing
            return
        exchange = self._exchange
        if self._current_request is None:  # not even a head could be parsed
            exchange = self._begin_request()
            exchange.client = self._peer_host()
        elif self._is_last_response is not None:  # the response has begun, and the connection closes after it
            return
        self._is_refused = True
        self._safe_write(refuse(exchange, refusal(status, message), *extra_headers))
        exchange.conclude(self.worker.membership.row)
        if self._body_receiver is not None:  # the app must not wait for a body that will not be read
            self._body_receiver.signal_disconnect()


class _UnknownMethod(UnsupportedTransferCoding):  # type: ignore[misc]  # gunicorn has no types
    """A method that no resource has; gunicorn answers 501 as it does to a transfer coding that it lacks."""


def _check_head(request: CallbackRequest) -> None:
    """Want a method that HTTP has and a host, and understand every form of target (RFC 9112, section 3.2).

    Raises:
        _UnknownMethod: gunicorn answers 501 (RFC 9110, section 9.1).
        UnsupportedTransferCoding: gunicorn answers 501 (RFC 9112, section 6.1).
        ParseError: gunicorn answers 400.
    """
    if request.method not in METHODS:
        raise _UnknownMethod(f"the method {request.method} is unknown")
    # gunicorn accepts others in front of it, but does not decode them. `identity` is none since RFC 7230.
    codings = [value for name, value in request.headers_bytes if name == b"transfer-encoding"]
    if any(coding.lower() != b"chunked" for coding in codings):
        raise UnsupportedTransferCoding("a transfer coding is unknown")
    hosts = [value for name, value in request.headers_bytes if name == b"host"]
    if request.version >= (1, 1) and not hosts:
        raise ParseError("there is no Host header")
    if not all(map(is_host, hosts)):
        raise ParseError("the Host header is not a host")
    if "#" in request.uri:
        raise ParseError("the target has a fragment")
    if not request.raw_path.startswith(b"/") and request.raw_path != b"*":
        split = split_absolute(request.raw_path)
        if split is None:
            raise ParseError("the target is no URL")
        host, request.raw_path = split
        request.path = unquote_to_bytes(request.raw_path).decode(errors="replace")
        # What the field Host says does not count then (RFC 9112, section 3.2.2).
        others = [field for field in request.headers_bytes if field[0] != b"host"]
        request.headers_bytes = [(b"host", host), *others]


def host_of(peername: object) -> str | None:
    """Return the address of a peer; None for a unix socket."""
    return str(peername[0]) if isinstance(peername, tuple) else None


def _below_tls(transport: Any) -> Any:  # noqa: ANN401 asyncio has no types for this
    """Return the transport that writes to the socket: TLS has one with a buffer of its own."""
    tls = getattr(transport, "_ssl_protocol", None)
    return getattr(tls, "_transport", transport)
