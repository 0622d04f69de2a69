"""Tables and verdicts from made-up measurements, and the published numbers as the paper has them."""

import itertools

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from fdm import evaluation, plots, report
from fdm import study as tables
from fdm.errors import FdmError
from fdm.profiles import find


@pytest.fixture
def profile(study):
    """The default profile with measurements whose value tells their place: 1000 model + 100 duration + NFE/100."""
    profile = find("digits")
    models = {name: index for index, name in enumerate(profile.runs, 1)}
    for name, run in profile.runs.items():
        rows = []
        for share, sampler, nfe in evaluation.settings(profile):
            value = 1000 * models[name] + 100 * share + nfe / 100 + (0.5 if sampler != "heun" else 0)
            context = dict(zip(evaluation.CONTEXT, [profile.profile, "digits", name, run.framework, run.kernel, 0,
                                                    share, 60 * share, sampler, nfe], strict=True))  # fmt: skip
            for metric in ("FD(EfficientNet-Lite0)", "KID", "precision", "recall"):
                rows.append(context | {"metric": metric, "value": value, "n": 500, "n_reference": 898})
        folder = profile.results / "runs" / name
        (folder / "training" / "plots" / "metrics").mkdir(parents=True)
        pd.DataFrame(rows).to_csv(folder / "measurements.csv", index=False)
        loss = pd.DataFrame({"step": [1000, 2000], "loss": [2.0, 1.0]})
        loss.to_csv(folder / "training" / "plots" / "metrics" / "loss.tsv", sep="\t", index=False)
        rng = np.random.default_rng(0)
        grid = rng.integers(0, 256, (64, 1, 8, 8)).astype(np.uint8)
        path = rng.normal(size=(14, 1, 8, 8)).astype(np.float32)
        save_file({"grid": grid, "trajectory": path}, folder / "pictures.safetensors")
    floor = {"metric": ["FD(EfficientNet-Lite0)"], "value": [6.0], "low": [5.0], "high": [8.0], "n": [500],
             "n_reference": [898]}  # fmt: skip
    pd.DataFrame(floor).to_csv(profile.results / "calibration.csv", index=False)
    return profile


def cell(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def test_table_1_has_every_measurement_in_its_place_and_the_papers_beside(profile):
    table = tables.table1(profile)
    assert list(table.columns[5:]) == ["VP", "VP-FDM", "VE", "VE-FDM", "EDM", "EDM-FDM", "Real"]
    assert list(table["source"]) == ["measured"] * 4 + ["calibration"] + ["published"] * 12
    half = cell(table, source="measured", training="50% (30 kimg)")
    assert half["VE-FDM"].item() == pytest.approx(4050.25)
    assert half["n"].item() == 500
    assert cell(table, source="calibration")["Real"].item() == 6
    assert cell(table, source="calibration")[tables.COLUMNS].isna().all(axis=None)
    paper = cell(table, source="published", data="FFHQ", training="25% (50 Mimg)")
    assert paper["VP-FDM"].item() == 12.49
    assert paper["metric"].item() == "FID"
    assert cell(table, source="published")["Real"].isna().all()


@pytest.mark.parametrize(("number", "expected", "paper"), [(2, 6100.49, 1.93), (3, 6100.99, 1.98)])
def test_tables_2_and_3(profile, number, expected, paper):
    table = tables.table_nfe(profile, number)
    assert list(cell(table, source="measured")["NFE"]) == [25, 49, 79]
    assert cell(table, source="measured", NFE=49)["EDM-FDM"].item() == pytest.approx(expected)
    assert cell(table, source="published", NFE=49)["EDM-FDM"].item() == paper


def test_every_published_number_is_in_the_tables(profile):
    for number, table in [
        (1, tables.table1(profile)),
        (2, tables.table_nfe(profile, 2)),
        (3, tables.table_nfe(profile, 3)),
    ]:
        mine = cell(table, source="published")[tables.COLUMNS].to_numpy().ravel()
        assert sorted(mine) == sorted(tables.published(number)["fid"])


def test_tables_are_written_in_three_forms_with_empty_cells_where_nothing_was_measured(profile, tmp_path):
    (profile.results / "runs" / "ve-fdm-0" / "measurements.csv").unlink()
    with pytest.raises(FdmError, match="is missing; run dvc repro to measure it"):
        tables.table1(profile)
    without = profile.model_copy(update={"runs": {k: v for k, v in profile.runs.items() if k != "ve-fdm-0"}})
    table = tables.table1(without)
    assert cell(table, source="measured")["VE-FDM"].isna().all()
    tables.write_table(table, tmp_path, "table1", "A caption with 50 %.")
    back = pd.read_csv(tmp_path / "table1.csv")
    assert back["VE-FDM"].isna().sum() == 5
    lines = (tmp_path / "table1.md").read_text().splitlines()
    assert lines[0] == "A caption with 50 %."
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert "nan" not in "\n".join(lines).lower()
    tex = (tmp_path / "table1.tex").read_text()
    assert r"25\% (15 kimg)" in tex
    assert r"50 \%" in tex


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ((10, 10, 5, 5), "undecided"),  # the baseline does as well at the reduced cost
        ((20, 10, 10.5, 9), "reproduced"),
        ((20, 10, 15, 8), "partly"),
        ((90, 30, 15, 8), "undecided"),  # the baseline has not learnt
        ((20, 10, 15, 10), "not reproduced"),
        ((20, 10, 25, 12), "not reproduced"),
    ],
)
def test_the_rule_of_the_verdicts(numbers, verdict):
    assert tables.judge(*numbers, margin=1.0, floor=2.0) == verdict


def test_verdicts_compare_the_costs_that_they_name(profile):
    table = tables.verdicts(profile)
    assert len(table) == 6
    row = cell(table, claim="C3 half the training", framework="VP")
    assert row["baseline, reduced"].item() == pytest.approx(1050.25)
    assert row["FDM, full"].item() == pytest.approx(2100.25)
    assert row["margin"].item() == 1.5
    row = cell(table, claim="C4 a third of the steps", framework="EDM")
    assert row["baseline, reduced"].item() == pytest.approx(5100.25)
    assert row["baseline, full"].item() == pytest.approx(5100.79)
    only = profile.model_copy(update={"runs": {"vp-fdm-0": profile.runs["vp-fdm-0"]}})
    assert tables.verdicts(only).empty


def test_reports_and_figures_are_the_same_bytes_each_time(profile, tmp_path):
    plots.use_style()
    rows, floor = tables.measurements(profile), tables.calibration(profile).iloc[0]
    pictures = report.pictures(profile)
    figures = {
        "duration": lambda: plots.quality_by_duration(rows, floor, 25),
        "nfe": lambda: plots.quality_by_nfe(rows, floor),
        "loss": lambda: plots.loss_curves(tables.losses(profile)),
        "samples": lambda: plots.sample_grids({model: part["grid"] for model, part in pictures.items()}),
        "paths": lambda: plots.trajectories({model: part["trajectory"] for model, part in pictures.items()}),
    }
    for (name, draw), again in itertools.product(figures.items(), "ab"):
        plots.save(draw(), tmp_path / again, name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    report.write_plots(profile, rows, tables.losses(profile))
    curve = pd.read_csv(profile.results / "plots" / "quality_by_nfe.csv")
    assert list(curve["nfe"]) == sorted(profile.evaluation.nfe)
    levels = report.noise_levels(profile, "edm-fdm-0")
    assert levels["sigma"].is_monotonic_increasing


def test_a_damaged_measurement_is_named(profile):
    (profile.results / "runs" / "vp-fdm-0" / "measurements.csv").write_bytes(b"")
    with pytest.raises(FdmError, match=r"vp-fdm-0/measurements.csv is damaged .* measure it again"):
        tables.measurements(profile)
    (profile.results / "runs" / "vp-fdm-0" / "pictures.safetensors").write_bytes(b"1")
    with pytest.raises(FdmError, match=r"pictures.safetensors is missing or damaged"):
        report.pictures(profile)
