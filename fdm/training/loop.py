"""The training loop, whatever the objective, and resuming.

Everything random in step k follows from (seed, k): the images, the noise, the augmentation, the dropout. The
state is therefore networks, their averages, the optimisers and k, and a resumed training goes on to the same bits.
Every process draws for the whole batch and computes its part, so that their number changes no draw but dropout's.
"""

import functools
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import one_hot
from tqdm import tqdm

from fdm.data.datasets import Dataset, to_float
from fdm.files import FdmError, digest, replace, write_json
from fdm.model import checkpoints, cost
from fdm.params import SNAPSHOTS, RunParams, TrainingParams, snapshot_name
from fdm.process.joint import JOINT
from fdm.training import augmentation, processes, state
from fdm.training.engine import Batch, Engine, Losses, Objective
from fdm.training.objectives import adversarial, discrepancy
from fdm.training.objectives.conditional import Conditional
from fdm.training.objectives.denoising import Denoising
from fdm.training.objectives.hybrid import Hybrid


class Training(NamedTuple):
    """A training: all that shapes its network."""

    name: str
    experiment: str  # what it is called, on every machine, by all that shapes it but rounding
    description: dict[str, Any]  # of its checkpoints
    run: RunParams
    par: TrainingParams
    threads: int
    start: Path | None = None  # the checkpoint whose weights it starts from, in place of fresh ones


FRESH = -1  # where in a step the seed of fresh images stands, apart from those of the batch's parts
Advance = Callable[[int], None] | None  # is told of images as they are trained on


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


def learning_rate(par: TrainingParams, images: int) -> float:
    """Learning rate after `images` training images: a linear ramp, then constant."""
    return par.lr * min(images / max(par.lr_ramp_kimg * 1000, 1e-8), 1)


def steps(par: TrainingParams) -> int:
    """Optimiser steps of a training."""
    return math.ceil(par.budget_kimg * 1000 / par.batch)


def evaluations(run: RunParams) -> int:
    """Network evaluations that cost as much as training on an image: backward a pass costs two."""
    if run.few_steps is None:
        return cost.TRAINING
    few = run.few_steps
    return adversarial.evaluations(few.objective) if few.adversarial else discrepancy.EVALUATIONS * few.steps


def kimg(par: TrainingParams, step: int) -> float:
    """Training images of that many steps, in thousands."""
    return step * par.batch / 1000


def home_of(training: Training, work: Path, device: str) -> Path:
    """Folder of a run's state, named by a hash of all that shapes the trained network, to the bit."""
    shape = {"experiment": training.experiment, "threads": training.threads, **processes.arithmetic(device)}
    return work / digest(shape)


def train(
    training: Training, dataset: Dataset, folder: Path, logs: Path, work: Path, device: str = "cpu",
    advance: Advance = None,
) -> dict[str, Any]:  # fmt: skip
    """Train one run: its snapshots, `<percent>.safetensors`, go into `folder` and DVCLive's logs into `logs`.

    The state is kept under `work` in a folder named by a hash of all that shapes the run; an interrupted training
    resumes from it, to the same bits on a CPU. What `folder` and `logs` hold of the same training is kept as it is.
    `folder` also names the training, in experiment.json, with nothing that differs between machines.
    `advance` is told of images as they are trained on; without it a progress bar is shown.
    Returns the final `loss`, the `history` of the log, the `seconds` and the `resumed_kimg` it started from.
    Raises FdmError when the loss is not finite; the last good state is then kept.
    """
    par, home = training.par, home_of(training, work, device)
    known = state.finished(logs, home)
    if known and state.has_snapshots(folder) and (folder / checkpoints.EXPERIMENT).exists():
        if not known.get("history"):
            told = f"{logs / state.FINISHED} is damaged"
            raise FdmError(f"{told}; remove it and {folder}, and rerun: {training.name} is trained again.")
        shutil.rmtree(home, ignore_errors=True)  # which a kill at the very end leaves
        if advance:
            advance(steps(par) * par.batch)
        return known
    with state.alone(home, training.name):
        for leftover in logs.glob(".*.part"):  # of a writer that was killed
            leftover.unlink()
        if not state.is_finished(home):
            processes.launch(_loop, (training, dataset, home, device, advance), par.processes)
        elif advance:
            advance(steps(par) * par.batch)
        try:
            done = json.loads((home / state.FINISHED).read_text())
        except ValueError as error:
            told = f"{home / state.FINISHED} is damaged"
            raise FdmError(f"{told}; remove it and rerun: {training.name} goes on from its last state.") from error
        folder.mkdir(parents=True, exist_ok=True)
        (logs / state.FINISHED).unlink(missing_ok=True)
        labels = [snapshot_name(share) for share in SNAPSHOTS]
        for label in labels:
            replace(folder / label, functools.partial(shutil.copyfile, home / label))
        for stale in set(folder.iterdir()) - {folder / label for label in labels}:
            stale.unlink()
        write_json(folder / checkpoints.EXPERIMENT, {"run": training.name, "experiment": training.experiment})
        _log(logs, done["history"])
        out = done | {"home": home.name, "loss": done["history"][-1]["loss"]}
        write_json(logs / state.FINISHED, out)
        shutil.rmtree(home)
    return out


def train_launched(training: Training, dataset: Dataset, work: Path, device: str, first: bool) -> Path:
    """Train in the processes that accelerate launched, on several machines perhaps; `first` is true in one of them.

    Leaves what it trained in its folder of state, which `train` then takes; returns the folder.
    """
    home = home_of(training, work, device)
    if not first:
        if not (home / state.FINISHED).exists():
            _loop(training, dataset, home, device, None)
        return home
    with state.alone(home, training.name):
        if not state.is_finished(home):
            _loop(training, dataset, home, device, None)
    return home


class _History:
    """The log of a training: mean losses, rates and speeds, an entry every so many steps."""

    def __init__(self, rows: list[dict[str, float]], par: TrainingParams, flops: int, device: str) -> None:
        self.rows, self.par, self.device = rows, par, device
        self.share_of_peak = flops / (par.processes * cost.matmul_peak(device, par.precision))
        self.count, self.since = 0, time.perf_counter()
        self.totals: dict[str, tuple[Tensor, float]] = {}  # of each loss, and of how many steps: not all are of each

    def add(self, losses: Losses) -> None:
        """Add the mean losses of a part of a step's batch."""
        for name, loss in losses.items():
            total, count = self.totals.get(name, (torch.zeros_like(loss), 0))
            self.totals[name] = (total + loss / self.par.accumulation, count + 1 / self.par.accumulation)

    def entry(self, accelerator: Accelerator, images: int) -> float:
        """Make an entry after `images` training images; returns the mean loss since the one before, or what of several
        losses is not finite.
        """
        means = {name: accelerator.reduce(total / n, "mean").item() for name, (total, n) in self.totals.items()}
        now = time.perf_counter()
        speed = self.count * self.par.batch / (now - self.since)
        self.rows.append({
            "images": images, **means, "lr": learning_rate(self.par, images - self.par.batch),
            "images_per_second": speed, "peak_memory_mib": cost.peak_memory(self.device),
            "utilisation": speed * self.share_of_peak,
        })  # fmt: skip
        self.count, self.since, self.totals = 0, now, {}
        return next((mean for mean in means.values() if not math.isfinite(mean)), means["loss"])


def _loop(training: Training, dataset: Dataset, home: Path, device: str, advance: Advance) -> None:
    """Train in this process, one of those that accelerate knows of, until the folder tells of the end."""
    started, (name, _, description, run, par, threads, _) = time.time(), training
    accelerator = processes.accelerator(par.precision, par.processes, device, par.accumulation, par.compile)
    torch.set_num_threads(threads if par.processes == 1 else 1)
    main, total = accelerator.is_main_process, steps(par)
    due = [
        (max(1, round(total * share)), snapshot_name(share)) for share in SNAPSHOTS
    ]  # several at once in a short one
    log_every, state_every = (max(1, round(kimg * 1000 / par.batch)) for kimg in (par.log_kimg, par.state_kimg))

    torch.manual_seed(step_seed(run.seed, 0))
    objective = _objective(training, dataset, accelerator.device)
    flops = evaluations(run) * cost.flops(objective.denoiser)
    engine = Engine(objective, accelerator, par.precision == "tf32")
    step, history, previous = _resume(training, engine, home, flops, device)
    saved, resumed_kimg = step, kimg(par, step)

    order = Order(len(dataset.images), run.seed)
    progress = tqdm(total=total * par.batch, initial=step * par.batch, unit="img", unit_scale=True, desc=name,
                    disable=not main or advance is not None)  # fmt: skip
    if advance:
        advance(step * par.batch)
    while step < total:
        engine.set_rate(learning_rate(par, step * par.batch))
        for loss in _losses(training, dataset, order, objective, engine, step):
            history.add(loss)
        history.count += 1
        engine.average(ema_beta(step * par.batch, par.batch, par.ema_halflife_kimg, par.ema_ramp))
        step += 1
        progress.update(par.batch)
        if advance:
            advance(par.batch)
        if step % log_every == 0 or step == total:
            mean = history.entry(accelerator, step * par.batch)
            if not math.isfinite(mean):
                raise FdmError(
                    f"The loss of {name} is {mean} after {kimg(par, step):.1f} kimg; the last good state is "
                    f"kept in {home}. Lower training.lr or lengthen training.lr_ramp_kimg in its profile."
                )
            progress.set_postfix(loss=f"{mean:.4f}", refresh=False)
        for snapshot in (label for at, label in due if at == step and main):
            extra = {"name": name, "images": step * par.batch, "dataset": dataset.sha256}
            checkpoints.save(home / snapshot, objective.ema, description | extra)
        # Never between two entries of the log.
        if history.count == 0 and (step - saved >= state_every or step == total):
            saved = step
            if main:  # pragma: no branch, as other processes only go on
                previous = state.save(
                    home, engine.state() | {"step": step, "history": json.dumps(history.rows)}, previous
                )
    progress.close()
    if main:  # pragma: no branch
        told = {"run": name, "history": history.rows, "resumed_kimg": resumed_kimg, "seconds": time.time() - started}
        write_json(home / state.FINISHED, told)
    accelerator.end_training()


def _objective(training: Training, dataset: Dataset, device: torch.device) -> Objective:
    """What a training minimises."""
    _, _, description, run, par, _, start = training
    args = (description, run, par, device, start)
    if run.few_steps:
        if run.few_steps.adversarial:
            return adversarial.Adversarial(*args)
        return discrepancy.Discrepancy(*args, dataset)
    return (Hybrid if run.framework in JOINT else Conditional if run.given else Denoising)(*args)


def _resume(
    training: Training, engine: Engine, home: Path, flops: int, device: str
) -> tuple[int, _History, Path | None]:
    """Go on from the newest state in the folder, where there is one: the step, the log, and the state's path."""
    main, par = engine.accelerator.is_main_process, training.par
    path = state.newest(home, warn=main)
    step, rows = 0, list[dict[str, float]]()
    if path:
        found = torch.load(path, weights_only=True, map_location="cpu")
        engine.load(found)
        step, rows = found["step"], json.loads(found["history"])
    if len(set(gather_object([(step, path.name if path else "")]))) > 1:
        raise FdmError(f"The machines do not see the same state in {home}; put the project on a disk that they share.")
    if path and main:
        print(f"{training.name}: resuming at {kimg(par, step):.1f} kimg from {path}", file=sys.stderr)
    return step, _History(rows, par, flops, device), path


def _losses(
    training: Training, dataset: Dataset, order: Order, objective: Objective, engine: Engine, step: int
) -> Iterator[Losses]:
    """Take one step of the optimisers, in parts; yields the mean losses of each of this process's parts."""
    run, par, device = training.run, training.par, engine.accelerator.device
    generator = torch.Generator(device).manual_seed(step_seed(run.seed, 1 + step))
    take = _taken(dataset, order, step * par.batch, par.batch, step_seed(run.seed, 1 + step, FRESH))
    transforms = augmentation.draw_transforms(par.batch, par.augment, generator) if par.augment > 0 else None
    random = objective.draw(par.batch, dataset.shape, generator)
    label_dim = training.description["network"]["label_dim"]
    # This process's parts of the batch, one for each round of accumulation.
    size = par.batch // (par.processes * par.accumulation)
    for first in range(engine.accelerator.process_index * size, par.batch, par.processes * size):
        part = slice(first, first + size)
        torch.manual_seed(step_seed(run.seed, 1 + step, first))  # for dropout
        images, classes = take(part)
        images = to_float(images.to(device))
        class_labels = one_hot(classes, label_dim).float().to(device) if label_dim else None
        augment_labels = None
        if transforms is not None:
            mine = augmentation.Transforms(*(field[part] for field in transforms))
            images, augment_labels = augmentation.transform(images, mine), mine.labels()
        drawn = {key: value[part] for key, value in random.items()}
        yield objective.step(engine, Batch(step, images, class_labels, augment_labels, drawn))


def _taken(
    dataset: Dataset, order: Order, first: int, count: int, seed: int
) -> Callable[[slice], tuple[Tensor, Tensor]]:
    """What gives a part of a batch its images and their classes: those in `order`, or fresh draws from a seed."""
    if dataset.mixture is not None:
        images, classes = dataset.fresh(count, seed)
        return lambda part: (images[part], classes[part])
    index = order(first, count)
    return lambda part: (dataset.images[index[part]], dataset.labels[index[part]])


def _log(logs: Path, history: list[dict[str, float]]) -> None:
    """Write the whole history through DVCLive, whose step is the number of training images."""
    from dvclive import Live  # which takes a while to import

    with Live(str(logs), dvcyaml=None, save_dvc_exp=False, report=None) as live:
        for row in history:
            live.step = int(row["images"])
            for key, value in row.items():
                if key != "images":
                    live.log_metric(key, value)
            live.make_summary()
