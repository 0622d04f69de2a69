"""The source that a result depends on: a module's own, and that of all modules of this package that it imports."""

import ast
import csv
import functools
import gc
import hashlib
from pathlib import Path

from fdm.files import root

# What shapes a result that takes long: a network, and a measurement, to which comes the source of its sampler.
CLOSURES = {
    "training": ["training.loop"],
    "scoring": ["study.measure"],
    "errors": ["study.errors"],
    "systems": ["study.systems"],
    "heads": ["study.heads"],
    "joint": ["training.objectives.hybrid", "model.joint"],
    "conditional": ["training.objectives.conditional", "model.conditional"],
    "few-steps": ["training.objectives.adversarial", "training.objectives.discrepancy", "model.generator"],
    "toy": ["study.grid_toy", "training.objectives.adversarial"],
    "restoration": ["study.restoration"],
}
# Modules that choose, check and name but compute nothing: their choices are part of what an experiment is named by. And
# what some experiments alone are made with, whose names hold those closures besides; and what reads Inception's
# weights, whose hash names what is measured with them.
APART = (
    "samplers", "study.profiles", "study.closure", "study.heads", "training.objectives.hybrid", "model.joint",
    "training.objectives.conditional", "model.conditional", "training.objectives.adversarial",
    "training.objectives.discrepancy", "model.generator", "metrics.inception",
)  # fmt: skip


def _file(package: Path, module: str) -> Path | None:
    path = package / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _parsed(source: str) -> ast.Module:
    # Before Python 3.11.8 all that parses in a process counts its depth in one place, and a collection in the midst of
    # one tree may let other code make another: "AST constructor recursion depth mismatch" (python/cpython#106905).
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if collects:
            gc.enable()


def imported(source: str) -> tuple[str, ...]:
    """Names of modules (without `fdm.`) that a source imports at any place, functions included."""
    found: list[str] = []
    for node in ast.walk(_parsed(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fdm":
            inner = (node.module or "").removeprefix("fdm").removeprefix(".")
            # What is imported from a module may be a module itself.
            found += [inner, *(f"{inner}.{alias.name}".lstrip(".") for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name.removeprefix("fdm.") for alias in node.names if alias.name.startswith("fdm.")]
    return tuple(filter(None, found))


@functools.cache
def _imports(path: Path) -> tuple[str, ...]:
    return imported(path.read_text(encoding="utf-8"))


def modules(*names: str, apart: tuple[str, ...] = APART) -> dict[str, Path]:
    """The files of the named modules, such as "training.loop", and of all that they import; sorted by name.

    Modules that stand `apart` are left out, but where they are named themselves.
    """
    package, out = root() / "fdm", dict[str, Path]()
    todo, seen = [*names], {*apart} - {*names}
    while todo:
        name = todo.pop()
        if name in seen:  # as most are, which many import
            continue
        seen.add(name)
        path = _file(package, name)
        if path is not None:
            out[name] = path
            todo += _imports(path)
    return dict(sorted(out.items()))


def listing(*names: str, apart: tuple[str, ...] = APART) -> str:
    """One line for each module of the closure: its SHA-256 and its name. Equal on every machine."""
    lines = []
    for name, path in modules(*names, apart=apart).items():
        text = path.read_text(encoding="utf-8")  # whose line ends are the same everywhere
        lines.append(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n")
    return "".join(lines)


def digest(*names: str) -> str:
    """Hash of `listing`, 12 hexadecimal digits."""
    return hashlib.sha256(listing(*names).encode()).hexdigest()[:12]


def of_sampler(sampler: str) -> str:
    """The module that holds a sampler, as a closure's name."""
    from fdm.samplers import SAMPLERS

    return SAMPLERS[sampler].sample.__module__.removeprefix("fdm.")


def of_grid(grid: str, sampler: str) -> str | None:
    """The module that holds a grid, as a closure's name; None for one that the sampler's own closure has."""
    from fdm.samplers import GRIDS

    module = GRIDS[grid].__module__.removeprefix("fdm.")
    return None if module in modules(of_sampler(sampler)) else module


def identity(name: str) -> str:
    """What the source of a closure is called: its digest, or that of the oldest source that it is proven equal to.

    `name` is a key of `CLOSURES`, or a module. results/accepted.csv holds the proofs, one step a line: see
    `fdm.repro.accept`. Results are named by it, so that they outlive a refactoring that was accepted.
    """
    return origin(digest(*CLOSURES.get(name, [name])), accepted())


def origin(code: str, steps: dict[str, str]) -> str:
    """The oldest digest that leads to `code` by steps, new -> old."""
    seen = {code}
    while code in steps and steps[code] not in seen:
        code = steps[code]
        seen.add(code)
    return code


def accepted() -> dict[str, str]:
    """The accepted steps on record, new digest -> old digest."""
    path = root() / "results" / "accepted.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["new"]: row["old"] for row in csv.DictReader(file)}
