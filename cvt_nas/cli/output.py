"""Output that several verbs share."""

import shlex
import sys
from collections import Counter
from typing import TYPE_CHECKING, TextIO

from cvt_nas.escaping import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from cvt_nas.results import TrialResult
    from cvt_nas.run import RunFolder


def write(*lines: str, file: TextIO | None = None, flush: bool = False) -> None:
    """Prints lines of text. Control characters in names of files or classes have no effect on the terminal."""
    print(*map(printable, lines), sep="\n", file=file, flush=flush)


def print_note(note: str) -> None:
    write(f"note: {note}", file=sys.stderr, flush=True)


def say(console: "Console", text: str, *, style: str | None = None) -> None:
    """Prints `text` without markup, since a path or a reason may contain any characters."""
    console.print(printable(text), markup=False, emoji=False, highlight=False, style=style)


def command(*words: str) -> str:
    """The command of `words`, which can be pasted into a shell."""
    return " ".join(map(quoted, words))


def quoted(word: str) -> str:
    """A word quoted for a shell. Control characters are written as escapes of bash and zsh."""
    shown = printable(word.replace("\\", "\\\\").replace("'", "\\'"))
    return shlex.quote(word) if printable(word) == word else f"$'{shown}'"


def operand(place: str) -> str:
    """A path or URL as a word of a command. It is never taken for an option, even if it begins with a dash."""
    return f"./{place}" if place.startswith("-") else place


def print_front(run: "RunFolder", out: str) -> None:
    """Prints the front of a run, how far it can be trusted, the paths of its page and plots, and the next command.

    Args:
        out: Path or URL of the run, as the user named it.
    """
    from rich.console import Console

    from cvt_nas.report import (
        belief_lines,
        confirmation_lines,
        front_table,
        hindsight_of,
        histories_of_beliefs,
        latency_lines,
        rank_lines,
        report_paths,
        stopping_lines,
    )

    console = Console(soft_wrap=True, emoji=False)
    front = run.front()
    if not front.members:
        say(console, "No trial reached its last epoch, so there is no front yet.")
        if candidates := run.candidates():
            best = command("cvt-nas", "query", operand(out))
            say(console, f"{len(candidates)} candidates are ranked by their inherited accuracies: {best}", style="bold")
        return
    console.print(front_table(run))
    of_search = (*rank_lines(run), *stopping_lines(run, hindsight_of(run)), *belief_lines(histories_of_beliefs(run)))
    for note in (*latency_lines(run), *confirmation_lines(run), *of_search):
        say(console, note)
    say(
        console,
        f"hypervolume {front.hypervolume(run.box):.4f} (reference: {run.front_score_name} 0 at the space's greatest "
        f"costs)",
    )
    out = operand(out)
    if plots := [quoted(f"{out}/{p.name}") for p in report_paths(run) if p.suffix == ".html" and p.exists()]:
        say(console, "plots: " + ", ".join(plots))
    say(console, "next: " + command("cvt-nas", "export", out, "--pick", "knee", "--to", "my_model"), style="bold")


def nothing_found(results: "Sequence[TrialResult]", *, is_time_over: bool = False) -> str:
    """One line on why a search ended without a front: its trials, how they ended, and the most frequent reason."""
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
