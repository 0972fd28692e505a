"""HTTP that no client should speak, and requests made from the OpenAPI document, right and wrong."""

import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance
from support.live_server import DEADLINE_S, ROOT, LiveServer

from fuzz import malformed
from fuzz.conftest import EXTENT
from fuzz.images import sound_files


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One worker, so that what it has to say of a request stands in the log before the next one."""
    sample = tmp_path_factory.mktemp("sample") / "small.jpg"
    sample.write_bytes(sound_files()["JPEG baseline"].data)
    with LiveServer(environ={"WEB_CONCURRENCY": "1", "FLIP_SAMPLE_IMAGE": str(sample)}) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as client:
        yield client


@pytest.fixture(autouse=True)
def _service_is_as_before(server: LiveServer, client: httpx.Client) -> Iterator[None]:
    before, seen = processes(client), len(server.events)
    yield
    request_id = secrets.token_hex(8)
    assert client.post("/flip", headers={"X-Request-ID": request_id}).status_code == 200
    server.wait_for("request", after=seen, request_id=request_id)
    assert [event for event in server.events[seen:] if event.get("path", "").endswith("/smuggled")] == []
    assert [event for event in server.events[seen:] if event["event"] != "request"] == []
    assert processes(client) == before


def processes(client: httpx.Client) -> list[tuple[int, int]]:
    return [(worker["pid"], worker["engine_pid"]) for worker in client.get("/status").json()["workers"]]


# --- Byte for byte ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        pytest.param(*row, id=f"{kind}: {name}")
        for kind, rows in malformed.TABLES.items()
        for name, row in rows.items()
    ],
)
def test_what_is_malformed_gets_its_answers_and_none_besides(
    server: LiveServer, sent: bytes, statuses: tuple[int, ...]
) -> None:
    with closing(socket.create_connection(("127.0.0.1", server.port), DEADLINE_S)) as connection:
        connection.sendall(sent)
        received = everything(connection)
    assert tuple(answers(received, has_body=not sent.startswith(b"HEAD "))) == statuses, received[:2000]


@pytest.mark.parametrize("sent", malformed.HALF_CLOSED.values(), ids=malformed.HALF_CLOSED)
def test_a_client_that_stops_in_the_middle_is_taken_for_gone(server: LiveServer, sent: bytes) -> None:
    with closing(socket.create_connection(("127.0.0.1", server.port), DEADLINE_S)) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert everything(connection) == b""


def everything(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = bytearray()
    while piece := connection.recv(65536):
        received += piece
    return bytes(received)


def answers(received: bytes, *, has_body: bool) -> Iterator[int]:
    """The statuses of whole, well-formed answers; there must be nothing else."""
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        status = re.fullmatch(rb"HTTP/1\.[01] ([1-5]\d\d) [ -~]+", line)
        assert status, line
        fields = [re.fullmatch(rb"([\w-]+): ([ -~]*)", text) for text in lines]
        assert all(fields), lines
        named = {field[1].lower(): field[2] for field in fields if field}
        length = int(named[b"content-length"]) if has_body else 0
        assert len(received) >= length
        if int(status[1]) >= 400 and has_body:
            assert named[b"content-type"] == b"application/problem+json"
        received, has_body = received[length:], True
        yield int(status[1])


# --- From the document ------------------------------------------------------------------------------------

#: The document cannot say what a picture is; these are some of each kind.
for name in ("jpeg", "png", "webp", "gif", "tiff", "bmp", "avif", "ppm", "qoi"):
    media_type = "image/x-portable-anymap" if name == "ppm" else f"image/{name}"
    some = [file.data for title, file in sound_files().items() if title.startswith(name.upper())]
    schemathesis.openapi.media_type(media_type, st.sampled_from(some))
schemathesis.openapi.media_type(
    "application/octet-stream", st.sampled_from([file.data for file in sound_files().values()])
)

api = schemathesis.openapi.from_path(ROOT / "server" / "web" / "openapi.json")
# A wrong request may be refused for its length before anybody reads it.
api.config.checks.negative_data_rejection.expected_statuses.append("414")


@api.parametrize()
@settings(
    max_examples=max(10, EXTENT.images // 200),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_request_that_the_document_can_make_is_answered_as_it_says(
    case: schemathesis.Case, server: LiveServer
) -> None:
    # Whether a sound picture can be turned without loss is more than the document can say.
    may_be_refused = (case.query or {}).get("path") == "lossless"
    case.call_and_validate(
        base_url=server.url, excluded_checks=[positive_data_acceptance] if may_be_refused else []
    )
