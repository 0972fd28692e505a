"""The ledger knows what each client uses: across processes, and not past the death of a worker."""

import multiprocessing
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest
from support.forks import exit_code, fork
from support.ledgers import ledger_for

from server.cluster.ledger import BUCKETS, Account, Field, Ledger
from server.cluster.membership import Membership
from server.cluster.quarantine import Quarantine
from server.cluster.scoreboard import Scoreboard
from server.cluster.work_socket import WorkSocket

CLIENT, OTHER = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def ledger() -> Ledger:
    return ledger_for(CLIENT, OTHER)


def in_a_fork(act: Callable[[], object]) -> None:
    """Run a function in a forked process, to its end."""
    assert exit_code(fork(act)) == 0


def used(account: Account) -> list[int]:
    return [account.used(field) for field in Field]


def test_what_all_workers_count_for_a_client_is_added_up(ledger: Ledger) -> None:
    pages = [ledger.open(row) for row in range(3)]
    for number, page in enumerate(pages, 1):
        for field in Field:
            page.account(CLIENT).add(field, number * 10**field)
    assert used(pages[0].account(CLIENT)) == [6 * 10**field for field in Field]
    assert [pages[0].account(CLIENT).used_here(field) for field in Field] == [10**field for field in Field]
    assert used(pages[0].account(OTHER)) == [0] * len(Field)


def test_what_a_client_gives_back_is_not_counted_any_more(ledger: Ledger) -> None:
    page = ledger.open(0)
    page.account(CLIENT).add(Field.HELD_BYTES, 5)
    page.account(CLIENT).add(Field.HELD_BYTES, -3)
    assert (page.account(CLIENT).used(Field.HELD_BYTES), ledger.total(Field.HELD_BYTES)) == (2, 2)


def test_every_process_sees_what_the_others_count(ledger: Ledger) -> None:
    pages = [ledger.open(row) for row in range(3)]
    for page in pages:
        in_a_fork(lambda page=page: page.account(CLIENT).add(Field.CONNECTIONS, 7))  # type: ignore[misc]
    assert pages[0].account(CLIENT).used(Field.CONNECTIONS) == 21


def test_a_worker_that_was_forked_before_the_others_sees_them(ledger: Ledger) -> None:
    early = ledger.open(0)
    to_child, from_arbiter = multiprocessing.Pipe()

    def wait_and_see() -> None:
        to_child.recv()
        assert early.account(CLIENT).used(Field.WAITING) == 1

    child = fork(wait_and_see)
    ledger.open(3).account(CLIENT).add(Field.WAITING, 1)
    from_arbiter.send(None)
    assert exit_code(child) == 0


def test_the_totals_are_the_sums_over_all_clients(ledger: Ledger) -> None:
    pages = [ledger.open(row) for row in range(2)]
    for page in pages:
        for client in range(100):
            page.account(str(IPv4Address(client))).add(Field.PREDICTED_US, client)
    assert ledger.total(Field.PREDICTED_US) == 2 * sum(range(100))
    assert sum(ledger.by_client(Field.PREDICTED_US)) == 2 * sum(range(100))


def test_fields_are_added_up_for_each_client(ledger: Ledger) -> None:
    pages = [ledger.open(row) for row in range(2)]
    pages[0].account(CLIENT).add(Field.PREDICTED_US, 1)
    pages[1].account(CLIENT).add(Field.SPENT_US, 20)
    pages[1].account(OTHER).add(Field.SPENT_US, 300)
    pages[1].account(OTHER).add(Field.HELD_BYTES, 4000)
    by_client = ledger.by_client(Field.PREDICTED_US, Field.SPENT_US)
    assert len(by_client) == BUCKETS
    assert {by_client[ledger.bucket(CLIENT)], by_client[ledger.bucket(OTHER)]} == {21, 300}
    assert sum(by_client) == 321


def test_a_ledger_without_workers_counts_nothing() -> None:
    assert set(Ledger().by_client(Field.SPENT_US)) == {Ledger().total(Field.SPENT_US)} == {0}


def test_spent_engine_time_is_forgotten_by_half_and_nothing_else_is(ledger: Ledger) -> None:
    pages = [ledger.open(row) for row in range(2)]
    for page in pages:
        for field in Field:
            page.account(CLIENT).add(field, 1000)
    pages[0].forget()
    assert used(pages[0].account(CLIENT)) == [1500 if field is Field.SPENT_US else 2000 for field in Field]
    for _ in range(10):
        for page in pages:
            page.forget()
    assert pages[0].account(CLIENT).used(Field.SPENT_US) == ledger.total(Field.SPENT_US) == 0


def test_the_total_is_what_is_left_of_all_clients_when_some_is_forgotten(ledger: Ledger) -> None:
    page = ledger.open(0)
    for client in (CLIENT, OTHER):
        page.account(client).add(Field.SPENT_US, 3)
    page.forget()
    assert ledger.total(Field.SPENT_US) == 2


def test_what_a_dead_worker_counted_ends_with_it_and_the_counts_of_others_stay() -> None:
    work, scoreboard, ledger = WorkSocket(), Scoreboard(rows=2), Ledger(rows=2)
    with work:
        members = [Membership.claim(work, scoreboard, ledger, Quarantine(60)) for _ in range(2)]
        for member in members:
            for field in Field:
                in_a_fork(lambda m=member, f=field: m.page.account(CLIENT).add(f, 5))  # type: ignore[misc]
        members[0].release()
        assert used(members[1].page.account(CLIENT)) == [5] * len(Field)
        assert [ledger.total(field) for field in Field] == [5] * len(Field)
        again = Membership.claim(work, scoreboard, ledger, Quarantine(60))
        assert again.row.index == members[0].row.index
        assert used(again.page.account(CLIENT)) == [5] * len(Field)


@pytest.mark.parametrize(
    ("one", "another", "is_same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:0:0:2", True),  # of one /64
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("2001:DB8::1", "2001:0db8:0::1", True),
        ("no address", "no address", True),
        ("no address", "none either", False),
    ],
)
def test_a_client_is_an_ipv4_address_or_the_network_of_an_ipv6_address(
    one: str,
    another: str,
    is_same: bool,  # noqa: FBT001 pytest passes it by its name
) -> None:
    salted = [Ledger(rows=1) for _ in range(20)]  # two clients share a bucket in one of 2,048
    assert any(ledger.bucket(one) != ledger.bucket(another) for ledger in salted) != is_same


def test_nobody_can_tell_who_shares_a_bucket() -> None:
    clients = [str(IPv4Address(number)) for number in range(100)]
    buckets = [[ledger.bucket(client) for client in clients] for ledger in (Ledger(rows=1), Ledger(rows=1))]
    assert buckets[0] != buckets[1]
    assert all(len(set(of_one)) > 80 for of_one in buckets)  # 98 expected
