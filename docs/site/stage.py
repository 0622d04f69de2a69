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
SAVED = re.compile(r"drawings,\s*\"(\w+)\"")
CONTENTS = {
    "The answer": {
        "index": "Question and answer", "docs/explorer": "Explorer", "results/exact/REPORT": "Report",
        "docs/method": "How it was measured", "docs/reading": "How to read the results",
    },
    "The study": {
        "results/digits/notebooks/01_kernel": "What the code changes",
        "results/exact/notebooks/05_evidence": "The evidence",
        "results/digits/notebooks/04_tables": "The paper's tables",
        "results/digits/notebooks/06_published_code": "The published code",
        "docs/systems": "Related systems",
        "results/systems/notebooks/07_systems": "Ways to sample",
        "results/few-steps/notebooks/09_few_steps": "Few steps by training",
        "results/restoration/notebooks/08_restoration": "Inverse problems",
    },
    "Use it": {
        "docs/own_code": "FDM in your own code", "docs/api": "The package", "docs/change": "Change something",
        "docs/running": "Running at any scale", "docs/data": "The data",
    },
    "How it is made": {
        "CONTRIBUTING": "Architecture", "benchmarks/README": "Benchmarks", "docs/security": "Security",
        "docs/release": "Release",
        "CHANGELOG": "Changes",
    },
}  # fmt: skip


def pages() -> dict[Path, Path]:
    """The pages by their place in the project, and where they are in the site."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
    found += sorted((ROOT / "docs").glob("*.md"))
    found += [*sorted((ROOT / "results").glob("*/REPORT.md")), ROOT / "results" / "ablations" / "README.md"]
    found += sorted(path for path in (ROOT / "results").glob("*/notebooks/*.ipynb") if "smoke" not in path.parts)
    out = {path: path.relative_to(ROOT) for path in found}
    own = {path: Path("docs", path.name) for path in (ROOT / "docs" / "site").glob("*.md")}
    return out | own | {ROOT / "README.md": Path("index.md")}


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


def drawn(code: str, figures: Path) -> str:
    """The first words in the figures that a cell's code saves, from their vector drawings, as a list."""
    files = [figures / f"{name}.svg" for name in SAVED.findall(code)]
    texts = [file.read_text(encoding="utf-8") for file in files if file.is_file()]  # not all profiles have each
    words = dict.fromkeys(word.strip() for text in texts for word in re.findall(r"<!-- (.*?) -->", text))
    return ", ".join([word for word in words if re.search(r"[^\W\d]{2}", re.sub(r"\$.*?\$", "", word))][:12])


def notebook(content: str, page: Path, change: Callable[[str], str], shown: Callable[[str], str]) -> str:
    """An executed notebook with the links changed in its prose and in what its code showed, and its code folded.

    Its figures are described by their section and the words in them.
    """
    book, heading = json.loads(content), page.stem
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = [heading, *re.findall(r"^#+ (.*)", source, re.MULTILINE)][-1]
            cell["source"] = change(source)
            continue
        cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "hide-input"]
        words = drawn(source, page.parents[1] / "figures" / page.stem)
        cell["metadata"]["mystnb"] = {"image": {"alt": f"Figure: {heading}" + f" ({words})" * bool(words)}}
        for output in cell["outputs"]:
            if "text/markdown" in output.get("data", {}):
                output["data"]["text/markdown"] = shown("".join(output["data"]["text/markdown"]))
    return json.dumps(book, ensure_ascii=False)


def front(text: str) -> str:
    """The README as the site's first page: where to go, the explorer too, comes before how to run it."""
    parts = re.fullmatch(r"(.*?\n)(```\nmake repro.*?\n)(## Where to go\n.*?\n)(## Licence.*)", text, re.DOTALL)
    if parts is None:
        raise ValueError("README.md no longer has commands, where to go and the licence, in this order")
    answer, run, where, licence = parts.groups()
    first = "| **the report**"
    explorer = "| samples and scores of two models side by side | [explorer](docs/site/explorer.md) |\n"
    return answer + where.replace(first, explorer + first) + "## Run it\n\n" + run + licence


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
        text = front(text) if place == Path("index.md") else text

        def change(part: str, page: Path = page, place: Path = place) -> str:
            return rewritten(part, page, place, known, wanted.add)

        def shown(part: str, page: Path = page, place: Path = place) -> str:
            return rewritten(part, page, place, known, beside.add)

        text = notebook(text, page, change, shown) if page.suffix == ".ipynb" else change(text)
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
    """The table of contents, which the pages show at their side, with the tables of any other profile that was run."""
    listed_here = {name for names in CONTENTS.values() for name in names}
    others = sorted(name for name in known - listed_here if name.endswith("/04_tables"))
    more = {"Other profiles": {name: name.split("/")[1] for name in others}} if others else {}
    parts = []
    for title, names in (CONTENTS | more).items():
        pages = {name: "self" if name == "index" else f"/{name}" for name in names if name in known}
        listed = "\n".join(f"{names[name]} <{page}>" for name, page in pages.items())
        parts.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    stage(Path(sys.argv[1]))
