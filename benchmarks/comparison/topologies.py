"""What is measured: ways to run a service, each started on a free port, and ended with all it started."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from benchmarks.harness import processes
from benchmarks.harness.findings import until
from benchmarks.harness.server import clean_environ

ROOT = Path(__file__).parents[2]

#: A server that does not answer by then does not start.
_START_S = 40.0

#: A server that has not ended by then is killed.
_STOP_S = 15.0

#: How much of a log a person wants to read.
_LAST_LINES = 25

# A killed benchmark must leave nothing behind: the kernel ends its children with it (prctl(2)). Said by a
# process of its own, because nothing may happen between fork and exec in a program with threads.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[3]))
if os.getppid() != int(sys.argv[1]):
    sys.exit("its parent is gone")
if sys.argv[2]:
    os.sched_setaffinity(0, map(int, sys.argv[2].split(",")))
os.execvp(sys.argv[4], sys.argv[4:])
"""


class DidNotStart(Exception):
    """A server did not come up; the text has its log."""


@dataclass(frozen=True, slots=True)
class Topology:
    """One way to run a service.

    Attributes:
        name: short, for files.
        title: for people.
        workers: how many processes compute.
        command: with {port} in it.
        environ: added to a clean environment; with {port} in it too.
        query: parameters of each request.
        quality: whether its JPEGs are encoded as ours are ("matched"), or as it does by itself ("default").
        is_peer: it is none of ours.
        design: what it shares with others that differ in size or quality only.
        cores: those that it may use; empty for all.
    """

    name: str
    title: str
    workers: int
    command: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    quality: str = "matched"
    is_peer: bool = False
    design: str = "flipcluster"
    cores: Sequence[int] = ()


def ours(name: str, title: str, workers: int, *, query: str = "", cores: Sequence[int] = ()) -> Topology:
    """Flipcluster with so many workers."""
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:{port}", "-w", str(workers)]
    return Topology(name, title, workers, command, query=query, cores=cores)


def start(
    command: Sequence[str],
    *,
    cores: Sequence[int] = (),
    last_signal: signal.Signals = signal.SIGTERM,
    **options: object,
) -> "subprocess.Popen[str]":
    """Start a process that ends when this one does, however that ends; call it from the main thread.

    Args:
        command: what it runs.
        cores: those that it may use; empty for all.
        last_signal: what it gets then; one with children of its own must be able to end them.
        options: of subprocess.Popen.
    """
    own = [str(os.getpid()), ",".join(map(str, cores)), str(last_signal.value)]
    wrapped = [sys.executable, "-c", _DIE_WITH_PARENT, *own, *command]
    return subprocess.Popen(wrapped, text=True, start_new_session=True, **options)  # type: ignore[call-overload,no-any-return]


class Server:
    """A topology that runs.

    Raises:
        DidNotStart: it ended, or did not answer in time.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    def __enter__(self) -> Self:
        port = _free_port()
        fill = {"{port}": str(port)}
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile("w+")
        self._process = start(
            [_filled(word, fill) for word in self.topology.command],
            cores=self.topology.cores,
            cwd=ROOT,
            env=clean_environ()
            | {name: _filled(value, fill) for name, value in self.topology.environ.items()},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the process that all others come from."""
        return self._process.pid

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        """The end of what it has said so far."""
        self._log.seek(0)
        return "".join(self._log.readlines()[-_LAST_LINES:])

    def restart(self) -> None:
        """End it and start it anew, on another port."""
        self.stop()
        self.__enter__()

    def stop(self) -> None:
        """End it as an operator does, and kill what is left of it."""
        if self._log.closed:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            processes.kill_session(self._process.pid)
            self._process.wait(_STOP_S)
            self._log.close()

    def _is_of(self, worker: str | None) -> bool:
        """Somebody else may have taken the port meanwhile; peers do not say who answers."""
        return worker is None or int(worker) in processes.tree(self.pid)

    def _has_all_workers(self) -> bool:
        """The first worker answers when others of a cluster may not be there yet."""
        workers = self.topology.workers
        each = 1 if self.topology.is_peer else 2  # ours have an engine
        return workers == 1 or len(list(processes.tree(self.pid))) > each * workers

    def _wait_until_ready(self) -> None:
        if not until(self._is_ready, _START_S):
            raise DidNotStart(
                f"{self.topology.title} did not answer within {_START_S:.0f} s; its log:\n{self.log}"
            )

    def _is_ready(self) -> bool:
        if (code := self._process.poll()) is not None:
            raise DidNotStart(f"{self.topology.title} ended with exit code {code}; its log:\n{self.log}")
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=1) as answer:  # noqa: S310 our own
                return self._is_of(answer.headers.get("X-Worker-Pid")) and self._has_all_workers()
        except OSError:  # also what urllib raises
            return False


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
