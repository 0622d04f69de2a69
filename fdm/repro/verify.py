"""Is the study reproduced here? What was measured on this machine against what is committed, and whether files agree.

What is committed is read from git at a revision; what was measured is in build/<profile>/here after `make repro`.
"""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from fdm.data import datasets
from fdm.files import FdmError, relative, write_json, write_text
from fdm.model import checkpoints
from fdm.repro import integrity, revisions
from fdm.study import (
    agreement,
    claims,
    few_steps,
    measure,
    measurements,
    profiles,
    restoration,
    runs,
    systems,
    tables,
)
from fdm.study.agreement import KEY, VERDICTS, Judgement
from fdm.study.measurements import select
from fdm.study.profiles import Profile

WORST = 10  # measurements furthest from the record that are shown
SHOWN = 20  # problems that are printed; all are in the report
ADVICE = "make repro measures it again, or python -m fdm accept proves that new source computes the same"
NAMES = (  # what is read at a revision, beside the profile's results
    "results/published", "results/ablations", "results/exact", "results/exact-16", "results/exact-32",
    "results/rates", "results/systems", "results/few-steps", "results/restoration", "results/fashion-16",
    "results/accepted.csv", "benchmarks/results", "fdm", "notebooks", "profiles", "params.yaml", "dvc.yaml",
    "dvc.lock", ".dvc", ".dvcignore", "README.md",
)  # fmt: skip


class Here(Profile):
    """A profile with what was measured on this machine in the place of what is on record."""

    @property
    def results(self) -> Path:
        """Folder of this machine's own measurements."""
        return self.here


def check_out(revision: str, profile: Profile, folder: Path) -> None:
    """Write a profile's files as they are at a revision to `folder`, a study of its own that DVC takes without git.

    Raises FdmError when the revision holds no results of the profile.
    """
    results = relative(profile.results)
    if results not in revisions.export(revision, folder, [*NAMES, results]):
        raise FdmError(f"Revision {revision[:12]} holds no results of the profile {profile.profile} to compare with.")
    alone = f"[core]\nno_scm = true\nsite_cache_dir = {folder}/.dvc/tmp\n"
    write_text(folder / ".dvc" / "config.local", alone)


def verify(profile: Profile, revision: str) -> dict[str, Any]:
    """Compare what is committed at a revision with what was measured here: a plain value, for JSON.

    `numbers` has a row for each measurement (see `agreement.judge`), `words` one for each verdict on a claim, `checks`
    are sentences with the `problems` found. Raises FdmError when there is nothing to compare.
    """
    full, mine = revisions.resolve(revision), Here.model_construct(**dict(profile))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        check_out(full, profile, folder)
        if not all((mine.recorded(cell) / "measurements.csv").is_file() for cell in profile.cells):
            with contextlib.chdir(folder):
                held = integrity.checks(profiles.load(profile.params_file), "committed")
            alone = "\n".join(f"- {check}: {'; '.join(problems) or 'yes'}" for check, problems in held.items())
            raise FdmError(
                f"Nothing has been measured here, or not all, as {relative(profile.here)} is missing or not whole; run "
                f"make repro{'' if profile.root == '.' else f' PROFILE={profile.profile}'} first. Of what is committed "
                f"at {full[:12]}, by itself:\n{alone}"
            )
        here, floor = measurements.table(mine), measurements.calibration(mine)
        now = _words(claims.claims(mine)) if mine.conclusions else {}
        # Read here, as paths follow the working directory.
        tables_of = {cell: mine.recorded(cell) / "errors.csv" for cell in mine.cells}
        errors = {cell: measurements.read(path) if path.is_file() else None for cell, path in tables_of.items()}
        compared = {cell: measurements.read(mine.compared(cell)) for cell in _compared(mine)}
        restored = {cell: measurements.read(mine.restored(cell)) for cell in _restored(mine)}
        drawn = {toy: measurements.read(mine.toy(toy)) for toy in _toys(mine)}
        made_by = measurements.read_json(profile.reference_file.with_name("reference.json"))
        try:
            with contextlib.chdir(folder):
                then = profiles.load(profile.params_file)
                committed = measurements.table(then)
                known = _words(measurements.read_json(then.results / "claims.json")) if then.conclusions else {}
                judged, published = agreement.judge(then, committed, here), paper(then)
                wrong = [cell for cell in then.cells if not _same_errors(then.recorded(cell), errors[cell])]
                apart = [cell for cell, found in compared.items() if not agreement.systems(then.compared(cell), found)]
                off = [c for c, found in restored.items() if not agreement.restorations(then.restored(c), found)]
                unlike = [toy for toy, found in drawn.items() if not agreement.systems(then.toy(toy), found)]
                same_floor = agreement.floor(then.results / "calibration.csv", floor)
                chaotic = sorted(set(agreement.rounding(then).query("chaotic")["run"]))
                others = experiments(then, committed, made_by)
                checks = integrity.checks(then, "committed")
        except (FdmError, KeyError, TypeError, ValueError) as error:
            told = str(error) if isinstance(error, FdmError) else f"what is committed is damaged ({error!r})."
            raise FdmError(f"At revision {full[:12]}: {told.replace(f'{folder}/', '')}") from error
    words = [{"claim": key, "committed": known.get(key), "here": now.get(key)} for key in {**known, **now}]
    moved = [row for row in words if row["here"] != row["committed"]]
    checks |= {"the committed measurements are of the committed parameters and code": others}
    checks |= integrity.checks(profile, "present") | {
        "the checkpoints here are those that were scored": scored(profile, here),
        "the floor measured here is the committed one": [] if same_floor else ["its numbers are others"],
        "the measurements here agree with the committed ones, taken together": judged.problems,
        "the errors of denoisers and solvers measured here agree with the committed ones": wrong,
        "the systems compared here agree with the committed comparison": apart,
        "the restorations made here agree with the committed ones": off,
        "the toys drawn here agree with the committed ones": unlike,
        "the verdicts that follow from them are the committed ones": [
            f"{row['claim']}: {row['here']} here, {row['committed']} committed" for row in moved
        ],
    }
    rows = judged.rows.drop(columns="expected to rounding")
    rows["published"] = [published.get(key) for key in rows[[*KEY]].itertuples(index=False, name=None)]
    met, cells = of_tables(profile, judged)
    missed, limit, groups = agreement.missed_by_chance(judged.rows[judged.rows["verdict"] != "missing"])
    return {
        "profile": profile.profile, "revision": full, "agrees": not any(checks.values()), "counts": judged.counts,
        "tables": {"met": met, "cells": cells}, "chaotic runs": chaotic,
        "missed": {"shares": round(missed, 2), "allowed": limit, "groups": groups},
        "checks": [{"check": name, "problems": problems} for name, problems in checks.items()],
        "words": words, "numbers": json.loads(rows.to_json(orient="records", double_precision=10)),
    }  # fmt: skip


def _same_errors(record: Path, here: pd.DataFrame | None) -> bool:
    """Whether the errors.csv in the record of a cell agrees with that of this machine, or neither is there."""
    path = record / "errors.csv"
    return agreement.errors(path, here) if here is not None else not path.is_file()


def _words(told: dict[str, Any]) -> dict[str, str]:
    """The verdicts of a claims.json by name."""
    return {f"{each['claim']} {each['subject']}": each["verdict"] for each in told["claims"]}


def paper(profile: Profile) -> dict[tuple, float]:
    """The published number beside each measurement that is of the paper's data, by the measurement's key."""
    rows = measurements.table(profile)
    if measurements.frechet(rows) != "FID":
        return {}
    sampler, nfe = profile.evaluation.primary
    parts = [measurements.published(1).assign(sampler=sampler, nfe=nfe)]
    parts += [measurements.published(n).assign(sampler=name, duration_mimg=200) for n, name in claims.PAPER.items()]
    table = select(pd.concat(parts), dataset=profile.dataset.name)
    rows = measurements.standard(profile, rows).assign(duration_mimg=lambda each: each["kimg"] / 1000)
    both = rows.merge(table, on=["framework", "kernel", "sampler", "nfe", "duration_mimg"])
    return dict(zip(both[[*KEY]].itertuples(index=False, name=None), both["fid"], strict=True))


def of_tables(profile: Profile, judged: Judgement) -> tuple[int, int]:
    """How many measured numbers behind the cells of Tables 1 to 3 agree, of how many; an ablation has none."""
    if profile.conclusions != "04_tables":
        return 0, 0
    rows = measurements.standard(profile, judged.rows.assign(cell=judged.rows["run"].str.rpartition("-")[0]))
    sampler, nfe = profile.evaluation.primary
    last = (rows["duration"] == 1) & rows["sampler"].isin(claims.PAPER.values())
    cells = rows[last | ((rows["sampler"] == sampler) & (rows["nfe"] == nfe))]
    return int((~cells["verdict"].isin(["missed", "missing"])).sum()), len(cells)


def experiments(profile: Profile, rows: pd.DataFrame, made_by: dict[str, Any]) -> list[str]:
    """Which runs' measurements are not of the experiments that parameters and code describe.

    `made_by` is the description of the reference features here, with the hashes of images and extractor.
    """
    dataset = datasets.nothing(profile.dataset.name, made_by["shape"], made_by["classes"], made_by["dataset"])
    other = []
    for name in (name for name, run in profile.runs.items() if run.source != "fetch"):
        trained = runs.experiment(profile, name, dataset) if name in profile.trained else dataset.sha256
        due = measure.experiments(profile, name, trained, dataset.sha256, made_by["weights"])
        if {*due.values()} != {*select(rows, run=name)["experiment"]}:
            other.append(name)
    return [
        f"{name} is of other parameters or code; {ADVICE}"
        for name in [
            *other, *_others_compared(profile, made_by), *_others_restored(profile, made_by), *_others_drawn(profile)
        ]
    ]  # fmt: skip


def _compared(profile: Profile) -> list[str]:
    """What a comparison of systems is of: cells, and real images; nothing where the profile compares none."""
    return few_steps.compared(profile) if profile.evaluation.systems else []


def _restored(profile: Profile) -> list[str]:
    """What a comparison of restorations is of: cells, and the estimates; nothing where the profile restores none."""
    return [restoration.ESTIMATE, *profile.cells] if profile.evaluation.restoration else []


def _others_restored(profile: Profile, made_by: dict[str, Any]) -> list[str]:
    """Which runs' restorations on record are not of the experiments that parameters and code describe."""
    other = list[str]()
    if profile.evaluation.restoration is None:
        return other
    dataset = datasets.nothing(profile.dataset.name, made_by["shape"], made_by["classes"], made_by["dataset"])
    for name in profile.runs:
        cell = profile.run(name).cell
        every = [*restoration.wanted(profile, cell), *restoration.wanted(profile, cell, {})]
        for each in restoration.wanted(profile, cell):  # whichever is the best
            every.append(each._replace(part="restoration"))
        rows = select(measurements.read(profile.restored(cell)), run=name)
        trained = runs.experiment(profile, name, dataset)
        known = restoration.experiments(profile, trained, dataset.sha256, made_by["weights"], every)
        if rows.empty or not {*rows["experiment"]} <= {*known.values()}:
            other.append(f"{name}'s restorations")
    return other


def _toys(profile: Profile) -> list[str]:
    """The forms of the toy; nothing where the profile trains no generators."""
    return [*few_steps.TOYS] if profile.generators else []


def _others_drawn(profile: Profile) -> list[str]:
    """Which forms of the toy on record are not of the experiments that parameters and code describe."""
    other = []
    for toy in _toys(profile):
        wanted = {few_steps.experiment_of(toy, n, seed) for n in few_steps.TOY_STEPS for seed in profile.seeds}
        if {*measurements.read(profile.toy(toy))["experiment"]} != wanted:
            other.append(f"the toy {toy}")
    return other


def _others_compared(profile: Profile, made_by: dict[str, Any]) -> list[str]:
    """Which runs' comparisons of systems on record are not of the experiments that parameters and code describe."""
    par, other = profile.evaluation.systems, list[str]()
    if par is None:
        return other
    dataset = datasets.nothing(profile.dataset.name, made_by["shape"], made_by["classes"], made_by["dataset"])
    for name in profile.runs:
        cell = profile.run(name).cell
        every = [*systems.tuned(par, cell), *systems.witnessed(profile, name), *systems.reported(par, cell, {})]
        for each in systems.tuned(par, cell):  # whichever is the best, and those that are like it
            every += systems.reported(par, cell, {(each.system, each.nfe): each.options})
        every = [*dict.fromkeys(every)]
        rows = select(measurements.read(profile.compared(cell)), run=name)
        trained = runs.experiment(profile, name, dataset) if name in profile.trained else dataset.sha256
        known = systems.experiments(profile, trained, dataset.sha256, made_by["weights"], every)
        if rows.empty or not {*rows["experiment"]} <= {*known.values()}:
            other.append(f"{name}'s comparison")
    return other


def scored(profile: Profile, rows: pd.DataFrame) -> list[str]:
    """Which checkpoints that this machine's measurements name are not in build/."""
    problems = []
    for run in profile.trained:
        wanted = {*select(rows, run=run)["checkpoint"]}
        for path in sorted(profile.checkpoints(run).glob("*.safetensors")):
            try:
                wanted -= {checkpoints.describe(path)["weights"][:12]}
            except (FdmError, KeyError):
                problems.append(f"{relative(path)} is damaged")
        problems += [f"{run}: checkpoint {each} was scored and is not there" for each in sorted(wanted)]
    return problems


# ------------------------------------------------------------------------------------------------------- report


def _number(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.{agreement.DIGITS}g}"


def _name(row: dict[str, Any]) -> str:
    return ", ".join(f"{row[key]:g}" if isinstance(row[key], float) else str(row[key]) for key in KEY)


def worst(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The measurements furthest from the record, in half widths of their interval, that are not exact."""
    off = [row for row in found["numbers"] if row["verdict"] not in ("exact", "rounding")]
    return sorted(off, key=lambda row: -(row["deviation"] or 0))[:WORST]


def failures(found: dict[str, Any]) -> list[str]:
    """One line for each problem."""
    return [f"{check['check']}: NO, {problem}" for check in found["checks"] for problem in check["problems"]]


def lead(found: dict[str, Any]) -> list[str]:
    """What was found, in a few sentences."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found["counts"].items() if count)
    cells, words, checks = found["tables"], found["words"], found["checks"]
    met = f"cells of Tables 1 to 3 met: {cells['met']} of {cells['cells']}; " if cells["cells"] else ""
    return [
        f"{found['profile']}, measured here, {'agrees' if found['agrees'] else 'does NOT agree'} with revision "
        f"{found['revision'][:12]}.",
        f"{sum(found['counts'].values())} measurements: {counts}; missed shares of {found['missed']['groups']} groups "
        f"add up to {found['missed']['shares']:g}, and chance explains {found['missed']['allowed']}.",
        f"{met}verdicts on claims met: {sum(row['here'] == row['committed'] for row in words)} of {len(words)}; checks "
        f"that hold: {sum(not check['problems'] for check in checks)} of {len(checks)}.",
    ]


def summary(found: dict[str, Any]) -> str:
    """What was found, the problems, and the measurements that are furthest off."""
    lines, failed, far = lead(found), failures(found), worst(found)
    lines += [f"! {line}" for line in failed[:SHOWN]]
    lines += [f"! and {len(failed) - SHOWN} more" for _ in failed[SHOWN : SHOWN + 1]]
    lines += ["furthest from the record:"] * bool(far)
    lines += [
        f"  {_name(row)}: {row['verdict']}, {_number(row['committed'])} committed, {_number(row['reproduced'])} here"
        for row in far
    ]
    return "\n".join(lines)


COMPARED = """
- **Exactly:** published numbers, verdicts, numbers of images, parameters, the source behind each stage.
- **To 1e-7:** what follows from the measurements: tables, figures, intervals, claims, executed notebooks.
- **To rounding:** measurements on networks that were trained here, but those of chaotic runs. The limit is {margin}
  times the standard deviation that other arithmetic was measured to cause (rounding.csv).
- **To its 95 % interval:** measurements of chaotic runs (here: {runs}), which leave part of their samples as noise, so
  that rounding moves them by more than {chaotic:.0%}; and all where rounding was not measured or the device is another.
  Its interval is the widest of sampling noise of the images, the difference of two trainings with other seeds, and
  rounding; of a share of n images it is Wilson's.
- **Together:** one in twenty is missed by chance. Numbers of one run and metric count once, by their missed share; the
  sum may reach what chance exceeds in {alpha:.0%} of cases.
"""


def markdown(found: dict[str, Any]) -> str:
    """The whole report."""
    columns = [*KEY, "published", "committed", "reproduced", "low", "high", "of", "verdict"]

    def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
        return tables.markdown(pd.DataFrame(rows, columns=columns, dtype=object).map(_number)) if rows else "None.\n"

    verdicts = [
        {"verdict": key, "measurements": str(found["counts"][key]), "meaning": text} for key, text in VERDICTS.items()
    ]
    checks = [{"check": each["check"], "holds": "; ".join(each["problems"]) or "yes"} for each in found["checks"]]
    compared = COMPARED.format(margin=agreement.MARGIN, chaotic=agreement.CHAOTIC, alpha=agreement.ALPHA,
                               runs=", ".join(found["chaotic runs"]) or "none that is known")  # fmt: skip
    parts = {
        f"# Committed and measured here: {found['profile']}": "\n".join(f"- {line}" for line in lead(found)) + "\n",
        "## What is compared, and how": compared[1:] + "\n" + table(verdicts, ["verdict", "measurements", "meaning"]),
        "## Checks": table(checks, ["check", "holds"]),
        "## Verdicts on the claims": table(found["words"], ["claim", "committed", "here"]),
        "## Furthest from the record": table(worst(found), columns),
        "## All measurements": table(found["numbers"], columns),
    }
    return "\n".join(f"{title}\n\n{text}" for title, text in parts.items())


def write(found: dict[str, Any], folder: Path) -> str:
    """Write the report of `verify` to `folder`, <profile>.md and .json; returns its summary."""
    path = folder / found["profile"]
    write_text(folder / f"{found['profile']}.md", markdown(found))
    write_json(folder / f"{found['profile']}.json", found)
    return f"{summary(found)}\nthe whole report: {path}.md, .json"
