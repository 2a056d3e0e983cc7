"""Which class of a network is which of a data set: by their names, never by their places alone."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

# under which training scripts keep the names of the classes, in their order or by their index
_KEYS = (
    "class_names", "classes", "CLASSES", "label_names", "class_labels", "labels", "names", "class_to_idx", "label2id",
    "idx_to_class", "id2label",
)  # fmt: skip
_SYNSET = re.compile(r"n\d{8}")


def match_classes(ours: Sequence[str], theirs: Sequence[str]) -> tuple[int | None, ...]:
    """For each of our classes, the index of the same class among theirs; None where there is none.

    Names are the same if they are equal; or if they are so without regard to case, spaces, `_` and `-`; or if both mean
    the same of ImageNet's 1000 classes, by its id (`n01440764`) or its words. A name that several classes have matches
    none.
    """
    found: list[int | None] = [None] * len(ours)
    for keys_of in (list, _plain, _synsets):
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


def class_names_in(content: Any, num_classes: int) -> tuple[str, ...] | None:
    """The names of so many classes that a checkpoint holds beside its weights; None where it holds none."""
    for tree in _settings(content):
        for key in _KEYS:
            names = _names_of(tree.get(key))
            if names is not None and len(names) == num_classes and len(set(names)) == num_classes:
                return names
    return None


def _settings(content: Any) -> Iterator[Mapping[str, Any]]:
    """A checkpoint's own keys, and those of the settings in it."""
    if not isinstance(content, Mapping):
        return
    yield content
    for value in content.values():
        inner = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
        if isinstance(inner, Mapping):
            yield inner


def _names_of(told: Any) -> tuple[str, ...] | None:
    """Names in the order of their indices: of a list, or of a dict from or to these."""
    if isinstance(told, Mapping):
        by_index = {}
        for key, value in told.items():
            index, name = (value, key) if isinstance(value, int) else (key, value)
            if isinstance(index, str) and index.isdecimal():
                index = int(index)
            if not isinstance(index, int) or not isinstance(name, str):
                return None
            by_index[index] = name
        if set(by_index) != set(range(len(told))):
            return None
        told = [by_index[index] for index in range(len(told))]
    if not isinstance(told, list | tuple) or not told or not all(isinstance(name, str) for name in told):
        return None
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(told)) else tuple(told)


def _unique(keys: Sequence[str | None]) -> dict[str, int]:
    repeated = Counter(keys)
    return {key: index for index, key in enumerate(keys) if key is not None and repeated[key] == 1}


def _plain(names: Sequence[str]) -> list[str | None]:
    return [re.sub(r"[\s_-]+", "", name).casefold() for name in names]


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
