"""What a user does: send an image, get it back turned."""

import http.client
import io
import random
import re
import socket
from pathlib import Path

import httpx
import pytest
from PIL import Image
from support.live_server import DEADLINE_S, LiveServer, curl
from support.specimens import ISO_GAIN_MAP, VIDEO, ultra_hdr

#: Four colours, so that every one of the eight ways to turn it looks different.
CORNERS = {(0, 0): "red", (1, 0): "lime", (0, 1): "blue", (1, 1): "white"}


def corners_png() -> bytes:
    image = Image.new("RGB", (2, 2))
    for place, colour in CORNERS.items():
        image.paste(colour, (*place, place[0] + 1, place[1] + 1))
    return encoded(image, "PNG")


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    with io.BytesIO() as file:
        image.save(file, form, **options)
        return file.getvalue()


def opened(body: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(body))
    image.load()
    return image


def corners(image: Image.Image) -> str:
    """The colours' initials, row by row."""
    names = {"#ff0000": "r", "#00ff00": "l", "#0000ff": "b", "#ffffff": "w"}
    rgb = image.convert("RGB")
    return "".join(
        names["#{:02x}{:02x}{:02x}".format(*rgb.getpixel((x, y)))]  # type: ignore[misc]
        for y in range(2)
        for x in range(2)
    )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/flip", "bwrl"),
        ("/flop", "lrwb"),
        ("/rotate?angle=90", "brwl"),
        ("/rotate?angle=180", "wblr"),
        ("/rotate?angle=270", "lwrb"),
        ("/transpose", "rblw"),
        ("/transverse", "wlbr"),
        ("/orient", "rlbw"),
    ],
)
def test_every_operation_turns_the_corners_as_its_name_says(
    server: LiveServer, path: str, expected: str
) -> None:
    response = httpx.post(server.url + path, content=corners_png())
    assert response.status_code == 200
    assert corners(opened(response.content)) == expected


@pytest.mark.parametrize(
    "way",
    [
        ["--data-binary", "@{}"],
        ["-F", "image=@{}"],
        ["--data-binary", "@{}", "-H", "Transfer-Encoding: chunked"],
        ["-F", "image=@{}", "-H", "Transfer-Encoding: chunked"],
        ["-T", "{}", "-X", "POST"],
        ["--data-binary", "@{}", "--http1.0"],
    ],
    ids=["raw", "multipart", "chunked", "multipart chunked", "upload", "http 1.0"],
)
def test_curl_gets_the_image_upside_down(
    server: LiveServer, landscape: Path, tmp_path: Path, way: list[str]
) -> None:
    flipped = tmp_path / "flipped.jpg"
    arguments = [argument.format(landscape) for argument in way]
    answer = curl(f"{server.url}/flip", *arguments, "-o", str(flipped), "-w", "%{http_code} %{content_type}")
    assert (answer.stdout, answer.stderr) == (b"200 image/jpeg", b"")
    assert looks_upside_down(Image.open(flipped), Image.open(landscape))


def looks_upside_down(image: Image.Image, original: Image.Image) -> bool:
    """Compare thumbnails: exact pixels are the business of the unit tests."""
    expected = original.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    pairs = zip(thumbnail(image), thumbnail(expected), strict=True)
    return image.size == original.size and all(abs(a - b) <= 3 for a, b in pairs)


def thumbnail(image: Image.Image) -> bytes:
    return image.convert("L").resize((16, 16), Image.Resampling.BOX).tobytes()


def test_curl_does_not_wait_for_a_continue_that_never_comes(server: LiveServer, landscape: Path) -> None:
    answer = curl(
        *(f"{server.url}/flip", "--data-binary", f"@{landscape}", "-o", "/dev/null", "-v"),
        *("-H", "Expect: 100-continue", "--expect100-timeout", "15"),
    )
    lines = answer.stderr.decode(errors="replace")
    assert "< HTTP/1.1 100 Continue" in lines
    assert "< HTTP/1.1 200 OK" in lines
    # curl says so when it gives up waiting and sends the body all the same.
    assert "Done waiting for 100-continue" not in lines


def test_a_refused_upload_is_never_asked_for(server: LiveServer) -> None:
    answer = curl(
        *(f"{server.url}/flip?colour=red", "--data-binary", "@-", "-v", "-H", "Expect: 100-continue"),
        stdin=bytes(5_000_000),
    )
    lines = answer.stderr.decode(errors="replace")
    assert "< HTTP/1.1 400 Bad Request" in lines
    assert "100 Continue" not in lines


def test_httpx_sends_a_form_and_a_stream(server: LiveServer, landscape: Path) -> None:
    original = Image.open(landscape)
    with landscape.open("rb") as file:
        form = httpx.post(f"{server.url}/flip", files={"image": file})
    with landscape.open("rb") as file:
        stream = httpx.post(f"{server.url}/flip", content=iter(lambda: file.read(10_000), b""))
    assert form.content == stream.content
    assert looks_upside_down(opened(form.content), original)


@pytest.mark.parametrize("content", [b"", iter([b""])], ids=["no body", "empty chunked body"])
def test_an_empty_body_flips_the_sample_image(server: LiveServer, landscape: Path, content: bytes) -> None:
    response = httpx.post(f"{server.url}/flip", content=content)
    assert response.status_code == 200
    assert looks_upside_down(opened(response.content), Image.open(landscape))


def test_the_answer_names_worker_and_engine_and_how_long_each_stage_took(server: LiveServer) -> None:
    response = httpx.post(f"{server.url}/flip", content=corners_png(), headers={"X-Request-ID": "mine-1"})
    headers = response.headers
    by_worker = {worker["pid"]: worker for worker in server.workers()}
    engines = {worker["engine_pid"] for worker in by_worker.values()}
    assert headers["Content-Type"] == "image/png"
    assert int(headers["Content-Length"]) == len(response.content)
    assert headers["X-Request-ID"] == "mine-1"
    assert re.fullmatch(r"\d+\.\dms", headers["X-Response-Time"])
    assert int(headers["X-Worker-PID"]) in by_worker
    assert int(headers["X-Engine-PID"]) in engines
    assert headers["X-Image-Path"] == "pixels"
    assert re.fullmatch(
        r"queue;dur=[\d.]+, decode;dur=[\d.]+, transform;dur=[\d.]+, encode;dur=[\d.]+",
        headers["Server-Timing"],
    )


@pytest.mark.parametrize("bad_id", ["", "a b", "x" * 129, "<script>"])
def test_a_request_id_that_could_do_harm_is_replaced(server: LiveServer, bad_id: str) -> None:
    response = httpx.get(f"{server.url}/healthz", headers={"X-Request-ID": bad_id})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-ID"])


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "gif", "tiff", "bmp", "avif"])
def test_format_quality_and_strip_choose_what_comes_out(server: LiveServer, form: str) -> None:
    response = httpx.post(
        f"{server.url}/flip", params={"format": form, "quality": 80, "strip": "true"}, content=corners_png()
    )
    assert response.status_code == 200
    assert response.headers["Content-Type"] == f"image/{form}"
    assert opened(response.content).format == form.upper()


def test_a_phone_s_gain_map_and_video_stay_behind(server: LiveServer, landscape: Path) -> None:
    plain = landscape.read_bytes()
    response = httpx.post(f"{server.url}/flip", content=ultra_hdr(plain))
    assert response.status_code == 200
    for word in (b"hdrgm", b"GainMap", b"MotionPhoto", b"MPF\0", ISO_GAIN_MAP, VIDEO):
        assert word not in response.content
    assert looks_upside_down(opened(response.content), opened(plain))


@pytest.mark.parametrize("piece_bytes", [1, 333, 65536, 10**9])
def test_a_body_arrives_whole_however_it_is_cut(server: LiveServer, piece_bytes: int) -> None:
    """Two requests on one connection, without a pause between them."""
    size = (3, 5) if piece_bytes == 1 else (700, 500)
    source = Image.frombytes("RGB", size, random.Random(7).randbytes(3 * size[0] * size[1]))
    body = encoded(source, "BMP")
    request = b"POST /flip HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    before = len(server.events)
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pieces = 2 * request
        for start in range(0, len(pieces), piece_bytes):
            connection.sendall(pieces[start : start + piece_bytes])
        with connection.makefile("rb") as answers:
            for _ in range(2):
                status, headers = answers.readline(), http.client.parse_headers(answers)
                assert status.startswith(b"HTTP/1.1 200 ")
                flipped = opened(answers.read(int(headers["Content-Length"])))
                assert flipped.tobytes() == source.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes()
    server.wait_for("request", after=before, count=2, bytes_in=len(body))


def test_one_connection_serves_many_requests(server: LiveServer) -> None:
    with httpx.Client(base_url=server.url) as client:
        answers = [client.post("/flip", content=corners_png()) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["X-Worker-PID"] for answer in answers}) == 1


def test_the_probes_answer(server: LiveServer) -> None:
    def get(path: str) -> httpx.Response:
        return httpx.get(server.url + path)

    assert re.fullmatch(r"PID \d+ listening\n", get("/").text)
    assert get("/healthz").text == "ok\n"
    assert get("/readyz").text == "ready\n"
    assert "flip_requests_total" in get("/metrics").text
    assert get("/openapi.json").json()["openapi"].startswith("3.1")
    assert [worker["state"] for worker in get("/status").json()["workers"]] == ["online", "online"]
    assert httpx.head(f"{server.url}/healthz").status_code == 200
