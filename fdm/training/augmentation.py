"""The non-leaky geometric augmentation of EDM (arXiv 2206.00364, Appendix F.2): flips and affine warps.

Each image is transformed at random and the network is told how, so that it can learn from warped images without
generating any. A warp is resampled at twice the resolution between two orthogonal sym6 wavelet filters.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LABELS = 9  # numbers that describe one image's transformation to the network

# The sym6 low-pass filter (Daubechies' least asymmetric wavelet with 6 vanishing moments); it sums to sqrt(2).
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
MARGIN = 6  # pixels: the reach of the two filters


class Transforms(NamedTuple):
    """How each of N images is transformed; every field is (N,), and 0 leaves the image as it is."""

    xflip: Tensor  # 1 mirrors left and right
    yflip: Tensor  # 1 mirrors top and bottom
    scale: Tensor  # enlarge by 2^(0.2 scale)
    angle: Tensor  # rotate, radians; y points down
    aniso: Tensor  # enlarge by 2^(0.2 aniso) along aniso_angle, and shrink as much across it
    aniso_angle: Tensor  # radians
    shift_x: Tensor  # shift by 0.125 shift_x of the width
    shift_y: Tensor  # shift by 0.125 shift_y of the height

    def labels(self) -> Tensor:
        """What the network is told, (N, 9)."""
        a, r = self.angle, self.aniso_angle
        shift = self.shift_x, self.shift_y
        aniso = self.aniso * r.cos(), self.aniso * r.sin()
        return torch.stack([self.xflip, self.yflip, self.scale, a.cos() - 1, a.sin(), *aniso, *shift], dim=1)


def draw_transforms(n: int, p: float, generator: torch.Generator) -> Transforms:
    """Random transformations of n images: each kind with probability p in [0, 1], except that the horizontal flip
    is drawn for every image where p > 0."""
    device = generator.device

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, device=device)

    def normal() -> Tensor:
        return torch.randn(n, generator=generator, device=device)

    def coin() -> Tensor:
        return (uniform() < 0.5).float()

    def sometimes() -> Tensor:
        return (uniform() < p).float()

    shift = sometimes()
    return Transforms(
        xflip=coin() * (p > 0),
        yflip=coin() * sometimes(),
        scale=normal() * sometimes(),
        angle=uniform(-math.pi, math.pi) * sometimes(),
        aniso=normal() * sometimes(),
        aniso_angle=uniform(-math.pi, math.pi) * coin(),
        shift_x=normal() * shift,
        shift_y=normal() * shift,
    )


def _affine(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    """(N, 3, 3) matrices from a table of (N,) tensors and numbers."""
    full = [[torch.as_tensor(v, dtype=like.dtype, device=like.device).expand(like.shape) for v in row] for row in rows]
    return torch.stack([torch.stack(row, dim=-1) for row in full], dim=-2)


def _scale(x: Tensor, y: Tensor) -> Tensor:
    return _affine([[x, 0, 0], [0, y, 0], [0, 0, 1]], x)


def _rotate(a: Tensor) -> Tensor:
    return _affine([[a.cos(), -a.sin(), 0], [a.sin(), a.cos(), 0], [0, 0, 1]], a)


def _shift(x: Tensor, y: Tensor) -> Tensor:
    return _affine([[1, 0, x], [0, 1, y], [0, 0, 1]], x)


def transform(images: Tensor, t: Transforms) -> Tensor:
    """Apply `t` to images (N, C, H, W); flips are exact, warps resampled with reflected borders."""
    flip_x, flip_y = (t.xflip == 1).reshape(-1, 1, 1, 1), (t.yflip == 1).reshape(-1, 1, 1, 1)
    images = torch.where(flip_x, images.flip(3), images)
    images = torch.where(flip_y, images.flip(2), images)

    # The filters reconstruct perfectly, so an image that is not warped needs no resampling.
    warped = torch.stack([t.scale, t.angle, t.aniso, t.shift_x, t.shift_y]).ne(0).any(dim=0).nonzero()[:, 0]
    if len(warped) == 0:
        return images
    height, width = images.shape[2:]
    s, a, w, r, dx, dy = (v[warped] for v in t[2:])
    grow, stretch = 2 ** (-0.2 * s), 2 ** (-0.2 * w)
    # From a pixel of the result back to the point of the original it shows, both measured from the centre.
    inverse = _scale(grow, grow) @ _rotate(a)
    inverse = inverse @ _rotate(-r) @ _scale(stretch, 1 / stretch) @ _rotate(r)
    inverse = inverse @ _shift(-0.125 * width * dx, -0.125 * height * dy)
    out = images.clone()
    out[warped] = _warp(images[warped], inverse)
    return out


def _warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Resample images (N, C, H, W) by the maps `inverse` (N, 3, 3), in pixels from the centre."""
    channels, height, width = images.shape[1:]
    # How far outside the image any corner of the result looks; reflection cannot give more than H - 1 or W - 1.
    half = torch.tensor([[(width - 1) / 2], [(height - 1) / 2]], dtype=inverse.dtype, device=inverse.device)
    corners = half * torch.tensor([[-1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, 1.0]], device=inverse.device)
    seen = inverse[:, :2, :2] @ corners + inverse[:, :2, 2:]
    beyond = (torch.stack([-seen, seen]).amax(dim=(1, 3)) - half[:, 0] + MARGIN).ceil().int().tolist()
    (left, top), (right, bottom) = (
        [min(max(v, 0), limit) for v, limit in zip(side, (width - 1, height - 1), strict=True)] for side in beyond
    )
    images = F.pad(images, [left, right, top, bottom], mode="reflect")

    # Twice the resolution: zeros between the pixels, then the filter along each axis.
    taps = torch.tensor(SYM6, dtype=images.dtype, device=images.device)
    n, _, h, w = images.shape
    fine = images.new_zeros(n, channels, 2 * h - 1, 2 * w - 1)
    fine[:, :, ::2, ::2] = images
    up = taps.flip(0).expand(channels, 1, -1)
    fine = F.conv2d(fine, up[:, :, None, :], groups=channels, padding=(0, MARGIN))
    fine = F.conv2d(fine, up[:, :, :, None], groups=channels, padding=(MARGIN, 0))

    # In coordinates of affine_grid, -1 to 1 over each whole picture. The padded picture is off the centre by half
    # the difference of its margins, and the fine one by a quarter of a pixel that the filter's phase adds.
    rows, columns = 2 * (height + MARGIN), 2 * (width + MARGIN)
    one = inverse.new_ones(len(inverse))
    inverse = _shift(one * (left - right) / 2, one * (top - bottom) / 2) @ inverse
    inverse = _scale(2 * one, 2 * one) @ inverse @ _scale(one / 2, one / 2)
    inverse = _shift(-one / 2, -one / 2) @ inverse @ _shift(one / 2, one / 2)
    inverse = _scale(2 / fine.shape[3] * one, 2 / fine.shape[2] * one) @ inverse
    inverse = inverse @ _scale(columns / 2 * one, rows / 2 * one)
    grid = F.affine_grid(inverse[:, :2], [n, channels, rows, columns], align_corners=False)
    fine = F.grid_sample(fine, grid.to(fine.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)

    down = taps.expand(channels, 1, -1)
    crop = MARGIN // 2
    fine = F.conv2d(fine, down[:, :, None, :], groups=channels, stride=(1, 2), padding=(0, MARGIN - 1))
    fine = F.conv2d(fine, down[:, :, :, None], groups=channels, stride=(2, 1), padding=(MARGIN - 1, 0))
    return fine[:, :, crop:-crop, crop:-crop]
