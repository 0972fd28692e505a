"""The registry: what an operation is, and the table in which operations are looked up by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from server.errors import OperationRefused


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
        media_type: of the sink.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    headers: ClassVar[Mapping[str, str]] = {}

    media_type: str


class Run(Protocol):
    """The function of an operation, called in an engine."""

    def __call__(
        self,
        source: FileIO,
        sink: FileIO,
        parameters: Any,  # noqa: ANN401 each operation has a class of its own
        limits: Mapping[str, int],
        progress: Callable[[str], None],
        /,
    ) -> Outcome:
        """Read the source and write the sink.

        Args:
            source: a file that must not be changed.
            sink: at its start; it holds the bytes of its last use, and afterwards the result alone.
            parameters: an instance of the operation's class.
            limits: what the engine was configured with.
            progress: told the name of a stage each time one ends.

        Raises:
            OperationRefused: one of the operation's refusals. With a MemoryError as its cause it also makes
                room: the engine is replaced by a fresh one.
        """


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
        stages: what a run's time is divided into, in the order in which they end.
        run: a `Run`, as `module:name`. Only engines load it, with all that it imports.
        prepare: a function that an engine calls once before its first task, in the same form.
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


def by_name(*operations: Operation) -> Mapping[str, Operation]:
    """Make a table of operations.

    Raises:
        ValueError: two have the same name.
    """
    table = {operation.name: operation for operation in operations}
    if len(table) < len(operations):
        raise ValueError(f"an operation is there twice: {[operation.name for operation in operations]}")
    return table
