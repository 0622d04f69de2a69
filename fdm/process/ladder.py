"""A few noise levels, and a step from one to the next lower: the chain of denoising diffusion GANs and of SIDDM."""

import torch
from torch import Tensor

from fdm.process import schedule


def levels(steps: int, high: float) -> Tensor:
    """The levels sigma_0 = 0 < ... < sigma_T, T = `steps`, float64 (T + 1,): even in the time of VP, none above `high`.

    For T = 4: 0, 0.954, 3.41, 17.0 and `high`, which is below VP's own 152.
    """
    return schedule.sigma_vp(torch.arange(steps + 1, dtype=torch.float64) / steps).clamp(max=high)


def posterior(x: Tensor, clean: Tensor, above: Tensor, below: Tensor, noise: Tensor) -> Tensor:
    """A draw of q(x_{k-1} | x_k, x_0): the ancestral step from the level `above` to `below`, both (N, 1, ...) or ().

    x = x_k, `clean` = x_0 and unit `noise` are (N, ...). Of x_{k-1} = x_0 + sigma_{k-1} n and x_k = x_{k-1} +
    sqrt(sigma_k^2 - sigma_{k-1}^2) n' (Xiao et al. 2022, arXiv 2112.07804, eq. 5, at scale 1); to the level 0 it adds
    no noise.
    """
    kept = (below / above) ** 2
    return kept * x + (1 - kept) * clean + below * (1 - kept).sqrt() * noise
