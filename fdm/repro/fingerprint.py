"""A fingerprint of what the code computes: hashes of weights, samples, features and scores, in every configuration.

A few steps of training with every model and option, an interruption among them; every sampler with its options;
features and scores, also of sets above the limits; errors and gradients. Where a result may be reused, two versions of
the source must give the same bits on one machine: see `fdm.repro.accept`. Bits are never compared across machines.
"""

import argparse
import contextlib
import copy
import hashlib
import json
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from fdm.data import gaussians, sources
from fdm.data.datasets import Dataset, to_float
from fdm.files import digest, relative, write_json
from fdm.metrics import distances, features
from fdm.model import checkpoints, oracle
from fdm.model.denoiser import Denoise, Denoiser
from fdm.model.generator import Generator
from fdm.params import SNAPSHOTS, snapshot_name
from fdm.process.joint import JOINT
from fdm.samplers import SAMPLERS
from fdm.study import (
    agreement,
    closure,
    errors,
    grid_toy,
    heads,
    measure,
    networks,
    profiles,
    restoration,
    runs,
    systems,
)
from fdm.study.profiles import Profile, RestorationParams, SystemsParams
from fdm.tasks import generation
from fdm.tasks.physics import TASKS
from fdm.training import loop, state

STEPS, BATCH = 8, 32
# Every kernel, multiplier and tau of every framework; warm-ups that are over after half of the steps.
CELLS = {
    "vp-baseline": {"framework": "vp", "kernel": "baseline"},
    "vp-fdm": {"framework": "vp", "kernel": "fdm", "multiplier": 2.0, "warmup_steps": 4},
    "vp-fdm-time": {"framework": "vp", "kernel": "fdm", "multiplier": 2.0, "tau": "time"},
    "ve-baseline": {"framework": "ve", "kernel": "baseline", "warmup_steps": 4},
    "ve-fdm": {"framework": "ve", "kernel": "fdm", "multiplier": 2.0, "warmup_steps": 4},
    "ve-fdm-derived": {"framework": "ve", "kernel": "fdm", "multiplier": 2.0, "ve_multiplier": "as derived"},
    "ve-fdm-time": {"framework": "ve", "kernel": "fdm", "multiplier": 2.0, "tau": "time"},
    "edm-baseline": {"framework": "edm", "kernel": "baseline"},
    "edm-fdm": {"framework": "edm", "kernel": "fdm", "multiplier": 2.0, "warmup_steps": 4},
    "edm-fdm-tuned": {"framework": "edm", "kernel": "fdm", "source": "finetune", "start": "edm-baseline"},
    "edm-baseline-exact": {"framework": "edm", "kernel": "baseline", "source": "analytic"},
}
# Every variant, a rate and a width of its own among them; trained on fresh draws, without augmentation.
VARIANTS = {
    "vp-baseline-told": {"framework": "vp", "kernel": "baseline", "variant": "radius embedded"},
    "vp-fdm-gain": {"framework": "vp", "kernel": "fdm", "multiplier": 2.0, "variant": "radius output"},
    "vp-fdm-skip": {"framework": "vp", "kernel": "fdm", "multiplier": 2.0, "variant": "edm output"},
    "ve-baseline-unit": {"framework": "ve", "kernel": "baseline", "variant": "c_in unit"},
    "edm-baseline-one": {"framework": "edm", "kernel": "baseline", "variant": "c_in 1", "lr": 1e-3,
                         "model_channels": 8},
    "edm-fdm-rescaled": {"framework": "edm", "kernel": "fdm", "multiplier": 2.0, "variant": "c_in rescaled"},
    "cld-baseline": {"framework": "cld", "kernel": "baseline"},
    "mdm-baseline": {"framework": "mdm", "kernel": "baseline"},
}  # fmt: skip
# Networks that are given an estimate.
GIVEN = {
    "edm-baseline-given": {"framework": "edm", "kernel": "baseline",
                           "given": {"task": "sr2", "noise": 0.1, "shift": False}},
    "edm-fdm-shifted": {"framework": "edm", "kernel": "fdm", "multiplier": 2.0, "warmup_steps": 4,
                        "given": {"task": "sr4", "noise": 0.1, "shift": True}},
}  # fmt: skip
# Networks that become able to draw in few steps, by every objective.
FEW: dict[str, dict[str, Any]] = {
    "edm-baseline": {"framework": "edm", "kernel": "baseline"},
    "edm-baseline-mmd": {"few_steps": {"objective": "mmd", "steps": 2, "features": "classifier"}, "batch": 16},
    "edm-baseline-siddm": {"few_steps": {"objective": "siddm", "steps": 2}, "budget_kimg": 2 * STEPS * BATCH / 1000},
    "edm-baseline-toy": {"few_steps": {"objective": "siddm toy", "steps": 3}},
    "edm-baseline-ufo": {"few_steps": {"objective": "siddm ufo", "steps": 2}},
    "edm-baseline-ddgan": {"few_steps": {"objective": "ddgan", "steps": 2}},
}
for _cell, _values in FEW.items():
    if "few_steps" in _values:
        _values |= {"framework": "edm", "kernel": "baseline", "source": "finetune", "start": "edm-baseline"}
PARTS = ("training", "joint", "conditional", "few-steps", "sampler", "scoring", "errors", "heads", "systems",
         "restoration", "toy")  # fmt: skip
SCORED = ("vp-fdm", "edm-baseline", "edm-baseline-exact")


def hash_of(*tensors: Tensor) -> str:
    """Hash of the bits of some tensors, 12 hexadecimal digits."""
    h = hashlib.sha256()
    for tensor in tensors:
        h.update(tensor.detach().contiguous().numpy().tobytes())
    return h.hexdigest()[:12]


def probe(
    augment: float = 0.0,
    dropout: float = 0.0,
    accumulation: int = 1,
    variants: bool = False,
    conditional: bool = True,
    seeds: tuple[int, ...] = (0,),
    chosen: dict[str, Any] | None = None,
) -> Profile:
    """A profile on the digits, or of the variants on the known distribution: few steps, and schedules as short.

    Of `chosen` cells, where they are given.
    """
    step, cells = BATCH / 1000, chosen or (VARIANTS if variants else CELLS)
    by_gradients = [name for name in ("vp-baseline-told", "edm-baseline") if name in cells]
    settings: list[dict[str, Any]] = [
        {"sampler": "heun", "nfe": [5], "duration": [*SNAPSHOTS]},
        {"sampler": "heun", "nfe": [11]},
        {"sampler": "dpm-solver++", "nfe": [5, 11]},
        {"sampler": "heun", "nfe": [5], "sigma_max": [20.0], "cells": ["vp-fdm"]},
        {"sampler": "ddim", "nfe": [4], "grid": "log-snr", "eta": 0.5, "cells": ["vp-fdm"]},
    ]
    values = {
        "profile": "probe", "root": ".", "params_file": "params.yaml", "threads": 1, "seeds": [*seeds], "cells": cells,
        "dataset": {"name": "exact-gaussians" if variants else "digits", "resolution": 8, "conditional": conditional},
        "network": {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
                    "dropout": dropout},
        "training": {"budget_kimg": STEPS * step, "batch": BATCH, "lr": 3e-3, "lr_ramp_kimg": STEPS * step / 2,
                     "ema_halflife_kimg": 0.1, "ema_ramp": 0.5, "augment": augment, "log_kimg": 2 * step,
                     "state_kimg": 2 * step, "accumulation": accumulation},
        "evaluation": {"extractor": "efficientnet-lite0", "reference": "half", "samples": 48, "batch": 32,
                       "settings": [each for each in settings if {*each.get("cells", [])} <= cells.keys()],
                       "errors": {"images": 16, "latents": 2, "solvers": {"heun": [5], "dpm-solver++": [5]},
                                  "gradients": by_gradients}},
    }  # fmt: skip
    return Profile.model_validate(values)


class _Interrupted(Exception):
    """Raised to stop a training, which then has to resume."""


def _of_training(folder: Path, digits: Dataset, known: Dataset, part: str) -> Iterator[tuple[str, str]]:
    """Weights at every snapshot and the losses; with augmentation, dropout and accumulation also of a resumed run.

    Of the part `joint` those of networks that see a velocity, of `conditional` those that are given an estimate, of
    `few-steps` those that draw in few, and of the part `training` those of all others.
    """
    trained = [
        ("plain", probe(), digits), ("augmented", probe(0.5, 0.1, 2), digits), ("fresh", probe(variants=True), known),
    ]  # fmt: skip
    if part == "conditional":
        trained = [("given", probe(chosen=GIVEN), digits)]
    if part == "few-steps":
        trained = [("few", probe(chosen=FEW), digits), ("untold", probe(chosen=FEW, conditional=False), digits)]
    for variant, profile, dataset in trained:
        chosen = [name for name, run in profile.trained.items() if (run.framework in JOINT) == (part == "joint")]
        for name in chosen:
            training = runs.training_of(profile, name, dataset)
            if training.start:
                start = folder / variant / str(runs.parent_of(profile, name)) / "c" / training.start.name
                training = training._replace(start=start)
            place = folder / variant / name
            args = (training, dataset, place / "c", place / "l", folder / "work", "cpu")
            if variant == "augmented":
                left = [5 * BATCH]

                def stop(n: int, left: list[int] = left) -> None:
                    left[0] -= n
                    if left[0] <= 0:
                        raise _Interrupted

                with contextlib.suppress(_Interrupted):
                    loop.train(*args, stop)
            done = loop.train(*args, (lambda n: None) if variant == "augmented" else None)
            for advance in (None, lambda n: None):
                assert loop.train(*args, advance) == done  # as it is there
            parts = [
                tensor for share in SNAPSHOTS
                for _, tensor in sorted(load_file(place / "c" / snapshot_name(share)).items())
            ]  # fmt: skip
            if name == "vp-fdm-0":
                yield f"training: launched {variant}", _launched(training, dataset, folder / "launched" / variant)
            losses = torch.tensor([row["loss"] for row in done["history"]], dtype=torch.float64)
            yield f"{part}: {variant} {profile.run(name).cell}", hash_of(*parts, losses)


def _of_joint(folder: Path, digits: Dataset, known: Dataset) -> Iterator[tuple[str, str]]:
    """Networks that see a velocity: trained, and asked for the position alone and for all variables."""
    yield from _of_training(folder, digits, known, "joint")
    for path in sorted((folder / "fresh").glob("*/c")):
        denoiser, _ = checkpoints.load(path / snapshot_name(1.0))
        if denoiser.framework in JOINT:
            for sampler in ("ddim", "multivariate-sscs"):
                path_of = list(generation.trajectory(denoiser, range(3), sampler, 4))
                yield f"joint: {sampler} {denoiser.framework}", hash_of(*path_of)


def _of_conditional(folder: Path, digits: Dataset, known: Dataset) -> Iterator[tuple[str, str]]:
    """Networks that are given an estimate: trained, and asked."""
    yield from _of_training(folder, digits, known, "conditional")
    profile, x = probe(chosen=GIVEN), to_float(digits.held[:4])
    for cell in GIVEN:
        denoiser, labels = _denoiser(profile, f"{cell}-0", digits), torch.eye(10)[:4]
        said = [denoiser(x * sigma, torch.tensor(sigma), labels, condition=x) for sigma in (0.5, 20.0)]
        yield f"conditional: {cell}", hash_of(*said)


def _launched(training: loop.Training, dataset: Dataset, work: Path) -> str:
    """Weights of a training in processes that were launched elsewhere: one that is not the first, then the first."""
    for first in (False, False, True):
        home = loop.train_launched(training, dataset, work, "cpu", first)
    (home / state.FINISHED).unlink()  # what the first does when there is no other
    loop.train_launched(training, dataset, work, "cpu", True)
    for folder, leftover in (("c", "stale"), ("l", ".log.part")):
        (work / folder).mkdir()
        (work / folder / leftover).touch()
    advance = (lambda n: None) if work.name == "plain" else None
    loop.train(training, dataset, work / "c", work / "l", work, "cpu", advance)  # which takes what they have left
    return hash_of(*(tensor for _, tensor in sorted(load_file(work / "c" / snapshot_name(1.0)).items())))


def _of_state(folder: Path) -> Iterator[tuple[str, str]]:
    """What a folder of state is found to hold: leftovers, a damaged state, a log of another training, a lock."""
    home, logs = folder / "home", folder / "logs"
    home.mkdir()
    logs.mkdir()
    found: list[Any] = [state.is_finished(home), state.finished(logs, home), state.newest(home, warn=True) is None]
    (home / ".state.part").touch()
    (logs / state.FINISHED).write_text('{"home": "another"}')
    states = [state.save(home, {"step": step}, None) for step in (1, 2)]
    path = state.save(home, {"step": 3}, states[-1])
    path.write_bytes(b"damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        newest = [state.newest(home, warn) for warn in (True, False)]
    found += [newest == [states[-1]] * 2, state.is_finished(home), state.finished(logs, home), len([*home.iterdir()])]
    (logs / state.FINISHED).write_text(json.dumps({"home": home.name}))
    for share in SNAPSHOTS:
        (home / snapshot_name(share)).touch()
    (home / state.FINISHED).touch()
    found += [state.is_finished(home), state.finished(logs, home), state.has_snapshots(home)]
    with state.alone(home, "a run"):
        waiting = threading.Thread(target=lambda: found.append(_enter(home)))
        waiting.start()
        time.sleep(0.3)
    waiting.join()
    yield "training: state", digest(found)


def _enter(home: Path) -> str:
    with state.alone(home, "a run"):
        return "entered"


def _denoiser(profile: Profile, name: str, dataset: Dataset) -> Denoiser:
    """An untrained network in which every weight matters; the last weights of a fresh one are 0."""
    torch.manual_seed(7)
    denoiser = checkpoints.build(runs.specify(profile, name, dataset))
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02)
    return denoiser.eval().requires_grad_(False)


def _of_samplers(dataset: Dataset, known: Dataset) -> Iterator[tuple[str, str]]:
    """All x along the way, for every sampler, on every grid, with each option at both ends of its range."""
    profile, seeds = probe(), range(4)
    for cell in ("vp-fdm", "edm-baseline", "ve-fdm"):
        network = _denoiser(profile, f"{cell}-0", dataset)
        for name, entry in SAMPLERS.items():
            denoiser: Denoise = network
            if not entry.flows:  # which asks for what a generator draws
                continue
            if name == "gms":  # which asks for moments besides D
                assert known.mixture is not None
                denoiser = copy.copy(known.mixture)
                denoiser.sigma_range = network.sigma_range
            for nfe in (2, 3, 4, 5, 6, 7, 13, 15):
                try:
                    entry.steps(nfe, entry.to_zero)
                except ValueError:
                    continue
                path = list(generation.trajectory(denoiser, seeds, name, nfe))
                yield f"sampler {name}: {cell} {nfe}", hash_of(*path)
            for option, allowed in entry.options.items():
                for each in allowed:
                    value = each if isinstance(each, str) else min(each, 1e3)
                    # Heun's options count while there is churn.
                    others: dict[str, Any] = (
                        {"S_churn": 2.0} if "S_churn" in entry.options and option != "S_churn" else {}
                    )
                    path = list(generation.trajectory(denoiser, seeds, name, 7, **{**others, option: value}))
                    told = value if isinstance(value, str) else f"{value:g}"
                    yield f"sampler {name}: {cell} {option} {told}", hash_of(*path)
    for cell in (cell for cell, about in FEW.items() if "few_steps" in about and cell != "edm-baseline-mmd"):
        drawing = _denoiser(probe(chosen=FEW), f"{cell}-0", dataset)
        assert isinstance(drawing, Generator)
        yield f"sampler siddm: {cell}", hash_of(*generation.trajectory(drawing, seeds, "siddm", drawing.steps))
    for grid in generation.GRIDS:
        path = list(generation.trajectory(network, seeds, "ddim", 5, grid=grid, to_zero=grid == "ladder"))
        yield f"sampler ddim: grid {grid}", hash_of(*path)


def _as_trained(profile: Profile, name: str, dataset: Dataset) -> None:
    """Put an untrained network in the place of every snapshot of a training."""
    description = runs.specify(profile, name, dataset)
    for share in SNAPSHOTS:
        path = profile.checkpoints(name) / snapshot_name(share)
        checkpoints.save(path, _denoiser(profile, name, dataset), description | {"images": 1})
    (profile.checkpoints(name) / checkpoints.EXPERIMENT).write_text('{"experiment": "probe"}')


def _of_scoring(folder: Path, dataset: Dataset, known: Dataset) -> Iterator[tuple[str, str]]:
    """Latents, features, the floor, scores of whole evaluations, and of sets above the limits; what variants say."""
    profile = probe()
    yield "scoring: latents", hash_of(*generation.draw_latents(range(4), dataset.shape, dataset.classes))
    with mock.patch.object(Profile, "build", folder), mock.patch.object(measure, "CALIBRATIONS", 2):
        measure.make_reference(profile, dataset, profile.reference_file)
        _, everything, made_by = measure.load_reference(profile, profile.reference_file)
        yield "scoring: features", hash_of(everything)
        floor = measure.calibrate(profile, everything, made_by)
        columns = ["value", "low", "high", "n", "n_reference"]
        yield "scoring: floor", hash_of(torch.tensor(floor[columns].to_numpy(float)))
        one_class = dataset._replace(classes=1)
        real = pd.concat([measure.real_accuracy(each, "probe") for each in (dataset, one_class)])
        yield "scoring: accuracy of real images", hash_of(torch.tensor(real[columns].to_numpy(float)))
        for cell in SCORED:
            name = f"{cell}-0"
            if name in profile.trained:
                _as_trained(profile, name, dataset)
            rows = measure.evaluate(
                profile, name, dataset, runs.expected(profile, name, dataset), "cpu", lambda n: None
            )
            numbers = rows[["value", "low", "high", "n", "latents", "reference", "sigma_max"]].fillna(-1)
            yield f"scoring: {cell}", hash_of(torch.tensor(numbers.to_numpy(float)))
            measure.pictures(profile, name, dataset, folder / "pictures.safetensors")
            kept = load_file(folder / "pictures.safetensors")
            yield f"scoring: pictures {cell}", hash_of(kept["grid"], kept["trajectory"])
    with mock.patch.object(distances, "LIMIT", 20), mock.patch.object(distances, "FEWEST", 40):
        scores = pd.DataFrame(measure._scores(everything[:40], everything[40:90], profile.evaluation))
        numbers = scores[["value", "low", "high", "n", "n_reference"]].fillna(-1)
        yield "scoring: above the limits", hash_of(torch.tensor(numbers.to_numpy(float)))
    various, x = probe(variants=True), known.held[:4]
    for cell in VARIANTS:
        denoiser = _denoiser(various, f"{cell}-0", known)
        said = [denoiser(x * sigma, torch.tensor(sigma), torch.eye(10)[:4]) for sigma in (0.5, 20.0)]
        yield f"scoring: {cell}", hash_of(*said)
    mixture = gaussians.class_gaussians(to_float(dataset.images), dataset.labels, components=2, rank=3)
    drawn, components = mixture.draw_labelled(6, torch.Generator().manual_seed(5))
    told = torch.eye(10)[dataset.labels[:6]]
    noisy = [mixture(drawn + sigma, torch.tensor(sigma), labels) for sigma in (0.1, 3.0) for labels in (None, told)]
    yield "scoring: exact, of low rank", hash_of(drawn, components, *noisy)
    simple = oracle.Mixture.reference()
    one = simple.draw(5, torch.Generator().manual_seed(5))
    yield "scoring: exact, of one dimension", hash_of(one, *simple.cumulants(one, torch.tensor(0.5)))
    colour = dataset.images[:8].expand(-1, 3, -1, -1)
    yield "scoring: colour", hash_of(features.extractor("efficientnet-lite0")[0](colour))


def _of_errors(folder: Path, digits: Dataset, known: Dataset) -> Iterator[tuple[str, str]]:
    """Errors by noise level, of solvers and of gradients: of images and of the known distribution, told classes or not.

    With fewer evaluations behind a converged sample, and fewer batches behind a gradient, than the study has.
    """
    patched = {"BATCHES": 2, "BATCH": 8, "SLOPES": 8, "CONVERGED": ("heun", 31)}
    images, untold = probe(), probe(variants=True, conditional=False)
    measured = [
        (images, "edm-baseline-0", digits), (images, "edm-baseline-exact-0", digits), (images, "ve-fdm-0", digits),
        (probe(variants=True), "vp-baseline-told-0", known), (untold, "vp-fdm-gain-0", known),
    ]  # fmt: skip
    for number, (profile, name, dataset) in enumerate(each for each in measured if each[1] in each[0].runs):
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(Profile, "build", folder / f"errors{number}"))
            for constant, value in patched.items():
                stack.enter_context(mock.patch.object(errors, constant, value))
            if name in profile.trained:
                _as_trained(profile, name, dataset)
            wanted, told = runs.expected(profile, name, dataset), list[int]()
            rows = errors.measure(profile, name, dataset, wanted, "cpu", told.append)
            assert errors.measure(profile, name, dataset, wanted).equals(rows)  # as it is remembered
            assert sum(told) == errors.evaluations(profile, name)
            plain = profile.model_copy(update={"evaluation": profile.evaluation.model_copy(update={"errors": None})})
            assert errors.measure(plain, name, dataset, wanted).empty and not errors.evaluations(plain, name)
        for quantity, part in rows.groupby("quantity"):
            numbers = part[["duration", "sigma", "ceiling", "nfe", "value", "n"]].astype(float).fillna(-1)
            told_or_not = "" if profile.dataset.conditional else ", untold"
            yield f"errors: {quantity} {name}{told_or_not}", hash_of(torch.tensor(numbers.to_numpy()))
    fresh, classes = known.fresh(4, 5)
    yield "errors: fresh images", hash_of(fresh, classes, known.held, known.held_labels)
    enlarged = gaussians.known(16)
    yield "errors: enlarged", hash_of(enlarged(torch.ones(1, 1, 16, 16), torch.tensor(0.5)))


NOISY = SystemsParams.model_validate({
    "samples": 16, "nfe": [4],
    "systems": [
        {"name": "DDIM", "sampler": "ddim"}, {"name": "GMS", "sampler": "gms", "heads": "centred"},
        {"name": "GMS, raw", "sampler": "gms", "heads": "raw", "limits": "published"},
        {"name": "SSCS", "sampler": "multivariate-sscs"},
    ],
    "crossed": {"samplers": ["ddim"], "grids": ["karras"], "nfe": [4]},
    "heads": {"kimg": 0.2, "batch": 32, "lr": 1e-3},
    "only": {"cld-baseline": ["DDIM", "SSCS"], "mdm-baseline": ["DDIM", "SSCS"]},
})  # fmt: skip


def _of_heads(folder: Path, digits: Dataset, known: Dataset) -> Iterator[tuple[str, str]]:
    """Heads of both kinds on networks as they are initialised, and how far their moments and derivatives are off."""
    for number, (plain, run, dataset) in enumerate([
        (probe(), "edm-baseline-0", digits), (probe(variants=True), "vp-fdm-gain-0", known),
        (probe(variants=True, conditional=False), "vp-fdm-gain-0", known),
    ]):  # fmt: skip
        if run not in plain.trained:
            continue
        evaluation = plain.evaluation.model_copy(update={"systems": NOISY})
        profile = plain.model_copy(update={"evaluation": evaluation})
        with mock.patch.object(Profile, "build", folder / f"heads{number}"):
            _as_trained(profile, run, dataset)
            assert heads.targets_of(plain, run) == []
            weights = networks.weights_of(profile, run, dataset, profile.checkpoints(run))[1.0]
            heads.train(profile, run, dataset, "cpu")
            shutil.rmtree(profile.heads(run))
            told = list[int]()
            for _ in range(2):  # trained again, and then kept
                heads.train(profile, run, dataset, "cpu", told.append)
            heads.train(profile, run, dataset, "cpu")
            for targets in heads.targets_of(profile, run):
                denoiser, _ = networks.denoiser_of(profile, run, dataset, profile.checkpoints(run), 1.0)
                assert isinstance(denoiser, Denoiser)
                headed, called = heads.load(profile, run, denoiser, targets, weights)
                seen = [heads.witness(each, dataset, 0.5, "cpu") for each in (headed, denoiser)]
                values = [value for each in seen for quantity, value in each.items() if quantity != "seconds"]
                yield f"heads: {run} {number} {targets}", digest([called, values])


def _of_systems(folder: Path, digits: Dataset, known: Dataset) -> Iterator[tuple[str, str]]:
    """Systems of every kind compared, tuned and crossed, on a network and on exact denoisers; and real images."""
    compared = SystemsParams.model_validate({
        "samples": 16, "nfe": [4, 5],
        "systems": [
            {"name": "DDIM", "sampler": "ddim", "eta": 0.5}, {"name": "Heun", "sampler": "heun"},
            {"name": "VP", "sampler": "ddim", "grid": "vp-time", "to_zero": True},
            {"name": "F-PNDM", "sampler": "f-pndm"}, {"name": "again", "sampler": "ddim", "other_latents": True},
            {"name": "MASF", "sampler": "masf", "tune": {"size": [0.1, 0.2], "eps": ["of D", "of the mean"]}},
            {"name": "high first", "sampler": "masf", "schedule": "high first", "like": "MASF"},
            {"name": "one for all", "sampler": "masf", "tune": {"size": [0.1, 0.2]}, "together": True},
        ],
        "crossed": {"samplers": ["ddim", "f-pndm"], "grids": ["karras", "vp-time"], "nfe": [5]},
    })  # fmt: skip
    plain = compared.model_copy(update={"systems": compared.systems[:2], "crossed": None, "distances": False})
    of_digits, of_known, untold = probe(), probe(variants=True), probe(variants=True, conditional=False)
    twice = probe(variants=True, seeds=(0, 1))
    measured = [
        (of_digits, "edm-baseline", digits, compared), (of_digits, "edm-baseline-exact", digits, compared),
        (of_known, "vp-fdm-gain", known, compared), (untold, "vp-fdm-gain", known, compared),
        (of_digits, "edm-baseline", digits, NOISY), (of_digits, "edm-baseline-exact", digits, NOISY),
        (twice, "vp-fdm-gain", known, NOISY), (untold, "vp-fdm-gain", known, NOISY),
        (of_known, "cld-baseline", known, NOISY), (of_known, "mdm-baseline", known, NOISY),
        (of_digits, "edm-baseline", digits, plain),
    ]  # fmt: skip
    for number, (probed, cell, dataset, par) in enumerate(each for each in measured if each[1] in each[0].cells):
        evaluation = probed.evaluation.model_copy(update={"systems": par})
        profile, named = probed.model_copy(update={"evaluation": evaluation}), f"{cell} {number}"
        with (
            mock.patch.object(Profile, "build", folder / f"systems{number}"),
            mock.patch.object(systems, "CONVERGED", ("heun", 32)),
            mock.patch.object(systems, "FLOORS", 2),
        ):
            for run in {*profile.runs_of(cell)} & {*profile.trained}:
                _as_trained(profile, run, dataset)
                for each in range(2 if heads.targets_of(profile, run) else 0):  # and then nothing is left to do
                    heads.train(profile, run, dataset, "cpu", [each].append)
            told = list[int]()
            rows = systems.compare(profile, cell, dataset, lambda run: None, "cpu", told.append)
            assert systems.compare(profile, cell, dataset, lambda run: None).equals(rows)  # as it is remembered
            assert sum(told) == systems.evaluations(profile, cell) and not systems.evaluations(probed, cell)
            rows = rows[rows["quantity"] != "seconds"]
            yield f"systems: {named}", hash_of(torch.tensor(rows["value"].to_numpy(float)))
            one_class = dataset._replace(classes=1)
            floor = pd.concat([systems.floor(profile, each) for each in (dataset, one_class)])
            yield f"systems: real images, {named}", hash_of(torch.tensor(floor["value"].to_numpy(float)))


def _of_restoration(folder: Path, digits: Dataset, known: Dataset) -> Iterator[tuple[str, str]]:
    """Every task and method, tuned and not, on a prior, and on networks with an estimate and with a shift."""
    par = RestorationParams.model_validate({
        "noise": 0.1, "tasks": [*TASKS], "images": 16, "tuning": 4, "nfe": [1, 4],
        "systems": [
            {"name": "from noise", "method": "ccdf", "sigma_0": 80.0, "eta": 1.0},
            {"name": "CCDF", "method": "ccdf", "sampler": "ab", "grid": "vp-time", "tune": {"sigma_0": [1.0, 2.0]}},
            {"name": "known", "method": "ccdf", "sigma_0": 2.0, "data": "known noise"},
            {"name": "DiffPIR", "method": "diffpir", "tune": {"lambda_": [1.0, 2.0]}}, {"name": "DPS", "method": "dps"},
            {"name": "closer", "given": "estimate", "method": "ccdf", "sigma_0": 2.0, "data": "none"},
            *({"name": f"DoSSR {order} {slope}", "given": "shift", "method": "dossr", "order": order, "slope": slope}
              for order in (1, 2, 3) for slope in ("published", "at s")),
        ],
    })  # fmt: skip
    untold = {cell: about for cell, about in CELLS.items() if cell == "edm-baseline"}
    for cell, seeds in (*((cell, (0,)) for cell in (*untold, *GIVEN)), ("edm-fdm-shifted", (0, 1))):
        plain = probe(chosen=untold | GIVEN, conditional=False, seeds=seeds)
        profile = plain.model_copy(update={"evaluation": plain.evaluation.model_copy(update={"restoration": par})})
        smallest = 8 if cell in untold else restoration.SMALLEST
        with (
            mock.patch.object(Profile, "build", folder / f"restoration{len(seeds)}"),
            mock.patch.object(restoration, "SMALLEST", smallest),
        ):
            for run in profile.runs_of(cell):
                _as_trained(profile, run, digits)
            told = list[int]()
            rows, kept = restoration.compare(profile, cell, digits, lambda run: None, "cpu", told.append)
            assert restoration.compare(profile, cell, digits, lambda run: None)[0].equals(rows)  # as it is remembered
            assert sum(told) == restoration.evaluations(profile, cell)
            named = cell if len(seeds) == 1 else f"{cell}, twice"
            yield f"restoration: pictures {named}", hash_of(*(kept[key] for key in sorted(kept)))
            rows = rows[rows["quantity"] != "seconds"]
            yield f"restoration: {named}", hash_of(torch.tensor(rows["value"].to_numpy(float)))
    found = restoration.estimates(profile.model_copy(update={"seeds": [0]}), digits)
    yield "restoration: estimates", hash_of(torch.tensor(found["value"].to_numpy(float)))


def fingerprint(only: Sequence[str] = PARTS) -> dict[str, str]:
    """Hashes by what they are of, `<closure>: <configuration>`; of all parts, or `only` of some."""
    out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = sources.prepare(probe().dataset, folder / "digits.safetensors")
        known = sources.prepare(probe(variants=True).dataset, folder / "known.safetensors")
        if "training" in only:
            out |= dict(_of_training(folder, dataset, known, "training")) | dict(_of_state(folder))
        if "joint" in only:
            out |= dict(_of_joint(folder, dataset, known))
        if "conditional" in only:
            out |= dict(_of_conditional(folder, dataset, known))
        if "few-steps" in only:
            out |= dict(_of_training(folder, dataset, known, "few-steps"))
        if "toy" in only:
            out |= {f"toy: {form}": digest(grid_toy.measured(grid_toy.train(form, 2, 0, iterations=20), 0))
                    for form in grid_toy.FORMS}  # fmt: skip
        if "sampler" in only:
            out |= dict(_of_samplers(dataset, known))
        if "scoring" in only:
            out |= dict(_of_scoring(folder, dataset, known))
        if "errors" in only:
            out |= dict(_of_errors(folder, dataset, known))
        if "heads" in only:
            out |= dict(_of_heads(folder, dataset, known))
        if "systems" in only:
            out |= dict(_of_systems(folder, dataset, known))
        if "restoration" in only:
            out |= dict(_of_restoration(folder, dataset, known))
    return out


def closures() -> dict[str, dict[str, Any]]:
    """Of each closure its digest, its files, and how its hashes begin in a fingerprint."""
    names: dict[str, list[str]] = {name: [f"{name}: "] for name in closure.CLOSURES}
    for sampler in SAMPLERS:
        names.setdefault(closure.of_sampler(sampler), []).append(f"sampler {sampler}: ")
    out = {}
    for name, hashes in names.items():
        modules = closure.CLOSURES.get(name, [name])
        files = [relative(path) for path in closure.modules(*modules).values()]
        out[name] = {"digest": closure.digest(*modules), "files": files, "hashes": hashes}
    return out


def sentinel(name: str) -> dict[str, Any]:
    """Train a run of the default profile whole, and score it: hashes of its weights, and its measurements.

    `weights` are by the share of the training, `measured` values with ten digits by what was measured.
    """
    profile = profiles.load("params.yaml")
    with tempfile.TemporaryDirectory() as temporary, mock.patch.object(Profile, "build", Path(temporary)):
        dataset = sources.prepare(profile.dataset, profile.dataset_file)
        training = runs.training_of(profile, name, dataset)
        loop.train(training, dataset, profile.checkpoints(name), profile.logs(name), Path(temporary) / "work")
        measure.make_reference(profile, dataset, profile.reference_file)
        wanted = runs.expected(profile, name, dataset)
        rows = agreement.read_back(measure.evaluate(profile, name, dataset, wanted))
        weights = networks.weights_of(profile, name, dataset, profile.checkpoints(name))
    return {"weights": {f"{share:g}": key[:12] for share, key in weights.items()}, "measured": measured(rows)}


def measured(rows: pd.DataFrame) -> dict[str, float]:
    """Values of measurements by what was measured."""
    keys = rows[[*agreement.KEY]].astype(str).agg(", ".join, axis=1)
    return dict(zip(keys, rows["value"].tolist(), strict=True))


def main() -> None:
    """Write the fingerprint, or what a whole run gives, to a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m fdm.repro.fingerprint", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the file")
    parser.add_argument("--only", nargs="*", default=PARTS, choices=PARTS, help="what it is of (all)")
    parser.add_argument("--run", help="a run of the default profile, trained and scored whole, instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    told = sentinel(args.run) if args.run else {"closures": closures(), "hashes": fingerprint(args.only)}
    write_json(args.out, told)


if __name__ == "__main__":
    main()
