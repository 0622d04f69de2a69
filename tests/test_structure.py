"""What must agree between the files of the project: environments, rooms, pipeline, profiles, notebooks, README."""

import ast
import gc
import graphlib
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fdm.__main__ import main
from fdm.data.downloads import ARCHIVES
from fdm.data.sources import SOURCES
from fdm.files import FdmError
from fdm.params import Architecture, DatasetParams
from fdm.process.frameworks import FRAMEWORKS
from fdm.process.joint import JOINT
from fdm.repro import notebooks, pipeline
from fdm.samplers import GRIDS, SAMPLERS
from fdm.study import closure, measurements, profiles, show
from fdm.tasks import generation

from .conftest import ROOT, change, study_in

PROFILES = [
    "digits",
    "smoke",
    "fashion",
    "fashion-cpu",
    "emoji",
    "paper-cifar10",
    "paper-ffhq",
    "paper-afhqv2",
    "published-checkpoints",
    "exact",
    "exact-16",
    "exact-32",
    "fashion-16",
    "rates",
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The profiles whose results are whole, as their lock says, and of this code.
COMMITTED = [
    "digits",
    *(path.parent.name for path in (ROOT / "profiles").glob("*/dvc.lock") if path.parent.name != "smoke"),
]
EXECUTED = sorted(
    path for name in {*COMMITTED, "exact"} for path in (ROOT / "results" / name / "notebooks").glob("*.ipynb")
)


# ----------------------------------------------------------------------------------------------- environment


def test_lock_pyproject_and_environment_agree():
    lock = (ROOT / "requirements.lock").read_text()
    pins = {}
    for line in lock.splitlines():
        if match := re.match(r"([a-z0-9._-]+)==(\S+)", line):
            pins.setdefault(canonicalize_name(match[1]), []).append(match[2])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extra = project["project"]["optional-dependencies"]["study"]
    wanted = [*project["project"]["dependencies"], *extra, *project["dependency-groups"]["dev"]]
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


def test_no_file_names_a_place_on_somebodys_machine():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    place = re.compile(rf"/(home|Users|root)/\w|{re.escape(str(ROOT))}/".encode())
    files = [
        ROOT / name for name in listed.splitlines() if (ROOT / name).suffix not in (".npz", ".safetensors", ".png")
    ]
    found = [file for file in files if file.is_file() and place.search(file.read_bytes())]
    assert len(files) > 100
    assert found == []


# ----------------------------------------------------------------------------------------------------- rooms

ROOMS = ("process", "model", "samplers", "training", "tasks", "metrics", "data")
SOURCE = {
    ".".join(path.relative_to(ROOT / "fdm").with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted((ROOT / "fdm").rglob("*.py"))
}  # module, without fdm. -> its file
GRAPH = {
    module: {name for name in closure.imported(path.read_text()) if name in SOURCE and name != module}
    for module, path in SOURCE.items()
}  # module -> the modules that it imports at any place


def room(module: str) -> str:
    return module.split(".")[0]


def test_what_a_source_imports_is_read_while_collections_let_other_code_parse():
    """Python before 3.11.8 would raise SystemError, as it counts the depth of both trees in one place."""
    source, threshold = SOURCE["study.runs"].read_text(), gc.get_threshold()
    expected = closure.imported(source)

    def parse(phase: str, info: object) -> None:
        (lambda: ast.parse("a + (b - c)"))()  # a frame deeper, as depths that are equal would hide it

    gc.callbacks.append(parse)
    gc.set_threshold(5)
    try:
        found = closure.imported(source)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(parse)
    assert found == expected
    assert gc.isenabled()


def test_every_module_is_in_a_room_that_is_installed():
    packages = {path.parent.relative_to(ROOT) for path in SOURCE.values()}
    assert {room(module) for module in SOURCE} == {
        *ROOMS,
        "study",
        "repro",
        "files",
        "params",
        "diffusers",
        "",
        "__main__",
    }
    assert all((ROOT / package / "__init__.py").is_file() for package in packages)
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {*found} == {".".join(package.parts) for package in packages} | {"fdm.networks"}


def test_the_package_stands_on_itself_from_the_process_to_the_study_and_the_study_on_nothing_of_its_repetition():
    assert sum(map(len, GRAPH.values())) > 150
    for module, imported in GRAPH.items():
        above = {name for name in imported if room(name) in ("study", "repro")}
        if room(module) in (*ROOMS, "files", "params"):
            assert not above, f"{module} imports {above}"
        if room(module) == "study":
            assert not {name for name in above if room(name) == "repro"}, f"{module} imports {above}"
        assert "__main__" not in imported


def test_no_module_imports_itself_over_others_or_by_a_relative_name():
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises CycleError with the circle
    for module, path in SOURCE.items():
        levels = [node.level for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not any(levels), f"{module} imports by a relative name, which closures do not see"


def test_the_file_of_a_room_does_nothing_and_that_of_the_samplers_only_lists_them():
    """Closures leave such files out, and a line in the registry of samplers must not touch a training."""
    for module, path in SOURCE.items():
        if path.name != "__init__.py" or module == "":
            continue
        docstring, *rest = ast.parse(path.read_text()).body
        assert isinstance(docstring, ast.Expr), module
        assert isinstance(docstring.value, ast.Constant), module
        if module != "samplers":
            assert rest == [], f"{module} does something"
            continue
        *imports, samplers, grids, asked = rest
        assert all(isinstance(node, ast.ImportFrom) for node in imports)
        assert [samplers.target.id, grids.target.id] == ["SAMPLERS", "GRIDS"]
        assert ast.unparse(asked) == "modules[__name__].__class__ = Registry"
        for registry in (samplers, grids):
            assert isinstance(registry, ast.AnnAssign)
            assert all(isinstance(key, ast.Constant) for key in registry.value.keys)
            assert all(isinstance(value, ast.Name) for value in registry.value.values)


@pytest.mark.parametrize(
    "registry", [FRAMEWORKS | JOINT, SOURCES, SAMPLERS, GRIDS], ids=["process", "data", "samplers", "grids"]
)
def test_names_in_registries_are_lower_case_and_labels_differ(registry):
    assert all(name == name.lower() and not set(name) & set(" ._/=,") for name in registry)
    labels = [getattr(entry, "label", name) for name, entry in registry.items()]
    assert all(labels)
    assert len(set(labels)) == len(labels)


def test_a_framework_is_called_by_its_label_and_has_a_known_network():
    for name, process in FRAMEWORKS.items():
        assert name == process.label.lower()
        assert process.architecture in get_args(Architecture)
        assert 0 < process.sigma_range[0] < process.sigma_range[1]
    # Twice, so that checking parameters by name needs no sampling.
    assert profiles.USUAL_TOP == generation.SIGMA_MAX


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_the_one_of_the_file_that_its_results_are_named_by(name):
    entry = SAMPLERS[name]
    assert name == name.lower() and entry.label
    assert entry.grid in GRIDS
    of = closure.of_sampler(name)
    assert room(of) == "samplers"
    assert entry in vars(sys.modules[f"fdm.{of}"]).values()
    behind = closure.modules(of)
    assert {entry.steps.__module__, GRIDS[entry.grid].__module__} <= {f"fdm.{module}" for module in behind}
    parameters = inspect.signature(entry.sample).parameters
    assert list(parameters)[:5] == ["denoise", "x", "grid", "steps", "noise"]
    assert list(parameters)[5:] == list(entry.options)
    entry.check({option: parameters[option].default for option in entry.options})


def test_a_data_set_has_the_archives_of_its_name_and_what_is_said_of_it_is_so(digits):
    assert set(ARCHIVES) <= set(SOURCES)
    for name, source in SOURCES.items():
        assert source.archives == tuple(ARCHIVES.get(name, ()))
        assert (source.size == 0) == (name == "folder")
        assert source.channels in (1, 3)
        assert source.classes > 0
    source = SOURCES["digits"]
    images = len(digits.images) + len(digits.held)
    assert (images, digits.shape[0], digits.classes) == (source.size, source.channels, source.classes)
    assert source.licence.endswith(".")


# -------------------------------------------------------------------------------------------------- pipeline


@pytest.mark.parametrize("name", PROFILES)
def test_every_pipeline_is_the_one_of_the_table_of_stages(name):
    profile = profiles.find(name)
    assert pipeline.file_of(profile).read_text() == pipeline.text(profile), "python -m fdm pipeline --params ..."


def test_a_stage_depends_on_the_source_of_all_that_it_runs():
    training, scoring, errors = (
        closure.modules(*closure.CLOSURES[name]).keys() for name in ("training", "scoring", "errors")
    )
    shared = {"files", "params", "data.datasets", "model.checkpoints", "model.denoiser", "model.unet",
              "process.frameworks", "process.momentum", "process.schedule"}  # fmt: skip
    assert shared | {"training.loop", "training.engine", "training.state", "training.augmentation",
                     "training.objectives.denoising"} <= training  # fmt: skip
    assert shared | {"study.measure", "tasks.generation", "metrics.features", "metrics.distances",
                     "samplers.noise", "model.oracle"} <= scoring  # fmt: skip
    assert "training.loop" not in scoring  # another loop that ends in equal weights scores nothing again
    assert {room(module) for module in training} <= {"process", "model", "data", "training", "files", "params"}
    assert shared | {"study.errors", "tasks.denoising", "tasks.gradients", "tasks.generation", "model.oracle"} <= errors
    assert not {"training.loop", "study.measure", "metrics.distances"} & errors
    for measured, own in ((scoring, "study.measure"), (errors, "study.errors")):
        above = {module for module in measured if room(module) in ("study", "repro")}
        assert above == {"study", own, "study.networks"}
    assert not {closure.of_sampler(name) for name in SAMPLERS} & (training | scoring | errors)
    for profile in map(profiles.find, PROFILES):
        stages = pipeline.stages(profile)
        for name, stage in stages.items():
            if name != "code":
                (text,) = [d for d in stage["deps"] if d.startswith(f"build/{profile.profile}/code/")]
                assert Path(text).stem in pipeline.coded(profile)
    text = pipeline.code(profiles.find("digits"), "04_tables")
    assert "show.show_table" in text
    assert re.search(r"^[0-9a-f]{64}  study\.tables$", text, re.M)
    assert f"{closure.identity('training')}  training\n" in pipeline.code(profiles.find("digits"), "02_train")
    text = pipeline.code(profiles.find("digits"), "03_evaluate")
    behind = ["scoring", *{closure.of_sampler(each.sampler) for each in profiles.find("digits").evaluation.settings}]
    assert all(f"{closure.identity(name)}  {name}\n" in text for name in behind)


LOADS = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(f"fdm.{module}")
    loaded = [name for name in sys.modules if name.partition(".")[0] == "fdm"]
    for name in loaded:
        del sys.modules[name]
    print(*loaded)
"""


def test_what_is_loaded_with_a_closure_is_in_it_or_chooses_and_computes_nothing():
    """By Python itself and not by the source: what is left out are registries, profiles, and what only they load."""
    begins = {"training": "training.loop", "scoring": "study.measure", "errors": "study.errors"}
    command = [sys.executable, "-c", LOADS, *begins.values()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for (name, module), line in zip(begins.items(), done.stdout.splitlines(), strict=True):
        loaded = {each.removeprefix("fdm.") for each in line.split()} - {"fdm"}
        allowed = closure.modules(*closure.CLOSURES[name]).keys() | {m for m in SOURCE if SOURCE[m].stem == "__init__"}
        for other in ("joint", "conditional", "few-steps"):  # which only networks of that kind compute with
            allowed |= closure.modules(*closure.CLOSURES[other]).keys()
        allowed |= {module for module in SOURCE if room(module) == "samplers"}
        if name != "training":
            allowed |= {"study.profiles", "study.closure", "metrics.inception", "data.downloads"}
        assert module in loaded
        assert loaded <= allowed, name


def copied(study: Path, name: str) -> Path:
    """Another copy of the study's source: what a file imports is remembered by its path."""
    copy = study / name
    shutil.copytree(study / "fdm", copy / "fdm")
    shutil.copy(study / "dvc.yaml", copy / "dvc.yaml")
    return copy


def digests(study: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of each closure in a copy of the source, and of the samplers."""
    monkeypatch.chdir(study)
    samplers = {closure.of_sampler(name) for name in SAMPLERS}
    return {name: closure.digest(*closure.CLOSURES.get(name, [name])) for name in (*closure.CLOSURES, *samplers)}


@pytest.fixture(scope="module")
def one_copy(tmp_path_factory):
    """A copy of the source for all that a comment is added to, as a comment imports nothing; and its digests."""
    folder = study_in(tmp_path_factory.mktemp("source"))
    with pytest.MonkeyPatch.context() as patch:
        return folder, digests(folder, patch)


EVERY_SAMPLER = {closure.of_sampler(name) for name in SAMPLERS}
EVERY_CLOSURE = {*closure.CLOSURES}
FEW = {"few-steps", "toy"}


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("training/objectives/denoising.py", {"training", "joint", "conditional", "few-steps"}),
        ("training/loop.py", {"training"}),
        ("training/processes.py", EVERY_CLOSURE - {"heads"}),
        ("training/heads.py", {"heads"}),
        ("training/objectives/adversarial.py", FEW),
        ("training/objectives/discrepancy.py", {"few-steps"}),
        ("model/generator.py", {"few-steps"}),
        ("process/ladder.py", FEW | {"samplers.siddm"}),
        ("metrics/discrepancy.py", FEW),
        ("study/grid_toy.py", {"toy"}),
        ("training/objectives/hybrid.py", {"joint"}),
        ("model/moments.py", {"heads"}),
        ("model/joint.py", {"joint"}),
        (
            "process/joint.py",
            EVERY_CLOSURE,
        ),
        (
            "process/momentum.py",
            EVERY_CLOSURE,
        ),
        ("process/multivariate.py", {"joint", "samplers.multivariate"}),
        ("model/unet.py", EVERY_CLOSURE),
        ("params.py", EVERY_CLOSURE),
        ("files.py", EVERY_CLOSURE),
        ("metrics/distances.py", {"scoring", "systems", "restoration", "toy"}),
        ("metrics/classifier.py", {"scoring", "systems", "restoration"}),
        ("study/measure.py", {"scoring"}),
        ("study/errors.py", {"errors"}),
        ("study/systems.py", {"systems", "restoration"}),
        ("metrics/learned.py", {"systems", "restoration", "few-steps"}),
        ("study/standings.py", set()),
        ("study/networks.py", {"scoring", "errors", "systems", "heads", "restoration"}),
        ("study/heads.py", {"heads"}),
        ("tasks/denoising.py", {"errors"}),
        ("tasks/gradients.py", {"errors"}),
        ("tasks/generation.py", {"scoring", "errors", "systems", "heads", "restoration", *FEW}),
        ("samplers/grids.py", EVERY_SAMPLER | {"restoration", "few-steps"}),
        ("samplers/vp_grids.py", set()),
        ("samplers/contract.py", EVERY_SAMPLER | {"restoration", "few-steps"}),
        ("samplers/heun.py", {"samplers.heun"}),
        ("samplers/pndm.py", {"samplers.pndm"}),
        ("study/profiles.py", set()),
        ("study/closure.py", set()),
        ("study/runs.py", set()),
        ("study/evidence.py", set()),
        ("study/figures.py", set()),
        ("repro/pipeline.py", set()),
        ("data/archives.py", set()),
        ("data/gaussians.py", set()),
        ("samplers/__init__.py", set()),
    ],
)
def test_a_comment_changes_what_depends_on_its_file_and_nothing_else(one_copy, monkeypatch, file, changed):
    copy, before = one_copy
    path = copy / "fdm" / file
    text = path.read_text()
    path.write_text(text + "# A comment.\n")
    after = digests(copy, monkeypatch)
    path.write_text(text)
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_new_sampler_changes_neither_a_training_nor_a_score_nor_another_sampler(study, monkeypatch):
    digits, before = profiles.find("digits"), digests(study, monkeypatch)
    shutil.copytree(ROOT / "notebooks", study / "notebooks")
    stages = {name: pipeline.code(digits, name) for name in ("02_train", "reference", "03_evaluate")}
    copy = copied(study, "copy")
    shutil.copytree(ROOT / "notebooks", copy / "notebooks")
    (copy / "fdm" / "samplers" / "euler.py").write_text((copy / "fdm" / "samplers" / "ddim.py").read_text())
    registry = copy / "fdm" / "samplers" / "__init__.py"
    text = registry.read_text().replace('    "heun": HEUN,\n', '    "heun": HEUN,\n    "euler": DDIM2,\n')
    text = text.replace("\nSAMPLERS", "from fdm.samplers.euler import DDIM as DDIM2\n\nSAMPLERS", 1)
    assert text.count("DDIM2") == 2
    registry.write_text(text)
    assert digests(copy, monkeypatch) == before
    assert {name: pipeline.code(digits, name) for name in stages} == stages
    assert "samplers.euler" in closure.modules("samplers")  # it is there, for those that ask for it


# -------------------------------------------------------------------------------------------------- profiles


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_valid(name):
    profile = profiles.find(name)
    assert profile.profile == name
    if name == "published-checkpoints":
        assert all(run.checkpoint for run in profile.runs.values())
        table = measurements.read(ROOT / "results" / "published" / "releases.csv").set_index("file")["sha256"].dropna()
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
        ("training", {"accumulation": 3}, "training.batch: 128 is not allowed; it must be a multiple of processes x "),
        ("network", {"dropout": 1.5}, "network.dropout: 1.5 is not allowed; input should be less than 1"),
        ("network", {"channel_mult": [1] * 5}, "cells.vp-baseline: 4 halvings do not divide a resolution of 8"),
        ("network", None, "network is missing"),
        (
            "dataset",
            {"name": "mnist"},
            "dataset.name: 'mnist' is not allowed; it must be one of digits, exact-gaussians",
        ),
        ("dataset", {"name": "folder"}, "dataset.path is missing; the data set folder needs the path of its images"),
        ("seeds", [0, 1, 0], "seeds: [0, 1, 0] is not allowed; a seed is there twice"),
        ("seeds", [], "seeds: [] is not allowed; list should have at least 1 item"),
    ],
)
def test_bad_parameters_stop_with_one_sentence(study, capsys, section, changes, sentence):
    refused(study, capsys, sentence, **{section: changes})


def refused(study: Path, capsys: pytest.CaptureFixture, sentence: str, **sections) -> None:
    """Change the default profile, and see the command line refuse it in one sentence."""
    with pytest.raises(FdmError):
        change(study / "params.yaml", **sections)
    assert main(["check"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"fdm: params.yaml: {sentence}"), error
    assert error.count("\n") == 1
    assert error.endswith(".\n")


EDM_FDM = {"framework": "edm", "kernel": "fdm"}


@pytest.mark.parametrize(
    ("name", "cell", "sentence"),
    [
        ("edm-base", EDM_FDM, "cells.edm-base: the name of a cell begins with edm-fdm"),
        ("edm-fdmx", EDM_FDM, "cells.edm-fdmx: the name of a cell begins with edm-fdm"),
        ("edm-fdm-0.5", EDM_FDM, "cells.edm-fdm-0.5: a name has no dot, which DVC reads as a path"),
        ("Edm", EDM_FDM, "cells.Edm: 'Edm' is not allowed"),
        ("edm-fdm", EDM_FDM | {"kernel": "momentum"}, "cells.edm-fdm.kernel: 'momentum' is not allowed"),
        ("edm-fdm", EDM_FDM | {"framework": "ddpm"}, "cells.edm-fdm.framework: 'ddpm' is not allowed; it must be one "),
        ("edm-fdm", EDM_FDM | {"seeds": [1, 1]}, "cells.edm-fdm.seeds: [1, 1] is not allowed; a seed is there twice"),
        (
            "edm-fdm",
            EDM_FDM | {"warmup": 3},
            "cells.edm-fdm.warmup is not a known key; allowed here are source, framework, kernel, multiplier,",
        ),
        (
            "edm-fdm",
            EDM_FDM | {"source": "fetch", "checkpoint": {"url": "x.pkl", "kimg": 1}},
            "cells.edm-fdm.checkpoint.url: 'x.pkl' is not allowed; string should match pattern",
        ),
        (
            "edm-fdm",
            EDM_FDM | {"source": "fetch", "checkpoint": {"url": "http://x/y.pkl", "kimg": 1, "md5": 2}},
            "cells.edm-fdm.checkpoint.md5 is not a known key; allowed here are url, sha256, kimg",
        ),
        (
            "edm-fdm",
            EDM_FDM | {"checkpoint": {"url": "http://x/y.pkl", "kimg": 1}},
            "cells.edm-fdm: checkpoint belongs to a cell with source: fetch, and to no other",
        ),
        (
            "edm-fdm",
            EDM_FDM | {"source": "fetch"},
            "cells.edm-fdm: checkpoint belongs to a cell with source: fetch, and to no other",
        ),
        (
            "edm-fdm",
            EDM_FDM | {"source": "finetune"},
            "cells.edm-fdm: start belongs to a cell with source: finetune, and to no other",
        ),
        (
            "edm-fdm-more",
            EDM_FDM | {"source": "finetune", "start": "edm"},
            "cells.edm-fdm-more.start: 'edm' is not allowed; it must be a cell that is trained",
        ),
        (
            "edm-fdm-more",
            EDM_FDM | {"source": "finetune", "start": "edm-baseline", "seeds": [0, 7]},
            "cells.edm-fdm-more.start: 'edm-baseline' is not allowed; it is not trained with the seed 7",
        ),
        (
            "edm-fdm-more",
            EDM_FDM | {"source": "finetune", "start": "ve-baseline"},
            "cells.edm-fdm-more.start: 've-baseline' is not allowed; its network is another",
        ),
    ],
)
def test_a_bad_cell_stops_with_one_sentence(study, capsys, name, cell, sentence):
    refused(study, capsys, sentence, cells={name: cell})


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"nfe": [25, 10]}, ", heun: Heun's method costs an odd number of evaluations, and 10 was asked for"),
        ({"nfe": [5], "to_zero": False}, ", heun: Heun's method costs an even number on a grid that does not end at 0"),
        ({"nfe": [5, 5]}, ", heun: nfe [5, 5] is not allowed; an entry is there twice"),
        ({"nfe": []}, ".0.nfe: [] is not allowed; list should have at least 1 item"),
        (
            {"nfe": [5], "duration": [0.3]},
            ", heun: duration 0.3 is not allowed; networks are kept at (0.03125, 0.0625, ",
        ),
        ({"nfe": [5], "eta": 1.0}, ", heun: eta is no option of Heun; it has S_churn, S_min, S_max, S_noise"),
        ({"nfe": [5], "S_noise": 3}, ", heun: S_noise: 3 is not allowed for Heun; it must be 0.5 to 2"),
        ({"nfe": [5], "sampler": "euler"}, ": sampler 'euler' is not known; there are heun, dpm-solver++, ddim, "),
        ({"nfe": [5], "grid": "linear"}, ": grid 'linear' is not known; there are karras, log-snr, log-snr-float32"),
        ({"nfe": [5], "sigma_max": [-1.0]}, ".0.sigma_max.0: -1.0 is not allowed; input should be greater than 0"),
        (
            {"nfe": [4], "sampler": "siddm", "sigma_max": [10.0]},
            ", siddm: sigma_max is not allowed; a generator draws from the level that it was trained for",
        ),
        ({"nfe": [5], "sampler": "ddim", "grid": "ladder", "to_zero": False}, ", ddim: the ladder ends at zero noise"),
        ({"nfe": [5], "cells": ["edm"]}, ": there is no cell named edm"),
        ({"nfe": [5], "samples": 300}, ", heun: samples is no option of Heun; it has S_churn, S_min, S_max, S_noise"),
    ],
)
def test_a_bad_setting_stops_with_one_sentence(study, capsys, setting, sentence):
    refused(study, capsys, f"evaluation.settings{sentence}", evaluation={"settings": [{"sampler": "heun"} | setting]})


def test_a_profile_that_trains_nothing_has_no_network_and_no_training(study, capsys):
    path = study / "profiles" / "published-checkpoints" / "params.yaml"
    values, default = (yaml.safe_load(each.read_text()) for each in (path, study / "params.yaml"))
    for section in ("network", "training"):
        path.write_text(yaml.safe_dump(values | {section: default[section]}))
        assert main(["check", "--params", "profiles/published-checkpoints/params.yaml"]) == 1
        assert f"{section} must be absent where no network is trained.\n" in capsys.readouterr().err


def test_a_data_set_of_ones_own_needs_a_path():
    with pytest.raises(ValueError, match="needs the path of its images"):
        DatasetParams(name="folder", resolution=8, conditional=False)


def test_a_copied_profile_that_still_names_the_original_is_refused(study, capsys):
    (study / "profiles" / "mine").mkdir()
    (study / "profiles" / "mine" / "params.yaml").write_text((study / "params.yaml").read_text())
    assert main(["check", "--params", "profiles/mine/params.yaml"]) == 1
    assert "profile: 'digits' is not allowed; in this place it is 'mine'" in capsys.readouterr().err


def test_a_missing_profile_a_duplicate_key_and_broken_yaml_are_named(study, capsys):
    assert main(["check", "--params", "profiles/nope/params.yaml"]) == 1
    assert (
        "There is no profiles/nope/params.yaml; the profiles are digits, emoji, exact, exact-16, "
        in capsys.readouterr().err
    )
    path = study / "params.yaml"
    path.write_text(path.read_text() + "threads: 2\n")
    assert main(["check"]) == 1
    assert "the key threads is given twice" in capsys.readouterr().err
    path.write_text("a: [1\n")
    assert main(["check"]) == 1
    assert "params.yaml: it is not valid YAML" in capsys.readouterr().err


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
    source = notebooks.source(path.stem, profiles.find(path.parts[-3]))
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


def test_the_readme_and_the_pages_show_what_was_measured():
    for path, text in show.documents(profiles.find("exact")).items():
        assert path.read_text() == text, f"{path.name}: python -m fdm readme"


def test_the_readme_is_short():
    """One screen and a half: what, the answer, the figure, two commands, where to go."""
    assert len((ROOT / "README.md").read_text().split()) < 900


def test_links_in_the_documents_lead_somewhere():
    pages = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
    assert len(pages) > 4
    for document in ("README.md", "CONTRIBUTING.md", "results/exact/REPORT.md", *pages):
        for link in re.findall(r"\]\(([^)#]+)", (ROOT / document).read_text()):
            if "://" not in link:
                assert (ROOT / document).parent.joinpath(link).exists(), f"{document} links to {link}"
