"""DoSSR's sampling (Cui et al. 2024, arXiv 2409.17778): from the noised estimate back to the clean image.

In u = w / (1 - eta) - eta / (1 - eta) e and lambda = sigma / (1 - eta) it is an ER-SDE solver: the network is asked at
w = (1 - eta) u + eta e, with the noise level sigma, and answers the clean image.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fdm.model.denoiser import Denoise
from fdm.process.shift import Steps
from fdm.samplers.contract import Noise
from fdm.samplers.er_sde import er_sde
from fdm.samplers.noise import UnitNoise
from fdm.tasks.generation import draw_latents
from fdm.tasks.physics import Measurement


def walk(
    denoise: Any, estimate: Tensor, z: Tensor, noise: Noise, steps: int, order: float, slope: str = "published"
) -> Iterator[Tensor]:
    """Yield w, float64 (N, C, H, W), from estimate + sigma z on and after each step of order 1 to 3.

    `denoise(w, sigma)` is the expected clean image given w = (1 - eta) clean + eta estimate + sigma n. It ends at the
    lowest level of the published schedule, as released.
    """
    grid = Steps(steps)
    places = {float(lam): place for place, lam in enumerate(grid.lam)}

    def w_of(u: Tensor, place: int) -> Tensor:
        return (1 - grid.eta[place]) * u + grid.eta[place] * estimate

    def D(u: Tensor, lam: Tensor) -> Tensor:
        place = places[float(lam)]
        return denoise(w_of(u, place), grid.sigma[place].to(u.device))

    u = estimate.double() + grid.lam[0] * z.double()  # of w = estimate + sigma z
    for place, x in enumerate(er_sde(D, u, grid, steps, noise, order, slope)):  # type: ignore[arg-type]
        yield w_of(x, place)


def restore(
    denoiser: Denoise, measurement: Measurement, nfe: int, seeds: range, order: float = 1, slope: str = "published"
) -> Tensor:
    """Restorations, float64 (N, C, H, W), in `nfe` evaluations of a denoiser that was trained with the shift."""
    estimate = measurement.estimate
    z, _ = draw_latents(seeds, denoiser.shape, 0)
    noise = UnitNoise(seeds, denoiser.shape, str(estimate.device))

    def D(w: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(w, sigma, condition=estimate).double()  # type: ignore[call-arg]

    *_, x = walk(D, estimate, z.to(estimate.device), noise, nfe, order, slope)
    return x
