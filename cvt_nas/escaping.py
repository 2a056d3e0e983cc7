"""Names of files as they are shown and recorded."""

import os
import re

# C0, DEL and C1, and what ends a line or turns the direction of what follows
_CONTROLS = "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
_SURROGATES = re.compile("[\ud800-\udfff]")


def told(name: str) -> str:
    """A name of the file system as it is shown and recorded: alike in every locale, and in one line.

    Bytes that are no UTF-8 are escaped, and characters that would do something to a terminal.
    """
    text = name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")
    return re.sub(_CONTROLS, _escaped, text)


def printable(text: str) -> str:
    """What a terminal shows of `text` without obeying it; lines that are indented by four spaces stay lines."""
    return re.sub(rf"(?!\n    ){_CONTROLS}", _escaped, text)


def why_no_text(path: str | os.PathLike[str]) -> str | None:
    """Why libraries that keep a path as text would fail on `path`, for people; None where they would not."""
    name = os.fspath(path)
    if not _SURROGATES.search(name):
        return None
    try:
        os.fsencode(name).decode("utf-8")
    except UnicodeError:
        return "is not UTF-8; take another name"
    return "cannot be read in the locale of this terminal, which is not UTF-8; set PYTHONUTF8=1 or LC_ALL=C.UTF-8"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
