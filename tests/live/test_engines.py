"""Engines as the service starts them: in their jail, and gone with their worker."""

import os
import signal
from pathlib import Path

import httpx
import pytest
from support.live_server import DEADLINE_S, LiveServer

from benchmarks.harness.waiting import until
from server.cluster.liveness import read_state


def background_engine(server: LiveServer, **query: str) -> int:
    """Submit a job, and return the engine that was started for it."""
    headers = {"Prefer": "respond-async"}
    job = httpx.post(f"{server.url}/flip", params=query, headers=headers, timeout=DEADLINE_S)
    assert job.status_code == 202
    pid: int = server.wait_for("engine_online", role="background")["pid"]
    return pid


def ticks_of(pid: int) -> int:
    """Return the CPU time that a process has used, in ticks of the kernel's clock."""
    state = read_state(pid)
    assert state
    return state[1]


def filters_of(pid: int) -> int:
    """Count the filters of system calls that a process is under, those of a container included (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in status)["Seccomp_filters"])


@pytest.mark.parametrize(("environ", "more"), [({}, 1), ({"FLIP_SANDBOX": "off"}, 0)], ids=["default", "off"])
def test_engines_of_both_roles_are_jailed_unless_that_is_turned_off(
    environ: dict[str, str], more: int, tmp_path: Path
) -> None:
    jobs = {"FLIP_JOBS": "embedded", "FLIP_DATA_DIR": str(tmp_path)}
    with LiveServer(environ={"WEB_CONCURRENCY": "1", **jobs, **environ}) as server:
        (worker,) = server.workers()
        for engine in (worker["engine_pid"], background_engine(server)):
            assert filters_of(engine) == filters_of(worker["pid"]) + more


def test_a_worker_that_stops_does_not_wait_for_a_background_engine_without_cpu_time(tmp_path: Path) -> None:
    environ = {"WEB_CONCURRENCY": "1", "FLIP_JOBS": "embedded", "FLIP_DATA_DIR": str(tmp_path)}
    # A stopped engine gets as little as one that starves for ever, and is not to be taken for hung here.
    environ |= {"FLIP_HUNG_AFTER_S": "0"}
    with LiveServer("--graceful-timeout", "600", environ=environ) as server:
        starved = background_engine(server, format="avif", effort="high")
        begun = ticks_of(starved)
        assert until(lambda: ticks_of(starved) > begun + 10, DEADLINE_S)  # it is in the middle of the image
        os.kill(starved, signal.SIGSTOP)
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert read_state(starved) is None
