"""Eviction: whose connections are closed when a worker has no place for that of another client."""

from collections.abc import Collection, Iterator, Sequence
from heapq import nsmallest
from operator import itemgetter
from typing import Protocol, TypeVar

from server.cluster.ledger import Account, Field
from server.shares import Shares

#: How many connections are closed at once: a client that opens new ones as fast as it can would have a worker
#: choose all the time.
_AT_ONCE = 32


class Evictable(Protocol):
    """A connection, as far as this policy looks at it."""

    @property
    def account(self) -> Account | None:
        """Of its client; None for a client that is not told apart from others, as behind a proxy."""

    def cost_of_closing(self) -> tuple[int, float] | None:
        """How much its client would lose: the less, the earlier it is closed; None when it must stay.

        The first number is 0 or 1 if no request of the client is lost.
        """


Connection = TypeVar("Connection", bound=Evictable)


def choose(
    newcomer: Account | None, connections: Collection[Connection], shares: Shares, limit: int
) -> Sequence[Connection]:
    """Choose connections of the client that has the most, if that is more than its share.

    Args:
        newcomer: the account of the client that wants a connection.
        connections: those of the worker, the oldest first.
        shares: say what is too much.
        limit: how many connections the worker may have.

    Returns:
        One, or several on which no request is lost, as long as the client has too many; none when the
        newcomer itself has had its share, or no connection may be closed.
    """

    def has_too_many(held: int) -> bool:
        return shares.exceeds(Field.CONNECTIONS, held - 1, 1, limit)  # without the last one it had enough

    if newcomer is not None and has_too_many(newcomer.used_here(Field.CONNECTIONS) + 1):
        return ()
    accounts = {each.account.bucket: each.account for each in connections if each.account is not None}
    most = max(accounts.values(), key=lambda account: account.used_here(Field.CONNECTIONS), default=None)
    if most is None or not has_too_many(held := most.used_here(Field.CONNECTIONS)):
        return ()
    chosen: list[Connection] = []
    for cost, each in nsmallest(_AT_ONCE, _costs(most, connections), key=itemgetter(0)):
        if chosen and (cost[0] > 1 or not has_too_many(held - len(chosen))):
            break
        chosen.append(each)
    return chosen


def _costs(
    account: Account, connections: Collection[Connection]
) -> Iterator[tuple[tuple[int, float], Connection]]:
    """Yield the connections of a client that may be closed, the oldest first, and what that costs.

    They end with as many as are closed at once on which no request is lost: it takes milliseconds to look at
    thousands.
    """
    without_loss = 0
    for each in connections:
        if (
            each.account is not None
            and each.account.bucket == account.bucket
            and (cost := each.cost_of_closing()) is not None
        ):
            yield cost, each
            without_loss += cost[0] <= 1
            if without_loss == _AT_ONCE:
                return
