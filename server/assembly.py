"""Assembly: what has to do with jobs in one process, made from the settings.

A worker without jobs imports none of it: the clients of the store and of callbacks take 10 MB.
"""

from typing import TYPE_CHECKING, NamedTuple

from server.cluster.dispatch import Dispatcher
from server.cluster.supervisor import OnDemandEngines
from server.jobs import owners
from server.jobs.blobs import NO_OBSTORE, Blobs, Directory, UnsuitableBlobs
from server.jobs.consumer import Consumer
from server.jobs.hub import Hub
from server.jobs.janitor import Janitor
from server.jobs.service import Jobs
from server.jobs.store import Store
from server.operations.images import OPERATIONS
from server.settings import Settings

if TYPE_CHECKING:
    from server.jobs.callbacks import Callbacks
    from server.jobs.s3 import S3


class JobParts(NamedTuple):
    """What has to do with jobs in one process.

    Attributes:
        callbacks: None when there are none.
        service: runs; it uses all of the others.
    """

    store: Store
    blobs: Blobs
    hub: Hub
    callbacks: "Callbacks | None"
    service: Jobs


def assemble_jobs(
    settings: Settings, url: str, dispatcher: Dispatcher, engines: OnDemandEngines, *, cores: int
) -> JobParts:
    """Put together what claims jobs and keeps house in one process.

    Args:
        settings: all limits.
        url: of the store.
        dispatcher: sends the jobs to the engines of the machine.
        engines: the background engines that this process adds to them; the caller stops them.
        cores: how many these are.
    """
    store = Store(
        url,
        owner=owners.own_name(),
        grace_s=settings.store_grace_s,
        ttl_s=settings.result_ttl_s,
        lease_s=settings.lease_s,
        max_jobs=settings.max_queued_jobs,
        max_bytes=settings.max_queued_bytes,
    )
    blobs = open_blobs(settings)
    callbacks = None
    if settings.callback_hosts and settings.callback_secret:
        from server.jobs.callbacks import Callbacks  # noqa: PLC0415 its client takes 3 MB

        callbacks = Callbacks(settings.callback_hosts, settings.callback_secret.get_secret_value())
    consumer = Consumer(
        store,
        blobs,
        dispatcher,
        engines,
        OPERATIONS,
        at_once=settings.jobs_at_once * cores,
        lease_s=settings.lease_s,
        callbacks=callbacks,
    )
    hub = Hub(store, consumer.stop_job)
    service = Jobs(store, consumer, hub, Janitor(store, blobs))
    return JobParts(store, blobs, hub, callbacks, service)


def open_blobs(settings: Settings) -> Blobs:
    """Open the place where the files of jobs are.

    Raises:
        UnsuitableBlobs: the extra for it is not installed, or its settings make no sense.
    """
    return Directory(settings.blob_dir) if settings.blob_url is None else _s3(settings.blob_url)


async def prepare_blobs(settings: Settings) -> None:
    """Make the place for the files of jobs if it is a directory, and see that they can be kept there.

    Raises:
        UnsuitableBlobs: they cannot.
    """
    if settings.blob_url is None:
        Directory(settings.blob_dir).prepare()
    else:
        await _s3(settings.blob_url).check()


def _s3(url: str) -> "S3":
    try:
        from server.jobs.s3 import S3  # noqa: PLC0415 it needs an extra
    except ImportError:
        raise UnsuitableBlobs(NO_OBSTORE) from None
    return S3(url)
