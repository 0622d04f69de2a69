"""CCDF, Come-Closer-Diffuse-Faster (Chung et al. 2022, arXiv 2112.05146): start from a noised estimate.

x = estimate + sigma_0 z, and from there a sampler's steps. After each step to the level t what was measured is put back
with as much noise: x <- (I - P) x + P (estimate + t z). P is a projection, so that neither step lets two starts move
apart, as long as dD/dx <= 1.
"""

import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fdm.model.denoiser import Denoise
from fdm.samplers import GRIDS, SAMPLERS
from fdm.samplers.contract import Noise, Sampler
from fdm.samplers.grids import Grid
from fdm.samplers.noise import UnitNoise
from fdm.tasks.generation import draw_latents, noise_range
from fdm.tasks.physics import Measurement

DATA = ("as published", "known noise", "none")  # what is put back, see `walk`
SAMPLER = "ddim"  # where none is named
APART = 2**40  # where the steps of the noise that is put back begin, apart from the sampler's own


def walk(
    D: Any, sampler: Sampler, x: Tensor, measurement: Measurement | None, grid: Grid, steps: int, noise: Noise,
    data: str = "as published", **options: Any,
) -> Iterator[Tensor]:  # fmt: skip
    """Yield x, float64 (N, C, H, W), as given and after each step of a sampler with what was measured put back.

    `data`: `as published`, with noise of the level t whatever noise the measurement has, so that known pixels are in
    the end as they were measured; `known noise`, with as much as brings the measurement's own to t, and nothing below
    it; `none`. `noise(APART + i)` is that of step i. x is changed in place, which a sampler goes on from.
    """
    levels, walked = grid.levels(steps).tolist(), sampler.sample(D, x, grid, steps, noise, **options)
    estimate = None if measurement is None else measurement.estimate.to(x.device)
    for i, (x, level) in enumerate(zip(walked, levels, strict=True)):
        if i and measurement is not None and estimate is not None and data != "none":
            own = measurement.level if data == "known noise" else 0.0
            if level >= own:
                up = max(level**2 - own**2, 0.0) ** 0.5
                given = estimate + up * noise(APART + i).double() if up else estimate
                x += measurement.project(given - x)
        yield x


def restore(
    denoiser: Denoise, measurement: Measurement, nfe: int, seeds: range, sigma_0: float, sampler: str = SAMPLER,
    data: str = "as published", grid: str | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    """Restorations, float64 (N, C, H, W), in `nfe` evaluations from the noise level sigma_0, ending without noise.

    A denoiser with a condition is given the estimate. Raises ValueError where the sampler cannot make `nfe`.
    """
    entry, device = SAMPLERS[sampler], measurement.y.device
    low, high = noise_range(denoiser, sigma_0)
    levels = GRIDS[grid or entry.grid](low, high, True)
    z, _ = draw_latents(seeds, denoiser.shape, 0)
    D: Any = denoiser
    if denoiser.condition is not None:
        D = functools.partial(D, condition=measurement.estimate)
    x = measurement.estimate + high * z.to(device).double()
    noise = UnitNoise(seeds, denoiser.shape, str(device))
    *_, x = walk(D, entry, x, measurement, levels, entry.steps(nfe, True), noise, data, **options)
    return x
