"""Which requests are admitted, what they hold, which are shed, and with which `Retry-After`."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.asgi import MovableClock, run

from server import admission
from server.admission import Admission, Ticket
from server.cluster.ledger import Field, Ledger
from server.cluster.messages import now_us
from server.cluster.roles import BACKGROUND, INTERACTIVE
from server.cluster.scoreboard import Cell, Row, Scoreboard
from server.cluster.work_socket import Lane
from server.errors import ServiceUnavailable
from server.operations.registry import Cost, Read
from server.settings import Settings
from server.shares import Shares

IMAGE_BYTES = 1_000_000

GREEDY, NEWCOMER = "192.0.2.1", "192.0.2.2"

#: What admission counts for a client.
COUNTED = (Field.HELD_BYTES, Field.PREDICTED_US, Field.LIKELY_MORE_US, Field.WAITING)

#: What an engine took for the last image, and was expected to: a tenth of a second is predicted for one.
LAST_US = 66_667

#: Longer than a test takes, in microseconds.
HOUR_US = 3_600_000_000


def estimate(_read: Read, body_bytes: int) -> Cost:
    return Cost(body_bytes, LAST_US)


class Cluster:
    """Workers with an engine each, their admission control, and an image that was processed."""

    def __init__(
        self, workers: int = 2, *, max_wait_s: float = 1.0, max_held_bytes: int | None = 10**9
    ) -> None:
        self.scoreboard = Scoreboard(rows=8)
        self.ledger = Ledger(rows=8)
        while self.ledger.bucket(GREEDY) == self.ledger.bucket(NEWCOMER):
            self.ledger = Ledger(rows=8)
        self.rows = [self.scoreboard.claim() for _ in range(workers)]
        for row in self.rows:
            row[Cell.ENGINE_COUNTS_UNTIL_US] = now_us() + HOUR_US
        self.rows[0].count_task(LAST_US)
        self.rows[0].learn(LAST_US, LAST_US)
        self.gates = [
            Admission(
                self.scoreboard,
                row,
                max_wait_s=max_wait_s,
                max_held_bytes=max_held_bytes,
                shares=Shares.of(self.ledger.open(row.index), Settings()),
            )
            for row in self.rows
        ]

    def totals(self) -> list[int]:
        return [
            self.scoreboard.total(cell) for cell in (Cell.PREDICTED_US, Cell.HELD_BYTES, Cell.UPLOAD_BYTES)
        ]


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Where admitted requests stay admitted."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no time pass for admission: on a busy machine it does between refusals, and shortens the waits."""
    now = now_us()
    monkeypatch.setattr(admission, "now_us", lambda: now)


def nothing(_position: int, _size: int) -> bytes:
    return b""


def received(gate: Admission, held: ExitStack, size: int = IMAGE_BYTES, client: str = "") -> Ticket:
    """Admit a request and let its body arrive, in two pieces."""
    ticket = held.enter_context(gate.admit(size, estimate, client))
    ticket.arrive(size // 2)
    ticket.look(nothing, size // 2)
    ticket.arrive(size)
    ticket.complete(size)
    ticket.look(nothing, size)
    return ticket


def fill(cluster: Cluster, held: ExitStack, client: str = "") -> int:
    """Admit requests at all gates in turn until one is refused, and count them."""
    for number in range(3000):
        try:
            received(cluster.gates[number % len(cluster.gates)], held, client=client)
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
    cluster.rows[1][Cell.ENGINE_COUNTS_UNTIL_US] = now_us() - 1
    assert fill(cluster, held) == 11


def test_before_the_first_measurement_the_header_alone_predicts(held: ExitStack) -> None:
    cluster = Cluster()
    cluster.rows[0][Cell.RECENT_US] = cluster.rows[0][Cell.RECENT_COST_US] = 0
    assert fill(cluster, held) == 21  # with the headroom, as after a task that took what was expected


def test_the_last_tasks_count_most() -> None:
    cluster = Cluster()
    for _ in range(60):
        cluster.rows[0].learn(LAST_US // 10, LAST_US)
    with ExitStack() as held:
        assert fill(cluster, held) > 190  # nearly ten times as many


def test_a_finished_task_teaches_what_engines_take(held: ExitStack) -> None:
    cluster = Cluster()
    ticket = received(cluster.gates[0], held)
    ticket.deliver(5, 2 * LAST_US, INTERACTIVE)
    assert cluster.rows[0][Cell.RECENT_US] == 3 * LAST_US - LAST_US // 8
    assert cluster.rows[0][Cell.RECENT_COST_US] == 2 * LAST_US - LAST_US // 8


def test_one_image_that_takes_much_longer_than_its_header_tells_hardly_moves_the_prediction(
    held: ExitStack,
) -> None:
    cluster = Cluster()
    with cluster.gates[0].admit(40, lambda _read, _size: Cost(1, 1)) as odd:
        odd.complete(40)
        odd.look(nothing, 40)
        odd.deliver(5, 2_000_000, INTERACTIVE)
    assert fill(cluster, held) == 20


@pytest.mark.parametrize(
    ("odd_cost", "took_us", "admitted"),
    [(Cost(1, 1), 2_000_000, 21), (Cost(1, LAST_US), 2_000_000, 21), (Cost(1, 2_000_000), 1000, 2001)],
)
def test_many_odd_images_move_the_prediction_by_a_factor_of_ten_at_most(
    odd_cost: Cost, took_us: int, admitted: int
) -> None:
    cluster = Cluster(max_wait_s=10.0, max_held_bytes=10**12)
    for _ in range(200):
        with cluster.gates[0].admit(40, lambda _read, _size: odd_cost) as odd:
            odd.complete(40)
            odd.look(nothing, 40)
            odd.deliver(5, took_us, INTERACTIVE)
    with ExitStack() as held:  # 200 where the header tells the truth
        assert fill(cluster, held) == pytest.approx(admitted, rel=0.05)


def test_a_header_that_is_unknown_teaches_nothing() -> None:
    cluster = Cluster()
    before = _cells(cluster.rows[0])[Cell.RECENT_US : Cell.RECENT_COST_US + 1]
    with cluster.gates[0].admit(40, lambda _read, _size: Cost(1, 9 * LAST_US, is_known=False)) as ticket:
        ticket.complete(40)
        ticket.look(nothing, 40)
        ticket.deliver(5, LAST_US, INTERACTIVE)
    assert _cells(cluster.rows[0])[Cell.RECENT_US : Cell.RECENT_COST_US + 1] == before


def test_a_finished_request_makes_room_for_the_next(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held)
    held.close()
    assert [cluster.scoreboard.total(cell) for cell in (Cell.PREDICTED_US, Cell.HELD_BYTES)] == [0, 0]
    assert fill(cluster, held) == 21


def test_an_answer_that_is_still_on_its_way_holds_bytes_and_no_engine() -> None:
    cluster = Cluster()
    with cluster.gates[0].admit(IMAGE_BYTES) as ticket:
        ticket.deliver(5, LAST_US, INTERACTIVE)
        assert cluster.scoreboard.total(Cell.PREDICTED_US) == 0
        assert cluster.scoreboard.total(Cell.HELD_BYTES) == 5
    assert cluster.scoreboard.total(Cell.HELD_BYTES) == 0


def test_nothing_is_counted_for_a_request_that_is_over() -> None:
    cluster = Cluster()
    with ExitStack() as one:
        ticket = received(cluster.gates[0], one, client=GREEDY)
        late = one.enter_context(cluster.gates[0].admit(IMAGE_BYTES, estimate, GREEDY))
    for each in (ticket, late):
        each.arrive(IMAGE_BYTES)
        assert not each.takes(IMAGE_BYTES)
        each.complete(IMAGE_BYTES)
        each.deliver(IMAGE_BYTES, LAST_US, INTERACTIVE)
    assert cluster.totals() == [0, 0, 0]
    assert [cluster.ledger.total(field) for field in Field] == [0] * len(Field)


def test_the_counts_of_a_worker_end_with_it(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held)
    cluster.scoreboard.release(cluster.rows[0])
    cluster.scoreboard.release(cluster.rows[1])
    assert [cluster.scoreboard.total(cell) for cell in (Cell.PREDICTED_US, Cell.HELD_BYTES)] == [0, 0]


@pytest.mark.usefixtures("stopped_clock")
def test_shed_requests_get_one_retry_after_after_the_other(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held)
    waits = [retry_after_s(gate.admit(IMAGE_BYTES).__enter__) for gate in cluster.gates * 30]
    assert waits == sorted(waits)
    assert all(waits.count(second) <= 20 for second in set(waits))  # as many as are served in a second
    assert waits[0] == 1
    assert waits[-1] == 5  # half as late again


@pytest.mark.usefixtures("stopped_clock")
def test_hundreds_of_shed_requests_of_a_client_do_not_return_together_after_a_minute(held: ExitStack) -> None:
    cluster = Cluster(1, max_wait_s=10.0)
    fill(cluster, held, GREEDY)
    gate = cluster.gates[0]
    waits = [retry_after_s(gate.admit(IMAGE_BYTES, estimate, GREEDY).__enter__) for _ in range(560)]
    assert waits == sorted(waits)
    assert 50 < waits[-1] <= 60
    assert all(waits.count(second) <= 20 for second in set(waits))  # twice what is served in a second


def test_a_refused_client_pushes_up_no_other_s_retry_after(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held)
    for _ in range(1000):
        retry_after_s(cluster.gates[0].admit(60 * IMAGE_BYTES, estimate, "greedy").__enter__)
    assert retry_after_s(cluster.gates[0].admit(IMAGE_BYTES, estimate, "greedy").__enter__) == 60
    for gate in cluster.gates:
        assert retry_after_s(gate.admit(IMAGE_BYTES, estimate, "polite").__enter__) == 1


def test_bytes_that_slow_clients_hold_are_not_turned_into_engine_time() -> None:
    cluster = Cluster(max_held_bytes=1 << 30)
    cluster.rows[1][Cell.HELD_BYTES] += 1 << 30  # results that are being read
    assert retry_after_s(cluster.gates[0].admit(IMAGE_BYTES, estimate).__enter__) == 1


def test_what_is_remembered_of_refused_clients_is_bounded(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held)
    for number in range(3000):
        assert retry_after_s(cluster.gates[0].admit(IMAGE_BYTES, estimate, f"{number}").__enter__) == 1
    assert len(cluster.gates[0]._promised_us) <= 1024  # noqa: SLF001 nothing else shows it


# --- Bytes of uploads ---------------------------------------------------------------------------------------


def test_the_bytes_in_flight_are_bounded_and_uploads_leave_half_for_results(held: ExitStack) -> None:
    cluster = Cluster(max_held_bytes=6 * IMAGE_BYTES)
    assert fill(cluster, held) == 3


def test_one_upload_may_be_as_large_as_the_limit(held: ExitStack) -> None:
    cluster = Cluster(max_held_bytes=IMAGE_BYTES)
    received(cluster.gates[0], held)
    retry_after_s(cluster.gates[1].admit(1, estimate).__enter__)


def test_heads_without_bodies_cost_nobody_anything(held: ExitStack) -> None:
    cluster = Cluster(max_held_bytes=64 << 20)
    for number in range(100):
        held.enter_context(cluster.gates[number % 2].admit(64 << 20, estimate))
    assert cluster.totals()[1:] == [0, 0]
    received(cluster.gates[0], held)


def test_an_upload_that_arrives_counts_ahead_of_what_is_there() -> None:
    cluster = Cluster()
    with cluster.gates[0].admit(IMAGE_BYTES, estimate) as ticket:
        ticket.arrive(1000)
        ticket.look(nothing, 1000)
        assert cluster.totals() == [1600, 16_000, 16_000]  # a sixtieth of it, and of its engine time
        ticket.arrive(IMAGE_BYTES // 10)
        assert cluster.totals() == [pytest.approx(100_000, abs=2), IMAGE_BYTES, IMAGE_BYTES]
    assert cluster.totals() == [0, 0, 0]


def test_many_uploads_that_really_arrive_stay_below_the_limit(held: ExitStack) -> None:
    cluster = Cluster(max_wait_s=1000, max_held_bytes=10 * IMAGE_BYTES)
    tickets = [held.enter_context(cluster.gates[0].admit(IMAGE_BYTES, estimate)) for _ in range(50)]
    refused = set()
    for arrived_bytes in range(20_000, IMAGE_BYTES + 1, 20_000):
        for ticket in tickets:
            if ticket not in refused:
                try:
                    ticket.arrive(arrived_bytes)
                except ServiceUnavailable:
                    ticket.give_back()
                    refused.add(ticket)
        assert cluster.totals()[1] <= 5 * IMAGE_BYTES
        assert arrived_bytes * (50 - len(refused)) <= 5 * IMAGE_BYTES
    assert len(refused) == 45


def test_stalled_uploads_do_not_starve_admission(held: ExitStack) -> None:
    cluster = Cluster(max_held_bytes=4 * IMAGE_BYTES)
    with cluster.gates[0].admit(IMAGE_BYTES, estimate) as silent, cluster.gates[0].admit(IMAGE_BYTES) as slow:
        silent.arrive(IMAGE_BYTES // 10)
        silent.look(nothing, IMAGE_BYTES // 10)
        slow.arrive(IMAGE_BYTES // 10)
        assert cluster.totals()[1] == 2 * IMAGE_BYTES
        assert fill(cluster, held) == 0
        silent.expect(IMAGE_BYTES // 10, 0.0)
        slow.expect(IMAGE_BYTES // 10, IMAGE_BYTES / 2)  # per second, and that is the limit on waiting
        assert cluster.totals()[1] == 0.7 * IMAGE_BYTES
        assert cluster.totals()[0] == pytest.approx(10_500, abs=2)
        assert fill(cluster, held) == 1
        held.close()
        slow.arrive(IMAGE_BYTES // 5)  # what comes next is counted by the rate that is known
        assert cluster.totals()[1] == 0.8 * IMAGE_BYTES
        slow.expect(IMAGE_BYTES // 5, IMAGE_BYTES)
        slow.arrive(IMAGE_BYTES // 4)
        assert cluster.totals()[1] == 1.1 * IMAGE_BYTES  # and no more than was said
    slow.expect(1, 1.0)
    assert cluster.totals() == [0, 0, 0]


def test_a_body_of_unknown_length_counts_as_it_grows() -> None:
    cluster = Cluster(max_held_bytes=2 * IMAGE_BYTES)
    with cluster.gates[0].admit(None) as first, cluster.gates[1].admit(None) as second:
        first.arrive(IMAGE_BYTES // 2)
        first.arrive(IMAGE_BYTES // 4)  # less than is known already
        second.arrive(IMAGE_BYTES // 2)
        assert cluster.scoreboard.total(Cell.HELD_BYTES) == IMAGE_BYTES
        with pytest.raises(ServiceUnavailable):
            second.arrive(IMAGE_BYTES // 2 + 1)
        assert not second.takes(1)  # without a length the app looks at each piece


def test_without_a_limit_of_its_own_a_machine_has_room_for_its_engines() -> None:
    for workers, limit_bytes in ((1, 1 << 31), (2, 1 << 31), (8, 1 << 31)):
        cluster = Cluster(workers, max_held_bytes=None)
        assert cluster.gates[0].excess_upload_bytes(limit_bytes) == 0
        assert cluster.gates[0].excess_upload_bytes(limit_bytes + 1) == 1


# --- Engine time --------------------------------------------------------------------------------------------


def test_what_the_header_tells_is_predicted_not_the_size() -> None:
    cluster = Cluster()
    with cluster.gates[0].admit(200, lambda _read, _size: Cost(1, 10 * LAST_US)) as ticket:
        assert cluster.totals()[0] == 500  # the least, before anything is there
        ticket.arrive(100)
        ticket.look(nothing, 100)
        assert cluster.totals()[0] == pytest.approx(1_000_000, abs=10)


def test_while_its_header_is_unknown_an_image_is_looked_at_whenever_it_has_doubled() -> None:
    """As a JPEG is that has a long profile before its size; once that is there, no more until it is whole."""
    header_bytes, looked_at = 3000, []

    def estimate_late(read: Read, body_bytes: int) -> Cost:
        looked_at.append(len(read(0, body_bytes)))
        is_known = looked_at[-1] >= header_bytes
        return Cost(1, LAST_US * 5 if is_known else 1000, is_known=is_known)

    cluster = Cluster()
    with cluster.gates[0].admit(10_000, estimate_late) as ticket:
        for arrived_bytes in range(50, 10_001, 50):
            ticket.arrive(arrived_bytes)
            ticket.look(lambda _position, _size, there=arrived_bytes: bytes(there), arrived_bytes)
        assert looked_at == [100, 200, 400, 800, 1600, 3200]
        assert cluster.totals()[0] == pytest.approx(500_000, abs=5)
        ticket.complete(10_000)
        ticket.look(lambda _position, _size: bytes(10_000), 10_000)
        assert looked_at[-1] == 10_000


def test_the_server_takes_nothing_that_is_to_be_looked_at() -> None:
    cluster = Cluster()
    with cluster.gates[0].admit(10_000, lambda _read, _size: Cost(1, 1000, is_known=False)) as ticket:
        assert ticket.takes(50)
        assert not ticket.takes(64)
        ticket.look(nothing, 64)
        assert ticket.takes(127)
        assert not ticket.takes(128)


def test_of_a_body_without_a_length_more_is_looked_at() -> None:
    sizes: list[int] = []

    def estimate_growing(_read: Read, body_bytes: int) -> Cost:
        sizes.append(body_bytes)
        return Cost(1, body_bytes)

    with Cluster().gates[0].admit(None, estimate_growing) as ticket:
        for arrived_bytes in (64, 100, 200, 300, 500):
            ticket.look(nothing, arrived_bytes)
    assert sizes == [64, 200, 500]


def test_a_later_look_may_also_lower_the_prediction() -> None:
    costs = iter([Cost(1, 5 * LAST_US, is_known=False), Cost(1, LAST_US)])
    cluster = Cluster()
    with cluster.gates[0].admit(1000, lambda _read, _size: next(costs)) as ticket:
        ticket.arrive(1000)
        ticket.look(nothing, 1000)
        assert cluster.totals()[0] == pytest.approx(500_000, abs=5)
        ticket.complete(1000)
        ticket.look(nothing, 1000)
        assert cluster.totals()[0] == pytest.approx(100_000, abs=5)


def test_from_a_cost_that_was_not_known_nothing_is_learned() -> None:
    cluster = Cluster()
    before = cluster.scoreboard.total(Cell.RECENT_COST_US)
    with cluster.gates[0].admit(1000, lambda _read, _size: Cost(1, 10**9, is_known=False)) as ticket:
        ticket.complete(1000)
        ticket.look(nothing, 1000)
        ticket.deliver(1, 10, INTERACTIVE)
    assert cluster.scoreboard.total(Cell.RECENT_COST_US) == before


def test_one_long_task_leaves_the_other_engines_to_others(held: ExitStack) -> None:
    cluster = Cluster()
    long_one = held.enter_context(cluster.gates[0].admit(IMAGE_BYTES, lambda _read, _size: Cost(1, 10**9)))
    long_one.arrive(IMAGE_BYTES)
    long_one.look(nothing, IMAGE_BYTES)
    assert fill(cluster, held) == 11


def test_a_request_that_turns_out_to_wait_for_too_long_is_shed(held: ExitStack) -> None:
    cluster = Cluster()
    late = held.enter_context(cluster.gates[0].admit(IMAGE_BYTES, estimate))
    fill(cluster, held)
    late.arrive(1000)
    cluster.rows[1][Cell.ENGINE_COUNTS_UNTIL_US] = 0  # it has died, and none took its place
    with pytest.raises(ServiceUnavailable):
        late.arrive(200_000)
    late.complete(200_000)
    with pytest.raises(ServiceUnavailable):
        late.look(nothing, 200_000)


#: Before the size of an image, there are more bytes of other segments than a piece of its upload has.
LATE_BYTES, PIECE_BYTES = 200_000, 1 << 16


def estimate_by_piece(read: Read, body_bytes: int) -> Cost:
    is_known = len(read(0, body_bytes)) > PIECE_BYTES
    return Cost(1, 10**9) if is_known else Cost(1, 6000, is_known=False)


def arrive_late(gate: Admission, held: ExitStack, client: str) -> Callable[[], None]:
    """Admit an image whose first piece tells nothing of its cost; what is returned lets the rest arrive."""
    ticket = held.enter_context(gate.admit(LATE_BYTES, estimate_by_piece, client))

    def arrive(arrived_bytes: int) -> None:
        ticket.look(lambda _position, _size: bytes(arrived_bytes), arrived_bytes)
        ticket.arrive(arrived_bytes)

    def arrive_whole() -> None:
        arrive(2 * PIECE_BYTES)
        ticket.complete(LATE_BYTES)
        ticket.look(lambda _position, _size: bytes(LATE_BYTES), LATE_BYTES)

    arrive(PIECE_BYTES)
    return arrive_whole


def test_a_cost_that_shows_in_the_middle_of_an_upload_is_compared_with_the_limit(held: ExitStack) -> None:
    cluster = Cluster()
    uploads = [arrive_late(cluster.gates[0], held, "") for _ in range(10)]
    for arrive_whole in uploads[:2]:  # a second each, of the two that there are
        arrive_whole()
    for arrive_whole in uploads[2:]:
        assert retry_after_s(arrive_whole) > 0


def test_a_cost_that_shows_in_the_middle_of_an_upload_is_compared_with_the_share(held: ExitStack) -> None:
    cluster = Cluster(max_wait_s=10)
    uploads = [arrive_late(cluster.gates[0], held, GREEDY) for _ in range(10)]
    uploads[0]()  # ten seconds of the fifteen that are free for all
    for arrive_whole in uploads[1:]:
        with pytest.raises(ServiceUnavailable) as refusal:
            arrive_whole()
        assert refusal.value.share == "engine"
    assert fill(cluster, held, NEWCOMER) == 49


def test_a_request_that_was_received_is_not_shed_for_those_that_came_later(held: ExitStack) -> None:
    cluster = Cluster()
    first = received(cluster.gates[0], held)
    assert fill(cluster, held) == 20
    first.look(nothing, IMAGE_BYTES)


# --- Results ------------------------------------------------------------------------------------------------


def test_a_result_is_booked_before_its_engine_starts(held: ExitStack) -> None:
    async def test() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, MovableClock)
        cluster = Cluster(max_wait_s=10, max_held_bytes=4_500_000)
        first, second = received(cluster.gates[0], held), received(cluster.gates[1], held)
        await first.reserve()
        assert cluster.totals()[1] == 3 * IMAGE_BYTES
        waiting = asyncio.create_task(second.reserve())
        await clock.pass_time(5)
        assert not waiting.done()
        small = held.enter_context(cluster.gates[0].admit(0, lambda _read, _size: Cost(1000, 1)))
        small.complete(0)
        small.look(nothing, 0)
        await small.reserve()  # it overtakes
        small.give_back()
        first.deliver(IMAGE_BYTES // 2, LAST_US, INTERACTIVE)
        first.give_back()
        await clock.pass_time(1)
        assert waiting.done()
        assert cluster.totals()[1] == 2 * IMAGE_BYTES

    run(test(), MovableClock)


def test_those_that_wait_for_as_much_room_get_it_in_their_order(held: ExitStack) -> None:
    async def test() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, MovableClock)
        cluster = Cluster(max_wait_s=10, max_held_bytes=8 * IMAGE_BYTES)
        first, *others = [received(cluster.gates[0], held) for _ in range(4)]
        await first.reserve()
        cluster.rows[1][Cell.HELD_BYTES] += 2 * IMAGE_BYTES  # of another worker
        order: list[int] = []

        async def reserve(number: int) -> None:
            await others[number].reserve()
            order.append(number)

        waiting = [asyncio.create_task(reserve(number)) for number in range(3)]
        await clock.pass_time(1)
        assert order == []
        cluster.rows[1][Cell.HELD_BYTES] -= 2 * IMAGE_BYTES
        last = asyncio.create_task(others[0].reserve())  # comes when there is room, and waits all the same
        for _ in range(5):
            await clock.pass_time(1)
        assert order == [0, 1]
        for task in (*waiting, last):
            task.cancel()

    run(test(), MovableClock)


def test_a_request_that_finds_no_room_for_its_result_is_shed_at_its_deadline(held: ExitStack) -> None:
    async def test() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, MovableClock)
        cluster = Cluster(max_wait_s=10, max_held_bytes=4 * IMAGE_BYTES)
        first, second = received(cluster.gates[0], held), received(cluster.gates[1], held)
        await first.reserve()
        waiting = asyncio.create_task(second.reserve())
        await clock.pass_time(9.5)
        assert not waiting.done()
        await clock.pass_time(1)
        with pytest.raises(ServiceUnavailable) as refusal:
            await waiting
        assert refusal.value.retry_after_s == 1
        second.give_back()
        assert cluster.totals()[1] == 2 * IMAGE_BYTES

    run(test(), MovableClock)


def test_an_upload_that_took_most_of_the_limit_still_gets_half_of_it(
    held: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_us = now_us()
    monkeypatch.setattr(admission, "now_us", lambda: late_us)
    gate = Cluster(max_wait_s=10).gates[0]
    prompt, slow = [held.enter_context(gate.admit(IMAGE_BYTES, estimate)) for _ in range(2)]
    admitted_us, late_us = late_us, late_us + 2_000_000
    prompt.complete(IMAGE_BYTES)
    assert prompt.deadline_us == admitted_us + 10_000_000
    late_us += 6_000_000
    slow.complete(IMAGE_BYTES)
    assert slow.deadline_us == late_us + 5_000_000


def test_a_lone_result_is_served_however_large(held: ExitStack) -> None:
    async def test() -> None:
        cluster = Cluster(max_held_bytes=2 * IMAGE_BYTES)
        ticket = received(cluster.gates[0], held)
        await ticket.reserve()
        assert cluster.totals()[1] == 2 * IMAGE_BYTES

    run(test())


def test_large_results_leave_room_for_another_one(held: ExitStack) -> None:
    async def test() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, MovableClock)
        cluster = Cluster(max_held_bytes=8 * IMAGE_BYTES)
        for _ in range(2):
            await received(cluster.gates[0], held, 1).reserve()
        large = [
            held.enter_context(cluster.gates[0].admit(0, lambda _read, _size: Cost(2 * IMAGE_BYTES, 1)))
            for _ in range(3)
        ]
        for ticket in large:
            ticket.complete(0)
            ticket.look(nothing, 0)
        await large[0].reserve()
        await large[1].reserve()  # four megabytes of eight
        waiting = asyncio.create_task(large[2].reserve())
        await clock.pass_time(0.4)
        assert not waiting.done()
        await received(cluster.gates[0], held).reserve()  # a smaller one finds room
        waiting.cancel()

    run(test(), MovableClock)


def test_the_true_size_replaces_what_was_booked(held: ExitStack) -> None:
    async def test() -> None:
        cluster = Cluster(max_held_bytes=4 * IMAGE_BYTES)
        ticket = received(cluster.gates[0], held)
        await ticket.reserve()
        ticket.deliver(5, LAST_US, INTERACTIVE)
        assert cluster.totals() == [0, 5, 0]
        ticket.give_back()
        ticket.give_back()
        assert cluster.totals() == [0, 0, 0]

    run(test())


def test_a_result_that_is_larger_than_its_header_told_must_find_room(held: ExitStack) -> None:
    async def test() -> None:
        cluster = Cluster(max_held_bytes=4 * IMAGE_BYTES)
        ticket = received(cluster.gates[0], held)
        await ticket.reserve()
        ticket.deliver(2 * IMAGE_BYTES, LAST_US, INTERACTIVE)
        assert cluster.totals()[1] == 2 * IMAGE_BYTES
        liar = received(cluster.gates[0], held, 10)
        await liar.reserve()
        with pytest.raises(ServiceUnavailable):
            liar.deliver(3 * IMAGE_BYTES, LAST_US, INTERACTIVE)
        liar.give_back()
        assert cluster.totals()[1] == 2 * IMAGE_BYTES

    run(test())


def test_a_result_that_is_larger_than_its_header_told_leaves_room_for_another_one(held: ExitStack) -> None:
    async def test() -> None:
        cluster = Cluster(max_held_bytes=10 * IMAGE_BYTES)
        await received(cluster.gates[0], held).reserve()
        liar = received(cluster.gates[0], held, 10)
        await liar.reserve()
        with pytest.raises(ServiceUnavailable):
            liar.deliver(
                5 * IMAGE_BYTES, LAST_US, INTERACTIVE
            )  # there would be room for it, and none for others

    run(test())


def test_results_that_are_larger_than_their_headers_told_are_shared_as_well(held: ExitStack) -> None:
    cluster = Cluster(max_held_bytes=100 * IMAGE_BYTES)
    cluster.rows[1][Cell.HELD_BYTES] += 70 * IMAGE_BYTES  # of others
    received(cluster.gates[0], held, 10, GREEDY).deliver(9 * IMAGE_BYTES, LAST_US, INTERACTIVE)
    liar = received(cluster.gates[0], held, 10, GREEDY)
    with pytest.raises(ServiceUnavailable) as refusal:
        liar.deliver(2 * IMAGE_BYTES, LAST_US, INTERACTIVE)
    assert refusal.value.share == "bytes"
    received(cluster.gates[0], held, 10, NEWCOMER).deliver(2 * IMAGE_BYTES, LAST_US, INTERACTIVE)


def asks_for(result_bytes: int, gate: Admission, held: ExitStack, client: str = "") -> Ticket:
    """Admit a small image that asks for so much room for its result."""
    ticket = held.enter_context(gate.admit(10, lambda _read, _size: Cost(result_bytes, 1), client))
    ticket.arrive(10)
    ticket.complete(10)
    ticket.look(nothing, 10)
    return ticket


def test_a_client_that_waits_for_room_gets_its_share_of_it_and_others_the_rest(held: ExitStack) -> None:
    async def test() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, MovableClock)
        cluster = Cluster(max_wait_s=10, max_held_bytes=100 * IMAGE_BYTES)
        cluster.rows[1][Cell.HELD_BYTES] += 95 * IMAGE_BYTES  # of others
        greedy = [
            asyncio.create_task(asks_for(4 * IMAGE_BYTES, cluster.gates[0], held, GREEDY).reserve())
            for _ in range(10)
        ]
        await clock.pass_time(1)
        polite = asyncio.create_task(asks_for(4 * IMAGE_BYTES, cluster.gates[0], held, NEWCOMER).reserve())
        await clock.pass_time(1)
        assert not any(task.done() for task in (*greedy, polite))
        cluster.rows[1][Cell.HELD_BYTES] -= 15 * IMAGE_BYTES
        for _ in range(2):  # those above their share say so first
            await clock.pass_time(1)
        assert (sum(task.done() for task in greedy), polite.done()) == (2, True)  # 8 of its 10 megabytes
        cluster.rows[1][Cell.HELD_BYTES] -= 26 * IMAGE_BYTES  # now it takes from no other client
        await clock.pass_time(1)
        assert sum(task.done() for task in greedy) == 4
        await clock.pass_time(10)
        assert all(task.done() for task in greedy)
        with pytest.raises(ServiceUnavailable) as refusal:
            await greedy[-1]
        assert refusal.value.share == "bytes"

    run(test(), MovableClock)


def test_a_lone_result_is_served_whatever_else_its_client_uploads(held: ExitStack) -> None:
    async def test() -> None:
        cluster = Cluster(max_held_bytes=10 * IMAGE_BYTES)
        for _ in range(2):
            received(cluster.gates[0], held, client=GREEDY)
        await asks_for(6 * IMAGE_BYTES, cluster.gates[0], held, GREEDY).reserve()
        assert cluster.totals()[1] == 8 * IMAGE_BYTES + 10

    run(test())


def test_a_request_that_was_not_served_in_time_is_shed() -> None:
    cluster = Cluster()
    with cluster.gates[0].admit(IMAGE_BYTES) as ticket:
        assert ticket.refusal().retry_after_s == 1


@pytest.mark.parametrize(
    ("limits", "share", "most", "tenth"),
    [
        ({"max_wait_s": 10.0}, "engine", 150, 20),  # of 200
        ({"max_wait_s": 1e6, "max_held_bytes": 200 * IMAGE_BYTES}, "bytes", 75, 10),  # of 100 for uploads
        ({"max_wait_s": 1e6, "max_held_bytes": 10**12}, "queue", 192, 25),  # of 256
    ],
)
def test_a_greedy_client_is_refused_for_the_share_that_it_has_had_and_a_newcomer_is_admitted(
    held: ExitStack, limits: dict[str, Any], share: str, most: int, tenth: int
) -> None:
    cluster = Cluster(**limits)
    assert fill(cluster, held, GREEDY) in {most, most + 1}
    with pytest.raises(ServiceUnavailable) as refusal:
        cluster.gates[1].admit(IMAGE_BYTES, estimate, GREEDY).__enter__()
    assert (refusal.value.share, refusal.value.retry_after_s) == (share, 1)
    assert fill(cluster, held, NEWCOMER) == tenth


@pytest.mark.usefixtures("stopped_clock")
@pytest.mark.parametrize(
    "limits",
    [
        {"max_wait_s": 10.0},
        {"max_wait_s": 1e6, "max_held_bytes": 200 * IMAGE_BYTES},
        {"max_wait_s": 1e6, "max_held_bytes": 10**12},
    ],
)
def test_a_client_that_has_had_its_share_gets_one_retry_after_after_the_other(
    held: ExitStack, limits: dict[str, Any]
) -> None:
    cluster = Cluster(**limits)
    fill(cluster, held, GREEDY)
    for gate in cluster.gates:
        waits = [retry_after_s(gate.admit(IMAGE_BYTES, estimate, GREEDY).__enter__) for _ in range(30)]
        assert waits == sorted(waits)
        assert all(waits.count(second) <= 10 for second in set(waits))  # half of what is served in a second
        assert (waits[0], waits[-1]) == (1, 5)  # half as late again


def estimate_half(_read: Read, body_bytes: int) -> Cost:
    return Cost(body_bytes, LAST_US // 2)


def test_a_client_whose_share_has_no_room_for_another_image_is_refused_before_its_body_is_read(
    held: ExitStack,
) -> None:
    cluster = Cluster(max_wait_s=10.0)
    half = held.enter_context(cluster.gates[0].admit(IMAGE_BYTES, estimate_half, GREEDY))
    half.look(nothing, IMAGE_BYTES // 2)
    half.complete(IMAGE_BYTES)
    for _ in range(149):  # as many as fit: half an image is left of what one client may have
        received(cluster.gates[0], held, client=GREEDY)
    with pytest.raises(ServiceUnavailable) as refusal:
        cluster.gates[1].admit(IMAGE_BYTES, estimate, GREEDY).__enter__()
    assert refusal.value.share == "engine"
    held.enter_context(cluster.gates[1].admit(IMAGE_BYTES, None, GREEDY))  # it needs no engine


def test_what_a_client_sends_already_is_counted_in_full_when_it_asks_for_more(held: ExitStack) -> None:
    cluster = Cluster(max_wait_s=10.0)
    engine_us = cluster.totals()[0]
    begun = [  # 15 of 20 s, a tenth of a second each
        held.enter_context(cluster.gates[number % 2].admit(IMAGE_BYTES, estimate, GREEDY))
        for number in range(150)
    ]
    with pytest.raises(ServiceUnavailable) as refusal:
        cluster.gates[0].admit(IMAGE_BYTES, estimate, GREEDY).__enter__()
    assert refusal.value.share == "engine"
    assert cluster.totals()[0] - engine_us < 1_000_000  # for others nothing has arrived
    with ExitStack() as others:
        assert fill(cluster, others, NEWCOMER) == 149
    for ticket in begun:
        ticket.look(nothing, IMAGE_BYTES // 2)
        ticket.arrive(IMAGE_BYTES // 2)
        ticket.complete(IMAGE_BYTES)  # none is refused


def test_stalled_uploads_do_not_count_in_full(held: ExitStack) -> None:
    cluster = Cluster(max_wait_s=10.0)
    begun = [held.enter_context(cluster.gates[0].admit(IMAGE_BYTES, estimate, GREEDY)) for _ in range(150)]
    for ticket in begun:
        ticket.arrive(1000)
        ticket.look(nothing, 1000)
        ticket.expect(1000, 1.0)
    assert fill(cluster, held, GREEDY) > 100


def test_a_few_slow_images_do_not_get_newcomers_refused(held: ExitStack) -> None:
    cluster = Cluster(max_wait_s=10.0)
    for _ in range(130):
        received(cluster.gates[0], held, client=GREEDY)
    for row in cluster.rows:
        row[Cell.SERVICE_US] = 60_000_000
    with ExitStack() as others:
        for _ in range(6):  # as many as a browser opens
            others.enter_context(cluster.gates[0].admit(IMAGE_BYTES, estimate, NEWCOMER))
    assert fill(cluster, held, NEWCOMER) in {19, 20}  # its 2 s: a tenth of a second is likely for each


def test_a_client_whose_results_fill_the_limit_is_refused_and_a_newcomer_gets_its_share(
    held: ExitStack,
) -> None:
    cluster = Cluster(max_wait_s=1e6, max_held_bytes=200 * IMAGE_BYTES)
    received(cluster.gates[0], held, client=GREEDY).deliver(160 * IMAGE_BYTES, LAST_US, INTERACTIVE)
    with pytest.raises(ServiceUnavailable) as refusal:
        cluster.gates[1].admit(IMAGE_BYTES, estimate, GREEDY).__enter__()
    assert (refusal.value.share, refusal.value.retry_after_s) == ("bytes", 1)
    assert fill(cluster, held, NEWCOMER) == 20


@pytest.mark.parametrize(
    "limits", [{"max_wait_s": 1e6, "max_held_bytes": 200 * IMAGE_BYTES}, {"max_wait_s": 10.0}]
)
def test_the_upload_sink_takes_no_more_than_the_share_of_a_client(
    held: ExitStack, limits: dict[str, Any]
) -> None:
    cluster = Cluster(**limits)
    greedy, polite = [
        held.enter_context(cluster.gates[0].admit(IMAGE_BYTES, estimate, client))
        for client in (GREEDY, NEWCOMER)
    ]
    for ticket in (greedy, polite):
        ticket.arrive(1000)
        ticket.look(nothing, 1000)
        ticket.expect(1000, 1.0)
    fill(cluster, held, GREEDY)
    assert not greedy.takes(IMAGE_BYTES // 2)
    assert polite.takes(IMAGE_BYTES // 2)


def test_requests_whose_bodies_are_on_their_way_take_no_share_of_the_queue(held: ExitStack) -> None:
    cluster = Cluster(max_wait_s=1e6, max_held_bytes=10**12)
    for _ in range(300):
        held.enter_context(cluster.gates[0].admit(IMAGE_BYTES, estimate, GREEDY)).arrive(1000)
    for _ in range(30):  # more than a share of the queue
        received(cluster.gates[1], held, client=NEWCOMER)
    assert received(cluster.gates[0], held, client=GREEDY).queue() is Lane.INTERACTIVE


def test_uploads_that_end_at_the_same_time_get_no_more_than_their_share_of_the_queue(held: ExitStack) -> None:
    cluster = Cluster(max_wait_s=1e6, max_held_bytes=10**12)
    uploads = [held.enter_context(cluster.gates[0].admit(10, estimate, GREEDY)) for _ in range(193)]
    polite = held.enter_context(cluster.gates[1].admit(10, estimate, NEWCOMER))
    for ticket in uploads[:192]:
        ticket.complete(10)
    with pytest.raises(ServiceUnavailable) as refusal:
        uploads[192].complete(10)
    assert refusal.value.share == "queue"
    polite.complete(10)


#: What a polite user sends: a JPEG of 20 megapixels, with the room that its result books.
PHOTO_BYTES, BOOKED_BYTES = 6_700_000, 16_000_000


def test_a_hundred_polite_users_behind_one_address_meet_no_limit_of_bytes_engine_time_or_queue() -> None:
    """All send a photo at the same moment to two workers with the default limits, while others are served."""

    async def test() -> None:
        cluster = Cluster(max_wait_s=Settings().max_wait_s, max_held_bytes=Settings().max_bytes_in_flight)
        engines, are_received = asyncio.Semaphore(2), asyncio.Barrier(101)

        async def use(number: int, client: str) -> None:
            gate = cluster.gates[number % 2]
            with gate.admit(PHOTO_BYTES, lambda _read, _size: Cost(BOOKED_BYTES, LAST_US), client) as ticket:
                ticket.arrive(PHOTO_BYTES // 16)
                ticket.look(nothing, PHOTO_BYTES // 16)
                assert ticket.takes(PHOTO_BYTES)
                ticket.complete(PHOTO_BYTES)
                ticket.look(nothing, PHOTO_BYTES)
                await are_received.wait()
                await ticket.reserve()
                async with engines:
                    await asyncio.sleep(LAST_US / 1e6)
                ticket.deliver(PHOTO_BYTES, LAST_US, INTERACTIVE)

        clients = [*[GREEDY] * 100, NEWCOMER]
        users = [asyncio.create_task(use(number, client)) for number, client in enumerate(clients)]
        clock = asyncio.get_running_loop()
        assert isinstance(clock, MovableClock)
        while not all(user.done() for user in users):
            await clock.pass_time(0.01)
        await asyncio.gather(*users)

    run(test(), MovableClock)


def test_the_first_request_of_a_client_is_not_refused_for_its_own_bytes(held: ExitStack) -> None:
    cluster = Cluster(max_wait_s=1e6, max_held_bytes=100 * IMAGE_BYTES)
    first = held.enter_context(cluster.gates[0].admit(None, estimate, GREEDY))
    for arrived in range(10, 100, 10):
        first.arrive(arrived * IMAGE_BYTES)
    assert first.held_bytes == 90 * IMAGE_BYTES


def test_a_client_gives_back_all_that_was_counted_for_it(held: ExitStack) -> None:
    cluster = Cluster()
    fill(cluster, held, GREEDY)
    with ExitStack() as one:
        ticket = one.enter_context(cluster.gates[0].admit(IMAGE_BYTES, estimate, NEWCOMER))
        account = ticket.account
        assert account is not None
        # A two-hundredth of the engine time of two engines in a second, as the image itself is not known.
        assert [account.used(field) for field in COUNTED] == [0, 500, 9_500, 0]
        ticket.arrive(IMAGE_BYTES // 32)
        ticket.look(nothing, IMAGE_BYTES // 32)
        assert [account.used(field) for field in COUNTED] == [IMAGE_BYTES // 2, 50_000, 50_000, 0]
        ticket.complete(IMAGE_BYTES)
        assert [account.used(field) for field in COUNTED] == [IMAGE_BYTES, 100_000, 0, 1]
        ticket.deliver(5, LAST_US, INTERACTIVE)
        assert [account.used(field) for field in COUNTED] == [5, 0, 0, 0]
    held.close()
    assert [cluster.ledger.total(field) for field in Field] == [0] * len(Field)


def test_an_upload_whose_rate_is_known_counts_for_what_arrives_at_that_rate(held: ExitStack) -> None:
    ticket = held.enter_context(Cluster(max_wait_s=1.0).gates[0].admit(IMAGE_BYTES, estimate, GREEDY))
    account = ticket.account
    assert account is not None
    ticket.arrive(IMAGE_BYTES // 32)
    ticket.look(nothing, IMAGE_BYTES // 32)
    assert [account.used(field) for field in COUNTED] == [IMAGE_BYTES // 2, 50_000, 50_000, 0]
    ticket.expect(IMAGE_BYTES // 32, IMAGE_BYTES / 32)
    assert [account.used(field) for field in COUNTED] == [IMAGE_BYTES // 16, 6_250, 0, 0]


def test_a_client_among_the_requests_of_another_goes_first_and_its_own_yield_to_nobody(
    held: ExitStack,
) -> None:
    cluster = Cluster(max_wait_s=10.0)
    lanes = [received(cluster.gates[0], held, client=GREEDY).queue() for _ in range(20)]
    assert lanes == [Lane.INTERACTIVE] * 4 + [Lane.SURPLUS] * 16  # two for each engine
    polite = received(cluster.gates[1], held, client=NEWCOMER)
    greedy = received(cluster.gates[0], held, client=GREEDY)
    assert (greedy.queue(), polite.queue()) == (Lane.YIELDING, Lane.INTERACTIVE)
    assert received(cluster.gates[0], held).queue() is Lane.INTERACTIVE


def test_a_task_that_yielded_teaches_nothing_of_what_engines_take(held: ExitStack) -> None:
    cluster = Cluster(max_wait_s=10.0)
    received(cluster.gates[1], held, client=NEWCOMER)
    for _ in range(20):
        greedy = received(cluster.gates[0], held, client=GREEDY)
    before = cluster.scoreboard.total(Cell.RECENT_US)
    assert greedy.queue() is Lane.YIELDING
    greedy.deliver(5, 60_000_000, BACKGROUND)
    assert cluster.scoreboard.total(Cell.RECENT_US) == before


def test_a_task_that_yielded_and_was_tried_again_on_an_engine_of_requests_teaches_as_others_do(
    held: ExitStack,
) -> None:
    cluster = Cluster(max_wait_s=10.0)
    received(cluster.gates[1], held, client=NEWCOMER)
    for _ in range(20):
        greedy = received(cluster.gates[0], held, client=GREEDY)
    assert greedy.queue() is Lane.YIELDING
    before = cluster.scoreboard.total(Cell.RECENT_US)
    greedy.deliver(5, 60_000_000, INTERACTIVE)
    assert cluster.scoreboard.total(Cell.RECENT_US) > before


def test_a_row_is_written_by_its_worker_alone(held: ExitStack) -> None:
    cluster = Cluster()
    before = _cells(cluster.rows[1])
    held.enter_context(cluster.gates[0].admit(IMAGE_BYTES))
    assert _cells(cluster.rows[1]) == before


def _cells(row: Row) -> list[int]:
    return [row[cell] for cell in Cell]
