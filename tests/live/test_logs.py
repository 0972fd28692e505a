"""The log: one line per request, one form for all who write, readable on a terminal."""

import os
import pty
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from support.live_server import DEADLINE_S, ROOT, LiveServer, clean_environ

from benchmarks.harness.waiting import until


def test_a_request_leaves_one_line_with_all_that_matters(server: LiveServer) -> None:
    before = len(server.events)
    response = httpx.post(f"{server.url}/flip", content=b"nonsense", headers={"X-Request-ID": "line-1"})
    line = server.wait_for("request", after=before, request_id="line-1")
    assert line["client"] == "127.0.0.1"
    assert line["method"] == "POST"
    assert line["path"] == "/flip"
    assert line["status"] == 415
    assert line["problem"] == "unsupported-image"
    assert line["bytes_in"] == len(b"nonsense")
    assert line["bytes_out"] == len(response.content)
    assert line["ms"] > 0
    assert line["worker"] == int(response.headers["X-Worker-PID"])
    assert line["engine"] in {worker["engine_pid"] for worker in server.workers()}
    assert line["image_path"] is None
    assert [event for event in server.events if event.get("request_id") == "line-1"] == [line]


@pytest.mark.parametrize("path", ["lossless", "pixels"])
def test_a_request_says_how_its_image_was_made(server: LiveServer, path: str) -> None:
    response = httpx.post(f"{server.url}/flip", params={"path": path}, headers={"X-Request-ID": f"by-{path}"})
    assert response.status_code == 200, response.text
    assert server.wait_for("request", request_id=f"by-{path}")["image_path"] == path


def test_a_body_that_cannot_be_parsed_leaves_one_line_too(server: LiveServer) -> None:
    before = len(server.events)
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as client:
        client.sendall(
            b"POST /flip HTTP/1.1\r\nHost: x\r\nX-Request-ID: line-2\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        )
        held = b"flip_held_bytes 3.0"
        assert until(lambda: held in httpx.get(f"{server.url}/metrics").content, DEADLINE_S)
        client.sendall(b"zz\r\n")
        with client.makefile("rb") as stream:
            answer = stream.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"x-request-id: line-2\r\n" in answer
    line = server.wait_for("request", after=before, request_id="line-2")
    assert [line[name] for name in ("method", "path", "status", "bytes_in")] == ["POST", "/flip", 400, 3]
    # Whatever the app may have to say about it would come before the next request.
    answer_id = httpx.get(f"{server.url}/healthz", headers={"X-Request-ID": "line-3"}).headers["X-Request-ID"]
    server.wait_for("request", after=before, request_id=answer_id)
    lines = [event for event in server.events[before:] if event["event"] == "request"]
    assert [event["request_id"] for event in lines if event["path"] == "/flip"] == ["line-2"]


def test_every_line_has_the_same_form() -> None:
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
