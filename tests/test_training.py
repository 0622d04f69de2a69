"""Training: what it writes, how it resumes, and how it fails."""

import contextlib
import errno
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
from safetensors.torch import save_file

from fdm import checkpoints, compute, data, files, training
from fdm.errors import FdmError
from fdm.files import sha256
from fdm.profiles import DatasetParams

from .conftest import ROOT, change

pytestmark = pytest.mark.slow

RUN = "edm-fdm-0"
DIGITS = DatasetParams(name="digits", resolution=8, conditional=True)
SNAPSHOTS = ["025.safetensors", "050.safetensors", "075.safetensors", "100.safetensors"]
PATIENCE = 60  # seconds after which a process that should have ended hangs


@pytest.fixture
def quick(smoke, monkeypatch):
    """One kimg in 16 steps."""
    monkeypatch.setattr(compute, "matmul_peak", lambda *_: 1e11)  # measuring it takes as long as some steps
    return change(Path(smoke.params_file), training={"budget_kimg": 1, "log_kimg": 0.125, "state_kimg": 0.125})


def train(profile, dataset, out: Path, name=RUN, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return training.train(profile, name, dataset, out / "checkpoints", out / "logs", out / "work", **options)


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


def killed(profile, dataset, out: Path, after: float | None = None, dying=lambda: None) -> bool:
    """Train in a process of its own and kill it `after` seconds or where `dying` says; returns whether it died."""

    def work():
        dying()
        run(profile, dataset, out)

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


def dies_after(calls: int, module, name: str, half=lambda *args: None):
    """Make the process kill itself and those it forked in a call of module.name, `half` way through it."""

    def patch():
        real, count = getattr(module, name), iter(range(calls))

        def call(*args, **kwargs):
            if next(count, None) is None:
                half(*args)
                os.killpg(0, signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(module, name, call)

    return patch


def half_a_file(content, path: Path, *rest) -> None:
    path.write_bytes(bytes(10_000))


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
    assert len({first[name] for name in SNAPSHOTS}) == 4
    logs = [(tmp_path / ab / "logs" / "plots" / "metrics" / "loss.tsv").read_bytes() for ab in "ab"]
    assert logs[0] == logs[1]
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
    assert not list((tmp_path / "a" / "work").iterdir())  # the state is gone once the results are there
    other = change(Path(quick.params_file), runs={"edm-fdm-1": {"framework": "edm", "kernel": "fdm", "seed": 1}})
    third = run(other, digits, tmp_path / "c", "edm-fdm-1")
    assert not set(third.values()) & set(first.values())


def test_a_training_is_told_with_its_log_and_named_in_its_folder(quick, digits, tmp_path):
    images = []
    told = train(quick, digits, tmp_path, advance=images.append)
    assert told == json.loads((tmp_path / "logs" / "finished.json").read_text())
    assert sum(images) == 1024
    assert [row["images"] for row in told["history"]] == list(range(128, 1025, 128))
    assert told["loss"] == told["history"][-1]["loss"]
    assert told["resumed_kimg"] == 0 < told["seconds"]
    named = json.loads((tmp_path / "checkpoints" / "experiment.json").read_text())
    assert named == {"run": RUN, "experiment": training.experiment(quick, RUN, digits)}
    metrics = {path.stem for path in (tmp_path / "logs" / "plots" / "metrics").iterdir()}
    assert metrics == {"loss", "lr", *training.SPEED}


def test_a_training_is_named_by_what_shapes_its_network_and_not_by_the_machine(smoke, digits, monkeypatch):
    """The source is part of the name: of the training's modules and those they import, and of no other."""
    work = Path("work")

    def names(profile, dataset=digits):
        return training.experiment(profile, RUN, dataset), training._home(profile, RUN, dataset, work, "cpu").name

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
        names(change(Path(smoke.params_file), runs={RUN: {"framework": "edm", "kernel": "fdm", "seed": 0}})),
        names(smoke, digits._replace(sha256="0")),
    ]
    assert len({(name, home), *others}) == 5
    assert len({each[0] for each in others}) == 4
    for module, counts in (("plots", False), ("evaluation", False), ("training", True), ("augmentation", True)):
        path = Path("fdm") / f"{module}.py"
        source = path.read_text()
        path.write_text(f"{source}\n# Another word.\n")
        assert (names(smoke) != (name, home)) == counts, module
        path.write_text(source)


def test_a_training_killed_at_ten_random_moments_ends_in_the_same_bits(quick, digits, tmp_path, whole):
    start = time.monotonic()
    assert run(quick, digits, tmp_path / "whole") == hashes(whole)
    seconds = time.monotonic() - start
    moments = random.Random()  # other moments in every run of the tests
    deaths = 0
    for number in range(10):
        out = tmp_path / str(number)
        deaths += killed(quick, digits, out, moments.uniform(0, seconds))
        assert run(quick, digits, out) == hashes(whole)
        assert logged(out) == logged(whole)
    assert deaths >= 5  # the others had ended a moment before


@pytest.mark.parametrize(
    ("dying", "trained"),
    [
        (dies_after(5, torch, "save", half_a_file), False),  # while a state is written
        (dies_after(5, training, "sha256"), False),  # before it has its name
        (dies_after(1, checkpoints, "save_file", half_a_file), False),  # while a checkpoint is written
        (dies_after(2, shutil, "copyfile", half_a_file), True),  # while results are put in their place
        (dies_after(1, training, "write_json"), True),  # before they are named
        (dies_after(0, training, "_log"), True),
        (dies_after(2, training, "write_json"), True),  # before the log tells of the end
        (dies_in_the_removal, True),
    ],
    ids=["state", "rename", "checkpoint", "result", "name", "log", "end", "removal"],
)
def test_a_training_killed_while_it_writes_ends_in_the_same_bits(
    quick, digits, tmp_path, whole, monkeypatch, dying, trained
):
    """One that was trained to its end goes on without training."""
    out = tmp_path / "killed"
    assert killed(quick, digits, out, dying=dying)
    if trained:
        monkeypatch.setattr(training.compute, "launch", None)
    assert run(quick, digits, out) == hashes(whole)
    assert logged(out) == logged(whole)
    assert not list((out / "work").iterdir())  # nothing is left half written
    assert not list(out.rglob("*.part"))


def test_a_finished_training_is_not_trained_again(quick, digits, tmp_path, whole, monkeypatch):
    out = copied(whole, tmp_path / "out")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(training.compute, "launch", None)
    told, images = json.loads((whole / "logs" / "finished.json").read_text()), []
    assert train(quick, digits, out, advance=images.append) == told
    assert train(change(Path(quick.params_file), training={"state_kimg": 1.0}), digits, out) == told
    assert sum(images) == 1024  # as if they had been trained on, for the bar of all runs
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    "lost", ["checkpoints", "checkpoints/050.safetensors", "checkpoints/experiment.json", "logs", "logs/finished.json"]
)
def test_a_training_of_which_something_is_lost_is_trained_again(quick, digits, tmp_path, whole, monkeypatch, lost):
    out, launch, trained = copied(whole, tmp_path / "out"), training.compute.launch, []
    path = out / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (out / "checkpoints").mkdir(exist_ok=True)
    (out / "checkpoints" / "037.safetensors").touch()  # which nothing has made
    monkeypatch.setattr(training.compute, "launch", lambda *args: trained.append(1) or launch(*args))
    assert run(quick, digits, out) == hashes(whole)
    assert logged(out) == logged(whole)
    assert trained == [1]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"home": "0123"}'])
def test_a_log_that_tells_of_no_training_or_another_is_not_believed(
    quick, digits, tmp_path, whole, monkeypatch, content
):
    out = copied(whole, tmp_path / "out")
    (out / "logs" / "finished.json").write_text(content)

    def launched(*args):
        raise FdmError("it would be trained")

    monkeypatch.setattr(training.compute, "launch", launched)
    with pytest.raises(FdmError, match="it would be trained"):
        run(quick, digits, out)


@pytest.mark.parametrize("damage", ["cut", "one byte"])
def test_a_damaged_state_is_left_aside_for_the_one_before(quick, digits, tmp_path, whole, damage):
    assert killed(quick, digits, tmp_path / "killed", dying=dies_after(5, torch, "save"))
    before, last = sorted((tmp_path / "killed" / "work").glob("*/state-*.pt"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content if damage == "one byte" else content[:-1000])
    with pytest.warns(UserWarning, match="is damaged and left aside"):
        result = training.train(
            quick, RUN, digits, tmp_path / "killed/checkpoints", tmp_path / "killed/logs", tmp_path / "killed/work"
        )
    assert result["resumed_kimg"] == int(before.stem.split("-")[1]) * quick.training.batch / 1000 > 0
    assert hashes(tmp_path / "killed") == hashes(whole)


def test_two_trainings_of_one_run_do_not_get_into_each_others_way(quick, digits, tmp_path, monkeypatch):
    assert killed(quick, digits, tmp_path, dying=dies_after(3, torch, "save"))
    (home,) = (tmp_path / "work").iterdir()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with training._alone(home, RUN), pytest.raises(FdmError, match="is being trained by another process, with its "):
        run(quick, digits, tmp_path)


@pytest.fixture
def plain(smoke):
    """Twenty steps, each of them logged, without dropout, whose masks depend on the process."""
    log = {"budget_kimg": 1.28, "log_kimg": 0.064, "state_kimg": 0.32}
    return change(Path(smoke.params_file), training=log, network={"dropout": 0.0})


def losses_of(profile, dataset, out: Path) -> np.ndarray:
    run(profile, dataset, out)
    return pd.read_csv(out / "logs/plots/metrics/loss.tsv", sep="\t")["loss"].to_numpy()


@pytest.mark.parametrize(
    "how", [{"processes": 2}, {"accumulation": 4}, {"processes": 2, "accumulation": 2}], ids=["2", "4 parts", "2x2"]
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
        one_step = {"budget_kimg": 0.064, "state_kimg": 0.064, "processes": processes}
        profile = change(Path(plain.params_file), training=one_step)
        assert killed(profile, digits, tmp_path / str(processes), dying=dies_after(0, training, "write_json"))
        (state,) = (tmp_path / str(processes)).glob("work/*/state-*.pt")
        moments = torch.load(state, weights_only=True)["optimizer"]["state"]
        gradients.append(torch.cat([weight["exp_avg"].flatten() / 0.1 for weight in moments.values()]))  # 1 - beta_1
    assert gradients[0].norm() > 0.1
    assert (gradients[0] - gradients[1]).norm() < 1e-6 * gradients[0].norm()


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_are_killed_resume_to_the_same_bits(plain, digits, tmp_path, processes):
    ten_steps = {"budget_kimg": 0.64, "state_kimg": 0.128, "processes": processes}
    profile = change(Path(plain.params_file), training=ten_steps)
    whole = run(profile, digits, tmp_path / "whole")
    assert killed(profile, digits, tmp_path / "killed", dying=dies_after(2, torch, "save"))
    assert run(profile, digits, tmp_path / "killed") == whole


def test_a_sentence_comes_through_from_another_process(plain, digits, tmp_path):
    profile = change(Path(plain.params_file), training={"processes": 2, "lr": 1e30, "lr_ramp_kimg": 0})
    with pytest.raises(FdmError, match=r"^The loss of edm-fdm-0 is nan after .* Lower training.lr"):
        run(profile, digits, tmp_path)


def test_a_sentence_of_one_process_comes_through_while_the_others_wait(plain, digits, tmp_path, monkeypatch):
    profile = change(Path(plain.params_file), training={"processes": 2})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)  # only the first process writes
    with pytest.raises(FdmError, match=r"state.new could not be written: the disk is full"):
        run(profile, digits, tmp_path)


def test_machines_that_see_different_states_are_refused(plain, digits, tmp_path, monkeypatch):
    profile = change(Path(plain.params_file), training={"processes": 2})
    assert killed(profile, digits, tmp_path, dying=dies_after(2, torch, "save"))
    newest = training._newest
    monkeypatch.setattr(training, "_newest", lambda home, warn: newest(home, warn) if warn else None)
    with pytest.raises(FdmError, match=r"The machines do not see the same state in .* on a disk that they share"):
        run(profile, digits, tmp_path)


def test_accelerate_launch_trains_what_the_pipeline_then_takes(plain, digits, tmp_path, monkeypatch):
    profile = change(Path(plain.params_file), training={"processes": 2, "budget_kimg": 0.256})
    data.prepare(DIGITS, profile.build / "dataset.safetensors")
    # As for GPUs: accelerate's own --cpu would want MPI.
    command = "-m accelerate.commands.launch --num_machines 1 --mixed_precision no --dynamo_backend no --multi_gpu"
    train = f"--num_processes 2 -m fdm.training --params {profile.params_file} --run {RUN}"
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
    monkeypatch.setattr(training.compute, "launch", None)  # nothing is left to be trained
    out = tmp_path / "taken"
    training.train(profile, RUN, digits, out / "checkpoints", out / "logs", Path("work"))
    assert hashes(out) == whole
    assert not list(Path("work").iterdir())


def test_another_number_of_processes_than_the_profiles_is_a_sentence(plain, monkeypatch):
    profile = change(Path(plain.params_file), training={"processes": 2})
    data.prepare(DIGITS, profile.build / "dataset.safetensors")
    monkeypatch.setattr(sys, "argv", ["fdm.training", "--params", profile.params_file, "--run", RUN])
    sentence = r"^fdm: processes: 2 is not what was launched, 1; use accelerate launch --num_processes 2"
    try:
        with pytest.raises(SystemExit, match=sentence):
            training.main()
    finally:
        compute.AcceleratorState._reset_state(reset_partial_state=True)


def test_a_changed_parameter_never_resumes_from_another_state_and_is_trained(quick, digits, tmp_path):
    assert killed(quick, digits, tmp_path, dying=dies_after(5, torch, "save"))
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
    real, count = training.losses.loss, iter(range(1000))
    monkeypatch.setattr(
        training.losses, "loss", lambda *a, **k: real(*a, **k) * (float("nan") if next(count) > 8 else 1)
    )
    with pytest.raises(
        FdmError, match=r"The loss of edm-fdm-0 is nan after .* kimg; the last good state is kept in .*"
    ):
        run(quick, digits, tmp_path)
    *_, state = sorted((tmp_path / "work").glob("*/state-*.pt"))
    assert torch.load(state, weights_only=True)["step"] == 8
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


def test_every_image_is_seen_once_an_epoch_and_the_order_depends_on_the_seed():
    order = training.Order(10, seed=0)
    stream = torch.cat([order(first, 4) for first in range(0, 40, 4)])
    for epoch in stream.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(stream[:10], stream[10:20])
    assert torch.equal(training.Order(10, seed=0)(17, 9), stream[17:26])  # from the middle, as after a resume
    assert not torch.equal(training.Order(10, seed=1)(0, 10), stream[:10])


def test_the_average_follows_its_half_life_and_ramp():
    assert training.ema_beta(10**9, 512, 500, 0.05) == pytest.approx(0.5 ** (512 / 500_000))
    assert training.ema_beta(100_000, 512, 500, 0.05) == pytest.approx(0.5 ** (512 / 5_000))
    assert training.ema_beta(0, 512, 500, 0.05) == pytest.approx(0)


def test_the_learning_rate_rises_linearly_and_is_logged(quick, whole):
    log = pd.read_csv(whole / "logs" / "plots" / "metrics" / "lr.tsv", sep="\t")
    ramp = quick.training.lr_ramp_kimg * 1000
    expected = [quick.training.lr * min((images - 64) / ramp, 1) for images in log["step"]]
    assert log["lr"].tolist() == pytest.approx(expected)


def test_a_checkpoint_describes_itself_and_one_of_another_network_is_refused(quick, digits, tmp_path, whole):
    path = copied(whole, tmp_path / "out") / "checkpoints" / "100.safetensors"
    denoiser, description = checkpoints.load(path, checkpoints.specify(quick, RUN, digits))
    assert description["images"] == 1024
    assert description["name"] == RUN
    assert not denoiser.training
    with pytest.raises(FdmError, match=r"of another network: its network.architecture is 'ddpmpp', where 'ncsnpp'"):
        checkpoints.load(path, checkpoints.specify(quick, "ve-baseline-0", digits))
    with pytest.raises(FdmError, match=r"nothing.safetensors is missing; remove .*, if it is there, and run dvc repro"):
        checkpoints.load(tmp_path / "nothing.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FdmError, match=r"not hold the weights that its description promises; remove .*/checkpoints "):
        checkpoints.load(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(FdmError, match=r"is damaged .* remove .*/checkpoints and run dvc repro"):
        checkpoints.load(path)


def test_a_data_set_is_refused_when_missing_truncated_or_altered(digits, tmp_path):
    good = tmp_path / "good.safetensors"
    data.prepare(DIGITS, good)
    assert digits.sha256 == data.load(good).sha256
    with pytest.raises(FdmError, match="is missing; run dvc repro"):
        data.load(tmp_path / "nothing")
    cut, altered = tmp_path / "cut", tmp_path / "altered"
    cut.write_bytes(good.read_bytes()[:-5000])
    with pytest.raises(FdmError, match="is damaged or truncated"):
        data.load(cut)
    shutil.copy(good, altered)
    content = bytearray(altered.read_bytes())
    content[-20_000] ^= 1
    altered.write_bytes(content)
    with pytest.raises(FdmError, match="does not have the content its checksum promises"):
        data.load(altered)


def test_images_of_another_resolution_are_refused(tmp_path):
    with pytest.raises(FdmError, match=r"dataset.resolution: 16 is not allowed; the images of digits are 8x8"):
        data.prepare(DIGITS.model_copy(update={"resolution": 16}), tmp_path / "x")


def test_pixels_survive_the_way_there_and_back(digits):
    assert torch.equal(data.to_uint8(data.to_float(digits.images)), digits.images)
    assert data.to_float(digits.images).min() == -1
    assert data.to_float(digits.images).max() == 1
    a, b = data.halves(1797)
    assert len(a) == len(b) == 898
    assert not set(a.tolist()) & set(b.tolist())
