"""The limits for slow clients hold over TLS too, where what is written and what is sent are two things."""

import socket
import ssl
import time
from collections.abc import Iterator

import pytest
from support.certificates import certificate
from support.live_server import DEADLINE_S, LiveServer

IMAGE = b"P6 1000 350 255\n" + bytes(1_050_000)
REQUEST = b"POST /flip HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    cert, key = certificate(tmp_path_factory.mktemp("tls"))
    environ = {
        "WEB_CONCURRENCY": "1",
        "FLIP_HEADERS_TIMEOUT_S": "1",
        "FLIP_SLOW_AFTER_S": "1",
        "FLIP_MIN_BYTES_PER_S": "100000",
    }
    with LiveServer("--certfile", cert, "--keyfile", key, environ=environ) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_fault_of_ours(server: LiveServer) -> Iterator[None]:
    before = len(server.events)
    yield
    assert [event for event in server.events[before:] if event["level"] == "error"] == []


def connect(server: LiveServer) -> ssl.SSLSocket:
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    plain.settimeout(DEADLINE_S)
    plain.connect(("127.0.0.1", server.port))
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(plain)


def test_a_handshake_that_does_not_come_is_not_waited_for(server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as connection:
        assert connection.recv(1) == b""


def test_headers_that_do_not_come_are_answered_once(server: LiveServer) -> None:
    before = len(server.events)
    with connect(server) as connection:
        connection.sendall(b"POST /flip HTTP/1.1\r\nHost:")
        server.wait_for("slow_client_disconnected", after=before, stage="headers")
        # This client has not agreed to the end yet, and is looked at until another one's time is up.
        with connect(server) as another:
            another.sendall(b"POST /flip HTTP/1.1\r\nHost:")
            server.wait_for("slow_client_disconnected", after=before, stage="headers", count=2)
    timed_out = [event for event in server.events[before:] if event.get("status") == 408]
    assert len(timed_out) == 2


def test_a_download_that_is_fast_enough_is_not_cut_off(server: LiveServer) -> None:
    """What waits in the buffer of the transport below TLS has not been taken."""
    with connect(server) as connection:
        connection.sendall(REQUEST)
        begun_s = time.monotonic()
        received = 0
        while received < len(IMAGE):
            piece = connection.recv(4096)
            assert piece, f"cut off after {received} bytes in {time.monotonic() - begun_s} s"
            received += len(piece)
            time.sleep(max(0, begun_s + received / 150_000 - time.monotonic()))


def test_a_download_that_is_not_taken_is_cut_off(server: LiveServer) -> None:
    before = len(server.events)
    with connect(server) as connection:
        connection.sendall(REQUEST)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        server.wait_for("slow_client_disconnected", after=before, stage="download")
        server.wait_for("request", after=before, status=499)


def test_a_client_that_ends_its_side_and_takes_nothing_is_cut_off_too(server: LiveServer) -> None:
    before = len(server.events)
    with connect(server) as connection:
        connection.sendall(REQUEST)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        connection.shutdown(socket.SHUT_WR)
        server.wait_for("request", after=before, status=499)
        server.wait_for("slow_client_disconnected", after=before, stage="download")
