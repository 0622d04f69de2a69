"""The figures of the comparison of systems."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from fdm.process.frameworks import FRAMEWORKS
from fdm.study import standings
from fdm.study import velocity as velocities
from fdm.study.figures import COLOUR, GREY, MARKER, plain, style
from fdm.study.measurements import label, select
from fdm.study.profiles import Profile

MOST = 10.0  # ratio at which a colour ends
NAMED = 1.5  # interaction above which a system is named


def _cell(profile: Profile, cell: str) -> str:
    par = profile.cells[cell]
    return "exact denoiser" if par.source == "analytic" else label(par.framework, par.kernel)


def standing(profile: Profile, ratios: pd.DataFrame) -> Figure:
    """Every system over the first one by evaluations, a panel a cell. A dot marks what counts; grey is not measured."""
    cells = list(dict.fromkeys(ratios["cell"]))
    systems = [each.name for each in standings.of(profile).systems[1:]]
    numbers = standings.of(profile).nfe
    space = ratios["quantity"].iloc[0]
    figure, axes = plt.subplots(1, len(cells), figsize=(2.8 + 1.7 * len(cells), 0.9 + 0.24 * len(systems)),
                                sharey=True, squeeze=False, layout="constrained")  # fmt: skip
    norm = TwoSlopeNorm(0, -np.log(MOST), np.log(MOST))
    for ax, cell in zip(axes[0], cells, strict=True):
        mine = select(ratios, cell=cell, quantity=space)
        table = mine.pivot_table(index="system", columns="nfe", values="ratio").reindex(systems, columns=numbers)
        ax.set_facecolor("0.8")
        picture = ax.imshow(np.log(table.to_numpy(float)), cmap="RdBu_r", norm=norm, aspect="auto")
        for _, row in mine[mine["counts"] != ""].iterrows():
            ax.plot(numbers.index(row["nfe"]), systems.index(row["system"]), ".", color="black", ms=4)
        ax.set(xticks=range(len(numbers)), yticks=range(len(systems)), title=_cell(profile, cell))
        ax.set_xticklabels(numbers, fontsize=7)
        ax.set_yticklabels(systems, fontsize=8)
        ax.title.set_fontsize(9)
        ax.grid(False)
    figure.supxlabel("network evaluations", fontsize=9)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, extend="both")
    ticks = [1 / 10, 1 / 5, 1 / 2, 1, 2, 5, 10]
    bar.set_ticks([*np.log(ticks)], labels=["1/10", "1/5", "1/2", "1", "2", "5", "10"])
    bar.set_label(f"{space} over that of {standings.of(profile).systems[0].name}", fontsize=9)
    return figure


def by_evaluations(
    profile: Profile, quality: pd.DataFrame, quantities: list[str], chosen: list[str], floors: dict[str, float]
) -> Figure:
    """Some systems against evaluations: a column a cell, a row a quantity; what has a floor is shown above it."""
    cells = list(dict.fromkeys(quality["cell"]))
    figure, axes = plt.subplots(len(quantities), len(cells), figsize=(2.3 * len(cells) + 1.5, 2.5 * len(quantities)),
                                sharex=True, sharey="row", squeeze=False, layout="constrained")  # fmt: skip
    colours = dict(zip(chosen, sns.color_palette("tab10"), strict=False))
    for row, quantity in zip(axes, quantities, strict=True):
        for ax, cell in zip(row, cells, strict=True):
            for name in chosen:
                mine = select(quality, cell=cell, system=name)
                shown = mine[quantity] if quantity not in floors else mine[quantity].clip(lower=0) + floors[quantity]
                ax.plot(mine["nfe"], shown, marker=".", lw=1.2, color=colours[name], label=name)
            ax.set(xscale="log", yscale="log")
            _evaluations(ax, standings.of(profile).nfe)
            if quantity in floors:
                ax.axhline(floors[quantity], color=GREY, lw=1, ls=":")
        row[0].set_ylabel(f"{quantity} + c" if quantity in floors else quantity, fontsize=8)
    for ax, cell in zip(axes[0], cells, strict=True):
        ax.set_title(_cell(profile, cell), fontsize=9)
    figure.supxlabel("network evaluations", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def _evaluations(ax: plt.Axes, numbers: list[int]) -> None:
    ax.set_xticks(numbers, [f"{n:g}" for n in numbers], fontsize=7)
    ax.xaxis.set_minor_locator(NullLocator())


def interaction(profile: Profile, table: pd.DataFrame, nfe: int) -> Figure:
    """What a system does to FDM against what it does to the baseline; on the line it does the same to both."""
    frameworks = [each.upper() for each in FRAMEWORKS if each.upper() in set(table["framework"])]
    base = standings.of(profile).systems[0].name
    figure, axes = plt.subplots(1, max(len(frameworks), 1), figsize=(5 * max(len(frameworks), 1), 4.5), sharex=True,
                                sharey=True, squeeze=False, layout="constrained")  # fmt: skip
    for ax, framework in zip(axes[0], frameworks, strict=False):
        mine = select(table, framework=framework, nfe=nfe)
        colour = COLOUR[framework.lower()]
        for counts in (True, False):
            part = mine[(mine["counts"] != "") == counts]
            ax.plot(part["baseline"], part["fdm"], MARKER[framework.lower()], color=colour, ls="",
                    markerfacecolor=colour if counts else "white")  # fmt: skip
        ax.set(xscale="log", yscale="log", title=framework, xlabel=f"baseline: over {base}")
        ax.axline((1, 1), (2, 2), color=GREY, lw=1, ls=":")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes[0, 0].set_ylabel(f"FDM: over {base}")
    # Now that the axes, which they share, are as they stay.
    for ax, framework in zip(axes[0], frameworks, strict=False):
        mine = select(table, framework=framework, nfe=nfe)
        _name(ax, mine[(mine["counts"] != "") & (np.log(mine["ratio"]).abs() > np.log(NAMED))])
    return figure


def _name(ax: Axes, rows: pd.DataFrame) -> None:
    """Write the names of points beside the panel, one below the other near their heights, with a line to each."""
    low, high = np.log(ax.get_ylim())
    rows = rows.sort_values("fdm", ascending=False)
    heights, gap = [1.0 + 1 / 22], 1 / 22
    for value in rows["fdm"]:
        heights.append(min((np.log(value) - low) / (high - low), heights[-1] - gap))
    up = max(0.0, -heights[-1])
    for (_, row), height in zip(rows.iterrows(), heights[1:], strict=True):
        ax.annotate(row["system"], (row["baseline"], row["fdm"]), xytext=(1.03, height + up),
                    textcoords="axes fraction", va="center", fontsize=7,
                    arrowprops={"arrowstyle": "-", "lw": 0.4, "color": GREY, "relpos": (0, 0.5)})  # fmt: skip


def grids(profile: Profile, table: pd.DataFrame) -> Figure:
    """Solver and grid crossed: distance to the converged solution, a panel a cell and a row a number of evaluations."""
    cells, numbers = list(dict.fromkeys(table["cell"])), sorted({int(nfe) for nfe in table["nfe"]})
    solvers, kinds = (list(dict.fromkeys(table[each])) for each in ("system", "grid"))
    figure, axes = plt.subplots(len(numbers), len(cells), figsize=(1.7 * len(cells) + 2, 1.6 * len(numbers)),
                                sharex=True, sharey=True, squeeze=False, layout="constrained")  # fmt: skip
    norm = LogNorm(table["distance"].min(), table["distance"].max())
    for row, nfe in zip(axes, numbers, strict=True):
        for ax, cell in zip(row, cells, strict=True):
            mine = select(table, cell=cell, nfe=nfe)
            wide = mine.pivot_table(index="system", columns="grid", values="distance").reindex(solvers, columns=kinds)
            ax.set_facecolor("0.8")  # of what a solver cannot do
            picture = ax.imshow(wide.to_numpy(), cmap="viridis_r", norm=norm, aspect="auto")
            best = np.unravel_index(np.nanargmin(wide.to_numpy()), wide.shape)
            ax.plot(best[1], best[0], "*", color="white", ms=7)
            ax.set(xticks=range(wide.shape[1]), yticks=range(wide.shape[0]))
            ax.set_xticklabels(wide.columns, fontsize=6, rotation=30, ha="right")
            ax.set_yticklabels(wide.index, fontsize=6)
            ax.grid(False)
            if nfe == numbers[0]:
                ax.set_title(_cell(profile, cell), fontsize=8)
        row[0].set_ylabel(f"{nfe} evaluations", fontsize=8)
    figure.colorbar(picture, ax=axes, shrink=0.6, label="distance to the converged sample")
    return figure


def surface(profile: Profile, rows: pd.DataFrame, nfe: int) -> Figure:
    """MASF by sign, size and schedule over DDIM, which is at the origin: on the latents for tuning, of one training."""
    mine = select(rows, part="tuning", nfe=nfe, sampler="masf")
    mine = mine[mine["quantity"] != "seconds"]
    mine = mine.assign(
        size=standings.option(mine, "size"), schedule=mine["options"].str.extract(r"schedule=([a-z ]+)", expand=False),
        eps=mine["options"].str.extract(r"eps=([a-zA-Z ]+)", expand=False).fillna("of D"),
    )  # fmt: skip
    cells = list(dict.fromkeys(mine["cell"]))
    figure, axes = plt.subplots(1, max(len(cells), 1), figsize=(2.4 * max(len(cells), 1) + 1.5, 3), sharey=True,
                                squeeze=False, layout="constrained")  # fmt: skip
    colours = dict(zip(dict.fromkeys(mine["schedule"]), sns.color_palette("tab10"), strict=False))
    for ax, cell in zip(axes[0], cells, strict=False):
        here = select(mine, cell=cell)
        origin = here[here["size"] == 0]["value"].mean()
        ax.axhline(1, color=GREY, lw=1, ls=":")
        ax.axvline(0, color=GREY, lw=1, ls=":")
        for (schedule, eps), line in here.groupby(["schedule", "eps"], sort=False):
            line = line.drop_duplicates("size").set_index("size")["value"]
            line[0.0] = origin
            line = line.sort_index() / origin
            ax.plot(line.index, line, ls="-" if eps == "of D" else "--", marker=".", color=colours[schedule],
                    label=f"{schedule}, noise {eps}")  # fmt: skip
        ax.set(yscale="log", title=_cell(profile, cell), xlabel="size of the average")
        ax.title.set_fontsize(9)
        plain(ax.yaxis, (1, 1.2, 1.5, 2, 3, 5, 7, 8.5))
    quantity = mine["quantity"].iloc[0] if len(mine) else ""
    axes[0, 0].set_ylabel(f"{quantity} over DDIM's", fontsize=8)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure


def scalars(profile: Profile, tuned: pd.DataFrame, oracle: pd.DataFrame) -> Figure:
    """The best scale of epsilon scaling less 1, and the best share of DCW, by evaluations, exact denoisers beside."""
    shown = [
        ("epsilon scaling", "scale", 1, "best scale less 1"),
        ("DCW", "low", 0, "best share added in the low band"),
        ("iPNDM, scaled", "scale", 1, "best scale less 1"),
    ]
    figure, axes = plt.subplots(1, len(shown), figsize=(12, 3.2), layout="constrained")
    for ax, (system, name, less, told) in zip(axes, shown, strict=True):
        mine = select(tuned, system=system)
        for cell, line in mine.groupby("cell", sort=False):
            par = profile.cells[str(cell)]
            look = style(par.framework, par.kernel) | {"label": _cell(profile, str(cell))}
            look |= {"color": "black", "linestyle": "-"} if par.source == "analytic" else {}
            ax.plot(line["nfe"], standings.option(line, name) - less, **look)
        line = select(oracle, system=system)
        if len(line):
            ax.plot(
                line["nfe"], standings.option(line, name) - less, ":", color=GREY, label="exact, the mixture of three"
            )
        ax.set(xscale="log", title=system, xlabel="network evaluations", ylabel=told)
        _evaluations(ax, standings.of(profile).nfe)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure


def _line(ax: Axes, profile: Profile, cell: str, table: pd.DataFrame, x: str, y: str) -> None:
    """A line of a cell, and, where the table has it, its interval."""
    of = profile.cells[cell].framework
    ax.plot(table[x], table[y], marker=MARKER[of], ms=4, lw=1.2, color=COLOUR[of], label=_cell(profile, cell))
    if "low" in table:
        ax.fill_between(table[x], table["low"], table["high"], color=COLOUR[of], alpha=0.15, lw=0)


def velocity(profile: Profile, levels: pd.DataFrame, training: pd.DataFrame) -> Figure:
    """Networks with a velocity and without: error by noise level, the bound and samples by the length of training."""
    samples = training.drop(columns=["value", "low", "high"])  # which have no interval
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    images, columns = "thousand training images", [("sigma", "value"), ("kimg", "value"), ("kimg", "KID")]
    for cell in dict.fromkeys(levels["cell"]):
        for ax, table, (x, y) in zip(axes, (levels, training, samples), columns, strict=True):
            _line(ax, profile, cell, select(table, cell=cell), x, y)
    told = [
        ("noise level σ", "error over the exact D"),
        (images, "below the entropy, nats a pixel"),
        (images, "KID, Heun"),
    ]
    for ax, (x, y) in zip(axes, told, strict=True):
        ax.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    for ax, table in ((axes[1], training), (axes[2], samples.dropna(subset=["KID"]))):
        lengths: list[float] = []
        for kimg in sorted(set(table["kimg"]), reverse=True):  # as far as there is room, from the whole training
            lengths += [kimg] if not lengths or lengths[-1] > 1.4 * kimg else []
        ax.set_xticks(lengths, [f"{kimg:.0f}" for kimg in lengths], fontsize=8)
        ax.xaxis.set_minor_locator(NullLocator())
        plain(ax.yaxis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def with_velocity(profile: Profile, quality: pd.DataFrame, space: str, floor: float) -> Figure:
    """Samples by evaluations, a panel a way to sample: networks with a velocity, and those of the position alone."""
    cells = [cell for cell in profile.cells if cell in velocities.every(profile)]
    names = standings.of(profile).of((velocities.cells(profile)[0] or cells)[0])
    down = -(-len(names) // 5)
    figure, axes = plt.subplots(down, 5, figsize=(12, 2.6 * down), sharex=True, sharey=True, squeeze=False,
                                layout="constrained")  # fmt: skip
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax in axes.flat[max(len(names) - 5, 0) : len(names)]:  # also those above a place that is empty
        ax.xaxis.set_tick_params(labelbottom=True)
    for ax, system in zip(axes.flat, names, strict=False):
        for cell in cells:
            mine = select(quality, cell=cell, system=system.name)
            _line(ax, profile, cell, mine.assign(shown=mine[space].clip(lower=0) + floor), "nfe", "shown")
        ax.set(xscale="log", yscale="log")
        ax.set_title(system.name, fontsize=9)
        ax.axhline(floor, color=GREY, lw=1, ls=":")
        _evaluations(ax, standings.of(profile).nfe)
    figure.supxlabel("network evaluations", fontsize=9)
    figure.supylabel(f"{space} + c", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def moments(profile: Profile, table: pd.DataFrame) -> Figure:
    """How far the cumulants are from the exact ones by noise level, a column a cell: 1 is what saying 0 gives."""
    kinds = [each for each in ("second cumulant", "third cumulant") if table[each].notna().any()]
    cells = list(dict.fromkeys(table["cell"]))
    down, across = max(len(kinds), 1), max(len(cells), 1)
    figure, axes = plt.subplots(down, across, figsize=(2.6 * across + 2, 2.6 * down), sharex=True, sharey="row",
                                squeeze=False, layout="constrained")  # fmt: skip
    for row, kind in zip(axes, kinds, strict=False):
        for ax, cell in zip(row, cells, strict=True):
            for way in dict.fromkeys(table["way"]):
                mine = select(table, way=way, cell=cell)
                ax.plot(mine["sigma"], mine[kind], marker=".", lw=1.2, label=way)
            ax.axhline(1, color=GREY, lw=1, ls=":")
            ax.set(xscale="log", yscale="log")
        row[0].set_ylabel(f"{kind}: error over its size", fontsize=9)
    for ax, cell in zip(axes[0], cells, strict=False):
        ax.set_title(_cell(profile, cell), fontsize=9)
    figure.supxlabel("noise level σ", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def gaps(table: pd.DataFrame) -> Figure:
    """How far each process is from rest by how much noise has come in."""
    figure, ax = plt.subplots(figsize=(5.4, 3.2), layout="constrained")
    for name in dict.fromkeys(table["process"]):
        mine = select(table, process=name)
        ax.plot(mine["noise"], mine["from rest"], marker=".", label=name, ls="--" if name == "searched" else "-")
    ax.set(xscale="log", yscale="log", xlabel="noise that has come in", ylabel="from rest, nats a pixel")
    _evaluations(ax, sorted(set(table["noise"])))
    figure.legend(loc="outside right upper")
    return figure
