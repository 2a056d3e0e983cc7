"""Files that a crash leaves whole: written at once, or line by line."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cvt_nas.errors import RunFolderError


def write_atomically(path: Path, content: str | Callable[[Path], None]) -> None:
    """Writes a file so that a crash leaves the old one or the new one, never a part.

    Args:
        path: Where to; its folder exists.
        content: The text, or a function that writes the file at the path it is given.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    if isinstance(content, str):
        partial.write_text(content)
    else:
        content(partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def append_line(path: Path, tree: Mapping[str, Any]) -> None:
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size and _last_byte(file) != b"\n":  # a line torn by a crash: what follows must not join it
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(tree).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is nothing, or torn
    trees = []
    for number, line in enumerate(lines, start=1):
        try:
            trees.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RunFolderError(f"{path}:{number}: damaged: {error.msg}") from error
    return trees
