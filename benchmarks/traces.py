"""What `peers.py` keeps of its searches: one line of JSON for each, below a line that says what was searched.

A search is kept as soon as it has ended, so a comparison can be stopped at any moment. What is kept is not run again.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cvt_nas.bench import Settings, Table, Trace
from cvt_nas.errors import TableError

Key = tuple[str, int]  # the name of a method, and a seed


def read_traces(path: Path, table: Table, settings: Settings) -> dict[Key, Trace]:
    """The searches that are kept in `path`; none if there is no such file. A line that was cut off is left out.

    Raises:
        TableError: They are of another table, or of other settings.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    records = [record for line in lines if (record := _parsed(line)) is not None]
    if not records:
        return {}
    came, right = records[0], _heading(table, settings)
    if came != right:
        names = ", ".join(name for name in right if came.get(name) != right[name])
        raise TableError(f"--keep {path}: keeps searches of other {names}; name another file")
    return {(record["method"], record["seed"]): _trace(record) for record in records[1:]}


def keep_trace(path: Path, table: Table, settings: Settings, key: Key, trace: Trace) -> None:
    """Appends a search to `path`. Raises TableError if that fails."""
    method, seed = key
    record = {
        "method": method, "seed": seed, "trained": trace.trained, "trials": trace.num_trials,
        "duplicates": trace.num_duplicates, "ask_ms": [round(1e3 * seconds, 1) for seconds in trace.ask_seconds],
    }  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            begins = file.tell() == 0
            records = [_heading(table, settings), record] if begins else [record]
            lead = "" if begins or path.read_bytes().endswith(b"\n") else "\n"  # after a line that was cut off
            file.write(lead + "".join(json.dumps(found, separators=(",", ":")) + "\n" for found in records))
    except OSError as error:
        raise TableError(f"--keep {path}: cannot be written: {error.strerror or error}") from error


def _heading(table: Table, settings: Settings) -> dict[str, Any]:
    content = hashlib.sha256(repr([*table.rows]).encode())
    for curves in table.curves:
        content.update(curves.tobytes())
    return {"table": content.hexdigest()[:16], **asdict(settings), "metrics": list(settings.metrics)}


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _trace(record: Mapping[str, Any]) -> Trace:
    return Trace(
        trained=tuple((spent, row) for spent, row in record["trained"]),
        num_trials=record["trials"],
        num_duplicates=record["duplicates"],
        ask_seconds=tuple(milliseconds / 1e3 for milliseconds in record["ask_ms"]),
    )
