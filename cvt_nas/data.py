"""Images in three splits: train, search (held out of train) and test (read once, at the end).

Small sets are prepared once per node as uint8 arrays on disk and memory-mapped, so all the trials of a
node share one copy. Folders of images stream through a DataLoader. Augmentation is timm's and
torchvision's; only the batched shift and mirror of in-memory images is here, since theirs draw once a batch.
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import os
import pickle
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from cvt_nas.config import AugmentConfig, DataConfig
from cvt_nas.errors import DataError
from cvt_nas.results import write_atomically

Split = Literal["train", "search", "test"]
SPLITS: tuple[Split, ...] = ("train", "search", "test")
Batch = tuple[Float[Tensor, "batch channels height width"], Tensor]

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """What turns an image of `[0, 1]` values into the model's input: resize to `image_size`, then normalise.

    Args:
        crop_pct: Where it is below 1, the shorter side becomes `image_size / crop_pct`, and the centre is taken.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_pct: float = 1.0


class ImageData(Protocol):
    """A data set ready for training."""

    preprocessing: Preprocessing
    class_names: tuple[str, ...]

    def num_images(self, split: Split) -> int: ...

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
    ) -> Iterator[Batch]:
        """One epoch of shuffled, augmented batches; a last one that is not full is dropped.

        Before each batch, Python's, numpy's and torch's global random states are set from `seed`, `epoch`, its number
        and `rank`, so it is the same whether or not the process restarted before it, and so is what is drawn after it.

        Args:
            batch_size: Images a batch on this rank.
            epoch: From 0.
            first: Number of the batch to begin with.

        Yields:
            Images, `(batch, channels, height, width)`, and targets: class indices `(batch,)`, or
            probabilities `(batch, classes)` where mixup or cutmix is on.
        """
        ...

    def eval_batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device,
        shuffled: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[Batch]:
        """Every image of this rank's share of `split` once, without augmentation; targets are class indices.

        Args:
            shuffled: In an order that is random, and the same each time, so that the first images are a fair sample.
        """
        ...


def load_data(
    config: DataConfig, *, root: Path | None, image_size: int, num_channels: int, num_classes: int
) -> ImageData:
    """The data set of a space file.

    Args:
        config: Section `data` of the file.
        root: Folder that holds it; not needed for `digits`, nor for `fashion-mnist` where Debian's
            package is installed.
        image_size, num_channels, num_classes: What the space's networks expect.

    Raises:
        DataError: It is missing, incomplete, or does not fit; one line says what and where.
    """
    if config.dataset in ("imagefolder", "imagenet"):
        data: ImageData = _FolderData(config, root, image_size, num_channels)
        channels = num_channels
    else:
        arrays = _open_arrays(config.dataset, root)
        channels = arrays.train_images.shape[1]
        data = _ArrayData(config, arrays, image_size)
    if channels != num_channels:
        raise DataError(f"{config.dataset} has {channels} channels, space.num_channels is {num_channels}")
    if len(data.class_names) != num_classes:
        raise DataError(f"{config.dataset} has {len(data.class_names)} classes, space.num_classes is {num_classes}")
    return data


def save_preprocessing(data: ImageData, folder: Path) -> None:
    """Writes `preprocessing.json`: what an image must go through before the model, and the classes' names."""
    tree = {**dataclasses.asdict(data.preprocessing), "classes": list(data.class_names)}
    write_atomically(folder / "preprocessing.json", json.dumps(tree, indent=2) + "\n")


def seed_all(*seeds: int) -> None:
    """Sets Python's, numpy's and torch's global random states from `seeds`."""
    seed = int.from_bytes(hashlib.sha256(repr(seeds).encode()).digest()[:4], "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _split_off_search(labels: np.ndarray, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indices of train and search: stratified by class, fixed by the split seed."""
    from sklearn.model_selection import train_test_split

    try:
        train, search = train_test_split(
            np.arange(len(labels)), test_size=config.search_fraction, random_state=config.split_seed, stratify=labels
        )
    except ValueError as error:
        raise DataError(f"data.search_fraction: {config.search_fraction} of {len(labels)} images: {error}") from error
    if config.train_fraction < 1:
        try:
            train, _ = train_test_split(
                train, train_size=config.train_fraction, random_state=config.split_seed, stratify=labels[train]
            )
        except ValueError as error:
            raise DataError(f"data.train_fraction: {config.train_fraction} of {len(train)} images: {error}") from error
    return np.sort(train), np.sort(search)


# --- in-memory sets ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Arrays:
    """A small data set: uint8 images `(images, channels, height, width)`, int64 labels `(images,)`."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


def _open_arrays(dataset: str, root: Path | None) -> _Arrays:
    """The memory-mapped copy of this node, made on first use."""
    read, source = _source_of(dataset, root)
    stamp = "digits" if source is None else f"{source.resolve()} {source.stat().st_mtime_ns}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cvt-nas"
    folder = cache / f"{dataset}-{hashlib.sha256(stamp.encode()).hexdigest()[:10]}"
    if not folder.exists():
        arrays = read()
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{dataset}-", dir=cache))
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            np.save(partial / f"{name}.npy", getattr(arrays, name))
        (partial / "classes.txt").write_text("\n".join(arrays.class_names))
        try:
            partial.rename(folder)
        except OSError:  # another process of this node was faster; its copy is as good
            shutil.rmtree(partial)
    return _Arrays(
        **{
            name: np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in ("train_images", "train_labels", "test_images", "test_labels")
        },
        class_names=tuple((folder / "classes.txt").read_text().split("\n")),
    )


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


def _read_digits() -> _Arrays:
    """scikit-learn's 1,797 digits of 8 x 8 pixels in 17 shades; a stratified fifth of them is the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    return _Arrays(
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _read_fashion_mnist(folder: Path) -> _Arrays:
    names = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle-boot"
    return _Arrays(
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


def _read_cifar(dataset: str, folder: Path) -> _Arrays:
    """CIFAR's pickled batches, which are the format in which their authors publish them."""
    coarse = dataset == "cifar10"
    label_key, names_key = ("labels", "label_names") if coarse else ("fine_labels", "fine_label_names")
    batches = [f"data_batch_{index}" for index in range(1, 6)] if coarse else ["train"]

    def read(name: str) -> dict[str, Any]:
        try:
            with (folder / name).open("rb") as file:
                return {
                    key.decode() if isinstance(key, bytes) else key: value
                    for key, value in pickle.load(file, encoding="bytes").items()
                }
        except (OSError, EOFError, pickle.UnpicklingError) as error:
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
    return _Arrays(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=tuple(name.decode() if isinstance(name, bytes) else name for name in names),
    )


class _ArrayData:
    """A set of `_Arrays`, batched by index and augmented a batch at a time."""

    def __init__(self, config: DataConfig, arrays: _Arrays, image_size: int) -> None:
        train, search = _split_off_search(arrays.train_labels, config)
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

    def num_images(self, split: Split) -> int:
        return len(self._rows[split])

    def _batch(self, split: Split, rows: np.ndarray) -> tuple[UInt8[Tensor, "b c h w"], Int[Tensor, " b"]]:
        return torch.from_numpy(self._images[split][rows]), torch.from_numpy(self._labels[split][rows])

    def _to_input(self, images: UInt8[Tensor, "b c h w"], device: torch.device) -> Float[Tensor, "b c h w"]:
        """Normalised, of the space's image size, channels last."""
        x = _to_device(images, device).to(dtype=torch.float32, memory_format=torch.channels_last).div_(255)
        size = self.preprocessing.image_size
        if x.shape[-1] != size or x.shape[-2] != size:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        mean, std = (
            _to_device(torch.tensor(values).view(1, -1, 1, 1), device)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (x - mean) / std

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
    ) -> Iterator[Batch]:
        order = np.random.default_rng((seed, epoch)).permutation(self._rows["train"])[rank::world_size]
        num_batches = max(self.num_images("train") // (world_size * batch_size), 1)
        erase, mix = _erasing_of(augment, device), _mixing_of(augment, len(self.class_names))
        policy = _randaugment_of(augment, self._images["train"].shape[1])
        for index in range(first, num_batches):
            seed_all(seed, epoch, index, rank)
            images, labels = self._batch("train", order[index * batch_size : (index + 1) * batch_size])
            if policy is not None:
                images = torch.stack([policy(image) for image in images])
            images = _shift_and_flip(images, padding=augment.crop_padding, flip=augment.flip)
            x, targets = erase(self._to_input(images, device)), _to_device(labels, device)
            yield mix(x, targets)

    def eval_batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device,
        shuffled: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[Batch]:
        rows = _in_order(self._rows[split], shuffled)[rank::world_size]
        for start in range(0, len(rows), batch_size):
            images, labels = self._batch(split, rows[start : start + batch_size])
            yield self._to_input(images, device), _to_device(labels, device)


def _in_order(rows: np.ndarray, shuffled: bool) -> np.ndarray:
    return np.random.default_rng(0).permutation(rows) if shuffled else rows


def _to_device(x: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def _shift_and_flip(images: UInt8[Tensor, "b c h w"], *, padding: int, flip: bool) -> UInt8[Tensor, "b c h w"]:
    """Each image shifted by up to `padding` pixels into zeros, and mirrored with probability 1/2."""
    if not padding and not flip:
        return images
    num, _, height, width = images.shape
    rows = torch.arange(height) + torch.randint(0, 2 * padding + 1, (num, 1))
    columns = torch.arange(width) + torch.randint(0, 2 * padding + 1, (num, 1))
    if flip:
        columns = torch.where(torch.rand(num, 1) < 0.5, columns.flip(1), columns)
    padded = F.pad(images, (padding,) * 4)
    picked = padded[torch.arange(num)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _erasing_of(augment: AugmentConfig, device: torch.device) -> Any:
    if augment.random_erasing == 0:
        return lambda images: images
    from timm.data.random_erasing import RandomErasing

    return RandomErasing(augment.random_erasing, mode="pixel", device=str(device))


def _mixing_of(augment: AugmentConfig, num_classes: int) -> Any:
    if augment.mixup == 0 and augment.cutmix == 0:
        return lambda images, labels: (images, labels)
    from timm.data.mixup import Mixup

    # label smoothing is the loss's, for mixed and plain targets alike
    return Mixup(augment.mixup, augment.cutmix, label_smoothing=0.0, num_classes=num_classes)


def _randaugment_of(augment: AugmentConfig, num_channels: int) -> Any:
    """RandAugment of one uint8 image `(channels, height, width)`; None where it is off."""
    if augment.randaugment is None:
        return None
    from timm.data.auto_augment import rand_augment_transform
    from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

    fill = 128 if num_channels == 1 else (128,) * num_channels
    policy = rand_augment_transform(augment.randaugment, {"img_mean": fill})
    return lambda image: pil_to_tensor(policy(to_pil_image(image)))


# --- folders of images ------------------------------------------------------------------------------


class _FolderData:
    """`train/` and `val/` with a folder of images for each class, streamed by a DataLoader."""

    def __init__(self, config: DataConfig, root: Path | None, image_size: int, num_channels: int) -> None:
        from torchvision.datasets import ImageFolder

        if root is None:
            raise DataError(f"{config.dataset}: give the folder that holds train/ and val/ by --data DIR")
        if num_channels not in (1, 3):
            raise DataError(
                f"{config.dataset}: images are read as grey or colour, space.num_channels is {num_channels}"
            )
        self._num_workers = config.num_workers
        loader = functools.partial(_open_image, mode="L" if num_channels == 1 else "RGB")
        try:
            self._folders = {name: ImageFolder(str(root / name), loader=loader) for name in ("train", "val")}
        except (FileNotFoundError, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise DataError(
                f"{config.dataset}: {root} must hold train/ and val/, one folder a class: {reason}"
            ) from error
        if self._folders["train"].classes != self._folders["val"].classes:
            difference = sorted(set(self._folders["train"].classes) ^ set(self._folders["val"].classes))
            raise DataError(f"{config.dataset}: {root}: in only one of train/ and val/: {', '.join(difference[:5])}")
        self.class_names = tuple(self._folders["train"].classes)
        train, search = _split_off_search(np.array(self._folders["train"].targets), config)
        self._rows = {"train": train, "search": search, "test": np.arange(len(self._folders["val"]))}
        self.preprocessing = Preprocessing(
            image_size=image_size,
            mean=IMAGENET_MEAN if num_channels == 3 else (0.449,),
            std=IMAGENET_STD if num_channels == 3 else (0.226,),
            interpolation="bicubic",
            crop_pct=0.875 if image_size < 384 else 1.0,  # at 384 the published models see the whole image, squashed
        )

    def num_images(self, split: Split) -> int:
        return len(self._rows[split])

    def _loader(
        self, split: Split, rows: np.ndarray, transform: Any, batch_size: int, device: torch.device,
        seeds: tuple[int, ...] | None = None,
    ) -> Any:  # fmt: skip
        from torch.utils.data import DataLoader

        images = _Images(self._folders["val" if split == "test" else "train"], rows, transform, seeds)
        return DataLoader(
            images,
            batch_size=batch_size,
            num_workers=self._num_workers,
            pin_memory=device.type == "cuda",
        )

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
    ) -> Iterator[Batch]:
        from timm.data.transforms_factory import create_transform

        pre = self.preprocessing
        transform = create_transform(
            pre.image_size,
            is_training=True,
            scale=(augment.crop_scale, 1.0),
            hflip=0.5 if augment.flip else 0.0,
            color_jitter=augment.color_jitter,
            auto_augment=augment.randaugment,
            re_prob=augment.random_erasing,
            re_mode="pixel",
            interpolation=pre.interpolation,
            mean=pre.mean,
            std=pre.std,
        )
        order = np.random.default_rng((seed, epoch)).permutation(self._rows["train"])[rank::world_size]
        mix = _mixing_of(augment, len(self.class_names))
        usable = order[: self.num_images("train") // world_size]  # the same number of steps on every rank
        if len(usable) >= batch_size:
            usable = usable[: len(usable) // batch_size * batch_size]
        rows = usable[first * batch_size :]
        loader = self._loader("train", rows, transform, batch_size, device, seeds=(seed, epoch))
        for index, (images, labels) in enumerate(loader, start=first):
            seed_all(seed, epoch, index, rank)
            x, targets = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            yield mix(x.contiguous(memory_format=torch.channels_last), targets)

    def eval_batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device,
        shuffled: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[Batch]:
        from timm.data.transforms_factory import create_transform

        pre = self.preprocessing
        transform = create_transform(
            pre.image_size,
            interpolation=pre.interpolation,
            crop_pct=pre.crop_pct,
            crop_mode="squash" if pre.crop_pct == 1 else "center",
            mean=pre.mean,
            std=pre.std,
        )
        rows = _in_order(self._rows[split], shuffled)[rank::world_size]
        for images, labels in self._loader(split, rows, transform, batch_size, device):
            x = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            yield x, labels.to(device, non_blocking=True)


def _open_image(path: str, mode: str) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert(mode)


class _Images(torch.utils.data.Dataset):
    """The images at `rows` of a folder, transformed; at random by `seeds` and the row, whichever process does it."""

    def __init__(self, folder: Any, rows: np.ndarray, transform: Any, seeds: tuple[int, ...] | None) -> None:
        self.folder, self.rows, self.transform, self.seeds = folder, rows, transform, seeds

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = int(self.rows[index])
        if self.seeds is not None:
            seed_all(*self.seeds, row)
        path, label = self.folder.samples[row]
        return self.transform(self.folder.loader(path)), label
