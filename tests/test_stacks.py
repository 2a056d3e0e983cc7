"""Images in arrays: MedMNIST's npz files, and folders of npy files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvt_nas.config import AugmentConfig, DataConfig
from cvt_nas.data import SPLITS, find_data, load_data, shape_of
from cvt_nas.data.report import check_set
from cvt_nas.errors import DataError
from image_folders import CPU, NAMES, open_kind, sizes, write_images

SIZES = {"train": 40, "val": 12, "test": 20}


def arrays_of(*, channels: int = 0, labels: int = 1, sizes: dict[str, int] = SIZES) -> dict[str, np.ndarray]:
    """As MedMNIST's: `(n, 28, 28)` or `(n, 28, 28, channels)`, and labels `(n, 1)`, or `(n, labels)` of 0 and 1."""
    rng, found = np.random.default_rng(0), {}
    for name, num in sizes.items():
        shape = (num, 28, 28, channels) if channels else (num, 28, 28)
        found[f"{name}_images"] = rng.integers(0, 255, shape, dtype=np.uint8)
        own = np.arange(num)[:, None] % 3 if labels == 1 else rng.random((num, labels)) < 0.4
        found[f"{name}_labels"] = own.astype(np.uint8)
    return found


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return path


def write_npy(folder: Path, **arrays: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


@pytest.mark.parametrize("channels", [0, 3])
def test_a_file_of_medmnist_has_its_own_validation_images_guide_the_search(channels: int, tmp_path: Path) -> None:
    arrays = arrays_of(channels=channels)
    path = write_npz(tmp_path / "bloodmnist.npz", **arrays)
    assert find_data(path) == ("npz", path)
    assert shape_of("npz", path) == (channels or 1, 3)
    data: Any = open_kind(path, num_channels=channels or 1)
    assert (data.class_names, sizes(data)) == (("0", "1", "2"), [40, 12, 20])
    assert data.notes == ("its validation images guide the search; data.search_fraction has no effect",)
    for split, name in zip(SPLITS, SIZES, strict=True):
        np.testing.assert_array_equal(data.labels(split), arrays[f"{name}_labels"][:, 0])
        shown = torch.cat([images for images, _ in data.eval_batches(split, batch_size=7, device=CPU, as_bytes=True)])
        own = arrays[f"{name}_images"].reshape(-1, 28, 28, channels or 1)
        np.testing.assert_array_equal(shown.permute(0, 2, 3, 1).numpy(), own)
    identity = data.identity()
    assert (identity.images, identity.held_out) == ({"train": 40, "validation": 12, "test": 20}, [])
    report = check_set(path)
    assert report.is_usable
    assert "classes: 0 14, 1 13, 2 13" in report.lines()
    assert report.to_json()["counts"] == {"train": [14, 13, 13], "search": [4, 4, 4], "test": [7, 7, 6]}


def test_labels_of_zeros_and_ones_are_several_an_image_unless_each_image_has_exactly_one(tmp_path: Path) -> None:
    arrays = arrays_of(labels=5)
    data = open_kind(write_npz(tmp_path / "chestmnist.npz", **arrays), 5, num_channels=1)
    assert data.is_multi_label
    np.testing.assert_array_equal(data.labels("search"), arrays["val_labels"])
    assert check_set(tmp_path / "chestmnist.npz").lines()[2].startswith("labels: 0 ")
    hot = {name: np.eye(3, dtype=np.uint8)[a[:, 0]] if "labels" in name else a for name, a in arrays_of().items()}
    data = open_kind(write_npz(tmp_path / "hot.npz", **hot), num_channels=1)
    assert not data.is_multi_label
    assert data.labels("test").tolist()[:4] == [0, 1, 2, 0]
    assert "exactly one of 3 labels" in data.identity().notes[0]


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_a_folder_of_arrays_has_any_number_of_channels(kind: str, channels: int, tmp_path: Path) -> None:
    arrays = arrays_of(channels=channels, sizes={"train": 60})
    images = arrays["train_images"]
    white = {"uint8": 255, "uint16": 65535, "float32": 1.0}[kind]
    folder = write_npy(
        tmp_path / "set", images=(images * (white / 255)).astype(kind), labels=arrays["train_labels"].ravel()
    )
    assert find_data(folder) == ("npy", folder)
    assert shape_of("npy", folder) == (channels, 3)
    data: Any = open_kind(folder, num_channels=channels)
    assert sizes(data) == [36, 12, 12]
    assert len(data.preprocessing.mean) == channels
    (shown, _) = next(data.eval_batches("train", batch_size=36, device=CPU, as_bytes=True))
    np.testing.assert_allclose(shown.permute(0, 2, 3, 1).numpy(), images[data._rows["train"]], atol=1)
    augment = AugmentConfig(crop_padding=2, flip=True, random_erasing=0.5, mixup=0.2)
    inputs, targets = next(data.train_batches(batch_size=8, augment=augment, device=CPU, seed=0, epoch=0))
    assert (inputs.shape, targets.shape) == ((8, channels, 16, 16), (8, 3))
    is_mapped = isinstance(data._images["train"].base, np.memmap) or isinstance(data._images["train"], np.memmap)
    assert is_mapped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, "has no array train_images, but test_images, test_labels, train_labels, val_images"),
        ({"val_labels": None}, "has no array val_labels"),
        ({"test_labels": np.zeros((3, 1))}, "test_images has 20 images, test_labels 3"),
        ({"train_images": np.zeros((40, 3, 8, 8), np.uint8)}, "channels must come last"),
        ({"train_images": np.zeros((40, 8), np.uint8)}, r"train_images: has the shape \(40, 8\), must be \(images, he"),
        ({"train_images": np.full((40, 8, 8), 7.0)}, "train_images: has values from 7 to 7, must be from 0 to 1"),
        ({"train_images": np.zeros((40, 8, 8), np.int32)}, "has values of int32, must be uint8, uint16, or floats"),
        ({"train_images": np.full((40, 8, 8), np.nan)}, "has values from nan to nan"),
        ({"val_images": np.zeros((12, 8, 8, 3), np.uint8)}, "val_images has 3 channels, train_images 1"),
        ({"train_labels": np.full((40, 1), 0.5)}, "labels: holds 0.5, which is no class"),
        ({"validation_images": np.zeros((12, 8, 8))}, "val_images, validation_images could each be the validation im"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(
    changes: dict[str, np.ndarray | None], message: str, tmp_path: Path
) -> None:
    arrays = {name: array for name, array in {**arrays_of(), **changes}.items() if array is not None}
    for place in (write_npz(tmp_path / "set.npz", **arrays), write_npy(tmp_path / "set", **arrays)):
        with pytest.raises(DataError, match=message):
            open_kind(place, num_channels=1)


def labelled(labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = arrays_of(sizes={name: len(own) for name, own in labels.items()})
    return {**arrays, **{f"{name}_labels": own for name, own in labels.items()}}


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 3)])
@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_a_split_without_labels_is_ignored(kind: type, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = write_npz(tmp_path / "set.npz", **labelled({"train": np.arange(60) % 3, "test": np.full(shape, -1, kind)}))
    data = open_kind(path, num_channels=1)
    assert (data.class_names, sizes(data)) == (("0", "1", "2"), [36, 12, 12])
    assert data.identity().notes[0] == f"{path}: split test has no labels and is ignored"
    with pytest.raises(DataError, match=r"npz: has no test images, only images that may have been trained on"):
        open_kind(path, num_channels=1, test_only=True)


@pytest.mark.parametrize("split", ["train", "test"])
def test_other_negative_labels_are_refused(split: str, tmp_path: Path) -> None:
    labels = {"train": np.arange(60) % 3, "test": np.arange(20) % 3}
    labels[split][:3] = -1
    path = write_npz(tmp_path / "set.npz", **labelled(labels))
    with pytest.raises(DataError, match=rf"^{path}: 3 of 80 labels are negative; classes count from 0$"):
        open_kind(path, num_channels=1)


def test_a_class_without_training_images_is_refused_unless_only_test_images_are_needed(tmp_path: Path) -> None:
    labels = {name: np.array(names)[np.arange(40) % 2] for name, names in (("train", NAMES[:2]), ("test", NAMES[1:]))}
    path = write_npz(tmp_path / "set.npz", **labelled(labels))
    with pytest.raises(DataError, match=r"^npz: its train images: there is no image of fish$"):
        open_kind(path, num_channels=1)
    assert open_kind(path, num_channels=1, test_only=True).num_images("test") == 40
    tags = {name: np.eye(4, dtype=np.uint8)[np.arange(40) % 2] for name in ("train", "test")}
    for own in tags.values():
        own[::4, :2] = 1
    assert open_kind(write_npz(tmp_path / "tags.npz", **labelled(tags)), 4, num_channels=1).is_multi_label


def test_a_space_file_that_names_another_kind_is_told_which_it_is(tmp_path: Path) -> None:
    folder = write_npy(tmp_path / "set", **arrays_of())
    with pytest.raises(
        DataError, match=r"must hold train/ and val/.*; it seems to be of another kind: data.dataset: n"
    ):
        load_data(DataConfig(dataset="imagefolder"), root=folder, image_size=16, num_channels=1, num_classes=3)
    write_images(folder / "train")
    write_images(folder / "val")
    assert find_data(folder)[0] == "imagefolder"


def test_files_that_are_no_arrays_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "set.npz").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"set.npz: is no npz file, or is incomplete"):
        open_kind(tmp_path / "set.npz")
    np.save(tmp_path / "train_images.npy", np.array([{}, {}]))
    np.save(tmp_path / "train_labels.npy", np.arange(2))
    with pytest.raises(
        DataError, match=r"train_images.npy: cannot be read: Array can.t be memory-mapped: Python objects"
    ):
        open_kind(tmp_path)


def test_arrays_of_sixteen_bits_that_are_nearly_black_are_told(tmp_path: Path) -> None:
    arrays = arrays_of(channels=2)
    dark = {name: a.astype(np.uint16) * 16 if "images" in name else a for name, a in arrays.items()}
    notes = check_set(write_npy(tmp_path / "set", **dark)).notes
    assert notes[0] == (
        f"{tmp_path}/set: train_images: no value is above 16 of 255 when read as 8 bits; scale white up"
    )
