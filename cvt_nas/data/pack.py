"""Copies of image folders as small JPEG files, for disks that are slower than processors."""

import contextlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

import numpy as np

from cvt_nas.data.channels import is_array
from cvt_nas.data.layout import find_layout
from cvt_nas.data.listing import list_images, problems_of
from cvt_nas.data.reading import read_header, read_image
from cvt_nas.data.records import Images, Role
from cvt_nas.data.transforms import resized
from cvt_nas.errors import DataError
from cvt_nas.escaping import told
from cvt_nas.run import check_target

QUALITY = 90
_SETTINGS = ".pack.json"  # hidden, so that it is no part of the data set
_NUM_NAMED = 5
_SECONDS_BETWEEN = 2.0
_START_OF_SCAN, _COMMENT, _APPLICATION = 0xDA, 0xFE, 0xE0  # markers of JPEG segments


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """Result of `pack`.

    Args:
        encoded: Number of images that were decoded, shrunk if they were large, and encoded.
        copied: Number of JPEG files that were small already and were copied without metadata.
        there: Number of images that an earlier call has written.
        damaged: Path below the data set of each unreadable image, and what is wrong with it.
        bytes_before, bytes_after: Bytes of all files that could be read.
    """

    encoded: int
    copied: int
    there: int
    damaged: dict[str, str]
    bytes_before: int
    bytes_after: int


def pack(
    root: Path,
    to: Path,
    *,
    short_side: int,
    on_error: Literal["raise", "skip"] = "raise",
    on_note: Callable[[str], None] | None = None,
) -> Packed:
    """Writes each image of the data set at `root` to `to` as a JPEG of quality 90, in the same folders.

    Images are read as module `reading` describes. If the shorter side exceeds `short_side`, the image is shrunk to it
    with antialiasing; no image is enlarged. The copy is turned as EXIF says, has 8 bits and no metadata. Its pixels
    differ from the original by a few of 255 on average. A JPEG that is small already is copied.

    The same call resumes a call that was cut off. No file is replaced.

    Args:
        short_side: Greatest length of the shorter side, in pixels.
        on_error: With `skip`, unreadable images are left out. With `raise`, they raise an error after all other
            images are written.

    Raises:
        DataError: `root` is no data set of class folders; `to` is a part of it, or holds something else; or images
            cannot be read and must not be skipped.
        StorageError: `to` is a URL.
    """
    check_target(to, called=f"--to {to}", makes_folders=True)
    from joblib import cpu_count

    layout = find_layout(root)
    files: dict[Role, Images] = {role: list_images(layout, role) for role in layout.places}
    if problems := problems_of(layout, files):
        raise DataError(f"{root}: {'; '.join(problems)}")
    if any(is_array(images.names[0]) for images in files.values()):
        raise DataError(f"{root}: holds arrays, which cannot be saved as JPEG without loss")
    _begin(layout.root, to, {"source": str(root.resolve()), "short_side": short_side, "quality": QUALITY})
    jobs = [
        (images.root / name, to / images.root.relative_to(layout.root) / new)
        for images in files.values()
        for name, new in zip(images.names, _new_names(images.names), strict=True)
    ]
    for folder in sorted({new.parent for _, new in jobs}):
        folder.mkdir(parents=True, exist_ok=True)
    kinds, damaged, sizes = Counter[str](), dict[str, str](), np.zeros(2, dtype=np.int64)
    said = time.monotonic()
    with ThreadPoolExecutor(cpu_count()) as threads:  # Pillow and torch work without Python's lock
        found = threads.map(lambda job: _packed(job[0], job[1], short_side), jobs)
        for number, ((path, new), kind) in enumerate(zip(jobs, found, strict=True), start=1):
            if isinstance(kind, DataError):
                damaged[told(str(path.relative_to(layout.root)))] = str(kind).removeprefix(f"{path}: ")
            else:
                kinds[kind] += 1
                sizes += path.stat().st_size, new.stat().st_size
            if on_note is not None and number < len(jobs) and time.monotonic() - said >= _SECONDS_BETWEEN:
                said = time.monotonic()
                on_note(f"packing images: {number:,} of {len(jobs):,}")
    if damaged and on_error == "raise":
        named = "; ".join(f"{path}: {why}" for path, why in list(damaged.items())[:_NUM_NAMED])
        more = f"; and {len(damaged) - _NUM_NAMED:,} more" if len(damaged) > _NUM_NAMED else ""
        raise DataError(
            f"{len(damaged):,} of {len(jobs):,} images cannot be read: {named}{more}; the others are packed: repair or "
            f"delete these, or leave them out by --on-error skip, and run the same command again"
        )
    before, after = sizes.tolist()
    return Packed(
        encoded=kinds["encoded"], copied=kinds["copied"], there=kinds["there"], damaged=damaged,
        bytes_before=before, bytes_after=after,
    )  # fmt: skip


def _begin(root: Path, to: Path, settings: dict[str, object]) -> None:
    """Checks that `to` is new, or was begun with the same settings. Creates it if it is new."""
    inner, outer = to.resolve(), root.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise DataError(f"--to {to}: must lie beside {root}, neither in it nor above it")
    kept = to / _SETTINGS
    if kept.is_file():
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known != settings:
            raise DataError(f"--to {to}: was packed as {known}, not as {settings}; name another folder")
        return
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise DataError(f"--to {to}: exists already; name a new folder")
    to.mkdir(parents=True, exist_ok=True)
    _write(kept, json.dumps(settings).encode())


def _new_names(names: Sequence[str]) -> list[str]:
    """Replaces suffixes by `.jpg`. If two names would become the same, `.jpg` is appended instead.

    More of them are appended to a name that another image or a folder has by then.
    """
    stems = [os.path.splitext(name)[0] for name in names]
    counts = Counter(stems)
    simple = [f"{stem if counts[stem] == 1 else name}.jpg" for name, stem in zip(names, stems, strict=True)]
    folders = {os.path.dirname(name) for name in names}
    taken = folders.union(*(map(str, PurePath(folder).parents) for folder in folders))
    found, reserved = [], taken.union(simple)
    for new in simple:
        if new in taken:
            while new in reserved:
                new += ".jpg"
            reserved.add(new)
        taken.add(new)
        found.append(new)
    return found


def _packed(path: Path, new: Path, short_side: int) -> str | DataError:
    """Writes one image. Returns how, or the error if it cannot be read."""
    from PIL import Image

    if new.exists():
        return "there"
    try:
        header = read_header(path)
        image = read_image(path, "L" if header.mode in ("1", "L", "F") or header.mode.startswith("I") else "RGB")
    except DataError as error:
        return error
    is_small = header.format == "JPEG" and min(header.size) <= short_side and header.mode in ("L", "RGB")
    if is_small and not header.turned and (content := without_metadata(path.read_bytes())) is not None:
        _write(new, content)
        return "copied"
    assert isinstance(image, Image.Image), "arrays were refused"
    width, height = image.size
    if min(width, height) > short_side:
        side = min(width, height)
        rows, columns = (max(round(each * short_side / side), short_side) for each in (height, width))
        pixels = resized(np.array(image).reshape(height, width, -1), rows, columns, "bicubic").numpy()
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    content = io.BytesIO()
    Image.fromarray(np.array(image)).save(content, "JPEG", quality=QUALITY)  # without its metadata
    _write(new, content.getvalue())
    return "encoded"


def without_metadata(content: bytes) -> bytes | None:
    """A JPEG file with the same pixels and without EXIF, comments and the like. None if it is built in another way.

    What decoding needs stays: of the application segments, those of JFIF, Adobe's transform and the colour profile.

    Source: ITU-T T.81, annex B, for the segments.
    """
    kept, at = [content[:2]], 2
    while content[at : at + 1] == b"\xff" and at + 4 <= len(content):
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == _START_OF_SCAN:
            return b"".join([*kept, content[at:]])
        if length < 2 or not 0xC0 <= marker < 0xFF:
            return None
        segment = content[at : at + 2 + length]
        is_extra = marker == _COMMENT or marker & 0xF0 == _APPLICATION
        if not is_extra or segment[4:].startswith((b"JFIF\0", b"Adobe", b"ICC_PROFILE\0")):
            kept.append(segment)
        at += len(segment)
    return None


def _write(path: Path, content: bytes) -> None:
    """Writes the whole file or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
