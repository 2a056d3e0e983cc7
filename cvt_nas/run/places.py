"""Places of runs, which are paths or URLs, and this machine's folders for runs at URLs."""

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
    """This machine's folder for a run at `url`.

    Raises:
        StorageError: It cannot be written, or no other process would see what is written to `url`.
    """
    if url.startswith("memory:"):
        raise StorageError(f"{url}: is seen by one process only; give a path, or a URL such as s3://bucket/run")
    return cache_folder() / "runs" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """This machine's cache folder, below `XDG_CACHE_HOME` or the home directory.

    If that cannot be written, the cache is a folder of the user in the temporary directory, with a warning.

    Raises:
        StorageError: That folder cannot be written either, or belongs to somebody else.
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
    """Whether the folder is the user's own. In a shared temporary directory, others may have placed it."""
    return not hasattr(os, "getuid") or (not folder.is_symlink() and folder.stat().st_uid == os.getuid())


def can_write_to(folder: Path) -> bool:
    """Whether `folder` can be written. Creates it if it is missing."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK)
    return False
