"""Folders of images, a folder for each split and in it one for each class, streamed by a DataLoader."""

import copy
import functools
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cvt_nas.config import AugmentConfig, DataConfig
from cvt_nas.data.augment import mixing_of, with_every_magnitude
from cvt_nas.data.images import (
    SPLITS,
    Batch,
    Preprocessing,
    Split,
    digest,
    hold_out,
    in_order,
    seed_all,
    split_off_search,
)
from cvt_nas.data.layout import (
    Images,
    Layout,
    Role,
    find_layout,
    list_images,
    load_listing,
    problems_of,
    save_listing,
)
from cvt_nas.data.reading import read_image
from cvt_nas.errors import DataError
from cvt_nas.results import DataIdentity

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FolderData:
    """Folders of images, streamed by a DataLoader; `find_layout` says which folder is which split.

    Args:
        test_only: Whether the test images suffice; they may then lie in `root` itself.
        skipped: Images to leave out, as paths below `root`.
        listing: What `save_listing` wrote of the same images; else folders are looked through.
        on_note: Called with how far that is, where it takes long.

    Attributes:
        mode: Pillow's, as which images are read.
        files: The images of each folder, those to skip included.
        notes: What is left out and how the splits are made, one line each.
    """

    def __init__(
        self,
        config: DataConfig,
        root: Path | None,
        image_size: int,
        num_channels: int,
        *,
        test_only: bool = False,
        skipped: Collection[str] = (),
        listing: Path | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        from joblib import cpu_count

        if root is None:
            raise DataError(f"{config.dataset}: give the folder that holds train/ and val/ by --data DIR")
        if num_channels not in (1, 3):
            raise DataError(
                f"{config.dataset}: images are read as grey or colour, space.num_channels is {num_channels}"
            )
        self._num_workers = min(config.num_workers, cpu_count())
        self.mode = "L" if num_channels == 1 else "RGB"
        layout = find_layout(root)
        if test_only:
            layout = layout.for_test()
        else:
            layout.check_trainable()
            if len(layout.class_names) == 1:
                raise DataError(
                    f"{layout.places['train']}: {layout.class_names[0]}/ is the only class folder; one class is no task"
                )
        self.root, self.class_names = root, layout.class_names
        self.files: dict[Role, Images]
        if listing is not None:
            self.files = load_listing(listing, layout)
        else:
            self.files = {role: list_images(layout, role, on_note=on_note) for role in layout.places}
            if problems := problems_of(layout, self.files):
                raise DataError(f"{config.dataset}: {'; '.join(problems)}")
        self.skipped = tuple(sorted(skipped))
        self._images: dict[Role, Images] = {
            role: images.without(root, frozenset(skipped)) for role, images in self.files.items()
        }
        self._source: dict[Split, Role] = {}
        self._rows: dict[Split, np.ndarray] = {}
        self._split(layout, config, test_only=test_only)
        self.notes = tuple(self._notes(layout, config, test_only=test_only))
        self.preprocessing = Preprocessing(
            image_size=image_size,
            mean=IMAGENET_MEAN if num_channels == 3 else (0.449,),
            std=IMAGENET_STD if num_channels == 3 else (0.226,),
            interpolation="bicubic",
            crop_pct=0.875 if image_size < 384 else 1.0,  # at 384 the published models see the whole image, squashed
        )

    def _split(self, layout: Layout, config: DataConfig, *, test_only: bool) -> None:
        """Which rows of which folder each split has."""
        tested, guide = layout.tested, layout.guide
        if test_only:
            self._source["test"] = next(iter(layout.places))
            self._rows["test"] = np.arange(len(self._images[self._source["test"]].names))
            return
        self._source = {"train": "train", "search": guide or "train", "test": tested or "train"}
        labels: dict[Role, np.ndarray] = {role: images.labels for role, images in self._images.items()}
        for role, found in labels.items():
            if lost := sorted(set(range(len(self.class_names))) - set(found.tolist())):
                names = ", ".join(self.class_names[label] for label in lost[:5])
                raise DataError(f"{layout.places[role]}: no image that can be read is left of {names}")
        left, rows = np.arange(len(labels["train"])), self._rows
        if tested is None:
            held_out = hold_out(
                labels["train"], config.test_fraction, config.split_seed, self.class_names, setting="test_fraction"
            )
            left, rows["test"] = (np.sort(each) for each in held_out)
        else:
            rows["test"] = np.arange(len(labels[tested]))
        train, search = split_off_search(labels["train"][left], config, self.class_names, guided=guide is not None)
        rows |= {"train": left[train], "search": left[search] if guide is None else np.arange(len(labels[guide]))}

    def _notes(self, layout: Layout, config: DataConfig, *, test_only: bool) -> Iterator[str]:
        yield from layout.notes
        for images in self.files.values():
            if images.ignored:
                counts = ", ".join(f"{number:,} {what}" for what, number in sorted(images.ignored.items()))
                yield f"{images.root}: ignored, no images that are read: {counts}"
        if test_only:
            if layout.is_flat:
                yield (f"{layout.root}: no split is marked, so every image is read, also what may have been trained on")
            return
        if layout.guide is not None:
            guide, tested = layout.places["validation"].name, layout.places["test"].name
            yield f"{guide}/ guides the search and {tested}/ is the test split; data.search_fraction has no effect"
        if layout.tested is None:
            yield (
                f"{layout.root}: no test images in val/ or test/: {self.num_images('test'):,} of the images are held "
                f"out for it, by data.test_fraction {config.test_fraction:g} and data.split_seed {config.split_seed}"
            )

    def identity(self) -> DataIdentity:
        """Of the whole set, by the names and sizes of its files."""
        seen = hashlib.sha256()
        for role, images in self.files.items():
            for name, size in zip(images.names, images.sizes(), strict=True):
                seen.update(b"%s/%s\0%d\n" % (role.encode(), os.fsencode(name), size))
        return DataIdentity(
            num_classes=len(self.class_names),
            classes_sha256=digest(self.class_names),
            files_sha256=seen.hexdigest(),
            images={role: len(images.names) for role, images in self.files.items()},
            splits={split: self.num_images(split) for split in SPLITS if split in self._rows},
            held_out=[split for split in ("search", "test") if self._source.get(split) == "train"],
            skipped=list(self.skipped),
            notes=list(self.notes),
        )

    def save_listing(self, to: BinaryIO) -> None:
        """See `load_data`."""
        save_listing(self.files, to)

    def measured(self) -> list[str]:
        """Paths of the images that are not trained on."""
        return [
            f"{images.root}/{images.names[row]}"
            for split in self._rows.keys() - {"train"}
            for images in [self._images[self._source[split]]]
            for row in self._rows[split]
        ]

    def num_images(self, split: Split) -> int:
        return len(self._rows[split])

    def of_classes(self, classes: Collection[int]) -> Self:
        some = copy.copy(self)
        some._rows = {
            split: rows[np.isin(self._images[self._source[split]].labels[rows], list(classes))]
            for split, rows in self._rows.items()
        }
        return some

    def _loader(
        self, split: Split, rows: np.ndarray, transform: Any, batch_size: int, device: torch.device,
        seeds: tuple[int, ...] | None = None,
    ) -> Iterator[Any]:  # fmt: skip
        from torch.utils.data import DataLoader

        read = functools.partial(read_image, mode=self.mode)
        batches = DataLoader(
            _Images(self._images[self._source[split]], rows, read, transform, seeds),
            batch_size=batch_size,
            num_workers=self._num_workers,
            pin_memory=device.type == "cuda",
            collate_fn=_collate,
        )
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch

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
            normalize=augment.random_erasing > 0,  # whose noise is of normalised values; else on the device
        )
        transform = with_every_magnitude(transform)
        order = np.random.default_rng((seed, epoch)).permutation(self._rows["train"])[rank::world_size]
        mix = mixing_of(augment, len(self.class_names))
        usable = order[: self.num_images("train") // world_size]  # the same number of steps on every rank
        if len(usable) >= batch_size:
            usable = usable[: len(usable) // batch_size * batch_size]
        rows = usable[first * batch_size :]
        loader = self._loader("train", rows, transform, batch_size, device, seeds=(seed, epoch))
        normalised = self._normaliser(device)
        for index, (images, labels) in enumerate(loader, start=first):
            seed_all(seed, epoch, index, rank)
            yield mix(normalised(images), labels.to(device, non_blocking=True))

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
    ) -> Iterator[Batch]:
        from timm.data.transforms_factory import create_transform

        pre = self.preprocessing
        transform = create_transform(
            pre.image_size,
            interpolation=pre.interpolation,
            crop_pct=pre.crop_pct,
            crop_mode="squash" if pre.crop_pct == 1 else "center",
            normalize=False,
        )
        rows = in_order(self._rows[split], shuffled)[rank::world_size]
        normalised = self._normaliser(device)
        for images, labels in self._loader(split, rows[first * batch_size :], transform, batch_size, device):
            yield normalised(images), labels.to(device, non_blocking=True)

    def _normaliser(self, device: torch.device) -> Callable[[Tensor], Float[Tensor, "batch channels height width"]]:
        """Takes a batch to the device, where its bytes become what timm makes of them, channels-last.

        Bytes are a quarter of what else the processes of the loader would hand over.
        """
        pre = self.preprocessing
        mean, std = (torch.tensor(each, device=device)[:, None, None] for each in (pre.mean, pre.std))

        def normalised(images: Tensor) -> Tensor:
            x = images.to(device, non_blocking=True)
            if x.dtype == torch.uint8:
                x = x.float().div_(255).sub_(mean).div_(std)
            return x.contiguous(memory_format=torch.channels_last)

        return normalised


class _Images(torch.utils.data.Dataset):
    """The images at `rows` of a folder, transformed; at random by `seeds` and the row, whichever process does it.

    An image that cannot be read is the error that says so: raised in a worker, it would arrive with the worker's
    traceback in its message.
    """

    def __init__(
        self, images: Images, rows: np.ndarray, read: Any, transform: Any, seeds: tuple[int, ...] | None
    ) -> None:
        self.images, self.rows, self.read, self.transform, self.seeds = images, rows, read, transform, seeds

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | DataError:
        row = int(self.rows[index])
        if self.seeds is not None:
            seed_all(*self.seeds, row, on_devices=False)
        try:
            image = self.read(f"{self.images.root}/{self.images.names[row]}")
        except DataError as error:
            return DataError(str(error))  # without what caused it, which need not be pickled
        return self.transform(image), int(self.images.labels[row])


def _collate(items: Sequence[Any]) -> Any:
    from torch.utils.data import default_collate

    return next((item for item in items if isinstance(item, DataError)), None) or default_collate(list(items))
