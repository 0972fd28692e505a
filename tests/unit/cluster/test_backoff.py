"""A restart after one crash is immediate; in a crash loop the delay grows, up to a cap."""

from server.cluster.backoff import FIRST_DELAY_S, HEALTHY_S, MAX_DELAY_S, Backoff

QUICK_S = 0.01


def delays(backoff: Backoff, *lives_s: float) -> list[float]:
    return [backoff.delay_s(lived_s, did_work=False) for lived_s in lives_s]


def test_the_restart_after_the_first_death_is_immediate() -> None:
    assert Backoff().delay_s(QUICK_S, did_work=False) == 0


def test_each_further_quick_death_costs_twice_as_much_up_to_the_cap() -> None:
    assert delays(Backoff(), *[QUICK_S] * 11) == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10]


def test_a_crash_loop_that_never_ends_still_waits_no_longer_than_the_cap() -> None:
    assert set(delays(Backoff(), *[QUICK_S] * 900)[500:]) == {MAX_DELAY_S}


def test_a_healthy_life_resets_the_count() -> None:
    backoff = Backoff()
    assert delays(backoff, QUICK_S, QUICK_S, QUICK_S)[-1] == 2 * FIRST_DELAY_S
    assert delays(backoff, HEALTHY_S, QUICK_S, QUICK_S) == [0, 0, FIRST_DELAY_S]


def test_a_life_just_short_of_healthy_counts_as_a_quick_one() -> None:
    backoff = Backoff()
    assert delays(backoff, QUICK_S, HEALTHY_S - 0.001) == [0, FIRST_DELAY_S]


def test_one_process_dying_does_not_delay_another() -> None:
    looping, calm = Backoff(), Backoff()
    delays(looping, *[QUICK_S] * 5)
    assert calm.delay_s(QUICK_S, did_work=False) == 0


def test_a_process_that_did_work_is_in_no_crash_loop() -> None:
    backoff = Backoff()
    delays(backoff, *[QUICK_S] * 5)
    assert backoff.delay_s(QUICK_S, did_work=True) == 0
    assert delays(backoff, QUICK_S, QUICK_S) == [0, FIRST_DELAY_S]
