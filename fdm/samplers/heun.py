"""Heun's second-order method with optional churn (Karras et al. 2022, arXiv 2206.00364, Algorithm 2)."""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Noise levels from sigma_max down to sigma_min, then 0: (steps + 1,) float64 (EDM, eq. 5).

    A single step goes from sigma_max straight to 0.
    """
    ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def heun_steps(nfe: int) -> int:
    """Steps that cost `nfe` evaluations, 2 steps - 1. Raises ValueError for an even number."""
    if nfe < 1 or nfe % 2 == 0:
        raise ValueError(f"Heun's method costs an odd number of evaluations, and {nfe} was asked for")
    return (nfe + 1) // 2


def heun(
    denoise: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    steps: int,
    sigma_min: float,
    sigma_max: float,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    noise: Callable[[int], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), at sigma_max and after each of `steps` steps; the last is the sample.

    `denoise(x, sigma)` is D; `latents` (N, C, H, W) are standard normal. With `S_churn` above 0, noise is added
    between the levels S_min and S_max before a step: `noise(i)` gives the unit noise of step i.
    """
    sigmas = karras_sigmas(steps, sigma_min, sigma_max).to(latents.device)
    x = latents.double() * sigmas[0]
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
        if i < steps - 1:  # at sigma 0 the slope is undefined: the last step is Euler's
            d_next = (x_next - denoise(x_next, sigma_next).double()) / sigma_next
            x_next = x + (sigma_next - sigma_hat) * (d + d_next) / 2
        x = x_next
        yield x
