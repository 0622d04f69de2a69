"""What a profile costs and lacks, told before anything is spent, and the machine's health."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fdm.__main__ import main
from fdm.data import downloads
from fdm.data.datasets import Dataset
from fdm.files import FdmError
from fdm.model import checkpoints, cost
from fdm.model.denoiser import Denoiser
from fdm.repro import doctor, plan
from fdm.study import profiles, runs
from fdm.training import loop, processes

from .conftest import change
from .test_errors import as_trained

pytestmark = pytest.mark.slow


def built(profile, name: str, dataset: Dataset) -> Denoiser:
    return checkpoints.build(runs.specify(profile, name, dataset))


@pytest.mark.parametrize("name", ["ve-baseline-0", "edm-fdm-0"])
def test_a_network_costs_without_being_allocated_what_the_real_one_costs(digits, name):
    profile = profiles.find("digits")
    told, real = plan.network(profile, name, digits), built(profile, name, digits)
    assert told.parameters == sum(parameter.numel() for parameter in real.parameters())
    assert told.flops == cost.flops(real)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in real.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        real.train()(torch.zeros(1, 1, 8, 8), torch.ones(()), torch.zeros(1, 10))
    held = sum(storage.nbytes() for place, storage in kept.items() if place not in own)
    assert told.activations == pytest.approx(held, rel=0.1)  # attention keeps a little less than its formula
    assert told.memory(10) - told.memory(0) == 10 * told.activations


def test_a_run_more_takes_the_disk_that_its_checkpoints_take(smoke, digits):
    name = "edm-fdm-0"
    as_trained(smoke, name, digits)
    real = sum(t.nbytes for path in smoke.checkpoints(name).glob("*.safetensors") for t in load_file(path).values())
    need, path = plan.network(smoke, name, digits), Path(smoke.params_file)
    more = plan.disk(change(path, seeds=[0, 1]), need) - plan.disk(smoke, need)
    assert more == pytest.approx(len(smoke.trained) * real, rel=0.01)


def test_flops_are_two_for_each_weight_and_pixel_of_a_convolution(digits):
    real = built(profiles.find("digits"), "edm-fdm-0", digits)
    layers = []
    for layer in real.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(
                lambda layer, args, out: layers.append(2 * layer.weight.numel() * out[0, 0].numel())
            )
    real(torch.zeros(1, 1, 8, 8), torch.ones(()), torch.zeros(1, 10))
    # Without the products of attention, and without the layer of the augmentation, which is not called.
    assert sum(layers) < cost.flops(real) < 1.1 * sum(layers)


def test_the_published_networks_have_the_published_sizes_and_the_whole_bill():
    profile = profiles.find("paper-cifar10")
    dataset = plan.dataset_of(profile)
    assert plan.network(profile, "edm-baseline-0", dataset).parameters == pytest.approx(55.7e6, rel=0.002)
    assert sum(plan.evaluations(profile, "edm-fdm-0").values()) == 50_000 * (
        3 * 35 + 2 * (5 + 11 + 17 + 25 + 35 + 49 + 79)
    )


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("digits", "code kernel published prepare reference train evaluate tables publish"),
        ("exact", "code prepare reference train evaluate evidence publish"),
        ("published-checkpoints", "code prepare reference fetch evaluate tables publish"),
    ],
)
def test_where_nothing_was_computed_all_stages_are_to_run(study, name, stages):
    assert plan.stages(profiles.find(name)) == stages.split()


def test_a_plan_tells_the_cost_and_leaves_everything_as_it_was(smoke, monkeypatch, capsys):
    monkeypatch.setattr(plan, "SECONDS", 1)
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")}
    assert main(["plan", "--params", smoke.params_file]) == 0
    assert {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")} == before
    text = capsys.readouterr().out
    stages = [
        "code",
        "prepare",
        "reference",
        "train",
        "evaluate",
        "heads",
        "systems",
        "standings",
        "tables",
        "publish",
    ]
    assert f"Stages to run: {', '.join(stages)}.\n" in text
    assert ("2 runs are computed at once" in text) == (runs.at_once(smoke, 1) == 2)
    samples, nfe = 64, 4 * 5 + 11 + (5 + 11) + 5 + 5  # the last of the quarters is among Heun's settings twice
    # Of the comparison: 5 + 8 evaluations, of Heun's method the 8 alone, of 4 + 2 candidates and of each system; solver
    # and grid crossed; the converged solution; moments at six levels, of heads and by derivatives; and their training.
    compared = 16 * ((4 + 2) * 13 + 6 * 13 + 8 + 2 * 2 * 5 + 256 + 2 * 6) + 512
    row = rf"edm-fdm +[\d,]+ +[\d.e-]+ +2,048 +[\d.e+]+ +[\d.]+ \w+ +{samples * nfe + compared:,} "
    assert re.search(row, text), text
    assert not re.search(r"^ *edm-baseline-exact", text, re.MULTILINE)  # which is no network
    assert re.search(r"V100 +\d+ s +\d+ s +yes", text)
    assert re.search(r"GPU {3,}time on one {3,}time on eight {3,}has memory for 64 images\n", text)
    assert "Nothing is missing here." in text


def test_a_floor_at_another_number_of_images_than_the_models_is_told(smoke, digits):
    half = len(digits.labels) // 2
    assert plan._floor(smoke, digits) == []
    (told,) = plan._floor(change(Path(smoke.params_file), evaluation={"samples": half + 1}), digits)
    assert f"of {half:,} images" in told and f"With evaluation.samples: {half} they can" in told


def test_what_does_not_fit_or_does_not_exist_here_is_measured_as_far_as_it_can(smoke, monkeypatch, digits):
    monkeypatch.setattr(plan, "SECONDS", 1)
    monkeypatch.setattr(plan, "free_memory", lambda device: 20 * 2**20)
    profile = change(Path(smoke.params_file), training={"precision": "fp16", "batch": 2**20})
    rates = plan.measure(profile, digits, list(profile.trained), train=True)
    assert set(rates) == set(profile.trained)
    assert all(rate > 1 for rate in rates.values())


def test_a_measured_rate_is_that_of_the_step():
    def step(n: int) -> None:
        end = plan.time.perf_counter() + 0.002 + n * 0.001
        while plan.time.perf_counter() < end:
            pass

    assert plan._rate(step, 8, 0.5) == pytest.approx(8 / 0.010, rel=0.3)
    assert plan._rate(step, 10**6, 0.3) > 500  # ends in time, with fewer


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3, "3 s"), (99, "99 s"), (600, "10 min"), (7200, "2.0 h"), (86400 * 20, "20 days"), (31_571 * 86400, "86 years")],
)
def test_durations_are_told_as_people_do(seconds, said):
    assert plan.hours(seconds) == said


def test_what_is_missing_is_named(study, monkeypatch):
    monkeypatch.setattr(downloads, "DEBIAN", ())
    big = plan.Network(10**9, 10**12, 10**9)
    gaps = plan.missing(profiles.find("paper-cifar10"), big)
    assert [gap.split(":")[0] for gap in gaps][:2] == ["data", "weights"]
    assert any(gap.startswith("memory: training takes up to ") for gap in gaps)
    (data,) = plan.missing(profiles.find("fashion-cpu"), None)
    assert data.startswith("data: train-images-idx3-ubyte.gz")
    if processes.device() == "cpu":
        assert any("tf32 needs an NVIDIA GPU" in gap for gap in plan.missing(profiles.find("fashion"), None))


def test_a_folder_that_changed_since_it_was_prepared_is_noticed(smoke, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    profile = change(Path(smoke.params_file), dataset={"name": "folder", "path": str(pictures), "conditional": False})
    prepared = profile.build / "dataset.safetensors"
    prepared.parent.mkdir(parents=True)
    prepared.touch()
    assert plan.missing(profile, None) == []
    (pictures / "new.png").touch()
    plan.os.utime(pictures / "new.png", (2e9, 2e9))
    (gap,) = plan.missing(profile, None)
    assert "has changed since it was prepared; dvc repro -f profiles/smoke/dvc.yaml:prepare reads it again" in gap


def test_a_precision_that_the_device_lacks_is_refused_before_training(smoke, digits, tmp_path):
    if processes.device() != "cpu":
        pytest.skip("a GPU has them all")
    for precision in ("tf32", "fp16"):
        profile = change(Path(smoke.params_file), training={"precision": precision})
        with pytest.raises(FdmError, match=f"precision: {precision} is not allowed here: {precision} needs an NVIDIA"):
            training = runs.training_of(profile, "edm-fdm-0", digits)
            loop.train(training, digits, tmp_path / "c", tmp_path / "l", tmp_path / "w")


# -------------------------------------------------------------------------------------------------------- doctor


@pytest.fixture
def lock(study):
    """The study's folder with the lock of one package that is there, and one for another system."""
    path = study / "requirements.lock"
    path.write_text(f"numpy=={np.__version__}\npywinpty==9.9 ; os_name == 'nt'\n")
    return path


def test_the_environment_is_compared_with_the_lock(lock):
    notes, problems = doctor.environment()
    assert problems == []
    assert "all packages are those of requirements.lock" in notes
    lock.write_text("numpy==1.0.0\n")
    _, (problem,) = doctor.environment()
    assert problem.startswith("packages are not those of requirements.lock (")
    assert "numpy==1.0.0" in problem and problem.endswith("make venv installs what is locked")


def test_the_lock_of_a_killed_dvc_and_a_waiting_training_are_found(lock, study):
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (study / ".dvc" / "tmp").mkdir(parents=True)
    (study / ".dvc" / "tmp" / "rwlock").write_text(f'{{"x": {{"write": {{"pid": {child.stdout.strip()}}}}}}}')
    (study / "work" / "0123").mkdir(parents=True)
    (study / "work" / "0123" / "state-000000010-abc.pt").write_bytes(bytes(2**20))
    notes, problems = doctor.pipeline()
    assert any("a dvc that was killed" in note and "remove it" in note for note in notes)
    assert any("this is no git checkout" in problem for problem in problems)
    assert any("an interrupted training waits in work/0123 (1 MiB)" in note for note in notes)


def test_the_doctor_says_what_every_profile_can_do_and_fails_where_the_default_cannot(lock, study, capsys):
    looked_at = ("smoke", "fashion-cpu", "paper-ffhq", "published-checkpoints")
    for folder in (study / "profiles").iterdir():
        if folder.name not in looked_at:
            shutil.rmtree(folder)
    path = study / "profiles" / "smoke" / "params.yaml"
    path.write_text(path.read_text().replace("batch: 64", "batch: many"))
    assert main(["doctor"]) == 1  # this copy is no git checkout
    text = capsys.readouterr().out
    for name in ("digits", *looked_at[1:]):
        assert re.search(rf"^  {name} +(ready|not here)", text, re.MULTILINE)
    assert re.search(r"smoke +broken\n +- profiles/smoke/params.yaml: training.batch: 'many' is not allowed", text)
    assert re.search(r"^  digits +ready$", text, re.MULTILINE)
    assert "! this is no git checkout" in text
