"""The Fast Diffusion Model (arXiv 2306.06991), rebuilt as a study that can be rerun.

import fdm
denoiser = fdm.load("edm-fdm-0")         # a network that the study trained
images = fdm.sample(denoiser, n=64)      # uint8 (64, 1, 8, 8)

With a network of your own: fdm.precondition(net, ...) makes it a denoiser, fdm.loss(denoiser, images) is what a step of
its training minimises, and fdm.samplers["ddim"] is one way to sample it. docs/own_code.md has three complete programs.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing torch takes seconds, which the command line's shorter commands do without
    from torch import Generator, Tensor, nn

    from fdm.model.denoiser import Denoise, Denoiser
    from fdm.params import Framework, Kernel

__version__ = "0.1.0"
__all__ = ["load", "loss", "precondition", "restore", "sample", "samplers"]

# In a clone, by profile; the package brings those of the default one.
NETWORKS = Path(__file__).resolve().parents[1] / "results"
BROUGHT = Path(__file__).resolve().parent / "networks"


def __getattr__(name: str) -> Any:
    if name == "samplers":
        return importlib.import_module("fdm.samplers")
    raise AttributeError(f"module 'fdm' has no attribute {name!r}")


def load(name: str | Path = "edm-fdm-0", profile: str = "digits") -> Denoiser:
    """A trained denoiser D(x; sigma) of this study, or of a checkpoint.

    Parameters
    ----------
    name : str or Path
        A run whose network is kept in git, such as "edm-fdm-0", or the path of a .safetensors file.
    profile : str
        The profile of the run. Without a clone there is "digits" alone.

    Returns
    -------
    Denoiser
        In evaluation mode, on the CPU, float32.

    Raises
    ------
    FdmError
        For a run that has no network, with the names of those that have; for a damaged file; and for one
        that describes no network of this study.
    """
    from fdm.files import FdmError
    from fdm.model import checkpoints, released

    path = Path(name)
    if path.suffix == ".safetensors":
        return released.load(path)
    folder = NETWORKS / profile / "networks"
    if not folder.is_dir() and profile == "digits":
        folder = BROUGHT
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.safetensors"))) or "none"
        raise FdmError(f"There is no network named {name} in {folder}; there are: {known}.")
    return checkpoints.load(path)[0]


def precondition(
    net: nn.Module,
    framework: Framework = "edm",
    kernel: Kernel = "fdm",
    multiplier: float = 2.0,
    shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 0,
) -> Denoiser:
    """A denoiser D(x; sigma) around a raw network F of your own, with FDM's input scaling or without.

    D = c_skip x + c_out F(c_in x, c_noise), with the coefficients of EDM's Table 1 (arXiv 2206.00364). FDM
    (arXiv 2306.06991) changes c_in alone: it is the scale of a critically damped process.

    Parameters
    ----------
    net : nn.Module
        Called as net(c_in x, c_noise) with (N, C, H, W) and (N,), and with one-hot labels (N, classes) as a third
        argument where there are classes. Returns (N, C, H, W), or something that holds it as `sample`.
    framework : "vp", "ve" or "edm"
    kernel : "baseline" or "fdm"
    multiplier : float
        FDM's m, above 0: how fast its process is. The baseline and VE do without.
    shape : tuple of int
        Channels, height and width of the images; square.
    classes : int
        Number of classes, 0 for none.

    Returns
    -------
    Denoiser
        A module that is called as D(x, sigma, class_labels), and holds `net` with its parameters.

    Raises
    ------
    FdmError
        For an unknown framework or kernel, a multiplier that is not above 0, and images that are not square.
    """
    from fdm.files import FdmError
    from fdm.model.denoiser import Denoiser
    from fdm.model.foreign import Foreign
    from fdm.process.frameworks import FRAMEWORKS

    for value, known in ((framework, [*FRAMEWORKS]), (kernel, ["baseline", "fdm"])):
        if value not in known:
            raise FdmError(f"{value!r} is not known; there are: {', '.join(known)}.")
    if not multiplier > 0:
        raise FdmError(f"multiplier is {multiplier}; it must be above 0.")
    try:
        raw = Foreign(net, shape, classes)
    except ValueError as error:
        raise FdmError(f"{error}.") from error
    return Denoiser(raw, framework, kernel, multiplier if kernel == "fdm" else 1.0)


def loss(
    denoiser: Denoiser,
    images: Tensor,
    class_labels: Tensor | None = None,
    step: int = 0,
    warmup_steps: int = 0,
    generator: Generator | None = None,
) -> Tensor:
    """The loss of a batch: the weighted squared error of D, each image at a noise level drawn for it.

    It is the mean over images, channels and pixels of lambda(sigma) (D(y + sigma n; sigma) - y)^2. Levels and weights
    are those of the denoiser's framework (EDM, arXiv 2206.00364, equation 2 and Table 1).

    Parameters
    ----------
    denoiser : Denoiser
        From `precondition` or `load`.
    images : Tensor
        Float, (N, C, H, W), in [-1, 1].
    class_labels : Tensor, optional
        One-hot, (N, classes).
    step, warmup_steps : int
        FDM's second change: during the first `warmup_steps` steps the weight has a ceiling, which grows from 5 to 500
        (arXiv 2306.06991). 0 for none.
    generator : torch.Generator, optional
        What is random, on the images' device; otherwise it follows from torch's own seed.

    Returns
    -------
    Tensor
        Float32, (), with gradients.

    Raises
    ------
    FdmError
        For images that are not float, or of another shape than the denoiser's.
    """
    import torch

    from fdm.files import FdmError
    from fdm.process import momentum
    from fdm.process.frameworks import FRAMEWORKS
    from fdm.training.objectives import denoising

    if not images.is_floating_point():
        raise FdmError(f"The images are {images.dtype}; scale them to [-1, 1], such as images.float() / 127.5 - 1.")
    if tuple(images.shape[1:]) != denoiser.shape:
        raise FdmError(f"The images are {tuple(images.shape[1:])} and the denoiser's {denoiser.shape}.")
    if generator is None:
        generator = torch.Generator(images.device).manual_seed(int(torch.randint(2**62, ())))
    u = FRAMEWORKS[denoiser.framework].draw(len(images), generator)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    ceiling = momentum.weight_ceiling(step, warmup_steps)
    return denoising.loss(denoiser, images, u, noise, class_labels, ceiling=ceiling).mean()


def sample(
    denoiser: Denoise,
    n: int = 64,
    sampler: str = "heun",
    nfe: int = 25,
    seed: int = 0,
    batch: int = 256,
    **options: Any,
) -> Tensor:
    """Samples from the latents of the seeds `seed` to `seed + n - 1`.

    A sample depends on its own seed alone, and not on n or the batch. A conditional network draws the class from the
    seed as well.

    Parameters
    ----------
    denoiser : Denoise
        From `load` or `precondition`, in evaluation mode.
    n : int
        Number of samples, from 1.
    sampler : str
        One of list(fdm.samplers); the module of each names the paper that it is from.
    nfe : int
        Network evaluations a sample, from 1, as far as the sampler can make them: Heun's method needs an odd number.
    seed : int
        Of the first sample, from 0.
    batch : int
        Samples that are computed at once, from 1.
    **options
        The sampler's, such as `eta=1` of ddim: `fdm.samplers[sampler].options` has their names and ranges.

    Returns
    -------
    Tensor
        uint8, (n, C, H, W), from 0 to 255.

    Raises
    ------
    FdmError
        For an unknown sampler or option, one that is not for this network, or a number of evaluations that the sampler
        cannot make.
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
        SAMPLERS[sampler].steps(nfe, SAMPLERS[sampler].to_zero)
    except ValueError as error:
        raise FdmError(f"nfe {nfe} is not possible: {error}.") from error
    try:
        parts = [range(first, min(first + batch, seed + n)) for first in range(seed, seed + n, batch)]
        return torch.cat([generation.sample(denoiser, seeds, sampler, nfe, **options) for seeds in parts])
    except ValueError as error:
        raise FdmError(f"{error}.") from error


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
    """Images from measurements y = A(image) + noise of them.

    Parameters
    ----------
    denoiser : Denoise
        From `load` or `precondition`, in evaluation mode.
    y : Tensor
        Float, (N, C, h, w), the measurements of images in [-1, 1].
    task : str
        What A is: sr2, sr4 (super-resolution), box, random (inpainting) or fourier.
    noise : float
        Standard deviation of the measurement's noise, in the units of y.
    mask : Tensor, optional
        (H, W), which pixels are known, in place of the task's own.
    method : str
        ccdf (arXiv 2112.05146), dps (arXiv 2209.14687), diffpir (arXiv 2305.08995) or dossr (arXiv 2409.17778).
    nfe : int
        Network evaluations an image.
    seed : int
        Of the first image; the next has the next. What is random follows from it.
    label : int, optional
        The class, for a network that is told it.
    **options
        The method's, such as `sigma_0` of ccdf, the noise level that it starts from.

    Returns
    -------
    Tensor
        uint8, (N, C, H, W), from 0 to 255.

    Raises
    ------
    FdmError
        For measurements of another shape or not finite, for unknown names, and for a class that is missing.
    """
    from fdm.tasks import own_pictures

    seeds = range(seed, seed + len(y))
    measurement = own_pictures.given(task, y, denoiser.shape, noise, seeds, mask)
    return own_pictures.restored(denoiser, measurement, method, nfe, seeds, label, **options)
