"""The toy of SIDDM's authors: a grid of 25 Gaussians that small networks draw in a few steps.

Xu et al. 2023 (arXiv 2306.12511, section 5.1), after Xiao et al. 2022 (arXiv 2112.07804). It learns by the study's own
`training.objectives.adversarial`, where all is known and a training takes minutes: which modes are drawn, and whether
the two ends of a step belong together. Noise levels are sigma at scale 1, as everywhere in the study.
"""

import copy
import functools
import itertools
import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fdm.files import digest
from fdm.metrics.discrepancy import mmd2, rbf
from fdm.metrics.distances import frechet_distance
from fdm.process import ladder
from fdm.training.objectives.adversarial import critic_losses, generator_losses, pair

UNTIED = "siddm, no forward term"  # the critic of the paper's form, and nothing that ties x'_{k-1} to x_k
FORMS = ("siddm", UNTIED, "siddm toy", "siddm ufo", "ddgan")

# Modes a side, the distance of two, their standard deviation and where it is cut off, as released.
SIDE, SPACING, SPREAD, REACH = 5, 5.0, 1 / 3, 1.0
MODES = SIDE**2
CENTRES = torch.cartesian_prod(*[(torch.arange(SIDE) - (SIDE - 1) / 2) * SPACING] * 2)  # (25, 2)
SD = math.sqrt(SPACING**2 * (SIDE**2 - 1) / 12 + SPREAD**2)  # of a coordinate, 7.08

# The signal's least share of the variance. The released schedule ends at none, an infinite sigma, where the two ends of
# the first step have nothing in common: here their correlation is 0.22, far enough from 0 to be measured.
FAINTEST = 1e-3
LATENT, WIDTH = 2, 100  # numbers of z, units of a hidden layer, as released
INPUT = 4.0  # standard deviation of what the networks see: with 1 they part neighbouring modes more slowly
# Released: 187,500 iterations of 4,000 points at rates of 1e-4 and 4e-4, hours on one core; here minutes. With the
# released rates as few iterations find 18 modes; with twice these the paper's form diverges.
BATCH, ITERATIONS = 250, 10_000
RATES = (1e-3, 4e-3)  # of the generator and the critic
BETAS = (0.5, 0.999)  # Adam's, as released
EMA = 0.999  # decay an iteration of the weights' average; released: none

DRAWN, REAL, FEW = 10_000, 100_000, 2_000  # points behind the statistics: drawn and real, and of both for MMD^2
NEAR = 4 * SPREAD  # a point is of a mode up to this distance from its centre
HELD = 1 / 4  # a mode counts that holds more than this part of its share


def grid(n: int, generator: torch.Generator) -> Tensor:
    """Fresh points of the mixture, (n, 2) in [-11, 11]: equally likely modes, each normal and clamped at +-1."""
    centres = CENTRES[torch.randint(MODES, (n,), generator=generator)]
    return centres + (SPREAD * torch.randn(n, 2, generator=generator)).clamp(-REACH, REACH)


def levels(steps: int) -> Tensor:
    """The levels sigma_0 = 0 < ... < sigma_T = 31.6, T = `steps`, float64 (T + 1,): even in the cosine schedule's time.

    For T = 4: 0, 0.425, 1.01, 2.44 and 31.6.
    """
    cosine = (((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008) * torch.pi / 2).cos() ** 2
    signal = (cosine / cosine[0]).clamp(min=FAINTEST)
    return ((1 - signal) / signal).sqrt()


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    sizes = itertools.pairwise([inputs, WIDTH, WIDTH, WIDTH])
    hidden = [layer for size in sizes for layer in (nn.Linear(*size), nn.LeakyReLU(0.2))]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, outputs))


def _seen(x: Tensor, sigma: Tensor) -> Tensor:
    """What a network is told of x (N, 2) at sigma (N, 1): as large at every level."""
    return INPUT / (sigma**2 + SD**2).sqrt() * x


def _clean(x: Tensor, sigma: Tensor, raw: Tensor) -> Tensor:
    """EDM's clean point, (N, 2), of what a network says: linear in x, and x itself at sigma = 0."""
    variance = sigma**2 + SD**2
    return SD**2 / variance * x + sigma * SD / variance.sqrt() * raw


class Generator(nn.Module):
    """G(x; sigma, z), which draws a clean point.

    `form` is one of FORMS and `levels` (T + 1,) are the noise levels, float64, both of its training.
    """

    def __init__(self, form: str, steps: int) -> None:
        super().__init__()
        self.form, self.levels = form, levels(steps)
        self.model = _mlp(2 + 1 + LATENT, 2)

    def forward(self, x: Tensor, sigma: Tensor, z: Tensor) -> Tensor:
        """A draw of the clean point, (N, 2), given x (N, 2) at sigma > 0, (N, 1); z (N, 2) is uniform in [0, 1]."""
        return _clean(x, sigma, self.model(torch.cat([_seen(x, sigma), sigma.log() / 4, z], 1)))


class Critic(nn.Module):
    """What `model.generator.Critic` is to images."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _mlp(2 + 1 + 2, 1 + 2 + 2)

    def forward(
        self, x: Tensor, sigma: Tensor, above: Tensor, x_above: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The logit that x is real, (N,), what is clean in it, and x a level above it, (N, 2) both.

        x (N, 2) is at the levels `sigma` and `x_above` at the levels `above`, (N, 1) each.
        """
        second = torch.zeros_like(x) if x_above is None else _seen(x_above, above)
        out = self.model(torch.cat([_seen(x, sigma), above.log() / 4, second], 1))
        logit, first, last = out.split([1, 2, 2], 1)
        return logit.flatten(), _clean(x, sigma, first), x + (above**2 - sigma**2).sqrt() * last


def _random(*key: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(int(digest(key), 16))


def _descend(loss: Tensor, adam: torch.optim.Optimizer) -> None:
    """Step the weights of one network, and leave no gradient on the other's."""
    loss.backward(inputs=[each for group in adam.param_groups for each in group["params"]])
    adam.step()
    adam.zero_grad()


def train(form: str, steps: int, seed: int, iterations: int = ITERATIONS) -> Generator:
    """A generator for that many steps, averaged over the training; equal bits for equal arguments on one machine.

    Raises ValueError for a form that is not in FORMS.
    """
    if form not in FORMS:
        raise ValueError(f"the form {form!r} is not known; there are {', '.join(FORMS)}")
    objective = "siddm" if form == UNTIED else form
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(digest([seed, "weights"]), 16))
        net, critic = Generator(form, steps), Critic()
    average = copy.deepcopy(net).requires_grad_(False)
    own, others = (
        torch.optim.Adam(each.parameters(), lr=lr, betas=BETAS, fused=True)
        for each, lr in zip((net, critic), RATES, strict=True)
    )
    for iteration in range(iterations):
        random = _random(seed, "points", iteration)
        points = grid(BATCH, random)
        k = torch.randint(1, steps + 1, (BATCH,), generator=random)
        noise = {name: torch.randn(BATCH, 2, generator=random) for name in ("lower", "upper", "drawn", "fresh")}
        noise["z"] = torch.rand(BATCH, LATENT, generator=random)
        it = pair(net, net.levels, points, k, noise, form == "siddm ufo")
        found = critic_losses(objective, critic, it, iteration)
        if found:
            _descend(torch.stack([*found.values()]).sum(), others)
        losses = generator_losses(objective, critic, it, noise["fresh"])
        _descend(losses["adversarial"] + (0 if form == UNTIED else losses["forward"]), own)
        torch._foreach_lerp_([*average.parameters()], [each.detach() for each in net.parameters()], 1 - EMA)
    return average.eval()


@torch.no_grad()
def chain(net: Generator, n: int, seed: int) -> Iterator[Tensor]:
    """Yield n points, (n, 2), at the highest level, and after each step down to 0: real ones in place of none.

    The highest level is normal, with the data's variance besides the noise's. UFO's drawn points are noised forward to
    the lower level, as they were in its training, those of other forms by the posterior.
    """
    random = _random(seed, "samples")
    unit = functools.partial(torch.randn, n, 2, generator=random)
    falling = net.levels.flip(0).float()
    x = (falling[0] ** 2 + SD**2).sqrt() * unit()
    yield x
    for above, below in itertools.pairwise(falling):
        drawn = net(x, above.expand(n, 1), torch.rand(n, LATENT, generator=random))
        x = drawn + below * unit() if net.form == "siddm ufo" else ladder.posterior(x, drawn, above, below, unit())
        yield x


def sample(net: Generator, n: int, seed: int) -> Tensor:
    """Points drawn in all steps of a generator, (n, 2); equal bits for equal arguments on one machine."""
    *_, x = chain(net, n, seed)
    return x


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of two sets of n points (n, 2), the mean over both coordinates, in [-1, 1]."""
    pairs = torch.stack([a, b]).double().unbind(2)
    return float(torch.stack([torch.corrcoef(each)[0, 1] for each in pairs]).mean())


def true_correlation(steps: int) -> float:
    """That of real x_{k-1} and x_k at the highest step: 0.22 for T = 2, and 0.23 for T = 4."""
    below, above = map(float, levels(steps)[-2:])
    return math.sqrt((below**2 + SD**2) / (above**2 + SD**2))


def statistics(points: Tensor, data: Tensor) -> dict[str, float]:
    """What points (n, 2) are beside real ones, (m, 2).

    `modes`, 0 to 25, are those that hold more than a quarter of 1/25 of the points; `share`, in [0, 1], is that of the
    points near any; both have a point near a mode up to 4/3, four standard deviations, from its centre. `FD` is the
    Frechet distance of the points themselves; `MMD2` is unbiased, of up to 2,000 points in the data's standard units.
    """
    distance, nearest = torch.cdist(points, CENTRES).min(1)
    shares = nearest[distance <= NEAR].bincount(minlength=MODES) / len(points)
    mean, deviation = data.mean(0), data.std(0)
    few, real = (((each[:FEW] - mean) / deviation).double() for each in (points, data))
    return {
        "modes": float((shares > HELD / MODES).sum()),
        "share": float(shares.sum()),
        "FD": frechet_distance(points, data),
        "MMD2": float(mmd2(few, real, rbf)),
    }


def measured(net: Generator, seed: int) -> dict[str, float]:
    """The statistics of 10,000 points of a generator, and `correlation`: that of x'_{k-1} and x_k at the highest step.

    The latter is `true_correlation` where the two belong together as those of real points do; UFO's, noised anew, would
    come to 0.216 and 0.207 for T = 2 and 4.
    """
    x = [*chain(net, DRAWN, seed)]
    return statistics(x[-1], grid(REAL, _random(seed, "real"))) | {"correlation": correlation(x[1], x[0])}


def measure(form: str, steps: int, seed: int) -> tuple[dict[str, float], Tensor]:
    """Train a generator and measure it: what `measured` says, and the `seconds` of one core that the training took.

    And the points, (10,000, 2).
    """
    began = time.process_time()  # which other programs on the machine change less than they do the time that passes
    net = train(form, steps, seed)
    seconds = time.process_time() - began
    return measured(net, seed) | {"seconds": seconds}, sample(net, DRAWN, seed)
