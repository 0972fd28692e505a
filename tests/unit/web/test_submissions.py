"""Submissions: what is refused before anything is kept, and what is not kept after all."""

import asyncio
import errno
import os
import re
from datetime import UTC, datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import Any

import falcon.asgi
import httpx
import pytest
from support.asgi import Later, Server, run, scope_of

from server.cluster.scoreboard import Scoreboard
from server.errors import BadParameter, KeyReused, ServiceUnavailable, StoreAway
from server.jobs.blobs import Directory, Spool
from server.jobs.callbacks import Callbacks
from server.jobs.model import Callback, JobId, Schedule, new_id
from server.jobs.store import Store
from server.web.envelope import Envelope
from server.web.problems import add_error_handlers
from server.web.submissions import OptionReader, Options, Submissions, refusing_when_full
from server.web.uploads import Uploads


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_refuses_a_submission_for_a_time(number: int) -> None:
    with pytest.raises(ServiceUnavailable, match="no room") as refused, refusing_when_full():
        raise OSError(number, os.strerror(number))
    assert refused.value.retry_after_s == 60


def test_another_error_of_the_disk_stays_ours() -> None:
    with pytest.raises(OSError, match="Input/output"), refusing_when_full():
        raise OSError(errno.EIO, os.strerror(errno.EIO))


NOW = Options(Schedule("default"), 5)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", NOW),
        ("priority=0", Options(Schedule("default", 0), 5)),
        ("priority=9&queue=slow&attempts=100", Options(Schedule("slow", 9), 100)),
        ("delay=2592000", Options(Schedule("default", delay_s=2592000), 5)),
        ("not_before=2001-09-09T01:46:40Z", Options(Schedule("default", not_before_s=1e9), 5)),
        ("not_before=2001-09-09T03:46:40%2B02:00", Options(Schedule("default", not_before_s=1e9), 5)),
        (
            "callback=https://a.example/%3Fb",
            Options(Schedule("default"), 5, Callback("https://a.example/?b", 10)),
        ),
    ],
)
def test_options_are_read(query: str, expected: Options) -> None:
    reader = OptionReader(["default", "slow"], 5, Callbacks(["a.example"], "no secret, it is a test"))
    assert reader.read(f"{query}&angle=90") == (expected, {"angle": "90"})


@pytest.mark.parametrize(
    "query",
    [
        *(
            "priority=10",
            "priority=-1",
            "priority=%C2%B2",
            "priority=",
            "priority=1&priority=1",
            "attempts=0",
        ),
        *(
            "attempts=101",
            "delay=2592001",
            "delay=1e3",
            "delay=9999999999",
            "queue=",
            "queue=callbacks",
            "queue=other",
        ),
        *(
            "not_before=tomorrow",
            "not_before=2001-09-09",
            "not_before=2001-09-09T01:46:40",
            "not_before=1000000000",
        ),
        *(
            "not_before=9999-99-99T00:00:00Z",
            "delay=0&not_before=2001-09-09T01:46:40Z",
            "callback=https://b.example/",
        ),
        *("callback=", "callback=https://a.example/&callback=https://a.example/"),
    ],
)
def test_an_option_that_is_wrong_is_refused(query: str) -> None:
    reader = OptionReader(["default", "slow"], 5, Callbacks(["a.example"], "no secret, it is a test"))
    with pytest.raises(BadParameter):
        reader.read(query)


def test_the_first_moment_is_a_moment() -> None:
    options, _ = OptionReader(["default"], 5).read("not_before=0001-01-01T00:00:00%2B23:59")
    assert options.schedule.not_before_s < -1e10


def ahead(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_job_may_wait_for_thirty_days_and_no_longer() -> None:
    reader = OptionReader(["default"], 5)
    assert reader.read(f"not_before={ahead(29.9)}")[0].schedule.not_before_s > 1e9
    for moment in (ahead(30.1), "9999-12-31T23:59:59-23:59"):
        with pytest.raises(BadParameter, match="30 days"):
            reader.read(f"not_before={moment}")


def test_ids_cannot_be_guessed_and_only_ids_are_ids() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch("[0-9a-f]{32}", id) for id in ids)  # 128 bits
    for text in (
        "",
        "0" * 31,
        "0" * 33,
        "A" * 32,
        "0" * 32 + "-01",
        "0" * 32 + "-",
        "0" * 32 + "\n",
        "../" + "0" * 29,
    ):
        assert JobId.parse(text) is None


def files_in(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if path.is_file()]


class Paused(Directory):
    """Blobs that have given a file its name, and do not return yet."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.has_kept = asyncio.Event()

    async def keep(self, file: FileIO, group: str, name: str, *, must_exist: bool = False) -> None:
        await super().keep(file, group, name, must_exist=must_exist)
        self.has_kept.set()
        await asyncio.Event().wait()


def test_a_client_that_leaves_while_its_file_is_kept_leaves_no_file(tmp_path: Path) -> None:
    async def test() -> None:
        blobs = Paused(tmp_path)
        uploads = Uploads(max_body_bytes=100, timeout_s=60, sample=Path("/dev/null"), files=Spool(blobs))
        app = falcon.asgi.App()
        limits: dict[str, Any] = {"grace_s": 60, "ttl_s": 9, "lease_s": 9, "max_jobs": 9, "max_bytes": 999}
        async with Store("unix:///nowhere", owner="me", **limits) as store:
            app.add_route("/flip", Later(Submissions(store, blobs, uploads, OptionReader(["default"], 5))))
            to_app = Server()
            to_app.body(b"an image")
            envelope = Envelope(app, Scoreboard(rows=1).claim())
            task = asyncio.create_task(to_app.call(envelope, scope_of("/flip")))
            await blobs.has_kept.wait()
            assert files_in(tmp_path) == ["0.in"]
            task.cancel()  # what gunicorn does with the request of a client that has left
            await asyncio.wait([task])
        assert files_in(tmp_path) == []

    run(test())


class Unreachable(Directory):
    """Blobs that cannot be reached when they are to be removed."""

    async def remove_group(self, group: str) -> None:
        raise StoreAway(f"{group} cannot be reached.")


class Refusing(Store):
    """A store that refuses each submission."""

    async def submit(self, *_: object) -> str:
        raise KeyReused("Use another key.")


def test_a_refusal_is_told_although_the_file_cannot_be_removed(tmp_path: Path) -> None:
    async def test() -> None:
        blobs = Unreachable(tmp_path)
        uploads = Uploads(max_body_bytes=100, timeout_s=60, sample=Path("/dev/null"), files=Spool(blobs))
        app = falcon.asgi.App()
        add_error_handlers(app)
        limits: dict[str, Any] = {"grace_s": 60, "ttl_s": 9, "lease_s": 9, "max_jobs": 9, "max_bytes": 999}
        async with Refusing("unix:///nowhere", owner="me", **limits) as store:
            app.add_route("/flip", Later(Submissions(store, blobs, uploads, OptionReader(["default"], 5))))
            transport = httpx.ASGITransport(app=Envelope(app, Scoreboard(rows=1).claim()))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                response = await http.post("/flip", content=b"an image")
        assert (response.status_code, response.json()["detail"]) == (422, "Use another key.")

    run(test())
