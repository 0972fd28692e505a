"""Minimum transfer rate: tells a slow client from one that moves on."""

from enum import StrEnum
from typing import NamedTuple

from server.settings import Settings


class Stage(StrEnum):
    """What a connection waits for its client to do."""

    HEADERS = "headers"
    UPLOAD = "upload"
    DOWNLOAD = "download"
    NOTHING = ""


class Reading(NamedTuple):
    """One look at a connection.

    Attributes:
        is_too_slow: whether its client is below the limits.
        bytes_per_s: its rate since the window began; None when nothing was measured.
    """

    is_too_slow: bool = False
    bytes_per_s: float | None = None


_NOTHING = Reading()


class TransferRate:
    """How fast the client of one connection moves bytes, measured over windows of `slow_after_s`.

    Args:
        settings: the limits.
        now_s: when the connection was made, in seconds of any monotonic clock.
    """

    __slots__ = ("_had_bytes", "_made_s", "_settings", "_since_s", "_stage")

    def __init__(self, settings: Settings, now_s: float) -> None:
        self._settings = settings
        self._made_s = now_s
        self._begin(Stage.HEADERS, 0, now_s)

    def read(self, stage: Stage, moved_bytes: int, now_s: float, held_bytes: int = 0) -> Reading:
        """Look at the connection.

        Args:
            stage: what it waits for now.
            moved_bytes: how much the client has moved at this stage; never less than before.
            now_s: the time, of the same clock.
            held_bytes: of a result that is held in memory for the client: the more, the faster it must read.
        """
        if stage is not self._stage:
            self._begin(stage, moved_bytes, now_s)
            return _NOTHING
        elapsed_s = now_s - self._since_s
        if stage is Stage.NOTHING or elapsed_s <= 0:
            return _NOTHING
        if stage is Stage.HEADERS:
            # Not from where it last waited for its turn, or a head whose bytes use up all turns would last.
            return Reading(is_too_slow=now_s - self._made_s > self._settings.headers_timeout_s)
        bytes_per_s = (moved_bytes - self._had_bytes) / elapsed_s
        if elapsed_s <= self._settings.slow_after_s:
            return Reading(bytes_per_s=bytes_per_s)
        self._begin(stage, moved_bytes, now_s)
        least_bytes_per_s: float = self._settings.min_bytes_per_s
        if stage is Stage.DOWNLOAD and self._settings.download_timeout_s:
            least_bytes_per_s = max(least_bytes_per_s, held_bytes / self._settings.download_timeout_s)
        return Reading(bytes_per_s < least_bytes_per_s, bytes_per_s)

    def is_overdue(self, began_s: float | None, now_s: float, held_bytes: int) -> bool:
        """Whether a result has been held for its client for too long, however fast it reads.

        Args:
            began_s: when the first byte of it was sent; None before.
            now_s: the time, of the same clock.
            held_bytes: of it.
        """
        limit_s = self._settings.download_timeout_s
        return bool(limit_s and held_bytes) and began_s is not None and now_s - began_s > limit_s

    def _begin(self, stage: Stage, moved_bytes: int, now_s: float) -> None:
        self._stage, self._had_bytes, self._since_s = stage, moved_bytes, now_s
