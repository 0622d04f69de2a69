"""UniPC (Zhao et al. 2023, arXiv 2302.04867), order 2 with B(h) = e^h - 1, on D, in the noise level sigma.

A predictor of second order, and a corrector that needs no evaluation of its own: it takes the D that was asked for at
the predicted point, and moves that point before the next step. A last step to zero is D itself.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from fdm.samplers.contract import Denoise, Noise, Sampler, one_a_step
from fdm.samplers.grids import Grid


def _step(x: Tensor, s: Tensor, t: Tensor, D: Tensor, others: list[tuple[float, Tensor]]) -> Tensor:
    """x at t from x at s, where D holds, and from D at other levels, r steps of lambda from s to t away.

    The weights are those with which polynomials in lambda of as many degrees are integrated exactly (Theorem 3.1). One
    other level has the weight 1/2, which is enough for second order.
    """
    h = float((s / t).log())
    integrals = [-float(torch.expm1(torch.tensor(-h, dtype=torch.float64)))]  # of e^(h (v - 1)) v^i h, v from 0 to 1
    for i, _ in enumerate(others, start=1):
        integrals.append(1 - i / h * integrals[-1])
    moved, *moments = integrals
    x = t / s * x + moved * D
    weights = [moved / 2]
    if len(others) > 1:
        r = torch.tensor([r for r, _ in others], dtype=torch.float64)
        powers = torch.stack([r**i for i in range(len(r))])
        weights = torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()
    return x + sum(weight / r * (other - D) for weight, (r, other) in zip(weights, others, strict=False))


def unipc(denoise: Denoise, x: Tensor, grid: Grid, steps: int, noise: Noise | None = None) -> Iterator[Tensor]:
    """Yield x, float64 (N, C, H, W), as given and after each step, predicted; corrected it is only gone on from."""
    x = x.double()
    yield x
    levels = grid.levels(steps).double().to(x.device)
    start, before, others = x, None, list[tuple[float, Tensor]]()  # of the last step: whence, its D, and older ones
    for i, (s, t) in enumerate(itertools.pairwise(levels)):
        D = denoise(x, s).double()
        if before is not None:
            x = _step(start, levels[i - 1], s, before, [*others, (1.0, D)])
            others = [(float((s / levels[i - 1]).log() / (s / t).log()), before)]
        start, before = x, D
        x = D if t == 0 else _step(x, s, t, D, others)
        yield x


UNIPC = Sampler("UniPC", unipc, one_a_step, to_zero=False)
