"""Restorations compared: held-out images from measurements of them, by each system, on each network.

Each training has images of its own, the same for every system and for the same seed of every cell, with the same masks,
measurement noise and latents. Whatever is tuned is tuned by PSNR on images apart, with the first seed of a cell. Each
measurement is remembered by all that shapes it.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from fdm.data.datasets import Dataset, to_float, to_uint8
from fdm.files import FdmError, digest, write_json
from fdm.model.denoiser import Denoise, Denoiser
from fdm.study import closure, networks, systems
from fdm.study.profiles import Profile, RestorationParams
from fdm.tasks import physics
from fdm.tasks.restoration import ccdf
from fdm.tasks.restoration.methods import RESTORERS, possible
from fdm.training import processes

ESTIMATE = "estimate"  # the system that asks no network, on the cell of all
PICTURED = 8  # images of which pictures are kept
SMALLEST = 11  # pixels of SSIM's window
CONTEXT = ("cell", "profile", "dataset", "run", "framework", "kernel", "given", "seed")
MEASURED = ("part", "task", "system", "method", "options", "nfe", "quantity", "value", "n")
ORIGIN = ("experiment", "source", "checkpoint", "device")

Best = dict[tuple[str, str, int], systems.Options]  # by task, system and evaluations


class Restoring(NamedTuple):
    """One set of restorations, of `part` tuning or restoration."""

    part: str
    task: str
    system: str
    method: str
    options: systems.Options
    nfe: int


def wanted(profile: Profile, cell: str, best: Best | None = None) -> list[Restoring]:
    """What is measured of every run of a cell, with the best options; without `best`, what is tried to find them."""
    par, out = of(profile), list[Restoring]()
    for task in par.tasks_of(profile.cells[cell]):
        for each in par.of(profile.cells[cell]):
            for nfe in par.nfe:
                tried = [tuple(sorted(options.items())) for options in each.candidates]
                if best is None and not each.tune:
                    continue
                part = "tuning" if best is None else "restoration"
                if best is not None:
                    tried = [best.get((task, each.name, nfe), tried[0])]
                out += [
                    Restoring(part, task, each.name, each.method, options, nfe)
                    for options in tried if possible(each.method, nfe, dict(options))
                ]  # fmt: skip
    return out


def of(profile: Profile) -> RestorationParams:
    """What the profile compares; raises FdmError for one that restores nothing."""
    if profile.evaluation.restoration is None:
        raise FdmError(f"{profile.params_file} has no evaluation.restoration to compare.")
    return profile.evaluation.restoration


def evaluations(profile: Profile, cell: str) -> int:
    """Network evaluations that the comparison takes on a cell."""
    par, runs = of(profile), len(profile.runs_of(cell))
    return par.tuning * sum(each.nfe for each in wanted(profile, cell)) + par.images * runs * sum(
        each.nfe for each in wanted(profile, cell, {})
    )


def images_of(profile: Profile, dataset: Dataset, part: str, seed: int) -> range:
    """Which of the held-out images are restored: those of a training, or those for tuning, which are behind all.

    Raises FdmError where there are too few.
    """
    par, seeds = of(profile), sorted({seed for cell in profile.cells for seed in profile.seeds_of(cell)})
    behind = len(seeds) * par.images
    if behind + par.tuning > len(dataset.held):
        raise FdmError(
            f"{profile.params_file}: {behind + par.tuning} held-out images are needed for evaluation.restoration, and "
            f"the data set has {len(dataset.held)}; lower images or tuning."
        )
    if part == "tuning":
        return range(behind, behind + par.tuning)
    first = seeds.index(seed) * par.images
    return range(first, first + par.images)


def scores(restored: Tensor, clean: Tensor, measurement: physics.Measurement) -> dict[str, float]:
    """Means over images (N, C, H, W) in [-1, 1]: PSNR in dB, SSIM where it fits, and what the measurement says.

    `residual` is the root mean square a pixel between the measured part of a restoration and the measurement.
    """
    from deepinv.loss.metric import PSNR, SSIM  # which takes seconds to import

    mine, true = ((each.double().clamp(-1, 1) + 1) / 2 for each in (restored, clean))
    out = {"PSNR": float(PSNR()(mine, true).mean())}
    if min(clean.shape[2:]) >= SMALLEST:
        out["SSIM"] = float(SSIM()(mine, true).mean())
    return out | {"residual": float(measurement.residual(restored).mean())}


class OnDevice:
    """A denoiser on a device that is asked from the CPU, where restorations are walked and deepinv's physics is."""

    def __init__(self, denoiser: Denoise, device: str) -> None:
        self.denoiser, self.device = denoiser, device
        self.shape, self.classes, self.sigma_range = denoiser.shape, denoiser.classes, denoiser.sigma_range
        self.condition = denoiser.condition

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, **more: Tensor) -> Tensor:
        """D(x; sigma) on the device of x, with what the denoiser is given besides."""
        given = {name: value.to(self.device) for name, value in more.items()}
        return self.denoiser(x.to(self.device), sigma.to(self.device), class_labels, **given).to(x.device)


class Bench:
    """One run: its denoiser, and the measurements that it restores."""

    def __init__(
        self, profile: Profile, name: str, dataset: Dataset, expected: dict[str, Any] | None, device: str
    ) -> None:
        folder = profile.checkpoints(name)
        self.profile, self.par, self.run, self.device = profile, of(profile), profile.run(name), device
        self.name, self.dataset = name, dataset
        self.hash = networks.weights_of(profile, name, dataset, folder)[1.0]
        self.trained = networks.trained_as(folder)
        denoiser, _ = networks.denoiser_of(profile, name, dataset, folder, 1.0, expected)
        assert isinstance(denoiser, Denoiser)  # as the profile has no other
        denoiser.to(device).to(memory_format=torch.channels_last)
        self.denoiser = OnDevice(denoiser, device)

    @torch.no_grad()  # which DPS leaves, for its gradient
    def measure(self, what: Restoring, judge: systems.Judge) -> list[dict[str, Any]]:
        """A row a quantity."""
        measurement, clean, labels, numbers = measured_of(
            self.profile, self.dataset, what.part, what.task, self.run.seed
        )
        counted, began = systems.Counted(self.denoiser), time.perf_counter()
        x = RESTORERS[what.method].restore(counted, measurement, what.nfe, numbers, **dict(what.options))
        found = {"seconds": (time.perf_counter() - began) / len(x)} | scores(x, clean, measurement)
        if what.part != "tuning":
            found |= judge.scores(to_uint8(x), labels)
        row = what._asdict() | {"options": systems.text_of(what.options), "nfe": counted.calls, "n": len(x)}
        return [row | {"quantity": quantity, "value": value} for quantity, value in found.items()]

    @torch.no_grad()
    def pictures(self, wanted: list[Restoring]) -> dict[str, Tensor]:
        """Some images as they are restored in the most evaluations; see `compare`."""
        numbers = images_of(self.profile, self.dataset, "restoration", self.run.seed)[:PICTURED]
        out = {"clean": self.dataset.held[numbers.start : numbers.stop]}
        for what in (each for each in wanted if each.nfe == max(self.par.nfe)):
            measurement = physics.measure(what.task, to_float(out["clean"]), self.par.noise, numbers)
            x = RESTORERS[what.method].restore(self.denoiser, measurement, what.nfe, numbers, **dict(what.options))
            out |= {f"{what.task}/{ESTIMATE}": to_uint8(measurement.estimate),
                    f"{what.task}/{what.system}": to_uint8(x)}  # fmt: skip
        return {key: images.contiguous() for key, images in out.items()}


def measured_of(
    profile: Profile, dataset: Dataset, part: str, task: str, seed: int
) -> tuple[physics.Measurement, Tensor, Tensor, range]:
    """What is measured of the images of a training, these, their classes and their numbers."""
    numbers = images_of(profile, dataset, part, seed)
    clean = to_float(dataset.held[numbers.start : numbers.stop])
    labels = dataset.held_labels[numbers.start : numbers.stop]
    return physics.measure(task, clean, of(profile).noise, numbers), clean, labels, numbers


def source_of(what: Restoring) -> list[str]:
    """What the source of the sampler inside is called, where there is one that is chosen."""
    if what.method != "ccdf":
        return []
    options = dict(what.options)
    sampler, grid = str(options.get("sampler", ccdf.SAMPLER)), options.get("grid")
    apart = closure.of_grid(str(grid), sampler) if grid else None
    return [closure.identity(each) for each in (closure.of_sampler(sampler), apart) if each]


def experiments(
    profile: Profile, trained: str, dataset: str, weights: str, every: Iterable[Restoring]
) -> dict[Restoring, str]:
    """What each measurement is called: a hash of all that shapes it, the same on every machine.

    `trained` is what the training is called, `dataset` the hash of the images, `weights` that of the extractor's.
    """
    par = of(profile)
    shape = [trained, dataset, profile.evaluation.extractor, weights, par.noise, par.images, par.tuning, profile.seeds,
             closure.identity("restoration")]  # fmt: skip
    return {what: digest([*shape, what, source_of(what)]) for what in every}


def compare(
    profile: Profile,
    cell: str,
    dataset: Dataset,
    expected: Callable[[str], dict[str, Any] | None],
    device: str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Compare all systems on the runs of a cell: a tidy row a set of restorations and quantity, and some pictures.

    `quantity` is `PSNR`, `SSIM` and `residual` (see `scores`); FD, KID, recall and accuracy as in `systems.compare`,
    the last by the class of the image that was measured; and `seconds` an image. The pictures, uint8 (PICTURED, C, H,
    W) by `<task>/<system>`, are the first run's in the most evaluations; `<task>/estimate` and `clean` are what they
    are made from. `expected`, memory, `advance` and what is raised are as in `systems.compare`.
    """
    torch.set_num_threads(profile.threads)
    judge, rows, shown = systems.Judge(profile, dataset, device), list[dict[str, Any]](), dict[str, Tensor]()
    best: Best = {}
    for number, name in enumerate(profile.runs_of(cell)):
        bench = Bench(profile, name, dataset, expected(name), device)
        if number == 0:
            tried = [*_measured(bench, wanted(profile, cell), judge, advance)]
            rows += [row for _, found in tried for row in found]
            best = choose({what: _psnr(found) for what, found in tried})
            shown = bench.pictures(wanted(profile, cell, best))
        for _, found in _measured(bench, wanted(profile, cell, best), judge, advance):
            rows += found
    return pd.DataFrame(rows).reindex(columns=[*CONTEXT, *MEASURED, *ORIGIN]), shown


def _psnr(found: list[dict[str, Any]]) -> float:
    return next(row["value"] for row in found if row["quantity"] == "PSNR")


def choose(psnr: dict[Restoring, float]) -> Best:
    """The options with the highest PSNR by task, system and evaluations, from all that was tried."""
    best = dict[tuple[str, str, int], tuple[float, systems.Options]]()
    for what, value in psnr.items():
        key = (what.task, what.system, what.nfe)
        if math.isfinite(value) and (key not in best or value > best[key][0]):
            best[key] = value, what.options
    return {key: options for key, (_, options) in best.items()}


def estimates(profile: Profile, dataset: Dataset, device: str = "cpu") -> pd.DataFrame:
    """The same scores of the estimates themselves, which ask no network, for the images of each training."""
    par, rows = of(profile), list[dict[str, Any]]()
    judge = systems.Judge(profile, dataset, device)
    for seed in profile.seeds:
        for task in par.tasks:
            measurement, clean, labels, numbers = measured_of(profile, dataset, "restoration", task, seed)
            called = digest(
                [dataset.sha256, judge.weights, par.noise, list(numbers), task, closure.identity("restoration")]
            )
            found = scores(measurement.estimate, clean, measurement) | judge.scores(
                to_uint8(measurement.estimate), labels
            )
            context = {"cell": ESTIMATE, "profile": profile.profile, "dataset": profile.dataset.name, "seed": seed}
            row = {"part": "restoration", "task": task, "system": ESTIMATE, "nfe": 0, "n": len(numbers)}
            rows += [
                context | row | {"quantity": quantity, "value": value, "experiment": called, "device": device}
                for quantity, value in found.items()
            ]  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=[*CONTEXT, *MEASURED, *ORIGIN])


def memory(profile: Profile, run: str) -> Path:
    """What was measured of a run, by all that shapes it."""
    return profile.build / "restoration" / f"{run}.json"


def _measured(
    bench: Bench, every: list[Restoring], judge: systems.Judge, advance: Callable[[int], None] | None
) -> Iterator[tuple[Restoring, list[dict[str, Any]]]]:
    profile, name, run = bench.profile, bench.name, bench.run
    known, given = networks.remembered(memory(profile, name)), run.given
    bits = [profile.threads, processes.arithmetic(bench.device)]
    for what, called in experiments(profile, bench.trained, bench.dataset.sha256, judge.weights, every).items():
        key = digest([called, bench.hash, bits])
        rows = networks.rows_under(known, key)
        if rows is None:
            context = {
                "cell": run.cell, "profile": profile.profile, "dataset": profile.dataset.name, "run": name,
                "framework": run.framework, "kernel": run.kernel, "seed": run.seed,
                "given": "" if given is None else f"{given.task}, shift" if given.shift else given.task,
            }  # fmt: skip
            origin = {"experiment": called, "source": " ".join(source_of(what)), "checkpoint": bench.hash[:12],
                      "device": bench.device}  # fmt: skip
            rows = [context | row | origin for row in bench.measure(what, judge)]
            known[key] = {"rows": rows, "hash": digest(rows)}
            write_json(memory(profile, name), known)
        if advance:
            advance(what.nfe * (bench.par.tuning if what.part == "tuning" else bench.par.images))
        yield what, rows
