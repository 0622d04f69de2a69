"""The rules of the evidence, written down before its runs are looked at.

All quantities are differences of y = ln(metric), where a lower metric is better: 0.1 is about ten percent. A claim of
*comparable* quality has a tolerance of its own, which comes from the claim and not from the noise: `QUALITY` for the
savings (C3, C4), `EFFECT` for the warm-up (C5). The same arithmetic and the same tolerance judge the published tables.

An estimate is a contrast of cell means over seeds. Its standard error is pooled: the residual of y ~ seed + cell within
a framework, with (cells - 1)(seeds - 1) degrees of freedom, as few seeds tell little of their own spread. Differences
are shown by 95 % intervals, corrected after Holm over the few primary contrasts; equality by two one-sided tests, which
is to say that the 90 % interval lies within the tolerance. Everything else is exploratory, and labelled so. Which
contrasts are primary, and in which metric, is in `evidence`.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

QUALITY = math.log(1.10)  # six of nine published baselines are 4 to 8 % above their end at half of their training
EFFECT = math.log(1.05)
MOST = 1000  # seeds that a plan is made for; above it more seeds are no answer

Verdict = Literal[
    "holds", "nothing to save", "equivalent", "does not hold", "partly", "harmful", "inconclusive", "not learnt"
]


class Estimate(NamedTuple):
    """A difference of ln(metric) with its standard error, degrees of freedom and number of seeds."""

    value: float
    error: float
    freedom: float
    seeds: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The ends of the interval of that level, by Student's t."""
        half = float(stdtrit(self.freedom, (1 + level) / 2)) * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided p-value of no difference."""
        return 2 * float(stdtr(self.freedom, -abs(self.value) / self.error)) if self.error else float(self.value == 0)


def contrast(logs: np.ndarray, weights: np.ndarray) -> Estimate:
    """A contrast of cells, from y of a framework's cells (cells, seeds) and the weight of each cell (cells,).

    The weights add up to 0. Raises ValueError for fewer than two cells or seeds, and for weights that do not.
    """
    cells, seeds = logs.shape
    if cells < 2 or seeds < 2:
        raise ValueError(f"a contrast needs two cells and two seeds, and there are {cells} and {seeds}")
    if abs(weights.sum()) > 1e-12:
        raise ValueError(f"the weights of a contrast add up to 0, and these to {weights.sum():g}")
    residual = logs - logs.mean(axis=1, keepdims=True) - logs.mean(axis=0, keepdims=True) + logs.mean()
    freedom = (cells - 1) * (seeds - 1)
    deviation = math.sqrt(float((residual**2).sum()) / freedom)
    error = deviation * math.sqrt(float((weights**2).sum()) / seeds)
    return Estimate(float(weights @ logs.mean(axis=1)), error, freedom, seeds)


def paired(logs: np.ndarray, weights: np.ndarray) -> Estimate:
    """The same contrast from its values a seed, by Student's t: valid whatever the spread of the cells and their
    correlations, at the price of seeds - 1 degrees of freedom."""
    each = weights @ logs
    n = len(each)
    return Estimate(float(each.mean()), float(each.std(ddof=1)) / math.sqrt(n), n - 1, n)


def mean(estimates: list[Estimate]) -> Estimate:
    """The mean of independent estimates, with the degrees of freedom of its error by Satterthwaite."""
    n = len(estimates)
    variances = [(each.error / n) ** 2 for each in estimates]
    total = sum(variances)
    parts = sum(variance**2 / each.freedom for variance, each in zip(variances, estimates, strict=True))
    value, seeds = sum(each.value for each in estimates) / n, min(each.seeds for each in estimates)
    freedom = total**2 / parts if parts else sum(each.freedom for each in estimates)
    return Estimate(value, math.sqrt(total), freedom, seeds)


def equivalent(estimate: Estimate, tolerance: float, level: float = 0.90) -> bool:
    """Whether two one-sided tests, at 5 % by the usual `level`, both exclude a difference as large as that."""
    low, high = estimate.interval(level)
    return -tolerance < low and high < tolerance


def judge_saving(
    reduced: Estimate,
    base_reduced: Estimate,
    full: Estimate,
    learnt: bool = True,
    level: float = 0.95,
    tolerance: float = QUALITY,
) -> Verdict:
    """The verdict on "as good for a fraction of the cost" (C3, C4), from differences from the baseline at full cost.

    `level` is that of the intervals, higher where several contrasts are to hold together.

    not learnt       the baseline has not: nothing is judged
    nothing to save  the baseline itself is equivalent at the reduced cost
    holds            FDM at the reduced cost is worse by less than the tolerance, and the baseline there by more
    does not hold    FDM at the reduced cost is worse by more than the tolerance
    partly           that, but FDM at full cost is better than the baseline at full cost
    inconclusive     none of these is shown
    """
    if not learnt:
        return "not learnt"
    if equivalent(base_reduced, tolerance):
        return "nothing to save"
    low, high = reduced.interval(level)
    if high < tolerance and base_reduced.interval(level)[0] > tolerance:
        return "holds"
    if low > tolerance:
        return "partly" if full.interval(level)[1] < 0 else "does not hold"
    return "inconclusive"


def judge_effect(effect: Estimate, learnt: bool = True, level: float = 0.95) -> Verdict:
    """The verdict on "makes training better" (C5), from the difference that it makes.

    not learnt    the baseline has not
    holds         better by more than the tolerance
    equivalent    neither better nor worse by as much
    harmful       worse by more
    inconclusive  none of these is shown
    """
    if not learnt:
        return "not learnt"
    low, high = effect.interval(level)
    if high < -EFFECT:
        return "holds"
    if low > EFFECT:
        return "harmful"
    return "equivalent" if equivalent(effect, EFFECT) else "inconclusive"


def seeds_that_decide(estimate: Estimate, tolerance: float, level: float = 0.95) -> int | None:
    """Seeds with which this estimate, if it stays as it is, would lie apart from the tolerance on one side or other.

    `level` is that of the interval. The spread stays as it is as well. None where more than a thousand would be needed.
    """
    gap = abs(abs(estimate.value) - tolerance)
    deviation = estimate.error * math.sqrt(estimate.seeds)
    per_seed = estimate.freedom / (estimate.seeds - 1)
    for seeds in range(estimate.seeds, MOST + 1):
        if float(stdtrit(per_seed * (seeds - 1), (1 + level) / 2)) * deviation / math.sqrt(seeds) < gap:
            return seeds
    return None
