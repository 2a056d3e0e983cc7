"""Where a run lies: at a path or a URL, and what this machine keeps of the latter."""

import contextlib
import getpass
import hashlib
import logging
import os
import tempfile
from functools import cache
from pathlib import Path

from cvt_nas.errors import StorageError


def is_url(place: str | Path) -> bool:
    return "://" in str(place)


def local_folder(url: str) -> Path:
    """Where this machine keeps what lies at `url`."""
    return cache_folder() / "runs" / hashlib.sha256(url.encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Where this machine keeps what can be made again, below `XDG_CACHE_HOME` or the home directory.

    Where that cannot be written, it is a folder of the user's own below the temporary directory, which is said once.
    Raises StorageError where that cannot be written either, or belongs to somebody else.
    """
    return _writable_cache(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), tempfile.gettempdir())


@cache
def _writable_cache(wanted: str, temporary: str) -> Path:
    folder = Path(wanted) / "cvt-nas"
    if folder.is_absolute() and can_write_to(folder):
        return folder
    instead = Path(temporary) / f"cvt-nas-{getattr(os, 'getuid', getpass.getuser)()}"
    with contextlib.suppress(OSError):
        instead.mkdir(mode=0o700)
    if not can_write_to(instead) or not _is_own(instead):
        raise StorageError(f"neither {folder} nor {instead} can be written; set XDG_CACHE_HOME to a folder that can")
    logging.getLogger("cvt_nas").warning("%s cannot be written: %s is used instead", folder, instead)
    return instead


def _is_own(folder: Path) -> bool:
    """Whether nobody else can have put it there, as in a temporary directory that all may write to."""
    return not hasattr(os, "getuid") or (not folder.is_symlink() and folder.stat().st_uid == os.getuid())


def can_write_to(folder: Path) -> bool:
    """Whether it is a folder that can be written, which it is made if it is missing."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK)
    return False
