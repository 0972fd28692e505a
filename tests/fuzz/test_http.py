"""HTTP that no client should speak, and requests made from the OpenAPI document, right and wrong."""

import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance
from support.live_server import DEADLINE_S, LiveServer
from support.wire import answers

from fuzz import malformed, vectors
from fuzz.conftest import EXTENT
from fuzz.images import sound_files
from server.operations.images import OPERATIONS
from server.settings import Settings
from server.web.openapi import document
from server.web.submissions import OPTIONS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One worker, so that its log lines stand in the order of the requests."""
    sample = tmp_path_factory.mktemp("sample") / "small.jpg"
    sample.write_bytes(sound_files()["JPEG baseline"].data)
    environ = {
        "WEB_CONCURRENCY": "1",
        "FLIP_SAMPLE_IMAGE": str(sample),
        "FLIP_JOBS": "embedded",
        "FLIP_DATA_DIR": str(tmp_path_factory.mktemp("data")),
    }
    with LiveServer(environ=environ) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as client:
        yield client


#: What is logged, at any time, about jobs that were submitted before.
OF_JOBS = {
    "engine_online",
    "engine_retired",
    "job_failed",
    "job_files_gone",  # the rest of its batch was refused meanwhile
}


@pytest.fixture(autouse=True)
def _service_is_as_before(server: LiveServer, client: httpx.Client) -> Iterator[None]:
    before, seen = processes(client), len(server.events)
    yield
    request_id = secrets.token_hex(8)
    assert client.post("/flip", headers={"X-Request-ID": request_id}).status_code == 200
    server.wait_for("request", after=seen, request_id=request_id)
    assert [event for event in server.events[seen:] if event.get("path", "").endswith("/smuggled")] == []
    assert {event["event"] for event in server.events[seen:]} <= {"request", *OF_JOBS}
    assert processes(client) == before


def processes(client: httpx.Client) -> list[tuple[int, int]]:
    return [(worker["pid"], worker["engine_pid"]) for worker in client.get("/status").json()["workers"]]


# --- Byte for byte ----------------------------------------------------------------------------------------


# A sample over TCP; test_connections.py sends the rest without a server process.
@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        pytest.param(*row, id=f"{kind}: {name}")
        for kind, rows in malformed.TABLES.items()
        for number, (name, row) in enumerate(rows.items())
        if number % 4 == 0 or len(row[0]) >= 1 << 16
    ],
)
def test_a_malformed_request_gets_its_answers_and_no_others(
    server: LiveServer, sent: bytes, statuses: tuple[int, ...]
) -> None:
    with closing(socket.create_connection(("127.0.0.1", server.port), DEADLINE_S)) as connection:
        connection.sendall(sent)
        received = everything(connection)
    read = answers(received, no_body=0 if sent.startswith(b"HEAD ") else None)
    assert tuple(answer.status for answer in read) == statuses, received[:2000]


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        pytest.param(*row, id=f"{kind}: {name}")
        for kind, rows in vectors.TABLES.items()
        for name, row in rows.items()
    ],
)
def test_what_other_servers_are_tested_with_is_answered_behind_other_requests(
    server: LiveServer, sent: bytes, statuses: tuple[int, ...]
) -> None:
    before = malformed.get() + malformed.post(b"Content-Length: 5", body=b"hello")
    with closing(socket.create_connection(("127.0.0.1", server.port), DEADLINE_S)) as connection:
        connection.sendall(before + sent)
        received = everything(connection)
    read = answers(received, no_body=2 if sent.startswith(b"HEAD ") else None)
    assert tuple(answer.status for answer in read) == (200, 415, *statuses), received[:2000]


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


# --- From the document ------------------------------------------------------------------------------------


def packed(kind: str) -> bytes:
    """An archive with two images."""
    with tempfile.TemporaryDirectory() as directory:
        files = Path(directory, "files")
        files.mkdir()
        for number, title in enumerate(("JPEG baseline", "PNG L")):
            (files / str(number)).write_bytes(sound_files()[title].data)
        return Path(shutil.make_archive(str(Path(directory, "archive")), kind, files)).read_bytes()


#: The document cannot say what an image is; these are some of each kind.
for name in ("jpeg", "png", "webp", "gif", "tiff", "bmp", "avif", "ppm", "qoi"):
    media_type = "image/x-portable-anymap" if name == "ppm" else f"image/{name}"
    some = [file.data for title, file in sound_files().items() if title.startswith(name.upper())]
    schemathesis.openapi.media_type(media_type, st.sampled_from(some))
schemathesis.openapi.media_type(
    "application/octet-stream", st.sampled_from([file.data for file in sound_files().values()])
)

schemathesis.openapi.media_type("application/zip", st.sampled_from([packed("zip")]))
schemathesis.openapi.media_type("application/x-tar", st.sampled_from([packed("tar")]))
schemathesis.openapi.media_type("application/gzip", st.sampled_from([packed("gztar")]))

api = schemathesis.openapi.from_dict(document(OPERATIONS.values(), Settings().queues))
# A wrong request may be refused for its length before it is parsed.
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
    # More than the document can say: that options are for later only, which of them go together, how far
    # ahead a moment may be, which parameters an operation has in a batch, and whether a sound image can be
    # turned without loss.
    query, headers = case.query or {}, case.headers or {}
    if case.path != "/batches" and not query.keys().isdisjoint(OPTIONS):
        case.headers = {**headers, "Prefer": "respond-async"}
    may_be_refused = (
        query.get("path") == "lossless"
        or "not_before" in query
        or "callback" in query
        or "Idempotency-Key" in headers
        or case.path == "/batches"
    )
    case.call_and_validate(
        base_url=server.url, excluded_checks=[positive_data_acceptance] if may_be_refused else []
    )
