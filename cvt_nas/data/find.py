"""Which data set a name or a folder is, and what its images are like."""

from pathlib import Path

from cvt_nas.config import Dataset
from cvt_nas.data.layout import find_layout
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
    """The data set that `named` is, as section `data` calls it, and its folder where it needs one.

    Args:
        named: A folder, whose content tells; or the name of a set, which is then looked for in `data/`, where
            torchvision's examples put it, unless it is installed with something else.

    Raises:
        DataError: It is neither.
    """
    folder = Path(named)
    if folder.is_dir():
        raw = folder / "FashionMNIST" / "raw"
        for known, sign in _SIGNS.items():
            if folder.name == sign or any(folder.glob(sign)) or any(raw.glob(sign)):
                return known, folder
        return "imagefolder", folder
    for known in _SHAPES:
        if str(named) == known:
            return known, None if known in ("digits", "fashion-mnist") else Path("data")
    raise DataError(f"--data {named}: neither a folder nor one of {', '.join(_SHAPES)}")


def shape_of(dataset: Dataset, root: Path | None, *, test_only: bool = False) -> tuple[int | None, int]:
    """Channels, where they are not as one likes, and classes of a data set that `find_data` found.

    Args:
        test_only: As in `load_data`.

    Raises:
        DataError: A folder of images has no folder for each class, or not the images that are asked for.
    """
    if dataset in _SHAPES:
        return _SHAPES[dataset]
    assert root is not None, "a folder of images has a place"
    layout = find_layout(root)
    if test_only:
        layout = layout.for_test()
    else:
        layout.check_trainable()
    return None, len(layout.class_names)
