"""nginx with the configuration that is shipped, in front of two machines that fail."""

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from support.live_server import DEADLINE_S, curl
from support.nginx import nginx

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


class Seen(NamedTuple):
    """What a machine has seen of a request: the size of its body, and some of its headers."""

    body_bytes: int
    forwarded_for: str | None
    forwarded: str | None
    request_id: str | None


class FailingMachine(ThreadingHTTPServer):
    """Takes a request with its body, and closes the connection without an answer.

    Attributes:
        seen: the requests, in their order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: FailingMachine
    timeout = DEADLINE_S

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        names = "X-Forwarded-For", "Forwarded", "X-Request-ID"
        self.server.seen.append(Seen(len(body), *(self.headers[name] for name in names)))
        self.close_connection = True

    do_POST = do_DELETE = do_GET  # noqa: N815 names of the base class

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Front:
    """nginx and the machines behind it."""

    def __init__(self, socket: Path, machines: list[FailingMachine]) -> None:
        self._socket = socket
        self._machines = machines

    def send(self, path: str, *arguments: str, stdin: bytes = b"") -> list[Seen]:
        """Send a request, and return what the machines have seen of it."""
        for machine in self._machines:
            machine.seen.clear()
        url = f"http://localhost{path}"
        answer = curl("--unix-socket", str(self._socket), "-w", "%{http_code}", *arguments, url, stdin=stdin)
        assert answer.stdout.endswith(b"502")  # none has answered
        return [seen for machine in self._machines for seen in machine.seen]


@contextmanager
def serving() -> Iterator[FailingMachine]:
    with FailingMachine() as machine:
        thread = threading.Thread(target=machine.serve_forever)
        thread.start()
        try:
            yield machine
        finally:
            machine.shutdown()
            thread.join(DEADLINE_S)


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with serving() as first, serving() as second, nginx(first.server_port, second.server_port) as directory:
        yield Front(directory / "socket", [first, second])


@pytest.mark.parametrize(
    ("path", "arguments", "sent"),
    [
        ("/flip", ("--data-binary", "image"), 2),
        ("/rotate?angle=90", ("--data-binary", "image"), 2),
        ("/flip", ("--data-binary", "image", "-H", "Prefer: respond-async"), 1),
        ("/flip", ("--data-binary", "image", "-H", "Prefer: wait=9", "-H", "Prefer: respond-async"), 1),
        ("/batches?operation=flip", ("-F", "image=@-;filename=a"), 1),
        ("/jobs/5f2c0b7f4a3e9d1c8b6a5f4e3d2c1b0a/retry", ("-X", "POST"), 1),
        ("/jobs/5f2c0b7f4a3e9d1c8b6a5f4e3d2c1b0a", (), 2),
        ("/jobs/5f2c0b7f4a3e9d1c8b6a5f4e3d2c1b0a", ("-X", "DELETE"), 2),
    ],
)
def test_only_what_submits_nothing_is_sent_to_a_second_machine(
    front: Front, path: str, arguments: tuple[str, ...], sent: int
) -> None:
    seen = front.send(path, *arguments)
    assert len(seen) == sent
    assert len({one.body_bytes for one in seen}) == 1
    assert all(one.forwarded_for for one in seen)


def test_a_request_has_one_id_on_all_machines_which_no_client_can_choose(front: Front) -> None:
    ids = {one.request_id for one in front.send("/healthz", "-H", "X-Request-ID: mine")}
    assert len(ids) == 1
    assert re.fullmatch("[0-9a-f]{32}", ids.pop() or "")


def test_a_client_cannot_choose_the_address_that_nginx_names(front: Front) -> None:
    fields = ("-H", "X-Forwarded-For: 192.0.2.7", "-H", "Forwarded: for=192.0.2.7")
    for seen in front.send("/healthz", *fields):
        assert seen.forwarded is None
        assert (seen.forwarded_for or "").startswith("192.0.2.7, ")  # and what follows counts


def test_a_batch_may_be_larger_than_an_image(front: Front) -> None:
    (seen,) = front.send("/batches", "--data-binary", "@-", stdin=bytes(70 << 20))
    assert seen.body_bytes == 70 << 20
