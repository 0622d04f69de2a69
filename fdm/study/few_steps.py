"""What training for few steps says: whether it helps, over what it started from and over as much plain training.

Every cell that was trained further spent the same number of network evaluations on it (`loop.evaluations`). A training
is a unit, paired by seed: its start, its continuations and its latents go together. The metric, its floor c, the three
spaces of features and what counts are those of `standings`: y = ln(max(KID, 0) + c), Student's 95 % interval over
trainings, on one side in two of three spaces and in none on the other. MMD-DDM is trained in one of these spaces, and
its KID there is what it minimised: for it the other two have to agree.

An adversarial training has failed where its samples are further from real images, in the extractor's space, than DDIM's
of the network that it started from with as many evaluations: it had better been left alone.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from fdm.data.datasets import Dataset, to_uint8
from fdm.files import digest, write_json
from fdm.study import closure, findings, grid_toy, networks, rules, standings, systems
from fdm.study.measurements import select
from fdm.study.profiles import Profile
from fdm.tasks import generation
from fdm.training import loop, processes

METHODS = {
    "mmd": "MMD-DDM", "siddm": "SIDDM", "siddm toy": "SIDDM, toy's form", "siddm ufo": "SIDDM, UFO's form",
    "ddgan": "DDGAN",
}  # fmt: skip
START, ON = "as it was", "trained on"  # a network that others start from, and one that is trained on as before
# What the toy's results are called, by its form.
TOYS = {f"grid-{form.replace(',', '').replace(' ', '-')}": form for form in grid_toy.FORMS}
TOY_STEPS = (2, 4)
POINTS = 1000  # of the toy's samples that are kept for a figure
SHOWN = 24  # samples of a cell that are kept as a picture, of the first seeds
COLLAPSED = 0.5  # share of samples that look like their classes, below which a network no longer draws them


def compared(profile: Profile) -> list[str]:
    """What a comparison of systems is of: real images, and all cells."""
    return [systems.FLOOR, *profile.cells]


def method(profile: Profile, cell: str) -> str:
    """What was done to the networks of a cell."""
    about = profile.cells[cell]
    return METHODS[about.few_steps.objective] if about.few_steps else ON if about.start else START


def own(profile: Profile, cell: str) -> list[int]:
    """The evaluations that a cell is for: those that it was trained for, or all that are compared."""
    few = profile.cells[cell].few_steps
    return [few.steps] if few else standings.of(profile).nfe


def space_of(profile: Profile, cell: str) -> str | None:
    """The kernel distance that a cell's training minimised, by its name."""
    few = profile.cells[cell].few_steps
    return f"KID({few.features})" if few and few.features else None


def _system(profile: Profile, cell: str, nfe: int) -> str:
    """The system that a cell is sampled with: its generator's, or the first."""
    par = standings.of(profile)
    if not profile.cells[cell].generates:
        return par.systems[0].name
    return next(each.name for each in par.of(cell) if nfe in (each.nfe or par.nfe))


def rivals(profile: Profile, cell: str) -> dict[str, tuple[str, str]]:
    """What a cell is set against, by a name for tables: cell and system, at equal evaluations and of equal kernel."""
    start = profile.cells[cell].start
    assert start is not None
    first, *others = (each.name for each in standings.of(profile).of(start))
    found = {f"{first}, {START}": (start, first)}
    for other, about in profile.cells.items():
        if other != cell and about.start == start and not about.few_steps:
            found[f"{first}, {ON}"] = (other, first)
    if profile.cells[cell].generates:
        # One that was trained through its sampler, for the fewest steps, asked for as many as the generator makes.
        tuned = [(about.few_steps.steps, other) for other, about in profile.cells.items()
                 if about.start == start and about.few_steps and not about.generates]  # fmt: skip
        found |= {f"{method(profile, other)} for {steps}": (other, first) for steps, other in sorted(tuned)[:1]}
    return found | {name: (start, name) for name in others}


def over(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Each cell that was trained further over its rivals, by evaluations and quantity: ratio, interval, what counts.

    `counts` leaves out the space that one of both was trained in.
    """
    floors, known, out = standings.floors(rows), standings.apart(rows), list[dict[str, Any]]()
    for cell, about in profile.cells.items():
        if about.start is None:
            continue
        for nfe in own(profile, cell):
            for name, (other, system) in rivals(profile, cell).items():
                found = {
                    space: standings.between(known, (cell, _system(profile, cell, nfe)), (other, system), space, nfe, c)
                    for space, c in floors.items()
                }
                trained = {space_of(profile, each) for each in (cell, other)}
                judges = [one for space, one in found.items() if space not in trained]
                counts = standings.verdict(judges)
                row = {"kernel": about.kernel, "method": method(profile, cell), "cell": cell, "nfe": nfe, "over": name}
                out += [
                    row | {"quantity": space} | standings.told(one) | {"counts": counts}
                    for space, one in found.items() if one is not None
                ]  # fmt: skip
    columns = ["kernel", "method", "cell", "nfe", "over", "quantity", "ratio", "low", "high", "counts"]
    return pd.DataFrame(out, columns=columns)


def kernels(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """FDM over its baseline after each method, by evaluations, in the extractor's space.

    `counts` leaves out the space that was trained in. `over start` is the ratio of this ratio to that of the networks
    that the method began with, and `from` and `to` its interval: below 1 the method helps FDM more.
    """
    floors, known, out = standings.floors(rows), standings.apart(rows), list[dict[str, Any]]()
    cells = dict[tuple[str, int], dict[str, str]]()
    for cell, about in profile.cells.items():
        for nfe in own(profile, cell):
            cells.setdefault((method(profile, cell), nfe), {})[about.kernel] = cell
    for (name, nfe), both in cells.items():
        if len(both) < 2:
            continue
        fdm, plain = ((both[kernel], _system(profile, both[kernel], nfe)) for kernel in ("fdm", "baseline"))
        found = {space: standings.between(known, fdm, plain, space, nfe, c) for space, c in floors.items()}
        judges = [one for space, one in found.items() if space != space_of(profile, both["fdm"])]
        space = next(iter(floors))
        row = {"method": name, "nfe": nfe} | standings.told(found[space]) | {"counts": standings.verdict(judges)}
        begun = {kernel: profile.cells[cell].start for kernel, cell in both.items()}
        if all(begun.values()):
            base = standings.of(profile).systems[0].name
            places = [fdm, (begun["fdm"], base), plain, (begun["baseline"], base)]
            logs = [standings.values(known, str(cell), space, nfe, floors[space]).loc[by] for cell, by in places]
            told = pd.DataFrame([each.rename(n) for n, each in enumerate(logs)]).dropna(axis=1).to_numpy()
            more = standings.told(rules.paired(told, np.array([1.0, -1.0, -1.0, 1.0])))
            row |= dict(zip(("over start", "from", "to"), more.values(), strict=True))
        out.append(row)
    columns = ["method", "nfe", "ratio", "low", "high", "counts", "over start", "from", "to"]
    return pd.DataFrame(out, columns=columns)


def failures(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Adversarial trainings by kernel and method: how many, how many failed, and how many no longer draw classes.

    Beside those that failed, which is in the extractor's space, how many are further off in each of the others.
    """
    out, spaces = list[dict[str, Any]](), standings.spaces(rows)
    names = {space: f"further off, {space}" for space in spaces[1:]}
    for cell, about in profile.cells.items():
        if not about.generates or about.few_steps is None:
            continue
        nfe = about.few_steps.steps
        mine = _of(rows, cell, _system(profile, cell, nfe), nfe)
        start = _of(rows, str(about.start), standings.of(profile).systems[0].name, nfe)
        worse = {space: int((mine[space] > start[space].reindex(mine.index)).sum()) for space in spaces}
        lost = mine["accuracy"] < COLLAPSED if "accuracy" in mine else pd.Series(False, mine.index)
        out.append({
            "kernel": about.kernel, "method": method(profile, cell), "nfe": nfe, "training runs": len(mine),
            "failed": worse[spaces[0]], **{name: worse[space] for space, name in names.items()},
            "no longer draw classes": int(lost.sum()),
        })  # fmt: skip
    columns = ["kernel", "method", "nfe", "training runs", "failed", *names.values(), "no longer draw classes"]
    return pd.DataFrame(out, columns=columns)


def _of(rows: pd.DataFrame, cell: str, system: str, nfe: int) -> pd.DataFrame:
    """Quantities (columns) by seed of one cell, system and number of evaluations."""
    mine = select(rows, cell=cell, system=system, nfe=nfe, part="systems")
    return mine.pivot_table(index="seed", columns="quantity", values="value", aggfunc="mean")


def elsewhere(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """What fine-tuning for some evaluations does to others: KID over that of the start, the extractor's, by NFE.

    `further off` has the spaces in which the interval lies above 1.
    """
    floors, known, out = standings.floors(rows), standings.apart(rows), list[dict[str, Any]]()
    first = standings.of(profile).systems[0].name
    for cell, about in profile.cells.items():
        if about.few_steps is None or about.generates:
            continue
        for nfe in standings.of(profile).nfe:
            places = (cell, first), (str(about.start), first)
            found = {space: standings.between(known, *places, space, nfe, c) for space, c in floors.items()}
            row = {"kernel": about.kernel, "trained for": about.few_steps.steps, "nfe": nfe}
            worse = [space for space, one in found.items() if standings.side(one) > 0]
            out.append(row | standings.told(next(iter(found.values()))) | {"further off": ", ".join(worse)})
    return pd.DataFrame(out)


def quality(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Everything that was measured, by kernel, method, system and evaluations: the mean over trainings."""
    table = standings.quality(rows)
    named = table["cell"].map(lambda cell: method(profile, cell))
    kernel = table["cell"].map(lambda cell: profile.cells[cell].kernel)
    table.insert(0, "kernel", kernel)
    table.insert(1, "method", named)
    return table


def along(profile: Profile, scores: pd.DataFrame) -> pd.DataFrame:
    """Quality and diversity along the training for few steps: mean over trainings, by cell and share of the budget.

    `scores` are the profile's measurements; of each cell with its own sampler and number of evaluations. The share 0 is
    the network that the cell starts from, where that is sampled in the same way. That network's samples of the most
    evaluations stand last.
    """
    out = []
    for cell, about in profile.cells.items():
        if about.few_steps is None:
            continue
        begun = select(scores, cell=str(about.start), nfe=about.few_steps.steps).assign(duration=0.0)
        mine = pd.concat([begun, select(scores, cell=cell, nfe=about.few_steps.steps)])
        out.append(_by_share(profile, cell, about.few_steps.steps, mine))
    for start in dict.fromkeys(about.start for about in profile.cells.values() if about.few_steps):
        mine = select(scores, cell=str(start)).assign(duration=0.0)
        if len(mine):
            most = int(mine["nfe"].max())
            out.append(_by_share(profile, str(start), most, select(mine, nfe=most)))
    if not out:
        return pd.DataFrame()
    found = pd.concat(out, ignore_index=True)
    first = ["kernel", "method", "cell", "nfe", "duration"]
    return found[[*first, *(column for column in found if column not in first)]]


def _by_share(profile: Profile, cell: str, nfe: int, rows: pd.DataFrame) -> pd.DataFrame:
    """The mean of each metric (columns) over trainings, by share of the budget, and what it is of."""
    table = rows.pivot_table(index="duration", columns="metric", values="value", aggfunc="mean", sort=False)
    about = {"cell": cell, "kernel": profile.cells[cell].kernel, "method": method(profile, cell), "nfe": nfe}
    return table.reset_index().assign(**about)


def kernels_along(profile: Profile, scores: pd.DataFrame, c: float) -> pd.DataFrame:
    """FDM over its baseline along the training for few steps: KID + c in the extractor's space, paired by seed."""
    found: dict[tuple[str, int], dict[str, pd.DataFrame]] = {}
    for cell, about in profile.cells.items():
        if about.few_steps:
            mine = select(scores, cell=cell, nfe=about.few_steps.steps, metric="KID")
            table = mine.pivot_table(index="duration", columns="seed", values="value")
            found.setdefault((method(profile, cell), about.few_steps.steps), {})[about.kernel] = table
    out = []
    for (name, nfe), both in found.items():
        if len(both) == 2:
            logs = {kernel: np.log(table.clip(lower=0) + c) for kernel, table in both.items()}
            for share, ratios in (logs["fdm"] - logs["baseline"]).iterrows():
                estimate = rules.paired(ratios.dropna().to_numpy()[None], np.ones(1))
                out.append({"method": name, "nfe": nfe, "share": share} | findings.told(estimate))
    return pd.DataFrame(out, columns=["method", "nfe", "share", "ratio", "low", "high", "seeds"])


@torch.inference_mode()
def pictures(profile: Profile, cell: str, dataset: Dataset, device: str = "cpu") -> dict[str, Tensor]:
    """Samples of a cell's first training, uint8 (24, C, H, W), by system and evaluations: `DDIM/5`."""
    par, name = standings.of(profile), profile.runs_of(cell)[0]
    denoiser, _ = networks.denoiser_of(profile, name, dataset, profile.checkpoints(name), 1.0)
    if isinstance(denoiser, torch.nn.Module):
        denoiser.to(device).to(memory_format=torch.channels_last)
    out = {}
    for nfe in own(profile, cell):
        system = next(each for each in par.of(cell) if each.name == _system(profile, cell, nfe))
        how: dict[str, Any] = {"to_zero": system.to_zero, **(system.model_extra or {})}
        *_, x = generation.trajectory(denoiser, range(SHOWN), system.sampler, nfe, device, grid=system.grid, **how)
        out[f"{system.name}/{nfe}"] = to_uint8(x).cpu()
    return out


def memory(profile: Profile, toy: str) -> Path:
    """What was measured of a form of the toy."""
    return profile.build / "toys" / f"{toy}.json"


def toys(
    profile: Profile, toy: str, advance: Callable[[int], None] | None = None
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """One form of the toy, with every seed of the profile: a row a quantity, as of systems; and samples by steps.

    Of the first seed. Each training is remembered by all that shapes it. `advance` is told of each that has ended, and
    a bar shows them where there is none.
    """
    form, known, rows, points = TOYS[toy], networks.remembered(memory(profile, toy)), list[dict[str, Any]](), {}
    every = tqdm([*itertools.product(TOY_STEPS, profile.seeds)], desc=form, unit="training", disable=bool(advance))
    for steps, seed in every:
        called = experiment_of(toy, steps, seed)
        key = digest([called, profile.threads, processes.arithmetic("cpu")])
        entry = networks.rows_under(known, key)
        if entry is None:
            found, drawn = grid_toy.measure(form, steps, seed)
            entry = [{"found": found, "points": drawn[:POINTS].tolist()}]
            known[key] = {"rows": entry, "hash": digest(entry)}
            write_json(memory(profile, toy), known)
        if advance:
            advance(1)
        if seed == profile.seeds[0]:
            points[str(steps)] = torch.tensor(entry[0]["points"])
        context = {
            "cell": toy, "profile": profile.profile, "dataset": "25 Gaussians", "run": f"{toy}-{seed}",
            "seed": seed, "part": "toy", "system": form, "sampler": "siddm", "options": "", "nfe": steps,
            "block": 0, "n": grid_toy.DRAWN, "experiment": called, "source": "", "checkpoint": "", "device": "cpu",
        }  # fmt: skip
        rows += [context | {"quantity": name, "value": value} for name, value in entry[0]["found"].items()]
    return pd.DataFrame(rows).reindex(columns=[*systems.CONTEXT, *systems.MEASURED, *systems.ORIGIN]), points


def experiment_of(toy: str, steps: int, seed: int) -> str:
    """What a training of the toy is called, on every machine."""
    return digest([TOYS[toy], steps, seed, closure.identity("toy")])


def of_toys(rows: pd.DataFrame) -> pd.DataFrame:
    """The toy's table: mean over trainings by form and steps, the fewest modes of any, and what real points have."""
    index = ["system", "nfe"]
    rows = rows.sort_values("system", key=lambda forms: forms.map(grid_toy.FORMS.index), kind="stable")
    table = rows.pivot_table(index=index, columns="quantity", values="value", aggfunc="mean", sort=False)
    fewest = select(rows, quantity="modes").groupby(index, sort=False)["value"].min()
    table = table.assign(**{"fewest modes": fewest}).reset_index().rename(columns={"system": "form", "nfe": "steps"})
    return table.assign(**{"correlation of real points": table["steps"].map(grid_toy.true_correlation)})


def points(profile: Profile) -> dict[str, dict[str, Tensor]]:
    """The toy's samples on record, by form and steps."""
    return {form: load_file(profile.toy(name).with_suffix(".safetensors")) for name, form in TOYS.items()}


def kept(profile: Profile) -> dict[str, dict[str, Tensor]]:
    """The samples on record, of cells by system and evaluations."""
    return {name: load_file(profile.compared(name).with_suffix(".safetensors")) for name in profile.cells}


def shown(profile: Profile, kernel: str) -> list[tuple[str, str, str]]:
    """What is drawn of the networks of a kernel: cell, key of its samples, and a title."""
    out, cells = [], [cell for cell, about in profile.cells.items() if about.kernel == kernel]
    trained = sorted({few.steps for cell in cells if (few := profile.cells[cell].few_steps)})
    for cell in cells:
        numbers = trained if method(profile, cell) == START else own(profile, cell)
        if method(profile, cell) != ON:
            names = [(nfe, _system(profile, cell, nfe)) for nfe in numbers if nfe in own(profile, cell)]
            how = {nfe: f"{name}, {START}" if method(profile, cell) == START else method(profile, cell)
                   for nfe, name in names}  # fmt: skip
            out += [(cell, f"{name}/{nfe}", f"{how[nfe]}, {nfe}") for nfe, name in names]
    return out


def gains(over: pd.DataFrame, space: str) -> pd.DataFrame:
    """The rows of `over` in one space of features."""
    return over[over["quantity"] == space].drop(columns=["cell", "quantity"])


def by_space(table: pd.DataFrame, rival: str) -> pd.DataFrame:
    """Ratios of `over` one rival, with a column a space of features."""
    mine = select(table, over=rival)
    index = ["kernel", "method", "nfe"]
    return mine.pivot_table(index=index, columns="quantity", values="ratio", sort=False).reset_index()


def prices(profile: Profile) -> pd.DataFrame:
    """What each continuation was trained on, and the network evaluations that it cost, in thousands."""
    out = []
    for cell, about in profile.cells.items():
        if about.start:
            run = profile.runs_of(cell)[0]
            par = profile.parameters(run)
            kimg = loop.kimg(par, loop.steps(par))
            cost = kimg * loop.evaluations(profile.run(run))
            out.append({"cell": cell, "method": method(profile, cell), "images, thousands": f"{kimg:.1f}",
                        "evaluations, thousands": f"{cost:.0f}"})  # fmt: skip
    return pd.DataFrame(out)
