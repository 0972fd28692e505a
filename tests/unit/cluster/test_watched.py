"""Long-lived tasks outlive their exceptions, and each task of the service is one or need not be."""

import ast
import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from support.asgi import MovableClock, run

from server.cluster.backoff import FIRST_DELAY_S
from server.cluster.watched import keep_running

SERVER = Path(__file__).parents[3] / "server"

#: Tasks of the service that need no watching: where, what they run, and why.
OTHERS = {
    "gateway/worker.py: self._jobs.run()": "only waits for parts that are watched",
    "worker.py: jobs.run()": "the same; the process ends with it",
    "gateway/worker.py: self._finish()": "ends the worker whatever happens, and is awaited",
    "jobs/consumer.py: self._renew()": "in a task group, which is awaited",
    "jobs/consumer.py: self._claim(kinds, at_once)": "in a task group, which is awaited",
    "jobs/consumer.py: self._store.claim(request, kinds, room, self._fences())": "is awaited",
    "jobs/consumer.py: self._try(claim)": "its end is waited for by the next one, which logs its exception",
    "jobs/consumer.py: self._end(claim, task)": "only waits, and frees the place of the job whatever happens",
    "web/batches.py: self._submit_chunk(chunk, after, batch, facts, options, inputs)": (
        "is awaited by its request"
    ),
}

#: Its threads and callbacks: the event loop logs an exception of a callback and goes on.
CALLBACKS = {
    "cluster/threads.py: ThreadPoolExecutor(_THREADS)": "an exception of a call reaches the caller",
    "jobs/callbacks.py: ThreadPoolExecutor(1)": "the same; one that cannot start fails a try of a callback",
    "cluster/child.py: loop.add_reader(descriptor, has_ended.set)": "cannot fail",
    "cluster/supervisor.py: loop.add_reader(control, is_readable.set)": "cannot fail",
    "cluster/denials.py: asyncio.get_running_loop().add_reader(self._listener, self._read)": (
        "kills the engine before it logs"
    ),
    "gateway/worker.py: self.loop.call_soon(self.handle_exit_signal)": (
        "the drain that it starts ends the worker in any case"
    ),
    "gateway/protocol.py: loop.call_at(self._linger.begin(loop.time()), self.transport.close)": (
        "closing twice is allowed"
    ),
    "gateway/protocol.py: loop.call_later(LINGER_UNREAD_S, self.transport.resume_reading)": (
        "resuming what is closed is allowed"
    ),
    "gateway/protocol.py: self.worker.loop.call_later(LINGER_S, self.transport.abort)": (
        "aborting what is closed is allowed"
    ),
    "gateway/protocol.py: self._task.add_done_callback(self._untangle)": "only drops references",
    "web/batches.py: task.add_done_callback(chunk.close)": "only closes files",
    "web/batches.py: later.add_done_callback(self._dropping.discard)": "cannot fail",
    "worker.py: asyncio.get_running_loop().add_signal_handler(number, running.cancel)": "cannot fail",
    "gateway/turns.py: asyncio.get_running_loop().call_later(_PERIOD_S, self._renew)": (
        "goes on after a turn that fails"
    ),
    "gateway/throttle.py: asyncio.get_running_loop().call_later(interval_s, self._release)": "cannot fail",
    "gateway/arbiter.py: os.register_at_fork(before=_block_stops, after_in_parent=_unblock_stops)": (
        "cannot fail"
    ),
    "gateway/protocol.py: self.worker.loop.call_later(_LOOK_AGAIN_S, self._keepalive_timeout)": (
        "as gunicorn's own timer"
    ),
}


def test_it_ends_with_the_work() -> None:
    async def test() -> None:
        calls = 0

        async def work() -> None:
            nonlocal calls
            calls += 1

        await keep_running("work", work)
        assert calls == 1

    run(test())


def test_an_exception_is_logged_and_the_work_starts_again_with_a_growing_delay() -> None:
    starts_s: list[float] = []

    async def test() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, MovableClock)

        async def work() -> None:
            starts_s.append(clock.time())
            if len(starts_s) < 4:
                raise ZeroDivisionError("of ours")

        running = asyncio.create_task(keep_running("work", work))
        await clock.pass_time(0)
        assert len(starts_s) == 2  # the first restart is immediate
        await clock.pass_time(FIRST_DELAY_S)
        assert len(starts_s) == 3
        await clock.pass_time(2 * FIRST_DELAY_S)
        await running

    with capture_logs() as events:
        run(test(), MovableClock)
    assert [(event["event"], event["part"]) for event in events] == [("part_failed", "work")] * 3
    assert starts_s[2] - starts_s[1] > 0.9 * FIRST_DELAY_S
    assert starts_s[3] - starts_s[2] > 1.9 * FIRST_DELAY_S


@pytest.mark.parametrize("is_hidden", [False, True])
def test_a_cancellation_ends_it_even_if_an_exception_comes_on_top(*, is_hidden: bool) -> None:
    async def test() -> None:
        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                if is_hidden:
                    raise ZeroDivisionError("of ours")

        running = asyncio.create_task(keep_running("work", work))
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()

    with capture_logs() as events:
        run(test())
    assert len(events) == is_hidden


def test_a_cancellation_of_what_it_waits_for_is_a_failure_like_any_other() -> None:
    async def test() -> None:
        calls = 0

        async def work() -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                waited_for = asyncio.get_running_loop().create_future()
                waited_for.cancel()
                await waited_for

        await keep_running("work", work)
        assert calls == 2

    with capture_logs() as events:
        run(test())
    assert [event["event"] for event in events] == ["part_failed"]


def test_a_cancellation_ends_it_while_it_waits_to_start_again() -> None:
    async def test() -> None:
        async def work() -> None:
            raise ZeroDivisionError("of ours")

        running = asyncio.create_task(keep_running("work", work))
        for _ in range(5):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()

    with capture_logs():
        run(test())


def calls_in_the_service(names: set[str]) -> Iterator[tuple[str, ast.Call]]:
    """Yield where the source of the service calls functions or classes of these names, with the file."""
    for path in sorted(SERVER.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names:
                yield str(path.relative_to(SERVER)), node


def test_every_task_of_the_service_is_watched_or_has_a_reason_not_to_be() -> None:
    calls = calls_in_the_service({"create_task", "ensure_future"})
    tasks = Counter(f"{file}: {ast.unparse(call.args[0])}" for file, call in calls)
    others = {task: number for task, number in tasks.items() if ": keep_running(" not in task}
    assert others == dict.fromkeys(OTHERS, 1)


def test_every_thread_and_callback_of_the_service_has_a_reason_not_to_be_watched() -> None:
    names = {"Thread", "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor", "register_at_fork"} | {
        *("call_soon", "call_soon_threadsafe", "call_later", "call_at", "add_done_callback"),
        *("add_reader", "add_writer", "add_signal_handler"),
    }
    calls = Counter(f"{file}: {ast.unparse(call)}" for file, call in calls_in_the_service(names))
    assert calls == dict.fromkeys(CALLBACKS, 1)
