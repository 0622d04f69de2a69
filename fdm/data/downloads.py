"""Files from the network into downloads/: with progress, resuming, and size and checksum before they are used."""

import errno
import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from fdm.files import FdmError, digest, root, sha256, write_json

ATTEMPTS = 5  # a connection that brought nothing new counts as one; bytes received start the count again
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
CHUNK = 1 << 18
NAME = re.compile(r"\w[-\w.+()=@, ]{0,199}")


class Archive(NamedTuple):
    """A published file: its address, what it is checked by, and what it is called when unpacked, if that is as good."""

    url: str  # a bare name where no program can download it
    size: int | None = None
    sha256: str | None = None
    content: str | None = None  # SHA-256 of what is in it, where copies are compressed in other ways
    unpacked: str | None = None
    source: str | None = None  # where people download it, in words


# Data set -> its files. Those of Fashion-MNIST and the font of emoji are found where Debian's packages put them, too.
ARCHIVES = {
    "cifar10": [
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            size=170_498_071,
            sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            unpacked="cifar-10-batches-py",
        )
    ],
    "fashion-mnist": [
        Archive(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images-idx3-ubyte.gz",
            size=26_421_880,
            sha256="3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            content="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        Archive(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-labels-idx1-ubyte.gz",
            size=29_515,
            sha256="a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            content="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        Archive(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-images-idx3-ubyte.gz",
            size=4_422_102,
            sha256="346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            content="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        Archive(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-labels-idx1-ubyte.gz",
            size=5_148,
            sha256="67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            content="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ],
    "emoji": [
        Archive(
            "NotoColorEmoji.ttf",
            size=10_980_856,
            sha256="e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec",
            source="(11 MB) by installing Debian's package fonts-noto-color-emoji, version 2.042",
        )
    ],
    "afhqv2": [Archive("https://www.dropbox.com/s/vkzjokiwof5h8w6/afhq_v2.zip?dl=1", unpacked="afhq_v2")],
    "ffhq": [
        Archive(
            "images1024x1024.zip",
            unpacked="images1024x1024",
            source="(89.1 GB) in a browser from the folder zips of the Google Drive that "
            "https://github.com/NVlabs/ffhq-dataset names",
        )
    ],
}
DEBIAN = (Path("/usr/share/datasets/fashion-mnist"), Path("/usr/share/fonts/truetype/noto"))


def place(url: str) -> Path:
    """Where the file of that address is kept: downloads/<name> in the project's folder.

    Where a file of another address with that name was downloaded, <name> has a hash before it. Raises FdmError for an
    address that does not end in a file's name.
    """
    name = Path(unquote(urlsplit(url).path)).name
    if not NAME.fullmatch(name):
        raise FdmError(f"{url!r} does not end in the name of a file.")
    path = root() / "downloads" / name
    return path if _told(path).get("url", url) == url else path.with_name(f"{digest(url)}-{name}")


def _origin(path: Path) -> Path:
    return path.with_name(f".{path.name}.origin")


def _told(path: Path) -> dict[str, str]:
    """The address of a downloaded file, and by what the server tells its versions apart; empty where nothing tells."""
    try:
        found = json.loads(_origin(path).read_text(encoding="utf-8"))
        return {key: found[key] for key in ("url", "version") if isinstance(found[key], str)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def megabytes(size: int) -> str:
    """A number of bytes for a sentence."""
    return f"{size / 1e6:,.1f} MB"


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _attempt(url: str, part: Path, size: int | None, checked: bool) -> int | None:
    """Append what is missing to `part`; returns the size of the whole file, or None where the server does not say.

    Only where the server knows that it is a part of the same version, or the whole is `checked` by its hash; else from
    the start. Raises FdmError before anything is written when the server says another size than `size`, or the disk is
    too small.
    """
    path = part.with_name(part.name.removesuffix(".part"))
    version, have = _told(path).get("version", ""), _size(part)
    if have and not (version or checked):
        part.unlink()
        have = 0
    headers = {"Range": f"bytes={have}-"} | ({"If-Range": version} if version else {}) if have else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the range begins behind the end: nothing is missing, or what there is is no part of it
            raise
        whole = error.headers.get("Content-Range", "").rpartition("/")[2]
        if whole != str(have):
            part.unlink()
        return int(whole) if whole.isdigit() else have
    with response:
        tag = response.headers.get("ETag", "")  # a weak one, W/"...", says nothing about bytes
        found = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
        if response.status != 206:
            have = 0  # the server sends the whole file
        elif version and found and found != version:
            part.unlink()
            raise http.client.HTTPException("the file has changed on the server")
        total = None if response.length is None else have + response.length
        name = path.name
        if total is not None:
            if size is not None and total != size:
                raise FdmError(
                    f"{url} brings {total:,} bytes, where {size:,} are wanted: "
                    f"download {name} by other means and put it at {part.with_name(name)}."
                )
            free = shutil.disk_usage(part.parent).free
            if total - have > free:
                raise FdmError(
                    f"{name} needs {megabytes(total - have)} of disk space, and {part.parent} has {megabytes(free)}; "
                    "make room and rerun."
                )
        if not have:
            write_json(_origin(path), {"url": url, "version": found})
        bar: tqdm = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name)
        with bar, part.open("ab" if have else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if size is not None and file.tell() > size:  # from a server that did not say how much it would send
                    return file.tell()
    return total


def _download(url: str, part: Path, size: int | None, checked: bool) -> None:
    """Fill `part` in as many attempts as it takes; raises FdmError when network, server or disk give up."""
    name = part.name.removesuffix(".part")
    by_hand = f"download {url} by other means and put it at {part.with_name(name)}"
    attempt, before = 1, -1
    while True:
        reason = "the connection ended early"
        try:
            total = _attempt(url, part, size, checked)
            if total is None or _size(part) == total:
                return
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise FdmError(f"{name} cannot be downloaded (HTTP {error.code}): {by_hand}.") from error
            reason = f"HTTP {error.code}"
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise FdmError(
                    f"The disk is full after {megabytes(_size(part))} of {name}, which are kept; "
                    "make room and rerun to go on."
                ) from error
            if isinstance(error, OSError) and error.filename:  # the network's errors are about no file
                raise FdmError(
                    f"{error.filename} cannot be written ({error.strerror}); mend that and rerun."
                ) from error
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        have = _size(part)
        attempt, before = (1 if have > before else attempt + 1), have
        if attempt >= ATTEMPTS:
            raise FdmError(f"{name} cannot be downloaded ({reason}): {by_hand}, or rerun to go on.")
        time.sleep(PAUSE * 2 ** (attempt - 1))


def _difference(path: Path, checksum: str | None, size: int | None) -> str | None:
    """How a file differs from what is wanted; its size is compared first, as that costs nothing."""
    if size is not None and path.stat().st_size != size:
        return f"{path.stat().st_size:,} bytes, where {size:,} are wanted"
    if checksum is not None and (found := sha256(path)) != checksum:
        return f"SHA-256 {found}, where {checksum} is wanted"
    return None


def fetch(url: str, checksum: str | None = None, size: int | None = None) -> Path:
    """The file of that address in downloads/, fetched if it is not there yet.

    `checksum` is its SHA-256 in hexadecimal, `size` its bytes. A download that was cut goes on where it stopped, in
    this run or the next, where the server or the checksum can tell that the file is the same. Raises FdmError, saying
    what to download and where to put it, when the file cannot be had or is another, and when the disk is full.
    """
    path = place(url)
    if path.exists() and not path.is_file():
        raise FdmError(f"{path} is not a file; move it away, and rerun to download {url}.")
    if path.exists():
        if wrong := _difference(path, checksum, size):
            raise FdmError(f"{path} has {wrong}; remove it, or download {url} by other means and put it at {path}.")
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FdmError(f"{path.parent} cannot be made ({error.strerror}); mend that and rerun.") from error
    part = path.with_name(f"{path.name}.part")
    _download(url, part, size, checksum is not None)
    if wrong := _difference(part, checksum, size):
        part.unlink()
        _origin(path).unlink(missing_ok=True)
        raise FdmError(f"{url} brought a file with {wrong}; it is not kept.")
    part.replace(path)
    return path


def find(archive: Archive, given: str | None = None) -> Path | None:
    """Where an archive or its unpacked folder lies: at `given`, else in downloads/ or in Debian's folder.

    `given` is relative to the project; raises FdmError where it is not None and has neither.
    """
    path = place(archive.url)
    places = [path, path.with_name(archive.unpacked or path.name), *(each / path.name for each in DEBIAN)]
    if given is not None:
        places = [root() / given / name for name in (path.name, archive.unpacked or path.name, "")]
    found = next((p for p in places if p.is_file() or (p.is_dir() and archive.unpacked)), None)
    if found is None and given is not None:
        raise FdmError(f"dataset.path: there is no {path.name} at {root() / given}; correct or remove dataset.path.")
    return found


def missing(archive: Archive) -> str:
    """What will happen for want of an archive, or has to be done, as a clause."""
    path = place(archive.url)
    if archive.source:
        folder = f" or its unpacked folder at {path.with_name(archive.unpacked)}" if archive.unpacked else ""
        return (
            f"download {path.name} {archive.source}, and put it at {path}{folder}, or set dataset.path to where it is"
        )
    size = f" ({megabytes(archive.size)})" if archive.size else ""
    return f"{path.name}{size} will be downloaded from {archive.url}"


def locate_or_fetch(archive: Archive, given: str | None = None) -> Path:
    """What `find` finds, checked if it is in downloads/, and fetched if it is nowhere.

    Raises FdmError as `find` and `fetch` do, and for what is nowhere and no program can download.
    """
    path = find(archive, given)
    if path is None and archive.source:
        raise FdmError(f"{place(archive.url).name} is not here: {missing(archive)}.")
    if path is None or (given is None and path == place(archive.url)):
        return fetch(archive.url, archive.sha256, archive.size)
    return path
