"""What every answer has in common: its id, its headers, its line in the log, its place in the counts."""

import asyncio
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from server.admission import Ticket
from server.cluster.scoreboard import Row
from server.logs import get_logger

log = get_logger("server.request")

#: Ids from callers are taken over when they are short and cannot break a header or a log line.
_VALID_ID = re.compile(rb"[A-Za-z0-9._~+/=-]{1,128}")

#: nginx's number for a client that left before its answer; it is logged and never sent.
CLIENT_GONE = 499


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as far as they have come.

    Attributes:
        image_path: how the picture was made, as in `X-Image-Path`.
        problem: the last word of the type of the problem that it is answered with.
        retry_after_s: when the client was told to come back; 0 for never.
        is_logged: by whoever refused it over the app's head.
        ticket: of its admission; None before, and for what needs none.
        resources: what it holds; given back when the last byte of the answer is written or it is given up.
    """

    request_id: str = field(default_factory=lambda: secrets.token_hex(16))
    started_s: float = field(default_factory=time.perf_counter)
    status: int = CLIENT_GONE
    is_routed: bool = False
    is_received: bool = False
    bytes_in: int = 0
    bytes_out: int = 0
    engine_pid: int | None = None
    image_path: str | None = None
    problem: str | None = None
    retry_after_s: int = 0
    is_logged: bool = False
    ticket: Ticket | None = None
    resources: ExitStack = field(default_factory=ExitStack)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the headers were read."""
        return time.perf_counter() - self.started_s


Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Envelope:
    """The outermost ASGI layer.

    It is below the framework, so that the framework's own answers pass through it as well, and it sees
    the last byte of a body leave, which no hook of the framework does.

    Args:
        app: what is wrapped.
        row: where requests are counted.
    """

    def __init__(self, app: App, row: Row) -> None:
        self._app = app
        self._row = row

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (the ASGI specification's application callable)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope["exchange"] = Exchange()
        if request_id := given_id(scope["headers"]):
            exchange.request_id = request_id

        async def counted_receive() -> Message:
            if not exchange.is_routed:
                # The framework wants a first event before it looks at the path. Waiting for it would ask
                # for the body (100 Continue) before anybody has looked at the request.
                exchange.is_routed = True
                return {"type": "http.request", "body": b"", "more_body": True}
            message = await receive()
            if message["type"] == "http.disconnect" and not exchange.is_received:
                # The framework would take this for the end of the body, and half a body for a whole one.
                raise asyncio.CancelledError
            exchange.bytes_in += len(message.get("body", b""))
            exchange.is_received = not message.get("more_body", False)
            return message

        async def marked_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *common_headers(exchange)]
            await send(message)
            exchange.bytes_out += len(message.get("body", b""))

        try:
            await self._app(scope, counted_receive, marked_send)
        except asyncio.CancelledError:  # the server cancels a request whose client has left
            exchange.status = CLIENT_GONE
            raise
        finally:
            exchange.resources.close()
            if not exchange.is_logged:
                conclude(exchange, self._row, scope)


def common_headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    """Return the headers that every answer carries."""
    return [
        (b"x-request-id", exchange.request_id.encode()),
        (b"x-response-time", b"%.1fms" % (exchange.elapsed_s * 1e3)),
        (b"x-worker-pid", b"%d" % os.getpid()),
        (b"x-content-type-options", b"nosniff"),
    ]


def conclude(exchange: Exchange, row: Row, scope: Mapping[str, Any]) -> None:
    """Count a request among a worker's, and write the one line that it leaves in the log."""
    row.count_request(exchange.status, exchange.elapsed_s, exchange.bytes_in, exchange.bytes_out)
    exchange.is_logged = True
    path = scope.get("path", "-")
    client = scope.get("client")
    log.info(
        "request",
        client=client[0] if client else None,
        method=scope.get("method", "-"),
        path=path if path.isprintable() else path.encode("unicode_escape").decode(),  # no escape sequences
        status=exchange.status,
        problem=exchange.problem,
        bytes_in=exchange.bytes_in,
        bytes_out=exchange.bytes_out,
        ms=round(exchange.elapsed_s * 1e3, 1),
        worker=os.getpid(),
        engine=exchange.engine_pid,
        image_path=exchange.image_path,
        request_id=exchange.request_id,
    )


def given_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the id that the client gave its request, if it may be taken over."""
    for name, value in headers:
        if name == b"x-request-id" and _VALID_ID.fullmatch(value):
            return value.decode()
    return None
