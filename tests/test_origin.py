from importlib import metadata
from typing import Any

import pytest

from cvt_nas.run.origin import origin


def test_a_run_can_begin_where_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "cvt-nas":
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    versions: Any = origin()["versions"]
    assert (versions["cvt-nas"], versions["torch"]) == ("not installed", "1.0")
