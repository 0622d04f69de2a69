"""A denoiser that draws clean images in place of their mean, and the critic that tells its draws from real ones.

As in denoising diffusion GANs (Xiao et al. 2022, arXiv 2112.07804) and SIDDM (Xu et al. 2023, arXiv 2306.12511): both
are networks of the size of the denoiser that the training starts from, and start from its weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fdm.model.denoiser import Denoiser
from fdm.model.unet import UNet, group_norm
from fdm.process.frameworks import SIGMA_DATA

LATENT = 16  # numbers of z


class Generator(Denoiser):
    """G(x; sigma, z): a denoiser whose network is told z, standard normal (N, 16), in place of augmentation labels.

    `steps` is the number of levels that it was trained for, of `process.ladder`. Without z it draws that of z = 0. Its
    draws go to the next lower level by the posterior, or `noised_forward` as it was trained in UFO's form.
    """

    def __init__(self, model: nn.Module, steps: int, noised_forward: bool = False, **preconditioning: Any) -> None:
        super().__init__(model, **preconditioning)
        self.steps, self.noised_forward = steps, noised_forward

    def generated(self, x: Tensor, sigma: Tensor, unit: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """A draw of the clean image, (N, C, H, W), given x (N, C, H, W) at sigma; z are the first numbers of `unit`.

        `unit` is standard normal, of the shape of x, and nothing else may be made of it.
        """
        return self(x, sigma, class_labels, unit.flatten(1)[:, :LATENT].float())

    def start(self, denoiser: Denoiser) -> None:
        """Begin as a denoiser that is the same but for z, which then changes nothing."""
        left = self.load_state_dict(denoiser.state_dict(), strict=False)
        assert left == (["model.map_augment.weight"], [])
        nn.init.zeros_(self.model.map_augment.weight)


class Critic(nn.Module):
    """A U-Net that tells whether images are real, and says beside it what is clean in them and what lies above them.

    It sees x and, where it judges pairs, the image that lies a level above; else zeros. Its preconditioning is EDM's,
    whatever that of the denoiser is.
    """

    def __init__(self, network: dict[str, Any], denoiser: Denoiser) -> None:
        """`network` are the arguments of the denoiser's UNet; the critic begins with its weights, where it has them."""
        super().__init__()
        self.channels = denoiser.shape[0]
        self.model = UNet(**network | {"channels": 2 * self.channels, "augment_dim": 0})
        known = denoiser.model.state_dict()
        with torch.no_grad():
            for name, weight in self.model.state_dict().items():
                part = weight.zero_() if weight.shape != known[name].shape else weight
                part[tuple(map(slice, known[name].shape))] = known[name]
        width = network["model_channels"] * network["channel_mult"][-1]
        self.norm, self.head = group_norm(width), nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, x: Tensor, sigma: Tensor, above: Tensor, x_above: Tensor | None = None, class_labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The logit that x is real, (N,), what is clean in it, and x a level above it, (N, C, H, W) both.

        x (N, C, H, W) is at the levels `sigma` and `x_above` at the levels `above`, (N, 1, 1, 1) each.
        """
        scale, scale_above = ((level**2 + SIGMA_DATA**2).sqrt() for level in (sigma, above))
        second = torch.zeros_like(x) if x_above is None else x_above / scale_above
        emb = self.model.embed((above.log() / 4).flatten(), class_labels, None)
        skips = self.model.encode(torch.cat([x / scale, second], 1), emb)
        logit = self.head(nn.functional.silu(self.norm(skips[-1])).mean((2, 3))).flatten()
        first, last = self.model.decode(skips, emb).float().split(self.channels, 1)
        clean = (SIGMA_DATA / scale) ** 2 * x + sigma * SIGMA_DATA / scale * first
        return logit.float(), clean, x + (above**2 - sigma**2).sqrt() * last
