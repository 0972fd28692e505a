"""The envelope: the outermost ASGI layer, which gives every response its headers, log line and counts."""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from server.cluster.scoreboard import Row
from server.errors import ServiceError
from server.web.exchange import CLIENT_GONE, EXTENSION, Exchange
from server.web.problems import Problem

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Envelope:
    """An ASGI app around another one.

    It is below the framework, so that the framework's own responses pass through it as well, and it sees the
    last byte of a body leave, which no hook of the framework does.

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
        exchange = _exchange_of(scope)
        is_routed = is_received = is_answered = False

        async def counted_receive() -> Message:
            nonlocal is_routed, is_received
            if not is_routed:
                # The framework wants a first event before it looks at the path. Waiting for it would ask
                # for the body (100 Continue) before the request was looked at.
                is_routed = True
                return {"type": "http.request", "body": b"", "more_body": True}
            message = await receive()
            if message["type"] == "http.disconnect" and not is_received:
                # The framework would take this for the end of the body, and half a body for a whole one.
                raise asyncio.CancelledError
            exchange.taken_bytes += len(message.get("body", b""))
            is_received = not message.get("more_body", False)
            return message

        async def marked_send(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                exchange.status = message["status"]
                exchange.is_last |= _ends_with_connection(scope, message)
                message["headers"] = [*message["headers"], *exchange.common_headers()]
            await send(message)
            exchange.count_sent(len(message.get("body", b"")))

        try:
            await self._app(scope, counted_receive, marked_send)
        except asyncio.CancelledError:  # the server cancels a request whose client has left
            exchange.status = CLIENT_GONE
            raise
        except Exception as error:
            if not _note_failure(exchange, error, is_answered=is_answered):
                raise
        finally:
            try:
                exchange.resources.close()
            finally:
                exchange.conclude(self._row)


def _ends_with_connection(scope: Scope, start: Message) -> bool:
    """Whether only the end of the connection ends a body: HTTP/1.0 has no chunks (RFC 9112, section 6.3)."""
    return bool(scope["http_version"] == "1.0" and b"content-length" not in dict(start["headers"]))


def _note_failure(exchange: Exchange, error: Exception, *, is_answered: bool) -> bool:
    """Record why an app failed, and return whether it is a foreseen error that cuts a response short.

    The client notices, as the server closes the connection before the end of the body.
    """
    if is_answered and isinstance(error, ServiceError):
        exchange.problem = Problem.of_error(error).slug
        return True
    exchange.problem = "internal-server-error"
    if not is_answered:  # the server answers 500
        exchange.status = HTTPStatus.INTERNAL_SERVER_ERROR
    return False


def _exchange_of(scope: Scope) -> Exchange:
    """Return the server's exchange, or make one under a server that does not know it."""
    if EXTENSION not in (scope.get("extensions") or {}):
        exchange = Exchange()
        exchange.identify(scope["method"], scope["path"], scope.get("client"), scope["headers"])
        exchange.offer(scope)
    return Exchange.of(scope)
