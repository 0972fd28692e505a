"""A real S3 server for tests, which checks signatures: nanio, on a free port."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness.server import free_port
from benchmarks.harness.waiting import DEADLINE_S, until

BUCKET = "images"
URL = f"s3://{BUCKET}/jobs"

_KEY, _SECRET = "tester", "a secret for tests"


class S3Server:
    """An S3 server that is ready, with an empty bucket; its data outlive it.

    Args:
        directory: for its data.
    """

    def __init__(self, directory: Path) -> None:
        (directory / BUCKET).mkdir()
        self._port = free_port()
        self._command = [
            *(sys.executable, "-m", "nanio", "serve", "--data-dir", str(directory)),
            *("--host", "127.0.0.1", "--port", str(self._port), "--log-level", "warning", "--no-access-log"),
        ]
        #: The variables that lead to it.
        self.environ = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_REGION": "us-east-1",
        }
        self.start()

    def start(self) -> None:
        """Start it and wait until it listens."""
        credentials = {"NANIO_ACCESS_KEY": _KEY, "NANIO_SECRET_KEY": _SECRET}
        self._process = subprocess.Popen(self._command, env=os.environ | credentials)
        assert until(self._listens), "no S3 server"

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait(DEADLINE_S)

    def _listens(self) -> bool:
        assert self._process.poll() is None
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self._port)) == 0


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run a server until the block ends."""
    with TemporaryDirectory() as directory:
        server = S3Server(Path(directory))
        try:
            yield server
        finally:
            server.kill()
