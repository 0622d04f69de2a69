"""Training: what it writes, how it resumes, and how it fails."""

import errno
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch

from fdm import checkpoints, data, files, training
from fdm.errors import FdmError
from fdm.files import sha256

from .conftest import ROOT, change

RUN = "edm-fdm-0"


@pytest.fixture
def quick(smoke):
    """Two kimg in 16 steps."""
    return change(Path(smoke.params_file), training={"budget_kimg": 1, "log_kimg": 0.125, "state_kimg": 0.125})


def run(profile, dataset, out: Path, name=RUN) -> dict[str, str]:
    """Train and return the hashes of the checkpoints."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training.train(profile, name, dataset, out / "checkpoints", out / "logs", out / "work")
    return {path.name: sha256(path) for path in sorted((out / "checkpoints").iterdir())}


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_after(monkeypatch, steps: int) -> None:
    """Raise in the given step, counted from now."""
    real, count = training.losses.loss, iter(range(steps))

    def loss(*args, **kwargs):
        if next(count, None) is None:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(training.losses, "loss", loss)


def test_training_twice_gives_the_same_bytes_and_another_seed_others(quick, digits, tmp_path):
    first, second = run(quick, digits, tmp_path / "a"), run(quick, digits, tmp_path / "b")
    assert first == second
    assert list(first) == ["025.safetensors", "050.safetensors", "075.safetensors", "100.safetensors"]
    assert len(set(first.values())) == 4
    logs = [(tmp_path / ab / "logs" / "plots" / "metrics" / "loss.tsv").read_bytes() for ab in "ab"]
    assert logs[0] == logs[1]
    assert not list((tmp_path / "a" / "work").iterdir())  # the state is gone once the results are there
    other = change(Path(quick.params_file), runs={"edm-fdm-1": {"framework": "edm", "kernel": "fdm", "seed": 1}})
    assert run(other, digits, tmp_path / "c", "edm-fdm-1")["100.safetensors"] != first["100.safetensors"]


@pytest.mark.parametrize("step", [1, 5, 9, 15])
def test_a_killed_training_resumes_to_the_same_bytes(quick, digits, tmp_path, monkeypatch, step):
    whole = run(quick, digits, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, step)
        run(quick, digits, tmp_path / "killed")
    assert not (tmp_path / "killed" / "checkpoints").exists()
    assert run(quick, digits, tmp_path / "killed") == whole
    for name in ("plots/metrics/loss.tsv", "metrics.json"):
        assert (tmp_path / "killed/logs" / name).read_text() == (tmp_path / "whole/logs" / name).read_text()


def test_a_damaged_state_is_left_aside_for_the_one_before(quick, digits, tmp_path, monkeypatch):
    whole = run(quick, digits, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 9)
        run(quick, digits, tmp_path / "killed")
    (state,) = (tmp_path / "killed" / "work").glob("*/state.pt")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="is damaged and left aside"):
        result = training.train(
            quick, RUN, digits, tmp_path / "killed/checkpoints", tmp_path / "killed/logs", tmp_path / "killed/work"
        )
    assert result["resumed_kimg"] > 0
    assert {p.name: sha256(p) for p in sorted((tmp_path / "killed/checkpoints").iterdir())} == whole


def test_a_changed_parameter_never_resumes_from_another_state(quick, digits, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 9)
        run(quick, digits, tmp_path / "out")
    for section, changes in {"training": {"lr": 1e-3}, "network": {"dropout": 0.2}}.items():
        other = change(Path(quick.params_file), **{section: changes})
        result = training.train(other, RUN, digits, tmp_path / "o/c", tmp_path / "o/l", tmp_path / "out/work")
        assert result["resumed_kimg"] == 0


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
    (state,) = (tmp_path / "work").glob("*/state.pt")
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


@pytest.mark.parametrize("writer", ["torch.save(content, part)", "save_file(content, part)"])
def test_a_file_that_cannot_grow_is_one_sentence_for_every_writer(tmp_path, writer):
    """torch and safetensors raise errors of their own; a limit on the size of files stands for the full disk."""
    (tmp_path / "state.pt").write_text("measured earlier")
    code = f"""
import resource, torch
from pathlib import Path
from safetensors.torch import save_file
from fdm.errors import FdmError
from fdm.files import replace
content = dict(x=torch.zeros(9999))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    replace(Path("state.pt"), lambda part: {writer})
except FdmError as error:
    print(error)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "state.pt could not be written: " in done.stdout, done.stderr
    assert "Nothing that was there is lost" in done.stdout
    assert (tmp_path / "state.pt").read_text() == "measured earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


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


def test_the_learning_rate_rises_linearly_and_is_logged(quick, digits, tmp_path):
    run(quick, digits, tmp_path)
    log = pd.read_csv(tmp_path / "logs" / "plots" / "metrics" / "lr.tsv", sep="\t")
    ramp = quick.training.lr_ramp_kimg * 1000
    expected = [quick.training.lr * min((images - 64) / ramp, 1) for images in log["step"]]
    assert log["lr"].tolist() == pytest.approx(expected)


def test_a_checkpoint_describes_itself_and_one_of_another_network_is_refused(quick, digits, tmp_path):
    run(quick, digits, tmp_path)
    path = tmp_path / "checkpoints" / "100.safetensors"
    denoiser, description = checkpoints.load(path, training.describe(quick, RUN, digits))
    assert description["images"] == 1024
    assert description["run"] == RUN
    assert not denoiser.training
    with pytest.raises(FdmError, match=r"of another network: its network.architecture is 'ddpmpp', where 'ncsnpp'"):
        checkpoints.load(path, training.describe(quick, "ve-baseline-0", digits))
    with pytest.raises(FdmError, match=r"is missing; run dvc repro"):
        checkpoints.load(tmp_path / "nothing.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FdmError, match=r"is damaged .* remove it and run dvc repro"):
        checkpoints.load(path)


def test_a_data_set_is_refused_when_missing_truncated_or_altered(digits, tmp_path):
    good = tmp_path / "good.safetensors"
    data.prepare("digits", 8, good)
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


def test_data_sets_say_what_they_cannot_do(tmp_path):
    with pytest.raises(FdmError, match="cannot be prepared by this version; it knows digits"):
        data.prepare("ffhq", 64, tmp_path / "x")
    with pytest.raises(FdmError, match=r"dataset.resolution: 16 is not allowed; the images of digits are 8x8"):
        data.prepare("digits", 16, tmp_path / "x")


def test_pixels_survive_the_way_there_and_back(digits):
    assert torch.equal(data.to_uint8(data.to_float(digits.images)), digits.images)
    assert data.to_float(digits.images).min() == -1
    assert data.to_float(digits.images).max() == 1
    a, b = data.halves(1797)
    assert len(a) == len(b) == 898
    assert not set(a.tolist()) & set(b.tolist())
