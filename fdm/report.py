"""What the notebooks show: the parameters they ran with, tables with their captions, files for plots."""

from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Markdown, display

from fdm import study, tables
from fdm.agreement import rounded, rounded_value, settle_text
from fdm.errors import FdmError
from fdm.files import json_text, root, write_text
from fdm.profiles import Profile
from fdm.study import DATA, frechet


def introduce(profile: Profile, notebook: str, sections: list[str]) -> None:
    """Show which profile a notebook executes, with which sections of parameters, and link its provenance.

    `sections` are those that the notebook's stage depends on: others may change without its being executed again.
    """
    rows = [
        f"| {section} | "
        + ", ".join(f"{key} {value}" for key, value in getattr(profile, section).model_dump(exclude_none=True).items())
        + " |"
        for section in sections
    ]
    link = f"[provenance](../provenance/{notebook}.json): when and where this was executed, with which versions"
    text = "\n".join(["", "| | parameters |", "| --- | --- |", *rows]) if rows else ""
    display(Markdown(f"Profile **{profile.profile}** · {link}\n{text}"))


def noise_levels(profile: Profile) -> pd.DataFrame:
    """Noise levels that each kind of model trains on, by quantile, their loss weight, and the network's input there.

    `input` is the standard deviation of c_in x for images of the standard deviation 0.5 that EDM assumes.
    """
    import torch

    from fdm import losses
    from fdm.preconditioning import SIGMA_DATA, coefficients

    rows: list[dict[str, Any]] = []
    for run in {str(r.model_dump(exclude={"seed", "warmup_steps"})): r for r in profile.runs.values()}.values():
        draws = losses.draw(run.framework, 100_000, torch.Generator().manual_seed(0))
        levels = losses.sigma_of_draw(run.framework, draws).flatten().quantile(torch.tensor([0.05, 0.5, 0.95]))
        c_in = coefficients(run.framework, run.kernel, levels, run.multiplier, run.ve_multiplier, run.tau).c_in
        columns = {"sigma": levels, "loss weight": losses.weight(run.framework, levels), "c_in": c_in,
                   "input": c_in * (levels**2 + SIGMA_DATA**2).sqrt()}  # fmt: skip
        model = {"model": study.label(run.framework, run.kernel), "m": run.multiplier if run.kernel == "fdm" else ""}
        for place, share in enumerate(("5 %", "50 %", "95 %")):
            values = {name: float(f"{column[place].item():.3g}") for name, column in columns.items()}
            rows.append(model | {"draws below": share} | values)
    return pd.DataFrame(rows)


def losses(profile: Profile, history: pd.DataFrame) -> pd.DataFrame:
    """First and last training loss of each model, the mean over seeds, from `runs.train`."""
    rows = {}
    for part, names in profile.parts.items():
        mine = history[history["run"].isin(names)]
        ends = [mine[mine["images"] == images] for images in (mine["images"].min(), mine["images"].max())]
        rows[part] = {f"loss at {end['images'].iloc[0] / 1000:.3g} kimg": end["loss"].mean() for end in ends}
    return pd.DataFrame(rows).T.map(lambda loss: float(f"{loss:.3g}"))


def _at_the_end(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Measurements with the sampler and evaluations of Table 1, from the usual latents and noise level, by model."""
    rows = rows[(rows["sampler"] == "heun") & (rows["nfe"] == profile.evaluation.duration_nfe)]
    rows = rows[(rows["sigma_max"] == rows["run"].map(rows.groupby("run")["sigma_max"].first()))]
    rows = rows[(rows["latents"] == 0) & (rows["reference"] == 0)]
    rows = rows[(rows["n"] == profile.evaluation.samples) | (rows["metric"] != frechet(rows))]
    part = {run: part for part, runs in profile.parts.items() for run in runs}
    return rows.assign(model=rows["run"].map(part))


def by_metric(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """The last networks' measurements with one column a metric."""
    rows = _at_the_end(profile, rows)
    wide = rows[rows["duration"] == 1].pivot_table(index="model", columns="metric", values="value", sort=False)
    return wide.round(3)


def in_floors(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Frechet distance of each model along its training, in units of the floor."""
    rows, floor = _at_the_end(profile, rows), float(study.calibration(profile)["value"].iloc[0])
    table = rows[rows["metric"] == frechet(rows)].pivot_table(
        index="model", columns="duration", values="value", sort=False
    )
    return (table / floor).round(2).rename(columns="{:.0%}".format)


def show_table(profile: Profile, number: int, folder: Path) -> None:
    """Write the paper's table 1, 2 or 3 to `folder` and show it."""
    rows = study.measurements(profile)
    what = {
        1: f"Quality against training duration, Heun's sampler, NFE {profile.evaluation.duration_nfe}",
        2: "Quality against the number of function evaluations, EDM's Heun sampler",
        3: "Quality against the number of function evaluations, DPM-Solver++ (single-step, order 3)",
    }[number]
    caption = (
        f"Table {number}. {what}. Measured: {frechet(rows)} on {DATA[profile.dataset.name]}, lower is better, n "
        "generated images against real ones. Published: the paper's FID, on other data at another scale; compare the "
        "patterns, not the numbers."
    )
    table = tables.table1(profile) if number == 1 else tables.table_nfe(profile, number)
    tables.write_table(table, folder, f"table{number}", caption)
    display(Markdown((folder / f"table{number}.md").read_text(encoding="utf-8")))


def show_beside(profile: Profile, folder: Path) -> None:
    """Write each published number with the one measured for it to `folder` and show them."""
    table = tables.beside(profile)
    if table.empty:
        display(Markdown("The paper has no number on these data: no cell can be compared with one of the tables."))
        return
    caption = f"The published numbers on {DATA[profile.dataset.name]}, FID, and those measured here."
    tables.write_table(table, folder, "beside", caption)
    display(Markdown((folder / "beside.md").read_text(encoding="utf-8")))


def _around(number: dict[str, float | None], digits: int = 2) -> str:
    """An estimate with its interval; without one where there are too few seeds."""
    ends = "" if number["low"] is None else f" [{number['low']:.{digits}f}, {number['high']:.{digits}f}]"
    return f"{number['value']:.{digits}f}{ends}"


def deciding(claim: dict[str, Any]) -> str:
    """The numbers that decide a claim of claims.json, in one line."""
    numbers = claim["numbers"]
    if claim["claim"] == "C1":
        return f"largest difference of the two steps {numbers['largest difference']:.0e}"
    if claim["claim"] == "C2":
        falls, fastest, first, least, critical = numbers.values()
        return (
            f"falls without changing sign: {'yes' if falls else 'no'}; decays fastest in the end at a damping ratio of "
            f"{fastest:g}; first below 1 % at {first:g} (at time {least:.1f}; critical {critical:.1f})"
        )
    if claim["claim"] == "C5":
        kernels = [key for key in numbers if key.startswith("ratio")]
        parts = [f"{key.removeprefix('ratio with ')} {_around(numbers[key])}" for key in kernels]
        return "ratio of distances, with / without, at 25 % of the training: " + ", ".join(parts)
    mean, difference = numbers["mean"], numbers["difference from baseline, full"]
    return (
        f"baseline {mean['baseline, full']:.1f} (floor {numbers['floor']:.1f}); from it: FDM at reduced cost "
        f"{_around(difference['FDM, reduced'], 1)}, at full cost {_around(difference['FDM, full'], 1)}, baseline at "
        f"reduced cost {_around(difference['baseline, reduced'], 1)}; margin {numbers['margin']:.1f}"
    )


def claims_table(told: dict[str, Any]) -> pd.DataFrame:
    """What claims.json tells as a table: claim, for what, verdict, what decides it."""
    return pd.DataFrame([
        {"claim": f"{each['claim']} {study.CLAIMS[each['claim']]}", "for": each["subject"],
         "verdict": f"**{each['verdict']}**", "what decides it": deciding(each)}
        for each in told["claims"]
    ])  # fmt: skip


def scale(told: dict[str, Any]) -> str:
    """The scale that the verdicts of claims.json hold for, in a sentence."""
    about = told["scale"]
    budget = f"{about['kimg']:g} thousand training images a run" if about["kimg"] else "published networks"
    seeds = "one training of each model" if about["seeds"] == 1 else f"{about['seeds']} trainings of each model"
    return (
        f"{about['data']} ({about['resolution']}×{about['resolution']}), {budget}, {seeds}, {about['metric']} at "
        f"n = {about['n']}, lower is better; in brackets 95 % intervals over trainings."
    )


def show_claims(profile: Profile, folder: Path) -> None:
    """Write claims.json, and the verdicts as a table to `folder`, and show them."""
    told = study.claims(profile)
    path = profile.results / "claims.json"
    settle_text(path, json_text(rounded_value(told)))
    told = study.read_json(path)  # as it is on record
    text = f"Verdicts on the claims. {scale(told)}\n\n{tables.markdown(claims_table(told))}"
    write_text(folder / "verdicts.md", text)
    display(Markdown(text))


def show(table: pd.DataFrame, folder: Path, name: str, caption: str, hidden: tuple[str, ...] = ()) -> None:
    """Write a table as <name>.csv, .md and .tex to `folder` and show it; the CSV has the `hidden` columns too."""
    tables.write_table(table, folder, name, caption, hidden)
    display(Markdown((folder / f"{name}.md").read_text(encoding="utf-8")))


def write_plots(profile: Profile, rows: pd.DataFrame, losses: pd.DataFrame) -> None:
    """The curves behind `dvc plots show`: one column a model, empty where nothing was measured."""
    name, folder = frechet(rows), profile.results / "plots"
    floor = float(study.calibration(profile)["value"].iloc[0])
    heun = rows[(rows["metric"] == name) & (rows["sampler"] == "heun")]
    at_nfe = heun[heun["nfe"] == profile.evaluation.duration_nfe]
    curves = {
        "quality_by_duration": tables.wide(at_nfe, ["kimg"]).assign(Real=floor),
        "quality_by_nfe": tables.wide(heun[heun["duration"] == 1].sort_values("nfe"), ["nfe"]).assign(Real=floor),
        "loss": tables.wide(losses.assign(kimg=losses["images"] / 1000, value=losses["loss"]), ["kimg"]),
    }
    for key, table in curves.items():
        settle_text(folder / f"{key}.csv", rounded(table).to_csv(index=False))


def pictures(profile: Profile) -> dict[tuple[str, str], dict]:
    """Kept samples and trajectories of each model's first seed; see `evaluation.pictures`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    out: dict[tuple[str, str], dict] = {}
    for name, run in profile.runs.items():
        path = profile.results / "runs" / name / "pictures.safetensors"
        if (run.framework, run.kernel) in out:
            continue
        try:
            out[run.framework, run.kernel] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise FdmError(f"{path} is missing or damaged; run dvc repro to sample {name}.") from error
    return out


def by_norm(kept: dict[tuple[str, str], dict]) -> pd.DataFrame:
    """How the latents' norm decides what becomes of a sample: the share of white pixels (255) either side of sqrt(d).

    A digit has few white pixels, a sample that stayed noise about a third. `correlation` is Spearman's.
    """
    import torch

    from fdm.sampling import draw_latents

    rows = {}
    for (framework, kernel), part in kept.items():
        grid = torch.as_tensor(part["grid"])
        shape = (grid.shape[1], grid.shape[2], grid.shape[3])
        norm = draw_latents(range(len(grid)), shape, classes=0)[0].flatten(1).norm(dim=1)
        white = (grid.flatten(1) == 255).float().mean(dim=1)
        short = norm < grid[0].numel() ** 0.5
        rows[study.label(framework, kernel)] = {
            "white, norm below": white[short].mean().item(),
            "white, norm above": white[~short].mean().item(),
            "correlation": pd.Series(norm.numpy()).corr(pd.Series(white.numpy()), method="spearman"),
        }
    return pd.DataFrame(rows).T.round(2)


# ------------------------------------------------------------------------------------------------------ README

BEGIN, END = "<!-- verdicts: generated, see CONTRIBUTING.md -->", "<!-- end of verdicts -->"


def readme(profile: Profile) -> str:
    """README.md with its section of verdicts as the claims.json and the tables of this profile tell them.

    The words above the table are notebooks/05_short.md, with the measured numbers in it.
    """
    from fdm import reproducibility

    told = study.read_json(profile.results / "claims.json")
    before, rest = (root() / "README.md").read_text(encoding="utf-8").split(BEGIN)
    table = f"{scale(told)[0].upper()}{scale(told)[1:]}\n\n{tables.markdown(claims_table(told))}"
    short = reproducibility.filled(root() / "notebooks" / "05_short.md", profile, reproducibility.numbers(profile))
    return f"{before}{BEGIN}\n\n{short.strip()}\n\n{table}\n{END}{rest.split(END)[1]}"
