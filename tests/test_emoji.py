"""Emoji, from the font that Debian packages."""

import io
import types

import numpy as np
import pytest
from fontTools import ttLib
from PIL import Image

from fdm.data import downloads
from fdm.data.downloads import ARCHIVES
from fdm.files import FdmError

from .test_archives import available, encoded, place, prepare, random_images, whole

GLYPHS = ["b", "a", *(f"glyph{n:02}" for n in range(40))]


@pytest.fixture
def font(study, monkeypatch):
    """A font in downloads/ that holds a bitmap for each glyph, 136x128 and transparent at its sides; the bitmaps."""
    monkeypatch.setattr(downloads, "DEBIAN", ())
    pixels = {name: random_images(128, 136, 4, seed=n) for n, name in enumerate(GLYPHS)}
    bitmaps = {name: types.SimpleNamespace(imageData=encoded(each)) for name, each in pixels.items()}

    class Font(dict):
        def __init__(self, path, lazy):
            super().__init__(CBDT=types.SimpleNamespace(strikeData=[bitmaps]))

        __enter__, __exit__ = lambda self: self, lambda *_: None

    monkeypatch.setattr(ttLib, "TTFont", Font)
    path = place("emoji")
    path.write_bytes(b"a font")
    known = ARCHIVES["emoji"][0]._replace(size=6, sha256=downloads.sha256(path))
    monkeypatch.setitem(ARCHIVES, "emoji", [known])
    return path, pixels


def test_emoji_are_the_fonts_pictures_on_white_in_the_order_of_their_names(font):
    images = whole(prepare("emoji", 32)).images
    for image, name in zip(images, sorted(GLYPHS), strict=True):
        rgba = Image.fromarray(font[1][name][:, 4:-4])
        white = Image.alpha_composite(Image.new("RGBA", (128, 128), "white"), rgba).convert("RGB")
        small = np.asarray(white.resize((32, 32), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
        assert np.array_equal(image.numpy(), small)


def test_a_font_that_is_not_here_or_is_another_says_what_to_do(font):
    path = font[0]
    assert available("emoji") is None
    with pytest.raises(FdmError, match="needs classes, and emoji have none; set it to false"):
        prepare("emoji", 32, True)
    path.write_bytes(b"other!")
    with pytest.raises(FdmError, match=r"NotoColorEmoji\.ttf has SHA-256 .* wanted; remove it"):
        prepare("emoji", 32)
    elsewhere = path.rename("NotoColorEmoji.ttf")
    with pytest.raises(FdmError, match=r"is another version of the font .* download NotoColorEmoji\.ttf"):
        prepare("emoji", 32, path=elsewhere.name)
    what = r"download NotoColorEmoji\.ttf \(11 MB\) by installing Debian's package fonts-noto-color-emoji"
    with pytest.raises(FdmError, match=rf"NotoColorEmoji\.ttf is not here: {what}.* and put it at /.*\.ttf, or set"):
        prepare("emoji", 32)
    assert available("emoji").startswith("download NotoColorEmoji.ttf")


def test_the_font_of_the_package_holds_as_many_pictures_as_are_told():
    path = next((p for d in downloads.DEBIAN if (p := d / "NotoColorEmoji.ttf").is_file()), None)
    if path is None:
        pytest.skip("Debian's package fonts-noto-color-emoji is not installed")
    if downloads.sha256(path) != ARCHIVES["emoji"][0].sha256:
        pytest.skip("another version of the package is installed")
    with ttLib.TTFont(path, lazy=True) as opened:
        (bitmaps,) = opened["CBDT"].strikeData
        assert len(bitmaps) == 3926
        assert Image.open(io.BytesIO(bitmaps["uni2B50"].imageData)).size == (136, 128)
