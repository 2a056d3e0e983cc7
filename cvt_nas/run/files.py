"""Writes files that stay whole in a crash, at once or line by line."""

import contextlib
import errno
import io
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from typing_extensions import Buffer

from cvt_nas.errors import RunFolderError, StorageError
from cvt_nas.results.parsing import json_text, load_finite
from cvt_nas.run.places import is_url

_FOR_GOOD = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG,
    errno.ELOOP,
}  # fmt: skip
_AWAY = {errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EREMOTEIO}
T = TypeVar("T")
_PARTIAL = ".partial"
_BLOCK = 4096


def patiently(action: Callable[[], T], *, seconds: float = 60.0) -> T:
    """Repeats `action` while its file system is away, as a network file system may be.

    Raises:
        StorageError: The file system did not come back within `seconds`, is full, or cannot be written to.
    """
    deadline, pause = time.monotonic() + seconds, 0.1
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno not in _FOR_GOOD | _AWAY:
                raise
            if error.errno in _FOR_GOOD or time.monotonic() > deadline:
                raise StorageError(error.errno, error.strerror, error.filename) from error
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def check_target(file: str | Path, *, called: str = "", makes_folders: bool = False) -> None:
    """Checks, before work whose result will be written to `file`, that it can be.

    Args:
        called: What the message calls the file; its path by default.
        makes_folders: Whether the work makes the folder of `file`, or a folder at `file`. Then only a URL is refused.

    Raises:
        StorageError: `file` is a URL. Or its folder is missing or cannot be written to, or `file` is something other
            than a regular file.
    """
    url = re.sub("^([^/]{2,}:)/(?!/)", r"\1//", str(file))  # a `Path` of a URL has lost a slash
    file, why = Path(file), None
    folder = file.parent
    if is_url(url):
        called, why = called or url, "only a search writes to a URL; give a path"
    elif makes_folders:
        return
    elif not folder.is_dir():
        why = f"there is no folder {folder}"
    elif not os.access(folder, os.W_OK | os.X_OK):
        why = f"nothing can be written to {folder}"
    elif file.exists() and not file.is_file():
        why = "it is no regular file"
    if why is not None:
        raise StorageError(f"{called or file}: cannot be written: {why}")


def write_atomically(path: Path, content: str | Callable[[BinaryIO], object]) -> None:
    """Writes a file so that a crash leaves the old one or the new one, never a part.

    Args:
        path: Path of the file, in an existing folder.
        content: Text, or a function that writes to an open file.

    Raises:
        StorageError: See `patiently`.
    """
    patiently(lambda: _write_atomically(path, content))


def _write_atomically(path: Path, content: str | Callable[[BinaryIO], object]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with _File(partial, "wb") as file:
            try:
                if isinstance(content, str):
                    file.write(content.encode("utf-8", "surrogateescape"))
                else:
                    content(cast(BinaryIO, file))
                os.fsync(file.fileno())
            except Exception:
                if file.error is not None:
                    raise file.error  # noqa: B904  the cause, in place of a library's own error
                raise
        partial.replace(path)
    except BaseException as error:  # a partial file would keep a full disk full
        if isinstance(error, OSError):
            error.filename = str(path)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


class _File(io.FileIO):
    """A file that remembers why a write failed, since some libraries drop the reason."""

    error: OSError | None = None

    def write(self, data: Buffer) -> int:
        view, done = memoryview(data).cast("B"), 0
        while done < len(view):
            try:
                done += super().write(view[done:]) or 0
            except OSError as error:
                error.filename, self.error = self.name, error
                raise
        return done


def remove_partials(folder: Path) -> None:
    """Deletes partial files of killed processes. No process may be at work in `folder` or below."""
    for partial in folder.rglob(f".*{_PARTIAL}"):
        partial.unlink(missing_ok=True)


def append_line(path: Path, tree: Mapping[str, object]) -> None:
    """Appends a line. It is on disk when this returns.

    Raises:
        StorageError: See `patiently`. `read_lines` will not see a part of the line.
    """

    def append() -> None:
        repair_last_line(path)
        with _File(path, "ab") as file:
            end = file.tell()
            try:
                file.write(json_text(tree).encode() + b"\n")
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)  # otherwise, the next attempt would add the line twice
                raise

    patiently(append)


def repair_last_line(path: Path) -> None:
    """Cuts off a last line that was torn by a crash or a full disk. The next line would otherwise join it."""
    if path.exists() and (whole := end_of_lines(path)) < path.stat().st_size:
        os.truncate(path, whole)


def read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # text after the last newline is torn
    trees = []
    for number, line in enumerate(lines, start=1):
        try:
            trees.append(load_finite(line))
        except ValueError as error:
            raise RunFolderError(f"{path}:{number}: damaged: {error}") from error
    return trees


def end_of_lines(path: Path) -> int:
    """Offset of the end of the last whole line. Bytes after it are torn or still being written."""
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        while at:
            begin = max(at - _BLOCK, 0)
            file.seek(begin)
            newline = file.read(at - begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            at = begin
    return 0


def read_between(path: Path, begin: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)
