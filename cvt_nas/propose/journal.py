"""Optuna's journal file for one process at a time, on a disk that may be full or away."""

from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from cvt_nas.run import Store, patiently, repair_last_line


def open_journal(path: Path, store: Store) -> JournalStorage:
    return JournalStorage(_Backend(path, store))


class _Backend(JournalFileBackend):
    def __init__(self, path: Path, store: Store) -> None:
        super().__init__(str(path))
        self._path, self._store = path, store

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        def append() -> None:
            repair_last_line(self._path)  # an earlier attempt may have torn it
            super(_Backend, self).append_logs(logs)

        patiently(append)
        self._store.push_soon(self._path)
