"""The life of the cluster: it starts as told, mends what dies, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.live_server import DEADLINE_S, ROOT, LiveServer, run
from support.places import without_threads

GUNICORN = [sys.executable, "-m", "gunicorn"]


def test_there_is_a_worker_and_an_engine_for_each_core() -> None:
    with LiveServer() as server:
        workers = server.workers()
        assert len(workers) == len(os.sched_getaffinity(0))
        assert len({worker["engine_pid"] for worker in workers}) == len(workers)
        # The arbiter, its workers, their engines, and no other process.
        assert len(server.processes()) == 1 + 2 * len(workers)


@pytest.fixture(scope="module")
def single() -> Iterator[LiveServer]:
    """One worker, for tests that leave it an engine that has done a task."""
    with LiveServer(environ={"WEB_CONCURRENCY": "1"}) as server:
        yield server


def test_one_worker_is_the_single_process_mode(single: LiveServer) -> None:
    assert len(single.workers()) == 1


def test_the_command_line_overrides_the_configuration(tmp_path: Path) -> None:
    door = tmp_path / "door"
    with LiveServer("-b", f"unix:{door}", "-w", "1", environ={"WEB_CONCURRENCY": "1"}) as server:
        assert server.url.endswith(str(door))
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(door))) as client:
            assert client.post("http://localhost/flip").status_code == 200


def test_the_engines_run_at_a_lower_priority_and_keep_their_memory(server: LiveServer) -> None:
    for worker in server.workers():
        assert os.getpriority(os.PRIO_PROCESS, worker["pid"]) == 0
        assert os.getpriority(os.PRIO_PROCESS, worker["engine_pid"]) == 10
        environ = Path(f"/proc/{worker['engine_pid']}/environ").read_bytes()
        assert b"MALLOC_MMAP_THRESHOLD_=" in environ
        assert b"MALLOC_TRIM_THRESHOLD_=" in environ


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"FLIP_MAX_PIXELS": "many"}, "FLIP_MAX_PIXELS"),
        ({"FLIP_MAX_PIXLES": "5"}, "FLIP_MAX_PIXLES"),
        ({"FLIP_SAMPLE_IMAGE": "/nowhere.jpg"}, "FLIP_SAMPLE_IMAGE"),
        ({"WEB_CONCURRENCY": "0"}, "WEB_CONCURRENCY"),
        ({"GUNICORN_CMD_ARGS": "-k asgi"}, "-k"),
        ({"GUNICORN_CMD_ARGS": "--reload"}, "HUP"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_a_clear_line(environ: dict[str, str], says: str) -> None:
    result = run([*GUNICORN, "-b", "127.0.0.1:0"], **environ)
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV"), (signal.SIGBUS, "SIGBUS")],
)
def test_an_engine_that_dies_is_logged_and_replaced(
    single: LiveServer, number: signal.Signals, name: str
) -> None:
    (worker,) = single.workers()
    before = len(single.events)
    os.kill(worker["engine_pid"], number)
    single.wait_for("engine_died", after=before, pid=worker["engine_pid"], signal=name, restart_in_s=0.0)
    successor = single.wait_for("engine_online", after=before)
    assert httpx.post(f"{single.url}/flip").headers["X-Engine-PID"] == str(successor["pid"])
    assert single.workers()[0]["engine_deaths"] == worker["engine_deaths"] + 1


def test_a_request_whose_engine_is_killed_is_answered_by_another() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server, ThreadPoolExecutor(8) as threads:
        before = len(server.events)
        answers = [threads.submit(httpx.post, f"{server.url}/flip", timeout=DEADLINE_S) for _ in range(8)]
        os.kill(server.workers()[0]["engine_pid"], signal.SIGKILL)
        assert [answer.result().status_code for answer in answers] == [200] * 8
        server.wait_for("engine_online", after=before)


def test_a_worker_that_dies_is_logged_and_replaced_with_its_engine() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server:
        victim, survivor = server.workers()
        before = len(server.events)
        os.kill(victim["pid"], signal.SIGKILL)
        server.wait_for("worker_died", after=before, pid=victim["pid"], signal="SIGKILL")
        server.wait_for("worker_online", after=before)
        workers = {worker["pid"]: worker for worker in server.workers()}
        assert len(workers) == 2
        assert workers[survivor["pid"]]["engine_pid"] == survivor["engine_pid"]
        server.wait_until_gone(victim["engine_pid"])


def test_a_request_whose_engine_is_stopped_is_answered_by_another() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "1"}) as server, ThreadPoolExecutor(1) as threads:
        before = len(server.events)
        (worker,) = server.workers()
        os.kill(worker["engine_pid"], signal.SIGSTOP)
        answer = threads.submit(httpx.post, f"{server.url}/flip", timeout=DEADLINE_S)
        server.wait_for("engine_hung", after=before, pid=worker["engine_pid"], state="T")
        assert answer.result().status_code == 200
        assert answer.result().headers["X-Engine-PID"] != str(worker["engine_pid"])


def test_a_worker_that_is_stopped_is_replaced() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server:
        before = len(server.events)
        victim, _ = server.workers()
        os.kill(victim["pid"], signal.SIGSTOP)
        server.wait_for("worker_hung", after=before, pid=victim["pid"])
        server.wait_for("worker_online", after=before)
        assert len(server.workers()) == 2
        server.wait_until_gone(victim["engine_pid"])


def test_a_crash_loop_is_slowed_down() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "1"}) as server:
        before = len(server.events)
        for death in range(1, 4):
            worker = server.wait_for("worker_online", count=death)
            os.kill(worker["pid"], signal.SIGKILL)
            server.wait_for("worker_died", after=before, count=death)
        server.wait_for("worker_online", count=4)
        delays = [event["delay_s"] for event in server.events if event["event"] == "worker_restart_delayed"]
        assert delays == [0.1, 0.2]


def test_workers_that_crash_together_are_all_slowed_down() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server:
        for death in range(1, 3):
            server.wait_for("worker_online", count=2 * death)
            for worker in server.workers():
                os.kill(worker["pid"], signal.SIGKILL)
        server.wait_for("worker_online", count=6)
        delays = [event["delay_s"] for event in server.events if event["event"] == "worker_restart_delayed"]
        assert sorted(delays) == [0.1, 0.2, 0.4]


def test_a_worker_that_cannot_boot_takes_no_other_along(tmp_path: Path) -> None:
    mark = tmp_path / "no-threads"
    environ = {"WEB_CONCURRENCY": "2", **without_threads(tmp_path, at_once=False)}
    with LiveServer(environ=environ) as server:
        victim, survivor = server.workers()
        mark.touch()
        before = len(server.events)
        os.kill(victim["pid"], signal.SIGKILL)
        server.wait_for("worker_died", after=before, exit_code=1, count=2)
        assert httpx.post(f"{server.url}/flip").headers["X-Worker-PID"] == str(survivor["pid"])
        os.kill(survivor["engine_pid"], signal.SIGKILL)
        server.wait_for("engine_online", after=before)
        mark.unlink()
        server.wait_for("worker_online", after=before)
        assert survivor["pid"] in {worker["pid"] for worker in server.workers()}


def test_a_worker_that_retires_is_replaced_without_delay() -> None:
    with LiveServer("--max-requests", "1", environ={"WEB_CONCURRENCY": "1"}) as server:
        for retirement in range(2, 6):
            httpx.get(f"{server.url}/healthz")
            server.wait_for("worker_online", count=retirement)
        assert "worker_restart_delayed" not in {event["event"] for event in server.events}


def test_the_configuration_works_from_another_directory(tmp_path: Path) -> None:
    conf = str(ROOT / "gunicorn.conf.py")
    result = subprocess.run(
        [*GUNICORN, "-c", conf, "--check-config"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_an_engine_crash_loop_is_slowed_down() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "1"}) as server:
        for death in range(1, 4):
            engine = server.wait_for("engine_online", count=death)
            os.kill(engine["pid"], signal.SIGKILL)
            server.wait_for("engine_died", count=death)
        delays = [event["restart_in_s"] for event in server.events if event["event"] == "engine_died"]
        assert delays == [0.0, 0.1, 0.2]


def done(answer: Future[httpx.Response]) -> bool:
    return answer.done()


def test_stopping_ends_every_process_and_keeps_its_word() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server:
        assert len(server.processes()) == 5
        with ThreadPoolExecutor(4) as threads:
            before = len(server.events)
            answers = [threads.submit(httpx.post, f"{server.url}/flip", timeout=DEADLINE_S) for _ in range(4)]
            # Those that are done first: one that ends between the two looks must not count twice.
            while sum(map(done, answers)) + sum(worker["in_flight"] for worker in server.workers()) < 4:
                pass  # bounded by the requests' own timeouts
            assert server.stop() == 0
            assert [answer.result().status_code for answer in answers] == [200] * 4
        assert server.processes() == []
        assert not [event for event in server.events[before:] if event.get("level") == "error"]


def test_nothing_outlives_an_arbiter_that_is_killed() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server:
        arbiter, *others = server.processes()
        assert len(others) == 4
        os.kill(arbiter, signal.SIGKILL)
        for pid in others:
            server.wait_until_gone(pid)
        assert server.processes() == []


def test_an_engine_ignores_signals_that_are_meant_for_the_arbiter(server: LiveServer) -> None:
    engine_pid = server.workers()[0]["engine_pid"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        os.kill(engine_pid, number)
    assert httpx.post(f"{server.url}/flip").status_code == 200
    assert server.workers()[0]["engine_pid"] == engine_pid
