"""What a worker shares with the rest of its cluster."""

from dataclasses import dataclass
from typing import Self

from server.cluster.ledger import Ledger, Page
from server.cluster.quarantine import Quarantine
from server.cluster.scoreboard import Row, Scoreboard
from server.cluster.work_socket import WorkSocket


@dataclass(frozen=True, slots=True)
class Membership:
    """What one worker needs to take part.

    Attributes:
        row: the worker's own row of the scoreboard.
        page: the worker's own page of the ledger.
    """

    work: WorkSocket
    scoreboard: Scoreboard
    ledger: Ledger
    quarantine: Quarantine
    row: Row
    page: Page

    @classmethod
    def claim(cls, work: WorkSocket, scoreboard: Scoreboard, ledger: Ledger, quarantine: Quarantine) -> Self:
        """Make room for a worker about to be forked; in the arbiter.

        Raises:
            NoFreeRow: there are as many workers as rows.
        """
        row = scoreboard.claim()
        return cls(work, scoreboard, ledger, quarantine, row, ledger.open(row.index))

    @classmethod
    def alone(cls, quarantine: Quarantine) -> Self:
        """Make a cluster of one, for a process that no arbiter forked."""
        return cls.claim(WorkSocket(), Scoreboard(), Ledger(), quarantine)

    def release(self) -> None:
        """Give back the place of a worker that has died, with all that it counted for its clients."""
        self.ledger.clear(self.row.index)
        self.scoreboard.release(self.row)
