"""What all queues carry: jobs that tell a witness when they start and end; and the frame of a small program.

A job is a line of text, `ID KIND ARGUMENTS`. The witness is a file that every process appends lines to (a
write to a file that was opened with O_APPEND is atomic), so that starts, ends, losses and second runs are
counted for all systems by the same code and never by the system under test. This module runs in every worker,
in the environment of its system, so it needs nothing but the standard library, and Pillow for a flip.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

#: Tells a system's worker and submitter where its witness is, and whether results are to be on the disk.
WITNESS, IS_DURABLE = "QUEUES_WITNESS", "QUEUES_IS_DURABLE"


#: How often a worker looks that has to poll and has found nothing, in seconds.
POLL_S = "QUEUES_POLL_S"

#: How much of an error the witness is told, in characters.
_MOST_SAID = 120


@cache
def _witness() -> int:
    return os.open(os.environ[WITNESS], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note(event: str, job: str, detail: str = "") -> None:
    """Tell the witness what happened to a job, in which process, and when by the monotonic clock."""
    os.write(_witness(), f"{event} {job} {os.getpid()} {time.monotonic():.6f} {detail}\n".encode())


def run(job: str) -> None:
    """Do a job."""
    id, kind, *arguments = job.split(" ")
    note("start", id)
    _KINDS[kind](*arguments)
    note("end", id)


def _nothing() -> None:
    pass


def sleep(seconds: str) -> None:
    """Sleep, as a job of that kind does."""
    time.sleep(float(seconds))


def _flip(source: str, target: str, quality: str) -> None:
    from PIL import Image  # noqa: PLC0415 only a flip may pay for it

    with Image.open(source) as image, Path(target).open("wb") as file:
        turned = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        turned.save(file, "JPEG", quality=int(quality), subsampling="4:2:0")
        if os.environ.get(IS_DURABLE):
            file.flush()
            os.fsync(file.fileno())


_KINDS: dict[str, Callable[..., None]] = {"empty": _nothing, "sleep": sleep, "flip": _flip}


def main(work: Callable[[str], None] | None, connect: Callable[[str], Callable[[str], object]]) -> None:
    """Run as a worker or as a submitter, as the command line says: `work ADDRESS` or `submit ADDRESS`.

    A submitter reads jobs from its standard input, and tells the witness when it began to submit each, and
    whether that was acknowledged or refused.

    Args:
        work: works for the server at an address until the process is killed; None for a server that has
            workers of its own.
        connect: returns a function that submits a job and returns when it is acknowledged; if it returns a
            text, the witness is told that too.
    """
    role, address = sys.argv[1:]
    if role == "work" and work is not None:
        note("online", "-")
        work(address)
        return
    submit = connect(address)
    note("online", "-")
    for line in sys.stdin:
        job = line.rstrip("\n")
        id = job.partition(" ")[0]
        note("submit", id)
        try:
            said = submit(job)
        except Exception as error:  # noqa: BLE001 whatever a client raises is its refusal
            note("refused", id, " ".join(f"{type(error).__name__}: {error}".split())[:_MOST_SAID])
        else:
            note("acknowledged", id, said if isinstance(said, str) else "")


def is_durable() -> bool:
    """Whether the system is to lose nothing, or to run as it is shipped."""
    return bool(os.environ.get(IS_DURABLE))
