"""The package as others use it: its functions, the programs of its page, diffusers' schedulers, and a wheel."""

import os
import pickle
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from diffusers import EDMEulerScheduler
from torch import nn

import fdm
from fdm.diffusers import FDMDPMSolverMultistepScheduler, FDMEulerScheduler
from fdm.files import FdmError
from fdm.process.frameworks import coefficients
from fdm.samplers import SAMPLERS
from fdm.samplers.grids import Karras
from fdm.training.objectives import denoising

from .published_format import make
from .scratch import ROOT

PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_code.md").read_text(encoding="utf-8"), re.S)


class Linear(nn.Module):
    """F(x, c_noise) = a x + b c_noise."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(-0.2))

    def forward(self, x, c_noise, class_labels=None):
        return self.a * x + self.b * c_noise[:, None, None, None]


@pytest.mark.parametrize("framework", ["vp", "ve", "edm"])
@pytest.mark.parametrize("kernel", ["baseline", "fdm"])
def test_a_network_of_ones_own_becomes_a_denoiser(framework, kernel):
    net = Linear()
    denoiser = fdm.precondition(net, framework, kernel, multiplier=1.5, shape=(3, 4, 4))
    assert (denoiser.shape, denoiser.classes) == ((3, 4, 4), 0)
    x, sigma = torch.randn(5, 3, 4, 4), torch.full((5,), 0.7)
    c = coefficients(framework, kernel, sigma.reshape(-1, 1, 1, 1), 1.5 if kernel == "fdm" else 1.0)
    by_hand = c.c_skip * x + c.c_out * (net.a * c.c_in * x + net.b * c.c_noise)
    torch.testing.assert_close(denoiser(x, sigma), by_hand)
    assert fdm.sample(denoiser, n=3, nfe=5).shape == (3, 3, 4, 4)


def test_the_loss_is_the_studys_own_with_and_without_the_warm_up():
    denoiser = fdm.precondition(Linear(), "edm", "fdm", shape=(1, 4, 4))
    images = torch.rand(64, 1, 4, 4) * 2 - 1
    for step, ceiling in ((0, 5.0), (10, 50.0), (20, None)):
        found = fdm.loss(denoiser, images, step=step, warmup_steps=20, generator=torch.Generator().manual_seed(3))
        generator = torch.Generator().manual_seed(3)
        u = torch.randn(64, 1, 1, 1, generator=generator)
        noise = torch.randn(images.shape, generator=generator)
        assert found.item() == pytest.approx(denoising.loss(denoiser, images, u, noise, ceiling=ceiling).mean().item())
    torch.manual_seed(1)
    first, second = fdm.loss(denoiser, images), fdm.loss(denoiser, images)
    assert first != second
    torch.manual_seed(1)
    assert fdm.loss(denoiser, images) == first
    first.backward()
    assert denoiser.model.net.a.grad is not None


def test_classes_reach_a_network_of_ones_own():
    seen = []

    class Told(Linear):
        def forward(self, x, c_noise, class_labels):
            seen.append(class_labels)
            return super().forward(x, c_noise)

    denoiser = fdm.precondition(Told(), shape=(1, 4, 4), classes=3)
    fdm.sample(denoiser, n=4, nfe=1)
    assert seen[0].shape == (4, 3)
    assert seen[0].sum(1).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: fdm.precondition(Linear(), "edn"), "'edn' is not known; there are: vp, ve, edm"),
        (lambda: fdm.precondition(Linear(), kernel="momentum"), "'momentum' is not known; there are: baseline, fdm"),
        (lambda: fdm.precondition(Linear(), multiplier=0), "multiplier is 0; it must be above 0"),
        (lambda: fdm.precondition(Linear(), shape=(3, 4, 8)), "images are square"),
        (lambda: fdm.loss(fdm.precondition(Linear()), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)), "float() / 127.5"),
        (lambda: fdm.loss(fdm.precondition(Linear()), torch.zeros(2, 3, 8, 8)), "(3, 8, 8) and the denoiser's"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(call, told):
    with pytest.raises(FdmError, match=re.escape(told)):
        call()


def test_samplers_are_asked_by_name():
    assert fdm.samplers["ddim"] is SAMPLERS["ddim"]
    assert [*fdm.samplers] == [*SAMPLERS]
    with pytest.raises(KeyError, match="there is no sampler named euler; there are: heun"):
        fdm.samplers["euler"]


def by_diffusers(scheduler, denoiser, x, labels, steps):
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            F = denoiser.model(scheduler.scale_model_input(x, t), t.expand(len(x)), labels, None)
            x = scheduler.step(F, t, x).prev_sample
    return x


def test_diffusers_steps_with_fdms_input_scaling_are_the_studys_own():
    denoiser = fdm.load("edm-fdm-0")
    labels = torch.eye(denoiser.classes)[[1, 2, 3]] if denoiser.classes else None
    latents = torch.randn(3, *denoiser.shape, generator=torch.Generator().manual_seed(0))

    def ours(sampler: str, to_zero: bool) -> torch.Tensor:
        grid = Karras(0.002, 80.0, to_zero)
        with torch.no_grad():
            *_, x = SAMPLERS[sampler].sample(
                lambda x, sigma: denoiser(x, sigma, labels), latents.double() * 80, grid, 10, lambda step: None
            )
        return x

    x = by_diffusers(FDMEulerScheduler(), denoiser, latents * 80, labels, 10)
    torch.testing.assert_close(x.double(), ours("ddim", True), atol=1e-5, rtol=0)
    plain = by_diffusers(EDMEulerScheduler(), denoiser, latents * 80, labels, 10)
    assert (plain - x).abs().max() > 0.1  # which EDM's input scaling is not
    multistep = FDMDPMSolverMultistepScheduler(solver_order=2, lower_order_final=True, euler_at_final=False)
    x = by_diffusers(multistep, denoiser, latents * 80, labels, 10)
    torch.testing.assert_close(x.double(), ours("dpm-solver++2m", True), atol=1e-4, rtol=0)


def test_schedulers_are_kept_with_their_multiplier(tmp_path):
    FDMEulerScheduler(multiplier=3.0, sigma_max=70.0).save_pretrained(tmp_path)
    again = FDMEulerScheduler.from_pretrained(tmp_path)
    assert (again.config.multiplier, again.config.sigma_max) == (3.0, 70.0)
    other = FDMDPMSolverMultistepScheduler.from_config(again.config)
    assert other.config.multiplier == 3.0
    level = torch.tensor(2.0)
    expected = coefficients("edm", "fdm", level, 3.0).c_in
    torch.testing.assert_close(other.precondition_inputs(torch.ones(1), level), expected.reshape(1))


@pytest.mark.parametrize(
    "number", [*(pytest.param(n, marks=pytest.mark.weekly) for n in (0, 1)), 2]
)  # the first trains
def test_the_programs_of_the_page_run_as_they_stand(number, tmp_path, persistence):
    assert len(PROGRAMS) == 3
    arguments = []
    if "sys.argv" in PROGRAMS[number]:
        file = tmp_path / "edm-cifar10-32x32-cond-vp.pkl"
        file.write_bytes(pickle.dumps(make("edm", "fdm", persistence)[1]))
        from fdm.__main__ import main

        assert main(["import-checkpoint", str(file), "--out", str(tmp_path)]) == 0
        arguments = [str(file.with_suffix(".safetensors"))]
    (tmp_path / "program.py").write_text(PROGRAMS[number], encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "program.py", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if "torch.Size" in line or "(4, 3, 8, 8)" in line]
    assert shown, done.stdout
    losses = re.findall(r"loss ([\d.]+)", done.stdout)
    assert all(float(loss) < 0.8 for loss in losses)  # untrained it is about 1


@pytest.mark.slow
def test_a_wheel_works_outside_of_a_clone(tmp_path):
    """Built from what git tracks, and used in an environment that sees this one's packages but not the clone."""
    copy = tmp_path / "clone"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = ("fdm/", "results/digits/networks/", "pyproject.toml", "README.md", "LICENSE")
    others = subprocess.run(
        ["git", "ls-files", "-zo", "--exclude-standard", "fdm"], cwd=ROOT, capture_output=True, text=True
    )
    for name in (tracked + others.stdout).split("\0"):
        if name.startswith(wanted):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        found = content.extractall(tmp_path / "installed") or names
    assert "fdm/py.typed" in found
    assert "fdm/networks/edm-fdm-0.safetensors" in found
    code = (
        "import fdm, sys; d = fdm.load('vp-baseline-0'); x = fdm.sample(d, n=2, nfe=5); print(fdm.__file__, *x.shape)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(tmp_path / "installed"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, *shape = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path / "installed")
    assert shape == ["2", "1", "8", "8"]


def test_the_light_core_is_all_that_loading_and_sampling_import():
    code = """
import sys
import importlib.metadata as metadata
import fdm
fdm.sample(fdm.load(), n=1, nfe=3)
owners = metadata.packages_distributions()
print(*sorted({name.lower() for module in sys.modules if "." not in module for name in owners.get(module, [])}))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {re.match(r"[a-z-]+", each)[0] for each in project["dependencies"]}
    study = {re.match(r"[a-z0-9-]+", each)[0] for each in project["optional-dependencies"]["study"]}
    assert done.returncode == 0, done.stderr
    assert core == {"numpy", "pydantic", "pywavelets", "safetensors", "torch"}
    assert not set(done.stdout.split()) & (study - {"tqdm"})  # which torch itself imports where it is
