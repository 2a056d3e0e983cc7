"""The command line: verbs, nothing else.

Exit status: 0 done, 1 failed, as a search that found nothing, 2 a mistake of the user's, with its message and no
traceback; 130 after Ctrl-C.
"""

import codecs
import contextlib
import errno
import io
import os
import sys
import tempfile
from collections.abc import Sequence

from cvt_nas.cli.arguments import build_parser
from cvt_nas.errors import CvtNasError, SearchFailedError, StorageError

_MOST_BYTES_OF_TMPDIR = 107 - len("/pymp-12345678/listener-12345678")
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `cvt-nas`; returns the exit status."""
    _print_whatever_the_locale()
    _leave_long_temporary_folder()
    options = build_parser().parse_args(arguments)
    try:
        return options.verb(options)
    except SearchFailedError as error:
        print(f"cvt-nas: {error}", file=sys.stderr)
        return 1
    except (CvtNasError, StorageError) as error:
        print(f"cvt-nas: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"cvt-nas: {where}cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cvt-nas: interrupted", file=sys.stderr)
        return 130


def _leave_long_temporary_folder() -> None:
    """Takes a short one for this process and those it starts: sockets of theirs lie in it, with paths of 107 bytes."""
    long = tempfile.gettempdir()
    if len(os.fsencode(long)) <= _MOST_BYTES_OF_TMPDIR:
        return
    for short in ("/tmp", "/var/tmp"):
        if os.access(short, os.W_OK | os.X_OK):
            os.environ["TMPDIR"] = tempfile.tempdir = short
            print(f"note: TMPDIR {long} is too long for sockets: {short} is used instead", file=sys.stderr)
            return


def _print_whatever_the_locale() -> None:
    """Lets text that the terminal's encoding lacks be printed as escapes instead of ending the process."""
    codecs.register_error("cvt-nas", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):  # it is closed
                stream.reconfigure(errors="cvt-nas")


def _escaped(error: UnicodeError) -> tuple[bytes | str, int]:
    """What stands for a character that cannot be encoded; a byte of a path that could not be decoded is that byte."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    escaped = [
        bytes([ord(char) - 0xDC00]) if "\udc80" <= char <= "\udcff" else char.encode("ascii", "backslashreplace")
        for char in part
    ]
    return b"".join(escaped), error.end
