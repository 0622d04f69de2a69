"""Few large steps by a generator and a critic: SIDDM, in three forms, and a plain denoising diffusion GAN.

In the noise level sigma at scale 1: x_k = x_{k-1} + sqrt(sigma_k^2 - sigma_{k-1}^2) n. The generator G(x_k, sigma_k, z)
draws a clean image, from which the posterior makes x'_{k-1}.

- `siddm`, after its paper (Xu et al. 2023, arXiv 2306.12511): the critic compares x'_{k-1} with x_{k-1} alone, and an
  auxiliary forward term ties x'_{k-1} to x_k, -ln q(x_k | x'_{k-1}) less the entropy of x_k given x'_{k-1}, which a
  regression of x_k bounds. The critic also denoises real images.
- `siddm toy`, as the released toy has it: the critic compares clean images with drawn ones, and the forward term is the
  squared difference of x_k and x'_{k-1} noised anew, in VP's scale, without weight and without entropy.
- `siddm ufo`, as the released UFO-DiT has it: drawn images are noised forward, not by the posterior, and the forward
  term is the squared error of the noise. Its critic steps with every second batch, and logits on the right side of
  +-1/2 count as there.
- `ddgan` (Xiao et al. 2022, arXiv 2112.07804): the critic sees x_k beside x_{k-1}, and there is no forward term. R1
  keeps the critic smooth: the squared norm of its gradient at real images, in VP's scale, with every 15th batch.

Forward terms are means over pixels, as in the released codes. These draw a pair for the critic and another for the
generator; here the generator steps on the pair that the critic has just seen, which saves a pass.
"""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import softplus

from fdm.model import checkpoints
from fdm.model.denoiser import Denoiser
from fdm.model.generator import LATENT, Critic, Generator
from fdm.params import RunParams, TrainingParams
from fdm.process import ladder
from fdm.tasks.generation import noise_range
from fdm.training.engine import Batch, Engine, Losses

RELATIVE = 1.25 / 1.6  # the critic's learning rate over the generator's, as DDGAN's published ones
CLIP = 1.0  # the largest norm of a gradient, as in the released UFO-DiT
BETAS = ((0.9, 0.999), (0.0, 0.999))  # Adam's, of the generator and the critic, as there
BETAS_DDGAN = ((0.5, 0.9), (0.5, 0.9))  # as published
EVERY, ENOUGH = 2, 0.5  # UFO's critic steps in one batch of these, and a logit beyond that is right enough
R1_EVERY, R1 = 15, 0.02  # DDGAN's critic is penalised in one batch of these, with half that weight

Judge = Callable[..., tuple[Tensor, Tensor, Tensor]]  # a critic that knows the classes: logit, clean image, x above


def evaluations(objective: str) -> int:
    """Network evaluations that a training image costs, about, where backward a pass costs two.

    The generator forward and backward, the critic likewise for it, and for itself on twice as many images, UFO's with
    every second batch. DDGAN's penalty comes so seldom that it is left out.
    """
    return 3 + 3 + 6 // (EVERY if objective == "siddm ufo" else 1)


class Pair(NamedTuple):
    """Images at two neighbouring levels, real and drawn, (N, ...); levels are (N, 1, ...)."""

    clean: Tensor
    real: Tensor  # x_{k-1}
    above: Tensor  # x_k
    below_sigma: Tensor
    above_sigma: Tensor
    drawn: Tensor  # G's clean image, and
    made: Tensor  # x'_{k-1} from it

    @property
    def variance(self) -> Tensor:
        """Of the noise from the lower level to the upper."""
        return self.above_sigma**2 - self.below_sigma**2


def pair(
    generate: Callable[[Tensor, Tensor, Tensor], Tensor], levels: Tensor, clean: Tensor, k: Tensor,
    noise: dict[str, Tensor], forward: bool,
) -> Pair:  # fmt: skip
    """Real and drawn images at the levels k - 1 and k, (N,), of `levels` (T + 1,), from clean images (N, ...).

    `generate(x_k, sigma_k, z)`. `noise` are unit: `lower`, `upper`, `drawn` and `z`. `forward`: drawn images are noised
    to the lower level, in place of the posterior.
    """
    below, above = (levels[each].float().reshape(-1, *[1] * (clean.dim() - 1)) for each in (k - 1, k))
    real = clean + below * noise["lower"]
    x = real + (above**2 - below**2).sqrt() * noise["upper"]
    drawn = generate(x, above, noise["z"])
    given = ladder.posterior(x, drawn, above, below, noise["drawn"])
    made = drawn + below * noise["drawn"] if forward else given
    return Pair(clean, real, x, below, above, drawn, made)


def seen(objective: str, it: Pair) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor | None]:
    """What the critic compares: real and drawn images, their level, and the image above that it sees beside them."""
    if objective == "siddm toy":
        return (it.clean, it.drawn), torch.zeros_like(it.below_sigma), None
    return (it.real, it.made), it.below_sigma, it.above if objective == "ddgan" else None


def cut(objective: str, logit: Tensor) -> Tensor:
    """A logit that is wished to be large, (N,): in UFO's form it counts up to 1/2."""
    return logit.clamp(max=ENOUGH) if objective == "siddm ufo" else logit


def critic_losses(objective: str, judge: Judge, it: Pair, step: int) -> Losses:
    """What the critic minimises in the batch `step`, nothing where it is not its turn.

    `critic`; in the paper's form the regression of x_k and the denoising; in DDGAN's R1's `penalty`, now and then.
    """
    if objective == "siddm ufo" and step % EVERY:
        return {}
    (real, drawn), level, beside = seen(objective, it)
    penalised = objective == "ddgan" and step % R1_EVERY == 0
    real = real.detach().requires_grad_(penalised)
    twice = functools.partial(torch.cat, dim=0)
    # Other kernels of attention have no second derivative.
    with sdpa_kernel(SDPBackend.MATH) if penalised else contextlib.nullcontext():
        logit, clean, above = judge(
            twice([real, drawn.detach()]), twice([level] * 2), twice([it.above_sigma] * 2),
            None if beside is None else twice([beside] * 2),
        )  # fmt: skip
    of_real, of_drawn = logit.chunk(2)
    out = {"critic": (softplus(-cut(objective, of_real)) + softplus(-cut(objective, -of_drawn))).mean()}
    if penalised:
        (slope,) = torch.autograd.grad(of_real.sum(), real, create_graph=True)
        slope = slope * (1 + level**2).sqrt()  # by the image in VP's scale
        out["penalty"] = R1 / 2 * slope.square().flatten(1).sum(1).mean()
    # Otherwise with weight 0, as every weight has to have a gradient where processes share theirs.
    used = 1.0 if objective == "siddm" else 0.0
    regression = (it.above - above.chunk(2)[1]).square() / (2 * it.variance)
    return out | {
        "regression": used * regression.mean(), "denoising": used * (clean.chunk(2)[0] - it.clean).square().mean()
    }  # fmt: skip


def generator_losses(objective: str, judge: Judge, it: Pair, fresh: Tensor) -> Losses:
    """What the generator minimises: `adversarial`, and `forward`, which ties x'_{k-1} to x_k.

    `fresh` is unit noise of the shape of the images, for the toy's form.
    """
    (_, drawn), level, beside = seen(objective, it)
    logit, _, above = judge(drawn, level, it.above_sigma, beside)
    if objective == "siddm":
        forward = ((it.above - it.made).square() - (it.above - above).square()) / (2 * it.variance)
    elif objective == "siddm toy":
        again = it.made + it.variance.sqrt() * fresh
        forward = (again - it.above).square() / (1 + it.above_sigma**2)
    elif objective == "siddm ufo":
        forward = ((it.drawn - it.clean) / it.above_sigma).square()
    else:
        forward = torch.zeros_like(it.made)
    return {"adversarial": softplus(-cut(objective, logit)).mean(), "forward": forward.mean()}


def _begun(built: Denoiser, first: Denoiser) -> Generator:
    assert isinstance(built, Generator)
    built.start(first)
    return built


class Adversarial:
    """The objective of a run that becomes a generator: two networks, two optimisers."""

    def __init__(
        self, description: dict[str, Any], run: RunParams, par: TrainingParams, device: torch.device, start: Path | None
    ) -> None:
        assert run.few_steps is not None and start is not None
        self.form = run.few_steps.objective
        first, _ = checkpoints.load(start)
        built = [checkpoints.build(description).to(device).to(memory_format=torch.channels_last) for _ in range(2)]
        self.denoiser, self.ema = (_begun(each, first) for each in built)
        self.denoiser.train()
        self.ema.eval().requires_grad_(False)
        self.critic = Critic(description["network"], first).to(device).to(memory_format=torch.channels_last).train()
        of_generator, of_critic = BETAS_DDGAN if self.form == "ddgan" else BETAS
        self.adams: dict[str, torch.optim.Optimizer] = {
            "denoiser": torch.optim.Adam(self.denoiser.parameters(), lr=par.lr, betas=of_generator, fused=True),
            "critic": torch.optim.Adam(
                [{"params": [*self.critic.parameters()], "relative": RELATIVE}], lr=par.lr, betas=of_critic, fused=True
            ),
        }
        self.levels = ladder.levels(run.few_steps.steps, noise_range(self.denoiser)[1]).to(device)

    def modules(self) -> dict[str, nn.Module]:
        """Networks that learn, by name."""
        return {"denoiser": self.denoiser, "critic": self.critic}

    def averages(self) -> dict[str, nn.Module]:
        """The generator's average over the training; the critic has none."""
        return {"denoiser": self.ema}

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """What steps them, by the same names."""
        return self.adams

    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """The random numbers of a batch of n images, (n, ...) each."""
        device = generator.device
        k = torch.randint(1, len(self.levels), (n,), generator=generator, device=device)
        names = ("lower", "upper", "drawn", "fresh")
        noise = {name: torch.randn(n, *shape, generator=generator, device=device) for name in names}
        return noise | {"k": k, "z": torch.randn(n, LATENT, generator=generator, device=device)}

    def step(self, engine: Engine, batch: Batch) -> Losses:
        """Take one step of both optimisers; returns the mean losses, of which the first, `loss`, is the generator's."""
        labels, random = batch.class_labels, batch.random
        with engine.part() as models:
            it = pair(
                lambda x, sigma, z: models["denoiser"](x, sigma, labels, z), self.levels, batch.images, random["k"],
                random, self.form == "siddm ufo",
            )  # fmt: skip
            twice = None if labels is None else labels.repeat(2, 1)
            found = critic_losses(self.form, functools.partial(models["critic"], class_labels=twice), it, batch.step)
            if found:
                engine.descend("critic", torch.stack([*found.values()]).sum(), CLIP)
            # By the critic itself: a gradient of its weights is neither wanted nor to be shared.
            self.critic.requires_grad_(False)
            judge = functools.partial(self.critic, class_labels=labels)
            own = generator_losses(self.form, judge, it, random["fresh"])
            engine.descend("denoiser", own["adversarial"] + own["forward"], CLIP)
            self.critic.requires_grad_(True)
        losses = {"loss": own["adversarial"] + own["forward"]} | own | found
        return {name: loss.detach() for name, loss in losses.items()}
