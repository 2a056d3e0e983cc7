"""JPEG files by simplejpeg: Pillow's pixels, and Pillow's word on what is odd or damaged."""

import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from cvt_nas.data import reading
from cvt_nas.data.reading import read_image, read_pixels
from cvt_nas.data.sources import Mode
from cvt_nas.errors import DataError


@pytest.fixture(scope="module", autouse=True)
def simplejpeg() -> object:
    """Without it, the tests would compare Pillow with itself."""
    return importlib.import_module("simplejpeg")


@functools.cache
def photograph() -> Image.Image:
    return Image.fromarray(load_sample_images().images[0])


def write(path: Path, mode: str = "RGB", **settings: Any) -> Path:
    photograph().convert(mode).save(path, "JPEG", **settings)
    return path


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
KINDS: dict[str, dict[str, Any]] = {
    "4:2:0": {"quality": 90},
    "4:4:4": {"quality": 96, "subsampling": 0},
    "4:2:2": {"quality": 80, "subsampling": 1},
    "progressive": {"progressive": True},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "untagged": {"keep_rgb": True, "subsampling": 0},
    "EXIF": {"exif": turned(1)},
    "turned": {"exif": turned(6)},
    "mirrored": {"exif": turned(2)},
    "turned by XMP": {"xmp": XMP},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_pillow_s(kind: str, mode: Mode, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", **KINDS[kind])
    found, expected = read_pixels(path, mode), np.asarray(read_image(path, mode))
    assert np.array_equal(np.asarray(found).reshape(expected.shape), expected)
    with Image.open(path) as image:  # an older Pillow writes no XMP
        is_turned = image.getexif().get(0x0112, 1) != 1
    assert is_turned or kind not in ("turned", "mirrored")
    is_fast = kind not in ("CMYK", "untagged") and not is_turned
    assert isinstance(found, np.ndarray) == (is_fast and (mode == "RGB" or kind == "grey"))


def test_files_that_pillow_reads_in_spite_of_damage_are_read_as_it_reads_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert np.array_equal(np.asarray(read_pixels(path, "RGB")), np.asarray(read_image(path, "RGB")))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0", b"<html>", None])
def test_what_cannot_be_read_has_pillow_s_reason(content: bytes | None, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:9000] if content is None else content)
    with pytest.raises(DataError) as expected:
        read_image(path, "RGB")
    with pytest.raises(DataError) as found:
        read_pixels(path, "RGB")
    assert str(found.value) == str(expected.value)
    with pytest.raises(DataError, match=r"none\.jpg: cannot be read: No such file"):
        read_pixels(tmp_path / "none.jpg", "RGB")


def test_other_formats_and_gigantic_images_are_pillow_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph().save(tmp_path / "a.jpg", "PNG")  # as its suffix says nothing
    assert isinstance(read_pixels(tmp_path / "a.jpg", "RGB"), Image.Image)
    Image.new("RGB", (4002, 2)).save(tmp_path / "thin.jpg")
    with pytest.raises(DataError, match="2,000 times as long as wide"):
        read_pixels(tmp_path / "thin.jpg", "RGB")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="gigantic"):
        read_pixels(write(tmp_path / "a.jpg"), "RGB")


def test_without_simplejpeg_pillow_reads_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_simplejpeg", lambda: None)
    assert isinstance(read_pixels(write(tmp_path / "a.jpg"), "RGB"), Image.Image)
