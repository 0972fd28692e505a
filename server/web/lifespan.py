"""The life of a worker: its engine is there before the first request and gone after the last."""

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from server.cluster.scoreboard import Cell, Row, State
from server.cluster.supervisor import Supervisor
from server.cluster.threads import start_threads
from server.logs import get_logger

log = get_logger(__name__)


class Lifespan:
    """Falcon middleware for the ASGI lifespan events.

    Args:
        supervisor: started and stopped with the worker.
        row: the worker's row of the scoreboard.
    """

    def __init__(self, supervisor: Supervisor, row: Row) -> None:
        self._supervisor = supervisor
        self._row = row

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002 ASGI's names
        """Start threads and the engine, then count as online."""
        asyncio.get_running_loop().set_default_executor(start_threads())
        self._row[Cell.PID] = os.getpid()
        await self._supervisor.start()
        self._row[Cell.STATE] = State.ONLINE
        self._row[Cell.WORKER_STARTS] += 1
        log.info("worker_online", pid=os.getpid(), engine_pid=self._row[Cell.ENGINE_PID] or None)

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002 ASGI's names
        """End the engine."""
        self._row[Cell.STATE] = State.STOPPING
        await self._supervisor.stop()
        log.info("worker_offline", pid=os.getpid())
