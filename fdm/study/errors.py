"""What a denoiser gets wrong, noise level by noise level, and what a solver adds: measured for each run and snapshot.

Images, noise and latents are the same for all models, so that every difference between two of them is paired. Each
measurement is remembered by all that shapes it.
"""

import copy
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from fdm.data.datasets import Dataset, to_float
from fdm.files import digest, write_json
from fdm.model.denoiser import Denoise, Denoiser
from fdm.params import QUARTERS
from fdm.study import closure, networks
from fdm.study.profiles import ErrorParams, Profile
from fdm.tasks import denoising, generation, gradients
from fdm.training import processes

SIGMAS = denoising.levels()
RADII = (5.0, 10.0, 20.0, 40.0, 80.0)  # noise levels at which the radius slope is measured
SLOPES = 64  # latents behind a slope
CONVERGED = ("heun", 255)  # the solution that a solver's error is the distance to
CONTEXT = ("cell", "profile", "dataset", "run", "framework", "kernel", "seed", "duration", "kimg")
MEASURED = ("quantity", "images", "sigma", "ceiling", "sampler", "nfe", "value", "n")
CEILINGS = (None, 50.0, 5.0)  # of the loss weight: none, and where a warm-up is and begins
BATCHES, BATCH = 8, 32  # behind a gradient's moments
ORIGIN = ("experiment", "checkpoint", "device")

Key = tuple[float, str]  # share of the training, and `levels`, `gradients` or the name of a sampler


def _wanted(profile: Profile, name: str, par: ErrorParams) -> list[Key]:
    """What is measured of a run, in the order of the table."""
    keys = [(share, "levels") for share in networks.shares(profile, name)]
    if profile.run(name).cell in (par.cells or profile.cells):
        keys += [(1.0, sampler) for sampler in par.solvers]
    if profile.run(name).cell in par.gradients:
        keys += [(share, "gradients") for share in networks.shares(profile, name) if share <= QUARTERS[0]]
    return keys


def experiments(profile: Profile, name: str, par: ErrorParams, trained: str, dataset: str) -> dict[Key, str]:
    """What each measurement of a run is called: a hash of all that shapes it, the same on every machine."""
    shape: dict[str, Any] = {"trained": trained, "dataset": dataset, "code": closure.identity("errors")}
    out = {}
    for share, what in _wanted(profile, name, par):
        if what in ("levels", "gradients"):
            more: dict[str, Any] = {"images": par.images}
        else:
            sources = [closure.identity(closure.of_sampler(sampler)) for sampler in (what, CONVERGED[0])]
            more = {"latents": par.latents, "nfe": par.solvers[what], "samplers": sources}
        out[share, what] = digest(shape | more | {"share": share, "what": what})
    return out


def measure(
    profile: Profile, name: str, dataset: Dataset, expected: dict[str, Any] | None, device: str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The errors of one run, a tidy row each; empty where the profile measures none.

    `quantity` is `error`, the mean squared error of D a pixel on `images` (held out, or those of training) at `sigma`;
    `excess`, that over the exact D, where it is known; `radius slope`; `solver error`, the median distance (root mean
    square a pixel) between a latent's sample and its converged one; `flow error`, that to the exact flow's end, and
    `network error`, of the converged sample to it; `gradient norm` and `gradient noise` of an image's loss, at `sigma`
    with the weight 1, or over the levels of training with its weight, clamped at `ceiling` where there is one.
    Memory, `expected`, `advance` and what is raised are as in `measure.evaluate`.
    """
    par, folder = profile.evaluation.errors, profile.checkpoints(name)
    if par is None or profile.run(name).generates:
        return pd.DataFrame(columns=[*CONTEXT, *MEASURED, *ORIGIN])
    torch.set_num_threads(profile.threads)
    memory, run = profile.errors(name), profile.run(name)
    hashes = networks.weights_of(profile, name, dataset, folder)
    trained = dataset.sha256 if run.source == "analytic" else networks.trained_as(folder)
    bits = [profile.threads, processes.arithmetic(device)]
    rows = []
    for (share, what), called in experiments(profile, name, par, trained, dataset.sha256).items():
        key = digest([called, hashes[share], bits])
        found = networks.rows_under(networks.remembered(memory), key)
        if found is None:
            denoiser, kimg = networks.denoiser_of(profile, name, dataset, folder, share, expected)
            if isinstance(denoiser, torch.nn.Module):
                denoiser.to(device).to(memory_format=torch.channels_last)
            if what == "levels":
                found = _levels(denoiser, dataset, par, device)
            elif what == "gradients":
                found = _gradients(denoiser, dataset, device)
            else:
                found = _solver(denoiser, dataset, par, what, device)
            context = {
                "cell": run.cell, "profile": profile.profile, "dataset": profile.dataset.name, "run": name,
                "framework": run.framework, "kernel": run.kernel, "seed": run.seed, "duration": share, "kimg": kimg,
            }  # fmt: skip
            found = [context | row for row in found]
            write_json(memory, networks.remembered(memory) | {key: {"rows": found, "hash": digest(found)}})
        if advance:
            advance(evaluations_of(par, what))
        origin = {"experiment": called, "checkpoint": hashes[share][:12], "device": device}
        rows += [row | origin for row in found]
    return pd.DataFrame(rows).reindex(columns=[*CONTEXT, *MEASURED, *ORIGIN])


def evaluations(profile: Profile, name: str) -> int:
    """Network evaluations that the errors of one run take, about."""
    par = None if profile.run(name).generates else profile.evaluation.errors
    return sum(evaluations_of(par, what) for _, what in _wanted(profile, name, par)) if par else 0


def evaluations_of(par: ErrorParams, what: str) -> int:
    """Network evaluations of one measurement."""
    if what == "levels":
        return 2 * par.images * len(SIGMAS) + 2 * SLOPES * len(RADII)
    if what == "gradients":
        return 3 * BATCHES * BATCH * (len(SIGMAS) // 2 + len(CEILINGS))
    return par.latents * (sum(par.solvers[what]) + CONVERGED[1])


def _levels(denoiser: Denoise, dataset: Dataset, par: ErrorParams, device: str) -> list[dict[str, Any]]:
    """The denoising error at every level on both sets of images, and the radius slope at the high ones."""
    exact = dataset.mixture
    sets = {"held out": (dataset.held, dataset.held_labels)}
    if exact is None:  # of a known distribution no image is seen twice
        sets["training"] = (dataset.images, dataset.labels)
    rows = []
    for images, (pixels, labels) in sets.items():
        # An even choice: data sets are often in an order, the digits by who wrote them.
        part = torch.linspace(0, len(pixels) - 1, min(par.images, len(pixels))).long()
        chosen, classes = to_float(pixels[part]), labels[part]
        errors = {"error": denoising.squared_errors(denoiser, chosen, classes, SIGMAS, device=device)}
        if exact is not None:
            errors["excess"] = denoising.squared_errors(denoiser, chosen, classes, SIGMAS, exact, device)
        rows += [
            {"quantity": quantity, "images": images, "sigma": float(sigma), "value": float(value), "n": len(part)}
            for quantity, values in errors.items() for sigma, value in zip(SIGMAS, values.mean(1), strict=True)
        ]  # fmt: skip
    low, high = denoiser.sigma_range
    for sigma in RADII:
        if low <= sigma <= high:
            value = denoising.radius_slope(denoiser, range(SLOPES), sigma, device)
            rows.append({"quantity": "radius slope", "sigma": sigma, "value": value, "n": SLOPES})
    return rows


def _gradients(denoiser: Denoise, dataset: Dataset, device: str) -> list[dict[str, Any]]:
    """Norm and noise of the gradient at every level, with the weight 1, and over those of training with its weight."""
    assert isinstance(denoiser, Denoiser)

    def draw(number: int) -> tuple[Tensor, Tensor]:
        if dataset.mixture is not None:
            return dataset.fresh(BATCH, number)
        part = torch.randperm(len(dataset.images), generator=torch.Generator().manual_seed(number))[:BATCH]
        return to_float(dataset.images[part]), dataset.labels[part]

    rows = list[dict[str, Any]]()
    places: list[tuple[float | None, float | None]] = [(sigma, None) for sigma in SIGMAS[1::2].tolist()]
    for sigma, ceiling in [*places, *((None, ceiling) for ceiling in CEILINGS)]:
        norm, noise = gradients.moments(denoiser, draw, BATCHES, sigma, ceiling, device)
        place = {"sigma": sigma, "ceiling": ceiling, "n": BATCHES * BATCH}
        rows += [
            {"quantity": "gradient norm", "value": norm} | place,
            {"quantity": "gradient noise", "value": noise} | place,
        ]
    return rows


@torch.inference_mode()
def _solver(denoiser: Denoise, dataset: Dataset, par: ErrorParams, sampler: str, device: str) -> list[dict[str, Any]]:
    """How far samples in few evaluations are from converged ones of the same latents, and these from the exact flow."""

    def ends(of: Denoise, sampler: str, nfe: int) -> Tensor:
        *_, x = generation.trajectory(of, range(par.latents), sampler, nfe, device)
        return x.cpu()

    def distance(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().mean(dim=(1, 2, 3)).sqrt().median())

    converged, exact, rows = ends(denoiser, *CONVERGED), None, list[dict[str, Any]]()
    if dataset.mixture is not None and dataset.mixture.classes == denoiser.classes:
        flow = copy.copy(dataset.mixture)
        flow.sigma_range = denoiser.sigma_range  # a sampler starts and ends where the network's does
        exact = ends(flow, *CONVERGED)
        rows.append({"quantity": "network error", "nfe": CONVERGED[1], "value": distance(converged, exact)})
    for nfe in par.solvers[sampler]:
        found = ends(denoiser, sampler, nfe)
        rows.append({"quantity": "solver error", "nfe": nfe, "value": distance(found, converged)})
        if exact is not None:
            rows.append({"quantity": "flow error", "nfe": nfe, "value": distance(found, exact)})
    return [row | {"sampler": sampler, "n": par.latents} for row in rows]
