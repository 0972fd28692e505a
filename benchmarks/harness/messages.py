"""HTTP/1.1 messages: requests as bytes, and answers read from a blocking socket."""

from http.client import HTTPMessage, parse_headers
from io import BufferedReader, BytesIO

#: Decodes and encodes again, so that it is work for a core whatever the image.
PIXELS = "/flip?path=pixels"


def get(target: str, headers: str = "") -> bytes:
    """Write a whole request without a body."""
    return f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()


def post(body: bytes, headers: str = "", target: str = PIXELS) -> bytes:
    """Write a whole request that uploads a body."""
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def parse_head(head: bytes | bytearray) -> HTTPMessage:
    """Parse an answer's head, from its status line to the blank line."""
    return _read_head(BytesIO(head))


def read_head(stream: BufferedReader) -> HTTPMessage:
    """Read an answer up to its body, and return its headers with the status among them, as `Status`.

    Raises:
        ConnectionError: the connection was closed without an answer.
    """
    return _read_head(stream)


def read_answer(stream: BufferedReader) -> tuple[int, HTTPMessage, bytes]:
    """Read one answer of known length, and not a byte of the next.

    Raises:
        ConnectionError: the connection was closed before the answer was complete.
    """
    headers = _read_head(stream)
    body = stream.read(int(headers["Content-Length"]))
    if len(body) < int(headers["Content-Length"]):
        raise ConnectionError("closed within the answer")
    return int(headers["Status"]), headers, body


def _read_head(stream: BufferedReader | BytesIO) -> HTTPMessage:
    status_line = stream.readline()
    if not status_line:
        raise ConnectionError("closed without an answer")
    headers = parse_headers(stream)
    headers["Status"] = status_line.split()[1].decode()
    return headers
