"""Admission control: admit a request before its body is read, or shed it with 503 and `Retry-After`.

Admit when predicted outstanding engine time / engines <= max_wait_s and bytes in flight <= the limit;
otherwise shed. The figures lie in the scoreboard. Each worker writes its own row, and the arbiter clears the
row of a worker that has ended.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

from server.cluster.messages import now_us
from server.cluster.scoreboard import Cell, Row, Scoreboard
from server.errors import ServiceUnavailable

#: Engine time per byte of upload until something was measured, in microseconds: 0.2 s for a JPEG of 20
#: megapixels and 6.7 MB.
_FIRST_GUESS_US = 0.03

#: The size that is assumed for a body without a length, in bytes.
_TYPICAL_BYTES = 1 << 20

#: The least engine time that is predicted for a request, in microseconds.
_LEAST_US = 500

#: Predictions are raised by half: what was measured under a low load is too short for a high one, since
#: uploads take the cores as well.
_HEADROOM = 1.5

#: `Retry-After` is padded by 50 %: an early retry is wasted, a late one costs little.
_MARGIN = 0.5

#: The longest `Retry-After`, in seconds. Without it a few clients that are shed again and again, with large
#: bodies or only large lengths, would push it up for all others.
_LONGEST_S = 60


def _need_us(body_bytes: int, us_per_byte: float) -> int:
    return max(_LEAST_US, int(body_bytes * us_per_byte))


class Ticket:
    """The share of the cluster that one admitted request takes: bytes in flight, and engine time for them.

    Args:
        admission: what admitted it.
        row: the scoreboard's row of its worker.
        body_bytes: the length of its body; None when it is unknown.
        us_per_byte: engine time, in microseconds.

    Attributes:
        admitted_us: when, microseconds of the monotonic clock.
        held_bytes: how many bytes in flight it counts for.
    """

    def __init__(self, admission: "Admission", row: Row, body_bytes: int | None, us_per_byte: float) -> None:
        self._admission = admission
        self._row = row
        self._body_bytes = body_bytes
        self._us_per_byte = us_per_byte
        self._is_working = True
        self._need_us = 0
        self.admitted_us = now_us()
        self.held_bytes = 0
        self.hold(body_bytes or 0)

    def hold(self, held_bytes: int) -> None:
        """Count this many bytes in flight for it from now on."""
        need_us = 0
        if self._is_working:
            size = held_bytes if self._body_bytes else max(held_bytes, _TYPICAL_BYTES)
            need_us = _need_us(size, self._us_per_byte)
        self._row[Cell.PREDICTED_US] += need_us - self._need_us
        self._row[Cell.HELD_BYTES] += held_bytes - self.held_bytes
        self._need_us, self.held_bytes = need_us, held_bytes

    def expect(self, arrived_bytes: int, bytes_per_s: float) -> None:
        """Count an upload with what has arrived, and what will arrive within the limit on waiting.

        A stalled upload must not starve admission: a head costs its sender nothing, whatever length it names.
        """
        if self._body_bytes:
            coming_bytes = bytes_per_s * self._admission.max_wait_s
            self.hold(min(self._body_bytes, int(arrived_bytes + coming_bytes)))

    def grow_to(self, held_bytes: int) -> None:
        """Count this many bytes for it if the body turns out to be larger than was known.

        Raises:
            ServiceUnavailable: there is no room for them.
        """
        more_bytes = held_bytes - self.held_bytes
        if more_bytes > 0:
            if self._admission.excess_bytes(more_bytes) > 0:
                raise ServiceUnavailable("There is no room for your image at the moment. Try again later.")
            self.hold(held_bytes)

    def refusal(self) -> ServiceUnavailable:
        """Shed it, because no engine took it in time."""
        return self._admission.refusal(self._need_us)

    def finish_work(self) -> None:
        """Stop predicting engine time for it."""
        self._is_working = False
        self.hold(self.held_bytes)

    def give_back(self) -> None:
        """Release all that it took."""
        self.finish_work()
        self.hold(0)
        self._body_bytes = None  # no more of it is expected


class Admission:
    """The admission control of one worker; that of every worker looks at the same figures.

    Args:
        scoreboard: where the figures are.
        row: the worker's own.
        max_wait_s: the longest predicted wait for an engine, in seconds.
        max_held_bytes: the most bytes in flight of all admitted requests; not less than one may have.
    """

    def __init__(self, scoreboard: Scoreboard, row: Row, *, max_wait_s: float, max_held_bytes: int) -> None:
        self._scoreboard = scoreboard
        self._row = row
        self.max_wait_s = max_wait_s
        self._max_held_bytes = max_held_bytes

    @contextmanager
    def admit(self, body_bytes: int | None) -> Iterator[Ticket]:
        """Admit a request until the block ends.

        Args:
            body_bytes: the length of its body; None when it is unknown.

        Raises:
            ServiceUnavailable: with the seconds after which to retry.
        """
        us_per_byte = self._us_per_byte()
        excess_us = self._scoreboard.total(Cell.PREDICTED_US) - self.max_wait_s * 1e6 * self._engines()
        excess_bytes = self.excess_bytes(body_bytes or 0)
        if excess_us > 0 or excess_bytes > 0:
            need_us = _need_us(body_bytes or _TYPICAL_BYTES, us_per_byte)
            raise self.refusal(need_us, max(excess_us, excess_bytes * us_per_byte))
        ticket = Ticket(self, self._row, body_bytes, us_per_byte)
        try:
            yield ticket
        finally:
            ticket.give_back()

    def excess_bytes(self, more_bytes: int) -> int:
        """Return by how many bytes the limit is exceeded if these are added."""
        return self._scoreboard.total(Cell.HELD_BYTES) + more_bytes - self._max_held_bytes

    def refusal(self, need_us: float, excess_us: float = 0) -> ServiceUnavailable:
        """Choose the `Retry-After` of a shed request: when there is room, after all that were shed before.

        If all of them retried at the same moment, all retries but one would be wasted.

        Args:
            need_us: predicted engine time of the request.
            excess_us: engine time until there is room.
        """
        now = now_us()
        engines = self._engines()
        free_us = max(now + excess_us / engines, self._scoreboard.greatest(Cell.PROMISED_US))
        last_us = now + _LONGEST_S * 1e6 / (1 + _MARGIN)
        self._row[Cell.PROMISED_US] = int(min(free_us + need_us / engines, last_us))
        return ServiceUnavailable(
            "All engines are busy for longer than you should wait. Try again later.",
            retry_after_s=max(1, ceil((self._row[Cell.PROMISED_US] - now) / 1e6 * (1 + _MARGIN))),
        )

    def _engines(self) -> int:
        return max(1, self._scoreboard.count(Cell.ENGINE_PID))

    def _us_per_byte(self) -> float:
        """Engine time per byte of upload, over the whole cluster and its last tasks."""
        recent_bytes = self._scoreboard.total(Cell.RECENT_BYTES)
        recent_us = self._scoreboard.total(Cell.RECENT_US)
        return _HEADROOM * recent_us / recent_bytes if recent_bytes else _FIRST_GUESS_US
