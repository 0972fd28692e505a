"""Problems: the one place where failures become HTTP answers (RFC 9457, application/problem+json)."""

import json
import re
from http import HTTPStatus
from typing import Any

import falcon
from falcon.asgi import Request, Response

from server import errors
from server.logs import get_logger

log = get_logger(__name__)

MEDIA_TYPE = "application/problem+json"

STATUS_OF: dict[type[errors.ServiceError], HTTPStatus] = {
    errors.BadParameter: HTTPStatus.BAD_REQUEST,
    errors.MalformedMultipart: HTTPStatus.BAD_REQUEST,
    errors.UploadTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UploadTooSlow: HTTPStatus.REQUEST_TIMEOUT,
    errors.UnsupportedImage: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.DamagedImage: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TooManyPixels: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TooManyFrames: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.EngineKiller: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ServiceUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}

#: What to do next, for the failures that the framework finds before our code runs.
_FRAMEWORK_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is nothing here. GET /openapi.json lists what there is.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path does not answer to {method}. Use one of: {allow}.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "This is our fault and has been logged. "
    "If it happens again, report the request_id.",
}


def problem(status: HTTPStatus, slug: str, title: str, detail: str, request_id: str) -> bytes:
    """Write a problem document.

    Args:
        status: the status of the answer it goes with.
        slug: the last word of the problem's type; docs/problems.md has a section for each.
        title: the same for every occurrence.
        detail: this occurrence, and what to do next.
        request_id: by which the log can be searched.

    Source: RFC 9457, section 3.1.
    """
    return json.dumps(
        {
            "type": f"urn:flipcluster:problem:{slug}",
            "title": title,
            "status": status,
            "detail": detail,
            "request_id": request_id,
        }
    ).encode()


def slug_of(error: type[errors.ServiceError]) -> str:
    """Spell an error's name as a problem type: TooManyPixels is `too-many-pixels`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", error.__name__).lower()


def add_error_handlers(app: falcon.asgi.App[Any, Any]) -> None:
    """Make every failure of the app a problem, the framework's own too."""
    app.add_error_handler(Exception, _answer_our_fault)
    app.add_error_handler(falcon.HTTPError, _answer_framework_error)
    app.add_error_handler(errors.ServiceError, _answer_service_error)


async def _answer_service_error(
    req: Request, resp: Response, error: errors.ServiceError, _params: dict[str, Any], **_: object
) -> None:
    _write(req, resp, STATUS_OF[type(error)], slug_of(type(error)), error.title, error.detail)


async def _answer_framework_error(
    req: Request, resp: Response, error: falcon.HTTPError, _params: dict[str, Any], **_: object
) -> None:
    status = HTTPStatus(error.status_code)
    headers = dict(error.headers or {})
    resp.set_headers(headers)
    allow = headers.get("Allow", "")
    detail = _FRAMEWORK_DETAILS.get(status, error.description or "Correct the request and send it again.")
    slug = status.phrase.lower().replace(" ", "-")
    _write(req, resp, status, slug, status.phrase, detail.format(method=req.method, allow=allow))


async def _answer_our_fault(
    req: Request, resp: Response, error: Exception, _params: dict[str, Any], **_: object
) -> None:
    log.error("request_failed", exc_info=error, request_id=req.scope["exchange"].request_id)
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    _write(req, resp, status, "internal-server-error", status.phrase, _FRAMEWORK_DETAILS[status])


def _write(req: Request, resp: Response, status: HTTPStatus, slug: str, title: str, detail: str) -> None:
    resp.status = status
    resp.content_type = MEDIA_TYPE
    resp.stream = None
    resp.data = problem(status, slug, title, detail, req.scope["exchange"].request_id)
