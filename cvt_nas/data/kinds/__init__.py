"""Kinds of streamed data sets. Each module makes `Records` of one kind."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from cvt_nas.config import DataConfig, Dataset, is_by_name
from cvt_nas.data.folders import find_folders
from cvt_nas.data.kinds import hugging_face, own_sets, shards, table, torchvision_sets
from cvt_nas.data.kinds.hugging_face import is_hugging_face
from cvt_nas.data.kinds.shards import is_shards
from cvt_nas.data.listing import load_records
from cvt_nas.data.records import Records, role_of
from cvt_nas.data.stacks import stacks_in
from cvt_nas.data.tree import folders_in
from cvt_nas.errors import DataError

__all__ = ["find_records", "kind_of_file", "kind_of_folder"]

_KINDS: dict[str, ModuleType] = {"table": table, "huggingface": hugging_face, "webdataset": shards}
_BY_NAME: dict[str, ModuleType] = {"hf": hugging_face, "torchvision": torchvision_sets}


def kind_of_file(path: Path) -> Dataset:
    """Kind of the data set in a single file.

    Raises:
        DataError: The file is no data set.
    """
    if table.is_table(path.name):
        return "table"
    if path.suffix.lower() == ".npz":
        return "npz"
    if is_shards(path):
        return "webdataset"
    suffixes = " ".join((*table.SUFFIXES, ".npz", shards.SUFFIX))
    raise DataError(f"--data {path}: is no data set; files must end in one of {suffixes}")


def kind_of_folder(folder: Path) -> Dataset:
    """Kind of the data set in a folder; `imagefolder` if nothing shows another kind."""
    if stacks_in(folder) and not any(role_of(name) for name in folders_in(folder)):
        return "npy"
    if is_hugging_face(folder):
        return "huggingface"
    return "webdataset" if is_shards(folder) else "imagefolder"


def find_records(
    config: DataConfig,
    root: Path | None,
    *,
    test_only: bool = False,
    listing: Path | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Records:
    """Finds the images of a streamed data set.

    Args:
        root: Folder or file of the data set.
        test_only, listing, on_note: See `load_data`.

    Raises:
        DataError: The data set is missing or incomplete.
    """
    if is_by_name(config.dataset):
        kind = _BY_NAME.get(config.dataset.partition(":")[0], own_sets)
    else:
        kind = _KINDS.get(config.dataset)
    if kind is None:
        if root is not None and root.is_file():
            raise DataError(
                f"--data {root}: is a file, but {config.dataset} is a folder: data.dataset must be {kind_of_file(root)}"
            )
        try:
            return find_folders(config.dataset, root, test_only=test_only, listing=listing, on_note=on_note)
        except DataError as error:
            other = "imagefolder" if root is None or not root.is_dir() else kind_of_folder(root)
            if other == "imagefolder":
                raise
            raise DataError(f"{error}; it seems to be of another kind: data.dataset: {other}") from error
    if root is None and not is_by_name(config.dataset):
        raise DataError(f"{config.dataset}: name it by --data")
    if root is not None and not root.exists() and "{" not in root.name and not is_by_name(config.dataset):
        raise DataError(f"--data {root}: no such file or folder")
    if listing is not None:
        records = load_records(listing, root or Path(config.dataset), kind.opener_of(config, root))
    else:
        records = kind.find(config, root, on_note=on_note)
    if test_only:
        return records.for_test()
    records.check_trainable()
    return records
