"""The composition root of one worker: the only place where its objects meet."""

import os
from collections.abc import Mapping

import falcon.asgi

from server import logs
from server.admission import Admission
from server.cluster.dispatch import Dispatcher
from server.cluster.engine import EngineConfig
from server.cluster.membership import Membership
from server.cluster.memory_files import MemoryFilePool
from server.cluster.quarantine import Quarantine
from server.cluster.supervisor import Supervisor
from server.operations.images import OPERATIONS
from server.settings import Settings
from server.web import openapi, probes
from server.web.envelope import App, Envelope
from server.web.lifespan import Lifespan
from server.web.problems import add_error_handlers
from server.web.transforms import Transform
from server.web.uploads import Uploads


def create_app(settings: Settings, membership: Membership, environ: Mapping[str, str]) -> App:
    """Put the service of one worker together.

    Args:
        settings: all limits.
        membership: what the worker shares with the cluster.
        environ: the environment its engine is started with.
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
        memory_files=memory_files,
    )
    app = falcon.asgi.App()
    app.add_middleware(Lifespan(supervisor, row))
    add_error_handlers(app)
    for name, operation in OPERATIONS.items():
        transform = Transform(operation, admission, uploads, dispatcher, memory_files)
        app.add_route(f"/{name}", transform)
    app.add_route("/", probes.Front())
    app.add_route("/healthz", probes.Healthz())
    app.add_route("/readyz", probes.Readyz(membership.scoreboard, row))
    app.add_route("/status", probes.Status(membership.scoreboard))
    app.add_route("/metrics", probes.Metrics(membership.scoreboard))
    app.add_route("/openapi.json", probes.OpenApi(openapi.document(OPERATIONS.values())))
    return Envelope(app, row)


def get_app() -> App:
    """Build the app from the environment, for a server other than our gunicorn: `uvicorn --factory`.

    Raises:
        InvalidSettings: a `FLIP_` variable is wrong.
    """
    settings = Settings.from_environ(os.environ)
    logs.configure(settings.log_format)
    quarantine = Quarantine(settings.quarantine_s, settings.quarantine_dir)
    return create_app(settings, Membership.alone(quarantine), os.environ)
