"""One level of a two-dimensional wavelet transform: the four bands of images, half as high and wide."""

from collections.abc import Sequence

import torch
from torch import Tensor

WAVELETS = ("haar", "db2", "db4", "sym8")


def bands(x: Tensor, wavelet: str = "haar") -> list[Tensor]:
    """The bands of images (N, C, H, W): low, then horizontal, vertical and diagonal edges, (N, C, H/2, W/2) each.

    The transform is orthonormal. An odd height or width is made even by its last row or column once more.
    """
    x = torch.nn.functional.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), mode="replicate")
    if wavelet != "haar":
        import pywt  # which only these need

        low, edges = pywt.dwt2(x.cpu().numpy(), wavelet, mode="periodization")
        return [torch.as_tensor(each).to(x.device) for each in (low, *edges)]
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return [(a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]


def image(parts: Sequence[Tensor], shape: torch.Size, wavelet: str = "haar") -> Tensor:
    """The images of some bands, cut to the height and width of `shape`."""
    low, horizontal, vertical, diagonal = parts
    if wavelet != "haar":
        import pywt

        arrays = [each.cpu().numpy() for each in parts]
        whole = torch.as_tensor(pywt.idwt2((arrays[0], tuple(arrays[1:])), wavelet, mode="periodization"))
        return whole[..., : shape[-2], : shape[-1]].to(low.device)
    out = low.new_empty(*low.shape[:-2], 2 * low.shape[-2], 2 * low.shape[-1])
    out[..., ::2, ::2] = (low + horizontal + vertical + diagonal) / 2
    out[..., ::2, 1::2] = (low + horizontal - vertical - diagonal) / 2
    out[..., 1::2, ::2] = (low - horizontal + vertical - diagonal) / 2
    out[..., 1::2, 1::2] = (low - horizontal - vertical + diagonal) / 2
    return out[..., : shape[-2], : shape[-1]]
