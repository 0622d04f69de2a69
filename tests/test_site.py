"""The site: built without warnings from what is committed, whole in itself, small at its front, readable everywhere.

What a browser makes of it is seen by Chromium, where the machine has one.
"""

import csv
import functools
import http.server
import json
import multiprocessing
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

import fdm
from fdm.samplers import GRIDS, SAMPLERS
from fdm.tasks import generation

from .scratch import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.weekly]  # building it takes a minute

FRONT = 2**20  # bytes that the front page may load
MOST = 11  # evaluations that are pictured here: those of make site take a minute
KERNEL, EXPLORER = "results/digits/notebooks/01_kernel.html", "docs/explorer.html"
GRAVE = ("serious", "critical")
EDM, FDM = "edm,baseline,heun,11,1", "edm,fdm,heun,11,1"
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
    import explorer
    import stage

    folder = tmp_path_factory.mktemp("site")
    explorer.write(folder / "drawn" / "explorer", shutil.which("npm") is not None, MOST)
    stage.stage(folder / "source")
    built = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", ROOT / "docs" / "site"]
    built += ["-D", f"html_extra_path={folder / 'extra'},{folder / 'drawn'}"]
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


def test_figures_of_notebooks_are_described_by_their_words(site):
    text = (site / KERNEL).read_text(encoding="utf-8")
    assert 'alt="Figure: Why critical damping (oscillator time, position, Three regimes' in text
    assert not [page for page in site.rglob("*.html") if 'alt="../' in page.read_text(encoding="utf-8")]


def sprite(site: Path, name: str) -> np.ndarray:
    """Pictures of the explorer by seed and column, (24, columns, 8, 8)."""
    pixels = np.asarray(Image.open(site / "explorer" / f"{name}.png"))
    return pixels.reshape(24, 8, -1, 8).swapaxes(1, 2)


def index(site: Path) -> dict:
    text = (site / "explorer" / "index.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix("const INDEX = ").rstrip(";\n"))


@pytest.mark.parametrize(("name", "sampler", "nfe"), [("heun-11", "heun", 11), ("dpm-solver++-5", "dpm-solver++", 5)])
def test_the_explorer_draws_what_the_package_samples(site, name, sampler, nfe):
    denoiser = fdm.load("edm-fdm-0")
    drawn = sprite(site, f"edm-fdm-{name}")
    samples = fdm.sample(denoiser, 24, sampler, nfe)[:, 0].numpy()
    assert np.abs(drawn[:, -1].astype(int) - samples).max() <= 1
    latents = torch.stack([torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(24)])
    labels = torch.eye(10)[torch.tensor(index(site)["classes"])]
    levels = index(site)["pictured"][f"edm-fdm-{name}"]
    assert levels[0] == 80 and levels == sorted(levels, reverse=True) and len(levels) + 2 == drawn.shape[1]
    with torch.inference_mode():
        first = denoiser(latents * 80, torch.tensor(80.0), labels)
    seen = (first[:, 0] * 127.5 + 127.5).round().clamp(0, 255).numpy()
    assert np.abs(drawn[:, 1] - seen).max() <= 1
    assert (drawn[:, 0] == sprite(site, f"vp-baseline-{name}")[:, 0]).all()


def test_the_explorer_has_the_scores_on_record(site):
    told = {tuple(row[:5]): row[5:] for row in index(site)["scores"]}
    path = ROOT / "results" / "digits" / "runs" / "ve-fdm" / "measurements.csv"
    rows = [row for row in csv.DictReader(path.read_text().splitlines()) if row["options"] == "usual"]
    assert len(rows) > 100
    for row in rows:
        metric = "Fréchet distance" if row["metric"].startswith("FD") else row["metric"]
        value = told["ve-fdm", row["sampler"], int(row["nfe"]), float(row["duration"]), metric]
        assert value == [float(row[column]) if row[column] else None for column in ("value", "low", "high")]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"this machine has no Chromium: none of {', '.join(names)} is there")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(chromium, address) -> Iterator[Page]:
    """A tab that the site may fetch nothing for but its own files, without an error."""
    wrong = list[str]()

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            wrong.append(message.text)

    def asked(request: Request) -> None:
        if not request.url.startswith((address, "file:", "data:")):
            wrong.append(request.url)

    def failed(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # by leaving the page while its icon is on the way
            wrong.append(f"{request.url}: {request.failure}")

    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    tab = context.new_page()
    tab.on("console", said)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", asked)
    tab.on("requestfailed", failed)
    yield tab
    context.close()
    assert not wrong


@pytest.mark.parametrize(("scheme", "width"), [("light", 400), ("dark", 1400)])
@pytest.mark.parametrize("name", ["index.html", KERNEL, f"{EXPLORER}#a={EDM}&b={FDM}"])
def test_a_page_can_be_used_by_all(page, address, name, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{address}/{name}")
    outside = {"exclude": [["math"]]}  # of which there are thousands of elements, in the colours of their text
    found = Axe().run(page, outside).response["violations"]
    grave = [(each["id"], node["html"]) for each in found if each["impact"] in GRAVE for node in each["nodes"]]
    assert not grave


def test_no_page_is_wider_than_a_telephone(page, address):
    import stage

    page.set_viewport_size({"width": 400, "height": 900})
    for name in (name for names in stage.CONTENTS.values() for name in names):
        page.goto(f"{address}/{name}.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, name


def test_a_profile_of_ones_own_has_an_entry_once_it_was_run():
    import stage

    listed = {name for names in stage.CONTENTS.values() for name in names}
    assert "Other profiles" not in stage.contents(listed)
    own = stage.contents(listed | {"results/mine/notebooks/04_tables", "results/mine/notebooks/02_train"})
    assert ":caption: Other profiles\n\nmine </results/mine/notebooks/04_tables>\n```" in own


def test_search_finds(page, address):
    page.goto(f"{address}/search.html?q=momentum")
    page.wait_for_selector("#search-results li a")
    assert "What does momentum do" in page.inner_text("#search-results")


def picture(page: Page, side: str, column: int) -> bytes:
    """A picture of the row of noise levels, as it is drawn."""
    page.wait_for_load_state("networkidle")
    return page.locator(f"#{side}-along .tile").nth(column).screenshot()


def test_what_is_chosen_is_shown_and_in_the_address(page, address):
    page.goto(f"{address}/{EXPLORER}#a={EDM}&b={FDM}&seed=3")
    assert picture(page, "a", 0) == picture(page, "b", 0)
    before = picture(page, "a", -1)
    assert before != picture(page, "b", -1)
    rows = {
        side: page.locator(f"#{side}-samples .tile").evaluate_all("all => all.map(x => x.dataset.row)") for side in "ab"
    }
    assert rows["a"] == rows["b"] == [str(seed) for seed in range(24)]

    page.get_by_label("Framework").first.select_option("vp")
    assert f"#a=vp,baseline,heun,11,1&b={FDM}&seed=3" in page.url
    after = picture(page, "a", -1)
    assert after != before
    assert "A: VP, Heun, 11 evaluations" in page.inner_text("#scores")
    told, words = page.url, page.inner_text("#scores")

    page.go_back()
    page.wait_for_function("document.getElementById('a-framework').value === 'edm'")
    assert picture(page, "a", -1) == before
    page.go_forward()
    page.wait_for_function("document.getElementById('a-framework').value === 'vp'")
    page.goto("about:blank")
    page.goto(told)
    assert picture(page, "a", -1) == after and page.inner_text("#scores") == words

    page.focus("#seed")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.querySelectorAll('.chosen').length === 2")
    assert not page.url.endswith("seed=3")


def test_the_same_model_twice_is_the_same_twice(page, address):
    page.goto(f"{address}/{EXPLORER}#a={FDM}&b={FDM}&seed=5")
    assert [picture(page, "a", i) for i in (0, 2, -1)] == [picture(page, "b", i) for i in (0, 2, -1)]


def test_the_explorer_shows_scores_alone_of_what_is_not_kept(page, address):
    page.goto(f"{address}/{EXPLORER}#a=edm,baseline,heun,25,0.5&b=edm,baseline,ddim,17,1")
    assert "networks within their training are not kept" in page.inner_text("#a-samples")
    assert "23.4 [20" in page.inner_text("#scores tr:nth-child(1) td:nth-child(2)")
    assert page.input_value("#b-nfe") in ("11", "25")  # DDIM was not measured with 17
    page.goto(f"{address}/{EXPLORER}#a=none&b=edm,fdm,heun,much,1&seed=99")
    page.reload()
    assert page.input_value("#a-kernel") == "baseline" and page.input_value("#seed") == "0"


@pytest.fixture(scope="module")
def live(site) -> None:
    """The site with what draws in the browser, for two networks."""
    import live

    if shutil.which("npm") is None:
        pytest.skip("this machine has no npm")
    live.runtime(site / "live")
    # After the exporter the next backward pass starts threads, and no process that is forked then can train.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for run in ("edm-baseline-0", "edm-fdm-0"):
            pool.submit(live.export, run, site / "live" / f"{run}.onnx").result()


def sampled(run: str, nfe: int, digit: int | None = None) -> np.ndarray:
    """24 samples by Heun's method, as they are, of the classes that are drawn with the latents or of one."""
    denoiser = fdm.load(run)
    latents, labels = generation.draw_latents(range(24), denoiser.shape, denoiser.classes)
    told = generation.Told(denoiser, torch.eye(10)[labels if digit is None else torch.full((24,), digit)])
    with torch.inference_mode():
        *_, x = SAMPLERS["heun"].sample(
            told, 80.0 * latents.double(), GRIDS["karras"](0.002, 80.0, True), (nfe + 1) // 2
        )
    return x.flatten().numpy()


def test_a_browser_draws_what_the_package_samples(page, address, live):
    def samples(side: str) -> np.ndarray:
        return np.array(page.evaluate(f"Array.from(document.getElementById('{side}-live').samples)"))

    def drawn(nfe: int) -> None:
        page.wait_for_function(f"document.getElementById('live-said').textContent.includes(', {nfe} evaluations')")

    page.goto(f"{address}/{EXPLORER}#a={EDM}&b={FDM}")
    page.click("#live-draw")
    drawn(25)
    for side, run in (("a", "edm-baseline-0"), ("b", "edm-fdm-0")):
        assert np.abs(samples(side) - sampled(run, 25)).max() < 1e-4
    page.get_by_label("Digit", exact=True).select_option("3")
    page.locator("#live-nfe").fill("5")
    drawn(5)
    assert np.abs(samples("b") - sampled("edm-fdm-0", 5, digit=3)).max() < 1e-4
    assert np.abs(samples("b") - sampled("edm-fdm-0", 5)).max() > 0.1


def test_the_explorer_works_from_a_disk(page, site):
    page.goto((site / EXPLORER).as_uri() + f"#a={EDM}&b={FDM}")
    assert "Nothing is drawn here" in page.inner_text("#live")
    assert picture(page, "a", -1) != picture(page, "b", -1)
