"""The part of a worker that has to do with jobs, while the worker serves."""

import asyncio

from server.cluster.watched import keep_running
from server.jobs.consumer import Consumer
from server.jobs.hub import Hub
from server.jobs.janitor import Janitor
from server.jobs.store import Store


class Jobs:
    """What runs next to the requests of a worker: it claims jobs, listens for news, and keeps house.

    Args:
        store: closed last, by `close`.
        consumer, hub, janitor: run until they are cancelled.
    """

    def __init__(self, store: Store, consumer: Consumer, hub: Hub, janitor: Janitor) -> None:
        self._store = store
        self._consumer = consumer
        self._hub = hub
        self._janitor = janitor

    async def run(self) -> None:
        """Run until cancelled; jobs that are running then are given back."""
        parts = {"hub": self._hub.run, "consumer": self._consumer.run, "janitor": self._janitor.run}
        async with asyncio.TaskGroup() as group:
            for name, run in parts.items():
                group.create_task(keep_running(name, run))

    async def close(self) -> None:
        """Close the store, once the requests that use it have been answered."""
        await self._store.__aexit__()

    def close_streams(self) -> None:
        """End what clients wait for: they will come to another worker."""
        self._hub.close()
