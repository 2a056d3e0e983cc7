"""Images in three splits: train, search (held out of train) and test (read once, at the end)."""

import dataclasses
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NotRequired, TypedDict, Unpack

from cvt_nas.arch import ImageSize
from cvt_nas.config import DataConfig, is_streamed
from cvt_nas.data.ahead import made_beside_steps
from cvt_nas.data.answers import open_answers
from cvt_nas.data.arrays import ArrayData, open_arrays
from cvt_nas.data.checking import ImageCheck, check_images
from cvt_nas.data.find import check_outside, find_data, root_of, shape_of, trained_classes
from cvt_nas.data.images import SPLITS, Batch, ImageData, Preprocessing, Split, seed_all
from cvt_nas.data.kinds import find_records
from cvt_nas.data.listing import save_records
from cvt_nas.data.loading import free_shared_memory, num_on_their_way
from cvt_nas.data.named_sets import DEBIAN_FASHION_MNIST
from cvt_nas.data.streams import StreamedData
from cvt_nas.errors import DataError
from cvt_nas.results import DataIdentity
from cvt_nas.run import write_atomically

LoadedData = ArrayData | StreamedData
_OF_ARRAYS = ("bilinear", "bicubic")  # interpolations that arrays can be resized with


class LoadSettings(TypedDict):
    """Settings of `load_data` that `check_data` passes on."""

    image_size: ImageSize
    num_channels: int
    num_classes: int
    test_only: NotRequired[bool]


def load_data(
    config: DataConfig,
    *,
    root: Path | None,
    image_size: ImageSize,
    num_channels: int,
    num_classes: int,
    test_only: bool = False,
    skipped: Collection[str] = (),
    listing: Path | None = None,
    on_note: Callable[[str], None] | None = None,
) -> LoadedData:
    """Opens the data set of a space file.

    Args:
        config: Section `data` of the file.
        root: The data set's folder. `digits` needs none, nor does `fashion-mnist` if Debian's package is installed.
        image_size, num_channels, num_classes: What the networks of the space expect.
        test_only: Whether only the test split is needed. A folder of images may then lack the other splits.
        skipped: Images of a folder to leave out, as paths below `root`.
        listing: File that `save_records` wrote for the same images. It saves a scan of folders with millions of files.
        on_note: Called with progress notes if the scan takes long.

    Raises:
        DataError: The data set is missing, incomplete, or does not fit. One line says what is wrong and where.
    """
    if is_streamed(config.dataset):
        records = find_records(config, root, test_only=test_only, listing=listing, on_note=on_note)
        data: LoadedData = StreamedData(
            config, records, image_size, num_channels, test_only=test_only, skipped=skipped
        )  # fmt: skip
        channels = num_channels
    else:
        arrays = open_arrays(config.dataset, root)
        channels = arrays.images["train"].shape[1]
        data = ArrayData(config, arrays, image_size, test_only=test_only)
    if channels != num_channels:
        raise DataError(f"{config.dataset} has {channels} channels, space.num_channels is {num_channels}")
    if len(data.class_names) != num_classes:
        raise DataError(f"{config.dataset} has {len(data.class_names)} classes, space.num_classes is {num_classes}")
    return data


def check_data(
    config: DataConfig,
    *,
    root: Path | None,
    known: DataIdentity | None = None,
    place: str = "",
    on_note: Callable[[str], None] | None = None,
    **settings: Unpack[LoadSettings],
) -> tuple[LoadedData, DataIdentity]:
    """Opens a data set, checks every image of a folder, and returns the data with their identity.

    With `data.on_error: raise`, the images of the search and test splits are decoded. For training images, only the
    header and the end of each file are read. With `skip`, all images are decoded, since all unreadable ones must be
    known.

    Args:
        known: Identity that the run at `place` has recorded. The same images are skipped again.
        on_note: Called with what is left out, how the splits are made, and the progress of the check.
        settings: See `load_data`.

    Raises:
        DataError: Images cannot be read and must not be skipped; or see `load_data`.
        RunFolderError: The data set is not the `known` one.
    """
    skipped = () if known is None else known.skipped
    data = load_data(config, root=root, skipped=skipped, on_note=on_note, **settings)
    identity = data.identity()
    if known is not None:
        known.check_same(identity, place)
    if not isinstance(data, StreamedData):
        if on_note is not None:
            for note in identity.notes:
                on_note(note)
        return data, identity
    skips = config.on_error == "skip" and known is None
    found = check_streamed(data, decode_all=skips, on_note=on_note)
    damaged = {path: why for path, why in found.damaged.items() if path not in skipped}
    notes = [*data.notes, *found.notes]
    if damaged and skips:
        data = load_data(config, root=root, skipped=damaged, **settings)
        identity = data.identity()
        first, why = next(iter(damaged.items()))
        more = "" if len(damaged) == 1 else f"; and {len(damaged) - 1:,} more, see cvt-nas check"
        skips_them = f"cannot be read and {'is' if len(damaged) == 1 else 'are'} skipped"
        notes.append(f"{len(damaged):,} of {found.num_images:,} images {skips_them}: {first}: {why}{more}")
    else:
        dataclasses.replace(found, damaged=damaged).check_readable(is_resumed=known is not None)
    if on_note is not None:
        for note in notes:
            on_note(note)
    return data, identity


def prepare_as(data: ImageData, preprocessing: Preprocessing, dataset: str) -> None:
    """Changes how `data` prepares images. `dataset` is the kind of data set.

    Raises:
        DataError: Arrays cannot be resized with this interpolation.
    """
    if not is_streamed(dataset) and preprocessing.interpolation not in _OF_ARRAYS:
        raise DataError(
            f"interpolation: got {preprocessing.interpolation!r}, must be {' or '.join(_OF_ARRAYS)} for {dataset}, "
            f"whose images are arrays"
        )
    data.preprocessing = preprocessing


def check_streamed(
    data: StreamedData, *, decode_all: bool = False, on_note: Callable[[str], None] | None = None
) -> ImageCheck:
    """See `check_images`."""
    return check_images(data.records, data.mode, decode_all=decode_all, measured=data.measured(), on_note=on_note)


def save_preprocessing(data: ImageData, folder: Path) -> None:
    """Writes `preprocessing.json`: how images are prepared for the model, and the class names."""
    tree = {**dataclasses.asdict(data.preprocessing), "classes": list(data.class_names)}
    if data.is_multi_label:
        tree["multi_label"] = True
    write_atomically(folder / "preprocessing.json", json.dumps(tree, indent=2) + "\n")
