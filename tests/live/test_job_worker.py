"""A worker without a web server does the jobs that a web server takes, over a store that both are given."""

import signal
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
import pytest
from support.live_server import DEADLINE_S, LiveServer, LiveWorker, run
from support.s3 import URL, s3_server
from support.store import binaries, store_server

from benchmarks.harness.waiting import until


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    with (
        tempfile.TemporaryDirectory() as directory,
        store_server(binaries()["redis-server"], Path(directory)) as store,
    ):
        yield {
            "FLIP_JOBS": "remote",
            "FLIP_QUEUE_URL": store.url,
            "FLIP_DATA_DIR": f"{directory}/data",
            "FLIP_LEASE_S": "300",  # no lease ends here
        }


@pytest.fixture(scope="module")
def server(environ: dict[str, str]) -> Iterator[LiveServer]:
    with LiveServer(environ={**environ, "FLIP_JOBS_AT_ONCE": "0", "WEB_CONCURRENCY": "1"}) as server:
        yield server


#: Several take long enough to be interrupted.
SLOW = "/flip?format=webp"


def submit(server: LiveServer, image: bytes, path: str = "/flip?path=pixels") -> str:
    response = httpx.post(server.url + path, content=image, headers={"Prefer": "respond-async"})
    assert response.status_code == 202, response.text
    return server.url + response.headers["location"]


def job(location: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(location).json()
    return found


def have_ended(locations: list[str]) -> bool:
    return until(lambda: {job(location)["state"] for location in locations} == {"completed"}, DEADLINE_S)


def wait_until_one_runs(locations: list[str]) -> None:
    assert until(lambda: "active" in {job(location)["state"] for location in locations})


def test_a_web_server_that_runs_no_jobs_leaves_them_to_a_worker(
    server: LiveServer, environ: dict[str, str], quarter: bytes
) -> None:
    location = submit(server, quarter)
    assert job(location)["state"] == "waiting"
    with LiveWorker(environ) as worker:
        assert have_ended([location])
        engines = worker.wait_for("job_worker_online")["engines"]
        worker.wait_for("engine_online", count=engines)
        assert worker.stop() == 0
        worker.wait_for("job_worker_offline")
    result = httpx.get(f"{location}/result").content
    assert result == httpx.post(f"{server.url}/flip?path=pixels", content=quarter).content


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_stopped_gives_back_what_runs(
    server: LiveServer, environ: dict[str, str], quarter: bytes, number: signal.Signals
) -> None:
    locations = [submit(server, quarter, SLOW) for _ in range(6)]
    with LiveWorker(environ) as worker:
        wait_until_one_runs(locations)
        worker.send_signal(number)
        assert worker.wait() == 0
    left = [job(location) for location in locations]
    assert {each["state"] for each in left} <= {"waiting", "completed"}
    waiting = [each for each in left if each["state"] == "waiting"]
    assert waiting
    assert {each["tries"] for each in waiting} == {0}
    with LiveWorker(environ):
        assert have_ended(locations)


def test_the_jobs_of_a_worker_that_was_killed_are_taken_over(
    server: LiveServer, environ: dict[str, str], quarter: bytes
) -> None:
    locations = [submit(server, quarter, SLOW) for _ in range(6)]
    with LiveWorker(environ) as doomed:
        wait_until_one_runs(locations)
        doomed.kill()
    with LiveWorker(environ):  # it releases them at its start, unless the web server has done so
        assert have_ended(locations)
    assert max(job(location)["tries"] for location in locations) == 2


def test_machines_that_share_no_directory_share_a_bucket(
    environ: dict[str, str], quarter: bytes, tmp_path: Path
) -> None:
    with s3_server() as s3:
        shared = {**environ, **s3.environ, "FLIP_BLOB_URL": URL}
        here, there = str(tmp_path / "here"), str(tmp_path / "there")
        web = {**shared, "FLIP_DATA_DIR": here, "FLIP_JOBS_AT_ONCE": "0", "WEB_CONCURRENCY": "1"}
        with LiveServer(environ=web) as server, LiveWorker({**shared, "FLIP_DATA_DIR": there}):
            locations = [submit(server, quarter) for _ in range(3)]
            assert have_ended(locations)
            now = httpx.post(f"{server.url}/flip?path=pixels", content=quarter).content
            assert [httpx.get(f"{location}/result").content for location in locations] == [now] * 3
            part = httpx.get(f"{locations[0]}/result", headers={"Range": "bytes=10-99"})
            assert part.content == now[10:100]
            forms = [("image", (f"{number}.jpg", quarter)) for number in range(5)]
            batch = httpx.post(f"{server.url}/batches?operation=flip&path=pixels", files=forms)
            location = server.url + batch.headers["location"]
            assert until(lambda: httpx.get(location).json()["has_ended"])
            with ZipFile(BytesIO(httpx.get(f"{location}/archive").content)) as archive:
                assert [archive.read(f"{number:06}.jpg") for number in range(5)] == [now] * 5
    assert not list(tmp_path.rglob("*"))  # nothing was kept on these machines


def test_a_web_server_whose_bucket_does_not_exist_ends_with_the_reason(environ: dict[str, str]) -> None:
    with s3_server() as s3:
        ended = run(
            [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0"],
            **(environ | s3.environ | {"FLIP_BLOB_URL": "s3://nowhere", "WEB_CONCURRENCY": "1"}),
        )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "flipcluster: FLIP_BLOB_URL: cannot keep the files of jobs in s3://nowhere: "
        "The specified bucket does not exist"
    )


def test_a_store_that_may_lose_jobs_is_warned_of(server: LiveServer) -> None:
    assert "store_may_lose_jobs" not in server.log
    with (
        tempfile.TemporaryDirectory() as directory,
        store_server(binaries()["redis-server"], Path(directory)) as store,
    ):
        environ = {
            "FLIP_JOBS": "remote",
            "FLIP_QUEUE_URL": store.url,
            "FLIP_DATA_DIR": f"{directory}/data",
            "WEB_CONCURRENCY": "1",
        }
        store.client.config_set("maxmemory-policy", "allkeys-lru")
        store.client.config_set("appendonly", "no")
        with LiveServer(environ=environ) as warned:
            assert warned.wait_for("store_may_lose_jobs")["reason"] == (
                "it may evict jobs: set maxmemory-policy from allkeys-lru to noeviction; "
                "what it acknowledges is not on its disk: set appendonly to yes"
            )
        store.kill()
        with LiveServer(environ=environ) as without:
            without.wait_for("store_away")


REMOTE = {"FLIP_JOBS": "remote", "FLIP_QUEUE_URL": "unix:///nowhere"}


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({}, "FLIP_JOBS: a worker without a web server needs `remote`"),
        ({**REMOTE, "FLIP_JOBS_AT_ONCE": "0"}, "FLIP_JOBS_AT_ONCE: a worker without a web server needs 1"),
        ({**REMOTE, "FLIP_LEASE_S": "1"}, "FLIP_LEASE_S: Input should be greater than or equal to 3"),
        ({**REMOTE, "FLIP_DATA_DIR": "/proc"}, "Cannot keep the files of jobs in /proc/blobs: No such file"),
    ],
)
def test_a_worker_that_cannot_work_ends_with_the_reason(environ: dict[str, str], reason: str) -> None:
    ended = run([sys.executable, "-m", "server.worker"], **environ)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"flipcluster: {reason}")
