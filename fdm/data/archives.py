"""The published data sets from their official archives, and anyone's folder of pictures."""

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import math
import os
import pickle
import pickletools
import struct
import sys
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from fdm.data import downloads
from fdm.data.downloads import ARCHIVES, Archive
from fdm.files import FdmError, root
from fdm.params import DatasetParams

CIFAR10_BATCHES, CIFAR10_HELD = [f"data_batch_{n}" for n in range(1, 6)], ["test_batch"]
CIFAR10_BATCH = 10_000  # images in each
FASHION_IMAGES, FASHION_HELD, FASHION_SIDE = 60_000, 10_000, 32
AFHQV2_CLASSES = {"cat", "dog", "wild"}
AFHQV2_IMAGES = 15_803  # training and test part together, as in EDM
FFHQ_IMAGES, FFHQ_SIDE = 70_000, 1024
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # whatever the name says: other readers of PIL start programs
# Other pictures, which would be left out: a folder that has them is refused.
UNREAD = (
    ".apng", ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic", ".heif", ".ico",
    ".icns", ".j2k", ".jfif", ".jp2", ".jpe", ".jxl", ".nef", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".raw",
    ".svg", ".tga", ".wmf", ".xbm", ".xpm",
)  # fmt: skip
# Limits, far above what the real archives have.
CIFAR10_UNPACKED, CIFAR10_MEMBERS = 1 << 30, 1000  # bytes and members of the tarball, where 178 MB are in nine
DIRECTORY = 1 << 25  # bytes of a zip's list of members, where FFHQ has some 10 MB
MOST_PICTURES = 1_000_000
PICTURE = 1 << 27  # bytes of one picture's file
TABLE = 1 << 26  # bytes of labels.csv
LABEL = 100  # characters of a class
DECODERS = min(8, os.cpu_count() or 1)  # threads, each with a picture
LARGE = 1 << 22  # pixels from which on a picture is decoded alone, as each takes some 16 bytes of memory
LISTED = 10  # names of unreadable pictures, besides the first, that are told
REASON = 200  # characters of a reader's complaint that are told
FEWEST = 32  # pictures in a folder: the scoring needs two halves


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever fails within is a damaged `path`: readers fail in many ways on what is not in their format."""
    try:
        yield
    except FdmError:
        raise
    except Exception as error:
        reason = str(error).rstrip(".")[:REASON] or type(error).__name__
        raise FdmError(f"{path} is damaged ({reason}); remove it and rerun, or put a whole copy there.") from error


class _Standin:
    """Stands for all that NumPy calls in a pickled array: keeps arguments and state, and does nothing with them."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Reads plain values and NumPy's arrays, these as `_Standin`; looks up nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = ("numpy.ndarray", "numpy.dtype", *(f"numpy.{c}.multiarray._reconstruct" for c in ("core", "_core")))
        if f"{module}.{name}" not in known:
            raise ValueError(f"it holds the name {module[:60]}.{name[:60]}, which no batch of CIFAR-10 does")
        return type("Standin", (_Standin,), {})  # one of its own, as a pickle can set attributes on what it looks up


def _batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (CIFAR10_BATCH, 3, 32, 32) and classes of a pickled batch; raises many errors for anything else."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if count > 10 * CIFAR10_BATCH + 1000:  # a name and a class of each image are three or four
            raise ValueError("a batch holds far more than arrays, names and classes")
        # The reader's table gets as long as the number.
        if opcode.name in ("PUT", "LONG_BINPUT") and int(str(argument)) > len(content):
            raise ValueError(f"a batch asks for a table of {argument} entries")
    batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    array, labels = (batch.get(name.encode(), batch.get(name)) for name in ("data", "labels"))
    _, shape, dtype, fortran, pixels = array.state
    if dtype.args[0] not in ("u1", b"u1") or shape != (CIFAR10_BATCH, 3 * 32 * 32):
        raise ValueError(f"the data of a batch are not {CIFAR10_BATCH:,} rows of 3,072 bytes")
    if len(labels) != CIFAR10_BATCH or any(type(label) is not int or not 0 <= label < 10 for label in labels):
        raise ValueError(f"the labels of a batch are not {CIFAR10_BATCH:,} numbers from 0 to 9")
    array = np.frombuffer(pixels, np.uint8).reshape(shape, order="F" if fortran else "C")
    return array.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def _batches(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the batches of those names in CIFAR-10's archive or its unpacked folder."""
    most = CIFAR10_BATCH * 2 * 3 * 32 * 32 + (1 << 20)  # names and classes are far less than the pixels
    if path.is_dir():
        found = [name for name in names if (path / name).is_file() and (path / name).stat().st_size <= most]
        yield from ((name, _content(path / name, most)) for name in found)
        return
    left = CIFAR10_UNPACKED
    with gzip.open(path) as stream:

        def read(size: int) -> bytes:
            nonlocal left
            content = stream.read(min(size, left + 1))
            left -= len(content)
            if left < 0:
                raise ValueError(f"it holds more than {downloads.megabytes(CIFAR10_UNPACKED)}")
            return content

        for number in itertools.count():
            if not (block := read(tarfile.BLOCKSIZE)).strip(b"\0"):
                break
            if number == CIFAR10_MEMBERS:
                raise ValueError(f"it holds more than {CIFAR10_MEMBERS:,} members")
            # By the header alone: what the library does for long names and sparse files takes any memory.
            member = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
            name, empty = PurePosixPath(member.name).name, member.isdir() or member.isdev()
            size = 0 if empty or member.issym() or member.islnk() else member.size
            if size < 0:
                raise ValueError("a member has a size below 0")
            rest = -size % tarfile.BLOCKSIZE
            if name in names and member.isreg() and size <= most:
                content = read(size)
                if len(content) < size:
                    raise ValueError("it ends early")
                yield name, content
            else:
                rest += size
            while rest and (skipped := read(min(rest, downloads.CHUNK))):
                rest -= len(skipped)
        while read(downloads.CHUNK):  # to the end, where the checksum stands
            pass


def _content(path: Path, most: int) -> bytes:
    """The bytes of a file; raises ValueError for what is none, such as a pipe, which would never end, or is longer."""
    if not path.is_file():
        raise ValueError("it is no file")
    if (size := path.stat().st_size) > most:
        raise ValueError(f"it is longer than {downloads.megabytes(most)}")
    with path.open("rb") as file:
        return file.read(size)


def _cifar10(params: DatasetParams, wanted: list[str]) -> tuple[np.ndarray, np.ndarray]:
    path = downloads.locate_or_fetch(ARCHIVES["cifar10"][0], params.path)
    with _reading(path):
        contents = dict(tqdm(_batches(path, wanted), total=len(wanted), desc="cifar10", unit="batch"))
        if missing := sorted(set(wanted) - set(contents)):
            raise ValueError(f"it lacks {', '.join(missing)}")
        images, labels = zip(*(_batch(contents.pop(name)) for name in wanted), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def cifar10(params: DatasetParams) -> tuple[np.ndarray, np.ndarray]:
    """Small photographs (CIFAR-10, Krizhevsky 2009), the 50,000 training images in the order of the batches, as in EDM.

    Returns uint8 (50000, 3, 32, 32) and int64 (50000,), 0 to 9. Raises FdmError for an archive or unpacked folder
    that cannot be had, is damaged, or holds anything but arrays and plain values; nothing in it is run.
    """
    return _cifar10(params, CIFAR10_BATCHES)


def cifar10_held(params: DatasetParams) -> tuple[np.ndarray, np.ndarray]:
    """The 10,000 test images of CIFAR-10, as `cifar10` returns the others."""
    return _cifar10(params, CIFAR10_HELD)


def _idx(params: DatasetParams, archive: Archive, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers in a file of Fashion-MNIST, uint8 of that shape."""
    path = downloads.locate_or_fetch(archive, params.path)
    header = struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape)  # 8: unsigned bytes; then dimensions
    whole = len(header) + math.prod(shape)
    with _reading(path), gzip.open(path) as file:
        content = file.read(whole + 1)
        if content[: len(header)] != header or len(content) != whole:
            raise ValueError(f"it does not hold {whole:,} bytes that begin with the header {header.hex()}")
        if hashlib.sha256(content).hexdigest() != archive.content:
            raise ValueError("its content is not that of Fashion-MNIST")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _fashion_mnist(params: DatasetParams, archives: list[Archive], n: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, classes = archives
    labels = _idx(params, classes, (n,))
    images = np.zeros((n, 1, FASHION_SIDE, FASHION_SIDE), np.uint8)
    images[:, 0, 2:-2, 2:-2] = _idx(params, pixels, (n, 28, 28))
    side = min(params.resolution, FASHION_SIDE)
    blocks = images.reshape(n, 1, side, FASHION_SIDE // side, side, FASHION_SIDE // side)
    return np.rint(blocks.mean(axis=(3, 5))).astype(np.uint8), labels.astype(np.int64)


def fashion_mnist(params: DatasetParams) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of clothes (Fashion-MNIST, Xiao et al. 2017), the 60,000 training images, in 10 classes.

    Returns uint8 (60000, 1, 32, 32), the 28x28 pixels within two rows of zeros, and int64 (60000,), 0 to 9; at a lower
    resolution the means of as many pixels. Raises FdmError for files that cannot be had, are damaged, or are not the
    official ones.
    """
    return _fashion_mnist(params, ARCHIVES["fashion-mnist"][:2], FASHION_IMAGES)


def fashion_mnist_held(params: DatasetParams) -> tuple[np.ndarray, np.ndarray]:
    """The 10,000 test images of Fashion-MNIST, as `fashion_mnist` returns the others."""
    return _fashion_mnist(params, ARCHIVES["fashion-mnist"][2:], FASHION_HELD)


def _files(folder: Path) -> list[str]:
    """Files below a folder by their paths in it, without hidden ones; raises FdmError for a link to a folder."""

    def refuse(error: OSError) -> None:
        raise FdmError(f"{error.filename} cannot be read ({error.strerror}); mend that and rerun.") from error

    names = list[str]()
    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if linked := [name for name in folders if (Path(here) / name).is_symlink()]:
            raise FdmError(
                f"{Path(here) / linked[0]} is a link to a folder, which is not followed; put the folder there."
            )
        if len(names) > MOST_PICTURES:
            raise FdmError(f"{folder} holds more than {MOST_PICTURES:,} files, which are allowed.")
        names += [(Path(here) / name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return names


class _Bounded(io.FileIO):
    """A file of which no more than `most` bytes are read at once; ValueError for a reader that wants more."""

    most = DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        asked = left if size is None or size < 0 else min(size, left)
        if asked > self.most:
            raise ValueError(f"a part of it is longer than {downloads.megabytes(self.most)}")
        return super().read(asked) or b""


def _members(archive: zipfile.ZipFile) -> tuple[list[str], Callable[[str], bytes]]:
    """The names in a zip, and what reads one; that raises ValueError for one which is not as pictures are stored."""

    def read(name: str) -> bytes:
        about = archive.getinfo(name)
        if about.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others expand without a limit
            raise ValueError("it is compressed in another way than deflate")
        if about.file_size > PICTURE:
            raise ValueError(f"it is longer than {downloads.megabytes(PICTURE)}")
        with archive.open(about) as file:
            return file.read(PICTURE)

    names = archive.namelist()
    if len(set(names)) < len(names):
        raise ValueError("it holds two members of one name")
    return names, read


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The pictures in a folder or zip archive: names in the order of their characters, and what reads one by name.

    Raises FdmError for pictures of other kinds, which would be left out, and says which other files are.
    """
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            names, read = _files(path), lambda name: _content(path / name, PICTURE)
        else:
            with _reading(path):  # a file that is opened here, as ZipFile's count of its users is not safe with threads
                file = stack.enter_context(_Bounded(path))
                names, read = _members(zipfile.ZipFile(file))
                file.most = PICTURE
        found = sorted(name for name in names if name.lower().endswith(PICTURES))
        others = sorted(name for name in {*names} - {*found} if not name.endswith("/") and name != "labels.csv")
        if unread := [name for name in others if name.lower().endswith(UNREAD)]:
            told = f"{path} holds {len(unread):,} pictures of kinds that are not read, such as {unread[0]}"
            raise FdmError(f"{told}; make them PNG or JPEG, or take them away.")
        if len(found) > MOST_PICTURES:
            raise FdmError(f"{path} holds {len(found):,} pictures, and {MOST_PICTURES:,} are allowed.")
        if others:
            print(f"{path}: {len(others):,} files that are no pictures are left out: {others[0]}.", file=sys.stderr)
        yield found, read


def _decode(path: Path, names: list[str], read: Callable, prepare: Callable, side: int) -> np.ndarray:
    """Pictures as `prepare` turns them into RGB ones, with Lanczos to side x side: uint8 (N, 3, side, side).

    Raises FdmError naming the pictures that cannot be read, the first with the reason.
    """
    images, unread = np.empty((len(names), 3, side, side), np.uint8), dict[str, str]()
    alone = threading.Lock()

    def fill(n: int) -> None:
        try:
            with (
                Image.open(io.BytesIO(read(names[n])), formats=FORMATS) as picture,
                alone if picture.width * picture.height > LARGE else contextlib.nullcontext(),
            ):
                small = prepare(picture).resize((side, side), Image.Resampling.LANCZOS)
            images[n] = np.asarray(small).transpose(2, 0, 1)
        except UnidentifiedImageError:
            unread[names[n]] = "it is no picture"
        except Exception as error:  # decoders fail in many ways on a damaged picture; kept, it would keep the picture
            unread[names[n]] = str(error).rstrip(".")[:REASON] or type(error).__name__

    with warnings.catch_warnings(), ThreadPoolExecutor(DECODERS) as pool:  # PIL decodes without Python's lock
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for _ in tqdm(pool.map(fill, range(len(names))), total=len(names), desc=path.name, unit="img"):
            pass
    if unread:
        first, *others = sorted(unread)
        listed = ", ".join(others[:LISTED]) + (", ..." if len(others) > LISTED else "")
        more = f", nor can {len(others):,} more: {listed}; mend or replace them" if others else "; mend or replace it"
        raise FdmError(f"{first} in {path} cannot be read ({unread[first]}){more}.")
    return images


def _numbered(labels: list[str]) -> np.ndarray:
    """Classes by the sorted names of their labels, natural numbers first and by value: int64 (N,)."""

    width = max(map(len, labels))
    keys = {label: (0, label.zfill(width), label) if label.isdecimal() else (1, label, "") for label in labels}
    numbers = {label: number for number, label in enumerate(sorted(keys, key=keys.__getitem__))}
    return np.array([numbers[label] for label in labels], np.int64)


def _edm(
    path: Path, title: str, count: int, prepare: Callable, classes: set[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """The images of an archive or its unpacked folder, uint8 (count, 3, 64, 64), and the folder that each is in.

    Raises FdmError where the folders are not the `classes`.
    """
    with _opened(path) as (names, read):
        if len(names) != count:
            raise FdmError(f"{path} holds {len(names):,} images, where {title} has {count:,}; replace it.")
        folders = [PurePosixPath(name).parent.name for name in names]
        if classes and {*folders} != classes:
            told, due = (", ".join(sorted(each)[:LISTED]) for each in ({*folders}, classes))
            raise FdmError(f"{path} has the classes {told}, where {title} has {due}; replace it.")
        return _decode(path, names, read, prepare, 64), folders


def afhqv2(params: DatasetParams) -> tuple[np.ndarray, np.ndarray]:
    """Animal faces (AFHQ v2, Choi et al. 2020), training and test part, with Lanczos to 64x64; cat 0, dog 1, wild 2.

    Returns uint8 (15803, 3, 64, 64) and int64 (15803,). Raises FdmError for an archive or unpacked folder that cannot
    be had, is damaged, or holds another number of images or other classes.
    """
    path = downloads.locate_or_fetch(ARCHIVES["afhqv2"][0], params.path)
    images, classes = _edm(path, "AFHQ v2", AFHQV2_IMAGES, lambda picture: picture.convert("RGB"), AFHQV2_CLASSES)
    return images, _numbered(classes)


def ffhq(params: DatasetParams) -> tuple[np.ndarray, np.ndarray]:
    """Faces (FFHQ, Karras et al. 2019), 70,000 images of 1024x1024, with Lanczos to 64x64 as in EDM.

    Returns uint8 (70000, 3, 64, 64) and zeros, int64 (70000,). Raises FdmError where the zip or its unpacked folder is
    not here, is damaged, or holds others, such as the thumbnails; and for a profile that wants classes.
    """
    if params.conditional:
        raise FdmError("dataset.conditional: true needs classes, and FFHQ has none; set it to false.")
    path = downloads.locate_or_fetch(ARCHIVES["ffhq"][0], params.path)

    def face(picture: Image.Image) -> Image.Image:
        if picture.size != (FFHQ_SIDE, FFHQ_SIDE):
            raise ValueError(f"its size is {picture.width}x{picture.height} and not {FFHQ_SIDE}x{FFHQ_SIDE}")
        return picture.convert("RGB")

    return _edm(path, "FFHQ", FFHQ_IMAGES, face)[0], np.zeros(FFHQ_IMAGES, np.int64)


def _labels_in(path: Path, names: list[str]) -> list[str]:
    """The label of each picture by the folder's labels.csv; raises FdmError where it does not fit the pictures."""
    table = path / "labels.csv"
    labels, known = dict[str, str](), set(names)
    with _reading(table), io.StringIO(_content(table, TABLE).decode("utf-8-sig"), newline="") as file:
        rows = csv.DictReader(file, strict=True)
        if not {"file", "label"} <= set(rows.fieldnames or []):
            raise FdmError(f"{table} has no columns file and label in its first line; add it.")
        for row in rows:
            name, label = str(PurePosixPath(row["file"] or "")), (row["label"] or "").strip()
            wrong = {"no picture here": name not in known, "named twice": name in labels, "without label": not label}
            wrong[f"with a label of more than {LABEL} characters, or such as cannot be printed"] = (
                len(label) > LABEL or not label.isprintable()
            )
            if problems := [problem for problem, found in wrong.items() if found]:
                raise FdmError(
                    f"{table}, line {rows.line_num}: {repr(name[:LABEL])[1:-1]} is {problems[0]}; mend that and rerun."
                )
            labels[name] = label
    if left := sorted(known - set(labels)):
        raise FdmError(f"{table} does not name {left[0]} ({len(left):,} pictures in all); mend it and rerun.")
    return [labels[name] for name in names]


def _labels_by_folder(path: Path, names: list[str]) -> list[str]:
    """The subfolder of each picture, or nothing for each; raises FdmError where some are in none."""
    tops = [name.rpartition("/")[0].split("/")[0] for name in names]
    if "" in tops and any(tops):
        beside = f"{path} has pictures in subfolders and others beside them ({names[tops.index('')]})"
        raise FdmError(f"{beside}; put each into the subfolder of its class, or name the classes in labels.csv.")
    return tops


def upright_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any kind in 8 bits a channel, upright, on white; raises ValueError for numbers without a range."""
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PNG"):  # older PILs read a PNG's 16 bits as I
        raise ValueError("its pixels are floating-point or 32-bit numbers and not of 8 or 16 bits")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        picture = Image.fromarray(((np.asarray(picture).astype(np.int64) + 128) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def folder(params: DatasetParams) -> tuple[np.ndarray, np.ndarray]:
    """Anyone's pictures below dataset.path, cropped about the centre to squares, with Lanczos to the resolution.

    Returns uint8 (N, C, resolution, resolution), C = 1 where all are grey and else 3, sorted by their paths, and
    classes, int64 (N,): by labels.csv (columns file, label), else by subfolder, else zeros. Raises FdmError for a
    folder without enough pictures, a picture that cannot be read, and classes that are missing or do not fit.
    """
    path, resolution = root() / str(params.path), params.resolution
    if not path.is_dir():
        raise FdmError(f"dataset.path: there is no folder {path}; name the one that holds the pictures.")
    enlarged = []

    def square(picture: Image.Image) -> Image.Image:
        picture = upright_rgb(picture)
        side = min(picture.size)
        if side < resolution:
            enlarged.append(side)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        return picture.crop((left, top, left + side, top + side))

    with _opened(path) as (names, read):
        if len(names) < FEWEST:
            raise FdmError(f"{path} holds {len(names) or 'no'} pictures, where {FEWEST} are needed; add some.")
        labels = _numbered((_labels_in if (path / "labels.csv").exists() else _labels_by_folder)(path, names))
        if params.conditional and not labels.any():
            raise FdmError(f"dataset.conditional: true needs classes, and {path} has only one; set it to false.")
        images = _decode(path, names, read, square, resolution)
    if enlarged:
        of = f"{len(enlarged):,} of {len(names):,} pictures in {path}"
        print(f"{of} are smaller than {resolution}x{resolution} and are enlarged.", file=sys.stderr)
    grey = np.array_equal(images[:, 0], images[:, 1]) and np.array_equal(images[:, 0], images[:, 2])
    return images[:, :1] if grey else images, labels


def available(params: DatasetParams) -> str | None:
    """None where the images can be had on this machine, else what is missing and what will happen; asks no network."""
    if params.name == "folder" and not (root() / str(params.path)).is_dir():
        return f"there is no folder {root() / str(params.path)}, which dataset.path names"
    try:
        missing = [a for a in ARCHIVES.get(params.name, []) if downloads.find(a, params.path) is None]
    except FdmError as error:
        return str(error).rstrip(".")
    return ", and ".join(downloads.missing(archive) for archive in missing) or None
