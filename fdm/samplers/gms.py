"""Gaussian mixture solver (Guo et al. 2023, arXiv 2311.00941): a reverse kernel with three right moments, in sigma.

Few steps are long, and then x_t given x_s is not Gaussian. Its first three moments follow from those of the clean image
given x_s, pixel by pixel: with r = (t / s)^2 and cumulants k1, k2, k3,

    m = r x + (1 - r) k1,    v = t^2 (1 - r) + (1 - r)^2 k2,    q = (1 - r)^3 k3.

A mixture of two Gaussians with weights 1/3 and 2/3 and one variance has them, where |q| / v^1.5 is at most 1 / sqrt(2);
beyond that q is cut to the limit. The released code finds it by 70 steps of gradient descent; it is known in closed
form. With k3 = 0 both components are one, and the step is that of a Gaussian
with the right variance (SN-DDPM: Bao et al. 2022, arXiv 2206.07309).
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler, one_a_step
from fdm.samplers.grids import Grid

Cumulants = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]  # of the clean pixels, given x at sigma
MOMENTS = ("three", "two")
COMPONENTS = ("of an image", "of a pixel")
CLAMPS = ("none", "published")
EDGE = 0.999 / 2**0.5  # of |q| / v^1.5: no such mixture is more skewed than 1 / sqrt(2)


def kernel(x: Tensor, s: Tensor, t: Tensor, k1: Tensor, k2: Tensor, k3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and third central moment of the pixels at level t given x at s, of the shape of x."""
    r = (t / s) ** 2
    return r * x + (1 - r) * k1, t**2 * (1 - r) + (1 - r) ** 2 * k2, (1 - r) ** 3 * k3


def fit(v: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mixture with variance `v` and third central moment `q`, of any shape.

    Its means are 2 d and -d from the whole's, with weights 1/3 and 2/3. Returns d, the variance of each component, and
    where q was more than such a mixture can have and the most was taken.
    """
    most = EDGE * v.clamp(min=0) ** 1.5
    q, clipped = q.clamp(-most, most), q.abs() > most
    d = q.sign() * (q.abs() / 2) ** (1 / 3)
    return d, (v - 2 * d**2).clamp(min=0), clipped


def clamp(k1: Tensor, k2: Tensor, k3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The released code's limits on moments of pixels in [-1, 1].

    That code takes |E x^3| to be at most |E x|, which takes away true skewness where the mean is near 0.
    """
    third = k3 + 3 * k1 * k2 + k1**3
    k1, k2 = k1.clamp(-1, 1), k2.clamp(0, 1)
    second = (k2 + k1**2).clamp(0, 1)
    third = torch.where(third.abs() > k1.abs(), k1, third).clamp(-1, 1)
    k2 = second - k1**2
    return k1, k2, third - 3 * k1 * k2 - k1**3


def gms(
    denoise: Denoise,
    x: Tensor,
    grid: Grid,
    steps: int,
    noise: Noise | None = None,
    moments: str = MOMENTS[0],
    component: str = COMPONENTS[0],
    limits: str = CLAMPS[0],
) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step. `noise` is needed; a step to zero is D, as limited.

    `denoise` has `cumulants` besides, which gives three for one evaluation. With two `moments` the kernel is Gaussian.
    One draw decides which `component` all pixels of an image are from, as released, or each pixel has a draw of its
    own: pixels alone are distributed alike, images are not.
    """
    cumulants: Cumulants | None = getattr(denoise, "cumulants", None)
    if cumulants is None:
        raise ValueError("GMS needs the second and third moments besides D: a network with heads, or an exact denoiser")
    if noise is None:
        raise ValueError("a stochastic solver needs a source of noise")
    x = x.double()
    yield x
    for i, (s, t) in enumerate(itertools.pairwise(grid.levels(steps).double().to(x.device))):
        found = tuple(each.double() for each in cumulants(x, s))
        k1, k2, k3 = clamp(*found) if limits == "published" else found
        if t == 0:
            x = k1
        else:
            m, v, q = kernel(x, s, t, k1, k2.clamp(min=0), k3)
            d, own, _ = fit(v, torch.zeros_like(q) if moments == "two" else q)
            chance = torch.special.ndtr(noise(2 * i + 1).double())
            if component == "of an image":
                chance = chance.flatten(1)[:, 0].reshape(-1, 1, 1, 1)
            x = m + torch.where(chance < 1 / 3, 2 * d, -d) + own.sqrt() * noise(2 * i).double()
        yield x


GMS = Sampler(
    "GMS", gms, one_a_step, to_zero=False, consistent=False,
    options={"moments": MOMENTS, "component": COMPONENTS, "limits": CLAMPS},
)  # fmt: skip
