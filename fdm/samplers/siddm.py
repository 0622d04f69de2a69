"""The steps of denoising diffusion GANs and of SIDDM: a drawn clean image, and the posterior given it.

Xiao et al. 2022 (arXiv 2112.07804, section 3), Xu et al. 2023 (arXiv 2306.12511). With the mean of the clean image in
place of a draw it would be DDIM with eta = 1. The released UFO-DiT noises the drawn image forward to the lower level
instead, in its training and in its sampling.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fdm.process import ladder, schedule
from fdm.samplers.contract import Noise, Sampler, one_a_step
from fdm.samplers.grids import Grid


class Ladder(Grid):
    """The levels of `process.ladder`. Raises ValueError where it is not to end at zero noise."""

    def __init__(self, low: float, high: float, to_zero: bool = False) -> None:
        super().__init__(low, high, to_zero)
        if not to_zero:
            raise ValueError("the ladder ends at zero noise")

    def __call__(self, tau: Tensor | float) -> Tensor:
        """sigma(tau), float64, for tau in [0, 1], from `high` to 0."""
        return schedule.sigma_vp(1 - torch.as_tensor(tau, dtype=torch.float64)).clamp(max=self.high)

    def nodes(self, steps: int) -> Tensor:
        """The values of tau of the levels above 0, float64 (steps,)."""
        return torch.arange(steps, dtype=torch.float64) / steps

    def levels(self, steps: int) -> Tensor:
        """The levels of that many steps, falling, (steps + 1,)."""
        return ladder.levels(steps, self.high).flip(0)


def siddm(denoise: Any, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step. `denoise` has to be a generator's.

    Raises ValueError for a generator that was trained for another number of steps.
    """
    if noise is None:
        raise ValueError("drawn images need a source of noise")
    if not hasattr(denoise, "generated"):
        raise ValueError("SIDDM draws with a generator, a network that was trained for it")
    if steps != denoise.steps:
        raise ValueError(f"the generator was trained for {denoise.steps} steps, and {steps} were asked for")
    x = x.double()
    yield x
    for i, (s, t) in enumerate(itertools.pairwise(grid.levels(steps).double().to(x.device))):
        clean = denoise.generated(x, s, noise(steps + i)).double()
        unit = noise(i).double()
        x = clean + t * unit if denoise.noised_forward else ladder.posterior(x, clean, s, t, unit)
        yield x


def steps_to_zero(nfe: int, to_zero: bool) -> int:
    """Steps of one evaluation each, on a grid that ends at 0."""
    if not to_zero:
        raise ValueError("a drawn image is clean: the grid ends at 0")
    return one_a_step(nfe, to_zero)


SIDDM = Sampler("SIDDM", siddm, steps_to_zero, grid="ladder", flows=False, consistent=False)
