"""Gathers the pages of the site in build/site/source: documents, executed notebooks, and the files that they link.

Pages keep their places, so that links from one to another stay as they are. A link to any other file of the project
leads to a copy of it; a link to a folder is left out.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
CONTENTS = {
    "The answer": ["index", "results/exact/REPORT", "docs/method", "docs/reading"],
    "The study": [
        "results/digits/notebooks/01_kernel", "results/exact/notebooks/05_evidence",
        "results/digits/notebooks/06_published_code", "docs/systems", "results/systems/notebooks/07_systems",
        "results/few-steps/notebooks/09_few_steps", "results/restoration/notebooks/08_restoration",
        "results/digits/notebooks/04_tables",
    ],
    "Use it": ["docs/own_code", "docs/api", "docs/change", "docs/running", "docs/data"],
    "How it is made": ["CONTRIBUTING", "benchmarks/README", "docs/release", "CHANGELOG"],
}  # fmt: skip


def pages() -> dict[Path, Path]:
    """The pages by their place in the project, and where they are in the site."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
    found += sorted((ROOT / "docs").glob("*.md"))
    found += [*sorted((ROOT / "results").glob("*/REPORT.md")), ROOT / "results" / "ablations" / "README.md"]
    found += sorted(path for path in (ROOT / "results").glob("*/notebooks/*.ipynb") if "smoke" not in path.parts)
    out = {path: path.relative_to(ROOT) for path in found}
    return out | {ROOT / "README.md": Path("index.md"), ROOT / "docs" / "site" / "api.md": Path("docs/api.md")}


def rewritten(text: str, page: Path, place: Path, known: dict[Path, Path], want: Callable[[Path], None]) -> str:
    """The text of a page with its links as the site has them; `want` is told of other files that they lead to."""

    def link(match: re.Match[str]) -> str:
        mark, label, target = match.groups()
        name, _, anchor = target.partition("#")
        if "://" in target or target.startswith(("mailto:", "attachment:")) or not name:
            return match[0]
        file = (page.parent / name).resolve()
        inner = label if mark else LINK.sub(link, label)
        if file.is_dir() or not file.exists() or not file.is_relative_to(ROOT):
            return inner
        to = known.get(file, file.relative_to(ROOT))
        if file not in known:
            want(file)
        up = Path(*[".."] * (len(place.parts) - 1))
        return f"{mark}[{inner}]({(up / to).as_posix()}{'#' + anchor if anchor else ''})"

    return LINK.sub(link, text)


def notebook(content: str, change: Callable[[str], str], shown: Callable[[str], str]) -> str:
    """An executed notebook with the links changed in its prose and in what its code showed, and its code folded."""
    book = json.loads(content)
    for cell in book["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = change("".join(cell["source"]))
            continue
        cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "hide-input"]
        for output in cell["outputs"]:
            if "text/markdown" in output.get("data", {}):
                output["data"]["text/markdown"] = shown("".join(output["data"]["text/markdown"]))
    return json.dumps(book, ensure_ascii=False)


def stage(source: Path) -> None:
    """Write the sources of the site into an empty folder, and beside it, in `extra`, files that outputs link.

    Sphinx takes care of the others, but reads no links in outputs.
    """
    extra = source.with_name("extra")
    for folder in (source, extra):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    known, wanted, beside = pages(), set[Path](), set[Path]()
    for page, place in known.items():
        text = page.read_text(encoding="utf-8")

        def change(part: str, page: Path = page, place: Path = place) -> str:
            return rewritten(part, page, place, known, wanted.add)

        def shown(part: str, page: Path = page, place: Path = place) -> str:
            return rewritten(part, page, place, known, beside.add)

        text = notebook(text, change, shown) if page.suffix == ".ipynb" else change(text)
        if place == Path("index.md"):
            text += "\n" + contents({path.with_suffix("").as_posix() for path in known.values()})
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        (source / place).write_text(text, encoding="utf-8")
    for folder, files in ((source, wanted), (extra, beside)):
        for file in files:
            to = folder / file.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)


def contents(known: set[str]) -> str:
    """The table of contents, which the pages show at their side."""
    parts = []
    for title, names in CONTENTS.items():
        listed = "\n".join("self" if name == "index" else f"/{name}" for name in names if name in known)
        parts.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    stage(Path(sys.argv[1]))
