"""The composition root of a web worker: creates its objects and connects them; `assembly` those for jobs."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import falcon.asgi

from server import logs
from server.admission import Admission
from server.cluster.dispatch import Dispatcher
from server.cluster.membership import Membership
from server.cluster.memory_files import MemoryFilePool
from server.cluster.quarantine import Quarantine
from server.cluster.supervisor import OnDemandEngines, Supervisor
from server.engines import engine_config
from server.operations.images import OPERATIONS
from server.settings import Settings
from server.shares import Shares
from server.web import openapi, probes
from server.web.envelope import App, Envelope
from server.web.lifespan import Lifespan
from server.web.problems import add_error_handlers
from server.web.transforms import Transform
from server.web.uploads import Uploads

if TYPE_CHECKING:
    from server.jobs.service import Jobs


class Service(NamedTuple):
    """What a worker runs.

    Attributes:
        app: answers requests.
        jobs: runs next to it; None when there are no jobs.
        background: the worker's background engines, to be stopped when no request is left.
    """

    app: App
    jobs: "Jobs | None"
    background: OnDemandEngines


def create_service(
    settings: Settings, membership: Membership, environ: Mapping[str, str], shares: Shares | None = None
) -> Service:
    """Put the service of one worker together.

    Args:
        settings: all limits.
        membership: what the worker shares with the cluster.
        environ: the environment its engines are started with.
        shares: how much one client may hold; None when clients are not told apart.
    """
    row = membership.row
    config = engine_config(settings, is_background=False)
    supervisor = Supervisor(membership.work, row, config, environ)
    background = OnDemandEngines(
        [Supervisor(membership.work, row, engine_config(settings, is_background=True), environ)]
    )
    memory_files = MemoryFilePool()
    dispatcher = Dispatcher(
        membership,
        memory_files,
        sample=settings.sample_image,
        background=background,
        timeout_s=settings.engine_timeout_s,
    )
    admission = Admission(
        membership.scoreboard,
        row,
        max_wait_s=settings.max_wait_s,
        max_held_bytes=settings.max_bytes_in_flight,
        shares=shares,
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
    jobs, submissions, store = None, None, None
    if (url := settings.store_url) is not None:
        from server.assembly import assemble_jobs  # noqa: PLC0415 see there
        from server.web.job_routes import add_job_routes  # noqa: PLC0415 see there

        parts = assemble_jobs(settings, url, dispatcher, background, cores=1)
        jobs, store = parts.service, parts.store
        submissions = add_job_routes(app, settings, parts)
    for name, operation in OPERATIONS.items():
        transform = Transform(
            operation, admission, uploads, dispatcher, memory_files, submissions, config.limits
        )
        app.add_route(f"/{name}", transform)
    queue_reader = probes.QueueReader(store, settings.queue_names)
    app.add_route("/", probes.Front())
    app.add_route("/healthz", probes.Healthz())
    app.add_route("/readyz", probes.Readyz(membership.scoreboard, row, supervisor))
    app.add_route("/status", probes.Status(membership.scoreboard, queue_reader))
    app.add_route("/metrics", probes.Metrics(membership.scoreboard, queue_reader))
    document = openapi.document(OPERATIONS.values(), settings.queues if store else ())
    app.add_route("/openapi.json", probes.OpenApi(document))
    return Service(Envelope(app, row), jobs, background)


def get_app() -> App:
    """Build the app from the environment, for a server other than our gunicorn: `uvicorn --factory`.

    Raises:
        InvalidSettings: a `FLIP_` variable is wrong.
    """
    logs.open_standard_streams()
    settings = Settings.from_environ(os.environ)
    logs.configure(settings.log_format)
    quarantine = Quarantine(settings.quarantine_s, settings.quarantine_dir, settings.quarantine_max_bytes)
    return create_service(settings, Membership.alone(quarantine), os.environ).app
