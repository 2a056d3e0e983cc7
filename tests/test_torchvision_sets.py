"""Torchvision's data sets, from files as they lie once they are unpacked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvt_nas.config import parse_experiment
from cvt_nas.data import find_data, shape_of
from cvt_nas.data.kinds.torchvision_sets import records_of_sets
from cvt_nas.data.records import Files
from cvt_nas.data.report import check_set
from cvt_nas.engine import TrainingSetup
from cvt_nas.errors import DataError
from cvt_nas.run import RunFolder
from image_folders import CPU, SPACE, open_kind, sizes, trained, write_images


def write_idx(folder: Path, **arrays: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / name.replace("_", "-")).write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_set_with_training_and_test_images_is_read_by_its_name_from_data() -> None:
    rng = np.random.default_rng(0)
    labels = {"train": np.arange(40, dtype=np.uint8) % 10, "t10k": np.arange(20, dtype=np.uint8) % 10}
    images = {name: rng.integers(0, 255, (len(own), 28, 28), dtype=np.uint8) for name, own in labels.items()}
    arrays = {f"{name}_labels_idx1_ubyte": own for name, own in labels.items()}
    write_idx(Path("data/MNIST/raw"), **arrays, **{f"{name}_images_idx3_ubyte": own for name, own in images.items()})
    assert find_data("torchvision:mnist") == ("torchvision:mnist", Path("data").absolute())
    assert shape_of(*find_data("torchvision:MNIST")) == (None, 10)
    data: Any = open_kind("torchvision:MNIST", 10, num_channels=1)
    assert (sizes(data), data.class_names[3]) == ([30, 10, 20], "3 - three")
    shown, found = next(data.eval_batches("test", batch_size=20, device=CPU, as_bytes=True))
    assert found.tolist() == labels["t10k"].tolist()
    assert shown.shape == (20, 1, 16, 16)
    assert check_set("torchvision:MNIST").is_usable


@pytest.mark.parametrize("missing", [None, "valid"])
def test_a_set_with_splits_has_those_that_its_class_knows(missing: str | None) -> None:
    for split, num in (("train", 12), ("valid", 4), ("test", 5)):
        if split != missing:
            write_images(Path("data/country211") / split, num=num)
    if missing is not None:
        with pytest.raises(
            DataError, match=r"torchvision:Country211: .*: sought in .*data \(--data DIR\); data.downloa"
        ):
            open_kind("torchvision:Country211")
        return
    data: Any = open_kind("torchvision:Country211")
    assert (data.class_names, sizes(data)) == (("cat", "dog", "fish"), [36, 12, 15])
    assert data.notes == ("its validation images guide the search; data.search_fraction has no effect",)
    ((images, labels),) = data.eval_batches("test", batch_size=15, device=CPU)
    assert torch.equal(labels[images.mean(dim=(1, 2, 3)).argsort()], labels.sort().values)
    assert open_kind("torchvision:Country211", test_only=True).num_images("test") == 15


def test_a_set_without_splits_has_test_images_held_out_and_a_damaged_image_is_named() -> None:
    write_images(Path("data/eurosat/2750"), num=10)
    data: Any = open_kind("torchvision:EuroSAT")
    assert sizes(data) == [18, 6, 6]
    Path("data/eurosat/2750/dog/3.png").write_bytes(b"no image")
    report = check_set("torchvision:EuroSAT")
    assert report.images is not None
    (name,) = report.images.damaged
    assert name == "train/13"
    assert "cannot identify image file" in report.images.damaged[name]


def test_splits_with_folders_of_other_classes_are_refused() -> None:
    for split, names in (("train", ("cat", "fox")), ("valid", ("cat", "fox")), ("test", ("cat", "dog", "fox"))):
        write_images(Path("data/country211") / split, names)
    with pytest.raises(
        DataError, match=r"splits train and test have different classes: only one of them has dog; give all splits"
    ):
        open_kind("torchvision:Country211")


class Own:
    """A data set of the user's, with names of its classes or without."""

    def __init__(self, labels: list[int], *names: str) -> None:
        self.labels = labels
        if names:
            self.classes = list(names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return np.zeros((8, 8), np.uint8), self.labels[row]


def test_own_sets_must_number_their_classes_alike_where_they_name_them() -> None:
    def found(**sets: Own) -> Any:
        return records_of_sets(sets, Path(), Files(), place="mine:sets", is_marked=True, on_note=None)

    train = Own([0, 1, 1, 0], "cat", "dog")
    with pytest.raises(DataError) as error:
        found(train=train, test=Own([0, 1], "dog", "cat"))
    assert str(error.value) == (
        "mine:sets: splits train and test have their classes in different orders: cat, dog in train, dog, cat in test; "
        "give all splits the same ones in one order"
    )
    assert found(train=train, test=Own([0, 1])).class_names == ("cat", "dog")
    assert found(test=Own([-1, -1], "dog", "cat"), train=train).class_names == ("cat", "dog")
    assert found(train=Own([0, 1, 2]), test=Own([0, 1])).class_names == ("0", "1", "2")


def test_names_of_no_set_and_sets_without_classes_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"torchvision:CIFAR11: torchvision has no data set of this name; did you mean CI"
    ):
        open_kind("torchvision:CIFAR11")
    with pytest.raises(
        DataError, match=r"torchvision:CIFAR10: Dataset not found or corrupted: sought in .*data \(--data"
    ):
        open_kind("torchvision:CIFAR10")
    with pytest.raises(DataError, match=r"torchvision:CocoCaptions: is no data set of images with classes: .*annFile"):
        open_kind("torchvision:CocoCaptions")


def test_a_training_by_name_or_in_a_folder_of_its_own(tmp_path: Path) -> None:
    for split, num in (("train", 16), ("valid", 4), ("test", 4)):
        write_images(Path("elsewhere/country211") / split, num=num)
    accuracy, _ = trained(Path("elsewhere"), tmp_path / "run", dataset="torchvision:Country211")
    assert accuracy > 0.9
    experiment = parse_experiment(SPACE, "tiny.yaml").changed(data={"dataset": "torchvision:Country211"})
    setup = TrainingSetup.of(experiment, run=RunFolder(Path("run")), data="torchvision:Country211")
    assert setup.data_root == tmp_path / "data"
