"""The contract of a denoiser, and the trained one: a raw network between its preconditioning coefficients."""

import math
from typing import Any, Protocol

from torch import Tensor, nn

from fdm.params import Framework, Kernel, Tau, Variant, VEMultiplier
from fdm.process.frameworks import FRAMEWORKS, SIGMA_DATA, coefficients


class Denoise(Protocol):
    """What samplers, scoring and pictures ask of a denoiser D(x; sigma), trained or exact."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""

    @property
    def classes(self) -> int:
        """Number of classes that it is told, 0 for none."""

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest noise level that may be asked for."""

    @property
    def condition(self) -> tuple[int, int, int] | None:
        """Shape of an image that it is given beside x, or None."""

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Expected clean image (N, C, H, W) given x (N, C, H, W) at noise levels sigma, (N,) or ().

        `class_labels` is one-hot, (N, classes).
        """


class Denoiser(nn.Module):
    """D(x; sigma): the raw network F (`model`) between its preconditioning coefficients."""

    condition = None

    def __init__(
        self,
        model: nn.Module,
        framework: Framework,
        kernel: Kernel,
        multiplier: float = 1.0,
        ve_multiplier: VEMultiplier = "as published",
        tau: Tau = "sigma",
        variant: Variant | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.framework: Framework = framework
        self.kernel: Kernel = kernel
        self.multiplier = multiplier
        self.ve_multiplier: VEMultiplier = ve_multiplier
        self.tau: Tau = tau
        self.variant: Variant | None = variant

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""
        return self.model.channels, self.model.resolution, self.model.resolution

    @property
    def classes(self) -> int:
        """Number of classes that it is told, 0 for none."""
        return self.model.label_dim

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest noise level that a sampler may ask for; EDM's baseline has no bounds."""
        process = FRAMEWORKS[self.framework]
        if not process.bounded and self.kernel == "baseline":
            return 0.0, math.inf
        return process.sigma_range

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Expected clean image, float32, (N, C, H, W), given x (N, C, H, W) at noise levels sigma, (N,) or ().

        `class_labels` is one-hot (N, classes); `augment_labels` (N, 9) comes from the augmentation.
        """
        x = x.float()
        sigma = sigma.float().reshape(-1, 1, 1, 1)
        c = coefficients(
            self.framework, self.kernel, sigma, self.multiplier, self.ve_multiplier, self.tau, self.variant
        )
        noise_labels = c.c_noise.flatten().expand(x.shape[0])
        c_out = c.c_out
        if self.variant in ("radius embedded", "radius output"):
            usual = (sigma**2 + SIGMA_DATA**2).sqrt()
            relative = x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() / usual  # 1 +- 1 / sqrt(2 d) for noise alone
            if self.variant == "radius output":
                c_out = c_out * relative
            else:  # of standard deviation 1 for noise alone
                augment_labels = math.sqrt(2 * x[0].numel()) * relative.log().flatten(1)
        F = self.model(c.c_in * x, noise_labels, class_labels, augment_labels)
        return c.c_skip * x + c_out * F.float()
