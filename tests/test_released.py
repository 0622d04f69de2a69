"""Published pickles: written in their format, read without running anything; hostile ones are refused by name."""

import io
import json
import math
import os
import pickle
import pickletools
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import fdm
from fdm.__main__ import main
from fdm.data import downloads
from fdm.files import FdmError, sha256
from fdm.model import checkpoints, released
from fdm.params import SNAPSHOTS, snapshot_name
from fdm.study import profiles, runs
from fdm.study.profiles import Profile

from .published_format import make
from .scratch import ROOT


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
    "a call to os.system": (
        pickle.dumps({"ema": Call(os.system, "touch hacked")}),
        r"the name '(posix|nt|os)\.system'",
    ),
    "eval": (pickle.dumps(Call(eval, "1")), r"the name 'builtins\.eval'"),
    "getattr": (pickle.dumps(Call(getattr, "", "join")), r"the name 'builtins\.getattr'"),
    "a class of ours": (pickle.dumps(Call(FdmError, "x")), r"the name 'fdm\.files\.FdmError'"),
    "an attribute of a permitted name": (
        opcode(b"\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93"),
        r"the name 'collections\.OrderedDict\.fromkeys'",
    ),
    "a persistent name": (opcode(b"\x8c\x01xQ"), "a persistent name 'x'"),
    "an extension": (opcode(b"\x82\x01"), "the pickle opcode EXT1"),
    "a huge byte array": (opcode(b"\x96" + struct.pack("<Q", 2**60)), "opcode BYTEARRAY8|is damaged"),
    "a huge string": (opcode(b"\x8d" + struct.pack("<Q", 2**60)), "is damaged"),
    "a huge memo": (opcode(b"Nr" + struct.pack("<I", 2**31)), "holds no network"),
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
    "a state of a name": (  # which would set an attribute on what was looked up
        opcode(b"\x8c\x0ctorch._utils\x8c\x12_rebuild_parameter\x93N}\x8c\x06poisonK\x01s\x86b"),
        "a state of something that has none",
    ),
    "a key that is no string": (opcode(b"}K\x01K\x01s"), "a dictionary with strings as keys"),
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


def test_a_truncated_network_is_refused_wherever_it_ends(persistence, tmp_path):
    whole = pickle.dumps(make("edm", "fdm", persistence)[1])
    path = tmp_path / "edm.pkl"
    for share in (0.01, 0.3, 0.7, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(FdmError, match="is damaged"):
            released.read(path)


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
    with pytest.raises(FdmError, match="'EDMPrecond' around 'DhariwalUNet' is none of the six models"):
        released.describe(released.Record("EDMPrecond", {"_modules": {"model": model}}))
    _, content = make("edm", "baseline", persistence)
    content["ema"].meta["state"]["_modules"]["model"].meta["state"]["_init_kwargs"]["model_channels"] = 16
    path = tmp_path / "edm.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(FdmError, match="does not fit its own description"):
        released.import_checkpoint(path, tmp_path / "x.safetensors")


# What is made of a network's description -> what is said of it.
ABSURD = {
    "many blocks": ({"num_blocks": 10**7}, "num_blocks = 10000000, where numbers from 1 to 32 are read"),
    "no blocks": ({"num_blocks": 0}, "num_blocks = 0, where"),
    "many channels": ({"model_channels": 20_000}, "model_channels = 20000, where"),
    "channels that no group divides": ({"model_channels": 37}, "there is no such network"),
    "a negative number": ({"label_dim": -1}, "label_dim = -1, where"),
    "an endless number": ({"label_dim": 10**500}, "label_dim = of type int, where"),
    "a boolean for a number": ({"num_blocks": True}, "num_blocks = of type bool, where"),
    "a fraction for a number": ({"num_blocks": 1.5}, "num_blocks = 1.5, where"),
    "no number": ({"dropout": math.nan}, "dropout = nan, where"),
    "a list for a number": ({"augment_dim": [[9]]}, "augment_dim = of type list, where"),
    "a number for a list": ({"channel_mult": 2}, "channel_mult 2, where lists of 1 to 8 numbers are read"),
    "no multipliers": ({"channel_mult": []}, "channel_mult of type list, where lists"),
    "a multiplier of zero": ({"channel_mult": [1, 0]}, "channel_mult = 0, where"),
    "a list of lists": ({"attn_resolutions": [[4]]}, "attn_resolutions = of type list, where"),
    "a resolution that cannot be halved": ({"channel_mult": [1] * 5}, "resolution = 8, which cannot be halved"),
    "another embedding": ({"embedding_type": "get"}, "neither DDPM\\+\\+ nor NCSN"),
    "another filter": ({"resample_filter": [[1], 1]}, "neither DDPM"),
    "arguments without names": ([("num_blocks", 1)], "_init_kwargs of type list, where a dictionary"),
}


@pytest.mark.parametrize(("changes", "reason"), ABSURD.values(), ids=ABSURD)
def test_an_absurd_description_is_refused_before_anything_is_built(changes, reason, persistence, tmp_path, monkeypatch):
    _, content = make("edm", "baseline", persistence)
    state = content["ema"].meta["state"]["_modules"]["model"].meta["state"]
    state["_init_kwargs"] = state["_init_kwargs"] | changes if isinstance(changes, dict) else changes
    path = tmp_path / "edm.pkl"
    path.write_bytes(pickle.dumps(content))
    built = []
    monkeypatch.setattr(checkpoints, "save", lambda *args: built.append(args))
    with pytest.raises(FdmError, match=reason) as raised:
        released.import_checkpoint(path, tmp_path / "x.safetensors")
    assert "\n" not in str(raised.value)
    assert not built


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sigma_data": True}, "sigma_data = of type bool"),
        ({"sigma_data": math.nan}, "sigma_data = nan"),
        ({"sigma_data": 10**400}, "sigma_data = of type int"),
        ({"fdm_multiplier": math.inf}, "fdm_multiplier = inf, where"),
        ({"fdm_multiplier": 0}, "fdm_multiplier = 0, where"),
        ({"fdm_multiplier": "2"}, "fdm_multiplier = '2', where"),
        ({"_modules": 3}, "_modules 3, where a dictionary was expected"),
    ],
)
def test_what_stands_for_a_number_is_told(changes, reason):
    model = released.Record("SongUNet", {"_init_args": (8, 3, 3)})
    record = released.Record("EDMPrecond", {"_modules": {"model": model}} | changes)
    with pytest.raises(FdmError, match=reason):
        released.describe(record)


def test_names_of_methods_are_names():
    """A module or a parameter may be called as a method of what holds it."""
    names = ["get", "items", "__class__", "update", "state", "keys"]
    weights = {name: torch.zeros(1) for name in names}
    inner = {name: released.Record(name, {"_parameters": weights}) for name in names}
    found = released.state_dict(released.Record("A", {"_modules": inner, "get": 1, "items": 2, "__class__": 3}))
    assert {*found} == {f"{a}.{b}" for a in names for b in names}


def test_a_network_that_holds_itself_or_another_twice_is_refused():
    record = released.Record("A", {})
    record.state["_modules"] = {"again": record}
    with pytest.raises(FdmError, match="holds 'again' twice"):
        released.state_dict(record)
    shared: dict = {}  # a ModuleDict, in 2^40 places
    for _ in range(40):
        shared = {"_modules": {"a": shared, "b": shared}}
    with pytest.raises(FdmError, match=r"holds '[ab.]*' twice"):
        released.state_dict(released.Record("A", shared))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.to(torch.int32), "holds other things than finite numbers"),
        (lambda t: t * math.nan, "holds other things than finite numbers"),
        (lambda t: t[:-1], r"has the shape \(2,\) and not \(3,\)"),
        (lambda t: None, "it lacks 'model.dec.8x8_aux_conv.bias'"),
    ],
)
def test_weights_that_are_none_are_refused(change, reason, persistence, tmp_path):
    _, content = make("edm", "baseline", persistence)
    state = content["ema"].meta["state"]["_modules"]["model"].meta["state"]["_modules"]["dec"]._modules["8x8_aux_conv"]
    parameters = state.meta["state"]["_parameters"]
    parameters["bias"] = change(parameters["bias"].data)
    path = tmp_path / "edm.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(FdmError, match=f"does not fit its own description: .*{reason}"):
        released.import_checkpoint(path, tmp_path / "x.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["edm.pkl"]


def test_a_tensor_in_two_places_is_refused(persistence, tmp_path):
    _, content = make("edm", "baseline", persistence)
    parts = content["ema"].meta["state"]["_modules"]["model"].meta["state"]["_modules"]["enc"]._modules
    norms = parts["8x8_block0"].meta["state"]["_modules"]
    norms["norm0"].meta["state"]["_parameters"] = norms["norm1"].meta["state"]["_parameters"]
    path = tmp_path / "edm.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(FdmError, match="it holds a tensor in two places"):
        released.import_checkpoint(path, tmp_path / "x.safetensors")


def test_a_large_file_is_not_even_opened(tmp_path):
    path = tmp_path / "edm.pkl"
    with path.open("wb") as file:
        file.truncate(released.SIZE + 1)
    with pytest.raises(FdmError, match="it has 1,073,741,825 bytes, where 1,073,741,824 are the most"):
        released.read(path)


# ------------------------------------------------------------------------------------------- what a file may cost

# Each of 60 tuples holds the one before twice; the last is left on the stack.
SHARED = b"\x8c\x01x\x940" + b"".join(b"h%ch%c\x86\x940" % (i, i) for i in range(60)) + b"h\x3c"
DEEP = b")" + b"\x85" * 200_000  # a tuple in a tuple


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def looked_up(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def network(persistence, parts: object) -> bytes:
    """A published network whose raw network holds `parts`."""
    Persistent = persistence[0]
    model = Persistent("SongUNet", {"_init_args": (8, 3, 3), "_modules": parts})
    return pickle.dumps({"ema": Persistent("EDMPrecond", {"_modules": {"model": model}})})


def nested(levels: int, make_part) -> object:
    """What `make_part` makes, level by level, of the level below."""
    part: object = {}
    for _ in range(levels):
        part = make_part(part)
    return {"enc": part}


def costly(persistence) -> dict[str, tuple[bytes, str]]:
    """Small files that would take the machine when hashed, compared, printed, walked, copied or built, and reasons."""
    Persistent = persistence[0]
    record = looked_up("torch_utils.persistence", "_reconstruct_persistent_obj")
    megabyte = storage(250_000, bytes(1_000_000))
    read = looked_up("torch.storage", "_load_from_bytes") + b"\x94B" + struct.pack("<I", len(megabyte)) + megabyte
    rebuild, huge = looked_up("torch._utils", "_rebuild_tensor_v2"), b"\x8a\xff" + b"\x7f" * 255
    nothing = {f"n{i}": None for i in range(40_000)}
    state = b"}(" + b"".join(word(f"{i:05d}") + b"N" for i in range(60_000)) + b"u\x94"
    keys, none = "a dictionary with strings as keys", "holds no network"

    def containers(levels: int, **names: None) -> object:
        return nested(levels, lambda part: {"_modules": dict.fromkeys(names, part)})

    records = nested(40, lambda part: Persistent("A", {"_modules": {"a": part, "b": part}}))
    ints = b"".join(b"\x8a\x10" + (k * (2**61 - 1)).to_bytes(16, "little") + b"N" for k in range(9999))
    shared = {f"m{i}": Persistent("A", {"_parameters": nothing}) for i in range(4000)}
    compared = b"}" + word("type") + word("class") + b"s" + word("version") + SHARED + b"s"
    on_one = b"h\x02(h\x01K\x00J\x90\xd0\x03\x00\x85K\x01\x85tR"
    return {
        "hashed as a key": (opcode(b"}" + SHARED + b"Ns"), keys),
        "hashed in a set": (opcode(b"\x8f(" + SHARED + b"\x90"), none),
        "hashed in a frozen set": (opcode(b"(" + SHARED + b"\x91"), "the pickle opcode FROZENSET"),
        "compared": (opcode(record + compared + b"\x85R"), "a record that is not a class of version 6"),
        "printed": (opcode(SHARED + b"Q"), "a persistent name of type tuple"),
        "printed as a name": (opcode(SHARED + SHARED + b"\x93"), "a name that is no text"),
        "in itself": (opcode(b"}\x94" + word("ema") + b"h\x00s"), none),
        "deep lists": (opcode(b"]" * 2_000_000 + b"a" * 1_999_999), "more than 1,000,000 pickle opcodes"),
        "deep as a key": (opcode(b"}" + DEEP + b"Ns"), keys),
        "deep as a persistent name": (opcode(DEEP + b"Q"), "a persistent name of type tuple"),
        "deep dictionaries": (opcode((b"}" + word("ema")) * 100_000 + b"N" + b"s" * 100_000), none),
        "many dictionaries": (opcode(b"}" * 6_000_000), "more than 1,000,000 pickle opcodes"),
        "numbers with one hash": (opcode(b"}(" + ints + b"u"), keys),
        "one storage again and again": (opcode(read + b"\x85\x94" + b"h\x00h\x01R" * 3000), "read again and again"),
        "one storage under many tensors": (
            opcode(read + b"\x85R\x94" + rebuild + b"\x94" + on_one * 3000), "a tensor without a storage of its own",
        ),
        "a huge product": (
            opcode(rebuild + b"(" + read + b"\x85RK\x00(" + huge * 10_000 + b"t\x94h\x01tR"), "not described by num",
        ),
        "one state for all": (opcode(state + b"}h\x00b" * 100_000), "a state of something that has none"),
        "a bomb of containers": (network(persistence, containers(40, a=None, b=None)), "holds 'model.enc.b' twice"),
        "a bomb of modules": (network(persistence, records), "holds 'model.enc.b' twice"),
        "a deep network": (network(persistence, containers(150, enc=None)), "a name of more than 300 characters"),
        "a long name": (network(persistence, {"x" * 500_000: Persistent("A", {})}), "a name of more than 300 char"),
        "shared parameters": (network(persistence, shared), "more than 50,000 modules and tensors"),
    }  # fmt: skip


def mutations(content: bytes, count: int, seed: int) -> list[bytes]:
    """The content with bytes changed, cut, doubled, or with opcodes put in."""
    rng, codes = random.Random(seed), [ord(op.code) for op in pickletools.opcodes]
    out = []
    for _ in range(count):
        data = bytearray(content)
        for _ in range(rng.choice([1, 1, 3, 20])):
            at = rng.randrange(len(data))
            match rng.randrange(5):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    data[at] ^= 1 << rng.randrange(8)
                case 2:
                    data[at:at] = bytes(rng.choices(codes, k=rng.choice([1, 2, 50])))
                case 3:
                    data[at : at + rng.choice([1, 8, 100])] = b""
                case 4:
                    data[at:at] = data[at : at + rng.choice([1, 8, 100])]
        out.append(bytes(data) or b".")
    return out


@pytest.mark.parametrize("share", [pytest.param(1, marks=pytest.mark.weekly), 10])
def test_no_file_takes_more_memory_or_time_than_its_size_allows(persistence, tmp_path, share):
    """In a process of its own under limits: hostile files, and a published network that is changed at random."""
    whole = make("edm", "fdm", persistence)[1]
    complete = pickle.dumps(whole)
    model = whole["ema"].meta["state"]["_modules"]["model"].meta["state"]
    model["_modules"] = {name: part for name, part in model["_modules"].items() if name.startswith("map_layer")}
    hostile = costly(persistence)
    changed = [*mutations(pickle.dumps(whole), 300 // share, 0), *mutations(complete, 20 // share, 1)]
    files = {name: content for name, (content, _) in hostile.items()} | {"good": complete}
    for name, content in (files | {f"changed {n}": content for n, content in enumerate(changed)}).items():
        (tmp_path / f"{name}.pkl").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "tests.limited_import", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told.pop("good.pkl") == ""
    assert len(told) == len(hostile) + len(changed)
    assert all(reason in told[f"{name}.pkl"] for name, (_, reason) in hostile.items())
    assert sum(not sentence for sentence in told.values()) < 20
    OURS = r"FILE (is refused: it holds|is damaged or no pickle of|holds no network|does not fit its own description)|"
    for name, sentence in told.items():
        assert re.match(rf"{OURS}The network has|The network holds|A network '|^$", sentence), (name, sentence)
        assert "\n" not in sentence and len(sentence) < 400, (name, sentence)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x.json", "x.safetensors"]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"model_channels": 10**6}, "model_channels = 1000000, where"),
        ({"num_blocks": 10**7}, "num_blocks = 10000000, where"),
        ({"model_channels": 2048}, "does not fit its own description"),
        ({"channel_mult": []}, "channel_mult of type list, where lists"),
        ({"activation": "relu"}, "describes no network of this study"),
        (None, "describes no network of this study"),
    ],
    ids=["wide", "deep", "wider than its weights", "no multipliers", "another kind", "nothing"],
)
def test_a_file_of_weights_that_describes_another_network_is_refused_before_one_is_built(
    tmp_path, monkeypatch, change, told
):
    path = tmp_path / "stranger.safetensors"
    ours = ROOT / "results" / "digits" / "networks" / "edm-fdm-0.safetensors"
    description = checkpoints.describe(ours)
    about = None if change is None else description | {"network": description["network"] | change}
    save_file(load_file(ours), path, {"checkpoint": json.dumps(about)})
    monkeypatch.setattr(checkpoints, "load", lambda path: pytest.fail("it was built"))
    with pytest.raises(FdmError, match=told):
        fdm.load(path)
