"""Data sets of the user: functions that return map-style data sets like torch's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cvt_nas.config import DataConfig
from cvt_nas.data.kinds.torchvision_sets import ImageSet, records_of_sets
from cvt_nas.data.records import Images, Opener, Records, role_of
from cvt_nas.data.sources import Decoded
from cvt_nas.errors import PluginError, first_line
from cvt_nas.plugins import load_plugin


def opener_of(config: DataConfig, root: Path | None) -> Opener:
    return _opened(config, root)


def find(config: DataConfig, root: Path | None, *, on_note: Callable[[str], None] | None = None) -> Records:
    """Finds the images of the splits that the user's function returns.

    Raises:
        PluginError: The function raises an error, or returns no data sets.
        DataError: Images cannot be read, or have no classes.
    """
    opener = _opened(config, root)
    is_marked = len(opener.sets) > 1
    return records_of_sets(
        opener.sets, root or Path(config.dataset), opener, place=config.dataset, is_marked=is_marked, on_note=on_note
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Opener of images that the user's data sets return. An image's name is its split and row."""

    sets: Mapping[str, ImageSet]

    def source(self, images: Images, row: int) -> Decoded:
        split, _, number = images.names[row].rpartition("/")
        name = f"{images.root}/{images.names[row]}"
        try:
            return Decoded(name=name, image=_as_picture(self.sets[split][int(number)][0]))
        except Exception as error:  # the user's code may raise anything
            raise PluginError(f"{name}: cannot be read: {first_line(error)}") from error

    def sizes(self, images: Images) -> list[int]:
        return [0] * len(images.names)  # only the user's code knows the files


def _as_picture(image: object) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(f"got {array.dtype} {array.shape}, must be Pillow's image, or uint8 (height, width[, 3])")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _opened(config: DataConfig, root: Path | None) -> _Rows:
    name = config.dataset
    function = load_plugin(name, "data.dataset")
    try:
        given = function(root)
    except Exception as error:
        raise PluginError(f"data.dataset: {name}: {first_line(error)}") from error
    sets = dict(given) if isinstance(given, Mapping) else {"train": given}
    for split, found in sets.items():
        if role_of(split) is None or not (hasattr(found, "__len__") and hasattr(found, "__getitem__")):
            raise PluginError(
                f"data.dataset: {name}: must give a data set with len() and [index], or a dictionary of such by train, "
                f"val and test; got {split}: {type(found).__name__}"
            )
    return _Rows(sets=sets)
