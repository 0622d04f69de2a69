"""A distribution that is known, fitted to images: data without end, and a denoiser that is exact on them."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fdm.model.oracle import Mixture

# `class_gaussians` of the 1,797 digits: fitted once, as other machines' last bits would be another data set.
FILE = Path(__file__).with_name("digit_gaussians.safetensors")
SIDE = 8


def known(resolution: int) -> Mixture:
    """The known distribution of the study: Gaussians of low rank fitted to the digits, 8x8 or enlarged by whole pixels.

    Enlarged, each component keeps its mean and its axes, every pixel repeated; what is spread evenly over all pixels is
    spread over all of those. `resolution` is a multiple of 8.
    """
    parts, times = load_file(FILE), resolution // SIDE
    axes = parts["axes"].reshape(*parts["axes"].shape[:2], SIDE, SIDE)
    means, axes = (each.repeat_interleave(times, -1).repeat_interleave(times, -2) for each in (parts["means"], axes))
    return Mixture(
        parts["weights"], means, parts["deviations"], parts["labels"], axes.flatten(2) / times, parts["spreads"] * times
    )  # fmt: skip


def class_gaussians(images: Tensor, labels: Tensor, components: int = 3, rank: int = 12) -> Mixture:
    """A mixture of Gaussians of low rank fitted to images, float (N, C, H, W), and classes (N,): a known distribution.

    Each class has `components`, found by k-means from a fixed seed. A component keeps the variance along its first
    `rank` principal axes; what is left is spread evenly over all pixels.
    """
    from sklearn.cluster import KMeans  # which takes a second to import

    flat, parts = images.double().flatten(1), list[tuple[float, Tensor, float, Tensor, Tensor, int]]()
    for label in range(int(labels.max()) + 1):
        mine = flat[labels == label]
        group = torch.as_tensor(KMeans(components, random_state=0, n_init=4).fit_predict(mine.numpy()))
        for number in range(components):
            part = mine[group == number]
            centred = part - part.mean(0)
            _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
            variance = singular**2 / max(len(part) - 1, 1)
            kept = min(rank, len(part) - 1)
            rest = variance[kept:].sum() / flat.shape[1]
            spreads, along = (
                torch.zeros(rank, dtype=torch.float64),
                torch.zeros(rank, flat.shape[1], dtype=torch.float64),
            )
            spreads[:kept] = (variance[:kept] - rest).clamp(min=0).sqrt()
            along[:kept] = axes[:kept]
            parts.append((len(part) / len(flat), part.mean(0), float(rest.sqrt()), along, spreads, label))
    weights, means, deviations, axes_of, spreads_of, classes = zip(*parts, strict=True)
    return Mixture(
        torch.tensor(weights), torch.stack(means).reshape(-1, *images.shape[1:]), torch.tensor(deviations),
        torch.tensor(classes), torch.stack(axes_of), torch.stack(spreads_of),
    )  # fmt: skip
