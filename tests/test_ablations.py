"""The design of the ablations, its statistics and rules, against other methods and made-up measurements."""

import ast
import inspect
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import yaml

from fdm.__main__ import main
from fdm.files import FdmError
from fdm.process import momentum, schedule
from fdm.process.frameworks import FRAMEWORKS, coefficients
from fdm.study import (
    agreement,
    claims,
    effects,
    figures,
    intervals,
    measure,
    measurements,
    profiles,
    report,
    runs,
    show,
    tables,
)
from fdm.study.claims import Pair
from fdm.study.intervals import Interval
from fdm.training import loop, processes

EFFECT = 1.2  # of FDM's kernel in the made-up measurements; the warm-up's is 0.8


def measured(profile, noise=0.02):
    """Made-up rows of every run: a product of effects, of the training and of n, with noise for seed and sample."""
    rng, rows = np.random.default_rng(0), []
    for name, run in profile.runs.items():
        base = {"vp": 40.0, "ve": 60.0, "edm": 20.0}[run.framework]
        base *= EFFECT if run.kernel == "fdm" else 1
        base *= 0.8 if run.warmup_steps else 1
        base *= math.exp(rng.normal(0, noise))
        for setting in measure.settings(profile, name):
            value = base * setting.duration**-1 * (1 + 10 / setting.nfe)
            sets = [(0, setting.samples, 0)]
            if setting.samples != profile.evaluation.samples:
                sets = [
                    (300, 300, 0),
                    (600, 300, 0),
                    (900, 300, 0),
                    (0, 150, 0),
                    (0, 600, 0),
                    (0, 900, 0),
                    (0, 1200, 0),
                ]
                sets += [(0, 300, half) for half in range(1, 5)]
            for latents, n, reference in sets:
                row = dict.fromkeys(measure.CONTEXT, 0) | {
                    "cell": run.cell, "options": "usual", "run": name, "framework": run.framework, "kernel": run.kernel,
                    "seed": run.seed, "duration": setting.duration, "kimg": 20 * setting.duration,
                    "sampler": setting.sampler, "nfe": setting.nfe, "sigma_max": setting.sigma_max, "latents": latents,
                    "reference": reference, "metric": "FD(EfficientNet-Lite0)", "value": value + 300 / n, "n": n,
                    "n_reference": 898, "device": "cpu", "low": value * 0.9, "high": value * 1.1,
                }  # fmt: skip
                rows.append(row)
    table = pd.DataFrame(rows)
    for cell, part in table.groupby("cell"):
        folder = profile.results / "runs" / str(cell)
        folder.mkdir(parents=True)
        part.to_csv(folder / "measurements.csv", index=False)
    floor = pd.DataFrame({"metric": ["FD(EfficientNet-Lite0)"], "value": [10.0], "low": [9.0], "high": [11.0],
                          "n": [300], "n_reference": [898]})  # fmt: skip
    floor.to_csv(profile.results / "calibration.csv", index=False)
    return table


@pytest.fixture
def profile(study):
    return profiles.find("ablations")


# --------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(("n", "wider"), [(5, 1.28), (8, 1.07), (30, 1.0)])
def test_intervals_cover_as_often_as_they_say(n, wider):
    rng, covered, ratio = np.random.default_rng(n), 0, []
    for _ in range(400):
        values = rng.normal(1, 1, n)
        interval = intervals.mean(values)
        covered += interval.low <= 1 <= interval.high
        half = scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)  # another method: Student's
        ratio.append((interval.high - interval.low) / 2 / half)
    assert 0.91 < covered / 400 < 0.985
    assert np.median(ratio) == pytest.approx(wider, rel=0.08)


def test_all_resamples_of_five_seeds_are_as_many_random_ones():
    index, weights = intervals.resamples(5)
    assert len(index) == math.comb(9, 5)
    assert weights.sum() == pytest.approx(1)
    values = np.array([1.0, 2, 4, 8, 16])
    random = values[np.random.default_rng(0).integers(0, 5, (200_000, 5))].mean(axis=1)
    low, high = intervals.quantiles(values[index].mean(axis=1), weights, (0.1, 0.9))
    assert low == pytest.approx(np.quantile(random, 0.1), abs=0.15)
    assert high == pytest.approx(np.quantile(random, 0.9), abs=0.15)


def test_intervals_of_one_value_are_empty_and_of_none_too():
    assert intervals.mean(np.array([2.0]))[0] == 2
    assert math.isnan(intervals.mean(np.array([2.0, 3, 4, 5])).low)
    assert intervals.mean(np.full(5, 3.0)) == (3, 3, 3)
    assert (intervals.p_value(np.full(5, 3.0)), intervals.p_value(np.zeros(5))) == (0, 1)
    assert math.isnan(intervals.mean(np.array([])).value)
    assert math.isnan(intervals.p_value(np.array([2.0])))


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 3, 2, 5, 7], 0.001), ([1.0, 3, 2, 5, 7], 1.1), ([1.0, 3, 3, 3, 4], 0.075), ([-2.0, -1, 0, 1, 2], 0.112)],
)
def test_intervals_are_the_same_in_every_unit(values, scale):
    """Of a resample of one seed, or of seeds with equal values, there is no t, whatever rounding leaves as spread."""
    expected = np.array(intervals.mean(np.array(values))) * scale
    np.testing.assert_allclose(intervals.mean(np.array(values) * scale), expected, rtol=1e-9, atol=1e-12)


def test_p_values_are_students_and_holms():
    differences = np.array([0.1, 0.3, 0.2, 0.5, 0.0])
    a = np.arange(5.0)
    assert intervals.p_value(differences) == pytest.approx(scipy.stats.ttest_rel(a + differences, a).pvalue)
    corrected = intervals.holm([0.01, math.nan, 0.04, 0.03, 0.5])
    np.testing.assert_allclose(corrected, [0.04, math.nan, 0.09, 0.09, 0.5])


def test_the_ratio_of_costs_is_two_where_the_curves_say_two():
    rng = np.random.default_rng(0)
    cost = np.array([0.25, 0.5, 0.75, 1.0])
    seeds = np.exp(rng.normal(0, 0.05, (5, 1)))
    baseline, slower = seeds * 10 / cost, seeds * 20 / cost  # half as good at each cost
    ratio, known = intervals.cost_ratio(cost, baseline, slower, 1)
    assert known == "="
    assert ratio.value == pytest.approx(2)
    assert (ratio.low, ratio.high) == (pytest.approx(2), pytest.approx(2))  # of each pair of seeds
    ratio, known = intervals.cost_ratio(cost, baseline, slower, -1)
    assert known == "never"
    assert math.isinf(ratio.value)
    assert math.isinf(ratio.high)
    falls_and_rises = seeds * np.array([9.0, 2, 4, 4])
    for target in range(4):  # a curve against itself
        assert intervals.cost_ratio(cost, falls_and_rises, falls_and_rises, target)[0] == (1, 1, 1)
    missing = baseline.copy()
    missing[2, 1] = math.nan
    assert intervals.cost_ratio(cost, missing, slower, 1)[1] == "unknown"
    ratio, known = intervals.cost_ratio(cost, slower, baseline, 0)
    assert (known, ratio.value) == ("at most", 1.0)
    ratio, _ = intervals.cost_ratio(cost, slower, baseline, -1)
    assert ratio.value == pytest.approx(0.5)
    assert ratio.high - ratio.low < 1e-9  # the noise is common to both: paired, it cancels


def test_extrapolation_finds_the_limit_of_a_bias_like_one_over_n():
    n = np.array([300, 600, 900, 1200])
    values = np.array([[5.0], [7.0]]) + 400 / n
    np.testing.assert_allclose(intervals.at_infinity(n, values), [5, 7])


# -------------------------------------------------------------------------------------------------------- rules


def seeds(*means, spread=0.1):
    return Pair(*(np.array([m - spread, m, m + spread, m, m]) for m in means))


def flat(*means, n=5):
    """A pair without spread: the intervals of its differences have no width, and lie where they are put."""
    return Pair(*(np.full(n, float(mean)) for mean in means))


UNSURE = np.array([0.0, 3.0, 0.0, 3.0, 0.0])  # what moves by more than the margin from seed to seed
DECIDED = flat(20, 10, 10.5, 9)


def low_end(pair: Pair) -> float:
    """A margin at which the interval of FDM at the reduced cost begins."""
    return claims.judge_cost(pair, 1.0, 2.0)[1]["FDM, reduced"].low


COSTS = [
    (seeds(10, 10, 5, 5), 1, "undecided"),  # the baseline does as well at the reduced cost
    (seeds(20, 10, 10.5, 9), 1, "reproduced"),
    (seeds(20, 10, 15, 8), 1, "partly"),
    (seeds(90, 30, 15, 8), 1, "undecided"),  # the baseline has not learnt
    (seeds(20, 10, 15, 10), 1, "not reproduced"),
    (seeds(20, 10, 25, 12), 1, "not reproduced"),
    (Pair(*(part[:2] for part in seeds(20, 10, 10.5, 9))), 1, "undecided"),  # two trainings
    (seeds(20, 10, 10.5, 9)._replace(fdm_reduced=np.array([5.0, 20, 8, 15, 11])), 1, "undecided"),  # seeds disagree
    # Where one verdict ends and another begins, on both sides.
    (DECIDED, 1, "reproduced"),
    (flat(20, 10, 10.5, 9, n=4), 1, "undecided"),
    (flat(40, 20, 20, 20), 1, "reproduced"),  # ten times the floor
    (flat(40, 20.01, 20, 20), 1, "undecided"),
    (flat(11, 10, 10, 10), 1, "undecided"),  # the baseline at the reduced cost is worse by the margin
    (flat(11.01, 10, 10, 10), 1, "reproduced"),
    (DECIDED._replace(base_reduced=10 + UNSURE), 1, "undecided"),  # worse by more on average, not shown
    (flat(20, 10, 11, 12), 1, "reproduced"),  # FDM at the reduced cost is worse by the margin
    (flat(20, 10, 11.01, 12), 1, "not reproduced"),
    (DECIDED._replace(fdm_reduced=9.5 + UNSURE), 1, "undecided"),  # worse by less on average, not shown
    (DECIDED._replace(fdm_reduced=10.5 + UNSURE), 1, "undecided"),  # by more, not shown
    (seeds(20, 10, 12, 12, spread=0.5)._replace(fdm_reduced=12 + UNSURE / 3), low_end, "undecided"),
    (flat(20, 10, 12, 9), 1, "not reproduced"),  # FDM at full cost is better by the margin
    (flat(20, 10, 12, 8.99), 1, "partly"),
    (flat(20, 10, 12, 11.5), 1, "not reproduced"),  # worse by more
    (flat(20, 10, 12, 7)._replace(fdm_full=7.5 + UNSURE), 1, "not reproduced"),  # better on average, not shown
]


def decided_costs(judge) -> list[str]:
    return [judge(pair, margin(pair) if callable(margin) else margin, 2.0)[0] for pair, margin, _ in COSTS]


def test_the_rule_of_costs():
    assert decided_costs(claims.judge_cost) == [verdict for *_, verdict in COSTS]


AS_WITHOUT = Interval(1, 0.95, 1.1)
WARMUPS = [
    (Interval(0.8, 0.7, 0.9), 0.01, Interval(1, 0.9, 1.1), 1, "reproduced"),
    (Interval(0.8, 0.7, 0.9), 0.06, Interval(1, 0.9, 1.1), 1, "undecided"),
    (AS_WITHOUT, 1, Interval(0.8, 0.7, 0.9), 0.01, "partly"),
    (AS_WITHOUT, 1, Interval(1, 0.9, 1.1), 1, "not reproduced"),
    (Interval(1.3, 1.2, 1.4), 0.01, Interval(1, 0.9, 1.1), 1, "not reproduced"),
    (Interval(0.98, 0.97, 0.99), 0.01, Interval(1, 0.9, 1.1), 1, "not reproduced"),  # a gain, but of 2 %
    (Interval(0.98, 0.8, 1.1), 1, Interval(1, 0.9, 1.1), 1, "undecided"),
    # Where one verdict ends and another begins, on both sides, of either kernel.
    (Interval(0.95, 0.9, 0.999), 0.049, AS_WITHOUT, 1, "reproduced"),
    (Interval(0.95, 0.9, 1.0), 0.049, AS_WITHOUT, 1, "undecided"),
    (Interval(0.95, 0.9, 0.999), 0.05, AS_WITHOUT, 1, "undecided"),
    (Interval(0.95, 0.901, 0.999), 0.049, AS_WITHOUT, 1, "not reproduced"),
    (Interval(0.98, 0.9, 1.1), 1, AS_WITHOUT, 1, "undecided"),
    (Interval(0.98, 0.901, 1.1), 1, AS_WITHOUT, 1, "not reproduced"),
    (AS_WITHOUT, 1, Interval(0.95, 0.9, 0.999), 0.049, "partly"),
    (AS_WITHOUT, 1, Interval(0.95, 0.9, 1.0), 0.049, "not reproduced"),
    (AS_WITHOUT, 1, Interval(0.95, 0.9, 0.999), 0.05, "not reproduced"),
    (AS_WITHOUT, 1, Interval(0.95, 0.901, 0.999), 0.049, "not reproduced"),
    (Interval(0.98, 0.8, 1.1), 1, Interval(0.8, 0.7, 0.9), 0.01, "partly"),
    (Interval(*[math.nan] * 3), math.nan, Interval(*[math.nan] * 3), math.nan, "undecided"),  # too few seeds
]


def decided_warmups(judge) -> list[str]:
    return [judge(*case[:-1]) for case in WARMUPS]


def test_the_rule_of_the_warm_up():
    assert decided_warmups(claims.judge_warmup) == [verdict for *_, verdict in WARMUPS]


class Mutant(ast.NodeTransformer):
    """A source with its number-th comparison, connective, end of an interval or sign changed, in one of two ways."""

    WAYS = (
        {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, "low": "high", "high": "low"},
        {ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, "low": "value", "high": "value"},
    )

    def __init__(self, number: int, way: int) -> None:
        self.left, self.other, self.done = number, self.WAYS[way], ""

    def _now(self, node: ast.AST) -> bool:
        self.left -= 1
        if self.left == -1:
            self.done = ast.unparse(node)
        return self.left == -1

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if self._now(node):
            node.ops = [self.other[type(node.ops[0])](), *node.ops[1:]]
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        if self._now(node):
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if node.attr in self.other and self._now(node):
            node.attr = self.other[node.attr]
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        return node.operand if self._now(node) else self.generic_visit(node)


@pytest.mark.parametrize(
    ("judge", "decided", "parts"), [(claims.judge_cost, decided_costs, 12), (claims.judge_warmup, decided_warmups, 8)],
    ids=["costs", "warm-up"],
)  # fmt: skip
@pytest.mark.parametrize("way", [0, 1], ids=["neighbour", "reverse"])
def test_no_part_of_a_rule_can_change_without_a_verdict_that_changes(judge, decided, parts, way):
    """The cases above notice each comparison that is turned, each `and`, each end of an interval."""
    right, changed = decided(judge), []
    while True:
        tree, mutant = ast.parse(inspect.getsource(judge)), Mutant(len(changed), way)
        mutant.visit(tree)
        if not mutant.done:
            break
        space = dict(vars(claims))
        exec(compile(ast.fix_missing_locations(tree), "a mutant", "exec"), space)
        assert decided(space[judge.__name__]) != right, mutant.done
        changed.append(mutant.done)
    assert len(changed) >= parts  # or nothing was changed


# ----------------------------------------------------------------------------------------------------- analysis


def test_effects_are_those_that_were_put_in(profile):
    table = effects.effects(profile, measured(profile, noise=0.01)).set_index(["framework", "question", "training"])
    # 300/n = 1 is added to every distance, so that ratios are a little nearer to 1.
    for framework in ("VP", "VE", "EDM"):
        assert table.loc[(framework, "input scaling", "100%"), "ratio"] == pytest.approx(EFFECT, rel=0.03)
        assert table.loc[(framework, "warm-up", "100%"), "ratio"] == pytest.approx(0.8, rel=0.03)
        assert table.loc[(framework, "interaction", "100%"), "ratio"] == pytest.approx(1, rel=0.05)
        assert table.loc[(framework, "both", "100%"), "ratio"] == pytest.approx(0.96, rel=0.03)
        assert table.loc[(framework, "input scaling", "100%"), "p (Holm)"] < 0.05
    assert (table["low"] <= table["ratio"]).all()
    assert (table["ratio"] <= table["high"]).all()
    assert (table["p (Holm)"] >= table["p"]).all()
    fewer = measurements.table(profile)
    fewer = fewer[fewer["run"] != "vp-baseline-2"]  # seeds are matched by number
    ratio = effects.effects(profile, fewer).set_index(["framework", "question", "training"])
    assert ratio.loc[("VP", "both", "100%"), "seeds"] == 4
    assert math.isnan(ratio.loc[("VP", "both", "100%"), "low"])
    assert ratio.loc[("VE", "both", "100%"), "ratio"] == table.loc[("VE", "both", "100%"), "ratio"]
    assert len(table) == 2 * (3 * (4 + 3 + 1) + 2)  # two by two and both; three multipliers, length; own time


def test_every_further_cell_changes_one_thing_in_the_published_method(profile):
    for name, cell in profile.cells.items():
        method = profile.cells[f"{cell.framework}-fdm-warmup"]
        if name.split("-")[-1] not in ("baseline", "warmup", "fdm"):
            differing = {k for k, v in cell.model_dump().items() if v != getattr(method, k)}
            # VE's multiplier counts only as derived: the two go together.
            assert len(differing - {"ve_multiplier"}) == 1 or differing == {"ve_multiplier"}, (name, differing)
    assert len(profile.cells) == 26
    assert len(profile.seeds) >= 5


def test_noise_bias_and_costs_are_of_the_measurements(profile):
    rows = measured(profile)
    bias = effects.bias(profile, rows).set_index("cell")
    means = rows[(rows["n"] == 300) & (rows["nfe"] == 25) & (rows["duration"] == 1) & (rows["sigma_max"] == 80)]
    means = means[(means["latents"] == 0) & (means["reference"] == 0) & (means["sampler"] == "heun")]
    at = means.groupby("cell")["value"].mean()
    assert bias.loc["vp-baseline", "n → ∞"] == pytest.approx(at["vp-baseline"] - 1)
    assert bias.loc["vp-baseline", "bias at n"] == pytest.approx(1)
    noise = effects.noise(profile, rows).set_index("cell")
    assert noise.loc["vp-baseline", "SD, latents"] == pytest.approx(0, abs=1e-9)
    spread = means[means["cell"] == "vp-baseline"]["value"].std()
    assert noise.loc["vp-baseline", "SD, trainings"] == pytest.approx(spread)
    costs = effects.costs(profile, rows, "duration", (1, -1)).set_index(["framework", "baseline's cost"])
    assert costs.loc[("VP", "50%"), "ratio"] == pytest.approx(0.96, rel=0.05)
    assert costs.loc[("VP", "100%"), "published, FFHQ"] == "0.59"
    ratios = effects.noise_of_ratios(profile, rows).set_index("framework")
    assert ratios.loc["VP", "latents (%)"] == pytest.approx(0, abs=1e-9)
    assert ratios.loc["VP", "ratio"] == pytest.approx(0.96, rel=0.05)
    assert ratios.loc["VP", "trainings (%)"] > 0.1
    spent = effects.amounts(profile, rows)
    assert spent["trainings"] == 130
    folder = profile.results / "tables"
    show.show(effects.effects(profile, rows), folder, "effects", "Effects.", ("p",))
    assert "| p (Holm) |" in (folder / "effects.md").read_text()
    assert "| p |" not in (folder / "effects.md").read_text()
    assert "p" in pd.read_csv(folder / "effects.csv").columns


def test_the_prose_takes_its_numbers_from_the_tables_on_record(profile):
    rows, folder = measured(profile), profile.results / "tables"
    made = {
        "effects": effects.effects(profile, rows), "highest_noise": effects.highest_noise(profile, rows),
        "noise": effects.noise(profile, rows), "bias": effects.bias(profile, rows),
        "costs_training": effects.costs(profile, rows, "duration", (1, -1)),
        "costs_nfe": effects.costs(profile, rows, "nfe", (1, -1)),
    }  # fmt: skip
    for name, table in made.items():
        tables.write_table(table, folder, name, "")
    show.show_claims(profile, folder)
    values = report.numbers(profile)
    effect = made["effects"].set_index(["framework", "question", "training"]).loc[("VP", "input scaling", "100%")]
    assert values["ratio VP input scaling 100%"] == f"{effect['ratio']:.2f} [{effect['low']:.2f}, {effect['high']:.2f}]"
    assert re.fullmatch(r"1\.\d\d \[1\.\d\d, 1\.\d\d\], p [<=] 0\.00\d+", values["effect VP input scaling 100%"])
    assert "effect VP multiplier m = 4 / 2 100%" in values
    assert re.fullmatch(r"0\.9\d \[.*\]", values["cost VP Heun 50%"])
    noise = made["noise"].set_index("cell").loc["vp-baseline"]
    assert values["noise vp-baseline trainings"] == f"{100 * noise['SD, trainings'] / noise['distance']:.0f} %"
    bias = made["bias"].set_index("cell").loc["edm-baseline"]
    assert values["bias edm-baseline"] == f"{100 / bias['n = 300']:.0f} %"  # 300/n is 1 there
    assert values["top ve-baseline 10"] == "1.00"  # in the made-up measurements it changes nothing
    differs = claims.claims(profile)["claims"][2]["numbers"]["difference from baseline, full"]["FDM, reduced"]
    assert values["difference C3 VP"].startswith(f"{differs['value']:.0f} [")
    assert values["verdict C3 VP"] == "not reproduced"

    notebooks = profile.results.parents[1] / "notebooks"
    notebooks.mkdir()
    template = notebooks / "05_report.md"
    template.write_text("VP: {{effect VP input scaling 100%}}; {{cost VP Heun\n50%}}.\n\n{{table effects}}\n")
    text = report.write(profile, values).read_text()
    assert text.startswith(f"VP: {values['effect VP input scaling 100%']}; {values['cost VP Heun 50%']}.")
    assert (folder / "effects.md").read_text().rstrip() in text
    template.write_text("{{effect VQ}}")
    with pytest.raises(FdmError, match="asks for effect VQ, which nothing gives"):
        report.write(profile, values)
    tables.write_table(made["effects"].assign(ratio=2.0), folder, "effects", "")
    assert report.numbers(profile)["ratio VP input scaling 100%"].startswith("2.00 [")


def test_claims_of_an_ablation_and_their_table(profile):
    measured(profile, noise=0.01)
    told = claims.claims(profile)
    verdicts = {(each["claim"], each["subject"]): each["verdict"] for each in told["claims"]}
    assert len(verdicts) == 2 + 3 + 6 + 3
    assert verdicts["C3", "EDM"] == "not reproduced"  # a fifth worse, and a fifth better for the warm-up: as good
    assert verdicts["C5", "EDM"] == "reproduced"
    table = show.claims_table(told)
    assert len(table) == len(verdicts)
    assert "five" not in show.scale(told)
    assert "5 training runs of each model" in show.scale(told)


def test_figures_of_the_ablations_can_be_drawn(profile, tmp_path):
    figures.use_style()
    rows, floor = measured(profile), measurements.calibration(profile).iloc[0]
    standard = measurements.standard(profile, rows)
    heun = standard[(standard["sampler"] == "heun") & (standard["nfe"] == 25) & (standard["duration"] == 1)]
    figures.save(figures.kernel_by_warmup(heun, floor), tmp_path, "a", [])
    figures.save(figures.effects(effects.effects(profile, rows)), tmp_path, "b", [])
    figures.save(figures.highest_noise(effects.from_every_level(profile, rows), floor), tmp_path, "c", [])
    figures.save(figures.noise(effects.noise(profile, rows)), tmp_path, "d", [])
    figures.save(figures.bias(effects.bias(profile, rows), 300), tmp_path, "e", [])
    assert len(list(tmp_path.glob("*.svg"))) == 5


# ------------------------------------------------------------------------------------------------ what is varied


def test_the_frameworks_own_time_is_the_one_that_its_noise_is_drawn_by():
    sigma = torch.tensor([0.02, 0.5, 20.0, 90.0])
    low, high = FRAMEWORKS["ve"].sigma_range
    u = (sigma / low).log() / math.log(high / low)  # sigma = low (high/low)^u
    c = coefficients("ve", "fdm", sigma, 1.0, tau="time").c_in
    torch.testing.assert_close(c, momentum.scale_fdm(u, 1.0))
    t = torch.tensor([0.1, 0.4, 0.9])
    c = coefficients("vp", "fdm", schedule.sigma_vp(t), 2.0, tau="time").c_in
    torch.testing.assert_close(c, momentum.scale_fdm(t, 2.0), rtol=1e-4, atol=1e-7)
    for name in ("time", "sigma"):
        same = coefficients("edm", "fdm", sigma, 2.0, tau=name).c_in
        torch.testing.assert_close(same, momentum.scale_fdm((sigma - 0.002) / (80 - 0.002), 2.0))


# ------------------------------------------------------------------------------------------------------ running


@pytest.fixture
def small(study):
    """An ablation of two cells and two seeds that takes seconds."""
    path = study / "profiles" / "ablations" / "params.yaml"
    values = yaml.safe_load(path.read_text())
    values["training"] |= {"budget_kimg": 0.5, "log_kimg": 0.128, "state_kimg": 0.128}
    values["network"]["model_channels"] = 8
    values["evaluation"] |= {"samples": 16, "batch": 150, "settings": [
        {"sampler": "heun", "nfe": [3], "duration": [0.25, 0.5, 0.75, 1.0]},
        {"sampler": "dpm-solver++", "nfe": [3]},
        {"sampler": "heun", "nfe": [3], "sigma_max": [10.0], "cells": ["edm-fdm-time"]},
        {"sampler": "heun", "nfe": [3], "samples": 32, "cells": ["edm-fdm-time"]},
    ]}  # fmt: skip
    values["cells"] = {
        "edm-fdm-time": {"framework": "edm", "kernel": "fdm", "tau": "time"},
        "ve-fdm-m2": {"framework": "ve", "kernel": "fdm", "multiplier": 2, "ve_multiplier": "as derived"},
    }
    values["seeds"] = [0, 7]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return "profiles/ablations/params.yaml"


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return tmp_path_factory.mktemp("once")


def from_once(place: Path, make):
    """Let `make` make what the first test needs; the others get a copy of it."""
    made = place.exists()
    if not made:
        make()
    for folder in ("build", "results"):
        source, target = (place / folder, Path(folder)) if made else (Path(folder), place / folder)
        shutil.copytree(source, target, dirs_exist_ok=True)


@pytest.fixture
def prepared(small, once):
    """The small ablation with its data and reference features."""
    from_once(once / "prepared", lambda: [main([stage, "--params", small]) for stage in ("prepare", "reference")])
    return profiles.load(small)


@pytest.fixture
def finished(prepared, once):
    """The small ablation, trained and scored."""
    from_once(once / "finished", lambda: [runs.train(prepared), runs.evaluate(prepared)])
    return prepared


@pytest.fixture
def computed(monkeypatch, tmp_path):
    """What is trained and measured from now on, by any process: "train" or "measure" and the run, in that order."""
    path, launch = tmp_path / "computed", processes.launch
    path.touch()

    def noted(function, args, count):
        training = isinstance(args[0], loop.Training)
        with path.open("a") as file:
            file.write(f"train {args[0].name}\n" if training else f"measure {args[1]}\n")
        launch(function, args, count)

    monkeypatch.setattr(processes, "launch", noted)

    def since() -> list[str]:
        lines = path.read_text().splitlines()
        path.write_text("")
        return lines

    return since


def on_record(profile) -> dict[str, bytes]:
    """What is committed of a profile."""
    return {str(p.relative_to(profile.results)): p.read_bytes() for p in profile.results.rglob("*") if p.is_file()}


def out_of_luck(real, run):
    """A function like `real`, which trains or measures, that fails for one run."""

    def call(*args):
        if run in (args[1], getattr(args[0], "name", None)):
            raise FdmError("out of luck")
        return real(*args)

    return call


@pytest.mark.parametrize("at_once", [1, 2])
def test_cells_are_trained_and_scored_with_every_seed_and_go_on_after_a_failure(
    prepared, monkeypatch, computed, at_once
):
    """Two runs at once, or one after another, to the same bits as a run trained alone."""
    profile, (first, second, third, fourth) = prepared, prepared.runs
    monkeypatch.setattr(runs, "at_once", lambda *_: at_once)
    with monkeypatch.context() as patch, pytest.raises(FdmError, match="out of luck"):
        patch.setattr(loop, "train", out_of_luck(loop.train, third))
        runs.train(profile)
    done = computed()
    assert {f"train {first}", f"train {second}"} <= set(done)
    assert f"train {third}" not in done
    losses = runs.train(profile)
    assert sorted(done + computed()) == sorted(f"train {run}" for run in profile.runs)  # each once
    with monkeypatch.context() as patch, pytest.raises(FdmError, match="out of luck"):
        patch.setattr(measure, "evaluate", out_of_luck(measure.evaluate, third))
        runs.evaluate(profile)
    done = computed()
    rows = runs.evaluate(profile)
    assert sorted(done + computed()) == sorted(f"measure {run}" for run in profile.runs)

    assert list(losses.columns) == ["run", "experiment", "images", "loss", "lr"]
    assert list(losses["run"].unique()) == list(rows["run"].unique()) == [first, second, third, fourth]
    assert losses.groupby("run")["experiment"].nunique().max() == 1
    assert losses["experiment"].nunique() == 4
    thorough = measurements.read(profile.results / "runs" / "edm-fdm-time" / "measurements.csv")
    assert sorted(set(thorough["run"])) == ["edm-fdm-time-0", "edm-fdm-time-7"]
    assert set(thorough["cell"]) == {"edm-fdm-time"}
    assert set(thorough["sigma_max"]) == {10.0, 80.0}
    assert {16, 32, 8} <= set(thorough["n"])
    assert set(thorough["reference"]) == set(range(5))
    assert thorough[thorough["duration"] == 1].groupby("run")["checkpoint"].nunique().max() == 1
    assert set(rows[rows["cell"] == "ve-fdm-m2"]["reference"]) == {0}
    assert len(rows) == len(measurements.table(profile)) > len(thorough)
    told = json.loads((profile.results / "provenance" / "edm-fdm-time.json").read_text())
    assert told["cell"] == "edm-fdm-time"
    assert told["training_seconds"] > 0
    # The same trained alone, by another way.
    alone, dataset = Path("alone", "checkpoints"), runs.dataset_of(profile)
    training = runs.training_of(profile, second, dataset)
    loop.train(training, dataset, alone, Path("alone", "logs"), Path("alone", "work"))
    together = profile.checkpoints(second)
    for name in ("025.safetensors", "100.safetensors", "experiment.json"):
        assert (alone / name).read_bytes() == (together / name).read_bytes()
    assert not list(Path("work").glob("*/"))  # of a state nothing is left


def test_what_is_on_record_is_written_again_only_where_it_does_not_agree(finished, computed, capsys):
    profile, before = finished, on_record(finished)
    capsys.readouterr()
    losses, rows = runs.train(profile), runs.evaluate(profile)
    assert computed() == []
    assert on_record(profile) == before
    said = capsys.readouterr().err
    assert "training losses: 2 of 2 cells agree with results/ablations/training, left as it is\n" in said
    assert "measurements: 2 of 2 cells agree with results/ablations/runs, left as it is\n" in said

    # Another machine rounds otherwise, and its weights have other hashes; what it wrote is of the same experiment.
    path, lost = profile.results / "runs" / "ve-fdm-m2" / "measurements.csv", profile.results / "training"
    elsewhere = measurements.read(path)
    elsewhere["value"] *= 1 + 1e-9
    elsewhere["checkpoint"] = "0123456789ab"
    elsewhere.to_csv(path, index=False)
    theirs = on_record(profile)
    other = measurements.read(lost / "ve-fdm-m2.csv")
    other.assign(loss=other["loss"] * 1.001).to_csv(lost / "ve-fdm-m2.csv", index=False)
    (lost / "vp-gone.csv").touch()  # a cell that the profile no longer has
    (profile.results / "runs" / "vp-gone").mkdir()
    theirs["training/ve-fdm-m2.csv"] = (lost / "ve-fdm-m2.csv").read_bytes()
    assert runs.train(profile)["loss"].tolist() != losses["loss"].tolist()
    again = runs.evaluate(profile).tail(len(elsewhere)).reset_index(drop=True)
    pd.testing.assert_frame_equal(again, elsewhere)
    assert on_record(profile) == theirs
    assert not (profile.results / "runs" / "vp-gone").exists()
    here = measurements.read(profile.here / "runs" / "ve-fdm-m2" / "measurements.csv")
    assert here["checkpoint"].tolist() == rows[rows["cell"] == "ve-fdm-m2"]["checkpoint"].tolist()

    elsewhere.assign(experiment="of another code").to_csv(path, index=False)
    other.assign(loss=other["loss"] * 1.5).to_csv(lost / "ve-fdm-m2.csv", index=False)
    capsys.readouterr()
    runs.train(profile)
    runs.evaluate(profile)
    assert computed() == []
    assert "; written there: ve-fdm-m2\n" in capsys.readouterr().err
    after = on_record(profile)
    assert {name for name in before if after[name] != before[name]} == set()


@pytest.mark.parametrize(("name", "other"), [("012345678901", "012345678902"), ("1234e5678901", "1234f5678901")])
def test_a_hash_that_looks_like_a_number_is_kept_and_told_from_another(tmp_path, name, other):
    table = pd.DataFrame({"run": "a", "experiment": name, "images": [1, 2], "loss": [2.0, 1.0], "lr": [0.1, 0.1]})
    path, here = tmp_path / "a.csv", agreement.read_back(table)
    here.to_csv(path, index=False)
    assert set(measurements.read(path)["experiment"]) == {name}
    assert agreement.losses(path, here)
    assert not agreement.losses(path, here.assign(experiment=other))


def test_one_more_cell_is_computed_alone(finished, computed):
    profile, before = finished, on_record(finished)
    path = Path(profile.params_file)
    values = yaml.safe_load(path.read_text())
    values["cells"]["ve-fdm-m4"] = values["cells"]["ve-fdm-m2"] | {"multiplier": 4}
    del values["cells"]["edm-fdm-time"]
    values["evaluation"]["settings"] = [each for each in values["evaluation"]["settings"] if "cells" not in each]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    other = profiles.load(profile.params_file)
    runs.train(other)
    assert sorted(computed()) == ["train ve-fdm-m4-0", "train ve-fdm-m4-7"]
    runs.evaluate(other)
    assert sorted(computed()) == ["measure ve-fdm-m4-0", "measure ve-fdm-m4-7"]
    after = on_record(other)
    assert {name for name in after if name not in before} == {
        "training/ve-fdm-m4.csv", "runs/ve-fdm-m4/measurements.csv", "provenance/ve-fdm-m4.json"
    }  # fmt: skip
    assert not [name for name in after if name in before and after[name] != before[name]]
    assert "runs/edm-fdm-time/measurements.csv" not in after
    assert not other.checkpoints("edm-fdm-time-0").exists()


def test_a_run_whose_process_is_killed_is_a_sentence_and_what_was_finished_is_kept(prepared, monkeypatch, computed):
    profile, (first, second, third, _) = prepared, prepared.runs
    monkeypatch.setattr(runs, "at_once", lambda *_: 2)
    real = loop.train

    def killed(training, *args):
        if training.name == third:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(training, *args)

    with monkeypatch.context() as patch, pytest.raises(FdmError, match="was killed, for want of memory perhaps; what"):
        patch.setattr(loop, "train", killed)
        runs.train(profile)
    kept = [run for run in (first, second) if (profile.checkpoints(run) / "100.safetensors").exists()]
    assert kept
    computed()
    runs.train(profile)
    assert not set(computed()) & {f"train {run}" for run in kept}


@pytest.mark.parametrize(("cores", "threads", "expected"), [(1, 1, 1), (2, 1, 2), (8, 1, 4), (8, 3, 1), (2, 3, 1)])
def test_as_many_runs_are_computed_at_once_as_there_are_cores_for_their_threads(
    small, monkeypatch, cores, threads, expected
):
    profile = profiles.load(small).model_copy(update={"threads": threads})
    monkeypatch.setattr(processes, "device", lambda: "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert runs.at_once(profile, count=1) == expected
    assert runs.at_once(profile, count=2) == 1  # these share the cores themselves
    monkeypatch.setattr(processes, "device", lambda: "cuda")
    assert runs.at_once(profile, count=1) == 1


def test_source_that_is_changed_while_it_computes_names_no_result(prepared, monkeypatch):
    real = loop.train

    def train(*args):
        trained = real(*args)
        path = Path("fdm/process/schedule.py")
        path.write_text(path.read_text() + "# another\n")
        return trained

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(runs, "at_once", lambda *args: 1)
    with pytest.raises(FdmError, match=r"The source in fdm/ has changed while it computed; run dvc repro again"):
        runs.train(prepared)
    assert list(prepared.build.glob("checkpoints/*/100.safetensors"))
    assert not list(prepared.build.glob("checkpoints/*/experiment.json"))  # so it is trained again


METHOD = {"framework": "edm", "kernel": "fdm"}
LONGER = METHOD | {"source": "finetune", "start": "edm-fdm"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": []}, "seeds: [] is not allowed; list should have at least 1 item"),
        ({"seeds": [0, 0]}, "seeds: [0, 0] is not allowed; a seed is there twice"),
        ({"cells": {"edm-fdm": METHOD | {"seeds": [3, 3]}}},
         "cells.edm-fdm.seeds: [3, 3] is not allowed; a seed is there twice"),
        ({"cells": {}}, "cells: {} is not allowed; dictionary should have at least 1 item"),
        ({"cells": ["vp-fdm"]}, "cells: ['vp-fdm'] is not allowed; input should be a valid dictionary"),
        ({"cells": {"vp-fdm": METHOD}}, "cells.vp-fdm: the name of a cell begins with edm-fdm"),
        ({"cells": {"edm-fdmish": METHOD}}, "cells.edm-fdmish: the name of a cell begins with edm-fdm"),
        ({"cells": {"edm-fdm-1.5": METHOD}}, "cells.edm-fdm-1.5: a name has no dot, which DVC reads as a path"),
        ({"cells": {"ddpm-fdm": {"framework": "ddpm", "kernel": "fdm"}}},
         "cells.ddpm-fdm.framework: 'ddpm' is not allowed; it must be one of vp, ve, edm"),
        ({"runs": {}}, "runs is not a known key; allowed here are profile, root,"),
        ({"cells": {"edm-fdm": METHOD | {"seed": 1}}},
         "cells.edm-fdm.seed is not a known key; allowed here are source, framework, kernel,"),
        ({"cells": {"edm-fdm": METHOD | {"source": "fetch"}}},
         "cells.edm-fdm: checkpoint belongs to a cell with source: fetch, and to no other"),
        ({"cells": {"edm-fdm": METHOD | {"source": "finetune"}}},
         "cells.edm-fdm: start belongs to a cell with source: finetune, and to no other"),
        ({"cells": {"edm-fdm": METHOD, "edm-fdm-longer": METHOD | {"start": "edm-fdm"}}},
         "cells.edm-fdm-longer: start belongs to a cell with source: finetune, and to no other"),
        ({"cells": {"edm-fdm-longer": LONGER}},
         "cells.edm-fdm-longer.start: 'edm-fdm' is not allowed; it must be a cell that is trained"),
        ({"cells": {"edm-fdm": METHOD, "edm-fdm-longer": LONGER | {"start": "edm-fdm-longer"}}},
         "cells.edm-fdm-longer.start: 'edm-fdm-longer' is not allowed; it must be a cell that is trained"),
        ({"cells": {"edm-fdm": METHOD | {"source": "analytic"}, "edm-fdm-longer": LONGER}},
         "cells.edm-fdm-longer.start: 'edm-fdm' is not allowed; it must be a cell that is trained"),
        ({"cells": {"edm-fdm": METHOD | {"seeds": [0]}, "edm-fdm-longer": LONGER}},
         "cells.edm-fdm-longer.start: 'edm-fdm' is not allowed; it is not trained with the seed 7"),
        ({"cells": {"ve-fdm": {"framework": "ve", "kernel": "fdm"}, "edm-fdm-longer": LONGER | {"start": "ve-fdm"}}},
         "cells.edm-fdm-longer.start: 've-fdm' is not allowed; its network is another"),
        ({"cells": {"edm-fdm": METHOD | {"channel_mult": [2, 2]}, "edm-fdm-longer": LONGER}},
         "cells.edm-fdm-longer.start: 'edm-fdm' is not allowed; its network is another"),
        ({"network": None}, "network is missing"),
        ({"cells": {"edm-fdm-exact": METHOD | {"source": "analytic"}}},
         "network must be absent where no network is trained"),
    ],
)  # fmt: skip
def test_bad_cells_stop_with_one_sentence(small, capsys, changes, sentence):
    path = Path(small)
    values = yaml.safe_load(path.read_text()) | changes
    values["evaluation"]["settings"] = values["evaluation"]["settings"][:2]  # which name no cell
    path.write_text(yaml.safe_dump(values))
    assert main(["check", "--params", small]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"fdm: {small}: {sentence}")
    assert printed.count("\n") == 1


def test_a_cell_may_start_from_one_of_another_framework_with_the_same_network(small):
    path = Path(small)
    values = yaml.safe_load(path.read_text())
    values["cells"] = {"edm-fdm-longer": LONGER | {"start": "vp-fdm"}, "vp-fdm": {"framework": "vp", "kernel": "fdm"}}
    values["evaluation"]["settings"] = values["evaluation"]["settings"][:2]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    profile = profiles.load(small)
    assert list(profile.runs) == ["vp-fdm-0", "vp-fdm-7", "edm-fdm-longer-0", "edm-fdm-longer-7"]  # as they start
    assert runs.parent_of(profile, "edm-fdm-longer-7") == "vp-fdm-7"
