"""Optuna's journal file, as it is used here: by one process at a time, on a disk that may be full or away."""

from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from cvt_nas.run import mirror_of, patiently, repair_last_line


def open_journal(path: Path) -> JournalStorage:
    return JournalStorage(_Backend(path))


class _Backend(JournalFileBackend):
    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        def append() -> None:
            repair_last_line(self._path)  # what an attempt before this one left
            super(_Backend, self).append_logs(logs)

        patiently(append)
        if (copy := mirror_of(self._path)) is not None:
            copy.push_soon(self._path)
