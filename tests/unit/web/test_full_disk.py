"""A disk without room for what is submitted, or a lack of descriptors, is not taken for a bug of ours."""

import asyncio
import errno
import os
from io import FileIO
from pathlib import Path
from typing import Any

import falcon.asgi
import httpx
import pytest
from support.asgi import Later

from server.cluster.scoreboard import Scoreboard
from server.jobs.blobs import Directory, Spool
from server.jobs.intake import Limits
from server.jobs.store import Store
from server.operations.images import OPERATIONS
from server.web.batches import BatchesResource
from server.web.envelope import Envelope
from server.web.problems import add_error_handlers
from server.web.submissions import OptionReader, Submissions
from server.web.uploads import Uploads


class FullDirectory(Directory):
    """A directory whose file system has no room left."""

    def new(self) -> FileIO:
        return FileIO(os.open("/dev/full", os.O_RDWR), "r+b")


class BusyDirectory(Directory):
    """A directory of a process that has as many files open as it may."""

    def new(self) -> FileIO:
        raise OSError(errno.EMFILE, "Too many open files")


async def answer(blobs: Directory, path: str, **content: Any) -> httpx.Response:
    limits: dict[str, Any] = {"grace_s": 0.01, "ttl_s": 60, "lease_s": 60, "max_jobs": 10, "max_bytes": 1000}
    options = OptionReader(["default"], 5)
    uploads = Uploads(max_body_bytes=1000, timeout_s=60, sample=Path("/dev/null"), files=Spool(blobs))
    async with Store("unix:///nowhere", owner="me", **limits) as store:
        app = falcon.asgi.App()
        add_error_handlers(app)
        app.add_route("/flip", Later(Submissions(store, blobs, uploads, options)))
        app.add_route("/batches", BatchesResource(store, blobs, options, OPERATIONS, Limits(9, 9999, 999, 9)))
        transport = httpx.ASGITransport(app=Envelope(app, Scoreboard(rows=1).claim()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, **content)


@pytest.mark.parametrize(
    ("kind", "retry_after_s", "word"), [(FullDirectory, 60, "disk"), (BusyDirectory, 1, "files")]
)
@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/flip", {"content": b"an image"}),
        ("/flip", {"files": {"image": b"an image"}}),
        ("/batches?operation=flip", {"files": {"image": b"an image"}}),
        ("/batches?operation=flip", {"content": b"PK\3\4 and so on"}),
    ],
)
def test_a_submission_is_refused_until_there_is_room(  # noqa: PLR0913, PLR0917 parameters
    tmp_path: Path, kind: type[Directory], retry_after_s: int, word: str, path: str, content: dict[str, Any]
) -> None:
    response = asyncio.run(answer(kind(tmp_path), path, **content))
    assert (response.status_code, response.json()["type"]) == (
        503,
        "urn:flipcluster:problem:service-unavailable",
    )
    assert int(response.headers["Retry-After"]) == retry_after_s
    assert word in response.json()["detail"]
    assert list(tmp_path.iterdir()) == []
