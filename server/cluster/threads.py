"""Threads for calls that block: started with the process, and waited for when they use a caller's files."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: How many threads the event loop has: as many as asyncio would start by and by on two cores.
_THREADS = 6


def start_threads() -> ThreadPoolExecutor:
    """Start all threads for calls that block, to be the event loop's (`set_default_executor`).

    By itself it starts one when a call finds the others busy. Where no more can be started (the limit on pids
    of a container) such a call raises, and is made all the same when a thread gets free: its caller has
    closed its files by then.

    Raises:
        RuntimeError: so many cannot be started.
    """
    threads = ThreadPoolExecutor(_THREADS)
    all_run = Barrier(_THREADS)  # none is idle before, so that each call starts one
    try:
        for _ in range(_THREADS):
            threads.submit(all_run.wait)
    except RuntimeError:
        all_run.abort()
        threads.shutdown(wait=False, cancel_futures=True)
        raise
    return threads


async def run_in_thread(call: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run a blocking call in a thread; when cancelled, wait for its end before raising.

    A thread cannot be cancelled. With `asyncio.to_thread` it would go on after its caller has closed a file,
    and might find another file under the same descriptor.
    """
    running = asyncio.get_running_loop().run_in_executor(None, call, *args)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):  # each further one
                await asyncio.wait([running])
        raise
