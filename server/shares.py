"""Shares: how much of each limit one client may hold while others need it (ADR 25)."""

from collections.abc import Mapping
from typing import Self

from server.cluster.ledger import Account, Field, Page
from server.cluster.work_socket import Lane
from server.settings import Settings

#: What a line in the log calls them.
NAMES = {
    Field.CONNECTIONS: "connections",
    Field.HELD_BYTES: "bytes",
    Field.UPLOAD_BYTES: "bytes",
    Field.PREDICTED_US: "engine",
    Field.WAITING: "queue",
}

#: How many requests may wait for an engine before shares of the queue count: about what fits into a lane.
QUEUE = 256

#: The last quarter of a limit is for clients that hold less than their share.
_FREE_PART = 0.75

#: A client's tasks do not yield before it uses so much engine time, in microseconds: more than the images of
#: a page take, and less than two images that were made to be expensive.
_BURST_US = 1_000_000

#: How many requests of a client may wait for each engine before the next ones let those of others go first.
_QUEUED_PER_ENGINE = 2

#: How many times as much engine time as the others on average a client uses when its tasks yield.
_CLEARLY_MORE = 2


class Shares:
    """The shares of one worker's clients; every worker looks at the same figures.

    Args:
        page: of the worker, in the ledger.
        percents: of each limit that is shared; 0 or none for a limit that is not.
    """

    def __init__(self, page: Page, percents: Mapping[Field, float]) -> None:
        self._page = page
        self._percents = percents
        self._active = 0

    @classmethod
    def of(cls, page: Page, settings: Settings) -> Self:
        """Make the shares that are set."""
        return cls(
            page,
            {
                Field.CONNECTIONS: settings.client_connections_percent,
                Field.HELD_BYTES: settings.client_bytes_percent,
                Field.UPLOAD_BYTES: settings.client_bytes_percent,
                Field.PREDICTED_US: settings.client_engine_percent,
                Field.WAITING: settings.client_queue_percent,
            },
        )

    def account(self, client: str | None) -> Account | None:
        """Return the account of a client; None when it has no address."""
        return None if client is None else self._page.account(client)

    def total(self, field: Field) -> int:
        """Return what all clients that have an address hold."""
        return self._page.ledger.total(field)

    def decay(self) -> None:
        """Decay spent engine time, and count the clients that use engines; to be called once a second."""
        self._page.forget()
        self._count_active()

    def excess(  # noqa: PLR0913 a limit, what is held of it, and by whom
        self,
        account: Account | None,
        field: Field,
        more: float,
        *,
        total: float,
        limit: float,
        own: float = 0,
    ) -> float:
        """Return how much must become free before a client may have more of a limit, as others may need it.

        0 when it may have it. That it holds less itself is enough, and so is that all hold less.

        Args:
            account: of the client; None when it has no address: it is refused nothing here.
            field: what is limited.
            more: how much it asks for.
            total: what all clients hold.
            limit: what all of them may hold.
            own: what the request that asks holds already.
        """
        above_free = total + more - _FREE_PART * limit
        if account is None or above_free <= 0:
            return 0
        others = account.used(field) - own  # of its other requests
        if not self.exceeds(field, others, own + more, limit):
            return 0
        return min(above_free, others + own + more - self._percents[field] * limit / 100)

    def exceeds(self, field: Field, used: float, more: float, limit: float) -> bool:
        """Say whether a client would hold more than its share; the first thing that it holds never does.

        Args:
            field: what is limited.
            used: what the client holds.
            more: how much it asks for.
            limit: what all clients may hold.
        """
        percent = self._percents.get(field, 0)
        return percent > 0 and used > 0 and used + more > limit * percent / 100

    def lane(self, account: Account | None, engines: int) -> Lane:
        """Choose where the next task of a client waits.

        Args:
            account: of the client, with the new task; None when it has no address.
            engines: how many the cluster has.
        """
        if account is None or not self._percents.get(Field.PREDICTED_US):
            return Lane.INTERACTIVE
        if self._uses_more_than_others(account):
            return Lane.YIELDING
        is_surplus = account.used(Field.WAITING) > _QUEUED_PER_ENGINE * engines
        return Lane.SURPLUS if is_surplus else Lane.INTERACTIVE

    def _uses_more_than_others(self, account: Account) -> bool:
        """Say whether a client uses clearly more engine time than others that are active."""
        mine = account.used(Field.PREDICTED_US) + account.used(Field.SPENT_US)
        ledger = self._page.ledger
        others = ledger.total(Field.PREDICTED_US) + ledger.total(Field.SPENT_US) - mine
        if others <= 0 or mine <= _BURST_US:
            return False
        # Other workers book meanwhile, so a client that is alone may seem not to be.
        if self._active < 2:  # noqa: PLR2004 itself and another
            self._count_active()
        return self._active > 1 and mine > _CLEARLY_MORE * others / (self._active - 1)

    def _count_active(self) -> None:
        """Count the clients that use engines, or have done so in the last seconds."""
        used = self._page.ledger.by_client(Field.PREDICTED_US, Field.SPENT_US)
        self._active = len(used) - used.count(0)
