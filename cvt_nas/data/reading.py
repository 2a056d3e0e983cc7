"""Reading of a single image.

Values of 8 bits are unchanged. Grey values of 16 bits are divided by 257, so that white stays white, and those of 12
bits by 4095 / 255. Pillow keeps the upper 8 of 16 bits of colour. Floats must lie between 0 and 1 and are multiplied by
255. Integers of 32 bits are refused, since their white value is unknown. Images more than 2,000 times as long as wide
are refused, since they would be gigantic once their shorter side is resized. EXIF's orientation is applied,
transparency is dropped, and only the first of several frames is read.
"""

import contextlib
import functools
import importlib
import io
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from cvt_nas.data.channels import header_of, is_array, read_channels
from cvt_nas.data.sources import Decoded, Encoded, Mode, Picture, Source
from cvt_nas.errors import DataError

# modes that Pillow's `convert` handles well
_CONVERTED = frozenset("1 L LA P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB HSV".split())
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 258, 262
_SAMPLE_FORMAT, _SIGNED = 339, 2
_STRIPS, _TILES = (273, 279), (324, 325)
_WHITE_IS_ZERO = 0
_TAIL = 64
_MAX_RATIO = 2000  # of an image's sides: with a shorter side of 256 pixels, 131 million pixels
_OTHER_KINDS = {  # by a part of their first bytes
    b"ftypavi": "an AVIF picture",
    b"ftypheic": "a HEIC picture",
    b"ftypmif1": "a HEIF picture",
    b"ftyp": "a video",
    b"jP  \r\n": "a JPEG 2000 picture",
    b"\x89PNG": "a PNG without a size that can be read",
    b"%PDF": "a PDF",
    b"\0\0\x01\0": "an icon",
}
_NUM_CHANNELS = {"L": 1, "RGB": 3}
_JPEG, _METADATA = b"\xff\xd8\xff", b"\xff\xe1"  # begin of a file, and of EXIF and XMP in it
# formats of the suffixes that are read; others may start programs such as Ghostscript
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF")


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """Facts from an image's header.

    Args:
        deep: Whether values have more than 8 bits, even if Pillow keeps only the upper eight.
        size: Width and height as stored, in pixels.
        mark: Number of the file, the same for all links to it. 0 if the file system has none.
        turned: Whether EXIF asks to rotate or flip the image.
        whole: Whether the file seems complete, and its values need no check. False if that is unknown.
    """

    format: str
    mode: str
    deep: bool
    size: tuple[int, int]
    mark: int
    num_frames: int
    turned: bool
    transparent: bool
    whole: bool


def read_image(source: Source, mode: Mode) -> Picture:
    """Reads an image as it is meant to be seen.

    Args:
        mode: `RGB`, `L` for grey, or a number of channels.

    Returns:
        Pillow's image; an array for a number of channels or a `.npy` file.

    Raises:
        DataError: The image is damaged, gigantic or of an unsupported kind. One line names the file and the reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of unreadable EXIF and large pictures; `check` reports both
        return decode(source, mode)


def decode(source: Source, mode: Mode) -> Picture:
    """Does the work of `read_image`, with Pillow's warnings."""
    try:
        if isinstance(mode, int) or is_array(str(source)):
            number = mode if isinstance(mode, int) else _NUM_CHANNELS[mode]
            return read_channels(str(source), _content(source), number)
        with _image_of(source) as (image, _):
            _check_kind(image)
            image.load()
            turned = _turned(_in_8_bits(image))
            if turned.mode in ("P", "PA") and isinstance(turned.info.get("transparency"), bytes):
                turned = turned.convert("RGBA")
            if turned.mode == "LAB" and mode == "L":
                turned = turned.convert("RGB")
            return turned if turned.mode == mode else turned.convert(mode)
    except Exception as error:  # Pillow's plugins may raise anything
        raise DataError(f"{source}: {why_unreadable(error, source)}") from error


def read_pixels(source: Source, mode: Mode) -> Picture:
    """Reads the same pixels as `read_image`, as an array `(height, width, channels)` if that is faster.

    It is faster if `simplejpeg` is installed and decodes the file without complaint. Pillow reads all other files,
    since it accepts more, and it decides which files are damaged.

    Raises:
        DataError: See `read_image`.
    """
    found = _by_simplejpeg(source, mode)
    return read_image(source, mode) if found is None else found


def _by_simplejpeg(source: Source, mode: Mode) -> Picture | None:
    """Reads an image with simplejpeg. None if Pillow has to read it."""
    simplejpeg = _simplejpeg()
    if simplejpeg is None or isinstance(source, Decoded) or isinstance(mode, int) or is_array(str(source)):
        return None
    try:
        with _opened(source) as file:
            content = file.read()
        if not content.startswith(_JPEG):
            return None
        height, width, space, _ = simplejpeg.decode_jpeg_header(content)
        if space not in ("YCbCr", "Gray") or height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
            return None
        if max(height, width) > _MAX_RATIO * min(height, width):
            return None
        if _METADATA in content and _is_turned(content):
            return None
        if space == "Gray":
            pixels = simplejpeg.decode_jpeg(content, "GRAY")
            return pixels if mode == "L" else pixels.repeat(3, axis=2)
        pixels = simplejpeg.decode_jpeg(content, "RGB")
        return pixels if mode == "RGB" else Image.fromarray(pixels).convert(mode)
    except (OSError, ValueError, RuntimeError):
        return None


def _content(source: Source) -> bytes | None:
    if isinstance(source, Decoded):
        raise DataError("is grey or colour, but space.num_channels is another number")
    return source.content if isinstance(source, Encoded) else None


@contextlib.contextmanager
def _image_of(source: Source) -> Iterator[tuple[Image.Image, BinaryIO | None]]:
    """Opens an image with Pillow, without decoding it, and gives its file. A decoded image has no file."""
    if isinstance(source, Decoded):
        yield source.image, None
        return
    # an open file instead of a path: Pillow 13 maps uncompressed TIFFs at paths, and forgets to turn them
    with _opened(source) as file, Image.open(file, formats=_FORMATS) as image:
        yield image, file


def _opened(source: str | Path | Encoded) -> BinaryIO:
    return io.BytesIO(source.content) if isinstance(source, Encoded) else open(source, "rb")


def _is_turned(content: bytes) -> bool:
    """Whether the EXIF or XMP of a JPEG file asks to turn the image."""
    with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        warnings.simplefilter("ignore")
        return _orientation(image) not in (None, 1)


@functools.cache
def _simplejpeg() -> ModuleType | None:
    """The module if it can be imported."""
    try:
        return importlib.import_module("simplejpeg")
    except (ImportError, ValueError):  # a build for another numpy raises ValueError
        return None


def read_header(source: Source, mode: Mode = "RGB") -> Header:
    """Reads facts about an image without decoding it.

    Args:
        mode: Mode in which the image will be read.

    Raises:
        DataError: The header cannot be read. One line names the file and the reason.
    """
    try:
        if isinstance(mode, int) or is_array(str(source)):
            format_, kind, size, deep = header_of(str(source), _content(source))
            return Header(
                format=format_, mode=kind, deep=deep, size=size, mark=0, num_frames=1, turned=False, transparent=False,
                whole=not deep,
            )  # fmt: skip
        with _image_of(source) as (image, file):
            format_ = image.format or ""
            _check_kind(image)
            return Header(
                format=format_,
                mode=image.mode,
                deep=_is_deep(image.mode) or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())),
                size=image.size,
                mark=0 if file is None else _mark_of(file),
                num_frames=getattr(image, "n_frames", 1),
                turned=_has_exif(image) and _orientation(image) in range(2, 9),
                transparent=image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info,
                whole=file is None or _is_whole(image, file),
            )
    except Exception as error:
        raise DataError(f"{source}: {why_unreadable(error, source)}") from error


def why_unreadable(error: Exception, source: Source) -> str:
    """Says in one line what is wrong with an image."""
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"gigantic: {str(error).split(',')[0].lower()}; make it smaller"
    if isinstance(error, UnidentifiedImageError):
        return f"no image: {_what_instead(source)}"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"damaged: {reason}"


def _what_instead(source: Source) -> str:
    if isinstance(source, Decoded):
        return "it was decoded by a library"
    with _opened(source) as file:
        start = file.read(256)
    if not start:
        return "the file is empty"
    if not any(start):
        return "it begins with zeros"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; fetch the file with git lfs pull"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page"
    if start.startswith((b"II*\0", b"MM\0*")):
        return "a TIFF of a kind that is not read; save it with 8 or 16 bits"
    if kind := next((kind for sign, kind in _OTHER_KINDS.items() if sign in start[:12]), None):
        return f"{kind}; save it as JPEG or PNG"
    return "it begins as text" if start.isascii() and b"\0" not in start else "no format that is read"


def _check_kind(image: Image.Image) -> None:
    """Raises DataError if the header shows an unsupported kind of image."""
    if max(image.size) > _MAX_RATIO * min(image.size):
        width, height = image.size
        raise DataError(
            f"{width:,} x {height:,} pixels, more than {_MAX_RATIO:,} times as long as wide: it would be gigantic once "
            f"its shorter side is resized; crop it"
        )
    formats = image.tag_v2.get(_SAMPLE_FORMAT, 1) if isinstance(image, TiffImageFile) else 1
    if image.mode in _CONVERTED and _SIGNED in np.atleast_1d(formats):
        raise DataError("signed integers of 8 bits, which would be read as unsigned; save it unsigned")
    if image.mode in _CONVERTED or (_is_deep(image.mode) and (image.mode != "I" or _bits(image) == 16)):
        return
    if image.mode == "I":
        raise DataError("integers of 32 bits, whose white value is unknown; save it with 8 or 16 bits")
    raise DataError(f"Pillow's mode {image.mode} is not supported; save it with 8 bits, as grey or RGB")


def _bits(image: Image.Image) -> int:
    """Bits of a value of a grey image with more than 8 bits. Pillow keeps some 16-bit images in 32 bits."""
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))[0])
    return 16 if image.format in ("PNG", "PPM") or image.mode.startswith("I;16") else 32


def _is_deep(mode: str) -> bool:
    """Whether a mode of Pillow's means grey with more than 8 bits."""
    return mode.startswith("I;16") or mode in ("I", "F")


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Converts an image with more than 8 bits, as the module's docstring describes."""
    _check_kind(image)
    if image.mode in _CONVERTED:
        return image
    values = np.asarray(image).astype(np.float64)
    least, most = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    white = 1.0 if image.mode == "F" else 2.0 ** (bits if (bits := _bits(image)) in (10, 12, 14) else 16) - 1
    if not (least >= 0 and most <= white):  # true for NaN as well
        raise DataError(f"values from {least:g} to {most:g}, must be from 0 to {white:g}; save it with 8 bits")
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values  # Pillow inverts only 8-bit images
    scaled = Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
    scaled.info = image.info
    if (orientation := _orientation(image)) is not None:
        scaled.getexif()[_ORIENTATION] = orientation
    return scaled


def _has_exif(image: Image.Image) -> bool:
    """Whether the image has EXIF, XMP or TIFF tags, which can hold an orientation."""
    return isinstance(image, TiffImageFile) or not image.info.keys().isdisjoint(("exif", "xmp", "XML:com.adobe.xmp"))


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF has no orientation
        return None


def _turned(image: Image.Image) -> Image.Image:
    if _orientation(image) not in range(2, 9):
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:
        raise DataError(f"damaged: its EXIF asks to turn it, but turning it failed: {error}") from error


def _mark_of(file: BinaryIO) -> int:
    """A number of 63 bits that identifies a file. A collision is practically impossible."""
    if isinstance(file, io.BytesIO):
        return 0
    status = os.fstat(file.fileno())
    return hash((status.st_dev, status.st_ino)) & (2**63 - 1) if status.st_ino else 0


def _is_whole(image: Image.Image, file: BinaryIO) -> bool:
    """Whether the file has the end that its format or its header asks for."""
    length = file.seek(0, os.SEEK_END)
    if image.format in ("JPEG", "MPO", "PNG"):
        file.seek(max(length - _TAIL, 0))
        tail = file.read()
        return tail.endswith(b"IEND\xaeB`\x82") if image.format == "PNG" else tail.endswith(b"\xff\xd9")
    if image.format == "WEBP":
        file.seek(4)
        return int.from_bytes(file.read(4), "little") + 8 <= length
    if isinstance(image, TiffImageFile):
        for offsets, counts in (_STRIPS, _TILES):
            if offsets in image.tag_v2 and counts in image.tag_v2:
                ends = (a + b for a, b in zip(image.tag_v2[offsets], image.tag_v2[counts], strict=False))
                return image.mode not in ("F", "I") and max(ends, default=length + 1) <= length
    return False
