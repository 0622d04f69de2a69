"""Official archives in small: written here and put into downloads/ as by hand."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from fdm import archives, data, downloads
from fdm.__main__ import main
from fdm.errors import FdmError


@pytest.fixture
def afhqv2(study, monkeypatch):
    """A small archive in the format of AFHQ v2: folders train and test, classes within, pictures of 512x512."""
    monkeypatch.setattr(archives, "AFHQV2_IMAGES", 4)
    path = downloads.place(archives.AFHQV2_URL)
    path.parent.mkdir()
    rng = np.random.default_rng(0)
    pictures = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train/wild/b.png", "train/cat/a.png", "test/dog/c.png", "test/cat/d.png"):
            small = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(small.repeat(8, 0).repeat(8, 1)).save(buffer, "PNG")
            archive.writestr(name, buffer.getvalue())
            pictures[name] = Image.open(buffer).resize((64, 64), Image.Resampling.LANCZOS)
        archive.writestr("README.txt", "not a picture")
    return path, pictures


def test_afhqv2_is_prepared_in_order_with_its_classes(afhqv2, tmp_path):
    _, pictures = afhqv2
    dataset = data.prepare("afhqv2", 64, tmp_path / "dataset.safetensors")
    assert tuple(dataset.images.shape) == (4, 3, 64, 64)
    assert dataset.classes == 3
    for image, label, name in zip(dataset.images, dataset.labels, sorted(pictures), strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(pictures[name]))
        assert label == ["cat", "dog", "wild"].index(name.split("/")[1])


def test_an_archive_that_is_damaged_or_incomplete_is_a_sentence(afhqv2, tmp_path, monkeypatch):
    path, _ = afhqv2
    monkeypatch.setattr(archives, "AFHQV2_IMAGES", 15_803)
    with pytest.raises(FdmError, match="holds 4 images, where AFHQ v2 has 15,803"):
        data.prepare("afhqv2", 64, tmp_path / "x")
    whole = path.read_bytes()
    data_of_first = 30 + len("train/wild/b.png")
    broken = whole[:data_of_first] + b"\xff" * 20 + whole[data_of_first + 20 :]  # no deflate stream
    for content in (whole[: len(whole) // 2], b"", whole[:200] + bytes(100) + whole[300:], broken):
        path.write_bytes(content)
        with pytest.raises(FdmError, match=r"afhq_v2\.zip is damaged"):
            data.prepare("afhqv2", 64, tmp_path / "x")


def test_a_profile_whose_data_cannot_be_prepared_says_so_when_checked(study, capsys):
    assert main(["check", "--params", "profiles/paper-ffhq/params.yaml"]) == 0
    printed = capsys.readouterr()
    assert "is valid" in printed.out
    assert "the data set ffhq cannot be prepared by this version" in printed.err
    assert main(["check", "--params", "profiles/published-checkpoints/params.yaml"]) == 0
    assert capsys.readouterr().err == ""
