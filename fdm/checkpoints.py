"""Networks as safetensors files that describe themselves."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fdm import augmentation
from fdm.data import Dataset
from fdm.errors import FdmError
from fdm.files import hash_of, replace
from fdm.networks import UNet
from fdm.preconditioning import Denoiser
from fdm.profiles import SNAPSHOTS, Profile

EXPERIMENT = "experiment.json"  # in a folder of checkpoints: what their training is called


def snapshot_name(share: float) -> str:
    """File name of the checkpoint kept after that share of the budget, such as 025.safetensors."""
    return f"{round(share * 100):03d}.safetensors"


def shares(profile: Profile) -> tuple[float, ...]:
    """Shares of the training at which there is a checkpoint: of a published network, only its end."""
    return SNAPSHOTS[-1:] if profile.published else SNAPSHOTS


def specify(profile: Profile, name: str, dataset: Dataset) -> dict[str, Any]:
    """The sections `network`, `denoiser`, `run` and `training` of the description of a run's checkpoints.

    Raises FdmError for a run that is not trained here.
    """
    run, net, par = profile.run(name), profile.network, profile.training
    if net is None or par is None:
        raise FdmError(f"{name} is a published network; it is fetched, not trained.")
    channels, resolution, _ = dataset.shape
    return {
        "network": {
            "architecture": "ncsnpp" if run.framework == "ve" else "ddpmpp",
            "resolution": resolution,
            "channels": channels,
            "label_dim": dataset.classes if profile.dataset.conditional else 0,
            "augment_dim": augmentation.LABELS if par.augment > 0 else 0,
            "model_channels": net.model_channels,
            "channel_mult": run.channel_mult or net.channel_mult,
            "num_blocks": net.num_blocks,
            "attn_resolutions": net.attn_resolutions,
            "dropout": net.dropout,
        },
        "denoiser": run.model_dump(include={"framework", "kernel", "multiplier", "ve_multiplier", "tau"}),
        "run": run.model_dump(),
        "training": par.model_dump(exclude={"state_kimg"}),
    }


def expected(profile: Profile, name: str, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint's description must say; of a published network, that it is of the run's model and data."""
    if not profile.published:
        return specify(profile, name, dataset)
    run, (channels, resolution, _) = profile.run(name), dataset.shape
    label_dim = dataset.classes if profile.dataset.conditional else 0
    return {
        "network": {"resolution": resolution, "channels": channels, "label_dim": label_dim},
        "denoiser": {"framework": run.framework, "kernel": run.kernel},
    }


def build(description: dict[str, Any]) -> Denoiser:
    """A denoiser with fresh weights from its description: `network` are UNet's arguments, `denoiser` Denoiser's."""
    return Denoiser(UNet(**description["network"]), **description["denoiser"])


def save(path: Path, denoiser: Denoiser, description: dict[str, Any]) -> None:
    """Write a denoiser's weights with its description and their hash, atomically, equal content to equal bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.state_dict().items()}
    about = json.dumps(description | {"weights": hash_of(tensors)}, sort_keys=True)
    # One metadata key: safetensors writes several in random order.
    replace(path, lambda part: save_file(tensors, part, {"checkpoint": about}))


def describe(path: Path) -> dict[str, Any]:
    """The description in a checkpoint; raises FdmError when the file is missing or damaged."""
    if not path.is_file():
        raise FdmError(f"The checkpoint {path} is missing; remove {path.parent}, if it is there, and run dvc repro.")
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})["checkpoint"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise FdmError(
            f"The checkpoint {path} is damaged ({error}); remove {path.parent} and run dvc repro."
        ) from error


def load(path: Path, expected: dict[str, Any] | None = None) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser of a checkpoint, in evaluation mode, and its description.

    `expected` holds the sections of the description that must agree; raises FdmError naming what differs.
    """
    description = describe(path)
    for section, values in (expected or {}).items():
        for key, value in values.items():
            found = description.get(section, {}).get(key)
            if found != value:
                raise FdmError(
                    f"The checkpoint {path} is of another network: its {section}.{key} is {found!r}, where {value!r} "
                    "is wanted; train this run again with dvc repro."
                )
    denoiser = build(description)
    state, wanted = load_file(path), denoiser.state_dict()
    if hash_of(state) != description.get("weights"):
        raise FdmError(
            f"The checkpoint {path} does not hold the weights that its description promises; remove {path.parent} "
            "and run dvc repro."
        )
    differing = sorted(
        key for key in state.keys() | wanted.keys()
        if key not in state or key not in wanted or state[key].shape != wanted[key].shape
    )  # fmt: skip
    if differing:
        raise FdmError(f"The checkpoint {path} does not fit its own description: {differing[0]} differs.")
    denoiser.load_state_dict(state)
    return denoiser.eval().requires_grad_(False), description
