"""The real pipeline, in a scratch copy of this checkout: the smoke profile, the lock, and the notebooks."""

import functools
import hashlib
import http.server
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml

from fdm import notebooks, plan, profiles, study
from fdm.__main__ import main
from fdm.errors import FdmError
from fdm.files import sha256

from .conftest import ROOT
from .published_format import make

SMOKE = "profiles/smoke/dvc.yaml"
RESULTS = "results/smoke"


class Scratch:
    """A copy of the working tree, committed in a repository of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for name in filter(lambda name: (ROOT / name).is_file(), listed.splitlines()):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, path / name)
        (path / "profiles" / "smoke" / "dvc.lock").unlink(missing_ok=True)
        self.env = os.environ | {
            "PYTHONPATH": str(path),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_VALUE_0": "test",
            "GIT_CONFIG_KEY_1": "user.email", "GIT_CONFIG_VALUE_1": "test@example.org",
        }  # fmt: skip
        for command in ("git init -q", "git add -A", "git commit -qm scratch"):
            self(command)

    def __call__(self, command: str, check: bool = True) -> str:
        """Run a command and return what it prints."""
        done = subprocess.run(
            command.split(), cwd=self.path, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert not check or done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def repro(self, *options: str) -> list[str]:
        """Run the smoke pipeline; returns the stages that ran."""
        return re.findall(r"Running stage '(?:.*:)?(.*)'", self(" ".join(["dvc repro", *options, SMOKE])))

    def hashes(self, provenance: bool = True) -> dict[str, str]:
        """Hash of every result and of the lock; without provenance nothing that tells of times and speeds."""
        files = [*(self.path / RESULTS).rglob("*"), self.path / "profiles" / "smoke" / "dvc.lock"]
        return {
            str(file.relative_to(self.path)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
            if file.is_file()
            and (provenance or not ("provenance" in file.parts or file.name.startswith(("02_train", "dvc.lock"))))
        }

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.path / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Scratch:
    return Scratch(tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def run(scratch: Scratch) -> Scratch:
    """The scratch copy after the smoke pipeline."""
    stages = scratch.repro()
    assert sorted(stages) == sorted(
        ["code", "kernel", "published", "prepare", "reference", "tables", "publish"]
        + [f"{stage}@{name}" for stage in ("train", "evaluate") for name in ("ve-baseline-0", "edm-fdm-0")]
    )
    return scratch


def test_the_committed_results_are_those_of_the_committed_code(scratch):
    for profile in ("dvc.yaml", "profiles/ablations/dvc.yaml"):
        printed = scratch(f"dvc repro --allow-missing --dry {profile}")
        assert "Running stage" not in printed, printed
    assert scratch("git status --porcelain") == ""


def test_the_pipeline_regenerates_tables_figures_and_notebooks_and_touches_no_other_profile(run):
    results = run.path / RESULTS
    for number in (1, 2, 3):
        assert {p.suffix for p in (results / "tables").glob(f"table{number}.*")} == {".csv", ".md", ".tex"}
    figures = ("kernel_scale", "quality_by_duration", "quality_by_nfe", "loss", "samples", "trajectories")
    for name in figures:
        assert (results / "figures" / f"{name}.svg").stat().st_size > 1000
        assert (results / "figures" / f"{name}.png").stat().st_size > 1000
    assert len(list((results / "notebooks").glob("*.ipynb"))) == 7
    provenance = json.loads((results / "provenance" / "02_train+edm-fdm-0.json").read_text())
    assert provenance["parameters"] == {"params_file": "profiles/smoke/params.yaml", "run": "edm-fdm-0"}
    assert len(provenance["revision"]) == 40
    assert provenance["changed_since_revision"] == []
    assert run("git status --porcelain").split() == ["??", "profiles/smoke/dvc.lock"]  # results/smoke is ignored


def test_a_second_run_does_nothing_and_a_forced_one_gives_the_same_bytes(run, monkeypatch):
    before = run.hashes()
    assert run.repro() == []
    assert run.hashes() == before
    assert not list((run.path / "work").glob("*/finished.json"))  # or the forced run would take what this one made
    monkeypatch.chdir(run.path)
    assert plan.stages(profiles.find("smoke")) == []
    forced = run(f"dvc repro --force --downstream {SMOKE}:prepare")  # all but the two that need no data
    assert len(re.findall(r"Running stage", forced)) == 8
    assert run.hashes() == before


def test_a_changed_parameter_of_one_run_reruns_that_run_and_what_depends_on_it(run):
    run.edit("profiles/smoke/params.yaml", "warmup_steps: 20", "warmup_steps: 10")
    try:
        stages = run.repro("--dry")
        assert "train@edm-fdm-0" in stages
        assert "train@ve-baseline-0" not in stages
        assert "evaluate@ve-baseline-0" not in stages
        assert "reference" not in stages
        assert "warmup_steps" in run("dvc params diff")
    finally:
        run.edit("profiles/smoke/params.yaml", "warmup_steps: 10", "warmup_steps: 20")


def test_a_change_of_prose_is_published_and_trains_nothing(run):
    run.edit("notebooks/02_train.ipynb", "did it go well?", "did it go at all well?")
    assert run.repro() == ["code", "publish"]
    published = (run.path / RESULTS / "notebooks" / "02_train+edm-fdm-0.ipynb").read_text()
    assert "did it go at all well?" in published
    assert "image/png" in published
    run.edit("notebooks/02_train.ipynb", "did it go at all well?", "did it go well?")
    assert set(run.repro()) <= {"code", "publish"}  # DVC's run cache knows the old words


def test_a_lost_checkpoint_is_made_again_with_the_same_numbers(run):
    before = run.hashes()
    shutil.rmtree(run.path / "build" / "smoke" / "checkpoints" / "edm-fdm-0")
    stages = run.repro()
    assert set(stages) <= {"train@edm-fdm-0", "evaluate@edm-fdm-0", "tables", "publish"}
    assert (run.path / "build" / "smoke" / "checkpoints" / "edm-fdm-0" / "100.safetensors").exists()
    assert run.hashes() == before


def test_a_killed_stage_loses_nothing_and_goes_on(run):
    before = run.hashes(provenance=False)  # which tells of the last change: there and back is two
    run.edit("profiles/smoke/params.yaml", "budget_kimg: 2", "budget_kimg: 10")
    name = "results/smoke/runs/edm-fdm-0/measurements.csv"
    measured = (run.path / name).read_bytes()
    command = ["dvc", "repro", "-s", f"{SMOKE}:train@edm-fdm-0"]
    process = subprocess.Popen(command, cwd=run.path, env=run.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(3000):
        if list((run.path / "work").glob("*/state-*.pt")):
            break
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    for victim in [process, *children]:  # DVC first: at the end of a stage it writes its list of locks, in place
        victim.kill()
    process.wait()
    assert (run.path / name).read_bytes() == measured
    assert (run.path / "build/smoke/checkpoints/edm-fdm-0/100.safetensors").exists()
    printed = run(" ".join(command))
    assert re.search(r"edm-fdm-0: resuming at [\d.]+ kimg", printed)
    run.edit("profiles/smoke/params.yaml", "budget_kimg: 10", "budget_kimg: 2")
    run.repro()
    assert run.hashes(provenance=False) == before


def test_dvc_shows_something_worth_reading(run):
    assert "EDM-FDM" in run("dvc metrics show")
    assert "train@edm-fdm-0" in run(f"dvc dag {SMOKE}")
    shown = run("dvc plots show -o plots_html results/smoke/plots/quality_by_nfe.csv")
    assert "index.html" in shown
    run("dvc plots show -o plots_html")
    assert "Quality_against_training" in (run.path / "plots_html" / "index.html").read_text()
    shutil.rmtree(run.path / "plots_html")


def test_bad_parameters_stop_the_pipeline_before_anything_runs(run):
    run.edit("profiles/smoke/params.yaml", "lr: 2.0e-3", "lr: -1.0")
    try:
        printed = run(f"dvc repro {SMOKE}", check=False)
        assert "fdm: profiles/smoke/params.yaml: training.lr: -1.0 is not allowed" in printed
        assert "Running stage 'profiles/smoke/dvc.yaml:train" not in printed
    finally:
        run.edit("profiles/smoke/params.yaml", "lr: -1.0", "lr: 2.0e-3")


def test_published_networks_are_fetched_imported_and_scored_by_the_same_pipeline(scratch, persistence, tmp_path):
    """A small network in the published format, from a local server, on the digits."""
    released = tmp_path / "vp-fdm.pkl"
    released.write_bytes(pickle.dumps(make("vp", "fdm", persistence, channels=1)[1]))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    profile, folder = "published-checkpoints", scratch.path / "profiles" / "published-checkpoints"
    values = yaml.safe_load((folder / "params.yaml").read_text())
    values["threads"] = 1
    values["dataset"] = {"name": "digits", "resolution": 8, "conditional": True}
    values["evaluation"] |= {"extractor": "efficientnet-lite0", "reference": "half", "samples": 64, "batch": 32,
                             "duration_nfe": 5, "nfe": [5, 11]}  # fmt: skip
    values["runs"] = {"vp-fdm-0": values["runs"]["vp-fdm-0"]}
    url = f"http://127.0.0.1:{server.server_port}/{released.name}"
    values["runs"]["vp-fdm-0"]["checkpoint"] |= {"url": url, "sha256": sha256(released)}
    before = (folder / "params.yaml").read_text()
    try:
        wrong = yaml.safe_dump(values).replace(sha256(released), "f" * 64)
        (folder / "params.yaml").write_text(wrong)
        printed = scratch(f"dvc repro {folder}/dvc.yaml:fetch@vp-fdm-0", check=False)
        assert "is wanted; it is not kept" in printed
        (folder / "params.yaml").write_text(yaml.safe_dump(values))
        printed = scratch(f"dvc repro {folder}/dvc.yaml:tables")
        assert "vp-fdm.pkl, sha256" in printed
        results = scratch.path / "results" / profile
        rows = study.read(results / "measurements.csv")
        assert set(rows["run"]) == {"vp-fdm-0"}
        assert set(rows["kimg"]) == {200_000}
        assert set(rows["nfe"]) == {5, 11}
        assert (
            "| published | AFHQv2 | FID | 50,000 | 100% (200 Mimg) |" in (results / "tables" / "table1.md").read_text()
        )
    finally:
        server.shutdown()
        (folder / "params.yaml").write_text(before)
        for path in (folder / "dvc.lock", folder / ".gitignore"):
            path.unlink(missing_ok=True)
        shutil.rmtree(scratch.path / "results" / profile, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------- notebooks


def nbval(scratch: Scratch, mode: str, paths: list[Path]) -> str:
    for path in paths:
        code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert any(c.outputs for c in code), f"{path.name} has no outputs: nbval would compare nothing"
    names = " ".join(str(path.relative_to(scratch.path)) for path in paths)
    return scratch(f"python -m pytest {mode} -p no:cacheprovider {names}")


def test_strict_mode_finds_a_wrong_number(scratch, tmp_path):
    """The comparison below can fail."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1 + 1)")])
    notebook.cells[0].execution_count = 1
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text="3\n")]
    path = scratch.path / "results" / "wrong.ipynb"
    nbformat.write(notebook, path)
    try:
        assert "1 failed" in scratch(f"python -m pytest --nbval -p no:cacheprovider {path}", check=False)
    finally:
        path.unlink()


def test_the_committed_kernel_and_tables_notebooks_show_what_they_compute(scratch):
    names = ("digits/notebooks/01_kernel", "digits/notebooks/04_tables", "digits/notebooks/06_published_code",
             "ablations/notebooks/05_ablations")  # fmt: skip
    printed = nbval(scratch, "--nbval", [scratch.path / "results" / f"{name}.ipynb" for name in names])
    assert "passed" in printed
    changed = [line for line in scratch("git status --porcelain").splitlines() if "smoke" not in line]
    assert changed == []  # tables and figures were written again, to the same bytes


def test_the_training_and_evaluation_notebooks_run_at_smoke_scale(run):
    folder = run.path / RESULTS / "notebooks"
    assert "passed" in nbval(run, "--nbval-lax", [folder / f"{n}+edm-fdm-0.ipynb" for n in ("02_train", "03_evaluate")])


# -------------------------------------------------------------------------- executing, normalising and publishing


def test_equal_executions_are_equal_bytes_and_code_is_kept_apart_from_prose():
    cells = [nbformat.v4.new_markdown_cell("words"), nbformat.v4.new_code_cell("x = 1")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.cells[1].outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="10 img/s"),
        nbformat.v4.new_output("stream", name="stdout", text="a"),
        nbformat.v4.new_output("stream", name="stdout", text="b"),
    ]
    notebook.cells[1].metadata["execution"] = {"shell.execute_reply": "now"}
    notebook.metadata["papermill"] = {"duration": 1.5}
    normal = notebooks.normalise(notebook)
    assert [output.text for output in normal.cells[1].outputs] == ["ab"]
    assert "papermill" not in normal.metadata
    assert "execution" not in normal.cells[1].metadata
    assert notebooks.code(normal) == "# %%\nx = 1\n"


def test_weaving_takes_new_prose_and_refuses_new_code():
    v4 = nbformat.v4
    source = v4.new_notebook(cells=[v4.new_markdown_cell("new words"), v4.new_code_cell("1 + 1")])
    executed = v4.new_notebook(cells=[v4.new_markdown_cell("old"), v4.new_code_cell("1 + 1", execution_count=1)])
    woven = notebooks.weave(source, executed)
    assert [cell.source for cell in woven.cells] == ["new words", "1 + 1"]
    assert woven.cells[1].execution_count == 1
    source.cells[1].source = "1 + 2"
    with pytest.raises(ValueError, match="not the code that was executed"):
        notebooks.weave(source, executed)


def test_a_notebook_that_fails_gives_its_sentence_and_an_exit_code(study, capsys):
    shutil.copytree(ROOT / "notebooks", study / "notebooks")
    assert main(["notebook", "02_train", "--run", "edm-fdm-0"]) == 1
    assert re.search(r"^fdm: The data set .* is missing; run dvc repro to prepare it\.$", capsys.readouterr().err, re.M)
    assert main(["notebook", "02_train", "--run", "edm-fdm-7"]) == 1
    assert "has no run named edm-fdm-7; it has vp-baseline-0," in capsys.readouterr().err
    with pytest.raises(FdmError, match="has no parameter named speed"):
        notebooks.execute("02_train", {"speed": 1}, study / "x.ipynb", study / "x.json", 1)


def test_an_interruption_is_a_sentence(study, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(notebooks, "execute", interrupted)
    assert main(["notebook", "01_kernel"]) == 130
    assert "what was finished is kept, and dvc repro goes on from there" in capsys.readouterr().err
