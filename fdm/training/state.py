"""A training's folder: its state, whole or absent, its lock, and what it leaves when it has finished."""

import contextlib
import fcntl
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fdm.files import FdmError, replace, sha256
from fdm.params import SNAPSHOTS, snapshot_name

FINISHED = "finished.json"


@contextlib.contextmanager
def alone(home: Path, name: str) -> Iterator[None]:
    """Keep other processes from training the same run; raises FdmError where one does."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as file:
        for patience in range(20, -1, -1):  # pragma: no branch; processes that are killed end a moment later
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not patience:
                    raise FdmError(
                        f"{name} is being trained by another process, with its state in {home}; wait for it or stop it."
                    ) from None
                time.sleep(0.25)
        yield


def has_snapshots(folder: Path) -> bool:
    """Whether a folder holds every checkpoint of a training."""
    return all((folder / snapshot_name(share)).exists() for share in SNAPSHOTS)


def is_finished(home: Path) -> bool:
    """Whether the folder holds all that a training leaves; leftovers of writers that were killed are removed."""
    for leftover in home.glob(".*.part"):
        leftover.unlink()
    return (home / FINISHED).exists() and has_snapshots(home)


def finished(logs: Path, home: Path) -> dict[str, Any] | None:
    """What `logs` tell of the training whose state would be in `home`, or None where they tell of another, or none."""
    try:
        found = json.loads((logs / FINISHED).read_text())
        return found if found["home"] == home.name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(home: Path, state: dict[str, Any], previous: Path | None) -> Path:
    """Write the whole state under a name that holds its hash, and keep the one before; returns its path."""
    new = home / "state.new"
    replace(new, lambda part: torch.save(state, part))
    path = home / f"state-{state['step']:09d}-{sha256(new)[:12]}.pt"
    new.replace(path)
    for old in set(home.glob("state-*.pt")) - {path, previous}:
        old.unlink()
    return path


def newest(home: Path, warn: bool) -> Path | None:
    """The newest whole state; one whose content does not have the hash in its name is left aside with a warning."""
    for path in sorted(home.glob("state-*.pt"), reverse=True):
        if sha256(path)[:12] == path.stem.rpartition("-")[2]:
            return path
        if warn:
            warnings.warn(f"{path} is damaged and left aside", stacklevel=2)
    return None
