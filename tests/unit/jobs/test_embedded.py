"""The embedded store: one server for a directory, however many services want it and whatever happens."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from redis import Redis
from structlog.testing import capture_logs
from support.live_server import DEADLINE_S, ROOT, LiveServer

from benchmarks.harness.waiting import until
from server.jobs import embedded
from server.jobs.embedded import EmbeddedStore, StoreNotStarted, find_program, is_ready, why_not
from server.settings import Settings

# The arbiter has no threads, but a worker of pytest-xdist has.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "store" / "valkey.sock"


@contextmanager
def running(path: Path) -> Iterator[EmbeddedStore]:
    store = EmbeddedStore(path, None)
    try:
        store.start()
        yield store
    finally:
        store.stop()


def client(path: Path) -> Redis:
    return Redis(unix_socket_path=str(path), decode_responses=True)


def pid_of(path: Path) -> int:
    with client(path) as redis:
        return int(redis.info("server")["process_id"])


def wait_for_another(store: EmbeddedStore, path: Path, than: int) -> int:
    """Watch as the arbiter does until another server answers."""
    LiveServer.wait_until_gone(than)
    assert until(lambda: store.watch() and is_ready(path))
    pid = pid_of(path)
    assert pid != than
    return pid


def script(tmp_path: Path, text: str) -> Path:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o700)
    return program


def why_it_does_not_start(store: EmbeddedStore) -> str:
    with pytest.raises(StoreNotStarted) as caught:
        store.start()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- one server -------------------------------------------------------------------------------------------


def test_it_answers_when_start_returns_and_is_gone_when_stop_does(path: Path) -> None:
    with running(path):
        pid = pid_of(path)
        with client(path) as redis:
            assert redis.config_get("appendfsync") == {"appendfsync": "always"}
            assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert redis.config_get("port") == {"port": "0"}
    LiveServer.wait_until_gone(pid)
    assert not is_ready(path)


def test_only_its_user_may_open_its_files(path: Path) -> None:
    with running(path), client(path) as redis:
        redis.set("key", "value")
        found = [path.parent.parent, *path.parent.parent.rglob("*")]
        modes = {each.name: stat.S_IMODE(each.lstat().st_mode) for each in found}
        folders = {each.name for each in found if each.is_dir()} | {path.name}
        assert {"data", "store", "appendonlydir", "lock", "log", "valkey.sock"} <= modes.keys()
        assert modes == {name: 0o700 if name in folders else 0o600 for name in modes}


def test_the_data_outlives_a_server_that_is_killed(path: Path) -> None:
    with running(path) as store:
        for number in range(3):
            pid = pid_of(path)
            with client(path) as redis:
                assert redis.incr("key") == number + 1
            os.kill(pid, signal.SIGKILL)
            wait_for_another(store, path, than=pid)


def test_the_data_outlives_a_stop(path: Path) -> None:
    with running(path), client(path) as redis:
        redis.set("key", "value")
    with running(path), client(path) as redis:
        assert redis.get("key") == "value"


def test_a_socket_that_was_left_behind_is_replaced(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert path.is_socket()
    assert not is_ready(path)
    with running(path):
        assert is_ready(path)


def test_a_server_that_still_reads_its_data_is_not_ready(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_ANSWER_S", DEADLINE_S)

    def say(answer: bytes) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(100)
            connection.sendall(answer)

    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server, ThreadPoolExecutor(1) as threads:
        server.bind(str(path))
        server.listen()
        threads.submit(say, b"-LOADING the dataset\r\n")
        assert not is_ready(path)
        threads.submit(say, b"+PONG\r\n")
        assert is_ready(path)


def test_a_server_that_has_answered_is_restarted_at_once_and_is_told_of(path: Path) -> None:
    with running(path):
        pass  # its last words are no reason for what comes
    with capture_logs() as events, running(path) as store:
        for _ in range(4):
            pid = pid_of(path)
            assert until(lambda: store.watch() == 1.0)  # it has seen the answer
            os.kill(pid, signal.SIGKILL)
            wait_for_another(store, path, than=pid)
    deaths = [event for event in events if event["event"] == "store_died"]
    assert [(event["restart_in_s"], event["reason"]) for event in deaths] == [(0.0, None)] * 4


def test_a_server_that_ends_at_once_is_restarted_less_and_less_often(path: Path, tmp_path: Path) -> None:
    store = EmbeddedStore(path, script(tmp_path, "echo no way"))

    def delays() -> list[float]:
        store.watch()
        return [event["restart_in_s"] for event in events if event["event"] == "store_died"]

    with capture_logs() as events:
        assert until(lambda: len(delays()) == 4)
        store.stop()
    assert delays() == [0.0, 0.1, 0.2, 0.4]
    assert {event["reason"] for event in events if event["event"] == "store_died"} == {"no way"}


def test_a_server_that_is_killed_while_it_rewrites_its_data_is_replaced(path: Path) -> None:
    with running(path) as store:
        pid = pid_of(path)
        try:
            with client(path) as redis:
                redis.set("key", "value")
                redis.config_set("rdb-key-save-delay", 600_000_000)  # microseconds: the rewrite does not end
                redis.bgrewriteaof()
                assert until(lambda: redis.info("persistence")["aof_rewrite_in_progress"])
            os.kill(pid, signal.SIGKILL)
            wait_for_another(store, path, than=pid)
            with client(path) as redis:
                assert redis.get("key") == "value"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def test_its_signals_are_not_blocked_and_those_of_a_terminal_do_not_reach_it(path: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        with running(path):
            status = Path(f"/proc/{pid_of(path)}/status").read_text()
            assert "SigBlk:\t0000000000000000\n" in status
            assert os.getpgid(pid_of(path)) == pid_of(path)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_it_ends_with_its_arbiter_and_the_next_one_starts_another(path: Path) -> None:
    program = (
        "import sys, signal, pathlib\n"
        "from server.jobs.embedded import EmbeddedStore\n"
        "store = EmbeddedStore(pathlib.Path(sys.argv[1]), None)\n"
        "store.start(); print('started', flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as arbiter:
        assert arbiter.stdout
        assert "started" in (line.strip() for line in arbiter.stdout)
        pid = pid_of(path)
        arbiter.kill()
    LiveServer.wait_until_gone(pid)
    with running(path):
        assert pid_of(path) != pid


# --- a guest ----------------------------------------------------------------------------------------------


def test_a_second_service_uses_the_server_of_the_first_and_takes_over(path: Path) -> None:
    with running(path) as first, running(path) as second:
        pid = pid_of(path)
        with client(path) as redis:
            redis.set("key", "value")
        second.watch()
        assert pid_of(path) == pid
        first.stop()
        wait_for_another(second, path, than=pid)
        with client(path) as redis:
            assert redis.get("key") == "value"
        first.start()  # now it is the guest
        pid = pid_of(path)
        first.stop()
        assert pid_of(path) == pid


def test_a_guest_looks_more_often(path: Path) -> None:
    with running(path) as first, running(path) as second:
        assert (first.watch(), second.watch()) == (1.0, 0.1)


# --- what does not start ----------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_made_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "store" / "valkey.sock"
    for reason in (why_it_does_not_start(EmbeddedStore(path, None)), why_not(path, None)):
        assert reason
        assert reason.startswith(f"FLIP_DATA_DIR: {tmp_path / 'file'}")
        assert "FLIP_JOBS=off" in reason


def test_a_full_disk_is_told_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    reason = why_it_does_not_start(EmbeddedStore(path, None))
    assert reason.startswith(f"FLIP_DATA_DIR: {path.parent}: No space left on device")


def test_a_store_waits_until_there_is_room_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_RETRY_S", 2.0)
    store = EmbeddedStore(path, None)
    with monkeypatch.context() as patch, capture_logs() as events:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
        for _ in range(3):
            assert store.watch() == 0.1
    assert [event["event"] for event in events] == ["store_not_started"]
    assert until(lambda: store.watch() == 1.0)
    store.stop()


def test_without_a_program_the_reason_says_what_to_install(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = why_it_does_not_start(EmbeddedStore(path, None))
    assert "FLIP_VALKEY" in reason
    assert why_not(path, None) == reason
    program = tmp_path / "redis-server"
    program.touch(0o700)
    assert find_program(None) == str(program)


def test_a_program_that_is_none_is_told_of(path: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.touch(0o700)
    program.write_bytes(b"\0")
    assert str(program) in why_it_does_not_start(EmbeddedStore(path, program))


def test_a_server_that_ends_at_once_is_told_of_in_its_last_words(path: Path, tmp_path: Path) -> None:
    store = EmbeddedStore(
        path, script(tmp_path, "echo first; echo '9:M 1 Jan 2026 00:00:00.000 # no way' >&2")
    )
    assert why_it_does_not_start(store).endswith("has ended at once: no way")


def test_a_program_that_is_no_server_is_told_of(path: Path, tmp_path: Path) -> None:
    program = script(tmp_path, "true")
    assert f"{program} (FLIP_VALKEY)" in why_it_does_not_start(EmbeddedStore(path, program))


def test_a_server_that_does_not_answer_is_stopped(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_START_S", 0.2)
    store = EmbeddedStore(path, script(tmp_path, "exec sleep 600"))
    assert "has not answered" in why_it_does_not_start(store)
    with running(path):  # the lock is free
        pass


def fill(path: Path) -> Path:
    """Write a hundred keys, and return the file that holds them."""
    with running(path), client(path) as redis:
        for number in range(100):
            redis.set(f"key{number}", "x" * 100)
    (written,) = path.parent.glob("appendonlydir/*.incr.aof")
    return written


def test_data_whose_end_is_damaged_is_read_up_to_there(path: Path) -> None:
    written = fill(path)
    written.write_bytes(written.read_bytes()[:-10])
    with running(path), client(path) as redis:
        assert redis.dbsize() == 99


def test_data_that_is_damaged_in_the_middle_is_told_of_and_kept(path: Path) -> None:
    written = fill(path)
    damaged = bytearray(written.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 200] = b"\xff" * 200
    written.write_bytes(damaged)
    reason = why_it_does_not_start(EmbeddedStore(path, None))
    assert str(path.parent / "appendonlydir") in reason
    assert "docs/runbook.md" in reason
    assert written.read_bytes() == bytes(damaged)


def test_asking_why_not_makes_nothing(path: Path, tmp_path: Path) -> None:
    assert why_not(path, None) is None
    assert list(tmp_path.iterdir()) == []


def test_the_url_leads_to_the_socket_whatever_the_directory_is_called(tmp_path: Path) -> None:
    settings = Settings.from_environ({"FLIP_DATA_DIR": str(tmp_path / "a b%20?#ü")})
    assert settings.store_url
    with running(settings.store_socket), Redis.from_url(settings.store_url) as redis:
        assert redis.ping()


def test_no_descriptor_for_the_question_is_no_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", no_socket)
    assert not is_ready(path)


def test_a_bug_while_the_store_is_watched_does_not_reach_the_arbiter(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddedStore(path, None)

    def fail() -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(store, "_ensure_server", fail)
    with capture_logs() as events:
        assert store.watch() > 0
    assert [(event["event"], event["part"]) for event in events] == [("part_failed", "store_watch")]
