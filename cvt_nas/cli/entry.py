"""The start and the end of a command: exit status, error messages, and output that works on every terminal."""

import argparse
import codecs
import contextlib
import errno
import io
import os
import re
import select
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cvt_nas.cli.arguments import build_parser
from cvt_nas.cli.output import write
from cvt_nas.errors import CvtNasError, DataError, SearchFailedError, SpaceFileError, StorageError, TrainingEndedError

_MOST_BYTES_OF_TMPDIR = 107 - len("/pymp-12345678/listener-12345678")
_NO_ROOM = {errno.EROFS, errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_WRITTEN = ("out", "to", "plot")  # options that name the output of a verb


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `cvt-nas`. Returns the exit status."""
    _print_whatever_the_locale()
    _leave_long_temporary_folder()
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else list(arguments))
        finally:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()  # now, since a failure could not be reported any more when Python ends
    except OSError as error:
        if not _drop_unwritable():
            raise
        if isinstance(error, BrokenPipeError):
            return 1
        write(f"cvt-nas: the output cannot be written: {error.strerror}", file=sys.stderr)
        return 2


def _run(words: Sequence[str]) -> int:
    options = build_parser().parse_args(words)
    try:
        _check_filled(words)
        return options.verb(options)
    except CvtNasError as error:
        problems = error.problems if isinstance(error, SpaceFileError) else (str(error),)
        _complain(*problems)
        return 1 if isinstance(error, SearchFailedError | TrainingEndedError) else 2
    except OSError as error:
        line = _line_of(error, options)
        if line is None:
            raise
        _complain(line)
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130


def _complain(first: str, *others: str) -> None:
    write(f"cvt-nas: {first}", *others, file=sys.stderr)


def _check_filled(words: Sequence[str]) -> None:
    """Refuses empty words. They would mean the current folder, but come from variables that are not set."""
    for before, word in zip(["", *words], words, strict=False):
        if not word or re.fullmatch("--[a-z-]+=", word):
            name = word.rstrip("=") or (before if before.startswith("--") else "an argument")
            raise DataError(f"{name}: is empty, as of a variable that is not set")


def _line_of(error: OSError, options: argparse.Namespace) -> str | None:
    """A line on an error at a path that the user named, or where nothing can be written. None if it is our own bug."""
    if isinstance(error, StorageError) and error.errno is None:
        return str(error)
    if isinstance(error, BrokenPipeError):
        return None
    where = None if error.filename is None else os.fsdecode(error.filename)
    near = {True: 0, False: 0}  # nearness of the nearest place that is written, and of the nearest other place
    for name, value in vars(options).items():
        for given in value if isinstance(value, list) else [value or "results" if name == "out" else value]:
            near[name in _WRITTEN] = max(near[name in _WRITTEN], _nearness(where, given))
    if isinstance(error, StorageError) or error.errno in _NO_ROOM or (near[True] and near[True] >= near[False]):
        what = "cannot be written: "
    elif near[False]:
        what = "cannot be read: "
    elif error.errno in _FORBIDDEN:
        what = ""
    else:
        return None
    return f"{'' if where is None else f'{where}: '}{what}{error.strerror}"


def _nearness(where: str | None, given: object) -> int:
    """How near `where` is to the path of an argument, which may be RUN:ID. 0 if neither contains the other."""
    if where is None or not isinstance(given, str | Path):
        return 0
    path = f"{os.path.abspath(where)}/"
    names = [f"{os.path.abspath(name)}/" for name in (str(given), str(given).rpartition(":")[0]) if name]
    return max(len(name) if path.startswith(name) else name.startswith(path) for name in names)


def _drop_unwritable() -> bool:
    """Discards the text of output streams that cannot be written. Returns whether there was such a stream."""
    found = False
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
            has_failed = _has_no_reader(stream.fileno())  # a stream without a buffer has dropped its text
        except OSError:
            has_failed = True
        if has_failed:
            found = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return found


def _has_no_reader(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)  # errors are always reported
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _leave_long_temporary_folder() -> None:
    """Replaces a long temporary folder for this process and those it starts.

    They create sockets in it, whose paths have at most 107 bytes.
    """
    long = tempfile.gettempdir()
    if len(os.fsencode(long)) <= _MOST_BYTES_OF_TMPDIR:
        return
    for short in ("/tmp", "/var/tmp"):
        if os.access(short, os.W_OK | os.X_OK):
            os.environ["TMPDIR"] = tempfile.tempdir = short
            write(f"note: TMPDIR {long} is too long for sockets: {short} is used instead", file=sys.stderr)
            return


def _print_whatever_the_locale() -> None:
    """Prints characters that the terminal's encoding lacks as escapes. Otherwise they would end the process."""
    codecs.register_error("cvt-nas", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):  # the stream is closed
                stream.reconfigure(errors="cvt-nas")


def _escaped(error: UnicodeError) -> tuple[bytes | str, int]:
    """Escapes for characters that cannot be encoded. A byte of a path that could not be decoded is printed as it is."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    escaped = [
        bytes([ord(char) - 0xDC00]) if "\udc80" <= char <= "\udcff" else char.encode("ascii", "backslashreplace")
        for char in part
    ]
    return b"".join(escaped), error.end
