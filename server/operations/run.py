"""The engine's side of an operation: what it needs to know of one to run it.

Nothing here, or in what an engine loads from here, imports pydantic: it would cost each engine 13 MB and a
tenth of a second at its start.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from typing import Any, Protocol


class Run(Protocol):
    """The function of an operation, called in an engine."""

    def __call__(
        self,
        source: FileIO,
        sink: FileIO,
        parameters: Mapping[str, Any],
        limits: Mapping[str, int],
        progress: Callable[[str], None],
        /,
    ) -> Mapping[str, Any]:
        """Read the source and write the sink.

        Args:
            source: a file that must not be changed.
            sink: at its start; it may hold bytes, and afterwards it holds the result alone.
            parameters: every parameter of the operation, checked by the worker.
            limits: what the engine was configured with.
            progress: told the name of a stage each time one ends.

        Returns:
            The fields of the operation's outcome, which the worker validates.

        Raises:
            OperationRefused: one of the operation's refusals. With a MemoryError as its cause it also makes
                room: the engine is replaced by a fresh one.
        """


@dataclass(frozen=True, slots=True)
class RunSpec:
    """How to run an operation.

    Attributes:
        version: an engine runs no other one.
        run: a `Run`, as `module:name`. Only engines load it, with all that it imports.
        stages: what a run's time is divided into, in the order in which they first end. Until the first one
            has ended, a run does with the source what it does with any parameters: when engines crash then,
            the source is refused for all of them.
        prepare: a function that an engine calls once before its first task, in the same form.
    """

    version: int
    run: str
    stages: tuple[str, ...]
    prepare: str | None = None
