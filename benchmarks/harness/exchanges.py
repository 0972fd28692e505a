"""Many exchanges of request and answer at once, in one thread, each with its outcome and its times.

They read while they send, so that an answer to half a request is seen. `load` costs less, and gives up at the
first answer that is not 200.
"""

import heapq
import itertools
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from benchmarks.harness.messages import parse_head
from benchmarks.harness.server import Address
from benchmarks.harness.waiting import DEADLINE_S

_PIECE_BYTES = 1 << 16  # with larger ones, hundreds of connections wait while one is copied

_END_OF_HEAD = b"\r\n\r\n"


@dataclass(eq=False, slots=True)
class Exchange:
    """One request and its outcome. All times are seconds of the monotonic clock.

    Attributes:
        connection: a kept one, or None for a new one.
        source: the address that a new connection comes from; empty for the kernel's choice.
        worker: the pid of the worker that answers on this connection; 0 before the first answer.
        status: 0 when there was no answer.
        failure: why the answer is missing or incomplete.
        connecting_s: how long it took to connect.
        started_s: when the first byte was sent.
    """

    address: Address
    request: bytes
    not_before_s: float = 0.0
    connection: socket.socket | None = None
    source: str = ""
    worker: int = 0
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    failure: str = ""
    connecting_s: float = 0.0
    started_s: float = 0.0
    first_line_s: float = 0.0
    ended_s: float = 0.0
    _sent: int = 0
    _received: bytearray = field(default_factory=bytearray)
    _needed: int = 0

    def start(self) -> socket.socket | None:
        """Connect; return None when that fails."""
        self.started_s = began_s = time.monotonic()
        try:
            self.connection = self.connection or socket.create_connection(
                self.address, timeout=DEADLINE_S, source_address=(self.source, 0) if self.source else None
            )
        except OSError as error:
            self.fail(str(error))
            return None
        self.connection.setblocking(False)  # noqa: FBT003 the standard library has no other way
        self.connecting_s = time.monotonic() - began_s
        return self.connection

    def step(self, events: int) -> bool:
        """Send and read what is possible now, and return whether it is over."""
        assert self.connection is not None
        try:
            if events & selectors.EVENT_READ and self._read(self.connection):
                return True
            if events & selectors.EVENT_WRITE:
                self.started_s = self.started_s if self._sent else time.monotonic()
                self._sent += self.connection.send(self._unsent())
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError) as error:
            return self._break(self.connection, str(error))
        return False

    @property
    def is_sent(self) -> bool:
        """Whether all of the request has been sent."""
        return self._sent == len(self.request)

    @property
    def is_kept_alive(self) -> bool:
        """Whether the connection can be used again."""
        return not self.failure and self.is_sent and self.headers.get("connection") != "close"

    @property
    def took_s(self) -> float:
        """The response time."""
        return self.ended_s - self.started_s

    def fail(self, why: str) -> None:
        """Give up."""
        self.failure = why
        self.ended_s = time.monotonic()
        self.close()

    def close(self) -> None:
        """Close the connection, if it is open."""
        if self.connection is not None:
            self.connection.close()

    def forget(self) -> None:
        """Drop the body, which many exchanges together have no memory for."""
        self.body = b""
        self._received.clear()

    def _unsent(self) -> memoryview:
        return memoryview(self.request)[self._sent : self._sent + _PIECE_BYTES]

    def _break(self, connection: socket.socket, why: str) -> bool:
        # The service may have answered before it closed the connection that we were still sending to.
        while not self.ended_s:
            try:
                if self._read(connection):
                    break
            except OSError:
                self.fail(why)
        return True

    def _read(self, connection: socket.socket) -> bool:
        piece = connection.recv(_PIECE_BYTES)
        if not piece:
            self.fail("closed within the answer" if self._received else "closed before an answer")
            return True
        self.first_line_s = self.first_line_s or time.monotonic()
        self._received += piece
        if not self.status:
            self._read_head()
        if not self.status or len(self._received) < self._needed:
            return False
        self.body = bytes(self._received)
        self.ended_s = time.monotonic()
        if not self.is_kept_alive:
            self.close()
        return True

    def _read_head(self) -> None:
        end = self._received.find(_END_OF_HEAD)
        if end < 0:
            return
        body = end + len(_END_OF_HEAD)
        # HTTPMessage finds headers whatever the case of their names.
        headers = parse_head(self._received[:body])
        self.headers = headers  # type: ignore[assignment]
        self.status = int(headers["Status"])
        self.worker = int(headers.get("X-Worker-PID", 0))
        self._needed = int(headers["Content-Length"])
        del self._received[:body]


def drive(
    exchanges: Iterable[Exchange],
    then: Callable[[Exchange], Exchange | None] = Exchange.close,
    deadline_s: float = 300.0,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Run many exchanges at once, in this thread.

    Args:
        exchanges: to begin with.
        then: called with each that is over; returns the next one, or None. The default closes.
        deadline_s: after that many seconds everything unfinished has failed.
        is_over: called several times a second; when it returns true, the clients leave.
    """
    until_s = time.monotonic() + deadline_s
    number = itertools.count()
    waiting = [(exchange.not_before_s, next(number), exchange) for exchange in exchanges]
    heapq.heapify(waiting)
    with selectors.DefaultSelector() as selector:

        def finish(exchange: Exchange) -> None:
            if successor := then(exchange):
                heapq.heappush(waiting, (successor.not_before_s, next(number), successor))

        while (waiting or selector.get_map()) and (now := time.monotonic()) < until_s and not is_over():
            while waiting and waiting[0][0] <= now:
                _, _, exchange = heapq.heappop(waiting)
                if connection := exchange.start():
                    selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, exchange)
                else:
                    finish(exchange)
            pause_s = min(waiting[0][0] - now, 0.1) if waiting else 0.1
            for key, events in selector.select(max(0.0, pause_s)):
                if key.data.step(events):
                    selector.unregister(key.fileobj)
                    finish(key.data)
                elif events & selectors.EVENT_WRITE and key.data.is_sent:
                    selector.modify(key.fileobj, selectors.EVENT_READ, key.data)
        begun = [key.data for key in selector.get_map().values()]
        for exchange in [*begun, *(exchange for *_, exchange in waiting)]:
            exchange.fail("no answer in time")
            then(exchange)


def ask(address: Address, request: bytes, deadline_s: float = DEADLINE_S) -> Exchange:
    """Send one request on a new connection and wait for the answer."""
    exchange = Exchange(address, request)
    drive([exchange], deadline_s=deadline_s)
    return exchange


def outcome(exchange: Exchange) -> str:
    """Return the status or, without a whole answer, the failure."""
    return exchange.failure or str(exchange.status)
