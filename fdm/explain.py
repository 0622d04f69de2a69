"""From a cell of a table, or a figure, back to what it was made from: rows, files, stages, notebooks, provenance."""

import ast
import csv
import io
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fdm import agreement, explain_ablation, notebooks, pipeline, study
from fdm.errors import FdmError
from fdm.files import root
from fdm.profiles import Profile

FORMS = {
    "table1[vp,fdm,100%]": "measured: framework, kernel, share of the training",
    "table2[edm,baseline,25]": "measured: framework, kernel, evaluations (EDM's Heun sampler)",
    "table3[edm,baseline,25]": "the same with DPM-Solver++",
    "table1[real]": "the floor: real images against real images (of tables 2 and 3 too)",
    "table1[vp,fdm,50 Mimg,cifar10]": "published: framework, kernel, training images, data set",
    "table2[vp,fdm,25,afhqv2]": "published: framework, kernel, evaluations, data set (table 3 too)",
    "figure[quality_by_nfe]": "which notebook draws it, and from which files",
}
SAMPLER = {1: "heun", 2: "heun", 3: "dpm-solver++"}
SETTING = ("framework", "kernel", "duration", "sampler", "nfe", "metric")
# What a notebook calls to read data, and what that reads.
READS = {
    "study.measurements": "results/{}/runs/*/measurements.csv",
    "study.calibration": "results/{}/calibration.csv",
    "study.losses": "results/{}/training/*.csv",
    "report.pictures": "results/{}/runs/*/pictures.safetensors",
    "study.published": "results/published/table*.csv",
    "tables.published": "results/published/table*.csv",
    "analysis.costs": "results/published/table*.csv",
}


@dataclass(frozen=True)
class Cell:
    """One number of table 1, 2 or 3, as its CSV file has it."""

    table: int
    source: str  # measured, calibration or published
    metric: str
    n: int  # images
    value: float
    framework: str = ""
    kernel: str = ""
    at: str = ""  # the row's cost: 100% (of the training), 50 Mimg, or a number of evaluations
    data: str = ""  # a published cell's data set, as results/published names it

    @property
    def where(self) -> str:
        """What the cell is called, such as table1[vp,fdm,100%]."""
        parts = filter(None, (self.framework, self.kernel, self.at, self.data))
        return f"table{self.table}[{'real' if self.source == 'calibration' else ','.join(parts)}]"


def relative(path: Path) -> str:
    """A path of the study as seen from its root."""
    return path.relative_to(root()).as_posix()


def records(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as they are written, so that no digit is lost; raises FdmError as `study.read` does."""
    study.read(path)
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def cells(profile: Profile, table: int) -> list[Cell]:
    """Every number in the CSV file of table 1, 2 or 3, but for the empty cells; raises FdmError for a damaged file."""
    path = profile.results / "tables" / f"table{table}.csv"
    names = {label: name for name, label in study.DATA.items()}
    models = {study.label(*model): model for model in study.MODELS} | {"Real": ("", "")}
    out = []
    try:
        for row in records(path):
            cost, data = row["training" if table == 1 else "NFE"], ""
            if row["source"] == "published":
                cost, data = cost.partition("(")[2].rstrip(")") or cost, names[row["data"]]
            elif row["source"] == "measured":
                cost = cost.split()[0]
            for column, (framework, kernel) in models.items():
                if row[column]:
                    at, value = "" if column == "Real" else cost, float(row[column])
                    cell = Cell(table, row["source"], row["metric"], int(row["n"]), value, framework, kernel, at, data)
                    out.append(cell)
    except (KeyError, ValueError, IndexError) as error:
        raise FdmError(f"{path} is damaged ({error!r}); run dvc repro to measure it again.") from error
    return out


def setting(profile: Profile, cell: Cell) -> tuple[str, str, float, str, int, str]:
    """What was measured for a measured cell, in the order of `SETTING`."""
    share, nfe = (float(cell.at[:-1]) / 100, profile.evaluation.duration_nfe) if cell.table == 1 else (1.0, cell.at)
    return cell.framework, cell.kernel, share, SAMPLER[cell.table], int(nfe), cell.metric


def behind(profile: Profile, cell: Cell) -> pd.DataFrame:
    """The rows of measurements whose mean is a measured cell, one a seed."""
    rows = study.measurements(profile)
    for column, value in zip(SETTING, setting(profile, cell), strict=True):
        rows = rows[rows[column] == value]
    return rows


def explain(profile: Profile, name: str | None) -> str:
    """All that is known of the cell or figure of that name, as text; without a name, the forms that a name can have.

    Case and blanks do not matter. Raises FdmError, with what is allowed, for a name that means nothing here.
    """
    forms = explain_ablation.FORMS if profile.cells else FORMS
    if name is None:
        return "\n".join(["python -m fdm explain NAME, where NAME is one of", *_columns(forms.items())])
    match = re.fullmatch(r"(table([123])|\w+)\[([^\[\]]+)\]", _plain(name))
    if not match or not (match[2] or match[1] == "figure" or profile.cells):
        raise FdmError(f"{name!r} cannot be explained; allowed are names such as {', '.join(forms)}.")
    if match[1] == "figure":
        return _figure(profile, match[3])
    if profile.cells:
        return explain_ablation.explain(profile, match[1], match[3].split(","))
    every = cells(profile, int(match[2]))
    cell = next((cell for cell in every if _plain(cell.where) == _plain(name)), None)
    if cell is None:
        raise FdmError(_unknown(name, match[3].split(","), every))
    return {"measured": _measured, "calibration": _calibration, "published": _published}[cell.source](profile, cell)


def _plain(name: str) -> str:
    return "".join(name.split()).lower()


def _columns(pairs: Iterable[tuple[str, object]]) -> list[str]:
    return [f"  {key:32}{value}" for key, value in pairs]


def _unknown(name: str, parts: list[str], every: list[Cell]) -> str:
    """The sentence on a cell that is not there: what is allowed in the first place that is wrong."""
    known = [c.where[7:-1].split(",") for c in every]
    known = [other for other in known if len(other) == len(parts)]
    if not known or len(parts) == 1:
        return f"{name} is no cell; allowed are names such as {', '.join(FORMS)}."
    for place, part in enumerate(parts):
        allowed = list(dict.fromkeys(other[place] for other in known))
        if part not in map(_plain, allowed):
            return f"{name} is no cell: {part!r} is not allowed; in its place stands one of {', '.join(allowed)}."
    alike = [",".join(other) for other in known if other[:2] == parts[:2]] or [",".join(other) for other in known]
    return f"{name} is no cell: nothing was measured or published for it; there are {'; '.join(alike)}."


def _provenance(profile: Profile, name: str) -> str:
    """When, where and at which revision a notebook was executed, in a line."""
    path = profile.results / "provenance" / f"{name}.json"
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        changed = ", ".join(line[3:] for line in about["changed_since_revision"])
        return (
            f"{relative(path)}: revision {about['revision'][:12]}{f' with changes in {changed}' if changed else ''}, "
            f"{about['started']}, {about['device']}, torch {about['versions']['torch']}"
        )
    except (OSError, ValueError, KeyError):
        return f"{relative(path)}: missing or damaged, so that nothing is known"


def _made_by(profile: Profile, names: list[str], stages: list[str], runs: Iterable[str] = ()) -> list[str]:
    """The lines on the notebooks of those names, their provenance, the stages, and the command that runs them again.

    What was computed for `runs` has to be removed before, or it would be taken as it is.
    """
    place = Path(profile.params_file).with_name("dvc.yaml").as_posix()
    folder = relative(profile.results / "notebooks")
    return [
        *(["executed notebooks:"] if names else []),
        *(f"  {folder}/{name}.ipynb" for name in names),
        *(["provenance:"] if names else []),
        *(f"  {_provenance(profile, name)}" for name in names),
        f"stages of {place}: {', '.join(stages)}",
        "made again by (as make repro does what has changed; publish renews results/ from the executed notebooks):",
        *pipeline.again(profile, stages, runs),
    ]


def _table_file(profile: Profile, cell: Cell) -> str:
    return relative(profile.results / "tables" / f"table{cell.table}.csv")


def _measured(profile: Profile, cell: Cell) -> str:
    rows = behind(profile, cell)
    lines = [
        f"{cell.where} = {cell.value!r}",
        f"{cell.metric} of {study.label(cell.framework, cell.kernel)} on {study.DATA[profile.dataset.name]}, lower is "
        f"better; in {_table_file(profile, cell)}",
    ]
    if not math.isclose(cell.value, rows["value"].mean(), rel_tol=agreement.RELATIVE):
        lines.append("This is NOT the mean of the rows below: the table is older than they are, or was altered.")
    lines.append(f"the mean of {len(rows)} rows:" if len(rows) > 1 else "the row behind it:")
    shown = [c for c in rows.columns if c not in ("profile", "dataset", "framework", "kernel", "low", "high")]
    for row in rows.to_dict("records"):
        lines.append(f"  {', '.join(f'{column} {row[column]}' for column in shown)}")
    runs = list(dict.fromkeys(rows["run"]))
    lines += ["which is in:", f"  {relative(profile.results)}/measurements.csv, put together by the stage tables from"]
    lines += [f"  {relative(profile.results / 'runs' / run / 'measurements.csv')}" for run in runs]
    lines.append(f"parameters, from {profile.params_file}:")
    tables: dict[str, Any] = {run: profile.run(run) for run in runs}
    tables |= {key: getattr(profile, key) for key in ("dataset", "network", "training", "evaluation")}
    for key, table in tables.items():
        if table is not None:
            values = table.model_dump(exclude_none=True)
            lines.append(f"  {key}: {', '.join(f'{name} {value}' for name, value in values.items())}")
    first = "fetch" if profile.published else "train"
    names = ["03_evaluate"] if profile.published else ["02_train", "03_evaluate"]
    lines += ["measured, with its provenance:", *(f"  {_provenance(profile, run)}" for run in runs)]
    return "\n".join([*lines, *_made_by(profile, [*names, "04_tables"], [first, "evaluate", "tables"], runs)])


def _calibration(profile: Profile, cell: Cell) -> str:
    path = profile.results / "calibration.csv"
    rows = [row for row in records(path) if row["metric"] == cell.metric]
    lines = [
        f"{cell.where} = {cell.value!r}",
        f"{cell.metric} of real images of {study.DATA[profile.dataset.name]} against other real images, the floor; in "
        f"{_table_file(profile, cell)}",
        "the row behind it:",
        *(f"  {', '.join(f'{column} {value}' for column, value in row.items())}" for row in rows),
        "which is in:",
        f"  {relative(path)}",
    ]
    return "\n".join([*lines, *_made_by(profile, ["04_tables"], ["reference", "tables"])])


def _published(profile: Profile, cell: Cell) -> str:
    (path,) = (root() / "results" / "published").glob(f"table{cell.table}_*.csv")
    column, cost = ("duration_mimg", cell.at.split()[0]) if cell.table == 1 else ("nfe", cell.at)
    wanted = {"framework": cell.framework, "kernel": cell.kernel, "dataset": cell.data, column: cost}
    lines = [number for number, row in enumerate(records(path), 2) if wanted.items() <= row.items()]
    return "\n".join(
        [
            f"{cell.where} = {cell.value!r}",
            f"FID of {study.label(cell.framework, cell.kernel)} on {study.DATA[cell.data]} at n = {cell.n:,}, as "
            f"published: Table {cell.table} of the paper, arXiv 2306.06991.",
            f"  {relative(path)}, line {', '.join(map(str, lines))}",
            f"It stands beside the measured numbers in {_table_file(profile, cell)}, which the stage tables writes.",
        ]
    )


def _figure(profile: Profile, name: str) -> str:
    """Where a figure is drawn: the notebook, its stage, and what it reads."""
    drawn: dict[str, tuple[str, list[str]]] = {}
    paths = sorted((profile.results / "notebooks").glob("*.ipynb"))
    for path in paths:
        done: list[str] = []
        for cell in notebooks.read(path).cells:
            if cell.cell_type != "code":
                continue
            done.append(cell.source)
            for figure in re.findall(r"plots\.save\(.*?,\s*\"(\w+)\"\)", cell.source, re.DOTALL):
                drawn[figure] = (path.stem, list(done))
    if not paths:
        raise FdmError(f"{relative(profile.results / 'notebooks')} has no executed notebooks; run dvc repro first.")
    if name not in drawn:
        raise FdmError(f"There is no figure named {name}; the notebooks draw {', '.join(drawn)}.")
    notebook, code = drawn[name]
    stages = yaml.safe_load((root() / Path(profile.params_file).with_name("dvc.yaml")).read_text(encoding="utf-8"))
    calls = {key: stage["cmd"] for key, stage in stages["stages"].items()}
    (stage,) = [key for key, call in calls.items() if f" {notebook} " in call]
    files = dict.fromkeys(READS[call].format(profile.profile) for call in reads(code))
    return "\n".join(
        [
            f"figure[{name}]: " + ", ".join(map(relative, sorted(profile.results.glob(f"figures/*/{name}.*")))),
            f"drawn by notebooks/{notebook}.ipynb, in a cell that uses:",
            *(f"  {file}" for file in files),
            *([] if files else ["  nothing but the formulas and the code that the notebook runs, no data"]),
            *_made_by(profile, [notebook], [stage]),
        ]
    )


def reads(code: list[str]) -> list[str]:
    """Which functions of `READS` the last of these cells uses, itself or through variables of the cells before it."""
    made: dict[str, list[ast.AST]] = {}
    for statement in ast.parse("\n".join(code)).body:
        if isinstance(statement, ast.FunctionDef):
            made[statement.name] = [statement]
            continue
        for node in ast.walk(statement):
            for name, value, keeps in _assigned(node):
                keeps = keeps or any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(value))
                made[name] = [value, *(made.get(name, []) if keeps else [])]
    todo: list[ast.AST] = [ast.parse(code[-1])]
    used: set[str] = set()
    while todo:
        part = todo.pop()
        used |= {ast.unparse(node) for node in ast.walk(part) if isinstance(node, ast.Attribute)}
        todo += [source for node in ast.walk(part) if isinstance(node, ast.Name) for source in made.pop(node.id, [])]
    return [call for call in READS if any(name.startswith(call) for name in used)]


def _assigned(node: ast.AST) -> list[tuple[str, ast.AST, bool]]:
    """The variables that a statement sets, what to, and whether they keep what they held, as x does in x[i] = y."""
    if not isinstance(node, ast.Assign):
        return []
    out: list[tuple[str, ast.AST, bool]] = []
    for target in node.targets:
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        values = node.value.elts if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple) else []
        for place, part in enumerate(parts):
            value, keeps = values[place] if len(values) == len(parts) else node.value, False
            while isinstance(part, ast.Subscript | ast.Attribute):
                part, keeps = part.value, True
            out += [(name.id, value, keeps) for name in ast.walk(part) if isinstance(name, ast.Name)]
    return out
