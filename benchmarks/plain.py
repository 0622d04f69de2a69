"""The networks as they are usually written: what the package's own arithmetic is compared with.

Each layer does one thing, in the default memory layout (NCHW): a filter tensor is repeated for every channel and
resamples by grouped convolutions, attention multiplies with einsum, biases are added after the products, and the factor
of a sum is a pass of its own. So do the implementations that the paper builds on, as far as their descriptions tell.
Weights, gradients and outputs are those of `fdm.model.unet`; a test compares them, all parts together and one by one.
"""

import math
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdm.model import unet
from fdm.model.denoiser import Denoiser


def _conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    x = F.conv2d(x, layer.weight, padding=layer.kernel_size[0] // 2)
    return x if layer.bias is None else x.add_(layer.bias[:, None, None])


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    x = x @ layer.weight.t()
    return x if layer.bias is None else x.add_(layer.bias)


def _resample_conv(layer: unet.ResampleConv, x: Tensor, gain: float = 1.0) -> Tensor:
    channels, reach = x.shape[1], (len(layer.taps) - 1) // 2
    if layer.fused:  # the filter sees what a convolution with zeros around made
        x = F.conv2d(x, layer.weight, padding=layer.weight.shape[-1] // 2 + reach)
        x = F.conv2d(x, layer.resample_filter.tile(x.shape[1], 1, 1, 1), stride=2, groups=x.shape[1])
        assert layer.bias is not None
        return (x + layer.bias[:, None, None]) * gain
    filters = layer.resample_filter.tile(channels, 1, 1, 1)
    if layer.direction == "up":
        x = F.conv_transpose2d(x, 4 * filters, stride=2, padding=reach, groups=channels)
    else:
        x = F.conv2d(x, filters, stride=2, padding=reach, groups=channels)
    x = _conv(layer, x)
    return x if gain == 1 else x * gain


def _block(block: unet.UNetBlock, x: Tensor, emb: Tensor) -> Tensor:
    h = block.conv0(F.silu(block.norm0(x)))
    h = F.silu(block.norm1(h.add_(block.affine(emb)[:, :, None, None])))
    h = block.conv1(F.dropout(h, block.dropout, block.training))
    x = h.add_(x if block.skip is None else block.skip(x)) * unet.SKIP_SCALE
    if block.attention:
        n, c, height, width = x.shape
        q, k, v = block.qkv(block.norm2(x)).reshape(n, c, 3, height * width).unbind(2)
        weights = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(c)).softmax(dim=2)
        a = torch.einsum("nqk,nck->ncq", weights, v).reshape(n, c, height, width)
        x = block.proj(a).add_(x) * unet.SKIP_SCALE
    return x


# What can be put back by itself: the memory layout; up- and downsampling; the residual blocks, with their attention and
# biases; and, of the training, an optimiser and an average that go through the parameters one by one.
PARTS = ("layout", "resampling", "blocks", "optimiser")
_FORWARDS: list[tuple[str, type, Any]] = [
    ("resampling", unet.ResampleConv, _resample_conv), ("blocks", unet.UNetBlock, _block),
    ("blocks", nn.Conv2d, _conv), ("blocks", nn.Linear, _linear),
]  # fmt: skip


def plain(denoiser: Denoiser, parts: tuple[str, ...] = PARTS) -> Denoiser:
    """The same denoiser with these of its parts computed the usual way from now on; returned for convenience."""
    for module in denoiser.modules():
        for part, kind, forward in _FORWARDS:
            if isinstance(module, kind):
                if part in parts:
                    module.forward = types.MethodType(forward, module)
                break
    return denoiser.to(memory_format=torch.contiguous_format if "layout" in parts else torch.channels_last)
