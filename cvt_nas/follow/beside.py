"""The live page of a search. A separate process serves it, so that the search does not wait for it."""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from cvt_nas.errors import CvtNasError
from cvt_nas.follow.serving import serving
from cvt_nas.run import RunFolder

_SECONDS_TO_BEGIN, _SECONDS_TO_END = 120.0, 30.0


@contextmanager
def page_beside(run: RunFolder, *, port: int = 0, warn: Callable[[str], object]) -> Iterator[str | None]:
    """Serves the page of a run within the block. Yields its URL, or None if it cannot be served.

    Args:
        port: See `serving`.
        warn: Called with one line that tells why there is no page.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(run.place, port, theirs), name="live page", daemon=True)
    process.start()
    theirs.close()
    try:
        url, problem = ours.recv() if ours.poll(_SECONDS_TO_BEGIN) else (None, "it does not begin")
    except EOFError:
        url, problem = None, "its process ended"
    if problem is not None:
        warn(f"no live page: {problem}")
    try:
        yield url
    finally:
        ours.close()
        process.join(_SECONDS_TO_END)
        if process.is_alive():
            process.terminate()


def _serve(place: str, port: int, search: Connection) -> None:
    """Serves until the search closes its end of the pipe, or is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the search, which ends this process in order
    try:
        with serving(RunFolder.open(place), port=port, stop=threading.Event()) as url:
            search.send((url, None))
            search.poll(None)
    except CvtNasError as error:
        search.send((None, str(error)))
