"""What is made of networks with a velocity, and of second and third moments: tables against closed forms."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fdm.data import sources
from fdm.files import FdmError
from fdm.model.moments import Differentiated, Headed, heads_for
from fdm.model.oracle import Mixture
from fdm.process import multivariate
from fdm.study import evidence, heads, networks, profiles, runs, standings, systems, velocity
from fdm.study.profiles import SystemsParams
from fdm.training import heads as training

from .conftest import change
from .test_comparison import FEW, made_up
from .test_errors import as_trained

HEADS = {"kimg": 1.024, "batch": 32, "lr": 2e-3}
WITH_HEADS = {"systems": [
    {"name": "DDIM", "sampler": "ddim"}, {"name": "GMS", "sampler": "gms", "heads": "centred"},
    {"name": "raw", "sampler": "gms", "heads": "raw"},
], "heads": HEADS}  # fmt: skip

# ------------------------------------------------------------------------------------------------------- moments


def test_derivatives_of_an_exact_denoiser_are_its_cumulants():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 1, 2, 2, generator=generator, dtype=torch.float64)
    mixture = Mixture(torch.full((4,), 0.25), means, torch.full((4,), 0.3))
    x = torch.randn(5, 1, 2, 2, generator=generator, dtype=torch.float64)
    for sigma in (0.2, 1.0, 5.0):
        found = Differentiated(mixture).cumulants(x, torch.tensor(sigma))
        for mine, exact in zip(found, mixture.cumulants(x, torch.tensor(sigma)), strict=True):
            torch.testing.assert_close(mine, exact, rtol=1e-6, atol=1e-8)
    with torch.inference_mode():  # as samplers run
        again = Differentiated(mixture).cumulants(x, torch.tensor(5.0))
    torch.testing.assert_close(again[2], found[2])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small network that is as it was initialised, and images of the known distribution."""
    from fdm.data import gaussians
    from fdm.data.datasets import Dataset

    from .test_models import small as network

    denoiser = network("edm", "baseline").requires_grad_(False)
    known = gaussians.known(8)
    images, labels = torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    return denoiser, Dataset("known", images, labels, images, labels, 10, "", known)


@pytest.mark.parametrize("targets", ["raw", "centred"])
def test_what_heads_are_trained_on_has_the_cumulants_that_are_read_off_them(small, targets):
    """Means of the goals, where D is exact, in the place of what heads say: the cumulants come out."""
    denoiser, _ = small
    mixture, sigma = Mixture.reference(), torch.tensor(0.8, dtype=torch.float64)
    n = 400_000
    clean = mixture.draw(n, torch.Generator().manual_seed(0))
    x = torch.full((1, 1, 1, 1), 0.4, dtype=torch.float64)
    weight = torch.exp(-((x - clean) ** 2) / (2 * sigma**2)).flatten()  # of a clean image, given x
    weight = weight / weight.sum()
    D = mixture(x, sigma)
    headed = Headed(denoiser, heads_for(denoiser), targets)
    goals = headed.goals(x.expand(n, 1, 1, 1), sigma, D, clean)
    said = [(weight * each.flatten()).sum().reshape(1, 1, 1, 1) for each in goals]
    headed.outputs = lambda x, sigma, labels=None: (D, *said)
    for mine, exact in zip(headed.cumulants(x, sigma), mixture.cumulants(x, sigma), strict=True):
        torch.testing.assert_close(mine, exact, rtol=0.02, atol=2e-3)


def test_heads_are_silent_at_first_and_learn_without_moving_the_network(small):
    from fdm.params import HeadParams

    denoiser, dataset = small
    before = {key: tensor.clone() for key, tensor in denoiser.state_dict().items()}
    x, sigma, labels = torch.randn(8, 1, 8, 8), torch.tensor(0.5), torch.eye(10)[:8]
    headed = Headed(denoiser, heads_for(denoiser), "centred")
    D, second, third = headed.outputs(x, sigma, labels)
    torch.testing.assert_close(D, denoiser(x, sigma, labels))
    assert second.abs().max() == 0 and third.abs().max() == 0
    told = list[int]()
    par = HeadParams(**HEADS)
    found = training.train(denoiser, dataset, par, "centred", (0.002, 80.0), 0, told.append)
    assert sum(told) == heads.images(par) == 1024
    again = training.train(denoiser, dataset, par, "centred", (0.002, 80.0), 0)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(before[key], tensor) for key, tensor in denoiser.state_dict().items())
    _, second, _ = Headed(denoiser, found, "centred").outputs(x, sigma, labels)
    assert second.mean() > 0.05


@pytest.fixture
def headed(smoke):
    """A profile that samples with heads, on a network that is as it was initialised."""
    par = {"dataset": {"name": "exact-gaussians"}, "training": {"augment": 0.0}}
    profile = change(Path(smoke.params_file), evaluation={"systems": FEW | WITH_HEADS}, **par)
    dataset = sources.prepare(profile.dataset, profile.dataset_file)
    for run in profile.trained:
        as_trained(profile, run, dataset)
    return profile, dataset


@pytest.mark.weekly
@pytest.mark.slow
def test_heads_are_trained_once_compared_with_the_exact_moments_and_sampled_with(headed, one_judge, monkeypatch):
    profile, dataset = headed
    assert heads.targets_of(profile, "edm-baseline-exact-0") == []
    run = "edm-fdm-0"
    with pytest.raises(FdmError, match=r"centred.safetensors is missing, .*; run python -m fdm heads"):
        systems.compare(profile, "edm-fdm", dataset, lambda run: None)
    assert runs.train_heads(profile) == [*profile.trained]
    files = {path: path.stat().st_mtime_ns for path in profile.heads(run).glob("*.safetensors")}
    assert {path.stem for path in files} == {"raw", "centred"}
    assert json.loads((profile.heads(run) / "experiment.json").read_text()).keys() == {"run", "experiment"}
    runs.train_heads(profile)
    assert files == {path: path.stat().st_mtime_ns for path in files}  # they are kept
    monkeypatch.setattr(systems, "CONVERGED", ("heun", 32))
    rows = systems.compare(profile, "edm-fdm", dataset, lambda run: None)
    told = rows[rows["part"] == "systems"]
    assert set(told["system"]) == {"DDIM", "GMS", "raw"} and set(told["nfe"]) == {5, 8}
    assert set(told[told["system"] == "GMS"]["options"]) == {"heads=centred"}
    said = velocity.moments(rows)
    assert set(said["way"]) == {"raw heads", "centred heads", "derivatives of D"}
    assert set(said["sigma"]) == set(heads.LEVELS)
    assert (said[["second cumulant", "third cumulant"]] > 0).all().all()
    seconds = said.groupby("way")["seconds"].median()
    assert seconds["derivatives of D"] > 5 * seconds["centred heads"]
    weights = networks.weights_of(profile, run, dataset, profile.checkpoints(run))[1.0]
    denoiser, _ = networks.denoiser_of(profile, run, dataset, profile.checkpoints(run), 1.0)
    heads.load(profile, run, denoiser, "centred", weights)
    with pytest.raises(FdmError, match="missing, damaged or of another network"):
        heads.load(profile, run, denoiser, "centred", "another")
    # What shapes the heads names what is measured with them, and nothing else.
    par = profile.evaluation.systems
    every = systems.reported(par, "edm-fdm", {})
    other = profile.model_copy(update={"evaluation": profile.evaluation.model_copy(update={"systems": SystemsParams
        .model_validate(FEW | WITH_HEADS | {"heads": HEADS | {"kimg": 2.0}})})})  # fmt: skip
    with pytest.raises(FdmError, match="of other parameters or source; run python -m fdm heads"):
        runs._compare(other, "edm-fdm", None)
    names = [systems.experiments(each, "a", "b", "c", every) for each in (profile, other)]
    changed = {what.system for what in every if names[0][what] != names[1][what]}
    assert changed == {"GMS", "raw"}


@pytest.mark.parametrize(("changes", "words"), [
    ({"systems": [*WITH_HEADS["systems"][:1], {"name": "GMS", "sampler": "gms"}]}, "GMS: heads belong to gms"),
    ({"heads": None}, "GMS: heads belong to gms"),
    ({"systems": [*WITH_HEADS["systems"], {"name": "x", "sampler": "ddim", "heads": "raw"}]}, "x: heads belong to gms"),
    ({"only": {"edm-fdm": ["DDIM", "none"]}}, "there is no such system as 'none'"),
    ({"only": {"edm-fdm": ["GMS"]}}, "DDIM is missing, the first of all"),
])  # fmt: skip
def test_a_comparison_with_heads_that_cannot_be_made_is_refused(smoke, changes, words):
    with pytest.raises(FdmError, match=words):
        change(Path(smoke.params_file), evaluation={"systems": FEW | WITH_HEADS | changes})


def test_a_profile_without_heads_trains_none(smoke):
    profile = change(Path(smoke.params_file), evaluation={"systems": FEW})
    with pytest.raises(FdmError, match="that sample with heads"):
        runs.train_heads(profile)


# ------------------------------------------------------------------------------------------------------ velocity


def test_the_bound_loses_half_of_the_error_over_the_square_of_the_level(monkeypatch):
    """An error of a sigma^2 loses a times the range of levels, in nats: the half is in d(1/sigma^2) = -2/sigma^3 ds."""
    sigma = np.logspace(-1, 1, 41)
    rows = pd.DataFrame([
        {"cell": "edm-baseline", "duration": 1.0, "kimg": 128.0, "seed": seed, "quantity": "excess", "sigma": s,
         "value": a * s**2}
        for seed, a in enumerate((0.01, 0.02, 0.04)) for s in sigma
    ])  # fmt: skip
    monkeypatch.setattr(evidence, "errors", lambda profile: rows)
    found = velocity.bounds(profiles.find("systems")).iloc[0]
    assert found["value"] == pytest.approx(0.02 * np.log(100), rel=1e-6)
    assert found["low"] < found["value"] < found["high"]
    monkeypatch.setattr(evidence, "errors", lambda profile: rows.iloc[:0])
    assert velocity.bounds(profiles.find("systems")).empty and velocity.by_level(profiles.find("systems")).empty


def test_networks_with_a_velocity_are_compared_training_by_training(monkeypatch):
    rows = made_up({"Heun": (0.5, 0.5, 0.5)}, kernel=0.5, noise=0.001)
    profile = profiles.find("systems")
    par = SystemsParams.model_validate(FEW | {"nfe": [5]})
    monkeypatch.setattr(velocity, "cells", lambda profile: (["edm-fdm"], ["edm-baseline"]))
    monkeypatch.setattr(standings, "of", lambda profile: par)
    table = velocity.across(profile, rows)
    assert set(table["system"]) == {"DDIM", "Heun"} and set(table["counts"]) == {"better"}
    assert table["ratio"].to_numpy() == pytest.approx(0.5, abs=0.12)
    counted = velocity.counted(table)
    assert counted["better"].tolist() == [1, 1] and counted["worse"].tolist() == [0, 0]


def test_a_search_for_a_process_is_nearer_to_rest_than_where_it_begins_and_vp_nearer_still():
    """At equal noise: a velocity costs time, and the search puts noise into the pixel."""
    table = velocity.gaps((0.5, 2.0))
    for noise, part in table.groupby("noise"):
        found = part.set_index("process")["from rest"]
        assert found["VP"] < found["searched"] < 0.6 * found["CLD"]
        left = velocity.VARIANCE * np.exp(-2 * noise) + 1 - np.exp(-2 * noise)  # VP's, by hand: its noise is 1/2
        assert found["VP"] == pytest.approx((left - 1 - np.log(left)) / 2, rel=1e-6)
    assert (table[table["process"] == "searched"]["into the pixel"] > 0.05).all()
    found = velocity.searched(2.0)
    assert found.noise.item() == pytest.approx(4)
    torch.testing.assert_close(found.m, multivariate.cld().m)


def test_learned_processes_are_told_run_by_run():
    rows = pd.DataFrame([
        {"part": "process", "run": run, "quantity": quantity, "value": value}
        for run, values in (("mdm-baseline-0", (1.2, 0.1, -0.2)), ("mdm-baseline-1", (0.9, 0.0, 0.1)))
        for quantity, value in zip(("coupling", "noise in the pixel", "noise in both"), values, strict=True)
    ])  # fmt: skip
    found = velocity.learned(rows).set_index("run")
    assert found.loc["mdm-baseline-1", "coupling"] == 0.9
    assert found.loc["mdm-baseline-0", "noise in both"] == -0.2
