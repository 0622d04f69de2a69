"""Processes, precision, and what a device can do: a thin layer over accelerate."""

import datetime
import logging
import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    check_cuda_p2p_ib_support,
    is_cuda_available,
)
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from fdm.files import FdmError, write_text
from fdm.params import Precision


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

    With one process, it is called here. With several, each uses one thread: a forked process has none of its parent's.
    Raises the FdmError that a process raised. `function` makes its own `accelerator` and returns nothing.
    """
    if processes == 1:  # pragma: no branch, as tests compare what several compute with what one does
        try:
            function(*args)
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)  # the next computation may be another
        return
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:  # pragma: no cover
        sentence = Path(folder) / "sentence"
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # what failed is told here
        try:
            # Not by torchrun's agent, which accelerate's notebook_launcher calls: it answers connections in a thread of
            # this process while it forks, and a process that is forked while that thread holds a lock waits for ever.
            start_processes(_work, (function, args, processes, port, sentence), processes, start_method="fork")
        except (ProcessRaisedException, ProcessExitedException) as error:
            told = sentence.read_text() if sentence.exists() else f"One of {processes} processes was killed."
            raise FdmError(told) from error


def _work(  # pragma: no cover, as it runs in processes of its own
    number: int, function: Callable[..., Any], args: tuple, processes: int, port: str, sentence: Path
) -> None:
    """Call `function(*args)` as process `number` of several; what it fails with goes to the file `sentence`."""
    torch.set_num_threads(1)
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {key: str(value) for key, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    if device() == "cuda" and not check_cuda_p2p_ib_support():
        os.environ |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    try:
        function(*args)
    except Exception as error:
        if isinstance(error, FdmError):
            write_text(sentence, str(error))
        elif not sentence.exists():  # else the end of another
            traceback.print_exc()
            write_text(sentence, f"One of {processes} processes failed with {type(error).__name__}: {error}.")
        raise
