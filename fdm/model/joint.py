"""Denoisers that see a pixel's auxiliary variables: of CLD, whose process is given, and of MDM, which searches for one.

The network gets y = (x, v), channel by channel, and its last channels are used. CLD's says the noise of the velocity,
beside the score that the velocity has for data of variance 1 (arXiv 2112.07068, section 3.2), and MDM's the noise in
what y tells of the pixel, z = w y = x + sigma n, as VP's does. From either follows D, the expected clean image.
"""

import functools

import torch
from torch import Tensor, nn

from fdm.model.denoiser import Denoiser
from fdm.params import Framework
from fdm.process.joint import JOINT
from fdm.process.multivariate import Multivariate, cld, lift, searched

NUMBERS = 999  # the network's numbers for noise levels go from 0 to this, as VP's do
LEVELS = {"cld": (8.24e-7, 247.0), "mdm": (0.002, 80.0)}  # the noise levels that each is trained on
BETA, TIMES = 4.0, (1e-5, 1.0)  # of CLD, as published: B = beta t, and t is uniform in its training


class JointDenoiser(Denoiser):
    """D of a framework in `JOINT`; `model` is a UNet of K times as many channels as the images have."""

    def __init__(self, model: nn.Module, framework: Framework) -> None:
        super().__init__(model, framework, "baseline")
        self.learned = JOINT[framework].learned
        if self.learned:  # begins near CLD
            self.coupling = nn.Parameter(torch.tensor(1.0))
            self.root = nn.Parameter(torch.tensor([[0.1, 0.0], [0.0, 1.0]]))

    @property
    def process(self) -> Multivariate:
        """Its process, as it is now."""
        if not self.learned:
            return cld()
        if self.training:
            return searched(self.coupling, self.root)
        return _frozen(self.coupling.item(), tuple(self.root.flatten().tolist()))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""
        return self.model.channels // JOINT[self.framework].channels, self.model.resolution, self.model.resolution

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest noise level that a sampler may ask for."""
        return LEVELS[self.framework]

    def _denoise(self, y: Tensor, B: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Expected clean image, float64 (N, C, H, W), given y (N, C, H, W, K) at B (N,) or (1,)."""
        process = self.process.to(y.device)
        w, sigma, c = process.channel(B)
        y = y.double()
        if self.learned:
            low, high = (torch.tensor(each, dtype=torch.float64).log() for each in self.sigma_range)
            number = NUMBERS * (sigma.detach().log() - low) / (high - low)
        else:
            number = NUMBERS * B / BETA
        given = torch.cat([*y.float().unbind(-1)], 1)
        F = self.model(given, number.float().expand(len(y)), class_labels, augment_labels)[:, -self.shape[0] :].double()
        if self.learned:
            return (w[:, None, None, None] * y).sum(-1) - sigma[:, None, None, None] * F
        S = process.covariance(B)
        S_inverse = torch.linalg.inv(S)
        of_data = S[:, 1, 1] + process.coefficients(B)[:, 1, 0] ** 2  # variance of the velocity, for data of variance 1
        score = -(y[..., 1] / _wide(of_data) + F / _wide(noise_scale(S)))
        own = (S_inverse[:, 1][:, None, None, None] * y).sum(-1)
        return (score + own) / _wide((S_inverse[:, 1] * c).sum(-1))

    def joint(self, y: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """D, float64 (N, C, H, W), given y (N, C, H, W, K), as it is at the noise levels sigma, (N,) or ()."""
        return self._denoise(y, self.process.times(sigma).reshape(-1), class_labels, None)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | None,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        B: Tensor | None = None,
    ) -> Tensor:
        """D, float32 (N, C, H, W), given the position alone: x = clean + sigma n (N, C, H, W), sigma (N,) or ().

        The auxiliary variables are drawn as they are distributed, the same in every call for the image of that number
        in a batch. In its training x is y (N, C, H, W, K) itself, at B (N,) in the place of sigma, and D float64.
        """
        if B is not None:
            return self._denoise(x, B, class_labels, augment_labels)
        assert sigma is not None
        process, B = self.process.to(x.device), self.process.times(sigma).reshape(-1)
        draw = _draw(len(x), tuple(x.shape[1:]), len(process.m)).to(x.device)
        return self._denoise(lift(process, B, x.double(), draw), B, class_labels, augment_labels).float()


def noise_scale(S: Tensor) -> Tensor:
    """Standard deviation of the velocity given the position, (N,), of covariances S (N, 2, 2)."""
    return (S[:, 1, 1] - S[:, 0, 1] ** 2 / S[:, 0, 0]).sqrt()


def _wide(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)


@functools.lru_cache(maxsize=16)
def _frozen(coupling: float, root: tuple[float, ...]) -> Multivariate:
    return searched(torch.tensor(coupling), torch.tensor(root).reshape(2, 2))


@functools.lru_cache(maxsize=16)
def _draw(n: int, shape: tuple[int, int, int], K: int) -> Tensor:
    seeded = (torch.Generator().manual_seed(image) for image in range(n))
    return torch.stack([torch.randn(*shape, K, generator=each, dtype=torch.float64) for each in seeded])
