"""Running a profile: several runs at once, resuming, what is put on record, and cells that are refused."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from fdm.__main__ import main
from fdm.files import FdmError
from fdm.process import momentum, schedule
from fdm.process.frameworks import FRAMEWORKS, coefficients
from fdm.study import agreement, errors, measure, measurements, profiles, runs
from fdm.training import loop, processes

# ------------------------------------------------------------------------------------------------ what is varied


def test_the_frameworks_own_time_is_the_one_that_its_noise_is_drawn_by():
    sigma = torch.tensor([0.02, 0.5, 20.0, 90.0])
    low, high = FRAMEWORKS["ve"].sigma_range
    u = (sigma / low).log() / math.log(high / low)  # sigma = low (high/low)^u
    c = coefficients("ve", "fdm", sigma, 1.0, tau="time").c_in
    torch.testing.assert_close(c, momentum.scale_fdm(u, 1.0))
    t = torch.tensor([0.1, 0.4, 0.9])
    c = coefficients("vp", "fdm", schedule.sigma_vp(t), 2.0, tau="time").c_in
    torch.testing.assert_close(c, momentum.scale_fdm(t, 2.0), rtol=1e-4, atol=1e-7)
    for name in ("time", "sigma"):
        same = coefficients("edm", "fdm", sigma, 2.0, tau=name).c_in
        torch.testing.assert_close(same, momentum.scale_fdm((sigma - 0.002) / (80 - 0.002), 2.0))


# ------------------------------------------------------------------------------------------------------ running


@pytest.fixture
def small(study, monkeypatch):
    """A profile of two cells and two seeds that takes seconds, with its errors at few noise levels."""
    monkeypatch.setattr(errors, "SIGMAS", errors.SIGMAS[::8])
    path = study / "profiles" / "exact" / "params.yaml"
    values = yaml.safe_load(path.read_text())
    values["training"] |= {"budget_kimg": 0.5, "log_kimg": 0.128, "state_kimg": 0.128}
    values["network"] |= {"model_channels": 8, "channel_mult": [1], "attn_resolutions": []}
    values["dataset"]["name"] = "digits"
    values["evaluation"] |= {"samples": 16, "batch": 150, "errors": {"images": 8}, "settings": [
        {"sampler": "heun", "nfe": [3], "duration": [0.25, 0.5, 0.75, 1.0]},
        {"sampler": "dpm-solver++", "nfe": [3]},
        {"sampler": "heun", "nfe": [3], "sigma_max": [10.0], "cells": ["edm-fdm-time"]},
    ]}  # fmt: skip
    values["cells"] = {
        "edm-fdm-time": {"framework": "edm", "kernel": "fdm", "tau": "time"},
        "ve-fdm-m2": {"framework": "ve", "kernel": "fdm", "multiplier": 2, "ve_multiplier": "as derived"},
    }
    values["seeds"] = [0, 7]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return "profiles/exact/params.yaml"


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return tmp_path_factory.mktemp("once")


def from_once(place: Path, make):
    """Let `make` make what the first test needs; the others get a copy of it."""
    made = place.exists()
    if not made:
        make()
    for folder in ("build", "results"):
        source, target = (place / folder, Path(folder)) if made else (Path(folder), place / folder)
        shutil.copytree(source, target, dirs_exist_ok=True)


@pytest.fixture
def prepared(small, once):
    """The small profile with its data and reference features."""
    from_once(once / "prepared", lambda: [main([stage, "--params", small]) for stage in ("prepare", "reference")])
    return profiles.load(small)


@pytest.fixture
def finished(prepared, once):
    """The small profile, trained and scored."""
    from_once(once / "finished", lambda: [runs.train(prepared), runs.evaluate(prepared)])
    return prepared


@pytest.fixture
def computed(monkeypatch, tmp_path):
    """What is trained and measured from now on, by any process: "train" or "measure" and the run, in that order."""
    path, launch = tmp_path / "computed", processes.launch
    path.touch()

    def noted(function, args, count):
        training = isinstance(args[0], loop.Training)
        with path.open("a") as file:
            file.write(f"train {args[0].name}\n" if training else f"measure {args[1]}\n")
        launch(function, args, count)

    monkeypatch.setattr(processes, "launch", noted)

    def since() -> list[str]:
        lines = path.read_text().splitlines()
        path.write_text("")
        return lines

    return since


def on_record(profile) -> dict[str, bytes]:
    """What is committed of a profile."""
    return {str(p.relative_to(profile.results)): p.read_bytes() for p in profile.results.rglob("*") if p.is_file()}


def out_of_luck(real, run):
    """A function like `real`, which trains or measures, that fails for one run."""

    def call(*args):
        if run in (args[1], getattr(args[0], "name", None)):
            raise FdmError("out of luck")
        return real(*args)

    return call


@pytest.mark.parametrize("at_once", [pytest.param(1, marks=pytest.mark.weekly), 2])
def test_cells_are_trained_and_scored_with_every_seed_and_go_on_after_a_failure(
    prepared, once, monkeypatch, computed, at_once
):
    """Two runs at once, or one after another, to the same bits as a run trained alone."""
    profile, (first, second, third, fourth) = prepared, prepared.runs
    monkeypatch.setattr(runs, "at_once", lambda *_: at_once)
    with monkeypatch.context() as patch, pytest.raises(FdmError, match="out of luck"):
        patch.setattr(loop, "train", out_of_luck(loop.train, third))
        runs.train(profile)
    done = computed()
    assert {f"train {first}", f"train {second}"} <= set(done)
    assert f"train {third}" not in done
    losses = runs.train(profile)
    assert sorted(done + computed()) == sorted(f"train {run}" for run in profile.runs)  # each once
    with monkeypatch.context() as patch, pytest.raises(FdmError, match="out of luck"):
        patch.setattr(measure, "evaluate", out_of_luck(measure.evaluate, third))
        runs.evaluate(profile)
    done = computed()
    rows = runs.evaluate(profile)
    assert sorted(done + computed()) == sorted(f"measure {run}" for run in profile.runs)

    assert list(losses.columns) == ["run", "experiment", "images", "loss", "lr"]
    assert list(losses["run"].unique()) == list(rows["run"].unique()) == [first, second, third, fourth]
    assert losses.groupby("run")["experiment"].nunique().max() == 1
    assert losses["experiment"].nunique() == 4
    thorough = measurements.read(profile.results / "runs" / "edm-fdm-time" / "measurements.csv")
    assert sorted(set(thorough["run"])) == ["edm-fdm-time-0", "edm-fdm-time-7"]
    assert set(thorough["cell"]) == {"edm-fdm-time"}
    assert set(thorough["sigma_max"]) == {10.0, 80.0}
    assert set(thorough["n"]) <= {16}
    wrong = measurements.read(profile.results / "runs" / "edm-fdm-time" / "errors.csv")
    assert set(wrong["run"]) == set(thorough["run"])
    assert wrong["duration"].nunique() == 7 and set(wrong["images"].dropna()) == {"held out", "training"}
    assert thorough[thorough["duration"] == 1].groupby("run")["checkpoint"].nunique().max() == 1
    assert len(rows) == len(measurements.table(profile)) > len(thorough)
    told = json.loads((profile.results / "provenance" / "edm-fdm-time.json").read_text())
    assert told["cell"] == "edm-fdm-time"
    assert told["training_seconds"] > 0
    # The same trained alone, by another way.
    alone, dataset = Path("alone", "checkpoints"), runs.dataset_of(profile)
    training = runs.training_of(profile, second, dataset)
    loop.train(training, dataset, alone, Path("alone", "logs"), Path("alone", "work"))
    together = profile.checkpoints(second)
    for name in ("025.safetensors", "100.safetensors", "experiment.json"):
        assert (alone / name).read_bytes() == (together / name).read_bytes()
    assert not list(Path("work").glob("*/"))  # of a state nothing is left
    from_once(once / "finished", lambda: None)  # which is what others begin with


def test_what_is_on_record_is_written_again_only_where_it_does_not_agree(finished, computed, capsys):
    profile, before = finished, on_record(finished)
    capsys.readouterr()
    losses, rows = runs.train(profile), runs.evaluate(profile)
    assert computed() == []
    assert on_record(profile) == before
    said = capsys.readouterr().err
    assert "training losses: 2 of 2 cells agree with results/exact/training, left as it is\n" in said
    assert "measurements: 2 of 2 cells agree with results/exact/runs, left as it is\n" in said

    # Another machine rounds otherwise, and its weights have other hashes; what it wrote is of the same experiment.
    path, lost = profile.results / "runs" / "ve-fdm-m2" / "measurements.csv", profile.results / "training"
    elsewhere = measurements.read(path)
    elsewhere["value"] *= 1 + 1e-9
    elsewhere["checkpoint"] = "0123456789ab"
    elsewhere.to_csv(path, index=False)
    theirs = on_record(profile)
    other = measurements.read(lost / "ve-fdm-m2.csv")
    other.assign(loss=other["loss"] * 1.001).to_csv(lost / "ve-fdm-m2.csv", index=False)
    (lost / "vp-gone.csv").touch()  # a cell that the profile no longer has
    (profile.results / "runs" / "vp-gone").mkdir()
    theirs["training/ve-fdm-m2.csv"] = (lost / "ve-fdm-m2.csv").read_bytes()
    assert runs.train(profile)["loss"].tolist() != losses["loss"].tolist()
    again = runs.evaluate(profile).tail(len(elsewhere)).reset_index(drop=True)
    pd.testing.assert_frame_equal(again, elsewhere)
    assert on_record(profile) == theirs
    assert not (profile.results / "runs" / "vp-gone").exists()
    here = measurements.read(profile.here / "runs" / "ve-fdm-m2" / "measurements.csv")
    assert here["checkpoint"].tolist() == rows[rows["cell"] == "ve-fdm-m2"]["checkpoint"].tolist()

    elsewhere.assign(experiment="of another code").to_csv(path, index=False)
    other.assign(loss=other["loss"] * 1.5).to_csv(lost / "ve-fdm-m2.csv", index=False)
    capsys.readouterr()
    runs.train(profile)
    runs.evaluate(profile)
    assert computed() == []
    assert "; written there: ve-fdm-m2\n" in capsys.readouterr().err
    after = on_record(profile)
    assert {name for name in before if after[name] != before[name]} == set()


@pytest.mark.parametrize(("name", "other"), [("012345678901", "012345678902"), ("1234e5678901", "1234f5678901")])
def test_a_hash_that_looks_like_a_number_is_kept_and_told_from_another(tmp_path, name, other):
    table = pd.DataFrame({"run": "a", "experiment": name, "images": [1, 2], "loss": [2.0, 1.0], "lr": [0.1, 0.1]})
    path, here = tmp_path / "a.csv", agreement.read_back(table)
    here.to_csv(path, index=False)
    assert set(measurements.read(path)["experiment"]) == {name}
    assert agreement.losses(path, here)
    assert not agreement.losses(path, here.assign(experiment=other))


@pytest.mark.weekly
def test_one_more_cell_is_computed_alone(finished, computed):
    profile, before = finished, on_record(finished)
    path = Path(profile.params_file)
    values = yaml.safe_load(path.read_text())
    values["cells"]["ve-fdm-m4"] = values["cells"]["ve-fdm-m2"] | {"multiplier": 4}
    del values["cells"]["edm-fdm-time"]
    values["evaluation"]["settings"] = [each for each in values["evaluation"]["settings"] if "cells" not in each]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    other = profiles.load(profile.params_file)
    runs.train(other)
    assert sorted(computed()) == ["train ve-fdm-m4-0", "train ve-fdm-m4-7"]
    runs.evaluate(other)
    assert sorted(computed()) == ["measure ve-fdm-m4-0", "measure ve-fdm-m4-7"]
    after = on_record(other)
    assert {name for name in after if name not in before} == {
        "training/ve-fdm-m4.csv", "runs/ve-fdm-m4/measurements.csv", "runs/ve-fdm-m4/errors.csv",
        "provenance/ve-fdm-m4.json",
    }  # fmt: skip
    assert not [name for name in after if name in before and after[name] != before[name]]
    assert "runs/edm-fdm-time/measurements.csv" not in after
    assert not other.checkpoints("edm-fdm-time-0").exists()


def test_a_run_whose_process_is_killed_is_a_sentence_and_what_was_finished_is_kept(prepared, monkeypatch, computed):
    profile, (first, second, third, _) = prepared, prepared.runs
    monkeypatch.setattr(runs, "at_once", lambda *_: 2)
    real = loop.train

    def killed(training, *args):
        if training.name == third:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(training, *args)

    with monkeypatch.context() as patch, pytest.raises(FdmError, match="was killed, for want of memory perhaps; what"):
        patch.setattr(loop, "train", killed)
        runs.train(profile)
    kept = [run for run in (first, second) if (profile.checkpoints(run) / "100.safetensors").exists()]
    assert kept
    computed()
    runs.train(profile)
    assert not set(computed()) & {f"train {run}" for run in kept}


@pytest.mark.parametrize(("cores", "threads", "expected"), [(1, 1, 1), (2, 1, 2), (8, 1, 4), (8, 3, 1), (2, 3, 1)])
def test_as_many_runs_are_computed_at_once_as_there_are_cores_for_their_threads(
    small, monkeypatch, cores, threads, expected
):
    profile = profiles.load(small).model_copy(update={"threads": threads})
    monkeypatch.setattr(processes, "device", lambda: "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert runs.at_once(profile, count=1) == expected
    assert runs.at_once(profile, count=2) == 1  # these share the cores themselves
    monkeypatch.setattr(processes, "device", lambda: "cuda")
    assert runs.at_once(profile, count=1) == 1


def test_source_that_is_changed_while_it_computes_names_no_result(prepared, monkeypatch):
    real = loop.train

    def train(*args):
        trained = real(*args)
        path = Path("fdm/process/schedule.py")
        path.write_text(path.read_text() + "# another\n")
        return trained

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(runs, "at_once", lambda *args: 1)
    with pytest.raises(FdmError, match=r"The source in fdm/ has changed while it computed; run dvc repro again"):
        runs.train(prepared)
    assert list(prepared.build.glob("checkpoints/*/100.safetensors"))
    assert not list(prepared.build.glob("checkpoints/*/experiment.json"))  # so it is trained again


METHOD = {"framework": "edm", "kernel": "fdm"}
LONGER = METHOD | {"source": "finetune", "start": "edm-fdm"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": []}, "seeds: [] is not allowed; list should have at least 1 item"),
        ({"threads": "3e-3"},
         "threads: '3e-3' is not allowed; input should be a valid integer; YAML takes it for a word: write 3.0e-3"),
        ({"seeds": [0, 0]}, "seeds: [0, 0] is not allowed; a seed is there twice"),
        ({"cells": {"edm-fdm": METHOD | {"seeds": [3, 3]}}},
         "cells.edm-fdm.seeds: [3, 3] is not allowed; a seed is there twice"),
        ({"cells": {}}, "cells: {} is not allowed; dictionary should have at least 1 item"),
        ({"cells": ["vp-fdm"]}, "cells: ['vp-fdm'] is not allowed; input should be a valid dictionary"),
        ({"cells": {"vp-fdm": METHOD}}, "cells.vp-fdm: the name of a cell begins with edm-fdm"),
        ({"cells": {"edm-fdmish": METHOD}}, "cells.edm-fdmish: the name of a cell begins with edm-fdm"),
        ({"cells": {"edm-fdm-1.5": METHOD}}, "cells.edm-fdm-1.5: a name has no dot, which DVC reads as a path"),
        ({"cells": {"ddpm-fdm": {"framework": "ddpm", "kernel": "fdm"}}},
         "cells.ddpm-fdm.framework: 'ddpm' is not allowed; it must be one of vp, ve, edm"),
        ({"runs": {}}, "runs is not a known key; allowed here are profile, root,"),
        ({"cells": {"edm-fdm": METHOD | {"seed": 1}}},
         "cells.edm-fdm.seed is not a known key; allowed here are source, framework, kernel,"),
        ({"cells": {"edm-fdm": METHOD | {"source": "fetch"}}},
         "cells.edm-fdm: checkpoint belongs to a cell with source: fetch, and to no other"),
        ({"cells": {"edm-fdm": METHOD | {"source": "finetune"}}},
         "cells.edm-fdm: start belongs to a cell with source: finetune, and to no other"),
        ({"cells": {"edm-fdm": METHOD, "edm-fdm-longer": METHOD | {"start": "edm-fdm"}}},
         "cells.edm-fdm-longer: start belongs to a cell with source: finetune, and to no other"),
        ({"cells": {"edm-fdm-longer": LONGER}},
         "cells.edm-fdm-longer.start: 'edm-fdm' is not allowed; it must be a cell that is trained"),
        ({"cells": {"edm-fdm": METHOD, "edm-fdm-longer": LONGER | {"start": "edm-fdm-longer"}}},
         "cells.edm-fdm-longer.start: 'edm-fdm-longer' is not allowed; it must be a cell that is trained"),
        ({"cells": {"edm-fdm": METHOD | {"source": "analytic"}, "edm-fdm-longer": LONGER}},
         "cells.edm-fdm-longer.start: 'edm-fdm' is not allowed; it must be a cell that is trained"),
        ({"cells": {"edm-fdm": METHOD | {"seeds": [0]}, "edm-fdm-longer": LONGER}},
         "cells.edm-fdm-longer.start: 'edm-fdm' is not allowed; it is not trained with the seed 7"),
        ({"cells": {"ve-fdm": {"framework": "ve", "kernel": "fdm"}, "edm-fdm-longer": LONGER | {"start": "ve-fdm"}}},
         "cells.edm-fdm-longer.start: 've-fdm' is not allowed; its network is another"),
        ({"cells": {"edm-fdm": METHOD | {"channel_mult": [2, 2]}, "edm-fdm-longer": LONGER}},
         "cells.edm-fdm-longer.start: 'edm-fdm' is not allowed; its network is another"),
        ({"network": None}, "network is missing"),
        ({"cells": {"edm-fdm-exact": METHOD | {"source": "analytic"}}},
         "network must be absent where no network is trained"),
    ],
)  # fmt: skip
def test_bad_cells_stop_with_one_sentence(small, capsys, changes, sentence):
    path = Path(small)
    values = yaml.safe_load(path.read_text()) | changes
    values["evaluation"]["settings"] = values["evaluation"]["settings"][:2]  # which name no cell
    path.write_text(yaml.safe_dump(values))
    assert main(["check", "--params", small]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"fdm: {small}: {sentence}")
    assert printed.count("\n") == 1


def test_a_cell_may_start_from_one_of_another_framework_with_the_same_network(small):
    path = Path(small)
    values = yaml.safe_load(path.read_text())
    values["cells"] = {"edm-fdm-longer": LONGER | {"start": "vp-fdm"}, "vp-fdm": {"framework": "vp", "kernel": "fdm"}}
    values["evaluation"]["settings"] = values["evaluation"]["settings"][:2]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    profile = profiles.load(small)
    assert list(profile.runs) == ["vp-fdm-0", "vp-fdm-7", "edm-fdm-longer-0", "edm-fdm-longer-7"]  # as they start
    assert runs.parent_of(profile, "edm-fdm-longer-7") == "vp-fdm-7"
