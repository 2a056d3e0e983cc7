"""The report of a search that goes on."""

import threading
from collections.abc import Iterator

from cvt_nas.report.write import write_report
from cvt_nas.run import RunFolder


def watch(run: RunFolder, *, seconds: float, stop: threading.Event) -> Iterator[int]:
    """Writes the report anew whenever trials have ended, until the search has, or `stop` is set; yields how many it
    holds.

    The record is looked at every so many seconds. An open page loads itself again as often, but not the last one.
    """
    num_ended_shown = -1
    while True:
        is_over = not run.is_at_work() or stop.is_set()  # asked before the record is read, or its end could be missed
        run.refresh()
        num_ended = len(run.ended())  # of which a retry takes the place of one that failed
        if is_over or num_ended != num_ended_shown:
            write_report(run, refresh=None if is_over else max(round(seconds), 1))
            num_ended_shown = num_ended
            yield len(run.results())
        if is_over:
            return
        stop.wait(seconds)
