"""Processes that do not outlive the one that started them."""

import math
import os
import threading
import time


def end_with_parent(parent: int, *, most_seconds: float = math.inf) -> None:
    """Ends this process within about a second of its parent, however that ends, or after `most_seconds`.

    Workers of `concurrent.futures` do not end with a parent that is killed: each holds both ends of the pipe that it
    waits at.

    Args:
        parent: Process id of the parent, by the parent itself, which may have ended already.
    """
    deadline = time.monotonic() + most_seconds

    def watch() -> None:
        while os.getppid() == parent and time.monotonic() < deadline:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
