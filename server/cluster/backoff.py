"""How long to wait before a process that died is started again."""

#: A process that lived this long was healthy: its death starts the count anew.
HEALTHY_S = 10.0

#: The second quick death in a row costs this much delay, each further one twice as much ...
FIRST_DELAY_S = 0.1

#: ... up to this.
MAX_DELAY_S = 10.0


class Backoff:
    """Exponential back-off: one crash is mended at once, a crash loop does not eat the machine."""

    def __init__(self) -> None:
        self._quick_deaths = 0

    def delay_s(self, lived_s: float, *, did_work: bool) -> float:
        """Take note of a death and return the seconds to wait before the respawn.

        Args:
            lived_s: how long the process had been running, in seconds.
            did_work: whether it was of use meanwhile: then this is no crash loop, whatever killed it.
        """
        self._quick_deaths = 0 if did_work or lived_s >= HEALTHY_S else self._quick_deaths + 1
        if self._quick_deaths <= 1:
            return 0.0
        return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** (self._quick_deaths - 2))
