"""Small sets: uint8 arrays on disk, prepared once per node and memory-mapped, so its trials share one copy."""

import copy
import functools
import gzip
import hashlib
import pickle
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from cvt_nas.arch import ImageSize
from cvt_nas.config import AugmentConfig, DataConfig
from cvt_nas.data.augment import erasing_of, mixing_of, randaugment_of, shift_and_flip
from cvt_nas.data.images import (
    Batch,
    Preprocessing,
    Split,
    digest,
    in_order,
    seed_all,
    split_off_search,
    to_device,
)
from cvt_nas.errors import DataError
from cvt_nas.results import DataIdentity
from cvt_nas.run import cache_folder

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """A small data set: uint8 images `(images, channels, height, width)`, int64 labels `(images,)`."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


def open_arrays(dataset: str, root: Path | None) -> Arrays:
    """The memory-mapped copy of this node, made on first use."""
    read, source = _source_of(dataset, root)
    stamp = "digits" if source is None else _stamp(source)
    cache = cache_folder()
    folder = cache / f"{dataset}-{hashlib.sha256(stamp.encode()).hexdigest()[:10]}"
    if not folder.exists():
        arrays = read()
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{dataset}-", dir=cache))
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            np.save(partial / f"{name}.npy", getattr(arrays, name))
        (partial / "classes.txt").write_text("\n".join(arrays.class_names), encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:  # another process of this node was faster; its copy is as good
            shutil.rmtree(partial)
    return Arrays(
        **{
            name: np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in ("train_images", "train_labels", "test_images", "test_labels")
        },
        class_names=tuple((folder / "classes.txt").read_text(encoding="utf-8").split("\n")),
    )


def _stamp(source: Path) -> str:
    """Another one where a file of the set is another, so that no copy of what was there before is read."""
    files = sorted((path.name, path.stat()) for path in source.iterdir() if path.is_file())
    return f"{source.resolve()} {[(name, status.st_size, status.st_mtime_ns) for name, status in files]}"


def _source_of(dataset: str, root: Path | None) -> tuple[Any, Path | None]:
    """A function that reads the set, and where it lies; None where it ships with scikit-learn."""
    if dataset == "digits":
        return _read_digits, None
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
    """scikit-learn's 1,797 digits of 8 x 8 pixels in 17 shades; a stratified fifth of them is the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    return Arrays(
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _read_fashion_mnist(folder: Path) -> Arrays:
    names = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle-boot"
    return Arrays(
        train_images=_read_idx(folder, "train-images-idx3-ubyte", (60_000, 28, 28))[:, None],
        train_labels=_read_idx(folder, "train-labels-idx1-ubyte", (60_000,)).astype(np.int64),
        test_images=_read_idx(folder, "t10k-images-idx3-ubyte", (10_000, 28, 28))[:, None],
        test_labels=_read_idx(folder, "t10k-labels-idx1-ubyte", (10_000,)).astype(np.int64),
        class_names=tuple(names.split()),
    )


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 idx file, plain or gzipped: magic 0 0 8 and the rank, big-endian sizes, then the values."""
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
    """CIFAR's pickled batches, which are the format in which their authors publish them."""
    coarse = dataset == "cifar10"
    label_key, names_key = ("labels", "label_names") if coarse else ("fine_labels", "fine_label_names")
    batches = [f"data_batch_{index}" for index in range(1, 6)] if coarse else ["train"]

    def read(name: str) -> dict[str, Any]:
        try:
            with (folder / name).open("rb") as file:
                return {
                    key.decode() if isinstance(key, bytes) else key: value
                    for key, value in _ArraysOnly(file, encoding="bytes").load().items()
                }
        except DataError as error:
            raise DataError(f"{dataset}: {folder / name}: {error}") from error
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to call for
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
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=tuple(name.decode() if isinstance(name, bytes) else name for name in names),
    )


class _ArraysOnly(pickle.Unpickler):
    """Reads plain values and arrays of numbers alone: what else a pickle asks for is code that it would run."""

    _ALLOWED = frozenset({
        *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),  # of bytes, as Python 3 writes them for Python 2
    })  # fmt: skip

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self._ALLOWED:
            raise DataError(
                f"asks for {module_name}.{global_name}, which is no array and no plain value: it could run any code, "
                f"and is not read"
            )
        return super().find_class(module_name, global_name)


class ArrayData:
    """A set of `Arrays`, batched by index and augmented a batch at a time."""

    def __init__(self, config: DataConfig, arrays: Arrays, image_size: ImageSize) -> None:
        train, search = split_off_search(arrays.train_labels, config, arrays.class_names)
        self.class_names = arrays.class_names
        self._images = {"train": arrays.train_images, "search": arrays.train_images, "test": arrays.test_images}
        self._labels = {"train": arrays.train_labels, "search": arrays.train_labels, "test": arrays.test_labels}
        self._rows = {"train": train, "search": search, "test": np.arange(len(arrays.test_labels))}
        some = arrays.train_images[train[:10_000]].astype(np.float32) / 255
        self.preprocessing = Preprocessing(
            image_size=image_size,
            mean=tuple(some.mean((0, 2, 3)).round(4).tolist()),
            std=tuple(some.std((0, 2, 3)).round(4).tolist()),
        )

    def identity(self) -> DataIdentity:
        """Of the whole set, by its labels and the shapes of its images."""
        seen = hashlib.sha256()
        for split in ("train", "test"):
            seen.update(f"{split} {self._images[split].shape} {self._images[split].dtype}".encode())
            seen.update(np.ascontiguousarray(self._labels[split]).tobytes())
        return DataIdentity(
            num_classes=len(self.class_names),
            classes_sha256=digest(self.class_names),
            files_sha256=seen.hexdigest(),
            images={split: len(self._labels[split]) for split in ("train", "test")},
            splits={split: len(rows) for split, rows in self._rows.items()},
            held_out=["search"],
        )

    def num_images(self, split: Split) -> int:
        return len(self._rows[split])

    def of_classes(self, classes: Collection[int]) -> Self:
        some = copy.copy(self)
        some._rows = {
            split: rows[np.isin(self._labels[split][rows], list(classes))] for split, rows in self._rows.items()
        }
        return some

    def _batch(self, split: Split, rows: np.ndarray) -> tuple[UInt8[Tensor, "b c h w"], Int[Tensor, " b"]]:
        return torch.from_numpy(self._images[split][rows]), torch.from_numpy(self._labels[split][rows])

    def prepared(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Resized, cropped and normalised as `preprocessing` says; channels last."""
        x = images.to(dtype=torch.float32, memory_format=torch.channels_last).div_(255)
        to, mode = self.preprocessing.resized_to(*x.shape[-2:]), self.preprocessing.interpolation
        if x.shape[-2:] != to:
            x = F.interpolate(x, size=to, mode=mode, antialias=True).clamp_(0, 1)  # bicubic overshoots
        x = x[(..., *self.preprocessing.centre_of(*to))].contiguous(memory_format=torch.channels_last)
        mean, std = (
            to_device(torch.tensor(values).view(1, -1, 1, 1), images.device)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return x.sub_(mean).div_(std)  # in place: of a large batch, each copy is a gigabyte

    def train_batches(
        self,
        *,
        batch_size: int,
        augment: AugmentConfig,
        device: torch.device,
        seed: int,
        epoch: int,
        first: int = 0,
        rank: int = 0,
        world_size: int = 1,
        until: int | None = None,
        evaluated: tuple[Split, int] | None = None,
    ) -> Iterator[Batch]:
        del until, evaluated  # nothing is read beforehand
        order = np.random.default_rng((seed, epoch)).permutation(self._rows["train"])[rank::world_size]
        num_batches = max(self.num_images("train") // (world_size * batch_size), 1)
        erase, mix = erasing_of(augment, device), mixing_of(augment, len(self.class_names))
        policy = randaugment_of(augment, self._images["train"].shape[1], device)

        def made(index: int) -> Batch:  # of which nothing but the batch is held on to
            seed_all(seed, epoch, index, rank)
            images, labels = self._batch("train", order[index * batch_size : (index + 1) * batch_size])
            images = to_device(policy(images), device)
            images = shift_and_flip(images, padding=augment.crop_padding, flip=augment.flip)
            return mix(erase(self.prepared(images)), to_device(labels, device))

        yield from map(made, range(first, num_batches))

    def eval_batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device,
        shuffled: bool = False,
        first: int = 0,
        rank: int = 0,
        world_size: int = 1,
        as_bytes: bool = False,
    ) -> Iterator[Batch]:
        rows = in_order(self._rows[split], shuffled)[rank::world_size]
        for start in range(first * batch_size, len(rows), batch_size):
            images, labels = self._batch(split, rows[start : start + batch_size])
            images = to_device(images, device)
            yield images if as_bytes else self.prepared(images), to_device(labels, device)

    def close(self) -> None:
        pass  # there are no processes
