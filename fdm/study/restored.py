"""What the comparison of restorations says: whether starting closer helps, whether a shift does, and which kernel.

A training is a unit: its network, its images, their masks and noise are its own, and every system has the same ones.
Differences are paired by training, with Student's 95 % interval over trainings; over all tasks together each training
counts with its mean over the tasks. PSNR decides, in decibels. A difference counts where its interval lies on one side
of 0. Two kernels are equal where the 90 % interval lies within `TOLERANCE`, which is two one-sided tests at 5 %. PSNR
prefers the mean of what is possible to any one possible image, so KID and the classes that a classifier sees stand
beside it. Nothing is corrected for the number of comparisons: they are explored, and not claimed.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from fdm.model.oracle import Mixture
from fdm.process.shift import Steps
from fdm.samplers import SAMPLERS
from fdm.samplers.grids import LogSNR as Geometric
from fdm.study import restoration, rules
from fdm.study.measurements import select
from fdm.study.profiles import Profile, given
from fdm.study.rules import Estimate
from fdm.tasks.physics import Measurement
from fdm.tasks.restoration import ccdf, dossr

TOLERANCE = 0.2  # dB, which is 5 % of the mean squared error
ALL = "all tasks"
HIGHER = {"PSNR": True, "accuracy": True}  # whether more is better, where it is
QUANTITIES = ("PSNR", "SSIM", "residual", "accuracy", "recall", "seconds")


def kid(rows: pd.DataFrame) -> str:
    """The kernel distance in the extractor's space, by its name."""
    return next(each for each in dict.fromkeys(rows["quantity"]) if each.startswith("KID("))


def quality(rows: pd.DataFrame) -> pd.DataFrame:
    """Everything that was measured, by cell, task, system and evaluations: the mean over trainings."""
    mine, index = select(rows, part="restoration"), ["cell", "task", "system", "nfe"]
    table = mine.pivot_table(index=index, columns="quantity", values="value", aggfunc="mean", sort=False)
    return table[[each for each in (*QUANTITIES, kid(rows)) if each in table]].reset_index()


def values(rows: pd.DataFrame, cell: str, quantity: str, nfe: int, task: str = ALL) -> pd.DataFrame:
    """A cell's quantity by system (rows) and training (columns), the mean over tasks where none is named."""
    mine = select(rows, cell=cell, quantity=quantity, part="restoration")
    mine = mine[mine["nfe"].isin([nfe, 0])]
    if task != ALL:
        mine = select(mine, task=task)
    return mine.pivot_table(index="system", columns="seed", values="value", aggfunc="mean", sort=False)


def difference(a: pd.Series, b: pd.Series) -> Estimate | None:
    """a - b, paired by training; None for fewer than two that both have."""
    both = pd.concat([a, b], axis=1).dropna()
    return rules.paired(both.to_numpy().T, np.array([1.0, -1.0])) if len(both) > 1 else None


def told(estimate: Estimate, quantity: str) -> dict[str, Any]:
    """A difference with its interval, and whether it counts."""
    low, high = estimate.interval()
    sign = 1 if HIGHER.get(quantity) else -1
    counts = "better" if min(sign * low, sign * high) > 0 else "worse" if max(sign * low, sign * high) < 0 else ""
    return {"difference": estimate.value, "low": low, "high": high, "counts": counts}


def over(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Each system less the first of its kind, by cell, task, evaluations and quantity."""
    par, out = restoration.of(profile), []
    for cell, about in profile.cells.items():
        names = [each.name for each in par.of(about)]
        tasks = par.tasks_of(about)
        for task in [*tasks, *([ALL] if len(tasks) > 1 else [])]:
            for nfe in par.nfe:
                for quantity in ("PSNR", kid(rows), "accuracy"):
                    table = values(rows, cell, quantity, nfe, task)
                    for name in names[1:]:
                        if not {name, names[0]} <= {*table.index}:
                            continue
                        found = difference(table.loc[name], table.loc[names[0]])
                        if found:
                            row = {"cell": cell, "task": task, "system": name, "nfe": nfe, "quantity": quantity}
                            out.append(row | told(found, quantity))
    columns = ["cell", "task", "system", "nfe", "quantity", "difference", "low", "high", "counts"]
    return pd.DataFrame(out, columns=columns)


def _pairs(profile: Profile) -> list[tuple[str, str, str]]:
    """What networks are given, the cell of the baseline, and FDM's."""
    of_kind = dict[str, dict[str, str]]()
    for name, cell in profile.cells.items():
        of_kind.setdefault(given(cell), {}).setdefault(cell.kernel, name)
    return [(kind, both["baseline"], both["fdm"]) for kind, both in of_kind.items() if len(both) == 2]


def kernels(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """FDM's PSNR less its baseline's with each system, over all tasks together, and its verdict.

    `better` or `worse` where the interval says so, `equal` where the difference is shown to be within the tolerance,
    which both may be; else `undecided`.
    """
    par, out = restoration.of(profile), []
    for kind, plain, fdm in _pairs(profile):
        for nfe in par.nfe:
            tables = [values(rows, cell, "PSNR", nfe) for cell in (fdm, plain)]
            for name in [each.name for each in par.of(profile.cells[plain])]:
                if not all(name in table.index for table in tables):
                    continue
                found = difference(*(table.loc[name] for table in tables))
                if found is None:
                    continue
                row, said = {"given": kind, "system": name, "nfe": nfe}, told(found, "PSNR")
                words = [str(said.pop("counts")), "equal" if rules.equivalent(found, TOLERANCE) else ""]
                out.append(row | said | {"verdict": ", ".join(filter(None, words)) or "undecided"})
    return pd.DataFrame(out, columns=["given", "system", "nfe", "difference", "low", "high", "verdict"])


def against(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Each system less those that the profile sets it against, on networks of the same kernel and for each task."""
    par, out = restoration.of(profile), []
    cells = {(kind, place): pair[place] for kind, *pair in _pairs(profile) for place in (0, 1)}
    kinds = {each.name: each.given for each in par.systems}
    for each in (each for each in par.systems if each.against):
        for place, kernel in enumerate(("baseline", "fdm")):
            for other in each.against:
                both = [cells.get((kinds[name], place)) for name in (each.name, other)]
                if None in both:
                    continue
                mine, theirs = map(str, both)
                tasks = [
                    task for task in par.tasks_of(profile.cells[mine]) if task in par.tasks_of(profile.cells[theirs])
                ]
                for task in tasks:
                    out += _against(rows, par.nfe, (mine, each.name), (theirs, other), task, kernel)
    columns = ["kernel", "task", "system", "other", "nfe", "quantity", "difference", "low", "high", "counts"]
    return pd.DataFrame(out, columns=columns)


def _against(
    rows: pd.DataFrame, nfe: list[int], mine: tuple[str, str], theirs: tuple[str, str], task: str, kernel: str
) -> list[dict[str, Any]]:
    out = []
    for n in nfe:
        for quantity in ("PSNR", kid(rows), "accuracy"):
            tables = [(values(rows, cell, quantity, n, task), name) for cell, name in (mine, theirs)]
            if not all(name in table.index for table, name in tables):
                continue
            found = difference(*(table.loc[name] for table, name in tables))
            if found:
                row = {"kernel": kernel, "task": task, "system": mine[1], "other": theirs[1], "nfe": n}
                out.append(row | {"quantity": quantity} | told(found, quantity))
    return out


def pictures(profile: Profile) -> dict[str, dict[str, Tensor]]:
    """The restorations on record of some images, by cell; see `restoration.compare`."""
    return {cell: load_file(profile.restored(cell).with_suffix(".safetensors")) for cell in profile.cells}


def linear_gaussian(starts: list[float], known: float = 1.3, n: int = 20_000, steps: int = 60) -> pd.DataFrame:
    """CCDF for two pixels of variance 1 and correlation 0.8, of which one is known without noise, by sigma_0.

    Mean and deviation of the other from a start at -2, and how much of the distance to another start is left; and, in
    the last row, those of the posterior. Steps are ancestral and geometric to 0.01, and then to 0.
    """
    from deepinv.physics import Inpainting

    a, covariance = math.sqrt(0.5), 0.8
    axes, spreads = torch.tensor([[[a, a], [a, -a]]]), torch.tensor([[1 + covariance, 1 - covariance]]).sqrt()
    D = Mixture(torch.ones(1), torch.zeros(1, 1, 1, 2), torch.zeros(1), axes=axes, spreads=spreads)
    A = Inpainting((1, 1, 2), mask=torch.tensor([[[1.0, 0.0]]], dtype=torch.float64))
    measurement = Measurement(A, 1.0, torch.tensor([known, 0.0], dtype=torch.float64).expand(n, 1, 1, 2), 0.0)

    def noise(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1 + step % 100_003)
        return torch.randn(n, 1, 1, 2, generator=generator, dtype=torch.float64)

    out = []
    for sigma_0 in starts:
        ends = []
        for start in (-2.0, 2.0):
            x = torch.tensor([known, start], dtype=torch.float64) + sigma_0 * noise(2**20)
            grid = Geometric(0.01, sigma_0, to_zero=True)
            *_, x = ccdf.walk(D, SAMPLERS["ddim"], x, measurement, grid, steps + 1, noise, eta=1.0)
            ends.append(x[..., 1])
        left = float((ends[1] - ends[0]).mean()) / 4
        out.append({"sigma_0": f"{sigma_0:g}", "mean": float(ends[0].mean()), "deviation": float(ends[0].std()),
                    "left of another start": left})  # fmt: skip
    posterior = {"sigma_0": "the posterior", "mean": covariance * known, "deviation": math.sqrt(1 - covariance**2)}
    return pd.DataFrame([*out, posterior])


def on_mixture(steps: list[int], n: int = 100_000, estimate: float = -0.4) -> pd.DataFrame:
    """W1 of DoSSR's samples from the mixture of three, by steps and order, with the exact denoiser of u.

    A denoiser that is not told the estimate draws the mixture, whatever the estimate is.
    """
    mixture = Mixture.reference()
    generator = torch.Generator().manual_seed(0)
    data = mixture.draw(n, generator).flatten().sort().values
    z = torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
    start = torch.full_like(z, estimate)

    def noise(step: int) -> Tensor:
        return torch.randn(z.shape, generator=torch.Generator().manual_seed(step + 1), dtype=torch.float64)

    out = []
    for count in steps:
        grid = Steps(count)
        of = dict(zip(grid.sigma.tolist(), zip(grid.eta, grid.lam, strict=True), strict=True))

        def D(w: Tensor, sigma: Tensor, of: dict = of) -> Tensor:
            eta, lam = of[float(sigma)]
            return mixture((w - eta * estimate) / (1 - eta), lam)

        row: dict[str, Any] = {"evaluations": count}
        for name, order, slope in (("order 1", 1, "published"), ("order 2", 2, "published"),
                                   ("order 3", 3, "published"), ("order 3, slope at s", 3, "at s")):  # fmt: skip
            *_, w = dossr.walk(D, start, z, noise, count, order, slope)
            row[name] = float((w.flatten().sort().values - data).abs().mean())
        out.append(row)
    return pd.DataFrame(out)


def tuned(rows: pd.DataFrame) -> pd.DataFrame:
    """The options that were best on the images for tuning, by cell, task, system and evaluations."""
    mine = select(rows, part="restoration", quantity="PSNR")
    names = {*select(rows, part="tuning")["system"]}
    mine = mine[mine["system"].isin(names) & (mine["seed"] == mine["seed"].min())]
    return mine[["cell", "task", "system", "nfe", "options"]].reset_index(drop=True)
