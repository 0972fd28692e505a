"""The registry: what an operation is, and the table in which operations are looked up by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from server.errors import OperationRefused
from server.operations.run import RunSpec


class Parameters(BaseModel):
    """What a caller may choose; each field has a description for the API document."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Expected:
    """An annotation of a parameter: how to name its values where its type does not name them well."""

    text: str


class Outcome(BaseModel):
    """What a run reports.

    The worker validates it, because a hostile source may have taken over the engine: a field says what
    values it can have, and no text is free, least of all the media type, which becomes a header.

    Attributes:
        headers: which fields the response tells in headers of its own, by the name of the header.
        extensions: with which a file is named, such as `.png`, by its media type.
        media_type: of the sink.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    headers: ClassVar[Mapping[str, str]] = {}
    extensions: ClassVar[Mapping[str, str]] = {}

    media_type: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run will cost, told from its source before it begins.

    Attributes:
        result_bytes: an upper bound of the size of its result.
        engine_us: about how long an engine will take, in microseconds.
        is_known: whether the source says so; False when too little of it is there, or it is not understood.
    """

    result_bytes: int
    engine_us: int
    is_known: bool = True


#: What is read of a file: some bytes, or a mapping of them, which costs less where few of many are looked at.
Piece = bytes | mmap

#: Returns up to so many bytes of a file from a position: `(position, bytes)`.
Read = Callable[[int, int], Piece]


class CostOf(Protocol):
    """What tells the cost of a run."""

    def __call__(
        self, read: Read, body_bytes: int, /, parameters: Mapping[str, Any], limits: Mapping[str, int]
    ) -> Cost:
        """Look at a source of which at least the beginning is there. Never raises.

        Args:
            read: reads the source.
            body_bytes: how long the whole is.
            parameters: of the run, checked.
            limits: of the engines.
        """


#: Engine time per byte of a source about which nothing else is known, in microseconds: 0.2 s for a JPEG of 20
#: megapixels and 6.7 MB.
US_PER_BYTE = 0.03


def unknown_cost(
    _read: Read,
    body_bytes: int,
    /,
    parameters: Mapping[str, Any],  # noqa: ARG001 the protocol's
    limits: Mapping[str, int],
) -> Cost:
    """Tell what a run may cost of which only the size of the source is known."""
    return Cost(limits["max_result_bytes"], int(body_bytes * US_PER_BYTE), is_known=False)


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table.

    Attributes:
        version: raised with every change after which the same source may give another result: what is
            known of an earlier version (a quarantine entry, a job record) does not hold for this one.
        summary, description: for the API document.
        parameters: their schema.
        outcome: the schema of what a run reports.
        accepts: media types of the sources it is made for.
        refusals: every way to refuse a source.
        stages, run, prepare: as in `RunSpec`.
        cost: tells what a run will cost, from the beginning of its source.
    """

    name: str
    version: int
    summary: str
    description: str
    parameters: type[Parameters]
    outcome: type[Outcome]
    accepts: tuple[str, ...]
    refusals: tuple[type[OperationRefused], ...]
    stages: tuple[str, ...]
    run: str
    prepare: str | None = None
    cost: CostOf = unknown_cost

    @property
    def spec(self) -> RunSpec:
        """What an engine needs to know."""
        return RunSpec(self.version, self.run, self.stages, self.prepare)


def by_name(*operations: Operation) -> Mapping[str, Operation]:
    """Make a table of operations.

    Raises:
        ValueError: two have the same name.
    """
    table = {operation.name: operation for operation in operations}
    if len(table) < len(operations):
        raise ValueError(f"an operation is there twice: {[operation.name for operation in operations]}")
    return table
