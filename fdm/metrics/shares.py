"""Intervals of a share of images."""

import math

from scipy.special import ndtri

NORMAL = float(ndtri(0.975))


def wilson(value: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927), which has a width at 0 and at 1 as well."""
    z2 = NORMAL**2
    middle, half = value + z2 / (2 * n), math.sqrt(z2 * (value * (1 - value) / n + z2 / (4 * n * n)))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))
