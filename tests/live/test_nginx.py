"""nginx with the configuration that is shipped, in front of two machines that fail."""

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.live_server import DEADLINE_S, ROOT, curl

from benchmarks.harness.waiting import until

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

CONFIG = """
daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log warn; user root;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    include {directory}/shipped.conf;
}}
"""


class FailingMachine(ThreadingHTTPServer):
    """Takes a request with its body, and closes the connection without an answer.

    Attributes:
        seen: the sizes of the bodies and the headers `X-Forwarded-For`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.seen: list[tuple[int, str | None]] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: FailingMachine
    timeout = DEADLINE_S

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.seen.append((len(body), self.headers["X-Forwarded-For"]))
        self.close_connection = True

    do_POST = do_DELETE = do_GET  # noqa: N815 names of the base class

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Front:
    """nginx and the machines behind it."""

    def __init__(self, socket: Path, machines: list[FailingMachine]) -> None:
        self._socket = socket
        self._machines = machines

    def send(self, path: str, *arguments: str, stdin: bytes = b"") -> list[tuple[int, str | None]]:
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
    # A socket's path must be short, which pytest's directories are not.
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        machines = [stack.enter_context(serving()) for _ in range(2)]
        shipped = (ROOT / "deploy" / "nginx.conf").read_text()
        changes = {
            "listen 80;": f"listen unix:{directory}/socket;",
            "10.0.0.11:8000 max_fails=3": f"127.0.0.1:{machines[0].server_port} max_fails=0",
            "10.0.0.12:8000 max_fails=3": f"127.0.0.1:{machines[1].server_port} max_fails=0",
        }
        for old, new in changes.items():
            assert shipped.count(old) == 1
            shipped = shipped.replace(old, new)
        (directory / "shipped.conf").write_text(shipped)
        (directory / "nginx.conf").write_text(CONFIG.format(directory=directory))
        nginx = ["nginx", "-e", f"{directory}/error.log", "-c", f"{directory}/nginx.conf"]
        tried = subprocess.run([*nginx, "-t"], capture_output=True, check=False, timeout=DEADLINE_S)
        assert (tried.returncode, b"[warn]" in tried.stderr) == (0, False), tried.stderr
        process = stack.enter_context(subprocess.Popen(nginx, stderr=subprocess.DEVNULL))
        stack.callback(process.terminate)
        assert until((directory / "socket").is_socket)
        yield Front(directory / "socket", machines)


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
    assert len({size for size, _ in seen}) == 1
    assert all(forwarded for _, forwarded in seen)


def test_a_batch_may_be_larger_than_an_image(front: Front) -> None:
    ((size, _),) = front.send("/batches", "--data-binary", "@-", stdin=bytes(70 << 20))
    assert size == 70 << 20
