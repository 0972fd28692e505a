"""Roles: engines for requests that clients wait for, and engines for background work."""

from dataclasses import dataclass

from server.cluster.scoreboard import Cell
from server.cluster.work_socket import Lane


@dataclass(frozen=True, slots=True)
class Role:
    """Which tasks an engine takes, and where its supervisor reports.

    Attributes:
        name: as the log has it.
        lanes: those it takes tasks from, the most urgent one first. A new task goes into the last one, a task
            whose engine crashed into the first.
        pid: the cell of the engine's process id.
        lost_task, lost_pid, lost_status, lost_stages: the cells that say how the last engine died.
    """

    name: str
    lanes: tuple[Lane, ...]
    pid: Cell
    lost_task: Cell
    lost_pid: Cell
    lost_status: Cell
    lost_stages: Cell


INTERACTIVE = Role(
    "interactive",
    (Lane.RETRY, Lane.INTERACTIVE),
    Cell.ENGINE_PID,
    Cell.LOST_TASK,
    Cell.LOST_PID,
    Cell.LOST_STATUS,
    Cell.LOST_STAGES,
)

BACKGROUND = Role(
    "background",
    (Lane.BACKGROUND,),
    Cell.BACKGROUND_PID,
    Cell.BACKGROUND_LOST_TASK,
    Cell.BACKGROUND_LOST_PID,
    Cell.BACKGROUND_LOST_STATUS,
    Cell.BACKGROUND_LOST_STAGES,
)
