"""Samples of a trained network: the same latents for every model, whatever the batch size and the processes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fdm.data import to_uint8
from fdm.names import Sampler
from fdm.preconditioning import Denoiser
from fdm.samplers import SAMPLERS

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


def noise_range(denoiser: Denoiser, sigma_max: float = SIGMA_MAX) -> tuple[float, float]:
    """The sampler's lowest and highest noise level for this denoiser, the latter at most `sigma_max`."""
    low, high = denoiser.sigma_range
    return max(SIGMA_MIN, low), min(sigma_max, high)


def trajectory(
    denoiser: Denoiser,
    seeds: range,
    sampler: Sampler,
    nfe: int,
    device: str = "cpu",
    sigma_max: float = SIGMA_MAX,
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), from the noise to the samples of `seeds`, in `nfe` evaluations."""
    net: Any = denoiser.model
    latents, labels = draw_latents(seeds, (net.channels, net.resolution, net.resolution), net.label_dim)
    one_hot = torch.eye(net.label_dim)[labels].to(device) if net.label_dim else None

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(x, sigma, one_hot)

    yield from SAMPLERS[sampler](D, latents.to(device), *noise_range(denoiser, sigma_max), nfe)


@torch.inference_mode()
def sample(
    denoiser: Denoiser,
    seeds: range,
    sampler: Sampler,
    nfe: int,
    device: str = "cpu",
    sigma_max: float = SIGMA_MAX,
) -> Tensor:
    """The samples of `seeds` as one batch, uint8 (N, C, H, W) on the CPU."""
    *_, x = trajectory(denoiser, seeds, sampler, nfe, device, sigma_max)
    return to_uint8(x).cpu()
