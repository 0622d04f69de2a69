"""The paper's tables with the measured numbers in them, and tables as files."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from fdm import statistics
from fdm.agreement import rounded, rounded_value, settle_text
from fdm.files import write_text
from fdm.profiles import Profile
from fdm.study import DATA, MODELS, calibration, frechet, label, measurements, published

KEYS = ["source", "data", "metric", "n"]
COLUMNS = [label(*model) for model in MODELS]
_NUMBER = re.compile(r"^([<>≤] )?-?[\d,.]*%?$")
PUBLISHED_MIMG = (50, 100, 150, 200)


def wide(rows: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """Models as columns, in one order; several seeds are averaged; a model without measurement stays empty."""
    rows = rows.assign(model=[label(f, k) for f, k in zip(rows["framework"], rows["kernel"], strict=True)])
    table = rows.pivot_table(index=index, columns="model", values="value", aggfunc="mean", sort=False)
    return table.reindex(columns=COLUMNS).reset_index()


def _table(profile: Profile, measured: pd.DataFrame, paper: pd.DataFrame, by: str) -> pd.DataFrame:
    """Measured rows, the calibration row, published rows."""
    floor = calibration(profile).iloc[0]
    data = DATA[profile.dataset.name]
    mine = wide(measured.assign(source="measured", data=data), [*KEYS, by])
    real = {"source": "calibration", "data": data, "metric": floor["metric"], "n": floor["n"],
            by: "real against real", "Real": floor["value"]}  # fmt: skip
    paper = paper.rename(columns={"fid": "value"}).assign(source="published", metric="FID", n=50000)
    paper["data"] = paper["dataset"].map(DATA)
    parts = [mine, pd.DataFrame([real]), wide(paper, [*KEYS, by])]
    return pd.concat(parts)[[*KEYS, by, *COLUMNS, "Real"]].reset_index(drop=True)


def table1(profile: Profile) -> pd.DataFrame:
    """Quality against training duration, at one NFE; rows by source, columns the six models."""
    rows = measurements(profile)
    name, par = frechet(rows), profile.evaluation
    rows = rows[(rows["metric"] == name) & (rows["sampler"] == "heun") & (rows["nfe"] == par.duration_nfe)]
    rows = rows.assign(
        training=[f"{d:.0%} ({k:.3g} kimg)" for d, k in zip(rows["duration"], rows["kimg"], strict=True)]
    )
    paper = published(1)
    paper["training"] = [f"{mimg / PUBLISHED_MIMG[-1]:.0%} ({mimg} Mimg)" for mimg in paper["duration_mimg"]]
    return _table(profile, rows, paper, "training")


def table_nfe(profile: Profile, number: int) -> pd.DataFrame:
    """Quality of the fully trained models against NFE: number 2 for EDM's sampler, 3 for DPM-Solver++."""
    rows = measurements(profile)
    sampler = {2: "heun", 3: "dpm-solver++"}[number]
    rows = rows[(rows["metric"] == frechet(rows)) & (rows["sampler"] == sampler) & (rows["duration"] == 1)]
    paper = published(number)
    # The figure has the low NFE; the paper's tables do not.
    rows = rows[rows["nfe"].isin(paper["nfe"]) | (len(set(rows["nfe"]) & set(paper["nfe"])) == 0)]
    return _table(profile, rows, paper, "nfe").rename(columns={"nfe": "NFE"})


def beside(profile: Profile) -> pd.DataFrame:
    """Each published cell of Tables 1 to 3 that is of this profile's data, with what was measured for it.

    Columns: table, model, training (Mimg), sampler, NFE, published, measured, difference, n. Empty for data that the
    paper does not have, and for another distance than FID; a cell without measurement stays empty.
    """
    rows = measurements(profile)
    columns = ["table", "model", "training", "sampler", "NFE", "published", "measured", "difference", "n"]
    if frechet(rows) != "FID":
        return pd.DataFrame(columns=columns)
    parts = []
    for number in (1, 2, 3):
        paper = published(number)
        paper = paper[paper["dataset"] == profile.dataset.name].assign(table=number)
        if number == 1:
            paper = paper.assign(sampler="heun", nfe=profile.evaluation.duration_nfe)
        else:
            paper = paper.assign(sampler={2: "heun", 3: "dpm-solver++"}[number], duration_mimg=PUBLISHED_MIMG[-1])
        parts.append(paper)
    measured = rows[rows["metric"] == "FID"].assign(duration_mimg=rows["kimg"] / 1000)
    keys = ["framework", "kernel", "duration_mimg", "sampler", "nfe"]
    measured = measured.groupby(keys, as_index=False)[["value", "n"]].mean()
    table = pd.concat(parts).astype({"duration_mimg": float}).merge(measured, on=keys, how="left")
    table["model"] = [label(*model) for model in zip(table["framework"], table["kernel"], strict=True)]
    table["difference"] = table["value"] - table["fid"]
    names = {"duration_mimg": "training", "nfe": "NFE", "fid": "published", "value": "measured"}
    return table.rename(columns=names)[columns]


def write_table(table: pd.DataFrame, folder: Path, name: str, caption: str, hidden: tuple[str, ...] = ()) -> None:
    """Write one table as <name>.csv, with ten digits, and as .md and .tex, to be read, without `hidden` columns.

    What differs from the table on record by rounding alone is not written; .md and .tex follow the record.
    """
    if settle_text(folder / f"{name}.csv", rounded(table).to_csv(index=False)):
        table = _as_recorded(table, folder / f"{name}.csv")
    text = shown(table.drop(columns=[*hidden]))
    write_text(folder / f"{name}.md", f"{caption}\n\n{markdown(text)}")
    head = f"\\begin{{table}}[ht]\n\\caption{{{caption}}}\n\\label{{tab:{name}}}\n".replace("%", r"\%")
    write_text(folder / f"{name}.tex", f"{head}{latex(text)}\\end{{table}}\n")


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """A table as strings for people: two decimals, p-values three, and nothing where nothing was measured."""
    return table.apply(lambda column: column.map(_p if str(column.name).split()[0] == "p" else _cell))


def latex(text: pd.DataFrame) -> str:
    """A table of strings in LaTeX, the tabular alone."""
    return (
        text.map(lambda s: s.replace("%", r"\%")).rename(columns=lambda s: s.replace("%", r"\%")).to_latex(index=False)
    )


def _as_recorded(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """A table with the floating-point numbers of its file."""
    recorded, table = pd.read_csv(path), table.reset_index(drop=True)
    for column in table.columns:
        old = recorded[column].tolist()
        new = table[column].astype(object).tolist()
        table[column] = pd.Series(
            [a if isinstance(b, float) else b for a, b in zip(old, new, strict=True)], dtype=object
        )
    return table


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


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
    rows = measurements(profile)
    rows = rows[(rows["metric"] == frechet(rows)) & (rows["sampler"] == "heun") & (rows["duration"] == 1)]
    rows = rows[rows["nfe"] == profile.evaluation.duration_nfe]
    floor = calibration(profile).iloc[0]
    models = {
        label(*key): float(group["value"].mean()) for key, group in rows.groupby(["framework", "kernel"], sort=False)
    }
    told = {frechet(rows): {**models, "real against real": float(floor["value"])}, "n": int(floor["n"])}
    return rounded_value(told)


# ---------------------------------------------------------------------------------------- the published costs


def published_costs() -> pd.DataFrame:
    """`share_of_cost` of each pair in the paper's three tables: table, data, framework, share, known."""
    rows = []
    for number, cost in ((1, "duration_mimg"), (2, "nfe"), (3, "nfe")):
        for (data, framework), part in published(number).groupby(["dataset", "framework"], sort=False):
            pair = part.pivot(index=cost, columns="kernel", values="fid").sort_index()
            share, known = statistics.share_of_cost(pair.index, pair["baseline"], pair["fdm"])
            rows.append({"table": number, "data": DATA[data], "framework": framework.upper(), "share": share,
                         "known": known})  # fmt: skip
    return pd.DataFrame(rows)


def published_loss_by_nfe() -> pd.DataFrame:
    """How much FID grows, in Tables 2 and 3, from the most evaluations to the fewest: a ratio for each model.

    A model that needs fewer steps has a smaller ratio, however good it is at many steps.
    """
    parts = [published(number).assign(table=number) for number in (2, 3)]
    wide_table = pd.concat(parts).pivot(index=["table", "framework", "kernel"], columns="nfe", values="fid")
    ratio = wide_table[min(wide_table)] / wide_table[max(wide_table)]
    return ratio.unstack("kernel").rename_axis(columns=None)
