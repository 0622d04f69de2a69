"""One visual language: colour and marker tell the framework, line and fill the kernel.

The colours are Okabe and Ito's, which colour-blind readers can tell apart; markers and dashes tell the same in grey.
"""

import functools
import io
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fdm.files import replace, write_json
from fdm.process.joint import JOINT
from fdm.study import agreement
from fdm.study.measurements import MODELS, frechet, label, read_json, select
from fdm.study.profiles import USUAL
from fdm.study.tables import sampler_label

COLOUR = {"vp": "#0072B2", "ve": "#D55E00", "edm": "#009E73", "cld": "#CC79A7", "mdm": "#E69F00"}
MARKER = {"vp": "o", "ve": "s", "edm": "^", "cld": "D", "mdm": "v"}
GREY = "#666666"


def use_style() -> None:
    """Set the style for all figures, and make equal figures equal bytes."""
    sns.set_theme(context="notebook", style="ticks", font_scale=0.85)
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "fdm",
            "svg.fonttype": "path",
            "figure.dpi": 100,
            "savefig.dpi": 150,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
        }
    )


def save(figure: Figure, folder: Path, name: str, data: list[str]) -> None:
    """Write <name>.svg and <name>.png without dates; a figure that looks as the one on record is left as it is.

    `data` are the files that it shows, relative to the profile's results, or from the root where they begin with
    results/; none where it is drawn from formulas alone. figures.json in the folder tells them of each figure.
    """
    manifest = folder / "figures.json"
    told = read_json(manifest) if manifest.is_file() else {}
    if told.get(name) != data:
        write_json(manifest, dict(sorted((told | {name: data}).items())))
    drawn = {}
    for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata, bbox_inches="tight")
        drawn[folder / f"{name}.{suffix}"] = buffer.getvalue()
    (svg, lines), (png, pixels) = drawn.items()
    if svg.is_file() and png.is_file():
        same = agreement.same(svg.read_text(encoding="utf-8"), lines.decode())
        if same or agreement.pictures_agree(png.read_bytes(), pixels):
            return
    for path, content in drawn.items():
        replace(path, functools.partial(Path.write_bytes, data=content))


def style(framework: str, kernel: str) -> dict[str, Any]:
    """Line and marker of a model: baseline dashed and hollow, FDM solid and full."""
    fdm = kernel == "fdm"
    return {
        "color": COLOUR[framework], "marker": MARKER[framework], "linestyle": "-" if fdm else "--",
        "markerfacecolor": COLOUR[framework] if fdm else "white", "markersize": 6, "label": label(framework, kernel),
    }  # fmt: skip


def plain(axis: Axis, parts: tuple[float, ...] = (1, 2, 5)) -> None:
    """Mark a short logarithmic axis at these parts of each decade, as plain numbers, which do not run into another."""
    axis.set_major_locator(LogLocator(subs=parts, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _lines(ax: Axes, rows: pd.DataFrame, x: str, y: str = "value", **kwargs: Any) -> None:
    for framework, kernel in [*MODELS, *((framework, "baseline") for framework in JOINT)]:
        part = rows[(rows["framework"] == framework) & (rows["kernel"] == kernel)]
        if len(part):
            seeds = part.groupby(x)[y]
            line = seeds.mean()
            ax.plot(line.index, line.to_numpy(), **(style(framework, kernel) | kwargs))
            low, high = seeds.min(), seeds.max()  # what the trainings lie between
            if part["seed"].nunique() == 1 and "low" in part:  # of one, the interval of its measurement
                low, high = (part.groupby(x)[end].mean() for end in ("low", "high"))
            ax.fill_between(line.index, low, high, color=COLOUR[framework], alpha=0.15, lw=0)


def _floor(ax: Axes, floor: pd.Series) -> None:
    ax.axhspan(floor["low"], floor["high"], color=GREY, alpha=0.2, lw=0)
    ax.axhline(floor["value"], color=GREY, lw=1, ls=":", label="real against real")


def _caption(rows: pd.DataFrame) -> str:
    return f"{frechet(rows)}, n = {int(rows['n'].iloc[0]):,}"


def quality_by_duration(rows: pd.DataFrame, floor: pd.Series) -> Figure:
    """Frechet distance against the images trained on, beside the floor: from `measurements.primary`."""
    sampler, nfe = rows["sampler"].iloc[0], rows["nfe"].iloc[0]
    figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    _floor(ax, floor)
    _lines(ax, rows, "kimg")
    ax.set(xlabel="training images (thousands)", ylabel=_caption(rows), yscale="log")
    ax.set_xticks(sorted(rows["kimg"].unique()), [f"{kimg:.3g}" for kimg in sorted(rows["kimg"].unique())])
    ax.set_title(f"Quality against training, {sampler_label(sampler, USUAL)}, NFE {nfe}", loc="left")
    figure.legend(loc="outside right upper")
    return figure


def quality_by_nfe(rows: pd.DataFrame, floor: pd.Series) -> Figure:
    """Frechet distance of the fully trained models against NFE, a panel a sampler, and below it FDM over baseline.

    `rows` are of `measurements.standard`.
    """
    rows = select(rows, duration=1.0)
    samplers = list(dict.fromkeys(zip(rows["sampler"], rows["options"], strict=True)))
    across = min(len(samplers), 3)
    down = -(-len(samplers) // across)
    size = (4.0 * across + 1.2, 5.2 * down + 0.6)
    figure, every = plt.subplots(
        2 * down, across, figsize=size, sharey="row", squeeze=False, layout="constrained", height_ratios=[2, 1] * down
    )
    axes, below = every[::2], every[1::2]
    for ax in [*axes.flat[len(samplers) :], *below.flat[len(samplers) :]]:
        ax.set_axis_off()
    ticks = sorted(rows["nfe"].unique())
    for ax, under, (sampler, options) in zip(axes.flat, below.flat, samplers, strict=False):
        _floor(ax, floor)
        part = select(rows, sampler=sampler, options=options)
        _lines(ax, part, "nfe")
        _ratio(under, part)
        under.set_xlim(0.9 * ticks[0], 1.1 * ticks[-1])
        ax.set(xscale="log", yscale="log", xlabel="network evaluations a sample (NFE)")
        ax.set_xlim(0.9 * ticks[0], 1.1 * ticks[-1])  # the same in all panels, so that they can be compared
        shown = [tick for before, tick in zip([0, *ticks], ticks, strict=False) if tick > 1.15 * before]
        ax.set_xticks(shown, [str(tick) for tick in shown])
        ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        ax.set_title(sampler_label(sampler, options), loc="left")
    for row, under in zip(axes, below, strict=True):
        row[0].set_ylabel(_caption(rows))
        under[0].set_ylabel("FDM / baseline")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return figure


def _ratio(ax: Axes, rows: pd.DataFrame) -> None:
    """FDM over baseline by NFE, a line a framework, on one axis of ratios."""
    for framework, part in rows.groupby("framework", sort=False):
        wide = part.pivot_table(index="nfe", columns="kernel", values="value")
        if {"baseline", "fdm"} <= {*wide}:
            ratio = wide["fdm"] / wide["baseline"]
            ax.plot(ratio.index, ratio, color=COLOUR[str(framework)], marker=MARKER[str(framework)], ms=4)
    ax.axhline(1, color=GREY, lw=1, ls=":")
    ax.set(xscale="log", yscale="log", ylim=(0.4, 10))
    ax.set_yticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"])
    ax.xaxis.set_major_locator(matplotlib.ticker.NullLocator())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(matplotlib.ticker.NullLocator())


def loss_curves(losses: pd.DataFrame) -> Figure:
    """Training loss of each run, one panel a framework: losses of two frameworks weigh noise levels differently."""
    frameworks = [f for f in COLOUR if f in set(losses["framework"])]
    figure, axes = plt.subplots(
        1, len(frameworks), figsize=(3.2 * len(frameworks), 3.2), squeeze=False, layout="constrained"
    )
    for ax, framework in zip(axes[0], frameworks, strict=True):
        part = losses[losses["framework"] == framework].assign(kimg=lambda d: d["images"] / 1000)
        _lines(ax, part, "kimg", "loss", marker="")
        ax.set(yscale="log", xlabel="training images (thousands)", title=framework.upper())
        plain(ax.yaxis)
        ax.legend()
    axes[0][0].set_ylabel("weighted squared error a pixel")
    return figure


def _picture(ax: Axes, image: np.ndarray) -> None:
    ax.imshow(
        image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255, interpolation="nearest"
    )
    ax.set_axis_off()


def _tile(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 (N, C, H, W) to one picture (rows (H+2), columns (W+2), C), with grey lines between the images."""
    images = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=110)
    rows = len(images) // columns
    n, c, h, w = images[: rows * columns].shape
    return images[:n].reshape(rows, columns, c, h, w).transpose(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)


def sample_grids(grids: dict[tuple[str, str], np.ndarray]) -> Figure:
    """Samples of each model, uint8 (64, C, H, W), all from the same latents: one place, one latent."""
    kernels = list(dict.fromkeys(kernel for _, kernel in grids))
    frameworks = list(dict.fromkeys(framework for framework, _ in grids))
    size = (2.9 * len(frameworks), 3.1 * len(kernels))
    figure, axes = plt.subplots(len(kernels), len(frameworks), figsize=size, squeeze=False, layout="constrained")
    for row, kernel in enumerate(kernels):
        for column, framework in enumerate(frameworks):
            ax = axes[row][column]
            ax.set_axis_off()
            if (framework, kernel) in grids:
                _picture(ax, _tile(grids[framework, kernel], 8))
                ax.set_title(label(framework, kernel), fontsize=11)
    return figure


def trajectories(paths: dict[tuple[str, str], np.ndarray], columns: int = 8) -> Figure:
    """How a sample comes about: what D makes of x, float (steps + 1, C, H, W), the sample last.

    Of at most so many steps as there are `columns`, each once.
    """
    last = max(len(path) for path in paths.values()) - 1
    columns = min(columns, last + 1)
    figure, axes = plt.subplots(
        len(paths),
        columns,
        figsize=(1.05 * columns + 1, 1.1 * len(paths)),
        squeeze=False,
        layout="constrained",
    )
    for number, (row, ((framework, kernel), path)) in enumerate(zip(axes, paths.items(), strict=True)):
        steps = np.linspace(0, len(path) - 1, columns).round().astype(int)
        for ax, step in zip(row, steps, strict=True):
            pixels = (np.clip((path[step] + 1) / 2, 0, 1) * 255).round().astype(np.uint8)  # floats in colour end at 1
            _picture(ax, pixels.transpose(1, 2, 0))
            if step == 0:
                ax.text(-0.15, 0.5, label(framework, kernel), transform=ax.transAxes, ha="right", va="center")
            if number == 0:
                ax.set_title("sample" if step == len(path) - 1 else f"step {step}", fontsize=9)
    return figure
