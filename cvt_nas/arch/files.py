"""Architectures by name and in files: this package's `arch.json`, and the `config.json` of transformers and timm."""

import difflib
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvt_nas.arch.foreign import arch_of_config, is_config
from cvt_nas.arch.network import ArchConfig, arch_from_dict, arch_to_dict
from cvt_nas.arch.published import NAMED_ARCHS
from cvt_nas.errors import ArchError


def load_arch(name_or_path: str | Path) -> ArchConfig:
    """A published architecture by name, or the one in a file or in a folder that holds it.

    Args:
        name_or_path: `cvt-13` or another name in `NAMED_ARCHS`, an `arch.json`, a `config.json` of transformers' CvT or
            of timm, or a folder with one of these. In a folder, `arch.json` comes first.

    Raises:
        ArchError: Neither a known name nor a readable file.
    """
    if str(name_or_path) in NAMED_ARCHS:
        return NAMED_ARCHS[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_dir():
        path = next((path / name for name in ("arch.json", "config.json") if (path / name).is_file()), path)
    if not path.is_file():
        raise ArchError(
            f"{name_or_path}: neither one of {', '.join(NAMED_ARCHS)} nor a file arch.json{_suggestion(name_or_path)}"
        )
    tree = read_object(path)
    return arch_of_config(tree, path) if is_config(tree) or path.name == "config.json" else arch_from_dict(tree)


def read_object(path: Path) -> Mapping[str, Any]:
    """Reads the JSON object in `path`. Raises ArchError if it cannot be read or is not an object."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ArchError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArchError(f"{path}: not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ArchError(f"{path}: got a {type(tree).__name__}, must be an object with the keys of an architecture")
    return tree


def save_arch(arch: ArchConfig, path: Path) -> None:
    """Writes `arch` to `path` as JSON that `load_arch` reads."""
    path.write_text(json.dumps(arch_to_dict(arch), indent=2) + "\n", encoding="utf-8")


def _suggestion(named: str | Path) -> str:
    """A published architecture by names such as `cvt_13`, `microsoft/cvt-13-384-22k`, `CvT-w24-384x384-IN-22k.pth`."""
    plain = {re.sub(r"[^a-z0-9]", "", name): name for name in NAMED_ARCHS}
    spelt = re.sub(r"[^a-z0-9]", "", str(named).lower().rpartition("/")[2])
    near = [name for name in plain if spelt.startswith(name)]
    near += difflib.get_close_matches(spelt, plain, n=len(plain), cutoff=0.75)

    def num_alike(name: str) -> int:
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(name, spelt, strict=False)))

    return f"; did you mean {plain[max(near, key=num_alike)]!r}?" if near else ""
