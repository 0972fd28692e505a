"""What a worker shares with the rest of its cluster."""

from dataclasses import dataclass
from typing import Self

from server.cluster.quarantine import Quarantine
from server.cluster.scoreboard import Row, Scoreboard
from server.cluster.work_socket import WorkSocket


@dataclass(frozen=True, slots=True)
class Membership:
    """What one worker needs to take part.

    Attributes:
        row: the worker's own row of the scoreboard.
    """

    work: WorkSocket
    scoreboard: Scoreboard
    quarantine: Quarantine
    row: Row

    @classmethod
    def alone(cls, quarantine: Quarantine) -> Self:
        """Make a cluster of one, for a process that no arbiter forked."""
        scoreboard = Scoreboard()
        return cls(WorkSocket(), scoreboard, quarantine, scoreboard.claim())
