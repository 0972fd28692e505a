"""Clients that repeat one request and know the right answer."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Self

from benchmarks.harness.exchanges import Exchange, drive, outcome
from benchmarks.harness.messages import get
from benchmarks.harness.server import Address
from benchmarks.harness.waiting import DEADLINE_S

_OK = 200
_HEALTH = get("/healthz")

#: Between a failure and the next request of a client: a service that is down is not asked without end.
PAUSE_S = 0.05


class Clients:
    """Clients that each send their next request when they have their answer, until the block ends.

    With keep-alive, the first request on a connection is a health check: its answer names the worker that
    all later ones depend on.

    Args:
        address: of the service.
        request: what they send.
        answer: the body that is right.
        at_once: how many there are.
        keep_alive: they keep their connections, instead of making one for each request.
    """

    def __init__(
        self, address: Address, request: bytes, answer: bytes, *, at_once: int, keep_alive: bool = False
    ) -> None:
        self._address = address
        self._request = request
        self._answer = answer
        self._at_once = at_once
        self._keep_alive = keep_alive
        self._is_over = False
        self._news = threading.Condition()
        self.done: list[Exchange] = []

    def __enter__(self) -> Self:
        first = [self._new() for _ in range(self._at_once)]
        self._thread = threading.Thread(target=drive, args=(first, self._next, 3600.0))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()

    def wait_until(self, condition: Callable[[Exchange], bool]) -> None:
        """Wait for the next answer that fulfils a condition."""
        seen = len(self.done)
        with self._news:
            assert self._news.wait_for(lambda: any(map(condition, self.done[seen:])), DEADLINE_S), (
                f"no such answer; {self.counts()}"
            )

    def counts(self) -> Counter[str]:
        """Count the outcomes."""
        return Counter(map(outcome, self.done))

    @property
    def failed(self) -> list[Exchange]:
        """All that were not answered with the right image."""
        return [exchange for exchange in self.done if outcome(exchange) != str(_OK)]

    def _new(self) -> Exchange:
        return Exchange(self._address, _HEALTH if self._keep_alive else self._request)

    def _next(self, exchange: Exchange) -> Exchange | None:
        if exchange.request is not _HEALTH:
            self._record(exchange)
        if self._keep_alive and exchange.is_kept_alive and not self._is_over:
            return Exchange(
                self._address, self._request, connection=exchange.connection, worker=exchange.worker
            )
        exchange.close()
        if self._is_over:
            return None
        successor = self._new()
        if exchange.failure:
            successor.not_before_s = time.monotonic() + PAUSE_S
        return successor

    def _record(self, exchange: Exchange) -> None:
        if exchange.status == _OK and exchange.body != self._answer:
            exchange.failure = exchange.failure or "wrong pixels"
        exchange.forget()
        with self._news:
            self.done.append(exchange)
            self._news.notify_all()
