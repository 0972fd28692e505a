"""The raw data of a run, as the harness wrote it: who asked what when, and what it cost."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

OK, REFUSED, FAILED, WRONG = "ok", "refused", "failed", "wrong"
BURST = "burst"
SINGLE, CLUSTER = "single", "cluster"

#: The cluster with its default path, which need not decode every image.
AS_SHIPPED = "cluster-lossless"


@dataclass(frozen=True, slots=True)
class SentImage:
    """An image that was sent."""

    title: str
    width: int
    height: int
    bytes: int
    quality: int
    format: str


@dataclass(frozen=True, slots=True)
class Topology:
    """A service that answered.

    Attributes:
        workers: the processes that compute.
        quality: "matched" to ours, or the peer's "default".
    """

    title: str
    workers: int
    is_peer: bool
    quality: str
    design: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A topology that could not be measured, and why."""

    topology: str
    why: str


@dataclass(frozen=True, slots=True)
class Run:
    """What was run, where, and with which versions."""

    profile: str
    started: str
    duration_s: float
    cores: int
    interrupted: bool
    commit: str
    machine: Mapping[str, str | int | float]
    versions: Mapping[str, str]
    images: Mapping[str, SentImage]
    topologies: Mapping[str, Topology]
    skipped: tuple[Skipped, ...]


class Key(NamedTuple):
    """The repetition that a measurement belongs to."""

    image: str
    topology: str
    scenario: str
    repetition: int


@dataclass(frozen=True, slots=True)
class _Keyed:
    image: str
    topology: str
    scenario: str
    repetition: int

    @property
    def key(self) -> Key:
        """The repetition that this belongs to."""
        return Key(self.image, self.topology, self.scenario, self.repetition)


@dataclass(frozen=True, slots=True)
class Window(_Keyed):
    """The interval in which one repetition was measured."""

    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Request(_Keyed):
    """One request with its outcome; the fault is empty if that is ok or refused."""

    kind: str
    started_s: float
    response_ms: float
    outcome: str
    status: str
    bytes: int
    fault: str

    @property
    def ended_s(self) -> float:
        """When its answer was complete."""
        return self.started_s + self.response_ms / 1e3


@dataclass(frozen=True, slots=True)
class Sample(_Keyed):
    """CPU and memory of all processes of the server at one moment."""

    at_s: float
    cpu_s: float
    memory_mb: float


@dataclass(frozen=True, slots=True)
class Generated(_Keyed):
    """CPU that the load generator had spent at one moment."""

    at_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Probe(_Keyed):
    """One health check under load."""

    at_s: float
    response_ms: float
    status: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One checked answer; its PSNR is infinite where nothing was lost."""

    image: str
    topology: str
    answer_bytes: int
    psnr_db: float


@dataclass(frozen=True, slots=True)
class Raw:
    """The raw data of a run.

    Attributes:
        unreadable: how many rows are cut off or malformed.
    """

    run: Run
    windows: Sequence[Window] = ()
    requests: Sequence[Request] = ()
    processes: Sequence[Sample] = ()
    generator: Sequence[Generated] = ()
    health: Sequence[Probe] = ()
    answers: Sequence[Answer] = ()
    unreadable: int = 0


_KINDS: Mapping[str, type] = {
    "windows": Window,
    "requests": Request,
    "processes": Sample,
    "generator": Generated,
    "health": Probe,
    "answers": Answer,
}

T = TypeVar("T")


def read(directory: Path) -> Raw:
    """Read `raw/` of a result's directory; tables that an interrupted run has not written are empty."""
    raw = directory / "raw"
    run = run_from(json.loads((raw / "run.json").read_text()))
    files = {name: raw / f"{name}.csv" for name in _KINDS}
    texts = {name: file.read_text(errors="replace") for name, file in files.items() if file.exists()}
    return raw_from(run, texts)


def raw_from(run: Run, texts: Mapping[str, str]) -> Raw:
    """Parse CSV, each text by the name of its table."""
    tables: dict[str, Any] = {}
    unreadable = 0
    for name, text in texts.items():
        complete = text[: text.rfind("\n") + 1]
        rows = [_row(_KINDS[name], cells) for cells in csv.DictReader(complete.splitlines())]
        tables[name] = tuple(row for row in rows if row is not None)
        unreadable += len(rows) - len(tables[name]) + (complete != text)
    return Raw(run, **tables, unreadable=unreadable)


def run_from(said: Mapping[str, Any]) -> Run:
    """Parse `run.json`."""
    return Run(
        images={key: _picked(SentImage, value) for key, value in said["images"].items()},
        topologies={key: _picked(Topology, value) for key, value in said["topologies"].items()},
        skipped=tuple(_picked(Skipped, value) for value in said.get("skipped", ())),
        **{
            field.name: said[field.name]
            for field in fields(Run)
            if field.name not in {"images", "topologies", "skipped"}
        },
    )


def _picked(kind: Callable[..., T], said: Mapping[str, Any]) -> T:
    return kind(**{field.name: said[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def _row(kind: Callable[..., T], cells: Mapping[str, str | None]) -> T | None:
    """Parse one row; return None for one that is cut off."""
    values = [cells.get(field.name) for field in fields(kind)]  # type: ignore[arg-type]
    if None in values:
        return None
    try:
        types = [field.type for field in fields(kind)]  # type: ignore[arg-type]
        return kind(*(of(value) for of, value in zip(types, values, strict=True)))  # type: ignore[operator]
    except ValueError:
        return None
