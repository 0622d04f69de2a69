"""Samplers of dx/dsigma = (x - D(x; sigma)) / sigma. One file an algorithm, one line here."""

from collections.abc import Callable, Iterator

from torch import Tensor

from fdm.names import Sampler
from fdm.samplers.dpm_solver import dpm_solver_pp
from fdm.samplers.heun import heun, heun_steps

Denoise = Callable[[Tensor, Tensor], Tensor]

# name -> (denoise, latents, sigma_min, sigma_max, nfe) -> x after each step
SAMPLERS: dict[Sampler, Callable[..., Iterator[Tensor]]] = {
    "heun": lambda D, latents, low, high, nfe: heun(D, latents, heun_steps(nfe), low, high),
    "dpm-solver++": dpm_solver_pp,
}

__all__ = ["SAMPLERS", "Denoise", "dpm_solver_pp", "heun", "heun_steps"]
