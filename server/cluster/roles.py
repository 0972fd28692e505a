"""Roles: engines for requests that clients wait for, and engines for what must not delay those."""

from collections.abc import Mapping
from dataclasses import dataclass

from server.cluster.scoreboard import Cell
from server.cluster.work_socket import Lane


@dataclass(frozen=True, slots=True)
class Role:
    """Which tasks an engine takes, and where its supervisor reports.

    Attributes:
        name: as the log has it.
        lanes: those it takes tasks from, the most urgent one first; a background engine in turn.
        pid: the cell of the engine's process id.
        counts_until_us: the cell that says until when the engine counts.
        lost_task, lost_pid, lost_status, lost_stages, lost_began_us: the cells that say how the last engine
            died.
    """

    name: str
    lanes: tuple[Lane, ...]
    pid: Cell
    counts_until_us: Cell
    lost_task: Cell
    lost_pid: Cell
    lost_status: Cell
    lost_stages: Cell
    lost_began_us: Cell


INTERACTIVE = Role(
    "interactive",
    (Lane.RETRY, Lane.INTERACTIVE, Lane.SURPLUS),
    Cell.ENGINE_PID,
    Cell.ENGINE_COUNTS_UNTIL_US,
    Cell.LOST_TASK,
    Cell.LOST_PID,
    Cell.LOST_STATUS,
    Cell.LOST_STAGES,
    Cell.LOST_BEGAN_US,
)

BACKGROUND = Role(
    "background",
    (Lane.YIELDING, Lane.BACKGROUND),
    Cell.BACKGROUND_PID,
    Cell.BACKGROUND_COUNTS_UNTIL_US,
    Cell.BACKGROUND_LOST_TASK,
    Cell.BACKGROUND_LOST_PID,
    Cell.BACKGROUND_LOST_STATUS,
    Cell.BACKGROUND_LOST_STAGES,
    Cell.BACKGROUND_LOST_BEGAN_US,
)

#: Whose engines read a lane.
READERS: Mapping[Lane, Role] = {lane: role for role in (INTERACTIVE, BACKGROUND) for lane in role.lanes}
