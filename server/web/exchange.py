"""One request and its response: one object owns everything about it, from its head to its line in the log."""

import os
import re
import secrets
import time
from collections.abc import Iterable, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

from server.admission import Ticket
from server.cluster.scoreboard import Row
from server.logs import get_logger
from server.web.upload_sink import UploadSink

log = get_logger("server.request")

#: nginx's number for a client that left before its response; it is logged and never sent.
CLIENT_GONE = 499

#: The key of the exchange in an ASGI scope's `extensions`.
EXTENSION = "flipcluster.exchange"

#: Ids from clients are used when they are short and cannot break a header or a log line.
_VALID_ID = re.compile(rb"[A-Za-z0-9._~+/=-]{1,128}")

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(slots=True)
class Exchange:
    """One request and its response, as far as they have come.

    The server makes it when the head of the request has arrived and passes it on in the ASGI scope; under a
    server that does not, the envelope makes it. Each counter of bytes has one writer.

    Attributes:
        method, path: from the head; "-" while they are unknown.
        client: the address of the client, behind proxies that are trusted; None while it is unknown.
        status: of the response.
        taken_bytes: of the request's body, as the app received them; written by the envelope.
        sink: where the body can go without passing through the app; it counts the bytes it was given.
        sent_bytes: of the response's body; written by `count_sent`.
        image_path: how the image was made, as in `X-Image-Path`.
        problem: the slug of the problem that the request was answered with.
        share: which share of its client the request was refused for; None for none.
        retry_after_s: the `Retry-After` of the response, in seconds; 0 for none.
        ticket: of its admission; None before, and for requests that need none.
        resources: what it holds; released when the last byte of the response is written or it is given up.
        is_last: whether the connection is to be closed after the response.
        is_logged: whether `conclude` was called.
    """

    request_id: str = field(default_factory=lambda: secrets.token_hex(16))
    started_s: float = field(default_factory=time.perf_counter)
    method: str = "-"
    path: str = "-"
    client: str | None = None
    status: int = CLIENT_GONE
    taken_bytes: int = 0
    sink: UploadSink = field(default_factory=UploadSink)
    sent_bytes: int = 0
    engine_pid: int | None = None
    image_path: str | None = None
    problem: str | None = None
    share: str | None = None
    retry_after_s: int = 0
    ticket: Ticket | None = None
    resources: ExitStack = field(default_factory=ExitStack)
    is_last: bool = False
    is_logged: bool = False

    @classmethod
    def of(cls, scope: MutableMapping[str, Any]) -> Self:
        """Return the exchange that an ASGI scope carries.

        Raises:
            KeyError: it carries none.
        """
        exchange: Self = scope["extensions"][EXTENSION]
        return exchange

    def offer(self, scope: MutableMapping[str, Any]) -> None:
        """Put the exchange into an ASGI scope, among the extensions that the server offers."""
        scope["extensions"] = {**(scope.get("extensions") or {}), EXTENSION: self}

    def identify(self, method: str, path: str, client: Any, headers: Headers) -> None:  # noqa: ANN401 ASGI's
        """Note what the head of the request says.

        Args:
            method: of the request.
            path: of its target, decoded.
            client: an address as a sequence that begins with the host; None or empty when unknown.
            headers: names in lower case; a valid `X-Request-ID` becomes the id.
        """
        self.method = method
        # A control character could begin an escape sequence of a terminal.
        self.path = path if path.isprintable() else path.encode("unicode_escape").decode()
        self.client = client[0] if client else None
        for name, value in headers:
            if name == b"x-request-id" and _VALID_ID.fullmatch(value):
                self.request_id = value.decode()
                return

    @property
    def body_bytes(self) -> int:
        """How much of the request's body has arrived, in bytes."""
        return self.taken_bytes + self.sink.written_bytes

    @property
    def elapsed_s(self) -> float:
        """Seconds since the head was read."""
        return time.perf_counter() - self.started_s

    def can_sink(self, nbytes: int) -> bool:
        """Whether the next bytes of the body may go into the sink: it is open, and there is room for them."""
        ticket = self.ticket
        return self.sink.is_open and ticket is not None and ticket.takes(self.body_bytes + nbytes)

    def expect(self, bytes_per_s: float) -> None:
        """Tell admission how fast the body arrives."""
        if self.ticket is not None:
            self.ticket.expect(self.body_bytes, bytes_per_s)

    def count_sent(self, nbytes: int) -> None:
        """Count bytes of the response's body."""
        self.sent_bytes += nbytes

    def common_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that every response carries."""
        return [
            (b"x-request-id", self.request_id.encode()),
            (b"x-response-time", b"%.1fms" % (self.elapsed_s * 1e3)),
            (b"x-worker-pid", b"%d" % os.getpid()),
            (b"x-content-type-options", b"nosniff"),
        ]

    def conclude(self, row: Row) -> None:
        """Count the request among the worker's and write its one line in the log, at the first call."""
        if self.is_logged:
            return
        self.is_logged = True
        row.count_request(self.status, self.elapsed_s, self.body_bytes, self.sent_bytes)
        log.info(
            "request",
            client=self.client,
            method=self.method,
            path=self.path,
            status=self.status,
            problem=self.problem,
            share=self.share,
            bytes_in=self.body_bytes,
            bytes_out=self.sent_bytes,
            ms=round(self.elapsed_s * 1e3, 1),
            worker=os.getpid(),
            engine=self.engine_pid,
            image_path=self.image_path,
            request_id=self.request_id,
        )
