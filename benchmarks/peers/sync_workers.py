"""gunicorn's settings for the Python peers: its default workers, as many as WORKERS says."""

import ctypes
import os
import signal
from pathlib import Path

bind = f"127.0.0.1:{os.environ['PORT']}"
workers = int(os.environ["WORKERS"])
worker_class = "sync"
# A process for each core needs no more threads for an image; a single one keeps libvips' default.
raw_env = ["VIPS_CONCURRENCY=1"] if workers > 1 else []
chdir = str(Path(__file__).parent)
control_socket_disable = True
graceful_timeout = 5  # seconds

_PR_SET_PDEATHSIG = 1


def post_fork(_server: object, _worker: object) -> None:
    """End with the arbiter, however that ends; by itself a worker notices only after 15 seconds."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
