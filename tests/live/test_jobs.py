"""Work for later, as a client sees it: submitted with curl, watched, fetched, cancelled."""

import io
import json
import re
import socket
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from support.live_server import DEADLINE_S, ROOT, LiveServer, curl

from benchmarks.harness.waiting import until

LANDSCAPE = (ROOT / "images" / "landscape.jpg").read_bytes()
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the jobs are kept."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[LiveServer]:
    with LiveServer(
        environ={"FLIP_JOBS": "embedded", "FLIP_DATA_DIR": str(data), "FLIP_QUEUES": "default,slow"}
    ) as server:
        yield server


def png(colour: str = "red", size: tuple[int, int] = (8, 6), form: str = "PNG") -> bytes:
    image = Image.new("RGB", size, colour)
    image.putpixel((0, 0), (0, 0, 255))
    with io.BytesIO() as file:
        image.save(file, form)
        return file.getvalue()


def submit(server: LiveServer, body: bytes, path: str = "/flip", **headers: str) -> str:
    """Submit a job, and return its address."""
    response = httpx.post(server.url + path, content=body, headers={**ASYNC, **headers})
    assert response.status_code == 202, response.text
    assert response.headers["preference-applied"] == "respond-async"
    return str(response.headers["location"])


def ended(server: LiveServer, location: str) -> dict[str, Any]:
    """Return a job once it has ended."""
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        response = httpx.get(server.url + location, headers={"Prefer": "wait=10"}, timeout=DEADLINE_S)
        found.update(response.json())
        return found["state"] in {"completed", "failed", "cancelled"}

    until(has_ended)
    return found


def test_a_job_gives_the_same_result_as_a_request(server: LiveServer) -> None:
    now = httpx.post(server.url + "/flip", content=LANDSCAPE)
    location = submit(server, LANDSCAPE)
    assert re.fullmatch(r"/jobs/[0-9a-f]{32}", location)
    job = ended(server, location)
    assert (job["state"], job["progress"], job["tries"], job["error"]) == ("completed", 100, 1, None)
    result = httpx.get(server.url + job["result"]["href"])
    assert result.content == now.content
    assert result.headers["content-type"] == now.headers["content-type"] == job["result"]["media_type"]
    assert int(result.headers["content-length"]) == job["result"]["bytes"]


def test_a_damaged_image_fails_with_the_problem_that_a_request_gets(server: LiveServer) -> None:
    body = LANDSCAPE[:20_000]
    now = httpx.post(server.url + "/flip", content=body).json()
    job = ended(server, submit(server, body))
    assert (job["state"], job["tries"], job["result"]) == ("failed", 1, None)
    assert {key: now[key] for key in ("type", "title", "status", "detail")} == job["error"]
    response = httpx.get(server.url + job["href"] + "/result")
    assert (response.status_code, response.json()["type"]) == (404, "urn:flipcluster:problem:not-done")


def test_every_operation_can_be_done_later(server: LiveServer) -> None:
    for path in ("/flop", "/rotate?angle=90&format=webp", "/transpose", "/transverse", "/orient?strip=true"):
        now = httpx.post(server.url + path, content=png())
        job = ended(server, submit(server, png(), path))
        assert httpx.get(server.url + job["result"]["href"]).content == now.content


def test_a_form_and_an_empty_body_can_be_submitted(server: LiveServer) -> None:
    form = httpx.post(server.url + "/flip", files={"image": ("a.png", png())}, headers=ASYNC)
    sample = httpx.post(server.url + "/flip", headers=ASYNC)
    for response, body in ((form, png()), (sample, b"")):
        job = ended(server, response.headers["location"])
        now = httpx.post(server.url + "/flip", content=body)
        assert httpx.get(server.url + job["result"]["href"]).content == now.content


@pytest.fixture(scope="module")
def done(server: LiveServer) -> dict[str, Any]:
    """A completed job."""
    return ended(server, submit(server, LANDSCAPE))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=10-", slice(10, None)),
        ("bytes=-10", slice(-10, None)),
        ("bytes=0-99999999", slice(0, None)),
    ],
)
def test_a_range_of_a_result_can_be_fetched(
    server: LiveServer, done: dict[str, Any], wanted: str, expected: slice
) -> None:
    url = server.url + done["result"]["href"]
    whole = httpx.get(url)
    part = httpx.get(url, headers={"Range": wanted})
    assert (part.status_code, part.content) == (206, whole.content[expected])
    first = range(len(whole.content))[expected].start
    last = first + len(part.content) - 1
    assert part.headers["content-range"] == f"bytes {first}-{last}/{len(whole.content)}"


@pytest.mark.parametrize("wanted", ["bytes=5-2", "lines=1-2", "bytes=0-1,4-5", "bytes", "bytes=a-b"])
def test_a_range_that_makes_no_sense_is_ignored(
    server: LiveServer, done: dict[str, Any], wanted: str
) -> None:
    response = httpx.get(server.url + done["result"]["href"], headers={"Range": wanted})
    assert (response.status_code, len(response.content)) == (200, done["result"]["bytes"])


@pytest.mark.parametrize("wanted", ["bytes=99999999-", "bytes=-0", "bytes = -00"])
def test_a_range_that_holds_nothing_is_refused(server: LiveServer, done: dict[str, Any], wanted: str) -> None:
    response = httpx.get(server.url + done["result"]["href"], headers={"Range": wanted})
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{done['result']['bytes']}"
    assert response.headers["content-type"] == "application/problem+json"


def test_a_range_is_for_get_alone(server: LiveServer, done: dict[str, Any]) -> None:
    response = httpx.head(server.url + done["result"]["href"], headers={"Range": "bytes=0-9"})
    assert (response.status_code, response.headers["content-length"]) == (200, str(done["result"]["bytes"]))


def test_what_can_be_got_has_a_head(server: LiveServer, done: dict[str, Any]) -> None:
    files = [("image", ("a.png", png()))]
    batch = httpx.post(server.url + "/batches?operation=flip", files=files).headers["location"]
    ended(server, batch.replace("batches", "jobs") + "-0")
    for path in (done["href"], batch, f"{batch}/items", f"{batch}/archive", "/queues", "/queues/slow/failed"):
        got, head = httpx.get(server.url + path), httpx.head(server.url + path)
        assert (got.status_code, head.status_code, head.content) == (200, 200, b""), path
        assert head.headers["content-type"] == got.headers["content-type"], path
        assert head.headers.get("content-length") in {None, str(len(got.content))}, path


def test_a_result_that_the_client_has_is_not_sent_again(server: LiveServer, done: dict[str, Any]) -> None:
    url = server.url + done["result"]["href"]
    tag = httpx.head(url).headers["etag"]
    assert httpx.get(url, headers={"If-None-Match": tag}).status_code == 304
    assert httpx.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
    assert httpx.get(url, headers={"Range": "bytes=0-9", "If-Range": tag}).status_code == 206
    assert httpx.get(url, headers={"Range": "bytes=0-9", "If-Range": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("priority=10", "priority"),
        ("priority=a", "priority"),
        ("delay=-1", "delay"),
        ("delay=1&not_before=2030-01-31T12:00:00Z", "not_before"),
        ("not_before=tomorrow", "not_before"),
        ("not_before=2030-01-31T12:00:00", "not_before"),
        ("queue=other", "queue"),
        ("attempts=0", "attempts"),
        ("priority=1&priority=2", "priority"),
        ("angle=90", "angle"),
    ],
)
def test_an_option_that_is_wrong_is_named(server: LiveServer, query: str, named: str) -> None:
    response = httpx.post(f"{server.url}/flip?{query}", content=png(), headers=ASYNC)
    assert (response.status_code, response.json()["type"]) == (400, "urn:flipcluster:problem:bad-parameter")
    assert named in response.json()["detail"]


@pytest.mark.parametrize("path", ["/flip?", "/batches?operation=flip&"])
def test_there_are_no_callbacks_without_a_list_of_hosts(server: LiveServer, path: str) -> None:
    url = f"{server.url}{path}callback=https://example.com/"
    response = httpx.post(url, files={"image": ("a.png", png())}, headers=ASYNC)
    assert response.status_code == 400
    assert "FLIP_CALLBACK_HOSTS" in response.json()["detail"]


def test_options_are_for_later_only(server: LiveServer) -> None:
    response = httpx.post(server.url + "/flip?priority=1", content=png())
    assert response.status_code == 400


def test_a_delayed_job_is_cancelled(server: LiveServer) -> None:
    location = submit(server, png(), "/flip?delay=3600&priority=0&queue=slow&attempts=2")
    job = httpx.get(server.url + location).json()
    assert (job["state"], job["priority"], job["queue"], job["attempts"]) == ("delayed", 0, "slow", 2)
    response = httpx.delete(server.url + location)
    assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    assert httpx.delete(server.url + location).json()["state"] == "cancelled"


def test_a_submission_with_a_key_is_carried_out_once(server: LiveServer) -> None:
    first = submit(server, png(), **{"Idempotency-Key": "k1"})
    assert submit(server, png(), **{"Idempotency-Key": "k1"}) == first
    response = httpx.post(
        server.url + "/flip", content=png("green"), headers={**ASYNC, "Idempotency-Key": "k1"}
    )
    assert (response.status_code, response.json()["type"]) == (422, "urn:flipcluster:problem:key-reused")


def test_a_paused_queue_keeps_its_jobs_until_it_is_resumed(server: LiveServer) -> None:
    assert httpx.post(server.url + "/queues/slow/pause").json()["is_paused"]
    location = submit(server, png(), "/flip?queue=slow")
    assert ended(server, submit(server, png()))["state"] == "completed"
    assert httpx.get(server.url + location).json()["state"] == "waiting"
    queues = {queue["name"]: queue for queue in httpx.get(server.url + "/queues").json()["queues"]}
    assert (queues["slow"]["is_paused"], queues["slow"]["jobs"]["waiting"]) == (True, 1)
    assert not httpx.post(server.url + "/queues/slow/resume").json()["is_paused"]
    assert ended(server, location)["state"] == "completed"


def test_probes_tell_what_waits(server: LiveServer) -> None:
    location = submit(server, png(), "/flip?queue=slow&delay=3600")
    status = httpx.get(server.url + "/status").json()
    assert status["is_store_up"]
    assert status["queues"] == httpx.get(server.url + "/queues").json()["queues"]
    assert {queue["name"]: queue["jobs"]["delayed"] for queue in status["queues"]} == {
        "default": 0,
        "slow": 1,
    }
    metrics = httpx.get(server.url + "/metrics").text.splitlines()
    assert {"flip_store_up 1.0", 'flip_jobs{queue="slow",state="delayed"} 1.0'} <= set(metrics)
    httpx.delete(server.url + location)
    assert 'flip_jobs{queue="slow",state="delayed"} 0.0' in httpx.get(server.url + "/metrics").text


def test_probes_answer_while_the_store_is_away(tmp_path: Path) -> None:
    environ = {
        "FLIP_JOBS": "remote",
        "FLIP_QUEUE_URL": f"unix://{tmp_path}/nothing",
        "FLIP_DATA_DIR": str(tmp_path),
    }
    with LiveServer(environ=environ) as server:
        status = httpx.get(server.url + "/status").json()
        assert (len(status["workers"]) > 0, status["is_store_up"], status["queues"]) == (True, False, [])
        metrics = httpx.get(server.url + "/metrics").text
        assert "flip_store_up 0.0" in metrics
        assert "flip_engines " in metrics
        response = httpx.get(server.url + "/queues")
        assert (response.status_code, response.json()["type"]) == (503, "urn:flipcluster:problem:store-away")
        assert httpx.post(server.url + "/flip", content=png()).status_code == 200


def test_a_failed_job_is_listed_and_can_be_run_again(server: LiveServer) -> None:
    location = submit(server, b"no image")
    assert ended(server, location)["state"] == "failed"
    failed = httpx.get(server.url + "/queues/default/failed").json()["jobs"]
    assert location in {job["href"] for job in failed}
    assert httpx.post(server.url + location + "/retry").status_code == 200
    assert ended(server, location)["state"] == "failed"


@pytest.mark.parametrize(
    "header",
    [{"X-Forwarded-For": "203.0.113.9"}, {"Forwarded": "for=203.0.113.9"}, {"Sec-Fetch-Site": "cross-site"}],
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/queues"), ("POST", "/queues/slow/pause"), ("GET", "/queues/slow/failed")]
)
def test_queues_are_for_operators_on_the_machine(
    server: LiveServer, header: dict[str, str], method: str, path: str
) -> None:
    response = httpx.request(method, server.url + path, headers=header)
    assert (response.status_code, response.json()["type"]) == (403, "urn:flipcluster:problem:forbidden")


@pytest.mark.parametrize(("version", "expected"), [("--http1.0", b"403"), ("--http1.1", b"200")])
def test_an_operator_speaks_the_version_that_proxies_do_not(
    server: LiveServer, version: str, expected: bytes
) -> None:
    answer = curl(version, "-o", "/dev/null", "-w", "%{http_code}", server.url + "/queues")
    assert answer.stdout == expected


@pytest.mark.parametrize(
    ("method", "path", "slug"),
    [
        ("GET", f"/jobs/{'0' * 32}", "no-such-job"),
        ("GET", "/jobs/nonsense", "no-such-job"),
        ("GET", f"/jobs/{'0' * 32}/result", "no-such-job"),
        ("GET", f"/jobs/{'0' * 32}/events", "no-such-job"),
        ("DELETE", f"/jobs/{'0' * 32}", "no-such-job"),
        ("POST", f"/jobs/{'0' * 32}/retry", "no-such-job"),
        ("GET", f"/batches/{'0' * 32}", "no-such-job"),
        ("GET", f"/batches/{'0' * 32}/archive", "no-such-job"),
        ("POST", "/queues/other/pause", "no-such-queue"),
        ("GET", "/queues/other/failed", "no-such-queue"),
    ],
)
def test_what_is_not_there_is_a_problem(server: LiveServer, method: str, path: str, slug: str) -> None:
    response = httpx.request(method, server.url + path)
    assert (response.status_code, response.json()["type"]) == (404, f"urn:flipcluster:problem:{slug}")


def events_of(server: LiveServer, path: str, seen: int = 0) -> list[tuple[str, str, Any]]:
    """Read a stream to its end: id, kind and data of each event."""
    found = curl(f"{server.url}{path}", "-N", "-H", f"Last-Event-ID: {seen}")
    assert found.returncode == 0, found.stderr
    events = []
    for block in found.stdout.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            events.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return events


def test_the_events_of_a_job_end_with_its_last_state(server: LiveServer) -> None:
    location = submit(server, LANDSCAPE)
    events = events_of(server, location + "/events")
    assert events[-1][1] == "completed"
    assert events[-1][2]["href"] == location


# --- batches -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def specimens(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A hundred images of all formats, three of them damaged."""
    directory = tmp_path_factory.mktemp("specimens")
    files = []
    for number in range(100):
        form = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")[number % 7]
        body = png(("red", "green", "blue")[number % 3], (8 + number, 6), form)
        if number in {13, 50, 99}:
            body = body[: len(body) // 2]
        files.append(directory / f"{number}.{form.lower()}")
        files[-1].write_bytes(body)
    return files


@pytest.fixture(scope="module")
def flipped(server: LiveServer, specimens: list[Path]) -> list[bytes]:
    """What is answered to each of them at once."""
    with httpx.Client(base_url=server.url) as client:
        return [client.post("/flip", content=file.read_bytes()).content for file in specimens]


def check_batch(server: LiveServer, location: str, files: list[Path], flipped: list[bytes]) -> None:
    events = events_of(server, location + "/events")
    assert [id for id, _, _ in events] == [str(number) for number in range(1, 102)]
    assert [kind for _, kind, _ in events].count("ended") == 1
    assert events[-1][2]["ended"] == {"total": 100, "completed": 97, "failed": 3, "cancelled": 0}
    jobs = {f"{location.replace('batches', 'jobs')}-{index}" for index in range(100)}
    assert {data["job"] for _, _, data in events[:-1]} == jobs
    assert all(kind == data["state"] for _, kind, data in events[:-1])
    times = [datetime.fromisoformat(data["at"]) for _, _, data in events]
    assert times == sorted(times)
    assert abs(datetime.now(UTC) - times[-1]) < timedelta(minutes=5)
    assert events_of(server, location + "/events", seen=60) == events[60:]
    batch = httpx.get(server.url + location).json()
    assert (batch["total"], batch["remaining"], batch["completed"], batch["failed"]) == (100, 0, 97, 3)
    items = httpx.get(server.url + location + "/items").json()["items"]
    assert [item["name"] for item in items] == [file.name for file in files]
    failed = [number for number, item in enumerate(items) if item["state"] == "failed"]
    assert failed == [13, 50, 99]
    assert {items[number]["error"]["type"].rpartition(":")[2] for number in failed} <= {
        "damaged-image",
        "unsupported-image",
    }
    archive = zipfile.ZipFile(io.BytesIO(httpx.get(server.url + location + "/archive").content))
    assert archive.testzip() is None
    manifest = json.loads(archive.read("manifest.json"))
    assert len(archive.namelist()) == 98
    for number, now in enumerate(flipped):
        if number not in failed:
            assert archive.read(manifest["items"][number]["file"]) == now


def test_a_form_with_many_files_becomes_a_batch(
    server: LiveServer, specimens: list[Path], flipped: list[bytes]
) -> None:
    forms = [argument for file in specimens for argument in ("-F", f"image=@{file}")]
    answer = curl(f"{server.url}/batches?operation=flip", "-D-", "-o", "/dev/null", *forms)
    assert b" 202 " in answer.stdout.splitlines()[0], answer.stdout
    location = re.search(rb"(?i)^location: (\S+)", answer.stdout, re.MULTILINE)
    assert location is not None
    check_batch(server, location[1].decode(), specimens, flipped)


def test_an_archive_whose_results_go_while_it_is_sent_breaks_off(server: LiveServer, data: Path) -> None:
    files = [("image", ("a.png", png(size=(256, 256), form="BMP"))) for _ in range(3)]
    location = httpx.post(server.url + "/batches?operation=flip", files=files).headers["location"]
    events_of(server, location + "/events")
    results = sorted(data.glob(f"**/{location.rpartition('/')[2]}/*.out"))
    assert len(results) == 3
    before = len(server.events)
    results[-1].unlink()
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(server.url + location + "/archive")
    path = location + "/archive"
    assert server.wait_for("request", after=before, path=path)["problem"] == "expired"
    server.wait_for("response_cut_short", after=before)
    results[0].unlink()
    answer = httpx.get(server.url + path)
    assert (answer.status_code, answer.json()["type"]) == (410, "urn:flipcluster:problem:expired")
    server.wait_for("request", after=before, path=path, status=410)
    assert not [event for event in server.events[before:] if "exception" in event]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_becomes_a_batch(
    server: LiveServer, specimens: list[Path], flipped: list[bytes], tmp_path: Path, kind: str
) -> None:
    archive = tmp_path / f"images.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for file in specimens:
                packed.write(file, file.name)
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as packed_tar:
            for file in specimens:
                packed_tar.add(file, file.name)
    media_type = {"zip": "application/zip", "tar": "application/x-tar", "tar.gz": "application/gzip"}[kind]
    response = httpx.post(
        server.url + "/batches?operation=flip",
        content=archive.read_bytes(),
        headers={"Content-Type": media_type},
    )
    assert response.status_code == 202, response.text
    check_batch(server, response.headers["location"], specimens, flipped)


def test_results_of_one_batch_become_the_items_of_another(server: LiveServer) -> None:
    files = [("image", ("a.png", png("red"))), ("image", ("b.png", png("green")))]
    first = httpx.post(server.url + "/batches?operation=flip", files=files).headers["location"]
    last = [ended(server, first.replace("batches", "jobs") + f"-{index}") for index in (0, 1)][-1]
    results = [f"{first.replace('batches', 'jobs')}-{index}/result" for index in (1, 0)]
    answer = curl(
        f"{server.url}/batches?operation=flip",
        *("-D-", "-o", "/dev/null", "-H", "Content-Type: application/json"),
        *("--data", json.dumps({"items": results})),
    )
    location = re.search(rb"(?i)^location: (\S+)", answer.stdout, re.MULTILINE)
    assert location is not None, answer.stdout
    second = location[1].decode().replace("batches", "jobs")
    jobs = [ended(server, f"{second}-{index}") for index in (0, 1)]
    assert [job["name"] for job in jobs] == ["b.png", "a.png"]
    assert jobs[0]["bytes"] == last["result"]["bytes"]
    for job, colour in zip(jobs, ("green", "red"), strict=True):
        with (
            Image.open(io.BytesIO(httpx.get(server.url + job["result"]["href"]).content)) as twice,
            Image.open(io.BytesIO(png(colour))) as before,
        ):
            assert twice.tobytes() == before.tobytes()


def test_nothing_is_left_of_a_batch_that_is_refused(server: LiveServer) -> None:
    response = httpx.post(
        server.url + "/batches?operation=flip",
        content=b"PK\x03\x04 no zip",
        headers={"Content-Type": "application/zip"},
    )
    assert (response.status_code, response.json()["type"]) == (422, "urn:flipcluster:problem:bad-archive")


def test_a_batch_is_cancelled(server: LiveServer) -> None:
    forms = {f"image{number}": (f"{number}.png", png()) for number in range(5)}
    response = httpx.post(server.url + "/batches?operation=flip&delay=3600", files=forms)
    assert response.status_code == 202, response.text
    location = response.headers["location"]
    assert httpx.get(server.url + location + "/archive").status_code == 404
    batch = httpx.delete(server.url + location).json()
    assert (batch["cancelled"], batch["remaining"], batch["has_ended"]) == (5, 0, True)


def test_a_key_of_a_job_is_not_that_of_a_batch(server: LiveServer) -> None:
    submit(server, png("yellow"), **{"Idempotency-Key": "k2"})
    response = httpx.post(
        server.url + "/batches?operation=flip",
        files={"image": ("a.png", png("yellow"))},
        headers={"Idempotency-Key": "k2"},
    )
    assert (response.status_code, response.json()["type"]) == (422, "urn:flipcluster:problem:key-reused")


def test_an_empty_item_fails_at_once_as_what_it_is(server: LiveServer) -> None:
    response = httpx.post(
        server.url + "/batches?operation=flip",
        files=[("image", ("a.png", png())), ("image", (".keep", b""))],
    )
    job = ended(server, response.headers["location"].replace("batches", "jobs") + "-1")
    assert (job["state"], job["tries"]) == ("failed", 1)
    assert job["error"]["type"] == "urn:flipcluster:problem:unsupported-image"


def test_a_batch_that_runs_again_has_events_until_it_ends_again(server: LiveServer) -> None:
    url = server.url + "/batches?operation=flip&queue=slow"
    response = httpx.post(url, files=[("image", ("a.png", png())), ("image", ("b.png", b"no image"))])
    location = response.headers["location"]
    seen = events_of(server, location + "/events")
    assert [kind for _, kind, _ in seen][-1] == "ended"
    finished = httpx.get(server.url + location + "/events", headers={"Last-Event-ID": "3"})
    assert (finished.status_code, finished.content) == (204, b"")
    httpx.post(server.url + "/queues/slow/pause")
    assert httpx.post(server.url + location.replace("batches", "jobs") + "-1/retry").status_code == 200
    with httpx.stream("GET", server.url + location + "/events", headers={"Last-Event-ID": "3"}) as stream:
        lines = stream.iter_lines()
        until_waiting = [next(line for line in lines if line.startswith("event:"))]
        httpx.post(server.url + "/queues/slow/resume")
        rest = [line for line in lines if line.startswith("event:")]
    assert until_waiting + rest == ["event: waiting", "event: failed", "event: ended"]


def test_a_job_in_no_batch_has_no_events_of_a_batch(server: LiveServer, done: dict[str, Any]) -> None:
    response = httpx.get(server.url + done["href"].replace("jobs", "batches") + "/events")
    assert (response.status_code, response.json()["type"]) == (404, "urn:flipcluster:problem:no-such-job")


def test_the_events_of_a_job_that_were_seen_to_the_end_are_no_more(
    server: LiveServer, done: dict[str, Any]
) -> None:
    response = httpx.get(server.url + done["href"] + "/events", headers={"Last-Event-ID": "completed"})
    assert (response.status_code, response.content) == (204, b"")


def test_a_stop_gives_running_jobs_back_and_a_start_finishes_them(tmp_path: Path) -> None:
    environ = {"FLIP_JOBS": "embedded", "FLIP_DATA_DIR": str(tmp_path / "data")}
    with LiveServer(environ=environ) as server:
        locations = [submit(server, LANDSCAPE, "/flip?path=pixels") for _ in range(10)]
        assert server.stop() == 0
    with LiveServer(environ=environ) as server:
        assert {ended(server, location)["state"] for location in locations} == {"completed"}
    left = subprocess.run(
        ["find", str(tmp_path / "data"), "-perm", "/077"], capture_output=True, text=True, check=True
    )
    assert left.stdout == ""


def test_a_callback_to_a_host_with_a_private_address_is_tried_again_and_never_posted(tmp_path: Path) -> None:
    environ = {
        "FLIP_JOBS": "embedded",
        "FLIP_DATA_DIR": str(tmp_path / "data"),
        "FLIP_CALLBACK_HOSTS": "localhost",
        "FLIP_CALLBACK_SECRET": "no secret, as it is in a test",
    }
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        LiveServer(environ=environ) as server,
    ):
        url = f"http://localhost:{listener.getsockname()[1]}/"
        other = httpx.post(server.url + "/flip?callback=http://127.0.0.1/", content=png(), headers=ASYNC)
        assert other.status_code == 400
        location = submit(server, png(), f"/flip?callback={url}")
        assert ended(server, location)["state"] == "completed"

        def delayed() -> int:
            queues = httpx.get(server.url + "/queues").json()["queues"]
            return sum(queue["jobs"]["delayed"] for queue in queues if queue["name"] == "callbacks")

        assert until(delayed) == 1
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
        server.wait_for("callback_failed", error="The host has an address that is not public.")
