"""The figures of training for few steps."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from fdm.study import few_steps, grid_toy, standings
from fdm.study.figures import GREY
from fdm.study.measurements import select
from fdm.study.profiles import Profile

NAMES = {"baseline": "EDM", "fdm": "EDM-FDM"}
MARKS = {few_steps.ON: "x", "MMD-DDM": "s", "SIDDM": "o", "SIDDM, toy's form": "v", "SIDDM, UFO's form": "^",
         "DDGAN": "D"}  # fmt: skip
COLOURS = dict(zip(MARKS, sns.color_palette("Dark2"), strict=False))


def by_evaluations(profile: Profile, quality: pd.DataFrame, quantities: list[str], floors: dict[str, float]) -> Figure:
    """Quality against evaluations: lines are ways to sample the networks as they were, marks those trained further.

    A column a kernel, a row a quantity; of each that was trained, what it was trained for. KID is shown above c.
    """
    kernels = [kernel for kernel in NAMES if kernel in set(quality["kernel"])]
    figure, axes = plt.subplots(len(quantities), len(kernels), figsize=(4.2 * len(kernels) + 2, 2.7 * len(quantities)),
                                sharex=True, sharey="row", squeeze=False, layout="constrained")  # fmt: skip
    numbers = standings.of(profile).nfe
    for row, quantity in zip(axes, quantities, strict=True):
        for ax, kernel in zip(row, kernels, strict=True):
            mine = select(quality, kernel=kernel)
            shown = mine[quantity] if quantity not in floors else mine[quantity].clip(lower=0) + floors[quantity]
            mine = mine.assign(shown=shown)
            lines = select(mine, method=few_steps.START)
            for colour, (name, line) in zip(sns.color_palette("tab10"), lines.groupby("system", sort=False),
                                            strict=False):  # fmt: skip
                line = line.sort_values("nfe")
                ax.plot(line["nfe"], line["shown"], color=colour, lw=1.2, marker=".", label=name)
            for name, marker in MARKS.items():
                part = select(mine, method=name)
                own = part.apply(lambda each: each["nfe"] in few_steps.own(profile, each["cell"]), axis=1)
                part = part[own] if len(part) else part
                ax.plot(part["nfe"], part["shown"], marker, color=COLOURS[name], ls="", ms=7, label=name,
                        mfc="none" if marker != "x" else None)  # fmt: skip
            ax.set(xscale="log", yscale="linear" if quantity in ("recall", "accuracy") else "log")
            ax.set_xticks(numbers, [str(n) for n in numbers], fontsize=8)
            ax.xaxis.set_minor_locator(NullLocator())
            if quantity in floors:
                ax.axhline(floors[quantity], color=GREY, lw=1, ls=":")
        row[0].set_ylabel(f"{quantity} + c" if quantity in floors else quantity, fontsize=9)
    for ax, kernel in zip(axes[0], kernels, strict=True):
        ax.set_title(NAMES[kernel], fontsize=10)
    figure.supxlabel("network evaluations", fontsize=9)
    handles = {name: line for ax in axes.flat for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    return figure


def along(table: pd.DataFrame, metrics: list[str]) -> Figure:
    """Quality and diversity along the training, a panel a metric: dashed the baseline, solid FDM.

    Grey lines across are the starts' samples of the most evaluations.

    The share 0, before the training, stands left of the first on an axis that is logarithmic from there on.
    """
    figure, axes = plt.subplots(1, len(metrics), figsize=(3.1 * len(metrics) + 1.8, 3), layout="constrained")
    for ax, metric in zip(axes, metrics, strict=True):
        for (kernel, name, nfe), line in table.groupby(["kernel", "method", "nfe"], sort=False):
            style = "-" if kernel == "fdm" else "--"
            if name == few_steps.START:
                ax.axhline(
                    line[metric].item(), ls=style, color=GREY, lw=1, label=f"{name}, {nfe}, {NAMES[str(kernel)]}"
                )
                continue
            alpha = 0.5 if nfe == min(table[table["method"] == name]["nfe"]) else 1.0
            label = f"{name}, {nfe}, {NAMES[str(kernel)]}"
            ax.plot(line["duration"], line[metric], style, marker=MARKS[str(name)],
                    color=COLOURS[str(name)], alpha=alpha, lw=1, ms=3.5, label=label)  # fmt: skip
        shares = sorted(set(table["duration"]))
        ax.set(xlabel="share of the training for few steps", ylabel=metric)
        ax.set_xscale("symlog", base=2, linthresh=min(share for share in shares if share), linscale=0.7)
        ax.set_xticks(shares, [f"{share:g}" for share in shares], fontsize=8)
        ax.xaxis.set_minor_locator(NullLocator())
        if metric not in ("recall", "coverage", "accuracy", "precision"):
            ax.set(yscale="log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure


def sheet(kept: dict[str, dict[str, Tensor]], shown: list[tuple[str, str, str]], images: int = 14) -> Figure:
    """Samples of equal latents side by side: a row a (cell, key of its pictures, title)."""
    figure, axes = plt.subplots(len(shown), images, figsize=(0.6 * images + 2.2, 0.62 * len(shown)), squeeze=False,
                                layout="constrained")  # fmt: skip
    for row, (cell, key, title) in zip(axes, shown, strict=True):
        for ax, image in zip(row, kept[cell][key], strict=False):
            ax.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255,
                      interpolation="nearest")  # fmt: skip
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
        row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def toys(kept: dict[str, dict[str, Tensor]], steps: list[int]) -> Figure:
    """Samples of the grid of 25 Gaussians: a column a form, a row a number of steps."""
    forms = [form for form in grid_toy.FORMS if form in kept]
    figure, axes = plt.subplots(len(steps), len(forms), figsize=(2.1 * len(forms), 2.1 * len(steps) + 0.3), sharex=True,
                                sharey=True, squeeze=False, layout="constrained")  # fmt: skip
    for row, count in zip(axes, steps, strict=True):
        for ax, form in zip(row, forms, strict=True):
            points = kept[form][str(count)]
            ax.plot(points[:, 0], points[:, 1], ".", ms=1, alpha=0.4, color="C0")
            ax.set(xlim=(-13, 13), ylim=(-13, 13), aspect="equal", xticks=[-10, 0, 10], yticks=[-10, 0, 10])
        row[0].set_ylabel(f"{count} steps")
    for ax, form in zip(axes[0], forms, strict=True):
        ax.set_title(few_steps.METHODS.get(form, form.replace("siddm", "SIDDM")), fontsize=9)
    return figure
