"""From a row of an ablation's tables back to the runs, checkpoints and cells of the design behind it."""

from pathlib import Path

import pandas as pd

from fdm import analysis, pipeline, study
from fdm.errors import FdmError
from fdm.files import root
from fdm.profiles import Profile

TABLES = ("cells", "effects", "highest_noise", "noise", "noise_of_ratios", "bias", "costs_training", "costs_nfe")
NUMBERS = ("ratio", "low", "high", "p", "p (Holm)", "seeds", "ratio (95 %)", "known")  # columns that name no row
KEYS = ("cell", "framework", "sampler", "baseline's cost", "question", "compared", "training", "sigma_max")
FORMS = {
    "cells[vp-fdm,100%]": "distance of a cell of the design",
    "effects[vp,warm-up,100%]": "a ratio of distances: framework, question, share of the training",
    "effects[edm,multiplier,m=4/2,25%]": "where a question has several: what is compared, too",
    "highest_noise[vp-baseline,20]": "sampling from another noise level",
    "noise[vp-baseline]": "what moves a distance; bias[vp-baseline] what n does",
    "costs_training[vp,100%]": "a ratio of training images at equal quality",
    "costs_nfe[edm,heun,11]": "a ratio of evaluations at equal quality",
    "figure[effects]": "which notebook draws it, and from which files",
}


def _plain(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(text.split()).lower()


def _row(profile: Profile, table: str, parts: list[str]) -> dict:
    """The one row of a table that has all the parts among its words and numbers; a share may be a column's name."""
    path = profile.results / "tables" / f"{table}.csv"
    rows = study.read(path)
    columns = [c for c in rows.columns if c not in NUMBERS]
    column = next((c for c in columns if table == "cells" and _plain(c) == parts[-1]), None)
    wanted = set(parts[:-1] if column else parts)
    found = [row for row in rows.to_dict("records") if wanted <= {_plain(row[c]) for c in columns}]
    if len(found) != 1:
        keys = [c for c in KEYS if c in columns]
        named = [",".join(_plain(row[c]) for c in keys) for row in found or rows.to_dict("records")]
        what = "means several rows" if found else "is no row"
        raise FdmError(f"{table}[{','.join(parts)}] {what}; there are {'; '.join(dict.fromkeys(named))}.")
    row = found[0]
    return {"cell": row["cell"], column: row[column]} if column else row


def cells_behind(profile: Profile, table: str, row: dict) -> list[str]:
    """The cells of the design that a row of a table compares or describes."""
    if "cell" in row:
        return [row["cell"]]
    framework = row["framework"].lower()
    if table == "effects":
        for f, question, compared, weights in analysis.comparisons(profile):
            if (f, question, compared) == (framework, row["question"], row["compared"]):
                return list(weights)
    return list(study.published_pair(profile, framework))


def explain(profile: Profile, table: str, parts: list[str]) -> str:
    """What is known of the row of a table that these parts name, as text; raises FdmError, with what is allowed."""
    if table not in TABLES:
        raise FdmError(f"{table!r} is no table of {profile.params_file}; there are {', '.join(TABLES)}.")
    row = _row(profile, table, parts)
    cells = cells_behind(profile, table, row)
    results, place = profile.results.relative_to(root()), Path(profile.params_file).with_name("dvc.yaml")
    rows = study.measurements(profile)
    rows = rows[rows["cell"].isin(cells) & (rows["metric"] == study.frechet(rows))]
    share = row.get("training", parts[-1])
    if table in ("cells", "effects"):
        rows = study.standard(profile, rows)
        rows = rows[(rows["duration"] == float(share.strip("%")) / 100) & (rows["sampler"] == "heun")]
        rows = rows[rows["nfe"] == profile.evaluation.duration_nfe]
    by_checkpoint = rows.groupby(["run", "duration", "checkpoint", "experiment", "device"], sort=False)
    lines = [
        f"{table}[{','.join(parts)}]: " + ", ".join(f"{key} {each}" for key, each in row.items() if pd.notna(each)),
        f"in {results}/tables/{table}.csv, made by fdm/analysis.py in notebooks/05_ablations.ipynb (executed: "
        f"{results}/notebooks/05_ablations.ipynb), from {len(rows)} distances in {results}/runs/<cell>/:",
    ]
    for (run, duration, checkpoint, experiment, device), part in by_checkpoint:
        value = f"{part['value'].iloc[0]:.4f}" if len(part) == 1 else f"{len(part)} distances"
        origin = f"checkpoint {checkpoint}, experiment {experiment}, {device}"
        lines.append(f"  {run}, {duration:.0%} of the training: {value}; {origin}")
    lines.append("cells of the design, with their provenance:")
    for cell in cells:
        about = study.read_json(profile.results / "provenance" / f"{cell}.json")
        changes = profile.cells[cell].model_dump(exclude_defaults=True)
        lines.append(f"  {cell}: {', '.join(f'{key} {value}' for key, value in changes.items())}")
        seeds = ", ".join(map(str, profile.seeds))
        when = f"{about['started']}, {about['device']}, {about['training_seconds']:.0f} s of training, seeds {seeds}"
        lines.append(f"    revision {about['revision'][:12]}, {when}")
    stages, runs = ["train", "evaluate", "ablations"], [run for cell in cells for run in profile.seeds_of(cell)]
    lines += [
        f"stages of {place}: {', '.join(stages)}",
        "made again by:", *pipeline.again(profile, stages, runs),
    ]  # fmt: skip
    return "\n".join(lines)
