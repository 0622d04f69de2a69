"""deepinv's posterior samplers, with this study's denoisers: DPS (Chung et al. 2022, arXiv 2209.14687) and DiffPIR (Zhu
et al. 2023, arXiv 2305.08995). They know the measurement's noise, and walk VP's schedule in float32, on images in
[0, 1].
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fdm.files import digest
from fdm.model.denoiser import Denoise
from fdm.tasks.generation import noise_range
from fdm.tasks.physics import Measurement


class _Unit(nn.Module):
    """A denoiser for deepinv: of images in [0, 1], at levels that its own range holds."""

    def __init__(self, denoiser: Denoise) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: Any, **kwargs: Any) -> Tensor:
        low, high = noise_range(self.denoiser)
        levels = (2 * torch.as_tensor(sigma, dtype=torch.float32, device=x.device)).clamp(low, high)
        D = self.denoiser(2 * x - 1, levels.reshape(-1))
        return ((D + 1) / 2).to(x.dtype)


@contextlib.contextmanager
def _in_unit(measurement: Measurement) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """deepinv's physics, measurement and estimate of images in [0, 1], float32: A((x + 1) / 2) = (A x + A 1) / 2."""
    from deepinv.physics import GaussianNoise

    estimate = measurement.estimate
    y = (measurement.y + measurement.physics.A(torch.ones_like(estimate))) / 2
    before, physics = measurement.physics.noise_model, measurement.physics.float()
    physics.noise_model = GaussianNoise(measurement.noise / 2)
    try:
        yield physics, y.float(), (estimate.float() + 1) / 2
    finally:
        physics.noise_model = before
        physics.double()


def _seed(seeds: range) -> int:
    return int(digest(["posterior", seeds.start, seeds.stop]), 16)


def dps(denoiser: Denoise, measurement: Measurement, nfe: int, seeds: range, weight: float = 1.0) -> Tensor:
    """Restorations, float64 (N, C, H, W), by guiding DDPM with the gradient of the residual, `nfe` steps.

    Each evaluation is followed by a pass back, which costs about two more.
    """
    from deepinv.sampling import DPS

    generator = torch.Generator(measurement.y.device).manual_seed(_seed(seeds))
    with torch.enable_grad(), _in_unit(measurement) as (physics, y, _):
        model = DPS(_Unit(denoiser), num_steps=nfe + 1, weight=weight, device=y.device, rng=generator)
        x = model(y.clone(), physics)
    return 2 * x.detach().double() - 1


def diffpir(
    denoiser: Denoise, measurement: Measurement, nfe: int, seeds: range, lambda_: float = 7.0, zeta: float = 0.3
) -> Tensor:
    """Restorations, float64 (N, C, H, W), by a proximal step of the measurement at each of `nfe` levels."""
    from deepinv.optim.data_fidelity import L2
    from deepinv.sampling import DiffPIR

    with torch.random.fork_rng(devices=[]), _in_unit(measurement) as (physics, y, estimate):
        torch.manual_seed(_seed(seeds))
        model = DiffPIR(_Unit(denoiser), L2(), measurement.noise / 2, nfe, zeta, lambda_, device=y.device)
        x = model(y, physics, x_init=estimate)
    return 2 * x.detach().double() - 1
