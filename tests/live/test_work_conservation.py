"""Work conservation: no engine is idle while a task waits."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import sub
from pathlib import Path
from statistics import median
from threading import Barrier

import httpx
import pytest
from support.live_server import DEADLINE_S, Event, LiveServer

ROUNDS = 30


@pytest.fixture(scope="module")
def tracing_server() -> Iterator[LiveServer]:
    """At this log level each task tells when it was sent, started and done, on one clock for all."""
    with LiveServer("--log-level", "debug", environ={"WEB_CONCURRENCY": "2"}) as server:
        yield server


@pytest.mark.parametrize("at_once", [2, 3, 4])
def test_no_engine_is_idle_while_a_job_waits(tracing_server: LiveServer, at_once: int) -> None:
    engines = {worker["engine_pid"] for worker in tracing_server.workers()}
    with ThreadPoolExecutor(at_once) as threads:
        for round_number in range(ROUNDS):
            before_us = {engine: cpu_and_delay_us(engine) for engine in engines}
            tasks = run_round(tracing_server, threads, at_once)
            # A process needs a moment to wake up; half a task is longer than any such moment and shorter
            # than any wait behind another task.
            tolerance_us = median(task["ended_us"] - task["started_us"] for task in tasks) / 2
            for engine in engines:
                # An engine that other processes keep off the cores is not idle. What its tasks took beyond
                # its CPU time is the delay within them, which excuses nothing between them.
                cpu_us, delay_us = map(sub, cpu_and_delay_us(engine), before_us[engine])
                wall_us = sum(
                    task["ended_us"] - task["started_us"] for task in tasks if task["engine"] == engine
                )
                excused_us = max(0, delay_us - max(0, wall_us - cpu_us))
                for task in tasks:
                    idle_us = idle_time_us(engine, tasks, task["sent_us"], task["started_us"])
                    assert idle_us - excused_us < tolerance_us, (
                        f"round {round_number}: {engine} idle, {task} waits, {tasks}, {excused_us=}"
                    )


def run_round(server: LiveServer, threads: ThreadPoolExecutor, at_once: int) -> list[Event]:
    before = len(server.events)
    line_up = Barrier(at_once)

    def post() -> int:
        # A connection of its own, so that the kernel may give it to either worker.
        with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as client:
            client.get("/healthz")
            line_up.wait(DEADLINE_S)
            # The pixel path takes long enough to tell scheduling delay from queueing.
            return client.post("/flip", params={"path": "pixels"}).status_code

    answers = [threads.submit(post) for _ in range(at_once)]
    assert [answer.result() for answer in answers] == [200] * at_once
    server.wait_for("task_done", after=before, count=at_once)
    return [event for event in server.events[before:] if event["event"] == "task_done"]


def cpu_and_delay_us(pid: int) -> tuple[int, int]:
    """How long a process ran, and was ready to run and waited for a core (Linux, sched-stats)."""
    cpu_ns, delay_ns, _ = map(int, Path(f"/proc/{pid}/schedstat").read_text().split())
    return cpu_ns // 1000, delay_ns // 1000


def idle_time_us(engine: int, tasks: list[Event], start_us: int, end_us: int) -> int:
    """How long an engine did nothing between two moments."""
    busy_us = sum(
        max(0, min(task["ended_us"], end_us) - max(task["started_us"], start_us))
        for task in tasks
        if task["engine"] == engine
    )
    return end_us - start_us - busy_us


def test_a_small_image_does_not_wait_for_a_big_one(tracing_server: LiveServer) -> None:
    """One engine is busy for long; the images of all other clients pass through the other one."""
    big = {"format": "avif"}  # the slowest encoder we have
    with ThreadPoolExecutor(1) as threads:
        before = len(tracing_server.events)
        slow = threads.submit(httpx.post, f"{tracing_server.url}/flip", params=big, timeout=DEADLINE_S)
        while not slow.done() and not any(worker["in_flight"] for worker in tracing_server.workers()):
            pass  # bounded by the request's own timeout
        quick = [httpx.post(f"{tracing_server.url}/orient") for _ in range(6)]
        assert not slow.done()
        assert len({answer.headers["X-Engine-PID"] for answer in quick}) == 1
        assert slow.result().headers["X-Engine-PID"] != quick[0].headers["X-Engine-PID"]
        assert tracing_server.wait_for("task_done", after=before, count=7)
