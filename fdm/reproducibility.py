"""The reproducibility report: hand-written reasons around generated numbers."""

import re
from pathlib import Path

from fdm import study
from fdm.agreement import settle_text
from fdm.errors import FdmError
from fdm.files import root
from fdm.profiles import Profile


def numbers(profile: Profile) -> dict[str, str]:
    """Numbers that the prose names, by what it calls them, from the tables on record.

    `effect VP input scaling 100%` is a ratio with its interval and corrected p-value, `ratio VP input scaling 100%` the
    same without p; of the several comparisons of one question, such as `effect VP multiplier m = 4 / 2 100%`, each by
    what it compares. `cost VP Heun 100%` is a ratio of costs. `noise edm-baseline trainings` is a standard deviation as
    a share of the distance (latents, references, best of three and last two checkpoints as well), `bias edm-baseline`
    the share of the distance at the tables' n that is bias, `top ve-baseline 10` the ratio of distances from that
    highest noise level to those from the usual one, and `difference C3 VP` FDM at half of the training less the
    baseline at its end.
    """
    folder = profile.results / "tables"
    out = {}
    for row in study.read(folder / "effects.csv").to_dict("records"):
        several = row["question"] == "multiplier"
        what = f"{row['question']} {row['compared']}" if several else row["question"]
        p = row["p (Holm)"]
        told = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
        ratio = f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        out[f"ratio {row['framework']} {what} {row['training']}"] = ratio
        out[f"effect {row['framework']} {what} {row['training']}"] = f"{ratio}, {told}"
    for name in ("costs_training", "costs_nfe"):
        for row in study.read(folder / f"{name}.csv").to_dict("records"):
            out[f"cost {row['framework']} {row['sampler']} {row[COST]}"] = row["ratio (95 %)"]
    names = {"trainings": "SD, trainings", "latents": "SD, latents", "references": "SD, references",
             "best of three": "best of three below mean", "last two": "last two checkpoints"}  # fmt: skip
    for row in study.read(folder / "noise.csv").to_dict("records"):
        for name, column in names.items():
            out[f"noise {row['cell']} {name}"] = f"{row[column] / row['distance']:.0%}".replace("%", " %")
    for row in study.read(folder / "bias.csv").to_dict("records"):
        share = row["bias at n"] / row[f"n = {profile.evaluation.samples}"]
        out[f"bias {row['cell']}"] = f"{share:.0%}".replace("%", " %")
    for row in study.read(folder / "highest_noise.csv").dropna(subset=["ratio to 80"]).to_dict("records"):
        out[f"top {row['cell']} {row['sigma_max']:g}"] = f"{row['ratio to 80']:.2f}"
    for told in study.read_json(profile.results / "claims.json")["claims"]:
        if told["claim"] == "C3":
            number = told["numbers"]["difference from baseline, full"]["FDM, reduced"]
            ends = "" if number["low"] is None else f" [{number['low']:.0f}, {number['high']:.0f}]"
            out[f"difference C3 {told['subject']}"] = f"{number['value']:.0f}{ends}"
            out[f"verdict C3 {told['subject']}"] = told["verdict"]
    return out


COST = "baseline's cost"


def filled(path: Path, profile: Profile, values: dict[str, str]) -> str:
    """A text with its {{names}} replaced by `values`.

    {{table NAME}} stands for results/<profile>/tables/NAME.md. Raises FdmError for a name without a value.
    """

    def value(match: re.Match) -> str:
        name = " ".join(match[1].split())
        if name.startswith("table "):
            return (profile.results / "tables" / f"{name[6:]}.md").read_text(encoding="utf-8").rstrip()
        if name not in values:
            raise FdmError(f"{path} asks for {name}, which nothing gives; there are {', '.join(sorted(values))}.")
        return values[name]

    return re.sub(r"\{\{(.*?)\}\}", value, path.read_text(encoding="utf-8"), flags=re.DOTALL)


def write(profile: Profile, values: dict[str, str]) -> Path:
    """Write results/<profile>/REPORT.md: notebooks/05_report.md with its {{names}} replaced; returns its path."""
    text = filled(root() / "notebooks" / "05_report.md", profile, values)
    settle_text(profile.results / "REPORT.md", text)
    return profile.results / "REPORT.md"
