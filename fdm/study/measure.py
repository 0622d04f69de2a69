"""Sample, extract features, and score: what is measured of a run, each measurement remembered by all that shapes it.

FID is the Frechet distance of Inception-v3 features and nothing else; with another extractor it is FD(name).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from fdm.data.datasets import Dataset, halves, to_float, to_uint8
from fdm.files import FdmError, digest, hash_of, replace, root, write_json
from fdm.metrics import classifier, distances, features, shares
from fdm.model.denoiser import Denoise
from fdm.samplers import SAMPLERS
from fdm.study import closure, networks
from fdm.study.profiles import USUAL, EvaluationParams, Profile
from fdm.tasks import generation
from fdm.training import processes

CALIBRATIONS = 20  # random halvings of the real images behind a calibration row
CONTEXT = (
    "cell", "profile", "dataset", "run", "framework", "kernel", "seed", "duration", "kimg", "sampler", "options", "nfe",
    "sigma_max", "latents", "reference",
)  # fmt: skip
ORIGIN = ("extractor", "experiment", "checkpoint", "device")
GRID = 64  # samples that are kept as pictures


def make_reference(profile: Profile, dataset: Dataset, path: Path, device: str = "cpu") -> None:
    """Features of all real images, once for a data set and an extractor, into a safetensors file."""
    extract, weights = features.extractor(profile.evaluation.extractor, device)
    batches = tqdm(dataset.images.split(profile.evaluation.batch), desc="reference features", unit="batch")
    tensors = {"features": torch.cat([extract(batch) for batch in batches])}
    description = {"extractor": profile.evaluation.extractor, "weights": weights, "dataset": dataset.sha256}
    kept = description | {"sha256": hash_of(tensors)}
    replace(path, lambda part: save_file(tensors, part, {"reference": json.dumps(kept)}))


def load_reference(profile: Profile, path: Path) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Reference features (M, d), features of all real images (N, d), and what made them.

    Raises FdmError for a missing or damaged file or another extractor's features.
    """
    if not path.is_file():
        raise FdmError(f"The reference features {path} are missing; run dvc repro to compute them.")
    try:
        with safe_open(path, "pt") as file:
            description = json.loads((file.metadata() or {})["reference"])
            everything = file.get_tensor("features")
        if hash_of({"features": everything}) != description.pop("sha256"):
            raise ValueError("its content is not that of its checksum")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise FdmError(f"The reference features {path} are damaged ({error}); remove the file and rerun.") from error
    if description["extractor"] != profile.evaluation.extractor:
        raise FdmError(f"{path} holds features of {description['extractor']}; remove the file and rerun.")
    reference = everything[halves(len(everything))[0]] if profile.evaluation.reference == "half" else everything
    return reference, everything, description


def calibrate(profile: Profile, everything: Tensor, made_by: dict[str, str]) -> pd.DataFrame:
    """The floor of each metric: real images against other real images, over random disjoint pairs of sets.

    Each set is as large as the generated ones, or half of the data where that is smaller (n tells). `value` is
    the mean, `low` and `high` hold 95 % of the pairs; `experiment` is a hash of all that shapes them, `made_by`, the
    features' description, among it.
    """
    frechet = features.FRECHET[profile.evaluation.extractor]
    rows = []
    for seed in tqdm(range(CALIBRATIONS), desc="calibration"):
        a, b = halves(len(everything), seed)
        n = min(profile.evaluation.samples, len(b))
        pick = torch.randperm(len(b), generator=torch.Generator().manual_seed(seed))[:n]
        generated, real = everything[b[pick]], everything[a]
        rows += distances.score(generated, real, frechet)
    par = profile.evaluation
    shape = [made_by, par.reference, par.samples, closure.identity("scoring")]
    table = pd.DataFrame(rows).groupby("metric", sort=False)
    quantiles = table["value"].quantile([0.025, 0.975]).unstack()
    return pd.DataFrame(
        {"value": table["value"].mean(), "low": quantiles[0.025], "high": quantiles[0.975],
         "n": table["n"].first(), "n_reference": table["n_reference"].first(), "experiment": digest(shape)}
    ).reset_index()  # fmt: skip


def real_accuracy(dataset: Dataset, experiment: str) -> pd.DataFrame:
    """The classifier's accuracy on the images that are held out, as a row of the floor; none for a single class."""
    if dataset.classes < 2:
        return pd.DataFrame()
    judge = classifier.Classifier(dataset.images, dataset.labels)
    row = accuracy(judge, to_uint8(to_float(dataset.held)), dataset.held_labels)
    low, high = shares.wilson(row["value"], row["n"])
    return pd.DataFrame([row | {"low": low, "high": high, "experiment": experiment}])


class Setting(NamedTuple):
    """One set of samples that is scored."""

    duration: float  # share of the training budget
    sampler: str
    nfe: int
    sigma_max: float  # highest noise level that the sampler starts from
    options: tuple[tuple[str, float | str | bool], ...] = ()  # the sampler's, its grid and its end among them

    @property
    def text(self) -> str:
        """The options as a table has them: `eta=0.5`, or `usual` for a sampler as it usually is."""
        told = (f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in self.options)
        return ", ".join(told) or USUAL


def settings(profile: Profile, name: str) -> list[Setting]:
    """What is measured of a run, by evaluation.settings; of a network that was not trained here, at its end alone."""
    run, par, out = profile.run(name), profile.evaluation, list[Setting]()
    for each in par.settings:
        if run.cell not in (each.cells or [run.cell]) or SAMPLERS[each.sampler].flows == run.generates:
            continue
        special = {"grid": each.grid, "to_zero": each.to_zero}
        options = {key: value for key, value in special.items() if value is not None} | each.options
        durations = each.duration if name in profile.trained else [share for share in each.duration if share == 1]
        out += [
            Setting(share, each.sampler, nfe, top, tuple(sorted(options.items())))
            for top in each.sigma_max for nfe in each.nfe for share in durations
        ]  # fmt: skip
    return list(dict.fromkeys(out))


def experiments(profile: Profile, name: str, trained: str, dataset: str, weights: str) -> dict[Setting, str]:
    """What each measurement of a run is called: a hash of all that shapes it, the same on every machine.

    `trained` is what the training is called, `dataset` the hash of the images, `weights` that of the extractor's. The
    source of a sampler names that sampler's measurements alone.
    """
    par = profile.evaluation
    shape = {
        "trained": trained, "dataset": dataset, "extractor": [par.extractor, weights], "reference": par.reference,
        "batch": par.batch, "samples": par.samples, "precision": par.precision, "code": closure.identity("scoring"),
    }  # fmt: skip
    sources = {each.sampler: closure.identity(closure.of_sampler(each.sampler)) for each in profile.evaluation.settings}

    def behind(setting: Setting) -> dict[str, str]:
        grid = dict(setting.options).get("grid")
        apart = grid and closure.of_grid(str(grid), setting.sampler)
        return {"sampler": sources[setting.sampler]} | ({"grid": closure.identity(apart)} if apart else {})

    return {setting: digest(shape | {"setting": setting} | behind(setting)) for setting in settings(profile, name)}


def evaluate(
    profile: Profile,
    name: str,
    dataset: Dataset,
    expected: dict[str, Any] | None,
    device: str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Score the checkpoints of one run; returns one tidy row a (duration, sampler, options, NFE, metric).

    `expected` are the sections of a checkpoint's description that must agree with the run's. Each measurement is
    remembered in the profile's build folder by all that shapes it, weights and arithmetic included, so that an
    interrupted evaluation goes on, and one more setting measures itself alone. `advance` is told of network evaluations
    as they are made; without it a progress bar is shown.
    Raises FdmError for checkpoints of another run, and for a reference of other images.
    """
    par, folder, memory = profile.evaluation, profile.checkpoints(name), profile.scores(name)
    made_by = load_reference(profile, profile.reference_file)[2]
    if made_by["dataset"] != dataset.sha256:
        raise FdmError(
            f"{profile.reference_file} was computed from other images or weights; remove the file and rerun."
        )
    hashes = networks.weights_of(profile, name, dataset, folder)
    # The number of processes changes nothing that is measured: there are no more of them than GPUs, and it is no part
    # of what names a measurement, but for their threads.
    count = par.processes if device == "cpu" else min(par.processes, torch.cuda.device_count())
    bits = [profile.threads if count == 1 else 1, processes.arithmetic(device)]
    trained = dataset.sha256 if profile.run(name).source == "analytic" else networks.trained_as(folder)
    names = experiments(profile, name, trained, dataset.sha256, made_by["weights"])
    keys = {setting: digest([called, hashes[setting.duration], bits]) for setting, called in names.items()}
    known = networks.remembered(memory)
    todo = {setting: keys[setting] for setting in names if networks.rows_under(known, keys[setting]) is None}
    if advance:
        advance(sum(setting.nfe * par.samples for setting in names.keys() - todo.keys()))
    if todo:
        args = (profile, name, dataset, expected, device, count, todo, advance)
        processes.launch(_measure, args, count)
    done, rows = networks.remembered(memory), []
    for setting, called in names.items():
        origin = {
            "extractor": f"{par.extractor}:{made_by['weights']}", "experiment": called,
            "checkpoint": hashes[setting.duration][:12], "device": device,
        }  # fmt: skip
        rows += [row | origin for row in done[keys[setting]]["rows"]]
    return pd.DataFrame(rows).reindex(columns=[*CONTEXT, "metric", "value", "low", "high", "n", "n_reference", *ORIGIN])


def _measure(
    profile: Profile,
    name: str,
    dataset: Dataset,
    expected: dict[str, Any] | None,
    device: str,
    count: int,
    todo: dict[Setting, str],
    advance: Callable[[int], None] | None,
) -> None:
    """Measure, in this process and the others that accelerate knows of, and remember each setting under its key."""
    par, memory = profile.evaluation, profile.scores(name)
    accelerator = processes.accelerator(par.precision, count, device)
    torch.set_num_threads(profile.threads if count == 1 else 1)
    place = "cpu" if device == "cpu" else str(accelerator.device)  # which calls it cpu:0
    real, _, made_by = load_reference(profile, profile.reference_file)
    extract, weights = features.extractor(par.extractor, place, root() / "downloads")
    if weights != made_by["weights"]:
        raise FdmError(
            f"{profile.reference_file} was computed from other images or weights; remove the file and rerun."
        )
    total = sum(setting.nfe * sum(map(len, _batches(par, accelerator))) for setting in todo)
    hidden = advance is not None or not accelerator.is_main_process
    progress = tqdm(total=total, unit="eval", unit_scale=True, desc=name, disable=hidden)

    def tell(n: int) -> None:
        progress.update(n)
        if advance:
            advance(n)

    judge = None
    for setting, key in todo.items():
        denoiser, kimg = networks.denoiser_of(
            profile, name, dataset, profile.checkpoints(name), setting.duration, expected
        )
        if isinstance(denoiser, torch.nn.Module):
            denoiser.to(place).to(memory_format=torch.channels_last)
        images, generated = _samples(denoiser, setting, par, accelerator, place, extract, tell)
        if accelerator.is_main_process:
            context = _context(profile, name, setting, denoiser, kimg)
            scores = _scores(generated, real, par)
            if denoiser.classes:
                judge = judge or classifier.Classifier(dataset.images, dataset.labels)
                told = generation.draw_latents(range(len(images)), denoiser.shape, denoiser.classes)[1]
                scores.append(accuracy(judge, images, told))
            rows = [context | row for row in scores]
            write_json(memory, networks.remembered(memory) | {key: {"rows": rows, "hash": digest(rows)}})
    progress.close()
    accelerator.end_training()


def _batches(par: EvaluationParams, accelerator: Accelerator) -> list[range]:
    """Seeds of this process's batches. They are the same whatever the number of processes, and so are the samples."""
    firsts = range(0, par.samples, par.batch)
    batches = [range(first, min(first + par.batch, par.samples)) for first in firsts]
    return batches[accelerator.process_index :: accelerator.num_processes]


def _samples(
    denoiser: Denoise,
    setting: Setting,
    par: EvaluationParams,
    accelerator: Accelerator,
    device: str,
    extract: Callable[[Tensor], Tensor],
    tell: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """A setting's samples from all processes, uint8 (samples, C, H, W), and their features, (samples, d)."""
    parts: list[tuple[int, Tensor, Tensor]] = []
    options: dict[str, Any] = {"sigma_max": setting.sigma_max, **dict(setting.options)}
    for seeds in _batches(par, accelerator):
        processes.use_tf32(par.precision == "tf32")
        with accelerator.autocast():
            images = generation.sample(denoiser, seeds, setting.sampler, setting.nfe, device, **options)
        processes.use_tf32(False)  # features are the yardstick: exact, whatever the networks are computed in
        parts.append((seeds.start, images, extract(images)))
        tell(setting.nfe * len(images))
    _, samples, generated = zip(*sorted(gather_object(parts), key=lambda each: each[0]), strict=True)
    return torch.cat(samples), torch.cat(generated)


def accuracy(judge: classifier.Classifier, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """The row of the share of images, uint8 (N, C, H, W), that the classifier finds to be of their classes (N,)."""
    n = len(images)
    return {"metric": "accuracy", "value": judge.share(images, labels), "n": n, "n_reference": judge.learnt}


def _context(profile: Profile, name: str, setting: Setting, denoiser: Denoise, kimg: float) -> dict[str, Any]:
    """What a row says of where its number is from, its usual latents and reference, and the columns it may lack."""
    run = profile.run(name)
    return {
        "cell": run.cell, "profile": profile.profile, "dataset": profile.dataset.name, "run": name,
        "framework": run.framework, "kernel": run.kernel, "seed": run.seed, "duration": setting.duration, "kimg": kimg,
        "sampler": setting.sampler, "options": setting.text, "nfe": setting.nfe,
        "sigma_max": generation.noise_range(denoiser, setting.sigma_max)[1], "latents": 0, "reference": 0,
        "metric": "", "value": None, "low": None, "high": None,
    }  # fmt: skip


def _scores(generated: Tensor, real: Tensor, par: EvaluationParams) -> list[dict[str, Any]]:
    """Rows of a setting's metrics; Frechet distances with the interval of other latents."""
    rows = distances.score(generated, real, features.FRECHET[par.extractor])
    for row, distance in zip((rows[0], rows[-1]), (distances.frechet_distance, distances.extrapolated), strict=True):
        if row["metric"].startswith(rows[0]["metric"]):  # the last is extrapolated where there are enough images
            ends = distances.interval(generated, real, row["value"], distance)
            row |= dict(zip(("low", "high"), ends, strict=True))
    return rows


@torch.inference_mode()
def pictures(profile: Profile, name: str, dataset: Dataset, path: Path, device: str = "cpu") -> None:
    """Keep samples of the fully trained network, and how one of them came about, in a small safetensors file.

    `grid` is uint8 (64, C, H, W) from seeds 0 to 63; `trajectory` float32 (steps + 1, C, H, W) of seed 0.
    """
    denoiser, _ = networks.denoiser_of(profile, name, dataset, profile.checkpoints(name), 1.0)
    if isinstance(denoiser, torch.nn.Module):
        denoiser.to(device)
    how = profile.evaluation.primary
    grid = generation.sample(denoiser, range(GRID), *how, device)
    steps = torch.cat(list(generation.trajectory(denoiser, range(1), *how, device))).float().cpu()
    replace(path, lambda part: save_file({"grid": grid, "trajectory": steps}, part))
