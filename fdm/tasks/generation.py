"""Samples of a denoiser: the same latents for every model, whatever the batch size and the processes."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fdm.data.datasets import to_uint8
from fdm.model.denoiser import Denoise
from fdm.samplers import GRIDS, SAMPLERS
from fdm.samplers.noise import UnitNoise

# The noise levels that the published sampling runs between, narrowed to what the denoiser was trained for.
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


def draw_latents(seeds: range, shape: tuple[int, int, int], classes: int) -> tuple[Tensor, Tensor]:
    """Standard normal latents (N, C, H, W) and class numbers (N,), sample i from seed seeds[i] alone."""
    latents, labels = torch.empty(len(seeds), *shape), torch.zeros(len(seeds), dtype=torch.int64)
    for i, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        latents[i] = torch.randn(shape, generator=generator)
        if classes:
            labels[i] = torch.randint(classes, (), generator=generator)
    return latents, labels


class Told:
    """A denoiser that is told the classes, (N, classes), once: what a sampler asks."""

    def __init__(self, denoiser: Denoise, one_hot: Tensor | None) -> None:
        self.denoiser, self.one_hot = denoiser, one_hot

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x; sigma)."""
        return self.denoiser(x, sigma, self.one_hot)

    def __getattr__(self, name: str) -> Any:
        """What some denoisers know besides D, such as `cumulants`; AttributeError of one that does not."""
        known = getattr(self.denoiser, name)
        return functools.partial(known, class_labels=self.one_hot) if callable(known) else known


def noise_range(denoiser: Denoise, sigma_max: float = SIGMA_MAX) -> tuple[float, float]:
    """The sampler's lowest and highest noise level for this denoiser, the latter at most `sigma_max`."""
    low, high = denoiser.sigma_range
    return max(SIGMA_MIN, low), min(sigma_max, high)


def trajectory(
    denoiser: Denoise,
    seeds: range,
    sampler: str,
    nfe: int,
    device: str = "cpu",
    sigma_max: float = SIGMA_MAX,
    grid: str | None = None,
    to_zero: bool | None = None,
    **options: Any,
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), from the noise to the samples of `seeds`, in `nfe` evaluations.

    `grid` and `to_zero` are the sampler's usual ones where they are not given. Raises ValueError for a number of
    evaluations that the sampler cannot make, and for options that it does not have.
    """
    entry = SAMPLERS[sampler]
    entry.check(options)
    to_zero = entry.to_zero if to_zero is None else to_zero
    steps = entry.steps(nfe, to_zero)
    latents, labels = draw_latents(seeds, denoiser.shape, denoiser.classes)
    one_hot = torch.eye(denoiser.classes)[labels].to(device) if denoiser.classes else None
    levels = GRIDS[grid or entry.grid](*noise_range(denoiser, sigma_max), to_zero)

    D = Told(denoiser, one_hot)
    x = latents.to(device).double() * levels.high
    yield from entry.sample(D, x, levels, steps, UnitNoise(seeds, denoiser.shape, device), **options)


@torch.inference_mode()
def sample(denoiser: Denoise, seeds: range, sampler: str, nfe: int, device: str = "cpu", **how: Any) -> Tensor:
    """The samples of `seeds` as one batch, uint8 (N, C, H, W) on the CPU; `how` is what `trajectory` takes besides."""
    *_, x = trajectory(denoiser, seeds, sampler, nfe, device, **how)
    return to_uint8(x).cpu()
