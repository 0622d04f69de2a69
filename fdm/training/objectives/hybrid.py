"""Objectives of denoisers that see auxiliary variables: CLD's hybrid score matching, and MDM's evidence lower bound.

Hybrid (Dockhorn et al. 2022, arXiv 2112.07068, section 3.1): given a clean pixel, what its velocity is in the beginning
is integrated out, as otherwise the score at small times would be dominated by it.
"""

import math

import torch
from torch import Tensor, nn

from fdm.model.joint import BETA, LEVELS, TIMES, JointDenoiser, noise_scale
from fdm.process.multivariate import Multivariate
from fdm.training.engine import Batch, Engine, Losses
from fdm.training.objectives.denoising import Denoising


def perturbed(process: Multivariate, images: Tensor, B: Tensor, unit_noise: Tensor) -> Tensor:
    """y, float64 (N, C, H, W, K), of clean images (N, C, H, W) at B (N,); `unit_noise` is (N, C, H, W, K)."""
    c = process.coefficients(B)[:, None, None, None, :, 0]
    root = torch.linalg.cholesky(process.covariance(B))[:, None, None, None]
    return c * images.double()[..., None] + (root @ unit_noise.double()[..., None])[..., 0]


def hybrid(
    model: nn.Module,
    process: Multivariate,
    images: Tensor,
    u: Tensor,
    unit_noise: Tensor,
    class_labels: Tensor | None = None,
    augment_labels: Tensor | None = None,
) -> Tensor:
    """Squared error of the velocity's noise for each pixel, of the shape of `images` (N, C, H, W), in [-1, 1].

    `model` is a JointDenoiser of CLD's `process`, wrapped or not. `u` (N, 1, 1, 1) is uniform in [0, 1]: where in CLD's
    time. `unit_noise` is (N, C, H, W, K).
    """
    process, (first, last) = process.to(images.device), TIMES
    B = BETA * (first + u.flatten().double() * (last - first))
    S = process.covariance(B)
    towards = torch.linalg.solve(S, process.coefficients(B)[..., 0])[:, 1]
    D = model(perturbed(process, images, B, unit_noise), None, class_labels, augment_labels, B)
    return ((towards * noise_scale(S)) ** 2).reshape(-1, 1, 1, 1) * (D - images) ** 2


def bound(
    model: nn.Module,
    process: Multivariate,
    images: Tensor,
    u: Tensor,
    unit_noise: Tensor,
    class_labels: Tensor | None = None,
    augment_labels: Tensor | None = None,
) -> Tensor:
    """What the evidence lower bound falls short of 0 by, for each pixel, nats, of the shape of `images` (N, C, H, W).

    Singhal et al. 2023 (arXiv 2302.07261), with a level drawn for each image in place of the integral: log-uniform in
    sigma, by which the squared error of the noise has the same weight everywhere. At given levels the bound of every
    process is the same but for its prior gap. The gradient reaches the process by that, and by what the network makes
    of its variables.
    """
    process = process.to(images.device)
    low, high = LEVELS["mdm"]
    sigma = (math.log(low) + u.flatten().double() * math.log(high / low)).exp()
    B = _at(process, sigma)
    D = model(perturbed(process, images, B, unit_noise), None, class_labels, augment_labels, B)
    drawn = math.log(high / low) / sigma**2
    seen = math.log(low) + (1 + math.log(2 * math.pi)) / 2  # the pixel from what y says in the end
    gap = process.prior_gap(_at(process, torch.tensor(high, device=images.device)), images.double().square())
    return drawn.reshape(-1, 1, 1, 1) * (D - images) ** 2 + seen + gap


def _at(process: Multivariate, sigma: Tensor) -> Tensor:
    """B at the levels sigma, with the gradient that it has as sigma stays: of the implicit function."""
    B = process.times(sigma)
    reached, slope = process.channel(B)[1], process.weight(B) * sigma**3  # of sigma over B
    return B - (reached - reached.detach()) / slope.detach()


class Hybrid(Denoising):
    """The objective of a run that learns D of a pixel and its auxiliary variables, and MDM's process with it."""

    denoiser: JointDenoiser

    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """The random numbers of a batch of n images, (n, ...) each."""
        u = torch.rand(n, 1, 1, 1, generator=generator, device=generator.device)
        K = len(self.denoiser.process.m)
        return {"u": u, "noise": torch.randn(n, *shape, K, generator=generator, device=generator.device)}

    def step(self, engine: Engine, batch: Batch) -> Losses:
        """Take one optimiser step on a part of a batch, or add to its gradients; returns the mean loss."""
        of = bound if self.denoiser.learned else hybrid
        with engine.part() as models:
            model = models["denoiser"]
            each = of(
                model, self.denoiser.process, batch.images, batch.random["u"], batch.random["noise"],
                batch.class_labels, batch.augment_labels,
            )  # fmt: skip
            engine.descend("denoiser", each.sum() / len(batch.images))
        return {"loss": each.detach().mean()}
