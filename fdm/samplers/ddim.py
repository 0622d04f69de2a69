"""DDIM (Song et al. 2020, arXiv 2010.02502) in the noise level sigma: Euler's method for eta = 0, ancestral for 1."""

import itertools
from collections.abc import Iterator

from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler, one_a_step
from fdm.samplers.grids import Grid


def ddim(
    denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None, eta: float = 0.0
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step.

    From s to t the noise is split into what is kept, of level down, and what is drawn anew, of level up = eta t
    sqrt(1 - t^2/s^2) (eq. 16). With `eta` above 0, `noise` is needed.
    """
    x = x.double()
    yield x
    for i, (s, t) in enumerate(itertools.pairwise(grid.levels(steps).double().to(x.device))):
        up = eta * t * (1 - t**2 / s**2).sqrt()
        down = (t**2 - up**2).sqrt()
        D = denoise(x, s).double()
        x = D + down / s * (x - D)
        if eta > 0:
            if noise is None:
                raise ValueError("eta above 0 needs a source of noise")
            x = x + up * noise(i).double()
        yield x


DDIM = Sampler("DDIM", ddim, one_a_step, options={"eta": (0, 1)})
