"""Fine-tuning through the sampler: the discrepancy of its samples from real images, in a space of features.

MMD-DDM (Aiello et al. 2023, arXiv 2301.07969): as many steps of DDIM as will be made later, with gradients through all
of them, and the unbiased MMD^2 with KID's kernel.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fdm.data.datasets import Dataset
from fdm.metrics.discrepancy import mmd2
from fdm.params import RunParams, TrainingParams
from fdm.samplers.ddim import ddim
from fdm.samplers.grids import Karras
from fdm.tasks.generation import noise_range
from fdm.training.engine import Batch, Engine, Losses
from fdm.training.objectives.denoising import Denoising

EVALUATIONS = 4  # of the network for a step of an image: forward, again for the gradient, and backward for two
CLIP = 0.5  # the largest norm of a gradient, as published


class Unrolled(nn.Module):
    """Samples of a denoiser after some steps of DDIM on its usual grid, with gradients through all of them.

    Where `checkpointed`, what a step computes is computed again for its gradient in place of being kept.
    """

    def __init__(self, denoiser: nn.Module, steps: int, levels: tuple[float, float], checkpointed: bool = True) -> None:
        super().__init__()
        self.denoiser, self.steps, self.grid, self.checkpointed = denoiser, steps, Karras(*levels), checkpointed

    def forward(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Samples, float64 (N, C, H, W), of standard normal latents (N, C, H, W)."""

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            if not self.checkpointed:
                return self.denoiser(x, sigma, class_labels)
            return checkpoint(self.denoiser, x, sigma, class_labels, use_reentrant=False)

        *_, x = ddim(denoise, latents.double() * self.grid.high, self.grid, self.steps)
        return x


class Discrepancy(Denoising):
    """The objective of a run that is fine-tuned for few steps of DDIM. Its batches are whole in every process."""

    def __init__(
        self,
        description: dict[str, Any],
        run: RunParams,
        par: TrainingParams,
        device: torch.device,
        start: Path | None,
        dataset: Dataset,
    ) -> None:
        from fdm.metrics.differentiable import FEATURES  # which takes seconds to import

        super().__init__(description, run, par, device, start)
        assert run.few_steps is not None and run.few_steps.features is not None
        self.features = FEATURES[run.few_steps.features](dataset, device)
        self.unrolled = Unrolled(self.denoiser, run.few_steps.steps, noise_range(self.denoiser))

    def modules(self) -> dict[str, nn.Module]:
        """Networks that learn, by name."""
        return {"denoiser": self.unrolled}

    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """The random numbers of a batch of n images, (n, ...) each."""
        return {"latents": torch.randn(n, *shape, generator=generator, device=generator.device)}

    def step(self, engine: Engine, batch: Batch) -> Losses:
        """Take one optimiser step; returns MMD^2 of the whole batch, whose samples have the classes of its images."""
        with torch.no_grad():
            real = self.features(batch.images)
        with engine.part() as models:
            made = self.features(models["denoiser"](batch.random["latents"], batch.class_labels))
            made, real = (_everybodys(engine, each) for each in (made, real))
            loss = mmd2(made, real, paired=batch.class_labels is not None)
            # Each process has the gradient of its own samples alone, and the mean over processes is taken.
            engine.descend("denoiser", loss * engine.accelerator.num_processes, CLIP)
        return {"loss": loss.detach()}


def _everybodys(engine: Engine, features: Tensor) -> Tensor:
    """The features of all processes' parts of a batch, those of this process with their gradient."""
    if engine.accelerator.num_processes == 1:
        return features
    every = engine.accelerator.gather(features.detach())
    first = engine.accelerator.process_index * len(features)
    return torch.cat([every[:first], features, every[first + len(features) :]])
