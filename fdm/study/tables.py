"""The paper's tables with the measured numbers in them, and tables as files."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from fdm.data.sources import SOURCES
from fdm.files import write_text
from fdm.samplers import SAMPLERS
from fdm.study.agreement import rounded, rounded_value, settle_text
from fdm.study.claims import PAPER
from fdm.study.measurements import (
    MODELS,
    calibration,
    frechet,
    label,
    models,
    primary,
    published,
    standard,
    table,
)
from fdm.study.profiles import USUAL, Profile

KEYS = ["source", "data", "metric", "n"]
COLUMNS = [label(*model) for model in MODELS]
_NUMBER = re.compile(r"^([<>≤] )?-?[\d,.]*%?$")
PUBLISHED_MIMG = (50, 100, 150, 200)


def wide(rows: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """Models as columns, in one order; several seeds are averaged; a model without measurement stays empty."""
    rows = rows.assign(model=[label(f, k) for f, k in zip(rows["framework"], rows["kernel"], strict=True)])
    pivot = rows.pivot_table(index=index, columns="model", values="value", aggfunc="mean", sort=False)
    return pivot.reindex(columns=COLUMNS).reset_index()


def _table(profile: Profile, measured: pd.DataFrame, paper: pd.DataFrame, by: str) -> pd.DataFrame:
    """Measured rows, the calibration row, published rows."""
    floor = calibration(profile).iloc[0]
    data = SOURCES[profile.dataset.name].label
    mine = wide(measured.assign(source="measured", data=data), [*KEYS, by])
    real = {"source": "calibration", "data": data, "metric": floor["metric"], "n": floor["n"],
            by: "real against real", "Real": floor["value"]}  # fmt: skip
    paper = paper.rename(columns={"fid": "value"}).assign(source="published", metric="FID", n=50000)
    paper["data"] = [SOURCES[name].label for name in paper["dataset"]]
    parts = [mine, pd.DataFrame([real]), wide(paper, [*KEYS, by])]
    return pd.concat(parts)[[*KEYS, by, *COLUMNS, "Real"]].reset_index(drop=True)


def by_training(profile: Profile) -> pd.DataFrame:
    """Table 1: quality against training duration, at one NFE; rows by source, columns the six models."""
    rows = primary(profile, table(profile), cell=models(profile))
    rows = rows.assign(
        training=[f"{d:.0%} ({k:.3g} kimg)" for d, k in zip(rows["duration"], rows["kimg"], strict=True)]
    )
    paper = published(1)
    paper["training"] = [f"{mimg / PUBLISHED_MIMG[-1]:.0%} ({mimg} Mimg)" for mimg in paper["duration_mimg"]]
    return _table(profile, rows, paper, "training")


def by_nfe(profile: Profile, number: int) -> pd.DataFrame:
    """Quality of the fully trained models against NFE: Table 2 for EDM's sampler, 3 for DPM-Solver++."""
    rows = standard(profile, table(profile), sampler=PAPER[number], duration=1.0, cell=models(profile))
    paper = published(number)
    # The figure has the low NFE; the paper's tables do not.
    rows = rows[rows["nfe"].isin(paper["nfe"]) | (len(set(rows["nfe"]) & set(paper["nfe"])) == 0)]
    return _table(profile, rows, paper, "nfe").rename(columns={"nfe": "NFE"})


def by_sampler(profile: Profile) -> pd.DataFrame:
    """Quality of the fully trained models with every sampler and its options, at every NFE; columns the six models."""
    rows = table(profile)
    every = sorted(set(rows["options"]))
    rows = standard(profile, rows, duration=1.0, options=every, cell=models(profile))
    names = [sampler_label(*each) for each in zip(rows["sampler"], rows["options"], strict=True)]
    order = {name: place for place, name in enumerate(dict.fromkeys(names))}
    wide_table = wide(rows.assign(Sampler=names), ["Sampler", "nfe"])
    place = wide_table["Sampler"].map(order)
    sorted_table = wide_table.assign(place=place).sort_values(["place", "nfe"]).drop(columns="place")
    return sorted_table.rename(columns={"nfe": "NFE"}).dropna(axis=1, how="all")


def sampler_label(sampler: str, options: str) -> str:
    """A sampler with its options, as tables and figures have it."""
    return SAMPLERS[sampler].label + ("" if options == USUAL else f", {options.replace('=', ' = ')}")


def published_beside_measured(profile: Profile) -> pd.DataFrame:
    """Each published cell of Tables 1 to 3 that is of this profile's data, with what was measured for it.

    Columns: table, model, training (Mimg), sampler, NFE, published, measured, difference, n. Empty for data that the
    paper does not have, and for another distance than FID; a cell without measurement stays empty.
    """
    rows = table(profile)
    columns = ["table", "model", "training", "sampler", "NFE", "published", "measured", "difference", "n"]
    if frechet(rows) != "FID":
        return pd.DataFrame(columns=columns)
    parts = []
    for number in (1, 2, 3):
        paper = published(number)
        paper = paper[paper["dataset"] == profile.dataset.name].assign(table=number)
        if number == 1:
            paper = paper.assign(**dict(zip(("sampler", "nfe"), profile.evaluation.primary, strict=True)))
        else:
            paper = paper.assign(sampler=PAPER[number], duration_mimg=PUBLISHED_MIMG[-1])
        parts.append(paper)
    measured = standard(profile, rows, cell=models(profile)).assign(duration_mimg=lambda each: each["kimg"] / 1000)
    keys = ["framework", "kernel", "duration_mimg", "sampler", "nfe"]
    measured = measured.groupby(keys, as_index=False)[["value", "n"]].mean()
    both = pd.concat(parts).astype({"duration_mimg": float}).merge(measured, on=keys, how="left")
    both["model"] = [label(*model) for model in zip(both["framework"], both["kernel"], strict=True)]
    both["difference"] = both["value"] - both["fid"]
    names = {"duration_mimg": "training", "nfe": "NFE", "fid": "published", "value": "measured"}
    return both.rename(columns=names)[columns]


def write_table(content: pd.DataFrame, folder: Path, name: str, caption: str, hidden: tuple[str, ...] = ()) -> None:
    """Write one table as <name>.csv, with ten digits, and as .md and .tex, to be read, without `hidden` columns.

    What differs from the table on record by rounding alone is not written; .md and .tex follow the record.
    """
    settle_text(folder / f"{name}.csv", rounded(content).to_csv(index=False))
    content = _as_recorded(content, folder / f"{name}.csv")
    text = shown(content.drop(columns=[*hidden]))
    write_text(folder / f"{name}.md", f"{caption}\n\n{markdown(text)}")
    head = f"\\begin{{table}}[ht]\n\\caption{{{caption}}}\n\\label{{tab:{name}}}\n".replace("%", r"\%")
    write_text(folder / f"{name}.tex", f"{head}{latex(text)}\\end{{table}}\n")


def shown(content: pd.DataFrame) -> pd.DataFrame:
    """A table as strings for people: two decimals, p-values three, and nothing where nothing was measured.

    Numbers that two decimals would make 0 have four.
    """
    how = {"p": _p, "seeds": _whole}
    return content.apply(lambda column: column.map(how.get(str(column.name).split()[0], _cell)))


def latex(text: pd.DataFrame) -> str:
    """A table of strings in LaTeX, the tabular alone."""
    return (
        text.map(lambda s: s.replace("%", r"\%")).rename(columns=lambda s: s.replace("%", r"\%")).to_latex(index=False)
    )


def _as_recorded(content: pd.DataFrame, path: Path) -> pd.DataFrame:
    """A table with the floating-point numbers of its file."""
    recorded, content = pd.read_csv(path), content.reset_index(drop=True)
    for column in content.columns:
        old = recorded[column].tolist()
        new = content[column].astype(object).tolist()
        content[column] = pd.Series(
            [a if isinstance(b, float) else b for a, b in zip(old, new, strict=True)], dtype=object
        )
    return content


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 0.005:
        return f"{value:.2f}"
    return f"{value:.4f}" if abs(value) >= 0.00005 else "0.00"


def _whole(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.0f}"


def _p(value: float) -> str:
    return "" if pd.isna(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def markdown(text: pd.DataFrame) -> str:
    """A table of strings in Markdown, columns of numbers to the right."""
    head = "| " + " | ".join(text.columns) + " |"
    rule = (
        "| "
        + " | ".join(
            "---:" if all(_NUMBER.match(str(value)) for value in text[name]) else "---" for name in text.columns
        )
        + " |"
    )
    rows = ["| " + " | ".join(row) + " |" for row in text.itertuples(index=False)]
    return "\n".join([head, rule, *rows]) + "\n"


def summary(profile: Profile) -> dict[str, Any]:
    """The headline numbers for `dvc metrics show`: Frechet distance of each model at full cost, and the floor."""
    rows = primary(profile, table(profile), duration=1.0, cell=models(profile))
    floor = calibration(profile).iloc[0]
    distances = {
        label(*key): float(group["value"].mean()) for key, group in rows.groupby(["framework", "kernel"], sort=False)
    }
    told = {frechet(rows): {**distances, "real against real": float(floor["value"])}, "n": int(floor["n"])}
    return rounded_value(told)
