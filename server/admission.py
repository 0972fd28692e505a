"""Admission: take a request on, or say at once when to come back.

A request is admitted before its body is read, when the engine time that all admitted requests are thought to
need still, over the engines there are, is within the limit, and so are the bytes of all their pictures. The
figures lie in the scoreboard, each row written by its worker alone: a worker that dies takes its own away.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

from server.cluster.scoreboard import Cell, Row, Scoreboard
from server.cluster.work import now_us
from server.errors import ServiceUnavailable

#: What an engine is thought to need before anything was measured, in microseconds per byte: a JPEG of 20
#: megapixels and 6.7 MB takes 0.2 s then.
_FIRST_GUESS_US = 0.03

#: How large a body without a length is thought to be, in bytes.
_TYPICAL_BYTES = 1 << 20

#: The least engine time that a request counts with, in microseconds.
_LEAST_US = 500

#: What was measured while little was going on is too short for when much is: uploads take the cores as well.
_HEADROOM = 1.5

#: Who comes back too early comes in vain, who comes late loses a little: so much is added to a promise.
_MARGIN = 0.5

#: The longest that anybody is told to stay away, in seconds. Promises go no further: a few callers that are
#: refused again and again, with large bodies or only lengths that say so, would send away all others.
_LONGEST_S = 60


def _need_us(body_bytes: int, us_per_byte: float) -> int:
    return max(_LEAST_US, int(body_bytes * us_per_byte))


class Ticket:
    """What one admitted request takes of the cluster: the bytes of its picture, and engine time for them.

    Args:
        admission: the gate it came through.
        row: the scoreboard's row of its worker.
        body_bytes: the length of its body; None when nobody said.
        us_per_byte: engine time, in microseconds.

    Attributes:
        admitted_us: when, microseconds of the monotonic clock.
        held_bytes: what its picture counts with.
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
        """Count its picture with this many bytes from now on."""
        need_us = 0
        if self._is_working:
            size = held_bytes if self._body_bytes else max(held_bytes, _TYPICAL_BYTES)
            need_us = _need_us(size, self._us_per_byte)
        self._row[Cell.PREDICTED_US] += need_us - self._need_us
        self._row[Cell.HELD_BYTES] += held_bytes - self.held_bytes
        self._need_us, self.held_bytes = need_us, held_bytes

    def expect(self, arrived_bytes: int, bytes_per_s: float) -> None:
        """Count an upload with what has come, and what will come at this speed within the limit on waiting.

        A head costs its sender nothing: what it only announces must not keep others away for long.
        """
        if self._body_bytes:
            coming_bytes = bytes_per_s * self._admission.max_wait_s
            self.hold(min(self._body_bytes, int(arrived_bytes + coming_bytes)))

    def grow_to(self, held_bytes: int) -> None:
        """Count its picture with this many bytes if it turns out to have more than was known.

        Raises:
            ServiceUnavailable: there is no room for them.
        """
        more_bytes = held_bytes - self.held_bytes
        if more_bytes > 0:
            if self._admission.excess_bytes(more_bytes) > 0:
                raise ServiceUnavailable("There is no room for your image at the moment. Try again later.")
            self.hold(held_bytes)

    def refusal(self) -> ServiceUnavailable:
        """Tell its caller when to come back, since no engine came to it in time."""
        return self._admission.refusal(self._need_us)

    def finish_work(self) -> None:
        """It needs no engine any more."""
        self._is_working = False
        self.hold(self.held_bytes)

    def give_back(self) -> None:
        """It is over."""
        self.finish_work()
        self.hold(0)
        self._body_bytes = None  # nothing is expected any more


class Admission:
    """The gate of one worker; all gates look at the same figures.

    Args:
        scoreboard: where the figures are.
        row: the worker's own.
        max_wait_s: the longest that an admitted request is thought to wait for an engine, in seconds.
        max_held_bytes: the most bytes that the pictures of all admitted requests have together; not less than
            one may have.
    """

    def __init__(self, scoreboard: Scoreboard, row: Row, *, max_wait_s: float, max_held_bytes: int) -> None:
        self._scoreboard = scoreboard
        self._row = row
        self.max_wait_s = max_wait_s
        self._max_held_bytes = max_held_bytes

    @contextmanager
    def admit(self, body_bytes: int | None) -> Iterator[Ticket]:
        """Take a request on until the block ends.

        Args:
            body_bytes: the length of its body; None when nobody said.

        Raises:
            ServiceUnavailable: with the seconds after which there will be room.
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
        """How many bytes too many are held if these come too."""
        return self._scoreboard.total(Cell.HELD_BYTES) + more_bytes - self._max_held_bytes

    def refusal(self, need_us: float, excess_us: float = 0) -> ServiceUnavailable:
        """Choose when a refused caller shall come back: when there is room, and behind all told so before.

        If all were told when the first place becomes free, all but one of them would come in vain.

        Args:
            need_us: engine time for the caller's picture.
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
        lately_bytes = self._scoreboard.total(Cell.LATELY_BYTES)
        lately_us = self._scoreboard.total(Cell.LATELY_US)
        return _HEADROOM * lately_us / lately_bytes if lately_bytes else _FIRST_GUESS_US
