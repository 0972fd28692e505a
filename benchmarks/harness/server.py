"""Servers as an operator starts them: a free port, a session of their own, a deadline on everything."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import httpx

from benchmarks.harness import processes
from benchmarks.harness.waiting import DEADLINE_S, until
from server.cluster.cpus import usable_cores

ROOT = Path(__file__).parents[2]

#: Host and port.
Address = tuple[str, int]

#: What the service logs, as one JSON object for each line.
Event = dict[str, Any]

ARBITER, WORKER, ENGINE, STORE = "arbiter", "worker", "engine", "store"

#: What the command lines of processes have in them; the store may be any program that speaks its protocol.
_MARKS = {ENGINE: "server.cluster.engine", WORKER: "gunicorn", STORE: "unixsocket"}

_HOST = "127.0.0.1"

#: How many lines of a log go into an error message.
_LAST_LINES = 25

#: Python's own variables would add warnings of asyncio and about resources at exit to the log.
#: Our tests set SSL_CERT_DIR for their own clients.
_CHANGES_THE_SERVICE = frozenset(
    {"WEB_CONCURRENCY", "PORT", "PYTHONDEVMODE", "PYTHONASYNCIODEBUG", "PYTHONWARNINGS", "SSL_CERT_DIR"}
)


class DidNotStart(Exception):
    """A server did not answer in time; the text has the end of its log."""


class Server:
    """A command that listens on 127.0.0.1 and answers `GET /healthz`, with its log in a temporary file.

    It runs in the repository's root. What does not stop in time when asked to is killed, with all of its
    session, and so it is when this process ends in any way. Enter it in the main thread.

    Args:
        command: what to run; `{port}` in it, and in the values of `environ`, becomes a free port.
        environ: added to a clean environment.
        title: for error messages.
        root: the directory that it starts in.
        cores: the cores that it may use; empty for all.
        fewest_processes: how many it consists of once it is ready.
        start_s: how long it may take to start.

    Raises:
        DidNotStart: on entry.
    """

    def __init__(  # noqa: PLR0913 all but one have a default
        self,
        command: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        title: str = "the server",
        root: Path = ROOT,
        cores: Sequence[int] = (),
        fewest_processes: int = 1,
        start_s: float = DEADLINE_S,
    ) -> None:
        self._command = command
        self._environ = dict(environ or {})
        self._title = title
        self._root = root
        self._cores = cores
        self._fewest_processes = fewest_processes
        self._start_s = start_s

    def __enter__(self) -> Self:
        self._launch()
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._process.poll() is None:
                self.stop()
        finally:
            self.kill()

    @property
    def pid(self) -> int:
        """The process that started all others: of the service, the arbiter."""
        return self._process.pid

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def address(self) -> Address:
        """Host and port."""
        return _HOST, self.port

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://{_HOST}:{self.port}"

    @property
    def log(self) -> str:
        """The last lines that it has written, for error messages."""
        self._file.seek(0)
        return "".join(self._file.readlines()[-_LAST_LINES:])

    def processes(self) -> list[int]:
        """Return every process of its session that has not ended, the oldest first."""
        return processes.of_session(self.pid)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to its first process."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait until its first process has ended, and return the exit code."""
        return self._process.wait(DEADLINE_S)

    def stop(self) -> int:
        """Stop it as an operator does, and return its exit code; one that has to be killed is a failure."""
        self.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Kill what is left of it."""
        processes.kill_session(self.pid)
        self.wait()
        self._close_log()

    def _launch(self) -> None:
        self._port = free_port()
        self._file = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed by kill()
        self._process = processes.start(
            [self._filled(word) for word in self._command],
            cores=self._cores,
            cwd=self._root,
            env=clean_environ() | {name: self._filled(value) for name, value in self._environ.items()},
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )

    def _close_log(self) -> None:
        self._file.close()

    def _filled(self, text: str) -> str:
        return text.replace("{port}", str(self._port))

    def _wait_until_ready(self) -> None:
        if not until(self._is_ready, self._start_s):
            raise DidNotStart(
                f"{self._title} did not answer within {self._start_s:.0f} s; its log:\n{self.log}"
            )

    def _is_ready(self) -> bool:
        if (code := self._process.poll()) is not None:
            raise DidNotStart(f"{self._title} ended with exit code {code}; its log:\n{self.log}")
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=1) as answer:  # noqa: S310 our own
                return self._is_own(answer.headers.get("X-Worker-Pid")) and self._has_all_processes()
        except OSError:  # urllib's errors too
            return False

    def _is_own(self, worker: str | None) -> bool:
        # Another program may have taken the port meanwhile. Peers do not say which process answers.
        return worker is None or int(worker) in processes.tree(self.pid)

    def _has_all_processes(self) -> bool:
        # The first worker of a cluster answers when others may not have started.
        return len(list(processes.tree(self.pid))) >= self._fewest_processes


class LiveServer(Server):
    """The service: gunicorn as a user starts it, with its log as events.

    Args:
        arguments: gunicorn's, after the address.
        address: where it listens; None when its configuration says that.
        environ: added to a clean environment.
        ignore: events that are not kept; a long run has very many requests.
        root: the directory that it starts in; a copy of the repository, for tests that break it.
        start_s: how long it may take to start.
    """

    def __init__(
        self,
        *arguments: str,
        # Port 0: gunicorn says in its log which port the kernel has given it.
        address: str | None = f"{_HOST}:0",
        environ: Mapping[str, str] | None = None,
        ignore: Collection[str] = (),
        root: Path = ROOT,
        start_s: float = DEADLINE_S,
    ) -> None:
        bind = () if address is None else ("-b", address)
        command = [sys.executable, "-m", "gunicorn", *bind, *arguments]
        super().__init__(command, environ=environ, root=root, start_s=start_s)
        self.events: list[Event] = []
        self._ignored = tuple(f'"event": "{event}"' for event in ignore)
        self._news = threading.Condition()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rpartition(":")[2])

    @property
    def url(self) -> str:
        """Scheme, host and port, as it logs them."""
        return self._url

    @property
    def log(self) -> str:
        """What it has logged so far, for messages of failed tests."""
        return "\n".join(map(str, self.events))

    def wait(self) -> int:
        """Wait until its first process has ended and its log is complete, and return the exit code."""
        code = super().wait()
        self._reader.join(DEADLINE_S)
        return code

    def wait_for(
        self, event: str, *, after: int = 0, count: int = 1, deadline_s: float = DEADLINE_S, **facts: object
    ) -> Event:
        """Wait until the log has an event with these facts, and return it.

        Args:
            event: its name.
            after: how many events of the log to leave out; `len(server.events)` taken before an act.
            count: how many such events there must be; the last one is returned.
            deadline_s: how long to wait.
            facts: fields that it must have.
        """

        def found() -> list[Event]:
            return [
                seen
                for seen in self.events[after:]
                if seen["event"] == event and facts.items() <= seen.items()
            ]

        with self._news:
            self._news.wait_for(lambda: len(found()) >= count or not self._reader.is_alive(), deadline_s)
            if len(found()) < count:
                raise AssertionError(f"no {event} {facts} in the log:\n{self.log}")
            return found()[count - 1]

    def workers(self) -> list[dict[str, Any]]:
        """Return what `/status` has about every worker."""
        workers: list[dict[str, Any]] = httpx.get(f"{self.url}/status", timeout=DEADLINE_S).json()["workers"]
        return workers

    def roles(self) -> dict[str, list[int]]:
        """Return its processes by role, the oldest first; a store is there only with jobs."""
        first, *others = self.processes()
        roles: dict[str, list[int]] = {ARBITER: [first], WORKER: [], ENGINE: []}
        for pid, command in _commands(others):
            role = next((role for role, mark in _MARKS.items() if mark in command), None)
            if role is not None:  # a preflight has none
                roles.setdefault(role, []).append(pid)
        return roles

    @staticmethod
    def wait_until_gone(pid: int) -> None:
        """Wait until a process has ended that is not our child."""
        processes.wait_until_gone(pid, DEADLINE_S)

    def _launch(self) -> None:
        self._process = processes.start(
            self._command,
            cwd=self._root,
            env=clean_environ() | self._environ,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read_log, args=(self._process.stderr,))
        self._reader.start()

    def _close_log(self) -> None:
        """Do nothing: the reader closes its pipe."""

    def _wait_until_ready(self) -> None:
        self._url: str = self.wait_for("arbiter_listening", deadline_s=self._start_s)["address"]
        self.wait_for("worker_online", count=self._number_of_workers(), deadline_s=self._start_s)

    def _number_of_workers(self) -> int:
        return int(self._environ.get("WEB_CONCURRENCY", 0)) or usable_cores()

    def _read_log(self, log: IO[str]) -> None:
        with log as lines:
            for line in lines:
                if not any(ignored in line for ignored in self._ignored):
                    with self._news:
                        self.events.append(_parsed(line))
                        self._news.notify_all()
        with self._news:
            self._news.notify_all()


class LiveWorker(LiveServer):
    """A worker without a web server, with its log as events.

    Args:
        environ: added to a clean environment.
        wrapper: a program that becomes the worker, with its arguments.
    """

    def __init__(self, environ: Mapping[str, str], wrapper: Sequence[str] = ()) -> None:
        super().__init__(environ=environ)
        self._command = [*wrapper, sys.executable, "-m", "server.worker"]

    def _wait_until_ready(self) -> None:
        self.wait_for("job_worker_online", deadline_s=self._start_s)


def faulty_environ(directory: Path) -> dict[str, str]:
    """Return an environment in which the file `fault.PART` in a directory makes that part raise."""
    return {"PYTHONPATH": f"{ROOT / 'benchmarks' / 'harness' / 'faults'}:{ROOT}", "FAULTS": str(directory)}


def clean_environ() -> dict[str, str]:
    """Return the environment without what would change the service under test, and with jobs off.

    A server that is to have jobs is given `FLIP_JOBS` and a `FLIP_DATA_DIR` of its own: on the default one
    all would share one store.
    """
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FLIP_", "GUNICORN_")) and name not in _CHANGES_THE_SERVICE
    }
    return clean | {"FLIP_JOBS": "off"}


#: Below those that Linux gives to clients by default (ip_local_port_range of ip(7)).
_PORTS = range(10_000, 32_768)


def free_port() -> int:
    """Return a port of 127.0.0.1 that no server listens on, and that no client is given by the kernel.

    Between this and the start of a server a client could take any port that the kernel gives out.
    """
    while True:
        port = random.choice(_PORTS)  # noqa: S311 no secret
        with contextlib.suppress(OSError), socket.create_server((_HOST, port)):
            return port


def _commands(pids: Collection[int]) -> Iterator[tuple[int, str]]:
    for pid in pids:
        try:
            yield pid, processes.command(pid)
        except OSError:  # it has ended
            continue


def _parsed(line: str) -> Event:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    return event if isinstance(event, dict) and "event" in event else {"event": line.rstrip("\n")}
