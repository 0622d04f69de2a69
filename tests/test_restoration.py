"""Inverse problems: what is measured, CCDF, the domain shift and its solvers, deepinv's samplers, own pictures."""

import itertools
import math
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import fdm
from fdm.__main__ import main
from fdm.data import sources
from fdm.data.datasets import to_float
from fdm.files import FdmError
from fdm.model import checkpoints
from fdm.model.conditional import ConditionalDenoiser
from fdm.model.denoiser import Denoiser
from fdm.model.oracle import Mixture
from fdm.model.unet import UNet
from fdm.params import GivenParams
from fdm.process import shift
from fdm.samplers import SAMPLERS
from fdm.samplers.er_sde import _more, er_sde
from fdm.samplers.grids import Karras
from fdm.study import agreement, profiles, restoration, restoration_plates, restored, runs
from fdm.tasks import physics
from fdm.tasks.restoration import ccdf, dossr, posterior
from fdm.tasks.restoration.methods import RESTORERS, possible
from fdm.training import loop
from fdm.training.objectives import conditional, denoising

from .conftest import ORACLES, ROOT, change
from .test_errors import as_trained

SHAPE = (1, 16, 16)


class Levels:
    """A grid of levels that are given."""

    def __init__(self, levels):
        self.sigmas = torch.as_tensor(levels, dtype=torch.float64)
        self.high = float(self.sigmas[0])

    def levels(self, steps):
        return self.sigmas


def normals(n, shape=(1, 1, 1)):
    """Unit noise by step, for any number of it."""

    def noise(step):
        generator = torch.Generator().manual_seed(1000 + step % 100_003)
        return torch.randn(n, *shape, generator=generator, dtype=torch.float64)

    return noise


def images(n=3, shape=SHAPE, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ------------------------------------------------------------------------------------------------ measurements


@pytest.mark.parametrize("task", physics.TASKS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 16, 16), (3, 16, 16)])
def test_what_is_measured_is_an_orthogonal_projection(task, shape):
    x, z = images(2, shape).double(), images(2, shape, 1).double()
    measurement = physics.measure(task, x, 0.0, range(2))
    project = measurement.project
    torch.testing.assert_close(project(project(z)), project(z), atol=1e-12, rtol=0)
    torch.testing.assert_close((project(z) * x).sum(), (z * project(x)).sum(), atol=1e-10, rtol=0)
    torch.testing.assert_close(measurement.estimate, project(x), atol=1e-12, rtol=0)
    assert project(z).norm() <= z.norm()
    v = z  # the largest singular value, by power iteration
    for _ in range(30):
        v = project(v) / project(v).norm()
    assert project(v).norm() == pytest.approx(1, abs=1e-9)
    assert measurement.residual(x).max() < 1e-12 < measurement.residual(z).min()


@pytest.mark.parametrize("task", physics.TASKS)
def test_the_pseudo_inverse_is_that_of_deepinv(task):
    measurement = physics.measure(task, images(), 0.1, range(3))
    torch.testing.assert_close(measurement.physics.A_dagger(measurement.y), measurement.estimate, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("task", "factor"), [("sr2", 2), ("sr4", 4)])
def test_super_resolution_measures_means_of_blocks(task, factor):
    x = images().double()
    measurement = physics.measure(task, x, 0.0, range(3))
    torch.testing.assert_close(measurement.y, torch.nn.functional.avg_pool2d(x, factor))
    spread = measurement.y.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    torch.testing.assert_close(measurement.estimate, spread)


@pytest.mark.parametrize("task", physics.TASKS)
def test_masks_and_noise_are_of_each_image_alone(task):
    x = images(4)
    both = physics.measure(task, x, 0.1, range(10, 14))
    one = physics.measure(task, x[2:3], 0.1, range(12, 13))
    torch.testing.assert_close(both.estimate[2:3], one.estimate, atol=1e-12, rtol=0)
    other = physics.measure(task, x[2:3], 0.1, range(13, 14))
    assert not torch.equal(other.estimate, one.estimate)


@pytest.mark.parametrize(("task", "share"), [("box", 0.75), ("random", 0.25), ("fourier", 5 / 16)])
def test_how_much_is_measured(task, share):
    measurement = physics.measure(task, torch.zeros(200, *SHAPE), 0.1, range(200))
    power = measurement.estimate.square().mean() / 0.1**2  # of noise, which is where something is measured
    assert float(power) == pytest.approx(share, rel=0.05)
    assert measurement.level == 0.1


@pytest.mark.parametrize("task", ["sr2", "sr4"])
def test_the_noise_of_a_block_is_that_of_its_mean(task):
    measurement = physics.measure(task, torch.zeros(300, *SHAPE), 0.1, range(300))
    assert float(measurement.y.std()) == pytest.approx(0.1, rel=0.05)
    projected = measurement.project(
        measurement.level * torch.randn(300, *SHAPE, generator=torch.Generator().manual_seed(1)).double()
    )
    assert float(projected.std()) == pytest.approx(float(measurement.estimate.std()), rel=0.05)


# --------------------------------------------------------------------------------------------------------- CCDF


def correlated() -> Mixture:
    """Two pixels of variance 1 and correlation 0.8."""
    a = math.sqrt(0.5)
    axes, spreads = torch.tensor([[[a, a], [a, -a]]]), torch.tensor([[1.8, 0.2]]).sqrt()
    return Mixture(torch.ones(1), torch.zeros(1, 1, 1, 2), torch.zeros(1), axes=axes, spreads=spreads)


def first_known(n, known, other):
    """The first pixel measured without noise, and a start for the other."""
    from deepinv.physics import Inpainting

    A = Inpainting((1, 1, 2), mask=torch.tensor([[[1.0, 0.0]]], dtype=torch.float64))
    y = torch.tensor([known, 0.0], dtype=torch.float64).expand(n, 1, 1, 2)
    return physics.Measurement(A, 1.0, y, 0.0), torch.tensor([known, other], dtype=torch.float64).expand(n, 1, 1, 2)


@pytest.mark.parametrize(
    ("sigma_0", "mean", "deviation", "left"),
    [(0.05, -1.98, 0.069, 0.993), (0.2, -1.71, 0.255, 0.903), (0.5, -0.90, 0.485, 0.626), (1, -0.11, 0.620, 0.331),
     (2, 0.375, 0.669, 0.123), (5, 0.584, 0.675, 0.0235), (20, 0.624, 0.671, 0.0015)],
)  # fmt: skip
def test_ccdf_forgets_its_start_and_tends_to_what_projections_tend_to(sigma_0, mean, deviation, left):
    """The posterior has mean 1.04 and deviation 0.60; putting back what was measured does not reach it."""
    n, ends = 20_000, []
    levels = [*np.geomspace(sigma_0, 0.01, 61), 0.0]
    z = torch.randn(n, 1, 1, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for start in (-2.0, 2.0):
        measurement, estimate = first_known(n, 1.3, start)
        x = estimate + sigma_0 * z
        *_, x = ccdf.walk(
            correlated(), SAMPLERS["ddim"], x, measurement, Levels(levels), 61, normals(n, (1, 1, 2)), eta=1.0
        )
        assert (x[..., 0] == 1.3).all(), "known pixels are as they were measured"
        ends.append(x[..., 1])
    assert float(ends[0].mean()) == pytest.approx(mean, abs=0.02)
    assert float(ends[0].std()) == pytest.approx(deviation, abs=0.01)
    assert float((ends[1] - ends[0]).mean()) / 4 == pytest.approx(left, abs=2e-3)


WALKED = [
    name
    for name in SAMPLERS
    if any(possible("ccdf", nfe, {"sampler": name}) for nfe in (8, 9)) and name not in ("gms", "siddm")
]


@pytest.mark.parametrize("name", WALKED)
def test_ccdf_without_data_is_its_sampler_to_the_bit_and_with_data_ends_at_it(name):
    entry, D = SAMPLERS[name], Mixture.reference()
    nfe = next(nfe for nfe in (8, 9) if possible("ccdf", nfe, {"sampler": name}))
    D = Mixture(D.weights, D.means.expand(3, 1, 4, 4), D.deviations)
    measurement = physics.measure("random", images(3, (1, 4, 4)), 0.0, range(3))
    x, grid, noise = 80 * images(3, (1, 4, 4), 7).double(), Karras(0.002, 80.0, True), normals(3, (1, 4, 4))
    steps = entry.steps(nfe, True)
    plain = [each.clone() for each in entry.sample(D, x.clone(), grid, steps, noise)]
    walked = [each.clone() for each in ccdf.walk(D, entry, x.clone(), measurement, grid, steps, noise, "none")]
    assert len(plain) == len(walked) and all(map(torch.equal, plain, walked))
    *_, end = ccdf.walk(D, entry, x.clone(), measurement, grid, steps, noise)
    assert torch.equal(measurement.project(end), measurement.estimate)
    others = end - measurement.project(end)
    assert not torch.equal(others, plain[-1] - measurement.project(plain[-1])), "and goes on from what was put back"


def test_a_measurement_whose_noise_is_known_is_put_back_with_the_noise_that_it_lacks():
    measurement = physics.measure("sr4", images(), 0.1, range(3))
    grid, steps = Karras(0.002, 5.0, True), 12
    levels = grid.levels(steps).tolist()
    put, drawn = [], dict[int, torch.Tensor]()

    def noise(step):
        drawn[step] = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(step % 1000), dtype=torch.float64)
        return drawn[step]

    D = Mixture(torch.ones(1), torch.zeros(1, *SHAPE), torch.ones(1))
    for each in ccdf.walk(D, SAMPLERS["ddim"], 5 * images().double(), measurement, grid, steps, noise, "known noise"):
        put.append(each.clone())
    for i, level in enumerate(levels[1:], 1):
        if level >= measurement.level:
            due = measurement.estimate + math.sqrt(level**2 - measurement.level**2) * measurement.project(
                drawn[ccdf.APART + i]
            )
            torch.testing.assert_close(measurement.project(put[i]), due, atol=1e-12, rtol=0)
        else:
            assert ccdf.APART + i not in drawn
            assert not torch.allclose(measurement.project(put[i]), measurement.estimate)


def test_the_contraction_is_the_slope_of_a_step_and_fails_between_modes():
    """r + (1 - r) dD/dx for ancestral steps: smaller than 1 for a Gaussian, above it between the modes of a mixture."""
    gaussian = Mixture(torch.ones(1), torch.zeros(1, 1, 1, 1), torch.tensor([0.5]))
    for s, t, due, eta in [(1, 0.8, 0.712, 1), (3, 2.4, 0.650, 1), (0.2, 0.16, 0.950, 1), (1, 0.8, 0.84, 0),
                           (3, 2.4, 0.805, 0), (0.2, 0.16, 0.972, 0)]:  # fmt: skip
        x = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
        *_, after = SAMPLERS["ddim"].sample(gaussian, x, Levels([s, t]), 1, lambda i: torch.ones(2, 1, 1, 1), eta=eta)
        assert float(after[1] - after[0]) == pytest.approx(due, abs=6e-4)
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64).reshape(-1, 1, 1, 1)
    for sigma, steepest in [(0.1, 2.12), (0.2, 2.61), (0.3, 2.23), (0.5, 1.40), (1, 0.59), (2, 0.22)]:
        slope = Mixture.reference()(x, torch.tensor(sigma)).flatten().diff() / 0.001
        assert float(slope.max()) == pytest.approx(steepest, abs=0.01)


# ------------------------------------------------------------------------------------------- the domain shift


def test_the_levels_of_the_shift_are_those_of_the_paper():
    assert shift.levels()[[0, 499]].tolist() == pytest.approx([0.0292, 1.613], rel=2e-3)
    known = shift.levels()[[0, 124, 249, 374, 499]]
    assert shift.eta(known).tolist() == pytest.approx([2.47e-6, 0.145, 0.498, 0.852, 0.9999975], rel=4e-3)
    steps = shift.Steps(5)
    assert steps.lam.tolist() == pytest.approx([6.54e5, 12.04, 2.392, 0.875, 0.381, 0.0292], rel=2e-3)
    torch.testing.assert_close(shift.eta(steps.sigma), steps.eta, atol=1e-12, rtol=0)


def test_how_far_the_image_has_moved_grows_with_the_noise_from_0_to_1():
    sigma = torch.logspace(-5, 2, 2000, dtype=torch.float64)
    eta = shift.eta(sigma)
    assert eta.min() >= 0 and eta.max() == 1 and (eta.diff() >= 0).all() and eta[0] < 1e-6
    assert shift.eta(torch.tensor([[2.0, 80.0]])).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("steps", [0, 500])
def test_impossible_numbers_of_steps_of_the_shift_are_refused(steps):
    with pytest.raises(ValueError, match="steps are not possible"):
        shift.Steps(steps)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde_is_the_solver_that_its_authors_released(order):
    with np.load(ORACLES / "er_sde.npz", allow_pickle=False) as found:
        arrays = {key: torch.as_tensor(found[key]) for key in found}

    def D(x, sigma):
        return x.sin() / (1 + sigma)

    *_, x = er_sde(D, arrays["x"], Levels(arrays["sigmas"]), 6, lambda i: arrays["noise"][i], order)
    torch.testing.assert_close(x, arrays[f"order{order}"], atol=1e-6, rtol=0)


def test_of_first_order_it_is_the_ancestral_sampler():
    D, grid = Mixture.reference(), Karras(0.002, 80.0)
    x = 80 * torch.randn(100, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = er_sde(D, x, grid, 20, normals(100), 1)
    theirs = SAMPLERS["ddim"].sample(D, x, grid, 20, normals(100), eta=1.0)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("order", "slope", "low", "high"),
    [(1, "published", 0.95, 1.1), (2, "published", 1.9, 2.1), (3, "published", 1.9, 2.15), (3, "at s", 2.8, 4.2)],
)
def test_what_is_published_as_third_order_is_of_second(order, slope, low, high):
    """With D a function of the level alone, no noise, and its values before the start known."""

    def f(sigma):
        return (3 * torch.as_tensor(sigma, dtype=torch.float64)).cos()

    def exact(s, t):  # t^2 times the integral of 2 D / sigma^3
        sigma = torch.linspace(t, s, 200_001, dtype=torch.float64)
        return t**2 * torch.trapezoid(2 * f(sigma) / sigma**3, sigma)

    errors = []
    for steps in (64, 128):
        sigmas = torch.linspace(1.0, 0.3, steps + 1, dtype=torch.float64)
        h, x, true = sigmas[0] - sigmas[1], torch.zeros(()).double(), torch.zeros(()).double()
        before = [sigmas[0] + h, sigmas[0] + 2 * h]
        for s, t in itertools.pairwise(sigmas):
            past = [(f(each), each) for each in (s, *before)][:order]
            r = t / s
            x = r**2 * x + (1 - r**2) * f(s) + _more(past, t, slope)
            true = r**2 * true + exact(s, t)
            before = [s, before[0]]
        errors.append(abs(float(x - true)))
    assert low < math.log2(errors[0] / errors[1]) < high


def test_a_constant_image_keeps_the_marginal_of_the_shift():
    n, clean, estimate = 200_000, 0.6, -0.4
    z = torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = shift.Steps(7)
    start = torch.full((n, 1, 1, 1), estimate, dtype=torch.float64)
    for order in (1, 2, 3):
        walked = dossr.walk(lambda w, sigma: torch.full_like(w, clean), start, z, normals(n), 7, order)
        for w, eta, sigma in zip(walked, grid.eta, grid.sigma, strict=True):
            assert float(w.mean()) == pytest.approx(float(eta * estimate + (1 - eta) * clean), abs=0.01)
            assert float(w.var()) == pytest.approx(float(sigma**2), rel=0.01)


@pytest.mark.parametrize(
    ("steps", "due"),
    [(1, (0.764, 0.764, 0.764)), (5, (0.253, 0.124, 0.122)), (10, (0.144, 0.052, 0.058)), (20, (0.078, 0.021, 0.053)),
     pytest.param(40, (0.041, 0.013, 0.031), marks=pytest.mark.weekly)],
)  # fmt: skip
def test_samples_with_a_shift_are_as_far_off_as_the_table_of_orders_says(steps, due):
    """W1 on the mixture of three with an exact denoiser of u, whatever the estimate: here -0.4."""
    n, mixture = 200_000, Mixture.reference()
    data = mixture.draw(n, torch.Generator().manual_seed(3)).flatten().sort().values
    z = torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    grid, estimate = shift.Steps(steps), torch.full((n, 1, 1, 1), -0.4, dtype=torch.float64)
    places = {float(sigma): place for place, sigma in enumerate(grid.sigma)}

    def D(w, sigma):
        eta, lam = grid.eta[places[float(sigma)]], grid.lam[places[float(sigma)]]
        return mixture((w - eta * estimate) / (1 - eta), lam)

    for order, far in enumerate(due, 1):
        *_, w = dossr.walk(D, estimate, z, normals(n), steps, order)
        assert float((w.flatten().sort().values - data).abs().mean()) == pytest.approx(far, rel=0.05, abs=0.004)


def test_the_shift_and_no_estimate_at_all_are_one_sampler_in_other_variables():
    """In u the walk is the ancestral sampler on the levels lambda, for any estimate: pathwise, with the same noise."""
    mixture, grid, n = Mixture.reference(), shift.Steps(6), 50
    z = torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    estimate = torch.linspace(-2, 2, n, dtype=torch.float64).reshape(n, 1, 1, 1)
    places = {float(sigma): place for place, sigma in enumerate(grid.sigma)}

    def D(w, sigma):
        eta, lam = grid.eta[places[float(sigma)]], grid.lam[places[float(sigma)]]
        return mixture((w - eta * estimate) / (1 - eta), lam)

    noise, u = normals(n), estimate + grid.lam[0] * z
    walked = [*dossr.walk(D, estimate, z, noise, 6, 1)][1:]
    sampled = [*SAMPLERS["ddim"].sample(mixture, u, grid, 6, noise, eta=1.0)][1:]
    levels = itertools.pairwise(grid.lam)
    for i, (w, ddim, (s, t), eta) in enumerate(zip(walked, sampled, levels, grid.eta[1:], strict=True)):
        r = (t / s) ** 2
        u = r * u + (1 - r) * mixture(u, s) + t * (1 - r).sqrt() * noise(i)
        torch.testing.assert_close(w, (1 - eta) * u + eta * estimate, atol=1e-12, rtol=0)
        # Its own form takes the difference of levels that are five decades apart.
        torch.testing.assert_close(w, (1 - eta) * ddim + eta * estimate, atol=1e-10, rtol=0)


# ------------------------------------------------------------------------------------------- conditional networks


def network(shift=False, **more):
    torch.manual_seed(0)
    sizes = {"resolution": 8, "channels": 2, "label_dim": 0, "augment_dim": 0, "model_channels": 8,
             "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    given = {"task": "sr4", "noise": 0.1, "shift": shift}
    denoiser = ConditionalDenoiser(UNet("ddpmpp", **sizes), given, framework="edm", **({"kernel": "baseline"} | more))
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02)
    return denoiser.eval()


def test_c_in_scales_x_and_not_the_estimate():
    x, estimate, sigma = images(2, (1, 8, 8)), images(2, (1, 8, 8), 1), torch.tensor([0.5, 3.0])
    for kernel in ("baseline", "fdm"):
        denoiser = network(kernel=kernel, multiplier=2.0)
        measurement = []
        denoiser.model.register_forward_pre_hook(
            lambda module, args, measurement=measurement: measurement.append(args[0])
        )
        D = denoiser(x, sigma, condition=estimate)
        plain = Denoiser(lambda c_in_x, *rest: c_in_x, "edm", kernel, 2.0)
        c_in_x = []
        plain.model = lambda each, *rest, c_in_x=c_in_x: (c_in_x.append(each), torch.zeros_like(each))[1]
        skipped = plain(x, sigma)
        torch.testing.assert_close(measurement[0], torch.cat([c_in_x[0], estimate], 1))
        assert D.shape == x.shape and not torch.equal(D, skipped)
    assert denoiser.shape == denoiser.condition == (1, 8, 8)
    with pytest.raises(ValueError, match="needs an estimate"):
        denoiser(x, sigma)


@pytest.mark.parametrize("shifted", [False, True])
def test_the_loss_is_that_of_denoising_around_an_image_that_has_moved(shifted):
    x, estimate = images(4, (1, 8, 8)), images(4, (1, 8, 8), 1)
    u, noise = torch.randn(4, 1, 1, 1, generator=torch.Generator().manual_seed(2)), images(4, (1, 8, 8), 3)
    asked = []

    class Probe(torch.nn.Module):
        framework = "edm"

        def forward(self, w, sigma, class_labels=None, augment_labels=None, condition=None):
            asked.append((w, sigma, condition))
            return w / 2

    found = conditional.loss(Probe(), x, estimate, u, noise, "edm", shifted, ceiling=5.0)
    w, sigma, condition = asked[0]
    eta = shift.eta(sigma) if shifted else torch.zeros_like(sigma)
    torch.testing.assert_close(w.double(), ((1 - eta) * x + eta * estimate + sigma * noise).double())
    assert torch.equal(condition, estimate)
    if not shifted:
        probe = Probe()
        torch.testing.assert_close(found, denoising.loss(probe, x, u, noise, ceiling=5.0, framework="edm"))


def test_the_estimate_of_training_is_that_of_a_measurement():
    x = images(300)
    noise = torch.randn(300, *SHAPE, generator=torch.Generator().manual_seed(9))
    given = GivenParams(task="sr4", noise=0.1, shift=False)
    off = conditional.estimated(given, x, noise) - physics.measure("sr4", x, 0.0, range(300)).estimate
    assert float(off.std()) == pytest.approx(0.1, rel=0.05)
    means = torch.nn.functional.avg_pool2d(off.float(), 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(off.float(), means, atol=1e-5, rtol=0)


# ----------------------------------------------------------------------------------------- methods side by side


class Prior:
    """E[x0 | x] of a few images, told no class."""

    def __init__(self, known):
        self.mixture = Mixture(
            torch.full((len(known),), 1 / len(known)), known.double(), torch.full((len(known),), 0.05)
        )
        self.shape, self.classes, self.condition, self.sigma_range = known.shape[1:], 0, None, (0.002, 80.0)
        self.calls = 0

    def __call__(self, x, sigma, class_labels=None):
        self.calls += 1
        return self.mixture(x, sigma)


@pytest.fixture(scope="module")
def known(digits):
    return to_float(digits.images[:200])


@pytest.mark.parametrize("task", physics.TASKS)
@pytest.mark.parametrize(
    ("method", "options"),
    [("ccdf", {"sigma_0": 2.0, "eta": 1.0}), ("ccdf", {"sigma_0": 5.0, "eta": 1.0, "data": "known noise"}),
     ("ccdf", {"sigma_0": 2.0, "sampler": "dpm-solver++2m"}), ("diffpir", {"lambda_": 1.0, "zeta": 1.0}),
     ("dps", {"weight": 30.0})],
)  # fmt: skip
def test_every_method_restores_images_that_its_denoiser_knows(task, method, options, known):
    clean, prior = known[:8], Prior(known)
    measurement = physics.measure(task, clean, 0.05, range(8))
    again = [RESTORERS[method].restore(prior, measurement, 10, range(8), **options) for _ in range(2)]
    assert torch.equal(*again) and prior.calls == 20, "as the seeds say, in so many evaluations"
    assert measurement.physics.A(clean.double()).dtype == torch.float64, "and leaves the physics as it was"
    psnr = {name: restoration.scores(x, clean, measurement)["PSNR"] for name, x in
            {"restored": again[0], "estimate": measurement.estimate}.items()}  # fmt: skip
    assert psnr["restored"] > psnr["estimate"] + 0.5


def test_dps_is_guided_by_the_measurement(known):
    clean, prior = known[:8], Prior(known)
    measurement = physics.measure("sr2", clean, 0.05, range(8))
    off = [
        float(measurement.residual(posterior.dps(prior, measurement, 20, range(8), weight)).mean())
        for weight in (0.0, 30.0)
    ]
    assert off[1] < 0.5 * off[0]


@pytest.mark.parametrize(("method", "options", "sentence"), [
    ("ccdf", {"sigma": 1.0}, "sigma is no option of DDIM"),
    ("ccdf", {"sigma_0": 100.0}, "sigma_0: 100.0 is not allowed"),
    ("ccdf", {"sampler": "heun", "eta": 1.0}, "eta is no option of Heun"),
    ("ccdf", {"data": "some"}, "one of as published"), ("ccdf", {"sampler": "gms"}, "'gms' is not allowed"),
    ("dps", {"eta": 1.0}, "eta is no option of DPS"), ("dossr", {"order": 4}, "it must be 1 to 3"),
])  # fmt: skip
def test_options_that_a_method_does_not_have_are_refused(method, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        RESTORERS[method].check(options)


# -------------------------------------------------------------------------------------------------- parameters


def values(**changes):
    found = yaml.safe_load((ROOT / "profiles" / "restoration" / "params.yaml").read_text())
    found["evaluation"]["restoration"] |= changes
    return found


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"tasks": ["sr3"]}, "'sr3' is not known; there are sr2, sr4"),
    ({"systems": [{"name": "a", "method": "b"}]}, "'b' is not known; there are ccdf"),
    ({"systems": [{"name": "a", "method": "dossr"}]}, "dossr is not for networks that are given nothing"),
    ({"systems": [{"name": "a", "method": "dps", "given": "estimate"}]}, "dps is not for networks that are given est"),
    ({"systems": [{"name": "a", "method": "dps"}] * 2}, "two systems have the same name"),
    ({"systems": [{"name": "a", "method": "dps", "against": ["b"]}]}, "there is no such system as 'b'"),
    ({"systems": [{"name": "a", "method": "dps", "weight": -1.0}]}, "it must be 0 to 10000"),
    ({"systems": [{"name": "a", "method": "ccdf", "sigma_0": 1.0, "sampler": "f-pndm"}]}, "cannot end without noise"),
])  # fmt: skip
def test_comparisons_that_cannot_be_made_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        profiles.Profile.model_validate(values(**changes))


@pytest.mark.parametrize(("section", "changes", "sentence"), [
    ("training", {"augment": 0.1}, "its estimate is not augmented"),
    ("cell", {"variant": "c_in 1"}, "is trained here, without variant"),
    ("cell", {"given": {"task": "box", "noise": 0.1, "shift": True}}, "sr2"),
])  # fmt: skip
def test_networks_with_an_estimate_are_trained_as_they_can_be(section, changes, sentence):
    found = values()
    place = found["cells"]["edm-baseline-given"] if section == "cell" else found[section]
    place |= changes
    with pytest.raises(ValueError, match=sentence):
        profiles.Profile.model_validate(found)


def test_a_cell_that_is_not_trained_is_refused_before_anything_is_restored():
    found = values()
    found["cells"]["edm-baseline-exact"] = {"framework": "edm", "kernel": "baseline", "source": "analytic"}
    with pytest.raises(ValueError, match="it compares networks that are trained here"):
        profiles.Profile.model_validate(found)


def test_too_few_held_out_images_are_told_before_anything_is_restored(digits):
    profile = profiles.Profile.model_validate(values(images=100))
    with pytest.raises(FdmError, match="364 held-out images are needed"):
        restoration.images_of(profile, digits, "restoration", 0)


def test_each_training_has_images_of_its_own_and_tuning_others():
    profile, held = profiles.find("restoration"), torch.zeros(10_000, 1, 16, 16)
    dataset = type("Held", (), {"held": held})
    parts = [restoration.images_of(profile, dataset, "restoration", seed) for seed in profile.seeds]
    parts.append(restoration.images_of(profile, dataset, "tuning", profile.seeds[0]))
    numbers = [number for part in parts for number in part]
    assert len(numbers) == len(set(numbers)) == 3 * profile.evaluation.restoration.images + 64


def test_the_best_options_are_those_of_the_highest_psnr():
    def tried(value, system="CCDF", nfe=5):
        return restoration.Restoring("tuning", "sr4", system, "ccdf", (("sigma_0", value),), nfe)

    psnr = {tried(1.0): 20.0, tried(2.0): 21.0, tried(5.0): math.nan, tried(1.0, nfe=10): 9.0, tried(2.0, "other"): 1.0}
    best = restoration.choose(psnr)
    assert best == {("sr4", "CCDF", 5): (("sigma_0", 2.0),), ("sr4", "CCDF", 10): (("sigma_0", 1.0),),
                    ("sr4", "other", 5): (("sigma_0", 2.0),)}  # fmt: skip


# ---------------------------------------------------------------------------------------------- put on record


def small(study):
    """The profile on the digits, with few images and evaluations, without FDM."""
    params = study / "profiles" / "restoration" / "params.yaml"
    found = values(images=16, tuning=8, nfe=[1, 2])["evaluation"]
    found["restoration"]["tasks"] = ["sr4", "random"]
    found["settings"][0].pop("cells")
    cells = {name: cell for name, cell in values()["cells"].items() if "fdm" not in name}
    for each in found["restoration"]["systems"]:
        each["tune"] = {key: tried[:2] for key, tried in each.pop("tune", {}).items()}
    params.write_text(yaml.safe_dump(values() | {"cells": cells, "evaluation": found}))
    return change(
        params.relative_to(study), seeds=[0, 1], keep_networks=False,
        dataset={"name": "digits", "resolution": 8}, network={"attn_resolutions": []},
        training={"budget_kimg": 0.256, "log_kimg": 0.128, "state_kimg": 0.128},
    )  # fmt: skip


@pytest.mark.weekly
@pytest.mark.slow
def test_restorations_are_put_on_record_cell_by_cell_unless_they_agree(study, monkeypatch, capsys):
    profile = small(study)
    dataset = sources.prepare(profile.dataset, profile.dataset_file)
    for run in profile.trained:
        as_trained(profile, run, dataset)
    cells = [restoration.ESTIMATE, *profile.cells]
    monkeypatch.setattr(runs, "expected", lambda *args, **kwargs: None)
    rows = runs.restore(profile)
    folder = profile.results / "restoration"
    assert {path.name for path in folder.iterdir()} == {
        *(f"{cell}.csv" for cell in cells), *(f"{cell}.safetensors" for cell in profile.cells)
    }  # fmt: skip
    told = rows[rows["part"] == "restoration"]
    assert {*told["nfe"]} == {0, 1, 2}, "as they were counted"
    assert {*told[told["system"] == "DiffPIR"]["nfe"]} == {2}, "in those that it can make"
    assert {*told["quantity"]} >= {"PSNR", "residual", "accuracy", "recall", "KID(pixels)"} - {"SSIM"}
    exact = told[(told["quantity"] == "residual") & told["system"].isin(["from noise", "CCDF", "estimate"])]
    assert exact["value"].max() < 1e-12 < told[told["quantity"] == "residual"]["value"].max()
    # By hand: the mean PSNR of the estimates of a training's images.
    clean = to_float(dataset.held[16:32])
    off = physics.measure("sr4", clean, 0.1, range(16, 32)).estimate.clamp(-1, 1) - clean
    psnr = (10 * (4 / off.square().mean((1, 2, 3))).log10()).mean()
    found = told.query("system == 'estimate' and task == 'sr4' and seed == 1 and quantity == 'PSNR'")["value"]
    assert found.item() == pytest.approx(float(psnr), rel=1e-5)
    # What was chosen is what had the highest PSNR, and it is what the record of the first run has.
    tried = rows[(rows["part"] == "tuning") & (rows["quantity"] == "PSNR")]
    best = tried.loc[tried.groupby(["cell", "task", "system", "nfe"])["value"].idxmax()]
    chosen = restored.tuned(rows).set_index(["cell", "task", "system", "nfe"])["options"].sort_index()
    assert best.set_index(["cell", "task", "system", "nfe"])["options"].sort_index().equals(chosen)

    before = {path: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    measured = restoration.Bench.measure
    monkeypatch.setattr(restoration.Bench, "measure", lambda *args: pytest.fail("it is remembered"))
    assert runs.restore(profile).equals(rows)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert "4 of 4 cells agree with results/restoration/restoration" in capsys.readouterr().err
    monkeypatch.setattr(restoration.Bench, "measure", measured)

    for task in (restored.ALL, "sr4"):
        plt.close(restoration_plates.by_evaluations(profile, rows, task, "baseline", ["DPS"]))
    plt.close(restoration_plates.starts(profile, rows, "CCDF"))
    figure = restoration_plates.sheet(restored.pictures(profile), [("edm-baseline", "random/CCDF", "CCDF")])
    assert len(figure.axes) == 3 * 6
    plt.close(figure)
    plain = profiles.find("digits")
    with pytest.raises(FdmError, match="restoration to compare"):
        runs.restore(plain)


@pytest.mark.slow
def test_networks_with_an_estimate_are_trained_by_the_loop_and_named_by_what_they_are_given(study):
    profile = small(study)
    dataset = sources.prepare(profile.dataset, profile.dataset_file)
    names = {run: runs.experiment(profile, run, dataset) for run in profile.trained if run.endswith("-0")}
    assert len({*names.values()}) == len(names) == 3
    trained = {}
    for run in ("edm-baseline-given-0", "edm-baseline-shifted-0", "edm-baseline-0"):
        training = runs.training_of(profile, run, dataset)
        loop.train(training, dataset, profile.checkpoints(run), profile.logs(run), study / "work")
        wanted = runs.expected(profile, run, dataset)
        trained[run], about = checkpoints.load(profile.checkpoints(run) / "100.safetensors", wanted)
        assert about["images"] == 256
    given, shifted, plain = trained.values()
    assert given.given == {"task": "sr4", "noise": 0.1, "shift": False} and shifted.given["shift"]
    assert isinstance(given, ConditionalDenoiser) and not isinstance(plain, ConditionalDenoiser)
    assert not any(map(torch.equal, given.parameters(), shifted.parameters()))
    with pytest.raises(FdmError, match="is of another network"):
        checkpoints.load(
            profile.checkpoints("edm-baseline-given-0") / "100.safetensors",
            runs.expected(profile, "edm-baseline-shifted-0", dataset),
        )
    known = runs.specify(profile, "edm-baseline-0", dataset)
    assert "given" not in known["denoiser"] and "given" not in known["run"], "others are named as they were"


def test_a_comparison_agrees_with_another_machines_to_rounding(tmp_path):
    quantities = ["PSNR"] * 20 + ["SSIM"] * 20 + ["KID(pixels)", "seconds"]
    old = pd.DataFrame({"quantity": quantities, "experiment": "0" * 12, "value": [20.0] * 20 + [0.5] * 20 + [0.1, 1.0]})
    path = tmp_path / "cell.csv"
    old.to_csv(path, index=False)

    def moved(**values):
        new = old.copy()
        for place, value in values.items():
            new.loc[int(place[1:]), "value"] = value
        return agreement.restorations(path, new)

    assert moved() and moved(_0=20.6, _20=0.56, _40=9.0, _41=0.0)
    assert not moved(_0=20.6, _1=20.6) and not moved(_0=25.0) and not moved(_20=0.6, _21=0.6)
    assert not agreement.restorations(path, old[:-1])
    assert not agreement.restorations(path, old.assign(experiment="1" * 12))


# ------------------------------------------------------------------------------------------------- what follows


def made_up(profile, effect):
    """Rows in which systems differ by what `effect(cell, system)` says, in PSNR, without noise but for a seed's own."""
    rows = []
    for cell, about in profile.cells.items():
        for task in profile.evaluation.restoration.tasks_of(about):
            for each in profile.evaluation.restoration.of(about):
                for seed in profile.seeds:
                    row = {"cell": cell, "task": task, "system": each.name, "nfe": 5, "seed": seed, "options": "",
                           "part": "restoration"}  # fmt: skip
                    value = effect(cell, each.name) + [0.1, -0.2, 0.3][seed] + 0.01 * ((seed * 7 + len(each.name)) % 3)
                    rows += [row | {"quantity": "PSNR", "value": value}, row | {"quantity": "KID(x)", "value": -value},
                             row | {"quantity": "accuracy", "value": 0.5}]  # fmt: skip
    return pd.DataFrame(rows)


def test_differences_count_where_their_intervals_say_so():
    profile = profiles.find("restoration")
    gain = {"CCDF": 1.0, "DPS": -1.0, "DoSSR, order 2": 0.5}
    rows = made_up(profile, lambda cell, system: gain.get(system, 0.0) + (0.05 if "fdm" in cell else 0.0))
    over = restored.over(profile, rows).set_index(["cell", "task", "system", "quantity"])
    for cell in ("edm-baseline", "edm-fdm"):
        for task in ("sr4", restored.ALL):
            assert over.loc[(cell, task, "CCDF", "PSNR"), "counts"] == "better"
            assert over.loc[(cell, task, "DPS", "PSNR"), "counts"] == "worse"
            assert over.loc[(cell, task, "DPS", "KID(x)"), "counts"] == "worse"
            assert over.loc[(cell, task, "CCDF", "PSNR"), "difference"] == pytest.approx(1, abs=0.03)
            assert over.loc[(cell, task, "CCDF", "accuracy"), "counts"] == ""
    kernels = restored.kernels(profile, rows).set_index(["given", "system"])
    assert set(kernels["verdict"]) == {"better, equal"}
    assert kernels["difference"].tolist() == pytest.approx([0.05] * len(kernels), abs=1e-9)
    against = restored.against(profile, rows).set_index(["kernel", "system", "other", "quantity"])
    first = against.loc[("baseline", "DoSSR, order 2", "DoSSR, order 1", "PSNR")]
    assert first["difference"] == pytest.approx(0.5, abs=0.03) and first["counts"] == "better"
    plt.close(restoration_plates.kernels(restored.kernels(profile, rows)))
    assert {"CCDF", "conditional DDIM"} <= {*against.index.get_level_values("other")}


def test_kernels_whose_difference_is_not_known_well_enough_are_undecided():
    profile = profiles.find("restoration")
    rows = made_up(profile, lambda cell, system: 0.0)
    off = (rows["cell"] == "edm-fdm") & (rows["seed"] == 1)
    rows.loc[off, "value"] += 1.0
    found = restored.kernels(profile, rows).set_index(["given", "system"])["verdict"]
    assert found["nothing", "CCDF"] == "undecided" and found["shift", "DoSSR, order 1"] == "equal"


# ---------------------------------------------------------------------------------------------- one's own pictures


@pytest.fixture
def pictures(digits, tmp_path):
    places = [tmp_path / f"{number}.png" for number in range(2)]
    for number, place in enumerate(places):
        Image.fromarray(digits.held[number, 0].numpy()).save(place)
    return [str(place) for place in places]


def test_own_pictures_are_restored_from_the_command_line(pictures, tmp_path):
    out = tmp_path / "sheet.png"
    small = tmp_path / "small.png"
    Image.new("L", (2, 2), 128).save(small)
    command = [sys.executable, "-m", "fdm", "restore", *pictures, str(small), "--run", "edm-fdm-0",
               "--profile", "digits", "--label", "3", "--nfe", "4", "--out", str(out)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "3 pictures, sr4, ccdf with edm-fdm-0, 4 evaluations" in done.stdout
    sheet = np.asarray(Image.open(out).convert("L"))
    tile = np.asarray(Image.open(pictures[0])).repeat(4, 0).repeat(4, 1)
    assert sheet.shape == (3 * 34 + 2, 4 * 34 + 2)
    assert (sheet[2:34, 2:34] == tile).all() and (sheet[70:102, 2:34] == 110).all()
    means = sheet[2:34, 36:68].reshape(2, 16, 2, 16).std(axis=(1, 3))
    assert (means == 0).all(), "what was measured: two by two blocks"


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--task", "sr3"], "There is no task named sr3; there are: sr2, sr4, box, random, fourier."),
    ([], "This network is told the class: give one of 0 to 9."),
    (["--label", "10"], "This network is told the class: give one of 0 to 9."),
    (["--label", "1", "--method", "ddrm"], "There is no method named ddrm; there are: ccdf, dps, diffpir, dossr."),
    (["--label", "1", "--method", "dossr"], "dossr is for networks with an estimate beside x."),
    (["--label", "1", "--noise", "nan"], "noise is nan; it is a standard deviation, 0 or above."),
    (["--label", "1", "--option", "eta=2"], "eta: 2.0 is not allowed for DDIM; it must be 0 to 1."),
    (["--label", "1", "--nfe", "0"], "nfe is 0 and seed 0; allowed are nfe from 1 and seed from 0 up."),
])  # fmt: skip
def test_what_cannot_be_restored_gets_one_sentence(arguments, sentence, pictures, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    common = ["restore", pictures[0], "--run", "edm-fdm-0", "--profile", "digits", "--out", str(out)]
    assert main([*common, *arguments]) == 1
    assert capsys.readouterr().err == f"fdm: {sentence}\n" and not out.exists()


def test_pictures_and_masks_that_do_not_fit_are_told(tmp_path, capsys):
    wrong, empty, text = tmp_path / "wrong.png", tmp_path / "empty.png", tmp_path / "text.png"
    Image.new("L", (9, 8)).save(wrong)
    Image.new("L", (8, 8)).save(empty)
    text.write_text("no picture")
    common = ["restore", "--run", "edm-fdm-0", "--profile", "digits", "--label", "1", "--out", str(tmp_path / "o.png")]
    for arguments, sentence in [
        ([str(wrong)], f"{wrong} has 9 x 8 pixels; the network needs 8 x 8, or 2 x 2 as measured."),
        ([str(text)], f"{text} is no picture that can be read; PNG, JPEG, WEBP, BMP, TIFF, GIF can."),
        ([str(tmp_path)], f"{tmp_path} is no picture that can be read; PNG, JPEG, WEBP, BMP, TIFF, GIF can."),
        ([str(empty), "--task", "box", "--mask", str(empty)], "The mask has no known pixel; known ones are white."),
        ([str(empty), "--task", "box", "--mask", str(wrong)],
         "The mask has (8, 9) pixels, and the network's images (8, 8)."),
    ]:  # fmt: skip
        assert main([*common, *arguments]) == 1
        assert capsys.readouterr().err == f"fdm: {sentence}\n"


def test_measurements_that_are_no_numbers_or_of_another_size_are_refused():
    denoiser = fdm.load("edm-fdm-0")
    y = torch.zeros(1, 1, 2, 2)
    assert fdm.restore(denoiser, y, "sr4", nfe=3, label=1).shape == (1, 1, 8, 8)
    for value in (math.nan, math.inf):
        with pytest.raises(FdmError, match="values that are not finite"):
            fdm.restore(denoiser, y + value, "sr4", label=1)
    with pytest.raises(FdmError, match=r"has the shape \(1, 1, 4, 4\), and \(1, 1, 2, 2\) is needed"):
        fdm.restore(denoiser, torch.zeros(1, 1, 4, 4), "sr4", label=1)


def test_known_pixels_of_a_mask_are_kept(tmp_path):
    denoiser, mask = fdm.load("edm-fdm-0"), torch.zeros(8, 8)
    mask[:, :4] = 1
    y = images(2, (1, 8, 8)) * mask
    found = to_float(fdm.restore(denoiser, y, "box", 0.0, mask, nfe=6, label=3))
    torch.testing.assert_close(found[..., :4], y[..., :4], atol=1 / 127, rtol=0)
    assert (found[..., 4:] - y[..., 4:]).abs().max() > 0.1


# --------------------------------------------------------------------------------------- what the notebook says


@pytest.fixture(scope="module")
def told():
    """The tables on record, by name."""
    folder = ROOT / "results" / "restoration" / "restored"
    return {name: pd.read_csv(folder / f"{name}.csv") for name in ("over", "kernels", "against", "quality", "tuned")}


PRIORS = ("edm-baseline", "edm-fdm")


def test_what_the_notebook_says_of_coming_closer_is_so_in_the_tables(told):
    over = told["over"].query("task == 'all tasks' and quantity == 'PSNR'").set_index(["cell", "system", "nfe"])
    for cell in PRIORS:
        assert all(over.loc[(cell, "CCDF", nfe), "difference"] > 0.5 for nfe in (1, 5))
        assert over.loc[(cell, "CCDF", 5), "counts"] == "better"
        assert all(over.loc[(cell, "CCDF", nfe), "counts"] != "better" for nfe in (10, 20))
        for inside in ("CCDF, DDIM", "CCDF, DPM-Solver++ (2M)"):
            assert all(over.loc[(cell, inside, nfe), "counts"] == "worse" for nfe in (10, 20))
            assert over.loc[(cell, inside, 5), "difference"] < over.loc[(cell, "CCDF", 5), "difference"]
        closer = max(over.loc[(cell, "CCDF", nfe), "difference"] for nfe in (5, 10, 20))
        for system in ("DPS", "DiffPIR"):
            gains = over.loc[[(cell, system, nfe) for nfe in (10, 20)]]
            assert set(gains["counts"]) == {"better"} and gains["difference"].min() > closer
    tuned = told["tuned"].query("system == 'CCDF'")
    starts = tuned["options"].str.extract(r"sigma_0=([\d.]+)", expand=False).astype(float)
    assert starts.between(1, 10).all()
    assert set(tuned["task"][(starts == 10) & (tuned["nfe"] == 20)]) == {"box", "random"}
    assert set(tuned["nfe"][starts == 10]) == {20}
    by_evaluations = np.log(starts).groupby(tuned["nfe"]).mean()
    assert by_evaluations.loc[20] > by_evaluations.loc[1]


def test_what_the_notebook_says_of_noise_that_is_known_is_so_in_the_tables(told):
    quality = told["quality"].groupby(["cell", "system", "nfe"]).mean(numeric_only=True)
    for cell in PRIORS:
        for nfe in (5, 10, 20):
            known, put = (quality.loc[(cell, name, nfe)] for name in ("CCDF, noise known", "CCDF"))
            assert known["KID(EfficientNet-Lite0)"] < 0.5 * put["KID(EfficientNet-Lite0)"]
            assert known["PSNR"] == pytest.approx(put["PSNR"], abs=0.3)


def test_what_the_notebook_says_of_the_shift_is_so_in_the_tables(told):
    against = told["against"].query("task == 'sr4'").set_index(["kernel", "system", "other", "quantity", "nfe"])
    quality = told["quality"].set_index(["cell", "system", "nfe"])
    kid = "KID(EfficientNet-Lite0)"
    for kernel in ("baseline", "fdm"):
        for nfe in (1, 5, 10, 20):
            psnr = against.loc[(kernel, "DoSSR, order 1", "conditional, closer", "PSNR", nfe)]
            assert psnr["counts"] == "better" and psnr["difference"] > 0.5
            classes = against.loc[(kernel, "DoSSR, order 1", "conditional, closer", "accuracy", nfe)]
            assert classes["difference"] > 0
        for nfe in (5, 10, 20):
            shifted, closer = (
                quality.loc[(f"edm-{kernel}-{kind}", name, nfe), kid]
                for kind, name in (("shifted", "DoSSR, order 1"), ("given", "conditional, closer"))
            )
            assert shifted > closer
            orders = [
                quality.loc[(f"edm-{kernel}-shifted", name, nfe)]
                for name in ("DoSSR, order 1", "DoSSR, order 2", "DoSSR, order 3", "DoSSR, order 3, slope at s")
            ]
            assert [each["PSNR"] for each in orders] == sorted((each["PSNR"] for each in orders), reverse=True)
            assert [each[kid] for each in orders] == sorted(each[kid] for each in orders)
        for nfe in (5, 10, 20):
            noise = quality.loc[(f"edm-{kernel}-given", "conditional DDIM, eta 1", nfe)]
            shifted = quality.loc[(f"edm-{kernel}-shifted", "DoSSR, order 1", nfe)]
            assert noise["PSNR"] == pytest.approx(shifted["PSNR"], abs=0.4)
            assert noise["accuracy"] < shifted["accuracy"] and (noise[kid] < shifted[kid] or nfe == 5)
    orders = pd.read_csv(ROOT / "results" / "restoration" / "restored" / "orders.csv").set_index("evaluations")
    assert (orders.loc[[5, 10, 20, 40], "order 2"] < 0.6 * orders.loc[[5, 10, 20, 40], "order 1"]).all()
    assert (orders.loc[[20, 40]].idxmax(axis=1) == "order 3, slope at s").all(), "last on the mixture as well"


def test_what_the_notebook_says_of_fdm_is_so_in_the_tables(told):
    kernels = told["kernels"]
    better = kernels[kernels["verdict"].str.contains("better")]
    assert set(zip(better["system"], better["nfe"], strict=True)) <= {("DPS", 1)}
    others = kernels[kernels["given"] != "estimate"]
    assert (others["verdict"].str.contains("equal")).mean() > 0.5
    given = kernels[(kernels["given"] == "estimate") & kernels["system"].str.contains("DDIM")]
    assert (given["difference"] < 0).all() and (given["verdict"].str.contains("worse")).mean() > 0.5


def test_what_the_notebook_says_of_the_mean_is_so_in_the_tables(told):
    psnr = told["quality"].set_index(["cell", "system", "nfe"])["PSNR"]
    for cell in ("edm-baseline-given", "edm-baseline-shifted", "edm-fdm-shifted"):
        for system in ("conditional, closer", "DoSSR, order 1"):
            if (cell, system, 1) in psnr.index:
                falls = [psnr[cell, system, nfe] for nfe in (1, 5, 10, 20)]
                assert falls == sorted(falls, reverse=True)
    for cell in ("edm-baseline-given", "edm-fdm-given"):
        for system in ("conditional DDIM", "conditional DDIM, eta 1"):
            assert psnr[cell, system].idxmax() == 5, "from noise it is highest with five"


def test_a_denoiser_elsewhere_is_asked_from_the_cpu():
    asked = []

    class Elsewhere:
        """Of a device that has no numbers, which is what every machine has besides the CPU."""

        shape, classes, sigma_range, condition = (1, 2, 2), 0, (0.0, 1.0), (1, 2, 2)

        def __call__(self, x, sigma, class_labels=None, condition=None):
            asked.append((x.device.type, sigma.device.type, condition.device.type))
            return torch.zeros(3, 1, 2, 2)

    denoiser = restoration.OnDevice(Elsewhere(), "meta")
    x = torch.zeros(3, 1, 2, 2)
    assert denoiser(x, torch.tensor(0.5), condition=x).device.type == "cpu"
    assert asked == [("meta",) * 3] and denoiser.condition == (1, 2, 2)
