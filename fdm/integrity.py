"""Whether the committed files of a profile belong together: parameters, code, lock, runs, tables, networks, README.

This finds manual edits and partial reruns. It cannot find somebody who alters a number, all that is made from it and
the lock; for that the results have to be reproduced. All paths are of the study that holds the working directory, so
that a revision can be checked in a folder of its own.
"""

import fnmatch
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fdm import agreement, analysis, pipeline, reproducibility, study, tables
from fdm.errors import FdmError
from fdm.explain import relative
from fdm.files import root
from fdm.profiles import Profile


def checks(profile: Profile, whose: str) -> dict[str, list[str]]:
    """Problems by the sentence that they contradict; `whose` results: committed or present."""
    return {
        f"the {whose} results are those that the lock records": lock(profile),
        f"the {whose} lock is of the {whose} parameters, pipeline and code": sources(profile),
        f"the {whose} measurements, tables and verdicts follow from the {whose} runs": derived(profile),
        f"the {whose} networks are those that were scored": networks(profile),
        f"the {whose} README shows the {whose} verdicts": readme(),
    }


# ------------------------------------------------------------------------------------------------------- the lock


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


def _stages(profile: Profile) -> dict[str, dict[str, Any]]:
    """The stages of a profile's dvc.lock; raises FdmError for a file that is missing or no lock."""
    path = pipeline.file_of(profile).with_suffix(".lock")
    try:
        stages = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"]
        for stage in stages.values():
            for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
                str(entry["path"]), str(entry["md5"])
        return stages
    except (OSError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise FdmError(f"{relative(path)} is missing or damaged.") from error


def lock(profile: Profile) -> list[str]:
    """Which results are not what the profile's dvc.lock says the stages wrote and read, or are not in it."""
    recorded, problems = {}, []
    file = relative(pipeline.file_of(profile).with_suffix(".lock"))
    try:
        for name, stage in _stages(profile).items():
            for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
                if entry["path"].startswith("results/"):
                    recorded[entry["path"]] = entry["md5"], name
    except FdmError as error:
        return [str(error).rstrip(".")]
    for place, (wanted, writer) in recorded.items():
        if not (root() / place).exists():
            problems.append(f"{place} is missing")
        elif md5(root() / place) != wanted:
            problems.append(f"{place} is not what {file} records for {writer}")
    compared = [
        path for pattern in ("*.csv", "*.json", "*/*.csv", "runs/*/*") for path in profile.results.glob(pattern)
    ]
    unrecorded = {"rounding.csv", "provenance"}  # made beside the pipeline
    for path in [Path(relative(file)) for file in compared if file.is_file()]:
        if unrecorded & set(path.parts):
            continue
        if not {place.as_posix() for place in (path, *path.parents)} & recorded.keys():
            problems.append(f"{path} is written by no stage of {file}")
    return problems


def sources(profile: Profile) -> list[str]:
    """Where the lock's record of parameters, commands or code is not that of the files; and dvc.yaml, if it is old."""
    try:
        stages = _stages(profile)
    except FdmError as error:
        return [str(error).rstrip(".")]
    file, problems = pipeline.file_of(profile), []
    if not file.is_file() or file.read_text(encoding="utf-8") != pipeline.text(profile):
        problems.append(f"{relative(file)} is not what python -m fdm pipeline writes")
    values = yaml.safe_load((root() / profile.params_file).read_text(encoding="utf-8"))
    wanted = pipeline.stages(profile)
    for name in [*wanted.keys() - stages.keys()]:
        problems.append(f"the lock has no stage {name}")
    for name, stage in stages.items():
        if name not in wanted:
            problems.append(f"the lock has a stage {name}, and the pipeline has none")
            continue
        if stage.get("cmd") != wanted[name]["cmd"]:
            problems.append(f"the lock's command of {name} is another")
        recorded = stage.get("params", {}).get(profile.params_file, {})
        keys: list[str] | None = next((params[profile.params_file] for params in wanted[name].get("params", [])), [])
        due = values if keys is None else {key: values[key] for key in keys if key in values}
        problems += [
            f"{profile.params_file}: {key} is not what the lock records for {name}"
            for key in dict.fromkeys([*due, *recorded])
            if due.get(key) != recorded.get(key)
        ]
        for entry in stage.get("deps", []):
            folder = f"build/{profile.profile}/code/"
            if entry["path"].startswith(folder):
                code = pipeline.code(profile, Path(entry["path"]).stem)
                if hashlib.md5(code.encode(), usedforsecurity=False).hexdigest() != entry["md5"]:
                    problems.append(f"the source behind {name} is not what the lock records")
    return problems


def of_experiments(profile: Profile, rows: pd.DataFrame, made_by: dict[str, Any]) -> dict[str, list[str]]:
    """Which measurements are not of the experiments that parameters and code describe.

    `made_by` is the description of the reference features here, with the hashes of images and extractor.
    """
    import torch

    from fdm import data, evaluation, training

    name = "the committed measurements are of the committed parameters and code"
    if profile.published or "experiment" not in rows:
        return {}
    nothing = torch.empty(0, *made_by["shape"])  # but for its shape
    dataset = data.Dataset(profile.dataset.name, nothing, nothing, made_by["classes"], made_by["dataset"])
    problems = []
    for run in profile.runs:
        trained = training.experiment(profile, run, dataset)
        due = set(evaluation.experiments(profile, run, trained, dataset.sha256, made_by["weights"]).values())
        found = set(rows[rows["run"] == run]["experiment"])
        if due != found:
            problems.append(f"{run} is of other parameters or code")
    return {name: problems}


# --------------------------------------------------------------------------------------------- what follows from what


HIDDEN = {"effects": ["p", "seeds"], "highest_noise": ["p"], "costs_training": ["ratio", "low", "high", "known"],
          "costs_nfe": ["ratio", "low", "high", "known"]}  # fmt: skip  # columns of the CSV that are not shown


def _tables(profile: Profile) -> dict[str, Callable[[], pd.DataFrame]]:
    """How each table of a profile is made from its runs, by name."""
    if not profile.cells:
        return {
            "table1": lambda: tables.table1(profile),
            "table2": lambda: tables.table_nfe(profile, 2),
            "table3": lambda: tables.table_nfe(profile, 3),
        }
    rows = study.measurements(profile)
    return {
        "design": lambda: analysis.design(profile),
        **{
            name: functools.partial(getattr(analysis, name), profile, rows)
            for name in ("cells", "effects", "highest_noise", "noise", "noise_of_ratios", "bias")
        },
        "costs_training": lambda: analysis.costs(profile, rows, "duration", (1, 2, -1)),
        "costs_nfe": lambda: analysis.costs(profile, rows, "nfe", (1, 2, -1)),
    }


def derived(profile: Profile) -> list[str]:
    """Where measurements.csv, a table in any form, claims.json or REPORT.md is not what follows from the runs."""
    try:
        made = {f"tables/{name}.csv": make for name, make in _tables(profile).items()}
    except FdmError as error:
        return [str(error).replace(f"{root()}/", "").rstrip(".")]
    problems = []
    for name, make in {"measurements.csv": lambda: study.measurements(profile), **made}.items():
        place = relative(profile.results / name)
        try:
            stored, due = study.read(profile.results / name), agreement.read_back(make())
            problems += [f"{place}, {text}" for text in _first_difference(stored, due)]
            if name in made:
                problems += _other_forms(profile.results / name)
        except FdmError as error:
            problems.append(str(error).replace(f"{root()}/", "").rstrip("."))
        except (KeyError, ValueError, TypeError) as error:
            problems.append(f"{place} cannot be made from the runs ({error!r})")
    return problems + _claims(profile) + (_report(profile) if profile.cells else [])


def _report(profile: Profile) -> list[str]:
    path = profile.results / "REPORT.md"
    try:
        values = reproducibility.numbers(profile)
        due = reproducibility.filled(root() / "notebooks" / "05_report.md", profile, values)
        same = agreement.same(path.read_text(encoding="utf-8"), due)
    except (FdmError, OSError, KeyError, ValueError) as error:
        return [f"{relative(path)} cannot be compared ({error})"]
    return [] if same else [f"{relative(path)} is not what follows from its text and the tables"]


def _claims(profile: Profile) -> list[str]:
    path = profile.results / "claims.json"
    try:
        due, stored = json.dumps(agreement.rounded_value(study.claims(profile))), json.dumps(study.read_json(path))
    except FdmError as error:
        return [str(error).replace(f"{root()}/", "").rstrip(".")]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        return [f"{relative(path)} cannot be made from the runs ({error!r})"]
    return [] if agreement.same(stored, due) else [f"{relative(path)} is not what follows from the runs"]


def _other_forms(path: Path) -> list[str]:
    """Where the Markdown or LaTeX of a table does not show the numbers of its CSV file."""
    if path.stem == "design":  # which has no measured numbers, and empty cells that are words
        text = pd.read_csv(path, dtype=str, keep_default_na=False)
    else:
        text = tables.shown(study.read(path).drop(columns=HIDDEN.get(path.stem, [])))
    problems = []
    for suffix, due in ((".md", tables.markdown(text)), (".tex", tables.latex(text))):
        file = path.with_suffix(suffix)
        if not file.is_file() or due not in file.read_text(encoding="utf-8"):
            problems.append(f"{relative(file)} does not show the numbers of {path.name}")
    return problems


def _first_difference(stored: pd.DataFrame, due: pd.DataFrame) -> list[str]:
    """The first cell that differs by more than rounding."""
    if list(stored.columns) != list(due.columns) or len(stored) != len(due):
        return ["has other rows or columns than follow from the runs"]
    for column in due.columns:
        for line, (a, b) in enumerate(zip(stored[column].tolist(), due[column].tolist(), strict=True), 2):
            if not agreement.same(str(a), str(b)) and not (pd.isna(a) and pd.isna(b)):
                return [f"line {line}: {column} is {a} and should be {b}"]
    return []


def networks(profile: Profile) -> list[str]:
    """Which networks kept in git are not those that the measurements name, or do not hold what they promise."""
    from fdm import checkpoints

    folder, problems = profile.results / "networks", []
    for path in sorted(folder.glob("*.safetensors")):
        if path.stem not in profile.runs:
            problems.append(f"{relative(path)} is of no run")
            continue
        try:
            weights = checkpoints.load(path)[1]["weights"]
            rows = study.read(profile.results / "runs" / path.stem / "measurements.csv")
        except FdmError as error:
            problems.append(str(error).replace(f"{root()}/", "").rstrip("."))
            continue
        if set(rows[rows["duration"] == 1]["checkpoint"].astype(str)) != {weights[:12]}:
            problems.append(f"{relative(path)} is not the network that was scored")
    return problems


def readme() -> list[str]:
    """Whether README's table of verdicts is what the ablations' claims.json tells, where there is one."""
    from fdm import profiles, report

    if not (root() / "README.md").is_file() or not (root() / "results" / "ablations" / "claims.json").is_file():
        return []
    try:
        current = report.readme(profiles.find("ablations")) == (root() / "README.md").read_text(encoding="utf-8")
    except (FdmError, ValueError, KeyError, IndexError) as error:
        return [f"README.md cannot be compared ({error})"]
    return [] if current else ["README.md: its table of verdicts is not that of results/ablations/claims.json"]


def checkpoints(profile: Profile, rows: pd.DataFrame) -> list[str]:
    """Which runs' checkpoints in build/ are not those that this machine's measurements name."""
    from fdm import checkpoints

    problems = []
    for run in profile.runs:
        folder, there = profile.build / "checkpoints" / run, {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                there[checkpoints.describe(path)["weights"][:12]] = path
            except (FdmError, KeyError):
                problems.append(f"{relative(path)} is damaged")
        scored = set(rows[rows["run"] == run]["checkpoint"].astype(str))
        if not there:
            problems.append(f"{relative(folder)} has none of {run}")
        if not profile.cells:  # an ablation scores not every checkpoint of every cell
            problems += [f"{relative(there[key])} was not scored" for key in sorted(there.keys() - scored)]
        problems += [f"{run}: checkpoint {key} was scored and is not there" for key in sorted(scored - there.keys())]
    return problems
