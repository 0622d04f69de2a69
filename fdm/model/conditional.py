"""Denoisers that are given an estimate of the image beside x, for super-resolution in the manner of DoSSR.

The network gets both channel by channel, c_in x and the estimate, and the first half of its output is used.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fdm.model.denoiser import Denoiser
from fdm.process.frameworks import coefficients


class ConditionalDenoiser(Denoiser):
    """D(x; sigma | estimate); `model` is a UNet of twice as many channels as the images have.

    `given` says how the estimate came about, `task` and `noise`, and whether the clean image in x moves to it, `shift`.
    """

    def __init__(self, model: nn.Module, given: dict[str, Any], **preconditioning: Any) -> None:
        super().__init__(model, **preconditioning)
        self.given = given

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""
        return self.model.channels // 2, self.model.resolution, self.model.resolution

    @property
    def condition(self) -> tuple[int, int, int]:  # type: ignore[override]
        """Shape of the estimate."""
        return self.shape

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Expected clean image, float32 (N, C, H, W), given x and the estimate `condition`, (N, C, H, W) both.

        x is at the noise levels sigma, (N,) or (), around the clean image; with a shift, around what this has become
        at them: see `fdm.process.shift`. Raises ValueError without an estimate.
        """
        if condition is None:
            raise ValueError("this denoiser needs an estimate beside x")
        x, sigma = x.float(), sigma.float().reshape(-1, 1, 1, 1)
        c = coefficients(self.framework, self.kernel, sigma, self.multiplier, self.ve_multiplier, self.tau)
        seen = torch.cat([c.c_in * x, condition.float()], 1)
        F = self.model(seen, c.c_noise.flatten().expand(len(x)), class_labels, augment_labels)
        return c.c_skip * x + c.c_out * F[:, : self.shape[0]].float()
