"""Who is taken on, who is told to come back, and when."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from server.admission import Admission
from server.cluster.scoreboard import Cell, Row, Scoreboard
from server.errors import ServiceUnavailable

PICTURE_BYTES = 1_000_000

#: What an engine took for the last picture, so that one is thought to take a tenth of a second.
LAST_US = 66_667


class Cluster:
    """Workers with an engine each, one gate each, and a picture behind them."""

    def __init__(self, workers: int = 2, *, max_wait_s: float = 1.0, max_held_bytes: int = 10**9) -> None:
        self.scoreboard = Scoreboard(rows=8)
        self.rows = [self.scoreboard.claim() for _ in range(workers)]
        for row in self.rows:
            row[Cell.ENGINE_PID] = 70
        self.rows[0].count_task(LAST_US, PICTURE_BYTES)
        self.gates = [
            Admission(self.scoreboard, row, max_wait_s=max_wait_s, max_held_bytes=max_held_bytes)
            for row in self.rows
        ]


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Where admitted requests stay admitted."""
    with ExitStack() as stack:
        yield stack


def fill(cluster: Cluster, held: ExitStack) -> int:
    """Admit requests at all gates in turn until one is refused, and count them."""
    for number in range(1000):
        try:
            held.enter_context(cluster.gates[number % len(cluster.gates)].admit(PICTURE_BYTES))
        except ServiceUnavailable:
            return number
    pytest.fail("nobody was refused")


def told(refused: Callable[[], object]) -> int:
    """The seconds that a refusal says."""
    with pytest.raises(ServiceUnavailable) as refusal:
        refused()
    return refusal.value.retry_after_s


def test_as_many_are_admitted_as_can_be_served_within_the_limit(held: ExitStack) -> None:
    # Two engines for a second, a tenth of a second each, and the one that is just within the limit.
    assert fill(Cluster(), held) == 21


def test_more_engines_serve_more(held: ExitStack) -> None:
    assert fill(Cluster(workers=4), held) == 41


def test_an_engine_that_is_away_does_not_count(held: ExitStack) -> None:
    cluster = Cluster()
    cluster.rows[1][Cell.ENGINE_PID] = 0
    assert fill(cluster, held) == 11


def test_before_anything_was_measured_a_guess_by_size_stands_in(held: ExitStack) -> None:
    cluster = Cluster()
    for cell in (Cell.LATELY_US, Cell.LATELY_BYTES):
        cluster.rows[0][cell] = 0
    assert fill(cluster, held) == 67  # 30 ms each


def test_the_last_jobs_count_most() -> None:
    cluster = Cluster()
    for _ in range(60):
        cluster.rows[0].count_task(LAST_US // 10, PICTURE_BYTES)
    with ExitStack() as held:
        assert fill(cluster, held) > 190  # nearly ten times as many


def test_who_is_done_makes_room_for_the_next(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held)
    held.close()
    assert [cluster.scoreboard.total(cell) for cell in (Cell.PREDICTED_US, Cell.HELD_BYTES)] == [0, 0]
    assert fill(cluster, held) == 21


def test_an_answer_that_is_still_on_its_way_holds_bytes_and_no_engine() -> None:
    cluster = Cluster()
    with cluster.gates[0].admit(PICTURE_BYTES) as ticket:
        ticket.finish_work()
        ticket.hold(5)
        assert cluster.scoreboard.total(Cell.PREDICTED_US) == 0
        assert cluster.scoreboard.total(Cell.HELD_BYTES) == 5
    assert cluster.scoreboard.total(Cell.HELD_BYTES) == 0


def test_a_worker_that_dies_takes_its_counts_with_it(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held)
    cluster.scoreboard.release(cluster.rows[0])
    cluster.scoreboard.release(cluster.rows[1])
    assert [cluster.scoreboard.total(cell) for cell in (Cell.PREDICTED_US, Cell.HELD_BYTES)] == [0, 0]


def test_those_refused_are_told_one_after_the_other(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held)
    waits = [told(gate.admit(PICTURE_BYTES).__enter__) for gate in cluster.gates * 30]
    assert waits == sorted(waits)
    assert all(waits.count(second) <= 20 for second in set(waits))  # as many as are served in a second
    assert waits[0] == 1
    assert waits[-1] == 5  # half as late again


def test_those_who_are_refused_again_and_again_do_not_send_others_away_for_long(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held)
    for _ in range(100):
        told(cluster.gates[0].admit(60 * PICTURE_BYTES).__enter__)
    assert told(cluster.gates[1].admit(PICTURE_BYTES).__enter__) == 60


def test_the_bytes_of_all_pictures_are_bounded(held: ExitStack) -> None:
    cluster = Cluster(max_held_bytes=3 * PICTURE_BYTES)
    assert fill(cluster, held) == 3


def test_what_is_announced_and_does_not_come_makes_room_for_others(held: ExitStack) -> None:
    cluster = Cluster(max_held_bytes=2 * PICTURE_BYTES)
    with cluster.gates[0].admit(PICTURE_BYTES) as silent, cluster.gates[0].admit(PICTURE_BYTES) as slow:
        silent.expect(0, 0.0)
        slow.expect(PICTURE_BYTES // 10, PICTURE_BYTES / 2)  # per second, and that is the limit on waiting
        assert cluster.scoreboard.total(Cell.HELD_BYTES) == 0.6 * PICTURE_BYTES
        assert cluster.scoreboard.total(Cell.PREDICTED_US) == pytest.approx(60_500, abs=2)
        slow.expect(PICTURE_BYTES // 10, PICTURE_BYTES)
        assert cluster.scoreboard.total(Cell.HELD_BYTES) == PICTURE_BYTES  # and no more than was said
        assert fill(cluster, held) == 1
    slow.expect(1, 1.0)
    held.close()
    assert [cluster.scoreboard.total(cell) for cell in (Cell.PREDICTED_US, Cell.HELD_BYTES)] == [0, 0]


def test_a_body_of_unknown_length_counts_as_it_grows() -> None:
    cluster = Cluster(max_held_bytes=PICTURE_BYTES)
    with cluster.gates[0].admit(None) as first, cluster.gates[1].admit(None) as second:
        first.grow_to(PICTURE_BYTES // 2)
        first.grow_to(PICTURE_BYTES // 4)  # less than is known already
        second.grow_to(PICTURE_BYTES // 2)
        assert cluster.scoreboard.total(Cell.HELD_BYTES) == PICTURE_BYTES
        with pytest.raises(ServiceUnavailable):
            second.grow_to(PICTURE_BYTES // 2 + 1)


def test_who_was_not_served_in_time_is_told_when_to_come_back() -> None:
    cluster = Cluster()
    with cluster.gates[0].admit(PICTURE_BYTES) as ticket:
        assert ticket.refusal().retry_after_s == 1


def test_a_row_is_written_by_its_worker_alone(held: ExitStack) -> None:
    cluster = Cluster()
    before = _cells(cluster.rows[1])
    held.enter_context(cluster.gates[0].admit(PICTURE_BYTES))
    assert _cells(cluster.rows[1]) == before


def _cells(row: Row) -> list[int]:
    return [row[cell] for cell in Cell]
