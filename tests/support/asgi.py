"""A stand-in for an ASGI server, and an event loop whose clock a test moves: nothing here waits for real."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

from falcon.asgi import Request, Response

from server.operations.images import OPERATIONS
from server.web.envelope import App, Message, Scope
from server.web.parameters import Query
from server.web.submissions import Submissions

#: How long any wait may take, in seconds.
DEADLINE_S = 20.0

#: How many turns of the event loop a timer and the tasks that it wakes may take.
_TURNS = 20


class MovableClock(asyncio.SelectorEventLoop):
    """An event loop whose time a test can advance."""

    def __init__(self) -> None:
        self._ahead_s = 0.0
        super().__init__()

    def time(self) -> float:
        return super().time() + self._ahead_s

    async def pass_time(self, seconds: float) -> None:
        """Advance the clock, and let timers that are due run, and the tasks that they wake."""
        self._ahead_s += seconds
        for _ in range(_TURNS):
            await asyncio.sleep(0)


def run(
    test: Coroutine[Any, Any, object], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> None:
    """Run a test's coroutine to its end, or fail when it takes too long."""

    async def limited() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await test

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited())


def scope_of(
    path: str = "/",
    *,
    method: str = "POST",
    headers: Iterable[tuple[bytes, bytes]] = (),
    **more: object,
) -> Scope:
    """Make the scope of one request, as a server does (the ASGI specification, HTTP connection scope)."""
    path, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"a"), *headers],
        "client": ("10.0.0.1", 5000),
        "server": ("10.0.0.2", 80),
        **more,
    }


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    """Start an app, and stop it at the end (the ASGI specification, lifespan protocol)."""
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    from_app: asyncio.Queue[Message] = asyncio.Queue()

    async def tell(event: str) -> None:
        to_app.put_nowait({"type": event})
        async with asyncio.timeout(DEADLINE_S):
            assert (await from_app.get())["type"] == f"{event}.complete"

    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
    task = asyncio.create_task(app(scope, to_app.get, from_app.put))
    await tell("lifespan.startup")
    yield
    await tell("lifespan.shutdown")
    await task


class Server:
    """The server's side of one request: events wait here for the app, and what it sends is kept.

    Attributes:
        asked: how often the app asked for an event.
        sent: what the app sent, message by message.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.sent: list[Message] = []
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._is_app_waiting = asyncio.Event()

    def body(self, *pieces: bytes, is_all: bool = True) -> None:
        """Let pieces of the body arrive; the last one ends it, unless more is to come."""
        self._is_app_waiting.clear()
        for number, piece in enumerate(pieces, 1):
            more = number < len(pieces) or not is_all
            self._events.put_nowait({"type": "http.request", "body": piece, "more_body": more})

    def disconnect(self) -> None:
        """Let the client leave."""
        self._events.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> Message:
        self.asked += 1
        if self._events.empty():
            self._is_app_waiting.set()
        return await self._events.get()

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def until_app_waits(self) -> None:
        """Wait until the app has taken all that has arrived, and asks for more."""
        await self._is_app_waiting.wait()

    async def call(self, app: App, scope: Scope) -> None:
        """Have the app serve the request."""
        await app(scope, self.receive, self.send)

    @property
    def status(self) -> int:
        """The status of the response."""
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        """The headers of the response."""
        return dict(self.sent[0]["headers"])

    @property
    def answer(self) -> bytes:
        """The body of the response."""
        return b"".join(message.get("body", b"") for message in self.sent)


class Later:
    """A resource that submits whatever is posted, as a job."""

    def __init__(self, submissions: Submissions) -> None:
        self._submissions = submissions

    async def on_post(self, req: Request, resp: Response) -> None:
        operation = OPERATIONS["flip"]
        await self._submissions.submit(req, resp, operation, Query(operation.parameters))
