"""Watched tasks: no exception ends what must run for as long as its process does."""

import asyncio
from collections.abc import Awaitable, Callable

from server.cluster.backoff import Backoff
from server.logs import get_logger

log = get_logger(__name__)


async def keep_running(part: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do some work until it is done or this is cancelled; log an exception and start again, with backoff.

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
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            is_cancelled = task is not None and task.cancelling() > 0
            # Else it came from something that the work waited for, and would end it without a word.
            if not (is_cancelled and isinstance(error, asyncio.CancelledError)):
                log.exception("part_failed", part=part)
            if is_cancelled:  # the exception came on top
                raise asyncio.CancelledError from None
        else:
            return
        await asyncio.sleep(backoff.delay_s(clock() - started_s, did_work=False))
