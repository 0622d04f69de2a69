"""Files from the network into downloads/: with progress, resuming, and a checksum before they are used."""

import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from fdm.errors import FdmError
from fdm.files import root, sha256

ATTEMPTS = 5  # a connection that brought nothing new counts as one; bytes received start the count again
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
CHUNK = 1 << 18


def place(url: str) -> Path:
    """Where the file of that address is kept: downloads/<name> in the project's folder."""
    return root() / "downloads" / Path(unquote(urlsplit(url).path)).name


def _attempt(url: str, part: Path) -> int | None:
    """Append what is missing to `part`; returns the size of the whole file, or None where the server does not say."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
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
        if response.status != 206:
            have = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        name = part.name.removesuffix(".part")
        bar: tqdm = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name)
        with bar, part.open("ab" if have else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return total


def fetch(url: str, checksum: str | None = None) -> Path:
    """The file of that address in downloads/, fetched if it is not there yet.

    `checksum` is its SHA-256 in hexadecimal. A download that was cut goes on where it stopped, in this run or the
    next. Raises FdmError, saying what to download and where to put it, when the file cannot be had or is another.
    """
    path = place(url)
    by_hand = f"download {url} by other means and put it at {path}"
    part = path.with_name(f"{path.name}.part")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        attempt, before = 1, -1
        while True:
            reason = "the connection ended early"
            try:
                total = _attempt(url, part)
                size = part.stat().st_size if part.exists() else 0
                if total is None or size == total:
                    break
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise FdmError(f"{path.name} cannot be downloaded (HTTP {error.code}): {by_hand}.") from error
                reason = f"HTTP {error.code}"
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            size = part.stat().st_size if part.exists() else 0
            attempt, before = (1 if size > before else attempt + 1), size
            if attempt >= ATTEMPTS:
                raise FdmError(f"{path.name} cannot be downloaded ({reason}): {by_hand}, or rerun to go on.")
            time.sleep(PAUSE * 2 ** (attempt - 1))
        if checksum and sha256(part) != checksum:
            found = sha256(part)
            part.unlink()
            raise FdmError(f"{url} brought a file with SHA-256 {found}, where {checksum} is wanted; it is not kept.")
        part.replace(path)
    elif checksum and sha256(path) != checksum:
        raise FdmError(f"{path} has SHA-256 {sha256(path)}, where {checksum} is wanted; remove it, or {by_hand}.")
    return path
