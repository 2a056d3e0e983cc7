"""Transforms of a decoded image to the bytes of a batch, in a loader's processes.

timm draws, PIL does RandAugment and colour jitter, and torch resizes. Resizing channels-last bytes takes torch a fifth
of PIL's time; fewer than one value in a hundred differs, by one or rarely by two. The device normalises, erases and
mixes.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cvt_nas.arch import sides_of
from cvt_nas.config import AugmentConfig
from cvt_nas.data.augment import with_every_magnitude
from cvt_nas.data.images import Preprocessing
from cvt_nas.data.randaugment import computes_on, fill_of, recording
from cvt_nas.data.sources import Picture

_BY_TORCH = ("bilinear", "bicubic")  # torch has these with antialiasing


def resized(
    pixels: UInt8[np.ndarray, "rows columns channels"], height: int, width: int, interpolation: str
) -> UInt8[Tensor, "height width channels"]:
    """Resizes with antialiasing, like PIL. Images of 2 or more than 4 channels need `bilinear` or `bicubic`."""
    if interpolation in _BY_TORCH:
        image = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)
        return F.interpolate(image, (height, width), mode=interpolation, antialias=True)[0].permute(1, 2, 0)
    from timm.data.transforms import str_to_pil_interp

    return _to_tensor(_to_image(pixels).resize((width, height), str_to_pil_interp(interpolation)))


class TrainTransform:
    """timm's transform for training without its normalisation, with the same random draws.

    A call draws from the global random states.

    Args:
        device: Device of the training. If RandAugment pays there, a call only draws its operations and returns them
            with the image.

    Attributes:
        fill: Fill colour of RandAugment on the device; see `fill_of`. None if the device does not compute it.
    """

    def __init__(self, preprocessing: Preprocessing, augment: AugmentConfig, device: torch.device) -> None:
        from timm.data.transforms_factory import create_transform

        self._sides, self._interpolation = sides_of(preprocessing.image_size), preprocessing.interpolation
        jitter: Any = augment.color_jitter or None
        transforms: Any = create_transform(
            preprocessing.image_size,
            is_training=True,
            scale=(augment.crop_scale, 1.0),
            hflip=0.0,
            color_jitter=jitter,
            auto_augment=augment.randaugment,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            separate=True,
        )
        primary, secondary, _ = transforms
        (self._cropping,) = primary.transforms
        self._flips = augment.flip
        steps = with_every_magnitude(secondary).transforms
        self._draw, self.fill = None, None
        if len(steps) == 1 and augment.randaugment is not None and computes_on(device):
            self.fill, self._draw = fill_of(steps[0]), recording(steps[0])
        self._by_pil = None if self._draw is not None or not steps else secondary

    def __call__(self, image: Picture) -> tuple[Tensor, ...]:
        """Returns bytes `(height, width, channels)`, and `(layers, 3)` for RandAugment if the device computes it."""
        height, width = _size_of(image)
        sized = torch.empty(1, 1, 1).expand(1, height, width)  # timm only needs the image's size
        top, left, height, width = self._cropping.get_params(sized, self._cropping.scale, self._cropping.ratio)
        pixels = resized(_cut(image, top, left, height, width), *self._sides, self._interpolation)
        if self._flips and torch.rand(1) < 0.5:
            pixels = pixels.flip(1)
        if self._by_pil is not None:
            pixels = _to_tensor(self._by_pil(_to_image(pixels.numpy())))
        return (pixels,) if self._draw is None else (pixels, self._draw())


class EvalTransform:
    """Crops the centre of the resized image, like timm. With a `crop_pct` of 1, squashes the whole image."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing

    def __call__(self, image: Picture) -> tuple[UInt8[Tensor, "height width channels"]]:
        height, width = _size_of(image)
        to = self._preprocessing.resized_to(height, width)
        pixels = resized(_cut(image, 0, 0, height, width), *to, self._preprocessing.interpolation)
        return (pixels[self._preprocessing.centre_of(*to)],)


def _size_of(image: Picture) -> tuple[int, int]:
    """Height and width."""
    return image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)


def _cut(image: Picture, top: int, left: int, height: int, width: int) -> UInt8[np.ndarray, "height width channels"]:
    if isinstance(image, np.ndarray):
        return image[top : top + height, left : left + width]
    cut = image if (height, width) == _size_of(image) else image.crop((left, top, left + width, top + height))
    return np.array(cut).reshape(height, width, -1)


def _to_image(pixels: UInt8[np.ndarray, "height width channels"]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _to_tensor(image: Image.Image) -> UInt8[Tensor, "height width channels"]:
    return torch.from_numpy(np.array(image).reshape(*_size_of(image), -1))
