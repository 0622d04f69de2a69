"""Metrics against other formulas, and what is measured and kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from safetensors.torch import load_file
from torch_fidelity import metric_fid

from fdm import checkpoints, evaluation, files, runs, sampling, training
from fdm.__main__ import main
from fdm.errors import FdmError

from .conftest import change

pytestmark = pytest.mark.slow


def test_the_frechet_distance_is_the_textbooks():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)), rng.normal(1, 2, size=(250, 12))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * np.real(root))
    assert evaluation.frechet_distance(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [60, 100, 101, 400])
def test_the_frechet_distance_is_torch_fidelitys_with_fewer_images_than_features_and_with_more(n):
    generator = torch.Generator().manual_seed(n)
    mixing = torch.randn(100, 100, generator=generator) * torch.logspace(0, -3, 100)
    generated, real = (torch.randn(m, 100, generator=generator) @ mixing.T + shift for m, shift in ((n, 0.1), (300, 0)))
    theirs = [metric_fid.fid_features_to_statistics(features.double()) for features in (generated, real)]
    expected = metric_fid.fid_statistics_to_metric(*theirs, verbose=False)[metric_fid.KEY_METRIC_FID]
    assert evaluation.frechet_distance(generated, real) == pytest.approx(expected, rel=1e-6)
    assert evaluation.frechet_distance(generated, evaluation.statistics(real)) == pytest.approx(expected, rel=1e-6)


def test_the_interval_of_a_frechet_distance_is_the_spread_over_other_images():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(2000, 6, generator=generator)
    sets = [1.3 * torch.randn(200, 6, generator=generator) + 0.3 for _ in range(60)]
    values = [evaluation.frechet_distance(generated, real) for generated in sets]
    covered, widths = 0, []
    for generated, value in zip(sets, values, strict=True):
        low, high = evaluation.interval(generated, real, value)
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
        value, low, high, n = evaluation.kid(torch.tensor(x), torch.tensor(y))
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
    assert evaluation.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert evaluation.precision_recall(x, x) == (1, 1)
    assert evaluation.precision_recall(x, x + 100) == (0, 0)


def test_precision_is_of_the_generated_and_recall_of_the_real_images():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(300, 2, generator=generator) * 3
    collapsed = torch.randn(300, 2, generator=generator) * 0.1
    precision, recall = evaluation.precision_recall(collapsed, real)
    assert precision > 0.9
    assert recall < 0.1


def test_the_extractor_takes_grey_and_coloured_images_alike_and_knows_its_weights():
    features, weights = evaluation.extractor("efficientnet-lite0")
    grey = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    out = features(grey)
    assert out.shape == (4, 320)
    torch.testing.assert_close(out, features(grey.expand(-1, 3, -1, -1).contiguous()), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out[:2], features(grey[:2]), atol=1e-4, rtol=1e-4)  # whatever the batch
    assert len(weights) == 12


def test_missing_inception_weights_say_what_to_download_and_where_to_put_it(study, monkeypatch):
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(evaluation, "create_feature_extractor", offline)
    evaluation.extractor.cache_clear()
    with pytest.raises(FdmError, match=r"download https.*weights-inception-2015-12-05.*pth and put it at .*downloads"):
        evaluation.extractor("inception-v3-compat")


RUN = "edm-fdm-0"


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def trained(smoke, digits, tmp_path, once):
    """The smoke profile with one trained run and reference features, and no memory of measurements yet."""
    training.train(smoke, RUN, digits, once / "checkpoints", once / "logs", once / "work")  # for the first test alone
    if not (once / "reference.safetensors").exists():
        evaluation.extractor.cache_clear()
        evaluation.make_reference(smoke, digits, once / "reference.safetensors")
    return smoke, RUN, digits, once / "checkpoints", once / "reference.safetensors", tmp_path / "scores.json"


@pytest.fixture
def sampled(monkeypatch):
    """The settings that samples are drawn for, as they are drawn."""
    real, settings = sampling.sample, []

    def sample(denoiser, seeds, sampler, nfe, *rest):
        settings.append((sampler, nfe))
        return real(denoiser, seeds, sampler, nfe, *rest)

    monkeypatch.setattr(sampling, "sample", sample)
    return settings


def test_an_evaluation_measures_every_setting_and_goes_on_after_a_kill(trained, monkeypatch):
    profile, memory = trained[0], trained[-1]
    told = []
    rows = evaluation.evaluate(*trained, advance=told.append)
    settings = evaluation.settings(profile, RUN)
    assert len(rows) == 4 * len(settings)
    assert set(rows["metric"]) == {"FD(EfficientNet-Lite0)", "KID", "precision", "recall"}
    assert rows["value"].notna().all()
    assert (rows["n"] == profile.evaluation.samples).all()
    assert rows["checkpoint"].nunique() == 4
    assert rows["checkpoint"].iloc[-1] == checkpoints.describe(trained[3] / "100.safetensors")["weights"][:12]
    assert rows["experiment"].nunique() == len(settings)
    interval = rows[rows["metric"].isin(["FD(EfficientNet-Lite0)", "KID"])]
    assert (interval["low"] < interval["high"]).all()
    assert (rows["sigma_max"] == 80).all()
    assert len(evaluation.remembered(memory)) == len(settings)
    assert sum(told) == sum(setting.nfe * setting.samples for setting in settings)
    memory.unlink()

    real, count = evaluation.score, iter(range(3))

    def score(*args):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation, "score", score)
        evaluation.evaluate(*trained)
    calls, again = [], []
    monkeypatch.setattr(evaluation, "score", lambda *args: calls.append(1) or real(*args))
    assert evaluation.evaluate(*trained, advance=again.append).to_csv() == rows.to_csv()
    assert len(calls) == len(settings) - 3  # three were kept
    assert sum(again) == sum(told)
    monkeypatch.setattr(evaluation.compute, "launch", None)  # and now all are
    assert evaluation.evaluate(*trained).to_csv() == rows.to_csv()


def test_a_remembered_measurement_that_was_altered_is_measured_again(trained, sampled):
    profile, memory = trained[0], trained[-1]
    rows = evaluation.evaluate(*trained)
    whole = memory.read_text()
    every, batches = len(evaluation.settings(profile, RUN)), profile.evaluation.samples // profile.evaluation.batch
    remembered = json.loads(whole)
    key = list(remembered)[1]
    remembered[key]["rows"][2]["value"] += 1e-9
    number = json.dumps(remembered)
    remembered = json.loads(whole)
    remembered[key] = "nothing"
    for content, settings in ((number, 1), (json.dumps(remembered), 1), (whole[:-9], every), ("[]", every)):
        memory.write_text(content)
        sampled.clear()
        assert evaluation.evaluate(*trained).to_csv() == rows.to_csv()
        assert len(sampled) == settings * batches
        assert json.loads(memory.read_text()) == json.loads(whole)


def test_one_more_number_of_evaluations_is_measured_alone(trained, sampled):
    profile, *rest = trained
    rows = evaluation.evaluate(profile, *rest)
    sampled.clear()
    profile = change(Path(profile.params_file), evaluation={"nfe": [5, 7, 11]})
    more = evaluation.evaluate(profile, *rest)
    assert set(sampled) == {("heun", 7), ("dpm-solver++", 7)}
    assert len(more) == len(rows) + 2 * 4
    assert more[more["nfe"] != 7].to_csv(index=False) == rows.to_csv(index=False)
    sampled.clear()
    fewer = change(Path(profile.params_file), evaluation={"nfe": [5]})
    assert set(evaluation.evaluate(fewer, *rest)["nfe"]) == {5}
    assert sampled == []


def test_other_weights_are_measured_again_and_another_training_has_another_name(trained, sampled, tmp_path):
    profile, _, _, folder, *_ = trained
    rows = evaluation.evaluate(*trained).set_index(["duration", "sampler", "nfe", "metric"])
    mine = tmp_path / "checkpoints"
    mine.mkdir()
    for path in folder.iterdir():
        (mine / path.name).write_bytes(path.read_bytes())
    denoiser, description = checkpoints.load(mine / "050.safetensors")
    for parameter in denoiser.parameters():
        parameter.mul_(0.99)
    checkpoints.save(mine / "050.safetensors", denoiser, description)  # as another machine may have trained it
    sampled.clear()
    other = evaluation.evaluate(*trained[:3], mine, *trained[4:]).set_index(rows.index.names)
    assert len(sampled) == profile.evaluation.samples // profile.evaluation.batch
    assert (other["experiment"] == rows["experiment"]).all()
    differs = other["checkpoint"] != rows["checkpoint"]
    assert set(differs[differs].index.get_level_values("duration")) == {0.5}
    assert (other["value"] != rows["value"])[differs].any()
    assert (other["value"] == rows["value"])[~differs].all()
    files.write_json(mine / "experiment.json", {"run": RUN, "experiment": "another"})
    names = evaluation.evaluate(*trained[:3], mine, *trained[4:])["experiment"]
    assert not set(names) & set(rows["experiment"])


def test_the_measurements_do_not_depend_on_the_number_of_processes(trained):
    profile, *rest = trained
    shared = change(Path(profile.params_file), evaluation={"processes": 3, "batch": 16})
    one = change(Path(profile.params_file), evaluation={"processes": 1})
    rows = evaluation.evaluate(shared, *rest)
    rest[-1].unlink()
    assert evaluation.evaluate(one, *rest).to_csv() == rows.to_csv()


def test_anyones_pictures_are_prepared_trained_on_and_scored(smoke, tmp_path, monkeypatch):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.{('png', 'jpg')[number % 2]}")
    mine = {"name": "folder", "path": str(pictures), "conditional": False}
    profile = change(Path(smoke.params_file), dataset=mine, evaluation={"samples": 32}, training={"budget_kimg": 0.5})
    for stage in ("prepare", "reference"):
        assert main([stage, "--params", profile.params_file]) == 0
    assert runs.dataset_of(profile).shape == (3, 8, 8)
    losses, rows = runs.train(profile), runs.evaluate(profile)
    for table in (losses, rows):
        assert set(table["run"]) == set(profile.runs)
    assert rows["value"].notna().all()
    assert set(rows["dataset"]) == {"folder"}
    for name in profile.runs:
        kept = profile.results / "networks" / f"{name}.safetensors"
        assert kept.read_bytes() == (runs.checkpoints_of(profile, name) / "100.safetensors").read_bytes()
        card = kept.with_suffix(".md").read_text()
        assert f"# {name}: " in card
        assert "on own images" in card
        assert load_file(profile.results / "runs" / name / "pictures.safetensors")["grid"].shape == (64, 3, 8, 8)
    # What is lost or damaged of the record is put there again.
    before = {path: path.read_bytes() for path in profile.results.rglob("*") if path.is_file()}
    (profile.results / "networks" / "ve-baseline-0.safetensors").write_bytes(b"1")
    (profile.results / "runs" / "edm-fdm-0" / "pictures.safetensors").unlink()
    monkeypatch.setattr(evaluation.compute, "launch", None)  # without measuring anything
    runs.evaluate(profile)
    assert {path: path.read_bytes() for path in profile.results.rglob("*") if path.is_file()} == before


def test_pictures_are_kept_small(trained, tmp_path):
    profile, _, _, folder, _, _ = trained
    evaluation.pictures(profile, folder, tmp_path / "pictures.safetensors")
    kept = load_file(tmp_path / "pictures.safetensors")
    assert kept["grid"].shape == (64, 1, 8, 8)
    assert kept["grid"].dtype == torch.uint8
    assert len(kept["trajectory"]) == (profile.evaluation.duration_nfe + 1) // 2 + 1
    assert kept["trajectory"][0].std() > 40  # starts as noise of the highest level


def test_the_wrong_checkpoint_and_damaged_references_are_refused(trained, tmp_path):
    profile, run, dataset, folder, whole, memory = trained
    reference, mine = tmp_path / "reference.safetensors", tmp_path / "checkpoints"
    reference.write_bytes(whole.read_bytes())
    with pytest.raises(FdmError, match="is of another network"):
        evaluation.evaluate(profile, "ve-baseline-0", dataset, folder, reference, memory)
    with pytest.raises(FdmError, match="was computed from other images or weights"):
        evaluation.evaluate(profile, run, dataset._replace(sha256="0"), folder, reference, memory)
    reference.write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(FdmError, match="are damaged"):
        evaluation.evaluate(profile, run, dataset, folder, reference, memory)
    reference.unlink()
    with pytest.raises(FdmError, match="are missing"):
        evaluation.evaluate(profile, run, dataset, folder, reference, memory)
    mine.mkdir()
    for path in folder.glob("*.safetensors"):
        (mine / path.name).write_bytes(path.read_bytes())
    with pytest.raises(FdmError, match=r"experiment.json is missing or damaged; remove .*/checkpoints and run dvc"):
        evaluation.evaluate(profile, run, dataset, mine, whole, memory)
    assert not memory.exists()


def test_the_floor_is_real_against_other_real_images_at_the_same_n(smoke):
    everything = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    everything += torch.linspace(-2, 2, 400)[:, None]  # in an order, as data sets are
    floor = evaluation.calibrate(smoke, everything, {"weights": "0"}).set_index("metric")
    assert floor.loc["FD(EfficientNet-Lite0)", "n"] == smoke.evaluation.samples
    assert floor.loc["FD(EfficientNet-Lite0)", "n_reference"] == 200
    assert floor.loc["KID", "low"] < 0 < floor.loc["KID", "high"]  # equal distributions
    spread = floor.loc["KID", "high"] - floor.loc["KID", "low"]
    assert abs(floor.loc["KID", "value"]) < spread / 5  # 20 pairs: about three standard errors
    assert (floor["low"] <= floor["value"]).all()
    assert (floor["value"] <= floor["high"]).all()
    assert floor["experiment"].nunique() == 1
    (name,) = set(floor["experiment"])
    assert set(evaluation.calibrate(smoke, everything, {"weights": "1"})["experiment"]) != {name}
    fewer = change(Path(smoke.params_file), evaluation={"samples": 32})
    assert set(evaluation.calibrate(fewer, everything, {"weights": "0"})["experiment"]) != {name}
