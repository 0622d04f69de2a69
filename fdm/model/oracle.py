"""Exact denoisers: what a perfect network would say, where the data's distribution is known."""

import math

import torch
from torch import Tensor


class Mixture:
    """Exact D of a mixture of Gaussians, in any dimension, through a denoiser's contract.

    `weights` (K,) sum to 1, `means` (K, C, H, W), `deviations` (K,) >= 0; all float64. A component's covariance is
    deviation^2 I, and where there are `axes` (K, r, d), orthonormal, besides it `spreads` (K, r)^2 along them. With
    deviations of 0 and equal weights it is E[x0 | x] of a finite set of images. `labels` (K,) are the components'
    classes: a denoiser that is told the class takes its components alone.
    """

    condition = None
    sigma_range: tuple[float, float] = (0.0, math.inf)

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        deviations: Tensor,
        labels: Tensor | None = None,
        axes: Tensor | None = None,
        spreads: Tensor | None = None,
    ) -> None:
        self.weights, self.means, self.deviations = weights.double(), means.double(), deviations.double()
        self.labels = labels
        channels, height, width = means.shape[1:]
        self.shape: tuple[int, int, int] = (channels, height, width)
        self.classes = 0 if labels is None else int(labels.max()) + 1
        empty = torch.zeros(len(means), 0, means[0].numel(), dtype=torch.float64)
        self.axes = empty if axes is None else axes.double()
        self.spreads = self.axes[..., 0] if spreads is None else spreads.double()  # of no axes, (K, 0)

    @classmethod
    def reference(cls) -> "Mixture":
        """One-dimensional mixture of three, on which samplers are compared: images of one pixel, variance 0.94665."""
        weights, means, deviations = (
            torch.tensor(each, dtype=torch.float64) for each in ((0.3, 0.5, 0.2), (-1.2, 0.1, 1.5), (0.15, 0.3, 0.2))
        )
        return cls(weights, means.reshape(3, 1, 1, 1), deviations)

    def _posterior(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Responsibilities (N, K), V_k = s_k^2 + sigma^2 and s_k^2 / V_k, (N or 1, K)."""
        flat, mu = x.double().flatten(1), self.means.flatten(1)
        noise = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).reshape(-1, 1) ** 2
        total = self.deviations**2 + noise
        # |x - mu_k|^2 written out, as the differences themselves would need N K d numbers.
        distance = ((flat**2).sum(1, keepdim=True) - 2 * flat @ mu.T + (mu**2).sum(1)).clamp(min=0)
        logs = self.weights.log() - flat.shape[1] / 2 * total.log() - distance / (2 * total)
        if self.axes.shape[1]:
            along, wider = self._along(flat), total[..., None] + self.spreads**2
            logs = logs + ((1 / total[..., None] - 1 / wider) * along**2 - (wider / total[..., None]).log()).sum(2) / 2
        if class_labels is not None and self.labels is not None:
            logs = logs.masked_fill(class_labels.argmax(1, keepdim=True) != self.labels, -math.inf)
        return logs.softmax(1), total, self.deviations**2 / total

    def _along(self, flat: Tensor) -> Tensor:
        """Coordinates of x - mu_k along the axes of each component, (N, K, r), of flat x (N, d)."""
        centres = torch.einsum("krd,kd->kr", self.axes, self.means.flatten(1))
        return torch.einsum("nd,krd->nkr", flat, self.axes) - centres

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """D(x; sigma), float64, of the shape of x (N, C, H, W); sigma (N,) or () above 0."""
        r, total, share = self._posterior(x, sigma, class_labels)
        flat = x.double().flatten(1)
        D = (r * share).sum(1, keepdim=True) * flat + (r * (1 - share)) @ self.means.flatten(1)
        if self.axes.shape[1]:
            own = (self.deviations**2)[:, None] + self.spreads**2
            more = own / (total[..., None] + self.spreads**2) - share[..., None]  # than the isotropic part moves
            D = D + torch.einsum("nkr,krd->nd", r[..., None] * more * self._along(flat), self.axes)
        return D.reshape(x.shape)

    def cumulants(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """First three cumulants of each pixel of the clean image given x, (N, C, H, W) each; the first is D.

        They are D, sigma^2 dD/dx and sigma^4 d^2D/dx^2 on the diagonal (Tweedie). Memory grows with N K d.
        """
        r, total, share = self._posterior(x, sigma, class_labels)
        flat = x.double().flatten(1)
        mean = share[..., None] * flat[:, None] + (1 - share)[..., None] * self.means.flatten(1)
        noise = total - self.deviations**2
        r, c = r[..., None], (share * noise)[..., None]
        own = (self.deviations**2)[:, None] + self.spreads**2
        more = own / (own + noise[..., None]) - share[..., None]  # than the isotropic part keeps, along each axis
        mean = mean + torch.einsum("nkr,krd->nkd", more * self._along(flat), self.axes)
        c = c + noise[..., None] * torch.einsum("nkr,krd->nkd", more, self.axes**2)
        first = (r * mean).sum(1)
        d = mean - first[:, None]
        second, third = (r * (c + d**2)).sum(1), (r * (3 * c * d + d**3)).sum(1)
        return first.reshape(x.shape), second.reshape(x.shape), third.reshape(x.shape)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n images of the mixture, float64 (n, C, H, W)."""
        return self.draw_labelled(n, generator)[0]

    def draw_labelled(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n images of the mixture, float64 (n, C, H, W), and the components that they are from, int64 (n,)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.shape, generator=generator, dtype=torch.float64)
        images = self.means[k] + self.deviations[k].reshape(-1, 1, 1, 1) * noise
        if self.axes.shape[1]:
            along = self.spreads[k] * torch.randn(n, self.axes.shape[1], generator=generator, dtype=torch.float64)
            images = images + torch.einsum("nr,nrd->nd", along, self.axes[k]).reshape(images.shape)
        return images, k
