"""Augmentation by timm and torchvision. Shift and flip are our own, since theirs draw once for a whole batch."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cvt_nas.config import AugmentConfig
from cvt_nas.data.images import generator_of, seed_of, to_device
from cvt_nas.data.randaugment import augmented, computes_on, fill_of, recording

if TYPE_CHECKING:
    from timm.data.auto_augment import AugmentOp

_MIXED_VALUES = 2**25  # mixed at once: timm copies them, which takes 128 MiB
_TransformT = TypeVar("_TransformT")


class Erase(Protocol):
    def __call__(self, images: Tensor, seeds: Sequence[tuple[int, ...]] | None = None) -> Tensor: ...


def shift_and_flip(images: UInt8[Tensor, "b c h w"], *, padding: int, flip: bool) -> UInt8[Tensor, "b c h w"]:
    """Shifts each image by up to `padding` pixels, filled with zeros, and flips it with probability 1/2."""
    if not padding and not flip:
        return images
    num, _, height, width = images.shape  # draws are on the CPU, so that they are the same for all devices
    rows = torch.arange(height) + torch.randint(0, 2 * padding + 1, (num, 1))
    columns = torch.arange(width) + torch.randint(0, 2 * padding + 1, (num, 1))
    if flip:
        columns = torch.where(torch.rand(num, 1) < 0.5, columns.flip(1), columns)
    padded = F.pad(images, (padding,) * 4)
    each, rows, columns = (to_device(x, images.device) for x in (torch.arange(num), rows, columns))
    picked = padded[each[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def erasing_of(augment: AugmentConfig, device: torch.device) -> Erase:
    """Returns a function that erases rectangles of a batch of normalised images, in place.

    Its second argument holds the seeds of each image. With them, an image is erased in the same way in every batch.
    With None, draws come from the global random states.
    """
    if augment.random_erasing == 0:
        return lambda images, seeds=None: images  # noqa: ARG005
    from timm.data.random_erasing import RandomErasing  # imports all of timm, a second

    erase = RandomErasing(augment.random_erasing, mode="pixel", device=str(device))

    def erase_each(images: Tensor, seeds: Sequence[tuple[int, ...]] | None = None) -> Tensor:
        if seeds is None:
            return erase(images)
        noise = generator_of(device)
        for image, own in zip(images, seeds, strict=True):
            seed = seed_of(*own, "erase")
            random.seed(seed)
            noise.manual_seed(seed)
            erase(image)
        return images

    return erase_each


def mixing_of(
    augment: AugmentConfig, num_classes: int, *, is_multi_label: bool = False, is_taught: bool = False
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns a function that applies mixup or CutMix to a batch of normalised images and its targets, in place.

    Args:
        is_taught: Whether targets hold the probabilities of the labels and of a teacher, `(batch, 2 * num_classes)`.
    """
    if augment.mixup == 0 and augment.cutmix == 0:
        return lambda images, labels: (images, labels)
    from timm.data.mixup import Mixup

    num_values = 2 * num_classes if is_taught else num_classes
    # the loss applies label smoothing, to mixed and plain targets alike
    mixup = Mixup(
        augment.mixup, augment.cutmix, label_smoothing=0.0, num_classes=num_values,
        multi_label=is_multi_label or is_taught,
    )  # fmt: skip

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        even = len(images) // 2 * 2  # timm refuses an odd number, which a set smaller than a batch can have
        images, labels = images[:even], labels[:even]
        pairs = max(_MIXED_VALUES // (2 * images.shape[1:].numel()), 1)
        if even <= 2 * pairs:
            return mixup(images, labels)
        # timm mixes the first image with the last, the second with the last but one: take some from both ends at a time
        targets = torch.empty(even, num_values, device=labels.device)
        drawn = np.random.get_state()
        for start in range(0, even // 2, pairs):
            stop = min(start + pairs, even // 2)
            ends = slice(start, stop), slice(even - stop, even - start)
            np.random.set_state(drawn)  # timm draws once for a whole batch
            mixed = mixup(*(torch.cat([whole[end] for end in ends]) for whole in (images, labels)))
            for whole, some in zip((images, targets), mixed, strict=True):
                for end, half in zip(ends, some.chunk(2), strict=True):
                    whole[end] = half
        return images, targets

    return mix


def randaugment_of(augment: AugmentConfig, num_channels: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Returns a function that applies RandAugment to a batch of bytes `(batch, channels, height, width)`.

    It computes on `device` if that pays, and with PIL otherwise. Both draw the same from the global random states, one
    image after the other.
    """
    if augment.randaugment is None:
        return lambda images: images
    from timm.data.auto_augment import rand_augment_transform
    from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

    fill = 128 if num_channels == 1 else (128,) * num_channels
    policy = with_every_magnitude(rand_augment_transform(augment.randaugment, {"img_mean": fill}))
    if not computes_on(device):
        return lambda images: torch.stack([pil_to_tensor(policy(to_pil_image(image))) for image in images])
    colour, draw = fill_of(policy), recording(policy)
    return lambda images: augmented(to_device(images, device), torch.stack([draw() for _ in images]), colour)


def with_every_magnitude(transform: _TransformT) -> _TransformT:
    """Makes RandAugment accept every magnitude that timm draws, and returns the transform.

    timm's posterize keeps between 4 bits and 0 bits. Pillow 13 refuses 0, which gave a black image before. This
    function restores the black image, so a seed gives the same images with every version of Pillow.

    Args:
        transform: A RandAugment of timm's, or a composition of transforms. Changed in place.
    """
    from timm.data.auto_augment import posterize

    for operation in _rand_augment_operations(transform):
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return transform


def _rand_augment_operations(transform: object) -> "Iterator[AugmentOp]":
    from timm.data.auto_augment import RandAugment

    for step in getattr(transform, "transforms", [transform]):
        if isinstance(step, RandAugment):
            yield from step.ops


def _posterize(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    from timm.data.auto_augment import posterize

    return posterize(image, bits_to_keep) if bits_to_keep > 0 else Image.new(image.mode, image.size)
