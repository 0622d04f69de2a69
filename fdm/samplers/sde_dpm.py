"""SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, appendix; released with the solver), in the noise level.

The reverse process with as much noise as Langevin's: its linear part solved exactly, D followed along lambda = -ln s by
the step before. Of first order, as in its first step, it is DDIM with eta = 1.
"""

import itertools
from collections.abc import Iterator

from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler, one_a_step
from fdm.samplers.grids import Grid


def sde_dpm_2m(denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step. `noise` is needed; a step to zero is D itself."""
    if noise is None:
        raise ValueError("a stochastic solver needs a source of noise")
    x = x.double()
    yield x
    before: tuple[Tensor, Tensor] | None = None  # D of the last step, and its level
    for i, (s, t) in enumerate(itertools.pairwise(grid.levels(steps).double().to(x.device))):
        D = denoise(x, s).double()
        if t == 0:
            x = D
        else:
            kept, ahead = (t / s) ** 2, D
            if before:
                ahead = D + (s / t).log() / (before[1] / s).log() / 2 * (D - before[0])  # D at the middle of the step
            x = kept * x + (1 - kept) * ahead + t * (1 - kept).sqrt() * noise(i).double()
        before = D, s
        yield x


SDE_DPM_2M = Sampler("SDE-DPM-Solver++(2M)", sde_dpm_2m, one_a_step, to_zero=False, consistent=False)
