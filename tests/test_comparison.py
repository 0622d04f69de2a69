"""The comparison of systems: what is measured of them, and what is made of it."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fdm.__main__ import main
from fdm.data import sources
from fdm.files import FdmError
from fdm.process.joint import JOINT
from fdm.samplers import SAMPLERS
from fdm.study import agreement, closure, networks, profiles, runs, standings, systems
from fdm.tasks import generation

from .conftest import change
from .scratch import ROOT
from .test_errors import as_trained

NETWORK = "edm-fdm"
FEW = {
    "samples": 16, "nfe": [5, 8],
    "systems": [
        {"name": "DDIM", "sampler": "ddim"},
        {"name": "again", "sampler": "ddim", "other_latents": True},
        {"name": "Heun", "sampler": "heun"},
        {"name": "F-PNDM", "sampler": "f-pndm"},
        {"name": "scaled", "sampler": "epsilon-scaling", "tune": {"scale": [1.01, 1.2]}, "against": ["Heun"]},
        {"name": "one for all", "sampler": "epsilon-scaling", "tune": {"scale": [1.01, 1.2]}, "together": True},
        {"name": "shifted", "sampler": "ts-ddim", "tune": {"window": [20, 80]}},
        {"name": "shifted up", "sampler": "ts-ddim", "shift": "up", "like": "shifted", "to_zero": True},
    ],
    "crossed": {"samplers": ["ddim"], "grids": ["karras", "vp-time"], "nfe": [5]},
}  # fmt: skip


def comparing(smoke, **changes):
    """The smoke profile with few systems, on the known distribution."""
    par = {"dataset": {"name": "exact-gaussians"}, "training": {"augment": 0.0}}
    return change(Path(smoke.params_file), evaluation={"systems": FEW | changes}, **par)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return tmp_path_factory.mktemp("once")


@pytest.fixture
def compared(smoke, monkeypatch, once, one_judge):
    """The profile, its data, and the comparison on a network: made once, and in the memory of each test's own study."""
    monkeypatch.setattr(systems, "CONVERGED", ("heun", 32))
    profile = comparing(smoke)
    dataset = sources.prepare(profile.dataset, profile.dataset_file)
    as_trained(profile, f"{NETWORK}-0", dataset)
    memory, kept = systems.memory(profile, f"{NETWORK}-0"), once / "rows.pkl"
    if not kept.exists():
        systems.compare(profile, NETWORK, dataset, lambda run: None).to_pickle(kept)
        shutil.copy(memory, once / memory.name)
    memory.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(once / memory.name, memory)
    return profile, dataset, pd.read_pickle(kept)


# ------------------------------------------------------------------------------------------------- measurement


def test_what_is_tuned_is_tuned_on_other_latents_and_reported_with_the_best(compared):
    _, _, rows = compared
    tried, told = rows[rows["part"] == "tuning"], rows[rows["part"] == "systems"]
    assert set(tried["block"]) == {systems.TUNING} and set(tried["system"]) == {"scaled", "one for all", "shifted"}
    assert set(told[told["system"] != "again"]["block"]) == {systems.REPORTED}
    assert set(told[told["system"] == "again"]["block"]) == {systems.OTHER}
    scores = tried[tried["quantity"] == "FD(EfficientNet-Lite0)"]
    chosen = told.drop_duplicates(["system", "nfe"]).set_index(["system", "nfe"])["options"]
    for nfe in (5, 8):
        for system in ("scaled", "shifted"):
            mine = scores[(scores["nfe"] == nfe) & (scores["system"] == system)]
            assert chosen[system, nfe] == mine.loc[mine["value"].idxmin(), "options"]
        window = chosen["shifted", nfe].removeprefix("window=")
        assert chosen["shifted up", nfe] == f"shift=up, to_zero=1, window={window}"
    mine = scores[scores["system"] == "one for all"].assign(value=lambda each: np.log(each["value"]))
    assert chosen["one for all", 5] == chosen["one for all", 8] == mine.groupby("options")["value"].mean().idxmin()
    table = standings.tuned(rows)
    assert set(table["system"]) == {"scaled", "one for all", "shifted"}
    assert set(standings.option(table[table["system"] == "scaled"], "scale")) <= {1.01, 1.2}


def test_a_system_has_the_evaluations_that_it_can_make_and_starts_from_latents_of_the_training(compared):
    profile, dataset, rows = compared
    told = rows[rows["part"] == "systems"]
    assert set(told[told["system"] == "Heun"]["nfe"]) == {8}  # as it ends where the others do
    assert "F-PNDM" not in set(told["system"])
    assert set(rows["nfe"]) == {5, 8}  # as they were counted
    spaces = ("EfficientNet-Lite0", "pixels", "classifier")
    scores = [f"{kind}({space})" for space in spaces for kind in ("FD", "KID")]
    assert [*told["quantity"].unique()] == ["seconds", "distance", "flow distance", *scores, "recall", "accuracy"]
    # By hand: the distance of the samples of the second block to the converged ones of the same seeds.
    denoiser, _ = networks.denoiser_of(profile, f"{NETWORK}-0", dataset, profile.checkpoints(f"{NETWORK}-0"), 1.0)
    ends = [
        [*generation.trajectory(denoiser, range(16, 32), sampler, nfe, to_zero=False)][-1]
        for sampler, nfe in (("ddim", 8), ("heun", 32))
    ]
    distance = (ends[0] - ends[1]).square().mean((1, 2, 3)).sqrt().median().item()
    found = told.query("system == 'DDIM' and nfe == 8 and quantity == 'distance'")["value"]
    assert found.item() == pytest.approx(distance, rel=1e-6)
    again = told.query("system == 'again' and nfe == 8 and quantity == 'distance'")["value"].item()
    assert again != found.item()


def test_every_training_has_its_own_latents_and_equal_seeds_have_equal_ones(compared):
    profile, dataset, _ = compared
    other = change(Path(profile.params_file), seeds=[0, 1])
    for run in (f"{NETWORK}-1", "ve-baseline-1"):
        as_trained(other, run, dataset)
    first, second, same = (
        systems.Bench(other, run, dataset, None, "cpu") for run in (f"{NETWORK}-0", f"{NETWORK}-1", "ve-baseline-1")
    )
    blocks = [set(bench.seeds(block)) for bench in (first, second) for block in range(3)]
    assert len(set.union(*blocks)) == 6 * 16
    assert [*second.seeds(1)] == [*same.seeds(1)]


def test_solver_and_grid_are_crossed_and_named_by_the_source_of_both(compared):
    _, _, rows = compared
    table = standings.crossed(rows)
    assert list(table["grid"]) == ["karras", "vp-time"] and (table["distance"] > 0).all()
    sources = dict(zip(rows["options"], rows["source"], strict=True))
    assert sources["grid=karras"] == closure.identity("samplers.ddim")
    assert sources["grid=vp-time"] == f"{closure.identity('samplers.ddim')} {closure.identity('samplers.vp_grids')}"


def test_distances_are_left_out_where_the_profile_says_so(compared):
    profile, dataset, rows = compared
    told = list[int]()
    fewer = comparing(profile, systems=FEW["systems"][:3], crossed=None, distances=False)
    again = systems.compare(fewer, NETWORK, dataset, lambda run: None, advance=told.append)
    quantities = {*again["quantity"]}
    assert not {"distance", "flow distance"} & quantities and {"FD(pixels)", "recall"} <= quantities
    assert sum(told) == systems.evaluations(fewer, NETWORK) == 16 * (2 * (5 + 8) + 8)
    both = again.merge(rows[rows["part"] == "systems"], on=["system", "nfe", "quantity"], suffixes=("", "_with"))
    both = both[both["quantity"] != "seconds"]
    assert len(both) and (both["value"] == both["value_with"]).all()
    assert (both["experiment"] != both["experiment_with"]).all()  # a table without them is another measurement
    with pytest.raises(FdmError, match="what is crossed is measured by its distances"):
        comparing(profile, distances=False)


@pytest.mark.slow
def test_what_was_measured_is_remembered_and_what_was_altered_is_measured_again(compared, monkeypatch):
    profile, dataset, rows = compared
    counted = []
    true = systems.Bench.measure
    monkeypatch.setattr(systems.Bench, "measure", lambda *args: counted.append(args[1]) or true(*args))
    told = list[int]()
    again = systems.compare(profile, NETWORK, dataset, lambda run: None, advance=told.append)
    pd.testing.assert_frame_equal(again, rows)
    assert not counted and sum(told) == systems.evaluations(profile, NETWORK)
    memory = systems.memory(profile, f"{NETWORK}-0")
    known = json.loads(memory.read_text())
    key = next(iter(known))
    known[key]["rows"][0]["value"] = 0.0
    memory.write_text(json.dumps(known))
    systems.compare(profile, NETWORK, dataset, lambda run: None)
    assert len(counted) == 1


def test_real_images_that_no_judge_has_learnt_from_are_scored_as_samples_are(compared, monkeypatch):
    profile, dataset, rows = compared
    monkeypatch.setattr(systems, "FLOORS", 3)
    floor = systems.floor(profile, dataset)
    assert set(floor["block"]) == {0, 1, 2} and set(floor["part"]) == {systems.FLOOR}
    real = floor.groupby("quantity")["value"].mean()
    drawn = rows[(rows["part"] == "systems") & (rows["nfe"] == 8)].groupby("quantity")["value"].mean()
    for space in ("EfficientNet-Lite0", "pixels", "classifier"):
        assert real[f"FD({space})"] < drawn[f"FD({space})"]
    assert real["accuracy"] > 0.8 > drawn["accuracy"]


@pytest.mark.slow
def test_the_comparison_is_put_on_record_cell_by_cell_unless_it_agrees(compared, monkeypatch, capsys):
    profile, dataset, _ = compared
    monkeypatch.setattr(systems, "FLOORS", 3)
    few = [each for each in FEW["systems"] if each["name"] in ("DDIM", "Heun", "scaled")]
    profile = comparing(profile, systems=few, nfe=[5])
    for run in profile.trained:
        as_trained(profile, run, dataset)
    monkeypatch.setattr(runs, "expected", lambda *args: None)
    first = runs.compare(profile)
    names = sorted(path.name for path in (profile.results / "systems").glob("*.csv"))
    assert names == sorted(f"{cell}.csv" for cell in [systems.FLOOR, *profile.cells])
    assert set(first["cell"]) == {systems.FLOOR, *profile.cells}
    before = {path: path.read_bytes() for path in (profile.results / "systems").glob("*.csv")}
    capsys.readouterr()
    runs.compare(profile)
    assert {path: path.read_bytes() for path in before} == before
    assert "5 of 5 cells agree" in capsys.readouterr().err


def test_a_comparison_agrees_with_another_machines_to_rounding(tmp_path):
    old = pd.DataFrame({
        "quantity": ["distance"] * 20 + ["FD(pixels)"] * 20 + ["KID(pixels)", "seconds"], "experiment": "0" * 12,
        "value": [0.1] * 20 + [5.0] * 20 + [0.001, 0.1], "sampler": "ddim", "part": "systems",
    })  # fmt: skip
    path = tmp_path / "cell.csv"
    old.to_csv(path, index=False)

    def moved(**values):
        new = old.copy()
        for place, value in values.items():
            new.loc[int(place[1:]), "value"] = value
        return agreement.systems(path, new)

    assert moved() and moved(_0=0.12, _41=9.0, _40=-0.002)
    assert not moved(_0=0.12, _1=0.12, _20=6.0)
    assert not agreement.systems(path, old.assign(value=old["value"] * 1.05))
    assert not agreement.systems(path, old.assign(experiment="1" * 12))
    assert not agreement.systems(path, old[:-1]) and not agreement.systems(tmp_path / "none.csv", old)


# -------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"systems": [{"name": "a", "sampler": "ddim"}, {"name": "a", "sampler": "heun"}]},
     "evaluation.systems: two systems have the same name"),
    ({"systems": [{"name": "a", "sampler": "ddim"}, {"name": "b", "sampler": "euler"}]}, "'euler' is not known; there"),
    ({"systems": [{"name": "a", "sampler": "ddim"}, {"name": "b", "sampler": "ddim", "tune": {"eta": [0.5, 3]}}]},
     "evaluation.systems, b: eta: 3.0 is not allowed for DDIM; it must be 0 to 1"),
    ({"systems": [{"name": "a", "sampler": "ddim"}, {"name": "b", "sampler": "masf", "eps": "of x"}]},
     "evaluation.systems, b: eps: 'of x' is not allowed for MASF; it must be one of of D, of the mean"),
    ({"crossed": {"samplers": ["ddim"], "grids": ["linear"], "nfe": [5]}}, "'linear' is not known; there are karras"),
    ({"samples": 8}, "evaluation.systems.samples: 8 is not allowed"),
    ({"systems": [{"name": "a", "sampler": "ddim"}, {"name": "b", "sampler": "ddim", "like": "a"}]},
     "evaluation.systems, b: there is no such system as 'a'"),
    ({"systems": [{"name": "a", "sampler": "ddim"}, {"name": "b", "sampler": "ddim", "against": ["c"]}]},
     "evaluation.systems, b: there is no such system as 'c'"),
])  # fmt: skip
def test_a_comparison_that_cannot_be_made_is_refused_with_one_sentence(smoke, changes, sentence, capsys):
    with pytest.raises(FdmError) as raised:
        comparing(smoke, **changes)
    assert sentence in str(raised.value)
    assert main(["systems", "--params", smoke.params_file]) == 1
    assert sentence in capsys.readouterr().err


def test_a_comparison_has_the_evaluations_that_were_made_and_not_those_that_were_asked_for(compared, monkeypatch):
    profile, dataset, _ = compared
    bench = systems.Bench(profile, f"{NETWORK}-0", dataset, None, "cpu")
    wasteful = SAMPLERS["ddim"]._replace(steps=lambda nfe, to_zero: nfe + 2)
    monkeypatch.setitem(SAMPLERS, "ddim", wasteful)
    judge = systems.Judge(profile, dataset, "cpu")
    (row, *_) = bench.measure(systems.Sampling("crossed", "DDIM", "ddim", (), 5, 1), judge)
    assert row["nfe"] == 7


def test_a_profile_without_systems_is_refused(study, capsys):
    assert main(["systems", "--params", "params.yaml"]) == 1
    assert capsys.readouterr().err == "fdm: params.yaml has no evaluation.systems to compare.\n"


def test_the_profile_is_of_the_networks_of_the_evidence():
    """Same data, network, training and names: the networks are those, and need not be trained again."""
    here, there = profiles.find("systems"), profiles.find("exact")
    for section in ("dataset", "network", "training"):
        assert getattr(here, section) == getattr(there, section)
    assert set(here.seeds) <= set(there.seeds)
    for name, run in here.trained.items():
        if run.framework in JOINT:  # of the same size and budget
            assert (run.lr, run.model_channels, run.channel_mult) == (None, None, None)
        else:
            assert run == there.run(name)


# ---------------------------------------------------------------------------------------------- what is made of it

SPACES = ("EfficientNet-Lite0", "pixels", "classifier")
FLOOR = 0.01  # c of every space
PAR = systems.SystemsParams.model_validate(FEW | {"nfe": [5]})


def made_up(effects, interaction=1.0, noise=0.01, trainings=5, seed=0, kernel=1.0, latents=0.0):
    """KIDs of two cells in which a system multiplies the first one's (KID + c); FDM's by `interaction` more.

    `latents` is the deviation of what latents do to a system, which is the same for both cells of a training.
    """
    rng = np.random.default_rng(seed)
    rows = [
        {"cell": systems.FLOOR, "part": systems.FLOOR, "quantity": f"KID({space})", "value": value}
        for space in SPACES for value in (-FLOOR, *[0.0] * 18, FLOOR, FLOOR, FLOOR)
    ]  # fmt: skip
    for training in range(trainings):
        shared = {(system, space): rng.normal(0, latents) for system in effects for space in SPACES}
        for cell in ("edm-baseline", "edm-fdm"):
            fdm = cell == "edm-fdm"
            level = 0.5 * math.exp(rng.normal(0, 0.3)) * (kernel if fdm else 1)
            for system, factors in {"DDIM": (1.0,) * 3, **effects}.items():
                for space, each in zip(SPACES, factors, strict=True):
                    more = interaction if fdm and system != "DDIM" else 1
                    moved = math.exp(rng.normal(0, noise) + shared.get((system, space), 0))
                    rows.append({
                        "cell": cell, "part": "systems", "system": system, "nfe": 5, "seed": training,
                        "quantity": f"KID({space})", "options": "", "value": level * each * more * moved - FLOOR,
                    })  # fmt: skip
    return pd.DataFrame(rows)


def two_kernels(smoke):
    profile = comparing(smoke, nfe=[5])
    cells = {"edm-baseline": {"framework": "edm", "kernel": "baseline"},
             "edm-fdm": {"framework": "edm", "kernel": "fdm", "multiplier": 2.0}}  # fmt: skip
    return change(Path(profile.params_file), cells=cells)


def test_a_ratio_is_that_of_equal_latents_and_counts_when_two_of_three_spaces_agree():
    effects = {"good": (0.7, 0.8, 1.0), "bad": (1.3, 1.0, 1.3), "mixed": (0.7, 0.7, 1.3), "none": (1.0, 1.0, 1.0)}
    rows = made_up(effects)
    assert standings.floors(rows) == pytest.approx(dict.fromkeys(standings.spaces(rows), FLOOR))
    table = standings.ratios(rows, PAR)
    assert len(table) == 2 * 4 * 3
    for name, factors in effects.items():
        mine = table[(table["system"] == name) & (table["cell"] == "edm-baseline")]
        assert mine["ratio"].tolist() == pytest.approx(factors, rel=0.03)
        assert ((mine["low"] < mine["ratio"]) & (mine["ratio"] < mine["high"])).all()
    counts = table.drop_duplicates(["cell", "system"]).set_index(["cell", "system"])["counts"]
    assert counts["edm-fdm"].to_dict() == {"good": "better", "bad": "worse", "mixed": "", "none": ""}


def test_what_is_as_good_as_real_images_does_not_count():
    """Both far below what real images get: a thousandth is not ten times as good as a hundredth of that."""
    rows = made_up({"ten times": (1.0,) * 3})
    mine = rows["part"] == "systems"
    rows.loc[mine, "value"] = [0.0001 if system == "ten times" else 0.00001 for system in rows[mine]["system"]]
    table = standings.ratios(rows, PAR)
    assert table["ratio"].tolist() == pytest.approx([1.01] * 6, abs=0.01)


def test_intervals_hold_what_they_are_of_when_latents_move_systems_alike_on_both_kernels():
    """A training's latents move a system by 20 %: 95 % intervals over trainings must hold the truth, and do."""
    inside = []
    for seed in range(60):
        table = standings.ratios(made_up({"none": (1.0,) * 3}, seed=seed, latents=0.2), PAR)
        mine = table[(table["cell"] == "edm-fdm") & (table["quantity"] == "KID(pixels)")]
        inside.append(bool((mine["low"] < 1).item() and (mine["high"] > 1).item()))
    assert 0.86 < np.mean(inside) <= 1


@pytest.mark.parametrize(("interaction", "word"), [(0.8, "more"), (1.25, "less")])
def test_an_interaction_is_below_one_where_a_system_helps_fdm_more(interaction, word, smoke):
    rows = made_up({"good": (0.7, 0.8, 1.0), "none": (1.0, 1.0, 1.0)}, interaction, latents=0.2)
    profile = two_kernels(smoke)
    assert standings.pairs(profile) == [("edm", "edm-baseline", "edm-fdm")]
    table = standings.interactions(profile, rows)
    assert table["ratio"].tolist() == pytest.approx([interaction] * 2, rel=0.05)
    assert set(table["counts"]) == {word}
    latents = math.exp(np.log(table["baseline"][0] / 0.7))  # the same in both
    assert table["fdm"][0] == pytest.approx(0.7 * interaction * latents, rel=0.03)
    told = standings.summary(standings.ratios(rows, PAR), table, 5).set_index("system")
    assert told.loc["good", f"helps FDM {word}"] == 1 and told.loc["good", "of"] == 2


def test_the_kernel_itself_is_fdm_over_its_baseline_with_equal_seeds(smoke):
    table = standings.kernels(two_kernels(smoke), made_up({"good": (0.5,) * 3}, kernel=3.0, noise=0.001))
    assert list(table["system"]) == ["DDIM", "good"]
    assert table["ratio"].tolist() == pytest.approx([3, 3], rel=0.6)
    assert set(table["counts"]) == {"worse"}


def test_a_system_is_compared_with_its_controls_and_with_what_it_stands_on():
    effects = {"read": (0.8,) * 3, "up": (0.8,) * 3, "random": (1.2,) * 3}
    named = [{"name": name, "sampler": "ddim"} for name in ("DDIM", "up", "random")]
    named.append({"name": "read", "sampler": "ddim", "against": ["up", "random"]})
    par = systems.SystemsParams.model_validate(FEW | {"nfe": [5], "systems": named})
    table = standings.against(made_up(effects), par)
    assert list(table["other"]) == ["up", "random"] * 2
    assert table["over the first"].tolist() == pytest.approx([0.8] * 4, rel=0.03)
    told = standings.counted(table).set_index("other")
    assert told.loc["up", ["comparisons", "better", "worse"]].tolist() == [2, 0, 0]
    assert told.loc["random", ["better", "worse"]].tolist() == [2, 0]
    assert told.loc["random", "median ratio"] == pytest.approx(2 / 3, rel=0.03)
    assert told.loc["random", "other's"] == pytest.approx(1.2, rel=0.03)


def test_w1_on_the_mixture_is_that_of_the_reference_table_and_tuned_on_other_samples(smoke, monkeypatch):
    monkeypatch.setattr(standings, "DRAWN", 5000)
    profile = comparing(smoke, nfe=[10])
    table = standings.w1(profile).set_index("system")
    assert table.loc["DDIM", "W1"] == pytest.approx(0.167, abs=0.02)
    assert table.loc["scaled", "options"].startswith("scale=") and table.loc["DDIM", "options"] == ""
    assert set(table.index) == {"DDIM", "Heun", "scaled", "one for all"}
    assert standings.on_mixture("ddim", [10])[10] == pytest.approx(table.loc["DDIM", "W1"])
    assert standings.on_mixture("heun", [9, 10]).index.tolist() == [10]


def test_published_numbers_stand_beside_the_pattern_here():
    table = standings.papers(standings.ratios(made_up({"DCW": (0.5, 0.5, 0.5)}), PAR), PAR)
    row = table[table["system"] == "DCW"].iloc[0]
    assert row["ratio, theirs"] == pytest.approx(5.67 / 10.66)
    assert row["edm-baseline"] == pytest.approx(0.5, rel=0.05) and row["NFE, here"] == 5
    assert table[table["system"] == "TS-DDIM"]["edm-baseline"].isna().all()


# ----------------------------------------------------------------------------------------------- what is on record


@pytest.fixture(scope="module")
def standing():
    """KID over DDIM's on record, by cell, system and evaluations."""
    table = pd.read_csv(ROOT / "results" / "systems" / "standings" / "ratios.csv", keep_default_na=False)
    table = table[table["quantity"] == "KID(EfficientNet-Lite0)"]
    return table.assign(ratio=table["ratio"].astype(float)).set_index(["cell", "system", "nfe"])


EDMS = ("edm-baseline", "edm-fdm-warmup", "edm-baseline-exact")
SECOND = ("DPM-Solver++ (2M)", "UniPC", "S-PNDM", "AB2")


def of_record(name, **where):
    table = pd.read_csv(ROOT / "results" / "systems" / "standings" / f"{name}.csv", keep_default_na=False)
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def test_what_the_notebook_says_of_solvers_is_so_in_the_tables(standing):
    for cell in EDMS:
        for solver in SECOND:
            assert all(standing.loc[(cell, solver, nfe), "ratio"] < 0.9 for nfe in (5, 8, 10, 15))
            assert 0.9 < standing.loc[(cell, solver, 50), "ratio"] < 1
    summary = of_record("summary").set_index("system")
    for solver in SECOND:
        assert set(of_record("interactions", framework="EDM", system=solver)["counts"]) == {""}
        assert int(summary.loc[solver, "better"]) <= int(summary.loc[solver, "of"]) / 4
    for cell in EDMS:
        two = [standing.loc[(cell, solver, 10), "ratio"] for solver in ("S-PNDM", "DPM-Solver++ (2M)")]
        assert two[0] < two[1] or cell.endswith("exact")
    heun = of_record("interactions", framework="EDM", system="Heun").set_index("nfe")
    assert set(heun.loc[[8, 10], "counts"]) == {"more"} and (heun.loc[[8, 10], "baseline"].astype(float) > 5).all()
    latents = of_record("ratios", system="DDIM, other latents", cell="edm-baseline")
    first = latents[latents["quantity"] == "KID(EfficientNet-Lite0)"]
    assert (first["low"].astype(float) > 1).all() and 1.9 < first["ratio"].astype(float).max() < 2.1
    assert set(latents["counts"]) == {""}
    grids = of_record("crossed")
    for cell in ("edm-baseline", "edm-baseline-exact"):
        for nfe in (10, 20):
            mine = grids[(grids["cell"] == cell) & (grids["nfe"] == nfe)]
            best = mine.loc[mine["distance"].astype(float).idxmin()]
            assert (best["system"], best["grid"]) == ("iPNDM", "vp-quadratic")


def test_what_the_notebook_says_of_vp_fdm_is_so_in_the_tables(standing):
    for nfe in (5, 8, 10, 15, 20, 35, 50):
        noisy = standing.loc[("vp-fdm-warmup", "DDIM, eta 1", nfe)]
        assert noisy["ratio"] < 0.2 and noisy["counts"] == "better"
    for solver in SECOND:
        assert standing.loc[("vp-fdm-warmup", solver, 8), "ratio"] > 1.2
        assert standing.loc[("vp-fdm-warmup", solver, 50), "ratio"] == pytest.approx(1, abs=0.05)
    for cell in (*EDMS, "vp-baseline"):
        assert all(standing.loc[(cell, "DDIM, eta 1", nfe), "ratio"] > 1.3 for nfe in (5, 8, 10, 15))


def test_what_the_notebook_says_of_corrections_is_so_in_the_tables(standing):
    for cell in EDMS:
        assert all(standing.loc[(cell, "epsilon scaling", nfe), "ratio"] < 0.9 for nfe in (5, 8, 10))
        best = of_record("tuned", cell=cell, system="epsilon scaling")
        scales = standings.option(best.sort_values("nfe"), "scale")
        assert scales.is_monotonic_decreasing and scales.iloc[0] > scales.iloc[-1] >= 1
        assert all(standing.loc[(cell, "MASF, opposite sign", nfe), "ratio"] < 0.7 for nfe in (5, 8, 10))
    for system in ("MASF", "MASF, high first", "MASF, constant"):
        chosen = of_record("tuned", system=system)
        few = chosen[(chosen["nfe"] <= 20) & (chosen["cell"] != "vp-fdm-warmup")]
        assert (standings.option(few, "size") == 0).all()
    told = of_record("controls", system="TS-DDIM", other="TS-DDIM, random").iloc[0]
    assert told["better"] <= told["worse"] and told["median ratio"] == pytest.approx(1, abs=0.02)


def test_what_the_notebook_says_of_noise_and_moments_is_so_in_the_tables(standing):
    for cell in (*EDMS, "vp-baseline"):
        for nfe in (5, 8, 10):
            sde, eta = (standing.loc[(cell, name, nfe), "ratio"] for name in ("SDE-DPM-Solver++ (2M)", "DDIM, eta 1"))
            assert sde < 0.6 * eta
    assert standing.loc[("vp-fdm-warmup", "SDE-DPM-Solver++ (2M)", 5), "ratio"] > 1
    assert all(standing.loc[("vp-fdm-warmup", "SDE-DPM-Solver++ (2M)", nfe), "ratio"] < 0.3 for nfe in (15, 20, 35, 50))
    for nfe in (5, 8, 10, 15):
        names = ("GMS", "Gaussian, right variance", "DDIM, eta 1")
        three, two, none = (standing.loc[("edm-baseline-exact", name, nfe), "ratio"] for name in names)
        assert three < 0.95 * two and two < 0.85 * none
    for cell in ("vp-baseline", "vp-fdm-warmup"):
        assert all(standing.loc[(cell, "GMS", nfe), "ratio"] > 1.9 for nfe in (5, 8, 10, 15, 20, 35))
    published = of_record("ratios", system="GMS, as published", quantity="KID(EfficientNet-Lite0)")
    networks = published[~published["cell"].str.endswith("-exact")]
    assert set(networks[networks["counts"] == "better"]["cell"]) == {"vp-fdm-warmup"}


def test_what_the_notebook_says_of_a_velocity_is_so_in_the_tables(standing):
    for cell in (*EDMS, "vp-baseline"):
        assert standing.loc[(cell, "Velocity, flow", 20), "ratio"] > 5
        assert 0.7 < standing.loc[(cell, "Velocity, SSCS, EDM's grid", 10), "ratio"] < 1.5
    levels = of_record("levels").astype({"value": float, "sigma": float}).set_index(["cell", "sigma"])["value"]
    sigmas = levels.index.get_level_values("sigma").unique()
    near = {at: min(sigmas, key=lambda sigma, at=at: abs(np.log(sigma / at))) for at in (1.0, 80.0)}
    end = of_record("training").astype({"duration": float})
    end = end[end["duration"] == 1].set_index("cell")[["value", "KID"]].astype(float)
    for cell in ("cld-baseline", "mdm-baseline"):
        for other in ("edm-baseline", "vp-baseline"):
            assert levels[cell, near[1.0]] > 1.2 * levels[other, near[1.0]], "where images form"
            assert end.loc[cell, "value"] > end.loc[other, "value"] and end.loc[cell, "KID"] > end.loc[other, "KID"]
    assert levels["cld-baseline", near[80.0]] < levels["vp-baseline", near[80.0]]
    counted = of_record("velocity_counted").astype({"better": int, "worse": int, "median ratio": float})
    own = counted[counted["system"].str.startswith("Velocity")]
    cld, mdm = (own[own["cell"] == f"{name}-baseline"] for name in ("cld", "mdm"))
    assert cld["better"].sum() >= cld["worse"].sum() and cld["median ratio"].median() == pytest.approx(1, abs=0.1)
    assert mdm["better"].sum() == 0 and mdm["worse"].sum() > 20
    assert (mdm[mdm["system"] == "Velocity, SSCS"]["median ratio"] < 1).all(), "by SSCS alone"
    explicit = mdm[mdm["system"].str.contains("flow|Euler")]
    assert (explicit["median ratio"] > 1.5).all(), "explicit steps are unstable"
    learned = of_record("learned").astype({"coupling": float})["coupling"]
    assert learned.max() < 0.5 and learned.std() < 0.2 * learned.mean()
    gaps = of_record("gaps").astype({"noise": float, "from rest": float})
    nearest = gaps.loc[gaps.groupby("noise")["from rest"].idxmin(), "process"]
    assert set(nearest) == {"VP"}
