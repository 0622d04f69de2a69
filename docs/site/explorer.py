"""What the site's explorer shows: samples of the networks in git as PNG sprites, their scores, and an index of both.

The index is a script and no JSON, so that the page works from a disk as well, where a browser fetches nothing.
"""

import base64
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

import fdm
from fdm.data.datasets import to_uint8
from fdm.model.denoiser import Denoise
from fdm.samplers import SAMPLERS
from fdm.study import measurements, profiles
from fdm.study.profiles import USUAL
from fdm.tasks import generation

SEEDS = range(24)
MOST = 25  # evaluations that are pictured: the samples of more look the same
COLUMNS = 12  # noise levels in a strip
SCORES = {
    "Fréchet distance": "lower is better", "KID": "lower is better", "precision": "higher is better",
    "recall": "higher is better", "density": "higher is better", "coverage": "higher is better",
    "accuracy": "higher is better",
}  # fmt: skip


class Seen:
    """A denoiser that keeps what it returned, and the noise levels that it was asked at."""

    def __init__(self, denoiser: Denoise) -> None:
        self.denoiser = denoiser
        self.images = dict[float, Tensor]()  # by noise level, the last where there are several

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """D(x; sigma)."""
        image = self.denoiser(x, sigma, class_labels)
        self.images[float(f"{float(sigma.max()):.3g}")] = image
        return image

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)


@torch.inference_mode()
def sprite(denoiser: Denoise, sampler: str, nfe: int, **options: float) -> tuple[np.ndarray, list[float]]:
    """A row a seed: the latent, D(x; sigma) at noise levels from the first to the last, and the sample.

    uint8 (8 seeds, 8 columns); and those noise levels.
    """
    seen = Seen(denoiser)
    *_, x = generation.trajectory(seen, SEEDS, sampler, nfe, **options)
    latents, _ = generation.draw_latents(SEEDS, denoiser.shape, denoiser.classes)
    chosen = np.linspace(0, len(seen.images) - 1, min(COLUMNS, len(seen.images))).round().astype(int)
    levels = [[*seen.images][i] for i in chosen]
    columns = [latents / 3, *(seen.images[level] for level in levels), x]  # nearly all of a normal latent is within 3
    pixels = torch.cat([to_uint8(column) for column in columns], -1)
    return pixels.flatten(0, 2).numpy(), levels


def scores(rows: pd.DataFrame) -> list[list[Any]]:
    """Cell, sampler, evaluations, share of the training, metric, value and the ends of its interval, None for none."""
    kept = rows.assign(metric=rows["metric"].str.replace(r"FD\(.*\)", "Fréchet distance", regex=True))
    kept = kept[kept["metric"].isin(SCORES) & (kept["seed"] == kept["seed"].min())]
    kept["sampler"] = [name(row.sampler, row.options) for row in kept.itertuples()]
    columns = ["cell", "sampler", "nfe", "duration", "metric", "value", "low", "high"]
    plain = kept[columns].drop_duplicates(columns[:5]).itertuples(index=False)
    return [[None if isinstance(value, float) and math.isnan(value) else value for value in row] for row in plain]


def name(sampler: str, options: str) -> str:
    """A sampler with its options, as the address has it."""
    return sampler if options == USUAL else f"{sampler}-{options.replace('=', '')}"


def write(folder: Path, live: bool, most: int = MOST) -> None:
    """Write, in place of a folder, index.js and sprites of every cell of the default profile.

    There is one for each setting that is scored with at most so many evaluations. `live` tells the page that it can
    draw others itself.
    """
    profile = profiles.find("digits")
    rows = measurements.table(profile)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pictured, samplers, ranges = dict[str, list[float]](), dict[str, str](), dict[str, tuple[float, float]]()
    settings = rows[["sampler", "options", "nfe"]].drop_duplicates()
    for cell in profile.cells:
        denoiser = fdm.load(f"{cell}-{min(profile.seeds)}")
        ranges[cell] = generation.noise_range(denoiser)
        for sampler, options, nfe in settings.itertuples(index=False):
            given = {} if options == USUAL else dict(part.split("=") for part in options.split())
            key, told = name(sampler, options), ", ".join(f"{option} = {value}" for option, value in given.items())
            samplers[key] = ", ".join(filter(None, [SAMPLERS[sampler].label, told]))
            if nfe > most:
                continue
            pixels, levels = sprite(denoiser, sampler, nfe, **{option: float(v) for option, v in given.items()})
            Image.fromarray(pixels).save(folder / f"{cell}-{key}-{nfe}.png", optimize=True)
            pictured[f"{cell}-{key}-{nfe}"] = levels
    latents, labels = generation.draw_latents(SEEDS, denoiser.shape, denoiser.classes)
    floor = measurements.calibration(profile).iloc[0]
    index = {
        "classes": labels.tolist(),
        "frameworks": {
            cell.framework: measurements.label(cell.framework, "baseline") for cell in profile.cells.values()
        },
        "samplers": samplers,
        "metrics": SCORES,
        "samples": profile.evaluation.samples,
        "floor": [float(floor[column]) for column in ("value", "low", "high")],
        "pictured": pictured,
        "scores": scores(rows),
        # What docs/site/static/live.js draws with, if docs/site/live.py wrote the networks.
        "live": {"latents": base64.b64encode(latents.numpy().tobytes()).decode(), "range": ranges, "ready": live},
    }
    (folder / "index.js").write_text(f"const INDEX = {json.dumps(index, ensure_ascii=False)};\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    drawn = Path(sys.argv[1])
    write(drawn, (drawn.parent / "live" / "ready").exists())
