"""gunicorn's settings: `gunicorn` alone, in this directory, starts the cluster.

Everything here can be overridden on the command line (`gunicorn --help`). What is the service's own is set
with `FLIP_` variables: see docs/settings.md. Names with an underscore are ours; gunicorn takes every other
global for a setting.
"""

import contextlib
import ctypes
import gc
import os
import resource
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter

    from server.gateway import Worker

# Found from whichever directory gunicorn was started in; a reload must not add it again.
_here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 a path list holds text
if _here not in sys.path:
    sys.path.insert(0, _here)

# A reload (HUP) runs this file again in the same process: without this it would go on with the old code.
for _name in [_name for _name in sys.modules if _name.partition(".")[0] == "server"]:
    del sys.modules[_name]

from server import check, logs
from server.cluster.backoff import Backoff
from server.cluster.cpus import usable_cores
from server.cluster.membership import Membership
from server.cluster.quarantine import Quarantine
from server.cluster.scoreboard import Cell, Scoreboard, State
from server.cluster.work import WorkSocket
from server.imaging import sequential
from server.settings import InvalidSettings, Settings

try:
    _settings = Settings.from_environ(os.environ)
except InvalidSettings as _error:
    sys.exit("\n".join(f"flipcluster: {_line}" for _line in str(_error).splitlines()))

# A reload makes these anew too: old workers finish among themselves, whatever changed between versions.
_scoreboard = Scoreboard()
_work = WorkSocket()
_quarantine = Quarantine(_settings.quarantine_s, _settings.quarantine_dir)
_backoff = Backoff()
_delays_s: list[float] = []  # one for each crash that no worker has been forked for yet
_log = logs.get_logger("server.arbiter")
_unborn: "list[Worker]" = []  # the one about to be forked
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}


# --- what runs -----------------------------------------------------------------------------------------

# The worker builds the app itself, from what the arbiter gives it; gunicorn wants a name all the same.
wsgi_app = "server.app:get_app()"

worker_class = "server.gateway.Worker"

# One per core that is really ours. Each brings an engine, so more would only make pictures wait on each
# other; WEB_CONCURRENCY=1 is the single process that the benchmark compares with.
workers = int(os.environ.get("WEB_CONCURRENCY") or usable_cores())

# `bind` is left alone: 127.0.0.1:8000 by default, or -b, or $PORT as gunicorn users expect.

# --- how it behaves ------------------------------------------------------------------------------------

# A worker only moves bytes, so one that gives no sign of life for this long, in seconds, is stuck.
timeout = 30

# How long a worker may take to finish what it has accepted before it is killed, in seconds.
graceful_timeout = 30

# How long an idle connection stays open, in seconds. Clients that send one picture after the other need
# little; a load balancer in front that reuses connections should have a shorter time-out than this. After a
# 503 it begins when the client was told to come back.
keepalive = 5

# How many connections a worker holds at once; one more is answered 503. Each costs a few kilobytes while it
# is idle, and every client of a pool of connections holds some.
worker_connections = 2048

# A client that leaves takes its request with it at once: an engine must not turn a picture for nobody.
asgi_disconnect_grace_period = 0

# Our app needs its lifespan: the engine starts and ends in it.
asgi_lifespan = "on"

# uvloop was measured and gains nothing here: the kernel does the work (docs/adr/0004).
asgi_loop = "asyncio"

# Everybody who can connect may send a picture; nobody needs a second door (~/.gunicorn/gunicorn.ctl).
control_socket_disable = True

# Heartbeats go through a file; a disk that stalls must not look like a stuck worker.
worker_tmp_dir = "/dev/shm"  # noqa: S108 gunicorn unlinks the file as soon as it is open

# One line per request is written by the app; gunicorn's own log has the same form.
logger_class = logs.gunicorn_logger(_settings.log_format)


# --- the life of a worker ------------------------------------------------------------------------------


def on_starting(server: "Arbiter") -> None:
    """Refuse what gunicorn would start and we could not keep running."""
    if server.worker_class.__module__ != "server.gateway":
        sys.exit("flipcluster: the cluster needs its own worker class; leave out -k (--worker-class)")
    if server.num_workers < 1:
        sys.exit("flipcluster: no workers, nothing served; set -w or WEB_CONCURRENCY to 1 or more")
    if server.cfg.reload:
        sys.exit("flipcluster: --reload would restart workers with old code; send HUP after an edit")
    _take_over(server)
    # Until a worker has its own handlers, those of the arbiter would only take note of a signal, and Python
    # forgets what comes just after the fork; the arbiter sends it once. So it waits (gateway.init_signals).
    os.register_at_fork(before=_hold_stops_back, after_in_parent=_let_stops_through)


def pre_exec(_server: "Arbiter") -> None:
    """In the fork that becomes a new arbiter (USR2)."""
    _let_stops_through()


def on_reload(server: "Arbiter") -> None:
    """Let go of the work socket and the scoreboard that only the old configuration knew."""
    _take_over(server)  # with the new code
    # The old workers have their own ends. Ours, and those that new workers would inherit, would keep the
    # pictures that wait in there when all old ones die before they came to them.
    for worker in server.WORKERS.values():
        with worker.membership.work:
            pass
    gc.collect()


def when_ready(server: "Arbiter") -> None:
    """Say what will not work here, and tell a person at a terminal what to do next."""
    if reason := sequential.why_not():
        _log.warning("lossless_unavailable", reason=f"{reason}; install a C compiler and run `make install`")
    if sys.stderr and sys.stderr.isatty():
        sys.stderr.write(_invitation(server.LISTENERS[0].sock.getsockname()))


def pre_fork(_server: "Arbiter", worker: "Worker") -> None:
    """In the arbiter: give the worker to be its place in the cluster."""
    worker.enlist(Membership(_work, _scoreboard, _quarantine, _scoreboard.claim()), _settings)
    worker.forked_s = time.monotonic()
    worker.tasks_before = worker.membership.row[Cell.TASKS]
    worker.boot_delay_s = _delays_s.pop() if _delays_s else 0.0
    _unborn.append(worker)


def post_fork(_server: "Arbiter", worker: "Worker") -> None:
    """In the worker: let it wait when those before it died young, and hold as many files as it may."""
    # Each request in flight holds three descriptors: connection, upload, reply.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _keep_memory()
    if worker.boot_delay_s:
        _log.warning("worker_restart_delayed", pid=os.getpid(), delay_s=worker.boot_delay_s)
        _sleep_or_exit(worker.boot_delay_s)


def child_exit(server: "Arbiter", worker: "Worker") -> None:
    """In the arbiter: a worker has ended; when that leaves too few and was not planned, it crashed."""
    row = worker.membership.row
    was_planned = row[Cell.STATE] == State.STOPPING  # --max-requests, or a stop
    did_work = row[Cell.TASKS] > worker.tasks_before
    worker.membership.scoreboard.release(row)
    if len(server.WORKERS) < server.num_workers and not was_planned:
        _delays_s.append(_backoff.delay_s(time.monotonic() - worker.forked_s, did_work=did_work))


def _take_over(server: "Arbiter") -> None:
    check.guard(server)
    server.spawn_worker = partial(_spawn_worker, server)


def _spawn_worker(server: "Arbiter") -> None:
    # gunicorn ends the service when the kernel has no process or descriptor to give at the moment. So this
    # turn is left out: the arbiter counts its workers every second.
    try:
        type(server).spawn_worker(server)
    except OSError as error:
        _log.error("worker_spawn_failed", error=str(error))
        for worker in _unborn:
            worker.tmp.close()
            worker.membership.scoreboard.release(worker.membership.row)
    finally:
        _unborn.clear()


def _keep_memory() -> None:
    # Pieces of bodies are a quarter of a megabyte; glibc would give each back to the kernel and fetch it anew
    # (mallopt(3)). Engines get the same through their environment, which it is too late for here.
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD


def _hold_stops_back() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)


def _let_stops_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def _sleep_or_exit(delay_s: float) -> None:
    # Stops are held back since the fork, or here when an arbiter of before forked us; one ends the wait, and
    # so does the end of the arbiter.
    _hold_stops_back()
    arbiter, until_s = os.getppid(), time.monotonic() + delay_s
    while (left_s := until_s - time.monotonic()) > 0:
        if signal.sigtimedwait(_STOP_SIGNALS, min(left_s, 1.0)) is not None or os.getppid() != arbiter:
            sys.exit(0)


def _invitation(address: tuple[str, int] | str) -> str:
    if isinstance(address, str):
        where = f"--unix-socket {address} http://localhost"
    else:
        host, port = address[:2]
        any_host = host in {"0.0.0.0", "127.0.0.1", "::", "::1"}  # noqa: S104 read, not bound
        where = f"http://{'localhost' if any_host else host}:{port}"
    return f"\nTry: curl --data-binary @images/landscape.jpg {where}/flip -o flipped.jpg\n\n"
