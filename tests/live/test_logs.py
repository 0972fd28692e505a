"""The log: one line per request, one form for all who write, readable on a terminal."""

import os
import pty
import signal
import subprocess
import sys
import time

import httpx
from support.live_server import DEADLINE_S, ROOT, LiveServer, clean_environ


def test_a_request_leaves_one_line_with_all_that_matters(server: LiveServer) -> None:
    before = len(server.events)
    response = httpx.post(f"{server.url}/flip", content=b"nonsense", headers={"X-Request-ID": "line-1"})
    line = server.wait_for("request", after=before, request_id="line-1")
    assert line["method"] == "POST"
    assert line["path"] == "/flip"
    assert line["status"] == 415
    assert line["bytes_in"] == len(b"nonsense")
    assert line["bytes_out"] == len(response.content)
    assert line["ms"] > 0
    assert line["worker"] == int(response.headers["X-Worker-PID"])
    assert line["engine"] in {worker["engine_pid"] for worker in server.workers()}
    assert [event for event in server.events if event.get("request_id") == "line-1"] == [line]


def test_every_line_has_the_same_form_whoever_writes_it() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "1"}) as server:
        httpx.get(f"{server.url}/healthz")
        os.kill(server.workers()[0]["engine_pid"], signal.SIGKILL)
        server.wait_for("engine_online", count=2)
        server.stop()
    assert {"event", "level", "timestamp"} <= set.intersection(*(set(event) for event in server.events))
    story = [event["event"] for event in server.events if event["event"] != "request"]
    assert story == [
        "arbiter_starting",
        "arbiter_listening",
        "worker_booting",
        "engine_online",
        "worker_online",
        "engine_died",
        "engine_online",
        "signal_received",
        "worker_stopping",
        "worker_offline",
        "worker_exiting",
        "arbiter_stopped",
    ]


def test_a_terminal_shows_readable_lines_and_what_to_do_next() -> None:
    ours, theirs = pty.openpty()
    with (
        open(ours, "rb", buffering=0) as terminal,  # noqa: PTH123 a descriptor has no path
        subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "-w", "1"],
            cwd=ROOT,
            env=clean_environ(),
            stdin=subprocess.DEVNULL,
            stderr=theirs,
            start_new_session=True,
        ) as process,
    ):
        os.close(theirs)
        try:
            seen = ""
            deadline = time.monotonic() + DEADLINE_S
            while "worker_online" not in seen and time.monotonic() < deadline:
                seen += terminal.read(65536).decode()
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
    assert "worker_online" in seen
    assert '{"event"' not in seen
    assert "Try: curl --data-binary @images/landscape.jpg http://localhost:" in seen
