"""Bad input: the right status, a problem that says what to do next, and a service that is as before."""

import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from PIL import Image
from support.live_server import DEADLINE_S, LiveServer, curl


@pytest.fixture(autouse=True)
def _service_is_as_before(server: LiveServer, quarter: bytes) -> Iterator[None]:
    before = [(worker["pid"], worker["engine_pid"]) for worker in server.workers()]
    yield
    after = server.workers()
    assert [(worker["pid"], worker["engine_pid"]) for worker in after] == before
    assert [worker["in_flight"] for worker in after] == [0] * len(after)
    assert httpx.post(f"{server.url}/flip", content=quarter).status_code == 200


def is_problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status, response.content[:500]
    assert response.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"type", "title", "status", "detail", "request_id"}
    assert body["type"] == f"urn:flipcluster:problem:{kind}"
    assert body["status"] == status
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert body["detail"].endswith(".")
    assert {"X-Worker-PID", "X-Response-Time"} <= {
        name.title().replace("Pid", "PID") for name in response.headers
    }
    return body


def bomb_png() -> bytes:
    header = struct.pack(">IIBBBBB", 65535, 65535, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def endless_gif(frames: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = (
        b"\x21\xf9\x04\0\x0a\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    )
    return screen + frame * frames + b"\x3b"


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"This is a letter and no image.", 415, "unsupported-image"),
        (b"\0", 415, "unsupported-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", 415, "unsupported-image"),
        (b"%PDF-1.7\n", 415, "unsupported-image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported-image"),
        (bomb_png(), 422, "too-many-pixels"),
        (endless_gif(30_000), 422, "too-many-frames"),
    ],
    ids=["text", "one byte", "EPS", "PDF", "SVG", "bomb", "30000 frames"],
)
def test_a_bad_image_is_refused(server: LiveServer, body: bytes, status: int, kind: str) -> None:
    is_problem(httpx.post(f"{server.url}/flip", content=body), status, kind)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_half_a_jpeg_is_never_half_an_image(server: LiveServer, landscape: Path, part: float) -> None:
    whole = landscape.read_bytes()
    response = httpx.post(f"{server.url}/flip", content=whole[: int(len(whole) * part)])
    is_problem(response, 422, "damaged-image")


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("colour=red", "colour"),
        ("format=eps", "format"),
        ("format=", "format"),
        ("quality=0", "quality"),
        ("quality=101", "quality"),
        ("quality=high", "quality"),
        ("effort=5", "effort"),
        ("quality=%2B5", "quality"),
        ("strip=maybe", "strip"),
        ("format=png&format=gif", "format"),
        ("angle=90", "angle"),
        ("a=1&b=2", "b"),
    ],
)
def test_a_wrong_parameter_is_named(server: LiveServer, query: str, names: str) -> None:
    body = is_problem(httpx.post(f"{server.url}/flip?{query}"), 400, "bad-parameter")
    assert f"`{names}`" in body["detail"]


@pytest.mark.parametrize("query", ["", "?angle=45", "?angle=", "?angle=90&angle=90"])
def test_a_rotation_needs_an_angle_that_is_a_quarter(server: LiveServer, query: str) -> None:
    body = is_problem(httpx.post(f"{server.url}/rotate{query}"), 400, "bad-parameter")
    assert "`angle`" in body["detail"]


FILE_PART = b"--x\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\nabc\r\n"


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (b"--x\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\n\r\n--x--\r\n", "empty"),
        (b"--x--\r\n", "no part"),
        (b"--x\r\nContent-Disposition: form-data; name=format\r\n\r\npng\r\n--x--\r\n", "no file"),
        (FILE_PART, ""),
        (b"no boundary in here", ""),
        (2 * FILE_PART + b"--x--\r\n", "more than one"),
    ],
    ids=["empty file", "no part", "field", "unfinished", "no boundary", "two files"],
)
def test_a_broken_form_is_refused(server: LiveServer, form: bytes, says: str) -> None:
    response = httpx.post(
        f"{server.url}/flip", content=form, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    body = is_problem(response, 400, "malformed-multipart")
    assert says in body["detail"]
    assert "curl -F image=@" in body["detail"]


@pytest.mark.parametrize("content_type", ["multipart/form-data", f"multipart/form-data; boundary={'x' * 71}"])
def test_a_form_needs_a_boundary(server: LiveServer, content_type: str) -> None:
    response = httpx.post(f"{server.url}/flip", content=b"abc", headers={"Content-Type": content_type})
    is_problem(response, 400, "malformed-multipart")


def test_an_empty_file_chosen_with_curl_is_refused(server: LiveServer, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    answer = curl(f"{server.url}/flip", "-F", f"image=@{empty}", "-w", "%{http_code}")
    assert answer.stdout.endswith(b"400")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_a_wrong_method_is_told_the_right_one(server: LiveServer, method: str) -> None:
    response = httpx.request(method, f"{server.url}/flip")
    body = is_problem(response, 405, "method-not-allowed")
    assert "POST" in response.headers["Allow"]
    assert "POST" in body["detail"]


def test_a_method_that_http_does_not_have_is_told_what_to_do(server: LiveServer) -> None:
    body = is_problem(httpx.request("FOO", f"{server.url}/flip"), 501, "not-implemented")
    assert "/openapi.json" in body["detail"]


@pytest.mark.parametrize("path", ["/nope", "/flip/", "/flip/again", "/%00"])
def test_an_unknown_path_is_told_where_to_look(server: LiveServer, path: str) -> None:
    body = is_problem(httpx.post(server.url + path), 404, "not-found")
    assert "/openapi.json" in body["detail"]


@pytest.fixture(scope="module")
def narrow() -> Iterator[LiveServer]:
    """A service that takes a million bytes."""
    with LiveServer(environ={"WEB_CONCURRENCY": "1", "FLIP_MAX_BODY_BYTES": "1000000"}) as server:
        yield server


def test_an_upload_over_the_limit_is_refused_and_the_refusal_arrives(narrow: LiveServer) -> None:
    too_much = bytes(30_000_000)
    told = curl(
        f"{narrow.url}/flip", "--data-binary", "@-", "-w", "%{http_code}", "-H", "Expect:", stdin=too_much
    )
    untold = curl(
        *(f"{narrow.url}/flip", "--data-binary", "@-", "-w", "%{http_code}"),
        *("-H", "Transfer-Encoding: chunked", "-H", "Expect:"),
        stdin=too_much,
    )
    exact = httpx.post(f"{narrow.url}/flip", content=bytes(1_000_000))
    over = httpx.post(f"{narrow.url}/flip", content=bytes(1_000_001))
    assert told.stdout.endswith(b"413"), told
    assert untold.stdout.endswith(b"413"), untold
    assert exact.status_code == 415
    is_problem(over, 413, "upload-too-large")


def test_multipart_framing_counts_towards_the_limit(narrow: LiveServer) -> None:
    part = b'\r\n--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
    answer = httpx.post(
        f"{narrow.url}/flip",
        content=iter([bytes(1_000_000), part]),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    is_problem(answer, 413, "upload-too-large")


def test_a_refusal_says_that_the_rest_of_the_body_is_not_waited_for(server: LiveServer) -> None:
    """Without `Connection: close` a client would send its next request on a connection that closes."""
    answer = exchange(server, b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
    head, _, _ = answer.lower().partition(b"\r\n\r\n")
    assert head.startswith(b"http/1.1 404 ")
    assert b"connection: close" in head.split(b"\r\n")


def test_a_client_that_resets_its_connection_over_a_refusal_is_no_fault_of_ours(server: LiveServer) -> None:
    before = len(server.events)
    for _ in range(600):  # the moment between the answer and the end of our side is short
        with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
            assert connection.recv(1) == b"H"
    server.wait_for("request", after=before, path="/nothing", count=600)
    server.workers()
    assert [event for event in server.events[before:] if event["level"] == "error"] == []


def test_a_body_over_the_time_limit_is_answered_408() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "1", "FLIP_UPLOAD_TIMEOUT_S": "0.2"}) as server:
        answer = exchange(server, b"POST /flip HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"urn:flipcluster:problem:upload-too-slow" in answer


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"POST /flip HTTP/1.1\r\nHost: a\r\nContent-Length: ten\r\n\r\n", 400),
        (b"POST /flip HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /flip HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST /flip HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /flip HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /flip HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: zip, chunked\r\n\r\n", 501),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", 400),
    ],
    ids=[
        "length is a word", "length is negative", "two lengths", "length and chunks", "bad chunk",
        "unknown coding", "long path", "long header", "TLS",
    ],
)  # fmt: skip
def test_what_is_not_http_gets_a_problem_too(server: LiveServer, request_text: bytes, status: int) -> None:
    answer = exchange(server, request_text)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"content-type: application/problem+json" in head
    assert b"x-request-id: " in head
    assert b'"type": "urn:flipcluster:problem:' in body


def test_the_absolute_form_of_a_target_is_understood(server: LiveServer) -> None:
    answer = exchange(server, b"GET http://a/healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_path_cannot_put_escape_sequences_into_the_log(server: LiveServer) -> None:
    before = len(server.events)
    httpx.get(f"{server.url}/%1b%5b31mRED%0a%c2%9b")
    path = server.wait_for("request", after=before, status=404)["path"]
    assert path == r"/\x1b[31mRED\n\x9b"


def damaged_fax() -> bytes:
    """libtiff complains of it on its standard error."""
    with BytesIO() as file:
        noise = Image.frombytes("1", (200, 200), Random(1).randbytes(25 * 200))
        noise.save(file, "TIFF", compression="group4")
        damaged = bytearray(file.getvalue())
    damaged[1000:1100] = b"\xff" * 100
    return bytes(damaged)


def tiff_of_many_samples() -> bytes:
    """Pillow complains of it through Python's logging."""
    tags = [(256, 1), (257, 1), (277, 164)]
    return (
        struct.pack("<2sHLH", b"II", 42, 8, 3)
        + b"".join(struct.pack("<HHLL", tag, 3, 1, value) for tag, value in tags)
        + bytes(4)
    )


@pytest.mark.parametrize("make", [damaged_fax, tiff_of_many_samples])
def test_what_a_decoder_prints_stays_out_of_the_log(server: LiveServer, make: Callable[[], bytes]) -> None:
    before = len(server.events)
    answer = httpx.post(f"{server.url}/flip", content=make())
    server.wait_for("request", after=before, request_id=answer.headers["X-Request-ID"])
    assert {event["event"] for event in server.events[before:]} == {"request"}


def test_a_websocket_upgrade_is_answered_in_http(server: LiveServer) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    before = len(server.events)
    is_problem(httpx.get(f"{server.url}/flip", headers=headers), 405, "method-not-allowed")
    server.wait_for("request", after=before, path="/flip", status=405)


def test_a_body_longer_than_its_length_is_no_second_request(server: LiveServer) -> None:
    answer = exchange(
        server,
        b"POST /flip HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcdefghijklmnopqrstuvwxyz\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 415 ")
    # The rest is no request, is told so, and the connection ends.
    assert answer.count(b"HTTP/1.1 4") == 2
    assert b"HTTP/1.1 400 " in answer


def test_a_body_shorter_than_its_length_gets_no_image(server: LiveServer, landscape: Path) -> None:
    image = landscape.read_bytes()
    before = len(server.events)
    with closing(socket.create_connection(("127.0.0.1", server.port), DEADLINE_S)) as connection:
        head = b"POST /flip HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (len(image) + 1)
        connection.sendall(head + image)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    server.wait_for("request", after=before, path="/flip", status=499)


def exchange(server: LiveServer, request_text: bytes) -> bytes:
    """Send bytes and return all that is received until the server closes."""
    with closing(socket.create_connection(("127.0.0.1", server.port), DEADLINE_S)) as connection:
        connection.sendall(request_text)
        answer = bytearray()
        while piece := connection.recv(65536):
            answer += piece
    return bytes(answer)
