"""A data set as one checksummed, memory-mapped file."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fdm.files import FdmError, hash_of, replace
from fdm.model.oracle import Mixture
from fdm.params import DatasetParams


class Dataset(NamedTuple):
    """Images with their classes. Training sees `images`, or, of a known distribution, a fresh draw of it a step."""

    name: str
    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,), 0 to classes - 1
    held: Tensor  # held out of every training: uint8, or float32 in [-1, 1] where the distribution is known
    held_labels: Tensor  # int64
    classes: int
    sha256: str  # of all that it holds
    mixture: Mixture | None = None  # the distribution that the images are drawn from, where it is known

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    def fresh(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """n images of the known distribution, float32 (n, C, H, W), and their classes (n,), from a seed."""
        assert self.mixture is not None and self.mixture.labels is not None
        images, components = self.mixture.draw_labelled(n, torch.Generator().manual_seed(seed))
        return images.float(), self.mixture.labels[components]


def nothing(name: str, shape: tuple[int, ...], classes: int, sha256: str = "") -> Dataset:
    """A data set without images, for what depends on their shape (C, H, W) and classes alone."""
    images, labels = torch.empty(0, *shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    return Dataset(name, images, labels, images, labels, classes, sha256)


PARTS = [f"mixture.{part}" for part in ("weights", "means", "deviations", "labels", "axes", "spreads")]  # its arguments


def write(params: DatasetParams, tensors: dict[str, Tensor], path: Path) -> Dataset:
    """Write the file of a data set and read it back.

    `tensors` are images and held, (N, C, H, W), labels and held_labels, int64 from 0 up, and the `PARTS` of a mixture
    where it is known. Raises FdmError for images of another resolution than the parameters'.
    """
    name, resolution, images = params.name, params.resolution, tensors["images"]
    if tuple(images.shape[2:]) != (resolution, resolution):
        raise FdmError(
            f"dataset.resolution: {resolution} is not allowed; the images of {name} are "
            f"{images.shape[2]}x{images.shape[3]}."
        )
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    classes = int(torch.cat([tensors["labels"], tensors["held_labels"]]).max()) + 1  # some may all be held out
    description = {"name": name, "classes": classes, "sha256": hash_of(tensors)}
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
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, as it is no dictionary
        parts = [tensors[key] for key in ("images", "labels", "held", "held_labels")]
        name, classes, checksum = (description[key] for key in ("name", "classes", "sha256"))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise FdmError(f"The data set {path} is damaged or truncated ({error}); {remedy}.") from error
    if hash_of(tensors) != checksum:
        raise FdmError(f"The data set {path} does not have the content its checksum promises; {remedy}.")
    mixture = Mixture(*(tensors[key] for key in PARTS)) if PARTS[0] in tensors else None
    images, labels, held, held_labels = parts
    return Dataset(name, images, labels, held, held_labels, classes, checksum, mixture)


def to_float(images: Tensor) -> Tensor:
    """uint8 images, 0 to 255, to float32 in [-1, 1]; images that are float32 already stay as they are."""
    return images if images.dtype == torch.float32 else images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] (clipped) to uint8, 0 to 255."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def halves(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two disjoint random halves of range(n), sorted, equally large: the reference and the calibration images."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: n // 2].sort().values, order[n // 2 : 2 * (n // 2)].sort().values
