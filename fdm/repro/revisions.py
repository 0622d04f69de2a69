"""What is in git at a revision."""

import io
import subprocess
import zipfile
from collections.abc import Iterable
from pathlib import Path

from fdm.files import FdmError, root


def git(*words: str) -> bytes:
    """What a git command prints, run in the study's folder; raises FdmError with what it says when it fails."""
    try:
        done = subprocess.run(["git", *words], cwd=root(), capture_output=True)
    except OSError as error:
        raise FdmError(
            f"git cannot be run ({error.strerror}); install it to compare with what is committed."
        ) from error
    if done.returncode:
        said = (done.stderr.decode(errors="replace").splitlines() or ["it says nothing"])[0]
        raise FdmError(f"git {words[0]} failed in {root()}: {said}.")
    return done.stdout


def resolve(revision: str) -> str:
    """The full name of a revision; raises FdmError when there is no repository or no such revision."""
    try:
        git("rev-parse", "--git-dir")
    except FdmError as error:
        raise FdmError(f"{root()} is no git repository; clone the study to compare with what is committed.") from error
    try:
        if revision.startswith("-"):  # which git would take for an option
            raise ValueError
        return git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    except (FdmError, ValueError) as error:
        raise FdmError(f"There is no revision {revision[:80]!r}; git log lists those that there are.") from error


def export(revision: str, folder: Path, names: Iterable[str]) -> list[str]:
    """Write to `folder` those of the named files and folders that a revision has; returns their names."""
    there = git("ls-tree", "--name-only", revision, *names).decode().splitlines()
    if there:  # git archive without a name is of everything
        with zipfile.ZipFile(io.BytesIO(git("archive", "--format=zip", revision, *there))) as archive:
            archive.extractall(folder)
    return there
