"""Two corrections that keep more of the noise than Euler's step does; both were made against exposure bias.

Epsilon scaling (Ning et al. 2024, arXiv 2308.15321) divides the predicted noise by `scale`. DCW corrects each step in
the bands of a wavelet transform, by a share of its distance from the prediction of the clean image. In the pixels and
with the share (s / t - 1) (1 - 1 / scale) of a step from s to t, the second is the first.
"""

import itertools
from collections.abc import Iterator

from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler, one_a_step
from fdm.samplers.grids import Grid
from fdm.samplers.wavelets import bands, image


def epsilon_scaling(
    denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None, scale: float = 1.005
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step; `scale` is the paper's lambda, 1 for Euler."""
    x = x.double()
    yield x
    for s, t in itertools.pairwise(grid.levels(steps).double().to(x.device)):
        x = x + (t - s) * (x - denoise(x, s).double()) / (s * scale)
        yield x


def dcw(
    denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None, low: float = 0.005, high: float = 0
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step.

    The share of the low band is `low` times s over the grid's highest level, that of the others `high` times 1 less
    that; as in the published code with Haar's wavelet, where `high` is 0.
    """
    x = x.double()
    yield x
    for s, t in itertools.pairwise(grid.levels(steps).double().to(x.device)):
        D = denoise(x, s).double()
        x = D + t / s * (x - D)
        along = s / grid.high
        shares = (low * along, *[high * (1 - along)] * 3)
        parts = [share * part for share, part in zip(shares, bands(x - D), strict=True)]
        x = x + image(parts, x.shape)
        yield x


EPSILON_SCALING = Sampler(
    "epsilon scaling", epsilon_scaling, one_a_step, options={"scale": (0.8, 1.25)}, consistent=False
)
DCW = Sampler("DCW", dcw, one_a_step, options={"low": (-1, 1), "high": (-1, 1)}, consistent=False)
