"""Small data sets: uint8 arrays on disk. Each node prepares them once and maps them, so its trials share one copy."""

import copy
import hashlib
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from cvt_nas.arch import ImageSize
from cvt_nas.config import AugmentConfig, DataConfig
from cvt_nas.data.answers import Answers
from cvt_nas.data.augment import erasing_of, mixing_of, randaugment_of, shift_and_flip
from cvt_nas.data.images import (
    Batch,
    Preprocessing,
    Split,
    digest,
    in_order,
    seed_all,
    targets_of,
    to_device,
    with_labels_of,
)
from cvt_nas.data.named_sets import source_of
from cvt_nas.data.records import SPELLINGS, Role, counts_of, tested_of
from cvt_nas.data.splitting import GUIDED, rows_of_splits
from cvt_nas.data.stacks import Arrays, are_bytes
from cvt_nas.data.tree import few
from cvt_nas.errors import DataError
from cvt_nas.results import DataIdentity
from cvt_nas.run import cache_folder

_FORMAT = 2  # of this node's copies; copies that were read by older rules are not used


def open_arrays(dataset: str, root: Path | None) -> Arrays:
    """Opens this node's memory-mapped copy, which is made on first use. Arrays that can be mapped need no copy."""
    read, source = source_of(dataset, root)
    if dataset == "npy" and source is not None and are_bytes(source):
        return read()
    stamp = f"{_FORMAT} digits" if source is None else f"{_FORMAT} {_stamp(source)}"
    cache = cache_folder()
    folder = cache / f"{dataset}-{hashlib.sha256(stamp.encode()).hexdigest()[:10]}"
    if not folder.exists():
        arrays = read()
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{dataset}-", dir=cache))
        for role in arrays.images:
            np.save(partial / f"{role}_images.npy", arrays.images[role])
            np.save(partial / f"{role}_labels.npy", arrays.labels[role])
        (partial / "classes.txt").write_text("\n".join(arrays.class_names), encoding="utf-8")
        (partial / "notes.txt").write_text("\n".join(arrays.notes), encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:  # another process of this node was faster, and its copy is equal
            shutil.rmtree(partial)
    notes = folder / "notes.txt"
    roles: list[Role] = [role for role in SPELLINGS if (folder / f"{role}_images.npy").exists()]
    return Arrays(
        images={role: np.load(folder / f"{role}_images.npy", mmap_mode="r") for role in roles},
        labels={role: np.load(folder / f"{role}_labels.npy", mmap_mode="r") for role in roles},
        class_names=tuple((folder / "classes.txt").read_text(encoding="utf-8").split("\n")),
        notes=tuple(notes.read_text(encoding="utf-8").splitlines()) if notes.exists() else (),
    )


def _stamp(source: Path) -> str:
    """Changes when a file of the set changes, so that no outdated copy is read."""
    paths = [source] if source.is_file() else [path for path in source.iterdir() if path.is_file()]
    files = sorted((path.name, path.stat()) for path in paths)
    return f"{source.resolve()} {[(name, status.st_size, status.st_mtime_ns) for name, status in files]}"


class ArrayData:
    """A data set of `Arrays`. Batches are taken by index and augmented as a whole."""

    def __init__(self, config: DataConfig, arrays: Arrays, image_size: ImageSize, *, test_only: bool = False) -> None:
        self.class_names = arrays.class_names
        self._images, self._labels = arrays.images, arrays.labels
        self._answers: Answers | None = None
        place = config.dataset
        if test_only and tested_of(arrays.images) is None:
            raise DataError(f"{place}: has no test images, only images that may have been trained on")
        if not (test_only or self.is_multi_label) and len(lost := np.flatnonzero(self.counts == 0)):
            names = few([self.class_names[label] for label in lost])
            raise DataError(f"{place}: its train images: there is no image of {names}")
        self._source, self._rows = rows_of_splits(arrays.labels, config, arrays.class_names)
        self.notes = (*arrays.notes, *self._notes(config))
        some = arrays.images["train"][self._rows["train"][:10_000]].astype(np.float32) / 255
        self.preprocessing = Preprocessing(
            image_size=image_size,
            mean=tuple(some.mean((0, 2, 3)).round(4).tolist()),
            std=tuple(some.std((0, 2, 3)).round(4).tolist()),
        )

    def _notes(self, config: DataConfig) -> Iterator[str]:
        if self._source["search"] != "train":
            yield GUIDED
        if self._source["test"] == "train":
            yield (
                f"no test images: {self.num_images('test'):,} of the images are held out for it, by data.test_fraction "
                f"{config.test_fraction:g} and data.split_seed {config.split_seed}"
            )

    def identity(self) -> DataIdentity:
        """Identifies the whole set by its labels and the shapes of its images."""
        seen = hashlib.sha256()
        for role, images in self._images.items():
            seen.update(f"{role} {images.shape} {images.dtype}".encode())
            seen.update(np.ascontiguousarray(self._labels[role]).tobytes())
        return DataIdentity(
            num_classes=len(self.class_names),
            classes_sha256=digest(self.class_names),
            files_sha256=seen.hexdigest(),
            images={role: len(labels) for role, labels in self._labels.items()},
            splits={split: len(rows) for split, rows in self._rows.items()},
            held_out=[split for split in ("search", "test") if self._source[split] == "train"],
            notes=list(self.notes),
        )

    @property
    def is_multi_label(self) -> bool:
        return self._labels["train"].ndim > 1

    @property
    def counts(self) -> np.ndarray:
        """Training images of each class or label, including held-out ones."""
        return counts_of(self._labels["train"], len(self.class_names))

    @property
    def is_taught(self) -> bool:
        return self._answers is not None

    def taught(self, answers: Float[np.ndarray, "images classes"]) -> Self:
        """Returns the same set with a teacher's logits in its training batches, in the order of `labels`."""
        some = copy.copy(self)
        some._answers = Answers(answers, self._rows["train"])
        return some

    def num_images(self, split: Split) -> int:
        return len(self._rows[split])

    def labels(self, split: Split) -> np.ndarray:
        return self._labels[self._source[split]][self._rows[split]]

    def of_classes(self, classes: Collection[int]) -> Self:
        some = copy.copy(self)
        some._rows = {split: rows[with_labels_of(self.labels(split), classes)] for split, rows in self._rows.items()}
        return some

    def _batch(self, split: Split, rows: np.ndarray) -> tuple[UInt8[Tensor, "b c h w"], Tensor]:
        role = self._source[split]
        images = np.ascontiguousarray(self._images[role][rows])
        return torch.from_numpy(images), targets_of(torch.from_numpy(self._labels[role][rows]))

    def prepared(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Resizes, crops and normalises images as `preprocessing` says. The result is channels-last."""
        x = images.to(dtype=torch.float32, memory_format=torch.channels_last).div_(255)
        to, mode = self.preprocessing.resized_to(*x.shape[-2:]), self.preprocessing.interpolation
        if x.shape[-2:] != to:
            x = F.interpolate(x, size=to, mode=mode, antialias=True).clamp_(0, 1)  # bicubic overshoots
        x = x[(..., *self.preprocessing.centre_of(*to))].contiguous(memory_format=torch.channels_last)
        mean, std = (
            to_device(torch.tensor(values).view(1, -1, 1, 1), images.device)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return x.sub_(mean).div_(std)  # in place, since a copy of a large batch takes a gigabyte

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
        temperature: float = 1.0,
    ) -> Iterator[Batch]:
        del until, evaluated  # nothing is read ahead
        order = np.random.default_rng((seed, epoch)).permutation(self._rows["train"])[rank::world_size]
        num_batches = max(self.num_images("train") // (world_size * batch_size), 1)
        erase = erasing_of(augment, device)
        mix = mixing_of(augment, len(self.class_names), is_multi_label=self.is_multi_label, is_taught=self.is_taught)
        policy = randaugment_of(augment, self._images["train"].shape[1], device)

        def made(index: int) -> Batch:  # a function, so that nothing but the batch stays in memory
            seed_all(seed, epoch, index, rank)
            rows = order[index * batch_size : (index + 1) * batch_size]
            images, targets = self._batch("train", rows)
            images = to_device(policy(images), device)
            images = shift_and_flip(images, padding=augment.crop_padding, flip=augment.flip)
            targets = to_device(targets, device)
            if self._answers is not None:
                targets = self._answers.beside(targets, rows, temperature)
            return mix(erase(self.prepared(images)), targets)

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
