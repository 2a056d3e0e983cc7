"""Images with any number of channels: `.npy` files, TIFF files read by tifffile, and images that Pillow can read."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cvt_nas.data.library import library
from cvt_nas.errors import DataError

ARRAY = ".npy"
_TIFF = (".tif", ".tiff")
_PART = 1000  # images to convert at a time


def is_array(name: str) -> bool:
    return name.lower().endswith(ARRAY)


def read_channels(name: str, content: bytes | None, num_channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """Reads an image from a file, or from the bytes of a file.

    Raises:
        DataError: The image has another number of channels, or values of an unsupported type.
    """
    pixels = _raw(name, content)
    if pixels.shape[-1] != num_channels:
        raise DataError(f"has {pixels.shape[-1]} channels, space.num_channels is {num_channels}")
    values = in_8_bits(pixels)
    return values if values.flags.writeable else values.copy()  # a mapped file is read-only


def channels_of(path: Path) -> int | None:
    """Number of channels of an array, or of a TIFF that Pillow cannot read. None for grey or colour images."""
    if not is_array(path.name) and path.suffix.lower() not in _TIFF:
        return None
    try:
        number = _raw(str(path), None).shape[-1]
    except Exception:  # the check of all images reports the problem
        return None
    return number if is_array(path.name) or number not in (1, 3, 4) else None


def header_of(name: str, content: bytes | None) -> tuple[str, str, tuple[int, int], bool]:
    """Returns the format, the type and number of channels, `(width, height)`, and whether values exceed 8 bits."""
    pixels = _raw(name, content)
    height, width, number = pixels.shape
    kind = "NPY" if is_array(name) else Path(name).suffix[1:].upper()
    return kind, f"{number} channels of {pixels.dtype}", (width, height), pixels.dtype.itemsize > 1


def _raw(name: str, content: bytes | None) -> np.ndarray:
    """Reads an image as `(height, width, channels)` with its original values. An array in a file is mapped."""
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
    """Reads the first series of a TIFF. Any axis may hold the channels."""
    tifffile = library("tifffile", extra="tiff", of="a TIFF with other channels than grey or colour")
    with tifffile.TiffFile(name if content is None else io.BytesIO(content)) as file:
        series = file.series[0]
        pixels, axes = series.asarray(), series.axes
    others = [index for index, axis in enumerate(axes) if axis not in "YX"]
    if len(others) > 1 or not {"Y", "X"} <= set(axes):
        raise DataError(f"has the axes {axes} and the shape {pixels.shape}, must have one beside height and width")
    return np.moveaxis(pixels, others[0], -1) if others else pixels


def in_8_bits(array: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Converts values of 8 or 16 bits, or floats between 0 and 1, to 8 bits, as module `reading` describes.

    Raises:
        DataError: Values have another type or range.
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
        if not (least >= 0 and most <= white):  # true for NaN as well
            raise DataError(f"has values from {least:g} to {most:g}, must be from 0 to {white:g}")
        scaled[start : start + _PART] = np.round(part * (255 / white))
    return scaled
