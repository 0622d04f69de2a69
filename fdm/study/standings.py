"""What the comparison of systems says: who is ahead of the first system, and whether that depends on the kernel.

All is in ln(metric) at equal evaluations, so that 0.1 is about ten percent and below 0 is better. A cell's system has
one value for each training, the mean over its reported blocks of latents; an estimate is a contrast of such values,
paired by training, with the residual pooled over the systems of the comparison (`rules.contrast`). The exact denoiser
has no trainings: there a block is what a training is elsewhere. A system counts as better or worse than the first where
the 95 % intervals of its Frechet distances lie on one side of 0 in two of three spaces of features, and in none on the
other. Nothing here is corrected for the number of comparisons: they are explored, not claimed.
"""

import math

import numpy as np
import pandas as pd
import torch

from fdm.files import root
from fdm.model.oracle import Mixture
from fdm.process.frameworks import FRAMEWORKS
from fdm.samplers import GRIDS, SAMPLERS
from fdm.study import rules, systems
from fdm.study.measurements import select
from fdm.study.profiles import Profile, SystemsParams

KERNELS = ("baseline", "fdm")
DRAWN = 20_000  # samples behind a distance on the mixture
DECIDING = 2  # spaces of features that have to agree


def of(profile: Profile) -> SystemsParams:
    """What the profile compares."""
    assert profile.evaluation.systems is not None
    return profile.evaluation.systems


def spaces(rows: pd.DataFrame) -> list[str]:
    """The Frechet distances by name, one a space of features, the extractor's first."""
    return [each for each in dict.fromkeys(rows["quantity"]) if each.startswith("FD(") or each == "FID"]


def values(rows: pd.DataFrame, cell: str, quantity: str, nfe: int) -> pd.DataFrame:
    """A cell's value of a quantity by system (rows) and training (columns), or by block for the exact denoiser."""
    mine = select(rows, cell=cell, quantity=quantity, nfe=nfe, part="systems")
    unit = "seed" if mine["seed"].nunique() > 1 else "block"
    table = mine.pivot_table(index="system", columns=unit, values="value", aggfunc="mean", sort=False)
    return table.dropna()


def quality(rows: pd.DataFrame) -> pd.DataFrame:
    """Everything that was measured, by cell, system and evaluations: the mean over trainings and blocks."""
    mine = select(rows, part="systems")
    index = ["cell", "system", "nfe"]
    table = mine.pivot_table(index=index, columns="quantity", values="value", aggfunc="mean", sort=False)
    seconds = select(mine, quantity="seconds").groupby(index, sort=False)["value"].median()
    return table.assign(seconds=seconds)[[*dict.fromkeys(mine["quantity"])]].reset_index()


def _estimates(table: pd.DataFrame, base: str) -> dict[str, rules.Estimate]:
    """ln(system / base) for every other system of `values`."""
    logs, names = np.log(table.to_numpy()), list(table.index)
    out = {}
    for name in names:
        if name != base:
            weights = np.zeros(len(names))
            weights[names.index(name)], weights[names.index(base)] = 1, -1
            out[name] = rules.contrast(logs, weights)
    return out


def _told(estimate: rules.Estimate) -> dict[str, float]:
    low, high = np.exp(estimate.interval())
    return {"ratio": float(np.exp(estimate.value)), "low": float(low), "high": float(high)}


def ratios(rows: pd.DataFrame, par: SystemsParams) -> pd.DataFrame:
    """Each system over the first, by cell, evaluations and quantity: ratio with its interval, and whether it counts."""
    base, out = par.systems[0].name, []
    distances = [each for each in ("distance", "flow distance") if each in set(rows["quantity"])]
    for cell in dict.fromkeys(select(rows, part="systems")["cell"]):
        for nfe in par.nfe:
            found = {
                quantity: _estimates(table, base)
                for quantity in [*spaces(rows), *distances]
                if base in (table := values(rows, cell, quantity, nfe)).index and len(table) > 1 and table.shape[1] > 1
            }
            for system in next(iter(found.values()), {}):
                signs = [_side(found[space][system]) for space in spaces(rows)]
                counts = next(
                    (word for word, side in (("better", -1), ("worse", 1))
                     if signs.count(side) >= min(DECIDING, len(signs)) and -side not in signs), "",
                )  # fmt: skip
                out += [
                    {"cell": cell, "system": system, "nfe": nfe, "quantity": quantity}
                    | _told(each[system]) | {"counts": counts}
                    for quantity, each in found.items() if system in each
                ]  # fmt: skip
    columns = ["cell", "system", "nfe", "quantity", "ratio", "low", "high", "counts"]
    return pd.DataFrame(out, columns=columns)


def _side(estimate: rules.Estimate) -> int:
    low, high = estimate.interval()
    return -1 if high < 0 else 1 if low > 0 else 0


def pairs(profile: Profile) -> list[tuple[str, str, str]]:
    """Framework, baseline and FDM of each published pair that the profile has."""
    of_kernel = dict[tuple[str, str], str]()
    for name, cell in profile.cells.items():
        if cell.source != "analytic":
            of_kernel.setdefault((cell.framework, cell.kernel), name)
    return [
        (framework, of_kernel[framework, "baseline"], of_kernel[framework, "fdm"])
        for framework in FRAMEWORKS if all((framework, kernel) in of_kernel for kernel in KERNELS)
    ]  # fmt: skip


def interactions(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Whether a system helps FDM more or less than its baseline: the ratio of both ratios over the first system.

    Below 1 it helps FDM more. By framework, evaluations and Frechet distance; `fdm` and `baseline` are the ratios.
    """
    par, out = of(profile), []
    base = par.systems[0].name
    for framework, plain, fdm in pairs(profile):
        for nfe in par.nfe:
            for space in spaces(rows):
                both = [values(rows, cell, space, nfe) for cell in (plain, fdm)]
                if any(base not in table.index or min(table.shape) < 2 for table in both):
                    continue
                alone = [_estimates(table, base) for table in both]
                for name in (each for each in alone[0] if each in alone[1]):
                    plain_one, fdm_one = (each[name] for each in alone)
                    # Twice the mean of the one and of what undoes the other; networks of a seed share their latents
                    # alone, so that errors are not smaller than this.
                    half = rules.mean([fdm_one, plain_one._replace(value=-plain_one.value)])
                    out.append(
                        {"framework": framework.upper(), "system": name, "nfe": nfe, "space": space,
                         "baseline": math.exp(plain_one.value), "fdm": math.exp(fdm_one.value)}
                        | _told(half._replace(value=2 * half.value, error=2 * half.error))
                    )  # fmt: skip
    columns = ["framework", "system", "nfe", "space", "baseline", "fdm", "ratio", "low", "high"]
    return pd.DataFrame(out, columns=columns)


def wide(table: pd.DataFrame, index: list[str], value: str) -> pd.DataFrame:
    """A table with a column for each number of evaluations."""
    columns = [str(nfe) for nfe in sorted(set(table["nfe"]))]
    found = table.pivot_table(index=index, columns="nfe", values=value, sort=False).rename(columns=str)
    return found.reindex(columns=columns).reset_index()


def tuned(rows: pd.DataFrame) -> pd.DataFrame:
    """The options that were best on the first block, by cell, system and evaluations."""
    mine = select(rows, part="tuning")
    if mine.empty:
        return mine[["cell", "system", "nfe", "options", "value"]]
    mine = mine[mine["quantity"] == spaces(mine)[0]]
    best = mine.loc[mine.groupby(["cell", "system", "nfe"], sort=False)["value"].idxmin()]
    return best[["cell", "system", "nfe", "options", "value"]].reset_index(drop=True)


def option(rows: pd.DataFrame, name: str) -> pd.Series:
    """The value of a numeric option in the column of options."""
    return rows["options"].str.extract(rf"\b{name}=([-\d.]+)", expand=False).astype(float)


def crossed(rows: pd.DataFrame) -> pd.DataFrame:
    """Distance to the converged solution by solver and grid: the geometric mean over trainings."""
    mine = select(rows, part="crossed", quantity="distance")
    mine = mine.assign(grid=mine["options"].str.removeprefix("grid="), value=np.log(mine["value"]))
    table = mine.groupby(["cell", "system", "grid", "nfe"], sort=False)["value"].mean()
    return np.exp(table).rename("distance").reset_index()


def w1(profile: Profile) -> pd.DataFrame:
    """W1 between samples and data on the mixture of three, by system and evaluations, with the exact denoiser.

    Tuned systems are tuned on other samples. On images of one pixel bands of a wavelet transform are nothing of their
    own, and the variance of an image's pixels is 0: systems that need them are left out.
    """
    mixture, par, out = Mixture.reference(), of(profile), []
    shown, other = (_mixture_draws(mixture, seed) for seed in (1, 2))
    for each in par.systems:
        if each.sampler in ("ts-ddim", "dcw"):
            continue
        for nfe in par.nfe:
            end = systems.to_zero(each.sampler, nfe)
            if end is None:
                continue
            how = (mixture, each.sampler, nfe, end, each.grid)
            best = min(each.candidates, key=lambda options: _w1(*how, options, other) if each.tune else 0)
            told = ", ".join(f"{key}={value}" for key, value in best.items()) if each.tune else ""
            out.append({"system": each.name, "nfe": nfe, "W1": _w1(*how, best, shown), "options": told})
    return pd.DataFrame(out)


def on_mixture(sampler: str, nfe: list[int], **options: float | str) -> pd.Series:
    """W1 of one sampler on the mixture of three, by evaluations; those that it cannot make are left out."""
    draws = _mixture_draws(Mixture.reference(), 1)
    ends = {n: systems.to_zero(sampler, n) for n in nfe}
    found = {
        n: _w1(Mixture.reference(), sampler, n, end, None, options, draws) for n, end in ends.items() if end is not None
    }
    return pd.Series(found, name="W1").rename_axis("NFE")


def summary(table: pd.DataFrame, mixed: pd.DataFrame, nfe: int) -> pd.DataFrame:
    """Each system in a line: the median ratio over the first at `nfe` evaluations with a network, in how many of all
    comparisons with a network it counts, and in how many it changes FDM otherwise than its baseline."""
    space = table["quantity"].iloc[0]
    of_space = table[(table["quantity"] == space) & ~table["cell"].str.endswith("-exact")]
    told = mixed[mixed["space"] == space]
    out = []
    for system, mine in of_space.groupby("system", sort=False):
        other = told[told["system"] == system]
        out.append({
            "system": system, f"median ratio at {nfe}": mine[mine["nfe"] == nfe]["ratio"].median(),
            "better": int((mine["counts"] == "better").sum()), "worse": int((mine["counts"] == "worse").sum()),
            "of": len(mine), "helps FDM more": int((other["high"] < 1).sum()),
            "helps FDM less": int((other["low"] > 1).sum()), "of pairs": len(other),
        })  # fmt: skip
    return pd.DataFrame(out)


def _mixture_draws(mixture: Mixture, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    data = mixture.draw(DRAWN, generator).flatten().sort().values
    return data, torch.randn(DRAWN, 1, 1, 1, generator=generator, dtype=torch.float64)


def _w1(mixture, sampler, nfe, end, grid, options, draws) -> float:  # type: ignore[no-untyped-def]
    entry, (data, unit) = SAMPLERS[sampler], draws
    levels = GRIDS[grid or entry.grid](0.002, 80.0, end)

    def noise(step: int) -> torch.Tensor:
        return torch.randn(unit.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)

    *_, x = entry.sample(mixture, 80 * unit, levels, entry.steps(nfe, end), noise, **options)
    return float((x.flatten().sort().values - data).abs().mean())


def papers(rows: pd.DataFrame, par: SystemsParams) -> pd.DataFrame:
    """The papers' own numbers beside this study's: the ratio of a system over DDIM, here at the nearest evaluations."""
    published = pd.read_csv(root() / "results" / "published" / "systems.csv")
    mine = ratios(rows, par)
    mine = mine[mine["quantity"] == spaces(rows)[0]]
    out = []
    for each in published.to_dict("records"):
        near = min(par.nfe, key=lambda nfe: abs(nfe - each["nfe"]))
        row = {"system": each["system"], "NFE, theirs": each["nfe"], "FID over": each["fid_over"], "FID": each["fid"],
               "ratio, theirs": each["fid"] / each["fid_over"], "read": each["read"], "NFE, here": near}  # fmt: skip
        for cell in dict.fromkeys(mine["cell"]):
            found = select(mine, system=each["system"], nfe=near, cell=cell)
            row[cell] = found["ratio"].iloc[0] if len(found) else np.nan
        out.append(row)
    return pd.DataFrame(out)
