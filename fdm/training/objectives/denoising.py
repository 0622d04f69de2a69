"""The weighted squared error of D, as EDM, VP and VE train it, with FDM's warm-up of the weight."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fdm.model import checkpoints
from fdm.model.denoiser import Denoiser
from fdm.params import Framework, RunParams, TrainingParams
from fdm.process import momentum
from fdm.process.frameworks import FRAMEWORKS
from fdm.training.engine import Batch, Engine, Losses


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

    `u` (N, 1, 1, 1) comes from the framework's `draw`; `unit_noise` is standard normal, of the shape of the images;
    `ceiling` clamps the loss weight. Without `framework`, the denoiser's own is used.
    """
    process = FRAMEWORKS[framework or denoiser.framework]
    sigma = process.sigma(u)
    w = process.weight(sigma)
    if ceiling is not None:
        w = w.clamp(max=ceiling)
    D = denoiser(images + sigma * unit_noise, sigma, class_labels, augment_labels)
    return w * (D - images) ** 2


class Denoising:
    """The objective of a run that learns D: one network, one optimiser."""

    def __init__(
        self,
        description: dict[str, Any],
        run: RunParams,
        par: TrainingParams,
        device: torch.device,
        start: Path | None = None,
    ) -> None:
        self.run = run
        # channels_last and fused Adam are the faster on a CPU at 8x8 (1.1 times) and at 32x32 (1.3 times), as on GPUs.
        self.denoiser = checkpoints.build(description).to(device).to(memory_format=torch.channels_last).train()
        if start:
            self.denoiser.load_state_dict(checkpoints.load(start)[0].state_dict())
        self.ema = checkpoints.build(description).to(device).to(memory_format=torch.channels_last).eval()
        self.ema.requires_grad_(False).load_state_dict(self.denoiser.state_dict())
        weights = self.denoiser.parameters()
        self.adam = torch.optim.Adam(weights, lr=par.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def modules(self) -> dict[str, nn.Module]:
        """Networks that learn, by name."""
        return {"denoiser": self.denoiser}

    def averages(self) -> dict[str, nn.Module]:
        """Averages of them over the training, by the same names; the first is what is kept as a checkpoint."""
        return {"denoiser": self.ema}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """What steps them, by the same names."""
        return {"denoiser": self.adam}

    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """The random numbers of a batch of n images, (n, ...) each."""
        u = FRAMEWORKS[self.run.framework].draw(n, generator)
        return {"u": u, "noise": torch.randn(n, *shape, generator=generator, device=generator.device)}

    def step(self, engine: Engine, batch: Batch) -> Losses:
        """Take one optimiser step on a part of a batch, or add to its gradients; returns the mean loss."""
        ceiling = momentum.weight_ceiling(batch.step, self.run.warmup_steps)
        with engine.part() as models:
            model = models["denoiser"]
            each = loss(
                model, batch.images, batch.random["u"], batch.random["noise"], batch.class_labels, batch.augment_labels,
                ceiling, self.run.framework,
            )  # fmt: skip
            engine.descend("denoiser", each.sum() / len(batch.images))
        return {"loss": each.detach().mean()}
