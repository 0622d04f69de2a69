"""What is held out of training, and the distribution that is known: draws of it without end."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from fdm.data import archives, datasets, gaussians, sources
from fdm.files import sha256
from fdm.params import DatasetParams
from fdm.study import profiles, runs
from fdm.training import loop

from .conftest import change

KNOWN = gaussians.known(8)


def prepared(out: Path, name: str, resolution: int = 8, **options):
    return sources.prepare(DatasetParams(name=name, resolution=resolution, conditional=False, **options), out)


def rows(images):
    """Each image as its bytes."""
    return [image.numpy().tobytes() for image in images]


# ------------------------------------------------------------------------------------------------------ held out


def assert_disjoint_and_whole(dataset, images, labels):
    """Each image is either trained on or held out, in the order of all; a tenth is held out."""
    every, held = rows(torch.from_numpy(images)), len(images) // 10
    assert (len(dataset.images), len(dataset.held)) == (len(images) - held, held)
    assert len(set(every)) == len(every)  # so that an image tells its place
    place = {content: number for number, content in enumerate(every)}
    for part, classes in ((dataset.images, dataset.labels), (dataset.held, dataset.held_labels)):
        places = [place[content] for content in rows(part)]
        assert places == sorted(places)
        np.testing.assert_array_equal(classes, labels[places])
    assert {place[content] for content in rows(dataset.held)}.isdisjoint(map(place.get, rows(dataset.images)))
    assert dataset.classes == labels.max() + 1


def test_no_digit_that_is_trained_on_is_held_out(digits):
    images, labels = sources.SOURCES["digits"].images(DatasetParams(name="digits", resolution=8, conditional=True))
    assert_disjoint_and_whole(digits, images, labels)
    assert set(digits.held_labels.tolist()) == set(range(10))
    place = {content: number for number, content in enumerate(rows(torch.from_numpy(images)))}
    thirds = [3 * place[content] // len(images) for content in rows(digits.held)]
    assert np.bincount(thirds).min() > 40  # from everywhere, as the digits are in the order of who wrote them


def test_no_picture_of_a_folder_that_is_trained_on_is_held_out(study):
    rng = np.random.default_rng(0)
    for number in range(45):
        path = Path("mine") / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path)
    images, labels = archives.folder(DatasetParams(name="folder", resolution=8, conditional=False, path="mine"))
    dataset = prepared(Path("dataset.safetensors"), "folder", path="mine")
    assert_disjoint_and_whole(dataset, images, labels)
    assert len(dataset.held) == 4


def test_of_many_images_a_thousand_are_held_out(study, monkeypatch):
    numbers = np.arange(12_000)
    pairs = np.stack([numbers // 100, numbers % 100], axis=1).astype(np.uint8)
    images = np.tile(pairs.reshape(-1, 1, 1, 2), (1, 1, 8, 4))
    many = sources.SOURCES["folder"]._replace(images=lambda params: (images, numbers % 3))
    monkeypatch.setitem(sources.SOURCES, "folder", many)
    dataset = prepared(Path("dataset.safetensors"), "folder", path="mine")
    assert (len(dataset.images), len(dataset.held)) == (11_000, 1_000)
    assert not set(rows(dataset.images)) & set(rows(dataset.held))


# ------------------------------------------------------------------------------------- the known distribution


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_the_axes_of_the_known_distribution_are_orthonormal(resolution):
    known = gaussians.known(resolution)
    assert known.shape == (1, resolution, resolution)
    assert known.classes == 10
    assert float(known.weights.sum()) == pytest.approx(1)
    used = known.spreads > 0
    products = known.axes @ known.axes.mT
    both = used[:, :, None] & used[:, None, :]
    expected = torch.eye(products.shape[1], dtype=torch.float64).expand_as(products)
    torch.testing.assert_close(products[both], expected[both], rtol=0, atol=1e-9)
    assert used.sum(1).min() >= 10


@pytest.mark.parametrize("resolution", [16, 32])
def test_enlarged_a_component_is_the_small_one_with_its_pixels_repeated(resolution):
    """Along its axes it spreads the same images; evenly it spreads each pixel as before."""
    large, times = gaussians.known(resolution), resolution // 8
    np.testing.assert_allclose(large.means[:, 0], np.kron(KNOWN.means[:, 0], np.ones((times, times))))
    moved = (KNOWN.spreads[..., None] * KNOWN.axes).reshape(*KNOWN.axes.shape[:2], 8, 8)
    enlarged = (large.spreads[..., None] * large.axes).reshape(*KNOWN.axes.shape[:2], resolution, resolution)
    np.testing.assert_allclose(enlarged, np.kron(moved, np.ones((times, times))), atol=1e-12)
    assert torch.equal(large.deviations, KNOWN.deviations)
    assert torch.equal(large.weights, KNOWN.weights)
    assert torch.equal(large.labels, KNOWN.labels)


def moments_of(mixture):
    """Mean (d,) and covariance (d, d) of a mixture, by the law of total variance."""
    means = mixture.means.flatten(1)
    mean = mixture.weights @ means
    within = torch.einsum("k,kr,krd,kre->de", mixture.weights, mixture.spreads**2, mixture.axes, mixture.axes)
    within = within + (mixture.weights @ mixture.deviations**2) * torch.eye(means.shape[1], dtype=torch.float64)
    return mean, within + (mixture.weights[:, None] * (means - mean)).T @ (means - mean)


@pytest.mark.parametrize("resolution", [8, 16])
def test_draws_have_the_mean_and_the_covariance_of_the_distribution(resolution):
    known, n = gaussians.known(resolution), 20_000
    drawn = known.draw(n, torch.Generator().manual_seed(3)).flatten(1)
    mean, covariance = moments_of(known)
    standard = covariance.diagonal().sqrt() / n**0.5
    assert ((drawn.mean(0) - mean) / standard).abs().max() < 5  # of 256 at most
    found = torch.cov(drawn.T)
    assert (found - covariance).norm() < 0.04 * covariance.norm()
    assert float(found.trace()) == pytest.approx(float(covariance.trace()), rel=0.01)


def test_draws_are_of_the_classes_that_are_told():
    images, components = KNOWN.draw_labelled(4000, torch.Generator().manual_seed(4))
    classes = KNOWN.labels[components]
    for label in range(10):
        mine = KNOWN.labels == label
        mean = (KNOWN.weights[mine, None] * KNOWN.means[mine].flatten(1)).sum(0) / KNOWN.weights[mine].sum()
        drawn = images[classes == label].flatten(1)
        assert (drawn.mean(0) - mean).abs().max() < 5 * drawn.std(0).max() / len(drawn) ** 0.5


def test_the_known_distribution_is_the_one_that_is_fitted_to_all_digits():
    """As a distribution, as k-means may end a little elsewhere on another machine."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 8 - 1)[:, None]  # in their 17 shades
    fitted = gaussians.class_gaussians(images, torch.from_numpy(bunch.target))
    assert len(fitted.weights) == len(KNOWN.weights) == 30
    for new, kept, tolerance in zip(moments_of(fitted), moments_of(KNOWN), (1e-6, 0.02), strict=True):
        assert (new - kept).norm() < tolerance * kept.norm()
    # The mean is that of the images, whatever the components, and so is the whole variance.
    mean, covariance = moments_of(KNOWN)
    torch.testing.assert_close(mean, images.flatten(1).mean(0), rtol=0, atol=1e-6)
    assert float(covariance.trace()) == pytest.approx(float(images.flatten(1).var(0).sum()), rel=0.01)
    for label in range(10):
        shares = [float(each.weights[each.labels == label].sum()) for each in (fitted, KNOWN)]
        assert shares[0] == pytest.approx(shares[1], abs=1e-12) == pytest.approx((bunch.target == label).mean())


@pytest.mark.parametrize("resolution", [8, 16])
def test_the_data_set_of_the_known_distribution_is_written_twice_alike_and_read_back(tmp_path, resolution):
    first, second = (prepared(tmp_path / name, "exact-gaussians", resolution) for name in ("a", "b"))
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")
    assert first.sha256 == second.sha256
    assert first.images.shape == (10_000, 1, resolution, resolution)
    assert first.images.dtype == torch.uint8
    assert first.held.shape == (1000, 1, resolution, resolution)
    assert first.held.dtype == torch.float32
    assert torch.equal(datasets.to_float(first.held), first.held)
    assert torch.equal((first.held * 4096).round(), first.held * 4096)
    known = gaussians.known(resolution)
    assert first.mixture.classes == 10
    x = first.held[:5] + 0.3
    assert torch.equal(first.mixture(x, torch.tensor(0.3)), known(x, torch.tensor(0.3)))
    assert not set(rows(datasets.to_uint8(first.held))) & set(rows(first.images))


def test_a_data_set_of_images_alone_has_no_mixture(digits):
    assert digits.mixture is None


# ------------------------------------------------------------------------------------------------- fresh draws


def test_fresh_draws_are_of_their_seed_alone(tmp_path):
    dataset = prepared(tmp_path / "a", "exact-gaussians")
    images, classes = dataset.fresh(50, 7)
    again = dataset.fresh(50, 7)
    assert images.dtype == torch.float32
    assert torch.equal(images, again[0]) and torch.equal(classes, again[1])
    other = dataset.fresh(50, 8)[0]
    assert not set(rows(images)) & set(rows(other))
    mean, _ = moments_of(KNOWN)
    many = dataset.fresh(5000, 9)[0].flatten(1).double()
    assert (many.mean(0) - mean).norm() < 0.1


def exact_profile(smoke, **training):
    """A short training on fresh draws of the known distribution, without dropout, whose masks depend on the process."""
    short = {"budget_kimg": 0.768, "batch": 32, "augment": 0.0, "log_kimg": 0.064, "state_kimg": 0.32}
    dataset = {"name": "exact-gaussians"}
    return change(Path(smoke.params_file), training=short | training, network={"dropout": 0.0}, dataset=dataset)


@pytest.fixture
def taken(monkeypatch):
    """The images that a training in this process takes, step by step."""
    real, steps = loop._taken, []

    def watched(dataset, order, first, count, seed):
        take, parts = real(dataset, order, first, count, seed), []
        steps.append(parts)

        def told(part):
            images, classes = take(part)
            parts.append(images)
            return images, classes

        return told

    monkeypatch.setattr(loop, "_taken", watched)
    return steps


def trained(profile, dataset, out: Path, name="edm-fdm-0"):
    return loop.train(
        runs.training_of(profile, name, dataset), dataset, out / "checkpoints", out / "logs", out / "work",
        advance=lambda n: None,
    )  # fmt: skip


@pytest.mark.slow
def test_training_on_the_known_distribution_repeats_no_image_and_takes_none_of_the_set(smoke, tmp_path, taken):
    profile = exact_profile(smoke, accumulation=2)
    dataset = sources.prepare(profile.dataset, tmp_path / "dataset.safetensors")
    trained(profile, dataset, tmp_path)
    assert [len(parts) for parts in taken] == [2] * 24
    images = rows(torch.cat([part for parts in taken for part in parts]))
    assert len(set(images)) == len(images) == 768
    assert not set(images) & {*rows(dataset.held), *rows(datasets.to_float(dataset.images))}
    once = [torch.cat(parts) for parts in taken]
    taken.clear()
    whole = exact_profile(smoke, accumulation=1)
    trained(whole, dataset, tmp_path / "whole")
    for parts, before in zip(taken, once, strict=True):
        torch.testing.assert_close(torch.cat(parts), before, rtol=0, atol=0)  # however a batch is shared out


@pytest.mark.slow
@pytest.mark.weekly
def test_training_on_the_known_distribution_does_not_depend_on_the_number_of_processes(smoke, tmp_path):
    losses = []
    for processes in (1, 2):
        profile = exact_profile(smoke, processes=processes)
        dataset = sources.prepare(profile.dataset, tmp_path / "dataset.safetensors")
        told = trained(profile, dataset, tmp_path / str(processes))
        losses.append([row["loss"] for row in told["history"]])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert len(set(losses[0])) == len(losses[0])


def test_the_study_has_a_profile_of_the_known_distribution_at_each_resolution():
    for name, resolution in (("exact", 8), ("exact-16", 16), ("exact-32", 32)):
        profile = profiles.find(name)
        assert (profile.dataset.name, profile.dataset.resolution) == ("exact-gaussians", resolution)
        assert profile.training.augment == 0  # a transformed draw is none of the distribution
