"""The images of a streamed data set: names and labels of each split, and how to read an image."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from cvt_nas.data.sources import Source
from cvt_nas.errors import DataError
from cvt_nas.escaping import told

Role = Literal["train", "validation", "test"]
SPELLINGS: dict[Role, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_NUM_THREADS = 16  # a network disk then gets several requests at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """The images of one split.

    Args:
        root: Folder of the split, or file or folder of the whole data set.
        class_names: Sorted class names; names of labels if an image can have several.
        names: Names of the images. In a folder, they are paths below `root` in torchvision's order: by class, then by
            folder and name.
        labels: Class indices `(images,)`, int64, or 0 and 1 for each label `(images, labels)`, uint8.
        ignored: Number of visible files that are no images, by suffix.
        odd: Entries that cannot be used, one line each.
        called: What messages call a split without a folder of its own.
        extents: Offset and length of each image in its file, in bytes, `(images, 2)`. None if each file is one image.
    """

    root: Path
    class_names: tuple[str, ...]
    names: Sequence[str]
    labels: np.ndarray
    ignored: Counter[str] = field(default_factory=Counter[str])
    odd: Sequence[str] = ()
    called: str = ""
    extents: np.ndarray | None = None

    @property
    def place(self) -> str:
        """What messages call the split."""
        return f"{self.root}: {self.called}" if self.called else str(self.root)

    @property
    def counts(self) -> np.ndarray:
        """Images of each class or label."""
        return counts_of(self.labels, len(self.class_names))

    def of_rows(self, rows: np.ndarray) -> "Images":
        extents = None if self.extents is None else self.extents[rows]
        names = [self.names[row] for row in rows.tolist()]
        return replace(self, names=names, labels=self.labels[rows], extents=extents)

    def without(self, top: Path, skipped: frozenset[str]) -> "Images":
        """Returns the images without those in `skipped`, which are paths below `top` as `told` writes them."""
        if not skipped:
            return self
        below = self.below(top)
        kept = [index for index, name in enumerate(self.names) if told(below + name) not in skipped]
        return self.of_rows(np.array(kept, dtype=np.int64))

    def below(self, top: Path) -> str:
        """Prefix that makes a name a path below `top`."""
        return "" if top == self.root else f"{self.root.relative_to(top)}/"


class Opener(Protocol):
    """Opens the images of one kind of data set. Each process that loads images has a copy."""

    def source(self, images: Images, row: int) -> Source:
        """Source of an image, for `read_pixels`."""
        ...

    def sizes(self, images: Images) -> Sequence[int]:
        """Bytes of each image, which help to identify the data set; -1 if the image is missing."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """Opener of images that are files.

    Args:
        folder: Folder that relative names start from; None for the root of each split.
    """

    folder: Path | None = None

    def source(self, images: Images, row: int) -> str:
        return os.path.join(self.folder or images.root, images.names[row])

    def sizes(self, images: Images) -> list[int]:
        def size(row: int) -> int:
            try:
                return os.stat(self.source(images, row)).st_size
            except OSError:
                return -1

        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            parts = [range(len(images.names))[start : start + 1000] for start in range(0, len(images.names), 1000)]
            return [each for sizes in threads.map(lambda part: [size(row) for row in part], parts) for each in sizes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """A streamed data set.

    Args:
        root: File or folder of the data set. Messages give paths below it.
        class_names: Class names; names of labels if an image can have several.
        files: The images of each split, including those to skip.
        notes: How the data set was read, one line each.
        is_marked: Whether the data set has named splits. If not, all images belong to `train`.
        no_test: Where test images were sought in vain, for messages.
        normalisation: Mean and deviation of each channel, if a listing has kept them.
    """

    root: Path
    class_names: tuple[str, ...]
    files: Mapping[Role, Images]
    opener: Opener
    notes: tuple[str, ...] = ()
    is_marked: bool = True
    no_test: str = ""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def guide(self) -> Role | None:
        return guide_of(self.files)

    @property
    def tested(self) -> Role | None:
        return tested_of(self.files)

    def for_test(self) -> "Records":
        """Returns the data set with only the test images; see `role_for_test`. Raises DataError if it has none."""
        role = role_for_test(self.files, is_marked=self.is_marked)
        if role is None:
            raise DataError(f"--data {self.root}: has no test images, only images that may have been trained on")
        return replace(self, files={role: self.files[role]})

    def check_trainable(self) -> None:
        """Raises DataError if there are no training images, or only one class."""
        if "train" not in self.files:
            raise DataError(f"{self.root}: has no training images")
        if len(self.class_names) == 1:
            raise DataError(f"{self.root}: {self.class_names[0]} is the only class; one class is no task")


def counts_of(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of images of each class or label."""
    if labels.ndim > 1:
        return labels.sum(axis=0, dtype=np.int64)
    return np.bincount(labels, minlength=num_classes)


def guide_of(roles: Mapping[Role, object]) -> Role | None:
    """The split whose images guide the search; None if they are held out of the training images."""
    return "validation" if {"train", "validation", "test"} <= set(roles) else None


def tested_of(roles: Mapping[Role, object]) -> Role | None:
    """The split of the test images; None if they are held out of the training images."""
    return next((role for role in ("test", "validation") if role in roles), None)


def role_for_test(roles: Mapping[Role, object], *, is_marked: bool) -> Role | None:
    """The split to evaluate a trained network on. Without named splits, it is the split of all images.

    None if there are only named training images, which the network may have been trained on.
    """
    return tested_of(roles) if is_marked else "train"


def role_of(word: str) -> Role | None:
    """The split with this name; None if there is no such split."""
    return next((role for role, spellings in SPELLINGS.items() if word.strip().lower() in spellings), None)


def split_by_role(
    root: Path,
    class_names: tuple[str, ...],
    names: np.ndarray,
    labels: np.ndarray,
    roles: np.ndarray,
    extents: np.ndarray | None = None,
) -> dict[Role, Images]:
    """Makes the `Images` of each split from the rows of a data set. Rows keep their order."""
    order: tuple[Role, ...] = ("train", "validation", "test")
    return {
        role: Images(
            root=root, class_names=class_names, names=names[rows].tolist(), labels=labels[rows],
            called=f"its {role} images", extents=None if extents is None else extents[rows],
        )
        for role in order
        if len(rows := np.flatnonzero(roles == role))
    }  # fmt: skip
