"""nginx with the configuration that is shipped, in front of two machines."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness.waiting import until
from support.live_server import DEADLINE_S, ROOT

# Short timeouts: what a test does not finish must not hold it up.
_CONFIG = """
daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log warn; user root;
events {{ worker_connections 64; }}
http {{
    log_format seen escape=json '{{"id": "$request_id", "method": "$request_method", "path": "$uri",'
        ' "upstream": "$upstream_status", "length": "$request_length", "body": "$request_body"}}';
    access_log {directory}/access.log seen;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    client_header_timeout 2s; client_body_timeout 2s; keepalive_timeout 2s;
    include {directory}/shipped.conf;
}}
"""


@contextmanager
def nginx(first: int, second: int) -> Iterator[Path]:
    """Start nginx in front of two machines on this one, and stop it at the end.

    Args:
        first, second: the ports of the machines.

    Yields:
        A directory that holds the `socket` on which it listens, and `access.log`, with an object for each
        request.
    """
    # A socket's path must be short, which pytest's directories are not.
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        shipped = (ROOT / "deploy" / "nginx.conf").read_text()
        changes = {
            "listen 80;": f"listen unix:{directory}/socket;",
            "10.0.0.11:8000 max_fails=3": f"127.0.0.1:{first} max_fails=0",
            "10.0.0.12:8000 max_fails=3": f"127.0.0.1:{second} max_fails=0",
        }
        for old, new in changes.items():
            assert shipped.count(old) == 1
            shipped = shipped.replace(old, new)
        (directory / "shipped.conf").write_text(shipped)
        (directory / "nginx.conf").write_text(_CONFIG.format(directory=directory))
        command = ["nginx", "-e", f"{directory}/error.log", "-c", f"{directory}/nginx.conf"]
        tried = subprocess.run([*command, "-t"], capture_output=True, check=False, timeout=DEADLINE_S)
        assert (tried.returncode, b"[warn]" in tried.stderr) == (0, False), tried.stderr
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                assert until((directory / "socket").is_socket)
                yield directory
            finally:
                process.terminate()
