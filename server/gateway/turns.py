"""Turns: how the connections of a worker share what it does for clients that send many small things.

A read takes in up to 64 KiB, which can be an image, or 10,000 chunks of one byte, or 1,500 requests. So
chunks, long heads and pipelined requests are parsed within a budget. It is renewed so seldom that the worker
and the engines have most of the time for others, and so often that a client has to send thousands of lines to
notice. Pipelined requests begin one by one, at most 250 a second, which is about what an engine does. Clients
take turns, however many connections each has.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import TypeVar

_T = TypeVar("_T")
_Client = TypeVar("_Client", bound=Hashable)

#: How often the budget is renewed, in seconds.
_PERIOD_S = 0.002

#: The budget, in bytes of short lines.
_BUDGET = 1 << 13

#: What a line costs in addition to its length: 120 chunks of a few bytes use up the budget.
_LINE_COST = 1 << 6

#: What a pipelined request costs. It begins only when that much budget is left, and usually something is left
#: for a short body in chunks.
_REQUEST_COST = 3 << 11

#: In so many periods one pipelined request begins: it takes a worker half a millisecond.
_REQUEST_PERIODS = 2


class Turns:
    """The turns of the connections of a worker."""

    __slots__ = ("_begins_first", "_budget", "_is_due", "_lines", "_next_request_s", "_requests")

    def __init__(self) -> None:
        self._budget = _BUDGET
        self._is_due = False
        self._begins_first = True
        self._next_request_s = 0.0  # of the loop's clock
        self._lines: OrderedDict[Hashable, deque[Callable[[], object]]] = OrderedDict()
        self._requests: OrderedDict[Hashable, deque[Callable[[], bool | None]]] = OrderedDict()

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up, and `go_on` has to be called."""
        return self._budget <= 0

    def count_line(self, line_bytes: int) -> None:
        """Take a line of so many bytes off the budget."""
        self._spend(_LINE_COST + line_bytes)

    def go_on(self, client: Hashable, turn: Callable[[], object]) -> None:
        """Call a function when there is a budget again and the clients before it had their turns.

        Args:
            client: whose turn it is.
            turn: goes on with what has arrived.
        """
        if self.is_over:
            self._lines.setdefault(client, deque()).append(turn)
        else:
            turn()

    def begin_request(self, client: Hashable, turn: Callable[[], bool | None]) -> None:
        """Call a function that begins a pipelined request: at once, if there is a budget for it.

        Args:
            client: whose turn it is.
            turn: begins the request; returns False, and costs nothing, if its client has left.
        """
        if self._may_begin():
            self._begin(turn)
        else:
            self._requests.setdefault(client, deque()).append(turn)
            self._spend(0)

    def _may_begin(self) -> bool:
        return self._budget >= _REQUEST_COST and asyncio.get_running_loop().time() >= self._next_request_s

    def _begin(self, turn: Callable[[], bool | None]) -> None:
        before_s = self._next_request_s
        self._next_request_s = asyncio.get_running_loop().time() + _REQUEST_PERIODS * _PERIOD_S
        self._spend(_REQUEST_COST)
        if turn() is False:
            self._budget += _REQUEST_COST
            self._next_request_s = before_s

    def _spend(self, cost: int) -> None:
        self._budget -= cost
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(_PERIOD_S, self._renew)

    def _renew(self) -> None:
        self._is_due = False
        self._budget = _BUDGET
        if self._lines or self._requests:
            self._spend(0)  # a turn may fail, and leave the others waiting
        # Lines can use up the budget every time, and a request most of it.
        self._begins_first = not self._begins_first
        if self._begins_first:
            self._begin_next()
        while self._lines and not self.is_over:
            next_in_turn(self._lines)()
        self._begin_next()

    def _begin_next(self) -> None:
        while self._requests and self._may_begin():
            self._begin(next_in_turn(self._requests))


def next_in_turn(queues: OrderedDict[_Client, deque[_T]]) -> _T:
    """Take the first of the first client's queue, and put that client behind all others.

    Args:
        queues: one for each client, none of them empty.
    """
    client, queue = next(iter(queues.items()))
    first = queue.popleft()
    if queue:
        queues.move_to_end(client)
    else:
        del queues[client]
    return first
