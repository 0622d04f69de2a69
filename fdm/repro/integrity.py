"""Whether the files of a profile belong together: parameters, code, lock, runs, tables, networks, README.

This finds manual edits and partial reruns. It cannot find somebody who alters a number, all that is made from it and
the lock; for that the results have to be reproduced. All paths are of the study that holds the working directory, so
that a revision can be checked in a folder of its own.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from fdm.files import FdmError, json_text, relative, root
from fdm.model import checkpoints
from fdm.repro import pipeline
from fdm.study import (
    agreement,
    claims,
    closure,
    evidence,
    few_steps,
    findings,
    measurements,
    profiles,
    published,
    report,
    restored,
    show,
    standings,
    tables,
    velocity,
)
from fdm.study.profiles import Profile

BESIDE = {"provenance", "rounding.csv"}  # results that no stage writes


def checks(profile: Profile, whose: str) -> dict[str, list[str]]:
    """Problems by the sentence that they contradict; `whose` results: committed or present."""
    found = {
        f"the {whose} files are those that the {whose} lock records": lock,
        f"the {whose} measurements, tables, verdicts and README follow from the {whose} runs": derived,
        f"the {whose} networks are those that were scored": networks,
        f"the {whose} accepted steps go back to one source": steps,
    }
    return {sentence: _problems(check, profile) for sentence, check in found.items()}


def _problems(check: Callable[..., list[str]], *args: Any) -> list[str]:
    """What a check finds, or why it could not be made."""
    try:
        return check(*args)
    except FileNotFoundError as error:
        told = f"{error.filename} is missing"
    except (FdmError, OSError, KeyError, ValueError, TypeError, IndexError) as error:
        told = str(error).rstrip(".") if isinstance(error, FdmError) else f"what is compared is damaged ({error!r})"
    return [told.replace(f"{root()}/", "")]


# ---------------------------------------------------------------------------------------------------------- the lock


def lock(profile: Profile) -> list[str]:
    """What is not as the profile's dvc.lock records it, by `dvc status`, and which results are of no stage.

    Writes build/<profile>/code, which DVC compares; all else under build/ is each machine's own, or not there.
    """
    file = pipeline.file_of(profile)
    name = relative(file.with_suffix(".lock"))
    if not (root() / name).is_file():
        return [
            f"{name} is missing, so that figures, notebooks, provenance and training logs are compared with nothing"
        ]
    pipeline.write_code(profile)
    words = [sys.executable, "-m", "dvc", "status", "--json", relative(file)]
    done = subprocess.run(words, cwd=root(), capture_output=True, text=True)
    if done.returncode:
        return [f"{name} cannot be compared, as dvc status says: {' '.join(done.stderr.split())}"]
    problems = [*dict.fromkeys(differences(json.loads(done.stdout), name))]
    if file.read_text(encoding="utf-8") != pipeline.text(profile):
        problems.append(f"{relative(file)} is not what python -m fdm pipeline writes")
    outs = (stage.get(key, []) for stage in pipeline.stages(profile).values() for key in ("outs", "metrics", "plots"))
    known = {place for parts in outs for part in parts for place in part}
    for path in filter(Path.is_file, sorted(profile.results.rglob("*"))):
        place = path.relative_to(root())
        if not (BESIDE & {*place.parts} or known & {each.as_posix() for each in (place, *place.parents)}):
            problems.append(f"{place.as_posix()} is written by no stage")
    return problems


def differences(status: dict[str, list[Any]], lock: str) -> Iterator[str]:
    """Sentences for what `dvc status --json` tells of the stages of a lock, but for what it cannot know here."""
    for stage, parts in status.items():
        of = f"is not what {lock} records for {(name := stage.rpartition(':')[2])}"
        for part in parts:
            if isinstance(part, str):  # changed command
                yield f"{part.replace('changed', 'the')} {of}"
                continue
            for place, how in [change for places in part.values() for change in places.items()]:
                if isinstance(how, dict):  # a file of parameters
                    yield from (f"{place}: {key} {of}" for key in how)
                elif place.startswith("build/") and "/code/" in place:
                    yield f"the source {of}"
                elif not place.startswith("build/") and name != "code":  # whose outputs are what was just written
                    yield f"{place} is missing" if how == "deleted" else f"{place} {of}"


# --------------------------------------------------------------------------------------------- what follows from what


def makers(profile: Profile) -> dict[str, Callable[[], pd.DataFrame]]:
    """How each table of a profile is made from its runs, by name."""
    if profile.conclusions == "04_tables":
        by_nfe = {f"table{number}": partial(tables.by_nfe, profile, number) for number in claims.PAPER}
        return by_nfe | {
            "table1": partial(tables.by_training, profile),
            "samplers": partial(tables.by_sampler, profile),
        }
    if profile.conclusions is None:
        return {}
    targets = evidence.targets(profile)
    return {name: partial(findings.together, name, targets) for name in findings.TABLES} | {
        "verdicts": partial(evidence.verdicts, profile), "published": published.savings,
    }  # fmt: skip


def _rows(profile: Profile) -> pd.DataFrame:
    """The tidy table of a profile; of the evidence, of the cells that are on record so far."""
    return evidence.target(profile).scores if profile.conclusions == "05_evidence" else measurements.table(profile)


def derived(profile: Profile) -> list[str]:
    """Where a file that the notebook of conclusions writes, or README, is not what follows from the runs."""
    texts: dict[Path, Callable[[], str]] = {}
    if profile.conclusions:
        texts[profile.results / "measurements.csv"] = lambda: _rows(profile).to_csv(index=False)
        texts[profile.results / "claims.json"] = lambda: json_text(agreement.rounded_value(claims.claims(profile)))
    if profile.conclusions == "04_tables":
        texts[profile.results / "metrics.json"] = lambda: json_text(tables.summary(profile))
    elif profile.conclusions:
        source = root() / "notebooks" / "05_report.md"
        texts[profile.results / "REPORT.md"] = lambda: report.filled(source, profile, report.numbers(profile))
    if (root() / "results" / "exact" / "claims.json").is_file():
        texts[root() / "README.md"] = lambda: show.readme(profiles.find("exact"))
    problems = [each for path, text in texts.items() for each in _problems(lambda p, t: _differs(p, t()), path, text)]
    made_of = {"tables": makers(profile), "standings": compared(profile), "restored": restored_of(profile),
               "few-steps": few_steps_of(profile)}  # fmt: skip
    for folder, made in made_of.items():
        for name, make in made.items():
            problems += _problems(_table, profile.results / folder / f"{name}.csv", make)
    return problems


def compared(profile: Profile) -> dict[str, Callable[[], pd.DataFrame]]:
    """How each table of a comparison of systems is made from its record, by name."""
    par = profile.evaluation.systems
    if par is None or par.crossed is None:
        return {}
    rows = measurements.systems(profile)
    return {
        "ratios": partial(standings.ratios, rows, par), "quality": partial(standings.quality, rows),
        "interactions": partial(standings.interactions, profile, rows), "crossed": partial(standings.crossed, rows),
        "against": partial(standings.against, rows, par), "tuned": partial(standings.tuned, rows),
        "moments": partial(velocity.moments, rows), "levels": partial(velocity.by_level, profile),
        "training": partial(velocity.by_training, profile), "velocity": partial(velocity.across, profile, rows),
        "velocity_counted": lambda: velocity.counted(velocity.across(profile, rows)),
        "learned": partial(velocity.learned, rows), "gaps": velocity.gaps,
    }  # fmt: skip


def restored_of(profile: Profile) -> dict[str, Callable[[], pd.DataFrame]]:
    """How each table of a comparison of restorations is made from its record, by name."""
    if profile.evaluation.restoration is None:
        return {}
    rows = measurements.restorations(profile)
    return {
        "quality": partial(restored.quality, rows), "over": partial(restored.over, profile, rows),
        "kernels": partial(restored.kernels, profile, rows), "against": partial(restored.against, profile, rows),
        "tuned": partial(restored.tuned, rows),
    }  # fmt: skip


def few_steps_of(profile: Profile) -> dict[str, Callable[[], pd.DataFrame]]:
    """How each table of training for few steps is made from its record, by name."""
    if not profile.few_steps:
        return {}
    rows = measurements.systems(profile)
    over, scores = few_steps.over(profile, rows), measurements.table(profile)
    toy = {"toy": lambda: few_steps.of_toys(measurements.toys(profile))} if profile.generators else {}
    return toy | {
        "prices": partial(few_steps.prices, profile), "quality": partial(few_steps.quality, profile, rows),
        "over": lambda: over, "gains": partial(few_steps.gains, over, standings.spaces(rows)[0]),
        "spaces": partial(few_steps.by_space, over, next(iter(over["over"]), "")),
        "along": partial(few_steps.along, profile, scores), "elsewhere": partial(few_steps.elsewhere, profile, rows),
        "failures": partial(few_steps.failures, profile, rows), "kernels": partial(few_steps.kernels, profile, rows),
        "kernels_along": lambda: few_steps.kernels_along(
            profile, scores, standings.floors(rows)[standings.spaces(rows)[0]]
        ),
    }  # fmt: skip


def _table(path: Path, make: Callable[[], pd.DataFrame]) -> list[str]:
    """Where a table is not as it is written from the runs, in all its forms; its Markdown tells which columns show."""
    content = make()
    caption, _, head, *_ = path.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    hidden = [column for column in content.columns if column not in head.strip("| ").split(" | ")]
    with tempfile.TemporaryDirectory() as temporary:
        again = Path(shutil.copy(path, temporary))  # which is left as it is where it differs by rounding alone
        tables.write_table(content, again.parent, path.stem, caption, tuple(hidden))
        texts = {suffix: again.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".csv", ".md", ".tex")}
    return [problem for suffix, text in texts.items() for problem in _differs(path.with_suffix(suffix), text)][:1]


def _differs(path: Path, due: str) -> list[str]:
    """The first place where a file is not what it should be but for rounding."""
    stored = path.read_text(encoding="utf-8")
    if agreement.same(stored, due):
        return []
    for number, lines in enumerate(zip_longest(stored.splitlines(), due.splitlines(), fillvalue=""), 1):
        for words in zip_longest(*(re.split(r" [|&] |,", line) for line in lines), fillvalue=""):
            if not agreement.same(*words):
                old, new = (textwrap.shorten(word, 60) or "nothing" for word in words)
                return [f"{relative(path)}, line {number}: {old} should be {new}"]
    return [f"{relative(path)} has other ends of lines than it should have"]


def networks(profile: Profile) -> list[str]:
    """Which networks kept in git are not those that the measurements name, or do not hold what they promise."""
    problems = []
    for path in sorted((profile.results / "networks").glob("*.safetensors")):
        weights = checkpoints.load(path)[1]["weights"]
        rows = measurements.read(profile.recorded(profile.run(path.stem).cell) / "measurements.csv")
        if {*measurements.select(rows, run=path.stem, duration=1.0)["checkpoint"]} != {weights[:12]}:
            problems.append(f"{relative(path)} is not the network that was scored")
    return problems


def steps(profile: Profile) -> list[str]:
    """Where the accepted steps of a closure do not lead, one after the other, from one source to all others."""
    path, problems = root() / "results" / "accepted.csv", []
    table = pd.read_csv(path, dtype=str) if path.is_file() else pd.DataFrame(columns=["closure", "old", "new"])
    for name, lines in table.groupby("closure", sort=False):
        old_of = dict(zip(lines["new"], lines["old"], strict=True))
        first = {closure.origin(code, old_of) for code in old_of}
        if len(old_of) < len(lines):
            problems.append(f"{relative(path)}: two steps of {name} lead to the same source")
        if len(first) > 1 or first & old_of.keys():
            problems.append(
                f"{relative(path)}: the steps of {name} begin at {', '.join(sorted(first))}; one is missing"
            )
    return problems
