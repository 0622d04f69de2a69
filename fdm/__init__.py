"""The Fast Diffusion Model (arXiv 2306.06991), rebuilt as a study that can be rerun.

import fdm
denoiser = fdm.load("edm-fdm-0")         # a network that the study trained, from its clone
images = fdm.sample(denoiser, n=64)      # uint8 (64, 1, 8, 8)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing torch takes seconds, which the command line's shorter commands do without
    from torch import Tensor

    from fdm.model.denoiser import Denoise, Denoiser

NETWORKS = Path(__file__).resolve().parents[1] / "results"


def load(name: str | Path = "edm-fdm-0", profile: str = "digits") -> Denoiser:
    """A trained denoiser D(x; sigma) in evaluation mode: a run whose network is kept in git, or a checkpoint's path.

    Raises FdmError for a run that has none, with the names of those that have, and for a damaged file.
    """
    from fdm.files import FdmError
    from fdm.model import checkpoints

    path = Path(name)
    if path.suffix != ".safetensors":
        folder = NETWORKS / profile / "networks"
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in folder.glob("*.safetensors"))) or "none"
            raise FdmError(f"There is no network named {name} in {folder}; there are: {known}.")
    return checkpoints.load(path)[0]


def sample(
    denoiser: Denoise,
    n: int = 64,
    sampler: str = "heun",
    nfe: int = 25,
    seed: int = 0,
    batch: int = 256,
    **options: Any,
) -> Tensor:
    """Samples from the latents of the seeds `seed` to `seed + n - 1`, uint8 (n, C, H, W), in `nfe` evaluations each.

    `options` are the sampler's, such as `eta` of ddim. A conditional network draws the class from the seed as well.
    Raises FdmError for an unknown sampler or option, one that is not for this network, or a number of evaluations that
    the sampler cannot make.
    """
    import torch

    from fdm.files import FdmError
    from fdm.samplers import SAMPLERS
    from fdm.tasks import generation

    if sampler not in SAMPLERS:
        raise FdmError(f"There is no sampler named {sampler}; there are: {', '.join(SAMPLERS)}.")
    if n < 1 or nfe < 1 or not 0 <= seed < 2**62:
        raise FdmError(f"n is {n}, nfe {nfe} and seed {seed}; allowed are n from 1, nfe from 1 and seed from 0 up.")
    if SAMPLERS[sampler].flows and hasattr(denoiser, "generated"):
        raise FdmError("This network draws clean images and is no denoiser; sample it with siddm.")
    try:
        SAMPLERS[sampler].check(options)
    except ValueError as error:
        raise FdmError(f"{error}.") from error
    try:
        parts = [range(first, min(first + batch, seed + n)) for first in range(seed, seed + n, batch)]
        return torch.cat([generation.sample(denoiser, seeds, sampler, nfe, **options) for seeds in parts])
    except ValueError as error:
        raise FdmError(f"nfe {nfe} is not possible: {error}.") from error


def restore(
    denoiser: Denoise,
    y: Tensor,
    task: str = "sr4",
    noise: float = 0.1,
    mask: Tensor | None = None,
    method: str = "ccdf",
    nfe: int = 20,
    seed: int = 0,
    label: int | None = None,
    **options: Any,
) -> Tensor:
    """Images from measurements y of them, float (N, C, h, w) in [-1, 1]: uint8 (N, C, H, W), in `nfe` evaluations.

    `task` is in `fdm.tasks.physics.TASKS`; `noise` is the standard deviation of the measurement's. `mask` (H, W) says
    which pixels are known, in place of the task's own. `options` are the method's, such as `sigma_0` of ccdf, the noise
    level that it starts from. A network that is told classes needs a `label`. What is random follows from `seed`.
    Raises FdmError for measurements of another shape or with values that are not finite, and for unknown names.
    """
    from fdm.tasks import own_pictures

    seeds = range(seed, seed + len(y))
    measurement = own_pictures.given(task, y, denoiser.shape, noise, seeds, mask)
    return own_pictures.restored(denoiser, measurement, method, nfe, seeds, label, **options)
