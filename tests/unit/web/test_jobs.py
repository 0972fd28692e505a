"""A result is served whole or in a range, and only while it is there (RFC 9110, sections 13 and 14)."""

from io import FileIO
from pathlib import Path

import falcon.asgi
import httpx
import pytest
from support.asgi import run
from support.store import StoreServer, stores

from server.cluster.scoreboard import Scoreboard
from server.jobs.blobs import Directory
from server.jobs.model import Facts, JobId, NewJob, Result, Schedule
from server.web.envelope import Envelope
from server.web.jobs import ResultResource
from server.web.problems import add_error_handlers

CONTENT = bytes(range(256)) * 2048  # more than one piece
SIZE = len(CONTENT)
ID = JobId("ab" * 16)
TAG = f'"{ID}.1"'


class Watched(Directory):
    """Blobs that note which parts of files were opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: list[tuple[int, int] | None] = []

    async def open(self, group: str, name: str, part: tuple[int, int] | None = None) -> FileIO:
        self.opened.append(part)
        return await super().open(group, name, part)


def answers_to(
    server: StoreServer,
    blobs: Directory,
    *requests: dict[str, str],
    content: bytes = CONTENT,
    method: str = "GET",
) -> list[httpx.Response]:
    """Ask for the result of a completed job, once with each of these sets of headers."""
    answers: list[httpx.Response] = []

    async def test() -> None:
        async with stores(server, "me") as (store,):
            id = ID
            await store.submit(id.group, Facts("flip", 1, {}, 1), NewJob(1), Schedule("default"))
            (claim,), _ = await store.claim("1", ["flip 1"], 1)
            with blobs.new() as file:
                file.write(content)
                await blobs.keep(file, id.group, id.result_name(claim.fence))
            result = Result({"media_type": "image/png"}, len(content), claim.fence)
            await store.complete(claim, result)
            app = falcon.asgi.App()
            add_error_handlers(app)
            app.add_route("/jobs/{id}/result", ResultResource(store, blobs))
            transport = httpx.ASGITransport(app=Envelope(app, Scoreboard(rows=1).claim()))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                answers.extend(
                    [await client.request(method, f"/jobs/{id}/result", headers=each) for each in requests]
                )

    run(test())
    return answers


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        *(("bytes=0-0", 0, 0), ("bytes=0-9", 0, 9), (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1)),
        *(
            ("bytes=-1", SIZE - 1, SIZE - 1),
            (f"bytes=-{SIZE + 9}", 0, SIZE - 1),
            ("Bytes=5-99999999", 5, SIZE - 1),  # units have no case (RFC 9110, section 14.1)
        ),
        *(
            ("bytes=262143-262144", 262143, 262144),
            ("bytes=0-", 0, SIZE - 1),
            (f"bytes=7-{10**30}", 7, SIZE - 1),
        ),
    ],
)
def test_a_range_is_served(server: StoreServer, tmp_path: Path, wanted: str, first: int, last: int) -> None:
    (answer,) = answers_to(server, Directory(tmp_path), {"Range": wanted})
    assert (answer.status_code, answer.content) == (206, CONTENT[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
    assert answer.headers["content-length"] == str(last - first + 1)


@pytest.mark.parametrize("wanted", [f"bytes={SIZE}-", f"bytes={10**30}-", f"bytes={SIZE}-{SIZE + 5}"])
def test_a_range_behind_the_end_is_refused(server: StoreServer, tmp_path: Path, wanted: str) -> None:
    (answer,) = answers_to(server, Directory(tmp_path), {"Range": wanted})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{SIZE}")
    assert answer.headers["content-type"] == "application/problem+json"


def test_nothing_is_satisfied_by_an_empty_result(server: StoreServer, tmp_path: Path) -> None:
    whole, part = answers_to(server, Directory(tmp_path), {}, {"Range": "bytes=0-"}, content=b"")
    assert (whole.status_code, whole.content, whole.headers["content-length"]) == (200, b"", "0")
    assert part.status_code == 416


@pytest.mark.parametrize(
    "wanted",
    [
        *(
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5-2",
            "bytes=a-b",
            "bytes=0-1,4-5",
            "lines=1-2",
            "bytes=--1",
        ),
        *("bytes=1_0-2_0", "bytes=+1-2", "bytes=1-+2", "bytes=-+1", "bytes=1-2-3"),
    ],
)
def test_a_range_that_makes_no_sense_is_ignored(server: StoreServer, tmp_path: Path, wanted: str) -> None:
    (answer,) = answers_to(server, Directory(tmp_path), {"Range": wanted})
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-None-Match": TAG}, 304),
        ({"If-None-Match": f"W/{TAG}"}, 304),
        ({"If-None-Match": f'"other", {TAG}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": TAG, "Range": "bytes=0-1"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-Range": TAG, "Range": "bytes=0-1"}, 206),
        ({"If-Range": f"W/{TAG}", "Range": "bytes=0-1"}, 200),  # which is no strong one
        ({"If-Range": '"other"', "Range": "bytes=0-1"}, 200),
        ({"If-Range": "Tue, 15 Nov 1994 12:45:26 GMT", "Range": "bytes=0-1"}, 200),
    ],
)
def test_a_condition_is_heeded(
    server: StoreServer, tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    (answer,) = answers_to(server, Directory(tmp_path), headers)
    assert (answer.status_code, answer.headers["etag"]) == (status, TAG)
    assert len(answer.content) == {200: SIZE, 206: 2, 304: 0}[status]


def test_a_head_has_the_same_headers_and_no_body(server: StoreServer, tmp_path: Path) -> None:
    whole, part = answers_to(server, Directory(tmp_path), {}, {"Range": "bytes=0-9"}, method="HEAD")
    assert (whole.status_code, whole.headers["content-length"], whole.content) == (200, str(SIZE), b"")
    # A range is for GET alone (RFC 9110, section 14.2).
    assert (part.status_code, part.headers["content-length"], part.content) == (200, str(SIZE), b"")


def test_no_more_is_opened_than_is_sent(server: StoreServer, tmp_path: Path) -> None:
    blobs = Watched(tmp_path)
    answers_to(server, blobs, {}, {"Range": "bytes=5-9"}, {"If-None-Match": TAG}, {"Range": f"bytes={SIZE}-"})
    assert blobs.opened == [(0, SIZE), (5, 10)]
    server.client.flushall()
    blobs = Watched(tmp_path / "other")
    blobs.prepare()
    answers_to(server, blobs, {}, {"Range": "bytes=5-9"}, method="HEAD")
    assert blobs.opened == [(0, 0), (0, 0)]
