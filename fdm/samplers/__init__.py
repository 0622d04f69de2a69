"""Samplers of dx/dsigma = (x - D(x; sigma)) / sigma. One file an algorithm, one line here."""

from collections.abc import Callable, Iterator
from typing import Literal

from torch import Tensor

from fdm.samplers.dpm_solver import dpm_solver_pp
from fdm.samplers.heun import heun, heun_steps

Denoise = Callable[[Tensor, Tensor], Tensor]
Sampler = Literal["heun", "dpm-solver++"]

# name -> (denoise, latents, sigma_min, sigma_max, nfe) -> x after each step
SAMPLERS: dict[str, Callable[..., Iterator[Tensor]]] = {
    "heun": lambda D, latents, low, high, nfe: heun(D, latents, heun_steps(nfe), low, high),
    "dpm-solver++": dpm_solver_pp,
}

__all__ = ["SAMPLERS", "Denoise", "Sampler", "dpm_solver_pp", "heun", "heun_steps"]
