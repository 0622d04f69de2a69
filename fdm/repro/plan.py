"""What a profile will cost, before anything is spent: networks, FLOPs, hours, disk, and what is missing."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import psutil
import torch
from torch import Tensor

from fdm.data import archives, datasets, downloads
from fdm.data.datasets import Dataset
from fdm.data.sources import SOURCES
from fdm.files import FdmError, root
from fdm.metrics import inception
from fdm.model import checkpoints, cost
from fdm.model.conditional import ConditionalDenoiser
from fdm.model.denoiser import Denoiser
from fdm.model.joint import JointDenoiser
from fdm.params import SNAPSHOTS, Precision
from fdm.process.frameworks import FRAMEWORKS
from fdm.process.joint import JOINT
from fdm.repro import pipeline
from fdm.study import heads, restoration, runs, systems
from fdm.study.profiles import Profile
from fdm.training import loop, processes
from fdm.training.objectives import conditional, denoising, hybrid

SECONDS = 20  # that the measurement takes
UTILISATION = 0.3  # of a GPU's peak that a training is assumed to reach
# Dense peak in TFLOP/s and memory in GB, by the makers' data sheets.
GPUS: dict[str, tuple[dict[str, float], int]] = {
    "V100": ({"fp32": 15.7, "fp16": 125}, 32),
    "A100": ({"fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312}, 80),
    "H100": ({"fp32": 67, "tf32": 495, "bf16": 989, "fp16": 989}, 80),
    "RTX 4090": ({"fp32": 82.6, "tf32": 82.6, "bf16": 165, "fp16": 165}, 24),
}
GIB = 2**30


class Network(NamedTuple):
    """Size and cost of one run's network."""

    parameters: int
    flops: int  # of one evaluation of one image
    activations: int  # bytes that one image's forward pass keeps for the backward pass, in float32

    def memory(self, images: int) -> int:
        """Bytes that training holds: weights, gradients, Adam's two moments and the average, and `images` images."""
        return 5 * 4 * self.parameters + images * self.activations


def dataset_of(profile: Profile) -> Dataset:
    """The prepared data set, or an empty one of the same shape; raises FdmError when the prepared one is damaged."""
    if profile.dataset_file.exists():
        return datasets.load(profile.dataset_file)
    source = SOURCES[profile.dataset.name]
    side = profile.dataset.resolution
    return datasets.nothing(profile.dataset.name, (source.channels, side, side), source.classes)


def network(profile: Profile, name: str, dataset: Dataset) -> Network:
    """Cost of one run's network, without allocating it, but for one that computes with its process."""
    with torch.device("cpu" if profile.run(name).framework in JOINT else "meta"):
        denoiser = checkpoints.build(runs.specify(profile, name, dataset)).train()
        told = cost.asked(denoiser, 1, torch.get_default_device())
        kept: dict[int, torch.UntypedStorage] = {}
        own = {parameter.untyped_storage()._cdata for parameter in denoiser.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            denoiser(**told)
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    return Network(parameters, cost.flops(denoiser), sum(storage.nbytes() for storage in kept.values()))


def networks_of(profile: Profile, dataset: Dataset) -> dict[str, Network]:
    """Cost of each run's network; published networks have none, as they are unknown before they are fetched."""
    of, different = dict[str, str](), dict[str, Network]()
    for name in profile.trained:
        of[name] = json.dumps(runs.specify(profile, name, dataset)["network"])
        if of[name] not in different:  # an ablation has a hundred runs of two networks
            different[of[name]] = network(profile, name, dataset)
    return {name: different[key] for name, key in of.items()}


def largest(networks: dict[str, Network]) -> Network | None:
    """The network whose training takes the most memory."""
    return max(networks.values(), key=lambda net: net.memory(1), default=None)


def evaluations(profile: Profile, name: str) -> dict[str, int]:
    """Network evaluations that measuring one run takes, about, by stage, with its share of what is compared by cell.

    An image that heads are trained on costs about as much as one evaluation.
    """
    cell = profile.run(name).cell
    compared = systems.evaluations(profile, cell) // len(profile.runs_of(cell))
    par, targets = profile.evaluation.systems, heads.targets_of(profile, name)
    learned = len(targets) * heads.images(par.heads) if par and par.heads else 0
    restored = (
        restoration.evaluations(profile, cell) // len(profile.runs_of(cell)) if profile.evaluation.restoration else 0
    )
    return {"evaluate": runs.evaluations(profile, name), "heads": learned, "systems": compared, "restoration": restored}


# ----------------------------------------------------------------------------------------------- measurement


def _rate(step: Callable[[int], None], images: int, seconds: float) -> float:
    """Images a second of `step(n)`, in about `seconds`: n grows from 1 to `images`, as far as the time allows."""
    n, start = 1, time.perf_counter()
    while True:
        began = time.perf_counter()
        step(n)
        took = time.perf_counter() - began
        left = seconds - (time.perf_counter() - start)
        if n < images and 6 * took < left:  # room for twice as many, to warm up and to measure
            n = min(2 * n, images)
            continue
        times: list[float] = []
        while not times or (left > took and len(times) < 50):
            began = time.perf_counter()
            step(n)
            times.append(time.perf_counter() - began)
            left -= times[-1]
        return n / sorted(times)[len(times) // 2]


def available_processes(count: int) -> int:
    """The processes that a profile asks for, at most as many as this machine has devices or cores."""
    there = torch.cuda.device_count() if processes.device() == "cuda" else os.cpu_count() or 1
    return min(count, there)


def _possible(precision: Precision, device: str) -> Precision:
    """The precision, or fp32 where the device does not have it."""
    try:
        processes.require(precision, 1, device)
    except FdmError:
        return "fp32"
    return precision


def _measure(profile: Profile, dataset: Dataset, names: list[str], train: bool, device: str, path: Path) -> None:
    """Write how many images a second all processes train on, or evaluate, with the networks of some runs."""
    par, ev = profile.training, profile.evaluation
    assert par is not None
    section = par if train else ev
    count = available_processes(section.processes)
    accelerator = processes.accelerator(_possible(section.precision, device), count, device)
    torch.set_num_threads(profile.threads if count == 1 else 1)
    place, total = accelerator.device, {}
    images = par.batch // (par.processes * par.accumulation) if train else ev.batch
    free = free_memory(device) / (count if device == "cpu" else 1)
    for name in names:
        need, run = network(profile, name, dataset), profile.run(name)
        denoiser: Denoiser = checkpoints.build(runs.specify(profile, name, dataset)).to(place)
        denoiser = denoiser.to(memory_format=torch.channels_last).train(train)
        adam = torch.optim.Adam(denoiser.parameters(), lr=0.0, fused=True)

        def step(n: int, denoiser: Denoiser = denoiser, adam: Any = adam, run: Any = run) -> None:
            told = cost.asked(denoiser, n, place)
            with accelerator.autocast():
                if not train:
                    with torch.inference_mode():
                        float(denoiser(**told).sum())  # a number waits for a GPU
                    return
                augment = torch.zeros(n, of, device=place) if (of := denoiser.model.augment_dim) else None
                loss = _loss(denoiser, told["x"], told["class_labels"], augment).sum()
            loss.backward()
            adam.step()
            adam.zero_grad()
            float(loss.detach())

        most = images
        while most > 1 and need.memory(most) > 0.8 * free:
            most //= 2
        rate = torch.tensor(_rate(step, most, SECONDS / (2 * len(names))), device=place)
        total[name] = float(accelerator.reduce(rate, "sum"))
    if accelerator.is_main_process:
        path.write_text(json.dumps(total))
    accelerator.end_training()


def _loss(denoiser: Denoiser, x: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
    """The loss of a denoiser on images x (N, C, H, W), of its own kind."""
    if isinstance(denoiser, JointDenoiser):
        u, noise = torch.full((len(x), 1, 1, 1), 0.5, device=x.device), torch.randn(*x.shape, 2, device=x.device)
        of = hybrid.bound if denoiser.learned else hybrid.hybrid
        return of(denoiser, denoiser.process, x, u, noise, labels, augment)
    u = FRAMEWORKS[denoiser.framework].draw(len(x), torch.Generator(x.device).manual_seed(0))
    if isinstance(denoiser, ConditionalDenoiser):
        shifted, noise = denoiser.given["shift"], torch.randn_like(x)
        return conditional.loss(denoiser, x, x, u, noise, denoiser.framework, shifted, labels, augment)
    return denoising.loss(denoiser, x, u, torch.randn_like(x), labels, augment)


def measure(profile: Profile, dataset: Dataset, names: list[str], train: bool) -> dict[str, float]:
    """Images a second that this machine trains on, or evaluates, with the networks of some runs; for 10 seconds."""
    section = profile.training if train else profile.evaluation
    assert section is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rates.json"
        args = (profile, dataset, names, train, processes.device(), path)
        processes.launch(_measure, args, available_processes(section.processes))
        return json.loads(path.read_text())


def free_memory(device: str) -> int:
    """Free bytes of memory: of the GPU, or of the machine where there is no GPU."""
    return psutil.virtual_memory().available if device == "cpu" else torch.cuda.mem_get_info()[0]


# ------------------------------------------------------------------------------------------------- what is missing


def missing(profile: Profile, need: Network | None) -> list[str]:
    """What keeps the profile from running on this machine, and what it will download: one sentence each."""
    out = []
    par, prepared = profile.training, profile.dataset_file
    lacking = archives.available(profile.dataset)
    if lacking and not prepared.exists():
        out.append(f"data: {lacking}")
    if profile.dataset.name == "folder" and not lacking and prepared.exists():
        source = root() / str(profile.dataset.path)
        newest = max(path.lstat().st_mtime for path in [source, *source.rglob("*")])
        if newest > prepared.stat().st_mtime:
            out.append(
                f"data: {source} has changed since it was prepared; dvc repro -f "
                f"{Path(profile.params_file).with_name('dvc.yaml')}:prepare reads it again"
            )
    if profile.evaluation.extractor == "inception-v3-compat" and not downloads.place(inception.WEIGHTS.url).exists():
        out.append(f"weights: {downloads.missing(inception.WEIGHTS)}, or put it into downloads/")
    for run in profile.runs.values():
        if run.checkpoint and not downloads.place(run.checkpoint.url).exists():
            out.append(f"network: {downloads.place(run.checkpoint.url).name} will be downloaded")
    device = processes.device()
    for section, count in ((par, par.processes if par else 1), (profile.evaluation, 1)):
        if section is not None:
            try:
                processes.require(section.precision, count, device)
            except FdmError as error:
                out.append(str(error).rstrip("."))
    if par and par.compile and device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        out.append("compiler: training.compile needs a C++ compiler, g++ or clang++")
    if par and need:
        share = par.batch // (par.processes * par.accumulation)
        wanted = need.memory(share) * (par.processes if device == "cpu" else 1)
        free = free_memory(device)
        if wanted > free:
            out.append(
                f"memory: training takes up to {wanted / GIB:.0f} GiB, and {free / GIB:.0f} are free; raise "
                "training.accumulation"
            )
        if disk(profile, need) > shutil.disk_usage(root()).free:
            out.append(f"disk: about {disk(profile, need) / GIB:.1f} GiB are needed in {root()}, and fewer are free")
    return list(dict.fromkeys(out))


def disk(profile: Profile, need: Network | None) -> int:
    """Bytes on disk: data set (twice, as DVC keeps a copy), features, checkpoints, the states of a training, archives
    whose size is known, and networks that are fetched, as they are published and as they are read."""
    dataset = dataset_of(profile)
    count = len(dataset.images) or SOURCES[profile.dataset.name].size
    images = count * dataset.shape[0] * profile.dataset.resolution**2
    features = count * 4 * (2048 if profile.evaluation.extractor == "inception-v3-compat" else 320)
    weights = 4 * need.parameters if need else 0
    kept = len(SNAPSHOTS) * len(profile.trained) * weights
    # A state holds weights, average and two moments; there are two, a third while it is written, and the checkpoints.
    states = (3 * 4 + len(SNAPSHOTS)) * weights
    archives_size = sum(archive.size or 0 for archive in SOURCES[profile.dataset.name].archives)
    released = pd.read_csv(root() / "results" / "published" / "releases.csv").set_index("file")["megabytes"] * 1e6
    names = [downloads.place(run.checkpoint.url).name for run in profile.runs.values() if run.checkpoint]
    networks = sum(float(released.get(name, 0)) for name in names)
    return int(2 * images + features + kept + states + archives_size + 2 * networks)


def stages(profile: Profile) -> list[str]:
    """Stages that dvc repro would run: all where nothing was computed yet; raises FdmError if DVC cannot tell."""
    if not (profile.build / "code").is_dir():
        return list(pipeline.stages(profile))
    pipeline.write(profile)
    pipeline.write_code(profile)  # a stage that is newer than what was computed here has none yet
    command = [sys.executable, "-m", "dvc", "repro", "--dry", str(pipeline.file_of(profile))]
    done = subprocess.run(command, cwd=root(), capture_output=True, text=True)
    if done.returncode:
        raise FdmError(f"DVC cannot tell what there is to run: {' '.join(done.stderr.split()) or 'run dvc status'}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("Running stage ")]
    return [line.split("'")[1].rpartition(":")[2] for line in lines]


# --------------------------------------------------------------------------------------------------------- report


def hours(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3.5 h, 20 days, 7 years."""
    year = 365.25 * 86400
    for limit, unit, size in ((100, "s", 1), (6000, "min", 60), (100 * 3600, "h", 3600), (2 * year, "days", 86400)):
        if seconds < limit:
            return f"{seconds / size:.1f} h" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / year:,.0f} years"


def rates(profile: Profile, dataset: Dataset, networks: dict[str, Network]) -> dict[str, tuple[float, float]]:
    """Images a second that each run trains on here, and evaluations a second; measured, for about 20 seconds."""
    first: dict[Network, str] = {}
    for name, net in networks.items():
        first.setdefault(net, name)  # one measurement serves runs of one network
    trained, evaluated = (measure(profile, dataset, list(first.values()), train) for train in (True, False))
    return {name: (trained[first[net]], evaluated[first[net]]) for name, net in networks.items()}


def seconds(profile: Profile, rate: dict[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    """What training and scoring each run takes at these rates, by run and stage."""
    out = {}
    for name, (training, scoring) in rate.items():
        work = runs.images(profile, name) * loop.evaluations(profile.run(name)) / cost.TRAINING
        scored = {stage: count / scoring for stage, count in evaluations(profile, name).items()}
        out[name] = {"train": work / training} | scored
    return out


def side_by_side(profile: Profile) -> int:
    """How many runs are computed at once here."""
    counts = [section.processes for section in (profile.training, profile.evaluation) if section is not None]
    return runs.at_once(profile, max(counts))


def costs(profile: Profile, dataset: Dataset, networks: dict[str, Network]) -> dict[str, Any]:
    """What training and scoring the networks costs: measured here, reckoned for GPUs."""
    par, ev = profile.training, profile.evaluation
    assert par is not None
    print(f"Measuring this machine for about {SECONDS} seconds ...", file=sys.stderr)
    rate = rates(profile, dataset, networks)
    every, work = seconds(profile, rate), [0.0, 0.0]
    for name, net in networks.items():
        work[0] += net.flops * runs.images(profile, name) * loop.evaluations(profile.run(name))
        work[1] += net.flops * sum(evaluations(profile, name).values())
    cells: list[dict[str, Any]] = []
    for cell in dict.fromkeys(run.cell for run in profile.trained.values()):
        alike = profile.runs_of(cell)
        net, one = networks[alike[0]], every[alike[0]]
        cells.append({
            "cell": cell, "runs": len(alike), "parameters": net.parameters, "flops": net.flops,
            "images": runs.images(profile, alike[0]), "images_per_second": rate[alike[0]][0],
            "training_seconds": one["train"], "evaluations": sum(evaluations(profile, alike[0]).values()),
            "evaluations_per_second": rate[alike[0]][1], "scoring_seconds": sum(one.values()) - one["train"],
        })  # fmt: skip
    share = par.batch // (par.processes * par.accumulation)
    need = max(net.memory(share) for net in networks.values())
    gpus = []
    for gpu, (peaks, memory) in GPUS.items():
        if par.precision in peaks:
            peak = peaks[par.precision], peaks.get(ev.precision, peaks["fp32"])
            took = sum(w / (UTILISATION * p * 1e12) for w, p in zip(work, peak, strict=True))
            gpus.append({"gpu": gpu, "seconds_on_one": took, "seconds_on_eight": took / 8, "fits": need < memory * 1e9})
    return {
        "device": processes.device(), "cells": cells,
        "training_seconds": sum(each["runs"] * each["training_seconds"] for each in cells),
        "scoring_seconds": sum(each["runs"] * each["scoring_seconds"] for each in cells),
        "runs_at_once": side_by_side(profile), "training_flops": work[0], "scoring_flops": work[1],
        "step_flops": cost.TRAINING * max(net.flops for net in networks.values()) * par.batch,
        "memory_bytes": need, "images_at_a_time": share, "gpus": gpus,
    }  # fmt: skip


def _bill(profile: Profile, found: dict[str, Any]) -> list[str]:
    """Lines on what training and scoring the networks costs, from `costs`."""
    par, ev = profile.training, profile.evaluation
    assert par is not None
    rows = [
        {
            "cell": f"{each['cell']}, {each['runs']} times" if each["runs"] > 1 else each["cell"],
            "parameters": f"{each['parameters']:,}", "GFLOP an image": f"{each['flops'] / 1e9:.3g}",
            "images": f"{each['images']:,}", "images/s": f"{each['images_per_second']:.3g}",
            "training": hours(each["training_seconds"]), "evaluations": f"{each['evaluations']:,}",
            "evaluations/s": f"{each['evaluations_per_second']:.3g}", "scoring": hours(each["scoring_seconds"]),
        }
        for each in found["cells"]
    ]  # fmt: skip
    counts = [available_processes(section.processes) for section in (par, ev)]
    total = found["training_seconds"] + found["scoring_seconds"]
    here = (
        f"On this machine ({found['device']}; {counts[0]} and {counts[1]} processes, without torch.compile): training "
        f"{hours(found['training_seconds'])}, scoring {hours(found['scoring_seconds'])} at least, together "
        f"{hours(total)}."
    )
    if (n := found["runs_at_once"]) > 1:
        here += f" {n} runs are computed at once, which takes {hours(total / n)} if cores share nothing."
    need, share = found["memory_bytes"] / GIB, found["images_at_a_time"]
    no = f"no, {need:.0f} GiB: more processes or accumulation"
    table = [
        {"GPU": each["gpu"], "time on one": hours(each["seconds_on_one"]), "time on eight":
         hours(each["seconds_on_eight"]), f"has memory for {share} images": "yes" if each["fits"] else no}
        for each in found["gpus"]
    ]  # fmt: skip
    return [
        "", _columns(rows), "", here, "",
        f"On GPUs: {found['training_flops']:.2g} FLOPs to train in {par.precision}, {found['scoring_flops']:.2g} to "
        f"score in {ev.precision}, at {UTILISATION:.0%} of the peak (assumed; a step is "
        f"{found['step_flops'] / 1e12:.2g} TFLOP, and small ones reach less):", _columns(table), "",
        f"Memory of one training process: up to {need:.2g} GiB beside PyTorch, {share} images at a time.",
    ]  # fmt: skip


def _columns(rows: list[dict[str, str]]) -> str:
    """A table as text, with more room between columns than between the words of a heading."""
    lines = [[*rows[0]], *([*row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("   ".join(map(str.rjust, line, widths)) for line in lines)


def find(profile: Profile) -> dict[str, Any]:
    """The plan as plain values. It measures for about 20 seconds, and trains nothing.

    `costs` is empty where networks are published ones, whose sizes are known once they are fetched; `missing` keeps the
    profile from running here, `downloads` will be fetched.
    """
    dataset = dataset_of(profile)
    networks = networks_of(profile, dataset)
    todo, gaps = stages(profile), missing(profile, largest(networks))
    return {
        "profile": profile.profile, "dataset": profile.dataset.name, "resolution": profile.dataset.resolution,
        "runs": len(profile.runs), "stages": todo, "samples": profile.evaluation.samples,
        "evaluations_a_run": max(sum(evaluations(profile, name).values()) for name in profile.runs),
        "costs": costs(profile, dataset, networks) if networks else {},
        "disk_bytes": disk(profile, largest(networks)),
        "downloads": [gap for gap in gaps if "will be downloaded" in gap],
        "missing": [gap for gap in gaps if "will be downloaded" not in gap],
        "notes": _floor(profile, dataset),
    }  # fmt: skip


def _floor(profile: Profile, dataset: Dataset) -> list[str]:
    """A sentence where the floor cannot be at the n of the models: half of the real images stand for the models'."""
    samples, half = profile.evaluation.samples, len(dataset.labels) // 2
    if not 0 < half < samples:
        return []
    return [
        f"The floor will be of {half:,} images, half of the real ones, and the models' distances of {samples:,}: a "
        f"distance is larger at a smaller n, so they cannot be compared. With evaluation.samples: {half} they can"
    ]


def report(profile: Profile, found: dict[str, Any]) -> str:
    """The plan as text, from `find`."""
    lines = [
        f"Profile {profile.profile}: {found['runs']} runs on {found['dataset']} "
        f"({found['resolution']}x{found['resolution']}).",
        "",
        f"Stages to run: {', '.join(found['stages']) or 'none, all results are there'}.",
    ]
    if not found["costs"]:
        lines += [
            "", "The networks are published ones: their sizes are known once they are fetched. "
            f"Scoring takes {found['evaluations_a_run']:,} evaluations a run ({found['samples']:,} "
            "samples a setting)."
        ]  # fmt: skip
    else:
        lines += _bill(profile, found["costs"])
    lines += [f"Disk: about {found['disk_bytes'] / GIB:.2g} GiB.", ""]
    lines += [f"{note}." for note in found["notes"]]
    lines += [f"To be downloaded: {gap}." for gap in found["downloads"]]
    lines += [f"Missing here: {gap}." for gap in found["missing"]] or ["Nothing is missing here."]
    return "\n".join(lines)
