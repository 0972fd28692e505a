"""The engine: a CPU process that transforms one picture at a time and knows nothing of HTTP.

Started by its worker as `python -m server.cluster.engine CONFIG`; it takes tasks from the shared work socket
and exits when the control socket closes, so none outlives its worker.
"""

import gc
import json
import mmap
import os
import select
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import FileIO
from typing import TYPE_CHECKING, Self, cast

from server.cluster import sandbox
from server.cluster.flight_recorder import FlightRecorder
from server.cluster.messages import Done, Refused, Spent, Task, now_us
from server.cluster.work_socket import receive, send
from server.errors import ImageError, TooManyPixels
from server.imaging.jpeg.kernel import Impossible, kernel
from server.imaging.pipeline import process
from server.imaging.recipe import Stage

if TYPE_CHECKING:
    from server.imaging.codecs import Source

_NO_MEMORY = "The image needs more memory than it may have. Send a smaller one."


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine is hired for.

    Attributes:
        nice: how far it stands back behind workers (nice(2)).
        timeout_s: longest time for one task, in seconds; then the kernel ends the engine (setitimer(2)).
        memory_bytes: most address space (RLIMIT_AS of setrlimit(2)).
        max_tasks: after how many tasks it makes room for a fresh one; 0 for never.
        work, control, recorder: descriptors; the lanes of the work socket, first things first.
    """

    nice: int
    timeout_s: float
    memory_bytes: int
    max_tasks: int
    work: Sequence[int] = ()
    control: int = -1
    recorder: int = -1

    def encode(self) -> str:
        """Write them as an argument of a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, argument: str) -> Self:
        """Read them back."""
        return cls(**json.loads(argument))


class _Laps:
    """Adds up the time between the ends of stages."""

    def __init__(self) -> None:
        self.spent: Counter[Stage] = Counter()
        self._last_us = now_us()

    def __call__(self, stage: Stage) -> None:
        now = now_us()
        self.spent[stage] += now - self._last_us
        self._last_us = now


class Engine:
    """Takes tasks until its control socket closes, its tasks are done, or its memory has run out.

    Args:
        config: its limits.
        work: the engines' ends of the work socket, non-blocking, in the order in which they are looked at.
        control: one byte is written to it when the engine is ready; its end of file ends the engine.
        recorder: told of each task.
    """

    def __init__(
        self,
        config: EngineConfig,
        work: Sequence[socket.socket],
        control: socket.socket,
        recorder: FlightRecorder,
    ) -> None:
        self._config = config
        self._work = work
        self._control = control
        self._recorder = recorder
        self._is_retiring = False

    def serve(self) -> None:
        """Work until there is a reason to end."""
        poll = select.poll()
        for descriptor in (*self._work, self._control):
            poll.register(descriptor, select.POLLIN)
        self._control.send(b"!")
        while not self._is_retiring:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._control.fileno() in ready:
                return
            self._serve_one(next(lane for lane in self._work if lane.fileno() in ready))

    def _serve_one(self, lane: socket.socket) -> None:
        try:
            message, (upload, result, reply_fd) = receive(lane, 3)
        except BlockingIOError:  # another engine was faster
            return
        with FileIO(upload), FileIO(result, "r+b") as sink, socket.socket(fileno=reply_fd) as reply:
            if _is_abandoned(reply):
                return
            outcome = self._answer(message, upload, sink)
            try:
                send(reply, outcome.encode())
            except (BrokenPipeError, ConnectionResetError):  # the client left meanwhile
                pass
            finally:
                self._recorder.end()
        if self._recorder.done == self._config.max_tasks:
            self._is_retiring = True

    def _answer(self, message: bytes, upload: int, sink: FileIO) -> Done | Refused:
        try:
            task = Task.decode(message)
            self._recorder.begin(task.number)
            if 0 < task.deadline_us < now_us():
                return Refused(os.getpid(), is_late=True)
            sandbox.limit_time(self._config.timeout_s)
            return _transform(task, upload, sink)
        except ImageError as refusal:
            self._is_retiring = isinstance(refusal.__cause__, MemoryError)
            return Refused(os.getpid(), error=refusal)
        except MemoryError:
            self._is_retiring = True  # what it has taken it would keep
            return Refused(os.getpid(), error=TooManyPixels(_NO_MEMORY))
        except Exception:  # noqa: BLE001 our own bug: it costs this request, not the engine
            return Refused(os.getpid(), traceback=traceback.format_exc())
        finally:
            sandbox.limit_time(0)


def _transform(task: Task, upload: int, sink: FileIO) -> Done:
    queue_us = now_us() - task.sent_us
    laps = _Laps()
    size = os.fstat(upload).st_size
    sink.seek(0)  # another engine may have died over this task
    try:
        source = mmap.mmap(upload, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
    except OSError as error:  # there is no other reason
        raise MemoryError from error
    with source:
        result = process(cast("Source", source), sink, task.recipe, task.limits, laps)
    spent = Spent(queue_us, laps.spent["decode"], laps.spent["transform"], laps.spent["encode"])
    return Done(result, spent, os.getpid())


def _is_abandoned(reply: socket.socket) -> bool:
    """Say whether the worker has closed its end, because its client left."""
    poll = select.poll()
    poll.register(reply, 0)
    return bool(poll.poll(0))


def main() -> None:
    """Entry point of the process."""
    config = EngineConfig.decode(sys.argv[1])
    sandbox.enter(nice=config.nice, memory_bytes=config.memory_bytes)
    with suppress(Impossible):  # the arbiter has said so
        kernel()
    gc.freeze()  # what is loaded now stays for good; no collection has to look at it again
    lanes = [socket.socket(fileno=descriptor) for descriptor in config.work]
    with FileIO(config.recorder, "r+b") as file:
        recorder = FlightRecorder(file)
    with socket.socket(fileno=config.control) as control:
        Engine(config, lanes, control, recorder).serve()


if __name__ == "__main__":
    main()
