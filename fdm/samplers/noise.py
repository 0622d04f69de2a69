"""Unit noise by the seeds of the samples: sample i is the same whatever the batch and the number of processes."""

import torch
from torch import Tensor

from fdm.files import digest


class UnitNoise:
    """Standard normal noise of step i for the samples of some seeds, (N, C, H, W), each from (its seed, i) alone."""

    def __init__(self, seeds: range, shape: tuple[int, int, int], device: str = "cpu") -> None:
        self.seeds, self.shape, self.device = seeds, shape, device

    def __call__(self, step: int) -> Tensor:
        """The noise of step 0, 1, ..."""
        out = torch.empty(len(self.seeds), *self.shape)
        for i, seed in enumerate(self.seeds):
            # Of 48 bits and apart from the latents, whose seeds are the small numbers themselves.
            generator = torch.Generator().manual_seed(int(digest(["noise", seed, step]), 16))
            out[i] = torch.randn(self.shape, generator=generator)
        return out.to(self.device)
