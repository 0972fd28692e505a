"""Refusals: the answers to requests that the app never answered, in the form that the app's own have."""

from email.utils import formatdate
from http import HTTPStatus

from server.errors import ServiceUnavailable
from server.web.exchange import Exchange
from server.web.problems import MEDIA_TYPE, OUR_FAULT, Problem

#: What to do next, by the status that the server refuses a request with.
_NEXT_STEPS = {
    HTTPStatus.REQUEST_URI_TOO_LONG: "Send a shorter path and query.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "Send fewer or shorter header fields.",
    HTTPStatus.NOT_IMPLEMENTED: "Use a method of /openapi.json, and no transfer coding but chunked.",
    HTTPStatus.REQUEST_TIMEOUT: "Send all headers at once.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Try again in a moment, or keep connections open and use them again.",
}


def refusal(status: int, message: str) -> Problem:
    """Make a problem of the server's own words.

    Args:
        status: what it is answered with.
        message: why, as the end of a sentence; left out when the fault is ours.
    """
    status = HTTPStatus(status)
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        return Problem.of_status(status, OUR_FAULT)
    next_step = _NEXT_STEPS.get(status, "Send a valid HTTP/1.1 request.")
    detail = f"The request was refused: {message}. {next_step}"
    if status is HTTPStatus.SERVICE_UNAVAILABLE:  # of the same type as the app's, so of the same title
        return Problem.of_error(ServiceUnavailable(detail))
    return Problem.of_status(status, detail)


def refuse(exchange: Exchange, problem: Problem, *more_headers: tuple[str, str]) -> bytes:
    """Let a problem be the response of an exchange, and return its bytes; the connection ends with it."""
    body = problem.render(exchange.request_id)
    exchange.status = problem.status
    exchange.problem = problem.slug
    exchange.count_sent(len(body))
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"date", formatdate(usegmt=True).encode()),
        (b"connection", b"close"),
        (b"cache-control", b"no-store"),
        *((name.encode(), value.encode()) for name, value in more_headers),
        *exchange.common_headers(),
    ]
    lines = [
        b"HTTP/1.1 %d %s" % (problem.status, problem.title.encode()),
        *(b"%s: %s" % field for field in headers),
    ]
    return b"\r\n".join([*lines, b"", body])
