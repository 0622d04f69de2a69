"""Samplers of linear diffusions with auxiliary variables.

What the variables y of a pixel tell of its clean value is all in z = w y, at one level sigma: so D(z; sigma) gives the
score of y, and a network that was trained without auxiliary variables samples with CLD's. One that was trained with
them, and has `joint` and its own `process`, is asked with all of y. The grid's levels are those of z. x comes in as z
at the highest level; what y is besides is drawn by `noise`. In the end z is given back.

`em` is Euler and Maruyama's step of the reverse process. `sscs` (Dockhorn et al. 2022, arXiv 2112.07068, section 3.3)
goes through half of its linear part exactly, takes the whole step of what the score differs from the stationary one,
with the score of the step's beginning, and goes through the other half. `ode` is Heun's step of the probability flow.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fdm.process.multivariate import Multivariate, cld, lift
from fdm.samplers.contract import Denoise, Noise, Sampler, one_a_step
from fdm.samplers.grids import Grid


class CLDTime(Grid):
    """Uniform in CLD's time: the levels of what its variables tell of x."""

    def __call__(self, tau: Tensor | float) -> Tensor:
        """sigma(tau), float64, for tau in [0, 1]."""
        high, low = cld().times(torch.tensor([self.high, self.low], dtype=torch.float64))
        B = high + torch.as_tensor(tau, dtype=torch.float64) * (low - high)
        return cld().channel(B)[1]


class _Path:
    """A process at the levels of a grid, with a denoiser."""

    def __init__(self, denoise: Denoise, grid: Grid, steps: int, device: torch.device) -> None:
        known: Multivariate = getattr(denoise, "process", cld())
        self.B = known.times(grid.levels(steps)).to(device)
        self.process = known.to(device)
        self.joint: Callable[[Tensor, Tensor], Tensor] | None = getattr(denoise, "joint", None)
        self.denoise = denoise

    def begin(self, x: Tensor, draw: Tensor) -> Tensor:
        """y (..., K) at the highest level, whose z is x; `draw` (..., K) is unit noise."""
        return lift(self.process, self.B[0], x, draw)

    def z(self, y: Tensor, B: Tensor) -> Tensor:
        """What y tells of x."""
        return y @ self.process.channel(B)[0]

    def score(self, y: Tensor, B: Tensor) -> Tensor:
        """The score of y at B, of the shape of y (..., K)."""
        w, sigma, c = self.process.channel(B)
        D = (self.joint(y, sigma) if self.joint else self.denoise(y @ w, sigma)).double()
        return torch.linalg.solve(self.process.covariance(B), (D[..., None] * c - y)[..., None])[..., 0]


def _run(
    denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None, step: Callable[..., Tensor]
) -> Iterator[Tensor]:
    if noise is None:
        raise ValueError("auxiliary variables need a source of noise")
    x = x.double()
    path = _Path(denoise, grid, steps, x.device)
    K = len(path.process.m)

    def draw(number: int) -> Tensor:  # unit noise of all variables, (N, C, H, W, K)
        return torch.stack([noise(K * number + k).double() for k in range(K)], -1)

    yield x
    y = path.begin(x, draw(0))
    for i, (B, C) in enumerate(itertools.pairwise(path.B), start=1):
        y = step(path, y, B, C, lambda half=0, i=i: draw(2 * i + half))
        yield path.z(y, C)


def _em(path: _Path, y: Tensor, B: Tensor, C: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    h, D = B - C, path.process.D
    drift = y @ path.process.A.T - 2 * path.score(y, B) @ D
    return y - h * drift + draw() @ _root(2 * h * D)


def _sscs(path: _Path, y: Tensor, B: Tensor, C: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    h, process = B - C, path.process
    linear = torch.linalg.matrix_exp((process.Q - process.D) / process.m * h / 2)
    still = torch.diag(process.m)
    spread = _root(still - linear @ still @ linear.T)
    y = y @ linear.T + draw(0) @ spread
    y = y + 2 * h * (path.score(y, B) + y / process.m) @ process.D
    return y @ linear.T + draw(1) @ spread


def _ode(path: _Path, y: Tensor, B: Tensor, C: Tensor, draw: Callable[..., Tensor]) -> Tensor:
    def slope(y: Tensor, B: Tensor) -> Tensor:
        return y @ path.process.A.T - path.score(y, B) @ path.process.D

    first = slope(y, B)
    return y - (B - C) * (first + slope(y - (B - C) * first, C)) / 2


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of a covariance, which may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def em(denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None) -> Iterator[Tensor]:
    """Yield z, float64 (N, C, H, W), as given and after each step of Euler and Maruyama."""
    yield from _run(denoise, x, grid, steps, noise, _em)


def sscs(denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None) -> Iterator[Tensor]:
    """Yield z, float64 (N, C, H, W), as given and after each symmetric splitting step."""
    yield from _run(denoise, x, grid, steps, noise, _sscs)


def flow(denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None) -> Iterator[Tensor]:
    """Yield z, float64 (N, C, H, W), as given and after each step of Heun's on the probability flow."""
    yield from _run(denoise, x, grid, steps, noise, _ode)


def flow_steps(nfe: int, to_zero: bool) -> int:
    """Steps that cost `nfe` evaluations, two each."""
    if to_zero or nfe < 2 or nfe % 2:
        raise ValueError(f"this flow costs an even number of evaluations and ends above 0, and {nfe} was asked for")
    return nfe // 2


def steps_above_zero(nfe: int, to_zero: bool) -> int:
    """Steps of one evaluation each, on a grid that does not end at 0."""
    if to_zero:
        raise ValueError("auxiliary variables are at rest at no level of 0: the grid ends above it")
    return one_a_step(nfe, to_zero)


ABOVE: dict[str, Any] = {"grid": "cld-time", "to_zero": False, "consistent": False}
EM = Sampler("multivariate, Euler-Maruyama", em, steps_above_zero, **ABOVE)
SSCS = Sampler("multivariate, SSCS", sscs, steps_above_zero, **ABOVE)
FLOW = Sampler("multivariate, flow", flow, flow_steps, **ABOVE)
