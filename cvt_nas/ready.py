"""Space files and tables that come with the package, by name. To list them imports nothing else."""

from collections.abc import Mapping
from pathlib import Path

_PACKAGE = Path(__file__).parent


def ready_spaces() -> Mapping[str, Path]:
    """Space files that come with the package, by name."""
    folders = (_PACKAGE / "search_spaces", _PACKAGE.parent / "search_spaces")  # installed, and in a checkout
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def ready_tables() -> Mapping[str, Path]:
    """The tables that come with the package, by name. The space file of each lies beside it, with suffix `.yaml`."""
    folders = (_PACKAGE / "tables", _PACKAGE.parent / "benchmarks" / "tables")  # installed, and in a checkout
    return {
        file.stem: file
        for folder in folders
        for file in sorted(folder.glob("*.parquet"), key=lambda file: file.stem)
        if file.stem in {described.stem for described in folder.glob("*.yaml")}
    }
