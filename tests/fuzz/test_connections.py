"""Malformed and odd requests on kept connections: each is a request of its own, whatever came before it.

The protocol serves the real app and an engine in the tests' own event loop, without a gunicorn process. The
requests on one connection may come from different clients, as they do behind a proxy that pools connections.
"""

import asyncio
import gc
import os
import re
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.asgi import DEADLINE_S, lifespan
from support.gateway import Client, Event, Gateway, gateway
from support.wire import Answer, answers

from fuzz import malformed, vectors
from server.app import create_service
from server.cluster.scoreboard import Cell
from server.settings import Settings

#: The smallest image there is.
IMAGE = b"P6 1 1 255\n\1\2\3"

#: What a request is answered with that ends before its head can be understood.
REFUSED = {400, 414, 431, 501}

#: How much the server reads at once: whether the app sees some of a longer request before its end is refused
#: depends on how it arrives.
PIECE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one request: its answer, and its line in the log."""

    answer: Answer
    line: Event

    @property
    def request_id(self) -> str:
        return self.answer.headers["x-request-id"]

    def facts(self) -> dict[str, Any]:
        """All that does not differ from one time to the next."""
        facts = ("client", "method", "path", "status", "problem", "bytes_in", "image_path")
        return {name: self.line[name] for name in facts} | {"body": len(self.answer.body)}


class Service:
    """The real app and an engine behind one worker, for all tests of this module.

    Args:
        runner: runs the event loop that they live in.
        served: opens connections.
        events: the log.
    """

    def __init__(self, runner: asyncio.Runner, served: Gateway, events: list[Event]) -> None:
        self.run = runner.run
        self._served = served
        self._events = events
        self._client: Client
        self._before: set[asyncio.Task[Any]] = set()

    async def connect(self) -> Client:
        self._events.clear()
        self._before = asyncio.all_tasks()
        self._client = await self._served.connect()
        return self._client

    async def lines(self) -> list[Event]:
        """Leave, wait until all is over, and return the lines of the log, one for each request."""
        self._client.close()
        async with asyncio.timeout(DEADLINE_S):
            await self._served.protocols.pop().lost.wait()
            await asyncio.gather(*asyncio.all_tasks() - self._before, return_exceptions=True)
        scoreboard = self._served.membership.scoreboard
        assert [scoreboard.total(cell) for cell in (Cell.HELD_BYTES, Cell.PREDICTED_US)] == [0, 0]
        lines = [line for line in self._events if line["log_level"] != "debug"]
        assert [line for line in lines if line["event"] != "request"] == []
        assert [line["path"] for line in lines if line["path"].endswith("/smuggled")] == []
        return lines

    def totals(self) -> tuple[int, ...]:
        """What the worker has counted: requests, and bytes of bodies in and out."""
        row = self._served.membership.row
        return tuple(row[cell] for cell in (Cell.REQUESTS, Cell.BYTES_IN, Cell.BYTES_OUT))

    async def ask(self, *requests: bytes, is_pipelined: bool = False) -> list[Served]:
        """Send requests over one connection, the last of which ends it."""
        before = self.totals()
        client = await self.connect()
        *first, last = requests
        read = []
        if is_pipelined:
            last = b"".join(requests)
        else:
            for request in first:
                await client.send(request)
                read.append(await client.read())
        # The service reads no more while a client leaves half a megabyte of answers unread.
        sending = asyncio.create_task(client.send(last))
        received = await client.read_to_end()
        await sending
        heads_only = len(first) - len(read) if requests[-1].startswith(b"HEAD ") else None
        read += answers(received, no_body=heads_only)
        closes = [answer.headers.get("connection") == "close" for answer in read]
        assert closes == [False] * (len(read) - 1) + [True]
        lines = await self.lines()
        by_id = {line["request_id"]: line for line in lines}
        assert len(by_id) == len(lines) == len(read)
        served = [Served(answer, by_id[answer.headers["x-request-id"]]) for answer in read]
        counted = (
            len(served),
            sum(line["bytes_in"] for line in lines),
            sum(len(one.answer.body) for one in served),
        )
        assert tuple(after - was for was, after in zip(before, self.totals(), strict=True)) == counted
        return served


@asynccontextmanager
async def service(sample: Path) -> AsyncIterator[tuple[Gateway, list[Event]]]:
    async def not_yet(*_: object) -> None:
        """Stand in for the app, which needs the gateway's membership."""

    settings = Settings(sample_image=sample, jobs="off")
    async with gateway(not_yet, settings) as (served, events):
        app = served.worker.asgi = create_service(settings, served.membership, os.environ).app
        async with lifespan(app):
            yield served, events
        del served.worker.asgi


@pytest.fixture(scope="module")
def it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    sample = tmp_path_factory.mktemp("sample") / "small.ppm"
    sample.write_bytes(IMAGE)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        yield Service(runner, *runner.run(stack.enter_async_context(service(sample))))
        runner.run(stack.aclose())
        del stack
    with warnings.catch_warnings():  # memory files are closed with their process, which goes on here
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def sound(request_id: str, image: bytes = IMAGE) -> bytes:
    """A request as it should be, with a body."""
    return malformed.with_id(malformed.post(b"Content-Length: %d" % len(image), body=image), request_id)


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        pytest.param(*row, id=f"{kind}: {name}")
        for kind, rows in (malformed.TABLES | vectors.TABLES).items()
        for name, row in rows.items()
    ],
)
def test_a_request_is_the_same_wherever_it_stands_on_a_connection(
    it: Service, sent: bytes, statuses: tuple[int, ...]
) -> None:
    async def test() -> None:
        alone = await it.ask(malformed.with_id(sent, "own"))
        check(alone, sent, statuses, "own")
        for earlier in (["first"], ["first", "second"]):
            for is_pipelined in (False, True):
                requests = [*map(sound, earlier), malformed.with_id(sent, "own")]
                served = await it.ask(*requests, is_pipelined=is_pipelined)
                before, after = served[: len(earlier)], served[len(earlier) :]
                assert [one.request_id for one in before] == earlier
                for one in before:
                    assert (one.answer.status, one.line["status"]) == (200, 200)
                    assert (one.line["path"], one.line["bytes_in"]) == ("/flip", len(IMAGE))
                check(after, sent, statuses, "own")
                if len(sent) < PIECE_BYTES:
                    assert [one.facts() for one in after] == [one.facts() for one in alone]

    it.run(test())


@pytest.mark.parametrize("is_pipelined", [False, True], ids=["one by one", "pipelined"])
def test_a_body_that_went_past_the_app_ends_where_it_should(it: Service, *, is_pipelined: bool) -> None:
    async def test() -> None:
        image = b"P6 400 400 255\n" + malformed.SMUGGLED.ljust(480_000)
        refused, statuses = malformed.HEADS["no host"]
        requests = [sound("first", image), sound("second", image), malformed.with_id(refused, "own")]
        *large, last = await it.ask(*requests, is_pipelined=is_pipelined)
        assert [(one.request_id, one.line["bytes_in"]) for one in large] == [
            ("first", len(image)),
            ("second", len(image)),
        ]
        check([last], refused, statuses, "own")

    it.run(test())


def check(served: list[Served], sent: bytes, statuses: tuple[int, ...], request_id: str) -> None:
    """Check the answers to a row, and that its first request has its own id, or else a new one."""
    assert tuple(one.answer.status for one in served) == statuses
    for one in served:
        assert one.line["status"] == one.answer.status
        if one.answer.status >= 400 and one.answer.body:
            assert one.answer.headers["content-type"] == "application/problem+json"
            assert f'"request_id": "{one.request_id}"'.encode() in one.answer.body
    assert sum(one.line["bytes_in"] for one in served) <= len(sent)
    first = served[0]
    if first.line["path"] == "-":  # its head could not be parsed
        assert first.answer.status in REFUSED
        assert first.line["bytes_in"] == 0
        assert re.fullmatch("[0-9a-f]{32}", first.request_id)
    elif malformed.with_id(sent, request_id) != sent:
        assert first.request_id == request_id


@pytest.mark.parametrize("sent", malformed.HALF_CLOSED.values(), ids=malformed.HALF_CLOSED)
def test_a_client_that_stops_in_the_middle_of_its_second_request_gets_no_answer_to_it(
    it: Service, sent: bytes
) -> None:
    async def test() -> None:
        client = await it.connect()
        await client.send(sound("first"))
        assert (await client.read()).headers["x-request-id"] == "first"
        await client.send(malformed.with_id(sent, "own"))
        client.end()
        assert await client.read_to_end() == b""
        first, *others = await it.lines()
        assert (first["request_id"], first["status"], first["bytes_in"]) == ("first", 200, len(IMAGE))
        expected = [("own", 499)] if b"\r\n\r\n" in sent else []
        assert [(line["request_id"], line["status"]) for line in others] == expected

    it.run(test())
