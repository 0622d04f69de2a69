"""The pictures of a font: emoji in colour, a set that any machine may have."""

import io

import numpy as np
from PIL import Image

from fdm.data import archives, downloads
from fdm.data.downloads import ARCHIVES
from fdm.files import FdmError, sha256
from fdm.params import DatasetParams

SIDE = 128  # pixels; a bitmap is 136x128, with four empty columns on either side


def emoji(params: DatasetParams) -> tuple[np.ndarray, np.ndarray]:
    """Emoji (Noto Color Emoji, Google), on white, with Lanczos to the resolution, in the order of their glyphs' names.

    Returns uint8 (3926, 3, resolution, resolution) and zeros, int64 (3926,). Raises FdmError where the font is not
    here or is another version, which holds other pictures; and for a profile that wants classes.
    """
    from fontTools.ttLib import TTFont

    if params.conditional:
        raise FdmError("dataset.conditional: true needs classes, and emoji have none; set it to false.")
    (archive,) = ARCHIVES["emoji"]
    path = downloads.locate_or_fetch(archive, params.path)
    if (found := sha256(path)) != archive.sha256:
        raise FdmError(
            f"{path} is another version of the font (SHA-256 {found[:12]}, not {str(archive.sha256)[:12]}): "
            f"{downloads.missing(archive)}."
        )
    images = []
    with TTFont(path, lazy=True) as font:
        (bitmaps,) = font["CBDT"].strikeData
        for name in sorted(bitmaps):
            with Image.open(io.BytesIO(bitmaps[name].imageData), formats=["PNG"]) as picture:
                left = (picture.width - SIDE) // 2
                square = archives.upright_rgb(picture).crop((left, 0, left + SIDE, SIDE))
            small = square.resize((params.resolution, params.resolution), Image.Resampling.LANCZOS)
            images.append(np.asarray(small).transpose(2, 0, 1))
    return np.stack(images), np.zeros(len(images), np.int64)
