"""When, where and with what a result was made: kept beside the results, as equal results may differ in it."""

import json
import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fdm.files import root, write_json

VERSIONS = (
    "torch",
    "numpy",
    "scipy",
    "torch-fidelity",
    "dvc",
    "dvclive",
    "papermill",
    "matplotlib",
    "pandas",
)


def record(provenance: Path, content: str, started: float, **what: Any) -> None:
    """Write `what` was made, and its `origin`, unless the file tells of the same `content` (a hash) already."""
    try:
        same = json.loads(provenance.read_text())["content"] == content
    except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one, which tells nothing
        same = False
    if not same:
        write_json(provenance, {**what, "content": content, **origin(started)})


def origin(started: float) -> dict[str, Any]:
    """When, where and with what the calling process worked since `started` (seconds since the epoch)."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root(), capture_output=True, text=True).stdout.rstrip("\n")

    # Beside what the pipeline writes itself, two letters of state and a blank before each name.
    changed = [
        line for line in git("status", "--porcelain").splitlines()
        if not line[3:].startswith("results/") and not line.endswith("dvc.lock")
    ]  # fmt: skip
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 1),
        "revision": git("rev-parse", "HEAD"),
        "changed_since_revision": changed,
        "device": _gpu() or cpu,
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
    }


def _gpu() -> str | None:
    if not any(map(shutil.which, ("nvidia-smi", "rocm-smi"))):
        return None  # importing torch only to learn this takes two seconds, in every stage
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
