"""Data sets in arrays: `.npz` files like MedMNIST's, and folders of `.npy` files."""

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cvt_nas.data.channels import in_8_bits
from cvt_nas.data.labels import Labels, labels_of
from cvt_nas.data.records import SPELLINGS, Role
from cvt_nas.data.tree import few
from cvt_nas.errors import DataError

DIM = 65  # of 255: below it, images count as dark; white of 14 bits in a file of 16 is read as 64


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """A small data set.

    Args:
        images: Images of each split, uint8, `(images, channels, height, width)`.
        labels: Labels of each split; see `ImageData.labels`.
        notes: How the data set was read, one line each.
    """

    images: Mapping[Role, np.ndarray]
    labels: Mapping[Role, np.ndarray]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def stacks_in(folder: Path) -> list[Path]:
    """Files of images that `read_npy` reads."""
    words = (word for words in SPELLINGS.values() for word in words)
    paths = (folder / f"{prefix}images.npy" for prefix in ("", *(f"{word}_" for word in words)))
    return [path for path in paths if path.is_file()]


def are_bytes(folder: Path) -> bool:
    """Whether all images that `read_npy` reads are bytes, so that they can be mapped into memory."""
    return all(mapped(path).dtype == np.uint8 for path in stacks_in(folder))


def mapped(path: Path) -> np.ndarray:
    """Maps the array of a `.npy` file into memory.

    Raises:
        DataError: The file is damaged, or holds Python objects.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {_reason(error)}") from error


def read_npz(path: Path) -> Arrays:
    """Reads a file like MedMNIST's: `train_images`, `train_labels`, and the same for `val` and `test`.

    Raises:
        DataError: The file is damaged, or arrays are missing or do not fit.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: is no npz file, or is incomplete")
    try:
        with np.load(path, allow_pickle=False) as file:
            return _read(path, file.files, lambda name: file[name])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read: {_reason(error)}") from error


def read_npy(folder: Path) -> Arrays:
    """Reads a folder of `train_images.npy` and `train_labels.npy`, the same for `val` and `test`; or without prefixes.

    Raises:
        DataError: Files are damaged or missing, or do not fit.
    """
    return _read(
        folder, [path.stem for path in sorted(folder.glob("*.npy"))], lambda name: mapped(folder / f"{name}.npy")
    )


def _reason(error: Exception) -> str:
    return str(error).partition(". ")[0]


def _read(place: Path, names: Iterable[str], read: Callable[[str], np.ndarray]) -> Arrays:
    found: dict[Role, str] = {}
    names = set(names)
    for role, words in SPELLINGS.items():
        present = [prefix for word in words if f"{(prefix := f'{word}_')}images" in names]
        if role == "train" and "images" in names:
            present.append("")
        if len(present) > 1:
            raise DataError(
                f"{place}: {few([f'{prefix}images' for prefix in present])} could each be the {role} images"
            )
        if present:
            found[role] = present[0]
    if "train" not in found:
        raise DataError(f"{place}: has no array train_images, but {few(sorted(names)) or 'none'}")
    if lost := [f"{prefix}labels" for prefix in found.values() if f"{prefix}labels" not in names]:
        raise DataError(f"{place}: has no array {few(lost)}")
    told: dict[Role, np.ndarray] = {role: read(f"{prefix}labels") for role, prefix in found.items()}
    images: dict[Role, np.ndarray] = {}
    notes: list[str] = []
    unlabelled: list[Role] = [role for role, own in told.items() if role != "train" and _is_unlabelled(own)]
    for role in unlabelled:
        notes.append(f"{place}: split {found[role].removesuffix('_')} has no labels and is ignored")
        del found[role], told[role]
    for role, prefix in found.items():
        raw, called = read(f"{prefix}images"), f"{place}: {prefix}images"
        images[role] = _images(raw, called)
        if raw.dtype != np.uint8 and (brightest := int(images[role].max())) < DIM:
            notes.append(f"{called}: no value is above {brightest} of 255 when read as 8 bits; scale white up")
    for role, prefix in found.items():
        if len(images[role]) != len(told[role]):
            raise DataError(
                f"{place}: {prefix}images has {len(images[role]):,} images, {prefix}labels {len(told[role]):,}"
            )
        if images[role].shape[1] != images["train"].shape[1]:
            raise DataError(
                f"{place}: {prefix}images has {images[role].shape[1]} channels, {found['train']}images "
                f"{images['train'].shape[1]}"
            )
    labels = _labels(list(told.values()), str(place))
    ends = np.cumsum([len(each) for each in told.values()])
    return Arrays(
        images=images,
        labels=dict(zip(told, np.split(labels.values, ends[:-1]), strict=True)),
        class_names=labels.names,
        notes=(*labels.notes, *notes),
    )


def _is_unlabelled(labels: np.ndarray) -> bool:
    return labels.dtype.kind in "if" and labels.size > 0 and bool((labels == -1).all())


def _labels(arrays: list[np.ndarray], place: str) -> Labels:
    """Reads classes `(images,)` or `(images, 1)`, or 0 and 1 for each label `(images, labels)`."""
    if len({array.shape[1:] for array in arrays}) > 1 or arrays[0].ndim > 2:
        raise DataError(f"{place}: labels have the shapes {few([str(array.shape) for array in arrays])}")
    whole = np.concatenate(arrays)
    if whole.ndim == 1 or whole.shape[1] == 1:
        if whole.dtype.kind in "if" and (below := int((whole < 0).sum())):
            raise DataError(f"{place}: {below:,} of {len(whole):,} labels are negative; classes count from 0")
        return labels_of(whole.ravel().tolist(), separator="none", place=f"{place}: labels")
    if not np.isin(whole, (0, 1)).all():
        raise DataError(f"{place}: labels of the shape {whole.shape} must be 0 or 1 for each label of an image")
    names = tuple(map(str, range(whole.shape[1])))
    if (whole.sum(axis=1) == 1).all():
        note = f"{place}: each image has exactly one of {whole.shape[1]:,} labels, so labels are read as classes"
        return Labels(names=names, values=whole.argmax(axis=1), notes=(note,))
    return Labels(names=names, values=whole.astype(np.uint8))


def _images(array: np.ndarray, place: str) -> UInt8[np.ndarray, "images channels height width"]:
    if array.ndim not in (3, 4) or not array.size:
        raise DataError(
            f"{place}: has the shape {array.shape}, must be (images, height, width), or with channels at the end"
        )
    if array.ndim == 3:
        array = array[..., None]
    elif array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        raise DataError(f"{place}: has the shape {array.shape}; channels must come last: np.moveaxis(images, 1, -1)")
    try:
        return np.moveaxis(array if array.dtype == np.uint8 else in_8_bits(array), -1, 1)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
