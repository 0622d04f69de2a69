"""What the notebooks show: the parameters they ran with, tables with their captions, files for plots."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from pydantic import BaseModel

from fdm.data.sources import SOURCES
from fdm.files import FdmError, json_text, relative, root, write_text
from fdm.model import checkpoints
from fdm.process.frameworks import FRAMEWORKS, SIGMA_DATA, coefficients
from fdm.samplers import GRIDS, SAMPLERS
from fdm.study import claims, measurements, report, tables
from fdm.study.agreement import rounded, rounded_value, settle_text
from fdm.study.measurements import frechet, label, primary, select, standard
from fdm.study.profiles import USUAL, Profile
from fdm.tasks.generation import draw_latents, noise_range

RATIOS = (
    "Ratios are to the baseline at full cost (of C5 and the kernel, with to without), with intervals that hold "
    "together at 95 %; above 1 is worse."
)


def introduce(profile: Profile, notebook: str, sections: list[str]) -> None:
    """Show which profile a notebook executes, with which sections of parameters, and link its provenance.

    `sections` are those that the notebook's stage depends on: others may change without another execution.
    """
    rows = [f"| {section} | {_parameters(getattr(profile, section))} |" for section in sections]
    link = f"[provenance](../provenance/{notebook}.json): when and where this was executed, with which versions"
    text = "\n".join(["", "| | parameters |", "| --- | --- |", *rows]) if rows else ""
    display(Markdown(f"Profile **{profile.profile}** · {link}\n{text}"))


def _parameters(section: BaseModel) -> str:
    """A section of a profile's parameters in a line; of its settings each as its file has it."""
    told = section.model_dump(exclude_none=True)
    if "settings" in told:
        each = [one.model_dump(exclude_defaults=True) for one in section.settings]  # type: ignore[attr-defined]
        told["settings"] = "; ".join(" ".join(f"{key} {value}" for key, value in one.items()) for one in each)
    return ", ".join(f"{key} {value}" for key, value in told.items())


def noise_levels(profile: Profile) -> pd.DataFrame:
    """Noise levels that each kind of model trains on, by quantile, their loss weight, and the network's input there.

    `input` is the standard deviation of c_in x for images of the standard deviation 0.5 that EDM assumes. Models that
    see auxiliary variables, which have no such input, are left out.
    """
    rows: list[dict[str, Any]] = []
    # Which change no noise level and no input.
    unlike = {"seed", "seeds", "cell", "warmup_steps", "start", "source", "lr", "channel_mult", "model_channels"}
    scalar = [run for run in profile.trained.values() if run.framework in FRAMEWORKS]
    for run in {str(r.model_dump(exclude=unlike)): r for r in scalar}.values():
        process = FRAMEWORKS[run.framework]
        draws = process.draw(100_000, torch.Generator().manual_seed(0))
        levels = process.sigma(draws).flatten().quantile(torch.tensor([0.05, 0.5, 0.95]))
        of = (run.multiplier, run.ve_multiplier, run.tau, run.variant)
        c_in = coefficients(run.framework, run.kernel, levels, *of).c_in
        columns = {"sigma": levels, "loss weight": process.weight(levels), "c_in": c_in,
                   "input": c_in * (levels**2 + SIGMA_DATA**2).sqrt()}  # fmt: skip
        name = label(run.framework, run.kernel) + (f", {run.variant}" if run.variant else "")
        model = {"model": name, "m": run.multiplier if run.kernel == "fdm" else ""}
        for place, share in enumerate(("5 %", "50 %", "95 %")):
            values = {name: float(f"{column[place].item():.3g}") for name, column in columns.items()}
            rows.append(model | {"draws below": share} | values)
    return pd.DataFrame(rows)


def losses(profile: Profile, history: pd.DataFrame) -> pd.DataFrame:
    """First and last training loss of each model, the mean over seeds, from `runs.train`."""
    rows = {}
    for cell in dict.fromkeys(run.cell for run in profile.trained.values()):
        mine = select(history, run=profile.runs_of(cell))
        ends = [mine[mine["images"] == images] for images in (mine["images"].min(), mine["images"].max())]
        rows[cell] = {f"loss at {end['images'].iloc[0] / 1000:.3g} kimg": end["loss"].mean() for end in ends}
    return pd.DataFrame(rows).T.map(lambda loss: float(f"{loss:.3g}"))


def by_metric(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """The last networks' measurements with the sampler and evaluations of Table 1, one column a metric, by cell."""
    sampler, nfe = profile.evaluation.primary
    rows = select(rows, sampler=sampler, nfe=nfe, options=USUAL, duration=1.0, latents=0, reference=0)
    rows = rows[(rows["sigma_max"] == rows["run"].map(rows.groupby("run")["sigma_max"].first()))]
    rows = rows[(rows["n"] == profile.evaluation.samples) | (rows["metric"] != frechet(rows))]
    return rows.pivot_table(index="cell", columns="metric", values="value", sort=False).round(3)


def in_floors(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Frechet distance of each cell along its training, in units of the floor."""
    floor = float(measurements.calibration(profile)["value"].iloc[0])
    rows = primary(profile, rows)
    by_duration = rows.pivot_table(index="cell", columns="duration", values="value", sort=False)
    return (by_duration / floor).round(2).rename(columns="{:.0%}".format)


def show_table(profile: Profile, number: int, folder: Path) -> None:
    """Write the paper's table 1, 2 or 3 to `folder` and show it."""
    sampler, nfe = profile.evaluation.primary
    what = {
        1: f"Quality against training duration, {SAMPLERS[sampler].label}, NFE {nfe}",
        2: "Quality against the number of function evaluations, EDM's Heun sampler",
        3: "Quality against the number of function evaluations, DPM-Solver++ (single-step, order 3)",
    }[number]
    caption = (
        f"Table {number}. {what}. Measured: {_metric(profile)} on {SOURCES[profile.dataset.name].label}, lower is "
        "better, n generated images against real ones. Published: the paper's FID, on other data at another scale; "
        "compare the patterns, not the numbers."
    )
    table = tables.by_training(profile) if number == 1 else tables.by_nfe(profile, number)
    show(table, folder, f"table{number}", caption)


def _metric(profile: Profile) -> str:
    """The Frechet distance's name in a profile's measurements."""
    return str(measurements.calibration(profile)["metric"].iloc[0])


def show_samplers(profile: Profile, folder: Path) -> None:
    """Write the table of every sampler that is measured, at every NFE, to `folder` and show it."""
    caption = (
        f"Every sampler. {_metric(profile)} of the fully trained models on {SOURCES[profile.dataset.name].label}, "
        f"lower is better, n = {profile.evaluation.samples}."
    )
    show(tables.by_sampler(profile), folder, "samplers", caption)


def show_beside(profile: Profile, folder: Path) -> None:
    """Write each published number with the one measured for it to `folder` and show them."""
    table = tables.published_beside_measured(profile)
    if table.empty:
        display(Markdown("The paper has no number on these data: no cell can be compared with one of the tables."))
        return
    caption = f"The published numbers on {SOURCES[profile.dataset.name].label}, FID, and those measured here."
    show(table, folder, "beside", caption)


def deciding_numbers(claim: dict[str, Any]) -> str:
    """The numbers that decide a claim of claims.json, in one line."""
    numbers = claim["numbers"]
    if claim["claim"] == "C1":
        difference = numbers.get("largest difference")
        return (
            "the mean does not decay: there is no descent"
            if difference is None
            else (f"largest difference of the two steps {difference:.0e}")
        )
    if claim["claim"] == "C2":
        falls, fastest, first, least, critical = numbers.values()
        return (
            f"falls without changing sign: {'yes' if falls else 'no'}; decays fastest in the end at a damping ratio of "
            f"{fastest:g}; stays below 1 % first at {first:g} (from time {least:.1f}; critical {critical:.1f})"
        )
    text = f"{numbers['metric']} of {numbers['seeds']} seeds: "
    text += report.interval(numbers["ratio"], numbers["low"], numbers["high"])
    if "baseline at the reduced cost" in numbers:
        text += f"; baseline there {numbers['baseline at the reduced cost']:.2f}"
        text += f", FDM at full cost {numbers['FDM at the full cost']:.2f}"
    if "seeds that would decide" in numbers:
        text += f"; {numbers['seeds that would decide']:.0f} seeds would decide"
    return text


def claims_table(told: dict[str, Any]) -> pd.DataFrame:
    """What claims.json tells as a table: claim, for what, verdict, what decides it."""
    return pd.DataFrame([
        {"claim": f"{each['claim']} {claims.CLAIMS[each['claim']]}", "for": each["subject"],
         "verdict": f"**{each['verdict']}**", "what decides it": deciding_numbers(each)}
        for each in told["claims"]
    ])  # fmt: skip


def show_claims(profile: Profile, folder: Path) -> None:
    """Write claims.json, and the verdicts as a table to `folder`, and show them."""
    told = claims.claims(profile)
    path = profile.results / "claims.json"
    settle_text(path, json_text(rounded_value(told)))
    told = measurements.read_json(path)  # as it is on record
    text = f"Verdicts on the claims. {RATIOS}\n\n{tables.markdown(claims_table(told))}"
    write_text(folder / "claims.md", text)
    display(Markdown(text))


def show(table: pd.DataFrame, folder: Path, name: str, caption: str, hidden: tuple[str, ...] = ()) -> None:
    """Write a table as <name>.csv, .md and .tex to `folder` and show it; the CSV has the `hidden` columns too."""
    tables.write_table(table, folder, name, caption, hidden)
    display(Markdown((folder / f"{name}.md").read_text(encoding="utf-8")))


def write_plots(profile: Profile, rows: pd.DataFrame, losses: pd.DataFrame) -> None:
    """The curves behind `dvc plots show`: one column a model, empty where nothing was measured."""
    folder, sampler = profile.results / "plots", profile.evaluation.primary[0]
    floor = float(measurements.calibration(profile)["value"].iloc[0])
    six = measurements.models(profile)
    by_nfe = standard(profile, rows, sampler=sampler, duration=1.0, cell=six).sort_values("nfe")
    curves = {
        "quality_by_duration": tables.wide(primary(profile, rows, cell=six), ["kimg"]).assign(Real=floor),
        "quality_by_nfe": tables.wide(by_nfe, ["nfe"]).assign(Real=floor),
        "loss": tables.wide(losses.assign(kimg=losses["images"] / 1000, value=losses["loss"]), ["kimg"]),
    }
    for key, table in curves.items():
        settle_text(folder / f"{key}.csv", rounded(table).to_csv(index=False))


def pictures(profile: Profile) -> dict[tuple[str, str], dict]:
    """Kept samples and trajectories of each model's first seed; see `measure.pictures`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    out: dict[tuple[str, str], dict] = {}
    for name in measurements.models(profile):
        cell = profile.cells[name]
        path = profile.recorded(name) / "pictures.safetensors"
        try:
            out[cell.framework, cell.kernel] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise FdmError(f"{path} is missing or damaged; run dvc repro to sample {name}.") from error
    return out


@torch.inference_mode()
def denoised(profile: Profile, kept: dict[tuple[str, str], dict]) -> dict[tuple[str, str], np.ndarray]:
    """D(x; sigma) along the kept trajectory of each model, float (steps, C, H, W), and the sample last.

    By the network that is kept in git; of a model without one x itself, as it is kept.
    """
    sampler, out = SAMPLERS[profile.evaluation.primary[0]], dict[tuple[str, str], np.ndarray]()
    for name in measurements.models(profile):
        cell, run = profile.cells[name], profile.runs_of(name)[0]
        path = torch.as_tensor(kept[cell.framework, cell.kernel]["trajectory"])
        network = profile.results / "networks" / f"{run}.safetensors"
        if network.is_file():
            denoiser, _ = checkpoints.load(network)
            levels = GRIDS[sampler.grid](*noise_range(denoiser), sampler.to_zero).levels(len(path) - 1).float()
            label = draw_latents(range(1), denoiser.shape, denoiser.classes)[1]
            told = torch.eye(denoiser.classes)[label] if denoiser.classes else None
            steps = zip(path[:-1, None], levels, strict=False)
            path = torch.cat([*(denoiser(x, sigma, told) for x, sigma in steps), path[-1:]])
        out[cell.framework, cell.kernel] = path.numpy()
    return out


def by_norm(kept: dict[tuple[str, str], dict]) -> pd.DataFrame:
    """How the latents' norm decides what becomes of a sample: the share of white pixels (255) below and above sqrt(d).

    A digit has few white pixels, a sample that stayed noise has many. `correlation` is Spearman's.
    """
    rows = {}
    for (framework, kernel), part in kept.items():
        grid = torch.as_tensor(part["grid"])
        shape = (grid.shape[1], grid.shape[2], grid.shape[3])
        norm = draw_latents(range(len(grid)), shape, classes=0)[0].flatten(1).norm(dim=1)
        white = (grid.flatten(1) == 255).float().mean(dim=1)
        short = norm < grid[0].numel() ** 0.5
        rows[label(framework, kernel)] = {
            "white, norm below": white[short].mean().item(),
            "white, norm above": white[~short].mean().item(),
            "correlation": pd.Series(norm.numpy()).corr(pd.Series(white.numpy()), method="spearman"),
        }
    return pd.DataFrame(rows).T.round(2)


# ------------------------------------------------------------------------------------------------------ README

OTHERS = ("docs/*.md", "benchmarks/README.md")
BEGIN, END = "<!-- verdicts: generated, see CONTRIBUTING.md -->", "<!-- end of verdicts -->"


def readme(profile: Profile) -> str:
    """README.md with the values between its marks and its verdicts, notebooks/05_short.md, as the record has them.

    Raises FdmError for a profile that has no verdicts, and for a value that nothing gives.
    """
    if profile.conclusions != "05_evidence":
        raise FdmError("README.md shows the verdicts of the evidence; use --params profiles/exact/params.yaml.")
    values = report.numbers(profile)
    before, rest = (root() / "README.md").read_text(encoding="utf-8").split(BEGIN)
    before, after = (report.refreshed(part, values, "README.md") for part in (before, rest.split(END)[1]))
    short = report.filled(root() / "notebooks" / "05_short.md", profile, values)
    return f"{before}{BEGIN}\n\n{report.wrapped(short.strip())}\n\n{END}{after}"


def documents(profile: Profile) -> dict[Path, str]:
    """The texts that are renewed in place, as they should be, by their paths: README.md and those of `OTHERS`."""
    out, values = {root() / "README.md": readme(profile)}, report.numbers(profile)
    for path in (path for name in OTHERS for path in sorted(root().glob(name))):
        out[path] = report.refreshed(path.read_text(encoding="utf-8"), values, relative(path))
    return out
