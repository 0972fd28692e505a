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

#: What the server is given, and what its clients are given besides its address.
CREDENTIALS = {"NANIO_ACCESS_KEY": _KEY, "NANIO_SECRET_KEY": _SECRET}
REGION = {"AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET, "AWS_REGION": "us-east-1"}


def command(directory: Path, host: str, port: int) -> list[str]:
    """Return the command of a server; a directory in its directory is a bucket."""
    return [
        *(sys.executable, "-m", "nanio", "serve", "--data-dir", str(directory)),
        *("--host", host, "--port", str(port), "--log-level", "warning", "--no-access-log"),
    ]


class S3Server:
    """An S3 server that is ready, with an empty bucket.

    Args:
        directory: for its data.

    Attributes:
        environ: the variables that lead to it.
    """

    def __init__(self, directory: Path) -> None:
        (directory / BUCKET).mkdir()
        self._port = free_port()
        self.environ = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}", **REGION}
        self._process = subprocess.Popen(
            command(directory, "127.0.0.1", self._port), env=os.environ | CREDENTIALS
        )
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
