"""The domain shift of DoSSR (Cui et al. 2024, arXiv 2409.17778): the clean image moves to an estimate as noise grows.

w = (1 - eta) x0 + eta e + sigma n, for a clean image x0 and its estimate e, with eta as a function of the noise level:
0 without noise, and 1 from the start of the sampling on. So sampling starts at the estimate with noise. With
u = w / (1 - eta) - eta / (1 - eta) e = x0 + lambda n and lambda = sigma / (1 - eta) it is a plain diffusion of x0 at
the level lambda. All in float64, as 1 - eta falls to 2.5e-6 and lambda spans five decades.
"""

import math

import torch
from torch import Tensor

TIMES = 1000  # of Stable Diffusion's schedule, whose roots of beta are linear
BETAS = (0.00085, 0.012)
SHIFTED = 500  # times in which the shift is made, and the first of the sampling
ENDS = (0.001, 0.999)  # shares of the half cosine, so that its ends are left out


def levels() -> Tensor:
    """Noise levels over the scale by time, rising, (TIMES,): 0.029 to 14.6."""
    low, high = (math.sqrt(beta) for beta in BETAS)
    betas = torch.linspace(low, high, TIMES, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    return ((1 - kept) / kept).sqrt()


def _moved(part: Tensor) -> Tensor:
    """eta after that part of the times of the shift, in [0, 1]."""
    low, high = ENDS
    return (1 - (math.pi * (low + (high - low) * part)).cos()) / 2


def eta(sigma: Tensor) -> Tensor:
    """How far the clean image has moved at the noise levels sigma (any shape), in [0, 1], float64.

    The half cosine in the schedule's time, between whose levels it is linear; 1 above the level of the start, and
    falling with sigma to 0 below the first one.
    """
    known = levels()[:SHIFTED].to(sigma.device)
    asked = sigma.double().contiguous()
    after = torch.searchsorted(known, asked).clamp(1, SHIFTED - 1)
    place = after - 1 + (asked - known[after - 1]) / (known[after] - known[after - 1])
    out = _moved((place / (SHIFTED - 1)).clamp(0, 1))
    out = torch.where(asked < known[0], out * asked / known[0], out)
    return torch.where(asked > known[-1], torch.ones_like(out), out)


class Steps:
    """The published grid of a number of steps: evenly spaced times from the start to the first, one evaluation each.

    `sigma` (steps + 1,) are the noise levels of w, falling, `eta` how far the image has moved there, and `lam` the
    levels of u: what a sampler asks of a grid.
    """

    def __init__(self, steps: int) -> None:
        if not 1 <= steps < SHIFTED:
            raise ValueError(f"{steps} steps are not possible; there are 1 to {SHIFTED - 1}")
        times = torch.linspace(0, SHIFTED - 1, steps + 1, dtype=torch.float64).round().long().flip(0)
        self.sigma = levels()[times]
        self.eta = _moved(times.double() / (SHIFTED - 1))
        self.lam = self.sigma / (1 - self.eta)

    def levels(self, steps: int) -> Tensor:
        """The levels of u, whatever the number of steps says: they are those that it was made for."""
        return self.lam
