"""Sources of images, and the modes in which they are read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The bytes of an image without a file of its own.

    Args:
        name: What messages call the image.
    """

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """An image that a library has decoded.

    Args:
        name: What messages call the image.
    """

    name: str
    image: Image.Image

    def __str__(self) -> str:
        return self.name


Source = str | Path | Encoded | Decoded  # an image's file, the content of a file, or the decoded image
Picture = Image.Image | np.ndarray  # a decoded image; an array is `(height, width, channels)`
Mode = Literal["L", "RGB"] | int  # grey, colour, or a number of channels


def mode_of(num_channels: int) -> Mode:
    modes: dict[int, Mode] = {1: "L", 3: "RGB"}
    return modes.get(num_channels, num_channels)
