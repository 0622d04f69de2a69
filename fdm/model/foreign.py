"""Networks of other makers as the raw network F of a denoiser."""

from typing import Any

from torch import Tensor, nn


class Foreign(nn.Module):
    """Any network that maps (x, c_noise) or (x, c_noise, class_labels) to an output of the shape of x.

    It is called with c_in x (N, C, H, W) and c_noise (N,), and with one-hot class_labels (N, classes) where there are
    classes. What it returns may hold its output as `sample`, as diffusers' networks do.
    """

    def __init__(self, net: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.net = net
        self.channels, self.resolution, width = shape
        if width != self.resolution:
            raise ValueError(f"the shape {shape} is not allowed; images are square: channels, side, side")
        self.label_dim = classes

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """F, (N, C, H, W)."""
        told = () if class_labels is None else (class_labels,)
        found: Any = self.net(x, noise_labels, *told)
        return getattr(found, "sample", found)
