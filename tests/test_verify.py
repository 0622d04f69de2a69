"""Verification of made-up results in a repository of their own: numbers, files, and what was altered among them."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fdm.__main__ import main
from fdm.data import datasets
from fdm.files import FdmError, json_text, write_json, write_text
from fdm.model import checkpoints
from fdm.repro import integrity, pipeline, revisions, verify
from fdm.study import agreement, closure, measure, measurements, profiles, runs, show, tables
from fdm.study.profiles import Profile

from .scratch import ROOT

FD = "FD(EfficientNet-Lite0)"
TABLES = "results/digits/tables"
PUBLISHED = "results/published/table3_fid_by_nfe_dpm_solver_pp.csv"
MADE_BY = {
    "extractor": "efficientnet-lite0",
    "weights": "e" * 12,
    "dataset": "d" * 64,
    "shape": [1, 8, 8],
    "classes": 10,
}


def run(*words: str) -> None:
    author = [f"GIT_{who}_{key}=test@example.org" for who in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")]
    env = os.environ | dict(pair.split("=") for pair in author)
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def commit() -> None:
    run("git", "add", "-A")
    run("git", "commit", "-q", "-m", "results")


def record() -> None:
    """Bring dvc.lock up to date with what is there, as if the stages had written it."""
    run(sys.executable, "-m", "dvc", "commit", "-f", "dvc.yaml")


def path_of(cell: str, here: bool = False) -> Path:
    return Path("build/digits/here" if here else "results/digits") / "runs" / cell / "measurements.csv"


def measured(profile: Profile, metric: str = FD, kimg: int = 60) -> None:
    """Measurements whose value tells their place: 1000 cell + 100 duration + NFE/100, 0.5 more but for Heun."""
    dataset = datasets.nothing(profile.dataset.name, (1, 8, 8), 10, MADE_BY["dataset"])
    for place, (cell, about) in enumerate(profile.cells.items(), 1):
        rows = []
        for name, seed in zip(profile.runs_of(cell), profile.seeds_of(cell), strict=True):
            trained = runs.experiment(profile, name, dataset) if profile.trained else "fetched"
            names = measure.experiments(profile, name, trained, dataset.sha256, MADE_BY["weights"])
            for setting, called in names.items():
                value = 1000 * place + 100 * setting.duration + setting.nfe / 100 + 0.5 * (setting.sampler != "heun")
                context = (
                    cell, profile.profile, profile.dataset.name, name, about.framework, about.kernel, seed,
                    setting.duration, kimg * setting.duration, setting.sampler, setting.text, setting.nfe, 80.0, 0, 0,
                )  # fmt: skip
                row = dict(zip(measure.CONTEXT, context, strict=True))
                for key in (metric, "KID", "precision", "recall"):
                    share = key in ("precision", "recall")
                    ends = {"value": 0.5, "low": np.nan, "high": np.nan} if share else {
                        "value": value, "low": value * 0.9, "high": value * 1.1}  # fmt: skip
                    origin = dict(zip(measure.ORIGIN, ("e:1", called, "c" * 12, "cpu"), strict=True))
                    n = {"n": profile.evaluation.samples, "n_reference": 898}
                    rows.append(row | {"metric": key} | ends | n | origin)
        write_text(profile.recorded(cell) / "measurements.csv", pd.DataFrame(rows).to_csv(index=False))
    floor = {"metric": [metric], "value": 6.0, "low": 5.0, "high": 8.0, "n": 500, "n_reference": 898}
    write_text(profile.results / "calibration.csv", pd.DataFrame(floor | {"experiment": "f" * 12}).to_csv(index=False))


def conclude(profile: Profile) -> None:
    """What 04_tables writes, but for its figures."""
    rows, folder = measurements.table(profile), profile.results / "tables"
    write_text(profile.results / "measurements.csv", rows.to_csv(index=False))
    for number in (1, 2, 3):
        show.show_table(profile, number, folder)
    show.show_samplers(profile, folder)
    show.write_plots(profile, rows, measurements.losses(profile))
    write_json(profile.results / "metrics.json", tables.summary(profile))
    show.show_claims(profile, folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the digits profile, committed, and equal ones that were measured here, with their checkpoints."""
    folder = tmp_path_factory.mktemp("made") / "study"
    for name in ("fdm", "notebooks", "profiles", "results/published"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "README.md", ".dvcignore", ".dvc/config"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    with contextlib.chdir(folder):
        write_text(Path("results/accepted.csv"), "closure,old,new,revision\n")
        write_text(Path(".gitignore"), "build/\nwork/\n.dvc/tmp/\n.dvc/cache/\n")
        run("git", "init", "-q")
        profile = profiles.find("digits")
        measured(profile)
        rounding = []
        for place, name in enumerate(profile.runs, 1):
            chaotic = name in ("vp-fdm-0", "ve-fdm-0")
            rounding += [{"run": name, "metric": metric, "deviation": 0.05 if chaotic else 1e-5, "chaotic": chaotic}
                         for metric in (FD, "KID", "precision", "recall")]  # fmt: skip
            loss = {"run": name, "experiment": "0", "images": [1000, 2000], "loss": [2.0, place / 10], "lr": 0.1}
            path = profile.results / "training" / f"{profile.run(name).cell}.csv"
            write_text(path, pd.DataFrame(loss).to_csv(index=False))
            network(profile, name)
        write_text(profile.results / "rounding.csv", pd.DataFrame(rounding).to_csv(index=False))
        write_json(profile.build / "reference" / "reference.json", MADE_BY)
        conclude(profile)
        for kind in ("runs", "calibration.csv"):
            copy = shutil.copytree if kind == "runs" else shutil.copy
            profile.here.mkdir(exist_ok=True)
            copy(profile.results / kind, profile.here / kind)
        pipeline.write(profile)
        assert main(["code"]) == 0
        for stage in pipeline.stages(profile).values():
            for out in (next(iter(part)) for part in stage["outs"]):
                if not Path(out).exists():  # pictures and notebooks
                    write_text(Path(out) if Path(out).suffix else Path(out) / "file", "made up\n")
        record()
        commit()
    return folder


def network(profile: Profile, name: str) -> None:
    """A network as a run's last checkpoint, kept in git, and named by its measurements."""
    dataset = datasets.nothing("digits", (1, 8, 8), 10, MADE_BY["dataset"])
    description, kept = runs.specify(profile, name, dataset), profile.results / "networks" / f"{name}.safetensors"
    description["network"] |= {"model_channels": 4, "attn_resolutions": []}
    checkpoints.save(kept, checkpoints.build(description), description)
    path = profile.recorded(profile.run(name).cell) / "measurements.csv"
    weights = checkpoints.describe(kept)["weights"][:12]
    write_text(path, measurements.read(path).assign(checkpoint=weights).to_csv(index=False))
    profile.checkpoints(name).mkdir(parents=True)
    shutil.copy(kept, profile.checkpoints(name) / "100.safetensors")


@pytest.fixture
def profile(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """The digits profile in its own copy of the made-up study."""
    shutil.copytree(made, tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    return profiles.find("digits")


@pytest.fixture
def numbers(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """The same, where DVC is not asked, which takes seconds, and no file is altered."""
    monkeypatch.setattr(integrity, "lock", lambda profile: [])
    return profile


def alter(cell: str, change, **where) -> None:
    """Change the value of those measurements of a cell, as another machine might have it."""
    path = path_of(cell, here=True)
    rows = measurements.read(path)
    place = pd.Series(True, rows.index)
    for column, value in where.items():
        place &= rows[column] == value
    assert place.any()
    rows.loc[place, "value"] = rows.loc[place, "value"].map(change)
    rows.to_csv(path, index=False)


def found(profile: Profile) -> tuple[list[str], list[str]]:
    """The verdict on each measurement, and all problems."""
    value = verify.verify(profile, "HEAD")
    return [row["verdict"] for row in value["numbers"]], verify.failures(value)


# -------------------------------------------------------------------------------------------------------- verdicts


def test_what_is_reproduced_to_the_last_digit_is_exact(profile, capsys):
    code = main(["verify"])
    printed = capsys.readouterr().out
    assert code == 0, printed
    value = json.loads(Path("work/verify/digits.json").read_text())
    n = len(pd.read_csv("results/digits/measurements.csv"))
    assert value["counts"] == {"exact": n, "rounding": 0, "within": 0, "missed": 0, "missing": 0}
    assert "digits, measured here, agrees with revision" in printed
    assert f"{n} measurements: {n} exact; missed shares of 24 groups add up to 0" in printed
    assert "cells of Tables 1 to 3 met: 90 of 90; verdicts on claims met: 4 of 4" in printed
    assert "furthest" not in printed
    text = Path("work/verify/digits.md").read_text()
    assert "chaotic runs (here: ve-fdm-0, vp-fdm-0)" in text
    assert "| edm-fdm-0 | 1 | heun | usual | 25 | FD(EfficientNet-Lite0) |" in text


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
def test_a_measurement_is_judged_by_rounding_or_else_by_its_interval(numbers, run, factor, verdict):
    alter(run[:-2], lambda value: value * factor, metric=FD, duration=1.0, sampler="heun", nfe=49)
    rows = measurements.table(verify.Here.model_construct(**dict(numbers)))
    table = agreement.judge(numbers, measurements.table(numbers), rows).rows
    (row,) = table[table["verdict"] != "exact"].to_dict("records")
    assert (row["run"], row["duration"], row["sampler"], row["nfe"], row["metric"]) == (run, 1.0, "heun", 49, FD)
    assert row["verdict"] == verdict


def test_one_miss_of_many_is_shown_and_no_problem(numbers, capsys):
    alter("edm-fdm", lambda value: value * 1.12, metric=FD, duration=1.0, sampler="heun", nfe=49)
    assert main(["verify"]) == 0
    printed = capsys.readouterr().out
    assert (
        "furthest from the record:\n  edm-fdm-0, 1, heun, usual, 49, FD(EfficientNet-Lite0), 80, 0, 0, 800: missed, "
        in printed
    )
    assert "cells of Tables 1 to 3 met: 89 of 90" in printed


def test_numbers_that_all_move_by_more_than_rounding_are_not_the_same_networks(numbers, capsys):
    for cell in numbers.cells:  # a tenth of the way to the ends of their intervals, all in one direction
        alter(cell, lambda value: value * 1.01, metric=FD)
    assert main(["verify"]) == 1
    printed = capsys.readouterr()
    assert "does NOT agree with revision" in printed.out
    assert "numbers differ by more than rounding explains, where one in twenty may" in printed.out
    assert printed.err == "fdm: Not all is as committed; see the lines above and the report.\n"


def test_on_another_kind_of_device_intervals_decide_and_not_rounding(numbers):
    for cell in numbers.cells:
        path = path_of(cell, here=True)
        rows = measurements.read(path)
        rows.assign(value=rows["value"] * 1.01, device="cuda").to_csv(path, index=False)
    verdicts, problems = found(numbers)
    assert {*verdicts} == {"within"}
    assert problems == []


def test_more_misses_than_chance_explains_are_too_many(numbers):
    for cell in ("vp-fdm", "ve-fdm"):  # two metrics of two runs wholly, four groups of 24
        for metric in (FD, "KID"):
            alter(cell, lambda value: value * 1.5, metric=metric)
    verdicts, problems = found(numbers)
    assert verdicts.count("missed") == 4 * len(measure.settings(numbers, "vp-fdm-0"))
    assert problems == []
    alter("vp-fdm", lambda value: 0.05, metric="recall")
    assert any("in 24 groups (a run's metric each) the missed shares add up to 5.0, where chance explains 4" in problem
               for problem in found(numbers)[1])  # fmt: skip


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
    rows = measurements.select(
        measurements.table(profile), metric=FD, duration=1.0, sampler="heun", nfe=25, options=profiles.USUAL
    )
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


def test_a_measurement_of_other_n_is_another_and_one_side_alone_is_missing(numbers):
    path = path_of("edm-fdm", here=True)
    measurements.read(path).assign(n=400).to_csv(path, index=False)
    n = 2 * len(measurements.read(path))
    assert any(problem.endswith(f"NO, {n} numbers are on one side alone") for problem in found(numbers)[1])
    path.unlink()
    with pytest.raises(FdmError, match=r"Nothing has been measured here, or not all, .* run make repro first"):
        verify.verify(numbers, "HEAD")


def test_a_verdict_that_is_another_here_is_named(numbers):
    told = json.loads((numbers.results / "claims.json").read_text())
    told["claims"][0]["verdict"] = "partly"
    write_text(numbers.results / "claims.json", json_text(told))
    commit()
    problems = found(numbers)[1]
    assert any("C1 VP: identity here, partly committed" in problem for problem in problems)
    assert any('"verdict": "partly" should be "verdict": "identity"' in problem for problem in problems)


def test_errors_of_denoisers_and_solvers_are_compared_with_the_record(numbers, monkeypatch):
    """Those of this machine with those of the revision, each from its own place; one in twenty may be far off."""
    monkeypatch.setattr(integrity, "checks", lambda *_: {})  # whether files belong together is not asked here
    old = np.array([0.1] * 19 + [0.01, 0.9])
    quantity = ["error"] * 19 + ["excess", "radius slope"]
    table = pd.DataFrame({"quantity": quantity, "experiment": "0" * 12, "value": old})
    record, here = (path_of("edm-fdm", here=mine).with_name("errors.csv") for mine in (False, True))
    for path in (record, here):
        table.to_csv(path, index=False)
    commit()

    def agree():
        told = "the errors of denoisers and solvers measured here agree with the committed ones: NO, edm-fdm"
        return not any(told in problem for problem in found(numbers)[1])

    def moved(**values):
        new = old.copy()
        for place, value in values.items():
            new[int(place[1:])] = value
        table.assign(value=new).to_csv(here, index=False)
        return agree()

    assert agree() and moved(_0=0.102, _20=0.95) and moved(_0=0.12)
    assert not moved(_0=0.12, _1=0.12) and not moved(_0=0.2) and not moved(_20=0.7)
    table.assign(value=old * np.where(old < 0.5, 1.05, 1)).to_csv(here, index=False)
    assert not agree()
    table.assign(experiment="1" * 12).to_csv(here, index=False)
    assert not agree()
    here.unlink()
    assert not agree()


# ------------------------------------------------------------------------------------------------------ integrity


def altered(path: str | Path, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text, path
    Path(path).write_text(text.replace(old, new, 1))


FOR = "is not what dvc.lock records for"
ALTERATIONS = {  # together, as each is told in a sentence of its own
    "what follows from the runs": {
        "a table": (f"{TABLES}/table1.csv", "2100.25", "9.25", "table1.csv, line 5: 9.25 should be 2100.25"),
        "a table in Markdown": (f"{TABLES}/table2.md", "6100.49", "9.49", "table2.md, line 6: 9.49 should be 6100.49"),
        "a table in LaTeX": (f"{TABLES}/table3.tex", "6100.99", "9.99", "table3.tex, line 9: 9.99"),
        "all measurements": ("results/digits/measurements.csv", "6100.25", "5.25", ": 5.25 should be 6100.25"),
        "a verdict": ("results/digits/claims.json", "partly", "holds", 'should be "verdict": "partly"'),
    },
    "the runs": {
        "a run's measurement": (path_of("vp-fdm").as_posix(), "2100.25", "5.25", "line 5: 2100.25 should be 5.25"),
        "a published number": (PUBLISHED, "48.68", "46.88", "48.68 should be 46.88"),
    },
    "what it is made by": {
        "a parameter": ("params.yaml", "lr: 3.0e-3", "lr: 2.0e-3", f"params.yaml: training {FOR} train"),
        "training": ("fdm/training/loop.py", "import", "import  ", f"the source {FOR} train"),
        "scoring": ("fdm/tasks/generation.py", "import", "import  ", f"the source {FOR} evaluate"),
        "the pipeline": ("dvc.yaml", "python -m fdm publish", "true", "dvc.yaml is not what python -m fdm "),
    },
    "the lock": {
        "the lock's parameters": ("dvc.lock", "lr: 0.003", "lr: 0.004", f"params.yaml: training {FOR} code"),
        "the lock's command": ("dvc.lock", "notebook 02_train", "notebook 03_train", f"the command {FOR} train"),
        "the floor": ("results/digits/calibration.csv", "6.0", "5.9", "the floor measured here is the committed"),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if "follows" in what else pytest.mark.weekly) for what in ALTERATIONS]
)
def test_whatever_is_altered_among_the_committed_files_is_found(profile, what):
    """Fifteen kinds of alteration; the working tree stays as it was."""
    if what == "what follows from the runs":
        assert integrity.derived(profile) == []
    before = {}
    for file, old, new, _ in ALTERATIONS[what].values():
        before.setdefault(file, Path(file).read_text())
        altered(file, old, new)
    commit()
    for file, text in before.items():
        Path(file).write_text(text)
    problems = found(profile)[1]
    for name, (*_, sentence) in ALTERATIONS[what].items():
        assert any(sentence in problem for problem in problems), "\n".join([name, *problems])


@pytest.mark.weekly
def test_what_is_altered_with_its_lock_is_found_where_something_else_tells(profile):
    altered(f"{TABLES}/table1.csv", "2100.25", "9.25")
    record()
    commit()
    problems = found(profile)[1]
    assert problems == [
        f"the {whose} measurements, tables, verdicts and README follow from the {whose} runs: NO, {TABLES}/table1.csv, "
        "line 5: 9.25 should be 2100.25"
        for whose in ("committed", "present")
    ]


HEADLINE = [
    "results/exact/tables/verdicts.csv", "results/exact/tables/levels.md", "results/exact/tables/slopes.tex",
    "results/exact/REPORT.md", "results/exact/claims.json", "results/exact/measurements.csv", "README.md",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.weekly
def test_whatever_is_altered_of_the_headline_is_found_or_said_not_to_be_covered(tmp_path, monkeypatch):
    """README's verdicts and what they follow from, as committed; while cells are missing there is no lock."""
    for name in filter(lambda name: (ROOT / name).exists(), verify.NAMES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    profile = profiles.find("exact")
    for name in HEADLINE:
        text = Path(name).read_text()
        *_, number = re.finditer(r"(?<=[ ,|&])[1-9](?=\.\d)", text.partition("<!-- end of verdicts")[0])
        other = "1" if number[0] == "9" else "9"
        Path(name).write_text(text[: number.start()] + other + text[number.end() :])
    problems = integrity.derived(profile)
    assert {problem.split(",")[0] for problem in problems} == set(HEADLINE)
    if not pipeline.file_of(profile).with_suffix(".lock").exists():
        assert (
            "figures, notebooks, provenance and training logs are compared with nothing" in integrity.lock(profile)[0]
        )


def test_source_that_changed_without_an_accepted_step_is_other_code_and_with_one_the_same(numbers):
    old = closure.digest("training.loop")
    altered("fdm/training/loop.py", "import", "import  ")
    commit()
    problems = found(numbers)[1]
    assert len(problems) == len(numbers.runs)
    assert "NO, vp-baseline-0 is of other parameters or code; make" in problems[0]
    write_text(Path("results/accepted.csv"), f"closure,old,new\ntraining,{old},{closure.digest('training.loop')}\n")
    commit()
    assert found(numbers)[1] == []


def test_accepted_steps_are_a_chain(numbers):
    def problems(*steps: str) -> str:
        write_text(Path("results/accepted.csv"), "\n".join(["closure,old,new", *steps]) + "\n")
        return " ".join(integrity.steps(numbers))

    assert problems("training,0a,1b", "training,1b,2c", "scoring,3e5,4e5") == ""
    assert "steps of training begin at 0a, 2c" in problems("training,0a,1b", "training,2c,3d")
    assert "steps of training begin at " in problems("training,0a,1b", "training,1b,0a")
    assert "two steps of training lead to the same source" in problems("training,0a,1b", "training,0a,1b")


@pytest.mark.weekly
def test_files_that_are_missing_or_of_no_stage_are_named_and_no_more_than_twenty_printed(profile, capsys):
    path_of("vp-fdm").unlink()
    (profile.results / "metrics.json").unlink()
    for number in range(30):
        write_text(profile.results / f"extra{number}.csv", "a\n1\n")
    assert main(["verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("! ") for line in lines) == 21
    assert any(line.startswith("! and ") and line.endswith(" more") for line in lines)
    text = Path("work/verify/digits.md").read_text()
    assert "results/digits/runs/vp-fdm/measurements.csv is missing" in text
    assert "results/digits/metrics.json is missing" in text
    assert f"results/digits/runs {FOR} evaluate" in text
    assert "results/digits/extra7.csv is written by no stage" in text


def test_a_lock_that_is_missing_or_damaged_is_said_in_a_sentence(profile):
    Path("dvc.lock").write_text("stages: 1\n")
    (problem,) = integrity.lock(profile)
    assert problem.startswith("dvc.lock cannot be compared, as dvc status says: ")
    Path("dvc.lock").unlink()
    (problem,) = integrity.lock(profile)
    assert problem.startswith("dvc.lock is missing, so that figures, notebooks, provenance and training logs are")


def test_what_dvc_says_of_the_stages_is_told_but_for_what_it_cannot_know():
    status = {
        "profiles/x/dvc.yaml:code": [
            {"changed deps": {"fdm": "modified", "notebooks": "modified", "p.yaml": {"seeds": "modified"}}},
            {"changed outs": {"build/x/code": "deleted"}},
        ],
        "profiles/x/dvc.yaml:train": [
            {"changed deps": {"build/x/dataset.safetensors": "deleted", "build/x/code/02_train.txt": "modified"}},
            {"changed outs": {"results/x/training": "deleted", "results/x/runs": "modified"}},
            "changed command",
        ],
        "profiles/x/dvc.yaml:new": [{"changed deps": {"p.yaml": "new"}}],
    }
    assert list(integrity.differences(status, "x.lock")) == [
        "p.yaml: seeds is not what x.lock records for code",
        "the source is not what x.lock records for train",
        "results/x/training is missing",
        "results/x/runs is not what x.lock records for train",
        "the command is not what x.lock records for train",
        "p.yaml is not what x.lock records for new",
    ]


def test_networks_and_checkpoints_must_be_those_that_were_scored(profile):
    kept = profile.results / "networks" / "edm-fdm-0.safetensors"
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    assert "does not hold the weights that its description promises" in integrity.checks(profile, "present")[
        "the present networks are those that were scored"
    ][0]  # fmt: skip
    shutil.copy(profile.results / "networks" / "edm-baseline-0.safetensors", kept)
    assert integrity.networks(profile) == [
        "results/digits/networks/edm-fdm-0.safetensors is not the network that was scored"
    ]

    rows = measurements.table(profile)
    assert verify.scored(profile, rows) == []
    (weights,) = set(rows[rows["run"] == "vp-fdm-0"]["checkpoint"])
    lost = f"vp-fdm-0: checkpoint {weights} was scored and is not there"
    path = profile.checkpoints("vp-fdm-0") / "100.safetensors"
    path.write_bytes(b"1")
    assert verify.scored(profile, rows) == ["build/digits/checkpoints/vp-fdm-0/100.safetensors is damaged", lost]
    path.unlink()
    assert verify.scored(profile, rows) == [lost]


# ------------------------------------------------------------------------------------------------- nothing to compare


def test_without_anything_to_compare_one_sentence_says_so(numbers, capsys):
    def sentence(*words: str) -> str:
        assert main(["verify", *words]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        return printed.err

    assert sentence("--revision", "nope") == "fdm: There is no revision 'nope'; git log lists those that there are.\n"
    assert "holds no results of the profile smoke to compare with" in sentence("--params", "profiles/smoke/params.yaml")
    path = numbers.results / "claims.json"
    before = path.read_text()
    for text, told in (
        ("{", "results/digits/claims.json is damaged"),
        ("{}", "what is committed is damaged (KeyError("),
    ):
        path.write_text(text)
        commit()
        assert f"At revision {revisions.resolve('HEAD')[:12]}: {told}" in sentence()
    path.write_text(before)
    shutil.rmtree("build")
    commit()
    assert main(["verify"]) == 1
    first, *checks = capsys.readouterr().err.splitlines()
    assert first.startswith("fdm: Nothing has been measured here, or not all, as build/digits/here is missing")
    assert len(checks) == 4
    shutil.rmtree(".git")
    assert "is no git repository; clone the study" in sentence()


def test_published_numbers_stand_beside_measured_ones_of_the_same_data_alone(study):
    profile = profiles.find("published-checkpoints")
    measured(profile, "FID", kimg=200_000)
    numbers = verify.paper(profile)
    place = (80.0, 0, 0, 50_000)
    assert numbers["edm-fdm-0", 1.0, "heun", "usual", 79, "FID", *place] == 1.93
    assert numbers["vp-baseline-0", 1.0, "dpm-solver++", "usual", 25, "FID", *place] == 2.99
    assert all(key[5] == "FID" for key in numbers)
    measured(profiles.find("digits"))
    assert verify.paper(profiles.find("digits")) == {}


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


def test_a_hash_that_looks_like_a_number_stays_a_hash(tmp_path):
    table = pd.DataFrame({"experiment": ["001234567890"], "checkpoint": ["12e456789012"], "value": [0.1]})
    assert agreement.read_back(table).to_dict("records") == table.to_dict("records")
    table.to_csv(tmp_path / "t.csv", index=False)
    assert measurements.read(tmp_path / "t.csv").to_dict("records") == table.to_dict("records")


def test_pictures_are_alike_where_no_pixel_is_visibly_another():
    def png(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="png")
        return buffer.getvalue()

    pixels = np.random.default_rng(0).integers(0, 200, (40, 60, 3))
    other = pixels.copy()
    other[3, 4] += 50  # one of 2,400
    assert agreement.pictures_agree(png(pixels), png(pixels + 3))
    assert not agreement.pictures_agree(png(pixels), png(other))
    assert not agreement.pictures_agree(png(pixels), png(pixels[:, :-1]))
