"""Results outlive a refactoring that moves no bit, and no other change of the source: mutations are caught."""

import csv
import functools
import json
import os
import shutil
import subprocess
import sys

import pytest

from fdm.files import root
from fdm.repro import accept
from fdm.repro.fingerprint import PARTS
from fdm.study import closure
from tests.scratch import ROOT, Scratch

OLD = '''
LIMIT = 5000

def first(x):
    """A docstring."""
    return x + 7

def second(x, top: float = 3.5):
    if x > top:
        raise ValueError(f"{x} is above {top}")
    y = x * 9  # a comment
    return min(y, LIMIT)
'''
COVERED = {"missing_lines": [], "missing_branches": []}


def against(new, covered=COVERED):
    """What stands against a new source by its text and its coverage."""
    old, now = ([("file.py", part) for part in accept.parts(source)] for source in (OLD, new))
    return list(accept.hidden(old, now, {"file.py": covered}))


@pytest.mark.parametrize(("change", "old", "new"), [
    ("a comment", "  # a comment", "  # another one"),
    ("a docstring", "A docstring.", "Other words."),
    ("an annotation", "top: float = 3.5", "top=3.5"),
    ("a sentence of a refusal", "is above", "must not be above 9 or 11, and"),
    ("a local name", "y = x * 9  # a comment\n    return min(y", "product = x * 9\n    return min(product"),
    ("a function that moved", "def second", "def third(x):\n    return x\n\ndef second"),
])  # fmt: skip
def test_a_change_that_hides_nothing_has_nothing_against_it(change, old, new):
    assert old in OLD
    assert against(OLD.replace(old, new)) == []


def test_functions_in_another_order_have_nothing_against_them():
    head, first, second = OLD.split("\n\n")
    assert against("\n\n".join([second, first, head])) == []


@pytest.mark.parametrize(("old", "new", "number"), [
    ("LIMIT = 5000", "LIMIT = 6000", "6000"), ("x + 7", "x + 8", "8"), ("top: float = 3.5", "top: float = 3.6", "3.6"),
])  # fmt: skip
def test_a_number_that_was_not_there_is_refused_even_where_no_configuration_reaches_it(old, new, number):
    (sentence,) = against(OLD.replace(old, new))
    assert sentence.startswith(f"the number {number} stands in the source more often than before")


def test_a_branch_of_a_changed_function_that_no_configuration_takes_is_refused():
    changed = OLD.replace("y = x * 9", "y = 9 * x").replace(
        "    if x > top", "    if x < 0:\n        return x\n    if x > top"
    )
    line = changed.splitlines().index("        return x") + 1
    (sentence,) = against(changed, {"missing_lines": [line], "missing_branches": [[line - 1, line]]})
    assert "second has changed" in sentence and "no configuration takes" in sentence
    # The same lines where nothing has changed, or where a branch refuses, hide nothing.
    refusing = OLD.splitlines().index('        raise ValueError(f"{x} is above {top}")') + 1
    missed = {"missing_lines": [refusing], "missing_branches": [[refusing - 1, refusing]]}
    assert against(OLD.replace("y = x * 9", "y = 9 * x"), missed) == []


def test_fingerprints_that_differ_or_lack_a_configuration_are_refused():
    closures = {"training": {"hashes": ["training: "]}}
    old = {"hashes": {"training: a": "1", "training: b": "2", "scoring: c": "3"}}
    new = {"closures": closures, "hashes": {"training: a": "1", "training: b": "2", "scoring: c": "4"}}
    assert accept.compare(old, new, "training") == []
    new["hashes"]["training: b"] = "5"
    assert accept.compare(old, new, "training") == ["1 of 2 configurations give other bits: training: b"]
    del new["hashes"]["training: b"]
    assert accept.compare(old, new, "training") == ["training: b: not in the new fingerprint"]
    assert "no fingerprint" in accept.compare({"hashes": {}}, new, "training")[0]


def test_the_identity_follows_the_accepted_steps_and_a_missing_link_ends_it():
    steps = {"c": "b", "b": "a", "x": "y"}
    assert closure.origin("c", steps) == "a" and closure.origin("a", steps) == "a"
    assert closure.origin("c", {"b": "a"}) == "c"  # the step from b to c is missing
    assert closure.origin("p", {"p": "q", "q": "p"}) in ("p", "q")  # a circle ends


# --------------------------------------------------------------------------------------------------- mutations

# What is changed -> file, old text, new text, and what catches it: a part of the fingerprint, or the numbers.
MUTATIONS = {
    "the ceiling of the warm-up":
        ("process/momentum.py", "CEILING_END = 5.0, 500.0", "CEILING_END = 5.0, 400.0", "training"),
    "the multiplier": ("process/momentum.py", "mB = multiplier * B(t)", "mB = (multiplier + 0.001) * B(t)", "training"),
    "the ramp of the average": ("training/loop.py", "images * ramp)", "images * ramp / 2)", "training"),
    "Adam's beta": ("training/objectives/denoising.py", "betas=(0.9, 0.999)", "betas=(0.9, 0.9991)", "training"),
    "the norm's epsilon": ("model/unet.py", "eps: float = 1e-6", "eps: float = 1.1e-6", "training"),
    "the scale of attention":
        ("model/unet.py", "attention(q, k, v)", "attention(q, k, v, scale=1.001 * q.shape[-1] ** -0.5)", "training"),
    "gradients that are not finite": ("training/engine.py", "posinf=1e5", "posinf=1e4", "numbers"),
    "a coefficient of a sampler": ("samplers/dpm_solver.py", "r2 = 1 / 3, 2 / 3", "r2 = 1 / 3, 0.667", "sampler"),
    "churn": ("samplers/heun.py", "S_noise * noise(i)", "noise(i)", "sampler"),
    "a weight of PNDM": ("samplers/pndm.py", "37 * e2 - 9 * e3", "37 * e2 - 8 * e3", "sampler"),
    "a layer of the features":
        ("metrics/efficientnet.py", "in self.net._blocks:", "in self.net._blocks[:-1]:", "scoring"),
    "the formula of Frechet": ("metrics/distances.py", "+ C.trace() -", "+ C.trace() * (1 + 1e-9) -", "scoring"),
    "a limit that no configuration reaches": ("metrics/distances.py", "LIMIT = 5000", "LIMIT = 4000", "numbers"),
}  # fmt: skip
QUICK = ("gradients that are not finite",)  # fingerprints take long
# A part of the fingerprint a line, each in a process of its own that imports the study's source as it then is. All are
# forked from one that has imported what takes seconds, and nothing of the study. Few cells, variants and samplers are
# enough to see these mutations.
PROBE = """
import json, os, sys, traceback
import pandas, safetensors.torch, scipy.stats, sklearn.datasets, torch, torch_fidelity, torchvision

sys.dont_write_bytecode = True  # what is changed may stay as long, and within a second as old
for only in map(str.strip, sys.stdin):
    child = os.fork()
    if not child:
        try:
            from fdm.repro import fingerprint
            cells = ["vp-fdm"] + (["edm-baseline", "ve-fdm"] if only == "sampler" else [])
            fingerprint.CELLS = {name: fingerprint.CELLS[name] for name in cells}
            fingerprint.VARIANTS = {"vp-fdm-gain": fingerprint.VARIANTS["vp-fdm-gain"]}
            fingerprint.SCORED = ("vp-fdm",)
            few = ("heun", "dpm-solver++", "s-pndm", "f-pndm", "ddim")
            fingerprint.SAMPLERS = {name: fingerprint.SAMPLERS[name] for name in few}
            print(json.dumps(fingerprint.fingerprint([only])), flush=True)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.waitpid(child, 0)
    print("end", flush=True)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for name in ("fdm", "params.yaml", "dvc.yaml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def fingerprint(source):
    """Takes a part of the fingerprint of the source as it then is."""
    env = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    told_apart, pipe, started = source / "errors.txt", subprocess.PIPE, list[subprocess.Popen]()

    def take(only):
        if not started:  # a mutation that the numbers tell needs none
            with told_apart.open("w") as errors:
                files = {"stdin": pipe, "stdout": pipe, "stderr": errors}
                words = [sys.executable, "-c", PROBE]
                started.append(subprocess.Popen(words, cwd=source, env=env, text=True, **files))
        (process,) = started
        print(only, file=process.stdin, flush=True)
        told = process.stdout.readline()
        assert told.startswith("{"), told_apart.read_text()[-2000:]
        assert process.stdout.readline() == "end\n"
        return json.loads(told)

    yield take
    for process in started:
        process.stdin.close()
        assert process.wait() == 0


@pytest.fixture(scope="module")
def before(fingerprint):
    return functools.cache(fingerprint)


def test_every_closure_has_a_fingerprint():
    """Without one no change of it, nor of what it imports, could be accepted."""
    assert set(closure.CLOSURES) <= set(PARTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.weekly) for name in MUTATIONS]
)
def test_a_mutation_is_caught(name, source, fingerprint, before):
    file, old, new, by = MUTATIONS[name]
    path = source / "fdm" / file
    text = path.read_text()
    assert old in text
    as_it_was = None if by == "numbers" else before(by)
    path.write_text(text.replace(old, new, 1))
    try:
        if by == "numbers":
            parts = [[(file, part) for part in accept.parts(each)] for each in (text, path.read_text())]
            assert any("the number" in sentence for sentence in accept.hidden(*parts, {file: COVERED}))
        else:
            assert fingerprint(by) != as_it_was
    finally:
        path.write_text(text)


@pytest.mark.slow
@pytest.mark.weekly
def test_the_whole_of_it_accepts_a_refactoring_and_nothing_else(tmp_path):
    """In a repository of its own, with fewer configurations and a short sentinel."""
    study = Scratch(tmp_path / "study")
    few = {"CELLS": ("vp-fdm", "ve-fdm", "edm-baseline", "edm-baseline-exact"), "VARIANTS": ("vp-fdm-gain",),
           "SAMPLERS": ("heun", "ddim")}  # fmt: skip
    fewer = "".join(f"{table} = {{name: {table}[name] for name in {names}}}\n" for table, names in few.items())
    study.edit("fdm/repro/fingerprint.py", "PARTS = (", f"{fewer}PARTS = (")
    study.edit("params.yaml", "budget_kimg: 50", "budget_kimg: 1")
    study.edit("params.yaml", "samples: 800", "samples: 32")
    study.edit("params.yaml", "nfe: [5, 11, 17, 25, 49, 79]", "nfe: [5]")
    (study.path / "results" / "accepted.csv").unlink(missing_ok=True)
    study("git commit -qam base")
    name = (
        "from fdm.study import closure; print(*(closure.identity(n) for n in ('training', 'scoring', 'samplers.heun')))"
    )
    identities = study.path / "identities.py"
    identities.write_text(name)
    as_before = study("python identities.py")

    # A comment, a rename, another order, and a function that moves to another file.
    study.edit("fdm/samplers/heun.py", "x_next", "ahead")
    study.edit(
        "fdm/training/loop.py", "class Order:", "# The order of the images is the seed's alone.\n\n\nclass Order:"
    )
    text = (study.path / "fdm/training/loop.py").read_text()
    first = text.index("def ema_beta(")
    moved = text[first : text.index("def learning_rate(")]
    (study.path / "fdm/training/loop.py").write_text(text.replace(moved, "") + f"\n\n{moved.rstrip()}\n")
    told = study("python -m fdm accept")
    assert "training: " in told and "samplers.heun: " in told
    assert study("python identities.py") == as_before
    lines = list(csv.DictReader((study.path / "results/accepted.csv").open()))
    assert {line["closure"] for line in lines} == {"training", "samplers.heun"}

    # Without its line, or with another change on top, the results are stale again.
    study("git add -A")
    study("git commit -qm accepted")
    study.edit("fdm/samplers/heun.py", "S_noise * noise(i)", "noise(i)")
    refused = study("python -m fdm accept", check=False)
    assert "This is not accepted" in refused and "configurations give other bits: sampler heun" in refused
    assert study("python identities.py") != as_before
    study("git checkout fdm/samplers/heun.py")
    assert "nothing to accept" in study("python -m fdm accept")
    assert study("python identities.py") == as_before
    (study.path / "results" / "accepted.csv").unlink()
    assert study("python identities.py") != as_before


def test_the_steps_on_record_lead_to_the_present_source():
    """Every digest on record is that of some source, once; see verify for what a missing step does."""
    path = root() / "results" / "accepted.csv"
    lines = list(csv.DictReader(path.open(encoding="utf-8"))) if path.is_file() else []
    assert len({line["new"] for line in lines}) == len(lines)
    assert all(line["old"] != line["new"] and len(line["revision"]) == 40 for line in lines)


def test_steps_of_results_that_were_made_again_are_forgotten_and_the_others_go_on(study):
    def step(closure, old, new):
        return dict.fromkeys(accept.COLUMNS, "") | {"closure": closure, "old": old, "new": new}

    accept.record([step("training", "a", "b"), step("scoring", "s", "t")])
    accept.record([step("training", "b", "c")])
    accept.record([step("training", "x", "y"), step("scoring", "t", "u")])
    assert closure.accepted() == {"t": "s", "u": "t", "y": "x"}
