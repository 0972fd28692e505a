"""Slow clients, hundreds in one thread: each holds a connection and sends, or reads, next to nothing.

They share the cores with the service, so any other CPU time of theirs would count as the service's.
"""

import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from benchmarks.harness.messages import post
from benchmarks.harness.processes import accepted_from, raise_descriptor_limit
from benchmarks.harness.server import Address
from benchmarks.harness.waiting import DEADLINE_S, until

_TICK_S = 0.25

#: How often the kernel's table of connections is read, in ticks: each time costs nearly half of a tick.
_TICKS_PER_LOOK = 4

#: The kernel's number for FIN_WAIT1: closed by the server, and not all delivered (include/net/tcp_states.h).
_CLOSED_UNDELIVERED = frozenset({"04"})

#: So small that the kernel cannot receive the answer of 4 MB in the client's place.
_NARROW_BYTES = 4096
_LARGE_ANSWER = "/flip?quality=100"

_ENDLESS_HEAD = b"POST /flip HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


@dataclass(eq=False, slots=True)
class _Slow:
    """One slow client.

    Attributes:
        message: what it sends: `at_first` bytes at once, the rest at `sends_per_s` bytes a second.
        reads_per_s: how fast it reads.
        closed_s: when the service had closed the connection, in seconds after the start.
        answer: the first bytes of the answer.
    """

    kind: str
    connection: socket.socket
    message: bytes
    at_first: int
    sends_per_s: int
    reads_per_s: int
    started_s: float
    sent: int = 0
    received: int = 0
    closed_s: float = 0.0
    answer: bytes = b""

    def send(self, now_s: float) -> None:
        """Send what is due."""
        due = min(len(self.message), self.at_first + int((now_s - self.started_s) * self.sends_per_s))
        # Its buffer is full, or the connection is closed, which `accepted_from` shows.
        with suppress(OSError):
            if self.sent < due:
                self.sent += self.connection.send(memoryview(self.message)[self.sent : due])

    def read(self, now_s: float) -> None:
        """Read what is due, of a connection that has something to read."""
        with suppress(OSError):
            if self.received < (now_s - self.started_s) * self.reads_per_s:
                piece = self.connection.recv(int(self.reads_per_s * _TICK_S))
                self.answer = self.answer or piece[:12]
                self.received += len(piece)


class Crowd:
    """Slow clients that connect together, and stay until the service disconnects them.

    Args:
        address: of the service.
        body: an image.
        sizes: how many `heads` never finish their headers, how many `uploads` send one kilobyte a second,
            how many `downloads` read ten kilobytes a second.
    """

    def __init__(self, address: Address, body: bytes, sizes: Mapping[str, int]) -> None:
        raise_descriptor_limit()
        self._address = address
        request = post(body)
        head_bytes = len(request) - len(body)
        # What they send, how much of it at once, then how fast; how fast they read.
        behaviours = {
            "downloads": (large := post(body, target=_LARGE_ANSWER), len(large), 0, 10_000),
            "uploads": (request, head_bytes, 1_000, 1_000),
            "heads": (_ENDLESS_HEAD + b"x" * 8000, len(_ENDLESS_HEAD), 10, 1_000),
        }
        self._slow = [
            _Slow(kind, self._connect(), *behaviour, started_s=time.monotonic())
            for kind, behaviour in behaviours.items()
            for _ in range(sizes[kind])
        ]
        self._ports = {slow.connection.getsockname()[1]: slow for slow in self._slow}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for slow in self._slow:
            slow.connection.close()

    def wait_until_all_are_served(self) -> None:
        """Wait until each download has begun: from then on the crowd takes no time of an engine."""
        downloads = [slow for slow in self._slow if slow.kind == "downloads"]
        until(lambda: all(slow.received or slow.closed_s for slow in downloads), 3 * DEADLINE_S)

    def wait_until_closed(self, deadline_s: float) -> None:
        """Wait until the service has disconnected them all."""
        until(lambda: not self.held(), deadline_s)

    def held(self) -> int:
        """Count the connections that the service has not closed."""
        return sum(not slow.closed_s for slow in self._slow)

    def closed(self) -> dict[str, list[float]]:
        """Return when each was disconnected, in seconds after its start, by kind."""
        return {
            kind: sorted(slow.closed_s for slow in self._slow if slow.kind == kind and slow.closed_s)
            for kind in ("heads", "uploads", "downloads")
        }

    def lingering(self) -> int:
        """Count the answers that the kernel still tries to deliver although the service has closed."""
        return len(accepted_from(self._address[1], _CLOSED_UNDELIVERED) & self._ports.keys())

    def answers(self) -> Counter[str]:
        """Count the answers by kind and status."""
        return Counter(f"{slow.kind} {slow.answer[9:].decode('latin-1') or 'nothing'}" for slow in self._slow)

    def _connect(self) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW_BYTES)
        connection.settimeout(DEADLINE_S)
        connection.connect(self._address)
        connection.setblocking(False)  # noqa: FBT003 the standard library has no other way
        return connection

    def _run(self) -> None:
        by_descriptor = {slow.connection.fileno(): slow for slow in self._slow}
        with select.epoll() as readable:
            for descriptor in by_descriptor:
                readable.register(descriptor, select.EPOLLIN)
            ticks = 0
            while not self._stop.wait(_TICK_S):
                ticks += 1
                now_s = time.monotonic()
                if ticks % _TICKS_PER_LOOK == 0:
                    self._look(now_s)
                for slow in self._slow:
                    slow.send(now_s)
                for descriptor, _ in readable.poll(0):
                    by_descriptor[descriptor].read(now_s)

    def _look(self, now_s: float) -> None:
        """Note who has been disconnected, as the server sees it: a slow reader notices that late itself."""
        held = accepted_from(self._address[1])
        for port, slow in self._ports.items():
            if not slow.closed_s and port not in held:
                slow.closed_s = now_s - slow.started_s
