"""Published, committed and reproduced: every number of a profile side by side, and whether its files belong together.

What is committed is read from git at a revision; what was reproduced is the working tree after `make repro`.
"""

import contextlib
import json
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from fdm import explain, integrity, profiles, revisions, study, tables
from fdm.errors import FdmError
from fdm.explain import SETTING, records, relative
from fdm.files import root, write_json, write_text
from fdm.profiles import Profile

SHOWN = 20  # lines of the summary
VERDICTS = {
    "exact": "equal to the last digit",
    "within": "differs, but lies in the interval around the committed number",
    "not met": "differs, and lies outside of the interval or there is none",
    "missing": "committed and not reproduced, or the reverse",
}


@dataclass(frozen=True)
class Number:
    """A number of the results, or a verdict in words, with the 95 % interval that its file gives it, if any."""

    value: float | str
    low: float = math.nan
    high: float = math.nan
    setting: tuple = ()  # what was measured: SETTING, highest noise level, latents, reference, n
    seeds: int = 1  # of which the number is the mean


Numbers = dict[str, Number]
Spreads = dict[tuple, list[float]]

# ------------------------------------------------------------------------------------------------- the numbers


def _number(row: dict[str, str]) -> Number:
    low, high = (float(row.get(end) or "nan") for end in ("low", "high"))
    return Number(float(row["value"]), low, high, _setting(row) if "run" in row else ())


def _setting(row: dict[str, str]) -> tuple:
    place = (row["framework"], row["kernel"], float(row["duration"]), row["sampler"], int(row["nfe"]), row["metric"])
    return place + tuple(float(row.get(key) or 0) for key in ("sigma_max", "latents", "reference", "n"))


def _mean(value: float | str, rows: list[Number]) -> Number:
    """A mean over seeds: half widths of independent rows add up as squares."""
    if not rows:
        return Number(value)
    below = math.hypot(*(float(row.value) - row.low for row in rows)) / len(rows)
    above = math.hypot(*(row.high - float(row.value) for row in rows)) / len(rows)
    return Number(value, float(value) - below, float(value) + above, rows[0].setting, len(rows))


def _leaves(value: Any, *path: str) -> Iterator[tuple[tuple[str, ...], float | str]]:
    """The numbers of a JSON value, and its verdicts in words, by their path; a claim's is its name."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            claim = isinstance(part, dict) and "claim" in part
            yield from _leaves(part, *path, f"{part['claim']} {part.get('subject', '')}" if claim else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)
    elif path[-1:] == ("verdict",):
        yield path, str(value)


def _json(path: Path) -> list[tuple[tuple[str, ...], float | str]]:
    return list(_leaves(json.loads(path.read_text(encoding="utf-8")))) if path.is_file() else []


def _claims(path: Path) -> Numbers:
    """The verdicts of claims.json, and the numbers of those about formulas: the others are sums of measurements."""
    leaves = [leaf for leaf in _json(path) if leaf[0][0] == "claims"]
    kept = [leaf for leaf in leaves if leaf[0][-1] == "verdict" or leaf[0][1].startswith(("C1", "C2"))]
    return {f"claims[{'.'.join(key)}]": Number(value) for key, value in kept}


def _rows(path: Path) -> list[dict[str, str]]:
    return records(path) if path.is_file() else []


def _measurements(profile: Profile) -> Numbers:
    out = Numbers()
    for row in _rows(profile.results / "measurements.csv"):
        number = _number(row)
        place = [row[key] for key in ("run", "duration", "sampler", "nfe", "metric")]
        if f"measurements[{','.join(place)}]" in out:  # an ablation has it again at other noise levels, n, references
            place += [f"{part:g}" for part in number.setting[len(SETTING) :]]
        out[f"measurements[{','.join(place)}]"] = number
    return out


def _tables(profile: Profile, behind: Callable[[tuple], list[Number]], floor: Numbers) -> Numbers:
    out = Numbers()
    for table in (1, 2, 3):
        if not (profile.results / "tables" / f"table{table}.csv").is_file():
            continue
        for cell in explain.cells(profile, table):
            out[f"table{table}[n,{','.join(filter(None, (cell.at or 'real', cell.data)))}]"] = Number(float(cell.n))
            out[cell.where] = Number(cell.value)
            if cell.source == "measured":
                out[cell.where] = _mean(cell.value, behind(explain.setting(profile, cell)))
            elif cell.source == "calibration" and f"calibration[{cell.metric}]" in floor:
                out[cell.where] = replace(floor[f"calibration[{cell.metric}]"], value=cell.value)
    return out


def _headlines(profile: Profile, behind: Callable[[tuple], list[Number]], floor: Numbers) -> Numbers:
    """metrics.json: Frechet distances of the models at full cost, which are cells of table 1, and the floor."""
    models = {study.label(*model): model for model in study.MODELS}
    out = Numbers()
    for (metric, *name), value in _json(profile.results / "metrics.json"):
        label, where = "".join(name), f"metrics[{'.'.join([metric, *name])}]"
        out[where] = Number(value)
        if label in models:
            full = (*models[label], 1.0, "heun", profile.evaluation.duration_nfe, metric)
            out[where] = _mean(value, behind(full))
        elif name and f"calibration[{metric}]" in floor:
            out[where] = replace(floor[f"calibration[{metric}]"], value=value)
    return out


def numbers(profile: Profile) -> Numbers:
    """All numbers of a profile's results by name: measurements, the floor, tables 1 to 3, metrics.json, claims.json.

    A file that is missing has none; raises FdmError for one that is damaged.
    """
    try:
        measured = _measurements(profile)
        floor = {f"calibration[{row['metric']}]": _number(row) for row in _rows(profile.results / "calibration.csv")}
        by_setting: dict[tuple, list[Number]] = defaultdict(list)
        for number in measured.values():
            by_setting[number.setting[: len(SETTING)]].append(number)
        cells = _tables(profile, by_setting.__getitem__, floor)
        headlines = _headlines(profile, by_setting.__getitem__, floor)
        claims = _claims(profile.results / "claims.json")
    except (KeyError, ValueError) as error:
        raise FdmError(f"A file in {relative(profile.results)} is damaged ({error!r}); run dvc repro.") from error
    return measured | floor | cells | headlines | claims


def paper(profile: Profile) -> dict[str, float]:
    """The published number of each name that has one: the tables' published cells, and those in `tables.beside`."""
    out: dict[str, float] = {}
    for table in (1, 2, 3):
        for row in study.published(table).to_dict("records"):
            cost = f"{row['duration_mimg']} Mimg" if table == 1 else row["nfe"]
            out[f"table{table}[{row['framework']},{row['kernel']},{cost},{row['dataset']}]"] = row["fid"]
    if profile.dataset.name not in set(study.published(1)["dataset"]):
        return out
    rows = study.measurements(profile)
    rows = rows[rows["metric"] == "FID"]
    for cell in tables.beside(profile).dropna(subset=["measured"]).to_dict("records"):
        framework, kernel = next(model for model in study.MODELS if study.label(*model) == cell["model"])
        same = {"framework": framework, "kernel": kernel, "sampler": cell["sampler"], "nfe": cell["NFE"]}
        match = rows[(rows[list(same)] == pd.Series(same)).all(axis=1) & (rows["kimg"] / 1000 == cell["training"])]
        for row in match.to_dict("records"):
            cost = f"{row['duration']:.0%}" if cell["table"] == 1 else cell["NFE"]
            out[f"table{cell['table']}[{framework},{kernel},{cost}]"] = cell["published"]
            place = [row["run"], row["duration"], row["sampler"], row["nfe"], row["metric"]]
            out[f"measurements[{','.join(map(str, place))}]"] = cell["published"]
    return out


# ---------------------------------------------------------------------------------------------------- intervals


def spreads(profile: Profile) -> Spreads:
    """Values of one setting for each seed of the ablation's baseline and published FDM, for a profile on the digits."""
    out: Spreads = defaultdict(list)
    if profile.dataset.name != "digits":
        return out
    path = root() / "results" / "ablations" / "measurements.csv"
    try:
        for row in _rows(path):
            kind = "baseline" if row["kernel"] == "baseline" else "fdm-warmup"
            if row["cell"] == f"{row['framework']}-{kind}":
                out[_setting(row)].append(float(row["value"]))
    except (KeyError, ValueError) as error:
        raise FdmError(f"{relative(path)} is damaged ({error!r}).") from error
    return out


def interval(number: Number, trainings: list[float]) -> tuple[float, float, str]:
    """Where another run may come out, low and high, and what it is made of: the wider of two 95 % intervals.

    "images" is the number's own, the sampling noise of its images. "trainings" holds the difference of two trainings
    with other seeds: log-normal, with the standard deviation of log `trainings`. (nan, nan, "") when there is none.
    """
    low, high, of = number.low, number.high, "images"
    if isinstance(number.value, float) and min([number.value, *trainings]) > 0 and len(trainings) > 1:
        deviation = float(np.std(np.log(trainings), ddof=1)) * math.sqrt(2 / number.seeds)
        factor = math.exp(float(student.ppf(0.975, len(trainings) - 1)) * deviation)
        if not high - low >= number.value * factor - number.value / factor:  # true of nan, too
            low, high, of = number.value / factor, number.value * factor, "trainings"
    return (math.nan, math.nan, "") if math.isnan(low) else (low, high, of)


def compare(committed: Numbers, reproduced: Numbers, published: dict[str, float], seeds: Spreads) -> list[dict]:
    """One row a number, in the order of the files; a field that is not known is None."""
    rows = []
    for where in dict.fromkeys([*committed, *reproduced]):
        old, new = committed.get(where), reproduced.get(where)
        low, high, of = interval(old, seeds.get(old.setting, [])) if old else (math.nan, math.nan, "")
        difference = None
        if old is None or new is None:
            verdict = "missing"
        elif old.value == new.value:
            verdict, difference = "exact", None if isinstance(old.value, str) else 0.0
        elif isinstance(old.value, str) or isinstance(new.value, str):
            verdict = "not met"
        else:
            difference = new.value - old.value
            same_n = old.setting[-1:] == new.setting[-1:]  # a distance of other n has another bias
            verdict = "within" if same_n and low <= new.value <= high else "not met"
        rows.append({
            "where": where, "published": published.get(where), "committed": old and old.value,
            "reproduced": new and new.value, "difference": difference, "low": None if math.isnan(low) else low,
            "high": None if math.isnan(high) else high, "interval of": of, "verdict": verdict,
        })  # fmt: skip
    return rows


# ------------------------------------------------------------------------------------------------------- report


def _state(profile: Profile, whose: str) -> tuple[Numbers, list[dict]]:
    """The numbers of the study that holds the working directory, and whether its files belong together."""
    checks = {
        f"the {whose} results are those that the lock records": integrity.lock(profile),
        f"the {whose} measurements and tables follow from the {whose} runs": integrity.runs(profile),
    }
    return numbers(profile), [{"check": name, "problems": problems} for name, problems in checks.items()]


def verify(profile: Profile, revision: str) -> dict[str, Any]:
    """Compare what is committed at a revision with the working tree: a plain value, for JSON.

    `numbers` are the rows of `compare`; `checks` are sentences, each with the `problems` found, none when it holds.
    Raises FdmError when there is nothing to compare.
    """
    full = revisions.resolve(revision)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        revisions.check_out(full, profile, folder)
        if not (profile.build / "checkpoints").is_dir():
            raise FdmError(
                f"Nothing has been reproduced here, as {relative(profile.build / 'checkpoints')} is missing; run make "
                f"repro{'' if profile.root == '.' else f' PROFILE={profile.profile}'} first."
            )
        try:
            with contextlib.chdir(folder):
                then = profiles.load(profile.params_file)
                committed, checks = _state(then, "committed")
                published, seeds = paper(then), spreads(then)
        except FdmError as error:
            raise FdmError(f"At revision {full[:12]}: {str(error).replace(f'{folder}/', '')}") from error
    reproduced, more = _state(profile, "reproduced")
    made_here = {
        "check": "the checkpoints here are those that were scored", "problems": integrity.checkpoints(profile)
    }  # fmt: skip
    rows = compare(committed, reproduced, published, seeds)
    counts = Counter(row["verdict"] for row in rows)
    return {
        "profile": profile.profile, "revision": full, "counts": {verdict: counts[verdict] for verdict in VERDICTS},
        "checks": [made_here, *checks, *more], "numbers": rows,
    }  # fmt: skip


def failures(found: dict[str, Any]) -> list[str]:
    """One line for each problem and for each number that is not exact or within its interval."""
    lines = [f"{check['check']}: NO, {problem}" for check in found["checks"] for problem in check["problems"]]
    for row in found["numbers"]:
        if row["verdict"] not in ("exact", "within"):
            around = f", interval {row['low']:.6g} to {row['high']:.6g}" if row["interval of"] else ""
            lines.append(
                f"{row['where']}: {row['verdict']}, committed {_text(row['committed']) or 'nothing'}, reproduced "
                f"{_text(row['reproduced']) or 'nothing'}{around}"
            )
    return lines


def summary(found: dict[str, Any]) -> str:
    """The counts, and the first of the failures."""
    lines = [
        f"{found['profile']}, reproduced here, against revision {found['revision'][:12]}: "
        + ", ".join(f"{count} {verdict}" for verdict, count in found["counts"].items()),
        f"{sum(not check['problems'] for check in found['checks'])} of {len(found['checks'])} checks hold",
    ]
    failed = failures(found)
    lines += [f"! {line}" for line in failed[:SHOWN]]
    return "\n".join(lines + ([f"! and {len(failed) - SHOWN} more"] if len(failed) > SHOWN else []))


def _text(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else repr(value)


def markdown(found: dict[str, Any]) -> str:
    """The whole report."""
    columns = ["where", "published", "committed", "reproduced", "difference", "low", "high", "interval of", "verdict"]
    lines = [
        f"# Published, committed and reproduced: {found['profile']}", "",
        f"Committed is revision {found['revision']}; reproduced is what was in the working tree.", "",
        "| verdict | numbers | meaning |", "| --- | ---: | --- |",
        *(f"| {verdict} | {found['counts'][verdict]} | {meaning} |" for verdict, meaning in VERDICTS.items()), "",
        "| check | holds |", "| --- | --- |",
        *(f"| {check['check']} | {'; '.join(check['problems']) or 'yes'} |" for check in found["checks"]), "",
        "The interval, low to high, is the wider of two around the committed number, at 95 %: the sampling noise of "
        "the images, and the difference of two trainings with other seeds, where several were measured.", "",
        f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}",
        *(f"| {' | '.join(_text(row[column]) for column in columns)} |" for row in found["numbers"]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def report(profile: Profile, revision: str, folder: Path) -> tuple[str, bool]:
    """Verify and write the report to `folder`, <profile>.md and .json; returns the summary, and whether all is well."""
    found = verify(profile, revision)
    write_text(folder / f"{profile.profile}.md", markdown(found))
    write_json(folder / f"{profile.profile}.json", found)
    return f"{summary(found)}\nthe whole report: {folder / profile.profile}.md, .json", not failures(found)
