"""Copies of run folders in an object store, or on any other file system that fsspec knows.

Each machine that works on a run at a URL has a folder for it. The copy at the URL survives the loss of a machine.

A growing record is sent in pieces. Each piece holds the lines since the last one, and absorbs earlier pieces that are
not longer than itself. So the number of pieces, and how often each byte is sent, grow only with the logarithm of the
number of additions. When work on a run ends, the first piece absorbs all others. The first piece has the record's own
name; `trials.jsonl.000000001234` is a piece that begins at byte 1234.
"""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from cvt_nas.errors import StorageError
from cvt_nas.run.files import end_of_lines, read_between

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

T = TypeVar("T")
_PATIENCE = 60.0  # seconds for which a store may be away
_SECONDS_BETWEEN_PUSHES = 5.0  # for a growing file whose last line is not urgent
_GROWING = (".jsonl", ".journal")
_PIECE = re.compile(r"(.+\.(?:jsonl|journal))\.(\d{12,})")
# locks of this machine's processes, the marks of their holders and partial files are not read from a store like others
_NEVER_READ = re.compile(r"lock|holder\.json|.+\.journal\.lock.*|.+\.partial")
# these stores replace an object with one request; elsewhere, a partial file is written and renamed
_REPLACES_AT_ONCE = {"s3", "s3a", "gs", "gcs", "abfs", "az", "memory"}


class RayStorage(TypedDict, total=False):
    """Settings of Ray's `RunConfig` that say where Ray keeps its own files."""

    storage_path: str
    storage_filesystem: "FileSystem"


def path_below(folder: Path, name: str, where: str) -> Path:
    """Path of an entry directly below `folder`, whose `name` came from a file or a store.

    Raises:
        StorageError: It is no plain name, or a link that leads out of the run folder.
    """
    path = folder / name
    if not name or name in (".", "..") or re.search(r"[/\\\0]|^[A-Za-z]:", name):
        raise StorageError(f"{where}: holds an object named {name!r}, which could be written outside the run folder")
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise StorageError(f"{where}: {path} is a link that leads out of the run folder")
    return path


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """A piece of a growing record: the bytes from `offset` to `end`."""

    offset: int
    end: int

    def name_of(self, path: Path) -> str:
        return path.name if self.offset == 0 else f"{path.name}.{self.offset:012}"


class Mirror:
    """The copy at `url` of a local `folder`."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url.rstrip("/")
        self.given_up: str | None = None  # why nothing is written to the URL any more
        self._late: dict[Path, float] = {}
        self._pieces: dict[Path, list[_Piece]] = {}  # pieces of records at the URL
        self._compared: set[Path] = set()  # records whose local copies were compared with the URL
        self._lock, self._growing = threading.Lock(), threading.RLock()

    def url_of(self, path: Path) -> str:
        below = path.relative_to(self.folder).as_posix()
        return self.url if below == "." else f"{self.url}/{below}"

    @cached_property
    def _fs(self) -> tuple[Any, str]:  # fsspec's types declare text, but it returns bytes
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:  # an unknown protocol, or one whose package is missing
            raise StorageError(f"{self.url}: {error}") from error

    def push(self, path: Path) -> None:
        """Copies a file to the URL, whole or not at all. For a growing record, only new lines are sent."""
        if path.suffix in _GROWING:
            with self._growing:
                self._push_added(path)
        else:
            self._put(self._there(path), lambda there: self._fs[0].put_file(str(path), there))
        with self._lock:
            self._late.pop(path, None)

    def _put(self, there: str, write: Callable[[str], object]) -> None:
        """Calls `write` for `there`, so that other readers find the old object or the new one."""
        fs, _ = self._fs
        self._check_not_given_up()

        def put() -> None:
            if self._protocol in _REPLACES_AT_ONCE:
                write(there)
                return
            partial = f"{there}.{os.getpid()}.partial"
            fs.makedirs(there.rpartition("/")[0], exist_ok=True)
            write(partial)
            fs.mv(partial, there)

        self._patiently(put)

    def _push_added(self, path: Path, *, whole: bool = False) -> None:
        """Sends the new whole lines of a record as a piece.

        An interruption does no harm: a piece replaces the first one that it absorbs, and only then the others are
        deleted. So the pieces at the URL always give the same lines.

        Args:
            whole: Whether the piece absorbs all others.

        Raises:
            StorageError: The record at the URL has other lines than the local one, so nothing can be added.
        """
        if (pieces := self._pieces.get(path)) is None or whole:
            pieces = self._patiently(lambda: self._listed(path.parent)[1].get(path, []))
        if pieces and path not in self._compared:
            _, there = self._patiently(lambda: self._fetched(path, _in_order(pieces), 0))
            if not path.read_bytes().startswith(there):
                raise StorageError(
                    f"{self.url}: {path.relative_to(self.folder)} there has lines that are not here: another machine "
                    f"has worked on the run; begin the command again, which fetches them"
                )
            self._compared.add(path)
        left, end = _in_order(pieces), end_of_lines(path)
        begin = left[-1].end if left else 0
        if end < begin or (end == begin and not (whole and len(pieces) > 1)):
            return
        while left and (whole or left[-1].end - left[-1].offset <= end - begin):
            begin = left.pop().offset
        piece = _Piece(offset=begin, end=end)
        folder = self._there(path.parent)
        content = read_between(path, begin, end)
        self._put(f"{folder}/{piece.name_of(path)}", lambda there: self._fs[0].pipe_file(there, content))
        self._pieces[path] = [*left, piece]
        self._compared.add(path)
        for taken in pieces:
            if taken.offset > begin:
                self._patiently(lambda taken=taken: self._remove(f"{folder}/{taken.name_of(path)}"))

    def _remove(self, there: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs[0].rm_file(there)

    def push_soon(self, path: Path) -> None:
        """Pushes a file, but at most every few seconds. `push_late` sends the rest."""
        now = time.monotonic()
        with self._lock:
            is_due = now - self._late.setdefault(path, now - _SECONDS_BETWEEN_PUSHES) >= _SECONDS_BETWEEN_PUSHES
        if is_due:
            self.push(path)
            with self._lock:
                self._late[path] = now

    def push_late(self) -> None:
        """Pushes files that `push_soon` has postponed."""
        for path in list(self._late):
            if path.exists():
                self.push(path)

    def finish(self, folder: Path) -> None:
        """Turns the records below `folder` at the URL into whole files."""
        self.push_late()
        with self._growing:
            for path in list(self._pieces):
                if path.is_relative_to(folder) and path.exists():
                    self._push_added(path, whole=True)

    def forget(self, folder: Path) -> None:
        """Forgets what is known of the files below a local folder, which were replaced."""
        with self._growing, self._lock:
            for known in (self._late, self._pieces):
                for path in [path for path in known if path.is_relative_to(folder)]:
                    del known[path]
            self._compared = {path for path in self._compared if not path.is_relative_to(folder)}

    def pull(self, path: Path) -> None:
        """Fetches a file or a folder over the local one. It does nothing if the URL has none.

        Raises:
            StorageError: The store does not answer, or has a name that leads elsewhere.
        """
        fs, _ = self._fs
        there = self._there(path)

        def get() -> None:
            fs.invalidate_cache()
            if path.suffix in _GROWING:
                self._pull_record(path, self._listed(path.parent)[1].get(path, []))
            elif fs.isdir(there):
                others, records = self._listed(path)
                for found in others:
                    self.pull(found)
                for found, pieces in records.items():
                    self._pull_record(found, pieces)
            elif fs.exists(there):
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
                fs.get_file(there, str(partial))
                partial.replace(path)

        self._patiently(get)

    def pull_records(self, folder: Path) -> None:
        """Fetches the files of a folder, without folders below it. For a record, only missing lines are fetched."""

        def get() -> None:
            others, records = self._listed(folder)
            for path, kind in others.items():
                if kind == "file":
                    self.pull(path)
            for path, pieces in records.items():
                self._pull_record(path, pieces)

        self._patiently(get)

    def _listed(self, folder: Path) -> tuple[dict[Path, str], dict[Path, list[_Piece]]]:
        """Lists `folder` at the URL: the kind of each entry, `file` or `directory`, and the pieces of each record.

        Locks and partial files are left out, since a lock from the URL would replace one that is held here.
        """
        fs, _ = self._fs
        fs.invalidate_cache()
        there = self._there(folder)
        others: dict[Path, str] = {}
        records: dict[Path, list[_Piece]] = {}
        for entry in fs.ls(there, detail=True) if fs.exists(there) else []:
            kind, whole = entry["type"], entry["name"]
            name = whole[len(there) + 1 :] if whole.startswith(f"{there}/") else whole.rpartition("/")[2]
            if kind == "file" and whole.rstrip("/") == there:
                continue  # some tools mark folders by empty objects
            path = path_below(folder, name if len(name) < 2 else name.removesuffix("/"), self.url)
            if _NEVER_READ.fullmatch(path.name):
                continue
            piece = _PIECE.fullmatch(path.name)
            if kind == "file" and (piece or path.suffix in _GROWING):
                of, offset = (folder / piece[1], int(piece[2])) if piece else (path, 0)
                records.setdefault(of, []).append(_Piece(offset=offset, end=offset + entry["size"]))
            else:
                others[path] = kind
        return others, records

    def _pull_record(self, path: Path, pieces: list[_Piece]) -> None:
        """Makes the local record equal to the one at the URL, unless it only has further lines that were not sent.

        If lines differ, another machine has worked on the run since, and its lines win.
        """
        with self._growing:
            whole = _in_order(pieces)
            if not whole:
                return
            size = path.stat().st_size if path.exists() else 0
            known = size if path in self._compared else 0
            if whole[-1].end > known or path not in self._compared:
                begin, content = self._fetched(path, [piece for piece in whole if piece.end > known], known)
                here = path.read_bytes() if path.exists() else b""
                if not here[begin:].startswith(content):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
                    partial.write_bytes(here[:begin] + content)
                    partial.replace(path)
            self._compared.add(path)
            self._pieces[path] = pieces

    def _fetched(self, path: Path, pieces: list[_Piece], known: int) -> tuple[int, bytes]:
        """Returns the content of `pieces` and its offset, which is at most `known`."""
        fs, _ = self._fs
        folder, content = self._there(path.parent), bytearray()
        begin = min(pieces[0].offset, known) if pieces else known
        for piece in pieces:
            end = begin + len(content)
            if piece.offset > end:
                raise FileNotFoundError(f"{folder}/{path.name}: lacks the bytes from {end} to {piece.offset}")
            content += fs.cat_file(f"{folder}/{piece.name_of(path)}")[end - piece.offset :]
        return begin, bytes(content)

    def read(self, path: Path) -> bytes | None:
        """Content of a file at the URL now; None if there is none."""
        fs, _ = self._fs

        def get() -> bytes | None:
            fs.invalidate_cache()
            try:
                return fs.cat_file(self._there(path))
            except FileNotFoundError:
                return None

        return self._patiently(get)

    def exists(self, path: Path) -> bool:
        fs, _ = self._fs
        fs.invalidate_cache()
        return self._patiently(lambda: fs.exists(self._there(path)))

    def holds_files(self, folder: Path) -> bool:
        """Whether any file lies below a folder. Locks and partial files do not count."""

        def look(folder: Path) -> bool:
            others, records = self._listed(folder)
            return bool(records) or any(kind == "file" or look(path) for path, kind in others.items())

        return self._patiently(lambda: look(folder))

    def delete(self, path: Path) -> None:
        """Deletes a file or a folder at the URL.

        Files are deleted one by one, since `rm` of many file systems takes `[`, `*` and `?` for patterns.
        """
        fs, _ = self._fs
        there = self._there(path)

        def delete() -> None:
            fs.invalidate_cache()
            found = fs.find(there, withdirs=True, detail=True)
            for name in sorted(found, reverse=True):  # what is in a folder before the folder
                if found[name].get("type") != "directory":
                    self._remove(name)
                elif self._protocol not in _REPLACES_AT_ONCE:  # they have no folders
                    fs.rmdir(name)

        self._check_not_given_up()
        if self.exists(path):
            self._patiently(delete)

    def _check_not_given_up(self) -> None:
        if self.given_up is not None:
            raise StorageError(self.given_up)

    def as_ray_storage(self, path: Path) -> RayStorage:
        """Settings with which Ray keeps its own files at `path` of the URL."""
        import pyarrow.fs

        files = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs[0]))
        return {"storage_path": self._there(path), "storage_filesystem": files}

    @property
    def _protocol(self) -> str:
        protocol = self._fs[0].protocol
        return protocol if isinstance(protocol, str) else protocol[0]

    def _there(self, path: Path) -> str:
        below = path.relative_to(self.folder).as_posix()
        return self._fs[1] if below == "." else f"{self._fs[1]}/{below}"

    def _patiently(self, action: Callable[[], T]) -> T:
        deadline, pause = time.monotonic() + _PATIENCE, 0.2
        while True:
            try:
                return action()
            except StorageError:
                raise
            except PermissionError as error:
                raise StorageError(f"{self.url}: {error}") from error
            except Exception as error:
                if time.monotonic() > deadline:
                    raise StorageError(f"{self.url}: {error}") from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def _in_order(pieces: Iterable[_Piece]) -> list[_Piece]:
    """Sorts pieces, and drops those whose bytes are all in earlier ones."""
    found: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: (piece.offset, piece.end)):
        if not found or piece.end > found[-1].end:
            found.append(piece)
    return found
