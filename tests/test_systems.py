"""Samplers without training: against second implementations, published identities, and values on the exact mixture."""

import itertools

import numpy as np
import pytest
import torch

from fdm.data import gaussians
from fdm.model.oracle import Mixture
from fdm.samplers import GRIDS, SAMPLERS, adams, time_shift, wavelets
from fdm.samplers.grids import Grid, Karras
from fdm.samplers.noise import UnitNoise
from fdm.study import networks
from fdm.tasks import generation

N = 200_000
MIXTURE = Mixture.reference()


@pytest.fixture(scope="module")
def drawn():
    """Data of the mixture, sorted, and unit noise; other draws move W1 by some thousandths."""
    generator = torch.Generator().manual_seed(0)
    data = MIXTURE.draw(N, generator).flatten().sort().values
    return data, torch.randn(N, 1, 1, 1, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def data(drawn):
    return drawn[0]


@pytest.fixture(scope="module")
def unit(drawn):
    return drawn[1]


def end(name, x, grid, steps, noise=None, denoise=MIXTURE, **options):
    *_, last = SAMPLERS[name].sample(denoise, x, grid, steps, noise, **options)
    return last


def w1(samples, data):
    return (samples.flatten().sort().values - data).abs().mean().item()


class Levels(Grid):
    """A grid of given levels; between them, `middle` of each pair by its place."""

    def __init__(self, levels, middle=None):
        super().__init__(float(levels[-1]), float(levels[0]))
        self.given, self.middle = levels, middle

    def levels(self, steps):
        assert len(self.given) == steps + 1
        return self.given

    def __call__(self, tau):
        place = float(tau) * (len(self.given) - 1)
        assert place % 1 == pytest.approx(0.5)
        return self.middle[int(place)]


def images(n=6, side=4, seed=0):
    return torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def pictures():
    """A mixture of four pictures of 4x4, smeared."""
    return Mixture(torch.full((4,), 0.25), images(4, seed=7) / 2, torch.full((4,), 0.2))


# -------------------------------------------------------------------------------------- second implementations


def ran(scheduler, denoise, x, levels, **step):
    """A scheduler of diffusers on given levels, for D itself: x, of unit variance in its own state, to the end."""
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas = levels
    scheduler.timesteps = torch.arange(len(levels) - 1)
    for i, s in enumerate(levels[:-1]):
        own = x * (1 + s**2).sqrt()
        x = scheduler.step(denoise(own, s), scheduler.timesteps[i], x, **step).prev_sample
    return x * (1 + levels[-1] ** 2).sqrt()


@pytest.mark.parametrize(("name", "order", "to_zero"), [
    ("dpm-solver++2m", 2, False), ("dpm-solver++2m", 2, True), ("dpm-solver++3m", 3, False), ("unipc", 2, False),
    ("unipc", 2, True),
])  # fmt: skip
def test_multistep_solvers_are_those_of_diffusers(name, order, to_zero, pictures):
    diffusers = pytest.importorskip("diffusers")
    about = {"solver_order": order, "prediction_type": "sample", "lower_order_final": to_zero,
             "final_sigmas_type": "zero" if to_zero else "sigma_min"}  # fmt: skip
    theirs = (
        diffusers.UniPCMultistepScheduler(solver_type="bh2", **about)
        if name == "unipc"
        else diffusers.DPMSolverMultistepScheduler(solver_type="midpoint", **about)
    )
    levels, x = Karras(0.02, 20.0, to_zero).levels(9), images()
    wanted = ran(theirs, pictures, x / (1 + levels[0] ** 2).sqrt(), levels)
    torch.testing.assert_close(end(name, x, Levels(levels), 9, denoise=pictures), wanted, rtol=0, atol=2e-6)


def test_variable_step_adams_bashforth_is_diffusers_linear_multistep(pictures):
    diffusers = pytest.importorskip("diffusers")
    levels = Karras(0.05, 20.0).levels(8)
    theirs = diffusers.LMSDiscreteScheduler()
    theirs.set_timesteps(8)
    theirs.sigmas, theirs.timesteps, theirs.is_scale_input_called = levels, torch.arange(8), True
    x = wanted = images()
    for i, s in enumerate(levels[:-1]):
        eps = (wanted - pictures(wanted, s)) / s
        wanted = theirs.step(eps, theirs.timesteps[i], wanted, order=4).prev_sample
    torch.testing.assert_close(end("ab", x, Levels(levels), 8, denoise=pictures, order=4), wanted, rtol=0, atol=1e-3)
    assert (end("ab", x, Levels(levels), 8, denoise=pictures, order=3) - wanted).abs().max() > 3e-3


def test_ipndm_is_that_of_diffusers(pictures):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.IPNDMScheduler()
    theirs.set_timesteps(10)
    alphas, betas = theirs.alphas.double(), theirs.betas.double()  # of the clean image, and of the noise
    levels = betas / alphas.clamp(min=1e-12)
    first = 1  # at their first time there is no clean image, and sigma is infinite
    theirs._step_index = first
    x = images() * levels[first]
    state = x * alphas[first]
    for i in range(first, 10):
        own = state / alphas[i]
        eps = (own - pictures(own, levels[i])) / levels[i]
        state = theirs.step((eps - state * betas[i]) / alphas[i], theirs.timesteps[i], state).prev_sample
    levels[10] = 0.0
    torch.testing.assert_close(
        end("ipndm", x, Levels(levels[first:]), 10 - first, denoise=pictures), state, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("steps", [10, 20])
def test_f_pndm_is_that_of_diffusers(steps):
    """Their last step goes from the lowest level to itself."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.PNDMScheduler(1000, beta_start=1e-4, beta_end=0.02, skip_prk_steps=False)
    scheduler.set_timesteps(steps)
    alphas = scheduler.alphas_cumprod.double()
    sigma = ((1 - alphas) / alphas).sqrt()
    x = state = torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in scheduler.timesteps:
        own = state * (1 + sigma[t] ** 2).sqrt()
        state = scheduler.step((own - MIXTURE(own, sigma[t])) / sigma[t], t, state).prev_sample
    times = torch.arange(1000 - 1000 // steps, -1, -1000 // steps)
    grid = Levels(sigma[times], sigma[times - 1000 // steps // 2])
    ours = end("f-pndm", x * (1 + sigma[times[0]] ** 2).sqrt(), grid, steps - 1)
    torch.testing.assert_close(ours / (1 + sigma[0] ** 2).sqrt(), state, rtol=0, atol=3e-6)
    assert len(scheduler.timesteps) == steps + 9


def test_ddpm_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, clip_sample=False,
                                        variance_type="fixed_large", timestep_spacing="leading")  # fmt: skip
    scheduler.set_timesteps(20)
    alphas, times = scheduler.alphas_cumprod.double(), scheduler.timesteps
    sigma = ((1 - alphas) / alphas).sqrt()
    noise = UnitNoise(range(64), (1, 1, 1))
    x = state = torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i, t in enumerate(times):
        own = state * (1 + sigma[t] ** 2).sqrt()
        draw = torch.Generator().manual_seed(i)
        state = scheduler.step((own - MIXTURE(own, sigma[t])) / sigma[t], t, state, generator=draw).prev_sample

    def same(i):
        return torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(i), dtype=torch.float64)

    ours = end("ddpm", x * (1 + sigma[times[0]] ** 2).sqrt(),
               Levels(torch.cat([sigma[times], torch.zeros(1, dtype=torch.float64)])), 20, same)  # fmt: skip
    torch.testing.assert_close(ours, state, rtol=0, atol=3e-6)
    with pytest.raises(ValueError, match="source of noise"):
        end("ddpm", x, Karras(0.1, 1.0), 2)
    assert noise(0).shape == (64, 1, 1, 1)


# ------------------------------------------------------------------------------------------ values on the mixture

W1 = {
    "ab": {6: 0.233, 10: 0.109, 14: 0.066, 18: 0.043, 20: 0.036, 30: 0.018, 50: 0.0078},
    "dpm-solver++2m": {6: 0.181, 10: 0.104, 14: 0.049, 18: 0.027, 20: 0.021, 30: 0.0083, 50: 0.0030},
}


@pytest.mark.parametrize(("name", "nfe", "expected"), [(s, n, w) for s, row in W1.items() for n, w in row.items()])
def test_the_reference_distances_of_multistep_solvers_are_met(name, nfe, expected, data, unit):
    assert w1(end(name, 80 * unit, Karras(0.002, 80.0), nfe), data) == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize(("nfe", "euler", "scale", "scaled"), [
    (6, 0.290, 1.07, 0.123), (10, 0.184, 1.05, 0.057), (13, 0.138, 1.05, 0.052), (20, 0.087, 1.03, 0.032),
    (35, 0.048, 1.02, 0.022),
])  # fmt: skip
def test_one_tuned_number_helps_an_exact_denoiser_in_which_there_is_no_exposure_bias(
    nfe, euler, scale, scaled, data, unit
):
    grid = Karras(0.002, 80.0, to_zero=True)
    assert w1(end("ddim", 80 * unit, grid, nfe), data) == pytest.approx(euler, abs=0.004)
    assert w1(end("epsilon-scaling", 80 * unit, grid, nfe, scale=scale), data) == pytest.approx(scaled, abs=0.005)


@pytest.mark.parametrize(("eps", "steps", "row"), [
    ("of D", 5, (0.099, 0.152, 0.212, 0.280, 0.353)), ("of D", 10, (0.012, 0.052, 0.109, 0.175, 0.252)),
    pytest.param("of D", 20, (0.042, 0.0061, 0.054, 0.115, 0.187), marks=pytest.mark.weekly),
    pytest.param("of D", 50, (0.069, 0.027, 0.021, 0.078, 0.144), marks=pytest.mark.weekly),
    ("of the mean", 5, (0.127, 0.166, 0.212, 0.266, 0.329)), ("of the mean", 10, (0.060, 0.082, 0.109, 0.145, 0.192)),
    pytest.param("of the mean", 20, (0.029, 0.040, 0.054, 0.074, 0.100), marks=pytest.mark.weekly),
    pytest.param("of the mean", 50, (0.011, 0.016, 0.021, 0.029, 0.040), marks=pytest.mark.weekly),
])  # fmt: skip
def test_a_moving_average_hurts_an_exact_denoiser_and_an_extrapolation_helps_it(eps, steps, row, data, unit):
    for size, expected in zip((-0.3, -0.15, 0, 0.15, 0.3), row, strict=True):
        found = w1(end("masf", 20 * unit, Karras(0.02, 20.0), steps, size=size, schedule="constant", eps=eps), data)
        assert found == pytest.approx(expected, abs=0.003)


@pytest.fixture(scope="module")
def converged():
    """Latents, the grid that they are on, and where the flow takes them."""
    x = 20 * torch.randn(300, 1, 1, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    grid = Karras(0.05, 20.0)
    return x, grid, end("heun", x, grid, 6000)


@pytest.mark.parametrize(("name", "options", "order"), [
    ("ddim", {}, 1), ("ab", {"order": 2}, 2), ("ab", {"order": 3}, 3), ("ipndm", {"order": 4}, 2),
    ("dpm-solver++2m", {}, 2), ("dpm-solver++3m", {}, 2), ("unipc", {}, 3),
])  # fmt: skip
def test_the_order_of_a_solver_on_the_usual_grid(name, options, order, converged):
    """iPNDM and the released DPM-Solver++(3M) are of second order there; UniPC's corrector makes its second a third."""
    x, grid, exact = converged
    coarse, fine = ((end(name, x, grid, n, **options) - exact).square().mean().sqrt().item() for n in (160, 320))
    slope = np.log2(coarse / fine)
    assert slope == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", [name for name, entry in SAMPLERS.items() if entry.flows])
def test_every_sampler_draws_pictures_from_closed_forms(name, digits):
    """Class-wise Gaussians and E[x0 | x] of a finite data set, told the class: samples are near to real images."""
    real = digits.images.float().flatten(1)
    grey = torch.cdist(torch.full((1, 64), 127.0), real).min()
    for denoiser in (gaussians.known(8), networks.exact(digits, True)):
        nfe = 13 if name == "heun" else 100 if name.startswith("multivariate") else 14
        samples = generation.sample(denoiser, range(16), name, nfe).float()
        assert samples.shape == (16, 1, 8, 8)
        assert torch.cdist(samples.flatten(1), real).min(1).values.median() < 0.6 * grey


# ------------------------------------------------------------------------------------------------- identities


def test_constant_weights_are_those_of_equal_steps():
    for order, weights in enumerate(adams.CONSTANT, start=1):
        levels = [float(each) for each in range(order + 5, 4, -1)]
        assert adams.adams_bashforth(levels) == pytest.approx(weights, abs=1e-12)
    assert sum(adams.adams_bashforth([9.0, 5.0, 4.5, 1.0])) == pytest.approx(1)


def test_a_history_of_one_slope_is_ddim(pictures):
    grid, x = Karras(0.02, 20.0), 20 * images()
    for name in ("ab", "ipndm"):
        torch.testing.assert_close(end(name, x, grid, 7, denoise=pictures, order=1),
                                   end("ddim", x, grid, 7, denoise=pictures), rtol=1e-13, atol=1e-13)  # fmt: skip


@pytest.mark.parametrize(("name", "plain"), [("ipndm-scaled", "ipndm"), ("dpm-solver++2m-scaled", "dpm-solver++2m")])
def test_a_solver_that_is_scaled_by_one_is_that_solver_and_of_one_step_epsilon_scaling(name, plain, pictures):
    grid, x = Karras(0.02, 20.0), 20 * images()
    torch.testing.assert_close(
        end(name, x, grid, 7, denoise=pictures, scale=1.0), end(plain, x, grid, 7, denoise=pictures)
    )
    one = [end(each, x, grid, 1, denoise=pictures, scale=1.1) for each in (name, "epsilon-scaling")]
    torch.testing.assert_close(*one)


@pytest.mark.parametrize(("name", "options"), [
    ("masf", {"size": 0.0}), ("epsilon-scaling", {"scale": 1.0}), ("dcw", {"low": 0.0}), ("ts-ddim", {"window": 0.0}),
    ("ts-ddim", {"cutoff": 999.0, "window": 40.0}), ("ts-ddim", {"rule": "released", "window": 0.0}),
])  # fmt: skip
def test_a_correction_of_no_size_is_ddim(name, options, pictures):
    grid, x = Karras(0.02, 20.0, to_zero=True), 20 * images()
    *mine, last = SAMPLERS[name].sample(pictures, x, grid, 7, None, **options)
    *theirs, end_of_ddim = SAMPLERS["ddim"].sample(pictures, x, grid, 7)
    for a, b in zip([*mine, last], [*theirs, end_of_ddim], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["masf", "epsilon-scaling", "dcw", "ts-ddim"])
def test_a_correction_as_it_usually_is_is_not_ddim(name, pictures):
    grid, x = Karras(0.02, 80.0), 80 * images()
    assert (end(name, x, grid, 7, denoise=pictures) - end("ddim", x, grid, 7, denoise=pictures)).abs().max() > 1e-5


def test_epsilon_scaling_is_dcws_correction_in_the_pixels(pictures):
    grid, x, scale = Karras(0.02, 20.0), 20 * images(), 1.03
    path = SAMPLERS["epsilon-scaling"].sample(pictures, x, grid, 6, None, scale=scale)
    for (s, t), (before, after) in zip(itertools.pairwise(grid.levels(6)), itertools.pairwise(path), strict=True):
        D = pictures(before, s)
        euler = D + t / s * (before - D)
        share = (s / t - 1) * (1 - 1 / scale)
        torch.testing.assert_close(after, euler + share * (euler - D), rtol=1e-12, atol=1e-12)


def test_dcw_in_all_bands_alike_is_the_pixels(pictures):
    """One step, at which the share of the low band is whole and the others' are 0; then both, halfway."""
    x, grid = 20 * images(), Karras(1.0, 20.0)
    s, t = grid.levels(1)
    D = pictures(x, s)
    euler = D + t / s * (x - D)
    low, *edges = wavelets.bands(euler - D)
    wanted = euler + wavelets.image([0.3 * low, *(0 * each for each in edges)], euler.shape)
    torch.testing.assert_close(end("dcw", x, grid, 1, denoise=pictures, low=0.3), wanted, rtol=1e-12, atol=1e-12)
    half = Levels(torch.tensor([10.0, 5.0, 2.5], dtype=torch.float64))
    _, middle, last = SAMPLERS["dcw"].sample(pictures, x, half, 2, None, low=0.3, high=0.3)
    D = pictures(middle, torch.tensor(5.0))
    euler = D + (middle - D) / 2
    torch.testing.assert_close(last, euler + 0.15 * (euler - D), rtol=1e-12, atol=1e-12)


def test_the_second_order_solver_is_an_average_with_the_opposite_sign(pictures):
    """DPM-Solver++(2M) is DDIM on D + h / (2 h') (D - D'), of the step before."""
    grid, x = Karras(0.02, 20.0), 20 * images()
    levels, before, mine = grid.levels(8), None, x
    for i, (s, t) in enumerate(itertools.pairwise(levels)):
        D = pictures(mine, s)
        mean = D if before is None else D + (s / t).log() / (2 * (levels[i - 1] / s).log()) * (D - before)
        mine, before = mean + t / s * (mine - mean), D
    torch.testing.assert_close(end("dpm-solver++2m", x, grid, 8, denoise=pictures), mine, rtol=1e-12, atol=1e-12)


def test_a_moving_average_of_equal_bands_needs_no_wavelets(pictures):
    grid, x = Karras(0.02, 20.0), 20 * images()
    mine, mean = x, None
    for s, t in itertools.pairwise(grid.levels(6)):
        D = pictures(mine, s)
        mean = D if mean is None else 0.8 * D + 0.2 * mean
        mine = mean + t / s * (mine - D)
    for wavelet in wavelets.WAVELETS:
        found = end("masf", x, grid, 6, denoise=pictures, size=0.2, schedule="constant", wavelet=wavelet)
        torch.testing.assert_close(found, mine, rtol=1e-10, atol=1e-10)
    for schedule in ("low first", "high first"):
        assert (end("masf", x, grid, 6, denoise=pictures, size=0.2, schedule=schedule) - mine).abs().max() > 1e-3


def test_an_average_of_a_constant_image_is_that_image():
    class Constant:
        def __call__(self, x, sigma, class_labels=None):
            return torch.full_like(x, 0.3)

    last = end("masf", 20 * images(), Karras(0.002, 20.0, to_zero=True), 5, denoise=Constant(), size=0.5)
    torch.testing.assert_close(last, torch.full_like(last, 0.3))


@pytest.mark.parametrize("wavelet", wavelets.WAVELETS)
@pytest.mark.parametrize("side", [1, 7, 8])
def test_wavelets_are_those_of_pywavelets_and_can_be_taken_back(wavelet, side):
    import pywt

    x = images(3, side)
    parts = wavelets.bands(x, wavelet)
    assert wavelets.image(parts, x.shape, wavelet).shape == x.shape
    torch.testing.assert_close(wavelets.image(parts, x.shape, wavelet), x, rtol=1e-10, atol=1e-10)
    if side == 8:
        low, edges = pywt.dwt2(x.numpy(), wavelet, mode="periodization")
        for mine, theirs in zip(parts, (low, *edges), strict=True):
            torch.testing.assert_close(mine, torch.as_tensor(theirs), rtol=1e-10, atol=1e-10)
        assert sum(part.square().sum() for part in parts) == pytest.approx(float(x.square().sum()))


# ---------------------------------------------------------------------------------------------- shifted time steps


def test_the_chain_is_ddpms():
    for step, sigma in ((0, 0.01), (100, 0.3423), (500, 3.443), (800, 25.74), (900, 60.82), (999, 157.4)):
        assert time_shift.level(step) == pytest.approx(sigma, rel=5e-4)
        assert time_shift.index(time_shift.level(step)) == pytest.approx(step, abs=1e-9)
    assert time_shift.index(0.0) == 0 and time_shift.level(1200) == time_shift.level(999)


def test_the_level_of_an_image_of_the_variance_of_a_step_is_that_of_the_step():
    for step in (30, 300, 500, 700, 900, 990):
        sigma = torch.tensor(time_shift.level(step), dtype=torch.float64)
        pixels = images(1, 8)
        pixels = (pixels - pixels.mean()) / pixels.std()
        x = pixels * sigma  # in the VP image of variance sigma^2 / (1 + sigma^2)
        seen = time_shift.seen(x, sigma, float(sigma), 60)
        assert time_shift.index(float(seen)) == pytest.approx(step, abs=1e-6)


@pytest.mark.parametrize(("side", "edges"), [
    (32, {300: 0, 500: 0.18, 600: 0.63, 700: 0.89, 800: 0.98}), (64, {500: 0.02, 600: 0.32, 700: 0.77}),
])  # fmt: skip
def test_at_high_noise_the_level_that_is_read_off_small_images_is_an_edge_of_the_window(side, edges):
    """Images of three channels that are nothing but noise, exactly on schedule."""
    for step, expected in edges.items():
        sigma = torch.tensor(time_shift.level(step), dtype=torch.float64)
        noise = torch.randn(400, 3, side, side, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        seen = time_shift.seen(sigma * noise, sigma, float(sigma), 80).flatten()
        ends = [time_shift.level(step + shift) for shift in (-40, 40)]
        share = sum(((seen / each - 1).abs() < 1e-9).double().mean().item() for each in ends)
        assert share == pytest.approx(expected, abs=0.09)


class Gaussian:
    """D of Gaussian images whose pixels have variance 1/4, with the predicted noise `delta` too large."""

    def __init__(self, delta):
        self.delta, self.seen = delta, []

    def __call__(self, x, sigma, class_labels=None):
        sigma = sigma.reshape(-1, 1, 1, 1)
        self.seen.append(time_shift.index(float(sigma.flatten()[0])))
        eps = sigma * x / (0.25 + sigma**2)
        return x - sigma * (1 + self.delta) * eps


@pytest.mark.parametrize(("delta", "plain", "shifted", "labels"), [
    (-0.02, 0.1851, 0.1897, (820, 720)), (0.0, 0.1400, 0.1398, (820, 709)), (0.02, 0.1053, 0.1081, (780, 680)),
])  # fmt: skip
def test_the_papers_rule_on_gaussian_images(delta, plain, shifted, labels):
    """It shifts an exact denoiser, too: a gain with it needs no exposure bias."""
    times = [*range(900, -1, -100)]
    sigma = torch.tensor([*(time_shift.level(t) for t in times), 0.0], dtype=torch.float64)
    pixels = images(1, 16)
    pixels = (pixels - pixels.mean()) / pixels.std()
    x = pixels * (1 + sigma[0] ** 2).sqrt()
    assert float(end("ts-ddim", x, Levels(sigma), 10, denoise=Gaussian(delta), window=0).var()) == pytest.approx(
        plain, abs=2e-4
    )
    denoise = Gaussian(delta)
    found = float(end("ts-ddim", x, Levels(sigma), 10, denoise=denoise, window=40, cutoff=600).var())
    assert found == pytest.approx(shifted, abs=2e-4)
    assert denoise.seen[1:3] == pytest.approx(labels, abs=0.6)
    assert denoise.seen[3:] == pytest.approx(times[3:], abs=1e-6)


def test_each_image_of_a_batch_has_its_own_level(pictures):
    seen = []

    def denoise(x, sigma, class_labels=None):
        seen.append(sigma)
        return pictures(x, sigma)

    x = torch.cat([70 * images(1, seed=1), 90 * images(1, seed=2)])
    end("ts-ddim", x, Karras(0.02, 80.0), 5, denoise=denoise, window=100, cutoff=300)
    assert seen[0].dim() == 0 and seen[1].shape == (2,) and seen[1][0] != seen[1][1]


@pytest.mark.parametrize(("step", "up", "down"), [(701, 0.71, 0.15), (601, 0.96, 0.0), (501, 1.0, 0.0)])
def test_the_released_rule_is_half_a_window_up_but_for_images_at_high_noise(step, up, down):
    """x is noisier than the next level by a whole step: ten steps, pixels of variance 1/4, three channels of 32x32."""
    generator = torch.Generator().manual_seed(step)
    clean, noise = (torch.randn(400, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in range(2))
    s, t = (torch.tensor(time_shift.level(each), dtype=torch.float64) for each in (step, step - 100))
    found = time_shift.seen(clean / 2 + s * noise, s, float(t), 40).flatten()
    for share, side in ((up, 20), (down, -20)):
        edge = (found / time_shift.level(step - 100 + side) - 1).abs() < 1e-9
        assert edge.double().mean().item() == pytest.approx(share, abs=0.06)


def test_with_the_variance_of_the_images_an_image_on_schedule_looks_like_its_own_level():
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(50, 3, 64, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    sigma = torch.tensor(time_shift.level(400), dtype=torch.float64)
    told, untold = (
        time_shift.seen(clean / 2 + sigma * noise, sigma, float(sigma), 400, variance).mean() for variance in (0.25, 0)
    )
    assert time_shift.index(float(told)) == pytest.approx(400, abs=15)
    assert time_shift.index(float(untold)) > 430


@pytest.mark.parametrize("rule", time_shift.RULES)
def test_the_controls_of_shifted_steps_read_nothing_off_the_images(rule, pictures):
    asked = []

    def denoise(x, sigma, class_labels=None):
        asked.append(sigma)
        return pictures(x, sigma)

    def shifted(shift, x, noise=None):
        asked.clear()
        return end("ts-ddim", x, Karras(0.02, 80.0), 5, noise, denoise, window=100, cutoff=100, rule=rule, shift=shift)

    x = 80 * images(8, seed=1)
    up, down = shifted("up", x), shifted("down", x)
    assert (up - down).abs().max() > 1e-3
    if rule == "paper":
        assert len(asked[1].unique()) == 1
    assert max(float(sigma.max()) for sigma in asked) <= 80
    random = shifted("random", x, UnitNoise(range(8), (1, 4, 4)))
    assert (random - up).abs().amax((1, 2, 3)).min() >= 0 and (random - up).abs().max() > 1e-3
    with pytest.raises(ValueError, match="random shift"):
        shifted("random", x)


# ------------------------------------------------------------------------------------------------------------ grids


def test_grids_in_the_time_of_vp_are_even_in_it():
    time = {name: GRIDS[name](0.002, 80.0)._time for name in ("vp-time", "vp-quadratic")}
    for name, power in (("vp-time", 1), ("vp-quadratic", 0.5)):
        levels = GRIDS[name](0.002, 80.0).levels(12)
        steps = np.diff([time[name](float(level)) ** power for level in levels])
        assert steps == pytest.approx(np.full(12, steps[0]), rel=1e-6)
    # The continuous chain: sigma(1e-3) and sigma(1).
    grid = GRIDS["vp-time"](0.01049, 152.17)
    assert grid._time(0.01049) == pytest.approx(1e-3, rel=1e-3) and grid._time(152.17) == pytest.approx(1, rel=1e-4)
