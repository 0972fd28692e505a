"""The Universal Scalability Law: what throughput over workers says about contention and coherency.

X(n) = lambda n / (1 + sigma (n - 1) + kappa n (n - 1)), N. J. Gunther, "Guerrilla Capacity Planning", 2007.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

#: With fewer, three parameters explain everything and predict nothing.
FEWEST_POINTS = 4

# Which columns of the design matrix may differ from zero: the simplest law first.
_SUPPORTS = ((0,), (0, 1), (0, 2), (0, 1, 2))
_NOT_BETTER = 1e-18


class TooFewPoints(Exception):
    """There are fewer than `FEWEST_POINTS` different numbers of workers."""


@dataclass(frozen=True, slots=True)
class Law:
    """A fitted law.

    Attributes:
        rate: lambda, the throughput of one worker.
        contention: sigma, the part of the work that only one worker can do at a time.
        coherency: kappa, what each pair of workers costs.
        error: root mean square of the relative error over the points.
    """

    rate: float
    contention: float
    coherency: float
    error: float = 0.0

    def throughput(self, workers: float) -> float:
        """Return the throughput of a number of workers."""
        return self.rate * workers / self._slowdown(workers)

    @property
    def knee(self) -> float | None:
        """The number of workers with the highest throughput, or None if more workers always do more."""
        if self.coherency == 0:
            return None
        return max(1.0, sqrt(max(0.0, 1 - self.contention) / self.coherency))

    def _slowdown(self, workers: float) -> float:
        return 1 + self.contention * (workers - 1) + self.coherency * workers * (workers - 1)


def fit(workers: Sequence[int], throughputs: Sequence[float]) -> Law:
    """Find the law with sigma, kappa >= 0 that has the least relative error.

    n / X(n) is linear in 1 / lambda, sigma / lambda and kappa / lambda, so that no search is needed: of the
    four least-squares solutions with and without sigma and kappa, the best without a negative one is it.

    Raises:
        TooFewPoints: to predict anything.
    """
    if len(set(workers)) < FEWEST_POINTS:
        raise TooFewPoints(f"{len(set(workers))} of at least {FEWEST_POINTS}")
    n = np.asarray(workers, dtype=float)
    x = np.asarray(throughputs, dtype=float)
    terms = np.column_stack([np.ones_like(n), n - 1, n * (n - 1)]) * (x / n)[:, np.newaxis]
    best, least = np.zeros(3), np.inf
    for support in map(list, _SUPPORTS):
        solution = np.zeros(3)
        solution[support] = np.linalg.lstsq(terms[:, support], np.ones_like(n), rcond=None)[0]
        error = float(np.mean((terms @ solution - 1) ** 2))
        if solution[0] > 0 and (solution >= 0).all() and error < least - _NOT_BETTER:
            best, least = solution, error
    law = Law(*(float(value) for value in (1 / best[0], best[1] / best[0], best[2] / best[0])))
    errors = [
        law.throughput(each) / measured - 1 for each, measured in zip(workers, throughputs, strict=True)
    ]
    return Law(law.rate, law.contention, law.coherency, float(np.sqrt(np.mean(np.square(errors)))))
