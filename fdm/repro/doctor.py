"""What this machine is and has, and what each profile can do here. It changes nothing and uses no network."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from typing import Any

import psutil
import torch

from fdm.files import FdmError, root
from fdm.model.cost import DTYPE
from fdm.repro import plan
from fdm.study import profiles
from fdm.training import processes


def environment() -> tuple[list[str], list[str]]:
    """What is installed, and what is wrong with it: lines to show, and problems."""
    notes = [f"Python {platform.python_version()} in {sys.prefix}, torch {torch.__version__}"]
    command = ["uv", "pip", "sync", "--dry-run", "--offline", "--python", sys.executable, "requirements.lock"]
    try:
        done = subprocess.run(command, cwd=root(), capture_output=True, text=True)
    except OSError:
        return notes, ["uv is not installed, so that packages cannot be compared with the lock; make venv installs it"]
    wanted = re.findall(r"^ [+~] (\S+)", done.stderr, re.MULTILINE)  # others may be installed beside them
    if done.returncode == 0 and not wanted:
        return [*notes, "all packages are those of requirements.lock"], []
    what = ", ".join(wanted) or " ".join(done.stderr.split())
    return notes, [f"packages are not those of requirements.lock ({what}); make venv installs what is locked"]


def machine() -> list[str]:
    """Cores, memory, disk and GPUs."""
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(root())
    notes = [
        f"{os.cpu_count()} cores, {memory.total / plan.GIB:.0f} GiB of memory, {memory.available / plan.GIB:.0f} free; "
        f"{disk.free / plan.GIB:.0f} GiB of disk free"
    ]
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        notes.append(
            f"GPU {number}: {about.name}, {about.total_memory / plan.GIB:.0f} GiB, compute capability "
            f"{about.major}.{about.minor}"
        )
    allowed = []
    for precision in DTYPE:
        try:
            processes.require(precision, 1, processes.device())  # type: ignore[arg-type]
            allowed.append(precision)
        except FdmError:
            pass
    return [*notes, f"networks run on {processes.device()}; precisions: {', '.join(allowed)}"]


def pipeline() -> tuple[list[str], list[str]]:
    """State of git, of DVC, and of interrupted training runs: lines to show, and problems."""
    notes, problems = [], []

    def say(*command: str) -> str:
        return subprocess.run(command, cwd=root(), capture_output=True, text=True).stdout.strip()

    revision = say("git", "rev-parse", "--short", "HEAD")
    changed = say("git", "status", "--porcelain").splitlines()
    if revision:
        notes.append(f"revision {revision}, {f'{len(changed)} changed files' if changed else 'nothing changed'}")
    else:
        problems.append("this is no git checkout: results cannot name the revision they are of; clone the repository")
    if not (root() / ".dvc" / "config").exists():
        problems.append("there is no .dvc/config: dvc repro will not run; clone the repository again")
    locks = root() / ".dvc" / "tmp" / "rwlock"
    if locks.exists():
        try:
            held = {int(pid) for pid in re.findall(r'"pid": (\d+)', locks.read_text())}
        except OSError:
            held = set()
        dead = sorted(pid for pid in held if not psutil.pid_exists(pid))
        if dead:
            notes.append(
                f"a dvc that was killed (process {dead[0]}) is still noted in {locks}; if dvc waits, remove it"
            )
    stale = say(sys.executable, "-m", "dvc", "status", "--json", "dvc.yaml")
    try:
        waiting = list(json.loads(stale))
        notes.append(
            f"default profile: {f'{len(waiting)} stages are to be run' if waiting else 'all results are current'}"
        )
    except ValueError:
        problems.append("dvc status fails here; run it to see why")
    for home in sorted((root() / "work").glob("*/")):
        states = sorted(home.glob("state-*.pt"))
        if states:
            size = sum(path.stat().st_size for path in states) / 2**20
            notes.append(f"an interrupted training waits in {home.relative_to(root())} ({size:.0f} MiB); dvc repro "
                         "goes on with it if its parameters and code are still the same")  # fmt: skip
    return notes, problems


def readiness(name: str) -> tuple[str, list[str]]:
    """Whether the profile of that name is valid and can run here, in a word, and what it lacks."""
    try:
        profile = profiles.find(name)
        networks = plan.networks_of(profile, plan.dataset_of(profile))
        gaps = plan.missing(profile, plan.largest(networks))
    except FdmError as error:
        return "broken", [str(error).rstrip(".")]
    if not gaps:
        return "ready", []
    later = all("will be downloaded" in gap for gap in gaps)
    return ("ready, with a network" if later else "not here"), gaps


def find() -> dict[str, Any]:
    """The findings as plain values; `well` says whether the default profile can run, without any problem."""
    notes, problems = environment()
    more_notes, more_problems = pipeline()
    names = ["digits", *sorted(path.parent.name for path in (root() / "profiles").glob("*/params.yaml"))]
    states = [(name, *readiness(name)) for name in names]
    wrong = [*problems, *more_problems]
    return {
        "well": states[0][1] == "ready" and not wrong, "notes": [*notes, *machine(), *more_notes], "problems": wrong,
        "profiles": [{"profile": name, "state": state, "missing": gaps} for name, state, gaps in states],
    }  # fmt: skip


def report(found: dict[str, Any]) -> str:
    """The findings as text, from `find`."""
    lines = [*(f"  {note}" for note in found["notes"]), *(f"! {problem}" for problem in found["problems"])]
    lines += ["", "Profiles (make plan PROFILE=<name> tells what one costs):"]
    for each in found["profiles"]:
        lines += [f"  {each['profile']:24}{each['state']}", *(f"  {'':24}- {gap}" for gap in each["missing"])]
    return "\n".join(lines)
