"""Published network pickles (EDM's `edm-*.pkl`, FDM's `network-snapshot-*.pkl`) read without running anything in them.

Such a file is a pickle of a dictionary whose network, `ema`, is a tree of records: the source text of a class, its
name, and the instance's state. The original executes that source. Here a pickle's opcodes are first checked one by
one; then every name in it is looked up in a short list of harmless stand-ins, and anything else is refused by name.
"""

import io
import math
import pickle
import pickletools
import re
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdm.files import FdmError, sha256, write_json
from fdm.model import checkpoints
from fdm.model.denoiser import Denoiser
from fdm.process import schedule
from fdm.process.frameworks import FRAMEWORKS, M_VP, SIGMA_DATA


class Refused(Exception):
    """A file holds something that a published network does not."""


# Opcodes that build plain values and call a looked-up name. Not here: extensions, persistent names other than
# torch's, buffers outside the file, and those that allocate by a number in the file alone.
OPCODES = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
    SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST EMPTY_TUPLE EMPTY_DICT EMPTY_SET
    ADDITEMS TUPLE TUPLE1 TUPLE2 TUPLE3 LIST DICT APPEND APPENDS SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET
    LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID
    """.split()  # noqa: SIM905
)
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
TORCH_MAGIC = 0x1950A86A20F9469CFC6C


def _short(value: Any) -> str:
    """A value for a sentence: a hostile one may be small in the file and endless when printed."""
    return repr(value[:60]) if isinstance(value, str) else f"of type {type(value).__name__}"


class Record:
    """An instance as it was pickled: the name of its class and its attributes."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.class_name, self.state = class_name, state


class _Bag(dict):
    """Stands for dnnlib's EasyDict and torch's ModuleDict; takes its state as entries."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state)


class _Dtype:
    """Stands for numpy.dtype: plain numbers only."""

    def __init__(self, name: Any, *flags: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[biuf][1248]", name):
            raise Refused(f"a NumPy type {_short(name)}")
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple) -> None:
        if len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    """A NumPy number, as a Python one."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise Refused("a NumPy number that is none")
    (number,) = np.frombuffer(data, dtype.order.replace("=", "<") + dtype.name)
    return number.item()


def _record(meta: Any) -> Record:
    """An instance of one of the published code's own classes; its source text is dropped unread."""
    if not isinstance(meta, dict) or meta.get("type") != "class" or meta.get("version") != 6:
        raise Refused("a record that is not a class of version 6")
    if not isinstance(meta.get("class_name"), str) or not isinstance(meta.get("state"), dict):
        raise Refused("a record without class name and state")
    return Record(meta["class_name"], meta["state"])


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """A tensor on a storage; its shape must lie within it."""
    whole = (
        isinstance(storage, Tensor) and storage.dim() == 1 and isinstance(size, tuple) and isinstance(stride, tuple)
        and len(size) == len(stride) and all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))
    )  # fmt: skip
    if not whole:
        raise Refused("a tensor that is not described by numbers")
    if math.prod(size) > len(storage):
        raise Refused(f"a tensor of shape {size} on a storage of {len(storage)} elements")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage):
        raise Refused(f"a tensor of shape {size} on a storage of {len(storage)} elements")
    return torch.as_strided(storage, size, stride, offset).clone()


def _parameter(data: Any, *rest: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise Refused("a parameter that is no tensor")
    return data


def _storage(data: Any) -> Tensor:
    """The numbers of a serialised tensor storage (torch's format of 2018, pickles and then raw bytes), (N,)."""
    if not isinstance(data, bytes):
        raise Refused("a tensor storage that is not bytes")
    file = io.BytesIO(data)
    magic, _version, _system = _load(file, {}), _load(file, {}), _load(file, {})
    if magic != TORCH_MAGIC:
        raise Refused("a tensor storage of an unknown format")
    dtype: torch.dtype | None = None

    def persistent(pid: Any) -> str:
        nonlocal dtype
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise Refused(f"a persistent name {_short(pid)}")
        dtype = pid[1]
        return "storage"

    _load(file, {("torch", name): kind for name, kind in STORAGES.items()}, persistent)
    keys = _load(file, {})
    if dtype is None or not isinstance(keys, list) or len(keys) != 1:
        raise Refused("a tensor storage that is not one storage")
    count, raw = int.from_bytes(file.read(8), "little"), bytearray(file.read())
    if count * dtype.itemsize != len(raw):
        raise Refused(f"a tensor storage of {count} elements in {len(raw)} bytes")
    return torch.frombuffer(raw, dtype=dtype) if count else torch.empty(0, dtype=dtype)


NAMES: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): OrderedDict,
    ("dnnlib.util", "EasyDict"): _Bag,
    ("torch.nn.modules.container", "ModuleDict"): _Bag,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _record,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


def _check_opcodes(file: io.BytesIO) -> None:
    """Walk over one pickle without building anything; raises Refused at the first thing out of the ordinary."""
    size = len(file.getbuffer())
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name not in OPCODES:
            raise Refused(f"the pickle opcode {opcode.name} at byte {position}")
        if opcode.name == "LONG_BINPUT" and int(str(argument)) > size:  # the reader's table is as long as the number
            raise Refused(f"a {opcode.name} of {argument} in a file of {size} bytes at byte {position}")
        if opcode.name == "FRAME" and int(str(argument)) > size:
            raise pickle.UnpicklingError("it ends within a frame")


def _fresh(target: Any) -> Any:
    """A stand-in of its own for one file, as a pickle can set attributes on whatever it looks up."""
    if target in (_Bag, _Dtype):
        return type(target.__name__, (target,), {})
    return (lambda *args: target(*args)) if isinstance(target, types.FunctionType) else target


def _load(file: io.BytesIO, names: dict[tuple[str, str], Any], persistent: Callable[[Any], Any] | None = None) -> Any:
    """Read one pickle from the file's position; `names` are all that it may look up."""

    known = {name: _fresh(target) for name, target in names.items()}

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in known:
                raise Refused(f"the name {module}.{name}")
            return known[module, name]

        def persistent_load(self, pid: Any) -> Any:
            if persistent is None:
                raise Refused(f"a persistent name {_short(pid)}")
            return persistent(pid)

    start = file.tell()
    _check_opcodes(file)
    file.seek(start)
    return Reader(file).load()


def read(path: Path) -> dict[str, Any]:
    """The dictionary in a published pickle, its instances as `Record`; raises FdmError naming what is refused."""
    if not path.is_file():
        raise FdmError(f"There is no file {path}.")
    try:
        content = _load(io.BytesIO(path.read_bytes()), NAMES)
    except Refused as error:
        raise FdmError(f"{path} is refused: it holds {error}, which no published network does.") from None
    except MemoryError:
        raise FdmError(f"{path} is refused: it asks for more memory than there is.") from None
    except Exception as error:  # an unpickler fails in many ways on a damaged file
        raise FdmError(f"{path} is damaged or no pickle ({type(error).__name__}: {error}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("ema"), Record):
        raise FdmError(f"{path} holds no network: a dictionary with a record under 'ema' was expected.")
    return content


def state_dict(record: Record) -> dict[str, Tensor]:
    """Parameters and buffers of an instance and all within it, by their published names.

    Raises FdmError for an instance that stands in two places, or in itself.
    """
    out: dict[str, Tensor] = {}
    todo, seen = [("", record)], {id(record)}
    while todo:
        prefix, parent = todo.pop()
        for group in ("_parameters", "_buffers"):
            tensors = parent.state.get(group) or {}
            out |= {f"{prefix}{name}": value for name, value in tensors.items() if isinstance(value, Tensor)}
        for name, child in (parent.state.get("_modules") or {}).items():
            if isinstance(child, _Bag):
                child = Record("ModuleDict", child)
            elif isinstance(child, Record) and id(child) in seen:
                raise FdmError(f"The network holds {prefix}{name} twice.")
            if isinstance(child, Record):
                seen.add(id(child))
                todo.append((f"{prefix}{name}.", child))
    return out


def describe(record: Record) -> dict[str, Any]:
    """The sections `network` and `denoiser` of a published network's description.

    Raises FdmError for another kind of network and for constants that differ from this study's.
    """
    match = re.fullmatch(r"(FDM_)?(VP|VE|EDM)Precond", record.class_name)
    model = (record.state.get("_modules") or {}).get("model")
    if not match or not isinstance(model, Record) or model.class_name != "SongUNet":
        inner = model.class_name if isinstance(model, Record) else "nothing"
        raise FdmError(f"A network {record.class_name} around {inner} is none of the six models of this study.")
    framework, kernel = match[2].lower(), "fdm" if match[1] else "baseline"
    process = FRAMEWORKS[framework]
    low, high = process.sigma_range
    constants = {"sigma_data": SIGMA_DATA, "beta_d": schedule.BETA_D, "beta_min": schedule.BETA_MIN, "M": M_VP,
                 "epsilon_t": schedule.T_MIN}  # fmt: skip
    if process.bounded or kernel == "fdm":
        constants |= {"sigma_min": low, "sigma_max": high}
    for name, value in constants.items():
        found = record.state.get(name, value)
        if not isinstance(found, int | float) or abs(found - value) > 1e-6 * abs(value):
            shown = found if isinstance(found, int | float) else _short(found)
            raise FdmError(f"The network has {name} = {shown}, where this study has {value}.")

    # Arguments as the network was made with, over the defaults of the published class.
    arguments: dict[str, Any] = {
        "label_dim": 0, "augment_dim": 0, "model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4,
        "attn_resolutions": [16], "dropout": 0.10, "embedding_type": "positional", "encoder_type": "standard",
        "decoder_type": "standard", "channel_mult_noise": 1, "resample_filter": [1, 1], "channel_mult_emb": 4,
        "label_dropout": 0,
    }  # fmt: skip
    positional = dict(
        zip(("img_resolution", "in_channels", "out_channels"), model.state.get("_init_args", ()), strict=False)
    )
    given = positional | dict(model.state.get("_init_kwargs") or {})
    arguments |= given
    ncsnpp = arguments["embedding_type"] == "fourier"
    kind = ("fourier", "residual", 2, [1, 3, 3, 1]) if ncsnpp else ("positional", "standard", 1, [1, 1])
    found_kind = tuple(
        list(v) if isinstance(v, list | tuple) else v
        for v in (arguments[k] for k in ("embedding_type", "encoder_type", "channel_mult_noise", "resample_filter"))
    )
    if found_kind != kind or arguments["decoder_type"] != "standard" or arguments["channel_mult_emb"] != 4:
        raise FdmError("The network is neither DDPM++ nor NCSN++: it embeds or resamples in another way.")
    resolution = arguments.get("img_resolution", record.state.get("img_resolution"))
    channels = arguments.get("in_channels", record.state.get("img_channels"))
    return {
        "network": {
            "architecture": "ncsnpp" if ncsnpp else "ddpmpp",
            "resolution": resolution,
            "channels": channels,
            **{key: arguments[key] for key in ("label_dim", "augment_dim", "model_channels")},
            "channel_mult": list(arguments["channel_mult"]),
            "num_blocks": arguments["num_blocks"],
            "attn_resolutions": list(arguments["attn_resolutions"]),
            "dropout": arguments["dropout"],
        },
        "denoiser": {
            "framework": framework,
            "kernel": kernel,
            "multiplier": float(record.state.get("fdm_multiplier", 1.0)),
        },
    }


def import_checkpoint(path: Path, target: Path, about: dict[str, Any] | None = None) -> None:
    """Turn a published pickle into the safetensors file `target`, which describes itself, and the same as .json.

    `about` joins the description. Raises FdmError when the file is refused or does not fit its own description.
    """
    record = read(path)["ema"]
    try:
        description = describe(record) | {"published": path.name, "sha256": sha256(path)} | (about or {})
        denoiser: Denoiser = checkpoints.build(description)
        tensors = state_dict(record)
        denoiser.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        reason = [type(error).__name__, *str(error)[:500].splitlines()][-1].strip()
        raise FdmError(f"{path} does not fit its own description: {reason}") from error
    checkpoints.save(target, denoiser, description)
    write_json(target.with_suffix(".json"), description | {"parameters": sum(p.numel() for p in denoiser.parameters())})
