"""Queues: what waits in them, and the operator's verbs."""

from collections.abc import Sequence

from falcon.asgi import Request, Response

from server.errors import NoSuchQueue
from server.jobs.store import Store
from server.web.jobs import describe
from server.web.operators import Operators
from server.web.parameters import read_start
from server.web.probes import describe_queue

#: How many failed jobs are listed at once.
_PAGE = 100


class QueuesResource:
    """`GET /queues`: all queues."""

    def __init__(self, store: Store, names: Sequence[str], operators: Operators) -> None:
        self._store = store
        self._names = names
        self._operators = operators

    async def on_get(self, req: Request, resp: Response) -> None:
        """Answer with the number of jobs in each state."""
        self._operators.check(req)
        resp.set_header("Cache-Control", "no-store")
        resp.media = {"queues": [describe_queue(queue) for queue in await self._store.queues(self._names)]}

    on_head = on_get


class QueueResource:
    """`/queues/{name}/…`: the operator's verbs for one queue."""

    def __init__(self, store: Store, names: Sequence[str], operators: Operators) -> None:
        self._store = store
        self._names = names
        self._operators = operators

    async def on_post_pause(self, req: Request, resp: Response, name: str) -> None:
        """Let none of its jobs start; those that run go on."""
        self._check(req, name)
        await self._store.pause(name)
        await self._answer(resp, name)

    async def on_post_resume(self, req: Request, resp: Response, name: str) -> None:
        """Let its jobs start again."""
        self._check(req, name)
        await self._store.resume(name)
        await self._answer(resp, name)

    async def on_get_failed(self, req: Request, resp: Response, name: str) -> None:
        """Answer with its failed jobs, the newest first; `?start=100` for those after the first hundred."""
        self._check(req, name)
        jobs = await self._store.failed(name, read_start(req.query_string), _PAGE)
        resp.set_header("Cache-Control", "no-store")
        resp.media = {"queue": name, "jobs": [describe(job) for job in jobs]}

    on_head_failed = on_get_failed

    def _check(self, req: Request, name: str) -> None:
        self._operators.check(req)
        if name not in self._names:
            raise NoSuchQueue(f"There is no such queue. There are {', '.join(self._names)}.")

    async def _answer(self, resp: Response, name: str) -> None:
        (queue,) = await self._store.queues([name])
        resp.media = describe_queue(queue)
