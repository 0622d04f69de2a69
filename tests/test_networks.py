"""The trained networks in the clone: they load, draw what is on record, and score what their cards say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fdm
from fdm.__main__ import main
from fdm.data.datasets import halves
from fdm.files import FdmError
from fdm.metrics import distances, features
from fdm.model import checkpoints
from fdm.model.oracle import Mixture
from fdm.samplers import SAMPLERS
from fdm.study import measurements, profiles, runs

from .conftest import ROOT

pytestmark = pytest.mark.slow

DIGITS = profiles.find("digits")
NETWORKS = ROOT / "results" / "digits" / "networks"


def recorded(run: str) -> Path:
    """The folder of what is on record of a run's cell."""
    return ROOT / "results" / "digits" / "runs" / DIGITS.run(run).cell


def distance(run: str) -> float:
    """The Frechet distance on record of a run's last network, as in Table 1."""
    sampler, nfe = DIGITS.evaluation.primary
    rows = measurements.read(recorded(run) / "measurements.csv")
    at = {"run": run, "sampler": sampler, "nfe": nfe, "duration": 1.0}
    return measurements.standard(DIGITS, rows, **at)["value"].item()


def test_every_run_of_the_default_profile_has_a_network_with_a_card_and_together_they_are_small():
    files = {path.name for path in NETWORKS.iterdir()}
    assert files == {f"{run}.{end}" for run in DIGITS.runs for end in ("safetensors", "md")}
    assert sum(path.stat().st_size for path in ROOT.glob("results/*/networks/*")) < 40e6
    for run in DIGITS.runs:
        card = (NETWORKS / f"{run}.md").read_text()
        for heading in ("What it is", "How it was trained", "What it scores", "What it is not", "Use", "Licence"):
            assert f"**{heading}" in card
        assert f"| Heun, 25 evaluations | {distance(run):.2f} |" in card


@pytest.mark.parametrize("run", ["vp-baseline-0", "ve-baseline-0", "edm-baseline-0", "edm-fdm-0"])
def test_a_network_draws_the_samples_that_are_on_record(run):
    """Within a grey level on average: a chaotic network's samples would not be repeatable elsewhere."""
    denoiser = fdm.load(run)
    assert not denoiser.training
    images = fdm.sample(denoiser, n=64, sampler="heun", nfe=25, batch=40)
    grid = load_file(recorded(run) / "pictures.safetensors")["grid"]
    assert images.shape == grid.shape == (64, 1, 8, 8)
    assert (images.float() - grid.float()).abs().mean() < 1
    other = fdm.sample(denoiser, n=2, seed=5)
    assert (other.float() - images[5:7].float()).abs().mean() < 1  # sample i is of seed i


def test_a_network_scores_what_is_on_record(digits):
    denoiser, par = fdm.load("edm-fdm-0"), DIGITS.evaluation
    extract, _ = features.extractor(par.extractor)
    images = fdm.sample(denoiser, n=par.samples, batch=par.batch)
    real = torch.cat([extract(batch) for batch in digits.images.split(par.batch)])
    real = real[halves(len(real))[0]]
    value = distances.frechet_distance(extract(images), real)
    assert value == pytest.approx(distance("edm-fdm-0"), rel=2e-3)


def test_the_command_draws_a_picture_from_any_folder(tmp_path):
    command = [sys.executable, "-m", "fdm", "sample", "--run", "edm-fdm-0", "--sampler", "dpm-solver++", "--nfe", "5"]
    done = subprocess.run(
        [*command, "--n", "9", "--out", "grid.png"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "grid.png: 9 samples of edm-fdm-0, dpm-solver++, 5 evaluations, seeds from 0\n"
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (3 * 34 + 2, 3 * 34 + 2, 3)
    assert len(np.unique(picture)) > 20


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--run", "edm-fdm-9"], "There is no network named edm-fdm-9 in "),
        (["--sampler", "euler"], f"There is no sampler named euler; there are: {', '.join(SAMPLERS)}."),
        (["--nfe", "24"], "nfe 24 is not possible: Heun's method costs an odd number of evaluations"),
        (["--sampler", "gms"], "fdm: GMS needs the second and third moments"),
        (["--n", "0"], "n is 0, nfe 25 and seed 0; allowed are n from 1"),
        (["--seed", "-1"], "n is 64, nfe 25 and seed -1; allowed are "),
        (["--run", "none.safetensors"], "The checkpoint none.safetensors is missing"),
        (["--sampler", "masf", "--option", "eps=of x"], "eps: 'of x' is not allowed for MASF; it must be one of of D"),
        (["--option", "eta"], "--option eta is not understood; write a name and a value, such as eta=1."),
        (["--sampler", "ddim", "--option", "eta=2"], "eta: 2.0 is not allowed for DDIM; it must be 0 to 1."),
        (["--out", "grid"], "grid does not tell a picture's format; its name ends in .png, for instance."),
        (["--out", "/dev/null/grid.png"], "/dev/null/grid.png could not be written"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--nfe", "3", "--out", "grid.png", *words]) == 1
    error = capsys.readouterr().err
    assert sentence in error.replace("nfe 3 ", "nfe 25 ")
    assert error.count("\n") == 1
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sampler": "ddim", "eta": 2.0}, "eta: 2.0 is not allowed for DDIM; it must be 0 to 1."),
        ({"sampler": "heun", "eta": 1.0}, "eta is no option of Heun; it has S_churn, S_min, S_max, S_noise."),
    ],
)
def test_an_option_that_a_sampler_does_not_have_is_said_in_one_sentence(options, sentence):
    with pytest.raises(FdmError) as raised:
        fdm.sample(Mixture.reference(), n=2, nfe=3, **options)
    assert str(raised.value) == sentence


def test_an_exact_denoiser_is_sampled_as_a_trained_one_with_the_samplers_options():
    exact = Mixture.reference()
    images = [fdm.sample(exact, n=6, sampler="ddim", nfe=5, batch=4, eta=eta) for eta in (0.0, 1.0)]
    assert images[0].shape == (6, 1, 1, 1)
    assert not torch.equal(*images)


def test_a_checkpoint_of_ones_own_is_drawn_from_and_a_damaged_one_is_refused(tmp_path, digits):
    description = runs.specify(DIGITS, "edm-fdm-0", digits)
    path = tmp_path / "mine.safetensors"
    checkpoints.save(path, checkpoints.build(description), description)
    assert fdm.sample(fdm.load(path), n=3, nfe=3).shape == (3, 1, 8, 8)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FdmError, match="is damaged"):
        fdm.load(path)


def test_a_network_that_is_large_is_not_kept_in_git(monkeypatch):
    assert runs.KEPT * 6 < 40e6
