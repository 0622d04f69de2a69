"""Metrics against other formulas, and what is measured and kept."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch_fidelity import metric_fid

from fdm import files
from fdm.__main__ import main
from fdm.data.datasets import to_float
from fdm.files import FdmError
from fdm.metrics import distances, features
from fdm.model import checkpoints
from fdm.samplers import SAMPLERS
from fdm.study import measure, networks, runs
from fdm.tasks import generation
from fdm.training import loop

from .conftest import change

pytestmark = pytest.mark.slow


def test_the_frechet_distance_is_the_textbooks():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)), rng.normal(1, 2, size=(250, 12))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * np.real(root))
    assert distances.frechet_distance(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [60, 100, 101, 400])
def test_the_frechet_distance_is_torch_fidelitys_with_fewer_images_than_features_and_with_more(n):
    generator = torch.Generator().manual_seed(n)
    mixing = torch.randn(100, 100, generator=generator) * torch.logspace(0, -3, 100)
    generated, real = (torch.randn(m, 100, generator=generator) @ mixing.T + shift for m, shift in ((n, 0.1), (300, 0)))
    theirs = [metric_fid.fid_features_to_statistics(each.double()) for each in (generated, real)]
    expected = metric_fid.fid_statistics_to_metric(*theirs, verbose=False)[metric_fid.KEY_METRIC_FID]
    assert distances.frechet_distance(generated, real) == pytest.approx(expected, rel=1e-6)
    assert distances.frechet_distance(generated, distances.moments(real)) == pytest.approx(expected, rel=1e-6)


def test_the_interval_of_a_frechet_distance_is_the_spread_over_other_images():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(2000, 6, generator=generator)
    sets = [1.3 * torch.randn(200, 6, generator=generator) + 0.3 for _ in range(60)]
    values = [distances.frechet_distance(generated, real) for generated in sets]
    covered, widths = 0, []
    for generated, value in zip(sets, values, strict=True):
        low, high = distances.interval(generated, real, value)
        assert (low + high) / 2 == pytest.approx(value)
        covered += low <= np.mean(values) <= high
        widths.append((high - low) / 2)
    assert covered >= 51  # of 60; 95 % would be 57
    assert 0.8 < np.mean(widths) / (1.96 * np.std(values)) < 1.5  # Student's factor for ten parts is 1.15 times 1.96


def test_kid_is_unbiased_and_its_interval_covers_the_truth():
    def cubic(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    rng = np.random.default_rng(0)
    covered, values = 0, []
    for _ in range(40):
        x, y = rng.normal(size=(80, 6)), rng.normal(0.4, 1, size=(80, 6))
        value, low, high, n = distances.kid(torch.tensor(x), torch.tensor(y))
        kxx, kyy, kxy = cubic(x, x), cubic(y, y), cubic(x, y)
        off = ~np.eye(80, dtype=bool)
        assert value == pytest.approx(kxx[off].mean() + kyy[off].mean() - 2 * kxy.mean())
        assert n == 80
        covered += low <= TRUTH <= high
        values.append(value)
    assert np.mean(values) == pytest.approx(TRUTH, abs=3 * np.std(values) / np.sqrt(40))
    assert covered >= 33  # of 40; 95 % would be 38, and the bootstrap is a little short at this n


def _truth() -> float:
    """KID of N(0, I) and N(0.4, I) in 6 dimensions: E k over pairs, from the moments of a scalar product."""

    def expected(a, b):  # of (xy/6 + 1)^3 with independent x ~ N(a, I) and y ~ N(b, I)
        aa, bb, ab, d = a @ a, b @ b, a @ b, len(a)
        first, second, third = ab, ab**2 + aa + bb + d, ab**3 + 3 * ab * (aa + bb + d + 2)
        return third / 6**3 + 3 * second / 6**2 + 3 * first / 6 + 1

    x, y = np.zeros(6), np.full(6, 0.4)
    return expected(x, x) + expected(y, y) - 2 * expected(x, y)


TRUTH = _truth()


def test_equal_sets_are_perfect_and_far_ones_are_not():
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    assert distances.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert distances.precision_recall(x, x) == (1, 1)
    assert distances.precision_recall(x, x + 100) == (0, 0)


def test_precision_is_of_the_generated_and_recall_of_the_real_images():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(300, 2, generator=generator) * 3
    collapsed = torch.randn(300, 2, generator=generator) * 0.1
    precision, recall = distances.precision_recall(collapsed, real)
    assert precision > 0.9
    assert recall < 0.1


def test_the_extractor_takes_grey_and_coloured_images_alike_and_knows_its_weights():
    extract, weights = features.extractor("efficientnet-lite0")
    grey = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    out = extract(grey)
    assert out.shape == (4, 320)
    torch.testing.assert_close(out, extract(grey.expand(-1, 3, -1, -1).contiguous()), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out[:2], extract(grey[:2]), atol=1e-4, rtol=1e-4)  # whatever the batch
    assert len(weights) == 12


RUN = "edm-fdm-0"
METRICS = ["FD(EfficientNet-Lite0)", "KID", "precision", "recall", "density", "coverage", "accuracy"]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def trained(smoke, digits, once):
    """The smoke profile with one trained run and reference features, and no memory of measurements yet."""
    smoke = change(Path(smoke.params_file), evaluation={"samples": 32, "batch": 16})
    training = runs.training_of(smoke, RUN, digits)
    places = once / "checkpoints", once / "logs", once / "work"
    loop.train(training, digits, *places, advance=lambda n: None)  # for the first test alone
    if not (once / "reference.safetensors").exists():
        features.extractor.cache_clear()
        measure.make_reference(smoke, digits, once / "reference.safetensors")
    shutil.copytree(once / "checkpoints", smoke.checkpoints(RUN))
    smoke.reference_file.parent.mkdir()
    shutil.copy(once / "reference.safetensors", smoke.reference_file)
    return smoke


def evaluated(profile, dataset, name=RUN, **options):
    return measure.evaluate(profile, name, dataset, runs.expected(profile, name, dataset), **options)


@pytest.fixture
def sampled(monkeypatch):
    """The settings that samples are drawn for, as they are drawn."""
    real, settings = generation.sample, []

    def sample(denoiser, seeds, sampler, nfe, *rest, **options):
        settings.append((sampler, nfe, *(value for key, value in options.items() if key != "sigma_max")))
        return real(denoiser, seeds, sampler, nfe, *rest, **options)

    monkeypatch.setattr(generation, "sample", sample)
    return settings


def with_settings(profile, change_them):
    """The profile with other settings: those of its file, after `change_them`."""
    path = Path(profile.params_file)
    settings = yaml.safe_load(path.read_text())["evaluation"]["settings"]
    return change(path, evaluation={"settings": change_them(settings)})


def cost_of(profile, settings) -> int:
    return sum(setting.nfe * profile.evaluation.samples for setting in settings)


def test_an_evaluation_measures_every_setting_and_goes_on_after_a_kill(trained, digits):
    profile, memory, told = trained, trained.scores(RUN), []
    rows = evaluated(profile, digits, advance=told.append)
    settings = measure.settings(profile, RUN)
    assert rows["metric"].tolist() == METRICS * len(settings)
    assert rows["value"].notna().all()
    assert (rows["n"] == profile.evaluation.samples).all()
    assert rows["checkpoint"].nunique() == 4
    weights = checkpoints.describe(profile.checkpoints(RUN) / "100.safetensors")["weights"]
    assert rows["checkpoint"].iloc[-1] == weights[:12]
    assert rows["experiment"].nunique() == len(settings)
    assert set(rows["options"]) == {"usual", "eta=1"}
    interval = rows[rows["metric"].isin(["FD(EfficientNet-Lite0)", "KID"])]
    assert (interval["low"] < interval["high"]).all()
    density = rows[rows["metric"] == "density"]
    assert (density["low"] <= density["high"]).all()  # which is 0 where no sample is near a real image
    assert (rows["sigma_max"] == 80).all()
    assert len(networks.remembered(memory)) == len(settings)
    assert told[0] == 0
    assert sum(told) == cost_of(profile, settings)
    whole = memory.read_text()
    memory.unlink()

    left = cost_of(profile, settings[:3])

    def interrupt(n: int) -> None:
        nonlocal left
        left -= n
        if left < 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluated(profile, digits, advance=interrupt)
    again: list[int] = []
    assert evaluated(profile, digits, advance=again.append).to_csv() == rows.to_csv()
    assert again[0] == cost_of(profile, settings[:3])  # which were kept
    assert sum(again) == sum(told)
    assert memory.read_text() == whole
    again.clear()
    assert evaluated(profile, digits, advance=again.append).to_csv() == rows.to_csv()
    assert again == [sum(told)]  # and now all are


@pytest.mark.weekly
def test_a_remembered_measurement_that_was_altered_is_measured_again(trained, digits, sampled):
    memory = trained.scores(RUN)
    rows = evaluated(trained, digits)
    whole = memory.read_text()
    every, batches = len(measure.settings(trained, RUN)), trained.evaluation.samples // trained.evaluation.batch
    remembered = json.loads(whole)
    key = list(remembered)[1]
    remembered[key]["rows"][2]["value"] += 1e-9
    number = json.dumps(remembered)
    remembered = json.loads(whole)
    remembered[key] = "nothing"
    for content, settings in ((number, 1), (json.dumps(remembered), 1), (whole[:-9], every), ("[]", every)):
        memory.write_text(content)
        sampled.clear()
        assert evaluated(trained, digits).to_csv() == rows.to_csv()
        assert len(sampled) == settings * batches
        assert json.loads(memory.read_text()) == json.loads(whole)


def test_a_setting_more_is_measured_alone_and_one_less_needs_nothing(trained, digits, sampled):
    rows = evaluated(trained, digits)
    before = json.loads(trained.scores(RUN).read_text())
    sampled.clear()
    wanted = [
        {"sampler": "heun", "nfe": [5, 7]},
        {"sampler": "ddim", "nfe": [5], "eta": 0.5},
        {"sampler": "heun", "nfe": [5], "cells": ["ve-baseline"], "sigma_max": [40.0]},  # of another run
    ]
    more = evaluated(with_settings(trained, lambda settings: settings + wanted), digits)
    assert set(sampled) == {("heun", 7), ("ddim", 5, 0.5)}
    after = json.loads(trained.scores(RUN).read_text())
    new = after.keys() - before.keys()
    assert len(new) == 2
    assert {row["nfe"] for key in new for row in after[key]["rows"]} == {5, 7}
    assert {key: after[key] for key in before} == before
    added = (more["nfe"] == 7) | (more["options"] == "eta=0.5")
    assert added.sum() == 2 * len(METRICS)
    assert more[~added].to_csv(index=False) == rows.to_csv(index=False)
    sampled.clear()
    fewer = with_settings(trained, lambda settings: [each | {"nfe": [5]} for each in settings])
    assert set(evaluated(fewer, digits)["nfe"]) == {5}
    assert sampled == []


def test_other_weights_are_measured_again_and_another_training_has_another_name(trained, digits, sampled):
    mine = trained.checkpoints(RUN)
    rows = evaluated(trained, digits).set_index(["duration", "sampler", "options", "nfe", "metric"])
    denoiser, description = checkpoints.load(mine / "050.safetensors")
    for parameter in denoiser.parameters():
        parameter.mul_(0.99)
    checkpoints.save(mine / "050.safetensors", denoiser, description)  # as another machine may have trained it
    sampled.clear()
    other = evaluated(trained, digits).set_index(rows.index.names)
    assert len(sampled) == trained.evaluation.samples // trained.evaluation.batch
    assert (other["experiment"] == rows["experiment"]).all()
    differs = other["checkpoint"] != rows["checkpoint"]
    assert set(differs[differs].index.get_level_values("duration")) == {0.5}
    assert (other["value"] != rows["value"])[differs].any()
    assert (other["value"] == rows["value"])[~differs].all()
    files.write_json(mine / "experiment.json", {"run": RUN, "experiment": "another"})
    names = evaluated(trained, digits)["experiment"]
    assert not set(names) & set(rows["experiment"])


def test_the_source_of_a_sampler_names_its_measurements_alone(trained, digits):
    """That of what scores them names all, and that of figures none."""
    reference = measure.load_reference(trained, trained.reference_file)[2]

    def names() -> dict[str, set[str]]:
        called = measure.experiments(trained, RUN, "trained", digits.sha256, reference["weights"])
        samplers = {setting.sampler for setting in called}
        return {each: {name for setting, name in called.items() if setting.sampler == each} for each in samplers}

    before = names()
    assert set(before) == {"heun", "dpm-solver++", "ddim", "s-pndm"}
    others = {
        "samplers/heun": {"heun"}, "samplers/pndm": {"s-pndm"}, "metrics/distances": {*before}, "study/figures": set(),
    }  # fmt: skip
    for module, renamed in others.items():
        path = Path("fdm") / f"{module}.py"
        source = path.read_text()
        path.write_text(f"{source}\n# Another word.\n")
        after = names()
        assert {each for each in before if not after[each] & before[each]} == renamed, module
        assert {each for each in before if after[each] == before[each]} == set(before) - renamed, module
        path.write_text(source)


@pytest.mark.weekly
def test_the_measurements_do_not_depend_on_the_number_of_processes(trained, digits):
    with_settings(trained, lambda settings: settings[1:2] + settings[3:4])  # without noise, and with it
    shared = change(Path(trained.params_file), evaluation={"processes": 3, "batch": 8})
    one = change(Path(trained.params_file), evaluation={"processes": 1})
    rows = evaluated(shared, digits)
    trained.scores(RUN).unlink()
    assert evaluated(one, digits).to_csv() == rows.to_csv()


# -------------------------------------------------------------------------------------------- the exact denoiser

EXACT = "edm-baseline-exact-0"


def test_the_exact_denoiser_of_the_images_is_scored_like_a_network(trained, digits, sampled):
    profile, told = trained, []
    rows = evaluated(profile, digits, EXACT, advance=told.append)
    settings = measure.settings(profile, EXACT)
    assert {setting.duration for setting in settings} == {1.0}  # it is never less than trained
    assert len(rows) == len(METRICS) * len(settings)
    assert set(rows["cell"]) == {"edm-baseline-exact"}
    assert set(rows["checkpoint"]) == {digits.sha256[:12]}
    assert set(rows["kimg"]) == {1.618}  # without the images that are held out
    assert rows["value"].notna().all()
    assert sum(told) == cost_of(profile, settings)
    assert len(networks.remembered(profile.scores(EXACT))) == len(settings)
    assert not profile.checkpoints(EXACT).exists()
    sampled.clear()
    assert evaluated(profile, digits, EXACT).to_csv() == rows.to_csv()
    assert sampled == []
    network = evaluated(profile, digits).query("duration == 1")
    best = {name: table.query("metric == 'FD(EfficientNet-Lite0)'")["value"].min()
            for name, table in (("exact", rows), ("network", network))}  # fmt: skip
    assert best["exact"] < best["network"] / 2  # a network of two thousand images


@pytest.mark.parametrize("conditional", [True, False])
def test_samples_of_the_exact_denoiser_are_training_images(smoke, digits, tmp_path, conditional):
    """Of the class that it is told; it has no others to give."""
    profile = change(Path(smoke.params_file), dataset={"conditional": conditional})
    denoiser, kimg = networks.denoiser_of(profile, EXACT, digits, profile.checkpoints(EXACT), 1.0)
    assert (kimg, denoiser.shape, denoiser.classes) == (1.618, (1, 8, 8), 10 if conditional else 0)
    images = to_float(generation.sample(denoiser, range(32), "heun", 79)).flatten(1)
    every = to_float(digits.images).flatten(1)
    off = (images[:, None] - every).abs().amax(dim=2)
    assert off.amin(dim=1).max() < 1.5 / 127.5  # one of 255 shades
    assert off.argmin(dim=1).unique().numel() > 25  # and not always the same
    if conditional:
        told = generation.draw_latents(range(32), denoiser.shape, denoiser.classes)[1]
        assert torch.equal(digits.labels[off.argmin(dim=1)], told)
    few = to_float(generation.sample(denoiser, range(32), "heun", 3)).flatten(1)
    nearest = (few[:, None] - every).abs().amax(dim=2).argmin(dim=1)
    assert nearest.unique().numel() <= 16  # few evaluations end at those that lie in the middle


# ---------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"sampler": "euler", "nfe": [5]},
         f"evaluation.settings: sampler 'euler' is not known; there are {', '.join(SAMPLERS)}"),
        ({"sampler": "heun", "nfe": [5], "grid": "cosine"},
         "evaluation.settings: grid 'cosine' is not known; there are karras, log-snr, log-snr-float32"),
        ({"sampler": "heun", "nfe": [5], "eta": 0.5},
         "evaluation.settings, heun: eta is no option of Heun; it has S_churn, S_min, S_max, S_noise"),
        ({"sampler": "s-pndm", "nfe": [5], "eta": 0.5},
         "evaluation.settings, s-pndm: eta is no option of S-PNDM; it has none"),
        ({"sampler": "ddim", "nfe": [5], "eta": 1.5},
         "evaluation.settings, ddim: eta: 1.5 is not allowed for DDIM; it must be 0 to 1"),
        ({"sampler": "ddim", "nfe": [5], "eta": "much"},
         "evaluation.settings, ddim: eta: 'much' is not allowed for DDIM; it must be 0 to 1"),
        ({"sampler": "ddim", "nfe": [5], "eta": True},
         "evaluation.settings.5.eta: True is not allowed; input should be a valid number"),
        ({"sampler": "heun", "nfe": [5, 6]},
         "evaluation.settings, heun: Heun's method costs an odd number of evaluations, and 6 was asked for"),
        ({"sampler": "heun", "nfe": [5], "to_zero": False},
         "evaluation.settings, heun: Heun's method costs an even number on a grid that does not end at 0, not 5"),
        ({"sampler": "dpm-solver++", "nfe": [1]},
         "evaluation.settings, dpm-solver++: DPM-Solver++ with final denoising needs at least 2 evaluations, and 1"),
        ({"sampler": "f-pndm", "nfe": [12]},
         "evaluation.settings, f-pndm: F-PNDM ends at a level above 0 and needs at least 13 evaluations, and 12"),
        ({"sampler": "s-pndm", "nfe": [5], "to_zero": True},
         "evaluation.settings, s-pndm: S-PNDM ends at a level above 0 and needs at least 2 evaluations, and 5"),
        ({"sampler": "heun", "nfe": [5, 11, 5]},
         "evaluation.settings, heun: nfe [5, 11, 5] is not allowed; an entry is there twice"),
        ({"sampler": "heun", "nfe": [5], "sigma_max": [80, 80.0]},
         "evaluation.settings, heun: sigma_max [80.0, 80.0] is not allowed; an entry is there twice"),
        ({"sampler": "heun", "nfe": [5], "duration": [0.5, 0.5]},
         "evaluation.settings, heun: duration [0.5, 0.5] is not allowed; an entry is there twice"),
        ({"sampler": "heun", "nfe": [5], "duration": [0.3]},
         "evaluation.settings, heun: duration 0.3 is not allowed; networks are kept at (0.03125, 0.0625, 0.125, "),
        ({"sampler": "heun", "nfe": [5], "cells": ["edm-fdm", "vp-fdm"]},
         "evaluation.settings: there is no cell named vp-fdm"),
        ({"sampler": "heun", "nfe": [5], "sigma_max": ["own"]},
         "evaluation.settings.5.sigma_max.0: 'own' is not allowed; input should be a valid number"),
        ({"sampler": "heun", "nfe": []}, "evaluation.settings.5.nfe: [] is not allowed; list should have at least 1"),
        ({"sampler": "heun", "nfe": 5}, "evaluation.settings.5.nfe: 5 is not allowed; input should be a valid list"),
        ({"sampler": "heun", "nfe": [0]}, "evaluation.settings.5.nfe.0: 0 is not allowed; input should be greater"),
        ({"nfe": [5]}, "evaluation.settings.5.sampler is missing"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_measured_stops_with_one_sentence(smoke, capsys, setting, sentence):
    path = Path(smoke.params_file)
    values = yaml.safe_load(path.read_text())
    values["evaluation"]["settings"].append(setting)
    path.write_text(yaml.safe_dump(values))
    assert main(["check", "--params", smoke.params_file]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"fdm: {smoke.params_file}: {sentence}")
    assert printed.count("\n") == 1


def test_a_setting_stands_for_all_its_numbers_once_and_for_the_cells_that_it_names(smoke):
    wanted = [
        {"sampler": "heun", "nfe": [5, 7], "sigma_max": [20.0, 100.0], "cells": ["ve-baseline", "edm-fdm"]},
        {"sampler": "ddim", "nfe": [5], "eta": 1, "grid": "log-snr"},
        {"sampler": "heun", "nfe": [11, 5]},  # which are there already
    ]
    before = {name: measure.settings(smoke, name) for name in smoke.runs}
    profile = with_settings(smoke, lambda settings: settings + wanted)
    new = {
        name: [each for each in measure.settings(profile, name) if each not in before[name]] for name in profile.runs
    }
    ddim = measure.Setting(1.0, "ddim", 5, 80.0, (("eta", 1.0), ("grid", "log-snr")))
    assert ddim.text == "eta=1, grid=log-snr"

    def heun(top: float) -> list[measure.Setting]:
        return [measure.Setting(1.0, "heun", nfe, top) for nfe in (5, 7)]

    assert new["ve-baseline-0"] == new["edm-fdm-0"] == [*heun(20.0), *heun(100.0), ddim]
    assert new["edm-fdm-longer-0"] == new[EXACT] == [ddim]


# ------------------------------------------------------------------------------------------------- own pictures


def test_anyones_pictures_are_prepared_trained_on_and_scored(smoke, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.{('png', 'jpg')[number % 2]}")
    mine = {"name": "folder", "path": str(pictures), "conditional": False}
    profile = change(
        Path(smoke.params_file), dataset=mine, evaluation={"samples": 32}, training={"budget_kimg": 0.5, "batch": 16}
    )
    for stage in ("prepare", "reference"):
        assert main([stage, "--params", profile.params_file]) == 0
    assert runs.dataset_of(profile).shape == (3, 8, 8)
    losses, rows = runs.train(profile), runs.evaluate(profile)
    assert set(losses["run"]) == set(profile.trained)
    assert set(rows["run"]) == set(profile.runs)
    assert rows["value"].notna().all()
    assert set(rows["dataset"]) == {"folder"}
    for run in profile.runs.values():
        assert load_file(profile.recorded(run.cell) / "pictures.safetensors")["grid"].shape == (64, 3, 8, 8)
    assert {"ve-baseline-0", "edm-fdm-0", "edm-fdm-longer-0"} == set(profile.trained)
    assert {path.stem for path in (profile.results / "networks").iterdir()} == set(profile.trained)
    for name in profile.trained:
        kept = profile.results / "networks" / f"{name}.safetensors"
        assert kept.read_bytes() == (profile.checkpoints(name) / "100.safetensors").read_bytes()
        card = kept.with_suffix(".md").read_text()
        assert f"# {name}: " in card
        assert "on own images" in card
    # What is lost or damaged of the record is put there again, without measuring anything.
    before = {path: path.read_bytes() for path in profile.results.rglob("*") if path.is_file()}
    (profile.results / "networks" / "ve-baseline-0.safetensors").write_bytes(b"1")
    (profile.recorded("edm-fdm") / "pictures.safetensors").unlink()
    memories = {profile.scores(name): profile.scores(name).stat().st_mtime_ns for name in profile.runs}
    runs.evaluate(profile)
    assert {path: path.read_bytes() for path in profile.results.rglob("*") if path.is_file()} == before
    assert {path: path.stat().st_mtime_ns for path in memories} == memories


def test_pictures_are_kept_small(trained, digits, tmp_path):
    measure.pictures(trained, RUN, digits, tmp_path / "pictures.safetensors")
    kept = load_file(tmp_path / "pictures.safetensors")
    assert kept["grid"].shape == (64, 1, 8, 8)
    assert kept["grid"].dtype == torch.uint8
    assert len(kept["trajectory"]) == (trained.evaluation.primary[1] + 1) // 2 + 1
    assert kept["trajectory"][0].std() > 40  # starts as noise of the highest level


def test_the_wrong_checkpoint_and_damaged_references_are_refused(trained, digits):
    profile, folder, reference = trained, trained.checkpoints(RUN), trained.reference_file
    whole = reference.read_bytes()
    shutil.copytree(folder, profile.checkpoints("ve-baseline-0"))
    with pytest.raises(FdmError, match="is of another network"):
        evaluated(profile, digits, "ve-baseline-0")
    with pytest.raises(FdmError, match="was computed from other images or weights"):
        evaluated(profile, digits._replace(sha256="0"))
    reference.write_bytes(whole[:-10])
    with pytest.raises(FdmError, match="are damaged"):
        evaluated(profile, digits)
    reference.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])  # a bit of a feature
    with pytest.raises(FdmError, match=r"are damaged \(its content is not that of its checksum"):
        evaluated(profile, digits)
    reference.unlink()
    with pytest.raises(FdmError, match="are missing"):
        evaluated(profile, digits)
    reference.write_bytes(whole)
    (folder / "experiment.json").unlink()
    with pytest.raises(FdmError, match=r"experiment.json is missing or damaged; remove .*/edm-fdm-0 and run dvc"):
        evaluated(profile, digits)
    assert not profile.scores(RUN).exists()


def test_the_floor_is_real_against_other_real_images_at_the_same_n(smoke):
    everything = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    everything += torch.linspace(-2, 2, 400)[:, None]  # in an order, as data sets are
    floor = measure.calibrate(smoke, everything, {"weights": "0"}).set_index("metric")
    assert floor.loc["FD(EfficientNet-Lite0)", "n"] == smoke.evaluation.samples
    assert floor.loc["FD(EfficientNet-Lite0)", "n_reference"] == 200
    assert floor.loc["KID", "low"] < 0 < floor.loc["KID", "high"]  # equal distributions
    spread = floor.loc["KID", "high"] - floor.loc["KID", "low"]
    assert abs(floor.loc["KID", "value"]) < spread / 5  # 20 pairs: about three standard errors
    assert (floor["low"] <= floor["value"]).all()
    assert (floor["value"] <= floor["high"]).all()
    assert floor["experiment"].nunique() == 1
    (name,) = set(floor["experiment"])
    assert set(measure.calibrate(smoke, everything, {"weights": "1"})["experiment"]) != {name}
    fewer = change(Path(smoke.params_file), evaluation={"samples": 32})
    assert set(measure.calibrate(fewer, everything, {"weights": "0"})["experiment"]) != {name}
