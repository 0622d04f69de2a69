"""Tables and verdicts from made-up measurements, and the published numbers as the paper has them."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from fdm import agreement, evaluation, plots, report, statistics, tables
from fdm import study as measured_study
from fdm.errors import FdmError
from fdm.profiles import find

pytestmark = pytest.mark.slow


def measured(profile, metric="FD(EfficientNet-Lite0)", kimg=60):
    """The profile with measurements whose value tells their place: 1000 model + 100 duration + NFE/100."""
    models = {name: index for index, name in enumerate(profile.runs, 1)}
    for name, run in profile.runs.items():
        rows = []
        for share, sampler, nfe, *_ in evaluation.settings(profile, name):
            value = 1000 * models[name] + 100 * share + nfe / 100 + (0.5 if sampler != "heun" else 0)
            values = [profile.profile, profile.dataset.name, name, run.framework, run.kernel, run.seed, share,
                      kimg * share, sampler, nfe, 80.0, 0, 0]  # fmt: skip
            context = dict(zip(evaluation.CONTEXT, values, strict=True))
            for key in (metric, "KID", "precision", "recall"):
                rows.append(
                    context | {"metric": key, "value": value, "n": profile.evaluation.samples, "n_reference": 898}
                )
        folder = profile.results / "runs" / name
        folder.mkdir(parents=True)
        pd.DataFrame(rows).to_csv(folder / "measurements.csv", index=False)
        if profile.training:
            (profile.results / "training").mkdir(exist_ok=True)
            last = models[name] / 10
            loss = {"run": name, "experiment": "0", "images": [1000, 2000], "loss": [2.0, last], "lr": [0.1, 0.2]}
            pd.DataFrame(loss).to_csv(profile.results / "training" / f"{name}.csv", index=False)
        rng = np.random.default_rng(0)
        grid = rng.integers(0, 256, (64, 1, 8, 8)).astype(np.uint8)
        path = rng.normal(size=(14, 1, 8, 8)).astype(np.float32)
        save_file({"grid": grid, "trajectory": path}, folder / "pictures.safetensors")
    floor = {"metric": [metric], "value": [6.0], "low": [5.0], "high": [8.0], "n": [500],
             "n_reference": [898]}  # fmt: skip
    pd.DataFrame(floor).to_csv(profile.results / "calibration.csv", index=False)
    return profile


@pytest.fixture
def profile(study):
    return measured(find("digits"))


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
    assert half["n"].item() == 300
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
        assert sorted(mine) == sorted(measured_study.published(number)["fid"])


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


def test_one_training_of_each_model_decides_nothing_but_formulas(profile):
    told = measured_study.claims(profile)
    verdicts = {(each["claim"], each["subject"]): each for each in told["claims"]}
    assert len(verdicts) == 2 + 3 + 6
    assert verdicts["C1", "formula"]["verdict"] == "reproduced"
    assert verdicts["C2", "formula"]["verdict"] == "partly"
    assert {each["verdict"] for each in told["claims"][2:]} == {"undecided"}
    numbers = verdicts["C3", "VP"]["numbers"]
    assert numbers["mean"]["baseline, reduced"] == pytest.approx(1050.25)
    assert numbers["mean"]["FDM, full"] == pytest.approx(2100.25)
    assert numbers["margin"] == 1.5
    numbers = verdicts["C4", "EDM, Heun"]["numbers"]
    assert numbers["mean"]["baseline, reduced"] == pytest.approx(5100.25)
    assert numbers["mean"]["baseline, full"] == pytest.approx(5100.79)
    only = profile.model_copy(update={"runs": {"vp-fdm-0": profile.runs["vp-fdm-0"]}})
    assert {each["claim"] for each in measured_study.claims(only)["claims"]} == {"C1", "C2"}
    report.show_claims(profile, profile.results / "tables")
    kept = json.loads((profile.results / "claims.json").read_text(), parse_constant=pytest.fail)
    assert kept == agreement.rounded_value(told)
    assert "| C3 " in (profile.results / "tables" / "verdicts.md").read_text()


def test_reports_and_figures_are_the_same_bytes_each_time(profile, tmp_path):
    plots.use_style()
    rows, floor = measured_study.measurements(profile), measured_study.calibration(profile).iloc[0]
    pictures = report.pictures(profile)
    figures = {
        "duration": lambda: plots.quality_by_duration(rows, floor, 25),
        "nfe": lambda: plots.quality_by_nfe(rows, floor),
        "loss": lambda: plots.loss_curves(measured_study.losses(profile)),
        "samples": lambda: plots.sample_grids({model: part["grid"] for model, part in pictures.items()}),
        "paths": lambda: plots.trajectories({model: part["trajectory"] for model, part in pictures.items()}),
    }
    for (name, draw), again in itertools.product(figures.items(), "ab"):
        plots.save(draw(), tmp_path / again, name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    report.write_plots(profile, rows, measured_study.losses(profile))
    curve = pd.read_csv(profile.results / "plots" / "quality_by_nfe.csv")
    assert list(curve["nfe"]) == sorted(profile.evaluation.nfe)


def test_what_differs_by_rounding_alone_is_left_as_it_is_and_all_else_is_written(profile, tmp_path):
    """Tables for people and figures follow the record, so that no rounded digit differs from it."""
    plots.use_style()
    rows, floor = measured_study.measurements(profile), measured_study.calibration(profile).iloc[0]
    folder, losses = profile.results / "tables", measured_study.losses(profile)

    def write(factor):
        some = rows.assign(value=rows["value"] * factor)
        table = pd.DataFrame({"model": ["a", "b"], "FD": [1.005 * factor, 20.0], "p": [0.0005 * factor, 1.0]})
        tables.write_table(table, folder, "table", "Numbers whose rounding is close.")
        plots.save(plots.quality_by_nfe(some, floor), folder, "figure")
        report.write_plots(profile, some, losses)
        files = [*folder.iterdir(), *(profile.results / "plots").iterdir()]
        return {path.name: path.read_bytes() for path in files}

    first = write(1 - 1e-9)
    assert b"| 1.00 |" in first["table.md"]
    assert write(1 + 1e-9) == first
    other = write(1.01)
    assert {name for name in first if other[name] == first[name]} == {"loss.csv"}
    report.show_claims(profile, folder)
    claims = profile.results / "claims.json"
    told = claims.read_text()
    claims.write_text(told.replace('"margin": 1.5', '"margin": 1.5000000001'))
    report.show_claims(profile, folder)
    assert '"margin": 1.5000000001' in claims.read_text()
    claims.write_text(told.replace('"verdict": "partly"', '"verdict": "reproduced"'))
    report.show_claims(profile, folder)
    assert claims.read_text() == told


def test_the_notebooks_tables_of_losses_levels_and_distances(profile):
    levels = report.noise_levels(profile).set_index(["model", "draws below"])
    assert len(levels) == 6 * 3
    for _, part in levels.groupby("model"):
        assert part["sigma"].is_monotonic_increasing
    assert levels.loc[("EDM", "50 %"), "sigma"] == pytest.approx(math.exp(-1.2), rel=0.02)
    assert levels.loc["EDM", "input"].tolist() == pytest.approx([1, 1, 1])  # c_in of EDM keeps the variance
    losses = measured_study.losses(profile)
    assert list(losses["run"].unique()) == list(profile.runs)
    assert set(losses.columns) >= {"images", "loss", "lr", "framework", "kernel", "seed"}
    ends = report.losses(profile, losses)
    assert ends.loc["edm-fdm-0"].to_dict() == {"loss at 1 kimg": 2.0, "loss at 2 kimg": 0.6}
    rows = measured_study.measurements(profile)
    by_metric = report.by_metric(profile, rows)
    assert list(by_metric.index) == list(profile.runs)
    assert by_metric.loc["ve-fdm-0", "KID"] == pytest.approx(4100.25)
    floors = report.in_floors(profile, rows)
    assert list(floors.columns) == ["25%", "50%", "75%", "100%"]
    assert floors.loc["ve-fdm-0", "50%"] == round(4050.25 / 6, 2)


def test_a_damaged_measurement_is_named(profile):
    (profile.results / "runs" / "vp-fdm-0" / "measurements.csv").write_bytes(b"")
    with pytest.raises(FdmError, match=r"vp-fdm-0/measurements.csv is damaged .* measure it again"):
        measured_study.measurements(profile)
    (profile.results / "training" / "vp-fdm-0.csv").unlink()
    with pytest.raises(FdmError, match=r"training/vp-fdm-0.csv is missing; run dvc repro"):
        measured_study.losses(profile)
    (profile.results / "runs" / "vp-fdm-0" / "pictures.safetensors").write_bytes(b"1")
    with pytest.raises(FdmError, match=r"pictures.safetensors is missing or damaged"):
        report.pictures(profile)


def test_the_cost_of_equal_quality_is_where_the_curves_say():
    cost = [50, 100, 200]
    # FDM's curve is the baseline's at twice the speed, on straight lines in the logarithms: half the cost.
    baseline, fdm = [8 / c for c in cost], [4 / c for c in cost]
    share, known = statistics.share_of_cost(cost, baseline, fdm)
    assert share == pytest.approx(0.5)
    assert known == "="
    assert statistics.share_of_cost(cost, baseline, baseline) == (pytest.approx(1.0), "=")
    assert statistics.share_of_cost(cost, [3, 2, 1], [1, 1, 1]) == (0.25, "at most")
    share, known = statistics.share_of_cost(cost, [3, 2, 1], [4, 3, 2])
    assert math.isnan(share)
    assert known == "never"


def test_the_published_tables_arithmetic():
    costs = tables.published_costs().set_index(["table", "data", "framework"])
    assert len(costs) == 9 + 3 + 3
    # EDM on AFHQv2: 2.37 lies between 2.73 at 50 and 2.05 at 100 Mimg.
    by_hand = 50 * 2 ** (math.log(2.73 / 2.37) / math.log(2.73 / 2.05)) / 200
    assert costs.loc[(1, "AFHQv2", "EDM"), "share"] == pytest.approx(by_hand)
    assert (costs.loc[[2, 3], "share"] == 25 / 79).all()
    growth = tables.published_loss_by_nfe()
    assert growth.loc[(2, "edm"), "baseline"] == pytest.approx(2.78 / 2.37)


def test_published_cells_stand_beside_what_was_measured_for_them(study):
    profile = measured(find("published-checkpoints"), "FID", kimg=200_000)
    table = tables.beside(profile)
    # Table 1 has four durations and only the last was measured; Tables 2 and 3 have three NFE, all measured.
    assert len(table) == 6 * (4 + 3 + 3)
    assert table["measured"].notna().sum() == 6 * (1 + 3 + 3)
    one = cell(table[table["table"] == 1], model="EDM-FDM", training=200)
    assert (one["published"].item(), one["measured"].item()) == (1.93, pytest.approx(6000 + 100 + 0.79))
    assert one["difference"].item() == pytest.approx(6100.79 - 1.93)
    assert cell(table[table["table"] == 1], model="EDM-FDM", training=50)["measured"].isna().all()
    three = cell(table[table["table"] == 3], model="VP", NFE=25)
    assert (three["published"].item(), three["measured"].item()) == (2.99, pytest.approx(1000 + 100 + 0.75))
    report.show_beside(profile, profile.results / "tables")
    assert "| 2 | VE | 200.00 | heun | 49 | 57.59 | 3100.49 |" in (profile.results / "tables" / "beside.md").read_text()


def test_of_published_networks_there_are_verdicts_on_steps_alone_and_no_losses(study):
    profile = measured(find("published-checkpoints"), "FID", kimg=200_000)
    claims = [each["claim"] for each in measured_study.claims(profile)["claims"]]
    assert claims == ["C1", "C2", *["C4"] * 6]
    assert measured_study.losses(profile).empty
    report.write_plots(profile, measured_study.measurements(profile), measured_study.losses(profile))


def test_other_data_than_the_papers_have_no_published_cell(profile, capsys):
    assert tables.beside(profile).empty
    report.show_beside(profile, profile.results / "tables")
    assert not (profile.results / "tables" / "beside.csv").exists()
