"""DDPM's ancestral sampling with its larger variance (Ho et al. 2020, arXiv 2006.11239, section 3.2), in sigma.

Of a step from s to t the mean is DDIM's with eta = 1, and the variance that of the forward chain, 1 - a_s / a_t with
a = 1 / (1 + sigma^2), which DDIM's paper calls sigma hat. It is of the VP chain, and unlike eta not free of scale.
"""

import itertools
from collections.abc import Iterator

from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler, one_a_step
from fdm.samplers.grids import Grid


def ddpm(denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step. `noise` is needed; a step to zero adds none."""
    if noise is None:
        raise ValueError("ancestral sampling needs a source of noise")
    x = x.double()
    yield x
    for i, (s, t) in enumerate(itertools.pairwise(grid.levels(steps).double().to(x.device))):
        kept = (t / s) ** 2
        x = kept * x + (1 - kept) * denoise(x, s).double()
        if t > 0:
            x = x + ((s**2 - t**2) * (1 + t**2) / (1 + s**2)).sqrt() * noise(i).double()
        yield x


DDPM = Sampler("DDPM, large variance", ddpm, one_a_step, consistent=False)
