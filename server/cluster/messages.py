"""Messages between workers and engines: a task, and what came of it."""

import json
import time
from dataclasses import dataclass
from typing import Any, Self

from server import errors
from server.imaging.codecs import CODECS, Effort, Format
from server.imaging.geometry import Turn
from server.imaging.limits import Limits
from server.imaging.recipe import PATHS, ImagePath, Recipe, Result

_PICTURE_ERRORS = {cls.__name__: cls for cls in (errors.UnsupportedImage, errors.DamagedImage,
                                                  errors.TooManyPixels, errors.TooManyFrames,
                                                  errors.NotLossless)}  # fmt: skip

_PATHS: dict[str, ImagePath] = {path: path for path in PATHS}

#: How much of a traceback is sent: in JSON one character may take twelve bytes.
_TRACEBACK_CHARACTERS = 5000


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


def now_us() -> int:
    """Microseconds of the monotonic clock (clock_gettime(2): the same for every process)."""
    return time.monotonic_ns() // 1000
