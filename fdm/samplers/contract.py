"""What a sampler is: an algorithm for dx/dsigma = (x - D(x; sigma)) / sigma that gets grid and noise from outside."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]  # D(x; sigma) for sigma () or (N,)
Noise = Callable[[int], Tensor]  # unit noise of step i, of the shape of x, by the samples' own seeds


Options = Mapping[str, tuple[float, float] | tuple[str, ...]]


def check_options(label: str, known: Options, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that is not `known` of what is called `label`, or a value outside of its range."""
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{name} is no option of {label}; it has {', '.join(known) or 'none'}")
        allowed = known[name]
        if isinstance(next(iter(allowed)), str):
            fine, told = value in allowed, f"one of {', '.join(map(str, allowed))}"
        else:
            low, high = map(float, allowed)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            fine, told = number and low <= value <= high, f"{low:g} to {high:g}"
        if not fine:
            raise ValueError(f"{name}: {value!r} is not allowed for {label}; it must be {told}")


class Sampler(NamedTuple):
    """An entry of the registry.

    `sample(D, x, grid, steps, noise, **options)` yields x, float64 (N, C, H, W): as it is given, at the grid's highest
    level, and after each step. `steps(nfe, to_zero)` is the number of steps that cost `nfe` evaluations, on a grid that
    ends at zero noise or at its lowest level; it raises ValueError where there is none.
    """

    label: str  # for tables and figures
    sample: Callable[..., Iterator[Tensor]]
    steps: Callable[[int, bool], int]
    grid: str = "karras"  # the usual one, by its name in `fdm.samplers.GRIDS`
    to_zero: bool = True  # whether the usual grid ends at zero noise
    # What may be varied, by name: the lowest and the highest number, or the words that it may be.
    options: Mapping[str, tuple[float, float] | tuple[str, ...]] = {}
    flows: bool = True  # whether what it asks is a denoiser, which has a flow
    consistent: bool = True  # whether its samples tend to the exact flow's of the same latents with more evaluations

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError for an option that the sampler does not have, or a value outside of its range."""
        check_options(self.label, self.options, options)


def one_a_step(nfe: int, to_zero: bool) -> int:
    """Steps of a sampler that evaluates D once a step."""
    if nfe < 1:
        raise ValueError(f"at least 1 evaluation is needed, and {nfe} was asked for")
    return nfe
