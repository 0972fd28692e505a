"""The preflight: tries whether the service would start, without listening.

It does what a start does: configuration, settings, app, engine; and it flips the sample image. The arbiter
runs it before it reloads, because gunicorn's own reload stops the service when the new configuration or code
does not load.
`python -m server.check` with gunicorn's arguments runs it by hand.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, NoReturn

from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.arbiter import Arbiter
from gunicorn.asgi.lifespan import LifespanManager

from server.jobs import embedded
from server.logs import get_logger

if TYPE_CHECKING:
    from server.web.envelope import App

log = get_logger("server.arbiter")

#: How long the preflight may take, in seconds; and how much longer the arbiter waits for its own message.
DEADLINE_S = 20
GRACE_S = 5

#: The faster stop first.
STOP_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)

#: How often the store and the signals are looked at while the preflight runs, in seconds.
_LOOK_EVERY_S = 0.1

#: How long a preflight that is given up may take to end its engine, in seconds.
_END_S = 1.0

#: What is asked of the app, and what is wrong when it does not answer 200.
_QUESTIONS = (("GET", "/readyz", "no engine starts"), ("POST", "/flip", "the sample image is not flipped"))

_IMPORT_ROOT = str(Path(__file__).parents[2])


def main() -> None:
    """Exit with 0, or with 1 and a last line on standard error that says what is wrong."""
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(DEADLINE_S)
    try:
        fault = asyncio.run(_fault_of(_load()))
    except Exception as error:  # noqa: BLE001 whatever does not load: a traceback, then the line
        traceback.print_exc()
        # gunicorn puts the whole traceback into the message of an error of its own.
        sys.exit("flipcluster: " + traceback.format_exception_only(error.__context__ or error)[-1].strip())
    if fault:
        sys.exit(f"flipcluster: {fault}")
    sys.stdout.write("flipcluster: fine, this would start\n")


def guard(server: Arbiter) -> None:
    """Let a reload (HUP) or an upgrade (USR2) of this arbiter begin only after the preflight has passed."""
    # gunicorn would start its successor as a file in its own directory, whose `http` would hide Python's.
    server.START_CTX["args"] = [sys.executable, *sys.orig_argv[1:]]
    server.reload = partial(_checked, server, _reload, "reload_refused")
    server.reexec = partial(_upgrade, server)


def drop_copies(server: Arbiter) -> None:
    """Close the copies of the listening sockets, before they are inherited by new workers."""
    for _listener, copy in getattr(server, "copies", ()):
        copy.close()
    server.copies = []


def _reload(server: Arbiter) -> None:
    """Reload; when gunicorn cannot listen at another address, the service goes on where it is.

    Raises:
        OSError: when it cannot: by then gunicorn has closed its listening sockets.
    """
    cfg, workers, wanted = server.cfg, server.num_workers, ""
    # Here and not in a variable: a reload imports this module again, and `on_reload` drops them.
    server.copies = [(listener, listener.sock.dup()) for listener in server.LISTENERS]
    try:
        Arbiter.reload(server)
    except (Exception, SystemExit) as error:
        if any(listener.sock is None for listener, _copy in server.copies):
            wanted = ", ".join(server.cfg.bind)
            for listener, copy in server.copies:
                copy.set_inheritable(True)  # by an upgrade
                listener.sock = copy
            server.copies = []
            server.app.cfg = cfg
            server.setup(server.app)
            server.num_workers = workers
        if wanted and isinstance(error, SystemExit):
            raise OSError(f"it cannot listen on {wanted}; the log says why") from error
        raise
    finally:
        drop_copies(server)


def _upgrade(server: Arbiter) -> None:
    # gunicorn closes a descriptor of `fd://` when it has its own for that socket; its successor needs both.
    if any(isinstance(address, int) for address in server.cfg.address):
        reason = "the new arbiter would not inherit the socket of -b fd://; stop and start the service"
        log.error("upgrade_refused", reason=reason)
    else:
        _checked(server, Arbiter.reexec, "upgrade_refused")


def _checked(server: Arbiter, act: Callable[[Arbiter], None], refusal: str) -> None:
    server.is_interruptible = True
    try:
        reason = why_not(server)
        if reason is None:
            act(server)
            return
    except (Exception, SystemExit) as error:  # gunicorn exits when the configuration does not load
        if os.getpid() != server.pid:  # in the process that it has forked
            raise
        if isinstance(error, InterruptedError):  # by a stop, which gunicorn's loop handles next
            return
        reason = str(error) if isinstance(error, OSError) else repr(error.__context__ or error)
    finally:
        server.is_interruptible = False
    log.error(refusal, reason=reason)


def is_interrupted(server: Arbiter) -> bool:
    """Say whether a stop waits for the end of a reload or an upgrade: gunicorn would finish that first."""
    return is_interruptible(server) and _is_stop_waiting(server)


def is_interruptible(server: Arbiter) -> bool:
    """Say whether a reload or an upgrade is going on."""
    return getattr(server, "is_interruptible", False)


def _is_stop_waiting(server: Arbiter) -> bool:
    """Look at the signals that wait for gunicorn's loop, and leave them there."""
    waiting = []
    with suppress(Empty):
        while True:
            waiting.append(server.SIG_QUEUE.get_nowait())
    for number in waiting:
        server.SIG_QUEUE.put_nowait(number)
    return any(number in STOP_SIGNALS for number in waiting)


def why_not(server: Arbiter) -> str | None:
    """Say why the service would not start as it was started: same arguments, directory and environment.

    A fresh process finds out; None when it would start.
    """
    environ = server.cfg.env_orig
    path = filter(None, [_IMPORT_ROOT, environ.get("PYTHONPATH")])
    try:
        with (
            subprocess.Popen(  # noqa: S603 ourselves
                [sys.executable, "-m", "server.check", *sys.argv[1:]],
                cwd=server.START_CTX["cwd"],
                env={**environ, "PYTHONPATH": os.pathsep.join(path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            ) as process
        ):
            said = _said_by(process, server)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if process.returncode == 0:
        return None
    return (said.splitlines() or [f"the check ended with {process.returncode}"])[-1]


def _said_by(process: "subprocess.Popen[str]", server: Arbiter) -> str:
    """Wait for the end of a process, or for a stop; a store that dies is replaced, as at other times."""
    deadline_s = time.monotonic() + DEADLINE_S + GRACE_S
    while True:
        try:
            return process.communicate(timeout=_LOOK_EVERY_S)[1]
        except subprocess.TimeoutExpired as late:
            if time.monotonic() > deadline_s:
                process.kill()
                raise subprocess.TimeoutExpired(late.cmd, DEADLINE_S + GRACE_S) from None
            if is_interrupted(server):
                process.send_signal(signal.SIGALRM)  # it gives up, together with its engine
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_END_S)
                process.kill()
                raise InterruptedError("the service is about to stop") from None
            if server.store:
                server.store.watch()


def _load() -> Any:  # noqa: ANN401 gunicorn has no types
    """Return a worker as the arbiter has it before the fork."""
    application = WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn")
    cfg = application.cfg
    # Faults are for the caller, not for the log of the service.
    for name, value in (("errorlog", "-"), ("loglevel", "warning"), ("capture_output", False)):
        cfg.set(name, value)
    # gunicorn closes inherited descriptors, so the arbiter has none to pass on; and nothing listens here.
    cfg.set("bind", ["127.0.0.1:0" if address.startswith("fd://") else address for address in cfg.bind])
    server = Arbiter(application)
    cfg.on_starting(server)
    worker = server.worker_class(1, os.getpid(), [], application, cfg.timeout, cfg, server.log)
    cfg.pre_fork(server, worker)
    return worker


async def _fault_of(worker: Any) -> str | None:  # noqa: ANN401 gunicorn has no types
    # Only here, because gunicorn.conf.py has imported everything again.
    from server.assembly import prepare_blobs  # noqa: PLC0415
    from server.jobs.blobs import UnsuitableBlobs  # noqa: PLC0415

    settings = worker.settings
    if settings.jobs == "embedded" and (fault := embedded.why_not(settings.store_socket, settings.valkey)):
        return fault
    try:
        if settings.jobs != "off" and settings.blob_url is not None:  # a directory would be made
            await prepare_blobs(settings)
    except UnsuitableBlobs as error:
        return str(error)
    worker.load_wsgi()
    lifespan = LifespanManager(worker.asgi, worker.log)
    await lifespan.startup()
    for method, path, fault in _QUESTIONS:
        status, body = await _ask(worker.asgi, method, path)
        if status != HTTPStatus.OK:
            return f"{fault} ({method} {path}: {status}, {json.loads(body)['detail']})"
    await lifespan.shutdown()
    return None


async def _ask(app: "App", method: str, path: str) -> tuple[int, bytes]:
    """Ask the app, as a server would that has read an empty body, and return its status and body."""
    answer: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        answer.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
    }
    await app({**scope, "query_string": b"", "headers": []}, receive, send)
    return answer[0]["status"], b"".join(message.get("body", b"") for message in answer)


def _give_up(*_: object) -> NoReturn:
    """End at the deadline, with the engine, which may be what hangs."""
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    sys.exit(f"flipcluster: not done after {DEADLINE_S} s")
