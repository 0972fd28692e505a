"""Clients that take nothing for granted: they read while they send, and note when what happened.

`load` costs less and gives up at the first answer that is not 200; these say what came instead.
"""

import heapq
import itertools
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self

from benchmarks.harness.load import PIXELS
from benchmarks.harness.server import DEADLINE_S

Address = tuple[str, int]

_PIECE_BYTES = 1 << 16  # larger ones make one connection wait for the copying of two hundred

HELLO = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(picture: bytes, headers: str = "", target: str = PIXELS) -> bytes:
    """Write a whole request that uploads a picture."""
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(picture)}\r\n{headers}\r\n"
    return head.encode() + picture


@dataclass(eq=False, slots=True)
class Exchange:
    """One request and whatever came of it. All times are seconds of the monotonic clock.

    Attributes:
        connection: a kept one, or None for a new one.
        worker: the pid that answered on this connection before, or does now; 0 when nobody has yet.
        status: 0 when there was no answer.
        failure: why the answer is missing or incomplete.
        connecting_s: how long it took to connect.
        started_s: when the first byte was sent.
    """

    address: Address
    request: bytes
    not_before_s: float = 0.0
    connection: socket.socket | None = None
    worker: int = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
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
        """Connect; None when that fails."""
        self.started_s = began_s = time.monotonic()
        try:
            self.connection = self.connection or socket.create_connection(self.address, timeout=DEADLINE_S)
        except OSError as error:
            self.fail(str(error))
            return None
        self.connection.setblocking(False)  # noqa: FBT003 the standard library has no other way
        self.connecting_s = time.monotonic() - began_s
        return self.connection

    def step(self, events: int) -> bool:
        """Send and read what is possible now, and say whether it is over."""
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
        """Whether the service has been given all of the request."""
        return self._sent == len(self.request)

    @property
    def is_kept_alive(self) -> bool:
        """Whether the connection can be used again."""
        return not self.failure and self.is_sent and self.headers.get("connection") != "close"

    def fail(self, why: str) -> None:
        """Give up."""
        self.failure = why
        self.ended_s = time.monotonic()
        self.close()

    def close(self) -> None:
        """Leave, if we have not yet."""
        if self.connection is not None:
            self.connection.close()

    def _unsent(self) -> memoryview:
        return memoryview(self.request)[self._sent : self._sent + _PIECE_BYTES]

    def _break(self, connection: socket.socket, why: str) -> bool:
        # The service may have answered before it hung up on what we were still sending.
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
        head, end, _ = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        status_line, *lines = head.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        self.headers = {name.lower(): value.strip() for name, _, value in fields}
        self.status = int(status_line.split()[1])
        self.worker = int(self.headers.get("x-worker-pid", 0))
        self._needed = int(self.headers["content-length"])
        del self._received[: len(head) + len(end)]


def drive(
    exchanges: Iterable[Exchange],
    then: Callable[[Exchange], Exchange | None] = Exchange.close,
    deadline_s: float = 300.0,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Have many exchanges at once, in this thread.

    Args:
        exchanges: to begin with.
        then: called with each that is over; returns the next one, or None. By itself it hangs up.
        deadline_s: after that many seconds everything unfinished has failed.
        is_over: looked at several times a second; the clients leave when it says so.
    """
    until = time.monotonic() + deadline_s
    number = itertools.count()
    waiting = [(exchange.not_before_s, next(number), exchange) for exchange in exchanges]
    heapq.heapify(waiting)
    with selectors.DefaultSelector() as selector:

        def finish(exchange: Exchange) -> None:
            if successor := then(exchange):
                heapq.heappush(waiting, (successor.not_before_s, next(number), successor))

        while (waiting or selector.get_map()) and (now := time.monotonic()) < until and not is_over():
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


class Visitors:
    """Clients that come again and again, until the block ends.

    On a kept connection the first request is a health check: its answer names the worker that all later
    ones depend on.

    Args:
        address: of the service.
        request: what they send.
        answer: the body that is right.
        at_once: how many there are.
        is_loyal: they keep their connections, instead of making one for each request.
    """

    def __init__(
        self, address: Address, request: bytes, answer: bytes, *, at_once: int, is_loyal: bool = False
    ) -> None:
        self._address = address
        self._request = request
        self._answer = answer
        self._at_once = at_once
        self._is_loyal = is_loyal
        self._is_over = False
        self._news = threading.Condition()
        self.done: list[Exchange] = []

    def __enter__(self) -> Self:
        first = [self._new() for _ in range(self._at_once)]
        self._thread = threading.Thread(target=drive, args=(first, self._next, 3600.0))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()

    def wait_until(self, condition: Callable[[Exchange], bool]) -> None:
        """Wait for an answer like that, from now on."""
        seen = len(self.done)
        with self._news:
            assert self._news.wait_for(lambda: any(map(condition, self.done[seen:])), DEADLINE_S), (
                f"no such answer; {self.counts()}"
            )

    def counts(self) -> Counter[str]:
        """How often each thing happened."""
        return Counter(map(outcome, self.done))

    @property
    def failed(self) -> list[Exchange]:
        """All that were not answered with the right picture."""
        return [exchange for exchange in self.done if outcome(exchange) != "200"]

    def _new(self) -> Exchange:
        return Exchange(self._address, HELLO if self._is_loyal else self._request)

    def _next(self, exchange: Exchange) -> Exchange | None:
        if exchange.request is not HELLO:
            self._record(exchange)
        if self._is_loyal and exchange.is_kept_alive and not self._is_over:
            return Exchange(
                self._address, self._request, connection=exchange.connection, worker=exchange.worker
            )
        exchange.close()
        if self._is_over:
            return None
        successor = self._new()
        if exchange.failure:  # a service that is down is not asked a thousand times a second
            successor.not_before_s = time.monotonic() + 0.05
        return successor

    def _record(self, exchange: Exchange) -> None:
        if exchange.status == 200 and exchange.body != self._answer:  # noqa: PLR2004 HTTP's
            exchange.failure = exchange.failure or "wrong pixels"
        exchange.body = b""
        exchange._received.clear()  # noqa: SLF001 our own
        with self._news:
            self.done.append(exchange)
            self._news.notify_all()


def outcome(exchange: Exchange) -> str:
    """Say in a word what happened."""
    return exchange.failure or str(exchange.status)
