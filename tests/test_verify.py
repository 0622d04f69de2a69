"""Verification of made-up results in a repository of their own, and where each of their numbers comes from."""

import hashlib
import json
import math
import shutil
import subprocess
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from fdm import explain, integrity, tables, verify
from fdm.__main__ import main
from fdm.errors import FdmError
from fdm.files import sha256, write_json, write_text
from fdm.profiles import Profile, find
from fdm.study import measurements, published

from .conftest import change
from .test_study import measured

FD = "FD(EfficientNet-Lite0)"
TABLE = "results/digits/tables/table1.csv"


def git(*words: str) -> None:
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *author, *words], check=True, capture_output=True)


def record(profile: Profile) -> None:
    """A dvc.lock of what the stages would have written."""
    stages: dict[str, dict] = {
        f"evaluate@{run}": {"outs": [f"results/{profile.profile}/runs/{run}/measurements.csv"]} for run in profile.runs
    }
    names = ("measurements.csv", "metrics.json", "claims.json", "tables")
    stages["reference"] = {"outs": [f"results/{profile.profile}/calibration.csv"]}
    stages["tables"] = {"outs": [f"results/{profile.profile}/{name}" for name in names], "deps": ["results/published"]}
    stages["evaluate@edm-fdm-9"] = {"outs": ["results/digits/runs/edm-fdm-9/measurements.csv"]}  # a run of old
    for stage in stages.values():
        for key, places in stage.items():
            there = [(place, Path(place)) for place in places]
            stage[key] = [
                {"path": place, "hash": "md5", "md5": integrity.md5(path) if path.exists() else "0"}
                for place, path in there
                if path.exists() or "edm-fdm-9" in place
            ]
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def derive(profile: Profile) -> None:
    """Everything that follows from the runs' measurements, and the lock."""
    write_text(profile.results / "measurements.csv", measurements(profile).to_csv(index=False))
    tables.write_table(tables.table1(profile), profile.results / "tables", "table1", "One.")
    for number in (2, 3):
        tables.write_table(tables.table_nfe(profile, number), profile.results / "tables", f"table{number}", "More.")
    write_json(profile.results / "metrics.json", tables.summary(profile))
    record(profile)


def alter(run: str, change, **where) -> None:
    """Change the value of those measurements of a run, as another machine might have it."""
    path = Path(f"results/digits/runs/{run}/measurements.csv")
    rows = pd.read_csv(path)
    place = pd.Series(True, rows.index)
    for column, value in where.items():
        place &= rows[column] == value
    assert place.any()
    rows.loc[place, "value"] = rows.loc[place, "value"].map(change)
    rows.to_csv(path, index=False)


def claim(verdict: str, mean: float) -> None:
    told = {"claim": "C3", "subject": "VP", "verdict": verdict, "numbers": {"mean": {"FDM": mean, "low": None}}}
    write_json(Path("results/digits/claims.json"), {"profile": "digits", "claims": [told]})


@pytest.fixture
def profile(study) -> Profile:
    """Results of the digits profile, committed, and the checkpoints they name; all values have an interval but FD's."""
    profile = measured(find("digits"))
    for run in profile.runs:
        path = profile.results / "runs" / run / "measurements.csv"
        rows = pd.read_csv(path)
        images = rows["value"].where(rows["metric"] != FD)
        rows = rows.assign(low=images - 3, high=images + 4, extractor="e:1", code="c", device="cpu")
        for share in rows["duration"].unique():
            file = profile.build / "checkpoints" / run / f"{round(100 * share):03d}.safetensors"
            write_text(file, f"{run} {share}")
            rows.loc[rows["duration"] == share, "checkpoint"] = sha256(file)[:12]
        rows.to_csv(path, index=False)
    claim("undecided", 0.5)
    derive(profile)
    Path(".gitignore").write_text("build/\nwork/\n")
    git("init", "-q")
    commit()
    return profile


def commit() -> None:
    git("add", "-A")
    git("commit", "-q", "-m", "results")


def found(profile: Profile) -> tuple[dict[str, dict], list[str]]:
    """Numbers by name, and all problems."""
    value = verify.verify(profile, "HEAD")
    return {row["where"]: row for row in value["numbers"]}, [p for check in value["checks"] for p in check["problems"]]


# -------------------------------------------------------------------------------------------------------- verdicts


def test_what_is_reproduced_to_the_last_digit_is_exact(profile, capsys):
    assert main(["verify"]) == 0
    report = json.loads(Path("work/verify/digits.json").read_text())
    rows = {row["where"]: row for row in report["numbers"]}
    assert report["counts"] == {"exact": len(rows), "within": 0, "not met": 0, "missing": 0}
    assert f"{len(rows)} exact, 0 within" in capsys.readouterr().out
    assert rows["table1[vp,fdm,100%]"]["committed"] == pytest.approx(2100.25)
    assert rows["table1[vp,fdm,100%]"]["published"] is None
    assert rows["table3[edm,fdm,49]"]["reproduced"] == pytest.approx(6100.99)
    assert rows["table1[vp,fdm,50 Mimg,cifar10]"]["published"] == 2.74
    assert rows["table1[vp,fdm,50 Mimg,cifar10]"]["committed"] == 2.74
    assert rows["table2[real]"]["interval of"] == "images"
    assert (rows["table2[real]"]["low"], rows["table2[real]"]["high"]) == (5, 8)
    assert rows["table1[n,25%]"]["committed"] == 300
    assert rows[f"metrics[{FD}.EDM-FDM]"]["reproduced"] == pytest.approx(6100.25)
    assert rows[f"calibration[{FD}]"]["committed"] == 6
    assert rows["claims[claims.C3 VP.verdict]"]["committed"] == "undecided"
    assert sum(where.startswith("claims[") for where in rows) == 1  # the mean is one of measurements
    settings = len(pd.read_csv("results/digits/measurements.csv"))
    assert sum(where.startswith("measurements[") for where in rows) == settings
    text = Path("work/verify/digits.md").read_text()
    assert "| table1[vp,fdm,50 Mimg,cifar10] | 2.74 | 2.74 | 2.74 | 0.0 |" in text


@pytest.mark.parametrize(
    ("shift", "verdict"), [(2.5, "within"), (-3.5, "not met"), (4.5, "not met"), (1e-12, "within")]
)
def test_the_interval_of_a_measurement_decides(profile, shift, verdict):
    alter("edm-fdm-0", lambda value: value + shift, metric="KID", duration=1.0, sampler="heun", nfe=25)
    derive(profile)
    rows, problems = found(profile)
    row = rows["measurements[edm-fdm-0,1.0,heun,25,KID]"]
    assert row["verdict"] == verdict
    assert row["difference"] == pytest.approx(shift, abs=1e-12)
    assert (row["low"], row["high"]) == (pytest.approx(6097.25), pytest.approx(6104.25))
    assert {name for name, other in rows.items() if other["verdict"] != "exact"} == {row["where"]}
    assert problems == []


def test_a_number_without_interval_is_not_met_by_another(profile, tmp_path, capsys):
    alter("vp-fdm-0", lambda value: value * 1.000001, metric=FD, duration=1.0, sampler="heun", nfe=25)
    claim("reproduced", 0.5)
    derive(profile)
    assert main(["verify", "--out", "elsewhere"]) == 1
    printed = capsys.readouterr()
    # One measurement, in tables 1 (full training) and 2 (25 evaluations) and in metrics.json, and the verdict.
    for name in (f"measurements[vp-fdm-0,1.0,heun,25,{FD}]", "table1[vp,fdm,100%]", "table2[vp,fdm,25]"):
        assert f"! {name}: not met, committed 2100.25, reproduced 2100.25" in printed.out
    assert "! claims[claims.C3 VP.verdict]: not met, committed undecided, reproduced reproduced" in printed.out
    assert ", 5 not met, 0 missing" in printed.out
    assert printed.err == "fdm: Not all is as committed; see the lines above and the report.\n"
    assert Path("elsewhere/digits.md").exists()


def test_an_interval_holds_for_the_same_n_alone(profile):
    path = profile.results / "runs" / "edm-fdm-0" / "measurements.csv"
    rows = pd.read_csv(path)
    rows.assign(n=400, value=rows["value"] + 0.5).to_csv(path, index=False)
    derive(profile)
    assert found(profile)[0]["measurements[edm-fdm-0,1.0,heun,25,KID]"]["verdict"] == "not met"


def test_what_only_one_side_has_is_missing(profile, capsys):
    (profile.results / "claims.json").unlink()
    record(profile)
    write_json(profile.results / "metrics.json", tables.summary(profile) | {"more": 1})
    record(profile)
    rows, problems = found(profile)
    assert rows["claims[claims.C3 VP.verdict]"]["verdict"] == "missing"
    assert rows["metrics[more]"]["verdict"] == "missing"
    assert (rows["metrics[more]"]["committed"], rows["metrics[more]"]["reproduced"]) == (None, 1)
    assert problems == []
    assert main(["verify"]) == 1
    assert "! metrics[more]: missing, committed nothing, reproduced 1.0" in capsys.readouterr().out


def test_no_more_than_twenty_lines_are_printed(profile, capsys):
    for run in profile.runs:
        alter(run, lambda value: value + 1, metric=FD)
    derive(profile)
    assert main(["verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("! ") for line in lines) == 21
    assert any(line.startswith("! and ") and line.endswith(" more") for line in lines)


def test_the_mean_over_seeds_has_the_interval_of_a_mean(study):
    run = {"framework": "edm", "kernel": "fdm", "seed": 1}
    profile = measured(change(study / "params.yaml", runs={"edm-fdm-1": run}))
    for name in profile.runs:
        path = profile.results / "runs" / name / "measurements.csv"
        rows = pd.read_csv(path)
        rows.assign(low=rows["value"] - 3, high=rows["value"] + 4).to_csv(path, index=False)
    derive(profile)
    numbers = verify.numbers(profile)
    number = numbers["table2[edm,fdm,25]"]
    assert (number.value, number.seeds) == (pytest.approx(2600.25), 2)
    assert number.low == pytest.approx(2600.25 - 3 / math.sqrt(2))
    assert number.high == pytest.approx(2600.25 + 4 / math.sqrt(2))
    assert numbers[f"metrics[{FD}.EDM-FDM]"] == numbers["table1[edm,fdm,100%]"]
    assert numbers["table2[edm,baseline,25]"].seeds == 1


# ------------------------------------------------------------------------------------------- spread of trainings


def test_the_wider_of_the_two_intervals_counts():
    trainings = [100.0, 110.0, 121.0]  # the standard deviation of their logarithms is log 1.1
    factor = 1.1 ** (4.302652729749464 * math.sqrt(2))  # Student's t at 0.975 with two degrees of freedom
    assert verify.interval(verify.Number(50.0), trainings) == (
        pytest.approx(50 / factor), pytest.approx(50 * factor), "trainings",
    )  # fmt: skip
    assert verify.interval(verify.Number(50.0, 49, 52), trainings)[2] == "trainings"
    assert verify.interval(verify.Number(50.0, 10, 90), trainings) == (10, 90, "images")
    assert verify.interval(verify.Number(50.0, 49, 52), [100.0]) == (49, 52, "images")
    low, high, of = verify.interval(verify.Number(-0.1), trainings)  # a KID may be negative
    assert math.isnan(low) and math.isnan(high) and of == ""
    two = verify.interval(verify.Number(50.0, seeds=2), trainings)
    assert two[1] == pytest.approx(50 * factor ** (1 / math.sqrt(2)))


def ablation(profile: Profile) -> None:
    """Five seeds of two cells, at the setting of table 1's last row, whose logarithms differ by 0.01 a seed."""
    rows = measurements(profile)
    rows = rows[(rows["metric"] == FD) & (rows["duration"] == 1) & (rows["sampler"] == "heun") & (rows["nfe"] == 25)]
    parts = []
    for seed in range(5):
        for run, cell in {
            "edm-fdm-0": "edm-fdm-warmup",
            "vp-fdm-0": "vp-fdm-long",
            "ve-baseline-0": "ve-baseline",
        }.items():
            part = rows[rows["run"] == run]
            parts.append(part.assign(cell=cell, seed=seed, value=30 * math.exp(seed / 100)))
            # The same at another noise level of the sampler, which is not what the tables have.
            parts.append(part.assign(cell=cell, seed=seed, sigma_max=10.0, value=30 * math.exp(seed)))
    write_text(Path("results/ablations/measurements.csv"), pd.concat(parts).to_csv(index=False))


def test_another_training_may_differ_as_the_seeds_of_the_ablation_do(profile):
    ablation(profile)
    commit()
    alter("edm-fdm-0", lambda value: value * 1.05, metric=FD, duration=1.0, sampler="heun", nfe=25)
    alter("vp-fdm-0", lambda value: value * 1.05, metric=FD, duration=1.0, sampler="heun", nfe=25)
    alter("ve-baseline-0", lambda value: value * 1.07, metric=FD, duration=1.0, sampler="heun", nfe=25)
    derive(profile)
    rows, problems = found(profile)
    assert problems == []
    row = rows["table1[edm,fdm,100%]"]
    factor = math.exp(2.7764451051977987 * math.sqrt(2) * math.sqrt(0.00025))  # 1.064
    assert (row["verdict"], row["interval of"]) == ("within", "trainings")
    assert row["high"] == pytest.approx(6100.25 * factor)
    assert rows["table1[vp,fdm,100%]"]["verdict"] == "not met"  # the cell vp-fdm-long is another model
    assert rows["table1[ve,baseline,100%]"]["verdict"] == "not met"  # by more than the seeds
    assert rows["table1[edm,fdm,50%]"]["interval of"] == ""


def test_the_ablation_says_nothing_of_other_data(profile):
    ablation(profile)
    other = profile.model_copy(update={"dataset": profile.dataset.model_copy(update={"name": "fashion-mnist"})})
    assert len(verify.spreads(profile)) == 4
    assert verify.spreads(other) == {}


def test_a_measurement_that_an_ablation_has_at_other_noise_levels_is_told_apart(profile):
    path = profile.results / "measurements.csv"
    rows = pd.read_csv(path)
    pd.concat([rows, rows.assign(sigma_max=10.0, value=1.0)]).to_csv(path, index=False)
    numbers = verify.numbers(profile)
    assert numbers["measurements[edm-fdm-0,1.0,heun,25,KID]"].value == pytest.approx(6100.25)
    assert numbers["measurements[edm-fdm-0,1.0,heun,25,KID,10,0,0,300]"].value == 1


def test_of_an_ablation_checkpoints_are_found_by_cell_and_it_has_tables_of_its_own(study):
    profile = find("ablations")
    cell, run = "edm-fdm-warmup", "edm-fdm-warmup-3"
    file = profile.build / "checkpoints" / cell / run / "100.safetensors"
    write_text(file, "a network")
    row = {"cell": cell, "run": run, "checkpoint": sha256(file)[:12]}
    write_text(profile.results / "measurements.csv", pd.DataFrame([row]).to_csv(index=False))
    assert integrity.checkpoints(profile) == [
        f"build/ablations/checkpoints has none of {name}" for name in profile.runs if name != run
    ]
    with pytest.raises(FdmError, match=r"'table1' is no table of .*; there are cells, effects"):
        explain.explain(profile, "table1[vp,fdm,100%]")


# --------------------------------------------------------------------------------------------- published numbers


def test_published_numbers_stand_beside_measured_ones_of_the_same_data_alone(study):
    profile = measured(find("published-checkpoints"), "FID", kimg=200_000)
    numbers = verify.paper(profile)
    assert numbers["table1[edm,fdm,100%]"] == 1.93
    assert numbers["table3[vp,baseline,25]"] == 2.99
    assert numbers["measurements[edm-fdm-0,1.0,dpm-solver++,49,FID]"] == 1.98
    assert numbers["table1[edm,fdm,50 Mimg,afhqv2]"] == 2.73
    assert "table1[edm,fdm,25%]" not in numbers  # which was not measured
    assert all(",KID]" not in name for name in numbers)
    digits = verify.paper(measured(find("digits")))
    assert len(digits) == sum(len(published(number)) for number in (1, 2, 3))


# ------------------------------------------------------------------------------------------------------ integrity


def test_a_committed_number_that_was_altered_is_found(profile, capsys):
    before = Path(TABLE).read_text()
    Path(TABLE).write_text(before.replace("2100.25", "9.25"))
    commit()
    Path(TABLE).write_text(before)
    rows, problems = found(profile)
    assert rows["table1[vp,fdm,100%]"]["verdict"] == "not met"
    assert "results/digits/tables is not what dvc.lock records for tables" in problems
    assert f"{TABLE}, line 5: VP-FDM is 9.25 and should be 2100.25" in problems
    assert len(problems) == 2
    assert main(["verify"]) == 1
    assert (
        "! the committed results are those that the lock records: NO, results/digits/tables" in capsys.readouterr().out
    )
    assert main(["verify", "--revision", "HEAD~1"]) == 0


def test_a_committed_measurement_that_was_altered_with_its_lock_is_found(profile):
    path = profile.results / "measurements.csv"
    before = {file: file.read_text() for file in (path, Path("dvc.lock"))}
    path.write_text(before[path].replace("6100.25", "5.25"))
    record(profile)
    commit()
    for file, text in before.items():
        file.write_text(text)
    problems = found(profile)[1]
    assert len(problems) == 1
    assert problems[0].startswith("results/digits/measurements.csv, line ")
    assert problems[0].endswith(": value is 5.25 and should be 6100.25")


def test_a_table_that_was_altered_in_the_working_tree_is_found(profile):
    Path(TABLE).write_text(Path(TABLE).read_text().replace("4050.25", "4050.26"))
    rows, problems = found(profile)
    assert rows["table1[ve,fdm,50%]"]["verdict"] == "not met"
    assert problems == [
        "results/digits/tables is not what dvc.lock records for tables",
        f"{TABLE}, line 3: VE-FDM is 4050.26 and should be 4050.25",
    ]


def test_a_published_number_that_was_altered_is_found(profile):
    (path,) = Path("results/published").glob("table2_*.csv")
    path.write_text(path.read_text().replace("2.32", "2.23"))
    problems = found(profile)[1]
    assert "results/published is not what dvc.lock records for tables" in problems
    assert "results/digits/tables/table2.csv, line 6: EDM-FDM is 2.32 and should be 2.23" in problems


def test_files_that_are_missing_or_of_no_stage_are_named(profile):
    (profile.results / "runs" / "vp-fdm-0" / "measurements.csv").unlink()
    write_text(profile.results / "extra.csv", "a\n1\n")
    problems = found(profile)[1]
    assert "results/digits/runs/vp-fdm-0/measurements.csv is missing" in problems
    assert "results/digits/extra.csv is written by no stage of dvc.lock" in problems
    Path("dvc.lock").write_text("stages: 1\n")
    assert "dvc.lock is missing or damaged" in found(profile)[1]


def test_checkpoints_must_be_those_that_were_scored(profile):
    folder = profile.build / "checkpoints"
    (folder / "vp-fdm-0" / "050.safetensors").write_text("another training")
    shutil.rmtree(folder / "ve-fdm-0")
    problems = found(profile)[1]
    assert "build/digits/checkpoints/vp-fdm-0/050.safetensors was not scored" in problems
    scored = hashlib.sha256(b"vp-fdm-0 0.5").hexdigest()[:12]
    assert f"vp-fdm-0: checkpoint {scored} was scored and is not there" in problems
    assert "build/digits/checkpoints has none of ve-fdm-0" in problems
    assert len(problems) == 2 + 1 + 4


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
    path = profile.results / "calibration.csv"
    before = path.read_text()
    path.write_text(before.replace("6.0", "six"))
    commit()
    assert f"At revision {verify.revisions.resolve('HEAD')[:12]}: A file in results/digits is damaged" in sentence()
    path.write_text(before)
    commit()
    shutil.rmtree("build")
    assert sentence() == (
        "fdm: Nothing has been reproduced here, as build/digits/checkpoints is missing; run make repro first.\n"
    )
    shutil.rmtree(".git")
    assert "is no git repository; clone the study" in sentence()


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
    write_json(profile.results / "provenance" / "02_train+vp-fdm-0.json", about)


def test_a_measured_cell_is_explained_to_its_checkpoint_and_the_command_that_makes_it(profile, capsys):
    executed(profile)
    assert main(["explain", "Table1[VP, fdm, 100 %]"]) == 0
    text = capsys.readouterr().out
    checkpoint = hashlib.sha256(b"vp-fdm-0 1.0").hexdigest()[:12]
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
        "  results/digits/notebooks/03_evaluate+vp-fdm-0.ipynb\n",
        "02_train+vp-fdm-0.json: revision aaaaaaaaaaaa with changes in fdm/x.py, 2026-01-02T03:04:05Z, CPU 9, ",
        "04_tables.json: missing or damaged",
        "  dvc repro -f -s dvc.yaml:train@vp-fdm-0 dvc.yaml:evaluate@vp-fdm-0 dvc.yaml:tables dvc.yaml:publish\n",
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
    derive(profile)
    text = explain.explain(profile, "table1[edm,fdm,50%]")
    assert "the mean of 2 rows" in text
    assert "train@edm-fdm-0 dvc.yaml:evaluate@edm-fdm-0 dvc.yaml:train@edm-fdm-1 dvc.yaml:evaluate@edm-fdm-1" in text


def test_published_networks_are_fetched_and_not_trained(study):
    profile = measured(find("published-checkpoints"), "FID", kimg=200_000)
    derive(profile)
    text = explain.explain(profile, "table2[edm,fdm,79]")
    assert (
        "dvc repro -f -s profiles/published-checkpoints/dvc.yaml:fetch@edm-fdm-0 profiles/published-checkpoints/"
        in text
    )
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
    write_text(profile.results / "figures" / "quality_by_nfe.svg", "")
    text = explain.explain(profile, "figure[quality_by_nfe]")
    assert "figure[quality_by_nfe]: results/digits/figures/quality_by_nfe.svg" in text
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
    derive(profile.model_copy(update={"runs": rest}))
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
