"""DPM-Solver++, multistep, of order 2 and 3 (Lu et al. 2022, arXiv 2211.01095, Algorithm 2), in the noise level sigma.

One evaluation a step: derivatives of D along the half log-SNR, lambda = -ln sigma, come from the steps before. It
begins with first order. A last step to zero is D itself.

What is called third order is measured to be of second: the released solver has half of the last term of the exact
integral. It is kept. Lower orders in the last steps, which the released solver takes when they are few, are not.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler, one_a_step
from fdm.samplers.grids import Grid


def _multistep(denoise: Denoise, x: Tensor, grid: Grid, steps: int, order: int) -> Iterator[Tensor]:
    x, past = x.double(), list[tuple[Tensor, Tensor]]()  # D and its level, newest first
    yield x
    for s, t in itertools.pairwise(grid.levels(steps).double().to(x.device)):
        past = [(denoise(x, s).double(), s), *past[: order - 1]]
        x = past[0][0] if t == 0 else t / s * x + _gain(past, t)
        yield x


def _gain(past: list[tuple[Tensor, Tensor]], t: Tensor) -> Tensor:
    """What a step to t adds: the integral of e^(lambda - lambda_t) D, by Newton's divided differences of the past D."""
    D, s = past[0]
    h = (s / t).log()
    moved = -torch.expm1(-h)
    if len(past) == 1:
        return moved * D
    h0 = (past[1][1] / s).log()
    first = (D - past[1][0]) / h0
    if len(past) == 2:
        return moved * (D + h / 2 * first)  # D at the middle of the step, in the paper's form
    h1 = (past[2][1] / past[1][1]).log()
    second = (first - (past[1][0] - past[2][0]) / h1) / (h0 + h1)
    slope = first + h0 * second  # of the parabola through all three, at s
    return moved * D + (h - moved) * slope + (h**2 / 2 - h + moved) * second  # twice the last would be exact


def dpm_2m(denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step of second order."""
    yield from _multistep(denoise, x, grid, steps, 2)


def dpm_3m(denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step of third order."""
    yield from _multistep(denoise, x, grid, steps, 3)


DPM_2M = Sampler("DPM-Solver++(2M)", dpm_2m, one_a_step, to_zero=False)
DPM_3M = Sampler("DPM-Solver++(3M)", dpm_3m, one_a_step, to_zero=False)
