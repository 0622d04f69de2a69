"""Anyone's pictures restored: read, measured where they are whole, and put side by side."""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fdm.data.archives import FORMATS, PICTURE, upright_rgb
from fdm.data.datasets import to_float, to_uint8
from fdm.files import FdmError
from fdm.model.denoiser import Denoise
from fdm.tasks import generation, physics
from fdm.tasks.restoration.methods import RESTORERS

LARGEST = 2**24  # pixels of a picture that is read
GREY = 110  # of a place in the sheet where there is nothing to show
USUAL = {"sigma_0": 2.0}  # options of CCDF; without a sampler it is the ancestral one


def read(path: Path, channels: int) -> Tensor:
    """A picture, float32 (1, C, H, W) in [-1, 1], grey or of three colours; FdmError where it is none."""
    try:
        if not path.is_file() or path.stat().st_size > PICTURE:  # a pipe would never end
            raise ValueError
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > LARGEST:
                    raise FdmError(f"{path} has {picture.width} x {picture.height} pixels, which is too many.")
                image = upright_rgb(picture)
    except FdmError:
        raise
    except Exception as error:  # decoders fail in many ways on a damaged picture
        raise FdmError(f"{path} is no picture that can be read; {', '.join(FORMATS)} can.") from error
    image = image.convert("L") if channels == 1 else image
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return to_float(pixels.reshape(1, image.height, image.width, channels).permute(0, 3, 1, 2)).contiguous()


def kind_of(task: str) -> physics.Task:
    """A task by its name; FdmError for one that there is not."""
    if task not in physics.TASKS:
        raise FdmError(f"There is no task named {task}; there are: {', '.join(physics.TASKS)}.")
    return physics.TASKS[task]


def given(
    task: str, y: Tensor, shape: physics.Shape, noise: float, seeds: range, mask: Tensor | None
) -> physics.Measurement:
    """What is known of images of that shape from measurements y, as `physics.measure` gives it.

    `y` is (N, C, h, w): block averages, or images in which `mask` (H, W) says which pixels are known; in the other
    tasks the images' seeds say what is. Raises FdmError for another size, for values that are not finite, and for a
    mask without known pixels.
    """
    kind = kind_of(task)
    if shape[1] % kind.divides:
        raise FdmError(f"{task} needs a resolution that is a multiple of {kind.divides}; the network has {shape[1]}.")
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
    return physics.Measurement(A, kind.gain, A.A(A.A_adjoint(y.double())) / kind.gain, noise)


def restored(
    denoiser: Denoise, measurement: physics.Measurement, method: str, nfe: int, seeds: range, label: int | None,
    **options: Any,
) -> Tensor:  # fmt: skip
    """Restorations, uint8 (N, C, H, W); FdmError for a method that there is not, or that this network cannot use."""
    if method not in RESTORERS:
        raise FdmError(f"There is no method named {method}; there are: {', '.join(RESTORERS)}.")
    if nfe < 1 or not 0 <= seeds.start < 2**62:
        raise FdmError(f"nfe is {nfe} and seed {seeds.start}; allowed are nfe from 1 and seed from 0 up.")
    entry: Any = RESTORERS[method]
    asked: Any = denoiser
    if entry.conditional not in (None, denoiser.condition is not None):
        raise FdmError(f"{method} is for networks {'with' if entry.conditional else 'without'} an estimate beside x.")
    if entry.shifted != getattr(denoiser, "given", {"shift": False})["shift"]:
        raise FdmError(f"{method} is for networks {'with' if entry.shifted else 'without'} the shift.")
    if denoiser.classes:
        if label is None or not 0 <= label < denoiser.classes:
            raise FdmError(f"This network is told the class: give one of 0 to {denoiser.classes - 1}.")
        asked = generation.Told(denoiser, torch.eye(denoiser.classes)[[label] * len(seeds)])
    if method == "ccdf":
        options = USUAL | ({} if "sampler" in options else {"eta": 1.0}) | options
    try:
        entry.check(options)
        with torch.no_grad():
            return to_uint8(entry.restore(asked, measurement, nfe, seeds, **options))
    except ValueError as error:
        raise FdmError(f"{error}.") from error


def sheet(
    denoiser: Denoise, paths: list[Path], task: str, noise: float, mask: Path | None, seed: int, **how: Any
) -> Tensor:
    """Restored pictures, uint8 (4 N, C, H, W): of each itself, what was measured, the restoration, and its error.

    A picture of the network's size is measured first, or masked; one of the size of block averages is a measurement,
    and then the first and the last are grey. `how` is what `restored` takes besides. Raises FdmError as it does, and
    for pictures of another size.
    """
    (channels, side, _), rows = denoiser.shape, list[Tensor]()
    small = side // kind_of(task).divides
    known = read(mask, 1)[0, 0] > 0 if mask else None
    for number, path in enumerate(paths):
        picture, seeds = read(path, channels), range(seed + number, seed + number + 1)
        if picture.shape[2:] not in ((side, side), (small, small)):
            told = f"{side} x {side}" + (f", or {small} x {small} as measured" if small < side else "")
            raise FdmError(f"{path} has {picture.shape[3]} x {picture.shape[2]} pixels; the network needs {told}.")
        whole, y = picture.shape[2] == side, picture
        if whole and known is None:
            y = physics.measure(task, picture, noise, seeds).y
        elif known is not None and known.shape == picture.shape[2:]:
            y = picture * known
        measurement = given(task, y, denoiser.shape, noise, seeds, known)
        found = restored(denoiser, measurement, seeds=seeds, **how)
        first = last = torch.full_like(found, GREY)
        if whole:
            first, last = to_uint8(picture), to_uint8((to_float(found) - picture).abs() - 1)
        rows += [first, to_uint8(measurement.estimate), found, last]
    return torch.cat(rows)
