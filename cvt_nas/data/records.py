"""The images of a data set that is streamed: which there are in each split, their labels, and how each is read."""

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
_NUM_THREADS = 16  # so that a network disk has several requests at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """The images of one split.

    Args:
        root: What `names` lie in: the folder of the split, or the file or folder of the whole set.
        class_names: Sorted; of labels, where an image may have several.
        names: Of a folder, their paths below it, in torchvision's order: by class, then by folder and name.
        labels: Class index of each, int64; or of each image and label 0 or 1, uint8.
        ignored: Visible files that are no images, by suffix.
        odd: What of its content cannot be used, one line each.
        called: What messages call the split, where it has no folder of its own.
        extents: Where each image lies in its file, `(images, 2)`: offset and bytes; None where files hold one image.
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
        """For messages."""
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
        """The same less those at `skipped`, paths below `top` as `told` gives them."""
        if not skipped:
            return self
        below = self.below(top)
        kept = [index for index, name in enumerate(self.names) if told(below + name) not in skipped]
        return self.of_rows(np.array(kept, dtype=np.int64))

    def below(self, top: Path) -> str:
        """What makes a name a path below `top`."""
        return "" if top == self.root else f"{self.root.relative_to(top)}/"


class Opener(Protocol):
    """How the images of one kind of data set are read; what a process that loads images has a copy of."""

    def source(self, images: Images, row: int) -> Source:
        """What `read_pixels` takes for an image."""
        ...

    def sizes(self, images: Images) -> Sequence[int]:
        """Bytes of each image, by which a set is told from others; -1 where there is none any more."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """Each image is a file.

    Args:
        folder: What names are paths below, unless they are absolute; None for the root of each split.
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
    """A data set that is streamed.

    Args:
        root: Of the data set, below which names are told.
        class_names: Of its classes; of labels, where an image may have several.
        files: The images of each split, those to skip included.
        notes: How it was read, one line each.
        is_marked: Whether it says which split an image is of; else all images are those of `train`.
        no_test: Where test images were looked for, and are none; for messages.
        normalisation: Mean and deviation of each channel, where a listing has kept them.
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
        """The same with the test images alone; see `role_for_test`. Raises DataError where there are none."""
        role = role_for_test(self.files, is_marked=self.is_marked)
        if role is None:
            raise DataError(f"--data {self.root}: has no test images, and none that were certainly not trained on")
        return replace(self, files={role: self.files[role]})

    def check_trainable(self) -> None:
        """Raises:
        DataError: There are no training images, or only one class.
        """
        if "train" not in self.files:
            raise DataError(f"{self.root}: has no training images")
        if len(self.class_names) == 1:
            raise DataError(f"{self.root}: {self.class_names[0]} is the only class; one class is no task")


def counts_of(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Images of each class or label."""
    if labels.ndim > 1:
        return labels.sum(axis=0, dtype=np.int64)
    return np.bincount(labels, minlength=num_classes)


def guide_of(roles: Mapping[Role, object]) -> Role | None:
    """The split whose images guide the search, where it is another one than that of the test images."""
    return "validation" if {"train", "validation", "test"} <= set(roles) else None


def tested_of(roles: Mapping[Role, object]) -> Role | None:
    """The split of the test images; None where they are held out of the training images."""
    return next((role for role in ("test", "validation") if role in roles), None)


def role_for_test(roles: Mapping[Role, object], *, is_marked: bool) -> Role | None:
    """The split of the images that a trained network is judged by: all images where no split is marked.

    None where test images would be held out of the training images, which the network may have been trained on.
    """
    return tested_of(roles) if is_marked else "train"


def role_of(word: str) -> Role | None:
    """The split that goes by this name."""
    return next((role for role, spellings in SPELLINGS.items() if word.strip().lower() in spellings), None)


def split_by_role(
    root: Path,
    class_names: tuple[str, ...],
    names: np.ndarray,
    labels: np.ndarray,
    roles: np.ndarray,
    extents: np.ndarray | None = None,
) -> dict[Role, Images]:
    """The rows of each split, in their order."""
    order: tuple[Role, ...] = ("train", "validation", "test")
    return {
        role: Images(
            root=root, class_names=class_names, names=names[rows].tolist(), labels=labels[rows],
            called=f"its {role} images", extents=None if extents is None else extents[rows],
        )
        for role in order
        if len(rows := np.flatnonzero(roles == role))
    }  # fmt: skip
