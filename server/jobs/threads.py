"""Threads for calls that block, waited for to their end: they use files that their caller closes."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


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
