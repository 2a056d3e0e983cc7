"""Lists the images of each split of a folder, keeps the list in a file, and checks that splits fit each other."""

import contextlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np

from cvt_nas.data.channels import ARRAY, is_array
from cvt_nas.data.layout import Layout
from cvt_nas.data.records import Images, Opener, Records, Role
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
_SECONDS_BETWEEN = 5.0  # between progress notes
_OUTSIDE = re.compile(r"(^|[/\0])\.{0,2}([/\0]|$)")  # in names separated by zero bytes
_SET = "set"  # key of the facts about a data set that is no folder of class folders
_NORMALISATION = "normalisation"
_NUM_THREADS = 16  # a network disk then gets several requests at a time


def list_images(layout: Layout, role: Role, *, on_note: Callable[[str], None] | None = None) -> Images:
    """Lists the images of a split. See `problems_of` for what may be wrong with them.

    Args:
        on_note: Called with progress notes if it takes long.
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
                    if is_image(file) or is_array(file):
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
    if (num_arrays := sum(map(is_array, names))) not in (0, len(names)):  # ignore arrays that lie among images
        kept = [index for index, name in enumerate(names) if not is_array(name)]
        names, labels = [names[index] for index in kept], [labels[index] for index in kept]
        ignored[ARRAY] += num_arrays
    return Images(
        root=place,
        class_names=tuple(map(told, classes)),
        names=names,
        labels=np.array(labels, dtype=np.int64),
        ignored=ignored,
        odd=sorted(odd + _not_text(place, classes, names)),
    )


def save_listing(files: Mapping[Role, Images], to: BinaryIO, **more: np.ndarray) -> None:
    """Writes images in the format that `load_listing` reads."""
    arrays: dict[str, np.ndarray] = {}
    for role, images in files.items():
        arrays[f"{role} names"] = np.frombuffer("\0".join(images.names).encode(), np.uint8)
        arrays[f"{role} labels"] = images.labels.astype(np.int32 if images.labels.ndim == 1 else np.uint8)
        if images.extents is not None:
            arrays[f"{role} extents"] = images.extents
    np.savez_compressed(to, allow_pickle=False, **arrays, **more)


def save_records(records: Records, to: BinaryIO) -> None:
    """Writes the listing of a data set for `load_data`, so that workers need not scan folders."""
    told_by_folders = not any(images.called for images in records.files.values())
    tree = {
        "class_names": records.class_names,
        "called": {role: images.called for role, images in records.files.items()},
        "notes": records.notes,
        "is_marked": records.is_marked,
    }
    more = {} if told_by_folders else {_SET: np.frombuffer(json.dumps(tree).encode(), np.uint8)}
    if records.normalisation is not None:
        more[_NORMALISATION] = np.array(records.normalisation)
    save_listing(records.files, to, **more)


def load_listing(listing: Path, layout: Layout) -> dict[Role, Images]:
    """Reads the images that `save_listing` wrote. No folder is scanned.

    Raises:
        DataError: The listing is damaged, has other splits or classes, or names files outside their split.
    """
    files: dict[Role, Images] = {}
    with _reading(listing) as kept:
        for role, place in layout.places.items():
            files[role] = images = _kept_images(kept, role, place, layout.class_names, listing)
            text = "\0".join(images.names)
            if (found := _OUTSIDE.search(text)) is not None:
                raise DataError(f"{listing}: names a file outside {place}: {text[: found.end()].split(chr(0))[-1]!r}")
    return files


def load_records(listing: Path, root: Path, opener: Opener) -> Records:
    """Reads the images that `save_records` wrote for a data set that is no folder of class folders.

    Raises:
        DataError: The listing is damaged, or belongs to another data set.
    """
    with _reading(listing) as kept:
        tree = json.loads(kept[_SET].tobytes())
        names = tuple(tree["class_names"])
        return Records(
            root=root,
            class_names=names,
            files={
                role: replace(_kept_images(kept, role, root, names, listing), called=called)
                for role, called in tree["called"].items()
            },
            opener=opener,
            notes=tuple(tree["notes"]),
            is_marked=tree["is_marked"],
            normalisation=_normalisation(kept),
        )


def load_normalisation(listing: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of each channel, if `save_records` wrote them."""
    with _reading(listing) as kept:
        return _normalisation(kept)


def _normalisation(kept: Mapping[str, np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if _NORMALISATION not in kept:
        return None
    mean, deviation = (tuple(values) for values in kept[_NORMALISATION].tolist())
    return mean, deviation


@contextlib.contextmanager
def _reading(listing: Path) -> Iterator[dict[str, np.ndarray]]:
    try:
        with np.load(listing, allow_pickle=False) as arrays:
            yield {name: arrays[name] for name in arrays.files}
    except (KeyError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{listing}: is damaged, or belongs to other splits: {error}") from error


def _kept_images(
    kept: Mapping[str, np.ndarray], role: Role, place: Path, class_names: tuple[str, ...], listing: Path
) -> Images:
    names, labels = kept[f"{role} names"].tobytes().decode().split("\0"), kept[f"{role} labels"]
    is_one = labels.shape == (len(names),) and 0 <= labels.min() <= labels.max() < len(class_names)
    if not is_one and labels.shape != (len(names), len(class_names)):
        raise DataError(f"{listing}: does not belong to the images of {place}")
    return Images(
        root=place,
        class_names=class_names,
        names=names,
        labels=labels.astype(np.int64 if labels.ndim == 1 else np.uint8),
        extents=kept.get(f"{role} extents"),
    )


def problems_of(layout: Layout, files: Mapping[Role, Images]) -> list[str]:
    """Reasons why the splits of a folder cannot be used together, one line each."""
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
    """Finds folders that are the same by links. Their images would be in two splits, or have two labels."""
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
