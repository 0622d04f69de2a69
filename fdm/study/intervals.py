"""Comparisons paired by seed: effects with bootstrap intervals and corrected p-values, ratios of cost, bias with n."""

import functools
import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 9_999  # where there are too many to take all
LEVEL = 0.95
FEWEST = 5  # values below which a bootstrap has too few resamples to give an interval


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval, which are NaN where there are too few seeds for one."""

    value: float
    low: float
    high: float


@functools.cache
def resamples(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap resamples of n seeds, (resamples, n) indices, and their probabilities.

    Up to 8 seeds they are all that differ in more than their order (126 at 5), else random ones.
    """
    if n > 8:
        return np.random.default_rng(0).integers(0, n, (RESAMPLES, n)), np.full(RESAMPLES, 1 / RESAMPLES)
    index = np.array([*itertools.combinations_with_replacement(range(n), n)])
    often = [math.factorial(n) / math.prod(math.factorial(k) for k in np.bincount(row)) for row in index]
    return index, np.array(often) / n**n


def quantiles(values: np.ndarray, weights: np.ndarray, shares: tuple[float, float]) -> tuple[float, float]:
    """Quantiles of values with probabilities, interpolated between the middles of their steps."""
    order = np.argsort(values)
    middles = weights[order].cumsum() - weights[order] / 2
    finite = np.interp(shares, middles, np.where(np.isinf(values[order]), 1e300, values[order]))
    low, high = (math.inf if value > 1e200 else float(value) for value in finite)
    return low, high


def mean(values: np.ndarray) -> Interval:
    """Mean of values (n,), one a seed, and its bootstrap-t interval; of fewer than five values no interval.

    The bootstrap's distribution is that of Student's t (Efron & Tibshirani 1993, section 12.5). Its percentiles alone
    cannot cover 95 % at five seeds, as they never leave the range of the values; this covers 94 % for normal values
    and is about 1.3 times as wide as Student's interval (a test measures both).
    """
    n = len(values)
    centre = float(np.mean(values)) if n else math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if n < FEWEST:
        return Interval(centre, math.nan, math.nan)
    if error <= 1e-12 * abs(centre):
        return Interval(centre, centre, centre)
    index, weights = resamples(n)
    drawn = np.asarray(values)[index]
    spread = drawn.std(axis=1, ddof=1)
    some = index.min(axis=1) < index.max(axis=1)  # of one seed n times there is no t, only rounding
    some &= spread > 1e-12 * abs(centre)  # nor of seeds with equal values
    t = (drawn.mean(axis=1)[some] - centre) / (spread[some] / math.sqrt(n))
    tail = (1 - LEVEL) / 2
    low, high = quantiles(t, weights[some] / weights[some].sum(), (tail, 1 - tail))
    return Interval(centre, centre - high * error, centre - low * error)


def p_value(differences: np.ndarray) -> float:
    """Two-sided p of paired differences (n,), one a seed, by Student's t-test; NaN for fewer than five.

    A sign-flip test would need no normality, but cannot fall below 2/2^n, 0.06 at five seeds.
    """
    if len(differences) < FEWEST:
        return math.nan
    if np.ptp(differences) == 0:
        return float(differences[0] == 0)
    return float(stats.ttest_1samp(differences, 0).pvalue)


def holm(p: Iterable[float]) -> np.ndarray:
    """P-values corrected for their number (Holm 1979); NaN stay NaN and are not counted."""
    p = np.asarray([*p], float)
    out, known = np.full(len(p), math.nan), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    factors = len(order) - np.arange(len(order))
    out[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1) if len(order) else []
    return out


# -------------------------------------------------------------------------------------------------------- costs


def first_cost(cost: np.ndarray, curve: np.ndarray, target: float) -> tuple[float, str]:
    """Cost at which a curve of distances (c,), at rising costs (c,), first is at the target; and how that is known.

    Between two costs the distance is interpolated linearly in the logarithms of both. The second value is "="; "at
    most" when the curve is there at the smallest cost already; "never", with an infinite cost, when it never is.
    """
    if curve[0] <= target:
        return float(cost[0]), "at most"
    reached = np.flatnonzero(curve <= target)
    if not len(reached):
        return math.inf, "never"
    i = reached[0]
    weight = np.log(curve[i - 1] / target) / np.log(curve[i - 1] / curve[i])
    return float(np.exp(np.log(cost[i - 1]) + weight * np.log(cost[i] / cost[i - 1]))), "="


def share_of_cost(cost: Iterable[float], baseline: Iterable[float], fdm: Iterable[float]) -> tuple[float, str]:
    """Cost at which FDM reaches the baseline's last quality, as a share of the baseline's last cost; how it is known.

    The three go together, by rising cost; quality is a distance, lower is better. See `first_cost`; the share is NaN
    where FDM never gets there.
    """
    x = np.asarray([*cost], float)
    first, known = first_cost(x, np.asarray([*fdm], float), [*baseline][-1])
    return (math.nan if known == "never" else first / x[-1]), known


def cost_ratio(cost: np.ndarray, baseline: np.ndarray, fdm: np.ndarray, target: int) -> tuple[Interval, str]:
    """Cost of FDM over that of the baseline at equal quality, that of the baseline at cost[target], over seeds.

    `cost` (c,) rises; `baseline` and `fdm` are distances (seeds, c). Both costs are those at which a curve is first
    there, so that a curve against itself gives 1. Seeds are averaged in logarithms, and resampled in pairs for the
    interval, the bootstrap's percentiles, which covers about 92 % at five seeds (more is not possible) and is NaN for
    fewer. Where FDM does not get there at the largest cost the ratio is infinite: known only to be above
    cost[-1] over the baseline's. The second value tells how the estimate is known: as in `first_cost`, or "unknown"
    where a distance is missing.
    """
    n = len(baseline)
    if not n or np.isnan(baseline).any() or np.isnan(fdm).any():
        return Interval(math.nan, math.nan, math.nan), "unknown"
    logs = np.log(baseline), np.log(fdm)

    def ratio(index: np.ndarray) -> tuple[float, str]:
        base, mine = (np.exp(log[index].mean(axis=0)) for log in logs)
        first, known = first_cost(cost, mine, base[target])
        return first / first_cost(cost, base, base[target])[0], known

    value, known = ratio(np.arange(n))
    if n < FEWEST:
        return Interval(value, math.nan, math.nan), known
    index, weights = resamples(n)
    low, high = quantiles(np.array([ratio(row)[0] for row in index]), weights, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value, low, high), known


# ------------------------------------------------------------------------------------------------ bias with n


def at_infinity(n: Iterable[float], values: np.ndarray) -> np.ndarray:
    """Distances extrapolated to n -> infinity, (seeds,), by a straight line in 1/n through values (seeds, len(n)).

    The bias of a Frechet distance falls like 1/n (Chong & Forsyth 2020, arXiv 1911.07023).
    """
    design = np.stack([np.ones(len(values.T)), 1 / np.asarray([*n], float)], axis=1)
    return np.linalg.lstsq(design, values.T, rcond=None)[0][0]
