"""What must agree between the files of the project: lock, environments, pipeline, profiles, notebooks, README."""

import ast
import re
import tomllib
from pathlib import Path
from typing import get_args

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fdm import archives, evaluation, plan, profiles, report, study, training
from fdm.__main__ import main
from fdm.errors import FdmError

from .conftest import ROOT, change

PROFILES = [
    "digits",
    "smoke",
    "fashion",
    "fashion-cpu",
    "paper-cifar10",
    "paper-ffhq",
    "paper-afhqv2",
    "published-checkpoints",
    "ablations",
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMITTED = ["digits", "ablations"]  # the profiles whose results are those of this code
EXECUTED = sorted(path for name in COMMITTED for path in (ROOT / "results" / name / "notebooks").glob("*.ipynb"))


# ----------------------------------------------------------------------------------------------- environment


def test_lock_pyproject_and_environment_agree():
    lock = (ROOT / "requirements.lock").read_text()
    pins = {}
    for line in lock.splitlines():
        if match := re.match(r"([a-z0-9._-]+)==(\S+)", line):
            pins.setdefault(canonicalize_name(match[1]), []).append(match[2])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for requirement in map(Requirement, wanted):
        versions = pins.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement.name} is not in the lock: make lock"
        assert all(requirement.specifier.contains(v) for v in versions), f"{requirement} is not met: make lock"
    assert lock.count("--hash=sha256:") > len(pins)
    assert "://" not in re.sub(r"#.*", "", lock), "the lock names an index"

    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert {"pip": ["-r requirements.lock"]} in conda["dependencies"]
    (python,) = [d.removeprefix("python=") for d in conda["dependencies"] if str(d).startswith("python=")]
    assert Requirement(f"python{project['project']['requires-python']}").specifier.contains(python)


# -------------------------------------------------------------------------------------------------- pipeline


@pytest.mark.parametrize("name", PROFILES[1:-2])
def test_every_profile_has_the_same_pipeline(name):
    copy = ROOT / "profiles" / name / "dvc.yaml"
    assert copy.read_bytes() == (ROOT / "dvc.yaml").read_bytes(), f"cp dvc.yaml profiles/{name}/dvc.yaml"


def test_published_checkpoints_go_through_the_same_pipeline_but_for_the_training():
    mine = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    theirs = yaml.safe_load((ROOT / "profiles" / "published-checkpoints" / "dvc.yaml").read_text())
    train, fetch = mine["stages"].pop("train"), theirs["stages"].pop("fetch")
    assert fetch["foreach"] == train["foreach"]
    assert [*fetch["do"]["outs"][0]] == [*train["do"]["outs"][0]] == ["build/${profile}/checkpoints/${key}"]
    tables = mine["stages"]["tables"]
    for kind in ("outs", "plots"):
        tables[kind] = [out for out in tables[kind] if not re.search(r"/loss\.", str(out))]
    assert mine["stages"] == theirs["stages"]
    assert [plot for plot in mine["plots"] if "Training loss" not in plot] == theirs["plots"]


def test_the_ablations_share_the_stages_that_are_not_about_cells():
    mine = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    theirs = yaml.safe_load((ROOT / "profiles" / "ablations" / "dvc.yaml").read_text())["stages"]
    assert list(theirs) == ["code", "prepare", "reference", "cell", "ablations", "publish"]
    for stage in ("code", "prepare", "reference", "publish"):
        assert theirs[stage] == mine[stage]


def imports(module: str, inside_functions: bool = True) -> set[str]:
    """The modules of this package that a module imports, directly or not, by file."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        path = ROOT / "fdm" / f"{name.replace('.', '/')}.py"
        if not path.exists():
            path = ROOT / "fdm" / name.replace(".", "/") / "__init__.py"
            name = f"{name}.__init__"
        if name in seen or not path.exists():
            continue
        seen.add(name)
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree) if inside_functions else tree.body:
            if isinstance(node, ast.ImportFrom) and node.module == "fdm":
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fdm."):
                todo.append(node.module.removeprefix("fdm."))
    return seen


def test_the_hashed_code_is_all_the_code_that_shapes_a_result():
    assert set(training.CODE) == imports("training")
    assert set(evaluation.CODE) == imports("evaluation")


def test_stages_depend_on_the_code_that_they_run():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    exempt = {"errors"}  # sentences change no number
    for stage, module in {"train": "training", "evaluate": "evaluation"}.items():
        deps = {d for d in stages[stage]["do"]["deps"] if d.startswith("fdm/")}
        for name in imports(module) - exempt:
            path = f"fdm/{name.replace('.', '/').replace('/__init__', '/__init__')}.py"
            # Training reaches the evaluation through the checkpoints, whose hash is a dependency.
            through_checkpoints = stage == "evaluate" and name in {"augmentation", "losses", "training", "profiles"}
            assert through_checkpoints or path in deps or str(Path(path).parent) in deps, f"{stage} misses {path}"


def test_a_cell_depends_on_the_code_that_it_runs():
    stages = yaml.safe_load((ROOT / "profiles" / "ablations" / "dvc.yaml").read_text())["stages"]
    for stage, module in {"cell": stages["cell"]["do"], "ablations": stages["ablations"]}.items():
        deps = {d for d in module["deps"] if d.startswith("fdm/")}
        wanted = imports("ablations") - {"provenance"}
        if stage == "ablations":  # functions of other notebooks import the rest
            drawn = ("analysis", "report", "reproducibility", "plots")
            wanted = set().union(*(imports(name, inside_functions=False) for name in drawn))
        for name in wanted - {"errors", "files", "names"}:
            path = f"fdm/{name.replace('.', '/')}.py"
            assert path in deps or str(Path(path).parent) in deps, f"{stage} misses {path}"


def test_every_data_set_has_a_source_a_shape_and_a_name_for_tables():
    names = set(get_args(profiles.DatasetParams.model_fields["name"].annotation))
    assert names == set(archives.data.SOURCES) == set(plan.SHAPES) == set(study.DATA)


# -------------------------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_valid(name):
    profile = profiles.find(name)
    assert profile.profile == name
    if name == "published-checkpoints":
        assert all(run.checkpoint for run in profile.runs.values())
        table = study.read(ROOT / "results" / "published" / "releases.csv").set_index("file")["sha256"].dropna()
        for run in profile.runs.values():
            assert run.checkpoint.sha256 == table.get(run.checkpoint.url.split("/")[-1])
    if name.startswith("paper"):
        assert len(profile.runs) == 6
        assert profile.training.budget_kimg == 200_000
        assert profile.evaluation.samples == 50_000


@pytest.mark.parametrize(
    ("section", "changes", "sentence"),
    [
        ("training", {"learning_rate": 1}, "training.learning_rate is not a known key; allowed here are budget_kimg, "),
        ("training", {"lr": "fast"}, "training.lr: 'fast' is not allowed; input should be a valid number"),
        ("training", {"lr": -1.0}, "training.lr: -1.0 is not allowed; input should be greater than 0"),
        ("training", {"batch": 2.5}, "training.batch: 2.5 is not allowed; input should be a valid integer"),
        ("network", {"dropout": 1.5}, "network.dropout: 1.5 is not allowed; input should be less than 1"),
        (
            "dataset",
            {"name": "mnist"},
            "dataset.name: 'mnist' is not allowed; input should be 'digits', 'fashion-mnist', ",
        ),
        ("evaluation", {"nfe": [25, 10]}, "evaluation.nfe: 10 is not allowed; Heun's sampler needs odd numbers"),
        ("runs", {"edm-fdm-1": {"framework": "edm", "kernel": "fdm", "seed": 2}}, "runs.edm-fdm-1: a run is named"),
        ("runs", {"Edm": {"framework": "edm", "kernel": "fdm", "seed": 2}}, "runs.Edm: 'Edm' is not allowed"),
        (
            "runs",
            {"edm-fdm-0": {"framework": "edm", "kernel": "fdm", "seed": 0, "warmup": 3}},
            "runs.edm-fdm-0.warmup is not a known key; allowed here are framework, kernel, multiplier,",
        ),
        (
            "runs",
            {"edm-fdm-0": {"framework": "edm", "kernel": "fdm", "seed": 0, "checkpoint": {"url": "x.pkl", "kimg": 1}}},
            "runs.edm-fdm-0.checkpoint.url: 'x.pkl' is not allowed; string should match pattern",
        ),
        (
            "runs",
            {
                "edm-fdm-0": {
                    "framework": "edm",
                    "kernel": "fdm",
                    "seed": 0,
                    "checkpoint": {"url": "http://x/y.pkl", "kimg": 1, "md5": 2},
                }
            },
            "runs.edm-fdm-0.checkpoint.md5 is not a known key; allowed here are url, sha256, kimg",
        ),
        (
            "runs",
            {
                "edm-fdm-0": {
                    "framework": "edm",
                    "kernel": "fdm",
                    "seed": 0,
                    "checkpoint": {"url": "http://x/y.pkl", "kimg": 1},
                }
            },
            "network must be absent where the runs are published checkpoints",
        ),
    ],
)
def test_bad_parameters_stop_with_one_sentence(study, capsys, section, changes, sentence):
    with pytest.raises(FdmError):
        change(study / "params.yaml", **{section: changes})
    assert main(["check"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"fdm: params.yaml: {sentence}"), error
    assert error.count("\n") == 1
    assert error.endswith(".\n")


def test_a_copied_profile_that_still_names_the_original_is_refused(study, capsys):
    (study / "profiles" / "mine").mkdir()
    (study / "profiles" / "mine" / "params.yaml").write_text((study / "params.yaml").read_text())
    assert main(["check", "--params", "profiles/mine/params.yaml"]) == 1
    assert "profile: 'digits' is not allowed; in this place it is 'mine'" in capsys.readouterr().err


def test_a_missing_profile_a_duplicate_key_and_broken_yaml_are_named(study, capsys):
    assert main(["check", "--params", "profiles/nope/params.yaml"]) == 1
    assert "There is no profiles/nope/params.yaml; the profiles are digits, ablations, " in capsys.readouterr().err
    path = study / "params.yaml"
    path.write_text(path.read_text() + "threads: 2\n")
    assert main(["check"]) == 1
    assert "the key threads is given twice" in capsys.readouterr().err
    path.write_text("a: [1\n")
    assert main(["check"]) == 1
    assert "params.yaml is not valid YAML" in capsys.readouterr().err


def test_outside_the_study_the_command_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check"]) == 1
    assert "is not inside the study" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_sources_are_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert notebook.cells[0].source.startswith("# ")
    assert notebook.cells[0].source.splitlines()[0].endswith("?"), "a notebook's title is its question"
    assert any("parameters" in cell.metadata.get("tags", []) for cell in code)


@pytest.mark.parametrize("name", COMMITTED)
def test_there_is_an_executed_copy_of_every_notebook_and_run(name):
    profile = profiles.find(name)
    wanted = {
        "01_kernel",
        "04_tables",
        "06_published_code",
        *(f"{n}+{run}" for run in profile.runs for n in ("02_train", "03_evaluate")),
    }
    wanted = {"05_ablations"} if profile.cells else wanted
    assert {path.stem for path in EXECUTED if path.parts[-3] == name} == wanted


@pytest.mark.parametrize("path", EXECUTED, ids=lambda p: f"{p.parts[-3]} {p.stem}")
def test_executed_notebooks_are_of_the_committed_sources_with_outputs_and_no_error(path):
    executed = nbformat.read(path, as_version=4)
    source = nbformat.read(ROOT / "notebooks" / f"{path.stem.split('+')[0]}.ipynb", as_version=4)
    mine = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    assert [c.source for c in mine] == [c.source for c in source.cells], "dvc repro publish"
    code = [c for c in executed.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    # The link to where and when it was executed leads somewhere.
    (link,) = {m for o in outputs for m in re.findall(r"\[provenance\]\((.*?)\)", str(o.get("data", {})))}
    assert (path.parent / link).is_file()


# ---------------------------------------------------------------------------------------------------- README


def test_the_readme_shows_the_measured_verdicts():
    text = (ROOT / "README.md").read_text()
    assert report.readme(profiles.find("ablations")) == text, (
        "python -m fdm readme --params profiles/ablations/params.yaml"
    )


def test_links_in_the_documents_lead_somewhere():
    for document in ("README.md", "CONTRIBUTING.md", "results/ablations/REPORT.md"):
        for link in re.findall(r"\]\(([^)#]+)", (ROOT / document).read_text()):
            if "://" not in link:
                assert (ROOT / document).parent.joinpath(link).exists(), f"{document} links to {link}"
