"""Numbers in prose, by name from the record: in the report, in README and in notebooks; and what words say of them."""

import math
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest

from fdm.__main__ import main
from fdm.files import FdmError
from fdm.process.momentum import scale_fdm
from fdm.repro import notebooks, pipeline
from fdm.study import evidence, findings, measurements, profiles, published, report, rules, show, tables
from fdm.study.profiles import Profile

from . import made_up
from .conftest import ROOT

PAGES = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = (
    "README.md", "CONTRIBUTING.md", "benchmarks/README.md", "notebooks/05_report.md", "notebooks/05_short.md", *PAGES
)  # fmt: skip
NAME = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
PROFILES = ["digits", *sorted(path.parent.name for path in (ROOT / "profiles").glob("*/params.yaml"))]
MARK = "<!--={}-->{}<!--/-->"


def concluded(profile: Profile) -> None:
    """What 05_evidence writes of made-up measurements, but for its figures and its report."""
    for each in (profile, *map(profiles.find, profile.beside)):
        made_up.record(each, kernel=1.1)
    targets, folder = evidence.targets(profile), profile.results / "tables"
    targets[0].scores.to_csv(profile.results / "measurements.csv", index=False)
    made = {name: findings.together(name, targets) for name in findings.TABLES}
    for name, table in (made | {"verdicts": evidence.verdicts(profile), "published": published.savings()}).items():
        tables.write_table(table, folder, name, name)
    show.show_claims(profile, folder)


@pytest.fixture(scope="module")
def concluded_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with made-up results of the evidence."""
    folder = tmp_path_factory.mktemp("concluded") / "study"
    for name in ("fdm", "docs", "profiles", "notebooks", "results/published", "benchmarks/results"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "README.md", "benchmarks/README.md"):
        shutil.copy(ROOT / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        concluded(profiles.find("exact"))
    return folder


@pytest.fixture
def exact(concluded_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """The evidence in a study of its own, with all tables that 05_evidence writes."""
    study = shutil.copytree(concluded_once, tmp_path / "study")
    monkeypatch.chdir(study)
    return profiles.find("exact")


# ------------------------------------------------------------------------------------------------------ values


def test_values_are_those_of_the_tables_on_record(exact):
    values, folder = report.numbers(exact), exact.results / "tables"
    row = measurements.read(folder / "why.csv").set_index(["change", "target"]).loc[("EDM with FDM's c_in", "exact")]
    assert values["why EDM with FDM's c_in, exact"] == f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    assert 1.08 < row["ratio"] < 1.12
    assert values["why EDM with FDM's c_in, exact: slope"] == "0.00"
    assert values["why EDM with FDM's c_in, exact: p"] == "< 0.001"
    assert values["verdicts C3, EDM, exact: verdict"] == values["verdict C3 EDM, exact"] == "does not hold"
    assert values["verdict C1 VE"] == "empty"
    assert values["verdicts C5"] == "equivalent for all, exact; equivalent for all, fashion-16"
    shift = float(values["shifts EDM, weighted, exact"].split()[0])
    assert shift == pytest.approx(1.1 ** (1 / made_up.SLOPE), rel=0.05)
    assert values["worst EDM, c_in, exact"].startswith("1.1")
    assert 0.02 <= float(values["worst EDM, c_in, exact: sigma"]) <= 80
    assert (values["floor"], values["floor.n"]) == ("10.0", "2,000")


def test_values_follow_the_record(exact):
    table = measurements.read(exact.results / "tables" / "why.csv")
    tables.write_table(table.assign(ratio=2.0), exact.results / "tables", "why", "")
    assert report.numbers(exact)["why EDM with FDM's c_in, exact"].startswith("2.00 [")


def test_a_damaged_table_is_named(exact):
    path = exact.results / "measurements.csv"
    measurements.read(path).drop(columns="options").to_csv(path, index=False)
    with pytest.raises(FdmError, match=r"exact/measurements\.csv is damaged \(KeyError\('options'\)\); run dvc"):
        report.numbers(exact)


def test_a_profile_has_values_without_any_result(study):
    values = report.numbers(profiles.find("digits"))
    assert values["training.batch"] == "128"
    assert values["cells.edm-fdm.warmup_steps"] == "20"
    assert values["network.channel_mult"] == "1, 2"
    assert (values["seeds"], values["cells"], values["runs"], values["models"]) == ("1", "6", "6", "6")
    assert values["samplers"] == "Heun, DPM-Solver++, DDIM, S-PNDM and F-PNDM"
    assert values["other samplers"] == "DDIM, S-PNDM and F-PNDM"
    training = {"images": "50 thousand", "steps": "391", "quarter": "98", "epochs": "31"}
    assert {key: values[f"training.{key}"] for key in training} == training
    assert "floor" not in values


def test_the_design_of_the_evidence_is_counted(study):
    values = report.parameters(profiles.find("exact"))
    assert (values["cells"], values["seeds"], values["runs"]) == ("37", "5", "161")
    assert (values["rules.quality"], values["rules.effect"], values["rules.accuracy"]) == ("10 %", "5 %", "80 %")
    assert math.exp(rules.QUALITY) == pytest.approx(1.1)
    assert (values["rules.reduced nfe"], values["rules.whole nfe"], values["rules.primary"]) == ("9", "25", "8")


def test_values_of_the_published_tables_are_the_papers():
    values = report.of_published_tables()
    assert values["table3[edm,baseline,25,afhqv2]"] == "2.60"
    assert values["table1[ve,fdm,200 Mimg,afhqv2]"] == "47.30"
    assert values["published share table1[vp,CIFAR-10]"] == "0.70"
    assert values["published share table1[ve,AFHQv2]"] == "≤ 0.25"
    assert (values["published share lowest"], values["published share highest"]) == ("0.35", "0.70")
    # Counted by hand in the paper's tables.
    assert (values["published half"], values["published third"]) == ("2 of 9", "6 of 6")
    assert values["published equal"] == "2 of 12"
    assert (values["published within"], values["published nothing to save"]) == ("8 of 9", "7 of 9")
    assert (values["published nfe lowest"], values["published nfe highest"]) == ("25", "79")


def test_values_of_the_benchmarks_are_those_of_their_records():
    values = report.of_benchmarks()
    record = measurements.read_json(ROOT / "benchmarks" / "results" / "cpu-2.json")
    (row,) = [
        row for row in record["rows"]
        if (row["shape"], row["operation"], row["variant"]) == ("small", "training step", "fdm")
    ]  # fmt: skip
    speed, times = row["images_per_second"]["median"], row["times_as_fast_as"]["plain"]["median"]
    assert float(values["benchmark cpu-2 small training step"].replace(",", "")) == pytest.approx(speed, rel=1e-3)
    assert values["benchmark cpu-2 small training step plain"].startswith(f"{times:.2f} [")
    assert values["benchmark table speeds"].count("\n") == 1 + 3 * 3
    assert values["benchmark table parts"].count("\n") == 1 + 2 * 2
    commands = measurements.read(ROOT / "benchmarks" / "results" / "commands.csv")
    for row in commands.itertuples():
        assert f"| `{row.command}` | {row.minutes:g} |" in values["benchmark table commands"]
    assert "| network |" in values["benchmark table networks"]


@pytest.mark.parametrize(
    ("n", "text"), [(8_800_000, "8.8 million"), (20_000, "20 thousand"), (2e8, "200 million"), (130, "130")]
)
def test_large_numbers_are_written_for_people(n, text):
    assert report.amount(n) == text


def test_words_are_listed_and_intervals_left_out_where_there_are_none():
    assert [report.listed(words) for words in ("", "a", "ab", "abc")] == ["none", "a", "a and b", "a, b and c"]
    assert report.interval(1.234, None, None) == report.interval(1.234, math.nan, math.nan) == "1.23"
    assert report.interval(1.234, 1, 2, 1) == "1.2 [1.0, 2.0]"


# ------------------------------------------------------------------------------------------------- in a text


def test_names_in_a_text_are_replaced_by_values(exact):
    text = "EDM: {{why EDM with FDM's c_in, exact}}; {{verdict C3 VP,\nexact}}. {{Word seeds}} of {{word  seeds}}.\n\n"
    values = report.numbers(exact)
    filled = report.fill(f"{text}{{{{table why}}}}\n", exact)
    assert filled.startswith(
        f"EDM: {values['why EDM with FDM' + chr(39) + 's c_in, exact']}; does not hold. Five of five.\n"
    )
    assert (exact.results / "tables" / "why.md").read_text().rstrip() in filled
    assert report.fill("nothing", exact, {}) == "nothing"
    assert report.fill("{{digits: training.epochs}}, {{digits: word cells}}, {{word runs}}", exact) == "31, six, 161"


@pytest.mark.parametrize(
    ("name", "near"), [("verdict C3 EDN, exact", "verdict C3 EDM, exact"), ("qqqqqqqq", "nor anything like it"),
                       ("digits: training.epoch", "training.epochs")],
)  # fmt: skip
def test_a_name_that_nothing_gives_is_refused_with_near_ones(exact, name, near):
    with pytest.raises(FdmError, match="which nothing gives") as error:
        report.fill("{{" + name + "}}", exact, where="05_report.md")
    assert str(error.value).startswith("05_report.md asks for ")
    assert near in str(error.value)


def test_a_parameter_of_a_profile_that_is_not_there_is_refused(exact):
    with pytest.raises(FdmError, match=r"There is no profiles/nope/params\.yaml"):
        report.fill("{{nope: seeds}}", exact)


def test_the_report_is_written_with_its_numbers(exact):
    path = report.write(exact, report.numbers(exact))
    text = path.read_text()
    assert path == exact.results / "REPORT.md"
    assert "{{" not in text
    assert report.numbers(exact)["why EDM with FDM's c_in, exact"] in text
    assert "| target |" in text


# ------------------------------------------------------------------------------------------------- between marks


def test_values_between_marks_are_renewed_in_place():
    text = f"Five of {MARK.format('cells', '25')} cells, {MARK.format('word  seeds', '')}.\n"
    new = f"Five of {MARK.format('cells', '26')} cells, {MARK.format('word  seeds', 'five')}.\n"
    assert report.refreshed(text, {"cells": "26", "seeds": "5"}, "README.md") == new
    assert report.refreshed(new, {"cells": "26", "seeds": "5"}, "README.md") == new
    block = "<!--=t-->\n\nold\n\n<!--/-->\nend"
    assert report.refreshed(block, {"t": "| a |\n| b |"}, "x") == "<!--=t-->\n\n| a |\n| b |\n\n<!--/-->\nend"
    assert report.refreshed("<!--=t--><!--/-->", {"t": "a\nb"}, "x") == "<!--=t-->\n\na\nb\n\n<!--/-->"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (MARK.format("cell", "1"), "README.md asks for cell, which nothing gives; near to it is cells."),
        (f"<!--=cells-->1 and {MARK.format('cells', '2')}", "README.md: the value of cells has no end, <!--/-->."),
        ("<!--=cells-->1", "README.md: it has 1 marks and 0 ends of them."),
        ("1<!--/-->", "README.md: it has 0 marks and 1 ends of them."),
    ],
)
def test_a_mark_that_is_wrong_is_refused(text, sentence):
    with pytest.raises(FdmError, match=re.escape(sentence)):
        report.refreshed(text, {"cells": "26"}, "README.md")


def test_in_a_copy_without_benchmarks_their_values_stay(study):
    text = MARK.format("benchmark minutes make repro", "3")
    assert not (study / "benchmarks").exists()
    assert report.refreshed(text, report.numbers(profiles.find("digits")), "README.md") == text
    (study / "benchmarks" / "results").mkdir(parents=True)
    with pytest.raises(FdmError, match="asks for benchmark minutes make repro"):
        report.refreshed(text, report.numbers(profiles.find("digits")), "README.md")


def test_readme_renews_the_values_and_the_verdicts_of_all_documents(exact, capsys):
    readme, method, speeds = Path("README.md"), Path("docs/method.md"), Path("benchmarks/README.md")
    for path in (readme, method, speeds):
        path.write_text(re.sub(r"(<!--=.*?-->).*?(<!--/-->)", r"\1?\2", path.read_text(), flags=re.DOTALL))
    assert main(["readme"]) == 0
    renewed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {"README.md", "docs/method.md", "benchmarks/README.md"} <= renewed
    for path in (readme, method, speeds):
        assert not re.search(r"<!--=.*?-->\?<!--/-->", path.read_text())
    text = readme.read_text()
    assert MARK.format("digits: training.epochs", "31") in method.read_text()
    verdicts = " ".join(text.split(show.BEGIN)[1].split(show.END)[0].split())
    assert report.numbers(exact)["worst EDM, c_in, exact"] in verdicts
    assert main(["readme"]) == 0
    assert capsys.readouterr().out == ""
    for path in (*Path("docs").glob("*.md"), speeds):
        path.unlink()
    assert list(show.documents(exact)) == [Path.cwd() / "README.md"]


def test_readme_is_of_the_evidence(exact, capsys):
    assert main(["readme", "--params", "params.yaml"]) == 1
    assert "use --params profiles/exact/params.yaml" in capsys.readouterr().err


def test_lines_are_wrapped_item_by_item():
    text = "**In short:**\n\n- a {}\n  b\n- c\n\nend".format("word " * 40)
    wrapped = report.wrapped(text, 40)
    assert max(map(len, wrapped.splitlines())) <= 40
    assert wrapped.split() == text.split()
    assert "\n- c\n\nend" in wrapped
    assert report.wrapped(wrapped, 40) == wrapped


# ------------------------------------------------------------------------------------------------- the documents


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_have_no_long_line_and_no_mark_that_would_end_a_paragraph(document):
    code = False
    for number, line in enumerate((ROOT / document).read_text().splitlines(), 1):
        code ^= line.startswith("```")
        assert len(line) <= 110 or line.startswith("|"), f"{document}, line {number}"
        # HTML at the start of a line, or of an item, ends the paragraph for Markdown.
        inner = line.lstrip(" -*")
        assert not inner.startswith("<!--=") or re.fullmatch(r"<!--=[^>]*-->", line), f"{document}, line {number}"
        assert not (code and "<!--=" in line), f"{document}, line {number}"
    assert not code


def test_documents_name_modules_and_files_that_are_there():
    place = re.compile(r"`((?:fdm|tests|profiles|notebooks|benchmarks|results)/[\w./-]+\.\w+)`")
    for document in DOCUMENTS:
        for name in place.findall((ROOT / document).read_text()):
            assert (ROOT / name).is_file(), f"{document} names {name}"
    rooms = (ROOT / "CONTRIBUTING.md").read_text()
    for path in (ROOT / "fdm").rglob("*.py"):
        told = f"`{path.stem}`" in rooms or f"{path.parent.name}/{path.name}" in rooms
        one_of_many = path.stem == "__init__" or path.parent.name in ("samplers", "objectives")
        assert told or one_of_many, f"CONTRIBUTING.md lacks {path}"


def names_of(book: str) -> set[str]:
    cells = nbformat.read(ROOT / "notebooks" / f"{book}.ipynb", as_version=4).cells
    assert not any("{{" in cell.source for cell in cells if cell.cell_type == "code" and book != "06_published_code")
    found = {name for cell in cells if cell.cell_type == "markdown" for name in NAME.findall(cell.source)}
    return {" ".join(name.split()) for name in found}


@pytest.mark.parametrize("name", [name for name in PROFILES if name != "exact"])
def test_every_profile_has_the_names_of_the_notebooks_that_it_executes(study, name):
    profile = profiles.find(name)
    made_up.write_floor(profile)
    values = report.numbers(profile)
    for book in pipeline.books(profile):
        for each in sorted(names_of(book)):
            assert report.value(each, values, book)


def test_the_evidence_has_the_names_of_its_notebooks_and_not_those_of_another_profile(exact):
    values = report.numbers(exact)
    for book in pipeline.books(exact):
        for each in names_of(book):
            assert report.value(each, values, book)
    with pytest.raises(FdmError, match="asks for verdict C3 EDM, exact"):
        report.fill("{{verdict C3 EDM, exact}}", profiles.find("digits"))


def test_published_notebooks_have_values_in_their_prose(exact, tmp_path):
    made, executed = tmp_path / "03_evaluate.ipynb", notebooks.read(ROOT / "notebooks" / "03_evaluate.ipynb")
    for count, cell in enumerate(cell for cell in executed.cells if cell.cell_type == "code"):
        cell.execution_count = count
    nbformat.write(executed, made)
    notebooks.publish(exact, [made])
    path = exact.results / "notebooks" / "03_evaluate.ipynb"
    prose = "".join(cell.source for cell in notebooks.read(path).cells if cell.cell_type == "markdown")
    assert "draws 2,000 samples" in prose
    assert "{{" not in prose
    source = notebooks.source("03_evaluate", exact)
    assert [cell.source for cell in source.cells] == [cell.source for cell in notebooks.read(path).cells]
    unknown = Path("notebooks/03_evaluate.ipynb")
    unknown.write_text(unknown.read_text().replace("{{floor.n}}", "{{flor.n}}"))
    with pytest.raises(FdmError, match=r"notebooks/03_evaluate.ipynb asks for flor\.n, .* floor\.n"):
        notebooks.publish(exact, [made])


# ---------------------------------------------------------------------------------- what words say of the results


def test_what_words_say_of_the_results_is_so_in_the_tables():
    """README, 05_short.md and 05_report.md: where one of these fails, the sentence has to be written anew."""
    folder = ROOT / "results" / "exact" / "tables"
    verdicts = measurements.read(folder / "verdicts.csv").set_index(["claim", "framework", "target"])["verdict"]
    assert set(verdicts.loc[("C3", ["EDM", "VP"], "exact")]) == {"does not hold"}
    levels = measurements.select(measurements.read(folder / "levels.csv"), target="exact", change="c_in and warm-up")
    edm = measurements.select(levels, framework="EDM").set_index("sigma")
    worst = edm["ratio"].idxmax()
    inputs = findings.inputs()
    large = measurements.select(inputs, framework="edm", kernel="fdm").set_index("sigma")["input"]
    assert edm.loc[worst, "low"] > 1 and large.iloc[np.abs(large.index - worst).argmin()] > 5, (
        "where its input is large"
    )
    slopes = measurements.read(folder / "slopes.csv").set_index(["target", "cell"])["σ = 80"]
    assert slopes["exact", "vp-fdm-warmup"] < 0.5 < slopes["exact", "vp-baseline"], "it no longer sees how long x is"
    steps = measurements.read(folder / "steps.csv").set_index(["target", "framework", "sampler"])
    assert steps.loc[("exact", "EDM", "heun"), "low"] > 2 / 3, "a third is far"
    assert verdicts.loc[("C4", "EDM", "exact")] == "does not hold"
    assert verdicts.loc[("C5", "all", "exact")] == "equivalent", "the input scaling, not the warm-up"
    clamped = measurements.select(measurements.read(folder / "gradients.csv"), target="exact", ceiling=5.0)
    clamped = clamped.set_index(["cell", "duration"])
    early = clamped.xs(0.03125, level="duration")
    assert set(early.index[early["high"] < 1]) == {"edm-baseline", "ve-baseline"}, "a clamp steadies their gradients"
    assert set(early.index[early["low"] > 1]) == {"edm-fdm-warmup", "ve-fdm-warmup"}, "steadier without the clamp"
    assert clamped.loc[("edm-baseline", 0.25), "low"] > 1, "after a quarter it makes EDM's noisier"
    why = measurements.select(measurements.read(folder / "why.csv"), target="exact").set_index("change")
    for framework in ("EDM", "VP", "VE"):
        assert why.loc[f"{framework} with FDM's c_in", "low"] > 1, "the input scaling does it"
    assert why.loc["VP-FDM, told the radius", "high"] < 0.8, "told how long x is"
    fair = measurements.select(measurements.read(folder / "fair.csv"), target="exact")
    fair = fair.set_index(["framework", "setting"])
    for framework in ("VP", "EDM"):
        usual = fair.loc[(framework, "rate x 1")]
        for setting in ("rate x 1/2", "rate x 2", "width x 2"):
            other = fair.loc[(framework, setting)]
            assert other["seeds"] == 3 and other["low"] < usual["ratio"] < other["high"], "rate and width hardly matter"
            assert framework != "EDM" or other["low"] < 1, "so small a loss as EDM's cannot be told from none"
    multipliers = why.loc[[f"EDM-FDM, m = {m} in place of 2" for m in ("1/2", "1", "4")]]
    assert multipliers["ratio, high"].is_monotonic_decreasing and multipliers.iloc[1]["low, high"] > 1
    assert multipliers.iloc[2]["high, high"] < 1, "the larger m, the smaller the errors at high noise"
    assert ((multipliers["low"] < 1) & (multipliers["high"] > 1)).all(), "no difference over all levels"
    scales = [scale_fdm(1.0, m) for m in (0.5, 1.0, 2.0, 4.0)]
    assert scales == sorted(scales, reverse=True), "and the smaller is the input"
    profile = profiles.load(ROOT / "profiles" / "exact" / "params.yaml")
    worst_of = report.of_findings("levels", profile, measurements.read(folder / "levels.csv"))
    low, high = re.findall(r"[\d.]+", worst_of["worst VE, c_in and warm-up, exact"])[1:]
    assert float(low) < 1 < float(high), "for VE the interval there contains 1"
    assert worst_of["worst VE, c_in and warm-up, exact: sigma"] == "80", "at the top its input is the smaller one"
    vp = measurements.select(levels, framework="VP").set_index("sigma")["ratio"]
    assert vp.idxmax() == 80 and edm["ratio"].idxmax() < 80, "VP's error goes on rising to the top"
    halves = measurements.read(folder / "halves.csv").set_index(["target", "framework", "metric", "compared"])["ratio"]
    for framework in ("EDM", "VP"):
        cost = halves["fashion-16", framework, "weighted error", "baseline, half / end"]
        assert cost < math.exp(rules.QUALITY), "by itself it would be nothing to save"
    judged = measurements.read(folder / "verdicts.csv").set_index(["claim", "framework", "target"])
    assert judged.loc[("C3", "VP", "fashion-16"), "verdict, by seed"] == "does not hold", "with the same verdict"
    ahead = judged.loc[("C4", "EDM", "fashion-16")]
    assert ahead["ratio"] < ahead["baseline at the reduced cost"], "ahead of its baseline at 9 evaluations"
    flow = measurements.read(folder / "solver.csv")
    flow = measurements.select(flow, framework="VE", quantity="flow error", sampler="heun", nfe=9, target="exact")
    assert (flow["high"] < 1).all() and len(flow) == 1, "and so is VE's flow error"
    accuracy = measurements.select(measurements.read(folder / "distances.csv"), cell="vp-baseline", duration=1.0,
                                   sigma_max=80.0, target="fashion-16")["accuracy"].iloc[0]  # fmt: skip
    assert set(judged.loc[(["C3", "C4"], "VE", "fashion-16"), "verdict"]) == {"not learnt"}, "it does not pass"
    gate = float(report.of_gates(profile)["gate fashion-16"])
    error = math.sqrt(accuracy * (1 - accuracy) / profiles.find("fashion-16").evaluation.samples)
    assert gate <= accuracy < gate + error, "VP's baseline passes by less than such a share is known to"
    effects = measurements.select(measurements.read(folder / "effects.csv"), target="exact", question="c_in",
                                  metric="weighted").set_index(["framework", "training"])["ratio"]  # fmt: skip
    assert effects["EDM", 0.0625] > effects["EDM", 1.0], "the gap closes for EDM"
    assert effects["VP", 0.0625] < effects["VP", 1.0], "and widens for VP"
    high = why["ratio, high"]
    least = why.loc["EDM with FDM's c_in, of size 1 on average", "ratio, high"]
    assert high["EDM with c_in = 1"] > 2 * high["EDM with FDM's c_in"], "the input stays smaller"
    assert least > 0.9 * high["EDM with FDM's c_in"], "hardly better there"
    assert set(published.savings()["FDM at the end"] < 1) == {True}, "better in all pairs"
    one, fdm = (why.loc[f"EDM with {kind}", "ratio"] for kind in ("c_in = 1", "FDM's c_in"))
    assert abs(np.log(one / fdm)) < 0.01, "c_in = 1 does what FDM does"
    assert (why.loc[["EDM with c_in = 1", "EDM with FDM's c_in"], "from high"] < 0.1).all(), "it loses at low noise"
    assert why.loc["VP with FDM's c_in", "from high"] > 0.4, "VP loses at high noise as well"
    assert edm.loc[80.0, "low"] < 1 < edm.loc[80.0, "high"], "EDM is worse in that band alone"
    main = measurements.select(measurements.read(folder / "effects.csv"), target="exact", question="c_in",
                               metric="weighted", training=1.0).set_index("framework")  # fmt: skip
    assert main.loc["VP", "low"] > 1.05 > main.loc["EDM", "high"], "VP's doing"
    assert main.loc["VE", "high"] == pytest.approx(1.05, abs=0.01), "at its edge"
    assert judged.loc[("C4", "EDM", "exact"), "FDM at the full cost"] < 1.05, "worse, or no different"
    pictures = measurements.select(measurements.read(folder / "effects.csv"), target="fashion-16", metric="weighted",
                                   training=1.0).set_index(["framework", "question"])  # fmt: skip
    assert pictures.loc[("VP", "c_in"), "low"] > 1 > pictures.loc[("EDM", "c_in"), "low"], "on pictures of clothes"
    for framework in ("VP", "EDM"):
        warm = pictures.loc[(framework, "warm-up")]
        assert warm["low"] < 1 < warm["high"], "the warm-up makes no difference beyond chance"
