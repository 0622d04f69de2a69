"""Is the study reproduced here? What was measured on this machine against what is committed, and whether files agree.

What is committed is read from git at a revision; what was measured is in build/<profile>/here after `make repro`.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from fdm import agreement, integrity, profiles, revisions, study
from fdm.agreement import VERDICTS, Judgement
from fdm.errors import FdmError
from fdm.explain import relative
from fdm.files import root, write_json, write_text
from fdm.profiles import Profile

WORST = 10  # measurements furthest from the record that are shown
SHOWN = 20  # problems that are printed; all are in the report


def rows_of(profile: Profile, folder: Path) -> pd.DataFrame:
    """The measurements of all parts of a profile under a folder, <folder>/<part>/measurements.csv."""
    return pd.concat([study.read(folder / part / "measurements.csv") for part in profile.parts], ignore_index=True)


def _words(profile: Profile) -> dict[str, str]:
    """The verdicts on the claims by name, by the rules and the measurements of the study in the working directory."""
    told = study.claims(profile)["claims"]
    return {f"{each['claim']} {each['subject']}": each["verdict"] for each in told}


def words_here(profile: Profile) -> dict[str, str]:
    """The verdicts that follow from what was measured on this machine."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        for name in ("fdm/files.py", "dvc.yaml", profile.params_file, "results/published"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (root() / name).is_dir() else shutil.copy
            copy(root() / name, folder / name)
        shutil.copytree(profile.build / "here", folder / "results" / profile.profile)
        with contextlib.chdir(folder):
            return _words(profiles.load(profile.params_file))


def paper(profile: Profile) -> dict[tuple, float]:
    """The published number beside each measurement that is of the paper's data, by the measurement's key."""
    rows = study.measurements(profile)
    if profile.dataset.name not in set(study.published(1)["dataset"]) or study.frechet(rows) != "FID":
        return {}
    parts = [study.published(1).assign(sampler="heun", nfe=profile.evaluation.duration_nfe)]
    parts += [
        study.published(number).assign(sampler=sampler, duration_mimg=200)
        for number, sampler in ((2, "heun"), (3, "dpm-solver++"))
    ]
    table = pd.concat(parts)
    table = table[table["dataset"] == profile.dataset.name].rename(columns={"duration_mimg": "mimg"})
    keys = ["framework", "kernel", "sampler", "nfe", "mimg"]
    both = rows[rows["metric"] == "FID"].assign(mimg=rows["kimg"] / 1000).merge(table, on=keys)
    return {tuple(row[key] for key in agreement.KEY): row["fid"] for row in both.to_dict("records")}


def _tables(profile: Profile, judged: Judgement) -> tuple[int, int]:
    """How many measured numbers behind the cells of Tables 1 to 3 agree, of how many."""
    rows = judged.rows[judged.rows["metric"] == judged.rows["metric"].iloc[0]]
    at_nfe = (rows["sampler"] == "heun") & (rows["nfe"] == profile.evaluation.duration_nfe)
    cells = rows[(rows["duration"] == 1) | at_nfe]
    return int((~cells["verdict"].isin(["missed", "missing"])).sum()), len(cells)


def verify(profile: Profile, revision: str) -> dict[str, Any]:
    """Compare what is committed at a revision with what was measured here: a plain value, for JSON.

    `numbers` has a row for each measurement (see `agreement.judge`), `words` one for each verdict on a claim, `checks`
    are sentences with the `problems` found. Raises FdmError when there is nothing to compare.
    """
    full = revisions.resolve(revision)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        revisions.check_out(full, profile, folder)
        if not all((profile.build / "here" / "runs" / part / "measurements.csv").exists() for part in profile.parts):
            raise FdmError(
                f"Nothing has been measured here, or not all, as {relative(profile.build / 'here')} is missing or not "
                f"whole; run make repro{'' if profile.root == '.' else f' PROFILE={profile.profile}'} first."
            )
        here = rows_of(profile, profile.build / "here" / "runs")
        made_by = study.read_json(profile.build / "reference" / "reference.json")
        try:
            with contextlib.chdir(folder):
                then = profiles.load(profile.params_file)
                committed, known = rows_of(then, then.results / "runs"), _recorded_words(then)
                judged = agreement.judge(then, committed, here)
                published = paper(then)
                checks = integrity.checks(then, "committed") | integrity.of_experiments(then, committed, made_by)
                chaotic = sorted(set(agreement.rounding(then).query("chaotic")["run"]))
        except FdmError as error:
            raise FdmError(f"At revision {full[:12]}: {str(error).replace(f'{folder}/', '')}") from error
        floor = study.read(profile.build / "here" / "calibration.csv")
        same_floor = agreement.floor(folder / "results" / profile.profile / "calibration.csv", floor)
    now = words_here(profile)
    words = [{"claim": key, "committed": known.get(key), "here": now.get(key)} for key in dict.fromkeys([*known, *now])]
    checks |= integrity.checks(profile, "present") | {
        "the checkpoints here are those that were scored": integrity.checkpoints(profile, here),
        "the floor measured here is the committed one": [] if same_floor else ["its numbers are others"],
        "the measurements here agree with the committed ones, taken together": judged.problems,
        "the verdicts that follow from them are the committed ones": [
            f"{row['claim']}: {row['here']} here, {row['committed']} committed"
            for row in words
            if row["here"] != row["committed"]
        ],
    }
    rows = judged.rows.drop(columns="expected to rounding")
    rows["published"] = [published.get(tuple(row[key] for key in agreement.KEY)) for row in rows.to_dict("records")]
    met, cells = _tables(profile, judged)
    missed, limit, groups = agreement.missed_by_chance(judged.rows[judged.rows["verdict"] != "missing"])
    return {
        "profile": profile.profile, "revision": full, "agrees": not any(checks.values()), "counts": judged.counts,
        "tables": {"met": met, "cells": 0 if profile.cells else cells}, "chaotic runs": chaotic,
        "missed": {"shares": round(missed, 2), "allowed": limit, "groups": groups},
        "checks": [{"check": name, "problems": problems} for name, problems in checks.items()],
        "words": words, "numbers": json.loads(rows.to_json(orient="records", double_precision=10)),
    }  # fmt: skip


def _recorded_words(profile: Profile) -> dict[str, str]:
    told = study.read_json(profile.results / "claims.json")["claims"]
    return {f"{each['claim']} {each['subject']}": each["verdict"] for each in told}


# ------------------------------------------------------------------------------------------------------- report


def _number(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.{agreement.DIGITS}g}"


def _name(row: dict[str, Any]) -> str:
    return ", ".join(f"{row[key]:g}" if isinstance(row[key], float) else str(row[key]) for key in agreement.KEY)


def worst(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The measurements furthest from the record, in half widths of their interval, that are not exact."""
    off = [row for row in found["numbers"] if row["verdict"] not in ("exact", "rounding")]
    return sorted(off, key=lambda row: -(row["deviation"] or 0))[:WORST]


def _lead(found: dict[str, Any]) -> list[str]:
    """What was found, in a few sentences."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found["counts"].items() if count)
    tables, words, checks = found["tables"], found["words"], found["checks"]
    same = sum(row["here"] == row["committed"] for row in words)
    met = f"cells of Tables 1 to 3 met: {tables['met']} of {tables['cells']}; " if tables["cells"] else ""
    return [
        f"{found['profile']}, measured here, {'agrees' if found['agrees'] else 'does NOT agree'} with revision "
        f"{found['revision'][:12]}.",
        f"{sum(found['counts'].values())} measurements: {counts}; missed shares of {found['missed']['groups']} groups "
        f"add up to {found['missed']['shares']:g}, and chance explains {found['missed']['allowed']}.",
        f"{met}verdicts on claims met: {same} of {len(words)}; checks that hold: "
        f"{sum(not check['problems'] for check in checks)} of {len(checks)}.",
    ]


def failures(found: dict[str, Any]) -> list[str]:
    """One line for each problem."""
    return [f"{check['check']}: NO, {problem}" for check in found["checks"] for problem in check["problems"]]


def summary(found: dict[str, Any]) -> str:
    """What was found, the problems, and the measurements that are furthest off."""
    lines, failed = _lead(found), failures(found)
    lines += [f"! {line}" for line in failed[:SHOWN]]
    lines += [f"! and {len(failed) - SHOWN} more" for _ in failed[SHOWN : SHOWN + 1]]
    far = worst(found)
    lines += ["furthest from the record:"] * bool(far)
    lines += [
        f"  {_name(row)}: {row['verdict']}, {_number(row['committed'])} committed, {_number(row['reproduced'])} here"
        for row in far
    ]
    return "\n".join(lines)


def markdown(found: dict[str, Any]) -> str:
    """The whole report."""
    lead, far = _lead(found), worst(found)
    columns = [*agreement.KEY, "published", "committed", "reproduced", "low", "high", "of", "verdict"]
    chaotic = ", ".join(found["chaotic runs"]) or "none that is known"

    def table(rows: list[dict[str, Any]]) -> list[str]:
        body = (f"| {' | '.join(_number(row[column]) for column in columns)} |" for row in rows)
        return [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *body]

    lines = [
        f"# Committed and measured here: {found['profile']}", "", *(f"- {line}" for line in lead), "",
        "## What is compared, and how", "",
        "- **Exactly:** published numbers, verdicts, numbers of images, parameters, the source behind each stage.",
        "- **To 1e-7:** what follows from the measurements: tables, figures, intervals, claims, executed notebooks.",
        "- **To rounding:** measurements on networks that were trained here, but those of chaotic runs. The limit is "
        f"{agreement.MARGIN} times the standard deviation that other arithmetic was measured to cause (rounding.csv).",
        f"- **To its 95 % interval:** measurements of chaotic runs (here: {chaotic}), which leave part of their "
        f"samples as noise, so that rounding moves them by more than {agreement.CHAOTIC:.0%}; and all where rounding "
        "was not measured or the device is another. Its interval is the widest of sampling noise of the images, the "
        "difference of two trainings with other seeds, and rounding; of a share of n images it is Wilson's.",
        f"- **Together:** one in twenty is missed by chance. Numbers of one run and metric count once, by their missed "
        f"share; the sum may reach what chance exceeds in {agreement.ALPHA:.0%} of cases.", "",
        "| verdict | measurements | meaning |", "| --- | ---: | --- |",
        *(f"| {verdict} | {found['counts'][verdict]} | {meaning} |" for verdict, meaning in VERDICTS.items()), "",
        "## Checks", "", "| check | holds |", "| --- | --- |",
        *(f"| {check['check']} | {'; '.join(check['problems']) or 'yes'} |" for check in found["checks"]), "",
        "## Verdicts on the claims", "", "| claim | committed | here |", "| --- | --- | --- |",
        *(f"| {row['claim']} | {_number(row['committed'])} | {_number(row['here'])} |" for row in found["words"]), "",
        *(["## Furthest from the record", "", *table(far), ""] if far else []),
        "## All measurements", "", *table(found["numbers"]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def report(profile: Profile, revision: str, folder: Path) -> tuple[str, bool]:
    """Verify and write the report to `folder`, <profile>.md and .json; returns the summary, and whether all is well."""
    found = verify(profile, revision)
    write_text(folder / f"{profile.profile}.md", markdown(found))
    write_json(folder / f"{profile.profile}.json", found)
    return f"{summary(found)}\nthe whole report: {folder / profile.profile}.md, .json", found["agrees"]
