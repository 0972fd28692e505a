"""gunicorn's hooks: what starts, which place a worker gets, and when the next one has to wait."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import gunicorn.arbiter
import pytest
from gunicorn.config import Config
from gunicorn.errors import HaltServer
from gunicorn.workers.gthread import ThreadWorker
from structlog.testing import capture_logs
from support.certificates import certificate
from support.live_server import ROOT, clean_environ

from benchmarks.harness.waiting import until
from server.cluster.backoff import FIRST_DELAY_S
from server.cluster.liveness import read_state
from server.cluster.scoreboard import Cell, State
from server.gateway import arbiter as arbiter_module
from server.gateway.arbiter import Hooks, invitation, why_no_descriptor, why_no_jobs, why_no_tls, why_not
from server.gateway.worker import Worker
from server.settings import Settings


class Arbiter:
    """What the hooks use of gunicorn's arbiter."""

    WORKER_BOOT_ERROR = gunicorn.arbiter.Arbiter.WORKER_BOOT_ERROR
    APP_LOAD_ERROR = gunicorn.arbiter.Arbiter.APP_LOAD_ERROR

    def __init__(self, settings: Settings | None = None) -> None:
        self.WORKERS: dict[int, Any] = {}
        self._num_workers = 2
        self.spawns = 0
        self.failure: BaseException | None = None
        self.hooks = Hooks(settings or Settings())
        self.made: list[Any] = []
        self.managed = 0
        self.murdered = 0
        self.missing: list[int] = []
        self.worker_age = 0
        self.store = None
        self.signals: list[list[int]] = []
        self.killed: list[tuple[int, int]] = []
        self.SIG_QUEUE: SimpleQueue[int] = SimpleQueue()

    @property
    def num_workers(self) -> int:
        return self._num_workers

    def fork(self) -> Any:
        """Make a worker as the arbiter does, up to the fork."""
        worker = Worker.__new__(Worker)
        worker.tmp = SimpleNamespace(close=lambda: None, notify=lambda: None)
        worker.alive = True
        self.worker_age += 1
        worker.age = self.worker_age
        worker.worker_connections = 100
        self.hooks.pre_fork(self, worker)
        self.made.append(worker)
        self.WORKERS[len(self.WORKERS) + 1] = worker
        return worker

    def manage_workers(self) -> None:
        self.managed += 1
        self.missing.append(self.num_workers - len(self.WORKERS))

    def murder_workers(self) -> None:
        self.murdered += 1

    def reap_workers(self) -> None:
        if isinstance(self.failure, HaltServer):
            raise self.failure

    def stop(self, graceful: bool) -> None:
        self.hooks._reap_workers(self)

    def wait_for_signals(self, timeout: float) -> list[int]:
        del timeout
        return self.signals.pop() if self.signals else []

    def kill_worker(self, pid: int, number: int) -> None:
        self.killed.append((pid, number))

    def end(self, worker: Any) -> None:
        """Reap a worker as the arbiter does."""
        self.WORKERS = {pid: other for pid, other in self.WORKERS.items() if other is not worker}
        self.hooks.child_exit(self, worker)

    def spawn_worker(self) -> None:
        self.fork()
        if self.failure:
            raise self.failure
        self.spawns += 1


@pytest.fixture
def arbiter() -> Iterator[Any]:
    arbiter = Arbiter()
    yield arbiter
    with arbiter.made[0].membership.work:
        pass


def config(**settings: object) -> Config:
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg


@pytest.mark.parametrize(
    ("settings", "worker_class", "workers", "says"),
    [
        ({}, ThreadWorker, 2, "-k"),
        ({}, Worker, 0, "WEB_CONCURRENCY"),
        ({}, Worker, 513, "at most 512"),
        ({"reload": True}, Worker, 2, "--reload"),
        ({"protocol": "uwsgi"}, Worker, 2, "--protocol"),
        ({"protocol": "fastcgi"}, Worker, 2, "'fastcgi'"),
        ({"http_protocols": "h2,h1"}, Worker, 2, "HTTP/2"),
        ({"http_parser": "fast"}, Worker, 2, "--http-parser"),
        ({"http2_cleartext": "upgrade"}, Worker, 2, "--http2-cleartext"),
        ({"http2_cleartext": "prior-knowledge"}, Worker, 2, "--http2-cleartext"),
        ({"bind": "127.0.0.1:65536"}, Worker, 2, "no port 65536; set -b"),
        ({"bind": ["unix:/run/flip.sock", "[::1]:-5"]}, Worker, 2, "no port -5"),
        ({"bind": ["unix:/run/flip.sock", f"unix:{__file__}"]}, Worker, 2, f"{__file__} is no socket"),
        ({"bind": ["127.0.0.1:8000", ""]}, Worker, 2, "-b is empty"),
        ({"bind": ""}, Worker, 2, "-b is empty"),
        ({"worker_connections": 0}, Worker, 2, "--worker-connections to 1"),
    ],
)
def test_what_the_cluster_cannot_run_with_is_refused_with_a_way_out(
    settings: dict[str, object], worker_class: type, workers: int, says: str
) -> None:
    assert says in (why_not(config(**settings), worker_class, workers) or "")


def test_gunicorn_as_it_is_configured_is_fine() -> None:
    assert why_not(config(), Worker, 2) is None
    assert why_not(config(bind=["127.0.0.1:65535", "unix:/run/flip.sock", "fd://3"]), Worker, 2) is None
    assert why_no_jobs(config()) is None


@pytest.mark.parametrize("path", ["", "\0abstract", "missing/flip.sock"])
def test_other_paths_are_left_to_gunicorn(path: str) -> None:
    assert why_not(config(bind=f"unix:{path}"), Worker, 2) is None


def test_a_socket_may_be_in_its_place_already(tmp_path: Path) -> None:
    path = tmp_path / "flip.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        assert why_not(config(bind=f"unix:{path}"), Worker, 2) is None


def test_certificates_have_to_be_there_and_fit(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    others = certificate(tmp_path / "other")[1]
    assert why_no_tls(config()) is None
    assert why_no_tls(config(certfile=cert, keyfile=key)) is None
    for more in (
        {"certfile": "missing.pem", "keyfile": key},
        {"certfile": cert, "keyfile": "missing.pem"},
        {"certfile": cert, "keyfile": others},
        {"certfile": __file__, "keyfile": key},
        {"certfile": cert, "keyfile": key, "ca_certs": "missing.pem"},
        {"certfile": cert, "keyfile": key, "ciphers": "none"},
    ):
        assert "set --certfile, --keyfile and --ca-certs" in (why_no_tls(config(**more)) or ""), more


def test_an_inherited_descriptor_has_to_be_a_listening_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as other:
        assert why_no_descriptor(config(bind=[f"fd://{listening.fileno()}", "127.0.0.1:8000"])) is None
        assert listening.getsockname()  # it is left open
        number = other.fileno()
        assert f"descriptor {number} " in (why_no_descriptor(config(bind=f"fd://{number}")) or "")
    with Path(__file__).open() as file:
        assert why_no_descriptor(config(bind=[f"fd://{file.fileno()}"]))
    for number in (1048577, 99999999999):
        assert why_no_descriptor(config(bind=[f"fd://{number}"]))


def test_workers_of_another_user_could_not_read_the_files_of_jobs() -> None:
    assert "FLIP_JOBS=off" in (why_no_jobs(config(user=os.geteuid() + 1)) or "")


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        (
            ("-b", "127.0.0.1:0", "--protocol", "uwsgi"),
            {},
            "flipcluster: its workers speak HTTP, not 'uwsgi'; leave out --protocol",
        ),
        (
            ("-b", "127.0.0.1:0", "--http2-cleartext", "both"),
            {},
            "leave out --http-protocols and --http2-cleartext",
        ),
        (("-b", "unix:docs"), {}, "flipcluster: docs is no socket; set -b to another path"),
        (("-b", ""), {}, "flipcluster: -b is empty; set it to an address"),
        (("-b", "fd://99"), {}, "flipcluster: descriptor 99 is no listening socket; start gunicorn with one"),
        (("-b", "127.0.0.1:99999"), {}, "flipcluster: there is no port 99999; set -b to one from 0 to 65535"),
        ((), {"PORT": "99999"}, "flipcluster: PORT: Input should be a port from 0 to 65535 (got '99999')"),
        ((), {"PORT": "abc"}, "flipcluster: PORT: Input should be a port from 0 to 65535 (got 'abc')"),
    ],
)
def test_gunicorn_stops_with_one_line(arguments: tuple[str, ...], environ: dict[str, str], says: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "gunicorn", *arguments],
        cwd=ROOT,
        env=clean_environ() | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert says in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_worker_gets_a_row_of_its_own_and_what_all_share(arbiter: Any) -> None:
    first, second = arbiter.fork(), arbiter.fork()
    assert first.membership.row.index != second.membership.row.index
    assert first.membership.work is second.membership.work
    assert first.membership.row[Cell.STATE] == State.STARTING
    arbiter.end(first)
    assert first.membership.row[Cell.STATE] == State.FREE


def test_workers_that_crash_without_work_wait_longer_and_longer(arbiter: Any) -> None:
    delays = []
    for _ in range(4):
        worker = arbiter.fork()
        delays.append(worker.boot_delay_s)
        arbiter.end(worker)
    assert delays == [0, 0, FIRST_DELAY_S, 2 * FIRST_DELAY_S]


@pytest.mark.parametrize("work", [Cell.TASKS, Cell.BACKGROUND_TASKS])
def test_a_worker_that_did_work_is_replaced_at_once(arbiter: Any, work: Cell) -> None:
    for _ in range(4):
        worker = arbiter.fork()
        assert worker.boot_delay_s == 0
        worker.membership.row[work] += 1
        arbiter.end(worker)


def test_a_planned_end_is_no_crash(arbiter: Any) -> None:
    for _ in range(4):
        worker = arbiter.fork()
        assert worker.boot_delay_s == 0
        worker.membership.row[Cell.STATE] = State.STOPPING
        arbiter.end(worker)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(11, "Resource temporarily unavailable"),
        RuntimeError("no directory for heartbeat files"),
        MemoryError(),
    ],
)
def test_a_failed_fork_leaves_a_turn_out_and_gives_the_row_back(arbiter: Any, failure: Exception) -> None:
    for _ in range(2):
        arbiter.end(arbiter.fork())
    arbiter.made.clear()
    arbiter.hooks._delays_s = [7.0]
    arbiter.failure = failure
    with capture_logs() as events:
        arbiter.hooks._spawn_worker(arbiter)
    (event,) = events
    assert (event["event"], bool(event["error"])) == ("worker_spawn_failed", True)
    (unborn,) = arbiter.made
    assert unborn.membership.row[Cell.STATE] == State.FREE
    arbiter.failure = None
    arbiter.hooks._spawn_worker(arbiter)
    assert arbiter.spawns == 1
    assert arbiter.made[-1].boot_delay_s == 7.0  # the failed one did not use it up


@pytest.mark.parametrize("code", [Arbiter.WORKER_BOOT_ERROR, Arbiter.APP_LOAD_ERROR])
def test_a_worker_that_cannot_boot_ends_the_service_only_if_none_ever_could(arbiter: Any, code: int) -> None:
    arbiter.failure = SystemExit(code)  # as gunicorn ends the forked process

    def exit_code() -> object:
        with pytest.raises(SystemExit) as end:
            arbiter.hooks._spawn_worker(arbiter)
        return end.value.code

    assert exit_code() == code
    arbiter.made[0].membership.row[Cell.WORKER_STARTS] += 1
    arbiter.end(arbiter.made[0])
    assert exit_code() == 1
    arbiter.failure = SystemExit(0)
    assert exit_code() == 0


def reloaded(arbiter: Any) -> tuple[Any, Any]:
    """Have one worker and reload, up to the fork of its successor; return both."""
    old = arbiter.fork()
    arbiter.hooks._predecessors = [old]
    return old, arbiter.fork()


def test_a_reload_goes_on_when_a_new_worker_has_an_engine(arbiter: Any) -> None:
    _, new = reloaded(arbiter)

    def look() -> None:
        new.membership.row[Cell.ENGINE_PID] = 1  # then it comes online
        new.membership.row[Cell.STATE] = State.ONLINE

    arbiter.reap_workers = look
    with capture_logs() as events:
        arbiter.hooks._manage_workers(arbiter)
    assert events == []
    assert arbiter.managed == 1
    arbiter.hooks._manage_workers(arbiter)  # later there is nothing to wait for
    assert arbiter.managed == 2


@pytest.mark.parametrize("hangs", [True, False])
def test_the_old_workers_stay_when_no_new_one_comes_online(
    arbiter: Any, monkeypatch: pytest.MonkeyPatch, *, hangs: bool
) -> None:
    old, new = reloaded(arbiter)
    if hangs:
        monkeypatch.setattr(arbiter_module, "_BOOT_S", 0.0)
    else:
        arbiter.reap_workers = lambda: arbiter.WORKERS.pop(2, None)  # it has ended
    with capture_logs() as events:
        arbiter.hooks._manage_workers(arbiter)
    assert [event["event"] for event in events] == ["reload_refused"]
    assert arbiter.killed == ([(2, signal.SIGKILL)] if hangs else [])
    assert old.age > new.age  # gunicorn ends the oldest when there are too many
    assert arbiter.managed == 1


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_does_not_wait_for_a_reload(arbiter: Any, stop: signal.Signals) -> None:
    old, new = reloaded(arbiter)
    arbiter.reap_workers = lambda: arbiter.hooks._reap_workers(arbiter)
    arbiter.is_interruptible = True  # as during a reload
    for number in (signal.SIGCHLD, stop):
        arbiter.SIG_QUEUE.put(number)
    with capture_logs() as events, pytest.raises(InterruptedError):
        arbiter.hooks._manage_workers(arbiter)
    assert events == []
    assert [arbiter.SIG_QUEUE.get_nowait() for _ in range(2)] == [signal.SIGCHLD, stop]
    # `_manage_workers` ends the oldest before the stop is handled, which may have to be announced first.
    assert old.age > new.age
    assert arbiter.killed == [(2, signal.SIGKILL)]
    arbiter.hooks._manage_workers(arbiter)
    assert arbiter.managed == 1


def test_other_signals_wait_for_a_reload(arbiter: Any) -> None:
    _, new = reloaded(arbiter)

    def look() -> None:
        new.membership.row[Cell.ENGINE_PID] = 1
        new.membership.row[Cell.STATE] = State.ONLINE
        arbiter.hooks._reap_workers(arbiter)

    arbiter.reap_workers = look
    arbiter.is_interruptible = True
    for number in (signal.SIGHUP, signal.SIGCHLD):
        arbiter.SIG_QUEUE.put(number)
    arbiter.hooks._manage_workers(arbiter)
    assert arbiter.managed == 1
    assert [arbiter.SIG_QUEUE.get_nowait() for _ in range(2)] == [signal.SIGHUP, signal.SIGCHLD]


def test_a_stop_is_handled_before_what_has_not_begun_and_a_fast_one_first(arbiter: Any) -> None:
    arbiter.fork()
    arbiter.signals = [
        [signal.SIGHUP, signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT]
    ]
    assert arbiter.hooks._wait_for_signals(arbiter, 1.0) == [
        *(signal.SIGINT, signal.SIGTERM),
        *(signal.SIGCHLD, signal.SIGUSR2, signal.SIGHUP),
    ]


@pytest.mark.parametrize(
    ("numbers", "handled"),
    [
        (["HUP", "TTOU", "HUP", "TTOU", "USR2", "HUP", "USR2"], ["TTOU", "TTOU", "HUP", "USR2"]),
        (["TTIN", "TTIN", "TTOU", "TTOU"], ["TTIN", "TTIN", "TTOU", "TTOU"]),
        (["TERM", "HUP", "TERM"], ["TERM", "TERM", "HUP"]),  # the second one means more
    ],
)
def test_reloads_that_wait_together_are_one_and_workers_are_counted(
    arbiter: Any, numbers: list[str], handled: list[str]
) -> None:
    arbiter.fork()
    arbiter.signals = [[signal.Signals[f"SIG{name}"] for name in numbers]]
    assert arbiter.hooks._wait_for_signals(arbiter, 1.0) == [signal.Signals[f"SIG{name}"] for name in handled]


@pytest.mark.parametrize("new_workers", [1, 2])
def test_a_reload_replaces_all_old_workers_also_when_not_all_new_ones_boot(
    arbiter: Any, new_workers: int
) -> None:
    arbiter.hooks._predecessors = [arbiter.fork(), arbiter.fork()]
    for _ in range(new_workers):
        row = arbiter.fork().membership.row
    row[Cell.STATE], row[Cell.ENGINE_PID] = State.ONLINE, 1
    arbiter.hooks._manage_workers(arbiter)
    assert arbiter.killed == [(1, signal.SIGTERM), (2, signal.SIGTERM)]
    assert arbiter.missing == [2 - new_workers]


def test_the_oldest_worker_too_many_is_told_to_stop_once_and_another_that_ends_is_replaced(
    arbiter: Any,
) -> None:
    first, _second, third = (arbiter.fork() for _ in range(3))
    for _ in range(2):
        arbiter.hooks._manage_workers(arbiter)
    assert arbiter.killed == [(1, signal.SIGTERM)]
    for _ in range(2):  # while the first one drains
        arbiter.end(third)
        arbiter.hooks._manage_workers(arbiter)
        third = arbiter.fork()
    assert arbiter.missing == [0, 0, 1, 1]
    assert third.boot_delay_s == FIRST_DELAY_S
    arbiter.end(first)
    arbiter.hooks._manage_workers(arbiter)
    assert arbiter.missing[-1] == 0
    assert arbiter.killed == [(1, signal.SIGTERM)]
    assert arbiter.num_workers == 2


def test_a_worker_that_drains_by_itself_is_replaced_at_once(arbiter: Any) -> None:
    retiring, _other = arbiter.fork(), arbiter.fork()
    retiring.membership.row[Cell.STATE] = State.STOPPING
    for missing in (1, 0):
        arbiter.hooks._manage_workers(arbiter)
        assert arbiter.missing[-1] == missing
        arbiter.fork()
    assert arbiter.killed == []


def test_there_are_at_most_twice_as_many_workers_while_some_drain(arbiter: Any) -> None:
    for drain in range(1, 5):
        while len(arbiter.WORKERS) < drain + 1:
            arbiter.fork()
        arbiter.made[drain - 1].membership.row[Cell.STATE] = State.STOPPING
        arbiter.hooks._manage_workers(arbiter)
    assert arbiter.missing == [1, 1, 0, 0]
    assert arbiter.killed == []


def test_workers_are_managed_once_a_second_while_a_reload_waits_for_old_ones(arbiter: Any) -> None:
    old, new = reloaded(arbiter)
    new.membership.row[Cell.STATE], new.membership.row[Cell.ENGINE_PID] = State.ONLINE, 1
    arbiter.manage_workers = lambda: arbiter.hooks._manage_workers(arbiter)
    arbiter.murder_workers = lambda: arbiter.hooks._murder_workers(arbiter)
    arbiter.hooks._awake_s = 0.0
    arbiter.hooks._reap_workers(arbiter)
    assert (arbiter.murdered, arbiter.managed) == (0, 0)  # gunicorn's loop does it
    arbiter.is_interruptible = True
    arbiter.hooks._reap_workers(arbiter)
    assert (arbiter.murdered, arbiter.managed) == (1, 0)  # the new ones may not serve yet
    arbiter.hooks._manage_workers(arbiter)
    arbiter.end(new)
    arbiter.hooks._awake_s = 0.0
    for _ in range(2):
        arbiter.hooks._reap_workers(arbiter)
    assert (arbiter.murdered, arbiter.managed) == (2, 2)
    assert not old.alive
    assert arbiter.missing == [1, 2]


def test_further_workers_that_cannot_boot_do_not_interrupt_the_stop(arbiter: Any) -> None:
    arbiter.fork()
    arbiter.failure = HaltServer("Worker failed to boot.", Arbiter.WORKER_BOOT_ERROR)
    with pytest.raises(HaltServer):
        arbiter.hooks._reap_workers(arbiter)
    arbiter.cfg = config()
    arbiter.hooks._stop(arbiter)


def test_a_worker_that_stays_stopped_is_killed(arbiter: Any) -> None:
    with subprocess.Popen(["sleep", "600"]) as stopped, subprocess.Popen(["sleep", "600"]) as running:
        try:
            arbiter.fork()
            arbiter.WORKERS = {stopped.pid: None, running.pid: None}
            os.kill(stopped.pid, signal.SIGSTOP)
            assert until(lambda: (read_state(stopped.pid) or " ")[0] == "T")
            with capture_logs() as events:
                for now_s in (1.0, 1.5, 1.9):  # it looks once a second
                    arbiter.hooks._kill_stopped(arbiter, now_s)
                assert not arbiter.killed
                os.kill(stopped.pid, signal.SIGCONT)
                assert until(lambda: (read_state(stopped.pid) or " ")[0] == "S")
                arbiter.hooks._kill_stopped(arbiter, 2.0)
                os.kill(stopped.pid, signal.SIGSTOP)
                assert until(lambda: (read_state(stopped.pid) or " ")[0] == "T")
                for now_s in (3.0, 4.0, 5.0, 6.0):
                    arbiter.hooks._kill_stopped(arbiter, now_s)
            assert arbiter.killed == [(stopped.pid, signal.SIGKILL)]
            assert [(event["event"], event["pid"]) for event in events] == [("worker_hung", stopped.pid)]
        finally:
            stopped.kill()
            running.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_ends_the_restart_backoff(number: signal.Signals) -> None:
    program = (
        "from server.gateway.arbiter import _block_stops, sleep_or_exit\n"
        "_block_stops(); print('ready', flush=True); sleep_or_exit(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (("127.0.0.1", 8000), "http://localhost:8000/flip"),
        (("0.0.0.0", 80), "http://localhost:80/flip"),  # noqa: S104
        (("192.0.2.1", 80), "http://192.0.2.1:80/flip"),
        ("/run/flip.sock", "--unix-socket /run/flip.sock http://localhost/flip"),
    ],
)
def test_a_person_is_told_what_to_try(address: Any, says: str) -> None:
    assert says in invitation(address, None)


def test_a_person_is_told_where_jobs_are_kept_if_they_are() -> None:
    address = ("127.0.0.1", 8000)
    assert "/var/lib/flip" in invitation(address, Path("/var/lib/flip"))
    assert "kept" not in invitation(address, None)


class Stopping(Arbiter):
    """An arbiter that is told to stop, with a worker and how long it has waited for signals."""

    def __init__(self, drain_s: float, **pids: int) -> None:
        super().__init__(Settings(drain_s=drain_s))
        self.worker = self.fork()
        self.store = None
        self.reexec_pid = pids.get("reexec_pid", 0)
        self.master_pid = pids.get("master_pid", 0)
        self.waits_s: list[float] = []

    @property
    def is_announced(self) -> bool:
        is_so: bool = self.worker.membership.scoreboard.is_stop_announced
        return is_so

    def wait_for_signals(self, timeout: float) -> list[int]:
        self.waits_s.append(timeout)
        return []

    def term(self) -> None:
        self.hooks._handle_term(self)

    def wait(self) -> list[int]:
        return self.hooks._wait_for_signals(self, 1.0)


@pytest.fixture
def stopping() -> Iterator[Callable[..., Stopping]]:
    with ExitStack() as stack:

        def make(drain_s: float, **pids: int) -> Stopping:
            made = Stopping(drain_s, **pids)
            stack.enter_context(made.worker.membership.work)
            return made

        yield make


@pytest.mark.parametrize(
    "settings", [{"drain_s": 0}, {"drain_s": 9, "reexec_pid": 7}, {"drain_s": 9, "master_pid": 7}]
)
def test_a_stop_is_not_announced_where_it_need_not_be(
    stopping: Callable[..., Stopping], settings: dict[str, int]
) -> None:
    arbiter = stopping(**settings)
    with pytest.raises(StopIteration):
        arbiter.term()
    assert not arbiter.is_announced


def test_a_stop_is_announced_until_a_second_one(stopping: Callable[..., Stopping]) -> None:
    arbiter = stopping(3600)
    assert (arbiter.wait(), arbiter.is_announced) == ([], False)
    arbiter.term()
    assert (arbiter.wait(), arbiter.is_announced) == ([], True)
    with pytest.raises(StopIteration):
        arbiter.term()


def test_a_stop_is_announced_to_workers_that_a_refused_reload_has_left_and_to_later_ones(
    stopping: Callable[..., Stopping],
) -> None:
    arbiter = stopping(3600)
    arbiter.hooks = Hooks(Settings(drain_s=3600))  # as a reload does
    arbiter.term()
    assert arbiter.is_announced
    later = arbiter.fork().membership
    with later.work:
        assert later.scoreboard.is_stop_announced


def test_a_stop_is_not_announced_for_longer_than_set(stopping: Callable[..., Stopping]) -> None:
    arbiter = stopping(1e-9)
    arbiter.term()
    with pytest.raises(StopIteration):
        arbiter.wait()
    assert arbiter.waits_s == []


def test_the_arbiter_wakes_up_when_the_announced_time_is_over(stopping: Callable[..., Stopping]) -> None:
    arbiter = stopping(0.5)
    arbiter.wait()
    arbiter.term()
    arbiter.wait()
    before, after = arbiter.waits_s
    assert before == 1.0
    assert 0 < after <= 0.5


def test_while_a_stop_is_announced_nothing_is_reloaded_or_upgraded(
    stopping: Callable[..., Stopping],
) -> None:
    arbiter: Any = stopping(3600)
    with capture_logs() as events:
        arbiter.term()
        arbiter.reload()
        arbiter.reexec()
    logged = [event["event"] for event in events]
    assert logged == ["arbiter_draining", "reload_refused", "upgrade_refused"]
