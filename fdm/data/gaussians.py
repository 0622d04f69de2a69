"""A distribution that is known, fitted to images: data without end, and a denoiser that is exact on them."""

import torch
from torch import Tensor

from fdm.model.oracle import Mixture


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
