"""Numbers in prose: every document takes them from parameters, tables and records, by name.

{{NAME}} in the report's sources and in the notebooks' prose is replaced when they are published. README.md and
benchmarks/README.md are their own sources: there a value stands between two marks, <!--=NAME-->value<!--/-->, and is
renewed in place.
"""

import difflib
import functools
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from fdm.data.sources import SOURCES, trained_on
from fdm.files import FdmError, root
from fdm.samplers import SAMPLERS
from fdm.study import claims, evidence, measurements, profiles, published, rules, tables
from fdm.study.agreement import settle_text
from fdm.study.errors import SIGMAS
from fdm.study.measurements import standard
from fdm.study.profiles import Profile

WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
MARK = re.compile(r"<!--=(.*?)-->(.*?)<!--/-->", re.DOTALL)  # a value that is renewed in place
UNFINISHED = "unfinished"  # among the values where evidence is being measured: what is missing is said to be
BENCHMARK = "benchmark "  # how the names of what benchmarks/results holds begin
TIMED = ("training step", "evaluation", "sampling")

# ---------------------------------------------------------------------------------------------- how values are written


def percent(share: float) -> str:
    """A share as a whole percentage."""
    return f"{share:.0%}".replace("%", " %")


def amount(n: float) -> str:
    """A large number for people: 8.8 million, 20 thousand."""
    for size, unit in ((1e6, "million"), (1e3, "thousand")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:g}"


def significant(value: float, digits: int) -> str:
    """A number to so many digits, with commas: 8.66, 5,421."""
    return f"{float(format(value, f'.{digits}g')):,}".removesuffix(".0")


def listed(words: Iterable[str]) -> str:
    """Words in a sentence: a, b and c; none where there are none."""
    *first, last = [*words] or ["none"]
    return f"{', '.join(first)} and {last}" if first else last


def interval(value: float, low: float | None, high: float | None, digits: int = 2) -> str:
    """An estimate with its interval, where it has one."""
    ends = "" if low is None or math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{ends}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


# ----------------------------------------------------------------------------------------------------- the names


def numbers(profile: Profile) -> dict[str, str]:
    """Values that prose may ask for, by name: of a profile's parameters, and of what is on record.

    Names are made by the functions below, each of one file; a file that is not there gives none. Raises FdmError for
    a damaged one.
    """
    folder, evidence_of = profile.results / "tables", profile.conclusions == "05_evidence"
    files: list[tuple[Path, Callable[[Profile, pd.DataFrame], dict[str, str]]]] = [
        (profile.results / "calibration.csv", of_floor),
        (profile.results / "measurements.csv", of_measurements),
        *((folder / f"{name}.csv", functools.partial(of_findings, name)) for name in KEYS if evidence_of),
    ]
    out = parameters(profile) | of_published_tables() | of_benchmarks()
    for path, names in files:
        try:
            out |= names(profile, measurements.read(path)) if path.is_file() else {}
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise FdmError(f"{path} is damaged ({error!r}); run dvc repro to make it again.") from error
    if evidence_of:
        there = evidence.recorded(profile)
        out |= {"recorded": str(sum(there)), "all cells": str(len(there))} | of_gates(profile)
    if evidence_of and not all(there):
        out[UNFINISHED] = "some cells are not on record yet"
    verdicts = profile.results / "claims.json"
    return out | (of_claims(measurements.read_json(verdicts)) if verdicts.is_file() else {})


def parameters(profile: Profile) -> dict[str, str]:
    """Values of a profile's parameters and of its design, which need no result.

    A parameter goes by its place, `training.batch` or `cells.edm-fdm.multiplier`. `seeds`, `cells`, `runs` are counts,
    `primary.nfe` is Table 1's number of evaluations. `rules.quality` and so on are those of the verdicts, and
    `training.hours` those that the training runs on record took.
    """
    ev, par = profile.evaluation, profile.training
    dumped = profile.model_dump(exclude_none=True)
    out = {"profile": profile.profile, "threads": _text(profile.threads)}
    for section in ("dataset", "network", "training", "evaluation"):
        plain = {key: value for key, value in dumped.get(section, {}).items() if key != "settings"}
        out |= {f"{section}.{key}": _text(value) for key, value in plain.items()}
    for name, cell in dumped["cells"].items():
        out |= {f"cells.{name}.{key}": _text(cell[key]) for key in ("multiplier", "warmup_steps")}
    source, (sampler, nfe) = SOURCES[profile.dataset.name], ev.primary
    counts = {"seeds": len(profile.seeds), "cells": len(profile.cells), "runs": len(profile.runs),
              "models": len(measurements.models(profile)), "data.size": source.size,
    }  # fmt: skip
    out |= {name: f"{count:,}" for name, count in counts.items()}
    out |= {
        "data.label": source.label, "primary.sampler": SAMPLERS[sampler].label, "primary.nfe": str(nfe),
        "samplers": listed(dict.fromkeys(SAMPLERS[each.sampler].label for each in ev.settings)),
        "other samplers": listed(dict.fromkeys(
            SAMPLERS[each.sampler].label for each in ev.settings if each.sampler not in claims.PAPER.values()
        )),
        "rules.quality": percent(math.exp(rules.QUALITY) - 1), "rules.effect": percent(math.exp(rules.EFFECT) - 1),
        "rules.accuracy": percent(evidence.LEARNT), "rules.primary": str(evidence.PRIMARY), "levels": str(len(SIGMAS)),
        "rules.high": f"{evidence.HIGH:g}",
        "rules.reduced nfe": str(evidence.THIRD[0]), "rules.whole nfe": str(evidence.THIRD[1]),
    }  # fmt: skip
    if par:
        images = par.budget_kimg * 1000
        out |= {"training.images": amount(images), "training.steps": f"{math.ceil(images / par.batch):,}",
                "training.quarter": f"{round(math.ceil(images / par.batch) / 4):,}"}  # fmt: skip
        out |= {"training.epochs": f"{images / n:.0f}"} if (n := trained_on(profile.dataset.name)) else {}
        told = [measurements.read_json(path) for path in (profile.results / "provenance").glob("*.json")]
        out["training.hours"] = f"{sum(each.get('training_seconds', 0) for each in told) / 3600:.1f}"
    return out


def of_gates(profile: Profile) -> dict[str, str]:
    """`gate fashion-16` is the accuracy from which a baseline counts as having learnt, of each target that has it."""
    out = {}
    for each in (profile, *map(profiles.find, profile.beside)):
        if (each.results / "calibration.csv").is_file():
            for real in measurements.select(measurements.calibration(each), metric="accuracy")["value"]:
                out[f"gate {each.profile}"] = f"{evidence.LEARNT * real:.3f}"
    return out


def of_floor(profile: Profile, table: pd.DataFrame) -> dict[str, str]:
    """`floor` is the distance of real images from real images; `floor.n` and `floor.n_reference` are its images."""
    row = table.iloc[0]
    return {
        "metric": row["metric"], "floor": f"{row['value']:.1f}", "floor.low": f"{row['low']:.1f}",
        "floor.high": f"{row['high']:.1f}", "floor.n": f"{row['n']:,}", "floor.n_reference": f"{row['n_reference']:,}",
    }  # fmt: skip


def of_measurements(profile: Profile, rows: pd.DataFrame) -> dict[str, str]:
    """`distance edm-baseline Heun 25` at the end of the training, mean over seeds; `amount networks` and so on."""
    fd = standard(profile, rows, duration=1.0, options=[*rows["options"].unique()])
    means = fd.groupby(["cell", "sampler", "options", "nfe"], sort=False)["value"].mean()
    out = {
        f"distance {cell} {tables.sampler_label(sampler, options)} {nfe}": f"{value:.1f}"
        for (cell, sampler, options, nfe), value in means.items()
    }
    return out


# Of each table of findings the columns that name a row.
KEYS = {
    "verdicts": ["claim", "framework", "target"], "effects": ["framework", "question", "training", "metric", "target"],
    "shifts": ["framework", "level", "target"], "why": ["change", "target"], "slopes": ["cell", "target"],
    "fair": ["framework", "setting", "target"], "solver": ["framework", "quantity", "sampler", "nfe", "target"],
    "steps": ["framework", "sampler", "target"], "distances": ["cell", "duration", "sigma_max", "target"],
    "halves": ["framework", "metric", "compared", "target"], "dimensions": ["d", "target"],
    "levels": ["framework", "change", "sigma", "target"], "gradients": ["cell", "duration", "ceiling", "target"],
    "rates": ["model", "target"], "survival": ["model", "rate", "target"],
}  # fmt: skip


def of_findings(table: str, profile: Profile, rows: pd.DataFrame) -> dict[str, str]:
    """`why EDM with c_in = 1, exact` is a ratio with its interval; a column goes by `why EDM with c_in = 1, exact: p`.

    The name of a row is the table's and the columns of `KEYS`. Of `levels`, `worst EDM, c_in, exact` is the largest
    ratio with its interval, and `worst EDM, c_in, exact: sigma` where it is.
    """
    keys, out = KEYS[table], dict[str, str]()
    for row in rows.to_dict("records"):
        name = f"{table} " + ", ".join(_text(row[key]) for key in keys)
        if not pd.isna(row.get("ratio", math.nan)):
            out[name] = interval(row["ratio"], row["low"], row["high"])
        plain = {key: value for key, value in row.items() if key not in keys and not pd.isna(value)}
        out |= {f"{name}: {key}": _value(key, value) for key, value in plain.items()}
        if "ratio, high" in plain:
            out[f"{name}: high"] = interval(*(row[f"{key}, high"] for key in ("ratio", "low", "high")))
    if table == "levels" and len(rows):
        for _, part in rows.groupby(["framework", "change", "target"]):
            worst = part.loc[part["ratio"].idxmax()]
            # Corrected for the number of levels, as the worst of them is picked.
            half = _half_width(worst, len(part))
            ends = worst["ratio"] / half, worst["ratio"] * half
            name = f"worst {worst['framework']}, {worst['change']}, {worst['target']}"
            out |= {
                name: interval(worst["ratio"], *ends),
                f"{name}: sigma": f"{worst['sigma']:.2g}",
            }
    return out


def _half_width(row: pd.Series, count: int) -> float:
    """The factor of a ratio's interval that holds for `count` ratios together, from that of one, by Student's t."""
    freedom = row["seeds"] - 1
    wider = stdtrit(freedom, 1 - 0.025 / count) / stdtrit(freedom, 0.975)
    return math.exp(wider * math.log(row["high"] / row["ratio"]))


def _value(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if key == "p":
        return "< 0.001" if value < 0.001 else f"{value:.2g}"
    if key == "accuracy":
        return f"{value:.3f}"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 2 else f"{value:.2f}".replace("-0.00", "0.00")


def of_claims(told: Mapping[str, Any]) -> dict[str, str]:
    """`verdict C3 EDM, exact`; `verdicts C3` lists them all."""
    out, every = {}, dict[str, list[str]]()
    for each in told["claims"]:
        out[f"verdict {each['claim']} {each['subject']}"] = each["verdict"]
        every.setdefault(each["claim"], []).append(f"{each['verdict']} for {each['subject']}")
    return out | {f"verdicts {claim}": "; ".join(verdicts) for claim, verdicts in every.items()}


def of_published_tables() -> dict[str, str]:
    """Values of the paper's tables: `table3[edm,baseline,25,afhqv2]`, as `explain` calls them, and what follows.

    `published share table1[vp,CIFAR-10]` is the share of the baseline's cost at which FDM has the baseline's last
    quality; lowest and highest are those that are known exactly. `published half` counts the pairs in which FDM at half
    of the training is no worse than its baseline at the end, `published third` does so for evaluations; `published
    within` counts those within the tolerance, and `published nothing to save` those whose baseline is; `published
    better` counts those in which FDM is better at the end, with as much training. `published holds, steps` and
    `published nothing to save, steps` are verdicts on evaluations. `published steps by ratio` and `by difference` count
    the pairs in which going to the fewest evaluations costs FDM less, and `published equal` the rows in which VP and
    VP-FDM are equal.
    """
    out, counts = dict[str, str](), dict[str, Iterable[bool]]()
    for number, cost in ((1, "duration_mimg"), (2, "nfe"), (3, "nfe")):
        for row in measurements.published(number).to_dict("records"):
            at = f"{row[cost]} Mimg" if number == 1 else row[cost]
            out[f"table{number}[{row['framework']},{row['kernel']},{at},{row['dataset']}]"] = f"{row['fid']:.2f}"
    one = measurements.published(1).pivot(
        index=["dataset", "framework"], columns=["kernel", "duration_mimg"], values="fid"
    )
    steps = pd.concat([measurements.published(number).assign(table=number) for number in (2, 3)]).pivot(
        index=["table", "framework"], columns=["kernel", "nfe"], values="fid"
    )
    last, few, many = (max(one["fdm"]), min(steps["fdm"]), max(steps["fdm"]))
    counts["half"] = one["fdm", last // 2] <= one["baseline", last]
    counts["third"] = steps["fdm", few] <= steps["baseline", many]
    ratios = published.loss_by_nfe()
    differences = {kernel: steps[kernel, few] - steps[kernel, many] for kernel in ("baseline", "fdm")}
    counts["steps by ratio"] = ratios["fdm"] < ratios["baseline"]
    counts["steps by difference"] = differences["fdm"] < differences["baseline"]
    vp = one.xs("vp", level="framework")
    counts["equal"] = (vp["fdm"] == vp["baseline"]).stack()
    half = published.savings()
    counts["within"] = half["FDM at half"] < math.exp(rules.QUALITY)
    counts["better"] = half["FDM at the end"] < 1
    counts["nothing to save"] = half["verdict"] == "nothing to save"
    counts["hold, stricter"] = half["verdict with half the tolerance"] == "holds"
    counts["nothing to save, stricter"] = half["verdict with half the tolerance"] == "nothing to save"
    fewer = published.fewer_steps()
    counts |= {f"{verdict}, steps": fewer["verdict"] == verdict for verdict in ("holds", "nothing to save")}
    counts["holds, steps, stricter"] = fewer["verdict with half the tolerance"] == "holds"
    out |= {f"published {name}": f"{sum(found)} of {len([*found])}" for name, found in counts.items()}
    shares = published.costs()
    for row in shares.to_dict("records"):
        share = "never" if row["known"] == "never" else f"{'≤ ' * (row['known'] == 'at most')}{row['share']:.2f}"
        out[f"published share table{row['table']}[{row['framework'].lower()},{row['data']}]"] = share
    training = shares[shares["table"] == 1]
    exact = training[training["known"] == "="]["share"]
    out |= {"published share lowest": f"{exact.min():.2f}", "published share highest": f"{exact.max():.2f}",
            "published share median": f"{training['share'].median():.2f}"}  # fmt: skip
    return out | {"published nfe lowest": str(few), "published nfe highest": str(many)}


def of_benchmarks() -> dict[str, str]:
    """What benchmarks/results holds, each name after the word benchmark.

    `benchmark cpu-2 small training step` is images a second, with `plain` or another variant behind it how many times
    as fast as that; `benchmark cpu-2 small scoring` scoring as a share of sampling, `benchmark cpu-2 frechet fdm`
    seconds of a Frechet distance; `benchmark minutes make repro` the time of a command. `benchmark table` with
    commands, networks, speeds or parts is a whole table.
    """
    folder = root() / "benchmarks" / "results"
    records = {path.stem: measurements.read_json(path) for path in sorted(folder.glob("*.json"))}
    out = dict[str, str]()
    for name, record in records.items():
        for row in (row for row in record["rows"] if row["variant"] == "fdm"):
            of = f"{name} {row['shape']} {row['operation']}"
            out[of] = significant(row["images_per_second"]["median"], 4)
            for other, times in (row.get("times_as_fast_as") or {}).items():
                out[f"{of} {other}"] = interval(times["median"], times["low"], times["high"])
            if row.get("share_of_peak"):
                out[f"{of} of the peak"] = percent(row["share_of_peak"])
            if row.get("flops_per_image") and row["operation"] == "evaluation":
                out[f"{name} {row['shape']} parameters"] = amount(row["parameters"])
                out[f"{name} {row['shape']} MFLOP"] = significant(row["flops_per_image"] / 1e6, 3)
        for shape, share in record["scoring_over_sampling"].items():
            out[f"{name} {shape} scoring"] = f"{100 * share:.2g} %"
        for whose, seconds in record["frechet_distance_seconds"].items():
            out[f"{name} frechet {whose}"] = f"{seconds['median']:.1f} s"
    commands = folder / "commands.csv"
    timed = measurements.read(commands) if commands.is_file() else pd.DataFrame(columns=["command", "minutes"])
    out |= {f"minutes {row.command}": f"{row.minutes:g}" for row in timed.itertuples()}
    out |= {f"table {name}": text for name, text in _tables(out, timed).items()}
    return {BENCHMARK + name: value for name, value in out.items()}


def _tables(found: Mapping[str, str], timed: pd.DataFrame) -> dict[str, str]:
    """Tables of the benchmarks in Markdown, from the values that were found."""
    both, one = "cpu-2", "cpu-1"  # records of two threads and of one

    def table(rows: list[dict[str, str]]) -> str:
        return tables.markdown(pd.DataFrame(rows)).rstrip() if rows else ""

    shapes = [shape for shape in ("digits", "small", "paper") if f"{both} {shape} evaluation" in found]
    networks = [
        {"network": f"`{shape}`", "parameters": found[f"{both} {shape} parameters"],
         "MFLOP an evaluation": found[f"{both} {shape} MFLOP"]}
        for shape in shapes
    ]  # fmt: skip
    speeds = [
        {"network": f"`{shape}`", "what": what, "images/s, both cores": found[f"{both} {shape} {what}"],
         "of the peak": found[f"{both} {shape} {what} of the peak"],
         "times as fast as plain": found[f"{both} {shape} {what} plain"],
         "images/s, one thread": found.get(f"{one} {shape} {what}", ""),
         "times plain": found.get(f"{one} {shape} {what} plain", ""),
         "times diffusers": found.get(f"{one} {shape} {what} diffusers", "")}
        for shape in shapes for what in TIMED
    ]  # fmt: skip
    variants = ("layout", "resampling", "blocks", "optimiser")
    parts = [
        {"network": f"`{shape}`", "what": what}
        | {variant: found[f"{one} {shape} {what} plain {variant}"] for variant in variants}
        for shape in shapes for what in TIMED if f"{one} {shape} {what} plain layout" in found
    ]  # fmt: skip
    commands = [{"command": f"`{row.command}`", "minutes": f"{row.minutes:g}"} for row in timed.itertuples()]
    return {"commands": table(commands), "networks": table(networks), "speeds": table(speeds), "parts": table(parts)}


# ------------------------------------------------------------------------------------------------- where they stand


def value(name: str, values: Mapping[str, str], where: str) -> str:
    """The value of a name; raises FdmError, with names that are near, for one that nothing gives.

    `word NAME` is a count in words, five for 5, and `Word NAME` begins a sentence with it, as `Verdict NAME` does with
    a verdict. `digits: NAME` is a parameter of another profile.
    """
    first, _, rest = name.partition(" ")
    if first in ("word", "Word"):
        text = value(rest, values, where)
        word = WORDS[int(text)] if text.isdecimal() and int(text) < len(WORDS) else text
        return word if first == "word" else word[0].upper() + word[1:]
    if first == "Verdict":
        text = value(f"verdict {rest}", values, where)
        return text[0].upper() + text[1:]
    if first.endswith(":"):
        return value(rest, parameters(profiles.find(first.removesuffix(":"))), where)
    if name not in values and UNFINISHED in values and first in (*KEYS, "worst", "verdict"):
        return "(not measured yet)"
    if name not in values:
        near = difflib.get_close_matches(name, values, 6, 0.4)
        told = "; near to it is " + ", or ".join(near) if near else ", nor anything like it"
        raise FdmError(f"{where} asks for {name}, which nothing gives{told}.")
    return values[name]


def fill(text: str, profile: Profile, values: Mapping[str, str] | None = None, where: str = "A notebook") -> str:
    """A text with its {{names}} replaced by their values, by default those of `numbers`.

    {{table NAME}} stands for results/<profile>/tables/NAME.md. Raises FdmError for a name without a value.
    """
    if "{{" not in text:
        return text
    known = numbers(profile) if values is None else values

    def found(match: re.Match) -> str:
        name = " ".join(match[1].split())
        if name.startswith("table "):
            return (profile.results / "tables" / f"{name[6:]}.md").read_text(encoding="utf-8").rstrip()
        return value(name, known, where)

    return re.sub(r"\{\{(.*?)\}\}", found, text, flags=re.DOTALL)


def filled(path: Path, profile: Profile, values: Mapping[str, str]) -> str:
    """A file's text with its {{names}} replaced; see `fill`."""
    return fill(path.read_text(encoding="utf-8"), profile, values, path.name)


def refreshed(text: str, values: Mapping[str, str], where: str) -> str:
    """A text with the values between its marks renewed; one of several lines stands in a paragraph of its own.

    In a copy of the study without benchmarks/results, what is from there stays as it stands. Raises FdmError for a
    name without a value, and for a mark without an end.
    """
    there = (root() / "benchmarks" / "results").is_dir()

    def renewed(match: re.Match) -> str:
        name = " ".join(match[1].split())
        if "<!--=" in match[2]:
            raise FdmError(f"{where}: the value of {name} has no end, <!--/-->.")
        if name.startswith(BENCHMARK) and not there:
            return match[0]
        new = value(name, values, where)
        if "\n" in new:
            new = f"\n\n{new}\n\n"
        return f"<!--={match[1]}-->{new}<!--/-->"

    new, count = MARK.subn(renewed, text)
    if not count == text.count("<!--=") == text.count("<!--/-->"):
        raise FdmError(f"{where}: it has {text.count('<!--=')} marks and {text.count('<!--/-->')} ends of them.")
    return new


def wrapped(text: str, width: int = 106) -> str:
    """Paragraphs and items of a list in lines of equal length."""
    parts = re.split(r"(\n\n|\n(?=- ))", text)
    fill = functools.partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False)
    lines = (fill(" ".join(part.split()), subsequent_indent="  " * part.startswith("- ")) for part in parts[::2])
    return "".join(text for pair in zip(lines, [*parts[1::2], ""], strict=True) for text in pair)


def write(profile: Profile, values: Mapping[str, str]) -> Path:
    """Write results/<profile>/REPORT.md: notebooks/05_report.md with its {{names}} replaced; returns its path."""
    text = filled(root() / "notebooks" / "05_report.md", profile, values)
    settle_text(profile.results / "REPORT.md", text)
    return profile.results / "REPORT.md"
