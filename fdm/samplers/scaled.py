"""Epsilon scaling on top of solvers of second order: is anything left for it to mend?

Divided by `scale`, the noise that D predicts is that of another denoiser, x - (x - D) / scale, which any solver takes.
"""

from collections.abc import Iterator

from torch import Tensor

from fdm.samplers.adams import IPNDM, ipndm
from fdm.samplers.contract import Denoise, Noise, Sampler
from fdm.samplers.dpm_multistep import DPM_2M, dpm_2m
from fdm.samplers.grids import Grid

SCALES = (0.8, 1.25)


def _scaled(denoise: Denoise, scale: float) -> Denoise:
    return lambda x, sigma: x - (x - denoise(x, sigma).double()) / scale


def scaled_ipndm(
    denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None, scale: float = 1.005
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step of iPNDM; `scale` 1 is iPNDM."""
    yield from ipndm(_scaled(denoise, scale), x, grid, steps)


def scaled_dpm_2m(
    denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None, scale: float = 1.005
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step of DPM-Solver++(2M); `scale` 1 is that."""
    yield from dpm_2m(_scaled(denoise, scale), x, grid, steps)


SCALED_IPNDM = Sampler(
    "iPNDM, scaled", scaled_ipndm, IPNDM.steps, to_zero=False, options={"scale": SCALES}, consistent=False
)
SCALED_DPM_2M = Sampler(
    "DPM-Solver++(2M), scaled", scaled_dpm_2m, DPM_2M.steps, to_zero=False, options={"scale": SCALES}, consistent=False
)
