"""Converts the values of a column to labels: class indices, or 0 and 1 for each of several labels."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from cvt_nas.data.tree import few, in_byte_order
from cvt_nas.errors import DataError

# usual names of a column or key that holds labels
USUAL = ("label", "labels", "class", "classes", "class_name", "cls", "category", "target", "tags")
AUTO_SEPARATOR, NO_SEPARATOR = "|", "none"
_FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_INDEX = re.compile(r"0|-?[1-9]\d{0,17}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The labels of a data set.

    Args:
        names: Class names; names of labels if an image can have several.
        values: See `Images.labels`.
    """

    names: tuple[str, ...]
    values: np.ndarray
    notes: tuple[str, ...] = ()


def labels_of(values: Sequence[object], *, separator: str | None, place: str) -> Labels:
    """Reads one label from each value, or several from a list or from text with separators.

    Args:
        separator: Text between the labels of a value. None means `|` if any value contains it. `none` means that each
            value is one label.
        place: What messages call the column.

    Raises:
        DataError: Values are empty, or no labels.
    """
    if any(isinstance(value, list | tuple | np.ndarray) for value in values):
        return several([[_text(label, place) for label in _listed(value, place)] for value in values])
    texts = [_text(value, place) for value in values]
    if empty := [row for row, text in enumerate(texts, start=1) if not text]:
        raise DataError(
            f"{place}: {len(empty):,} of {len(texts):,} rows have no label, row {empty[0]:,} the first; fill them in, "
            f"or remove them"
        )
    if separator is None and any(AUTO_SEPARATOR in text for text in texts):
        note = f"{place}: holds several labels an image, with {AUTO_SEPARATOR} between them (data.label_separator)"
        return several([_parts(text, AUTO_SEPARATOR) for text in texts], notes=(note,))
    if separator not in (None, NO_SEPARATOR):
        return several([_parts(text, separator) for text in texts])
    names = in_order(texts)
    places = {name: index for index, name in enumerate(names)}
    return Labels(names=names, values=np.array([places[text] for text in texts], dtype=np.int64))


def several(rows: Sequence[Sequence[str]], *, names: tuple[str, ...] = (), notes: tuple[str, ...] = ()) -> Labels:
    """Makes the labels of images that have any number of labels each.

    Args:
        names: Names of all labels. By default, those that occur, in order.
    """
    names = names or in_order(label for row in rows for label in row)
    places = {name: index for index, name in enumerate(names)}
    values = np.zeros((len(rows), len(names)), dtype=np.uint8)
    for row, labels in enumerate(rows):
        values[row, [places[label] for label in labels]] = 1
    return Labels(names=names, values=values, notes=notes)


def check_alike(names: Mapping[str, Sequence[str]], place: str) -> None:
    """Checks that the same index means the same class in all splits.

    Args:
        names: The class names of each split.
        place: What messages call the data set.

    Raises:
        DataError: Two splits have different classes, or the same ones in another order.
    """
    for split, theirs in names.items():
        first, own = next(iter(names.items()))
        if list(theirs) == list(own):
            continue
        if odd := [name for name in (*own, *theirs) if (name in own) != (name in theirs)]:
            what = f"have different classes: only one of them has {few(odd)}"
        else:
            pairs = [pair for pair in zip(own, theirs, strict=False) if pair[0] != pair[1]]
            ours, others = (few([pair[side] for pair in pairs]) for side in (0, 1))
            what = f"have their classes in different orders: {ours} in {first}, {others} in {split}"
        raise DataError(f"{place}: splits {first} and {split} {what}; give all splits the same ones in one order")


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Sorts distinct labels: by value if all are whole numbers without leading zeros, and otherwise by their bytes."""
    names = set(labels)
    if all(_INDEX.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(in_byte_order(names))


def are_flags(values: Iterable[object]) -> bool:
    return all(str(value).strip().lower() in _FLAGS for value in set(map(str, values)))


def flags_of(values: Iterable[object], place: str) -> UInt8[np.ndarray, " rows"]:
    """Converts values that mean 0 or 1.

    Raises:
        DataError: There are other values.
    """
    texts = [str(value).strip().lower() for value in values]
    if odd := sorted(set(texts) - set(_FLAGS)):
        shown = few([text if text not in ("", "nan", "none") else "nothing" for text in odd])
        raise DataError(f"{place}: must hold only 0 and 1, as one of several labels; it holds {shown}")
    return np.array([_FLAGS[text] for text in texts], dtype=np.uint8)


def _listed(value: object, place: str) -> Sequence[object]:
    if isinstance(value, list | tuple | np.ndarray):
        return list(value)
    raise DataError(f"{place}: holds lists of labels, but also {value!r}")


def _parts(text: str, separator: str) -> list[str]:
    parts = text.split() if separator.isspace() else [part.strip() for part in text.split(separator)]
    return [part for part in parts if part]


def _text(value: object, place: str) -> str:
    """A label as text; empty if there is no label."""
    if value is None or value is not value or str(value).strip().lower() in ("", "nan", "<na>"):
        return ""
    if isinstance(value, float | np.floating):
        if float(value).is_integer():
            return str(int(value))
        raise DataError(f"{place}: holds {value:g}, which is no class; classes are text or whole numbers")
    return str(value).strip()
