"""gearmand: background jobs, through the binary protocol (PROTOCOL in its source).

There is no client for Python that is kept up, so this is one: it speaks as little as it can, so that its cost
is gearmand's own. A background job belongs to its worker's connection until it is reported complete.
"""

import socket
import struct
import time
from collections.abc import Callable
from typing import Self

from benchmarks.peers.queues import work

_CAN_DO, _PRE_SLEEP, _NOOP, _SUBMIT_JOB_BG, _JOB_CREATED = 1, 4, 6, 18, 8
_GRAB_JOB, _NO_JOB, _JOB_ASSIGN, _WORK_COMPLETE = 9, 10, 11, 13

_HEADER = struct.Struct(">4sII")
_FUNCTION = b"run"
_RETRY_S = 0.1


class _Connection:
    """A connection to gearmand; to be used in a `with`."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._file.close()
        self._socket.close()

    def send(self, kind: int, *fields: bytes) -> None:
        """Send a packet."""
        body = b"\0".join(fields)
        self._socket.sendall(_HEADER.pack(b"\0REQ", kind, len(body)) + body)

    def receive(self) -> tuple[int, bytes]:
        """Wait for a packet, and return its kind and its body.

        Raises:
            ConnectionError: the server has closed the connection.
        """
        if len(head := self._file.read(_HEADER.size)) < _HEADER.size:
            raise ConnectionError("gearmand has closed the connection")
        _, kind, size = _HEADER.unpack(head)
        return kind, self._file.read(size)


def _serve(connection: _Connection) -> None:
    connection.send(_CAN_DO, _FUNCTION)
    connection.send(_GRAB_JOB)
    while True:
        kind, body = connection.receive()
        if kind == _NO_JOB:
            connection.send(_PRE_SLEEP)
        elif kind == _NOOP:
            connection.send(_GRAB_JOB)
        elif kind == _JOB_ASSIGN:
            handle, _, job = body.split(b"\0", 2)
            work.run(job.decode())
            connection.send(_WORK_COMPLETE, handle, b"")
            connection.send(_GRAB_JOB)


def _work(address: str) -> None:
    while True:
        try:
            with _Connection(address) as connection:
                _serve(connection)
        except OSError:
            time.sleep(_RETRY_S)


def _connect(address: str) -> Callable[[str], None]:
    connection = _Connection(address)

    def put(job: str) -> None:
        unique = job.partition(" ")[0].encode()
        connection.send(_SUBMIT_JOB_BG, _FUNCTION, unique, job.encode())
        kind, body = connection.receive()
        if kind != _JOB_CREATED:
            raise ConnectionError(f"gearmand answers {body!r}")

    def submit(job: str) -> None:
        nonlocal connection
        try:
            put(job)
        except OSError:
            connection.close()
            connection = _Connection(address)
            put(job)

    return submit


if __name__ == "__main__":
    work.main(_work, _connect)
