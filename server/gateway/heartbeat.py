"""The heartbeat of a worker: a file whose time the worker sets and the arbiter reads."""

import os

from gunicorn.config import Config
from gunicorn.workers.workertmp import WorkerTmp

from server.cluster.memory_files import memory_file


class Heartbeat(WorkerTmp):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's, with a memory file: a directory for it may be missing, full or read-only.

    Args:
        cfg: says who the worker will be, which must own the file to set its time (utimensat(2)).
    """

    def __init__(self, cfg: Config) -> None:
        self._tmp = memory_file("heartbeat")
        if (cfg.uid, cfg.gid) != (os.geteuid(), os.getegid()):
            os.fchown(self._tmp.fileno(), cfg.uid, cfg.gid)
