"""DPM-Solver++, single-step, order 3 (Lu et al. 2022, arXiv 2211.01095), in the noise level sigma.

With x = y + sigma eps the half log-SNR is lambda = -ln sigma, and the data-prediction exponential integrator is
x_t = (sigma_t/sigma_s) x_s + (1 - e^-h) D + corrections, h = lambda_t - lambda_s.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def single_step_orders(evaluations: int) -> list[int]:
    """Orders of the single steps that use up `evaluations` >= 1: as many 3s as fit, lower orders at the end.

    A remainder of 0 ends with 2, 1 in place of a last 3, as the paper's released solver does.
    """
    groups, rest = divmod(evaluations, 3)
    if rest == 0:
        return [3] * (groups - 1) + [2, 1]
    return [3] * groups + [rest]


def dpm_solver_pp(
    denoise: Callable[[Tensor, Tensor], Tensor], latents: Tensor, sigma_min: float, sigma_max: float, nfe: int
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), at sigma_max, after each single step, and after the final denoising.

    The outer levels are uniform in log-SNR from sigma_max to sigma_min. `nfe` >= 2 counts every evaluation,
    with the last one, D at sigma_min, that takes x to zero noise. `latents` (N, C, H, W) are standard normal.
    """
    if nfe < 2:
        raise ValueError(f"DPM-Solver++ with final denoising needs at least 2 evaluations, and {nfe} was asked for")
    orders = single_step_orders(nfe - 1)
    # Levels and step sizes are float32 numbers, as in the published sampler: in float64 it ends up to 1e-6 away.
    sigmas = torch.linspace(-math.log(sigma_max), -math.log(sigma_min), len(orders) + 1).neg().exp()

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(x, sigma.to(latents.device)).double()

    x = latents.double() * sigma_max
    yield x
    for order, s, t in zip(orders, sigmas[:-1], sigmas[1:], strict=True):
        h = s.log() - t.log()

        def between(r: float, s: Tensor = s, h: Tensor = h) -> Tensor:  # the level a share r of h below s
            return (s.log() - r * h).exp()

        def gain(r: float, h: Tensor = h) -> Tensor:  # 1 - e^{-rh}, the share that moves from x to D
            return -torch.expm1(-r * h)

        D_s = D(x, s)
        if order == 1:
            x = t / s * x + gain(1) * D_s
        elif order == 2:
            r, u = 0.5, between(0.5)
            D_u = D(u / s * x + gain(r) * D_s, u)
            x = t / s * x + gain(1) * (D_s + (D_u - D_s) / (2 * r))
        else:
            r1, r2 = 1 / 3, 2 / 3
            u1, u2 = between(r1), between(r2)
            slope = (D(u1 / s * x + gain(r1) * D_s, u1) - D_s) / r1
            x2 = u2 / s * x + gain(r2) * D_s + r2 * (1 - gain(r2) / (r2 * h)) * slope
            slope = (D(x2, u2) - D_s) / r2
            x = t / s * x + gain(1) * D_s + (1 - gain(1) / h) * slope
        yield x
    yield D(x, sigmas[-1])
