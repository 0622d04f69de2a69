"""A profile for anyone's pictures, written from one that the study ships and from the pictures themselves."""

import re
from pathlib import Path
from typing import Literal

import yaml

from fdm.data import archives, sources
from fdm.files import FdmError, root, write_text
from fdm.params import DatasetParams
from fdm.repro import pipeline
from fdm.study import profiles
from fdm.study.profiles import Profile

MODELS = {False: "fashion-cpu", True: "fashion"}  # what is taken over, without a GPU and with one
RESOLUTION: Literal[32] = 32  # that these are made for
SEEDS = [0, 1, 2]  # with one, nothing is decided
SAMPLES = {False: 1000, True: 5000}  # at most
WARMUP = 20  # steps


def write(name: str, images: Path, gpu: bool) -> tuple[Profile, list[str]]:
    """Write profiles/<name>/ for the pictures below a folder, and read it back; sentences for what was found.

    All pictures are read, so that one which cannot be is told now: colour or grey, classes, and how many there are
    decide what is written. EDM with FDM and without, three seeds each. Raises FdmError for a name that is taken or
    not allowed, and for pictures that `data.archives.folder` refuses.
    """
    folder = root() / "profiles" / name
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise FdmError(f"{name!r} cannot be the name of a profile; use a-z, 0-9 and hyphens, such as my-pictures.")
    if name == "digits" or folder.exists():
        raise FdmError(f"There is a profile named {name} already; choose another name, or remove profiles/{name}.")
    try:
        place = images.expanduser().resolve()
    except (RuntimeError, OSError) as error:  # a user that there is not, or a path without an end
        raise FdmError(f"{str(images)[:80]} is no user's folder; name the one that holds the pictures.") from error
    probe = DatasetParams(name="folder", path=str(place), resolution=RESOLUTION, conditional=False)
    pictures, labels = archives.folder(probe)
    classes = int(labels.max()) + 1
    left = len(pictures) - min(len(pictures) // 10, sources.MOST_HELD)
    # Half of them stand for the models' images in the floor, which has to be at the same n.
    few = left // 2 < SAMPLES[gpu]
    samples = left // 2 if few else SAMPLES[gpu]
    told = [
        f"{len(pictures):,} pictures, {'grey' if pictures.shape[1] == 1 else 'in colour'}, {classes} "
        f"class{'es' if classes > 1 else ''}; {len(pictures) - left:,} are held out.",
        f"Distances are of {samples:,} samples{', as half of the pictures are for the floor' if few else ''}.",
    ]
    if samples < 1000:
        told.append("So few pictures decide little: distances of so few samples are mostly noise.")
    values = yaml.safe_load((root() / "profiles" / MODELS[gpu] / "params.yaml").read_text(encoding="utf-8"))
    values |= {
        "profile": name, "params_file": f"profiles/{name}/params.yaml", "seeds": SEEDS,
        "dataset": {"name": "folder", "path": str(place), "resolution": RESOLUTION, "conditional": classes > 1},
        "cells": {
            "edm-baseline": {"framework": "edm", "kernel": "baseline"},
            "edm-fdm": {"framework": "edm", "kernel": "fdm", "multiplier": 2, "warmup_steps": WARMUP},
        },
    }  # fmt: skip
    values["evaluation"] |= {"samples": samples, "batch": min(values["evaluation"]["batch"], samples)}
    head = (
        f"# Pictures of one's own, {'on a GPU' if gpu else 'on a CPU'}: does FDM help EDM here?\n"
        f"# All of it may be changed; make check PROFILE={name} says whether it is valid.\n"
    )
    write_text(folder / "params.yaml", head + yaml.safe_dump(values, sort_keys=False, width=110, allow_unicode=True))
    profile = profiles.find(name)
    pipeline.write(profile)
    return profile, told
