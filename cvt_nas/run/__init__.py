"""A run on disk, or behind a URL: its folder, its files, its lock and its clock.

`RunFolder` is the only code that knows file names under `results/`.
"""

from cvt_nas.run.files import delete, exists, fetch, patiently, push, repair_last_line, write_atomically
from cvt_nas.run.folder import RunFolder
from cvt_nas.run.mirror import add_mirror, cache_folder, can_write_to, is_url, mirror_of

__all__ = [
    "RunFolder",
    "add_mirror",
    "cache_folder",
    "can_write_to",
    "delete",
    "exists",
    "fetch",
    "is_url",
    "mirror_of",
    "patiently",
    "push",
    "repair_last_line",
    "write_atomically",
]
