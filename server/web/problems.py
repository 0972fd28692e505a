"""Problems: the one place where failures become HTTP responses (RFC 9457, application/problem+json)."""

import errno
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import falcon
from falcon.asgi import Request, Response

from server import errors
from server.cluster.memory_files import NO_ROOM
from server.logs import get_logger
from server.web.exchange import Exchange

log = get_logger(__name__)

MEDIA_TYPE = "application/problem+json"

STATUS_OF: dict[type[errors.ServiceError], HTTPStatus] = {
    errors.BadParameter: HTTPStatus.BAD_REQUEST,
    errors.MalformedMultipart: HTTPStatus.BAD_REQUEST,
    errors.UploadTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UploadTooSlow: HTTPStatus.REQUEST_TIMEOUT,
    errors.TooManyItems: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.BadArchive: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.KeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Unauthorized: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.UnsupportedImage: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.DamagedImage: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TooManyPixels: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TooManyFrames: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ResultTooLarge: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NotLossless: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TooMuchWork: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.PoisonImage: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NoSuchJob: HTTPStatus.NOT_FOUND,
    errors.NoSuchQueue: HTTPStatus.NOT_FOUND,
    errors.NotDone: HTTPStatus.NOT_FOUND,
    errors.Expired: HTTPStatus.GONE,
    errors.TooManyAttempts: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.CallbackFailed: HTTPStatus.BAD_GATEWAY,
    errors.ServiceUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StoreAway: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.QueueFull: HTTPStatus.SERVICE_UNAVAILABLE,
}

_GIVEN_UP = "Each try ended in a crash or a failure of ours. An operator can run the job again."

OUR_FAULT = "This is our fault and has been logged. If it happens again, report the request_id."

#: What to do next, for failures that the framework detects before our code runs.
_FRAMEWORK_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is nothing here. GET /openapi.json lists what there is.",
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "The range is beyond the file. Content-Range has its size.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path does not answer to {method}. Use one of: {allow}.",
    HTTPStatus.INTERNAL_SERVER_ERROR: OUR_FAULT,
}

#: The phrases of RFC 9110 where Python before 3.13 has older ones; a type must not depend on the interpreter.
_PHRASES = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "Content Too Large",
    HTTPStatus.REQUEST_URI_TOO_LONG: "URI Too Long",
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "Range Not Satisfiable",
    HTTPStatus.UNPROCESSABLE_ENTITY: "Unprocessable Content",
}

#: What the kernel says when there is no more memory or no descriptor, or too many of them are in the work
#: socket.
_EXHAUSTED = NO_ROOM | {errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS, errno.ENOBUFS}


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem document (RFC 9457, section 3.1).

    Attributes:
        slug: the last word of the problem's type; docs/problems.md has a section for each.
        title: the same for every occurrence.
        detail: this occurrence, and what to do next.
    """

    status: HTTPStatus
    slug: str
    title: str
    detail: str

    @classmethod
    def of_error(cls, error: errors.ServiceError) -> Self:
        """Translate one of our own errors."""
        kind = type(error)
        slug = re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()  # TooManyPixels: too-many-pixels
        return cls(STATUS_OF[kind], slug, error.title, error.detail)

    @classmethod
    def of_failure(cls, name: str, detail: str) -> Self:
        """Translate what a job has failed with; an error that this version does not know is our own fault."""
        kinds = {kind.__name__: kind for kind in STATUS_OF}
        if name not in kinds:
            return cls.of_status(HTTPStatus.INTERNAL_SERVER_ERROR, detail or OUR_FAULT)
        return cls.of_error(kinds[name](detail or _GIVEN_UP))

    @classmethod
    def of_status(cls, status: HTTPStatus, detail: str) -> Self:
        """Make a problem of a bare status, for failures that the framework or the server detects."""
        phrase = _PHRASES.get(status, status.phrase)
        return cls(status, phrase.lower().replace(" ", "-"), phrase, detail)

    def document(self) -> dict[str, Any]:
        """Return the document as JSON, without an id of a request."""
        return {
            "type": f"urn:flipcluster:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }

    def render(self, request_id: str) -> bytes:
        """Write the document; the log can be searched by `request_id`."""
        return json.dumps({**self.document(), "request_id": request_id}).encode()


def add_error_handlers(app: falcon.asgi.App[Request, Response]) -> None:
    """Turn every failure of the app into a problem, the framework's own too."""
    app.add_error_handler(Exception, _answer_our_fault)
    app.add_error_handler(falcon.HTTPError, _answer_framework_error)
    app.add_error_handler(errors.ServiceError, _answer_service_error)


async def _answer_service_error(
    req: Request, resp: Response | None, error: errors.ServiceError, _params: dict[str, Any], **_: object
) -> None:
    if isinstance(error, errors.OperationRefused):
        Exchange.of(req.scope).engine_pid = error.engine_pid
    headers = {}
    if isinstance(error, errors.Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.TemporaryFailure):
        headers["Retry-After"] = str(error.retry_after_s)
        headers["Cache-Control"] = "no-store"
        Exchange.of(req.scope).retry_after_s = error.retry_after_s
    if isinstance(error, errors.ServiceUnavailable):
        Exchange.of(req.scope).share = error.share
    _write(req, resp, Problem.of_error(error), headers)


async def _answer_framework_error(
    req: Request, resp: Response | None, error: falcon.HTTPError, _params: dict[str, Any], **_: object
) -> None:
    status = HTTPStatus(error.status_code)
    headers = dict(error.headers or {})
    if template := _FRAMEWORK_DETAILS.get(status):
        detail = template.format(method=req.method, allow=headers.get("Allow", ""))
    else:  # the framework's sentence may quote the caller: it is no template
        what = (error.description or "The request is wrong").rstrip(".")
        detail = f"{what}. Correct it and send it again."
    _write(req, resp, Problem.of_status(status, detail), headers)


async def _answer_our_fault(
    req: Request, resp: Response | None, error: Exception, params: dict[str, Any], **_: object
) -> None:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _EXHAUSTED):
        log.error(
            "resources_exhausted",
            error=str(error) or repr(error),
            request_id=Exchange.of(req.scope).request_id,
        )
        busy = errors.ServiceUnavailable(
            "There is not enough memory for it, or too many files are open. Try again in a second."
        )
        await _answer_service_error(req, resp, busy, params)
        return
    log.error("request_failed", exc_info=error, request_id=Exchange.of(req.scope).request_id)
    _write(req, resp, Problem.of_status(HTTPStatus.INTERNAL_SERVER_ERROR, OUR_FAULT))


def _write(
    req: Request, resp: Response | None, problem: Problem, headers: Mapping[str, str] | None = None
) -> None:
    if resp is None:  # a WebSocket, which we do not speak
        return
    resp.set_headers(dict(headers or {}))
    resp.status = problem.status
    resp.content_type = MEDIA_TYPE
    resp.stream = None
    exchange = Exchange.of(req.scope)
    exchange.problem = problem.slug
    resp.data = problem.render(exchange.request_id)
