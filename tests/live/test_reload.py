"""Reload, upgrade and stop: nothing that has begun is lost, and what would not start is not started."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path

import httpx
import pytest
from support.live_server import DEADLINE_S, ROOT, LiveServer, clean_environ
from support.load import (
    LARGE_REQUEST,
    REQUEST,
    Load,
    ask_once,
    ask_until_told_to_close,
    read_answer,
    read_head,
)

from benchmarks.harness.server import free_port
from benchmarks.harness.waiting import until

CHECK = [sys.executable, "-m", "server.check"]

#: One worker, which waits for uploads that do not go on.
PATIENT = {"WEB_CONCURRENCY": "1", "FLIP_SLOW_AFTER_S": "600", "FLIP_UPLOAD_TIMEOUT_S": "600"}


#: Runs a command with a listening socket as descriptor 63.
WITH_A_SOCKET = (
    "import os, socket, sys\n"
    "inherited = socket.create_server(('127.0.0.1', 0))\n"
    "os.dup2(inherited.fileno(), 63)\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)


class InheritingServer(LiveServer):
    """A service whose listening socket was made by another process."""

    def __init__(self) -> None:
        super().__init__("-b", "fd://63", environ={"WEB_CONCURRENCY": "1"})
        self._command = [sys.executable, "-c", WITH_A_SOCKET, *self._command]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what is needed to run, to be broken."""
    for name in ("server", "images"):
        # What Python has compiled is valid for the copy too, except files that it is just writing.
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc.*"))
    shutil.copy(ROOT / "gunicorn.conf.py", tmp_path)
    return tmp_path


@contextmanager
def broken(file: Path, was: str, becomes: str) -> Iterator[None]:
    """Break one place of a file, and restore it."""
    whole, written_ns = file.read_text(), file.stat().st_mtime_ns
    assert whole.count(was) == 1
    file.write_text(whole.replace(was, becomes))
    yield
    file.write_text(whole)
    # Python takes what it has compiled for the same file when size and second are the same.
    os.utime(file, ns=(written_ns, written_ns))


def pids(server: LiveServer) -> set[int]:
    return {worker["pid"] for worker in server.workers()}


def check(*arguments: str, root: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHECK, *arguments],
        cwd=root,
        env=clean_environ() | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * DEADLINE_S,
    )


def reload(server: LiveServer, workers: int = 2) -> None:
    """Send HUP and wait until the new workers are there and the old ones are gone."""
    before = len(server.events)
    os.kill(server.pid, signal.SIGHUP)
    server.wait_for("worker_online", after=before, count=workers)
    server.wait_for("worker_offline", after=before, count=workers)


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    return sum(str(link.readlink()).startswith("socket:") for link in Path(f"/proc/{pid}/fd").iterdir())


def upgrade(server: LiveServer) -> int:
    """Send USR2, wait until the new arbiter's workers are there, and return its pid."""
    before = len(server.events)
    os.kill(server.pid, signal.SIGUSR2)
    server.wait_for("worker_online", after=before, count=2)
    return int(server.wait_for("arbiter_listening", after=before)["pid"])


def begin_upload(server: LiveServer, body: bytes, clients: ExitStack) -> socket.socket:
    """Send the headers of a request, and see that a worker has taken it on."""
    client = clients.enter_context(socket.create_connection(("127.0.0.1", server.port), DEADLINE_S))
    head = f"POST /flip HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    client.sendall(f"{head}\r\nExpect: 100-continue\r\n\r\n".encode())
    assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    return client


# --- the check --------------------------------------------------------------------------------------------

#: What is broken, how, and a word of what is said about it.
BREAKAGES = {
    "name": ("gunicorn.conf.py", "keepalive = 5", "keepalive = soon", "name 'soon' is not defined"),
    "value": ("gunicorn.conf.py", "keepalive = 5", "keepalive = 'soon'", "'soon'"),
    "syntax": ("server/settings.py", "def _lines(", "def _lines((", "SyntaxError"),
    "import": ("server/web/probes.py", "import os", "import so", "No module named 'so'"),
    "app": ("server/app.py", "probes.Healthz()", "probes.Health()", "Health"),
    "engine": ("server/cluster/sandbox.py", "os.nice(nice)", "sys.exit(7)", "no engine starts"),
    "image": ("server/web/uploads.py", ".truncate()", ".shorten()", "the sample image is not flipped"),
}


@pytest.mark.parametrize(("file", "was", "becomes", "says"), BREAKAGES.values(), ids=BREAKAGES)
def test_the_check_says_in_its_last_line_what_would_not_start(
    copy: Path, file: str, was: str, becomes: str, says: str
) -> None:
    with broken(copy / file, was, becomes):
        result = check(root=copy)
    assert result.returncode == 1
    assert says in result.stderr.splitlines()[-1]


def test_the_check_passes_what_starts_and_disturbs_no_service(server: LiveServer, tmp_path: Path) -> None:
    before = server.processes()
    pidfile = tmp_path / "pid"
    result = check("-b", f"127.0.0.1:{server.port}", "--pid", str(pidfile))
    assert (result.returncode, result.stdout, result.stderr) == (
        0,
        "flipcluster: fine, this would start\n",
        "",
    )
    assert not pidfile.exists()
    assert server.processes() == before


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        ([], {"FLIP_MAX_PIXELS": "many"}, "flipcluster: FLIP_MAX_PIXELS"),
        ([], {"FLIP_MAX_PIXELS": "9", "FLIP_MAX_LOSSLESS_PIXELS": "1000000"}, "the limit is 1000000"),
        ([], {"GUNICORN_CMD_ARGS": "-w 0"}, "WEB_CONCURRENCY"),
        (["-k", "asgi"], {}, "-k"),
        (["-c", "nowhere.py"], {}, "nowhere.py"),
        (["-b", "127.0.0.1:99999"], {}, "flipcluster: there is no port 99999; set -b to one from 0 to 65535"),
        (
            ["-b", "unix:docs"],
            {},
            "flipcluster: docs is no socket; set -b to another path, or remove what is there",
        ),
        (["-b", ""], {}, "flipcluster: -b is empty; set it to an address"),
        ([], {"PORT": "99999"}, "flipcluster: PORT: Input should be a port from 0 to 65535 (got '99999')"),
        ([], {"PORT": "abc"}, "flipcluster: PORT: "),
        ([], {"WEB_CONCURRENCY": "x"}, "flipcluster: WEB_CONCURRENCY: Input should be a whole number"),
        ([], {"WEB_CONCURRENCY": ""}, "flipcluster: WEB_CONCURRENCY: "),
    ],
)
def test_the_check_needs_no_traceback_for_a_wrong_setting(
    arguments: list[str], environ: dict[str, str], says: str
) -> None:
    result = check(*arguments, **environ)
    assert result.returncode == 1
    assert says in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_check_that_hangs_is_given_up_together_with_its_engine(copy: Path) -> None:
    checker = copy / "server" / "gateway" / "preflight.py"
    checker.write_text(checker.read_text().replace("DEADLINE_S = 20\n", "DEADLINE_S = 2\n"))
    pid = copy / "pid"
    hang = f"import pathlib; pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\nwhile True: pass"
    engine = copy / "server" / "cluster" / "engine.py"
    engine.write_text(engine.read_text().replace("def main() -> None:", f"{hang}\ndef main() -> None:"))
    result = check(root=copy)
    assert result.returncode == 1
    assert result.stderr == "flipcluster: not done after 2 s\n"
    LiveServer.wait_until_gone(int(pid.read_text()))


# --- reload (HUP) -----------------------------------------------------------------------------------------


def test_a_reload_of_what_would_not_start_is_refused(copy: Path) -> None:
    with LiveServer(root=copy, environ={"WEB_CONCURRENCY": "1"}) as server:
        old = pids(server)
        for file, was, becomes, says in BREAKAGES.values():
            before = len(server.events)
            with broken(copy / file, was, becomes):
                os.kill(server.pid, signal.SIGHUP)
                assert says in server.wait_for("reload_refused", after=before)["reason"]
            assert pids(server) == old
            assert httpx.post(f"{server.url}/flip").status_code == 200
            assert [event["event"] for event in server.events[before:] if event["event"] != "request"] == [
                "signal_received",
                "arbiter_reloading",
                "reload_refused",
            ]
        reload(server, workers=1)
        assert not pids(server) & old


def test_a_reload_that_cannot_listen_elsewhere_leaves_the_service_where_it_is(copy: Path) -> None:
    conf = copy / "gunicorn.conf.py"
    written = conf.read_text()

    def listen_at(address: str) -> None:
        conf.write_text(f'{written}\nbind = "{address}"\n')

    listen_at("127.0.0.1:0")
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        LiveServer(root=copy, address=None, environ={"WEB_CONCURRENCY": "1"}) as server,
    ):
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        for address, says in ((taken, f"cannot listen on {taken};"), ("fd://999", "Bad file descriptor")):
            before = len(server.events)
            listen_at(address)
            os.kill(server.pid, signal.SIGHUP)
            assert says in server.wait_for("reload_refused", after=before)["reason"]
            os.kill(pids(server).pop(), signal.SIGKILL)
            server.wait_for("worker_online", after=before)
            assert httpx.post(f"{server.url}/flip").status_code == 200
        listen_at("127.0.0.1:0")
        reload(server, workers=1)
        assert httpx.post(f"{server.url}/flip").status_code == 200
        old, before = server.port, len(server.events)
        listen_at(new := f"127.0.0.1:{free_port()}")
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for("worker_stopping", after=before)
        assert httpx.post(f"http://{new}/flip").status_code == 200
        assert until(lambda: is_refused(old))


def test_a_reload_whose_workers_cannot_boot_leaves_the_old_ones_at_work(copy: Path) -> None:
    """The preflight cannot see everything: files change after it, memory and processes run out."""
    forked = "        place.raise_descriptor_limit()"
    unbootable = f"        assert not os.path.exists('unbootable'), 'of ours'\n{forked}"
    with (
        broken(copy / "server" / "gateway" / "arbiter.py", forked, unbootable),
        LiveServer(root=copy, environ={"WEB_CONCURRENCY": "2"}) as server,
    ):
        old = pids(server)
        (copy / "unbootable").touch()
        with Load(partial(ask_once, server.port), clients=2) as load:
            for _ in range(2):
                before = len(server.events)
                os.kill(server.pid, signal.SIGHUP)
                server.wait_for("reload_refused", after=before)
                assert pids(server) == old
                load.wait_for_more()
        assert load.failures == []
        # One that ends now is tried again and again, while the other serves.
        victim, survivor = old
        before = len(server.events)
        os.kill(victim, signal.SIGKILL)
        server.wait_for("worker_died", after=before, exit_code=1, count=2)
        assert survivor in pids(server)
        (copy / "unbootable").unlink()
        server.wait_for("worker_online", after=before)
        reload(server)
        assert len(pids(server) - old) == 2


def test_a_configuration_that_breaks_after_the_preflight_ends_nothing(copy: Path) -> None:
    file = copy / "gunicorn.conf.py"
    # Only the arbiter, not the preflight, finds it broken.
    late = (
        "\nif os.path.exists('late') and not sys.argv[0].endswith('check.py'):\n    raise ZeroDivisionError\n"
    )
    with (
        broken(file, file.read_text(), file.read_text() + late),
        LiveServer(root=copy, environ={"WEB_CONCURRENCY": "1"}) as server,
    ):
        old = pids(server)
        (copy / "late").touch()
        os.kill(server.pid, signal.SIGHUP)
        assert "ZeroDivisionError" in server.wait_for("reload_refused")["reason"]
        assert pids(server) == old
        (copy / "late").unlink()
        reload(server, workers=1)
        assert not pids(server) & old


def test_reloads_lose_no_request_and_tell_a_connection_before_they_close_it() -> None:
    with (
        LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server,
        Load(partial(ask_once, server.port), clients=3) as new_connections,
        Load(partial(ask_until_told_to_close, server.port), clients=3) as lasting_ones,
    ):
        for _ in range(4):
            old = pids(server)
            reload(server)
            new = pids(server)
            assert len(new) == 2
            assert not new & old
            new_connections.wait_for_more()
            lasting_ones.wait_for_more()
    assert new_connections.failures == []
    assert lasting_ones.failures == []


@contextmanager
def slow_client(server: LiveServer) -> Iterator[tuple[socket.socket, BufferedReader]]:
    """Connect with a small window, so that a large answer waits in the server."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.settimeout(DEADLINE_S)
        client.connect(("127.0.0.1", server.port))
        with client.makefile("rb") as stream:
            yield client, stream


def test_a_connection_that_was_not_told_to_close_stays_for_one_more_answer() -> None:
    # With an access log gunicorn looks at the request again when the answer is out.
    access_log = ("--access-logfile", os.devnull)
    with (
        LiveServer(*access_log, environ={"WEB_CONCURRENCY": "1"}) as server,
        slow_client(server) as (client, stream),
    ):
        client.sendall(LARGE_REQUEST)
        headers = read_head(stream)
        assert headers["Connection"] != "close"
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for("worker_stopping")
        assert stream.read(int(headers["Content-Length"]))[:2] == b"BM"
        client.sendall(REQUEST)
        status, headers, _ = read_answer(stream)
        assert (status, headers["Connection"]) == (200, "close")


def test_a_worker_that_retires_keeps_the_same_promise() -> None:
    retire = ("--max-requests", "2")
    with (
        LiveServer(*retire, environ={"WEB_CONCURRENCY": "1"}) as server,
        slow_client(server) as (client, stream),
    ):
        client.sendall(LARGE_REQUEST)
        headers = read_head(stream)
        assert headers["Connection"] != "close"
        with slow_client(server) as (other, others_stream):
            for said in (None, "close"):
                other.sendall(REQUEST)
                assert read_answer(others_stream)[1]["Connection"] == said
        assert stream.read(int(headers["Content-Length"]))[:2] == b"BM"
        client.sendall(REQUEST)
        status, headers, _ = read_answer(stream)
        assert (status, headers["Connection"]) == (200, "close")


def test_a_worker_whose_arbiter_is_gone_tells_its_connections() -> None:
    with (
        LiveServer(environ={"WEB_CONCURRENCY": "1"}) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        client.get("/healthz").raise_for_status()
        worker = server.workers()[0]["pid"]
        os.kill(server.pid, signal.SIGKILL)
        server.wait_for("arbiter_gone", pid=worker)
        server.wait_for("worker_stopping", connections=1)
        assert client.get("/healthz").raise_for_status().headers["Connection"] == "close"


def test_what_is_sent_after_the_last_answer_does_not_destroy_it() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "1"}) as server, slow_client(server) as (client, stream):
        client.sendall(REQUEST)
        read_answer(stream)
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for("worker_stopping")
        before = len(server.events)
        client.sendall(LARGE_REQUEST)
        headers = read_head(stream)
        assert headers["Connection"] == "close"
        rest = 1 << 18  # less than the kernel takes for a slow client
        stream.read(int(headers["Content-Length"]) - rest)
        server.wait_for("request", after=before, path="/flip")
        for _ in range(100):
            client.sendall(REQUEST)
        assert len(stream.read(rest)) == rest
        assert stream.read() == b""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_drain_takes_no_longer_than_it_may_and_logs_what_it_cuts(
    landscape: Path, number: signal.Signals
) -> None:
    with (
        LiveServer("--graceful-timeout", "1", environ={"WEB_CONCURRENCY": "1"}) as server,
        ExitStack() as clients,
    ):
        (old,) = pids(server)
        begin_upload(server, landscape.read_bytes(), clients)
        os.kill(server.pid, number)
        server.wait_for("worker_drain_timed_out", pid=old, connections=1)
        server.wait_for("request", path="/flip")
        server.wait_until_gone(old)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_new_worker_is_replaced_while_a_reload_waits_for_an_old_one(
    landscape: Path, number: signal.Signals
) -> None:
    body = landscape.read_bytes()
    with LiveServer("--graceful-timeout", "600", environ=PATIENT) as server, ExitStack() as clients:
        upload = begin_upload(server, body, clients)
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for("worker_stopping")
        new = server.wait_for("worker_online", count=2)["pid"]
        os.kill(new, number)
        server.wait_for("worker_online", count=3)
        assert httpx.post(f"{server.url}/flip", timeout=DEADLINE_S).status_code == 200
        upload.sendall(body)
        with upload.makefile("rb") as stream:
            assert read_answer(stream)[0] == 200


def test_a_worker_that_retires_is_replaced_before_its_last_client_has_left(landscape: Path) -> None:
    body = landscape.read_bytes()
    retire = ("--max-requests", "2", "--graceful-timeout", "600")
    with LiveServer(*retire, environ=PATIENT) as server, ExitStack() as clients:
        upload = begin_upload(server, body, clients)
        for _ in range(2):
            httpx.get(f"{server.url}/healthz")
        server.wait_for("worker_stopping")
        server.wait_for("worker_online", count=2)
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        upload.sendall(body)
        with upload.makefile("rb") as stream:
            assert read_answer(stream)[0] == 200


def test_a_worker_is_replaced_while_another_drains_because_there_was_one_too_many(landscape: Path) -> None:
    with LiveServer("--graceful-timeout", "600", environ=PATIENT) as server, ExitStack() as clients:
        (oldest,) = pids(server)
        begin_upload(server, landscape.read_bytes(), clients)
        os.kill(server.pid, signal.SIGTTIN)
        other = server.wait_for("worker_online", count=2)["pid"]
        os.kill(server.pid, signal.SIGTTOU)
        server.wait_for("worker_stopping", pid=oldest)
        os.kill(other, signal.SIGKILL)
        server.wait_for("worker_online", count=3)
        assert httpx.post(f"{server.url}/flip", timeout=DEADLINE_S).status_code == 200
        os.kill(server.pid, signal.SIGTTIN)
        server.wait_for("worker_online", count=4)
        assert oldest in server.processes()


# --- stop (TERM, INT, QUIT) -------------------------------------------------------------------------------


def is_refused(port: int) -> bool:
    # A reset is no refusal: the listener was closed over a connection that it had taken.
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_a_stop_answers_what_is_in_flight_and_refuses_what_is_new(landscape: Path) -> None:
    body = landscape.read_bytes()
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server, ExitStack() as clients:
        uploads = [begin_upload(server, body, clients) for _ in range(10)]
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for("worker_stopping", count=2)
        assert until(lambda: is_refused(server.port), DEADLINE_S)
        for upload in uploads:
            upload.sendall(body)
        for upload in uploads:
            with upload.makefile("rb") as stream:
                status, headers, _ = read_answer(stream)
                assert (status, headers["Connection"]) == (200, "close")
                assert stream.read() == b""
        for pid in server.processes():
            server.wait_until_gone(pid)
        assert server.stop() == 0


def test_a_stop_can_be_announced_to_a_load_balancer(landscape: Path) -> None:
    environ = {"WEB_CONCURRENCY": "2", "FLIP_DRAIN_S": "3600"}
    with LiveServer(environ=environ) as server, httpx.Client(base_url=server.url) as client:
        processes = server.processes()
        client.get("/healthz").raise_for_status()  # on a connection that stays
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for("arbiter_draining", drain_s=3600)
        for answer in (client.get("/readyz"), httpx.get(f"{server.url}/readyz")):
            assert (answer.status_code, answer.headers["Connection"]) == (503, "close")
            assert "Send requests to another" in answer.json()["detail"]  # all workers say the same
        answer = httpx.post(f"{server.url}/flip", content=landscape.read_bytes())
        assert (answer.status_code, answer.headers["Connection"]) == (200, "close")
        os.kill(server.pid, signal.SIGTERM)  # now
        server.wait_for("worker_stopping", count=2)
        for pid in processes:
            server.wait_until_gone(pid)
        assert is_refused(server.port)
        assert server.wait() == 0


def test_a_stop_follows_its_announcement_by_itself() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "1", "FLIP_DRAIN_S": "0.3"}) as server:
        assert server.stop() == 0
        events = [event["event"] for event in server.events]
        stages = "arbiter_draining", "worker_stopping", "arbiter_stopped"
        assert [event for event in events if event in stages] == [*stages]


def test_a_worker_that_dies_while_a_stop_is_announced_is_replaced_and_not_ready() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "1", "FLIP_DRAIN_S": "3600"}) as server:
        (first,) = pids(server)
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for("arbiter_draining")
        os.kill(first, signal.SIGKILL)
        server.wait_for("worker_online", count=2)
        answer = httpx.get(f"{server.url}/readyz")
        assert (answer.status_code, answer.headers["Connection"]) == (503, "close")


def test_a_connection_is_told_before_a_stop_closes_it() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server:
        port = server.port

        def ask() -> Iterator[None]:
            is_new = True
            try:
                for _ in ask_until_told_to_close(port):
                    is_new = False
                    yield
            except ConnectionError:
                if not is_new:
                    raise
                server.wait_until_gone(server.pid)  # new connections are refused

        with Load(ask, clients=3) as load:
            load.wait_for_more()
            assert server.stop() == 0
    assert load.failures == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_an_interrupt_waits_for_no_client(landscape: Path, number: signal.Signals) -> None:
    body = landscape.read_bytes()
    with (
        LiveServer("--graceful-timeout", "600", environ={"WEB_CONCURRENCY": "2"}) as server,
        ExitStack() as clients,
    ):
        uploads = [begin_upload(server, body, clients) for _ in range(2)]
        processes = server.processes()
        os.kill(server.pid, number)
        for pid in processes:
            server.wait_until_gone(pid)
        assert [upload.recv(100) for upload in uploads] == [b"", b""]


def test_an_interrupt_hastens_a_stop(landscape: Path) -> None:
    with (
        LiveServer("--graceful-timeout", "600", environ={"WEB_CONCURRENCY": "1"}) as server,
        ExitStack() as clients,
    ):
        begin_upload(server, landscape.read_bytes(), clients)
        processes = server.processes()
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for("worker_stopping")
        os.kill(server.pid, signal.SIGINT)
        for pid in processes:
            server.wait_until_gone(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_an_interrupt_does_not_wait_for_a_reload(landscape: Path, number: signal.Signals) -> None:
    with (
        LiveServer("--graceful-timeout", "600", environ=PATIENT) as server,
        ExitStack() as clients,
    ):
        upload = begin_upload(server, landscape.read_bytes(), clients)
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for("worker_stopping")
        processes = server.processes()
        os.kill(server.pid, number)
        for pid in processes:
            server.wait_until_gone(pid)
        assert upload.recv(100) == b""
        assert server.wait() == 0


def test_a_stop_that_waits_behind_a_second_reload_comes_first(landscape: Path) -> None:
    body = landscape.read_bytes()
    with LiveServer(environ=PATIENT) as server, ExitStack() as clients:
        upload = begin_upload(server, body, clients)
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for("worker_stopping")
        os.kill(server.pid, signal.SIGHUP)
        os.kill(server.pid, signal.SIGTERM)
        assert until(lambda: is_refused(server.port), DEADLINE_S)
        upload.sendall(body)
        with upload.makefile("rb") as stream:
            assert read_answer(stream)[0] == 200
        assert server.wait() == 0
        events = [event["event"] for event in server.events]
        assert (events.count("arbiter_reloading"), events.count("worker_booting")) == (1, 2)


def test_a_stop_during_the_preflight_ends_it_together_with_its_engine(copy: Path) -> None:
    pid = copy / "pid"
    hang = f"import pathlib; pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\nwhile True: pass"
    main = "def main() -> None:"
    with LiveServer(root=copy, environ={"WEB_CONCURRENCY": "1"}) as server:
        with broken(copy / "server" / "cluster" / "engine.py", main, f"{hang}\n{main}"):
            os.kill(server.pid, signal.SIGHUP)
            assert until(lambda: pid.exists() and pid.read_text(), DEADLINE_S)
            os.kill(server.pid, signal.SIGTERM)
            assert server.wait_for("reload_refused")["reason"] == "the service is about to stop"
        server.wait_until_gone(int(pid.read_text()))
        assert server.wait() == 0


def test_a_stop_during_a_reload_is_announced_too(landscape: Path) -> None:
    environ = {**PATIENT, "FLIP_DRAIN_S": "3600"}
    with LiveServer("--graceful-timeout", "600", environ=environ) as server, ExitStack() as clients:
        body = landscape.read_bytes()
        upload = begin_upload(server, body, clients)
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for("worker_stopping")
        os.kill(server.pid, signal.SIGHUP)
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for("arbiter_draining", drain_s=3600)
        assert server.wait_for("reload_refused")["reason"] == "the service is about to stop"
        answer = httpx.get(f"{server.url}/readyz")
        assert (answer.status_code, answer.headers["Connection"]) == (503, "close")
        assert httpx.post(f"{server.url}/flip", content=body).status_code == 200
        upload.sendall(body)
        with upload.makefile("rb") as stream:
            assert read_answer(stream)[0] == 200
        assert server.stop() == 0


def test_a_stop_does_not_wait_for_a_worker_that_is_still_starting(copy: Path) -> None:
    with LiveServer(root=copy, environ={"WEB_CONCURRENCY": "1"}) as server:
        (worker,) = server.workers()
        never_ready = "os.mkdir('waiting'); os.read(config.control, 1)"
        entry = "sandbox.close_output()"
        with broken(copy / "server" / "cluster" / "engine.py", entry, never_ready):
            os.kill(worker["pid"], signal.SIGKILL)
            assert until((copy / "waiting").exists, DEADLINE_S)
        assert server.stop() == 0


def test_a_worker_does_not_miss_a_stop_that_comes_as_soon_as_it_is_forked(copy: Path) -> None:
    """The handlers that it has from the arbiter only take note of a signal."""
    forked = "        place.raise_descriptor_limit()"
    stopped = f"        os.kill(os.getpid(), signal.SIGTERM) if os.path.exists('told') else None\n{forked}"
    with (
        broken(copy / "server" / "gateway" / "arbiter.py", forked, stopped),
        LiveServer("--graceful-timeout", "600", root=copy, environ={"WEB_CONCURRENCY": "1"}) as server,
    ):
        (worker,) = server.workers()
        (copy / "told").touch()
        before = len(server.events)
        os.kill(worker["pid"], signal.SIGKILL)
        stopped_pid = server.wait_for("worker_booting", after=before)["pid"]
        server.wait_for("worker_exiting", after=before, pid=stopped_pid)
        (copy / "told").unlink()
        assert "engine_online" not in {event["event"] for event in server.events[before:]}


def test_a_worker_that_is_told_to_stop_as_it_comes_online_ends(copy: Path) -> None:
    online = 'log.info("worker_online"'
    stop = f"os.kill(os.getpid(), {signal.SIGTERM:d})"
    with (
        broken(copy / "server" / "web" / "lifespan.py", online, f"{stop}\n        {online}"),
        LiveServer(root=copy, environ={"WEB_CONCURRENCY": "1"}) as server,
    ):
        server.wait_for("worker_offline")


def test_a_worker_that_is_told_to_stop_is_not_ready() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server, httpx.Client(base_url=server.url) as client:
        pid = int(client.get("/readyz").raise_for_status().headers["X-Worker-PID"])
        os.kill(pid, signal.SIGTERM)
        server.wait_for("worker_stopping", pid=pid)
        answer = client.get("/readyz")
        assert answer.headers["X-Worker-PID"] == str(pid)
        assert answer.status_code == 503
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["Connection"] == "close"
        server.wait_for("worker_offline", pid=pid)
        assert httpx.get(f"{server.url}/readyz").status_code == 200  # the other one takes over


# --- upgrade (USR2) ---------------------------------------------------------------------------------------


def test_an_upgrade_loses_no_request() -> None:
    with (
        LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server,
        Load(partial(ask_once, server.port), clients=3) as load,
    ):
        old = server.processes()
        successor = upgrade(server)
        assert len(server.processes()) == 2 * len(old)
        load.wait_for_more()
        os.kill(server.pid, signal.SIGTERM)
        for pid in old:
            server.wait_until_gone(pid)
        load.wait_for_more()
        assert server.processes()[0] == successor
    assert load.failures == []


def test_an_upgrade_to_what_would_not_start_is_refused(copy: Path) -> None:
    file, was, becomes, says = BREAKAGES["engine"]  # gunicorn itself would not notice
    with LiveServer(root=copy, environ={"WEB_CONCURRENCY": "1"}) as server:
        processes = server.processes()
        with broken(copy / file, was, becomes):
            os.kill(server.pid, signal.SIGUSR2)
            assert says in server.wait_for("upgrade_refused")["reason"]
        assert server.processes() == processes
        assert httpx.post(f"{server.url}/flip").status_code == 200


def test_a_service_with_an_inherited_socket_is_reloaded_but_not_upgraded() -> None:
    with InheritingServer() as server:
        reload(server, workers=1)
        workers = pids(server)
        os.kill(server.pid, signal.SIGUSR2)
        assert "fd://" in server.wait_for("upgrade_refused")["reason"]
        assert pids(server) == workers
        assert httpx.post(f"{server.url}/flip").status_code == 200


def test_a_reload_lets_go_of_the_old_work_socket() -> None:
    """A process that held it would hold what waits in it, too: the images of workers that were killed."""
    with LiveServer(environ={"WEB_CONCURRENCY": "1"}) as server:
        arbiter_had = sockets(server.pid)
        for _ in range(2):
            reload(server, workers=1)
        assert sockets(server.pid) == arbiter_had


def test_an_engine_that_is_stuck_before_it_is_ready_is_replaced(copy: Path) -> None:
    package = copy / "server" / "cluster"
    impatient = broken(package / "supervisor.py", "BOOT_S = 20.0", "BOOT_S = 5.0")
    with impatient, LiveServer(root=copy, environ={"WEB_CONCURRENCY": "1"}) as server:
        (worker,) = server.workers()
        stuck = "os.makedirs('stuck', exist_ok=True); signal.pause()"
        with broken(package / "sandbox.py", "nowhere = os.open(os.devnull, os.O_RDWR)", stuck):
            os.kill(worker["engine_pid"], signal.SIGKILL)
            assert until((copy / "stuck").exists, DEADLINE_S)
        server.wait_for("engine_died", count=2, signal="SIGKILL")
        server.wait_for("engine_online", count=2)
        assert httpx.post(f"{server.url}/flip").status_code == 200


def test_a_fork_that_fails_is_tried_again_and_ends_nothing(copy: Path) -> None:
    with (copy / "gunicorn.conf.py").open("a") as configuration:
        configuration.write(
            "def _fork(forks=iter([os.fork, os.fork, int.__call__, os.fork]), real=os.fork):\n"
            "    if next(forks, real) is not real:\n"
            "        raise BlockingIOError(11, 'no process left')\n"
            "    return real()\n"
            "os.fork = _fork\n"
        )
    with LiveServer(root=copy, environ={"WEB_CONCURRENCY": "2"}) as server:
        victim = server.workers()[0]["pid"]
        os.kill(victim, signal.SIGKILL)
        assert "no process left" in server.wait_for("worker_spawn_failed")["error"]
        server.wait_for("worker_online", count=3)
        assert len(server.workers()) == 2  # no row of the scoreboard is lost
        assert httpx.post(f"{server.url}/flip", timeout=DEADLINE_S).status_code == 200


def test_without_a_compiled_kernel_the_service_says_so_and_works(copy: Path) -> None:
    def flip(server: LiveServer, **query: str) -> httpx.Response:
        return httpx.post(f"{server.url}/flip", params=query, timeout=DEADLINE_S)

    with LiveServer(root=copy, environ={"WEB_CONCURRENCY": "1"}) as server:
        assert flip(server).headers["X-Image-Path"] == "lossless"
        assert "lossless_unavailable" not in {event["event"] for event in server.events}
    for compiled in (copy / "server" / "imaging" / "jpeg").glob("entropy.*.so"):
        compiled.unlink()
    with LiveServer(root=copy, environ={"WEB_CONCURRENCY": "1"}) as server:
        assert "make install" in server.wait_for("lossless_unavailable")["reason"]
        assert flip(server).headers["X-Image-Path"] == "pixels"
        assert "without its compiled module" in flip(server, path="lossless").json()["detail"]
