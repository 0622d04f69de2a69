"""What is to be restored: linear measurements y = A x + noise of images in [-1, 1], through deepinv's physics.

Every A here has A A^T = c I where it measures, so that its pseudo-inverse is A^T / c. Masks and noise are from the seed
of each image alone.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdm.files import digest

Shape = tuple[int, int, int]


class Task(NamedTuple):
    """A kind of measurement. `physics(shape, seeds)` is deepinv's, for images of those seeds, float64."""

    label: str  # for tables and figures
    physics: Callable[[Shape, range], Any]
    gain: float  # c
    divides: int = 1  # what the resolution must be a multiple of


def _averages(factor: int, shape: Shape, seeds: range) -> Any:
    """The mean of each block of factor x factor pixels."""
    from deepinv.physics import Downsampling  # which takes seconds to import, as all of deepinv does

    box = torch.full((1, 1, factor, factor), 1 / factor**2, dtype=torch.float64)
    return Downsampling(img_size=shape, filter=box, factor=factor, padding="valid").double()


def _generator(what: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(digest([what, seed]), 16))


def _box(height: int, width: int, seed: int) -> Tensor:
    """All but a box of half the height and width."""
    generator, mask = _generator("box", seed), torch.ones(height, width, dtype=torch.float64)
    tall, wide = height // 2, width // 2
    top = int(torch.randint(height - tall + 1, (), generator=generator))
    left = int(torch.randint(width - wide + 1, (), generator=generator))
    mask[top : top + tall, left : left + wide] = 0
    return mask


def _random(height: int, width: int, seed: int) -> Tensor:
    """A quarter of the pixels, at random."""
    mask = torch.zeros(height * width, dtype=torch.float64)
    mask[torch.randperm(height * width, generator=_generator("random", seed))[: height * width // 4]] = 1
    return mask.reshape(height, width)


def _lines(height: int, width: int, seed: int) -> Tensor:
    """Lines of the Fourier plane: the lowest, and pairs k and -k at random up to a third of all."""
    generator, half = _generator("fourier", seed), height // 2
    lowest = max(1, height // 16)
    order = lowest + 1 + torch.randperm(half - lowest - 1, generator=generator)  # the highest has no pair
    chosen = [*range(lowest + 1), *order[: max(0, height // 6 - lowest)].tolist()]
    mask = torch.zeros(height, dtype=torch.float64)
    for k in chosen:
        mask[half + k] = mask[half - k] = 1
    return mask[:, None].expand(height, width).clone()


def _pixels(mask: Callable[[int, int, int], Tensor], shape: Shape, seeds: range) -> Any:
    from deepinv.physics import Inpainting

    masks = torch.stack([mask(*shape[1:], seed) for seed in seeds])[:, None].expand(-1, shape[0], -1, -1)
    return Inpainting(img_size=shape, mask=masks.clone())


def _frequencies(shape: Shape, seeds: range) -> Any:
    """Of real images: the mask has k with -k, so that what it keeps of one is real. A colour is a slice of its own."""
    from deepinv.physics import MRI, LinearPhysics

    channels, height, width = shape
    masks = torch.stack([_lines(height, width, seed) for seed in seeds])[:, None]
    each = masks.repeat_interleave(channels, 0).expand(-1, 2, -1, -1)
    mri = MRI(mask=each.clone(), img_size=(2, height, width))

    def measure(x: Tensor, **kwargs: Any) -> Tensor:
        slices = x.reshape(-1, 1, height, width)
        return mri.A(torch.cat([slices, torch.zeros_like(slices)], 1))

    def back(y: Tensor, **kwargs: Any) -> Tensor:
        return mri.A_adjoint(y)[:, :1].reshape(-1, *shape)

    return LinearPhysics(A=measure, A_adjoint=back, img_size=shape)


TASKS: dict[str, Task] = {
    "sr2": Task("super-resolution x2", functools.partial(_averages, 2), 1 / 4, 2),
    "sr4": Task("super-resolution x4", functools.partial(_averages, 4), 1 / 16, 4),
    "box": Task("inpainting, a box", functools.partial(_pixels, _box), 1.0),
    "random": Task("inpainting, a quarter known", functools.partial(_pixels, _random), 1.0),
    "fourier": Task("a third of the Fourier lines", _frequencies, 1.0),
}


class Measurement(NamedTuple):
    """Measurements y of images, and all that is known of how they came about."""

    physics: Any
    gain: float
    y: Tensor  # float64
    noise: float  # standard deviation of y's

    def back(self, y: Tensor) -> Tensor:
        """The pseudo-inverse of A, of the shape of the images."""
        return self.physics.A_adjoint(y) / self.gain

    @property
    def estimate(self) -> Tensor:
        """The pseudo-inverse of what was measured: block averages spread out, unknown pixels 0, which is grey."""
        return self.back(self.y)

    def project(self, x: Tensor) -> Tensor:
        """The part of images x that is measured: an orthogonal projection, which expands nothing."""
        return self.back(self.physics.A(x))

    @property
    def level(self) -> float:
        """Standard deviation of the measurement's noise in the part of an image that is measured, as sigma is meant."""
        return self.noise / self.gain**0.5

    def residual(self, x: Tensor) -> Tensor:
        """Root mean square a pixel between what is measured of images x and what was measured, (N,)."""
        return (self.project(x.double()) - self.estimate).square().mean(dim=(1, 2, 3)).sqrt()


def measure(task: str, images: Tensor, noise: float, seeds: range) -> Measurement:
    """Measure images (N, C, H, W) in [-1, 1] with noise of that standard deviation, each by its seed."""
    kind = TASKS[task]
    physics = kind.physics(tuple(images.shape[1:]), seeds)  # type: ignore[arg-type]
    y = physics.A(images.double().cpu())
    parts = y.reshape(len(images), -1)  # a colour may be a slice of its own
    unit = torch.stack([
        torch.randn(parts.shape[1], generator=_generator("measurement", seed), dtype=torch.float64) for seed in seeds
    ])  # fmt: skip
    # Where nothing is measured there is no noise either.
    known = physics.A(physics.A_adjoint(unit.reshape(y.shape))) / kind.gain
    return Measurement(physics, kind.gain, y + noise * known, noise)
