"""Networks that see auxiliary variables: objectives against closed forms, the bound, sampling with all of y."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fdm.data import sources
from fdm.model import checkpoints
from fdm.model.joint import LEVELS, JointDenoiser, noise_scale
from fdm.model.oracle import Mixture
from fdm.process import multivariate
from fdm.process.joint import JOINT
from fdm.samplers import SAMPLERS
from fdm.samplers.grids import Karras
from fdm.study import networks, profiles, runs
from fdm.tasks import denoising, generation
from fdm.training import loop
from fdm.training.objectives import hybrid

from .conftest import change

SEARCHED = multivariate.searched(torch.tensor(0.7), torch.tensor([[0.8, 0.0], [0.3, 0.9]]))
PROCESSES = {"vp": multivariate.vp(), "cld": multivariate.cld(), "alda": multivariate.alda(),
             "malda": multivariate.malda(), "searched": SEARCHED}  # fmt: skip
BS = torch.tensor([0.05, 0.3, 1.2, 3.0], dtype=torch.float64)


def description(framework):
    network = {"architecture": "ddpmpp", "resolution": 8, "channels": 2, "label_dim": 10, "augment_dim": 0,
               "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
               "dropout": 0.0}  # fmt: skip
    return {"network": network, "denoiser": {"framework": framework}}


def network(framework):
    torch.manual_seed(0)
    denoiser = checkpoints.build(description(framework))
    for weight in denoiser.model.parameters():  # the published initialisation silences the output
        torch.nn.init.normal_(weight, std=0.2)
    return denoiser.eval().requires_grad_(False)


# ----------------------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("name", PROCESSES)
def test_the_weight_of_the_bound_is_half_of_how_fast_the_signal_to_noise_ratio_falls(name):
    process, h = PROCESSES[name], 1e-4

    def ratio(B):
        return process.channel(B)[1] ** -2

    slopes = (ratio(BS * (1 - h)) - ratio(BS * (1 + h))) / (2 * h * BS)
    torch.testing.assert_close(process.weight(BS), slopes / 2, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_levels_are_found_again_and_the_prior_gap_is_that_of_two_gaussians(name):
    process = PROCESSES[name]
    levels = torch.tensor([0.002, 0.1, 1.0, 20.0, 80.0], dtype=torch.float64)
    torch.testing.assert_close(process.channel(process.times(levels))[1], levels, rtol=1e-5, atol=0)
    for B in BS:
        x = torch.tensor(0.8, dtype=torch.float64)
        one = torch.distributions.MultivariateNormal(x * process.coefficients(B)[:, 0], process.covariance(B))
        other = torch.distributions.MultivariateNormal(torch.zeros(len(process.m)).double(), torch.diag(process.m))
        wanted = torch.distributions.kl_divergence(one, other)
        torch.testing.assert_close(process.prior_gap(B, x**2), wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.weekly if name in ("alda", "cld", "malda") else []) for name in PROCESSES],
)
def test_with_an_exact_denoiser_every_process_has_the_entropy_as_its_bound(name):
    """Gaussian data: minus the bound is the entropy, and the prior gap less what y then tells of the pixel, for all.

    The mean of the squared noise in z is known, and taken out of the error of the mean.
    """
    process, deviation, n = PROCESSES[name], 0.6, 100_000
    generator = torch.Generator().manual_seed(0)
    images = deviation * torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
    u = (torch.arange(n) + 0.5).reshape(-1, 1, 1, 1)[torch.randperm(n, generator=generator)] / n
    noise = torch.randn(n, 1, 1, 1, len(process.m), generator=generator, dtype=torch.float64)

    def exact(y, sigma, class_labels, augment_labels, B):
        w, sigma, _ = process.channel(B)
        z = (w[:, None, None, None] * y).sum(-1)
        return z * (deviation**2 / (deviation**2 + sigma**2)).reshape(-1, 1, 1, 1)

    found = hybrid.bound(exact, process, images, u, noise)
    low, high = LEVELS["mdm"]
    sigma = (math.log(low) + u.flatten().double() * math.log(high / low)).exp()
    B = process.times(sigma)
    z = (process.channel(B)[0][:, None, None, None] * hybrid.perturbed(process, images, B, noise)).sum(-1)
    share = (deviation**2 / (deviation**2 + sigma**2)).reshape(-1, 1, 1, 1)
    # (D - x)^2 is share^2 of the squared noise at low levels, and (1 - share)^2 of the squared image at high ones.
    known = math.log(high / low) * share**2 * (((z - images) / sigma.reshape(-1, 1, 1, 1)) ** 2 - 1)
    left = found - known
    error = left.std() / n**0.5
    entropy = math.log(deviation) + (1 + math.log(2 * math.pi)) / 2
    assert error < 0.02
    assert left.mean().item() == pytest.approx(entropy, abs=4 * error.item())


@pytest.mark.parametrize("part", ["coupling", "root"])
def test_the_gradient_of_the_bound_is_its_slope_over_the_process(part):
    """By finite differences at the same levels with the same noise, of a denoiser that takes y as it is."""
    denoiser = checkpoints.build(description("mdm")).train()
    generator = torch.Generator().manual_seed(0)
    images, u = torch.rand(6, 1, 4, 4, generator=generator), torch.rand(6, 1, 1, 1, generator=generator)
    noise = torch.randn(6, 1, 4, 4, 2, generator=generator)

    def loss():
        return hybrid.bound(lambda y, *_: 0.3 * y[..., 0] + 0.2 * y[..., 1], denoiser.process, images, u, noise).mean()

    loss().backward()
    weight = getattr(denoiser, part)
    for place in [()] if part == "coupling" else [(0, 0), (1, 0), (1, 1)]:
        ends = []
        for h in (1e-3, -1e-3):
            with torch.no_grad():
                weight[place] += h
                ends.append(loss().item())
                weight[place] -= h
        assert weight.grad[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=2e-2, abs=1e-4)


def test_how_far_a_process_is_from_rest_is_a_divergence_and_counts_noise_in_its_own_units():
    for name, process in PROCESSES.items():
        B = torch.tensor(0.7, dtype=torch.float64)
        c, S = process.coefficients(B)[:, 0], process.covariance(B)
        zero = torch.zeros(len(process.m), dtype=torch.float64)
        one = torch.distributions.MultivariateNormal(zero, S + 0.3 * torch.outer(c, c))
        wanted = torch.distributions.kl_divergence(
            one, torch.distributions.MultivariateNormal(zero, torch.diag(process.m))
        )
        assert process.unrest(B, 0.3).item() == pytest.approx(wanted.item(), rel=1e-8), name
    units = torch.tensor([1.0, 3.0], dtype=torch.float64)  # a velocity in another unit
    known = multivariate.cld()
    other = known._replace(Q=known.Q * units[:, None] * units, D=known.D * units[:, None] * units, m=known.m * units**2,
                           start=known.start * units**2)  # fmt: skip
    assert other.noise.item() == pytest.approx(known.noise.item()) == pytest.approx(4)
    assert other.unrest(torch.tensor(0.7), 0.3).item() == pytest.approx(known.unrest(torch.tensor(0.7), 0.3).item())
    assert SEARCHED.noise.item() == pytest.approx(4)


# ------------------------------------------------------------------------------------------------------ networks


def test_the_hybrid_loss_is_the_error_of_the_velocitys_noise():
    """Written out: the network's share of the score beside that of data of variance 1, against the noise drawn."""
    denoiser, process = network("cld"), multivariate.cld()
    generator = torch.Generator().manual_seed(1)
    images, noise = torch.rand(5, 1, 8, 8, generator=generator), torch.randn(5, 1, 8, 8, 2, generator=generator)
    u, labels = torch.tensor([0.002, 0.1, 0.4, 0.8, 1.0]).reshape(-1, 1, 1, 1), torch.eye(10)[:5]
    found = hybrid.hybrid(denoiser, process, images, u, noise, labels)
    t = 1e-5 + u.flatten().double() * (1 - 1e-5)
    C, S = process.coefficients(4 * t), process.covariance(4 * t)
    root = torch.linalg.cholesky(S)
    for i in range(5):
        y = C[i, :, 0] * images[i].double()[..., None] + noise[i].double() @ root[i].T
        F = denoiser.model(
            y.permute(3, 0, 1, 2).reshape(1, 2, 8, 8).float(), 999 * t[i : i + 1].float(), labels[i : i + 1]
        )
        scale, of_data = noise_scale(S)[i], S[i, 1, 1] + C[i, 1, 0] ** 2
        said = F[0, 1:].double() + scale * y[..., 1] / of_data
        torch.testing.assert_close(found[i], (said - noise[i, ..., 1].double()) ** 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("framework", JOINT)
def test_a_joint_denoiser_is_a_denoiser_of_the_position_and_one_of_all_variables(framework):
    denoiser = network(framework)
    assert (denoiser.shape, denoiser.classes, denoiser.condition) == ((1, 8, 8), 10, None)
    assert denoiser.sigma_range == LEVELS[framework]
    assert generation.noise_range(denoiser) == (0.002, 80.0)
    x, labels = torch.randn(3, 1, 8, 8), torch.eye(10)[:3]
    one = denoiser(x, torch.tensor(2.0), labels)
    assert one.dtype == torch.float32 and one.shape == x.shape
    torch.testing.assert_close(denoiser(x, torch.full((3,), 2.0), labels), one)
    torch.testing.assert_close(denoiser(x[:2], torch.tensor(2.0), labels[:2]), one[:2], rtol=1e-4, atol=1e-5)
    process = denoiser.process
    B = process.times(torch.tensor(2.0))
    y = multivariate.lift(process, B, x.double(), torch.randn(3, 1, 8, 8, 2, dtype=torch.float64))
    torch.testing.assert_close(y @ process.channel(B)[0], x.double())
    other = denoiser.joint(y, torch.tensor(2.0), labels)
    assert not torch.allclose(other.float(), one)  # another velocity


def test_lifted_variables_have_the_covariance_of_the_process():
    for name in ("cld", "malda", "searched"):
        process, n = PROCESSES[name], 100_000
        generator, B = torch.Generator().manual_seed(0), torch.tensor(0.5, dtype=torch.float64)
        _, sigma, c = process.channel(B)
        z = 0.4 + sigma * torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
        draw = torch.randn(n, 1, 1, 1, len(process.m), generator=generator, dtype=torch.float64)
        y = multivariate.lift(process, B, z, draw)[:, 0, 0, 0]
        torch.testing.assert_close(y.mean(0), 0.4 * c, rtol=0, atol=0.015)
        torch.testing.assert_close(y.T.cov(), process.covariance(B), rtol=0.03, atol=0.01)


def test_a_process_that_was_searched_for_is_kept_with_its_network(tmp_path):
    denoiser = network("mdm")
    with torch.no_grad():
        denoiser.coupling.fill_(1.7)
        denoiser.root.copy_(torch.tensor([[0.4, 0.0], [0.2, 1.1]]))
    checkpoints.save(tmp_path / "one.safetensors", denoiser, description("mdm"))
    again, _ = checkpoints.load(tmp_path / "one.safetensors")
    assert isinstance(again, JointDenoiser)
    for mine, other in zip(denoiser.process, again.process, strict=True):
        assert torch.equal(mine, other)
    assert again.process.Q[1, 0].item() == pytest.approx(1.7)
    assert again.process.noise.item() == pytest.approx(4)
    assert again.process is again.process  # its table of levels is made once


class Seen:
    """A denoiser of all variables of some process, exact, that counts how it is asked."""

    def __init__(self, process):
        self.process, self.calls, self.mixture = process, 0, Mixture.reference()

    def __call__(self, x, sigma):
        raise AssertionError("asked of the position alone")

    def joint(self, y, sigma):
        self.calls += 1
        return self.mixture(y @ self.process.channel(self.process.times(sigma))[0], sigma)


@pytest.mark.parametrize("name", ["multivariate-em", "multivariate-sscs", "multivariate-flow"])
def test_a_sampler_asks_what_sees_all_variables_with_all_of_them_and_in_its_own_process(name):
    n, seen = 20_000, Seen(SEARCHED)
    generator = torch.Generator().manual_seed(0)
    data = seen.mixture.draw(n, generator).flatten().sort().values
    x = 80 * torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)

    def noise(i):
        return torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(100 + i), dtype=torch.float64)

    entry = SAMPLERS[name]
    *_, z = entry.sample(seen, x, Karras(0.002, 80.0), entry.steps(120, False), noise)
    assert seen.calls == 120
    assert (z.flatten().sort().values - data).abs().mean().item() < 0.06


def test_a_coupling_below_clds_is_over_damped_and_explicit_steps_through_it_are_unstable():
    """The splitting sampler goes exactly through what is linear, and does not mind."""
    seen = Seen(multivariate.searched(torch.tensor(0.37), torch.tensor([[0.1, 0.0], [0.0, 1.0]])))
    values = torch.linalg.eigvals(seen.process.A)
    assert values.imag.abs().max() == 0 and values.real.min() < 20 * values.real.max() < 0
    x = 80 * torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def noise(i):
        return torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(100 + i), dtype=torch.float64)

    def spread(name):
        *_, z = SAMPLERS[name].sample(seen, x, Karras(0.002, 80.0), SAMPLERS[name].steps(50, False), noise)
        return z.std().item()

    assert spread("multivariate-sscs") == pytest.approx(0.94665**0.5, abs=0.05)
    assert spread("multivariate-em") > 1000 and spread("multivariate-flow") > 10


# ------------------------------------------------------------------------------------------------------ training


@pytest.fixture
def study_of_joint(smoke):
    """The smoke profile with networks of both kinds on the known distribution."""
    cells = {"cld-baseline": {"framework": "cld", "kernel": "baseline"},
             "mdm-baseline": {"framework": "mdm", "kernel": "baseline"}}  # fmt: skip
    profile = change(
        Path(smoke.params_file), dataset={"name": "exact-gaussians"}, cells=cells,
        training={"budget_kimg": 2.048, "batch": 64, "augment": 0.0, "log_kimg": 0.512, "state_kimg": 0.512, "lr": 2e-3,
                  "lr_ramp_kimg": 0.1},
    )  # fmt: skip
    return profile, sources.prepare(profile.dataset, profile.dataset_file)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["cld-baseline", "mdm-baseline"])
def test_a_joint_network_is_trained_by_the_same_loop_and_measured_like_any_other(study_of_joint, cell, tmp_path):
    profile, dataset = study_of_joint
    run = f"{cell}-0"
    training = runs.training_of(profile, run, dataset)
    done = loop.train(training, dataset, profile.checkpoints(run), tmp_path / "logs", tmp_path / "work")
    losses = [row["loss"] for row in done["history"]]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    denoiser, _ = networks.denoiser_of(profile, run, dataset, profile.checkpoints(run), 1.0,
                                       runs.expected(profile, run, dataset))  # fmt: skip
    held, labels = dataset.held[:32], dataset.held_labels[:32]
    error = denoising.squared_errors(denoiser, held, labels, torch.tensor([0.1, 1.0]), dataset.mixture).mean(1)
    assert torch.isfinite(error).all()
    samples = generation.sample(denoiser, range(4), "multivariate-sscs", 8)
    assert samples.shape == (4, 1, 8, 8)
    if cell == "mdm-baseline":
        assert denoiser.process.Q[1, 0] != 1  # it has moved
    denoiser = generation.sample(denoiser, range(4), "heun", 9)
    assert denoiser.shape == (4, 1, 8, 8)


@pytest.mark.parametrize(("changes", "words"), [
    ({"kernel": "fdm"}, "a network of cld is a baseline that is trained here"),
    ({"source": "analytic"}, "a network of cld is a baseline that is trained here"),
])  # fmt: skip
def test_what_a_joint_network_cannot_be_is_refused(smoke, changes, words):
    kernel = changes.get("kernel", "baseline")
    cells = {f"cld-{kernel}": {"framework": "cld", "kernel": "baseline"} | changes}
    with pytest.raises(Exception, match=words):
        change(Path(smoke.params_file), cells=cells)
    assert profiles.find("digits")
