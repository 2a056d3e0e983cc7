"""Records of a run: append-only files of lines."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from cvt_nas.errors import RunFolderError
from cvt_nas.results.trial import check_line
from cvt_nas.run.files import read_lines
from cvt_nas.run.store import Store

T = TypeVar("T")


class Record(Generic[T]):
    """A file with one value a line. `parse` reads a line, which may come from an untrusted source."""

    def __init__(self, path: Path, store: Store, parse: Callable[[Mapping[str, Any]], T]) -> None:
        self._path, self._store, self._parse = path, store, parse
        self._known: tuple[tuple[int, int] | None, list[T]] = None, []  # size and time of the file, and its values

    def append(self, tree: Mapping[str, object]) -> None:
        """Appends a line. It is on disk when this returns."""
        self._store.append(self._path, tree)

    def read(self) -> list[T]:
        """Reads all lines. An unchanged file is not read again. A last line torn by a crash is left out.

        Raises:
            RunFolderError: Another line is damaged.
        """
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return []
        mark = (status.st_size, status.st_mtime_ns)
        if mark != self._known[0]:
            self._known = mark, [self._parsed(*line) for line in enumerate(read_lines(self._path), start=1)]
        return self._known[1]

    def _parsed(self, number: int, tree: Mapping[str, Any]) -> T:
        try:
            return self._parse(tree)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RunFolderError(f"{self._path}:{number}: is no line of such a record: {error!r}") from error


def figure(tree: Mapping[str, Any], *, name: str) -> tuple[str, float]:
    """Id of an architecture, and its value of `name`."""
    check_line(tree)
    return str(tree["arch_id"]), float(tree[name])


def measured_of(tree: Mapping[str, Any]) -> tuple[str, float, float | None]:
    """Id of an architecture, its latency, and its memory. Earlier versions did not measure memory."""
    return (*figure(tree, name="p10_ms"), tree.get("measured_memory_mb"))
