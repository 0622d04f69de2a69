"""How well a denoiser denoises, noise level by noise level, and what it sees of its input there.

The measurement of the first rank: one training shows in it what distances of distributions do not show in five. Images
and noise are the same for all denoisers, so that differences between two of them are paired.
"""

import math

import torch
from torch import Tensor

from fdm.model.denoiser import Denoise, Denoiser
from fdm.process.frameworks import coefficients
from fdm.samplers.noise import UnitNoise


def levels(n: int = 24, low: float = 0.02, high: float = 80.0) -> Tensor:
    """Noise levels at which denoisers are compared, evenly spaced in the logarithm, float64 (n,), rising."""
    return torch.logspace(math.log10(low), math.log10(high), n, dtype=torch.float64)


@torch.inference_mode()
def squared_errors(
    denoiser: Denoise,
    images: Tensor,
    labels: Tensor,
    sigmas: Tensor,
    exact: Denoise | None = None,
    device: str = "cpu",
    batch: int = 256,
) -> Tensor:
    """Squared error of D, the mean over pixels, on each image at each noise level, float64 (levels, N).

    `images` are float (N, C, H, W) in [-1, 1] with classes `labels` (N,). Image i has the same noise at every level and
    for every denoiser. The error is that from the clean image; with an `exact` denoiser that from its D, which is what
    training could still remove: on average the difference of the two denoisers' errors, with less noise.
    """
    out = []
    for first in range(0, len(images), batch):
        part, seeds = images[first : first + batch].to(device), range(first, min(first + batch, len(images)))
        noise = UnitNoise(seeds, denoiser.shape, device)(0)
        told = torch.eye(denoiser.classes)[labels[first : first + batch]].to(device) if denoiser.classes else None
        rows = []
        for sigma in sigmas.tolist():
            x, level = part + sigma * noise, torch.tensor(sigma, device=device)
            target = part if exact is None else exact(x, level, told)
            difference = denoiser(x, level, told).double() - target.double()
            rows.append(difference.square().mean(dim=(1, 2, 3)).cpu())
        out.append(torch.stack(rows))
    return torch.cat(out, dim=1)


@torch.inference_mode()
def input_deviation(denoiser: Denoiser, images: Tensor, sigmas: Tensor) -> Tensor:
    """Standard deviation of what the raw network is given, c_in x, at each noise level, float64 (levels,).

    `images` are float (N, C, H, W) in [-1, 1]; that of noise is added to their own root mean square.
    """
    c = coefficients(
        denoiser.framework, denoiser.kernel, sigmas, denoiser.multiplier, denoiser.ve_multiplier, denoiser.tau
    )
    return c.c_in * (sigmas**2 + images.double().square().mean()).sqrt()


@torch.inference_mode()
def radius_slope(denoiser: Denoise, seeds: range, sigma: float, device: str = "cpu", step: float = 0.03) -> float:
    """How the amplitude of the predicted noise follows the radius of x, pure noise of level sigma: right is about 1.

    The derivative, by central differences of `step`, of the root mean square of (x - D) / sigma with respect to that of
    x / sigma, the mean over the latents of `seeds`. A denoiser that cannot tell how long x is has 0: what its latents
    are too long by then stays in its samples.
    """
    noise = UnitNoise(seeds, denoiser.shape)(0).to(device)
    noise = noise / noise.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    classes = torch.arange(len(seeds)) % max(denoiser.classes, 1)
    told = torch.eye(denoiser.classes)[classes].to(device) if denoiser.classes else None
    level, amplitudes = torch.tensor(sigma, device=device), []
    for radius in (1 + step, 1 - step):
        x = radius * sigma * noise
        predicted = (x.double() - denoiser(x, level, told).double()) / sigma
        amplitudes.append(predicted.square().mean(dim=(1, 2, 3)).sqrt())
    return ((amplitudes[0] - amplitudes[1]) / (2 * step)).mean().item()
