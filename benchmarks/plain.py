"""The networks as they are usually written: what the package's own arithmetic is compared with.

Each layer does one thing, in the default memory layout (NCHW): a filter tensor is repeated for every channel and
resamples by grouped convolutions, attention multiplies with einsum, biases are added after the products, and the factor
of a sum is a pass of its own. So do the implementations that the paper builds on, as far as their descriptions tell.
Weights, gradients and outputs are those of `fdm.networks`; a test compares them.
"""

import math
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdm import networks
from fdm.preconditioning import Denoiser


def _conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    x = F.conv2d(x, layer.weight, padding=layer.kernel_size[0] // 2)
    return x if layer.bias is None else x.add_(layer.bias[:, None, None])


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    x = x @ layer.weight.t()
    return x if layer.bias is None else x.add_(layer.bias)


def _resample_conv(layer: networks.ResampleConv, x: Tensor) -> Tensor:
    channels, reach = x.shape[1], (len(layer.taps) - 1) // 2
    if layer.fused:  # the filter sees what a convolution with zeros around made
        x = F.conv2d(x, layer.weight, padding=layer.weight.shape[-1] // 2 + reach)
        x = F.conv2d(x, layer.resample_filter.tile(x.shape[1], 1, 1, 1), stride=2, groups=x.shape[1])
        assert layer.bias is not None
        return x + layer.bias[:, None, None]
    filters = layer.resample_filter.tile(channels, 1, 1, 1)
    if layer.direction == "up":
        x = F.conv_transpose2d(x, 4 * filters, stride=2, padding=reach, groups=channels)
    else:
        x = F.conv2d(x, filters, stride=2, padding=reach, groups=channels)
    return _conv(layer, x)


def _block(block: networks.UNetBlock, x: Tensor, emb: Tensor) -> Tensor:
    h = block.conv0(F.silu(block.norm0(x)))
    h = F.silu(block.norm1(h.add_(block.affine(emb)[:, :, None, None])))
    h = block.conv1(F.dropout(h, block.dropout, block.training))
    x = h.add_(x if block.skip is None else block.skip(x)) * networks.SKIP_SCALE
    if block.attention:
        n, c, height, width = x.shape
        q, k, v = block.qkv(block.norm2(x)).reshape(n, c, 3, height * width).unbind(2)
        weights = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(c)).softmax(dim=2)
        a = torch.einsum("nqk,nck->ncq", weights, v).reshape(n, c, height, width)
        x = block.proj(a).add_(x) * networks.SKIP_SCALE
    return x


def plain(denoiser: Denoiser) -> Denoiser:
    """The same denoiser, which from now on computes the usual way; returned for convenience."""
    kinds: list[tuple[type, Any]] = [
        (networks.ResampleConv, _resample_conv), (nn.Conv2d, _conv), (nn.Linear, _linear), (networks.UNetBlock, _block),
    ]  # fmt: skip
    for module in denoiser.modules():
        for kind, forward in kinds:
            if isinstance(module, kind):
                module.forward = types.MethodType(forward, module)
                break
    return denoiser.to(memory_format=torch.contiguous_format)
