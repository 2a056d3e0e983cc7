"""A folder that was packed: the same classes, splits and labels, from small files."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from cvt_nas.cli import main
from cvt_nas.config import DataConfig
from cvt_nas.data.folders import find_folders
from cvt_nas.data.pack import _new_names, pack
from cvt_nas.data.reading import read_image
from cvt_nas.data.streams import StreamedData
from cvt_nas.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes in two splits: large, small, grey, deep and turned images, and names that differ by the suffix."""
    picture = Image.fromarray(load_sample_images().images[0])
    turned = Image.Exif()
    turned[0x0112] = 6
    for part in ("train", "val"):
        for name in ("a", "b"):
            place = tmp_path / "data" / part / name
            (place / "more").mkdir(parents=True)
            picture.save(place / "large.jpg", quality=95)
            picture.resize((90, 60)).save(place / "small.jpg", quality=95)
            picture.resize((90, 60)).save(place / "small.png")
            picture.convert("L").save(place / "more" / "grey.jpeg", quality=95)
            picture.resize((200, 150)).save(place / "turned.jpg", quality=95, exif=turned)
            deep = np.asarray(picture.resize((80, 50)).convert("L")).astype(np.uint16) * 257
            Image.fromarray(deep).save(place / "deep.png")
    return tmp_path / "data"


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_packed_folder_is_the_same_data_set_in_small_files(folder: Path, tmp_path: Path) -> None:
    before, to = files_below(folder), tmp_path / "small"
    found = pack(folder, to, short_side=64)
    assert files_below(folder) == before
    assert (found.encoded, found.copied, found.there, found.damaged) == (20, 4, 0, {})
    assert found.bytes_before == sum(map(len, before.values()))
    assert found.bytes_after == sum(len(content) for name, content in files_below(to).items() if name != ".pack.json")
    config = DataConfig(dataset="imagefolder", search_fraction=0.25, num_workers=0)
    old, new = (StreamedData(config, find_folders("imagefolder", root), 32, 3) for root in (folder, to))
    assert new.class_names == old.class_names
    assert [new.num_images(split) for split in ("train", "search", "test")] == [9, 3, 12]
    place = to / "train" / "a"
    names = {str(path.relative_to(place)) for path in place.rglob("*.jpg")}
    assert names == {"large.jpg", "small.jpg.jpg", "small.png.jpg", "more/grey.jpg", "turned.jpg", "deep.jpg"}
    assert (place / "small.jpg.jpg").read_bytes() == (folder / "train" / "a" / "small.jpg").read_bytes()
    for name in names:
        with Image.open(place / name) as image:
            assert min(image.size) == min(64, {"deep.jpg": 50, "small.jpg.jpg": 60, "small.png.jpg": 60}.get(name, 64))
            assert "exif" not in image.info
            assert image.mode == ("L" if name in ("more/grey.jpg", "deep.jpg") else "RGB")
    for name, original in (("large.jpg", "large.jpg"), ("turned.jpg", "turned.jpg"), ("deep.jpg", "deep.png")):
        found_pixels = np.asarray(read_image(place / name, "RGB")).astype(int)
        expected = read_image(folder / "train" / "a" / original, "RGB")
        assert isinstance(expected, Image.Image)
        expected = expected.resize(found_pixels.shape[1::-1], Image.Resampling.BICUBIC)
        assert np.abs(found_pixels - np.asarray(expected)).mean() < 6


def test_a_small_jpeg_keeps_its_pixels_and_loses_what_it_tells_of_its_owner(folder: Path, tmp_path: Path) -> None:
    small = folder / "train" / "a" / "small.jpg"
    told = Image.Exif()
    told[0x010E] = "secret place"
    with Image.open(small) as image:
        image.save(
            small, quality=95, exif=told, comment=b"secret word", icc_profile=b"a profile of colours", dpi=(72, 72)
        )
    assert small.read_bytes().count(b"secret") == 2
    with Image.open(small) as image:
        pixels = np.asarray(image)
    assert pack(folder, tmp_path / "packed", short_side=64).copied == 4
    packed = tmp_path / "packed" / "train" / "a" / "small.jpg.jpg"
    assert b"secret" not in packed.read_bytes()
    with Image.open(packed) as image:
        assert image.info["icc_profile"] == b"a profile of colours"
        assert np.array_equal(np.asarray(image), pixels)


def test_a_call_that_was_cut_off_is_gone_on_with_and_replaces_nothing(folder: Path, tmp_path: Path) -> None:
    to = tmp_path / "small"
    pack(folder, to, short_side=64)
    whole = files_below(to)
    (to / "train" / "a" / "large.jpg").unlink()
    kept = to / "val" / "b" / "large.jpg"
    kept.write_bytes(b"mine")
    found = pack(folder, to, short_side=64)
    assert (found.encoded, found.copied, found.there) == (1, 0, 23)
    assert files_below(to) == {**whole, "val/b/large.jpg": b"mine"}


def test_no_image_is_lost_to_one_whose_name_goes_on_with_a_suffix(tmp_path: Path) -> None:
    names = ("x.jpg", "x.jpg.jpg", "x.png", "y.png", "y.jpg/x.png")
    for number, name in enumerate(f"{part}/{name}" for part in ("a", "b") for name in names):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(path)
    found = pack(tmp_path / "data", tmp_path / "small", short_side=8)
    assert (found.encoded + found.copied, found.there) == (10, 0)
    paths = [path for path in (tmp_path / "small").rglob("*.jpg") if path.is_file()]
    assert len({path.read_bytes() for path in paths}) == 10
    assert pack(tmp_path / "data", tmp_path / "small", short_side=8).there == 10


_ENDS = st.lists(st.sampled_from((".jpg", ".png", ".JPG")), min_size=1, max_size=4).map("".join)


@given(st.sets(st.builds("a/{}x{}".format, st.sampled_from(("", "x.jpg/", "x.jpg.jpg/")), _ENDS)))
@example({"a/x.png", "a/x.jpg", "a/x.jpg.jpg"})
@example({"a/x.png", "a/x.jpg", "a/x.jpg.jpg", "a/x.jpg.jpg.jpg", "a/x.jpg.jpg.png"})
@example({"a/x.png", "a/x.jpg/x.png", "a/x.png.jpg/x.png"})
def test_new_names_differ_and_those_that_differ_by_plain_rules_follow_them(drawn: set[str]) -> None:
    folders = {os.path.dirname(name) for name in drawn}
    names = sorted(drawn - folders)
    found = _new_names(names)
    assert len({*found, *folders}) == len(names) + len(folders)
    stems = Counter(os.path.splitext(name)[0] for name in names)
    plain = [f"{name if stems[stem := os.path.splitext(name)[0]] > 1 else stem}.jpg" for name in names]
    taken = Counter([*plain, *folders])
    assert all(new == simple for new, simple in zip(found, plain, strict=True) if taken[simple] == 1)


@pytest.mark.parametrize("kind", ["other settings", "something else", "inside", "around", "no data"])
def test_what_would_mix_two_sets_is_refused(kind: str, folder: Path, tmp_path: Path) -> None:
    to, side, source = tmp_path / "small", 64, folder
    if kind == "other settings":
        pack(folder, to, short_side=32)
    elif kind == "something else":
        to.mkdir()
        (to / "notes.txt").write_text("mine")
    elif kind == "no data":
        source = tmp_path / "none"
        source.mkdir()
    else:
        to = folder / "train" / "small" if kind == "inside" else tmp_path
    before = files_below(tmp_path)
    with pytest.raises(DataError):
        pack(source, to, short_side=side)
    assert files_below(tmp_path) == before


def test_images_that_cannot_be_read_are_named_and_left_out_where_that_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train" / "a" / "large.jpg").write_bytes(b"<html>")
    to = tmp_path / "small"
    assert main(["pack", str(folder), "--to", str(to), "--short-side", "64"]) == 2
    assert "1 of 24 images cannot be read: train/a/large.jpg: no image: a web page" in capsys.readouterr().err
    assert len(list(to.rglob("*.jpg"))) == 23
    assert main(["pack", str(folder), "--to", str(to), "--short-side", "64", "--on-error", "skip", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["there"], list(found["damaged"])) == (23, ["train/a/large.jpg"])
    assert main(["pack", str(folder), "--to", str(to), "--short-side", "64", "--on-error", "skip"]) == 0
    said = capsys.readouterr().out
    assert "slightly other pixels" in said
    assert "train/a/large.jpg: no image: a web page" in said
