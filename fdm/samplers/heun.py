"""Heun's second-order method with optional churn (Karras et al. 2022, arXiv 2206.00364, Algorithm 2)."""

import itertools
import math
from collections.abc import Iterator

from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler
from fdm.samplers.grids import Grid


def heun_steps(nfe: int, to_zero: bool = True) -> int:
    """Steps that cost `nfe` evaluations: 2 steps - 1, or 2 steps where the grid does not end at 0."""
    if to_zero and (nfe < 1 or nfe % 2 == 0):
        raise ValueError(f"Heun's method costs an odd number of evaluations, and {nfe} was asked for")
    if not to_zero and (nfe < 2 or nfe % 2):
        raise ValueError(f"Heun's method costs an even number on a grid that does not end at 0, not {nfe}")
    return (nfe + 1) // 2


def heun(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    steps: int,
    noise: Noise | None = None,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each of `steps` steps; the last is the sample.

    With `S_churn` above 0, noise is added between the levels S_min and S_max before a step.
    """
    sigmas = grid.levels(steps).double().to(x.device)
    x = x.double()
    yield x
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        if S_churn > 0 and S_min <= sigma <= S_max:
            if noise is None:
                raise ValueError("churn needs a source of noise")
            sigma_hat = sigma * (1 + min(S_churn / steps, math.sqrt(2) - 1))
            x = x + (sigma_hat**2 - sigma**2).sqrt() * S_noise * noise(i).double()
        else:
            sigma_hat = sigma
        d = (x - denoise(x, sigma_hat).double()) / sigma_hat
        x_next = x + (sigma_next - sigma_hat) * d
        if sigma_next > 0:  # at sigma 0 the slope is undefined: the last step is Euler's
            d_next = (x_next - denoise(x_next, sigma_next).double()) / sigma_next
            x_next = x + (sigma_next - sigma_hat) * (d + d_next) / 2
        x = x_next
        yield x


HEUN = Sampler(
    "Heun", heun, heun_steps,
    options={"S_churn": (0, 1000), "S_min": (0, 1000), "S_max": (0, math.inf), "S_noise": (0.5, 2)},
)  # fmt: skip
