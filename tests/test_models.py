"""Properties of denoiser, losses, networks, augmentation and samplers that no recorded array covers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fdm import augmentation, losses, sampling
from fdm.networks import UNet
from fdm.preconditioning import SIGMA_DATA, Denoiser, coefficients
from fdm.samplers import SAMPLERS, dpm_solver_pp, heun, heun_steps

levels = st.floats(0.002, 80)


def small(framework="edm", kernel="fdm", classes=10) -> Denoiser:
    torch.manual_seed(0)
    net = UNet("ncsnpp" if framework == "ve" else "ddpmpp", 8, 1, classes, 9, 8, [1, 2], 1, [4], 0.1)
    for parameter in net.parameters():  # the published initialisation silences the output
        torch.nn.init.normal_(parameter, std=0.2)
    return Denoiser(net, framework, kernel).eval()


@given(levels)
def test_edm_keeps_unit_variance_and_an_unbiased_target(sigma):
    c = coefficients("edm", "baseline", torch.tensor(sigma, dtype=torch.float64))
    variance = sigma**2 + SIGMA_DATA**2
    assert c.c_in**2 * variance == pytest.approx(1)
    # F's target has unit variance, c_out^2 = (1 - c_skip)^2 sigma_d^2 + c_skip^2 sigma^2, and the weight undoes it.
    assert c.c_out**2 == pytest.approx((1 - c.c_skip) ** 2 * SIGMA_DATA**2 + c.c_skip**2 * sigma**2)
    assert losses.weight("edm", torch.tensor(sigma, dtype=torch.float64)) * c.c_out**2 == pytest.approx(1)


@given(st.integers(0, 1000), st.integers(0, 500), st.floats(0.01, 1e4))
def test_the_warmup_never_raises_a_weight_and_ends(step, warmup, weight):
    ceiling = losses.weight_ceiling(step, warmup)
    assert (ceiling is None) == (step >= warmup)
    if ceiling is not None:
        assert 5 <= ceiling < 500
        assert min(weight, ceiling) <= weight
        following = losses.weight_ceiling(step + 1, warmup)
        assert following is None or following > ceiling


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


@pytest.mark.parametrize("framework", ["vp", "ve", "edm"])
def test_samples_do_not_depend_on_the_batch_and_follow_their_seed(framework):
    denoiser = small(framework)
    together = torch.cat([sampling.sample(denoiser, range(0, 6), "heun", 5)])
    apart = torch.cat([sampling.sample(denoiser, range(i, i + 2), "heun", 5) for i in (0, 2, 4)])
    assert (together.int() - apart.int()).abs().max() <= 1  # a rounding of the 256 shades
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_number_of_evaluations_is_the_one_asked_for(sampler):
    calls = []

    def D(x, sigma):
        calls.append(float(sigma))
        return x * 0

    *_, x = SAMPLERS[sampler](D, torch.randn(2, 1, 4, 4), 0.002, 80.0, 11)
    assert len(calls) == 11
    assert min(calls) >= 0.002 * 0.999
    assert max(calls) <= 80 * 1.001
    assert x.abs().max() < 1e-6  # the denoiser says black


def test_one_step_of_heun_returns_D():
    latents = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *_, x = heun(gaussian, latents, 1, 0.002, 80.0)
    torch.testing.assert_close(x, gaussian(80 * latents, torch.tensor(80.0)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_sampler_returns_a_denoiser_that_does_not_depend_on_x(sampler):
    *_, x = SAMPLERS[sampler](lambda x, sigma: x * 0 + 0.3, torch.randn(2, 1, 4, 4), 0.002, 80.0, 3)
    torch.testing.assert_close(x, torch.full_like(x, 0.3))


def test_impossible_numbers_of_evaluations_are_refused():
    with pytest.raises(ValueError, match="odd"):
        heun_steps(10)
    with pytest.raises(ValueError, match="at least 2"):
        next(dpm_solver_pp(lambda x, s: x, torch.zeros(1, 1, 1, 1), 0.002, 80.0, 1))


def gaussian(x, sigma):
    """D for data of N(1, 0.5^2), whose trajectories are known: (x - 1)/sqrt(0.25 + sigma^2) stays what it was."""
    return (0.25 * x + sigma.double() ** 2) / (0.25 + sigma.double() ** 2)


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 100))
def test_heun_is_of_order_two_and_dpm_solver_of_order_three(seed):
    latents = torch.randn(8, 1, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = 0.1, 10.0

    def error(sampler, n):
        *_, before, _last = SAMPLERS[sampler](gaussian, latents, low, high, n)
        exact = 1 + (latents * high - 1) * np.sqrt((0.25 + low**2) / (0.25 + high**2))
        return (before - exact).abs().max().item()

    heun_order = np.log2(error("heun", 79) / error("heun", 159))
    assert heun_order == pytest.approx(2, abs=0.25)
    # k steps of order 3, then one of order 2, whose single local error is of order 3 too, and the final denoising.
    coarse, fine = (error("dpm-solver++", 3 * k + 3) for k in (16, 32))
    assert np.log2(coarse / fine) == pytest.approx(3, abs=0.35)


def test_a_batch_may_have_one_noise_level_or_one_an_image():
    denoiser = small()
    x, one_hot = torch.randn(3, 1, 8, 8), torch.eye(10)[:3]
    one = denoiser(x, torch.tensor(2.0), one_hot)
    many = denoiser(x, torch.full((3,), 2.0), one_hot)
    torch.testing.assert_close(one, many)
    assert one.shape == x.shape
    assert not torch.allclose(one, denoiser(x, torch.tensor(2.0), one_hot.flip(0)))  # classes matter
