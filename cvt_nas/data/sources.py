"""What an image is read from, and as what."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The bytes of an image that has no file of its own.

    Args:
        name: What messages call it.
    """

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """An image that a library has decoded, Pillow's.

    Args:
        name: What messages call it.
    """

    name: str
    image: Image.Image

    def __str__(self) -> str:
        return self.name


Source = str | Path | Encoded | Decoded  # of an image: its file, what would be in it, or itself
Picture = Image.Image | np.ndarray  # a decoded image; an array is `(height, width, channels)`
Mode = Literal["L", "RGB"] | int  # as which an image is read: grey, colour, or so many channels


def mode_of(num_channels: int) -> Mode:
    modes: dict[int, Mode] = {1: "L", 3: "RGB"}
    return modes.get(num_channels, num_channels)
