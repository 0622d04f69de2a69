"""The arithmetic of the paper's own tables: savings by the same rule and tolerance as ours, costs, and steps."""

import math

import pandas as pd

from fdm.data.sources import SOURCES
from fdm.study import intervals, rules
from fdm.study.measurements import published
from fdm.study.rules import Estimate


def savings() -> pd.DataFrame:
    """C3 in the paper's Table 1 with the same tolerance: FIDs of one training each, so that no interval is known.

    Ratios to the baseline at 200 Mimg: FDM at 100, the baseline itself at 100, and FDM at 200.
    """
    rows = []
    for (dataset, framework), part in published(1).groupby(["dataset", "framework"], sort=False):
        fid = part.set_index(["kernel", "duration_mimg"])["fid"]
        rows.append({"dataset": dataset, "framework": framework} | _judged(fid, 100, 200, "at half", "at the end"))
    return pd.DataFrame(rows)


def fewer_steps() -> pd.DataFrame:
    """C4 in Tables 2 and 3 by the same rule: ratios to the baseline with most evaluations, FDM and it with fewest."""
    rows = []
    for number in (2, 3):
        for framework, part in published(number).groupby("framework", sort=False):
            fid = part.set_index(["kernel", "nfe"])["fid"]
            ends = part["nfe"].min(), part["nfe"].max()
            rows.append({"table": number, "framework": framework} | _judged(fid, *ends, "with fewest", "with most"))
    return pd.DataFrame(rows)


def _judged(fid: pd.Series, reduced: int, whole: int, less: str, more: str) -> dict[str, float | str]:
    """FIDs by kernel and cost over the baseline's at the whole cost, and the verdicts that follow."""
    places = {f"FDM {less}": ("fdm", reduced), f"baseline {less}": ("baseline", reduced), f"FDM {more}": ("fdm", whole)}
    ratios = {name: float(fid[place] / fid["baseline", whole]) for name, place in places.items()}
    mine, control, full = (Estimate(math.log(ratio), 0.0, 1, 1) for ratio in ratios.values())
    verdict = rules.judge_saving(mine, control, full)
    stricter = rules.judge_saving(mine, control, full, tolerance=rules.EFFECT)
    return ratios | {"verdict": verdict, "verdict with half the tolerance": stricter}


def costs() -> pd.DataFrame:
    """`share_of_cost` of each pair in the paper's three tables: table, data, framework, share, known."""
    rows = []
    for number, cost in ((1, "duration_mimg"), (2, "nfe"), (3, "nfe")):
        for (data, framework), part in published(number).groupby(["dataset", "framework"], sort=False):
            pair = part.pivot(index=cost, columns="kernel", values="fid").sort_index()
            share, known = intervals.share_of_cost(pair.index, pair["baseline"], pair["fdm"])
            where = {"table": number, "data": SOURCES[str(data)].label, "framework": framework.upper()}
            rows.append(where | {"share": share, "known": known})
    return pd.DataFrame(rows)


def loss_by_nfe() -> pd.DataFrame:
    """How much FID grows, in Tables 2 and 3, from the most evaluations to the fewest: a ratio for each model.

    A model that needs fewer steps has a smaller ratio, however good it is at many steps.
    """
    parts = [published(number).assign(table=number) for number in (2, 3)]
    wide_table = pd.concat(parts).pivot(index=["table", "framework", "kernel"], columns="nfe", values="fid")
    ratio = wide_table[min(wide_table)] / wide_table[max(wide_table)]
    return ratio.unstack("kernel").rename_axis(columns=None)
