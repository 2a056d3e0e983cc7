"""WebDataset's shards."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset.writer import TarWriter

from cvt_nas.config import AugmentConfig
from cvt_nas.data import SPLITS, find_data
from cvt_nas.data.report import check_set
from cvt_nas.errors import DataError
from image_folders import CPU, open_kind, sizes, trained, write_images


def picture(label: int, number: int, kind: str = "PNG") -> bytes:
    noise = np.random.default_rng((label, number)).integers(0, 30, (20, 24, 3))
    to = io.BytesIO()
    Image.fromarray((noise + [20, 110, 200][label]).astype(np.uint8)).save(to, kind)
    return to.getvalue()


def write(path: Path, rows: range, *, tags: Any = None, **more: Any) -> Path:
    """A shard, by the library itself; three classes one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path)) as to:
        for row in rows:
            label = {"cls": row % 3} if tags is None else {"json": {"tags": tags(row), "id": row}}
            to.write({"__key__": f"part.{row % 2}/{row:06d}", "png": picture(row % 3, row), **label, **more})
    return path


def write_set(root: Path, names: tuple[str, ...] = ("train-000.tar", "train-001.tar", "val-000.tar")) -> Path:
    for number, name in enumerate(names):
        write(root / name, range(number * 12, number * 12 + 12))
    return root


@pytest.mark.parametrize(
    "names", [("train-000.tar", "train-001.tar", "val-000.tar"), ("train/0.tar", "train/1.tar", "test/0.tar")]
)
def test_shards_have_the_splits_that_their_names_tell(names: tuple[str, ...], tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", names)
    write(root / names[0], range(12), **{"depth.png": picture(2, 0)})
    assert find_data(root) == ("webdataset", root)
    data: Any = open_kind(root)
    assert (data.class_names, sizes(data)) == (("0", "1", "2"), [18, 6, 12])
    for split in SPLITS:
        ((images, labels),) = data.eval_batches(split, batch_size=30, device=CPU)
        assert torch.equal(labels[images.mean(dim=(1, 2, 3)).argsort()], labels.sort().values)
    assert data.labels("test").tolist() == [0, 1, 2] * 4
    report = check_set(root)
    assert (report.is_usable, report.class_counts) == (True, (8, 8, 8))


def test_a_pattern_names_shards_in_its_order_and_one_that_is_missing(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", ("00.tar", "01.tar", "02.tar"))
    pattern = root / "{02..00}.tar"
    assert find_data(pattern) == ("webdataset", pattern)
    data: Any = open_kind(pattern)
    assert [name[:6] for name in data.records.files["train"].names[::12]] == ["02.tar", "01.tar", "00.tar"]
    assert sizes(data) == [21, 7, 8]
    assert open_kind(root / "02.tar", test_only=True).num_images("test") == 12
    with pytest.raises(DataError, match=r"2 of 5 shards are missing: 03.tar, 04.tar"):
        open_kind(root / "{00..04}.tar")


def test_shards_are_looked_through_once_and_again_where_one_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_set(tmp_path / "set")
    first: Any = open_kind(root)
    with monkeypatch.context() as patched:
        patched.setattr("cvt_nas.data.kinds.shards.tarfile.open", None)
        again: Any = open_kind(root)
    assert again.identity() == first.identity()

    def epoch(data: Any, begin: int = 0) -> list[torch.Tensor]:
        augment = AugmentConfig(crop_scale=0.3, flip=True, random_erasing=0.5)
        found = data.train_batches(batch_size=4, augment=augment, device=CPU, seed=1, epoch=2, first=begin)
        return [images for images, _ in found]

    assert all(torch.equal(a, b) for a, b in zip(epoch(first)[2:], epoch(again, 2), strict=True))
    write(root / "train-001.tar", range(12, 23))
    assert sizes(open_kind(root))[0] < 18


def test_labels_may_be_under_a_key_of_json_and_several(tmp_path: Path) -> None:
    def tags(row: int) -> list[str]:
        return [name for name, step in (("red", 2), ("round", 3), ("soft", 4)) if row % step == 0]

    write(tmp_path / "0.tar", range(48), tags=tags)
    data = open_kind(tmp_path)
    assert data.is_multi_label
    assert data.class_names == ("red", "round", "soft")
    assert sum(int(data.labels(split).sum()) for split in SPLITS) == sum(len(tags(row)) for row in range(48))
    write(tmp_path / "0.tar", range(48), tags=lambda row: f"species {row % 3}")
    assert open_kind(tmp_path).class_names == ("species 0", "species 1", "species 2")
    with pytest.raises(DataError, match=r"48 of 48 images have no label under kind, 0.tar/part.0/000000.png the first"):
        open_kind(tmp_path, label_column="kind")


def test_shards_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    (root / "more.tar").write_bytes((root / "val-000.tar").read_bytes())
    with pytest.raises(DataError, match=r"some shards name a split, but these do not: more.tar"):
        open_kind(root)
    (root / "more.tar").rename(root / "test.tar")
    (root / "test.tar").write_bytes((root / "val-000.tar").read_bytes()[:3000])
    with pytest.raises(DataError, match=r"test.tar: cannot be read as a tar file that is not compressed: "):
        open_kind(root)
    with tarfile.open(root / "test.tar", "w") as file:
        file.addfile(tarfile.TarInfo("notes.txt"))
    (root / "train-000.tar").unlink()
    (root / "train-001.tar").unlink()
    (root / "val-000.tar").unlink()
    with pytest.raises(DataError, match=r"no shard holds an image"):
        open_kind(root)


def test_images_of_names_with_a_further_dot_are_counted(tmp_path: Path) -> None:
    def write_named(*names: str) -> Path:
        with tarfile.open(tmp_path / "0.tar", "w") as file:
            for row, name in enumerate(names):
                for kind, content in (("png", picture(row % 3, row)), ("cls", str(row % 3).encode())):
                    member = tarfile.TarInfo(f"{name}.{kind}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
        return tmp_path

    ends = "WebDataset ends the name of a sample at its first dot; rename those that are to be read"
    plain, dotted = [f"img{row:02}" for row in range(18)], [f"v1.{row:02}" for row in range(12)]
    for _ in range(2):  # the second time from the cache
        report = check_set(write_named(*plain, *dotted))
        assert report.images is not None
        assert (report.is_usable, report.images.num_images) == (True, 18)
        assert f"{tmp_path}: 12 images are ignored, such as 0.tar/v1.00.png: {ends}" in report.notes
    report = check_set(write_named(*plain, "000.left"))
    assert f"{tmp_path}: 1 image is ignored, such as 0.tar/000.left.png: {ends}" in report.notes
    assert not any("ignored" in note for note in check_set(write_named(*plain)).notes)
    with pytest.raises(
        DataError, match=rf"no shard holds an image; 12 images are ignored, such as 0.tar/v1.00.png: {ends}"
    ):
        open_kind(write_named(*dotted))


def test_an_archive_beside_class_folders_is_no_shard(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write(tmp_path / "train.tar", range(3))
    assert find_data(tmp_path)[0] == "imagefolder"


def test_an_image_of_a_shard_that_is_damaged_is_named(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    with TarWriter(str(root / "val-000.tar")) as to:
        for row in range(12):
            to.write({"__key__": f"{row}", "jpg": b"no" if row == 4 else picture(row % 3, row, "JPEG"), "cls": row % 3})
    report = check_set(root)
    assert report.images is not None
    assert report.images.damaged == {"val-000.tar/4.jpg": "no image: it begins as text"}
    assert report.images.formats == {"PNG": 24, "JPEG": 11}


def test_a_training_on_shards_learns(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "train-0.tar", range(48))
    write(root / "test-0.tar", range(12))
    accuracy, _ = trained(root, tmp_path / "run", dataset="webdataset")
    assert accuracy > 0.9
