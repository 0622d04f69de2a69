"""The design of the ablations, its statistics and rules, against other methods and made-up measurements."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import yaml

from fdm import (
    ablations,
    analysis,
    data,
    evaluation,
    kernels,
    plots,
    profiles,
    report,
    reproducibility,
    statistics,
    tables,
)
from fdm import study as rules
from fdm.__main__ import main
from fdm.errors import FdmError
from fdm.preconditioning import SIGMA_RANGE, coefficients
from fdm.statistics import Interval
from fdm.study import Pair

EFFECT = 1.2  # of FDM's kernel in the made-up measurements; the warm-up's is 0.8


def measured(profile, noise=0.02):
    """Made-up rows of every run: a product of effects, of the training and of n, with noise for seed and sample."""
    rng, rows = np.random.default_rng(0), []
    for name, run in profile.runs.items():
        base = {"vp": 40.0, "ve": 60.0, "edm": 20.0}[run.framework]
        base *= EFFECT if run.kernel == "fdm" else 1
        base *= 0.8 if run.warmup_steps else 1
        base *= math.exp(rng.normal(0, noise))
        for setting in evaluation.settings(profile, name):
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
                row = dict.fromkeys(evaluation.CONTEXT, 0) | {
                    "cell": name.rpartition("-")[0], "run": name, "framework": run.framework, "kernel": run.kernel,
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
        interval = statistics.mean(values)
        covered += interval.low <= 1 <= interval.high
        half = scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)  # another method: Student's
        ratio.append((interval.high - interval.low) / 2 / half)
    assert 0.91 < covered / 400 < 0.985
    assert np.median(ratio) == pytest.approx(wider, rel=0.08)


def test_all_resamples_of_five_seeds_are_as_many_random_ones():
    index, weights = statistics.resamples(5)
    assert len(index) == math.comb(9, 5)
    assert weights.sum() == pytest.approx(1)
    values = np.array([1.0, 2, 4, 8, 16])
    random = values[np.random.default_rng(0).integers(0, 5, (200_000, 5))].mean(axis=1)
    low, high = statistics.quantiles(values[index].mean(axis=1), weights, (0.1, 0.9))
    assert low == pytest.approx(np.quantile(random, 0.1), abs=0.15)
    assert high == pytest.approx(np.quantile(random, 0.9), abs=0.15)


def test_intervals_of_one_value_are_empty_and_of_none_too():
    assert statistics.mean(np.array([2.0]))[0] == 2
    assert math.isnan(statistics.mean(np.array([2.0, 3, 4, 5])).low)
    assert statistics.mean(np.full(5, 3.0)) == (3, 3, 3)
    assert (statistics.p_value(np.full(5, 3.0)), statistics.p_value(np.zeros(5))) == (0, 1)
    assert math.isnan(statistics.mean(np.array([])).value)
    assert math.isnan(statistics.p_value(np.array([2.0])))


def test_p_values_are_students_and_holms():
    differences = np.array([0.1, 0.3, 0.2, 0.5, 0.0])
    a = np.arange(5.0)
    assert statistics.p_value(differences) == pytest.approx(scipy.stats.ttest_rel(a + differences, a).pvalue)
    corrected = statistics.holm([0.01, math.nan, 0.04, 0.03, 0.5])
    np.testing.assert_allclose(corrected, [0.04, math.nan, 0.09, 0.09, 0.5])


def test_the_ratio_of_costs_is_two_where_the_curves_say_two():
    rng = np.random.default_rng(0)
    cost = np.array([0.25, 0.5, 0.75, 1.0])
    seeds = np.exp(rng.normal(0, 0.05, (5, 1)))
    baseline, slower = seeds * 10 / cost, seeds * 20 / cost  # half as good at each cost
    ratio, known = statistics.cost_ratio(cost, baseline, slower, 1)
    assert known == "="
    assert ratio.value == pytest.approx(2)
    assert (ratio.low, ratio.high) == (pytest.approx(2), pytest.approx(2))  # of each pair of seeds
    ratio, known = statistics.cost_ratio(cost, baseline, slower, -1)
    assert known == "never"
    assert math.isinf(ratio.value)
    assert math.isinf(ratio.high)
    falls_and_rises = seeds * np.array([9.0, 2, 4, 4])
    for target in range(4):  # a curve against itself
        assert statistics.cost_ratio(cost, falls_and_rises, falls_and_rises, target)[0] == (1, 1, 1)
    missing = baseline.copy()
    missing[2, 1] = math.nan
    assert statistics.cost_ratio(cost, missing, slower, 1)[1] == "unknown"
    ratio, known = statistics.cost_ratio(cost, slower, baseline, 0)
    assert (known, ratio.value) == ("at most", 1.0)
    ratio, _ = statistics.cost_ratio(cost, slower, baseline, -1)
    assert ratio.value == pytest.approx(0.5)
    assert ratio.high - ratio.low < 1e-9  # the noise is common to both: paired, it cancels


def test_extrapolation_finds_the_limit_of_a_bias_like_one_over_n():
    n = np.array([300, 600, 900, 1200])
    values = np.array([[5.0], [7.0]]) + 400 / n
    np.testing.assert_allclose(statistics.at_infinity(n, values), [5, 7])


# -------------------------------------------------------------------------------------------------------- rules


def seeds(*means, spread=0.1):
    return Pair(*(np.array([m - spread, m, m + spread, m, m]) for m in means))


@pytest.mark.parametrize(
    ("pair", "verdict"),
    [
        (seeds(10, 10, 5, 5), "undecided"),  # the baseline does as well at the reduced cost
        (seeds(20, 10, 10.5, 9), "reproduced"),
        (seeds(20, 10, 15, 8), "partly"),
        (seeds(90, 30, 15, 8), "undecided"),  # the baseline has not learnt
        (seeds(20, 10, 15, 10), "not reproduced"),
        (seeds(20, 10, 25, 12), "not reproduced"),
        (Pair(*(part[:2] for part in seeds(20, 10, 10.5, 9))), "undecided"),  # two trainings
        (seeds(20, 10, 10.5, 9)._replace(fdm_reduced=np.array([5.0, 20, 8, 15, 11])), "undecided"),  # seeds disagree
    ],
)
def test_the_rule_of_costs(pair, verdict):
    assert rules.judge_cost(pair, margin=1.0, floor=2.0)[0] == verdict


@pytest.mark.parametrize(
    ("fdm", "p", "baseline", "p_baseline", "verdict"),
    [
        (Interval(0.8, 0.7, 0.9), 0.01, Interval(1, 0.9, 1.1), 1, "reproduced"),
        (Interval(0.8, 0.7, 0.9), 0.06, Interval(1, 0.9, 1.1), 1, "undecided"),
        (Interval(1, 0.95, 1.1), 1, Interval(0.8, 0.7, 0.9), 0.01, "partly"),
        (Interval(1, 0.95, 1.1), 1, Interval(1, 0.9, 1.1), 1, "not reproduced"),
        (Interval(1.3, 1.2, 1.4), 0.01, Interval(1, 0.9, 1.1), 1, "not reproduced"),
        (Interval(0.98, 0.97, 0.99), 0.01, Interval(1, 0.9, 1.1), 1, "not reproduced"),  # a gain, but of 2 %
        (Interval(0.98, 0.8, 1.1), 1, Interval(1, 0.9, 1.1), 1, "undecided"),
    ],
)
def test_the_rule_of_the_warm_up(fdm, p, baseline, p_baseline, verdict):
    assert rules.judge_warmup(fdm, p, baseline, p_baseline) == verdict


# ----------------------------------------------------------------------------------------------------- analysis


def test_effects_are_those_that_were_put_in(profile):
    table = analysis.effects(profile, measured(profile, noise=0.01)).set_index(["framework", "question", "training"])
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
    fewer = rules.measurements(profile)
    fewer = fewer[fewer["run"] != "vp-baseline-2"]  # seeds are matched by number
    ratio = analysis.effects(profile, fewer).set_index(["framework", "question", "training"])
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


def test_noise_bias_costs_and_the_report_are_of_the_measurements(profile, tmp_path):
    rows = measured(profile)
    bias = analysis.bias(profile, rows).set_index("cell")
    means = rows[(rows["n"] == 300) & (rows["nfe"] == 25) & (rows["duration"] == 1) & (rows["sigma_max"] == 80)]
    means = means[(means["latents"] == 0) & (means["reference"] == 0) & (means["sampler"] == "heun")]
    at = means.groupby("cell")["value"].mean()
    assert bias.loc["vp-baseline", "n → ∞"] == pytest.approx(at["vp-baseline"] - 1)
    assert bias.loc["vp-baseline", "bias at n"] == pytest.approx(1)
    noise = analysis.noise(profile, rows).set_index("cell")
    assert noise.loc["vp-baseline", "SD, latents"] == pytest.approx(0, abs=1e-9)
    spread = means[means["cell"] == "vp-baseline"]["value"].std()
    assert noise.loc["vp-baseline", "SD, trainings"] == pytest.approx(spread)
    costs = analysis.costs(profile, rows, "duration", (1, -1)).set_index(["framework", "baseline's cost"])
    assert costs.loc[("VP", "50%"), "ratio"] == pytest.approx(0.96, rel=0.05)
    assert costs.loc[("VP", "100%"), "published, FFHQ"] == "0.59"
    ratios = analysis.noise_of_ratios(profile, rows).set_index("framework")
    assert ratios.loc["VP", "latents (%)"] == pytest.approx(0, abs=1e-9)
    assert ratios.loc["VP", "ratio"] == pytest.approx(0.96, rel=0.05)
    assert ratios.loc["VP", "trainings (%)"] > 0.1
    spent = analysis.spent(profile, rows)
    assert spent["trainings"] == 130
    folder = profile.results / "tables"
    effects = analysis.effects(profile, rows)
    report.show(effects, folder, "effects", "Effects.", ("p",))
    assert "| p (Holm) |" in (folder / "effects.md").read_text()
    assert "| p |" not in (folder / "effects.md").read_text()
    assert "p" in pd.read_csv(folder / "effects.csv").columns

    (profile.results.parents[1] / "notebooks").mkdir()
    template = profile.results.parents[1] / "notebooks" / "05_report.md"
    values = reproducibility.numbers(effects, costs.reset_index())
    template.write_text("VP: {{effect VP input scaling 100%}}; {{cost VP Heun\n50%}}.\n\n{{table effects}}\n")
    text = reproducibility.write(profile, values).read_text()
    assert text.startswith("VP: 1.")
    assert re.search(r"p [<=] 0\.00", text)
    assert (folder / "effects.md").read_text().rstrip() in text
    template.write_text("{{effect VQ}}")
    with pytest.raises(FdmError, match="asks for effect VQ, which nothing gives"):
        reproducibility.write(profile, values)


def test_claims_of_an_ablation_and_their_table(profile):
    measured(profile, noise=0.01)
    told = rules.claims(profile)
    verdicts = {(each["claim"], each["subject"]): each["verdict"] for each in told["claims"]}
    assert len(verdicts) == 2 + 3 + 6 + 3
    assert verdicts["C3", "EDM"] == "not reproduced"  # a fifth worse, and a fifth better for the warm-up: as good
    assert verdicts["C5", "EDM"] == "reproduced"
    table = report.claims_table(told)
    assert len(table) == len(verdicts)
    assert "five" not in report.scale(told)
    assert "5 trainings of each model" in report.scale(told)


def test_rows_of_the_tables_lead_back_to_cells_seeds_and_checkpoints(profile, capsys):
    rows, folder = measured(profile), profile.results / "tables"
    rows = rows.assign(code="c0de", checkpoint=rows["run"])
    for cell, part in rows.groupby("cell"):
        part.to_csv(profile.results / "runs" / str(cell) / "measurements.csv", index=False)
        about = {"revision": "a" * 40, "started": "2026-01-02", "device": "CPU 9", "seconds": 60.4}
        (profile.results / "provenance").mkdir(exist_ok=True)
        (profile.results / "provenance" / f"{cell}.json").write_text(json.dumps(about))
    tables.write_table(analysis.effects(profile, rows), folder, "effects", "")
    tables.write_table(analysis.cells(profile, rows), folder, "cells", "")
    tables.write_table(analysis.highest_noise(profile, rows), folder, "highest_noise", "")
    tables.write_table(analysis.costs(profile, rows, "nfe", (1, -1)), folder, "costs_nfe", "")

    def explained(name):
        code = main(["explain", name, "--params", "profiles/ablations/params.yaml"])
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    text = explained("effects[VP, warm-up, 100%]")
    for run in ("vp-baseline-warmup-3", "vp-fdm-0", "vp-fdm-warmup-4", "vp-baseline-1"):
        assert f"  {run}, 100% of the training: " in text
        assert f"checkpoint {run}, code c0de" in text
    assert "ratio 0.8" in text
    assert "-s profiles/ablations/dvc.yaml:cell@vp-baseline-warmup " in text
    assert "  vp-fdm: framework vp, kernel fdm, multiplier 2.0\n" in text
    assert "60 s for the seeds 0, 1, 2, 3, 4" in text
    assert "from 5 distances" in explained("cells[edm-fdm-m1,50%]")
    assert "vp-fdm-m4-2, 25% of" in explained("effects[vp,multiplier,m = 4 / 2,25%]")
    assert "effects[vp,multiplier,25%] means several rows; there are vp,multiplier,m=0.5/2,25%" in explained(
        "effects[vp,multiplier,25%]"
    )
    assert "ve-baseline-2, 100% of" in explained("costs_nfe[ve,heun,79]")
    assert "distance" in explained("highest_noise[vp-baseline,20]")
    assert "is no row; there are vp-baseline" in explained("highest_noise[vp-baseline,21]")
    assert "'table9' is no table of" in explained("table9[x]")
    assert "effects[vp,warm-up,100%]" in explained("nonsense")


def test_figures_of_the_ablations_can_be_drawn(profile, tmp_path):
    plots.use_style()
    rows, floor = measured(profile), rules.calibration(profile).iloc[0]
    standard = rules.standard(profile, rows)
    heun = standard[(standard["sampler"] == "heun") & (standard["nfe"] == 25) & (standard["duration"] == 1)]
    plots.save(plots.kernel_by_warmup(heun, floor), tmp_path, "a")
    plots.save(plots.effects(analysis.effects(profile, rows)), tmp_path, "b")
    plots.save(plots.highest_noise(analysis.tops(profile, rows), floor), tmp_path, "c")
    plots.save(plots.noise(analysis.noise(profile, rows)), tmp_path, "d")
    plots.save(plots.bias(analysis.bias(profile, rows), 300), tmp_path, "e")
    assert len(list(tmp_path.glob("*.svg"))) == 5


# ------------------------------------------------------------------------------------------------ what is varied


def test_the_frameworks_own_time_is_the_one_that_its_noise_is_drawn_by():
    sigma = torch.tensor([0.02, 0.5, 20.0, 90.0])
    low, high = SIGMA_RANGE["ve"]
    u = (sigma / low).log() / math.log(high / low)  # sigma = low (high/low)^u
    c = coefficients("ve", "fdm", sigma, 1.0, tau="time").c_in
    torch.testing.assert_close(c, kernels.scale_fdm(u, 1.0))
    t = torch.tensor([0.1, 0.4, 0.9])
    c = coefficients("vp", "fdm", kernels.sigma_vp(t), 2.0, tau="time").c_in
    torch.testing.assert_close(c, kernels.scale_fdm(t, 2.0), rtol=1e-4, atol=1e-7)
    for name in ("time", "sigma"):
        same = coefficients("edm", "fdm", sigma, 2.0, tau=name).c_in
        torch.testing.assert_close(same, kernels.scale_fdm((sigma - 0.002) / (80 - 0.002), 2.0))


# ------------------------------------------------------------------------------------------------------ running


@pytest.fixture
def small(study):
    """An ablation of two cells and two seeds that takes seconds."""
    path = study / "profiles" / "ablations" / "params.yaml"
    values = yaml.safe_load(path.read_text())
    values["training"] |= {"budget_kimg": 0.5, "log_kimg": 0.128, "state_kimg": 0.128}
    values["network"]["model_channels"] = 8
    values["evaluation"] |= {"samples": 16, "batch": 16, "duration_nfe": 3, "nfe": [3], "sigma_max": [10],
                             "samples_noise": 32, "thorough": ["edm-fdm-time"]}  # fmt: skip
    values["cells"] = {
        "edm-fdm-time": {"framework": "edm", "kernel": "fdm", "tau": "time"},
        "ve-fdm-m2": {"framework": "ve", "kernel": "fdm", "multiplier": 2, "ve_multiplier": "as derived"},
    }
    values["seeds"] = [0, 7]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return "profiles/ablations/params.yaml"


def test_a_cell_is_trained_and_scored_with_every_seed_and_goes_on_after_a_failure(small, monkeypatch):
    for stage in ("prepare", "reference"):
        assert main([stage, "--params", small]) == 0
    profile = profiles.load(small)

    def fail(*args):
        raise FdmError("out of luck")

    with monkeypatch.context() as patch, pytest.raises(FdmError, match="out of luck"):
        patch.setattr(evaluation, "evaluate", fail)
        ablations.measure(profile, "edm-fdm-time")
    assert main(["cell", "edm-fdm-time", "--params", small]) == 0
    rows = rules.read(profile.results / "runs" / "edm-fdm-time" / "measurements.csv")
    assert sorted(set(rows["run"])) == ["edm-fdm-time-0", "edm-fdm-time-7"]
    assert set(rows["cell"]) == {"edm-fdm-time"}
    assert set(rows["sigma_max"]) == {10.0, 80.0}
    assert {16, 32, 8} <= set(rows["n"])
    assert set(rows["reference"]) == set(range(5))
    assert rows[rows["duration"] == 1].groupby("run")["checkpoint"].nunique().max() == 1
    assert (profile.results / "provenance" / "edm-fdm-time.json").exists()
    losses = pd.read_csv(profile.results / "runs" / "edm-fdm-time" / "loss.csv")
    assert set(losses["run"]) == set(rows["run"])
    # The same trained alone, by another way.
    alone = profile.build / "alone"
    dataset = data.load(profile.build / "dataset.safetensors")
    ablations.training.train(
        profile, "edm-fdm-time-7", dataset, alone, profile.build / "logs2", profile.build / "work2"
    )
    together = profile.build / "checkpoints" / "edm-fdm-time" / "edm-fdm-time-7" / "100.safetensors"
    assert (alone / "100.safetensors").read_bytes() == together.read_bytes()


def test_an_unknown_cell_is_named(small, capsys):
    assert main(["cell", "vp-fdm", "--params", small]) == 1
    assert "has no cell named vp-fdm; it has edm-fdm-time, ve-fdm-m2." in capsys.readouterr().err
    assert main(["cell", "vp-fdm"]) == 1
    assert "params.yaml has no cell named vp-fdm; it has none." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": [0]}, "seeds: [0] is not allowed; it must be a list of two different numbers or more"),
        ({"seeds": [0, 0]}, "seeds: [0, 0] is not allowed"),
        ({"cells": {"vp-fdm": {"framework": "ve", "kernel": "fdm"}}}, "cells.vp-fdm: the name of a cell begins with"),
        ({"cells": ["vp-fdm"]}, "cells must be a table of tables"),
        ({"runs": {}}, "runs must be absent where there are cells"),
        (
            {"cells": {"vp-fdm": {"framework": "vp", "kernel": "fdm", "seed": 1}}},
            "cells.vp-fdm.seed is not a known key",
        ),
    ],
)
def test_bad_cells_stop_with_one_sentence(small, capsys, changes, sentence):
    path = Path(small)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    assert main(["check", "--params", small]) == 1
    assert f"fdm: {small}: {sentence}" in capsys.readouterr().err
