"""Training of heads that say the second and third moments, on a network that stays as it is (GMS, arXiv 2311.00941)."""

import math
from collections.abc import Callable

import torch
from torch.nn.functional import one_hot

from fdm.data.datasets import Dataset, to_float
from fdm.files import digest
from fdm.model.denoiser import Denoiser
from fdm.model.moments import Headed, Heads, Targets, heads_for
from fdm.params import HeadParams

EMA = 0.995  # decay a step of the weights' average


def train(
    denoiser: Denoiser,
    dataset: Dataset,
    par: HeadParams,
    targets: Targets,
    levels: tuple[float, float],
    seed: int,
    advance: Callable[[int], None] | None = None,
) -> Heads:
    """Heads for a denoiser, averaged over the training; equal bits for equal arguments on one machine.

    Noise levels are log-uniform between the lowest and the highest of `levels`, those that a sampler asks for: by EDM's
    own law not one of 100,000 would be as high as where sampling begins. `advance` is told of images as they are
    trained on.
    """
    device = next(denoiser.parameters()).device
    heads, average = heads_for(denoiser).to(device), heads_for(denoiser).to(device)
    headed = Headed(denoiser, heads, targets)
    average.requires_grad_(False).load_state_dict(heads.state_dict())
    adam = torch.optim.Adam(heads.parameters(), lr=par.lr, fused=True)
    low, high = map(math.log, levels)
    total = math.ceil(par.kimg * 1000 / par.batch)
    for step in range(total):
        generator = torch.Generator(device).manual_seed(int(digest([seed, "heads", step]), 16))
        if dataset.mixture is not None:
            images, labels = dataset.fresh(par.batch, int(digest([seed, "heads", step, "images"]), 16))
        else:
            part = torch.randint(len(dataset.images), (par.batch,), generator=generator, device=device).cpu()
            images, labels = to_float(dataset.images[part]), dataset.labels[part]
        images = images.to(device)
        told = one_hot(labels, denoiser.classes).float().to(device) if denoiser.classes else None
        u = torch.rand(par.batch, 1, 1, 1, generator=generator, device=device)
        sigma = (low + (high - low) * u).exp()
        x = images + sigma * torch.randn(images.shape, generator=generator, device=device)
        D, second, third = headed.outputs(x, sigma.flatten(), told)
        squares, cubes = headed.goals(x, sigma, D, images)
        adam.param_groups[0]["lr"] = par.lr * (1 - step / total)
        loss = (second - squares).square().mean() + (third - cubes).square().mean()
        loss.backward()
        adam.step()
        adam.zero_grad()
        torch._foreach_lerp_([*average.parameters()], [each.detach() for each in heads.parameters()], 1 - EMA)
        if advance:
            advance(par.batch)
    return average.eval()
