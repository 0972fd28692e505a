"""Restart backoff: how long to wait before a process that died is started again."""

#: A process that lived this long was healthy: its death resets the count.
HEALTHY_S = 10.0

#: The second quick death in a row costs this much delay, each further one twice as much ...
FIRST_DELAY_S = 0.1

#: ... up to this.
MAX_DELAY_S = 10.0


class Backoff:
    """Exponential backoff: a restart after one crash is immediate, a crash loop uses up no CPU."""

    def __init__(self) -> None:
        self._quick_deaths = 0

    def delay_s(self, lived_s: float, *, did_work: bool) -> float:
        """Count a death and return how long to wait before the restart, in seconds.

        Args:
            lived_s: how long the process had been running, in seconds.
            did_work: whether it did something useful: then this is no crash loop, whatever killed it.
        """
        self._quick_deaths = 0 if did_work or lived_s >= HEALTHY_S else self._quick_deaths + 1
        if self._quick_deaths <= 1:
            return 0.0
        return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** (self._quick_deaths - 2))
