"""The real pipeline, in a scratch copy of this checkout: the smoke profile, the lock, and the notebooks."""

import json
import re
import shutil
import subprocess
import time

import nbformat
import psutil
import pytest

from fdm import notebooks, plan, profiles
from fdm.__main__ import main
from fdm.errors import FdmError

from .conftest import ROOT
from .scratch import RESULTS, SMOKE, Scratch


@pytest.fixture(scope="module")
def run(scratch: Scratch) -> Scratch:
    """The scratch copy after the smoke pipeline."""
    stages = scratch.repro()
    assert sorted(stages) == sorted(
        ["code", "kernel", "published", "prepare", "reference", "tables", "publish"]
        + [f"{stage}@{name}" for stage in ("train", "evaluate") for name in ("ve-baseline-0", "edm-fdm-0")]
    )
    return scratch


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
    assert len(run.repro("--force")) == 11
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


# ----------------------------------------------------------------------------------------------------- notebooks


def test_the_training_and_evaluation_notebooks_run_at_smoke_scale(run):
    folder = run.path / RESULTS / "notebooks"
    assert "passed" in run.nbval("--nbval-lax", [folder / f"{n}+edm-fdm-0.ipynb" for n in ("02_train", "03_evaluate")])


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
