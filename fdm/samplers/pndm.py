"""PNDM (Liu et al. 2022, arXiv 2202.09778): DDIM's step with slopes combined by classical multistep weights.

In sigma the paper's transfer part is x + (t - s) e for the slope e = (x - D) / s. Its middle of two times is the
middle in tau, sigma((tau_s + tau_t) / 2). The weights are constant, so that the order is 2 on grids that are not
uniform in sigma. The last slope is taken at the grid's lowest level, where the sampler ends: it cannot be at 0.
"""

import itertools
from collections.abc import Iterator

from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler
from fdm.samplers.grids import Grid


def _slope(denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
    return (x - denoise(x, sigma).double()) / sigma


def s_pndm(denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step: improved Euler first, then second order."""
    x, before = x.double(), None
    yield x
    for s, t in itertools.pairwise(grid.levels(steps).double().to(x.device)):
        e = _slope(denoise, x, s)
        other = _slope(denoise, x + (t - s) * e, t) if before is None else 2 * e - before  # the slope at t
        x, before = x + (t - s) * (e + other) / 2, e
        yield x


def f_pndm(denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step: three of Runge and Kutta, then fourth order."""
    x, slopes = x.double(), list[Tensor]()
    yield x
    taus, levels = grid.nodes(steps), grid.levels(steps).double().to(x.device)
    for i, (s, t) in enumerate(itertools.pairwise(levels)):
        e = _slope(denoise, x, s)
        if i < 3:
            middle = grid((taus[i] + taus[i + 1]) / 2).to(x.device)
            e2 = _slope(denoise, x + (middle - s) * e, middle)
            e3 = _slope(denoise, x + (middle - s) * e2, middle)
            e4 = _slope(denoise, x + (t - s) * e3, t)
            combined = (e + 2 * e2 + 2 * e3 + e4) / 6
        else:
            e1, e2, e3 = slopes[-1], slopes[-2], slopes[-3]
            combined = (55 * e - 59 * e1 + 37 * e2 - 9 * e3) / 24
        slopes.append(e)
        x = x + (t - s) * combined
        yield x


def s_pndm_steps(nfe: int, to_zero: bool = False) -> int:
    """Steps that cost `nfe` evaluations, steps + 1."""
    if to_zero or nfe < 2:
        raise ValueError(f"S-PNDM ends at a level above 0 and needs at least 2 evaluations, and {nfe} was asked for")
    return nfe - 1


def f_pndm_steps(nfe: int, to_zero: bool = False) -> int:
    """Steps that cost `nfe` evaluations, steps + 9."""
    if to_zero or nfe < 13:
        raise ValueError(f"F-PNDM ends at a level above 0 and needs at least 13 evaluations, and {nfe} was asked for")
    return nfe - 9


S_PNDM = Sampler("S-PNDM", s_pndm, s_pndm_steps, to_zero=False)
F_PNDM = Sampler("F-PNDM", f_pndm, f_pndm_steps, to_zero=False)
