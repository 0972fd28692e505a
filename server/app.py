"""The composition root of one worker: the only place where its objects meet."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import falcon.asgi
from falcon.asgi import Request, Response

from server import logs
from server.admission import Admission
from server.cluster.dispatch import Dispatcher
from server.cluster.engine import EngineConfig
from server.cluster.membership import Membership
from server.cluster.memory_files import MemoryFilePool
from server.cluster.quarantine import Quarantine
from server.cluster.supervisor import OnDemandEngine, Supervisor
from server.jobs import owners
from server.jobs.blobs import Directory, Spool
from server.jobs.callbacks import Callbacks
from server.jobs.consumer import Consumer
from server.jobs.hub import Hub
from server.jobs.intake import Limits
from server.jobs.janitor import Janitor
from server.jobs.service import Jobs
from server.jobs.store import Store
from server.operations.images import OPERATIONS
from server.settings import CALLBACKS, Settings
from server.web import batches, events, jobs, openapi, probes, queues
from server.web.envelope import App, Envelope
from server.web.lifespan import Lifespan
from server.web.operators import Operators
from server.web.problems import add_error_handlers
from server.web.submissions import OptionReader, Submissions
from server.web.transforms import Transform
from server.web.uploads import Uploads


class Service(NamedTuple):
    """What a worker runs.

    Attributes:
        app: answers requests.
        jobs: runs next to it; None when there are no jobs.
    """

    app: App
    jobs: Jobs | None


def create_service(settings: Settings, membership: Membership, environ: Mapping[str, str]) -> Service:
    """Put the service of one worker together.

    Args:
        settings: all limits.
        membership: what the worker shares with the cluster.
        environ: the environment its engines are started with.
    """
    row = membership.row
    config = EngineConfig(
        operations={name: operation.spec for name, operation in OPERATIONS.items()},
        limits={
            "max_pixels": settings.max_pixels,
            "max_frames": settings.max_frames,
            "max_total_pixels": settings.max_total_pixels,
        },
        nice=settings.engine_nice,
        timeout_s=settings.engine_timeout_s,
        memory_bytes=settings.engine_memory_bytes,
        max_tasks=settings.engine_max_tasks,
    )
    supervisor = Supervisor(membership.work, row, config, environ)
    memory_files = MemoryFilePool()
    dispatcher = Dispatcher(membership, memory_files, max_wait_s=settings.max_wait_s)
    admission = Admission(
        membership.scoreboard,
        row,
        max_wait_s=settings.max_wait_s,
        max_held_bytes=settings.max_bytes_in_flight,
    )
    uploads = Uploads(
        max_body_bytes=settings.max_body_bytes,
        timeout_s=settings.upload_timeout_s,
        sample=settings.sample_image,
        files=memory_files,
    )
    app = falcon.asgi.App()
    app.add_middleware(Lifespan(supervisor, row))
    add_error_handlers(app)
    jobs, submissions = None, None
    if (url := settings.store_url) is not None:
        engine = OnDemandEngine(
            Supervisor(membership.work, row, replace(config, is_background=True), environ)
        )
        jobs, submissions = _add_jobs(app, settings, url, dispatcher, engine)
    for name, operation in OPERATIONS.items():
        transform = Transform(operation, admission, uploads, dispatcher, memory_files, submissions)
        app.add_route(f"/{name}", transform)
    app.add_route("/", probes.Front())
    app.add_route("/healthz", probes.Healthz())
    app.add_route("/readyz", probes.Readyz(membership.scoreboard, row))
    app.add_route("/status", probes.Status(membership.scoreboard))
    app.add_route("/metrics", probes.Metrics(membership.scoreboard))
    app.add_route("/openapi.json", probes.OpenApi(openapi.document(OPERATIONS.values())))
    return Service(Envelope(app, row), jobs)


def _add_jobs(
    app: falcon.asgi.App[Request, Response],
    settings: Settings,
    url: str,
    dispatcher: Dispatcher,
    engine: OnDemandEngine,
) -> tuple[Jobs, Submissions]:
    """Add all that has to do with jobs to an app."""
    store = Store(
        url,
        owner=owners.own_name(),
        grace_s=settings.store_grace_s,
        ttl_s=settings.result_ttl_s,
        lease_s=settings.lease_s,
        max_jobs=settings.max_queued_jobs,
        max_bytes=settings.max_queued_bytes,
    )
    blobs = Directory(settings.data_dir / "blobs")
    callbacks, queue_names = None, settings.queues
    if settings.callback_hosts and settings.callback_secret:
        callbacks = Callbacks(settings.callback_hosts, settings.callback_secret.get_secret_value())
        queue_names = (*queue_names, CALLBACKS)
    consumer = Consumer(
        store,
        blobs,
        dispatcher,
        engine,
        OPERATIONS,
        at_once=settings.jobs_at_once,
        lease_s=settings.lease_s,
        callbacks=callbacks,
    )
    hub = Hub(store, consumer.stop_job)
    uploads = Uploads(
        max_body_bytes=settings.max_body_bytes,
        timeout_s=settings.upload_timeout_s,
        sample=settings.sample_image,
        files=Spool(blobs),
    )
    options = OptionReader(settings.queues, settings.job_attempts, callbacks)
    token = settings.admin_token
    operators = Operators(None if token is None else token.get_secret_value())
    queue = queues.QueueResource(store, queue_names, operators)
    batch = batches.BatchResource(store)
    app.add_route("/jobs/{id}", jobs.JobResource(store, hub))
    app.add_route("/jobs/{id}/result", jobs.ResultResource(store, blobs))
    app.add_route("/jobs/{id}/events", events.JobEvents(store, hub))
    app.add_route("/jobs/{id}/retry", jobs.RetryResource(store, operators))
    limits = Limits(
        items=settings.max_batch_items,
        bytes=settings.max_batch_bytes,
        item_bytes=settings.max_body_bytes,
        ratio=settings.max_batch_ratio,
    )
    app.add_route("/batches", batches.BatchesResource(store, blobs, options, OPERATIONS, limits))
    app.add_route("/batches/{id}", batch)
    app.add_route("/batches/{id}/items", batch, suffix="items")
    app.add_route("/batches/{id}/archive", batches.ArchiveResource(store, blobs))
    app.add_route("/batches/{id}/events", events.BatchEvents(store, hub))
    app.add_route("/queues", queues.QueuesResource(store, queue_names))
    for verb in ("pause", "resume", "failed"):
        app.add_route(f"/queues/{{name}}/{verb}", queue, suffix=verb)
    service = Jobs(store, engine, consumer, hub, Janitor(store, blobs))
    return service, Submissions(store, blobs, uploads, options)


def get_app() -> App:
    """Build the app from the environment, for a server other than our gunicorn: `uvicorn --factory`.

    Raises:
        InvalidSettings: a `FLIP_` variable is wrong.
    """
    settings = Settings.from_environ(os.environ)
    logs.configure(settings.log_format)
    quarantine = Quarantine(settings.quarantine_s, settings.quarantine_dir)
    return create_service(settings, Membership.alone(quarantine), os.environ).app
