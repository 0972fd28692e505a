"""The scoreboard: shared memory that says what every worker is doing, readable from any process.

The arbiter makes it before it forks. One row per worker, each written by its owner alone; a cell is an
aligned 64-bit integer, so a reader sees an old value or a new one and never half of each.
"""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, auto

#: Rows for workers: more than any one machine has cores.
ROWS = 512

#: Upper bounds of the response time histogram, in seconds.
DURATION_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

#: Statuses counted one by one; any other answer counts under its class (1 to 5).
STATUSES = (
    *(200, 202, 206, 304, 400, 401, 403, 404, 405, 408, 410, 413, 415, 416, 422, 499, 500, 502, 503),
    *(1, 2, 3, 4, 5),
)


class State(IntEnum):
    """The state of a worker; a row is free when it has none."""

    FREE = 0
    STARTING = 1
    ONLINE = 2
    STOPPING = 3


class Cell(IntEnum):
    """The columns of a row.

    Those from `REQUESTS` on only ever grow: a row keeps its counts when a worker dies and another takes its
    place, so the sums over all rows never fall.
    """

    STATE = 0
    PID = auto()
    ENGINE_PID = auto()  # 0 while there is none
    ENGINE_COUNTS_UNTIL_US = auto()  # of the monotonic clock: a moment longer than it lives
    IN_FLIGHT = auto()  # tasks sent to the work socket and not answered yet
    SERVICE_US = auto()  # moving average of what one task takes an engine, in microseconds
    RECENT_US = auto()  # engine time of the last tasks, with older ones weighing less ...
    RECENT_COST_US = auto()  # ... and what their headers had told of it
    PREDICTED_US = auto()  # predicted engine time that the admitted requests still need
    HELD_BYTES = auto()  # of images being received, worked on or sent, and booked for results to come
    UPLOAD_BYTES = auto()  # of these, those of uploads
    LOST_TASK = auto()  # the task that the last engine died over ...
    LOST_PID = auto()  # ... which engine that was ...
    LOST_STATUS = auto()  # ... how it ended, as `subprocess` says it ...
    LOST_STAGES = auto()  # ... how many stages of the task had ended ...
    LOST_BEGAN_US = auto()  # ... and when it had begun the task, of the monotonic clock
    BACKGROUND_PID = auto()  # of the background engine; 0 while there is none
    BACKGROUND_COUNTS_UNTIL_US = auto()
    BACKGROUND_LOST_TASK = auto()  # the same of the last background engine ...
    BACKGROUND_LOST_PID = auto()
    BACKGROUND_LOST_STATUS = auto()
    BACKGROUND_LOST_STAGES = auto()
    BACKGROUND_LOST_BEGAN_US = auto()
    REQUESTS = auto()
    BYTES_IN = auto()
    BYTES_OUT = auto()
    DURATION_US = auto()  # summed response time, in microseconds
    TASKS = auto()
    TASK_US = auto()  # summed engine time, in microseconds
    BACKGROUND_TASKS = auto()
    BACKGROUND_US = auto()  # summed time of background engines, in microseconds
    WORKER_STARTS = auto()  # workers that came online
    ENGINE_STARTS = auto()
    ENGINE_DEATHS = auto()
    FIRST_STATUS = auto()  # then one for each of STATUSES, and the buckets of response times


_STATUS_CELL = {status: Cell.FIRST_STATUS + i for i, status in enumerate(STATUSES)}
_FIRST_DURATION = Cell.FIRST_STATUS + len(STATUSES)
_WIDTH = _FIRST_DURATION + len(DURATION_BOUNDS_S) + 1  # the last bucket has no bound
_FIRST_HTTP_STATUS = 100


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """One worker at one moment.

    Attributes:
        pid: 0 while it starts.
        engine_pid: 0 while it has none.
        background_pid: of its background engine; 0 while it has none.
        in_flight: tasks sent to engines and not answered yet.
        service_us: moving average of the engine time of one task, in microseconds.
        requests, tasks, engine_deaths: counts of its row, those of earlier workers in it included.
    """

    pid: int
    state: State
    engine_pid: int
    background_pid: int
    in_flight: int
    service_us: int
    requests: int
    tasks: int
    engine_deaths: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole cluster at one moment, and what it has counted so far.

    Attributes:
        workers: those whose rows are in use.
        predicted_s: predicted engine time that the admitted requests still need, in seconds.
        held_bytes: of images being received, worked on or sent, and booked for results to come.
        requests: answered requests by status; a class such as `4xx` stands for its rarer statuses.
        duration_bounds_s: upper bounds of the response time histogram, in seconds, rising.
        durations: requests per bucket, not cumulated, and one more for those above the last bound.
        duration_s: summed response time, in seconds.
        engine_s: summed time that engines spent on tasks, in seconds.
        background_tasks, background_engine_s: the same of background engines, and in neither of those two.
        engine_starts, engine_deaths: of all engines.
    """

    workers: Sequence[WorkerSnapshot]
    in_flight: int
    predicted_s: float
    held_bytes: int
    requests: Mapping[str, int]
    duration_bounds_s: Sequence[float]
    durations: Sequence[int]
    duration_s: float
    bytes_in: int
    bytes_out: int
    tasks: int
    engine_s: float
    background_tasks: int
    background_engine_s: float
    engine_starts: int
    engine_deaths: int

    @property
    def online_workers(self) -> int:
        """Workers that accept requests."""
        return sum(worker.state is State.ONLINE for worker in self.workers)

    @property
    def engines(self) -> int:
        """Engines that can take tasks that clients wait for."""
        return sum(worker.engine_pid != 0 for worker in self.workers)

    @property
    def background_engines(self) -> int:
        """Engines that can take background tasks."""
        return sum(worker.background_pid != 0 for worker in self.workers)


class NoFreeRow(Exception):
    """There is no row left for another worker."""


class Row:
    """One worker's cells; `row[Cell.IN_FLIGHT] += 1`."""

    __slots__ = ("_cells", "index")

    def __init__(self, index: int, cells: memoryview) -> None:
        self.index = index
        self._cells = cells

    def __getitem__(self, cell: int) -> int:
        value: int = self._cells[cell]
        return value

    def __setitem__(self, cell: int, value: int) -> None:
        self._cells[cell] = value

    def count_request(self, status: int, duration_s: float, bytes_in: int, bytes_out: int) -> None:
        """Count one answered request."""
        self[Cell.REQUESTS] += 1
        self[Cell.BYTES_IN] += bytes_in
        self[Cell.BYTES_OUT] += bytes_out
        self[Cell.DURATION_US] += int(duration_s * 1e6)
        self[_STATUS_CELL.get(status) or _STATUS_CELL[status // 100]] += 1
        bucket = next(
            (i for i, bound in enumerate(DURATION_BOUNDS_S) if duration_s <= bound), len(DURATION_BOUNDS_S)
        )
        self[_FIRST_DURATION + bucket] += 1

    def count_task(self, service_us: int) -> None:
        """Count one task an engine finished, and move the average by an eighth."""
        self[Cell.TASKS] += 1
        self[Cell.TASK_US] += service_us
        average = self[Cell.SERVICE_US]
        self[Cell.SERVICE_US] = average + (service_us - average) // 8 if average else service_us

    def learn(self, service_us: int, cost_us: int) -> None:
        """Note how long a task took of which its header told so much; older ones count an eighth less.

        Args:
            service_us: how long it took, within the bounds that `Admission.learn` sets, in microseconds.
            cost_us: what its header told, in microseconds of the table of costs.
        """
        self[Cell.RECENT_US] += service_us - self[Cell.RECENT_US] // 8
        self[Cell.RECENT_COST_US] += cost_us - self[Cell.RECENT_COST_US] // 8

    def count_background_task(self, service_us: int) -> None:
        """Count one task that a background engine finished.

        It moves no average: admission predicts from these what engines take that do not wait for a core.
        """
        self[Cell.BACKGROUND_TASKS] += 1
        self[Cell.BACKGROUND_US] += service_us

    @property
    def all_tasks(self) -> int:
        """How many tasks engines have finished for this row's workers, for clients and in the background."""
        return self[Cell.TASKS] + self[Cell.BACKGROUND_TASKS]

    def snapshot(self) -> WorkerSnapshot:
        """Read the cells that say how this worker is doing."""
        return WorkerSnapshot(
            pid=self[Cell.PID],
            state=State(self[Cell.STATE]),
            engine_pid=self[Cell.ENGINE_PID],
            background_pid=self[Cell.BACKGROUND_PID],
            in_flight=self[Cell.IN_FLIGHT],
            service_us=self[Cell.SERVICE_US],
            requests=self[Cell.REQUESTS],
            tasks=self[Cell.TASKS],
            engine_deaths=self[Cell.ENGINE_DEATHS],
        )


class Scoreboard:
    """All rows.

    Args:
        rows: how many workers there can be at once.
    """

    def __init__(self, rows: int = ROWS) -> None:
        # Anonymous and shared: every process forked from here sees it, and it is freed with the last. Behind
        # the rows is the number of those that were ever in use: admission adds up columns for every request.
        self._memory = memoryview(mmap.mmap(-1, (rows * _WIDTH + 1) * 8)).cast("q")
        self._stops = memoryview(mmap.mmap(-1, 8)).cast("q")  # written by the arbiter
        self._free = list(range(rows - 1, -1, -1))

    def _row(self, index: int) -> Row:
        return Row(index, self._memory[index * _WIDTH : (index + 1) * _WIDTH])

    def _column(self, cell: int) -> memoryview:
        """Return one cell of all rows that were ever in use."""
        return self._memory[cell : self._memory[-1] * _WIDTH : _WIDTH]

    def claim(self) -> Row:
        """Take a free row for a worker about to be forked.

        Raises:
            NoFreeRow: there are as many workers as rows.
        """
        if not self._free:
            raise NoFreeRow("the scoreboard has no row left for another worker")
        row = self._row(self._free.pop())
        self._memory[-1] = max(self._memory[-1], row.index + 1)
        row[Cell.STATE] = State.STARTING
        return row

    def release(self, row: Row) -> None:
        """Give back the row of a worker that has died."""
        for cell in range(Cell.REQUESTS):
            row[cell] = 0
        self._free.append(row.index)

    def announce_stop(self) -> None:
        """Let all workers know that the service is about to stop."""
        self._stops[0] = 1

    @property
    def is_stop_announced(self) -> bool:
        """Whether the service is about to stop, and accepts requests until then."""
        return bool(self._stops[0])

    def workers(self) -> Iterator[Row]:
        """Iterate over the rows in use."""
        for index, state in enumerate(self._column(Cell.STATE)):
            if state != State.FREE:
                yield self._row(index)

    def total(self, cell: int) -> int:
        """Add one cell up over all rows, those of past workers too."""
        return sum(self._column(cell))

    def count(self, cell: int, above: int = 0) -> int:
        """Count the rows in which a cell is above so much."""
        return sum(value > above for value in self._column(cell))

    def greatest(self, cell: int) -> int:
        """Find the greatest value of a cell over all rows."""
        return max(self._column(cell), default=0)

    def row_with(self, cell: int, value: int) -> Row | None:
        """Find a row by the value of one of its cells."""
        return next((self._row(i) for i, held in enumerate(self._column(cell)) if held == value), None)

    def snapshot(self) -> Snapshot:
        """Read all rows: those in use one by one, and the sums over all, with those of past workers."""
        total = self.total
        return Snapshot(
            workers=tuple(row.snapshot() for row in self.workers()),
            in_flight=total(Cell.IN_FLIGHT),
            predicted_s=total(Cell.PREDICTED_US) / 1e6,
            held_bytes=total(Cell.HELD_BYTES),
            requests={
                str(status) if status >= _FIRST_HTTP_STATUS else f"{status}xx": total(cell)
                for status, cell in _STATUS_CELL.items()
            },
            duration_bounds_s=DURATION_BOUNDS_S,
            durations=tuple(total(cell) for cell in range(_FIRST_DURATION, _WIDTH)),
            duration_s=total(Cell.DURATION_US) / 1e6,
            bytes_in=total(Cell.BYTES_IN),
            bytes_out=total(Cell.BYTES_OUT),
            tasks=total(Cell.TASKS),
            engine_s=total(Cell.TASK_US) / 1e6,
            background_tasks=total(Cell.BACKGROUND_TASKS),
            background_engine_s=total(Cell.BACKGROUND_US) / 1e6,
            engine_starts=total(Cell.ENGINE_STARTS),
            engine_deaths=total(Cell.ENGINE_DEATHS),
        )
