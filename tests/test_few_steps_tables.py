"""What training for few steps says: tables, figures and records from numbers that are made up."""

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from fdm.files import FdmError
from fdm.repro import pipeline
from fdm.study import (
    agreement,
    closure,
    eleven,
    few_steps,
    few_steps_plates,
    grid_toy,
    measurements,
    profiles,
    runs,
    standings,
)

from .scratch import ROOT

SPACES = ("KID(EfficientNet-Lite0)", "KID(pixels)", "KID(classifier)")
FLOOR = 1e-4


@pytest.fixture
def profile(study):
    return profiles.find("few-steps")


def factor(profile, cell: str, space: str) -> float:
    """What training makes of KID, and FDM's kernel of it."""
    how = {"MMD-DDM": 0.5 if space != "KID(classifier)" else 0.1, "SIDDM": 0.8, few_steps.ON: 0.9,
           "SIDDM, toy's form": 3.0, "SIDDM, UFO's form": 1.0, "DDGAN": 4.0}  # fmt: skip
    kernel = 1.5 if profile.cells[cell].kernel == "fdm" else 1.0
    return kernel * how.get(few_steps.method(profile, cell), 1.0)


def made_up(profile, noise: float = 0.01) -> pd.DataFrame:
    """KID of 10 / NFE times the factors, with noise for every set of samples."""
    rng, out = np.random.default_rng(0), []
    par = standings.of(profile)
    for cell, about in profile.cells.items():
        for seed, system in itertools.product(profile.seeds, par.of(cell)):
            for nfe in system.nfe or par.nfe:
                row = {"cell": cell, "part": "systems", "system": system.name, "sampler": system.sampler, "nfe": nfe,
                       "seed": seed, "kernel": about.kernel, "framework": "edm"}  # fmt: skip
                faster = 0.25 if system.name.startswith("DPM") else 1.0
                values = {s: 10 / nfe * faster * factor(profile, cell, s) for s in SPACES}
                values = {s: value * np.exp(rng.normal(0, noise)) for s, value in values.items()}
                accuracy = 0.3 if about.few_steps and about.few_steps.objective == "ddgan" else 0.95
                values |= {"recall": 0.7, "accuracy": accuracy, "seconds": 0.001 * nfe}
                out += [row | {"quantity": quantity, "value": value} for quantity, value in values.items()]
    for space in SPACES:
        out += [{"cell": "real-images", "part": "real-images", "quantity": space, "value": FLOOR} for _ in range(20)]
    return pd.DataFrame(out)


def test_every_continuation_spends_the_same_number_of_evaluations():
    table = few_steps.prices(profiles.find("few-steps"))
    assert len(table) == 12
    assert set(table["evaluations, thousands"]) == {"256"}


def test_a_continuation_is_compared_with_its_start_with_plain_training_and_with_other_solvers(profile):
    rows = made_up(profile)
    table = few_steps.over(profile, rows).set_index(["cell", "over", "nfe", "quantity"])["ratio"]
    space = SPACES[0]
    assert table["edm-baseline-mmd5", "DDIM, as it was", 5, space] == pytest.approx(0.5, rel=0.05)
    assert table["edm-fdm-mmd10", "DDIM, trained on", 10, space] == pytest.approx(0.5 / 0.9, rel=0.05)
    assert table["edm-baseline-siddm4", "DPM-Solver++ (2M)", 4, space] == pytest.approx(0.8 / 0.25, rel=0.05)
    assert table["edm-baseline-on", "DDIM, as it was", 15, space] == pytest.approx(0.9, rel=0.05)
    assert table["edm-baseline-siddm2", "MMD-DDM for 5", 2, space] == pytest.approx(0.8 / 0.5, rel=0.05)
    assert table["edm-fdm-siddm4", "MMD-DDM for 5", 4, space] == pytest.approx(0.8 / 0.5, rel=0.05)
    assert not [cell for cell, over, _, _ in table.index if over == "MMD-DDM for 5" and "siddm" not in cell
                and cell not in ("edm-baseline-toy4", "edm-baseline-ufo4", "edm-baseline-ddgan4")]  # fmt: skip
    assert {n for cell, _, n, _ in table.index if cell == "edm-baseline-mmd5"} == {5}
    assert not [over for cell, over, _, _ in table.index if cell.endswith("-on") and over.endswith("trained on")]


def test_the_space_that_was_trained_in_has_no_say(profile):
    rows = made_up(profile)
    worse = (rows["cell"] == "edm-baseline-mmd5") & rows["quantity"].isin(SPACES[:2])
    rows.loc[worse, "value"] *= 2 / 0.5
    table = few_steps.over(profile, rows)
    mine = table[(table["cell"] == "edm-baseline-mmd5") & (table["over"] == "DDIM, as it was")]
    assert set(mine["counts"]) == {"worse"}  # though it is ten times better where it was trained
    assert mine.set_index("quantity")["ratio"][SPACES[2]] == pytest.approx(0.1, rel=0.05)
    only_one = (rows["cell"] == "edm-baseline-mmd5") & (rows["quantity"] == SPACES[1])
    rows.loc[only_one, "value"] /= 2 / 0.5
    table = few_steps.over(profile, rows)
    mine = table[(table["cell"] == "edm-baseline-mmd5") & (table["over"] == "DDIM, as it was")]
    assert set(mine["counts"]) == {""}


def test_adversarial_trainings_that_had_better_been_left_alone_are_counted(profile):
    rows = made_up(profile)
    better = (rows["cell"] == "edm-baseline-toy4") & (rows["seed"] == 1) & (rows["quantity"] == SPACES[0])
    rows.loc[better, "value"] = 0.1
    table = few_steps.failures(profile, rows).set_index(["kernel", "method", "nfe"])
    # Runs, failed, further off in pixels and in the classifier's space, and of no class.
    assert table.loc[("baseline", "SIDDM, toy's form", 4)].tolist() == [3, 2, 3, 3, 0]
    assert table.loc[("baseline", "DDGAN", 4)].tolist() == [3, 3, 3, 3, 3]
    assert table.loc[("baseline", "SIDDM", 4)].tolist() == [3, 0, 0, 0, 0]
    assert "MMD-DDM" not in {method for _, method, _ in table.index}


def test_the_kernels_are_compared_after_each_method_and_other_numbers_of_steps_with_the_start(profile):
    rows = made_up(profile)
    table = few_steps.kernels(profile, rows).set_index(["method", "nfe"])
    assert {("MMD-DDM", 5), ("MMD-DDM", 10), ("as it was", 15)} <= {*table.index}
    assert table["ratio"].to_numpy() == pytest.approx(1.5, rel=0.05)
    assert set(table["counts"]) == {"worse"}
    more = table[["over start", "from", "to"]].dropna()
    assert {name for name, _ in more.index} == {few_steps.ON, "MMD-DDM", "SIDDM"}
    assert more["over start"].to_numpy() == pytest.approx(1, rel=0.1)  # all are helped alike
    elsewhere = few_steps.elsewhere(profile, rows)
    assert [*zip(elsewhere["trained for"], elsewhere["nfe"], strict=True)] == [
        (steps, nfe) for steps in (5, 10, 5, 10) for nfe in (2, 4, 5, 10, 15)
    ]
    assert elsewhere["ratio"].to_numpy() == pytest.approx(0.5, rel=0.05)
    assert (elsewhere["low"] < elsewhere["ratio"]).all() and (elsewhere["ratio"] < elsewhere["high"]).all()
    assert set(elsewhere["further off"]) == {""}
    worse = (rows["cell"] == "edm-fdm-mmd5") & (rows["quantity"] == SPACES[1]) & (rows["nfe"] == 15)
    rows.loc[worse, "value"] *= 4
    told = few_steps.elsewhere(profile, rows).set_index(["kernel", "trained for", "nfe"])["further off"]
    assert told[told != ""].to_dict() == {("fdm", 5, 15): SPACES[1]}
    rows.loc[worse, "value"] /= 4
    wide = few_steps.by_space(few_steps.over(profile, rows), "DDIM, as it was").set_index(["kernel", "method", "nfe"])
    assert wide.loc[("baseline", "MMD-DDM", 5)].tolist() == pytest.approx([0.5, 0.5, 0.1], rel=0.05)


def test_a_method_that_helps_one_kernel_more_is_told_from_one_that_leaves_them_as_they_were(profile):
    rows = made_up(profile)
    helped = (rows["cell"] == "edm-fdm-mmd5") & (rows["quantity"] == SPACES[0])
    rows.loc[helped, "value"] /= 3
    table = few_steps.kernels(profile, rows).set_index(["method", "nfe"])
    mine = table.loc[("MMD-DDM", 5)]
    assert mine["ratio"] == pytest.approx(0.5, rel=0.05)
    assert mine["from"] < mine["over start"] < mine["to"] < 1 and mine["over start"] == pytest.approx(1 / 3, rel=0.05)
    # In pixels it is worse and where it was trained it has no say, however good it is there.
    rows.loc[(rows["cell"] == "edm-fdm-mmd5") & (rows["quantity"] == SPACES[2]), "value"] /= 100
    assert few_steps.kernels(profile, rows).set_index(["method", "nfe"]).loc[("MMD-DDM", 5), "counts"] == ""


def test_the_kernels_are_followed_along_the_training_by_seed(profile):
    scores = pd.DataFrame([
        {"cell": f"edm-{kernel}-mmd5", "nfe": 5, "duration": share, "metric": "KID", "seed": seed,
         "value": (1 + seed) * (1 if kernel == "baseline" else 4 * share) - 0.1}
        for kernel in ("baseline", "fdm") for share in (0.5, 1.0) for seed in (0, 1, 2)
    ])  # fmt: skip
    table = few_steps.kernels_along(profile, scores, 0.1).set_index(["method", "nfe", "share"])
    assert [*table.index] == [("MMD-DDM", 5, 0.5), ("MMD-DDM", 5, 1.0)]
    assert table["ratio"].tolist() == pytest.approx([2.0, 4.0])  # of KID + c
    assert set(table["seeds"]) == {3}


def test_quality_and_diversity_are_shown_along_the_training_of_what_was_trained(profile):
    scores = pd.DataFrame([
        {"cell": "edm-baseline-mmd5", "nfe": 5, "duration": share, "metric": metric, "value": share + seed}
        for share in (0.5, 1.0) for metric in ("KID", "recall") for seed in (0, 1)
    ] + [
        {"cell": "edm-baseline", "nfe": nfe, "duration": 1.0, "metric": metric, "value": 7.0 * nfe}
        for nfe in (5, 25) for metric in ("KID", "recall")
    ])  # fmt: skip
    table = few_steps.along(profile, scores)
    # From what it starts with, in as many steps; and at last what that draws with the most evaluations.
    assert table["duration"].tolist() == [0.0, 0.5, 1.0, 0.0]
    assert table["KID"].tolist() == [35.0, 1.0, 1.5, 175.0]
    assert table["method"].tolist() == ["MMD-DDM"] * 3 + [few_steps.START]
    plate = few_steps_plates.along(table, ["KID", "recall"])
    line, across = plate.axes[0].lines
    assert line.get_ydata().tolist() == [35.0, 1.0, 1.5]
    assert set(across.get_ydata()) == {175.0} and across.get_label() == "as it was, 25, EDM"


def test_the_figures_show_each_at_the_evaluations_that_it_was_trained_for(profile):
    rows = made_up(profile)
    quality = few_steps.quality(profile, rows)
    plate = few_steps_plates.by_evaluations(profile, quality, [SPACES[0], "recall"], {SPACES[0]: FLOOR})
    marks = {line.get_label(): [*line.get_xdata()] for line in plate.axes[0].lines}
    assert marks["MMD-DDM"] == [5, 10]
    assert marks["SIDDM"] == [2, 4]
    assert marks["DDGAN"] == [4]
    assert marks["DDIM"] == [2, 4, 5, 10, 15]


def keep(profile) -> None:
    """Samples of every cell on record, of one grey each."""
    for number, name in enumerate(profile.cells):
        path = profile.compared(name).with_suffix(".safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        keys = {key for cell, key, _ in _shown(profile) if cell == name} or {"DDIM/5"}
        grey = torch.full((few_steps.SHOWN, 1, 8, 8), 10 * number, dtype=torch.uint8)
        save_file({key: grey.clone() for key in keys}, path)


def _shown(profile):
    return [each for kernel in ("baseline", "fdm") for each in few_steps.shown(profile, kernel)]


def test_samples_stand_in_rows_of_equal_latents(profile):
    keep(profile)
    kept, shown = few_steps.kept(profile), few_steps.shown(profile, "fdm")
    assert [title for _, _, title in shown] == [
        "DDIM, as it was, 4", "DDIM, as it was, 5", "DDIM, as it was, 10", "MMD-DDM, 5", "MMD-DDM, 10", "SIDDM, 4",
    ]  # fmt: skip
    plate = few_steps_plates.sheet(kept, shown, images=3)
    assert len(plate.axes) == 3 * len(shown)
    assert plate.axes[-1].images[0].get_array().max() == kept["edm-fdm-siddm4"]["four draws/4"].max()
    points = {form: {str(n): torch.randn(50, 2) for n in few_steps.TOY_STEPS} for form in grid_toy.FORMS}
    toys = few_steps_plates.toys(points, [*few_steps.TOY_STEPS])
    assert [ax.get_title() for ax in toys.axes[: len(grid_toy.FORMS)]] == [
        "SIDDM", "SIDDM, no forward term", "SIDDM, toy's form", "SIDDM, UFO's form", "DDGAN",
    ]  # fmt: skip


def test_the_toy_is_remembered_by_what_shapes_it_and_put_on_record(profile, monkeypatch):
    asked = []

    def measure(form, steps, seed):
        asked.append((form, steps, seed))
        return {"modes": 25.0, "FD": 0.1 + seed}, torch.full((grid_toy.DRAWN, 2), float(steps))

    monkeypatch.setattr(grid_toy, "measure", measure)
    name = next(iter(few_steps.TOYS))
    table, points = few_steps.toys(profile, name)
    assert len(asked) == len(few_steps.TOY_STEPS) * len(profile.seeds)
    assert few_steps.toys(profile, name)[0].equals(table)
    assert len(asked) == len(few_steps.TOY_STEPS) * len(profile.seeds)
    assert points["4"].shape == (few_steps.POINTS, 2)
    assert (points["4"] == 4).all()
    shown = few_steps.of_toys(table)
    assert shown["FD"].to_numpy() == pytest.approx(1.1)
    assert shown["fewest modes"].tolist() == [25.0, 25.0]
    path = few_steps.memory(profile, name)
    known = json.loads(path.read_text())
    key = next(iter(known))
    known[key]["rows"][0]["found"]["FD"] = 99.0
    path.write_text(json.dumps(known))
    few_steps.toys(profile, name)
    assert len(asked) == len(few_steps.TOY_STEPS) * len(profile.seeds) + 1  # what was altered is measured again
    monkeypatch.setattr(closure, "identity", lambda name: "another")
    few_steps.toys(profile, name)
    assert len(asked) == 2 * len(few_steps.TOY_STEPS) * len(profile.seeds) + 1


def test_every_form_of_the_toy_goes_on_record_and_a_second_drawing_keeps_it(profile, monkeypatch, capsys):
    forms = {form: n for n, form in enumerate(grid_toy.FORMS)}

    def measure(form, steps, seed):
        return {"modes": 25.0, "FD": 1 + forms[form] + seed / 10}, torch.full((grid_toy.DRAWN, 2), float(forms[form]))

    monkeypatch.setattr(grid_toy, "measure", measure)
    shutil.rmtree(profile.results / "toys", ignore_errors=True)
    rows = runs.draw_toys(profile)
    assert len(rows) == len(forms) * len(few_steps.TOY_STEPS) * len(profile.seeds) * 2
    assert few_steps.of_toys(rows)["FD"].to_numpy() == pytest.approx([1.1 + n for n in range(5) for _ in range(2)])
    points = few_steps.points(profile)
    assert [float(points[form]["2"].mean()) for form in forms] == [*forms.values()]
    before = {path: path.read_bytes() for path in sorted((profile.results / "toys").iterdir())}
    assert len(before) == 2 * len(forms)
    runs.draw_toys(profile)
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(FdmError, match="no toy to draw"):
        runs.draw_toys(profiles.find("systems"))


def test_a_comparison_is_of_real_images_and_all_cells(profile):
    assert few_steps.compared(profile) == ["real-images", *profile.cells]
    other = profiles.find("systems")
    assert few_steps.compared(other) == ["real-images", *other.cells]
    assert "09_few_steps" in pipeline.books(profile)
    assert "07_systems" not in pipeline.books(profile)
    assert "07_systems" in pipeline.books(other)
    assert "09_few_steps" not in pipeline.books(other)


def test_adversarial_trainings_of_another_machine_agree_when_they_are_of_one_law(tmp_path):
    """And others to rounding."""

    def table(drawn: list[float], others: float) -> pd.DataFrame:
        context = {"system": "four draws", "nfe": 4, "quantity": "FD(pixels)", "experiment": "x", "part": "systems"}
        rows = [context | {"sampler": "siddm", "seed": seed, "value": value} for seed, value in enumerate(drawn)]
        return pd.DataFrame([*rows, context | {"sampler": "ddim", "system": "DDIM", "seed": 0, "value": others}])

    path = tmp_path / "cell.csv"
    table([1.0, 1.3, 0.8], 2.0).to_csv(path, index=False)
    assert agreement.systems(path, table([0.9, 1.2, 1.1], 2.0))
    assert not agreement.systems(path, table([0.9, 1.2, 1.1], 3.0))
    assert not agreement.systems(path, table([20.0, 24.0, 19.0], 2.0))
    alone = [table(drawn, 2.0).iloc[:-1] for drawn in ([1.0, 1.3, 0.8], [0.9, 1.2, 1.1], [20.0, 24.0, 19.0])]
    alone[0].to_csv(path, index=False)  # of a generator there is nothing else
    assert agreement.systems(path, alone[1])
    assert not agreement.systems(path, alone[2])


def test_the_interval_of_an_adversarial_number_is_that_of_its_other_seeds(profile):
    rows = pd.DataFrame([
        {"cell": "edm-baseline-siddm4", "run": f"edm-baseline-siddm4-{seed}", "framework": "edm", "kernel": "baseline",
         "duration": 1.0, "sampler": "siddm", "options": "usual", "nfe": 4, "sigma_max": 80.0, "latents": 0,
         "reference": 0, "metric": metric, "value": value, "low": value - 0.01, "high": value + 0.01, "n": 100,
         "n_reference": 100}
        for metric, numbers in (("KID", (1.0, 2.0, 3.0)), ("recall", (0.2, 0.5, 0.8)))
        for seed, value in enumerate(numbers)
    ])  # fmt: skip
    around = agreement.intervals(profile, rows)
    assert set(around["of"]) == {"trainings"}
    assert around["low"][0] < 1.0 - 4 < 1.0 + 4 < around["high"][0]  # 4.3 standard deviations of a difference
    plain = agreement.intervals(profile, rows.assign(sampler="ddim"))
    assert set(plain["of"]) == {"images"}


def test_losses_around_0_and_of_adversaries_are_not_compared(tmp_path):
    path, table = (
        tmp_path / "cell.csv",
        pd.DataFrame({"experiment": ["x"], "images": [64], "loss": [-0.01], "lr": [1.0]}),
    )
    table.to_csv(path, index=False)
    other = table.assign(loss=0.5)
    assert agreement.losses(path, other, few_steps=True)
    assert not agreement.losses(path, other)
    assert not agreement.losses(path, other.assign(lr=2.0), few_steps=True)


def test_the_descriptions_of_continuations_hold_their_own_budget(profile, digits):
    description = runs.specify(profile, "edm-baseline-mmd5-0", digits)
    assert description["training"]["budget_kimg"] == 12.8
    assert description["few_steps"] == {"objective": "mmd", "steps": 5, "features": "classifier"}
    assert "few_steps" not in runs.specify(profile, "edm-baseline-0", digits)
    assert runs.specify(profile, "edm-baseline-siddm2-0", digits)["denoiser"]["steps"] == 2
    forward = {cell for cell in profile.generators
               if runs.specify(profile, f"{cell}-0", digits)["denoiser"].get("noised_forward")}  # fmt: skip
    assert forward == {"edm-baseline-ufo4"}
    assert runs.images(profile, "edm-baseline-siddm4-0") == 21_344
    names = {runs.experiment(profile, f"{cell}-0", digits) for cell in profile.cells}
    assert len(names) == len(profile.cells)


def test_all_eleven_systems_stand_in_one_table_and_one_figure():
    profile, systems, restoration = (profiles.find(name) for name in ("few-steps", "systems", "restoration"))
    rows, restored = measurements.systems(systems), measurements.restorations(restoration)
    every = eleven.Beside((systems, rows), (profile, made_up(profile)), (restoration, restored))
    table = eleven.table(every)
    assert [*dict.fromkeys(table["system"])] == [
        "FDM", "PNDM", "shifted time steps", "MASF", "Gaussian mixture solver", "multivariate diffusion", "MMD-DDM",
        "SIDDM", "CCDF", "DoSSR",
    ]  # fmt: skip
    assert not table["value"].isna().any()
    few = table[table["system"].isin(["MMD-DDM", "SIDDM"])].set_index(["system", "nfe"])["value"]
    assert few.to_dict() == pytest.approx(
        {("MMD-DDM", 5): 0.5, ("MMD-DDM", 10): 0.5, ("SIDDM", 2): 0.8, ("SIDDM", 4): 0.8}, rel=0.05
    )
    ratios = measurements.read(systems.results / "standings" / "ratios.csv")
    known = ratios[(ratios["cell"] == "edm-baseline") & (ratios["system"] == "F-PNDM") & (ratios["nfe"] == 20)]
    mine = table[(table["system"] == "PNDM") & (table["nfe"] == 20)].iloc[0]
    assert mine["value"] == pytest.approx(known[known["quantity"] == SPACES[0]]["ratio"].item())
    wide = eleven.wide(table).set_index("system")
    assert wide.loc["PNDM", "20"].startswith(f"{mine['value']:.2f}")
    assert wide.loc["PNDM", "2"] == ""
    plate = eleven.plate(every)
    samples, restorations = ({line.get_label() for line in plate.axes[n].lines} for n in (0, 2))
    assert {"DDIM", "FDM", "MMD-DDM", "SIDDM"} <= samples
    assert {"CCDF", "DoSSR"} <= restorations
    drawn = {line.get_label(): line for line in plate.axes[1].lines}
    assert drawn["MMD-DDM"].get_xdata()[0] == pytest.approx(drawn["DDIM"].get_xdata()[0], rel=0.1)  # of 5 steps
    assert {"DDIM, as it was", "DPM-Solver++ (2M), as it was"} <= samples


def test_what_the_notebook_says_is_so_in_the_tables():
    """09_few_steps and docs/systems.md: where one of these fails, the sentence has to be written anew."""
    folder = ROOT / "results" / "few-steps" / "few-steps"
    told = {
        name: measurements.read(folder / f"{name}.csv")
        for name in (
            "gains",
            "spaces",
            "kernels",
            "kernels_along",
            "failures",
            "elsewhere",
            "over",
            "along",
            "prices",
            "quality",
        )
    }
    space, pixels, learned = SPACES
    gains = told["gains"].set_index(["kernel", "method", "nfe", "over"])
    start = gains.xs("DDIM, as it was", level="over")
    assert "better" not in set(start["counts"])
    over = told["over"].set_index(["over", "method", "quantity", "kernel", "nfe"]).sort_index()
    mine = over.loc["DDIM, as it was", "MMD-DDM"]
    contains = (mine["low"] < 1) & (mine["high"] > 1)
    assert (mine.loc[[space, learned], "ratio"] < 1).all() and len(mine.loc[space]) == 4
    assert [key for key, contained in contains[space].items() if contained] == [("baseline", 10)]
    assert contains[pixels].all()
    assert [key for key, contained in contains[learned].items() if not contained] == [("baseline", 5), ("fdm", 5)]
    plain = over.loc["DDIM, as it was", "trained on"]["ratio"]
    assert plain[space].between(0.9, 1.1).all() and (plain[[pixels, learned]] < 1).all()
    mine = over.loc["DDIM, trained on", "MMD-DDM"]
    assert [key for key, high in mine.loc[space, "high"].items() if high > 1] == [("baseline", 10)]
    assert (mine.loc[learned].xs(10, level="nfe")["high"] > 1).all()

    second, other = (gains.xs(name, level="over") for name in ("DPM-Solver++ (2M)", "iPNDM"))
    fine = second.xs("MMD-DDM", level="method")
    assert len(fine) == 4 and (fine["ratio"] > 1).all() and (fine["low"] < 1).all(), "none of them beyond chance"
    assert (other.xs("MMD-DDM", level="method")["low"] > 1).sum() == 3
    for rival in (second, other):
        assert set(rival.drop(["trained on", "MMD-DDM"], level="method")["counts"]) == {"worse"}

    elsewhere = told["elsewhere"].set_index(["trained for", "kernel", "nfe"]).sort_index()
    assert len(elsewhere) == 20 and (elsewhere["ratio"] < 1).all()
    assert (elsewhere.loc[5, "ratio"] < elsewhere.loc[10, "ratio"]).all()
    images = told["prices"].set_index("cell")["images, thousands"]
    assert images["edm-fdm-mmd5"] > images["edm-fdm-mmd10"]
    assert (elsewhere.xs(15, level="nfe")["high"] > 1).all()
    assert elsewhere.loc[5].xs(15, level="nfe")["further off"].str.contains("pixels").all()

    along = told["along"].set_index(["method", "cell", "duration"]).sort_index()
    way = along.loc["MMD-DDM"]
    first, end = (way.xs(share, level="duration") for share in (0.0, 1.0))
    assert len(end) == 4 and (end["recall"] > first["recall"]).all()
    assert (end[["precision", "coverage"]] < first[["precision", "coverage"]]).all(axis=None)
    heun = along.loc["as it was"]
    assert set(heun["nfe"]) == {25} and heun["recall"].min() > end["recall"].max()
    assert (heun[["precision", "coverage"]].max() < end[["precision", "coverage"]].min()).all()
    kid = along["KID"]
    assert kid["SIDDM", "edm-baseline-siddm2", 1.0] < kid["SIDDM", "edm-baseline-siddm2", 0.5]
    assert kid["DDGAN", "edm-baseline-ddgan4", 1.0] > kid["DDGAN", "edm-baseline-ddgan4", 0.5]

    failed = told["failures"].set_index(["method", "nfe", "kernel"])
    assert (failed[f"further off, {pixels}"] == failed["training runs"]).all() and set(failed["training runs"]) == {3}
    wrong = failed["failed"].groupby(["method", "nfe"]).sum()
    assert wrong[("SIDDM, UFO's form", 4)] == 0 and wrong[("SIDDM", 2)] == 1
    assert wrong[("SIDDM", 4)] == 5, "most of six"
    assert wrong[("SIDDM, toy's form", 4)] == wrong[("DDGAN", 4)] == 3
    ufo = start.loc["baseline", "SIDDM, UFO's form", 4]
    assert ufo["low"] < 1 < ufo["high"]
    for key in (("SIDDM", 2), ("SIDDM", 4), ("DDGAN", 4)):
        assert set(start.xs(key, level=("method", "nfe"))["counts"]) == {"worse"}
    drawn = told["quality"].set_index(["kernel", "method", "nfe"])
    ddim = drawn[drawn["system"] == "DDIM"].xs("as it was", level="method")["recall"]
    draws = drawn[drawn["system"].isin(["two draws", "four draws"])]["recall"]
    more = {method for kernel, method, nfe in draws.index if draws[kernel, method, nfe] > ddim[kernel, nfe]}
    less = {method for kernel, method, nfe in draws.index if draws[kernel, method, nfe] < ddim[kernel, nfe]}
    assert more == {"SIDDM", "SIDDM, toy's form", "DDGAN"} and less == {"SIDDM, UFO's form"}
    asked = gains.xs("MMD-DDM for 5", level="over")
    assert len(asked) == 6 and (asked["ratio"] > 1).all()

    kernels = told["kernels"].set_index(["method", "nfe"])
    assert "better" not in set(kernels["counts"])
    assert [*kernels.index[kernels["to"] < 1]] == [("MMD-DDM", 5), ("SIDDM", 4)]
    assert kernels["low"][("MMD-DDM", 5)] < 1 < kernels["high"][("MMD-DDM", 5)]
    on_the_way = told["kernels_along"].set_index(["method", "nfe", "share"])
    assert on_the_way["high"][("MMD-DDM", 5, 0.5)] < 1 < on_the_way["low"][("MMD-DDM", 10, 0.25)]


def test_what_the_notebook_says_of_the_toy_is_so():
    """09_few_steps, section 2."""
    toys = measurements._all(ROOT / "results" / "few-steps" / "toys")
    table = few_steps.of_toys(toys).set_index(["form", "steps"])
    off = (table["correlation"] - table["correlation of real points"]).abs()
    lost = grid_toy.MODES - table["fewest modes"]
    assert (lost.loc[["siddm", grid_toy.UNTIED, "siddm ufo"]] == 0).all()
    assert (lost["siddm toy"] > lost["ddgan"]).all() and (lost["ddgan"] > 0).all()
    assert (off.loc[["siddm", "ddgan"]] < 0.1).all()
    assert (off.loc[[grid_toy.UNTIED, "siddm ufo"]] > 0.3).all()
    near = table["FD"].xs(4, level="steps")
    assert near[grid_toy.UNTIED] == pytest.approx(near["siddm"], rel=0.2)
    assert table["share"].xs(4, level="steps").idxmin() == "ddgan"


def test_what_the_notebook_of_systems_says_of_all_eleven_is_so_in_its_table():
    """07_systems, the paragraph to quote."""
    table = measurements.read(ROOT / "results" / "systems" / "standings" / "eleven.csv").set_index(["system", "nfe"])
    for name in ("shifted time steps", "MASF"):
        assert table.loc[name]["value"].between(0.9, 1.1).all()
    pndm = table.loc["PNDM"]
    assert (pndm["value"] < 1).all() and (pndm["low"] < 1).all() and (pndm["high"] > 1).all()
    ratios = measurements.read(ROOT / "results" / "systems" / "standings" / "ratios.csv")
    second = measurements.select(ratios, cell="edm-baseline", system="DPM-Solver++ (2M)", quantity=SPACES[0])
    for nfe, ratio in zip(second["nfe"], second["ratio"], strict=True):
        if nfe <= 10:
            others = measurements.select(table.reset_index(), nfe=nfe, quantity="KID")
            assert len(others) >= 5 and (others["value"] > ratio).all(), "none gets further with few evaluations"
    gains = measurements.read(ROOT / "results" / "few-steps" / "few-steps" / "gains.csv")
    drawn = measurements.select(gains, kernel="baseline", method="SIDDM", over="DPM-Solver++ (2M)")
    assert sorted(drawn["nfe"]) == [2, 4] and (drawn["ratio"] > 1).all()
    assert (table.loc["multivariate diffusion"]["value"] > 1).all()
    assert "better" not in {*table.loc["FDM"]["counts"], *table.loc["Gaussian mixture solver"]["counts"]}
    assert "better" not in {*table.loc["MMD-DDM"]["counts"], *table.loc["SIDDM"]["counts"]}
    closer = table.loc["CCDF"]["counts"]
    assert closer[1] == "better" and closer[[10, 20]].isna().all()
    assert (table.loc["DoSSR"]["counts"] == "better").all()
