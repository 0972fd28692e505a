"""What one client may hold of a limit, and when its tasks yield to those of others."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.cluster.ledger import Account, Field, Ledger, Page
from server.cluster.work_socket import Lane
from server.gateway import eviction
from server.settings import Settings
from server.shares import Shares

if TYPE_CHECKING:
    from collections.abc import Sequence

GREEDY, POLITE, NEWCOMER = "192.0.2.1", "192.0.2.2", "192.0.2.3"

MB = 1_000_000

CONFIGURATION = Path(__file__).parents[2] / "gunicorn.conf.py"

#: The limits that a service with two workers has. Connections are those of one worker (`eviction.choose`).
LIMITS = {
    Field.HELD_BYTES: 2.0**31,
    Field.UPLOAD_BYTES: 2.0**30,
    Field.PREDICTED_US: 2 * 10e6,
    Field.WAITING: 256.0,
}


class Cluster:
    """Two workers, and what their clients do."""

    def __init__(self, settings: Settings | None = None) -> None:
        ledger = self._ledger_without_collisions()
        self.pages: Sequence[Page] = [ledger.open(row) for row in range(2)]
        self.ledger = ledger
        self.shares = [Shares.of(page, settings or Settings()) for page in self.pages]

    @staticmethod
    def _ledger_without_collisions() -> Ledger:
        while True:
            ledger = Ledger(rows=2)
            if len({ledger.bucket(client) for client in (GREEDY, POLITE, NEWCOMER)}) == 3:
                return ledger

    def account(self, client: str, worker: int = 0) -> Account:
        return self.pages[worker].account(client)

    def hold(self, client: str, field: Field, amount: float) -> None:
        """Let a client hold so much more, half of it at each worker."""
        half = int(amount) // 2
        self.account(client, 0).add(field, half)
        self.account(client, 1).add(field, int(amount) - half)

    def refuses(self, client: str, field: Field, more: float = 1.0) -> bool:
        """Say what the second worker answers."""
        account = self.account(client, 1)
        total = self.ledger.total(field)
        return self.shares[1].excess(account, field, more, total=total, limit=LIMITS[field]) > 0

    def lane(self, client: str) -> Lane:
        """Say where the second worker puts the next task of a client."""
        return self.shares[1].lane(self.account(client, 1), engines=2)

    def yields(self, client: str) -> bool:
        return self.lane(client) is Lane.YIELDING

    def pass_seconds(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            for shares in self.shares:
                shares.decay()


every_limit = pytest.mark.parametrize("field", LIMITS)


@every_limit
def test_under_pressure_who_holds_more_than_a_share_gets_no_more(field: Field) -> None:
    cluster = Cluster()
    cluster.hold(GREEDY, field, 0.75 * LIMITS[field])
    assert cluster.refuses(GREEDY, field)


@every_limit
def test_under_pressure_a_newcomer_is_admitted(field: Field) -> None:
    cluster = Cluster()
    cluster.hold(GREEDY, field, 0.75 * LIMITS[field])
    assert not cluster.refuses(NEWCOMER, field)
    assert not cluster.refuses(NEWCOMER, field, 0.25 * LIMITS[field])  # more than a share, but it holds none


@every_limit
def test_under_pressure_a_client_gets_its_share_and_no_more(field: Field) -> None:
    cluster = Cluster()
    cluster.hold(GREEDY, field, 0.75 * LIMITS[field])
    cluster.hold(POLITE, field, 0.05 * LIMITS[field])
    assert not cluster.refuses(POLITE, field, 0.04 * LIMITS[field])
    assert cluster.refuses(POLITE, field, 0.06 * LIMITS[field])


@every_limit
def test_without_pressure_a_client_may_hold_what_nobody_else_needs(field: Field) -> None:
    cluster = Cluster()
    cluster.hold(GREEDY, field, 0.7 * LIMITS[field])
    assert not cluster.refuses(GREEDY, field)


@every_limit
def test_a_share_of_0_is_off(field: Field) -> None:
    names = ("bytes", "engine", "queue")
    cluster = Cluster(Settings.model_validate({f"client_{name}_percent": 0 for name in names}))
    cluster.hold(GREEDY, field, LIMITS[field])
    assert not cluster.refuses(GREEDY, field)


@every_limit
def test_a_client_without_an_address_is_refused_nothing(field: Field) -> None:
    shares = Cluster().shares[0]
    assert shares.account(None) is None
    assert not shares.excess(None, field, 1, total=LIMITS[field], limit=LIMITS[field])


class Connection:
    """An idle connection of a worker."""

    def __init__(self, account: Account) -> None:
        self.account = account
        account.add(Field.CONNECTIONS, 1)

    def cost_of_closing(self) -> tuple[int, float]:
        return (0, 0)


def test_a_hundred_polite_users_behind_one_address_lose_no_connection() -> None:
    """Each has six, all of them at one worker that has no place left."""
    configured = re.search(r"^worker_connections = (\d+)$", CONFIGURATION.read_text(), re.MULTILINE)
    assert configured
    places = int(configured[1])
    cluster = Cluster()
    office = [Connection(cluster.account(GREEDY)) for _ in range(600)]
    others = [Connection(cluster.account(f"198.51.{each}.1")) for each in range(places - len(office))]
    newcomer = cluster.account(NEWCOMER)
    assert eviction.choose(newcomer, [*office, *others], cluster.shares[0], places) == ()
    for each in others[:100]:  # as many again, and the office has clearly more than its share
        each.account.add(Field.CONNECTIONS, -1)
        office.append(Connection(cluster.account(GREEDY)))
    evicted = eviction.choose(newcomer, [*office, *others[100:]], cluster.shares[0], places)
    assert evicted
    assert set(evicted) <= set(office)


def test_a_client_that_is_alone_never_yields() -> None:
    cluster = Cluster()
    cluster.hold(GREEDY, Field.PREDICTED_US, 60 * MB)
    cluster.hold(GREEDY, Field.SPENT_US, 60 * MB)
    assert not cluster.yields(GREEDY)
    cluster.pass_seconds()
    assert not cluster.yields(GREEDY)


def test_a_client_that_is_alone_does_not_yield_to_what_another_worker_books_for_it_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster()
    cluster.hold(GREEDY, Field.SPENT_US, 60 * MB)
    cluster.pass_seconds()
    total = cluster.ledger.total

    def total_after_another_task(field: Field) -> int:
        cluster.account(GREEDY, 0).add(field, MB)  # its client has been added up already
        return total(field)

    monkeypatch.setattr(cluster.ledger, "total", total_after_another_task)
    assert not cluster.yields(GREEDY)
    monkeypatch.undo()
    cluster.hold(POLITE, Field.PREDICTED_US, 0.1 * MB)
    assert cluster.yields(GREEDY)


def test_a_client_that_uses_clearly_more_than_one_that_has_just_come_yields_at_once() -> None:
    cluster = Cluster()
    cluster.hold(GREEDY, Field.PREDICTED_US, 5 * MB)
    cluster.pass_seconds()
    cluster.hold(POLITE, Field.PREDICTED_US, 0.1 * MB)
    assert cluster.yields(GREEDY)
    assert not cluster.yields(POLITE)


def test_a_client_is_compared_with_each_of_several_that_have_just_come() -> None:
    cluster = Cluster()
    cluster.hold(GREEDY, Field.PREDICTED_US, 5 * MB)
    cluster.pass_seconds()
    cluster.hold(POLITE, Field.PREDICTED_US, 2 * MB)
    cluster.hold(NEWCOMER, Field.PREDICTED_US, 2 * MB)
    assert cluster.yields(GREEDY)  # to a mean of 2 s, not to 4


def test_clients_that_use_about_the_same_do_not_yield() -> None:
    cluster = Cluster()
    for client, used_s in ((GREEDY, 3), (POLITE, 2), (NEWCOMER, 2)):
        cluster.hold(client, Field.PREDICTED_US, used_s * MB)
    cluster.pass_seconds()
    assert [cluster.yields(client) for client in (GREEDY, POLITE, NEWCOMER)] == [False] * 3


def test_a_client_is_compared_with_the_mean_of_the_others() -> None:
    """Two of the same kind together use more than the greedy one, which yields to both."""
    cluster = Cluster()
    for client, used_s in ((GREEDY, 10), (POLITE, 6), (NEWCOMER, 6)):
        cluster.hold(client, Field.PREDICTED_US, used_s * MB)
    cluster.pass_seconds()
    assert not cluster.yields(GREEDY)
    cluster.hold(GREEDY, Field.PREDICTED_US, 4 * MB)
    assert cluster.yields(GREEDY)


def test_a_burst_of_a_second_does_not_yield() -> None:
    cluster = Cluster()
    cluster.hold(POLITE, Field.PREDICTED_US, 1000)
    cluster.hold(GREEDY, Field.PREDICTED_US, 0.9 * MB)
    assert not cluster.yields(GREEDY)
    cluster.hold(GREEDY, Field.PREDICTED_US, 0.9 * MB)
    assert cluster.yields(GREEDY)


def test_what_others_did_some_time_ago_is_no_reason_to_yield() -> None:
    cluster = Cluster()
    cluster.hold(POLITE, Field.SPENT_US, 0.2 * MB)
    cluster.hold(GREEDY, Field.PREDICTED_US, 5 * MB)
    assert cluster.yields(GREEDY)
    cluster.pass_seconds(20)
    assert not cluster.yields(GREEDY)


def test_what_a_client_did_some_time_ago_is_no_reason_for_it_to_yield() -> None:
    cluster = Cluster()
    cluster.hold(GREEDY, Field.SPENT_US, 60 * MB)
    cluster.hold(POLITE, Field.PREDICTED_US, 0.2 * MB)
    assert cluster.yields(GREEDY)
    cluster.pass_seconds(7)
    assert not cluster.yields(GREEDY)


def test_without_a_share_of_engine_time_nobody_yields() -> None:
    cluster = Cluster(Settings(client_engine_percent=0))
    cluster.hold(GREEDY, Field.PREDICTED_US, 60 * MB)
    cluster.hold(POLITE, Field.PREDICTED_US, 0.1 * MB)
    cluster.hold(GREEDY, Field.WAITING, 100)
    assert cluster.lane(GREEDY) is Lane.INTERACTIVE


def test_a_client_without_an_address_yields_to_nobody() -> None:
    assert Cluster().shares[0].lane(None, engines=2) is Lane.INTERACTIVE


def test_a_client_keeps_all_engines_busy_and_lets_others_go_before_the_rest_of_its_queue() -> None:
    cluster = Cluster()
    cluster.hold(GREEDY, Field.WAITING, 4)
    assert cluster.lane(GREEDY) is Lane.INTERACTIVE
    cluster.hold(GREEDY, Field.WAITING, 1)
    assert (cluster.lane(GREEDY), cluster.lane(POLITE)) == (Lane.SURPLUS, Lane.INTERACTIVE)
