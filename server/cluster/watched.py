"""Watched tasks: no exception ends what must run for as long as its process does."""

import asyncio
from collections.abc import Awaitable, Callable

from server.cluster.backoff import Backoff
from server.logs import get_logger

log = get_logger(__name__)


async def keep_running(part: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do some work until it is done or cancelled; after an exception, log it and start again, with backoff.

    Every long-lived task runs in this. Otherwise the exception of a task that nothing awaits is reported when
    the task is garbage, if ever, and its work is not done from then on.

    Args:
        part: the name of what it does, for the log.
        work: may be called again after it has raised.
    """
    backoff = Backoff()
    clock = asyncio.get_running_loop().time
    while True:
        started_s = clock()
        try:
            await work()
        except Exception:
            log.exception("part_failed", part=part)
            if (current := asyncio.current_task()) and current.cancelling():  # the exception came on top
                raise asyncio.CancelledError from None
        else:
            return
        await asyncio.sleep(backoff.delay_s(clock() - started_s, did_work=False))
