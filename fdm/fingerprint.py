"""A fingerprint of what training computes: hashes of weights and losses after a few steps, in every configuration.

Every model and option, with an interruption; or a whole run of the default profile. Of two versions of the source on
one machine the same bits must come out where a network may be kept.

python -m fdm.fingerprint --out fingerprint.json
"""

import argparse
import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fdm import checkpoints, closure, data, profiles, training
from fdm.data import Dataset
from fdm.files import write_json
from fdm.profiles import SNAPSHOTS, Profile

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
}


def hash_of(*tensors: Tensor) -> str:
    """Hash of the bits of some tensors, 12 hexadecimal digits."""
    h = hashlib.sha256()
    for tensor in tensors:
        h.update(tensor.detach().contiguous().numpy().tobytes())
    return h.hexdigest()[:12]


def probe(augment: float, dropout: float, accumulation: int) -> Profile:
    """A profile of a few steps, with schedules as short, on the digits."""
    step = BATCH / 1000
    values: dict[str, Any] = profiles.load("params.yaml").model_dump(exclude_none=True)
    del values["runs"]
    values |= {"cells": CELLS, "seeds": [0, 1]}
    values["network"] |= {"dropout": dropout}
    values["training"] |= {
        "budget_kimg": STEPS * step, "batch": BATCH, "lr": 3e-3, "lr_ramp_kimg": STEPS * step / 2,
        "ema_halflife_kimg": 0.1, "ema_ramp": 0.5, "augment": augment, "log_kimg": 2 * step, "state_kimg": 2 * step,
        "accumulation": accumulation,
    }  # fmt: skip
    return Profile.model_validate(values)


class _Interrupted(Exception):
    """A training that is stopped to see that it resumes."""


def _of_training(folder: Path, dataset: Dataset) -> Iterator[tuple[str, str]]:
    for variant, profile in {"plain": probe(0.0, 0.0, 1), "augmented": probe(0.5, 0.1, 2)}.items():
        for cell in CELLS:
            place = folder / variant / cell
            args = (profile, f"{cell}-0", dataset, place / "c", place / "l", folder / "work", "cpu")
            if variant == "augmented":
                left = [5 * BATCH]

                def stop(n: int, left: list[int] = left) -> None:
                    left[0] -= n
                    if left[0] <= 0:
                        raise _Interrupted

                with contextlib.suppress(_Interrupted):
                    training.train(*args, stop)
            done = training.train(*args, lambda n: None)
            parts = [
                tensor for share in SNAPSHOTS
                for _, tensor in sorted(load_file(place / "c" / checkpoints.snapshot_name(share)).items())
            ]  # fmt: skip
            losses = torch.tensor([row["loss"] for row in done["history"]], dtype=torch.float64)
            yield f"training: {variant} {cell}", hash_of(*parts, losses)


def sentinel(name: str) -> dict[str, str]:
    """Train a run of the default profile whole; the hash of its weights at each snapshot."""
    profile = profiles.load("params.yaml")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = data.prepare(profile.dataset, folder / "dataset.safetensors")
        training.train(profile, name, dataset, folder / "c", folder / "l", folder / "work")
        paths = {share: folder / "c" / checkpoints.snapshot_name(share) for share in SNAPSHOTS}
        return {f"{share:g}": checkpoints.describe(path)["weights"][:12] for share, path in paths.items()}


def fingerprint() -> dict[str, str]:
    """Hashes by what they are of: `<closure>: <configuration>`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = data.prepare(probe(0.0, 0.0, 1).dataset, folder / "dataset.safetensors")
        return dict(_of_training(folder, dataset))


def main() -> None:
    """Write the fingerprint, or that of a whole run, to a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m fdm.fingerprint", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the file")
    parser.add_argument("--run", help="a run of the default profile, trained whole, instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.run:
        write_json(args.out, {"weights": sentinel(args.run)})
        return
    files = [path.relative_to(profiles.root()).as_posix() for path in closure.modules("training").values()]
    told = {"training": {"digest": closure.digest("training"), "files": files}}
    write_json(args.out, {"closures": told, "hashes": fingerprint()})


if __name__ == "__main__":
    main()
