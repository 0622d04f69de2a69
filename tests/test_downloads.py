"""Fetching: a local server that cuts connections, corrupts bytes, is busy, or knows nothing of ranges."""

import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from fdm import downloads
from fdm.errors import FdmError

CONTENT = bytes(range(256)) * 4000  # a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT under any name; the name says how."""

    log: list[tuple[str, str | None]]  # paths and ranges that were asked for

    def do_GET(self):
        name, wanted = Path(self.path).stem, self.headers.get("Range")
        self.log.append((name, wanted))
        tries = sum(path == name for path, _ in self.log)
        if name == "missing" or (name == "busy" and tries < 3) or name == "down":
            self.send_error(404 if name == "missing" else 503)
            return
        content = CONTENT[:-1] + b"!" if name == "corrupt" else CONTENT
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and name != "norange" else 0
        if first >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        if name == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            size = 200_000 if tries < 3 else len(content) - first  # a chunk that is promised whole and cut
            self.wfile.write(f"{len(content) - first:x}\r\n".encode() + content[first:][:size])
            self.wfile.write(b"\r\n0\r\n\r\n" if tries >= 3 else b"")
            return
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        body = content[first:]
        if name in ("cut", "norange") and tries < 4:
            body = body[:300_000]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(study, monkeypatch):
    """The address of a running server; downloads/ is in a study of its own."""
    monkeypatch.setattr(downloads, "PAUSE", 0.01)
    monkeypatch.setattr(Server, "log", [], raising=False)
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=instance.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{instance.server_port}"
    instance.shutdown()
    instance.server_close()


@pytest.mark.parametrize("name", ["whole", "cut", "norange", "busy", "chunked"])
def test_a_file_arrives_whole_whatever_the_connection_does(server, name):
    path = downloads.fetch(f"{server}/{name}.bin?download=true", SHA256)
    assert path == downloads.place(f"{server}/{name}.bin")
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == [f"{name}.bin"]
    ranges = [wanted for _, wanted in Server.log if wanted]
    assert ranges == {"cut": ["bytes=300000-", "bytes=600000-", "bytes=900000-"]}.get(name, ranges)
    asked = len(Server.log)
    assert downloads.fetch(f"{server}/{name}.bin", SHA256) == path
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
