"""Finds the data set that a name or a folder stands for, and the shape of its images."""

import difflib
import os
from pathlib import Path

from cvt_nas.config import DataConfig, Dataset, is_by_name, is_streamed
from cvt_nas.data.arrays import open_arrays
from cvt_nas.data.channels import channels_of, is_array
from cvt_nas.data.kinds import find_records, kind_of_file, kind_of_folder
from cvt_nas.data.kinds.torchvision_sets import BY_NAME, DEFAULT_FOLDER
from cvt_nas.data.layout import find_layout
from cvt_nas.data.tree import folders_in, is_hidden, is_image
from cvt_nas.errors import DataError

_SHAPES: dict[Dataset, tuple[int, int]] = {
    "digits": (1, 10),
    "fashion-mnist": (1, 10),
    "cifar10": (3, 10),
    "cifar100": (3, 100),
}
_SIGNS: dict[Dataset, str] = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "fashion-mnist": "train-images-idx3-ubyte*",
}


def find_data(named: str | Path) -> tuple[Dataset, Path | None]:
    """Returns the data set's kind, as section `data` names it, and its folder or file if it has one.

    Args:
        named: A folder, a file, or the name of a data set. A folder's content tells its kind. A named set is sought in
            `data/`, as in torchvision's examples, unless another package installs it.

    Raises:
        DataError: `named` is none of these.
    """
    folder = Path(named)
    if folder.is_dir():
        raw = folder / "FashionMNIST" / "raw"
        for known, sign in _SIGNS.items():
            if folder.name == sign or any(folder.glob(sign)) or any(raw.glob(sign)):
                return known, folder
        return kind_of_folder(folder), folder
    if folder.is_file() or "{" in folder.name:
        return kind_of_file(folder), folder
    if is_by_name(str(named)):
        return str(named), root_of(named)
    for known in _SHAPES:
        if str(named) == known:
            return known, None if known in ("digits", "fashion-mnist") else Path("data")
    near = difflib.get_close_matches(str(named).lower().replace("_", "-"), _SHAPES, n=1, cutoff=0.75)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"--data {named}: no such file or folder, and none of {', '.join(_SHAPES)}{hint}")


def root_of(named: str | Path) -> Path | None:
    """Absolute path of a data set; None for a set on Hugging Face's hub."""
    if not is_by_name(str(named)):
        return Path(named).absolute()
    return DEFAULT_FOLDER.absolute() if str(named).startswith(BY_NAME) else None


def trained_classes(named: str | Path) -> tuple[str, ...] | None:
    """Returns the classes of the training images that lie beside the test images at `named`, in order.

    Returns None if there are no such training images, or if their classes are those of the test images.

    Raises:
        DataError: The test images have classes that the training images lack.
    """
    dataset, root = find_data(named)
    if dataset != "imagefolder":
        return None
    assert root is not None, "a folder of images has a place"
    layout = find_layout(root)
    ours, theirs = layout.for_test().class_names, layout.trained_classes()
    if theirs is None or set(ours) == set(theirs):
        return None
    if odd := sorted(set(ours) - set(theirs)):
        raise DataError(
            f"--data {named}: the test images have classes that train/ beside them lacks: {', '.join(odd[:5])}; "
            f"the weights do not name classes, so their order is unknown"
        )
    return theirs


def check_outside(folder: Path, dataset: Dataset, root: Path | None) -> None:
    """Checks that the folder of a run does not lie among the class folders.

    Raises:
        DataError: The folder would be read as a class, and the run could not be resumed.
    """
    if dataset not in ("imagefolder", "imagenet") or root is None or not root.is_dir():
        return
    folder = folder.resolve()
    for place in find_layout(root).places.values():
        above = place.resolve()
        if folder.is_relative_to(above) and not any(map(is_hidden, folder.relative_to(above).parts)):
            raise DataError(f"--out {folder}: would be read as a class of {place}; write elsewhere by --out")


def shape_of(
    dataset: Dataset, root: Path | None, *, test_only: bool = False, config: DataConfig | None = None
) -> tuple[int | None, int]:
    """Returns the numbers of channels and of classes of a data set that `find_data` found.

    The number of channels is None if images can be read in grey or in colour.

    Args:
        test_only: See `load_data`.
        config: Settings of the data set that name its columns.

    Raises:
        DataError: A folder of images has no class folders, or lacks the images that are asked for.
    """
    if dataset in _SHAPES:
        return _SHAPES[dataset]
    if not is_streamed(dataset):
        arrays = open_arrays(dataset, root)
        return arrays.images["train"].shape[1], len(arrays.class_names)
    if dataset not in ("imagefolder", "imagenet"):
        return None, len(find_records(config or DataConfig(dataset=dataset), root, test_only=test_only).class_names)
    assert root is not None, "a folder of images has a place"
    layout = find_layout(root)
    if test_only:
        layout = layout.for_test()
    else:
        layout.check_trainable()
    return _channels_in(next(iter(layout.places.values()))), len(layout.class_names)


def _channels_in(place: Path) -> int | None:
    """Number of channels of the first image below a folder; see `channels_of`."""
    for folder, _, files in os.walk(place / next(iter(folders_in(place)))):
        if images := [name for name in sorted(files) if not is_hidden(name) and (is_image(name) or is_array(name))]:
            return channels_of(Path(folder) / images[0])
    return None
