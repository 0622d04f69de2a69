"""Fetching: a local server that cuts connections, corrupts bytes, is busy, or knows nothing of ranges."""

import contextlib
import errno
import hashlib
import http.server
import io
import shutil
import threading
from pathlib import Path

import pytest

from fdm.data import downloads
from fdm.files import FdmError

CONTENT = bytes(range(256)) * 4000  # a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files` by their names, and CONTENT under any other; the first part of the path says how."""

    log: list[tuple[str, str | None]]  # paths and ranges that were asked for
    files: dict[str, bytes]
    version = ""  # of all files, an ETag or a date

    def do_GET(self):
        name, wanted = Path(Path(self.path).parts[1]).stem, self.headers.get("Range")
        content = self.files.get(Path(self.path).name, CONTENT)
        self.log.append((name, wanted))
        tries = sum(path == name for path, _ in self.log)
        if name == "missing" or (name == "busy" and tries < 3) or name == "down":
            self.send_error(404 if name == "missing" else 503)
            return
        if name == "page":
            content = b"<html>Sign in to this network</html>"
        if name == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.headers.get("If-Range", self.version) != self.version:
            wanted = None
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and name != "norange" else 0
        if first >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        if self.version:
            self.send_header("ETag" if self.version.startswith('"') else "Last-Modified", self.version)
        if name == "endless":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # when nobody takes more
                for _ in range(100):
                    self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
            return
        if self.path.endswith("?chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            size = (
                200_000 if tries < 3 and name == "chunked" else len(content) - first
            )  # a chunk that is promised whole and cut
            self.wfile.write(f"{len(content) - first:x}\r\n".encode() + content[first:][:size])
            self.wfile.write(b"\r\n0\r\n\r\n" if size == len(content) - first else b"")
            return
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        body = content[first:]
        if name in ("cut", "norange") and tries < 4:
            body = body[: len(content) // 4 + 1]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(monkeypatch, **files):
    """The address of a running server; no attempt waits long."""
    monkeypatch.setattr(downloads, "PAUSE", 0.01)
    monkeypatch.setattr(Server, "log", [], raising=False)
    monkeypatch.setattr(Server, "files", files, raising=False)
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=instance.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{instance.server_port}"
    finally:
        instance.shutdown()
        instance.server_close()


@pytest.fixture
def server(study, monkeypatch):
    """The address of a running server; downloads/ is in a study of its own."""
    with serving(monkeypatch) as address:
        yield address


@pytest.mark.parametrize("name", ["whole", "cut", "norange", "busy", "chunked"])
def test_a_file_arrives_whole_whatever_the_connection_does(server, name):
    query = "chunked" if name == "chunked" else "download=true"
    path = downloads.fetch(f"{server}/{name}.bin?{query}", SHA256, len(CONTENT))
    assert path == downloads.place(f"{server}/{name}.bin?{query}")
    assert path.read_bytes() == CONTENT
    assert sorted(p.name for p in path.parent.iterdir()) == [f".{name}.bin.origin", f"{name}.bin"]
    ranges = [wanted for _, wanted in Server.log if wanted]
    assert ranges == {"cut": ["bytes=256001-", "bytes=512002-", "bytes=768003-"]}.get(name, ranges)
    asked = len(Server.log)
    assert downloads.fetch(f"{server}/{name}.bin?{query}", SHA256) == path
    assert len(Server.log) == asked  # what is there is not fetched again


def test_a_download_goes_on_where_an_earlier_run_stopped(server):
    path = downloads.place(f"{server}/resumed.bin")
    path.parent.mkdir()
    for have in (1000, len(CONTENT)):
        path.unlink(missing_ok=True)
        path.with_name("resumed.bin.part").write_bytes(CONTENT[:have])
        downloads.fetch(f"{server}/resumed.bin", SHA256)
        assert path.read_bytes() == CONTENT
    assert Server.log == [("resumed", "bytes=1000-"), ("resumed", f"bytes={len(CONTENT)}-")]


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server):
    path = downloads.place(f"{server}/longer.bin")
    path.parent.mkdir()
    path.with_name("longer.bin.part").write_bytes(CONTENT + b"rest")
    assert downloads.fetch(f"{server}/longer.bin", SHA256).read_bytes() == CONTENT


def test_what_a_server_sends_beyond_the_size_is_not_taken(server, monkeypatch):
    taken = []
    monkeypatch.setattr(downloads.tqdm, "update", lambda bar, n: taken.append(n))
    with pytest.raises(FdmError, match=rf"bytes, where {len(CONTENT):,} are wanted; it is not kept"):
        downloads.fetch(f"{server}/endless.bin", SHA256, len(CONTENT))
    assert sum(taken) <= len(CONTENT) + downloads.CHUNK
    assert list(downloads.place("endless.bin").parent.iterdir()) == []


def test_a_corrupted_file_is_refused_and_not_kept(server):
    with pytest.raises(FdmError, match=f"where {SHA256} is wanted; it is not kept"):
        downloads.fetch(f"{server}/corrupt.bin", SHA256)
    assert list(downloads.place("corrupt.bin").parent.iterdir()) == []


def test_a_file_put_there_by_hand_is_checked_and_never_replaced(server):
    path = downloads.place(f"{server}/mine.bin")
    path.parent.mkdir()
    path.write_bytes(b"other")
    with pytest.raises(FdmError, match=r"mine\.bin has SHA-256 d9298a10d1b.*; remove it, or download"):
        downloads.fetch(f"{server}/mine.bin", SHA256)
    assert path.read_bytes() == b"other"
    assert downloads.fetch(f"{server}/mine.bin") == path  # without a checksum it is taken as it is


@pytest.mark.parametrize(("name", "reason"), [("missing", "HTTP 404"), ("down", "HTTP 503")])
def test_what_cannot_be_had_is_a_sentence_that_says_where_to_put_it(server, name, reason):
    with pytest.raises(
        FdmError, match=rf"{name}\.bin cannot be downloaded \({reason}\): download http.* put it at /.*"
    ):
        downloads.fetch(f"{server}/{name}.bin", SHA256)
    assert sum(path == name for path, _ in Server.log) == (1 if name == "missing" else downloads.ATTEMPTS)


def test_no_network_is_a_sentence(server):
    with pytest.raises(FdmError, match=r"x\.bin cannot be downloaded \(.*\): download http"):
        downloads.fetch("http://127.0.0.1:9/x.bin")


@pytest.mark.parametrize(("query", "kept"), [("", True), ("?chunked", False)])
def test_a_page_in_place_of_the_file_is_refused_by_its_size(server, query, kept):
    path = downloads.place(f"{server}/page.bin")
    path.parent.mkdir()
    part = path.with_name("page.bin.part")
    part.write_bytes(CONTENT[:10])
    with pytest.raises(FdmError, match=r"36 bytes, where 1,024,000 are wanted") as raised:
        downloads.fetch(f"{server}/page.bin{query}", SHA256, len(CONTENT))
    assert str(raised.value).count(". ") == 0
    assert not path.exists()
    assert part.exists() == kept  # where the server says its size, nothing is written


def test_a_file_put_there_by_hand_with_another_size_is_not_even_hashed(server, monkeypatch):
    path = downloads.place(f"{server}/mine.bin")
    path.parent.mkdir()
    path.write_bytes(b"other")
    monkeypatch.setattr(downloads, "sha256", lambda path: pytest.fail("hashed"))
    with pytest.raises(FdmError, match=r"mine\.bin has 5 bytes, where 1,024,000 are wanted; remove it, or download"):
        downloads.fetch(f"{server}/mine.bin", SHA256, len(CONTENT))
    assert path.read_bytes() == b"other"
    assert Server.log == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(server, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=len(CONTENT) - 1))
    with pytest.raises(FdmError, match=r"x\.bin needs 1\.0 MB of disk space, and .*/downloads has 1\.0 MB; make room"):
        downloads.fetch(f"{server}/x.bin")
    assert list(downloads.place("x.bin").parent.iterdir()) == []
    path = downloads.place("x.bin")
    path.with_name("x.bin.part").write_bytes(CONTENT[:1])  # what is there needs no room again
    assert downloads.fetch(f"{server}/x.bin", SHA256) == path


class FullDisk(io.FileIO):
    """A file on a disk with room for 600,000 bytes."""

    def write(self, content):
        if self.tell() + len(content) > 600_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


def test_a_disk_that_runs_full_is_one_sentence_and_the_part_is_kept(server, monkeypatch):
    with monkeypatch.context() as patch:
        usual = Path.open

        def full(path, mode="r", **text):
            return FullDisk(path, mode.replace("b", "")) if mode in ("ab", "wb") else usual(path, mode, **text)

        patch.setattr(Path, "open", full)
        with pytest.raises(FdmError, match=r"^The disk is full after 0\.5 MB of x\.bin, which are kept; make room"):
            downloads.fetch(f"{server}/x.bin", SHA256)
    assert len(Server.log) == 1  # the network is not blamed
    assert downloads.fetch(f"{server}/x.bin", SHA256).read_bytes() == CONTENT
    assert Server.log[1:] == [("x", f"bytes={2 * downloads.CHUNK}-")]


def test_a_place_that_cannot_be_written_is_a_sentence(server):
    path = downloads.place("x.bin")
    path.parent.write_text("a file where the folder should be")
    with pytest.raises(FdmError, match=r"/downloads cannot be made \("):
        downloads.fetch(f"{server}/x.bin")
    path.parent.unlink()
    path.with_name("x.bin.part").mkdir(parents=True)
    with pytest.raises(FdmError, match=r"x\.bin\.part cannot be written \(Is a directory\)"):
        downloads.fetch(f"{server}/x.bin")
    assert Server.log == []
    path.mkdir()
    with pytest.raises(FdmError, match=r"x\.bin is not a file; move it away"):
        downloads.fetch(f"{server}/x.bin")
