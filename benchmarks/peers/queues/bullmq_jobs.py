"""BullMQ for Python, on Redis: an asyncio worker that holds a lock for each job.

Durable, locks last 5 seconds instead of 30 and are checked as often, a job may stall more than once, and what
is completed is removed. Then the client also waits for an answer as long as it takes: an idle worker blocks
for longer than redis-py's own timeout of 5 seconds, and after each timeout it backs off for longer.
"""

import asyncio

from bullmq import Queue, Worker

from benchmarks.peers.queues import work

_LOCK_MS = 5000
_TRIES = 3


def _connection(address: str) -> dict[str, object]:
    connection: dict[str, object] = {"unix_socket_path": address}
    return connection | {"socket_timeout": None} if work.is_durable() else connection


def _work(address: str) -> None:
    async def process(job, _token) -> None:  # noqa: ANN001 mypy does not see this environment
        work.run(job.data["job"])

    async def serve() -> None:
        options: dict[str, object] = {"connection": _connection(address)}
        if work.is_durable():
            options |= {"lockDuration": _LOCK_MS, "stalledInterval": _LOCK_MS, "maxStalledCount": _TRIES}
        Worker("queues", process, options)
        await asyncio.Event().wait()

    asyncio.run(serve())


def _connect(address: str):  # noqa: ANN202 mypy does not see this environment
    loop = asyncio.new_event_loop()
    options = {"removeOnComplete": True} if work.is_durable() else {}

    async def open_queue() -> Queue:
        return Queue("queues", {"connection": _connection(address)})

    queue = loop.run_until_complete(open_queue())

    def submit(job: str) -> None:
        loop.run_until_complete(queue.add("job", {"job": job}, options))

    return submit


if __name__ == "__main__":
    work.main(_work, _connect)
