"""What several verbs print."""

from typing import Any


def print_front(run: Any, out: str) -> None:
    """The front of a run, how far it can be trusted, where its page and plots are, and what to do next."""
    from rich.console import Console

    from cvt_nas.report import confirmation_lines, front_table, latency_lines, rank_lines, report_paths

    console = Console(soft_wrap=True)
    front = run.front()
    if not front.members:
        console.print("No trial reached its last epoch, so there is no front yet.")
        return
    console.print(front_table(run))
    for note in (*latency_lines(run), *confirmation_lines(run), *rank_lines(run)):
        console.print(note, highlight=False)
    console.print(f"hypervolume {front.hypervolume(run.box):.4f} (reference: accuracy 0 at the space's greatest costs)")
    plots = [f"{out}/{path.name}" for path in report_paths(run) if path.suffix == ".html"]
    console.print("plots: " + ", ".join(plots))
    console.print(f"next: cvt-nas export {out} --pick knee --to my_model", style="bold")
