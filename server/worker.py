"""A worker without a web server: `python -m server.worker` runs the jobs of other machines.

It claims jobs from the store that they share, and has one background engine per usable core. It ends when it
is told to (TERM or INT): it claims no more, gives back what is running, and waits for its engines.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress

from server import logs, place
from server.assembly import assemble_jobs, prepare_blobs
from server.cluster.cpus import usable_cores
from server.cluster.dispatch import Dispatcher
from server.cluster.membership import Membership
from server.cluster.memory_files import MemoryFilePool
from server.cluster.quarantine import Quarantine
from server.cluster.supervisor import OnDemandEngines, Supervisor
from server.cluster.threads import start_threads
from server.engines import engine_config
from server.jobs.blobs import UnsuitableBlobs
from server.jobs.service import Jobs
from server.logs import get_logger
from server.settings import InvalidSettings, Settings

log = get_logger(__name__)


def main() -> None:
    """Run jobs until told to stop; exits with a line on standard error when settings or limits do not fit."""
    logs.open_standard_streams()
    try:
        settings = Settings.from_environ(os.environ)
    except InvalidSettings as error:
        sys.exit("\n".join(f"flipcluster: {line}" for line in str(error).splitlines()))
    logs.configure(settings.log_format)
    if settings.jobs != "remote" or settings.queue_url is None:
        sys.exit("flipcluster: FLIP_JOBS: a worker without a web server needs `remote`, and FLIP_QUEUE_URL")
    if not settings.jobs_at_once:
        sys.exit("flipcluster: FLIP_JOBS_AT_ONCE: a worker without a web server needs 1 or more")
    cores = usable_cores()
    if reason := place.why_no_job_worker_here(settings, cores):
        sys.exit(f"flipcluster: {reason}")
    place.raise_descriptor_limit()
    asyncio.run(_run(settings, settings.queue_url.get_secret_value(), cores))


async def _run(settings: Settings, url: str, cores: int) -> None:
    try:
        threads = start_threads()
    except RuntimeError as error:
        sys.exit(
            f"flipcluster: {error}; raise RLIMIT_NPROC (LimitNPROC) or pids.max (--pids-limit, TasksMax)"
        )
    asyncio.get_running_loop().set_default_executor(threads)
    try:
        await prepare_blobs(settings)
        jobs, engines = _create(settings, url, cores, os.environ)
    except UnsuitableBlobs as error:
        sys.exit(f"flipcluster: {error}")
    running = asyncio.create_task(jobs.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    log.info("job_worker_online", pid=os.getpid(), engines=cores)
    with suppress(asyncio.CancelledError):
        await running
    await engines.stop()
    await jobs.close()
    log.info("job_worker_offline", pid=os.getpid())


def _create(
    settings: Settings, url: str, cores: int, environ: Mapping[str, str]
) -> tuple[Jobs, OnDemandEngines]:
    """Put the worker together: one consumer, and one engine for each core."""
    quarantine = Quarantine(settings.quarantine_s, settings.quarantine_dir, settings.quarantine_max_bytes)
    membership = Membership.alone(quarantine)
    config = engine_config(settings, is_background=True)
    # Each reports in a row of its own.
    rows = [membership.scoreboard.claim() for _ in range(cores)]
    engines = OnDemandEngines([Supervisor(membership.work, row, config, environ) for row in rows])
    dispatcher = Dispatcher(membership, MemoryFilePool(), sample=settings.sample_image)
    return assemble_jobs(settings, url, dispatcher, engines, cores=cores).service, engines


if __name__ == "__main__":
    main()
