"""dvc.yaml of a profile, written from one table of stages.

A stage depends on its code through one file, build/<profile>/code/<stage>.txt, which the stage `code` writes: the
hashes of all modules that shape its result, and a notebook's code cells. No list is kept by hand.

What a lock records is the same on every machine that agrees: data, names of experiments, and results on record. Trained
weights and features have other bits on every machine. So .dvcignore leaves them out, and experiment.json beside them
names what shapes them.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from fdm.files import root, write_text
from fdm.repro import notebooks
from fdm.study import closure, errors, systems
from fdm.study.measurements import MODELS, label
from fdm.study.profiles import Profile
from fdm.tasks.restoration import ccdf

# Modules whose imports decide what a stage computes; of a notebook those that it imports itself.
CODE = {"prepare": ["data.sources"], "fetch": ["model.released"], "publish": ["repro.notebooks"]}
# What takes long depends on what its source is proven to be equal to: see `closure.identity`. 02 and 03 only show what
# they have trained and scored, and better pictures must retrain nothing.
PROVEN = {"02_train": "training", "reference": "scoring", "03_evaluate": "scoring", "heads": "heads",
          "systems": "systems", "restoration": "restoration", "toys": "toy"}  # fmt: skip
REFERENCE = ("extractor", "reference", "samples", "batch")  # parameters of the evaluation behind the floor
HEAD = "# Written by python -m fdm pipeline from the table of stages in fdm/repro/pipeline.py; a test checks it.\n"


def books(profile: Profile) -> list[str]:
    """The notebooks of a profile, in the order of their stages.

    The derivation and the published code depend on no profile, and are shown with the default one.
    """
    first = ["01_kernel", "06_published_code"] if profile.params_file == "params.yaml" else []
    last = [
        *([profile.conclusions] if profile.conclusions else []),
        *(["07_systems"] if profile.evaluation.systems and profile.evaluation.systems.crossed else []),
        *(["09_few_steps"] if profile.evaluation.systems and profile.few_steps else []),
        *(["08_restoration"] if profile.evaluation.restoration else []),
    ]
    return [*first, *(["02_train"] if profile.trained else []), "03_evaluate", *last]


def code(profile: Profile, stage: str) -> str:
    """What build/<profile>/code/<stage>.txt says: a notebook's code cells, and the modules behind the stage."""
    cells = ""
    if stage in books(profile):
        cells = notebooks.code(notebooks.read(root() / "notebooks" / f"{stage}.ipynb")) + "\n# %% modules\n"
    if stage not in PROVEN:
        return cells + closure.listing(*CODE.get(stage, closure.imported(cells)), apart=())
    par, names = profile.evaluation, [PROVEN[stage]]
    if stage == "03_evaluate":
        used = [(each.sampler, each.grid) for each in par.settings]
        if par.errors:
            names.append("errors")
            used += [(sampler, None) for sampler in [*par.errors.solvers, errors.CONVERGED[0]]]
        names += _behind(used)
    if stage == "systems" and par.systems:
        used = [(each.sampler, each.grid) for each in par.systems.systems]
        crossed = par.systems.crossed
        pairs = itertools.product(crossed.samplers, crossed.grids) if crossed else []
        names += _behind([*used, *pairs, (systems.CONVERGED[0], None)])
    if stage == "restoration" and par.restoration:
        options = [dict(each.model_extra or {}) for each in par.restoration.systems if each.method == "ccdf"]
        names += _behind([(str(each.get("sampler", ccdf.SAMPLER)), each.get("grid")) for each in options])
    return cells + "".join(f"{closure.identity(name)}  {name}\n" for name in names)


def _behind(used: list[tuple[str, str | None]]) -> list[str]:
    """The closures of samplers, and of grids that are in none of theirs."""
    grids = {closure.of_grid(grid, sampler) for sampler, grid in used if grid}
    return sorted({closure.of_sampler(sampler) for sampler, _ in used} | {each for each in grids if each})


def stages(profile: Profile) -> dict[str, dict[str, Any]]:
    """The stages of a profile by name, as dvc.yaml has them."""
    file, name = profile.params_file, profile.profile
    build, results = f"build/{name}", f"results/{name}"
    models = ["seeds", "cells"]

    def stage(desc: str, cmd: str, code: str, deps: list[str], params: list[str], outs: list[str]) -> dict[str, Any]:
        # Outputs stay where they are while a stage runs, so that one that fails loses nothing.
        kept = [{out: {"persist": True} if out == dataset else {"cache": False, "persist": True}} for out in outs]
        out = {"desc": desc, "wdir": profile.root, "cmd": f"python -m fdm {cmd} --params {file}"}
        return out | {
            "deps": [f"{build}/code/{code}.txt", *deps], **({"params": [{file: params}]} if params else {}),
            "outs": kept,
        }  # fmt: skip

    def notebook(desc: str, book: str, deps: list[str], params: list[str], outs: list[str]) -> dict[str, Any]:
        return stage(desc, f"notebook {book}", book, deps, params, [f"{build}/notebooks/{book}.ipynb", *outs])

    fetched = any(cell.source == "fetch" for cell in profile.cells.values())
    dataset, checkpoints, features = f"{build}/dataset.safetensors", f"{build}/checkpoints", f"{build}/reference"
    heads = bool(profile.evaluation.systems and profile.evaluation.systems.heads)
    toys = [f"{results}/toys"] if profile.generators else []
    measured = [f"{results}/calibration.csv", f"{results}/runs", "results/published"]
    # Of the profiles beside it the provenance, which names what was measured and is no stage's: none is run for it.
    beside = [f"results/{each}/provenance" for each in profile.beside]
    figures, networks = f"{results}/figures", [f"{results}/networks"] if profile.keep_networks else []
    every = {
        "kernel": notebook("The momentum process and its critically damped solution.", "01_kernel", [], [],
                           [f"{figures}/01_kernel"]),
        "published": notebook("Where the paper, its published code and its tables disagree.", "06_published_code",
                              ["results/published"], [], [f"{figures}/06_published_code"]),
        "prepare": stage("The data set, as one checksummed file.", "prepare", "prepare", [], ["dataset"], [dataset]),
        "reference": stage("Features of the real images, and the floor of each metric, real against real.",
                           "reference", "reference", [dataset],
                           [*(f"evaluation.{key}" for key in REFERENCE), "threads"],
                           [features, f"{results}/calibration.csv"]),
        "fetch": stage("The published networks, imported.", "fetch", "fetch", [], models, [checkpoints]),
        "train": notebook("Every model, with checkpoints at each quarter of the budget; those that are there are kept.",
                          "02_train", [dataset], ["dataset", "network", "training", "threads", *models],
                          [checkpoints, f"{results}/training"]),
        "evaluate": notebook("Samples of every model, scored; what was measured before is remembered.", "03_evaluate",
                             [dataset, features, *([checkpoints] if profile.trained or fetched else []),
                              f"{results}/calibration.csv"],
                             ["dataset", "evaluation", "threads", *models],
                             [f"{results}/runs", *networks]),
        "heads": stage("Second and third moments: heads on every network that is sampled with them.", "heads", "heads",
                       [dataset, checkpoints], ["evaluation.systems", "threads", *models], [f"{build}/heads"]),
        "systems": stage("Ways to sample, compared on every model by quality against evaluations.", "systems",
                         "systems", [dataset, features, checkpoints, *([f"{build}/heads"] if heads else [])],
                         ["dataset", "evaluation.systems", "threads", *models],
                         [f"{results}/systems"]),
        "restoration": stage("Images from measurements of them, compared on every model.", "restoration", "restoration",
                             [dataset, features, checkpoints],
                             ["dataset", "evaluation.restoration", "threads", *models], [f"{results}/restoration"]),
        "toys": stage("25 Gaussians in the plane, by each objective that trains generators.", "toys", "toys", [],
                      ["seeds", "threads"], [f"{results}/toys"]),
        "restored": notebook("Inverse problems: what FDM and what starting closer do for restoration.",
                             "08_restoration", [f"{results}/restoration"],
                             ["dataset", "evaluation", *models],
                             [f"{results}/restored", f"{figures}/08_restoration"]),
        "standings": notebook("What else makes sampling fast: the systems side by side.", "07_systems",
                              [f"{results}/systems", f"{results}/runs", *beside],
                              ["dataset", "evaluation", *(["beside"] if beside else []), *models],
                              [f"{results}/standings", f"{figures}/07_systems"]),
        "few-steps": notebook("Few steps by training: MMD-DDM and SIDDM beside what they start from.", "09_few_steps",
                              [f"{results}/systems", f"{results}/runs", f"{results}/training", *toys],
                              ["dataset", "training", "evaluation", *models],
                              [f"{results}/few-steps", f"{figures}/09_few_steps"]),
        "tables": notebook("The paper's tables 1 to 3, figures and verdicts, from the measurements.", "04_tables",
                           [*measured, *([f"{results}/training"] if profile.trained else [])],
                           ["dataset", "evaluation", *models],
                           [f"{results}/measurements.csv", f"{results}/tables", f"{results}/claims.json",
                            f"{figures}/04_tables", f"{results}/metrics.json", f"{results}/plots"]),
        "evidence": notebook("The evidence: verdicts, findings, the report.", "05_evidence",
                             ["notebooks/05_report.md", *measured,
                              *beside],
                             ["dataset", "network", "training", "evaluation", "beside", *models],
                             [f"{results}/measurements.csv", f"{results}/tables", f"{results}/claims.json",
                              f"{results}/REPORT.md", f"{figures}/05_evidence"]),
    }  # fmt: skip
    shown = {"kernel": "01_kernel", "published": "06_published_code", "train": "02_train", "evaluate": "03_evaluate",
             "tables": "04_tables", "evidence": "05_evidence", "standings": "07_systems", "restored": "08_restoration",
             "few-steps": "09_few_steps",
             "fetch": "03_evaluate"}  # fmt: skip
    wanted = {
        key: each for key, each in every.items()
        if (key not in shown or (shown[key] in books(profile) and (key != "fetch" or fetched)))
        and (key != "systems" or profile.evaluation.systems) and (key != "heads" or heads)
        and (key != "restoration" or profile.evaluation.restoration) and (key != "toys" or toys)
    }  # fmt: skip
    if "tables" in wanted:  # what dvc metrics and dvc plots show
        outs = {next(iter(out)): out for out in wanted["tables"].pop("outs")}
        wanted["tables"] |= {
            "metrics": [outs.pop(f"{results}/metrics.json")], "plots": [outs.pop(f"{results}/plots")],
            "outs": [*outs.values()],
        }  # fmt: skip
    first = {
        "desc": "The source behind each of the other stages, by hash; checks the parameters first.",
        "wdir": profile.root, "cmd": f"python -m fdm code --params {file}",
        "deps": ["fdm", "notebooks", "results/accepted.csv"], "params": [{file: None}],
        "outs": [{f"{build}/code": {"cache": False}}],
    }  # fmt: skip
    last = stage("The executed notebooks with their present prose.", "publish", "publish",
                 [f"{build}/notebooks", *(f"notebooks/{book}.ipynb" for book in books(profile))], [],
                 [f"{results}/notebooks"])  # fmt: skip
    return {"code": first, **wanted, "publish": last}


def coded(profile: Profile) -> list[str]:
    """The stages and notebooks whose code has a file of its own."""
    others = [
        each
        for each in ("prepare", "reference", "fetch", "heads", "systems", "restoration", "toys", "publish")
        if each in stages(profile)
    ]
    return [*others, *books(profile)]


def write_code(profile: Profile) -> None:
    """Write build/<profile>/code, the source behind each stage, as it is now."""
    for stage in coded(profile):
        write_text(profile.build / "code" / f"{stage}.txt", code(profile, stage))


def _plots(profile: Profile) -> list[dict[str, Any]]:
    """Curves that dvc plots show draws, one line a model."""
    folder = f"{profile.root}/results/{profile.profile}/plots".removeprefix("./")
    models = {(cell.framework, cell.kernel) for cell in profile.cells.values() if cell.source != "analytic"}
    names = [label(*model) for model in MODELS if model in models]
    distance, images = "Frechet distance", "training images (thousands)"
    curves = [
        ("Quality against training", "quality_by_duration", "kimg", images, distance, [*names, "Real"]),
        ("Quality against NFE", "quality_by_nfe", "nfe", "network evaluations a sample", distance, [*names, "Real"]),
        ("Training loss", "loss", "kimg", images, "weighted squared error a pixel", names),
    ]
    return [
        {title: {"x": x, "y": {f"{folder}/{file}.csv": columns}, "x_label": label, "y_label": y}}
        for title, file, x, label, y, columns in curves
        if profile.trained or file != "loss"
    ]


def text(profile: Profile) -> str:
    """dvc.yaml of a profile."""
    content: dict[str, Any] = {"stages": stages(profile)}
    if "tables" in content["stages"]:
        content["plots"] = _plots(profile)
    return HEAD + yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True)


def file_of(profile: Profile) -> Path:
    """Where a profile's dvc.yaml is."""
    return root() / Path(profile.params_file).with_name("dvc.yaml")


def again(profile: Profile, stages: list[str], runs: Iterable[str] = ()) -> list[str]:
    """The commands that make results again. What was computed for `runs` is remembered, so they remove it first."""
    file, build = file_of(profile).relative_to(root()).as_posix(), f"build/{profile.profile}"
    folders = [place for run in runs for place in (f"{build}/checkpoints/{run}", f"{build}/scores/{run}.json")]
    first = [f"  rm -rf {' '.join(folders)}"] if folders else []
    return [*first, f"  dvc repro -f -s {' '.join(f'{file}:{stage}' for stage in [*stages, 'publish'])}"]


def write(profile: Profile) -> None:
    """Write a profile's dvc.yaml where it is not current."""
    path = file_of(profile)
    if not path.is_file() or path.read_text(encoding="utf-8") != text(profile):
        write_text(path, text(profile))
