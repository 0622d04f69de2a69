"""How the noise level is drawn, how the squared error is weighted, and FDM's warm-up of that weight."""

import torch
from torch import Tensor

from fdm import kernels
from fdm.names import Framework
from fdm.preconditioning import SIGMA_DATA, SIGMA_RANGE, Denoiser

P_MEAN, P_STD = -1.2, 1.2  # EDM's log-normal law of sigma (arXiv 2206.00364, Table 1)
CEILING_START, CEILING_END = 5.0, 500.0  # FDM's warm-up, claim C5


def draw(framework: Framework, n: int, generator: torch.Generator) -> Tensor:
    """The n random numbers behind n noise levels, (n, 1, 1, 1): standard normal for EDM, uniform else."""
    law = torch.randn if framework == "edm" else torch.rand
    return law(n, 1, 1, 1, generator=generator, device=generator.device)


def sigma_of_draw(framework: Framework, u: Tensor) -> Tensor:
    """Training noise level for a draw u: log-normal for EDM; uniform in t for VP; log-uniform for VE."""
    if framework == "edm":
        return (u * P_STD + P_MEAN).exp()
    if framework == "vp":
        return kernels.sigma_vp(1 + u * (kernels.T_MIN - 1))
    low, high = SIGMA_RANGE["ve"]
    return low * (high / low) ** u


def weight(framework: Framework, sigma: Tensor) -> Tensor:
    """Loss weight lambda(sigma): (sigma^2 + sigma_d^2)/(sigma sigma_d)^2 for EDM, 1/sigma^2 for VP and VE."""
    if framework == "edm":
        return (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    return 1 / sigma**2


def weight_ceiling(step: int, warmup_steps: int) -> float | None:
    """Ceiling on the loss weight at optimiser step `step` = 0, 1, ..., or None once the warm-up is over.

    It grows geometrically, 5 (500/5)^(step/warmup_steps). The published code counts calls of the loss on each
    process and forgets the count when it resumes; here it is the optimiser step, which the training state holds.
    """
    if step >= warmup_steps:
        return None
    return CEILING_START * (CEILING_END / CEILING_START) ** (step / warmup_steps)


def loss(
    denoiser: Denoiser,
    images: Tensor,
    u: Tensor,
    unit_noise: Tensor,
    class_labels: Tensor | None = None,
    augment_labels: Tensor | None = None,
    ceiling: float | None = None,
    framework: Framework | None = None,
) -> Tensor:
    """Weighted squared error for each pixel, the shape of `images` (N, C, H, W), which lie in [-1, 1].

    `u` (N, 1, 1, 1) comes from `draw`; `unit_noise` is standard normal, of the shape of the images; `ceiling`
    clamps the loss weight. Without `framework`, the denoiser's own is used.
    """
    framework = framework or denoiser.framework
    sigma = sigma_of_draw(framework, u)
    w = weight(framework, sigma)
    if ceiling is not None:
        w = w.clamp(max=ceiling)
    D = denoiser(images + sigma * unit_noise, sigma, class_labels, augment_labels)
    return w * (D - images) ** 2
