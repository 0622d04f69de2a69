"""Systems compared: each way to sample on each network, by quality against evaluations.

All start from the same latents at the same noise level, and end at the lowest one, but for those whose last step is
said to go to zero. Each training has latents of its own, the same for every system and for the same seed of every cell,
so that trainings differ by latents as well. Whatever is tuned is tuned on a block apart, with the first seed of a cell.
Each measurement is remembered by all that shapes it.
"""

import copy
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from fdm.data.datasets import Dataset, halves, to_float, to_uint8
from fdm.files import digest, write_json
from fdm.metrics import classifier, distances, features, learned
from fdm.model.denoiser import Denoise, Denoiser
from fdm.process.joint import JOINT
from fdm.samplers import SAMPLERS
from fdm.study import closure, heads, networks
from fdm.study.profiles import Profile, SystemParams, SystemsParams
from fdm.tasks import generation
from fdm.training import processes

CONVERGED = ("heun", 256)  # the solution that a sample's distance is measured to
FLOOR = "real-images"  # the name of what is measured of real images, beside those of cells
RECALL = 1000  # real images behind recall, whose cost grows with their square
TUNING, REPORTED, OTHER = BLOCKS = range(3)  # of latents
FLOORS = 20  # sets of real images behind the floor
CONTEXT = ("cell", "profile", "dataset", "run", "framework", "kernel", "seed")
MEASURED = ("part", "system", "sampler", "options", "nfe", "block", "quantity", "value", "n")
ORIGIN = ("experiment", "source", "checkpoint", "device")

Options = tuple[tuple[str, float | str], ...]
Best = dict[tuple[str, int], Options]


def text_of(options: Options) -> str:
    """Options as a table has them."""
    told = (f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in options)
    return ", ".join(told)


class Sampling(NamedTuple):
    """One set of samples: of `part` tuning, systems or crossed. Or what some networks say besides: their second and
    third moments, of `part` moments, and the process that was learned with them, of `part` process."""

    part: str
    system: str
    sampler: str
    options: Options  # its grid, and a last step to zero, among them
    nfe: int
    block: int


def possible(sampler: str, nfe: int, options: Options = ()) -> bool:
    """Whether a sampler can make that many evaluations and end as it is to."""
    try:
        SAMPLERS[sampler].steps(nfe, bool(dict(options).get("to_zero", False)))
    except ValueError:
        return False
    return True


def tuned(par: SystemsParams, cell: str) -> list[Sampling]:
    """What is tried on the latents for tuning, with the first seed of a cell."""
    return [
        Sampling("tuning", each.name, each.sampler, options, nfe, TUNING)
        for each in par.of(cell) if each.tune for nfe in each.nfe or par.nfe
        for options in map(functools.partial(_options, each), each.candidates)
        if possible(each.sampler, nfe, options)
    ]  # fmt: skip


def reported(par: SystemsParams, cell: str, best: Best) -> list[Sampling]:
    """What is measured of every run of a cell; `best` has the options of tuned systems by name and evaluations."""
    out = []
    for each in par.of(cell):
        own = _options(each, each.candidates[0])
        for nfe in each.nfe or par.nfe:
            chosen = best.get((each.like or each.name, nfe), own)
            options = tuple(sorted((dict(chosen) | dict(own)).items())) if each.like else chosen
            if possible(each.sampler, nfe, options):
                block = OTHER if each.other_latents else REPORTED
                out.append(Sampling("systems", each.name, each.sampler, options, nfe, block))
    crossed = par.crossed
    if crossed is None or cell in par.only:
        return out
    return out + [
        Sampling("crossed", SAMPLERS[sampler].label, sampler, (("grid", grid),), nfe, REPORTED)
        for sampler in crossed.samplers for grid in crossed.grids for nfe in crossed.nfe if possible(sampler, nfe)
    ]  # fmt: skip


def witnessed(profile: Profile, run: str) -> list[Sampling]:
    """What a run's network says besides: second and third moments, of heads and by derivatives of D; and its process.

    Derivatives with the first seed of a cell alone: besides one evaluation, each value of an image costs two passes
    back.
    """
    learned = Sampling("process", "learned", "multivariate-sscs", (), 0, REPORTED)
    framework = profile.run(run).framework
    ways: dict[str, Options] = {f"{targets} heads": (("heads", targets),) for targets in heads.targets_of(profile, run)}
    if ways and run == profile.runs_of(profile.run(run).cell)[0]:
        ways["derivatives of D"] = ()
    return [
        *(Sampling("moments", name, "gms", (*options, ("sigma", sigma)), 1, REPORTED)
          for name, options in ways.items() for sigma in heads.LEVELS),
        *([learned] if framework in JOINT and JOINT[framework].learned else []),
    ]  # fmt: skip


def _options(system: SystemParams, options: dict[str, float | str]) -> Options:
    more: dict[str, float | str] = {"grid": system.grid} if system.grid else {}
    more |= {"heads": system.heads} if system.heads else {}
    return tuple(sorted((options | more | ({"to_zero": 1.0} if system.to_zero else {})).items()))


def evaluations(profile: Profile, cell: str) -> int:
    """Network evaluations that the comparison takes on a cell."""
    par = profile.evaluation.systems
    if par is None:
        return 0
    each_run = sum(each.nfe for each in reported(par, cell, {})) + _converged(par, cell)
    moments = sum(each.nfe for run in profile.runs_of(cell) for each in witnessed(profile, run))
    return par.samples * (sum(each.nfe for each in tuned(par, cell)) + len(profile.runs_of(cell)) * each_run + moments)


def _converged(par: SystemsParams, cell: str) -> int:
    """Evaluations a sample behind the converged solutions of a run."""
    every = {each.block for each in reported(par, cell, {}) if par.distances and SAMPLERS[each.sampler].flows}
    return CONVERGED[1] * len(every)


class Judge:
    """What samples are compared with: real images in three spaces of features, classes, and a classifier of them."""

    def __init__(self, profile: Profile, dataset: Dataset, device: str) -> None:
        self.extract, self.weights = features.extractor(profile.evaluation.extractor, device)
        self.learned = learned.Learned(dataset.images, dataset.labels) if dataset.classes > 1 else None
        self.classifier = classifier.Classifier(dataset.images, dataset.labels) if dataset.classes > 1 else None
        self.frechet = features.FRECHET[profile.evaluation.extractor]
        real = dataset.images[halves(len(dataset.images))[0][: distances.LIMIT]]
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
        from torch_fidelity.metric_kid import kernel_poly  # which takes seconds to import

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
    from torch_fidelity.metric_kid import kernel_poly

    K = kernel_poly(found.double().numpy(), found.double().numpy())
    n = len(K)
    return float((K.sum() - K.trace()) / (n * (n - 1)))


class Counted:
    """A denoiser that counts how often it is asked: the evaluations of a table are these, and nobody's formula."""

    def __init__(self, denoiser: Denoise) -> None:
        self.denoiser, self.calls = denoiser, 0
        self.shape, self.classes, self.sigma_range = denoiser.shape, denoiser.classes, denoiser.sigma_range
        self.condition = denoiser.condition

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, **more: Any) -> Tensor:
        """D(x; sigma) of the denoiser, with what it is given besides."""
        self.calls += 1
        return self.denoiser(x, sigma, class_labels, **more)

    def __getattr__(self, name: str) -> Any:
        """What some denoisers know besides, such as `cumulants`, which costs an evaluation as well."""
        known = getattr(self.denoiser, name)
        if not callable(known):
            return known

        def asked(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return known(*args, **kwargs)

        return asked


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
        self.heads = dict[str, tuple[Denoise, str]]()

    def headed(self, what: Sampling) -> tuple[Denoise, str]:
        """The denoiser that samples, with heads where it needs them, and the hash of those; an exact one has none."""
        targets: Any = dict(what.options).get("heads")
        if targets is None or not isinstance(self.denoiser, Denoiser):
            return self.denoiser, ""
        if targets not in self.heads:
            self.heads[targets] = heads.load(self.profile, self.name, self.denoiser, targets, self.hash)
        return self.heads[targets]

    def seeds(self, block: int) -> range:
        """The seeds of the latents of a block, of this training alone."""
        first = (len(BLOCKS) * self.profile.run(self.name).seed + block) * self.par.samples
        return range(first, first + self.par.samples)

    @torch.inference_mode()
    def end(self, denoiser: Denoise, seeds: range, sampler: str, nfe: int, options: Options = ()) -> Tensor:
        """Samples as they are, float64 (N, C, H, W)."""
        how: dict[str, Any] = {key: value for key, value in options if key != "heads"}
        how["to_zero"] = bool(how.get("to_zero", False))
        *_, x = generation.trajectory(denoiser, seeds, sampler, nfe, self.device, **how)
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
        if what.part == "process":
            said: Any = self.denoiser
            rest, (Q, D, *_) = what._asdict() | {"options": "", "n": 1}, said.process
            found = {"coupling": Q[1, 0], "noise in the pixel": D[0, 0], "noise in both": D[0, 1]}
            return [rest | {"quantity": quantity, "value": float(value)} for quantity, value in found.items()]
        if what.part == "moments":
            sigma = float(dict(what.options)["sigma"])
            found = heads.witness(self.headed(what)[0], self.dataset, sigma, self.device)
            rest = what._asdict() | {"options": text_of(what.options), "n": heads.WITNESSES}
            return [rest | {"quantity": quantity, "value": value} for quantity, value in found.items()]
        began, counted = time.perf_counter(), Counted(self.headed(what)[0])
        x = self.end(counted, self.seeds(what.block), what.sampler, what.nfe, what.options)
        found = {"seconds": (time.perf_counter() - began) / len(x)}
        if self.par.distances and what.part != "tuning" and SAMPLERS[what.sampler].flows:
            found["distance"] = _distance(x, self.solution(what.block))
            if self.exact is not None:
                found["flow distance"] = _distance(x, self.solution(what.block, exact=True))
        if what.part != "crossed":
            _, labels = generation.draw_latents(self.seeds(what.block), self.denoiser.shape, self.denoiser.classes)
            found |= judge.scores(to_uint8(x), labels if self.denoiser.classes else None, what.part == "tuning")
        row = what._asdict() | {"options": text_of(what.options), "nfe": counted.calls, "n": len(x)}
        return [row | {"quantity": quantity, "value": value} for quantity, value in found.items()]


def _distance(a: Tensor, b: Tensor) -> float:
    """Median over images of the root mean square difference a pixel."""
    return float((a - b).square().mean(dim=(1, 2, 3)).sqrt().median())


def sources(every: Iterable[Sampling]) -> dict[Sampling, list[str]]:
    """What the source of a sampler, and of its grid, is called."""
    used = {what: (what.sampler, dict(what.options).get("grid")) for what in every}
    found = dict[tuple[str, Any], list[str]]()
    for sampler, grid in dict.fromkeys(used.values()):
        apart = closure.of_grid(str(grid), sampler) if grid else None
        found[sampler, grid] = [closure.identity(each) for each in (closure.of_sampler(sampler), apart) if each]
    return {what: found[key] for what, key in used.items()}


def experiments(
    profile: Profile, trained: str, dataset: str, weights: str, every: Iterable[Sampling]
) -> dict[Sampling, str]:
    """What each measurement is called: a hash of all that shapes it, the same on every machine.

    `trained` is what the training is called, `dataset` the hash of the images, `weights` that of the extractor's.
    """
    par = profile.evaluation
    assert par.systems is not None
    code = [closure.identity("systems"), closure.identity(closure.of_sampler(CONVERGED[0]))]
    shape = [trained, dataset, par.extractor, weights, par.systems.samples, *([] if par.systems.distances else [False])]
    used = {what: dict(what.options).get("heads") for what in every}
    of_heads = {what: [heads.experiment(trained, par.systems.heads, str(targets))]
                for what, targets in used.items() if targets and par.systems.heads}  # fmt: skip
    return {
        what: digest([*shape, what, source, *code, *of_heads.get(what, [])]) for what, source in sources(every).items()
    }


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
    `flow distance`, that to the exact flow's, where it is known; both where the profile wants distances; FD and KID in
    up to three spaces; recall, accuracy; and `seconds` a sample. `expected` gives the sections of a checkpoint's
    description that must agree with a run's. Memory, `advance` and what is raised are as in `measure.evaluate`.
    """
    par = profile.evaluation.systems
    assert par is not None
    torch.set_num_threads(profile.threads)
    judge, rows = Judge(profile, dataset, device), list[dict[str, Any]]()
    best: Best = {}
    for number, name in enumerate(profile.runs_of(cell)):
        bench = Bench(profile, name, dataset, expected(name), device)
        if advance:
            advance(par.samples * _converged(par, cell))
        if number == 0:
            tried = [*_measured(bench, tuned(par, cell), judge, advance)]
            rows += [row for _, found in tried for row in found]
            best = choose(par, {what: _quick(found, judge) for what, found in tried})
        for _, found in _measured(bench, reported(par, cell, best), judge, advance):
            rows += found
        for _, found in _measured(bench, witnessed(profile, name), judge, advance):
            rows += found
    return pd.DataFrame(rows).reindex(columns=[*CONTEXT, *MEASURED, *ORIGIN])


def _quick(found: list[dict[str, Any]], judge: Judge) -> float:
    """The distance that decides what is best: the Frechet distance in the extractor's space."""
    return next(row["value"] for row in found if row["quantity"] == judge.frechet)


def choose(par: SystemsParams, scores: dict[Sampling, float]) -> Best:
    """The best options of each tuned system by evaluations, from the scores of all that was tried.

    Of one that has a single combination for all evaluations, that of the least mean logarithm.
    """
    best: Best = {}
    for each in par.systems:
        tried = {what: math.log(score) for what, score in scores.items() if what.system == each.name}
        numbers = sorted({what.nfe for what in tried})
        for nfe in numbers:
            among = numbers if each.together else [nfe]
            mean = dict[Options, float]()
            for what, score in tried.items():
                if what.nfe in among:
                    mean[what.options] = mean.get(what.options, 0) + score
            best[each.name, nfe] = min(mean, key=lambda options: mean[options])
    return best


def floor(profile: Profile, dataset: Dataset, device: str = "cpu") -> pd.DataFrame:
    """The same scores of real images that are held out: what a perfect system would get, set by set."""
    par = profile.evaluation.systems
    assert par is not None
    judge, real = Judge(profile, dataset, device), to_uint8(to_float(dataset.held))
    rows = []
    for number in range(FLOORS):
        part = torch.randperm(len(real), generator=torch.Generator().manual_seed(number))[: par.samples]
        called = digest([dataset.sha256, judge.weights, par.samples, number, closure.identity("systems")])
        for quantity, value in judge.scores(real[part], dataset.held_labels[part]).items():
            context = {"cell": FLOOR, "profile": profile.profile, "dataset": profile.dataset.name, "part": FLOOR}
            row = {"system": FLOOR, "block": number, "quantity": quantity, "value": value, "n": len(part)}
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
    source = sources(every)
    names = experiments(profile, bench.trained, bench.dataset.sha256, judge.weights, every)
    for what, called in names.items():
        key = digest([called, bench.hash, bits, *filter(None, [bench.headed(what)[1]])])
        rows = networks.rows_under(known, key)
        if rows is None:
            context = {
                "cell": run.cell, "profile": profile.profile, "dataset": profile.dataset.name, "run": name,
                "framework": run.framework, "kernel": run.kernel, "seed": run.seed,
            }  # fmt: skip
            origin = {"experiment": called, "source": " ".join(source[what]), "checkpoint": bench.hash[:12],
                      "device": bench.device}  # fmt: skip
            rows = [context | row | origin for row in bench.measure(what, judge)]
            known[key] = {"rows": rows, "hash": digest(rows)}
            write_json(memory(profile, name), known)
        if advance:
            advance(what.nfe * bench.par.samples)
        yield what, rows
