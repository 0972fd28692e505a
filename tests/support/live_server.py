"""A real gunicorn, a real curl, and commands in the repository's root, with a deadline on everything."""

import subprocess
from collections.abc import Sequence

from benchmarks.harness.server import ROOT, Event, LiveServer, LiveWorker, clean_environ
from benchmarks.harness.waiting import DEADLINE_S

__all__ = ["DEADLINE_S", "ROOT", "Event", "LiveServer", "LiveWorker", "clean_environ", "curl", "run"]


def curl(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the real curl."""
    return subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", str(DEADLINE_S), *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=2 * DEADLINE_S,
    )


def run(command: Sequence[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root to its end."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environ() | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
