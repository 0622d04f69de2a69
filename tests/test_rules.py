"""The rules of the evidence: what each verdict needs, at its boundaries, and how often chance would give it."""

import math

import numpy as np
import pytest

from fdm.study import rules
from fdm.study.rules import EFFECT, QUALITY, Estimate


def known(value, error=1e-6):
    """An estimate that is known to a millionth."""
    return Estimate(value, error, 12, 5)


NOTHING, MORE, LESS = known(0.0), known(0.5), known(-0.5)
E = 1e-4


@pytest.mark.parametrize(("reduced", "base", "full", "verdict"), [
    (0.0, 0.5, 0.0, "holds"), (QUALITY - E, 0.5, 0.0, "holds"), (QUALITY + E, 0.5, 0.0, "does not hold"),
    (QUALITY + E, 0.5, -E, "partly"), (QUALITY + E, 0.5, E, "does not hold"),
    (0.0, QUALITY - E, 0.0, "nothing to save"), (0.0, QUALITY + E, 0.0, "holds"),
    (0.5, -QUALITY + E, 0.0, "nothing to save"), (0.5, -QUALITY - E, 0.0, "does not hold"),
    (-0.5, -0.5, 0.0, "inconclusive"),  # the baseline is better at less cost: there is no such saving
])  # fmt: skip
def test_a_saving_is_judged_at_its_boundaries(reduced, base, full, verdict):
    assert rules.judge_saving(known(reduced), known(base), known(full)) == verdict
    assert rules.judge_saving(known(reduced), known(base), known(full), learnt=False) == "not learnt"


@pytest.mark.parametrize(("effect", "verdict"), [
    (-EFFECT - E, "holds"), (-EFFECT + E, "equivalent"), (0.0, "equivalent"), (EFFECT - E, "equivalent"),
    (EFFECT + E, "harmful"),
])  # fmt: skip
def test_an_effect_is_judged_at_its_boundaries(effect, verdict):
    assert rules.judge_effect(known(effect)) == verdict
    assert rules.judge_effect(known(effect), learnt=False) == "not learnt"


def test_what_is_not_known_well_enough_is_inconclusive():
    vague = Estimate(0.0, 0.2, 12, 5)
    assert rules.judge_effect(vague) == rules.judge_saving(vague, MORE, NOTHING) == "inconclusive"
    assert rules.judge_saving(NOTHING, Estimate(0.1, 0.2, 12, 5), NOTHING) == "inconclusive"


def test_more_data_never_turn_a_gain_into_a_failure():
    """As a rule that asks for imprecision does: with less error the verdict on one true effect only becomes firm."""
    for value in (-0.2, -0.08, 0.0, 0.03, 0.2):
        verdicts = [rules.judge_effect(Estimate(value, error, 12, 5)) for error in (0.3, 0.1, 0.03, 0.01, 0.003)]
        firm = [verdict for verdict in verdicts if verdict != "inconclusive"]
        assert len(set(firm)) == 1 and verdicts[-1] == firm[0]
        assert verdicts == ["inconclusive"] * (len(verdicts) - len(firm)) + firm


def test_the_interval_of_a_contrast_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    means, weights = np.array([0.0, 0.3, -0.1, 0.2]), np.array([-0.5, 0.5, -0.5, 0.5])
    inside = 0
    for _ in range(4000):
        seeds = rng.normal(0, 0.5, 5)  # what seeds have in common is no part of the error
        logs = means[:, None] + seeds + rng.normal(0, 0.1, (4, 5))
        low, high = rules.contrast(logs, weights).interval()
        inside += low < weights @ means < high
    assert inside / 4000 == pytest.approx(0.95, abs=0.012)


def test_equal_models_are_called_different_once_in_twenty_and_equal_ones_are_found_equal():
    rng = np.random.default_rng(1)
    weights, different, same = np.array([-1.0, 1.0, 0.0, 0.0]), 0, 0
    for _ in range(2000):
        estimate = rules.contrast(rng.normal(0, 0.03, (4, 10)), weights)
        different += estimate.p < 0.05
        same += rules.judge_effect(estimate) == "equivalent"
    assert different / 2000 == pytest.approx(0.05, abs=0.015)
    assert same / 2000 > 0.9


def test_a_difference_as_large_as_the_tolerance_is_called_equivalent_once_in_twenty_at_most():
    rng = np.random.default_rng(2)
    called = 0
    for _ in range(4000):
        logs = np.array([0.0, EFFECT])[:, None] + rng.normal(0, 0.02, (2, 8))
        called += rules.equivalent(rules.contrast(logs, np.array([-1.0, 1.0])), EFFECT)
    assert called / 4000 == pytest.approx(0.05, abs=0.012)


def test_the_number_of_seeds_that_would_decide_is_one_that_does():
    estimate = Estimate(0.02, 0.03, 12, 5)
    seeds = rules.seeds_that_decide(estimate, EFFECT)
    assert seeds is not None and seeds > 5
    deviation = 0.03 * math.sqrt(5)
    for n, decided in ((seeds, True), (seeds - 1, False)):
        low, high = Estimate(0.02, deviation / math.sqrt(n), 3 * (n - 1), n).interval()
        assert (high < EFFECT and low > -EFFECT) == decided
    assert rules.seeds_that_decide(known(0.0), EFFECT) == 5
    assert rules.seeds_that_decide(Estimate(EFFECT, 0.03, 12, 5), EFFECT) is None


@pytest.mark.parametrize(("shape", "weights", "words"), [
    ((1, 5), [0.0], "two cells"), ((3, 1), [1, -1, 0], "two seeds"), ((2, 3), [1.0, 0.0], "add up to 0, and"),
])  # fmt: skip
def test_a_contrast_that_is_none_is_refused(shape, weights, words):
    with pytest.raises(ValueError, match=words):
        rules.contrast(np.zeros(shape), np.array(weights))


@pytest.mark.parametrize("spread", [(1, 1, 1, 1), (1, 4, 1, 4)])
def test_an_interval_by_seed_covers_whatever_cells_have_in_common(spread):
    """Two cells of one training share most of their noise, and one kernel may scatter more than another."""
    rng, weights = np.random.default_rng(3), np.array([0.0, -1.0, 1.0, 0.0])
    inside = 0
    for _ in range(4000):
        trainings = np.repeat(rng.normal(0, 0.1, (2, 5)), 2, axis=0)  # a baseline's and FDM's, each seen twice
        logs = np.array(spread)[:, None] * (trainings + rng.normal(0, 0.02, (4, 5))) + rng.normal(0, 0.5, 5)
        low, high = rules.paired(logs, weights).interval()
        inside += low < 0 < high
    assert inside / 4000 == pytest.approx(0.95, abs=0.012)


def test_the_pooled_interval_of_cells_that_share_noise_covers_less_than_it_says():
    """Which is why each primary contrast has the other one beside it."""
    rng, weights, inside = np.random.default_rng(4), np.array([-0.5, 0.5, -0.5, 0.5]), 0
    for _ in range(2000):
        kernels = np.tile(rng.normal(0, 0.1, (2, 5)), (2, 1))  # noise that a kernel's two cells share
        low, high = rules.contrast(kernels + rng.normal(0, 0.02, (4, 5)), weights).interval()
        inside += low < 0 < high
    assert inside / 2000 < 0.93
