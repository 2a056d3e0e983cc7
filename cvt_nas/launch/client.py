"""Client mode: a search runs on a remote cluster, and this machine follows it."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import ray
from ray.util.queue import Empty, Queue

from cvt_nas.config import Experiment
from cvt_nas.launch.cluster import HEAD, join_cluster
from cvt_nas.launch.resources import Resources
from cvt_nas.results.events import Follower, following
from cvt_nas.run import RunFolder, is_url


def search_through_client(
    search: Callable[..., RunFolder],
    experiment: Experiment,
    *,
    address: str,
    out: str | Path,
    stop: threading.Event,
    progress: Callable[..., AbstractContextManager[Follower]] | None,
    callbacks: Sequence[Follower],
    on_note: Callable[[str], None] | None,
    **options: object,
) -> RunFolder:
    """Runs `search` as a task on a cluster, and follows it.

    Args:
        search: A function of an experiment.
        address: Address of the cluster's Ray client, such as `ray://host:10001`.
        out: A URL, or a path that exists both on the cluster and here.
        options: Options of `search`. Paths are those of the cluster.
    """
    out = str(out) if is_url(out) else str(Path(out).absolute())
    join_cluster(address)
    try:
        events, actor = Queue(actor_options={"num_cpus": 0, "resources": HEAD}), cast(Any, ray.remote(_Flag))
        flag = actor.options(num_cpus=0, resources=HEAD).remote()
        task: Any = ray.remote(_search).options(num_cpus=0, max_retries=0, resources=HEAD)
        done = task.remote(search, experiment, {**options, "out": out}, events, flag)
        with ExitStack() as stack:
            on_event = following(*callbacks)
            while True:
                if stop.is_set():
                    ray.get(flag.set.remote())
                try:
                    event = events.get(timeout=0.5)
                except (Empty, queue.Empty):
                    if ray.wait([done], timeout=0)[0]:
                        break
                    continue
                if isinstance(event, str):
                    if on_note is not None:
                        on_note(event)
                elif not isinstance(event, tuple):
                    on_event(event)
                elif progress is not None:
                    resources, num_trials, left = event
                    deadline = None if left is None else time.monotonic() + left
                    follower = stack.enter_context(progress(RunFolder.open(out), resources, num_trials, deadline))
                    on_event = following(follower, *callbacks)
            ray.get(done)
    finally:
        ray.shutdown()
    return RunFolder.open(out)


class _Flag:
    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


def _search(
    search: Callable[..., RunFolder], experiment: Experiment, options: Mapping[str, object], events: Queue, flag: Any
) -> None:
    stop, is_over = threading.Event(), threading.Event()

    def watch() -> None:
        while not is_over.wait(1.0):
            if ray.get(flag.is_set.remote()):
                stop.set()
                return

    @contextmanager
    def forward(run: RunFolder, resources: Resources, num_trials: int, deadline: float | None) -> Iterator[Follower]:
        del run
        events.put((resources, num_trials, None if deadline is None else deadline - time.monotonic()))
        yield events.put

    threading.Thread(target=watch, daemon=True).start()
    try:
        search(experiment, stop=stop, progress=forward, on_note=events.put, **options)
    finally:
        is_over.set()
