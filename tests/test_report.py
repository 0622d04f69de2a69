"""Numbers in prose, by name from the record: in the report, in README and in notebooks; and what words say of them."""

import math
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from fdm.__main__ import main
from fdm.files import FdmError
from fdm.repro import notebooks, pipeline
from fdm.study import claims, effects, measure, measurements, profiles, report, show, tables
from fdm.study.profiles import Profile

from .conftest import ROOT

FD = "FD(EfficientNet-Lite0)"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "notebooks/05_report.md", "notebooks/05_short.md")
NAME = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
PROFILES = ["digits", *sorted(path.parent.name for path in (ROOT / "profiles").glob("*/params.yaml"))]
EFFECT, GAIN = 1.2, 0.8  # of FDM's kernel and of the warm-up, in the made-up measurements
MARK = "<!--={}-->{}<!--/-->"


def write_floor(profile: Profile) -> None:
    """A floor from 9 to 11 on record."""
    profile.results.mkdir(parents=True, exist_ok=True)
    floor = {"metric": [FD], "value": [10.0], "low": [9.0], "high": [11.0], "n": [300], "n_reference": [898]}
    pd.DataFrame(floor).to_csv(profile.results / "calibration.csv", index=False)


def made_up(profile: Profile) -> pd.DataFrame:
    """Measurements of every run, a product of effects, with noise for every seed; they are put on record."""
    rng, n, rows = np.random.default_rng(0), profile.evaluation.samples, []
    for name, run in profile.runs.items():
        base = {"vp": 40.0, "ve": 60.0, "edm": 20.0}[run.framework] * math.exp(rng.normal(0, 0.02))
        base *= (EFFECT if run.kernel == "fdm" else 1) * (GAIN if run.warmup_steps else 1)
        for setting in measure.settings(profile, name):
            value = base / setting.duration * (1 + 10 / setting.nfe)
            sets = [(0, n, 0)]
            if setting.samples != n:
                sets = [(0, n // 2, 0), *((0, size, 0) for size in range(2 * n, setting.samples + 1, n))]
                sets += [(first, n, 0) for first in range(n, setting.samples, n)]
                sets += [(0, n, half) for half in range(1, measure.HALVINGS + 1)]
            for latents, size, reference in sets:
                rows.append(dict.fromkeys(measure.CONTEXT, 0) | {
                    "cell": run.cell, "run": name, "framework": run.framework, "kernel": run.kernel, "seed": run.seed,
                    "duration": setting.duration, "kimg": 20 * setting.duration, "sampler": setting.sampler,
                    "options": setting.text, "nfe": setting.nfe, "sigma_max": setting.sigma_max, "latents": latents,
                    "reference": reference, "metric": FD, "value": value + n / size, "n": size, "n_reference": 898,
                    "low": value * 0.9, "high": value * 1.1,
                })  # fmt: skip
    table = pd.DataFrame(rows)
    for cell, part in table.groupby("cell"):
        path = profile.recorded(str(cell)) / "measurements.csv"
        path.parent.mkdir(parents=True)
        part.to_csv(path, index=False)
    write_floor(profile)
    table.to_csv(profile.results / "measurements.csv", index=False)
    return table


def concluded(profile: Profile) -> None:
    """What 05_ablations writes, but for its figures and its report."""
    rows, folder = made_up(profile), profile.results / "tables"
    made = {
        "design": effects.design(profile), "effects": effects.effects(profile, rows),
        "highest_noise": effects.highest_noise(profile, rows), "noise": effects.noise(profile, rows),
        "noise_of_ratios": effects.noise_of_ratios(profile, rows), "bias": effects.bias(profile, rows),
        "costs_training": effects.costs(profile, rows, "duration", (1, 2, -1)),
        "costs_nfe": effects.costs(profile, rows, "nfe", (1, 2, -1)),
    }  # fmt: skip
    for name, table in made.items():
        tables.write_table(table, folder, name, name)
    show.show_claims(profile, folder)


@pytest.fixture(scope="module")
def concluded_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with the results of made-up measurements of the ablations."""
    folder = tmp_path_factory.mktemp("concluded") / "study"
    for name in ("fdm", "profiles", "notebooks", "results/published", "benchmarks/results"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "README.md", "benchmarks/README.md"):
        shutil.copy(ROOT / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        concluded(profiles.find("ablations"))
    return folder


@pytest.fixture
def ablations(concluded_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """The ablations in a study of their own, with all that 05_ablations writes."""
    study = shutil.copytree(concluded_once, tmp_path / "study")
    monkeypatch.chdir(study)
    return profiles.find("ablations")


# ------------------------------------------------------------------------------------------------------ values


def test_values_are_those_of_the_tables_on_record(ablations):
    values, folder = report.numbers(ablations), ablations.results / "tables"
    table = measurements.read(folder / "effects.csv")
    row = table.set_index(["framework", "question", "training"]).loc[("VP", "input scaling", "100%")]
    assert values["ratio VP input scaling 100%"] == f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    assert re.fullmatch(r"1\.\d\d \[1\.\d\d, 1\.\d\d\], p [<=] 0\.00\d*", values["effect VP input scaling 100%"])
    assert "effect VP multiplier m = 4 / 2 100%" in values
    assert values["comparisons"] == str(len(table))
    assert values["apart input scaling 100%"] == values["significant input scaling 100%"] == "VP, VE and EDM"
    assert values["significant interaction 100%"] == "none"
    assert re.fullmatch(r"0\.9\d \[.*\]", values["cost VP Heun 50%"])
    noise = measurements.read(folder / "noise.csv").set_index("cell").loc["vp-baseline"]
    assert values["noise vp-baseline trainings"] == f"{100 * noise['SD, trainings'] / noise['distance']:.0f} %"
    bias = measurements.read(folder / "bias.csv").set_index("cell").loc["edm-baseline"]
    assert values["bias edm-baseline"] == f"{100 / bias['n = 300']:.0f} %"  # n / n is 1 there
    assert values["top ve-baseline 10"] == "1.00"  # in the made-up measurements it changes nothing
    told = measurements.read_json(ablations.results / "claims.json")["claims"]
    differs = next(each for each in told if (each["claim"], each["subject"]) == ("C3", "VP"))
    number = differs["numbers"]["difference from baseline, full"]["FDM, reduced"]
    assert values["difference C3 VP"] == f"{number['value']:.0f} [{number['low']:.0f}, {number['high']:.0f}]"
    assert values["verdict C3 VP"] == "not reproduced"
    assert values["verdicts C5"] == "reproduced in 3 of 3 cases"
    rows = measurements.primary(ablations, measurements.table(ablations), cell="edm-baseline", duration=1.0)
    assert values["distance edm-baseline Heun 25"] == f"{rows['value'].mean():.1f}"
    assert (values["amount trainings"], values["floor"], values["floor.n"]) == ("130", "10.0", "300")


def test_values_follow_the_record(ablations):
    table = measurements.read(ablations.results / "tables" / "effects.csv")
    tables.write_table(table.assign(ratio=2.0), ablations.results / "tables", "effects", "")
    assert report.numbers(ablations)["ratio VP input scaling 100%"].startswith("2.00 [")


def test_a_damaged_table_is_named(ablations):
    path = ablations.results / "measurements.csv"
    measurements.read(path).drop(columns="options").to_csv(path, index=False)
    with pytest.raises(FdmError, match=r"ablations/measurements\.csv is damaged \(KeyError\('options'\)\); run dvc"):
        report.numbers(ablations)


def test_a_profile_has_values_without_any_result(study):
    values = report.numbers(profiles.find("digits"))
    assert values["training.batch"] == "128"
    assert values["cells.edm-fdm.warmup_steps"] == "20"
    assert values["network.channel_mult"] == "1, 2"
    assert (values["seeds"], values["cells"], values["runs"], values["models"]) == ("1", "6", "6", "6")
    assert values["samplers"] == "Heun, DPM-Solver++, DDIM, S-PNDM and F-PNDM"
    assert values["other samplers"] == "DDIM, S-PNDM and F-PNDM"
    training = {"images": "50 thousand", "steps": "391", "quarter": "98", "epochs": "28"}
    assert {key: values[f"training.{key}"] for key in training} == training
    nfe = {"lowest": "5", "second": "11", "third": "17", "reduced": "25", "highest": "79"}
    assert {key: values[f"{key} nfe"] for key in nfe} == nfe
    assert "floor" not in values
    assert "most samples" not in values


def test_the_design_of_the_ablations_is_counted(study):
    values = report.parameters(profiles.find("ablations"))
    assert (values["cells"], values["seeds"], values["runs"]) == ("26", "5", "130")
    assert (values["fewest samples"], values["most samples"], values["lowest top"]) == ("150", "1,200", "10")
    assert (values["rules.seeds"], values["rules.unlearnt"]) == (str(claims.SEEDS), str(claims.UNLEARNT))
    assert (values["rules.gain"], values["rules.p"]) == ("10 %", "0.05")


def test_reduced_evaluations_are_those_that_the_claim_compares(study):
    for name in PROFILES:
        profile = profiles.find(name)
        several = profile.evaluation.nfe_of("heun")
        values = report.parameters(profile)
        assert int(values["reduced nfe"]) == min(several, key=lambda nfe: abs(nfe - several[-1] / 3))


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


def test_p_is_left_out_where_it_is_not_known(ablations):
    table = measurements.read(ablations.results / "tables" / "effects.csv")
    values = report.of_effects(ablations, table.assign(**{"p (Holm)": math.nan, "low": math.nan, "high": math.nan}))
    assert values["effect VP both 100%"] == values["ratio VP both 100%"] == f"{table['ratio'][7]:.2f}"
    assert values["significant both 100%"] == "none"


# ------------------------------------------------------------------------------------------------- in a text


def test_names_in_a_text_are_replaced_by_values(ablations):
    text = "VP: {{effect VP input scaling 100%}}; {{cost VP Heun\n50%}}. {{Word seeds}} of {{word  seeds}}.\n\n"
    values = report.numbers(ablations)
    filled = report.fill(f"{text}{{{{table effects}}}}\n", ablations)
    start = f"VP: {values['effect VP input scaling 100%']}; {values['cost VP Heun 50%']}. Five of five.\n"
    assert filled.startswith(start)
    assert (ablations.results / "tables" / "effects.md").read_text().rstrip() in filled
    assert report.fill("nothing", ablations, {}) == "nothing"
    others = "{{digits: training.epochs}}, {{digits: word cells}}, {{word runs}}"
    assert report.fill(others, ablations) == "28, six, 130"


@pytest.mark.parametrize(
    ("name", "near"), [("effect VQ both 100%", "effect VP both 100%"), ("word trainings", "amount trainings"),
                       ("digits: training.epoch", "training.epochs"), ("qqqqqqqq", "nor anything like it")],
)  # fmt: skip
def test_a_name_that_nothing_gives_is_refused_with_near_ones(ablations, name, near):
    with pytest.raises(FdmError, match="which nothing gives") as error:
        report.fill("{{" + name + "}}", ablations, where="05_report.md")
    assert str(error.value).startswith("05_report.md asks for ")
    assert near in str(error.value)


def test_a_parameter_of_a_profile_that_is_not_there_is_refused(ablations):
    with pytest.raises(FdmError, match=r"There is no profiles/nope/params\.yaml"):
        report.fill("{{nope: seeds}}", ablations)


def test_the_report_is_written_with_its_numbers(ablations):
    path = report.write(ablations, report.numbers(ablations))
    text = path.read_text()
    assert path == ablations.results / "REPORT.md"
    assert "{{" not in text
    assert report.numbers(ablations)["effect EDM both 100%"] in text
    assert "| framework | question |" in text


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


def test_readme_renews_the_values_and_the_verdicts_of_both_documents(ablations, capsys):
    readme, speeds = Path("README.md"), Path("benchmarks/README.md")
    for path in (readme, speeds):
        path.write_text(re.sub(r"(<!--=.*?-->).*?(<!--/-->)", r"\1?\2", path.read_text(), flags=re.DOTALL))
    assert main(["readme"]) == 0
    assert capsys.readouterr().out == "README.md is brought up to date.\nbenchmarks/README.md is brought up to date.\n"
    for path in (readme, speeds):
        assert not re.search(r"<!--=.*?-->\?<!--/-->", path.read_text())
    text = readme.read_text()
    assert MARK.format("cells", "26") in text
    assert MARK.format("digits: training.epochs", "28") in text
    assert report.numbers(ablations)["ratio EDM input scaling 100%"] in text.split(show.BEGIN)[1].split(show.END)[0]
    assert "| claim | for | verdict |" in text
    assert main(["readme"]) == 0
    assert capsys.readouterr().out == ""
    speeds.unlink()
    assert list(show.documents(ablations)) == [Path.cwd() / "README.md"]


def test_readme_is_of_an_ablation(ablations, capsys):
    assert main(["readme", "--params", "params.yaml"]) == 1
    assert "use --params profiles/ablations/params.yaml" in capsys.readouterr().err


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
    for document in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "notebooks/05_report.md"):
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


@pytest.mark.parametrize("name", [name for name in PROFILES if name != "ablations"])
def test_every_profile_has_the_names_of_the_notebooks_that_it_executes(study, name):
    profile = profiles.find(name)
    write_floor(profile)
    values = report.numbers(profile)
    for book in pipeline.books(profile):
        for each in sorted(names_of(book)):
            assert report.value(each, values, book)


def test_the_ablations_have_the_names_of_their_notebooks_and_not_those_of_a_profile_of_one_table(ablations):
    values = report.numbers(ablations)
    for book in pipeline.books(ablations):
        for each in names_of(book):
            assert report.value(each, values, book)
    with pytest.raises(FdmError, match="asks for comparisons"):
        report.fill("{{comparisons}}", profiles.find("digits"))


def test_published_notebooks_have_values_in_their_prose(ablations, tmp_path):
    made, executed = tmp_path / "03_evaluate.ipynb", notebooks.read(ROOT / "notebooks" / "03_evaluate.ipynb")
    for count, cell in enumerate(cell for cell in executed.cells if cell.cell_type == "code"):
        cell.execution_count = count
    nbformat.write(executed, made)
    notebooks.publish(ablations, [made])
    path = ablations.results / "notebooks" / "03_evaluate.ipynb"
    prose = "".join(cell.source for cell in notebooks.read(path).cells if cell.cell_type == "markdown")
    assert "draws 300 samples" in prose
    assert "{{" not in prose
    source = notebooks.source("03_evaluate", ablations)
    assert [cell.source for cell in source.cells] == [cell.source for cell in notebooks.read(path).cells]
    unknown = Path("notebooks/03_evaluate.ipynb")
    unknown.write_text(unknown.read_text().replace("{{floor.n}}", "{{flor.n}}"))
    with pytest.raises(FdmError, match=r"notebooks/03_evaluate.ipynb asks for flor\.n, .* floor\.n"):
        notebooks.publish(ablations, [made])


# ---------------------------------------------------------------------------------- what words say of the results


def test_what_words_say_of_the_results_is_so_in_the_tables():
    """README, 05_short.md and 05_report.md: where one of these fails, the sentence has to be written anew."""
    folder = ROOT / "results" / "ablations" / "tables"
    table = measurements.read(folder / "effects.csv")
    one = table[table["question"] != "multiplier"].set_index(["framework", "question", "training"]).to_dict("index")
    for framework in ("VP", "VE", "EDM"):
        assert one[framework, "input scaling", "100%"]["low"] > 1, "the input scaling makes things worse"
        assert one[framework, "both", "100%"]["low"] > 1, "the published method is behind its baseline"
        assert one[framework, "warm-up", "25%"]["low"] > claims.NEGLIGIBLE, "a gain of a tenth is ruled out"
        for question in ("warm-up", "interaction", "warm-up length"):
            for training in ("25%", "100%") if question == "warm-up" else ("100%",):
                assert one[framework, question, training]["low"] < 1 < one[framework, question, training]["high"]
    for framework in ("VP", "VE"):
        assert one[framework, "tau", "100%"]["low"] > 1.5, "with the framework's own time they do not learn"
    multiplier = table[(table["question"] == "multiplier") & (table["training"] == "100%")]
    small = multiplier[multiplier["framework"] != "VE"]["ratio"]
    assert small.between(0.85, 1.15).all(), "the multiplier hardly matters for VP and EDM"
    ve = multiplier[multiplier["framework"] == "VE"].set_index("compared")["ratio"]
    assert ve["m = 0.5 / 1"] < 1 < ve["m = 2 / 1"] < ve["m = 4 / 1"], "for VE the larger the worse"
    costs = measurements.read(folder / "costs_nfe.csv").set_index(["framework", "sampler", report.COST])["ratio"]
    assert max(costs["EDM", "Heun", 5], costs["EDM", "Heun", 11]) < 1, "with Heun's sampler EDM-FDM is ahead"
    assert costs["EDM", "DPM-Solver++", 5] > 1, "with DPM-Solver++ it is behind"
    bias = measurements.read(folder / "bias.csv").set_index("cell")
    orders = {tuple(bias[name].sort_values().index) for name in bias if str(name).startswith("n = ")}
    assert len(orders) == 1, "the order is the same at every n"
    top = measurements.read(folder / "highest_noise.csv").set_index(["cell", "sigma_max"])["ratio to 80"]
    assert max(top["ve-baseline", 10], top["vp-fdm-warmup", 10]) < 0.9, "sampling should not start at the top"
    assert abs(top["edm-baseline", 20] - 1) < 0.05, "for EDM it hardly matters"
    verdicts = report.of_claims(measurements.read_json(folder.parent / "claims.json"))
    assert verdicts["verdict C3 VE"] == "undecided", "VE has not learnt"
    assert (verdicts["verdict C1 formula"], verdicts["verdict C2 formula"]) == ("reproduced", "partly")
