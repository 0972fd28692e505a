"""Places to run the service in: mounts, limits and a clock of its own; only root can make most of them."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from support.live_server import DEADLINE_S, ROOT, LiveServer

#: A user of this process alone: RLIMIT_NPROC counts all processes of a user, also those of other tests.
USER = 100_000 + os.getpid()

#: Another user without capabilities, but for reading the files of this installation wherever they are.
AS_A_USER = (
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"),
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
    "--bounding-set=-all,+dac_read_search",
)

#: Lets the process, and all that it starts, have no memory files; the number of the error follows.
WITHOUT_MEMFD = (sys.executable, str(Path(__file__).with_name("no_memfd.py")))

#: `time.time` goes wrong by as many seconds as a file says that an environment variable names.
CLOCK = """
import os, time

def time_of_day(true=time.time):
    try:
        with open(os.environ["CLOCK"]) as file:
            return true() + float(file.read() or 0)
    except OSError:
        return true()

time.time = time_of_day
"""


@contextmanager
def control_group(controller: str) -> Iterator[Path]:
    """Make a control group with a controller, in either version of cgroups, for as long as the block runs."""
    v1 = Path("/sys/fs/cgroup") / controller
    group = (v1 if v1.is_dir() else v1.parent) / f"flipcluster-test-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


@cache
def why_not(need: str) -> str | None:
    """Say why something that a place needs cannot be made here; None when it can.

    Args:
        need: `mounts`, another `user`, or the controller of a control group.
    """
    if need in {"mounts", "user"}:
        try_it = (
            in_place(["true"], ["mount -t tmpfs tmpfs /mnt"]) if need == "mounts" else [*AS_A_USER, "true"]
        )
        tried = subprocess.run(try_it, check=False, capture_output=True, text=True, timeout=DEADLINE_S)
        return None if tried.returncode == 0 else tried.stderr.strip()
    try:
        with control_group(need):
            return None
    except OSError as error:
        return str(error)


def in_place(command: Sequence[str], mounts: Sequence[str] = (), wrapper: Sequence[str] = ()) -> list[str]:
    """Wrap a command so that it runs with mounts of its own, which end with it.

    Args:
        command: what is to run.
        mounts: lines of shell that root runs before.
        wrapper: a program that becomes the command, with its arguments.
    """
    shell = "\n".join(["set -e", *mounts, f"exec {shlex.join([*wrapper, *command])}"])
    return ["unshare", "--mount", "sh", "-c", shell] if mounts else [*wrapper, *command]


def within(group: Path) -> list[str]:
    """Return a wrapper that puts the command into a control group."""
    return ["sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh"]


class PlacedServer(LiveServer):
    """The service in another place.

    Args:
        arguments: gunicorn's.
        mounts, wrapper: as in `in_place`.
        environ: added to a clean environment.
        workers: how many there are to be.
    """

    def __init__(
        self,
        *arguments: str,
        mounts: Sequence[str] = (),
        wrapper: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        workers: int | None = 1,
    ) -> None:
        self._workers = workers or 1
        given = {"WEB_CONCURRENCY": str(workers)} if workers else {}
        super().__init__(*arguments, environ={**given, **(environ or {})})
        self._command = in_place(self._command, mounts, wrapper)

    def _number_of_workers(self) -> int:
        return self._workers


#: Lets a process start no thread while the file is there that an environment variable names.
NO_THREADS = """
import os, threading

def start(thread, true=threading.Thread.start):
    if os.path.exists(os.environ["NO_THREADS"]):
        raise RuntimeError("can't start new thread")
    true(thread)

threading.Thread.start = start
"""


def without_threads(directory: Path, *, at_once: bool = True) -> dict[str, str]:
    """Return an environment in which no thread can be started while `no-threads` in a directory is there.

    Args:
        directory: an empty one.
        at_once: whether it is there from the start.
    """
    (directory / "sitecustomize.py").write_text(NO_THREADS)
    if at_once:
        (directory / "no-threads").touch()
    return {"PYTHONPATH": f"{directory}:{ROOT}", "NO_THREADS": str(directory / "no-threads")}


def with_clock(directory: Path) -> dict[str, str]:
    """Return an environment in which the file `clock` in a directory sets the clock wrong."""
    (directory / "sitecustomize.py").write_text(CLOCK)
    return {"PYTHONPATH": f"{directory}:{ROOT}", "CLOCK": str(directory / "clock")}
