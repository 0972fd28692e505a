"""The arbiter: gunicorn's hooks, which make a cluster of its workers."""

import asyncio
import contextlib
import ctypes
import gc
import importlib.util
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import gunicorn.arbiter
from gunicorn.errors import HaltServer
from gunicorn.sock import ssl_context

from server import place
from server.cluster.backoff import Backoff
from server.cluster.ledger import Ledger
from server.cluster.liveness import LOOK_EVERY_S, STOPPED, most_looks, read_state
from server.cluster.membership import Membership
from server.cluster.memory_files import directory_instead
from server.cluster.quarantine import Quarantine
from server.cluster.scoreboard import ROWS, Cell, Scoreboard, State
from server.cluster.work_socket import WorkSocket
from server.gateway import preflight
from server.gateway.preflight import STOP_SIGNALS
from server.gateway.worker import Worker
from server.imaging.jpeg import kernel
from server.jobs.blobs import NO_OBSTORE, Directory, UnsuitableBlobs
from server.jobs.embedded import EmbeddedStore, StoreNotStarted
from server.logs import get_logger
from server.settings import Settings

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.config import Config

log = get_logger("server.arbiter")

#: How long a reload waits for the first new worker while the old ones serve, in seconds.
_BOOT_S = float(preflight.DEADLINE_S)

#: How often it looks, in seconds.
_LOOK_AGAIN_S = 0.05

#: After so many seconds without a turn of its loop, which has one each second, the arbiter was stopped, as in
#: a paused container, or busy with a preflight.
_AWAKE_S = 2.0

#: How much longer than `graceful_timeout` a stop may take, in seconds: workers end by themselves by then.
_END_S = 2

#: Signals that mean no more when several wait together.
_ONCE_IS_ENOUGH = (signal.SIGHUP, signal.SIGUSR2)

# gunicorn limits its stop by the time of day: a clock that is set forward meanwhile would cut off requests.
gunicorn.arbiter.time = SimpleNamespace(time=time.monotonic, monotonic=time.monotonic, sleep=time.sleep)


class Hooks:
    """gunicorn's server hooks, with what the workers of one configuration share.

    A reload makes all of it again: old workers finish among themselves, whatever changed between versions.

    Args:
        settings: passed on to the workers.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scoreboard = Scoreboard()
        self._ledger = Ledger()
        self._work = WorkSocket()
        self._quarantine = Quarantine(
            settings.quarantine_s, settings.quarantine_dir, settings.quarantine_max_bytes
        )
        self._backoff = Backoff()
        self._delays_s: list[float] = []  # one for each crash after which no worker has been forked yet
        self._being_forked: list[Worker] = []  # at most one
        self._is_reloaded = False
        self._predecessors: list[Worker] = []  # those that a reload is to replace
        self._look_at_s = 0.0
        self._awake_s = time.monotonic()
        self._is_stopping = False
        self._stopped_looks: dict[int, int] = {}  # of each worker that is stopped, by its pid
        self._halt_at_s: float | None = None  # of the monotonic clock; when a stop has been announced
        if settings.store_url is not None:
            importlib.import_module("server.web.job_routes")  # before the fork: workers share its memory

    def on_starting(self, server: "Arbiter") -> None:
        """Refuse what gunicorn would start and the cluster could not keep running."""
        reason = why_not(server.cfg, server.worker_class, server.num_workers)
        reason = reason or why_no_tls(server.cfg) or why_no_descriptor(server.cfg)
        reason = reason or place.why_not_here(self._settings, server.num_workers)
        if reason is None and self._settings.jobs != "off":
            if self._settings.blob_url is None:
                reason = why_no_jobs(server.cfg)
            elif importlib.util.find_spec("obstore") is None:
                reason = NO_OBSTORE
        if reason:
            sys.exit(f"flipcluster: {reason}")
        self._take_over(server)
        self._fit_connections(server)
        # A stop signal between fork() and Worker.init_signals would be lost: the inherited handlers only
        # queue it. So stop signals are blocked across the fork.
        os.register_at_fork(before=_block_stops, after_in_parent=_unblock_stops)

    def pre_exec(self, _server: "Arbiter") -> None:
        """In the fork that becomes a new arbiter (USR2)."""
        _unblock_stops()

    def on_reload(self, server: "Arbiter") -> None:
        """Release the work socket and the scoreboard that only the old configuration knew."""
        preflight.drop_copies(server)
        self._take_over(server)  # with the new code
        self._fit_connections(server)
        self._is_reloaded = True
        self._predecessors = list(server.WORKERS.values())
        # Close the arbiter's ends of the old work socket before new workers inherit them: if all old workers
        # died, open ends would keep queued uploads in memory.
        for worker in server.WORKERS.values():
            with worker.membership.work:
                pass
        gc.collect()

    def when_ready(self, server: "Arbiter") -> None:
        """Start the store, warn about what will not work here, and tell a person at a terminal what to do."""
        try:
            if server.store:
                server.store.start()
            if self._settings.store_url is not None and self._settings.blob_url is None:
                Directory(self._settings.blob_dir).prepare()
        except (StoreNotStarted, UnsuitableBlobs) as error:
            sys.exit(f"flipcluster: {error}")
        # A bucket is asked by another process: obstore has threads, which must not be there before a fork.
        if self._settings.blob_url is not None and (reason := preflight.why_not(server)):
            sys.exit(reason)
        if self._settings.jobs == "remote" and (url := self._settings.store_url):
            from server.jobs.store import warn_of_losses  # noqa: PLC0415 there is none without jobs

            asyncio.run(warn_of_losses(url))
        if directory := directory_instead():
            log.warning("memfd_unavailable", directory=directory)
        if reason := kernel.why_not():
            log.warning(
                "lossless_unavailable", reason=f"{reason}; install a C compiler and run `make install`"
            )
        if sys.stderr and sys.stderr.isatty():
            data_dir = self._settings.data_dir if server.store else None
            sys.stderr.write(invitation(server.LISTENERS[0].sock.getsockname(), data_dir))

    def pre_fork(self, _server: "Arbiter", worker: Worker) -> None:
        """In the arbiter: give the worker its place in the cluster."""
        worker.enlist(
            Membership.claim(self._work, self._scoreboard, self._ledger, self._quarantine),
            self._settings,
        )
        worker.forked_s = time.monotonic()
        worker.tasks_before = worker.membership.row.all_tasks
        worker.boot_delay_s = self._delays_s.pop() if self._delays_s else 0.0
        self._being_forked.append(worker)

    def post_fork(self, _server: "Arbiter", worker: Worker) -> None:
        """In the worker: apply the restart backoff, and raise RLIMIT_NOFILE to the hard limit."""
        place.raise_descriptor_limit()
        _keep_memory()
        if worker.boot_delay_s:
            log.warning("worker_restart_delayed", pid=os.getpid(), delay_s=worker.boot_delay_s)
            sleep_or_exit(worker.boot_delay_s)

    def child_exit(self, server: "Arbiter", worker: Worker) -> None:
        """In the arbiter: a worker has ended; when that leaves too few and was not planned, it crashed."""
        row = worker.membership.row
        was_planned = row[Cell.STATE] == State.STOPPING  # --max-requests, or a stop
        did_work = row.all_tasks > worker.tasks_before
        worker.membership.release()
        if len(_staying(server)) < server.num_workers and not was_planned:
            self._delays_s.append(
                self._backoff.delay_s(time.monotonic() - worker.forked_s, did_work=did_work)
            )

    def on_exit(self, server: "Arbiter") -> None:
        """Stop the store, now that the last worker has ended."""
        if server.store:
            server.store.stop()
        gc.freeze()  # as in a worker

    @staticmethod
    def _fit_connections(server: "Arbiter") -> None:
        """Have workers hold only as many connections as there are descriptors for."""
        wanted = server.cfg.worker_connections
        most = place.most_connections(wanted)
        if most < wanted:
            log.warning("connections_limited", worker_connections=most, wanted=wanted)
            server.cfg.set("worker_connections", most)

    def _take_over(self, server: "Arbiter") -> None:
        preflight.guard(server)
        server.spawn_worker = partial(self._spawn_worker, server)
        server.manage_workers = partial(self._manage_workers, server)
        server.handle_term = partial(self._handle_term, server)
        # The arbiter is in one of these almost always, also while it waits for the end of old workers.
        server.wait_for_signals = partial(self._wait_for_signals, server)
        server.reap_workers = partial(self._reap_workers, server)
        server.stop = partial(self._stop, server)
        server.murder_workers = partial(self._murder_workers, server)
        if not hasattr(server, "store"):  # it outlives reloads
            is_ours = self._settings.jobs == "embedded"
            server.store = (
                EmbeddedStore(self._settings.store_socket, self._settings.valkey) if is_ours else None
            )

    def _handle_term(self, server: "Arbiter") -> None:
        """Stop, as gunicorn does, but announce it first for `FLIP_DRAIN_S`; a second TERM waits no longer.

        Next to another arbiter, after an upgrade, there is nothing to announce: the address stays served.
        """
        is_alone = server.reexec_pid == 0 and server.master_pid == 0
        if self._halt_at_s is not None or not self._settings.drain_s or not is_alone:
            raise StopIteration
        self._halt_at_s = time.monotonic() + self._settings.drain_s
        # Workers that a refused reload has left look at the scoreboard that they were forked with.
        for scoreboard in {
            self._scoreboard,
            *(each.membership.scoreboard for each in server.WORKERS.values()),
        }:
            scoreboard.announce_stop()
        # New workers of another configuration, or those of another arbiter, would know nothing of the stop.
        reason = "the service is about to stop"
        server.reload = partial(log.error, "reload_refused", reason=reason)
        server.reexec = partial(log.error, "upgrade_refused", reason=reason)
        log.info("arbiter_draining", drain_s=self._settings.drain_s)

    def _wait_for_signals(self, server: "Arbiter", timeout: float) -> list[int]:
        self._kill_stopped(server, time.monotonic())
        look_again_s = server.store.watch() if server.store else timeout
        if self._halt_at_s is not None:
            left_s = self._halt_at_s - time.monotonic()
            if left_s <= 0:
                raise StopIteration  # to gunicorn's loop, as at a TERM
            look_again_s = min(look_again_s, left_s)
        signals: list[int] = type(server).wait_for_signals(server, timeout=min(timeout, look_again_s))
        # Stops come first: no reload begins before one, and no INT is lost behind a TERM that ends the loop.
        ordered = sorted(signals, key=lambda number: (*STOP_SIGNALS, number).index(number))
        # Several HUP or USR2 are handled once: each would run a preflight, and a stop would wait for them.
        return [
            number
            for position, number in enumerate(ordered, 1)
            if number not in _ONCE_IS_ENOUGH or number not in ordered[position:]
        ]

    def _kill_stopped(self, server: "Arbiter", now_s: float) -> None:
        """Kill workers that are stopped: with gunicorn alone their clients would wait for `timeout`."""
        if not self._settings.hung_after_s or now_s < self._look_at_s:
            return
        self._look_at_s = now_s + LOOK_EVERY_S
        states = {pid: read_state(pid) for pid in server.WORKERS}
        stopped = [pid for pid, seen in states.items() if seen and seen[0] == STOPPED]
        self._stopped_looks = {pid: self._stopped_looks.get(pid, 0) + 1 for pid in stopped}
        for pid, looks in self._stopped_looks.items():
            if looks == most_looks(self._settings.hung_after_s):
                log.error("worker_hung", pid=pid)
                server.kill_worker(pid, signal.SIGKILL)

    def _stop(self, server: "Arbiter", graceful: bool = True) -> None:  # noqa: FBT001, FBT002 as gunicorn has it
        self._is_stopping = True
        # gunicorn would kill them at the very moment at which they end by themselves, and log what they cut.
        server.cfg.set("graceful_timeout", server.cfg.graceful_timeout + _END_S)
        type(server).stop(server, graceful)

    def _reap_workers(self, server: "Arbiter") -> None:
        try:
            type(server).reap_workers(server)
        except HaltServer:  # a worker could not boot
            if not self._is_stopping:  # because of another one
                raise
        if server.store:
            server.store.watch()
        # Both waits of a reload call this. The error is Python's own: after the import of new code a class of
        # ours would be another one in the old code, which catches it (`preflight`).
        if preflight.is_interrupted(server):
            raise InterruptedError
        now_s = time.monotonic()
        if preflight.is_interruptible(server) and now_s - self._awake_s > LOOK_EVERY_S:
            # What gunicorn's loop does once a second: the end of old workers may take `graceful_timeout`.
            self._kill_stopped(server, now_s)
            server.murder_workers()
            if not self._predecessors:
                server.manage_workers()

    def _murder_workers(self, server: "Arbiter") -> None:
        """Kill workers that are stuck, unless the arbiter itself was: then their silence tells nothing."""
        now_s = time.monotonic()
        if now_s - self._awake_s > _AWAKE_S:
            for worker in server.WORKERS.values():
                worker.tmp.notify()
        self._awake_s = now_s
        type(server).murder_workers(server)

    def _spawn_worker(self, server: "Arbiter") -> None:
        # gunicorn stops the service when the kernel has no process or descriptor to give at the moment. So
        # this attempt is skipped: the arbiter tries again within a second.
        try:
            type(server).spawn_worker(server)
        except SystemExit as end:  # in the worker
            # gunicorn would take these two for the end of all workers.
            if self._has_served and end.code in {server.WORKER_BOOT_ERROR, server.APP_LOAD_ERROR}:
                sys.exit(1)
            raise
        except Exception as error:  # noqa: BLE001 whatever it is, the other workers go on
            log.error("worker_spawn_failed", error=str(error) or repr(error))  # noqa: TRY400 it says all
            for worker in self._being_forked:
                worker.tmp.close()
                worker.membership.release()
                if worker.boot_delay_s:  # the next one waits in its place
                    self._delays_s.append(worker.boot_delay_s)
        finally:
            self._being_forked.clear()

    def _manage_workers(self, server: "Arbiter") -> None:
        """Tell workers that are too many to stop, once, and fork those that are missing.

        gunicorn counts workers that drain, so it would fork a missing one only when they have ended.
        """
        replaced: list[Worker] = []
        # A reload calls this once it has forked the new workers.
        try:
            if self._predecessors and self._has_successor(server):
                replaced = self._predecessors
            elif self._predecessors:
                log.error("reload_refused", reason="no new worker came online; what they logged says why")
                self._keep_predecessors(server)
        except InterruptedError:  # by a stop, which may have to be announced first
            self._keep_predecessors(server)
            raise
        finally:
            self._predecessors = []
        staying = _staying(server)
        oldest = sorted(staying, key=lambda pid: staying[pid].age)
        surplus = oldest[: max(0, len(staying) - server.num_workers)]
        for pid, worker in staying.items():
            if pid in surplus or worker in replaced:
                worker.alive = False
                server.kill_worker(pid, signal.SIGTERM)
        workers, number = server.num_workers, len(server.WORKERS)
        draining = min(number - len(_staying(server)), workers)  # or slow clients could make them many
        server._num_workers = max(workers + draining, number)  # noqa: SLF001 the public one calls a hook
        try:
            type(server).manage_workers(server)
        finally:
            server._num_workers = workers  # noqa: SLF001

    def _has_successor(self, server: "Arbiter") -> bool:
        """Wait until one new worker serves with an engine, or none can any more."""
        until_s = time.monotonic() + _BOOT_S
        while (rows := [worker.membership.row for worker in self._successors(server).values()]) and (
            time.monotonic() < until_s
        ):
            if any(row[Cell.STATE] == State.ONLINE and row[Cell.ENGINE_PID] for row in rows):
                return True
            time.sleep(_LOOK_AGAIN_S)
            server.reap_workers()
        return False

    def _keep_predecessors(self, server: "Arbiter") -> None:
        for pid in self._successors(server):  # none of them has come online in time
            server.kill_worker(pid, signal.SIGKILL)
        for worker in self._predecessors:  # `_manage_workers` ends the oldest
            server.worker_age += 1
            worker.age = server.worker_age

    def _successors(self, server: "Arbiter") -> "dict[int, Worker]":
        return {pid: worker for pid, worker in server.WORKERS.items() if worker not in self._predecessors}

    @property
    def _has_served(self) -> bool:
        """Whether a worker has been online, of this configuration or of one before a reload."""
        return self._is_reloaded or self._scoreboard.total(Cell.WORKER_STARTS) > 0


def _staying(server: "Arbiter") -> dict[int, Worker]:
    """Return the workers that neither drain nor were told to.

    In the arbiter `alive` says that a worker has not been told to; gunicorn does not read it there.
    """
    return {
        pid: worker
        for pid, worker in server.WORKERS.items()
        if worker.alive and worker.membership.row[Cell.STATE] != State.STOPPING
    }


def why_not(cfg: "Config", worker_class: type, num_workers: int) -> str | None:
    """Say why the cluster cannot run with gunicorn's settings as they are; None when it can."""
    ports = (address[1] for address in cfg.address if isinstance(address, tuple))
    no_port = next((port for port in ports if not 0 <= port < 2**16), None)
    paths = (address for address in cfg.address if isinstance(address, str))
    # Not `Path.exists`, which raises where it may not look: gunicorn says that itself.
    file = next((path for path in paths if os.path.exists(path) and not Path(path).is_socket()), None)  # noqa: PTH110
    faults = (
        (not cfg.bind or "" in cfg.bind, "-b is empty; set it to an address"),
        (file is not None, f"{file} is no socket; set -b to another path, or remove what is there"),
        (no_port is not None, f"there is no port {no_port}; set -b to one from 0 to 65535"),
        (
            not issubclass(worker_class, Worker),
            "the cluster needs its own worker class; leave out -k (--worker-class)",
        ),
        (
            cfg.worker_connections < 1,
            "no connections, nothing served; set --worker-connections to 1 or more",
        ),
        (num_workers < 1, "no workers, nothing served; set -w or WEB_CONCURRENCY to 1 or more"),
        (num_workers > ROWS, f"at most {ROWS} workers; set -w or WEB_CONCURRENCY to fewer"),
        (cfg.reload, "--reload would restart workers with old code; send HUP after an edit"),
        (cfg.protocol != "http", f"its workers speak HTTP, not {cfg.protocol!r}; leave out --protocol"),
        (
            "h2" in cfg.http_protocols or cfg.http2_cleartext != "off",
            "its workers speak HTTP/1.1, not HTTP/2; leave out --http-protocols and --http2-cleartext",
        ),
        (
            cfg.http_parser == "fast",
            "its workers have a parser of their own, in Python; leave out --http-parser",
        ),
    )
    return next((reason for is_so, reason in faults if is_so), None)


def why_no_tls(cfg: "Config") -> str | None:
    """Say why the service cannot speak TLS as it is to; None when it can, or is not to."""
    try:
        if cfg.is_ssl:
            ssl_context(cfg)
    except (OSError, ValueError) as error:
        files = ", ".join(filter(None, (cfg.certfile, cfg.keyfile, cfg.ca_certs)))
        return f"no TLS with {files}: {error}; set --certfile, --keyfile and --ca-certs to files that fit"
    return None


def why_no_descriptor(cfg: "Config") -> str | None:
    """Say why the service cannot listen on the descriptors that it should inherit; None when it can."""
    for number in cfg.address:
        if isinstance(number, int):
            try:
                with socket.fromfd(number, socket.AF_UNIX, socket.SOCK_STREAM) as inherited:
                    is_listening = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            except (OSError, OverflowError):
                is_listening = 0
            if not is_listening:
                return f"descriptor {number} is no listening socket; start gunicorn with one, or change -b"
    return None


def why_no_jobs(cfg: "Config") -> str | None:
    """Say why workers could not read the files of jobs; None when they can."""
    if cfg.uid != os.geteuid():
        return (
            "--user: the files of jobs belong to the user who starts gunicorn; start it as the user that its "
            "workers are to have, or set FLIP_JOBS=off"
        )
    return None


def sleep_or_exit(delay_s: float) -> None:
    """Sleep, but exit at a stop signal or with the end of the arbiter.

    Args:
        delay_s: in seconds.
    """
    # Stops are blocked since the fork, or here when an arbiter of an older version forked us.
    _block_stops()
    arbiter, until_s = os.getppid(), time.monotonic() + delay_s
    while (left_s := until_s - time.monotonic()) > 0:
        if signal.sigtimedwait(STOP_SIGNALS, min(left_s, 1.0)) is not None or os.getppid() != arbiter:
            sys.exit(0)


def invitation(address: tuple[str, int] | str, data_dir: Path | None) -> str:
    """Write what a person can try, and where jobs are kept.

    Args:
        address: of a listening socket.
        data_dir: None when they are kept elsewhere, or not at all.
    """
    if isinstance(address, str):
        where = f"--unix-socket {address} http://localhost"
    else:
        host, port = address[:2]
        any_host = host in {"0.0.0.0", "127.0.0.1", "::", "::1"}  # noqa: S104 read, not bound
        where = f"http://{'localhost' if any_host else host}:{port}"
    kept = f"Jobs are kept in {data_dir}\n" if data_dir else ""
    return f"\nTry: curl --data-binary @images/landscape.jpg {where}/flip -o flipped.jpg\n{kept}\n"


def _keep_memory() -> None:
    # glibc would return the memory of large pieces to the kernel and fetch it again each time (mallopt(3)).
    # Engines get the same through their environment, which it is too late for here.
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD


def _block_stops() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _unblock_stops() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
