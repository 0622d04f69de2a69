"""When does what was computed here agree with what is on record?

On another processor sums come out with other last bits. Two kinds of result are told apart.

What is *derived* from measurements (tables, figures, verdicts, executed notebooks) agrees when its words are the same
and its numbers differ by no more than one in ten million: see `same`.

What is *measured* on a network that was trained here agrees when it is of the same experiment and no further from the
record than rounding, other images or other training runs would move it: see `judge`.
"""

import io
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from scipy.special import bdtr, stdtrit

from fdm.files import FdmError, root, write_text
from fdm.metrics.shares import wilson
from fdm.study.profiles import Profile

DIGITS = 10  # significant digits that results are written with: rounding reaches the twelfth
TEXT = {"experiment": str, "checkpoint": str}  # columns of hashes, some of which look like numbers
RELATIVE, ABSOLUTE = 1e-7, 1e-10  # by which derived numbers may differ
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")

# ------------------------------------------------------------------------------------------------ what is derived


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its floating-point numbers to ten significant digits."""

    return table.map(rounded_value)


def rounded_value(value: Any) -> Any:
    """A plain value, such as one for JSON, with its floating-point numbers to ten significant digits."""
    if isinstance(value, dict):
        return {key: rounded_value(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded_value(part) for part in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def same(old: str, new: str) -> bool:
    """Whether two texts have the same words, and numbers that differ by 1e-7 of their size, or 1e-10, at most."""
    if old == new:
        return True
    if _NUMBER.split(old) != _NUMBER.split(new):
        return False
    return all(map(_close, _NUMBER.findall(old), _NUMBER.findall(new)))


def _close(a: str, b: str) -> bool:
    if a == b or not set(".eE") & {*a, *b}:  # whole numbers count something
        return a == b
    return math.isclose(float(a), float(b), rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def pictures_agree(old: bytes, new: bytes) -> bool:
    """Whether two PNG pictures have the same size, and no pixel differs by more than an eighth of the range."""
    one, two = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int) for data in (old, new))
    return one.shape == two.shape and bool(np.abs(one - two).max(initial=0) <= 32)


def settle_text(path: Path, text: str) -> bool:
    """Write a text, unless what is there differs from it by rounding alone; returns whether it was kept."""
    if path.is_file() and same(path.read_text(encoding="utf-8", errors="replace"), text):
        return True
    write_text(path, text)
    return False


# ----------------------------------------------------------------------------------------------- what is measured

KEY = (
    "run",
    "duration",
    "sampler",
    "options",
    "nfe",
    "metric",
    "sigma_max",
    "latents",
    "reference",
    "n",
)  # names a measurement
SHARES = ("precision", "recall", "coverage", "accuracy")  # metrics that are a share of images
MARGIN = 20  # times the standard deviation that rounding was measured to cause: other processors may round more
CHAOTIC = 0.01  # a run whose distance rounding moves by more than this share is not repeatable to rounding
LEVEL = 0.95  # of the intervals: one in twenty is missed by chance
ALPHA = 0.01  # chance of calling equal results different
VERDICTS = {
    "exact": "equal in all digits",
    "rounding": "differs by no more than rounding was measured to cause, twenty times over",
    "within": "differs by more than that, and lies in the 95 % interval around the number on record",
    "missed": "lies outside of the interval",
    "missing": "on record and not measured here, or the reverse",
}


def losses(path: Path, here: pd.DataFrame, few_steps: bool = False) -> bool:
    """Whether the training losses on record are of the same experiments and agree with those of this machine.

    Each within a fifth and on average within 3 %: rounding moves them by up to 5 %, and 0.4 % on average. Those of
    `few_steps` may be anything: one is an estimate around 0, and an adversary answers what rounding does.
    """
    old = _of_same_experiments(path, here)
    if old is None:
        return False
    names = [column for column in here.columns if column != "loss"]
    if not all(
        same(str(a), str(b)) for a, b in zip(old[names].values.ravel(), here[names].values.ravel(), strict=True)
    ):
        return False
    if few_steps:
        return True
    off = np.log(here["loss"] / old["loss"]).abs()
    return bool(off.max() < 0.2 and off.mean() < 0.03)


def floor(path: Path, here: pd.DataFrame) -> bool:
    """Whether the floor on record is of the same experiment and agrees with this machine's.

    Rounding moves features by a millionth; each number may differ by 1 % of the width of its metric's interval, and
    a share by two images.
    """
    old = _of_same_experiments(path, here)
    if old is None:
        return False
    words = ["metric", "n", "n_reference"]
    if not (old[words].astype(str) == here[words].astype(str)).all(axis=None):
        return False
    share = here["metric"].isin(SHARES)
    allowed = (0.01 * (old["high"] - old["low"])).where(~share, 2 / old["n"])
    return all(((old[key] - here[key]).abs() <= allowed).all() for key in ("value", "low", "high"))


def _read(path: Path) -> pd.DataFrame | None:
    """A table, or None where there is none, or none that can be read."""
    try:
        return pd.read_csv(path, dtype=TEXT)
    except (OSError, ValueError):
        return None


def _of_same_experiments(path: Path, here: pd.DataFrame) -> pd.DataFrame | None:
    """The table on record, or None where it is not of the same experiments in the same form as `here`."""
    old = _read(path)
    if old is None or list(old.columns) != list(here.columns) or len(old) != len(here):
        return None
    return old if old["experiment"].astype(str).tolist() == here["experiment"].astype(str).tolist() else None


def _near(old: pd.Series, here: pd.Series) -> bool:
    """Whether positive numbers are 3 % off on average at most, and one in twenty by more than a tenth; or are none."""
    if old.empty:
        return True
    off = np.log(here / old).abs()
    return bool((off > 0.1).mean() <= 1 - LEVEL and off.mean() < 0.03)


def rounding(profile: Profile) -> pd.DataFrame:
    """What rounding was measured to do to this profile's numbers: run, metric, deviation, chaotic; may be empty.

    `deviation` is a standard deviation, relative for distances and absolute for precision and recall.
    """
    found = _read(profile.results / "rounding.csv")
    return pd.DataFrame(columns=["run", "metric", "deviation", "chaotic"]) if found is None else found


def spreads(profile: Profile) -> pd.DataFrame:
    """Deviation of each distance's logarithm over runs with other seeds, from the same models of the ablations.

    Indexed by framework, kernel, duration, sampler, options, nfe and metric: deviation, and the number of trainings.
    Empty for a profile that is not on the digits.
    """
    columns = ["framework", "kernel", "duration", "sampler", "options", "nfe", "metric"]
    path = root() / "results" / "ablations" / "measurements.csv"
    rows = _read(path) if profile.dataset.name == "digits" else None
    if rows is None:
        return pd.DataFrame(columns=[*columns, "deviation", "trainings"]).set_index(columns)
    try:
        published = rows["kernel"].map({"baseline": "baseline", "fdm": "fdm-warmup"})
        rows = rows[(rows["cell"] == rows["framework"] + "-" + published) & (rows["value"] > 0)]
        rows = rows[(rows["sigma_max"] == 80) & (rows["latents"] == 0) & (rows["reference"] == 0)]
        first = rows.groupby([*columns, "seed"])["value"].first()  # of several n, that of the tables
        logs = np.log(first).groupby(columns)
        return pd.DataFrame({"deviation": logs.std(ddof=1), "trainings": logs.count()}).dropna()
    except (KeyError, TypeError) as error:
        raise FdmError(f"{path} is damaged ({error!r}).") from error


def intervals(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Around each measurement on record, where it may come out elsewhere: low, high, and `tight`, for rounding alone.

    The 95 % interval is the widest of up to three: `images`, the sampling noise (the number's own interval, or
    Wilson's for a share of n images); `trainings`, the difference of two trainings with other seeds, where several
    were measured, and of adversarial ones always, by those on record; `rounding`, for a chaotic run. `of` tells which.
    `tight` is the distance that rounding may explain, empty where it was not measured.
    """
    by_rounding = rounding(profile).set_index(["run", "metric"])
    by_seed = spreads(profile)
    out = []
    for row in rows.to_dict("records"):
        value, share = row["value"], row["metric"] in SHARES
        low, high, of = row["low"], row["high"], "images"
        if share:
            low, high = wilson(value, row["n_reference" if row["metric"] in ("recall", "coverage") else "n"])
        widths = {}
        key = tuple(
            row[column] for column in ("framework", "kernel", "duration", "sampler", "options", "nfe", "metric")
        )
        if value > 0 and not share and key in by_seed.index:
            seeds = by_seed.loc[key]
            t = float(stdtrit(seeds["trainings"] - 1, 0.5 + LEVEL / 2))
            widths["trainings"] = math.exp(t * seeds["deviation"] * math.sqrt(2))
        if row["sampler"] == "siddm" and len(alike := _of_other_seeds(rows, row)["value"]) > 1:
            off = float(stdtrit(len(alike) - 1, 0.5 + LEVEL / 2)) * float(alike.std(ddof=1)) * math.sqrt(2)
            low, high, of = min(low, value - off), max(high, value + off), "trainings"
        tight = math.nan
        if (row["run"], row["metric"]) in by_rounding.index:
            moved = by_rounding.loc[(row["run"], row["metric"])]
            unit = 1 / row["n"] if share else 0.0  # one image more or less
            tight = max(MARGIN * moved["deviation"] * (1 if share else abs(value)), 2 * unit)
            if moved["chaotic"]:
                tight = math.nan
                off = 4 * moved["deviation"]  # of a difference of two, at 95 % from few values
                low, high = (min(low, value - off), max(high, value + off)) if share else (low, high)
                widths["rounding"] = 1 if share else math.exp(off)
        for name, factor in widths.items():
            if not high - low >= abs(value) * (factor - 1 / factor):  # true of nan, too
                low, high, of = *sorted((value / factor, value * factor)), name
        out.append({"low": low, "high": high, "of": of if low == low else "", "tight": tight})
    return pd.DataFrame(out, index=rows.index, columns=["low", "high", "of", "tight"])


def _of_other_seeds(rows: pd.DataFrame, row: dict[str, Any]) -> pd.DataFrame:
    keys = ["cell", "duration", "options", "nfe", "sigma_max", "latents", "reference", "metric", "n"]
    return rows[(rows[keys] == pd.Series({key: row[key] for key in keys})).all(axis=1)]


class Judgement(NamedTuple):
    """Whether measurements of two machines agree, by `judge`."""

    rows: pd.DataFrame  # one a measurement: KEY, committed, reproduced, low, high, of, verdict, deviation
    problems: list[str]  # none when they agree

    @property
    def counts(self) -> dict[str, int]:
        """How many measurements there are of each verdict."""
        return {verdict: int((self.rows["verdict"] == verdict).sum()) for verdict in VERDICTS}


def judge(profile: Profile, committed: pd.DataFrame, reproduced: pd.DataFrame) -> Judgement:
    """Whether what was measured here agrees with what is on record, all measurements taken together.

    Every number gets a verdict of its own (`VERDICTS`). They agree when
    - none is missing;
    - among the runs that rounding moves by 1 % at most, on the same kind of device, no more than one number in twenty
      differs by more than rounding may explain: same seeds, same networks;
    - no more are missed than chance explains. Numbers of one run and metric go together, as they share a network and
      latents, so a run's metric counts once, by its share of missed numbers; the sum may reach the 99 % point of the
      binomial distribution with p = 5 %.
    """
    keys = [*KEY]
    old, new = (table.set_index(keys) for table in (committed, reproduced))
    old, new = (table[~table.index.duplicated()] for table in (old, new))
    around = intervals(profile, committed).set_index(pd.MultiIndex.from_frame(committed[keys]))
    around = around[~around.index.duplicated()]
    every = old.index.union(new.index, sort=False)
    table = around.reindex(every)
    table["committed"], table["reproduced"] = old["value"].reindex(every), new["value"].reindex(every)
    alike = old["device"].reindex(every) == new["device"].reindex(every)
    off = (table["reproduced"] - table["committed"]).abs()
    exact = off <= ABSOLUTE + 10.0 ** (1 - DIGITS) * table["committed"].abs()
    tight = off <= table["tight"]
    inside = (table["low"] <= table["reproduced"]) & (table["reproduced"] <= table["high"])
    table["verdict"] = np.select(
        [off.isna(), exact, tight & alike, inside], ["missing", "exact", "rounding", "within"], "missed"
    )
    half = (table["high"] - table["low"]) / 2
    table["deviation"] = (off / half).where(half > 0)  # in half widths of the interval
    table["expected to rounding"] = table["tight"].notna() & alike
    table = table.reset_index()
    return Judgement(table, _problems(table))


def _problems(table: pd.DataFrame) -> list[str]:
    problems = []
    missing = int((table["verdict"] == "missing").sum())
    if missing:
        problems.append(f"{missing} numbers are on one side alone")
    tight = table[table["expected to rounding"]]
    moved = tight[~tight["verdict"].isin(["exact", "rounding"])]
    if len(moved) > (1 - LEVEL) * len(tight):
        worst = ", ".join(moved["run"].value_counts().index[:3])
        problems.append(
            f"{len(moved)} of {len(tight)} numbers differ by more than rounding explains, where one in twenty may "
            f"(most of {worst}): these are not the same networks"
        )
    there = table[table["verdict"] != "missing"]
    missed, limit, groups = missed_by_chance(there)
    if missed > limit:
        problems.append(
            f"too many numbers are missed: in {groups} groups (a run's metric each) the missed shares add up to "
            f"{missed:.1f}, where chance explains {limit}"
        )
    return problems


def missed_by_chance(table: pd.DataFrame) -> tuple[float, int, int]:
    """Sum of the missed shares over groups of run and metric; what chance may make it; and the number of groups."""
    shares = (table["verdict"] == "missed").groupby([table["run"], table["metric"]]).mean()
    n = len(shares)
    limit = next((k for k in range(n + 1) if bdtr(k, n, 1 - LEVEL) >= 1 - ALPHA), n) if n else 0
    return float(shares.sum()), limit, n


def measurements(profile: Profile, path: Path, here: pd.DataFrame) -> bool:
    """Whether the measurements on record at `path` are of the same experiments as those of `here`, and agree."""
    old = _of_same_experiments(path, here)
    if old is None:
        return False
    return not judge(profile, old, here).problems


def errors(path: Path, here: pd.DataFrame) -> bool:
    """Whether the errors of denoisers and solvers on record are of the same experiments as those of `here`, and agree.

    Another machine's networks differ by rounding, which a long training amplifies: errors may be 3 % off on average
    and slopes 0.1, and one error in twenty more than a tenth (at the highest levels, a chaotic training's).
    """
    old = _of_same_experiments(path, here)
    if old is None:
        return False
    slope = here["quantity"] == "radius slope"
    off = (here["value"] - old["value"]).abs()
    # A gradient's norm is 0 where it cannot be told from its noise.
    some = ~slope & (here["quantity"] != "gradient norm")
    return bool((off[slope] < 0.1).all()) and _near(old["value"][some], here["value"][some])


def systems(path: Path, here: pd.DataFrame) -> bool:
    """Whether a comparison of systems on record is of the same experiments as that of `here`, and agrees.

    Distances in x and Frechet distances may be 3 % off on average, and one in twenty more than a tenth, as networks
    differ by rounding; the others are too near to 0 for shares, and seconds are each machine's own. Of networks that
    draw, whose training is adversarial, only the mean over trainings has to agree.
    """
    old = _of_same_experiments(path, here)
    if old is None or list(old["quantity"]) != list(here["quantity"]):
        return False
    drawn = (here["sampler"] == "siddm") | (here["part"] == "toy")
    some = here["quantity"].str.contains("distance|FD")
    near = _near(old["value"][some & ~drawn], here["value"][some & ~drawn])
    return near and _alike(old[some & drawn], here[some & drawn])


def _alike(old: pd.DataFrame, here: pd.DataFrame) -> bool:
    """Whether the outcomes of adversarial trainings are those of the same law: an adversary answers what rounding does.

    Of each set of trainings that differ by their seed, the means of ln(value) by Student's two-sample test, at 1 % for
    all sets together.
    """
    if old.empty:
        return True
    sets = ["system", "nfe", "quantity"]
    logs = [np.log(table["value"]).groupby([table[each] for each in sets]) for table in (old, here)]
    n = logs[0].size()
    pooled = (logs[0].var() + logs[1].var()) / n
    wide = stdtrit(2 * (n - 1), 1 - ALPHA / (2 * len(n))) * np.sqrt(pooled)
    return bool(((logs[0].mean() - logs[1].mean()).abs() <= wide).all())


def restorations(path: Path, here: pd.DataFrame) -> bool:
    """Whether a comparison of restorations on record is of the same experiments as that of `here`, and agrees.

    PSNR may be 0.1 dB off on average and one in twenty more than 0.5, SSIM and residuals as distances in `systems`; the
    others are too near to 0 for shares, or each machine's own.
    """
    old = _of_same_experiments(path, here)
    if old is None or list(old["quantity"]) != list(here["quantity"]):
        return False
    off = (here["value"] - old["value"])[here["quantity"] == "PSNR"].abs()
    some = here["quantity"].isin(["SSIM", "residual"])
    return bool(off.mean() < 0.1 and (off > 0.5).mean() <= 0.05) and _near(old["value"][some], here["value"][some])


def read_back(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it will be read from its file, with ten digits."""
    return pd.read_csv(io.StringIO(rounded(table).to_csv(index=False)), dtype=TEXT)
