"""The worker: gunicorn's ASGI worker as a member of a cluster."""

import asyncio
import asyncio.sslproto
import gc
import os
import select
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gunicorn.workers import base, gasgi

from server.app import create_service
from server.cluster.ledger import Account
from server.cluster.membership import Membership
from server.cluster.scoreboard import Cell, State
from server.cluster.watched import keep_running
from server.gateway.addresses import Proxies
from server.gateway.drain import TICK_S, Drain, Step
from server.gateway.heartbeat import Heartbeat
from server.gateway.protocol import Protocol, host_of
from server.gateway.throttle import ConnectionThrottle
from server.gateway.turns import Turns
from server.logs import get_logger
from server.settings import Settings
from server.shares import Shares

if TYPE_CHECKING:
    from server.cluster.supervisor import OnDemandEngines
    from server.jobs.service import Jobs

log = get_logger(__name__)

base.WorkerTmp = Heartbeat  # gunicorn's constructor of a worker makes one, and there is no setting for it

# Over TLS each connection has a buffer of this size from its acceptance on, in bytes: asyncio's quarter of a
# megabyte would be half a gigabyte for 2,000 that have sent nothing.
asyncio.sslproto.SSLProtocol.max_size = 1 << 16

#: After so many collections of younger garbage the whole heap is looked at; Python's default is 10. That
#: stops a worker with 1,000 to 2,000 connections for 15 to 40 ms, as hardly any garbage is left
#: (`Protocol._untangle`).
_FULL_COLLECTION_AFTER = 50

#: So many connections are accepted before the event loop serves others: each takes a third of a millisecond.
#: With eight, the p99 of health checks is a third higher while one client opens 2,000 connections a second.
_ACCEPTED_AT_ONCE = 4

#: How often the shares and the transfer rates of all connections are looked at, in seconds.
_SWEEP_S = 1.0

#: After so many connections the event loop serves others first, and if one was closed, engines and others get
#: CPU time: to close one that is too slow takes up to a millisecond, and those that were opened together are
#: too slow together. The pause is in seconds.
_LOOKS_AT_ONCE = 4
_PAUSE_S = 0.004


class Worker(gasgi.ASGIWorker):  # type: ignore[misc]  # gunicorn has no types
    """A gunicorn worker that serves the app of its cluster.

    Attributes:
        membership: its part in the cluster.
        connections: those that count for `worker_connections`, the oldest first.
        refused: those without a place, which are told so, the oldest first.
        proxies: those that are believed when they name their clients.
        shares: how much of each limit one client may hold.
        turns: those of its connections at its event loop.
        forked_s: when it was forked, in seconds of the monotonic clock.
        tasks_before: how many tasks its row counted when it was forked.
        boot_delay_s: how long it waits before it boots, in seconds: the restart backoff.
    """

    membership: Membership
    settings: Settings
    connections: dict[Protocol, None]
    refused: dict[Protocol, None]
    shares: Shares
    forked_s: float
    tasks_before: int
    boot_delay_s: float
    max_requests: int
    nr_conns: int
    worker_connections: int
    _throttle: ConnectionThrottle
    _quick_shutdown: bool

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self._accepted = 0  # connections that are not made yet, as in a TLS handshake
        self._dropped: Counter[str | None] = Counter()  # connections of each client, since the last sweep
        self._drain = Drain(timeout_s=self.cfg.graceful_timeout, max_responses=self.max_requests)
        self._jobs: Jobs | None = None
        self._jobs_run: asyncio.Task[None] | None = None
        self._background: OnDemandEngines | None = None
        self._beating: asyncio.Task[None] | None = None  # gunicorn's loop, until it ends
        self.proxies = Proxies(
            self.cfg.forwarded_allow_networks(), is_any="*" in self.cfg.forwarded_allow_ips
        )
        self.turns = Turns()
        # gunicorn would close connections at once, told or not, when it sees the limit reached.
        self.max_requests = sys.maxsize

    def enlist(self, membership: Membership, settings: Settings) -> None:
        """Give the worker what it will need; called in the arbiter before it forks."""
        self.membership = membership
        self.settings = settings
        self.connections, self.refused = {}, {}
        self.shares = Shares.of(membership.page, settings)
        self._throttle = ConnectionThrottle(self.shares, self.worker_connections, self.refused)

    @property
    def is_draining(self) -> bool:
        """Whether each response is the last one of its connection."""
        return self._drain.is_begun or self.membership.scoreboard.is_stop_announced

    def init_signals(self) -> None:
        """Handle signals, also those that the arbiter has sent since the fork and that were blocked."""
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})

    def load_wsgi(self) -> None:
        """Build the app of this worker, instead of importing one that knows nothing of the cluster."""
        self.asgi: Any
        self.asgi, self._jobs, self._background = create_service(
            self.settings, self.membership, os.environ, self.shares
        )

    def account_of(self, host: str | None) -> Account | None:
        """Return the account of a client; None when the address is that of a proxy, for many clients."""
        is_proxy = self.cfg.proxy_protocol != "off" or self.proxies.is_trusted(host)
        return None if is_proxy else self.shares.account(host)

    def _setup_event_loop(self) -> None:
        """Serve our protocol, with the backlog that is configured and a limit on TLS handshakes.

        For asyncio the backlog is how many connections it accepts at once, too; the workers share it, so none
        may listen with less.
        """
        super()._setup_event_loop()
        create_server, start_serving = self.loop.create_server, self.loop._start_serving  # noqa: SLF001
        self._take_over = self.loop._accept_connection2  # noqa: SLF001

        async def with_our_protocol(_theirs: object, *, sock: socket.socket, **more: Any) -> asyncio.Server:  # noqa: ANN401
            if more.get("ssl"):
                more["ssl_handshake_timeout"] = self.settings.headers_timeout_s
            server: asyncio.Server = await create_server(
                lambda: Protocol(self), sock=sock, backlog=self.cfg.backlog, **more
            )
            return server

        def accepting_few(
            protocol_factory: object,
            sock: object,
            tls: object,
            server: object,
            _backlog: int,
            *timeouts: object,
        ) -> None:
            start_serving(protocol_factory, sock, tls, server, _ACCEPTED_AT_ONCE, *timeouts)

        self.loop.create_server = with_our_protocol
        self.loop._start_serving = accepting_few  # noqa: SLF001
        self.loop._accept_connection2 = self._accept  # noqa: SLF001

    async def _accept(
        self,
        protocol_factory: Callable[[], Protocol],
        sock: socket.socket,
        extra: dict[str, Any],
        tls: object,
        _server: object,
        *timeouts: object,
    ) -> None:
        """Serve a connection that asyncio has accepted, when it leaves the queue.

        asyncio is given no server: it would drop the connection if that had been closed meanwhile.
        """
        host = host_of(extra["peername"])
        self._accepted += 1
        try:
            await asyncio.sleep(0)  # clients that have left leave their places first
            if await self._throttle.wait(self.account_of(host)):
                protocol = protocol_factory()
                protocol.arrive(extra["peername"])
                await self._take_over(lambda: protocol, sock, extra, tls, None, *timeouts)
                protocol.forget_unless_made()
            else:
                self._dropped[host] += 1
                sock.close()
        except BaseException:  # cancelled at the end of the worker, or a bug
            sock.close()
            raise
        finally:
            self._accepted -= 1

    def refuse(self, connection: Protocol) -> None:
        """Keep a connection without a place until its client was told so, or too many others have come."""
        if self.refused and self._throttle.queued + len(self.refused) >= self.worker_connections:
            next(iter(self.refused)).refuse_no_longer()
        self.refused[connection] = None

    def run(self) -> None:
        """Serve until told to stop."""
        super().run()
        gc.freeze()  # at its exit the interpreter would look through all objects for garbage, for 0.3 s

    def _cleanup(self) -> None:
        """End the tasks and close the event loop, with signals detached from it just before.

        asyncio closes the wakeup descriptor before it restores the handlers; a signal in between makes Python
        print an error.
        """
        close = self.loop.close

        def detach_and_close() -> None:
            signal.set_wakeup_fd(-1)
            close()

        self.loop.close = detach_and_close
        super()._cleanup()

    async def _serve(self) -> None:
        gc.freeze()  # keeps the garbage collector from scanning what is loaded now
        gc.set_threshold(*gc.get_threshold()[:2], _FULL_COLLECTION_AFTER)
        self._beating = asyncio.current_task()
        sweep = asyncio.create_task(keep_running("sweep", self._sweep))
        decay = asyncio.create_task(keep_running("decay", self._decay_shares))
        self._jobs_run = asyncio.create_task(self._jobs.run()) if self._jobs else None
        try:
            await super()._serve()
        finally:
            sweep.cancel()
            decay.cancel()
            await self._stop_jobs()
            if self._background:
                await self._background.stop()

    async def _stop_jobs(self) -> None:
        """Claim no more jobs, and give back those that run; no request uses the store any more."""
        if self._jobs and self._jobs_run:
            self._jobs_run.cancel()
            await asyncio.wait({self._jobs_run})
            await self._jobs.close()

    async def _decay_shares(self) -> None:
        """Look at the shares of all clients, once a second."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.shares.decay()

    async def _sweep(self) -> None:
        """Look at the transfer rates of all connections, once a second."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            if self._dropped:
                ((client, _),) = self._dropped.most_common(1)
                connections, addresses = self._dropped.total(), len(self._dropped)
                log.info("connections_dropped", client=client, connections=connections, addresses=addresses)
                self._dropped.clear()
            closed = 0
            for number, connection in enumerate(tuple(self.connections), 1):
                try:
                    closed += connection.check_rate(self.loop.time())
                except Exception:
                    log.exception("sweep_failed")  # the others still have to be looked at
                if number % _LOOKS_AT_ONCE == 0:
                    await asyncio.sleep(_PAUSE_S if closed else 0)
                    closed = 0

    def handle_exit_signal(self) -> None:
        """Drain, then end (TERM); before the first connection there is nothing to drain."""
        row = self.membership.row
        if self.servers:
            self.drain()
        elif row[Cell.STATE] == State.ONLINE:
            # The listening socket opens in a moment, and gunicorn's start would not hear a cancellation.
            self.loop.call_soon(self.handle_exit_signal)
        else:
            row[Cell.STATE] = State.STOPPING
            sys.exit(0)

    def count_response(self) -> None:
        """Drain with the response that is about to begin when it is the last one of `max_requests`."""
        if self._drain.is_due(self.nr):
            self.drain()

    def drain(self) -> None:
        """Make every response from here on the last one of its connection, and end when all are closed.

        For gunicorn the worker stays alive until then: it would close connections that were not told, and
        stop giving signs of life.
        """
        if not self._drain.is_begun:
            self._drain.begin(self.loop.time())
            self.membership.row[Cell.STATE] = State.STOPPING
            log.info("worker_stopping", pid=os.getpid(), connections=self._open_connections)
            self._throttle.release_all()
            for connection in self.connections:
                connection.wait_no_longer()
            if self._jobs and self._jobs_run:
                self._jobs_run.cancel()
                self._jobs.close_streams()
            self._drained = self.loop.create_task(self._finish())

    async def _finish(self) -> None:
        try:
            await self._wait_for_connections()
        finally:  # after a bug of ours too, or the worker would drain for ever
            self.alive = False
            if self._beating is not None:  # it sleeps for a second, and takes this for the end of its work
                self._beating.cancel()

    async def _wait_for_connections(self) -> None:
        step = Step.WAIT
        while step not in {Step.END, Step.TIME_OUT}:
            await asyncio.sleep(TICK_S)  # gunicorn counts its connections and tells nothing when one ends
            step = self._drain.step(self.loop.time(), self._open_connections, has_backlog=self._has_backlog())
            if step is Step.CLOSE_LISTENERS:
                for server in self.servers:
                    server.close()
        if step is Step.TIME_OUT:
            log.warning("worker_drain_timed_out", pid=os.getpid(), connections=self._open_connections)
            self._quick_shutdown = True

    @property
    def _open_connections(self) -> int:
        """How many there are, with those that are queued and those in a TLS handshake."""
        return self.nr_conns + self._accepted

    def _has_backlog(self) -> bool:
        """Say whether the kernel has connections that no worker has accepted yet."""
        look = select.poll()
        for server in self.servers:
            for sock in server.sockets:
                look.register(sock, select.POLLIN)
        return bool(look.poll(0))

    async def _shutdown(self) -> None:
        """End; a worker that has lost its arbiter drains only now."""
        if self._beating is not None:
            self._beating.uncancel()
            self._beating = None
        if not self._quick_shutdown:
            self.drain()
            await self._drained
        await super()._shutdown()
