"""P-values corrected for their number, and the cost at which a curve has a quality."""

import math
from collections.abc import Iterable

import numpy as np

LEVEL = 0.95


def holm(p: Iterable[float]) -> np.ndarray:
    """P-values corrected for their number (Holm 1979); NaN stay NaN and are not counted."""
    p = np.asarray([*p], float)
    out, known = np.full(len(p), math.nan), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    factors = len(order) - np.arange(len(order))
    out[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1) if len(order) else []
    return out


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
