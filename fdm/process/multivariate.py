"""Linear diffusions with auxiliary variables (Singhal et al. 2023, arXiv 2302.07261): VP, CLD, ALDA, MALDA, any other.

Each pixel x has K - 1 auxiliary variables beside it, y = (x, v_1, ...). The forward process is

    dy = -(Q + D) diag(1/m) y beta dt + sqrt(2 beta D) dw

with Q skew and D positive semidefinite: whatever they are, N(0, diag(m)) is stationary. beta is a number that may
depend on time, so that all follows from B, its integral. Given x, and auxiliary variables at rest with a variance of
their own in the beginning, y is Gaussian: its mean and covariance are matrix exponentials. All is float64: near B = 0
covariances are nearly singular.

What y says of x is all in one number of the level `sigma`: a position-only denoiser D(x; sigma) gives every score.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Multivariate(NamedTuple):
    """A linear diffusion: `Q` and `D` (K, K), `m` (K,), and `start` (K,), the variances at B = 0, of x none."""

    Q: Tensor
    D: Tensor
    m: Tensor
    start: Tensor

    @property
    def A(self) -> Tensor:
        """The drift matrix of dy = beta A y dt + ..., (K, K)."""
        return -(self.Q + self.D) / self.m

    def coefficients(self, B: Tensor) -> Tensor:
        """What y is of y at B = 0 on average, C = exp(A B), (..., K, K) for B (...)."""
        return torch.linalg.matrix_exp(self.A * B.double()[..., None, None])

    def covariance(self, B: Tensor) -> Tensor:
        """Covariance of y given x, (..., K, K) for B (...) above 0: one exponential of a matrix of twice the size."""
        K, zero = len(self.m), torch.zeros_like(self.A)
        whole = torch.cat([torch.cat([self.A, 2 * self.D], 1), torch.cat([zero, -self.A.T], 1)])
        flow = torch.linalg.matrix_exp(whole * B.double()[..., None, None])
        above = flow[..., :K, :K] @ torch.diag(self.start) + flow[..., :K, K:]
        found = torch.linalg.solve(flow[..., K:, K:], above, left=False)
        return (found + found.mT) / 2

    def channel(self, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What y tells of x at B (...): weights w (..., K) with w y = x + sigma n, sigma (...), and c (..., K).

        y given x has the mean c x. w y is sufficient for x, so that E[x | y] = D(w y; sigma).
        """
        c, S = self.coefficients(B)[..., 0], self.covariance(B)
        towards = torch.linalg.solve(S, c)
        variance = 1 / (c * towards).sum(-1)
        return towards * variance[..., None], variance.sqrt(), c


def vp() -> Multivariate:
    """VP: no auxiliary variable; a pixel keeps exp(-B / 2)."""
    one = torch.ones(1, dtype=torch.float64)
    return Multivariate(torch.zeros(1, 1, dtype=torch.float64), one[:, None] / 2, one, 0 * one)


def cld(M: float = 0.25, start: float = 0.04) -> Multivariate:
    """Critically-damped Langevin (Dockhorn et al. 2022, arXiv 2112.07068): a velocity of mass M, friction 2 sqrt(M).

    `start` is the variance of the velocity in the beginning, over M. A pixel keeps (1 + 2 g B) exp(-2 g B), with
    g = 1 / friction: FDM's c_in, for its own B.
    """
    friction = 2 * M**0.5
    Q = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    D = torch.diag(torch.tensor([0.0, friction], dtype=torch.float64))
    m = torch.tensor([1.0, M], dtype=torch.float64)
    return Multivariate(Q, D, m, torch.tensor([0.0, start * M], dtype=torch.float64))


def alda(M: float = 0.25, start: float = 0.04) -> Multivariate:
    """Third-order Langevin: the noise enters the second auxiliary variable, by way of two others."""
    Q = torch.tensor([[0.0, -M, 0.0], [M, 0.0, -1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    D = torch.diag(torch.tensor([0.0, 0.0, M], dtype=torch.float64))
    m = torch.tensor([1.0, M, M], dtype=torch.float64)
    return Multivariate(Q, D, m, torch.tensor([0.0, start * M, start * M], dtype=torch.float64))


def malda(M: float = 0.25, start: float = 0.04) -> Multivariate:
    """Two auxiliary variables with noise of their own, coupled to each other and to the pixel."""
    Q = torch.tensor([[0.0, -1.0, -1.0], [1.0, 0.0, -1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    friction = 2 * M**0.5
    D = torch.diag(torch.tensor([0.0, friction, friction], dtype=torch.float64))
    m = torch.tensor([1.0, M, M], dtype=torch.float64)
    return Multivariate(Q, D, m, torch.tensor([0.0, start * M, start * M], dtype=torch.float64))
