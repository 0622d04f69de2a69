"""The official archives of the published data sets, from downloads/ or from their addresses, as `data.SOURCES`."""

import io
import zipfile
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from fdm import data, downloads
from fdm.errors import FdmError

AFHQV2_URL = "https://www.dropbox.com/s/vkzjokiwof5h8w6/afhq_v2.zip?dl=1"
AFHQV2_IMAGES = 15_803  # training and test part together, as in EDM


def afhqv2() -> tuple[np.ndarray, np.ndarray]:
    """Animal faces (AFHQ v2, Choi et al. 2020), 15,803 images of 512x512, with Lanczos to 64x64; cat 0, dog 1, wild 2.

    Raises FdmError for an archive that cannot be had, is damaged, or holds another number of images.
    """
    path = downloads.fetch(AFHQV2_URL)
    images, labels = [], []
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.lower().endswith((".png", ".jpg")))
            classes = sorted({name.split("/")[-2] for name in names})
            for name in tqdm(names, desc="afhqv2", unit="img"):
                picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
                images.append(np.asarray(picture.resize((64, 64), Image.Resampling.LANCZOS)).transpose(2, 0, 1))
                labels.append(classes.index(name.split("/")[-2]))
    except (zipfile.BadZipFile, zlib.error, UnidentifiedImageError, OSError, IndexError) as error:
        raise FdmError(f"{path} is damaged ({error}); remove it and rerun, or put a whole copy there.") from error
    if len(images) != AFHQV2_IMAGES:
        raise FdmError(f"{path} holds {len(images):,} images, where AFHQ v2 has {AFHQV2_IMAGES:,}; replace it.")
    return np.stack(images), np.array(labels)


data.SOURCES["afhqv2"] = afhqv2
