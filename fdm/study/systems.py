"""Systems compared: each way to sample on each network, by quality against evaluations.

All start from the same latents at the same noise level, and end at the lowest one. Latents come in blocks: whatever is
tuned is tuned on the first, with the first seed of a cell, and reported on the others. Each measurement is remembered
by all that shapes it.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kernel_poly

from fdm.data.datasets import Dataset, halves, to_uint8
from fdm.files import digest, root, write_json
from fdm.metrics import classifier, distances, features, learned
from fdm.model.denoiser import Denoise
from fdm.samplers import SAMPLERS
from fdm.study import closure, networks
from fdm.study.profiles import Profile, SystemsParams
from fdm.tasks import generation
from fdm.training import processes

CONVERGED = ("heun", 255)  # the solution that a sample's distance is measured to
FLOOR = "real-images"  # the name of what is measured of real images, beside those of cells
RECALL = 1000  # real images behind recall, whose cost grows with their square
CONTEXT = ("cell", "profile", "dataset", "run", "framework", "kernel", "seed")
MEASURED = ("part", "system", "sampler", "options", "nfe", "block", "quantity", "value", "n")
ORIGIN = ("experiment", "source", "checkpoint", "device")

Options = tuple[tuple[str, float | str], ...]


class Sampling(NamedTuple):
    """One set of samples: of `part` tuning, systems or crossed."""

    part: str
    system: str
    sampler: str
    options: Options  # its grid among them
    nfe: int
    block: int

    @property
    def text(self) -> str:
        """The options as a table has them."""
        told = (f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in self.options)
        return ", ".join(told)


def to_zero(sampler: str, nfe: int) -> bool | None:
    """Whether a sampler that makes `nfe` evaluations ends at zero noise: it does not where it can; None for neither."""
    for end in (False, True):
        try:
            SAMPLERS[sampler].steps(nfe, end)
        except ValueError:
            continue
        return end
    return None


def tuned(par: SystemsParams) -> list[Sampling]:
    """What is tried on the first block, with the first seed of a cell."""
    return [
        Sampling("tuning", each.name, each.sampler, _options(options, each.grid), nfe, 0)
        for each in par.systems if each.tune for nfe in par.nfe if to_zero(each.sampler, nfe) is not None
        for options in each.candidates
    ]  # fmt: skip


def reported(par: SystemsParams, best: dict[tuple[str, int], Options]) -> list[Sampling]:
    """What is measured of every run; `best` has the options of tuned systems by name and evaluations."""
    out = [
        Sampling("systems", each.name, each.sampler, best.get((each.name, nfe), first), nfe, block)
        for each in par.systems for first in [_options(each.candidates[0], each.grid)]
        for nfe in par.nfe if to_zero(each.sampler, nfe) is not None
        for block in range(1, par.blocks)
    ]  # fmt: skip
    return out + [
        Sampling("crossed", SAMPLERS[sampler].label, sampler, (("grid", grid),), nfe, 1)
        for sampler in par.crossed.samplers for grid in par.crossed.grids for nfe in par.crossed.nfe
        if to_zero(sampler, nfe) is not None
    ]  # fmt: skip


def _options(options: dict[str, float | str], grid: str | None) -> Options:
    return tuple(sorted((options | ({"grid": grid} if grid else {})).items()))


def evaluations(profile: Profile, cell: str) -> int:
    """Network evaluations that the comparison takes on a cell."""
    par = profile.evaluation.systems
    if par is None:
        return 0
    runs, converged = len(profile.runs_of(cell)), CONVERGED[1] * par.blocks
    each_run = sum(each.nfe for each in reported(par, {})) + converged
    return par.samples * (sum(each.nfe for each in tuned(par)) + runs * each_run)


class Judge:
    """What samples are compared with: real images in three spaces of features, classes, and a classifier of them."""

    def __init__(self, profile: Profile, dataset: Dataset, device: str) -> None:
        self.extract, self.weights = features.extractor(profile.evaluation.extractor, device, root() / "downloads")
        self.learned = learned.Learned(dataset.images, dataset.labels) if dataset.classes > 1 else None
        self.classifier = classifier.Classifier(dataset.images, dataset.labels) if dataset.classes > 1 else None
        self.frechet = features.FRECHET[profile.evaluation.extractor]
        real = dataset.images[halves(len(dataset.images))[0]]
        self.real = {space: found for space, found in self.features(real).items()}
        self.moments = {space: distances.moments(found) for space, found in self.real.items()}
        self.within = {space: _pairs(found) for space, found in self.real.items()}

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Features of images, uint8 (N, C, H, W), by the name of their space."""
        parts = images.split(500)
        found = {self.frechet.removeprefix("FD(").removesuffix(")"): torch.cat([self.extract(each) for each in parts])}
        found["pixels"] = images.flatten(1).double() / 255
        return found | ({"classifier": self.learned(images)} if self.learned else {})

    def scores(self, images: Tensor, labels: Tensor | None, quick: bool = False) -> dict[str, float]:
        """Distances of samples, uint8 (N, C, H, W), from the real images; `quick` is what tuning needs alone."""
        out, found = dict[str, float](), self.features(images)
        for space, mine in found.items():
            out[f"FD({space})"] = distances.frechet_distance(mine, self.moments[space])
            if quick:
                return out
            cross = kernel_poly(mine.double().numpy(), self.real[space].double().numpy()).mean()
            out[f"KID({space})"] = float(_pairs(mine) + self.within[space] - 2 * cross)
        first, real = next(iter(found)), next(iter(self.real.values()))
        out["recall"] = distances.precision_recall(found[first], real[:RECALL])[1]
        if self.classifier and labels is not None:
            out["accuracy"] = self.classifier.share(images, labels)
        return out


def _pairs(found: Tensor) -> float:
    """Mean of KID's kernel over pairs of different images."""
    K = kernel_poly(found.double().numpy(), found.double().numpy())
    n = len(K)
    return float((K.sum() - K.trace()) / (n * (n - 1)))


class Bench:
    """One run: its denoiser, its blocks of latents, and the solutions that samples are compared with."""

    def __init__(
        self, profile: Profile, name: str, dataset: Dataset, expected: dict[str, Any] | None, device: str
    ) -> None:
        assert profile.evaluation.systems is not None
        folder = profile.checkpoints(name)
        self.profile, self.par, self.name, self.device = profile, profile.evaluation.systems, name, device
        self.hash = networks.weights_of(profile, name, dataset, folder)[1.0]
        self.trained = dataset.sha256 if profile.run(name).source == "analytic" else networks.trained_as(folder)
        self.denoiser, _ = networks.denoiser_of(profile, name, dataset, folder, 1.0, expected)
        if isinstance(self.denoiser, torch.nn.Module):
            self.denoiser.to(device).to(memory_format=torch.channels_last)
        self.exact: Denoise | None = None
        if dataset.mixture is not None and dataset.mixture.classes == self.denoiser.classes:
            self.exact = copy.copy(dataset.mixture)
            self.exact.sigma_range = self.denoiser.sigma_range  # a sampler starts and ends where the network's does
        self.ends = dict[tuple[int, bool], Tensor]()
        self.dataset = dataset

    def seeds(self, block: int) -> range:
        """The seeds of the latents of a block."""
        return range(block * self.par.samples, (block + 1) * self.par.samples)

    @torch.inference_mode()
    def end(self, denoiser: Denoise, seeds: range, sampler: str, nfe: int, options: Options = ()) -> Tensor:
        """Samples as they are, float64 (N, C, H, W)."""
        end = to_zero(sampler, nfe)
        *_, x = generation.trajectory(denoiser, seeds, sampler, nfe, self.device, to_zero=end, **dict(options))  # type: ignore[arg-type]
        return x.cpu()

    def solution(self, block: int, exact: bool = False) -> Tensor:
        """The converged samples of a block, of the network or of the exact flow."""
        if (block, exact) not in self.ends:
            of = self.exact if exact else self.denoiser
            assert of is not None
            self.ends[block, exact] = self.end(of, self.seeds(block), *CONVERGED)
        return self.ends[block, exact]

    def measure(self, what: Sampling, judge: Judge) -> list[dict[str, Any]]:
        """A row a quantity."""
        began = time.perf_counter()
        x = self.end(self.denoiser, self.seeds(what.block), what.sampler, what.nfe, what.options)
        found = {"seconds": (time.perf_counter() - began) / len(x)}
        if what.part != "tuning":
            found["distance"] = _distance(x, self.solution(what.block))
            if self.exact is not None:
                found["flow distance"] = _distance(x, self.solution(what.block, exact=True))
        if what.part != "crossed":
            _, labels = generation.draw_latents(self.seeds(what.block), self.denoiser.shape, self.denoiser.classes)
            found |= judge.scores(to_uint8(x), labels if self.denoiser.classes else None, what.part == "tuning")
        row = what._asdict() | {"options": what.text, "n": len(x)}
        return [row | {"quantity": quantity, "value": value} for quantity, value in found.items()]


def _distance(a: Tensor, b: Tensor) -> float:
    """Median over images of the root mean square difference a pixel."""
    return float((a - b).square().mean(dim=(1, 2, 3)).sqrt().median())


def source(what: Sampling) -> list[str]:
    """What the source of a sampler, and of its grid, is called."""
    grid = dict(what.options).get("grid")
    apart = closure.of_grid(str(grid), what.sampler) if grid else None
    return [closure.identity(each) for each in (closure.of_sampler(what.sampler), apart) if each]


def experiment(profile: Profile, trained: str, dataset: str, weights: str, what: Sampling) -> str:
    """What a measurement is called: a hash of all that shapes it, the same on every machine.

    `trained` is what the training is called, `dataset` the hash of the images, `weights` that of the extractor's.
    """
    par = profile.evaluation
    assert par.systems is not None
    return digest([
        trained, dataset, par.extractor, weights, par.systems.samples, what, source(what),
        closure.identity("systems"), closure.identity(closure.of_sampler(CONVERGED[0])),
    ])  # fmt: skip


def compare(
    profile: Profile,
    cell: str,
    dataset: Dataset,
    expected: Callable[[str], dict[str, Any] | None],
    device: str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Compare all systems on the runs of a cell: a tidy row a set of samples and quantity.

    `quantity` is `distance`, the median distance (root mean square a pixel) to the converged sample of the same latent;
    `flow distance`, that to the exact flow's, where it is known; FD and KID in up to three spaces; recall, accuracy;
    and `seconds` a sample. `expected` gives the sections of a checkpoint's description that must agree with a run's.
    Memory, `advance` and what is raised are as in `measure.evaluate`.
    """
    par = profile.evaluation.systems
    assert par is not None
    torch.set_num_threads(profile.threads)
    judge, rows = Judge(profile, dataset, device), list[dict[str, Any]]()
    best: dict[tuple[str, int], Options] = {}
    for number, name in enumerate(profile.runs_of(cell)):
        bench = Bench(profile, name, dataset, expected(name), device)
        if advance:
            advance(par.samples * par.blocks * CONVERGED[1])
        if number == 0:
            least = dict[tuple[str, int], float]()
            for what, found in _measured(bench, tuned(par), judge, advance):
                rows += found
                place = (what.system, what.nfe)
                value = next(row["value"] for row in found if row["quantity"] == judge.frechet)
                if value < least.get(place, math.inf):
                    best[place], least[place] = what.options, value
        for _, found in _measured(bench, reported(par, best), judge, advance):
            rows += found
    return pd.DataFrame(rows).reindex(columns=[*CONTEXT, *MEASURED, *ORIGIN])


def floor(profile: Profile, dataset: Dataset, device: str = "cpu") -> pd.DataFrame:
    """The same scores of real images, those that the others are not compared with: what a perfect system would get."""
    par = profile.evaluation.systems
    assert par is not None
    judge, others = Judge(profile, dataset, device), halves(len(dataset.images))[1]
    rows = []
    for block in range(1, par.blocks):
        part = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(block))[: par.samples]]
        called = digest([dataset.sha256, judge.weights, par.samples, block, closure.identity("systems")])
        for quantity, value in judge.scores(dataset.images[part], dataset.labels[part]).items():
            context = {"cell": FLOOR, "profile": profile.profile, "dataset": profile.dataset.name, "part": FLOOR}
            row = {"system": FLOOR, "block": block, "quantity": quantity, "value": value, "n": len(part)}
            rows.append(context | row | {"experiment": called, "device": device})
    return pd.DataFrame(rows).reindex(columns=[*CONTEXT, *MEASURED, *ORIGIN])


def memory(profile: Profile, run: str) -> Path:
    """What was measured of a run, by all that shapes it."""
    return profile.build / "systems" / f"{run}.json"


def _measured(
    bench: Bench, every: list[Sampling], judge: Judge, advance: Callable[[int], None] | None
) -> Iterator[tuple[Sampling, list[dict[str, Any]]]]:
    profile, name = bench.profile, bench.name
    run, known = profile.run(name), networks.remembered(memory(profile, name))
    bits = [profile.threads, processes.arithmetic(bench.device)]
    for what in every:
        called = experiment(profile, bench.trained, bench.dataset.sha256, judge.weights, what)
        key = digest([called, bench.hash, bits])
        rows = networks.rows_under(known, key)
        if rows is None:
            context = {
                "cell": run.cell, "profile": profile.profile, "dataset": profile.dataset.name, "run": name,
                "framework": run.framework, "kernel": run.kernel, "seed": run.seed,
            }  # fmt: skip
            origin = {"experiment": called, "source": " ".join(source(what)), "checkpoint": bench.hash[:12],
                      "device": bench.device}  # fmt: skip
            rows = [context | row | origin for row in bench.measure(what, judge)]
            known[key] = {"rows": rows, "hash": digest(rows)}
            write_json(memory(profile, name), known)
        if advance:
            advance(what.nfe * bench.par.samples)
        yield what, rows
