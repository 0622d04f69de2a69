"""Official archives in small, written here: fetched from a local server, put into downloads/ by hand, or named by path;
whole, damaged and hostile. And folders of anyone's pictures."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fdm.data import archives, downloads, sources
from fdm.files import FdmError
from fdm.params import DatasetParams

from .test_downloads import Server, serving

BATCH = 4  # images in each of CIFAR-10's small batches


def prepare(name, resolution, conditional=False, path=None):
    params = DatasetParams(name=name, resolution=resolution, conditional=conditional, path=path and str(path))
    return sources.prepare(params, Path("dataset.safetensors"))


def whole(dataset):
    """The data set with the images that are held out back in their places among the others."""
    n = len(dataset.images) + len(dataset.held)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    places = [order[: len(dataset.held)].sort().values, order[len(dataset.held) :].sort().values]
    back = torch.cat(places).argsort()
    images, labels = torch.cat([dataset.held, dataset.images]), torch.cat([dataset.held_labels, dataset.labels])
    return dataset._replace(images=images[back], labels=labels[back])


def available(name, path=None):
    return archives.available(DatasetParams(name=name, resolution=32, conditional=False, path=path and str(path)))


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def encoded(pixels, kind="PNG", **options):
    """An image file's bytes."""
    buffer = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def write(folder, files):
    """Write files, by their paths in a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarball(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=1)


def official(monkeypatch, name, contents):
    """Take these contents for a data set's official ones, by their sizes and checksums."""
    known = [
        archive._replace(
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            content=hashlib.sha256(gzip.decompress(content)).hexdigest() if name == "fashion-mnist" else None,
        )
        for archive, content in zip(downloads.ARCHIVES[name], contents, strict=True)
    ]
    monkeypatch.setitem(downloads.ARCHIVES, name, known)
    monkeypatch.setattr(downloads, "DEBIAN", ())


def place(name, number=0):
    """Where an archive of a data set belongs; its folder is made."""
    path = downloads.place(downloads.ARCHIVES[name][number].url)
    path.parent.mkdir(exist_ok=True)
    return path


def served(monkeypatch, name, address):
    """Take that server for the official one of a data set."""
    here = [a._replace(url=f"{address}/{downloads.place(a.url).name}") for a in downloads.ARCHIVES[name]]
    monkeypatch.setitem(downloads.ARCHIVES, name, here)


def damages(whole):
    """A file cut and flipped in several places."""
    cuts = [whole[:n] for n in (0, 1, 9, 20, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 1)]
    places = np.random.default_rng(1).integers(10, len(whole), 12)
    return cuts, [whole[:n] + bytes([whole[n] ^ (1 << n % 8)]) + whole[n + 1 :] for n in places]


# CIFAR-10


def text(value):
    """A string as Python 2 pickled it."""
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def python2_batch(pixels, labels, dtype=b"u1", shape=None, order=b"\x89"):
    """A batch as it was written in 2009: protocol 2, all strings of Python 2."""
    n, m = shape or (len(pixels), 3072)
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85" + text(b"b") + b"\x87Rq\x09"
    kind = b"cnumpy\ndtype\nq\x0a" + text(dtype) + b"K\x00K\x01\x87Rq\x0b(K\x03" + text(b"|") + b"NNN"
    kind += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01M" + struct.pack("<H", n) + b"M" + struct.pack("<H", m) + b"\x86" + kind + order
    names = b"".join(text(b"cat_%d.png" % n) for n in range(len(labels)))
    return (
        b"\x80\x02}q\x01(" + text(b"batch_label") + text(b"training batch 1 of 5")
        + text(b"labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        + text(b"data") + array + state + text(pixels.tobytes()) + b"tb"
        + text(b"filenames") + b"](" + names + b"eu."
    )  # fmt: skip


@pytest.fixture
def cifar10(study, monkeypatch):
    """The batches of a small CIFAR-10 with pixels and classes; its tarball is the official one."""
    monkeypatch.setattr(archives, "CIFAR10_BATCH", BATCH)
    pixels = random_images(5, BATCH, 3, 32, 32)
    labels = np.random.default_rng(2).integers(0, 10, (5, BATCH))
    labels[4, 0] = 9
    files = {f"data_batch_{n + 1}": python2_batch(pixels[n], labels[n]) for n in range(5)}
    test = python2_batch(random_images(BATCH, 3, 32, 32, seed=7), np.arange(BATCH))
    files = dict(reversed(files.items())) | {"test_batch": test, "readme.html": b"x"}
    official(monkeypatch, "cifar10", [tarball(files)])
    return files, pixels.reshape(-1, 3, 32, 32), labels.reshape(-1)


def assert_is(dataset, pixels, labels):
    np.testing.assert_array_equal(dataset.images, pixels)
    np.testing.assert_array_equal(dataset.labels, labels)


@pytest.mark.parametrize("way", ["downloads", "path to the tarball", "path to the folder", "path to its parent"])
def test_cifar10_is_prepared_batch_by_batch_from_wherever_it_lies(cifar10, way):
    files, pixels, labels = cifar10
    path = None
    if way == "downloads":
        place("cifar10").write_bytes(tarball(files))
    elif way == "path to the tarball":
        path = "mine.tgz"
        Path(path).write_bytes(tarball(files))
    else:
        path = write(Path("unpacked/cifar-10-batches-py"), files)
        path = path.parent if way == "path to its parent" else path
    assert available("cifar10", path) is None
    dataset = prepare("cifar10", 32, True, path)
    assert_is(dataset, pixels, labels)
    np.testing.assert_array_equal(dataset.held, random_images(BATCH, 3, 32, 32, seed=7))
    assert dataset.held_labels.tolist() == [*range(BATCH)]
    assert dataset.classes == 10


def test_batches_that_newer_programs_wrote_are_the_same(cifar10):
    files, pixels, labels = cifar10
    for n, order in enumerate("CFCFC"):
        block = np.array(pixels[n * BATCH : (n + 1) * BATCH].reshape(BATCH, -1), order=order)
        batch = {"data": block, "labels": labels[n * BATCH : (n + 1) * BATCH].tolist()}
        files[f"data_batch_{n + 1}"] = pickle.dumps(batch, protocol=4)
    assert_is(prepare("cifar10", 32, path=write(Path("mine"), files)), pixels, labels)


@pytest.mark.parametrize("way", ["whole", "cut"])
def test_cifar10_is_fetched_from_its_address(cifar10, monkeypatch, way, capsys):
    files, pixels, labels = cifar10
    with serving(monkeypatch, **{"cifar-10-python.tar.gz": tarball(files)}) as address:
        served(monkeypatch, "cifar10", f"{address}/{way}")
        assert available("cifar10") == (
            f"cifar-10-python.tar.gz (0.1 MB) will be downloaded from {address}/{way}/cifar-10-python.tar.gz"
        )
        assert_is(prepare("cifar10", 32), pixels, labels)
        assert len(Server.log) == (1 if way == "whole" else 4)
    assert available("cifar10") is None
    assert "cifar-10-python.tar.gz: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("way", "sentence"),
    [("corrupt", "SHA-256 .* it is not kept"), ("page", "36 bytes, where"), ("missing", "HTTP 404.*put it at")],
)
@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_an_archive_that_does_not_arrive_is_a_sentence_and_nothing_is_kept(request, monkeypatch, name, way, sentence):
    contents = request.getfixturevalue(name.replace("-", "_"))[0]
    files = {"cifar-10-python.tar.gz": tarball(contents)} if name == "cifar10" else contents
    with serving(monkeypatch, **files) as address:
        served(monkeypatch, name, f"{address}/{way}")
        with pytest.raises(FdmError, match=sentence):
            prepare(name, 32)
        assert Server.log
    assert not place(name).exists()
    assert not Path("dataset.safetensors").exists()


def test_a_tarball_that_is_damaged_anywhere_is_a_sentence(cifar10):
    path = Path("mine.tar.gz")
    cuts, flips = damages(tarball(cifar10[0]))
    for content in cuts + flips:
        path.write_bytes(content)
        with pytest.raises(FdmError, match=r"mine\.tar\.gz is damaged \(.+\); remove it and rerun, or put"):
            prepare("cifar10", 32, path=path)
        assert path.read_bytes() == content
    place("cifar10").write_bytes(cuts[-1])
    with pytest.raises(FdmError, match=r"bytes, where .* are wanted; remove it, or download"):
        prepare("cifar10", 32)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_a_batch_that_is_damaged_is_a_sentence_or_reads_as_something(cifar10):
    """A folder has no checksum: a flipped pixel is not seen, and all else must be told."""
    files = cifar10[0]
    folder = write(Path("mine"), files)
    whole = files["data_batch_2"]
    start = whole.index(b"labels")
    headers = range(start, start + 120, 3)
    refused = 0
    for content in [whole[:n] for n in (0, 5, 200, len(whole) - 1)] + [
        whole[:n] + bytes([whole[n] ^ 57]) + whole[n + 1 :]
        for n in headers  # 57: a class becomes an index of the reader's table
    ]:
        (folder / "data_batch_2").write_bytes(content)
        try:
            prepare("cifar10", 32, path=folder)
        except FdmError as error:
            refused += 1
            assert "mine is damaged (" in str(error)
    assert refused > 30


class Evil:
    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (pickle.dumps(Evil()), r"it holds the name posix\.system, which no batch"),
        (pickle.dumps({"data": Evil(), "labels": [0] * BATCH}, protocol=0), r"posix\.system"),
        (b"\x80\x02cbuiltins\neval\nX\x12\x00\x00\x00open('hacked','w')\x85R.", r"builtins\.eval"),
        (b"\x80\x02c__builtin__\neval\nX\x12\x00\x00\x00open('hacked','w')\x85R.", r"__builtin__\.eval"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.", r"numpy\.ndarray\.dumps"),
        (b"\x80\x02cnumpy\nload\nU\x01x\x85R.", r"numpy\.load"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "a table of 2147483647 entries"),
        (python2_batch(random_images(BATCH, 3072), [1] * BATCH, dtype=b"O8"), "are not 4 rows of 3,072 bytes"),
        (python2_batch(random_images(BATCH, 3072), [1] * BATCH, dtype=b"i1"), "are not 4 rows"),
        (python2_batch(random_images(BATCH, 3072), [1] * BATCH, shape=(BATCH * 2, 1536)), "are not 4 rows"),
        (python2_batch(random_images(BATCH - 1, 3072), [1] * BATCH, shape=(BATCH, 3072)), "is damaged"),
        (python2_batch(random_images(BATCH, 3072), [1] * 3 + [10]), "are not 4 numbers from 0 to 9"),
        (python2_batch(random_images(BATCH, 3072), [1] * 3), "are not 4 numbers"),
        (pickle.dumps({"data": random_images(BATCH, 3072), "labels": [0.5] * BATCH}, protocol=4), "are not 4 numbers"),
        (pickle.dumps({"data": np.array([[None] * 3072] * BATCH), "labels": [0] * BATCH}, protocol=4), "far more"),
        (pickle.dumps({"labels": [0] * BATCH}), "is damaged"),
        (pickle.dumps([1, 2]), "is damaged"),
    ],
)
def test_a_batch_that_holds_anything_else_is_refused_and_nothing_is_run(cifar10, batch, sentence):
    Path("mine.tar.gz").write_bytes(tarball(cifar10[0] | {"data_batch_3": batch}))
    with pytest.raises(FdmError, match=sentence):
        prepare("cifar10", 32, path="mine.tar.gz")
    assert not Path("hacked").exists()


def test_a_tarball_without_a_batch_or_with_a_huge_one_names_it(cifar10):
    files = cifar10[0]
    for lost in ("data_batch_3", "test_batch"):
        for strange in (None, bytes(3 << 20)):
            changed = {name: strange if name == lost else content for name, content in files.items()}
            Path("mine.tar.gz").write_bytes(tarball({name: c for name, c in changed.items() if c is not None}))
            with pytest.raises(FdmError, match=f"it lacks {lost}"):
                prepare("cifar10", 32, path="mine.tar.gz")


# Fashion-MNIST


@pytest.fixture
def fashion_mnist(study, monkeypatch):
    """The files of a small Fashion-MNIST by their names, with pixels and classes; they are the official ones.

    Pixels and classes are of 20 training images and then of 8 test images.
    """
    monkeypatch.setattr(archives, "FASHION_IMAGES", 20)
    monkeypatch.setattr(archives, "FASHION_HELD", 8)
    pixels, labels = random_images(28, 28, 28), np.arange(28) % 10
    contents = [
        content
        for part in (slice(0, 20), slice(20, 28))
        for content in (
            struct.pack(">4I", 2051, len(pixels[part]), 28, 28) + pixels[part].tobytes(),
            struct.pack(">2I", 2049, len(pixels[part])) + labels[part].astype(np.uint8).tobytes(),
        )
    ]
    compressed = [gzip.compress(content, mtime=1) for content in contents]
    official(monkeypatch, "fashion-mnist", compressed)
    names = (f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    return dict(zip(names, compressed, strict=True)), pixels, labels


@pytest.mark.parametrize("way", ["downloads", "path", "Debian", "network", "cut"])
def test_fashion_mnist_is_prepared_with_a_black_border_from_wherever_it_lies(fashion_mnist, monkeypatch, way):
    files, pixels, labels = fashion_mnist
    recompressed = {name: gzip.compress(gzip.decompress(content), 1, mtime=2) for name, content in files.items()}
    with serving(monkeypatch, **files) as address:
        served(monkeypatch, "fashion-mnist", f"{address}/{way}")
        clause = available("fashion-mnist")
        assert clause.startswith("train-images-idx3-ubyte.gz (0.0 MB) will be downloaded from http")
        for name in ("train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
            assert f", and {name}-ubyte.gz" in clause
        path = None
        if way == "downloads":
            write(place("fashion-mnist").parent, files)
        elif way == "path":
            path = write(Path("mine"), recompressed)
        elif way == "Debian":
            monkeypatch.setattr(downloads, "DEBIAN", (write(Path("debian").absolute(), recompressed),))
        network = way in ("network", "cut")
        assert (available("fashion-mnist", path) is None) == (not network)
        dataset = prepare("fashion-mnist", 32, True, path)
        assert bool(Server.log) == network
    images = torch.cat([dataset.images, dataset.held])
    assert len(dataset.images) == 20
    assert tuple(images.shape) == (28, 1, 32, 32)
    np.testing.assert_array_equal(images[:, 0, 2:30, 2:30], pixels)
    assert images.long().sum() == pixels.astype(np.int64).sum()  # the border is 0
    np.testing.assert_array_equal(torch.cat([dataset.labels, dataset.held_labels]), labels)


@pytest.mark.parametrize("resolution", [16, 8])
def test_at_a_lower_resolution_a_pixel_is_the_mean_of_as_many(fashion_mnist, resolution):
    files, pixels, labels = fashion_mnist
    dataset = prepare("fashion-mnist", resolution, True, write(Path("mine"), files))
    bordered, times = np.pad(pixels, ((0, 0), (2, 2), (2, 2))).astype(float), 32 // resolution
    images = torch.cat([dataset.images, dataset.held])
    assert tuple(images.shape) == (28, 1, resolution, resolution)
    for row in range(resolution):
        for column in range(resolution):
            block = bordered[:, row * times :, column * times :][:, :times, :times]
            off = images[:, 0, row, column].numpy() - block.mean(axis=(1, 2))
            assert np.abs(off).max() <= 0.5  # a rounding
    np.testing.assert_array_equal(torch.cat([dataset.labels, dataset.held_labels]), labels)


def test_an_idx_file_that_is_damaged_anywhere_is_a_sentence(fashion_mnist):
    files, _, _ = fashion_mnist
    folder = write(Path("mine"), files)
    for name, whole in files.items():
        cuts, flips = damages(whole)
        content = gzip.decompress(whole)
        others = [
            content[:1] + b"\x01" + content[2:],
            content[:-1],
            content + b"\0",
            content[:7] + b"\x15" + content[8:],
        ]
        for damaged in cuts + flips + [gzip.compress(other) for other in [*others, content[::-1]]] + [content]:
            (folder / name).write_bytes(damaged)
            with pytest.raises(FdmError, match=rf"{name} is damaged \(.+\); remove it"):
                prepare("fashion-mnist", 32, path=folder)
        for other in others:
            (folder / name).write_bytes(gzip.compress(other))
            with pytest.raises(FdmError, match=r"it does not hold [\d,]+ bytes that begin with the header 0000080"):
                prepare("fashion-mnist", 32, path=folder)
        (folder / name).write_bytes(gzip.compress(content[:-1] + bytes([content[-1] ^ 1])))
        with pytest.raises(FdmError, match="its content is not that of Fashion-MNIST"):
            prepare("fashion-mnist", 32, path=folder)
        (folder / name).unlink()
        assert available("fashion-mnist", folder).startswith(f"dataset.path: there is no {name} at")
        with pytest.raises(FdmError, match=rf"dataset\.path: there is no {name} at .*mine; correct or remove"):
            prepare("fashion-mnist", 32, path=folder)
        (folder / name).write_bytes(whole)
    assert prepare("fashion-mnist", 32, path=folder).classes == 10


def test_the_official_files_are_those_of_the_debian_package():
    if not downloads.DEBIAN[0].is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    for archive in downloads.ARCHIVES["fashion-mnist"]:
        packed = (downloads.DEBIAN[0] / Path(archive.url).name).read_bytes()
        assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == archive.content
        # Debian left out the name and the time; with them, 31 August 2017, the file is the official one.
        name = Path(archive.url).stem.encode() + b"\0"
        packed_at = 1504176606 if name.startswith(b"train") else 1504176627
        original = b"\x1f\x8b\x08\x08" + struct.pack("<I", packed_at) + b"\x00\x03" + name + packed[10:]
        assert len(original) == archive.size
        assert hashlib.sha256(original).hexdigest() == archive.sha256


# AFHQ v2 and FFHQ


@pytest.fixture
def afhqv2(study, monkeypatch):
    """Pictures in the format of AFHQ v2: folders train and test, classes within, 512x512."""
    monkeypatch.setattr(archives, "AFHQV2_IMAGES", 4)
    names = ("train/wild/b.png", "train/cat/a.png", "test/dog/c.png", "test/cat/d.png")
    return {
        name: encoded(random_images(64, 64, 3, seed=n).repeat(8, 0).repeat(8, 1)) for n, name in enumerate(names)
    } | {"README.txt": b"not a picture", "__MACOSX/readme": b"x"}


def small(content):
    """A picture as EDM prepares it."""
    return np.asarray(Image.open(io.BytesIO(content)).resize((64, 64), Image.Resampling.LANCZOS)).transpose(2, 0, 1)


@pytest.mark.parametrize("way", ["downloads", "path to the zip", "path to the folder", "network"])
def test_afhqv2_is_prepared_in_order_with_its_classes(afhqv2, way, monkeypatch):
    path = None
    with serving(monkeypatch, **{"afhq_v2.zip": zipped(afhqv2)}) as address:
        assert available("afhqv2") == "afhq_v2.zip will be downloaded from " + downloads.ARCHIVES["afhqv2"][0].url
        if way == "network":
            served(monkeypatch, "afhqv2", address)
        elif way == "path to the folder":
            path = write(Path("unpacked"), afhqv2)
        else:
            path = Path("mine.zip") if way == "path to the zip" else place("afhqv2")
            path.write_bytes(zipped(afhqv2))
        dataset = prepare("afhqv2", 64, path=None if way == "downloads" else path)
        assert len(Server.log) == (way == "network")
    names = sorted(name for name in afhqv2 if name.endswith(".png"))
    classes = [["cat", "dog", "wild"].index(name.split("/")[1]) for name in names]
    assert_is(dataset, np.stack([small(afhqv2[name]) for name in names]), classes)
    assert dataset.classes == 3


def test_a_zip_that_is_damaged_or_incomplete_is_a_sentence(afhqv2, monkeypatch):
    path = place("afhqv2")
    whole = zipped(afhqv2)
    cuts, flips = damages(whole)
    path.write_bytes(whole)
    monkeypatch.setattr(archives, "AFHQV2_IMAGES", 15_803)
    with pytest.raises(FdmError, match="holds 4 images, where AFHQ v2 has 15,803"):
        prepare("afhqv2", 64)
    monkeypatch.setattr(archives, "AFHQV2_IMAGES", 4)
    data_of_first = 30 + len("train/wild/b.png")
    broken = whole[:data_of_first] + b"\xff" * 20 + whole[data_of_first + 20 :]  # no deflate stream
    directory = whole.index(b"PK\x01\x02")
    listing = [whole[:n] + bytes([whole[n] ^ 255]) + whole[n + 1 :] for n in range(directory, directory + 62, 2)]
    refused = 0
    for content in [*cuts, *flips, broken, *listing]:
        path.write_bytes(content)
        try:
            prepare("afhqv2", 64)
        except FdmError as error:
            refused += 1
            assert any(
                words in str(error)
                for words in ("zip is damaged (", "cannot be read (", "holds 3 images", "has the classes")
            )
        else:
            assert content in listing + flips  # a date, say, which no reader needs
    assert refused >= len(cuts) + 1 + 15


@pytest.fixture
def ffhq(study, monkeypatch):
    """Pictures in the format of FFHQ, 1024x1024 in folders of a thousand."""
    monkeypatch.setattr(archives, "FFHQ_IMAGES", 3)
    names = ("01000/01000.png", "00000/00000.png", "00000/00001.png")
    return {
        name: encoded(random_images(64, 64, 3, seed=n).repeat(16, 0).repeat(16, 1), compress_level=1)
        for n, name in enumerate(names)
    } | {"LICENSE.txt": b"no picture"}


@pytest.mark.parametrize("way", ["zip in downloads", "folder in downloads", "path to the zip", "path to the folder"])
def test_ffhq_is_prepared_in_order_from_wherever_it_lies(ffhq, way):
    path = None if "downloads" in way else Path("mine.zip" if "zip" in way else "mine")
    target = path or (place("ffhq") if "zip" in way else place("ffhq").with_suffix(""))
    if "zip" in way:
        target.write_bytes(zipped({f"images1024x1024/{name}": content for name, content in ffhq.items()}))
    else:
        write(target, ffhq)
    assert available("ffhq", path) is None
    dataset = prepare("ffhq", 64, path=path)
    assert_is(dataset, np.stack([small(ffhq[name]) for name in sorted(ffhq)[:3]]), [0, 0, 0])


def test_ffhq_that_is_not_here_or_is_another_says_what_to_do(ffhq, monkeypatch):
    where = r"download images1024x1024\.zip \(89\.1 GB\) .*NVlabs/ffhq-dataset names, and put it at /.*downloads/images"
    with pytest.raises(FdmError, match=rf"images1024x1024\.zip is not here: {where}"):
        prepare("ffhq", 64)
    assert available("ffhq").startswith("download images1024x1024.zip (89.1 GB)")
    with pytest.raises(FdmError, match=r"there is no images1024x1024\.zip at .*nowhere"):
        prepare("ffhq", 64, path="nowhere")
    folder = write(Path("mine"), ffhq)
    with pytest.raises(FdmError, match="needs classes, and FFHQ has none"):
        prepare("ffhq", 64, True, folder)
    (folder / "00000/00001.png").write_bytes(encoded(random_images(128, 128, 3)))
    with pytest.raises(
        FdmError, match=r"00000/00001\.png in .*mine cannot be read \(its size is 128x128 and not 1024x"
    ):
        prepare("ffhq", 64, path=folder)
    (folder / "00000/00001.png").unlink()
    with pytest.raises(FdmError, match="holds 2 images, where FFHQ has 3"):
        prepare("ffhq", 64, path=folder)


# Anyone's pictures


def grey_pictures(n=32, prefix=""):
    return {f"{prefix}{i:02}.png": encoded(random_images(8, 8, seed=i)) for i in range(n)}


def colourful(**options):
    return encoded(random_images(8, 8, 3), **options)


def of_folder(files, name="mine", **options):
    return whole(prepare("folder", 8, path=write(Path(name), files), **options))


def test_pictures_in_a_folder_are_prepared_in_the_order_of_their_paths(study, capsys):
    files = grey_pictures(30) | {"Z.PNG": encoded(random_images(8, 8, seed=90)), "é.png": encoded(random_images(8, 8))}
    shuffled = dict(reversed(files.items()))
    hidden = {".cache/a.png": b"x", ".b.png": b"x", "notes.txt": b"x"}
    dataset = of_folder(shuffled | hidden)
    names = sorted(files)
    assert names[-2:] == ["Z.PNG", "é.png"]
    expected = [np.asarray(Image.open(io.BytesIO(files[name])))[None] for name in names]
    assert_is(dataset, np.stack(expected), [0] * 32)
    assert dataset.classes == 1
    assert "smaller" not in capsys.readouterr().err


@pytest.mark.parametrize("colour", [(10, 10, 200), (10, 200, 10), (200, 10, 10)])
def test_one_picture_in_colour_makes_all_of_them_rgb(study, colour):
    dataset = of_folder(grey_pictures() | {"zz.bmp": encoded(flat(colour), "BMP")})
    assert tuple(dataset.images.shape) == (33, 3, 8, 8)
    assert (dataset.images[-1].permute(1, 2, 0) == dataset.images.new_tensor(colour)).all()
    assert (dataset.images[0] == dataset.images[0][:1]).all()


def flat(colour, mode="RGB", size=(8, 8)):
    return Image.new(mode, size, colour)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


HALVES = np.concatenate([np.zeros((8, 4, 3)), np.full((8, 4, 3), 255)], 1).astype(np.uint8)  # black, white
SIXTEEN = np.tile(np.array([0, 257, 128, 129, 25_700, 65_535, 40_000, 513], np.uint16), (8, 1))
KINDS = {
    "lossless.webp": (encoded(random_images(8, 8, 3), "WEBP", lossless=True), random_images(8, 8, 3)),
    "plain.tif": (encoded(random_images(8, 8, 3), "TIFF"), random_images(8, 8, 3)),
    "plain.jpg": (encoded(flat("blue"), "JPEG", quality=95), [0, 0, 254]),
    "cmyk.jpeg": (encoded(flat((0, 255, 255, 0), "CMYK"), "JPEG", quality=95), [254, 0, 0]),
    "first frame.gif": (encoded(flat("red"), "GIF", save_all=True, append_images=[flat("blue")]), [255, 0, 0]),
    "palette.png": (encoded(flat("lime").convert("P")), [0, 255, 0]),
    "transparent.png": (encoded(flat((255, 0, 0, 0), "RGBA")), [255, 255, 255]),
    "half.png": (encoded(flat((255, 0, 0, 128), "RGBA")), [255, 127, 127]),
    "transparent palette.gif": (encoded(flat(0, "P"), "GIF", transparency=0), [255, 255, 255]),
    "grey and alpha.png": (encoded(flat((10, 0), "LA")), [255, 255, 255]),
    "colour key.png": (encoded(flat("red"), transparency=(255, 0, 0)), [255, 255, 255]),
    "upside down.png": (encoded(HALVES, exif=exif(3)), HALVES[:, ::-1]),
    "turned.png": (encoded(HALVES, exif=exif(6)), HALVES.transpose(1, 0, 2)),
    "16.png": (encoded(SIXTEEN), np.array([0, 1, 0, 1, 100, 255, 156, 2])[:, None]),
    "16.tiff": (encoded(SIXTEEN, "TIFF"), np.array([0, 1, 0, 1, 100, 255, 156, 2])[:, None]),
    "one bit.png": (encoded(Image.fromarray(HALVES).convert("1")), HALVES),
    "wide.png": (encoded(np.pad(random_images(8, 8, 3), ((0, 0), (5, 6), (0, 0)))), random_images(8, 8, 3)),
    "high.png": (encoded(np.pad(random_images(8, 8, 3), ((5, 6), (0, 0), (0, 0)))), random_images(8, 8, 3)),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """All the kinds of pictures, prepared in one folder of classes that are their names."""
    study = tmp_path_factory.mktemp("kinds")
    (study / "fdm").mkdir()
    (study / "fdm" / "files.py").touch()
    (study / "dvc.yaml").touch()
    write(study / "mine", {f"{name}": content for name, (content, _) in KINDS.items()} | grey_pictures(20, "~"))
    params = DatasetParams(name="folder", resolution=8, conditional=False, path=str(study / "mine"))
    here = Path.cwd()
    try:
        os.chdir(study)
        images, _ = archives.folder(params)
    finally:
        os.chdir(here)
    return dict(zip(sorted(KINDS), images, strict=False))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_becomes_rgb_of_8_bits(kinds, name):
    expected = np.broadcast_to(np.asarray(KINDS[name][1], np.int64), (8, 8, 3))
    np.testing.assert_allclose(kinds[name].transpose(1, 2, 0).astype(int), expected, atol="jp" in name)


def test_small_pictures_are_enlarged_and_large_ones_reduced_with_lanczos(study, capsys):
    large, tiny = random_images(20, 31, 3), random_images(4, 4, 3)
    files = {f"{i:02}.png": encoded(large) for i in range(30)} | {"x.png": encoded(tiny), "y.png": encoded(tiny)}
    dataset = of_folder(files)
    for index, pixels in ((0, large[:, 5:25]), (30, tiny)):
        expected = Image.fromarray(pixels).resize((8, 8), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(dataset.images[index].permute(1, 2, 0), np.asarray(expected))
    assert "2 of 32 pictures in " in (error := capsys.readouterr().err)
    assert "mine are smaller than 8x8 and are enlarged." in error


def test_classes_are_the_subfolders_in_sorted_order_and_numbers_by_value(study):
    deep = grey_pictures(16, "10/") | grey_pictures(8, "9/a/") | grey_pictures(8, "9/b/") | grey_pictures(2, "cat/")
    dataset = of_folder(deep, conditional=True)
    assert dataset.labels.tolist() == [1] * 16 + [0] * 16 + [2] * 2
    assert dataset.classes == 3


def csv_of(rows, head="file,label"):
    return {"labels.csv": "\n".join([head, *rows]).encode()}


def rows_of(files, label=lambda n: n % 2):
    return [f"{name},{label(n)}" for n, name in enumerate(sorted(files))]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (lambda n: ["dog", "cat, wild"][n % 2].join('""'), lambda n: 1 - n % 2),
        (lambda n: 9 + n % 3, lambda n: n % 3),
        (lambda n: ["b", "010", "9", "é"][n % 4], lambda n: [2, 1, 0, 3][n % 4]),
    ],
    ids=["text", "numbers", "mixed"],
)
def test_classes_are_those_of_the_table_where_there_is_one(study, label, expected):
    files = grey_pictures(20) | grey_pictures(20, "sub/")
    rows = [row.replace("sub/", "./sub//") + ",more" for row in reversed(rows_of(files, label))]
    dataset = of_folder(files | csv_of(rows, "\ufefffile,label,note"), conditional=True)
    assert dataset.labels.tolist() == [expected(n) for n in range(40)]


NAMES = grey_pictures()
BAD_TABLES = {
    "no columns file and label": csv_of(rows_of(NAMES), "name,label"),
    "has no columns": {"labels.csv": b""},
    r"line 34: 00\.png is named twice": csv_of([*rows_of(NAMES), "00.png,1"]),
    r"line 34: other\.png is no picture here": csv_of([*rows_of(NAMES), "other.png,1"]),
    r"line 34: \.\./mine/00\.png is no picture here": csv_of([*rows_of(NAMES), "../mine/00.png,1"]),
    r"line 34: /etc/x\.png is no picture": csv_of([*rows_of(NAMES), "/etc/x.png,1"]),
    r"does not name 30\.png \(2 pictures in all\)": csv_of(rows_of(NAMES)[:30]),
    r"line 2: 00\.png is without label": csv_of([row.split(",")[0] + ", " for row in rows_of(NAMES)]),
    r"line 3: 01\.png is without label": csv_of(["00.png,1", "01.png"]),
    r"labels\.csv is damaged": {"labels.csv": b"file,label\n\xff\xfe,1\n"},
    r"labels\.csv is damaged \(unexpected": {"labels.csv": b'file,label\n"00.png,1'},
}


@pytest.mark.parametrize("sentence", BAD_TABLES)
def test_a_table_that_does_not_fit_the_pictures_is_a_sentence(study, sentence):
    with pytest.raises(FdmError, match=sentence):
        of_folder(NAMES | BAD_TABLES[sentence])


def test_a_folder_that_is_none_or_holds_too_little_is_a_sentence(study):
    with pytest.raises(FdmError, match=r"dataset\.path: there is no folder .*/absent; name the one"):
        prepare("folder", 8, path="absent")
    assert available("folder", "absent").startswith("there is no folder ")
    Path("file.zip").write_bytes(zipped(NAMES))
    with pytest.raises(FdmError, match=r"there is no folder .*file\.zip"):
        prepare("folder", 8, path="file.zip")
    with pytest.raises(FdmError, match="holds no pictures, where 32 are needed"):
        of_folder({"notes.txt": b"x"})
    with pytest.raises(FdmError, match="holds 31 pictures, where 32 are needed"):
        of_folder(grey_pictures(31))
    assert available("folder", "mine") is None
    with pytest.raises(FdmError, match=r"dataset\.conditional: true needs classes, and .*mine has only one"):
        of_folder(NAMES, conditional=True)
    with pytest.raises(FdmError, match=r"in subfolders and others beside them \(00\.png\)"):
        of_folder(grey_pictures(2, "sub/"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is no picture"),  # PIL would start Ghostscript
        (colourful()[:-40], "truncated|broken|no picture"),
        (colourful()[:60] + b"\xff" + colourful()[61:], "broken|truncated|decod|unrecognized"),
        (encoded(random_images(8, 8).astype(np.float32), "TIFF"), "floating-point or 32-bit"),
        (encoded(random_images(8, 8).astype(np.int32), "TIFF"), "floating-point or 32-bit"),
    ],
    ids=["empty", "PostScript", "cut", "flipped", "float", "32 bits"],
)
def test_a_picture_that_cannot_be_read_is_named(study, content, reason):
    with pytest.raises(
        FdmError, match=rf"sub/bad\.png in .*mine cannot be read \(.*({reason}).*\); mend or replace it"
    ):
        of_folder(grey_pictures(32, "sub/") | {"sub/bad.png": content})


@pytest.mark.parametrize("limit", [40, 60])
def test_a_picture_of_too_many_pixels_is_refused(study, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # more is a warning of PIL, and twice as much an error
    with pytest.raises(FdmError, match=r"big\.png in .*mine cannot be read \(Image size .* decompression bomb"):
        of_folder({f"{i}.png": encoded(random_images(4, 4, seed=i)) for i in range(32)} | {"big.png": colourful()})


def test_all_pictures_that_cannot_be_read_are_told_at_once(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(40):
        Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).save(tmp_path / f"{n:02}.png")
    for n in (3, 7, *range(20, 32)):
        (tmp_path / f"{n:02}.png").write_bytes(b"no picture")
    told = (
        r"03\.png in .* cannot be read \(it is no picture\), nor can 13 more: 07\.png, 20\.png, .*28\.png, \.\.\.; mend"
    )
    with pytest.raises(FdmError, match=told) as error:
        archives.folder(DatasetParams(name="folder", path=str(tmp_path), resolution=8, conditional=False))
    assert "29.png" not in str(error.value)


def test_a_subfolder_that_cannot_be_listed_is_a_sentence(study, monkeypatch):
    write(Path("mine"), grey_pictures(32, "sub/"))
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(FdmError, match=r"mine/sub cannot be read \(Permission denied\); mend that"):
        prepare("folder", 8, path="mine")


def test_pictures_are_the_same_however_many_threads_decode_them(study, monkeypatch):
    files = {f"{i:02}.png": encoded(random_images(30, 30, 3, seed=i)) for i in range(40)}
    first = of_folder(files).sha256
    pool = archives.ThreadPoolExecutor
    monkeypatch.setattr(archives, "ThreadPoolExecutor", lambda n: pool(1))
    assert of_folder(files).sha256 == first


def test_the_digits_are_always_here(study):
    assert available("digits") is None


def test_the_other_data_sets_name_a_path_that_is_not_there(study):
    for name, resolution in (("cifar10", 32), ("fashion-mnist", 32), ("afhqv2", 64), ("ffhq", 64)):
        with pytest.raises(FdmError, match=r"dataset\.path: there is no .* at .*/absent; correct or remove"):
            prepare(name, resolution, path="absent")
        assert available(name, "absent").startswith("dataset.path: there is no ")
