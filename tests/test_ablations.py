"""The design of the ablations, its statistics and rules, against other methods and made-up measurements."""

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

from fdm import (
    agreement,
    analysis,
    evaluation,
    kernels,
    plots,
    profiles,
    report,
    reproducibility,
    runs,
    statistics,
    tables,
    training,
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


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 3, 2, 5, 7], 0.001), ([1.0, 3, 2, 5, 7], 1.1), ([1.0, 3, 3, 3, 4], 0.075), ([-2.0, -1, 0, 1, 2], 0.112)],
)
def test_intervals_are_the_same_in_every_unit(values, scale):
    """Of a resample of one seed, or of seeds with equal values, there is no t, whatever rounding leaves as spread."""
    expected = np.array(statistics.mean(np.array(values))) * scale
    np.testing.assert_allclose(statistics.mean(np.array(values) * scale), expected, rtol=1e-9, atol=1e-12)


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


def test_noise_bias_and_costs_are_of_the_measurements(profile):
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


def test_the_prose_takes_its_numbers_from_the_tables_on_record(profile):
    rows, folder = measured(profile), profile.results / "tables"
    made = {
        "effects": analysis.effects(profile, rows), "highest_noise": analysis.highest_noise(profile, rows),
        "noise": analysis.noise(profile, rows), "bias": analysis.bias(profile, rows),
        "costs_training": analysis.costs(profile, rows, "duration", (1, -1)),
        "costs_nfe": analysis.costs(profile, rows, "nfe", (1, -1)),
    }  # fmt: skip
    for name, table in made.items():
        tables.write_table(table, folder, name, "")
    report.show_claims(profile, folder)
    values = reproducibility.numbers(profile)
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
    differs = rules.claims(profile)["claims"][2]["numbers"]["difference from baseline, full"]["FDM, reduced"]
    assert values["difference C3 VP"].startswith(f"{differs['value']:.0f} [")
    assert values["verdict C3 VP"] == "not reproduced"

    notebooks = profile.results.parents[1] / "notebooks"
    notebooks.mkdir()
    template = notebooks / "05_report.md"
    template.write_text("VP: {{effect VP input scaling 100%}}; {{cost VP Heun\n50%}}.\n\n{{table effects}}\n")
    text = reproducibility.write(profile, values).read_text()
    assert text.startswith(f"VP: {values['effect VP input scaling 100%']}; {values['cost VP Heun 50%']}.")
    assert (folder / "effects.md").read_text().rstrip() in text
    template.write_text("{{effect VQ}}")
    with pytest.raises(FdmError, match="asks for effect VQ, which nothing gives"):
        reproducibility.write(profile, values)
    tables.write_table(made["effects"].assign(ratio=2.0), folder, "effects", "")
    assert reproducibility.numbers(profile)["ratio VP input scaling 100%"].startswith("2.00 [")


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
    rows = rows.assign(experiment="e0e0", checkpoint=rows["run"])
    for cell, part in rows.groupby("cell"):
        part.to_csv(profile.results / "runs" / str(cell) / "measurements.csv", index=False)
        about = {"revision": "a" * 40, "started": "2026-01-02", "device": "CPU 9", "training_seconds": 60.4}
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
        assert f"checkpoint {run}, experiment e0e0" in text
    assert "ratio 0.8" in text
    folders = "build/ablations/checkpoints/vp-baseline-warmup-3 build/ablations/scores/vp-baseline-warmup-3.json"
    assert re.search(rf"\n  rm -rf .*{folders}.*\n  dvc repro -f -s profiles/ablations/dvc.yaml:train ", text)
    assert "  vp-fdm: framework vp, kernel fdm, multiplier 2.0\n" in text
    assert "60 s of training, seeds 0, 1, 2, 3, 4" in text
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
    values["evaluation"] |= {"samples": 16, "batch": 150, "duration_nfe": 3, "nfe": [3], "sigma_max": [10],
                             "samples_noise": 32, "thorough": ["edm-fdm-time"]}  # fmt: skip
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
    """What is trained and measured from now on, by any process: "_loop" or "_measure" and the run, in that order."""
    path = tmp_path / "computed"
    path.touch()

    def note(module, name):
        real = getattr(module, name)

        def call(profile, run, *args):
            with path.open("a") as file:
                file.write(f"{name} {run}\n")
            real(profile, run, *args)

        monkeypatch.setattr(module, name, call)

    note(training, "_loop")
    note(evaluation, "_measure")

    def since() -> list[str]:
        lines = path.read_text().splitlines()
        path.write_text("")
        return lines

    return since


def on_record(profile) -> dict[str, bytes]:
    """What is committed of a profile."""
    return {str(p.relative_to(profile.results)): p.read_bytes() for p in profile.results.rglob("*") if p.is_file()}


def out_of_luck(real, run):
    """A function like `real` that fails for one run."""

    def call(profile, name, *args):
        if name == run:
            raise FdmError("out of luck")
        return real(profile, name, *args)

    return call


@pytest.mark.parametrize("at_once", [1, 2])
def test_cells_are_trained_and_scored_with_every_seed_and_go_on_after_a_failure(
    prepared, monkeypatch, computed, at_once
):
    """Two runs at once, or one after another, to the same bits as a run trained alone."""
    profile, (first, second, third, fourth) = prepared, prepared.runs
    monkeypatch.setattr(runs, "at_once", lambda *_: at_once)
    with monkeypatch.context() as patch, pytest.raises(FdmError, match="out of luck"):
        patch.setattr(training, "train", out_of_luck(training.train, third))
        runs.train(profile)
    done = computed()
    assert {f"_loop {first}", f"_loop {second}"} <= set(done)
    assert f"_loop {third}" not in done
    losses = runs.train(profile)
    assert sorted(done + computed()) == sorted(f"_loop {run}" for run in profile.runs)  # each once
    with monkeypatch.context() as patch, pytest.raises(FdmError, match="out of luck"):
        patch.setattr(evaluation, "evaluate", out_of_luck(evaluation.evaluate, third))
        runs.evaluate(profile)
    done = computed()
    rows = runs.evaluate(profile)
    assert sorted(done + computed()) == sorted(f"_measure {run}" for run in profile.runs)

    assert list(losses.columns) == ["run", "experiment", "images", "loss", "lr"]
    assert list(losses["run"].unique()) == list(rows["run"].unique()) == [first, second, third, fourth]
    assert losses.groupby("run")["experiment"].nunique().max() == 1
    assert losses["experiment"].nunique() == 4
    thorough = rules.read(profile.results / "runs" / "edm-fdm-time" / "measurements.csv")
    assert sorted(set(thorough["run"])) == ["edm-fdm-time-0", "edm-fdm-time-7"]
    assert set(thorough["cell"]) == {"edm-fdm-time"}
    assert set(thorough["sigma_max"]) == {10.0, 80.0}
    assert {16, 32, 8} <= set(thorough["n"])
    assert set(thorough["reference"]) == set(range(5))
    assert thorough[thorough["duration"] == 1].groupby("run")["checkpoint"].nunique().max() == 1
    assert set(rows[rows["cell"] == "ve-fdm-m2"]["reference"]) == {0}
    assert len(rows) == len(rules.measurements(profile)) > len(thorough)
    told = json.loads((profile.results / "provenance" / "edm-fdm-time.json").read_text())
    assert told["part"] == "edm-fdm-time"
    assert told["training_seconds"] > 0
    # The same trained alone, by another way.
    alone = Path("alone", "checkpoints")
    training.train(profile, second, runs.dataset_of(profile), alone, Path("alone", "logs"), Path("alone", "work"))
    together = runs.checkpoints_of(profile, second)
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
    assert "training losses: 2 of 2 agree with results/ablations/training, left as it is\n" in said
    assert "measurements: 2 of 2 agree with results/ablations/runs, left as it is\n" in said

    # Another machine rounds otherwise, and its weights have other hashes; what it wrote is of the same experiment.
    path, lost = profile.results / "runs" / "ve-fdm-m2" / "measurements.csv", profile.results / "training"
    elsewhere = rules.read(path)
    elsewhere["value"] *= 1 + 1e-9
    elsewhere["checkpoint"] = "0123456789ab"
    elsewhere.to_csv(path, index=False)
    theirs = on_record(profile)
    other = rules.read(lost / "ve-fdm-m2.csv")
    other.assign(loss=other["loss"] * 1.001).to_csv(lost / "ve-fdm-m2.csv", index=False)
    (lost / "vp-gone.csv").touch()  # a cell that the profile no longer has
    (profile.results / "runs" / "vp-gone").mkdir()
    theirs["training/ve-fdm-m2.csv"] = (lost / "ve-fdm-m2.csv").read_bytes()
    assert runs.train(profile)["loss"].tolist() != losses["loss"].tolist()
    pd.testing.assert_frame_equal(runs.evaluate(profile).tail(len(elsewhere)), elsewhere)
    assert on_record(profile) == theirs
    assert not (profile.results / "runs" / "vp-gone").exists()
    here = rules.read(runs.here(profile, "ve-fdm-m2") / "measurements.csv")
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
    assert set(rules.read(path)["experiment"]) == {name}
    assert agreement.losses(path, here)
    assert not agreement.losses(path, here.assign(experiment=other))


def test_one_more_cell_is_computed_alone(finished, computed):
    profile, before = finished, on_record(finished)
    path = Path(profile.params_file)
    values = yaml.safe_load(path.read_text())
    values["cells"]["ve-fdm-m4"] = values["cells"]["ve-fdm-m2"] | {"multiplier": 4}
    del values["cells"]["edm-fdm-time"]
    values["evaluation"]["thorough"] = []
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    other = profiles.load(profile.params_file)
    runs.train(other)
    assert sorted(computed()) == ["_loop ve-fdm-m4-0", "_loop ve-fdm-m4-7"]
    runs.evaluate(other)
    assert sorted(computed()) == ["_measure ve-fdm-m4-0", "_measure ve-fdm-m4-7"]
    after = on_record(other)
    assert {name for name in after if name not in before} == {
        "training/ve-fdm-m4.csv", "runs/ve-fdm-m4/measurements.csv", "provenance/ve-fdm-m4.json"
    }  # fmt: skip
    assert not [name for name in after if name in before and after[name] != before[name]]
    assert "runs/edm-fdm-time/measurements.csv" not in after
    assert not runs.checkpoints_of(other, "edm-fdm-time-0").exists()


def test_a_run_whose_process_is_killed_is_a_sentence_and_what_was_finished_is_kept(prepared, monkeypatch, computed):
    profile, (first, second, third, _) = prepared, prepared.runs
    monkeypatch.setattr(runs, "at_once", lambda *_: 2)
    real = training.train

    def killed(profile, name, *args):
        if name == third:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(profile, name, *args)

    with monkeypatch.context() as patch, pytest.raises(FdmError, match="was killed, for want of memory perhaps; what"):
        patch.setattr(training, "train", killed)
        runs.train(profile)
    kept = [run for run in (first, second) if (runs.checkpoints_of(profile, run) / "100.safetensors").exists()]
    assert kept
    computed()
    runs.train(profile)
    assert not set(computed()) & {f"_loop {run}" for run in kept}


@pytest.mark.parametrize(("cores", "threads", "expected"), [(1, 1, 1), (2, 1, 2), (8, 1, 4), (8, 3, 1), (2, 3, 1)])
def test_as_many_runs_are_computed_at_once_as_there_are_cores_for_their_threads(
    small, monkeypatch, cores, threads, expected
):
    profile = profiles.load(small).model_copy(update={"threads": threads})
    monkeypatch.setattr(runs.compute, "device", lambda: "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert runs.at_once(profile, processes=1) == expected
    assert runs.at_once(profile, processes=2) == 1  # these share the cores themselves
    monkeypatch.setattr(runs.compute, "device", lambda: "cuda")
    assert runs.at_once(profile, processes=1) == 1


def test_source_that_is_changed_while_it_computes_names_no_result(prepared, monkeypatch):
    real = training.train

    def train(*args):
        trained = real(*args)
        path = Path("fdm/losses.py")
        path.write_text(path.read_text() + "# another\n")
        return trained

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(runs, "at_once", lambda *args: 1)
    with pytest.raises(FdmError, match=r"The source in fdm/ has changed while it computed; run dvc repro again"):
        runs.train(prepared)
    assert list(prepared.build.glob("checkpoints/*/100.safetensors"))
    assert not list(prepared.build.glob("checkpoints/*/experiment.json"))  # so it is trained again


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
