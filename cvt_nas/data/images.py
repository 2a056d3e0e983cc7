"""Interface of a data set that is ready for training, and its preprocessing, seeds and targets."""

import hashlib
import json
import math
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cvt_nas.arch import ImageSize, sides_of
from cvt_nas.config import AugmentConfig
from cvt_nas.errors import DataError
from cvt_nas.results import DataIdentity

Split = Literal["train", "search", "test"]
SPLITS: tuple[Split, ...] = ("train", "search", "test")
Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATIONS: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((0.449,), (0.226,)),
    3: (IMAGENET_MEAN, IMAGENET_STD),
}  # by the number of channels; for other numbers it is measured
Batch = tuple[Float[Tensor, "batch channels height width"], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How an image with values in `[0, 1]` becomes a model's input: resize to `image_size`, then normalise.

    Args:
        image_size: Side of a square, or height and width.
        crop_pct: Below 1, the image is resized so that it just covers `image_size / crop_pct`, and its centre is
            cropped. With 1, the whole image is squashed to `image_size`.
    """

    image_size: ImageSize
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    crop_pct: float = 1.0

    @property
    def num_values(self) -> int:
        """Values of an image; as bytes, each takes one byte."""
        return len(self.mean) * math.prod(sides_of(self.image_size))

    def resized_to(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize of an image of this size; `centre_of` is then cropped.

        Source: timm 1.0.31, `transforms_imagenet_eval`, which rounds rectangles differently.
        """
        down, across = (math.floor(side / self.crop_pct) for side in sides_of(self.image_size))
        if self.crop_pct == 1:
            return down, across
        if down == across:
            shorter = min(height, width)
            return down * height // shorter, down * width // shorter
        ratio = min(height / down, width / across)
        return round(height / ratio), round(width / ratio)

    def centre_of(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the centre of an image, as many as `image_size` has."""
        rows, columns = sides_of(self.image_size)
        top, left = round((height - rows) / 2), round((width - columns) / 2)
        return slice(top, top + rows), slice(left, left + columns)


def usual_preprocessing(
    image_size: ImageSize,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    *,
    channels: int = 3,
) -> Preprocessing:
    """Preprocessing of the published models. Mean and deviation are ImageNet's by default.

    Raises:
        DataError: Mean or deviation is missing for images that are neither grey nor in colour.
    """
    if mean is None or std is None:
        if channels not in NORMALISATIONS:
            raise DataError(f"mean and deviation for images of {channels} channels are unknown")
        mean, std = NORMALISATIONS[channels]
    crop_pct = 0.875 if min(sides_of(image_size)) < 384 else 1.0
    return Preprocessing(image_size=image_size, mean=mean, std=std, interpolation="bicubic", crop_pct=crop_pct)


class ImageData(Protocol):
    """A data set ready for training.

    Attributes:
        is_multi_label: Whether an image can have any number of labels instead of one class. Targets are then float32,
            `(batch, classes)`: 1 for each label of an image, and 0 for the others.
        is_taught: Whether batches of training images carry a teacher's answers.
    """

    preprocessing: Preprocessing
    class_names: tuple[str, ...]

    @property
    def is_taught(self) -> bool: ...

    @property
    def is_multi_label(self) -> bool: ...

    def identity(self) -> DataIdentity:
        """Identity of the data set, which differs between data sets."""
        ...

    def num_images(self, split: Split) -> int: ...

    def labels(self, split: Split) -> np.ndarray:
        """Labels of a split, in the order of unshuffled `eval_batches` on one rank.

        Returns:
            Class indices `(images,)`, int64. With several labels an image, 0 or 1 `(images, classes)`, uint8.
        """
        ...

    def of_classes(self, classes: Collection[int]) -> Self:
        """Returns the same set with only the images of these classes. Class indices and names stay the same.

        Raises:
            DataError: Images can have several labels, so they have no single class.
        """
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
        until: int | None = None,
        evaluated: tuple[Split, int] | None = None,
        temperature: float = 1.0,
    ) -> Iterator[Batch]:
        """Yields one epoch of shuffled, augmented batches. An incomplete last batch is dropped.

        Before each batch, Python's, numpy's and torch's global random states are set from `seed`, `epoch`, the number
        of the batch and `rank`. So a restart of the process changes neither the batch nor later draws.

        Args:
            batch_size: Images a batch on this rank.
            epoch: Number of the epoch, from 0.
            first: Number of the first batch to yield.
            until: Number of epochs, if the caller will ask for the next ones. Processes that read images then live
                until `close` or the last epoch, and prepare the first batches of the next epoch.
            evaluated: A split that is evaluated after each epoch, and the size of its batches.
            temperature: Divisor of a teacher's logits if the set `is_taught`.

        Yields:
            Images `(batch, channels, height, width)` and targets. Targets are class indices `(batch,)`, or
            probabilities `(batch, classes)` with mixup or CutMix; see also `is_multi_label`. If the set `is_taught`,
            they are probabilities from the labels, then those of the teacher, `(batch, 2 * classes)`.
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
        as_bytes: bool = False,
    ) -> Iterator[Batch]:
        """Yields every image of this rank's share of `split` once, without augmentation, with its label.

        Targets are class indices; see also `is_multi_label`.

        Args:
            shuffled: Whether the order is random, but the same each time. The first images are then a fair sample.
            first: Number of the first batch to yield.
            as_bytes: Whether images are bytes on the device, for `prepared`. Bytes take at most a quarter of the
                memory of inputs.
        """
        ...

    def prepared(
        self, images: UInt8[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Makes a network's inputs from the bytes of `eval_batches`, on the same device."""
        ...

    def close(self) -> None:
        """Ends processes that read ahead. The next batches start new ones."""
        ...


def seed_all(*seeds: int, on_devices: bool = True) -> None:
    """Sets Python's, numpy's and torch's global random states from `seeds`.

    Args:
        on_devices: Whether to set the states of GPUs as well. Draws on the CPU do not depend on it. Without GPUs, this
            takes a tenth of the time, which matters if it is called for each image.
    """
    seed = seed_of(*seeds)
    random.seed(seed)
    np.random.seed(seed)
    (torch.manual_seed if on_devices else torch.default_generator.manual_seed)(seed)


def seed_of(*seeds: int | str) -> int:
    """Combines several seeds to one of 32 bits."""
    return int.from_bytes(hashlib.sha256(repr(seeds).encode()).digest()[:4], "little")


def generator_of(device: torch.device) -> torch.Generator:
    """Torch's default generator on `device`."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator


def digest(names: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def in_order(rows: np.ndarray, shuffled: bool) -> np.ndarray:
    return np.random.default_rng(0).permutation(rows) if shuffled else rows


def with_labels_of(labels: np.ndarray, classes: Collection[int]) -> np.ndarray:
    """Mask `(images,)` of the images that belong to `classes`.

    Raises:
        DataError: See `ImageData.of_classes`.
    """
    if labels.ndim > 1:
        raise DataError("images with several labels have no single class, so da-nas cannot start with some classes")
    return np.isin(labels, list(classes))


def targets_of(labels: Tensor) -> Tensor:
    """Targets of labels: class indices unchanged, flags `(batch, classes)` as float32."""
    return labels.float() if labels.ndim > 1 else labels


def to_device(x: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
