"""Connections whose bytes take long to parse leave the loop to others. Work is counted, not timed."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from gunicorn.asgi.protocol import ASGIProtocol
from support.gateway import DEADLINE_S, Client, gateway

import server.gateway.turns
from server.gateway.turns import Turns
from server.settings import Settings
from server.web.envelope import Receive, Scope, Send

GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"1\r\nx\r\n"
LAST_CHUNK = b"0\r\n\r\n"

#: What one iteration of the loop may do.
MOST_CHUNKS = 130


class CountingLoop(asyncio.SelectorEventLoop):
    """An event loop that counts its iterations."""

    iterations = 0

    def _run_once(self) -> None:
        self.iterations += 1
        super()._run_once()  # type: ignore[misc]  # asyncio has no types for this


def run_counting(test: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        runner.run(test)


def iteration() -> int:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CountingLoop)
    return loop.iterations


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Count the chunks that are parsed in each iteration."""
    counts: Counter[int] = Counter()
    on_body = ASGIProtocol._on_body

    def count(protocol: ASGIProtocol, chunk: bytes) -> None:
        counts[iteration()] += 1
        on_body(protocol, chunk)

    monkeypatch.setattr(ASGIProtocol, "_on_body", count)
    return counts


class Recorder:
    """An app that reads a body and answers with its length and the path.

    Attributes:
        pieces: the lengths of the pieces that it was handed.
        starts: how many requests began in each iteration.
        pipelined: those of them that were not the first of their connections.
        paths: of all requests, in the order in which they came.
    """

    def __init__(self) -> None:
        self.pieces: list[int] = []
        self.starts: Counter[int] = Counter()
        self.pipelined: Counter[int] = Counter()
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        self.starts[iteration()] += 1
        self.pipelined[iteration()] += scope["path"] not in {"/0", "/health"}
        total_bytes, more = 0, True
        while more:
            message = await receive()
            self.pieces.append(len(message["body"]))
            total_bytes += self.pieces[-1]
            more = message["more_body"]
        body = b"%s %d" % (scope["path"].encode(), total_bytes)
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


# --- chunks -----------------------------------------------------------------------------------------------


def test_a_body_of_tiny_chunks_reaches_the_app_in_few_pieces() -> None:
    async def test() -> None:
        app = Recorder()
        async with gateway(app) as (served, _):
            client = await served.connect()
            await client.send(CHUNKED + CHUNK * 43_000 + LAST_CHUNK)
            assert (await client.read()).body == b"/ 43000"
            assert len(app.pieces) < 20  # not many more than there were reads

    run_counting(test())


def test_no_iteration_parses_more_than_its_budget(parsed: Counter[int]) -> None:
    async def test() -> None:
        async with gateway(Recorder()) as (served, _):
            clients = [await served.connect() for _ in range(4)]
            body = CHUNKED + CHUNK * 20_000 + LAST_CHUNK
            await asyncio.gather(*(client.send(body) for client in clients))
            for client in clients:
                assert (await client.read()).body == b"/ 20000"
            assert parsed.total() == 80_000
            assert max(parsed.values()) <= MOST_CHUNKS

    run_counting(test())


def test_small_reads_of_many_connections_share_one_budget(parsed: Counter[int]) -> None:
    async def test() -> None:
        async with gateway(Recorder()) as (served, _):
            clients = [await served.connect() for _ in range(20)]
            for client in clients:
                await client.send(CHUNKED)
            for _ in range(5):
                for client in clients:
                    await client.send(CHUNK * 100)
                await asyncio.sleep(0)
            for client in clients:
                await client.send(LAST_CHUNK)
            for client in clients:
                assert (await client.read()).body == b"/ 500"
            assert max(parsed.values()) <= MOST_CHUNKS

    run_counting(test())


def test_long_lines_between_chunks_use_up_a_budget_sooner(parsed: Counter[int]) -> None:
    async def test() -> None:
        async with gateway(Recorder()) as (served, _):
            client = await served.connect()
            await client.send(CHUNKED + b"1;a=%s\r\nx\r\n" % (b"b" * 4000) * 100 + LAST_CHUNK)
            assert (await client.read()).body == b"/ 100"
            assert max(parsed.values()) <= 3

    run_counting(test())


def test_a_health_check_does_not_wait_for_the_chunks_of_a_hundred_clients(parsed: Counter[int]) -> None:
    async def test() -> None:
        async with gateway(Recorder()) as (served, _):
            clients = [await served.connect() for _ in range(100)]
            health = await served.connect()
            for client in clients:  # all of it fits into the buffers of their sockets
                await client.send(CHUNKED + CHUNK * 5000)
            await health.send(GET)
            began = iteration()
            assert (await health.read()).body == b"/health 0"
            assert iteration() - began <= 12
            assert parsed.total() <= 12 * MOST_CHUNKS

    run_counting(test())


def test_waiting_for_a_turn_is_not_slowness_of_the_client() -> None:
    async def test() -> None:
        settings = Settings(min_bytes_per_s=1000, slow_after_s=5, headers_timeout_s=5)
        async with gateway(Recorder(), settings) as (served, _):
            client = await served.connect()
            await client.send(CHUNKED + CHUNK * 5000 + LAST_CHUNK)
            await served.protocols[0].has_received(5000)
            for _ in range(20):
                served.check_rates()
                served.advance(6)
                await asyncio.sleep(0)
            assert (await client.read()).body == b"/ 5000"

    run_counting(test())


def test_a_client_that_leaves_while_it_waits_is_forgotten(parsed: Counter[int]) -> None:
    async def test() -> None:
        async with gateway(Recorder()) as (served, _):
            client = await served.connect()
            await client.send(CHUNKED + CHUNK * 5000)
            (protocol,) = served.protocols
            await protocol.has_received(5000)
            protocol.transport.abort()
            await protocol.lost.wait()
            had = parsed.total()
            for _ in range(10):
                await asyncio.sleep(0)
            assert parsed.total() == had < 5000

    run_counting(test())


def test_a_chunked_body_that_turns_out_to_be_malformed_is_refused_in_its_turn() -> None:
    async def test() -> None:
        async with gateway(Recorder()) as (served, _):
            client = await served.connect()
            await client.send(CHUNKED + CHUNK * 1000 + b"zz\r\n" + CHUNK * 1000)
            answer = await client.read()
            assert (answer.status, answer.headers["connection"]) == (400, "close")

    run_counting(test())


@pytest.mark.parametrize("what", ["chunks", "head", "pipelined"])
def test_a_client_does_not_wait_for_the_many_connections_of_another(parsed: Counter[int], what: str) -> None:
    fields = b"".join(b"x-%d: y\r\n" % at for at in range(98))
    request, answers = {
        "chunks": (CHUNKED + CHUNK * 150 + LAST_CHUNK, 1),
        "head": (GET[:-2] + fields + b"\r\n", 1),
        "pipelined": (GET * 4, 4),
    }[what]

    async def test() -> None:
        async with gateway(Recorder()) as (served, _):
            polite = await served.connect("127.0.0.2")
            greedy = [await served.connect("127.0.0.66") for _ in range(100)]
            for client in greedy:
                await client.send(CHUNKED + CHUNK * 5000)
            for protocol in served.protocols[1:]:
                await protocol.has_received(1)
            before = parsed.total()
            await polite.send(request)
            for _ in range(answers):
                assert (await polite.read()).status == 200
            assert parsed.total() - before <= 20 * MOST_CHUNKS

    run_counting(test())


# --- pipelined requests -------------------------------------------------------------------------------------


def test_pipelined_requests_begin_one_by_one_and_others_are_served_between_them() -> None:
    async def test() -> None:
        app = Recorder()
        async with gateway(app) as (served, _):
            clients = [await served.connect() for _ in range(100)]
            other = await served.connect()
            for client in clients:
                await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % at for at in range(20)))
            answers = asyncio.gather(*(answers_of(client) for client in clients))
            while len(app.paths) < 500:
                had = len(app.paths)
                await other.send(GET)
                assert (await other.read()).body == b"/health 0"
                begun = len(app.paths) - had - app.paths[had:].count("/0")
                assert begun < 50
            async with asyncio.timeout(DEADLINE_S):
                assert await answers == [[b"/%d 0" % at for at in range(20)]] * 100
            # What is not pipelined begins at once.
            assert max(app.starts.values()) >= 100
            assert max(app.pipelined.values()) == 1

    async def answers_of(client: Client) -> list[bytes]:
        return [(await client.read()).body for _ in range(20)]

    run_counting(test())


def test_thousands_of_pipelined_requests_are_answered_in_order() -> None:
    async def test() -> None:
        app = Recorder()
        async with gateway(app) as (served, _):
            client = await served.connect()
            requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(2000))
            sending = asyncio.create_task(client.send(requests))
            for number in range(2000):
                assert (await client.read()).body == b"/%d 0" % number
            await sending

    run_counting(test())


@pytest.fixture
def few_turns(monkeypatch: pytest.MonkeyPatch) -> float:
    """Have the budget renewed so seldom that only the clock of a test lets it be; returns how often."""
    monkeypatch.setattr(server.gateway.turns, "_PERIOD_S", 1000.0)
    return 1000.0


def use_up(turns: Turns) -> None:
    while not turns.is_over:
        turns.count_line(1)


def test_a_request_that_waits_for_its_turn_is_no_idle_connection(few_turns: float) -> None:
    async def test() -> None:
        async with gateway(Recorder(), keepalive=5) as (served, _):
            client = await served.connect()
            use_up(served.worker.turns)
            await client.send(GET * 2)
            assert (await client.read()).body == b"/health 0"
            served.advance(6)
            await client.read_nothing()
            served.advance(few_turns)
            assert (await client.read()).body == b"/health 0"
            await client.read_nothing()
            served.advance(6)
            assert await client.read_to_end() == b""  # it is idle now

    run_counting(test())


def test_half_a_request_that_waits_for_its_turn_is_closed_after_it(few_turns: float) -> None:
    async def test() -> None:
        async with gateway(Recorder(), keepalive=5) as (served, _):
            client = await served.connect()
            use_up(served.worker.turns)
            await client.send(GET + GET[:10])
            assert (await client.read()).body == b"/health 0"
            served.advance(6)
            await client.read_nothing()
            served.advance(few_turns)
            assert await client.read_to_end() == b""

    run_counting(test())


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(GET, id="pipelined"),
        pytest.param(GET[:-2] + b"x: %s\r\n" % (b"y" * 900) * 60, id="half a head"),
        pytest.param(CHUNKED + CHUNK * 5000, id="chunks"),
    ],
)
def test_a_client_that_leaves_while_it_is_not_read_loses_its_place(few_turns: float, rest: bytes) -> None:
    async def test() -> None:
        async with gateway(Recorder()) as (served, _):
            client = await served.connect()
            use_up(served.worker.turns)
            await client.send(GET + rest)
            assert (await client.read()).body == b"/health 0"
            await client.read_nothing()
            client.close()
            (protocol,) = served.protocols
            async with asyncio.timeout(DEADLINE_S):
                while not protocol.lost.is_set():
                    served.check_rates()
                    await asyncio.sleep(0)
            assert not served.worker.connections

    run_counting(test())


def test_what_comes_while_a_pipelined_request_waits_is_put_behind_it() -> None:
    async def test() -> None:
        async with gateway(Recorder()) as (served, _):
            client = await served.connect()
            (protocol,) = served.protocols
            await client.send(GET + b"GET /se")
            assert (await client.read()).body == b"/health 0"
            protocol.data_received(b"cond HTTP/1.1\r\n")
            await client.send(b"Host: a\r\n\r\n")
            assert (await client.read()).body == b"/second 0"

    run_counting(test())


# --- heads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        pytest.param([8_180] * 98, 431, id="800 kB"),
        pytest.param([8_180] * 8 + [200], 431, id="just over 64 KiB"),
        pytest.param([8_000] * 8, 200, id="just below"),
    ],
)
@pytest.mark.parametrize("where", ["head", "trailer"])
def test_the_fields_of_a_request_have_a_limit_together(fields: list[int], status: int, where: str) -> None:
    async def test() -> None:
        async with gateway(Recorder()) as (served, _):
            client = await served.connect()
            lines = b"".join(b"x-%d: %s\r\n" % (at, b"y" * (size - 8)) for at, size in enumerate(fields))
            if where == "head":
                request = GET[:-2] + lines + b"\r\n"
            else:
                request = CHUNKED + CHUNK + b"0\r\n" + lines + b"\r\n"
            sending = asyncio.create_task(client.send(request))
            assert (await client.read()).status == status
            await sending

    run_counting(test())


def test_a_health_check_does_not_wait_for_the_long_heads_of_a_hundred_clients() -> None:
    async def test() -> None:
        app = Recorder()
        async with gateway(app) as (served, _):
            clients = [await served.connect() for _ in range(100)]
            health = await served.connect()
            head = GET.replace(b"health", b"long")[:-2] + b"".join(b"x-%d: y\r\n" % at for at in range(98))
            for client in clients:
                await client.send(head + b"\r\n")
            await health.send(GET)
            began = iteration()
            assert (await health.read()).body == b"/health 0"
            assert iteration() - began <= 12
            assert len(app.paths) < 30
            for client in clients:
                assert (await client.read()).body == b"/long 0"
            assert max(app.starts.values()) < 50

    run_counting(test())


def test_a_long_head_on_a_kept_connection_is_counted_from_its_beginning() -> None:
    async def test() -> None:
        async with gateway(Recorder()) as (served, _):
            client = await served.connect()
            for _ in range(3):
                await client.send(GET[:-2] + b"x: %s\r\n" % (b"y" * 8000) * 4 + b"\r\n")
                assert (await client.read()).status == 200

    run_counting(test())


# --- the policy ---------------------------------------------------------------------------------------------


def test_who_waits_has_turns_in_order_and_the_budget_is_renewed() -> None:
    async def test() -> None:
        turns, taken, ended = Turns(), [], asyncio.Event()

        def turn(name: str) -> None:
            taken.append(name)
            assert not turns.is_over
            while not turns.is_over:
                turns.count_line(1)
            if len(taken) < 5:
                turns.go_on(name, lambda: turn(name))
            elif len(taken) == 6:
                ended.set()

        turns.go_on("a", lambda: turn("a"))
        assert taken == ["a"]  # at once
        turns.go_on("b", lambda: turn("b"))
        assert turns.is_over
        assert taken == ["a"]
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()
        assert taken == ["a", "a", "b", "a", "b", "a"]

    run_counting(test())


def test_a_client_with_many_connections_has_every_second_turn_at_most_while_another_waits() -> None:
    async def test() -> None:
        turns, taken, ended = Turns(), [], asyncio.Event()

        def turn(name: str) -> None:
            taken.append(name)
            while not turns.is_over:
                turns.count_line(1)
            if taken.count("b") < 3:
                turns.go_on(name, lambda: turn(name))
            else:
                ended.set()

        turn("a")
        for _ in range(1000):
            turns.go_on("a", lambda: turn("a"))
        turns.begin_request("b", lambda: turn("b"))
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()
        assert taken == ["a", "a", "b", "a", "b", "a", "b"]

    run_counting(test())


def test_a_pipelined_request_leaves_something_for_a_short_body_in_chunks() -> None:
    async def test() -> None:
        turns, begun, ended = Turns(), [], asyncio.Event()
        turns.begin_request("a", lambda: begun.append("a"))
        turns.begin_request("b", ended.set)
        turns.go_on("c", lambda: begun.append("lines of c"))
        assert begun == ["a", "lines of c"]
        for _ in range(20):
            turns.count_line(8)
        assert not turns.is_over
        assert not ended.is_set()
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()

    run_counting(test())


def test_a_pipelined_request_begins_in_every_second_period() -> None:
    async def test() -> None:
        turns, begun_s, ended = Turns(), [], asyncio.Event()
        loop = asyncio.get_running_loop()
        for _ in range(5):
            turns.begin_request("a", lambda: begun_s.append(loop.time()))
        turns.begin_request("a", ended.set)
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()
        least_s = 2 * server.gateway.turns._PERIOD_S
        assert min(after - before for before, after in pairwise(begun_s)) >= least_s * 0.99

    run_counting(test())


def test_lines_do_not_wait_for_the_pipelined_requests_of_other_clients() -> None:
    async def test() -> None:
        turns, taken, ended = Turns(), [], asyncio.Event()
        use_up(turns)
        for name in ("r1", "r2", "r3"):
            turns.begin_request(name, partial(taken.append, name))
        turns.go_on("b", partial(taken.append, "b"))
        turns.begin_request("r4", ended.set)
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()
        assert taken == ["b", "r1", "r2", "r3"]

    run_counting(test())


def test_a_request_whose_client_has_left_takes_no_turn_from_others() -> None:
    async def test() -> None:
        turns, taken, ended = Turns(), [], asyncio.Event()
        use_up(turns)
        turns.begin_request("gone", lambda: False)
        turns.begin_request("b", partial(taken.append, "b"))
        turns.go_on("c", ended.set)
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()
        assert taken == ["b"]

    run_counting(test())


def test_a_connection_that_is_lost_while_its_request_waits_takes_no_turn_from_others(
    few_turns: float,
) -> None:
    async def test() -> None:
        async with gateway(Recorder()) as (served, _):
            use_up(served.worker.turns)
            lost, waiting = await served.connect("127.0.0.2"), await served.connect("127.0.0.3")
            for client in (lost, waiting):
                await client.send(GET * 2)
                assert (await client.read()).body == b"/health 0"
            served.protocols[0].transport.abort()
            await served.protocols[0].lost.wait()
            served.advance(few_turns)
            assert (await waiting.read()).body == b"/health 0"

    run_counting(test())


def test_what_waits_for_later_costs_nothing_now(few_turns: float) -> None:
    looked_up: list[object] = []

    class Address:
        def __hash__(self) -> int:
            looked_up.append(self)
            return id(self)

    async def test() -> None:
        loop = asyncio.get_running_loop()
        turns, taken, begun = Turns(), asyncio.Event(), asyncio.Event()
        clock = loop.time
        use_up(turns)
        turns.go_on(Address(), taken.set)
        turns.begin_request(Address(), begun.set)
        for _ in range(1000):
            turns.begin_request(Address(), lambda: None)
        looked_up.clear()
        loop.time = lambda: clock() + few_turns  # type: ignore[method-assign]
        async with asyncio.timeout(DEADLINE_S):
            await taken.wait()
            await begun.wait()
        assert len(looked_up) < 20

    run_counting(test())


def test_a_turn_that_fails_takes_no_turn_from_others() -> None:
    async def test() -> None:
        turns, ended = Turns(), asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        use_up(turns)
        turns.go_on("a", lambda: next(iter(())))
        turns.go_on("a", ended.set)
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()

    run_counting(test())
