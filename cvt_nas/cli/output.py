"""What several verbs print."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def print_front(run: Any, table: Any, paths: Sequence[Path], out: str, notes: Sequence[str]) -> None:
    """The front, where its plots are, and what to do next."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    front = run.front()
    if not front.members:
        console.print("No trial reached its last epoch, so there is no front yet.")
        return
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    console.print(f"hypervolume {front.hypervolume(run.box):.4f} (reference: accuracy 0 at the space's greatest costs)")
    console.print("plots: " + ", ".join(f"{out}/{path.name}" for path in paths if path.suffix == ".html"))
    console.print(f"next: cvt-nas export {out} --pick knee --to my_model", style="bold")
