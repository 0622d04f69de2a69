"""Shifted time steps with DDIM (Li et al. 2023, arXiv 2305.15583): each image at the level that it looks like.

The variance of an image's pixels tells its level, as 1 - a, a = 1 / (1 + sigma^2), of a VP image that is nearly noise.
Levels are compared in a `window` of DDPM's thousand time steps, above a `cutoff`. By the paper's rule network and step
take the level that the image at hand looks like; by that of the released F-PNDM, which is here put into DDIM, the step
ends at the level near the next one that the image at hand looks like, and the network is told what it would have been
told. In both the VP image is kept and only its level is another, so that x in sigma is scaled.

The `shift` may also be `up` or `down`, half a window towards noise or away from it, or `random`, one of both: what is
gained with these was not read off the images. `variance` is that of the clean images' pixels. The paper has none, and
takes an image for noise alone; with it an image that is exactly on schedule looks like its own level.

The cutoff is asked of the level that the variance is compared with. No level above the grid's highest is used.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler, one_a_step
from fdm.samplers.grids import Grid

RULES = ("paper", "released")
SHIFTS = ("adaptive", "up", "down", "random")
# DDPM's chain: sigma of its thousand steps, whose beta rises evenly from 1e-4 to 0.02.
LEVELS = tuple(np.sqrt(1 / np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)) - 1))


def index(sigma: float) -> float:
    """The time step of DDPM's chain at a level, from 0 to 999, between its steps by the logarithm of sigma."""
    return float(np.interp(np.log(max(sigma, LEVELS[0])), np.log(LEVELS), np.arange(len(LEVELS))))


def level(index: float) -> float:
    """sigma at a time step of DDPM's chain, its ends for what lies beyond."""
    return float(np.exp(np.interp(index, np.arange(len(LEVELS)), np.log(LEVELS))))


def _ends(near: float, window: float, top: float) -> list[float]:
    """The levels half a window below and above the level `near`, at most `top`."""
    return [min(level(index(near) + side * window / 2), top) for side in (-1, 1)]


def seen(x: Tensor, s: Tensor, near: float, window: float, variance: float = 0.0, top: float = math.inf) -> Tensor:
    """The level of each image, (N, 1, 1, 1), that x at level s looks like, in a window around the level `near`."""
    pixels = (x / (1 + s**2).sqrt()).flatten(1)
    found = pixels.var(1, correction=min(1, pixels.shape[1] - 1)).clamp(max=1 - 1e-15)
    sigma = ((found - variance).clamp(min=0) / (1 - found)).sqrt()
    return sigma.clamp(*_ends(near, window, top)).reshape(-1, 1, 1, 1)


def ts_ddim(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    steps: int,
    noise: Noise | None = None,
    window: float = 2,
    cutoff: float = 300,
    variance: float = 0.0,
    rule: str = RULES[0],
    shift: str = SHIFTS[0],
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step. The first step is never shifted.

    `window` and `cutoff` are time steps of DDPM's chain, 0 to 999; the defaults are the released code's. `variance` is
    of pixels in [-1, 1]. Raises ValueError for a `random` shift without `noise`.
    """
    if shift == "random" and noise is None:
        raise ValueError("a random shift needs a source of noise")
    x = x.double()
    yield x
    for i, (s, t) in enumerate(itertools.pairwise(grid.levels(steps).double().to(x.device))):
        near = s if rule == "paper" else t
        here, there = s, t
        if i > 0 and window > 0 and near > 0 and index(float(near)) > cutoff:
            if shift == "adaptive":
                shifted = seen(x, s, float(near), window, variance, grid.high)
            else:
                up = noise(i).flatten(1)[:, 0] > 0 if noise and shift == "random" else torch.tensor(shift == "up")
                ends = _ends(float(near), window, grid.high)
                shifted = torch.where(up.to(x.device), ends[1], ends[0]).double().expand(len(x)).reshape(-1, 1, 1, 1)
            here, there = (shifted, t) if rule == "paper" else (s, shifted)
        x = x * ((1 + here**2) / (1 + s**2)).sqrt()
        D = denoise(x, here.flatten() if here.dim() else here).double()
        x = (D + there / here * (x - D)) * ((1 + t**2) / (1 + there**2)).sqrt()
        yield x


TS_DDIM = Sampler(
    "TS-DDIM", ts_ddim, one_a_step, consistent=False,
    options={"window": (0, 400), "cutoff": (0, 999), "variance": (0, 1), "rule": RULES, "shift": SHIFTS},
)  # fmt: skip
