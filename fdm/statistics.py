"""Comparisons paired by seed: effects with bootstrap intervals and corrected p-values, ratios of cost, bias with n."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 9_999
LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval, which are NaN where there are too few seeds for one."""

    value: float
    low: float
    high: float


def percentiles(n: int) -> tuple[float, float]:
    """The bootstrap's percentiles, as shares, that are the ends of a 95 % interval for a mean of n >= 2 values.

    The plain ones, 0.025 and 0.975, give intervals that are too narrow at small n: at 5 by a third. These are wider by
    as much as Student's interval is wider than the bootstrap's for normal values (Hesterberg 2015, The American
    Statistician 69, "expanded percentile interval").
    """
    quantile = stats.t.ppf((1 + LEVEL) / 2, n - 1) * math.sqrt(n / (n - 1))
    return float(stats.norm.cdf(-quantile)), float(stats.norm.cdf(quantile))


def mean(values: np.ndarray) -> Interval:
    """Mean of values (n,), one a seed, and its bootstrap interval; of one value, no interval."""
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()) if n else math.nan, math.nan, math.nan)
    resampled = values[resamples(n)].mean(axis=1)
    low, high = np.quantile(resampled, percentiles(n))
    return Interval(float(values.mean()), float(low), float(high))


def resamples(n: int) -> np.ndarray:
    """Bootstrap resamples of n seeds, (resamples, n) indices, the same in every call."""
    return np.random.default_rng(0).integers(0, n, (RESAMPLES, n))


def p_value(differences: np.ndarray) -> float:
    """Two-sided p of paired differences (n,), one a seed, by Student's t-test; NaN for fewer than two.

    A sign-flip test would need no normality, but cannot fall below 2/2^n, 0.06 at five seeds.
    """
    if len(differences) < 2 or np.ptp(differences) == 0:
        return math.nan
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


def share_of_cost(cost: Iterable[float], baseline: Iterable[float], fdm: Iterable[float]) -> tuple[float, str]:
    """Cost at which FDM reaches the baseline's last quality, as a share of the baseline's last cost; how it is known.

    The three go together, by rising cost; quality is a distance, lower is better. Between two costs the distance is
    interpolated linearly in the logarithms of both, so that the first crossing counts. The second value is "="; "at
    most" when FDM is there at the smallest cost already; "never" when it is not at the largest (the share is then NaN).
    """
    x, target, y = np.asarray([*cost], float), [*baseline][-1], np.asarray([*fdm], float)
    if y[0] <= target:
        return x[0] / x[-1], "at most"
    reached = np.flatnonzero(y <= target)
    if not len(reached):
        return math.nan, "never"
    i = reached[0]
    weight = np.log(y[i - 1] / target) / np.log(y[i - 1] / y[i])
    return float(np.exp(np.log(x[i - 1]) + weight * np.log(x[i] / x[i - 1])) / x[-1]), "="


def cost_ratio(cost: np.ndarray, baseline: np.ndarray, fdm: np.ndarray, target: int) -> tuple[Interval, str]:
    """Cost of FDM over that of the baseline at equal quality, that of the baseline at cost[target], over seeds.

    `cost` (c,) rises; `baseline` and `fdm` are distances (seeds, c). Seeds are averaged in logarithms, and resampled in
    pairs for the interval. Where FDM does not get there at the largest cost the ratio is infinite: known only to be
    above cost[-1]/cost[target]. The second value is how the estimate is known, as in `share_of_cost`.
    """
    logs = np.log(baseline), np.log(fdm)

    def ratio(index: np.ndarray) -> tuple[float, str]:
        base, mine = (np.exp(log[index].mean(axis=0)) for log in logs)
        share, known = share_of_cost([*cost], [base[target]], mine)
        return (math.inf if known == "never" else share * cost[-1] / cost[target]), known

    n = len(baseline)
    value, known = ratio(np.arange(n))
    if n < 2:
        return Interval(value, math.nan, math.nan), known
    # A resample is what it holds how often, not in which order: far fewer than there are resamples.
    rows, counts = np.unique(np.sort(resamples(n), axis=1), axis=0, return_counts=True)
    ratios = np.array([ratio(row)[0] for row in rows])
    order = np.argsort(ratios)
    cumulated = counts[order].cumsum() / counts.sum()
    low, high = (float(ratios[order][np.searchsorted(cumulated, share)]) for share in percentiles(n))
    return Interval(value, low, high), known


# ------------------------------------------------------------------------------------------------ bias with n


def at_infinity(n: Iterable[float], values: np.ndarray) -> np.ndarray:
    """Distances extrapolated to n -> infinity, (seeds,), by a straight line in 1/n through values (seeds, len(n)).

    The bias of a Frechet distance falls like 1/n (Chong & Forsyth 2020, arXiv 1911.07023).
    """
    design = np.stack([np.ones(len(values.T)), 1 / np.asarray([*n], float)], axis=1)
    return np.linalg.lstsq(design, values.T, rcond=None)[0][0]
