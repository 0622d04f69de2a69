"""From measurements to the paper's tables and a verdict, by rules written down before looking.

But for one: that a baseline which has not learnt decides nothing was added when VE's was seen.

The published numbers are FID on other data sets at another scale; they stand beside the measured ones in every
table, in rows of their own, and are compared with them nowhere.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fdm.errors import FdmError
from fdm.files import root, write_text
from fdm.profiles import SNAPSHOTS, Profile

MODELS = [(framework, kernel) for framework in ("vp", "ve", "edm") for kernel in ("baseline", "fdm")]
KEYS = ["source", "data", "metric", "n"]
DATA = {
    "digits": "digits", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "ffhq": "FFHQ", "afhqv2": "AFHQv2",
    "folder": "own images",
}  # fmt: skip
PUBLISHED_MIMG = (50, 100, 150, 200)


def label(framework: str, kernel: str) -> str:
    """A model as the paper writes it: EDM, EDM-FDM."""
    return framework.upper() + ("-FDM" if kernel == "fdm" else "")


COLUMNS = [label(*model) for model in MODELS]


def read(path: Path) -> pd.DataFrame:
    """A CSV file of this study; raises FdmError when it is missing, empty or no table."""
    try:
        return pd.read_csv(path)
    except FileNotFoundError as error:
        raise FdmError(f"{path} is missing; run dvc repro to measure it.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise FdmError(f"{path} is damaged ({error}); run dvc repro to measure it again.") from error


def measurements(profile: Profile) -> pd.DataFrame:
    """The tidy table of all runs of a profile, one row a (run, duration, sampler, NFE, metric)."""
    parts = [read(profile.results / "runs" / name / "measurements.csv") for name in profile.runs]
    return pd.concat(parts, ignore_index=True)


def calibration(profile: Profile) -> pd.DataFrame:
    """The floor of each metric: real images against real images."""
    return read(profile.results / "calibration.csv")


def published(number: int) -> pd.DataFrame:
    """The paper's table 1, 2 or 3, tidy."""
    (path,) = (root() / "results" / "published").glob(f"table{number}_*.csv")
    return read(path)


def losses(profile: Profile, names: Iterable[str] | None = None) -> pd.DataFrame:
    """Training loss of the named runs (of all): images, loss, and what the run is. Empty for published networks."""
    columns = ["images", "loss", "run", "framework", "kernel", "seed"]
    parts = [pd.DataFrame(columns=columns)] if profile.published else []
    for name in [] if profile.published else names or profile.runs:
        run = profile.run(name)
        path = profile.results / "runs" / name / "training" / "plots" / "metrics" / "loss.tsv"
        if not path.is_file():
            raise FdmError(f"{path} is missing; run dvc repro to train {name}.")
        part = pd.read_csv(path, sep="\t").rename(columns={"step": "images"})
        parts.append(part.assign(run=name, framework=run.framework, kernel=run.kernel, seed=run.seed))
    return pd.concat(parts)


def speed(profile: Profile, name: str) -> pd.DataFrame:
    """How fast one run was trained: images, images_per_second, peak_memory_mib, utilisation (a share of the peak)."""
    from fdm import training

    folder = training.speed_folder(profile, name) / "plots" / "metrics"
    parts = [pd.read_csv(folder / f"{key}.tsv", sep="\t").set_index("step")[key] for key in training.SPEED]
    return pd.concat(parts, axis=1).rename_axis("images").reset_index()


def frechet(rows: pd.DataFrame) -> str:
    """The Frechet distance's name in a table of measurements: FID, or FD(extractor)."""
    return rows["metric"].iloc[0]


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


def write_table(table: pd.DataFrame, folder: Path, name: str, caption: str) -> None:
    """Write one table as <name>.csv, in full precision, and as .md and .tex, to be read."""
    write_text(folder / f"{name}.csv", table.to_csv(index=False))
    text = table.map(_cell)
    write_text(folder / f"{name}.md", f"{caption}\n\n{markdown(text)}")
    escaped = text.map(lambda s: s.replace("%", r"\%")).rename(columns=lambda s: s.replace("%", r"\%"))
    write_text(
        folder / f"{name}.tex",
        escaped.to_latex(index=False, caption=caption.replace("%", r"\%"), label=f"tab:{name}", position="ht"),
    )


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def markdown(text: pd.DataFrame) -> str:
    """A table of strings in Markdown, numbers to the right."""
    head = "| " + " | ".join(text.columns) + " |"
    rule = (
        "| "
        + " | ".join(
            "---" if name in (*KEYS[:3], "training", "claim", "framework", "verdict") else "---:"
            for name in text.columns
        )
        + " |"
    )
    rows = ["| " + " | ".join(row) + " |" for row in text.itertuples(index=False)]
    return "\n".join([head, rule, *rows]) + "\n"


# ------------------------------------------------------------------------------------------- the published tables


def share_of_cost(cost: Iterable[float], baseline: Iterable[float], fdm: Iterable[float]) -> tuple[float, str]:
    """Cost at which FDM reaches the baseline's last quality, as a share of the baseline's last cost; how it is known.

    The three go together, by rising cost; quality is a distance, lower is better. Between two costs the distance is
    interpolated linearly in the logarithms of both, so that the first crossing counts. The second value is "="; "at
    most" when FDM is there at the smallest cost already; "never" when it is not at the largest (the share is then NaN).
    """
    x, target, y = np.asarray([*cost], float), [*baseline][-1], np.asarray([*fdm], float)
    if y[0] <= target:
        return x[0] / x[-1], "at most"
    reached = np.flatnonzero(y <= target)
    if not len(reached):
        return math.nan, "never"
    i = reached[0]
    weight = np.log(y[i - 1] / target) / np.log(y[i - 1] / y[i])
    return float(np.exp(np.log(x[i - 1]) + weight * np.log(x[i] / x[i - 1])) / x[-1]), "="


def published_costs() -> pd.DataFrame:
    """`share_of_cost` of each pair in the paper's three tables: table, data, framework, share, known."""
    rows = []
    for number, cost in ((1, "duration_mimg"), (2, "nfe"), (3, "nfe")):
        for (data, framework), part in published(number).groupby(["dataset", "framework"], sort=False):
            pair = part.pivot(index=cost, columns="kernel", values="fid").sort_index()
            share, known = share_of_cost(pair.index, pair["baseline"], pair["fdm"])
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


# ---------------------------------------------------------------------------------------------------- verdicts


UNLEARNT = 10  # times the floor: above it a network has not learnt to draw


def judge(base_half: float, base_full: float, fdm_half: float, fdm_full: float, margin: float, floor: float) -> str:
    """The verdict on "as good for a fraction of the cost", from four Frechet distances, a margin and the floor.

    `base_full` is the baseline at full cost and `base_half` at the reduced one; the same for FDM. A difference
    counts when it is larger than `margin`; `floor` is the distance of real images from other real images.

    undecided        the baseline has not learnt to draw (it is above ten times the floor), or does as well at the
                     reduced cost, so that nothing is to be saved here
    reproduced       FDM at the reduced cost is no worse than the baseline at full cost
    partly           it is worse, but FDM at full cost is better than the baseline at full cost
    not reproduced   none of these
    """
    if base_full > UNLEARNT * floor or base_half <= base_full + margin:
        return "undecided"
    if fdm_half <= base_full + margin:
        return "reproduced"
    if fdm_full < base_full - margin:
        return "partly"
    return "not reproduced"


def verdicts(profile: Profile) -> pd.DataFrame:
    """Claims C3 (half the training) and C4 (a third of the steps) for each framework, with the numbers behind.

    C3 compares 50 % with 100 % of the budget; C4 the NFE nearest to a third of the largest with the largest, with
    Heun's sampler. The margin is half the width of the calibration's 95 % range: two equal sets of images differ by
    as much. A framework without both kernels, or without a measurement at both costs, has no row.
    """
    rows = measurements(profile)
    rows = rows[(rows["metric"] == frechet(rows)) & (rows["sampler"] == "heun")]
    floor = calibration(profile).iloc[0]
    margin = (floor["high"] - floor["low"]) / 2
    most = max(profile.evaluation.nfe)
    third = min(profile.evaluation.nfe, key=lambda nfe: abs(nfe - most / 3))

    def value(framework: str, kernel: str, duration: float, nfe: int) -> float:
        cell = rows[(rows["framework"] == framework) & (rows["kernel"] == kernel)
                    & (rows["duration"] == duration) & (rows["nfe"] == nfe)]  # fmt: skip
        return float(cell["value"].mean())

    out = []
    costs = {
        "C3 half the training": (
            (SNAPSHOTS[1], profile.evaluation.duration_nfe),
            (1.0, profile.evaluation.duration_nfe),
        ),
        "C4 a third of the steps": ((1.0, third), (1.0, most)),
    }
    for claim, (reduced, full) in costs.items():
        for framework in dict.fromkeys(rows["framework"]):
            if set(rows[rows["framework"] == framework]["kernel"]) != {"baseline", "fdm"}:
                continue
            values = [value(framework, kernel, *cost) for kernel in ("baseline", "fdm") for cost in (reduced, full)]
            if any(map(math.isnan, values)):  # of a published network there is only the last checkpoint
                continue
            base_half, base_full, fdm_half, fdm_full = values
            seeds = rows[rows["framework"] == framework]["seed"].nunique()
            out.append(
                {
                    "claim": claim,
                    "framework": framework.upper(),
                    "baseline, reduced": base_half,
                    "baseline, full": base_full,
                    "FDM, reduced": fdm_half,
                    "FDM, full": fdm_full,
                    "margin": margin,
                    "seeds": seeds,
                    "verdict": judge(base_half, base_full, fdm_half, fdm_full, margin, floor["value"]),
                }
            )
    return pd.DataFrame(out)


def summary(profile: Profile) -> dict[str, Any]:
    """The headline numbers for `dvc metrics show`: Frechet distance of each model at full cost, and the floor."""
    rows = measurements(profile)
    rows = rows[(rows["metric"] == frechet(rows)) & (rows["sampler"] == "heun") & (rows["duration"] == 1)]
    rows = rows[rows["nfe"] == profile.evaluation.duration_nfe]
    floor = calibration(profile).iloc[0]
    models = {
        label(*key): float(group["value"].mean()) for key, group in rows.groupby(["framework", "kernel"], sort=False)
    }
    return {frechet(rows): {**models, "real against real": float(floor["value"])}, "n": int(floor["n"])}


# ------------------------------------------------------------------------------------------------------ README


def readme_section(profile: Profile) -> str:
    """The verdicts in Markdown, with what they were measured on, for the README."""
    table = read(profile.results / "tables" / "verdicts.csv")
    floor, side = calibration(profile).iloc[0], profile.dataset.resolution
    budget = f"{profile.training.budget_kimg:g} thousand training images a run" if profile.training else "as published"
    return (
        f"Measured on {DATA[profile.dataset.name]} ({side}×{side}), {budget}: {floor['metric']} at "
        f"n = {floor['n']}, lower is better. Two sets of real images differ by {floor['value']:.2f}.\n\n"
        f"{markdown(table.map(_cell))}"
    )


BEGIN, END = "<!-- verdicts: generated, see CONTRIBUTING.md -->", "<!-- end of verdicts -->"


def readme(profile: Profile) -> str:
    """README.md with its generated section brought up to date."""
    text = (root() / "README.md").read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{readme_section(profile)}\n{END}{after}"
