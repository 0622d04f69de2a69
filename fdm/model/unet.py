"""The raw networks F: DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456) as EDM and FDM use them.

Parameter names are those of the published checkpoints, so that those load without renaming.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdm.params import Architecture

SKIP_SCALE = math.sqrt(0.5)  # keeps the variance of a sum of two branches


def _xavier(module: nn.Conv2d | nn.Linear, gain: float = 1.0) -> None:
    # The bound uses gain on the weight itself, so that 1e-5 gives an almost silent layer.
    nn.init.xavier_uniform_(module.weight, gain=gain)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def conv(cin: int, cout: int, kernel: int, gain: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the resolution, Xavier-uniform."""
    layer = nn.Conv2d(cin, cout, kernel, padding=kernel // 2)
    _xavier(layer, gain)
    return layer


def scaled(layer: nn.Conv2d, x: Tensor, gain: float) -> Tensor:
    """The convolution `layer` of x, times `gain`: its weight is scaled, which is much smaller than what comes out."""
    if isinstance(layer, ResampleConv):
        return layer(x, gain)
    assert layer.bias is not None
    return F.conv2d(x, layer.weight * gain, layer.bias * gain, padding=layer.kernel_size[0] // 2)


def linear(cin: int, cout: int, bias: bool = True) -> nn.Linear:
    """A fully connected layer, Xavier-uniform."""
    layer = nn.Linear(cin, cout, bias=bias)
    _xavier(layer)
    return layer


def group_norm(channels: int, eps: float = 1e-6) -> nn.GroupNorm:
    """Group normalisation with at least 4 channels a group and at most 32 groups."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


class ResampleConv(nn.Conv2d):
    """A convolution at the coarse end of a factor-2 resampling with the separable filter `taps`.

    `fused=True` convolves at the fine resolution and filters afterwards (NCSN++'s residual branch); the others
    resample first, or do what comes to the same in fewer multiplications.
    """

    def __init__(
        self, cin: int, cout: int, kernel: int, taps: tuple[int, ...], direction: str, fused: bool = False
    ) -> None:
        super().__init__(cin, cout, kernel, padding=kernel // 2)
        _xavier(self)
        f = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("resample_filter", (f.outer(f) / f.sum() ** 2)[None, None])
        self.resample_filter: Tensor
        self.taps, self.direction, self.fused = taps, direction, fused

    def resample(self, x: Tensor, padding: int) -> Tensor:
        """Up- or downsample x (N, C, H, W) by 2."""
        if self.taps == (1, 1):  # the box filter: nearest neighbours up, means down
            if self.direction == "up":
                return F.interpolate(x, scale_factor=2.0, mode="nearest")
            return F.avg_pool2d(x, 2)
        channels = x.shape[1]
        f = self.resample_filter.expand(channels, 1, -1, -1)
        if self.direction == "up":
            return F.conv_transpose2d(x, f * 4, stride=2, padding=padding, groups=channels)
        return F.conv2d(x, f, stride=2, padding=padding, groups=channels)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """x (N, cin, H, W), resampled and convolved, times `gain`."""
        assert self.bias is not None
        kernel, f_pad = self.weight.shape[-1], (len(self.taps) - 1) // 2
        weight, bias = (self.weight * gain, self.bias * gain) if gain != 1 else (self.weight, self.bias)
        if self.fused:
            return self.resample(F.conv2d(x, weight, bias, padding=kernel // 2 + f_pad), 0)
        if self.direction == "down" or self.taps != (1, 1):
            return F.conv2d(self.resample(x, f_pad), weight, bias, padding=kernel // 2)
        if kernel == 1:  # copying pixels may come last: a quarter of the work
            return self.resample(F.conv2d(x, weight, bias), 0)
        # Among nine neighbours at the fine resolution are at most four different pixels. Their weights are added, and
        # a transposed convolution of 4x4 needs four products where nine were needed.
        sums = F.avg_pool2d(F.pad(weight.flip(2, 3), (1, 1, 1, 1)), 2, stride=1, divisor_override=1)
        return F.conv_transpose2d(x, sums.transpose(0, 1), bias, stride=2, padding=1)


class UNetBlock(nn.Module):
    """Residual block with a noise-level embedding and optional single-head self-attention."""

    def __init__(
        self,
        cin: int,
        cout: int,
        emb_channels: int,
        dropout: float,
        taps: tuple[int, ...],
        direction: Literal["up", "down"] | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.cin, self.dropout = cin, dropout
        self.norm0 = group_norm(cin)
        self.conv0: nn.Conv2d = ResampleConv(cin, cout, 3, taps, direction) if direction else conv(cin, cout, 3)
        self.affine = linear(emb_channels, cout)
        self.norm1 = group_norm(cout)
        self.conv1 = conv(cout, cout, 3, gain=1e-5)
        self.skip: nn.Conv2d | None = None
        if direction:
            self.skip = ResampleConv(cin, cout, 1, taps, direction)
        elif cin != cout:
            self.skip = conv(cin, cout, 1)
        self.attention = attention
        if attention:
            self.norm2 = group_norm(cout)
            self.qkv = conv(cout, 3 * cout, 1, gain=math.sqrt(0.2))
            self.proj = conv(cout, cout, 1, gain=1e-5)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (N, cin, H, W), emb (N, emb_channels) -> (N, cout, H', W')."""
        # A pass over the activations costs a good part of a convolution here. What may be done in place is, and
        # SKIP_SCALE multiplies weights. Training keeps what SiLU was given.
        inplace = not torch.is_grad_enabled()
        h = self.conv0(F.silu(self.norm0(x), inplace))
        h = F.silu(self.norm1(h.add_(self.affine(emb)[:, :, None, None])), inplace)
        h = scaled(self.conv1, F.dropout(h, self.dropout, self.training), SKIP_SCALE)
        x = h.add_(x, alpha=SKIP_SCALE) if self.skip is None else h.add_(scaled(self.skip, x, SKIP_SCALE))
        if self.attention:
            n, c, height, width = x.shape
            # The published layout interleaves the three: channel 3 i + {0, 1, 2} is {q, k, v} of channel i. One copy
            # here spares one for each image later, since matrix products want contiguous factors.
            qkv = self.qkv(self.norm2(x)).reshape(n, c, 3, height * width)
            q, k, v = qkv.permute(2, 0, 3, 1).contiguous()[:, :, None].unbind(0)
            a = F.scaled_dot_product_attention(q, k, v)  # (n, 1, pixels, c)
            a = a.transpose(2, 3).reshape(n, c, height, width)
            x = scaled(self.proj, a, SKIP_SCALE).add_(x, alpha=SKIP_SCALE)
        return x


class PositionalEmbedding(nn.Module):
    """Sinusoids of geometrically spaced frequencies from 1 to 1/10000 (DDPM++)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pairs = channels // 2

    def forward(self, noise_labels: Tensor) -> Tensor:
        """(N,) -> (N, channels), sines first."""
        exponents = torch.arange(self.pairs, dtype=torch.float32, device=noise_labels.device) / (self.pairs - 1)
        angles = noise_labels.outer((1 / 10000) ** exponents)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class FourierEmbedding(nn.Module):
    """Sinusoids of random, fixed frequencies (NCSN++)."""

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)
        self.freqs: Tensor

    def forward(self, noise_labels: Tensor) -> Tensor:
        """(N,) -> (N, channels), sines first."""
        angles = noise_labels.outer(2 * math.pi * self.freqs)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class UNet(nn.Module):
    """DDPM++ or NCSN++: a U-Net over `resolution`, halved once for each further entry of `channel_mult`.

    NCSN++ differs in its Fourier embedding (twice as wide), the filter [1, 3, 3, 1] instead of [1, 1], and a
    residual branch that feeds the downsampled input into each level of the encoder.
    """

    def __init__(
        self,
        architecture: Architecture,
        resolution: int,
        channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        num_blocks: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.10,
    ) -> None:
        super().__init__()
        ncsnpp = architecture == "ncsnpp"
        self.resolution, self.channels, self.label_dim, self.augment_dim = (
            resolution,
            channels,
            label_dim,
            augment_dim,
        )
        taps = (1, 3, 3, 1) if ncsnpp else (1, 1)
        noise_channels = model_channels * (2 if ncsnpp else 1)
        emb_channels = model_channels * 4

        self.map_noise = FourierEmbedding(noise_channels) if ncsnpp else PositionalEmbedding(noise_channels)
        self.map_label = linear(label_dim, noise_channels) if label_dim else None
        self.map_augment = linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = linear(noise_channels, emb_channels)
        self.map_layer1 = linear(emb_channels, emb_channels)

        def block(
            cin: int, cout: int, direction: Literal["up", "down"] | None = None, attention: bool = False
        ) -> UNetBlock:
            return UNetBlock(cin, cout, emb_channels, dropout, taps, direction, attention)

        self.enc = nn.ModuleDict()
        width, aux_width, skips = channels, channels, []
        for level, mult in enumerate(channel_mult):
            res = resolution >> level
            name = f"{res}x{res}"
            if level == 0:
                width = model_channels
                self.enc[f"{name}_conv"] = conv(channels, width, 3)
            else:
                self.enc[f"{name}_down"] = block(width, width, "down")
                if ncsnpp:
                    self.enc[f"{name}_aux_residual"] = ResampleConv(aux_width, width, 3, taps, "down", fused=True)
                    aux_width = width
            skips.append(width)
            for i in range(num_blocks):
                cin, width = width, model_channels * mult
                self.enc[f"{name}_block{i}"] = block(cin, width, attention=res in attn_resolutions)
                skips.append(width)

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = resolution >> level
            name = f"{res}x{res}"
            if level == len(channel_mult) - 1:
                self.dec[f"{name}_in0"] = block(width, width, attention=True)
                self.dec[f"{name}_in1"] = block(width, width)
            else:
                self.dec[f"{name}_up"] = block(width, width, "up")
            for i in range(num_blocks + 1):
                cin, width = width + skips.pop(), model_channels * mult
                attention = i == num_blocks and res in attn_resolutions
                self.dec[f"{name}_block{i}"] = block(cin, width, attention=attention)
        self.dec[f"{resolution}x{resolution}_aux_norm"] = group_norm(width)
        self.dec[f"{resolution}x{resolution}_aux_conv"] = conv(width, channels, 3, gain=1e-5)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x (N, C, H, W), noise_labels (N,), class_labels one-hot (N, classes), augment_labels (N, 9) -> as x.

        Missing augmentation labels mean an image as it was; missing class labels mean no class.
        """
        emb = self.embed(noise_labels, class_labels, augment_labels)
        return self.decode(self.encode(x, emb), emb)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """What all blocks are told besides x, (N, 4 model_channels)."""
        emb = self.map_noise(noise_labels)
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(class_labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """What the encoder makes of x, level by level; the last, (N, c, h, w), is the coarsest."""
        aux, skips = x, list[Tensor]()
        for layer in self.enc.values():
            if isinstance(layer, UNetBlock):
                x = layer(x, emb)
            elif isinstance(layer, ResampleConv):  # the residual branch joins the level it has reached
                x = aux = (x + layer(aux)) * SKIP_SCALE
                skips.pop()
            else:
                x = layer(x)
            skips.append(x)
        return skips

    def decode(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        """The output, of the shape of x, from what the encoder made, which it uses up."""
        x = skips[-1]
        for layer in self.dec.values():
            if isinstance(layer, UNetBlock):
                x = layer(torch.cat([x, skips.pop()], dim=1) if layer.cin != x.shape[1] else x, emb)
            elif isinstance(layer, nn.GroupNorm):
                x = F.silu(layer(x))
            else:
                x = layer(x)
        return x
