"""VP, VE and EDM: one object each, with all that a denoiser and its training take from the process.

D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), with the coefficients of EDM's Table 1 (arXiv 2206.00364).
FDM changes c_in alone: it becomes the scale s of the critically damped process (arXiv 2306.06991).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fdm.params import Architecture, Framework, Kernel, Tau, Variant, VEMultiplier
from fdm.process import momentum, schedule

SIGMA_DATA = 0.5  # standard deviation that EDM assumes of images scaled to [-1, 1]
M_VP = 1000  # VP's networks count time from 0 to M - 1
P_MEAN, P_STD = -1.2, 1.2  # EDM's log-normal law of sigma (arXiv 2206.00364, Table 1)
LEVELS = 10_000  # noise levels that stand for those of training
VE_RANGE, EDM_RANGE = (0.02, 100.0), (0.002, 80.0)


class Coefficients(NamedTuple):
    """The four coefficients of D, each of the shape of the sigma they were asked for."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Process(NamedTuple):
    """A framework. Functions of noise levels are elementwise, for sigma > 0 of any shape."""

    label: str
    sigma_range: tuple[float, float]  # the noise levels it trains on
    law: Callable[..., Tensor]  # of the random number behind a noise level: torch.rand or torch.randn
    sigma: Callable[[Tensor], Tensor]  # the training noise level of such a number
    weight: Callable[[Tensor], Tensor]  # lambda(sigma), which multiplies the squared error
    coefficients: Callable[[Tensor], Coefficients]  # without FDM
    time: Callable[[Tensor], Tensor]  # its own time in [0, 1] at a noise level
    architecture: Architecture
    bounded: bool = True  # whether a denoiser refuses noise levels outside of sigma_range, as the published ones do
    ignores_multiplier: bool = False  # FDM's published VE takes m = 1 whatever it is given

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """The n random numbers behind n noise levels, (n, 1, 1, 1)."""
        return self.law(n, 1, 1, 1, generator=generator, device=generator.device)

    def quantiles(self, n: int) -> Tensor:
        """The noise levels of training at the middles of n equally likely parts, float64 (n,)."""
        middles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return self.sigma(torch.special.ndtri(middles) if self.law is torch.randn else middles)

    def share(self, sigma: Tensor) -> Tensor:
        """Where sigma lies in the range, linearly, in [0, 1]: FDM's tau as published."""
        low, high = self.sigma_range
        return (sigma - low) / (high - low)


def _inverse_square(sigma: Tensor) -> Tensor:
    return 1 / sigma**2


def _vp_coefficients(sigma: Tensor) -> Coefficients:
    c_noise = (M_VP - 1) * schedule.t_vp(sigma)
    return Coefficients(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(), c_noise)


def _sigma_vp_float32(t: float) -> float:
    return schedule.sigma_vp(torch.tensor(t, dtype=torch.float32)).item()


VP = Process(
    label="VP",
    # In float32, where the published code computes it: at t = 1e-5 that is 9.77e-4, and 1.00e-3 in exact arithmetic.
    sigma_range=(_sigma_vp_float32(schedule.T_MIN), _sigma_vp_float32(1.0)),
    law=torch.rand,
    sigma=lambda u: schedule.sigma_vp(1 + u * (schedule.T_MIN - 1)),  # uniform in t
    weight=_inverse_square,
    coefficients=_vp_coefficients,
    time=schedule.t_vp,
    architecture="ddpmpp",
)


def _ve_coefficients(sigma: Tensor) -> Coefficients:
    return Coefficients(torch.ones_like(sigma), sigma, torch.ones_like(sigma), (0.5 * sigma).log())


VE = Process(
    label="VE",
    sigma_range=VE_RANGE,
    law=torch.rand,
    sigma=lambda u: VE_RANGE[0] * (VE_RANGE[1] / VE_RANGE[0]) ** u,  # log-uniform
    weight=_inverse_square,
    coefficients=_ve_coefficients,
    time=lambda sigma: (sigma / VE_RANGE[0]).log() / math.log(VE_RANGE[1] / VE_RANGE[0]),
    architecture="ncsnpp",
    ignores_multiplier=True,
)


def _edm_coefficients(sigma: Tensor) -> Coefficients:
    variance = sigma**2 + SIGMA_DATA**2
    c_out = sigma * SIGMA_DATA / variance.sqrt()
    return Coefficients(SIGMA_DATA**2 / variance, c_out, 1 / variance.sqrt(), sigma.log() / 4)


EDM = Process(
    label="EDM",
    sigma_range=EDM_RANGE,
    law=torch.randn,
    sigma=lambda u: (u * P_STD + P_MEAN).exp(),  # log-normal
    weight=lambda sigma: (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2,
    coefficients=_edm_coefficients,
    time=lambda sigma: (sigma - EDM_RANGE[0]) / (EDM_RANGE[1] - EDM_RANGE[0]),  # which is sigma
    architecture="ddpmpp",
    bounded=False,
)

FRAMEWORKS: dict[Framework, Process] = {"vp": VP, "ve": VE, "edm": EDM}


def coefficients(
    framework: Framework,
    kernel: Kernel,
    sigma: Tensor,
    multiplier: float = 1.0,
    ve_multiplier: VEMultiplier = "as published",
    tau: Tau = "sigma",
    variant: Variant | None = None,
) -> Coefficients:
    """Preconditioning coefficients at the noise levels sigma > 0 (any shape).

    `multiplier` is FDM's m. VE's published code ignores it, so that c_in uses m = 1 whatever is asked;
    `ve_multiplier="as derived"` uses it. FDM's tau is linear in sigma, as published; `tau="time"` takes the
    framework's own time in [0, 1] instead: t(sigma) for VP, the logarithm of sigma for VE; EDM's is sigma. A `variant`
    makes one change more (fdm.params.Variant).
    """
    process = FRAMEWORKS[framework]
    c = process.coefficients(sigma)
    if kernel == "fdm":
        if process.ignores_multiplier and ve_multiplier == "as published":
            multiplier = 1.0
        time = process.time(sigma) if tau == "time" else process.share(sigma)
        c = c._replace(c_in=momentum.scale_fdm(time, multiplier))
    if variant == "c_in 1":
        return c._replace(c_in=torch.ones_like(sigma))
    if variant == "c_in unit":
        return c._replace(c_in=1 / (sigma**2 + SIGMA_DATA**2).sqrt())
    if variant == "c_in rescaled":
        return c._replace(c_in=c.c_in / mean_input(framework, kernel, multiplier, ve_multiplier, tau))
    if variant == "edm output":
        other = EDM.coefficients(sigma)
        return c._replace(c_skip=other.c_skip, c_out=other.c_out)
    return c


@functools.cache
def mean_input(framework: Framework, kernel: Kernel, multiplier: float, ve_multiplier: VEMultiplier, tau: Tau) -> float:
    """Root mean square of what the raw network is given, c_in x, over the noise levels of training."""
    sigma = FRAMEWORKS[framework].quantiles(LEVELS)
    c_in = coefficients(framework, kernel, sigma, multiplier, ve_multiplier, tau).c_in
    return (c_in**2 * (sigma**2 + SIGMA_DATA**2)).mean().sqrt().item()
