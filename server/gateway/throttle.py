"""The connection throttle: new connections of a client that has many are queued (ADR 25).

To hand a connection to its protocol costs a worker a third of a millisecond, and the kernel returns them in
the order in which they came: those of other clients would wait behind a thousand that one client opens at
once, and engines would get no CPU time meanwhile.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sized

from server.cluster.ledger import Account, Field
from server.gateway.turns import next_in_turn
from server.shares import Shares

#: How often one leaves the queues, in seconds. Clients take turns.
_INTERVAL_S = 0.004

#: So many leave the queues in each iteration of the event loop when the worker drains.
_RELEASED_AT_ONCE = 8

#: The part of its share of a worker's connections that a client has without being queued.
_UNTHROTTLED_PART = 1 / 3


class ConnectionThrottle:
    """The queues of a worker, one for each client that has many connections.

    Args:
        shares: say what many are.
        limit: how many connections the worker may have, and how many may be queued or refused in addition.
        refused: those that are being refused.

    Attributes:
        queued: how many connections are queued.
    """

    def __init__(self, shares: Shares, limit: int, refused: Sized) -> None:
        self._shares = shares
        self._limit = limit
        self._refused = refused
        self._queues: OrderedDict[int, deque[asyncio.Future[bool]]] = OrderedDict()
        self.queued = 0
        self._timer: asyncio.Handle | None = None
        self._is_draining = False

    async def wait(self, account: Account | None) -> bool:
        """Wait until a connection may be served; returns False if it must be closed instead.

        Args:
            account: of its client; None for the connection of a proxy, which is never queued.
        """
        if account is None or self._is_draining or not self._has_many(account):
            return True
        if self.queued + len(self._refused) >= self._limit and not self._drop_from_longest(account.bucket):
            return False
        released: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(account.bucket, deque()).append(released)
        self.queued += 1
        if self._timer is None:
            self._schedule()
        return await released

    def release_all(self) -> None:
        """Queue no more, and release all soon, because the worker drains."""
        self._is_draining = True
        if self._timer is not None:
            self._timer.cancel()
            self._schedule()

    def _has_many(self, account: Account) -> bool:
        held = account.used_here(Field.CONNECTIONS)
        return self._shares.exceeds(Field.CONNECTIONS, held, 1, self._limit * _UNTHROTTLED_PART)

    def _drop_from_longest(self, bucket: int) -> bool:
        """Have the last of the longest queue closed, unless the client's own is about as long."""
        longest = max(self._queues.values(), key=len, default=deque())
        if len(longest) <= len(self._queues.get(bucket, ())) + 1:
            return False
        self._end(longest.pop(), is_served=False)
        return True

    def _release(self) -> None:
        for _ in range(_RELEASED_AT_ONCE if self._is_draining else 1):
            if self._queues:
                self._end(next_in_turn(self._queues), is_served=True)
        self._timer = None
        if self._queues:
            self._schedule()

    def _schedule(self) -> None:
        interval_s = 0 if self._is_draining else _INTERVAL_S
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._release)

    def _end(self, released: "asyncio.Future[bool]", *, is_served: bool) -> None:
        self.queued -= 1
        if not released.done():  # it was cancelled, at the end of the worker
            released.set_result(is_served)
