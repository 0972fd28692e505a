"""One connection: what it answers, logs and counts, request by request."""

import asyncio
import errno
import gc
import json
import os
import weakref
from collections.abc import Callable, Hashable
from io import FileIO

import pytest
from support.gateway import Answer, Event, Gateway, gateway, run

from server.admission import Admission
from server.cluster.ledger import Field
from server.cluster.roles import INTERACTIVE
from server.cluster.scoreboard import Cell
from server.errors import ServiceUnavailable
from server.gateway.linger import LINGER_S, LINGER_UNREAD_S
from server.gateway.turns import Turns
from server.settings import Settings
from server.web.envelope import App, Receive, Scope, Send
from server.web.exchange import Exchange

BODY = b"x" * 100
GET = b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n"


def post(body: bytes = BODY, *, path: bytes = b"/first", fields: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: a\r\n%sContent-Length: %d\r\n\r\n%s" % (path, fields, len(body), body)


async def respond(send: Send, body: bytes, status: int = 200, *fields: tuple[bytes, bytes]) -> None:
    headers = [(b"content-length", b"%d" % len(body)), *fields]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def whole_body(receive: Receive) -> list[bytes]:
    """Read the body; returns its pieces."""
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return [piece for piece in pieces if piece]


async def say_length(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole body and say how long it was."""
    await respond(send, b"%d" % sum(map(len, await whole_body(receive))))


class Held:
    """An app that answers when it is told to.

    Attributes:
        is_asked: set when a request has come.
        may_answer: awaited before the answer.
    """

    def __init__(self, body: bytes = b"ok") -> None:
        self.is_asked, self.may_answer = asyncio.Event(), asyncio.Event()
        self.is_cancelled = asyncio.Event()
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.is_asked.set()
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.is_cancelled.set()
            raise
        await respond(send, self._body)


def lines(events: list[Event]) -> list[tuple[str, str, int, int]]:
    return [
        (line["request_id"], line["path"], line["status"], line["bytes_in"])
        for line in events
        if line["event"] == "request"
    ]


def detail(answer: Answer) -> str:
    text: str = json.loads(answer.body)["detail"]
    return text


# --- One request, one owner ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "reason", "path"),
    [
        pytest.param(b"GET /second HTTP/1.1\r\n", "there is no Host header", "/second", id="no host"),
        pytest.param(
            b"GET /second HTTP/1.1\r\nHost: a b\r\n",
            "the Host header is not a host",
            "/second",
            id="odd host",
        ),
        pytest.param(
            b"GET /second#part HTTP/1.1\r\nHost: a\r\n",
            "the target has a fragment",
            "/second#part",
            id="fragment",
        ),
        pytest.param(
            b"GET http://[/second HTTP/1.1\r\nHost: a\r\n",
            "the target is no URL",
            "http://[/second",
            id="odd target",
        ),
        pytest.param(
            b"GET /second HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n",
            "Contradictory scheme headers",
            "/second",
            id="two schemes",
        ),
    ],
)
@pytest.mark.parametrize("together", [False, True], ids=["one by one", "pipelined"])
def test_a_refused_head_on_a_kept_connection_is_a_request_of_its_own(
    head: bytes, reason: str, path: str, together: bool
) -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, events):
            client = await served.connect()
            first = post(fields=b"X-Request-ID: first\r\n")
            second = head + b"X-Request-ID: second\r\n\r\n"
            await client.send(first + second if together else first)
            first_answer = await client.read()
            if not together:
                await client.send(second)
            second_answer = await client.read()
            assert (first_answer.status, first_answer.headers["x-request-id"]) == (200, "first")
            assert (second_answer.status, second_answer.headers["x-request-id"]) == (400, "second")
            assert reason in detail(second_answer)
            assert b'"request_id": "second"' in second_answer.body
            assert lines(events) == [("first", "/first", 200, 100), ("second", path, 400, 0)]
            row = served.membership.row
            assert (row[Cell.REQUESTS], row[Cell.BYTES_IN]) == (2, 100)

    run(test())


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n", id="served"),
        pytest.param(b"GET / HTTP/1.1\r\n", id="refused"),
    ],
)
def test_a_proxy_names_the_client_of_each_request_in_the_log(head: bytes) -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, events):
            client = await served.connect()
            await client.send(post(fields=b"X-Forwarded-For: 192.0.2.7\r\n"))
            await client.read()
            await client.send(head + b"X-Forwarded-For: 198.51.100.1, 2001:db8::7\r\n\r\n")
            await client.read()
            logged = [event["client"] for event in events if event["event"] == "request"]
            assert logged == ["192.0.2.7", "2001:db8::7"]

    run(test())


def test_clients_behind_one_connection_of_a_proxy_have_a_share_each() -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, _):
            membership = served.membership
            shares = served.worker.shares
            admission = Admission(
                membership.scoreboard, membership.row, max_wait_s=10, max_held_bytes=2000, shares=shares
            )

            async def app(scope: Scope, receive: Receive, send: Send) -> None:
                exchange = Exchange.of(scope)
                try:
                    with admission.admit(None, client=exchange.client or "") as ticket:
                        ticket.arrive(100)
                        await respond(send, b"%d" % ticket.held_bytes)
                except ServiceUnavailable as error:
                    await respond(send, str(error.share).encode(), 503)

            served.serve(lambda _: app)
            bucket, greedy = membership.ledger.bucket, "192.0.2.7"
            polite = next(
                address for address in ("192.0.2.8", "192.0.2.9") if bucket(address) != bucket(greedy)
            )
            client = await served.connect("127.0.0.1")
            with admission.admit(None, client=greedy) as held:
                held.arrive(700)  # of a thousand for uploads
                answers = []
                for address in (greedy, polite, greedy):
                    await client.send(post(fields=f"X-Forwarded-For: {address}\r\n".encode()))
                    answers.append(await client.read())
            assert [(answer.status, answer.body) for answer in answers] == [
                (503, b"bytes"),
                (200, b"100"),
                (503, b"bytes"),
            ]

    run(test())


def test_a_head_that_cannot_be_parsed_gets_an_id_of_its_own() -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, events):
            client = await served.connect()
            await client.send(post(fields=b"X-Request-ID: first\r\n") + b"NONSENSE\r\n\r\n")
            await client.read()
            answer = await client.read()
            assert answer.status == 400
            assert answer.headers["x-request-id"] not in {"", "first"}
            assert lines(events)[1] == (answer.headers["x-request-id"], "-", 400, 0)

    run(test())


def test_a_body_that_cannot_be_parsed_ends_the_request_that_it_belongs_to() -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, events):
            client = await served.connect()
            await client.send(
                b"POST /chunks HTTP/1.1\r\nHost: a\r\nX-Request-ID: it\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"3\r\nabc\r\nzz\r\n"
            )
            answer = await client.read()
            assert (answer.status, answer.headers["x-request-id"]) == (400, "it")
            await client.read_to_end()
            assert [line[:3] for line in lines(events)] == [("it", "/chunks", 400)]
            assert served.membership.row[Cell.REQUESTS] == 1

    run(test())


def test_an_app_that_raises_is_answered_and_counted_once() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("secret")

    async def test() -> None:
        async with gateway(fail) as (served, events):
            client = await served.connect()
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: it\r\n\r\n")
            answer = await client.read()
            assert (answer.status, answer.headers["x-request-id"]) == (500, "it")
            assert b"secret" not in answer.body
            assert lines(events) == [("it", "/", 500, 0)]

    run(test())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, events):
            client = await served.connect()
            sizes = (1, 0, 70_000, 3)
            await client.send(b"".join(post(b"x" * size, path=b"/%d" % size) for size in sizes))
            assert [(await client.read()).body for _ in sizes] == [b"%d" % size for size in sizes]
            assert [(path, bytes_in) for _, path, _, bytes_in in lines(events)] == [
                (f"/{size}", size) for size in sizes
            ]

    run(test())


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/flip?a=b", "/flip"),
        (b"http://other/flip", "/flip"),
        (b"http://other", "/"),
        (b"/%1b[31m", "/\\x1b[31m"),
    ],
)
def test_every_form_of_target_is_understood(target: bytes, path: str) -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, events):
            client = await served.connect()
            await client.send(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % target)
            assert (await client.read()).status == 200
            assert [line[1] for line in lines(events)] == [path]

    run(test())


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query", "host"),
    [
        (b"http://b/flip?c=d", "/flip", b"/flip", b"c=d", b"b"),
        (b"http://b:80?c=d", "/", b"/", b"c=d", b"b:80"),
        (b"http://b/%3Fc=d", "/?c=d", b"/%3Fc=d", b"", b"b"),
        (b"http://b/%2F/..?%3F", "///..", b"/%2F/..", b"%3F", b"b"),
        (b"HTTPS://[::1]:443/%C3%A4", "/ä", b"/%C3%A4", b"", b"[::1]:443"),
        (b"/flip?http://b/", "/flip", b"/flip", b"http://b/", b"a"),
    ],
)
def test_an_absolute_target_is_split_before_it_is_decoded_and_its_host_counts(
    target: bytes, path: str, raw_path: bytes, query: bytes, host: bytes
) -> None:
    scopes = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await respond(send, b"ok")

    async def test() -> None:
        async with gateway(note) as (served, _):
            client = await served.connect()
            await client.send(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % target)
            assert (await client.read()).status == 200

    run(test())
    (scope,) = scopes
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == (path, raw_path, query)
    assert [value for name, value in scope["headers"] if name == b"host"] == [host]


def test_an_unknown_method_gets_501_and_a_known_one_reaches_the_app() -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, events):
            client = await served.connect()
            for method in (b"PATCH", b"TRACE", b"BREW"):
                await client.send(
                    b"%s / HTTP/1.1\r\nHost: a\r\nX-Request-ID: %s\r\n\r\n" % (method, method.lower())
                )
            assert [(await client.read()).status for _ in range(2)] == [200, 200]
            answer = await client.read()
            assert (answer.status, answer.headers["connection"]) == (501, "close")
            assert "the method BREW is unknown" in detail(answer)
            assert lines(events)[-1] == ("brew", "/", 501, 0)

    run(test())


@pytest.mark.parametrize(
    ("method", "status"),
    [
        *((method, 501) for method in (b"get", b"Purge", b"OP", b"F!", b"G" * 30)),
        *((method, 400) for method in (b"G@T", b"", b"G\xe4T")),
        (b"G" * 5000, 414),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_every_token_is_a_method_that_may_be_unknown(method: bytes, status: int) -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, events):
            client = await served.connect()
            await client.send(b"%s / HTTP/1.1\r\nHost: a\r\nX-Request-ID: b\r\n\r\n" % method)
            answer = await client.read()
            assert (answer.status, answer.headers["connection"]) == (status, "close")
            assert lines(events)[-1][2] == status

    run(test())


@pytest.mark.parametrize(
    "coding", [b"gzip, chunked", b"Deflate, Chunked", b"identity, chunked", b"x-gzip, chunked"]
)
def test_a_body_in_another_coding_than_chunked_gets_501_and_does_not_reach_the_app(coding: bytes) -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, events):
            client = await served.connect()
            await client.send(
                b"POST / HTTP/1.1\r\nHost: a\r\nX-Request-ID: b\r\nTransfer-Encoding: %s\r\n\r\n" % coding
            )
            await client.send(b"5\r\nhello\r\n0\r\n\r\n")
            answer = await client.read()
            assert (answer.status, answer.headers["connection"]) == (501, "close")
            assert "no transfer coding but chunked" in detail(answer)
            assert lines(events)[-1][2] == 501

    run(test())


def test_an_upgrade_is_ignored() -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, _):
            client = await served.connect()
            await client.send(
                b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            assert (await client.read()).status == 200

    run(test())


# --- Uploads ------------------------------------------------------------------------------------------------


def sinking(file: FileIO, pieces: list[bytes]) -> Callable[[Gateway], App]:
    """Make an app that admits a body, reads it piece by piece, and opens the sink after each."""

    def app_of(served: Gateway) -> App:
        membership = served.membership
        admission = Admission(membership.scoreboard, membership.row, max_wait_s=10, max_held_bytes=1 << 30)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            exchange = Exchange.of(scope)
            length = next(int(value) for name, value in scope["headers"] if name == b"content-length")
            exchange.ticket = exchange.resources.enter_context(admission.admit(length))
            more = True
            try:
                while more:
                    message = await receive()
                    pieces.append(message["body"])
                    more = message["more_body"]
                    if file.name != "/dev/full":
                        file.write(message["body"])
                    exchange.sink.open(file)
            except OSError as error:
                await respond(send, os.strerror(error.errno or 0).encode(), 503)
            else:
                await respond(send, b"%d" % exchange.body_bytes)

        return app

    return app_of


def test_the_upload_sink_takes_the_body_past_the_app() -> None:
    async def test() -> None:
        body = os.urandom(3_000_000)
        pieces: list[bytes] = []
        with FileIO(os.memfd_create("upload"), "r+b") as file:
            async with gateway(say_length) as (served, events):
                served.serve(sinking(file, pieces))
                client = await served.connect()
                await client.send(post(body) + post(body, path=b"/next"))
                answers = [await client.read(), await client.read()]
                assert [answer.body for answer in answers] == [b"3000000", b"3000000"]
                file.seek(0)
                assert file.read() == body + body
                assert sum(map(len, pieces)) < len(body)  # of both: most of them went past the app
                assert [bytes_in for *_, bytes_in in lines(events)] == [3_000_000, 3_000_000]

    run(test())


def test_bytes_that_wait_for_the_app_stay_in_front_of_those_that_could_go_past_it() -> None:
    async def test() -> None:
        body = os.urandom(300_000)
        has_opened, may_go_on = asyncio.Event(), asyncio.Event()
        with FileIO(os.memfd_create("upload"), "r+b") as file:
            async with gateway(say_length) as (served, _):

                def app_of(served: Gateway) -> App:
                    admission = Admission(
                        served.membership.scoreboard,
                        served.membership.row,
                        max_wait_s=10,
                        max_held_bytes=1 << 30,
                    )

                    async def app(scope: Scope, receive: Receive, send: Send) -> None:
                        exchange = Exchange.of(scope)
                        exchange.ticket = exchange.resources.enter_context(admission.admit(len(body)))
                        more = True
                        while more:
                            message = await receive()
                            if not message["body"]:
                                continue  # the envelope's first event
                            file.write(message["body"])
                            exchange.sink.open(file)
                            has_opened.set()
                            await may_go_on.wait()
                            more = message["more_body"]
                        await respond(send, b"done")

                    return app

                served.serve(app_of)
                client = await served.connect()
                request = post(body)
                await client.send(request[:-290_000])
                await has_opened.wait()  # the app is busy with the first piece
                (protocol,) = served.protocols
                sink = protocol._exchange.sink
                sink.close()
                await client.send(request[-290_000:-200_000])
                await protocol.has_received(len(request) - 200_000)
                sink.open(file)  # as an app would that opens it too early
                await client.send(request[-200_000:-100_000])
                await protocol.has_received(len(request) - 100_000)
                may_go_on.set()
                await client.send(request[-100_000:])
                assert (await client.read()).body == b"done"
                file.seek(0)
                assert file.read() == body

    run(test())


def test_an_upload_sink_without_room_fails_its_request_alone() -> None:
    async def test() -> None:
        pieces: list[bytes] = []
        with FileIO("/dev/full", "r+b") as full:
            async with gateway(say_length) as (served, events):
                served.serve(sinking(full, pieces))
                client = await served.connect()
                request = post(b"x" * 1000)
                await client.send(request[:-900])
                await served.protocols[0].has_received(len(request) - 900)
                await client.read_nothing()  # the app opens the sink
                await client.send(request[-900:-400])
                answer = await client.read()
                assert (answer.status, answer.body) == (503, os.strerror(errno.ENOSPC).encode())
                assert answer.headers["connection"] == "close"
                served.serve(lambda _: say_length)
                other = await served.connect()
                await other.send(post())
                assert (await other.read()).body == b"100"
                assert [status for _, _, status, _ in lines(events)] == [503, 200]

    run(test())


def test_a_body_may_pause_for_longer_than_gunicorn_s_timeout() -> None:
    async def test() -> None:
        async with gateway(say_length, timeout=2) as (served, _):
            client = await served.connect()
            sent = post()
            await client.send(sent[:-50])
            await served.protocols[0].has_received(len(sent) - 50)
            await client.read_nothing()
            served.advance(60)
            await client.read_nothing()
            await client.send(sent[-50:])
            answer = await client.read()
            assert (answer.status, answer.body) == (200, b"100")

    run(test())


def test_a_slow_upload_is_answered_and_told_why() -> None:
    async def test() -> None:
        settings = Settings(min_bytes_per_s=1000, slow_after_s=5)
        async with gateway(failing_with_its_own_words, settings) as (served, _):
            client = await served.connect()
            await client.send(post()[:-50])
            await served.protocols[0].has_received(len(post()) - 50)
            served.check_rates()
            served.advance(6)
            served.check_rates()
            answer = await client.read()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert b"1000 bytes per second for 5 s" in answer.body

    run(test())


async def failing_with_its_own_words(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await whole_body(receive)
    except Exception as error:  # noqa: BLE001 the answer says which
        await respond(send, str(error).encode(), 408)


def test_the_rate_of_an_upload_reaches_admission() -> None:
    async def test() -> None:
        app = Held()
        async with gateway(app) as (served, _):
            client = await served.connect()
            await client.send(post(b"x" * 1_000_000)[:-900_000])
            protocol = served.protocols[0]
            await protocol.has_received(100_000)
            admission = Admission(
                served.membership.scoreboard, served.membership.row, max_wait_s=10, max_held_bytes=1 << 30
            )
            with admission.admit(1_000_000) as ticket:
                protocol._exchange.ticket = ticket
                ticket.arrive(100_000)
                assert ticket.held_bytes == 1_000_000
                served.check_rates()
                served.advance(1)
                served.check_rates()  # nothing came meanwhile, so nothing more is expected
                assert ticket.held_bytes < 1_000_000

    run(test())


def test_slow_headers_are_answered_and_silence_is_not() -> None:
    async def test() -> None:
        async with gateway(say_length, Settings(headers_timeout_s=10)) as (served, events):
            silent, slow = await served.connect(), await served.connect()
            await slow.send(b"GET / HTTP/1.1\r\nHos")
            await served.protocols[1].has_received(10)
            served.advance(10.5)
            served.check_rates()
            assert await silent.read_to_end() == b""
            answer = await slow.read()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            stages = [event["stage"] for event in events if event["event"] == "slow_client_disconnected"]
            assert stages == ["headers", "headers"]

    run(test())


def test_the_time_for_headers_begins_after_the_handshake() -> None:
    async def test() -> None:
        async with gateway(say_length, Settings(headers_timeout_s=10)) as (served, events):
            client = await served.connect(handshake_s=8)
            served.advance(8)
            served.check_rates()
            await client.send(GET)
            assert (await client.read()).status == 200
            late = await served.connect(handshake_s=8)
            served.advance(10.5)
            served.check_rates()
            assert await late.read_to_end() == b""
            assert [event["event"] for event in events].count("slow_client_disconnected") == 1

    run(test())


def test_a_slow_download_is_reset() -> None:
    async def test() -> None:
        app = Held(b"x" * 5_000_000)
        async with gateway(app, Settings(min_bytes_per_s=1000, slow_after_s=5)) as (served, events):
            client = await served.connect()
            await client.send(GET)
            await app.is_asked.wait()
            app.may_answer.set()
            await client.is_readable()
            for _ in range(3):
                served.check_rates()
                served.advance(6)
            assert len(await client.read_to_end()) < 5_000_000
            (event,) = [event for event in events if event["event"] == "slow_client_disconnected"]
            assert event["stage"] == "download"

    run(test())


def test_a_result_that_is_held_for_too_long_is_cut_however_fast_it_is_read() -> None:
    async def test() -> None:
        app = Held(b"x" * 5_000_000)
        settings = Settings(min_bytes_per_s=1, slow_after_s=1000, download_timeout_s=30)
        async with gateway(app, settings) as (served, events):
            admission = Admission(
                served.membership.scoreboard, served.membership.row, max_wait_s=10, max_held_bytes=1 << 30
            )
            clients = [await served.connect(), await served.connect()]
            with admission.admit(None) as ticket:
                ticket.deliver(5_000_000, 0, INTERACTIVE)
                for client, protocol in zip(clients, served.protocols, strict=True):
                    await client.send(GET)
                    await app.is_asked.wait()
                    if protocol is served.protocols[0]:  # the other answer is not held in memory: a stream
                        protocol._exchange.ticket = ticket
                app.may_answer.set()
                for client in clients:
                    await client.is_readable()
                served.check_rates()
                served.advance(29)
                served.check_rates()
                assert not events
                served.advance(2)
                served.check_rates()
                assert len(await clients[0].read_to_end()) < 5_000_000
            assert (await clients[1].read()).body == b"x" * 5_000_000
            (event,) = [event for event in events if event["event"] == "slow_client_disconnected"]
            assert event["stage"] == "download"

    run(test())


def results(
    served: Gateway, size: int, are_written: "asyncio.Queue[None]", stream_bytes: int | None = None
) -> App:
    """Make an app that answers `POST` with a result that is admitted, and anything else at once.

    Args:
        size: of the result, in bytes.
        are_written: gets an item when a request is over and has given back what it held.
        stream_bytes: how much it answers to anything else; None for `ok`.
    """
    other = b"ok" if stream_bytes is None else bytes(stream_bytes)
    membership = served.membership
    admission = Admission(
        membership.scoreboard,
        membership.row,
        max_wait_s=10,
        max_held_bytes=1 << 30,
        shares=served.worker.shares,
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        try:
            if scope["method"] == "POST":
                with admission.admit(0, client=GREEDY) as ticket:
                    exchange.ticket = ticket
                    ticket.deliver(size, 0, INTERACTIVE)
                    await respond(send, bytes(size))
            else:
                await respond(send, other)
        finally:
            are_written.put_nowait(None)

    return app


@pytest.mark.parametrize("behind", [b"", GET])
def test_what_a_client_has_not_read_of_a_result_counts_until_it_has(behind: bytes) -> None:
    async def test() -> None:
        size = 220_000  # the kernel and the transport take all of it
        async with gateway(say_length) as (served, _):
            are_written: asyncio.Queue[None] = asyncio.Queue()
            served.serve(lambda served: results(served, size, are_written))
            account = served.membership.page.account(GREEDY)

            def held() -> list[int]:
                served.check_rates()
                return [
                    account.used(Field.HELD_BYTES),
                    served.membership.scoreboard.total(Cell.HELD_BYTES),
                ]

            client = await served.connect()
            await client.send(post(b"", path=b"/result") + behind)
            async with asyncio.timeout(20):
                for _ in range(2 if behind else 1):
                    await are_written.get()
            one, all_ = held()
            assert one == all_ >= size
            assert (await client.read()).body == bytes(size)
            if behind:
                assert (await client.read()).body == b"ok"
            served.protocols[0].cost_of_closing()  # eviction looks at it before the next request
            await client.send(GET)
            assert (await client.read()).body == b"ok"
            async with asyncio.timeout(20):
                await are_written.get()
            assert held() == [0, 0]
            await client.send(post(b"", path=b"/result"))
            async with asyncio.timeout(20):
                await are_written.get()
            assert all(size <= each < 1.1 * size for each in held())  # the kernel counts some of its own
            client.close()
            async with asyncio.timeout(20):
                await served.protocols[0].lost.wait()
            assert held() == [0, 0]

    run(test())


def test_the_end_of_a_result_must_be_read_in_time_too() -> None:
    async def test() -> None:
        size = 220_000
        settings = Settings(min_bytes_per_s=1, slow_after_s=1000, download_timeout_s=30)
        async with gateway(say_length, settings) as (served, events):
            are_written: asyncio.Queue[None] = asyncio.Queue()
            served.serve(lambda served: results(served, size, are_written))
            client = await served.connect()
            await client.send(post(b"", path=b"/result"))
            async with asyncio.timeout(20):
                await are_written.get()
            served.check_rates()
            served.advance(29)
            served.check_rates()
            assert "slow_client_disconnected" not in {event["event"] for event in events}
            served.advance(2)
            served.check_rates()
            assert len(await client.read_to_end()) < size
            (event,) = [event for event in events if event["event"] == "slow_client_disconnected"]
            assert event["stage"] == "download"
            assert served.membership.scoreboard.total(Cell.HELD_BYTES) == 0

    run(test())


def test_a_stream_behind_a_result_holds_nothing_and_has_no_end_in_time() -> None:
    async def test() -> None:
        result, stream = 220_000, 6_000_000
        settings = Settings(min_bytes_per_s=1, slow_after_s=1000, download_timeout_s=30)
        async with gateway(say_length, settings) as (served, events):
            are_written: asyncio.Queue[None] = asyncio.Queue()
            served.serve(lambda served: results(served, result, are_written, stream))
            scoreboard = served.membership.scoreboard
            client = await served.connect()
            await client.send(post(b"", path=b"/result") + GET)
            async with asyncio.timeout(20):
                await are_written.get()
            await served.protocols[0].has_written(result + stream)
            served.check_rates()
            # Headers and what else is on its way count too, but no byte of the stream does.
            assert result <= scoreboard.total(Cell.HELD_BYTES) < 1.1 * result
            assert len((await client.read()).body) == result
            for _ in range(4):  # it reads the stream in two minutes
                await client.take(1_000_000)
                served.check_rates()
                assert scoreboard.total(Cell.HELD_BYTES) == 0
                served.advance(29)
            assert "slow_client_disconnected" not in {event["event"] for event in events}
            assert len((await client.read()).body) == stream

    run(test())


def test_results_that_are_read_one_by_one_count_until_each_was_read() -> None:
    async def test() -> None:
        size = 100_000
        async with gateway(say_length) as (served, _):
            are_written: asyncio.Queue[None] = asyncio.Queue()
            served.serve(lambda served: results(served, size, are_written))
            scoreboard = served.membership.scoreboard
            client = await served.connect()
            for _ in range(3):
                await client.send(post(b"", path=b"/result"))
                async with asyncio.timeout(20):
                    await are_written.get()
                served.check_rates()
            for unread in (3, 2, 1):
                served.check_rates()
                held = scoreboard.total(Cell.HELD_BYTES)
                assert (unread - 1) * size < held < 1.1 * unread * size  # it reads ahead
                assert (await client.read()).body == bytes(size)
            served.check_rates()
            assert scoreboard.total(Cell.HELD_BYTES) == 0

    run(test())


# --- The life of a connection -------------------------------------------------------------------------------


def test_one_connection_too_many_is_refused_and_takes_no_place() -> None:
    async def test() -> None:
        async with gateway(say_length, worker_connections=1) as (served, events):
            first, second = await served.connect(), await served.connect()
            answer = await second.read()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert "too many connections" in detail(answer)
            assert len(served.worker.connections) == 1
            await first.send(GET)
            assert (await first.read()).status == 200
            assert [status for _, _, status, _ in lines(events)] == [503, 200]

    run(test())


GREEDY = "127.0.0.66"
POLITE, SECOND, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"


def test_when_connections_run_out_the_greediest_client_loses_an_idle_one() -> None:
    async def test() -> None:
        app = Held()
        async with gateway(app, worker_connections=3) as (served, events):
            busy, idle, half = [await served.connect(GREEDY) for _ in range(3)]
            app.may_answer.set()
            await idle.send(GET)
            await idle.read()
            app.may_answer.clear()
            app.is_asked.clear()
            await busy.send(GET)
            await app.is_asked.wait()
            await half.send(GET[:20])
            await served.protocols[2].has_received(20)
            # It gets no fourth one.
            assert (await (await served.connect(GREEDY)).read()).status == 503
            await half.read_nothing()
            polite = [await served.connect(address) for address in (POLITE, SECOND)]
            assert await idle.read_to_end() == b""
            assert await half.read_to_end() == b""
            assert len(served.worker.connections) == 3
            assert (await (await served.connect(THIRD)).read()).status == 503  # no client has more than one
            app.may_answer.set()
            for client in (busy, *polite):
                if client is not busy:
                    await client.send(GET)
                assert (await client.read()).status == 200
            (evicted,) = [event for event in events if event["event"] == "connections_evicted"]
            assert (evicted["client"], evicted["idle"], evicted["headers"]) == (GREEDY, 1, 1)
        page = served.membership.page
        assert [page.account(client).used(Field.CONNECTIONS) for client in (GREEDY, POLITE)] == [0, 0]

    run(test())


def test_when_connections_run_out_a_transfer_that_has_just_begun_is_not_taken_for_a_slow_one() -> None:
    async def test() -> None:
        request = post(bytes(100_000))
        async with gateway(say_length, worker_connections=2) as (served, events):
            slow = await served.connect(GREEDY)
            await slow.send(request[:1000])
            await served.protocols[0].has_received(1000)
            served.check_rates()  # from now on it is measured
            served.advance(5)
            await slow.send(request[1000:50_000])
            await served.protocols[0].has_received(50_000)
            served.check_rates()
            fast = await served.connect(GREEDY)
            await fast.send(request[:1000])
            await served.protocols[1].has_received(1000)
            polite = await served.connect(POLITE)
            assert await slow.read_to_end() == b""
            await fast.send(request[1000:])
            assert (await fast.read()).body == b"100000"
            await polite.send(GET)
            assert (await polite.read()).status == 200
            (evicted,) = [event for event in events if event["event"] == "connections_evicted"]
            assert evicted["upload"] == 1

    run(test())


def test_when_connections_run_out_one_that_an_engine_works_for_stays_though_an_answer_is_unread() -> None:
    async def test() -> None:
        held = Held()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["method"] == "GET":
                await held(scope, receive, send)
            else:
                await respond(send, bytes(220_000))

        async with gateway(app, worker_connections=2) as (served, events):
            busy, idle = [await served.connect(GREEDY) for _ in range(2)]
            await busy.send(post(b"") + GET)
            await held.is_asked.wait()
            await idle.send(post(b""))
            await served.protocols[1].has_written(220_000)
            polite = await served.connect(POLITE)
            held.may_answer.set()
            await polite.send(GET)
            assert (await polite.read()).status == 200
            assert len((await busy.read()).body) == 220_000
            assert (await busy.read()).body == b"ok"
            (evicted,) = [event for event in events if event["event"] == "connections_evicted"]
            assert evicted["download"] == 1

    run(test())


class Late(Turns):
    """The turns of a worker that has no time."""

    turn: Callable[[], None]

    def begin_request(self, client: Hashable, turn: Callable[[], None]) -> None:
        self.turn = turn


def test_when_connections_run_out_one_whose_request_waits_for_its_turn_is_not_taken_for_an_idle_one() -> None:
    async def test() -> None:
        async with gateway(say_length, worker_connections=2) as (served, _):
            served.worker.turns = turns = Late()
            waiting, idle = [await served.connect(GREEDY) for _ in range(2)]
            await waiting.send(GET + GET)
            assert (await waiting.read()).status == 200
            await idle.send(GET)
            await idle.read()
            polite = await served.connect(POLITE)
            assert await idle.read_to_end() == b""
            turns.turn()
            assert (await waiting.read()).status == 200
            await polite.send(GET)
            assert (await polite.read()).status == 200

    run(test())


def test_when_connections_run_out_a_client_cannot_keep_its_places_with_requests_that_wait() -> None:
    async def test() -> None:
        async with gateway(say_length, worker_connections=2) as (served, _):
            served.worker.turns = Late()
            waiting = [await served.connect(GREEDY) for _ in range(2)]
            for client in waiting:
                await client.send(GET + GET)
                assert (await client.read()).status == 200
            polite = await served.connect(POLITE)
            await polite.send(GET)
            assert (await polite.read()).status == 200
            assert await waiting[0].read_to_end() == b""
            await waiting[1].read_nothing()

    run(test())


@pytest.mark.parametrize("sent", [b"", GET[:20], GET, post(), b"GET\r\n\r\n"])
def test_a_connection_that_was_closed_leaves_no_garbage(sent: bytes) -> None:
    async def test() -> None:
        gc.collect()
        gc.disable()
        try:
            async with gateway(say_length) as (served, _):
                client = await served.connect()
                await client.send(sent)
                await served.protocols[0].has_received(len(sent))
                gone = weakref.ref(served.protocols[0])
                client.close()
                await served.protocols.pop().lost.wait()
                for _ in range(5):
                    await asyncio.sleep(0)
                assert gone() is None
        finally:
            gc.enable()

    run(test())


def test_the_connections_of_a_proxy_are_not_those_of_one_client() -> None:
    async def test() -> None:
        async with gateway(Held(), worker_connections=3) as (served, _):
            proxied = [await served.connect("127.0.0.1") for _ in range(3)]
            assert (await (await served.connect(POLITE)).read()).status == 503
            for client in proxied:
                await client.read_nothing()

    run(test())


def test_without_a_share_of_connections_the_last_to_come_is_refused() -> None:
    async def test() -> None:
        off = Settings(client_connections_percent=0)
        async with gateway(Held(), off, worker_connections=2) as (served, _):
            for _ in range(2):
                await served.connect(GREEDY)
            assert (await (await served.connect(POLITE)).read()).status == 503

    run(test())


def test_a_client_that_leaves_has_its_request_cancelled() -> None:
    async def test() -> None:
        app = Held()
        async with gateway(app) as (served, events):
            client = await served.connect()
            await client.send(GET)
            await app.is_asked.wait()
            client.end()
            async with asyncio.timeout(20):
                await app.is_cancelled.wait()
            await served.protocols[0].lost.wait()
            assert [status for _, _, status, _ in lines(events)] == [499]

    run(test())


def test_a_client_that_leaves_keeps_its_place_until_its_request_has_ended() -> None:
    async def test() -> None:
        has_ended, may_end = asyncio.Event(), asyncio.Event()
        asked: asyncio.Queue[None] = asyncio.Queue()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            """Go on after the client has left, as a request whose image an engine has begun does."""
            asked.put_nowait(None)
            try:
                await asyncio.Event().wait()
            finally:
                await may_end.wait()
                has_ended.set()

        async with gateway(app, worker_connections=2) as (served, events), asyncio.timeout(20):
            for protocol in range(2):
                client = await served.connect(GREEDY)
                await client.send(GET)
                await asked.get()
                client.close()
                await served.protocols[protocol].lost.wait()
            account = served.membership.page.account(GREEDY)
            assert (len(served.worker.connections), account.used(Field.CONNECTIONS)) == (2, 2)
            assert served.worker.nr_conns == 0  # a drain does not wait for them
            served.check_rates()
            assert (await (await served.connect(POLITE)).read()).status == 503
            may_end.set()
            await has_ended.wait()
            assert (len(served.worker.connections), account.used(Field.CONNECTIONS)) == (0, 0)
            polite = await served.connect(POLITE)
            await polite.send(GET)
            await asked.get()
            assert not {"connections_evicted", "slow_client_disconnected"} & {
                event["event"] for event in events
            }

    run(test())


def test_a_client_that_ends_its_side_keeps_its_place_until_it_has_read_what_was_written() -> None:
    async def test() -> None:
        size = 4_000_000
        settings = Settings(min_bytes_per_s=1000, slow_after_s=5)
        async with gateway(say_length, settings) as (served, events):
            are_written: asyncio.Queue[None] = asyncio.Queue()
            served.serve(lambda served: results(served, size, are_written))
            page, scoreboard = served.membership.page, served.membership.scoreboard
            reading, gone = [await served.connect(GREEDY) for _ in range(2)]
            for client in (reading, gone):
                await client.send(post(b"", path=b"/result"))
                await client.is_readable()
                client.end()
                async with asyncio.timeout(20):
                    await are_written.get()

            def held() -> tuple[int, int, int]:
                served.check_rates()
                connections = page.account(GREEDY).used(Field.CONNECTIONS)
                return len(served.worker.connections), connections, served.worker.nr_conns

            assert held() == (2, 2, 2)
            assert scoreboard.total(Cell.HELD_BYTES) > 0
            assert b"\r\n\r\n" in await reading.read_to_end()
            async with asyncio.timeout(20):
                await served.protocols[0].lost.wait()
            assert held() == (1, 1, 1)
            for _ in range(2):
                served.advance(6)
                served.check_rates()
            async with asyncio.timeout(20):
                await served.protocols[1].lost.wait()
            assert held() == (0, 0, 0)
            assert scoreboard.total(Cell.HELD_BYTES) == 0
            (event,) = [event for event in events if event["event"] == "slow_client_disconnected"]
            assert event["stage"] == "download"

    run(test())


async def refuse_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, b"no", 413)


def test_an_answer_that_comes_before_the_body_it_refuses_is_the_last_and_can_be_read() -> None:
    async def test() -> None:
        async with gateway(refuse_at_once) as (served, _):
            client = await served.connect()
            await client.send(post(b"x" * 1_000_000)[:-1_000_000])
            answer = await client.read()
            assert (answer.status, answer.headers["connection"]) == (413, "close")
            await client.send(b"x" * 200_000)  # a reset would overtake the answer
            served.advance(LINGER_S + 0.1)
            assert await client.read_to_end() == b""

    run(test())


def test_what_a_refused_client_still_sends_is_discarded_a_little_later() -> None:
    async def test() -> None:
        async with gateway(refuse_at_once) as (served, _):
            client = await served.connect()
            await client.send(post(b"x" * 10_000_000)[:-10_000_000])
            assert (await client.read()).status == 413
            (protocol,) = served.protocols
            assert not protocol.transport.is_reading()
            served.advance(LINGER_UNREAD_S)
            async with asyncio.timeout(20):
                await client.send(b"x" * 10_000_000)  # more than the kernel takes
            assert protocol.transport.is_reading()

    run(test())


def test_a_refused_client_that_sends_little_more_and_leaves_is_noticed_at_once() -> None:
    async def test() -> None:
        async with gateway(refuse_at_once) as (served, _):
            client = await served.connect()
            await client.send(post(b"x" * 1_000_000)[:-1_000_000])
            assert (await client.read()).status == 413
            (protocol,) = served.protocols
            assert protocol.transport.is_reading()
            client.close()
            async with asyncio.timeout(20):
                await protocol.lost.wait()

    run(test())


def test_a_refused_head_can_be_read_by_a_client_that_goes_on_sending_it() -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, events):
            client = await served.connect()
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000)
            answer = await client.read()
            assert (answer.status, answer.headers["connection"]) == (431, "close")
            await client.send(b"a" * 500_000)  # a reset would overtake the answer
            served.advance(LINGER_S + 0.1)
            assert await client.read_to_end() == b""
            assert [status for _, _, status, _ in lines(events)] == [431]

    run(test())


def test_little_is_read_before_the_app_has_seen_a_request_on_a_kept_connection_too() -> None:
    async def test() -> None:
        app = Held()
        async with gateway(app) as (served, _):
            client = await served.connect()
            (protocol,) = served.protocols
            unseen = len(protocol.get_buffer(-1))
            await client.send(GET)
            await app.is_asked.wait()
            assert len(protocol.get_buffer(-1)) > unseen
            app.may_answer.set()
            await client.read()
            await client.read_nothing()
            assert len(protocol.get_buffer(-1)) == unseen

    run(test())


def test_a_refused_body_frees_what_its_request_held() -> None:
    async def test() -> None:
        ended = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await whole_body(receive)
            finally:
                ended.set()

        async with gateway(app) as (served, events):
            client = await served.connect()
            await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await served.protocols[0].has_received(64)
            await client.read_nothing()  # the app waits for more
            await client.send(b"zz\r\n")
            assert (await client.read()).status == 400
            async with asyncio.timeout(20):
                await ended.wait()  # and not only when the connection is lost
            assert not served.protocols[0].lost.is_set()
            assert [status for _, _, status, _ in lines(events)] == [400]

    run(test())


def test_a_fault_of_ours_while_parsing_is_no_fault_of_the_client_s() -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, events):
            client = await served.connect()
            served.protocols[0].cfg = None  # nothing can be done without it
            await client.send(GET)
            answer = await client.read()
            assert answer.status == 500
            assert "request_failed" in {event["event"] for event in events}

    run(test())


def test_an_idle_connection_stays_until_after_retry_after() -> None:
    async def shed(scope: Scope, receive: Receive, send: Send) -> None:
        Exchange.of(scope).retry_after_s = 60
        await respond(send, b"later", 503, (b"retry-after", b"60"))

    async def test() -> None:
        async with gateway(shed, keepalive=5) as (served, _):
            client = await served.connect()
            await client.send(GET)
            assert (await client.read()).status == 503
            served.advance(64)
            await client.send(GET)
            assert (await client.read()).status == 503
            served.advance(66)
            assert await client.read_to_end() == b""

    run(test())


def test_a_client_of_http_1_0_is_told_that_its_connection_stays() -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, _):
            client = await served.connect()
            for option in (b"Keep-Alive", b"keep-alive"):
                await client.send(b"GET / HTTP/1.0\r\nConnection: %s\r\n\r\n" % option)
                assert (await client.read()).headers["connection"] == "keep-alive"
            await client.send(b"GET / HTTP/1.0\r\n\r\n")
            assert (await client.read()).headers["connection"] == "close"
            assert await client.read_to_end() == b""

    run(test())


def test_in_http_1_0_a_body_without_a_length_ends_with_its_connection() -> None:
    async def say_no_length(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    async def test() -> None:
        async with gateway(say_no_length) as (served, _):
            client = await served.connect()
            await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            head, _, body = (await client.read_to_end()).partition(b"\r\n\r\n")
            assert b"Connection: close" in head.split(b"\r\n")
            assert body == b"hello"

    run(test())


def test_a_draining_worker_tells_its_connections_and_forgets_retry_after() -> None:
    async def shed(scope: Scope, receive: Receive, send: Send) -> None:
        Exchange.of(scope).retry_after_s = 60
        await respond(send, b"later", 503)

    async def test() -> None:
        async with gateway(shed, keepalive=5) as (served, _):
            awaited, busy = await served.connect(), await served.connect()
            for client in (awaited, busy):
                await client.send(GET)
                assert "connection" not in (await client.read()).headers
            served.worker.drain()
            await busy.send(GET)
            assert (await busy.read()).headers["connection"] == "close"
            served.advance(6)
            assert await awaited.read_to_end() == b""
            async with asyncio.timeout(20):
                await served.worker._drained
            assert not served.worker.alive

    run(test())


def test_a_worker_drains_with_the_last_of_its_requests() -> None:
    async def test() -> None:
        async with gateway(say_length, max_requests=2) as (served, _):
            client = await served.connect()
            await client.send(GET)
            assert "connection" not in (await client.read()).headers
            await client.send(GET)
            assert (await client.read()).headers["connection"] == "close"
            assert served.worker.is_draining

    run(test())


@pytest.mark.parametrize("accesslog", [None, "-"])
def test_a_stop_in_the_middle_of_an_answer_keeps_what_its_head_promised(accesslog: str | None) -> None:
    """With an access log gunicorn looks at the request again when the body is out."""

    async def test() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def in_two_pieces(scope: Scope, receive: Receive, send: Send) -> None:
            headers = [(b"content-length", b"4")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"ab", "more_body": True})
            begun.set()
            await go_on.wait()
            await send({"type": "http.response.body", "body": b"cd"})

        async with gateway(in_two_pieces, accesslog=accesslog) as (served, _):
            client = await served.connect()
            await client.send(GET)
            await begun.wait()
            served.worker.drain()
            go_on.set()
            assert "connection" not in (await client.read()).headers
            await client.send(GET)
            assert (await client.read()).headers["connection"] == "close"

    run(test())


def test_a_value_that_the_parser_cannot_read_is_answered() -> None:
    async def test() -> None:
        async with gateway(say_length) as (served, events):
            client = await served.connect()
            await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n")
            assert (await client.read()).status == 400
            assert [status for _, _, status, _ in lines(events)] == [400]

    run(test())


def test_an_error_of_ours_is_raised_where_the_app_waits_for_the_body() -> None:
    async def test() -> None:
        async with gateway(failing_with_its_own_words) as (served, _):
            client = await served.connect()
            await client.send(post()[:-50])
            await served.protocols[0].has_received(50)
            await client.read_nothing()  # the app waits
            served.protocols[0]._body_receiver.fail(ServiceUnavailable("for a reason"))
            assert (await client.read()).body == b"for a reason"

    run(test())
