"""Record of what the networks of a run are worth in int8."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvt_nas.latency import Int8Runtime
from cvt_nas.results.int8 import Int8
from cvt_nas.run.records import Record
from cvt_nas.run.store import Store


class Int8Figures:
    """Figures of the networks whose weights the run keeps: of those that were exported in int8, and of those that
    `search.confirm.as` judges."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._record = Record(folder / "int8.jsonl", store, _parsed)

    def append(self, arch_id: str, found: Int8) -> None:
        """Appends a line to the record. It is on disk when this returns. The caller holds the lock of the run."""
        self._record.append({"arch_id": arch_id, **found.to_json()})

    def by_arch(self) -> dict[str, dict[Int8Runtime, Int8]]:
        """Figures by arch id and runtime. The last of several lines counts."""
        found: dict[str, dict[Int8Runtime, Int8]] = {}
        for arch_id, figures in self._record.read():
            found.setdefault(arch_id, {})[figures.runtime] = figures
        return found


def _parsed(tree: Mapping[str, Any]) -> tuple[str, Int8]:
    return str(tree["arch_id"]), Int8.from_json(tree)
