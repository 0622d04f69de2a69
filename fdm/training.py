"""The training loop, its state, and resuming.

Everything random in step k follows from (seed, k): the images, the noise, the augmentation, the dropout. The
state is therefore weights, their average, the optimiser and k, and a resumed training goes on to the same bits.
Every process draws for the whole batch and computes its part, so that their number changes no draw but dropout's.

    accelerate launch --num_processes 8 -m fdm.training --params profiles/<name>/params.yaml --run edm-fdm-0

trains one run on several machines, on which the project's folder is one and the same; dvc repro, on one of them, then
takes what it left.
"""

import argparse
import contextlib
import fcntl
import functools
import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from dvclive import Live
from torch import Tensor
from torch.nn.functional import one_hot
from tqdm import tqdm

from fdm import augmentation, checkpoints, closure, compute, data, losses, profiles
from fdm.data import Dataset, to_float
from fdm.errors import FdmError
from fdm.files import digest, replace, root, sha256, write_json
from fdm.profiles import SNAPSHOTS, Profile, TrainingParams

SPEED = ("images_per_second", "peak_memory_mib", "utilisation")  # of the log; these differ between equal trainings


def experiment(profile: Profile, name: str, dataset: Dataset) -> str:
    """What a run's training is called: a hash of all that shapes the network, the same on every machine."""
    shape = {
        "description": checkpoints.specify(profile, name, dataset), "dataset": dataset.sha256,
        "code": closure.digest("training"),
    }  # fmt: skip
    return digest(shape)


def step_seed(seed: int, *position: int) -> int:
    """A seed for one training step, or one part of its batch, of 48 bits and unlike that of any neighbour."""
    return int(digest([seed, *position]), 16)


class Order:
    """The order of the images: one permutation of all after another."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self.epoch, self.permutation = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, first: int, count: int) -> Tensor:
        """Indices of the images number `first` to `first + count - 1` of the training, (count,)."""
        out = []
        while count > 0:
            epoch, offset = divmod(first, self.n)
            if epoch != self.epoch:
                generator = torch.Generator().manual_seed(step_seed(self.seed, -1 - epoch))
                self.epoch, self.permutation = epoch, torch.randperm(self.n, generator=generator)
            piece = self.permutation[offset : offset + count]
            out.append(piece)
            first, count = first + len(piece), count - len(piece)
        return torch.cat(out)


def ema_beta(images: int, batch: int, halflife_kimg: float, ramp: float) -> float:
    """Decay of the weights' average over one batch: a half-life of at most `ramp` times the images seen."""
    halflife = min(halflife_kimg * 1000, images * ramp)
    return 0.5 ** (batch / max(halflife, 1e-8))


def _home(profile: Profile, name: str, dataset: Dataset, work: Path, device: str) -> Path:
    """Folder of a run's state, named by a hash of all that shapes the trained network, to the bit."""
    shape = {
        "experiment": experiment(profile, name, dataset), "threads": profile.threads, **compute.arithmetic(device)
    }  # fmt: skip
    return work / digest(shape)


@contextlib.contextmanager
def _alone(home: Path, name: str) -> Iterator[None]:
    """Keep other processes from training the same run; raises FdmError where one does."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as file:
        for patience in range(20, -1, -1):  # processes of a killed training end a moment after it
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not patience:
                    raise FdmError(
                        f"{name} is being trained by another process, with its state in {home}; wait for it or stop it."
                    ) from None
                time.sleep(0.25)
        yield


def train(
    profile: Profile,
    name: str,
    dataset: Dataset,
    folder: Path,
    logs: Path,
    work: Path,
    device: str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train one run: its snapshots, `<percent>.safetensors`, go into `folder` and DVCLive's logs into `logs`.

    The state is kept under `work` in a folder named by a hash of all that shapes the run; an interrupted training
    resumes from it, to the same bits on a CPU. What `folder` and `logs` hold of the same training is kept as it is.
    `folder` also names the training, in experiment.json, with nothing that differs between machines.
    `advance` is told of images as they are trained on; without it a progress bar is shown.
    Returns the final `loss`, the `history` of the log, the `seconds` and the `resumed_kimg` it started from.
    Raises FdmError when the loss is not finite; the last good state is then kept.
    """
    par = profile.training
    home = _home(profile, name, dataset, work, device)
    told = logs / "finished.json"
    if _is_of(told, home) and _whole(folder) and (folder / checkpoints.EXPERIMENT).exists():
        shutil.rmtree(home, ignore_errors=True)  # which a kill at the very end leaves
        if advance and par:
            advance(steps(par) * par.batch)
        return json.loads(told.read_text())
    with _alone(home, name):
        if not _finished(home):
            compute.launch(_loop, (profile, name, dataset, home, device, advance), par.processes if par else 1)
        finished = json.loads((home / "finished.json").read_text())
        folder.mkdir(parents=True, exist_ok=True)
        told.unlink(missing_ok=True)
        labels = [checkpoints.snapshot_name(share) for share in SNAPSHOTS]
        for label in labels:
            replace(folder / label, functools.partial(shutil.copyfile, home / label))
        for stale in set(folder.iterdir()) - {folder / label for label in labels}:
            stale.unlink()
        write_json(folder / checkpoints.EXPERIMENT, {"run": name, "experiment": experiment(profile, name, dataset)})
        _log(logs, finished["history"])
        out = finished | {"home": home.name, "loss": finished["history"][-1]["loss"]}
        write_json(told, out)
        shutil.rmtree(home)
    return out


def _is_of(told: Path, home: Path) -> bool:
    """Whether a log tells of the training whose state would be in `home`."""
    try:
        return json.loads(told.read_text())["home"] == home.name
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _whole(folder: Path) -> bool:
    return all((folder / checkpoints.snapshot_name(share)).exists() for share in SNAPSHOTS)


def _finished(home: Path) -> bool:
    """Whether the folder holds all that a training leaves; leftovers of writers that were killed are removed."""
    for leftover in home.glob(".*.part"):
        leftover.unlink()
    return (home / "finished.json").exists() and _whole(home)


def steps(par: TrainingParams) -> int:
    """Optimiser steps of a training."""
    return math.ceil(par.budget_kimg * 1000 / par.batch)


def _loop(
    profile: Profile, name: str, dataset: Dataset, home: Path, device: str, advance: Callable[[int], None] | None
) -> None:
    """Train in this process, one of those that accelerate knows of, until home/finished.json tells of the end."""
    description, started = checkpoints.specify(profile, name, dataset), time.time()
    run, par = profile.run(name), profile.training
    assert par is not None  # or describe would have refused
    accelerator = compute.accelerator(par.precision, par.processes, device, par.accumulation, par.compile)
    torch.set_num_threads(profile.threads if par.processes == 1 else 1)
    main, at = accelerator.is_main_process, accelerator.device
    total_steps = steps(par)
    snapshots = {max(1, round(total_steps * share)): checkpoints.snapshot_name(share) for share in SNAPSHOTS}
    log_every, state_every = (max(1, round(kimg * 1000 / par.batch)) for kimg in (par.log_kimg, par.state_kimg))

    torch.manual_seed(step_seed(run.seed, 0))
    # channels_last and fused Adam are the faster on a CPU at 8x8 (1.1 times) and at 32x32 (1.3 times), as on GPUs.
    denoiser = checkpoints.build(description).to(at).to(memory_format=torch.channels_last).train()
    ema = checkpoints.build(description).to(at).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    ema.load_state_dict(denoiser.state_dict())
    adam = torch.optim.Adam(denoiser.parameters(), lr=par.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)
    flops, peak = compute.TRAINING * compute.flops(denoiser), compute.matmul_peak(device, par.precision)
    model, optimizer = accelerator.prepare(denoiser, adam)
    compute.use_tf32(par.precision == "tf32")  # preparing may change it

    step, history, previous = 0, list[dict[str, float]](), _newest(home, warn=main)
    if previous:
        state = torch.load(previous, weights_only=True, map_location="cpu")
        denoiser.load_state_dict(state["denoiser"])
        ema.load_state_dict(state["ema"])
        adam.load_state_dict(state["optimizer"])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])
        step, history = state["step"], json.loads(state["history"])
    if len(set(gather_object([(step, previous.name if previous else "")]))) > 1:
        raise FdmError(f"The machines do not see the same state in {home}; put the project on a disk that they share.")
    saved, resumed_kimg = step, step * par.batch / 1000
    if previous and main:
        print(f"{name}: resuming at {resumed_kimg:.1f} kimg from {previous}", file=sys.stderr)

    order = Order(len(dataset.images), run.seed)
    weights: list[Tensor] = list(denoiser.parameters())
    averages: list[Tensor] = list(ema.parameters())
    label_dim = description["network"]["label_dim"]
    # This process's parts of each batch, one for each round of accumulation.
    share = par.batch // (par.processes * par.accumulation)
    firsts = range(accelerator.process_index * share, par.batch, par.processes * share)
    total, count, since = torch.zeros((), device=at), 0, time.perf_counter()
    progress = tqdm(total=total_steps * par.batch, initial=step * par.batch, unit="img", unit_scale=True, desc=name,
                    disable=not main or advance is not None)  # fmt: skip
    if advance:
        advance(step * par.batch)
    while step < total_steps:
        images_seen = step * par.batch
        generator = torch.Generator(at).manual_seed(step_seed(run.seed, 1 + step))
        index = order(images_seen, par.batch)
        transforms = augmentation.draw_transforms(par.batch, par.augment, generator) if par.augment > 0 else None
        u = losses.draw(run.framework, par.batch, generator)
        noise = torch.randn(par.batch, *dataset.shape, generator=generator, device=at)
        ceiling = losses.weight_ceiling(step, run.warmup_steps)
        for first in firsts:
            part = slice(first, first + share)
            torch.manual_seed(step_seed(run.seed, 1 + step, first))  # for dropout
            images = to_float(dataset.images[index[part]].to(at))
            class_labels = one_hot(dataset.labels[index[part]], label_dim).float().to(at) if label_dim else None
            augment_labels = None
            if transforms is not None:
                mine = augmentation.Transforms(*(field[part] for field in transforms))
                images, augment_labels = augmentation.transform(images, mine), mine.labels()
            with accelerator.accumulate(model):
                loss = losses.loss(
                    model, images, u[part], noise[part], class_labels, augment_labels, ceiling, run.framework
                )
                accelerator.backward(loss.sum() / share)
                total += loss.detach().mean() / par.accumulation
                if accelerator.sync_gradients:
                    if accelerator.scaler:
                        accelerator.unscale_gradients()  # which finds what is not finite, and then skips the step
                    for weight in weights:
                        if weight.grad is not None:
                            torch.nan_to_num(weight.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=weight.grad)
                    for group in adam.param_groups:
                        group["lr"] = par.lr * min(images_seen / max(par.lr_ramp_kimg * 1000, 1e-8), 1)
                    optimizer.step()
                    optimizer.zero_grad()
        beta = ema_beta(images_seen, par.batch, par.ema_halflife_kimg, par.ema_ramp)
        torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 1 - beta)

        step += 1
        count += 1
        progress.update(par.batch)
        if advance:
            advance(par.batch)
        if step % log_every == 0 or step == total_steps:
            mean = accelerator.reduce(total / count, "mean").item()
            if not math.isfinite(mean):
                raise FdmError(
                    f"The loss of {name} is {mean} after {step * par.batch / 1000:.1f} kimg; the last good state is "
                    f"kept in {home}. Lower training.lr or lengthen training.lr_ramp_kimg in {profile.params_file}."
                )
            now = time.perf_counter()
            speed = count * par.batch / (now - since)
            history.append(
                {
                    "images": step * par.batch, "loss": mean, "lr": adam.param_groups[0]["lr"],
                    "images_per_second": speed, "peak_memory_mib": compute.peak_memory(device),
                    "utilisation": speed * flops / (par.processes * peak),
                }
            )  # fmt: skip
            progress.set_postfix(loss=f"{mean:.4f}", refresh=False)
            total, count, since = torch.zeros_like(total), 0, now
        if step in snapshots and main:
            extra = {"name": name, "images": step * par.batch, "dataset": dataset.sha256}
            checkpoints.save(home / snapshots[step], ema, description | extra)
        # Never between two entries of the log.
        if count == 0 and (step - saved >= state_every or step == total_steps):
            saved = step
            if main:
                state = {
                    "denoiser": denoiser.state_dict(), "ema": ema.state_dict(), "optimizer": adam.state_dict(),
                    "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
                    "step": step, "history": json.dumps(history),
                }  # fmt: skip
                previous = _save_state(home, state, previous)
    progress.close()
    if main:
        told = {"run": name, "history": history, "resumed_kimg": resumed_kimg, "seconds": time.time() - started}
        write_json(home / "finished.json", told)
    accelerator.end_training()


def _log(logs: Path, history: list[dict[str, float]]) -> None:
    """Write the whole history through DVCLive, whose step is the number of training images."""
    with Live(str(logs), dvcyaml=None, save_dvc_exp=False, report=None) as live:
        for row in history:
            live.step = int(row["images"])
            for key, value in row.items():
                if key != "images":
                    live.log_metric(key, value)
            live.make_summary()


def _save_state(home: Path, state: dict[str, Any], previous: Path | None) -> Path:
    """Write the whole state under a name that holds its hash, and keep the one before; returns its path."""
    new = home / "state.new"
    replace(new, lambda part: torch.save(state, part))
    path = home / f"state-{state['step']:09d}-{sha256(new)[:12]}.pt"
    new.replace(path)
    for old in set(home.glob("state-*.pt")) - {path, previous}:
        old.unlink()
    return path


def _newest(home: Path, warn: bool) -> Path | None:
    """The newest whole state; one whose content does not have the hash in its name is left aside with a warning."""
    for path in sorted(home.glob("state-*.pt"), reverse=True):
        if sha256(path)[:12] == path.stem.rpartition("-")[2]:
            return path
        if warn:
            warnings.warn(f"{path} is damaged and left aside", stacklevel=2)
    return None


def main() -> None:
    """Train one run in the processes that accelerate launched, and leave the result for dvc repro."""
    parser = argparse.ArgumentParser(prog="accelerate launch -m fdm.training", description=main.__doc__)
    parser.add_argument("--params", default="params.yaml", help="the profile's parameters (params.yaml)")
    parser.add_argument("--run", required=True, help="which run of the profile, such as edm-fdm-0")
    args = parser.parse_args()
    try:
        profile = profiles.load(args.params)
        dataset = data.load(profile.build / "dataset.safetensors")
        device = compute.device()
        home = _home(profile, args.run, dataset, root() / "work", device)
        first = os.environ.get("RANK", "0") == "0"
        with _alone(home, args.run) if first else contextlib.nullcontext():
            if not (_finished(home) if first else (home / "finished.json").exists()):
                _loop(profile, args.run, dataset, home, device, None)
        if first:
            print(f"{args.run} is trained; dvc repro takes it from {home}.", file=sys.stderr)
    except FdmError as error:
        sys.exit(f"fdm: {error}")


if __name__ == "__main__":
    main()
