"""The exchange: the one owner of a request's state."""

from io import FileIO
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server.admission import Admission, Ticket
from server.cluster.scoreboard import Cell, Scoreboard
from server.web.exchange import CLIENT_GONE, EXTENSION, Exchange


def identified(*headers: tuple[bytes, bytes], path: str = "/flip", client: object = None) -> Exchange:
    exchange = Exchange()
    exchange.identify("POST", path, client, headers)
    return exchange


@pytest.mark.parametrize(
    "request_id",
    [
        pytest.param(b"a", id="one character"),
        pytest.param(b"a" * 128, id="the longest"),
        pytest.param(b"AZaz09._~+/=-", id="every kind of character"),
    ],
)
def test_a_valid_id_is_taken_over(request_id: bytes) -> None:
    exchange = identified((b"host", b"a"), (b"x-request-id", request_id))
    assert exchange.request_id == request_id.decode()
    assert dict(exchange.common_headers())[b"x-request-id"] == request_id


@pytest.mark.parametrize(
    "request_id",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"a" * 129, id="too long"),
        *(
            pytest.param(b"a" + character + b"b", id=repr(character))
            for character in (
                b" ",
                b"\n",
                b"\r",
                b"\0",
                b"\x1b",
                b'"',
                b",",
                b";",
                b"{",
                b"\\",
                b"\xe4",
                b"%",
            )
        ),
        pytest.param(b"a\n", id="a line feed at the end"),
    ],
)
def test_any_other_id_is_replaced(request_id: bytes) -> None:
    exchange = identified((b"x-request-id", request_id))
    assert exchange.request_id != request_id.decode("latin-1")
    assert len(bytes.fromhex(exchange.request_id)) == 16


def test_the_first_valid_id_counts() -> None:
    exchange = identified(*((b"x-request-id", value) for value in (b"not valid", b"first", b"second")))
    assert exchange.request_id == "first"


def test_ids_differ() -> None:
    assert len({Exchange().request_id for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("path", "noted"),
    [
        ("/flip", "/flip"),
        ("/ä ö", "/ä ö"),
        ("/\r\nforged", "/\\r\\nforged"),
        ("/\x1b[2J", "/\\x1b[2J"),
        ("/\u202e", "/\\u202e"),
        ("/ä\0", "/\\xe4\\x00"),
    ],
)
def test_a_path_that_would_break_a_log_line_is_escaped(path: str, noted: str) -> None:
    assert identified(path=path).path == noted


@pytest.mark.parametrize(
    ("client", "noted"),
    [(("10.0.0.1", 80), "10.0.0.1"), (["::1", 80, 0, 0], "::1"), ("", None), (None, None)],
)
def test_of_the_client_its_host_is_noted(client: object, noted: str | None) -> None:
    assert identified(client=client).client == noted


def ticket(body_bytes: int | None) -> Ticket:
    scoreboard = Scoreboard(rows=1)
    row = scoreboard.claim()
    return Ticket(Admission(scoreboard, row, max_wait_s=1.0, max_held_bytes=1 << 30), row, body_bytes)


@pytest.fixture
def upload(tmp_path: Path) -> FileIO:
    return FileIO(tmp_path / "upload", "w+b")


def test_the_sink_takes_no_more_than_was_admitted(upload: FileIO) -> None:
    with upload:
        exchange = Exchange(ticket=ticket(100), taken_bytes=60)
        exchange.sink.open(upload)
        assert exchange.can_sink(40)
        assert not exchange.can_sink(41)
        exchange.sink.write(memoryview(b"x" * 30))
        assert exchange.can_sink(10)
        assert not exchange.can_sink(11)


def test_nothing_is_sunk_without_an_open_sink_or_a_ticket(upload: FileIO) -> None:
    with upload:
        assert not Exchange(ticket=ticket(100)).can_sink(1)
        exchange = Exchange()
        exchange.sink.open(upload)
        assert not exchange.can_sink(0)
        exchange.ticket = ticket(None)  # of unknown length, so nothing is admitted ahead
        assert not exchange.can_sink(1)
        exchange.ticket = ticket(100)
        assert exchange.can_sink(1)
    assert not exchange.can_sink(1)  # the app has closed the file


def test_the_body_is_what_the_app_received_and_what_went_past_it(upload: FileIO) -> None:
    with upload:
        exchange = Exchange(taken_bytes=10)
        exchange.sink.open(upload)
        exchange.sink.write(memoryview(b"x" * 5))
        exchange.sink.close()
        assert exchange.body_bytes == 15


def test_admission_hears_how_much_of_the_body_has_come() -> None:
    exchange = Exchange(ticket=ticket(100), taken_bytes=20)
    assert exchange.ticket is not None
    exchange.ticket.arrive(20)
    exchange.expect(bytes_per_s=30.0)
    assert exchange.ticket.held_bytes == 50  # in the one second that admission looks ahead
    Exchange().expect(bytes_per_s=30.0)  # a request without a ticket


def test_a_request_is_counted_and_logged_once() -> None:
    row = Scoreboard(rows=1).claim()
    exchange = identified((b"x-request-id", b"mine"), client=("10.0.0.1", 80))
    exchange.status, exchange.taken_bytes, exchange.sent_bytes = 422, 10, 20
    exchange.problem, exchange.engine_pid, exchange.image_path = "damaged-image", 70, "pixels"
    with capture_logs() as events:
        exchange.conclude(row)
        exchange.status = 500
        exchange.conclude(row)
    (event,) = events
    assert event["ms"] >= 0
    expected = {
        "event": "request",
        "request_id": "mine",
        "client": "10.0.0.1",
        "method": "POST",
        "path": "/flip",
        "status": 422,
        "problem": "damaged-image",
        "bytes_in": 10,
        "bytes_out": 20,
        "engine": 70,
        "image_path": "pixels",
    }
    assert expected.items() <= event.items()
    assert (row[Cell.REQUESTS], row[Cell.BYTES_IN], row[Cell.BYTES_OUT]) == (1, 10, 20)


def test_a_request_that_was_not_answered_counts_as_one_whose_client_left() -> None:
    with capture_logs() as events:
        Exchange().conclude(Scoreboard(rows=1).claim())
    assert events[0]["status"] == CLIENT_GONE


def test_a_scope_carries_its_exchange_next_to_what_else_the_server_offers() -> None:
    exchange = Exchange()
    theirs = {"http.response.pathsend": {}}
    for extensions in (None, {}, theirs):
        scope = {"type": "http", "extensions": extensions}
        exchange.offer(scope)
        assert Exchange.of(scope) is exchange
        assert scope["extensions"] == {**(extensions or {}), EXTENSION: exchange}
    assert list(theirs) == ["http.response.pathsend"]  # the server's own object, perhaps of all requests


@pytest.mark.parametrize("scope", [{}, {"extensions": {}}])
def test_a_scope_without_an_exchange_is_an_error(scope: dict[str, object]) -> None:
    with pytest.raises(KeyError):
        Exchange.of(scope)
