"""Files that are whole or absent, hashes that say what is in them, and the one error that users see."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import Tensor


class FdmError(Exception):
    """A failure that the user can mend; the command line prints its sentence and exits with 1."""


def root() -> Path:
    """The project's folder: the nearest one, from the working directory upwards, that holds `fdm` and `dvc.yaml`."""
    here = Path.cwd()
    for folder in [here, *here.parents]:
        if (folder / "fdm" / "files.py").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise FdmError(f"{here} is not inside the study: change to the folder that holds dvc.yaml and try again.")


def relative(path: Path) -> str:
    """A path of the study as seen from its root."""
    return path.relative_to(root()).as_posix()


def _settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary neighbour of `path`, then rename it, so that `path` is never half written.

    Raises FdmError when the disk is full or the folder cannot be written; what was at `path` is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _settle(temporary)  # before it has the name, or a machine that stops would leave the name without the content
        temporary.replace(path)
        _settle(path.parent)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors have errors of their own
        full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "space left" in str(error)
        reason = "the disk is full" if full else str(error).splitlines()[0]
        raise FdmError(
            f"{path} could not be written: {reason}. Nothing that was there is lost; make room and rerun."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    replace(path, lambda part: part.write_text(text, encoding="utf-8"))


def json_text(value: Any) -> str:
    """A value as indented JSON, keys in the order given."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json_text(value))


def sha256(path: Path) -> str:
    """Hash of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hash of a plain value by its JSON form, 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def hash_of(tensors: Mapping[str, "Tensor"]) -> str:
    """SHA-256 over names, types, shapes and values of tensors on the CPU, hexadecimal."""
    h = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        h.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        h.update(tensor.contiguous().flatten().numpy().data)
    return h.hexdigest()
