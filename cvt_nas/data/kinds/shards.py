"""Shards of WebDataset: tar files in which an image and its label share a name and differ in suffix."""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvt_nas.config import DataConfig
from cvt_nas.data.labels import USUAL, labels_of
from cvt_nas.data.library import library
from cvt_nas.data.listing import load_records, save_records
from cvt_nas.data.records import Images, Opener, Records, Role, role_of, split_by_role
from cvt_nas.data.sources import Encoded
from cvt_nas.data.tree import SUFFIXES, few, folders_in, in_byte_order, is_hidden, is_image
from cvt_nas.errors import DataError
from cvt_nas.escaping import told
from cvt_nas.run import cache_folder, write_atomically

SUFFIX = ".tar"
_SAMPLE = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<kind>[^/]+)")  # the library splits names in this way
_INDEX = 2  # version of the index of shards on disk
_NUM_THREADS = 8


def is_shards(place: Path) -> bool:
    """Whether `place` is a tar file, a pattern of tar files, or a folder with tar files and no class folders."""
    if not place.is_dir():
        return place.name.lower().endswith(SUFFIX)
    splits = [name for name in folders_in(place) if role_of(name) is not None]
    has_others = len(splits) < len(folders_in(place)) or any(folders_in(place / name) for name in splits)
    return not has_others and next(_shards_in(place), None) is not None


def opener_of(config: DataConfig, root: Path) -> Opener:
    del config
    return _Shards(folder=_folder_of(root))


def find(config: DataConfig, root: Path, *, on_note: Callable[[str], None] | None = None) -> Records:
    """Finds the samples of all shards, in order. Shards are scanned once, and again after one of them changes.

    Raises:
        DataError: A shard cannot be read, or a sample has no label.
    """
    shards, folder = _shards_of(root), _folder_of(root)
    states = [(shard, status.st_size, status.st_mtime_ns) for shard in shards for status in [(folder / shard).stat()]]
    stamp = json.dumps([_INDEX, str(root.resolve()), states, config.label_column, config.label_separator])
    kept = cache_folder() / f"shards-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.npz"
    if kept.is_file():
        return load_records(kept, root, opener_of(config, root))
    if on_note is not None:
        on_note(f"{root}: scanning {len(shards):,} shard{'s' if len(shards) > 1 else ''}, once")
    records = _records_of(config, root, shards)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, lambda to: save_records(records, to))
    return records


def _records_of(config: DataConfig, root: Path, shards: Sequence[str]) -> Records:
    folder = _folder_of(root)
    roles = {shard: _role_of(shard) for shard in shards}
    marked = {role for role in roles.values() if role is not None}
    if marked and (odd := [shard for shard, role in roles.items() if role is None]):
        raise DataError(f"{root}: some shards name a split, but these do not: {few(odd)}")
    ignored: list[str] = []
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        found = list(threads.map(lambda shard: list(_samples_in(folder, shard, config.label_column, ignored)), shards))
    samples = [sample for own in found for sample in own]
    counted = list(_counted(ignored))
    if not samples:
        raise DataError("; ".join([f"{root}: no shard holds an image", *counted]))
    if lost := [sample.name for sample in samples if sample.label is None]:
        where = "" if config.label_column is None else f" under {config.label_column}"
        raise DataError(
            f"{root}: {len(lost):,} of {len(samples):,} images have no label{where}, {lost[0]} the first: each "
            f"needs a file .cls, or a .json with one under {', '.join(USUAL)} or data.label_column"
        )
    labels = labels_of([sample.label for sample in samples], separator=config.label_separator, place=str(root))
    own_roles = [roles[shard] or "train" for shard, own in zip(shards, found, strict=True) for _ in own]
    return Records(
        root=root,
        class_names=labels.names,
        files=split_by_role(
            root,
            labels.names,
            np.array([sample.name for sample in samples], dtype=object),
            labels.values,
            np.array(own_roles, dtype=object),
            np.array([sample.extent for sample in samples], dtype=np.int64),
        ),
        opener=opener_of(config, root),
        notes=(*labels.notes, *(f"{root}: {line}" for line in counted)),
        is_marked=bool(marked),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sample:
    """An image in a shard.

    Args:
        name: Names of the shard and of the image in it.
        extent: Offset of the image in the shard, and its length, in bytes.
    """

    name: str
    extent: tuple[int, int]
    label: object


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shards:
    """Opener of images in uncompressed tar files."""

    folder: Path

    def source(self, images: Images, row: int) -> Encoded:
        name = images.names[row]
        assert images.extents is not None, "shards have them"
        offset, size = images.extents[row].tolist()
        path = self.folder / name[: name.index(f"{SUFFIX}/") + len(SUFFIX)]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return Encoded(name=f"{self.folder}/{name}", content=file.read(size))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error

    def sizes(self, images: Images) -> list[int]:
        assert images.extents is not None, "shards have them"
        return images.extents[:, 1].tolist()


def _counted(ignored: Sequence[str]) -> Iterator[str]:
    if ignored:
        are = "image is" if len(ignored) == 1 else "images are"
        yield (
            f"{len(ignored):,} {are} ignored, such as {told(in_byte_order(ignored)[0])}: WebDataset ends the name of a "
            f"sample at its first dot; rename those that are to be read"
        )


def _samples_in(folder: Path, shard: str, column: str | Sequence[str] | None, ignored: list[str]) -> Iterator[_Sample]:
    """Yields the samples of a shard in order. Consecutive files with the same name are one sample.

    Args:
        ignored: Receives the names of images that are not read, since a further dot ends the name of their sample.
    """
    try:
        with tarfile.open(folder / shard, "r:") as file:
            key, parts = "", dict[str, tarfile.TarInfo]()
            for member in file:
                match = _SAMPLE.fullmatch(member.name)
                if not member.isfile() or match is None or is_hidden(os.path.basename(member.name)):
                    continue
                if match["key"] != key:
                    yield from _sample_of(file, parts, shard, column)
                    key, parts = match["key"], {}
                parts[match["kind"].lower()] = member
                if "." in match["kind"] and is_image(match["kind"]):
                    ignored.append(f"{shard}/{member.name}")
            yield from _sample_of(file, parts, shard, column)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{folder / shard}: cannot be read as a tar file that is not compressed: {error}") from error


def _sample_of(
    file: tarfile.TarFile, parts: Mapping[str, tarfile.TarInfo], shard: str, column: str | Sequence[str] | None
) -> Iterator[_Sample]:
    image = next((member for kind, member in parts.items() if f".{kind}" in SUFFIXES), None)
    if image is None:
        return
    name = f"{shard}/{image.name}"

    def content(kind: str) -> bytes:
        opened = file.extractfile(parts[kind])
        return b"" if opened is None else opened.read()

    label: object = None
    if "cls" in parts and column is None:
        label = content("cls").decode(errors="replace").strip()
    elif "json" in parts:
        try:
            tree = json.loads(content("json"))
        except ValueError as error:
            raise DataError(f"{name}: its .json is damaged: {error}") from error
        keys = [column] if column is not None else USUAL
        label = next((tree[key] for key in keys if tree.get(key) is not None), None) if isinstance(tree, dict) else None
    yield _Sample(name=name, extent=(image.offset_data, image.size), label=label if label != "" else None)


def _shards_of(root: Path) -> list[str]:
    """Paths of shards below `_folder_of`, sorted. Shards of a pattern keep the pattern's order.

    Raises:
        DataError: Shards of a pattern are missing.
    """
    folder = _folder_of(root)
    if root.is_dir():
        return in_byte_order(_shards_in(root))
    if root.is_file():
        return [root.name]
    braceexpand = library("braceexpand", extra="webdataset", of=f"{root}: a pattern").braceexpand
    shards = list(braceexpand(str(root.relative_to(folder))))
    if lost := [shard for shard in shards if not (folder / shard).is_file()]:
        raise DataError(f"--data {root}: {len(lost):,} of {len(shards):,} shards are missing: {few(lost)}")
    return shards


def _shards_in(folder: Path) -> Iterator[str]:
    """Paths of shards in `folder` and in the folders directly below it."""
    for path in (*folder.glob(f"*{SUFFIX}"), *folder.glob(f"*/*{SUFFIX}")):
        below = path.relative_to(folder)
        if path.is_file() and not any(map(is_hidden, below.parts)):
            yield str(below)


def _folder_of(root: Path) -> Path:
    """The folder that names of shards are relative to. For a pattern, it is the folder before the first brace."""
    if "{" not in str(root):
        return root if root.is_dir() else root.parent
    return Path(str(root).partition("{")[0] + "_").parent


def _role_of(shard: str) -> Role | None:
    """Split of a shard by the words of its path, such as `imagenet-train-000001.tar` or `train/000001.tar`."""
    return next((role for word in re.split(r"[^a-z]+", shard.lower()) if (role := role_of(word)) is not None), None)
