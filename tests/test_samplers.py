"""Every sampler of the registry, on the exact denoiser of a mixture: what an entry gets tested for by being there."""

import itertools

import pytest
import torch
from safetensors.torch import load_file

from fdm.files import root
from fdm.model.oracle import Mixture
from fdm.samplers import GRIDS, SAMPLERS
from fdm.samplers.ddim import ddim
from fdm.samplers.grids import Grid, Karras, LogSNR
from fdm.samplers.heun import heun
from fdm.samplers.noise import UnitNoise
from fdm.tasks import generation

NFE = (2, 3, 5, 6, 7, 10, 13, 14, 20)
N = 200_000
# W1 between samples and data, by sampler and evaluations, on a grid with rho = 7 from 80 to 0.002, where it ends.
W1 = {
    "ddim": {6: 0.275, 10: 0.167, 14: 0.121, 18: 0.094, 20: 0.085, 30: 0.057, 50: 0.035},
    "s-pndm": {6: 0.137, 10: 0.055, 14: 0.026, 18: 0.016, 20: 0.013, 30: 0.0069, 50: 0.0035},
    "f-pndm": {14: 0.122, 18: 0.025, 20: 0.018, 30: 0.0064, 50: 0.0019},
    "heun": {6: 1.531, 10: 0.499, 14: 0.183, 18: 0.098, 20: 0.087, 30: 0.035, 50: 0.012},
}


class Counted:
    """A denoiser that counts its evaluations."""

    noised_forward = False  # as most generators draw

    def __init__(self, denoiser):
        self.denoiser, self.calls = denoiser, 0
        self.shape, self.classes, self.sigma_range = denoiser.shape, denoiser.classes, denoiser.sigma_range

    def __call__(self, x, sigma, class_labels=None):
        self.calls += 1
        return self.denoiser(x, sigma, class_labels)

    def cumulants(self, x, sigma, class_labels=None):
        self.calls += 1
        return self.denoiser.cumulants(x, sigma, class_labels)

    def generated(self, x, sigma, unit, class_labels=None):
        return self(x, sigma, class_labels) + 0.1 * unit


@pytest.fixture(scope="module")
def drawn():
    """Data of the mixture, sorted, and latents. Of few steps of Heun another draw moves W1 by a hundredth."""
    generator = torch.Generator().manual_seed(0)
    data = Mixture.reference().draw(N, generator).flatten().sort().values
    return data, 80 * torch.randn(N, 1, 1, 1, generator=generator, dtype=torch.float64)


def possible(entry, to_zero):
    for nfe in NFE:
        try:
            yield nfe, entry.steps(nfe, to_zero)
        except ValueError:
            continue


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_stated_number_of_evaluations_is_that_of_the_calls(name):
    entry, counted = SAMPLERS[name], Counted(Mixture.reference())
    tried = list(possible(entry, entry.to_zero))
    assert len(tried) > 2
    for nfe, steps in tried:
        counted.calls, counted.steps = 0, steps
        generation.sample(counted, range(3), name, nfe)
        assert counted.calls == nfe


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_do_not_depend_on_the_batch_and_differ_from_seed_to_seed(name):
    mixture, entry = Counted(Mixture.reference()), SAMPLERS[name]
    options = {key: each[1] if isinstance(each[1], str) else min(each[1], 1.0) for key, each in entry.options.items()}
    nfe, mixture.steps = next(iter(possible(entry, entry.to_zero)))
    for varied in ({}, options):
        whole = [*generation.trajectory(mixture, range(6), name, nfe, **varied)][-1]
        parts = [[*generation.trajectory(mixture, seeds, name, nfe, **varied)][-1] for seeds in (range(2), range(2, 6))]
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-12, atol=1e-12)
        assert len(whole.unique()) == 6


@pytest.fixture(scope="module")
def converged():
    """Latents at 20, and where the flow takes them at 2."""
    x = 20 * torch.randn(300, 1, 1, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (exact,) = itertools.islice(heun(Mixture.reference(), x, LogSNR(2.0, 20.0), 4000), 4000, None)
    return x, exact


@pytest.mark.parametrize("name", [name for name, entry in SAMPLERS.items() if entry.consistent])
def test_more_evaluations_come_nearer_to_the_flow_of_the_exact_denoiser(name, converged):
    """From 20 to 2: far from the ends, where the exact D is stiff. A method of first order halves its error."""
    mixture, entry, (x, exact) = Mixture.reference(), SAMPLERS[name], converged
    errors = []
    for nfe in (24, 48, 96):
        # DPM-Solver++ ends with D at the lowest level; the step before that is at it.
        path = [*entry.sample(mixture, x, LogSNR(2.0, 20.0), entry.steps(nfe, False), None)]
        last = path[-2] if name == "dpm-solver++" else path[-1]
        errors.append((last - exact).square().mean().sqrt().item())
    for coarse, fine in itertools.pairwise(errors):
        assert fine < 0.6 * coarse


@pytest.mark.parametrize(("name", "nfe", "expected"), [(s, n, w) for s, row in W1.items() for n, w in row.items()])
def test_the_reference_distances_on_the_mixture_are_met(name, nfe, expected, drawn):
    entry, (data, latents) = SAMPLERS[name], drawn
    *_, x = entry.sample(Mixture.reference(), latents, Karras(0.002, 80.0), entry.steps(nfe, False))
    assert (x.flatten().sort().values - data).abs().mean().item() == pytest.approx(expected, abs=0.003)


def test_s_pndm_and_f_pndm_are_of_second_order_on_a_grid_that_is_not_uniform_in_sigma():
    mixture = Mixture.reference()
    x = 20 * torch.randn(500, 1, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grid = Karras(0.05, 20.0)
    *_, exact = heun(mixture, x, grid, 6000)
    for name in ("s-pndm", "f-pndm"):
        errors = []
        for steps in (320, 640):
            *_, last = SAMPLERS[name].sample(mixture, x, grid, steps)
            errors.append((last - exact).square().mean().sqrt().item())
        assert errors[0] / errors[1] == pytest.approx(4, abs=0.4)


class Levels(Grid):
    """A grid of given levels, such as those of a discrete chain."""

    def __init__(self, levels):
        super().__init__(float(levels[-1]), float(levels[0]))
        self.given = levels

    def levels(self, steps):
        assert len(self.given) == steps + 1
        return self.given


@pytest.mark.parametrize(("steps", "eta"), [(10, 0.0), (20, 0.0), (50, 0.0), (20, 1.0)])
def test_ddim_is_that_of_diffusers_on_the_mapped_grid(steps, eta):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(1000, beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True,
                                        timestep_spacing="leading")  # fmt: skip
    scheduler.set_timesteps(steps)
    mixture, alphas = Mixture.reference(), scheduler.alphas_cumprod.double()
    sigma = ((1 - alphas) / alphas).sqrt()
    times = scheduler.timesteps
    noise = UnitNoise(range(64), (1, 1, 1))
    x = torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = x.clone()  # of unit variance: the state divided by the square root of 1 + sigma^2
    for i, t in enumerate(times):
        state = theirs * (1 + sigma[t] ** 2).sqrt()
        eps = (state - mixture(state, sigma[t])) / sigma[t]
        theirs = scheduler.step(eps, t, theirs, eta=eta, variance_noise=noise(i).double() if eta else None).prev_sample
    grid = Levels(torch.cat([sigma[times], torch.zeros(1, dtype=torch.float64)]))
    *_, ours = ddim(mixture, x * (1 + sigma[times[0]] ** 2).sqrt(), grid, steps, noise, eta)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_ddim_with_eta_one_keeps_the_noise_level_of_every_step():
    """Data of one point: after any step x is the point and noise of the step's level, whatever eta is."""
    point = Mixture(torch.ones(1), torch.full((1, 1, 1, 1), 0.3), torch.zeros(1))
    grid = Karras(0.1, 10.0)
    seeds = range(4000)
    x = grid.high * torch.randn(len(seeds), 1, 1, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for eta in (0.0, 0.5, 1.0):
        path = ddim(point, 0.3 + x, grid, 5, UnitNoise(seeds, (1, 1, 1)), eta)
        for level, state in zip(grid.levels(5), path, strict=True):
            assert state.std().item() == pytest.approx(float(level), rel=0.04)
            assert state.mean().item() == pytest.approx(0.3, abs=4 * float(level) / len(seeds) ** 0.5)


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_falls_from_its_highest_level_to_its_lowest_and_then_to_zero(name):
    for to_zero in (True,) if name == "ladder" else (False, True):
        grid = GRIDS[name](0.002, 80.0, to_zero)
        levels = grid.levels(9)
        assert len(levels) == 10 and (levels.diff() < 0).all()
        last = 0.3786 if name == "ladder" else 0.002  # of nine steps even in VP's time
        assert float(levels[0]) == pytest.approx(80)
        assert float(levels[8 if to_zero else 9]) == pytest.approx(last, rel=1e-3)
        assert (float(levels[-1]) == 0) == to_zero
        torch.testing.assert_close(
            grid(grid.nodes(9)), levels[:9].double() if to_zero else levels.double(), rtol=1e-5, atol=0
        )


def test_the_exact_denoiser_of_a_mixture_is_the_mean_of_what_it_draws():
    """Against Monte Carlo: among draws whose noisy version is near x, the moments of the clean one."""
    mixture = Mixture.reference()
    generator = torch.Generator().manual_seed(0)
    clean = mixture.draw(4_000_000, generator).flatten()
    assert clean.var().item() == pytest.approx(0.94665, rel=0.005)
    for sigma, x in ((0.5, 0.4), (0.3, -0.6), (2.0, 1.0)):
        noisy = clean + sigma * torch.randn(len(clean), generator=generator, dtype=torch.float64)
        near = clean[(noisy - x).abs() < 0.01]
        found = [each.item() for each in mixture.cumulants(torch.full((1, 1, 1, 1), x), torch.tensor(sigma))]
        centred = near - near.mean()
        assert found[0] == pytest.approx(near.mean().item(), abs=0.02)
        assert found[1] == pytest.approx(centred.square().mean().item(), abs=0.02)
        assert found[2] == pytest.approx(centred.pow(3).mean().item(), abs=0.03)
        assert found[0] == pytest.approx(mixture(torch.full((1, 1, 1, 1), x), torch.tensor(sigma)).item(), abs=1e-12)


@pytest.mark.parametrize("axes", [0, 2])
def test_the_cumulants_are_derivatives_of_the_exact_denoiser(axes):
    """Tweedie: the second is sigma^2 dD/dx, the third sigma^4 d^2D/dx^2, on the diagonal, in any dimension."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(4, 1, 2, 2, generator=generator, dtype=torch.float64)
    along = torch.linalg.qr(torch.randn(4, 4, axes, generator=generator, dtype=torch.float64)).Q.mT
    spreads = torch.rand(4, axes, generator=generator, dtype=torch.float64)
    mixture = Mixture(
        torch.tensor([0.1, 0.2, 0.3, 0.4]), means, torch.tensor([0.2, 0.5, 0.0, 0.3]), None, along, spreads
    )
    x, sigma, h = torch.randn(1, 1, 2, 2, generator=generator, dtype=torch.float64), torch.tensor(0.7), 1e-4
    _, second, third = mixture.cumulants(x, sigma)
    for place in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[place] = h
        up, here, down = (mixture(x + sign * step.reshape(x.shape), sigma).flatten()[place] for sign in (1, 0, -1))
        torch.testing.assert_close(
            second.flatten()[place], sigma.double() ** 2 * (up - down) / (2 * h), rtol=1e-5, atol=1e-8
        )
        torch.testing.assert_close(
            third.flatten()[place], sigma.double() ** 4 * (up - 2 * here + down) / h**2, rtol=1e-4, atol=1e-6
        )


def test_a_denoiser_that_is_told_the_class_takes_the_components_of_that_class_alone():
    means = torch.tensor([-1.0, 1.0, 1.2]).reshape(3, 1, 1, 1)
    mixture = Mixture(torch.full((3,), 1 / 3), means, torch.zeros(3), torch.tensor([0, 1, 1]))
    x, told = torch.zeros(2, 1, 1, 1), torch.eye(2)
    D = mixture(x, torch.tensor(50.0), told).flatten()
    assert mixture.classes == 2
    assert D[0].item() == pytest.approx(-1) and D[1].item() == pytest.approx(1.1, abs=1e-3)


@pytest.mark.parametrize(("name", "options", "words"), [
    ("ddim", {"eta": 2}, "eta: 2 is not allowed for DDIM; it must be 0 to 1"),
    ("ddim", {"rho": 3}, "rho is no option of DDIM; it has eta"),
    ("s-pndm", {"eta": 0}, "eta is no option of S-PNDM; it has none"),
])  # fmt: skip
def test_an_option_that_a_sampler_does_not_have_is_refused_in_a_sentence(name, options, words):
    with pytest.raises(ValueError) as raised:
        SAMPLERS[name].check(options)
    assert words in str(raised.value)


def test_a_trained_network_goes_the_same_way_as_an_exact_denoiser():
    from fdm.model import checkpoints

    path = root() / "results" / "digits" / "networks" / "edm-fdm-0.safetensors"
    assert load_file(path)
    images = generation.sample(checkpoints.load(path)[0], range(4), "s-pndm", 6)
    assert images.shape == (4, 1, 8, 8) and images.dtype == torch.uint8
