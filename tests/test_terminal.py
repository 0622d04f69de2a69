"""What people meet in a terminal: machine-readable output, errors, completion, and what is left of a long run."""

import json
import os
import pty
import subprocess
import sys

import pytest

from fdm import __main__ as command_line
from fdm.__main__ import main
from fdm.files import FdmError
from fdm.repro import doctor, pipeline, plan, progress, verify
from fdm.study import profiles

from .scratch import ROOT


def on_a_terminal(*command: str, **environment: str) -> tuple[int, str]:
    """The exit code of a command whose stdout and stderr are a terminal, and what it shows."""
    ours, its = pty.openpty()
    child = subprocess.Popen(command, stdout=its, stderr=its, cwd=ROOT, env=os.environ | environment)
    os.close(its)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how Linux says that it has ended
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return child.wait(), shown.decode()


def test_a_plan_is_json_and_nothing_else(smoke, monkeypatch, capsys):
    monkeypatch.setattr(plan, "SECONDS", 0.2)
    assert main(["plan", "--json", "--params", smoke.params_file]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stages"] == [*pipeline.stages(smoke)]
    cells = {each["cell"]: each for each in found["costs"]["cells"]}
    assert {*cells} == {run.cell for run in smoke.trained.values()}
    total = sum(each["runs"] * each["training_seconds"] for each in cells.values())
    assert found["costs"]["training_seconds"] == pytest.approx(total) and total > 0
    each = cells["edm-fdm"]
    assert each["scoring_seconds"] == pytest.approx(each["evaluations"] / each["evaluations_per_second"])
    assert found["missing"] == found["downloads"] == []


@pytest.mark.parametrize(("well", "code"), [(True, 0), (False, 1)])
def test_doctor_and_verify_are_json_and_exit_as_their_text_does(study, monkeypatch, capsys, well, code):
    found = {"well": well, "notes": ["a"], "problems": [], "profiles": [{"profile": "x", "state": "y", "missing": []}]}
    monkeypatch.setattr(doctor, "find", lambda: found)
    for options in ([], ["--json"]):
        assert main(["doctor", *options]) == code
        printed = capsys.readouterr().out
        assert (json.loads(printed) == found) if options else ("\n  x                       y\n" in printed)
    checked = {
        "profile": "digits", "revision": "0" * 40, "agrees": well, "counts": {"exact": 1},
        "tables": {"met": 0, "cells": 0}, "chaotic runs": [], "missed": {"shares": 0.0, "allowed": 1, "groups": 1},
        "checks": [], "words": [], "numbers": [],
    }  # fmt: skip
    monkeypatch.setattr(verify, "verify", lambda profile, revision: checked)
    monkeypatch.setattr(verify, "markdown", lambda found: "")
    for options in ([], ["--json"]):
        assert main(["verify", *options, "--out", str(study / "report")]) == code
        printed = capsys.readouterr().out
        assert (json.loads(printed) == checked) if options else ("the whole report: " in printed)
    assert json.loads((study / "report" / "digits.json").read_text()) == checked


def test_the_keys_are_documented(smoke):
    told = (ROOT / "docs" / "running.md").read_text()
    for key in ("well", "notes", "problems", "profiles", "stages", "costs", "disk_bytes", "downloads", "missing",
                "agrees", "counts", "checks", "words", "numbers"):  # fmt: skip
        assert f"`{key}`" in told, key


def test_errors_are_red_on_a_terminal_alone():
    wrong = [sys.executable, "-m", "fdm", "check", "--params", "nothing.yaml"]
    code, shown = on_a_terminal(*wrong, NO_COLOR="", TERM="xterm")
    assert code == 1 and shown.startswith("\033[31mfdm: ") and shown.rstrip().endswith("\033[0m")
    code, shown = on_a_terminal(*wrong, NO_COLOR="1", TERM="xterm")
    assert code == 1 and shown.startswith("fdm: ") and "\033" not in shown
    done = subprocess.run(wrong, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith("fdm: ") and "\033" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error():
    many = "import fdm.__main__ as m, sys; m.check = lambda p, a: print('x' * 10**6); m.COMMANDS[0] = m.check; "
    many += "m.check.__name__ = 'check'; sys.exit(m.main(['check']))"
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "{many}" | head -c 1; exit ${{PIPESTATUS[0]}}'],
                          capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("x", "", 141)


@pytest.mark.parametrize("typed", ["fdm expl", "fdm verify --js", "fdm notebook 05", "fdm completion b"])
def test_bash_completes_commands_options_and_words(typed):
    script = subprocess.run([sys.executable, "-m", "fdm", "completion", "bash"], capture_output=True, text=True,
                            cwd=ROOT, check=True).stdout  # fmt: skip
    words = typed.split()
    asked = f'COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _shtab_fdm; echo "${{COMPREPLY[@]}}"'
    found = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, check=True).stdout
    whole = {"expl": "explain", "--js": "--json", "05": "05_evidence", "b": "bash"}
    assert found.split() == [whole[words[-1]]]


def test_an_outlook_scales_what_was_measured_by_what_it_took():
    outlook = progress.Outlook(["code", "train", "draw", "evaluate", "publish"], {"train": 100.0, "evaluate": 400.0})
    assert outlook.begin("code", 0.0) == "[1 of 5] code; more than 8 min left"
    assert outlook.begin("train", 10.0) == "[2 of 5] train; about 9 min left"  # 500 s, and two that last as code did
    outlook.skip("draw")
    assert outlook.begin("evaluate", 60.0) == "[4 of 5] evaluate; about 4 min left"  # in half the time: 200 s, and 10
    assert outlook.begin("publish", 200.0) == "[5 of 5] publish; about 10 s left"


def test_what_was_measured_is_told_by_stage(smoke, monkeypatch):
    monkeypatch.setattr(plan, "SECONDS", 0.2)
    found = progress.expected(smoke)
    assert {*found} <= {*pipeline.stages(smoke)} and {*found} <= {*progress.MEASURED}
    assert all(found[stage] > 0 for stage in ("train", "evaluate", "heads", "systems"))


def test_on_a_terminal_each_stage_is_told_and_a_failure_is_one_sentence(study, monkeypatch, capfd):
    profile = profiles.find("digits")
    monkeypatch.setattr(progress, "_waits", lambda profile: False)
    said = "Stage 'code' didn't change, skipping\nRunning stage 'kernel':\n> python\nRunning stage 'publish':\n"
    assert progress._watched(profile, [sys.executable, "-c", f"import sys; print({said!r}); sys.exit(3)"]) == 3
    told = [line for line in capfd.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.split(";")[0] for line in told] == ["[2 of 9] kernel", "[9 of 9] publish"]
    monkeypatch.setattr(progress, "_watched", lambda profile, command: 3)
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(FdmError, match="The pipeline has stopped; the lines above say why"):
        progress.run(profile)


def test_every_command_is_in_the_completion():
    parsed = {function.__name__ for function in command_line.COMMANDS}
    script = subprocess.run([sys.executable, "-m", "fdm", "completion", "zsh"], capture_output=True, text=True,
                            cwd=ROOT, check=True).stdout  # fmt: skip
    assert all(name in script for name in parsed | {"sample", "restore", "new-profile", "doctor", "completion"})
