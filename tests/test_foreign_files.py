"""Files that others made: none is unpickled, none is fetched but by the project's own checked downloads."""

import ast
import contextlib
import hashlib
import pickle
import re
import sys

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from fdm.data import downloads
from fdm.files import FdmError
from fdm.metrics import features
from fdm.study import runs

from .conftest import ROOT, change
from .test_downloads import serving

# ------------------------------------------------------------------------------------------------ the source

# Modules that unpickle or fetch; pickletools only lists.
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FETCHERS = {"urllib.request", "requests", "httpx", "aiohttp", "ftplib", "socket", "huggingface_hub", "torch.hub"}
ALLOWED = {
    ("data/archives.py", "pickle"),  # whose reader looks up nothing but NumPy's arrays
    ("data/downloads.py", "urllib.request"), ("data/downloads.py", "urlopen"),
    ("training/processes.py", "socket"),  # a free port of this machine
}  # fmt: skip
# What unpickles or fetches by itself, whatever it is an attribute of.
CALLS = re.compile(
    r"read_pickle|load_state_dict_from_url|download_url_to_file|hub|urlopen|urlretrieve|from_pretrained|"
    r"hf_hub_download|snapshot_download|fetch_[a-z0-9_]+|loadmat|unsafe_load|full_load|allow_pickle|pretrained"
)
SAFE = re.compile(r"torch\.load\(.*\bweights_only=True\b.*\)|yaml\.load\(.*, _Loader\)")


def safe(call: ast.Call) -> bool:
    """Whether a call of `load` is of our own modules, or reads plain values."""
    text = ast.unparse(call)
    return not re.match(r"(torch|np|numpy|yaml|torch\.jit)\.load", text) or bool(SAFE.fullmatch(text))


def found(source: str) -> list[str]:
    """What in a source may unpickle or fetch."""
    out = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            out += [alias.name for alias in node.names if alias.name in UNPICKLERS | FETCHERS]
        elif isinstance(node, ast.ImportFrom):
            names = {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
            out += sorted(names & (UNPICKLERS | FETCHERS))
            out += [alias.name for alias in node.names if CALLS.fullmatch(alias.name)]
        elif isinstance(node, ast.Attribute) and CALLS.fullmatch(node.attr):
            out.append(node.attr)
        elif isinstance(node, ast.Call):
            out += [str(keyword.arg) for keyword in node.keywords if CALLS.fullmatch(str(keyword.arg))]
            if isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                out += [] if safe(node) else [ast.unparse(node.func)]
    return out


def test_the_source_unpickles_and_fetches_nothing_by_other_means():
    files = sorted((ROOT / "fdm").rglob("*.py"))
    assert len(files) > 100
    told = {(path.relative_to(ROOT / "fdm").as_posix(), what) for path in files for what in found(path.read_text())}
    assert told == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import load", "import joblib", "torch.load(path)", "from torch import hub",
        "torch.load(path, weights_only=False)", "torch.load(path, weights_only=unsafe)", "pd.read_pickle(path)",
        "torch.hub.load(name, model)", "np.load(path)", "yaml.load(text, yaml.Loader)", "yaml.unsafe_load(text)",
        "resnet(pretrained=True)", "UNet2DModel.from_pretrained(name)", "from urllib.request import urlopen",
        "from sklearn.datasets import fetch_openml", "model.load(path, allow_pickle=True)",
        "from urllib import request",
    ],
)  # fmt: skip
def test_what_would_unpickle_or_fetch_is_found_in_a_source(source):
    assert found(source)


# ------------------------------------------------------------------------------------------------- Inception

FORBIDDEN = {"pickle.find_class", "socket.connect", "socket.getaddrinfo", "os.system", "subprocess.Popen"}
WATCHED: list[list[str]] = []
sys.addaudithook(lambda event, args: WATCHED[-1].append(event) if WATCHED and event in FORBIDDEN else None)


@contextlib.contextmanager
def watched():
    """What unpickles, asks the network, or starts a program meanwhile."""
    WATCHED.append([])
    try:
        yield WATCHED[-1]
    finally:
        WATCHED.pop()


class Command:
    def __reduce__(self):
        return exec, ("import os; os.system('touch ran')",)


@pytest.fixture
def profile(study, monkeypatch):
    """A profile that scores with Inception's features."""
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    return change(study / "params.yaml", evaluation={"extractor": "inception-v3-compat"})


@pytest.fixture
def place(profile):
    """Where the weights are put in a study of its own."""
    path = downloads.place(downloads.INCEPTION.url)
    path.parent.mkdir()
    return path


def test_the_weights_are_those_that_torch_fidelity_names():
    assert downloads.INCEPTION.url == URL_INCEPTION_V3
    assert downloads.INCEPTION.url.endswith(f"-{downloads.INCEPTION.sha256[:8]}.pth")
    assert len(downloads.INCEPTION.sha256) == 64


def test_inceptions_weights_are_fetched_with_their_checksum_and_no_others_are_kept(profile, place, monkeypatch):
    content = bytes(range(256)) * 500
    for way in ("corrupt", "whole"):
        with serving(monkeypatch, **{place.name: content}) as address:
            url = f"{address}/{way}/{place.name}"
            wanted = downloads.INCEPTION._replace(
                url=url, size=len(content), sha256=hashlib.sha256(content).hexdigest()
            )
            monkeypatch.setattr(downloads, "INCEPTION", wanted)
            if way == "whole":
                runs.require_extractor(profile)
                assert place.read_bytes() == content
                continue
            with pytest.raises(FdmError, match=f"where {wanted.sha256} is wanted; it is not kept"):
                runs.require_extractor(profile)
            assert list(place.parent.glob("*.pth")) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>Sign in to this network</html>", pickle.dumps(Command()), bytes(downloads.INCEPTION.size)],
    ids=["empty", "a page", "a command", "as long"],
)
def test_another_file_in_the_place_of_inceptions_weights_is_one_sentence(profile, place, content):
    place.write_bytes(content)
    with watched() as events, pytest.raises(FdmError) as raised:
        runs.require_extractor(profile)
    assert events == []
    assert re.fullmatch(
        rf"{place} has .*, where .* (is|are) wanted; remove it, or download {downloads.INCEPTION.url} by other means "
        rf"and put it at {place}\.",
        str(raised.value),
    )


@pytest.mark.parametrize("what", ["reference", "_score", "_compare", "_restore"])
def test_nothing_is_measured_before_the_weights_were_compared(profile, place, what):
    place.write_bytes(pickle.dumps(Command()))
    words = () if what == "reference" else ("edm-fdm-0" if what == "_score" else "edm-fdm", None)
    with watched() as events, pytest.raises(FdmError, match="are wanted; remove it"):
        getattr(runs, what)(profile, *words)
    assert events == []


def test_where_inceptions_weights_cannot_be_had_is_told_what_to_download_and_where_to_put_it(
    profile, place, monkeypatch
):
    url = f"http://127.0.0.1:9/{place.name}"
    monkeypatch.setattr(downloads, "INCEPTION", downloads.INCEPTION._replace(url=url))
    with pytest.raises(FdmError, match=rf"cannot be downloaded \(.*\): download http.*pth by .* put it at {place}"):
        runs.require_extractor(profile)


def test_the_other_extractor_is_read_without_unpickling_and_without_a_network():
    features.extractor.cache_clear()
    with watched() as events:
        features.extractor("efficientnet-lite0")[0](torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert events == []


def test_the_watch_sees_an_unpickler():
    with watched() as events:
        pickle.loads(pickle.dumps(FdmError))
    assert events == ["pickle.find_class"]
