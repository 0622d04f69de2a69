"""The Gaussian mixture solver: its kernel against quadrature, its fit against the moments, its samples' distances."""

import itertools

import numpy as np
import pytest
import torch
from scipy import integrate, optimize

from fdm.model.oracle import Mixture
from fdm.samplers import SAMPLERS, gms
from fdm.samplers.grids import Karras, LogSNR
from fdm.samplers.noise import UnitNoise
from fdm.tasks import generation

MIXTURE = Mixture.reference()
N = 300_000


def normals(step):
    return torch.randn(N, 1, 1, 1, generator=torch.Generator().manual_seed(1000 + step), dtype=torch.float64)


@pytest.fixture(scope="module")
def drawn():
    generator = torch.Generator().manual_seed(0)
    data = MIXTURE.draw(9 * N, generator).flatten()
    data = data + 0.05 * torch.randn(9 * N, generator=generator, dtype=torch.float64)  # of the level where samples end
    data = data.sort().values[4::9]  # quantiles, with less noise than those of samples
    return data, 10 * torch.randn(N, 1, 1, 1, generator=generator, dtype=torch.float64)


def end(x, steps, noise=normals, denoise=MIXTURE, name="gms", low=0.05, **options):
    *_, last = SAMPLERS[name].sample(denoise, x, LogSNR(low, 10.0), steps, noise, **options)
    return last


@pytest.mark.parametrize(("x", "skewness"), [(-0.9, 0.093), (0.4, 0.057), (2.5, -0.007)])
def test_the_kernel_has_the_moments_of_the_exact_one(x, skewness):
    """p(x_t | x_s) of the mixture by quadrature, from 3 to 1."""
    s, t = 3.0, 1.0
    weights, means, spreads = (each.flatten().numpy() for each in (MIXTURE.weights, MIXTURE.means, MIXTURE.deviations))

    def density(y):
        inner = weights * np.exp(-((y - means) ** 2) / (2 * (spreads**2 + t**2))) / np.sqrt(spreads**2 + t**2)
        return inner.sum() * np.exp(-((x - y) ** 2) / (2 * (s**2 - t**2)))

    def moment(k, around=0.0):
        return integrate.quad(lambda y: (y - around) ** k * density(y), -30, 30, epsabs=1e-14, limit=400)[0]

    total = moment(0)
    mean = moment(1) / total
    one, high, low = (torch.full((1, 1, 1, 1), each, dtype=torch.float64) for each in (x, s, t))
    m, v, q = (each.item() for each in gms.kernel(one, high, low, *MIXTURE.cumulants(one, high)))
    assert m == pytest.approx(mean, abs=1e-11)
    assert v == pytest.approx(moment(2, mean) / total, abs=1e-11)
    assert q == pytest.approx(moment(3, mean) / total, abs=1e-11)
    assert q / v**1.5 == pytest.approx(skewness, abs=6e-4)


def test_the_fit_has_the_moments_it_was_asked_for_up_to_its_edge():
    v = torch.tensor([0.3, 1.0, 2.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    q = torch.tensor([0.05, -0.7, 0.0, 0.7072, -5.0, 0.0], dtype=torch.float64)
    d, own, clipped = gms.fit(v, q)
    assert clipped.tolist() == [False, False, False, True, True, False]
    means = torch.stack([2 * d, -d])
    weights = torch.tensor([[1 / 3], [2 / 3]], dtype=torch.float64)
    reached = torch.where(clipped, q.sign() * 0.999 / 2**0.5 * v**1.5, q)
    torch.testing.assert_close((weights * means).sum(0), 0 * v)
    torch.testing.assert_close((weights * means**2).sum(0) + own, v, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close((weights * (means**3 + 3 * means * own)).sum(0), reached, rtol=1e-13, atol=1e-15)
    assert (own >= 0).all()
    assert own[2] == 2 and d[2] == 0  # not skewed: one Gaussian


def test_the_fit_is_what_a_search_finds():
    """The released code's unknowns, both means and a factor of the variance, from a solver of the same equations."""
    m, v, q = 0.3, 0.8, 0.2

    def residual(unknown):
        a, b, c = unknown
        return [
            (a + 2 * b) / 3 - m, (a**2 + 2 * b**2) / 3 + c * v - v - m**2,
            (a**3 + 2 * b**3) / 3 + (a + 2 * b) * c * v - (q + 3 * m * v + m**3),
        ]  # fmt: skip

    found = optimize.least_squares(residual, [m + 0.2, m - 0.1, 0.9], xtol=1e-15, ftol=1e-15, gtol=1e-15).x
    d, own, _ = gms.fit(torch.tensor(v).double(), torch.tensor(q).double())
    assert [m + 2 * d.item(), m - d.item(), own.item() / v] == pytest.approx(found.tolist(), abs=1e-6)


@pytest.mark.parametrize(("steps", "euler", "two", "three"), [
    (2, 0.331, 0.145, 0.096), (3, 0.291, 0.060, 0.042), (4, 0.209, 0.063, 0.035), (6, 0.143, 0.035, 0.0185),
    (10, 0.085, 0.0175, 0.0071), pytest.param(20, 0.044, 0.0058, 0.0022, marks=pytest.mark.weekly),
])  # fmt: skip
def test_three_right_moments_are_better_than_two_and_two_than_euler(steps, euler, two, three, drawn):
    """W1 on a geometric grid from 10 to 0.05, exact moments; another draw moves it by some thousandths."""
    data, x = drawn
    found = [
        (last.flatten().sort().values - data).abs().mean().item()
        for last in (end(x, steps, name="ddim"), end(x, steps, moments="two"), end(x, steps))
    ]
    floor = 0.003  # of so many samples
    assert found == pytest.approx([euler, two, three], rel=0.1, abs=floor)
    assert found[0] > 2 * found[1]
    assert found[1] > found[2]


@pytest.mark.weekly
def test_the_share_that_is_more_skewed_than_two_components_can_be(drawn):
    """Clips a sample, over all steps: a third with two steps, none with twenty."""
    latents, grid = drawn[1][:40_000], LogSNR(0.05, 10.0)
    for steps, expected in ((2, 0.33), (4, 0.44), (10, 0.11), (20, 0.0)):
        share = 0.0
        path = [*SAMPLERS["gms"].sample(MIXTURE, latents, grid, steps, lambda step: normals(step)[: len(latents)])]
        for x, (s, t) in zip(path, itertools.pairwise(grid.levels(steps)), strict=False):
            _, v, q = gms.kernel(x, s, t, *MIXTURE.cumulants(x, s))
            share += gms.fit(v, q)[2].double().mean().item()
        assert share == pytest.approx(expected, abs=0.02)


def test_without_skewness_it_is_the_gaussian_with_the_right_variance(drawn):
    class Straight:
        """No third cumulant."""

        def cumulants(self, x, sigma):
            first, second, third = MIXTURE.cumulants(x, sigma)
            return first, second, 0 * third

    x, s, t = drawn[1], torch.tensor(10.0).double(), torch.tensor(0.05).double()
    assert torch.equal(end(x, 1, denoise=Straight()), end(x, 1, moments="two"))
    m, v, _ = gms.kernel(x, s, t, *MIXTURE.cumulants(x, s))
    torch.testing.assert_close(end(x, 1, moments="two"), m + v.sqrt() * normals(0), rtol=1e-9, atol=1e-9)


def test_without_variance_it_is_ddpms_posterior(drawn):
    class Certain:
        """A clean image that is known."""

        def cumulants(self, x, sigma):
            return MIXTURE(x, sigma), 0 * x, 0 * x

    other = end(drawn[1], 3, name="ddim", eta=1.0, noise=lambda step: normals(2 * step))  # whose noise is every second
    torch.testing.assert_close(end(drawn[1], 3, denoise=Certain()), other)


def test_a_component_of_an_image_is_that_of_all_its_pixels():
    """Both ways give each pixel the same law; the pixels of an image go together in one of them alone."""
    x = torch.zeros(4000, 1, 1, 2, dtype=torch.float64)

    class Skewed:
        """Much skewness, the same everywhere."""

        def cumulants(self, x, sigma):
            return 0 * x, 0 * x + 1, 0 * x + 0.70

    noise = UnitNoise(range(4000), (1, 1, 2))
    together = {}
    for component in gms.COMPONENTS:
        *_, last = SAMPLERS["gms"].sample(Skewed(), x, LogSNR(0.001, 10.0), 1, noise, component=component)
        pixels = last.flatten(1)
        assert pixels.mean().item() == pytest.approx(0, abs=0.05)
        assert (pixels**3).mean().item() == pytest.approx(0.70, abs=0.1)
        together[component] = torch.corrcoef(pixels.T)[0, 1].item()
    assert together["of an image"] > 0.9
    assert abs(together["of a pixel"]) < 0.05


def test_the_published_limits_take_true_skewness_away_where_the_mean_is_near_zero():
    found = torch.tensor([[0.0, 0.5, 3.0], [0.2, 0.1, 2.0], [0.1, 0.01, 0.0]], dtype=torch.float64)
    a, b, c = gms.clamp(*found)
    assert a.tolist() == [0, 0.5, 1]
    assert c[0] == 0  # E x^3 = 0.1 is more than |E x| = 0
    assert (b[1].item(), c[1].item()) == pytest.approx((0.1, 0.01))
    assert b[2] == 0


def test_a_denoiser_without_moments_and_a_solver_without_noise_are_refused():
    x = torch.ones(1, 1, 1, 1)
    with pytest.raises(ValueError, match="second and third moments"):
        end(x, 2, denoise=lambda x, sigma: x)
    with pytest.raises(ValueError, match="source of noise"):
        end(x, 2, noise=None)
    with pytest.raises(ValueError, match="source of noise"):
        end(x, 2, noise=None, name="sde-dpm-solver++2m")


def test_classes_are_told_to_moments_as_well():
    """Of two components, one a class, an image of the second class comes from the second alone."""
    two = Mixture(torch.tensor([0.5, 0.5]), torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1), torch.tensor([0.1, 0.1]),
                  torch.tensor([0, 1]))  # fmt: skip
    _, labels = generation.draw_latents(range(200), two.shape, 2)
    *_, x = generation.trajectory(two, range(200), "gms", 6)
    assert ((x.flatten() > 0) == (labels == 1)).all()


def test_sde_dpm_solver_is_that_of_diffusers():
    """On the same levels, with the same noise, on an exact denoiser."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=2, use_karras_sigmas=False, final_sigmas_type="sigma_min",
        prediction_type="epsilon", lower_order_final=False,
    )  # fmt: skip
    scheduler.set_timesteps(12)
    sigmas = scheduler.sigmas.double()  # of sigma / alpha
    x = sigmas[0] * torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Given(LogSNR):
        """Levels as they are given."""

        def levels(self, steps):
            return sigmas[: steps + 1]

    noise = UnitNoise(range(64), (1, 1, 1))
    *_, ours = SAMPLERS["sde-dpm-solver++2m"].sample(MIXTURE, x, Given(0.1, 1.0), 11, noise)
    state = x / (1 + sigmas[0] ** 2).sqrt()
    for i, t in enumerate(scheduler.timesteps[:11]):
        scheduler._step_index = i
        own = state * (1 + sigmas[i] ** 2).sqrt()
        epsilon = (own - MIXTURE(own, sigmas[i])) / sigmas[i]
        state = scheduler.step(epsilon, t, state, variance_noise=noise(i).double()).prev_sample
    torch.testing.assert_close(ours / (1 + sigmas[11] ** 2).sqrt(), state, rtol=0, atol=2e-6)


def test_the_first_step_of_the_stochastic_solver_is_ddim_with_eta_one():
    x, noise = 80 * torch.randn(5, 1, 1, 1, dtype=torch.float64), UnitNoise(range(5), (1, 1, 1))
    first = [
        list(SAMPLERS[name].sample(MIXTURE, x, Karras(0.1, 80.0), 4, noise, **options))[1]
        for name, options in (("sde-dpm-solver++2m", {}), ("ddim", {"eta": 1.0}))
    ]
    torch.testing.assert_close(*first, rtol=1e-12, atol=1e-12)
