"""Keeps the report of a running search up to date."""

import threading
from collections.abc import Iterator

from cvt_nas.report.write import write_report
from cvt_nas.run import RunFolder


def watch(run: RunFolder, *, seconds: float, stop: threading.Event) -> Iterator[int]:
    """Writes the report again whenever trials have ended, until the search ends or `stop` is set.

    Yields the number of trials in the report.

    Args:
        seconds: Time between two looks at the record. An open page loads itself again as often, except for the last
            one.
    """
    num_ended_shown = -1
    while True:
        is_over = not run.is_at_work() or stop.is_set()  # before the record is read, or its end could be missed
        run.refresh()
        num_ended = len(run.ended())  # `results` does not grow if a retry replaces a failed trial
        if is_over or num_ended != num_ended_shown:
            write_report(run, refresh=None if is_over else max(round(seconds), 1))
            num_ended_shown = num_ended
            yield len(run.results())
        if is_over:
            return
        stop.wait(seconds)
