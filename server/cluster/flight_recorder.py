"""The flight recorder: what an engine was doing when it died."""

import fcntl
import mmap
from contextlib import suppress
from io import FileIO

from server.cluster.memory_files import memory_file

#: An engine that was taken over could otherwise cut the file off under its worker, which would then end in
#: SIGBUS when it looks.
_FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class FlightRecorder:
    """What an engine is working on and has done, and whether it wakes up; readable after its death.

    Five integers in a memory file that the engine and its worker map. A note in shared memory costs nothing,
    where a message for each task would wake the worker.
    """

    _BYTES = 40

    def __init__(self, file: FileIO) -> None:
        self._cells = memoryview(mmap.mmap(file.fileno(), self._BYTES)).cast("q")

    @classmethod
    def create(cls) -> FileIO:
        """Make the file."""
        file = memory_file("flight-recorder", is_sealable=True)
        file.truncate(cls._BYTES)
        with suppress(OSError):  # it is in a file system that has no seals
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _FIXED_SIZE)
        return file

    @property
    def task(self) -> int:
        """The number of the current task; 0 for none."""
        return self._cells[0]

    @property
    def done(self) -> int:
        """How many tasks were answered, refused ones too."""
        return self._cells[1]

    @property
    def beats(self) -> int:
        """How often it has looked for a task; an idle one does so all the time (`look_every_s` of Inbox)."""
        return self._cells[2]

    @property
    def stages(self) -> int:
        """How many different stages of the current task have ended; 0 while it reads its source."""
        return self._cells[3]

    @property
    def began_us(self) -> int:
        """When it began the current task, microseconds of the monotonic clock."""
        return self._cells[4]

    def beat(self) -> None:
        """Note that it looks for a task."""
        self._cells[2] += 1

    def begin(self, task: int, began_us: int) -> None:
        """Note the number of a task before it is started, and when that is."""
        self._cells[3] = 0
        self._cells[4] = began_us
        self._cells[0] = task

    def pass_stages(self, stages: int) -> None:
        """Note how many different stages have ended."""
        self._cells[3] = stages

    def end(self) -> None:
        """Note that the current task was answered."""
        self._cells[1] += 1
        self._cells[0] = 0
