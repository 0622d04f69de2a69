"""The source that a result depends on: a module's own, and that of all modules of this package that it imports."""

import ast
import functools
import hashlib
from pathlib import Path

from fdm.files import root


def _file(module: str) -> Path | None:
    path = root() / "fdm" / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported(source: str) -> tuple[str, ...]:
    """Names of modules (without `fdm.`) that a source imports at any place, functions included."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
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


def modules(*names: str) -> dict[str, Path]:
    """The files of the named modules, such as "training", and of all that they import; sorted by name."""
    out: dict[str, Path] = {}
    todo = [*names]
    while todo:
        name = todo.pop()
        path = _file(name)
        if path is not None and name not in out:
            out[name] = path
            todo += _imports(path)
    return dict(sorted(out.items()))


def listing(*names: str) -> str:
    """One line for each module of the closure: its SHA-256 and its name. Equal on every machine."""
    lines = []
    for name, path in modules(*names).items():
        text = path.read_text(encoding="utf-8")  # whose line ends are the same everywhere
        lines.append(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n")
    return "".join(lines)


def digest(*names: str) -> str:
    """Hash of `listing`, 12 hexadecimal digits."""
    return hashlib.sha256(listing(*names).encode()).hexdigest()[:12]
