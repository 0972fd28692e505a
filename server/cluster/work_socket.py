"""The work socket: what every worker sends tasks to and every engine takes them from.

A task is one `SOCK_SEQPACKET` message with three descriptors attached (`SCM_RIGHTS`): the upload, the file
for the result, and one end of a new reply socket. No byte of an image passes through a socket. The engine
holds the only other end of the reply socket, so when it dies the worker reads end of file: that is the crash
signal.

Source: unix(7).
"""

import socket
from array import array
from collections.abc import Sequence
from enum import IntEnum
from typing import Self

#: The longest message. A task is a few hundred bytes; an answer with a traceback may be longer.
MESSAGE_BYTES = 65536


class Lane(IntEnum):
    """The priority of a task: an engine empties a lane before it looks at the next one."""

    RETRY = 0  # has waited in the queue once and lost its engine
    INTERACTIVE = 1


class WorkSocket:
    """A socket pair for each lane. Made in the arbiter; workers inherit it and pass `engine_ends` on."""

    def __init__(self) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in Lane]
        # Several processes wait on either end; one that loses the race must not block in the call.
        for end in (end for pair in pairs for end in pair):
            end.setblocking(False)  # noqa: FBT003 the standard library has no other way
        self.worker_ends, self.engine_ends = zip(*pairs, strict=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (*self.worker_ends, *self.engine_ends):
            end.close()


def send(to: socket.socket, message: bytes, files: Sequence[int] = ()) -> None:
    """Send one message with its descriptors.

    Raises:
        BlockingIOError: the receiver's queue is full.
    """
    socket.send_fds(to, [message], files)


def receive(from_: socket.socket, max_files: int) -> tuple[bytes, list[int]]:
    """Take one message with its descriptors; an empty one is end of file.

    Raises:
        BlockingIOError: there is no message.
    """
    # Not socket.recv_fds: it ignores its flags (CPython 3.11).
    numbers = array("i")
    room = socket.CMSG_LEN(max_files * numbers.itemsize)
    message, ancillary, _, _ = from_.recvmsg(MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return message, list(numbers)
