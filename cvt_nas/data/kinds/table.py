"""Tables of images: CSV, TSV or Parquet files with the path and the labels of each image."""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cvt_nas.config import DataConfig
from cvt_nas.data.labels import USUAL, Labels, are_flags, flags_of, labels_of
from cvt_nas.data.library import library
from cvt_nas.data.records import Files, Opener, Records, role_of, split_by_role
from cvt_nas.data.tree import few, is_image
from cvt_nas.errors import DataError
from cvt_nas.escaping import told

if TYPE_CHECKING:
    import pandas as pd

PARQUET = (".parquet", ".pq")
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", *PARQUET)
_SEPARATORS = (",", ";", "\t", "|")
_NAMED: Mapping[str, tuple[str, ...]] = {
    "image_column": (
        "image", "images", "image_path", "imagepath", "path", "filepath", "file_path", "file", "filename",
        "file_name", "image_name", "img", "img_path",
    ),
    "label_column": USUAL,
    "split_column": ("split", "set", "subset", "partition", "phase"),
}  # fmt: skip
_LOOKED_AT = 200  # rows that are looked at to tell what a column holds
_NONE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Columns:
    """Names of the columns of images, labels and splits. Several label columns hold 0 or 1 each."""

    image: str
    label: str | Sequence[str]
    split: str | None


def is_table(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def opener_of(config: DataConfig, root: Path) -> Opener:
    del config
    return Files(folder=root.parent)


def find(config: DataConfig, root: Path, *, on_note: Callable[[str], None] | None = None) -> Records:
    """Finds the images that a table names. Paths are absolute or relative to the table's folder.

    Raises:
        DataError: The table cannot be read, its columns are ambiguous, or rows contradict each other.
    """
    del on_note
    frame = read_table(root)
    columns = _columns_of(frame, config, root)
    paths = paths_in(frame[columns.image], root)
    labels = _labels_in(frame, columns.label, config, root)
    roles = _roles_in(frame, columns.split, root)
    kept, repeated = _without_repeats(paths, labels.values, roles, root)
    paths, roles = [paths[row] for row in kept], roles[kept]
    _check_some_exist(paths, columns.image, root)
    notes = [_chosen(columns, config, root), *labels.notes]
    if repeated:
        notes.append(f"{root}: repeated rows that are left out: {repeated:,}")
    return Records(
        root=root,
        class_names=labels.names,
        files=split_by_role(root, labels.names, np.array(paths, dtype=object), labels.values[kept], roles),
        opener=opener_of(config, root),
        notes=tuple(note for note in notes if note),
        is_marked=columns.split is not None,
    )


def read_table(path: Path) -> "pd.DataFrame":
    """Reads the rows of a table. Values of CSV and TSV files stay text.

    Raises:
        DataError: The table cannot be read, or has no rows.
    """
    import pandas as pd

    try:
        if path.name.lower().endswith(PARQUET):
            library("pyarrow", extra="parquet", of=str(path))
            frame = pd.read_parquet(path, engine="pyarrow")
        else:
            separator = _separator_of(path)
            frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8: {error.reason} at byte {error.start:,}; save it as UTF-8") from error
    except Exception as error:  # pandas's readers raise various errors
        why = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as a table: {why}") from error
    if not len(frame):
        raise DataError(f"{path}: has no rows")
    if not isinstance(frame.index, pd.RangeIndex) and not path.name.lower().endswith(PARQUET):
        raise DataError(f"{path}: rows have more values than the first line has column names")
    return frame.rename(columns=lambda name: str(name).strip())


def _separator_of(path: Path) -> str:
    """The separator in the first line, which names the columns."""
    import gzip

    with (
        gzip.open(path, "rt", encoding="utf-8-sig")
        if path.suffix == ".gz"
        else open(path, encoding="utf-8-sig") as file
    ):
        header = file.readline()
    return max(_SEPARATORS, key=header.count)


def _columns_of(frame: "pd.DataFrame", config: DataConfig, root: Path) -> _Columns:
    """Returns the columns that settings name, or else the only ones that fit.

    Raises:
        DataError: There is no such column, or several fit.
    """
    names = list(frame.columns)
    for setting in _NAMED:
        column = getattr(config, setting)
        wanted = column if isinstance(column, list) else [] if column in (None, _NONE) else [column]
        if lost := [name for name in wanted if name not in names]:
            raise DataError(f"{root}: data.{setting}: there is no column {few(lost)}, but {few(names)}")
    image, label, split = config.image_column, config.label_column, config.split_column
    if image is None:
        like = [name for name in names if _are_paths(frame[name].head(_LOOKED_AT))]
        image = _the_one(like, "image_column", names, root)
    left = [name for name in names if name not in (image, split)]
    named = [name for name in left if name.lower() in _NAMED["split_column"]]
    if split == _NONE:
        split, left = None, [name for name in left if name not in named]
    elif split is None:
        like = [name for name in named if all(role_of(str(value)) is not None for value in frame[name].unique())]
        odd = [name for name in named if name.lower() == "split" and name not in like]
        split = _the_one([*like, *odd], "split_column", names, root) if like or odd else None
        left = [name for name in left if name != split]
    if label is None:
        named = [name for name in left if name.lower() in _NAMED["label_column"]]
        if not named and len(left) > 1 and all(are_flags(frame[name]) for name in left):
            label = left
        else:
            label = _the_one(named or left, "label_column", names, root)
    return _Columns(image=image, label=label, split=split)


def _the_one(like: Sequence[str], setting: str, names: Sequence[str], root: Path) -> str:
    named = [name for name in like if name.lower() in _NAMED[setting]]
    some = named if len(like) > 1 and len(named) == 1 else like
    if len(some) == 1:
        return some[0]
    what = f"{few(list(some))} could each be meant" if some else f"none of {few(list(names))} seems to be meant"
    raise DataError(f"{root}: data.{setting}: {what}; set it in the space file")


def _are_paths(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) and is_image(value.strip()) for value in values)


def _chosen(columns: _Columns, config: DataConfig, root: Path) -> str:
    """A note on columns that no setting names; empty if there are none."""

    def shown(column: str | Sequence[str]) -> str:
        if isinstance(column, str):
            return f"column {column!r}"
        return f"the {len(column):,} columns of 0 and 1, {few(column)}"

    found = (
        ("images", config.image_column, columns.image),
        ("labels", config.label_column, columns.label),
        ("splits", config.split_column, columns.split),
    )
    parts = [
        f"{what} are in {shown(column)}" for what, setting, column in found if setting is None and column is not None
    ]
    return f"{root}: {', '.join(parts)}" if parts else ""


def paths_in(column: Iterable[object], root: Path) -> list[str]:
    """The paths in a column of the table `root`. Raises DataError if a row has none, or if they are URLs."""
    paths = ["" if value is None else str(value).strip() for value in column]
    if empty := [row for row, path in enumerate(paths, start=1) if path in ("", "nan")]:
        raise DataError(f"{root}: {len(empty):,} of {len(paths):,} rows have no path, row {empty[0]:,} the first")
    if any("://" in path for path in paths):
        raise DataError(f"{root}: paths are URLs such as {next(p for p in paths if '://' in p)}; download the images")
    if os.sep == "/" and any("\\" in path for path in paths) and not any("/" in path for path in paths):
        paths = [path.replace("\\", "/") for path in paths]  # the table was made on Windows
    return [os.path.normpath(path) for path in paths]


def _labels_in(frame: "pd.DataFrame", column: str | Sequence[str], config: DataConfig, root: Path) -> Labels:
    """Labels of all rows."""
    if isinstance(column, str):
        return labels_of(list(frame[column]), separator=config.label_separator, place=f"{root}: column {column!r}")
    names = tuple(column)
    return Labels(
        names=names, values=np.stack([flags_of(frame[name], f"{root}: column {name!r}") for name in names], 1)
    )


def _roles_in(frame: "pd.DataFrame", column: str | None, root: Path) -> np.ndarray:
    """Splits of all rows, `(rows,)`. They are all `train` if the table has no splits.

    Raises:
        DataError: A row's split has an unknown name.
    """
    if column is None:
        return np.full(len(frame), "train", dtype=object)
    named = {value: role_of(str(value)) for value in frame[column].unique()}
    if odd := sorted(str(value) for value, role in named.items() if role is None):
        raise DataError(
            f"{root}: column {column!r} names the splits {few([value or 'nothing' for value in odd])}; must be train, "
            f"val or test in each row. Set data.split_column to another column, or to none"
        )
    return np.array([named[value] for value in frame[column]], dtype=object)


def _without_repeats(paths: Sequence[str], labels: np.ndarray, roles: np.ndarray, root: Path) -> tuple[np.ndarray, int]:
    """Returns the rows that repeat no earlier row, and the number of repeated rows.

    Raises:
        DataError: An image is in two splits, or has different labels in two rows.
    """
    first: dict[str, int] = {}
    kept = []
    for row, path in enumerate(paths):
        other = first.setdefault(path, row)
        if other == row:
            kept.append(row)
        elif roles[row] != roles[other]:
            raise DataError(f"{root}: {told(path)} is in two splits: {roles[other]} and {roles[row]}")
        elif not np.array_equal(labels[row], labels[other]):
            raise DataError(
                f"{root}: {told(path)} has one label in row {other + 1:,} and another in row {row + 1:,}; several "
                f"labels of an image must be in one row, with | between them"
            )
    return np.array(kept), len(paths) - len(kept)


def _check_some_exist(paths: Sequence[str], column: str, root: Path) -> None:
    """Checks that some images exist, since paths may start elsewhere. `check_images` counts single missing files."""
    for path in paths[:_LOOKED_AT]:
        with contextlib.suppress(OSError):
            os.stat(os.path.join(root.parent, path))
            return
    raise DataError(
        f"{root}: column {column!r}: no file {told(os.path.join(root.parent, paths[0]))}; paths must be absolute, or "
        f"begin in the folder of the table"
    )
