"""The evidence: what is weighed and how, curves that are shifted by a known factor, and made-up studies whose effects
imply their verdicts."""

import math

import numpy as np
import pandas as pd
import pytest

from fdm.params import SNAPSHOTS
from fdm.study import errors, evidence, findings, intervals, measurements, profiles, published, rules
from fdm.study.rules import Estimate

from .conftest import WEEKLY, change

SIGMAS = errors.SIGMAS.tolist()
FD = "FD(EfficientNet-Lite0)"
ENDS = ("baseline", "fdm-warmup", "fdm", "baseline-warmup")  # of the names of a framework's four cells


# --------------------------------------------------------------------------------------------- the weighted error


def levels(values, cell="edm-baseline", duration=1.0, seed=0, quantity="error", images="held out"):
    """Rows of an error at every level, or at fewer."""
    about = {"cell": cell, "duration": duration, "seed": seed, "quantity": quantity, "images": images}
    return [about | {"sigma": sigma, "value": value} for sigma, value in values]


def test_errors_are_weighted_as_edm_draws_and_weighs_noise_levels():
    values = [0.1 + 0.01 * n for n in range(len(SIGMAS))]
    rows = pd.DataFrame(
        levels(zip(SIGMAS, values, strict=True)) + levels([(s, 9.0) for s in SIGMAS], images="training")
    )
    above = below = high = 0.0
    for sigma, value in zip(SIGMAS, values, strict=True):
        density = math.exp(-((math.log(sigma) + 1.2) ** 2) / (2 * 1.2**2))  # of ln sigma
        part = density * (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * value
        above, high = above + part, high + part * (sigma >= 5)
        below += density
    found = evidence.weighted(rows, "error")
    assert found.index.tolist() == [("edm-baseline", 1.0, 0)]
    assert found.iloc[0] == pytest.approx(above / below, rel=1e-9)
    assert evidence.weighted(rows, "error", 5.0).iloc[0] == pytest.approx(high / below, rel=1e-9)


def test_an_error_of_one_in_what_edms_network_predicts_weighs_one_whatever_the_level():
    """As its weight is 1 / c_out^2."""
    rows = levels([(sigma, (0.5 * sigma) ** 2 / (sigma**2 + 0.25)) for sigma in SIGMAS])
    assert evidence.weighted(pd.DataFrame(rows), "error").iloc[0] == pytest.approx(1, rel=1e-9)


def test_a_run_of_which_a_level_is_missing_has_no_weighted_error():
    whole = levels([(sigma, 1.0) for sigma in SIGMAS])
    part = levels([(sigma, 1.0) for sigma in SIGMAS[1:]], seed=1)
    found = evidence.weighted(pd.DataFrame(whole + part), "error")
    assert found.loc["edm-baseline", 1.0].isna().tolist() == [False, True]


# ---------------------------------------------------------------------------------------------------- the shift

COST = np.array([4.0, 8, 16, 32, 64, 96, 128])


@pytest.mark.parametrize("slope", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("factor", [0.25, 0.4, 0.5, 0.77, 1.0, 1.3, 1.9, 1.999])
def test_of_power_laws_the_shift_is_the_logarithm_of_their_factor(factor, slope):
    base, other = 1 - slope * np.log(COST), 1 - slope * np.log(COST / factor)
    assert evidence.shift(COST, base, other) == pytest.approx(math.log(factor), abs=1e-9)


def test_a_shift_is_refused_beyond_one_doubling_and_where_a_curve_rises():
    base = -0.5 * np.log(COST)
    assert math.isnan(evidence.shift(COST, base, -0.5 * np.log(COST / 2.01)))
    assert math.isnan(evidence.shift(COST, base, base + 9 + 0.1 * np.log(COST)))
    assert math.isnan(evidence.shift(COST, base, np.full(len(COST), 1.0)))


def test_of_a_curve_that_is_there_from_the_first_only_a_bound_is_known():
    base = -0.5 * np.log(COST)
    assert math.isnan(evidence.shift(COST, base, base - 9))


def test_a_curve_is_extrapolated_along_its_last_doubling_alone():
    """What it did before does not count."""
    base, other = -0.5 * np.log(COST), -0.5 * np.log(COST / 1.5)
    other[:4] += [3.0, 2.0, 1.0, 0.5]
    assert evidence.shift(COST, base, other) == pytest.approx(math.log(1.5), abs=1e-9)


def curves(factors: dict[int, float]) -> pd.Series:
    """Power laws of a baseline and of another cell that is as good at that many times the cost, by seed."""
    rows = []
    for seed, factor in factors.items():
        level = 1 + 0.1 * seed
        for share in SNAPSHOTS:
            rows.append({"cell": "base", "duration": share, "seed": seed, "value": level * share**-0.5})
            rows.append({"cell": "fdm", "duration": share, "seed": seed, "value": level * (share / factor) ** -0.5})
    return pd.DataFrame(rows).set_index(["cell", "duration", "seed"])["value"]


def test_shifts_of_several_seeds_have_a_mean_with_its_error_and_one_that_is_refused_refuses_them():
    factors = {0: 0.4, 1: 0.5, 2: 0.8, 3: 1.2}
    estimate, refused = evidence.shifts(curves(factors), "base", "fdm")
    logs = np.log([*factors.values()])
    assert refused == 0
    assert estimate.value == pytest.approx(logs.mean())
    assert estimate.error == pytest.approx(logs.std(ddof=1) / 2)
    assert (estimate.freedom, estimate.seeds) == (3, 4)
    assert evidence.shifts(curves(factors | {4: 3.0}), "base", "fdm") == (None, 1)


# --------------------------------------------------------------------------------------------------- the rules


def test_the_interval_of_a_mean_of_contrasts_covers_as_often_as_it_says():
    """Of three contrasts whose errors and degrees of freedom differ."""
    rng, truths, weights = np.random.default_rng(3), [0.1, -0.2, 0.4], np.array([-1.0, 1.0, 0.0, 0.0])
    designs = [(2, 3, 0.3), (4, 5, 0.1), (4, 5, 0.02)]  # cells, seeds, deviation
    inside = 0
    for _ in range(4000):
        estimates = []
        for truth, (cells, seeds, deviation) in zip(truths, designs, strict=True):
            means = np.array([0.0, truth, 0.3, -0.3])[:cells, None]
            logs = means + rng.normal(0, 0.5, seeds) + rng.normal(0, deviation, (cells, seeds))
            estimates.append(rules.contrast(logs, weights[:cells]))
        low, high = rules.mean(estimates).interval()
        inside += low < np.mean(truths) < high
    assert inside / 4000 == pytest.approx(0.95, abs=0.02)  # Satterthwaite's degrees of freedom are an approximation


def test_the_mean_of_equal_contrasts_has_the_error_of_all_their_seeds():
    found = rules.mean([Estimate(0.1, 0.3, 8, 5), Estimate(0.2, 0.3, 8, 5), Estimate(0.6, 0.3, 8, 4)])
    assert found.value == pytest.approx(0.3)
    assert found.error == pytest.approx(0.3 / math.sqrt(3))
    assert found.freedom == pytest.approx(24)
    assert found.seeds == 4


# -------------------------------------------------------------------------------------------- the published tables


def test_the_papers_own_table_is_judged_by_the_same_rule():
    table = published.savings()
    assert len(table) == 9
    assert set(zip(table["dataset"], table["framework"], strict=True)) == {
        (dataset, framework) for dataset in ("cifar10", "ffhq", "afhqv2") for framework in ("vp", "ve", "edm")
    }
    assert set(table["verdict"]) <= {"holds", "nothing to save", "does not hold", "partly", "inconclusive"}
    for row in table.to_dict("records"):
        half, control, end = row["FDM at half"], row["baseline at half"], row["FDM at the end"]
        if 1 / 1.1 < control < 1.1:
            assert row["verdict"] == "nothing to save"
        elif half > 1.1:
            assert row["verdict"] == ("partly" if end < 1 else "does not hold")
        else:
            assert row["verdict"] == ("holds" if control > 1.1 else "inconclusive")


def test_fewer_steps_in_the_papers_tables_are_judged_by_the_same_rule():
    table = published.fewer_steps().set_index(["table", "framework"])
    assert len(table) == 6
    edm = table.loc[2, "edm"]
    fids = {key: measurements.published(2).query("framework == 'edm'").set_index(["kernel", "nfe"])["fid"][key]
            for key in (("fdm", 25), ("baseline", 25), ("baseline", 79))}  # fmt: skip
    assert edm["FDM with fewest"] == pytest.approx(fids["fdm", 25] / fids["baseline", 79])
    assert edm["baseline with fewest"] == pytest.approx(fids["baseline", 25] / fids["baseline", 79])
    for row in table.to_dict("records"):
        can = row["baseline with fewest"] < 1.1
        assert row["FDM with fewest"] < 1.1 and row["verdict"] == ("nothing to save" if can else "holds")


# --------------------------------------------------------------------------------------------- made-up studies

NOISE = 0.005  # deviation of ln(metric) from one training to another


def record(profile, logs, accuracy=0.95, cells=None):
    """Put a made-up study on record. `logs(kind, cell, cost)` is the true ln of a metric: of the denoising error, where
    the cost is a share of the training, or of a solver's or the samples' distance, where it is evaluations."""
    rng = np.random.default_rng(0)
    of_seed = rng.normal(0, 0.1, 10)  # what all cells of a seed have in common
    exact = profile.dataset.name == "exact-gaussians"
    profile.results.mkdir(parents=True, exist_ok=True)
    floor = {"metric": [FD, "accuracy"], "value": [10.0, 0.98], "low": [9.0, 0.97], "high": [11.0, 0.99]}
    pd.DataFrame(floor).to_csv(profile.results / "calibration.csv", index=False)
    for cell in cells or profile.cells:
        scores, wrong = [], []
        for seed in profile.seeds_of(cell):
            about = {"cell": cell, "seed": seed, "framework": cell.split("-")[0]}

            def drawn(kind, cost, cell=cell, seed=seed):
                return math.exp(logs(kind, cell, cost) + of_seed[seed] + rng.normal(0, NOISE))

            for share in SNAPSHOTS:
                error = drawn("error", share)
                quantity = "excess" if exact else "error"
                wrong += [about | row for row in levels([(s, error) for s in SIGMAS], cell, share, seed, quantity)]
                if share in (0.5, 1.0):
                    at = about | {"duration": share, "sampler": "heun", "nfe": 25, "sigma_max": 80.0}
                    value = drawn("samples", share)
                    scores += [at | {"metric": metric, "value": value} for metric in (FD, f"{FD}, n to infinity")]
                    scores += [at | {"metric": "accuracy", "value": accuracy}]
            at = about | {"duration": 1.0, "sampler": "heun", "nfe": 9, "sigma_max": 80.0}
            scores += [at | {"metric": metric, "value": drawn("samples", 9)} for metric in (FD, f"{FD}, n to infinity")]
            # From another highest noise level the distance is another, which decides nothing.
            scores += [at | {"metric": f"{FD}, n to infinity", "value": 1e6, "sigma_max": 23.0}]
            for nfe in (9, 25):
                at = about | {"duration": 1.0, "quantity": "flow error", "sampler": "heun", "nfe": nfe}
                wrong += [at | {"value": drawn("flow", nfe)}, at | {"value": 1e6, "sampler": "dpm-solver++"}]
        folder = profile.recorded(cell)
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(scores).to_csv(folder / "measurements.csv", index=False)
        pd.DataFrame(wrong).to_csv(folder / "errors.csv", index=False)


def target_of(study, name):
    """The profile of a target with its twelve cells alone."""
    path = study / "profiles" / name / "params.yaml"
    profile = profiles.find(name)
    wanted = [f"{framework}-{end}" for framework in ("edm", "vp", "ve") for end in ENDS]
    cells = {cell: profile.cells[cell].model_dump(exclude_unset=True) for cell in wanted}
    errors_of = profile.evaluation.errors.model_dump() | {"cells": None, "gradients": []}
    settings = [{"sampler": "heun", "nfe": [25, 9], "duration": [0.5, 1.0]}]
    return change(path, cells=cells, evaluation={"errors": errors_of, "settings": settings})


def judged(profile) -> dict[tuple[str, str], evidence.Judged]:
    found = evidence.judge(evidence.target(profile))
    return {(each.claim, each.framework): each for each in found}


def of_pair(metric, reduced, whole, at):
    """The true logarithms of a study in which VP's pair differs in one metric by `at`, and nothing else does."""
    base_reduced, fdm_reduced, fdm_whole = at

    def logs(kind, cell, cost):
        if kind != metric:
            return 0.0
        return {
            ("vp-baseline", reduced): base_reduced, ("vp-fdm-warmup", reduced): fdm_reduced,
            ("vp-fdm-warmup", whole): fdm_whole,
        }.get((cell, cost), 0.0)  # fmt: skip

    return logs


@pytest.mark.parametrize(("at", "verdict"), [
    ((0.3, 0.0, 0.0), "holds"), ((0.3, 0.04, 0.2), "holds"), ((0.3, 0.3, 0.05), "does not hold"),
    ((0.3, 0.3, -0.2), "partly"), ((0.01, 0.3, 0.3), "nothing to save"), ((0.01, 0.0, -0.3), "nothing to save"),
    ((0.3, rules.QUALITY, 0.0), "inconclusive"),
])  # fmt: skip
@pytest.mark.parametrize(("name", "claim", "metric", "reduced", "whole"), [
    ("exact", "C3", "error", 0.5, 1.0), WEEKLY("exact", "C4", "flow", 9, 25),
    WEEKLY("fashion-16", "C3", "samples", 0.5, 1.0), ("fashion-16", "C4", "samples", 9, 1.0),
])  # fmt: skip
def test_a_saving_has_the_verdict_that_the_effects_imply(study, name, claim, metric, reduced, whole, at, verdict):
    profile = target_of(study, name)
    record(profile, of_pair(metric, reduced, whole, at))
    found = judged(profile)
    assert len(found) == 8
    mine = found[claim, "VP"]
    assert mine.verdict == verdict
    for estimate, truth in zip((mine.baseline, mine.estimate, mine.full), at, strict=True):
        low, high = estimate.interval(0.9999)
        assert low < truth < high
        assert estimate.seeds == len(profile.runs_of("vp-baseline"))
    for framework in ("VE", "EDM"):
        assert found[claim, framework].verdict == "nothing to save"
    if metric != "error":  # by which the effects are judged
        assert {found[each, "all"].verdict for each in ("C5", "kernel")} == {"equivalent"}


@pytest.mark.parametrize(("size", "verdict"), [(-0.1, "holds"), (0.0, "equivalent"), (0.1, "harmful"),
                                               (rules.EFFECT, "inconclusive")])  # fmt: skip
@pytest.mark.parametrize("name", ["exact", WEEKLY("fashion-16")])
@pytest.mark.parametrize(("claim", "share"), [("C5", 0.25), ("kernel", 1.0)])
def test_an_effect_has_the_verdict_that_it_implies(study, name, claim, share, size, verdict):
    """It is the mean over frameworks and over the other change; what it is at other shares does not count."""
    profile = target_of(study, name)
    of_framework = {"vp": 0.0, "ve": 1.5 * size, "edm": 1.5 * size}

    def logs(kind, cell, cost):
        framework, _, end = cell.partition("-")
        if kind != "error":
            return 0.0
        changes = [end.endswith("warmup"), end.startswith("fdm")]
        changed, other = changes if claim == "C5" else reversed(changes)
        return of_framework[framework] * changed + 0.2 * other if cost == share else 1.0 * changed

    record(profile, logs)
    mine = judged(profile)[claim, "all"]
    assert mine.verdict == verdict
    low, high = mine.estimate.interval(0.9999)
    assert low < size < high
    fewest = min(len(profile.runs_of(f"{framework}-baseline")) for framework in of_framework)
    assert mine.alone.seeds == fewest  # those that all frameworks have
    assert mine.alone.value == pytest.approx(size, abs=0.02)


def test_what_has_not_learnt_is_not_judged(study):
    """Its error is three times EDM's, and a classifier does not know half of its samples."""
    profile = target_of(study, "exact")

    def logs(kind, cell, cost):
        own = of_pair("error", 0.5, 1.0, (0.3, 0.0, 0.0))(kind, cell, cost)
        return own + (math.log(3) if kind == "error" and cell.startswith("vp") else 0)

    for accuracy, verdicts in ((0.7, ("not learnt", "not learnt")), (0.9, ("holds", "nothing to save"))):
        record(profile, logs, accuracy)
        found = judged(profile)
        assert (found["C3", "VP"].verdict, found["C4", "VP"].verdict) == verdicts
        assert found["C3", "EDM"].verdict == "nothing to save"  # whose error is its own


def test_what_is_not_on_record_has_no_verdict_and_the_rest_has(study):
    profile = target_of(study, "exact")
    record(profile, lambda kind, cell, cost: 0.0, cells=["edm-baseline", "edm-fdm-warmup", "vp-baseline"])
    assert set(judged(profile)) == {("C3", "EDM"), ("C4", "EDM")}


def test_the_verdicts_stand_in_a_table_with_simultaneous_intervals(study):
    profile = target_of(study, "exact")
    record(profile, of_pair("error", 0.5, 1.0, (0.3, rules.QUALITY, 0.0)))
    found = evidence.judge(evidence.target(profile))
    table = evidence.table(found).set_index(["claim", "framework"])
    assert len(table) == 8
    mine = table.loc["C3", "VP"]
    assert mine["low"] < mine["ratio"] < mine["high"]
    assert mine["ratio"] == pytest.approx(1.1, rel=0.03)
    assert mine["baseline at the reduced cost"] == pytest.approx(math.exp(0.3), rel=0.03)
    estimate = next(each.estimate for each in found if (each.claim, each.framework) == ("C3", "VP"))
    assert math.log(mine["high"]) == pytest.approx(estimate.interval(1 - 0.05 / 8)[1])
    assert mine["p"] == pytest.approx(min(1, 8 * estimate.p))  # the smallest of eight, after Holm
    assert table["p"].tolist() == pytest.approx(intervals.holm(each.estimate.p for each in found))
    undecided = table["verdict"] == "inconclusive"
    assert undecided.loc["C3", "VP"]
    assert table.loc[~undecided, "seeds that would decide"].isna().all()
    assert table.loc["C5", "all"]["ratio"] == pytest.approx(1, abs=0.02)
    assert math.isnan(table.loc["C5", "all"]["FDM at the full cost"])


def test_the_contrasts_hold_together_at_the_level_of_the_study():
    assert 1 - 8 * (1 - evidence.level()) == pytest.approx(0.95)


def test_what_a_clamp_does_to_a_gradients_noise_is_a_ratio_over_seeds_without_those_that_have_no_norm():
    rows = [
        {"cell": "a", "duration": 0.25, "seed": seed, "ceiling": ceiling, "quantity": quantity, "value": value}
        for seed in range(4)
        for ceiling, noise in ((math.nan, 6.0 + seed), (5.0, 3.0 + seed / 2))
        for quantity, value in (("gradient noise", noise), ("gradient norm", 0.0 if seed == 3 else 2.0))
    ]
    errors = pd.DataFrame(rows).assign(sigma=math.nan)
    profile = profiles.load("params.yaml")
    (row,) = findings.gradients(evidence.Target(profile, pd.DataFrame(), errors, "", pd.Series())).to_dict("records")
    assert row["ratio"] == pytest.approx(0.5) and row["seeds"] == 3
    assert (row["cell"], row["duration"], row["ceiling"], row["unclamped"]) == ("a", 0.25, 5.0, 3.5)
    assert findings.gradients(evidence.Target(profile, pd.DataFrame(), errors[:0], "", pd.Series())).empty


def test_the_largest_rate_that_survives_is_told_where_a_larger_one_was_tried():
    told = {"a-lr4": [0.10, 0.12, 0.11], "a-lr8": [0.11, 0.11, 5.0], "a-lr16": [9.0, 8.0, 0.1],
            "b-lr4": [0.2, 0.2, 0.2], "b-lr8": [0.1, 0.1, 0.1], "plain": [0.1, 0.1, 0.1]}  # fmt: skip
    loss = {(cell, 1.0, seed): value for cell, values in told.items() for seed, value in enumerate(values)}
    series = pd.Series(loss).rename_axis(["cell", "share", "seed"]).sort_index()
    table = findings.rates(evidence.Target(profiles.load("params.yaml"), pd.DataFrame(), pd.DataFrame(), "", series))
    assert list(table["model"]) == ["a", "b"]
    assert list(table["largest that survives"]) == ["0.008", "at least 0.008"]
    assert list(table["rate 0.004"]) == [0.11, 0.2]


def test_seeds_that_survive_without_and_with_the_warm_up_are_counted_and_compared():
    told = {"a-lr8": [0.1] * 4, "a-lr64": [0.1, 0.3, 0.9, 0.21], "a-warmup-lr8": [0.12] * 3, "plain": [0.1],
            "a-warmup-lr64": [0.2, 0.2, 0.2, 0.25], "b-lr8": [0.1]}  # fmt: skip
    loss = {(cell, 1.0, seed): value for cell, values in told.items() for seed, value in enumerate(values)}
    series = pd.Series(loss).rename_axis(["cell", "share", "seed"]).sort_index()
    target = evidence.Target(profiles.load("params.yaml"), pd.DataFrame(), pd.DataFrame(), "", series)
    table = findings.survival(target).set_index("rate")
    assert list(table.index) == ["0.008", "0.064"] and set(table["model"]) == {"a"}
    assert table.loc["0.064", ["without", "with warm-up"]].tolist() == ["1 of 4", "3 of 4"]
    assert table.loc["0.064", "p"] == pytest.approx(34 / 70)  # 1 + 16 + 16 + 1 of the 70 ways are as unlikely or more
