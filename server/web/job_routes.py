"""The routes of a service with jobs; one without imports none of this."""

import falcon.asgi
from falcon.asgi import Request, Response

from server.assembly import JobParts
from server.jobs.blobs import Spool
from server.jobs.intake import Limits
from server.operations.images import OPERATIONS
from server.settings import Settings
from server.web import batches, events, jobs, queues
from server.web.operators import Operators
from server.web.submissions import OptionReader, Submissions
from server.web.uploads import Uploads


def add_job_routes(
    app: falcon.asgi.App[Request, Response], settings: Settings, parts: JobParts
) -> Submissions:
    """Add them to an app.

    Returns:
        What takes work for later, for the routes of the operations.
    """
    store, blobs, hub = parts.store, parts.blobs, parts.hub
    uploads = Uploads(
        max_body_bytes=settings.max_body_bytes,
        timeout_s=settings.upload_timeout_s,
        sample=settings.sample_image,
        files=Spool(blobs),
    )
    options = OptionReader(settings.queues, settings.job_attempts, parts.callbacks)
    token = settings.admin_token
    operators = Operators(None if token is None else token.get_secret_value())
    queue = queues.QueueResource(store, settings.queue_names, operators)
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
    app.add_route("/batches/{id}/archive", batches.ArchiveResource(store, blobs, OPERATIONS))
    app.add_route("/batches/{id}/events", events.BatchEvents(store, hub))
    app.add_route("/queues", queues.QueuesResource(store, settings.queue_names, operators))
    for verb in ("pause", "resume", "failed"):
        app.add_route(f"/queues/{{name}}/{verb}", queue, suffix=verb)
    return Submissions(store, blobs, uploads, options)
