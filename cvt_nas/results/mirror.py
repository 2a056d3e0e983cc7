"""Copies of run folders elsewhere: in an object store, or on any file system that fsspec knows.

A run whose place is a URL lies in a folder of each machine that works on it, and what is written there goes to the URL
before it counts as written. What another machine wrote is fetched before it is read. The copy elsewhere is what
remains when a machine does not.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from cvt_nas.errors import StorageError

T = TypeVar("T")
_PATIENCE = 60.0  # seconds for which a store may be away
_SECONDS_BETWEEN_PUSHES = 5.0  # of a file that grows line by line, and of which nobody waits for the last
# one request replaces an object there; elsewhere it takes a file beside it, which is renamed
_REPLACES_AT_ONCE = {"s3", "s3a", "gs", "gcs", "abfs", "az", "memory"}


def is_url(place: str | Path) -> bool:
    return "://" in str(place)


def local_folder(url: str) -> Path:
    """Where this machine keeps what lies at `url`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "cvt-nas" / "runs" / hashlib.sha256(url.encode()).hexdigest()[:16]


class Mirror:
    """The copy at `url` of a local `folder`."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url.rstrip("/")
        self._late: dict[Path, float] = {}
        self._lock = threading.Lock()

    @cached_property
    def _fs(self) -> tuple[Any, str]:
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:  # a protocol whose package is missing, or none
            raise StorageError(f"{self.url}: {error}") from error

    def push(self, path: Path) -> None:
        """Copies a file there, whole or not at all."""
        fs, _ = self._fs
        there = self._there(path)

        def put() -> None:
            if self._protocol in _REPLACES_AT_ONCE:
                fs.put_file(str(path), there)
                return
            partial = f"{there}.{os.getpid()}.partial"
            fs.makedirs(there.rpartition("/")[0], exist_ok=True)
            fs.put_file(str(path), partial)
            fs.mv(partial, there)

        self._patiently(put)
        with self._lock:
            self._late.pop(path, None)

    def push_soon(self, path: Path) -> None:
        """As `push`, but not more often than every few seconds; `push_late` makes up for it."""
        now = time.monotonic()
        with self._lock:
            is_due = now - self._late.setdefault(path, now - _SECONDS_BETWEEN_PUSHES) >= _SECONDS_BETWEEN_PUSHES
        if is_due:
            self.push(path)
            with self._lock:
                self._late[path] = now

    def push_late(self) -> None:
        """What `push_soon` put off."""
        for path in list(self._late):
            if path.exists():
                self.push(path)

    def pull(self, path: Path) -> None:
        """Fetches a file or a folder, over what is here; nothing where there is none."""
        fs, _ = self._fs
        there = self._there(path)

        def get() -> None:
            fs.invalidate_cache()
            if fs.isdir(there):
                for name in fs.ls(there, detail=False):
                    self.pull(path / name.rstrip("/").rpartition("/")[2])
            elif fs.exists(there):
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
                fs.get_file(there, str(partial))
                partial.replace(path)

        self._patiently(get)

    def pull_records(self) -> None:
        """Fetches the files of the folder itself; of one that only grows, the longer is kept."""
        fs, root = self._fs

        def get() -> None:
            fs.invalidate_cache()
            for entry in fs.ls(root, detail=True) if fs.exists(root) else []:
                path = self.folder / entry["name"].rstrip("/").rpartition("/")[2]
                grows = path.suffix in (".jsonl", ".journal") and path.exists()
                if entry["type"] == "file" and not (grows and path.stat().st_size > entry["size"]):
                    self.pull(path)

        self._patiently(get)

    def read(self, path: Path) -> bytes | None:
        """What is there now; None for nothing."""
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

    def delete(self, path: Path) -> None:
        """A file or a folder, there alone."""
        fs, _ = self._fs
        if self.exists(path):
            self._patiently(lambda: fs.rm(self._there(path), recursive=True))

    def as_ray_storage(self, path: Path) -> dict[str, Any]:
        """Settings of Ray's `RunConfig` by which it keeps its own files at `path`, there."""
        import pyarrow.fs

        files = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs[0]))
        return {"storage_path": self._there(path), "storage_filesystem": files}

    @property
    def _protocol(self) -> str:
        protocol = self._fs[0].protocol
        return protocol if isinstance(protocol, str) else protocol[0]

    def _there(self, path: Path) -> str:
        return f"{self._fs[1]}/{path.relative_to(self.folder).as_posix()}"

    def _patiently(self, action: Callable[[], T]) -> T:
        deadline, pause = time.monotonic() + _PATIENCE, 0.2
        while True:
            try:
                return action()
            except PermissionError as error:
                raise StorageError(f"{self.url}: {error}") from error
            except Exception as error:
                if time.monotonic() > deadline:
                    raise StorageError(f"{self.url}: {error}") from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


_MIRRORS: dict[Path, Mirror] = {}


def add_mirror(folder: Path, url: str) -> Mirror:
    """From now on, what this process writes below `folder` goes to `url` as well."""
    if folder not in _MIRRORS:
        folder.mkdir(parents=True, exist_ok=True)
        _MIRRORS[folder] = Mirror(folder, url)
    return _MIRRORS[folder]


def mirror_of(path: Path) -> Mirror | None:
    """That of the folder which `path` lies in, if it has one."""
    return next((found for folder, found in _MIRRORS.items() if path.is_relative_to(folder)), None)
