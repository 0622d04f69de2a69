"""ER-SDE solvers (Cui et al. 2023, arXiv 2309.06169) with the noise of the usual reverse process, in sigma.

The linear part of the reverse process is solved exactly, D followed along sigma itself by the steps before. Of first
order it is DDIM with eta = 1. DoSSR (Cui et al. 2024, arXiv 2409.17778) walks the shift of a domain with them.

What is published as third order is measured to be of second: its first derivative is that between two levels, not at
the last one. `slope="at s"` takes it there, which is of third order.
"""

import itertools
from collections.abc import Iterator

from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler, one_a_step
from fdm.samplers.grids import Grid


def er_sde(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    steps: int,
    noise: Noise | None = None,
    order: float = 1,
    slope: str = "published",
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step of order 1 to 3, the first ones lower.

    `noise` is needed; a step to zero is D itself.
    """
    if noise is None:
        raise ValueError("a stochastic solver needs a source of noise")
    x, past = x.double(), list[tuple[Tensor, Tensor]]()  # D and its level, newest first
    yield x
    for i, (s, t) in enumerate(itertools.pairwise(grid.levels(steps).double().to(x.device))):
        past = [(denoise(x, s).double(), s), *past[: int(order) - 1]]
        if t == 0:
            x = past[0][0]
        else:
            r = t / s
            x = r**2 * x + (1 - r**2) * past[0][0] + _more(past, t, slope) + t * (1 - r**2).sqrt() * noise(i).double()
        yield x


def _more(past: list[tuple[Tensor, Tensor]], t: Tensor, slope: str) -> Tensor | float:
    """What derivatives of D by sigma add to a step to t: 2 t^2 times the integral of D's Taylor terms over sigma^3."""
    if len(past) == 1:
        return 0.0
    (D, s), (D1, s1), *older = past
    first = (D - D1) / (s - s1)
    if not older:
        return -((s - t) ** 2) / s * first
    D2, s2 = older[0]
    second = 2 * (first - (D1 - D2) / (s1 - s2)) / (s - s2)
    if slope == "at s":
        first = first + (s - s1) / 2 * second
    return -((s - t) ** 2) / s * first + ((s - 3 * t) * (s - t) / 2 - t**2 * (t / s).log()) * second


ER_SDE = Sampler(
    "ER-SDE", er_sde, one_a_step, to_zero=False, options={"order": (1, 3), "slope": ("published", "at s")},
    consistent=False,
)  # fmt: skip
