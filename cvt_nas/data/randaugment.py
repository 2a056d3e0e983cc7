"""timm's RandAugment in two steps: random draws for each image on the CPU, then pixels for a whole batch on a device.

The first step runs timm's own policy with a recorder in place of each operation, so a seed draws the same as with PIL.
The second step computes the same values as Pillow, except that fewer than one in a hundred values of a warped image
differ by one.

With a GPU, this saves a third of an image's CPU time. On a CPU, it is much slower than PIL.
"""

import functools
import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8
from PIL import Image
from torch import Tensor

from cvt_nas.data.images import to_device

if TYPE_CHECKING:
    from timm.data.auto_augment import RandAugment

_Bytes = UInt8[Tensor, "images channels height width"]
_Values = Float64[Tensor, "images values"]
_Compute = Callable[..., _Bytes]  # takes images, values and the fill colour; a warp also takes `between`
_CHUNK_VALUES = 2**22  # computed at once, which bounds the memory of intermediate results
_LUMA = (19595, 38470, 7471)  # Pillow's weights of red, green and blue, in parts of 2 ** 16
_SCALE_BITS = 24  # bits of the weights of Pillow's blur
_PASSES = 3  # of Pillow's blur


def computes_on(device: torch.device) -> bool:
    """Whether computing pixels on `device` pays."""
    return device.type != "cpu"


def recording(policy: "RandAugment") -> Callable[[], Float64[Tensor, "layers 3"]]:
    """Returns a function that draws the operations of one image from the global random states, as `policy` does.

    It returns three values for each layer: the number of the operation, or 0 for none; its argument; and 1 for
    bicubic or 0 for bilinear interpolation.

    Args:
        policy: timm's RandAugment. Changed in place.
    """
    for operation in policy.ops:
        operation.aug_fn = functools.partial(_record, _NAMES.index(operation.name))

    return functools.partial(_draw, policy)


def _draw(policy: "RandAugment") -> Float64[Tensor, "layers 3"]:
    found: list[tuple[float, float, float]] = []
    policy(found)
    missing = [(0.0, 0.0, 0.0)] * (policy.num_layers - len(found))
    return torch.tensor(found + missing, dtype=torch.float64)


def _record(
    number: int,
    found: list[tuple[float, float, float]],
    argument: float = 0.0,
    *,
    resample: int | Sequence[int],
    fillcolor: object,
) -> list[tuple[float, float, float]]:
    """Replaces an operation: records it instead of changing an image. The fill colour is the same for all."""
    del fillcolor
    is_warp = _GROUPS[_NAMES[number]] in _WARPS
    if is_warp and isinstance(resample, Sequence):
        resample = random.choice(resample)  # as timm's does
    found.append((number, argument, float(is_warp and resample == Image.Resampling.BICUBIC)))
    return found


def fill_of(policy: "RandAugment") -> UInt8[Tensor, " channels"]:
    """The colour with which `policy` fills pixels outside of an image."""
    return torch.tensor(policy.ops[0].kwargs["fillcolor"], dtype=torch.uint8).view(-1)


def augmented(images: _Bytes, records: Float64[Tensor, "images layers 3"], fill: UInt8[Tensor, " channels"]) -> _Bytes:
    """Applies the recorded operations to `images`, in place, and returns them.

    Nothing waits for the device, since the CPU knows which images each operation applies to.

    Args:
        images: Images on the device that computes.
        records: Values that `recording` gave for each image, on the CPU.
        fill: See `fill_of`; on the CPU.
    """
    size = images.shape[2], images.shape[3]
    chunk = max(_CHUNK_VALUES // images[0].numel(), 1)
    jobs: list[tuple[_Compute, np.ndarray, np.ndarray]] = []
    for layer in records.numpy().transpose(1, 0, 2):
        groups: dict[tuple[_Compute, float], list[int]] = {}
        for row, (number, _, bicubic) in enumerate(layer.tolist()):
            if number:
                groups.setdefault((_GROUPS[_NAMES[int(number)]], bicubic), []).append(row)
        for (function, bicubic), rows in groups.items():
            compute = (
                functools.partial(function, between=_cubic if bicubic else _linear) if function in _WARPS else function
            )
            for start in range(0, len(rows), chunk):
                some = rows[start : start + chunk]
                jobs.append(
                    (compute, np.array(some), np.stack([_PREPARED[function](layer[row], size) for row in some]))
                )
    if not jobs:
        return images
    device = images.device
    rows = to_device(torch.from_numpy(np.concatenate([rows for _, rows, _ in jobs])), device)
    flat = to_device(torch.from_numpy(np.concatenate([values.ravel() for *_, values in jobs])), device)
    colour = to_device(fill, device)
    row, value = 0, 0
    for function, some, values in jobs:
        index = rows[row : row + len(some)]
        given = flat[value : value + values.size].view(values.shape)
        images.index_copy_(0, index, function(images.index_select(0, index), given, colour))
        row, value = row + len(some), value + values.size
    return images


def _through(tables: Int64[Tensor, "images tables 256"], images: _Bytes) -> _Bytes:
    """Replaces each value by its entry in a table of the image. There is one table for all channels or for each."""
    num, channels = images.shape[:2]
    tables = tables.to(torch.uint8).expand(num, channels, 256)
    return tables.gather(2, images.flatten(2).long()).view(images.shape)


def _point(images: _Bytes, tables: _Values, fill: Tensor) -> _Bytes:
    del fill
    return _through(tables.long()[:, None], images)


def _table(record: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Table of an operation that maps each value on its own."""
    del size
    name, argument, values = _NAMES[int(record[0])], float(record[1]), np.arange(256)
    if name == "Invert":
        return 255.0 - values
    if name.startswith("Posterize"):
        return (values & ~(2 ** max(8 - int(argument), 0) - 1)).astype(float)
    if name == "SolarizeAdd":
        return np.where(values < 128, np.minimum(values + argument, 255), values)
    return np.where(values < argument, values, 255.0 - values)


def _auto_contrast(images: _Bytes, values: _Values, fill: Tensor) -> _Bytes:
    del values, fill
    flat = images.flatten(2)
    least, most = (found.double()[..., None] for found in (flat.amin(2), flat.amax(2)))
    before = torch.arange(256, dtype=torch.float64, device=images.device)
    spread = (most - least).clamp(min=1)
    scale = torch.full_like(spread, 255) / spread  # `255 / spread` would round the reciprocal first
    after = (before * scale + -least * scale).trunc().clamp(0, 255)
    return _through(torch.where(most > least, after, before).long(), images)


def _equalize(images: _Bytes, values: _Values, fill: Tensor) -> _Bytes:
    del values, fill
    flat = images.flatten(2)
    before = torch.arange(256, device=images.device)
    # sorting instead of a histogram, which would wait for the device
    ordered = flat.sort(dim=2).values.int()
    below = torch.searchsorted(ordered, before.int().expand(*flat.shape[:2], 256).contiguous())
    step = below.gather(2, flat.amax(2, keepdim=True).long()) // 255
    after = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return _through(torch.where(step > 0, after, before), images)


def _luma(images: _Bytes) -> Int32[Tensor, "images 1 height width"]:
    x = images.int()
    if images.shape[1] == 1:
        return x
    red, green, blue = (weight * x[:, channel] for channel, weight in enumerate(_LUMA))
    return (red + green + blue + 0x8000 >> 16)[:, None]


def _blend(
    dull: Tensor, images: _Bytes, factors: Float64[Tensor, " images"]
) -> UInt8[Tensor, "images channels height width"]:
    """Blends `dull` and the image by its factor, which may exceed 1, in Pillow's arithmetic."""
    factor: Float32[Tensor, "images 1 1 1"] = factors.float()[:, None, None, None]
    return (dull + factor * (images.int() - dull)).clamp(0, 255).to(torch.uint8)


def _color(images: _Bytes, values: _Values, fill: Tensor) -> _Bytes:
    del fill
    return _blend(_luma(images), images, values[:, 0])


def _contrast(images: _Bytes, values: _Values, fill: Tensor) -> _Bytes:
    del fill
    height, width = images.shape[2:]
    mean = _luma(images).sum(dim=(1, 2, 3)).double() / (height * width)
    return _blend((mean + 0.5).int()[:, None, None, None], images, values[:, 0])


def _brightness(images: _Bytes, values: _Values, fill: Tensor) -> _Bytes:
    del fill
    return _blend(torch.zeros((), dtype=torch.int32, device=images.device), images, values[:, 0])


def _sharpness(images: _Bytes, values: _Values, fill: Tensor) -> _Bytes:
    del fill
    smooth = images.int()
    if min(images.shape[2:]) >= 3:
        rows = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
        sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * smooth[:, :, 1:-1, 1:-1]
        smooth = smooth.clone()
        smooth[:, :, 1:-1, 1:-1] = (2 * sums + 13) // 26  # weights of 1/13, rounded; the border stays
    return _blend(smooth, images, values[:, 0])


def _factor(record: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    del size
    factor = record[1]
    if _NAMES[int(record[0])] == "Desaturate":
        factor = min(1.0, max(0.0, 1.0 - factor))
    return np.array([factor])


def _no_values(record: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    del record, size
    return np.zeros(1)


def _blur(images: _Bytes, values: _Values, fill: Tensor) -> _Bytes:
    """Three box blurs along each axis, like Pillow's Gaussian blur."""
    del fill
    weights = values.long()[:, :, None, None, None]
    reach = weights.shape[1] // 2
    x = images.long()
    for axis in (3, 2):
        last = x.shape[axis] - 1
        places = [
            (torch.arange(last + 1, device=x.device) + shift).clamp(0, last) for shift in range(-reach, reach + 1)
        ]
        for _ in range(_PASSES):
            total = torch.zeros_like(x)
            for k, place in enumerate(places):
                total += weights[:, k] * x.index_select(axis, place)
            x = total + (1 << _SCALE_BITS - 1) >> _SCALE_BITS
    return x.to(torch.uint8)


def _blur_weights(record: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Weights of a box of fractional length, in parts of 2 ** 24. timm's deviation is at most 2."""
    del size
    variance = np.float32(record[1]) * np.float32(record[1]) / np.float32(_PASSES)
    whole = np.float32(math.floor((np.float32(math.sqrt(12.0 * variance + 1.0)) - 1.0) / 2.0))
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
    radius = np.float32(whole + part)
    inner = int(np.float32(1 << _SCALE_BITS) / (radius * 2 + 1))
    outer = ((1 << _SCALE_BITS) - (int(radius) * 2 + 1) * inner) // 2
    assert radius < 2, "timm's blur has a deviation of 2 at most"
    return np.array([inner if abs(k) <= int(radius) else outer * (abs(k) == int(radius) + 1) for k in range(-2, 3)])


_Between = Callable[[Sequence[Tensor], Tensor], Tensor]  # interpolates neighbouring values by a share


def _linear(values: Sequence[Tensor], share: Tensor) -> Tensor:
    first, second = values
    return first + (second - first) * share


def _cubic(values: Sequence[Tensor], share: Tensor) -> Tensor:
    before, first, second, after = values
    squared, cubed = 2 * (before - first) + second - after, -before + first - second + after
    return first + share * ((second - before) + share * (squared + share * cubed))


def _shifts(between: _Between) -> range:
    """Offsets of the values that `between` interpolates."""
    return range(-1, 3) if between is _cubic else range(2)


def _slide(images: _Bytes, values: _Values, fill: UInt8[Tensor, " channels"], *, between: _Between) -> _Bytes:
    """Moves each row of an image along itself, by a number of columns that grows with the row."""
    height, width = images.shape[2:]
    down, right = _middles(height, width, images.device)
    more, columns = values[:, :, None, None].unbind(1)
    x = right + more * down + columns
    left = (x - 0.5).floor()
    start = torch.arange(height, device=images.device)[:, None] * width
    found = _row(images, start, left, between, x - 0.5 - left)
    return _filled(found, (x >= 0) & (x < width), fill)


def _slide_down(images: _Bytes, values: _Values, fill: UInt8[Tensor, " channels"], *, between: _Between) -> _Bytes:
    return _slide(images.transpose(2, 3), values, fill, between=between).transpose(2, 3)


def _rotate(images: _Bytes, values: _Values, fill: UInt8[Tensor, " channels"], *, between: _Between) -> _Bytes:
    height, width = images.shape[2:]
    down, right = _middles(height, width, images.device)
    a, b, c, d, e, f = values[:, :, None, None].unbind(1)
    x, y = a * right + b * down + c, d * right + e * down + f
    left, top = (x - 0.5).floor(), (y - 0.5).floor()
    rows = [
        _row(images, (top + shift).clamp(0, height - 1).long() * width, left, between, x - 0.5 - left)
        for shift in _shifts(between)
    ]
    found = between(rows, (y - 0.5 - top).float()[:, None])
    return _filled(found, (x >= 0) & (x < width) & (y >= 0) & (y < height), fill)


def _middles(
    height: int, width: int, device: torch.device
) -> tuple[Float64[Tensor, "height 1"], Float64[Tensor, " width"]]:
    """Centres of rows and columns."""
    down, right = (torch.arange(side, dtype=torch.float64, device=device) + 0.5 for side in (height, width))
    return down[:, None], right


def _row(images: _Bytes, start: Tensor, left: Tensor, between: _Between, share: Tensor) -> Tensor:
    """Interpolates in the rows that begin at `start`, between column `left` and the next one, by `share`."""
    num, channels, _, width = images.shape
    flat = images.flatten(2)
    found: list[Tensor] = []
    for shift in _shifts(between):
        place = start + (left + shift).clamp(0, width - 1).long()
        values = flat.gather(2, place.view(num, 1, -1).expand(-1, channels, -1))
        found.append(values.view(images.shape).float())
    return between(found, share.float()[:, None])


def _filled(values: Tensor, inside: Bool[Tensor, "images height width"], fill: Tensor) -> _Bytes:
    return torch.where(inside[:, None], values.clamp(0, 255).to(torch.uint8), fill[:, None, None])


def _shift(record: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Columns by which each row moves further than the row before, and columns by which all rows move."""
    name, argument = _NAMES[int(record[0])], float(record[1])
    if name.startswith("Shear"):
        return np.array([argument, 0.0])
    return np.array([0.0, argument * size[name == "TranslateXRel"]])


def _rotation(record: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's coefficients of the affine map from new places to old ones."""
    y, x = (side / 2 for side in size)
    angle = -math.radians(float(record[1]) % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    return np.array([cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y])


_GROUPS: dict[str, _Compute] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _point,
    "Posterize": _point,
    "PosterizeIncreasing": _point,
    "Solarize": _point,
    "SolarizeIncreasing": _point,
    "SolarizeAdd": _point,
    "Color": _color,
    "ColorIncreasing": _color,
    "Desaturate": _color,
    "Contrast": _contrast,
    "ContrastIncreasing": _contrast,
    "Brightness": _brightness,
    "BrightnessIncreasing": _brightness,
    "Sharpness": _sharpness,
    "SharpnessIncreasing": _sharpness,
    "GaussianBlur": _blur,
    "Rotate": _rotate,
    "ShearX": _slide,
    "ShearY": _slide_down,
    "TranslateXRel": _slide,
    "TranslateYRel": _slide_down,
}  # functions of timm's operations; operations with the same function are computed together
_NAMES = ("", *_GROUPS)
_WARPS = (_slide, _slide_down, _rotate)
_PREPARED: dict[_Compute, Callable[[np.ndarray, tuple[int, int]], np.ndarray]] = {
    _auto_contrast: _no_values, _equalize: _no_values, _point: _table, _color: _factor, _contrast: _factor,
    _brightness: _factor, _sharpness: _factor, _blur: _blur_weights, _slide: _shift,
    _slide_down: _shift, _rotate: _rotation,
}  # these make a function's values for an image from its record, height and width  # fmt: skip
