"""The reproducibility report: hand-written reasons around generated numbers."""

import re
from pathlib import Path

import pandas as pd

from fdm.agreement import settle_text
from fdm.errors import FdmError
from fdm.files import root
from fdm.profiles import Profile


def numbers(effects: pd.DataFrame, costs: pd.DataFrame) -> dict[str, str]:
    """Numbers that the report names in its sentences, by what it calls them.

    `effect VP input scaling 100%` is a ratio with its interval and corrected p-value; of the several comparisons of one
    question, such as `effect VP multiplier m = 4 / 2 100%`, each by what it compares. `cost VP Heun 100%` is a ratio of
    costs.
    """
    out = {}
    for row in effects.to_dict("records"):
        several = row["question"] == "multiplier"
        what = f"{row['question']} {row['compared']}" if several else row["question"]
        p = row["p (Holm)"]
        told = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
        text = f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}], {told}"
        out[f"effect {row['framework']} {what} {row['training']}"] = text
    for row in costs.to_dict("records"):
        at = row["baseline's cost"]
        out[f"cost {row['framework']} {row['sampler']} {at}"] = row["ratio (95 %)"]
    return out


def write(profile: Profile, values: dict[str, str]) -> Path:
    """Write results/<profile>/REPORT.md: notebooks/05_report.md with its {{names}} replaced by `values`.

    {{table NAME}} stands for results/<profile>/tables/NAME.md. Raises FdmError for a name without a value.
    """
    path = root() / "notebooks" / "05_report.md"

    def value(match: re.Match) -> str:
        name = " ".join(match[1].split())
        if name.startswith("table "):
            return (profile.results / "tables" / f"{name[6:]}.md").read_text(encoding="utf-8").rstrip()
        if name not in values:
            raise FdmError(f"{path} asks for {name}, which nothing gives; there are {', '.join(sorted(values))}.")
        return values[name]

    text = re.sub(r"\{\{(.*?)\}\}", value, path.read_text(encoding="utf-8"), flags=re.DOTALL)
    settle_text(profile.results / "REPORT.md", text)
    return profile.results / "REPORT.md"
