"""Denoiser preconditioning for framework (VP, VE, EDM) x kernel (baseline, FDM).

D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), with the coefficients of EDM's Table 1 (arXiv 2206.00364).
FDM changes c_in alone: it becomes the scale s of the critically damped process (arXiv 2306.06991).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fdm import kernels
from fdm.names import Framework, Kernel, Tau, VEMultiplier

SIGMA_DATA = 0.5  # standard deviation that EDM assumes of images scaled to [-1, 1]
M_VP = 1000  # VP's networks count time from 0 to M - 1


def _sigma_vp_float32(t: float) -> float:
    return kernels.sigma_vp(torch.tensor(t, dtype=torch.float32)).item()


# The noise levels that each framework trains on; tau in FDM's c_in runs linearly over them. VP's are in float32,
# where the published code computes them: at t = 1e-5 that is 9.77e-4, and 1.00e-3 in exact arithmetic.
SIGMA_RANGE: dict[str, tuple[float, float]] = {
    "vp": (_sigma_vp_float32(kernels.T_MIN), _sigma_vp_float32(1.0)),
    "ve": (0.02, 100.0),
    "edm": (0.002, 80.0),
}


class Coefficients(NamedTuple):
    """The four coefficients of D, each of the shape of the sigma they were asked for."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def coefficients(
    framework: Framework,
    kernel: Kernel,
    sigma: Tensor,
    multiplier: float = 1.0,
    ve_multiplier: VEMultiplier = "as published",
    tau: Tau = "sigma",
) -> Coefficients:
    """Preconditioning coefficients at the noise levels sigma > 0 (any shape).

    `multiplier` is FDM's m. VE's published code ignores it, so that c_in uses m = 1 whatever is asked;
    `ve_multiplier="as derived"` uses it. FDM's tau is linear in sigma, as published; `tau="time"` takes the
    framework's own time in [0, 1] instead: t(sigma) for VP, the logarithm of sigma for VE; EDM's is sigma.
    """
    if framework == "edm":
        variance = sigma**2 + SIGMA_DATA**2
        c_skip = SIGMA_DATA**2 / variance
        c_out = sigma * SIGMA_DATA / variance.sqrt()
        c_noise = sigma.log() / 4
        c_in = 1 / variance.sqrt()
    elif framework == "vp":
        c_skip = torch.ones_like(sigma)
        c_out = -sigma
        c_noise = (M_VP - 1) * kernels.t_vp(sigma)
        c_in = 1 / (sigma**2 + 1).sqrt()
    else:
        c_skip = torch.ones_like(sigma)
        c_out = sigma
        c_noise = (0.5 * sigma).log()
        c_in = torch.ones_like(sigma)
    if kernel == "fdm":
        low, high = SIGMA_RANGE[framework]
        if framework == "ve" and ve_multiplier == "as published":
            multiplier = 1.0
        time = (sigma - low) / (high - low)
        if tau == "time" and framework == "vp":
            time = kernels.t_vp(sigma)
        elif tau == "time" and framework == "ve":
            time = (sigma / low).log() / math.log(high / low)
        c_in = kernels.scale_fdm(time, multiplier)
    return Coefficients(c_skip, c_out, c_in, c_noise)


class Denoiser(nn.Module):
    """D(x; sigma): the raw network F (`model`) between its preconditioning coefficients."""

    def __init__(
        self,
        model: nn.Module,
        framework: Framework,
        kernel: Kernel,
        multiplier: float = 1.0,
        ve_multiplier: VEMultiplier = "as published",
        tau: Tau = "sigma",
    ) -> None:
        super().__init__()
        self.model = model
        self.framework: Framework = framework
        self.kernel: Kernel = kernel
        self.multiplier = multiplier
        self.ve_multiplier: VEMultiplier = ve_multiplier
        self.tau: Tau = tau

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest noise level that a sampler may ask for; EDM's baseline has no bounds."""
        if self.framework == "edm" and self.kernel == "baseline":
            return 0.0, math.inf
        return SIGMA_RANGE[self.framework]

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
        c = coefficients(self.framework, self.kernel, sigma, self.multiplier, self.ve_multiplier, self.tau)
        noise_labels = c.c_noise.flatten().expand(x.shape[0])
        F = self.model(c.c_in * x, noise_labels, class_labels, augment_labels)
        return c.c_skip * x + c.c_out * F.float()
