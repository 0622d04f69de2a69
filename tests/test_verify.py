"""Verification of made-up results in a repository of their own, and where each of their numbers comes from."""

import hashlib
import io
import json
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from fdm import (
    agreement,
    checkpoints,
    data,
    evaluation,
    explain,
    integrity,
    pipeline,
    report,
    runs,
    study,
    tables,
    training,
    verify,
)  # fmt: skip
from fdm.__main__ import main
from fdm.errors import FdmError
from fdm.files import json_text, write_json, write_text
from fdm.profiles import Profile, find
from fdm.study import measurements

from .conftest import ROOT, change
from .test_study import measured

FD = "FD(EfficientNet-Lite0)"
TABLE = "results/digits/tables/table1.csv"
MADE_BY = {
    "extractor": "efficientnet-lite0",
    "weights": "e" * 12,
    "dataset": "d" * 64,
    "shape": [1, 8, 8],
    "classes": 10,
}

LOOK_AT_CHECKPOINTS = integrity.checkpoints


def git(*words: str) -> None:
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *author, *words], check=True, capture_output=True)


def record(profile: Profile) -> None:
    """A dvc.lock of what the stages would have written."""
    values = yaml.safe_load(Path(profile.params_file).read_text())
    stages = {}
    for name, stage in pipeline.stages(profile).items():
        entry = {"cmd": stage["cmd"], "deps": [], "outs": []}
        if stage.get("params"):
            keys = stage["params"][0][profile.params_file]
            entry["params"] = {profile.params_file: values if keys is None else {key: values[key] for key in keys}}
        for kind, places in {"deps": stage["deps"], "outs": [*stage["outs"], *stage.get("metrics", [])]}.items():
            for place in (next(iter(place)) if isinstance(place, dict) else place for place in places):
                if place.startswith(f"build/{profile.profile}/code/"):
                    code = pipeline.code(profile, Path(place).stem).encode()
                    entry[kind].append({"path": place, "md5": hashlib.md5(code, usedforsecurity=False).hexdigest()})
                elif place.startswith("results/") and Path(place).exists():
                    entry[kind].append({"path": place, "md5": integrity.md5(Path(place))})
        stages[name] = entry
    Path(pipeline.file_of(profile).with_suffix(".lock")).write_text(yaml.safe_dump({"stages": stages}))


def write_tables(profile: Profile) -> None:
    """Tables 1 to 3 of the runs' measurements."""
    write_text(profile.results / "measurements.csv", measurements(profile).to_csv(index=False))
    tables.write_table(tables.table1(profile), profile.results / "tables", "table1", "One.")
    for number in (2, 3):
        tables.write_table(tables.table_nfe(profile, number), profile.results / "tables", f"table{number}", "More.")


def derive(profile: Profile) -> None:
    """Everything that follows from the runs' measurements, and the lock."""
    write_tables(profile)
    write_json(profile.results / "metrics.json", tables.summary(profile))
    write_text(profile.results / "claims.json", json_text(agreement.rounded_value(study.claims(profile))))
    record(profile)


def path_of(run: str, here: bool = False) -> Path:
    return Path("build/digits/here" if here else "results/digits") / "runs" / run / "measurements.csv"


def alter(run: str, change, here: bool = True, **where) -> None:
    """Change the value of those measurements of a run, as another machine might have it, or on record."""
    path = path_of(run, here)
    rows = pd.read_csv(path)
    place = pd.Series(True, rows.index)
    for column, value in where.items():
        place &= rows[column] == value
    assert place.any()
    rows.loc[place, "value"] = rows.loc[place, "value"].map(change)
    rows.to_csv(path, index=False)


@pytest.fixture
def profile(study) -> Profile:
    """Results of the digits profile, committed, and equal ones that were measured here, with their checkpoints."""
    shutil.copytree(ROOT / "notebooks", study / "notebooks")
    profile = measured(find("digits"))
    about = data.Dataset("digits", np.empty((0, 1, 8, 8)), None, 10, MADE_BY["dataset"])
    rounding = []
    for run in profile.runs:
        rows = pd.read_csv(path_of(run))
        share = rows["metric"].isin(["precision", "recall"])
        rows["value"] = rows["value"].mask(share, 0.5)
        trained = training.experiment(profile, run, about)
        names = evaluation.experiments(profile, run, trained, MADE_BY["dataset"], MADE_BY["weights"])
        rows = rows.assign(low=rows["value"] * 0.9, high=rows["value"] * 1.1, extractor="e:1", device="cpu",
                           experiment=np.repeat([*names.values()], 4), checkpoint="c" * 12)  # fmt: skip
        rows.loc[share, ["low", "high"]] = np.nan
        for place in (False, True):
            write_text(path_of(run, place), rows.to_csv(index=False))
        chaotic = run in ("vp-fdm-0", "ve-fdm-0")
        rounding += [{"run": run, "metric": metric, "deviation": 0.05 if chaotic else 1e-5, "chaotic": chaotic}
                     for metric in rows["metric"].unique()]  # fmt: skip
    write_text(profile.results / "rounding.csv", pd.DataFrame(rounding).to_csv(index=False))
    floor = pd.read_csv(profile.results / "calibration.csv").assign(experiment="f" * 12).to_csv(index=False)
    for folder in (profile.results, profile.build / "here"):
        write_text(folder / "calibration.csv", floor)
    write_json(profile.build / "reference" / "reference.json", MADE_BY)
    write_text(Path("dvc.yaml"), pipeline.text(profile))
    derive(profile)
    Path(".gitignore").write_text("build/\nwork/\n")
    git("init", "-q")
    commit()
    return profile


@pytest.fixture(autouse=True)
def trained(monkeypatch):
    """The checkpoints of made-up results are what the measurements name; a test of their own looks at real ones."""
    monkeypatch.setattr(integrity, "checkpoints", lambda profile, rows: [])


def commit() -> None:
    git("add", "-A")
    git("commit", "-q", "-m", "results")


def found(profile: Profile) -> tuple[dict[tuple, dict], list[str]]:
    """Measurements by run, share, sampler, evaluations and metric, and all problems."""
    value = verify.verify(profile, "HEAD")
    rows = {tuple(row[key] for key in agreement.KEY[:5]): row for row in value["numbers"]}
    return rows, verify.failures(value)


# -------------------------------------------------------------------------------------------------------- verdicts


def test_what_is_reproduced_to_the_last_digit_is_exact(profile, capsys):
    assert main(["verify"]) == 0
    value = json.loads(Path("work/verify/digits.json").read_text())
    settings = len(pd.read_csv("results/digits/measurements.csv"))
    assert value["counts"] == {"exact": settings, "rounding": 0, "within": 0, "missed": 0, "missing": 0}
    printed = capsys.readouterr().out
    assert "digits, measured here, agrees with revision" in printed
    assert f"{settings} measurements: {settings} exact; missed shares of 24 groups add up to 0" in printed
    assert "cells of Tables 1 to 3 met: 90 of 90; verdicts on claims met: 11 of 11" in printed
    assert "furthest" not in printed
    text = Path("work/verify/digits.md").read_text()
    assert "chaotic runs (here: ve-fdm-0, vp-fdm-0)" in text
    assert "| edm-fdm-0 | 1 | heun | 25 | FD(EfficientNet-Lite0) |" in text


@pytest.mark.parametrize(
    ("run", "factor", "verdict"),
    [
        ("edm-fdm-0", 1 + 1e-4, "rounding"),  # twenty times 1e-5
        ("edm-fdm-0", 1 + 3e-4, "within"),
        ("edm-fdm-0", 1.12, "missed"),
        ("vp-fdm-0", 1 + 3e-4, "within"),  # a chaotic run is not repeatable to rounding
        ("vp-fdm-0", 1.15, "within"),  # by four times its 5 %
        ("vp-fdm-0", 1.3, "missed"),
    ],
)
def test_a_measurement_is_judged_by_rounding_or_else_by_its_interval(profile, run, factor, verdict):
    alter(run, lambda value: value * factor, metric=FD, duration=1.0, sampler="heun", nfe=49)
    rows, problems = found(profile)
    assert rows[run, 1.0, "heun", 49, FD]["verdict"] == verdict
    assert {key for key, row in rows.items() if row["verdict"] != "exact"} == {(run, 1.0, "heun", 49, FD)}
    assert problems == []  # one of 360


def test_numbers_that_all_move_by_more_than_rounding_are_not_the_same_networks(profile, capsys):
    for run in profile.runs:  # a tenth of the way to the ends of their intervals, all in one direction
        alter(run, lambda value: value * 1.01, metric=FD)
    assert main(["verify"]) == 1
    printed = capsys.readouterr()
    assert "does NOT agree with revision" in printed.out
    assert "numbers differ by more than rounding explains, where one in twenty may" in printed.out
    assert printed.err == "fdm: Not all is as committed; see the lines above and the report.\n"


def test_on_another_kind_of_device_intervals_decide_and_not_rounding(profile):
    for run in profile.runs:
        path = path_of(run, here=True)
        rows = pd.read_csv(path)
        rows.assign(value=rows["value"] * 1.01, device="cuda").to_csv(path, index=False)
    rows, problems = found(profile)
    assert {row["verdict"] for row in rows.values()} == {"within"}
    assert problems == []


def test_more_misses_than_chance_explains_are_too_many(profile):
    runs = ["vp-fdm-0", "ve-fdm-0"]
    for run in runs:  # two metrics of two runs wholly, four groups of 24
        for metric in (FD, "KID"):
            alter(run, lambda value: value * 1.5, metric=metric)
    rows, problems = found(profile)
    assert sum(row["verdict"] == "missed" for row in rows.values()) == 4 * 15
    assert not any("too many" in problem for problem in problems)
    alter("vp-fdm-0", lambda value: 0.05, metric="recall")
    assert any("in 24 groups (a run's metric each) the missed shares add up to 5.0, where chance explains 4" in problem
               for problem in found(profile)[1])  # fmt: skip


def test_the_limit_of_misses_is_rarely_passed_by_chance_and_the_interval_of_a_share_always_has_a_width():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"run": np.repeat(range(24), 15), "metric": "FD"})
    passed = 0
    for _ in range(300):  # the worst case: all numbers of a group are missed together
        missed = np.repeat(rng.random(24) < 0.05, 15)
        shares, limit, groups = agreement.missed_by_chance(table.assign(verdict=np.where(missed, "missed", "within")))
        assert (limit, groups) == (4, 24)
        passed += shares > limit
    assert passed <= 10  # 1 % would be 3
    for share, n in [(0.0, 300), (1.0, 300), (0.5, 300), (0.463, 898)]:
        low, high = agreement.wilson(share, n)
        assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1
        assert high - low > 0.01
    for end in agreement.wilson(0.3, 100):  # where the share is just 1.96 of the end's standard deviations away
        assert abs(0.3 - end) == pytest.approx(1.959964 * (end * (1 - end) / 100) ** 0.5, rel=1e-6)


def test_another_training_may_differ_as_the_seeds_of_the_ablation_do(profile):
    place = {"metric": FD, "duration": 1.0, "sampler": "heun", "nfe": 25}
    rows = measurements(profile)
    rows = rows[(rows[list(place)] == pd.Series(place)).all(axis=1)]
    parts = []
    for seed in range(5):  # whose logarithms differ by 0.1 a seed
        for run, cell in {"edm-fdm-0": "edm-fdm-warmup", "vp-fdm-0": "vp-fdm-long"}.items():
            part = rows[rows["run"] == run].assign(cell=cell, seed=seed)
            parts.append(part.assign(value=30 * np.exp(seed / 10)))
            parts.append(part.assign(value=30 * np.exp(seed), sigma_max=10.0))  # which the tables do not have
    write_text(Path("results/ablations/measurements.csv"), pd.concat(parts).to_csv(index=False))
    around = agreement.intervals(profile, rows)
    by_run = around.set_index(rows["run"])
    factor = np.exp(2.7764451051977987 * np.sqrt(2) * np.sqrt(0.025))
    assert by_run.loc["edm-fdm-0", "of"] == "trainings"
    assert by_run.loc["edm-fdm-0", "high"] == pytest.approx(6100.25 * factor)
    assert by_run.loc["vp-fdm-0", "of"] == "rounding"  # the cell vp-fdm-long is another model
    other = profile.model_copy(update={"dataset": profile.dataset.model_copy(update={"name": "fashion-mnist"})})
    assert len(agreement.spreads(profile)) == 1
    assert len(agreement.spreads(other)) == 0


def test_a_measurement_of_other_n_is_another_and_one_side_alone_is_missing(profile):
    path = path_of("edm-fdm-0", here=True)
    rows = pd.read_csv(path)
    rows.assign(n=400).to_csv(path, index=False)
    problems = found(profile)[1]
    assert any(problem.endswith("NO, 120 numbers are on one side alone") for problem in problems)
    path.unlink()
    with pytest.raises(FdmError, match=r"Nothing has been measured here, or not all, .* run make repro first"):
        verify.verify(profile, "HEAD")


def test_no_more_than_twenty_problems_are_printed(profile, capsys):
    for number in range(30):
        write_text(profile.results / f"extra{number}.csv", "a\n1\n")
    assert main(["verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("! ") for line in lines) == 21
    assert any(line.startswith("! and ") and line.endswith(" more") for line in lines)


def test_a_verdict_that_is_another_here_is_named(profile):
    alter("edm-fdm-0", lambda value: value, metric=FD)  # as it is
    told = json.loads((profile.results / "claims.json").read_text())
    told["claims"][0]["verdict"] = "partly"
    write_text(profile.results / "claims.json", json_text(told))
    record(profile)
    commit()
    problems = found(profile)[1]
    assert any("C1 formula: reproduced here, partly committed" in problem for problem in problems)
    assert any("results/digits/claims.json is not what follows from the runs" in problem for problem in problems)


# ------------------------------------------------------------------------------------------------------ integrity


def altered(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new, 1))


ALTERATIONS = {
    "a table": (TABLE, "2100.25", "9.25", "VP-FDM is 9.25 and should be 2100.25"),
    "a table in Markdown": ("results/digits/tables/table2.md", "6100.49", "9.49", "table2.md does not show"),
    "a table in LaTeX": ("results/digits/tables/table3.tex", "6100.99", "9.99", "table3.tex does not show the numbers"),
    "all measurements": ("results/digits/measurements.csv", "6100.25", "5.25", ": value is 5.25 and should be 6100.25"),
    "a run's measurement": (path_of("vp-fdm-0").as_posix(), "2100.25", "5.25", "value is 2100.25 and should be 5.25"),
    "a published number": ("results/published/table2_fid_by_nfe_edm_sampler.csv", "2.32", "2.23", "is 2.32 and should"),
    "a verdict": ("results/digits/claims.json", "undecided", "reproduced", "claims.json is not what follows"),
    "a parameter": ("params.yaml", "lr: 3.0e-3", "lr: 2.0e-3", "training is not what the lock records for train"),
    "code": ("fdm/losses.py", "def weight_ceiling", "def  weight_ceiling", "edm-fdm-0 is of other parameters or code"),
    "a scoring": ("fdm/sampling.py", "SIGMA_MIN", "SIGMA_MIN ", "the source behind evaluate is not what"),
    "the pipeline": ("dvc.yaml", "python -m fdm publish", "true", "dvc.yaml is not what python -m fdm pipeline writes"),
    "the lock's parameters": ("dvc.lock", "lr: 0.003", "lr: 0.004", "training is not what the lock records for train"),
    "the lock's command": ("dvc.lock", "notebook 02_train", "notebook 03_train", "command of train is another"),
    "the floor": ("results/digits/calibration.csv", "6.0", "5.9", "the floor measured here is the committed one: NO"),
}  # fmt: skip


@pytest.mark.parametrize("what", ALTERATIONS)
def test_whatever_is_altered_among_the_committed_files_is_found(profile, what):
    """Also where the lock was brought up to date with the alteration, but for files that only the lock knows."""
    file, old, new, sentence = ALTERATIONS[what]
    before = {path: path.read_text() for path in (Path(file), Path("dvc.lock"))}
    altered(file, old, new)
    commit()
    for path, text in before.items():
        path.write_text(text)
    problems = found(profile)[1]
    assert any(sentence in problem for problem in problems), problems


def test_what_is_altered_with_its_lock_is_found_where_something_else_tells(profile):
    before = {path: path.read_text() for path in (Path(TABLE), Path("dvc.lock"))}
    altered(TABLE, "2100.25", "9.25")
    record(profile)
    commit()
    for path, text in before.items():
        path.write_text(text)
    problems = found(profile)[1]
    assert any(f"{TABLE}, line 5: VP-FDM is 9.25 and should be 2100.25" in problem for problem in problems)
    assert not any("not what dvc.lock records" in problem for problem in problems)


def test_a_table_that_was_altered_in_the_working_tree_is_found(profile):
    altered(TABLE, "4050.25", "4050.26")
    assert found(profile)[1] == [
        f"the present results are those that the lock records: NO, {TABLE.rpartition('/')[0]} is not what dvc.lock "
        "records for tables",
        f"the present measurements, tables and verdicts follow from the present runs: NO, {TABLE}, line 3: VE-FDM is "
        "4050.26 and should be 4050.25",
        "the present measurements, tables and verdicts follow from the present runs: NO, "
        "results/digits/tables/table1.md does not show the numbers of table1.csv",
        "the present measurements, tables and verdicts follow from the present runs: NO, "
        "results/digits/tables/table1.tex does not show the numbers of table1.csv",
    ]


def test_files_that_are_missing_or_of_no_stage_are_named(profile):
    path_of("vp-fdm-0").unlink()
    write_text(profile.results / "extra.csv", "a\n1\n")
    problems = " ".join(found(profile)[1])
    assert "results/digits/runs/vp-fdm-0/measurements.csv is missing" in problems
    assert "results/digits/extra.csv is written by no stage of dvc.lock" in problems
    Path("dvc.lock").write_text("stages: 1\n")
    assert "dvc.lock is missing or damaged" in " ".join(found(profile)[1])


def test_readme_must_show_the_verdicts_of_the_ablations(profile):
    shutil.copytree(ROOT / "results" / "ablations", "results/ablations")
    shutil.copy(ROOT / "README.md", "README.md")
    Path("README.md").write_text(report.readme(find("ablations")))
    assert integrity.readme() == []
    altered("README.md", "**not reproduced**", "**reproduced**")
    assert integrity.readme() == ["README.md: its table of verdicts is not that of results/ablations/claims.json"]


def test_networks_and_checkpoints_must_be_those_that_were_scored(profile, digits):
    description = checkpoints.specify(profile, "edm-fdm-0", digits)
    network = profile.results / "networks" / "edm-fdm-0.safetensors"
    checkpoints.save(network, checkpoints.build(description), description)
    weights = checkpoints.describe(network)["weights"]
    assert integrity.networks(profile) == [
        "results/digits/networks/edm-fdm-0.safetensors is not the network that was scored"
    ]
    rows = pd.read_csv(path_of("edm-fdm-0")).assign(checkpoint=weights[:12])
    rows.to_csv(path_of("edm-fdm-0"), index=False)
    assert integrity.networks(profile) == []
    content = bytearray(network.read_bytes())
    content[-1] ^= 1
    network.write_bytes(content)
    assert "does not hold the weights that its description promises" in integrity.networks(profile)[0]

    one = profile.model_copy(update={"runs": {"edm-fdm-0": profile.runs["edm-fdm-0"]}})
    folder = runs.checkpoints_of(profile, "edm-fdm-0")
    shutil.rmtree(folder, ignore_errors=True)
    assert LOOK_AT_CHECKPOINTS(one, rows) == [
        "build/digits/checkpoints/edm-fdm-0 has none of edm-fdm-0",
        f"edm-fdm-0: checkpoint {weights[:12]} was scored and is not there",
    ]
    checkpoints.save(folder / "050.safetensors", checkpoints.build(description), description)
    assert LOOK_AT_CHECKPOINTS(one, rows)[0] == "build/digits/checkpoints/edm-fdm-0/050.safetensors was not scored"


def test_the_hash_of_a_folder_is_that_of_dvc(study):
    files = {"b.txt": b"one\n", "sub/a.txt": b"two\r\n", "A.txt": b"3", "ü.txt": b"z"}
    ignored = {"sub/__pycache__/x.pyc": b"x\n", ".t.12.part": b"y\n"}
    for name, content in (files | ignored).items():
        path = study / "d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    Path(".dvcignore").write_text("# comment\n__pycache__\n.*.part\n")
    assert integrity.md5(study / "d") == "d164c71784f2057e1f5aed8c23d9d781.dir"  # as dvc add of 3.67 wrote it


# ------------------------------------------------------------------------------------------------- nothing to compare


def test_without_anything_to_compare_one_sentence_says_so(profile, capsys):
    def sentence(*words: str) -> str:
        assert main(["verify", *words]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        return printed.err

    assert sentence("--revision", "nope") == "fdm: There is no revision nope; git log lists those that there are.\n"
    assert "holds no results of the profile smoke to compare with" in sentence("--params", "profiles/smoke/params.yaml")
    path = profile.results / "claims.json"
    before = path.read_text()
    path.write_text("{")
    commit()
    assert f"At revision {verify.revisions.resolve('HEAD')[:12]}: results/digits/claims.json is damaged" in sentence()
    path.write_text(before)
    commit()
    shutil.rmtree("build")
    assert "Nothing has been measured here, or not all, as build/digits/here is missing" in sentence()
    shutil.rmtree(".git")
    assert "is no git repository; clone the study" in sentence()


def test_published_numbers_stand_beside_measured_ones_of_the_same_data_alone(study):
    profile = measured(find("published-checkpoints"), "FID", kimg=200_000)
    numbers = verify.paper(profile)
    place = (80.0, 0, 0, 50_000)
    assert numbers["edm-fdm-0", 1.0, "heun", 79, "FID", *place] == 1.93
    assert numbers["vp-baseline-0", 1.0, "dpm-solver++", 25, "FID", *place] == 2.99
    assert all(key[4] == "FID" for key in numbers)
    assert verify.paper(measured(find("digits"))) == {}


# ------------------------------------------------------------------------------------------------------- rounding


def test_what_is_derived_agrees_but_for_rounding(tmp_path):
    old = "| a | 20.9 | 1.059671074490229 | 7e-16 | 300 |"
    assert agreement.same(old, old.replace("0229", "0231"))
    assert agreement.same(old, old.replace("7e-16", "3.1e-17"))
    assert not agreement.same(old, old.replace("20.9", "21.0"))
    assert not agreement.same(old, old.replace("300", "301"))
    assert not agreement.same(old, old.replace("| a", "| b"))
    path = tmp_path / "t.csv"
    assert not agreement.settle_text(path, "x 1.0\n")
    assert agreement.settle_text(path, "x 1.000000000001\n")
    assert path.read_text() == "x 1.0\n"
    assert not agreement.settle_text(path, "x 1.001\n")
    assert path.read_text() == "x 1.001\n"
    table = pd.DataFrame({"a": [1 / 3, np.nan], "n": [300, 301], "b": ["x", "y"]})
    assert agreement.rounded(table)["a"][0] == 0.3333333333
    assert agreement.read_back(table)["n"].tolist() == [300, 301]


def test_losses_agree_within_what_rounding_does_to_a_chaotic_training(tmp_path):
    here = pd.DataFrame(
        {"run": "a", "experiment": "e", "images": range(1, 26), "loss": np.linspace(2, 1, 25), "lr": 0.001}
    )
    path = tmp_path / "loss.csv"
    assert not agreement.losses(path, here)
    here.to_csv(path, index=False)
    noise = np.random.default_rng(0).normal(0, 0.02, 25)
    assert agreement.losses(path, here.assign(loss=here["loss"] * np.exp(noise)))
    assert not agreement.losses(path, here.assign(loss=here["loss"] * 1.05))
    assert not agreement.losses(path, here.assign(experiment="f"))
    assert not agreement.losses(path, here.iloc[:-1])


# -------------------------------------------------------------------------------------------------------- explain


def executed(profile: Profile) -> None:
    """An executed notebook with two figures, and the provenance of one training."""
    sources = [
        'rows, floor = study.measurements(profile), study.calibration(profile)\nrows = rows[rows["nfe"] > 5]',
        'figure, ax = plt.subplots()\nplots.save(plots.quality_by_nfe(rows, 1), figures, "quality_by_nfe")',
        'parts["a"] = rows\nparts["b"] = 1',
        'figure = draw(parts)\nplots.save(figure, figures, "parts")',
        "def share():\n    return study.published_costs()",
        'costs, _ = share(), floor\nplots.save(plots.draw(costs), figures, "cost")',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    write_text(profile.results / "notebooks" / "04_tables.ipynb", nbformat.writes(notebook))
    about = {"revision": "a" * 40, "changed_since_revision": [" M fdm/x.py"], "started": "2026-01-02T03:04:05Z",
             "device": "CPU 9", "versions": {"torch": "2.0"}}  # fmt: skip
    write_json(profile.results / "provenance" / "vp-fdm-0.json", about)


def test_a_measured_cell_is_explained_to_its_checkpoint_and_the_command_that_makes_it(profile, capsys):
    executed(profile)
    assert main(["explain", "Table1[VP, fdm, 100 %]"]) == 0
    text = capsys.readouterr().out
    checkpoint = "c" * 12
    for part in (
        "table1[vp,fdm,100%] = 2100.25\n",
        "VP-FDM on digits",
        "results/digits/tables/table1.csv",
        "run vp-fdm-0, seed 0, duration 1.0, kimg 60.0, sampler heun, nfe 25",
        "n 300, n_reference 898",
        f"checkpoint {checkpoint}",
        "  results/digits/runs/vp-fdm-0/measurements.csv\n",
        "  vp-fdm-0: framework vp, kernel fdm, multiplier 2",
        "  training: budget_kimg 50",
        "  results/digits/notebooks/03_evaluate.ipynb\n",
        "vp-fdm-0.json: revision aaaaaaaaaaaa with changes in fdm/x.py, 2026-01-02T03:04:05Z, CPU 9, ",
        "04_tables.json: missing or damaged",
        "  rm -rf build/digits/checkpoints/vp-fdm-0 build/digits/scores/vp-fdm-0.json\n",
        "  dvc repro -f -s dvc.yaml:train dvc.yaml:evaluate dvc.yaml:tables dvc.yaml:publish",
    ):
        assert part in text, part
    assert "NOT" not in text
    Path(TABLE).write_text(Path(TABLE).read_text().replace("2100.25", "9.25"))
    text = explain.explain(profile, "table1[vp,fdm,100%]")
    assert "= 9.25" in text
    assert "NOT the mean of the rows below" in text


def test_tables_2_and_3_are_explained_by_their_sampler(profile):
    assert "sampler heun, nfe 49" in explain.explain(profile, "table2[edm,baseline,49]")
    assert "sampler dpm-solver++, nfe 49" in explain.explain(profile, "table3[edm,baseline,49]")


def test_a_mean_over_seeds_is_explained_by_all_of_them(study):
    run = {"framework": "edm", "kernel": "fdm", "seed": 1}
    profile = measured(change(study / "params.yaml", runs={"edm-fdm-1": run}))
    write_tables(profile)
    text = explain.explain(profile, "table1[edm,fdm,50%]")
    assert "the mean of 2 rows" in text
    assert (
        "rm -rf build/digits/checkpoints/edm-fdm-0 build/digits/scores/edm-fdm-0.json build/digits/checkpoints/" in text
    )
    assert "checkpoints/edm-fdm-1 build/digits/scores/edm-fdm-1.json\n" in text


def test_published_networks_are_fetched_and_not_trained(study):
    profile = measured(find("published-checkpoints"), "FID", kimg=200_000)
    write_tables(profile)
    text = explain.explain(profile, "table2[edm,fdm,79]")
    assert "dvc repro -f -s profiles/published-checkpoints/dvc.yaml:fetch profiles/published-checkpoints/" in text
    assert "02_train" not in text


def test_the_floor_and_published_cells_are_explained(profile):
    text = explain.explain(profile, "table2[real]")
    assert "table2[real] = 6.0" in text
    assert "low 5.0, high 8.0, n 500" in text
    assert "dvc repro -f -s dvc.yaml:reference dvc.yaml:tables dvc.yaml:publish" in text
    text = explain.explain(profile, "table1[vp,fdm,50mimg,CIFAR10]")
    assert "table1[vp,fdm,50 Mimg,cifar10] = 2.74" in text
    assert "Table 1 of the paper" in text
    (file, line) = text.splitlines()[2].strip().split(", line ")
    assert Path(file).read_text().splitlines()[int(line) - 1] == "cifar10,50,vp,fdm,2.74"
    text = explain.explain(profile, "table3[ve,fdm,49,afhqv2]")
    assert "= 48.68" in text
    (file, line) = text.splitlines()[2].strip().split(", line ")
    assert Path(file).read_text().splitlines()[int(line) - 1] == "afhqv2,dpm-solver++,49,ve,fdm,48.68"


def test_a_figure_is_explained_by_the_cell_that_draws_it(profile):
    executed(profile)
    write_text(profile.results / "figures" / "04_tables" / "quality_by_nfe.svg", "")
    text = explain.explain(profile, "figure[quality_by_nfe]")
    assert "figure[quality_by_nfe]: results/digits/figures/04_tables/quality_by_nfe.svg" in text
    assert "notebooks/04_tables.ipynb" in text
    assert "  results/digits/runs/*/measurements.csv\n" in text
    assert "calibration.csv" not in text
    assert "dvc repro -f -s dvc.yaml:tables dvc.yaml:publish" in text
    assert "  results/digits/runs/*/measurements.csv\n" in explain.explain(profile, "figure[parts]")
    text = explain.explain(profile, "figure[cost]")
    assert "  results/published/table*.csv\n" in text
    assert "  results/digits/calibration.csv\n" in text
    assert "measurements.csv" not in text


def test_a_figure_without_data_says_so(profile):
    source = 'time = np.linspace(0, 1)\nfigure = draw(time)\nplots.save(figure, figures, "scale")'
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    write_text(profile.results / "notebooks" / "01_kernel.ipynb", nbformat.writes(notebook))
    text = explain.explain(profile, "figure[scale]")
    assert "nothing but the formulas" in text
    assert "dvc.yaml:kernel" in text


def test_without_a_name_the_forms_are_listed_and_each_is_one(profile, capsys):
    executed(profile)
    assert main(["explain"]) == 0
    text = capsys.readouterr().out
    for name in explain.FORMS:
        assert name in text
        assert explain.explain(profile, name).startswith(name)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("table4[vp,fdm,100%]", "cannot be explained; allowed are names such as table1[vp,fdm,100%], "),
        ("table1[vp,fdm,100%", "cannot be explained; allowed are names such as table1[vp,fdm,100%], "),
        ("table1[vp,fdm]", "is no cell; allowed are names such as table1[vp,fdm,100%], "),
        ("table1[fake]", "is no cell; allowed are names such as table1[vp,fdm,100%], "),
        ("table1[ddpm,fdm,100%]", "'ddpm' is not allowed; in its place stands one of vp, ve, edm."),
        ("table1[vp,momentum,100%]", "'momentum' is not allowed; in its place stands one of baseline, fdm."),
        ("table1[vp,fdm,60%]", "'60%' is not allowed; in its place stands one of 25%, 50%, 75%, 100%."),
        ("table2[vp,fdm,35]", "'35' is not allowed; in its place stands one of 25, 49, 79."),
        ("table1[vp,fdm,50 Mimg,mnist]", "'mnist' is not allowed; in its place stands one of cifar10, ffhq, afhqv2."),
        ("table1[vp,fdm,60 Mimg,ffhq]", "'60mimg' is not allowed; in its place stands one of 50 Mimg, 100 Mimg, "),
        ("figure[nothing]", "There is no figure named nothing; the notebooks draw quality_by_nfe, parts, cost."),
    ],
)
def test_a_name_that_means_nothing_is_answered_with_what_is_allowed(profile, capsys, name, sentence):
    executed(profile)
    assert main(["explain", name]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_what_was_not_measured_or_is_damaged_is_said_in_a_sentence(profile):
    rest = {name: run for name, run in profile.runs.items() if name != "vp-fdm-0"}
    write_tables(profile.model_copy(update={"runs": rest}))
    with pytest.raises(FdmError, match="nothing was measured or published for it; there are vp,baseline,25%"):
        explain.explain(profile, "table1[vp,fdm,100%]")
    with pytest.raises(FdmError, match="has no executed notebooks; run dvc repro first"):
        explain.explain(profile, "figure[cost]")
    Path(TABLE).write_text(Path(TABLE).read_text().replace("training", "trained"))
    with pytest.raises(FdmError, match=r"table1.csv is damaged .* run dvc repro"):
        explain.explain(profile, "table1[vp,fdm,100%]")
    Path(TABLE).unlink()
    with pytest.raises(FdmError, match=r"table1.csv is missing; run dvc repro"):
        explain.explain(profile, "table1[vp,fdm,100%]")


def test_a_hash_that_looks_like_a_number_stays_a_hash(tmp_path):
    table = pd.DataFrame({"experiment": ["001234567890"], "checkpoint": ["12e456789012"], "value": [0.1]})
    assert agreement.read_back(table).to_dict("records") == table.to_dict("records")
    table.to_csv(tmp_path / "t.csv", index=False)
    assert study.read(tmp_path / "t.csv").to_dict("records") == table.to_dict("records")


def test_pictures_are_alike_where_no_pixel_is_visibly_another():
    def png(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="png")
        return buffer.getvalue()

    pixels = np.random.default_rng(0).integers(0, 200, (40, 60, 3))
    other = pixels.copy()
    other[3, 4] += 50  # one of 2,400
    assert agreement.alike(png(pixels), png(pixels + 3))
    assert not agreement.alike(png(pixels), png(other))
    assert not agreement.alike(png(pixels), png(pixels[:, :-1]))
