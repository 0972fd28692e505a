"""The hub: tells watchers when something has happened to a job or a batch."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from server.cluster.watched import keep_running
from server.errors import StoreAway
from server.jobs.model import Job, JobId
from server.jobs.store import Hints, Store

#: How long a reader sleeps between two looks at a log, at least and, as hints may be lost, at most (seconds).
_SHORTEST_S = 0.1
_LONGEST_S = 2.0

#: After how long a watcher is told that nothing has happened, in seconds: proxies close silent connections.
_KEEP_ALIVE_S = 15.0

Line = Mapping[str, Any]


class _Log:
    """The log of a group, as far as it was read, for all its watchers."""

    def __init__(self) -> None:
        self.watchers = 0
        self.lines: list[Line] = []
        self.hinted = asyncio.Event()
        self.changed = asyncio.Event()  # replaced each time it is set
        self.reader: asyncio.Task[None]

    def tell(self) -> None:
        """Wake all watchers."""
        self.changed.set()
        self.changed = asyncio.Event()


class Hub:
    """Reads each watched log once for all its watchers, when the store hints that it has grown.

    Args:
        store: where the logs are.
        on_cancel: told the id of each job of this owner that is to be cancelled.
    """

    def __init__(self, store: Store, on_cancel: Callable[[str], None]) -> None:
        self._store = store
        self._on_cancel = on_cancel
        self._logs: dict[str, _Log] = {}
        self._hints: Hints | None = None
        self.is_closed = False

    async def run(self) -> None:
        """Listen for hints until cancelled; what is missed while the store is away is read later."""
        while True:
            async with self._store.hints(self._logs) as hints:
                self._hints = hints
                try:
                    async for kind, subject in hints:
                        if kind == "cancel":
                            self._on_cancel(subject)
                        elif subject in self._logs:
                            self._logs[subject].hinted.set()
                finally:
                    self._hints = None  # the last watchers may leave after it, and would connect again
            await self._store.wait_until_back()

    def close(self) -> None:
        """End all streams and waits: this worker drains, and their clients will come to another one."""
        self.is_closed = True
        for log in self._logs.values():
            log.tell()

    async def follow(self, group: str, start: int) -> AsyncIterator[tuple[int, Line] | None]:
        """Follow the log of a group until the group has ended.

        Args:
            group: which one.
            start: how many lines the caller has seen.

        Yields:
            How many lines there are up to this one, and the line; None now and then, when there was none.
        """
        async with self._watched(group) as log:
            while not self.is_closed:
                changed = log.changed
                while start < len(log.lines):
                    start += 1
                    yield start, log.lines[start - 1]
                if log.lines and "ended" in log.lines[-1]:
                    return
                if changed is log.changed and not await _is_set(changed, _KEEP_ALIVE_S):
                    yield None

    async def follow_job(self, id: JobId) -> AsyncIterator[Job | None]:
        """Follow a job until it has ended: it is returned at once and after each change.

        While the store is away, nothing has happened, as for `follow`.

        Raises:
            NoSuchJob, Expired: as their names say.
        """
        seen: Job | None = None
        silent_s = 0.0
        async with self._watched(id.group) as log:
            while not self.is_closed:
                changed = log.changed
                with suppress(StoreAway):
                    job = await self._store.job(id)
                    if job != seen:
                        seen, silent_s = job, 0.0
                        yield job
                    if job.state.is_final:
                        return
                if not await _is_set(changed, _LONGEST_S / 2):  # progress has no line in the log
                    silent_s += _LONGEST_S / 2
                if silent_s >= _KEEP_ALIVE_S:
                    silent_s = 0.0
                    yield None

    async def wait_for_end(self, id: JobId, timeout_s: float) -> None:
        """Wait until a job has ended, but no longer than that."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                async for _ in self.follow_job(id):
                    pass

    @asynccontextmanager
    async def _watched(self, group: str) -> AsyncIterator[_Log]:
        log = self._logs.get(group)
        if log is None:
            log = self._logs[group] = _Log()
            log.reader = asyncio.create_task(keep_running("log_reader", partial(self._read, group, log)))
        log.watchers += 1
        try:
            yield log
        finally:
            log.watchers -= 1
            if not log.watchers:
                del self._logs[group]
                log.reader.cancel()
                if self._hints is not None:
                    await self._hints.unwatch(group)

    async def _read(self, group: str, log: _Log) -> None:
        if self._hints is not None:
            await self._hints.watch(group)
        while True:
            log.hinted.clear()
            with suppress(StoreAway):
                if lines := await self._store.log(group, len(log.lines)):
                    log.lines.extend(lines)
                    log.tell()
            await asyncio.sleep(_SHORTEST_S)
            await _is_set(log.hinted, _LONGEST_S)


async def _is_set(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for an event, and say whether it came."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    return False
