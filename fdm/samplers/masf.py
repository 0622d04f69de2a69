"""Moving average sampling in the frequency domain (Qian et al. 2024, arXiv 2403.17870): a reading, no reproduction.

The paper averages the predictions of the clean image along the way, in the bands of a wavelet transform, with weights
that depend on band and noise level, low bands first. Weights, wavelet and how noise is put back are not published. Here
the average is M = (1 - q) D + q M of the step before, q = size times a `schedule` of u, the logarithm of the noise
level from 1 at the start to 0 at the end. `size` 0 is DDIM; below 0 the average turns into an extrapolation.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler, one_a_step
from fdm.samplers.grids import Grid
from fdm.samplers.wavelets import WAVELETS, bands, image

# Shares of `size` in the low band and in the others, as functions of u. `low first`, the order of the paper's abstract,
# lets new predictions into the low band early and into the others late; `high first` is its mirror.
SCHEDULES = ("low first", "high first", "constant")
NOISES = ("of D", "of the mean")


def _shares(schedule: str, u: float) -> tuple[float, float]:
    if schedule == "constant":
        return 1.0, 1.0
    return (1 - u, u) if schedule == "low first" else (u, 1 - u)


def masf(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    steps: int,
    noise: Noise | None = None,
    size: float = 0.1,
    schedule: str = SCHEDULES[0],
    eps: str = NOISES[0],
    wavelet: str = "haar",
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step.

    The mean replaces D. The noise that is put back is eps = (x - D) / s `of D`, or (x - mean) / s `of the mean`.
    """
    x, memory = x.double(), list[Tensor]()
    yield x
    levels = grid.levels(steps).double().to(x.device)
    logs = levels[levels > 0].log()
    for s, t in itertools.pairwise(levels):
        D = denoise(x, s).double()
        u = float((s.log() - logs[-1]) / (logs[0] - logs[-1]).clamp(min=torch.finfo(torch.float64).tiny))
        low, high = (size * share for share in _shares(schedule, u))
        parts = bands(D, wavelet)
        shares = (low, high, high, high)
        memory = [q * old + (1 - q) * new for q, new, old in zip(shares, parts, memory or parts, strict=True)]
        mean = image(memory, D.shape, wavelet)
        x = mean + t / s * (x - (D if eps == NOISES[0] else mean))
        yield x


MASF = Sampler(
    "MASF", masf, one_a_step, consistent=False,
    options={"size": (-0.9, 0.9), "schedule": SCHEDULES, "eps": NOISES, "wavelet": WAVELETS},
)  # fmt: skip
