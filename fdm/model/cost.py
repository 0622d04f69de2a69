"""What a network costs: FLOPs, memory, and the speed that this device could have."""

import resource
import statistics
import sys
import time
from typing import Any

import torch

from fdm.model.denoiser import Denoiser
from fdm.params import Precision

TRAINING = 3  # FLOPs of one training step in those of one evaluation: forward, and twice that backward
DTYPE = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def asked(denoiser: Denoiser, n: int, device: torch.device | str) -> dict[str, Any]:
    """What a denoiser is asked with for n images, by name: all zeros, at the noise level 1."""
    x = torch.zeros(n, *denoiser.shape, device=device)
    labels = torch.zeros(n, denoiser.classes, device=device) if denoiser.classes else None
    told: dict[str, Any] = {"x": x, "sigma": torch.ones((), device=device), "class_labels": labels}
    return told | ({"condition": x} if denoiser.condition else {})


def flops(denoiser: Denoiser) -> int:
    """FLOPs of one evaluation of one image: products and convolutions, a multiplication and an addition each."""
    from torch.utils.flop_counter import FlopCounterMode  # and triton with it

    device = next(denoiser.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        denoiser(**asked(denoiser, 1, device))
    return counter.get_total_flops()


def matmul_peak(device: str, precision: Precision) -> float:
    """FLOPs a second of a large matrix product on this device, as this process can have it: the median of some."""
    n = 1024 if device == "cpu" else 8192
    a, b = (torch.ones(n, n, device=device, dtype=DTYPE[precision]) for _ in range(2))
    seconds = []
    for _ in range(6):
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        seconds.append(time.perf_counter() - start)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()  # these products are no part of what is measured after them
    return 2 * n**3 / statistics.median(seconds[1:])


def peak_memory(device: str) -> float:
    """Most memory that this process has held so far, MiB: of the GPU, or without one its resident memory."""
    if device == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return torch.cuda.max_memory_allocated() / 2**20


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
