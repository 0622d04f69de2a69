"""The figures of the evidence: the answer on one page, and one figure for each question behind it.

Panels that are compared have one axis. What an axis cannot show is clipped at its end and marked by an arrow.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fdm.process.frameworks import FRAMEWORKS
from fdm.samplers import GRIDS, SAMPLERS
from fdm.study.figures import COLOUR, GREY, MARKER, plain, style
from fdm.study.measurements import label, select

LEAST, MOST = 0.7, 30.0  # ratios that an axis shows
TICKS = [0.3, 0.4, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0]
LINES = ["-", (0, (4, 2)), ":", "-."]  # of the targets, in their order


def _ratios(ax: Axes, low: float = LEAST, high: float = MOST, across: bool = False) -> None:
    """A logarithmic axis of ratios, the vertical one or, `across`, the other, with a line at 1."""
    axis, limit, line = (ax.xaxis, ax.set_xlim, ax.axvline) if across else (ax.yaxis, ax.set_ylim, ax.axhline)
    (ax.set_xscale if across else ax.set_yscale)("log")
    limit(low, high)
    ticks = [0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 8, 15, 30] if high / low > 12 else TICKS  # as many as there is room for
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    line(1, color=GREY, lw=1, ls=":")


def _shares(ax: Axes) -> None:
    """A logarithmic axis of shares of the training."""
    ax.set(xscale="log", xlabel="share of the training", xlim=(1 / 37, 1.15))
    ax.set_xticks([1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1], ["1/32", "1/16", "1/8", "1/4", "1/2", "1"])
    ax.xaxis.set_minor_locator(NullLocator())


def _arrows(ax: Axes, x: pd.Series, top: float, colour: str) -> None:
    """Mark what lies beyond the upper end of an axis."""
    if len(x):  # an empty line that is not clipped has no place, and upsets the layout
        ax.plot(x, [top] * len(x), "^", color=colour, ms=5, clip_on=False)


def _interval(ax: Axes, row: pd.Series, y: float, colour: str, marker: str, full: bool = True) -> None:
    """A ratio with its interval on a horizontal axis of ratios, clipped where the axis ends."""
    low, high = ax.get_xlim()
    ax.plot(np.clip([row["low"], row["high"]], low, high), [y, y], color=colour, lw=1.6, solid_capstyle="butt")
    if low <= row["ratio"] <= high:
        ax.plot(row["ratio"], y, marker, color=colour, markerfacecolor=colour if full else "white", ms=6)
    for beyond, at, arrow in ((row["high"] > high, high, ">"), (row["low"] < low, low, "<")):
        if beyond:
            ax.plot(at, y, arrow, color=colour, ms=7, clip_on=False)


def answer(levels: pd.DataFrame, inputs: pd.DataFrame, nfe: int) -> Figure:
    """What FDM does, noise level by noise level: from `findings.levels` of all targets, and `findings.inputs`.

    Above the ratio of denoising errors, thick that of the input scaling alone; below it the network's input, and where
    training and sampler spend their time.
    """
    frameworks = list(FRAMEWORKS)
    targets = levels["target"].unique() if len(levels) else []
    lines = {target: LINES[number % 4] for number, target in enumerate(targets)}  # the same in every panel
    figure, axes = plt.subplots(
        3, len(frameworks), figsize=(11, 8.2), sharex=True, sharey="row", height_ratios=[3, 1.7, 1],
        layout="constrained",
    )  # fmt: skip
    for column, framework in enumerate(frameworks):
        top, middle, bottom = axes[:, column]
        colour = COLOUR[framework]
        _ratios(top)
        mine = select(levels, framework=framework.upper())
        for target, both in mine.groupby("target", sort=False) if len(mine) else ():
            alone, published = (select(both, change=change) for change in ("c_in", "c_in and warm-up"))
            part = alone if len(alone) else published  # with the warm-up, where the scaling alone was not measured
            if len(alone) and len(published):
                top.plot(published["sigma"], published["ratio"].clip(LEAST, MOST), color="black", lw=0.8,
                         ls=lines[target], label=f"{target}, scaling and warm-up")  # fmt: skip
            what = "input scaling" if len(alone) else "scaling and warm-up"
            top.fill_between(part["sigma"], part["low"].clip(LEAST, MOST), part["high"].clip(LEAST, MOST), color=colour,
                             alpha=0.2, lw=0)  # fmt: skip
            top.plot(part["sigma"], part["ratio"], color=colour, ls=lines[target], lw=2, label=f"{target}, {what}")
            above = part[part["ratio"] > MOST]
            _arrows(top, above["sigma"], MOST, colour)
        top.set_title(f"{label(framework, 'fdm')} over {label(framework, 'baseline')}", loc="left", fontsize=11)
        if len(top.lines) > 1:
            top.legend(loc="upper left", fontsize=7, handlelength=1.5, labelspacing=0.2, borderaxespad=0.2)
        for kernel in ("baseline", "fdm"):
            part = select(inputs, framework=framework, kernel=kernel)
            look = style(framework, kernel) | {"marker": ""}
            middle.plot(part["sigma"], part["input"], **look)
        middle.axhline(1, color=GREY, lw=1, ls=":")
        middle.set(yscale="log", ylim=(0.05, 100))
        middle.legend(loc="upper left", fontsize=8)
        density = part["density"] / part["density"].max()
        bottom.fill_between(part["sigma"], density, color=colour, alpha=0.3, lw=0)
        steps = GRIDS["karras"](0.002, 80.0, True).levels(SAMPLERS["heun"].steps(nfe, True)).numpy()
        steps = steps[steps >= 0.02]
        bottom.plot(steps, np.full(len(steps), 1.12), "|", color="black", ms=9)
        bottom.set(xscale="log", xlim=(0.02, 80), ylim=(0, 1.3), yticks=[], xlabel="noise level σ")
    axes[0][0].set_ylabel("ratio of denoising errors\n(above 1 FDM is worse)")
    axes[1][0].set_ylabel("standard deviation\nof the network's input")
    axes[2][0].set_ylabel("training (area)\nsampler (ticks)")
    return figure


def learning_curves(losses: dict[str, pd.Series]) -> Figure:
    """Weighted denoising error against training images, one row a target: `Target.loss` by its name."""
    figure, axes = plt.subplots(
        len(losses), len(FRAMEWORKS), figsize=(10, 3.2 * len(losses)), sharey="row", squeeze=False, layout="constrained"
    )
    for row, (target, loss) in zip(axes, losses.items(), strict=True):
        for ax, framework in zip(row, FRAMEWORKS, strict=True):
            for kernel, cell in (("baseline", f"{framework}-baseline"), ("fdm", f"{framework}-fdm-warmup")):
                if cell in loss.index.get_level_values("cell"):
                    curves = loss.loc[cell].unstack("seed").sort_index()
                    ax.fill_between(curves.index, curves.min(axis=1), curves.max(axis=1), color=COLOUR[framework],
                                    alpha=0.2, lw=0)  # fmt: skip
                    ax.plot(curves.index, np.exp(np.log(curves).mean(axis=1)), **style(framework, kernel))
            ax.set(yscale="log", title=f"{target}, {framework.upper()}")
            _shares(ax)
            plain(ax.yaxis)
            if ax.lines:
                ax.legend(fontsize=8)
            else:
                ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", fontsize=9, color=GREY)
        row[0].set_ylabel("weighted denoising error")
    return figure


def changes(table: pd.DataFrame) -> Figure:
    """One change at a time, from `findings.why`: the whole error (full) and that at high noise levels (hollow)."""
    figure, ax = plt.subplots(figsize=(8.6, 0.42 * len(table) + 1.4), layout="constrained")
    _ratios(ax, 0.05, 20, across=True)
    ax.xaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20]))
    for y, (_, row) in enumerate(table.iterrows()):
        colour = COLOUR[row["change"].split()[0].split("-")[0].rstrip(",").lower()]
        high = pd.Series({key: row[f"{key}, high"] for key in ("ratio", "low", "high")})
        _interval(ax, row, y - 0.14, colour, "o")
        _interval(ax, high, y + 0.14, colour, "o", full=False)
    if len(table):
        ax.set_yticks(range(len(table)), table["change"])
    ax.invert_yaxis()
    ax.set_xlabel("ratio of errors to the model without the change: all levels (full), σ from 5 up (hollow)")
    return figure


def radius(table: pd.DataFrame) -> Figure:
    """What the networks see of the length of x: the radius slope by noise level, from `findings.slopes` of a target."""
    columns = [name for name in table if name.startswith("σ = ")]
    x = [float(name.removeprefix("σ = ")) for name in columns]
    figure, ax = plt.subplots(figsize=(6.6, 4), layout="constrained")
    for framework in FRAMEWORKS:
        for kernel in ("baseline", "fdm"):
            row = select(table, cell=f"{framework}-{kernel}")
            if len(row):
                ax.plot(x, row[columns].iloc[0], **style(framework, kernel))
    for at, text in ((0, "blind"), (1, "right")):
        ax.axhline(at, color=GREY, lw=1, ls=":")
        ax.annotate(text, (1, at), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                    va="center", fontsize=8, color=GREY)  # fmt: skip
    ax.set(xscale="log", xlabel="noise level σ", ylabel="radius slope", ylim=(-0.25, 1.25))
    ax.set_xticks(x, [f"{sigma:g}" for sigma in x])
    ax.xaxis.set_minor_locator(NullLocator())
    figure.legend(loc="outside right upper")
    return figure


def early(table: pd.DataFrame) -> Figure:
    """What the warm-up does as the training goes on, from `findings.effects` of a target, under either c_in."""
    figure, axes = plt.subplots(1, len(FRAMEWORKS), figsize=(10, 3.4), sharey=True, layout="constrained")
    for ax, framework in zip(axes, FRAMEWORKS, strict=True):
        _ratios(ax, 0.7, 1.5)
        for kernel, question in (("baseline", "warm-up, baseline's c_in"), ("fdm", "warm-up, FDM's c_in")):
            part = select(table, framework=framework.upper(), question=question, metric="weighted")
            if len(part):
                part = part.sort_values("training")
                look = style(framework, kernel) | {"label": label(framework, kernel)}
                ax.fill_between(part["training"], part["low"].clip(0.7, 1.5), part["high"].clip(0.7, 1.5),
                                color=COLOUR[framework], alpha=0.15, lw=0)  # fmt: skip
                ax.plot(part["training"], part["ratio"], **look)
        ax.set_title(framework.upper())
        _shares(ax)
        if len(ax.lines) > 1:
            ax.legend(fontsize=8)
    axes[0].set_ylabel("error with warm-up / without")
    return figure


def solvers(table: pd.DataFrame) -> Figure:
    """Solver error of FDM over its baseline's by evaluations, from `findings.solver`: one row a target."""
    mine = select(table, quantity="solver error")
    targets, samplers = list(dict.fromkeys(mine["target"])), list(dict.fromkeys(mine["sampler"]))
    figure, axes = plt.subplots(
        max(len(targets), 1), max(len(samplers), 1), figsize=(9, 3.2 * max(len(targets), 1)), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for row, target in zip(axes, targets, strict=False):
        for ax, sampler in zip(row, samplers, strict=False):
            _ratios(ax, 0.3, 8)
            for framework in FRAMEWORKS:
                part = select(mine, target=target, sampler=sampler, framework=framework.upper())
                if part.empty:
                    continue
                colour = COLOUR[framework]
                ax.fill_between(part["nfe"], part["low"].clip(0.3, 8), part["high"].clip(0.3, 8), color=colour,
                                alpha=0.15, lw=0)  # fmt: skip
                ax.plot(part["nfe"], part["ratio"], color=colour, marker=MARKER[framework],
                        label=FRAMEWORKS[framework].label)  # fmt: skip
                _arrows(ax, part[part["ratio"] > 8]["nfe"], 8, colour)
            ticks = sorted({*mine["nfe"]})
            ax.set(xscale="log", title=f"{target}, {SAMPLERS[sampler].label}")
            ax.set_xticks(ticks, [f"{tick:g}" if tick in (5, 7, 9, 13, 17, 25, 35, 49, 79) else "" for tick in ticks])
            ax.xaxis.set_minor_locator(NullLocator())
    for ax in axes[-1]:
        ax.set_xlabel("network evaluations a sample (NFE)")
    for row in axes:
        row[0].set_ylabel("solver error, FDM / baseline")
    if targets:
        axes[0][0].legend(fontsize=8)
    return figure


def costs(table: pd.DataFrame) -> Figure:
    """Training images of FDM for its baseline's error, over the baseline's, by noise level: from `findings.shifts`."""
    targets = list(dict.fromkeys(table["target"])) if len(table) else []
    figure, axes = plt.subplots(1, len(FRAMEWORKS), figsize=(10, 3.4), sharey=True, layout="constrained")
    for ax, framework in zip(axes, FRAMEWORKS, strict=True):
        _ratios(ax, 0.3, 5)
        ax.axhline(0.5, color="black", lw=1, ls="--")
        for number, target in enumerate(targets):
            place = 4.4 * 0.75**number  # a row a target for what is not drawn
            mine = select(table, target=target, framework=framework.upper())
            part = mine[mine["level"] != "weighted"]
            x = part["level"].astype(float)
            ratio = part["ratio"] if "ratio" in part else pd.Series(np.nan, index=part.index)
            if ratio.notna().any():
                ax.plot(x, ratio, color=COLOUR[framework], ls=LINES[number % 4], marker="os^D"[number % 4], ms=3,
                        label=target)  # fmt: skip
            _arrows(ax, x[(part["refused"] == part["seeds"]) | (ratio > 5)], place, COLOUR[framework])
            for _, row in part[(part["refused"] > 0) & (part["refused"] < part["seeds"])].iterrows():
                ax.text(float(row["level"]), place, f"{row['refused']}/{row['seeds']}", fontsize=6, rotation=90,
                        ha="center", va="center", color=COLOUR[framework])  # fmt: skip
            if ax is axes[0]:
                ax.annotate(target, (0.016, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
        ax.set(xscale="log", xlabel="noise level σ", title=framework.upper(), xlim=(0.016, 100))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, loc="lower right")
    axes[0].set_ylabel("images of FDM / of the baseline")
    axes[0].annotate("the claim: half", (0.016, 0.5), xytext=(3, 3), textcoords="offset points", fontsize=8)
    return figure
