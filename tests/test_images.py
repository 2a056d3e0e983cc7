"""Folders of images as people have them: what is read, by which rule, what is refused, and what is said."""

import dataclasses
import json
import os
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from cvt_nas.arch import load_arch
from cvt_nas.cli import main
from cvt_nas.config import DataConfig, parse_experiment
from cvt_nas.data import SPLITS, check_data, find_data, load_data, shape_of
from cvt_nas.data.folders import FolderData
from cvt_nas.data.images import hold_out, split_off_search
from cvt_nas.data.layout import find_layout, list_images, load_listing, save_listing
from cvt_nas.data.reading import read_header, read_image
from cvt_nas.data.report import check_set
from cvt_nas.engine import TrainingSetup
from cvt_nas.errors import DataError, RunFolderError
from cvt_nas.report import Comparison
from cvt_nas.report.run_page import run_page
from cvt_nas.results import DataIdentity
from cvt_nas.results.parsing import parse_json
from cvt_nas.run import RunFolder
from cvt_nas.train import fitted, train

CPU = torch.device("cpu")
NAMES = ("cat", "dog", "fish")


def write_images(folder: Path, names: tuple[str, ...] = NAMES, num: int = 8, suffix: str = ".png") -> None:
    """Each class has a brightness of its own."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(num):
            pixels = rng.integers(0, 30, (20, 24, 3)) + [20, 110, 200][index % 3]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}{suffix}")


def open_folder(
    root: Path, *, num_classes: int = 3, num_channels: int = 3, test_only: bool = False, **config: Any
) -> FolderData:
    data = load_data(
        DataConfig(dataset="imagefolder", **{"num_workers": 0, "search_fraction": 0.25, **config}),
        root=root, image_size=16, num_channels=num_channels, num_classes=num_classes, test_only=test_only,
    )  # fmt: skip
    assert isinstance(data, FolderData)
    return data


def sizes(data: FolderData) -> list[int]:
    return [data.num_images(split) for split in SPLITS]


# --- layout


def test_a_clean_folder_has_the_classes_images_and_splits_that_torchvision_and_scikit_learn_give(
    tmp_path: Path,
) -> None:
    from sklearn.model_selection import train_test_split
    from torchvision.datasets import ImageFolder

    write_images(tmp_path / "train", ("b", "a", "B10", "a2"), num=11, suffix=".JPG")
    write_images(tmp_path / "train" / "a", ("z", "deep", "a-b"), num=3)
    write_images(tmp_path / "val", ("b", "a", "B10", "a2"), num=3)
    shutil.copytree(tmp_path / "train" / "a" / "z", tmp_path / "elsewhere")
    (tmp_path / "train" / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "b" / "circle").symlink_to(tmp_path / "train" / "b")
    data = open_folder(tmp_path, num_classes=4, split_seed=3, train_fraction=0.5)
    (tmp_path / "train" / "b" / "circle").unlink()  # which torchvision follows until the system stops it
    folder = ImageFolder(str(tmp_path / "train"))
    assert list(data.class_names) == folder.classes
    images = data.files["train"]
    assert [
        (f"{images.root}/{n}", label) for n, label in zip(images.names, images.labels, strict=True)
    ] == folder.samples
    labels = np.array(folder.targets)
    train, search = train_test_split(np.arange(len(labels)), test_size=0.25, random_state=3, stratify=labels)
    train, _ = train_test_split(train, train_size=0.5, random_state=3, stratify=labels[train])
    assert data._rows["train"].tolist() == sorted(train)
    assert data._rows["search"].tolist() == sorted(search)
    assert sizes(data)[2] == 12


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints",
        ".git",
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "__pycache__",
        "lost+found",
        "@Recycle",
        "@Recently-Snapshot",
        "@SynoResource",
        "@tmp",
        "@GMT-2024.01.01-00.00.00",
        "~snapshot",
        "#snapshot",
        "RECYCLER",
        "found.000",
        "RECYCLED",
        "$WINDOWS.~BT",
        "_vti_cnf",
        "_gsdata_",
    ],
)
def test_hidden_and_system_folders_are_no_classes_and_hold_no_images(tmp_path: Path, name: str) -> None:
    for part in ("train", "val"):
        write_images(tmp_path / part)
        shutil.copytree(tmp_path / part / "cat", tmp_path / part / name)
        shutil.copytree(tmp_path / part / "cat", tmp_path / part / "dog" / name)
    shutil.copytree(tmp_path / "train" / "cat", tmp_path / name)
    data = open_folder(tmp_path)
    assert data.class_names == NAMES
    assert sizes(data) == [18, 6, 24]
    assert data.notes == ()
    assert shape_of(*find_data(tmp_path)) == (None, 3)
    assert shape_of(*find_data(tmp_path), test_only=True) == (None, 3)


def test_a_folder_that_begins_as_a_network_drive_s_own_is_left_out_with_a_note_unless_all_do(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_images(tmp_path / "some" / part, (*NAMES, "@web"))
        write_images(tmp_path / "handles" / part, ("@ada", "@bob", "@carl"))
        write_images(tmp_path / "signs" / part, ("#", "@", "recycled"))
    some = open_folder(tmp_path / "some")
    assert some.class_names == NAMES
    assert some.notes == tuple(
        f"{tmp_path}/some/{part}: @web/ begins with @, as a network drive's own folders do, and is no class"
        for part in ("train", "val")
    )
    assert open_folder(tmp_path / "handles").class_names == ("@ada", "@bob", "@carl")
    assert open_folder(tmp_path / "signs").class_names == ("#", "@", "recycled")


def test_names_with_control_characters_are_shown_without_obeying_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "train", ("a\x1b[31mb", "c\nd"))
    write_images(tmp_path / "val", ("a\x1b[31mb", "c\nd"))
    (tmp_path / "val" / "c\nd" / "\x9bx\u202e.png").write_text("no image")
    assert main(["check", str(tmp_path)]) == 1
    assert main(["check", str(tmp_path / "no\nsuch\x1b")]) == 2
    printed = capsys.readouterr()
    assert r"cannot be read: val/c\nd/\x9bx\u202e.png" in printed.out
    assert r"classes: a\x1b[31mb 8, c\nd 8" in printed.out
    assert printed.err.startswith(rf"cvt-nas: --data {tmp_path}/no\nsuch\x1b: neither")
    assert printed.err.count("\n") == 1
    assert printed.out.replace("\n", "").isprintable()


def test_hidden_files_are_passed_in_silence_and_others_are_counted(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val")
    for name in ("._0.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "train" / "cat" / name).write_text("system")
    assert open_folder(tmp_path).notes == ()
    for name in ("a.HEIC", "b.heic", "c.npy", "README"):
        (tmp_path / "train" / "cat" / name).write_text("other")
    (tmp_path / "train" / "labels.csv").write_text("other")
    shutil.copy(tmp_path / "val" / "dog" / "0.png", tmp_path / "train" / "stray.png")
    (tmp_path / "annotations").mkdir()
    data = open_folder(tmp_path)
    assert sizes(data) == [18, 6, 24]
    assert data.notes == (
        "ignored beside train/, val/: annotations/",
        f"{tmp_path}/train: ignored, no images that are read: 1 .csv, 2 .heic, 1 .npy, 1 images beside the class "
        f"folders, 1 no suffix",
    )


@pytest.mark.parametrize("train", ["train", "Train", "training"])
@pytest.mark.parametrize("test", ["val", "valid", "validation", "Validation", "test", "Test", "testing"])
def test_the_usual_spellings_of_splits_are_found(tmp_path: Path, train: str, test: str) -> None:
    write_images(tmp_path / train)
    write_images(tmp_path / test, num=5)
    assert sizes(open_folder(tmp_path)) == [18, 6, 15]
    data = open_folder(tmp_path, test_only=True)
    assert (data.class_names, data.num_images("test")) == (NAMES, 15)


def test_validation_images_guide_the_search_where_there_are_test_images_too(tmp_path: Path) -> None:
    for part, num in (("train", 8), ("valid", 2), ("test", 3)):
        write_images(tmp_path / part, num=num)
    data = open_folder(tmp_path)
    assert sizes(data) == [24, 6, 9]
    assert data.notes == ("valid/ guides the search and test/ is the test split; data.search_fraction has no effect",)
    assert open_folder(tmp_path, test_only=True).num_images("test") == 9
    labels = [labels for _, labels in data.eval_batches("search", batch_size=100, device=CPU)]
    assert torch.cat(labels).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("unlabelled", ["", "unknown"])
def test_test_images_without_labels_are_ignored_and_said(tmp_path: Path, unlabelled: str) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    (tmp_path / "test" / unlabelled).mkdir(parents=True)
    shutil.copy(tmp_path / "val" / "cat" / "0.png", tmp_path / "test" / unlabelled / "0.png")
    data = open_folder(tmp_path)
    assert sizes(data) == [18, 6, 6]
    assert len(data.notes) == 1
    assert data.notes[0].startswith("test/ ")
    assert data.notes[0].endswith("is ignored")


@pytest.mark.parametrize("flat", [False, True])
def test_training_images_alone_get_a_held_out_test_split(tmp_path: Path, flat: bool) -> None:
    write_images(tmp_path if flat else tmp_path / "train", num=10)
    data = open_folder(tmp_path)
    assert sizes(data) == [18, 6, 6]
    rows = [set(data._rows[split].tolist()) for split in SPLITS]
    assert set.union(*rows) == set(range(30))
    (note,) = data.notes
    assert note.endswith("6 of the images are held out for it, by data.test_fraction 0.2 and data.split_seed 0")
    assert data.identity().held_out == ["search", "test"]
    assert sizes(open_folder(tmp_path, test_fraction=0.4)) == [13, 5, 12]
    assert open_folder(tmp_path, split_seed=1)._rows["test"].tolist() != data._rows["test"].tolist()


def test_a_root_with_train_is_never_read_as_class_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    with pytest.raises(DataError, match=r"holds train/ alone, and no test images in val/ or test/"):
        open_folder(tmp_path, test_only=True)
    write_images(tmp_path / "other", num=1)
    with pytest.raises(DataError, match=r"holds train/ alone"):
        shape_of(*find_data(tmp_path), test_only=True)
    flat = open_folder(tmp_path / "train", test_only=True)
    assert flat.num_images("test") == 24
    assert flat.notes == (
        f"{tmp_path}/train: no split is marked, so every image is read, also what may have been trained on",
    )


def test_splits_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    write_images(tmp_path / "validation", num=2)
    with pytest.raises(DataError, match="val/ and validation/ could each hold the validation images; keep one"):
        open_folder(tmp_path)
    shutil.rmtree(tmp_path / "validation")
    for path in (tmp_path / "val" / "fish").iterdir():
        path.rename(path.with_suffix(".gif"))
    with pytest.raises(
        DataError, match=r"val: class folders without an image: fish; there are files of .gif, and .jpg"
    ):
        open_folder(tmp_path)
    shutil.rmtree(tmp_path / "val" / "fish")
    with pytest.raises(DataError, match=r"in only one of train/ and val/: fish; both must have the same class folders"):
        open_folder(tmp_path)


# --- splits of small classes


def test_at_least_one_image_of_each_class_is_held_out_and_one_stays() -> None:
    labels = np.repeat(np.arange(102), 10)
    train, search = split_off_search(labels, DataConfig(dataset="imagefolder", search_fraction=0.01))
    assert np.bincount(labels[search]).tolist() == [1] * 102
    assert len(train) == 918
    uneven = np.repeat([0, 1, 2], [500, 2, 40])
    kept, held = hold_out(uneven, 0.05, 0, setting="search_fraction")
    assert np.bincount(uneven[held]).tolist() == [25, 1, 2]
    assert sorted([*kept, *held]) == list(range(542))
    config = DataConfig(dataset="imagefolder", search_fraction=0.5, train_fraction=0.01)
    train, _ = split_off_search(np.repeat(np.arange(5), 4), config)
    assert len(train) == 5


def test_a_class_of_one_image_is_refused_by_its_name(tmp_path: Path) -> None:
    write_images(tmp_path / "train", num=4)
    write_images(tmp_path / "val", num=1)
    for number in (1, 2, 3):
        (tmp_path / "train" / "dog" / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"data.search_fraction: .* a single image is left of dog; add images"):
        open_folder(tmp_path)


# --- values


def png(path: Path, values: np.ndarray, color: int) -> None:
    """A PNG of 16 bits, which Pillow writes of grey alone."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


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
    "32-bit integers": ("a.tif", saved(DEEP.astype(np.int32)), "integers of 32 bits, of which nothing tells"),
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


# --- damage


def spoil(path: Path) -> None:
    """In the middle, where neither the header nor the end of the file tells."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_fails_in_training_is_named_in_one_line(tmp_path: Path, num_workers: int) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    spoil(tmp_path / "val" / "dog" / "1.png")
    data = open_folder(tmp_path, num_workers=num_workers)
    with pytest.raises(DataError) as error:
        list(data.eval_batches("test", batch_size=2, device=CPU))
    assert str(error.value).startswith(f"{tmp_path}/val/dog/1.png: damaged: ")
    assert "\n" not in str(error.value)


def test_skipped_images_are_left_out_of_every_split_and_kept_in_the_identity(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    spoil(tmp_path / "val" / "dog" / "1.png")
    (tmp_path / "train" / "cat" / "3.png").write_bytes(b"")
    settings: Any = {"root": tmp_path, "image_size": 16, "num_channels": 3, "num_classes": 3}
    config = DataConfig(dataset="imagefolder", num_workers=0, search_fraction=0.25, on_error="skip")
    notes: list[str] = []
    data, identity = check_data(config, **settings, on_note=notes.append)
    assert identity.skipped == ["train/cat/3.png", "val/dog/1.png"]
    assert identity.images == {"train": 24, "validation": 6}
    assert [data.num_images(split) for split in SPLITS] == [17, 6, 5]
    assert notes[-1] == (
        "2 of 30 images cannot be read and are skipped: train/cat/3.png: no image: the file is empty; and 1 more, see "
        "cvt-nas check"
    )
    list(data.eval_batches("test", batch_size=2, device=CPU))
    again, same = check_data(config, **settings, known=DataIdentity.of({"data": identity.to_json()}), place="run")
    assert same == identity
    assert [again.num_images(split) for split in SPLITS] == [17, 6, 5]
    for path in (tmp_path / "val" / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"val: no image that can be read is left of cat"):
        check_data(config, **settings)


# --- identity


def test_the_same_images_elsewhere_are_the_same_data_and_others_are_told_apart(tmp_path: Path) -> None:
    first = tmp_path / "first"
    write_images(first / "train")
    write_images(first / "val", num=2)
    known = open_folder(first).identity()

    def differs(change: Callable[[Path], object]) -> str | None:
        other = tmp_path / "other"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(first, other)
        change(other)
        return known.difference(open_folder(other).identity())

    assert differs(lambda other: None) is None
    assert differs(lambda other: (other / "train" / ".DS_Store").touch()) is None
    assert (
        differs(lambda other: shutil.copy(other / "val/cat/0.png", other / "train/dog/x.png")) == "1 train image more"
    )
    assert differs(lambda other: (other / "val/cat/0.png").unlink()) == "1 validation image fewer"
    assert differs(
        lambda other: [(other / part / "cat").rename(other / part / "cow") for part in ("train", "val")]
    ) == ("the classes have other names")
    other_files = "as many images, but some files have another name or size"
    assert differs(lambda other: (other / "val/cat/0.png").rename(other / "val/cat/9.png")) == other_files
    assert differs(lambda other: (other / "val/cat/0.png").write_bytes(b"1")) == other_files
    with pytest.raises(RunFolderError, match="run: was begun with other data: the classes have other names"):
        known.check_same(DataIdentity.of({"data": {**known.to_json(), "classes_sha256": "0"}}) or known, "run")


# --- the verb


def test_check_lists_every_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    assert main(["check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "3 classes; 19 train, 5 search, 6 test images" in out
    assert out.endswith("usable as it is\n")
    for name in ("0", "5"):
        (tmp_path / "train" / "cat" / f"{name}.png").write_bytes(b"")
    spoil(tmp_path / "val" / "dog" / "1.png")
    (tmp_path / "val" / "cow").mkdir()
    assert main(["check", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    empty = dict.fromkeys(("train/cat/0.png", "train/cat/5.png"), "no image: the file is empty")
    assert found["damaged"] == {**empty, "val/dog/1.png": "damaged: broken data stream when reading image file"}
    assert found["usable"] is False
    assert len(found["problems"]) == 2
    spoil(tmp_path / "train" / "fish" / "1.png")
    assert main(["check", str(tmp_path), "--decode"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("cannot be read: ") for line in lines) == 4
    assert "4 of 30 images cannot be read" in lines
    assert main(["check", str(tmp_path / "nowhere")]) == 2


def test_check_knows_the_named_sets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "digits"]) == 0
    assert "digits: digits, 10 classes; 1,149 train, 288 search, 360 test images" in capsys.readouterr().out


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(DataError, match=r"a.png: cannot be read: Permission denied"):
        read_image(tmp_path / "a.png", "L")


# --- runs

SPACE = """
format: 1
name: tiny
space:
  image_size: 16
  num_classes: 3
  stages:
    - {patch: {kernel: 3, stride: 2, padding: 1}, embed_dim: [8, 16], depth: 1, num_heads: 1, mlp_ratio: [1.0, 2.0]}
    - {patch: {kernel: 3, stride: 2, padding: 1}, embed_dim: 16, depth: 1, num_heads: 2, mlp_ratio: 1.0}
data: {dataset: imagefolder, search_fraction: 0.25, num_workers: 0}
training: {epochs: 4, batch_size: 6, lr: 1.0e-2}
search: {trials: 2, grace_period: 1}
"""


def trained(root: Path, out: Path, *, resume: bool = False, on_error: str = "raise") -> tuple[float, list[str]]:
    """Test accuracy, and what was said."""
    experiment = parse_experiment(SPACE, "tiny.yaml").changed(data={"on_error": on_error})
    arch, notes = experiment.space.largest, list[str]()
    train(arch, experiment, out=out, data=root, device="cpu", resume=resume, on_note=notes.append)
    return RunFolder.open(out).test_accuracies()[arch.id], notes


def test_classes_told_apart_by_sixteen_bits_alone_are_learnt(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, num in (("train", 40), ("val", 8)):
        for index, name in enumerate(NAMES):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(num):
                pixels = rng.integers(0, 30, (16, 16)) + [20, 110, 200][index]
                Image.fromarray((pixels * 257).astype(np.uint16)).save(tmp_path / part / name / f"{number}.png")
    accuracy, notes = trained(tmp_path, tmp_path / "run")
    assert accuracy == 1.0
    assert notes == ["144 images with more than 8 bits, read as 8"]


def test_a_damaged_image_ends_a_training_before_it_begins_or_is_skipped_counted_and_shown(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    (tmp_path / "train" / "cat" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 30 images cannot be read: train/cat/3.png: no image: the file is empty"):
        trained(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    _, notes = trained(tmp_path, tmp_path / "run", on_error="skip")
    assert notes[-1].startswith("1 of 30 images cannot be read and is skipped: train/cat/3.png: ")
    run = RunFolder.open(tmp_path / "run")
    assert run.manifest["data"]["skipped"] == ["train/cat/3.png"]
    assert run.manifest["data"]["splits"] == {"train": 17, "search": 6, "test": 6}
    page = run_page(run)
    assert "images that cannot be read, and are skipped: 1" in page
    assert "3 classes; 17 train, 6 search, 6 test images; search held out of the training images" in page


def test_a_held_out_test_split_is_said_and_kept_in_the_manifest(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "train")
    _, notes = trained(tmp_path / "data", tmp_path / "run")
    assert "no test images in val/ or test/: 5 of the images are held out for it" in notes[0]
    told = RunFolder.open(tmp_path / "run").manifest["data"]
    assert told["held_out"] == ["search", "test"]
    assert told["splits"] == {"train": 14, "search": 5, "test": 5}
    assert told["notes"] == notes


def test_a_run_goes_on_with_its_own_data_alone(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    write_images(root / "train")
    write_images(root / "val", num=2)
    trained(root, out)
    shutil.copytree(root, tmp_path / "moved")
    trained(tmp_path / "moved", out, resume=True)
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "new.png")
    with pytest.raises(RunFolderError, match=r"run: was begun with other data: 1 train image more"):
        trained(root, out, resume=True)
    experiment, run = parse_experiment(SPACE, "tiny.yaml"), RunFolder.open(out)
    setup = TrainingSetup.of(experiment, run=RunFolder(out), data=root)
    with pytest.raises(RunFolderError, match=r"1 train image more"):  # as for a query
        setup.identified(run)
    assert (
        TrainingSetup.of(experiment, run=RunFolder(out), data=tmp_path / "moved").identified(run).identity is not None
    )

    trained(root, tmp_path / "other")
    with pytest.raises(RunFolderError, match=r"are of other data, and do not compare: 1 train image more"):
        Comparison.of([run, RunFolder.open(tmp_path / "other")])

    manifest = {name: value for name, value in run.manifest.items() if name != "data"}
    (out / "manifest.json").write_text(json.dumps(manifest))  # as an earlier version wrote it
    _, notes = trained(root, out, resume=True)
    assert notes == [f"{out}: was begun by an earlier version, so whether its data are the same cannot be told"]
    assert len(Comparison.of([run, RunFolder.open(tmp_path / "other")]).groups) == 1


def test_data_mended_before_anything_was_trained_take_the_place_of_the_damaged_ones(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    write_images(root / "train")
    write_images(root / "val", num=2)
    path = root / "train" / "cat" / "3.png"
    spoil(path)
    with pytest.raises(DataError, match=r"train/cat/3.png: damaged: "):  # in the middle of an epoch
        trained(root, out)
    shutil.copy(root / "train" / "cat" / "4.png", path)
    _, notes = trained(root, out, resume=True)
    assert notes == [
        f"{out}: was begun with other data: as many images, but some files have another name or size; nothing was "
        f"trained on those yet"
    ]
    trained(root, out, resume=True)


def test_a_training_that_somebody_works_on_keeps_its_manifest(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    write_images(root / "train")
    write_images(root / "val", num=2)
    path = root / "train" / "cat" / "3.png"
    spoil(path)
    with pytest.raises(DataError, match="damaged"):
        trained(root, out)
    shutil.copy(root / "train" / "cat" / "4.png", path)
    before = (out / "manifest.json").read_text()
    with RunFolder.open(out).locked(), pytest.raises(RunFolderError, match="is at work on it"):
        trained(root, out, resume=True)
    assert (out / "manifest.json").read_text() == before


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_image_damaged_since_a_run_was_trained_is_to_be_mended(tmp_path: Path, on_error: Any) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    settings: Any = {"root": tmp_path, "image_size": 16, "num_channels": 3, "num_classes": 3}
    config = DataConfig(dataset="imagefolder", num_workers=0, search_fraction=0.25, on_error=on_error)
    _, known = check_data(config, **settings)
    path = tmp_path / "train" / "cat" / "3.png"
    path.write_bytes(bytes(path.stat().st_size))  # of the same size
    with pytest.raises(DataError, match=r"train/cat/3.png: .*; mend them, or begin another run$"):
        check_data(config, **settings, known=known, place="run")


def test_a_worker_refuses_images_that_its_driver_has_not_seen(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    setup = TrainingSetup.of(parse_experiment(SPACE, "tiny.yaml"), run=RunFolder(tmp_path), data=tmp_path).checked()
    shutil.copy(tmp_path / "val" / "cat" / "0.png", tmp_path / "val" / "cat" / "late.png")
    assert setup.open_data().num_images("test") == 6  # what this process has looked at
    as_in_another_process()
    with pytest.raises(DataError, match=r"has changed since the run began: .*'test': 6} images, now .*'test': 7}"):
        setup.open_data()


def as_in_another_process() -> None:
    """Forgets the data set that this one has opened."""
    from cvt_nas.engine import setup

    setup._OPENED.clear()


def test_workers_have_the_images_that_the_driver_has_listed_and_look_through_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    write_images(root / "train")
    write_images(root / "val", num=2)
    (root / "train" / "cat" / "grö\nße.png").write_bytes((root / "train" / "cat" / "0.png").read_bytes())
    run.mkdir()
    setup = TrainingSetup.of(parse_experiment(SPACE, "tiny.yaml"), run=RunFolder(run), data=root).checked()
    setup.save_listing()
    found: Any = setup.open_data()
    as_in_another_process()
    shutil.copy(root / "val" / "cat" / "0.png", root / "val" / "cat" / "late.png")
    monkeypatch.setattr("cvt_nas.data.folders.list_images", None)
    again: Any = setup.open_data()
    assert again is not found
    for role, images in found.files.items():
        assert again.files[role].names == images.names
        np.testing.assert_array_equal(again.files[role].labels, images.labels)
    for split, rows in found._rows.items():
        np.testing.assert_array_equal(again._rows[split], rows)


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (["cat/../../../etc/passwd"] * 24, [0, 1, 2] * 8, "names a file outside .*train: 'cat/../'"),
        (["/etc/passwd"] * 24, [0, 1, 2] * 8, "names a file outside .*train: '/'"),
        (["cat/0.png", "cat/./1.png"] * 12, [0, 1, 2] * 8, "names a file outside"),
        (["cat/0.png", ""] * 12, [0, 1, 2] * 8, "names a file outside"),
        (["cat/0.png"] * 24, [0, 1, 3] * 8, "is of other images than .*train had"),
        (["cat/0.png"] * 23, [0, 1, 2] * 8, "is of other images than .*train had"),
    ],
)
def test_a_listing_of_somebody_else_leads_nowhere(
    names: list[str], labels: list[int], message: str, tmp_path: Path
) -> None:
    write_images(tmp_path / "train")
    layout, listing = find_layout(tmp_path), tmp_path / "images.npz"
    images = dataclasses.replace(list_images(layout, "train"), names=names, labels=np.array(labels))
    with listing.open("wb") as file:
        save_listing({"train": images}, file)
    with pytest.raises(DataError, match=message):
        load_listing(listing, layout)


@pytest.mark.parametrize("content", [b"", b"PK", b"no listing"])
def test_a_damaged_listing_is_named(content: bytes, tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    (tmp_path / "images.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"images.npz: is damaged, or of other splits"):
        load_listing(tmp_path / "images.npz", find_layout(tmp_path))


def test_a_search_keeps_the_identity_of_its_data_and_checks_it(tmp_path: Path) -> None:
    from cvt_nas import search

    root, out = tmp_path / "data", tmp_path / "run"
    write_images(root / "train")
    write_images(root / "val", num=2)
    experiment = parse_experiment(SPACE, "tiny.yaml")
    run = search(experiment, out=out, data=root, cpus=1, gpus=0)
    assert run.manifest["data"]["images"] == {"train": 24, "validation": 6}
    (root / "val" / "cat" / "0.png").rename(root / "val" / "cat" / "x.png")
    with pytest.raises(RunFolderError, match=r"as many images, but some files have another name or size"):
        search(experiment, out=out, data=root, cpus=1, gpus=0, resume=True)


def test_a_named_network_takes_the_channels_and_classes_of_the_file() -> None:
    experiment = parse_experiment(SPACE.replace("num_classes: 3", "num_classes: 102"), "tiny.yaml")
    arch, note = fitted(load_arch("cvt-13"), experiment)
    assert (arch.num_classes, arch.num_channels) == (102, 3)
    assert note == "the network takes 3 channels and 102 classes of tiny"
    assert fitted(arch, experiment) == (arch, None)


@pytest.mark.parametrize("held_out", [False, True])
def test_damage_in_the_middle_of_a_test_image_is_found_before_a_training(tmp_path: Path, held_out: bool) -> None:
    write_images(tmp_path / "train")
    if held_out:
        data = open_folder(tmp_path)
        row = int(data._rows["test"][0])
        path = tmp_path / "train" / data.files["train"].names[row]
    else:
        write_images(tmp_path / "val", num=2)
        path = tmp_path / "val" / "dog" / "1.png"
    spoil(path)
    with pytest.raises(DataError, match=rf"images cannot be read: {path.relative_to(tmp_path)}: damaged: "):
        trained(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_check_says_how_the_training_images_are_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    spoil(tmp_path / "val" / "dog" / "1.png")
    assert main(["check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "cannot be read: val/dog/1.png: damaged: " in out
    assert "note: training images: headers and ends only; --decode reads them whole" in out


# --- names


@pytest.mark.parametrize("where", ["class", "image", "folder"])
def test_a_name_that_is_not_utf8_is_refused_before_anything_is_trained(tmp_path: Path, where: str) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    name = os.fsdecode(b"caf\xe9")
    if where == "class":
        for part in ("train", "val"):
            (tmp_path / part / "cat").rename(tmp_path / part / name)
    elif where == "image":
        shutil.copy(tmp_path / "val" / "cat" / "0.png", tmp_path / "val" / "cat" / f"{name}.png")
    else:
        shutil.copytree(tmp_path / "val" / "cat", tmp_path / "val" / "cat" / name)
    with pytest.raises(DataError, match=r"caf\\xe9\S*: the name is not UTF-8; rename it"):
        trained(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_a_folder_that_is_not_utf8_can_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / os.fsdecode(b"b\xe9")
    write_images(root / "train")
    monkeypatch.setattr("sys.argv", ["cvt-nas", "train", "--data", str(root)])
    trained(root, tmp_path / "run")
    manifest = RunFolder.open(tmp_path / "run").manifest
    assert r"b\xe9" in manifest["command"]
    assert r"b\udce9: no test images" in manifest["data"]["notes"][0]
    trained(root, tmp_path / "run", resume=True)


_IDENTITY = """
import json, sys
from pathlib import Path
from cvt_nas.config import DataConfig
from cvt_nas.data import check_data
config = DataConfig(dataset="imagefolder", num_workers=0, search_fraction=0.25, on_error="skip")
data, identity = check_data(config, root=Path(sys.argv[1]), image_size=16, num_channels=3, num_classes=3)
print(json.dumps([sys.getfilesystemencoding(), data.class_names, identity.to_json()]))
"""


def test_names_are_recorded_alike_in_every_locale(tmp_path: Path) -> None:
    names = ("chat", "chién", "poisson")
    write_images(tmp_path / "train", names)
    write_images(tmp_path / "val", names, num=2)
    (tmp_path / "train" / "chién" / "ü.png").write_bytes(b"")
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run([sys.executable, "-c", _IDENTITY, tmp_path], check=True, capture_output=True, env=env)
    encoding, class_names, identity = json.loads(run.stdout)
    assert (encoding, class_names) == ("ascii", list(names))
    config = DataConfig(dataset="imagefolder", num_workers=0, search_fraction=0.25, on_error="skip")
    _, here = check_data(config, root=tmp_path, image_size=16, num_channels=3, num_classes=3)
    assert identity == json.loads(json.dumps(here.to_json()))
    assert identity["skipped"] == ["train/chién/ü.png"]


def test_a_problem_of_a_whole_file_has_no_empty_place(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"^x.json: Invalid JSON"):
        parse_json(TypeAdapter(dict[str, int]), b"{", "x.json")


# --- links and what is no file


def test_links_that_lead_up_or_nowhere_and_pipes_are_named_and_never_opened(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    (tmp_path / "train" / "cat" / "up").symlink_to("..")
    (tmp_path / "train" / "cat" / "top").symlink_to(tmp_path.parent)
    (tmp_path / "train" / "cow").symlink_to("nowhere")
    (tmp_path / "val" / "dog" / "more").symlink_to("nowhere")
    os.mkfifo(tmp_path / "val" / "dog" / "pipe.jpg")
    report = check_set(tmp_path)
    told = "\n".join(report.problems)
    assert f"{tmp_path}/train/cat/up: a link that leads up to {tmp_path}/train, which it lies in" in told
    assert f"{tmp_path}/train/cat/top: a link that leads up" in told
    assert f"{tmp_path}/train/cow: a link that leads nowhere" in told
    assert f"{tmp_path}/val/dog/more: a link that leads nowhere" in told
    assert f"{tmp_path}/val/dog/pipe.jpg: is named as an image, and is no regular file but a pipe" in told
    assert report.images is not None
    assert report.images.num_images == 30
    with pytest.raises(DataError, match=r"cow: a link that leads nowhere"):
        trained(tmp_path, tmp_path / "run")


# --- layouts that would become classes


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("training_set", "test_set"), ("seg_train", "seg_test"), ("train_images", "test_images"),
        ("train2017", "val2017"), ("train_1", "test_1"), ("train ", "val "), ("my-train", "my-valid"),
        ("trainset", "testset"),
    ],
)  # fmt: skip
def test_folders_named_much_like_splits_never_become_classes(tmp_path: Path, train: str, val: str) -> None:
    write_images(tmp_path / train)
    write_images(tmp_path / val, num=2)
    for test_only in (False, True):
        with pytest.raises(DataError, match=r"seems to be a split: rename splits to train/ and val/"):
            open_folder(tmp_path, num_classes=2, test_only=test_only)


@pytest.mark.parametrize("name", ["trainer", "valley", "tested", "contest", "device", "invalid"])
def test_names_that_only_contain_the_name_of_a_split_are_classes(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, ("a", "b", name))
    assert name in open_folder(tmp_path).class_names


def test_classes_may_have_names_like_splits_where_the_split_is_marked(tmp_path: Path) -> None:
    names = ("bullet train", "bus", "test tube")
    write_images(tmp_path / "train", names)
    assert open_folder(tmp_path).class_names == names
    assert open_folder(tmp_path / "train", test_only=True).class_names == names


def test_a_set_that_lies_one_folder_deeper_is_refused_with_the_folder_to_name(tmp_path: Path) -> None:
    write_images(tmp_path / "flowers" / "train")
    write_images(tmp_path / "flowers" / "val", num=2)
    with pytest.raises(DataError, match=rf"name {tmp_path}/flowers$"):
        open_folder(tmp_path)
    shutil.rmtree(tmp_path / "flowers")
    write_images(tmp_path / "flowers")
    with pytest.raises(DataError, match=rf"would be its one class, and holds folders: name {tmp_path}/flowers$"):
        open_folder(tmp_path)
    write_images(tmp_path / "fish" / "train")
    with pytest.raises(DataError, match=r"fish/ would be read as a class, and holds train"):
        open_folder(tmp_path)


def test_a_split_that_is_a_dead_link_or_leads_up_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "data")
    (tmp_path / "data" / "train").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"data: train is a link that leads nowhere"):
        open_folder(tmp_path / "data")
    (tmp_path / "data" / "train").unlink()
    (tmp_path / "data" / "train").symlink_to(".")
    with pytest.raises(DataError, match=r"data: train is a link that leads up"):
        open_folder(tmp_path / "data")


def test_one_class_is_no_task(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ("cat",))
    write_images(tmp_path / "val", ("cat",))
    with pytest.raises(DataError, match=r"train: cat/ is the only class folder; one class is no task"):
        open_folder(tmp_path, num_classes=1)
    report = check_set(tmp_path)
    assert report.problems == (f"{tmp_path}/train: cat/ is the only class folder; one class is no task",)
    assert "classes: cat 8" in report.lines()
    assert open_folder(tmp_path, num_classes=1, test_only=True).num_images("test") == 8


def test_a_class_named_like_a_split_in_a_flat_folder_is_told_that_the_name_is_reserved(tmp_path: Path) -> None:
    write_images(tmp_path, ("invalid", "valid"))
    with pytest.raises(DataError, match=r"valid/ has no class folders, and is ignored: the name is reserved for a spl"):
        open_folder(tmp_path)


def test_eval_of_a_run_skips_what_the_run_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    write_images(root / "train")
    write_images(root / "val", num=2)
    spoil(root / "val" / "dog" / "1.png")
    trained(root, out, on_error="skip")
    (arch_id,) = RunFolder.open(out).test_accuracies()
    assert main(["eval", f"{out}:{arch_id}", "--data", str(root), "--device", "cpu"]) == 0
    told = capsys.readouterr()
    assert "of 5 test images" in told.out
    assert "1 of 6 images cannot be read and is skipped: val/dog/1.png" in told.err
    assert main(["eval", str(out / "models" / arch_id), "--data", str(root), "--device", "cpu"]) == 2


def test_training_an_architecture_of_a_run_on_other_data_is_said_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    write_images(root / "train")
    write_images(root / "val", num=2)
    trained(root, out)
    (arch_id,) = RunFolder.open(out).test_accuracies()
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "new.png")
    again = ["train", f"{out}:{arch_id}", "--data", str(root), "--gpus", "0", "--epochs", "2"]
    assert main([*again, "--out", str(tmp_path / "a")]) == 0
    assert "other data than those that the architecture was found on: 1 train image more" in capsys.readouterr().err
    for part in ("train", "val"):
        (root / part / "cat").rename(root / part / "cow")
    assert main([*again, "--out", str(tmp_path / "b")]) == 2
    assert "the classes have other names: the architecture was found on other classes" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()

    run = RunFolder.open(out)
    manifest = {name: value for name, value in run.manifest.items() if name != "data"}
    (out / "manifest.json").write_text(json.dumps(manifest))  # as an earlier version wrote it
    notes: list[str] = []
    setup = TrainingSetup.of(parse_experiment(SPACE, "tiny.yaml"), run=RunFolder(out), data=root)
    setup.identified(run, on_note=notes.append)  # as for a query
    assert notes == [f"{out}: was begun by an earlier version, so whether its data are the same cannot be told"]


@pytest.mark.parametrize(("name", "other", "shown"), [("é", "e\u0301", r"e\u0301"), ("cat", "cat ", "'cat '")])
def test_class_names_that_look_alike_are_told_apart(tmp_path: Path, name: str, other: str, shown: str) -> None:
    write_images(tmp_path / "train", (name, "dog"))
    write_images(tmp_path / "val", (other, "dog"))
    with pytest.raises(DataError, match="in only one of train/ and val/: ") as error:
        open_folder(tmp_path, num_classes=2)
    assert shown in str(error.value)
