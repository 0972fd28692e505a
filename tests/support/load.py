"""Clients that never pause, and what went wrong for them."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from io import BufferedReader, BytesIO
from typing import Self

from PIL import Image

from support.live_server import DEADLINE_S

#: How many requests a client that keeps its connection sends at once.
PIPELINED = 5


def _request(side: int, *headers: bytes) -> bytes:
    """Ask for a picture that is small on its way in and large on its way out."""
    with BytesIO() as file:
        Image.new("RGB", (side, side)).save(file, "PNG")
        body = file.getvalue()
    head = [
        b"POST /flip?format=bmp HTTP/1.1",
        b"Host: localhost",
        b"Content-Length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join([*head, b"", body])


REQUEST = _request(256)
LAST_REQUEST = _request(256, b"Connection: close")
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
        """Wait until so many more have come."""
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
            except Exception as failure:  # noqa: BLE001 the test has to see it, whatever it is
                with self._news:
                    self.failures.append(failure)
                    self._news.notify_all()
                return


def read_head(stream: BufferedReader) -> Message:
    """Read an answer up to its body; its status is added to the headers."""
    status_line = stream.readline()
    if not status_line:
        raise ConnectionError("closed without an answer")
    headers = http.client.parse_headers(stream)
    headers["Status"] = status_line.split()[1].decode()
    return headers


def read_answer(stream: BufferedReader) -> tuple[int, Message, bytes]:
    """Read one answer of known length, and not a byte of the next."""
    headers = read_head(stream)
    body = stream.read(int(headers["Content-Length"]))
    assert len(body) == int(headers["Content-Length"])
    return int(headers["Status"]), headers, body


def ask_once(port: int) -> Iterator[None]:
    """Have a picture flipped on a new connection."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client, client.makefile("rb") as stream:
        client.sendall(LAST_REQUEST)
        status, _, body = read_answer(stream)
        assert status == 200, body
    yield


def ask_until_told_to_close(port: int) -> Iterator[None]:
    """Have pictures flipped, several requests at once, until an answer says that it is the last."""
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
