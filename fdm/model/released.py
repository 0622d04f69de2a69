"""Published network pickles (EDM's `edm-*.pkl`, FDM's `network-snapshot-*.pkl`) read without running anything in them.

Such a file is a pickle of a dictionary whose network, `ema`, is a tree of records: the source text of a class, its
name, and the instance's state. The original executes that source. Here the pickle's opcodes are taken one by one and
build plain values; a name is looked up in a short list of stand-ins, and any other is refused.

What a file may cost follows from its size, whatever is in it. The time of an opcode does not depend on what others
built: strings alone are hashed, and nothing is compared, copied or printed that may share its parts. A byte becomes a
weight once at most. A network's description is checked before it is built, and it is built without weights of its own.
So an import takes at most 300 MB and three times the size of the file, and the time of OPCODES and of going through the
file a few times.
"""

import io
import math
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fdm.files import FdmError, sha256, write_json
from fdm.model import checkpoints
from fdm.model.denoiser import Denoiser
from fdm.process import schedule
from fdm.process.frameworks import FRAMEWORKS, M_VP, SIGMA_DATA


class Refused(Exception):
    """A file holds something that a published network does not."""


SIZE = 1 << 30  # bytes of a file; published ones have a quarter
OPCODES = 1_000_000  # in a file, those of its storages too
PARTS = 50_000  # of a network: its modules and tensors
ATTRIBUTES = 100  # of a module
NAME = 300  # characters of a tensor's name, those of the modules around it too
EXACT = 1 << 53  # whole numbers below it are plain ones

STORAGES = {
    ("torch", "DoubleStorage"): torch.float64, ("torch", "FloatStorage"): torch.float32,
    ("torch", "HalfStorage"): torch.float16, ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "LongStorage"): torch.int64, ("torch", "IntStorage"): torch.int32, ("torch", "ShortStorage"): torch.int16,
    ("torch", "CharStorage"): torch.int8, ("torch", "ByteStorage"): torch.uint8, ("torch", "BoolStorage"): torch.bool,
}  # fmt: skip
TORCH_MAGIC = 0x1950A86A20F9469CFC6C


def _short(value: Any) -> str:
    """A value for a sentence: a hostile one may be small in the file and endless when printed."""
    if isinstance(value, str):
        return ascii(value[:60])
    if type(value) is float or (type(value) is int and abs(value) < EXACT):
        return str(value)
    return f"of type {type(value).__name__}"


class Record:
    """An instance as it was pickled: the name of its class and its attributes."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.class_name, self.state = class_name, state


class _Pickle:
    """What one pickle has built so far, and what its next opcode does: one of the methods and `STEPS`."""

    def __init__(self, names: dict[tuple[str, str], Any], persistent: Callable[[Any], Any] | None) -> None:
        self.names, self.persistent = names, persistent
        self.stack, self.marks, self.memo = list[Any](), list[int](), dict[int, Any]()

    def take(self, count: int) -> list[Any]:
        """The last values, which leave the stack."""
        start = len(self.stack) - count
        if start < 0:
            raise IndexError
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def marked(self) -> list[Any]:
        """The values since the last mark, which leave the stack."""
        return self.take(len(self.stack) - self.marks.pop())

    def extend(self, items: list[Any]) -> None:
        """Append to a list. Sets are lists here, as what is in one need not be hashed."""
        if not isinstance(self.stack[-1], list):
            raise Refused("items of something else than a list or a set")
        self.stack[-1].extend(items)

    def fill(self, items: list[Any]) -> None:
        """Put keys and values, in turn, into a dictionary."""
        keys, values = items[::2], items[1::2]
        if not isinstance(self.stack[-1], dict) or not all(isinstance(key, str) for key in keys):
            raise Refused("entries of something else than a dictionary with strings as keys")
        self.stack[-1].update(zip(keys, values, strict=True))

    def look_up(self, module: Any, name: Any) -> None:
        """Push what stands for a name."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("a name that is no text")
        if (module, name) not in self.names:
            raise Refused(f"the name {_short(f'{module[:60]}.{name[:60]}')}")
        self.stack.append(self.names[module, name])

    def call(self, function: Any, args: Any) -> None:
        """Push what a stand-in returns; a function is nothing else."""
        if not callable(function) or not isinstance(args, tuple) or len(args) > 8:
            raise Refused("a call of something else than a name")
        self.stack.append(function(*args))

    def build(self, state: Any) -> None:
        """Give a module of torch its attributes, and a NumPy type its order of bytes, which is known."""
        target = self.stack[-1]
        if isinstance(target, dict) and isinstance(state, dict) and len(state) <= ATTRIBUTES:
            target.update(state)
        elif not isinstance(target, np.dtype) or not isinstance(state, tuple) or state[1:2] not in (("<",), ("|",)):
            raise Refused("a state of something that has none")

    def name_persistently(self, name: Any) -> None:
        """Push what stands for a persistent name."""
        if self.persistent is None:
            raise Refused(f"a persistent name {_short(name)}")
        self.stack.append(self.persistent(name))

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)


# Opcode -> what it does to a pickle, given its argument. Not here: extensions, text in place of bytes, buffers outside
# the file, and classes that are called in older ways.
STEPS: dict[str, Callable[[_Pickle, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda p, a: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
                     "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Pickle.push),
    "NONE": lambda p, a: p.push(None),
    "NEWTRUE": lambda p, a: p.push(True),
    "NEWFALSE": lambda p, a: p.push(False),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda p, a: p.push([])),
    "EMPTY_DICT": lambda p, a: p.push({}),
    "EMPTY_TUPLE": lambda p, a: p.push(()),
    "MARK": lambda p, a: p.marks.append(len(p.stack)),
    "POP": lambda p, a: p.take(1),
    "POP_MARK": lambda p, a: p.marked(),
    "TUPLE": lambda p, a: p.push(tuple(p.marked())),
    "TUPLE1": lambda p, a: p.push(tuple(p.take(1))),
    "TUPLE2": lambda p, a: p.push(tuple(p.take(2))),
    "TUPLE3": lambda p, a: p.push(tuple(p.take(3))),
    "APPEND": lambda p, a: p.extend(p.take(1)),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda p, a: p.extend(p.marked())),
    "SETITEM": lambda p, a: p.fill(p.take(2)),
    "SETITEMS": lambda p, a: p.fill(p.marked()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda p, a: p.memo.update({a: p.stack[-1]})),
    "MEMOIZE": lambda p, a: p.memo.update({len(p.memo): p.stack[-1]}),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda p, a: p.push(p.memo[a])),
    "GLOBAL": lambda p, a: p.look_up(*a.split(" ", 1)),
    "STACK_GLOBAL": lambda p, a: p.look_up(*p.take(2)),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda p, a: p.call(*p.take(2))),
    "BUILD": lambda p, a: p.build(*p.take(1)),
    "BINPERSID": lambda p, a: p.name_persistently(*p.take(1)),
}  # fmt: skip


def _dtype(name: Any, *flags: Any) -> np.dtype:
    """NumPy's type of plain numbers."""
    if not isinstance(name, str) or not re.fullmatch(r"[biuf][1248]", name):
        raise Refused(f"a NumPy type {_short(name)}")
    return np.dtype(f"<{name}")


def _scalar(dtype: Any, data: Any) -> Any:
    """A NumPy number, as a Python one."""
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise Refused("a NumPy number that is none")
    return np.frombuffer(data, dtype)[0].item()


def _record(meta: Any) -> Record:
    """An instance of one of the published code's own classes; its source text is dropped unread."""
    if not isinstance(meta, dict) or meta.get("type") != "class" or meta.get("version") != 6:
        raise Refused("a record that is not a class of version 6")
    if not isinstance(meta.get("class_name"), str) or not isinstance(meta.get("state"), dict):
        raise Refused("a record without class name and state")
    return Record(meta["class_name"], meta["state"])


def _parameter(data: Any, *rest: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise Refused("a parameter that is no tensor")
    return data


class _Reader:
    """Reads the pickles of one file, and counts what they cost."""

    def __init__(self, size: int) -> None:
        self.opcodes, self.bytes = OPCODES, size
        self.free = set[int]()  # storages without a tensor
        self.names: dict[tuple[str, str], Callable[..., Any]] = {
            ("builtins", "set"): lambda items: items,
            ("collections", "OrderedDict"): lambda: {},
            ("dnnlib.util", "EasyDict"): lambda: {},
            ("torch.nn.modules.container", "ModuleDict"): lambda: {},
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): _record,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch.storage", "_load_from_bytes"): self.storage,
            ("numpy", "dtype"): _dtype,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy._core.multiarray", "scalar"): _scalar,
        }

    def load(
        self, file: io.BytesIO, names: dict[tuple[str, str], Any], persistent: Callable[[Any], Any] | None = None
    ) -> Any:
        """Read one pickle from the file's position; `names` are all that it may look up."""
        pickled = _Pickle(names, persistent)
        for opcode, argument, position in pickletools.genops(file):
            self.opcodes -= 1
            if self.opcodes < 0:
                raise Refused(f"more than {OPCODES:,} pickle opcodes")
            if opcode.name == "STOP":
                break
            if opcode.name not in STEPS:
                raise Refused(f"the pickle opcode {opcode.name} at byte {position}")
            STEPS[opcode.name](pickled, argument)
        return pickled.stack.pop()

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
        """A tensor on a storage that no other is on; its shape must lie within it."""
        if id(storage) not in self.free:
            raise Refused("a tensor without a storage of its own")
        whole = (
            isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 8
            and all(type(n) is int and 0 <= n < EXACT for n in (offset, *size, *stride))
        )  # fmt: skip
        if not whole:
            raise Refused("a tensor that is not described by numbers")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) > len(storage) or (0 not in size and last >= len(storage)):
            raise Refused(f"a tensor of shape {size} on a storage of {len(storage)} elements")
        self.free.remove(id(storage))
        return torch.as_strided(storage, size, stride, offset)

    def storage(self, data: Any) -> Tensor:
        """The numbers of a serialised tensor storage (torch's format of 2018, pickles and then raw bytes), (N,)."""
        if not isinstance(data, bytes):
            raise Refused("a tensor storage that is not bytes")
        self.bytes -= len(data)
        if self.bytes < 0:
            raise Refused("a tensor storage that is read again and again")
        file = io.BytesIO(data)
        magic, _version, _system = self.load(file, {}), self.load(file, {}), self.load(file, {})
        if type(magic) is not int or magic != TORCH_MAGIC:
            raise Refused("a tensor storage of an unknown format")

        def persistent(pid: Any) -> torch.dtype:
            if not isinstance(pid, tuple) or len(pid) < 5 or not isinstance(pid[1], torch.dtype):
                raise Refused(f"a persistent name {_short(pid)}")
            return pid[1]

        dtype, keys = self.load(file, STORAGES, persistent), self.load(file, {})
        if not isinstance(dtype, torch.dtype) or not isinstance(keys, list) or len(keys) != 1:
            raise Refused("a tensor storage that is not one storage")
        count, raw = int.from_bytes(file.read(8), "little"), data[file.tell() :]
        if count * dtype.itemsize != len(raw):
            raise Refused(f"a tensor storage of {count} elements in {len(raw)} bytes")
        storage = torch.frombuffer(bytearray(raw), dtype=dtype) if count else torch.empty(0, dtype=dtype)
        self.free.add(id(storage))
        return storage


def read(path: Path) -> dict[str, Any]:
    """The dictionary in a published pickle, its instances as `Record`; raises FdmError naming what is refused."""
    if not path.is_file():
        raise FdmError(f"There is no file {path}.")
    if (size := path.stat().st_size) > SIZE:
        raise FdmError(f"{path} is refused: it has {size:,} bytes, where {SIZE:,} are the most that are read.")
    try:
        reader = _Reader(size)
        content = reader.load(io.BytesIO(path.read_bytes()), reader.names)
    except Refused as error:
        raise FdmError(f"{path} is refused: it holds {error}, which no published network does.") from None
    except MemoryError:
        raise FdmError(f"{path} is refused: it asks for more memory than there is.") from None
    except OSError as error:
        raise FdmError(f"{path} cannot be read ({error.strerror}).") from error
    except Exception as error:  # what is no pickle fails in many ways
        raise FdmError(f"{path} is damaged or no pickle of a network.") from error
    if not isinstance(content, dict) or not isinstance(content.get("ema"), Record):
        raise FdmError(f"{path} holds no network: a dictionary with a record under 'ema' was expected.")
    return content


def _entries(state: dict[str, Any], group: str) -> dict[str, Any]:
    """A module's parameters, buffers or modules by their names; raises FdmError for another thing in their place."""
    found = state.get(group)
    if found is not None and not isinstance(found, dict):
        raise FdmError(f"The network has {group} {_short(found)}, where a dictionary was expected.")
    return found or {}


def state_dict(record: Record) -> dict[str, Tensor]:
    """Parameters and buffers of an instance and all within it, by their published names.

    Raises FdmError for an instance that stands in two places, or in itself, and for more than PARTS or longer names
    than NAME.
    """
    out: dict[str, Tensor] = {}
    todo, seen, parts = [("", record.state)], {id(record.state)}, 0
    while todo:
        prefix, state = todo.pop()
        for group in ("_parameters", "_buffers", "_modules"):
            found = _entries(state, group)
            parts += len(found)
            if parts > PARTS:
                raise FdmError(f"The network holds more than {PARTS:,} modules and tensors.")
            for name, value in found.items():
                if len(prefix) + len(name) > NAME:
                    raise FdmError(f"The network holds a name of more than {NAME} characters, {_short(name)}.")
                if isinstance(value, Tensor) and group != "_modules":
                    out[prefix + name] = value
                inner = value.state if isinstance(value, Record) else value
                if isinstance(inner, dict) and group == "_modules":
                    if id(inner) in seen:
                        raise FdmError(f"The network holds {_short(prefix + name)} twice.")
                    seen.add(id(inner))
                    todo.append((f"{prefix}{name}.", inner))
    return out


def _number(name: str, value: Any, low: float, high: float, *kinds: type) -> Any:
    """A value that is a plain number; raises FdmError for any other."""
    if type(value) not in (kinds or (int,)) or not low <= value <= high:
        raise FdmError(f"The network has {name} = {_short(value)}, where numbers from {low} to {high} are read.")
    return value


def _numbers(name: str, values: Any, fewest: int, most: int, high: int) -> list[int]:
    """Values that are a list of plain numbers, from 1 to `high`; raises FdmError for any other."""
    if not isinstance(values, list | tuple) or not fewest <= len(values) <= most:
        raise FdmError(f"The network has {name} {_short(values)}, where lists of {fewest} to {most} numbers are read.")
    return [_number(name, value, 1, high) for value in values]


def _is(value: Any, expected: Any) -> bool:
    """Whether a value is that word, number or list of numbers."""
    if isinstance(expected, list):
        return isinstance(value, list | tuple) and len(value) == len(expected) and all(map(_is, value, expected))
    return type(value) is type(expected) and value == expected


def _of_this_study(record: Record) -> tuple[str, str, Record]:
    """Framework, kernel and raw network of one of its six models; raises FdmError for others and other constants."""
    match = re.fullmatch(r"(FDM_)?(VP|VE|EDM)Precond", record.class_name)
    model = _entries(record.state, "_modules").get("model")
    if not match or not isinstance(model, Record) or model.class_name != "SongUNet":
        inner = _short(model.class_name) if isinstance(model, Record) else "nothing"
        raise FdmError(f"A network {_short(record.class_name)} around {inner} is none of the six models of this study.")
    framework, kernel = match[2].lower(), "fdm" if match[1] else "baseline"
    process = FRAMEWORKS[framework]
    low, high = process.sigma_range
    constants = {"sigma_data": SIGMA_DATA, "beta_d": schedule.BETA_D, "beta_min": schedule.BETA_MIN, "M": M_VP,
                 "epsilon_t": schedule.T_MIN}  # fmt: skip
    if process.bounded or kernel == "fdm":
        constants |= {"sigma_min": low, "sigma_max": high}
    for name, value in constants.items():
        found = record.state.get(name, value)
        if type(found) not in (int, float) or not value * (1 - 1e-6) <= found <= value * (1 + 1e-6):
            raise FdmError(f"The network has {name} = {_short(found)}, where this study has {value}.")
    return framework, kernel, model


def _usual(arguments: dict[str, Any]) -> dict[str, Any]:
    """UNet's arguments, checked; raises FdmError for what is no network of a usual size."""
    channel_mult = _numbers("channel_mult", arguments["channel_mult"], 1, 8, 32)
    resolution = _number("resolution", arguments["resolution"], 2, 1024)
    if resolution % (1 << len(channel_mult) - 1):
        raise FdmError(f"The network has resolution = {resolution}, which cannot be halved for each channel_mult.")
    return {
        "architecture": arguments["architecture"],
        "resolution": resolution,
        "channels": _number("channels", arguments["channels"], 1, 64),
        "label_dim": _number("label_dim", arguments["label_dim"], 0, 100_000),
        "augment_dim": _number("augment_dim", arguments["augment_dim"], 0, 1000),
        "model_channels": _number("model_channels", arguments["model_channels"], 4, 2048),
        "channel_mult": channel_mult,
        "num_blocks": _number("num_blocks", arguments["num_blocks"], 1, 32),
        "attn_resolutions": _numbers("attn_resolutions", arguments["attn_resolutions"], 0, 16, 1024),
        "dropout": _number("dropout", arguments["dropout"], 0, 1, int, float),
    }


def describe(record: Record) -> dict[str, Any]:
    """The sections `network` and `denoiser` of a published network's description.

    Raises FdmError for another kind of network, for constants that differ from this study's, and for what is no
    network of a usual size.
    """
    framework, kernel, model = _of_this_study(record)
    # Arguments as the network was made with, over the defaults of the published class.
    arguments: dict[str, Any] = {
        "label_dim": 0, "augment_dim": 0, "model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4,
        "attn_resolutions": [16], "dropout": 0.10, "embedding_type": "positional", "encoder_type": "standard",
        "decoder_type": "standard", "channel_mult_noise": 1, "resample_filter": [1, 1], "channel_mult_emb": 4,
        "img_resolution": record.state.get("img_resolution"), "in_channels": record.state.get("img_channels"),
    }  # fmt: skip
    positional = model.state.get("_init_args")
    if isinstance(positional, list | tuple):
        arguments |= dict(zip(("img_resolution", "in_channels", "out_channels"), positional, strict=False))
    arguments |= _entries(model.state, "_init_kwargs")
    ncsnpp = _is(arguments["embedding_type"], "fourier")
    kind = {
        "embedding_type": "fourier" if ncsnpp else "positional", "encoder_type": "residual" if ncsnpp else "standard",
        "decoder_type": "standard", "channel_mult_noise": 2 if ncsnpp else 1, "channel_mult_emb": 4,
        "resample_filter": [1, 3, 3, 1] if ncsnpp else [1, 1],
    }  # fmt: skip
    if not all(_is(arguments[key], value) for key, value in kind.items()):
        raise FdmError("The network is neither DDPM++ nor NCSN++: it embeds or resamples in another way.")
    return {
        "network": _usual(
            arguments
            | {
                "architecture": "ncsnpp" if ncsnpp else "ddpmpp",
                "resolution": arguments["img_resolution"],
                "channels": arguments["in_channels"],
            }
        ),
        "denoiser": {
            "framework": framework,
            "kernel": kernel,
            "multiplier": float(
                _number("fdm_multiplier", record.state.get("fdm_multiplier", 1.0), 1e-3, 1e3, int, float)
            ),
        },
    }


def _unlike(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> str | None:
    """How a network's tensors differ from those that its description asks for, or None."""
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted:
            return f"it {'holds' if name in found else 'lacks'} {_short(name)}"
        if found[name].shape != wanted[name].shape:
            return f"{name} has the shape {tuple(found[name].shape)} and not {tuple(wanted[name].shape)}"
        if not found[name].is_floating_point() or not found[name].isfinite().all():
            return f"{name} holds other things than finite numbers"
    if len({id(tensor) for tensor in found.values()}) < len(found):
        return "it holds a tensor in two places"
    return None


class _Weightless(TorchFunctionMode):
    """Within it networks are made without memory for their weights. Buffers, which are small, have theirs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": "meta"} if func is torch.empty else {}))


def import_checkpoint(path: Path, target: Path, about: dict[str, Any] | None = None) -> None:
    """Turn a published pickle into the safetensors file `target`, which describes itself, and the same as .json.

    `about` joins the description. Raises FdmError when the file is refused or does not fit its own description.
    """
    record = read(path)["ema"]
    description = describe(record) | {"published": path.name, "sha256": sha256(path)} | (about or {})
    try:
        with _Weightless():
            denoiser = checkpoints.build(description)
    except ValueError as error:  # of a normalisation whose groups do not divide its channels
        raise FdmError(f"{path} does not fit its own description: there is no such network.") from error
    tensors = state_dict(record)
    if unlike := _unlike(tensors, denoiser.state_dict()):
        raise FdmError(f"{path} does not fit its own description: {unlike}.")
    denoiser.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    checkpoints.save(target, denoiser, description)
    write_json(target.with_suffix(".json"), description | {"parameters": sum(p.numel() for p in denoiser.parameters())})


def load(path: Path) -> Denoiser:
    """The denoiser of a .safetensors file that anybody may have made, in evaluation mode.

    Raises FdmError as `checkpoints.load` does, and for a file that describes no network of a usual size, before one is
    built.
    """
    description = checkpoints.describe(path)
    try:
        _usual(description["network"])
        with _Weightless():
            wanted = checkpoints.build(description).state_dict()
    except (KeyError, TypeError, ValueError) as error:
        raise FdmError(f"{path} describes no network of this study.") from error
    if unlike := _unlike(load_file(path), wanted):
        raise FdmError(f"{path} does not fit its own description: {unlike}.")
    return checkpoints.load(path)[0]
