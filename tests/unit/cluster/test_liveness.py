"""A process that is stopped or stuck is told from one that waits for a core, or for work."""

import os
import signal
import subprocess
from collections.abc import Iterable

import pytest

from benchmarks.harness.waiting import until
from server.cluster.liveness import Sign, Watch, read_state

#: Three looks while it is stopped or idle, and five more on a task.
HUNG_AFTER_S, TIMEOUT_S = 3.0, 5.0


def looks_until_hung(signs: Iterable[Sign], *, is_background: bool = False) -> int | None:
    watch = Watch(HUNG_AFTER_S, TIMEOUT_S, is_background=is_background)
    return next((look for look, sign in enumerate(signs, 1) if watch.is_hung(sign)), None)


@pytest.mark.parametrize(
    ("sign", "looks"),
    [
        (Sign("T", 7, 0, 9), 3),
        (Sign("T", 7, 1, 9), 3),  # the first look is enough to see it
        (Sign("S", 7, 0, 9), 4),  # at the second look it has been silent since the first
        (Sign("D", 7, 0, 9), 9),  # an idle one, of a machine that swaps
        (Sign("S", 7, 0, 0), 9),  # one that boots
        (Sign("T", 7, 0, 0), 3),
        (Sign("S", 7, 1, 9), 9),
        (Sign("D", 7, 1, 9), 9),
        (Sign("R", 7, 0, 9), None),
        (Sign("t", 7, 1, 9), None),
    ],
)
def test_an_engine_that_stays_as_it_is(sign: Sign, looks: int | None) -> None:
    assert looks_until_hung([sign] * 100) == looks


@pytest.mark.parametrize(
    "signs",
    [
        [Sign("S", 7, 0, beats) for beats in range(100)],  # idle
        [Sign("S", cpu, 1 + cpu // 8, 9) for cpu in range(100)],  # at work
        [Sign("S", 7, task, 9) for task in range(1, 100)],  # at work, on images that cost little
        [Sign("S", 7, 0, beats // 3) for beats in range(100)],  # starved now and then
    ],
)
def test_an_engine_that_shows_a_sign_of_life_is_not_hung(signs: list[Sign]) -> None:
    assert looks_until_hung(signs) is None


#: Of the kernel's clock, in each second.
TICKS = os.sysconf("SC_CLK_TCK")


def test_an_engine_that_is_at_one_task_for_longer_than_its_timer_allows_is_hung() -> None:
    # At the tenth look, nine seconds after the first, which leaves the timer one more than eight.
    spinning = [Sign("R", TICKS * look, 1, 9) for look in range(100)]
    assert looks_until_hung(spinning) == 10
    assert looks_until_hung([Sign("R", 7, 1, 9)] * 100) == 10  # it waits for a core
    idle = [Sign("S", 0, 0, beats) for beats in range(100)]
    assert looks_until_hung([*idle, *spinning]) == 110


def test_a_background_engine_is_limited_by_cpu_time() -> None:
    def looks(ticks_each: int) -> int | None:
        signs = [Sign("R", ticks_each * look, 1, 9) for look in range(100)]
        return looks_until_hung(signs, is_background=True)

    assert looks(TICKS) == 10
    assert looks(TICKS // 2) == 18
    assert looks(0) is None  # it waits for a core
    many = [Sign("R", TICKS * look, 1 + look // 8, 9) for look in range(100)]
    assert looks_until_hung(many, is_background=True) is None


def test_an_engine_is_not_hung_after_one_silent_look() -> None:
    watch = Watch(0.1, TIMEOUT_S)
    assert not any(watch.is_hung(Sign("S", 7, 0, beats // 2)) for beats in range(2, 100))


def test_an_engine_that_goes_on_in_time_is_not_hung() -> None:
    stopped, idle = Sign("T", 7, 0, 9), Sign("S", 7, 0, 9)
    assert looks_until_hung([stopped, stopped, idle, stopped, stopped, idle] * 5) is None


def test_the_state_of_a_process_is_read() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            os.kill(process.pid, signal.SIGSTOP)
            assert until(lambda: (read_state(process.pid) or " ")[0] == "T")
        finally:
            process.kill()
    assert read_state(process.pid) is None


def test_the_cpu_time_of_a_process_is_read() -> None:
    seen = read_state(os.getpid())
    assert seen is not None
    state, cpu = seen
    assert state == "R"
    times = os.times()
    assert abs(cpu / os.sysconf("SC_CLK_TCK") - times.user - times.system) < 1
