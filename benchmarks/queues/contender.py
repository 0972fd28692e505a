"""A contender: one system that runs, with its server, its workers, its submitter and its witness."""

import itertools
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Self

import httpx
from redis import Redis

from benchmarks.harness import processes
from benchmarks.harness.server import ROOT, STORE, LiveServer, clean_environ
from benchmarks.harness.waiting import DEADLINE_S, until
from benchmarks.peers.queues.systems import System
from benchmarks.peers.queues.work import WITNESS
from benchmarks.queues.witness import Life, Witness
from server.jobs.embedded import find_program, is_ready

#: As many as the machine that the published figures come from has cores, each with one job at a time.
WORKERS = 2

_WARM_UP_JOBS = 30

#: Of the jobs in our store.
_JOB_KEY = "{flip}:job:"

_CONNECT_S = 1.0
_PREPARE_S = 60.0


class NotReady(Exception):
    """A system did not start, or did not run its first jobs; the text has the end of its log."""


class Contender:
    """One system that runs; to be entered in the main thread.

    Args:
        system: what to run.
        directory: where its data is; its path is short.
        witness: the directory of its witness, in memory if possible.
    """

    def __init__(self, system: System, directory: Path, witness: Path) -> None:
        self.system = system
        self.directory = directory
        self.witness = Witness(witness / system.name)
        self.address = system.address(directory)
        self._numbers = itertools.count(1)
        self._workers: list[subprocess.Popen[str]] = []
        self._server: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True)
        self._log = (self.directory / "output").open("w+")
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        if self.system.prepare is not None:
            prepared = self._launch(self.system.prepare(self.directory))
            try:
                until(lambda: prepared.poll() is not None, _PREPARE_S)
            finally:
                processes.kill_session(prepared.pid)  # it may have started others
            if prepared.wait(DEADLINE_S):
                raise NotReady(f"{self.system.name}: cannot be prepared; the output:\n{self.output()}")
        self.start_server()
        if not until(self.is_server_ready):
            raise NotReady(f"{self.system.name}: its server does not answer; its output:\n{self.output()}")
        self._submitter = self._spawn("submit", stdin=subprocess.PIPE)
        self.supervise()
        everybody = [self._submitter, *self._workers]
        if not until(lambda: all(self.witness.is_online(each.pid) for each in everybody)):
            raise NotReady(f"{self.system.name}: its workers do not start; their output:\n{self.output()}")

    def warm_up(self) -> None:
        """Run some jobs.

        Raises:
            NotReady: they have not ended in time.
        """
        jobs = self.submit(*["empty"] * _WARM_UP_JOBS)
        if not until(lambda: all(life.ends for life in self.witness.lives(jobs)), 3 * DEADLINE_S):
            raise NotReady(f"{self.system.name}: its first jobs have not ended; its output:\n{self.output()}")

    # --- its processes -----------------------------------------------------------------------------------

    def start_server(self) -> None:
        """Start its server, without waiting for it."""
        self._server = self._launch(self.system.server(self.directory, self.address))

    def _launch(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        return processes.start(
            command,
            cwd=self.directory,
            env=clean_environ(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def is_server_ready(self) -> bool:
        """Whether its server answers."""
        return _accepts(self.address)

    def kill_server(self) -> None:
        """Kill its server; it is not started again by itself, except for our service's."""
        assert self._server is not None
        processes.kill_session(self._server.pid)
        self._server.wait(DEADLINE_S)

    def revive_server(self) -> None:
        """Start its server again after it was killed, as a service manager does at once."""
        self.start_server()

    def remove_server(self) -> None:
        """Kill its server for good."""
        self.kill_server()

    def supervise(self) -> None:
        """Start workers until there are enough again, as a service manager does."""
        self._workers = [each for each in self._workers if each.poll() is None]
        while len(self._workers) < WORKERS:
            self._workers.append(self._spawn("work", stdin=subprocess.DEVNULL))

    def kill_process(self, pid: int) -> None:
        """Kill the process that runs a job."""
        os.kill(pid, signal.SIGKILL)

    def kill_worker_of(self, life: Life) -> None:
        """Kill the worker that holds a job that runs, with all of its processes.

        Raises:
            ProcessLookupError: no worker holds it any more.
        """
        for worker in self._workers:
            if life.pids[-1] in processes.of_session(worker.pid):
                processes.kill_session(worker.pid)
                worker.wait(DEADLINE_S)
                return
        raise ProcessLookupError(f"process {life.pids[-1]} has ended")

    def pause(self) -> None:
        """Let its workers take no job: they are stopped (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._of_workers():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _of_workers(self) -> list[int]:
        return [pid for worker in self._workers for pid in processes.of_session(worker.pid)]

    def cpu_s(self) -> float:
        """Return the CPU time that its server and its workers have taken, in seconds; not its submitter."""
        server = [] if self._server is None else processes.of_session(self._server.pid)
        return processes.sum_cpu_s([*server, *self._of_workers()])

    def _spawn(self, role: str, stdin: int) -> "subprocess.Popen[str]":
        own = self.system.own_environ() | {WITNESS: str(self.witness.path)}
        return processes.start(
            self.system.command(role, self.address),
            cwd=ROOT,
            env=clean_environ() | own,
            stdin=stdin,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def close(self) -> None:
        """Kill whatever of it runs."""
        everybody = [*self._workers, getattr(self, "_submitter", None), self._server]
        for process in filter(None, everybody):
            processes.kill_session(process.pid)
            process.wait(DEADLINE_S)
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
        if self._log is not None:
            self._log.close()

    def output(self) -> str:
        """Return the last of what its processes have written."""
        return "".join(
            (self.directory / "output").read_text(errors="replace").splitlines(keepends=True)[-25:]
        )

    # --- its jobs ----------------------------------------------------------------------------------------

    def submit(self, *jobs: str) -> list[str]:
        """Have its submitter submit jobs, one after the other, without waiting for it; return their ids.

        Args:
            jobs: the kind of each, and its arguments.
        """
        ids = [f"j{next(self._numbers)}" for _ in jobs]
        assert self._submitter.stdin is not None
        self._submitter.stdin.write("".join(f"{id} {job}\n" for id, job in zip(ids, jobs, strict=True)))
        self._submitter.stdin.flush()
        return ids

    def wait_for(self, jobs: Sequence[str], deadline_s: float = DEADLINE_S) -> list[Life]:
        """Wait until jobs have ended, but no longer than the deadline; return what has happened to them."""
        until(lambda: self.witness.count_ended(jobs) == len(jobs), deadline_s)
        return self.witness.lives(jobs)

    def result_of(self, life: Life, target: Path) -> bytes:  # noqa: ARG002 of a service
        """Return the result of a flip that has ended.

        Args:
            life: of the job.
            target: where it was to be written.
        """
        return target.read_bytes()


class OurService(Contender):
    """Our service: gunicorn is the server and the workers, and starts its store itself."""

    def _start(self) -> None:
        # The store cannot come back when its program is gone.
        self._program = self.directory / "valkey-server"
        self._program.symlink_to(find_program(None))
        data = self.directory / "data"
        self._store = data / "store" / "valkey.sock"
        with ExitStack() as undo:
            self._service = LiveServer(
                environ={
                    "FLIP_JOBS": "embedded",
                    "FLIP_DATA_DIR": str(data),
                    "FLIP_VALKEY": str(self._program),
                    "WEB_CONCURRENCY": str(WORKERS),
                    "FLIP_JOBS_AT_ONCE": "1",  # as the workers of the others
                    "FLIP_HUNG_AFTER_S": "0",  # they are stopped on purpose
                    "FLIP_SANDBOX": "off",  # its engines write what they do into a file
                    "PYTHONPATH": f"{ROOT / 'benchmarks/peers/queues/witnessed'}:{ROOT}",
                    WITNESS: str(self.witness.path),
                },
                ignore={"request"},
            )
            undo.enter_context(self._service)
            self.address = f"127.0.0.1:{self._service.port}"
            self._submitter = self._spawn("submit", stdin=subprocess.PIPE)
            if not until(lambda: self.witness.is_online(self._submitter.pid)):
                raise NotReady(f"{self.system.name}: its submitter does not start:\n{self.output()}")
            self._undo = undo.pop_all()

    def is_server_ready(self) -> bool:
        """Whether its store answers."""
        return is_ready(self._store)

    def kill_server(self) -> None:
        """Kill its store, with a child that rewrites its data; it starts it again itself."""
        for store in until(lambda: self._service.roles().get(STORE, [])):
            with suppress(ProcessLookupError):
                os.kill(store, signal.SIGKILL)

    def revive_server(self) -> None:
        """Do nothing: the arbiter does."""

    def remove_server(self) -> None:
        """Kill its store, and remove the program that would be started again."""
        self._program.unlink()
        self.kill_server()

    def supervise(self) -> None:
        """Do nothing: the arbiter does."""

    def kill_worker_of(self, life: Life) -> None:
        """Kill the worker that holds a job, with its engines; the engine that runs it may be another's."""
        for each in list(processes.tree(self.holder_of(life))):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)

    def holder_of(self, life: Life) -> int:
        """Return the worker that has claimed a job, as the store knows it.

        Raises:
            ProcessLookupError: none has.
        """
        with Redis(unix_socket_path=str(self._store), decode_responses=True) as store:
            owner = store.hget(f"{_JOB_KEY}{life.location.rpartition('/')[2]}", "owner")
        if owner is None:
            raise ProcessLookupError(f"no worker holds {life.location}")
        return int(str(owner).split(":")[1])  # server.jobs.owners

    def pause(self) -> None:
        """Pause its queue, as an operator does: stopped workers would not take submissions either."""
        httpx.post(f"{self._service.url}/queues/default/pause").raise_for_status()

    def resume(self) -> None:
        """Resume it."""
        httpx.post(f"{self._service.url}/queues/default/resume").raise_for_status()

    def cpu_s(self) -> float:
        """Return the CPU time of all its processes, in seconds."""
        return processes.sum_cpu_s(self._service.processes())

    def close(self) -> None:
        """End it, with its submitter."""
        try:
            super().close()
        finally:
            if hasattr(self, "_undo"):
                self._undo.close()

    def result_of(self, life: Life, target: Path) -> bytes:  # noqa: ARG002 of the others
        """Return the result of a flip that has ended."""
        job = f"{self._service.url}{life.location}"
        httpx.get(job, headers={"Prefer": "wait=20"}, timeout=60).raise_for_status()
        return httpx.get(f"{job}/result", timeout=60).raise_for_status().content


def _accepts(address: str) -> bool:
    """Whether a server listens at a path, or at a host and port."""
    host, _, port = address.rpartition(":")
    family, where = (socket.AF_INET, (host, int(port))) if host else (socket.AF_UNIX, address)
    with socket.socket(family) as client, suppress(OSError):
        client.settimeout(_CONNECT_S)
        client.connect(where)
        return True
    return False
