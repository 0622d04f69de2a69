"""What must agree between the files of the project: lock, environments, pipeline, profiles, notebooks, README."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fdm import archives, closure, pipeline, plan, profiles, report, study
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


@pytest.mark.parametrize("name", PROFILES)
def test_every_pipeline_is_the_one_of_the_table_of_stages(name):
    profile = profiles.find(name)
    assert pipeline.file_of(profile).read_text() == pipeline.text(profile), "python -m fdm pipeline --params ..."


def test_a_stage_depends_on_the_source_of_all_that_it_runs():
    assert {"training", "losses", "networks", "profiles", "closure"} <= closure.modules("training").keys()
    assert {"samplers.heun", "sampling", "preconditioning"} <= closure.modules("evaluation").keys()
    assert not {"plots", "report", "verify", "explain", "plan"} & closure.modules("training", "evaluation").keys()
    assert "training" not in closure.modules(
        "evaluation"
    )  # another loop that ends in equal weights scores nothing again
    for profile in map(profiles.find, PROFILES):
        stages = pipeline.stages(profile)
        for name, stage in stages.items():
            if name != "code":
                (text,) = [d for d in stage["deps"] if d.startswith(f"build/{profile.profile}/code/")]
                assert Path(text).stem in pipeline.coded(profile)
    text = pipeline.code(profiles.find("digits"), "04_tables")
    assert "report.show_table" in text
    assert re.search(r"^[0-9a-f]{64}  tables$", text, re.M)


def test_the_source_behind_a_stage_changes_with_that_of_any_module_it_imports(study):
    before = {name: closure.digest(name) for name in ("training", "evaluation")}
    (study / "fdm" / "losses.py").write_text((study / "fdm" / "losses.py").read_text() + "\n")
    closure._imports.cache_clear()
    assert closure.digest("training") != before["training"]
    assert closure.digest("evaluation") == before["evaluation"]
    (study / "fdm" / "plots.py").write_text("")
    assert closure.digest("evaluation") == before["evaluation"]


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
def test_there_is_an_executed_copy_of_every_notebook(name):
    assert {path.stem for path in EXECUTED if path.parts[-3] == name} == set(pipeline.books(profiles.find(name)))


@pytest.mark.parametrize("path", EXECUTED, ids=lambda p: f"{p.parts[-3]} {p.stem}")
def test_executed_notebooks_are_of_the_committed_sources_with_outputs_and_no_error(path):
    executed = nbformat.read(path, as_version=4)
    source = nbformat.read(ROOT / "notebooks" / f"{path.stem}.ipynb", as_version=4)
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
