"""How large and how noisy the gradient of the denoising loss is, at one noise level or over those of training."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fdm.model.denoiser import Denoiser
from fdm.process.frameworks import FRAMEWORKS

Draw = Callable[[int], tuple[Tensor, Tensor]]  # batch number -> images, float (B, C, H, W), and classes (B,)


class Moments(NamedTuple):
    """Of the gradient of the weighted squared error, summed over pixels, of one image."""

    norm: float  # of its mean; 0 where that cannot be told from noise
    noise: float  # root of the trace of its covariance


def moments(
    denoiser: Denoiser, draw: Draw, batches: int, sigma: float | None = None, ceiling: float | None = None,
    device: str = "cpu",
) -> Moments:  # fmt: skip
    """Moments over `batches` batches of `draw`, with the weight 1 at a level sigma, or else as in the run's training.

    There `ceiling` clamps the weight, as a warm-up does. Batch i has the same noise for every denoiser.
    """
    process, weights = FRAMEWORKS[denoiser.framework], [*denoiser.parameters()]
    trained = [weight.requires_grad for weight in weights]
    gradients = []
    denoiser.requires_grad_(True)
    try:
        for number in range(batches):
            images, classes = draw(number)
            generator = torch.Generator().manual_seed(number)
            noise = torch.randn(images.shape, generator=generator)
            if sigma is None:
                level = process.sigma(process.draw(len(images), generator))
                w = process.weight(level).clamp(max=math.inf if ceiling is None else ceiling)
            else:
                level = torch.full((len(images), 1, 1, 1), sigma)
                w = torch.ones_like(level)
            told = torch.eye(denoiser.classes)[classes].to(device) if denoiser.classes else None
            x, images, level, w = (
                (images + level * noise).to(device),
                images.to(device),
                level.to(device),
                w.to(device),
            )
            loss = (w * (denoiser(x, level, told) - images) ** 2).sum() / len(images)
            # What is told of augmentations has no part here.
            parts = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            gradients.append(torch.cat([part.flatten().double().cpu() for part in parts]))
    finally:
        for weight, required in zip(weights, trained, strict=True):
            weight.requires_grad_(required)
    every = torch.stack(gradients)
    spread = every.var(dim=0).sum().item()  # of the mean over a batch
    norm = max(every.mean(0).square().sum().item() - spread / batches, 0.0) ** 0.5
    return Moments(norm, (spread * len(images)) ** 0.5)
