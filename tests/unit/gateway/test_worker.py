"""The worker as gunicorn runs it, in the test's own process: its protocol, its backlog, its drain."""

import asyncio
import gc
import os
import signal
import socket
import ssl
import struct
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.certificates import certificate
from support.gateway import DEADLINE_S, Event, Gateway, gateway, run

from server.cluster.ledger import Field
from server.cluster.scoreboard import Cell, State
from server.gateway import linger, protocol, throttle
from server.gateway import worker as worker_module
from server.gateway.protocol import Protocol
from server.gateway.worker import Worker
from server.settings import Settings
from server.web.envelope import Receive, Scope, Send

#: Where `struct tcp_info` has the backlog of a listening socket (tcp(7); tcp_get_info() of the kernel).
_MOST_WAITING = slice(28, 32)


class ListeningSocket(socket.socket):
    """A socket that remembers each backlog that it was given."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.backlogs: list[int] = []

    def listen(self, backlog: int = -1, /) -> None:
        self.backlogs.append(backlog)
        super().listen(backlog)


class Listener:
    """A listening socket as gunicorn passes it to its workers."""

    def __init__(self) -> None:
        self.sock = ListeningSocket(socket.create_server(("127.0.0.1", 0)))
        self.sock.setblocking(False)

    def close(self) -> None:
        self.sock.close()

    @property
    def backlog(self) -> int:
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        most: int = struct.unpack("I", info[_MOST_WAITING])[0]
        return most


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


@asynccontextmanager
async def serving(
    **config: object,
) -> AsyncIterator[tuple[Gateway, Listener, "asyncio.Task[None]", list[Event]]]:
    """Run a worker's own loop over a real listening socket."""
    async with gateway(hello, asgi_lifespan="off", **config) as (served, events):
        worker = served.worker
        listener = Listener()
        worker.sockets = [listener]
        is_up = asyncio.Event()
        adopt(worker, is_up)
        task = asyncio.create_task(worker._serve())
        async with asyncio.timeout(DEADLINE_S):
            await is_up.wait()
        try:
            yield served, listener, task, events
        finally:
            worker.alive = False
            worker._quick_shutdown = True
            served.advance(2)  # the loop looks once a second
            async with asyncio.timeout(DEADLINE_S):
                await task
            listener.close()


def adopt(worker: Any, is_up: asyncio.Event) -> None:
    """Let a worker set up the loop that is running, and say when it listens."""
    loop = asyncio.get_running_loop()
    new_event_loop, set_event_loop = asyncio.new_event_loop, asyncio.set_event_loop
    asyncio.new_event_loop, asyncio.set_event_loop = lambda: loop, lambda _: None
    try:
        worker._setup_event_loop()
    finally:
        asyncio.new_event_loop, asyncio.set_event_loop = new_event_loop, set_event_loop
    notify = worker.notify

    def notify_and_tell() -> None:
        notify()
        is_up.set()

    worker.notify = notify_and_tell


async def ask(port: int) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer


def test_gunicorn_serves_our_protocol() -> None:
    async def test() -> None:
        async with serving() as (served, listener, _, _):
            async with asyncio.timeout(DEADLINE_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", listener.sock.getsockname()[1])
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                answer = await reader.readuntil(b"hello")
            (connection,) = served.worker.connections
            assert type(connection) is Protocol
            assert b"x-request-id: " in answer
            writer.close()

    run(test())


@pytest.mark.parametrize("backlog", [77, 300])
def test_as_many_connections_may_wait_as_configured(backlog: int) -> None:
    """asyncio calls listen() again with 100, which would override gunicorn's backlog."""

    async def test() -> None:
        async with serving(backlog=backlog) as (_, listener, _, _):
            assert listener.backlog == backlog
            assert set(listener.sock.backlogs) == {backlog}  # less for a moment would drop those that wait

    run(test())


def test_others_are_served_while_many_connections_are_accepted() -> None:
    async def test() -> None:
        async with serving(worker_connections=200) as (served, listener, _, _), asyncio.timeout(DEADLINE_S):
            sockets = []
            for _ in range(100):
                sockets.append(sock := socket.socket())
                sock.setblocking(False)
                with suppress(BlockingIOError):  # the kernel has it before anybody accepts it
                    sock.connect(listener.sock.getsockname())
            accepted = [0]
            while accepted[-1] < len(sockets):
                await asyncio.sleep(0)  # one turn of the loop
                accepted.append(len(served.worker.connections))
            assert max(after - before for before, after in pairwise(accepted)) <= 8
            for sock in sockets:
                sock.close()

    run(test())


GREEDY, POLITE, SECOND = "127.0.0.66", "127.0.0.2", "127.0.0.3"

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def opened(listener: Listener, address: str) -> socket.socket:
    """Open a connection that the kernel has before anybody accepts it."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((address, 0))
    with suppress(BlockingIOError):
        sock.connect(listener.sock.getsockname())
    return sock


async def received(sock: socket.socket) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.get_running_loop().sock_recv(sock, 1000)


async def answer_to(sock: socket.socket) -> bytes:
    sock.sendall(REQUEST)
    return await received(sock)


@asynccontextmanager
async def crowded(
    monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[tuple[Gateway, Listener, list[socket.socket], list[Event]]]:
    """Let a client open 30 connections at once at a worker that may have 60; no time passes by itself."""
    monkeypatch.setattr(throttle, "_INTERVAL_S", 1000.0)
    settings = Settings(headers_timeout_s=3600, **settings)
    async with serving(worker_connections=60, settings=settings) as (served, listener, _, events):
        connections = [opened(listener, GREEDY) for _ in range(30)]
        try:
            yield served, listener, connections, events
        finally:
            served.worker.drain()
            for sock in connections:
                sock.close()


def test_connections_of_a_client_that_has_many_are_queued_and_those_of_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        async with crowded(monkeypatch) as (served, listener, connections, _):
            account = served.membership.page.account(GREEDY)
            polite = opened(listener, POLITE)
            assert (await answer_to(polite)).startswith(b"HTTP/1.1 200 ")
            assert account.used(Field.CONNECTIONS) == 6  # a third of its 18
            served.advance(1000)
            assert (await answer_to(connections[6])).startswith(b"HTTP/1.1 200 ")
            assert account.used(Field.CONNECTIONS) == 7
            polite.close()

    run(test())


def test_queued_connections_are_answered_when_the_worker_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "TICK_S", 0)  # it stops listening before all have left the queue

    async def test() -> None:
        async with crowded(monkeypatch) as (served, listener, connections, _):
            polite = opened(listener, POLITE)
            assert (await answer_to(polite)).startswith(b"HTTP/1.1 200 ")
            served.worker.drain()
            for waiting in connections[6:]:
                assert b"Connection: close" in await answer_to(waiting)
            polite.close()

    run(test())


def test_connections_that_the_kernel_has_are_answered_when_the_worker_drains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "TICK_S", 0)

    async def test() -> None:
        async with serving(worker_connections=200) as (served, listener, _, _):
            waiting = [opened(listener, POLITE) for _ in range(50)]
            served.worker.drain()
            for sock in waiting:
                assert b"Connection: close" in await answer_to(sock)
                sock.close()
            async with asyncio.timeout(DEADLINE_S):
                await served.worker._drained
            assert not any(server.is_serving() for server in served.worker.servers)

    run(test())


def test_queued_connections_are_closed_when_the_worker_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with crowded(monkeypatch) as (_, listener, connections, _):
            polite = opened(listener, POLITE)
            assert (await answer_to(polite)).startswith(b"HTTP/1.1 200 ")
            for task in asyncio.all_tasks():
                if task.get_coro().__name__ == "_accept":  # type: ignore[union-attr]
                    task.cancel()
            assert await received(connections[6]) == b""
            assert await received(connections[-1]) == b""
            polite.close()

    run(test())


def test_when_too_many_connections_are_queued_the_client_with_the_most_loses_the_last_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        async with crowded(monkeypatch) as (served, listener, connections, events):
            connections += [opened(listener, GREEDY) for _ in range(40)]  # 6 are served, and 60 queued
            office = [opened(listener, SECOND) for _ in range(20)]  # 6 are served, and 14 queued
            polite = opened(listener, POLITE)
            assert (await answer_to(polite)).startswith(b"HTTP/1.1 200 ")
            for dropped in connections[52:]:
                assert await received(dropped) == b""
            with pytest.raises(BlockingIOError):
                connections[51].recv(1)
            served.advance(1000)
            assert (await answer_to(connections[6])).startswith(b"HTTP/1.1 200 ")
            served.advance(1000)
            assert (await answer_to(office[6])).startswith(b"HTTP/1.1 200 ")
            told = [each for each in events if each["event"] == "connections_dropped"]
            assert [(each["client"], each["connections"]) for each in told] == [(GREEDY, 18)]
            for sock in (*office, polite):
                sock.close()

    run(test())


def test_clients_without_a_place_are_answered_503_and_the_oldest_of_too_many_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "LINGER_S", 3600.0)
    monkeypatch.setattr(linger, "LINGER_S", 3600.0)

    async def test() -> None:
        async with serving(worker_connections=2) as (served, listener, _, events):
            held = [opened(listener, address) for address in (POLITE, GREEDY)]
            for sock in held:
                assert (await answer_to(sock)).startswith(b"HTTP/1.1 200 ")
            for _ in range(2):
                held.append(opened(listener, SECOND))
                assert (await received(held[-1])).startswith(b"HTTP/1.1 503 ")
            refused = list(served.worker.refused)
            held.append(opened(listener, SECOND))
            assert (await received(held[-1])).startswith(b"HTTP/1.1 503 ")
            assert (len(refused), list(served.worker.refused)[:-1]) == (2, refused[1:])
            for sock in held:
                sock.close()
            assert [event["status"] for event in events if event["event"] == "request"].count(503) == 3

    run(test())


def test_without_a_share_no_connection_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with crowded(monkeypatch, client_connections_percent=0) as (_, _, connections, _):
            assert (await answer_to(connections[-1])).startswith(b"HTTP/1.1 200 ")

    run(test())


def test_others_have_the_core_while_many_slow_clients_are_disconnected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "_PAUSE_S", 1000.0)

    async def test() -> None:
        async with serving() as (served, listener, _, _):
            silent = [opened(listener, POLITE) for _ in range(8)]
            last = opened(listener, POLITE)
            assert (await answer_to(last)).startswith(b"HTTP/1.1 200 ")  # those before have been accepted
            served.advance(served.worker.settings.headers_timeout_s + 1)
            for sock in silent[:4]:
                assert await received(sock) == b""
            assert len(served.worker.connections) == 4  # that of the last one was idle for too long
            served.advance(1000)
            for sock in silent[4:]:
                assert await received(sock) == b""
            for sock in (*silent, last):
                sock.close()

    run(test())


def test_a_signal_writes_nothing_to_a_loop_that_is_being_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.new_event_loop()
    loop.add_signal_handler(signal.SIGUSR2, int)
    close, woken = loop.close, []

    def watched_close() -> None:
        woken.append(signal.set_wakeup_fd(-1))
        close()

    monkeypatch.setattr(loop, "close", watched_close)
    worker = Worker.__new__(Worker)
    worker.loop, worker.sockets, worker._quick_shutdown = loop, [], False
    worker._cleanup()
    assert (woken, loop.is_closed()) == ([-1], True)


def test_a_signal_is_handled_while_a_worker_waits_for_its_tasks_to_end() -> None:
    loop = asyncio.new_event_loop()

    async def hang() -> None:
        stopped = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR2, stopped.set)
        try:
            await asyncio.Event().wait()
        finally:
            signal.raise_signal(signal.SIGUSR2)
            async with asyncio.timeout(DEADLINE_S):
                await stopped.wait()
            ends.append("by a signal")

    ends: list[str] = []
    task = loop.create_task(hang())
    loop.call_soon(loop.stop)
    loop.run_forever()
    worker = Worker.__new__(Worker)
    worker.loop, worker.sockets, worker._quick_shutdown = loop, [], False
    worker._cleanup()
    assert (ends, task.cancelled(), loop.is_closed()) == (["by a signal"], True, True)


def test_a_client_that_comes_as_another_leaves_has_its_place() -> None:
    async def test() -> None:
        loop, request = asyncio.get_running_loop(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        async with serving(worker_connections=1) as (_, listener, _, _), asyncio.timeout(DEADLINE_S):
            before = None
            for _ in range(10):
                sock = socket.socket()
                sock.setblocking(False)
                with suppress(BlockingIOError):
                    sock.connect(listener.sock.getsockname())
                if before:
                    before.close()  # the worker hears of both in the same turn of its loop
                await loop.sock_sendall(sock, request)
                assert (await loop.sock_recv(sock, 1000)).startswith(b"HTTP/1.1 200 ")
                before = sock
            sock.close()

    run(test())


def test_a_worker_that_is_told_to_stop_answers_first_and_then_ends() -> None:
    async def test() -> None:
        async with serving() as (served, listener, task, events):
            port = listener.sock.getsockname()[1]
            assert (await ask(port)).startswith(b"HTTP/1.1 200 ")
            served.worker.handle_exit_signal()
            assert served.membership.row[Cell.STATE] == State.STOPPING
            async with asyncio.timeout(DEADLINE_S):
                await served.worker._drained
            assert not any(server.is_serving() for server in served.worker.servers)
            for _ in range(20):  # turns of the event loop, and not the second for which gunicorn sleeps
                await asyncio.sleep(0)
            assert task.done()
            assert [event["connections"] for event in events if event["event"] == "worker_stopping"] == [0]

    run(test())


def test_a_worker_goes_on_accepting_connections_while_a_stop_is_announced() -> None:
    async def test() -> None:
        async with serving() as (served, listener, _task, events):
            worker, port = served.worker, listener.sock.getsockname()[1]
            served.membership.scoreboard.announce_stop()
            for _ in range(2):
                async with asyncio.timeout(DEADLINE_S):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
                    writer.close()
                assert (b"Connection: close" in head.split(b"\r\n"), body) == (True, b"hello")
            assert "worker_stopping" not in {event["event"] for event in events}
            worker.handle_exit_signal()
            async with asyncio.timeout(DEADLINE_S):
                await worker._drained
            assert not any(server.is_serving() for server in worker.servers)

    run(test())


def test_a_drain_that_takes_too_long_says_how_many_connections_it_cuts_off() -> None:
    async def test() -> None:
        async with serving(graceful_timeout=7, keepalive=75) as (served, listener, task, events):
            async with asyncio.timeout(DEADLINE_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", listener.sock.getsockname()[1])
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await reader.readuntil(b"hello")
            served.worker.drain()
            served.advance(7)
            async with asyncio.timeout(DEADLINE_S):
                await served.worker._drained
            (event,) = [event for event in events if event["event"] == "worker_drain_timed_out"]
            assert (event["pid"], event["connections"]) == (os.getpid(), 1)
            served.advance(2)
            async with asyncio.timeout(DEADLINE_S):
                await task
            writer.close()
            for connection in tuple(served.worker.connections):
                connection.transport.abort()

    run(test())


def test_the_engine_time_that_clients_have_spent_decays_once_a_second() -> None:
    async def test() -> None:
        async with serving() as (served, _, _, _):
            account = served.membership.page.account("192.0.2.1")
            account.add(Field.SPENT_US, 1000)
            served.advance(1.1)
            async with asyncio.timeout(DEADLINE_S):
                while account.used(Field.SPENT_US) == 1000:  # noqa: ASYNC110 nothing tells
                    await asyncio.sleep(0)
            assert account.used(Field.SPENT_US) == 500

    run(test())


def test_a_fault_over_one_connection_does_not_spare_the_others() -> None:
    async def test() -> None:
        async with serving() as (served, _, _, events):
            seen = asyncio.Event()

            class Faulty:
                def check_rate(self, now_s: float) -> bool:
                    raise RuntimeError

            class Sound:
                def check_rate(self, now_s: float) -> bool:
                    seen.set()
                    return False

            served.worker.connections = dict.fromkeys((Faulty(), Sound()))
            served.advance(1.1)
            async with asyncio.timeout(DEADLINE_S):
                await seen.wait()
            served.advance(1.1)
            seen.clear()
            async with asyncio.timeout(DEADLINE_S):
                await seen.wait()
            assert [event["event"] for event in events].count("sweep_failed") == 2  # once in each sweep
            served.worker.connections = {}

    run(test())


def test_a_fault_of_the_sweep_itself_does_not_end_it() -> None:
    async def test() -> None:
        async with serving() as (served, _, _, events):
            has_raised, seen = asyncio.Event(), asyncio.Event()

            class Faulty:
                def __iter__(self) -> Iterator[object]:
                    has_raised.set()
                    raise RuntimeError

            class Sound:
                def check_rate(self, now_s: float) -> bool:
                    seen.set()
                    return False

            served.worker.connections = Faulty()
            served.advance(1.1)
            async with asyncio.timeout(DEADLINE_S):
                await has_raised.wait()
            served.worker.connections = {Sound()}
            served.advance(1.1)
            async with asyncio.timeout(DEADLINE_S):
                await seen.wait()
            assert ("part_failed", "sweep") in {(event["event"], event.get("part")) for event in events}
            served.worker.connections = set()

    run(test())


def test_a_fault_of_the_drain_does_not_keep_the_worker() -> None:
    async def test() -> None:
        async with gateway(hello) as (served, _):
            served.worker.servers = [SimpleNamespace(sockets=(), close=lambda: 1 / 0)]
            served.worker.drain()
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises(ZeroDivisionError):
                    await served.worker._drained
            assert not served.worker.alive

    run(test())


def test_the_event_loop_serves_others_while_many_connections_are_looked_at() -> None:
    async def test() -> None:
        async with serving() as (served, _, _, _):
            looked, has_ended = 0, asyncio.Event()
            seen: list[int] = []

            class Connection:
                def check_rate(self, now_s: float) -> bool:
                    nonlocal looked
                    looked += 1
                    if looked == 1:
                        look_on()
                    if looked == 1000:
                        has_ended.set()
                    return False

            def look_on() -> None:
                seen.append(looked)
                if looked < 1000:
                    asyncio.get_running_loop().call_soon(look_on)

            served.worker.connections = {Connection() for _ in range(1000)}
            served.advance(1.1)
            async with asyncio.timeout(DEADLINE_S):
                await has_ended.wait()
            steps = [after - before for before, after in pairwise(seen)]
            assert max(steps) <= 4
            served.worker.connections = set()

    run(test())


# --- TLS ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving_tls(directory: Path, connections: int) -> AsyncIterator[tuple[Gateway, Listener]]:
    """Run a worker whose clients speak TLS, and which has so many connections."""
    cert, key = certificate(directory)
    config = {"certfile": cert, "keyfile": key, "worker_connections": connections}
    async with serving(**config) as (served, listener, _, _):
        yield served, listener
        served.worker.drain()


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def answer_over_tls(sock: socket.socket) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection(sock=sock, ssl=trusting(), server_hostname="localhost")
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer


async def connections_are(served: Gateway, count: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while len(served.worker.connections) != count:  # noqa: ASYNC110 nothing tells
            await asyncio.sleep(0)


def test_connections_count_before_their_handshakes_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving_tls(tmp_path, 2) as (served, listener):
            account = served.membership.page.account(GREEDY)
            silent = [opened(listener, GREEDY) for _ in range(2)]
            await connections_are(served, 2)
            assert account.used(Field.CONNECTIONS) == 2
            assert (await answer_over_tls(opened(listener, POLITE))).startswith(b"HTTP/1.1 200 ")
            assert await received(silent[0]) == b""  # evicted
            with pytest.raises(BlockingIOError):
                silent[1].recv(1)
            for sock in silent:
                sock.close()
            await connections_are(served, 0)
            assert account.used(Field.CONNECTIONS) == 0

    run(test())


def test_a_client_that_does_not_close_a_connection_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving_tls(tmp_path, 10) as (served, listener):
            _, writer = await asyncio.open_connection(
                sock=opened(listener, POLITE), ssl=trusting(), server_hostname="localhost"
            )
            writer.transport.pause_reading()  # from now on it notices nothing
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            async with asyncio.timeout(DEADLINE_S):
                while served.worker.connections:
                    for connection in tuple(served.worker.connections):
                        connection.check_rate(served.worker.loop.time())
                    served.advance(0.01)
                    await asyncio.sleep(0)
            writer.transport.abort()

    run(test())


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_a_connection_that_was_closed_over_tls_leaves_no_garbage(tmp_path: Path, sent: bytes) -> None:
    async def test() -> None:
        async with serving_tls(tmp_path, 10) as (served, listener):
            _, writer = await asyncio.open_connection(
                sock=opened(listener, POLITE), ssl=trusting(), server_hostname="localhost"
            )
            await connections_are(served, 1)
            async with asyncio.timeout(DEADLINE_S):
                while (connection := next(iter(served.worker.connections))).transport is None:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                writer.write(sent)
                while connection._received_bytes < len(sent):  # noqa: ASYNC110 nothing tells
                    await asyncio.sleep(0)
            gone = weakref.ref(connection)
            del connection
            writer.transport.abort()
            await connections_are(served, 0)
            async with asyncio.timeout(DEADLINE_S):
                while gone() is not None:  # noqa: ASYNC110 nothing tells
                    await asyncio.sleep(0)

    gc.collect()
    gc.disable()
    try:
        run(test())
    finally:
        gc.enable()


def test_connections_to_be_refused_count_before_their_handshakes_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving_tls(tmp_path, 1) as (served, listener):
            silent = [opened(listener, address) for address in (POLITE, SECOND)]  # served, and to be refused
            await connections_are(served, 1)
            assert (await answer_over_tls(opened(listener, GREEDY))).startswith(b"HTTP/1.1 503 ")
            assert await received(silent[1]) == b""
            for sock in silent:
                sock.close()
            await connections_are(served, 0)
            async with asyncio.timeout(DEADLINE_S):
                while served.worker.refused:  # noqa: ASYNC110 nothing tells
                    await asyncio.sleep(0)

    run(test())


def test_handshakes_under_way_are_waited_for_by_a_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "TICK_S", 0)

    async def test() -> None:
        async with serving_tls(tmp_path, 10) as (served, listener):
            late = opened(listener, POLITE)
            await connections_are(served, 1)
            served.worker.drain()
            for _ in range(20):  # many ticks
                await asyncio.sleep(0)
            assert not any(server.is_serving() for server in served.worker.servers)
            assert not served.worker._drained.done()
            assert b"Connection: close" in await answer_over_tls(late)
            async with asyncio.timeout(DEADLINE_S):
                await served.worker._drained

    run(test())
