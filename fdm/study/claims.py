"""The verdicts on the paper's claims, by rules written down before looking.

They were committed before the training runs with several seeds were looked at. One rule was added after the result of
VE with a single seed was seen: a baseline that has not learnt decides nothing.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fdm.data.sources import SOURCES
from fdm.params import QUARTERS
from fdm.process import oscillator
from fdm.process.frameworks import FRAMEWORKS
from fdm.samplers import SAMPLERS
from fdm.study import intervals
from fdm.study.intervals import Interval
from fdm.study.measurements import (
    calibration,
    frechet,
    label,
    paired,
    published_pair,
    standard,
    table,
    values,
)
from fdm.study.profiles import Profile

# ---------------------------------------------------------------------------------------------------- verdicts

CLAIMS = {
    "C1": "A step of the diffusion is a step of stochastic gradient descent",
    "C2": "The critically damped kernel does not oscillate, and decays faster than with any other damping",
    "C3": "Comparable quality for half of the training",
    "C4": "Comparable quality for a third of the sampling steps",
    "C5": "The warm-up of the loss weight makes early training better",
}
UNLEARNT = 10  # times the floor: above it a network has not learnt to draw
SEEDS = intervals.FEWEST  # trainings of each model below which nothing is decided
NEGLIGIBLE = 0.9  # a ratio of distances nearer to 1 than this is no gain worth a claim
SIGNIFICANT = 0.05
PAPER = {2: "heun", 3: "dpm-solver++"}  # the samplers of the paper's Tables 2 and 3


class Pair(NamedTuple):
    """Distances of a framework's baseline and of the published method, one a seed, at reduced and at full cost."""

    base_reduced: np.ndarray
    base_full: np.ndarray
    fdm_reduced: np.ndarray
    fdm_full: np.ndarray


def judge_cost(pair: Pair, margin: float, floor: float) -> tuple[str, dict[str, Interval]]:
    """The verdict on "as good for a fraction of the cost" (C3, C4), and the paired differences that decide it.

    Differences are from the baseline at full cost, mean over seeds with 95 % intervals. `margin` is half the width of
    the calibration's 95 % range, by which distances of equal sets of real images differ; `floor` their mean distance.

    undecided        fewer than five seeds; or the baseline has not learnt to draw (its mean is above ten times the
                     floor); or it is not shown to be worse at the reduced cost by more than the margin, so that there
                     was nothing to save; or none of the following is shown
    reproduced       FDM at the reduced cost is no worse than the baseline at full cost: the interval ends below margin
    partly           it is worse by more than that, the interval beginning above margin; but FDM at full cost is better
                     than the baseline at full cost by more than the margin, the interval ending below -margin
    not reproduced   it is worse by more than the margin, and that is not so
    """
    differences = {
        "baseline, reduced": intervals.mean(pair.base_reduced - pair.base_full),
        "FDM, reduced": intervals.mean(pair.fdm_reduced - pair.base_full),
        "FDM, full": intervals.mean(pair.fdm_full - pair.base_full),
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

    reproduced       with FDM's kernel the ratio is below 1, p < 0.05, and a gain of a tenth is not excluded
    partly           that holds with the baseline's kernel alone
    not reproduced   with neither, and with FDM's kernel the interval begins above 0.9: a gain of a tenth is excluded
    undecided        none of these, or fewer than five seeds
    """

    def gains(ratio: Interval, p: float) -> bool:
        return ratio.high < 1 and p < SIGNIFICANT and ratio.low <= NEGLIGIBLE

    if gains(fdm, fdm_p):
        return "reproduced"
    if gains(baseline, baseline_p):
        return "partly"
    return "not reproduced" if fdm.low > NEGLIGIBLE else "undecided"


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    """Numbers for a JSON file, which has no NaN: what is not known is empty."""
    return {key: None if math.isnan(value) else value for key, value in numbers.items()}


def _claim(key: str, subject: str, verdict: str, numbers: dict[str, Any]) -> dict[str, Any]:
    return {"claim": key, "subject": subject, "verdict": verdict, "numbers": numbers}


def claims_of_kernel() -> list[dict[str, Any]]:
    """C1 and C2, which are about formulas, checked by numbers.

    C1 is reproduced when the two steps agree to 1e-12 for 10,000 random values. C2 has three parts: at critical damping
    the scale never grows or changes sign; its envelope decays at the fastest rate in the end; and it is the first to
    stay below 1 %. Reproduced when all hold, partly when some do. Times are in units of the undamped oscillator.
    """
    rng = np.random.default_rng(0)
    x, eps = rng.normal(size=(2, 100))
    pairs = zip(rng.uniform(0.5, 1, 100).tolist(), rng.uniform(0, 1, 100).tolist(), strict=True)  # alpha, beta
    error = max(float(np.abs(oscillator.sgd_step(x, eps, a, b) - (a * x + b * eps)).max()) for a, b in pairs)
    tau, damping = np.linspace(0, 40, 4001), np.round(np.arange(0.05, 3.001, 0.01), 2)
    critical = oscillator.oscillator(tau, 1.0)
    settled = [float(tau[np.flatnonzero(np.abs(oscillator.oscillator(tau, z)) >= 0.01)[-1]]) for z in damping]
    rates = oscillator.decay_rate(damping)
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


def nearest_third(nfe: list[int]) -> int:
    """Of several numbers of evaluations, rising, the one nearest to a third of the largest."""
    return min(nfe, key=lambda each: abs(each - nfe[-1] / 3))


def claims(profile: Profile) -> dict[str, Any]:
    """Verdicts on C1 to C5 by the rules above, the numbers behind them, and the scale that they hold for.

    C3 compares 50 % with 100 % of the training; C4, for either sampler, the NFE nearest to a third of the largest with
    the largest; C5 the cells with and without warm-up after a quarter of the training, with p-values corrected for the
    number of frameworks and oscillator. A framework without both kernels, or without a measurement, has no verdict.
    """
    rows = standard(profile, table(profile))
    floor = calibration(profile).iloc[0]
    margin = float(floor["high"] - floor["low"]) / 2
    par, out = profile.evaluation, claims_of_kernel()
    sampler, nfe = par.primary
    costs = [("C3", sampler, (QUARTERS[1], nfe), (1.0, nfe))]
    for sampler in PAPER.values():
        if several := par.nfe_of(sampler):
            costs.append(("C4", sampler, (1.0, nearest_third(several)), (1.0, several[-1])))
    frameworks = list(dict.fromkeys(rows["framework"]))
    for claim, sampler, reduced, full in costs:
        for framework in frameworks:
            pair = Pair(*paired(
                values(rows, cell, sampler, *cost)
                for cell in published_pair(profile, framework)
                for cost in (reduced, full)
            ))  # fmt: skip
            if not len(pair.base_full):
                continue
            verdict, differences = judge_cost(pair, margin, float(floor["value"]))
            subject = FRAMEWORKS[framework].label + (f", {SAMPLERS[sampler].label}" if claim == "C4" else "")
            means = dict(zip(("baseline, reduced", "baseline, full", "FDM, reduced", "FDM, full"), pair, strict=True))
            numbers = {
                "seeds": len(pair.base_full),
                "mean": {name: float(each.mean()) for name, each in means.items()},
                "difference from baseline, full": {name: _finite(each._asdict()) for name, each in differences.items()},
                "margin": margin,
                "floor": float(floor["value"]),
            }
            out.append(_claim(claim, subject, verdict, numbers))
    out += _claims_of_warmup(profile, rows, frameworks)
    scale = {
        "data": SOURCES[profile.dataset.name].label, "resolution": profile.dataset.resolution, "metric": frechet(rows),
        "n": int(floor["n"]), "kimg": profile.training.budget_kimg if profile.training else None,
        "seeds": int(rows["seed"].nunique()), "warmup_steps": max(r.warmup_steps for r in profile.runs.values()),
        "published networks": not profile.trained,
    }  # fmt: skip
    return {"profile": profile.profile, "rules": "fdm/study/claims.py", "scale": scale, "claims": out}


def _claims_of_warmup(profile: Profile, rows: pd.DataFrame, frameworks: list[str]) -> list[dict[str, Any]]:
    """C5 of each framework that has all four of kernel x warm-up."""
    sampler, nfe = profile.evaluation.primary
    at = (sampler, QUARTERS[0], nfe)
    logs = {}
    for framework in frameworks:
        for kernel in ("fdm", "baseline"):
            ends = ("-warmup", "")
            with_it, without = paired(values(rows, f"{framework}-{kernel}{end}", *at) for end in ends)
            if len(with_it):
                logs[framework, kernel] = np.log(with_it / without)
    p = dict(zip(logs, intervals.holm(map(intervals.p_value, logs.values())), strict=True))
    out = []
    for framework in frameworks:
        if {(framework, "fdm"), (framework, "baseline")} <= logs.keys():
            ratio = {k: Interval(*np.exp(intervals.mean(logs[framework, k]))) for k in ("fdm", "baseline")}
            args = ratio["fdm"], p[framework, "fdm"], ratio["baseline"], p[framework, "baseline"]
            seeds = len(logs[framework, "fdm"])
            numbers = {"seeds": seeds} | {
                f"ratio with {label(framework, k)}'s kernel": _finite(ratio[k]._asdict() | {"p": p[framework, k]})
                for k in ratio
            }
            verdict = judge_warmup(*args) if seeds >= SEEDS else "undecided"
            out.append(_claim("C5", FRAMEWORKS[framework].label, verdict, numbers))
    return out
