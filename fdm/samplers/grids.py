"""Grids of noise levels: sigma as a function of tau in [0, 1], so that a sampler may ask between two of its levels."""

import math

import torch
from torch import Tensor


class Grid:
    """Noise levels from `high` to `low` > 0, and then, if `to_zero`, to 0."""

    def __init__(self, low: float, high: float, to_zero: bool = False) -> None:
        self.low, self.high, self.to_zero = low, high, to_zero

    def __call__(self, tau: Tensor | float) -> Tensor:
        """sigma(tau), float64, for tau in [0, 1], from `high` to `low`."""
        raise NotImplementedError

    def nodes(self, steps: int) -> Tensor:
        """The values of tau of the levels above 0: (steps + 1,), or (steps,) with the last step to 0; float64.

        A single step to 0 goes straight from `high`.
        """
        n = steps if self.to_zero else steps + 1
        return torch.arange(n, dtype=torch.float64) / max(n - 1, 1)

    def levels(self, steps: int) -> Tensor:
        """The levels of that many steps, falling, (steps + 1,)."""
        sigmas = self(self.nodes(steps))
        return torch.cat([sigmas, torch.zeros(1, dtype=sigmas.dtype)]) if self.to_zero else sigmas


class Karras(Grid):
    """Uniform in sigma^(1/rho), rho = 7 (EDM, arXiv 2206.00364, eq. 5)."""

    rho = 7.0

    def __call__(self, tau: Tensor | float) -> Tensor:
        """sigma(tau), float64, for tau in [0, 1]."""
        low, high = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        return (high + torch.as_tensor(tau, dtype=torch.float64) * (low - high)) ** self.rho


class LogSNR(Grid):
    """Uniform in the logarithm of sigma."""

    def __call__(self, tau: Tensor | float) -> Tensor:
        """sigma(tau), float64, for tau in [0, 1]."""
        low, high = math.log(self.low), math.log(self.high)
        return (high + torch.as_tensor(tau, dtype=torch.float64) * (low - high)).exp()


class LogSNR32(LogSNR):
    """The same with levels in float32, as DPM-Solver's published code has them: in float64 it ends up to 1e-6 away."""

    def levels(self, steps: int) -> Tensor:
        """The levels of that many steps, falling, float32 (steps + 1,)."""
        n = steps if self.to_zero else steps + 1
        sigmas = torch.linspace(-math.log(self.high), -math.log(self.low), n).neg().exp()
        return torch.cat([sigmas, torch.zeros(1)]) if self.to_zero else sigmas
