"""What the store knows of jobs and batches, as values: no I/O."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

#: An id of a job or a batch. A client that knows it may use it, so it cannot be guessed.
_ID = re.compile(r"(?P<group>[0-9a-f]{32}|[0-9a-f]{40})(-(?P<index>0|[1-9][0-9]{0,9}))?")

#: The kind of the jobs that the store makes for callbacks.
CALLBACK_KIND = "callback 1"

#: Priorities: the first and the last to be served.
FIRST, LAST = 0, 9


class JobState(StrEnum):
    """The state of a job."""

    WAITING = "waiting"
    DELAYED = "delayed"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether it changes no more, unless an operator retries the job."""
        return self in {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}


def new_id() -> str:
    """Make an id for a batch, or for a job that is in none."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class JobId:
    """The id of a job, taken apart.

    Attributes:
        group: its batch, or itself; also the name of the directory of its files.
        index: its place in the batch; None in none.
    """

    group: str
    index: int | None = None

    @classmethod
    def parse(cls, text: str) -> "JobId | None":
        """Read an id; None when it is none."""
        if not (match := _ID.fullmatch(text)):
            return None
        return cls(match["group"], None if match["index"] is None else int(match["index"]))

    def __str__(self) -> str:
        return self.group if self.index is None else f"{self.group}-{self.index}"

    @property
    def input_name(self) -> str:
        """The name of its input among the files of its group."""
        return f"{self.index or 0}.in"

    def result_name(self, fence: int) -> str:
        """Return the name of the result of one try: a late one overwrites nothing."""
        return f"{self.index or 0}.{fence}.out"


@dataclass(frozen=True, slots=True)
class Callback:
    """Where to report the end of a group.

    Attributes:
        url: to be posted to.
        attempts: how often, at most.
    """

    url: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What all jobs of a group have in common.

    Attributes:
        operation, version, parameters: as in a task.
        attempts: how many tries a job has.
        callback: None for none.
    """

    operation: str
    version: int
    parameters: Mapping[str, Any]
    attempts: int
    callback: Callback | None = None

    @property
    def kind(self) -> str:
        """The operation as the store compares it."""
        return f"{self.operation} {self.version}"


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be submitted.

    Attributes:
        bytes: the size of its input.
        index: its place in the batch; None in none.
        name: of its file, for people.
    """

    bytes: int
    index: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """When jobs are served.

    Attributes:
        queue: the name of one.
        priority: from `FIRST` to `LAST`.
        delay_s: not before so many seconds have passed.
        not_before_s: nor before this moment of Unix time.
    """

    queue: str
    priority: int = 5
    delay_s: float = 0
    not_before_s: float = 0


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What makes a repeated submission the same one.

    Attributes:
        key: a digest of what the client sent as `Idempotency-Key`, in hexadecimal.
        fingerprint: a digest of everything that was submitted.
    """

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Claim:
    """One try of a job, held by a consumer until its lease ends.

    Attributes:
        fence: the number of the try; the store refuses what comes from an earlier one.
        tries: how many there have been, this one included.
    """

    id: JobId
    fence: int
    tries: int
    facts: Facts


@dataclass(frozen=True, slots=True)
class Result:
    """What a completed try has made.

    Attributes:
        outcome: what the operation reported, its media type among it.
        bytes: the size of the file.
        fence: of the try, which is part of the file's name.
    """

    outcome: Mapping[str, Any]
    bytes: int
    fence: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a try failed.

    Attributes:
        error: the class in `errors`.
        detail: what a client may read; empty for the class' own example.
    """

    error: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the store knows it; times are seconds of Unix time."""

    id: JobId
    state: JobState
    queue: str
    priority: int
    facts: Facts
    bytes: int
    name: str | None
    tries: int
    progress: int
    created_s: float
    started_s: float | None
    ended_s: float | None
    is_cancelling: bool
    error: Failure | None
    result: Result | None


@dataclass(frozen=True, slots=True)
class Batch:
    """A group of jobs as the store knows it; times are seconds of Unix time.

    Attributes:
        remaining: jobs that have not ended.
        ended_s: when the last of them did.
    """

    id: str
    is_batch: bool
    facts: Facts
    total: int
    remaining: int
    completed: int
    failed: int
    cancelled: int
    is_sealed: bool
    created_s: float
    ended_s: float | None


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as the store knows it.

    Attributes:
        jobs: how many are in each state.
        ended: how many have ended, ever.
    """

    name: str
    is_paused: bool
    jobs: Mapping[JobState, int]
    ended: int


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a consumer learns when it renews its leases: ids of jobs.

    Attributes:
        lost: are not its own any more.
        cancelled: are to be cancelled.
    """

    lost: Sequence[str]
    cancelled: Sequence[str]
