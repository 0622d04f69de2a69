"""The denoiser of a run, trained or exact, and the memory of what was measured of it."""

import json
from pathlib import Path
from typing import Any

import torch

from fdm.data.datasets import Dataset
from fdm.files import FdmError, digest
from fdm.model import checkpoints
from fdm.model.denoiser import Denoise
from fdm.model.oracle import Mixture
from fdm.params import SNAPSHOTS, snapshot_name
from fdm.study.profiles import Profile


def shares(profile: Profile, name: str) -> tuple[float, ...]:
    """Shares of the training at which a run has a checkpoint: one that was not trained here, only its end."""
    return SNAPSHOTS if name in profile.trained else SNAPSHOTS[-1:]


def denoiser_of(
    profile: Profile, name: str, dataset: Dataset, folder: Path, share: float, expected: dict[str, Any] | None = None
) -> tuple[Denoise, float]:
    """A run's denoiser after a share of its training, and the thousands of images that it had seen by then.

    Of a run with an analytic source it is E[x0 | x]: of the distribution, where it is known, else of the data set's
    images, which it has seen each of.
    """
    if profile.run(name).source == "analytic":
        return dataset.mixture or exact(dataset, profile.dataset.conditional), len(dataset.images) / 1000
    denoiser, description = checkpoints.load(folder / snapshot_name(share), expected)
    return denoiser, description["images"] / 1000


def exact(dataset: Dataset, conditional: bool) -> Mixture:
    """E[x0 | x] of a data set's images, each of which is as likely as the others."""
    images = dataset.images.double() / 127.5 - 1
    n = len(images)
    labels = dataset.labels if conditional else None
    return Mixture(torch.full((n,), 1 / n), images, torch.zeros(n), labels)


def weights_of(profile: Profile, name: str, dataset: Dataset, folder: Path) -> dict[float, str]:
    """Hash of a run's weights at each share of its training; of an exact denoiser, that of its images."""
    if profile.run(name).source == "analytic":
        return {1.0: dataset.sha256}
    return {share: checkpoints.describe(folder / snapshot_name(share))["weights"] for share in shares(profile, name)}


def trained_as(folder: Path) -> str:
    """What the training behind a folder of checkpoints is called; of published networks, the hash of their files."""
    path = folder / checkpoints.EXPERIMENT
    try:
        return json.loads(path.read_text(encoding="utf-8"))["experiment"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FdmError(f"{path} is missing or damaged; remove {folder} and run dvc repro.") from error


def remembered(memory: Path) -> dict[str, dict[str, Any]]:
    """What a memory of measurements holds: key -> rows and their hash; nothing where there is no such file."""
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def rows_under(memory: dict[str, dict[str, Any]], key: str) -> list[dict] | None:
    """The rows that are remembered under a key, or None where there are none, or not those that were measured."""
    entry = memory.get(key)
    return entry["rows"] if isinstance(entry, dict) and entry.get("hash") == digest(entry.get("rows")) else None
