"""Which class of a network is which of a data set: by their names, never by their places alone."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

# under which training scripts keep the names of the classes, in their order or by their index
_KEYS = (
    "class_names", "classes", "CLASSES", "label_names", "class_labels", "categories", "labels", "names", "class_to_idx",
    "label2id", "idx_to_class", "id2label",
)  # fmt: skip
_MAX_DEPTH = 3  # of settings in settings
_SYNSET = re.compile(r"n\d{8}")


def match_classes(ours: Sequence[str], theirs: Sequence[str]) -> tuple[int | None, ...]:
    """For each of our classes, the index of the same class among theirs; None where there is none.

    Names are the same if they are equal, however Unicode composes their letters; or if they are so without regard to
    case, spaces, `_` and `-`; or if both mean the same of ImageNet's 1000 classes, by its id (`n01440764`) or its
    words. A name that several classes have matches none.
    """
    found: list[int | None] = [None] * len(ours)
    for keys_of in (list, _composed, _plain, _synsets):
        if None not in found:
            break
        places = _unique(keys_of(theirs))
        wanted = keys_of(ours)
        repeated = Counter(wanted)
        for index, key in enumerate(wanted):
            if found[index] is None and key is not None and repeated[key] == 1:
                place = places.get(key)
                found[index] = place if place not in found else None
    return tuple(found)


def are_indices(names: Sequence[str]) -> bool:
    """Whether they are the numbers from 0, as of folders that are named by the index of a class."""
    return all(name.isdecimal() for name in names) and sorted(map(int, names)) == list(range(len(names)))


def class_names_in(content: Any, num_classes: int) -> tuple[tuple[str, ...] | None, str | None]:
    """The names of so many classes that a checkpoint holds beside its weights; None where it holds none.

    Returns:
        With them, why names that it does hold cannot be used, where no others can.
    """
    unusable = None
    for place, tree in _settings(content):
        for key in (key for key in _KEYS if key in tree):
            names, why = _names_of(tree[key])
            if names is not None and len(names) != num_classes:
                why = f"names {len(names)} classes, the head has {num_classes}"
            elif names is not None and (repeated := [name for name, count in Counter(names).items() if count > 1]):
                why = f"names {repeated[0]!r} more than once"
            elif names is not None:
                return names, None
            if why is not None:
                unusable = unusable or f"{'.'.join((*place, key))}: {why}"
    return None, unusable


def _settings(content: Any) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """A checkpoint's own keys, then those of the settings in it, then of those in these; with the keys to each."""
    level: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for _ in range(_MAX_DEPTH):
        trees = [(place, _as_mapping(tree)) for place, tree in level]
        level = []
        for place, tree in trees:
            if tree is not None:
                yield place, tree
                level += [((*place, str(key)), value) for key, value in tree.items() if not isinstance(value, Tensor)]


def _as_mapping(tree: Any) -> Mapping[Any, Any] | None:
    """A dict, or the attributes of a namespace."""
    inner = tree if isinstance(tree, Mapping) else getattr(tree, "__dict__", None)
    return inner if isinstance(inner, Mapping) else None


def _names_of(told: Any) -> tuple[tuple[str, ...] | None, str | None]:
    """Names in the order of their indices, of a list, or of a dict from or to these; or why they have no order.

    What holds other things than names is neither, nor are the `LABEL_0`, `LABEL_1` that transformers makes up.
    """
    if isinstance(told, Mapping):
        pairs = list(told.items())
        if any(not isinstance(index, str) for _, index in pairs):
            pairs = [(index, name) for name, index in pairs] if isinstance(pairs[0][0], str) and all(
                _index_of(index) is not None for _, index in pairs) else pairs  # fmt: skip
        if not pairs or not all(isinstance(name, str) for _, name in pairs):
            return None, None
        by_index = {_index_of(index): name for index, name in pairs}
        if None in by_index:
            return None, None
        if set(by_index) != set(range(len(pairs))):
            return None, "must have one name for each index from 0"
        told = [by_index[index] for index in range(len(pairs))]
    names = told.tolist() if isinstance(told, np.ndarray) else told
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        return None, None
    return (None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else tuple(map(str, names))), None


def _index_of(value: Any) -> int | None:
    """The whole number that `value` is, as any library writes it; None where it is none."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() else None
    if isinstance(value, Tensor | np.ndarray):
        value = value.item() if np.prod(value.shape) == 1 else None
    if isinstance(value, bool) or not isinstance(value, Real) or not float(value).is_integer():
        return None
    return int(float(value))


def _unique(keys: Sequence[str | None]) -> dict[str, int]:
    repeated = Counter(keys)
    return {key: index for index, key in enumerate(keys) if key is not None and repeated[key] == 1}


def _composed(names: Sequence[str]) -> list[str | None]:
    """In the form of Unicode in which a letter and its accent are one; macOS writes names of files in the other."""
    return [unicodedata.normalize("NFC", name) for name in names]


def _plain(names: Sequence[str]) -> list[str | None]:
    return [re.sub(r"[\s_-]+", "", unicodedata.normalize("NFC", name)).casefold() for name in names]


def _synsets(names: Sequence[str]) -> list[str | None]:
    """The ids of ImageNet's classes that the names mean; None for what means none, or several."""
    by_words, order = _imagenet()
    found = [
        name if _SYNSET.fullmatch(name) else by_words.get(plain)
        for name, plain in zip(names, _plain(names), strict=True)
    ]
    # words such as "crane" mean two classes; a list in ImageNet's own order tells which
    if len(names) == len(order):
        in_place = sum(one == other for one, other in zip(found, order, strict=True))
        return list(order) if in_place > 0.9 * len(order) else found
    return found


@cache
def _imagenet() -> tuple[dict[str | None, str], tuple[str, ...]]:
    """ImageNet's ids by the words that mean one of them alone, and the ids in the order of its classes."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    ids = tuple(info.label_names())
    words = info.label_descriptions()
    assert isinstance(words, list), "in the order of the classes"
    whole = _unique(_plain(words))
    each: dict[str, set[str]] = {}
    for synset, description in zip(ids, words, strict=True):
        for word in description.split(","):
            each.setdefault(_plain([word])[0] or "", set()).add(synset)
    single = {word: next(iter(synsets)) for word, synsets in each.items() if len(synsets) == 1}
    return {**single, **{key: ids[index] for key, index in whole.items()}}, ids
