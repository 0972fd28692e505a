"""The scoreboard counts for the whole cluster: across processes, and past the death of a worker."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus

import pytest
from support.forks import exit_code, fork

from server.cluster.scoreboard import (
    DURATION_BOUNDS_S,
    STATUSES,
    Cell,
    NoFreeRow,
    Row,
    Scoreboard,
    State,
    WorkerSnapshot,
)
from server.web.problems import STATUS_OF


@pytest.fixture
def scoreboard() -> Scoreboard:
    return Scoreboard(rows=3)


def in_a_fork(act: Callable[[], object]) -> None:
    """Run a function in a forked process, to its end."""
    assert exit_code(fork(act)) == 0


def answer(row: Row, status: int = 200, duration_s: float = 0.1) -> None:
    row.count_request(status, duration_s, bytes_in=1000, bytes_out=10)


def test_an_empty_scoreboard_counts_nothing(scoreboard: Scoreboard) -> None:
    assert list(scoreboard.workers()) == []
    snapshot = scoreboard.snapshot()
    assert set(snapshot.requests.values()) == set(snapshot.durations) == {0}
    assert {value for value in asdict(snapshot).values() if isinstance(value, int | float)} == {0}


def test_a_claimed_row_is_a_worker_that_starts(scoreboard: Scoreboard) -> None:
    row = scoreboard.claim()
    assert [(worker.index, worker[Cell.STATE]) for worker in scoreboard.workers()] == [
        (row.index, State.STARTING)
    ]
    assert scoreboard.snapshot().online_workers == 0


def test_a_worker_counts_once_it_is_online_and_until_it_stops(scoreboard: Scoreboard) -> None:
    row = scoreboard.claim()
    counts = []
    for state in (State.STARTING, State.ONLINE, State.STOPPING):
        row[Cell.STATE] = state
        counts.append(scoreboard.snapshot().online_workers)
    assert counts == [0, 1, 0]


def test_every_worker_has_a_row_to_itself(scoreboard: Scoreboard) -> None:
    first, second = scoreboard.claim(), scoreboard.claim()
    for cell in range(Cell.PID, Cell.FIRST_STATUS):
        first[cell] = 7
    answer(first, status=599, duration_s=1e9)
    assert [second[cell] for cell in range(Cell.PID, Cell.FIRST_STATUS)] == [0] * (Cell.FIRST_STATUS - 1)


def test_what_all_workers_count_is_added_up(scoreboard: Scoreboard) -> None:
    for pid in (70, 71):
        row = scoreboard.claim()
        row[Cell.ENGINE_PID] = pid
        row[Cell.IN_FLIGHT] = 2
        row[Cell.ENGINE_STARTS] += 1
        answer(row, duration_s=0.5)
        row.count_task(service_us=250_000)
        row[Cell.BACKGROUND_PID] = pid + 2
        row.count_background_task(service_us=750_000)
    snapshot = scoreboard.snapshot()
    assert (snapshot.engines, snapshot.in_flight, snapshot.engine_starts) == (2, 4, 2)
    assert (snapshot.background_engines, snapshot.background_tasks, snapshot.background_engine_s) == (
        2,
        2,
        1.5,
    )
    assert (snapshot.requests["200"], snapshot.bytes_in, snapshot.bytes_out) == (2, 2000, 20)
    assert (snapshot.tasks, snapshot.engine_s, snapshot.duration_s) == (2, 0.5, 1.0)


def test_no_counter_falls_when_a_worker_dies(scoreboard: Scoreboard) -> None:
    row = scoreboard.claim()
    row[Cell.STATE] = State.ONLINE
    row[Cell.ENGINE_PID] = 70
    row[Cell.BACKGROUND_PID] = 71
    row[Cell.IN_FLIGHT] = 5
    row[Cell.ENGINE_STARTS] += 2
    row[Cell.ENGINE_DEATHS] += 1
    for status in (200, 422, 503, 418):
        answer(row, status)
    row.count_task(service_us=1000)
    row.count_background_task(service_us=1000)
    before = asdict(scoreboard.snapshot())
    scoreboard.release(row)
    after = asdict(scoreboard.snapshot())
    assert after == before | {"workers": (), "in_flight": 0}


def test_the_next_owner_of_a_row_goes_on_counting_and_is_otherwise_new(scoreboard: Scoreboard) -> None:
    row = scoreboard.claim()
    row[Cell.ENGINE_PID] = 70
    answer(row)
    row.count_task(service_us=1000)
    scoreboard.release(row)
    heir = scoreboard.claim()
    assert heir.index == row.index
    assert [heir[cell] for cell in range(Cell.PID, Cell.REQUESTS)] == [0] * (Cell.REQUESTS - 1)
    assert heir[Cell.REQUESTS] == 1
    answer(heir)
    assert scoreboard.snapshot().requests["200"] == 2


def test_a_snapshot_has_every_worker_with_its_figures(scoreboard: Scoreboard) -> None:
    rows = [scoreboard.claim() for _ in range(2)]
    held = {
        Cell.PID: 70,
        Cell.ENGINE_PID: 71,
        Cell.BACKGROUND_PID: 72,
        Cell.IN_FLIGHT: 3,
        Cell.ENGINE_DEATHS: 2,
    }
    for cell, value in held.items():
        rows[0][cell] = value
    rows[0].count_task(service_us=1000)
    answer(rows[0])
    assert scoreboard.snapshot().workers == (
        WorkerSnapshot(70, State.STARTING, 71, 72, 3, service_us=1000, requests=1, tasks=1, engine_deaths=2),
        WorkerSnapshot(0, State.STARTING, 0, 0, 0, 0, 0, 0, 0),
    )


def test_rows_come_back_for_as_many_workers_as_there_will_be(scoreboard: Scoreboard) -> None:
    for _ in range(20):
        rows = [scoreboard.claim() for _ in range(3)]
        assert len({row.index for row in rows}) == 3
        for row in rows:
            answer(row)
            scoreboard.release(row)
    assert scoreboard.snapshot().requests["200"] == 60


def test_a_reader_never_sees_a_counter_fall(scoreboard: Scoreboard) -> None:
    row = scoreboard.claim()
    answer(row)
    reading = row[Cell.REQUESTS]
    # A reader may look at any moment of a change of owners, so nothing may be moved in it.
    scoreboard.release(row)
    assert row[Cell.REQUESTS] == reading
    assert scoreboard.claim()[Cell.REQUESTS] == reading


def test_more_workers_than_rows_is_an_error(scoreboard: Scoreboard) -> None:
    rows = [scoreboard.claim() for _ in range(3)]
    with pytest.raises(NoFreeRow, match="no row left"):
        scoreboard.claim()
    scoreboard.release(rows[1])
    assert scoreboard.claim().index == rows[1].index


def test_what_a_forked_worker_writes_is_seen_here_and_outlives_it(scoreboard: Scoreboard) -> None:
    row = scoreboard.claim()

    def work() -> None:
        row[Cell.STATE] = State.ONLINE
        row[Cell.PID] = os.getpid()
        answer(row)

    in_a_fork(work)
    assert row[Cell.PID] not in {0, os.getpid()}
    snapshot = scoreboard.snapshot()
    assert (snapshot.online_workers, snapshot.requests["200"]) == (1, 1)


def test_a_forked_worker_sees_what_others_write_after_the_fork(scoreboard: Scoreboard) -> None:
    row = scoreboard.claim()
    reader, writer = multiprocessing.Pipe(duplex=False)

    def wait_and_look() -> None:
        reader.recv()
        os._exit(scoreboard.snapshot().requests["200"])

    process = fork(wait_and_look)
    for _ in range(3):
        answer(row)
    writer.send("look now")
    assert exit_code(process) == 3
    reader.close()
    writer.close()


@pytest.mark.parametrize(
    ("status", "counted_as"),
    [(200, "200"), (499, "499"), (204, "2xx"), (101, "1xx"), (302, "3xx"), (418, "4xx"), (507, "5xx")],
)
def test_a_status_counts_by_itself_or_under_its_class(
    scoreboard: Scoreboard, status: int, counted_as: str
) -> None:
    answer(scoreboard.claim(), status)
    assert {name for name, count in scoreboard.snapshot().requests.items() if count} == {counted_as}


def test_every_status_that_we_answer_with_counts_by_itself() -> None:
    framework = {HTTPStatus.OK, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, 500}
    assert {*STATUS_OF.values(), *framework} <= set(STATUSES)


@pytest.mark.parametrize(
    ("duration_s", "bucket"),
    [
        (0.0, 0),
        *((bound, i) for i, bound in enumerate(DURATION_BOUNDS_S)),
        *((bound + 1e-9, i + 1) for i, bound in enumerate(DURATION_BOUNDS_S)),
    ],
)
def test_a_response_time_counts_in_the_first_bucket_that_is_not_below_it(
    scoreboard: Scoreboard, duration_s: float, bucket: int
) -> None:
    answer(scoreboard.claim(), duration_s=duration_s)
    durations = scoreboard.snapshot().durations
    assert [i for i, count in enumerate(durations) if count] == [bucket]


def test_there_is_a_bucket_for_each_bound_and_one_more(scoreboard: Scoreboard) -> None:
    snapshot = scoreboard.snapshot()
    assert snapshot.duration_bounds_s == tuple(sorted(DURATION_BOUNDS_S))
    assert len(snapshot.durations) == len(DURATION_BOUNDS_S) + 1


def test_the_first_task_sets_the_service_time_and_the_next_ones_move_it_by_an_eighth(
    scoreboard: Scoreboard,
) -> None:
    row = scoreboard.claim()
    averages = []
    for service_us in (8000, 16000, 1000):
        row.count_task(service_us)
        averages.append(row[Cell.SERVICE_US])
    assert averages == [8000, 9000, 8000]


def test_background_tasks_move_no_figure_that_admission_uses(scoreboard: Scoreboard) -> None:
    row = scoreboard.claim()
    row.count_task(service_us=8000)
    row.learn(service_us=8000, cost_us=4000)
    used = (Cell.SERVICE_US, Cell.RECENT_US, Cell.RECENT_COST_US, Cell.TASKS, Cell.TASK_US)
    before = [row[cell] for cell in used]
    row.count_background_task(service_us=10**9)
    assert [row[cell] for cell in used] == before


def test_figures_of_years_fit_into_a_cell(scoreboard: Scoreboard) -> None:
    row = scoreboard.claim()
    row[Cell.BYTES_IN] = 2**62
    scoreboard.release(row)
    assert scoreboard.snapshot().bytes_in == 2**62
