"""The time budget of a search, over all processes that work on it."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator

from cvt_nas.errors import RunFolderError
from cvt_nas.run import RunFolder

_SECONDS_BETWEEN_NOTES = 5.0  # a killed process forgets at most this much


class TimeBudget:
    """The seconds that are left for a run. Raises RunFolderError if none are left.

    Args:
        seconds: Budget of the whole run; None for no limit.
        run: A run that already spent a part of it.
    """

    def __init__(self, seconds: float | None, run: RunFolder | None) -> None:
        self._spent = 0.0 if run is None else run.seconds_spent
        self._left = None if seconds is None else seconds - self._spent
        if run is not None and self._left is not None and self._left <= 0:
            raise RunFolderError(
                f"{run.path}: its time budget of {seconds:g} s is spent; go on by a greater one, --time-budget TIME"
            )

    @property
    def deadline(self) -> float | None:
        """When the budget ends if it runs from now, on the clock of `time.monotonic`."""
        return None if self._left is None else time.monotonic() + self._left

    @contextlib.contextmanager
    def running(self, run: RunFolder, stop: threading.Event) -> Iterator[None]:
        """Counts the seconds of the block as spent on `run`, and sets `stop` when the budget ends."""
        is_over, started = threading.Event(), time.monotonic()

        def spent() -> float:
            return time.monotonic() - started

        def count() -> None:
            while not is_over.wait(self._next_wait(spent())):
                with contextlib.suppress(OSError):  # the next note comes soon
                    run.write_seconds_spent(self._spent + spent())
                if self._left is not None and spent() >= self._left:
                    stop.set()
                    return

        thread = threading.Thread(target=count, name="time budget", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            with contextlib.suppress(OSError):
                run.write_seconds_spent(self._spent + spent())

    def _next_wait(self, spent: float) -> float:
        left = math.inf if self._left is None else self._left - spent
        return max(min(_SECONDS_BETWEEN_NOTES, left), 0.01)
