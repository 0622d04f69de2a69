"""What was measured, and the verdicts on the paper's claims, by rules written down before looking.

They were committed before the trainings with several seeds were looked at. Of one seed of the digits results were known
then, and one rule comes from them: that a baseline which has not learnt decides nothing was added when VE's was seen.

The published numbers are FID on other data sets at another scale; they stand beside the measured ones in every
table, in rows of their own, and are compared with them nowhere.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fdm import kernels, statistics
from fdm.agreement import TEXT
from fdm.errors import FdmError
from fdm.files import root
from fdm.profiles import SNAPSHOTS, Profile
from fdm.statistics import Interval

MODELS = [(framework, kernel) for framework in ("vp", "ve", "edm") for kernel in ("baseline", "fdm")]
DATA = {
    "digits": "digits", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "ffhq": "FFHQ", "afhqv2": "AFHQv2",
    "folder": "own images",
}  # fmt: skip
SAMPLERS = {"heun": "Heun", "dpm-solver++": "DPM-Solver++"}
SIGMA_MAX = 80.0  # where the published sampling starts


def label(framework: str, kernel: str) -> str:
    """A model as the paper writes it: EDM, EDM-FDM."""
    return framework.upper() + ("-FDM" if kernel == "fdm" else "")


def read(path: Path) -> pd.DataFrame:
    """A CSV file of this study; raises FdmError when it is missing, empty or no table."""
    try:
        return pd.read_csv(path, dtype=TEXT)
    except FileNotFoundError as error:
        raise FdmError(f"{path} is missing; run dvc repro to measure it.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise FdmError(f"{path} is damaged ({error}); run dvc repro to measure it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of this study; raises FdmError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FdmError(f"{path} is missing; run dvc repro to make it.") from error
    except ValueError as error:
        raise FdmError(f"{path} is damaged ({error}); run dvc repro to make it again.") from error


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


def values(rows: pd.DataFrame, cell: str, sampler: str, duration: float, nfe: int) -> pd.Series:
    """Distances of a cell, or of a run without its seed, by seed; empty without measurement."""
    mine = rows[rows["run"].str.rpartition("-")[0] == cell]
    at = mine[(mine["sampler"] == sampler) & (mine["duration"] == duration) & (mine["nfe"] == nfe)]
    return at.set_index("seed")["value"].sort_index()


def paired(columns: Iterable[pd.Series]) -> np.ndarray:
    """Several `values` of the seeds that all of them have, (columns, seeds)."""
    return pd.concat([*columns], axis=1, join="inner").to_numpy().T


def calibration(profile: Profile) -> pd.DataFrame:
    """The floor of each metric: real images against real images."""
    return read(profile.results / "calibration.csv")


def published(number: int) -> pd.DataFrame:
    """The paper's table 1, 2 or 3, tidy."""
    (path,) = (root() / "results" / "published").glob(f"table{number}_*.csv")
    return read(path)


def losses(profile: Profile) -> pd.DataFrame:
    """Training losses on record: images, loss, and what the run is; of an ablation those of baseline and method.

    Empty for published networks.
    """
    pairs = [cell for framework in ("vp", "ve", "edm") for cell in published_pair(profile, framework)]
    names = [part for part in profile.parts if part in pairs or not profile.cells] or [*profile.parts]
    parts = [pd.DataFrame(columns=["images", "loss", "run", "framework", "kernel", "seed"])]
    for name in [] if profile.published else names:
        part = read(profile.results / "training" / f"{name}.csv")
        for column in ("framework", "kernel", "seed"):
            part[column] = [getattr(profile.run(run), column) for run in part["run"]]
        parts.append(part)
    return pd.concat(parts[1:] or parts)


def frechet(rows: pd.DataFrame) -> str:
    """The Frechet distance's name in a table of measurements: FID, or FD(extractor)."""
    return rows["metric"].iloc[0]


# ---------------------------------------------------------------------------------------------------- verdicts

CLAIMS = {
    "C1": "A step of the diffusion is a step of stochastic gradient descent",
    "C2": "The critically damped kernel does not oscillate, and decays faster than with any other damping",
    "C3": "Comparable quality for half of the training",
    "C4": "Comparable quality for a third of the sampling steps",
    "C5": "The warm-up of the loss weight makes early training better",
}
UNLEARNT = 10  # times the floor: above it a network has not learnt to draw
SEEDS = statistics.FEWEST  # trainings of each model below which nothing is decided
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

    Differences are from the baseline at full cost, mean over seeds with 95 % intervals. `margin` is half the width of
    the calibration's 95 % range, by which distances of equal sets of real images differ; `floor` their mean distance.

    undecided        fewer than five seeds; or the baseline has not learnt to draw (its mean is above ten times the
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
    error = max(float(np.abs(kernels.sgd_step(x, eps, a, b) - (a * x + b * eps)).max()) for a, b in pairs)
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
            pair = Pair(*paired(
                values(rows, cell, sampler, *cost)
                for cell in published_pair(profile, framework)
                for cost in (reduced, full)
            ))  # fmt: skip
            if not len(pair.base_full):
                continue
            verdict, differences = judge_cost(pair, margin, float(floor["value"]))
            subject = framework.upper() + (f", {SAMPLERS[sampler]}" if claim == "C4" else "")
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
        "data": DATA[profile.dataset.name], "resolution": profile.dataset.resolution, "metric": frechet(rows),
        "n": int(floor["n"]), "kimg": profile.training.budget_kimg if profile.training else None,
        "seeds": int(rows["seed"].nunique()), "warmup_steps": max(r.warmup_steps for r in profile.runs.values()),
        "published networks": profile.published,
    }  # fmt: skip
    return {"profile": profile.profile, "rules": "fdm/study.py", "scale": scale, "claims": out}


def _claims_of_warmup(profile: Profile, rows: pd.DataFrame, frameworks: list[str]) -> list[dict[str, Any]]:
    """C5 of each framework that has all four of kernel x warm-up."""
    at = ("heun", SNAPSHOTS[0], profile.evaluation.duration_nfe)
    logs = {}
    for framework in frameworks:
        for kernel in ("fdm", "baseline"):
            ends = ("-warmup", "")
            with_it, without = paired(values(rows, f"{framework}-{kernel}{end}", *at) for end in ends)
            if len(with_it):
                logs[framework, kernel] = np.log(with_it / without)
    p = dict(zip(logs, statistics.holm(map(statistics.p_value, logs.values())), strict=True))
    out = []
    for framework in frameworks:
        if {(framework, "fdm"), (framework, "baseline")} <= logs.keys():
            ratio = {k: Interval(*np.exp(statistics.mean(logs[framework, k]))) for k in ("fdm", "baseline")}
            args = ratio["fdm"], p[framework, "fdm"], ratio["baseline"], p[framework, "baseline"]
            seeds = len(logs[framework, "fdm"])
            numbers = {"seeds": seeds} | {
                f"ratio with {label(framework, k)}'s kernel": _finite(ratio[k]._asdict() | {"p": p[framework, k]})
                for k in ratio
            }
            verdict = judge_warmup(*args) if seeds >= SEEDS else "undecided"
            out.append(_claim("C5", framework.upper(), verdict, numbers))
    return out
