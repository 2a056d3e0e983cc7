"""A run on disk or behind a URL: its folder, files, lock and clock.

`RunFolder` is the only code that knows file names under `results/`.
"""

from cvt_nas.run.files import check_target, patiently, repair_last_line, write_atomically
from cvt_nas.run.folder import RunFolder
from cvt_nas.run.places import cache_folder, can_write_to, is_url
from cvt_nas.run.store import Store
