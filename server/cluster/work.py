"""The work socket: what every worker sends tasks to and every engine takes them from.

A task is one `SOCK_SEQPACKET` message with three descriptors riding along (`SCM_RIGHTS`): the upload, the
file for the result, and one end of a fresh reply socket. No byte of an image passes through a socket. The
engine holds the only other end of the reply socket, so when it dies the worker reads end of file: that is
the crash signal.

Source: unix(7), memfd_create(2).
"""

import json
import mmap
import os
import socket
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from io import FileIO
from typing import Any, Self

from server import errors
from server.imaging.codecs import CODECS, Effort, Format
from server.imaging.geometry import Turn
from server.imaging.limits import Limits
from server.imaging.recipe import PATHS, ImagePath, Recipe, Result

#: A message is a few hundred bytes; one with a traceback may be longer.
MESSAGE_BYTES = 65536

_PICTURE_ERRORS = {cls.__name__: cls for cls in (errors.UnsupportedImage, errors.DamagedImage,
                                                  errors.TooManyPixels, errors.TooManyFrames,
                                                  errors.NotLossless)}  # fmt: skip

_PATHS: dict[str, ImagePath] = {path: path for path in PATHS}

#: How much of a traceback is sent: in JSON one character may take twelve bytes.
_TRACEBACK_CHARACTERS = 5000


def memory_file(name: str) -> FileIO:
    """Open an empty file that exists in memory only and ends with its last descriptor.

    Unbuffered, so that Pillow's encoders write to the descriptor themselves.

    Args:
        name: shown in `/proc/PID/fd` as `/memfd:NAME (deleted)`.
    """
    return FileIO(os.memfd_create(name), "r+b")


class MemoryFilePool:
    """Files in memory that are written over, for uploads and for results.

    Fetching fresh pages from the kernel and giving them back costs more than copying a picture into them.
    """

    #: How many are kept, and how large one may be, in bytes.
    _FILES = 8
    _FILE_BYTES = 8 << 20

    def __init__(self) -> None:
        self._files: list[FileIO] = []

    def take(self) -> FileIO:
        """Return a file to be written from its start; what it holds is somebody else's."""
        return self._files.pop() if self._files else memory_file("picture")

    def give_back(self, file: FileIO) -> None:
        """Take a file back that no engine will touch again."""
        if len(self._files) < self._FILES and os.fstat(file.fileno()).st_size <= self._FILE_BYTES:
            file.seek(0)
            self._files.append(file)
        else:
            file.close()


@dataclass(frozen=True, slots=True)
class Task:
    """What an engine is asked to do with the upload that rides along.

    Attributes:
        number: unique in the cluster.
        sent_us: when it was handed to the work socket, microseconds of the monotonic clock, which all
            processes of a machine share.
        deadline_us: no engine need start it after this moment of the same clock; 0 for never mind.
    """

    recipe: Recipe
    limits: Limits
    number: int
    sent_us: int
    deadline_us: int = 0

    def encode(self) -> bytes:
        """Write the task as a message."""
        task = _fields(self) | {"recipe": _fields(self.recipe), "limits": _fields(self.limits)}
        return json.dumps(task).encode()

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """Read a message back."""
        fields = json.loads(message)
        recipe = fields["recipe"]
        return cls(
            recipe=Recipe(
                turn=Turn(recipe["turn"]),
                format=Format(recipe["format"]) if recipe["format"] else None,
                quality=recipe["quality"],
                strip=recipe["strip"],
                path=recipe["path"],
                effort=Effort(recipe["effort"]),
            ),
            limits=Limits(**fields["limits"]),
            number=fields["number"],
            sent_us=fields["sent_us"],
            deadline_us=fields["deadline_us"],
        )


@dataclass(frozen=True, slots=True)
class Spent:
    """Where a task's time went, in microseconds: waiting for an engine, then by stage."""

    queue: int
    decode: int
    transform: int
    encode: int

    @property
    def service_us(self) -> int:
        """What the engine spent on it."""
        return self.decode + self.transform + self.encode


@dataclass(frozen=True, slots=True)
class Done:
    """A picture came out; it is all that the file for the result now holds."""

    result: Result
    spent: Spent
    engine_pid: int

    def encode(self) -> bytes:
        """Write the outcome as a message."""
        done = {
            "result": _fields(self.result),
            "spent": _fields(self.spent),
            "engine_pid": self.engine_pid,
        }
        return json.dumps({"done": done}).encode()


@dataclass(frozen=True, slots=True)
class Refused:
    """The picture was refused (`error`), came to its turn too late, or met a bug of ours (`traceback`)."""

    engine_pid: int
    error: errors.ImageError | None = None
    is_late: bool = False
    traceback: str | None = None

    def encode(self) -> bytes:
        """Write the outcome as a message; of a long traceback the end, which names the cause."""
        traceback = self.traceback and self.traceback[-_TRACEBACK_CHARACTERS:]
        fields: dict[str, Any] = {
            "engine_pid": self.engine_pid,
            "is_late": self.is_late,
            "traceback": traceback,
        }
        if self.error is not None:
            fields |= {"error": type(self.error).__name__, "detail": self.error.detail}
        return json.dumps({"refused": fields}).encode()


def decode_outcome(message: bytes) -> Done | Refused:
    """Read what an engine answered.

    JSON, a closed list of error names, and every value checked: an engine that a hostile picture has taken
    over can lie about a picture, and do nothing more to its worker.

    Raises:
        ValueError: the message makes no sense.
    """
    try:
        return _read_outcome(json.loads(message))
    except (AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError(f"an engine's answer makes no sense: {error!r}") from None


def _read_outcome(fields: dict[str, Any]) -> Done | Refused:
    if done := fields.get("done"):
        result, spent = done["result"], done["spent"]
        form = Format(result["format"])
        return Done(
            Result(
                format=form,
                media_type=CODECS[form].media_type,  # it becomes a header: not for an engine to choose
                width=_count(result["width"]),
                height=_count(result["height"]),
                frames=_count(result["frames"]),
                path=_PATHS[result["path"]],
            ),
            Spent(**{stage: _count(spent[stage]) for stage in ("queue", "decode", "transform", "encode")}),
            _count(done["engine_pid"]),
        )
    refused = fields["refused"]
    error = _PICTURE_ERRORS.get(refused.get("error"))
    return Refused(
        engine_pid=_count(refused["engine_pid"]),
        error=error(_text(refused["detail"])) if error else None,
        is_late=refused["is_late"] is True,
        traceback=None if refused["traceback"] is None else _text(refused["traceback"]),
    )


def _fields(record: Task | Recipe | Limits | Result | Spent) -> dict[str, Any]:
    # dataclasses.asdict copies deeply and takes ten times as long.
    return {name: getattr(record, name) for name in record.__slots__}


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:  # what a cell of the scoreboard holds
        raise ValueError(f"no count: {value!r}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"no text: {value!r}")  # noqa: TRY004 a message is wrong, not a call
    return value


class Lane(IntEnum):
    """Which task goes first: an engine takes none from a lane while one waits in a lane before it."""

    RETRY = 0  # has waited its turn once and lost its engine
    ORDINARY = 1


class WorkSocket:
    """A socket pair for each lane. Made in the arbiter; workers inherit it and pass `engine_ends` on."""

    def __init__(self) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in Lane]
        # Several processes wait on either end; one that loses the race must not be stuck in the call.
        for end in (end for pair in pairs for end in pair):
            end.setblocking(False)  # noqa: FBT003 the standard library has no other way
        self.worker_ends, self.engine_ends = zip(*pairs, strict=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (*self.worker_ends, *self.engine_ends):
            end.close()


class FlightRecorder:
    """What an engine leaves behind when it dies: the task it was at, and how many it had done.

    Two integers in a file in memory that the engine maps and its worker reads. A note in shared memory costs
    nothing, where a message for each task would wake the worker.
    """

    _BYTES = 16

    def __init__(self, file: FileIO) -> None:
        self._cells = memoryview(mmap.mmap(file.fileno(), self._BYTES)).cast("q")

    @classmethod
    def create(cls) -> FileIO:
        """Make the file."""
        file = memory_file("flight-recorder")
        file.truncate(cls._BYTES)
        return file

    @property
    def task(self) -> int:
        """The number of the task that is worked on; 0 for none."""
        return self._cells[0]

    @property
    def done(self) -> int:
        """How many tasks came to an end, refused ones too."""
        return self._cells[1]

    def begin(self, task: int) -> None:
        """Note what is about to be worked on."""
        self._cells[0] = task

    def end(self) -> None:
        """Note that it is over."""
        self._cells[1] += 1
        self._cells[0] = 0


def now_us() -> int:
    """Microseconds of the monotonic clock (clock_gettime(2): the same for every process)."""
    return time.monotonic_ns() // 1000


def send(to: socket.socket, message: bytes, files: Sequence[int] = ()) -> None:
    """Send one message with its descriptors.

    Raises:
        BlockingIOError: the receiver's queue is full.
    """
    socket.send_fds(to, [message], files)


def receive(from_: socket.socket, max_files: int) -> tuple[bytes, list[int]]:
    """Take one message with its descriptors; an empty one is end of file.

    Raises:
        BlockingIOError: nothing is there.
    """
    # Not socket.recv_fds: it forgets its flags (CPython 3.11).
    numbers = array("i")
    room = socket.CMSG_LEN(max_files * numbers.itemsize)
    message, ancillary, _, _ = from_.recvmsg(MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return message, list(numbers)
