"""Density, coverage, the extrapolated Frechet distance, and a classifier's accuracy, against what they must be."""

import math

import numpy as np
import pytest
import torch

from fdm.metrics import distances, shares
from fdm.metrics.classifier import LIMIT, Classifier


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------ density and coverage


def by_hand(generated: np.ndarray, real: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Density and coverage by counting (Naeem et al. 2020)."""
    radii = []
    for i, x in enumerate(real):
        others = sorted(math.dist(x, y) for j, y in enumerate(real) if j != i)
        radii.append(others[k - 1])
    inside = [[math.dist(x, y) < radius for y in generated] for x, radius in zip(real, radii, strict=True)]
    density = sum(map(sum, inside)) / (k * len(generated))
    return density, sum(map(any, inside)) / len(real)


@pytest.mark.parametrize(("n", "m", "shift"), [(40, 30, 0.0), (30, 40, 0.5), (25, 25, 3.0)])
def test_density_and_coverage_are_those_of_a_count(n, m, shift):
    generated, real = normal(n, 3, 0) + shift, normal(m, 3, 1)
    density, low, high, coverage = distances.density_coverage(generated, real)
    assert (density, coverage) == pytest.approx(by_hand(generated.numpy(), real.numpy()), abs=1e-12)
    assert low <= density <= high


def test_equal_distributions_have_a_density_of_one_and_the_interval_covers_it():
    densities, covered, coverages = [], 0, []
    for seed in range(20):
        density, low, high, coverage = distances.density_coverage(normal(400, 8, seed), normal(400, 8, 100 + seed))
        densities.append(density)
        covered += low < 1 < high
        coverages.append(coverage)
    assert np.mean(densities) == pytest.approx(1, abs=0.05)
    assert covered >= 12  # of 20: the interval is of the generated images alone
    # A real image is missed by all n with the chance that its five nearest are real ones: about 1 / 2^5.
    assert np.mean(coverages) == pytest.approx(1 - 1 / 32, abs=0.02)


def test_samples_in_the_middle_cover_little_and_samples_elsewhere_nothing():
    density, _, _, coverage = distances.density_coverage(0.1 * normal(300, 4, 0), normal(300, 4, 1))
    assert density > 0.8
    assert coverage < 0.4
    assert distances.density_coverage(normal(300, 4, 0) + 50, normal(300, 4, 1))[::3] == (0, 0)


def test_of_large_sets_a_random_part_is_taken(monkeypatch):
    monkeypatch.setattr(distances, "LIMIT", 50)
    generated = torch.cat([normal(100, 3, 0), normal(100, 3, 1) + 9])  # in an order
    density = distances.density_coverage(generated, normal(200, 3, 2))[0]
    assert 0.2 < density < 0.8
    rows = {row["metric"]: row for row in distances.score(generated, normal(200, 3, 2), "FD")}
    assert rows["density"]["n"] == rows["coverage"]["n_reference"] == 50
    assert rows["FD"]["n"] == 200


# ------------------------------------------------------------------------------------ the extrapolated distance


def test_at_infinitely_many_images_equal_distributions_have_no_distance_and_with_few_they_do():
    """With the true moments as the reference, what is left of the distance is the noise of n images alone."""
    real = torch.zeros(10, dtype=torch.float64), torch.eye(10, dtype=torch.float64)
    plain, extrapolated = [], []
    for seed in range(30):
        generated = normal(1000, 10, seed)
        plain.append(distances.frechet_distance(generated, real))
        extrapolated.append(distances.extrapolated(generated, real))
    error = np.std(extrapolated, ddof=1) / math.sqrt(30)
    assert abs(np.mean(extrapolated)) < 3 * error + 1e-3
    assert np.mean(plain) > 5 * abs(np.mean(extrapolated))
    # Of the mean: d / n; of the covariance: about d (d + 1) / (4 n).
    assert np.mean(plain) == pytest.approx(10 / 1000 + 110 / 4000, rel=0.1)


def test_an_extrapolated_distance_is_that_of_the_distributions():
    real = torch.zeros(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    truth = 6 * 0.3**2 + 6 * (1.2 - 1) ** 2
    found = [distances.extrapolated(1.2 * normal(1500, 6, seed) + 0.3, real) for seed in range(20)]
    assert np.mean(found) == pytest.approx(truth, abs=3 * np.std(found) / math.sqrt(20))
    assert np.std(found) < 0.1 * truth


def test_a_distance_is_extrapolated_where_there_are_a_thousand_images():
    real = normal(300, 4, 0)
    few, many = ([row["metric"] for row in distances.score(normal(n, 4, 1), real, "FD")] for n in (999, 1000))
    assert many == [*few, "FD, n to infinity"]
    assert few == ["FD", "KID", "precision", "recall", "density", "coverage"]


# --------------------------------------------------------------------------------------------------- accuracy


def test_a_classifier_knows_digits_that_it_has_not_seen_and_no_class_that_is_drawn_by_lot(digits):
    judge = Classifier(digits.images, digits.labels)
    assert judge.learnt == len(digits.images)
    assert judge.share(digits.held, digits.held_labels) > 0.97
    lot = digits.held_labels[torch.randperm(len(digits.held), generator=torch.Generator().manual_seed(0))]
    assert 0.02 < judge.share(digits.held, lot) < 0.2
    noise = torch.randint(256, digits.held.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert judge.share(noise, digits.held_labels) < 0.3


def test_a_classifier_of_labels_by_lot_knows_nothing(digits):
    lot = digits.labels[torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(1))]
    assert Classifier(digits.images, lot).share(digits.held, digits.held_labels) < 0.25


def test_a_classifier_learns_from_five_thousand_images_at_most_and_from_the_same(tmp_path):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2 * LIMIT) * 3 // (2 * LIMIT)  # in an order
    images = (labels[:, None] * 80 + torch.randint(60, (2 * LIMIT, 4), generator=generator)).to(torch.uint8)
    images = images.reshape(-1, 1, 2, 2)
    one, other = Classifier(images, labels), Classifier(images, labels)
    assert one.learnt == LIMIT
    assert one.share(images[:200], labels[:200]) == other.share(images[:200], labels[:200])
    assert one.share(images, labels) > 0.99


def test_the_interval_of_a_share_is_wilsons():
    for share, n in ((0.3, 50), (0.95, 179)):
        low, high = shares.wilson(share, n)
        for end in (low, high):  # where the share lies 1.96 of the end's own deviations away
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-6)
        assert low < share < high
    assert shares.wilson(0.0, 20)[0] == 0 < shares.wilson(0.0, 20)[1]
    assert shares.wilson(1.0, 20)[0] < 1 == shares.wilson(1.0, 20)[1]
