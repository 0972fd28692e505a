"""The place where the service runs: what machine, container and service manager must grant to it.

A start that could not serve says in one line what is missing, before it listens.
"""

import os
import resource

from server.cluster.memory_files import memory_file
from server.settings import Settings

#: The descriptors of a worker that is idle, with some to spare: three for each task that is being sent, of
#: which each lane has one at a time, and one for each connection that is refused or lingers.
_OWN_DESCRIPTORS = 64

#: Of a request in flight: its connection, its upload, the sample image in place of an empty one, its result,
#: and the socket for the engine's answer.
_DESCRIPTORS_OF_A_CONNECTION = 5

_FEWEST_CONNECTIONS = 16

#: A worker, its threads (`server.jobs.threads`), its engine, and its background engine: that one is for jobs,
#: and for clients that use more than others.
_PROCESSES_OF_A_WORKER = 9

#: Less address space is too little for a worker, which maps the scoreboard and the ledger as a whole.
_LEAST_MEMORY_BYTES = 384 * 2**20


def why_not_here(settings: Settings, workers: int) -> str | None:
    """Say what is missing here for the service to run; None when nothing is.

    Args:
        settings: some of its limits must fit in those of the process (setrlimit(2)).
        workers: how many there are to be.
    """
    descriptors = max(_OWN_DESCRIPTORS + _DESCRIPTORS_OF_A_CONNECTION * _FEWEST_CONNECTIONS, 32 + 2 * workers)
    processes = 1 + _PROCESSES_OF_A_WORKER * workers
    needs = (
        ("NOFILE", descriptors, "descriptors are needed; raise it (ulimit -n, LimitNOFILE)"),
        ("AS", _LEAST_MEMORY_BYTES, "bytes are needed; raise it (ulimit -v, LimitAS)"),
        (
            "FSIZE",
            settings.max_body_bytes,
            "bytes are needed, FLIP_MAX_BODY_BYTES; lower that, or raise it (ulimit -f, LimitFSIZE)",
        ),
        (
            "NPROC",
            0 if os.geteuid() == 0 else processes,  # the kernel does not count those of root
            "processes and threads are needed; raise it (ulimit -u, LimitNPROC), or start fewer workers (-w)",
        ),
    )
    for name, need, advice in needs:
        most = _most(name)
        if most is not None and most < need:
            return f"RLIMIT_{name} is {most}, but {need} {advice}"
    try:
        memory_file("probe").close()
    except OSError as error:
        return (
            f"{error}; allow memfd_create in the seccomp profile, or make /dev/shm or TMPDIR a directory "
            "that can be written to"
        )
    return None


def most_connections(wanted: int) -> int:
    """Return how many connections a worker may hold at once, so that no request lacks a descriptor.

    Args:
        wanted: gunicorn's `worker_connections`.
    """
    most = _most("NOFILE")
    return wanted if most is None else min(wanted, (most - _OWN_DESCRIPTORS) // _DESCRIPTORS_OF_A_CONNECTION)


def _most(name: str) -> int | None:
    """Return a limit; None when there is none."""
    soft, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
    most = hard if name == "NOFILE" else soft  # workers raise that one themselves
    return None if most == resource.RLIM_INFINITY else most
