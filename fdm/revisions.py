"""A profile's files as they are in git at a revision."""

import io
import subprocess
import tarfile
from pathlib import Path

from fdm.errors import FdmError
from fdm.explain import relative
from fdm.files import root
from fdm.profiles import Profile


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
        return git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    except FdmError as error:
        raise FdmError(f"There is no revision {revision}; git log lists those that there are.") from error


def check_out(revision: str, profile: Profile, folder: Path) -> None:
    """Write a profile's files as they are at a revision to `folder`, to be read there as a study of their own.

    Raises FdmError when the revision holds no results of the profile.
    """
    results = relative(profile.results)
    wanted = [
        results, "results/published", "results/ablations", "profiles", "params.yaml", "dvc.yaml", "dvc.lock",
        ".dvcignore", "fdm", "notebooks", "README.md",
    ]  # fmt: skip
    there = git("ls-tree", "--name-only", revision, *wanted).decode().splitlines()
    if results not in there:
        raise FdmError(f"Revision {revision[:12]} holds no results of the profile {profile.profile} to compare with.")
    with tarfile.open(fileobj=io.BytesIO(git("archive", revision, *there))) as archive:
        for member in archive:
            if member.isfile() and (file := archive.extractfile(member)):
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())
