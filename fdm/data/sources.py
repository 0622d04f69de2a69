"""The data sets by name: one object each."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fdm.data import archives, datasets
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


def digits(params: DatasetParams) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits, 1,797 images of 8x8 in 17 shades, from scikit-learn (UCI ML repository)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return images[:, None], bunch.target.astype(np.int64)


SOURCES = {
    "digits": Source(
        "digits", digits, 1797, 1, 10,
        licence="The digits are the UCI Machine Learning Repository's (CC BY 4.0), from scikit-learn.",
    ),
    "fashion-mnist": Source("Fashion-MNIST", archives.fashion_mnist, 60000, 1, 10, (*ARCHIVES["fashion-mnist"],)),
    "cifar10": Source("CIFAR-10", archives.cifar10, 50000, 3, 10, (*ARCHIVES["cifar10"],)),
    "ffhq": Source("FFHQ", archives.ffhq, 70000, 3, 1, (*ARCHIVES["ffhq"],)),
    "afhqv2": Source("AFHQv2", archives.afhqv2, 15803, 3, 3, (*ARCHIVES["afhqv2"],)),
    "folder": Source("own images", archives.folder, 0, 3, 1),
}  # fmt: skip


def prepare(params: DatasetParams, path: Path) -> datasets.Dataset:
    """Make the file of a profile's data set at `path`; raises FdmError for what the source of the images refuses."""
    images, labels = (torch.from_numpy(array) for array in SOURCES[params.name].images(params))
    return datasets.write(params, images, labels, path)
