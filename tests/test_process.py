"""Schedule, momentum and frameworks, against independent solutions and by their properties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp
from scipy.linalg import expm, solve_continuous_lyapunov

from fdm.process import momentum, oscillator, schedule
from fdm.process.frameworks import FRAMEWORKS, SIGMA_DATA, coefficients

times = st.floats(0, 1)
dampings = st.one_of(st.just(1.0), st.floats(0.0, 0.99), st.floats(1.01, 4.0))


@given(times)
def test_B_is_the_integral_of_beta(t):
    assert schedule.B(t) == pytest.approx(quad(schedule.beta, 0, t)[0], rel=1e-9, abs=1e-12)


@given(dampings)
def test_oscillator_solves_its_equation(damping):
    tau = np.linspace(0, 10, 50)
    solved = solve_ivp(
        lambda _, y: [y[1], -y[0] - 2 * damping * y[1]], (0, 10), [1, 0], t_eval=tau, rtol=1e-9, atol=1e-10
    )
    np.testing.assert_allclose(oscillator.oscillator(tau, damping), solved.y[0], atol=1e-7)


def test_oscillator_is_continuous_at_critical_damping_and_refuses_a_negative_ratio():
    tau = np.linspace(0, 10, 50)
    for near in (1 - 1e-7, 1 + 1e-7):
        np.testing.assert_allclose(oscillator.oscillator(tau, near), oscillator.oscillator(tau, 1.0), atol=1e-5)
    with pytest.raises(ValueError, match="at least 0"):
        oscillator.oscillator(tau, -0.1)


@given(st.floats(0.05, 4))
def test_critical_damping_decays_fastest(damping):
    assert oscillator.decay_rate(np.array(damping)) <= oscillator.decay_rate(np.array(1.0)) == 1
    late = np.linspace(60, 61, 200)
    envelope = np.abs(oscillator.oscillator(late, damping)).max()
    if abs(damping - 1) > 0.2:
        assert envelope > np.abs(oscillator.oscillator(late, 1.0)).max()


@given(times, times, st.floats(0.25, 4))
def test_scale_falls_from_one_and_is_the_critical_oscillator(a, b, m):
    assert momentum.scale_fdm(0.0, m) == 1
    low, high = sorted([a, b])
    assert 0 < momentum.scale_fdm(high, m) <= momentum.scale_fdm(low, m) <= 1
    assert momentum.scale_fdm(a, m) == pytest.approx(oscillator.oscillator(m * schedule.B(a), 1.0))


@given(st.floats(1e-3, 1))
def test_t_inverts_sigma(t):
    assert schedule.t_vp(schedule.sigma_vp(t)) == pytest.approx(t, rel=1e-6)


def test_torch_and_numpy_agree():
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    for function in (
        schedule.B,
        schedule.beta,
        oscillator.scale_baseline,
        momentum.scale_fdm,
        schedule.sigma_vp,
        schedule.t_vp,
        schedule.t_of_B,
        oscillator.variance_critical,
    ):
        np.testing.assert_allclose(function(t).numpy(), function(t.numpy()), rtol=1e-12)
    for damping in (0.3, 1.0, 2.0):
        np.testing.assert_allclose(
            oscillator.oscillator(t, damping), oscillator.oscillator(t.numpy(), damping), rtol=1e-12
        )


@given(st.floats(-10, 10), st.floats(-3, 3), st.floats(0.01, 0.999), st.floats(0.001, 1))
def test_a_diffusion_step_is_a_step_of_sgd(x, eps, alpha, beta):
    assert oscillator.sgd_step(x, eps, alpha, beta) == pytest.approx(alpha * x + beta * eps, abs=1e-9)


@pytest.mark.parametrize("damping", [0.3, 1.0, 2.0])
def test_heavy_ball_converges_with_order_two(damping):
    errors = [
        np.abs(oscillator.heavy_ball(n, damping, 8.0) - oscillator.oscillator(np.linspace(0, 8, n + 1), damping)).max()
        for n in (200, 400)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


@given(times)
def test_t_inverts_B(t):
    assert schedule.t_of_B(schedule.B(t)) == pytest.approx(t, abs=1e-12)


@given(st.floats(1e-6, 1), st.floats(0.25, 4))
def test_a_scale_is_reached_where_it_is_said_to_be(scale, m):
    t = schedule.t_of_B(oscillator.B_at_scale(np.array(scale), m))
    assert momentum.scale_fdm(t, m) == pytest.approx(scale, rel=1e-6)
    t = schedule.t_of_B(oscillator.B_at_scale(np.array(scale)))
    assert oscillator.scale_baseline(t) == pytest.approx(scale, rel=1e-9)


@given(st.floats(0.2, 4), st.floats(0.1, 3))
def test_the_moments_are_those_of_the_matrix_exponential(damping, g):
    tau = np.array([0.0, 0.3, 1.0, 4.0])
    mean, covariance = oscillator.moments(tau, damping, g)
    np.testing.assert_allclose(mean[:, 0], oscillator.oscillator(tau, damping), atol=1e-8)
    A, Q = np.array([[0, 1], [-1, -2 * damping]]), np.diag([0, g * g])
    stationary = solve_continuous_lyapunov(A, -Q)
    for t, P in zip(tau, covariance, strict=True):
        E = expm(A * t)
        np.testing.assert_allclose(P, stationary - E @ stationary @ E.T, atol=1e-7 * g * g)
        assert np.linalg.eigvalsh(P).min() > -1e-8


@pytest.mark.parametrize("damping", [0.3, 1.0, 2.0])
def test_the_default_strength_tends_to_unit_variance(damping):
    _, covariance = oscillator.moments(np.array([0.0, 80.0]), damping)
    np.testing.assert_allclose(covariance[-1], np.eye(2), atol=1e-6)


@given(st.floats(1e-3, 20))
def test_the_critical_variance_in_closed_form(tau):
    _, covariance = oscillator.moments(np.array([0.0, tau]), 1.0)
    assert oscillator.variance_critical(tau) == pytest.approx(covariance[-1, 0, 0], abs=1e-8)


@pytest.mark.parametrize("damping", [0.3, 1.0, 2.0])
def test_a_noisy_heavy_ball_has_the_moments_of_the_driven_oscillator(damping):
    steps, paths, length = 400, 20_000, 6.0
    noise = np.random.default_rng(0).standard_normal((steps, paths))
    x = oscillator.heavy_ball(steps, damping, length, noise, strength=1.5)
    tau = np.linspace(0, length, steps + 1)
    mean, covariance = oscillator.moments(tau, damping, 1.5)
    variance = covariance[:, 0, 0]
    assert (np.abs(x.mean(1) - mean[:, 0]) <= 4.5 * np.sqrt(variance / paths) + 1e-3).all()
    # The spread of a variance is sqrt(2/n) of it; the discretisation is seen in the first steps.
    assert (np.abs(x.var(1) - variance) <= 4.5 * np.sqrt(2 / paths) * variance + 2e-3).all()


# ---------------------------------------------------------------------------------------------------- frameworks


@given(st.floats(0.002, 80))
def test_edm_keeps_unit_variance_and_an_unbiased_target(sigma):
    c = coefficients("edm", "baseline", torch.tensor(sigma, dtype=torch.float64))
    variance = sigma**2 + SIGMA_DATA**2
    assert c.c_in**2 * variance == pytest.approx(1)
    # F's target has unit variance, c_out^2 = (1 - c_skip)^2 sigma_d^2 + c_skip^2 sigma^2, and the weight undoes it.
    assert c.c_out**2 == pytest.approx((1 - c.c_skip) ** 2 * SIGMA_DATA**2 + c.c_skip**2 * sigma**2)
    weight = FRAMEWORKS["edm"].weight(torch.tensor(sigma, dtype=torch.float64))
    assert weight * c.c_out**2 == pytest.approx(1)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_framework_trains_within_its_noise_levels_and_its_times_run_from_0_to_1_over_them(name):
    process = FRAMEWORKS[name]
    ends = torch.tensor(process.sigma_range, dtype=torch.float64)
    u = process.draw(1000, torch.Generator().manual_seed(0))
    assert u.shape == (1000, 1, 1, 1)
    sigma = process.sigma(u.double())
    if process.bounded:
        assert ends[0] * 0.99 <= sigma.min() < sigma.max() <= ends[1] * 1.01
    for time in (process.time, process.share):
        np.testing.assert_allclose(time(ends), [0, 1], atol=1e-4)
        assert (time(ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, 50)).diff() > 0).all()
    assert (process.weight(sigma) > 0).all()
    assert all(torch.isfinite(each).all() and each.shape == sigma.shape for each in process.coefficients(sigma))


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_fdm_changes_c_in_alone_to_a_scale_that_is_1_without_noise(name):
    process = FRAMEWORKS[name]
    sigma = torch.linspace(*process.sigma_range, 50, dtype=torch.float64)
    without = coefficients(name, "baseline", sigma)
    for tau in ("sigma", "time"):
        with_it = coefficients(name, "fdm", sigma, 2.0, "as derived", tau)
        assert all(map(torch.equal, with_it._replace(c_in=without.c_in), without))
        time = process.share(sigma) if tau == "sigma" else process.time(sigma)
        assert torch.equal(with_it.c_in, momentum.scale_fdm(time, 2.0))
        assert with_it.c_in[0] == pytest.approx(1, abs=1e-6)


@given(st.integers(0, 1000), st.integers(0, 500), st.floats(0.01, 1e4))
def test_the_warmup_never_raises_a_weight_and_ends(step, warmup, weight):
    ceiling = momentum.weight_ceiling(step, warmup)
    assert (ceiling is None) == (step >= warmup)
    if ceiling is not None:
        assert 5 <= ceiling < 500
        assert min(weight, ceiling) <= weight
        following = momentum.weight_ceiling(step + 1, warmup)
        assert following is None or following > ceiling
