"""Eviction: whose connection is closed when a worker has no place for that of another client."""

from collections.abc import Collection
from typing import Protocol, TypeVar

from server.cluster.ledger import Account, Field
from server.shares import Shares


class Evictable(Protocol):
    """A connection, as far as this policy looks at it."""

    @property
    def account(self) -> Account | None:
        """Of its client; None for a client that is not told apart from others, as behind a proxy."""

    def cost_of_closing(self) -> tuple[int, float] | None:
        """How much its client would lose: the less, the earlier it is closed; None when it must stay."""


Connection = TypeVar("Connection", bound=Evictable)


def choose(
    newcomer: Account | None, connections: Collection[Connection], shares: Shares, limit: int
) -> Connection | None:
    """Choose a connection of the client that has the most, if that is more than its share.

    Args:
        newcomer: the account of the client that wants a connection.
        connections: those of the worker.
        shares: say what is too much.
        limit: how many connections the worker may have.

    Returns:
        None when the newcomer itself has had its share, or no connection may be closed.
    """

    def has_too_many(held: int) -> bool:
        return shares.exceeds(Field.CONNECTIONS, held - 1, 1, limit)  # without the last one it had enough

    if newcomer is not None and has_too_many(newcomer.used_here(Field.CONNECTIONS) + 1):
        return None
    accounts = [each.account for each in connections if each.account is not None]
    most = max(accounts, key=lambda account: account.used_here(Field.CONNECTIONS), default=None)
    if most is None or not has_too_many(most.used_here(Field.CONNECTIONS)):
        return None
    costs = [
        (cost, each)
        for each in connections
        if each.account is not None
        and each.account.bucket == most.bucket
        and (cost := each.cost_of_closing()) is not None
    ]
    return min(costs, key=lambda pair: pair[0])[1] if costs else None
