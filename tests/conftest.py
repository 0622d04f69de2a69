"""What several tests need: a study in an empty folder, and a small data set with the models' names."""

import functools
import shutil
import threading
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import yaml
from tqdm import tqdm

from fdm.data import sources
from fdm.data.datasets import Dataset
from fdm.params import DatasetParams
from fdm.study import profiles, systems
from fdm.study.profiles import Profile

from .published_format import persistence  # noqa: F401, a fixture
from .scratch import ROOT, Scratch

WEEKLY = functools.partial(pytest.param, marks=pytest.mark.weekly)

ORACLES = Path(__file__).parent / "oracles"
# The files that take longest, which `make test` hands out first: no process then ends with a long one alone.
LONGEST = (
    "pipeline", "committed", "site", "accept", "cells", "training", "runs", "verify", "systems", "evaluation", "errors",
)  # fmt: skip

torch.set_num_threads(1)
# Tests fork processes and kill them. One that dies with a lock that others share would stop them all; and a thread that
# watches the bars may hold a lock in the moment of a fork.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0
# No test is timed: these machines are shared, and an example may take long for no fault of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def study_in(folder: Path) -> Path:
    """Copy the parameters of all profiles and the code to a folder."""
    for name in ("params.yaml", "dvc.yaml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "fdm", folder / "fdm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    shutil.copytree(ROOT / "results" / "published", folder / "results" / "published")
    return folder


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the parameters of all profiles and the code, as the working directory."""
    monkeypatch.chdir(study_in(tmp_path))
    return tmp_path


def change(params: Path, **sections: Any) -> Profile:
    """Change parameters in a profile's file and read it: keys of a table, or another value in the place of a list."""
    values = yaml.safe_load(params.read_text())
    for section, changes in sections.items():
        values[section] = values[section] | changes if isinstance(changes, dict) else changes
    params.write_text(yaml.safe_dump(values, sort_keys=False))
    return profiles.load(params)


@pytest.fixture
def smoke(study: Path) -> Profile:
    """The smoke profile in its own study."""
    return profiles.find("smoke")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The prepared digits."""
    params = DatasetParams(name="digits", resolution=8, conditional=True)
    return sources.prepare(params, tmp_path_factory.mktemp("data") / "dataset.safetensors")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Scratch:
    return Scratch(tmp_path_factory.mktemp("scratch"))


JUDGES: dict[tuple[str, str, str], systems.Judge] = {}


@pytest.fixture
def one_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """What judges the samples of a data set is learned once, and of fewer images: it takes seconds."""
    learned = systems.Judge

    def judge(profile: Profile, dataset: Dataset, device: str) -> systems.Judge:
        key = (profile.evaluation.extractor, dataset.sha256, device)
        if key not in JUDGES:
            few = dataset._replace(images=dataset.images[:600], labels=dataset.labels[:600])
            JUDGES[key] = learned(profile, few, device)
        return JUDGES[key]

    monkeypatch.setattr(systems, "Judge", judge)
