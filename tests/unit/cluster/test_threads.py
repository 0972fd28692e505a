"""A call in a thread is waited for, whatever happens to its caller meanwhile."""

import asyncio
import threading

import pytest
from support.asgi import DEADLINE_S, run
from support.threads import no_thread

from server.cluster.threads import run_in_thread, start_threads


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


def test_threads_that_are_started_with_the_process_are_enough() -> None:
    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(start_threads())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            calls = (run_in_thread(divmod, 7, 3) for _ in range(50))
            assert await asyncio.gather(*calls) == [(2, 1)] * 50

    run(test())


@pytest.mark.parametrize("most", [0, 3])
def test_a_process_that_cannot_start_its_threads_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def start_some(thread: threading.Thread) -> None:
        if len(started) == most:
            no_thread(thread)
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    with pytest.raises(RuntimeError, match="new thread"):
        start_threads()
    for thread in started:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
