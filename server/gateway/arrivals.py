"""Arrivals: new connections of a client that has many wait for their turn (ADR 25).

To take a connection over costs a worker a quarter of a millisecond, and the kernel hands connections over in
the order in which they came: those of other clients would wait behind a thousand that one client opens at
once, and engines would get no core meanwhile.
"""

import asyncio

from server.cluster.ledger import Account, Field
from server.gateway.turns import Turns
from server.shares import Shares

#: How often one that waits is taken over, in seconds.
_EVERY_S = 0.004

#: The part of its share of a worker's connections that a client has without waiting.
_AT_ONCE = 1 / 3

#: So many may wait, as a part of a worker's connections: more than the rest of a client's share.
_MOST_WAITING = 1 / 4


class Arrivals:
    """The connections of a worker that it has accepted and not taken over yet.

    Args:
        shares: say what is too much.
        limit: how many connections the worker may have.
    """

    def __init__(self, shares: Shares, limit: int) -> None:
        self._shares = shares
        self._limit = limit
        self._turns = Turns(_EVERY_S)
        self._is_over = False

    async def turn(self, account: Account | None) -> bool:
        """Wait until a connection may be taken over; returns False if it must be closed instead.

        Args:
            account: of its client; None for the connection of a proxy, which does not wait.
        """
        if account is None or self._is_over or not self._has_many(account):
            return True
        if self._turns.waiting >= self._limit * _MOST_WAITING:
            return False
        has_turn = asyncio.Event()
        self._turns.begin_connection(account.bucket, has_turn.set)
        await has_turn.wait()
        return True

    def hurry(self) -> None:
        """Let no connection wait from now on, because the worker drains."""
        self._is_over = True
        self._turns.hurry()

    def _has_many(self, account: Account) -> bool:
        held = account.used_here(Field.CONNECTIONS)
        return self._shares.exceeds(Field.CONNECTIONS, held, 1, self._limit * _AT_ONCE)
