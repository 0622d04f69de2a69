"""A study cell by cell: each on record as it ends, stopped and gone on with, and shared out to a cluster that loses a
worker. Everything runs in processes of its own, as it does for a user."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed
import psutil
import pytest
import yaml

from fdm.files import FdmError
from fdm.study import runs

from .conftest import ROOT

pytestmark = pytest.mark.slow

PATIENCE = 400  # seconds after which what should have happened will not
PARAMS = "profiles/smoke/params.yaml"
CELLS = {
    "ve-baseline": {"framework": "ve", "kernel": "baseline", "seeds": [0, 1]},
    "edm-fdm": {"framework": "edm", "kernel": "fdm", "multiplier": 2, "warmup_steps": 20},
    "edm-baseline-exact": {"source": "analytic", "framework": "edm", "kernel": "baseline"},
    "edm-fdm-longer": {"source": "finetune", "start": "edm-fdm", "framework": "edm", "kernel": "fdm", "multiplier": 2},
}
FILES = {
    *(f"training/{cell}.csv" for cell in CELLS if cell != "edm-baseline-exact"),
    *(f"runs/{cell}/{table}.csv" for cell in CELLS for table in ("measurements", "errors")),
}


class Study:
    """A small study in a folder of its own."""

    def __init__(self, path: Path, prepared: "Study | None" = None, **training: float) -> None:
        self.path, self.processes = path, list[subprocess.Popen]()
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copy(ROOT / name, path / name)
        for name in ("fdm", "profiles", "results/published"):
            shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
        values = yaml.safe_load((path / PARAMS).read_text())
        short = {"budget_kimg": 0.512, "batch": 16, "log_kimg": 0.064, "state_kimg": 0.064, "lr_ramp_kimg": 0.1}
        values["training"] |= short | {"augment": 0.0} | training
        values["evaluation"] |= {
            "samples": 16, "batch": 16, "settings": [{"sampler": "heun", "nfe": [5], "duration": [0.5, 1.0]}],
            "errors": {"images": 4},
        }  # fmt: skip
        values["network"]["attn_resolutions"] = []
        values |= {"cells": CELLS, "keep_networks": False}
        (path / PARAMS).write_text(yaml.safe_dump(values, sort_keys=False))
        for name in ("build/smoke/dataset.safetensors", "build/smoke/reference", "results/smoke/calibration.csv"):
            if prepared:
                source, target = prepared.path / name, path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        self.results = path / "results" / "smoke"
        self.env = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}

    def start(self, *words: str) -> subprocess.Popen:
        """Start Python with these words in the study's folder, in a group of its own."""
        log = (self.path / f"log{len(self.processes)}.txt").open("w+")
        process = subprocess.Popen(
            [sys.executable, *words], cwd=self.path, env=self.env, stdout=log, stderr=log, start_new_session=True
        )
        self.processes.append(process)
        return process

    def log(self, process: subprocess.Popen) -> str:
        return (self.path / f"log{self.processes.index(process)}.txt").read_text()

    def cells(self, *words: str) -> str:
        """Run the command to its end; returns what it says."""
        process = self.start("-m", "fdm", "cells", "--params", PARAMS, *words)
        assert process.wait(PATIENCE) == 0, self.log(process)[-3000:]
        return self.log(process)

    def kill(self) -> None:
        """Kill what still runs of the processes that were started here, with all that they forked."""
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def record(self) -> dict[str, str]:
        """What is on record, but for when and where it was computed."""
        names = [path.relative_to(self.results).as_posix() for path in self.results.rglob("*.csv")]
        return {name: (self.results / name).read_text() for name in names if name != "calibration.csv"}


def until(wanted, process: subprocess.Popen) -> None:
    """Wait for something while a process runs."""
    for _ in range(20 * PATIENCE):
        if wanted():
            return
        assert process.poll() is None, "it ended before"
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def running(group: int) -> list[psutil.Process]:
    """The processes of a group that have not ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that nothing has disturbed, and what the command said."""
    study = Study(tmp_path_factory.mktemp("whole"))
    said = study.cells()
    yield study, said
    study.kill()


@pytest.fixture
def other(whole, tmp_path):
    """The same study where nothing has been computed but its data set and reference."""
    study = Study(tmp_path, whole[0])
    yield study
    study.kill()


def said_of(text: str) -> list[str]:
    """What was said of the cells, in its order, perhaps behind a bar."""
    return re.findall(r"((?:ve|edm)-[a-z-]+: (?:put on record|agrees with the record))$", text, re.MULTILINE)


def test_every_cell_is_put_on_record_and_a_second_call_keeps_all(whole):
    study, said = whole
    assert sorted(said_of(said)) == sorted(f"{cell}: put on record" for cell in CELLS)
    assert said_of(said)[-1] == "edm-fdm-longer: put on record"  # which starts from what another has left
    assert study.record().keys() == FILES
    assert {path.stem for path in (study.results / "provenance").iterdir()} == set(CELLS)
    folders = [study.results, *(study.path / "build" / "smoke" / name for name in ("checkpoints", "scores", "errors"))]
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}
    again = study.cells()
    assert sorted(said_of(again)) == sorted(f"{cell}: agrees with the record" for cell in CELLS)
    after = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.weekly
def test_a_study_that_is_killed_has_what_had_ended_on_record_and_goes_on_to_the_same_numbers(whole, other):
    process = other.start("-m", "fdm", "cells", "--params", PARAMS)
    until(lambda: said_of(other.log(process)), process)
    assert len(running(process.pid)) > 1
    process.kill()  # it alone; those that it forked end by themselves
    process.wait()
    deadline = time.monotonic() + PATIENCE
    while running(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    kept = {line.split(":")[0] for line in said_of(other.log(process))}
    assert 0 < len(kept) < len(CELLS)
    record = other.record()
    for cell in kept:
        assert record[f"runs/{cell}/errors.csv"] == whole[0].record()[f"runs/{cell}/errors.csv"]
    said = dict(line.split(": ") for line in said_of(other.cells()))
    assert {cell for cell, how in said.items() if how == "agrees with the record"} >= kept
    assert set(said) == set(CELLS)
    assert other.record() == whole[0].record()


# ------------------------------------------------------------------------------------------------------- a cluster


def scheduler(study: Study) -> str:
    """Start a scheduler; returns its address."""
    place = study.path / "scheduler.json"
    process = study.start(
        "-m",
        "dask",
        "scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        str(place),
    )
    until(lambda: place.exists() and place.read_text().endswith("}"), process)  # all of it is written
    return json.loads(place.read_text())["address"]


def worker(study: Study, address: str) -> subprocess.Popen:
    """Start a worker of one thread."""
    one = ("--nworkers", "1", "--nthreads", "1", "--no-nanny", "--no-dashboard")
    process = study.start("-m", "dask", "worker", address, *one)
    until(lambda: "Registered to" in study.log(process), process)
    return process


def states(study: Study) -> list[Path]:
    """States of trainings that have begun and not ended."""
    return [*(study.path / "work").glob("*/state-*.pt")]


@pytest.mark.weekly
def test_on_a_cluster_that_loses_a_worker_a_study_ends_in_the_same_numbers(whole, other):
    address = scheduler(other)
    lost = worker(other, address)
    process = other.start("-m", "fdm", "cells", "--params", PARAMS, "--scheduler", address)
    until(lambda: states(other), process)
    os.kill(lost.pid, signal.SIGSTOP)  # in the middle of a training, while others come
    others = [worker(other, address) for _ in range(2)]
    os.kill(lost.pid, signal.SIGKILL)
    assert process.wait(PATIENCE) == 0, other.log(process)[-3000:]
    assert lost.wait() == -signal.SIGKILL
    assert all(each.poll() is None for each in others)
    resumed = [line for each in others for line in other.log(each).splitlines() if "resuming at" in line]
    assert len(resumed) == 1  # where the lost one had come to
    assert sorted(said_of(other.log(process))) == sorted(f"{cell}: put on record" for cell in CELLS)
    assert other.record() == whole[0].record()
    assert not states(other)


@pytest.mark.weekly
def test_a_run_that_fails_on_a_cluster_is_the_sentence_of_its_failure(whole, tmp_path):
    study = Study(tmp_path, whole[0], lr=1e30, lr_ramp_kimg=0)
    try:
        address = scheduler(study)
        worker(study, address)
        process = study.start("-m", "fdm", "cells", "--params", PARAMS, "--scheduler", address)
        assert process.wait(PATIENCE) == 1
        last = study.log(process).splitlines()[-1]
        assert last.startswith("fdm: The loss of ve-baseline-"), study.log(process)[-3000:]
    finally:
        study.kill()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x", "10"])
def test_an_address_without_a_scheduler_is_one_sentence(address, monkeypatch):
    # Nobody answers there, however long one waits.
    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda scheduler, timeout: client(scheduler, timeout="1s"))
    with pytest.raises(FdmError) as raised, runs._cluster(address):
        pass
    sentence = str(raised.value)
    assert sentence.startswith(f"There is no Dask scheduler at {address} (")
    assert sentence.endswith(
        "; start one with dask scheduler, and workers in the project's folder with python -m dask worker."
    )
    assert "\n" not in sentence
