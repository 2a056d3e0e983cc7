"""The manifest of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, NotRequired

from pydantic import JsonValue, TypeAdapter
from typing_extensions import TypedDict

from cvt_nas.errors import RunFolderError
from cvt_nas.results.pareto import HypervolumeBox
from cvt_nas.results.parsing import json_text, load_finite, parse_json
from cvt_nas.results.trial import Metric


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads a manifest.

    Raises:
        RunFolderError: The file is missing or damaged. The result raises it, too, for a key that the manifest lacks.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = load_finite(text)
    except json.JSONDecodeError as error:
        raise RunFolderError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise RunFolderError(f"{path}: got a {type(tree).__name__}, must be an object")
    parse_json(_FIELDS, text, str(path))
    manifest = _Manifest(tree)
    manifest.path = path
    return manifest


def manifest_text(entries: Mapping[str, object]) -> str:
    """Writes entries in the format that `read_manifest` reads."""
    return json_text(entries, indent=2) + "\n"


class _Source(TypedDict):
    place: str
    epochs: int
    trials: int
    skill: NotRequired[float]  # earlier versions did not record it


class _Fields(TypedDict, total=False):
    """Entries of a manifest that are read. Later versions may add others."""

    name: str
    trials: int
    seed: int
    epochs: int
    objectives: list[Metric]
    rungs: list[int]
    hypervolume_box: HypervolumeBox
    dataset: str
    fingerprint: str
    space_file: str
    versions: dict[str, str]
    resources: dict[str, JsonValue]
    latency_table: dict[str, JsonValue]
    deploy: dict[str, JsonValue]
    warm_start: str | None
    init: dict[str, JsonValue]
    learn_from: list[_Source]
    time_budget: float | None


_FIELDS = TypeAdapter(_Fields)


class _Manifest(dict[str, Any]):
    path: Path

    def __missing__(self, key: str) -> NoReturn:
        raise RunFolderError(f"{self.path}: lacks {key}")
