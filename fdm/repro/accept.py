"""Prove that a change of the source moves no result, and put that on record: then nothing is trained or scored again.

The old source, from git, and the new one are compared on this machine in four ways. Each sees what others do not:

1. The fingerprint: in every configuration the same bits (see `fdm.repro.fingerprint`).
2. Coverage: the new source's fingerprint takes every branch of every function that changed, except those that end by
   refusing. A branch that was not taken could hide anything.
3. Numbers: no number stands in the source more often than before. A limit that the fingerprint does not reach would
   hide in a `min`.
4. A sentinel: one run of the default profile, chosen by the new source's hash, is trained and scored whole. It must
   give the weights and measurements on record; on another processor, old and new source must give the same.

What passes is a line in results/accepted.csv, from the old digest to the new. Results are named by the oldest digest
that leads to the present source by such lines (`closure.identity`), so a missing line makes them stale.
"""

import ast
import csv
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fdm.files import FdmError, digest, relative, root, write_text
from fdm.repro import fingerprint, revisions
from fdm.study import closure, measurements, profiles, provenance
from fdm.study.measurements import select

COLUMNS = ("closure", "old", "new", "configurations", "fingerprint", "sentinel", "weights", "compared", "device",
           "machine", "torch", "revision", "date")  # fmt: skip
SMALL = {0, 1, 2}  # numbers that count and index, and may appear anywhere


class Part(NamedTuple):
    """A function, or a statement outside of functions, of a source."""

    name: str
    text: str  # without comments, docstrings and annotations
    first: int
    last: int
    excused: set[int]  # lines of blocks that end by refusing, which compute nothing
    numbers: Counter


def parts(source: str) -> Iterator[Part]:
    """The functions of a source, and its other statements except imports."""
    tree = ast.parse(source)
    todo: list[tuple[str, ast.stmt]] = [("", node) for node in tree.body]
    while todo:
        where, node = todo.pop(0)
        if isinstance(node, ast.ClassDef):
            todo += [(f"{where}{node.name}.", inner) for inner in node.body]
            head = ast.ClassDef(node.name, node.bases, node.keywords, [ast.Pass()], node.decorator_list)
            yield Part(f"class {where}{node.name}", ast.unparse(head), node.lineno, node.lineno, set(), Counter())
        elif not isinstance(node, ast.Import | ast.ImportFrom) and not _is_text(node):
            name = node.name if isinstance(node, ast.FunctionDef) else ast.unparse(node)[:40]
            first, last = node.lineno, node.end_lineno or node.lineno
            excused, numbers = _excused(node), _numbers(node)
            yield Part(f"{where}{name}", _normalised(node), first, last, excused, numbers)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _normalised(node: ast.stmt) -> str:
    copy = ast.parse(ast.unparse(node))
    for inner in ast.walk(copy):
        if isinstance(inner, ast.FunctionDef):
            inner.body = [each for each in inner.body if not _is_text(each)] or [ast.Pass()]
            inner.returns = None
        elif isinstance(inner, ast.arg):
            inner.annotation = None
    return ast.unparse(copy)


def _excused(node: ast.AST) -> set[int]:
    """Lines of the blocks that end by raising an error: all that they compute is a sentence."""
    out: set[int] = set()
    for inner in ast.walk(node):
        for block in ("body", "orelse", "handlers"):
            statements = getattr(inner, block, None)
            if not isinstance(statements, list) or not statements or inner is node:
                continue
            if isinstance(statements[-1], ast.Raise):
                out |= set(range(statements[0].lineno, (statements[-1].end_lineno or 0) + 1))
        if isinstance(inner, ast.ExceptHandler) and inner.lineno + 1 in out:
            out.add(inner.lineno)
        if isinstance(inner, ast.Raise | ast.Assert):
            out |= set(range(inner.lineno, (inner.end_lineno or 0) + 1))
    return out


def _numbers(node: ast.AST) -> Counter:
    refused = [part for inner in ast.walk(node) if isinstance(inner, ast.Raise) for part in ast.walk(inner)]
    found = (each for each in ast.walk(node) if isinstance(each, ast.Constant) and each not in refused)
    values = (each.value for each in found if isinstance(each.value, int | float) and not isinstance(each.value, bool))
    return Counter(value for value in values if value not in SMALL)


def sources(tree: Path, files: list[str]) -> list[tuple[str, Part]]:
    """All parts of some files under a folder, with the file that each is in."""
    return [(file, part) for file in files for part in parts((tree / file).read_text(encoding="utf-8"))]


def hidden(old: list[tuple[str, Part]], new: list[tuple[str, Part]], covered: dict[str, Any]) -> Iterator[str]:
    """What could hide a change that the fingerprint does not see: branches not taken, and numbers that are new.

    `covered` is what coverage reports of the new source's fingerprint, by file.
    """
    known = {part.text for _, part in old}
    for file, part in new:
        if part.text in known:
            continue
        seen = covered.get(file, {"missing_lines": [], "missing_branches": []})
        lines = {line for line in seen["missing_lines"] if part.first <= line <= part.last}
        branches = [(a, b) for a, b in seen["missing_branches"] if part.first <= a <= part.last]
        missed = {a for a, b in branches if b not in part.excused and a not in part.excused} | (lines - part.excused)
        if missed:
            yield f"{file}, {part.name} has changed, and line {min(missed)} has a branch that no configuration takes"
    before, now = Counter[float](), Counter[float]()
    for _, part in old:
        before.update(part.numbers)
    for _, part in new:
        now.update(part.numbers)
    for number in now - before:
        places = [f"{file}, {part.name}" for file, part in new if number in part.numbers and part.text not in known]
        yield f"the number {number:g} stands in the source more often than before ({'; '.join(places)})"


def _module(tree: Path) -> str:
    """The module of a source that takes its fingerprint."""
    (path,) = [path for path in (tree / "fdm").rglob("fingerprint.py")]
    return ".".join(path.relative_to(tree).with_suffix("").parts)


def _start(tree: Path, out: Path, *words: str, coverage: Path | None = None) -> subprocess.Popen:
    """Start taking a fingerprint of the source under a folder."""
    env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    how = (
        ["-m", "coverage", "run", "--branch", f"--source={tree / 'fdm'}", f"--data-file={coverage}"] if coverage else []
    )
    command = [sys.executable, *how, "-m", _module(tree), "--out", str(out), *words]
    return subprocess.Popen(command, cwd=tree, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _end(process: subprocess.Popen, out: Path, whose: str) -> dict[str, Any]:
    _, errors = process.communicate()
    if process.returncode:
        raise FdmError(
            f"The fingerprint of the {whose} source failed: {(errors.splitlines() or ['it says nothing'])[-1]}."
        )
    return json.loads(out.read_text(encoding="utf-8"))


def _coverage(data: Path, folder: Path) -> dict[str, Any]:
    """What coverage measured, by file relative to the study."""
    out = folder / "coverage.json"
    command = [sys.executable, "-m", "coverage", "json", "-q", f"--data-file={data}", "-o", str(out)]
    done = subprocess.run(command, cwd=root(), capture_output=True, text=True)
    if done.returncode:
        raise FdmError(f"coverage could not report: {done.stdout.strip() or done.stderr.strip()}.")
    files = json.loads(out.read_text(encoding="utf-8"))["files"]
    return {Path(name).as_posix(): told for name, told in files.items()}


def compare(old: dict[str, Any], new: dict[str, Any], name: str) -> list[str]:
    """Where the fingerprints of a closure differ, in words; `old` and `new` are whole fingerprints."""
    begins = tuple(new["closures"][name]["hashes"])
    before = {key: value for key, value in old["hashes"].items() if key.startswith(begins)}
    if not before:
        return [f"{name}: the old source has no fingerprint of it"]
    gone = [key for key in before if key not in new["hashes"]]
    moved = [key for key, value in before.items() if key in new["hashes"] and new["hashes"][key] != value]
    out = [f"{', '.join(gone[:3])}: not in the new fingerprint"] if gone else []
    return out + (
        [f"{len(moved)} of {len(before)} configurations give other bits: {', '.join(moved[:3])}"] if moved else []
    )


def _recorded(run: str) -> dict[str, Any]:
    """What the record of the default profile holds of a run, as `fingerprint.sentinel` gives it."""
    profile = profiles.load("params.yaml")
    rows = select(measurements.read(profile.recorded(profile.run(run).cell) / "measurements.csv"), run=run)
    weights = {f"{share:g}": key for share, key in zip(rows["duration"], rows["checkpoint"], strict=True)}
    return {"weights": weights, "measured": fingerprint.measured(rows)}


def _sentinel(tree: Path, folder: Path, run: str, scored: bool) -> tuple[str, str, list[str]]:
    """Train and score a run whole: its last weights, what it was compared with, and what differs.

    The record is asked first. Where it is of another processor, the old source under `tree` is run as well. Without
    `scored` only weights are compared.
    """
    keys = ("weights", "measured") if scored else ("weights",)
    new = _end(_start(root(), folder / "new.json", "--run", run), folder / "new.json", "new")
    last = new["weights"]["1"]
    try:
        recorded = _recorded(run)
    except (FdmError, KeyError):
        recorded = {}
    if all(recorded.get(key) == new[key] for key in keys):
        return last, "the record", []
    old = _end(_start(tree, folder / "old.json", "--run", run), folder / "old.json", "old")
    differing = [key for key in keys if old.get(key) != new[key]]
    return (
        last,
        "the old source, run here",
        [f"{run}, trained whole: other {' and '.join(differing)}"] if differing else [],
    )


def _parts(closures: dict[str, dict[str, Any]], names: list[str]) -> set[str]:
    """The parts of a fingerprint that some closures have hashes in."""
    return {key.partition(" ")[0].rstrip(":") for name in names for key in closures[name]["hashes"]}


def accept(revision: str) -> list[dict[str, Any]]:
    """Prove that the source now computes what that of a revision did, and record it; returns the new lines.

    Raises FdmError with all that stands against it.
    """
    full = revisions.resolve(revision)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        tree = folder / "old"
        revisions.export(full, tree, ("fdm", "profiles", "params.yaml", "dvc.yaml", "results/accepted.csv"))
        old = _end(_start(tree, folder / "old.json", "--only"), folder / "old.json", "old")
        new, steps = fingerprint.closures(), closure.accepted()
        changed = [
            name for name, about in new.items()
            if name in old["closures"]
            and closure.origin(about["digest"], steps) != closure.origin(old["closures"][name]["digest"], steps)
        ]  # fmt: skip
        if not changed:
            return []
        only = _parts(new, changed)
        # A closure that the old source lacks takes branches of what it shares with others.
        more = _parts(new, [name for name in new if name not in old["closures"]]) & {*fingerprint.PARTS}
        one = _start(tree, folder / "old.json", "--only", *sorted(only))
        two = _start(root(), folder / "new.json", "--only", *sorted(only | more), coverage=folder / "coverage")
        old, new = _end(one, folder / "old.json", "old"), _end(two, folder / "new.json", "new")
        covered, against = _coverage(folder / "coverage", folder), list[str]()
        for name in changed:
            files = [source["closures"][name]["files"] for source in (old, new)]
            against += compare(old, new, name)
            against += hidden(sources(tree, files[0]), sources(root(), files[1]), covered)
        if not against:
            trained = sorted(profiles.load("params.yaml").trained)
            chosen = digest([new["closures"][name]["digest"] for name in changed])
            run = trained[int(chosen, 16) % len(trained)]
            weights, beside, against = _sentinel(tree, folder, run, changed != ["training"])
    if against:
        listed = "\n- ".join(dict.fromkeys(against))
        raise FdmError(f"This is not accepted; mend it, or let dvc repro make the results again:\n- {listed}")
    origin = provenance.origin(0)
    lines = []
    for name in changed:
        of_old = old["closures"][name]["digest"]
        begins = tuple(new["closures"][name]["hashes"])
        hashes = {key: value for key, value in old["hashes"].items() if key.startswith(begins)}
        lines.append({
            "closure": name, "old": of_old, "new": new["closures"][name]["digest"], "configurations": len(hashes),
            "fingerprint": digest(hashes), "sentinel": run, "weights": weights, "compared": beside, "device": "cpu",
            "machine": origin["device"], "torch": origin["versions"]["torch"], "revision": full,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        })  # fmt: skip
    record(lines)
    return lines


def record(lines: list[dict[str, Any]]) -> None:
    """Add lines to results/accepted.csv; older ones of a closure go where its results have been made again since."""
    path = root() / "results" / "accepted.csv"
    known = list(csv.DictReader(path.open(encoding="utf-8", newline=""))) if path.is_file() else []
    ends = {(row["closure"], row["new"]) for row in known}
    again = {line["closure"] for line in lines if (line["closure"], line["old"]) not in ends}
    known = [row for row in known if row["closure"] not in again]
    rows = [",".join(COLUMNS), *(",".join(_plain(row[column]) for column in COLUMNS) for row in [*known, *lines])]
    write_text(path, "\n".join(rows) + "\n")


def _plain(value: Any) -> str:
    return str(value).replace(",", ";")


def report(revision: str) -> str:
    """Accept, and say what was accepted."""
    lines = accept(revision)
    if not lines:
        return f"The source computes what that of {revision} did by what is on record: there is nothing to accept."
    told = [
        f"{line['closure']}: {line['old']} -> {line['new']}; {line['configurations']} configurations to the bit; "
        f"{line['sentinel']} trained whole, equal to {line['compared']}"
        for line in lines
    ]
    return "\n".join(["accepted, in " + relative(root() / "results" / "accepted.csv") + ":", *told])
