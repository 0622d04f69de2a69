"""Training: what it writes, how it resumes, and how it fails."""

import contextlib
import errno
import fnmatch
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from dvclive import Live
from safetensors.torch import save_file

from fdm import files
from fdm.data import datasets, sources
from fdm.data.datasets import Dataset
from fdm.files import FdmError, sha256
from fdm.model import checkpoints, cost
from fdm.model.oracle import Mixture
from fdm.params import DatasetParams
from fdm.study import runs
from fdm.training import loop, state
from fdm.training.objectives import denoising

from .conftest import ROOT, change

pytestmark = pytest.mark.slow

RUN = "edm-fdm-0"
DIGITS = DatasetParams(name="digits", resolution=8, conditional=True)
SNAPSHOTS = [f"{percent}.safetensors" for percent in ("003", "006", "012", "025", "050", "075", "100")]
SPEED = {"images_per_second", "peak_memory_mib", "utilisation"}  # what a log tells that no two trainings share
PATIENCE = 60  # seconds after which a process that should have ended hangs


@pytest.fixture
def quick(smoke, monkeypatch):
    """One kimg in 32 steps, the fewest in which a network can be kept after a thirty-second of them."""
    monkeypatch.setattr(cost, "matmul_peak", lambda *_: 1e11)  # measuring it takes as long as some steps
    return change(
        Path(smoke.params_file), training={"budget_kimg": 1, "batch": 32, "log_kimg": 0.125, "state_kimg": 0.125}
    )


def train(profile, dataset, out: Path, name=RUN, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return loop.train(
            runs.training_of(profile, name, dataset), dataset, out / "checkpoints", out / "logs", out / "work",
            **options,
        )  # fmt: skip


def trained(profile, dataset, out: Path, name=RUN) -> int:
    """Train, and return on how many images; what an earlier training has seen is told in one piece, before them."""
    told: list[int] = []
    train(profile, dataset, out, name, advance=told.append)
    return sum(told[1:])


def hashes(out: Path) -> dict[str, str]:
    """Hashes of the checkpoints, and of the file that names their training."""
    return {path.name: sha256(path) for path in sorted((out / "checkpoints").iterdir())}


def run(profile, dataset, out: Path, name=RUN) -> dict[str, str]:
    train(profile, dataset, out, name)
    return hashes(out)


def logged(out: Path) -> list:
    """What the logs say of the losses and rates: equal between equal trainings, as speeds are not."""
    summary = json.loads((out / "logs" / "metrics.json").read_text())
    curves = [(out / "logs" / "plots" / "metrics" / f"{name}.tsv").read_text() for name in ("loss", "lr")]
    return [*curves, *(summary[name] for name in ("loss", "lr", "step"))]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(quick, digits, once) -> Path:
    """Where a training lies that nothing has disturbed; for all tests the same, as a finished one is kept."""
    train(quick, digits, once)
    return once


def copied(whole: Path, out: Path) -> Path:
    for name in ("checkpoints", "logs", "work"):
        shutil.copytree(whole / name, out / name)
    return out


def forked(work) -> int:
    """Call `work` in a process and a group of its own; returns its number."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            signal.alarm(PATIENCE)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)  # in any case, or this process would go on with the tests as well
    with contextlib.suppress(OSError):  # here and there, as either may come first
        os.setpgid(child, child)
    return child


def killed(profile, dataset, out: Path, after: float | None = None, dying=lambda: None, name=RUN) -> bool:
    """Train in a process of its own and kill it `after` seconds or where `dying` says; returns whether it died."""

    def work():
        dying()
        run(profile, dataset, out, name)

    for attempt in (1, 2):
        child = forked(work)
        if after is not None:
            time.sleep(after)
            os.killpg(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        # A fork of a process with threads, as pytest-xdist's are, may hang for no fault of the code; but not twice.
        if attempt == 2 or not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGALRM:
            break
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, "it hung"
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def dies_at(pattern: str, count: int = 1, half: bool = False, after: bool = False):
    """Make the process kill itself and those it forked when a file of that path gets its name for the count-th time.

    Each file of a training is written beside its place and then renamed, in `Path.replace` alone. It dies before that,
    with `half` of the file written or all of it, or right `after`.
    """

    def patch():
        real, met = Path.replace, itertools.count(1)

        def replace(part, target):
            now = fnmatch.fnmatch(str(target), pattern) and next(met) == count
            if now and half:
                os.truncate(part, part.stat().st_size // 2)
            if now and not after:
                os.killpg(0, signal.SIGKILL)
            out = real(part, target)
            if now:
                os.killpg(0, signal.SIGKILL)
            return out

        Path.replace = replace

    return patch


STATE, SAVED = "*/work/*/state.new", "*/work/*/state-*.pt"


def dies_in_the_log() -> None:
    """Make the process kill itself in the middle of the log, which DVCLive writes in its own way."""
    real, count = Live.make_summary, itertools.count(1)

    def make_summary(live, *args, **kwargs):
        if next(count) == 4:
            os.killpg(0, signal.SIGKILL)
        return real(live, *args, **kwargs)

    Live.make_summary = make_summary


def dies_in_the_removal() -> None:
    """Make the process kill itself while it removes the folder of its state."""
    real = shutil.rmtree

    def remove(folder, *args, **kwargs):
        if Path(folder).parent.name == "work":
            (Path(folder) / "050.safetensors").unlink()
            os.killpg(0, signal.SIGKILL)
        real(folder, *args, **kwargs)

    shutil.rmtree = remove


def test_training_twice_gives_the_same_bytes_and_another_seed_others(quick, digits, tmp_path):
    first, second = run(quick, digits, tmp_path / "a"), run(quick, digits, tmp_path / "b")
    assert first == second
    assert list(first) == [*SNAPSHOTS, "experiment.json"]
    assert len({first[name] for name in SNAPSHOTS}) == len(SNAPSHOTS)
    logs = [(tmp_path / ab / "logs" / "plots" / "metrics" / "loss.tsv").read_bytes() for ab in "ab"]
    assert logs[0] == logs[1]
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
    assert not list((tmp_path / "a" / "work").iterdir())  # the state is gone once the results are there
    other = change(Path(quick.params_file), seeds=[0, 1])
    third = run(other, digits, tmp_path / "c", "edm-fdm-1")
    assert not set(third.values()) & set(first.values())


def test_a_training_of_few_steps_keeps_a_network_for_every_share(quick, digits, tmp_path):
    profile = change(Path(quick.params_file), training={"budget_kimg": 0.128})
    run(profile, digits, tmp_path)
    images = [checkpoints.describe(tmp_path / "checkpoints" / name)["images"] for name in SNAPSHOTS]
    assert images == [32, 32, 32, 32, 64, 96, 128]  # of four steps the first stands for all shares up to a quarter


def test_a_training_is_told_with_its_log_and_named_in_its_folder(quick, digits, tmp_path):
    images = []
    told = train(quick, digits, tmp_path, advance=images.append)
    assert told == json.loads((tmp_path / "logs" / "finished.json").read_text())
    assert sum(images) == 1024
    assert [row["images"] for row in told["history"]] == list(range(128, 1025, 128))
    assert told["loss"] == told["history"][-1]["loss"]
    assert told["resumed_kimg"] == 0 < told["seconds"]
    named = json.loads((tmp_path / "checkpoints" / "experiment.json").read_text())
    assert named == {"run": RUN, "experiment": runs.experiment(quick, RUN, digits)}
    metrics = {path.stem for path in (tmp_path / "logs" / "plots" / "metrics").iterdir()}
    assert metrics == {"loss", "lr", *SPEED}


def test_a_training_is_named_by_what_shapes_its_network_and_not_by_the_machine(smoke, digits, monkeypatch):
    """The source is part of the name: of the training's modules and those they import, and of no other."""
    work = Path("work")

    def names(profile, dataset=digits):
        home = loop.home_of(runs.training_of(profile, RUN, dataset), work, "cpu")
        return runs.experiment(profile, RUN, dataset), home.name

    name, home = names(smoke)
    for alike in ({"threads": 2}, {"profile": "other"}):
        profile = smoke.model_copy(update=alike)
        assert names(profile)[0] == name
    assert names(smoke.model_copy(update={"threads": 2}))[1] != home  # which round in another order
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another processor's")
        assert names(smoke)[0] == name
        assert names(smoke)[1] != home
    assert names(change(Path(smoke.params_file), training={"state_kimg": 1.0})) == (name, home)
    others = [
        names(change(Path(smoke.params_file), training={"lr": 1e-3})),
        names(change(Path(smoke.params_file), network={"dropout": 0.2})),
        names(change(Path(smoke.params_file), cells={"edm-fdm": {"framework": "edm", "kernel": "fdm"}})),
        names(smoke, digits._replace(sha256="0")),
    ]
    assert len({(name, home), *others}) == 5
    assert len({each[0] for each in others}) == 4
    modules = {
        "study/figures": False, "study/measure": False, "study/runs": False, "samplers/heun": False,
        "training/loop": True, "training/augmentation": True, "training/objectives/denoising": True,
        "process/momentum": True, "model/unet": True, "data/datasets": True,
    }  # fmt: skip
    for module, counts in modules.items():
        path = Path("fdm") / f"{module}.py"
        source = path.read_text()
        path.write_text(f"{source}\n# Another word.\n")
        assert (names(smoke) != (name, home)) == counts, module
        path.write_text(source)


@pytest.mark.weekly
def test_a_training_killed_at_ten_random_moments_ends_in_the_same_bits(quick, digits, tmp_path, whole):
    start = time.monotonic()
    assert not killed(quick, digits, tmp_path / "whole")
    seconds = time.monotonic() - start
    assert hashes(tmp_path / "whole") == hashes(whole)
    deaths = 0
    for number in range(10):
        out, moment = tmp_path / str(number), random.uniform(0, seconds)  # other moments in every run of the tests
        deaths += killed(quick, digits, out, moment)
        assert run(quick, digits, out) == hashes(whole), moment
        assert logged(out) == logged(whole), moment
    assert deaths >= 5  # the others had ended a moment before


@pytest.mark.parametrize(
    ("dying", "left"),
    [
        (dies_at(STATE, 1, half=True), 1024),  # while the first state is written
        (dies_at(STATE, 6, half=True), 1024 - 5 * 128),  # while another is
        (dies_at(SAVED, 6), 1024 - 5 * 128),  # before it has its name
        (dies_at(SAVED, 8, after=True), 0),  # when it has, and nothing tells of the end
        (dies_at("*/work/*/050.safetensors", half=True), 1024 - 3 * 128),  # while a checkpoint is written
        (dies_at("*/work/*/finished.json"), 0),
        (dies_at("*/checkpoints/075.safetensors", half=True), 0),  # while results are put in their place
        (dies_at("*/checkpoints/experiment.json"), 0),  # before they are named
        (dies_at("*/checkpoints/experiment.json", after=True), 0),  # before the log
        (dies_in_the_log, 0),
        (dies_at("*/logs/finished.json"), 0),  # before the log tells of the end
        (dies_in_the_removal, 0),
    ],
    ids=[
        "first", "state", "rename", "renamed", "checkpoint", "told", "result", "name", "named", "log", "end", "removal",
    ],
)  # fmt: skip
def test_a_training_killed_while_it_writes_goes_on_from_there_to_the_same_bits(
    quick, digits, tmp_path, whole, dying, left
):
    """It is trained on the images that are `left`; one that was trained to its end goes on without training."""
    out = tmp_path / "killed"
    assert killed(quick, digits, out, dying=dying)
    assert trained(quick, digits, out) == left
    assert hashes(out) == hashes(whole)
    assert logged(out) == logged(whole)
    assert not list((out / "work").iterdir())  # nothing is left half written
    assert {path.parent.name for path in out.rglob("*.part")} <= {"logs"}  # where nobody looks for it


def test_a_finished_training_is_not_trained_again(quick, digits, tmp_path, whole):
    out = copied(whole, tmp_path / "out")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    told, images = json.loads((whole / "logs" / "finished.json").read_text()), []
    assert train(quick, digits, out, advance=images.append) == told
    assert train(change(Path(quick.params_file), training={"state_kimg": 1.0}), digits, out) == told
    assert images == [1024]  # as if they had been trained on, for the bar of all runs
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    "lost", ["checkpoints", "checkpoints/050.safetensors", "checkpoints/experiment.json", "logs", "logs/finished.json"]
)
def test_a_training_of_which_something_is_lost_is_trained_again(quick, digits, tmp_path, whole, lost):
    out = copied(whole, tmp_path / "out")
    path = out / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (out / "checkpoints").mkdir(exist_ok=True)
    (out / "checkpoints" / "037.safetensors").touch()  # which nothing has made
    assert trained(quick, digits, out) == 1024  # once
    assert hashes(out) == hashes(whole)
    assert logged(out) == logged(whole)


class Interrupted(Exception):
    """What stops a training from outside."""


def interrupt(images: int) -> None:
    """What a training is told its images with, and stopped."""
    if images < 1024:
        raise Interrupted


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"home": "0123"}'])
def test_a_log_that_tells_of_no_training_or_another_is_not_believed(quick, digits, tmp_path, whole, content):
    out = copied(whole, tmp_path / "out")
    train(quick, digits, out, advance=interrupt)  # which is whole
    (out / "logs" / "finished.json").write_text(content)
    with pytest.raises(Interrupted):  # as it is trained
        train(quick, digits, out, advance=interrupt)


def test_a_damaged_log_of_a_finished_training_is_told_and_nothing_is_replaced(quick, digits, tmp_path, whole):
    out = copied(whole, tmp_path / "out")
    finished = out / "logs" / "finished.json"
    finished.write_text(json.dumps({"home": json.loads(finished.read_text())["home"], "history": []}))
    with pytest.raises(FdmError, match=r"logs/finished.json is damaged; remove it and .*/checkpoints, and rerun: "):
        train(quick, digits, out)
    assert hashes(out) == hashes(whole)


def test_what_a_training_that_was_killed_at_its_end_leaves_damaged_is_told(quick, digits, tmp_path, whole):
    out = tmp_path / "killed"
    assert killed(quick, digits, out, dying=dies_at("*/logs/finished.json"))
    (finished,) = out.glob("work/*/finished.json")
    finished.write_text("{")
    with pytest.raises(
        FdmError, match=r"finished.json is damaged; remove it and rerun: .* goes on from its last state"
    ):
        train(quick, digits, out)
    finished.unlink()
    assert trained(quick, digits, out) == 0  # the last state has all
    assert hashes(out) == hashes(whole)


@pytest.mark.parametrize("damage", ["cut", "one byte"])
def test_a_damaged_state_is_left_aside_for_the_one_before(quick, digits, tmp_path, whole, damage):
    assert killed(quick, digits, tmp_path / "killed", dying=dies_at(STATE, 6))
    before, last = sorted((tmp_path / "killed" / "work").glob("*/state-*.pt"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content if damage == "one byte" else content[:-1000])
    with pytest.warns(UserWarning, match="is damaged and left aside"):
        result = loop.train(
            runs.training_of(quick, RUN, digits), digits, tmp_path / "killed/checkpoints", tmp_path / "killed/logs",
            tmp_path / "killed/work",
        )  # fmt: skip
    assert result["resumed_kimg"] == int(before.stem.split("-")[1]) * quick.training.batch / 1000 > 0
    assert hashes(tmp_path / "killed") == hashes(whole)


def test_two_trainings_of_one_run_do_not_get_into_each_others_way(quick, digits, tmp_path, monkeypatch):
    assert killed(quick, digits, tmp_path, dying=dies_at(STATE, 4))
    (home,) = (tmp_path / "work").iterdir()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with state.alone(home, RUN), pytest.raises(FdmError, match="is being trained by another process, with its "):
        run(quick, digits, tmp_path)


@pytest.fixture
def plain(smoke):
    """Forty steps, logged two by two, without dropout, whose masks depend on the process."""
    log = {"budget_kimg": 1.28, "batch": 32, "log_kimg": 0.064, "state_kimg": 0.32}
    return change(Path(smoke.params_file), training=log, network={"dropout": 0.0})


def losses_of(profile, dataset, out: Path) -> np.ndarray:
    run(profile, dataset, out)
    return pd.read_csv(out / "logs/plots/metrics/loss.tsv", sep="\t")["loss"].to_numpy()


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"processes": 2}, marks=pytest.mark.weekly, id="2"),
        pytest.param({"accumulation": 4}, marks=pytest.mark.weekly, id="4 parts"),
        pytest.param({"processes": 2, "accumulation": 2}, id="2x2"),
    ],
)
def test_processes_and_parts_of_a_batch_give_the_losses_of_one(plain, digits, tmp_path, how):
    alone = losses_of(plain, digits, tmp_path / "alone")
    shared = losses_of(change(Path(plain.params_file), training=how), digits, tmp_path / "shared")
    assert len(alone) == 20
    np.testing.assert_allclose(shared, alone, rtol=1e-6, atol=0)
    grids = []
    for place in ("alone", "shared"):
        denoiser, _ = checkpoints.load(tmp_path / place / "checkpoints/100.safetensors")
        grids.append(denoiser(torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8), torch.tensor(0.5)))
    torch.testing.assert_close(grids[0], grids[1], atol=1e-5, rtol=0)


def test_two_processes_compute_the_gradient_of_one(plain, digits, tmp_path):
    gradients = []
    for processes in (1, 2):
        one_step = {"budget_kimg": 0.032, "state_kimg": 0.032, "processes": processes}
        profile = change(Path(plain.params_file), training=one_step)
        assert killed(profile, digits, tmp_path / str(processes), dying=dies_at("*/work/*/finished.json"))
        (kept,) = (tmp_path / str(processes)).glob("work/*/state-*.pt")
        moments = torch.load(kept, weights_only=True)["optimisers"]["denoiser"]["state"]
        gradients.append(torch.cat([weight["exp_avg"].flatten() / 0.1 for weight in moments.values()]))  # 1 - beta_1
    assert gradients[0].norm() > 0.1
    assert (gradients[0] - gradients[1]).norm() < 1e-6 * gradients[0].norm()


@pytest.mark.weekly
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_are_killed_resume_to_the_same_bits(plain, digits, tmp_path, processes):
    few_steps = {"budget_kimg": 0.768, "state_kimg": 0.128, "processes": processes}
    profile = change(Path(plain.params_file), training=few_steps)
    whole = run(profile, digits, tmp_path / "whole")
    assert killed(profile, digits, tmp_path / "killed", dying=dies_at(STATE, 3))
    assert run(profile, digits, tmp_path / "killed") == whole


def test_a_sentence_comes_through_from_another_process(plain, digits, tmp_path):
    profile = change(Path(plain.params_file), training={"processes": 2, "lr": 1e30, "lr_ramp_kimg": 0})
    with pytest.raises(FdmError, match=r"^The loss of edm-fdm-0 is nan after .* Lower training.lr"):
        run(profile, digits, tmp_path)


def test_a_sentence_of_one_process_comes_through_while_the_others_wait(plain, digits, tmp_path, monkeypatch):
    profile = change(Path(plain.params_file), training={"processes": 2})

    real = Path.replace

    def full(part, target):
        if Path(target).name == "state.new":  # which only the first process writes
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(part, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(FdmError, match=r"state.new could not be written: the disk is full"):
        run(profile, digits, tmp_path)


def test_machines_that_see_different_states_are_refused(plain, digits, tmp_path, monkeypatch):
    profile = change(Path(plain.params_file), training={"processes": 2})
    assert killed(profile, digits, tmp_path, dying=dies_at(STATE, 3))
    newest = state.newest
    monkeypatch.setattr(state, "newest", lambda home, warn: newest(home, warn) if warn else None)
    with pytest.raises(FdmError, match=r"The machines do not see the same state in .* on a disk that they share"):
        run(profile, digits, tmp_path)


@pytest.mark.weekly
def test_accelerate_launch_trains_what_the_pipeline_then_takes(plain, digits, tmp_path):
    profile = change(Path(plain.params_file), training={"processes": 2, "budget_kimg": 0.768})
    sources.prepare(DIGITS, profile.build / "dataset.safetensors")
    # As for GPUs: accelerate's own --cpu would want MPI.
    command = "-m accelerate.commands.launch --num_machines 1 --mixed_precision no --dynamo_backend no --multi_gpu"
    train = f"--num_processes 2 -m fdm train --params {profile.params_file} --run {RUN}"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command.split(), *train.split()],
        env=env,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "edm-fdm-0 is trained; dvc repro takes it from" in done.stderr
    whole = run(profile, digits, tmp_path / "whole")
    out, told = tmp_path / "taken", []
    training = runs.training_of(profile, RUN, digits)
    loop.train(training, digits, out / "checkpoints", out / "logs", Path("work"), advance=told.append)
    assert sum(told[1:]) == 0  # nothing is left to be trained
    assert hashes(out) == whole
    assert not list(Path("work").iterdir())


def test_another_number_of_processes_than_the_profiles_is_a_sentence(plain):
    profile = change(Path(plain.params_file), training={"processes": 2})
    sources.prepare(DIGITS, profile.build / "dataset.safetensors")
    command = [sys.executable, "-m", "fdm", "train", "--params", profile.params_file, "--run", RUN]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=2 * PATIENCE)
    sentence = "fdm: processes: 2 is not what was launched, 1; use accelerate launch --num_processes 2"
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(sentence)


def test_a_changed_parameter_never_resumes_from_another_state_and_is_trained(quick, digits, tmp_path):
    assert killed(quick, digits, tmp_path, dying=dies_at(STATE, 6))
    (waiting,) = (tmp_path / "work").iterdir()
    results = []
    for section, changes in {"training": {"lr": 1e-3}, "network": {"dropout": 0.2}}.items():
        other = change(Path(quick.params_file), **{section: changes})
        assert train(other, digits, tmp_path)["resumed_kimg"] == 0
        results.append(hashes(tmp_path))
    assert not set(results[0].values()) & set(results[1].values())  # of a finished training nothing is kept either
    assert list((tmp_path / "work").iterdir()) == [waiting]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(quick, digits, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "100.safetensors").write_text("measured earlier")
    real, count = denoising.loss, itertools.count()
    monkeypatch.setattr(denoising, "loss", lambda *a, **k: real(*a, **k) * (float("nan") if next(count) > 8 else 1))
    with pytest.raises(
        FdmError, match=r"The loss of edm-fdm-0 is nan after .* kimg; the last good state is kept in .*"
    ):
        run(quick, digits, tmp_path)
    *_, kept = sorted((tmp_path / "work").glob("*/state-*.pt"))
    assert torch.load(kept, weights_only=True)["step"] == 8
    assert (tmp_path / "checkpoints" / "100.safetensors").read_text() == "measured earlier"


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    path = tmp_path / "result.csv"
    files.write_text(path, "measured earlier")

    def write(part):
        part.write_text("half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FdmError, match=r"could not be written: the disk is full\. Nothing that was there is lost"):
        files.replace(path, write)
    assert path.read_text() == "measured earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["result.csv"]


@pytest.mark.parametrize("writer", [torch.save, save_file], ids=["torch", "safetensors"])
def test_a_file_that_cannot_grow_is_one_sentence_for_every_writer(tmp_path, writer):
    """torch and safetensors raise errors of their own; a limit on the size of files stands for the full disk."""
    path, told = tmp_path / "results" / "state.pt", tmp_path / "told"
    files.write_text(path, "measured earlier")

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            files.replace(path, lambda part: writer({"x": torch.zeros(9999)}, part))
        except FdmError as error:
            told.write_text(str(error)[:900])

    assert os.waitpid(forked(work), 0)[1] == 0
    assert "state.pt could not be written: " in told.read_text()
    assert "Nothing that was there is lost" in told.read_text()
    assert path.read_text() == "measured earlier"
    assert [other.name for other in path.parent.iterdir()] == ["state.pt"]


# ------------------------------------------------------------------------------------- going on from another run

LONGER = "edm-fdm-longer-0"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return checkpoints.load(path)[0].state_dict()


def test_a_training_that_goes_on_from_another_starts_from_its_last_weights(quick, digits, tmp_path, whole):
    with pytest.raises(FdmError, match=r"The checkpoint .*/edm-fdm-0/100.safetensors is missing"):
        train(quick, digits, tmp_path / "orphan", LONGER)
    shutil.copytree(whole / "checkpoints", quick.checkpoints(RUN))
    parent = weights(quick.checkpoints(RUN) / "100.safetensors")
    training, out = runs.training_of(quick, LONGER, digits), tmp_path / "still"
    still = training._replace(par=training.par.model_copy(update={"lr": 1e-12}))
    loop.train(still, digits, out / "checkpoints", out / "logs", out / "work", advance=lambda n: None)
    for snapshot in SNAPSHOTS:
        torch.testing.assert_close(weights(out / "checkpoints" / snapshot), parent, rtol=0, atol=1e-7)

    longer, fresh = tmp_path / "longer", tmp_path / "fresh"
    told = train(quick, digits, longer, LONGER)
    other = training._replace(start=None, experiment="of fresh weights")
    untold = loop.train(other, digits, fresh / "checkpoints", fresh / "logs", fresh / "work", advance=lambda n: None)
    assert told["history"][0]["loss"] < 0.9 * untold["history"][0]["loss"]  # it is trained already
    learnt = weights(longer / "checkpoints" / "100.safetensors")
    assert max((learnt[name] - parent[name]).abs().max() for name in parent) > 1e-3  # and learns on
    assert killed(quick, digits, tmp_path / "killed", dying=dies_at(STATE, 3, half=True), name=LONGER)
    assert run(quick, digits, tmp_path / "killed", LONGER) == hashes(longer)


def test_a_training_that_goes_on_from_another_is_named_by_it_too(smoke, digits):
    """Not the reverse, and each by that of its own seed."""
    path, cells = (
        Path(smoke.params_file),
        {name: cell.model_dump(exclude_unset=True) for name, cell in smoke.cells.items()},
    )

    def names(**changes):
        profile = change(path, cells=cells | {name: cells[name] | new for name, new in changes.items()})
        return tuple(runs.experiment(profile, name, digits) for name in (RUN, LONGER))

    parent, longer = names()
    assert parent != longer
    others = names(**{"edm-fdm": {"warmup_steps": 10}}), names(**{"edm-fdm-longer": {"warmup_steps": 10}})
    assert len({longer, others[0][1], others[1][1]}) == 3
    assert others[0][0] != parent == others[1][0]
    several = change(path, cells=cells, seeds=[0, 1])
    assert runs.training_of(several, "edm-fdm-longer-1", digits).start.parent == several.checkpoints("edm-fdm-1")
    assert [*several.runs].index("edm-fdm-longer-0") > [*several.runs].index("edm-fdm-1")


def test_a_training_by_hand_goes_on_from_none_but_the_right_one(quick, digits, tmp_path, whole):
    sources.prepare(DIGITS, quick.dataset_file)
    sentence = "edm-fdm-longer-0 starts from edm-fdm-0, which is not trained as profiles/smoke/params.yaml says"
    with pytest.raises(FdmError, match=sentence):
        runs.train_launched(quick, LONGER)
    shutil.copytree(whole / "checkpoints", quick.checkpoints(RUN))
    other = change(Path(quick.params_file), training={"lr": 1e-3})
    with pytest.raises(FdmError, match=sentence):
        runs.train_launched(other, LONGER)


# --------------------------------------------------------------------------------------------------- what is learnt


@pytest.mark.parametrize("cell", [pytest.param("edm-baseline", marks=pytest.mark.weekly), "edm-fdm"])
def test_a_small_network_learns_the_exact_denoiser_of_a_mixture(smoke, tmp_path, cell):
    """After 400 steps it is nearer to the exact D than 0.7 times the best linear denoiser's squared distance.

    The mixture is of two pictures, white on the one side or on the other, with noise of 0.1 and of 0.2. That linear
    denoiser knows its mean and covariance; it errs by 1 to 20 % of what x itself or the mean do.
    """
    settings = {"budget_kimg": 12.8, "batch": 32, "lr": 4e-3, "lr_ramp_kimg": 1.0, "ema_halflife_kimg": 1.0,
                "augment": 0.0, "log_kimg": 1.6, "state_kimg": 12.8}  # fmt: skip
    cells = {cell: {"framework": "edm", "kernel": cell.removeprefix("edm-")}}
    profile = change(
        Path(smoke.params_file),
        training=settings,
        network={"dropout": 0.0},
        dataset={"conditional": False},
        cells=cells,
    )
    picture = torch.full((1, 8, 8), -0.5)
    picture[:, :, 4:] = 0.5
    mixture = Mixture(torch.tensor([0.3, 0.7]), torch.stack([picture, -picture]), torch.tensor([0.1, 0.2]))
    generator = torch.Generator().manual_seed(0)
    images = datasets.to_uint8(mixture.draw(4096, generator))
    labels = torch.zeros(4096, dtype=torch.int64)
    dataset = Dataset("mixture", images, labels, images[:0], labels[:0], 1, sha256="0")
    train(profile, dataset, tmp_path, f"{cell}-0")
    denoiser, _ = checkpoints.load(tmp_path / "checkpoints" / "100.safetensors")

    mean = (mixture.weights[:, None] * mixture.means.flatten(1)).sum(0)
    off = mixture.means.flatten(1) - mean
    cov = off.T @ (mixture.weights[:, None] * off) + (mixture.weights @ mixture.deviations**2) * torch.eye(64)
    clean = mixture.draw(512, generator)
    for sigma in torch.tensor([0.1, 0.2, 0.5, 1.0, 2.0]):
        x = clean + sigma * torch.randn(clean.shape, generator=generator)
        exact = mixture(x, sigma)
        linear = mean + (x.flatten(1) - mean) @ torch.linalg.solve(cov + sigma**2 * torch.eye(64), cov)
        far = ((linear.reshape(x.shape) - exact) ** 2).mean()
        assert ((denoiser(x, sigma) - exact) ** 2).mean() < 0.7 * far, f"at sigma {sigma:.1f}"
        trivial = min(((other - exact) ** 2).mean() for other in (x, mean.reshape(1, 1, 8, 8)))
        assert 0.005 * trivial < far < 0.25 * trivial


def test_every_image_is_seen_once_an_epoch_and_the_order_depends_on_the_seed():
    order = loop.Order(10, seed=0)
    stream = torch.cat([order(first, 4) for first in range(0, 40, 4)])
    for epoch in stream.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(stream[:10], stream[10:20])
    assert torch.equal(loop.Order(10, seed=0)(17, 9), stream[17:26])  # from the middle, as after a resume
    assert not torch.equal(loop.Order(10, seed=1)(0, 10), stream[:10])


def test_the_average_follows_its_half_life_and_ramp():
    assert loop.ema_beta(10**9, 512, 500, 0.05) == pytest.approx(0.5 ** (512 / 500_000))
    assert loop.ema_beta(100_000, 512, 500, 0.05) == pytest.approx(0.5 ** (512 / 5_000))
    assert loop.ema_beta(0, 512, 500, 0.05) == pytest.approx(0)


def test_the_learning_rate_rises_linearly_and_is_logged(quick, whole):
    log = pd.read_csv(whole / "logs" / "plots" / "metrics" / "lr.tsv", sep="\t")
    ramp = quick.training.lr_ramp_kimg * 1000
    expected = [quick.training.lr * min((images - 32) / ramp, 1) for images in log["step"]]
    assert log["lr"].tolist() == pytest.approx(expected)


def test_a_checkpoint_describes_itself_and_one_of_another_network_is_refused(quick, digits, tmp_path, whole):
    path = copied(whole, tmp_path / "out") / "checkpoints" / "100.safetensors"
    denoiser, description = checkpoints.load(path, runs.specify(quick, RUN, digits))
    assert description["images"] == 1024
    assert description["name"] == RUN
    assert not denoiser.training
    with pytest.raises(FdmError, match=r"of another network: its network.architecture is 'ddpmpp', where 'ncsnpp'"):
        checkpoints.load(path, runs.specify(quick, "ve-baseline-0", digits))
    with pytest.raises(FdmError, match=r"nothing.safetensors is missing; run dvc repro"):
        checkpoints.load(tmp_path / "nothing.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FdmError, match=r"not hold the weights that its description promises; remove it "):
        checkpoints.load(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(FdmError, match=r"is damaged .* remove it and run dvc repro"):
        checkpoints.load(path)


def test_a_data_set_is_refused_when_missing_truncated_or_altered(digits, tmp_path):
    good = tmp_path / "good.safetensors"
    sources.prepare(DIGITS, good)
    assert digits.sha256 == datasets.load(good).sha256
    with pytest.raises(FdmError, match="is missing; run dvc repro"):
        datasets.load(tmp_path / "nothing")
    cut, altered = tmp_path / "cut", tmp_path / "altered"
    cut.write_bytes(good.read_bytes()[:-5000])
    with pytest.raises(FdmError, match="is damaged or truncated"):
        datasets.load(cut)
    shutil.copy(good, altered)
    content = bytearray(altered.read_bytes())
    content[-20_000] ^= 1
    altered.write_bytes(content)
    with pytest.raises(FdmError, match="does not have the content its checksum promises"):
        datasets.load(altered)


def test_images_of_another_resolution_are_refused(tmp_path):
    with pytest.raises(FdmError, match=r"dataset.resolution: 16 is not allowed; the images of digits are 8x8"):
        sources.prepare(DIGITS.model_copy(update={"resolution": 16}), tmp_path / "x")


def test_pixels_survive_the_way_there_and_back(digits):
    assert torch.equal(datasets.to_uint8(datasets.to_float(digits.images)), digits.images)
    assert datasets.to_float(digits.images).min() == -1
    assert datasets.to_float(digits.images).max() == 1
    a, b = datasets.halves(1797)
    assert len(a) == len(b) == 898
    assert not set(a.tolist()) & set(b.tolist())
