"""What is measured of each system, and how: the same for all."""

import math
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.answers import Flipped
from benchmarks.harness.waiting import at_intervals, until
from benchmarks.queues.contender import Contender
from benchmarks.queues.witness import Life, Tally, tally

#: How long jobs may take that have to be waited for, in seconds.
_DEADLINE_S = 60.0

#: Between two jobs to an idle system, at most: it is random, so that it fits no interval of polling.
_PAUSE_S = 1.0

#: As many jobs are measured as take about so long, in seconds, within limits.
_LONG_S = 1.5
_FEWEST, _MOST = 60, 3000

#: What is submitted when a worker is killed: the job that it is killed over, and some that it may hold.
_VICTIM, _OTHERS = "sleep 1.0", ("sleep 0.1",) * 3

#: What is submitted when a server is killed: how many jobs, what they do, and how often, in seconds.
_JOBS, _JOB, _SUBMIT_EVERY_S = 400, "sleep 0.02", 0.005

#: A submission that has no answer after so many seconds hangs.
HANGS_S = 15.0


class Unfinished(Exception):
    """Jobs did not end in time."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast some jobs were, and what they cost.

    Attributes:
        submitted_per_s: one submitter, one after the other, while no worker takes a job; None if not asked.
        done_per_s: of all workers together.
        cpu_ms: of the server and the workers, for a job, in milliseconds.
    """

    submitted_per_s: float | None
    done_per_s: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class Killed:
    """What the kill of a process did to jobs.

    Attributes:
        again_s: how soon the job that it was working on ran again, in seconds; None if it did not in time.
    """

    again_s: float | None
    jobs: Tally


@dataclass(frozen=True, slots=True)
class Away:
    """What a submission does whose server is away.

    Attributes:
        after_s: when it was answered, in seconds; None if it was not in time.
        said: what it was told; empty if it was acknowledged.
    """

    after_s: float | None
    said: str


@dataclass(slots=True)
class Figures:
    """What was measured of one contender; lists have an element for each round.

    Attributes:
        start_ms: from the submission to the start, each time, in milliseconds.
        first_ms: the same after a minute of idleness; None if not in time.
        empty, flips: of jobs that do nothing, and of flips.
        process_killed: the process that runs a job.
        worker_killed: the worker that it belongs to, with all of its processes.
        server_killed: while jobs are submitted and run; None if it did not answer again.
        faults: what went wrong, for people.
    """

    start_ms: list[float] = field(default_factory=list)
    first_ms: float | None = None
    empty: list[Rate] = field(default_factory=list)
    flips: list[Rate] = field(default_factory=list)
    process_killed: Killed | None = None
    worker_killed: Killed | None = None
    server_killed: Tally | None = None
    away: Away | None = None
    faults: list[str] = field(default_factory=list)


def starts(contender: Contender, times: int, choice: random.Random) -> list[float]:
    """Measure from the submission of a job to its start on an idle system, in milliseconds.

    Raises:
        Unfinished: as its name says.
    """
    found = []
    for _ in range(times):
        time.sleep(choice.uniform(0, _PAUSE_S))
        (life,) = _ended(contender, contender.submit("empty"))
        found.append(_start_ms(life))
    return found


def _start_ms(life: Life) -> float:
    assert life.submitted_s is not None
    return (life.starts[0] - life.submitted_s) * 1e3


def count_for(contender: Contender) -> int:
    """Return how many empty jobs take about as long as a measurement should."""
    lives = _ended(contender, contender.submit(*["empty"] * _FEWEST))
    took_s = max(life.ends[0] for life in lives) - min(life.starts[0] for life in lives)
    return min(_MOST, max(_FEWEST, math.ceil(_FEWEST / took_s * _LONG_S)))


def empty_jobs(contender: Contender, count: int) -> Rate:
    """Submit jobs while no worker takes any, then let them be run.

    Raises:
        Unfinished: as its name says.
    """
    before_s = contender.cpu_s()
    contender.pause()
    try:
        jobs = contender.submit(*["empty"] * count)
        until(lambda: contender.witness.count_answered(jobs) == count, _DEADLINE_S)
    finally:
        contender.resume()
    lives = _ended(contender, jobs)
    cpu_ms = (contender.cpu_s() - before_s) / count * 1e3
    submitted = [life.submitted_s for life in lives if life.submitted_s is not None]
    acknowledged = [life.acknowledged_s for life in lives if life.acknowledged_s is not None]
    if len(acknowledged) < count:
        raise Unfinished(f"{count - len(acknowledged)} of {count} submissions were refused")
    ends = [life.ends[0] for life in lives]
    return Rate(
        submitted_per_s=count / (max(acknowledged) - min(submitted)),
        done_per_s=(count - 1) / (max(ends) - min(ends)),
        cpu_ms=cpu_ms,
    )


def flips(contender: Contender, image: Path, quality: int, count: int) -> Rate:
    """Submit flips, and have them run meanwhile.

    Args:
        contender: who does it.
        image: what is flipped.
        quality: to write it with.
        count: how often.

    Raises:
        Unfinished: as its name says, or a result is not the flipped image.
    """
    before_s = contender.cpu_s()
    targets = [contender.directory / f"flipped-{number}.jpg" for number in range(count)]
    jobs = contender.submit(*(f"flip {image} {target} {quality}" for target in targets))
    lives = _ended(contender, jobs)
    cpu_ms = (contender.cpu_s() - before_s) / count * 1e3
    first_s = min(life.submitted_s for life in lives if life.submitted_s is not None)
    took_s = max(life.ends[0] for life in lives) - first_s
    result = contender.result_of(lives[-1], targets[-1])
    if fault := Flipped(image.read_bytes()).fault_of(result):
        raise Unfinished(f"a result is wrong: {fault}")
    return Rate(submitted_per_s=None, done_per_s=count / took_s, cpu_ms=cpu_ms)


def _ended(contender: Contender, jobs: Sequence[str]) -> list[Life]:
    lives = contender.wait_for(jobs, _DEADLINE_S)
    if unfinished := sum(not life.ends for life in lives):
        raise Unfinished(f"{unfinished} of {len(lives)} jobs have not ended within {_DEADLINE_S:.0f} s")
    return lives


def first_after_idleness(
    contenders: Sequence[Contender], idle_s: float, wait_s: float
) -> Mapping[Contender, float | None]:
    """Leave all systems idle, then submit one job to each; return when it started, in milliseconds.

    Args:
        contenders: the systems.
        idle_s: for how long, in seconds.
        wait_s: how long to wait for a start, in seconds.
    """
    time.sleep(idle_s)
    jobs = {}
    # One after the other, or they would take the cores from each other.
    for contender in contenders:
        (jobs[contender],) = contender.submit("empty")
        contender.wait_for([jobs[contender]], _PAUSE_S)
    until(lambda: all(each.witness.life(job).ends for each, job in jobs.items()), wait_s)
    lives = {each: each.witness.life(job) for each, job in jobs.items()}
    return {
        each: _start_ms(life) if life.starts and _start_ms(life) <= wait_s * 1e3 else None
        for each, life in lives.items()
    }


class _Kill(NamedTuple):
    """What was killed: jobs that this may have struck, and when, in seconds of the monotonic clock."""

    jobs: Sequence[str]
    at_s: float


def kill_workers(
    contenders: Sequence[Contender], wait_s: float, *, whole: bool
) -> Mapping[Contender, Killed | None]:
    """Kill a process of each system while it works on a job; workers that ended are started again.

    Args:
        contenders: the systems.
        wait_s: how long after its kill what happens to the jobs of a system counts, in seconds.
        whole: kill the worker with all of its processes, not only the one that runs the job.

    Returns:
        What became of the jobs; None where none has started, or it had ended before the kill.
    """
    kills: dict[Contender, _Kill] = {}
    for contender in contenders:
        jobs = contender.submit(_VICTIM, *_OTHERS)
        if victim := _wait_until_running(contender, jobs[0]):
            kill = _Kill(jobs, time.monotonic())
            with suppress(ProcessLookupError):
                contender.kill_worker_of(victim) if whole else contender.kill_process(victim.pids[-1])
                kills[contender] = kill
            contender.supervise()
    lives = _lives_after(kills, wait_s)
    return {each: _killed(lives[each], kills[each].at_s) if each in kills else None for each in contenders}


def _wait_until_running(contender: Contender, job: str) -> Life | None:
    """Wait until a job has started and its submission is answered; return what has happened to it."""

    def look() -> Life | None:
        life = contender.witness.life(job)
        return life if life.starts and life.is_answered else None

    return until(look, _DEADLINE_S)


def _killed(lives: Sequence[Life], killed_s: float) -> Killed:
    again = [start_s for start_s in lives[0].starts if start_s > killed_s]
    return Killed(again[0] - killed_s if again else None, tally(lives))


def kill_servers(contenders: Sequence[Contender], wait_s: float) -> Mapping[Contender, Tally | None]:
    """Kill the server of each system in the middle of submissions, and start it again at once.

    Args:
        contenders: the systems.
        wait_s: how long after its kill what happens to the jobs of a system counts, in seconds.

    Returns:
        What became of the jobs; None where the server did not answer again.
    """
    kills: dict[Contender, _Kill] = {}
    for contender in contenders:
        before = _submit_at_intervals(contender, _JOBS // 2 - 1)
        before += contender.submit(_JOB)  # at once before the kill: it may not have been answered
        killed_s = time.monotonic()
        contender.kill_server()
        contender.revive_server()
        jobs = before + _submit_at_intervals(contender, _JOBS // 2)
        if until(contender.is_server_ready, wait_s):
            kills[contender] = _Kill(jobs, killed_s)
    lives = _lives_after(kills, wait_s)
    return {each: tally(lives[each]) if each in kills else None for each in contenders}


def _submit_at_intervals(contender: Contender, count: int) -> list[str]:
    return [id for _ in at_intervals(count, _SUBMIT_EVERY_S) for id in contender.submit(_JOB)]


def _lives_after(kills: Mapping[Contender, _Kill], wait_s: float) -> dict[Contender, list[Life]]:
    """Wait until nothing more can happen to the jobs of any system; and keep the workers running.

    Returns:
        What had happened to them by `wait_s` after the kill of their own system: one that was killed earlier
        gets no more time than the last one.
    """

    def is_over() -> bool:
        for contender in kills:
            contender.supervise()
        return all(
            _is_settled(each.witness.lives(kill.jobs), each.system.timeout_s) for each, kill in kills.items()
        )

    until(is_over, wait_s)
    return {
        each: [life.as_of(kill.at_s + wait_s) for life in each.witness.lives(kill.jobs)]
        for each, kill in kills.items()
    }


def _is_settled(lives: Sequence[Life], timeout_s: float) -> bool:
    """Whether all jobs have ended, and so long ago that none is run again because a timeout ends."""
    last_s = max((at_s for life in lives for at_s in (*life.starts, *life.ends)), default=0.0)
    have_ended = all(life.is_answered and not life.is_lost for life in lives)
    return have_ended and time.monotonic() >= last_s + timeout_s


def submit_without_server(contenders: Sequence[Contender]) -> Mapping[Contender, Away]:
    """Kill the server of each system for good, then submit a job."""
    jobs = {}
    for contender in contenders:
        contender.remove_server()
        (jobs[contender],) = contender.submit("empty")
    until(lambda: all(each.witness.life(job).is_answered for each, job in jobs.items()), HANGS_S)
    return {each: _away(each.witness.life(job)) for each, job in jobs.items()}


def _away(life: Life) -> Away:
    answered_s = life.acknowledged_s if life.refused_s is None else life.refused_s
    # The submissions are waited for together, so the first one has had longer than the last one.
    if answered_s is None or life.submitted_s is None or answered_s - life.submitted_s > HANGS_S:
        return Away(None, "")
    return Away(answered_s - life.submitted_s, life.refused)
