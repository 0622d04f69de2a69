"""Few steps by training: discrepancy and its gradients, the chain of few levels, generator and critic, the loop."""

import functools
import itertools
import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn.functional import one_hot
from torch_fidelity.metric_kid import kernel_poly

from fdm.data.datasets import to_float
from fdm.metrics import differentiable
from fdm.metrics.discrepancy import cubic, linear, mmd2, rbf
from fdm.metrics.features import extractor
from fdm.metrics.learned import Learned
from fdm.model import checkpoints, cost
from fdm.model.generator import LATENT, Critic, Generator
from fdm.model.oracle import Mixture
from fdm.process import ladder
from fdm.samplers import SAMPLERS
from fdm.study import runs
from fdm.tasks import generation
from fdm.training import loop, processes
from fdm.training.engine import Batch, Engine
from fdm.training.objectives import adversarial, discrepancy
from fdm.training.objectives.adversarial import Adversarial, Pair, critic_losses, generator_losses
from fdm.training.objectives.discrepancy import Discrepancy, Unrolled

from .conftest import change
from .test_errors import as_trained
from .test_structure import refused
from .test_training import SPEED, STATE, dies_at, killed, run

CPU = torch.device("cpu")
FORMS = ["siddm", "siddm toy", "siddm ufo", "ddgan"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def agrees(found, exact):
    """See that the mean of independent estimates is right within four standard errors; returns the standard error."""
    found = torch.as_tensor(found, dtype=torch.float64)
    error = found.std().item() / len(found) ** 0.5
    assert found.mean().item() == pytest.approx(exact, abs=4 * error), f"with a standard error of {error}"
    return error


# -------------------------------------------------------------------------------------------------- discrepancy


def expected_kernel(a, b):
    """E k(x, y) of the cubic kernel, of independent x from N(a, I) and y from N(b, I)."""
    d, ab, aa, bb = len(a), float(a @ b), float(a @ a), float(b @ b)
    second = aa + ab**2 + d + bb
    third = ab**3 + 3 * ab * aa + 3 * (ab * (bb + d) + 2 * ab)
    return 1 + 3 * ab / d + 3 * second / d**2 + third / d**3


def expected_mmd2(a, b):
    return expected_kernel(a, a) + expected_kernel(b, b) - 2 * expected_kernel(a, b)


@pytest.mark.parametrize(("a", "b", "exact"), [
    ([0.0] * 8, [0.0] * 8, 0.0), ([0.0] * 8, [0.3] * 8, 0.343292), ([0.5] * 8, [0.8] * 8, None),
    ([1.0, -0.5, 0.0], [0.2, 0.4, -0.7], None),
])  # fmt: skip
@pytest.mark.parametrize("m", [32, 20])
def test_the_estimate_is_right_on_average(a, b, exact, m):
    a, b = (torch.tensor(each, dtype=torch.float64) for each in (a, b))
    if exact is not None:
        assert expected_mmd2(a, b) == pytest.approx(exact, abs=5e-7)
    generator = seeded()
    found = [
        mmd2(a + normals(32, len(a), generator=generator), b + normals(m, len(b), generator=generator))
        for _ in range(2500)
    ]
    error = agrees(found, expected_mmd2(a, b))
    assert error < 0.01 * (1 + expected_mmd2(a, b))


def test_the_cubic_kernel_is_that_of_kid():
    a, b = normals(7, 5, generator=seeded()), normals(4, 5, generator=seeded(1))
    known = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    wanted = kernel_poly(a.numpy(), b.numpy(), **known)
    torch.testing.assert_close(cubic(a, b), torch.from_numpy(wanted), rtol=1e-14, atol=0)


def test_the_gaussian_kernel_is_a_sum_over_widths():
    a, b = column(0.0, 1.0), column(2.0)
    wanted = [[sum(math.exp(-((x - 2) ** 2) / (2 * width**2)) for width in (0.1, 0.3, 1.0, 3.0))] for x in (0, 1)]
    torch.testing.assert_close(rbf(a, b), torch.tensor(wanted, dtype=torch.float64))
    assert rbf(a, a).diagonal().tolist() == [4, 4]


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_sets_that_share_classes_row_by_row_are_compared_without_bias_when_they_are_paired(shift):
    """Features are the mean of a class and noise; the second set is moved by `shift`, the same in every class."""
    n, generator = 8, seeded()
    centres = torch.tensor([[2.0, 0.0, 1.0], [-2.0, 0.5, 0.0], [0.0, -1.0, -1.5]], dtype=torch.float64)
    moved = centres + shift

    def between(one, other, same):
        """E k over classes of two rows: one class of both, or independent ones."""
        pairs = zip(one, other, strict=True) if same else itertools.product(one, other)
        return torch.tensor([expected_kernel(a, b) for a, b in pairs]).mean().item()

    exact = between(centres, centres, False) + between(moved, moved, False) - 2 * between(centres, moved, False)
    bias = -2 / n * (between(centres, moved, True) - between(centres, moved, False))
    found = {True: [], False: []}
    for _ in range(4000):
        classes = torch.randint(3, (n,), generator=generator)
        a, b = (each[classes] + normals(n, 3, generator=generator) for each in (centres, moved))
        for paired, values in found.items():
            values.append(mmd2(a, b, paired=paired).item())
    agrees(found[True], exact)
    error = agrees(found[False], exact + bias)
    assert bias < -8 * error


def population(kernel, one, other):
    """MMD^2 of two discrete laws on the line, of points and their probabilities."""
    (x, p), (y, q) = ([torch.tensor(each, dtype=torch.float64) for each in law] for law in (one, other))
    x, y = x[:, None], y[:, None]
    return (p @ kernel(x, x) @ p + q @ kernel(y, y) @ q - 2 * p @ kernel(x, y) @ q).item()


COIN = ([-1.0, 1.0], [0.5, 0.5])
TAILS = ([-(3**0.5), 0.0, 3**0.5], [1 / 6, 2 / 3, 1 / 6])  # the moments of a coin up to the third: 0, 1, 0
SKEWED = ([2.0, -0.5], [0.2, 0.8])  # 0, 1, 1.5
WIDER = ([-2.0, 2.0], [0.5, 0.5])  # 0, 4, 0
MOVED = ([0.0, 2.0], [0.5, 0.5])


def test_on_a_line_the_cubic_kernel_sees_three_moments_and_no_more():
    assert population(cubic, COIN, TAILS) == pytest.approx(0, abs=1e-12)
    assert population(rbf, COIN, TAILS) > 0.1
    assert population(cubic, COIN, SKEWED) == pytest.approx(1.5**2)
    assert population(cubic, COIN, WIDER) == pytest.approx(3 * 3**2)
    for other in (TAILS, SKEWED, WIDER):
        assert population(linear, COIN, other) == pytest.approx(0, abs=1e-12)
    assert population(linear, COIN, MOVED) == pytest.approx(1)


# ---------------------------------------------------------------------------------- gradients through the sampler


class Curved(nn.Module):
    """A denoiser of two weights, float64, that counts how often it is asked."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))
        self.calls = 0

    def forward(self, x, sigma, class_labels=None):
        self.calls += 1
        a, b = self.weights
        return torch.tanh(a * x / (1 + sigma**2)) + b * torch.sin(x) / (1 + sigma)


LATENTS = normals(6, 1, 2, 2, generator=seeded(5))


def unrolled_loss(denoiser, checkpointed, steps=3):
    """MMD^2 of what three steps make to other images, and those samples."""
    samples = Unrolled(denoiser, steps, (0.05, 3.0), checkpointed)(LATENTS)
    real = normals(5, 4, generator=seeded(6))
    return mmd2(samples.flatten(1), real), samples


@pytest.mark.parametrize("checkpointed", [True, False])
def test_gradients_through_the_steps_are_those_of_finite_differences(checkpointed):
    denoiser, h = Curved(), 1e-5
    unrolled_loss(denoiser, checkpointed)[0].backward()
    for i in range(2):
        ends = []
        for step in (h, -h):
            with torch.no_grad():
                denoiser.weights[i] += step
                ends.append(unrolled_loss(denoiser, checkpointed)[0].item())
                denoiser.weights[i] -= step
        slope = (ends[0] - ends[1]) / (2 * h)
        assert abs(slope) > 0.01
        assert denoiser.weights.grad[i].item() == pytest.approx(slope, rel=1e-5)


def test_what_is_computed_again_gives_the_same_values_and_gradients_for_twice_the_evaluations():
    found = []
    for checkpointed in (True, False):
        denoiser = Curved()
        loss, samples = unrolled_loss(denoiser, checkpointed)
        assert denoiser.calls == 3
        loss.backward()
        found.append((denoiser.weights.grad, samples.detach()))
        assert denoiser.calls == (6 if checkpointed else 3)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert Unrolled(Curved(), 3, (0.05, 3.0)).checkpointed


# ------------------------------------------------------------------------------------------------------- studies


BASE = {"framework": "edm", "kernel": "baseline"}
START = "edm-baseline-0"


def further(objective, steps=2, **options):
    """A cell that goes on from the baseline for few steps."""
    few = {"objective": objective, "steps": steps} | options
    return BASE | {"source": "finetune", "start": "edm-baseline", "few_steps": few}


CELLS = {"edm-baseline": BASE, "edm-baseline-mmd": further("mmd", features="classifier")}
CELLS |= {f"edm-baseline-{form.replace(' ', '-')}": further(form) for form in FORMS}


@pytest.fixture(scope="module")
def learned(digits):
    return Learned(digits.images, digits.labels)


@pytest.fixture
def few(smoke, digits, learned, monkeypatch):
    """The smoke profile with all objectives and eight steps, and random networks to start from."""
    monkeypatch.setattr(cost, "matmul_peak", lambda *_: 1e11)
    monkeypatch.setattr(differentiable, "Learned", lambda *_: learned)  # which takes seconds
    amounts = {"budget_kimg": 0.256, "batch": 32, "log_kimg": 0.096, "state_kimg": 0.096}
    rates = {"lr": 2e-3, "lr_ramp_kimg": 0.05, "augment": 0.0}
    profile = change(Path(smoke.params_file), cells=CELLS, training=amounts | rates)
    as_trained(profile, START, digits)
    return profile


def start_of(profile):
    return checkpoints.load(profile.checkpoints(START) / "100.safetensors")[0]


def told_classes(n):
    return one_hot(torch.arange(n) % 10, 10).float()


@pytest.mark.parametrize("dropout", [0.0, 0.13])
def test_a_networks_steps_that_are_computed_again_have_the_same_gradients(few, digits, dropout):
    description = runs.specify(few, "edm-baseline-mmd-0", digits)
    description["network"]["dropout"] = dropout
    found = []
    for checkpointed in (True, False):
        denoiser = checkpoints.build(description).train()
        denoiser.load_state_dict(start_of(few).state_dict())
        torch.manual_seed(0)
        samples = Unrolled(denoiser, 2, (0.002, 80.0), checkpointed)(torch.randn(4, 1, 8, 8), told_classes(4))
        samples.square().mean().backward()
        found.append([samples.detach(), *(weight.grad for weight in denoiser.parameters())])
    assert all(each is not None and each.norm() > 0 for each in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7 * one.abs().max().item())


@pytest.mark.parametrize("nfe", [1, 4])
def test_the_unrolled_sampler_is_the_one_that_samples(few, nfe):
    denoiser = start_of(few)
    latents, labels = generation.draw_latents(range(5), denoiser.shape, denoiser.classes)
    *_, wanted = generation.trajectory(denoiser, range(5), "ddim", nfe, to_zero=False)
    with torch.no_grad():
        found = Unrolled(denoiser, nfe, generation.noise_range(denoiser))(latents, one_hot(labels, 10).float())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    with torch.no_grad():
        other = Unrolled(denoiser, nfe, generation.noise_range(denoiser))(latents, told_classes(5).flip(0))
    assert (other - wanted).abs().max() > 1e-3


# ----------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 40, 40)])
def test_features_of_efficientnet_with_gradients_are_those_that_score(shape, digits):
    images = torch.randint(256, (6, *shape), generator=seeded(), dtype=torch.uint8)
    wanted = extractor("efficientnet-lite0")[0](images).double()
    x = to_float(images).double().requires_grad_()
    found = differentiable.FEATURES["efficientnet-lite0"](digits, CPU)(x)
    assert found.dtype == torch.float64
    assert (found - wanted).norm() < 1e-4 * wanted.norm()
    found.square().sum().backward()
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()


def test_features_of_a_classifier_with_gradients_are_those_that_score(digits, learned):
    images = digits.images[:50]
    x = (images.double() / 127.5 - 1).requires_grad_()
    found = differentiable.FEATURES["classifier"](digits, CPU)(x)
    assert found.dtype == torch.float64 and found.shape == (50, 64)
    torch.testing.assert_close(found, learned(images), rtol=0, atol=1e-9)
    found.square().sum().backward()
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()


# ------------------------------------------------------------------------------------------------- what is learnt


class Corrected(nn.Module):
    """An exact denoiser and a small network beside it, which is silent at first."""

    def __init__(self, exact):
        super().__init__()
        self.exact = exact
        self.net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)).double()
        for part in (self.net[-1].weight, self.net[-1].bias):
            nn.init.zeros_(part)

    def forward(self, x, sigma, class_labels=None):
        flat = x.flatten(1) / (1 + sigma**2).sqrt()
        more = self.net(torch.cat([flat, sigma.log().expand(len(x), 1)], 1))
        return self.exact(x, sigma) + more.reshape(x.shape)


def test_fine_tuning_through_three_steps_takes_away_what_they_do_wrong():
    """From 0.10 to 0.02 with an exact denoiser of a mixture in the plane, whose flow three steps do not follow."""
    means = torch.tensor([[-1.2, 0.0], [0.1, 1.0], [1.5, -0.5]]).reshape(3, 1, 1, 2)
    mixture, generator = Mixture(torch.ones(3) / 3, means, torch.full((3,), 0.2)), seeded()
    torch.manual_seed(0)
    denoiser = Corrected(mixture)
    unrolled = Unrolled(denoiser, 3, (0.05, 10.0))

    def discrepancy(n):
        real = mixture.draw(n, generator).flatten(1)
        return mmd2(unrolled(normals(n, 1, 1, 2, generator=generator)).flatten(1), real, rbf)

    with torch.no_grad():
        before = discrepancy(2000).item()
    adam = torch.optim.Adam(denoiser.net.parameters(), 1e-3)
    for _ in range(250):
        adam.zero_grad()
        discrepancy(256).backward()
        nn.utils.clip_grad_norm_(denoiser.net.parameters(), 1.0)
        adam.step()
    with torch.no_grad():
        after = discrepancy(2000).item()
    assert before > 0.08
    assert after < before / 3


# --------------------------------------------------------------------------------------- the parts of SIDDM's loss


def gaussian(beta, g, variance, below, n, generator):
    """A pair in the Gaussian case, made as VP has it and brought to scale 1, and the best linear guess of x_k.

    In VP's scale x_{t-1} ~ N(0, 1), x_t = a x_{t-1} + sqrt(beta) n with a^2 = 1 - beta, and x' = g x_t and noise, of
    that variance. The scales are sqrt(1 + sigma^2).
    """
    scale = (1 + below**2) ** 0.5
    scale_above = scale / (1 - beta) ** 0.5
    x = normals(n, 1, 1, 1, generator=generator)
    above = (1 - beta) ** 0.5 * x + beta**0.5 * normals(n, 1, 1, 1, generator=generator)
    made = g * above + (variance - g**2) ** 0.5 * normals(n, 1, 1, 1, generator=generator)
    levels = column(below, (scale_above**2 - 1) ** 0.5).reshape(2, 1, 1, 1, 1)
    it = Pair(0 * x, scale * x, scale_above * above, *levels, 0 * x, scale * made)
    return it, lambda x: scale_above * g / variance * x / scale


def guessing(guess):
    """A judge that knows nothing but an image a level above."""
    return lambda x, sigma, above, x_above=None: (torch.zeros(len(x)), torch.zeros_like(x), guess(x))


TRUTH = [(beta, (1 - beta) ** 0.5, 1.0, 0.0) for beta in (0.1, 0.5, 0.9)]


@pytest.mark.parametrize("below", [0.0, 0.7, 3.0])
@pytest.mark.parametrize(
    ("beta", "g", "variance", "exact"),
    [(0.5, 0.3, 1.0, 0.1657), (0.1, 0.3, 1.0, 2.104), (0.5, 0.5, 0.6, 0.00956), *TRUTH],
)
def test_the_forward_term_is_a_square_that_vanishes_at_the_truth_alone(beta, g, variance, exact, below):
    """Less the error of the regression: (a V - g)^2 / (2 beta V), whatever the scale."""
    square = ((1 - beta) ** 0.5 * variance - g) ** 2 / (2 * beta * variance)
    assert square == pytest.approx(exact, rel=5e-4, abs=1e-12)
    generator, found, errors = seeded(), [], []
    for _ in range(100):
        it, guess = gaussian(beta, g, variance, below, 4000, generator)
        judge = guessing(guess)
        found.append(generator_losses("siddm", judge, it, it.clean)["forward"].item())
        errors.append(critic_losses("siddm", judge, it, 1)["regression"].item())
    if exact:
        agrees(found, square)
    else:
        assert found == pytest.approx([0] * len(found), abs=1e-12)  # in every draw
    agrees(errors, (1 - g**2 / variance) / (2 * beta))


@pytest.mark.parametrize(("beta", "left"), [(0.1, 0.400), (0.5, 0.0), (0.9, -0.400)])
def test_the_other_written_form_of_the_forward_term_does_not_vanish_at_the_truth(beta, left):
    """(1 - beta) |x'_{t-1} - x_{t-1}|^2 / (2 beta), less the error of the regression, is 1/2 - beta at the truth."""
    generator, found = seeded(), []
    for _ in range(100):
        it, guess = gaussian(beta, (1 - beta) ** 0.5, 1.0, 0.7, 4000, generator)
        scale, scale_above = ((1 + level**2).sqrt() for level in (it.below_sigma, it.above_sigma))
        other = (1 - beta) * ((it.made - it.real) / scale).square() / (2 * beta)
        error = ((it.above - guess(it.made)) / scale_above).square() / (2 * beta)
        found.append((other - error).mean().item())
    assert 0.5 - beta == pytest.approx(left)
    assert agrees(found, 0.5 - beta) < 0.02


@pytest.mark.parametrize(("beta", "g", "variance"), [(0.5, 0.3, 1.0), (0.1, 0.3, 1.0), (0.5, 0.5, 0.6)])
def test_the_toys_forward_term_is_the_square_in_the_scale_of_vp_and_the_noise_added_anew(beta, g, variance):
    generator, found, below = seeded(), [], 0.7
    for _ in range(100):
        it, guess = gaussian(beta, g, variance, below, 4000, generator)
        fresh = normals(4000, 1, 1, 1, generator=generator)
        found.append(generator_losses("siddm toy", guessing(guess), it, fresh)["forward"].item())
    assert 1 - (1 + below**2) / (1 + it.above_sigma.item() ** 2) == pytest.approx(beta)
    agrees(found, 1 - 2 * (1 - beta) ** 0.5 * g + (1 - beta) * variance + beta)


def some_pair(n=6, shape=(1, 8, 8), seed=0):
    """A pair of images at the levels of two steps, with all of it drawn at random."""
    generator, k = seeded(seed), torch.arange(n) % 2 + 1
    noise = {name: torch.randn(n, *shape, generator=generator) for name in ("lower", "upper", "drawn")}
    noise["z"] = torch.randn(n, LATENT, generator=generator)
    clean, drawn = (torch.rand(n, *shape, generator=generator) * 2 - 1 for _ in range(2))
    return adversarial.pair(lambda x, sigma, z: drawn, ladder.levels(2, 80.0), clean, k, noise, False)


def test_ufos_forward_term_is_the_error_of_the_noise_that_the_drawn_image_leaves():
    it = some_pair()
    found = generator_losses("siddm ufo", guessing(lambda x: x), it, it.clean)["forward"]
    noise, left = ((it.above - image) / it.above_sigma for image in (it.clean, it.drawn))
    torch.testing.assert_close(found, (left - noise).square().mean())


def test_a_plain_gan_has_no_forward_term():
    it = some_pair()
    assert generator_losses("ddgan", guessing(lambda x: 2 * x), it, it.clean)["forward"] == 0


def test_the_generator_wants_to_be_taken_for_real_and_the_critic_to_tell_both_apart():
    it, told = some_pair(), torch.tensor([2.0, -1.0], requires_grad=True)

    def judge(x, sigma, above, x_above=None):
        real = (x[:, None] == it.real).flatten(2).all(2).any(1)
        return torch.where(real, *told), 0 * x, x

    for form in ("siddm", "siddm ufo", "ddgan"):
        found = critic_losses(form, judge, it, 2)["critic"]
        right = (0.5, 0.5) if form == "siddm ufo" else (2.0, 1.0)  # in UFO's form no logit is more than right enough
        assert found.item() == pytest.approx(sum(math.log1p(math.exp(-each)) for each in right))
        (slope,) = torch.autograd.grad(found, told)
        assert [float(each) != 0 for each in slope] == [form != "siddm ufo"] * 2
        own = generator_losses(form, judge, it, it.clean)["adversarial"].item()
        assert own == pytest.approx(math.log1p(math.exp(1)))
        taken = generator_losses(form, lambda *seen: (0 * told[:1] + 3.0, seen[0], seen[0]), it, it.clean)
        assert taken["adversarial"].item() == pytest.approx(math.log1p(math.exp(-0.5 if form == "siddm ufo" else -3)))


def test_ufos_critic_has_its_turn_in_every_second_batch_and_the_others_in_every():
    it = some_pair()
    for form in FORMS:
        turns = [bool(critic_losses(form, guessing(lambda x: x), it, step)) for step in range(1, 5)]
        assert turns == ([False, True] * 2 if form == "siddm ufo" else [True] * 4)


def test_the_critic_of_a_plain_gan_is_penalised_for_its_slope_at_real_images_now_and_then():
    """R1 of a logit that is a.x has the slope a everywhere, which by an image in VP's scale is (1 + sigma^2)^1/2 a."""
    it, a = some_pair(), torch.randn(1, 8, 8, generator=seeded(3), requires_grad=True)

    def judge(x, sigma, above, x_above=None):
        return (x * a).sum((1, 2, 3)), 0 * x, x

    had = [step for step in range(1, 46) if "penalty" in critic_losses("ddgan", judge, it, step)]
    assert had == [15, 30, 45]
    found = critic_losses("ddgan", judge, it, 0)["penalty"]
    wanted = adversarial.R1 / 2 * (1 + it.below_sigma.square()).mean() * a.square().sum()
    torch.testing.assert_close(found, wanted)
    found.backward()
    torch.testing.assert_close(a.grad, torch.autograd.grad(wanted, a)[0])
    for form in FORMS:
        assert ("penalty" in critic_losses(form, judge, it, 30)) == (form == "ddgan")


# ------------------------------------------------------------------------------------------ the chain of few levels


def test_the_levels_are_even_in_vps_time_and_none_is_above_the_highest():
    four = torch.tensor([0, 0.954, 3.41, 17.02, 80], dtype=torch.float64)
    torch.testing.assert_close(ladder.levels(4, 80.0), four, rtol=1e-3, atol=0)
    two = torch.tensor([0, 3.41, 80], dtype=torch.float64)
    torch.testing.assert_close(ladder.levels(2, 80.0), two, rtol=1e-3, atol=0)
    assert ladder.levels(4, math.inf)[-1].item() == pytest.approx(152, rel=2e-3)


def test_the_posterior_given_the_clean_image_has_the_law_of_the_chain():
    """Beside x_k as well: their covariance is the variance of the lower level."""
    generator, n = seeded(), 400_000
    levels, clean = ladder.levels(4, 80.0), torch.tensor(0.3, dtype=torch.float64)
    for below, above in itertools.pairwise(levels):
        x = clean + above * normals(n, generator=generator)
        lower = ladder.posterior(x, clean, above, below, normals(n, generator=generator))
        if below == 0:
            assert (lower == clean).all()
            continue
        off = lower - clean
        agrees(off / below, 0)
        agrees((off / below) ** 2, 1)
        agrees(off * (x - clean) / below**2, 1)


class Given:
    """A grid of levels that are given."""

    def __init__(self, *levels):
        self.sigmas = torch.stack(levels)

    def levels(self, steps):
        return self.sigmas


def test_the_posterior_is_a_step_of_ddim_with_all_noise_drawn_anew():
    x, clean, noise = (normals(5, 1, 3, 3, generator=seeded(seed)) for seed in range(3))
    for below, above in itertools.pairwise(ladder.levels(3, 80.0)):
        *_, wanted = SAMPLERS["ddim"].sample(
            lambda x, sigma: clean, above * x, Given(above, below), 1, lambda step: noise, eta=1.0
        )
        found = ladder.posterior(above * x, clean, above, below, noise)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("forward", [False, True])
def test_a_generator_that_draws_what_was_there_makes_pairs_like_the_real_ones(forward):
    """Of Gaussian images, by covariances; noised forward, a drawn image is tied to x_k by what is clean alone."""
    n, generator, spread = 200_000, seeded(), 0.8
    levels = ladder.levels(4, 80.0)
    noise = {name: normals(n, 1, 1, 1, generator=generator) for name in ("lower", "upper", "drawn", "z")}
    clean, k = spread * normals(n, 1, 1, 1, generator=generator), torch.full((n,), 2)

    def exact(x, sigma, z):
        share = spread**2 / (spread**2 + sigma**2)
        return share * x + share.sqrt() * sigma * z

    some = adversarial.pair(
        exact, levels, clean[:4], 1 + torch.arange(4), {key: of[:4] for key, of in noise.items()}, False
    )
    torch.testing.assert_close(some.below_sigma.flatten().double(), levels[:4], rtol=1e-6, atol=0)
    torch.testing.assert_close(some.above_sigma.flatten().double(), levels[1:], rtol=1e-6, atol=0)
    it = adversarial.pair(exact, levels, clean, k, noise, forward)
    for kept in (it.real, it.made):
        agrees(kept.flatten() ** 2, spread**2 + levels[1].item() ** 2)
    agrees(it.above.flatten() ** 2, spread**2 + levels[2].item() ** 2)
    agrees((it.real * it.above).flatten(), spread**2 + levels[1].item() ** 2)
    agrees((it.made * it.above).flatten(), spread**2 + (0 if forward else levels[1].item() ** 2))
    agrees((it.drawn * it.above).flatten(), spread**2)


# ------------------------------------------------------------------------------------------- generator and critic


def generator_of(profile, digits, loud=0.0):
    """A generator of two steps that begins as the first network, and then hears z as loudly as it is said."""
    generator = checkpoints.build(runs.specify(profile, "edm-baseline-siddm-0", digits))
    generator.start(start_of(profile))
    if loud:
        torch.manual_seed(0)
        nn.init.normal_(generator.model.map_augment.weight, std=loud)
    return generator.eval().requires_grad_(False)


def critic_of(profile, digits, seeing=0.0):
    """A critic that begins from the first network, and then sees by random weights."""
    critic = Critic(runs.specify(profile, "edm-baseline-siddm-0", digits)["network"], start_of(profile))
    if seeing:
        torch.manual_seed(0)
        for weight in critic.parameters():
            nn.init.normal_(weight, std=seeing)
    return critic.eval()


def test_a_generator_begins_as_the_denoiser_it_starts_from(few, digits):
    denoiser, generator = start_of(few), generator_of(few, digits)
    x, sigma, labels = 5 * torch.randn(6, 1, 8, 8), torch.full((6,), 3.4), told_classes(6)
    wanted = denoiser(x, sigma, labels)
    assert isinstance(generator, Generator) and generator.steps == 2
    assert torch.equal(generator(x, sigma, labels), wanted)
    assert torch.equal(generator.generated(x, sigma, torch.randn(6, 1, 8, 8), labels), wanted)
    assert not torch.equal(denoiser(x, sigma, told_classes(6).flip(0)), wanted)
    loud = generator_of(few, digits, 1.0)
    drawn = [loud.generated(x, sigma, torch.randn(6, 1, 8, 8), labels) for _ in range(2)]
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3


def test_a_critic_begins_blind_and_with_the_weights_of_the_denoiser(few, digits):
    denoiser, critic = start_of(few), critic_of(few, digits)
    x, labels, sigma = torch.randn(6, 1, 8, 8), told_classes(6), torch.full((6, 1, 1, 1), 0.9)
    with torch.no_grad():
        logit, clean, above = critic(x, sigma, 4 * sigma, torch.randn(6, 1, 8, 8), labels)
        _, same, _ = critic(x, sigma, sigma, None, labels)
    assert logit.tolist() == [0] * 6
    assert torch.equal(above, x)
    assert not torch.equal(clean, same)  # it is told the upper level
    torch.testing.assert_close(same, denoiser(x, sigma, labels), rtol=1e-5, atol=1e-6)
    known = denoiser.model.state_dict()
    others = []
    for name, weight in critic.model.state_dict().items():
        part = weight[tuple(slice(size) for size in known[name].shape)]
        assert torch.equal(part, known[name]), name
        if weight.shape != known[name].shape:
            others.append(name)
            assert weight.abs().sum() == known[name].abs().sum()
    assert others == ["enc.8x8_conv.weight", "dec.8x8_aux_conv.weight", "dec.8x8_aux_conv.bias"]
    assert set(known) - set(critic.model.state_dict()) == set()


@pytest.mark.parametrize("form", FORMS)
def test_the_critic_sees_the_image_above_in_a_plain_gan_alone(few, digits, form):
    critic = critic_of(few, digits, 0.3)
    it, other = some_pair(), torch.randn(6, 1, 8, 8)

    def logits(it):
        """Of real and drawn images together, and of drawn ones alone."""
        told = []

        def judge(*seen):
            told.append(critic(*seen, class_labels=told_classes(len(seen[0]))))
            return told[-1]

        with torch.no_grad():
            critic_losses(form, judge, it, 2)
            generator_losses(form, judge, it, it.clean)
        assert [len(each[0]) for each in told] == [12, 6]
        return [each[0] for each in told]

    first, second = logits(it), logits(it._replace(above=other))
    assert all(each.std() > 1e-4 for each in first)
    changed = [not torch.equal(a, b) for a, b in zip(first, second, strict=True)]
    assert changed == [form == "ddgan"] * 2
    compared = {"clean": form == "siddm toy", "real": form != "siddm toy"}
    for name, matters in compared.items():
        again = logits(it._replace(**{name: other}))
        assert torch.equal(again[0], first[0]) != matters, name
        assert torch.equal(again[1], first[1])  # which real images have no part in
    compared = {"drawn": form == "siddm toy", "made": form != "siddm toy"}
    for name, matters in compared.items():
        again = logits(it._replace(**{name: other}))
        assert [torch.equal(a, b) for a, b in zip(again, first, strict=True)] == [not matters] * 2, name


# ------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("forward", [False, True])
def test_the_sampler_of_drawn_images_goes_down_the_chain_with_a_new_draw_in_every_step(few, digits, forward):
    """Written out, in two steps, by the posterior or noised forward. The noise of the latter ends at zero."""
    generator, asked = generator_of(few, digits, 1.0), []
    generator.noised_forward = forward
    unit = [torch.randn(4, 1, 8, 8, generator=seeded(seed)) for seed in range(10)]

    def noise(step):
        asked.append(step)
        return unit[step]

    sampler, latents = SAMPLERS["siddm"], torch.randn(4, 1, 8, 8, generator=seeded(20))
    grid = Given(*ladder.levels(2, 80.0).flip(0))
    x = 80 * latents.double()
    found = [*sampler.sample(generator, x, grid, 2, noise)]
    assert sorted(set(asked)) == [0, 1, 2, 3] and len(asked) == 4  # of draws, none is used twice
    middle, high = grid.sigmas[1], grid.sigmas[0]
    z = [each.flatten(1)[:, :LATENT] for each in unit]
    first = generator(x, high, None, z[2]).double()
    noised = first + middle * unit[0].double()
    wanted = noised if forward else ladder.posterior(x, first, high, middle, unit[0].double())
    torch.testing.assert_close(found[1], wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[2], generator(wanted, middle, None, z[3]).double(), rtol=1e-5, atol=1e-5)
    for step in (2, 3):
        kept, unit[step] = unit[step], torch.randn(4, 1, 8, 8)
        *_, other = sampler.sample(generator, x, grid, 2, noise)
        assert (other - found[2]).abs().max() > 1e-3
        *_, deaf = sampler.sample(generator_of(few, digits), x, grid, 2, noise)
        unit[step] = kept
        *_, same = sampler.sample(generator_of(few, digits), x, grid, 2, noise)
        assert torch.equal(deaf, same)


def test_drawn_images_are_the_same_for_the_same_seeds_in_any_batch(few, digits):
    generator = generator_of(few, digits, 1.0)
    *_, whole = generation.trajectory(generator, range(6), "siddm", 2)
    *_, part = generation.trajectory(generator, range(3, 5), "siddm", 2)
    torch.testing.assert_close(part, whole[3:5], rtol=1e-4, atol=1e-4)
    assert (whole[0] - whole[1]).abs().max() > 0.01
    assert generation.sample(generator, range(2), "siddm", 2).dtype == torch.uint8


def test_the_sampler_of_drawn_images_refuses_what_the_generator_was_not_trained_for(few, digits):
    generator = generator_of(few, digits)
    with pytest.raises(ValueError, match="the generator was trained for 2 steps, and 3 were asked for"):
        generation.sample(generator, range(2), "siddm", 3)
    with pytest.raises(ValueError, match="a drawn image is clean: the grid ends at 0"):
        generation.sample(generator, range(2), "siddm", 2, to_zero=False)
    with pytest.raises(ValueError, match="drawn images need a source of noise"):
        next(SAMPLERS["siddm"].sample(generator, torch.ones(1, 1, 8, 8), Given(*torch.ones(3)), 2))


# ----------------------------------------------------------------------------------------------- a training's step


@pytest.fixture
def accelerator():
    yield processes.accelerator("fp32", 1, "cpu")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def begun(few, digits, accelerator):
    """What begins a training, with a critic that sees: its objective and engine, and what it draws for a batch."""

    def begin(cell):
        training = runs.training_of(few, f"{cell}-0", digits)
        torch.manual_seed(0)
        about = (training.description, training.run, training.par, CPU, training.start)
        objective = Discrepancy(*about, digits) if cell.endswith("mmd") else Adversarial(*about)
        if isinstance(objective, Adversarial):
            for weight in objective.critic.parameters():
                nn.init.normal_(weight, std=0.1)
        for module in objective.modules().values():
            module.eval()  # without dropout
        engine = Engine(objective, accelerator, False)
        engine.set_rate(1e-3)
        return objective, engine, objective.draw(8, digits.shape, seeded())

    return begin


def batch_of(digits, random, step=0):
    return Batch(step, to_float(digits.images[:8]), told_classes(8), None, random)


def copy_of(module):
    return {name: weight.clone() for name, weight in module.state_dict().items()}


def moved(module, before):
    return any(not torch.equal(weight, before[name]) for name, weight in module.state_dict().items())


class Plain:
    """An objective of one weight vector that goes as far down as its gradient is long."""

    def __init__(self):
        self.module = nn.Linear(4, 1, bias=False)
        self.sgd = torch.optim.SGD(self.module.parameters(), lr=1.0)

    def modules(self):
        return {"one": self.module}

    def optimisers(self):
        return {"one": self.sgd}


@pytest.mark.parametrize(("slope", "clip", "moves"), [(3.0, 0.5, 0.5), (3.0, None, 6.0), (0.1, 0.5, 0.2)])
def test_a_gradient_is_shortened_where_it_is_longer_than_allowed(accelerator, slope, clip, moves):
    objective = Plain()
    engine, before = Engine(objective, accelerator, False), copy_of(objective.module)["weight"]
    with engine.part():
        engine.descend("one", slope * objective.module.weight.sum(), clip)
    torch.testing.assert_close((before - objective.module.weight.detach()), torch.full((1, 4), moves / 2))


@pytest.mark.parametrize(("cell", "longest"), [
    ("edm-baseline-mmd", {"denoiser": 0.5}), ("edm-baseline-siddm", {"denoiser": 1.0, "critic": 1.0}),
])  # fmt: skip
def test_gradients_of_all_networks_are_shortened(begun, digits, cell, longest, monkeypatch):
    objective, engine, random = begun(cell)
    clips, real = {}, Engine.descend

    def descend(engine, name, loss, clip=None):
        clips[name] = clip
        real(engine, name, loss, clip)

    monkeypatch.setattr(Engine, "descend", descend)
    objective.step(engine, batch_of(digits, random))
    assert clips == longest


def test_what_is_drawn_for_a_batch_is_a_step_of_the_chain_and_noise(begun, digits):
    objective, _, _ = begun("edm-baseline-siddm")
    torch.testing.assert_close(objective.levels, ladder.levels(2, 80.0))
    random = objective.draw(4000, digits.shape, seeded())
    assert sorted(random) == ["drawn", "fresh", "k", "lower", "upper", "z"]
    assert random["k"].unique().tolist() == [1, 2]
    assert random["k"].double().mean().item() == pytest.approx(1.5, abs=0.04)
    assert random["z"].shape == (4000, LATENT)
    noise = torch.stack([random[name].flatten(1)[:, :LATENT].flatten() for name in sorted(random) if name != "k"])
    torch.testing.assert_close(noise.cov(), torch.eye(5), rtol=0, atol=0.03)


@pytest.mark.parametrize("form", FORMS)
def test_the_critics_losses_leave_the_generator_alone_and_reach_every_weight_of_the_critic(begun, digits, form):
    objective, _, random = begun(f"edm-baseline-{form.replace(' ', '-')}")
    images, labels = to_float(digits.images[:8]), told_classes(8)
    it = adversarial.pair(
        lambda x, sigma, z: objective.denoiser(x, sigma, labels, z), objective.levels, images, random["k"], random,
        form == "siddm ufo",
    )  # fmt: skip
    assert it.drawn.requires_grad
    judge = functools.partial(objective.critic, class_labels=labels.repeat(2, 1))
    losses = critic_losses(form, judge, it, 2)
    sum(losses.values()).backward()
    assert all(weight.grad is None for weight in objective.denoiser.parameters())
    assert all(weight.grad is not None for weight in objective.critic.parameters())
    assert (losses["regression"] > 0) == (losses["denoising"] > 0) == (form == "siddm")
    clean = objective.critic.model.dec["8x8_aux_conv"].weight.grad
    assert [bool(each.abs().sum() > 0) for each in clean] == [form == "siddm"] * 2


@pytest.mark.parametrize("form", FORMS)
def test_a_step_teaches_the_generator_and_leaves_the_critic_as_its_own_optimiser_made_it(
    begun, digits, form, monkeypatch
):
    cell, noised, real = f"edm-baseline-{form.replace(' ', '-')}", [], adversarial.pair
    monkeypatch.setattr(adversarial, "pair", lambda *given: noised.append(given[-1]) or real(*given))
    learnt = []
    for step in (0, 1):
        alone, engine, random = begun(cell)
        rates = {name: adam.param_groups[0]["lr"] for name, adam in alone.optimisers().items()}
        assert rates == {"denoiser": 1e-3, "critic": pytest.approx(adversarial.RELATIVE * 1e-3)}
        generate = functools.partial(lambda net, x, sigma, z: net(x, sigma, told_classes(8), z), alone.denoiser)
        images = to_float(digits.images[:8])
        it = real(generate, alone.levels, images, random["k"], random, form == "siddm ufo")
        with engine.part():
            judge = functools.partial(alone.critic, class_labels=told_classes(8).repeat(2, 1))
            losses = critic_losses(form, judge, it, step)
            if losses:
                engine.descend("critic", sum(losses.values()), adversarial.CLIP)

        objective, engine, random = begun(cell)
        before = {name: copy_of(module) for name, module in objective.modules().items()}
        found = objective.step(engine, batch_of(digits, random, step))
        learnt.append(bool(losses))
        assert moved(objective.denoiser, before["denoiser"])
        assert moved(objective.critic, before["critic"]) == learnt[-1]
        assert not moved(objective.critic, copy_of(alone.critic))
        assert {name: found[name].item() for name in losses} == {name: each.item() for name, each in losses.items()}
        weights = [weight for module in objective.modules().values() for weight in module.parameters()]
        assert all(weight.grad is None and weight.requires_grad for weight in weights)
        assert next(iter(found)) == "loss"
        assert set(found) == {"loss", "adversarial", "forward", *losses}
        assert found["loss"] == found["adversarial"] + found["forward"]
        assert (found["forward"] != 0) == (form != "ddgan")
    assert learnt == [True, form != "siddm ufo"]
    assert noised == [form == "siddm ufo"] * 2


@pytest.mark.parametrize(("form", "price"), [("siddm", 12), ("siddm toy", 12), ("siddm ufo", 9), ("ddgan", 12)])
def test_a_training_image_costs_what_is_said_of_it(begun, digits, form, price):
    """Images that go through the networks in two steps, by hooks; where a gradient is wanted, three times as many."""
    objective, engine, random = begun(f"edm-baseline-{form.replace(' ', '-')}")
    passed = []
    for module in objective.modules().values():
        module.register_forward_hook(lambda _, given, __: passed.append(len(given[0]) * 3))
    for step in (1, 2):
        objective.step(engine, batch_of(digits, random, step))
    assert sum(passed) / (2 * 8) == price == adversarial.evaluations(form)


@pytest.mark.parametrize("form", FORMS)
def test_a_critic_whose_rate_is_nothing_does_not_move_while_the_generator_goes_down_both_its_losses(
    begun, digits, form
):
    cell = f"edm-baseline-{form.replace(' ', '-')}"
    alone, engine, random = begun(cell)
    it = adversarial.pair(
        lambda x, sigma, z: alone.denoiser(x, sigma, told_classes(8), z), alone.levels, to_float(digits.images[:8]),
        random["k"], random, form == "siddm ufo",
    )  # fmt: skip
    judge = functools.partial(alone.critic.requires_grad_(False), class_labels=told_classes(8))
    with engine.part():
        losses = generator_losses(form, judge, it, random["fresh"])
        engine.descend("denoiser", losses["adversarial"] + losses["forward"], adversarial.CLIP)

    objective, engine, random = begun(cell)
    objective.adams["critic"].param_groups[0]["relative"] = 0
    engine.set_rate(1e-3)
    before = {name: copy_of(module) for name, module in objective.modules().items()}
    average = copy_of(objective.ema)
    found = objective.step(engine, batch_of(digits, random))
    assert {name: found[name].item() for name in losses} == {name: each.item() for name, each in losses.items()}
    assert moved(objective.denoiser, before["denoiser"])
    assert not moved(objective.denoiser, copy_of(alone.denoiser))
    objective.step(engine, batch_of(digits, random, 1))
    assert not moved(objective.critic, before["critic"])
    assert not moved(objective.ema, average)
    engine.average(0.5)
    assert moved(objective.ema, average)
    assert not moved(objective.critic, before["critic"])


@pytest.mark.parametrize("told", [True, False], ids=["classes", "no classes"])
def test_a_step_of_fine_tuning_lowers_the_discrepancy_in_pairs_where_samples_have_the_classes_of_images(
    begun, digits, learned, told
):
    objective, engine, random = begun("edm-baseline-mmd")
    batch = batch_of(digits, random)._replace(class_labels=told_classes(8) if told else None)
    unrolled = Unrolled(objective.denoiser, 2, (0.002, 80.0), checkpointed=False)
    with torch.no_grad():
        made = objective.features(unrolled(random["latents"], batch.class_labels))
        real = objective.features(batch.images)
    torch.testing.assert_close(real, learned(digits.images[:8]), rtol=0, atol=1e-4)
    found = [objective.step(engine, batch._replace(step=step))["loss"].item() for step in range(5)]
    assert found[0] == pytest.approx(mmd2(made, real, paired=told).item(), rel=1e-5)
    assert found[0] != pytest.approx(mmd2(made, real, paired=not told).item(), rel=1e-3)
    assert found[-1] < found[0]


# ------------------------------------------------------------------------------------------------- through the loop

LOSSES = {
    "edm-baseline-mmd-0": ["loss"],
    "edm-baseline-siddm-0": ["loss", "adversarial", "forward", "critic", "regression", "denoising"],
}


def losses_of(profile, dataset, out, name, **how) -> pd.DataFrame:
    """Train, with some parameters changed, and return what is logged of the losses."""
    training = runs.training_of(profile, name, dataset)
    training = training._replace(par=training.par.model_copy(update=how))
    told = loop.train(training, dataset, out / "checkpoints", out / "logs", out / "work", advance=lambda n: None)
    return pd.DataFrame(told["history"]).drop(columns=list(SPEED))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_killed_training_for_few_steps_goes_on_to_the_same_bits(few, digits, tmp_path, name):
    """From the third step of eight."""
    whole = run(few, digits, tmp_path / "whole", name)
    assert killed(few, digits, tmp_path / "killed", dying=dies_at(STATE, 2), name=name)
    (kept,) = tmp_path.glob("killed/work/*/state-*.pt")
    assert int(kept.stem.split("-")[1]) == 3
    assert run(few, digits, tmp_path / "killed", name) == whole
    told = [json.loads((tmp_path / each / "logs/finished.json").read_text()) for each in ("whole", "killed")]
    assert [each["resumed_kimg"] for each in told] == [0, 0.096]
    histories = [pd.DataFrame(each["history"]).drop(columns=list(SPEED)) for each in told]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    denoiser, description = checkpoints.load(tmp_path / "killed/checkpoints/100.safetensors")
    assert isinstance(denoiser, Generator) == ("siddm" in name)
    assert description["few_steps"]["steps"] == 2
    start = start_of(few).state_dict()
    assert all(not torch.equal(weight, start.get(key, 0 * weight)) for key, weight in denoiser.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("edm-baseline-mmd-0", marks=pytest.mark.weekly), "edm-baseline-siddm-0"])
def test_two_processes_give_the_losses_of_one(few, digits, tmp_path, name):
    profile = change(Path(few.params_file), network={"dropout": 0.0})
    alone = losses_of(profile, digits, tmp_path / "alone", name)
    shared = losses_of(profile, digits, tmp_path / "shared", name, processes=2)
    assert list(alone.columns) == ["images", *LOSSES[name], "lr"] and len(alone) == 3
    pd.testing.assert_frame_equal(shared, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_compute_the_gradients_of_one(few, digits, tmp_path, name, monkeypatch):
    """Over two steps, as a critic that is still blind says nothing to the generator."""
    for module in (adversarial, discrepancy):
        monkeypatch.setattr(module, "CLIP", None)
    gradients = []
    for count in (1, 2):
        two_steps = {"budget_kimg": 0.064, "state_kimg": 0.064, "lr_ramp_kimg": 0, "processes": count}
        profile = change(Path(few.params_file), training=two_steps, network={"dropout": 0.0})
        out = tmp_path / str(count)
        assert killed(profile, digits, out, dying=dies_at("*/work/*/finished.json"), name=name)
        (kept,) = out.glob("work/*/state-*.pt")
        adams = torch.load(kept, weights_only=True)["optimisers"]
        gradients.append({
            of: torch.cat([weight["exp_avg"].flatten() for weight in adam["state"].values()])
            for of, adam in adams.items()
        })  # fmt: skip
    assert gradients[0].keys() == ({"denoiser", "critic"} if "siddm" in name else {"denoiser"})
    for of, alone in gradients[0].items():
        assert alone.norm() > 0
        assert (alone - gradients[1][of]).norm() < 1e-3 * alone.norm(), of


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_the_log_has_every_loss_and_each_is_the_mean_of_the_steps_that_have_it(few, digits, tmp_path, name):
    """A critic need not learn in all of them."""
    three = losses_of(few, digits, tmp_path / "three", name)
    each = losses_of(few, digits, tmp_path / "each", name, log_kimg=0.032)
    names = LOSSES[name]
    assert list(three.columns) == list(each.columns) == ["images", *names, "lr"]
    assert three["images"].tolist() == [96, 192, 256]
    assert each["images"].tolist() == [32 * step for step in range(1, 9)]
    for loss in names:
        wanted = [each[loss][first : first + 3].mean() for first in (0, 3, 6)]
        assert three[loss].tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-8), loss
    assert each["loss"].nunique() == 8
    if "siddm" in name:
        assert each["loss"].tolist() == pytest.approx((each["adversarial"] + each["forward"]).tolist(), rel=1e-5)
    finished = json.loads((tmp_path / "three/logs/finished.json").read_text())
    assert pd.DataFrame(finished["history"])[three.columns].equals(three)
    curves = tmp_path / "three/logs/plots/metrics"
    assert {path.stem for path in curves.iterdir()} == {*names, "lr", *SPEED}
    for loss in names:
        assert pd.read_csv(curves / f"{loss}.tsv", sep="\t")[loss].tolist() == pytest.approx(three[loss].tolist())


def test_a_log_counts_a_loss_in_the_steps_that_have_it_alone(few):
    """Of two steps of two parts, the second has no critic's."""
    history = loop._History([], few.training.model_copy(update={"accumulation": 2}), 1, "cpu")

    class Alone:
        """One process."""

        def reduce(self, value, how):
            assert how == "mean"
            return value

    for losses in ({"loss": 1.0, "critic": 2.0}, {"loss": 3.0, "critic": 6.0}, {"loss": 5.0}, {"loss": 7.0}):
        history.add({name: torch.tensor(value) for name, value in losses.items()})
    history.count = 2
    assert history.entry(Alone(), 64) == 4
    assert (history.rows[0]["loss"], history.rows[0]["critic"]) == (4, 4)
    history.add({"loss": torch.tensor(1.0), "critic": torch.tensor(math.nan)})
    assert math.isnan(history.entry(Alone(), 96))


# --------------------------------------------------------------------------------------------------- what is refused

MMD = {"objective": "mmd", "steps": 2, "features": "classifier"}
NAME = "edm-baseline-few"


@pytest.mark.parametrize(("changes", "training", "sentence"), [
    ({"source": "train", "start": None}, {},
     f"cells.{NAME}: few_steps belongs to a cell with source: finetune, and to no other"),
    ({"few_steps": {"objective": "siddm", "steps": 2, "features": "classifier"}}, {},
     f"cells.{NAME}.few_steps: few_steps.features belongs to the objective mmd, and to no other"),
    ({"few_steps": {"objective": "mmd", "steps": 2}}, {},
     f"cells.{NAME}.few_steps: few_steps.features belongs to the objective mmd, and to no other"),
    ({"few_steps": MMD | {"features": "efficientnet-lite0"}}, {},
     f"cells.{NAME}.few_steps.features: efficientnet-lite0 scores the samples, and must not train the network"),
    ({"few_steps": {"objective": "siddm", "steps": 1}}, {}, f"cells.{NAME}.few_steps: siddm takes at least 2 steps"),
    ({"few_steps": {"objective": "siddm", "steps": 2}, "warmup_steps": 5}, {},
     f"cells.{NAME}.few_steps: siddm has no loss weight to warm up"),
    ({"warmup_steps": 5}, {}, f"cells.{NAME}.few_steps: mmd has no loss weight to warm up"),
    ({"few_steps": {"objective": "siddm", "steps": 2}}, {"augment": 0.1},
     f"cells.{NAME}.few_steps: it is for the networks of a framework, without variant, and augment: 0"),
    ({"variant": "c_in 1"}, {},
     f"cells.{NAME}.few_steps: it is for the networks of a framework, without variant, and augment: 0"),
    ({}, {"accumulation": 2},
     f"cells.{NAME}.few_steps: its loss is one of the whole batch; set training.accumulation to 1"),
    ({"few_steps": {"objective": "siddm", "steps": 2}}, {"accumulation": 2},
     f"cells.{NAME}.few_steps: critic and generator learn in turn; set training.accumulation to 1"),
    ({"framework": "cld", "start": "cld-baseline"}, {},
     "cells.cld-baseline-few: a network of cld is a baseline that is trained here"),
    ({"batch": 128}, {"processes": 3, "batch": 129},
     f"cells.{NAME}.batch: 128 is not allowed; it must be a multiple of processes x accumulation, 3 x 1"),
    ({"few_steps": MMD | {"steps": 0}}, {}, f"cells.{NAME}.few_steps.steps: 0 is not allowed; input should be "),
    ({"few_steps": MMD | {"objective": "gan"}}, {}, f"cells.{NAME}.few_steps.objective: 'gan' is not allowed; "),
])  # fmt: skip
def test_what_cannot_be_trained_for_few_steps_stops_with_one_sentence(study, capsys, changes, training, sentence):
    cell = BASE | {"source": "finetune", "start": "edm-baseline", "few_steps": MMD} | changes
    cell = {key: value for key, value in cell.items() if value is not None}
    name = f"{cell['framework']}-baseline-few"
    refused(study, capsys, sentence, cells={name: cell}, training=training)


@pytest.mark.parametrize(("setting", "sentence"), [
    ({"sampler": "heun", "nfe": [5], "cells": ["edm-baseline-siddm"]},
     "evaluation.settings, heun: edm-baseline-siddm is a generator, sampled by siddm alone"),
    ({"sampler": "siddm", "nfe": [2], "cells": ["edm-baseline"]},
     "evaluation.settings, siddm: edm-baseline is no generator"),
])  # fmt: skip
def test_a_network_is_measured_by_samplers_that_are_for_it(study, capsys, setting, sentence):
    values = yaml.safe_load((study / "params.yaml").read_text())["evaluation"]
    evaluation = values | {"settings": [*values["settings"], setting]}
    refused(study, capsys, sentence, cells=CELLS, training={}, evaluation=evaluation)


def test_what_can_be_trained_for_few_steps_is_not_refused(study):
    profile = change(study / "params.yaml", cells=CELLS)
    few = {run.cell: run.generates for run in profile.runs.values() if run.few_steps}
    assert few == {name: name != "edm-baseline-mmd" for name in CELLS if name != "edm-baseline"}
