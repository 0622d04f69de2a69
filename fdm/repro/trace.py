"""From a number in a table, or a figure, back to what it was made from: rows, files, checkpoints, stages, provenance.

A number is found again in the tidy table of measurements, by the columns that its table was made by.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fdm.data.sources import SOURCES
from fdm.files import FdmError, relative, root
from fdm.params import QUARTERS, snapshot_name
from fdm.repro import pipeline
from fdm.study import agreement, measurements, profiles, report
from fdm.study.claims import PAPER
from fdm.study.measurements import MODELS, label, select
from fdm.study.profiles import USUAL, USUAL_TOP, Profile
from fdm.study.tables import sampler_label

SHARES = {f"{share:.0%}": share for share in QUARTERS}
# Of each table of 04_tables: an example, the columns that name a row, and where its measurements are others than those
# of Table 1 at the end of the training.
TABLES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "table1": ("vp,fdm,100%", ["framework", "kernel", "training"], {}),
    "table2": ("edm,baseline,25", ["framework", "kernel", "nfe"], {"sampler": PAPER[2]}),
    "table3": ("edm,baseline,25", ["framework", "kernel", "nfe"], {"sampler": PAPER[3]}),
    "samplers": ("vp,fdm,DDIM,25", ["framework", "kernel", "sampler", "nfe"], {}),
}
# What else can be asked for there.
FORMS = {
    "table1[real]": "the floor, real images against real images; of tables 2 and 3 too",
    "table1[vp,fdm,50 Mimg,cifar10]": "published: framework, kernel, training images, data set",
    "table2[vp,fdm,25,afhqv2]": "published: framework, kernel, nfe, data set; of table 3 too",
}


class Entry(NamedTuple):
    """What a name can stand for: the words between its brackets, what is there, and where that is from.

    That is either `text`, or the measurements with `keys` in their columns; then `mean` is what the table has of them.
    """

    words: list[str]
    says: str
    text: list[str]
    keys: dict[str, Any] | None = None
    mean: float | None = None


def explain(profile: Profile, name: str | None) -> str:
    """All that is known of the number, row or figure of that name; without a name, the forms that a name can have.

    Case, blanks and the order of the words do not matter. Words may be left out where the others are clear.
    Raises FdmError, with what is allowed, for a name that means nothing here, and for damaged files.
    """
    if profile.conclusions is None:
        par = profile.evaluation
        where = "systems and standings" if par.systems else "restoration and restored" if par.restoration else "runs"
        where = "few-steps" if profile.few_steps else where
        raise FdmError(f"{profile.profile} has no tables of claims; see {where} in {relative(profile.results)}.")
    evidence = profile.conclusions == "05_evidence"
    if evidence:
        forms = {f"{table}[...]": ", ".join(names) for table, names in report.KEYS.items()}
    else:
        forms = {f"{table}[{example}]": ", ".join(names) for table, (example, names, _) in TABLES.items()} | FORMS
    forms[f"figure[{'answer' if evidence else 'quality_by_nfe'}]"] = "which notebook draws it, and from which files"
    if name is None:
        return "\n".join(["python -m fdm explain NAME, where NAME is one of", *(f"  {k:34}{forms[k]}" for k in forms)])
    match = re.fullmatch(r"(\w+)(?:\[([^\[\]]+)\])?", _plain(name))
    if not match or match[1] not in [*(report.KEYS if evidence else TABLES), "figure"]:
        other = "; verdicts on claims are those of --params profiles/exact/params.yaml, such as verdicts[C3,EDM,exact]"
        raise FdmError(
            f"{name!r} cannot be explained; allowed are names such as {', '.join(forms)}{'' if evidence else other}."
        )
    path = profile.results / "tables" / f"{match[1]}.csv"
    try:
        entries = (_figures(profile) if match[1] == "figure" else
                   _findings(profile, path) if evidence else _entries(profile, path))  # fmt: skip
        entry = _find(name, match[2].split(",") if match[2] else [], [*entries])
        lines = entry.text if entry.keys is None else _measured(profile, path, entry.keys, entry.mean)
    except (KeyError, ValueError, AttributeError) as error:
        raise FdmError(f"{path} or its data are damaged ({error!r}); run dvc repro to make them again.") from error
    return "\n".join([f"{match[1]}[{','.join(entry.words)}]{entry.says}", *lines])


def _plain(value: str) -> str:
    return "".join(value.split()).lower()


def _text(value: object) -> str:
    """A value as the files of tables have it."""
    return f"{value:.{agreement.DIGITS}g}" if isinstance(value, float) else str(value)


def _told(pairs: dict[Any, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in pairs.items())


def _find(name: str, asked: list[str], entries: list[Entry]) -> Entry:
    """The entry that has just these words, or the only one that has them among others; raises FdmError for none."""
    named = [({part for word in entry.words for part in _plain(word).split(",")}, entry) for entry in entries]
    found = [each for has, each in named if has == {*asked}] or [each for has, each in named if has >= {*asked}]
    if len(found) == 1:
        return found[0]
    if found:
        raise FdmError(f"{name} means several; there are {'; '.join(','.join(each.words) for each in found)}.")
    near, wrong = [(has, each) for has, each in named if len(has) == len(asked)] or named, asked[0]
    for wrong in sorted(asked, key=lambda part: all(part not in has for has, _ in near)):  # words unknown here last
        if not (having := [(has, each) for has, each in near if wrong in has]):
            break
        near = having
    allowed = dict.fromkeys(word for _, each in near for word in each.words if _plain(word) not in asked)
    raise FdmError(f"{name} is not there: {wrong!r} is not allowed; in its place can stand {', '.join(allowed)}.")


def _entries(profile: Profile, path: Path) -> Iterator[Entry]:
    """The entries of a table, whose columns are models: its numbers, and published ones."""
    content = measurements.read(path).rename(columns={"Sampler": "sampler", "NFE": "nfe"})
    _, names, special = TABLES[path.stem]
    models = {label(*model): model for model in MODELS}
    wide = [name for name in content if name in {*models, "Real"}]
    content = content.melt([*content.columns.difference(wide)], wide, "model", "value").dropna(subset="value")
    pairs = measurements.table(profile)[["sampler", "options"]].drop_duplicates().itertuples(index=False)
    samplers = {sampler_label(*pair): dict(zip(("sampler", "options"), pair, strict=True)) for pair in pairs}
    told: dict[str, Callable[[dict], dict[str, Any]]] = {  # what a column says of the measurements; the last one counts
        "training": lambda row: {"duration": SHARES[row["training"]]},
        "nfe": lambda row: {"nfe": int(row["nfe"])},
        "sampler": lambda row: samplers[row["sampler"]],
        "framework": lambda row: {"cell": [*measurements.published_pair(profile, row["framework"].lower())]},
        "kernel": lambda row: {"kernel": row["kernel"]},
    }
    for every in content.to_dict("records"):
        row = {key: value for key, value in every.items() if pd.notna(value)}
        if row.get("source") == "calibration":
            yield Entry(["real"], f" = {_text(row['value'])}", _floor(profile, path, row["value"]))
        if row.get("source", "measured") != "measured":
            continue  # the published numbers have files of their own
        row |= dict(zip(("framework", "kernel"), models.get(row.get("model", ""), ()), strict=False))
        if "training" in row:
            row["training"] = row["training"].split()[0]
        keys = {key: value for column in told if column in row for key, value in told[column](row).items()}
        yield Entry([_text(row[key]) for key in names], f" = {_text(row['value'])}", [], special | keys, row["value"])
    if path.stem in ("table1", "table2", "table3"):
        yield from _published(int(path.stem[-1]), path)


def _findings(profile: Profile, path: Path) -> Iterator[Entry]:
    """The rows of a table of the evidence, each with the function and the records that it is made from."""
    keys, made = report.KEYS[path.stem], "evidence" if path.stem == "verdicts" else "findings"
    book = str(profile.conclusions)
    for row in measurements.read(path).to_dict("records"):
        target = profiles.find(row["target"])
        names = [row["cell"]] if "cell" in row else [*target.cells]
        framework = str(row.get("framework", "")).lower()
        mine = [name for name in names if framework in ("", "all") or name.startswith(f"{framework}-")]
        files = [path for name in mine for path in sorted(target.recorded(name).glob("*.csv"))]
        told = {key: value for key, value in row.items() if key not in keys and pd.notna(value)}
        text = [
            f"made by {path.stem} in fdm/study/{made}.py, in {relative(path)}, from records of {target.params_file}:",
            *(f"  {relative(file)}" for file in files),
            *_made_by(profile, [book], []),
        ]
        yield Entry([_text(row[key]) for key in keys], f": {_told(told)}", text)


def _published(number: int, path: Path) -> Iterator[Entry]:
    (source,) = (root() / "results" / "published").glob(f"table{number}_*.csv")
    written = source.read_text(encoding="utf-8").splitlines()
    for line, row in enumerate(measurements.published(number).to_dict("records"), 2):
        at = f"{row['duration_mimg']} Mimg" if number == 1 else str(row["nfe"])
        model, data = label(row["framework"], row["kernel"]), SOURCES[row["dataset"]].label
        text = [
            f"FID of {model} on {data}, as published: Table {number} of the paper, arXiv 2306.06991.",
            f"  {relative(source)}, line {line}: {written[line - 1]}",
            f"It stands beside the measured numbers in {relative(path)}.",
        ]
        yield Entry([row["framework"], row["kernel"], at, row["dataset"]], f" = {_text(row['fid'])}", text)


def _floor(profile: Profile, path: Path, value: float) -> list[str]:
    """Lines on the distance of real images from real images that a table has."""
    floor, data = measurements.calibration(profile).iloc[0], SOURCES[profile.dataset.name].label
    return [
        f"{floor['metric']} of real images of {data} against other real images, the floor; in {relative(path)}",
        *_older(value, floor["value"]),
        f"  {relative(profile.results)}/calibration.csv: {_told(floor.to_dict())}",
        *_made_by(profile, ["04_tables"], ["reference"]),
    ]


def _older(value: float | None, measured: float) -> list[str]:
    if value is None or math.isclose(value, measured, rel_tol=agreement.RELATIVE, abs_tol=agreement.ABSOLUTE):
        return []
    return ["This is NOT what follows from the data below: the table is older than they are, or was altered."]


def _measured(profile: Profile, path: Path, keys: dict[str, Any], mean: float | None) -> list[str]:
    """Lines on the measurements that have `keys`, on their cells, and on how all of that is made again."""
    rows, (sampler, nfe) = measurements.table(profile), profile.evaluation.primary
    usual = {
        "metric": measurements.frechet(rows), "n": profile.evaluation.samples, "sigma_max": USUAL_TOP,
        "options": USUAL, "sampler": sampler, "nfe": nfe, "duration": 1.0, "latents": 0, "reference": 0,
    }  # fmt: skip
    rows = select(rows, **(usual | keys))
    if rows.empty:
        raise FdmError(f"{relative(path)} has what the measurements do not have; run dvc repro to make it again.")
    shown = rows.drop(columns=["profile", "dataset", "framework", "kernel", "low", "high"])
    common = [column for column in shown if shown[column].nunique() == 1]
    listed = shown.drop(columns=common).to_string(index=False, float_format=_text).splitlines()
    lines = [
        f"{rows['metric'].iloc[0]} of {', '.join(dict.fromkeys(map(label, rows['framework'], rows['kernel'])))} on "
        f"{SOURCES[profile.dataset.name].label}, lower is better; in {relative(path)}",
        *_older(mean, rows["value"].mean()),
        f"from {len(rows)} of the measurements:",
        f"  {'all have ' * (len(rows) > 1)}{_told(shown[common].iloc[0].to_dict())}",
        *(f"  {line}" for line in listed if len(rows) > 1),
        f"of the cells of {profile.params_file}, with provenance and files:",
    ]
    cells = {name: profile.cells[name] for name in rows["cell"].unique()}
    for name, cell in cells.items():
        mine = select(rows, cell=name).drop_duplicates(["run", "duration"])
        kept = map(profile.checkpoints, mine["run"]), map(snapshot_name, mine["duration"])
        files = [folder / file for folder, file in zip(*kept, strict=True) if cell.source != "analytic"]
        lines += [f"  {name}: {_told(cell.model_dump(exclude_defaults=True))}", f"    {_provenance(profile, name)}"]
        lines += [f"    {relative(file)}" for file in (profile.recorded(name) / "measurements.csv", *files)]
    sources = {cell.source for cell in cells.values()}
    fetched, trained = ["fetch"] * ("fetch" in sources), bool(sources & {"train", "finetune"})
    books = [*["02_train"] * trained, "03_evaluate", "04_tables"]
    return [*lines, *_made_by(profile, books, [*fetched, *["train"] * trained, "evaluate"], rows["run"].unique())]


def _provenance(profile: Profile, name: str) -> str:
    """When, where and at which revision a cell was measured, or a notebook executed, in a line."""
    path = profile.results / "provenance" / f"{name}.json"
    try:
        about = measurements.read_json(path)
        changed, seconds = about["changed_since_revision"], about.get("training_seconds")
        told = f"revision {about['revision'][:12]}"
        told += f" with changes in {', '.join(line[3:] for line in changed)}" if changed else ""
        told += f", {about['started']}, {about['device']}, torch {about['versions']['torch']}"
        return f"{relative(path)}: {told}{f', {seconds:.0f} s of training' if seconds else ''}"
    except (FdmError, KeyError, TypeError):
        return f"{relative(path)}: missing or damaged, so that nothing is known"


def _made_by(profile: Profile, books: list[str], stages: list[str], runs: Iterable[str] = ()) -> list[str]:
    """Lines on executed notebooks, on the stages with that of the last notebook, and on how they are executed again.

    What was computed for `runs` has to be removed first, or it would be taken as it is.
    """
    last = [key for key, stage in pipeline.stages(profile).items() if f" notebook {books[-1]} " in stage["cmd"]]
    folder = relative(profile.results / "notebooks")
    return [
        "executed notebooks, with their provenance:",
        *(f"  {folder}/{book}.ipynb\n    {_provenance(profile, book)}" for book in books),
        f"stages of {relative(pipeline.file_of(profile))}: {', '.join([*stages, *last])}",
        "made again by (as make repro does what has changed; publish renews results/ from the executed notebooks):",
        *pipeline.again(profile, [*stages, *last], runs),
    ]


def _figures(profile: Profile) -> Iterator[Entry]:
    """The figures that the notebooks' figures.json tell of."""
    folder = profile.results / "figures"
    manifests = [path for book in pipeline.books(profile) if (path := folder / book / "figures.json").is_file()]
    if not manifests:
        raise FdmError(f"{relative(folder)} tells of no figure; run dvc repro to draw them.")
    for manifest in manifests:
        book = manifest.parent.name
        for name, data in measurements.read_json(manifest).items():
            read = [file if file.startswith("results/") else f"{relative(profile.results)}/{file}" for file in data]
            text = [
                f"drawn by notebooks/{book}.ipynb, from:",
                *(f"  {file}" for file in read or ["the formulas and the code that the notebook runs, and no data"]),
                *_made_by(profile, [book], []),
            ]
            drawn = map(relative, sorted(manifest.parent.glob(f"{name}.*")))
            yield Entry([name], f": {', '.join(drawn)}", text)
