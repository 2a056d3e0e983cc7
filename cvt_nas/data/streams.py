"""Streamed data sets: processes of a DataLoader read images one by one, with the augmentation usual for ImageNet."""

import contextlib
import copy
import functools
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from joblib import cpu_count
from torch import Tensor

from cvt_nas.arch import ImageSize
from cvt_nas.config import AugmentConfig, DataConfig
from cvt_nas.data.answers import Answers
from cvt_nas.data.augment import erasing_of, mixing_of
from cvt_nas.data.images import (
    NORMALISATIONS,
    SPLITS,
    Batch,
    Split,
    digest,
    in_order,
    seed_all,
    targets_of,
    to_device,
    usual_preprocessing,
    with_labels_of,
)
from cvt_nas.data.loading import Portion, Reader, Source, Stream, Transform, free_shared_memory, num_on_their_way
from cvt_nas.data.randaugment import augmented
from cvt_nas.data.reading import Header, read_header, read_pixels
from cvt_nas.data.records import Images, Records, Role
from cvt_nas.data.sources import Mode, mode_of
from cvt_nas.data.splitting import GUIDED, NO_EFFECT, rows_of_splits
from cvt_nas.data.transforms import EvalTransform, TrainTransform
from cvt_nas.data.tree import few
from cvt_nas.errors import DataError
from cvt_nas.results import DataIdentity

_MEASURED = 500  # images to measure mean and deviation on


class StreamedData:
    """A data set of `Records`, streamed by a DataLoader.

    Args:
        test_only: Whether `records` has only test images.
        skipped: Images to leave out, as paths below the root of `records`.

    Attributes:
        mode: Mode in which images are read.
        num_cpus: CPUs of the training process, for `data.num_workers: auto`. By default those of the machine.
        shares_memory: Whether processes may hand over batches in `/dev/shm` if it has enough space.
        notes: What is left out and how the splits are made, one line each.
    """

    def __init__(
        self,
        config: DataConfig,
        records: Records,
        image_size: ImageSize,
        num_channels: int,
        *,
        test_only: bool = False,
        skipped: Collection[str] = (),
    ) -> None:
        self._num_workers, self.num_cpus, self.shares_memory = config.num_workers, cpu_count(), True
        self._answers: Answers | None = None
        self._ahead: Stream | None = None  # processes that already read for the next call
        self.mode: Mode = mode_of(num_channels)
        self.records, self.class_names = records, records.class_names
        self.skipped = tuple(sorted(skipped))
        self._images: dict[Role, Images] = {
            role: images.without(records.root, frozenset(skipped)) for role, images in records.files.items()
        }
        self._source: dict[Split, Role] = {}
        self._rows: dict[Split, np.ndarray] = {}
        self._split(config, test_only=test_only)
        self.notes = tuple(self._notes(config, test_only=test_only))
        mean, std = NORMALISATIONS.get(num_channels) or records.normalisation or self._measured_normalisation()
        if num_channels not in NORMALISATIONS:
            self.records = replace(records, normalisation=(mean, std))
        self.preprocessing = usual_preprocessing(image_size, mean, std)

    def _measured_normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel over some training images, or test images if there are no others."""
        split = "train" if "train" in self._rows else "test"
        images, rows = self._images[self._source[split]], self._rows[split]
        some = rows[np.linspace(0, len(rows) - 1, min(len(rows), _MEASURED)).astype(np.int64)]
        sums, reason = [], None
        for row in some.tolist():
            try:
                pixels = np.asarray(read_pixels(self.records.opener.source(images, row), self.mode), np.float64) / 255
                sums.append([pixels.mean((0, 1)), (pixels**2).mean((0, 1))])
            except DataError as error:  # the check of all images reports it
                reason = reason or error
        if not sums:
            raise reason or DataError(f"{images.place}: holds no image")
        mean, squares = np.mean(sums, axis=0)
        deviation = np.sqrt(np.maximum(squares - mean**2, 1e-4))
        return tuple(mean.round(4).tolist()), tuple(deviation.round(4).tolist())

    def _split(self, config: DataConfig, *, test_only: bool) -> None:
        """Sets the source and the rows of each split."""
        if test_only:
            self._source["test"] = next(iter(self._images))
            self._rows["test"] = np.arange(len(self._images[self._source["test"]].names))
            return
        for role, images in self._images.items():
            if len(lost := np.flatnonzero(images.counts == 0)):
                absent = lost[self.records.files[role].counts[lost] == 0]
                what = "there is no image of" if len(absent) else "no readable image is left of"
                names = few([self.class_names[label] for label in (absent if len(absent) else lost)])
                raise DataError(f"{images.place}: {what} {names}")
        labels: dict[Role, np.ndarray] = {role: images.labels for role, images in self._images.items()}
        self._source, self._rows = rows_of_splits(labels, config, self.class_names)

    def _notes(self, config: DataConfig, *, test_only: bool) -> Iterator[str]:
        records = self.records
        yield from records.notes
        for images in records.files.values():
            if images.ignored:
                counts = ", ".join(f"{number:,} {what}" for what, number in sorted(images.ignored.items()))
                yield f"{images.root}: ignored files that are no images: {counts}"
        if test_only:
            if not records.is_marked:
                yield f"{records.root}: no named splits: all images are read, even if they may have been trained on"
            return
        if records.guide is not None:
            guide, tested = records.files["validation"], records.files["test"]
            if guide.called:
                yield GUIDED
            else:
                yield f"{guide.root.name}/ guides the search and {tested.root.name}/ is the test split; {NO_EFFECT}"
        if records.tested is None:
            yield (
                f"{records.root}: no test images{records.no_test}: {self.num_images('test'):,} of the images are held "
                f"out for it, by data.test_fraction {config.test_fraction:g} and data.split_seed {config.split_seed}"
            )

    def identity(self) -> DataIdentity:
        """Identifies the whole set by the names and sizes of its images, and by labels unless the names tell them."""
        files = self.records.files
        seen = hashlib.sha256()
        for role, images in files.items():
            for name, size in zip(images.names, self.records.opener.sizes(images), strict=True):
                seen.update(b"%s/%s\0%d\n" % (role.encode(), os.fsencode(name), size))
            if images.called:
                seen.update(images.labels.tobytes())
        return DataIdentity(
            num_classes=len(self.class_names),
            classes_sha256=digest(self.class_names),
            files_sha256=seen.hexdigest(),
            images={role: len(images.names) for role, images in files.items()},
            splits={split: self.num_images(split) for split in SPLITS if split in self._rows},
            held_out=[split for split in ("search", "test") if self._source.get(split) == "train"],
            skipped=list(self.skipped),
            notes=list(self.notes),
        )

    def measured(self) -> frozenset[tuple[Role, str]]:
        """Splits and names of all images that are not trained on."""
        return frozenset(
            (role, names[row])
            for split, role in self._source.items()
            if split != "train"
            for names in [list(self._images[role].names)]
            for row in map(int, self._rows[split])
        )

    def headers(self, split: Split, places: np.ndarray) -> list[Header]:
        """Headers of the images at these places of `split`, without those that cannot be read."""
        images, found = self._images[self._source[split]], list[Header]()
        for row in self._rows[split][places].tolist():
            with contextlib.suppress(DataError):
                found.append(read_header(self.records.opener.source(images, row), self.mode))
        return found

    @property
    def is_multi_label(self) -> bool:
        return next(iter(self._images.values())).labels.ndim > 1

    @property
    def is_taught(self) -> bool:
        return self._answers is not None

    def taught(self, answers: Float[np.ndarray, "images classes"]) -> Self:
        """Returns the same set with a teacher's logits in its training batches, in the order of `labels`."""
        some = copy.copy(self)
        some._ahead = None
        some._answers = Answers(answers, self._rows["train"])
        return some

    def num_images(self, split: Split) -> int:
        return len(self._rows[split])

    def labels(self, split: Split) -> np.ndarray:
        return self._images[self._source[split]].labels[self._rows[split]]

    def of_classes(self, classes: Collection[int]) -> Self:
        some = copy.copy(self)
        some._ahead = None
        some._rows = {split: rows[with_labels_of(self.labels(split), classes)] for split, rows in self._rows.items()}
        return some

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
        drawn = _Drawn(batch_size=batch_size, augment=augment, seed=seed, rank=rank, world_size=world_size)

        def then() -> Iterator[Portion]:
            for number in range(epoch, until or 0):
                if number > epoch:
                    yield self._train_portion(drawn, number)
                if evaluated is not None:
                    yield self._eval_portion(*evaluated, rank=rank, world_size=world_size)

        transform = TrainTransform(self.preprocessing, augment, device)

        def sources() -> dict[str, Source]:
            found = {"train": self._source_of("train", transform)}
            if evaluated is not None:
                found["eval"] = self._source_of(evaluated[0], EvalTransform(self.preprocessing))
            return found

        due = self._train_portion(drawn, epoch, first)
        if self._ahead is not None and self._ahead.next_key != due.key:
            self.close()
        erase = erasing_of(augment, device)
        mix = mixing_of(augment, len(self.class_names), is_multi_label=self.is_multi_label, is_taught=self.is_taught)
        normalised = self._normaliser(device)
        largest = max(batch_size, 0 if evaluated is None else evaluated[1])

        def finished(index: int, rows: np.ndarray, labels: Tensor, made: tuple[Tensor, ...]) -> Batch:
            images = made[0].to(device, non_blocking=True).permute(0, 3, 1, 2)
            if transform.fill is not None:
                images = augmented(images, made[1], transform.fill)
            inputs = erase(normalised(images), [(seed, epoch, row) for row in rows.tolist()])
            targets = targets_of(labels.to(device, non_blocking=True))
            if self._answers is not None:
                targets = self._answers.beside(targets, rows, temperature)
            seed_all(seed, epoch, index, rank)
            return mix(inputs, targets)

        for index, read in enumerate(self._batches(due, sources, device, then(), largest=largest), start=first):
            yield finished(index, *read)  # a function, so that nothing but the batch stays on the device

    def _train_portion(self, drawn: "_Drawn", epoch: int, first: int = 0) -> Portion:
        size, rank, world_size = drawn.batch_size, drawn.rank, drawn.world_size
        order = np.random.default_rng((drawn.seed, epoch)).permutation(self._rows["train"])[rank::world_size]
        usable = order[: self.num_images("train") // world_size]  # the same number of steps on every rank
        if len(usable) >= size:
            usable = usable[: len(usable) // size * size]
        return Portion(
            key=(drawn, epoch, first),
            source="train",
            batches=[usable[start : start + size] for start in range(first * size, len(usable), size)],
            seeds=(drawn.seed, epoch),
        )

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
        def sources() -> dict[str, Source]:
            return {"eval": self._source_of(split, EvalTransform(self.preprocessing))}

        due = self._eval_portion(
            split, batch_size, shuffled=shuffled, first=first, rank=rank, world_size=world_size
        )  # fmt: skip
        normalised = self._normaliser(device)
        for _, labels, (images,) in self._batches(due, sources, device, largest=batch_size):
            images = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
            yield images if as_bytes else normalised(images), targets_of(labels.to(device, non_blocking=True))

    def prepared(
        self, images: UInt8[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        return self._normaliser(images.device)(images)

    def _eval_portion(
        self, split: Split, size: int, *, shuffled: bool = False, first: int = 0, rank: int, world_size: int
    ) -> Portion:
        rows = in_order(self._rows[split], shuffled)[rank::world_size]
        return Portion(
            key=(split, size, shuffled, first, rank, world_size),
            source="eval",
            batches=[rows[start : start + size] for start in range(first * size, len(rows), size)],
        )

    def _source_of(self, split: Split, transform: Transform) -> Source:
        return Source(images=self._images[self._source[split]], transform=transform, opener=self.records.opener)

    def _batches(
        self,
        due: Portion,
        sources: Callable[[], Mapping[str, Source]],
        device: torch.device,
        then: Iterable[Portion] = (),
        *,
        largest: int,
    ) -> Iterator[tuple[np.ndarray, Tensor, tuple[Tensor, ...]]]:
        """Yields the batches of `due`, from processes that already read it, or from new ones that continue with `then`.

        Args:
            largest: Number of images of the largest batch.
        """
        if self._ahead is not None and self._ahead.next_key == due.key:
            stream, self._ahead = self._ahead, None
        else:
            reader = Reader(sources(), functools.partial(read_pixels, mode=self.mode))
            stream = Stream(
                reader, due, then, num_workers=self.num_workers(device), pin_memory=device.type == "cuda",
                shares_memory=self.shares_memory and self._fits(largest, device),
            )  # fmt: skip
        goes_on = False
        try:
            yield from stream.portion()
            goes_on = stream.next_key is not None
        finally:
            if goes_on:
                self._ahead = stream
            else:
                stream.close()

    def num_workers(self, device: torch.device) -> int:
        """Number of processes that read for a process that trains on `device`."""
        if self._num_workers != "auto":
            return min(int(self._num_workers), cpu_count())
        return max(min(self.num_cpus, cpu_count()) - 1, 1 if device.type == "cuda" else 0)

    def _fits(self, batch_size: int, device: torch.device) -> bool:
        """Whether shared memory has space for all batches that are read ahead."""
        values = batch_size * self.preprocessing.num_values
        return values * num_on_their_way(self.num_workers(device)) <= free_shared_memory()

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _normaliser(
        self, device: torch.device
    ) -> Callable[[UInt8[Tensor, "batch channels height width"]], Float[Tensor, "batch channels height width"]]:
        """Returns a function that normalises bytes on the device as timm does, to channels-last floats.

        The loader's processes hand over bytes, since these take a quarter of the space of floats.
        """
        pre = self.preprocessing
        mean, std = (to_device(torch.tensor(each), device)[:, None, None] for each in (pre.mean, pre.std))

        def normalised(images: Tensor) -> Tensor:
            x = images.float().div_(255).sub_(mean).div_(std)
            return x.contiguous(memory_format=torch.channels_last)

        return normalised


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawn:
    """Everything that determines the batches of a training except the epoch."""

    batch_size: int
    augment: AugmentConfig
    seed: int
    rank: int
    world_size: int
