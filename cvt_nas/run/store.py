"""Storage of a run's files: on this machine and, for a run at a URL, in a mirror for other machines."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from cvt_nas.run.files import append_line, write_atomically
from cvt_nas.run.mirror import Mirror, RayStorage
from cvt_nas.run.places import is_url, local_folder


class Store:
    """The files of a run.

    A file counts as written once it is in the mirror. Files of other machines are fetched before they are read.

    Args:
        mirror: Mirror of the run folder; None for a run on this machine only.

    Raises:
        StorageError: Every method raises it if the disk is full or the mirror does not answer.
    """

    def __init__(self, mirror: Mirror | None = None) -> None:
        self._mirror = mirror

    def url_of(self, path: Path) -> str | None:
        """URL of a file or folder in the mirror; None without a mirror."""
        return None if self._mirror is None else self._mirror.url_of(path)

    def place_of(self, path: Path) -> str:
        """Name of a file or folder for users: its URL, or else its path."""
        return self.url_of(path) or str(path)

    def write(self, path: Path, content: str | Callable[[BinaryIO], object]) -> None:
        """Writes a file whole or not at all; see `write_atomically`."""
        write_atomically(path, content)
        self.push(path)

    def append(self, path: Path, tree: Mapping[str, object]) -> None:
        """Appends a line to a record. It is on disk when this returns; see `append_line`."""
        append_line(path, tree)
        if self._mirror is not None:
            self._mirror.push_late()  # first the files that the line is about, so that the record is never ahead
            self._mirror.push(path)

    def push(self, path: Path) -> None:
        """Copies a local file to the mirror."""
        if self._mirror is not None:
            self._mirror.push(path)

    def push_soon(self, path: Path) -> None:
        """Pushes a growing file, but not too often; see `Mirror.push_soon`."""
        if self._mirror is not None:
            self._mirror.push_soon(path)

    def fetch(self, path: Path) -> None:
        """Fetches a file or folder that another machine may have written."""
        if self._mirror is not None:
            self._mirror.pull(path)

    def refresh(self, folder: Path) -> None:
        """Fetches the files of a folder, without folders below it."""
        if self._mirror is not None:
            self._mirror.pull_records(folder)

    def exists(self, path: Path) -> bool:
        """Whether a file exists, here or in the mirror."""
        return path.exists() or (self._mirror is not None and self._mirror.exists(path))

    def holds_files(self, folder: Path) -> bool:
        """Whether any file lies below a folder, here or in the mirror."""
        if any(path.is_file() for path in folder.rglob("*")):
            return True
        return self._mirror is not None and self._mirror.holds_files(folder)

    def read_newest(self, path: Path) -> bytes | None:
        """Current content of a file, from the mirror if there is one; None if there is no such file."""
        if self._mirror is not None:
            return self._mirror.read(path)
        return path.read_bytes() if path.exists() else None

    def delete(self, path: Path) -> None:
        """Deletes a file or folder here and in the mirror, if it exists."""
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if self._mirror is not None:
            self._mirror.delete(path)

    def forget(self, folder: Path) -> None:
        """Forgets what is known of the files below `folder`, which were replaced."""
        if self._mirror is not None:
            self._mirror.forget(folder)

    def give_up(self, reason: str) -> None:
        """Makes every later write to the mirror raise StorageError."""
        if self._mirror is not None:
            self._mirror.given_up = reason

    def finish(self, folder: Path) -> None:
        """Turns the records below `folder` into whole files in the mirror; see `Mirror.finish`."""
        if self._mirror is not None:
            self._mirror.finish(folder)

    def ray_storage(self, folder: Path) -> RayStorage:
        """Settings with which all nodes find Ray's own files in `folder`."""
        return {"storage_path": str(folder)} if self._mirror is None else self._mirror.as_ray_storage(folder)


def path_and_store(place: str | Path) -> tuple[Path, Store]:
    """The folder of a run at a path or URL on this machine, and the store of its files."""
    if not is_url(place):
        return Path(place).absolute(), Store()
    folder = local_folder(str(place))
    folder.mkdir(parents=True, exist_ok=True)
    return folder, Store(Mirror(folder, str(place)))
