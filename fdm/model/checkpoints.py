"""Networks as safetensors files that describe themselves."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fdm.files import FdmError, hash_of, replace
from fdm.model.conditional import ConditionalDenoiser
from fdm.model.denoiser import Denoiser
from fdm.model.generator import Generator
from fdm.model.joint import JointDenoiser
from fdm.model.unet import UNet
from fdm.process.joint import JOINT

EXPERIMENT = "experiment.json"  # in a folder of checkpoints: what their training is called


def build(description: dict[str, Any]) -> Denoiser:
    """A denoiser with fresh weights from its description: `network` are UNet's arguments, `denoiser` the denoiser's."""
    if description["denoiser"]["framework"] in JOINT:
        return JointDenoiser(UNet(**description["network"]), **description["denoiser"])
    about = description["denoiser"]
    of = ConditionalDenoiser if "given" in about else Generator if "steps" in about else Denoiser
    return of(UNet(**description["network"]), **description["denoiser"])


def save(path: Path, denoiser: Denoiser, description: dict[str, Any]) -> None:
    """Write a denoiser's weights with its description and their hash, atomically, equal content to equal bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.state_dict().items()}
    about = json.dumps(description | {"weights": hash_of(tensors)}, sort_keys=True)
    # One metadata key: safetensors writes several in random order.
    replace(path, lambda part: save_file(tensors, part, {"checkpoint": about}))


def describe(path: Path) -> dict[str, Any]:
    """The description in a checkpoint; raises FdmError when the file is missing or damaged."""
    if not path.is_file():
        raise FdmError(f"The checkpoint {path} is missing; run dvc repro.")
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})["checkpoint"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise FdmError(f"The checkpoint {path} is damaged ({error}); remove it and run dvc repro.") from error


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
            f"The checkpoint {path} does not hold the weights that its description promises; remove it and run dvc "
            "repro."
        )
    differing = sorted(
        key for key in state.keys() | wanted.keys()
        if key not in state or key not in wanted or state[key].shape != wanted[key].shape
    )  # fmt: skip
    if differing:
        raise FdmError(f"The checkpoint {path} does not fit its own description: {differing[0]} differs.")
    denoiser.load_state_dict(state)
    return denoiser.eval().requires_grad_(False), description
