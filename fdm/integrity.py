"""Whether the files of a profile's results belong together: the checkpoints, the lock, the runs and the tables.

This finds what was altered by hand or renewed by half. It cannot find somebody who alters a number, all that is made
from it and the lock; for that the results have to be reproduced. All paths are of the study that holds the working
directory, so that a revision can be checked in a folder of its own.
"""

import fnmatch
import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml

from fdm import study, tables
from fdm.errors import FdmError
from fdm.explain import records, relative
from fdm.files import root, sha256
from fdm.profiles import Profile


def checkpoints(profile: Profile) -> list[str]:
    """Which runs' checkpoints in build/ are not those that the working tree's measurements name."""
    path = profile.results / "measurements.csv"
    rows, problems = records(path) if path.is_file() else [], []
    for run in profile.runs:
        there = (profile.build / "checkpoints").glob(f"**/{run}/*.safetensors")  # an ablation has them by cell
        files = {sha256(path)[:12]: path for path in there}
        scored = {str(row.get("checkpoint")) for row in rows if row.get("run") == run}
        if not files:
            problems.append(f"{relative(profile.build / 'checkpoints')} has none of {run}")
        problems += [f"{relative(files[key])} was not scored" for key in sorted(files.keys() - scored)]
        problems += [f"{run}: checkpoint {key} was scored and is not there" for key in sorted(scored - files.keys())]
    return problems


def md5(path: Path) -> str:
    """Hash of a file or folder as DVC 3 records it: of the bytes, or of a JSON list of files and their hashes."""
    if path.is_file():
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    ignored = root() / ".dvcignore"
    patterns = [*filter(None, ignored.read_text(encoding="utf-8").splitlines())] if ignored.is_file() else []
    names = [file.relative_to(path) for file in path.rglob("*") if file.is_file()]
    names = [n for n in names if not any(fnmatch.fnmatch(part, p) for part in n.parts for p in patterns)]
    listed = [{"md5": md5(path / name), "relpath": name.as_posix()} for name in names]
    listed.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def lock(profile: Profile) -> list[str]:
    """Which results are not what the profile's dvc.lock says the stages wrote and read, or are not in it."""
    path = root() / Path(profile.params_file).with_name("dvc.lock")
    recorded, problems = {}, []
    try:
        for name, stage in yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"].items():
            run = name.partition("@")[2]
            if run and run not in [*profile.runs, *profile.cells]:
                continue  # DVC keeps the stages of runs that were removed
            for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
                if entry["path"].startswith("results/"):
                    recorded[entry["path"]] = entry["md5"], name
    except (OSError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return [f"{relative(path)} is missing or damaged"]
    for place, (wanted, stage) in recorded.items():
        if not (root() / place).exists():
            problems.append(f"{place} is missing")
        elif md5(root() / place) != wanted:
            problems.append(f"{place} is not what {relative(path)} records for {stage}")
    compared = [path for pattern in ("*.csv", "*.json", "tables/*.csv") for path in profile.results.glob(pattern)]
    for file in [Path(relative(file)) for file in [*compared, *_parts(profile)] if file.is_file()]:
        if not {place.as_posix() for place in (file, *file.parents)} & recorded.keys():
            problems.append(f"{file} is written by no stage of {relative(path)}")
    return problems


def _parts(profile: Profile) -> list[Path]:
    return [profile.results / "runs" / name / "measurements.csv" for name in profile.cells or profile.runs]


def runs(profile: Profile) -> list[str]:
    """Where measurements.csv is not the runs' measurements, or a table is not what follows from them."""
    wanted: dict[str, Callable[[], pd.DataFrame]] = {"measurements.csv": lambda: study.measurements(profile)}
    if not profile.cells:
        wanted["tables/table1.csv"] = lambda: tables.table1(profile)
        wanted["tables/table2.csv"] = lambda: tables.table_nfe(profile, 2)
        wanted["tables/table3.csv"] = lambda: tables.table_nfe(profile, 3)
    problems = []
    for name, make in wanted.items():
        try:
            stored, due = study.read(profile.results / name), pd.read_csv(io.StringIO(make().to_csv(index=False)))
            problems += [f"{relative(profile.results / name)}, {text}" for text in _first_difference(stored, due)]
        except FdmError as error:
            problems.append(str(error).replace(f"{root()}/", "").rstrip("."))
        except (KeyError, ValueError, TypeError) as error:
            problems.append(f"{relative(profile.results / name)} cannot be made from the runs ({error!r})")
    return problems


def _first_difference(stored: pd.DataFrame, due: pd.DataFrame) -> list[str]:
    """The first cell that differs, but for the rounding of another version of pandas."""
    if list(stored.columns) != list(due.columns) or len(stored) != len(due):
        return ["has other rows or columns than follow from the runs"]
    for column in due.columns:
        for line, (a, b) in enumerate(zip(stored[column].tolist(), due[column].tolist(), strict=True), 2):
            close = isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-13)
            if a != b and not close and not (pd.isna(a) and pd.isna(b)):
                return [f"line {line}: {column} is {a} and should be {b}"]
    return []
