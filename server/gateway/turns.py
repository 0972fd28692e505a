"""Turns: how the connections of a worker share what it does for clients that send many small things.

A read takes in up to 256 KiB, which can be an image, or 40,000 chunks of one byte, or 6,000 requests. So
chunks, long heads and pipelined requests are parsed within a budget. It is renewed so seldom that the worker
and the engines have most of the time for others, and so often that a client has to send thousands of them to
notice.
"""

import asyncio
from collections import deque
from collections.abc import Callable

#: How often the budget is renewed, in seconds.
_PERIOD_S = 0.002

#: The budget, in bytes of short lines.
_BUDGET = 1 << 13

#: What a line costs in addition to its length: 120 chunks of a few bytes use up the budget.
_LINE_COST = 1 << 6

#: What a pipelined request costs.
_REQUEST_COST = 1 << 11


class Turns:
    """The turns of the connections of a worker."""

    __slots__ = ("_budget", "_is_due", "_waiting")

    def __init__(self) -> None:
        self._budget = _BUDGET
        self._is_due = False
        self._waiting: deque[tuple[Callable[[], None], int]] = deque()

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up, and `go_on` has to be called."""
        return self._budget <= 0

    def count_line(self, line_bytes: int) -> None:
        """Take a line of so many bytes off the budget."""
        self._spend(_LINE_COST + line_bytes)

    def go_on(self, turn: Callable[[], None]) -> None:
        """Call a function when there is a budget again and the others before it had their turns."""
        self._take(turn, 0)

    def begin_request(self, turn: Callable[[], None]) -> None:
        """Call a function that begins a pipelined request: at once, if there is a budget for it."""
        self._take(turn, _REQUEST_COST)

    def _take(self, turn: Callable[[], None], cost: int) -> None:
        if self.is_over:
            self._waiting.append((turn, cost))
        else:
            self._spend(cost)
            turn()

    def _spend(self, cost: int) -> None:
        self._budget -= cost
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(_PERIOD_S, self._renew)

    def _renew(self) -> None:
        self._is_due = False
        self._budget = _BUDGET
        while self._waiting and not self.is_over:
            self._take(*self._waiting.popleft())
