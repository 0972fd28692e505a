"""Messages between workers and engines, as JSON: a task, how far it is, and what came of it."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from server.errors import OperationRefused

if TYPE_CHECKING:  # an engine does without it: it imports pydantic
    from server.operations.registry import Operation

#: How much of a traceback is sent: in JSON one character may take twelve bytes.
_TRACEBACK_CHARACTERS = 5000


@dataclass(frozen=True, slots=True)
class Task:
    """One run of an operation, to be applied to the upload that comes with the message.

    Attributes:
        operation, version: which one.
        parameters: values that JSON can hold.
        number: unique in the cluster.
        sent_us: when it was sent to the work socket, microseconds of the monotonic clock, which all processes
            of a machine share.
        deadline_us: no engine starts it after this moment of the same clock; 0 for no deadline.
    """

    operation: str
    version: int
    parameters: Mapping[str, Any]
    number: int
    sent_us: int
    deadline_us: int = 0

    def encode(self) -> bytes:
        """Write the task as a message."""
        return _message(
            operation=self.operation,
            version=self.version,
            parameters=self.parameters,
            number=self.number,
            sent_us=self.sent_us,
            deadline_us=self.deadline_us,
        )

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """Read a message back."""
        return cls(**json.loads(message))


@dataclass(frozen=True, slots=True)
class Spent:
    """Where a task's time went, in microseconds.

    Attributes:
        queue_us: waiting for an engine.
        service_us: in the engine.
        stages_us: the part of `service_us` that each stage of the operation took, in their order.
    """

    queue_us: int
    service_us: int
    stages_us: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Done:
    """The operation was carried out; the file for the result holds it and nothing else.

    Attributes:
        outcome: what the run reported; once decoded, it is valid for the operation.
    """

    outcome: Mapping[str, Any]
    spent: Spent
    engine_pid: int

    def encode(self) -> bytes:
        """Write the answer as a message."""
        return _message(
            done=self.outcome,
            queue_us=self.spent.queue_us,
            service_us=self.spent.service_us,
            stages_us=self.spent.stages_us,
            engine_pid=self.engine_pid,
        )


@dataclass(frozen=True, slots=True)
class Refused:
    """There is no result.

    Attributes:
        error: the operation refused the upload.
        is_late: the deadline had passed, or the client had left.
        is_out_of_room: the memory for the result had run out.
        traceback: of a bug of ours.
        service_us: how long the engine was busy with it, in microseconds.
    """

    engine_pid: int
    error: OperationRefused | None = None
    is_late: bool = False
    is_out_of_room: bool = False
    traceback: str | None = None
    service_us: int = 0

    def encode(self) -> bytes:
        """Write the answer as a message; of a long traceback the end, which names the cause."""
        return _message(
            engine_pid=self.engine_pid,
            error=self.error and type(self.error).__name__,
            detail=self.error and self.error.detail,
            is_late=self.is_late,
            is_out_of_room=self.is_out_of_room,
            traceback=self.traceback and self.traceback[-_TRACEBACK_CHARACTERS:],
            service_us=self.service_us,
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """Some of the stages of a background task have ended; the answer follows.

    Attributes:
        stages: how many of them.
    """

    stages: int

    def encode(self) -> bytes:
        """Write it as a message."""
        return _message(progress=self.stages)


@dataclass(frozen=True, slots=True)
class Ready:
    """An engine waits for its first task.

    Attributes:
        missing: parts of its jail that the kernel lacks.
    """

    missing: Sequence[str] = ()

    def encode(self) -> bytes:
        """Write it as a message."""
        return _message(missing=self.missing)


@dataclass(frozen=True, slots=True)
class Ended:
    """An engine ends because of a bug of ours.

    Attributes:
        traceback: of the bug.
    """

    traceback: str

    def encode(self) -> bytes:
        """Write it as a message; of a long traceback the end, which names the cause."""
        return _message(traceback=self.traceback[-_TRACEBACK_CHARACTERS:])


def decode_notice(message: bytes) -> Ready | Ended:
    """Read what an engine says to its own worker.

    Raises:
        ValueError: the message makes no sense.
    """
    try:
        fields = json.loads(message)
        if "traceback" in fields:
            return Ended(_text(fields["traceback"]))
        return Ready([_text(part) for part in fields["missing"]])
    except (LookupError, RecursionError, TypeError) as error:
        raise ValueError(f"an engine's notice makes no sense: {error!r}") from None


def decode_answer(message: bytes, operation: "Operation") -> Done | Refused | Progress:
    """Read what an engine answered.

    Every value is checked against the operation's row of the table: an engine that a hostile image has taken
    over can lie about that image, and do nothing else to its worker.

    Raises:
        ValueError: the message makes no sense.
    """
    try:
        fields = json.loads(message)
        if "progress" in fields:
            return _progress(fields, operation)
        return _done(fields, operation) if "done" in fields else _refused(fields, operation)
    except (AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError(f"an engine's answer makes no sense: {error!r}") from None


def now_us() -> int:
    """Return the microseconds of the monotonic clock (clock_gettime(2): the same for every process)."""
    return time.monotonic_ns() // 1000


def _progress(fields: Mapping[str, Any], operation: "Operation") -> Progress:
    stages = _count(fields["progress"])
    if not 0 < stages < len(operation.stages):  # the end of the last one is told by the answer
        raise ValueError(f"not a number of stages: {stages}")
    return Progress(stages)


def _done(fields: Mapping[str, Any], operation: "Operation") -> Done:
    stages_us = fields["stages_us"]
    return Done(
        operation.outcome.model_validate(fields["done"]).model_dump(),
        Spent(
            _count(fields["queue_us"]),
            _count(fields["service_us"]),
            {stage: _count(stages_us[stage]) for stage in operation.stages},
        ),
        _count(fields["engine_pid"]),
    )


def _refused(fields: Mapping[str, Any], operation: "Operation") -> Refused:
    error, traceback = fields["error"], fields["traceback"]
    refusals = {cls.__name__: cls for cls in operation.refusals}
    return Refused(
        engine_pid=_count(fields["engine_pid"]),
        error=None if error is None else refusals[error](_text(fields["detail"])),
        is_late=fields["is_late"] is True,
        is_out_of_room=fields["is_out_of_room"] is True,
        traceback=None if traceback is None else _text(traceback),
        service_us=_count(fields["service_us"]),
    )


def _message(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:  # what a cell of the scoreboard holds
        raise ValueError(f"not a count: {value!r}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"not a text: {value!r}")  # noqa: TRY004 a message is wrong, not a call
    return value
