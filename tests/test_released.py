"""Published pickles: written in their format, read without running anything; hostile ones are refused by name."""

import io
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fdm.__main__ import main
from fdm.data import downloads
from fdm.files import FdmError, sha256
from fdm.model import checkpoints, released
from fdm.params import SNAPSHOTS, snapshot_name
from fdm.study import profiles, runs
from fdm.study.profiles import Profile

from .published_format import make


@pytest.mark.parametrize("framework", ["vp", "ve", "edm"])
@pytest.mark.parametrize("kernel", ["baseline", "fdm"])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_published_network_is_imported_to_the_same_function(
    framework, kernel, protocol, persistence, tmp_path, capsys
):
    denoiser, content = make(framework, kernel, persistence)
    path = tmp_path / "network-snapshot-000100.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert main(["import-checkpoint", str(path), "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    imported, description = checkpoints.load(tmp_path / "out" / "network-snapshot-000100.safetensors")
    assert (tmp_path / "out" / "network-snapshot-000100.json").is_file()
    assert description["denoiser"]["kernel"] == kernel
    x, sigma, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 5.0]), torch.eye(10)[:2]
    assert torch.equal(imported(x, sigma, labels), denoiser(x, sigma, labels))


def test_half_precision_is_read_and_widened(persistence, tmp_path):
    _, content = make("edm", "baseline", persistence, dtype=torch.float16)
    path = tmp_path / "edm.pkl"
    path.write_bytes(pickle.dumps(content))
    released.import_checkpoint(path, tmp_path / "edm.safetensors")
    imported, _ = checkpoints.load(tmp_path / "edm.safetensors")
    assert all(p.dtype == torch.float32 for p in imported.parameters())


def only(params: Path, **cells) -> Profile:
    """The profile with these cells and no others."""
    values = yaml.safe_load(params.read_text())
    values["cells"] = cells
    params.write_text(yaml.safe_dump(values))
    return profiles.load(params)


def test_a_fetched_network_is_named_by_its_file(study, persistence, capsys):
    params = study / "profiles" / "published-checkpoints" / "params.yaml"
    cell = yaml.safe_load(params.read_text())["cells"]["edm-fdm"]
    del cell["checkpoint"]["sha256"]  # that of the real one
    profile = only(params, **{"edm-fdm": cell})
    checkpoint, folder = profile.run("edm-fdm-0").checkpoint, profile.checkpoints("edm-fdm-0")
    path = downloads.place(checkpoint.url)
    path.parent.mkdir()
    names = []
    one, other = (pickle.dumps(make("edm", kernel, persistence)[1]) for kernel in ("fdm", "baseline"))
    for content in (one, one, other):
        path.write_bytes(content)
        runs.fetch(profile)
        assert f"edm-fdm.pkl, sha256 {sha256(path)}, " in capsys.readouterr().out
        assert sorted(file.name for file in folder.iterdir()) == ["100.json", "100.safetensors", "experiment.json"]
        told = json.loads((folder / "experiment.json").read_text())
        assert told["run"] == "edm-fdm-0"
        target = folder / snapshot_name(SNAPSHOTS[-1])
        assert checkpoints.describe(target)["images"] == checkpoint.kimg * 1000
        names.append(told["experiment"])
    assert names[0] == names[1] != names[2]


def test_a_network_whose_file_is_another_than_the_profile_says_is_not_imported(study, persistence):
    profile = profiles.find("published-checkpoints")
    run = next(name for name, run in profile.runs.items() if run.checkpoint.sha256)
    for each in profile.runs.values():
        path = downloads.place(each.checkpoint.url)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(make(each.framework, each.kernel, persistence)[1]))
    with pytest.raises(FdmError, match=f"where {profile.run(run).checkpoint.sha256} is wanted; remove it, or download"):
        runs.fetch(profile)
    assert not profile.checkpoints(run).exists()


def test_a_profile_that_trains_its_networks_fetches_none(smoke):
    runs.fetch(smoke)
    assert not (smoke.build / "checkpoints").exists()


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def storage(elements: int, raw: bytes) -> bytes:
    """A serialised tensor storage that claims so many elements."""
    buffer = io.BytesIO()
    torch.save(torch.zeros(2).storage(), buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    return data[:-16] + struct.pack("<q", elements) + raw


def opcode(content: bytes) -> bytes:
    return pickle.PROTO + b"\x04" + content + b"."


REBUILD = torch._utils._rebuild_tensor_v2
HOSTILE = {
    "a call to os.system": (pickle.dumps({"ema": Call(os.system, "touch hacked")}), r"the name (posix|nt|os)\.system"),
    "eval": (pickle.dumps(Call(eval, "1")), r"the name builtins\.eval"),
    "getattr": (pickle.dumps(Call(getattr, "", "join")), r"the name builtins\.getattr"),
    "a class of ours": (pickle.dumps(Call(FdmError, "x")), r"the name fdm\.files\.FdmError"),
    "an attribute of a permitted name": (
        opcode(b"\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93"),
        r"the name collections\.OrderedDict\.fromkeys",
    ),
    "a persistent name": (opcode(b"\x8c\x01xQ"), "a persistent name 'x'"),
    "an extension": (opcode(b"\x82\x01"), "the pickle opcode EXT1"),
    "a huge byte array": (opcode(b"\x96" + struct.pack("<Q", 2**60)), "opcode BYTEARRAY8|is damaged"),
    "a huge string": (opcode(b"\x8d" + struct.pack("<Q", 2**60)), "is damaged"),
    "a huge memo": (opcode(b"Nr" + struct.pack("<I", 2**31)), "a LONG_BINPUT of 2147483648 in a file of"),
    "a NumPy object": (pickle.dumps(np.dtype("O")), "a NumPy type 'O8'"),
    "a huge storage": (
        pickle.dumps(Call(torch.storage._load_from_bytes, storage(2**50, b"\0" * 8))),
        "a tensor storage",
    ),
    "a huge tensor": (
        pickle.dumps(Call(REBUILD, torch.zeros(4).storage(), 0, (2**40,), (0,), False, {})),
        r"a tensor of shape \(1099511627776,\) on a storage of 4 elements",
    ),
    "a tensor beyond its storage": (
        pickle.dumps(Call(REBUILD, torch.zeros(4).storage(), 2, (2,), (2,), False, {})),
        r"a tensor of shape \(2,\) on a storage of 4 elements",
    ),
    "nothing": (b"", "is damaged or no pickle"),
    "no pickle": (b"\x89PNG\r\n", "is damaged or no pickle|the pickle opcode"),
    "no network": (pickle.dumps({"weights": 1}), "holds no network"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize(("content", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_by_name_and_nothing_runs(content, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "edm.pkl"
    path.write_bytes(content)
    with pytest.raises(FdmError, match=reason):
        released.read(path)
    assert main(["import-checkpoint", str(path), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["edm.pkl"]


def test_a_small_file_whose_content_is_endless_when_printed_is_refused_at_once(tmp_path):
    # ((x, x), (x, x)) and so on: twice as long to print at each level, and then used as a persistent name.
    content = b"\x8c\x01x\x94" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(60))
    path = tmp_path / "edm.pkl"
    path.write_bytes(opcode(content + b"Q"))
    with pytest.raises(FdmError, match="a persistent name of type tuple"):
        released.read(path)


def test_a_truncated_network_is_refused_wherever_it_ends(persistence, tmp_path):
    whole = pickle.dumps(make("edm", "fdm", persistence)[1])
    path = tmp_path / "edm.pkl"
    for share in (0.01, 0.3, 0.7, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(FdmError, match="is damaged"):
            released.read(path)


def test_a_pickle_cannot_change_the_reader(persistence, tmp_path):
    """A pickle may set attributes on what it looks up: on stand-ins made for this file alone."""
    # A name looked up, and given an attribute by the state of a BUILD.
    poisoned = opcode(b"\x8c\x0ctorch._utils\x8c\x12_rebuild_parameter\x93N}\x8c\x06poisonK\x01s\x86b")
    path = tmp_path / "poison.pkl"
    path.write_bytes(poisoned)
    with pytest.raises(FdmError, match="holds no network"):  # it was read to its end
        released.read(path)
    assert not hasattr(released.NAMES["torch._utils", "_rebuild_parameter"], "poison")
    path.write_bytes(pickle.dumps(make("vp", "fdm", persistence)[1]))
    released.import_checkpoint(path, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"sigma_data": 0.6}, "sigma_data = 0.6, where this study has 0.5"), ({"beta_d": 3}, "beta_d = 3, where")],
)
def test_other_constants_are_named(changes, reason, persistence):
    record = released.Record("FDM_EDMPrecond", {"_modules": {"model": released.Record("SongUNet", {})}} | changes)
    with pytest.raises(FdmError, match=reason):
        released.describe(record)


def test_other_networks_are_named(persistence, tmp_path):
    model = released.Record("DhariwalUNet", {})
    with pytest.raises(FdmError, match="EDMPrecond around DhariwalUNet is none of the six models"):
        released.describe(released.Record("EDMPrecond", {"_modules": {"model": model}}))
    _, content = make("edm", "baseline", persistence)
    content["ema"].meta["state"]["_modules"]["model"].meta["state"]["_init_kwargs"]["model_channels"] = 16
    path = tmp_path / "edm.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(FdmError, match="does not fit its own description"):
        released.import_checkpoint(path, tmp_path / "x.safetensors")


def test_a_network_that_holds_itself_is_refused():
    record = released.Record("A", {})
    record.state["_modules"] = {"again": record}
    with pytest.raises(FdmError, match="holds again twice"):
        released.state_dict(record)
