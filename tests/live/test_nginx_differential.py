"""The service behind nginx: no request is understood differently by the two (request smuggling, desync)."""

import json
import posixpath
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from fuzz import malformed, vectors
from support.live_server import DEADLINE_S, Event, LiveServer
from support.nginx import nginx

from benchmarks.harness.waiting import until

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

Request = dict[str, str]

#: Statuses with which the service has read all of a body that was posted to it.
_READ = {200, 415}

#: A body of more bytes may be in a file of nginx, and not in its log.
_MOST_LOGGED = 1 << 20


class Pair:
    """nginx and the service behind it.

    Args:
        directory: of nginx.
        service: with one worker, to which no other client sends requests.
    """

    def __init__(self, directory: Path, service: LiveServer) -> None:
        self._directory = directory
        self._service = service

    def send(self, sent: bytes) -> bytes:
        """Send bytes to nginx, and return all that comes until it closes the connection."""
        received = bytearray()
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(DEADLINE_S)
            connection.connect(str(self._directory / "socket"))
            with suppress(ConnectionError):  # what is refused is not read to its end
                connection.sendall(sent)
            with suppress(ConnectionError):
                while piece := connection.recv(1 << 16):
                    received += piece
        return bytes(received)

    def theirs(self) -> list[Request]:
        """The requests in the log of nginx."""
        log = (self._directory / "access.log").read_text("latin-1")
        return [json.loads(line) for line in log.split("\n") if line.endswith("}")]

    def ours(self) -> list[Event]:
        """The requests in the log of the service."""
        return [event for event in self._service.events if event["event"] == "request"]

    def differences(self) -> list[str]:
        """What the two do not agree on, once both have written all of their logs."""
        found: list[str] = []

        def agree() -> bool:
            found[:] = differences(self.theirs(), self.ours())
            return not found

        until(agree)
        return found


def differences(theirs: Iterable[Request], ours: Iterable[Event]) -> list[str]:
    """Compare what nginx has passed on with what the service has answered.

    The service may refuse what nginx has taken. When it cannot even parse the head, its line has no path, and
    an id of its own.
    """
    passed_on = {request["id"]: request for request in theirs if request["upstream"]}
    lines, unparsed = {}, []
    for line in ours:
        if line["path"] == "-":
            unparsed.append(str(line["status"]))
        else:
            lines[line["request_id"]] = line
    unseen = [status_of(request) for key, request in passed_on.items() if key not in lines]
    return [
        *(f"nginx has not sent {line}" for key, line in lines.items() if key not in passed_on),
        *(
            f"{request} is not {lines[key]}"
            for key, request in passed_on.items()
            if key in lines and not is_same(request, lines[key])
        ),
        *([f"answers {unseen} are not {unparsed}"] if sorted(unseen) != sorted(unparsed) else []),
    ]


def status_of(request: Request) -> str:
    """The status of the last answer that nginx got."""
    return request["upstream"].rpartition(" ")[2]


def is_same(request: Request, line: Event) -> bool:
    """Whether nginx and the service understand a request in the same way.

    What the service does not take for a request, such as a target with a fragment, it understands in no way.
    """
    path = request["path"]
    is_refused = line["problem"] == "bad-request"
    was_read = request["method"] == "POST" and line["path"] == "/flip" and line["status"] in _READ
    return (
        line["method"] == request["method"]
        and str(line["status"]) == status_of(request)
        and (
            is_refused
            or not (path.isascii() and path.isprintable())
            or resolved(line["path"]) == resolved(path)
        )
        and (
            not was_read or int(request["length"]) > _MOST_LOGGED or line["bytes_in"] == len(request["body"])
        )
    )


def resolved(path: str) -> str:
    """Merge slashes and resolve dots, as nginx does before it chooses a location."""
    return posixpath.normpath("/" + path.lstrip("/"))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with LiveServer(environ={"WEB_CONCURRENCY": "1"}) as service, nginx(service.port, service.port) as front:
        yield Pair(front, service)


def test_nginx_and_the_service_understand_every_request_alike(
    pair: Pair, record_property: Callable[[str, str], None]
) -> None:
    """Connections from nginx to the service are kept, so one difference would show in all that follows."""
    tables = (malformed.TABLES | vectors.TABLES).values()
    rows = [sent for table in tables for sent, _statuses in table.values()]
    for sent in rows:
        pair.send(malformed.get() + sent + malformed.get(b"Connection: close", target=b"/healthz?end"))
    assert pair.differences() == []
    theirs = pair.theirs()
    passed_on = [request for request in theirs if request["upstream"]]
    accepted = [request for request in passed_on if request["upstream"].startswith("2")]
    record_property(
        "counts",
        f"{len(rows)} vectors, each behind another request: nginx saw {len(theirs)} requests, passed "
        f"{len(passed_on)} on, and the service saw {len(pair.ours())} and accepted {len(accepted)}",
    )
    assert len(theirs) > len(passed_on) > len(accepted) > len(rows)


@pytest.mark.parametrize("name", [b"metrics", b"status"])
@pytest.mark.parametrize(
    "target",
    [
        *(b"/%s", b"/%s?a", b"/%s#a", b"//%s", b"/./%s", b"/a/../%s", b"/%%2F%s", b"/.%%2F%s"),
        *(b"http://a/%s", b"/%s/", b"/%s/.", b"/%s%%3Fa", b"/%s%%23a", b"/%s;a", b"/%s%%20", b"/%s%%00"),
        b"/a%%5C..%%5C%s",
    ],
)
def test_the_world_cannot_ask_for_what_is_measured(pair: Pair, target: bytes, name: bytes) -> None:
    whole = malformed.get(b"Connection: close", target=target % name)
    status = int(pair.send(whole).split(b" ", 2)[1])
    assert status in {400, 403, 404}


def test_what_is_measured_cannot_be_spelled_in_another_way(pair: Pair) -> None:
    status = int(pair.send(malformed.get(b"Connection: close", target=b"/%6detrics")).split(b" ", 2)[1])
    assert status == 403


@pytest.mark.parametrize(
    ("theirs", "ours", "fault"),
    [
        ({}, {}, None),
        ({"upstream": ""}, {}, "nginx has not sent"),
        ({"id": "b"}, {}, "answers"),
        ({"id": "b", "upstream": "400"}, {"path": "-", "status": 400}, None),
        ({"id": "b", "upstream": "400"}, {"path": "-", "status": 501}, "answers"),
        ({"method": "POST"}, {}, "is not"),
        ({"path": "/b"}, {}, "is not"),
        ({"path": "/a/b"}, {"path": "//a/c/../b"}, None),
        ({"upstream": "400"}, {"path": "/a#b", "status": 400, "problem": "bad-request"}, None),
        ({"upstream": "400"}, {"path": "/b", "status": 400, "problem": "bad-parameter"}, "is not"),
        ({"upstream": "502, 404"}, {}, "is not"),
        ({"upstream": "502, 200"}, {}, None),
        (
            {"method": "POST", "path": "/flip", "body": "hello"},
            {"method": "POST", "path": "/flip", "bytes_in": 4},
            "is not",
        ),
    ],
)
def test_a_difference_would_be_found(theirs: Request, ours: Event, fault: str | None) -> None:
    request = {"id": "a", "method": "GET", "path": "/a", "upstream": "200", "length": "9", "body": ""}
    line = {"request_id": "a", "method": "GET", "path": "/a", "status": 200, "problem": None, "bytes_in": 0}
    found = differences([request | theirs], [line | ours])
    assert any(fault in one for one in found) if fault else found == []
