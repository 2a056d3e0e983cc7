"""Which folder is which split, what its classes are, and what is refused."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cvt_nas.cli import main
from cvt_nas.data import SPLITS, find_data, shape_of
from cvt_nas.data.report import check_set
from cvt_nas.errors import DataError
from image_folders import CPU, NAMES, open_folder, sizes, trained, write_images


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
    images = data.records.files["train"]
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
        f"{tmp_path}/some/{part}: @web/ begins with @, like a network drive's own folders, and is no class"
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
    assert printed.err.startswith(rf"cvt-nas: --data {tmp_path}/no\nsuch\x1b: no such file")
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
        f"{tmp_path}/train: ignored files that are no images: 1 .csv, 2 .heic, 1 .npy, 1 images beside the class "
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
    with pytest.raises(DataError, match=r"holds train/ only, and no test images in val/ or test/"):
        open_folder(tmp_path, test_only=True)
    write_images(tmp_path / "other", num=1)
    with pytest.raises(DataError, match=r"holds train/ only"):
        shape_of(*find_data(tmp_path), test_only=True)
    flat = open_folder(tmp_path / "train", test_only=True)
    assert flat.num_images("test") == 24
    assert flat.notes == (
        f"{tmp_path}/train: no named splits: all images are read, even if they may have been trained on",
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
    with pytest.raises(DataError, match=rf"would be the only class, but holds folders: name {tmp_path}/flowers$"):
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
    with pytest.raises(DataError, match=r"valid/ has no class folders and is ignored: the name is reserved for a spl"):
        open_folder(tmp_path)


@pytest.mark.parametrize(("name", "other", "shown"), [("é", "e\u0301", r"e\u0301"), ("cat", "cat ", "'cat '")])
def test_class_names_that_look_alike_are_told_apart(tmp_path: Path, name: str, other: str, shown: str) -> None:
    write_images(tmp_path / "train", (name, "dog"))
    write_images(tmp_path / "val", (other, "dog"))
    with pytest.raises(DataError, match="in only one of train/ and val/: ") as error:
        open_folder(tmp_path, num_classes=2)
    assert shown in str(error.value)
