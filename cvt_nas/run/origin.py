"""When, where and with what a run was begun."""

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

_PACKAGES = ("cvt-nas", "torch", "torchvision", "timm", "ray", "optuna", "fvcore", "numpy")


def origin() -> dict[str, object]:
    """What a manifest tells of the command, the machine and the packages: plain JSON values."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": os.fsencode(command).decode("utf-8", "backslashreplace"),
        "versions": {"python": platform.python_version(), **{name: _version_of(name) for name in _PACKAGES}},
        "platform": platform.platform(),
    }


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # ourselves, on a cluster to which the code went with the search
        return "not installed"
