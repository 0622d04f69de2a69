"""Files and words of others: parameters, archives, pictures and arguments that are damaged, hostile or huge.

Each is told in one sentence, within stated memory, and changes nothing."""

import contextlib
import errno
import gzip
import io
import json
import os
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fdm.__main__ import main
from fdm.data import archives, downloads
from fdm.files import FdmError, write_text
from fdm.params import DatasetParams
from fdm.study import profiles, provenance, runs
from fdm.tasks import own_pictures

from .scratch import ROOT
from .test_downloads import CONTENT, SHA256, Server, serving

PARAMS = (ROOT / "params.yaml").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that is taken for the study, with the default profile's parameters, as the working directory."""
    (tmp_path / "fdm").mkdir()
    for name in ("fdm/files.py", "dvc.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys, *argv: str) -> str:
    """The one sentence with which a command ends."""
    code = main([*argv])
    error = capsys.readouterr().err
    assert code == 1, (argv, error)
    *bars, sentence = error.splitlines()
    assert sentence.startswith("fdm: ") and not any("fdm: " in bar for bar in bars), error[:2000]
    return sentence


@contextlib.contextmanager
def within(megabytes: float):
    """Fails where more memory than that is taken by what Python knows of."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes * 1e6, f"{peak / 1e6:.0f} MB"


# Parameters


def bomb() -> str:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "\n".join(levels)


BAD_FILES = {
    "aliases that expand": (bomb(), "more than 100,000 values"),
    "an alias within itself": ("a: &a [*a]", "more than 100,000 values"),
    "depth": ("[" * 30, "deeper than 20 levels"),
    "great depth": ("[" * 100_000, "deeper than 20 levels"),
    "5,000 digits": (f"threads: {'7' * 5000}", "longer than 1,000 characters"),
    "100 digits": (f"threads: {'7' * 100}", "is read in two ways"),
    "hexadecimal": ("threads: 0x10", "'0x10' is read in two ways"),
    "octal": ("threads: 064", "'064' is read in two ways"),
    "sexagesimal": ("threads: 1:30", "'1:30' is read in two ways"),
    "underscores": ("threads: 1_000", "'1_000' is read in two ways"),
    "binary": ("threads: 0b11", "'0b11' is read in two ways"),
    "yes": ("keep_networks: yes", "'yes' is read in two ways"),
    "infinite": ("training: {lr_ramp_kimg: .inf}", "'.inf' is read in two ways, or in none; write a finite number"),
    "not a number": ("training: {lr: .nan}", "'.nan' is read in two ways"),
    "a date": ("profile: 2001-12-14", "'timestamp' is no kind of value"),
    "a tag of a date": ("profile: !!timestamp 3", "'timestamp' is no kind of value"),
    "a tag of a number": ("threads: !!int abc", "'abc' is read in two ways"),
    "a tag that constructs": ("threads: !!python/object/apply:os.system ['touch hacked']", "'python/object/apply:os."),
    "a tag of its own": ("threads: !mine 3", "'!mine' is no kind of value"),
    "a set": ("seeds: !!set {1, 2}", "'set' is no kind of value"),
    "binary data": ("profile: !!binary aGFja2Vk", "'binary' is no kind of value"),
    "a merge": ("<<: {threads: 3}", "'merge' is no kind of value"),
    "a list as a key": ("? [1, 2]\n: 3", "a key is a word"),
    "a key twice": ("threads: 1\n'threads': 1", "line 2: the key threads is given twice"),
    "too many values": ("seeds: [" + "1," * 120_000 + "1]", "more than 100,000 values"),
    "too long": ("# " + "x" * 1_100_000, "longer than 1,000,000 bytes"),
    "control characters": ('dataset: {path: "a\\0b"}', "cannot be printed"),
    "a long word": (f"profile: {'x' * 2000}", "longer than 1,000 characters"),
    "several documents": ("a: 1\n---\nb: 1", "not valid YAML"),
    "an unknown alias": ("a: *b", "not valid YAML"),
    "nothing": ("", "its content: None is not allowed"),
    "a word": ("word", "its content: 'word' is not allowed"),
    "a list": ("- a", "its content: ['a'] is not allowed"),
    "a number as a key": ("1: 2", "params.yaml: "),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_of_parameters_that_is_hostile_is_a_sentence(place, capsys, name):
    content, sentence = BAD_FILES[name]
    (place / "params.yaml").write_text(content, encoding="utf-8")
    error = told(capsys, "check")
    assert sentence in error
    assert len(error) < 1000
    assert not Path("hacked").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00", b"profile: \xc3", bytes(range(256)), b"a: \x07"])
def test_a_file_of_parameters_that_is_no_text_is_a_sentence(place, capsys, content):
    (place / "params.yaml").write_bytes(content)
    assert "not valid YAML" in told(capsys, "check")


def changed(place: Path, **sections) -> None:
    """The default profile with other values in some sections."""
    values = yaml.safe_load(PARAMS)
    for section, changes in sections.items():
        values[section] = values[section] | changes if isinstance(changes, dict) else changes
    (place / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


ETA = {"sampler": "ddim", "nfe": [5]}


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"evaluation": {"settings": [ETA | {"eta": [1]}]}}, "evaluation.settings.0.eta: [1] is not allowed"),
        ({"evaluation": {"settings": [ETA | {"eta": {"a": 1}}]}}, "evaluation.settings.0.eta: {'a': 1} is not allowed"),
        ({"evaluation": {"settings": [ETA | {"eta": None}]}}, "evaluation.settings.0.eta: None is not allowed"),
        ({"evaluation": {"settings": [ETA | {"eta": "y" * 500}]}}, "evaluation.settings.0.eta: 'yyy"),
        ({"evaluation": {"settings": [ETA | {"sampler": "y" * 500}]}}, "evaluation.settings: sampler 'yyy"),
        ({"training": {"batch": [1, 2]}}, "training.batch: [1, 2] is not allowed"),
        ({"training": {"lr": "1e-3"}}, "write 1.0e-3"),
        ({"training": {"lr": "1.5e3"}}, "write 1.5e+3"),
        ({"training": {"lr": "1e3"}}, "write 1.0e+3"),
        ({"training": {"lr_ramp_kimg": 1e9}}, "training.lr_ramp_kimg: 1000000000.0 is not allowed"),
        ({"training": {"z" * 500: 1}}, "is not a known key"),
        ({"seeds": [*range(3400)]}, "they have 20,400 runs with their seeds, and 20,000 are allowed"),
        ({"seeds": [0] * 3000}, "a seed is there twice"),
        ({"evaluation": {"systems": {"name": 1}}}, "evaluation.systems.samples is missing"),
        ({"dataset": [1]}, "dataset: [1] is not allowed"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_a_sentence_that_quotes_little(place, capsys, sections, sentence):
    changed(place, **sections)
    error = told(capsys, "check")
    assert sentence in error
    assert "yyy" * 30 not in error and "zzz" * 30 not in error and "0, " * 30 not in error


def test_an_unknown_key_is_told_with_those_of_its_own_table(place, capsys):
    systems = {"samples": 16, "nfe": [5], "systems": [{"name": "a", "sampler": "ddim", "against": []}] * 2, "more": 1}
    changed(place, evaluation={"systems": systems})
    assert "evaluation.systems.more is not a known key; allowed here are samples, nfe, systems" in told(capsys, "check")


def test_what_is_tuned_has_no_end_of_combinations():
    with pytest.raises(ValueError, match="more than 10,000 combinations"):
        profiles.combinations({}, {str(n): [1.0] * 10 for n in range(12)})
    assert len(profiles.combinations({"a": 1}, {"b": [1, 2], "c": [1, 2]})) == 4


def test_twenty_thousand_runs_are_checked(place):
    values = yaml.safe_load(PARAMS)
    values["seeds"] = [*range(3333)]
    (place / "params.yaml").write_text(yaml.safe_dump(values))
    assert len(profiles.load("params.yaml").runs) == 19_998


# Archives and pictures


def png(size=(8, 8), seed=0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.fixture
def folder(place):
    """A folder of enough pictures."""
    mine = place / "mine"
    (mine / "a").mkdir(parents=True)
    for n in range(32):
        (mine / "a" / f"{n:02}.png").write_bytes(png(seed=n))
    return mine


def read(path: Path, name="folder", resolution=8):
    return getattr(archives, name)(DatasetParams(name=name, resolution=resolution, conditional=False, path=str(path)))


def refused(path: Path, sentence: str, name="folder", resolution=8) -> None:
    with pytest.raises(FdmError, match=sentence) as error:
        read(path, name, resolution)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_pipe_a_device_and_links_to_them_are_no_pictures_and_nothing_waits(folder):
    read(folder)
    os.mkfifo(folder / "a" / "pipe.png")
    refused(folder, r"a/pipe\.png in .* cannot be read \(it is no file\)")
    (folder / "a" / "pipe.png").unlink()
    for target in ("/dev/zero", "/dev/tty", "/nowhere"):
        (folder / "a" / "link.png").symlink_to(target)
        refused(folder, r"a/link\.png in .* cannot be read \(it is no file\)")
        with pytest.raises(FdmError, match="is no picture that can be read"):
            own_pictures.read(folder / "a" / "link.png", 3)
        (folder / "a" / "link.png").unlink()
    os.mkfifo(folder / "labels.csv")
    refused(folder, r"labels\.csv is damaged \(it is no file\)")


def test_what_would_be_left_out_is_told(folder, capsys):
    (folder / "a" / "notes.txt").touch()
    read(folder)
    assert "1 files that are no pictures are left out: a/notes.txt." in capsys.readouterr().err
    (folder / "a" / "x.HEIC").touch()
    refused(folder, r"holds 1 pictures of kinds that are not read, such as a/x\.HEIC; make them PNG")
    (folder / "a" / "x.HEIC").unlink()
    (folder / "b").symlink_to(folder / "a")
    refused(folder, r"mine/b is a link to a folder, which is not followed")


def labels(folder: Path, label: str) -> None:
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    (folder / "labels.csv").write_text("file,label\n" + "\n".join(f"{name},{label}" for name in names), "utf-8")


@pytest.mark.parametrize("label", ["a\0b", "7" * 101, "\x1b[31m"])
def test_a_label_that_cannot_be_told_is_refused(folder, label):
    labels(folder, "7" * 100)
    read(folder)
    labels(folder, label)
    refused(folder, "line 2: a/00.png is with a label of more than 100 characters, or such as cannot be printed")
    (folder / "labels.csv").write_bytes(b"file,label\n" + b"\0" * 1000)
    refused(folder, "is no picture here")


def test_too_many_files_and_too_long_ones_are_refused(folder, monkeypatch):
    monkeypatch.setattr(archives, "PICTURE", 100)
    refused(folder, "is longer than 0.0 MB.*, nor can 31 more")
    monkeypatch.setattr(archives, "MOST_PICTURES", 31)
    refused(folder, "31 are allowed")


def test_large_pictures_are_decoded_one_at_a_time(folder, monkeypatch):
    content, running, most = png((120, 120)), [], []
    monkeypatch.setattr(archives, "LARGE", 10_000)
    for n in range(8):
        (folder / "a" / f"{n:02}.png").write_bytes(content)
    upright = archives.upright_rgb

    def counted(picture):
        if picture.width > 100:
            running.append(1)
            most.append(len(running))
        try:
            return upright(picture)
        finally:
            if picture.width > 100:
                running.pop()

    monkeypatch.setattr(archives, "upright_rgb", counted)
    monkeypatch.setattr(archives, "DECODERS", 8)
    read(folder)
    assert most == [1] * 8


def test_damaged_pictures_are_not_kept_in_memory(folder):
    for n in range(32):
        (folder / "a" / f"{n:02}.png").write_bytes(png()[:60] + b"\xff" * 4_000_000)
    with within(60):
        refused(folder, "nor can 31 more")


def test_a_picture_of_more_than_a_hundred_million_pixels_is_refused(folder):
    content = png()
    start = content.index(b"IHDR")
    header = b"IHDR" + struct.pack(">2I", 20_000, 20_000) + content[start + 12 : start + 17]
    huge = content[:start] + header + struct.pack(">I", __import__("zlib").crc32(header)) + content[start + 21 :]
    (folder / "a" / "huge.png").write_bytes(huge)
    refused(folder, r"huge\.png in .* cannot be read \(Image size .* decompression bomb")


def zipped(path: Path, members: list[tuple[str, bytes]], kind=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


FACES = [(f"afhq/train/{kind}/{n}.png", png(seed=n)) for n, kind in enumerate(("cat", "dog", "wild"))]


@pytest.fixture
def afhq(place, monkeypatch):
    """The path of an archive of AFHQ v2, which has three pictures."""
    monkeypatch.setattr(archives, "AFHQV2_IMAGES", 3)
    return zipped(place / "mine.zip", FACES)


def test_other_classes_than_those_of_afhq_are_refused(afhq, place):
    assert read(afhq, "afhqv2", 64)[1].tolist() == [0, 1, 2]
    for wrong in ("bird", "Cat", ""):
        path = zipped(place / "other.zip", [(FACES[0][0].replace("cat", wrong), FACES[0][1]), *FACES[1:]])
        refused(path, "has the classes .*dog, .*where AFHQ v2 has cat, dog, wild; replace it", "afhqv2", 64)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_expands_or_holds_a_name_twice_is_refused_within_memory(afhq, place, monkeypatch):
    refused(zipped(place / "twice.zip", [FACES[0], FACES[0], FACES[1]]), "two members of one name", "afhqv2", 64)
    monkeypatch.setattr(archives, "PICTURE", 1 << 20)
    for kind, sentence in (
        (zipfile.ZIP_DEFLATED, r"cat/0\.png in .* cannot be read \(it is longer than 1\.0 MB\)"),
        (zipfile.ZIP_BZIP2, "compressed in another way than deflate"),
        (zipfile.ZIP_LZMA, "compressed in another way than deflate"),
    ):
        path = zipped(place / "bomb.zip", [(FACES[0][0], bytes(1 << 24)), *FACES[1:]], kind)
        assert path.stat().st_size < 1 << 20
        with within(10):
            refused(path, sentence, "afhqv2", 64)


def test_a_zip_that_lies_about_a_size_is_refused(afhq, monkeypatch):
    monkeypatch.setattr(archives, "PICTURE", 1 << 20)
    path = zipped(afhq.with_name("bomb.zip"), [(FACES[0][0], bytes(1 << 24)), *FACES[1:]])
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 1 << 24), struct.pack("<I", 200)))
    with within(20):
        refused(path, "cannot be read", "afhqv2", 64)


def test_a_zip_of_endless_names_is_refused(afhq, monkeypatch):
    monkeypatch.setattr(archives._Bounded, "most", 1000)
    path = zipped(afhq.with_name("names.zip"), [(f"{n:05}{'x' * 100}.png", b"") for n in range(100)])
    refused(path, "is damaged .a part of it is longer than", "afhqv2", 64)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


HOSTILE = {
    "a long name that expands": (header("././@LongLink", 1 << 29, tarfile.GNUTYPE_LONGNAME), 1 << 29, "more than 10"),
    "a pax header that expands": (header("././@PaxHeader", 1 << 29, tarfile.XHDTYPE), 1 << 29, "more than 10.5 MB"),
    "a member that expands": (header("x", 1 << 29), 1 << 29, "more than 10.5 MB"),
    "a batch that is too long": (header("data_batch_1", 1 << 23), 1 << 23, "it lacks data_batch_1"),
    "a size below 0": (header("x", -512), 0, "a size below 0"),
    "members without an end": (header("x", 0) * 2000, 0, "more than 1,000 members"),
    "no tar": (b"x" * 2000, 0, "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tarball_is_refused_within_memory(place, monkeypatch, name):
    start, zeros, sentence = HOSTILE[name]
    monkeypatch.setattr(archives, "CIFAR10_UNPACKED", 10 << 20)
    monkeypatch.setattr(archives, "CIFAR10_BATCH", 4)
    path = place / "mine.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(start)
        for _ in range(min(zeros, 20 << 20) >> 20):  # as much as is read, and more
            file.write(bytes(1 << 20))
    with within(30):
        refused(path, sentence, "cifar10", 32)


def test_a_folder_of_batches_that_wait_or_are_too_long_is_refused(place, monkeypatch):
    monkeypatch.setattr(archives, "CIFAR10_BATCH", 4)
    mine = place / "mine"
    mine.mkdir()
    os.mkfifo(mine / "data_batch_1")
    (mine / "data_batch_2").write_bytes(bytes(2 << 20))
    refused(mine, "it lacks data_batch_1, data_batch_2", "cifar10", 32)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x80\x02Np2147483647\n.", "a table of 2147483647 entries"),
        (b"\x80\x02" + b"]0" * 2000 + b"N.", "far more than arrays, names and classes"),
    ],
)
def test_a_batch_that_would_take_any_memory_is_refused(place, monkeypatch, content, sentence):
    monkeypatch.setattr(archives, "CIFAR10_BATCH", 4)
    mine = place / "mine"
    mine.mkdir()
    for name in (*archives.CIFAR10_BATCHES, *archives.CIFAR10_HELD):
        (mine / name).write_bytes(content)
    refused(mine, sentence, "cifar10", 32)


def test_a_profile_is_not_written_for_pictures_that_cannot_be_read(folder, capsys):
    os.mkfifo(folder / "a" / "pipe.png")
    assert "it is no file" in told(capsys, "new-profile", "mine", "--images", str(folder))
    assert "is no user's folder" in told(capsys, "new-profile", "mine", "--images", "~nobody-of-this-name/x")
    assert not Path("profiles/mine").exists()


# Downloads


@pytest.fixture
def server(place, monkeypatch):
    with serving(monkeypatch) as address:
        yield address


def test_two_addresses_with_one_name_have_places_of_their_own(server, monkeypatch):
    monkeypatch.setattr(Server, "files", {}, raising=False)
    first = downloads.fetch(f"{server}/one/x.bin")
    with monkeypatch.context() as patch:
        patch.setattr(Server, "files", {"x.bin": b"another"})
        second = downloads.fetch(f"{server}/two/x.bin")
    assert first != second
    assert (first.read_bytes(), second.read_bytes()) == (CONTENT, b"another")
    asked = len(Server.log)
    assert downloads.fetch(f"{server}/one/x.bin") == first
    assert downloads.fetch(f"{server}/two/x.bin") == second
    assert len(Server.log) == asked


@pytest.mark.parametrize("version", ['"one"', "Thu, 01 Jan 2026 00:00:00 GMT"])
def test_a_file_that_changed_while_it_was_fetched_is_fetched_anew(server, monkeypatch, version):
    path = downloads.place(f"{server}/v/x.bin")
    path.parent.mkdir()
    for known in (version, '"other"', ""):
        path.unlink(missing_ok=True)
        path.with_name("x.bin.part").write_bytes(b"x" * 1000)
        downloads._origin(path).write_text(json.dumps({"url": f"{server}/v/x.bin", "version": known}))
        monkeypatch.setattr(Server, "version", version)
        Server.log.clear()
        assert downloads.fetch(f"{server}/v/x.bin") == path
        same = known == version
        assert path.read_bytes() == (b"x" * 1000 + CONTENT[1000:] if same else CONTENT)
        assert [asked for _, asked in Server.log] == ["bytes=1000-" if known else None]


def test_a_part_of_which_nothing_tells_is_not_glued_to_a_file_without_a_checksum(server):
    path = downloads.place(f"{server}/x.bin")
    path.parent.mkdir()
    path.with_name("x.bin.part").write_bytes(b"x" * 1000)
    assert downloads.fetch(f"{server}/x.bin").read_bytes() == CONTENT
    path.unlink()
    path.with_name("x.bin.part").write_bytes(CONTENT[:1000])
    downloads.fetch(f"{server}/x.bin", SHA256)
    assert Server.log[-1][1] == "bytes=1000-"


@pytest.mark.parametrize("end", ["..", "%00", "a%00b", "%2e%2e", ".hidden", "x" * 300])
def test_an_address_without_a_files_name_is_a_sentence(place, end):
    with pytest.raises(FdmError, match="does not end in the name of a file"):
        downloads.fetch(f"http://127.0.0.1:9/a/{end}")


# Words


WEEKLY = pytest.mark.weekly
ODD = ["", "-", "--", "-x", "--upload-pack=touch hacked", "x" * 300, "x" * 5000, "../..", "/", ".", "é\udcff", "a\0b",
       "HEAD; touch hacked", "$(touch hacked)", "@{99999999999999999999}", "table1[", "table1[]", "figure[x]",
       "table1[vp,fdm,100%,", "[" * 200, "0", "\x1b[31m"]  # fmt: skip


@pytest.mark.parametrize(
    "word", [*ODD[::3], *(pytest.param(word, marks=WEEKLY) for n, word in enumerate(ODD) if n % 3)]
)
@pytest.mark.parametrize(
    "command",
    ["explain {}", "verify --revision={}", "check --params={}", "train --run={}", "sample --run={} --out=x.png",
     "sample --profile={} --out=x.png", "sample --n=1 --nfe=1 --out={}", "sample --sampler={} --out=x.png",
     "sample --option={} --out=x.png", "restore {} --profile=digits", "restore x.png --mask={} --profile=digits",
     "restore x.png --task={} --profile=digits", "new-profile {} --images=/nowhere", "new-profile mine --images={}",
     "sample --n={} --out=x.png", "import-checkpoint {} --out=x", "{}"],
)  # fmt: skip
def test_any_word_ends_in_a_sentence(place, capsys, command, word):
    (place / "x.png").write_bytes(png())
    argv = [part.replace("{}", word) for part in command.split(" ")]
    try:
        code = main(argv)
    except SystemExit as error:  # argparse says how commands are used
        code = error.code
    error = capsys.readouterr().err
    assert code in (0, 1, 2), error
    assert "Traceback" not in error
    if code == 1:
        assert error.splitlines()[-1].startswith("fdm: ") and error.count("fdm: ") == 1, error[:3000]
    assert not Path("hacked").exists()


def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder_are_sentences(place, capsys):
    assert "There is no" in told(capsys, "check", "--params", ".")
    assert "There is no" in told(capsys, "check", "--params", "params.yaml/params.yaml")
    assert "there is no folder" in told(capsys, "new-profile", "mine", "--images", "params.yaml")
    (place / "net.safetensors").mkdir()
    told(capsys, "sample", "--run", "net.safetensors", "--out", "x.png")
    for content in (b"", b"x", bytes(1000), b"\xff" * 8 + b"{}", struct.pack("<Q", 2) + b"{}"):
        (place / "a.safetensors").write_bytes(content)
        told(capsys, "sample", "--run", "a.safetensors", "--out", "x.png")
    (place / "file").touch()
    (place / "x.png").write_bytes(png())
    told(capsys, "sample", "--n", "1", "--nfe", "1", "--out", "file/x.png")
    (place / "folder.png").mkdir()
    told(capsys, "sample", "--n", "1", "--nfe", "1", "--out", "folder.png")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_disk_that_does_not_take_a_file_is_a_sentence(place, capsys, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number), "place")

    monkeypatch.setattr(profiles, "load", refuse)
    assert f"fdm: place: {os.strerror(number)}; mend that" in told(capsys, "check")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(FdmError, match="could not be written"):
        write_text(place / "text", "new")
    assert not (place / "text").exists()
    assert [path.name for path in place.iterdir() if path.name.endswith(".part")] == []


def test_a_file_is_on_the_disk_before_it_has_its_name(place, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda opened: done.append(Path(f"/proc/self/fd/{opened}").readlink().name))
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda old, new: (done.append("renamed"), rename(old, new)))
    write_text(place / "sub" / "text", "new")
    assert done == [f".text.{os.getpid()}.part", "renamed", "sub"]


# What a run left


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"seconds": null}', "\0\0\0"])
def test_a_damaged_note_of_a_training_stops_no_record(place, content):
    profile = profiles.load("params.yaml")
    path = profile.logs("edm-fdm-0") / "finished.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert runs._seconds(profile, "edm-fdm-0") == 0.0
    path.write_text('{"seconds": 1.23}')
    assert runs._seconds(profile, "edm-fdm-0") == 1.2
    note = place / "note.json"
    note.write_text(content)
    provenance.record(note, "hash", 0.0, cell="x")
    assert json.loads(note.read_text())["content"] == "hash"
