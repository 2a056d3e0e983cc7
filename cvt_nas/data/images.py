"""What a data set ready for training is, whatever it is read from."""

import hashlib
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cvt_nas.config import AugmentConfig, DataConfig
from cvt_nas.errors import DataError

Split = Literal["train", "search", "test"]
SPLITS: tuple[Split, ...] = ("train", "search", "test")
Batch = tuple[Float[Tensor, "batch channels height width"], Tensor]


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

    def of_classes(self, classes: Collection[int]) -> Self:
        """The same set with the images of these classes alone, which keep their indices and names."""
        ...

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
        first: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[Batch]:
        """Every image of this rank's share of `split` once, without augmentation; targets are class indices.

        Args:
            shuffled: In an order that is random, and the same each time, so that the first images are a fair sample.
            first: Number of the batch to begin with.
        """
        ...


def seed_all(*seeds: int) -> None:
    """Sets Python's, numpy's and torch's global random states from `seeds`."""
    seed = int.from_bytes(hashlib.sha256(repr(seeds).encode()).digest()[:4], "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def split_off_search(labels: np.ndarray, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
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


def in_order(rows: np.ndarray, shuffled: bool) -> np.ndarray:
    return np.random.default_rng(0).permutation(rows) if shuffled else rows


def to_device(x: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
