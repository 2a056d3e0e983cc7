"""Images in three splits: train, search (held out of train) and test (read once, at the end)."""

import dataclasses
import json
from pathlib import Path

from cvt_nas.config import DataConfig
from cvt_nas.data.arrays import DEBIAN_FASHION_MNIST, ArrayData, open_arrays
from cvt_nas.data.find import find_data, shape_of
from cvt_nas.data.folders import FolderData
from cvt_nas.data.images import SPLITS, Batch, ImageData, Preprocessing, Split, seed_all
from cvt_nas.errors import DataError
from cvt_nas.results import write_atomically

__all__ = [
    "DEBIAN_FASHION_MNIST",
    "SPLITS",
    "Batch",
    "ImageData",
    "Preprocessing",
    "Split",
    "find_data",
    "load_data",
    "save_preprocessing",
    "seed_all",
    "shape_of",
]


def load_data(
    config: DataConfig,
    *,
    root: Path | None,
    image_size: int,
    num_channels: int,
    num_classes: int,
    test_only: bool = False,
) -> ImageData:
    """The data set of a space file.

    Args:
        config: Section `data` of the file.
        root: Folder that holds it; not needed for `digits`, nor for `fashion-mnist` where Debian's
            package is installed.
        image_size, num_channels, num_classes: What the space's networks expect.
        test_only: Whether the test split alone is needed; a folder of images may then lack the others.

    Raises:
        DataError: It is missing, incomplete, or does not fit; one line says what and where.
    """
    if config.dataset in ("imagefolder", "imagenet"):
        data: ImageData = FolderData(config, root, image_size, num_channels, test_only=test_only)
        channels = num_channels
    else:
        arrays = open_arrays(config.dataset, root)
        channels = arrays.train_images.shape[1]
        data = ArrayData(config, arrays, image_size)
    if channels != num_channels:
        raise DataError(f"{config.dataset} has {channels} channels, space.num_channels is {num_channels}")
    if len(data.class_names) != num_classes:
        raise DataError(f"{config.dataset} has {len(data.class_names)} classes, space.num_classes is {num_classes}")
    return data


def save_preprocessing(data: ImageData, folder: Path) -> None:
    """Writes `preprocessing.json`: what an image must go through before the model, and the classes' names."""
    tree = {**dataclasses.asdict(data.preprocessing), "classes": list(data.class_names)}
    write_atomically(folder / "preprocessing.json", json.dumps(tree, indent=2) + "\n")
