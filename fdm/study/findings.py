"""What the evidence shows beside its verdicts: level by level, along the training, and under one change at a time.

All of it is exploratory: estimates with 95 % intervals that are not corrected for their number. Ratios are FDM over
baseline, or changed over unchanged, paired by seed, from y = ln(metric); a ratio below 1 is a gain. What has not been
measured is left out.
"""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact

from fdm.process.frameworks import FRAMEWORKS, SIGMA_DATA, coefficients
from fdm.study import evidence, rules
from fdm.study.evidence import HALF, HIGH, KERNEL, WARMUP, Target, matrix
from fdm.study.measurements import select
from fdm.study.profiles import USUAL_TOP
from fdm.study.rules import Estimate

# One change each: what it is called, the cell with it, and the cell without.
CHANGES = [
    ("EDM with c_in = 1", "edm-baseline-one", "edm-baseline"),
    ("EDM with FDM's c_in", "edm-fdm", "edm-baseline"),
    ("EDM with FDM's c_in, of size 1 on average", "edm-fdm-rescaled", "edm-baseline"),
    ("VP with c_in = 1", "vp-baseline-one", "vp-baseline"),
    ("VP with FDM's c_in", "vp-fdm", "vp-baseline"),
    ("VE with FDM's c_in", "ve-fdm", "ve-baseline"),
    ("VE with the input at unit size", "ve-baseline-unit", "ve-baseline"),
    ("VP, told the radius", "vp-baseline-told", "vp-baseline"),
    ("VP-FDM, told the radius", "vp-fdm-told", "vp-fdm"),
    ("VP-FDM, output times the radius", "vp-fdm-gain", "vp-fdm"),
    ("VE, told the radius", "ve-baseline-told", "ve-baseline"),
    ("VP with EDM's c_skip and c_out", "vp-baseline-skip", "vp-baseline"),
    ("VP-FDM with EDM's c_skip and c_out", "vp-fdm-skip", "vp-fdm"),
    ("EDM-FDM, m = 1/2 in place of 2", "edm-fdm-mhalf", "edm-fdm"),
    ("EDM-FDM, m = 1 in place of 2", "edm-fdm-m1", "edm-fdm"),
    ("EDM-FDM, m = 4 in place of 2", "edm-fdm-m4", "edm-fdm"),
]
SURVIVES = 2.0  # times the error at the best learning rate
FAIR = {"slow": "rate x 1/2", "": "rate x 1", "fast": "rate x 2", "wide": "width x 2"}


def pair(values: pd.Series, first: tuple, second: tuple) -> Estimate | None:
    """ln(first / second), paired by seed, with Student's interval; None where there are not two seeds of both."""
    try:
        logs = matrix(values, [first, second])
    except KeyError:
        return None
    return rules.paired(logs, np.array([1.0, -1.0])) if logs.shape[1] > 1 else None


def told(estimate: Estimate) -> dict[str, float]:
    """An estimate as the columns of a table: ratio, low and high (95 %), p and seeds."""
    low, high = estimate.interval()
    ratios = dict(zip(("ratio", "low", "high"), map(math.exp, (estimate.value, low, high)), strict=True))
    return ratios | {"p": estimate.p, "seeds": estimate.seeds}


def _rows(found: Iterable[tuple[dict[str, Any], Estimate | None]]) -> pd.DataFrame:
    return pd.DataFrame([about | told(estimate) for about, estimate in found if estimate])


def by_level(target: Target, cell: str, other: str, share: float = 1.0, images: str = "held out") -> pd.DataFrame:
    """Ratio of denoising errors of two cells at every noise level: sigma, ratio, low, high, p, seeds."""
    rows = select(target.errors, quantity=target.quantity, images=images, duration=share, cell=[cell, other])
    out = []
    for sigma, part in rows.groupby("sigma"):
        out.append(({"sigma": sigma}, pair(part.set_index(["cell", "seed"])["value"], (cell,), (other,))))
    return _rows(out)


def levels(target: Target, share: float = 1.0) -> pd.DataFrame:
    """`by_level` of FDM's c_in against the baseline's, without warm-up, and with the published pair: all frameworks."""
    parts = []
    for framework in FRAMEWORKS:
        for what, end in (("c_in", "fdm"), ("c_in and warm-up", "fdm-warmup")):
            part = by_level(target, f"{framework}-{end}", f"{framework}-baseline", share)
            parts.append(part.assign(framework=framework.upper(), change=what))
    table = pd.concat(parts)
    if "sigma" not in table:
        return pd.DataFrame()
    return table[["framework", "change", *table.columns.difference(["framework", "change"], sort=False)]]


def effects(target: Target) -> pd.DataFrame:
    """Kernel, warm-up and interaction at every snapshot, in the weighted error and in one that weighs no level."""
    metrics = {"weighted": target.loss, "geometric mean over levels": _plain(target)}
    interaction = {"baseline": 1.0, "fdm": -1.0, "baseline-warmup": -1.0, "fdm-warmup": 1.0}
    weights = {"c_in": KERNEL, "warm-up": WARMUP, "interaction": interaction}
    weights |= {"warm-up, baseline's c_in": {"baseline": -1.0, "baseline-warmup": 1.0},
                "warm-up, FDM's c_in": {"fdm": -1.0, "fdm-warmup": 1.0}}  # fmt: skip
    found = []
    shares = sorted({*target.loss.index.get_level_values("duration")})
    for framework, share, (metric, values) in itertools.product(FRAMEWORKS, shares, metrics.items()):
        for question, each in weights.items():
            try:
                logs = matrix(values, [(f"{framework}-{end}", share) for end in each])
                estimate = rules.paired(logs, np.array([*each.values()]))
            except KeyError:
                continue
            about = {"framework": framework.upper(), "question": question, "training": share, "metric": metric}
            found.append((about, estimate))
    return _rows(found)


def _plain(target: Target) -> pd.Series:
    """The geometric mean over all noise levels of the denoising error, by (cell, share, seed): none weighs more."""
    rows = select(target.errors, quantity=target.quantity, images="held out")
    logs = np.log(rows.set_index(["cell", "duration", "seed"])["value"])
    return np.exp(logs.groupby(["cell", "duration", "seed"]).mean())


def cells(target: Target) -> pd.DataFrame:
    """Weighted denoising error of each cell at each snapshot, the geometric mean over seeds, and how many these are."""
    if target.loss.empty:
        return pd.DataFrame()
    means = np.exp(np.log(target.loss).groupby(["cell", "duration"]).mean()).unstack()
    means = means.loc[[cell for cell in target.profile.cells if cell in means.index]]
    named = means.rename(columns=lambda share: f"{share:.3g}")
    seeds = target.loss.xs(1.0, level="duration").groupby("cell").size()
    return named.assign(seeds=seeds).reset_index()


def shifts(target: Target, levels: bool = True) -> pd.DataFrame:
    """Training images with which FDM reaches the baseline's end, over the baseline's: weighted, and by noise level.

    `refused` counts the seeds for which FDM does not get there within one doubling more; then there is no ratio.
    """
    out = []
    for framework in FRAMEWORKS:
        names = f"{framework}-baseline", f"{framework}-fdm-warmup"
        curves: dict[Any, pd.Series] = {"weighted": target.loss}
        rows = select(target.errors, quantity=target.quantity, images="held out", cell=[*names])
        for sigma, part in rows.groupby("sigma") if levels else ():
            curves[sigma] = part.set_index(["cell", "duration", "seed"])["value"]
        for what, values in curves.items():
            if not set(names) <= {*values.index.get_level_values("cell")}:
                continue
            estimate, refused = evidence.shifts(values, *names)
            seeds = values.loc[names[0]].index.get_level_values("seed").nunique()
            row = {"framework": framework.upper(), "level": what, "refused": refused, "seeds": seeds}
            out.append(row | (told(estimate) if estimate else {}))
    return pd.DataFrame(out)


def shifts_weighted(target: Target) -> pd.DataFrame:
    """`shifts` of the weighted error alone."""
    return shifts(target, levels=False)


def why(target: Target) -> pd.DataFrame:
    """One change at a time: ratio of the weighted error, of that at high noise levels, and the radius slope at 80.

    `from high` is the share of the change of the weighted error that is from high noise levels, where it does change.
    """
    part = evidence.weighted(target.errors, target.quantity, HIGH)
    high = select(target.errors, quantity=target.quantity, images="held out", duration=1.0)
    high = np.log(high[high["sigma"] >= HIGH].set_index(["cell", "seed", "sigma"])["value"])
    high = np.exp(high.groupby(["cell", "seed"]).mean())
    slopes = select(target.errors, quantity="radius slope", duration=1.0, sigma=80.0).groupby("cell")["value"].mean()
    out = []
    for change, cell, other in CHANGES:
        whole, above = pair(target.loss, (cell, 1.0), (other, 1.0)), pair(high, (cell,), (other,))
        if whole and above:
            above_told = {
                f"{key}, high": value for key, value in told(above).items() if key in ("ratio", "low", "high")
            }
            slope = {"slope": slopes.get(cell, math.nan), "slope without": slopes.get(other, math.nan)}
            moved, moved_high = (
                each.loc[cell, 1.0].mean() - each.loc[other, 1.0].mean() for each in (target.loss, part)
            )
            low, high_end = whole.interval()
            share = {"from high": moved_high / moved if low * high_end > 0 else math.nan}
            out.append({"change": change} | told(whole) | above_told | share | slope)
    return pd.DataFrame(out)


def slopes(target: Target) -> pd.DataFrame:
    """The radius slope of each cell at the end, mean over seeds, by noise level: 1 is right, 0 is blind."""
    rows = select(target.errors, quantity="radius slope", duration=1.0)
    table = rows.pivot_table(index="cell", columns="sigma", values="value", sort=False)
    order = [cell for cell in target.profile.cells if cell in table.index]
    return table.loc[order].rename(columns=lambda sigma: f"σ = {sigma:g}").reset_index()


def fair(target: Target) -> pd.DataFrame:
    """FDM's c_in against the baseline's at every learning rate and width, and each at its own best rate."""
    found = []
    for framework in FRAMEWORKS:
        best: dict[str, list[tuple[float, str]]] = {"baseline": [], "fdm": []}
        for end, what in FAIR.items():
            names = [f"{framework}-{kernel}{f'-{end}' if end else ''}" for kernel in ("fdm", "baseline")]
            estimate = pair(target.loss, *((name, 1.0) for name in names))
            found.append(({"framework": framework.upper(), "setting": what}, estimate))
            for name, kernel in zip(names, ("fdm", "baseline"), strict=True):
                if estimate and end != "wide":  # by the seeds that all rates have
                    few = target.loss.loc[name, 1.0].sort_index().iloc[:3]
                    best[kernel].append((float(np.log(few).mean()), name))
        if len(best["fdm"]) > 1:
            first, second = (min(best[kernel])[1] for kernel in ("fdm", "baseline"))
            about = {"framework": framework.upper(), "setting": f"each at its best rate (selected): {first}, {second}"}
            few = target.loss[target.loss.index.get_level_values("seed") < 3]
            found.append((about, pair(few, (first, 1.0), (second, 1.0))))
    return _rows(found)


def solver(target: Target) -> pd.DataFrame:
    """Solver error of FDM over its baseline's at equal evaluations; and on an exact target, that of flow errors."""
    found = []
    kinds = ["solver error", "flow error"]
    for (quantity, sampler, nfe), part in select(target.errors, quantity=kinds).groupby(["quantity", "sampler", "nfe"]):
        values = part.set_index(["cell", "seed"])["value"]
        for framework in FRAMEWORKS:
            estimate = pair(values, (f"{framework}-fdm-warmup",), (f"{framework}-baseline",))
            about = {"framework": framework.upper(), "quantity": quantity, "sampler": sampler, "nfe": int(nfe)}
            base = values.get(f"{framework}-baseline")
            if base is not None:
                about["baseline"] = float(np.exp(np.log(base).mean()))
            found.append((about, estimate))
    return _rows(found)


def steps(target: Target) -> pd.DataFrame:
    """Evaluations of FDM over those of its baseline at equal solver error, the mean over levels of error, by seed.

    The levels are the baseline's errors from 15 evaluations to 35, so that a third of them is within what was measured;
    a third is the claim. NaN where FDM's error is not within it.
    """
    out = []
    for (sampler, framework), rows in select(target.errors, quantity="solver error").groupby(["sampler", "framework"]):
        each = []
        for _, part in rows.groupby("seed"):
            curves = part.pivot_table(index="nfe", columns="cell", values="value").sort_index()
            names = [f"{framework}-baseline", f"{framework}-fdm-warmup"]
            if not set(names) <= {*curves}:
                continue
            x = np.log(curves.index.to_numpy(float))
            base, mine = (np.minimum.accumulate(np.log(curves[name].to_numpy())) for name in names)
            inside = (curves.index >= 15) & (curves.index <= 35)
            met = np.interp(-base[inside], -mine, x, left=math.nan, right=math.nan)
            each.append(float((met - x[inside]).mean()))
        if len(each) > 1:
            estimate = rules.paired(np.array([each]), np.ones(1))
            out.append(({"framework": framework.upper(), "sampler": sampler}, estimate))
    return _rows(out)


def distances(target: Target) -> pd.DataFrame:
    """Every metric of the published pairs with the evaluations of Table 1, from every highest noise level: the mean."""
    sampler, nfe = target.profile.evaluation.primary
    rows = select(target.scores, sampler=sampler, nfe=nfe)
    if rows.empty:
        return pd.DataFrame()
    grouped = rows.groupby(["cell", "duration", "sigma_max", "metric"], sort=False)["value"]
    table = grouped.mean().unstack("metric")
    order = ["KID", *[name for name in table if name.endswith("infinity")], "accuracy", "precision", "recall",
             "density", "coverage"]  # fmt: skip
    return (
        table[[name for name in order if name in table]]
        .assign(seeds=grouped.size().unstack("metric").iloc[:, 0])
        .reset_index()
    )


def gradients(target: Target) -> pd.DataFrame:
    """Noise of one image's gradient over its norm, clamped at `ceiling` over unclamped, by cell and snapshot.

    Over the noise levels that training draws; the less, the more a step goes where it should. `unclamped` is the median
    over seeds without a clamp. A seed whose norm cannot be told from 0 has no part in it.
    """
    rows = target.errors[target.errors["quantity"].isin(["gradient noise", "gradient norm"])]
    rows = rows[rows["sigma"].isna()].assign(ceiling=rows["ceiling"].fillna(math.inf))
    if rows.empty:
        return pd.DataFrame()
    table = rows.pivot_table(index=["cell", "duration", "seed", "ceiling"], columns="quantity", values="value")
    wide = (table["gradient noise"] / table["gradient norm"].replace(0, math.nan)).unstack("ceiling").dropna()
    ratio, out = wide.stack().reorder_levels(["cell", "duration", "ceiling", "seed"]), []
    for (cell, duration), part in wide.groupby(level=["cell", "duration"]):
        for ceiling in part.columns.drop(math.inf):
            at = {"cell": cell, "duration": duration, "ceiling": ceiling, "unclamped": part[math.inf].median()}
            out.append((at, pair(ratio, (cell, duration, ceiling), (cell, duration, math.inf))))
    return _rows(out)


def inputs() -> pd.DataFrame:
    """Standard deviation of what each model's network is given, c_in x, and the density of its training's noise levels.

    Columns: framework, kernel, sigma, input, density (of ln sigma); images of standard deviation 0.5.
    """
    import torch

    sigma = torch.logspace(math.log10(0.02), math.log10(80), 200, dtype=torch.float64)
    rows = []
    for framework, process in FRAMEWORKS.items():
        drawn = process.quantiles(20_000).log().numpy()
        density, edges = np.histogram(drawn, bins=60, range=(math.log(0.02), math.log(80)), density=False)
        width = (edges[1] - edges[0]) * len(drawn)
        middles = (edges[1:] + edges[:-1]) / 2
        for kernel in ("baseline", "fdm"):
            c_in = coefficients(framework, kernel, sigma, 2.0).c_in
            rows.append(pd.DataFrame({
                "framework": framework, "kernel": kernel, "sigma": sigma.numpy(),
                "input": (c_in * (sigma**2 + SIGMA_DATA**2).sqrt()).numpy(),
                "density": np.interp(sigma.log().numpy(), middles, density / width),
            }))  # fmt: skip
    return pd.concat(rows)


def rates(target: Target) -> pd.DataFrame:
    """Weighted error by learning rate, the median over seeds, and the largest rate that a training survives.

    It survives where its error is at most `SURVIVES` times that at its best rate; where none that was tried is too
    large, that is said. Of cells named <model>-lr<n>, with a rate of n thousandths.
    """
    table: dict[str, dict[float, float]] = {}
    for name in target.loss.index.get_level_values("cell").unique():
        model, _, rate = str(name).rpartition("-lr")
        if model:
            table.setdefault(model, {})[int(rate) / 1000] = float(target.loss.loc[name, 1.0].median())
    out = []
    for model, errors in table.items():
        top = max(rate for rate, error in errors.items() if error <= SURVIVES * min(errors.values()))
        largest = f"{top:g}" if top < max(errors) else f"at least {top:g}"
        columns = {f"rate {rate:g}": error for rate, error in sorted(errors.items())}
        out.append({"model": model, "largest that survives": largest} | columns)
    return pd.DataFrame(out)


def survival(target: Target) -> pd.DataFrame:
    """How many seeds of a model survive a learning rate without and with the warm-up, and Fisher's exact p.

    A seed survives where its error is at most `SURVIVES` times the least of its model's medians over seeds. Of rates at
    which both were trained.
    """
    alive: dict[tuple[str, float], pd.Series] = {}
    for name in target.loss.index.get_level_values("cell").unique():
        model, _, rate = str(name).rpartition("-lr")
        if model:
            alive[model, int(rate) / 1000] = target.loss.loc[name, 1.0]
    best = {model: min(each.median() for (other, _), each in alive.items() if other == model) for model, _ in alive}
    out = []
    for (model, lr), plain in sorted(alive.items()):
        if (f"{model}-warmup", lr) in alive:
            counts = [
                [int((errors <= SURVIVES * best[name]).sum()), len(errors)]
                for name, errors in ((model, plain), (f"{model}-warmup", alive[f"{model}-warmup", lr]))
            ]
            p = fisher_exact([[count, of - count] for count, of in counts]).pvalue
            without, with_it = (f"{count} of {of}" for count, of in counts)
            out.append({"model": model, "rate": f"{lr:g}", "without": without, "with warm-up": with_it, "p": float(p)})
    return pd.DataFrame(out)


def halves(target: Target) -> pd.DataFrame:
    """What half of the training costs each baseline, and FDM at half over the baseline at half, metric by metric.

    `weighted error, total` has the part in it that no denoiser can remove.
    """
    found = []
    total = evidence.weighted(target.errors, "error")
    usual = select(target.scores, nfe=target.profile.evaluation.primary[1], sigma_max=USUAL_TOP)
    for framework in FRAMEWORKS:
        cell = f"{framework}-baseline"
        values = {"weighted error": target.loss, "weighted error, total": total} | {
            metric: part.set_index(["cell", "duration", "seed"])["value"]
            for metric, part in usual.groupby("metric")
            if metric in ("KID",) or metric.endswith("infinity")
        }
        for metric, series in values.items():
            about = {"framework": framework.upper(), "metric": metric}
            found.append((about | {"compared": "baseline, half / end"}, pair(series, (cell, HALF), (cell, 1.0))))
            both = pair(series, (f"{framework}-fdm-warmup", HALF), (cell, HALF))
            found.append((about | {"compared": "FDM / baseline, both at half"}, both))
    return _rows(found)


def dimensions(target: Target) -> pd.DataFrame:
    """How the radius matters in this many dimensions: slopes at 80, what a blind network leaves, and FDM's ratio there.

    `left` is 80 / sqrt(2 d): the noise that remains of a latent whose radius is not seen, in units of a pixel.
    """
    at = select(target.errors, quantity="radius slope", sigma=80.0, duration=1.0).groupby("cell")["value"].mean()
    d = target.profile.dataset.resolution**2
    out: dict[str, Any] = {"d": d, "left": 80 / math.sqrt(2 * d)}
    out |= {f"slope, {name}": at.get(f"{name}", math.nan) for name in ("edm-baseline", "vp-baseline", "vp-fdm")}
    ratio = pair(target.loss, ("vp-fdm", 1.0), ("vp-baseline", 1.0))
    return _rows([(out, ratio)])


TABLES = {
    make.__name__: make
    for make in (levels, effects, cells, shifts, shifts_weighted, why, slopes, fair, solver, steps, distances,
                 gradients, rates, survival, halves, dimensions)
}  # fmt: skip


def together(name: str, targets: list[Target]) -> pd.DataFrame:
    """A table of `TABLES` of all targets, one below the other, with the target's name in the first column."""
    parts = [TABLES[name](target).assign(target=target.profile.profile) for target in targets]
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=["target"])
    table = pd.concat(parts, ignore_index=True)
    return table[["target", *table.columns.difference(["target"], sort=False)]]
