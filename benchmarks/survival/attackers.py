"""Attackers: clients that cost a service as much as they can, each for little of their own.

An attack is one process: `python -m benchmarks.survival.attackers NAME HOST PORT SECONDS NICENESS SIZES
ADDRESSES`. It makes what it sends, prints `ready`, and waits for a line; then it attacks for that many
seconds and prints what it has done, as JSON. All are bounded, in time and in the number of connections, and
send to the loopback address that they are given.

The attackers share the cores with the service, so their messages are made before they begin. What is left is
system calls: a few hundredths of a core for most, and about a tenth for those that send or read tens of
megabytes a second, or open thousands of connections. They run at the niceness of engines: without any they
could delay the polite, and at 19 engines would leave them no core for seconds, which makes an attack look
harmless. `cpu_s` in what they print says what they have spent, `late_s` how long they waited for a core.
"""

import asyncio
import json
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Any

from benchmarks.harness.messages import get, parse_head, post
from benchmarks.harness.processes import raise_descriptor_limit
from benchmarks.harness.server import Address
from benchmarks.survival import specimens
from benchmarks.survival.polite import one_megapixel

#: What did not reach the service; everything else is an answer to an attack, or the lack of one.
UNCONNECTED, CONNECTING = "no connection", "still connecting"

#: How long a connection waits after a refusal before it attacks again, in seconds.
_PAUSE_S = 0.25

#: So small that the kernel cannot receive the answer in the client's place.
_NARROW_BYTES = 4096

_PIECE_BYTES = 1 << 18
_END_OF_HEAD = b"\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.1 (\d+) ")

#: How fast idle connections are opened.
_OPENED_PER_S = 2000

_TICK_S = 0.05

#: Paced uploads send a slice this often.
_SLICES_PER_S = 8


#: A whole attack, and one of its clients, which is told its number.
_Attack = Callable[[], Coroutine[Any, Any, None]]
_Client = Callable[[int], Coroutine[Any, Any, object]]


@dataclass(slots=True)
class Attackers:
    """All clients of one attack, and what they have done.

    Attributes:
        addresses: that they come from, in turn.
        planned: how many requests it takes to call it an attack.
        requests: how many were begun; each is counted under one of `answers`, at the end at the latest.
        late_s: the longest that this process waited for a core.
    """

    address: Address
    seconds: float
    addresses: Sequence[str]
    planned: int = 0
    requests: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    late_s: float = 0.0
    _number: Iterator[int] = field(default_factory=count)

    async def run(self, attack: _Attack) -> None:
        """Attack until the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.seconds), asyncio.TaskGroup() as group:
                group.create_task(self._watch())
                group.create_task(attack())

    async def _watch(self) -> None:
        while True:
            due_s = time.monotonic() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self.late_s = max(self.late_s, time.monotonic() - due_s)

    async def ask(
        self,
        message: bytes,
        name: str = "",
        *,
        reads_per_s: int = 0,
        sends_per_s: int = 0,
    ) -> bool:
        """Send one request on a new connection and read the answer.

        Args:
            message: the request.
            name: a prefix of the outcome.
            reads_per_s: how many bytes a second are read of the answer's body; 0 for as many as there are.
            sends_per_s: how many bytes a second are sent; 0 for as many as possible.

        Returns:
            whether the answer is complete and below 400.
        """
        with self._counted(name) as talk, self._socket(is_narrow=bool(reads_per_s)) as connection:
            await _connect(connection, self.address)
            talk.outcome = "unanswered"
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have been answered before
                await _send(connection, message, sends_per_s)
            await _read_answer(connection, talk, reads_per_s)
        return talk.is_welcome

    async def hold(self, message: bytes = b"") -> None:
        """Send this much on a new connection, and nothing else until the service answers or closes it."""
        with self._counted() as talk, self._socket() as connection:
            await _connect(connection, self.address)
            talk.outcome = "held to the end"
            await asyncio.get_running_loop().sock_sendall(connection, message)
            await _read_until_closed(connection, talk)

    async def burst(self, message: bytes, number: int) -> bool:
        """Send many requests in one piece on a new connection, and read as many answers."""
        received = bytearray()
        self.requests += number
        is_connected = False
        try:
            with suppress(OSError), self._socket() as connection:
                await _connect(connection, self.address)
                is_connected = True
                await asyncio.get_running_loop().sock_sendall(connection, message)
                while piece := await asyncio.get_running_loop().sock_recv(connection, _PIECE_BYTES):
                    received += piece
                    if received.count(b"HTTP/1.1 ") == number and received.endswith(b"\n"):
                        break
        finally:
            statuses = [status.decode() for status in _STATUS.findall(received)]
            self.answers.update(statuses)
            self.answers["unanswered" if is_connected else UNCONNECTED] += number - len(statuses)
        return len(statuses) == number

    async def at_once(self, clients: int, client: _Client) -> None:
        """Run clients at the same time."""
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(client(number))

    async def at_rate(self, per_s: float, client: _Client) -> None:
        """Begin with a new client at fixed intervals, whatever became of those before."""
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in count():
                group.create_task(client(number))
                await asyncio.sleep(began_s + (number + 1) / per_s - time.monotonic())

    @contextmanager
    def _counted(self, name: str = "") -> Iterator["_Talk"]:
        talk = _Talk()
        self.requests += 1
        try:
            yield talk
        except OSError:
            talk.closed()
        finally:
            self.answers[f"{name} {talk.outcome}".strip()] += 1

    def _socket(self, *, is_narrow: bool = False) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)  # noqa: FBT003 the standard library has no other way
        if is_narrow:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW_BYTES)
        connection.bind((self.addresses[next(self._number) % len(self.addresses)], 0))
        return connection


@dataclass(slots=True)
class _Talk:
    """What became of one request so far."""

    outcome: str = CONNECTING
    status: str = ""

    @property
    def is_welcome(self) -> bool:
        return self.outcome == self.status and self.status < "4"

    def began(self, status: str) -> None:
        self.status = status
        self.outcome = f"{status} unfinished"

    def closed(self) -> None:
        """Note that the service has closed the connection, or never took it."""
        if self.outcome == CONNECTING:
            self.outcome = UNCONNECTED
        else:
            self.outcome = f"{self.status} cut off" if self.status else "closed"


async def _connect(connection: socket.socket, address: Address) -> None:
    await asyncio.get_running_loop().sock_connect(connection, address)


async def _send(connection: socket.socket, message: bytes, sends_per_s: int) -> None:
    loop = asyncio.get_running_loop()
    if not sends_per_s:
        await loop.sock_sendall(connection, message)
        return
    slice_bytes = max(1, sends_per_s // _SLICES_PER_S)
    for place in range(0, len(message), slice_bytes):
        await loop.sock_sendall(connection, message[place : place + slice_bytes])
        await asyncio.sleep(1 / _SLICES_PER_S)


async def _read_answer(connection: socket.socket, talk: _Talk, reads_per_s: int) -> None:
    loop = asyncio.get_running_loop()
    received = bytearray()
    while (end := received.find(_END_OF_HEAD)) < 0:
        piece = await loop.sock_recv(connection, _NARROW_BYTES)
        if not piece:
            talk.closed()
            return
        received += piece
    head = parse_head(received[: end + len(_END_OF_HEAD)])
    talk.began(head["Status"])
    missing = int(head.get("Content-Length", 0)) - (len(received) - end - len(_END_OF_HEAD))
    buffer = bytearray(min(_PIECE_BYTES, reads_per_s // _SLICES_PER_S or _PIECE_BYTES))
    while missing > 0:
        if reads_per_s:
            await asyncio.sleep(1 / _SLICES_PER_S)
        got = await loop.sock_recv_into(connection, buffer)
        if not got:
            talk.closed()
            return
        missing -= got
    talk.outcome = talk.status


async def _read_until_closed(connection: socket.socket, talk: _Talk) -> None:
    loop = asyncio.get_running_loop()
    received = b""
    while piece := await loop.sock_recv(connection, _NARROW_BYTES):
        received = received or piece
        if found := _STATUS.match(received):
            talk.outcome = talk.status = found[1].decode()
            return
    talk.closed()


# --- The attacks. Each takes its sizes by name, and returns a coroutine for `run` once all is made. ---------


def slow_readers(attackers: Attackers, *, connections: int, side: int, reads_per_s: int) -> _Attack:
    """Ask for a huge BMP with a tiny WebP, and read it slowly."""
    message = post(specimens.plain_webp(side, side), target="/flip?format=bmp")
    attackers.planned = connections

    async def client(_: int) -> None:
        while True:
            await attackers.ask(message, reads_per_s=reads_per_s)
            await asyncio.sleep(_PAUSE_S)

    return lambda: attackers.at_once(connections, client)


def announced_uploads(attackers: Attackers, *, per_s: float, announced_bytes: int) -> _Attack:
    """Announce large bodies, again and again, and send nothing of them."""
    head = f"POST /flip HTTP/1.1\r\nHost: localhost\r\nContent-Length: {announced_bytes}\r\n\r\n".encode()
    attackers.planned = int(per_s * attackers.seconds)
    return lambda: attackers.at_rate(per_s, lambda _: attackers.hold(head))


def greedy_client(attackers: Attackers, *, connections: int) -> _Attack:
    """Flip as much as possible, and more than a client's share."""
    message = post(one_megapixel(), target="/flip")
    attackers.planned = connections

    async def client(_: int) -> None:
        while True:
            if not await attackers.ask(message):
                await asyncio.sleep(_PAUSE_S)

    return lambda: attackers.at_once(connections, client)


def idle_connections(attackers: Attackers, *, connections: int) -> _Attack:
    """Hold many connections and say nothing on them."""
    raise_descriptor_limit()
    attackers.planned = connections

    async def client(number: int) -> None:
        await asyncio.sleep(number / _OPENED_PER_S)
        while True:
            await attackers.hold()
            await asyncio.sleep(_PAUSE_S)

    return lambda: attackers.at_once(connections, client)


def tiny_chunks(attackers: Attackers, *, connections: int, body_bytes: int, sends_per_s: int) -> _Attack:
    """Upload bodies of one-byte chunks; they are no images, so that they cost no engine time."""
    head = b"POST /flip HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    message = head + b"".join(specimens.one_byte_chunks(b"x" * body_bytes))
    attackers.planned = connections

    async def client(number: int) -> None:
        await asyncio.sleep(number / connections / _SLICES_PER_S)
        while True:
            if not await attackers.ask(message, sends_per_s=sends_per_s):
                await asyncio.sleep(_PAUSE_S)

    return lambda: attackers.at_once(connections, client)


def many_fields(attackers: Attackers, *, per_s: float, fields: int) -> _Attack:
    """Send heads of thousands of header fields."""
    message = get("/healthz", "".join(f"X-{number}: {number}\r\n" for number in range(fields)))
    attackers.planned = int(per_s * attackers.seconds)
    return lambda: attackers.at_rate(per_s, lambda _: attackers.ask(message))


def pipelined(attackers: Attackers, *, connections: int, burst: int, every_s: float) -> _Attack:
    """Pipeline many small requests in one piece."""
    message = get("/healthz") * burst
    attackers.planned = connections * burst

    async def client(number: int) -> None:
        await asyncio.sleep(every_s * number / connections)
        while True:
            await attackers.burst(message, burst)
            await asyncio.sleep(every_s)

    return lambda: attackers.at_once(connections, client)


def tiny_images(attackers: Attackers, *, per_s: float, side: int) -> _Attack:
    """Send tiny images that take an engine long."""
    message = post(specimens.plain_webp(side, side), target="/flip")
    attackers.planned = int(per_s * attackers.seconds)
    return lambda: attackers.at_rate(per_s, lambda _: attackers.ask(message))


def slow_formats(attackers: Attackers, *, per_s: float, comment_bytes: int, side: int) -> _Attack:
    """Send what is decoded byte by byte: PPM with long comments, and long QOI."""
    messages = {
        "ppm": post(specimens.commented_ppm(comment_bytes), target="/flip?format=png"),
        "qoi": post(specimens.long_qoi(side), target="/flip?format=png"),
    }
    attackers.planned = int(per_s * attackers.seconds)
    return lambda: attackers.at_rate(per_s, _each_in_turn(attackers, messages))


def exploding_results(
    attackers: Attackers, *, per_s: float, side: int, frame_side: int, frames: int
) -> _Attack:
    """Send small images and animations whose results are large, for pairs of formats, and read these fast."""
    webp, animation = (
        specimens.plain_webp(side, side),
        specimens.plain_animation(frame_side, frame_side, frames),
    )
    png = specimens.plain_png(side)
    messages = {
        "webp-bmp": post(webp, target="/flip?format=bmp"),
        "animation-png": post(animation, target="/flip?format=png"),
        "png-bmp": post(png, target="/flip?format=bmp"),
        "animation-tiff": post(animation, target="/flip?format=tiff"),
        "webp-jpeg": post(webp, target="/flip?format=jpeg&quality=100"),
        "animation-gif": post(animation, target="/flip?format=gif"),
        "webp-tiff": post(webp, target="/flip?format=tiff"),
        "webp-png": post(webp, target="/flip?format=png&effort=low"),
    }
    attackers.planned = int(per_s * attackers.seconds)
    return lambda: attackers.at_rate(per_s, _each_in_turn(attackers, messages))


def _each_in_turn(attackers: Attackers, messages: dict[str, bytes]) -> _Client:
    turns = cycle(messages.items())

    async def client(_: int) -> bool:
        name, message = next(turns)
        return await attackers.ask(message, name)

    return client


BY_NAME: dict[str, Callable[..., _Attack]] = {
    attack.__name__: attack
    for attack in (
        slow_readers,
        announced_uploads,
        greedy_client,
        idle_connections,
        tiny_chunks,
        many_fields,
        pipelined,
        tiny_images,
        slow_formats,
        exploding_results,
    )
}


def main() -> None:
    """Run one attack; the arguments are those that `attacks` gives."""
    name, host, port, seconds, niceness, sizes, addresses = sys.argv[1:]
    _be_nice(int(niceness))
    attackers = Attackers((host, int(port)), float(seconds), addresses.split(","))
    attack = BY_NAME[name](attackers, **json.loads(sizes))
    print("ready", flush=True)
    sys.stdin.readline()
    before_s = time.process_time()
    asyncio.run(attackers.run(attack))
    cpu_s = time.process_time() - before_s
    done = {name: getattr(attackers, name) for name in ("planned", "requests", "answers", "late_s")}
    print(json.dumps(done | {"cpu_s": cpu_s}), flush=True)


def _be_nice(niceness: int) -> None:
    os.nice(niceness)
    # With autogroups, niceness counts only within a session, and a session's own between them (sched(7)).
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(niceness))


if __name__ == "__main__":
    main()
