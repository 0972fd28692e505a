"""Clients that never pause, and what went wrong for them."""

import socket
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Self

from PIL import Image

from benchmarks.harness.messages import post, read_answer, read_head
from benchmarks.harness.waiting import DEADLINE_S

__all__ = [
    "LARGE_REQUEST",
    "REQUEST",
    "Load",
    "ask_once",
    "ask_until_told_to_close",
    "read_answer",
    "read_head",
]

#: How many requests a keep-alive client sends at once.
PIPELINED = 5


def _request(side: int, headers: str = "") -> bytes:
    """Ask for an image that is small on its way in and large on its way out."""
    with BytesIO() as file:
        Image.new("RGB", (side, side)).save(file, "PNG")
        return post(file.getvalue(), headers, target="/flip?format=bmp")


REQUEST = _request(256)
LAST_REQUEST = _request(256, "Connection: close\r\n")
LARGE_REQUEST = _request(3000)


class Load:
    """Several clients that ask again as soon as they have been answered, each in a thread of its own.

    Args:
        ask: what one connection does; it yields after each answer.
        clients: how many there are.
    """

    def __init__(self, ask: Callable[[], Iterator[None]], clients: int) -> None:
        self._ask = ask
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self._news = threading.Condition()
        self._is_over = False
        self.answers = 0
        self.failures: list[Exception] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join(DEADLINE_S)

    def wait_for_more(self, answers: int = 100) -> None:
        """Wait until a number of further answers have come."""
        with self._news:
            goal = self.answers + answers
            assert self._news.wait_for(lambda: self.answers >= goal or self.failures, DEADLINE_S)
        assert self.failures == []

    def _run(self) -> None:
        while not self._is_over:
            try:
                for _ in self._ask():
                    with self._news:
                        self.answers += 1
                        self._news.notify_all()
                    if self._is_over:
                        break
            except Exception as failure:  # noqa: BLE001 the test has to see every failure
                with self._news:
                    self.failures.append(failure)
                    self._news.notify_all()
                return


def ask_once(port: int) -> Iterator[None]:
    """Have an image flipped on a new connection."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client, client.makefile("rb") as stream:
        client.sendall(LAST_REQUEST)
        status, _, body = read_answer(stream)
        assert status == 200, body
    yield


def ask_until_told_to_close(port: int) -> Iterator[None]:
    """Have images flipped, several requests at once, until an answer says that it is the last."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client, client.makefile("rb") as stream:
        while True:
            client.sendall(PIPELINED * REQUEST)
            for _ in range(PIPELINED):
                status, headers, body = read_answer(stream)
                assert status == 200, body
                yield
                if headers["Connection"] == "close":
                    assert stream.read() == b""  # an orderly end, no reset
                    return
