"""Data sets of Hugging Face: saved to disk, Parquet files, images with metadata in a folder, or on the hub."""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from cvt_nas.config import DataConfig
from cvt_nas.data.labels import USUAL, Labels, check_alike, labels_of, several
from cvt_nas.data.library import library
from cvt_nas.data.records import Images, Opener, Records, role_of, split_by_role
from cvt_nas.data.sources import Encoded
from cvt_nas.data.tree import few, folders_in, is_hidden
from cvt_nas.errors import DataError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

ON_HUB = "hf:"
_SAVED = ("dataset_dict.json", "state.json")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder holds a Hugging Face data set and no class folders."""
    if any((folder / name).is_file() for name in _SAVED):
        return True
    places = [folder, *(folder / name for name in folders_in(folder) if role_of(name) is not None)]
    if any(len([name for name in folders_in(place) if role_of(name) is None]) > 1 for place in places):
        return False
    if any((place / name).is_file() for place in places for name in _METADATA):
        return True
    return any(
        path.suffix == ".parquet" and not is_hidden(path.name)
        for place in (*places, folder / "data")
        if place.is_dir()
        for path in place.iterdir()
    )


def opener_of(config: DataConfig, root: Path | None) -> Opener:
    sets = _opened(config.dataset, root)[0]
    features = next(iter(sets.values())).features
    return _rows(sets, _image_column(features, config.image_column, root or Path(config.dataset)))


def find(config: DataConfig, root: Path | None, *, on_note: Callable[[str], None] | None = None) -> Records:
    """Finds the images and labels of all splits with known names.

    Raises:
        DataError: The set cannot be read, or its columns are ambiguous.
    """
    del on_note
    place = Path(config.dataset) if root is None else root
    sets, is_marked, notes = _opened(config.dataset, root)
    features = next(iter(sets.values())).features
    image = _image_column(features, config.image_column, place)
    label = _label_column(features, config.label_column, place)
    if config.label_column is None:
        notes.append(f"{place}: labels are in column {label!r}")
    labels: dict[str, list[Any]] = {name: each.select_columns([label])[:][label] for name, each in sets.items()}
    for name in [name for name, values in labels.items() if all(value in (None, -1) for value in values)]:
        notes.append(f"{place}: split {name} has no labels and is ignored")
        del labels[name]
    if not labels:
        raise DataError(f"{place}: column {label!r} holds no labels")
    told = {name: sets[name].features[label] for name in labels}
    check_alike({name: own for name, each in told.items() if (own := _class_names(each)) is not None}, str(place))
    found = _labels([value for own in labels.values() for value in own], next(iter(told.values())), config, place)
    roles = np.array([role_of(name) for name, own in labels.items() for _ in own], dtype=object)
    names = np.array([f"{name}/{row}" for name, own in labels.items() for row in range(len(own))], dtype=object)
    return Records(
        root=place,
        class_names=found.names,
        files=split_by_role(place, found.names, names, found.values, roles),
        opener=_rows(sets, image),
        notes=(*notes, *found.notes),
        is_marked=is_marked,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Opener of images in rows. An image's name is its split and row.

    Args:
        columns: The column of encoded images of each split.
        column: Name of that column.
    """

    columns: "Mapping[str, Dataset]"
    column: str

    def source(self, images: Images, row: int) -> str | Encoded:
        split, _, number = images.names[row].rpartition("/")
        image = self.columns[split][int(number)][self.column]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise DataError(f"{images.root}/{images.names[row]}: has no image")
        if image["bytes"] is None:
            return image["path"]
        return Encoded(name=f"{images.root}/{images.names[row]}", content=image["bytes"])

    def sizes(self, images: Images) -> list[int]:
        sizes: dict[str, np.ndarray] = {name: self._sizes_in(each) for name, each in self.columns.items()}
        places = (name.rpartition("/") for name in images.names)
        return [int(sizes[split][int(number)]) for split, _, number in places]

    def _sizes_in(self, column: "Dataset") -> np.ndarray:
        pc = importlib.import_module("pyarrow.compute")  # type checkers do not know its functions
        rows = column.with_format("arrow")[:][self.column]
        lengths = pc.binary_length(pc.struct_field(rows, "bytes")).to_pylist()
        paths = pc.struct_field(rows, "path").to_pylist() if None in lengths else lengths
        return np.array([
            (os.stat(path).st_size if path is not None and os.path.exists(path) else -1) if length is None else length
            for length, path in zip(lengths, paths, strict=True)
        ])  # fmt: skip


def _rows(sets: "Mapping[str, Dataset]", column: str) -> _Rows:
    import datasets

    encoded = datasets.Image(decode=False)
    columns = {name: each.select_columns([column]).cast_column(column, encoded) for name, each in sets.items()}
    return _Rows(columns=columns, column=column)


def _opened(dataset: str, root: Path | None) -> "tuple[dict[str, Dataset], bool, list[str]]":
    """Returns the splits with known names, whether the set has named splits, and notes on ignored splits."""
    place = dataset if root is None else str(root)
    datasets = library("datasets", extra="datasets", of=place)
    with _silent(datasets):
        try:
            if root is None:
                name, _, own = dataset.removeprefix(ON_HUB).partition(":")
                found = datasets.load_dataset(name, own or None)
            elif any((root / name).is_file() for name in _SAVED):
                found = datasets.load_from_disk(str(root))
            else:
                found = datasets.load_dataset(str(root))
        except Exception as error:  # the library, file formats and the network raise various errors
            raise DataError(f"{place}: cannot be read by Hugging Face's datasets: {first_line(error)}") from error
    if not isinstance(found, dict):
        return {"train": found}, False, []
    known = {name: each for name, each in found.items() if role_of(name) is not None}
    roles = [role_of(name) for name in known]
    if not known or len(set(roles)) < len(roles):
        raise DataError(
            f"{place}: has the splits {few(list(found))}; must have train, and may have validation and test"
        )
    others = [name for name in found if name not in known]
    return known, True, [f"{place}: ignored splits: {few(others)}"] if others else []


@contextmanager
def _silent(datasets: ModuleType) -> Iterator[None]:
    """Turns progress bars off."""
    shows = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shows:
            datasets.enable_progress_bars()


def _image_column(features: Mapping[str, object], wanted: str | None, place: Path) -> str:
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if wanted is not None and wanted not in images:
        raise DataError(f"{place}: data.image_column: {wanted} is no column of images; known: {few(images) or 'none'}")
    if wanted is None and len(images) != 1:
        what = f"{few(images)} could each be meant; set it in the space file" if images else "no column holds images"
        raise DataError(f"{place}: data.image_column: {what}")
    return wanted or images[0]


def _label_column(features: Mapping[str, object], wanted: str | Sequence[str] | None, place: Path) -> str:
    """The column of classes or lists of classes, or else the column with a usual name."""
    if wanted is not None:
        if not isinstance(wanted, str) or wanted not in features:
            raise DataError(f"{place}: data.label_column: there is no column {wanted}, but {few(list(features))}")
        return wanted
    of_classes = [name for name, feature in features.items() if _class_names(feature) is not None]
    usual = [name for name in features if name.lower() in USUAL]
    for like in (of_classes, [name for name in of_classes if name in usual], usual):
        if len(like) == 1:
            return like[0]
    what = f"{few(of_classes or usual)} could each be meant" if of_classes or usual else "no column holds classes"
    raise DataError(f"{place}: data.label_column: {what}; set it in the space file, to one of {few(list(features))}")


def _class_names(feature: object) -> tuple[str, ...] | None:
    """Class names of a column of classes or lists of classes; None for other columns."""
    import datasets

    inner = getattr(feature, "feature", feature)
    return tuple(inner.names) if isinstance(inner, datasets.ClassLabel) else None


def _labels(values: list[Any], feature: object, config: DataConfig, place: Path) -> Labels:
    names = _class_names(feature)
    if names is None:
        return labels_of(values, separator=config.label_separator, place=f"{place}: column of labels")
    if hasattr(feature, "feature"):
        return several([[names[label] for label in own or ()] for own in values], names=names)
    if empty := sum(value is None or value < 0 for value in values):
        raise DataError(f"{place}: {empty:,} of {len(values):,} rows have no label; remove them")
    return Labels(names=names, values=np.array(values, dtype=np.int64))
