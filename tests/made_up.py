"""A made-up record of the evidence, with effects that are known, for tests of what is made from it."""

import math

import numpy as np
import pandas as pd

from fdm.study import errors, measure
from fdm.study.profiles import Profile

FD = "FD(EfficientNet-Lite0)"
KERNEL, WARMUP, NOISE = 1.3, 1.0, 0.01  # factors of the denoising error, and the deviation of its logarithm
BASE = {"vp": 0.12, "ve": 0.15, "edm": 0.1}
SLOPE = 0.3  # of the error: (training images)^-SLOPE
SHARES = (0.03125, 0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)


def write_floor(profile: Profile) -> None:
    """A floor from 9 to 11 on record, and a classifier that is right on 98 % of the real images."""
    rows = [
        {"metric": FD, "value": 10.0, "low": 9.0, "high": 11.0},
        {"metric": "KID", "value": 0.01, "low": -0.01, "high": 0.05},
        {"metric": "accuracy", "value": 0.98, "low": 0.97, "high": 0.99},
    ]
    table = pd.DataFrame(rows).assign(n=profile.evaluation.samples, n_reference=898, experiment="of the floor")
    profile.results.mkdir(parents=True, exist_ok=True)
    table.to_csv(profile.results / "calibration.csv", index=False)


def record(profile: Profile, kernel: float = KERNEL, warmup: float = WARMUP, slope: float = SLOPE) -> None:
    """Put scores and errors of every run on record, products of the effects, with noise for every seed and cell."""
    rng = np.random.default_rng(0)
    exact = profile.dataset.name == "exact-gaussians"
    write_floor(profile)
    for cell, params in profile.cells.items():
        scores, wrong = [], []
        for run in profile.runs_of(cell):
            factor = BASE[params.framework] * math.exp(rng.normal(0, NOISE))
            factor *= (kernel if params.kernel == "fdm" else 1) * (warmup if params.warmup_steps else 1)
            context = {
                "cell": cell, "profile": profile.profile, "dataset": profile.dataset.name, "run": run,
                "framework": params.framework, "kernel": params.kernel, "seed": profile.run(run).seed,
            }  # fmt: skip
            origin = {"experiment": f"of {run}", "checkpoint": "0123456789ab", "device": "cpu"}
            for share in SHARES if params.source != "analytic" else (1.0,):
                at = context | {"duration": share, "kimg": 128 * share}
                for sigma in errors.SIGMAS.tolist():
                    value = factor * share**-slope * sigma
                    quantities = ["error", "excess"] if exact else ["error"]
                    wrong += [at | origin | {"quantity": each, "images": "held out", "sigma": sigma, "value": value,
                                             "n": 500} for each in quantities]  # fmt: skip
                radius = {"quantity": "radius slope", "n": 64, "value": 0.0 if params.kernel == "fdm" else 1.0}
                wrong += [at | origin | radius | {"sigma": sigma} for sigma in errors.RADII]
            asked = profile.evaluation.errors
            if asked and cell in (asked.cells or profile.cells):
                for sampler, numbers in asked.solvers.items():
                    at = context | origin | {"duration": 1.0, "kimg": 128.0, "sampler": sampler, "n": asked.latents}
                    kinds = ["solver error", "flow error"] if exact else ["solver error"]
                    wrong += [at | {"quantity": kind, "nfe": nfe, "value": factor * (25 / nfe) ** 2}
                              for nfe in numbers for kind in kinds]  # fmt: skip
            if asked and cell in asked.gradients:
                for share in SHARES[:4]:
                    at = context | origin | {"duration": share, "kimg": 128 * share, "n": 256}
                    wrong += [at | {"quantity": quantity, "ceiling": ceiling, "value": value}
                              for ceiling in errors.CEILINGS
                              for quantity, value in (("gradient norm", 1.0), ("gradient noise", 5.0))]  # fmt: skip
            for setting in measure.settings(profile, run):
                values = {
                    FD: 300 * factor / setting.duration + 90 / setting.nfe, "KID": factor / setting.duration,
                    "accuracy": 0.95, f"{FD}, n to infinity": 200 * factor / setting.duration + 90 / setting.nfe,
                }  # fmt: skip
                at = context | origin | {
                    "duration": setting.duration, "kimg": 128 * setting.duration, "sampler": setting.sampler,
                    "options": setting.text, "nfe": setting.nfe, "sigma_max": setting.sigma_max, "latents": 0,
                    "reference": 0, "n": profile.evaluation.samples, "n_reference": 898, "extractor": "made up",
                }  # fmt: skip
                scores += [at | {"metric": metric, "value": value, "low": value * 0.9, "high": value * 1.1}
                           for metric, value in values.items()]  # fmt: skip
        folder = profile.recorded(cell)
        folder.mkdir(parents=True, exist_ok=True)
        columns = [*measure.CONTEXT, "metric", "value", "low", "high", "n", "n_reference", *measure.ORIGIN]
        table = pd.DataFrame(scores).reindex(columns=list(dict.fromkeys(columns)))
        table.to_csv(folder / "measurements.csv", index=False)
        columns = [*errors.CONTEXT, *errors.MEASURED, *errors.ORIGIN]
        pd.DataFrame(wrong).reindex(columns=columns).to_csv(folder / "errors.csv", index=False)
