"""Data sets of torchvision, by class name."""

import contextlib
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cvt_nas.config import DataConfig
from cvt_nas.data.labels import Labels, check_alike
from cvt_nas.data.records import Images, Opener, Records, Role, split_by_role
from cvt_nas.data.sources import Decoded
from cvt_nas.errors import DataError, first_line

BY_NAME = "torchvision:"
DEFAULT_FOLDER = Path("data")
_SPLITS: Mapping[Role, tuple[str, ...]] = {
    "train": ("train", "trainval", "train-standard"),
    "validation": ("val", "valid"),
    "test": ("test",),
}
_NUM_COMPARED = 5  # labels


class ImageSet(Protocol):
    """A map-style data set like torch's. An item is an image with its class, or with 0 or 1 for each label."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> tuple[Any, Any]: ...


class _NoSplitError(Exception):
    """A data set has no split of this name."""


def opener_of(config: DataConfig, root: Path | None) -> Opener:
    return _Rows(sets=_opened(config, root or DEFAULT_FOLDER)[0])


def find(config: DataConfig, root: Path | None, *, on_note: Callable[[str], None] | None = None) -> Records:
    """Finds the images of all splits of a torchvision class.

    Raises:
        DataError: There is no such class, its files are missing, or its images have no classes.
    """
    root = root or DEFAULT_FOLDER
    sets, is_marked = _opened(config, root)
    place = f"{config.dataset} in {root}"
    return records_of_sets(sets, root, _Rows(sets=sets), place=place, is_marked=is_marked, on_note=on_note)


def records_of_sets(
    sets: Mapping[str, ImageSet],
    root: Path,
    opener: Opener,
    *,
    place: str,
    is_marked: bool,
    on_note: Callable[[str], None] | None,
) -> Records:
    """Finds the images of map-style data sets.

    Args:
        sets: The data set of each split.
        place: What messages call the data set.

    Raises:
        DataError: Images cannot be read, or have no classes, or splits name their classes differently.
    """
    notes = list[str]()
    values = {name: _values_of(each, place, on_note) for name, each in sets.items()}
    for name in [name for name, own in values.items() if own.ndim == 1 and (own == -1).all()]:
        notes.append(f"{place}: split {name} has no labels and is ignored")
        del values[name]
    told = {name: _names_of(sets[name], _number_of(own)) for name, own in values.items()}
    check_alike({name: own for name, own in told.items() if own is not None}, place)
    labels = _named(np.concatenate(list(values.values())), sets[next(iter(values))], place)
    roles = np.array([role for name, own in values.items() for role in [_role_of(name)] for _ in own], dtype=object)
    names = np.array([f"{name}/{row}" for name, own in values.items() for row in range(len(own))], dtype=object)
    return Records(
        root=root,
        class_names=labels.names,
        files=split_by_role(root, labels.names, names, labels.values, roles),
        opener=opener,
        notes=tuple(notes),
        is_marked=is_marked,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Opener of images that torchvision returns. An image's name is its split and row."""

    sets: Mapping[str, ImageSet]

    def source(self, images: Images, row: int) -> Decoded:
        name = f"{images.root}/{images.names[row]}"
        split, _, number = images.names[row].rpartition("/")
        try:
            return Decoded(name=name, image=self.sets[split][int(number)][0])
        except Exception as error:  # a data set may raise anything
            raise DataError(f"{name}: cannot be read: {first_line(error)}") from error

    def sizes(self, images: Images) -> Sequence[int]:
        return [0] * len(images.names)  # torchvision checks its own files


def _role_of(name: str) -> Role:
    return next(role for role, words in _SPLITS.items() if name in words)


def _opened(config: DataConfig, root: Path) -> tuple[dict[str, ImageSet], bool]:
    """Returns the data set of each split, and whether the class has splits."""
    kind = _class_of(config.dataset)
    parameters = inspect.signature(kind).parameters
    options = {"download": True} if config.download and "download" in parameters else {}
    if "train" in parameters:
        choices = {"train": {"train": True}, "test": {"train": False}}
        return {name: _made(kind, config, root, **options, **own) for name, own in choices.items()}, True
    if "split" not in parameters:
        return {"train": _made(kind, config, root, **options)}, False
    found: dict[str, ImageSet] = {}
    for words in _SPLITS.values():
        for word in words:
            with contextlib.suppress(_NoSplitError):
                found[word] = _made(kind, config, root, split=word, **options)
                break
    if not found:
        raise DataError(f"{config.dataset}: has no split named train, val or test")
    return found, True


def _made(kind: Callable[..., ImageSet], config: DataConfig, root: Path, **options: bool | str) -> ImageSet:
    """Makes one data set.

    Raises:
        _NoSplitError: The class has no such split.
        DataError: The data set cannot be read.
    """
    try:
        return kind(str(root), **options)
    except (ValueError, AssertionError) as error:
        if "split" in options:
            raise _NoSplitError from error
        raise DataError(f"{config.dataset}: {first_line(error)}") from error
    except TypeError as error:
        raise DataError(f"{config.dataset}: is no data set of images with classes: {first_line(error)}") from error
    except Exception as error:  # archives, checksums and the network raise various errors
        hint = "" if config.download else "; data.download: true in the space file downloads it"
        said = first_line(error).partition(" You can use")[0].rstrip(".")
        raise DataError(f"{config.dataset}: {said}: sought in {root} (--data DIR){hint}") from error


def _class_of(dataset: str) -> Callable[..., ImageSet]:
    from torchvision import datasets

    name = dataset.removeprefix(BY_NAME)
    known = {each.lower(): each for each in datasets.__all__}
    if (exact := known.get(name.lower())) is None:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {known[near[0]]}?" if near else ""
        raise DataError(f"{dataset}: torchvision has no data set of this name{hint}")
    return getattr(datasets, exact)


def _values_of(images: ImageSet, place: str, on_note: Callable[[str], None] | None) -> np.ndarray:
    """Returns class indices `(images,)`, or 0 and 1 for each label, `(images, labels)`.

    Most data sets hold them in an attribute with one of a few names. The attribute is trusted if it agrees with a few
    items. Otherwise all images are read.
    """
    pairs = (getattr(images, name, None) for name in ("samples", "_samples"))
    held = [getattr(images, name, None) for name in ("targets", "labels", "_labels", "y", "attr")]
    held += [[pair[-1] for pair in own] for own in pairs if own and len(own[0]) == 2]
    some = np.linspace(0, len(images) - 1, min(_NUM_COMPARED, len(images))).astype(int).tolist()
    try:
        given = {row: np.asarray(images[row][1]) for row in some}
        for each in held:
            if each is None or len(each) != len(images):
                continue
            values = np.asarray(each)
            if values.dtype.kind in "iu" and all(np.array_equal(values[row], own) for row, own in given.items()):
                return values.astype(np.uint8 if values.ndim > 1 else np.int64)
        if on_note is not None:
            on_note(f"{place}: reading each image for its label")
        values = np.array([images[row][1] for row in range(len(images))])
    except Exception as error:  # a data set may raise anything
        raise DataError(f"{place}: cannot be read: {first_line(error)}") from error
    if values.dtype.kind not in "iu" or values.ndim > 2:
        raise DataError(f"{place}: its images have no classes; instead of one, an image has {repr(values[0])[:60]}")
    return values.astype(np.uint8 if values.ndim > 1 else np.int64)


def _named(values: np.ndarray, images: ImageSet, place: str) -> Labels:
    if values.min() < 0 or (values.ndim > 1 and values.max() > 1):
        raise DataError(f"{place}: some images have no label")
    number = _number_of(values)
    names = _names_of(images, number)
    if names is None:
        return Labels(names=tuple(map(str, range(number))), values=values)
    return Labels(names=names[:number] if values.ndim > 1 else names, values=values)


def _number_of(values: np.ndarray) -> int:
    """Least number of classes or labels that these values can have."""
    return values.shape[1] if values.ndim > 1 else int(values.max()) + 1


def _names_of(images: ImageSet, number: int) -> tuple[str, ...] | None:
    """Names of the classes or labels, if the data set has at least `number` of them."""
    for name in ("classes", "categories", "attr_names"):
        names = getattr(images, name, None) or ()
        if len(names) >= number and all(isinstance(each, str) for each in names):
            return tuple(names)
    return None
