"""Files and folders of a data set on disk, without those of operating systems and tools."""

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cvt_nas.errors import DataError
from cvt_nas.escaping import told

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
_SYSTEM = re.compile(
    r"__macosx|__pycache__|lost\+found|system volume information|network trash folder|temporary items"
    r"|thumbs\.db(:.*)?|ehthumbs\.db|desktop\.ini|found\.\d{3}|msocache|thevolumesettingsfolder|_gsdata_|_vti_\w{3,7}"
    r"|\$(recycle\.bin|windows\.~\w\w|winreagent|sysreset|extend)|(?-i:RECYCLE[RD])"  # recycler may be a class
    r"|@(eadir|tmp|syno.*|recycle|recently-snapshot|snapshot|sharesnapshot|sharebin|gmt-.*)|[#~]snapshot|#recycle",
    re.IGNORECASE,
)
_OF_A_DRIVE = re.compile(r"@\w{2,}", re.ASCII)  # network drives begin the names of their own folders with @


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to an operating system, an editor or a tool, and is no image or class."""
    return name.startswith(".") or _SYSTEM.fullmatch(name) is not None


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def suffix_of(name: str) -> str:
    return Path(name).suffix.lower() or "no suffix"


def few(names: Sequence[str]) -> str:
    if any(name != name.strip() or name != unicodedata.normalize("NFC", name) for name in names):
        names = [ascii(name) for name in names]  # shows differences between names that look alike
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error


def folders_in(folder: Path, *, all_of_them: bool = False) -> list[str]:
    """Sorted names of the folders in `folder` that can be splits or classes.

    Folders of a network drive are left out, unless there are no others.

    Args:
        all_of_them: Whether to keep the folders of a network drive.
    """
    names = in_byte_order(entry.name for entry in entries_of(folder) if not is_hidden(entry.name) and entry.is_dir())
    others = [name for name in names if not _OF_A_DRIVE.match(name)]
    return names if all_of_them or not others else others


def class_names_in(folder: Path) -> tuple[str, ...]:
    return tuple(map(told, folders_in(folder)))


def in_byte_order(names: Iterable[str]) -> list[str]:
    """Sorts names by their bytes in UTF-8, independent of the locale."""
    return sorted(names, key=os.fsencode)


def leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def mark_of(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def itself_and_above(folder: Path) -> frozenset[tuple[int, int]]:
    """Marks of a folder and of all folders above it, by its path and by its resolved path."""
    path = folder.absolute()
    return frozenset(mark_of(each) for start in (path, path.resolve()) for each in (start, *start.parents))


def walk(
    folder: Path, outside: frozenset[tuple[int, int]], odd: list[str], above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, list[str]]]:
    """Yields `folder` and the folders below it, each with the names of its files. Links are followed, except circles.

    Args:
        outside: Marks of the folders above a class. Links to them are not followed.
        odd: Receives a line for each link that leads to such a folder or nowhere, and for each entry that is named like
            an image but is no file.
        above: Marks of the folders above `folder` that were visited.
    """
    here = mark_of(folder)
    if here in outside:
        odd.append(f"{told(str(folder))}: a link that leads up to {told(str(folder.resolve()))}, which it lies in")
        return
    if here in above:
        return
    files = []
    for entry in entries_of(folder):
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield from walk(folder / entry.name, outside, odd, above | {here})
        elif entry.is_file() or not is_image(entry.name):
            if leads_nowhere(entry):
                odd.append(f"{told(entry.path)}: a link that leads nowhere")
            files.append(entry.name)
        elif leads_nowhere(entry):  # on_error may skip it
            files.append(entry.name)
        else:
            odd.append(f"{told(entry.path)}: is named as an image, and is no regular file but {_kind_of(entry)}")
    yield str(folder), files


def _kind_of(entry: os.DirEntry[str]) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(entry.stat().st_mode), "something else")
