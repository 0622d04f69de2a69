"""The noise schedule of VP: a rate beta(t), its integral B(t), the scale s(t), and the noise level sigma(t).

At time t the clean image y is multiplied by the scale s(t), and sigma(t) is relative to it: x(t) = s(t) (y + sigma(t)
eps). Every function is elementwise and takes NumPy arrays or torch tensors alike. Symbols are the paper's (arXiv
2306.06991).
"""

from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor, float)

BETA_MIN = 0.1  # beta(0)
BETA_D = 19.9  # beta(1) - beta(0)
T_MIN = 1e-5  # the smallest time that VP trains on


def exp(x: Array) -> Array:
    """Exponential of an array or a tensor."""
    return x.exp() if isinstance(x, torch.Tensor) else np.exp(x)


def sqrt(x: Array) -> Array:
    """Square root of an array or a tensor."""
    return x.sqrt() if isinstance(x, torch.Tensor) else np.sqrt(x)


def beta(t: Array) -> Array:
    """Noise rate beta(t) = beta_min + beta_d t, for times t in [0, 1]."""
    return BETA_MIN + BETA_D * t


def B(t: Array) -> Array:
    """Integrated noise rate B(t) = beta_min t + beta_d t^2 / 2, the integral of beta from 0 to t."""
    return 0.5 * BETA_D * t**2 + BETA_MIN * t


def t_of_B(B: Array) -> Array:
    """Time in [0, 1] at which the integrated noise rate has the value B in [0, B(1)], the inverse of `B`."""
    return (sqrt(BETA_MIN**2 + 2 * BETA_D * B) - BETA_MIN) / BETA_D


def sigma_vp(t: Array) -> Array:
    """Noise level of VP at time t in [0, 1]: sigma(t) = sqrt(exp(B(t)) - 1).

    The difference is written out rather than by expm1: below t = 1e-3 the two differ in float32 (by 2 % at
    t = 1e-5), and the published networks were trained with this one.
    """
    return sqrt(exp(B(t)) - 1)


def t_vp(sigma: Array) -> Array:
    """Time in [0, 1] at which VP has the noise level sigma >= 0, the inverse of `sigma_vp`."""
    log = (1 + sigma * sigma).log() if isinstance(sigma, torch.Tensor) else np.log1p(np.square(sigma))
    return t_of_B(log)
