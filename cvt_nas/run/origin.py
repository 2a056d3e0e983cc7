"""Time, command, machine and package versions of a run's start."""

import os
import platform
import secrets
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

_PACKAGES = ("cvt-nas", "torch", "torchvision", "timm", "ray", "optuna", "fvcore", "numpy")


def origin() -> dict[str, object]:
    """Entries of a manifest about the command, the machine and the packages, as plain JSON values."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "id": secrets.token_hex(8),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": os.fsencode(command).decode("utf-8", "backslashreplace"),
        "versions": {"python": platform.python_version(), **{name: _version_of(name) for name in _PACKAGES}},
        "platform": platform.platform(),
    }


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # this package, if the search sent its code to a cluster
        return "not installed"
