"""The real pipeline, in a scratch copy of this checkout: the smoke profile, the lock, and the notebooks."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from fdm.__main__ import main
from fdm.files import FdmError
from fdm.params import SNAPSHOTS
from fdm.repro import notebooks, pipeline, plan
from fdm.study import measurements, profiles

from .conftest import ROOT, WEEKLY
from .scratch import RESULTS, SMOKE, Scratch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smoked(scratch: Scratch) -> tuple[Scratch, list[str]]:
    """The scratch copy after the smoke pipeline to its tables, and what ran: once for all, which may run alone."""
    stages = scratch.repro(to="tables")
    scratch.keep()
    return scratch, stages


@pytest.fixture(scope="module")
def ended(smoked):
    """The same after the whole pipeline, whose comparison of systems takes as long as all before it."""
    scratch, stages = smoked
    stages = stages + scratch.repro()
    scratch.keep()
    return scratch, stages


@pytest.fixture
def run(smoked):
    """The scratch copy, which each test leaves as it found it."""
    scratch, _ = smoked
    yield scratch
    scratch.restore()


@pytest.fixture
def whole(ended):
    """The same after the whole pipeline."""
    scratch, _ = ended
    yield scratch
    scratch.restore()


@pytest.fixture
def profile(scratch, monkeypatch):
    """The smoke profile in the scratch copy, where the test then is."""
    monkeypatch.chdir(scratch.path)
    return profiles.find("smoke")


def drawn(book: Path, names: set[str]) -> None:
    """Assert that a notebook has drawn figures of these names."""
    assert names <= measurements.read_json(book / "figures.json").keys()
    for name in names:
        assert (book / f"{name}.svg").stat().st_size > 1000
        assert (book / f"{name}.png").stat().st_size > 1000


def test_the_pipeline_regenerates_tables_and_figures_and_touches_no_other_profile(run, smoked, profile):
    ran = smoked[1]
    assert set(ran) == {"code", "prepare", "reference", "train", "evaluate", "tables"} < pipeline.stages(profile).keys()
    assert len(ran) == len(set(ran))
    results = run.path / RESULTS
    for name in ("table1", "table2", "table3", "samplers"):
        assert {p.suffix for p in (results / "tables").glob(f"{name}.*")} == {".csv", ".md", ".tex"}
    names = {"quality_by_duration", "quality_by_nfe", "loss", "samples", "trajectories"}
    drawn(results / "figures" / "04_tables", names)
    provenance = json.loads((results / "provenance" / "02_train.json").read_text())
    assert provenance["parameters"] == {"params_file": "profiles/smoke/params.yaml"}
    assert len(provenance["revision"]) == 40
    assert provenance["changed_since_revision"] == []
    for name, cell in profile.cells.items():
        trained = cell.source in ("train", "finetune")
        told = json.loads((results / "provenance" / f"{name}.json").read_text())
        assert (told["training_seconds"] > 0) == trained
        assert (results / "networks" / f"{name}-0.md").exists() == trained
        assert not trained or (results / "networks" / f"{name}-0.md").read_text().startswith(f"# {name}-0: ")
    assert run("git status --porcelain").split() == ["??", "profiles/smoke/dvc.lock"]  # results/smoke is ignored


@pytest.mark.weekly
def test_the_pipeline_compares_systems_and_publishes_every_notebook(whole, ended, profile):
    ran = ended[1]
    assert set(ran) == pipeline.stages(profile).keys()
    results = whole.path / RESULTS
    assert {p.suffix for p in (results / "standings").glob("ratios.*")} == {".csv", ".md", ".tex"}
    drawn(results / "figures" / "07_systems", {"standing", "scalars", "surface"})
    published = {path.stem for path in (results / "notebooks").glob("*.ipynb")}
    assert published == set(pipeline.books(profile)) >= {"02_train", "03_evaluate", "04_tables"}


def test_a_second_run_does_nothing(run, profile):
    before = run.hashes()
    assert run.repro(to="tables") == []
    assert run.hashes() == before


@pytest.mark.weekly
def test_a_second_run_of_everything_does_nothing(whole, profile):
    before = whole.hashes()
    assert whole.repro() == []
    assert whole.hashes() == before
    assert plan.stages(profile) == []
    (profile.build / "code" / "publish.txt").unlink()  # as where a stage came later than what was computed
    assert plan.stages(profile) == []


@pytest.mark.weekly
def test_a_run_without_memory_gives_the_same_bytes(whole, profile):
    before = whole.hashes()
    for kept in ("checkpoints", "logs", "scores", "reference", "here", "systems"):
        shutil.rmtree(profile.build / kept)
    (profile.build / "notebooks" / "03_evaluate.ipynb").unlink()
    ran = set(whole.repro())
    assert {"reference", "train", "evaluate"} <= ran
    assert not {"prepare", "tables", "publish"} & ran  # what follows from them has not changed
    assert whole.hashes() == before
    for name in profile.trained:
        assert len(list(profile.checkpoints(name).glob("*.safetensors"))) == len(SNAPSHOTS)


@pytest.mark.weekly
def test_a_record_of_another_processor_is_left_as_it_is_and_one_of_another_experiment_is_not(run, profile):
    """On record are numbers as another processor would have rounded them, and those of another learning rate."""
    before, path = run.hashes(), profile.recorded("edm-fdm") / "measurements.csv"
    text = path.read_text()
    rows = measurements.read(path)
    other = rows.assign(value=rows["value"] * (1 + 1e-6)).to_csv(index=False)
    path.write_text(other)
    run("dvc commit -q -f profiles/smoke/dvc.yaml:evaluate")
    command = "dvc repro -f -s profiles/smoke/dvc.yaml:evaluate"
    assert "measurements: 4 of 4 cells agree with results/smoke/runs, left as it is\n" in run(command)
    assert path.read_text() == other
    assert (profile.here / "runs" / "edm-fdm" / "measurements.csv").read_text() == text
    path.write_text(other.replace(rows["experiment"][0], "0" * 12))
    told = "3 of 4 cells agree with results/smoke/runs, left as it is; written there: edm-fdm\n"
    assert told in run(command)
    assert path.read_text() == text
    assert run.hashes(provenance=False).keys() == before.keys() - {k for k in before if "provenance" in k}


def test_a_changed_parameter_of_one_cell_is_told_and_makes_its_training_stale(run):
    run.edit("profiles/smoke/params.yaml", "warmup_steps: 20", "warmup_steps: 10")
    assert "warmup_steps" in run("dvc params diff")
    stages = run.repro("--dry", to="tables")
    assert "train" in stages
    assert "reference" not in stages


@pytest.mark.weekly
def test_a_changed_parameter_of_one_cell_trains_it_and_what_goes_on_from_it_alone(run, profile):
    run.edit("profiles/smoke/params.yaml", "warmup_steps: 20", "warmup_steps: 10")
    states = {path: path.stat().st_mtime_ns for path in profile.checkpoints("ve-baseline-0").iterdir()}
    printed = run(f"dvc repro -s {SMOKE}:train")
    assert "training losses: 1 of 3 cells agree" in printed
    assert "written there: edm-fdm, edm-fdm-longer" in printed
    assert {path: path.stat().st_mtime_ns for path in states} == states


def test_a_change_of_prose_trains_nothing(run, profile):
    run.edit("notebooks/02_train.ipynb", "did it go well?", "did it go at all well?")
    assert main(["code", "--params", profile.params_file]) == 0  # what the stage `code` runs, without starting it
    assert not {"prepare", "reference", "train", "evaluate", "tables"} & set(run.repro("--dry", to="tables"))


@pytest.mark.weekly
def test_a_change_of_prose_is_published_and_nothing_else_is_made(whole):
    whole.edit("notebooks/02_train.ipynb", "did it go well?", "did it go at all well?")
    ran = set(whole.repro())
    assert "publish" in ran
    assert not {"prepare", "reference", "train", "evaluate", "systems", "standings", "tables"} & ran
    published = (whole.path / RESULTS / "notebooks" / "02_train.ipynb").read_text()
    assert "did it go at all well?" in published
    assert "image/png" in published


@pytest.mark.parametrize(
    ("module", "stale", "current"),
    [
        ("samplers/heun", {"evaluate"}, {"prepare", "reference", "train"}),
        WEEKLY("study/unused", set(), {"prepare", "reference", "train", "evaluate", "tables"}),
        WEEKLY("training/objectives/denoising", {"train"}, {"prepare", "reference", "evaluate"}),
    ],
)
def test_a_change_of_code_makes_stale_what_runs_it_and_nothing_else(run, profile, module, stale, current):
    changed(run, profile, module, stale, current, to="tables")


@pytest.mark.weekly
@pytest.mark.parametrize(
    ("module", "stale", "current"),
    [
        ("study/figures", {"standings", "tables"}, {"prepare", "reference", "train", "evaluate", "publish"}),
        ("study/unused", set(), {"prepare", "reference", "train", "evaluate", "systems", "tables", "publish"}),
        ("samplers/heun", {"evaluate", "systems"}, {"prepare", "reference", "train"}),
        ("samplers/vp_grids", {"systems"}, {"reference", "train", "evaluate"}),
        ("study/systems", {"systems"}, {"reference", "train", "evaluate"}),
        ("study/standings", {"standings"}, {"reference", "train", "evaluate", "systems", "tables"}),
        ("metrics/distances", {"reference", "evaluate"}, {"prepare", "train"}),
        ("model/unet", {"train", "reference", "evaluate"}, {"prepare"}),
        ("data/sources", {"prepare"}, set()),
    ],
)
def test_a_change_of_code_makes_stale_what_runs_it_in_the_whole_pipeline(whole, profile, module, stale, current):
    changed(whole, profile, module, stale, current)


def changed(run, profile, module, stale, current, to=None):
    path = run.path / "fdm" / f"{module}.py"
    path.write_text((path.read_text() if path.exists() else "") + "# a comment\n")
    assert main(["code", "--params", profile.params_file]) == 0
    ran = set(run.repro("--dry", to=to))
    assert stale <= ran
    assert not current & ran


@pytest.mark.weekly
def test_a_lost_run_is_made_again_with_the_same_numbers(whole, profile):
    before = whole.hashes()
    shutil.rmtree(profile.checkpoints("edm-fdm-0"))
    ran = set(whole.repro())
    assert "train" in ran
    assert not {"prepare", "reference", "evaluate", "tables", "publish"} & ran
    assert (profile.checkpoints("edm-fdm-0") / "100.safetensors").exists()
    assert whole.hashes() == before


@pytest.mark.weekly
def test_a_killed_stage_loses_nothing_and_goes_on(whole, profile):
    before = whole.hashes(provenance=False)  # which tells of the last change: there and back is two
    whole.edit("profiles/smoke/params.yaml", "budget_kimg: 2", "budget_kimg: 5")
    path = profile.recorded("edm-fdm") / "measurements.csv"
    measured = path.read_bytes()
    command = ["dvc", "repro", "-s", f"{SMOKE}:train"]
    process = subprocess.Popen(
        command, cwd=whole.path, env=whole.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(3000):
        if list((whole.path / "work").glob("*/state-*.pt")):
            break
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    for victim in [process, *children]:  # DVC first: at the end of a stage it writes its list of locks, in place
        victim.kill()
    process.wait()
    assert path.read_bytes() == measured
    whole(" ".join(command))
    told = [measurements.read_json(profile.logs(name) / "finished.json") for name in profile.trained]
    assert max(each["resumed_kimg"] for each in told) > 0
    whole.edit("profiles/smoke/params.yaml", "budget_kimg: 5", "budget_kimg: 2")
    whole.repro()
    assert whole.hashes(provenance=False) == before


@pytest.mark.weekly
def test_dvc_shows_something_worth_reading(run):
    assert "EDM-FDM" in run("dvc metrics show")
    assert "train" in run(f"dvc dag {SMOKE}")
    assert "index.html" in run("dvc plots show -o plots_html")
    assert "Quality_against_training" in (run.path / "plots_html" / "index.html").read_text()


@pytest.mark.weekly
def test_bad_parameters_stop_the_pipeline_before_anything_runs(run):
    run.edit("profiles/smoke/params.yaml", "lr: 2.0e-3", "lr: -1.0")
    printed = run(f"dvc repro {SMOKE}", check=False)
    assert "fdm: profiles/smoke/params.yaml: training.lr: -1.0 is not allowed" in printed
    assert "Running stage 'profiles/smoke/dvc.yaml:train" not in printed


# ----------------------------------------------------------------------------------------------------- notebooks


@pytest.mark.weekly
def test_the_training_and_evaluation_notebooks_run_at_smoke_scale(whole):
    folder = whole.path / RESULTS / "notebooks"
    assert "passed" in whole.nbval("--nbval-lax", [folder / f"{n}.ipynb" for n in ("02_train", "03_evaluate")])


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
    assert main(["notebook", "02_train"]) == 1
    assert re.search(r"^fdm: The data set .* is missing; run dvc repro to prepare it\.$", capsys.readouterr().err, re.M)
    with pytest.raises(FdmError, match="has no parameter named speed"):
        notebooks.execute("02_train", {"speed": 1}, profiles.load("params.yaml"))


def test_an_execution_that_differs_by_rounding_is_taken_as_it_is_on_record(tmp_path):
    def executed(text: str, source: str = "print(x)") -> nbformat.NotebookNode:
        cell = nbformat.v4.new_code_cell(source, execution_count=1)
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# words"), cell])

    record = tmp_path / "record.ipynb"
    nbformat.write(executed("value 0.123456789012\n"), record)
    for text, source, kept in [
        ("value 0.123456789013\n", "print(x)", True),
        ("value 0.123457\n", "print(x)", False),
        ("values 0.123456789012\n", "print(x)", False),
        ("value 0.123456789012\n", "print(y)", False),
    ]:
        settled = notebooks.settle(executed(text, source), record)
        assert [cell.cell_type for cell in settled.cells] == ["code"]
        shown = settled.cells[0].outputs[0].text
        assert shown == ("value 0.123456789012\n" if kept else text)
        assert settled.cells[0].source == source


def test_an_interruption_is_a_sentence(study, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(notebooks, "execute", interrupted)
    assert main(["notebook", "01_kernel"]) == 130
    assert "what was finished is kept, and dvc repro goes on from there" in capsys.readouterr().err
