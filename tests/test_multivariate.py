"""Linear diffusions with auxiliary variables: against closed forms, an integrator, a simulation, and FDM's kernel."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from fdm.model.oracle import Mixture
from fdm.process import momentum, multivariate
from fdm.samplers import GRIDS, SAMPLERS
from fdm.samplers.grids import Grid

PROCESSES = {"vp": multivariate.vp, "cld": multivariate.cld, "alda": multivariate.alda, "malda": multivariate.malda}
BS = torch.tensor([0.02, 0.2, 1.2, 4.0], dtype=torch.float64)


@pytest.mark.parametrize("name", PROCESSES)
def test_whatever_is_skew_leaves_the_masses_stationary(name):
    process = PROCESSES[name]()
    torch.testing.assert_close(process.Q, -process.Q.T)
    assert (torch.linalg.eigvalsh(process.D) >= 0).all()
    stationary = torch.diag(process.m)
    torch.testing.assert_close(process.A @ stationary + stationary @ process.A.T, -2 * process.D)
    still = process._replace(start=process.m)  # from there it stays there
    torch.testing.assert_close(still.covariance(BS), stationary.expand(len(BS), -1, -1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PROCESSES)
def test_mean_and_covariance_are_those_of_an_integrator(name):
    """Of dC/dB = A C and dS/dB = A S + S A^T + 2 D."""
    process = PROCESSES[name]()
    A, D, K = process.A.numpy(), process.D.numpy(), len(process.m)

    def slope(_, state):
        C, S = state.reshape(2, K, K)
        return np.stack([A @ C, A @ S + S @ A.T + 2 * D]).ravel()

    begin = np.stack([np.eye(K), np.diag(process.start.numpy())]).ravel()
    found = solve_ivp(slope, (0, float(BS[-1])), begin, "DOP853", BS.numpy(), rtol=1e-12, atol=1e-13).y.T
    for B, state in zip(BS, found, strict=True):
        C, S = state.reshape(2, K, K)
        assert process.coefficients(B).numpy() == pytest.approx(C, abs=1e-9)
        assert process.covariance(B).numpy() == pytest.approx(S, abs=1e-9)


def test_the_process_of_one_variable_is_vp():
    process = multivariate.vp()
    torch.testing.assert_close(process.coefficients(BS)[:, 0, 0], (-BS / 2).exp())
    torch.testing.assert_close(process.covariance(BS)[:, 0, 0], -(-BS).expm1())
    _, sigma, _ = process.channel(BS)
    torch.testing.assert_close(sigma, BS.expm1().sqrt())


def test_clds_closed_form_and_its_published_covariances():
    process = multivariate.cld()
    g = 1.0  # 1 / (2 sqrt(1/4))
    for B in BS:
        a = 2 * g * B
        wanted = torch.exp(-a) * torch.stack([torch.stack([1 + a, 4 * g**2 * B]), torch.stack([-B, 1 - a])])
        wanted[0, 1] = torch.exp(-a) * 4 * B  # B / M
        torch.testing.assert_close(process.coefficients(B), wanted, rtol=1e-12, atol=1e-14)
    beta = 4
    for t, covariance in ((0.05, (0.0503, 0.0740, 0.1932)), (0.3, (0.8594, 0.0469, 0.2343)), (1.0, (1.0, 0.0, 0.25))):
        S = process.covariance(torch.tensor(beta * t))
        assert (S[0, 0].item(), S[0, 1].item(), S[1, 1].item()) == pytest.approx(covariance, abs=6e-5)


def test_fdms_kernel_is_the_mean_of_a_process_whose_noise_enters_the_velocity():
    """c_in of FDM is (1 + u) exp(-u), u = m B(tau): CLD's coefficient for 2 g B = u. FDM drops the velocity."""
    u = torch.linspace(0, 20, 101, dtype=torch.float64)
    process = multivariate.cld()
    torch.testing.assert_close(process.coefficients(u / 2)[:, 0, 0], (1 + u) * torch.exp(-u), rtol=1e-12, atol=1e-14)
    tau = torch.linspace(0, 1, 21, dtype=torch.float64)
    for multiplier in (1.0, 2.0):
        B = 0.1 * tau + 9.95 * tau**2
        mean = process.coefficients(multiplier * B / 2)[:, 0, 0]
        torch.testing.assert_close(momentum.scale_fdm(tau, multiplier), mean, rtol=1e-12, atol=1e-14)


def test_a_simulation_has_the_moments():
    """Euler and Maruyama's steps of CLD from one point, small enough that their error is below the noise."""
    process, beta, t, steps, n = multivariate.cld(), 4.0, 0.3, 600, 100_000
    generator = torch.Generator().manual_seed(0)
    y = torch.stack([
        torch.full((n,), 0.7, dtype=torch.float64),
        process.start[1].sqrt() * torch.randn(n, generator=generator, dtype=torch.float64),
    ])  # fmt: skip
    h, spread = t / steps, (2 * beta * process.D * t / steps).sqrt()
    for _ in range(steps):
        noise = torch.randn(2, n, generator=generator, dtype=torch.float64)
        y = y + beta * h * process.A @ y + spread @ noise
    B = torch.tensor(beta * t)
    assert y.mean(1).numpy() == pytest.approx(0.7 * process.coefficients(B)[:, 0].numpy(), abs=0.01)
    assert y.cov().numpy() == pytest.approx(process.covariance(B).numpy(), abs=0.01)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_denoiser_of_the_position_alone_knows_the_score_of_the_whole(name):
    """-S^-1 (y - c D(w y; sigma)) is the score of y, which for a mixture is known in closed form."""
    process, mixture = PROCESSES[name](), Mixture.reference()
    K = len(process.m)
    y = torch.randn(50, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for B in (0.04, 0.4, 1.2, 3.0):
        B = torch.tensor(B, dtype=torch.float64)
        w, sigma, c = process.channel(B)
        D = mixture((y @ w).reshape(-1, 1, 1, 1), sigma).flatten()
        S = process.covariance(B)
        score = -torch.linalg.solve(S, (y - D[:, None] * c).T).T
        whole = y.clone().requires_grad_()
        logs = []
        for weight, mean, deviation in zip(mixture.weights, mixture.means.flatten(), mixture.deviations, strict=True):
            normal = torch.distributions.MultivariateNormal(c * mean, S + deviation**2 * torch.outer(c, c))
            logs.append(weight.log() + normal.log_prob(whole))
        (wanted,) = torch.autograd.grad(torch.stack(logs).logsumexp(0).sum(), whole)
        torch.testing.assert_close(score, wanted, rtol=1e-6, atol=1e-7)


def test_what_cld_tells_of_a_pixel_by_time():
    t = torch.tensor([0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)
    _, sigma, _ = multivariate.cld().channel(4 * t)
    assert sigma.tolist() == pytest.approx([0.0151, 0.149, 0.408, 2.36, 8.43, 61.5, 247.6], rel=5e-3)


# ------------------------------------------------------------------------------------------------------- samplers


class Levels(Grid):
    """A grid of given levels."""

    def __init__(self, levels):
        super().__init__(float(levels[-1]), float(levels[0]))
        self.given = levels

    def levels(self, steps):
        return self.given


@pytest.mark.parametrize(("name", "steps", "expected"), [
    ("em", 20, 0.176), ("em", 50, 0.040), ("sscs", 20, 0.034), ("sscs", 50, 0.020), ("flow", 20, 0.035),
    ("flow", 50, 0.009),
])  # fmt: skip
def test_samplers_of_cld_draw_the_mixture_from_a_denoiser_of_the_position(name, steps, expected):
    """From time 1 to 0.001 in equal steps, W1 to data; another draw moves it by a hundredth."""
    n, mixture = 20_000, Mixture.reference()
    generator = torch.Generator().manual_seed(0)
    data = mixture.draw(n, generator).flatten().sort().values
    unit = torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
    levels = multivariate.cld().channel(4 * torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64))[1]

    def noise(i):
        return torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(100 + i), dtype=torch.float64)

    *_, z = SAMPLERS[f"multivariate-{name}"].sample(mixture, levels[0] * unit, Levels(levels), steps, noise)
    assert (z.flatten().sort().values - data).abs().mean().item() == pytest.approx(expected, abs=0.013)


def test_the_grid_of_clds_time_is_even_in_it():
    levels = GRIDS["cld-time"](0.02, 80.0).levels(10)
    B = multivariate.cld().times(levels)
    torch.testing.assert_close(B.diff(), B.diff().mean().expand(10), rtol=1e-4, atol=0)


def test_without_a_source_of_noise_nothing_can_be_drawn():
    with pytest.raises(ValueError, match="source of noise"):
        list(
            SAMPLERS["multivariate-flow"].sample(Mixture.reference(), torch.ones(1, 1, 1, 1), Levels(torch.ones(2)), 1)
        )
