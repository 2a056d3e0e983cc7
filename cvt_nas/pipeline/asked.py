"""Ends a search in an orderly way when somebody asks for it in the run folder."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cvt_nas.errors import StorageError
from cvt_nas.run import RunFolder

_SECONDS_BETWEEN_LOOKS = 1.0


def refuse_old_stops(run: RunFolder) -> None:
    """Refuses requests to stop that were meant for an earlier process. Later requests are for this one."""
    for request in run.requests.waiting():
        if request.ask == "stop":
            run.requests.answer(request, refused="the search had ended before")


@contextmanager
def stopping_when_asked(
    run: RunFolder, stop: threading.Event, *, on_note: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Watches for requests to stop while the block runs, and sets `stop` on the first one.

    Call `refuse_old_stops` before.
    """
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(_SECONDS_BETWEEN_LOOKS):
            with suppress(StorageError):  # it tries again soon
                if _take_stops(run):
                    run.requests.has_stopped = True
                    if on_note is not None:
                        on_note("somebody asked for it: stopping in order")
                    stop.set()
                    return

    thread = threading.Thread(target=look, name="requests", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _take_stops(run: RunFolder) -> bool:
    """Answers requests to stop. Returns whether there was one."""
    stops = [request for request in run.requests.waiting() if request.ask == "stop"]
    for request in stops:
        run.requests.answer(request)
    return bool(stops)
