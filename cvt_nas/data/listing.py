"""The images of each split of a folder: found, kept in a file, and checked against each other."""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np

from cvt_nas.data.layout import Layout
from cvt_nas.data.records import Images, Role
from cvt_nas.data.tree import (
    SUFFIXES,
    entries_of,
    few,
    folders_in,
    in_byte_order,
    is_hidden,
    is_image,
    itself_and_above,
    leads_nowhere,
    suffix_of,
    walk,
)
from cvt_nas.errors import DataError
from cvt_nas.escaping import told

_NUM_NAMED = 5
_SECONDS_BETWEEN = 5.0  # notes on how far it is
_OUTSIDE = re.compile(r"(^|[/\0])\.{0,2}([/\0]|$)")  # in names that are parted by zero bytes
_NUM_THREADS = 16  # so that a network disk has several requests at a time


def list_images(layout: Layout, role: Role, *, on_note: Callable[[str], None] | None = None) -> Images:
    """The images of a split, whatever else may be wrong with it; see `problems_of`.

    Args:
        on_note: Called with how far it is, where it takes long.
    """
    place, names, labels, odd = layout.places[role], list[str](), list[int](), list[str]()
    said = time.monotonic()
    ignored: Counter[str] = Counter()
    classes = folders_in(place)
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        outside = itself_and_above(place)
        found = threads.map(lambda name: _in_order(walk(place / name, outside, odd)), classes)
        for label, parts in enumerate(found):
            for folder, files in parts:
                prefix = os.path.relpath(folder, place)
                for file in in_byte_order(files):
                    if is_image(file):
                        names.append(f"{prefix}/{file}")
                        labels.append(label)
                    else:
                        ignored[suffix_of(file)] += 1
            if on_note is not None and time.monotonic() - said >= _SECONDS_BETWEEN:
                said = time.monotonic()
                on_note(f"looking for images in {place}: {len(names):,} in {label + 1:,} of {len(classes):,} classes")
    for entry in entries_of(place):
        if is_hidden(entry.name):
            continue
        if leads_nowhere(entry):
            odd.append(f"{told(entry.path)}: a link that leads nowhere")
        elif entry.is_file():
            ignored["images beside the class folders" if is_image(entry.name) else suffix_of(entry.name)] += 1
    return Images(
        root=place,
        class_names=tuple(map(told, classes)),
        names=names,
        labels=np.array(labels, dtype=np.int64),
        ignored=ignored,
        odd=sorted(odd + _not_text(place, classes, names)),
    )


def save_listing(files: Mapping[Role, Images], to: BinaryIO) -> None:
    """Writes what `load_listing` reads."""
    arrays: dict[str, np.ndarray] = {}
    for role, images in files.items():
        arrays[f"{role} names"] = np.frombuffer("\0".join(images.names).encode(), np.uint8)
        arrays[f"{role} labels"] = images.labels.astype(np.int32)
    np.savez_compressed(to, allow_pickle=False, **arrays)


def load_listing(listing: Path, layout: Layout) -> dict[Role, Images]:
    """The images that `save_listing` has kept, as `list_images` found them, so that no folder is looked through again.

    Raises:
        DataError: It is damaged, of other splits or classes, or names files outside their split.
    """
    try:
        with np.load(listing, allow_pickle=False) as arrays:
            kept = {name: arrays[name] for name in arrays.files}
        files: dict[Role, Images] = {}
        for role, place in layout.places.items():
            text, labels = kept[f"{role} names"].tobytes().decode(), kept[f"{role} labels"].astype(np.int64)
            names = text.split("\0")
            if (found := _OUTSIDE.search(text)) is not None:
                raise DataError(f"{listing}: names a file outside {place}: {text[: found.end()].split(chr(0))[-1]!r}")
            if labels.shape != (len(names),) or not 0 <= labels.min() <= labels.max() < len(layout.class_names):
                raise DataError(f"{listing}: is of other images than {place} had")
            files[role] = Images(root=place, class_names=layout.class_names, names=names, labels=labels)
    except (KeyError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{listing}: is damaged, or of other splits: {error}") from error
    return files


def problems_of(layout: Layout, files: Mapping[Role, Images]) -> list[str]:
    """Why the splits of a folder do not fit each other, one line each."""
    problems = list(_linked(layout))
    first = next(iter(files.values()))
    for images in files.values():
        if odd := sorted(set(first.class_names) ^ set(images.class_names)):
            problems.append(
                f"{layout.root}: in only one of {first.root.name}/ and {images.root.name}/: {few(odd)}; both must "
                f"have the same class folders"
            )
        problems += images.odd[:_NUM_NAMED]
        if len(images.odd) > _NUM_NAMED:
            problems.append(f"and {len(images.odd) - _NUM_NAMED:,} more of this kind in {images.root.name}/")
        full = set(images.labels.tolist())
        if empty := [name for label, name in enumerate(images.class_names) if label not in full]:
            ends = sorted(images.ignored)
            seen = f"; there are files of {few(ends)}, and {' '.join(SUFFIXES)} are read" if ends else ""
            problems.append(f"{images.root}: class folders without an image: {few(empty)}{seen}")
    return problems


def _linked(layout: Layout) -> Iterator[str]:
    """Folders that links make one: their images would be trained on and tested, or have two labels."""
    seen: dict[str, Path] = {}
    for place in layout.places.values():
        for folder in (place, *(place / name for name in folders_in(place))):
            first = seen.setdefault(os.path.realpath(folder), folder)
            if first != folder:
                pair = " and ".join(told(str(each.relative_to(layout.root))) for each in (first, folder))
                yield f"{layout.root}: {pair} are one folder, by a link; an image must have one split and one class"
                if folder == place:
                    break


def _in_order(parts: Iterable[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    return sorted(parts, key=lambda part: os.fsencode(part[0]))


def _not_text(place: Path, classes: Sequence[str], names: Sequence[str]) -> list[str]:
    found = [name for name in (*classes, *names) if not name.isascii() and not _is_text(name)]
    return [f"{told(f'{place}/{name}')}: the name is not UTF-8; rename it" for name in found]


def _is_text(name: str) -> bool:
    try:
        os.fsencode(name).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
