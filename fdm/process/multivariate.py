"""Linear diffusions with auxiliary variables (Singhal et al. 2023, arXiv 2302.07261): VP, CLD, ALDA, MALDA, any other.

Each pixel x has K - 1 auxiliary variables beside it, y = (x, v_1, ...). The forward process is

    dy = -(Q + D) diag(1/m) y beta dt + sqrt(2 beta D) dw

with Q skew and D positive semidefinite: whatever they are, N(0, diag(m)) is stationary. beta is a number that may
depend on time, so that all follows from B, its integral. Given x, and auxiliary variables at rest with a variance of
their own in the beginning, y is Gaussian: its mean and covariance are matrix exponentials. All is float64: near B = 0
covariances are nearly singular.

What y says of x is all in one number of the level `sigma`: a position-only denoiser D(x; sigma) gives every score.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SPAN = torch.logspace(-9, 4, 600, dtype=torch.float64)  # of B, among which levels are looked up


class Multivariate(NamedTuple):
    """A linear diffusion: `Q` and `D` (K, K), `m` (K,), and `start` (K,), the variances at B = 0, of x none."""

    Q: Tensor
    D: Tensor
    m: Tensor
    start: Tensor

    def to(self, device: torch.device) -> "Multivariate":
        """The same on a device."""
        return Multivariate(*(each.to(device) for each in self))

    @property
    def A(self) -> Tensor:
        """The drift matrix of dy = beta A y dt + ..., (K, K)."""
        return -(self.Q + self.D) / self.m

    def coefficients(self, B: Tensor) -> Tensor:
        """What y is of y at B = 0 on average, C = exp(A B), (..., K, K) for B (...)."""
        return torch.linalg.matrix_exp(self.A * B.double()[..., None, None])

    def covariance(self, B: Tensor) -> Tensor:
        """Covariance of y given x, (..., K, K) for B (...) above 0.

        One exponential of a matrix of twice the size, which says small variances to all digits. It holds exp(-A B)
        and overflows in the end; from B = 1 on it is what is left of the beginning in the stationary covariance.
        """
        K, zero, B = len(self.m), torch.zeros_like(self.A), B.double()[..., None, None]
        whole = torch.cat([torch.cat([self.A, 2 * self.D], 1), torch.cat([zero, -self.A.T], 1)])
        flow = torch.linalg.matrix_exp(whole * B.clamp(max=1))
        above = flow[..., :K, :K] @ torch.diag(self.start) + flow[..., :K, K:]
        early = torch.linalg.solve(flow[..., K:, K:], above, left=False)
        C = torch.linalg.matrix_exp(self.A * B)
        late = torch.diag(self.m) + C @ torch.diag(self.start - self.m) @ C.mT
        found = torch.where(B < 1, early, late)
        return (found + found.mT) / 2

    def channel(self, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What y tells of x at B (...): weights w (..., K) with w y = x + sigma n, sigma (...), and c (..., K).

        y given x has the mean c x. w y is sufficient for x, so that E[x | y] = D(w y; sigma).
        """
        c, S = self.coefficients(B)[..., 0], self.covariance(B)
        towards = torch.linalg.solve(S, c)
        variance = 1 / (c * towards).sum(-1)
        return towards * variance[..., None], variance.sqrt(), c

    @torch.no_grad()
    def times(self, levels: Tensor) -> Tensor:
        """B at which y tells of x as much as x + sigma n, for the levels sigma above 0 (...), float64."""
        spans, grown = _table(self)
        still = self.to(torch.device("cpu"))
        wanted = levels.detach().double().cpu().log().numpy()
        found = np.interp(wanted, grown, spans)
        slopes = np.interp(found, spans, np.gradient(grown, spans))
        for _ in range(3):  # Newton's steps from between the points of the table
            reached = still.channel(torch.as_tensor(found).exp())[1].log().numpy()
            found = found + (wanted - reached) / slopes
        return torch.as_tensor(found).exp().to(levels.device)

    def weight(self, B: Tensor) -> Tensor:
        """w of the evidence lower bound, (...): the bound loses the integral of w (D - x)^2 over B, a pixel.

        It is half of how fast 1 / sigma^2 falls with B: between two levels sigma, every process has the same.
        """
        c, S = self.coefficients(B)[..., 0], self.covariance(B)
        towards = torch.linalg.solve(S, c)
        return ((towards @ self.D) * towards).sum(-1)

    def prior_gap(self, B: Tensor, squares: Tensor) -> Tensor:
        """KL from y at B, given a pixel whose square is `squares` (...), to N(0, diag(m)), nats (...).

        Most of it is what y still tells of the pixel; `unrest` is the rest.
        """
        c, S = self.coefficients(B)[..., 0], self.covariance(B)
        spread = (S.diagonal(dim1=-2, dim2=-1) / self.m).sum(-1) - torch.logdet(S) + self.m.log().sum() - len(self.m)
        return (spread + (c**2 / self.m).sum(-1) * squares) / 2

    def unrest(self, B: Tensor, variance: float) -> Tensor:
        """KL from y at B, of Gaussian pixels of that variance, to N(0, diag(m)), nats a pixel (...)."""
        c, S = self.coefficients(B)[..., 0], self.covariance(B)
        whole = (S + variance * c[..., :, None] * c[..., None, :]) / self.m.sqrt() / self.m.sqrt()[:, None]
        values = torch.linalg.eigvalsh(whole)
        return (values - 1 - values.log()).sum(-1) / 2

    @property
    def noise(self) -> Tensor:
        """The noise that comes in while B grows by 1, (), each variable's in units of its variance at rest."""
        return (self.D.diagonal() / self.m).sum()


def lift(process: Multivariate, B: Tensor, z: Tensor, draw: Tensor) -> Tensor:
    """y (N, C, H, W, K) at B, () or (N,), whose w y is z (N, C, H, W), its rest drawn as it is, whatever x is.

    `draw` (N, C, H, W, K) is unit noise.
    """
    B = B.reshape(-1)
    _, sigma, c = process.channel(B)
    left = process.covariance(B) - (sigma**2)[:, None, None] * c[:, :, None] * c[:, None, :]  # of y given z
    values, vectors = torch.linalg.eigh(left)
    spread = vectors * values.clamp(min=0).sqrt()[:, None, :]
    return z[..., None] * c[:, None, None, None] + (spread[:, None, None, None] @ draw[..., None])[..., 0]


@functools.lru_cache(maxsize=8)
def _table(process: Multivariate) -> tuple[np.ndarray, np.ndarray]:
    """ln B and ln sigma along `SPAN`, where sigma is finite and rises."""
    known = process.to(torch.device("cpu")).channel(SPAN)[1]
    fine = torch.isfinite(known) & (known > 1e-9) & (known < 1e9)
    fine[1:] &= known[1:] > known.where(fine, 0)[:-1].cummax(0).values
    return SPAN[fine].log().numpy(), known[fine].log().numpy()


@functools.cache
def vp() -> Multivariate:
    """VP: no auxiliary variable; a pixel keeps exp(-B / 2)."""
    one = torch.ones(1, dtype=torch.float64)
    return Multivariate(torch.zeros(1, 1, dtype=torch.float64), one[:, None] / 2, one, 0 * one)


@functools.cache
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


@functools.cache
def alda(M: float = 0.25, start: float = 0.04) -> Multivariate:
    """Third-order Langevin: the noise enters the last variable, and reaches the pixel through the one between."""
    Q = torch.tensor([[0.0, -M, 0.0], [M, 0.0, -1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    D = torch.diag(torch.tensor([0.0, 0.0, M], dtype=torch.float64))
    m = torch.tensor([1.0, M, M], dtype=torch.float64)
    return Multivariate(Q, D, m, torch.tensor([0.0, start * M, start * M], dtype=torch.float64))


@functools.cache
def malda(M: float = 0.25, start: float = 0.04) -> Multivariate:
    """Two auxiliary variables with noise of their own, coupled to each other and to the pixel."""
    Q = torch.tensor([[0.0, -1.0, -1.0], [1.0, 0.0, -1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    friction = 2 * M**0.5
    D = torch.diag(torch.tensor([0.0, friction, friction], dtype=torch.float64))
    m = torch.tensor([1.0, M, M], dtype=torch.float64)
    return Multivariate(Q, D, m, torch.tensor([0.0, start * M, start * M], dtype=torch.float64))


def searched(coupling: Tensor, root: Tensor) -> Multivariate:
    """A process of one auxiliary variable to be searched for: `coupling` (), `root` (2, 2), D = root root^T.

    Masses and beginning are CLD's, and so is the `noise` that comes in: otherwise B could take up what D has.
    """
    known, D = cld().to(root.device), root.double() @ root.double().T
    coupling, zero = coupling.double(), known.start[0]
    Q = torch.stack([torch.stack([zero, -coupling]), torch.stack([coupling, zero])])
    return Multivariate(Q, D * (known.noise / (D.diagonal() / known.m).sum()), known.m, known.start)
