"""The API document (OpenAPI 3.1).

The operations are from their table, what has to do with jobs is from `openapi_jobs.json`, and the rest from
`openapi_base.json`.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from server.errors import KeyReused, PoisonImage, ServiceError, TooMuchWork
from server.operations.registry import Operation
from server.web import problems
from server.web.parameters import schemas
from server.web.submissions import OPTIONS

_BASE = Path(__file__).parent / "openapi_base.json"
_JOBS = Path(__file__).parent / "openapi_jobs.json"

#: What any operation may be refused with, by the cluster.
_BY_THE_CLUSTER = (TooMuchWork, PoisonImage)

#: And the submission of a job.
_OF_JOBS = (KeyReused,)

_COMMON_HEADERS = ("X-Request-ID", "X-Response-Time", "X-Worker-PID", "X-Content-Type-Options")
_REQUEST_ID = "5f2c0b7f4a3e9d1c8b6a5f4e3d2c1b0a"

#: The parameters of a submission.
_SUBMISSION = (*OPTIONS, "Idempotency-Key")

_Node = dict[str, Any]


def document(operations: Collection[Operation], queues: Sequence[str] = ()) -> _Node:
    """Make the document of a service.

    Args:
        operations: each has a route of its own.
        queues: those that a job can go to; none: there are no jobs.
    """
    whole: _Node = json.loads(_BASE.read_bytes())
    if queues:
        whole = _merged(whole, json.loads(_JOBS.read_bytes()))
        whole["components"]["schemas"]["QueueName"] = {"type": "string", "enum": list(queues)}
    components = _Components(whole["components"])
    paths = {f"/{each.name}": {"post": _post(each, components, has_jobs=bool(queues))} for each in operations}
    if queues:
        whole["paths"]["/batches"]["post"]["parameters"] = _of_a_batch(operations, components)
    whole["paths"] = {**paths, **whole["paths"]}
    _add_common_headers(whole)
    return whole


def _merged(one: _Node, other: _Node) -> _Node:
    """Merge two parts of a document, which have no more than objects and lists in common."""
    whole = {**one, **other}
    for name in one.keys() & other.keys():
        is_list = isinstance(one[name], list)
        whole[name] = one[name] + other[name] if is_list else _merged(one[name], other[name])
    return whole


def _add_common_headers(whole: _Node) -> None:
    """Add the headers that every response has."""
    described = [operation["responses"] for path in whole["paths"].values() for operation in path.values()]
    for responses in (*described, whole["components"]["responses"]):
        for response in responses.values():
            if "$ref" not in response:
                common = {name: _reference("headers", name) for name in _COMMON_HEADERS}
                response["headers"] = common | response.get("headers", {})


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


def _post(operation: Operation, components: _Components, *, has_jobs: bool) -> _Node:
    responses = {
        "200": components.share("responses", operation.outcome.__name__, _success(operation, components)),
        "400": _reference("responses", "BadRequest"),
        "408": _reference("responses", "UploadTooSlow"),
        "413": _reference("responses", "UploadTooLarge"),
        **_refusals((*operation.refusals, *_BY_THE_CLUSTER, *(_OF_JOBS if has_jobs else ())), components),
        "500": _reference("responses", "InternalServerError"),
        "503": _reference("responses", "ServiceUnavailable"),
        "default": _reference("responses", "OtherProblem"),
    }
    parameters = [
        components.share("parameters", name, _parameter(operation, name, schema))
        for name, schema in schemas(operation.parameters).items()
    ]
    if has_jobs:
        responses |= {"202": _reference("responses", "Accepted"), "503": _reference("responses", "NotTaken")}
        parameters += [_reference("parameters", name) for name in ("Prefer", *_SUBMISSION)]
    return {
        "operationId": operation.name,
        "tags": ["images"],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": parameters,
        "requestBody": components.share("requestBodies", "Image", _body(operation)),
        "responses": responses,
    }


def _of_a_batch(operations: Collection[Operation], components: _Components) -> list[_Node]:
    """Return the parameters of `POST /batches`: which operation, those of all of them, and the options."""
    operation = {
        "name": "operation",
        "in": "query",
        "required": True,
        "description": "What is done to each image. Only the parameters of its own route can be given.",
        "schema": {"type": "string", "enum": [each.name for each in operations]},
    }
    found: dict[str, _Node] = {}
    for each in operations:
        for name, schema in schemas(each.parameters).items():
            parameter = _parameter(each, name, schema)
            if parameter.pop("required", False):  # by one operation, not by all
                found[name] = parameter
            else:
                found[name] = components.share("parameters", name, parameter)
    return [operation, *found.values(), *(_reference("parameters", name) for name in _SUBMISSION)]


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
    headers = {"X-Engine-PID": _reference("headers", "X-Engine-PID")}
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


def _refusals(classes: Iterable[type[ServiceError]], components: _Components) -> dict[str, _Node]:
    """Return the responses for all ways in which an operation may be refused, by status."""
    responses = {}
    by_status = sorted(classes, key=problems.STATUS_OF.__getitem__)
    for status, grouped in groupby(by_status, problems.STATUS_OF.__getitem__):
        group = list(grouped)
        phrase = problems.Problem.of_status(status, "").title
        name = group[0].__name__ if len(group) == 1 else phrase.replace(" ", "")
        responses[str(status.value)] = components.share("responses", name, _refusal(group))
    return responses


def _refusal(group: Iterable[type[ServiceError]]) -> _Node:
    found = [problems.Problem.of_error(cls(cls.example)) for cls in group]
    return {
        "description": f"{'; '.join(problem.title for problem in found)}.",
        "content": {
            problems.MEDIA_TYPE: {
                "schema": _reference("schemas", "Problem"),
                "examples": {
                    problem.slug: {"value": json.loads(problem.render(_REQUEST_ID))} for problem in found
                },
            }
        },
    }
