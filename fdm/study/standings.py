"""What the comparison of systems says: who is ahead of the first system, and whether that depends on the kernel.

The metric is KID in up to three spaces of features, which is unbiased at any number of samples. All is in
y = ln(max(KID, 0) + c) at equal evaluations, where c is what 19 of 20 sets of real images stay below: it keeps what is
as good as real images from counting. So 0.1 is about ten percent, and below 0 is better.

A training is a unit: its network and its latents are its own, and every system has the same ones. An estimate is the
mean of a contrast over the trainings, with Student's interval of their spread (`rules.paired`). A system counts as
better or worse than the first where the 95 % intervals lie on one side of 0 in two of three spaces, and in none on the
other. Nothing is corrected for the number of comparisons: they are explored, not claimed, and `expected` says how many
chance makes.
"""

import math

import numpy as np
import pandas as pd
import torch

from fdm.files import root
from fdm.model.oracle import Mixture
from fdm.process.frameworks import FRAMEWORKS
from fdm.samplers import GRIDS, SAMPLERS
from fdm.study import rules, systems, tables
from fdm.study.measurements import select
from fdm.study.profiles import Profile, SystemsParams
from fdm.study.rules import Estimate

KERNELS = ("baseline", "fdm")
DRAWN = 20_000  # samples behind a distance on the mixture
DECIDING = 2  # spaces of features that have to agree
QUANTILE = 0.95  # of real images, for c
DISTANCES = ("distance", "flow distance")  # to converged samples
TAIL = 0.025  # chance of an interval on one side

Apart = dict[tuple[str, str, int], pd.DataFrame]  # see `apart`


def of(profile: Profile) -> SystemsParams:
    """What the profile compares."""
    assert profile.evaluation.systems is not None
    return profile.evaluation.systems


def spaces(rows: pd.DataFrame) -> list[str]:
    """The kernel distances by name, one a space of features, the extractor's first."""
    return [each for each in dict.fromkeys(rows["quantity"]) if each.startswith("KID(")]


def floors(rows: pd.DataFrame) -> dict[str, float]:
    """c of each space: what 19 of 20 sets of real images stay below."""
    real = select(rows, part=systems.FLOOR)
    return {space: float(select(real, quantity=space)["value"].abs().quantile(QUANTILE)) for space in spaces(rows)}


def apart(rows: pd.DataFrame) -> Apart:
    """What was measured of systems, by cell, quantity and evaluations: values by system (rows) and training (columns).

    Of kernel distances and of those to converged samples.
    """
    keys = ["cell", "quantity", "nfe"]
    mine = select(rows, part="systems", quantity=[*spaces(rows), *DISTANCES])
    mine = mine.groupby([*keys, "system", "seed"], sort=False)["value"].mean()
    parts = mine.groupby(level=keys, sort=False)
    return {key: each.droplevel(keys).unstack(sort=False).dropna() for key, each in parts}


def values(found: Apart, cell: str, quantity: str, nfe: int, floor: float | None = None) -> pd.DataFrame:
    """ln of a cell's quantity by system (rows) and training (columns); of a KID with its floor."""
    table = found.get((cell, quantity, nfe), pd.DataFrame())
    return np.log(table if floor is None else table.clip(lower=0) + floor)


def quality(rows: pd.DataFrame) -> pd.DataFrame:
    """Everything that was measured, by cell, system and evaluations: the mean over trainings, seconds their median."""
    mine, index = select(rows, part="systems"), ["cell", "system", "nfe"]
    table = mine.pivot_table(index=index, columns="quantity", values="value", aggfunc="mean", sort=False)
    seconds = select(mine, quantity="seconds").groupby(index, sort=False)["value"].median()
    return table.assign(seconds=seconds)[[*dict.fromkeys(mine["quantity"])]].reset_index()


def over(table: pd.DataFrame, system: str, base: str) -> Estimate | None:
    """ln(system / base) from `values`, paired by training; None where one of both is missing."""
    if not {system, base} <= {*table.index} or table.shape[1] < 2:
        return None
    return rules.paired(table.loc[[system, base]].to_numpy(), np.array([1.0, -1.0]))


def between(
    found: Apart, mine: tuple[str, str], theirs: tuple[str, str], quantity: str, nfe: int, c: float
) -> Estimate | None:
    """ln of the ratio of two cells, each by its system, paired by training; None where one of both is missing."""
    both = {}
    for key, (cell, system) in (("mine", mine), ("theirs", theirs)):
        table = values(found, cell, quantity, nfe, c)
        if system not in table.index:
            return None
        both[key] = table.loc[system]
    return over(pd.DataFrame(both).dropna().T, "mine", "theirs")


def told(estimate: Estimate | None) -> dict[str, float]:
    """Ratio and 95 % interval of an estimate of ln(ratio)."""
    if estimate is None:
        return {"ratio": math.nan, "low": math.nan, "high": math.nan}
    low, high = np.exp(estimate.interval())
    return {"ratio": math.exp(estimate.value), "low": float(low), "high": float(high)}


def side(estimate: Estimate | None) -> int:
    """-1 for an interval below 0, which is better, 1 for one above it, else 0."""
    if estimate is None:
        return 0
    low, high = estimate.interval()
    return -1 if high < 0 else 1 if low > 0 else 0


def verdict(estimates: list[Estimate | None]) -> str:
    """`better` or `worse`, where enough spaces say so and none the opposite; else nothing."""
    signs = [side(each) for each in estimates]
    for word, sign in (("better", -1), ("worse", 1)):
        if signs.count(sign) >= min(DECIDING, len(signs)) and -sign not in signs:
            return word
    return ""


def ratios(rows: pd.DataFrame, par: SystemsParams) -> pd.DataFrame:
    """Each system over the first, by cell, evaluations and quantity: ratio with its interval, and whether it counts."""
    base, c, known, out = par.systems[0].name, floors(rows), apart(rows), []
    distances = [each for each in DISTANCES if each in set(rows["quantity"])]
    for cell in dict.fromkeys(select(rows, part="systems")["cell"]):
        for nfe in par.nfe:
            table = {each: values(known, cell, each, nfe, c.get(each)) for each in [*c, *distances]}
            for system in (each for each in next(iter(table.values())).index if each != base):
                found = {each: over(table[each], system, base) for each in table}
                counts = verdict([found[space] for space in c])
                out += [
                    {"cell": cell, "system": system, "nfe": nfe, "quantity": each} | told(one) | {"counts": counts}
                    for each, one in found.items()
                ]  # fmt: skip
    columns = ["cell", "system", "nfe", "quantity", "ratio", "low", "high", "counts"]
    return pd.DataFrame(out, columns=columns)


def pairs(profile: Profile) -> list[tuple[str, str, str]]:
    """Framework, baseline and FDM of each pair that the profile has: the first cell of each kernel."""
    of_kernel = dict[tuple[str, str], str]()
    for name, cell in profile.cells.items():
        if cell.source != "analytic":
            of_kernel.setdefault((cell.framework, cell.kernel), name)
    return [
        (framework, of_kernel[framework, "baseline"], of_kernel[framework, "fdm"])
        for framework in FRAMEWORKS if all((framework, kernel) in of_kernel for kernel in KERNELS)
    ]  # fmt: skip


def both(found: Apart, plain: str, fdm: str, space: str, nfe: int, c: float) -> pd.DataFrame:
    """`values` of both cells, by (cell, system), of the trainings that both have."""
    each = {cell: values(found, cell, space, nfe, c) for cell in (plain, fdm)}
    return pd.concat(each, join="inner", axis=0).dropna(axis=1)


def kernels(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """FDM over its baseline with each system, by framework and evaluations, and whether that counts."""
    c, known, out = floors(rows), apart(rows), []
    for framework, plain, fdm in pairs(profile):
        for nfe in of(profile).nfe:
            table = {space: both(known, plain, fdm, space, nfe, floor) for space, floor in c.items()}
            first = next(iter(table.values()))
            for system in dict.fromkeys(first.index.get_level_values(1)):
                found = {space: over(each, (fdm, system), (plain, system)) for space, each in table.items()}  # type: ignore[arg-type]
                row = {"framework": framework.upper(), "system": system, "nfe": nfe}
                out.append(row | told(next(iter(found.values()))) | {"counts": verdict([*found.values()])})
    columns = ["framework", "system", "nfe", "ratio", "low", "high", "counts"]
    return pd.DataFrame(out, columns=columns)


def interactions(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Whether a system helps FDM more or less than its baseline: the ratio of both ratios over the first system.

    Below 1 it helps FDM more. By framework and evaluations, paired by the seed that both kernels have, in the
    extractor's space; `counts` is of all spaces. `baseline` and `fdm` are the ratios.
    """
    c, known, out, base = floors(rows), apart(rows), [], of(profile).systems[0].name
    for framework, plain, fdm in pairs(profile):
        for nfe in of(profile).nfe:
            table = {space: both(known, plain, fdm, space, nfe, floor) for space, floor in c.items()}
            names = dict.fromkeys(next(iter(table.values())).index.get_level_values(1))
            for system in (each for each in names if each != base):
                found, places = [], [(fdm, system), (fdm, base), (plain, system), (plain, base)]
                for each in table.values():
                    whole = each.shape[1] > 1 and set(places) <= set(each.index)
                    logs = each.loc[places].to_numpy() if whole else None
                    found.append(rules.paired(logs, np.array([1.0, -1.0, -1.0, 1.0])) if logs is not None else None)
                first = next(iter(table.values()))
                if found[0] is not None:
                    means = np.exp([(first.loc[a] - first.loc[b]).mean() for a, b in (places[2:], places[:2])])
                    row = {"framework": framework.upper(), "system": system, "nfe": nfe}
                    row |= {"baseline": means[0], "fdm": means[1]} | told(found[0])
                    words = {"better": "more", "worse": "less", "": ""}
                    out.append(row | {"counts": words[verdict(found)]})
    columns = ["framework", "system", "nfe", "baseline", "fdm", "ratio", "low", "high", "counts"]
    return pd.DataFrame(out, columns=columns)


def against(rows: pd.DataFrame, par: SystemsParams) -> pd.DataFrame:
    """Systems over others than the first, by cell and evaluations: over a control, or over what they stand on.

    Beside it both over the first: where neither differs from that, they are alike for no other reason.
    """
    base, c, known, out = par.systems[0].name, floors(rows), apart(rows), []
    for cell in dict.fromkeys(select(rows, part="systems")["cell"]):
        for nfe in par.nfe:
            table = {space: values(known, cell, space, nfe, floor) for space, floor in c.items()}
            for each in par.systems:
                for other in each.against:
                    found = [over(one, each.name, other) for one in table.values()]
                    if not found or found[0] is None:
                        continue
                    row = {"cell": cell, "system": each.name, "other": other, "nfe": nfe}
                    first = next(iter(table.values()))
                    row |= {"over the first": told(over(first, each.name, base))["ratio"],
                            "other over the first": told(over(first, other, base))["ratio"]}  # fmt: skip
                    out.append(row | told(found[0]) | {"counts": verdict(found)})
    columns = [
        "cell",
        "system",
        "other",
        "nfe",
        "over the first",
        "other over the first",
        "ratio",
        "low",
        "high",
        "counts",
    ]
    return pd.DataFrame(out, columns=columns)


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """`against` counted: in how many comparisons one is ahead of the other, and their median ratios."""
    found = table.groupby(["system", "other"], sort=False)
    return pd.DataFrame({
        "comparisons": found.size(), "better": found["counts"].apply(lambda each: int((each == "better").sum())),
        "worse": found["counts"].apply(lambda each: int((each == "worse").sum())),
        "median ratio": found["ratio"].median(), "median over the first": found["over the first"].median(),
        "other's": found["other over the first"].median(),
    }).reset_index()  # fmt: skip


def wide(table: pd.DataFrame, index: list[str], value: str) -> pd.DataFrame:
    """A table with a column for each number of evaluations."""
    columns = [str(nfe) for nfe in sorted(set(table["nfe"]))]
    found = table.pivot_table(index=index, columns="nfe", values=value, sort=False).rename(columns=str)
    return found.reindex(columns=columns).reset_index()


def tuned(rows: pd.DataFrame) -> pd.DataFrame:
    """The options that were best on the latents for tuning, by cell, system and evaluations."""
    mine = select(rows, part="systems", seed=rows["seed"].min())
    names = set(select(rows, part="tuning")["system"])
    mine = mine[mine["system"].isin(names)].drop_duplicates(["cell", "system", "nfe"])
    return mine[["cell", "system", "nfe", "options"]].reset_index(drop=True)


def option(rows: pd.DataFrame, name: str) -> pd.Series:
    """The value of a numeric option in the column of options."""
    return rows["options"].str.extract(rf"\b{name}=([-\d.e]+)", expand=False).astype(float)


def crossed(rows: pd.DataFrame) -> pd.DataFrame:
    """Distance to the converged solution by solver and grid: the geometric mean over trainings."""
    mine = select(rows, part="crossed", quantity="distance")
    mine = mine.assign(grid=mine["options"].str.removeprefix("grid="), value=np.log(mine["value"]))
    table = mine.groupby(["cell", "system", "grid", "nfe"], sort=False)["value"].mean()
    return np.exp(table).rename("distance").reset_index()


def summary(table: pd.DataFrame, mixed: pd.DataFrame, nfe: int) -> pd.DataFrame:
    """Each system in a line: the median ratio over the first at `nfe` evaluations with a network, in how many of all
    comparisons with a network it counts, and in how many it changes FDM otherwise than its baseline."""
    space = table["quantity"].iloc[0] if len(table) else ""
    of_space = table[(table["quantity"] == space) & ~table["cell"].str.endswith("-exact")]
    out = []
    for system, mine in of_space.groupby("system", sort=False):
        other = mixed[mixed["system"] == system]
        out.append({
            "system": system, f"median ratio at {nfe}": mine[mine["nfe"] == nfe]["ratio"].median(),
            "better": int((mine["counts"] == "better").sum()), "worse": int((mine["counts"] == "worse").sum()),
            "of": len(mine), "helps FDM more": int((other["counts"] == "more").sum()),
            "helps FDM less": int((other["counts"] == "less").sum()), "of pairs": len(other),
        })  # fmt: skip
    return pd.DataFrame(out)


def expected(comparisons: int) -> float:
    """How many of so many comparisons would count on one side by chance alone, if one space decided."""
    return TAIL * comparisons


def alike(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The rows of a summary of the systems whose names begin like that, as strings for people."""
    return tables.shown(table[table["system"].str.startswith(names)])


# ------------------------------------------------------------------------------------------------ the mixture


def on_mixture(sampler: str, nfe: list[int], grid: str | None = None, **options: float | str) -> pd.Series:
    """W1 of one sampler on the mixture of three, by evaluations; those that it cannot make are left out."""
    draws = _draws(1)
    found = {n: _w1(sampler, n, grid, False, options, draws) for n in nfe if systems.possible(sampler, n)}
    return pd.Series(found, name="W1").rename_axis("NFE")


def w1(profile: Profile) -> pd.DataFrame:
    """W1 between samples and data on the mixture of three, by system and evaluations, with the exact denoiser.

    Tuned systems are tuned on other samples. An image of one pixel has no bands but the low one, so that averages are
    those of all bands and DCW is its form in the pixels; it has no variance, so that shifted time steps are left out.
    """
    par, out, best = of(profile), [], dict[tuple[str, int], dict[str, float | str]]()
    shown, other = _draws(1), _draws(2)
    for each in par.systems:
        if each.sampler == "ts-ddim" or each.like or each.other_latents:
            continue
        numbers = [n for n in par.nfe if systems.possible(each.sampler, n, (("to_zero", float(each.to_zero)),))]
        how = (each.grid, each.to_zero)
        if each.tune:
            scores = {
                (n, place): math.log(_w1(each.sampler, n, *how, options, other))
                for n in numbers for place, options in enumerate(each.candidates)
            }  # fmt: skip
            for n in numbers:
                among = numbers if each.together else [n]
                total = [sum(scores[m, place] for m in among) for place in range(len(each.candidates))]
                best[each.name, n] = each.candidates[total.index(min(total))]
        for n in numbers:
            options = best.get((each.name, n), each.candidates[0])
            told = ", ".join(f"{key}={value}" for key, value in options.items()) if each.tune else ""
            value = _w1(each.sampler, n, *how, options, shown)
            out.append({"system": each.name, "nfe": n, "W1": value, "options": told})
    return pd.DataFrame(out)


Draws = tuple[torch.Tensor, torch.Tensor]  # data, sorted, and unit noise


def _draws(seed: int) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    data = Mixture.reference().draw(DRAWN, generator).flatten().sort().values
    return data, torch.randn(DRAWN, 1, 1, 1, generator=generator, dtype=torch.float64)


def _w1(sampler: str, nfe: int, grid: str | None, end: bool, options: dict[str, float | str], draws: Draws) -> float:
    entry, (data, unit) = SAMPLERS[sampler], draws
    levels = GRIDS[grid or entry.grid](0.002, 80.0, end)

    def noise(step: int) -> torch.Tensor:
        return torch.randn(unit.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)

    *_, x = entry.sample(Mixture.reference(), 80 * unit, levels, entry.steps(nfe, end), noise, **options)
    return float((x.flatten().sort().values - data).abs().mean())


def papers(table: pd.DataFrame, par: SystemsParams) -> pd.DataFrame:
    """The papers' own FID beside this study's KID: the ratio of a system over DDIM, here at the nearest evaluations.

    `table` is that of `ratios`.
    """
    published = pd.read_csv(root() / "results" / "published" / "systems.csv")
    mine, out = table[table["quantity"] == spaces(table)[0]], []
    for each in published.to_dict("records"):
        near = min(par.nfe, key=lambda nfe: abs(nfe - each["nfe"]))
        row = {"system": each["system"], "NFE, theirs": each["nfe"], "FID over": each["fid_over"], "FID": each["fid"],
               "ratio, theirs": each["fid"] / each["fid_over"], "read": each["read"], "NFE, here": near}  # fmt: skip
        for cell in dict.fromkeys(mine["cell"]):
            found = select(mine, system=each["system"], nfe=near, cell=cell)
            row[cell] = found["ratio"].iloc[0] if len(found) else np.nan
        out.append(row)
    return pd.DataFrame(out)
