"""A call in a thread is waited for, whatever happens to its caller meanwhile."""

import asyncio
import threading

import pytest
from support.asgi import DEADLINE_S, run

from server.jobs.threads import run_in_thread


def test_a_call_runs_in_another_thread_and_returns_its_result() -> None:
    async def test() -> None:
        assert await run_in_thread(threading.get_ident) != threading.get_ident()
        assert await run_in_thread(divmod, 7, 3) == (2, 1)

    run(test())


def test_an_exception_reaches_the_caller() -> None:
    async def test() -> None:
        with pytest.raises(ZeroDivisionError):
            await run_in_thread(divmod, 1, 0)

    run(test())


@pytest.mark.parametrize("divisor", [1, 0])
def test_a_caller_that_is_cancelled_even_twice_goes_on_only_after_the_call_has_ended(divisor: int) -> None:
    started, may_end = threading.Event(), threading.Event()
    ended = False

    def call() -> None:
        nonlocal ended
        started.set()
        assert may_end.wait(DEADLINE_S)
        ended = True
        divmod(1, divisor)

    async def test() -> None:
        caller = asyncio.create_task(run_in_thread(call))
        assert await asyncio.to_thread(started.wait, DEADLINE_S)
        for _ in range(2):
            caller.cancel()
            await asyncio.wait([caller], timeout=0)
        assert not caller.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert ended

    run(test())
