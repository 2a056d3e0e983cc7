"""Files of images as people have them: what is read, by which rule, and what is refused."""

import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvt_nas.config import DataConfig
from cvt_nas.data import check_data
from cvt_nas.data.reading import read_header, read_image
from cvt_nas.data.report import check_set
from cvt_nas.errors import DataError
from image_folders import CPU, png, write_images


def tiff(path: Path, values: np.ndarray, bits: int, photometric: int = 1, sample_format: int = 1) -> None:
    """An uncompressed TIFF of kinds that Pillow does not write; `values` are packed bytes where `bits` are 12."""
    height, width = values.shape[:2]
    data, samples = values.tobytes(), 3 if values.ndim == 3 else 1
    end = values.dtype.byteorder == ">"
    order = ">" if end else "<"
    if bits == 12:
        data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(-1, 2).tolist())
    each = struct.pack(f"{order}3H", *[bits] * 3)
    at = 8 + len(data)
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, samples, at if samples == 3 else bits), (259, 3, 1, 1),
               (262, 3, 1, 2 if samples == 3 else photometric), (273, 4, 1, 8), (277, 3, 1, samples),
               (278, 3, 1, height), (279, 4, 1, len(data)), (339, 3, 1, sample_format)]  # fmt: skip
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        table += struct.pack(f"{order}HHI", tag, kind, count)
        table += struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
    start = (b"MM\0*" if end else b"II*\0") + struct.pack(f"{order}I", at + len(each))
    path.write_bytes(start + data + each + table + struct.pack(f"{order}I", 0))


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
DEEP, DEEP_COLOUR = GREY.astype(np.uint16) * 257, COLOUR.astype(np.uint16) * 257


def saved(values: np.ndarray, **options: Any) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(values).save(path, **options)


def palette(path: Path) -> None:
    image = Image.fromarray(GREY, "L").convert("P")
    image.putpalette([value for shade in range(256) for value in (shade, shade, shade)])
    image.save(path, transparency=bytes(range(256)))


def pgm(path: Path) -> None:
    path.write_bytes(b"P5 16 16 65535\n" + DEEP.astype(">u2").tobytes())


def frames(path: Path) -> None:
    Image.fromarray(GREY).save(path, save_all=True, append_images=[Image.fromarray(255 - GREY)])


def holding(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


READ: dict[str, tuple[str, Callable[[Path], None], np.ndarray]] = {
    "8 bits": ("a.png", saved(GREY), GREY),
    "1 bit": ("a.png", lambda path: Image.fromarray(GREY > 127).save(path), (GREY > 127) * np.uint8(255)),
    "16 bits, PNG": ("a.png", saved(DEEP), GREY),
    "16 bits, TIFF": ("a.tif", saved(DEEP), GREY),
    "16 bits, big-endian TIFF": ("a.tif", lambda path: tiff(path, DEEP.astype(">u2"), 16), GREY),
    "16 bits, white is zero": ("a.tiff", lambda path: tiff(path, DEEP.astype("<u2"), 16, photometric=0), 255 - GREY),
    "16 bits, packed TIFF": ("a.tif", saved(DEEP, compression="tiff_lzw"), GREY),
    "16 bits, PGM": ("a.pgm", pgm, GREY),
    "12 bits, TIFF": ("a.tif", lambda path: tiff(path, (GREY * 16.0588).round().astype("<u2"), 12), GREY),
    "16 bits of colour, PNG": ("a.png", lambda path: png(path, DEEP_COLOUR, 2), COLOUR),
    "16 bits of colour, TIFF": ("a.tif", lambda path: tiff(path, DEEP_COLOUR.astype("<u2"), 16), COLOUR),
    "float": ("a.tif", saved((GREY / 255).astype(np.float32)), GREY),
    "grey with alpha": ("a.png", lambda path: Image.merge("LA", [Image.fromarray(GREY)] * 2).save(path), GREY),
    "16 bits of grey with alpha": ("a.png", lambda path: png(path, np.stack([DEEP, DEEP], -1), 4), GREY),
    "palette with alpha": ("a.png", palette, GREY),
    "colour with alpha": ("a.png", saved(np.dstack([COLOUR, GREY])), COLOUR),
    "inks": ("a.tif", lambda path: Image.fromarray(COLOUR).convert("CMYK").save(path), COLOUR),
    "another suffix": ("a.jpg", saved(GREY, format="PNG"), GREY),
    "several frames": ("a.png", frames, GREY),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_images_are_read_by_the_stated_rule(tmp_path: Path, kind: str) -> None:
    name, write, expected = READ[kind]
    write(tmp_path / name)
    colour = expected if expected.ndim == 3 else np.stack([expected] * 3, axis=-1)
    found = np.asarray(read_image(tmp_path / name, "RGB"))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, colour)
    if expected.ndim == 2:
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / name, "L")), expected)


REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "32-bit integers": ("a.tif", saved(DEEP.astype(np.int32)), "integers of 32 bits, whose white value is unknown"),
    "signed": ("a.tif", lambda path: tiff(path, (GREY - 9.0).astype("<i2"), 16, sample_format=2), "from -9 to 246"),
    "floats above 1": ("a.tif", saved(GREY.astype(np.float32)), "values from 0 to 255, must be from 0 to 1"),
    "no numbers": ("a.tif", saved(np.full((4, 4), np.nan, np.float32)), "values from nan to nan"),
    "empty": ("a.jpg", holding(b""), "no image: the file is empty"),
    "signed bytes": ("a.tif", lambda path: tiff(path, (GREY // 2).astype("i1"), 8, sample_format=2), "signed integers"),
    "float64": ("a.tif", lambda path: tiff(path, GREY.astype("<f8"), 64, sample_format=3), "a TIFF of a kind"),
    "HEIC": ("a.jpg", holding(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), "no image: a HEIC picture; save it as JPEG"),
    "AVIF": ("a.jpg", holding(b"\0\0\0 ftypavif" + bytes(200)), "no image: an AVIF picture; save it as JPEG or PNG"),
    "JPEG 2000": ("a.jpg", saved(COLOUR, format="JPEG2000"), "no image: a JPEG 2000 picture"),
    "a PDF": ("a.jpg", holding(b"%PDF-1.7\n%\xe2\xe3"), "no image: a PDF"),
    "no width": ("a.png", lambda path: png(path, np.zeros((4, 0), np.uint16), 0), "no image: a PNG without a size"),
    "a thread": ("a.png", saved(np.zeros((1, 2001), np.uint8)), "2,001 x 1 pixels, more than 2,000 times as long"),
    "PostScript": ("a.jpg", holding(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "no image: it begins as text"),
    "text": ("a.jpg", holding(b"not found"), "no image: it begins as text"),
    "a web page": ("a.jpg", holding(b"<!DOCTYPE html>"), "no image: a web page"),
    "LFS": ("a.png", holding(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "zeros": ("a.png", holding(bytes(999)), "no image: it begins with zeros"),
    "gigantic": ("a.png", lambda path: Image.new("1", (20_000, 20_000)).save(path), "gigantic: image size .400000000"),
    "a dead link": ("a.png", lambda path: path.symlink_to("nowhere.png"), "cannot be read: No such file or directory"),
    "a folder": ("a.png", lambda path: path.mkdir(), "cannot be read: Is a directory"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_named_with_the_reason_in_one_line(tmp_path: Path, kind: str) -> None:
    name, write, reason = REFUSED[kind]
    write(tmp_path / name)
    with pytest.raises(DataError, match=reason) as error:
        read_image(tmp_path / name, "L")
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "ppm", "tif", "webp", "lzw.tif"])
def test_a_file_that_was_cut_off_is_found_by_its_header_and_its_end(tmp_path: Path, suffix: str) -> None:
    write_images(tmp_path / "train", num=3)
    write_images(tmp_path / "val", num=1)
    path = tmp_path / "train" / "dog" / f"cut.{suffix}"
    rng = np.random.default_rng(0)
    options = {"compression": "tiff_lzw"} if suffix == "lzw.tif" else {}
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path, **options)
    whole = path.read_bytes()
    config = DataConfig(dataset="imagefolder", num_workers=0)
    settings: Any = {"root": tmp_path, "image_size": 16, "num_channels": 3, "num_classes": 3}
    check_data(config, **settings)
    for length in (len(whole) - 200, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"1 of 13 images cannot be read: train/dog/cut.{suffix}: \S+"):
            check_data(config, **settings)
    path.write_bytes(whole + b"trailing")  # as some cameras and editors leave it
    check_data(config, **settings)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("white", [65_535, 4_095])
def test_colours_of_sixteen_bits_that_are_read_nearly_black_are_said(tmp_path: Path, white: int, suffix: str) -> None:
    values = (np.random.default_rng(0).random((16, 16, 3)) * white).astype("<u2")
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(2):
                path = tmp_path / part / name / f"{number}.{suffix}"
                png(path, values, 2) if suffix == "png" else tiff(path, values, 16)
    notes = check_set(tmp_path).notes
    assert [note.startswith("8 images with more than 8 bits, read as 8") for note in notes] == [True, False]
    assert ("scale them so that white is 65,535" in notes[0]) == (white < 65_535)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "raw", "tiff_lzw", "16 bits", "16 bits, png"])
def test_the_orientation_of_exif_is_applied(tmp_path: Path, kind: str, orientation: int) -> None:
    stored = np.zeros((16, 24), np.uint8)
    stored[:8, :8] = 255  # the corner tells
    stored[:8, 16:] = 128
    meant = {
        1: stored, 2: stored[:, ::-1], 3: np.rot90(stored, 2), 4: stored[::-1], 5: stored.T, 6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).T, 8: np.rot90(stored),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep = kind.startswith("16")
    suffix = {"jpg": "jpg", "png": "png", "webp": "webp", "16 bits, png": "png"}.get(kind, "tif")
    options = {"compression": kind} if kind in ("raw", "tiff_lzw") else {}
    Image.fromarray(stored.astype(np.uint16) * 257 if deep else stored).save(
        tmp_path / f"a.{suffix}", exif=exif, **options
    )
    found = np.asarray(read_image(tmp_path / f"a.{suffix}", "L")).astype(int)
    assert read_header(tmp_path / f"a.{suffix}").turned == (orientation > 1)
    assert found.shape == meant.shape
    assert np.abs(found - meant).max() <= 40  # JPEG's own loss


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\0\x12\x01"])
def test_exif_that_cannot_be_read_is_as_none(tmp_path: Path, exif: bytes) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", "L").size == (16, 16)


def test_a_picture_that_pillow_only_warns_of_is_read_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "train", num=3)
    write_images(tmp_path / "val", num=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # they have 480
    notes: list[str] = []
    data, _ = check_data(
        DataConfig(dataset="imagefolder", num_workers=0), root=tmp_path, image_size=16, num_channels=3, num_classes=3,
        on_note=notes.append,
    )  # fmt: skip
    assert notes == ["12 images so large that decoding them takes long"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(iter(data.eval_batches("test", batch_size=8, device=CPU)))


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(DataError, match=r"a.png: cannot be read: Permission denied"):
        read_image(tmp_path / "a.png", "L")
