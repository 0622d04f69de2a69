"""A scratch copy of this checkout, for tests that run the real pipeline and the committed notebooks."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
SMOKE = "profiles/smoke/dvc.yaml"
RESULTS = "results/smoke"


class Scratch:
    """A copy of the working tree, committed in a repository of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for name in filter(lambda name: (ROOT / name).is_file(), listed.splitlines()):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, path / name)
        (path / "profiles" / "smoke" / "dvc.lock").unlink(missing_ok=True)
        self.env = os.environ | {
            "PYTHONPATH": str(path),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_VALUE_0": "test",
            "GIT_CONFIG_KEY_1": "user.email", "GIT_CONFIG_VALUE_1": "test@example.org",
        }  # fmt: skip
        for command in ("git init -q", "git add -A", "git commit -qm scratch"):
            self(command)

    def __call__(self, command: str, check: bool = True, **env: str) -> str:
        """Run a command and return what it prints."""
        done = subprocess.run(
            command.split(), cwd=self.path, env=self.env | env, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def repro(self, *options: str, to: str | None = None) -> list[str]:
        """Run the smoke pipeline, `to` a stage or to its end; returns the stages that ran."""
        target = f"{SMOKE}:{to}" if to else SMOKE
        return re.findall(r"Running stage '(?:.*:)?(.*)'", self(" ".join(["dvc repro", *options, target])))

    def hashes(self, provenance: bool = True) -> dict[str, str]:
        """Hash of every result and of the lock; without provenance nothing that tells of times."""
        files = [*(self.path / RESULTS).rglob("*"), self.path / "profiles" / "smoke" / "dvc.lock"]
        return {
            str(file.relative_to(self.path)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
            if file.is_file() and (provenance or "provenance" not in file.parts)
        }

    def _files(self) -> Iterator[Path]:
        """Every file but those of git and DVC, and what Python compiles."""
        for folder, inner, names in os.walk(self.path):
            inner[:] = [name for name in inner if name not in (".git", "__pycache__", "tmp", "cache")]
            yield from (Path(folder, name) for name in names)

    def keep(self) -> None:
        """Remember every file as it is now."""
        self.kept = {path: (path.read_bytes(), path.stat()) for path in self._files()}

    def restore(self) -> None:
        """Make every file again what it was when it was kept, and remove all others."""
        for path in set(self._files()) - self.kept.keys():
            path.unlink()
        for path, (content, stat) in self.kept.items():
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)  # it may be a link into DVC's cache
                path.write_bytes(content)
                path.chmod(stat.st_mode)
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.path / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def nbval(self, mode: str, paths: list[Path], **env: str) -> str:
        """Execute notebooks and compare what they show; returns what it printed."""
        for path in paths:
            code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
            assert any(c.outputs for c in code), f"{path.name} has no outputs: nbval would compare nothing"
        names = " ".join(str(path.relative_to(self.path)) for path in paths)
        return self(f"python -m pytest {mode} -p no:cacheprovider {names}", **env)
