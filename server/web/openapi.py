"""The API document (OpenAPI 3.1): the operations from their table, the rest from `openapi_base.json`."""

import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from server.errors import OperationRefused, PoisonImage, TooMuchWork
from server.operations.registry import Operation
from server.web import problems
from server.web.parameters import schemas

_BASE = Path(__file__).parent / "openapi_base.json"

#: What any operation may be refused with, by the cluster.
_BY_THE_CLUSTER = (TooMuchWork, PoisonImage)

_COMMON_HEADERS = ("X-Request-ID", "X-Response-Time", "X-Worker-PID", "X-Content-Type-Options")
_REQUEST_ID = "5f2c0b7f4a3e9d1c8b6a5f4e3d2c1b0a"

_Node = dict[str, Any]


def document(operations: Iterable[Operation]) -> _Node:
    """Make the document of a service with these operations."""
    base: _Node = json.loads(_BASE.read_bytes())
    components = _Components(base["components"])
    paths = {f"/{operation.name}": {"post": _post(operation, components)} for operation in operations}
    return {**base, "paths": {**paths, **base["paths"]}}


class _Components:
    """The shared parts of the document."""

    def __init__(self, kinds: dict[str, _Node]) -> None:
        self._kinds = kinds

    def share(self, kind: str, name: str, value: _Node) -> _Node:
        """Put a part among the others, unless it is there, and return a reference to it."""
        parts = self._kinds.setdefault(kind, {})
        while parts.setdefault(name, value) != value:  # another operation has another one of this name
            name += "_"
        return _reference(kind, name)


def _reference(kind: str, name: str) -> _Node:
    return {"$ref": f"#/components/{kind}/{name}"}


def _post(operation: Operation, components: _Components) -> _Node:
    responses = {
        "200": components.share("responses", operation.outcome.__name__, _success(operation, components)),
        "400": _reference("responses", "BadRequest"),
        "408": _reference("responses", "UploadTooSlow"),
        "413": _reference("responses", "UploadTooLarge"),
        **_refusals(operation, components),
        "500": _reference("responses", "InternalServerError"),
        "503": _reference("responses", "ServiceUnavailable"),
        "default": _reference("responses", "OtherProblem"),
    }
    return {
        "operationId": operation.name,
        "tags": ["images"],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": [
            components.share("parameters", name, _parameter(operation, name, schema))
            for name, schema in schemas(operation.parameters).items()
        ],
        "requestBody": components.share("requestBodies", "Image", _body(operation)),
        "responses": responses,
    }


def _parameter(operation: Operation, name: str, schema: Mapping[str, Any]) -> _Node:
    is_required = operation.parameters.model_fields[name].is_required()
    return {
        "name": name,
        "in": "query",
        **({"required": True} if is_required else {}),
        "description": schema["description"],
        "schema": {word: value for word, value in schema.items() if word != "description"},
    }


def _body(operation: Operation) -> _Node:
    media_types = [*operation.accepts, "application/octet-stream"]
    part = {
        "type": "string",
        "contentMediaType": "application/octet-stream",
        "description": "The one file part; it may have another name.",
    }
    form = {
        "schema": {
            "type": "object",
            "properties": {"image": part},
            "required": ["image"],
            "additionalProperties": False,
        },
        "encoding": {"image": {"contentType": ", ".join(media_types)}},
    }
    return {
        "description": "The image itself, or a form with one file part. The format is told from the content, "
        "never from the header, so any other content type is taken for the image itself too. An empty body "
        "stands for the bundled sample image.",
        "required": False,
        "content": {**{media_type: {} for media_type in media_types}, "multipart/form-data": form},
    }


def _success(operation: Operation, components: _Components) -> _Node:
    properties = operation.outcome.model_json_schema()["properties"]
    headers = {name: _reference("headers", name) for name in (*_COMMON_HEADERS, "X-Engine-PID")}
    headers["Server-Timing"] = components.share("headers", "Server-Timing", _timing(operation.stages))
    for name, field in operation.outcome.headers.items():
        schema = {
            key: value for key, value in properties[field].items() if key not in {"title", "description"}
        }
        header = {"description": properties[field]["description"], "required": True, "schema": schema}
        headers[name] = components.share("headers", name, header)
    return {
        "description": (operation.outcome.__doc__ or "").partition("\n")[0],
        "headers": headers,
        "content": {media_type: {} for media_type in properties["media_type"]["enum"]},
    }


def _timing(stages: Iterable[str]) -> _Node:
    parts = ["queue", *stages]
    return {
        "description": "Where the time went, in milliseconds.",
        "required": True,
        "schema": {"type": "string", "pattern": f"^{', '.join(f'{part};dur=[0-9.]+' for part in parts)}$"},
        "example": ", ".join(f"{part};dur={number + 0.5}" for number, part in enumerate(parts)),
    }


def _refusals(operation: Operation, components: _Components) -> dict[str, _Node]:
    """Return the responses for all ways in which the operation may be refused, by status."""
    classes = sorted((*operation.refusals, *_BY_THE_CLUSTER), key=problems.STATUS_OF.__getitem__)
    responses = {}
    for status, grouped in groupby(classes, problems.STATUS_OF.__getitem__):
        group = list(grouped)
        phrase = problems.Problem.of_status(status, "").title
        name = group[0].__name__ if len(group) == 1 else phrase.replace(" ", "")
        responses[str(status.value)] = components.share("responses", name, _refusal(group))
    return responses


def _refusal(group: Iterable[type[OperationRefused]]) -> _Node:
    found = [problems.Problem.of_error(cls(cls.example)) for cls in group]
    return {
        "description": f"{'; '.join(problem.title for problem in found)}.",
        "headers": {name: _reference("headers", name) for name in _COMMON_HEADERS},
        "content": {
            problems.MEDIA_TYPE: {
                "schema": _reference("schemas", "Problem"),
                "examples": {
                    problem.slug: {"value": json.loads(problem.render(_REQUEST_ID))} for problem in found
                },
            }
        },
    }
