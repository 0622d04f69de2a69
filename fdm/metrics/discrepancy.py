"""Maximum mean discrepancy between sets of features, with gradients (Gretton et al. 2012)."""

from collections.abc import Callable

import torch
from torch import Tensor

BANDWIDTHS = (0.1, 0.3, 1.0, 3.0)  # of the sum of Gaussian kernels


def cubic(a: Tensor, b: Tensor) -> Tensor:
    """KID's kernel (arXiv 1801.01401): (<a, b> / d + 1)^3, (n, m) of features (n, d) and (m, d)."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def linear(a: Tensor, b: Tensor) -> Tensor:
    """<a, b>, (n, m): the discrepancy is then of means alone."""
    return a @ b.T


def rbf(a: Tensor, b: Tensor) -> Tensor:
    """Sum of Gaussian kernels of all `BANDWIDTHS`, (n, m)."""
    squares = (a[:, None] - b[None]).square().sum(-1)
    return torch.stack([(-squares / (2 * width**2)).exp() for width in BANDWIDTHS]).sum(0)


def mmd2(a: Tensor, b: Tensor, kernel: Callable[[Tensor, Tensor], Tensor] = cubic, paired: bool = False) -> Tensor:
    """Unbiased estimate of MMD^2, (), from features (n, d) and (m, d); it may be negative.

    `paired`: row i of both has something in common, such as its class, and others are independent; pairs of equal
    number are then left out between the sets, too (n = m).
    """
    across = _different(kernel(a, b)) if paired else kernel(a, b).mean()
    return _different(kernel(a, a)) + _different(kernel(b, b)) - 2 * across


def _different(K: Tensor) -> Tensor:
    n = len(K)
    return (K.sum() - K.trace()) / (n * (n - 1))
