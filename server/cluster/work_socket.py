"""The work socket: what every worker sends tasks to and every engine takes them from.

A task is one `SOCK_SEQPACKET` message with three descriptors attached (`SCM_RIGHTS`): the upload, the file
for the result, and one end of a new reply socket. No byte of an image passes through a socket. The engine
holds the only other end of the reply socket, so when it dies the worker reads end of file: that is the crash
signal.

Source: unix(7).
"""

import select
import socket
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import Self

#: The longest message. A task is a few hundred bytes; an answer with a traceback may be longer.
MESSAGE_BYTES = 65536


class Lane(IntEnum):
    """What a task waits in: interactive engines prefer one over the next, background engines take turns."""

    RETRY = 0  # has waited in the queue once and lost its engine
    INTERACTIVE = 1
    BACKGROUND = 2  # no client waits for it
    YIELDING = 3  # of a client that uses more than others that are active
    SURPLUS = 4  # of a client that has others in front of it, enough for all engines


class WorkSocket:
    """A socket pair for each lane. Made in the arbiter; workers inherit it and pass `engine_ends` on."""

    def __init__(self) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in Lane]
        # Several processes wait on either end; one that loses the race must not block in the call.
        for end in (end for pair in pairs for end in pair):
            end.setblocking(False)  # noqa: FBT003 the standard library has no other way
        self.worker_ends, self.engine_ends = zip(*pairs, strict=True)
        # No worker reads here: what an engine that was taken over sent would stay, with its descriptors.
        for end in self.worker_ends:
            end.shutdown(socket.SHUT_RD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (*self.worker_ends, *self.engine_ends):
            end.close()


class Inbox:
    """What an engine takes messages from: the lanes, until its control socket closes.

    A message wakes one of the engines that wait (EPOLLEXCLUSIVE of epoll_ctl(2)), and no
    other one. So an engine that was woken looks into all lanes before it sleeps again, or stops (ADR 17).

    Args:
        lanes: the engines' ends of the work socket, the most urgent one first.
        control: its end of file means that no more messages are wanted.
        look_every_s: after how long to look into all lanes without being woken, in seconds; so long a message
            waits if the engine that was woken for it dies.
        on_look: called each time; a sign of life.
        takes_turns: whether the lanes take turns, so that none starves, and none is more urgent.
    """

    def __init__(
        self,
        lanes: Sequence[socket.socket],
        control: socket.socket,
        *,
        look_every_s: float = 1.0,
        on_look: Callable[[], None] = lambda: None,
        takes_turns: bool = False,
    ) -> None:
        self._lanes = list(lanes)
        self._takes_turns = takes_turns
        self._control = control
        self._look_every_s = look_every_s
        self._on_look = on_look
        self._epoll = select.epoll()
        self._epoll.register(control, select.EPOLLIN)
        for lane in lanes:
            _register_exclusively(self._epoll, lane)

    def take(self, max_files: int) -> tuple[bytes, list[int]] | None:
        """Wait for a message and take it with its descriptors; None when no more are wanted."""
        # What came while this engine was busy has woken another one, or will be found by the first to ask.
        ready = self.poll(0)
        if self._control.fileno() in ready:
            return None
        was_woken = bool(ready)
        while True:
            if was_woken:
                for lane in sorted(self._lanes, key=lambda lane: lane.fileno() not in ready):
                    with suppress(BlockingIOError):  # another engine was faster
                        message, files = receive(lane, max_files)
                        if self._takes_turns:
                            self._lanes.remove(lane)
                            self._lanes.append(lane)
                        return (message, files) if message else None
                # Not before: the last message may have woken this engine alone.
                if self._control.fileno() in ready:
                    return None
            ready = self.poll(self._look_every_s)
            was_woken = True

    def poll(self, timeout_s: float) -> set[int]:
        """Wait until a descriptor is ready, and return those that are."""
        self._on_look()
        return {descriptor for descriptor, _ in self._epoll.poll(timeout_s, len(self._lanes) + 1)}


def _register_exclusively(epoll: select.epoll, lane: socket.socket) -> None:
    try:
        epoll.register(lane, select.EPOLLIN | select.EPOLLEXCLUSIVE)
    except (AttributeError, OSError):  # a kernel before Linux 4.5: a message wakes all engines
        epoll.register(lane, select.EPOLLIN)


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
