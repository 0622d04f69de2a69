"""The forward process against independent solutions and by its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp

from fdm import kernels

times = st.floats(0, 1)
dampings = st.one_of(st.just(1.0), st.floats(0.0, 0.99), st.floats(1.01, 4.0))


@given(times)
def test_B_is_the_integral_of_beta(t):
    assert kernels.B(t) == pytest.approx(quad(kernels.beta, 0, t)[0], rel=1e-9, abs=1e-12)


@given(dampings)
def test_oscillator_solves_its_equation(damping):
    tau = np.linspace(0, 10, 50)
    solved = solve_ivp(
        lambda _, y: [y[1], -y[0] - 2 * damping * y[1]], (0, 10), [1, 0], t_eval=tau, rtol=1e-9, atol=1e-10
    )
    np.testing.assert_allclose(kernels.oscillator(tau, damping), solved.y[0], atol=1e-7)


def test_oscillator_is_continuous_at_critical_damping_and_refuses_a_negative_ratio():
    tau = np.linspace(0, 10, 50)
    for near in (1 - 1e-7, 1 + 1e-7):
        np.testing.assert_allclose(kernels.oscillator(tau, near), kernels.oscillator(tau, 1.0), atol=1e-5)
    with pytest.raises(ValueError, match="at least 0"):
        kernels.oscillator(tau, -0.1)


@given(st.floats(0.05, 4))
def test_critical_damping_decays_fastest(damping):
    assert kernels.decay_rate(np.array(damping)) <= kernels.decay_rate(np.array(1.0)) == 1
    late = np.linspace(60, 61, 200)
    envelope = np.abs(kernels.oscillator(late, damping)).max()
    if abs(damping - 1) > 0.2:
        assert envelope > np.abs(kernels.oscillator(late, 1.0)).max()


@given(times, times, st.floats(0.25, 4))
def test_scale_falls_from_one_and_is_the_critical_oscillator(a, b, m):
    assert kernels.scale_fdm(0.0, m) == 1
    low, high = sorted([a, b])
    assert 0 < kernels.scale_fdm(high, m) <= kernels.scale_fdm(low, m) <= 1
    assert kernels.scale_fdm(a, m) == pytest.approx(kernels.oscillator(m * kernels.B(a), 1.0))


@given(st.floats(1e-3, 1))
def test_t_inverts_sigma(t):
    assert kernels.t_vp(kernels.sigma_vp(t)) == pytest.approx(t, rel=1e-6)


def test_torch_and_numpy_agree():
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    for function in (
        kernels.B,
        kernels.beta,
        kernels.scale_baseline,
        kernels.scale_fdm,
        kernels.sigma_vp,
        kernels.t_vp,
    ):
        np.testing.assert_allclose(function(t).numpy(), function(t.numpy()), rtol=1e-12)
    for damping in (0.3, 1.0, 2.0):
        np.testing.assert_allclose(kernels.oscillator(t, damping), kernels.oscillator(t.numpy(), damping), rtol=1e-12)


@given(st.floats(-10, 10), st.floats(-3, 3), st.floats(0.01, 0.999), st.floats(0.001, 1))
def test_a_diffusion_step_is_a_step_of_sgd(x, eps, alpha, beta):
    assert kernels.sgd_step(x, eps, alpha, beta) == pytest.approx(alpha * x + beta * eps, abs=1e-9)


@pytest.mark.parametrize("damping", [0.3, 1.0, 2.0])
def test_heavy_ball_converges_with_order_two(damping):
    errors = [
        np.abs(kernels.heavy_ball(n, damping, 8.0) - kernels.oscillator(np.linspace(0, 8, n + 1), damping)).max()
        for n in (200, 400)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)
