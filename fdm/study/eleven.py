"""All eleven systems of the study in one table and one figure, each over the same networks without it.

What samples, and what trains another process, is of a comparison of systems; what trains for few steps, and what
restores, of profiles beside it, on networks of their own. Samples are compared by KID over DDIM's of the baseline at
equal evaluations, by the rule of `standings`, which says what counts; restorations by PSNR less that of a network that
is given as much, by the rule of `restored`.
"""

from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from fdm.study import few_steps, measurements, restoration, restored, standings
from fdm.study.figures import GREY
from fdm.study.measurements import select
from fdm.study.profiles import Profile, find

BASE = "DDIM"
SECOND = "DPM-Solver++ (2M)"  # of none of the eleven, but what a figure of fast samplers wants: a usual solver
# What stands for a system, by its name: a sampler on the networks of the baseline,
SAMPLED = {
    "DDIM": BASE, "PNDM": "F-PNDM", "shifted time steps": "TS-DDIM", "MASF": "MASF", "Gaussian mixture solver": "GMS",
}  # fmt: skip
JOINT = ("multivariate diffusion", "cld-baseline", "Velocity, SSCS, EDM's grid")  # one on networks of a cell,
TRAINED = {"mmd": "MMD-DDM", "siddm": "SIDDM"}  # an objective,
# or a way to restore and what it is set against, which knows as much and starts or moves otherwise,
RESTORED = {"CCDF": ("CCDF", "from noise"), "DoSSR": ("DoSSR, order 1", "conditional, closer")}
TASK = "sr4"  # of a task that all of these can do.
COLUMNS = ["system", "shown by", "nfe", "over", "quantity", "value", "low", "high", "counts"]


class Beside(NamedTuple):
    """The profiles that the systems are of, each with its rows."""

    sampled: tuple[Profile, pd.DataFrame]
    few: tuple[Profile, pd.DataFrame]
    restoring: tuple[Profile, pd.DataFrame]


def beside(profile: Profile, rows: pd.DataFrame) -> Beside:
    """A comparison of systems, and the profiles beside it that train for few steps and that restore."""
    others = [find(name) for name in profile.beside]
    few = next(each for each in others if each.few_steps)
    restoring = next(each for each in others if each.evaluation.restoration)
    return Beside(
        (profile, rows), (few, measurements.systems(few)), (restoring, measurements.restorations(restoring))
    )  # fmt: skip


def data(every: Beside) -> list[str]:
    """The files that are of the profiles beside, from the root."""
    folders = {"systems": every.few[0], "restoration": every.restoring[0]}
    return [f"results/{profile.profile}/{folder}/*.csv" for folder, profile in folders.items()]


def _plain(profile: Profile) -> tuple[str, str]:
    """The cells of EDM's baseline and of its FDM."""
    return next((plain, fdm) for framework, plain, fdm in standings.pairs(profile) if framework == "edm")


def table(every: Beside) -> pd.DataFrame:
    """Each system over the same networks without it, by evaluations: value, 95 % interval and whether it counts.

    `value` is a ratio of KID, of which below 1 is better, or a difference of PSNR in dB, of which above 0 is.
    """
    return pd.DataFrame(
        [*_sampled(*every.sampled), *_trained(*every.few), *_restored(*every.restoring)], columns=COLUMNS
    )


def _sampled(profile: Profile, rows: pd.DataFrame) -> list[dict[str, Any]]:
    plain, fdm = _plain(profile)
    compared = [
        ("FDM", fdm, BASE),
        *((name, plain, system) for name, system in SAMPLED.items() if system != BASE),
        JOINT,
    ]
    floors, known, out = standings.floors(rows), standings.apart(rows), list[dict[str, Any]]()
    for name, cell, system in compared:
        for nfe in standings.of(profile).nfe:
            found = [standings.between(known, (cell, system), (plain, BASE), each, nfe, c)
                     for each, c in floors.items()]  # fmt: skip
            if found[0] is not None:
                row = _row(name, system if cell == plain else f"{system}, {cell}", nfe, f"{BASE}, {plain}")
                out.append(row | {"quantity": "KID"} | _told(found[0]) | {"counts": standings.verdict(found)})
    return out


def _trained(profile: Profile, rows: pd.DataFrame) -> list[dict[str, Any]]:
    plain, _ = _plain(profile)
    space, out = standings.spaces(rows)[0], list[dict[str, Any]]()
    against = few_steps.over(profile, rows)
    for cell, about in profile.cells.items():
        if about.start != plain or about.few_steps is None or about.few_steps.objective not in TRAINED:
            continue
        mine = select(against, cell=cell, quantity=space, over=f"{BASE}, {few_steps.START}")
        for _, each in mine.iterrows():
            row = _row(TRAINED[about.few_steps.objective], cell, int(each["nfe"]), f"{BASE}, {plain}")
            out.append(row | {"quantity": "KID", "value": each["ratio"]} | dict(each[["low", "high", "counts"]]))
    return out


def _restored(profile: Profile, rows: pd.DataFrame) -> list[dict[str, Any]]:
    out = list[dict[str, Any]]()
    for name, pair in RESTORED.items():
        cells = [_asked(profile, system) for system in pair]
        for nfe in restoration.of(profile).nfe:
            mine, theirs = (
                restored.values(rows, cell, "PSNR", nfe, TASK).loc[system]
                for cell, system in zip(cells, pair, strict=True)
            )
            found = restored.difference(mine, theirs)
            if found is not None:
                told = restored.told(found, "PSNR")
                row = _row(name, f"{pair[0]}, {cells[0]}", nfe, f"{pair[1]}, {cells[1]}")
                out.append(row | {"quantity": "PSNR", "value": told.pop("difference")} | told)
    return out


def _asked(profile: Profile, system: str) -> str:
    """The cell of the baseline whose networks are for a way to restore."""
    par = restoration.of(profile)
    cells = [name for name, about in profile.cells.items() if about.kernel == "baseline"]
    return next(cell for cell in cells if system in [each.name for each in par.of(profile.cells[cell])])


def _row(name: str, by: str, nfe: int, over: str) -> dict[str, Any]:
    return {"system": name, "shown by": by, "nfe": nfe, "over": over}


def _told(estimate: standings.Estimate) -> dict[str, float]:
    found = standings.told(estimate)
    return {"value": found["ratio"], "low": found["low"], "high": found["high"]}


def wide(found: pd.DataFrame) -> pd.DataFrame:
    """The table for people: a line a system, a column a number of evaluations, with what counts."""
    text = [f"{value:.2f} {counts}".strip() for value, counts in zip(found["value"], found["counts"], strict=True)]
    index = ["system", "shown by", "over", "quantity"]
    pivot = found.assign(text=text).pivot(index=index, columns="nfe", values="text")
    rows = found[index].drop_duplicates()
    columns = [str(nfe) for nfe in sorted(set(found["nfe"]))]
    return pivot.rename(columns=str)[columns].fillna("").reindex(pd.MultiIndex.from_frame(rows)).reset_index()


def plate(every: Beside) -> Figure:
    """All eleven: quality against evaluations, and against milliseconds a sample; samples above, restorations below.

    Another profile may be of another machine, or of a busier one. A network that was trained further is as large as
    DDIM's of the first profile, and each of its evaluations is drawn with that one's time. Its KID is of other samples
    too: thin lines are what it is to be compared with, its start.
    """
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.4), sharey="row", layout="constrained")
    colours = sns.color_palette("tab10")
    space, c = next(iter(standings.floors(every.sampled[1]).items()))
    for name, line, style in _lines(every, space):
        _draw(axes[0], line.assign(shown=line[space].clip(lower=0) + c), name, style)
    for colour, (name, line) in zip(colours, _restorations(*every.restoring).items(), strict=False):
        _draw(axes[1], line.assign(shown=line["PSNR"]), name, {"color": colour, "marker": "."})
    for ax in axes[0]:
        ax.set(yscale="log")
        ax.axhline(c, color=GREY, lw=1, ls=":")
    axes[0, 0].set_ylabel(f"{space} + c, lower is better", fontsize=9)
    axes[1, 0].set_ylabel(f"PSNR of {TASK} (dB), higher is better", fontsize=9)
    for row in axes:
        row[0].set_xlabel("network evaluations")
        row[1].set_xlabel("milliseconds a sample")
        row[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        row[1].xaxis.set_major_formatter("{x:g}")
        ticks = sorted({int(x) for line in row[0].lines if len(line.get_xdata()) for x in line.get_xdata() if x >= 1})
        row[0].set_xticks(ticks, [str(n) for n in ticks], fontsize=7)
        for ax in row:
            ax.xaxis.set_minor_locator(NullLocator())
        row[1].legend(*row[0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


def _draw(row: list[Axes], line: pd.DataFrame, name: str, style: dict[str, Any]) -> None:
    for ax, x in zip(row, (line["nfe"], 1000 * line["seconds"]), strict=True):
        ax.plot(x, line["shown"], lw=1.2, label=name, **style)
        ax.set(xscale="log")


def _lines(every: Beside, space: str) -> list[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """What is drawn of samples: name, its means over training runs, and style: marks where it was trained further."""
    (profile, rows), (few, trained) = every.sampled, every.few
    means, (plain, fdm) = standings.quality(rows), _plain(profile)
    joint, cell, system = JOINT
    colours = iter(sns.color_palette("tab10"))
    chosen = [*((name, plain, by) for name, by in SAMPLED.items()), ("FDM", fdm, BASE), (joint, cell, system)]
    out = [
        (name, select(means, cell=cell, system=by), {"marker": ".", "color": next(colours)})
        for name, cell, by in chosen
    ]
    out.append((f"({SECOND})", select(means, cell=plain, system=SECOND), {"color": GREY, "ls": "--"}))
    quality = few_steps.quality(few, trained)
    ruler = select(means, cell=plain, system=BASE)
    quality["seconds"] = quality["nfe"] * (ruler["seconds"] / ruler["nfe"]).median()
    for system, dashes in ((BASE, ":"), (SECOND, "-.")):
        start = select(quality, cell=plain, system=system).sort_values("nfe")
        out.append((f"{system}, {few_steps.START}", start, {"color": GREY, "ls": dashes}))
    for objective, marker in zip(TRAINED, "so", strict=True):
        cells = [name for name, about in few.cells.items() if about.start == plain and about.few_steps
                 and about.few_steps.objective == objective]  # fmt: skip
        own = [select(quality, cell=name, nfe=few_steps.own(few, name)[0]) for name in cells]
        if own:
            style = {"color": next(colours), "marker": marker, "ls": "", "mfc": "none"}
            out.append((TRAINED[objective], pd.concat(own), style))
    return out


def _restorations(profile: Profile, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What is drawn of restorations, by name: each system, and what it is set against."""
    means = select(restored.quality(rows), task=TASK)
    names = {
        shown: system for name, (own, other) in RESTORED.items() for shown, system in ((name, own), (other, other))
    }
    return {name: select(means, cell=_asked(profile, system), system=system) for name, system in names.items()}
