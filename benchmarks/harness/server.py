"""A real gunicorn on a free port, its log as events, and a deadline on everything."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from benchmarks.harness import processes

ROOT = Path(__file__).parents[2]

#: Long enough for a loaded machine; a test that waits this long fails.
DEADLINE_S = 20.0

Event = dict[str, Any]

#: With Python's own it would speak of asyncio's inner life, and of what its processes hold when they end.
_CHANGES_THE_SERVICE = frozenset(
    {"WEB_CONCURRENCY", "PORT", "PYTHONDEVMODE", "PYTHONASYNCIODEBUG", "PYTHONWARNINGS"}
)


class LiveServer:
    """gunicorn as a user starts it: alone, in the repository's root.

    Args:
        arguments: gunicorn's, after the address.
        environ: added to a clean environment.
        ignore: events that are not kept; a long run has very many requests.
        root: where it is started; a copy of the repository, for tests that break it.
    """

    def __init__(
        self,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        ignore: Collection[str] = (),
        root: Path = ROOT,
    ) -> None:
        self._root = root
        self._command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", *arguments]
        self._environ = clean_environ() | dict(environ or {})
        self.events: list[Event] = []
        self._ignore = frozenset(ignore)
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        # A session of its own, by which everything it starts can be found again.
        self._process = subprocess.Popen(
            self._command,
            cwd=self._root,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()
        try:
            self.url: str = self.wait_for("arbiter_listening")["address"]
            self.wait_for("worker_online", count=self._number_of_workers())
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._process.poll() is None:
                self.stop()
        finally:
            self._kill()

    @property
    def pid(self) -> int:
        """The arbiter's."""
        return self._process.pid

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return int(self.url.rpartition(":")[2])

    def stop(self) -> int:
        """Ask it to end as an operator does, and return its exit code; having to kill it is a failure."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return code

    def wait_for(self, event: str, *, after: int = 0, count: int = 1, **facts: object) -> Event:
        """Wait until the log has an event with these facts, and return it.

        Args:
            event: its name.
            after: how many events of the log to leave out; `len(server.events)` taken before an act.
            count: how many such events there must be; the last one is returned.
            facts: fields that it must have.
        """

        def found() -> list[Event]:
            return [
                seen
                for seen in self.events[after:]
                if seen["event"] == event and facts.items() <= seen.items()
            ]

        with self._news:
            if (
                not self._news.wait_for(
                    lambda: len(found()) >= count or not self._reader.is_alive(), DEADLINE_S
                )
                or len(found()) < count
            ):
                raise AssertionError(f"no {event} {facts} in the log:\n{self.log}")
            return found()[count - 1]

    @property
    def log(self) -> str:
        """What it has logged so far, for messages of failed tests."""
        return "\n".join(map(str, self.events))

    def workers(self) -> list[dict[str, Any]]:
        """What `/status` says of every worker."""
        workers: list[dict[str, Any]] = httpx.get(f"{self.url}/status", timeout=DEADLINE_S).json()["workers"]
        return workers

    def processes(self) -> list[int]:
        """Every process of its session that has not ended, the oldest first: the arbiter."""
        return processes.of_session(self.pid)

    @staticmethod
    def wait_until_gone(pid: int) -> None:
        """Wait for the end of a process that is not our child."""
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        with open(descriptor, "rb") as process:  # noqa: PTH123 a descriptor has no path
            ended, _, _ = select.select([process], [], [], DEADLINE_S)
        assert ended, f"process {pid} did not end"

    def _number_of_workers(self) -> int:
        return int(self._environ.get("WEB_CONCURRENCY", 0)) or len(os.sched_getaffinity(0))

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                event = _parse(line)
                if event["event"] not in self._ignore:
                    with self._news:
                        self.events.append(event)
                        self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def _kill(self) -> None:
        processes.kill_session(self.pid)
        self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)


def clean_environ() -> dict[str, str]:
    """The environment without what would change the service under test."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FLIP_", "GUNICORN_")) and name not in _CHANGES_THE_SERVICE
    }


def _parse(line: str) -> Event:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    return event if isinstance(event, dict) and "event" in event else {"event": line.rstrip("\n")}
