"""The weighted squared error of a denoiser that is given an estimate of the image, with DoSSR's shift or without.

As DoSSR trains (Cui et al. 2024, arXiv 2409.17778, section 3.3) but for its network and its loss: the squared error,
with the law of noise levels, the weights and the warm-up of the framework, so that the shift is all that differs.
"""

import torch
from torch import Tensor, nn

from fdm.params import Framework, GivenParams
from fdm.process import momentum, shift
from fdm.process.frameworks import FRAMEWORKS
from fdm.tasks import physics
from fdm.training.engine import Batch, Engine, Losses
from fdm.training.objectives.denoising import Denoising


def loss(
    model: nn.Module,
    images: Tensor,
    estimate: Tensor,
    u: Tensor,
    unit_noise: Tensor,
    framework: Framework,
    shifted: bool,
    class_labels: Tensor | None = None,
    augment_labels: Tensor | None = None,
    ceiling: float | None = None,
) -> Tensor:
    """Weighted squared error for each pixel, the shape of `images` (N, C, H, W), as is `estimate`; both in [-1, 1].

    `model` is a ConditionalDenoiser, wrapped or not. `u` (N, 1, 1, 1), `unit_noise` and `ceiling` are as those of
    `objectives.denoising.loss`.
    """
    process = FRAMEWORKS[framework]
    sigma = process.sigma(u)
    w = process.weight(sigma)
    if ceiling is not None:
        w = w.clamp(max=ceiling)
    moved = shift.eta(sigma).float() if shifted else 0.0
    x = images + moved * (estimate - images) + sigma * unit_noise
    D = model(x, sigma, class_labels, augment_labels, estimate)
    return w * (D - images) ** 2


def estimated(given: GivenParams, images: Tensor, unit_noise: Tensor) -> Tensor:
    """The estimate from a measurement of images (N, C, H, W) in [-1, 1], with noise from `unit_noise`; float32."""
    kind = physics.TASKS[given.task]
    A = kind.physics(tuple(images.shape[1:]), range(0)).to(images.device)  # type: ignore[arg-type]
    measurement = physics.Measurement(A, kind.gain, images, given.noise)
    # Unit noise that is projected is the measurement's but for its level.
    return measurement.project(images.double() + measurement.level * unit_noise.double()).float()


class Conditional(Denoising):
    """The objective of a run that learns D of an image and its estimate from block averages."""

    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """The random numbers of a batch of n images, (n, ...) each."""
        measured = torch.randn(n, *shape, generator=generator, device=generator.device)
        return super().draw(n, shape, generator) | {"measured": measured}

    def step(self, engine: Engine, batch: Batch) -> Losses:
        """Take one optimiser step on a part of a batch, or add to its gradients; returns the mean loss."""
        given = self.run.given
        assert given is not None
        estimate = estimated(given, batch.images, batch.random["measured"])
        ceiling = momentum.weight_ceiling(batch.step, self.run.warmup_steps)
        with engine.part() as models:
            model = models["denoiser"]
            each = loss(
                model, batch.images, estimate, batch.random["u"], batch.random["noise"], self.run.framework,
                given.shift, batch.class_labels, batch.augment_labels, ceiling,
            )  # fmt: skip
            engine.descend("denoiser", each.sum() / len(batch.images))
        return {"loss": each.detach().mean()}
