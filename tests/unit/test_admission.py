"""Which requests are admitted, which are shed, and with which `Retry-After`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from server.admission import Admission
from server.cluster.scoreboard import Cell, Row, Scoreboard
from server.errors import ServiceUnavailable

IMAGE_BYTES = 1_000_000

#: What an engine took for the last image, so that a tenth of a second is predicted for one.
LAST_US = 66_667


class Cluster:
    """Workers with an engine each, their admission control, and an image that was processed."""

    def __init__(self, workers: int = 2, *, max_wait_s: float = 1.0, max_held_bytes: int = 10**9) -> None:
        self.scoreboard = Scoreboard(rows=8)
        self.rows = [self.scoreboard.claim() for _ in range(workers)]
        for row in self.rows:
            row[Cell.ENGINE_PID] = 70
        self.rows[0].count_task(LAST_US, IMAGE_BYTES)
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
            held.enter_context(cluster.gates[number % len(cluster.gates)].admit(IMAGE_BYTES))
        except ServiceUnavailable:
            return number
    pytest.fail("no request was shed")


def retry_after_s(refused: Callable[[], object]) -> int:
    """The seconds that a refusal says."""
    with pytest.raises(ServiceUnavailable) as refusal:
        refused()
    return refusal.value.retry_after_s


def test_as_many_are_admitted_as_can_be_served_within_the_limit(held: ExitStack) -> None:
    # Two engines for a second, a tenth of a second each, and the one that is just within the limit.
    assert fill(Cluster(), held) == 21


def test_more_engines_serve_more(held: ExitStack) -> None:
    assert fill(Cluster(workers=4), held) == 41


def test_an_engine_that_is_not_running_does_not_count(held: ExitStack) -> None:
    cluster = Cluster()
    cluster.rows[1][Cell.ENGINE_PID] = 0
    assert fill(cluster, held) == 11


def test_before_the_first_measurement_the_size_predicts(held: ExitStack) -> None:
    cluster = Cluster()
    for cell in (Cell.RECENT_US, Cell.RECENT_BYTES):
        cluster.rows[0][cell] = 0
    assert fill(cluster, held) == 67  # 30 ms each


def test_the_last_tasks_count_most() -> None:
    cluster = Cluster()
    for _ in range(60):
        cluster.rows[0].count_task(LAST_US // 10, IMAGE_BYTES)
    with ExitStack() as held:
        assert fill(cluster, held) > 190  # nearly ten times as many


def test_a_finished_request_makes_room_for_the_next(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held)
    held.close()
    assert [cluster.scoreboard.total(cell) for cell in (Cell.PREDICTED_US, Cell.HELD_BYTES)] == [0, 0]
    assert fill(cluster, held) == 21


def test_an_answer_that_is_still_on_its_way_holds_bytes_and_no_engine() -> None:
    cluster = Cluster()
    with cluster.gates[0].admit(IMAGE_BYTES) as ticket:
        ticket.finish_work()
        ticket.hold(5)
        assert cluster.scoreboard.total(Cell.PREDICTED_US) == 0
        assert cluster.scoreboard.total(Cell.HELD_BYTES) == 5
    assert cluster.scoreboard.total(Cell.HELD_BYTES) == 0


def test_the_counts_of_a_worker_end_with_it(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held)
    cluster.scoreboard.release(cluster.rows[0])
    cluster.scoreboard.release(cluster.rows[1])
    assert [cluster.scoreboard.total(cell) for cell in (Cell.PREDICTED_US, Cell.HELD_BYTES)] == [0, 0]


def test_shed_requests_get_one_retry_after_after_the_other(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held)
    waits = [retry_after_s(gate.admit(IMAGE_BYTES).__enter__) for gate in cluster.gates * 30]
    assert waits == sorted(waits)
    assert all(waits.count(second) <= 20 for second in set(waits))  # as many as are served in a second
    assert waits[0] == 1
    assert waits[-1] == 5  # half as late again


def test_clients_that_are_shed_again_and_again_do_not_push_up_retry_after_for_others(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held)
    for _ in range(100):
        retry_after_s(cluster.gates[0].admit(60 * IMAGE_BYTES).__enter__)
    assert retry_after_s(cluster.gates[1].admit(IMAGE_BYTES).__enter__) == 60


def test_the_bytes_in_flight_are_bounded(held: ExitStack) -> None:
    cluster = Cluster(max_held_bytes=3 * IMAGE_BYTES)
    assert fill(cluster, held) == 3


def test_stalled_uploads_do_not_starve_admission(held: ExitStack) -> None:
    cluster = Cluster(max_held_bytes=2 * IMAGE_BYTES)
    with cluster.gates[0].admit(IMAGE_BYTES) as silent, cluster.gates[0].admit(IMAGE_BYTES) as slow:
        silent.expect(0, 0.0)
        slow.expect(IMAGE_BYTES // 10, IMAGE_BYTES / 2)  # per second, and that is the limit on waiting
        assert cluster.scoreboard.total(Cell.HELD_BYTES) == 0.6 * IMAGE_BYTES
        assert cluster.scoreboard.total(Cell.PREDICTED_US) == pytest.approx(60_500, abs=2)
        slow.expect(IMAGE_BYTES // 10, IMAGE_BYTES)
        assert cluster.scoreboard.total(Cell.HELD_BYTES) == IMAGE_BYTES  # and no more than was said
        assert fill(cluster, held) == 1
    slow.expect(1, 1.0)
    held.close()
    assert [cluster.scoreboard.total(cell) for cell in (Cell.PREDICTED_US, Cell.HELD_BYTES)] == [0, 0]


def test_a_body_of_unknown_length_counts_as_it_grows() -> None:
    cluster = Cluster(max_held_bytes=IMAGE_BYTES)
    with cluster.gates[0].admit(None) as first, cluster.gates[1].admit(None) as second:
        first.grow_to(IMAGE_BYTES // 2)
        first.grow_to(IMAGE_BYTES // 4)  # less than is known already
        second.grow_to(IMAGE_BYTES // 2)
        assert cluster.scoreboard.total(Cell.HELD_BYTES) == IMAGE_BYTES
        with pytest.raises(ServiceUnavailable):
            second.grow_to(IMAGE_BYTES // 2 + 1)


def test_a_request_that_was_not_served_in_time_is_shed() -> None:
    cluster = Cluster()
    with cluster.gates[0].admit(IMAGE_BYTES) as ticket:
        assert ticket.refusal().retry_after_s == 1


def test_a_row_is_written_by_its_worker_alone(held: ExitStack) -> None:
    cluster = Cluster()
    before = _cells(cluster.rows[1])
    held.enter_context(cluster.gates[0].admit(IMAGE_BYTES))
    assert _cells(cluster.rows[1]) == before


def _cells(row: Row) -> list[int]:
    return [row[cell] for cell in Cell]
