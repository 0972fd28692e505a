"""Admission control: what a request may hold and how long it would wait, or 503 with `Retry-After`.

A request is looked at when its headers have arrived, while its body arrives, and before its task is sent,
when it is known how large its result can be. The figures lie in the scoreboard. Each worker writes its own
row, and the arbiter clears the row of a worker that has ended.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from math import ceil, inf

from server.cluster.ledger import Account, Field
from server.cluster.messages import now_us
from server.cluster.roles import INTERACTIVE, Role
from server.cluster.scoreboard import Cell, Row, Scoreboard
from server.cluster.work_socket import Lane
from server.errors import ServiceUnavailable
from server.operations.registry import Cost, Read
from server.settings import bytes_in_flight
from server.shares import NAMES, QUEUE, Shares

#: The size that is assumed for a body without a length, in bytes.
_TYPICAL_BYTES = 1 << 20

#: Engine time of a refused request of which nothing is known, until something was measured, in microseconds.
_TYPICAL_US = 30_000

#: The least engine time that is predicted for a request, in microseconds.
_LEAST_US = 500

#: What a request takes of each limit, at least. Most are refused for engine time, so that is looked at first.
_LEAST = {Field.PREDICTED_US: _LEAST_US, Field.UPLOAD_BYTES: 1, Field.HELD_BYTES: 1, Field.WAITING: 1}

#: Which part of all engine time is likely for a request before its image says more, at most: a few slow
#: images must not get other clients refused.
_LIKELY_PART = 0.005

#: Predictions are raised by half: what was measured under a low load is too short for a high one, since
#: uploads take the cores as well.
_HEADROOM = 1.5

#: How much of an announced body is expected for each byte that has arrived, until its rate is known: a burst
#: of honest uploads is decided after a sixteenth of their bytes, and what blocks others must really be sent.
_AHEAD = 16

#: How much of a body must be there before it is looked at, in bytes.
_HEADER_BYTES = 64

#: How often a request looks for room for its result, in seconds: another worker may make it.
_POLL_S = 0.025

#: By which factor a task may differ from what was predicted for it; beyond that it teaches no more.
_MOST_SURPRISE = 4

#: By which factor engines may differ from the table of costs, at most: those of a machine that is ten times
#: as fast or as slow as ours. Beyond that it is an attack on the predictions.
_MOST_CORRECTION = 10

#: `Retry-After` is padded by 50 %: an early retry is wasted, a late one costs little. A long one is padded by
#: half of what is left to the longest, so waits below the longest stay different; longer ones all become the
#: longest.
_MARGIN = 0.5

#: The longest `Retry-After`, in seconds.
_LONGEST_S = 60

#: How many clients' last `Retry-After` is remembered.
_MOST_CLIENTS = 1024

#: What a run will cost, from what is there of its source and the size of the whole.
Estimate = Callable[[Read, int], Cost]

#: Makes a refusal; that it was made counts for the next `Retry-After` of its client.
_Refusal = Callable[[], ServiceUnavailable]


class Ticket:
    """The share of the cluster that one admitted request takes: bytes in flight, and engine time for them.

    Args:
        admission: what admitted it.
        row: the scoreboard's row of its worker.
        body_bytes: the length of its body; None when it is unknown.
        estimate: tells what it will cost; None when it needs no engine.
        client: the client's address, the key of its `Retry-After`.
        likely_us: the engine time that it is likely to need, until its image says more.

    Attributes:
        deadline_us: no engine starts its task later, microseconds of the monotonic clock.
        account: of its client; None when that is not told apart from others.
    """

    def __init__(  # noqa: PLR0913 what is known of a request
        self,
        admission: "Admission",
        row: Row,
        body_bytes: int | None,
        estimate: Estimate | None = None,
        client: str = "",
        *,
        likely_us: int = 0,
    ) -> None:
        self._admission = admission
        self._row = row
        self._body_bytes = body_bytes
        self._estimate = estimate
        self._client = client
        self._cost: Cost | None = None
        self._look_at_bytes: float = inf if estimate is None else _HEADER_BYTES
        self._bytes_per_s: float | None = None
        self._is_whole = False
        self._is_working = True  # an engine has yet to finish its task
        self._is_waiting = False  # its upload is there, and it is counted among those that wait for an engine
        self._is_over = False
        self.account = admission.account(client)
        self._upload_bytes = self._result_bytes = self._full_us = self._need_us = self._likely_more_us = 0
        self._likely_us = likely_us
        self.deadline_us = now_us() + self._max_wait_us
        self._book(0, 0)

    @property
    def _max_wait_us(self) -> int:
        return int(self._admission.max_wait_s * 1e6)

    @property
    def held_bytes(self) -> int:
        """How many bytes in flight it counts for."""
        return self._upload_bytes + self._result_bytes

    def _book(self, upload_bytes: int, result_bytes: int) -> None:
        """Count these bytes for it from now on, and the engine time that goes with so much of its upload."""
        if not self._is_over:
            self._write(upload_bytes, result_bytes)

    def _write(self, upload_bytes: int, result_bytes: int) -> None:
        need_us = likely_more_us = 0
        if self._is_working:
            share = 1 if self._is_whole else min(1, upload_bytes / (self._body_bytes or _TYPICAL_BYTES))
            need_us = max(_LEAST_US, int(self._full_us * share))
            if not self._is_whole and self._bytes_per_s is None:
                likely_more_us = max(0, (self._full_us or self._likely_us) - need_us)
        self._row[Cell.PREDICTED_US] += need_us - self._need_us
        self._row[Cell.HELD_BYTES] += upload_bytes + result_bytes - self.held_bytes
        self._row[Cell.UPLOAD_BYTES] += upload_bytes - self._upload_bytes
        self._count(Field.PREDICTED_US, need_us - self._need_us)
        self._count(Field.LIKELY_MORE_US, likely_more_us - self._likely_more_us)
        self._count(Field.HELD_BYTES, upload_bytes + result_bytes - self.held_bytes)
        self._count(Field.UPLOAD_BYTES, upload_bytes - self._upload_bytes)
        self._need_us, self._likely_more_us = need_us, likely_more_us
        self._upload_bytes, self._result_bytes = upload_bytes, result_bytes

    def _count(self, field: Field, more: int) -> None:
        if self.account is not None:
            self.account.add(field, more)

    def _finish_work(self) -> None:
        self._is_working = False
        if self._is_waiting:
            self._is_waiting = False
            self._count(Field.WAITING, -1)

    # --- the upload

    def arrive(self, arrived_bytes: int) -> None:
        """Count an upload of which so much is there, with what will soon arrive.

        For other clients, what was announced counts for nothing: headers cost their sender nothing, whatever
        length they name.

        Raises:
            ServiceUnavailable: there is no room for it, or it would wait for too long.
        """
        if refusal := self._take(arrived_bytes):
            raise refusal()

    def takes(self, arrived_bytes: int) -> bool:
        """Count an upload of which so much is there, if there is room; otherwise the app has to refuse it.

        It takes no body without a length, of which nothing is known ahead, and nothing that is to be looked
        at.
        """
        if (
            self._is_over
            or self._body_bytes is None
            or arrived_bytes > self._body_bytes
            or arrived_bytes >= self._look_at_bytes
        ):
            return False
        return self._take(arrived_bytes) is None

    def _take(self, arrived_bytes: int) -> _Refusal | None:
        """Count an upload of which so much is there, if there is room; otherwise return how to refuse it."""
        admission, expected_bytes = self._admission, self._expected_bytes(arrived_bytes)
        more_bytes = expected_bytes - self._upload_bytes
        if more_bytes <= 0:
            return None
        if excess_bytes := admission.excess_upload_bytes(more_bytes, self._upload_bytes):
            return partial(admission.no_room, self._client, excess_bytes)
        for field, own in ((Field.UPLOAD_BYTES, self._upload_bytes), (Field.HELD_BYTES, self.held_bytes)):
            if refusal := admission.share_refusal(self._client, self.account, field, more_bytes, own=own):
                return refusal
        if refusal := self._wait_refusal():
            return refusal
        self._book(expected_bytes, self._result_bytes)
        return None

    def _expected_bytes(self, arrived_bytes: int) -> int:
        if not self._body_bytes:
            return arrived_bytes
        ahead_bytes = (
            (_AHEAD - 1) * arrived_bytes
            if self._bytes_per_s is None
            else int(self._bytes_per_s * self._admission.max_wait_s)
        )
        return max(arrived_bytes, min(self._body_bytes, arrived_bytes + ahead_bytes))

    def expect(self, arrived_bytes: int, bytes_per_s: float) -> None:
        """Learn how fast the upload arrives: one that stalls must not hold more than it has sent."""
        self._bytes_per_s = bytes_per_s
        coming_bytes = int(arrived_bytes + bytes_per_s * self._admission.max_wait_s)
        self._book(min(self._upload_bytes, max(arrived_bytes, coming_bytes)), self._result_bytes)

    def complete(self, body_bytes: int) -> None:
        """Count an upload that is there, and no more; from now on the request waits for an engine.

        It waits until `max_wait_s` after its admission, or half as long after now, whichever is later.

        Raises:
            ServiceUnavailable: more requests of its client wait than its share.
        """
        self._is_whole, self._body_bytes = True, body_bytes
        self.deadline_us = max(self.deadline_us, now_us() + self._max_wait_us // 2)
        self._book(body_bytes, self._result_bytes)
        if self._is_working and not self._is_waiting:
            if refusal := self._admission.share_refusal(
                self._client, self.account, Field.WAITING, 1, need_us=self._full_us
            ):
                raise refusal()
            self._is_waiting = True
            self._count(Field.WAITING, 1)

    def look(self, read: Read, arrived_bytes: int) -> None:
        """Predict from the image itself what it will cost, once its header is there and when it is whole.

        While the header is unknown it is looked for again whenever twice as much has arrived.

        Args:
            read: returns up to so many bytes from a position.
            arrived_bytes: how much is there.

        Raises:
            ServiceUnavailable: it costs more than was known, and would wait for too long.
        """
        if self._estimate is None or not (self._is_whole or arrived_bytes >= self._look_at_bytes):
            return
        known_us = self._cost.engine_us if self._cost else 0
        self._cost = self._estimate(read, max(arrived_bytes, self._body_bytes or 0))
        is_decided = self._is_whole or (self._cost.is_known and self._body_bytes is not None)
        self._look_at_bytes = inf if is_decided else 2 * arrived_bytes
        if self._cost.engine_us != known_us:
            self._full_us = self._admission.predicted_us(self._cost)
            if self._cost.engine_us > known_us and (refusal := self._wait_refusal()):
                raise refusal()
        self._book(self._upload_bytes, self._result_bytes)

    def _excess_us(self) -> float:
        return 0 if self._estimate is None else self._admission.excess_us(self._need_us)

    def _wait_refusal(self) -> _Refusal | None:
        """Return how to refuse a request that would wait for too long; None if it would not."""
        admission = self._admission
        if (excess_us := self._excess_us()) > 0:
            return partial(admission.too_busy, self._client, excess_us, self._full_us)
        more_us = max(0, self._full_us - self._need_us)
        return admission.share_refusal(
            self._client, self.account, Field.PREDICTED_US, more_us, own=self._need_us, need_us=self._full_us
        )

    # --- the result

    async def reserve(self) -> None:
        """Wait for room for the result, before its task is sent; only smaller ones may overtake it.

        While its client holds more than its share, which changes with each request that gets room, it lets
        all others overtake it.

        Raises:
            ServiceUnavailable: there was none before the deadline.
        """
        admission = self._admission
        result_bytes = self._cost.result_bytes if self._cost else 0
        loop = asyncio.get_running_loop()
        until_s = loop.time() + (self.deadline_us - now_us()) / 1e6
        with admission.waiting(result_bytes) as is_next:
            while True:
                above_share = admission.result_refusal(
                    self._client, self.account, result_bytes, self.held_bytes
                )
                excess_bytes = admission.excess_result_bytes(result_bytes)
                if is_next(above_share is not None) and not excess_bytes:
                    break
                if loop.time() >= until_s:
                    raise above_share() if above_share else admission.no_room(self._client, excess_bytes)
                await asyncio.sleep(_POLL_S)
            self._book(self._upload_bytes, result_bytes)

    def queue(self) -> Lane:
        """Choose where its task waits, before it is sent."""
        return self._admission.lane(self.account)

    def deliver(self, result_bytes: int, service_us: int, role: Role) -> None:
        """Count the result, which is there, instead of the upload, and learn how long it took.

        Args:
            result_bytes: its size.
            service_us: how long it took.
            role: of the engine that made it; a background engine had no core of its own.

        Raises:
            ServiceUnavailable: it is larger than its header told, and there is no room for the rest.
        """
        if self._cost is not None and role is INTERACTIVE:
            self._admission.learn(service_us, self._cost)
        self._finish_work()
        self._book(0, self._result_bytes)
        more_bytes = result_bytes - self._result_bytes
        if more_bytes > 0:
            if excess_bytes := self._admission.excess_result_bytes(more_bytes, self._result_bytes):
                raise self._admission.no_room(self._client, excess_bytes)
            if refusal := self._admission.share_refusal(
                self._client, self.account, Field.HELD_BYTES, more_bytes, own=self.held_bytes
            ):
                raise refusal()
        self._book(0, result_bytes)

    # --- the end

    def refusal(self) -> ServiceUnavailable:
        """Shed it, because no engine took it in time."""
        return self._admission.too_busy(self._client, 0, self._full_us)

    def give_back(self) -> None:
        """Release all that it took; nothing that comes later is counted, except what `hold_unread` does."""
        self._finish_work()
        self._book(0, 0)
        self._is_over = True

    def hold_unread(self, unread_bytes: int) -> None:
        """Count what the client has not read yet of a response that is written, once the request is over.

        The last half megabyte lies in the kernel, and with it the time to read it is limited as well.
        """
        if self._is_over:
            self._write(0, unread_bytes)


class Admission:
    """The admission control of one worker; that of every worker looks at the same figures.

    Args:
        scoreboard: where the figures are.
        row: the worker's own.
        max_wait_s: the longest predicted wait for an engine, in seconds.
        max_held_bytes: the most bytes in flight of all admitted requests, not less than one may have; None
            for what the engines need.
        shares: how much of that one client may hold; None when clients are not told apart.
    """

    def __init__(
        self,
        scoreboard: Scoreboard,
        row: Row,
        *,
        max_wait_s: float,
        max_held_bytes: int | None,
        shares: Shares | None = None,
    ) -> None:
        self._scoreboard = scoreboard
        self._row = row
        self.max_wait_s = max_wait_s
        self._max_held_bytes = max_held_bytes
        self._shares = shares
        self._promised_us: dict[str, int] = {}
        self._waiting: dict[object, float] = {}

    @contextmanager
    def admit(
        self, body_bytes: int | None, estimate: Estimate | None = None, client: str = ""
    ) -> Iterator[Ticket]:
        """Admit a request until the block ends.

        Args:
            body_bytes: the length of its body; None when it is unknown.
            estimate: tells what it will cost; None when it needs no engine.
            client: the client's address, the key of its `Retry-After`.

        Raises:
            ServiceUnavailable: with the seconds after which to retry.
        """
        if (excess_us := self.excess_us()) > 0:
            raise self.too_busy(client, excess_us)
        if excess_bytes := self.excess_upload_bytes(1):
            raise self.no_room(client, excess_bytes)
        account = self.account(client)
        likely_us = 0 if estimate is None else self._likely_us()
        likely_more_us = account.used(Field.LIKELY_MORE_US) if account and likely_us else 0
        for field, least in _LEAST.items():
            more = max(least, likely_us + likely_more_us) if field is Field.PREDICTED_US else least
            if refusal := self.share_refusal(client, account, field, more):
                raise refusal()
        ticket = Ticket(self, self._row, body_bytes, estimate, client, likely_us=likely_us)
        try:
            yield ticket
        finally:
            ticket.give_back()

    # --- shares

    def account(self, client: str) -> Account | None:
        """Return the account of a client; None when it has no address, or clients are not told apart."""
        return self._shares.account(client) if self._shares and client else None

    def lane(self, account: Account | None) -> Lane:
        """Choose where the next task of a client waits."""
        return self._shares.lane(account, self._engines()) if self._shares else Lane.INTERACTIVE

    def share_refusal(  # noqa: PLR0913 who asks for what, and what for
        self,
        client: str,
        account: Account | None,
        field: Field,
        more: int,
        *,
        own: int = 0,
        need_us: int = 0,
    ) -> _Refusal | None:
        """Return how to refuse a client that would hold more than its share; None if it may have it.

        Args:
            client: its address.
            account: of it; None when it is not told apart from others.
            field: what it asks for.
            more: how much.
            own: how much the same request holds already.
            need_us: predicted engine time of the request; 0 for unknown.
        """
        if self._shares is None or account is None:
            return None
        total: float
        limit: float
        if field is Field.HELD_BYTES:
            total, limit = self._scoreboard.total(Cell.HELD_BYTES), self._limit_bytes
        elif field is Field.UPLOAD_BYTES:
            total, limit = self._scoreboard.total(Cell.UPLOAD_BYTES), self._limit_bytes // 2
        elif field is Field.PREDICTED_US:
            total, limit = self._scoreboard.total(Cell.PREDICTED_US), self._limit_us
        else:
            total, limit = self._shares.total(field), QUEUE
        excess = self._shares.excess(account, field, more, total=total, limit=limit, own=own)
        if not excess:
            return None
        free_us = excess if field is Field.PREDICTED_US else self._until_free_us(excess / max(1, total))
        return partial(self._above_share, client, field, free_us, need_us)

    def _above_share(self, client: str, field: Field, free_us: float, need_us: int) -> ServiceUnavailable:
        return ServiceUnavailable(
            "Your address has more than its share already, and others need the rest. Send fewer requests "
            "at a time, or try again later.",
            self._retry_after_s(client, free_us, need_us),
            share=NAMES[field],
        )

    # --- engine time

    def predicted_us(self, cost: Cost) -> int:
        """Return how long an engine will take, by what the last tasks of the whole cluster took.

        It is no longer than the limit on waiting: a request takes one engine, and leaves the others alone.
        """
        return int(min(_HEADROOM * self._correction() * cost.engine_us, self.max_wait_s * 1e6))

    def _correction(self) -> float:
        """Return how long the last tasks took, as a multiple of what the table told of them."""
        told_us = self._scoreboard.total(Cell.RECENT_COST_US)
        ratio = self._scoreboard.total(Cell.RECENT_US) / told_us if told_us else 1
        return min(max(ratio, 1 / _MOST_CORRECTION), _MOST_CORRECTION)

    def learn(self, service_us: int, cost: Cost) -> None:
        """Learn from a task how long engines take.

        Images that take much longer or shorter than their headers tell say little about others, so they move
        the prediction slowly; those whose headers are unknown do not move it.

        Args:
            service_us: how long it took, in microseconds.
            cost: what was known of it before.
        """
        if cost.is_known:
            told_us = max(cost.engine_us, _LEAST_US)  # in what is shorter, the table tells little
            expected_us = self._correction() * told_us
            took_us = min(max(service_us, expected_us / _MOST_SURPRISE), expected_us * _MOST_SURPRISE)
            self._row.learn(int(took_us), told_us)

    def excess_us(self, own_us: int = 0) -> float:
        """Return by how much the predicted engine time of all others exceeds the limit on waiting."""
        others_us = self._scoreboard.total(Cell.PREDICTED_US) - own_us
        return others_us - self._limit_us

    @property
    def _limit_us(self) -> float:
        return self.max_wait_s * 1e6 * self._engines()

    def _typical_us(self) -> float:
        """Return how long the last images took an engine, with the headroom of all predictions."""
        return _HEADROOM * self._scoreboard.greatest(Cell.SERVICE_US) or _TYPICAL_US

    def _likely_us(self) -> int:
        """Return the engine time that a request is likely to need when only its head is there.

        With it, those that a client sends beyond its share are refused before their bodies are read: reading
        the first piece of a body makes a refusal cost a third more.
        """
        return int(min(self._typical_us(), self._limit_us * _LIKELY_PART))

    def _engines(self) -> int:
        return max(1, self._scoreboard.count(Cell.ENGINE_COUNTS_UNTIL_US, above=now_us()))

    # --- bytes

    @property
    def _limit_bytes(self) -> int:
        return self._max_held_bytes or bytes_in_flight(self._engines())

    def _excess_bytes(self, more_bytes: int) -> int:
        """Return by how many bytes the limit is exceeded if these are added; below 0 if it is not."""
        return self._scoreboard.total(Cell.HELD_BYTES) + more_bytes - self._limit_bytes

    def excess_upload_bytes(self, more_bytes: int, own_bytes: int = 0) -> int:
        """Return by how many bytes an upload is too large; 0 if there is room.

        All uploads together take at most half of the limit, unless there is but one: so whatever has been
        received finds room for its result.
        """
        uploads_bytes = self._scoreboard.total(Cell.UPLOAD_BYTES)
        excess_bytes = self._excess_bytes(more_bytes)
        if uploads_bytes > own_bytes:
            excess_bytes = max(excess_bytes, uploads_bytes + more_bytes - self._limit_bytes // 2)
        return max(0, excess_bytes)

    def excess_result_bytes(self, more_bytes: int, own_bytes: int = 0) -> int:
        """Return by how many bytes a result is too large; 0 if there is room.

        It leaves room for another one like it, so that a few large ones do not take all that there is; but
        one result is always served.

        Args:
            more_bytes: that it needs.
            own_bytes: that it has already.
        """
        has_others = self._results_bytes() > own_bytes
        return max(0, self._excess_bytes(2 * more_bytes)) if has_others and more_bytes else 0

    def result_refusal(
        self, client: str, account: Account | None, result_bytes: int, own_bytes: int
    ) -> _Refusal | None:
        """Return how to refuse a client whose result would exceed its share; one result is always served.

        Args:
            client: its address.
            account: of it; None when it is not told apart from others.
            result_bytes: that are to be booked.
            own_bytes: that the same request holds already.
        """
        if not result_bytes or not self._results_bytes():
            return None
        return self.share_refusal(client, account, Field.HELD_BYTES, result_bytes, own=own_bytes)

    def _results_bytes(self) -> int:
        return self._scoreboard.total(Cell.HELD_BYTES) - self._scoreboard.total(Cell.UPLOAD_BYTES)

    @contextmanager
    def waiting(self, result_bytes: int) -> Iterator[Callable[[bool], bool]]:
        """Stand in the worker's queue of those that wait for room, until the block ends.

        Args:
            result_bytes: for how much.

        Yields:
            A function that says whether all that came before are waiting for more. It is told whether the
            client holds more than its share: then it is not next, and no other waits for it.
        """
        place = object()
        self._waiting[place] = result_bytes

        def is_next(is_above_share: bool) -> bool:  # noqa: FBT001 all that it is told
            self._waiting[place] = inf if is_above_share else result_bytes
            earlier = takewhile(lambda waiter: waiter is not place, self._waiting)
            return not is_above_share and all(self._waiting[waiter] > result_bytes for waiter in earlier)

        try:
            yield is_next
        finally:
            del self._waiting[place]

    # --- Retry-After

    def too_busy(self, client: str, excess_us: float, need_us: float = 0) -> ServiceUnavailable:
        """Shed a request that would wait for too long.

        Args:
            client: the client's address.
            excess_us: engine time until there is room.
            need_us: predicted engine time of the request; 0 for unknown.
        """
        return ServiceUnavailable(
            "All engines are busy for longer than you should wait. Try again later.",
            self._retry_after_s(client, excess_us, need_us),
        )

    def no_room(self, client: str, excess_bytes: int) -> ServiceUnavailable:
        """Shed a request for whose upload or result there is no room.

        Bytes become free as engines work; those that slow clients hold free themselves at no known moment.

        Args:
            client: the client's address.
            excess_bytes: that must become free.
        """
        held_bytes = max(1, self._scoreboard.total(Cell.HELD_BYTES))
        return ServiceUnavailable(
            "There is no room for your image at the moment. Try again later.",
            self._retry_after_s(client, self._until_free_us(excess_bytes / held_bytes), 0),
        )

    def _until_free_us(self, part: float) -> float:
        """Return how much engine time there is until so large a part of what is held has become free."""
        return self._scoreboard.total(Cell.PREDICTED_US) * min(1, part)

    def _retry_after_s(self, client: str, excess_us: float, need_us: float) -> int:
        """Choose the `Retry-After`: when there is room, after all that this client was told before.

        If all requests of a client retried at the same moment, all retries but one would be wasted. What one
        client is refused changes nothing for another.
        """
        now = now_us()
        engines = self._engines()
        workers = max(1, self._scoreboard.count(Cell.STATE))  # each remembers what it promised itself
        typical_us = self._typical_us()
        own_us = min(need_us or typical_us, typical_us) * workers / engines
        free_us = max(now + excess_us / engines, self._promised_us.pop(client, 0))
        promised_us = self._promised_us[client] = int(min(free_us + own_us, now + _LONGEST_S * 1e6))
        if len(self._promised_us) > _MOST_CLIENTS:
            self._promised_us.pop(next(iter(self._promised_us)))  # which was refused longest ago
        wait_s = (promised_us - now) / 1e6
        return max(1, ceil(min(wait_s * (1 + _MARGIN), (wait_s + _LONGEST_S) / 2)))
