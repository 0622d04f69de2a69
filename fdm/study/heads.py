"""Heads on the networks of a profile, which say second and third moments: trained once, kept beside the checkpoints."""

import functools
import json
import math
import time
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fdm.data.datasets import Dataset, to_float
from fdm.files import FdmError, digest, hash_of, replace, write_json
from fdm.model import checkpoints
from fdm.model.denoiser import Denoiser
from fdm.model.moments import Differentiated, Headed, Targets, heads_for
from fdm.params import HeadParams
from fdm.samplers.noise import UnitNoise
from fdm.study import closure, networks
from fdm.study.profiles import Profile
from fdm.tasks import generation
from fdm.training import heads

LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0, 40.0)  # of noise, at which moments are compared with the exact ones
WITNESSES = 16  # images behind that


def targets_of(profile: Profile, run: str) -> list[Targets]:
    """What heads a run's network is to have."""
    par = profile.evaluation.systems
    if par is None or run not in profile.trained:
        return []
    return list(dict.fromkeys(each.heads for each in par.of(profile.run(run).cell) if each.heads))


def experiment(trained: str, par: HeadParams, targets: str) -> str:
    """What a training of heads is called, on every machine: by the network's training and all that shapes its own."""
    return digest([trained, targets, par.model_dump(), closure.identity("heads")])


def images(par: HeadParams) -> int:
    """Images that heads are trained on."""
    return math.ceil(par.kimg * 1000 / par.batch) * par.batch


def train(profile: Profile, run: str, dataset: Dataset, device: str, advance: Any = None) -> None:
    """Train the heads of a run's network, those that are not there, on its last checkpoint.

    `advance` is told of images.
    """
    systems, folder = profile.evaluation.systems, profile.checkpoints(run)
    assert systems is not None and systems.heads is not None
    par, trained = systems.heads, networks.trained_as(folder)
    torch.set_num_threads(profile.threads)
    weights = networks.weights_of(profile, run, dataset, folder)[1.0]
    names = {targets: experiment(trained, par, targets) for targets in targets_of(profile, run)}
    for targets, name in names.items():
        path, about = profile.heads(run) / f"{targets}.safetensors", {"experiment": name, "network": weights}
        if _told(profile, run, targets) == about:
            if advance:
                advance(images(par))
            continue
        denoiser, _ = networks.denoiser_of(profile, run, dataset, folder, 1.0)
        assert isinstance(denoiser, Denoiser)
        denoiser.to(device).to(memory_format=torch.channels_last)
        levels = generation.noise_range(denoiser)
        found = heads.train(denoiser, dataset, par, targets, levels, profile.run(run).seed, advance)
        state = {key: tensor.cpu().contiguous() for key, tensor in found.state_dict().items()}
        replace(path, functools.partial(save_file, state, metadata={"heads": json.dumps(about)}))
    write_json(profile.heads(run) / checkpoints.EXPERIMENT, {"run": run, "experiment": names})


def _told(profile: Profile, run: str, targets: str) -> dict[str, str]:
    """What the file of heads says they are; nothing where there is none, or it is damaged."""
    try:
        with safe_open(profile.heads(run) / f"{targets}.safetensors", "pt") as file:
            return json.loads(file.metadata()["heads"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return {}


def load(profile: Profile, run: str, denoiser: Denoiser, targets: Targets, network: str) -> tuple[Headed, str]:
    """A run's denoiser with its heads, and the hash of these; `network` is the hash of the network's weights.

    Raises FdmError where they are missing, damaged, or of another network.
    """
    path, found = profile.heads(run) / f"{targets}.safetensors", heads_for(denoiser)
    try:
        if _told(profile, run, targets).get("network") != network:
            raise ValueError("not of this network")
        state = load_file(path)
        found.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise FdmError(
            f"{path} is missing, damaged or of another network; run python -m fdm heads --params {profile.params_file}."
        ) from error
    found.to(next(denoiser.parameters()).device).eval().requires_grad_(False)
    return Headed(denoiser, found, targets), hash_of(state)


def witness(denoiser: Any, dataset: Dataset, sigma: float, device: str) -> dict[str, float]:
    """How far second and third cumulants are from the exact ones, over the root mean square of these, at a level.

    On held-out images, where the distribution is known and the denoiser is told its classes; and the seconds an image.
    A denoiser that knows no cumulants is differentiated.
    """
    held, labels = to_float(dataset.held[:WITNESSES]), dataset.held_labels[:WITNESSES]
    level = torch.tensor(sigma)
    x = held + level * UnitNoise(range(len(held)), denoiser.shape)(0)
    told = torch.eye(denoiser.classes)[labels] if denoiser.classes else None
    asked = denoiser if hasattr(denoiser, "cumulants") else Differentiated(denoiser)
    began = time.perf_counter()
    _, *found = asked.cumulants(x.to(device), level.to(device), told if told is None else told.to(device))
    out = {"seconds": (time.perf_counter() - began) / len(x)}
    if dataset.mixture is not None and dataset.mixture.classes == denoiser.classes:
        _, *exact = dataset.mixture.cumulants(x, level, told)
        for name, mine, true in zip(("second", "third"), found, exact, strict=True):
            error = (mine.cpu().double() - true).square().mean() / true.square().mean()
            out[f"{name} cumulant"] = float(error.sqrt())
    return out
