"""The data sets by name: one object each."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fdm.data import archives, datasets, emoji, gaussians
from fdm.data.downloads import ARCHIVES, Archive
from fdm.params import DatasetParams


class Source(NamedTuple):
    """A data set: what it is called, where its images are from, and what they are, known before they are there."""

    label: str
    images: Callable[[DatasetParams], tuple[np.ndarray, np.ndarray]]  # uint8 (N, C, H, W), and classes, int64 (N,)
    size: int  # number of images, 0 where it is known only when they are there
    channels: int
    classes: int
    archives: tuple[Archive, ...] = ()
    licence: str = ""  # a sentence, where networks that were trained on it are given away
    # Images and classes that are held out, where the set has a part of its own for that; else a tenth of the images.
    held: Callable[[DatasetParams], tuple[np.ndarray, np.ndarray]] | None = None
    known: bool = False  # whether the images are draws of `gaussians.known`


def digits(params: DatasetParams) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits, 1,797 images of 8x8 in 17 shades, from scikit-learn (UCI ML repository)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return images[:, None], bunch.target.astype(np.int64)


def exact(params: DatasetParams) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the known distribution, uint8 (10000, 1, resolution, resolution), and classes: real images to compare
    with. Training draws its own."""
    mixture = gaussians.known(params.resolution)
    images, components = mixture.draw_labelled(DRAWN, _generator(0))
    assert mixture.labels is not None
    return datasets.to_uint8(images).numpy(), mixture.labels[components].numpy()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SOURCES = {
    "digits": Source(
        "digits", digits, 1797, 1, 10,
        licence="The digits are the UCI Machine Learning Repository's (CC BY 4.0), from scikit-learn.",
    ),
    "exact-gaussians": Source("exact Gaussians", exact, 10_000, 1, 10, known=True),
    "fashion-mnist": Source(
        "Fashion-MNIST", archives.fashion_mnist, 60000, 1, 10, (*ARCHIVES["fashion-mnist"],),
        held=archives.fashion_mnist_held, licence="The pictures of Fashion-MNIST are Zalando Research's (MIT).",
    ),
    "cifar10": Source(
        "CIFAR-10", archives.cifar10, 50000, 3, 10, (*ARCHIVES["cifar10"],), held=archives.cifar10_held
    ),
    "ffhq": Source("FFHQ", archives.ffhq, 70000, 3, 1, (*ARCHIVES["ffhq"],)),
    "afhqv2": Source("AFHQv2", archives.afhqv2, 15803, 3, 3, (*ARCHIVES["afhqv2"],)),
    "emoji": Source(
        "emoji", emoji.emoji, 3926, 3, 1, (*ARCHIVES["emoji"],),
        licence="The pictures are those of the font Noto Color Emoji (Google; SIL Open Font License 1.1).",
    ),
    "folder": Source("own images", archives.folder, 0, 3, 1),
}  # fmt: skip


DRAWN = SOURCES["exact-gaussians"].size
MOST_HELD = 1000
FINENESS = 4096  # steps of one in held-out images of a known distribution


def _tensors(params: DatasetParams) -> dict[str, Tensor]:
    """What the file of a data set holds: the images that are trained on and, apart, those that are held out."""
    source = SOURCES[params.name]
    images, labels = (torch.from_numpy(array) for array in source.images(params))
    if source.known:
        mixture = gaussians.known(params.resolution)
        held, components = mixture.draw_labelled(MOST_HELD, _generator(1))
        held = (held * FINENESS).round() / FINENESS  # so that it is the same on machines whose last bits differ
        assert mixture.labels is not None
        own = {"held": held.float(), "held_labels": mixture.labels[components]}
        parts = {part: getattr(mixture, part.removeprefix("mixture.")) for part in datasets.PARTS}
        return {"images": images, "labels": labels} | own | parts
    if source.held:
        held, held_labels = (torch.from_numpy(array) for array in source.held(params))
    else:
        order = torch.randperm(len(images), generator=_generator(1))
        n = min(len(images) // 10, MOST_HELD)
        mine, others = order[:n].sort().values, order[n:].sort().values
        held, held_labels, images, labels = images[mine], labels[mine], images[others], labels[others]
    return {"images": images, "labels": labels, "held": held, "held_labels": held_labels}


def trained_on(name: str) -> int:
    """Number of images that training sees, 0 where it is known only when they are there, or where there is no end."""
    source = SOURCES[name]
    if source.known:
        return 0
    return source.size if source.held else source.size - min(source.size // 10, MOST_HELD)


def prepare(params: DatasetParams, path: Path) -> datasets.Dataset:
    """Make the file of a profile's data set at `path`; raises FdmError for what the source of the images refuses."""
    return datasets.write(params, _tensors(params), path)
