"""The flight recorder: what an engine was doing when it died."""

import mmap
from io import FileIO

from server.cluster.memory_files import memory_file


class FlightRecorder:
    """The task that an engine is working on and how many it has finished, readable after its death.

    Two integers in a memory file that the engine and its worker map. A note in shared memory costs nothing,
    where a message for each task would wake the worker.
    """

    _BYTES = 16

    def __init__(self, file: FileIO) -> None:
        self._cells = memoryview(mmap.mmap(file.fileno(), self._BYTES)).cast("q")

    @classmethod
    def create(cls) -> FileIO:
        """Make the file."""
        file = memory_file("flight-recorder")
        file.truncate(cls._BYTES)
        return file

    @property
    def task(self) -> int:
        """The number of the current task; 0 for none."""
        return self._cells[0]

    @property
    def done(self) -> int:
        """How many tasks were answered, refused ones too."""
        return self._cells[1]

    def begin(self, task: int) -> None:
        """Note the number of a task before it is started."""
        self._cells[0] = task

    def end(self) -> None:
        """Note that the current task was answered."""
        self._cells[1] += 1
        self._cells[0] = 0
