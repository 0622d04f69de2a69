"""From measurements to the paper's tables and to verdicts, by rules written down before looking.

But for one: that a baseline which has not learnt decides nothing was added when VE's was seen, with one seed.

The published numbers are FID on other data sets at another scale; they stand beside the measured ones in every
table, in rows of their own, and are compared with them nowhere.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fdm import kernels, statistics
from fdm.errors import FdmError
from fdm.files import root, write_text
from fdm.profiles import SNAPSHOTS, Profile
from fdm.statistics import Interval

MODELS = [(framework, kernel) for framework in ("vp", "ve", "edm") for kernel in ("baseline", "fdm")]
KEYS = ["source", "data", "metric", "n"]
DATA = {
    "digits": "digits", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "ffhq": "FFHQ", "afhqv2": "AFHQv2",
    "folder": "own images",
}  # fmt: skip
SAMPLERS = {"heun": "Heun", "dpm-solver++": "DPM-Solver++"}
SIGMA_MAX = 80.0  # where the published sampling starts
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
    """The tidy table of all runs of a profile, one row a (run, duration, sampler, NFE, metric).

    Those of an ablation name their cell, and have rows more: see `standard`.
    """
    names = profile.cells or profile.runs
    parts = [read(profile.results / "runs" / name / "measurements.csv") for name in names]
    return pd.concat(parts, ignore_index=True)


def standard(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Frechet distances from the published highest noise level and the first latents, to the first reference."""
    rows = rows[(rows["metric"] == frechet(rows)) & (rows["n"] == profile.evaluation.samples)]
    return rows[(rows["sigma_max"] == SIGMA_MAX) & (rows["latents"] == 0) & (rows["reference"] == 0)]


def published_pair(profile: Profile, framework: str) -> tuple[str, str]:
    """Names of a framework's baseline and of the published method: cells of an ablation, or else runs without seed."""
    return f"{framework}-baseline", f"{framework}-fdm" + ("-warmup" if profile.cells else "")


def values(rows: pd.DataFrame, cell: str, sampler: str, duration: float, nfe: int) -> np.ndarray:
    """Distances of a cell, or of a run without its seed, by rising seed, (seeds,); empty without measurement."""
    mine = rows[rows["run"].str.rpartition("-")[0] == cell]
    at = mine[(mine["sampler"] == sampler) & (mine["duration"] == duration) & (mine["nfe"] == nfe)]
    return at.sort_values("seed")["value"].to_numpy()


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


# ---------------------------------------------------------------------------------------------------- verdicts

CLAIMS = {
    "C1": "A step of the diffusion is a step of stochastic gradient descent",
    "C2": "The critically damped kernel does not oscillate, and decays faster than with any other damping",
    "C3": "Comparable quality for half of the training",
    "C4": "Comparable quality for a third of the sampling steps",
    "C5": "The warm-up of the loss weight makes early training better",
}
UNLEARNT = 10  # times the floor: above it a network has not learnt to draw
SEEDS = 3  # trainings of each model below which nothing is decided
NEGLIGIBLE = 0.9  # a ratio of distances nearer to 1 than this is no gain worth a claim
SIGNIFICANT = 0.05


class Pair(NamedTuple):
    """Distances of a framework's baseline and of the published method, one a seed, at reduced and at full cost."""

    base_reduced: np.ndarray
    base_full: np.ndarray
    fdm_reduced: np.ndarray
    fdm_full: np.ndarray


def judge_cost(pair: Pair, margin: float, floor: float) -> tuple[str, dict[str, Interval]]:
    """The verdict on "as good for a fraction of the cost" (C3, C4), and the paired differences that decide it.

    Differences are from the baseline at full cost, mean over seeds with 95 % intervals. `margin` is the sampling noise
    of one set of images, half the width of the calibration's 95 % range; `floor` the distance of real images.

    undecided        fewer than three seeds; or the baseline has not learnt to draw (its mean is above ten times the
                     floor); or it is not shown to be worse at the reduced cost by more than the margin, so that nothing
                     is to be saved; or none of the following is shown
    reproduced       FDM at the reduced cost is no worse than the baseline at full cost: the interval ends below margin
    partly           it is worse by more than that, the interval beginning above margin; but FDM at full cost is better
                     than the baseline at full cost by more than the margin, the interval ending below -margin
    not reproduced   it is worse by more than the margin, and that is not so
    """
    differences = {
        "baseline, reduced": statistics.mean(pair.base_reduced - pair.base_full),
        "FDM, reduced": statistics.mean(pair.fdm_reduced - pair.base_full),
        "FDM, full": statistics.mean(pair.fdm_full - pair.base_full),
    }
    base, reduced, full = differences.values()
    verdict = "undecided"
    if len(pair.base_full) >= SEEDS and pair.base_full.mean() <= UNLEARNT * floor and base.low > margin:
        if reduced.high <= margin:
            verdict = "reproduced"
        elif reduced.low > margin:
            verdict = "partly" if full.high < -margin else "not reproduced"
    return verdict, differences


def judge_warmup(fdm: Interval, fdm_p: float, baseline: Interval, baseline_p: float) -> str:
    """The verdict on C5, from ratios of distances with warm-up to without, after a quarter of the training.

    `fdm` and `baseline` are the ratios under either kernel, with corrected p-values.

    reproduced       with FDM's kernel the ratio is below 1, p < 0.05
    partly           with the baseline's kernel alone
    not reproduced   with neither, and with FDM's kernel the interval begins above 0.9: a gain of a tenth is excluded
    undecided        none of these, or fewer than three seeds
    """
    if fdm.high < 1 and fdm_p < SIGNIFICANT:
        return "reproduced"
    if baseline.high < 1 and baseline_p < SIGNIFICANT:
        return "partly"
    return "not reproduced" if fdm.low > NEGLIGIBLE else "undecided"


def _claim(key: str, subject: str, verdict: str, numbers: dict[str, Any]) -> dict[str, Any]:
    return {"claim": key, "subject": subject, "verdict": verdict, "numbers": numbers}


def claims_of_kernel() -> list[dict[str, Any]]:
    """C1 and C2, which are about formulas, checked by numbers.

    C1 is reproduced when the two steps agree to 1e-12 for 10,000 random values. C2 has three parts: at critical damping
    the scale never grows or changes sign; its envelope decays at the fastest rate in the end; and it is the first to
    stay below 1 %. Reproduced when all hold, partly when some do. Times are in units of the undamped oscillator.
    """
    rng = np.random.default_rng(0)
    x, eps = rng.normal(size=(2, 10_000))
    alpha, beta = rng.uniform(0.5, 1, 10_000), rng.uniform(0, 1, 10_000)
    error = float(np.abs(kernels.sgd_step(x, eps, alpha, beta) - (alpha * x + beta * eps)).max())
    tau, damping = np.linspace(0, 40, 4001), np.round(np.arange(0.05, 3.001, 0.01), 2)
    critical = kernels.oscillator(tau, 1.0)
    settled = [float(tau[np.flatnonzero(np.abs(kernels.oscillator(tau, z)) >= 0.01)[-1]]) for z in damping]
    rates = kernels.decay_rate(damping)
    fastest, first = float(damping[rates.argmax()]), float(damping[np.argmin(settled)])
    parts = [bool((np.diff(critical) <= 0).all() and (critical > 0).all()), fastest == 1, first == 1]
    verdict = "reproduced" if all(parts) else "partly" if any(parts) else "not reproduced"
    return [
        _claim("C1", "formula", "reproduced" if error < 1e-12 else "not reproduced", {"largest difference": error}),
        _claim("C2", "formula", verdict, {
            "critical damping: falls, and keeps its sign": parts[0],
            "damping ratio of the fastest decay in the end": fastest,
            "damping ratio that is first below 1 %": first,
            "time until below 1 %, that ratio": min(settled),
            "time until below 1 %, critical": settled[int(np.flatnonzero(damping == 1)[0])],
        }),
    ]  # fmt: skip


def claims(profile: Profile) -> dict[str, Any]:
    """Verdicts on C1 to C5 by the rules above, the numbers behind them, and the scale that they hold for.

    C3 compares 50 % with 100 % of the training; C4, for either sampler, the NFE nearest to a third of the largest with
    the largest; C5 the cells with and without warm-up after a quarter of the training, with p-values corrected for the
    number of frameworks and kernels. A framework without both kernels, or without a measurement, has no verdict.
    """
    rows = standard(profile, measurements(profile))
    floor = calibration(profile).iloc[0]
    margin = float(floor["high"] - floor["low"]) / 2
    par, most = profile.evaluation, max(profile.evaluation.nfe)
    third = min(par.nfe, key=lambda nfe: abs(nfe - most / 3))
    out = claims_of_kernel()
    costs = [("C3", "heun", (SNAPSHOTS[1], par.duration_nfe), (1.0, par.duration_nfe))]
    costs += [("C4", sampler, (1.0, third), (1.0, most)) for sampler in ("heun", "dpm-solver++")]
    frameworks = list(dict.fromkeys(rows["framework"]))
    for claim, sampler, reduced, full in costs:
        for framework in frameworks:
            at = [
                values(rows, cell, sampler, *cost)
                for cell in published_pair(profile, framework)
                for cost in (reduced, full)
            ]
            if any(not len(each) for each in at) or len({len(each) for each in at}) > 1:
                continue
            pair = Pair(*at)
            verdict, differences = judge_cost(pair, margin, float(floor["value"]))
            subject = framework.upper() + (f", {SAMPLERS[sampler]}" if claim == "C4" else "")
            means = dict(zip(("baseline, reduced", "baseline, full", "FDM, reduced", "FDM, full"), pair, strict=True))
            numbers = {
                "seeds": len(pair.base_full),
                "mean": {name: float(each.mean()) for name, each in means.items()},
                "difference from baseline, full": {name: each._asdict() for name, each in differences.items()},
                "margin": margin,
                "floor": float(floor["value"]),
            }
            out.append(_claim(claim, subject, verdict, numbers))
    out += _claims_of_warmup(profile, rows, frameworks)
    run = next(iter(profile.runs.values()))
    scale = {
        "data": DATA[profile.dataset.name], "resolution": profile.dataset.resolution, "metric": frechet(rows),
        "n": int(floor["n"]), "kimg": profile.training.budget_kimg if profile.training else None,
        "seeds": int(rows["seed"].nunique()), "warmup_steps": max(r.warmup_steps for r in profile.runs.values()),
        "device": rows["device"].iloc[0], "published networks": run.checkpoint is not None,
    }  # fmt: skip
    return {"profile": profile.profile, "rules": "fdm/study.py", "scale": scale, "claims": out}


def _claims_of_warmup(profile: Profile, rows: pd.DataFrame, frameworks: list[str]) -> list[dict[str, Any]]:
    """C5 of each framework that has all four of kernel x warm-up."""
    at = ("heun", SNAPSHOTS[0], profile.evaluation.duration_nfe)
    logs = {}
    for framework in frameworks:
        for kernel in ("fdm", "baseline"):
            with_it, without = (values(rows, f"{framework}-{kernel}{end}", *at) for end in ("-warmup", ""))
            if len(with_it) and len(with_it) == len(without):
                logs[framework, kernel] = np.log(with_it / without)
    p = dict(zip(logs, statistics.holm(map(statistics.p_value, logs.values())), strict=True))
    out = []
    for framework in frameworks:
        if {(framework, "fdm"), (framework, "baseline")} <= logs.keys():
            ratio = {k: Interval(*np.exp(statistics.mean(logs[framework, k]))) for k in ("fdm", "baseline")}
            args = ratio["fdm"], p[framework, "fdm"], ratio["baseline"], p[framework, "baseline"]
            seeds = len(logs[framework, "fdm"])
            numbers = {"seeds": seeds} | {
                f"ratio with {label(framework, k)}'s kernel": ratio[k]._asdict() | {"p": p[framework, k]} for k in ratio
            }
            verdict = judge_warmup(*args) if seeds >= SEEDS else "undecided"
            out.append(_claim("C5", framework.upper(), verdict, numbers))
    return out


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
