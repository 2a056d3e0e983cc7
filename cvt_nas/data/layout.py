"""How a folder of images is laid out: which folder is which split, what its classes are, and what is left out."""

import os
import re
import stat
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal
from zipfile import BadZipFile

import numpy as np

from cvt_nas.errors import DataError
from cvt_nas.escaping import told

Role = Literal["train", "validation", "test"]
SPELLINGS: dict[Role, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
_SYSTEM = re.compile(
    r"__macosx|__pycache__|lost\+found|system volume information|network trash folder|temporary items"
    r"|thumbs\.db(:.*)?|ehthumbs\.db|desktop\.ini|found\.\d{3}|msocache|thevolumesettingsfolder|_gsdata_|_vti_\w{3,7}"
    r"|\$(recycle\.bin|windows\.~\w\w|winreagent|sysreset|extend)|(?-i:RECYCLE[RD])"  # recycler may be a class
    r"|@(eadir|tmp|syno.*|recycle|recently-snapshot|snapshot|sharesnapshot|sharebin|gmt-.*)|[#~]snapshot|#recycle",
    re.IGNORECASE,
)
_OF_A_DRIVE = re.compile(r"@\w{2,}", re.ASCII)  # as the firmware of network drives begins the names of its own folders
_WORDS = "|".join(spelling for spellings in SPELLINGS.values() for spelling in spellings)
_LIKE_SPLIT = re.compile(rf"^({_WORDS})(set|val|images|imgs|data)?(?![a-z])|(?<![a-z])({_WORDS})(set)?$")
_NUM_NAMED = 5
_SECONDS_BETWEEN = 5.0  # notes on how far it is
_OUTSIDE = re.compile(r"(^|[/\0])\.{0,2}([/\0]|$)")  # in names that are parted by zero bytes
_NUM_THREADS = 16  # so that a network disk has several requests at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The folders of a data set.

    Args:
        root: Of the data set.
        places: The folder of each split that has class folders. A root that is itself a folder of class folders is
            its `train`.
        class_names: Sorted; of the training images, or where there are none, of the others.
        notes: What is left out, and what follows from that; one line each.
    """

    root: Path
    places: dict[Role, Path]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_flat(self) -> bool:
        """Whether class folders lie in the root itself, so that no split is marked."""
        return self.places.get("train") == self.root

    @property
    def guide(self) -> Role | None:
        """The folder whose images guide the search, where it is another one than that of the test images."""
        return "validation" if {"train", "validation", "test"} <= set(self.places) else None

    @property
    def tested(self) -> Role | None:
        """The folder of the test images; None where they are held out of the training images."""
        return next((role for role in ("test", "validation") if role in self.places), None)

    def for_test(self) -> "Layout":
        """The same with the test images alone, which are all of the images where no split is marked.

        Raises:
            DataError: There are none: they would be held out of training images, which may have been trained on.
        """
        role: Role | None = "train" if self.is_flat else self.tested
        if role is None:
            own = self.places["train"].name
            raise DataError(
                f"--data {self.root}: holds {own}/ alone, and no test images in val/ or test/; to measure on images "
                f"that may have been trained on, name {self.places['train']}"
            )
        place = self.places[role]
        return replace(self, places={role: place}, class_names=_class_names(place))

    def trained_classes(self) -> tuple[str, ...] | None:
        """Of the training images: in the root, or beside it where it is itself the folder of a split; None without."""
        if not self.is_flat:
            place = self.places.get("train")
        else:
            root = self.root.resolve()
            is_tested = any(root.name.lower() in SPELLINGS[role] for role in ("validation", "test"))
            beside = os.listdir(root.parent) if is_tested and os.access(root.parent, os.R_OK) else []
            named = (root.parent / name for name in beside if name.lower() in SPELLINGS["train"])
            place = next((folder for folder in named if folder.is_dir()), None)
        return None if place is None else _class_names(place) or None

    def check_trainable(self) -> None:
        """Raises:
        DataError: There are no training images.
        """
        if "train" not in self.places:
            raise DataError(f"{self.root} must hold train/ and val/, one folder a class; it has no train/")


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """The images of one split.

    Args:
        root: Its folder.
        class_names: Of its class folders, sorted.
        names: Their paths below it, in torchvision's order: by class, then by folder and name.
        labels: Class index of each, int64.
        ignored: Visible files that are no images, by suffix.
        odd: What of its content cannot be used, one line each.
    """

    root: Path
    class_names: tuple[str, ...]
    names: Sequence[str]
    labels: np.ndarray
    ignored: Counter[str]
    odd: Sequence[str] = ()

    def without(self, top: Path, skipped: frozenset[str]) -> "Images":
        """The same less those at `skipped`, paths below `top` as `told` gives them."""
        if not skipped:
            return self
        below = self.below(top)
        kept = [index for index, name in enumerate(self.names) if told(below + name) not in skipped]
        return replace(self, names=[self.names[index] for index in kept], labels=self.labels[kept])

    def below(self, top: Path) -> str:
        """What makes a name a path below `top`."""
        return "" if top == self.root else f"{self.root.relative_to(top)}/"

    def sizes(self) -> list[int]:
        """Bytes of each file; -1 where there is none any more, as behind a link that leads nowhere."""

        def size(name: str) -> int:
            try:
                return os.stat(f"{self.root}/{name}").st_size
            except OSError:
                return -1

        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            parts = [self.names[start : start + 1000] for start in range(0, len(self.names), 1000)]
            return [each for sizes in threads.map(lambda part: [size(name) for name in part], parts) for each in sizes]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is an operating system's, an editor's or a tool's, and nobody's image or class."""
    return name.startswith(".") or _SYSTEM.fullmatch(name) is not None


def find_layout(root: Path) -> Layout:
    """What the folders below `root` are, by their names; no file is looked for.

    Raises:
        DataError: Nothing below it is a class folder, or two folders could be the same split.
    """
    if not root.is_dir():
        raise DataError(f"--data {root}: no such folder")
    places: dict[Role, Path] = {}
    notes, folders = [], _folders(root)
    for entry in _entries(root):
        if _is_like_split(entry.name) and _leads_nowhere(entry):
            raise DataError(f"--data {root}: {entry.name} is a link that leads nowhere")
    for role, spellings in SPELLINGS.items():
        named = [folder for folder in folders if folder.lower() in spellings]
        full = [folder for folder in named if _folders(root / folder)]
        if len(full) > 1:
            named_both = " and ".join(f"{folder}/" for folder in full)
            raise DataError(f"--data {root}: {named_both} could each hold the {role} images; keep one of them")
        if full:
            places[role] = root / full[0]
            if _mark_of(places[role]) in _itself_and_above(root):
                raise DataError(f"--data {root}: {full[0]} is a link that leads up to {places[role].resolve()}")
        elif named and role == "train":
            raise DataError(f"--data {root}: {root / named[0]} must hold one folder a class")
        else:
            notes += [f"{folder}/ has no class folders, and is ignored" for folder in named]
    _drop_unlabelled(places, notes)
    if not places:
        if notes:
            raise DataError(
                f"--data {root}: must hold one folder a class, in train/ and val/; {'; '.join(notes)}: the name is "
                f"reserved for a split; if it is a class, put all class folders into train/"
            )
        if not folders:
            raise DataError(f"--data {root}: must hold train/ and val/, one folder a class, or one folder a class")
        _check_flat(root, folders)
        places = {"train": root}
    elif beside := [folder for folder in folders if not any(folder.lower() in named for named in SPELLINGS.values())]:
        notes.append(f"ignored beside {_slashed(places.values())}: {_few([f'{told(folder)}/' for folder in beside])}")
    for place in places.values():
        if dropped := set(_folders(place, all_of_them=True)) - set(_folders(place)):
            named = _few([f"{told(name)}/" for name in _sorted(dropped)])
            notes.append(f"{place}: {named} begins with @, as a network drive's own folders do, and is no class")
    first = next(iter(places.values()))
    return Layout(root=root, places=places, class_names=_class_names(first), notes=tuple(notes))


def list_images(layout: Layout, role: Role, *, on_note: Callable[[str], None] | None = None) -> Images:
    """The images of a split, whatever else may be wrong with it; see `problems_of`.

    Args:
        on_note: Called with how far it is, where it takes long.
    """
    place, names, labels, odd = layout.places[role], list[str](), list[int](), list[str]()
    said = time.monotonic()
    ignored: Counter[str] = Counter()
    classes = _folders(place)
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        outside = _itself_and_above(place)
        found = threads.map(lambda name: _in_order(_walk(place / name, outside, odd)), classes)
        for label, parts in enumerate(found):
            for folder, files in parts:
                prefix = os.path.relpath(folder, place)
                for file in _sorted(files):
                    if is_image(file):
                        names.append(f"{prefix}/{file}")
                        labels.append(label)
                    else:
                        ignored[suffix_of(file)] += 1
            if on_note is not None and time.monotonic() - said >= _SECONDS_BETWEEN:
                said = time.monotonic()
                on_note(f"looking for images in {place}: {len(names):,} in {label + 1:,} of {len(classes):,} classes")
    for entry in _entries(place):
        if is_hidden(entry.name):
            continue
        if _leads_nowhere(entry):
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
            files[role] = Images(
                root=place, class_names=layout.class_names, names=names, labels=labels, ignored=Counter()
            )
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
                f"{layout.root}: in only one of {first.root.name}/ and {images.root.name}/: {_few(odd)}; both must "
                f"have the same class folders"
            )
        problems += images.odd[:_NUM_NAMED]
        if len(images.odd) > _NUM_NAMED:
            problems.append(f"and {len(images.odd) - _NUM_NAMED:,} more of this kind in {images.root.name}/")
        full = set(images.labels.tolist())
        if empty := [name for label, name in enumerate(images.class_names) if label not in full]:
            ends = sorted(images.ignored)
            seen = f"; there are files of {_few(ends)}, and {' '.join(SUFFIXES)} are read" if ends else ""
            problems.append(f"{images.root}: class folders without an image: {_few(empty)}{seen}")
    return problems


def _linked(layout: Layout) -> Iterator[str]:
    """Folders that links make one: their images would be trained on and tested, or have two labels."""
    seen: dict[str, Path] = {}
    for place in layout.places.values():
        for folder in (place, *(place / name for name in _folders(place))):
            first = seen.setdefault(os.path.realpath(folder), folder)
            if first != folder:
                pair = " and ".join(told(str(each.relative_to(layout.root))) for each in (first, folder))
                yield f"{layout.root}: {pair} are one folder, by a link; an image must have one split and one class"
                if folder == place:
                    break


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def suffix_of(name: str) -> str:
    return Path(name).suffix.lower() or "no suffix"


def _drop_unlabelled(places: dict[Role, Path], notes: list[str]) -> None:
    """Test images in one folder that is none of the classes have no labels, as Kaggle's."""
    if "train" not in places or "test" not in places:
        return
    classes, found = _folders(places["train"]), _folders(places["test"])
    if len(found) == 1 and len(classes) > 1 and found[0] not in classes:
        notes.append(f"{places['test'].name}/ holds {found[0]}/ alone, which is no class, and is ignored")
        del places["test"]


def _is_like_split(name: str) -> bool:
    return _LIKE_SPLIT.search(name.strip().lower()) is not None


def _check_flat(root: Path, folders: Sequence[str]) -> None:
    """Refuses folders that would become classes, and are more likely splits, or what holds them.

    Raises:
        DataError: Says what to name or to rename instead.
    """
    like = [folder for folder in folders if _is_like_split(folder)]
    if like and root.resolve().name.lower() not in _WORDS.split("|"):  # whose content is classes, however named
        raise DataError(
            f"--data {root}: {_few([told(folder) for folder in like])} would be read as a class, and seems to be a "
            f"split: rename splits to train/ and val/; if it is a class, put all class folders into train/"
        )
    for folder in folders:
        if splits := [inner for inner in _folders(root / folder) if _is_like_split(inner)]:
            also = "" if len(folders) == 1 else "; or, if it is a class, put the classes below train/ and val/"
            raise DataError(
                f"--data {root}: {folder}/ would be read as a class, and holds {_few([told(name) for name in splits])}"
                f": name {root / folder}{also}"
            )
    if len(folders) == 1:
        only = root / folders[0]
        inner = [entry for entry in _entries(only) if not is_hidden(entry.name)]
        if sum(entry.is_dir() for entry in inner) and not any(is_image(entry.name) for entry in inner):
            raise DataError(f"--data {root}: {folders[0]}/ would be its one class, and holds folders: name {only}")


def _slashed(places: Iterable[Path]) -> str:
    return ", ".join(f"{place.name}/" for place in places)


def _few(names: Sequence[str]) -> str:
    if any(name != name.strip() or name != unicodedata.normalize("NFC", name) for name in names):
        names = [ascii(name) for name in names]  # which tells those apart that look alike
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error


def _folders(folder: Path, *, all_of_them: bool = False) -> list[str]:
    """Sorted names of what can be splits or classes in it.

    Args:
        all_of_them: Also those that are named as a network drive's own; else they are left out, unless all are.
    """
    names = _sorted(entry.name for entry in _entries(folder) if not is_hidden(entry.name) and entry.is_dir())
    others = [name for name in names if not _OF_A_DRIVE.match(name)]
    return names if all_of_them or not others else others


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(map(told, _folders(folder)))


def _sorted(names: Iterable[str]) -> list[str]:
    """In the order of their characters in UTF-8, whatever the locale."""
    return sorted(names, key=os.fsencode)


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


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _mark_of(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _itself_and_above(folder: Path) -> frozenset[tuple[int, int]]:
    """Marks of a folder and of all that it lies in, by its path and by where links lead."""
    path = folder.absolute()
    return frozenset(_mark_of(each) for start in (path, path.resolve()) for each in (start, *start.parents))


def _walk(
    folder: Path, outside: frozenset[tuple[int, int]], odd: list[str], above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, list[str]]]:
    """Folders below, itself included, and the names of their files; links are followed, but not in circles.

    Args:
        outside: Marks of the folders that the class lies in; links to them are not followed.
        odd: Takes a line for each link that leads there or nowhere, and for what is named as an image and is no file.
    """
    here = _mark_of(folder)
    if here in outside:
        odd.append(f"{told(str(folder))}: a link that leads up to {told(str(folder.resolve()))}, which it lies in")
        return
    if here in above:
        return
    files = []
    for entry in _entries(folder):
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, outside, odd, above | {here})
        elif entry.is_file() or not is_image(entry.name):
            if _leads_nowhere(entry):
                odd.append(f"{told(entry.path)}: a link that leads nowhere")
            files.append(entry.name)
        elif _leads_nowhere(entry):  # which on_error may skip
            files.append(entry.name)
        else:
            odd.append(f"{told(entry.path)}: is named as an image, and is no regular file but {_kind_of(entry)}")
    yield str(folder), files


def _kind_of(entry: os.DirEntry[str]) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(entry.stat().st_mode), "something else")
