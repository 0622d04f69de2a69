"""Networks that see a velocity beside each pixel, and networks of the pixel alone: errors, the bound, samples.

What a pixel and its velocity tell of the clean pixel is all in one number of one level (`process.multivariate`). So a
network of the position is asked the same question, can be sampled by CLD's process, and is the control: whatever a
network that was trained with a velocity does better comes of its training, and of no more knowledge.

The rules are those of `standings`: trainings of equal seed are paired, intervals are Student's, and a ratio of samples
counts where two of three spaces say so.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit

from fdm.process import multivariate
from fdm.process.frameworks import FRAMEWORKS
from fdm.process.joint import JOINT
from fdm.study import evidence, measurements, standings
from fdm.study.measurements import select
from fdm.study.profiles import Profile

VARIANCE = 0.25  # of a pixel, as EDM assumes it
PROCESSES = {
    "VP": multivariate.vp, "CLD": multivariate.cld, "ALDA": multivariate.alda, "MALDA": multivariate.malda,
}  # fmt: skip
SEARCH, RATE = 400, 0.03  # steps of a search for a process, and its rate


def cells(profile: Profile) -> tuple[list[str], list[str]]:
    """The cells with a velocity, and the baselines of the position alone."""
    trained = [name for name, cell in profile.cells.items() if (cell.source, cell.kernel) == ("train", "baseline")]
    joint, plain = ([name for name in trained if profile.cells[name].framework in kind] for kind in (JOINT, FRAMEWORKS))
    return joint, plain


def every(profile: Profile) -> list[str]:
    """Both."""
    joint, plain = cells(profile)
    return joint + plain


def _mean(values: pd.Series) -> dict[str, float]:
    """Geometric mean over trainings with Student's 95 % interval."""
    logs = np.log(values.to_numpy(float))
    n = len(logs)
    half = float(stdtrit(n - 1, 0.975)) * logs.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    told = (logs.mean(), logs.mean() - half, logs.mean() + half)
    return dict(zip(("value", "low", "high"), np.exp(told).tolist(), strict=True))


def by_level(profile: Profile) -> pd.DataFrame:
    """Error over the exact D at each noise level of trained networks: geometric mean over trainings, and interval."""
    rows = select(evidence.errors(profile), quantity="excess", duration=1.0, cell=every(profile))
    found = rows.groupby(["cell", "sigma"], sort=False)["value"]
    told = [{"cell": cell, "sigma": sigma} | _mean(each) for (cell, sigma), each in found]
    return pd.DataFrame(told, columns=["cell", "sigma", "value", "low", "high"])


def bounds(profile: Profile) -> pd.DataFrame:
    """What the evidence lower bound loses of the entropy by each network, nats a pixel, after each share of a training.

    Half of the error over the exact D, integrated over 1 / sigma^2 between the levels that are measured, 0.02 and 80:
    the same for all processes.
    """
    rows = select(evidence.errors(profile), quantity="excess", cell=every(profile))
    told = list[dict[str, Any]]()
    if len(rows):
        table = rows.pivot_table(index=["cell", "duration", "kimg", "seed"], columns="sigma", values="value")
        sigma = table.columns.to_numpy(float)
        lost = pd.Series(np.trapezoid(table.to_numpy() / sigma**2, np.log(sigma), axis=1), table.index)
        found = lost.groupby(["cell", "duration", "kimg"], sort=False)
        told = [
            {"cell": cell, "duration": duration, "kimg": kimg} | _mean(each) for (cell, duration, kimg), each in found
        ]
    return pd.DataFrame(told, columns=["cell", "duration", "kimg", "value", "low", "high"])


def across(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Samples of networks with a velocity over those of the position, by the same sampler at equal evaluations.

    The ratio in the first space, with its interval; `counts` is of all spaces.
    """
    c, known, out = standings.floors(rows), standings.apart(rows), list[dict[str, Any]]()
    joint, plain = cells(profile)
    for cell in joint:
        names = [each.name for each in standings.of(profile).of(cell)]
        for other in plain:
            for nfe in standings.of(profile).nfe:
                table = {space: standings.both(known, other, cell, space, nfe, floor) for space, floor in c.items()}
                for system in names:
                    found = {space: standings.over(each, (cell, system), (other, system))  # type: ignore[arg-type]
                             for space, each in table.items()}  # fmt: skip
                    first = next(iter(found.values()))
                    if first is not None:
                        row = {"cell": cell, "over": other, "system": system, "nfe": nfe} | standings.told(first)
                        out.append(row | {"counts": standings.verdict([*found.values()])})
    return pd.DataFrame(out, columns=["cell", "over", "system", "nfe", "ratio", "low", "high", "counts"])


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """`across` counted: in how many comparisons one is ahead, over all evaluations, and the median ratio."""
    found = table.groupby(["cell", "over", "system"], sort=False)
    told = {"comparisons": found.size()}
    for word in ("better", "worse"):
        told[word] = found["counts"].apply(lambda each, word=word: int((each == word).sum()))
    return pd.DataFrame(told | {"median ratio": found["ratio"].median()}).reset_index()


def by_training(profile: Profile) -> pd.DataFrame:
    """`bounds`, and beside them samples by the length of the training: kernel distance, mean over trainings.

    By the sampler of Table 1, which asks every network for the position alone.
    """
    (sampler, nfe), rows = profile.evaluation.primary, measurements.table(profile)
    mine = select(rows, metric="KID", sampler=sampler, nfe=nfe, cell=every(profile))
    table = mine.groupby(["cell", "duration", "kimg"], sort=False)["value"].mean()
    lost, drawn = bounds(profile), table.rename("KID").reset_index()
    return lost.merge(drawn, how="outer") if len(lost) else drawn.reindex(columns=[*lost.columns, "KID"])


def searched(noise: float) -> multivariate.Multivariate:
    """The process with one auxiliary variable that is nearest to rest when so much noise has come in: from CLD on.

    With an exact D the bounds of two processes at equal ends differ by nothing else, so that for MDM's search there is
    nothing else to find.
    """
    coupling, root = torch.tensor(1.0, requires_grad=True), torch.tensor([[0.1, 0.0], [0.0, 1.0]], requires_grad=True)
    adam = torch.optim.Adam([coupling, root], lr=RATE)
    at = noise / multivariate.cld().noise
    for _ in range(SEARCH):
        adam.zero_grad()
        multivariate.searched(coupling, root).unrest(at, VARIANCE).log().backward()
        adam.step()
    return multivariate.searched(coupling.detach(), root.detach())


def gaps(noises: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)) -> pd.DataFrame:
    """How far each process is from rest, nats a pixel of variance 0.25, when so much noise has come in.

    Noise is counted in units of each variable's variance at rest: a process gains nothing by another unit of its
    velocity. `coupling`, and the share of the noise that comes `into the pixel`, are those of the process.
    """
    out = []
    for noise in noises:
        for name, process in [*((name, make()) for name, make in PROCESSES.items()), ("searched", searched(noise))]:
            value = process.unrest(noise / process.noise, VARIANCE).item()
            share = (process.D[0, 0] / process.m[0] / process.noise).item()
            coupling = process.Q[1, 0].item() if len(process.m) > 1 else math.nan
            row = {"process": name, "noise": noise, "from rest": value, "coupling": coupling}
            out.append(row | {"into the pixel": share})
    return pd.DataFrame(out)


def learned(rows: pd.DataFrame) -> pd.DataFrame:
    """The processes that networks learned, by run: coupling, noise that enters the pixel, and what enters both.

    They began near CLD, which has 1, 0 and 0: at 1, 0.01 and 0.
    """
    mine = select(rows, part="process")
    return mine.pivot_table(index="run", columns="quantity", values="value", sort=False).reset_index()


def moments(rows: pd.DataFrame) -> pd.DataFrame:
    """How far second and third cumulants are from the exact ones, by cell, way and level: geometric mean over runs.

    1 is what saying 0 would give. `seconds` an image is their median.
    """
    mine = select(rows, part="moments")
    mine = mine.assign(sigma=standings.option(mine, "sigma"))
    out = list[dict[str, Any]]()
    for (cell, system, sigma), part in mine.groupby(["cell", "system", "sigma"], sort=False):
        row = {"cell": cell, "way": system, "sigma": sigma}
        for quantity, each in part.groupby("quantity", sort=False)["value"]:
            row[str(quantity)] = float(each.median()) if quantity == "seconds" else float(np.exp(np.log(each).mean()))
        out.append(row)
    return pd.DataFrame(out, columns=["cell", "way", "sigma", "second cumulant", "third cumulant", "seconds"])
