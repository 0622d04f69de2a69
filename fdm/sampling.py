"""Samples of a trained network: the same latents for every model, whatever the batch size and the processes."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from torch import Tensor

from fdm import checkpoints
from fdm.data import to_uint8
from fdm.names import Sampler
from fdm.preconditioning import Denoiser
from fdm.samplers import SAMPLERS

# The noise levels that the published sampling runs between, narrowed to what the denoiser was trained for.
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0


def draw_latents(seeds: range, shape: tuple[int, int, int], classes: int) -> tuple[Tensor, Tensor]:
    """Standard normal latents (N, C, H, W) and class numbers (N,), sample i from seed seeds[i] alone."""
    latents, labels = torch.empty(len(seeds), *shape), torch.zeros(len(seeds), dtype=torch.int64)
    for i, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        latents[i] = torch.randn(shape, generator=generator)
        if classes:
            labels[i] = torch.randint(classes, (), generator=generator)
    return latents, labels


def noise_range(denoiser: Denoiser) -> tuple[float, float]:
    """The sampler's lowest and highest noise level for this denoiser."""
    low, high = denoiser.sigma_range
    return max(SIGMA_MIN, low), min(SIGMA_MAX, high)


def trajectory(denoiser: Denoiser, seeds: range, sampler: Sampler, nfe: int, device: str = "cpu") -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), from the noise to the samples of `seeds`, in `nfe` evaluations."""
    net: Any = denoiser.model
    latents, labels = draw_latents(seeds, (net.channels, net.resolution, net.resolution), net.label_dim)
    one_hot = torch.eye(net.label_dim)[labels].to(device) if net.label_dim else None

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(x, sigma, one_hot)

    yield from SAMPLERS[sampler](D, latents.to(device), *noise_range(denoiser), nfe)


@torch.inference_mode()
def sample(denoiser: Denoiser, seeds: range, sampler: Sampler, nfe: int, device: str = "cpu") -> Tensor:
    """The samples of `seeds` as one batch, uint8 (N, C, H, W) on the CPU."""
    *_, x = trajectory(denoiser, seeds, sampler, nfe, device)
    return to_uint8(x).cpu()


@functools.lru_cache(maxsize=1)
def _load(path: Path, sha256: str, device: str) -> Denoiser:
    return checkpoints.load(path)[0].to(device)


def _work(path: Path, sha256: str, seeds: range, sampler: Sampler, nfe: int, device: str, threads: int) -> Tensor:
    torch.set_num_threads(threads)
    return sample(_load(path, sha256, device), seeds, sampler, nfe, device)


def sample_checkpoint(
    path: Path, sha256: str, batches: list[range], sampler: Sampler, nfe: int, device: str, threads: int
) -> Iterator[Tensor]:
    """Yield the samples of each batch of seeds in turn, uint8 (N, C, H, W), from the checkpoint at `path`.

    On a CPU the batches are shared out to processes of `threads` threads, as many as there are cores for.
    """
    processes = min(len(batches), max(1, (os.cpu_count() or 1) // threads)) if device == "cpu" else 1
    tasks = (delayed(_work)(path, sha256, seeds, sampler, nfe, device, threads) for seeds in batches)
    yield from Parallel(n_jobs=processes, return_as="generator")(tasks)
