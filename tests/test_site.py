"""The site: built without warnings from what is committed, whole in itself, small at its front, readable everywhere."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from .scratch import ROOT

pytestmark = pytest.mark.slow

FRONT = 2**20  # bytes that the front page may load
sys.path.insert(0, str(ROOT / "docs" / "site"))


class Links(HTMLParser):
    """What a page loads and links, and the places in it that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads, self.links, self.places = list[str](), list[str](), set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        self.places |= {told[name] for name in ("id", "name") if name in told}
        if tag == "a" and "href" in told:
            self.links.append(told["href"])
        if tag in ("img", "script") and "src" in told:
            self.loads.append(told["src"])
        if tag == "link" and told.get("rel") in ("stylesheet", "icon"):
            self.loads.append(told["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site."""
    import stage

    folder = tmp_path_factory.mktemp("site")
    stage.stage(folder / "source")
    built = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", ROOT / "docs" / "site"]
    built += ["-D", f"html_extra_path={folder / 'extra'}"]
    done = subprocess.run([*built, folder / "source", folder / "html"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def target(page: Path, link: str) -> Path:
    return (page.parent / unquote(urlsplit(link).path)).resolve() if urlsplit(link).path else page


def test_every_link_and_every_picture_leads_somewhere(site):
    found = {page.resolve(): Links(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert len(found) > 25
    counted = 0
    for page, content in found.items():
        for link in [*content.loads, *content.links]:
            if urlsplit(link).scheme or link.startswith("//"):
                assert link not in content.loads, f"{page.name} loads {link} from elsewhere"
                continue
            file = target(page, link)
            assert file.exists(), f"{page.relative_to(site)} leads to {link}"
            place = urlsplit(link).fragment
            if place and file in found and "genindex" not in file.name:
                assert place in found[file].places, f"{page.relative_to(site)} leads to {link}, where that place is not"
            counted += 1
    assert counted > 1000


def test_the_front_page_answers_and_is_small(site):
    page = site / "index.html"
    text = page.read_text(encoding="utf-8")
    size = len(text.encode()) + sum(target(page, link).stat().st_size for link in {*Links(text).loads})
    assert size < FRONT
    assert "Half of the training?" in text
    assert "answer.png" in text


def test_formulas_are_drawn_and_code_is_folded(site):
    text = (site / "results" / "digits" / "notebooks" / "01_kernel.html").read_text(encoding="utf-8")
    assert text.count("<math") > 50
    assert "hide-input" in text


def test_the_package_is_told_from_its_docstrings(site):
    text = (site / "docs" / "api.html").read_text(encoding="utf-8")
    for name in ("fdm.load", "fdm.precondition", "fdm.loss", "fdm.sample"):
        assert f'id="{name}"' in text
