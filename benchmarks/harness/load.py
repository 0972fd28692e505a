"""A load generator that costs almost nothing: it shares the cores with what it measures.

Threads over blocking sockets: nearly all of their time is spent in the kernel. locust is what people use and
drives the comparison; next to an image service on two cores it would measure itself.
"""

import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import FileIO

from benchmarks.harness.messages import PIXELS, get, post
from benchmarks.harness.server import Address
from benchmarks.harness.waiting import sampled

_BUFFER_BYTES = 1 << 20
_TIMEOUT_S = 60.0
_LAST_HEALTH = get("/healthz", "Connection: close\r\n")


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


def run(address: Address, image: bytes, *, requests: int, at_once: int, target: str = PIXELS) -> Load:
    """Post one image again and again.

    Args:
        address: host and port, on this machine.
        image: the body of every request.
        requests: how many in all.
        at_once: how many connections, each with one request at a time.
        target: path and query.

    Raises:
        WrongAnswer: on any answer but 200.
    """
    message = FileIO(os.memfd_create("request"), "r+b")
    message.write(post(image, target=target))
    tickets = iter(range(requests))
    lock = threading.Lock()
    response_s: list[float] = []
    bodies: list[int] = []
    failures: list[BaseException] = []

    def client() -> None:
        buffer = bytearray(_BUFFER_BYTES)
        try:
            with socket.create_connection(address, timeout=_TIMEOUT_S) as connection:
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


def ask_health(address: Address) -> float:
    """Ask for `/healthz` once, on a new connection, and return how long that took, in milliseconds.

    Raises:
        WrongAnswer: on any answer but 200.
    """
    started = time.perf_counter()
    with socket.create_connection(address, timeout=_TIMEOUT_S) as connection:
        connection.sendall(_LAST_HEALTH)
        _read_answer(connection, bytearray(_BUFFER_BYTES))
    return (time.perf_counter() - started) * 1e3


def probed(address: Address) -> AbstractContextManager[list[float]]:
    """Ask for a service's health while the block runs; each value is a response time in milliseconds."""
    return sampled(lambda: ask_health(address), every_s=0.05)


def _read_answer(connection: socket.socket, buffer: bytearray) -> int:
    """Read one answer and return the size of its body; looks at status and length only, which is cheap."""
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
        # Counted and thrown away in the kernel (tcp(7), MSG_TRUNC), to cost as little as possible.
        count = connection.recv_into(view, min(missing, _BUFFER_BYTES), socket.MSG_TRUNC)
        if count == 0:
            raise WrongAnswer("the connection was closed within an answer")
        missing -= count
    return body_bytes
