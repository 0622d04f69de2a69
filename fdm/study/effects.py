"""What an ablation says: tables of effects, costs, noise and bias, from the measurements of all cells."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from fdm.data.sources import SOURCES
from fdm.metrics.distances import JACKKNIFE_T
from fdm.params import QUARTERS, CellParams
from fdm.process.frameworks import FRAMEWORKS
from fdm.samplers import SAMPLERS
from fdm.study import intervals
from fdm.study.claims import PAPER
from fdm.study.intervals import Interval
from fdm.study.measurements import (
    frechet,
    paired,
    primary,
    published,
    published_pair,
    select,
    standard,
    values,
)
from fdm.study.profiles import USUAL, USUAL_TOP, Profile


def design(profile: Profile) -> pd.DataFrame:
    """The cells with what they change, and the number of seeds; a multiplier only where it is used."""
    rows = []
    for name, cell in profile.cells.items():
        used = cell.kernel == "fdm" and (cell.framework != "ve" or cell.ve_multiplier == "as derived")
        rows.append({
            "cell": name, "framework": cell.framework.upper(), "kernel": cell.kernel,
            "m": f"{cell.multiplier:g}" if used else "1" if cell.kernel == "fdm" else "",
            "tau": {"sigma": "linear in sigma", "time": "own time"}[cell.tau] if cell.kernel == "fdm" else "",
            "warm-up steps": cell.warmup_steps, "seeds": len(profile.seeds_of(name)),
        })  # fmt: skip
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------ effects


def comparisons(profile: Profile) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """Framework, question, what is compared, and the weight of each cell's log distance in it.

    First those of kernel x warm-up: the main effects (each averaged over the other factor), their interaction, and both
    together. Then every further cell, which changes one thing in the published method, against that method.
    """
    for f in FRAMEWORKS:
        b, bw, k, kw = (f"{f}-{name}" for name in ("baseline", "baseline-warmup", "fdm", "fdm-warmup"))
        if not {b, bw, k, kw} <= profile.cells.keys():
            continue
        yield f, "input scaling", "FDM's c_in / baseline's", {k: 0.5, kw: 0.5, b: -0.5, bw: -0.5}
        yield f, "warm-up", "with / without", {bw: 0.5, kw: 0.5, b: -0.5, k: -0.5}
        yield f, "interaction", "warm-up's ratio with FDM's c_in / with baseline's", {kw: 1, k: -1, bw: -1, b: 1}
        yield f, "both", "published method / baseline", {kw: 1, b: -1}
        for name, cell in profile.cells.items():
            if cell.framework == f and name not in (b, bw, k, kw):
                question, change = _variation(cell, profile.cells[kw])
                yield f, question, change, {name: 1, kw: -1}


def _variation(cell: CellParams, method: CellParams) -> tuple[str, str]:
    if cell.tau != method.tau:
        return "tau", "framework's own time / linear in sigma"
    if cell.warmup_steps != method.warmup_steps:
        return "warm-up length", f"{cell.warmup_steps} steps / {method.warmup_steps}"
    base = 1 if method.framework == "ve" else method.multiplier  # as published VE ignores it
    return "multiplier", f"m = {cell.multiplier:g} / {base:g}"


def effects(profile: Profile, rows: pd.DataFrame, durations: tuple[float, ...] = (QUARTERS[0], 1.0)) -> pd.DataFrame:
    """Every comparison after a quarter and at the end of the training, as a ratio of distances paired by seed.

    Columns: framework, question, compared, training, ratio, low, high (95 %), p, p (Holm), seeds. A ratio below 1 means
    that the first of the two is better. P-values are corrected for the number of rows.
    """
    rows, out, (sampler, nfe) = standard(profile, rows), [], profile.evaluation.primary
    for framework, question, compared, weights in comparisons(profile):
        for duration in durations:
            at = [values(rows, cell, sampler, duration, nfe) for cell in weights]
            logs = np.array([*weights.values()]) @ np.log(paired(at))
            ratio = np.exp(intervals.mean(logs))
            out.append({
                "framework": framework.upper(), "question": question, "compared": compared,
                "training": f"{duration:.0%}", "ratio": ratio[0], "low": ratio[1], "high": ratio[2],
                "p": intervals.p_value(logs), "seeds": len(logs),
            })  # fmt: skip
    columns = ["framework", "question", "compared", "training", "ratio", "low", "high", "p", "p (Holm)", "seeds"]
    table = pd.DataFrame(out).reindex(columns=columns)
    return table.assign(**{"p (Holm)": intervals.holm(table["p"])})


def cells(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Mean distance of each cell at each quarter of the training, and standard deviations over seeds."""
    rows, out, (sampler, nfe) = standard(profile, rows), [], profile.evaluation.primary
    for cell in profile.cells:
        at = {d: values(rows, cell, sampler, d, nfe) for d in QUARTERS}
        means = {f"{d:.0%}": each.mean() for d, each in at.items()}
        spread = {f"SD, {d:.0%}": at[d].std(ddof=1) for d in (QUARTERS[0], 1.0)}
        out.append({"cell": cell, **means, **spread, "seeds": len(at[1.0])})
    return pd.DataFrame(out)


def from_every_level(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Frechet distances of the last networks of thorough cells from every highest noise level of the sampler."""
    tops = sorted(rows["sigma_max"].unique())
    return primary(profile, rows, cell=profile.evaluation.thorough, duration=1.0, sigma_max=tops)


def highest_noise(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """The sampler's highest noise level: mean distance at each, and the ratio to that at the published 80, by seed."""
    rows, out = from_every_level(profile, rows), []
    for cell in profile.evaluation.thorough:
        table = rows[rows["cell"] == cell].pivot(index="seed", columns="sigma_max", values="value")
        for top, at in table.items():
            logs = np.log(at / table[USUAL_TOP]).to_numpy()
            ratio = np.exp(intervals.mean(logs))
            known = {"ratio to 80": ratio[0], "low": ratio[1], "high": ratio[2], "p": intervals.p_value(logs)}
            out.append({"cell": cell, "sigma_max": top, "distance": at.mean(), **(known if top != USUAL_TOP else {})})
    table = pd.DataFrame(out).reindex(columns=["cell", "sigma_max", "distance", "ratio to 80", "low", "high", "p"])
    table["p (Holm)"] = intervals.holm(table["p"])
    return table


# -------------------------------------------------------------------------------------------------------- costs


def _curves(profile: Profile, rows: pd.DataFrame, framework: str, sampler: str, by: str) -> tuple[np.ndarray, ...]:
    """Costs (c,), and the distances of baseline and published method at them, (seeds, c)."""
    par = profile.evaluation
    costs = QUARTERS if by == "duration" else par.nfe_of(sampler)
    at = [(cost, par.primary[1]) if by == "duration" else (1.0, int(cost)) for cost in costs]
    pair = [values(rows, cell, sampler, *where) for cell in published_pair(profile, framework) for where in at]
    base, fdm = np.split(paired(pair).T, 2, axis=1)
    return np.asarray(costs, float), base, fdm


def formatted_ratio(interval: Interval, known: str, most: float) -> str:
    """A ratio of costs with its interval for people; what is infinite is known only to lie above `most`."""
    value, low, high = (f"> {most:.2f}" if math.isinf(x) else f"{x:.2f}" for x in interval)
    return f"{'≤ ' * (known == 'at most')}{value}" + ("" if math.isnan(interval.low) else f" [{low}, {high}]")


def costs(profile: Profile, rows: pd.DataFrame, by: str, targets: tuple[int, ...]) -> pd.DataFrame:
    """Cost of the published method over the baseline's at equal quality, measured and in the published tables.

    `by` is "duration" (training images, Table 1) or "nfe" (Tables 2 and 3, either sampler); `targets` are the places
    (negative ones from the end) of the baseline's costs whose quality is to be met. Columns: framework, sampler, the
    baseline's cost, ratio with its 95 % interval, how it is known, and the published ratio on each data set at the last
    cost: "> 1" where FDM is not there at the largest published cost, "<=" where it is at the smallest.
    """
    rows, out = standard(profile, rows), []
    samplers = [profile.evaluation.primary[0]] if by == "duration" else list(PAPER.values())
    number = {("nfe", sampler): number for number, sampler in PAPER.items()}
    for framework in FRAMEWORKS:
        for sampler in samplers:
            cost, base, mine = _curves(profile, rows, framework, sampler, by)
            for target in targets:
                ratio, known = intervals.cost_ratio(cost, base, mine, target)
                row = {
                    "framework": framework.upper(), "sampler": SAMPLERS[sampler].label,
                    "baseline's cost": f"{cost[target]:.0%}" if by == "duration" else f"{cost[target]:g}",
                    "ratio": ratio.value, "low": ratio.low, "high": ratio.high, "known": known,
                    "ratio (95 %)": formatted_ratio(ratio, known, cost[-1] / cost[target]),
                }  # fmt: skip
                if target == -1:
                    row |= _published_ratios(number.get((by, sampler), 1), framework)
                out.append(row)
    return pd.DataFrame(out)


def _published_ratios(number: int, framework: str) -> dict[str, str]:
    paper, out = published(number), {}
    for data, part in paper[paper["framework"] == framework].groupby("dataset", sort=False):
        column = "duration_mimg" if number == 1 else "nfe"
        pair = part.pivot(index=column, columns="kernel", values="fid").sort_index()
        cost, curves = pair.index.to_numpy(float), (pair[["baseline"]].T.to_numpy(), pair[["fdm"]].T.to_numpy())
        ratio, known = intervals.cost_ratio(cost, *curves, -1)
        out[f"published, {SOURCES[str(data)].label}"] = formatted_ratio(ratio, known, 1)
    return out


# ---------------------------------------------------------------------------------------------- noise and bias


def noise(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """What moves a distance: standard deviations over trainings, latents, references, and other things beside them.

    For each thoroughly measured cell at the end of the training: mean distance; standard deviation over seeds (one set
    of latents, one reference); over sets of latents and over random halves of the real images, each within a network
    and averaged over seeds as variances; the jackknife's for latents; by how much the best of three sets of latents
    lies below their mean; and the mean difference between the last two checkpoints, without sign.
    """
    fd, out = _of_primary(profile, rows, n=profile.evaluation.samples), []
    for cell in profile.evaluation.thorough:
        mine = select(fd, cell=cell)
        end = mine[mine["duration"] == 1]
        latents = end[end["reference"] == 0].pivot(index="seed", columns="latents", values="value")
        references = end[end["latents"] == 0].pivot(index="seed", columns="reference", values="value")
        first = end[(end["latents"] == 0) & (end["reference"] == 0)].set_index("seed")
        before = mine[mine["duration"] == QUARTERS[-2]].set_index("seed")["value"]
        three = latents.iloc[:, :3]
        out.append({
            "cell": cell, "distance": first["value"].mean(),
            "SD, trainings": first["value"].std(), "SD, latents": math.sqrt(latents.var(axis=1).mean()),
            "SD, references": math.sqrt(references.var(axis=1).mean()),
            "SD, latents by jackknife": float(((first["high"] - first["low"]) / 2 / JACKKNIFE_T).mean()),
            "best of three below mean": (three.mean(axis=1) - three.min(axis=1)).mean(),
            "last two checkpoints": (first["value"] - before).abs().mean(), "seeds": len(first),
        })  # fmt: skip
    return pd.DataFrame(out)


def _of_primary(profile: Profile, rows: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Frechet distances with the sampler and evaluations of Table 1, of all latents, references and n."""
    sampler, nfe = profile.evaluation.primary
    usual = {"sampler": sampler, "nfe": nfe, "options": USUAL, "sigma_max": USUAL_TOP}
    return select(rows, metric=frechet(rows), **usual, **wanted)


def noise_of_ratios(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """What moves the ratio of published method to baseline, at the end of the training, in percent of it.

    Seeds are averaged in logarithms. `trainings` is the standard error over seeds; `latents` and `references` are the
    standard deviations of that mean over sets of latents and over random halves of the real images, which intervals
    over seeds do not hold, as all seeds share one set and one half.
    """
    fd, out = _of_primary(profile, rows, n=profile.evaluation.samples, duration=1.0), []
    for framework in FRAMEWORKS:
        base, mine = (
            fd[fd["cell"] == cell].set_index(["seed", "latents", "reference"])["value"]
            for cell in published_pair(profile, framework)
        )
        logs = np.log(mine / base)
        by_latents = logs.xs(0, level="reference").groupby("latents").mean()
        by_reference = logs.xs(0, level="latents").groupby("reference").mean()
        first = logs.xs((0, 0), level=["latents", "reference"])
        out.append({
            "framework": framework.upper(), "ratio": float(np.exp(first.mean())),
            "trainings (%)": 100 * first.sem(), "latents (%)": 100 * by_latents.std(),
            "references (%)": 100 * by_reference.std(),
        })  # fmt: skip
    return pd.DataFrame(out)


def bias(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Distance against n: the mean over seeds at each n, extrapolated to infinite n, with the interval over seeds.

    The line in 1/n goes through n from that of the tables up. `curvature` is the largest distance of the means from it,
    as a share. The interval holds other trainings, not other latents; the reference keeps its size, and its own bias.
    """
    fd, par, out = _of_primary(profile, rows, duration=1.0, latents=0, reference=0), profile.evaluation, []
    for cell in par.thorough:
        table = select(fd, cell=cell).pivot(index="seed", columns="n", values="value")
        used = table[[n for n in table if n >= par.samples]]
        if used.shape[1] < 2:
            continue  # a line needs two
        limit = intervals.at_infinity(used.columns, used.to_numpy())
        average = used.mean().to_numpy()
        inverse = 1 / used.columns.to_numpy(float)
        fit = limit.mean() + inverse * (inverse @ (average - limit.mean())) / (inverse @ inverse)
        interval = intervals.mean(limit)
        out.append({
            "cell": cell, **{f"n = {n}": value for n, value in table.mean().items()},
            "n → ∞": interval.value, "low": interval.low, "high": interval.high,
            "bias at n": average[0] - interval.value, "curvature": float(np.abs(fit / average - 1).max()),
        })  # fmt: skip
    return pd.DataFrame(out)


def amounts(profile: Profile, rows: pd.DataFrame) -> pd.Series:
    """What the ablation computed: trainings, training images, samples, and network evaluations for them."""
    sets = rows[(rows["metric"] == frechet(rows)) & (rows["reference"] == 0)]
    keys = ["run", "duration", "sampler", "options", "nfe", "sigma_max"]
    sets = sets.groupby(keys, as_index=False)["n"].agg(["max", "size"])
    # One set of samples has a row; those of the metric's noise, many of the first again, one for each part.
    samples = sets["max"] + profile.evaluation.samples * (sets["size"] > 1)
    images = rows.groupby("run")["kimg"].max().sum() * 1000
    numbers = {"trainings": rows["run"].nunique(), "training images": round(images), "samples": int(samples.sum()),
               "evaluations for them": int((samples * sets["nfe"]).sum())}  # fmt: skip
    return pd.Series(numbers, name="number")


# ------------------------------------------------------------------------------------------- the published tables


def published_costs() -> pd.DataFrame:
    """`share_of_cost` of each pair in the paper's three tables: table, data, framework, share, known."""
    rows = []
    for number, cost in ((1, "duration_mimg"), (2, "nfe"), (3, "nfe")):
        for (data, framework), part in published(number).groupby(["dataset", "framework"], sort=False):
            pair = part.pivot(index=cost, columns="kernel", values="fid").sort_index()
            share, known = intervals.share_of_cost(pair.index, pair["baseline"], pair["fdm"])
            where = {"table": number, "data": SOURCES[str(data)].label, "framework": framework.upper()}
            rows.append(where | {"share": share, "known": known})
    return pd.DataFrame(rows)


def published_loss_by_nfe() -> pd.DataFrame:
    """How much FID grows, in Tables 2 and 3, from the most evaluations to the fewest: a ratio for each model.

    A model that needs fewer steps has a smaller ratio, however good it is at many steps.
    """
    parts = [published(number).assign(table=number) for number in (2, 3)]
    wide_table = pd.concat(parts).pivot(index=["table", "framework", "kernel"], columns="nfe", values="fid")
    ratio = wide_table[min(wide_table)] / wide_table[max(wide_table)]
    return ratio.unstack("kernel").rename_axis(columns=None)
