"""One connection: what it answers, logs and counts, request by request."""

from typing import Any

import pytest
from support.gateway import gateway, run

from server.cluster.scoreboard import Cell

BODY = b"x" * 100
FIRST = b"POST /first HTTP/1.1\r\nHost: a\r\nX-Request-ID: first\r\nContent-Length: 100\r\n\r\n" + BODY
OK = b"ok\n"


async def echo_length(scope: Any, receive: Any, send: Any) -> None:
    """Read the whole body and say how long it was."""
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"%d" % length
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def lines(events: list[dict[str, Any]]) -> list[tuple[str, str, int, int]]:
    return [
        (line["request_id"], line["path"], line["status"], line["bytes_in"])
        for line in events
        if line["event"] == "request"
    ]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        pytest.param(b"GET /second HTTP/1.1\r\n", "Host", id="no host"),
        pytest.param(b"GET http://[/second HTTP/1.1\r\nHost: a\r\n", "target", id="odd target"),
    ],
)
@pytest.mark.parametrize("together", [False, True], ids=["one by one", "pipelined"])
def test_a_refused_head_on_a_kept_connection_is_a_request_of_its_own(
    head: bytes, reason: str, together: bool
) -> None:
    async def test() -> None:
        async with gateway(echo_length) as (served, events):
            client = await served.connect()
            second = head + b"X-Request-ID: second\r\n\r\n"
            await client.send(FIRST + second if together else FIRST)
            first_answer = await client.read()
            if not together:
                await client.send(second)
            second_answer = await client.read()
            assert (first_answer.status, first_answer.headers["x-request-id"]) == (200, "first")
            assert (second_answer.status, second_answer.headers["x-request-id"]) == (400, "second")
            assert reason.encode() in second_answer.body
            assert b'"request_id": "second"' in second_answer.body
            (first, other) = lines(events)
            assert first == ("first", "/first", 200, 100)
            assert (other[0], other[2], other[3]) == ("second", 400, 0)
            assert other[1] != "/first"
            row = served.membership.row
            assert (row[Cell.REQUESTS], row[Cell.BYTES_IN]) == (2, 100)

    run(test())
