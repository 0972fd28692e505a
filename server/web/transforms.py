"""The routes of the operations: an image comes in, the turned image comes out."""

import os
from collections.abc import Mapping
from functools import partial

from falcon.asgi import Request, Response

from server.admission import Admission
from server.cluster.dispatch import Dispatcher, TooLate
from server.cluster.memory_files import MemoryFilePool, reader
from server.cluster.messages import Spent
from server.operations.registry import Operation
from server.web.downloads import pieces
from server.web.exchange import Exchange
from server.web.parameters import Query
from server.web.preferences import Preferences
from server.web.submissions import OPTIONS, Submissions
from server.web.uploads import Uploads


class Transform:
    """`POST` of an image to one operation.

    Args:
        operation: what is done.
        admission: asked before the body is read.
        uploads: takes the image out of the request.
        dispatcher: sends it to an engine.
        memory_files: where the file with the result goes when it has been sent.
        submissions: takes it for later, when the client prefers that; None when there are no jobs.
        limits: of the engines.
    """

    def __init__(  # noqa: PLR0913, PLR0917 one for each collaborator
        self,
        operation: Operation,
        admission: Admission,
        uploads: Uploads,
        dispatcher: Dispatcher,
        memory_files: MemoryFilePool,
        submissions: Submissions | None,
        limits: Mapping[str, int],
    ) -> None:
        self._operation = operation
        self._query = Query(operation.parameters, () if submissions is None else OPTIONS)
        self._admission = admission
        self._uploads = uploads
        self._dispatcher = dispatcher
        self._memory_files = memory_files
        self._limits = limits
        self._submissions = submissions

    async def on_post(self, req: Request, resp: Response) -> None:
        """Answer with the result of the operation, or at once with the address of a job."""
        if self._submissions is not None and Preferences.of(req).is_async:
            await self._submissions.submit(req, resp, self._operation, self._query)
            return
        parameters = self._query.read(req.query_string)
        exchange = Exchange.of(req.scope)
        estimate = partial(self._operation.cost, parameters=parameters, limits=self._limits)
        admitted = self._admission.admit(self._uploads.length_of(req), estimate, exchange.client or "")
        ticket = exchange.ticket = exchange.resources.enter_context(admitted)
        try:
            async with self._uploads.received(req, exchange, ticket) as upload:
                source_bytes = os.fstat(upload.fileno()).st_size
                ticket.look(reader(upload, source_bytes), source_bytes)
                await ticket.reserve()
                done, result, role = await self._dispatcher.run(
                    upload,
                    self._operation,
                    parameters,
                    ticket.deadline_us,
                    account=ticket.account,
                    lane=ticket.queue(),
                )
        except BaseException as error:
            # Before a byte of the answer is written: another worker may get the client's next request first.
            ticket.give_back()
            if isinstance(error, TooLate):
                raise ticket.refusal() from error
            raise
        exchange.resources.callback(self._memory_files.give_back, result)
        size = os.fstat(result.fileno()).st_size
        ticket.deliver(size, done.spent.service_us, role)
        resp.content_type = done.outcome["media_type"]
        resp.content_length = size
        resp.set_header("X-Engine-PID", str(done.engine_pid))
        resp.set_header("Server-Timing", _server_timing(done.spent))
        resp.stream = pieces(result, 0, size)
        exchange.engine_pid = done.engine_pid
        headers = self._operation.outcome.headers
        reported = {name: str(done.outcome[field]) for name, field in headers.items()}
        resp.set_headers(reported)
        exchange.image_path = reported.get("X-Image-Path")


def _server_timing(spent: Spent) -> str:
    """Write where the time went, in milliseconds (W3C Server Timing, section 3)."""
    parts_us = {"queue": spent.queue_us, **spent.stages_us}
    return ", ".join([f"{part};dur={us / 1e3:.1f}" for part, us in parts_us.items()])
