"""Where each number and figure comes from, of made-up results of two profiles."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from fdm.__main__ import main
from fdm.files import FdmError, write_json
from fdm.repro import trace
from fdm.study import evidence, figures, findings, measure, profiles, report, tables
from fdm.study.profiles import Profile

from . import made_up
from .conftest import study_in
from .scratch import ROOT

FD = "FD(EfficientNet-Lite0)"
ABOUT = {"revision": "a" * 40, "changed_since_revision": [" M fdm/x.py"], "started": "2026-01-02T03:04:05Z",
         "device": "CPU 9", "versions": {"torch": "2.0"}, "training_seconds": 60.4}  # fmt: skip


def record(profile: Profile) -> Profile:
    """Measurements of every setting, each value another one, the floor, and the provenance of the first cell."""
    for place, (cell, about) in enumerate(profile.cells.items()):
        rows = []
        for run, seed in zip(profile.runs_of(cell), profile.seeds_of(cell), strict=True):
            for setting in measure.settings(profile, run):
                context = (cell, profile.profile, profile.dataset.name, run, about.framework, about.kernel, seed,
                           setting.duration, 60 * setting.duration, setting.sampler, setting.text, setting.nfe,
                           setting.sigma_max)  # fmt: skip
                sets = [(0, 0, profile.evaluation.samples)]
                for latents, reference, n in sets:
                    told = dict(zip(measure.CONTEXT, (*context, latents, reference), strict=True))
                    value = 100 * (place + 1) + 10 * setting.duration + seed + setting.nfe / 100 + latents / 1000 + 0.03
                    told |= {"metric": FD, "value": value, "low": value - 1, "high": value + 1, "n": n}
                    told |= {"n_reference": 898, "extractor": "e", "experiment": f"{seed}" * 12}
                    rows.append(told | {"checkpoint": run, "device": "cpu"})
                    rows.append(rows[-1] | {"metric": "KID", "value": 0.5})
        profile.recorded(cell).mkdir(parents=True)
        pd.DataFrame(rows).to_csv(profile.recorded(cell) / "measurements.csv", index=False)
    floor = {"metric": [FD, "KID"], "value": [6.0, 0.1], "low": [5.0, 0], "high": [8.0, 0.2], "n": 500}
    pd.DataFrame(floor | {"n_reference": 898}).to_csv(profile.results / "calibration.csv", index=False)
    write_json(profile.results / "provenance" / f"{next(iter(profile.cells))}.json", ABOUT)
    return profile


@pytest.fixture
def profile(study: Path) -> Profile:
    """Tables of the digits, with two seeds and a sampler with an option, and two figures."""
    values = yaml.safe_load((study / "params.yaml").read_text()) | {"seeds": [0, 1]}
    values["evaluation"]["settings"] = [
        {"sampler": "heun", "nfe": [25], "duration": [0.25, 0.5, 0.75, 1.0]},
        *({"sampler": sampler, "nfe": [5, 25, 49, 79]} for sampler in ("heun", "dpm-solver++")),
        *({"sampler": "ddim", "nfe": [10, 25]} | options for options in ({}, {"eta": 0.5})),
    ]
    (study / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    profile = record(profiles.find("digits"))
    content = {"table1": tables.by_training(profile), "table2": tables.by_nfe(profile, 2),
               "table3": tables.by_nfe(profile, 3), "samplers": tables.by_sampler(profile)}  # fmt: skip
    for name, table in content.items():
        tables.write_table(table, profile.results / "tables", name, name)
    drawn, data = Figure(figsize=(1, 1)), ["runs/*/measurements.csv", "results/published/table*.csv"]
    figures.save(drawn, profile.results / "figures" / "04_tables", "quality_by_nfe", data)
    figures.save(drawn, profile.results / "figures" / "01_kernel", "kernel_scale", [])
    return profile


@pytest.fixture(scope="module")
def concluded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with tables of the evidence, of a few cells."""
    study = study_in(tmp_path_factory.mktemp("concluded"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(study)
        conclude(study)
    return study


@pytest.fixture
def exact(concluded: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """The evidence in that study, which is the working directory; it is left as it is."""
    monkeypatch.chdir(concluded)
    return profiles.find("exact")


def conclude(study: Path) -> None:
    path = study / "profiles" / "exact" / "params.yaml"
    values = yaml.safe_load(path.read_text()) | {"seeds": [0, 1]}
    kept = [cell for cell in values["cells"] if re.fullmatch(r"\w+-(baseline|fdm)(-warmup|-one)?", cell)]
    values["cells"] = {cell: values["cells"][cell] for cell in kept}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    profile = profiles.find("exact")
    made_up.record(profile)
    targets = evidence.targets(profile)
    content = {name: findings.together(name, targets) for name in findings.TABLES}
    for name, table in (content | {"verdicts": evidence.verdicts(profile)}).items():
        tables.write_table(table, profile.results / "tables", name, name)
    figures.save(Figure(figsize=(1, 1)), profile.results / "figures" / "05_evidence", "answer", ["runs/*/errors.csv"])


def parts_of(text: str, *parts: str) -> None:
    for part in parts:
        assert part in text, f"{part!r} is not in\n{text}"


def test_a_mean_over_seeds_leads_to_rows_files_checkpoints_and_the_command_that_makes_it(profile, capsys):
    assert main(["explain", "Table1[VP, baseline, 50 %]"]) == 0
    text = capsys.readouterr().out
    parts_of(
        text, "table1[vp,baseline,50%] = 105.78\n",
        f"{FD} of VP on digits, lower is better; in results/digits/tables/table1.csv\nfrom 2 of the measurements:\n"
        "  all have cell vp-baseline, duration 0.5, kimg 30, sampler heun, options usual, nfe 25, sigma_max 80, ",
        "  vp-baseline: framework vp, kernel baseline\n",
        "    results/digits/provenance/vp-baseline.json: revision aaaaaaaaaaaa with changes in fdm/x.py, "
        "2026-01-02T03:04:05Z, CPU 9, torch 2.0, 60 s of training\n"
        "    results/digits/runs/vp-baseline/measurements.csv\n"
        "    build/digits/checkpoints/vp-baseline-0/050.safetensors\n"
        "    build/digits/checkpoints/vp-baseline-1/050.safetensors\n",
        "of the cells of params.yaml, with provenance and files:\n",
        "  results/digits/notebooks/02_train.ipynb\n", "04_tables.json: missing or damaged, so that nothing is known",
        "stages of dvc.yaml: train, evaluate, tables\n", "\n  rm -rf build/digits/checkpoints/vp-baseline-0 ",
        "  dvc repro -f -s dvc.yaml:train dvc.yaml:evaluate dvc.yaml:tables dvc.yaml:publish",
    )  # fmt: skip
    rows = re.findall(r"\n +(vp-baseline-\d) +(\d) +(\S+) +(\d+) +(\S+)(?=\n)", text)
    assert rows == [(f"vp-baseline-{i}", f"{i}", f"{105.28 + i:.2f}", f"{i}" * 12, f"vp-baseline-{i}") for i in (0, 1)]
    assert "NOT" not in text


def test_a_number_that_is_not_the_mean_of_its_rows_is_told(profile):
    path = profile.results / "tables" / "table1.csv"
    path.write_text(path.read_text().replace("105.78", "9.25"))
    parts_of(
        trace.explain(profile, "table1[vp,baseline,50%]"), "= 9.25\n", "This is NOT what follows from the data below"
    )


def test_a_number_is_of_its_sampler_options_and_evaluations(profile):
    for name, part in (
        ("table2[edm,fdm,49]", "duration 1, kimg 60, sampler heun, options usual, nfe 49, "),
        ("table3[edm,fdm,49]", "duration 1, kimg 60, sampler dpm-solver++, options usual, nfe 49, "),
        ("samplers[edm,fdm,ddim,10]", "duration 1, kimg 60, sampler ddim, options usual, nfe 10, "),
        ("samplers[edm,fdm,DDIM, eta = 0.5,10]", "duration 1, kimg 60, sampler ddim, options eta=0.5, nfe 10, "),
        ("samplers[edm,fdm,DPM-Solver++,5]", "duration 1, kimg 60, sampler dpm-solver++, options usual, nfe 5, "),
        ("table1[edm,25%,fdm]", "duration 0.25, kimg 15, sampler heun, options usual, nfe 25, "),
    ):
        text = trace.explain(profile, name)
        parts_of(text, f"from 2 of the measurements:\n  all have cell edm-fdm, {part}")
        assert "NOT" not in text


def test_the_floor_and_published_numbers_have_files_of_their_own(profile):
    text = trace.explain(profile, "table2[real]")
    parts_of(text, "table2[real] = 6\n", f"{FD} of real images of digits against other real images, the floor",
             "  results/digits/calibration.csv: metric FD(EfficientNet-Lite0), value 6, low 5, high 8, n 500",
             "dvc repro -f -s dvc.yaml:reference dvc.yaml:tables dvc.yaml:publish")  # fmt: skip
    for name, value, line in (
        ("table1[vp,fdm,50mimg,CIFAR10]", "table1[vp,fdm,50 Mimg,cifar10] = 2.74", "cifar10,50,vp,fdm,2.74"),
        ("table3[ve,fdm,49,afhqv2]", "table3[ve,fdm,49,afhqv2] = 48.68", "afhqv2,dpm-solver++,49,ve,fdm,48.68"),
    ):
        text = trace.explain(profile, name)
        file, number, told = re.search(r"\n  (\S+), line (\d+): (.*)\n", text).groups()
        parts_of(text, f"{value}\n", "as published: Table ", "arXiv 2306.06991")
        assert told == line == Path(file).read_text().splitlines()[int(number) - 1]


def test_fetched_networks_are_fetched_again_and_not_trained(study):
    profile = record(profiles.find("published-checkpoints"))
    tables.write_table(tables.by_nfe(profile, 2), profile.results / "tables", "table2", "2")
    text = trace.explain(profile, "table2[edm,fdm,79]")
    parts_of(text, "stages of profiles/published-checkpoints/dvc.yaml: fetch, evaluate, tables\n", "source fetch")
    assert "02_train" not in text


def test_rows_of_the_evidence_lead_to_their_records_and_to_what_makes_them(exact):
    text = trace.explain(exact, "why[EDM with c_in = 1, exact]")
    parts_of(text, "why[EDM with c_in = 1,exact]: ratio ", "made by why in fdm/study/findings.py, in results/exact/",
             "from records of profiles/exact/params.yaml:\n", "  results/exact/runs/edm-baseline-one/errors.csv\n",
             "stages of profiles/exact/dvc.yaml: evidence\n")  # fmt: skip
    text = trace.explain(exact, "verdicts[C3, EDM, exact]")
    parts_of(text, "verdicts[C3,EDM,exact]: ", "verdict does not hold", "made by verdicts in fdm/study/evidence.py")
    assert "results/exact/runs/vp-" not in text
    text = trace.explain(exact, "slopes[vp-fdm,exact]")
    assert re.findall("results/exact/runs/([^/]+)/errors.csv", text) == ["vp-fdm"]


@pytest.mark.parametrize(("name", "where"), [
    ("fashion-16", "runs"), ("few-steps", "few-steps"), ("systems", "systems and standings"),
    ("restoration", "restoration and restored"),
])  # fmt: skip
def test_a_profile_without_tables_says_where_its_results_are(study, name, where):
    with pytest.raises(FdmError, match=f"{name} has no tables of claims; see {where} in results/{name}"):
        trace.explain(profiles.find(name), None)
    assert all((ROOT / "results" / name / folder).is_dir() for folder in where.split(" and "))


def test_a_figure_leads_to_its_notebook_and_data(profile):
    folder = "results/digits/figures/04_tables/quality_by_nfe"
    parts_of(trace.explain(profile, "figure[Quality_by_NFE]"), f"figure[quality_by_nfe]: {folder}.png, {folder}.svg\n",
             "drawn by notebooks/04_tables.ipynb, from:\n  results/digits/runs/*/measurements.csv\n",
             "  results/published/table*.csv\n",
             "stages of dvc.yaml: tables\n", "dvc repro -f -s dvc.yaml:tables dvc.yaml:publish")  # fmt: skip
    text = trace.explain(profile, "figure[kernel_scale]")
    parts_of(text, "  the formulas and the code that the notebook runs, and no data\n", "stages of dvc.yaml: kernel\n")


def test_a_manifest_has_each_figure_once_by_name_and_is_written_only_where_it_changes(tmp_path):
    path, drawn = tmp_path / "figures.json", Figure(figsize=(1, 1))
    figures.save(drawn, tmp_path, "b", ["calibration.csv"])
    figures.save(drawn, tmp_path, "a", [])
    assert list(json.loads(path.read_text()).items()) == [("a", []), ("b", ["calibration.csv"])]
    before = path.stat().st_mtime_ns, path.stat().st_ino
    figures.save(drawn, tmp_path, "b", ["calibration.csv"])
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    figures.save(drawn, tmp_path, "b", ["training/*.csv"])
    assert json.loads(path.read_text())["b"] == ["training/*.csv"]


def test_without_a_name_the_forms_of_the_evidence_are_its_tables(exact, capsys):
    assert main(["explain", "--params", exact.params_file]) == 0
    forms = re.findall(r"\n  (\S+\[.*?\]) ", capsys.readouterr().out)
    assert {form.partition("[")[0] for form in forms} == {*report.KEYS, "figure"}


def test_without_a_name_the_forms_are_listed_and_each_is_one(profile, capsys):
    assert main(["explain", "--params", profile.params_file]) == 0
    forms = re.findall(r"\n  (\S+\[.*?\]) ", capsys.readouterr().out)
    assert {form.partition("[")[0] for form in forms} == {*trace.TABLES, "figure"}
    for form in forms:
        text = trace.explain(profile, form)
        assert set("".join(text.split("]")[0].split()).lower().split(",")) >= set(
            "".join(form[:-1].split()).lower().split(",")
        )


def test_a_name_that_means_nothing_is_answered_with_what_is_allowed(profile, capsys):
    for name, sentence in (
        ("table4[vp,fdm,100%]", "cannot be explained; allowed are names such as table1[vp,fdm,100%], "),
        ("table1[vp,fdm,100%", "cannot be explained; allowed are names such as table1[vp,fdm,100%], "),
        ("effects[vp,warm-up,100%]", "cannot be explained; allowed are names such as table1[vp,fdm,100%], "),
        (
            "C3 VP",
            "verdicts on claims are those of --params profiles/exact/params.yaml, such as verdicts[C3,EDM,exact]",
        ),
        ("table1[vp,100%]", "means several; there are vp,baseline,100%; vp,fdm,100%."),
        ("table1[fake]", "'fake' is not allowed; in its place can stand real."),
        ("table1[ddpm,fdm,100%]", "'ddpm' is not allowed; in its place can stand vp, ve, edm."),
        ("table1[vp,momentum,100%]", "'momentum' is not allowed; in its place can stand baseline, fdm."),
        ("table1[vp,fdm,60%]", "'60%' is not allowed; in its place can stand 25%, 50%, 75%, 100%."),
        ("table2[vp,fdm,35]", "'35' is not allowed; in its place can stand 25, 49, 79."),
        ("table1[vp,fdm,50 Mimg,mnist]", "'mnist' is not allowed; in its place can stand cifar10, ffhq, afhqv2."),
        ("table1[vp,fdm,60 Mimg,ffhq]", "'60mimg' is not allowed; in its place can stand 50 Mimg, 100 Mimg, "),
        ("samplers[vp,fdm,ddim,11]", "'11' is not allowed; in its place can stand 10, 25."),
        ("figure[nothing]", "'nothing' is not allowed; in its place can stand kernel_scale, quality_by_nfe."),
    ):
        assert main(["explain", name]) == 1
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1


def test_a_row_of_the_evidence_that_is_not_there_is_answered_with_what_is(exact):
    for name, sentence in (
        ("verdicts", "means several; there are .*C3,EDM,exact"),
        ("verdicts[C3,exact]", "means several; there are C3,VP,exact; C3,VE,exact; C3,EDM,exact"),
        ("slopes[vp-none,exact]", "'vp-none' is not allowed; in its place can stand edm-baseline, "),
        ("table1[vp,fdm,100%]", r"cannot be explained; allowed are names such as verdicts\[...\], "),
    ):
        with pytest.raises(FdmError, match=sentence):
            trace.explain(exact, name)


def test_what_is_missing_or_damaged_is_said_in_a_sentence(profile):
    table = profile.results / "tables" / "table1.csv"
    named, whole = "table1[vp,fdm,100%]", table.read_text()
    record_of = profile.recorded("vp-fdm") / "measurements.csv"
    rows = pd.read_csv(record_of)
    for path, content, sentence in (
        (table, whole.replace("training", "trained"), r"table1\.csv or its data are damaged .*; run dvc repro"),
        (
            record_of,
            rows[rows["duration"] < 1].to_csv(index=False),
            "has what the measurements do not have; run dvc repro",
        ),
        (record_of, rows.drop(columns="options").to_csv(index=False), "or its data are damaged .*; run dvc repro"),
        (record_of, None, r"measurements\.csv is missing; run dvc repro"),
        (table, None, r"table1\.csv is missing; run dvc repro"),
    ):
        table.write_text(whole)
        path.write_text(content) if content else path.unlink()
        with pytest.raises(FdmError, match=sentence):
            trace.explain(profile, named)
    for manifest in profile.results.glob("figures/*/figures.json"):
        manifest.unlink()
    with pytest.raises(FdmError, match="results/digits/figures tells of no figure; run dvc repro"):
        trace.explain(profile, "figure[kernel_scale]")
