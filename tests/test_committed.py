"""The committed results and notebooks, in a scratch copy of this checkout, and published networks in its pipeline."""

import functools
import http.server
import pickle
import shutil
import threading

import nbformat
import pytest
import yaml

from fdm.files import sha256
from fdm.repro import integrity
from fdm.study import measurements, profiles

from .published_format import make
from .scratch import ROOT
from .test_structure import COMMITTED

# What CI can see of other processors on its own: other instructions, other sums, another number of threads.
ARITHMETIC = {
    "as it is": {},
    "without AVX, two threads": {
        "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "NEHALEM",
        "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2",
        # A thread that waits leaves its core to the tests beside it.
        "OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "4",
    },
}  # fmt: skip

pytestmark = pytest.mark.slow


def test_the_committed_results_are_those_of_the_committed_code(scratch):
    for profile in ("dvc.yaml",):
        scratch(f"dvc repro {profile}:code")
        printed = scratch(f"dvc repro --allow-missing --dry {profile}")
        assert "Running stage" not in printed, printed
    assert scratch("git status --porcelain") == "", "dvc repro dvc.yaml:code"


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_files_are_those_of_the_lock(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert integrity.lock(profiles.find(name)) == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "digits" else pytest.mark.weekly) for name in COMMITTED]
)
def test_the_committed_files_belong_together(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for check, problems in integrity.checks(profiles.find(name), "committed").items():
        assert problems == [], check


@pytest.mark.parametrize(
    ("arithmetic", "name"),
    [
        ("without AVX, two threads", "digits/notebooks/04_tables"),
        pytest.param("as it is", "digits/notebooks/01_kernel", marks=pytest.mark.weekly),
        pytest.param("as it is", "digits/notebooks/06_published_code", marks=pytest.mark.weekly),
        pytest.param("without AVX, two threads", "exact/notebooks/05_evidence", marks=pytest.mark.weekly),
    ],
)
def test_the_committed_notebooks_show_what_they_compute_under_any_arithmetic(scratch, arithmetic, name):
    path = scratch.path / "results" / f"{name}.ipynb"
    assert "passed" in scratch.nbval("--nbval", [path], **ARITHMETIC[arithmetic])
    changed = [line for line in scratch("git status --porcelain").splitlines() if "smoke" not in line]
    assert changed == []  # tables and figures were made again, and are those on record


def test_nbval_allows_for_rounding_and_for_nothing_else(scratch):
    def cell(source: str, text: str) -> nbformat.NotebookNode:
        out = nbformat.v4.new_code_cell(source, execution_count=1)
        out.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
        return out

    cells = [cell("print('error', 1e-16, 'ratio', 1.0000000000001)", "error 3e-17 ratio 1.0\n"),
             cell("print('ratio', 1.00001)", "ratio 1.0\n"), cell("print('n', 300)", "n 301\n")]  # fmt: skip
    path = scratch.path / "results" / "rounding.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    try:
        printed = scratch(f"python -m pytest --nbval -p no:cacheprovider {path}", check=False)
        assert "2 failed, 1 passed" in printed, printed
    finally:
        path.unlink()


@pytest.mark.weekly
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
    settings = [{"sampler": "heun", "nfe": [5]}, {"sampler": "ddim", "nfe": [5], "eta": 1}]
    values["evaluation"] |= {"extractor": "efficientnet-lite0", "reference": "half", "samples": 64, "batch": 32,
                             "settings": settings}  # fmt: skip
    values["cells"] = {"vp-fdm": values["cells"]["vp-fdm"]}
    url = f"http://127.0.0.1:{server.server_port}/{released.name}"
    values["cells"]["vp-fdm"]["checkpoint"] |= {"url": url, "sha256": sha256(released)}
    before = (folder / "params.yaml").read_text()
    try:
        wrong = yaml.safe_dump(values).replace(sha256(released), "f" * 64)
        (folder / "params.yaml").write_text(wrong)
        printed = scratch(f"dvc repro {folder}/dvc.yaml:fetch", check=False)
        assert "is wanted; it is not kept" in printed
        (folder / "params.yaml").write_text(yaml.safe_dump(values))
        printed = scratch(f"dvc repro {folder}/dvc.yaml:tables")
        assert "vp-fdm.pkl, sha256" in printed
        results = scratch.path / "results" / profile
        rows = measurements.read(results / "measurements.csv")
        assert set(rows["run"]) == {"vp-fdm-0"}
        assert set(rows["kimg"]) == {200_000}
        assert set(rows["nfe"]) == {5}
        assert set(rows["duration"]) == {1}
        assert set(rows[rows["sampler"] == "ddim"]["options"]) == {"eta=1"}
        assert (
            "| published | AFHQv2 | FID | 50,000 | 100% (200 Mimg) |" in (results / "tables" / "table1.md").read_text()
        )
    finally:
        server.shutdown()
        (folder / "params.yaml").write_text(before)
        for path in (folder / "dvc.lock", folder / ".gitignore"):
            path.unlink(missing_ok=True)
        shutil.rmtree(scratch.path / "results" / profile, ignore_errors=True)
