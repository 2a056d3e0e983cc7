"""Small data sets with names of their own: scikit-learn's digits, Fashion-MNIST and CIFAR, in their original files."""

import functools
import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cvt_nas.data.stacks import Arrays, read_npy, read_npz
from cvt_nas.errors import DataError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def source_of(dataset: str, root: Path | None) -> tuple[Callable[[], Arrays], Path | None]:
    """Returns a function that reads a data set, and the place of its files. The place is None for `digits`.

    Raises:
        DataError: The files are missing.
    """
    if dataset == "digits":
        return _read_digits, None
    if dataset in ("npz", "npy"):
        if root is None:
            raise DataError(f"{dataset}: name it by --data")
        return functools.partial(read_npz if dataset == "npz" else read_npy, root), root
    if dataset == "fashion-mnist":
        places = [DEBIAN_FASHION_MNIST] if root is None else [root / "FashionMNIST" / "raw", root]
        for place in places:
            if any(place.glob("train-images-idx3-ubyte*")):
                return functools.partial(_read_fashion_mnist, place), place
        where = (
            "install Debian's dataset-fashion-mnist, or give --data DIR" if root is None else "as torchvision lays it"
        )
        raise DataError(f"fashion-mnist: no train-images-idx3-ubyte in {' or '.join(map(str, places))}; {where}")
    name = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[dataset]
    if root is None:
        raise DataError(f"{dataset}: give the folder that holds {name} by --data DIR")
    place = root if root.name == name else root / name
    if not place.is_dir():
        raise DataError(f"{dataset}: no folder {place}; unpack the archive of its Python version there")
    return functools.partial(_read_cifar, dataset, place), place


def _read_digits() -> Arrays:
    """Reads scikit-learn's 1,797 digits of 8 x 8 pixels in 17 shades. A stratified fifth of them is the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()  # a Bunch, whose attributes type checkers do not know
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    return Arrays(
        images={"train": images[train], "test": images[test]},
        labels={"train": labels[train], "test": labels[test]},
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _read_fashion_mnist(folder: Path) -> Arrays:
    names = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle-boot"
    return Arrays(
        images={
            "train": _read_idx(folder, "train-images-idx3-ubyte", (60_000, 28, 28))[:, None],
            "test": _read_idx(folder, "t10k-images-idx3-ubyte", (10_000, 28, 28))[:, None],
        },
        labels={
            "train": _read_idx(folder, "train-labels-idx1-ubyte", (60_000,)).astype(np.int64),
            "test": _read_idx(folder, "t10k-labels-idx1-ubyte", (10_000,)).astype(np.int64),
        },
        class_names=tuple(names.split()),
    )


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Reads a uint8 idx file, plain or gzipped: magic 0 0 8 and the rank, big-endian sizes, then the values."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
    if path is None:
        raise DataError(f"fashion-mnist: {folder / name} is missing, with and without .gz")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError) as error:
        raise DataError(f"fashion-mnist: {path} is incomplete: {error}") from error
    header = 4 + 4 * len(shape)
    expected = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    if content[:header] != expected or len(content) != header + int(np.prod(shape)):
        raise DataError(f"fashion-mnist: {path} is incomplete: {len(content):,} bytes, not {shape} values of one byte")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_cifar(dataset: str, folder: Path) -> Arrays:
    """Reads CIFAR's pickled batches, the format in which its authors publish it."""
    coarse = dataset == "cifar10"
    label_key, names_key = ("labels", "label_names") if coarse else ("fine_labels", "fine_label_names")
    batches = [f"data_batch_{index}" for index in range(1, 6)] if coarse else ["train"]

    def read(name: str) -> dict[str, Any]:  # as it was pickled: arrays, lists and text
        try:
            with (folder / name).open("rb") as file:
                return {
                    key.decode() if isinstance(key, bytes) else key: value
                    for key, value in _ArraysOnly(file, encoding="bytes").load().items()
                }
        except DataError as error:
            raise DataError(f"{dataset}: {folder / name}: {error}") from error
        except Exception as error:  # a damaged pickle may raise anything
            raise DataError(f"{dataset}: {folder / name} is missing or incomplete: {error}") from error

    def images_and_labels(names: list[str], num_images: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [read(name) for name in names]
        images = np.concatenate([part["data"] for part in parts])
        labels = np.concatenate([part[label_key] for part in parts]).astype(np.int64)
        if images.shape != (num_images, 3072) or len(labels) != num_images:
            raise DataError(f"{dataset}: {folder} is incomplete: {len(images):,} images in {', '.join(names)}")
        return images.reshape(-1, 3, 32, 32), labels

    train_images, train_labels = images_and_labels(batches, 50_000)
    test_images, test_labels = images_and_labels(["test_batch" if coarse else "test"], 10_000)
    names = read("batches.meta" if coarse else "meta")[names_key]
    return Arrays(
        images={"train": train_images, "test": test_images},
        labels={"train": train_labels, "test": test_labels},
        class_names=tuple(name.decode() if isinstance(name, bytes) else name for name in names),
    )


class _ArraysOnly(pickle.Unpickler):
    """Unpickles only plain values and arrays of numbers. Anything else could run code."""

    _ALLOWED = frozenset({
        *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),  # Python 3 writes bytes for Python 2 in this way
    })  # fmt: skip

    def find_class(self, module_name: str, global_name: str) -> object:
        if (module_name, global_name) not in self._ALLOWED:
            raise DataError(
                f"asks for {module_name}.{global_name}, which is no array and no plain value: it could run any code, "
                f"and is not read"
            )
        return super().find_class(module_name, global_name)
