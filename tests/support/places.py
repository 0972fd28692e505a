"""Places to run the service in: mounts, limits and a clock of its own; only root can make most of them."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.live_server import ROOT, LiveServer

#: Another user without capabilities, but for reading the files of this installation wherever they are.
AS_A_USER = (
    *("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", "--no-new-privs"),
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


def in_place(command: Sequence[str], mounts: Sequence[str] = (), wrapper: Sequence[str] = ()) -> list[str]:
    """Wrap a command so that it runs with mounts of its own, which end with it.

    Args:
        command: what is to run.
        mounts: lines of shell that root runs before.
        wrapper: a program that becomes the command, with its arguments.
    """
    shell = "\n".join(["set -e", *mounts, f"exec {shlex.join([*wrapper, *command])}"])
    return ["unshare", "--mount", "sh", "-c", shell] if mounts else [*wrapper, *command]


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


def with_clock(directory: Path) -> dict[str, str]:
    """Return an environment in which the file `clock` in a directory sets the clock wrong."""
    (directory / "sitecustomize.py").write_text(CLOCK)
    return {"PYTHONPATH": f"{directory}:{ROOT}", "CLOCK": str(directory / "clock")}
