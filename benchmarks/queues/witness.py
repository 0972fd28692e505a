"""What the witness has seen: the same count for every system."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

#: What can happen to a job (`benchmarks.peers.queues.work`); `online` is about a process.
SUBMIT, ACKNOWLEDGED, REFUSED, START, END = "submit", "acknowledged", "refused", "start", "end"
ONLINE = "online"


class Event(NamedTuple):
    """One line of the witness.

    Attributes:
        job: its id; `-` for an event that is about a process.
        pid: the process that wrote it.
        at_s: when, in seconds of the monotonic clock.
        detail: what a submitter was told.
    """

    kind: str
    job: str
    pid: int
    at_s: float
    detail: str


@dataclass(slots=True)
class Life:
    """What happened to one job: moments in seconds of the monotonic clock.

    Attributes:
        refused: what its submitter was told instead of an acknowledgement.
        location: what its submitter was told with it.
        starts, ends: of all its runs.
        pids: the processes of its runs.
    """

    submitted_s: float | None = None
    acknowledged_s: float | None = None
    refused_s: float | None = None
    refused: str = ""
    location: str = ""
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)

    @property
    def is_answered(self) -> bool:
        """Whether its submitter knows what became of the submission."""
        return self.acknowledged_s is not None or self.refused_s is not None

    @property
    def is_lost(self) -> bool:
        """Whether it was acknowledged and has not been run to its end."""
        return self.acknowledged_s is not None and not self.ends

    def as_of(self, at_s: float) -> "Life":
        """Return what had happened to it by a moment of the monotonic clock."""
        starts = [each for each in self.starts if each <= at_s]
        is_acknowledged = self.acknowledged_s is not None and self.acknowledged_s <= at_s
        return replace(
            self,
            acknowledged_s=self.acknowledged_s if is_acknowledged else None,
            starts=starts,
            ends=[each for each in self.ends if each <= at_s],
            pids=self.pids[: len(starts)],
        )


class Witness:
    """The file that all processes of one system append to.

    Args:
        path: it; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._read_bytes = 0
        self._lives: dict[str, Life] = defaultdict(Life)
        self.online: set[int] = set()

    def lives(self, jobs: Iterable[str]) -> list[Life]:
        """Return what has happened so far to jobs with these ids."""
        self._read()
        return [self._lives[job] for job in jobs]

    def life(self, job: str) -> Life:
        """Return what has happened so far to one job."""
        return self.lives([job])[0]

    def count_answered(self, jobs: Iterable[str]) -> int:
        """Count the jobs whose submitter knows what became of the submission."""
        return sum(life.is_answered for life in self.lives(jobs))

    def count_ended(self, jobs: Iterable[str]) -> int:
        """Count the jobs that have been run to the end."""
        return sum(bool(life.ends) for life in self.lives(jobs))

    def _read(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self._read_bytes)
            new = file.read()
        complete = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(complete)
        for line in complete.decode().splitlines():
            self._add(_event(line))

    def _add(self, event: Event) -> None:
        if event.kind == ONLINE:
            self.online.add(event.pid)
            return
        life = self._lives[event.job]
        if event.kind == SUBMIT:
            life.submitted_s = event.at_s
        elif event.kind == ACKNOWLEDGED:
            life.acknowledged_s = event.at_s
            life.location = event.detail
        elif event.kind == REFUSED:
            life.refused_s = event.at_s
            life.refused = event.detail
        elif event.kind == START:
            life.starts.append(event.at_s)
            life.pids.append(event.pid)
        elif event.kind == END:
            life.ends.append(event.at_s)
        else:
            raise ValueError(f"the witness was told of {event.kind!r}")

    def is_online(self, pid: int) -> bool:
        """Whether a worker or a submitter has loaded all that it needs."""
        self._read()
        return pid in self.online


def _event(line: str) -> Event:
    kind, job, pid, at_s, detail = line.split(" ", 4)
    return Event(kind, job, int(pid), float(at_s), detail)


class Tally(NamedTuple):
    """How many of some jobs were acknowledged, lost, and run again.

    Attributes:
        acknowledged: their submitter believes that they will be run.
        lost: acknowledged, and not run to the end.
        twice: run to the end more than once.
    """

    acknowledged: int
    lost: int
    twice: int


def tally(lives: Iterable[Life]) -> Tally:
    """Count."""
    lives = list(lives)
    return Tally(
        acknowledged=sum(life.acknowledged_s is not None for life in lives),
        lost=sum(life.is_lost for life in lives),
        twice=sum(len(life.ends) > 1 for life in lives),
    )
