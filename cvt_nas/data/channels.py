"""Images with any number of channels: `.npy` files, TIFF files by tifffile, and what Pillow has as many bands of."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cvt_nas.data.library import library
from cvt_nas.errors import DataError

ARRAY = ".npy"
_TIFF = (".tif", ".tiff")
_PART = 1000  # images that are converted at a time


def is_array(name: str) -> bool:
    return name.lower().endswith(ARRAY)


def read_channels(name: str, content: bytes | None, num_channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """The image in a file, or in its bytes.

    Raises:
        DataError: It has another number of channels, or values without a rule.
    """
    pixels = _raw(name, content)
    if pixels.shape[-1] != num_channels:
        raise DataError(f"has {pixels.shape[-1]} channels, space.num_channels is {num_channels}")
    values = in_8_bits(pixels)
    return values if values.flags.writeable else values.copy()  # a mapped file is not


def channels_of(path: Path) -> int | None:
    """Of an array, or a TIFF that Pillow does not read; None of other images, which are read as grey or colour."""
    if not is_array(path.name) and path.suffix.lower() not in _TIFF:
        return None
    try:
        number = _raw(str(path), None).shape[-1]
    except Exception:  # what is wrong with it is told where all images are looked at
        return None
    return number if is_array(path.name) or number not in (1, 3, 4) else None


def header_of(name: str, content: bytes | None) -> tuple[str, str, tuple[int, int], bool]:
    """Format, type and number of channels, width and height, and whether values have more than 8 bits."""
    pixels = _raw(name, content)
    height, width, number = pixels.shape
    kind = "NPY" if is_array(name) else Path(name).suffix[1:].upper()
    return kind, f"{number} channels of {pixels.dtype}", (width, height), pixels.dtype.itemsize > 1


def _raw(name: str, content: bytes | None) -> np.ndarray:
    """`(height, width, channels)`, with its own values; of an array in a file, mapped."""
    if is_array(name):
        source = name if content is None else io.BytesIO(content)
        pixels = np.load(source, mmap_mode="r" if content is None else None, allow_pickle=False)
    elif name.lower().endswith(_TIFF):
        pixels = _from_tiff(name, content)
    else:
        with Image.open(name if content is None else io.BytesIO(content)) as image:
            pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or not pixels.size:
        raise DataError(f"has the shape {pixels.shape}, must be (height, width), or with channels at the end")
    return pixels


def _from_tiff(name: str, content: bytes | None) -> np.ndarray:
    """Of its first series, whichever axis the channels are."""
    tifffile = library("tifffile", extra="tiff", of="a TIFF with other channels than grey or colour")
    with tifffile.TiffFile(name if content is None else io.BytesIO(content)) as file:
        series = file.series[0]
        pixels, axes = series.asarray(), series.axes
    others = [index for index, axis in enumerate(axes) if axis not in "YX"]
    if len(others) > 1 or not {"Y", "X"} <= set(axes):
        raise DataError(f"has the axes {axes} and the shape {pixels.shape}, must have one beside height and width")
    return np.moveaxis(pixels, others[0], -1) if others else pixels


def in_8_bits(array: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Values of 8 or 16 bits, or floats between 0 and 1, by the rules of `reading`; a part at a time.

    Raises:
        DataError: They are others.
    """
    if array.dtype == np.uint8:
        return np.asarray(array)
    whites = {"f": 1.0, "u": 65535.0, "b": 1.0}
    white = whites.get(array.dtype.kind, 0.0)
    if not white or (array.dtype.kind == "u" and array.dtype != np.uint16):
        raise DataError(f"has values of {array.dtype}, must be uint8, uint16, or floats between 0 and 1")
    scaled = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), _PART):
        part = array[start : start + _PART].astype(np.float64)
        least, most = float(part.min()), float(part.max())
        if not (least >= 0 and most <= white):  # also where they are not numbers
            raise DataError(f"has values from {least:g} to {most:g}, must be from 0 to {white:g}")
        scaled[start : start + _PART] = np.round(part * (255 / white))
    return scaled
