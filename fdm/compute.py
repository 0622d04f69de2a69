"""Processes, precision, and what a device can do: a thin layer over accelerate."""

import contextlib
import datetime
import io
import logging
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, notebook_launcher
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, is_cuda_available
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.utils.flop_counter import FlopCounterMode

from fdm.errors import FdmError
from fdm.files import write_text
from fdm.preconditioning import Denoiser
from fdm.profiles import Precision

TRAINING = 3  # FLOPs of one training step in those of one evaluation: forward, and twice that backward
DTYPE = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device() -> str:
    """Where networks run: a CUDA device where there is one. CUDA itself is not started, so that processes can fork."""
    return "cuda" if is_cuda_available() else "cpu"


def arithmetic(device: str) -> dict[str, str]:
    """What decides the last bits of a computation, beside code, data and threads: library, device, instruction set."""
    kind = torch.backends.cpu.get_cpu_capability() if device == "cpu" else ""  # a GPU's would start CUDA
    return {"torch": torch.__version__, "device": device, "kind": kind}


def require(precision: Precision, processes: int, device: str) -> None:
    """Raise FdmError when the device cannot compute in that precision, or there are too few devices.

    To be called where CUDA may be started: in the process that computes.
    """
    reason = None
    if device == "cpu":
        if precision in ("tf32", "fp16"):
            reason = f"{precision} needs an NVIDIA GPU, and there is none; choose fp32 or bf16"
    elif precision == "tf32" and torch.cuda.get_device_capability() < (8, 0):
        reason = f"{torch.cuda.get_device_name()} has no tf32; choose fp32 or fp16"
    elif precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        reason = f"{torch.cuda.get_device_name()} has no bf16; choose fp32 or fp16"
    if reason:
        raise FdmError(f"precision: {precision} is not allowed here: {reason}.")
    if device != "cpu" and int(os.environ.get("LOCAL_WORLD_SIZE", processes)) > torch.cuda.device_count():
        raise FdmError(
            f"processes: {processes} is not allowed here: there are {torch.cuda.device_count()} GPUs; lower it "
            "(and raise training.accumulation, if memory is short)."
        )


def use_tf32(on: bool) -> None:
    """Let CUDA devices round the factors of float32 products to 10 bits, or not; off is not PyTorch's default."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def accelerator(
    precision: Precision, processes: int, device: str, accumulation: int = 1, compile: bool = False
) -> Accelerator:
    """This process's part of a computation in `processes` processes.

    Raises FdmError for a precision that the device does not have, and when another number of processes was launched.
    """
    require(precision, processes, device)
    out = Accelerator(
        cpu=device == "cpu",
        mixed_precision=precision if precision in ("bf16", "fp16") else "no",
        gradient_accumulation_steps=accumulation,
        dynamo_backend="inductor" if compile else "no",
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=datetime.timedelta(days=1)),  # others wait while one scores or writes
            # Otherwise gradients are laid out anew after the first step, and a resumed training adds them up in
            # another order than one that was not killed.
            DistributedDataParallelKwargs(find_unused_parameters=device == "cpu"),
        ],
    )
    use_tf32(precision == "tf32")
    if out.num_processes != processes:
        raise FdmError(
            f"processes: {processes} is not what was launched, {out.num_processes}; "
            f"use accelerate launch --num_processes {processes}, or change the profile."
        )
    return out


def launch(function: Callable[..., Any], args: tuple, processes: int) -> None:
    """Call `function(*args)` in as many processes, which fork from this one, a notebook's kernel or not.

    One process is this one. Of several each computes with one thread: a forked process has none of its parent's.
    Raises the FdmError that a process raised. `function` makes its own `accelerator` and returns nothing.
    """
    if processes == 1:
        try:
            function(*args)
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)  # the next computation may be another
        return
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        sentence = Path(folder) / "sentence"

        def work() -> None:
            torch.set_num_threads(1)
            os.environ["OMP_NUM_THREADS"] = "1"
            try:
                function(*args)
            except Exception as error:
                if isinstance(error, FdmError):
                    write_text(sentence, str(error))
                elif not isinstance(error, SignalException) and not sentence.exists():  # else the end of another
                    traceback.print_exc()
                    write_text(sentence, f"One of {processes} processes failed with {type(error).__name__}: {error}.")
                raise

        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what failed is told here
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it announces GPUs, whatever there is
                notebook_launcher(work, num_processes=processes, use_port=port)
        except ChildFailedError as error:
            told = sentence.read_text() if sentence.exists() else f"One of {processes} processes was killed."
            raise FdmError(told) from error


# ------------------------------------------------------------------------------------------------------- costs


def flops(denoiser: Denoiser) -> int:
    """FLOPs of one evaluation of one image: products and convolutions, a multiplication and an addition each."""
    net: Any = denoiser.model
    at = next(denoiser.parameters()).device
    x = torch.zeros(1, net.channels, net.resolution, net.resolution, device=at)
    labels = torch.zeros(1, net.label_dim, device=at) if net.label_dim else None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        denoiser(x, torch.ones((), device=at), labels)
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
