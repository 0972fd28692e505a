"""The Universal Scalability Law is found again in what it made, and nothing is found in too little."""

import random

import pytest

from benchmarks.comparison.scaling import Law, TooFewPoints, fit

WORKERS = (1, 2, 3, 4, 6, 8, 12, 16)


def points_of(law: Law) -> list[float]:
    return [law.throughput(n) for n in WORKERS]


@pytest.mark.parametrize(
    "law",
    [
        Law(12.5, 0.0, 0.0),
        Law(12.5, 0.05, 0.0),
        Law(12.5, 0.0, 0.002),
        Law(995.6, 0.026, 0.0008),
        Law(0.003, 0.5, 0.02),
    ],
)
def test_an_exact_law_is_found_again(law: Law) -> None:
    found = fit(WORKERS, points_of(law))
    assert found.rate == pytest.approx(law.rate)
    assert found.contention == pytest.approx(law.contention, abs=1e-9)
    assert found.coherency == pytest.approx(law.coherency, abs=1e-9)
    assert found.error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_a_noisy_law_is_nearly_found_again(seed: int) -> None:
    noise = random.Random(seed)
    law = Law(100, 0.03, 0.001)
    found = fit(WORKERS, [x * noise.uniform(0.99, 1.01) for x in points_of(law)])
    assert found.rate == pytest.approx(law.rate, rel=0.03)
    assert found.contention == pytest.approx(law.contention, abs=0.015)
    assert found.coherency == pytest.approx(law.coherency, abs=0.001)
    assert found.error < 0.01
    assert found.knee == pytest.approx(31, rel=0.5)


def test_what_is_better_than_linear_has_no_negative_coefficients() -> None:
    found = fit((1, 2, 3, 4), (10, 22, 36, 52))
    assert (found.contention, found.coherency) == (0, 0)
    assert found.rate == pytest.approx(11.5, rel=0.1)


def test_one_coefficient_is_held_at_zero_and_the_other_fitted() -> None:
    found = fit((1, 2, 3, 4), (10, 21, 30, 34))
    assert found.contention == 0
    assert found.coherency > 0


def test_the_knee_is_where_one_more_and_one_less_do_less() -> None:
    law = Law(10, 0.04, 0.0024)
    assert law.knee == pytest.approx(20)
    assert law.throughput(19) < law.throughput(20) > law.throughput(21)


def test_without_coherency_there_is_no_knee() -> None:
    assert Law(10, 0.04, 0).knee is None


@pytest.mark.parametrize("percent", range(0, 60, 3))
def test_what_rounding_leaves_is_no_coherency(percent: int) -> None:
    assert fit(WORKERS, points_of(Law(9.7, percent / 100, 0))).knee is None


def test_the_knee_is_never_below_one_worker() -> None:
    assert Law(10, 0.5, 2).knee == 1
    assert Law(10, 1.5, 2).knee == 1


@pytest.mark.parametrize("workers", [(), (1, 2, 3), (1, 2, 3, 3, 3)])
def test_fewer_than_four_numbers_of_workers_predict_nothing(workers: tuple[int, ...]) -> None:
    with pytest.raises(TooFewPoints):
        fit(workers, [10.0] * len(workers))
