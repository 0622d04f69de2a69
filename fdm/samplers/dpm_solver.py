"""DPM-Solver++, single-step, order 3 (Lu et al. 2022, arXiv 2211.01095), in the noise level sigma.

With x = y + sigma eps the half log-SNR is lambda = -ln sigma, and the data-prediction exponential integrator is
x_t = (sigma_t/sigma_s) x_s + (1 - e^-h) D + corrections, h = lambda_t - lambda_s.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler
from fdm.samplers.grids import Grid


def single_step_orders(evaluations: int) -> list[int]:
    """Orders of the single steps that use up `evaluations` >= 1: as many 3s as fit, lower orders at the end.

    A remainder of 0 ends with 2, 1 in place of a last 3, as the paper's released solver does.
    """
    groups, rest = divmod(evaluations, 3)
    if rest == 0:
        return [3] * (groups - 1) + [2, 1]
    return [3] * groups + [rest]


def dpm_solver_pp(denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given, after each single step, and after the final denoising.

    `steps` evaluations are shared out to the single steps. One more, D at the grid's lowest level, takes x to zero.
    """
    orders = single_step_orders(steps)
    sigmas = grid.levels(len(orders))

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(x, sigma.to(x.device)).double()

    x = x.double()
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


def dpm_solver_pp_steps(nfe: int, to_zero: bool = False) -> int:
    """Evaluations of `nfe` that the single steps have: all but the final denoising's."""
    if to_zero or nfe < 2:
        raise ValueError(f"DPM-Solver++ with final denoising needs at least 2 evaluations, and {nfe} was asked for")
    return nfe - 1


DPM_SOLVER_PP = Sampler("DPM-Solver++", dpm_solver_pp, dpm_solver_pp_steps, grid="log-snr-float32", to_zero=False)
