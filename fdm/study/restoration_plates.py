"""The figures of the comparison of restorations."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from fdm.model.oracle import Mixture
from fdm.study import restoration, restored
from fdm.study.figures import GREY, plain
from fdm.study.measurements import select
from fdm.study.profiles import Profile
from fdm.tasks.physics import TASKS

STEPS = 0.8  # from a level to the next, where a contraction is shown


def sheet(kept: dict[str, dict[str, Tensor]], shown: list[tuple[str, str, str]], images: int = 6) -> Figure:
    """Images in rows, and what was made of them in columns: (cell, key of its pictures, title).

    The last two columns are the image itself and how far the restoration before it is off.
    """
    columns = [*shown, ("", "clean", "the image"), ("", "off", "off by")]
    figure, axes = plt.subplots(images, len(columns), figsize=(0.95 * len(columns), 1.0 * images + 0.5),
                                squeeze=False, layout="constrained")  # fmt: skip
    first = kept[shown[0][0]]
    for column, (cell, key, title) in zip(axes.T, columns, strict=True):
        if key == "off":
            mine = kept[shown[-1][0]][shown[-1][1]].int() - first["clean"].int()
        else:
            mine = (first if key == "clean" else kept[cell])[key]
        for ax, image in zip(column, mine, strict=False):
            bounds = {"vmin": -255, "vmax": 255, "cmap": "RdBu_r"} if key == "off" else {"vmin": 0, "vmax": 255}
            pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
            ax.imshow(pixels, interpolation="nearest", **({"cmap": "gray"} | bounds))
            ax.set_axis_off()
        column[0].set_title(title, fontsize=7)
    return figure


def starts(profile: Profile, rows: pd.DataFrame, system: str) -> Figure:
    """PSNR by the noise level that a system starts from, on the images for tuning: a panel a task, a line a number of
    evaluations. A ring marks what was chosen."""
    par = restoration.of(profile)
    mine = select(rows, part="tuning", system=system, quantity="PSNR")
    mine = mine.assign(sigma_0=mine["options"].str.extract(r"sigma_0=([\d.]+)", expand=False).astype(float))
    cells = list(dict.fromkeys(mine["cell"]))
    figure, axes = plt.subplots(1, len(par.tasks), figsize=(2.2 * len(par.tasks) + 1.2, 2.6), layout="constrained",
                                squeeze=False, sharey=True)  # fmt: skip
    colours = dict(zip(par.nfe, sns.color_palette("viridis", len(par.nfe)), strict=True))
    for ax, task in zip(axes[0], par.tasks, strict=True):
        for cell in cells:
            fdm = profile.cells[cell].kernel == "fdm"
            for nfe in par.nfe:
                line = select(mine, task=task, cell=cell, nfe=nfe).sort_values("sigma_0")
                label = f"{nfe}, {'FDM' if fdm else 'baseline'}"
                ax.plot(line["sigma_0"], line["value"], "-" if fdm else "--", marker=".", color=colours[nfe], lw=1,
                        label=label)  # fmt: skip
                if len(line):
                    best = line.loc[line["value"].idxmax()]
                    ax.plot(best["sigma_0"], best["value"], "o", mfc="none", mec=colours[nfe], ms=7)
        ax.set(xscale="log", xlabel=r"start $\sigma_0$")
        ax.set_title(TASKS[task].label, fontsize=8)
        ax.set_xticks(sorted(set(mine["sigma_0"])), [f"{each:g}" for each in sorted(set(mine["sigma_0"]))], fontsize=7)
        ax.xaxis.set_minor_locator(NullLocator())
    axes[0, 0].set_ylabel("PSNR, dB")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=7,
                  title="evaluations")  # fmt: skip
    return figure


def by_evaluations(profile: Profile, rows: pd.DataFrame, task: str, kernel: str, left_out: list[str]) -> Figure:
    """Systems against evaluations, with networks of one kernel: PSNR, KID and classes. Dotted is the estimate.

    A PSNR far below that is shown by a triangle at the lower end.
    """
    par, kid = restoration.of(profile), restored.kid(rows)
    cells = [name for name, cell in profile.cells.items() if cell.kernel == kernel]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    colours, number = sns.color_palette("tab20", 20), 0
    for cell in cells:
        about = profile.cells[cell]
        if task not in [*par.tasks_of(about), restored.ALL]:
            continue
        if task == restored.ALL and about.given is not None:
            continue
        for each in (each for each in par.of(about) if each.name not in left_out):
            for ax, quantity in zip(axes, ("PSNR", kid, "accuracy"), strict=True):
                found = {nfe: restored.values(rows, cell, quantity, nfe, task) for nfe in par.nfe}
                line = {nfe: t.loc[each.name].mean() for nfe, t in found.items() if each.name in t.index}
                ax.plot([*line], [*line.values()], marker=".", lw=1.2, color=colours[number % 20], label=each.name)
            number += 1
    for ax, quantity in zip(axes, ("PSNR", kid, "accuracy"), strict=True):
        base = restored.values(rows, restoration.ESTIMATE, quantity, 0, task).to_numpy().mean()
        ax.axhline(base, color=GREY, lw=1, ls=":")
        ax.set(xscale="log", ylabel="PSNR, dB" if quantity == "PSNR" else quantity, xlabel="evaluations")
        ax.set_xticks(par.nfe, [str(nfe) for nfe in par.nfe], fontsize=8)
        ax.xaxis.set_minor_locator(NullLocator())
    axes[1].set(yscale="log")
    plain(axes[1].yaxis)
    lowest = restored.values(rows, restoration.ESTIMATE, "PSNR", 0, task).to_numpy().mean() - 1
    for line in axes[0].lines:
        below = [(x, lowest) for x, y in zip(*line.get_data(), strict=True) if y < lowest]
        axes[0].plot(*zip(*below, strict=True), "v", color=line.get_color(), clip_on=False) if below else None
    axes[0].set_ylim(bottom=lowest)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure


def contraction() -> Figure:
    """What an ancestral step does to two neighbouring starts, on a Gaussian and on the mixture of three.

    Left by x, where the slope of D decides; right the most over x by noise level. Above 1 they move apart.
    """
    mixture = Mixture.reference()
    gaussian = Mixture(torch.ones(1), torch.zeros(1, 1, 1, 1), torch.tensor([0.5]))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    x = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    r = STEPS**2

    def spread(of: Mixture, sigma: float) -> np.ndarray:
        D = of(x.reshape(-1, 1, 1, 1), torch.tensor(sigma)).flatten()
        return (r + (1 - r) * torch.gradient(D, spacing=(x,))[0]).numpy()

    for sigma, colour in zip((0.1, 0.2, 0.5, 2.0), sns.color_palette("viridis", 4), strict=True):
        axes[0].plot(x, spread(mixture, sigma), color=colour, lw=1.2, label=rf"$\sigma$ = {sigma:g}")
    sigmas = np.geomspace(0.02, 20, 60)
    for of, name, colour in ((mixture, "mixture of three", "C3"), (gaussian, "one Gaussian", "C0")):
        axes[1].plot(sigmas, [spread(of, sigma).max() for sigma in sigmas], color=colour, label=name)
    axes[1].axhline(r, color=GREY, lw=1, ls=":", label="a denoiser that does not move,\nas the theorem has it")
    for ax in axes:
        ax.axhline(1, color="black", lw=0.8)
        ax.legend(fontsize=7, loc="upper right")
    axes[0].set(xlabel="x", ylabel="distance of two neighbours, over that before")
    axes[1].set(xscale="log", xlabel=r"noise level $\sigma$")
    return figure


def kernels(table: pd.DataFrame) -> Figure:
    """FDM less its baseline with each system, PSNR over all tasks; shaded is what counts as equal.

    What lies beyond the frame, a point or the end of an interval, is an arrow.
    """
    table = table.iloc[::-1].reset_index(drop=True)
    names = [*dict.fromkeys(table["system"])]
    figure, ax = plt.subplots(figsize=(6.5, 0.8 + 0.3 * len(names)), layout="constrained")
    numbers = sorted(set(table["nfe"]))
    colours = dict(zip(numbers, sns.color_palette("viridis", len(numbers)), strict=True))
    for _, row in table.iterrows():
        y = names.index(row["system"]) + 0.15 * (numbers.index(row["nfe"]) - (len(numbers) - 1) / 2)
        low, high = max(row["low"], -1.5), min(row["high"], 1.5)
        ax.plot([low, high], [y, y], color=colours[row["nfe"]], lw=1)
        for end in (row["low"], row["high"]):
            if abs(end) > 1.5:
                ax.plot(np.clip(end, -1.5, 1.5), y, ">" if end > 0 else "<", color=colours[row["nfe"]], ms=5)
        if abs(row["difference"]) <= 1.5:
            many = f"{row['nfe']:.0f} evaluation{'s' * (row['nfe'] > 1)}"
            ax.plot(row["difference"], y, ".", color=colours[row["nfe"]], label=many)
    ax.axvspan(-restored.TOLERANCE, restored.TOLERANCE, color=GREY, alpha=0.2, lw=0)
    ax.axvline(0, color="black", lw=0.8)
    ax.set(yticks=range(len(names)), xlabel="FDM less its baseline, PSNR in dB", xlim=(-1.55, 1.55))
    ax.set_yticklabels(names, fontsize=8)
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(handles.values(), handles.keys(), fontsize=7)
    return figure
