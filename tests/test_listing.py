"""The list of images that a driver hands to its workers."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvt_nas.config import parse_experiment
from cvt_nas.data.layout import find_layout
from cvt_nas.data.listing import list_images, load_listing, save_listing
from cvt_nas.engine import TrainingSetup
from cvt_nas.errors import DataError
from cvt_nas.run import RunFolder
from image_folders import SPACE, write_images


def as_in_another_process() -> None:
    """Forgets the data set that this one has opened."""
    from cvt_nas.engine import setup

    setup._OPENED.clear()


def test_a_worker_refuses_images_that_its_driver_has_not_seen(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", num=2)
    setup = TrainingSetup.of(parse_experiment(SPACE, "tiny.yaml"), run=RunFolder(tmp_path), data=tmp_path).checked()
    shutil.copy(tmp_path / "val" / "cat" / "0.png", tmp_path / "val" / "cat" / "late.png")
    assert setup.open_data().num_images("test") == 6  # what this process has looked at
    as_in_another_process()
    with pytest.raises(DataError, match=r"has changed since the run began: .*'test': 6} images, now .*'test': 7}"):
        setup.open_data()


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
    for role, images in found.records.files.items():
        assert again.records.files[role].names == images.names
        np.testing.assert_array_equal(again.records.files[role].labels, images.labels)
    for split, rows in found._rows.items():
        np.testing.assert_array_equal(again._rows[split], rows)


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (["cat/../../../etc/passwd"] * 24, [0, 1, 2] * 8, "names a file outside .*train: 'cat/../'"),
        (["/etc/passwd"] * 24, [0, 1, 2] * 8, "names a file outside .*train: '/'"),
        (["cat/0.png", "cat/./1.png"] * 12, [0, 1, 2] * 8, "names a file outside"),
        (["cat/0.png", ""] * 12, [0, 1, 2] * 8, "names a file outside"),
        (["cat/0.png"] * 24, [0, 1, 3] * 8, "does not belong to the images of .*train"),
        (["cat/0.png"] * 23, [0, 1, 2] * 8, "does not belong to the images of .*train"),
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
    with pytest.raises(DataError, match=r"images.npz: is damaged, or belongs to other splits"):
        load_listing(tmp_path / "images.npz", find_layout(tmp_path))
