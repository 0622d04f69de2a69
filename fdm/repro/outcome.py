"""What a run of the pipeline came to, told at its end: the headline, whether it is as committed, and what is next."""

import subprocess

from fdm.files import relative, root
from fdm.repro import pipeline
from fdm.study import measurements, tables
from fdm.study.profiles import Profile

# The table that people want first, of the first of these notebooks that a profile has, and columns of it, or all.
HEADLINES: dict[str, tuple[str, list[str]]] = {
    "05_evidence": ("tables/verdicts.csv", ["target", "claim", "framework", "ratio", "low", "high", "verdict"]),
    "04_tables": ("tables/table1.csv", []),
    "09_few_steps": ("few-steps/kernels.csv", []),
    "08_restoration": ("restored/kernels.csv", []),
    "07_systems": ("standings/summary.csv", []),
}
CHANGED = 10  # files that are named


def text(profile: Profile) -> str:
    """The headline of a profile's results, where they are, whether git finds them as committed, and what to do next."""
    lines = [*_headline(profile), *_as_committed(profile)]
    books = [profile.results / "notebooks" / f"{book}.ipynb" for book in pipeline.books(profile)]
    listed = "  ".join(relative(book) for book in books if book.is_file())
    return "\n".join([
        *lines, f"Notebooks to read: {listed}",
        f"This machine's own numbers are in {relative(profile.here)}. Next: make verify PROFILE={profile.profile} "
        "compares them one by one with the record.",
    ])  # fmt: skip


def _headline(profile: Profile) -> list[str]:
    for book, (name, columns) in HEADLINES.items():
        path = profile.results / name
        if book in pipeline.books(profile) and path.is_file():
            table = measurements.read(path)
            shown = tables.shown(table[columns] if columns else table).to_string(index=False)
            return ["", shown, "", f"That is {relative(path.with_suffix('.md'))}; other tables lie beside it."]
    return []


def _as_committed(profile: Profile) -> list[str]:
    where = relative(profile.results)
    command = ["git", "-C", str(root()), "status", "--porcelain", "--", where]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        return []  # no clone
    changed = found.stdout.splitlines()
    if not changed:
        return [f"{where} is as committed: what was computed here agrees with it, or is nothing new."]
    more = [f"... and {len(changed) - CHANGED} more"] if len(changed) > CHANGED else []
    return [
        f"Other than committed, as it did not agree or is new; git checkout {where} brings the record back:",
        *changed[:CHANGED], *more,
    ]  # fmt: skip
