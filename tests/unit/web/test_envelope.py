"""The envelope: what every response gets, whatever the app does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import falcon.asgi
import pytest
from structlog.testing import capture_logs
from support.asgi import Server, run, scope_of

from server.cluster.scoreboard import STATUSES, Cell, Row, Scoreboard
from server.errors import Expired
from server.web.envelope import App, Envelope
from server.web.exchange import CLIENT_GONE, EXTENSION, Exchange

Event = dict[str, Any]


class Wrapped:
    """An app in its envelope, under a stand-in server.

    Attributes:
        row: where requests are counted.
        events: the log.
        exchange: of the last request.
    """

    def __init__(self, app: App, row: Row, events: list[Event]) -> None:
        self.row = row
        self.events = events
        self.server = Server()
        self.exchange: Exchange
        self._app = app
        self._envelope = Envelope(self._watched, row)

    async def _watched(self, scope: Any, receive: Any, send: Any) -> None:
        self.exchange = Exchange.of(scope)
        await self._app(scope, receive, send)

    async def call(self, path: str = "/", **more: Any) -> None:
        await self.server.call(self._envelope, scope_of(path, **more))

    def was_concluded_once(self, status: int) -> bool:
        """Whether there is one line in the log and one count, and both say the status."""
        logged = [event["status"] for event in self.events if event["event"] == "request"]
        counted = self.row[Cell.FIRST_STATUS + STATUSES.index(status)]
        return logged == [status] and (self.row[Cell.REQUESTS], counted) == (1, 1)


@asynccontextmanager
async def wrapped(app: App) -> AsyncIterator[Wrapped]:
    with capture_logs() as events:
        yield Wrapped(app, Scoreboard(rows=1).claim(), events)


async def answer(send: Any, status: int = 200, body: bytes = b"ok") -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"x-mine", b"1")]})
    await send({"type": "http.response.body", "body": body})


async def read_all(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more = message["more_body"]
    return body


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, body=await read_all(receive))


async def refuse_unread(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await answer(send, 404)


def falcon_app() -> App:
    return falcon.asgi.App()  # where nothing is found


# --- the response -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("app", "status"),
    [
        pytest.param(echo, 200, id="an app's own"),
        pytest.param(refuse_unread, 404, id="without reading the body"),
        pytest.param(falcon_app(), 404, id="the framework's"),
    ],
)
def test_every_response_has_the_common_headers_one_log_line_and_one_count(app: App, status: int) -> None:
    async def test() -> None:
        async with wrapped(app) as it:
            it.server.body(b"hello")
            await it.call("/nope", headers=[(b"x-request-id", b"mine")])
            assert it.server.status == status
            headers = it.server.headers
            assert headers[b"x-request-id"] == b"mine"
            assert headers[b"x-content-type-options"] == b"nosniff"
            assert headers[b"x-response-time"].endswith(b"ms")
            assert int(headers[b"x-worker-pid"]) > 0
            assert it.was_concluded_once(status)
            (line,) = it.events
            assert (line["request_id"], line["path"], line["client"]) == ("mine", "/nope", "10.0.0.1")

    run(test())


def test_bodies_are_counted_in_both_directions_and_the_apps_headers_stay() -> None:
    async def test() -> None:
        async with wrapped(echo) as it:
            it.server.body(b"abc", b"", b"defgh")
            await it.call()
            assert it.server.answer == b"abcdefgh"
            assert it.server.headers[b"x-mine"] == b"1"
            (line,) = it.events
            assert (line["bytes_in"], line["bytes_out"]) == (8, 8)
            assert (it.row[Cell.BYTES_IN], it.row[Cell.BYTES_OUT]) == (8, 8)

    run(test())


def test_a_piece_of_the_response_counts_when_the_server_has_taken_it() -> None:
    class Full(Server):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message.get("body") == b"second":
                raise OSError("the client is gone")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"second"})

    async def test() -> None:
        async with wrapped(app) as it:
            it.server = Full()
            with pytest.raises(OSError, match="gone"):
                await it.call()
            assert it.events[0]["bytes_out"] == 3

    run(test())


# --- the body ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", [refuse_unread, falcon_app()], ids=["an app", "the framework"])
def test_the_server_is_not_asked_for_a_body_before_the_request_was_looked_at(app: App) -> None:
    async def test() -> None:
        async with wrapped(app) as it:
            await it.call("/nope", headers=[(b"content-length", b"5"), (b"expect", b"100-continue")])
            assert (it.server.asked, it.server.status) == (0, 404)

    run(test())


def test_the_first_event_promises_a_body_and_holds_nothing_of_it() -> None:
    messages = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        messages.extend([await receive(), await receive()])
        await answer(send)

    async def test() -> None:
        async with wrapped(app) as it:
            it.server.body(b"hello")
            await it.call()
            assert messages == [
                {"type": "http.request", "body": b"", "more_body": True},
                {"type": "http.request", "body": b"hello", "more_body": False},
            ]
            assert it.server.asked == 1

    run(test())


def test_a_client_that_leaves_in_the_middle_of_its_body_cancels_the_request() -> None:
    received = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            received.append(await receive())

    async def test() -> None:
        async with wrapped(app) as it:
            it.server.body(b"half", is_all=False)
            it.server.disconnect()
            with pytest.raises(asyncio.CancelledError):
                await it.call()
            assert [message["body"] for message in received] == [b"", b"half"]
            assert all(message["more_body"] for message in received)  # it never looked like the end
            assert it.was_concluded_once(CLIENT_GONE)
            assert it.events[0]["bytes_in"] == 4

    run(test())


def test_the_framework_does_not_take_half_a_body_for_a_whole_one() -> None:
    bodies = []

    class Resource:
        async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
            bodies.append(await req.stream.read())

    async def test() -> None:
        app = falcon.asgi.App()
        app.add_route("/", Resource())
        async with wrapped(app) as it:
            it.server.body(b"half", is_all=False)
            it.server.disconnect()
            with pytest.raises(asyncio.CancelledError):
                await it.call()
            assert (bodies, it.server.sent) == ([], [])

    run(test())


def test_a_client_that_leaves_after_its_body_is_an_event_for_the_app() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await read_all(receive) == b"whole"
        assert await receive() == {"type": "http.disconnect"}

    async def test() -> None:
        async with wrapped(app) as it:
            it.server.body(b"whole")
            it.server.disconnect()
            await it.call()
            assert it.was_concluded_once(CLIENT_GONE)  # nothing was answered

    run(test())


# --- how it ends ------------------------------------------------------------------------------------------


class OurBugError(Exception):
    pass


async def raise_before(scope: Any, receive: Any, send: Any) -> None:
    raise OurBugError


async def raise_after(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 206, "headers": []})
    raise OurBugError


async def wait_for_ever(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.get_running_loop().create_future()


async def wait_in_the_response(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize(
    ("app", "status"),
    [pytest.param(raise_before, 500, id="before"), pytest.param(raise_after, 206, id="after")],
)
def test_an_app_that_raises_is_counted_with_its_response_or_as_500(app: App, status: int) -> None:
    async def test() -> None:
        async with wrapped(app) as it:
            with pytest.raises(OurBugError):
                await it.call()
            assert it.events[0]["status"] == status
            assert it.row[Cell.FIRST_STATUS + STATUSES.index(status)] == 1
            assert (len(it.events), it.row[Cell.REQUESTS]) == (1, 1)

    run(test())


def test_a_body_that_cannot_go_on_is_broken_off_and_the_log_says_why() -> None:
    async def expire(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a part", "more_body": True})
        raise Expired("It is not kept any more.")

    async def test() -> None:
        async with wrapped(expire) as it:
            await it.call()  # and nothing for the server to report
            assert it.was_concluded_once(200)
            assert (it.events[0]["problem"], it.events[0]["bytes_out"]) == ("expired", 6)

    run(test())


@pytest.mark.parametrize("app", [wait_for_ever, wait_in_the_response], ids=["before", "in its response"])
def test_a_request_that_the_server_cancels_is_counted_as_one_whose_client_left(app: App) -> None:
    async def test() -> None:
        async with wrapped(app) as it:
            task = asyncio.create_task(it.call())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert it.was_concluded_once(CLIENT_GONE)

    run(test())


async def be_cancelled(it: Wrapped) -> None:
    task = asyncio.create_task(it.call())
    await asyncio.sleep(0)
    task.cancel()
    await task


async def lose_the_client(it: Wrapped) -> None:
    it.server.disconnect()
    await it.call()


async def be_served(it: Wrapped) -> None:
    it.server.body(b"")
    await it.call()


@pytest.mark.parametrize(
    ("app", "call"),
    [
        pytest.param(echo, be_served, id="answered"),
        pytest.param(raise_before, be_served, id="raised"),
        pytest.param(raise_after, be_served, id="raised in the response"),
        pytest.param(wait_for_ever, be_cancelled, id="cancelled"),
        pytest.param(echo, lose_the_client, id="client gone"),
    ],
)
def test_what_a_request_holds_is_released_however_it_ends(
    app: App, call: Callable[[Wrapped], Awaitable[None]]
) -> None:
    async def holding(scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange.of(scope)
        exchange.resources.callback(released.append, lambda: exchange.is_logged)
        await app(scope, receive, send)

    released: list[Callable[[], bool]] = []

    async def test() -> None:
        async with wrapped(holding) as it:
            with suppress(OurBugError, asyncio.CancelledError):
                await call(it)
            assert len(released) == 1
            assert it.row[Cell.REQUESTS] == 1

    run(test())


def test_resources_are_held_until_the_last_byte_is_out() -> None:
    order = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        Exchange.of(scope).resources.callback(order.append, "released")
        await answer(send)
        order.append("answered")

    async def test() -> None:
        async with wrapped(app) as it:
            await it.call()
            assert order == ["answered", "released"]

    run(test())


# --- what it leaves alone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_anything_but_a_request_passes_through_untouched(kind: str) -> None:
    seen = []

    async def app(*arguments: object) -> None:
        seen.append(arguments)

    async def test() -> None:
        row = Scoreboard(rows=1).claim()
        scope, server = {"type": kind}, Server()
        arguments = (scope, server.receive, server.send)
        with capture_logs() as events:
            await Envelope(app, row)(*arguments)
        assert seen == [arguments]
        assert scope == {"type": kind}
        assert (events, row[Cell.REQUESTS]) == ([], 0)

    run(test())


def test_the_servers_own_exchange_is_used_as_it_is() -> None:
    async def test() -> None:
        async with wrapped(echo) as it:
            exchange = Exchange(request_id="servers", method="PUT", path="/seen")
            it.server.body(b"hello")
            await it.call(
                "/other", extensions={EXTENSION: exchange, "theirs": 1}, headers=[(b"x-request-id", b"mine")]
            )
            assert it.exchange is exchange
            assert it.server.headers[b"x-request-id"] == b"servers"
            (line,) = it.events
            assert (line["method"], line["path"], line["request_id"]) == ("PUT", "/seen", "servers")
            assert (exchange.taken_bytes, exchange.sent_bytes, exchange.status) == (5, 5, 200)

    run(test())


@pytest.mark.parametrize("more", [{}, {"extensions": None}, {"extensions": {"theirs": 1}}], ids=repr)
def test_under_another_server_the_envelope_makes_the_exchange(more: dict[str, Any]) -> None:
    async def test() -> None:
        async with wrapped(echo) as it:
            it.server.body(b"hello")
            await it.call("/path", headers=[(b"x-request-id", b"mine")], **more)
            assert it.exchange.request_id == "mine"
            (line,) = it.events
            assert (line["method"], line["path"], line["client"]) == ("POST", "/path", "10.0.0.1")

    run(test())


def test_a_server_need_not_know_its_client() -> None:
    async def test() -> None:
        async with wrapped(echo) as it:
            it.server.body(b"")
            await it.call(client=None)
            assert it.events[0]["client"] is None

    run(test())
