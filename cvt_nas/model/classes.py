"""Matches the classes of a network to those of a data set by name, never by position only."""

import ast
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cvt_nas.errors import ArchError, first_line
from cvt_nas.model.unwrapping import is_of_optimizer

# names of settings and files that hold names of classes; what others hold, does where it matches the data's
_TELLING = re.compile(r"class|label|categor|vocab|synset|target_?name|to_?name|\bnames$", re.IGNORECASE)
# names of settings that hold numbers of classes, or list classes in an order of merit
_STATISTIC = re.compile(r"(?<![a-z])(counts?|weights?|freq\w*|support|sorted_by|rank\w*|acc|accurac\w+|errors?|"
                        r"wrong|scores?|loss(es)?|confus\w*)(?![a-z])", re.IGNORECASE)  # fmt: skip
_FILE = re.compile(r"(class(es)?|labels?|categor(y|ies)|targets?|vocab|synsets?|names?|words?|index|indices|idx|ids?|"
                   r"to|list|map(ping)?|dict|imagenet|[\W\d_])+")  # fmt: skip
_READ = (".txt", ".json", ".names")  # suffixes of files of names; darknet's is the last
_NUM_SHOWN = 3  # names in a note
_MAX_DEPTH = 12  # of settings in settings
_MAX_LISTED = 1000  # settings in a list
_MAX_TEXT = 2**22  # characters
_SYNSET = re.compile(r"n\d{8}(?![^\W_])")  # alone, or before the words, as in n02085620-Chihuahua


def match_classes(ours: Sequence[str], theirs: Sequence[str]) -> tuple[int | None, ...]:
    """Returns the index of the same class among theirs for each of our classes; None if there is none.

    Names match if they are equal up to the composition of Unicode letters; or up to case, spaces, `_` and `-`; or if
    both mean the same of ImageNet's 1000 classes, by id (`n01440764`) or words. A name of several classes matches none.
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
    """Whether names are the numbers from 0, such as names of folders that are class indices."""
    return all(name.isdecimal() for name in names) and sorted(map(int, names)) == list(range(len(names)))


@dataclass(frozen=True, slots=True)
class Told:
    """Names of a head's classes in the order of its rows.

    Args:
        place: Where they were found, for people.
        is_certain: Whether they are certainly class names, by the name of their setting, or in the form `{0: 'cat'}`.
    """

    place: str
    names: tuple[str, ...]
    is_certain: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassNames:
    """All class names that were found for a head, in the weights' file or beside it.

    Args:
        path: Path of the weights.
        groups: Groups of names. Earlier groups have priority.
        why_none: Why there are no names, for people.
    """

    path: Path
    groups: tuple[tuple[Told, ...], ...] = ()
    why_none: str = "nothing beside the weights names their classes"

    def matching(self, ours: Sequence[str]) -> tuple[Told | None, str]:
        """Finds the names to match the classes `ours` by: names that include all of ours, or else certain ones.

        Returns:
            The names, and why there are none.

        Raises:
            ArchError: Several names include all of ours, in different orders.
        """
        for group in self.groups:
            orders: dict[tuple[int | None, ...], Told] = {}
            for told in group:
                orders.setdefault(match_classes(ours, told.names), told)
            whole = [told for order, told in orders.items() if None not in order]
            if len(whole) > 1:
                one, other = (f"{told.place} ({listed(told.names)})" for told in whole[:2])
                raise ArchError(
                    f"{self.path}: {one} and {other} name the same classes in different orders; take away the wrong one"
                )
            if whole:
                return whole[0], ""
        for told in (told for group in self.groups for told in group):
            if told.is_certain or any(row is not None for row in match_classes(ours, told.names)):
                return told, ""
        odd = next((told.place for group in self.groups for told in group), None)
        return (
            None,
            self.why_none if odd is None else f"{odd} holds other names than the data, and nothing else has any",
        )

    def rows_without_names(
        self, ours: Sequence[str], why_none: str, *, is_published: bool
    ) -> tuple[tuple[int, ...], str]:
        """Maps the classes `ours` to rows of a head without names. Returns the rows and a note.

        Args:
            is_published: Whether the network is a published one, whose classes are ImageNet's.

        Raises:
            ArchError: Class names are numbers whose order as text differs, and torchvision sorts folders as text.
        """
        rows, how = tuple(range(len(ours))), "list them in its order in a file classes.txt beside it, one a line"
        if is_published:
            order = tuple(map(int, ours)) if are_indices(ours) else match_classes(ours, _imagenet()[1])
            published = tuple(row for row in order if row is not None)
            if len(published) == len(rows) != 0 and published != rows:
                first = tuple(ours[published.index(row)] for row in rows)
                return published, f"{why_none}: they are taken in the published networks' order, {listed(first)}"
            if any(row not in (None, place) for place, row in enumerate(order)):
                raise ArchError(
                    f"{self.path}: {why_none}, and it may be a published network: {ours[order.index(None)]!r} and "
                    f"others are none of ImageNet's classes, and some are; {how}"
                )
        numbers = [int(name) for name in ours if name.isdecimal()]
        if len(numbers) == len(ours) and numbers != sorted(numbers):
            raise ArchError(
                f"{self.path}: {why_none}, and the data's are numbers: nothing tells whether the network has them in "
                f"the order of text, {listed(ours)}, or of numbers, {listed(sorted(ours, key=int))}; {how}"
            )
        return rows, f"{why_none}: they are taken in the data's order, {listed(ours)}"


def listed(names: Sequence[str]) -> str:
    """Lists the first names with their indices, for people."""
    shown = ", ".join(f"{index} {name}" for index, name in enumerate(names[:_NUM_SHOWN]))
    return shown + (", ..." if len(names) > _NUM_SHOWN else "")


def class_names_in(
    content: object, num_classes: int, *, file: str = "", is_said: bool = False
) -> tuple[tuple[Told, ...], str | None]:
    """Finds names of `num_classes` classes in settings: lists, texts, or dicts from or to indices.

    Args:
        file: Name of the file, for messages.
        is_said: Whether all of `content` is said to be class names.

    Returns:
        The names, and why settings that should be class names cannot be used.
    """
    found, unusable = [], None
    for keys, tree in _settings(content):
        key = next((key for key in reversed(keys) if not key.isdecimal()), "")
        if _STATISTIC.search(key):
            continue
        is_told = is_said or _TELLING.search(key) is not None
        shown = ": ".join(filter(None, (file, ".".join(keys))))
        for names, is_by_index in _names_of(tree):
            if None in names:
                why = "must have one name for each index from 0"
            elif len(names) != num_classes:
                why = f"names {len(names)} classes, the head has {num_classes}"
            elif repeated := [name for name, count in Counter(names).items() if count > 1]:
                why = f"names {repeated[0]!r} more than once"
            else:
                found.append(Told(shown, names, is_told or is_by_index))
                continue
            if is_said or (is_told and not isinstance(tree, str)):
                unusable = unusable or f"{shown}: {why}"
    return tuple(found), unusable


def class_names_beside(path: Path, num_classes: int) -> tuple[tuple[Told, ...], str | None]:
    """Finds class names in files beside or in `path` with names such as `classes.txt` or `id2label.json`.

    Settings in a `config.json` count as in a checkpoint. See `class_names_in`.
    """
    found, unusable = (), None
    folder, own = (path, "") if path.is_dir() else (path.parent, path.stem.lower())
    for file in sorted(folder.iterdir()):
        stem = file.stem.lower().removeprefix(own)
        is_said = _TELLING.search(stem) is not None and _FILE.fullmatch(stem) is not None
        if file.name != "config.json" and not is_said:
            continue
        if file.suffix.lower() not in _READ:
            unusable = unusable or f"{file.name} is not read, which {' '.join(_READ)} are"
            continue
        try:
            text = file.read_text(encoding="utf-8-sig") if file.stat().st_size <= _MAX_TEXT else ""
        except (OSError, ValueError) as error:
            unusable = unusable or f"{file.name}: cannot be read: {first_line(error)}"
            continue
        told, why = class_names_in(text, num_classes, file=file.name, is_said=is_said)
        found, unusable = (*found, *told), unusable or why
    return found, unusable


def _settings(content: object) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yields a checkpoint's values except tensors and optimizers, with their keys. The outermost come first."""
    level: list[tuple[tuple[str, ...], object]] = [((), content)]
    seen: dict[int, object] = {}
    for _ in range(_MAX_DEPTH):
        trees = [(keys, _parsed(tree)) for keys, tree in level if id(tree) not in seen]
        seen |= {id(tree): tree for _, tree in level}
        level = []
        for keys, tree in trees:
            yield keys, tree
            if isinstance(tree, Mapping):
                inner = [
                    (key, value)
                    for key, value in ((str(key), value) for key, value in tree.items())
                    if key == "opt" or not is_of_optimizer(key)
                ]  # `opt` holds options in some tools
            elif isinstance(tree, list | tuple) and len(tree) <= _MAX_LISTED:
                inner = [(str(index), value) for index, value in enumerate(tree) if not isinstance(value, str | bytes)]
            else:
                continue
            level += [((*keys, key), value) for key, value in inner if not isinstance(value, Tensor | Real)]


def _parsed(tree: object) -> object:
    """Converts namespaces to dicts, arrays to lists, and parses text."""
    if isinstance(tree, bytes) and len(tree) <= _MAX_TEXT:
        tree = tree.decode(errors="replace")
    if isinstance(tree, np.ndarray) and tree.size <= _MAX_TEXT and tree.dtype.kind in "US":
        return tree.tolist()
    if isinstance(tree, str):
        if tree.strip()[:1] in ("[", "{", "(") and len(tree) <= _MAX_TEXT:
            with suppress(ValueError, RecursionError):
                return json.loads(tree)
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return ast.literal_eval(tree.strip())
        return tree
    inner = tree if isinstance(tree, Mapping) else getattr(tree, "__dict__", None)
    return inner if isinstance(inner, Mapping) else tree


def _names_of(tree: Any) -> Iterator[tuple[tuple[Any, ...], bool]]:
    """Yields each way to read `tree` as names, and whether its keys are indices. An index without a name gives None.

    Values that hold anything but names give nothing, and neither do the `LABEL_0`, `LABEL_1` of transformers.
    """
    pairs: list[Any] = []
    if isinstance(tree, str):
        tree, pairs = _lines_of(tree)
    if isinstance(tree, Mapping):
        pairs = list(tree.items())
    elif isinstance(tree, list | tuple):
        names = tuple(map(_name_of, tree))
        if all(isinstance(entry, list | tuple) and len(entry) == 2 for entry in tree):
            pairs = list(tree)
        elif all(isinstance(entry, Mapping) and {"id", "name"} <= entry.keys() for entry in tree):  # as COCO's
            pairs = [(entry["id"], entry["name"]) for entry in tree]
        elif not pairs and tree and None not in names and not _are_made_up(names):
            yield names, False
    ways = []
    for index_at in (0, 1):
        indices, names = [_index_of(pair[index_at]) for pair in pairs], [_name_of(pair[1 - index_at]) for pair in pairs]
        if pairs and None not in indices and None not in names:
            by_index = dict(zip(indices, names, strict=True))
            counts_from_1 = set(indices) == set(range(1, len(pairs) + 1)) and None in map(_index_of, names)
            first = 1 if counts_from_1 else 0  # as in COCO and MATLAB; names that are numbers could be either
            ways.append((indices, tuple(by_index.get(first + index) for index in range(len(pairs))), index_at == 0))
    if len(ways) > 1:  # names are numbers, too: the ascending ones are the indices
        ways = [way for way in ways if way[0] == sorted(way[0])] or ways
    yield from ((names, is_by_index) for _, names, is_by_index in ways if not _are_made_up(names))


def _lines_of(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Splits a text at lines or commas. Also returns the index and the name in each part, if parts are such pairs."""
    lines = re.split(r"[\r\n]+", text.strip()) if len(text) <= _MAX_TEXT else []
    lines = [line.strip() for line in (re.split("[,;]", lines[0]) if len(lines) == 1 else lines)]
    for form in (r"(?P<index>\d+)[\s,;:=]+(?P<name>.+)", r"(?P<name>.+?)[\s,;:=]+(?P<index>\d+)"):
        found = [match for match in (re.fullmatch(form, line) for line in lines) if match]
        indices = sorted(int(pair["index"]) for pair in found)
        are_parted = len({pair["name"] for pair in found}) == len(lines) > 1  # "class 0" and "class 1" are names
        if are_parted and indices in (list(range(len(lines))), list(range(1, len(lines) + 1))):
            return lines, [(pair["index"], pair["name"]) for pair in found]
    return (lines if len(lines) > 1 else []), []


def _name_of(value: object) -> str | None:
    """A name, or the first of several, as in Keras' `{"0": ["n01440764", "tench"]}`."""
    value = value[0] if isinstance(value, list | tuple) and value else value
    value = value.decode(errors="replace") if isinstance(value, bytes) else value
    return str(value) if isinstance(value, str) else None


def _are_made_up(names: Sequence[str | None]) -> bool:
    return all(name == f"LABEL_{index}" for index, name in enumerate(names))


def _index_of(value: object) -> int | None:
    """Converts a whole number of any library to int; None for other values."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() else None
    if type(value) is Tensor or type(value) is np.ndarray:
        value = value.item() if np.prod(value.shape) == 1 and str(getattr(value, "device", "cpu")) == "cpu" else None
    if isinstance(value, bool) or not isinstance(value, Real) or not float(value).is_integer():
        return None
    return int(float(value))


def _unique(keys: Sequence[str | None]) -> dict[str, int]:
    repeated = Counter(keys)
    return {key: index for index, key in enumerate(keys) if key is not None and repeated[key] == 1}


def _composed(names: Sequence[str]) -> list[str | None]:
    """Composes letters and accents in Unicode. macOS writes file names decomposed."""
    return [unicodedata.normalize("NFC", name) for name in names]


def _plain(names: Sequence[str]) -> list[str | None]:
    return [re.sub(r"[\s_-]+", "", unicodedata.normalize("NFC", name)).casefold() for name in names]


def _synsets(names: Sequence[str]) -> list[str | None]:
    """Ids of ImageNet's classes by their names; None for names of no class or of several."""
    by_words, order = _imagenet()
    found = [
        told[0] if (told := _SYNSET.match(name)) else by_words.get(plain)
        for name, plain in zip(names, _plain(names), strict=True)
    ]
    # words such as "crane" mean two classes; a list in ImageNet's own order tells which
    if len(names) == len(order):
        in_place = sum(one == other for one, other in zip(found, order, strict=True))
        return list(order) if in_place > 0.9 * len(order) else found
    return found


def imagenet_classes() -> tuple[str, ...]:
    """Words for ImageNet's classes, in the order of the published networks' logits."""
    from timm.data.imagenet_info import ImageNetInfo

    words = ImageNetInfo().label_descriptions()
    assert isinstance(words, list), "in the order of the classes"
    return tuple(words)


@cache
def _imagenet() -> tuple[dict[str | None, str], tuple[str, ...]]:
    """ImageNet's ids by words that mean only one class, and all ids in the order of classes."""
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
