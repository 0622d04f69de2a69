"""Adams and Bashforth's methods on dx/dsigma: past slopes combined, one evaluation a step.

`ipndm` has the classical constant weights, as improved PNDM without its warm-up steps has them (Zhang and Chen 2022,
arXiv 2204.13902, App. H.2); `ab` has those of the actual steps, integrals of the slopes' interpolating polynomial,
which keep the order on any grid. Both begin with Euler's step and take in one slope more at each step.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler, one_a_step
from fdm.samplers.grids import Grid

# Of the newest slope first; steps of equal length.
CONSTANT = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
MOST = float(len(CONSTANT))


def _multistep(denoise: Denoise, x: Tensor, grid: Grid, steps: int, order: int, constant: bool) -> Iterator[Tensor]:
    x, slopes, levels = x.double(), list[Tensor](), grid.levels(steps).double()
    yield x
    for i, (s, t) in enumerate(itertools.pairwise(levels.to(x.device))):
        slopes = [(x - denoise(x, s).double()) / s, *slopes[: order - 1]]
        n = len(slopes)
        weights = CONSTANT[n - 1] if constant else adams_bashforth(levels[i - n + 1 : i + 2].tolist())
        x = x + (t - s) * sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
        yield x


def adams_bashforth(levels: list[float]) -> list[float]:
    """Weights of the slopes at all levels but the last, newest first, for the step from the last but one to the last.

    They integrate the polynomial through the slopes exactly; their sum is 1.
    """
    *nodes, end = levels[::-1][1:][::-1] + levels[-1:]
    start, length = nodes[-1], end - nodes[-1]
    at = (np.array(nodes[::-1]) - start) / length  # the newest is at 0, the end at 1
    powers = np.arange(len(at))
    return np.linalg.solve(at[None] ** powers[:, None], 1 / (powers + 1)).tolist()


def ipndm(
    denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None, order: float = 4
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step; up to `order` slopes get constant weights."""
    yield from _multistep(denoise, x, grid, steps, round(order), constant=True)


def ab(
    denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None, order: float = 2
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step; up to `order` slopes get the weights of the grid."""
    yield from _multistep(denoise, x, grid, steps, round(order), constant=False)


IPNDM = Sampler("iPNDM", ipndm, one_a_step, to_zero=False, options={"order": (1, MOST)})
AB = Sampler("variable-step AB", ab, one_a_step, to_zero=False, options={"order": (1, MOST)})
