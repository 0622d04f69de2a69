"""Second and third cumulants of the clean pixels given x, besides D: by derivatives of D, or by heads on a network."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fdm.model.denoiser import Denoise, Denoiser
from fdm.model.unet import conv, group_norm
from fdm.process.frameworks import SIGMA_DATA

Targets = Literal["raw", "centred"]
Cumulants = tuple[Tensor, Tensor, Tensor]


class Differentiated:
    """A smooth denoiser with the cumulants that Tweedie's formulas give: k2 = s^2 dD/dx, k3 = s^4 d^2D/dx^2.

    Automatic derivatives along one pixel after another: exact for D as it is, learnt or not. Beside the one evaluation,
    each value of an image takes two passes back through it, the second through the derivative of the first.
    """

    condition = None

    def __init__(self, denoiser: Denoise) -> None:
        self.denoiser = denoiser
        self.shape, self.classes, self.sigma_range = denoiser.shape, denoiser.classes, denoiser.sigma_range

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """D(x; sigma)."""
        return self.denoiser(x, sigma, class_labels)

    @torch.inference_mode(False)
    def cumulants(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Cumulants:
        """First three cumulants of each clean pixel, of the shape of x (N, C, H, W); the first is D."""
        x, told = x.clone().requires_grad_(), None if class_labels is None else class_labels.clone()
        level = torch.as_tensor(sigma).clone().reshape(-1, 1, 1, 1)
        slopes, bends = torch.empty_like(x.detach()), torch.empty_like(x.detach())
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            D = self.denoiser(x, level.flatten(), told)
            for c, i, j in torch.cartesian_prod(*(torch.arange(side) for side in x.shape[1:])).tolist():
                (row,) = torch.autograd.grad(D[:, c, i, j].sum(), x, create_graph=True)
                (again,) = torch.autograd.grad(row[:, c, i, j].sum(), x, retain_graph=True)
                slopes[:, c, i, j], bends[:, c, i, j] = row.detach()[:, c, i, j], again[:, c, i, j]
        return D.detach(), level.double() ** 2 * slopes.detach(), level.double() ** 4 * bends.detach()


class Heads(nn.Module):
    """Two more outputs on the last features of a U-Net (N, width, H, W), as in GMS: normalised, SiLU, one convolution.

    They are silent in the beginning.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm, self.out = group_norm(width), conv(width, 2 * channels, 3, gain=0)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Second and third, (N, channels, H, W) each."""
        second, third = self.out(F.silu(self.norm(features))).chunk(2, dim=1)
        return second, third


def last_features(denoiser: Denoiser) -> nn.Module:
    """The layer of a U-Net whose input are its last features."""
    return denoiser.model.dec[f"{denoiser.model.resolution}x{denoiser.model.resolution}_aux_norm"]


def heads_for(denoiser: Denoiser) -> Heads:
    """Fresh heads that fit a denoiser."""
    return Heads(last_features(denoiser).num_channels, denoiser.shape[0])  # type: ignore[arg-type]


class Headed:
    """A network with heads: D and two cumulants in one evaluation.

    `raw` heads say E[e^2 | x] and E[e^3 | x] of the noise e, as published (arXiv 2311.00941). What the cumulants are
    then is a small difference of large numbers at high noise, and wrong by the network's own error times sigma.
    `centred` ones say the second and third power of (x0 - D) / s, s = sigma sigma_data / sqrt(sigma^2 + sigma_data^2),
    which are of the order of 1 at every level: cumulants where D is the mean, and about D where it is not.
    """

    condition = None

    def __init__(self, denoiser: Denoiser, heads: Heads, targets: Targets) -> None:
        self.denoiser, self.heads, self.targets = denoiser, heads, targets
        self.shape, self.classes, self.sigma_range = denoiser.shape, denoiser.classes, denoiser.sigma_range
        self.features = torch.empty(0)
        last_features(denoiser).register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, given: Any) -> None:
        (self.features,) = given

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """D(x; sigma)."""
        return self.denoiser(x, sigma, class_labels)

    def outputs(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """D, and what both heads say, (N, C, H, W) each."""
        D = self.denoiser(x, sigma, class_labels)
        second, third = self.heads(self.features.detach())
        return D, second.float(), third.float()

    def goals(self, x: Tensor, sigma: Tensor, D: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """What the heads are to say on average, from clean images (N, C, H, W)."""
        sigma = sigma.reshape(-1, 1, 1, 1)
        unit = (x - clean) / sigma if self.targets == "raw" else (clean - D) / _scale(sigma)
        return unit**2, unit**3

    def cumulants(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Cumulants:
        """First three cumulants of each clean pixel, float64 of the shape of x (N, C, H, W); the first is D."""
        D, second, third = (each.double() for each in self.outputs(x, sigma, class_labels))
        sigma = torch.as_tensor(sigma).double().reshape(-1, 1, 1, 1)
        if self.targets == "centred":
            return D, _scale(sigma) ** 2 * second, _scale(sigma) ** 3 * third
        e = (x - D) / sigma
        return D, sigma**2 * (second - e**2), -(sigma**3) * (third - 3 * e * second + 2 * e**3)


def _scale(sigma: Tensor) -> Tensor:
    return sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
