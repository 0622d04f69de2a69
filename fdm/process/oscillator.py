"""Stochastic gradient descent with momentum as the forward process: the theory behind FDM, which no training uses.

The damped oscillator, its moments, and how fast scales fall, claims C1 and C2 (arXiv 2306.06991). Every function is
elementwise and takes NumPy arrays or torch tensors alike.
"""

import numpy as np
import torch
from scipy.special import lambertw

from fdm.process.schedule import Array, B, exp


def scale_baseline(t: Array) -> Array:
    """Scale of the variance-preserving process without momentum, s(t) = exp(-B(t)/2)."""
    return exp(-0.5 * B(t))


def B_at_scale(scale: np.ndarray, multiplier: float | None = None) -> np.ndarray:
    """Integrated noise rate at which the scale has fallen to `scale`, in (0, 1]: of FDM with m, or without momentum.

    (1 + mB) exp(-mB) = s is solved by Lambert's function, mB = -1 - W(-s/e) on the branch W <= -1.
    """
    if multiplier is None:
        return -2 * np.log(scale)
    s = np.asarray(scale)
    # At s = 1, the branch point, 1/e rounded is no argument of the function any more.
    return np.where(s == 1, 0.0, (-1 - lambertw(-s / np.e, k=-1).real) / multiplier)


def sgd_step(x: Array, eps: Array, alpha: float, beta_k: float) -> Array:
    """One SGD step on f(x) = E||x - beta/(1-alpha) eps||^2 / 2 with learning rate 1 - alpha (FDM, claim C1).

    The stochastic gradient is x - beta/(1-alpha) eps, so the step equals the diffusion step alpha x + beta eps.
    """
    gradient = x - beta_k / (1 - alpha) * eps
    return x - (1 - alpha) * gradient


def oscillator(tau: Array, damping: float) -> Array:
    """Position of the damped oscillator x'' + 2 zeta x' + x = 0 from x(0) = 1, x'(0) = 0, at times tau >= 0.

    `damping` is the ratio zeta >= 0: below 1 it oscillates, at 1 it is critical, above 1 it creeps.
    Raises ValueError for a negative ratio.
    """
    if damping < 0:
        raise ValueError(f"the damping ratio must be at least 0, and is {damping}")
    if damping == 1:
        return (1 + tau) * exp(-tau)
    if damping < 1:
        omega = float(np.sqrt(1 - damping**2))
        cos, sin = (torch.cos, torch.sin) if isinstance(tau, torch.Tensor) else (np.cos, np.sin)
        return exp(-damping * tau) * (cos(omega * tau) + damping / omega * sin(omega * tau))
    root = float(np.sqrt(damping**2 - 1))
    slow, fast = damping - root, damping + root  # decay rates; the slow one rules in the end
    return (fast * exp(-slow * tau) - slow * exp(-fast * tau)) / (fast - slow)


def decay_rate(damping: np.ndarray) -> np.ndarray:
    """Rate at which the oscillator's envelope decays in the end: zeta up to 1, zeta - sqrt(zeta^2 - 1) above.

    Its maximum, 1, is at critical damping: the sense in which no other ratio is faster.
    """
    return damping - np.sqrt(np.maximum(damping**2 - 1, 0))


def heavy_ball(
    steps: int, damping: float, length: float, noise: np.ndarray | None = None, strength: float = 0.0
) -> np.ndarray:
    """Heavy-ball descent on x^2/2 from x = 1 at rest, the discrete form of `oscillator`, with noise of `moments`.

    `steps` steps of size h = length/steps in oscillator time; learning rate h^2/(1 + zeta h) and momentum
    gamma = (1 - zeta h)/(1 + zeta h), which are the central differences of x'' + 2 zeta x' + x = g xi(tau) for
    g = `strength` and white noise xi, given as standard normal `noise` (steps, ...), one a step. Its share in a step
    is g h^1.5/(1 + zeta h). Returns the positions, (steps + 1, ...).
    """
    h = length / steps
    gamma = (1 - damping * h) / (1 + damping * h)
    rate = h * h / (1 + damping * h)
    kicks = np.zeros(steps) if noise is None else strength * h**1.5 * noise
    x = np.empty((steps + 1, *kicks.shape[1:]))
    x[0] = 1.0
    # The second-order start for x'(0) = 0; a third of a kick's variance has reached the position after one step.
    x[1] = 1 - 0.5 * h * h + kicks[0] / np.sqrt(3)
    for k in range(1, steps):
        x[k + 1] = x[k] - rate * x[k] + gamma * (x[k] - x[k - 1]) + kicks[k] / (1 + damping * h)
    return x


def moments(tau: np.ndarray, damping: float, strength: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n, 2) and covariance (n, 2, 2) of position and velocity of x'' + 2 zeta x' + x = g xi(tau).

    From x = 1, x' = 0 without spread, at strictly rising times tau (n,) >= 0; xi is white noise and g = `strength`.
    The default, 2 sqrt(zeta), is that for which the position's variance tends to 1, as in critically-damped Langevin
    diffusion (Dockhorn et al. 2022, arXiv 2112.07068), where too the noise enters the velocity alone. The moments
    obey the linear equations mu' = A mu and P' = A P + P A^T + diag(0, g^2), which are solved numerically.
    """
    from scipy.integrate import solve_ivp  # which takes half a second to import

    g = 2 * np.sqrt(damping) if strength is None else strength
    A = np.array([[0.0, 1.0], [-1.0, -2 * damping]])
    Q = np.array([[0.0, 0.0], [0.0, g * g]])

    def slope(_: float, y: np.ndarray) -> np.ndarray:
        mu, P = y[:2], y[2:].reshape(2, 2)
        return np.concatenate([A @ mu, (A @ P + P @ A.T + Q).ravel()])

    start = np.array([1.0, 0, 0, 0, 0, 0])
    solved = solve_ivp(slope, (0, max(tau[-1], 1e-12)), start, "DOP853", tau, rtol=1e-10, atol=1e-12).y.T
    return solved[:, :2], solved[:, 2:].reshape(-1, 2, 2)


def variance_critical(tau: Array) -> Array:
    """Variance of the position in `moments` at critical damping: 1 - (1 + 2 tau + 2 tau^2) exp(-2 tau)."""
    return 1 - (1 + 2 * tau + 2 * tau**2) * exp(-2 * tau)
