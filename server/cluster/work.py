"""The work socket: one socket pair that every worker sends jobs to and every engine takes them from.

A job is one `SOCK_SEQPACKET` message with three descriptors riding along (`SCM_RIGHTS`): the upload, the
file for the result, and one end of a fresh reply socket. No byte of an image passes through a socket. The
engine holds the only other end of the reply socket, so when it dies the worker reads end of file: that is
the crash signal.

Source: unix(7), memfd_create(2).
"""

import json
import os
import socket
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from typing import Any, Self

from server import errors
from server.imaging.codec import CODECS, Format
from server.imaging.operations import Operation
from server.imaging.pipeline import Limits, Recipe, Result

#: A message is a few hundred bytes; one with a traceback may be longer.
MESSAGE_BYTES = 65536

_PICTURE_ERRORS = {cls.__name__: cls for cls in (errors.UnsupportedImage, errors.DamagedImage,
                                                  errors.TooManyPixels, errors.TooManyFrames)}  # fmt: skip

_PATHS = {path: path for path in ("lossless", "pixels")}

#: How much of a traceback is sent: in JSON one character may take twelve bytes.
_TRACEBACK_CHARACTERS = 5000


def memory_file(name: str) -> FileIO:
    """Open an empty file that exists in memory only and ends with its last descriptor.

    Unbuffered, so that Pillow's encoders write to the descriptor themselves.

    Args:
        name: shown in `/proc/PID/fd` as `/memfd:NAME (deleted)`.
    """
    return FileIO(os.memfd_create(name), "r+b")


class Spares:
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
class Job:
    """What an engine is asked to do with the upload that rides along.

    Attributes:
        sent_us: when it was handed to the work socket, microseconds of the monotonic clock, which all
            processes of a machine share.
    """

    recipe: Recipe
    limits: Limits
    sent_us: int

    def encode(self) -> bytes:
        """Write the job as a message."""
        return json.dumps(
            {"recipe": _fields(self.recipe), "limits": _fields(self.limits), "sent_us": self.sent_us}
        ).encode()

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """Read a message back."""
        fields = json.loads(message)
        recipe = fields["recipe"]
        return cls(
            recipe=Recipe(
                operation=Operation(recipe["operation"]),
                format=Format(recipe["format"]) if recipe["format"] else None,
                quality=recipe["quality"],
                strip=recipe["strip"],
            ),
            limits=Limits(**fields["limits"]),
            sent_us=fields["sent_us"],
        )


@dataclass(frozen=True, slots=True)
class Spent:
    """Where a job's time went, in microseconds: waiting for an engine, then by stage."""

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
    """The picture was refused (`error` is set) or the engine has a bug (`traceback` is set)."""

    engine_pid: int
    error: errors.ImageError | None = None
    traceback: str | None = None

    def encode(self) -> bytes:
        """Write the outcome as a message; of a long traceback the end, which names the cause."""
        traceback = self.traceback and self.traceback[-_TRACEBACK_CHARACTERS:]
        fields: dict[str, Any] = {"engine_pid": self.engine_pid, "traceback": traceback}
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
        traceback=None if refused["traceback"] is None else _text(refused["traceback"]),
    )


def _fields(record: Recipe | Limits | Result | Spent) -> dict[str, Any]:
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


class WorkSocket:
    """Both ends of the pair. Made in the arbiter; workers inherit it and pass `engine_end` on."""

    def __init__(self) -> None:
        self.worker_end, self.engine_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Several processes wait on either end; one that loses the race must not be stuck in the call.
        for end in (self.worker_end, self.engine_end):
            end.setblocking(False)  # noqa: FBT003 the standard library has no other way


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
