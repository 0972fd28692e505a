"""HTTP responses as they come off the wire, read strictly."""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response as a client reads it."""

    status: int
    headers: dict[str, str]
    body: bytes


def answers(received: bytes, *, no_body: int | None = None) -> Iterator[Answer]:
    """Read whole, well-formed responses with a Content-Length; there must be nothing else.

    Args:
        received: all that came.
        no_body: the number of the response that has a head only, counted from 0: one to a HEAD.
    """
    number = 0
    while received:
        head, end, received = received.partition(b"\r\n\r\n")
        assert end, head
        line, *lines = head.split(b"\r\n")
        status = re.fullmatch(rb"HTTP/1\.[01] ([1-5]\d\d) [ -~]+", line)
        assert status, line
        fields = [re.fullmatch(rb"([\w-]+): ([ -~]*)", text) for text in lines]
        assert all(fields), lines
        headers = {field[1].lower().decode(): field[2].decode() for field in fields if field}
        length = 0 if number == no_body else int(headers["content-length"])
        assert len(received) >= length, head
        yield Answer(int(status[1]), headers, received[:length])
        received = received[length:]
        number += 1
