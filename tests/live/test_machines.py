"""Several machines, each with a network of its own: web here, jobs there, one store and one S3 for both."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.live_server import DEADLINE_S, ROOT, clean_environ
from support.s3 import BUCKET, CREDENTIALS, REGION, command
from support.store import binaries

from benchmarks.harness.rack import Machine, Rack
from benchmarks.harness.waiting import until

ADDRESSES = {"web": "10.0.0.1", "worker": "10.0.0.2", "store": "10.0.0.3", "files": "10.0.0.4"}
URL = "http://10.0.0.1:8000"
SLOW = "/flip?format=webp"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter"))),
    reason="networks of their own need root and the commands ip, unshare and nsenter",
)


class Machines:
    """A web server that runs no jobs, a worker that does, a store and an S3 server.

    Args:
        rack: where they are.
        directory: for all that they write.
    """

    def __init__(self, rack: Rack, directory: Path) -> None:
        self.rack = rack
        for name in ADDRESSES:
            (directory / name).mkdir()
        (directory / "files" / BUCKET).mkdir()
        self._start(
            "store",
            *(binaries()["redis-server"], "--bind", ADDRESSES["store"], "--protected-mode", "no"),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--dir", f"{directory}/store"),
        )
        self._start("files", *command(directory / "files", ADDRESSES["files"], 9000), **CREDENTIALS)
        shared = {
            "FLIP_JOBS": "remote",
            "FLIP_QUEUE_URL": f"redis://{ADDRESSES['store']}",
            "FLIP_BLOB_URL": f"s3://{BUCKET}",
            "AWS_ENDPOINT_URL": f"http://{ADDRESSES['files']}:9000",
            **REGION,
        }
        for name, port in (("store", 6379), ("files", 9000)):
            connect = f"import socket; socket.create_connection(('{ADDRESSES[name]}', {port}), 1)"
            assert until(lambda connect=connect: not self._fails("web", sys.executable, "-c", connect))
        web = {"FLIP_DATA_DIR": f"{directory}/web", "FLIP_JOBS_AT_ONCE": "0", "WEB_CONCURRENCY": "1"}
        self._start("web", sys.executable, "-m", "gunicorn", "-b", "0.0.0.0:8000", **shared, **web)
        worker = {"FLIP_DATA_DIR": f"{directory}/worker"}
        self._start("worker", sys.executable, "-m", "server.worker", **shared, **worker)
        assert until(lambda: not self._fails("web", "curl", "-sf", f"{URL}/readyz"))

    def post(self, path: str, *options: str) -> tuple[int, bytes]:
        """Send an image, and return the status and the body of the answer."""
        with tempfile.TemporaryDirectory() as directory:
            body = Path(directory) / "body"
            image = f"@{ROOT / 'images' / 'landscape.jpg'}"
            arguments = ["-s", "-o", str(body), "-w", "%{http_code}", "--max-time", str(3 * DEADLINE_S)]
            status = self.rack["web"].run("curl", *arguments, *options, "--data-binary", image, URL + path)
            return int(status), body.read_bytes()

    def submit(self, path: str = SLOW) -> tuple[int, str]:
        """Submit a job, and return the status and, if it was accepted, its address."""
        status, body = self.post(path, "-H", "Prefer: respond-async")
        return status, URL + json.loads(body).get("href", "")

    def job(self, location: str) -> dict[str, Any]:
        """Return a job."""
        found: dict[str, Any] = json.loads(self.rack["web"].run("curl", "-sf", location))
        return found

    def have_ended(self, locations: list[str]) -> bool:
        """Wait until jobs are completed."""
        return until(
            lambda: {self.job(location)["state"] for location in locations} == {"completed"}, 2 * DEADLINE_S
        )

    def _start(self, name: str, *words: str, **environ: str) -> None:
        machine: Machine = self.rack[name]
        machine.start(words, env=clean_environ() | environ, stdout=subprocess.DEVNULL)

    def _fails(self, name: str, *words: str) -> bool:
        try:
            self.rack[name].run(*words)
        except SystemExit:  # its way to say so
            return True
        return False


@contextmanager
def cut_off(machines: Machines, name: str) -> Iterator[None]:
    machines.rack.cut_off(name)
    try:
        yield
    finally:
        machines.rack.join(name)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with tempfile.TemporaryDirectory() as directory, Rack(ADDRESSES) as rack:
        yield Machines(rack, Path(directory))


def test_what_one_machine_takes_another_one_does(machines: Machines) -> None:
    now = machines.post(SLOW)
    accepted = [machines.submit() for _ in range(3)]
    assert {status for status, _ in accepted} == {202}
    assert machines.have_ended([location for _, location in accepted])
    with tempfile.NamedTemporaryFile() as file:
        machines.rack["web"].run("curl", "-sf", "-o", file.name, f"{accepted[0][1]}/result")
        assert (200, file.read()) == now


def test_a_store_that_cannot_be_reached_costs_submissions_only_and_no_job(machines: Machines) -> None:
    before = [machines.submit()[1] for _ in range(8)]
    assert until(lambda: "active" in {machines.job(location)["state"] for location in before})
    with cut_off(machines, "store"):
        for _ in range(3):
            assert machines.submit()[0] == 503
            assert machines.post("/flip")[0] == 200
    assert until(lambda: (after := machines.submit())[0] == 202 and before.append(after[1]) is None)
    assert machines.have_ended(before)


def test_files_that_cannot_be_reached_cost_submissions_only_and_no_try(machines: Machines) -> None:
    before = [machines.submit()[1] for _ in range(8)]
    assert until(lambda: "active" in {machines.job(location)["state"] for location in before})
    with cut_off(machines, "files"):
        assert machines.submit()[0] == 503
        assert machines.post("/flip")[0] == 200
    assert machines.have_ended(before)
    assert {machines.job(location)["tries"] for location in before} == {1}
    assert machines.submit()[0] == 202
