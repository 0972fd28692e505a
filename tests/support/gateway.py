"""A gateway `Protocol` on a socket pair, in the test's own event loop: real parsing, no gunicorn process."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger
from structlog.testing import capture_logs

from server.cluster.membership import Membership
from server.cluster.quarantine import Quarantine
from server.gateway.protocol import Protocol
from server.gateway.worker import Worker
from server.settings import Settings
from server.web.envelope import App, Envelope
from support.wire import Answer

#: How long any wait may take, in seconds.
DEADLINE_S = 20.0

#: What gunicorn.conf.py changes and matters here: uvloop would be used wherever it is installed.
_AS_CONFIGURED = {"asgi_disconnect_grace_period": 0, "asgi_loop": "asyncio"}

Event = dict[str, Any]


class Client:
    """The client's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._received = b""

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def read(self) -> Answer:
        """Read one response with a Content-Length; other framings fail."""
        async with asyncio.timeout(DEADLINE_S):
            while b"\r\n\r\n" not in self._received:
                await self._read_more()
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            line, *fields = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
            length = int(headers["content-length"])
            while len(self._received) < length:
                await self._read_more()
            body, self._received = self._received[:length], self._received[length:]
        return Answer(int(line.split()[1]), headers, body)

    async def take(self, nbytes: int) -> None:
        """Read so much of the next response, at least, without looking at it."""
        async with asyncio.timeout(DEADLINE_S):
            begun = len(self._received)
            while len(self._received) < begun + nbytes:
                await self._read_more()

    async def read_to_end(self) -> bytes:
        """Read all that comes until the server closes or resets the connection."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                while True:
                    await self._read_more()
            except (EOFError, ConnectionResetError):
                return self._received

    async def read_nothing(self) -> None:
        """Let the server's side run, and see that it answers nothing."""
        for _ in range(5):
            await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            self._sock.recv(1)

    async def is_readable(self) -> None:
        """Wait until something has come, and leave it."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._sock, ready.set)
        async with asyncio.timeout(DEADLINE_S):
            await ready.wait()
        loop.remove_reader(self._sock)

    def end(self) -> None:
        """Say that nothing more will be sent."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Leave."""
        self._sock.close()

    async def _read_more(self) -> None:
        piece = await asyncio.get_running_loop().sock_recv(self._sock, 1 << 16)
        if not piece:
            raise EOFError
        self._received += piece


class WatchedProtocol(Protocol):
    """The real protocol, which also says when bytes have arrived and when its connection is lost."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self.lost = asyncio.Event()
        self._arrived = asyncio.Event()
        self._wrote = asyncio.Event()

    def buffer_updated(self, nbytes: int) -> None:
        super().buffer_updated(nbytes)
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()

    def _send_body(self, body: bytes, *framing: Any, **more: Any) -> None:  # noqa: ANN401 gunicorn's
        super()._send_body(body, *framing, **more)
        self._wrote.set()

    async def has_written(self, total_bytes: int) -> None:
        """Wait until so many bytes of bodies have been written in all, taken by the client or not."""
        async with asyncio.timeout(DEADLINE_S):
            while self._written_bytes < total_bytes:
                self._wrote.clear()
                await self._wrote.wait()

    async def has_received(self, total_bytes: int) -> None:
        """Wait until so many bytes have arrived in all."""
        async with asyncio.timeout(DEADLINE_S):
            while self._received_bytes < total_bytes:
                self._arrived.clear()
                await self._arrived.wait()


class Gateway:
    """A worker that was never forked and serves connections that a test opens.

    Args:
        app: what answers; it is wrapped in the envelope, as in production.
        config: gunicorn's settings.
        settings: the service's.
    """

    def __init__(
        self, app: App, settings: Settings | None = None, config: dict[str, object] | None = None
    ) -> None:
        cfg = Config()
        for name, value in {**_AS_CONFIGURED, **(config or {})}.items():
            cfg.set(name, value)
        self.membership = Membership.alone(Quarantine(60))
        self.worker = Worker(1, os.getppid(), [], None, cfg.timeout, cfg, Logger(cfg))
        self.worker.enlist(self.membership, settings or Settings())
        self.worker.loop = loop = asyncio.get_running_loop()
        self._ahead_s = 0.0
        time_s = loop.time
        loop.time = lambda: time_s() + self._ahead_s  # type: ignore[method-assign]
        self.serve(lambda _: app)
        self.protocols: list[WatchedProtocol] = []
        self._clients: list[Client] = []

    def serve(self, app_of: "Callable[[Gateway], App]") -> None:
        """Serve another app on connections that are opened from now on."""
        self.worker.asgi = Envelope(app_of(self), self.membership.row)

    async def connect(self, address: str | None = None, handshake_s: float = 0) -> Client:
        """Open a connection.

        Args:
            address: of the client, one of the loopback network; None for a client without one.
            handshake_s: how long asyncio takes from making the protocol to the connection, as over TLS.
        """
        ours, theirs = socket.socketpair() if address is None else _tcp_pair(address)
        theirs.setblocking(False)

        def protocol() -> Protocol:
            self.protocols.append(WatchedProtocol(self.worker))
            self.protocols[-1].arrive(theirs.getpeername())
            self.advance(handshake_s)
            return self.protocols[-1]

        await self.worker.loop.connect_accepted_socket(protocol, theirs)
        self._clients.append(Client(ours))
        return self._clients[-1]

    def advance(self, seconds: float) -> None:
        """Let the event loop's clock, and with it every timer, be so many seconds further on."""
        self._ahead_s += seconds

    def check_rates(self) -> None:
        """Look at all connections, as the worker does once a second."""
        for protocol in self.protocols:
            protocol.check_rate(self.worker.loop.time())

    async def close(self) -> None:
        """Abort all connections and wait for what they had under way."""
        async with asyncio.timeout(DEADLINE_S):
            for protocol in self.protocols:
                if not protocol.lost.is_set():  # asyncio fails over one that was closed with unsent bytes
                    protocol.transport.abort()
                await protocol.lost.wait()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*tasks, return_exceptions=True)
        for client in self._clients:
            client.close()
        with self.membership.work:
            self.worker.tmp.close()


def _tcp_pair(address: str) -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), DEADLINE_S, (address, 0))
        return ours, listener.accept()[0]


@asynccontextmanager
async def gateway(
    app: App, settings: Settings | None = None, **config: object
) -> AsyncIterator[tuple[Gateway, list[Event]]]:
    """Serve an app; yields the gateway and the log, as a list that grows."""
    with capture_logs() as events:
        served = Gateway(app, settings, config)
        try:
            yield served, events
        finally:
            await served.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine to its end."""
    asyncio.run(test)
