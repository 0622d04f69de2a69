"""The tidy table of all that was measured: reading it, and taking rows of it.

The published numbers are FID on other data sets at another scale; they stand beside the measured ones in every
table, in rows of their own, and are nowhere compared with them.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from fdm.files import FdmError, root
from fdm.process.frameworks import FRAMEWORKS
from fdm.process.joint import JOINT
from fdm.study.agreement import TEXT
from fdm.study.profiles import USUAL, USUAL_TOP, Profile

MODELS = [(framework, kernel) for framework in FRAMEWORKS for kernel in ("baseline", "fdm")]


def label(framework: str, kernel: str) -> str:
    """A model as the paper writes it: EDM, EDM-FDM."""
    return (FRAMEWORKS | JOINT)[framework].label + ("-FDM" if kernel == "fdm" else "")


def read(path: Path) -> pd.DataFrame:
    """A CSV file of this study; raises FdmError when it is missing, empty or not a table."""
    try:
        return pd.read_csv(path, dtype=TEXT)
    except FileNotFoundError as error:
        raise FdmError(f"{path} is missing; run dvc repro to measure it.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise FdmError(f"{path} is damaged ({error}); run dvc repro to measure it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of this study; raises FdmError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FdmError(f"{path} is missing; run dvc repro to make it.") from error
    except ValueError as error:
        raise FdmError(
            f"{path} is damaged ({error}); bring it back with git checkout, or remove it and rerun."
        ) from error


def table(profile: Profile) -> pd.DataFrame:
    """The tidy table of all cells of a profile, one row a (run, duration, sampler, options, NFE, metric)."""
    return pd.concat([read(profile.recorded(cell) / "measurements.csv") for cell in profile.cells], ignore_index=True)


def select(rows: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows with these values in these columns; of several in a list, any. An empty table may lack the columns."""
    if rows.empty:
        return rows
    for column, value in wanted.items():
        rows = rows[rows[column].isin(value) if isinstance(value, list | set) else rows[column] == value]
    return rows


def standard(profile: Profile, rows: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Frechet distances of networks, as usual: first latents and reference, usual n, noise level and options."""
    usual: dict[str, Any] = {
        "metric": frechet(rows), "n": profile.evaluation.samples, "sigma_max": USUAL_TOP, "options": USUAL,
        "latents": 0, "reference": 0, "cell": [key for key, cell in profile.cells.items() if cell.source != "analytic"],
    }  # fmt: skip
    return select(rows, **(usual | wanted))


def primary(profile: Profile, rows: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """The rows of `standard` with the sampler and number of evaluations of Table 1."""
    sampler, nfe = profile.evaluation.primary
    return standard(profile, rows, **({"sampler": sampler, "nfe": nfe} | wanted))


def published_pair(profile: Profile, framework: str) -> tuple[str, str]:
    """Names of the cells of a framework's baseline and of the published method, with its warm-up."""
    apart = f"{framework}-fdm-warmup"  # where there is a cell of its own without
    return f"{framework}-baseline", apart if apart in profile.cells else f"{framework}-fdm"


def models(profile: Profile) -> list[str]:
    """The cells of the paper's six models that the profile has: baseline and published method of each framework."""
    pairs = [cell for framework in FRAMEWORKS for cell in published_pair(profile, framework)]
    return [cell for cell in pairs if cell in profile.cells]


def systems(profile: Profile) -> pd.DataFrame:
    """The comparison of systems on all cells, and on real images."""
    return _all(profile.results / "systems")


def restorations(profile: Profile) -> pd.DataFrame:
    """The comparison of restorations on all cells, and of the estimates themselves."""
    return _all(profile.results / "restoration")


def toys(profile: Profile) -> pd.DataFrame:
    """What was measured of the toy, all forms."""
    return _all(profile.results / "toys")


def _all(folder: Path) -> pd.DataFrame:
    return pd.concat([read(path) for path in sorted(folder.glob("*.csv"))], ignore_index=True)


def calibration(profile: Profile) -> pd.DataFrame:
    """The floor of each metric: real images against real images."""
    return read(profile.results / "calibration.csv")


def published(number: int) -> pd.DataFrame:
    """The paper's table 1, 2 or 3, tidy."""
    (path,) = (root() / "results" / "published").glob(f"table{number}_*.csv")
    return read(path)


def losses(profile: Profile) -> pd.DataFrame:
    """Training losses on record of each framework's baseline and published method: images, loss, what the run is.

    Where a profile has no such pair, those of all its cells; empty where none was trained.
    """
    cells = dict.fromkeys(run.cell for run in profile.trained.values())
    parts = [pd.DataFrame(columns=["images", "loss", "run", "framework", "kernel", "seed"])]
    for name in [cell for cell in cells if cell in models(profile)] or cells:
        part = read(profile.results / "training" / f"{name}.csv")
        for column in ("framework", "kernel", "seed"):
            part[column] = [getattr(profile.run(run), column) for run in part["run"]]
        parts.append(part)
    return pd.concat(parts[1:] or parts)


def frechet(rows: pd.DataFrame) -> str:
    """The Frechet distance's name in a table of measurements: FID, or FD(extractor)."""
    return rows["metric"].iloc[0]
