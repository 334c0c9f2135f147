"""Pictures of every kind become RGB of 8 bits; what is no picture is one line."""

import io
import pathlib
import warnings

import numpy as np
import pytest
from PIL import Image

from unit_jax.api import images

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def encoded(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_path_bytes_pillow_and_numpy_are_the_same(tmp_path):
    data = encoded(Image.fromarray(PIXELS))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (path, str(path), data, Image.fromarray(PIXELS), PIXELS):
        picture = images.read(source)
        assert (picture.pixels == PIXELS).all() and picture.size == (5, 7)
        assert images.is_source(source)
    assert images.read(path).name == str(path) and images.read(data).name == ""
    assert not images.is_source([path]) and not images.is_source(np.zeros((2, 5, 7, 3), np.uint8))


def test_the_exif_orientation_is_applied_or_not_and_said_once():
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6  # a quarter turn clockwise to be upright
    data = encoded(Image.fromarray(PIXELS), exif=exif)
    once = images.Once()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        turned = images.read(data, once=once).pixels
        images.read(data, once=once)
    assert (turned == np.rot90(PIXELS, -1)).all()
    assert len(said) == 1 and "EXIF orientation" in str(said[0].message)
    with pytest.warns(UserWarning, match="ignored"):
        assert (images.read(data, exif=False).pixels == PIXELS).all()


def test_grey_transparent_and_16_bits():
    grey = PIXELS[..., 0]
    for source in (grey, Image.fromarray(grey), grey[..., None]):
        assert (images.read(source).pixels == grey[..., None]).all()
    deep = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1800
    with pytest.warns(UserWarning, match="16 bits"):
        shown = images.read(encoded(Image.fromarray(deep))).pixels
    assert (shown == (deep >> 8)[..., None]).all() and len(np.unique(shown)) > 30
    clear = np.concatenate([PIXELS, np.zeros((5, 7, 1), np.uint8)], -1)
    clear[0, 0, 3] = 255
    with pytest.warns(UserWarning, match="white"):
        shown = images.read(encoded(Image.fromarray(clear))).pixels
    assert (shown[0, 0] == PIXELS[0, 0]).all() and (shown[1:] == 255).all()


def test_what_is_no_picture_is_one_line(tmp_path):
    text, cut = tmp_path / "a.txt", tmp_path / "cut.png"
    text.write_text("hello")
    cut.write_bytes(encoded(Image.fromarray(PIXELS.repeat(20, 0)))[:-200])
    for source, told in (
        (text, "a.txt: no picture"),
        (cut, "cut.png: a broken picture"),
        (tmp_path / "none.png", "none.png: no such file"),
        (tmp_path, "a folder"),
        (b"", "empty"),
        ("https://example.org/a.png", "download it"),
        (np.zeros((4, 4, 3)), "give uint8"),
        (np.zeros((4, 4, 2), np.uint8), "is no picture"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            images.read(source)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="7 x 5 pixels, more than 34"):
        images.read(encoded(Image.fromarray(PIXELS)), max_pixels=34)


def test_folders_and_patterns_list_pictures(tmp_path, monkeypatch):
    for name in ("b.png", "a.JPG", "notes.txt", "deep/c.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    found = [pathlib.Path(p).relative_to(tmp_path).as_posix() for p in images.listed(tmp_path)]
    assert found == ["a.JPG", "b.png", "deep/c.png"]
    assert len(images.listed(f"{tmp_path}/*.png")) == 1
    monkeypatch.chdir(tmp_path)
    assert images.listed("*.png") == ["b.png"]
    with pytest.raises(ValueError, match="no pictures there"):
        images.listed(tmp_path / "*.gif")
