"""Anyone's pictures restored: read, measured where they are whole, and put side by side."""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fdm.files import FdmError
from fdm.model.denoiser import Denoise
from fdm.tasks import physics
from fdm.tasks.restoration.methods import RESTORERS

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
LARGEST = 2**24  # pixels of a picture that is read


class Told:
    """A denoiser of one class, for images of which it is known."""

    condition = None

    def __init__(self, denoiser: Denoise, label: int) -> None:
        self.denoiser, self.label = denoiser, label
        self.shape, self.classes, self.sigma_range = denoiser.shape, 0, denoiser.sigma_range

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """D(x; sigma) of the class."""
        labels = torch.eye(self.denoiser.classes, device=x.device)[self.label].expand(len(x), -1)
        return self.denoiser(x, sigma, labels)


def read(path: Path, channels: int) -> Tensor:
    """A picture, float32 (1, C, H, W) in [-1, 1], grey or of three colours; FdmError where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > LARGEST:
                    raise FdmError(f"{path} has {picture.width} x {picture.height} pixels, which is too many.")
                image = picture.convert("L" if channels == 1 else "RGB")
    except FdmError:
        raise
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError, Warning) as error:
        raise FdmError(f"{path} is no picture that can be read; {', '.join(FORMATS)} can.") from error
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return (pixels.reshape(1, image.height, image.width, channels).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def measurement(task: str, y: Tensor, shape: physics.Shape, noise: float, seeds: range, mask: Tensor | None) -> Any:
    """What is known of images of that shape from measurements y, as `physics.see` gives it.

    `y` is (N, C, h, w): block averages, or images in which `mask` (H, W) says which pixels are known; in the other
    tasks the images' seeds say what is. Raises FdmError for another size, for values that are not finite, and for a
    mask without known pixels.
    """
    if task not in physics.TASKS:
        raise FdmError(f"There is no task named {task}; there are: {', '.join(physics.TASKS)}.")
    kind = physics.TASKS[task]
    if shape[1] % kind.divides:
        raise FdmError(
            f"{task} needs a resolution that is a multiple of {kind.divides}, and the network has {shape[1]}."
        )
    if not (math.isfinite(noise) and noise >= 0):
        raise FdmError(f"noise is {noise}; it is a standard deviation, 0 or above.")
    if mask is None:
        A = kind.physics(shape, seeds)
    else:
        from deepinv.physics import Inpainting

        if tuple(mask.shape) != shape[1:]:
            raise FdmError(f"The mask has {tuple(mask.shape)} pixels, and the network's images {shape[1:]}.")
        if not mask.bool().any():
            raise FdmError("The mask has no known pixel; known ones are white.")
        A = Inpainting(img_size=shape, mask=mask.bool().double().expand(len(y), *shape).clone())
    due = tuple(A.A(torch.zeros(len(seeds), *shape, dtype=torch.float64)).shape)
    if tuple(y.shape) != due:
        raise FdmError(f"The measurement of {task} has the shape {tuple(y.shape)}, and {due} is needed.")
    if not bool(torch.isfinite(y).all()):
        raise FdmError("The measurement has values that are not finite.")
    return physics.Seen(A, kind.gain, A.A(A.A_adjoint(y.double())) / kind.gain, noise)


def restored(
    denoiser: Denoise, seen: physics.Seen, method: str, nfe: int, seeds: range, label: int | None, **options: Any
) -> Tensor:
    """Restorations, float64 (N, C, H, W); FdmError for a method that there is not, or that this network cannot use."""
    if method not in RESTORERS:
        raise FdmError(f"There is no method named {method}; there are: {', '.join(RESTORERS)}.")
    entry, asked = RESTORERS[method], denoiser
    if entry.conditional not in (None, denoiser.condition is not None):
        raise FdmError(f"{method} is for networks {'with' if entry.conditional else 'without'} an estimate beside x.")
    given = getattr(denoiser, "given", {"shift": False})
    if entry.shifted != given["shift"]:
        raise FdmError(f"{method} is for networks {'with' if entry.shifted else 'without'} the shift.")
    if denoiser.classes:
        if label is None or not 0 <= label < denoiser.classes:
            raise FdmError(f"This network is told the class: give one of 0 to {denoiser.classes - 1}.")
        asked = Told(denoiser, label)
    try:
        entry.check(options)
        with torch.no_grad():
            return entry.restore(asked, seen, nfe, seeds, **options)
    except ValueError as error:
        raise FdmError(f"{error}.") from error
