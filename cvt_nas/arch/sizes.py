"""Sizes of images and token grids: height and width, or one number if they are equal."""

from typing import Any

ImageSize = int | tuple[int, int]  # the side of a square, or height and width
Grid = tuple[int, int]  # height and width in tokens
GREATEST = 2**20  # more is a mistake, or an attempt to exhaust memory


def sides_of(size: ImageSize) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def as_size(height: int, width: int) -> ImageSize:
    """The size as files write it, one number for a square."""
    return height if height == width else (height, width)


def checked_size(value: Any, greatest: int = GREATEST) -> ImageSize:
    """Validates a size: a number, or a list of height and width.

    Raises:
        ValueError: It is not a size. The message says what would be one.
    """
    sides = value if isinstance(value, list | tuple) else (value, value)
    if len(sides) == 2 and all(type(side) is int and 1 <= side <= greatest for side in sides):
        return as_size(*sides)
    raise ValueError(f"must be a whole number from 1 to {greatest}, or [height, width]")


def size_text(size: ImageSize) -> str:
    """`224 x 160`."""
    return " x ".join(map(str, sides_of(size)))
