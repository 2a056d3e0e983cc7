"""What a data set ready for training is, whatever it is read from."""

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
}  # by the number of channels; of others it is measured
Batch = tuple[Float[Tensor, "batch channels height width"], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """What turns an image of `[0, 1]` values into the model's input: resize to `image_size`, then normalise.

    Args:
        image_size: The side of squares, or height and width.
        crop_pct: Where it is below 1, the image becomes the least that covers `image_size / crop_pct`, which of a
            square is its shorter side, and the centre is taken; where it is 1, the whole image is squashed.
    """

    image_size: ImageSize
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    crop_pct: float = 1.0

    @property
    def num_values(self) -> int:
        """Of an image, a byte each."""
        return len(self.mean) * math.prod(sides_of(self.image_size))

    def resized_to(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of these becomes, of which `centre_of` is then taken.

        Source: timm 1.0.31, `transforms_imagenet_eval`, which rounds otherwise for rectangles.
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
        """Rows and columns of the middle of an image, as many as `image_size` has."""
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
    """As the published models see images; mean and deviation are ImageNet's where they are not given.

    Raises:
        DataError: They are not given for images that are neither grey nor in colour.
    """
    if mean is None or std is None:
        if channels not in NORMALISATIONS:
            raise DataError(f"nothing says by which mean and deviation images of {channels} channels are normalised")
        mean, std = NORMALISATIONS[channels]
    crop_pct = 0.875 if min(sides_of(image_size)) < 384 else 1.0
    return Preprocessing(image_size=image_size, mean=mean, std=std, interpolation="bicubic", crop_pct=crop_pct)


class ImageData(Protocol):
    """A data set ready for training.

    Attributes:
        is_multi_label: Whether an image has any number of labels, `class_names`, and not one class of them. Targets are
            then float32, `(batch, classes)`: 1 for each label of an image, and 0 for the others.
        is_taught: Whether a teacher has answered the training images.
    """

    preprocessing: Preprocessing
    class_names: tuple[str, ...]

    @property
    def is_taught(self) -> bool: ...

    @property
    def is_multi_label(self) -> bool: ...

    def identity(self) -> DataIdentity:
        """What tells it from other sets."""
        ...

    def num_images(self, split: Split) -> int: ...

    def labels(self, split: Split) -> np.ndarray:
        """Of the images of a split, in the order of `eval_batches` on one rank, not shuffled.

        Returns:
            Class indices `(images,)`, int64; of several labels an image, 0 or 1, `(images, classes)`, uint8.
        """
        ...

    def of_classes(self, classes: Collection[int]) -> Self:
        """The same set with the images of these classes alone, which keep their indices and names.

        Raises:
            DataError: Its images have several labels, so that none is of one class.
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
        """One epoch of shuffled, augmented batches; a last one that is not full is dropped.

        Before each batch, Python's, numpy's and torch's global random states are set from `seed`, `epoch`, its number
        and `rank`, so it is the same whether or not the process restarted before it, and so is what is drawn after it.

        Args:
            batch_size: Images a batch on this rank.
            epoch: From 0.
            first: Number of the batch to begin with.
            until: Number of epochs, where the caller goes on with the next ones; processes that read images then live
                until `close`, or the last epoch, and have the first batches of the next epoch ready.
            evaluated: A split that is evaluated after each epoch, and the size of its batches.
            temperature: By which the logits of a teacher are divided, where the set `is_taught`.

        Yields:
            Images, `(batch, channels, height, width)`, and targets: class indices `(batch,)`, or
            probabilities `(batch, classes)` where mixup or cutmix is on; see `is_multi_label`. Where the set
            `is_taught`, they are probabilities by the labels and after these the teacher's, `(batch, 2 * classes)`.
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
        """Every image of this rank's share of `split` once, without augmentation; targets are class indices.

        See `is_multi_label` for other targets.

        Args:
            shuffled: In an order that is random, and the same each time, so that the first images are a fair sample.
            first: Number of the batch to begin with.
            as_bytes: Whether images are given, on the device, as what `prepared` makes inputs of: a quarter of these or
                less.
        """
        ...

    def prepared(
        self, images: UInt8[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch channels height width"]:
        """The inputs of a network, on the device of `images`, which `eval_batches` gave as bytes."""
        ...

    def close(self) -> None:
        """Ends the processes that read ahead, where there are any; the next batches start new ones."""
        ...


def seed_all(*seeds: int, on_devices: bool = True) -> None:
    """Sets Python's, numpy's and torch's global random states from `seeds`.

    Args:
        on_devices: Whether those of GPUs as well. What is drawn on the CPU is the same; without them it takes a tenth
            of the time, which counts where it is done for each image.
    """
    seed = seed_of(*seeds)
    random.seed(seed)
    np.random.seed(seed)
    (torch.manual_seed if on_devices else torch.default_generator.manual_seed)(seed)


def seed_of(*seeds: int | str) -> int:
    """One seed, of 32 bits, from several."""
    return int.from_bytes(hashlib.sha256(repr(seeds).encode()).digest()[:4], "little")


def generator_of(device: torch.device) -> torch.Generator:
    """What torch draws from on `device`, unless it is told otherwise."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator


def digest(names: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def in_order(rows: np.ndarray, shuffled: bool) -> np.ndarray:
    return np.random.default_rng(0).permutation(rows) if shuffled else rows


def with_labels_of(labels: np.ndarray, classes: Collection[int]) -> np.ndarray:
    """Which images are of `classes`: a mask `(images,)`.

    Raises:
        DataError: See `ImageData.of_classes`.
    """
    if labels.ndim > 1:
        raise DataError("images with several labels belong to no one class, so da-nas cannot begin with some classes")
    return np.isin(labels, list(classes))


def targets_of(labels: Tensor) -> Tensor:
    """Class indices as they are; several labels an image, uint8, as float32."""
    return labels.float() if labels.ndim > 1 else labels


def to_device(x: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
