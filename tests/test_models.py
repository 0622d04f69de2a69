"""Properties of denoisers, augmentation and samplers that no recorded array covers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fdm.model.denoiser import Denoiser
from fdm.model.oracle import Mixture
from fdm.model.unet import UNet
from fdm.process.frameworks import FRAMEWORKS
from fdm.samplers import GRIDS, SAMPLERS
from fdm.samplers.dpm_solver import single_step_orders
from fdm.samplers.noise import UnitNoise
from fdm.tasks import generation
from fdm.training import augmentation


def small(framework="edm", kernel="fdm", classes=10) -> Denoiser:
    torch.manual_seed(0)
    net = UNet(FRAMEWORKS[framework].architecture, 8, 1, classes, 9, 8, [1, 2], 1, [4], 0.1)
    for parameter in net.parameters():  # the published initialisation silences the output
        torch.nn.init.normal_(parameter, std=0.2)
    return Denoiser(net, framework, kernel).eval()


# ------------------------------------------------------------------------------------------------------ denoiser


def test_a_batch_may_have_one_noise_level_or_one_an_image():
    denoiser = small()
    x, one_hot = torch.randn(3, 1, 8, 8), torch.eye(10)[:3]
    one = denoiser(x, torch.tensor(2.0), one_hot)
    many = denoiser(x, torch.full((3,), 2.0), one_hot)
    torch.testing.assert_close(one, many)
    assert one.shape == x.shape
    assert not torch.allclose(one, denoiser(x, torch.tensor(2.0), one_hot.flip(0)))  # classes matter


def test_a_denoiser_says_what_it_is_of_and_edm_alone_without_fdm_takes_any_noise_level():
    for name, process in FRAMEWORKS.items():
        for kernel in ("baseline", "fdm"):
            denoiser = small(name, kernel)
            assert (denoiser.shape, denoiser.classes, denoiser.condition) == ((1, 8, 8), 10, None)
            free = name == "edm" and kernel == "baseline"
            assert denoiser.sigma_range == ((0.0, float("inf")) if free else process.sigma_range)
            assert generation.noise_range(denoiser)[1] == 80
            assert generation.noise_range(denoiser, 1000.0)[1] == (1000 if free else process.sigma_range[1])
            assert generation.noise_range(denoiser)[0] == (0.02 if name == "ve" else 0.002)


# -------------------------------------------------------------------------------------------------- augmentation


def test_augmentation_with_probability_zero_is_the_identity():
    images = torch.randn(16, 3, 8, 8)
    transforms = augmentation.draw_transforms(16, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(augmentation.transform(images, transforms), images)
    assert transforms.labels().abs().max() == 0


def test_augmentation_draws_each_kind_as_often_as_asked():
    n, p = 20_000, 0.12
    t = augmentation.draw_transforms(n, p, torch.Generator().manual_seed(0))
    assert t.xflip.mean() == pytest.approx(0.5, abs=0.02)  # drawn for every image
    assert t.yflip.mean() == pytest.approx(p / 2, abs=0.01)
    for kind in (t.scale, t.angle, t.aniso, t.shift_x):
        assert (kind != 0).float().mean() == pytest.approx(p, abs=0.01)
    assert torch.equal(t.shift_x != 0, t.shift_y != 0)


def test_augmentation_leaves_unwarped_images_alone_and_full_turns_too():
    images = torch.randn(4, 3, 16, 16)
    zero = augmentation.Transforms(*torch.zeros(8, 4))
    turned = zero._replace(angle=torch.tensor([0.0, 2 * np.pi, 0.0, 0.0]))
    out = augmentation.transform(images, turned)
    assert torch.equal(out[[0, 2, 3]], images[[0, 2, 3]])
    assert (out[1] - images[1]).abs().max() < 1e-4  # the resampling filters reconstruct perfectly


# ------------------------------------------------------------------------------------------------------ samplers

# GMS asks for moments besides D, which these denoisers do not know: test_gms.py has its tests.
WAYS = [(name, {}) for name in SAMPLERS if name not in ("gms", "siddm")] + [
    ("heun", {"S_churn": 4.0, "S_noise": 1.01}),
    ("ddim", {"eta": 0.5}),
]


def identified(way) -> str:
    return way if isinstance(way, str) else ",".join(f"{key}={value}" for key, value in way.items())


def usual(sampler, low=0.002, high=80.0):
    """The grid that a sampler usually has."""
    entry = SAMPLERS[sampler]
    return GRIDS[entry.grid](low, high, entry.to_zero)


def run(sampler, D, latents, nfe, grid=None, **options):
    """All x of a sampler in `nfe` evaluations from standard normal latents."""
    entry, grid = SAMPLERS[sampler], grid or usual(sampler)
    noise = UnitNoise(range(len(latents)), tuple(latents.shape[1:]))
    return list(entry.sample(D, latents.double() * grid.high, grid, entry.steps(nfe, grid.to_zero), noise, **options))


def gaussian(x, sigma):
    """D for data of N(1, 0.5^2), whose trajectories are known: (x - 1)/sqrt(0.25 + sigma^2) stays what it was."""
    return (0.25 * x + sigma.double() ** 2) / (0.25 + sigma.double() ** 2)


@pytest.mark.parametrize(("sampler", "options"), WAYS, ids=identified)
@pytest.mark.parametrize("framework", ["vp", "ve", "edm"])
def test_samples_do_not_depend_on_the_batch_and_follow_their_seed(framework, sampler, options):
    denoiser, nfe = small(framework), {"f-pndm": 13, "multivariate-flow": 6}.get(sampler, 5)
    together = generation.sample(denoiser, range(0, 6), sampler, nfe, **options)
    apart = torch.cat([generation.sample(denoiser, range(i, i + 2), sampler, nfe, **options) for i in (0, 2, 4)])
    assert (together.int() - apart.int()).abs().max() <= 1  # a rounding of the 256 shades
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize(("sampler", "options"), WAYS, ids=identified)
@pytest.mark.parametrize("nfe", [13, 15])
def test_the_number_of_evaluations_is_the_one_asked_for(sampler, options, nfe):
    calls, nfe = [], nfe + 1 if sampler == "multivariate-flow" else nfe

    def D(x, sigma):
        calls.append(float(sigma.max()))
        return x * 0

    *_, x = run(sampler, D, torch.randn(2, 1, 4, 4), nfe, **options)
    assert len(calls) == nfe
    assert min(calls) >= 0.002 * 0.999
    assert max(calls) <= 80 * (1.001 if not options.get("S_churn") else 2**0.5)
    assert x.dtype == torch.float64
    if sampler.startswith("multivariate"):
        return  # with so few steps the velocity still moves the pixels
    # The denoiser says black, and epsilon scaling keeps a share of the last level.
    assert x.abs().max() < 1e-6 or not SAMPLERS[sampler].to_zero or sampler == "epsilon-scaling"
    assert x.abs().max() < 0.05


@pytest.mark.parametrize("sampler", dict(WAYS))
def test_a_path_begins_with_x_as_it_is_given_and_has_a_state_for_every_step(sampler):
    latents, nfe = torch.randn(2, 1, 1, 1), 16 if sampler == "multivariate-flow" else 15
    path = run(sampler, gaussian, latents, nfe)
    assert torch.equal(path[0], latents.double() * 80)
    steps = SAMPLERS[sampler].steps(nfe, SAMPLERS[sampler].to_zero)
    # DPM-Solver++'s steps are its evaluations, shared out to single steps of up to three; then it denoises once more.
    assert len(path) == (len(single_step_orders(steps)) + 2 if sampler == "dpm-solver++" else steps + 1)


@pytest.mark.parametrize("sampler", ["heun", "ddim"])
def test_one_step_to_zero_returns_D(sampler):
    latents = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *_, x = run(sampler, gaussian, latents, 1)
    torch.testing.assert_close(x, gaussian(80 * latents, torch.tensor(80.0)), rtol=1e-9, atol=1e-9)


# Epsilon scaling keeps more noise, and a process with other variables or with noise to the end goes another way.
STRAIGHT = [name for name in dict(WAYS) if not any(word in name for word in ("scal", "sde", "multivariate"))]


@pytest.mark.parametrize("sampler", STRAIGHT)
def test_any_sampler_returns_a_denoiser_that_does_not_depend_on_x(sampler):
    latents, nfe = torch.randn(2, 1, 4, 4), 13 if sampler == "f-pndm" else 3
    grid = usual(sampler)
    *_, x = run(sampler, lambda x, sigma: x * 0 + 0.3, latents, nfe)
    # The way there is straight; a sampler that ends at the lowest level, without a last denoising, is still on it.
    share = 0.0 if grid.to_zero or sampler == "dpm-solver++" else grid.low / grid.high
    torch.testing.assert_close(x, 0.3 + share * (80 * latents.double() - 0.3), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("sampler", "nfe", "to_zero", "reason"),
    [
        ("heun", 10, True, "odd"), ("heun", 0, True, "odd"), ("heun", 11, False, "even"), ("heun", 0, False, "even"),
        ("dpm-solver++", 1, False, "at least 2"), ("dpm-solver++", 5, True, "at least 2"),
        ("ddim", 0, True, "at least 1"), ("ddim", 0, False, "at least 1"),
        ("s-pndm", 1, False, "at least 2"), ("s-pndm", 5, True, "above 0"),
        ("f-pndm", 12, False, "at least 13"), ("f-pndm", 25, True, "above 0"),
    ],
)  # fmt: skip
def test_impossible_numbers_of_evaluations_are_refused(sampler, nfe, to_zero, reason):
    with pytest.raises(ValueError, match=reason):
        SAMPLERS[sampler].steps(nfe, to_zero)
    with pytest.raises(ValueError, match=reason):
        generation.sample(Mixture.reference(), range(2), sampler, nfe, to_zero=to_zero)


@pytest.mark.parametrize(
    ("sampler", "options", "sentence"),
    [
        ("ddim", {"S_churn": 1.0}, "S_churn is no option of DDIM; it has eta"),
        ("ddim", {"eta": float("nan")}, "eta: nan is not allowed"),
        ("ddim", {"eta": True}, "eta: True is not allowed"),
        ("heun", {"S_noise": "much"}, "S_noise: 'much' is not allowed for Heun; it must be 0.5 to 2"),
    ],
)
def test_options_that_a_sampler_does_not_have_are_refused(sampler, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        generation.sample(Mixture.reference(), range(2), sampler, 5, **options)


@pytest.mark.parametrize(("sampler", "options"), [("heun", {"S_churn": 4.0}), ("ddim", {"eta": 1.0})])
def test_a_stochastic_sampler_needs_a_source_of_noise(sampler, options):
    grid = usual(sampler)
    with pytest.raises(ValueError, match="needs a source of noise"):
        list(SAMPLERS[sampler].sample(gaussian, torch.zeros(1, 1, 1, 1), grid, 3, **options))


def error_of(sampler, latents, nfe, grid):
    """The largest distance to the known trajectory, at the grid's lowest level."""
    *_, before, last = run(sampler, gaussian, latents, nfe, grid)
    at_low = before if grid.to_zero or sampler == "dpm-solver++" else last  # else the last step is to zero
    exact = 1 + (latents * grid.high - 1) * np.sqrt((0.25 + grid.low**2) / (0.25 + grid.high**2))
    return (at_low - exact).abs().max().item()


@pytest.mark.parametrize(
    ("sampler", "coarse", "fine", "order"),
    [
        ("heun", 79, 159, 2), ("ddim", 160, 320, 1), ("s-pndm", 81, 161, 2), ("f-pndm", 89, 169, 2),
        # k steps of order 3, then one of order 2, whose local error is of order 3 too, and the final denoising.
        ("dpm-solver++", 3 * 16 + 3, 3 * 32 + 3, 3),
    ],
)  # fmt: skip
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 100))
def test_a_sampler_converges_with_its_order(sampler, coarse, fine, order, seed):
    latents = torch.randn(8, 1, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    errors = [error_of(sampler, latents, nfe, usual(sampler, 0.1, 10.0)) for nfe in (coarse, fine)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


def test_noise_is_of_seed_and_step_alone_and_not_that_of_the_latents():
    shape = (1, 4, 4)
    noise = UnitNoise(range(3, 7), shape)
    assert torch.equal(noise(2)[1:3], UnitNoise(range(4, 6), shape)(2))
    drawn = [noise(0), noise(1), generation.draw_latents(range(3, 7), shape, 0)[0]]
    flat = torch.stack(drawn).reshape(12, -1)
    assert len({tuple(row.tolist()) for row in flat}) == 12
    many = UnitNoise(range(2000), (1, 1, 4))(0)
    assert many.mean() == pytest.approx(0, abs=0.05)
    assert many.std() == pytest.approx(1, abs=0.05)
