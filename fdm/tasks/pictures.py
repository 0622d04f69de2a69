"""Samples as a picture file."""

import math
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from fdm.files import FdmError, replace

SIDE = 32  # pixels that a sample has at least in a picture, which 8x8 digits would not


def write_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write images, uint8 (N, C, H, W), in rows of equal length as one picture; its name's end is the format.

    A row has so many `columns`, or about as many as there are rows.

    Raises FdmError for a format that is unknown, and for a place that cannot be written to.
    """
    known = Image.registered_extensions()
    if path.suffix.lower() not in known:
        raise FdmError(f"{path} does not tell a picture's format; its name ends in .png, for instance.")
    larger = max(1, SIDE // images.shape[-1])
    images = images.repeat_interleave(larger, 2).repeat_interleave(larger, 3)
    grid = make_grid(images, nrow=columns or math.ceil(math.sqrt(len(images))), padding=2, pad_value=110)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    replace(path, lambda part: picture.save(part, format=known[path.suffix.lower()]))
