"""Drain: the graceful shutdown of a worker, from its stop signal to its last connection."""

from enum import Enum, auto

#: How often a draining worker takes a step, in seconds.
TICK_S = 0.1

#: How long a draining worker goes on accepting from a backlog that does not empty, in seconds.
_LISTEN_S = 2.0


class Step(Enum):
    """What a draining worker does next."""

    CLOSE_LISTENERS = auto()
    WAIT = auto()
    END = auto()
    TIME_OUT = auto()


class Drain:
    """The drain of one worker.

    The listening socket is closed once its backlog is empty, since closing resets the connections that wait
    there, but after two seconds at the latest.

    Args:
        timeout_s: the longest it may take, in seconds (gunicorn's `graceful_timeout`).
        max_responses: after how many responses the worker drains by itself (gunicorn's `max_requests`).

    Attributes:
        is_begun: whether each response is the last one of its connection.
    """

    def __init__(self, *, timeout_s: float, max_responses: int) -> None:
        self._timeout_s = timeout_s
        self._max_responses = max_responses
        self._deadline_s = 0.0
        self._listen_until_s = 0.0
        self._is_listening = True
        self.is_begun = False

    def is_due(self, responses: int) -> bool:
        """Whether the response after so many is the last one that the worker may begin."""
        return responses + 1 >= self._max_responses

    def begin(self, now_s: float) -> None:
        """Begin, at a time in seconds of any monotonic clock."""
        self.is_begun = True
        self._deadline_s = now_s + self._timeout_s
        self._listen_until_s = now_s + min(_LISTEN_S, self._timeout_s)

    def step(self, now_s: float, connections: int, *, has_backlog: bool) -> Step:
        """Decide what to do after another tick.

        Args:
            now_s: the time, on the clock of `begin`.
            connections: how many are open.
            has_backlog: whether others wait in the backlog.
        """
        if self._is_listening:
            if has_backlog and now_s < self._listen_until_s:
                return Step.WAIT
            self._is_listening = False
            return Step.CLOSE_LISTENERS
        if connections == 0:
            return Step.END
        return Step.WAIT if now_s < self._deadline_s else Step.TIME_OUT
