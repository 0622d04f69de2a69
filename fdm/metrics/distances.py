"""Distances between two sets of features: Frechet, KID, precision and recall, each with its n."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from fdm.metrics.shares import NORMAL

LIMIT = 5000  # images of a set for KID, precision and recall, whose cost grows with the square of it
BOOTSTRAP = 1000  # resamples of an interval
PARTS, FEWEST = 5, 1000  # sizes of an extrapolation, and the images that it needs at least
NEIGHBOURS = 5  # of density and coverage
JACKKNIFE = 10  # parts of the generated images for the interval of a Frechet distance
JACKKNIFE_T = float(stdtrit(JACKKNIFE - 1, 0.975))  # Student's t; scipy.stats takes a second to import


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d), with N - 1, of features (N, d), in float64."""
    features = features.double()
    return features.mean(dim=0), features.T.cov()


def frechet_distance(generated: Tensor, real: Tensor | tuple[Tensor, Tensor]) -> float:
    """Frechet distance between Gaussians fitted to two sets of features (N, d) and (M, d), in float64.

    `real` may be the `moments` of its set. With centred features A over sqrt(N - 1), so that the first covariance is
    A^T A, the trace of the root of both covariances' product is that of the root of A C A^T: symmetric, and small where
    there are fewer images than features. That takes a tenth of the time of the product's own eigenvalues.
    """
    mean, C = real if isinstance(real, tuple) else moments(real)
    A = generated.double()
    difference = A.mean(dim=0) - mean
    A = (A - A.mean(dim=0)) / math.sqrt(len(A) - 1)
    if len(A) > A.shape[1]:
        A = torch.linalg.qr(A, mode="r").R  # another factor of the same covariance, (d, d)
    root_of_product = torch.linalg.eigvalsh(A @ C @ A.T).clamp(min=0).sqrt().sum()
    return float(difference @ difference + (A * A).sum() + C.trace() - 2 * root_of_product)


def extrapolated(generated: Tensor, real: Tensor | tuple[Tensor, Tensor]) -> float:
    """Frechet distance at n to infinity, by a straight line in 1/n through random parts (Chong & Forsyth 2020)."""
    order = torch.randperm(len(generated), generator=torch.Generator().manual_seed(0))
    sizes = [len(generated) * part // PARTS for part in range(1, PARTS + 1)]
    distances = [frechet_distance(generated[order[:n]], real) for n in sizes]
    return float(np.polyfit([1 / n for n in sizes], distances, 1)[1])


def interval(
    generated: Tensor, real: Tensor, value: float, distance: Callable[..., float] = frechet_distance
) -> tuple[float, float]:
    """The 95 % interval of a Frechet distance under other latents, by the jackknife: a tenth left out in turn.

    It is the noise of the generated images (N, d) alone, around `value`, whose bias with N it keeps; `real` is fixed.
    """
    tenths, of_real = torch.arange(len(generated)) % JACKKNIFE, moments(real)
    left_out = [distance(generated[tenths != i], of_real) for i in range(JACKKNIFE)]
    deviation = math.sqrt((JACKKNIFE - 1) * np.var(left_out))
    half = JACKKNIFE_T * deviation
    return value - half, value + half


def _part(features: Tensor, n: int) -> Tensor:
    """A random part of n rows, or all: data sets are often in an order, the digits by who wrote them."""
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:n]]


def kid(generated: Tensor, real: Tensor) -> tuple[float, float, float, int]:
    """KID of two sets of features (N, d) and (M, d), the ends of its 95 % interval, and the n it used.

    The value is torch-fidelity's over one subset of all images (5,000 at most); the interval is the bootstrap's,
    over images of both sets. A pair of one image with its own copy is left out, as the estimator is unbiased.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kernel_poly, kid_features_to_metric  # takes seconds

    n = min(len(generated), len(real), LIMIT)
    generated, real = (_part(f, n).double() for f in (generated, real))
    options = {"kid_subsets": 1, "kid_subset_size": n, "rng_seed": 2020, "verbose": False}
    value = kid_features_to_metric(generated, real, **options)[KEY_METRIC_KID_MEAN]

    def within(K: np.ndarray, w: np.ndarray) -> np.ndarray:  # mean over pairs of different images
        pairs = w.sum(1) ** 2 - (w**2).sum(1)
        return (np.einsum("bi,bi->b", w @ K, w) - w**2 @ np.diag(K)) / pairs

    X, Y = generated.numpy(), real.numpy()
    rng = np.random.default_rng(0)
    wx, wy = (rng.multinomial(n, np.full(n, 1 / n), BOOTSTRAP).astype(float) for _ in range(2))
    cross = np.einsum("bi,bi->b", wx @ kernel_poly(X, Y), wy) / n**2
    resampled = within(kernel_poly(X, X), wx) + within(kernel_poly(Y, Y), wy) - 2 * cross
    low, high = np.quantile(resampled, [0.025, 0.975])
    return value, float(low), float(high), n


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019) with 3 neighbours, each in [0, 1].

    Of sets with more than 5,000 images a random part is taken.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    generated, real = (_part(f, LIMIT) if len(f) > LIMIT else f for f in (generated, real))
    result = prc_features_to_metric(generated, real, prc_neighborhood=3, verbose=False)
    return result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL]


def density_coverage(generated: Tensor, real: Tensor) -> tuple[float, float, float, float]:
    """Density with the ends of its 95 % interval, and coverage (Naeem et al. 2020), with 5 neighbours.

    Density is the mean number of real images' neighbourhoods that a generated one is in, over 5: 1 for equal
    distributions. Coverage, in [0, 1], is the share of real images in whose neighbourhood is a generated one. Of sets
    with more than 5,000 images a random part is taken.
    """
    generated, real = (_part(f, LIMIT) if len(f) > LIMIT else f for f in (generated.double(), real.double()))
    radius = torch.cdist(real, real).kthvalue(NEIGHBOURS + 1, dim=1).values  # the nearest is the image itself
    inside = torch.cdist(real, generated) < radius[:, None]
    each = inside.double().sum(0) / NEIGHBOURS
    half = NORMAL * float(each.std()) / math.sqrt(len(each))
    density = float(each.mean())
    return density, density - half, density + half, float(inside.any(1).double().mean())


def score(generated: Tensor, real: Tensor, frechet: str) -> list[dict[str, Any]]:
    """One row a metric of two sets of features: metric, value, low, high (95 %, empty without interval), n.

    The Frechet distance is extrapolated to infinitely many images where there are a thousand.
    """
    density, low_density, high_density, coverage = density_coverage(generated, real)
    value, low, high, n = kid(generated, real)
    precision, recall = precision_recall(generated, real)
    sizes = {"n": len(generated), "n_reference": len(real)}
    limited = {key: min(size, LIMIT) for key, size in sizes.items()}
    return [
        {"metric": frechet, "value": frechet_distance(generated, real), **sizes},
        {"metric": "KID", "value": value, "low": low, "high": high, "n": n, "n_reference": n},
        {"metric": "precision", "value": precision, **limited},
        {"metric": "recall", "value": recall, **limited},
        {"metric": "density", "value": density, "low": low_density, "high": high_density, **limited},
        {"metric": "coverage", "value": coverage, **limited},
        *(
            [{"metric": f"{frechet}, n to infinity", "value": extrapolated(generated, real), **sizes}]
            if len(generated) >= FEWEST
            else []
        ),
    ]
