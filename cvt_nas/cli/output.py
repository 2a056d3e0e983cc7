"""What several verbs print."""

import shlex
from collections import Counter
from typing import Any


def say(console: Any, text: str, **style: Any) -> None:
    """Prints `text` as it stands: nothing in a path or a reason is markup."""
    console.print(text, markup=False, emoji=False, highlight=False, **style)


def command(*words: str) -> str:
    """A command that can be pasted into a shell."""
    return shlex.join(words)


def print_front(run: Any, out: str) -> None:
    """The front of a run, how far it can be trusted, where its page and plots are, and what to do next.

    Args:
        out: The run as the user named it.
    """
    from rich.console import Console

    from cvt_nas.report import confirmation_lines, front_table, latency_lines, rank_lines, report_paths

    console = Console(soft_wrap=True, emoji=False)
    front = run.front()
    if not front.members:
        say(console, "No trial reached its last epoch, so there is no front yet.")
        return
    console.print(front_table(run))
    for note in (*latency_lines(run), *confirmation_lines(run), *rank_lines(run)):
        say(console, note)
    say(console, f"hypervolume {front.hypervolume(run.box):.4f} (reference: accuracy 0 at the space's greatest costs)")
    plots = [shlex.quote(f"{out}/{path.name}") for path in report_paths(run) if path.suffix == ".html"]
    say(console, "plots: " + ", ".join(plots))
    say(console, "next: " + command("cvt-nas", "export", out, "--pick", "knee", "--to", "my_model"), style="bold")


def nothing_found(results: Any, *, is_time_over: bool = False) -> str:
    """Why a search ended without a front, in one line: its trials, how they ended, and the commonest reason.

    Args:
        results: Of its trials, none of them complete.
        is_time_over: Whether it ended with its time budget.
    """
    what = "the time budget ended before any trial was complete: " if is_time_over else ""
    if not results:
        return f"{what}no trial has ended"
    statuses = ", ".join(f"{number} {status}" for status, number in Counter(r.status for r in results).most_common())
    found = f"{len(results)} trial{'' if len(results) == 1 else 's'}, none complete: {statuses}"
    reasons = Counter(result.reason for result in results if result.reason)
    if not reasons:
        return what + found
    ((reason, number),) = reasons.most_common(1)
    said = reason if number == len(results) else f"most often: {reason}"
    return f"{what}{found} ({said})"
