"""A data set as one checksummed, memory-mapped file."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fdm.files import FdmError, hash_of, replace
from fdm.params import DatasetParams


class Dataset(NamedTuple):
    """Images with their classes."""

    name: str
    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,), 0 to classes - 1
    classes: int
    sha256: str  # of images and labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        c, h, w = self.images.shape[1:]
        return c, h, w


def write(params: DatasetParams, images: Tensor, labels: Tensor, path: Path) -> Dataset:
    """Write the file of a data set, images uint8 (N, C, H, W) and classes int64 (N,) from 0 up, and read it back.

    Raises FdmError for images of another resolution than the parameters'.
    """
    name, resolution = params.name, params.resolution
    if tuple(images.shape[2:]) != (resolution, resolution):
        raise FdmError(
            f"dataset.resolution: {resolution} is not allowed; the images of {name} are "
            f"{images.shape[2]}x{images.shape[3]}."
        )
    tensors = {"images": images.contiguous(), "labels": labels.contiguous()}
    description = {"name": name, "classes": int(labels.max()) + 1, "sha256": hash_of(tensors)}
    # One metadata key: safetensors writes several in random order, and equal data must be equal bytes.
    replace(path, lambda part: save_file(tensors, part, {"dataset": json.dumps(description)}))
    return load(path)


def load(path: Path) -> Dataset:
    """Open a prepared data set; raises FdmError when the file is missing, truncated or altered."""
    remedy = "remove it and run dvc repro to prepare it again"
    if not path.is_file():
        raise FdmError(f"The data set {path} is missing; run dvc repro to prepare it.")
    try:
        with safe_open(path, "pt") as file:
            description = json.loads((file.metadata() or {})["dataset"])
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise FdmError(f"The data set {path} is damaged or truncated ({error}); {remedy}.") from error
    if hash_of({"images": images, "labels": labels}) != description["sha256"]:
        raise FdmError(f"The data set {path} does not have the content its checksum promises; {remedy}.")
    return Dataset(description["name"], images, labels, description["classes"], description["sha256"])


def to_float(images: Tensor) -> Tensor:
    """uint8 images, 0 to 255, to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] (clipped) to uint8, 0 to 255."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def halves(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two disjoint random halves of range(n), sorted, equally large: the reference and the calibration images."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: n // 2].sort().values, order[n // 2 : 2 * (n // 2)].sort().values
