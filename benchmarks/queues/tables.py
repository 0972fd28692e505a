"""The result as tables: a short one for the README, then speed and cost, kills, and facts about the run."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from benchmarks.harness.tables import Table, markdown_table
from benchmarks.peers.queues.systems import System
from benchmarks.queues.measures import HANGS_S, Away, Figures, Killed, Rate
from benchmarks.queues.witness import Tally

_NOTHING = "-"

#: What ratios are taken to.
_QUEUE, _SERVICE = "ours-store", "ours"

_DECIMALS_BELOW = 10.0

#: What makes a message long, in characters.
_LONG = 30

Results = Mapping[System, Figures]


def tables(results: Results, wait_s: float, about: Mapping[str, str]) -> list[Table]:
    """Return all of them.

    Args:
        results: of all systems that were measured, in order.
        wait_s: how long a killed job was waited for, in seconds.
        about: what was measured on what.
    """
    return [
        summary(results, wait_s),
        _speed(results),
        _kills(results, wait_s),
        Table("About this run", ("", ""), tuple(about.items())),
    ]


def markdown(found: Sequence[Table]) -> str:
    """Write tables as a document."""
    lines = [line for table in found for line in markdown_table(table, "##")]
    return "\n".join(["# Job queues compared", "", *lines]).rstrip("\n") + "\n"


def summary(results: Results, wait_s: float) -> Table:
    """Return the table for the README."""
    rows = []
    for system, figures in results.items():
        if not system.is_only_idle:
            rows.append(
                (
                    f"{system.title}, {system.setting}",
                    system.fsync,
                    _each(figures.start_ms, "ms"),
                    _rate(figures.empty, lambda rate: rate.done_per_s),
                    _again(figures.worker_killed, wait_s),
                    _lost(figures.server_killed),
                )
            )
    return Table(
        "Job queues",
        (
            "queue",
            "fsync",
            "time from enqueue to start, when idle",
            "empty jobs/s",
            "worker killed: its job runs again after",
            "server killed: acknowledged jobs lost; jobs run twice",
        ),
        tuple(rows),
    )


def _speed(results: Results) -> Table:
    rows = []
    for system, figures in results.items():
        rows.append(
            (
                f"{system.title}, {system.setting}",
                _each(figures.start_ms, "ms"),
                _NOTHING if figures.first_ms is None else f"{_number(figures.first_ms)} ms",
                _rate(figures.empty, lambda rate: rate.submitted_per_s),
                _rate(figures.empty, lambda rate: rate.done_per_s),
                _ratio(figures.empty, _of(results, _QUEUE).empty),
                _rate(figures.empty, lambda rate: rate.cpu_ms),
                _rate(figures.flips, lambda rate: rate.done_per_s),
                _ratio(figures.flips, _of(results, _SERVICE).flips),
                _rate(figures.flips, lambda rate: rate.cpu_ms),
            )
        )
    return Table(
        "Speed and cost",
        (
            "queue",
            "time from enqueue to start, when idle",
            "first job after a minute (once)",
            "submissions/s",
            "empty jobs/s",
            "ratio of empty jobs/s to our queue alone",
            "CPU per empty job, ms",
            "flips of 2 MB/s",
            "ratio of flips/s to our service",
            "CPU per flip, ms",
        ),
        tuple(rows),
        "Medians, with the least and the most. CPU time is that of the server and the workers, without the "
        "submitter. An empty job of our whole service is an upload by HTTP of a very small image, which is "
        "flipped and kept as a file; one of our queue alone is submitted, claimed and reported done. A flip "
        "of our service is an upload too; the other systems are given the paths of files.",
    )


def _of(results: Results, name: str) -> Figures:
    return next((figures for system, figures in results.items() if system.name == name), Figures())


def _kills(results: Results, wait_s: float) -> Table:
    rows = [
        (
            f"{system.title}, {system.setting}",
            _again(figures.process_killed, wait_s),
            _lost_by(figures.process_killed),
            _again(figures.worker_killed, wait_s),
            _lost_by(figures.worker_killed),
            _lost(figures.server_killed),
            _answer(figures.away),
        )
        for system, figures in results.items()
        if not (system.is_only_idle or system.is_queue_alone)
    ]
    return Table(
        "kill -9",
        (
            "queue",
            "process of a job killed: it runs again after",
            "jobs lost; jobs run twice",
            "whole worker killed: its job runs again after",
            "jobs lost; jobs run twice",
            "server killed: acknowledged jobs lost; jobs run twice",
            "server away: a submission",
        ),
        tuple(rows),
        f"A job counts as lost when it was acknowledged and had not been run to its end {wait_s:.0f} s after "
        "the kill, and as run twice when it had been run to its end more than once by then. A killed worker "
        "or server is started again at once.",
    )


def _each(values: Sequence[float], unit: str) -> str:
    return f"{_spread(values)} {unit}" if values else _NOTHING


def _rate(rates: Sequence[Rate], pick: Callable[[Rate], float | None]) -> str:
    values = [value for value in map(pick, rates) if value is not None]
    return _spread(values) if values else _NOTHING


def _ratio(theirs: Sequence[Rate], ours: Sequence[Rate]) -> str:
    """Compare within rounds."""
    if not theirs or len(theirs) != len(ours):
        return _NOTHING
    return f"{median(one.done_per_s / other.done_per_s for one, other in zip(theirs, ours, strict=True)):.2f}"


def _again(killed: Killed | None, wait_s: float) -> str:
    if killed is None:
        return _NOTHING
    return f"not within {wait_s:.0f} s" if killed.again_s is None else f"{_number(killed.again_s)} s"


def _lost(jobs: Tally | None) -> str:
    return _NOTHING if jobs is None else f"{jobs.lost} of {jobs.acknowledged}; {jobs.twice}"


def _lost_by(killed: Killed | None) -> str:
    return _lost(None if killed is None else killed.jobs)


def _answer(away: Away | None) -> str:
    if away is None:
        return _NOTHING
    if away.after_s is None:
        return f"hangs for more than {HANGS_S:.0f} s"
    # A long message is of use to who made it only.
    said = away.said if len(away.said) < _LONG else away.said.partition(":")[0]
    return f"{said or 'accepted'} after {away.after_s:.2f} s"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{_number(values[0])} (once)"
    return f"{_number(median(values))} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < _DECIMALS_BELOW else f"{value:,.0f}"
