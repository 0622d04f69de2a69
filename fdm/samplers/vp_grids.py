"""Grids of noise levels in the time of VP, as DDPM's and DDIM's are."""

import math

import torch
from torch import Tensor

from fdm.samplers.grids import Grid


class VPTime(Grid):
    """Uniform in the time of VP, whose beta rises evenly from 0.1 to 20 (Song et al. 2021, arXiv 2011.13456, App. C).

    With `power` 1/2 uniform in its root: DDIM's quadratic grid (arXiv 2010.02502, App. D.2).
    """

    first, slope = 0.1, 19.9  # of beta
    power = 1.0

    def __call__(self, tau: Tensor | float) -> Tensor:
        """sigma(tau), float64, for tau in [0, 1]."""
        low, high = (self._time(sigma) ** self.power for sigma in (self.low, self.high))
        time = (high + torch.as_tensor(tau, dtype=torch.float64) * (low - high)) ** (1 / self.power)
        return (self.slope / 2 * time**2 + self.first * time).expm1().sqrt()

    def _time(self, sigma: float) -> float:
        return (math.sqrt(self.first**2 + 2 * self.slope * math.log1p(sigma**2)) - self.first) / self.slope


class VPQuadratic(VPTime):
    """Uniform in the root of VP's time: more steps at low noise."""

    power = 0.5
