"""A load generator that costs next to nothing: it shares the cores with what it measures.

Threads over blocking sockets: nearly all of their time is spent in the kernel. locust is what people use
and drives the other benchmarks; beside a picture service on two cores it would measure itself.
"""

import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO

#: Work for a core, whatever the picture: decoded and encoded again.
PIXELS = "/flip?path=pixels"

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Load:
    """What came of one round.

    Attributes:
        wall_s: from the first request to the last answer, in seconds.
        response_s: response time of each request, in seconds, in no order.
        bodies: size of each answer's body, in bytes.
    """

    wall_s: float
    response_s: Sequence[float]
    bodies: Sequence[int]


class WrongAnswer(Exception):
    """The service did not answer 200."""


def run(
    address: tuple[str, int], picture: bytes, *, requests: int, at_once: int, target: str = PIXELS
) -> Load:
    """Post one picture again and again.

    Args:
        address: host and port, on this machine.
        picture: the body of every request.
        requests: how many in all.
        at_once: how many connections, each with one request at a time.
        target: path and query.

    Raises:
        WrongAnswer: on any answer but 200.
    """
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(picture)}\r\n\r\n"
    message = FileIO(os.memfd_create("request"), "r+b")
    message.write(head.encode() + picture)
    tickets = iter(range(requests))
    lock = threading.Lock()
    response_s: list[float] = []
    bodies: list[int] = []
    failures: list[BaseException] = []

    def client() -> None:
        buffer = bytearray(_BUFFER_BYTES)
        try:
            with socket.create_connection(address, timeout=60) as connection:
                while True:
                    with lock:
                        if next(tickets, None) is None:
                            return
                    started = time.perf_counter()
                    connection.sendfile(message)  # from the kernel to the kernel
                    bodies.append(_read_answer(connection, buffer))
                    response_s.append(time.perf_counter() - started)
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=client) for _ in range(at_once)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    message.close()
    if failures:
        raise failures[0]
    return Load(time.perf_counter() - started, response_s, bodies)


def ask_health(address: tuple[str, int]) -> float:
    """Ask for `/healthz` once, on a new connection, and return how long that took, in milliseconds.

    Raises:
        WrongAnswer: it is not well.
    """
    started = time.perf_counter()
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        _read_answer(connection, bytearray(_BUFFER_BYTES))
    return (time.perf_counter() - started) * 1e3


def _read_answer(connection: socket.socket, buffer: bytearray) -> int:
    """Read one answer and return the size of its body."""
    view = memoryview(buffer)
    received = 0
    while (end := buffer.find(b"\r\n\r\n", 0, received)) < 0:
        count = connection.recv_into(view[received:])
        if count == 0:
            raise WrongAnswer("the connection was closed before an answer")
        received += count
    head = bytes(view[:end]).lower()
    if not head.startswith(b"http/1.1 200 "):
        raise WrongAnswer(bytes(view[:received]).decode(errors="replace"))
    body_bytes = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
    missing = body_bytes - (received - end - 4)
    while missing:
        # Counted and thrown away in the kernel (tcp(7), MSG_TRUNC): we are here to cost nothing.
        count = connection.recv_into(view, min(missing, _BUFFER_BYTES), socket.MSG_TRUNC)
        if count == 0:
            raise WrongAnswer("the connection was closed within an answer")
        missing -= count
    return body_bytes
