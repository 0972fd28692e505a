"""The engine: a CPU process that transforms one picture at a time and knows nothing of HTTP.

Started by its worker as `python -m server.cluster.engine WORK_FD CONTROL_FD`; it takes jobs from the
shared work socket and exits when the control socket closes, so none outlives its worker.
"""

import gc
import mmap
import os
import select
import signal
import socket
import sys
import traceback
from collections import Counter
from io import FileIO
from typing import TYPE_CHECKING, cast

from server.cluster.work import Done, Job, Refused, Spent, now_us, receive, send
from server.errors import ImageError
from server.imaging.pipeline import Stage, process

if TYPE_CHECKING:
    from server.imaging.codec import Source

#: Signals that are meant for the arbiter and its workers, but reach everybody when a terminal or a
#: service manager sends them to the whole group. The worker decides when its engine ends.
_NOT_FOR_US = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class _Laps:
    """Adds up the time between the ends of stages."""

    def __init__(self) -> None:
        self.spent: Counter[Stage] = Counter()
        self._last_us = now_us()

    def __call__(self, stage: Stage) -> None:
        now = now_us()
        self.spent[stage] += now - self._last_us
        self._last_us = now


def _transform(message: bytes, upload: int, sink: FileIO) -> Done | Refused:
    laps = _Laps()
    try:
        job = Job.decode(message)
        queue_us = now_us() - job.sent_us
        size = os.fstat(upload).st_size
        # An empty mapping is an error, and an empty picture is refused by its name.
        source = mmap.mmap(upload, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        sink.seek(0)  # another engine may have died over this job
        with source:
            result = process(cast("Source", source), sink, job.recipe, job.limits, laps)
    except ImageError as refusal:
        return Refused(os.getpid(), error=refusal)
    except Exception:  # noqa: BLE001 our own bug: it costs this request, not the engine
        return Refused(os.getpid(), traceback=traceback.format_exc())
    spent = Spent(queue_us, laps.spent["decode"], laps.spent["transform"], laps.spent["encode"])
    return Done(result, spent, os.getpid())


def _serve_one(work: socket.socket) -> None:
    try:
        message, (upload, result, reply_fd) = receive(work, 3)
    except BlockingIOError:  # another engine was faster
        return
    with FileIO(upload), FileIO(result, "r+b") as sink, socket.socket(fileno=reply_fd) as reply:
        if _is_abandoned(reply):
            return
        outcome = _transform(message, upload, sink)
        try:
            send(reply, outcome.encode())
        except (BrokenPipeError, ConnectionResetError):  # the client left meanwhile
            return


def _is_abandoned(reply: socket.socket) -> bool:
    """Say whether the worker has closed its end, because its client left."""
    poll = select.poll()
    poll.register(reply, 0)
    return bool(poll.poll(0))


def serve(work: socket.socket, control: socket.socket) -> None:
    """Work until the control socket closes.

    Args:
        work: the engines' end of the work socket, non-blocking.
        control: one byte is written to it when the engine is ready; its end of file ends the engine.
    """
    poll = select.poll()
    poll.register(work, select.POLLIN)
    poll.register(control, select.POLLIN)
    control.send(b"!")
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if control.fileno() in ready:
            return
        _serve_one(work)


def _silence_decoders() -> None:
    """Keep what C libraries print about a picture out of the log, and our own tracebacks in it."""
    sys.stderr = os.fdopen(os.dup(2), "w")
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 no path of ours
        os.dup2(nowhere.fileno(), 2)


def main() -> None:
    """Entry point of the process."""
    work_fd, control_fd, nice = (int(argument) for argument in sys.argv[1:])
    for number in _NOT_FOR_US:
        signal.signal(number, signal.SIG_IGN)
    _silence_decoders()
    # Workers only move bytes: they go first, or a health check waits behind a picture.
    os.nice(nice)
    gc.freeze()  # what is loaded now stays for good; no collection has to look at it again
    with socket.socket(fileno=work_fd) as work, socket.socket(fileno=control_fd) as control:
        serve(work, control)


if __name__ == "__main__":
    main()
