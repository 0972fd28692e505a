"""Turns: how the connections of a worker share what it does for clients that send many small things.

A read takes in up to 64 KiB, which can be an image, or 10,000 chunks of one byte, or 1,500 requests. So
chunks, long heads and pipelined requests are parsed within a budget. It is renewed so seldom that the worker
and the engines have most of the time for others, and so often that a client has to send thousands of lines to
notice; pipelined requests begin one by one, at most 500 a second. Clients take turns, however many
connections each has.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable

#: How often the budget is renewed, in seconds.
_PERIOD_S = 0.002

#: The budget, in bytes of short lines.
_BUDGET = 1 << 13

#: What a line costs in addition to its length: 120 chunks of a few bytes use up the budget.
_LINE_COST = 1 << 6

#: What a pipelined request costs. It begins only when that much budget is left, so one begins in each period,
#: and usually something is left for a short body in chunks.
_REQUEST_COST = 3 << 11


class Turns:
    """The turns of the connections of a worker."""

    __slots__ = ("_budget", "_is_due", "_waiting")

    def __init__(self) -> None:
        self._budget = _BUDGET
        self._is_due = False
        # What waits, and its cost, of each client that has anything; the client whose turn is next first.
        self._waiting: dict[Hashable, deque[tuple[Callable[[], bool | None], int]]] = {}

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up, and `go_on` has to be called."""
        return self._budget <= 0

    def count_line(self, line_bytes: int) -> None:
        """Take a line of so many bytes off the budget."""
        self._spend(_LINE_COST + line_bytes)

    def go_on(self, client: Hashable, turn: Callable[[], bool | None]) -> None:
        """Call a function when there is a budget again and the clients before it had their turns.

        Args:
            client: whose turn it is.
            turn: goes on with what has arrived.
        """
        self._take(client, turn, 0)

    def begin_request(self, client: Hashable, turn: Callable[[], bool | None]) -> None:
        """Call a function that begins a pipelined request: at once, if there is a budget for it.

        Args:
            client: whose turn it is.
            turn: begins the request; returns False, and costs nothing, if its client has left.
        """
        self._take(client, turn, _REQUEST_COST)

    def _take(self, client: Hashable, turn: Callable[[], bool | None], cost: int) -> None:
        if self._is_enough_for(cost):
            self._spend(cost)
            turn()
        else:
            self._waiting.setdefault(client, deque()).append((turn, cost))

    def _is_enough_for(self, cost: int) -> bool:
        return not self.is_over and self._budget >= cost

    def _spend(self, cost: int) -> None:
        self._budget -= cost
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(_PERIOD_S, self._renew)

    def _renew(self) -> None:
        self._is_due = False
        self._budget = _BUDGET
        taken = 1
        while taken and not self.is_over:
            taken = sum(self._take_first(client) for client in list(self._waiting))

    def _take_first(self, client: Hashable) -> bool:
        """Let a client have its next turn if the budget is enough for it; otherwise it keeps its place."""
        turn, cost = self._waiting[client][0]
        if not self._is_enough_for(cost):
            return False
        queue = self._waiting.pop(client)
        queue.popleft()
        if queue:
            self._waiting[client] = queue  # behind all others
        self._spend(cost)
        if turn() is False:
            self._budget += cost
        return True
