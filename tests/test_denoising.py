"""The denoising error by noise level, and what a denoiser sees: against exact denoisers."""

import math

import pytest
import torch
from sklearn.datasets import load_digits

from fdm.data.gaussians import class_gaussians
from fdm.files import root
from fdm.model import checkpoints
from fdm.model.oracle import Mixture
from fdm.tasks import denoising


@pytest.fixture(scope="module")
def known():
    """A mixture of Gaussians of low rank fitted to the digits, with images drawn from it and their classes."""
    bunch = load_digits()
    images, labels = torch.tensor(bunch.images / 8 - 1)[:, None], torch.tensor(bunch.target)
    mixture = class_gaussians(images, labels, components=2, rank=6)
    drawn, components = mixture.draw_labelled(3000, torch.Generator().manual_seed(0))
    return mixture, drawn, mixture.labels[components]


def test_the_fitted_mixture_has_the_mean_and_the_variance_of_the_images(known):
    mixture, drawn, labels = known
    images = torch.tensor(load_digits().images / 8 - 1)
    assert mixture.classes == 10 and mixture.shape == (1, 8, 8)
    assert torch.allclose(drawn.mean(0)[0], images.mean(0), atol=0.08)
    assert drawn.var().item() == pytest.approx(images.var().item(), rel=0.03)
    for label in (0, 3, 7):
        of_class = images[torch.tensor(load_digits().target) == label]
        assert torch.allclose(drawn[labels == label].mean(0)[0], of_class.mean(0), atol=0.2)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_the_exact_denoiser_of_low_rank_is_that_of_the_full_covariances(known, sigma):
    mixture, drawn, _ = known
    noise = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = drawn[:20] + sigma * noise
    logs, each = [], []
    identity = torch.eye(64, dtype=torch.float64)
    for k in range(len(mixture.weights)):
        own = mixture.deviations[k] ** 2 * identity
        own = own + mixture.axes[k].T @ torch.diag(mixture.spreads[k] ** 2) @ mixture.axes[k]
        noisy, centred = own + sigma**2 * identity, (x - mixture.means[k]).flatten(1)
        solved = torch.linalg.solve(noisy, centred.T).T
        logs.append(mixture.weights[k].log() - torch.logdet(noisy) / 2 - (centred * solved).sum(1) / 2)
        each.append(mixture.means[k].flatten() + solved @ own)
    D = torch.einsum("kn,knd->nd", torch.stack(logs).softmax(0), torch.stack(each))
    exact = mixture(x, torch.tensor(sigma, dtype=torch.float64)).flatten(1)
    torch.testing.assert_close(exact, D, rtol=0, atol=1e-7)


def test_no_denoiser_errs_less_than_the_exact_one_and_the_excess_is_the_difference(known):
    mixture, drawn, labels = known
    sigmas = denoising.levels(5, 0.1, 3.0)
    other = class_gaussians(drawn[:1000], labels[:1000], components=1, rank=4)
    drawn, labels = drawn[1000:], labels[1000:]  # which the other has not seen
    best, worse = (denoising.squared_errors(D, drawn, labels, sigmas) for D in (mixture, other))
    excess = denoising.squared_errors(other, drawn, labels, sigmas, exact=mixture)
    assert (best.mean(1) < worse.mean(1)).all()
    error = (worse - best).std(dim=1) / math.sqrt(len(drawn))
    assert ((worse - best).mean(1) - excess.mean(1)).abs().le(4 * error).all()
    assert denoising.squared_errors(mixture, drawn[:50], labels[:50], sigmas, exact=mixture).abs().max() == 0


def test_the_error_of_the_exact_denoiser_is_the_variance_that_is_left():
    mixture = Mixture.reference()
    images = mixture.draw(20_000, torch.Generator().manual_seed(2))
    sigmas = torch.tensor([0.3, 2.0], dtype=torch.float64)
    errors = denoising.squared_errors(mixture, images, torch.zeros(len(images), dtype=torch.int64), sigmas)
    for sigma, found in zip(sigmas, errors, strict=True):
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        left = mixture.cumulants(images + sigma * noise, sigma)[1]
        assert found.mean().item() == pytest.approx(left.mean().item(), rel=0.04)


def test_errors_do_not_depend_on_the_batch_and_are_paired_between_denoisers(known):
    mixture, drawn, labels = known
    sigmas = denoising.levels(3)
    whole = denoising.squared_errors(mixture, drawn[:40], labels[:40], sigmas)
    parts = denoising.squared_errors(mixture, drawn[:40], labels[:40], sigmas, batch=7)
    torch.testing.assert_close(whole, parts, rtol=1e-10, atol=1e-14)
    assert whole.shape == (3, 40)


class Blind:
    """A denoiser that sees the direction of x and not its length: it takes away noise of level sigma, whatever x is."""

    shape, classes, sigma_range, condition = (1, 8, 8), 0, (0.0, math.inf), None

    def __call__(self, x, sigma, class_labels=None):
        return x - sigma * x / x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


def test_the_radius_slope_tells_a_denoiser_that_sees_how_long_x_is_from_one_that_does_not(known):
    assert denoising.radius_slope(known[0], range(20), 80.0) == pytest.approx(1, abs=0.01)
    assert denoising.radius_slope(Blind(), range(20), 80.0) == pytest.approx(0, abs=1e-6)


def test_what_trained_networks_see_is_what_their_input_scaling_leaves():
    """EDM divides by the input's standard deviation; FDM's c_in is 1 up to noise levels of several units."""
    images = torch.tensor(load_digits().images / 8 - 1)[:200, None]
    sigmas = torch.tensor([0.1, 5.0], dtype=torch.float64)
    folder = root() / "results" / "digits" / "networks"
    edm, fdm = (checkpoints.load(folder / f"{name}.safetensors")[0] for name in ("edm-baseline-0", "edm-fdm-0"))
    size = (sigmas**2 + images.square().mean()).sqrt()
    torch.testing.assert_close(denoising.input_deviation(edm, images, sigmas), size / (sigmas**2 + 0.25).sqrt())
    ratio = denoising.input_deviation(fdm, images, sigmas) / size
    assert ratio[0].item() == pytest.approx(1, abs=1e-4) and ratio[1].item() == pytest.approx(0.99, abs=0.01)
