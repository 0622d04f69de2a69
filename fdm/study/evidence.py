"""Which comparisons of the evidence decide, by the rules of `rules`; written down before its runs were looked at.

Two targets are judged, each by itself: `exact`, where the best denoiser is known, and Fashion-MNIST at 16x16. What is
compared is y = ln(metric) of

    exact       the excess of the denoising error over the optimum, weighted: the mean of EDM's training loss above
                what is possible, over EDM's law of noise levels, for all models alike
    fashion-16  the Frechet distance, extrapolated to infinitely many images: the kind of number that the paper has;
                and the weighted denoising error on the held-out images, which is no primary metric

Primary are, on each target, eight contrasts, at the 95 % level together (Bonferroni; p-values after Holm):

    C3, VP VE EDM   FDM with its warm-up at half of the training, against the baseline at the end
    C4, VP VE EDM   FDM with its warm-up at the end with 9 evaluations, against the baseline with 25 (Heun); on `exact`
                    the metric is the distance to the exact flow's end, solver and network together
    C5              with against without warm-up after a quarter of the training, over both kernels, all frameworks
    kernel          FDM's c_in against the baseline's at the end, over both warm-ups, all frameworks

C5 and the kernel are judged on the weighted denoising error (on `exact`, its excess), as only that is measured in all
twelve cells. A claim is judged where the framework's baseline has learnt: at full training a classifier finds
`LEARNT` times as many of its samples to be of their class as of real images, or its metric is at most twice that of
EDM's baseline. Everything else that is shown, level by level or under a change, is exploratory.

Two primary verdicts rest on two one-sided tests at 5 % each, *nothing to save* and *equivalent*: these do not hold
together; the table says whether they would at 0.05 / 8 each. A pooled error is right where all cells of a framework
scatter alike and their noise has nothing in common. So each primary contrast also has its interval from one value a
seed, which needs neither, and the verdict that follows from it; where the two differ, neither is established.

These last two sentences, the gate of C5 and of the kernel (all three baselines), and the metric in the gate, which is
that of C3, were mended after a statistician had read the rules and seen the first pair, EDM's on `exact`. No margin, no
metric and no contrast was changed.

C3's measure beside its verdict is the horizontal shift: training images with which FDM reaches what the baseline has
reached at the end, over the baseline's; 0.5 is the claim. Where FDM does not get there its curve is extrapolated along
its last doubling, by one doubling more at most, or the shift is refused.
"""

import contextlib
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from fdm.data.sources import SOURCES
from fdm.process.frameworks import EDM, FRAMEWORKS, P_MEAN, P_STD
from fdm.study import intervals, measurements, profiles, rules
from fdm.study.measurements import select
from fdm.study.profiles import USUAL_TOP, Profile
from fdm.study.rules import Estimate

LEARNT, TIMES = 0.8, 2.0  # the gate: share of the real images' accuracy, and times EDM's baseline's error
HALF, EARLY = 0.5, 0.25  # shares of the training that C3 and C5 are about
THIRD = 9, 25  # evaluations that C4 is about: about a third
PRIMARY = 8  # contrasts on a target
HIGH = 5.0  # noise levels from here up are called high
DOUBLING = math.log(2)


def errors(profile: Profile) -> pd.DataFrame:
    """The errors on record of all cells that have been measured."""
    paths = [profile.recorded(cell) / "errors.csv" for cell in profile.cells]
    found = [measurements.read(path) for path in paths if path.is_file()]
    columns = ["cell", "duration", "seed", "quantity", "images", "sigma", "value"]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)


def weighted(rows: pd.DataFrame, quantity: str, lowest: float = 0.0) -> pd.Series:
    """One number a (cell, duration, seed): errors weighted as EDM's training weights and draws noise levels.

    Of held-out images. What noise levels from `lowest` up have in it, where that is given.
    """
    mine = select(rows, quantity=quantity, images="held out")
    table = mine.pivot_table(index=["cell", "duration", "seed"], columns="sigma", values="value")
    sigma = table.columns.to_numpy(float)
    law = np.exp(-(((np.log(sigma) - P_MEAN) / P_STD) ** 2) / 2)  # the levels are evenly spaced in the logarithm
    weight = EDM.weight(torch.tensor(sigma)).numpy() * law / law.sum()
    return (table * weight).loc[:, sigma >= lowest].sum(axis=1, min_count=int((sigma >= lowest).sum()))


def matrix(values: pd.Series, wanted: list[tuple]) -> np.ndarray:
    """ln(values) of some (cell, duration), or (cell, evaluations), (wanted, seeds).

    Raises KeyError for one that was not measured, or not with the seeds of the others.
    """
    sorted_values = values.sort_index().astype(float)
    table = pd.concat([sorted_values.loc[each] for each in wanted], axis=1)
    if table.isna().any(axis=None):
        raise KeyError(f"{wanted} have not all the same seeds")
    return np.log(table.to_numpy().T)


class Judged(NamedTuple):
    """A claim on a target, with the contrasts behind its verdict."""

    claim: str
    framework: str  # a name, or `all`
    estimate: Estimate
    verdict: str
    alone: Estimate  # the estimate from one value a seed
    alone_verdict: str  # and the verdict that follows from such estimates
    baseline: Estimate | None = None  # the baseline at the reduced cost, where it is about that
    full: Estimate | None = None  # FDM at the full cost
    metric: str = ""  # what the ratios are of


def level() -> float:
    """The level of a primary contrast's interval."""
    return 1 - (1 - intervals.LEVEL) / PRIMARY


def saving(
    claim: str, framework: str, values: pd.Series, base: str, fdm: str, reduced: float, whole: float, learnt: bool
) -> Judged:
    """Judge "as good for a fraction of the cost", from values by (cell, cost, seed)."""
    logs = matrix(values, [(base, reduced), (base, whole), (fdm, reduced), (fdm, whole)])
    weights = [np.array(each, float) for each in ((0, -1, 1, 0), (1, -1, 0, 0), (0, -1, 0, 1))]
    pooled, alone = ([make(logs, each) for each in weights] for make in (rules.contrast, rules.paired))
    verdict, other = (
        rules.judge_saving(mine, control, full, learnt, level()) for mine, control, full in (pooled, alone)
    )
    return Judged(claim, FRAMEWORKS[framework].label, pooled[0], verdict, alone[0], other, pooled[1], pooled[2])


def effect(claim: str, values: pd.Series, share: float, weights: dict[str, float], learnt: bool) -> Judged:
    """Judge a contrast of the four cells of each framework, the mean over frameworks, by the end of a cell's name."""
    found, each_seed = [], []
    for framework in FRAMEWORKS:
        cells = [f"{framework}-{end}" for end in weights]
        logs = matrix(values, [(cell, share) for cell in cells])
        found.append(rules.contrast(logs, np.array([*weights.values()], float)))
        seeds = values.sort_index().loc[cells[0], share].index
        each_seed.append(pd.Series(np.array([*weights.values()], float) @ logs, index=seeds))
    pooled, n = rules.mean(found), len(each_seed)
    shared = pd.concat(each_seed, axis=1, join="inner")  # a framework may have more seeds than another
    alone = rules.paired(shared.to_numpy().T, np.full(n, 1 / n))
    verdict, other = (rules.judge_effect(each, learnt, level()) for each in (pooled, alone))
    return Judged(claim, "all", pooled, verdict, alone, other)


WARMUP = {"baseline": -0.5, "fdm": -0.5, "baseline-warmup": 0.5, "fdm-warmup": 0.5}
KERNEL = {"baseline": -0.5, "fdm": 0.5, "baseline-warmup": -0.5, "fdm-warmup": 0.5}


def learnt(profile: Profile, rows: pd.DataFrame, values: pd.Series, framework: str) -> bool:
    """The gate: whether a framework's baseline has learnt by the end, from scores and C3's metric by cell."""
    values, cell = values.sort_index(), f"{framework}-baseline"
    if values.loc[cell, 1.0].mean() <= TIMES * values.loc["edm-baseline", 1.0].mean():
        return True
    sampler, nfe = profile.evaluation.primary
    usual = {"duration": 1.0, "sampler": sampler, "nfe": nfe, "sigma_max": USUAL_TOP}
    mine = select(rows, cell=cell, metric="accuracy", **usual)["value"]
    real = select(measurements.calibration(profile), metric="accuracy")["value"].iloc[0]
    return bool(mine.mean() >= LEARNT * real)


# ---------------------------------------------------------------------------------------------- horizontal shift


def shift(cost: np.ndarray, base: np.ndarray, other: np.ndarray) -> float:
    """ln of the cost at which a curve reaches the baseline's last value over the baseline's last cost.

    `cost` (k,) rises; `base` and `other` are ln(metric) (k,). Interpolated in the logarithms at the first crossing; a
    curve that does not get there goes on along its last doubling, for one doubling at most, and is NaN beyond.
    """
    x, target = np.log(cost), base[-1]
    reached = np.flatnonzero(other <= target)
    if len(reached):
        i = reached[0]
        if i == 0:
            return math.nan  # only a bound is known
        weight = (other[i - 1] - target) / (other[i - 1] - other[i])
        return float(x[i - 1] + weight * (x[i] - x[i - 1]) - x[-1])
    before = int(np.argmin(np.abs(x - (x[-1] - DOUBLING))))
    slope = (other[-1] - other[before]) / (x[-1] - x[before])
    more = (target - other[-1]) / slope if slope < 0 else math.inf
    return float(more) if more <= DOUBLING else math.nan


def shifts(values: pd.Series, base: str, fdm: str) -> tuple[Estimate | None, int]:
    """The mean shift over seeds as a contrast by Student's t, and for how many seeds it was refused."""
    curves = [np.log(values.loc[cell].unstack("duration").sort_index(axis=1)) for cell in (base, fdm)]
    cost = curves[0].columns.to_numpy(float)
    each = [shift(cost, *(curve.loc[seed].to_numpy() for curve in curves)) for seed in curves[0].index]
    known = np.array(each)[~np.isnan(each)]
    refused = len(each) - len(known)
    if refused or len(known) < 2:
        return None, refused
    return rules.paired(known[None], np.ones(1)), 0


# ------------------------------------------------------------------------------------------------------ a target


class Target(NamedTuple):
    """What was measured on a target, of the cells that are on record so far."""

    profile: Profile
    scores: pd.DataFrame
    errors: pd.DataFrame
    quantity: str  # of the denoising error: its excess, where the optimum is known
    loss: pd.Series  # the weighted denoising error by (cell, share, seed)


def target(profile: Profile) -> Target:
    """Read what is on record of a target."""
    here = [cell for cell in profile.cells if (profile.recorded(cell) / "measurements.csv").is_file()]
    tables = [measurements.read(profile.recorded(cell) / "measurements.csv") for cell in here]
    wrong = errors(profile)
    quantity = "excess" if SOURCES[profile.dataset.name].known else "error"
    return Target(profile, pd.concat(tables, ignore_index=True), wrong, quantity, weighted(wrong, quantity))


def judge(target: Target) -> list[Judged]:
    """The primary contrasts of a target that are on record, with their verdicts."""
    profile, rows = target.profile, target.scores
    sampler, nfe = profile.evaluation.primary
    loss = "weighted excess error" if target.quantity == "excess" else "weighted error"
    if target.quantity == "excess":
        ends = select(target.errors, quantity="flow error", sampler=sampler)
        quality, ends = target.loss, ends.set_index(["cell", "nfe", "seed"])["value"]
        metrics = {"C3": loss, "C4": "flow error"}
    else:
        metric = f"{measurements.frechet(rows)}, n to infinity"
        drawn = select(rows, metric=metric, sampler=sampler, sigma_max=USUAL_TOP)
        quality = select(drawn, nfe=nfe).set_index(["cell", "duration", "seed"])["value"]
        ends = select(drawn, duration=1.0).set_index(["cell", "nfe", "seed"])["value"]
        metrics = dict.fromkeys(("C3", "C4"), metric)
    out = []
    for framework in FRAMEWORKS:
        pair = f"{framework}-baseline", f"{framework}-fdm-warmup"
        for claim, values, reduced, whole in (("C3", quality, HALF, 1.0), ("C4", ends, *THIRD)):
            with contextlib.suppress(KeyError):  # what has not been measured has no verdict
                gate = learnt(profile, rows, quality, framework)
                found = saving(claim, framework, values, *pair, reduced, whole, gate)
                out.append(found._replace(metric=metrics[claim]))
    for claim, share, weights in (("C5", EARLY, WARMUP), ("kernel", 1.0, KERNEL)):
        with contextlib.suppress(KeyError):
            gate = all(learnt(profile, rows, quality, framework) for framework in FRAMEWORKS)
            out.append(effect(claim, target.loss, share, weights, gate)._replace(metric=loss))
    return out


def table(judged: list[Judged]) -> pd.DataFrame:
    """Verdicts as a table: ratios with simultaneous 95 % intervals, p after Holm, and seeds that would decide."""
    corrected = intervals.holm(each.estimate.p for each in judged)
    rows = []
    for each, p in zip(judged, corrected, strict=True):
        tolerance = rules.EFFECT if each.claim in ("C5", "kernel") else rules.QUALITY
        low, high = each.estimate.interval(level())
        tested = each.baseline or each.estimate  # what an equivalence would be of
        both = dict(zip(("low, by seed", "high, by seed"), map(math.exp, each.alone.interval(level())), strict=True))
        undecided = each.verdict == "inconclusive"
        rows.append({
            "claim": each.claim, "framework": each.framework, "metric": each.metric, "seeds": each.alone.seeds,
            "ratio": math.exp(each.estimate.value),
            "low": math.exp(low), "high": math.exp(high), "p": p,
            "baseline at the reduced cost": math.exp(each.baseline.value) if each.baseline else math.nan,
            "FDM at the full cost": math.exp(each.full.value) if each.full else math.nan,
            "verdict": each.verdict, **both, "verdict, by seed": each.alone_verdict,
            "equivalent together": "yes" if rules.equivalent(tested, tolerance, 1 - 2 * (1 - level())) else "no",
            "seeds that would decide": (
                rules.seeds_that_decide(each.estimate, tolerance, level()) if undecided else math.nan
            ),
        })  # fmt: skip
    return pd.DataFrame(rows)


def targets(profile: Profile) -> list[Target]:
    """The targets of a profile of the evidence: itself and those beside it, as far as there is a record of them."""
    every = [profile, *map(profiles.find, profile.beside)]
    return [
        target(each) for each in every if any((each.recorded(c) / "measurements.csv").is_file() for c in each.cells)
    ]


def recorded(profile: Profile) -> list[bool]:
    """Of each cell of a profile of the evidence, and of those beside it, whether it is on record."""
    every = [profile, *map(profiles.find, profile.beside)]
    return [(each.recorded(cell) / "measurements.csv").is_file() for each in every for cell in each.cells]


def verdicts(profile: Profile) -> pd.DataFrame:
    """`table` of every target that has all of the published pairs, with the target's name first."""
    parts = []
    for each in targets(profile):
        if judged := judge(each):
            part = table(judged)
            parts.append(part.assign(target=each.profile.profile)[["target", *part.columns]])
    return (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame(columns=["claim", "framework", "target", "verdict"])
    )
