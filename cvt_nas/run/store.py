"""Where the files of a run are kept: on this machine and, for a run at a URL, where other machines find them."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from cvt_nas.run.files import append_line, write_atomically
from cvt_nas.run.mirror import Mirror, RayStorage


class Store:
    """The files of a run.

    What is written goes to the mirror before it counts as written. What another machine wrote is fetched before it is
    read.

    Args:
        mirror: Of the run folder; None for a run on this machine alone.

    Raises:
        StorageError: By every method, where the disk is full or the store does not answer.
    """

    def __init__(self, mirror: Mirror | None = None) -> None:
        self._mirror = mirror

    def url_of(self, path: Path) -> str | None:
        """Where a file or folder is mirrored to."""
        return None if self._mirror is None else self._mirror.url_of(path)

    def place_of(self, path: Path) -> str:
        """What a user knows a file or folder by: its URL, or else its path."""
        return self.url_of(path) or str(path)

    def write(self, path: Path, content: str | Callable[[BinaryIO], object]) -> None:
        """Writes a file whole or not at all; see `write_atomically`."""
        write_atomically(path, content)
        self.push(path)

    def append(self, path: Path, tree: Mapping[str, object]) -> None:
        """Adds a line to a record, on disk when this returns; see `append_line`."""
        append_line(path, tree)
        if self._mirror is not None:
            self._mirror.push_late()  # of what it is about, so that it is never ahead
            self._mirror.push(path)

    def push(self, path: Path) -> None:
        """Copies a file that is here to the mirror."""
        if self._mirror is not None:
            self._mirror.push(path)

    def push_soon(self, path: Path) -> None:
        """As `push`, for a file that grows line by line; see `Mirror.push_soon`."""
        if self._mirror is not None:
            self._mirror.push_soon(path)

    def fetch(self, path: Path) -> None:
        """Brings a file or folder here, as another machine may have written it."""
        if self._mirror is not None:
            self._mirror.pull(path)

    def refresh(self, folder: Path) -> None:
        """Fetches the files of a folder, but not of those below it."""
        if self._mirror is not None:
            self._mirror.pull_records(folder)

    def exists(self, path: Path) -> bool:
        """Whether a file is here, or where another machine may have written it."""
        return path.exists() or (self._mirror is not None and self._mirror.exists(path))

    def holds_files(self, folder: Path) -> bool:
        """Whether any file lies below a folder, here or where another machine may have written it."""
        if any(path.is_file() for path in folder.rglob("*")):
            return True
        return self._mirror is not None and self._mirror.holds_files(folder)

    def read(self, path: Path) -> str | None:
        """What a file holds, on whatever machine it was written; None where there is none."""
        if not self.exists(path):
            return None
        if not path.exists():
            self.fetch(path)
        return path.read_text(encoding="utf-8")

    def read_newest(self, path: Path) -> bytes | None:
        """What a file holds now, where there is a mirror as that has it; None where there is none."""
        if self._mirror is not None:
            return self._mirror.read(path)
        return path.read_bytes() if path.exists() else None

    def delete(self, path: Path) -> None:
        """A file or folder, if it is there, here and elsewhere."""
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if self._mirror is not None:
            self._mirror.delete(path)

    def finish(self, folder: Path) -> None:
        """Leaves the records below `folder` as whole files in the mirror; see `Mirror.finish`."""
        if self._mirror is not None:
            self._mirror.finish(folder)

    def ray_storage(self, folder: Path) -> RayStorage:
        """Settings by which all nodes find Ray's own files in `folder`."""
        return {"storage_path": str(folder)} if self._mirror is None else self._mirror.as_ray_storage(folder)
