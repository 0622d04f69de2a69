"""A profile for pictures of one's own: what is written follows from the pictures. And what a run says at its end."""

import subprocess

import numpy as np
import pytest
from PIL import Image

from fdm.__main__ import main
from fdm.files import FdmError
from fdm.repro import new_profile, outcome, pipeline
from fdm.study import profiles

from .scratch import ROOT


def pictures(folder, n: int, colour: bool, classes: tuple[str, ...] = (".",)):
    """So many small pictures of noise below a folder, in subfolders in turn."""
    rng = np.random.default_rng(0)
    for i in range(n):
        place = folder / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        shape = (33, 40, 3) if colour else (33, 40)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(place / f"{i}.png")
    return folder


@pytest.mark.parametrize("gpu", [False, True])
def test_a_profile_is_written_for_pictures_in_colour_with_classes(study, tmp_path, gpu):
    place = pictures(tmp_path / "mine", 100, True, ("cat", "dog"))
    profile, told = new_profile.write("my-pets", place, gpu)
    assert profiles.find("my-pets") == profile
    assert (study / "profiles/my-pets/dvc.yaml").read_text() == pipeline.text(profile)
    assert (profile.dataset.path, profile.dataset.conditional) == (str(place), True)
    assert profile.evaluation.samples == 45  # half of the ninety that are not held out
    assert [*profile.runs] == [f"{cell}-{seed}" for cell in ("edm-baseline", "edm-fdm") for seed in (0, 1, 2)]
    assert profile.runs["edm-fdm-0"].warmup_steps > 0
    assert told[0] == "100 pictures, in colour, 2 classes; 10 are held out."
    assert any("decide little" in each for each in told)
    assert profile.training.precision == ("bf16" if gpu else "fp32")


def test_the_command_says_what_is_next_and_a_name_is_taken_once(study, tmp_path, capsys):
    place = pictures(tmp_path / "mine", 40, False)
    assert main(["new-profile", "greys", "--images", str(place)]) == 0
    shown = capsys.readouterr().out
    assert "40 pictures, grey, 1 class;" in shown
    assert "make repro PROFILE=greys" in shown
    assert not profiles.find("greys").dataset.conditional
    assert main(["check", "--params", "profiles/greys/params.yaml"]) == 0
    assert main(["new-profile", "greys", "--images", str(place)]) == 1
    assert "There is a profile named greys already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["digits", "My pictures", "../up", "", "-a"])
def test_names_that_cannot_be_are_refused_before_pictures_are_read(study, tmp_path, name):
    with pytest.raises(FdmError, match=r"cannot be the name of a profile|already"):
        new_profile.write(name, tmp_path / "nowhere", False)


def test_pictures_that_cannot_be_used_leave_no_profile(study, tmp_path):
    with pytest.raises(FdmError, match="there is no folder"):
        new_profile.write("mine", tmp_path / "nowhere", False)
    with pytest.raises(FdmError, match="32 are needed"):
        new_profile.write("mine", pictures(tmp_path / "few", 3, True), False)
    assert not (study / "profiles/mine").exists()


def test_a_run_ends_with_its_headline_and_what_is_next():
    told = outcome.text(profiles.find("exact"))
    table = (ROOT / "results/exact/tables/verdicts.csv").read_text().splitlines()
    assert "does not hold" in told
    assert told.count("exact     C") == sum(line.startswith("exact,C") for line in table)
    assert "results/exact/tables/verdicts.md" in told
    assert "results/exact/notebooks/05_evidence.ipynb" in told
    assert "make verify PROFILE=exact" in told
    digits = outcome.text(profiles.find("digits"))
    assert "100% (50 kimg)" in digits


def test_what_is_not_as_committed_is_named_at_the_end(scratch_results):
    path = scratch_results / "results" / "digits" / "tables" / "table1.csv"
    assert "results/digits is as committed" in outcome.text(profiles.find("digits"))
    path.write_text(path.read_text() + "\n")
    told = outcome.text(profiles.find("digits"))
    assert " M results/digits/tables/table1.csv" in told
    assert "git checkout results/digits" in told


@pytest.fixture
def scratch_results(study):
    """The study in git, with the tables of the default profile."""
    folder = study / "results" / "digits" / "tables"
    folder.mkdir(parents=True)
    (folder / "table1.csv").write_text((ROOT / "results/digits/tables/table1.csv").read_text())
    for command in ("init -q", "add results", "-c user.name=a -c user.email=a@b.c commit -qm results"):
        subprocess.run(["git", *command.split()], cwd=study, check=True)
    return study
