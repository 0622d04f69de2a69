"""Files that others made: none is unpickled, none is fetched but by the project's own checked downloads."""

import ast
import contextlib
import pickle
import re
import sys

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from fdm.data import downloads
from fdm.data.downloads import Archive
from fdm.files import FdmError, sha256
from fdm.metrics import features, inception

from .conftest import ROOT
from .test_downloads import Server, serving

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


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    """A file with weights of Inception's names and shapes, as torch wrote them when Inception's were published."""
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(torch, "load", lambda *args, **kwargs: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        net = FeatureExtractorInceptionV3("x", ["2048"], "unread")
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    return path, net


@pytest.fixture
def place(study, monkeypatch):
    """Where the weights are put in a study of its own; no address is asked."""
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    path = downloads.place(inception.WEIGHTS.url)
    path.parent.mkdir()
    features.extractor.cache_clear()
    yield path
    features.extractor.cache_clear()


def expect(monkeypatch, path, url="http://127.0.0.1:9/weights-inception-2015-12-05-6726825d.pth"):
    """Let that file be the one that is wanted."""
    monkeypatch.setattr(inception, "WEIGHTS", Archive(url, path.stat().st_size, sha256(path)))


def test_the_checksum_and_size_of_inceptions_weights_are_the_published_ones(standin):
    url, size, checksum, *_ = inception.WEIGHTS
    assert url.endswith(f"-{checksum[:8]}.pth")
    assert len(checksum) == 64
    numbers = sum(tensor.nbytes for tensor in standin[1].state_dict().values())
    assert numbers < size < numbers + 500_000


def test_inceptions_weights_are_read_without_unpickling_and_without_a_network(place, standin, monkeypatch):
    source, net = standin
    place.write_bytes(source.read_bytes())
    expect(monkeypatch, source)
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    with watched() as events:
        extract, weights = features.extractor("inception-v3-compat")
        out = extract(images)
    assert events == []
    assert out.shape == (2, 2048)
    assert torch.equal(out, net.eval()(images.expand(-1, 3, -1, -1))[0])
    assert len(weights) == 12


def test_inceptions_weights_are_fetched_with_their_checksum_and_no_others_are_kept(place, standin, monkeypatch):
    source, _ = standin
    name, content = place.name, source.read_bytes()
    with serving(monkeypatch, **{name: content}) as address:
        expect(monkeypatch, source, f"{address}/corrupt/{name}")
        with pytest.raises(FdmError, match=f"where {sha256(source)} is wanted; it is not kept"):
            features.extractor("inception-v3-compat")
        assert list(place.parent.iterdir()) == []
        expect(monkeypatch, source, f"{address}/whole/{name}")
        features.extractor("inception-v3-compat")
        assert place.read_bytes() == content
        assert [way for way, _ in Server.log] == ["corrupt", "whole"]


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>Sign in to this network</html>", pickle.dumps(Command()), bytes(inception.WEIGHTS.size)],
    ids=["empty", "a page", "a command", "as long"],
)
def test_another_file_in_the_place_of_inceptions_weights_is_one_sentence(place, content):
    place.write_bytes(content)
    with watched() as events, pytest.raises(FdmError) as raised:
        features.extractor("inception-v3-compat")
    assert events == []
    assert re.fullmatch(
        rf"{place} has .*, where .* (is|are) wanted; remove it, or download {inception.WEIGHTS.url} by other means "
        rf"and put it at {place}\.",
        str(raised.value),
    )
    assert not (place.parent.parent / "ran").exists()


def test_a_cut_file_is_one_sentence(place, standin, monkeypatch):
    expect(monkeypatch, standin[0])
    place.write_bytes(standin[0].read_bytes()[:-1])
    with pytest.raises(FdmError, match=r"bytes, where .* are wanted; remove it"):
        features.extractor("inception-v3-compat")


def test_a_command_is_not_run_even_with_the_checksum_that_is_wanted(place, monkeypatch):
    place.write_bytes(pickle.dumps(Command()))
    expect(monkeypatch, place)
    with watched() as events, pytest.raises(pickle.UnpicklingError):
        features.extractor("inception-v3-compat")
    assert events == []
    assert not (place.parent.parent / "ran").exists()


def test_where_inceptions_weights_cannot_be_had_is_told_what_to_download_and_where_to_put_it(
    place, standin, monkeypatch
):
    expect(monkeypatch, standin[0])
    with pytest.raises(FdmError, match=rf"cannot be downloaded \(.*\): download http.*pth by .* put it at {place}"):
        features.extractor("inception-v3-compat")


def test_the_other_extractor_is_read_without_unpickling_and_without_a_network():
    features.extractor.cache_clear()
    with watched() as events:
        features.extractor("efficientnet-lite0")[0](torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert events == []


def test_the_watch_sees_an_unpickler():
    with watched() as events:
        pickle.loads(pickle.dumps(FdmError))
    assert events == ["pickle.find_class"]
