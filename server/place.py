"""The place where the service runs: what machine, container and service manager must grant to it.

A start that could not serve says in one line what is missing, before it listens.
"""

import os
import resource
from pathlib import Path

from server.cgroups import groups, lines
from server.cluster.memory_files import memory_file
from server.settings import Settings

#: The descriptors of a worker that is idle, with some to spare: three for each task that is being sent, of
#: which each lane has one at a time.
_OWN_DESCRIPTORS = 64

#: Of a request in flight: its connection, its upload, the sample image in place of an empty one, its result,
#: and the socket for the engine's answer.
_DESCRIPTORS_OF_A_REQUEST = 5

#: As many connections may be queued or refused as served (`server.gateway.throttle`, `Worker.refuse`).
_DESCRIPTORS_OF_A_CONNECTION = _DESCRIPTORS_OF_A_REQUEST + 1

_FEWEST_CONNECTIONS = 16

#: A worker, its threads (`server.cluster.threads`), its engine, and its background engine: that one is for
#: jobs, and for clients that use more than others.
_PROCESSES_OF_A_WORKER = 9

#: The embedded store: its server with five threads, and the child that rewrites its data.
_PROCESSES_OF_THE_STORE = 7

#: Less address space is too little for a worker, which maps the scoreboard and the ledger as a whole.
_LEAST_MEMORY_BYTES = 384 * 2**20

#: The processes and threads of a worker without a web server, but for its engines: itself, its threads, those
#: of the client of a bucket, and some to spare.
_PROCESSES_OF_A_JOB_WORKER = 16


def why_not_here(settings: Settings, workers: int) -> str | None:
    """Say what is missing here for the service to run; None when nothing is.

    Args:
        settings: some of its limits must fit in those of the process (setrlimit(2)).
        workers: how many there are to be.
    """
    descriptors = max(_OWN_DESCRIPTORS + _DESCRIPTORS_OF_A_CONNECTION * _FEWEST_CONNECTIONS, 32 + 2 * workers)
    processes = 1 + _PROCESSES_OF_A_WORKER * workers
    if settings.jobs == "embedded":
        processes += _PROCESSES_OF_THE_STORE
    return _why_not(settings, descriptors, processes, "start fewer workers (-w)")


def why_no_job_worker_here(settings: Settings, cores: int) -> str | None:
    """Say what is missing here for a worker without a web server; None when nothing is.

    Args:
        settings: as in `why_not_here`.
        cores: how many engines there are to be.
    """
    descriptors = _OWN_DESCRIPTORS + _DESCRIPTORS_OF_A_REQUEST * settings.jobs_at_once * cores
    processes = _PROCESSES_OF_A_JOB_WORKER + cores
    return _why_not(settings, descriptors, processes, "give it fewer cores (taskset)")


def _why_not(settings: Settings, descriptors: int, processes: int, fewer: str) -> str | None:
    fewer = f"processes and threads are needed; raise it (%s), or {fewer}"
    needs = (
        (
            "RLIMIT_NOFILE",
            _most("NOFILE"),
            descriptors,
            "descriptors are needed; raise it (ulimit -n, LimitNOFILE)",
        ),
        ("RLIMIT_AS", _most("AS"), _LEAST_MEMORY_BYTES, "bytes are needed; raise it (ulimit -v, LimitAS)"),
        (
            "RLIMIT_FSIZE",
            _most("FSIZE"),
            settings.max_body_bytes,
            "bytes are needed, FLIP_MAX_BODY_BYTES; lower that, or raise it (ulimit -f, LimitFSIZE)",
        ),
        (
            "RLIMIT_NPROC",
            None if os.geteuid() == 0 else _most("NPROC"),  # the kernel does not count those of root
            processes,
            fewer % "ulimit -u, LimitNPROC",
        ),
        ("pids.max of the control group", _most_pids(), processes, fewer % "--pids-limit, TasksMax"),
    )
    for name, most, need, advice in needs:
        if most is not None and most < need:
            return f"{name} is {most}, but {need} {advice}"
    if not Path("/proc/self/fd").is_dir():
        return "/proc is missing; mount it (mount -t proc proc /proc)"
    try:
        memory_file("probe").close()
    except OSError as error:
        return (
            f"{error}; allow memfd_create in the seccomp profile, or make /dev/shm or TMPDIR a directory "
            "that can be written to"
        )
    return None


def raise_descriptor_limit() -> None:
    """Raise RLIMIT_NOFILE of this process to its hard limit, which is the one that is looked at here."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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


def _most_pids() -> int | None:
    """Return how many processes and threads the control groups allow; None when they set no limit."""
    limits = [line for group in groups("pids") for line in lines(group / "pids.max")]
    return min((int(limit) for limit in limits if limit != "max"), default=None)
