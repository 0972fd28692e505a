"""The engine: a CPU process that runs one task at a time and knows nothing of HTTP.

Started by its worker as `python -m server.cluster.engine CONFIG`; it takes tasks from the shared work socket
and exits when the control socket closes, so it does not outlive its worker.
"""

import errno
import gc
import json
import os
import select
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial
from io import FileIO
from pkgutil import resolve_name
from typing import NoReturn, Self

from server.cluster import sandbox
from server.cluster.flight_recorder import FlightRecorder
from server.cluster.memory_files import NO_ROOM, has_room
from server.cluster.messages import Done, Ended, Progress, Ready, Refused, Spent, Task, now_us
from server.cluster.work_socket import Inbox, send
from server.errors import OperationRefused
from server.operations.run import Run, RunSpec


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine needs to know from its start.

    Attributes:
        operations: how to run each of them, by name.
        limits: passed to every run.
        is_background: whether it gets, once it is ready, only the CPU time that no other process wants; then
            its CPU time is limited instead of the time, and it reports progress.
        nice: how far it stands behind workers (nice(2)).
        timeout_s: longest time for one task, in seconds; then the kernel kills the engine (setitimer(2)).
        memory_bytes: most address space (RLIMIT_AS of setrlimit(2)).
        max_tasks: after how many tasks it is replaced by a fresh one; 0 for never.
        result_bytes: size of the largest result (RLIMIT_FSIZE of setrlimit(2)).
        hung_after_s: after how long without a sign of life its supervisor kills it, in seconds; 0 for never.
        is_jailed: whether it is ended when it does anything but compute (`sandbox.enter_jail`).
        work: descriptors of the lanes of the work socket, the most urgent one first.
        control, recorder: descriptors.
    """

    operations: Mapping[str, RunSpec]
    nice: int
    timeout_s: float
    memory_bytes: int
    max_tasks: int
    result_bytes: int = 1 << 62
    limits: Mapping[str, int] = field(default_factory=dict)
    is_background: bool = False
    hung_after_s: float = 0.0
    is_jailed: bool = True
    work: Sequence[int] = ()
    control: int = -1
    recorder: int = -1

    def encode(self) -> str:
        """Write the configuration as an argument of a command line."""
        operations = {name: astuple(spec) for name, spec in self.operations.items()}
        return json.dumps({**asdict(self), "operations": operations})

    @classmethod
    def decode(cls, argument: str) -> Self:
        """Read it back."""
        fields = json.loads(argument)
        operations = {
            name: RunSpec(version, run, tuple(stages), prepare)
            for name, (version, run, stages, prepare) in fields.pop("operations").items()
        }
        return cls(operations, **fields)


class _StageClock:
    """Adds up the time between the ends of stages.

    Args:
        stages: their names.
        report: told how many have ended, each time one has ended for the first time.
    """

    def __init__(self, stages: Sequence[str], report: Callable[[int], None]) -> None:
        self.stages_us = dict.fromkeys(stages, 0)
        self._report = report
        self._ended: set[str] = set()
        self.started_us = self._last_us = now_us()

    def __call__(self, stage: str) -> None:
        now = now_us()
        self.stages_us[stage] += now - self._last_us
        self._last_us = now
        if stage not in self._ended:  # an animation goes through the stages with each frame
            self._ended.add(stage)
            self._report(len(self._ended))


class Engine:
    """Runs tasks until its control socket closes, its number of tasks is reached, or its memory has run out.

    Args:
        config: its limits, and what it can run.
        work: the engines' ends of the work socket, non-blocking, the most urgent one first; a background
            engine takes from them in turn.
        control: told when the engine is ready; its end of file stops the engine.
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
        self._runs: dict[str, Run] = {
            name: resolve_name(spec.run) for name, spec in config.operations.items()
        }
        self._control = control
        self._recorder = recorder
        self._limit_time = sandbox.limit_cpu_time if config.is_background else sandbox.limit_time
        # What yields is as much as its client sends: read first, it would starve all jobs.
        self._inbox = Inbox(work, control, on_look=recorder.beat, takes_turns=config.is_background)
        self._is_retiring = False

    def serve(self, ready: Ready, listener: int | None = None) -> None:
        """Work until there is a reason to stop.

        Args:
            ready: what to tell the worker first.
            listener: a descriptor for the worker, closed here: while this process has one too, a denied
                system call would wait for ever when the worker is gone.
        """
        files = [] if listener is None else [listener]
        with suppress(BrokenPipeError):  # the worker is gone, which the inbox sees
            try:
                send(self._control, ready.encode(), files)
            except OSError as error:
                # The user's processes have as many descriptors on their way as they may (RLIMIT_NOFILE). It
                # cannot wait, for it takes an engine to change that; what the filter denies fails (ENOSYS).
                if error.errno != errno.ETOOMANYREFS:
                    raise
                send(self._control, Ready((*ready.missing, "seccomp_listener")).encode())
        for descriptor in files:
            os.close(descriptor)
        while not self._is_retiring and (taken := self._inbox.take(max_files=3)) is not None:
            self._serve_one(*taken)

    def _serve_one(self, message: bytes, files: Sequence[int]) -> None:
        upload, result, reply_fd = files
        answer: Done | Refused
        with socket.socket(fileno=reply_fd) as reply:
            with FileIO(upload) as source, FileIO(result, "r+b") as sink:
                if _is_abandoned(reply):
                    answer = Refused(os.getpid(), is_late=True)
                else:
                    answer = self._answer(message, source, sink, reply)
            # The files are closed now: the worker, once it has the answer, may use them again.
            try:
                send(reply, answer.encode())
            except (BrokenPipeError, ConnectionResetError):  # the client left meanwhile
                pass
            finally:
                self._recorder.end()
        if self._recorder.done == self._config.max_tasks:
            self._is_retiring = True

    def _answer(self, message: bytes, source: FileIO, sink: FileIO, reply: socket.socket) -> Done | Refused:
        began_us = now_us()
        answer = self._try(message, source, sink, reply)
        return replace(answer, service_us=now_us() - began_us) if isinstance(answer, Refused) else answer

    def _try(self, message: bytes, source: FileIO, sink: FileIO, reply: socket.socket) -> Done | Refused:
        try:
            task = Task.decode(message)
            self._recorder.begin(task.number, now_us())
            if 0 < task.deadline_us < now_us():
                return Refused(os.getpid(), is_late=True)
            self._limit_time(self._config.timeout_s)
            return self._run(task, source, sink, reply)
        except OperationRefused as refusal:
            self._is_retiring = isinstance(refusal.__cause__, MemoryError)
            return Refused(os.getpid(), error=refusal)
        except Exception as error:  # noqa: BLE001 it costs this request, not the engine
            if isinstance(error, OSError) and (error.errno in NO_ROOM or not has_room(sink)):
                return Refused(os.getpid(), is_out_of_room=True)
            self._is_retiring = isinstance(error, MemoryError)
            return Refused(os.getpid(), traceback=_describe(error))  # our own bug
        finally:
            self._limit_time(0)

    def _run(self, task: Task, source: FileIO, sink: FileIO, reply: socket.socket) -> Done:
        queue_us = now_us() - task.sent_us
        spec = self._config.operations[task.operation]
        if spec.version != task.version:
            raise LookupError(f"there is version {spec.version} of {task.operation}, not {task.version}")
        sink.seek(0)  # another engine may have died over this task
        clock = _StageClock(spec.stages, partial(self._report, reply, spec))
        outcome = self._runs[task.operation](source, sink, task.parameters, self._config.limits, clock)
        if not has_room(sink):
            raise OSError(errno.ENOSPC, "the last write to the sink was short")
        spent = Spent(queue_us, now_us() - clock.started_us, clock.stages_us)
        return Done(outcome, spent, os.getpid())

    def _report(self, reply: socket.socket, spec: RunSpec, stages: int) -> None:
        """Note that a stage has ended, and report it for a background task, unless the answer will."""
        self._recorder.pass_stages(stages)
        if self._config.is_background and stages < len(spec.stages):
            with suppress(OSError):  # the queue is full, or the receiver is gone
                reply.send(Progress(stages).encode(), socket.MSG_DONTWAIT)


def _is_abandoned(reply: socket.socket) -> bool:
    """Say whether the worker has given the task up: its end is shut for writing, or closed."""
    poll = select.poll()
    poll.register(reply, select.POLLRDHUP)
    return bool(poll.poll(0))


def _describe(error: BaseException) -> str:
    """Format an exception as `traceback` does, but without lines of source code: they are in files."""
    frames = [
        (frame.f_code.co_filename, line, frame.f_code.co_name, "")
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    text = "Traceback (most recent call last):\n" + "".join(traceback.format_list(frames))
    text += f"{type(error).__name__}: {error}\n"
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text if earlier is None else f"{_describe(earlier)}\nDuring handling of this:\n\n{text}"


def main() -> None:
    """Entry point of the process."""
    config = EngineConfig.decode(sys.argv[1])
    control = socket.socket(fileno=config.control)
    try:
        _work(config, control)
    except BaseException as error:  # noqa: BLE001 our own bug, which only the worker can log
        with suppress(OSError):
            send(control, Ended(_describe(error)).encode())
        os._exit(1)


def _work(config: EngineConfig, control: socket.socket) -> NoReturn:
    gc.disable()  # loading leaves no garbage that is worth looking for
    sandbox.enter(nice=config.nice, memory_bytes=config.memory_bytes)
    lanes = [socket.socket(fileno=descriptor) for descriptor in config.work]
    with FileIO(config.recorder, "r+b") as file:
        recorder = FlightRecorder(file)
    engine = Engine(config, lanes, control, recorder)
    for prepare in {spec.prepare for spec in config.operations.values() if spec.prepare}:
        resolve_name(prepare)()
    sandbox.close_output()  # only now, because its worker logs what a library prints that cannot be loaded
    gc.freeze()  # keeps the garbage collector from scanning what is loaded now
    gc.enable()
    sandbox.limit_files(config.result_bytes + 1)  # has_room tries a byte behind the result
    if config.is_background:  # only now, because its worker waits with a deadline until it is ready
        sandbox.enter_background()
    jail = sandbox.enter_jail() if config.is_jailed else sandbox.Jail()
    engine.serve(Ready(jail.missing), jail.listener)
    os._exit(0)  # Python's own way out makes system calls that an engine at work does not, as do its sockets


if __name__ == "__main__":
    main()
