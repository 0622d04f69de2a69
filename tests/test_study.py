"""Tables and verdicts from made-up measurements, and the published numbers as the paper has them."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from safetensors.numpy import save_file

from fdm.files import FdmError
from fdm.study import (
    agreement,
    claims,
    figures,
    intervals,
    measure,
    measurements,
    profiles,
    published,
    show,
    tables,
)
from fdm.study.profiles import find

pytestmark = pytest.mark.slow

PLACES = {"heun": 0, "dpm-solver++": 0.5, "ddim": 2, "s-pndm": 3, "f-pndm": 4}


def measured(profile, metric="FD(EfficientNet-Lite0)", kimg=60):
    """The profile with measurements whose value tells their place.

    It is 1000 model + 100 duration + NFE/100, and a sampler's place; another quarter where the sampler has options.
    """
    cells = {name: index for index, name in enumerate(profile.cells, 1)}
    for name, index in cells.items():
        (run,) = profile.runs_of(name)
        about, rows = profile.run(run), []
        for setting in measure.settings(profile, run):
            share, sampler, nfe = setting.duration, setting.sampler, setting.nfe
            value = 1000 * index + 100 * share + nfe / 100 + PLACES[sampler] + (0.25 if setting.options else 0)
            context = {
                "cell": name, "profile": profile.profile, "dataset": profile.dataset.name, "run": run,
                "framework": about.framework, "kernel": about.kernel, "seed": about.seed, "duration": share,
                "kimg": kimg * share, "sampler": sampler, "options": setting.text, "nfe": nfe, "sigma_max": 80.0,
                "latents": 0, "reference": 0,
            }  # fmt: skip
            assert tuple(context) == measure.CONTEXT
            for key in (metric, "KID", "precision", "recall"):
                rows.append(
                    context | {"metric": key, "value": value, "n": profile.evaluation.samples, "n_reference": 898}
                )
        folder = profile.recorded(name)
        folder.mkdir(parents=True)
        pd.DataFrame(rows).to_csv(folder / "measurements.csv", index=False)
        if run in profile.trained:
            (profile.results / "training").mkdir(exist_ok=True)
            loss = {"run": run, "experiment": "0", "images": [1000, 2000], "loss": [2.0, index / 10], "lr": [0.1, 0.2]}
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


def reduced(profile, wanted):
    """The profile with some of its cells alone."""
    path = Path(profile.params_file)
    values = yaml.safe_load(path.read_text())
    values["cells"] = {name: cell for name, cell in values["cells"].items() if wanted(name)}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return profiles.load(path)


def cell(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def test_table_1_has_every_measurement_in_its_place_and_the_papers_beside(profile):
    table = tables.by_training(profile)
    assert list(table.columns[5:]) == ["VP", "VP-FDM", "VE", "VE-FDM", "EDM", "EDM-FDM", "Real"]
    assert list(table["source"]) == ["measured"] * 4 + ["calibration"] + ["published"] * 12
    half = cell(table, source="measured", training="50% (30 kimg)")
    assert half["VE-FDM"].item() == pytest.approx(4050.25)
    assert half["n"].item() == 800
    assert cell(table, source="calibration")["Real"].item() == 6
    assert cell(table, source="calibration")[tables.COLUMNS].isna().all(axis=None)
    paper = cell(table, source="published", data="FFHQ", training="25% (50 Mimg)")
    assert paper["VP-FDM"].item() == 12.49
    assert paper["metric"].item() == "FID"
    assert cell(table, source="published")["Real"].isna().all()


@pytest.mark.parametrize(("number", "expected", "paper"), [(2, 6100.49, 1.93), (3, 6100.99, 1.98)])
def test_tables_2_and_3(profile, number, expected, paper):
    table = tables.by_nfe(profile, number)
    assert list(cell(table, source="measured")["NFE"]) == [25, 49, 79]
    assert cell(table, source="measured", NFE=49)["EDM-FDM"].item() == pytest.approx(expected)
    assert cell(table, source="published", NFE=49)["EDM-FDM"].item() == paper


def test_every_sampler_is_in_a_table_with_its_options(profile):
    table = tables.by_sampler(profile)
    assert list(table.columns) == ["Sampler", "NFE", *tables.COLUMNS]
    assert {name: list(part["NFE"]) for name, part in table.groupby("Sampler", sort=False)} == {
        "Heun": [5, 11, 17, 25, 49, 79], "DPM-Solver++": [5, 11, 17, 25, 49, 79], "DDIM": [5, 11, 25],
        "DDIM, eta = 1": [25], "S-PNDM": [5, 11, 25], "F-PNDM": [17, 25],
    }  # fmt: skip
    assert cell(table, Sampler="DDIM", NFE=25)["VP"].item() == pytest.approx(1102.25)
    assert cell(table, Sampler="DDIM, eta = 1", NFE=25)["VP"].item() == pytest.approx(1102.5)
    assert cell(table, Sampler="F-PNDM", NFE=17)["EDM-FDM"].item() == pytest.approx(6104.17)
    show.show_samplers(profile, profile.results / "tables")
    assert "| DDIM, eta = 1 | 25 | 1102.50 |" in (profile.results / "tables" / "samplers.md").read_text()


def test_what_is_no_model_of_the_paper_is_in_no_table_of_its_models(study):
    """An exact denoiser, and a network that was trained on: they are measured, and the floors show them."""
    profile = measured(find("smoke"))
    assert measurements.models(profile) == ["ve-baseline", "edm-fdm"]
    assert set(measurements.table(profile)["cell"]) == set(profile.cells)
    for table in (tables.by_training(profile), tables.by_nfe(profile, 2), tables.by_sampler(profile)):
        mine = (cell(table, source="measured") if "source" in table else table).dropna(axis=1, how="all")
        assert set(mine.columns) & set(tables.COLUMNS) == {"VE", "EDM-FDM"}
        assert (mine["VE"] // 1000 == 1).all()
        assert (mine["EDM-FDM"] // 1000 == 2).all()
    assert set(tables.summary(profile)["FD(EfficientNet-Lite0)"]) == {"VE", "EDM-FDM", "real against real"}
    assert {*show.pictures(profile)} == {("ve", "baseline"), ("edm", "fdm")}
    assert set(measurements.losses(profile)["run"]) == {"ve-baseline-0", "edm-fdm-0"}
    show.write_plots(profile, measurements.table(profile), measurements.losses(profile))
    curve = pd.read_csv(profile.results / "plots" / "quality_by_nfe.csv")
    assert list(curve.dropna(axis=1, how="all").columns) == ["nfe", "VE", "EDM-FDM", "Real"]
    rows = measurements.table(profile)
    assert list(show.by_metric(profile, rows).index) == list(profile.cells)
    assert list(show.in_floors(profile, rows).index) == ["ve-baseline", "edm-fdm", "edm-fdm-longer"]
    assert {each["claim"] for each in claims.claims(profile)["claims"]} == {"C1", "C2"}


def test_every_published_number_is_in_the_tables(profile):
    for number, table in [
        (1, tables.by_training(profile)),
        (2, tables.by_nfe(profile, 2)),
        (3, tables.by_nfe(profile, 3)),
    ]:
        mine = cell(table, source="published")[tables.COLUMNS].to_numpy().ravel()
        assert sorted(mine) == sorted(measurements.published(number)["fid"])


def test_tables_are_written_in_three_forms_with_empty_cells_where_nothing_was_measured(profile, tmp_path):
    (profile.recorded("ve-fdm") / "measurements.csv").unlink()
    with pytest.raises(FdmError, match="is missing; run dvc repro to measure it"):
        tables.by_training(profile)
    table = tables.by_training(reduced(profile, lambda name: name != "ve-fdm"))
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
    told = claims.claims(profile)
    verdicts = {(each["claim"], each["subject"]): each["verdict"] for each in told["claims"]}
    assert verdicts == {
        ("C1", "VP"): "identity",
        ("C1", "VE"): "empty",
        ("C1", "EDM"): "empty",
        ("C2", "formula"): "partly",
    }
    show.show_claims(profile, profile.results / "tables")
    kept = json.loads((profile.results / "claims.json").read_text(), parse_constant=pytest.fail)
    assert kept == agreement.rounded_value(told)
    assert "stays below 1 % first at 0.83" in (profile.results / "tables" / "claims.md").read_text()


def test_reports_and_figures_are_the_same_bytes_each_time(profile, tmp_path):
    figures.use_style()
    rows, floor = measurements.table(profile), measurements.calibration(profile).iloc[0]
    kept, every, two = show.pictures(profile), sorted(set(rows["options"])), ["edm-baseline", "edm-fdm"]
    drawn = {
        "nfe": lambda: figures.quality_by_nfe(measurements.standard(profile, rows, options=every, cell=two), floor),
        "samples": lambda: figures.sample_grids({model: part["grid"] for model, part in kept.items()}),
    }
    for (name, draw), again in itertools.product(drawn.items(), "ab"):
        figures.save(draw(), tmp_path / again, name, [f"of {name}"])
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "figures.json", *(f"{name}.{suffix}" for name in drawn for suffix in ("svg", "png"))
    }  # fmt: skip
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert measurements.read_json(tmp_path / "a" / "figures.json") == {name: [f"of {name}"] for name in sorted(drawn)}
    show.write_plots(profile, rows, measurements.losses(profile))
    curve = pd.read_csv(profile.results / "plots" / "quality_by_nfe.csv")
    assert list(curve["nfe"]) == [5, 11, 17, 25, 49, 79]


def test_trajectories_of_colour_pictures_are_drawn_in_their_colours_and_each_step_once(tmp_path):
    colours = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, 0.0], [0.5, 0.5, 1.0]])  # of three steps
    path = colours[:, :, None, None].expand(3, 3, 8, 8).numpy()
    plate = figures.trajectories({("edm", "baseline"): path, ("edm", "fdm"): path[::-1]})
    assert len(plate.axes) == 2 * len(colours)
    assert [ax.get_title() for ax in plate.axes[:3]] == ["step 0", "step 1", "sample"]
    assert [text.get_text() for ax in plate.axes for text in ax.texts] == ["EDM", "EDM-FDM"]
    figures.save(plate, tmp_path, "paths", [])
    drawn = np.asarray(Image.open(tmp_path / "paths.png").convert("RGB")).reshape(-1, 3)
    shown = {tuple(pixel) for pixel in np.unique(drawn, axis=0)}
    assert {(255, 0, 0), (0, 255, 128), (191, 191, 255)} <= shown


def test_what_differs_by_rounding_alone_is_left_as_it_is_and_all_else_is_written(profile, tmp_path):
    """Tables for people and figures follow the record, so that no rounded digit differs from it."""
    figures.use_style()
    rows = measurements.table(profile)
    folder, losses = profile.results / "tables", measurements.losses(profile)

    def write(factor):
        some = rows.assign(value=rows["value"] * factor)
        table = pd.DataFrame({"model": ["a", "b"], "FD": [1.005 * factor, 20.0], "p": [0.0005 * factor, 1.0]})
        tables.write_table(table, folder, "table", "Numbers whose rounding is close.")
        drawn = Figure(figsize=(2, 2))
        drawn.subplots().plot(measurements.standard(profile, some, framework="edm")["value"].to_numpy())
        figures.save(drawn, folder, "figure", [])
        show.write_plots(profile, some, losses)
        files = [*folder.iterdir(), *(profile.results / "plots").iterdir()]
        return {path.name: path.read_bytes() for path in files}

    first = write(1 - 1e-9)
    assert b"| 1.00 |" in first["table.md"]
    assert write(1 + 1e-9) == first
    other = write(1.01)
    assert {name for name in first if other[name] == first[name]} == {"loss.csv", "figures.json"}
    show.show_claims(profile, folder)
    path = profile.results / "claims.json"
    told = path.read_text()
    path.write_text(told.replace('first below 1 %": 0.83', 'first below 1 %": 0.8300000001'))
    show.show_claims(profile, folder)
    assert "0.8300000001" in path.read_text()
    path.write_text(told.replace('"verdict": "partly"', '"verdict": "holds"'))
    show.show_claims(profile, folder)
    assert path.read_text() == told


def test_the_notebooks_tables_of_losses_levels_and_distances(profile):
    levels = show.noise_levels(profile).set_index(["model", "draws below"])
    assert len(levels) == 6 * 3
    for _, part in levels.groupby("model"):
        assert part["sigma"].is_monotonic_increasing
    assert levels.loc[("EDM", "50 %"), "sigma"] == pytest.approx(math.exp(-1.2), rel=0.02)
    assert levels.loc["EDM", "input"].tolist() == pytest.approx([1, 1, 1])  # c_in of EDM keeps the variance
    losses = measurements.losses(profile)
    assert list(losses["run"].unique()) == list(profile.runs)
    assert set(losses.columns) >= {"images", "loss", "lr", "framework", "kernel", "seed"}
    ends = show.losses(profile, losses)
    assert ends.loc["edm-fdm"].to_dict() == {"loss at 1 kimg": 2.0, "loss at 2 kimg": 0.6}
    rows = measurements.table(profile)
    by_metric = show.by_metric(profile, rows)
    assert list(by_metric.index) == list(profile.cells)
    assert by_metric.loc["ve-fdm", "KID"] == pytest.approx(4100.25)
    floors = show.in_floors(profile, rows)
    assert list(floors.columns) == ["25%", "50%", "75%", "100%"]
    assert floors.loc["ve-fdm", "50%"] == round(4050.25 / 6, 2)


def test_a_damaged_measurement_is_named(profile):
    (profile.recorded("vp-fdm") / "measurements.csv").write_bytes(b"")
    with pytest.raises(FdmError, match=r"vp-fdm/measurements.csv is damaged .* measure it again"):
        measurements.table(profile)
    (profile.results / "training" / "vp-fdm.csv").unlink()
    with pytest.raises(FdmError, match=r"training/vp-fdm.csv is missing; run dvc repro"):
        measurements.losses(profile)
    (profile.recorded("vp-fdm") / "pictures.safetensors").write_bytes(b"1")
    with pytest.raises(FdmError, match=r"pictures.safetensors is missing or damaged"):
        show.pictures(profile)


def test_the_cost_of_equal_quality_is_where_the_curves_say():
    cost = [50, 100, 200]
    # FDM's curve is the baseline's at twice the speed, on straight lines in the logarithms: half the cost.
    baseline, fdm = [8 / c for c in cost], [4 / c for c in cost]
    share, known = intervals.share_of_cost(cost, baseline, fdm)
    assert share == pytest.approx(0.5)
    assert known == "="
    assert intervals.share_of_cost(cost, baseline, baseline) == (pytest.approx(1.0), "=")
    assert intervals.share_of_cost(cost, [3, 2, 1], [1, 1, 1]) == (0.25, "at most")
    share, known = intervals.share_of_cost(cost, [3, 2, 1], [4, 3, 2])
    assert math.isnan(share)
    assert known == "never"


def test_the_published_tables_arithmetic():
    costs = published.costs().set_index(["table", "data", "framework"])
    assert len(costs) == 9 + 3 + 3
    # EDM on AFHQv2: 2.37 lies between 2.73 at 50 and 2.05 at 100 Mimg.
    by_hand = 50 * 2 ** (math.log(2.73 / 2.37) / math.log(2.73 / 2.05)) / 200
    assert costs.loc[(1, "AFHQv2", "EDM"), "share"] == pytest.approx(by_hand)
    assert (costs.loc[[2, 3], "share"] == 25 / 79).all()
    growth = published.loss_by_nfe()
    assert growth.loc[(2, "edm"), "baseline"] == pytest.approx(2.78 / 2.37)


def test_published_cells_stand_beside_what_was_measured_for_them(study):
    profile = measured(find("published-checkpoints"), "FID", kimg=200_000)
    table = tables.published_beside_measured(profile)
    # Table 1 has four durations and only the last was measured; Tables 2 and 3 have three NFE, all measured.
    assert len(table) == 6 * (4 + 3 + 3)
    assert table["measured"].notna().sum() == 6 * (1 + 3 + 3)
    one = cell(table[table["table"] == 1], model="EDM-FDM", training=200)
    assert (one["published"].item(), one["measured"].item()) == (1.93, pytest.approx(6000 + 100 + 0.79))
    assert one["difference"].item() == pytest.approx(6100.79 - 1.93)
    assert cell(table[table["table"] == 1], model="EDM-FDM", training=50)["measured"].isna().all()
    three = cell(table[table["table"] == 3], model="VP", NFE=25)
    assert (three["published"].item(), three["measured"].item()) == (2.99, pytest.approx(1000 + 100 + 0.75))
    show.show_beside(profile, profile.results / "tables")
    assert "| 2 | VE | 200.00 | heun | 49 | 57.59 | 3100.49 |" in (profile.results / "tables" / "beside.md").read_text()


def test_of_published_networks_there_are_no_losses(study):
    profile = measured(find("published-checkpoints"), "FID", kimg=200_000)
    assert measurements.losses(profile).empty
    show.write_plots(profile, measurements.table(profile), measurements.losses(profile))


def test_other_data_than_the_papers_have_no_published_cell(profile, capsys):
    assert tables.published_beside_measured(profile).empty
    show.show_beside(profile, profile.results / "tables")
    assert not (profile.results / "tables" / "beside.csv").exists()
