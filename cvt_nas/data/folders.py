"""Folders of images, `train/` and `val/` with one folder a class, streamed by a DataLoader."""

import copy
import functools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from cvt_nas.config import AugmentConfig, DataConfig
from cvt_nas.data.augment import mixing_of, with_every_magnitude
from cvt_nas.data.images import Batch, Preprocessing, Split, in_order, seed_all, split_off_search
from cvt_nas.errors import DataError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FolderData:
    """`train/` and `val/` with a folder of images for each class, streamed by a DataLoader.

    Args:
        test_only: Whether the test images suffice; they are in `val/`, or in `root` itself where it has none.
    """

    def __init__(
        self, config: DataConfig, root: Path | None, image_size: int, num_channels: int, *, test_only: bool = False
    ) -> None:
        from joblib import cpu_count
        from torchvision.datasets import ImageFolder

        if root is None:
            raise DataError(f"{config.dataset}: give the folder that holds train/ and val/ by --data DIR")
        if num_channels not in (1, 3):
            raise DataError(
                f"{config.dataset}: images are read as grey or colour, space.num_channels is {num_channels}"
            )
        self._num_workers = min(config.num_workers, cpu_count())
        loader = functools.partial(_open_image, mode="L" if num_channels == 1 else "RGB")
        places = {"train": root / "train", "val": root / "val"}
        if test_only:
            places = {"val": root / "val" if (root / "val").is_dir() else root}
        try:
            self._folders = {name: ImageFolder(str(place), loader=loader) for name, place in places.items()}
        except (FileNotFoundError, OSError) as error:
            reason, needed = str(error).splitlines()[0].rstrip("."), " and ".join(f"{name}/" for name in places)
            raise DataError(f"{config.dataset}: {root} must hold {needed}, one folder a class: {reason}") from error
        self.class_names = tuple(self._folders["val"].classes)
        self._rows: dict[Split, np.ndarray] = {"test": np.arange(len(self._folders["val"]))}
        if not test_only:
            if self._folders["train"].classes != self._folders["val"].classes:
                odd = sorted(set(self._folders["train"].classes) ^ set(self._folders["val"].classes))
                raise DataError(f"{config.dataset}: {root}: in only one of train/ and val/: {', '.join(odd[:5])}")
            train, search = split_off_search(np.array(self._folders["train"].targets), config)
            self._rows |= {"train": train, "search": search}
        self.preprocessing = Preprocessing(
            image_size=image_size,
            mean=IMAGENET_MEAN if num_channels == 3 else (0.449,),
            std=IMAGENET_STD if num_channels == 3 else (0.226,),
            interpolation="bicubic",
            crop_pct=0.875 if image_size < 384 else 1.0,  # at 384 the published models see the whole image, squashed
        )

    def num_images(self, split: Split) -> int:
        return len(self._rows[split])

    def of_classes(self, classes: Collection[int]) -> Self:
        some = copy.copy(self)
        labels = {split: np.array(self._folder(split).targets) for split in self._rows}
        some._rows = {split: rows[np.isin(labels[split][rows], list(classes))] for split, rows in self._rows.items()}
        return some

    def _folder(self, split: Split) -> Any:
        return self._folders["val" if split == "test" else "train"]

    def _loader(
        self, split: Split, rows: np.ndarray, transform: Any, batch_size: int, device: torch.device,
        seeds: tuple[int, ...] | None = None,
    ) -> Any:  # fmt: skip
        from torch.utils.data import DataLoader

        images = _Images(self._folder(split), rows, transform, seeds)
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
        transform = with_every_magnitude(transform)
        order = np.random.default_rng((seed, epoch)).permutation(self._rows["train"])[rank::world_size]
        mix = mixing_of(augment, len(self.class_names))
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
            mean=pre.mean,
            std=pre.std,
        )
        rows = in_order(self._rows[split], shuffled)[rank::world_size]
        for images, labels in self._loader(split, rows[first * batch_size :], transform, batch_size, device):
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
