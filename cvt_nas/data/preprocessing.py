"""Reads from the files beside weights how images are prepared, as arguments of `Preprocessing`.

Settings that the pipeline does not support raise an error. Ignoring them would change the accuracy silently.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from cvt_nas.arch import ImageSize, checked_size
from cvt_nas.data.images import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing
from cvt_nas.errors import DataError, first_line

_Tree = Mapping[str, Any]  # what `json.loads` gives
_RESAMPLING: dict[int, Interpolation] = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming",
}  # of Pillow  # fmt: skip
# prefixes of the classes of transformers' processors
_CROPPING = ("ConvNext", "PoolFormer")  # crop by `crop_pct`
_BY_SHORTEST_EDGE = (*_CROPPING, "CLIP", "Bit", "Levit", "MobileNetV1", "MobileNetV2", "ChineseCLIP", "SiglipFeature")
_CROPPING_THE_CENTRE = (*_BY_SHORTEST_EDGE[1:], "DeiT", "Flava", "Perceiver")  # unless `do_center_crop` is false
_DEFAULT_RESAMPLE = {
    2: ("ViT", "MobileNetV1", "MobileNetV2"),
    3: (*_CROPPING, "Beit", "Bit", "Blip", "CLIP", "ChineseCLIP", "DeiT", "Levit", "Siglip"),
}  # defaults of the classes in release 5.24
_ValueT = TypeVar("_ValueT")
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_DEFAULT_STATISTICS = {
    (IMAGENET_MEAN, IMAGENET_STD): ("PoolFormer", "Levit", "Perceiver"),
    _CLIP: ("CLIP", "ChineseCLIP", "Bit", "Blip", "Flava"),
    ((0.5,) * 3, (0.5,) * 3): ("ViT", "ConvNext", "MobileNetV1", "MobileNetV2", "Siglip", "DeiT", "Beit"),
}
_OF_CVT = "ConvNext"  # transformers' class for a CvT if the file names none
_LEVIT_SCALE = 256 / 224
_GREATEST_SIDE = 2**14
_WHOLE_IMAGE = 384  # from this size on, ConvNeXt's processor squashes the image instead of cropping it
_ALMOST_1 = math.nextafter(1.0, 0.0)  # as `crop_pct`, crops the centre; 1 would squash the whole image
_UNKNOWN = ("do_flip_channel_order", "do_pad", "do_thumbnail", "do_align_long_axis", "do_crop_margin", "rescale_offset",
            "do_grayscale", "do_image_splitting")  # fmt: skip


class Found(TypedDict, total=False):
    """Arguments of `Preprocessing` that a file gives."""

    image_size: ImageSize
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation
    crop_pct: float


class _RefusedError(ValueError):
    """A key has an unsupported value."""

    def __init__(self, key: str, got: object, right: str) -> None:
        super().__init__(f"{key}: got {got!r}, {right}")


def preprocessing_beside(folder: Path) -> tuple[Found, Path | None]:
    """Returns the settings that a file in `folder` gives, and the path of that file; empty and None without one.

    Raises:
        DataError: The file cannot be read, or has an unsupported setting.
    """
    readers: dict[str, Callable[[_Tree], Found]] = {
        "preprocessing.json": _of_this_package,
        "preprocessor_config.json": _of_transformers,
        "config.json": _of_timm,
    }
    for name, read in readers.items():
        if (path := folder / name).is_file():
            try:
                tree = json.loads(path.read_text(encoding="utf-8-sig"))
                if not isinstance(tree, dict) and name != "config.json":
                    raise ValueError(f"got a {type(tree).__name__}, must be an object of settings")
                if name != "config.json":
                    return read(tree), path
                if isinstance(tree, dict) and isinstance(tree.get("pretrained_cfg"), dict):
                    return read(tree["pretrained_cfg"]), path
            except _RefusedError as error:
                raise DataError(f"{path}: {error}") from error
            except KeyError as error:
                raise DataError(f"{path}: cannot be read: {error.args[0]} is missing") from error
            except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
                raise DataError(f"{path}: cannot be read: {first_line(error)}") from error
    return {}, None


def _of_this_package(tree: _Tree) -> Found:
    found: Found = {"mean": _mean("mean", tree["mean"]), "std": _deviation("std", tree["std"])}
    if "image_size" in tree:
        found["image_size"] = _size("image_size", tree["image_size"])
    if "interpolation" in tree:
        found["interpolation"] = tree["interpolation"]
    if "crop_pct" in tree:
        found["crop_pct"] = tree["crop_pct"]
    return found


def preprocessing_of_timm(tree: _Tree, place: str) -> Preprocessing:
    """Preprocessing of a network of timm's, from its settings. Raises DataError if one of them is unsupported."""
    try:
        return Preprocessing(**_of_timm(tree))
    except _RefusedError as error:
        raise DataError(f"{place}: {error}") from error


def _of_timm(tree: _Tree) -> Found:
    tree = {key: value for key, value in tree.items() if value}  # timm uses its defaults for null, too
    mode, share = tree.get("crop_mode", "center"), _crop_pct(tree)
    interpolation = tree.get("interpolation", "bicubic")
    if mode not in ("center", "squash"):
        raise _RefusedError("crop_mode", mode, "must be 'center' or 'squash'")
    if mode == "squash" and share != 1:
        raise _RefusedError("crop_pct", share, "must be 1 where crop_mode is 'squash'")
    if interpolation not in _RESAMPLING.values():
        raise _RefusedError("interpolation", interpolation, f"must be one of {', '.join(_RESAMPLING.values())}")
    return {
        "image_size": _size("input_size", tree["input_size"][1:]),
        "mean": _mean("mean", tree.get("mean", IMAGENET_MEAN)),
        "std": _deviation("std", tree.get("std", IMAGENET_STD)),
        "interpolation": interpolation,
        "crop_pct": 1.0 if mode == "squash" else min(share, _ALMOST_1),
    }


def _of_transformers(tree: _Tree) -> Found:
    for key in _UNKNOWN:
        if tree.get(key):
            raise _RefusedError(key, tree[key], "must be false, since this preparation is not supported")
    if not tree.get("do_resize", True):
        raise _RefusedError("do_resize", False, "must be true, since images are resized to one size; give it as `size`")
    kind = _kind(tree)
    if tree.get("include_top", kind.startswith("EfficientNet")):
        raise _RefusedError("include_top", tree.get("include_top"), "must be false: it normalises the images twice")
    resample = tree.get("resample", _default(_DEFAULT_RESAMPLE, kind))
    resample = next((number for number, name in _RESAMPLING.items() if name == resample), resample)
    if type(resample) is not int or resample not in _RESAMPLING:
        raise _RefusedError(
            "resample", resample, "must be one of " + ", ".join(f"{k} ({v})" for k, v in _RESAMPLING.items())
        )
    return {**_sides(tree), **_scale(tree), "interpolation": _RESAMPLING[resample]}


def _default(by_class: Mapping[_ValueT, tuple[str, ...]], kind: str) -> _ValueT | None:
    """Default value of a class of processors; None if it is unknown."""
    return next((value for value, kinds in by_class.items() if (kind or _OF_CVT).startswith(kinds)), None)


def _scale(tree: _Tree) -> Found:
    """Mean and deviation for pixels in [0, 1] that have the same effect as the file's scale, mean and deviation."""
    factor = float(tree.get("rescale_factor", 1 / 255)) if tree.get("do_rescale", True) else 1.0
    if not math.isfinite(factor) or factor <= 0:
        raise _RefusedError("rescale_factor", factor, "must be above 0")
    unit = 255 * factor  # value of a white pixel after scaling
    mean, std = (0.0,), (1.0,)
    if tree.get("do_normalize", True):
        default = _default(_DEFAULT_STATISTICS, _kind(tree))
        tree = {**({} if default is None else dict(zip(("image_mean", "image_std"), default, strict=True))), **tree}
        mean = _mean("image_mean", tree["image_mean"])
        std = _deviation("image_std", tree["image_std"])
    return {"mean": tuple(m / unit for m in mean), "std": tuple(s / unit for s in std)}


def _mean(key: str, value: object) -> tuple[float, ...]:
    return _numbers(key, value, lambda number: number >= 0, "must be numbers of at least 0, one for each channel")


def _deviation(key: str, value: object) -> tuple[float, ...]:
    return _numbers(key, value, lambda number: number > 0, "must be numbers above 0, one for each channel")


def _numbers(key: str, value: object, is_right: Callable[[float], bool], right: str) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    numbers = tuple(float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool))
    if not values or len(numbers) < len(values) or not all(math.isfinite(v) and is_right(v) for v in numbers):
        raise _RefusedError(key, value, right)
    return numbers


def _kind(tree: _Tree) -> str:
    """Class of the processor; empty if the file names none."""
    return str(tree.get("image_processor_type") or tree.get("feature_extractor_type") or "")


def _sides(tree: _Tree) -> Found:
    """Size of the images, and its share of the resized image's shorter side."""
    kind = _kind(tree) or (_OF_CVT if tree.get("crop_pct") is not None else "")
    size: Any = tree["size"]
    if type(size) is int:
        key = "shortest_edge" if kind.startswith(_BY_SHORTEST_EDGE) else "side"
        size = {key: size}
    elif isinstance(size, list) and len(size) == 2:
        size = dict(zip(("height", "width"), size, strict=True))
    elif not isinstance(size, Mapping):
        raise _RefusedError("size", size, "must be a whole number, height and width, or shortest_edge")
    crops = tree.get("do_center_crop", kind.startswith(_CROPPING_THE_CENTRE))
    cropped = _size("crop_size", tree["crop_size"]) if crops else None
    shortest = size.get("shortest_edge")
    if shortest is not None and ("longest_edge" in size or "max_height" in size):
        raise _RefusedError("size", size, "must be shortest_edge alone, or height and width")
    if shortest is None:
        whole = _size("size", size)
        if cropped not in (None, whole):
            raise _RefusedError("size", size, f"must be shortest_edge if the centre, {cropped}, is cropped")
        return {"image_size": whole, "crop_pct": 1.0}
    shortest = _size("size.shortest_edge", shortest)
    if not isinstance(shortest, int) or not isinstance(cropped, int | None):
        raise _RefusedError("size", tree["size"], "must be one number, like crop_size: other crops are not supported")
    if kind.startswith("ConvNext"):
        if cropped not in (None, shortest):
            raise _RefusedError("crop_size", cropped, f"must be {shortest}, like size")
        if shortest >= _WHOLE_IMAGE:
            return {"image_size": shortest, "crop_pct": 1.0}
        return {"image_size": shortest, "crop_pct": _share_of(shortest, int(shortest / _crop_pct(tree)))}
    if cropped is None:
        raise _RefusedError(
            "size", tree["size"], "must be height and width where do_center_crop is false: not every image is square"
        )
    if kind.startswith("PoolFormer"):
        shortest = int(shortest / _crop_pct(tree))
    elif kind.startswith("Levit"):
        shortest = int(_LEVIT_SCALE * shortest)
    if cropped > shortest:
        raise _RefusedError("crop_size", cropped, f"must be at most {shortest}, as the shorter side is resized to it")
    return {"image_size": cropped, "crop_pct": _share_of(cropped, shortest)}


def _crop_pct(tree: _Tree) -> float:
    share = float(tree.get("crop_pct") or 0.875)
    if not 0 < share <= 1:
        raise _RefusedError("crop_pct", share, "must be above 0 and at most 1")
    return share


def _share_of(side: int, resized: int) -> float:
    """`crop_pct` for which the shorter side becomes `resized`. It stays below 1, which would squash the image."""
    share = min(side / resized, _ALMOST_1)
    while math.floor(side / share) > resized:
        share = math.nextafter(share, 1.0)
    while math.floor(side / share) < resized:
        share = math.nextafter(share, 0.0)
    return share


def _size(key: str, value: object) -> ImageSize:
    """Image size from a number, a list, an object of height and width, or an object of one side."""
    told = value
    if isinstance(value, Mapping):
        told = [value["height"], value["width"]] if "height" in value else next(iter(value.values()), None)
        if "height" not in value and len(value) > 1:
            raise _RefusedError(key, value, "must be height and width, or one side")
    try:
        return checked_size(told[0] if isinstance(told, list) and len(told) == 1 else told, _GREATEST_SIDE)
    except ValueError as error:
        raise _RefusedError(key, value, str(error)) from error
